"""A folder as an ordered list of image files."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from densefeat.errors import UsageError
from densefeat.images.files import ENDINGS, EXTENSIONS, MAX_BYTES, Files, Folder, reason_of
from densefeat.images.stream import printable_key

_BLOCK = 65536  # names gathered before they are laid out compactly
_CONTAINERS = (b".parquet", b".tar")


def open_folder(folder: Folder, images: str, labels: str | None = None) -> Files:
    """All files below with an image's extension (any case), sorted by key: the same order on every machine.

    Linked folders are entered only where ``folder`` follows links. A folder that cannot be listed stands in the list itself,
    and fails to be read. ``labels="folder"``: the first folder of each key. ``images``: what the user called it.
    Raises UsageError where it cannot be listed, or holds no such file.
    """
    found = Listing()
    try:
        blocks = [pa.array(block, pa.large_binary()) for block in found.blocks(folder)]
    except Exception as error:
        raise UsageError(f"images {images!r}: {reason_of(error)}") from error
    if not blocks:
        what = f"no file with an image's extension ({', '.join(EXTENSIONS)}) in it"
        if found.container is not None:
            what = f"no images in it as files: pass {images.rstrip('/') + '/' + found.container!r}"
        raise UsageError(f"images {images!r}: {what}")
    keys = pa.concat_arrays(blocks)
    keys = keys.take(pc.array_sort_indices(keys))
    positions = pc.index_in(pa.array(found.too_large, pa.large_binary()), keys).to_pylist()
    failures = {
        position: f"{size:,} bytes are more than the limit of {MAX_BYTES:,}"
        for position, size in zip(positions, found.too_large.values(), strict=True)
    }
    return Files(folder, keys, _folder_labels(keys) if labels else None, failures)


class Listing:
    """One pass over the names below a folder, with what was noted on the way."""

    def __init__(self) -> None:
        self.too_large: dict[bytes, int] = {}  # sizes, where listing tells them
        self.container: str | None = None  # a glob for the first file that is known to hold images

    def blocks(self, folder: Folder) -> Iterator[list[bytes]]:
        """Keys, some thousands at a time."""
        block: list[bytes] = []
        for name, size in folder.find():
            if name.lower().endswith(ENDINGS) or name.endswith(b"/"):
                block.append(name.rstrip(b"/"))
                if size is not None and size > MAX_BYTES:
                    self.too_large[name] = size
                if len(block) == _BLOCK:
                    yield block
                    block = []
            elif self.container is None and name.lower().endswith(_CONTAINERS):
                head, slash, last = _printable_name(name).rpartition("/")
                self.container = f"{head}{slash}*.{last.rpartition('.')[2]}"
        if block:
            yield block


def _folder_labels(keys: pa.LargeBinaryArray) -> pa.LargeStringArray:
    """The first folder of each key; None for a file beside the folders."""
    blocks = []
    for start in range(0, len(keys), _BLOCK):
        parts = (key.partition(b"/") for key in keys[start : start + _BLOCK].to_pylist())
        blocks.append(pa.array([_printable_name(head) if slash else None for head, slash, _ in parts], pa.large_string()))
    return pa.concat_arrays(blocks)


def _printable_name(name: bytes) -> str:
    return printable_key(name.decode("utf-8", "surrogateescape"))
