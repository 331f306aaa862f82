"""Data sets of the datasets library: saved to disk, or streamed from the Hub."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml

from densefeat.base import PlainLoader, describe_error, parse_json, shorten_text
from densefeat.errors import DecodeError, DensefeatError, UsageError
from densefeat.images.files import is_image_name
from densefeat.images.folders import LocalFolder, RemoteFolder, file_system, leaves_folder
from densefeat.images.rows import (
    ImageColumns,
    choose_image_columns,
    format_labels,
    make_row_items,
    make_row_keys,
    read_label_names,
)
from densefeat.images.stamps import Stamps, join_stamps
from densefeat.images.stream import ImageItem, RandomAccess, SequentialSource, hash_columns, printable_key

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BATCH_ROWS = 32  # read at a time, for images of any size
_MAX_DESCRIPTION = 2**24  # bytes of a file that describes a data set
_TIMEOUT = 10  # seconds in which the Hub has to answer


class SavedRows(SequentialSource, RandomAccess):
    """The rows of a data set on this machine's disk: a folder that ``save_to_disk`` wrote, or a split that was downloaded.

    Keys are ``NAME#17``. ``read_path``: reads the file of a row that has only a path.
    """

    def __init__(self, name: str, dataset: "Dataset", columns: ImageColumns, read_path: Callable[[str], bytes]) -> None:
        super().__init__()
        self.name, self.dataset, self.columns, self.read_path = name, dataset, columns, read_path

    @property
    def length(self) -> int:
        return len(self.dataset)

    @property
    def labelled(self) -> bool:
        return self.columns.label is not None

    def rows(self, start: int) -> Iterator[ImageItem]:
        tables = self.dataset.with_format("arrow")
        names = read_label_names(self.dataset.features.arrow_schema, self.columns.label)
        for first in range(start, self.length, _BATCH_ROWS):
            for batch in tables[first : first + _BATCH_ROWS].to_batches():
                yield from make_row_items(batch, self.columns, names, self.name, first, self.read_path)
                first += len(batch)

    def keys(self) -> pa.LargeBinaryArray:
        return make_row_keys(self.name, self.length)

    def key(self, position: int) -> str:
        return f"{self.name}#{position}"

    def label_values(self) -> pa.LargeStringArray:
        if self.columns.label is None:
            return pa.nulls(self.length, pa.large_string())
        column = self.dataset.select_columns([self.columns.label]).with_format("arrow")[:].column(self.columns.label)
        return format_labels(column.combine_chunks(), self.class_names())

    def class_names(self) -> list[str] | None:
        return read_label_names(self.dataset.features.arrow_schema, self.columns.label)

    def stamps(self) -> Stamps:
        """Look at the data set's own files, which all rows share."""
        files = [os.path.realpath(file["filename"]) for file in self.dataset.cache_files]
        stamps = ((os.fsencode(os.path.basename(file)), LocalFolder("/").stamp(os.fsencode(file))) for file in files)
        return _stamp_whole(self.name, self.length, join_stamps(stamps))

    def fingerprint(self) -> str:
        labels = self.label_values() if self.labelled else None
        return hash_columns(self.keys(), labels, self.columns.names())


