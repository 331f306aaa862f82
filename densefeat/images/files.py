"""Image files as a source: all those in a folder, or those that a list (text, CSV, TSV, Parquet) names in its order."""

import logging
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.base import describe_error, shorten_text
from densefeat.errors import DecodeError, UsageError
from densefeat.images.csv_files import BOM, DELIMITERS, check_encoding, check_line_breaks, read_csv
from densefeat.images.folders import MAX_BYTES, Folder, Found, LocalFolder, leaves_folder
from densefeat.images.label_text import clean_labels
from densefeat.images.parquet_batches import ParquetBatches
from densefeat.images.remarks import LeftOut
from densefeat.images.rows import (
    check_column,
    decode_paths,
    describe_columns,
    format_labels,
    is_label,
    is_text,
    join_chunks,
    read_label_names,
)
from densefeat.images.split_folders import format_name, label_by_folder
from densefeat.images.stamps import Stamps, stamp_files
from densefeat.images.stream import ImageItem, IndexedSource, find_repeats, printable_keys

_log = logging.getLogger(__name__)
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".avif", ".heic", ".heif", ".pbm", ".pgm", ".ppm", ".pnm", ".pam",
    ".svs",  # a slide, which is a tiled TIFF
    ".dcm", ".dicom", ".npy",
)  # fmt: skip
_PACKAGES = (  # names, package, kind, and the extra that has it
    (r"(?i)\.(heic|heif)$", "pillow_heif", "HEIC", "heif"),
    (r"(?i)\.(dcm|dicom)$", "pydicom", "DICOM", "dicom"),
)
_ENDINGS = tuple(extension.encode() for extension in EXTENSIONS)
_CONTAINERS = (".parquet", ".tar")
TEXTS = (".txt", ".lst")
PATH = "path"  # the column with paths, where no other is named
_MAX_LIST_BYTES = 2**33
_BLOCK = 65536  # names gathered before they are packed into an array
_TRIES = 10  # paths of a list that are looked for before the job begins
_BASE = "--base names the folder of a list's images"
# a path that is not in its shortest form, or may leave the folder
_ODD = r"^/|^[A-Za-z]:|//|(^|/)\.{1,2}(/|$)|/$|\\"


@dataclass(frozen=True)
class ImageFiles(IndexedSource):
    """A source of files whose names are their keys. ``listed``: their stamps, where the listing has them."""

    listed: pa.LargeStringArray | None = field(default=None, repr=False)

    def item(self, position: int, key: str, label: str | None) -> ImageItem:  # noqa: ARG002  (of the superclass)
        folder = self.folder
        return ImageItem(key, label, partial(folder.read, key), partial(folder.path, key), partial(folder.open, key))

    def stamps(self) -> Stamps:
        stamps = stamp_files(self.folder.stamp, self.names) if self.listed is None else self.listed
        return Stamps(printable_keys(self.names), stamps)


def open_folder(folder: Folder, images: str, labels: str | None = None) -> ImageFiles:
    """Open all files below a folder with an image's extension (any case), sorted by key: the same order on every machine.

    Hidden ones and other files are left out, which is logged. Linked folders are entered only where ``folder`` follows links; a
    folder that is not entered is an item that cannot be read. ``labels="folder"``: the label is the class of each key, see
    :func:`densefeat.images.split_folders.label_by_folder`. ``images``: what the user named, for errors.
    Raises UsageError where the folder cannot be listed, or holds no such file.
    """
    listing = _Listing()
    try:
        blocks = [pa.array(block, pa.large_binary()) for block in listing.blocks(folder)]
    except Exception as error:
        raise UsageError(f"images {images!r}: {describe_error(error)}") from error
    if not blocks:
        what = f"no file with an image's extension ({', '.join(EXTENSIONS)}) in it{listing.left_out.but()}"
        what += "; a list of paths names any files"
        if listing.container is not None:
            what = f"no images in it as files: pass {images.rstrip('/') + '/' + listing.container!r}"
        raise UsageError(f"images {images!r}: {what}")
    listing.left_out.warn(images)
    keys = pa.concat_arrays(blocks)
    _check_packages(keys, images)
    order = pc.array_sort_indices(keys)
    keys = keys.take(order)
    listed = pa.array(listing.stamps, pa.large_string()).take(order) if any(listing.stamps) else None
    positions = pc.index_in(pa.array(listing.failures, pa.large_binary()), keys).to_pylist()
    failures = dict(zip(positions, listing.failures.values(), strict=True))
    classes = label_by_folder(keys, images) if labels else None
    return ImageFiles(folder, keys, classes, failures, listed, left_out=listing.left_out.describe())


def _check_packages(keys: pa.LargeBinaryArray, images: str) -> None:
    """Raise UsageError where names are those of files that need a package which is not installed, before any is read."""
    for pattern, package, kind, extra in _PACKAGES:
        if find_spec(package) is None and (count := pc.sum(pc.match_substring_regex(keys, pattern)).as_py()):
            raise UsageError(f"images {images!r}: {count:,} {kind} files need a package: pip install 'densefeat[{extra}]'")


