"""Open whatever the user names as one ordered source of images."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from densefeat.base import parse_json
from densefeat.errors import UsageError
from densefeat.images.addresses import Address, is_remote, parse_address
from densefeat.images.csv_files import DELIMITERS
from densefeat.images.files import EXTENSIONS, TEXTS, is_image_name, open_folder, open_list
from densefeat.images.folders import LocalFolder, is_hidden
from densefeat.images.hub import download_split, open_saved, stream_split
from densefeat.images.remarks import warn_of_missing_labels
from densefeat.images.rows import check_column, is_text, list_image_columns
from densefeat.images.split_folders import find_splits, list_inner_folders, may_be_splits
from densefeat.images.stream import Listing, RandomAccess
from densefeat.images.tables import open_tables, read_footer
from densefeat.images.tars import open_tars

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
TAR_LABEL = "cls"  # the extension of the members that hold labels, as WebDataset has it
_KINDS = "a folder, a list (.txt, .lst, .csv, .tsv, .parquet), Parquet files, tar files, or hf:NAME:SPLIT"


@dataclass(frozen=True)
class Options:
    """The options of :func:`open_source`; ``training``: labels are found by default, and images can be read in any order."""

    labels: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    base: str | Path | None = None
    follow_links: bool = False
    training: bool = False

    def allow(self, images: str, kind: str, *names: str) -> None:
        """Raise UsageError for an option other than ``names``, which has no meaning for this kind of input."""
        for name, value in vars(self).items():
            if value and name not in (*names, "training"):
                raise UsageError(f"images {images!r}: {name} {str(value)!r} is not for {kind}")

    def choose_label_column(self, default: str = "label") -> str | None:
        return self.label_column or (default if self.training else None)


def open_source(
    images: str | Path,
    labels: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    base: str | Path | None = None,
    follow_links: bool = False,
) -> Listing:
    """Open any input as one ordered source of images.

    Args:
        images: A folder; a list of paths (.txt, .lst, .csv, .tsv, .parquet); Parquet files with images in them; a folder that
            datasets' ``save_to_disk`` wrote; tar files in WebDataset's layout; or ``hf:NAME:SPLIT``. Parquet and tar files may
            be named by a glob, which passes over hidden ones, or by braces, ``{000..099}``. All but the saved folder may be
            addresses that fsspec opens.
        labels: ``"folder"``: the label is the first folder of each key, or the second where the first are splits such as
            ``train`` and ``val``. For a folder.
        label_column: The column with labels; for tar files the extension of the members that hold them.
        image_column: The column with images, or with the paths of a list (``path`` by default).
        base: The folder that a list's paths are relative to, by default the list's folder.
        follow_links: Follow symbolic links, also out of the folder. For a folder or a list.

    Raises UsageError where the input is missing or of no known kind, where an option has no meaning for it, or where it holds
    no image. An image that cannot be read is an item that raises DecodeError when it is read.
    """
    if labels not in (None, "folder"):
        raise UsageError(f"labels {labels!r}: only 'folder' is known, the first folder of each key")
    return _open(os.fspath(images), Options(labels, label_column, image_column, base, follow_links))


def open_for_training(
    images: str | Path, label_column: str | None = None, base: str | Path | None = None
) -> RandomAccess:  # fmt: skip
    """Open any input with its labels, for reading in any order.

    Without ``label_column`` labels are those of ``labels="folder"``, the column ``label``, or a tar's members with the
    extension ``cls``. A split on the Hub is downloaded. Raises UsageError as :func:`open_source` does.
    """
    source = _open(os.fspath(images), Options(label_column=label_column, base=base, training=True))
    assert isinstance(source, RandomAccess)
    return source


def is_image_folder(images: str | Path) -> bool:
    """Check whether an input is read as a folder of image files, here or at an address. UsageError for an unknown address."""
    text = os.fspath(images)
    if not text or _names_split(text):
        return False
    address = parse_address(text)
    return address.is_folder() and not (address.local and _is_saved(address))


def list_splits(images: str | Path) -> dict[str, str]:
    """Find the splits in a folder of images: the path of each one's folder. None where the folders are classes, or no folder.

    On this machine a split may be a link. Raises UsageError where the folders may be either, see
    :func:`densefeat.images.split_folders.find_splits`.
    """
    text = os.fspath(images)
    if not text or _names_split(text):
        return {}
    address = parse_address(text)
    if not address.is_folder():
        return {}
    names = [name for name in address.list_names() if not is_hidden(name)]
    if not may_be_splits(names):
        return {}
    folders = list_inner_folders(key for key in _list_keys(address, names) if is_image_name(key))
    return {split: f"{text.rstrip('/')}/{name}" for split, name in find_splits(folders, text).items()}


def _list_keys(address: Address, names: list[str]) -> Iterator[bytes]:
    """List the files below a folder that are not hidden, on this machine also those in its linked folders."""
    if not address.local:
        yield from (found.name for found in address.folder(listed=True).find() if not found.hidden)
        return
    for name in names:
        place = os.path.join(address.path, name)
        if os.path.isdir(place):
            folder = LocalFolder(os.path.realpath(place))
            yield from (os.fsencode(f"{name}/") + found.name for found in folder.find() if not found.hidden)


def _open(text: str, options: Options) -> Listing:
    _check_not_empty(text)
    if _names_split(text):
        options.allow(text, "a data set", "label_column", "image_column")
        open_split = download_split if options.training else stream_split
        return open_split(text, options.image_column, options.choose_label_column())
    address = parse_address(text)
    return _open_folder_input(address, options) if address.is_folder() else _open_files_input(address, options)


def check_input(images: str | Path) -> None:
    """Raise the UsageError of :func:`open_source` at once where a local input does not exist or its kind is not known.

    This is cheap: nothing is listed or read. Inputs on a network are left to :func:`open_source`.
    """
    text = os.fspath(images)
    _check_not_empty(text)
    if is_remote(text):
        return
    address = parse_address(text)
    if address.is_folder():
        return
    _check_kind(address)
    if not _is_text_list(address):
        address.files()
    elif not address.exists():
        raise UsageError(f"images {text!r}: no such file")


def _check_not_empty(text: str) -> None:
    if not text:
        raise UsageError("images '': the name of the input is empty")


def _names_split(text: str) -> bool:
    return text.startswith("hf:") and not text.startswith("hf://")


def _is_text_list(address: Address) -> bool:
    return address.name.lower().endswith((*TEXTS, *DELIMITERS))


def _check_kind(address: Address) -> None:
    name = address.name.lower()
    if name.endswith(_COMPRESSED):
        raise UsageError(f"images {address.text!r}: a compressed tar file has no places to read at: gunzip it")
    if _is_text_list(address) or name.endswith((".parquet", ".tar")):
        return
    folder = address.suggest_folder()
    if folder is not None and (name.endswith(EXTENSIONS) or "*" in name):
        problem = f"globs are for Parquet and tar files: give the folder {folder!r}, or a list of paths (.txt)"
    elif not address.exists():
        problem = f"no such folder or file; give {_KINDS}"
    elif name.endswith(EXTENSIONS):
        problem = "one image: give the folder that it lies in, or a list of paths (.txt)"
    else:
        problem = f"neither {_KINDS}"
    raise UsageError(f"images {address.text!r}: {problem}")


def _open_folder_input(address: Address, options: Options) -> Listing:
    if address.local and address.has("dataset_dict.json"):
        raise UsageError(f"images {address.text!r}: more than one split was saved here: name one, {_list_splits(address)}")
    if address.local and _is_saved(address):
        options.allow(address.text, "a saved data set", "label_column", "image_column")
        return open_saved(address.path, address.text, options.image_column, options.choose_label_column())
    options.allow(address.text, "a folder of images", "labels", "follow_links")
    folder = address.folder(follow_links=options.follow_links, listed=True)
    if isinstance(folder, LocalFolder) and not os.access(folder.root, os.R_OK | os.X_OK):
        raise UsageError(f"images {address.text!r}: no permission to read this folder")
    files = open_folder(folder, address.text, "folder" if options.training else options.labels)
    if options.labels:
        warn_of_missing_labels(address.text, files, "the first folder of its path, class/image.jpg")
    return files


def _is_saved(address: Address) -> bool:
    """Check for a folder that datasets' ``save_to_disk`` wrote."""
    return address.has("state.json") and address.has("dataset_info.json")


