"""Where images come from: whatever the user names, opened as one ordered source."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from densefeat.errors import UsageError
from densefeat.images.addresses import Address, address_of
from densefeat.images.columns import check_column, image_columns, is_text
from densefeat.images.files import LocalFolder
from densefeat.images.folders import open_folder
from densefeat.images.hub import open_hub, open_saved
from densefeat.images.lists import DELIMITERS, TEXTS, open_list
from densefeat.images.stream import Source
from densefeat.images.tables import open_tables, read_footer
from densefeat.images.tars import open_tars

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_KINDS = "a folder, a list (.txt, .lst, .csv, .tsv, .parquet), Parquet files, tar files, or hf:NAME:SPLIT"


@dataclass(frozen=True)
class Options:
    """What :func:`open_source` was given besides the input."""

    labels: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    base: str | Path | None = None
    follow_links: bool = False

    def only(self, images: str, kind: str, *allowed: str) -> None:
        """UsageError for an option that does nothing for this kind of input."""
        for name, value in vars(self).items():
            if value and name not in allowed:
                raise UsageError(f"images {images!r}: {name} {str(value)!r} is not for {kind}")


def open_source(
    images: str | Path,
    labels: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    base: str | Path | None = None,
    follow_links: bool = False,
) -> Source:
    """Any input as one ordered source of images.

    Args:
        images: A folder; a list of paths (.txt, .lst, .csv, .tsv, .parquet); Parquet files with images in them; a folder that
            datasets' ``save_to_disk`` wrote; tar files in WebDataset's layout; or ``hf:NAME:SPLIT``. Parquet and tar files may
            be named by a glob or by braces, ``{000..099}``. All but the saved folder may be addresses that fsspec opens.
        labels: ``"folder"``: the label is the first folder of each key. For a folder.
        label_column: The column with labels; for tar files the extension of the members that hold them.
        image_column: The column with images, or with the paths of a list (``path`` by default).
        base: The folder that a list's paths are relative to, by default its own.
        follow_links: Follow symbolic links, also out of the folder. For a folder or a list.

    Raises UsageError where the input is missing or of no known kind, where an option does not belong to it, or where it holds
    no image. An image that cannot be read is an item that fails.
    """
    options = Options(labels, label_column, image_column, base, follow_links)
    if labels not in (None, "folder"):
        raise UsageError(f"labels {labels!r}: only 'folder' is known, the first folder of each key")
    text = os.fspath(images)
    _check_not_empty(text)
    if _names_hub(text):
        options.only(text, "a data set", "label_column", "image_column")
        return open_hub(text, image_column, label_column)
    address = address_of(text)
    if address.is_folder():
        return _source_of_folder(address, options)
    return _source_of_files(address, options)


def check_input(images: str | Path) -> None:
    """Raise the UsageError of :func:`open_source` at once where a local input does not exist or its kind is not known.

    Cheap: nothing is listed or read. Inputs elsewhere are left to :func:`open_source`.
    """
    text = os.fspath(images)
    _check_not_empty(text)
    if _names_hub(text) or "://" in text:
        return
    address = address_of(text)
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


def _names_hub(text: str) -> bool:
    return text.startswith("hf:") and not text.startswith("hf://")


def _is_text_list(address: Address) -> bool:
    return address.name.lower().endswith((*TEXTS, *DELIMITERS))


def _check_kind(address: Address) -> None:
    name = address.name.lower()
    if name.endswith(_COMPRESSED):
        raise UsageError(f"images {address.text!r}: a compressed tar file has no places to read at: gunzip it")
    if not _is_text_list(address) and not name.endswith((".parquet", ".tar")):
        what = f"neither {_KINDS}" if address.exists() else f"no such folder or file; give {_KINDS}"
        raise UsageError(f"images {address.text!r}: {what}")


def _source_of_folder(address: Address, options: Options) -> Source:
    if address.local and address.has("dataset_dict.json"):
        raise UsageError(f"images {address.text!r}: more than one split was saved here: name one, {_splits_of(address)}")
    if address.local and address.has("state.json") and address.has("dataset_info.json"):
        options.only(address.text, "a saved data set", "label_column", "image_column")
        return open_saved(address.path, address.text, options.image_column, options.label_column)
    options.only(address.text, "a folder of images", "labels", "follow_links")
    folder = address.folder(follow_links=options.follow_links, listed=True)
    if isinstance(folder, LocalFolder) and not os.access(folder.root, os.R_OK | os.X_OK):
        raise UsageError(f"images {address.text!r}: no permission to read this folder")
    return open_folder(folder, address.text, options.labels)


def _splits_of(address: Address) -> str:
    """The folders of a saved DatasetDict, as what to write instead."""
    try:
        splits = json.loads(Path(address.path, "dataset_dict.json").read_text())["splits"]
        return ", ".join(os.path.join(address.text, str(split)) for split in splits)
    except (OSError, ValueError, KeyError, TypeError):
        return "a folder in it"


def _source_of_files(address: Address, options: Options) -> Source:
    _check_kind(address)
    if _is_text_list(address):
        return _source_of_list(address, options)
    name = address.name.lower()
    paths = address.files()
    root = address.fixed_folder()
    names = [path[len(root) + 1 :] for path in paths]
    if name.endswith(".tar"):
        options.only(address.text, "tar files", "label_column")
        return open_tars(address.folder(root, follow_links=True), names, address.text, options.label_column)
    if len(paths) == 1 and _is_list(address, options.image_column):
        return _source_of_list(address, options)
    options.only(address.text, "Parquet files with images", "label_column", "image_column")
    folder = address.folder(root, follow_links=True)
    return open_tables(folder, names, address.text, options.image_column, options.label_column)


def _is_list(address: Address, image_column: str | None) -> bool:
    """Whether a Parquet file holds paths rather than images; of one that cannot be read, open_tables says why."""
    _, schema = read_footer(address.above().folder(follow_links=True), address.name)
    if schema is None:
        return False
    check_column(schema, image_column, address.text)
    return not image_columns(schema) if image_column is None else is_text(schema.field(image_column).type)


def _source_of_list(address: Address, options: Options) -> Source:
    options.only(address.text, "a list", "label_column", "image_column", "base", "follow_links")
    if not address.exists():
        raise UsageError(f"images {address.text!r}: no such file")
    home = address.above().folder(follow_links=True)
    base = address.above() if options.base is None else address_of(options.base)
    if base.local and not os.path.isdir(base.path or "/"):
        raise UsageError(f"base {str(options.base)!r}: no such folder")
    folder = base.folder(follow_links=options.follow_links)
    columns = options.image_column, options.label_column
    return open_list(home, address.name, address.text, folder, base.spellings(), *columns)