def is_image_name(name: bytes) -> bool:
    """Check by its extension whether a file may be an image."""
    return name.lower().endswith(_ENDINGS)


class _Listing:
    """A pass over the names below a folder, and what it has found."""

    def __init__(self) -> None:
        self.failures: dict[bytes, str] = {}  # why a file is not read, or a folder was not entered, by key
        self.stamps: list[str | None] = []  # of the keys in their order
        self.container: str | None = None  # a glob for the first files that may hold images
        self.left_out = LeftOut()

    def blocks(self, folder: Folder) -> Iterator[list[bytes]]:
        """List the keys, some thousands at a time."""
        block: list[bytes] = []
        for found in folder.find():
            if self._take(found):
                block.append(found.name.rstrip(b"/"))
                self.stamps.append(found.stamp)
            if len(block) == _BLOCK:
                yield block
                block = []
        if block:
            yield block

    def _take(self, found: Found) -> bool:
        """Note what is to be said of a name; return whether it is an item."""
        if found.hidden:
            if found.name.lower().endswith((*_ENDINGS, b"/")):
                self.left_out.hidden.add(format_name(found.name))
            return False
        if found.problem is not None:
            self.failures[found.name.rstrip(b"/")] = found.problem
            self.left_out.closed.add(format_name(found.name))
        elif not is_image_name(found.name):
            name = format_name(found.name)
            self.left_out.add(name)
            if self.container is None and name.lower().endswith(_CONTAINERS):
                head, slash, last = name.rpartition("/")
                self.container = f"{head}{slash}*.{last.rpartition('.')[2]}"
            return False
        elif found.size is not None and found.size > MAX_BYTES:
            self.failures[found.name] = f"{found.size:,} bytes are more than the limit of {MAX_BYTES:,}"
        return True