def _list_splits(address: Address) -> str:
    """List the folders of a saved DatasetDict, each of which can be opened."""
    try:
        splits = parse_json(Path(address.path, "dataset_dict.json").read_text())["splits"]
        return ", ".join(os.path.join(address.text, str(split)) for split in splits)
    except (OSError, ValueError, KeyError, TypeError):
        return "a folder in it"


def _open_files_input(address: Address, options: Options) -> Listing:
    _check_kind(address)
    if _is_text_list(address):
        return _open_list_input(address, options)
    paths = address.files()
    root = address.fixed_folder()
    names = [path[len(root) + 1 :] for path in paths]
    if address.name.lower().endswith(".tar"):
        options.allow(address.text, "tar files", "label_column")
        tars = open_tars(address.folder(root, follow_links=True), names, address.text, options.choose_label_column(TAR_LABEL))
        if options.label_column and not options.training:  # training leaves such images out, and says so itself
            meaning = f"a member named like its image, with the extension {options.label_column!r}"
            warn_of_missing_labels(address.text, tars, meaning)
        return tars
    if len(paths) == 1 and _is_list(address, options.image_column):
        return _open_list_input(address, options)
    options.allow(address.text, "Parquet files with images", "label_column", "image_column")
    folder = address.folder(root, follow_links=True)
    return open_tables(folder, names, address.text, options.image_column, options.choose_label_column())


def _is_list(address: Address, image_column: str | None) -> bool:
    """Check whether a Parquet file holds paths rather than images; of one that cannot be read, open_tables says why."""
    _, schema = read_footer(address.parent().folder(follow_links=True), address.name)
    if schema is None:
        return False
    check_column(schema, image_column, f"images {address.text!r}")
    return not list_image_columns(schema) if image_column is None else is_text(schema.field(image_column).type)


def _open_list_input(address: Address, options: Options) -> Listing:
    options.allow(address.text, "a list", "label_column", "image_column", "base", "follow_links")
    if not address.exists():
        raise UsageError(f"images {address.text!r}: no such file")
    parent = address.parent().folder(follow_links=True)
    base = address.parent() if options.base is None else parse_address(options.base)
    if base.local and not os.path.isdir(base.path or "/"):
        raise UsageError(f"base {str(options.base)!r}: no such folder")
    folder = base.folder(follow_links=options.follow_links)
    has_columns = not address.name.lower().endswith(TEXTS)
    label_column = options.choose_label_column() if has_columns else options.label_column
    return open_list(parent, address.name, address.text, folder, base.spellings(), options.image_column, label_column)