class StreamedRows(SequentialSource):
    """The rows of a split, read as they arrive, with keys ``NAME:SPLIT#17``.

    ``home``: where the files of rows must lie; ``revision``: of the data set, where it is on the Hub.
    """

    def __init__(
        self,
        name: str,
        split: str,
        dataset: "IterableDataset",
        columns: ImageColumns,
        home: str,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.split, self.dataset, self.columns, self.home = name, split, dataset, columns, home
        self.revision = revision

    @property
    def length(self) -> int | None:
        """The number of rows that the data set's description states."""
        splits = self.dataset.info.splits or {}
        return splits[self.split].num_examples or None if self.split in splits else None

    @property
    def labelled(self) -> bool:
        return self.columns.label is not None

    def rows(self, start: int) -> Iterator[ImageItem]:
        names = read_label_names(self.dataset.features.arrow_schema, self.columns.label)
        read_path = partial(_read_inside, self.home)
        first = start
        try:
            for table in self.dataset.skip(start).with_format("arrow").iter(batch_size=_BATCH_ROWS):
                for batch in table.to_batches():
                    yield from make_row_items(batch, self.columns, names, self._key, first, read_path)
                    first += len(batch)
        except Exception as error:
            raise DensefeatError(
                f"images 'hf:{self._key}': the stream broke off at row {first:,}: {describe_error(error)}"
            ) from error

    @property
    def _key(self) -> str:
        return f"{self.name}:{self.split}"

    def keys(self) -> pa.LargeBinaryArray:
        if self.length is None:
            raise UsageError(f"images 'hf:{self._key}': the number of its rows is not known before the end of the stream")
        return make_row_keys(self._key, self.length)

    def stamps(self) -> Stamps:
        """Return the revision on the Hub, or look at all files of a folder; all rows share it."""
        if "://" in self.home:
            return _stamp_whole(self._key, self.length, self.revision)
        folder = LocalFolder(self.home)
        return _stamp_whole(self._key, self.length, join_stamps((name, folder.stamp(name)) for name, *_ in folder.find()))

    def fingerprint(self) -> str:
        """Hash what is known of the rows before they are read: the data set, their number and their columns."""
        facts = (self._key, self.length, self.columns, str(self.dataset.features))
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def _stamp_whole(name: str, length: int | None, stamp: str | None) -> Stamps:
    """Make the stamps of a data set that is known as a whole; one of unknown length counts as one position."""
    files = pa.array([printable_key(name)], pa.large_string())
    return Stamps(files, pa.array([stamp], pa.large_string()), np.zeros(1 if length is None else length, np.int64))


def open_saved(folder: str, images: str, image_column: str | None = None, label_column: str | None = None) -> SavedRows:
    """Open a folder that ``save_to_disk`` wrote of one split; ``images``: what the user named, for errors.

    Raises UsageError where it cannot be read, or has no such columns.
    """
    with _datasets_errors(images):
        from datasets import Image, load_from_disk

        _check_folder(folder)
        dataset = load_from_disk(folder)
    columns = choose_image_columns([dataset.features.arrow_schema], image_column, label_column, images)
    if not len(dataset):
        raise UsageError(f"images {images!r}: no rows in it")
    with _datasets_errors(images):
        home = os.path.realpath(folder)
        encoded = dataset.cast_column(columns.image, Image(decode=False))
        return SavedRows(os.path.basename(home), encoded, columns, LocalFolder(home).read)


def download_split(address: str, image_column: str | None = None, label_column: str | None = None) -> SavedRows:
    """Download the split ``hf:NAME:SPLIT`` and open it for reading at any position; errors as in :func:`stream_split`."""
    name, split = _parse_split(address)
    local = os.path.isdir(name)
    with _datasets_errors(address):
        from datasets import Image, config, load_dataset
        from huggingface_hub.constants import HF_HUB_CACHE

        if local:
            _check_folder(name)
        else:
            _find_revision(name)
        dataset = load_dataset(name, split=split)
        columns = choose_image_columns([dataset.features.arrow_schema], image_column, label_column, address)
        if not len(dataset):
            raise UsageError(f"images {address!r}: no rows in it")
        encoded = dataset.cast_column(columns.image, Image(decode=False))
    homes = (os.path.realpath(name),) if local else (HF_HUB_CACHE, str(config.HF_DATASETS_CACHE))
    return SavedRows(f"{name}:{split}", encoded, columns, partial(_read_from, homes))


def _parse_split(address: str) -> tuple[str, str]:
    """Return NAME and SPLIT of ``hf:NAME:SPLIT``. Raises UsageError for text of another form."""
    name, colon, split = address.removeprefix("hf:").rpartition(":")
    if not (name and colon and split):
        raise UsageError(f"images {address!r}: write hf:NAME:SPLIT, such as hf:cifar10:test")
    return name, split


def _read_from(homes: tuple[str, ...], path: str) -> bytes:
    """Read a file that must be in one of several folders."""
    return _read_inside(next((home for home in homes if path.startswith(home + os.sep)), homes[0]), path)


def stream_split(address: str, image_column: str | None = None, label_column: str | None = None) -> StreamedRows:
    """Open the split ``hf:NAME:SPLIT`` of a data set on the Hub, or of a folder that datasets reads, to be read as it arrives.

    Raises UsageError where it does not exist, cannot be reached, or has no such columns. No code of the data set is run.
    """
    name, split = _parse_split(address)
    local = os.path.isdir(name)
    with _datasets_errors(address):
        from datasets import Image, load_dataset

        if local:
            _check_folder(name)
        revision = None if local else _find_revision(name)
        dataset = load_dataset(name, split=split, streaming=True)
    if dataset.features is None:
        raise UsageError(f"images {address!r}: its columns are not described")
    columns = choose_image_columns([dataset.features.arrow_schema], image_column, label_column, address)
    home = os.path.realpath(name) if local else f"hf://datasets/{name}"
    encoded = dataset.cast_column(columns.image, Image(decode=False))
    return StreamedRows(name, split, encoded, columns, home, revision)


def _find_revision(name: str) -> str | None:
    """Ask the Hub once for a data set: datasets itself would try for half a minute before it gives up."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(name, timeout=_TIMEOUT)
    for file in _list_configured(info.card_data.to_dict() if info.card_data else {}):
        _check_name(file)
    return info.sha


def _check_folder(folder: str) -> None:
    """Raise ValueError where files of a data set lead out of its folder: datasets follows paths, links and addresses there.

    Images are left to those who read them: each is a row that cannot be read.
    """
    home = LocalFolder(os.path.realpath(folder))
    for name in _list_named(home):
        _check_name(name)
    for found in home.find():
        name = os.fsdecode(found.name.rstrip(b"/"))
        is_link = not is_image_name(found.name) and os.path.islink(os.path.join(home.root, name))
        if is_link and home.path(name) is None:
            raise ValueError(f"{name!r} is a symbolic link out of its folder")


def _check_name(name: str) -> None:
    if leaves_folder(name) or ":" in name:
        raise ValueError(f"it names the file {shorten_text(repr(name))}, which is not in its folder")


def _list_named(home: LocalFolder) -> Iterator[str]:
    """List the files and patterns that the descriptions in a data set's folder name."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if (state := _read_description(home, "state.json")) is not None:
        yield from (file["filename"] for file in parse_json(state)["_data_files"])
    header = REGEX_YAML_BLOCK.search(_read_description(home, "README.md") or "")
    for text in (header and header[2], _read_description(home, ".huggingface.yaml")):
        yield from _list_configured(yaml.load(text, PlainLoader) if text else {})


def _read_description(home: LocalFolder, name: str) -> str | None:
    if not os.path.lexists(os.path.join(home.root, name)):
        return None
    if (size := home.size(name)) > _MAX_DESCRIPTION:
        raise ValueError(f"{name} has {size:,} bytes: at most {_MAX_DESCRIPTION:,} are read")
    return home.read(name).decode()


def _list_configured(card: Any) -> Iterator[str]:
    """List the files, patterns and folders in the configurations of a data set's card."""
    for config in (card.get("configs") if isinstance(card, dict) else None) or []:
        yield from _list_texts([config.get("data_files"), config.get("data_dir")])


def _list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _list_texts(inner)


@contextmanager
def _datasets_errors(images: str) -> Iterator[None]:
    """Raise any error of the datasets library as UsageError."""
    try:
        yield
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"images {images!r} needs the package datasets: pip install datasets") from error
    except Exception as error:
        raise UsageError(f"images {images!r}: {describe_error(error)}") from error


def _read_inside(home: str, path: str) -> bytes:
    """Read the file that a row names, which must be in the folder ``home``, or a member of an archive there."""
    member, _, container = path.rpartition("::")
    if ".." in path.split("/") or not container.startswith((home + "/", home + "@")) or "::" in member:
        raise DecodeError("outside of the data set", "read")
    if "://" not in path:
        return LocalFolder(home).read(os.path.relpath(container, home))
    try:
        _, inner = file_system(path)
    except UsageError as error:
        raise DecodeError(str(error), "read") from error
    head, _, last = inner.rpartition("/")
    return RemoteFolder(path, head).read(last)