def open_list(
    home: Folder,
    name: str,
    images: str,
    base: Folder,
    prefixes: list[str],
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageFiles:
    """Open the files that the list ``name`` in the folder ``home`` names, in its order.

    Paths are relative to ``base``, or begin with one of ``prefixes``, the ways to write its name. A path that leaves it, and a
    path that occurs twice, is an item that cannot be read. ``images``: what the user named, for errors.
    Raises UsageError: no list, no path in it, no such column.
    """
    try:
        if home.size(name) > _MAX_LIST_BYTES:
            raise UsageError(f"images {images!r}: a list of more than {_MAX_LIST_BYTES:,} bytes")
        with home.open(name) as file:
            entries, labels = _read_list(file, name, images, image_column, label_column)
    except DecodeError as error:
        raise UsageError(f"images {images!r}: {error}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"images {images!r}: {describe_error(error)}") from error
    if not len(entries):
        raise UsageError(f"images {images!r}: no path in this list")
    _check_packages(entries, images)
    starts = [os.fsencode(prefix) for prefix in prefixes]
    keys = normalise_paths(entries, starts)
    if _separates_by_backslashes(keys, base):
        keys = normalise_paths(pc.replace_substring(entries, "\\", "/"), starts)
    outside = _find_outside(keys)
    if len(outside) == len(keys):
        example = shorten_text(format_name(keys[0].as_py()))
        raise UsageError(f"images {images!r}: all paths, such as {example!r}, lie outside of {prefixes[0]!r}: {_BASE}")
    if not _has_any(base, keys[:_TRIES]):
        example = shorten_text(format_name(keys[0].as_py()))
        _log.warning("images %r: its first paths, such as %r, are no files in %r: %s", images, example, prefixes[0], _BASE)
    failures = dict.fromkeys(outside, f"outside of the folder; {_BASE}")
    return ImageFiles(base, keys, labels, failures | _describe_repeats(keys))


def _find_outside(keys: pa.LargeBinaryArray) -> list[int]:
    """Return the positions of paths that lead out of the folder, by their text."""
    odd = np.flatnonzero(pc.match_substring_regex(keys, _ODD).to_numpy(zero_copy_only=False)).tolist()
    return [position for position in odd if leaves_folder(os.fsdecode(keys[position].as_py()))]


def _has_any(base: Folder, keys: pa.LargeBinaryArray) -> bool:
    """Check whether any of these files is there; elsewhere than on this machine it is not asked."""
    names = map(os.fsdecode, keys.to_pylist())
    return not isinstance(base, LocalFolder) or any(os.path.lexists(os.path.join(base.root, name)) for name in names)


def _separates_by_backslashes(keys: pa.LargeBinaryArray, base: Folder) -> bool:
    """Check whether a list was written on Windows: a file is there only if backslashes in its path are read as slashes."""
    found = pc.match_substring(keys, b"\\")
    for key in keys.filter(found)[:_TRIES].to_pylist() if pc.any(found).as_py() else []:
        name = os.fsdecode(key)
        if _is_there(base, name):
            return False
        if _is_there(base, posixpath.normpath(name.replace("\\", "/"))):
            return True
    return False


def _is_there(folder: Folder, name: str) -> bool:
    try:
        folder.size(name)
    except DecodeError:
        return False
    return True


def _read_list(
    file: BinaryIO, name: str, images: str, image_column: str | None, label_column: str | None
) -> tuple[pa.LargeBinaryArray, pa.LargeStringArray | None]:
    """Read the paths as they are written, and the labels."""
    suffix = os.path.splitext(name.lower())[1]
    if suffix in TEXTS:
        check_encoding(file, f"images {images!r}")
        if image_column or label_column:
            raise UsageError(f"images {images!r}: a text file has no columns, such as {image_column or label_column!r}")
        return pa.concat_arrays([pa.array([], pa.large_binary()), *_read_lines(file)]), None
    path = image_column or PATH
    if suffix in DELIMITERS:
        return _read_csv(file, DELIMITERS[suffix], images, path, label_column)
    return _read_parquet(file, images, path, label_column)


def _read_lines(file: BinaryIO) -> Iterator[pa.LargeBinaryArray]:
    """Read the lines that are not blank, some thousands at a time."""
    block: list[bytes] = []
    for number, line in enumerate(file):
        if number == 0:
            line = line.removeprefix(BOM)
        if line.strip():
            block.append(line.rstrip(b"\r\n"))
        if len(block) == _BLOCK:
            yield pa.array(block, pa.large_binary())
            block = []
    yield pa.array(block, pa.large_binary())


def _read_csv(
    file: BinaryIO, delimiter: str, images: str, path: str, label: str | None
) -> tuple[pa.LargeBinaryArray, pa.LargeStringArray | None]:
    """Read the paths as they are written, and the labels; an empty field means that there is no label."""
    subject = f"images {images!r}"
    advice = "; rename the column of paths, or name it by --image-column of extract" if path == PATH else ""
    types = {path: pa.large_binary()} | ({label: pa.large_string()} if label else {})
    table = read_csv(file, delimiter, subject, types, advice)
    paths = join_chunks(table.column(path))
    labels = clean_labels(join_chunks(table.column(label))) if label else None
    check_line_breaks(paths, paths if labels is None else labels, label or path, subject)
    return paths, labels


def _read_parquet(
    file: BinaryIO, images: str, path: str, label: str | None
) -> tuple[pa.LargeBinaryArray, pa.LargeStringArray | None]:
    columns = [path] if label is None else [path, label]
    paths, labels, size = [pa.array([], pa.large_binary())], [pa.array([], pa.large_string())], 0
    with ParquetBatches(file) as table:
        _check_columns(table.schema, images, path, label)
        names = read_label_names(table.schema, label)
        for batch in table.iter_batches(table.groups, columns, _BLOCK):
            paths.append(decode_paths(batch.column(path)))
            if label is not None:
                labels.append(format_labels(batch.column(label), names))
            size += paths[-1].nbytes + labels[-1].nbytes
            if size > _MAX_LIST_BYTES:
                raise UsageError(f"images {images!r}: a list of more than {_MAX_LIST_BYTES:,} bytes")
    return pa.concat_arrays(paths), None if label is None else pa.concat_arrays(labels)


def _check_columns(schema: pa.Schema, images: str, path: str, label: str | None) -> None:
    """Raise UsageError unless a table has a column of paths, and one of labels if there is to be one."""
    if path == PATH and PATH not in schema.names:
        raise UsageError(
            f"images {images!r}: neither encoded images nor a column {PATH!r} of paths: {describe_columns(schema)}"
        )
    for column, fits in ((path, is_text), (label, is_label)):
        check_column(schema, column, f"images {images!r}")
        if column is not None and not fits(schema.field(column).type):
            raise UsageError(f"images {images!r}: column {column!r} holds {schema.field(column).type}")


def normalise_paths(entries: pa.LargeBinaryArray, prefixes: list[bytes]) -> pa.LargeBinaryArray:
    """Make paths relative to the folder that ``prefixes`` name, in their shortest form; a null becomes empty."""
    entries = entries.fill_null(b"")
    odd = np.flatnonzero(pc.match_substring_regex(entries, _ODD).to_numpy(zero_copy_only=False))
    if not len(odd):
        return entries
    mask = np.zeros(len(entries), bool)
    mask[odd] = True
    short = [_normalise_path(entry, prefixes) for entry in entries.take(pa.array(odd)).to_pylist()]
    return pc.replace_with_mask(entries, pa.array(mask), pa.array(short, pa.large_binary()))


def _normalise_path(entry: bytes, prefixes: list[bytes]) -> bytes:
    """Shorten one path; ``prefixes`` end in a slash."""
    for prefix in prefixes:
        if b"://" in prefix and entry.startswith(prefix):
            entry = entry[len(prefix) :]
    if b"://" in entry:
        return entry
    path = posixpath.normpath(entry.replace(os.sep.encode(), b"/"))
    for prefix in prefixes:
        if path.startswith(prefix):
            return path[len(prefix) :]
    return path


def _describe_repeats(keys: pa.LargeBinaryArray) -> dict[int, str]:
    """Say, by position, why the later ones of equal keys are not read."""
    later = np.flatnonzero(find_repeats(keys))
    if not len(later):
        return {}
    first = pc.index_in(keys.take(pa.array(later)), keys).to_pylist()
    return {int(position): f"repeated: the same as position {place}" for position, place in zip(later, first, strict=True)}
