"""A picture for each row of a store, in a folder that mirrors the images' own."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from densefeat.base import (
    atomic_file,
    has_kind,
    is_picture,
    output_errors,
    parse_json,
    progress_bar,
    refuse_links,
    refuse_stranger,
    save_png,
)
from densefeat.errors import DecodeError
from densefeat.store import Decodable, ImageEntry, Store, read_entries, read_pictures

_ROWS, _BYTES = 256, 2**26  # read at a time, at most
_RECORD = ".pictures.json"  # which store's rows the pictures show
_KIND = "densefeat pictures"
_UNSAFE = re.compile(r'[\x00-\x1f<>:"\\|?*\x7f]|^\.|[. ]$')  # in the name of a file or folder, on one system or another
_LONGEST = 200  # bytes of a name

View = Callable[[Decodable], Image.Image | None]
Draw = Callable[[Image.Image, dict[str, np.ndarray]], Image.Image]


def save_overlays(
    store: Store, images: str | Path, folder: Path, columns: Sequence[str], view: View, draw: Draw
) -> dict[str, str]:  # fmt: skip
    """Write a PNG for each row of a finished store; after an interruption the same call writes those that are missing.

    Args:
        images: Where the images are, as the store's job read them.
        folder: Made if it is not there; the pictures are named by :func:`name_files`.
        columns: Columns of the store that ``draw`` needs.
        view: Opens the image to draw on: :func:`densefeat.overlay.view_whole`, or what :func:`densefeat.overlay.view_input`
            returns.
        draw: Makes the picture from that image and the row's values by column: flat numpy arrays, as the store keeps them.

    Returns:
        The paths within ``folder`` of pictures that were not made, each with the reason: the image is gone or has changed.

    Raises:
        UsageError: A file that is no picture has a picture's name, or one of the folders is a link. OutputError: The disk is
            full, or the folder cannot be written.
    """
    if not len(store):
        return {}
    entries = list(read_entries(store).values())
    names = name_files(entries)
    _open_folder(folder, names, store.manifest.round_id if store.manifest else "")
    missing = [row for row, name in enumerate(names) if not (folder / name).exists()]
    failures: dict[str, str] = {}
    with progress_bar("drawing", len(missing)) as advance:
        step = max(1, min(_ROWS, _BYTES // (4 * max(1, sum(math.prod(store.shapes[name]) for name in columns)))))
        for _, group in groupby(missing, lambda row: row // step):
            rows = list(group)
            by_entry = {entries[row]: row for row in rows}
            values = {name: store.read(name, rows[0], rows[-1] + 1) for name in columns}
            for entry, image in read_pictures(store.provenance, by_entry, images, partial(_view_or_tell, view)):
                row = by_entry.pop(entry)
                if isinstance(image, Image.Image):
                    _save(draw(image, {name: array[row - rows[0]] for name, array in values.items()}), folder / names[row])
                else:
                    failures[names[row]] = image
                advance(1)
            failures |= {names[row]: "the image is not there any more" for row in by_entry.values()}
    return failures


def _view_or_tell(view: View, item: Decodable) -> Image.Image | str:
    try:
        return view(item) or "the tile has no content"
    except DecodeError as error:
        return str(error)


def _save(picture: Image.Image, path: Path) -> None:
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, path)


def _open_folder(folder: Path, names: Sequence[str], identity: str) -> None:
    """Refuse strangers and links; remove the pictures of another store's rows, and record whose are made now."""
    folders = {parent for name in names for parent in (folder / name).parents if parent.is_relative_to(folder)}
    refuse_links(sorted(folders))
    record = folder / _RECORD
    for path in (folder / name for name in names):
        refuse_stranger(path, is_picture)
    refuse_stranger(record, has_kind(_KIND))
    if record.is_file() and parse_json(record.read_bytes()).get("rows_of") == identity:
        return
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).unlink(missing_ok=True)
    with atomic_file(record, has_kind(_KIND)) as beside:
        beside.write_text(json.dumps({"kind": _KIND, "rows_of": identity}) + "\n", encoding="utf-8")


def find_stranger(folder: Path) -> Path | None:
    """Find what :func:`save_overlays` did not write in the place of its folder: a file there, or within a folder not its own.

    None: there is no folder yet, it holds no file, or it is known by its record.
    """
    if not folder.exists() or has_kind(_KIND)(folder / _RECORD):
        return None
    if not folder.is_dir():
        return folder
    return next((path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()), None)


def name_files(entries: Sequence[ImageEntry]) -> list[str]:
    """Choose a relative path for the PNG of each entry: ``a/b.png`` for ``a/b.jpg``, ``a/b_512,0.png`` for a tile of it.

    Whatever the keys are, the paths stay within their folder and differ from each other, even where upper and lower case count
    as the same. Where two entries would have one path, or a key cannot be a file's path, the row's number is put in front.
    """
    names = [_name_file(entry) for entry in entries]
    taken = Counter(name.casefold() for name in names)
    names = [_number(row, name) if taken[name.casefold()] > 1 or not name else name for row, name in enumerate(names)]
    if len({name.casefold() for name in names}) < len(names):  # keys that look like the names made here
        return [f"{row}.png" for row in range(len(names))]
    return names


def _number(row: int, name: str) -> str:
    """Put the row in front of a file's name."""
    path = PurePosixPath(name)
    return str(path.with_name(f"{row}_{path.name}")) if name else f"{row}.png"


def _name_file(entry: ImageEntry) -> str:
    page = "" if entry.page is None else f"_p{entry.page}"
    place = "" if entry.x is None else f"_{entry.x},{entry.y}"
    parts = [part for part in entry.path.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        return ""
    stem = PurePosixPath(parts[-1]).stem
    safe = [_UNSAFE.sub("_", part.encode("utf-8", "replace").decode()) for part in (*parts[:-1], stem + page + place)]
    return "" if any(len(part.encode()) > _LONGEST for part in safe) else "/".join(safe) + ".png"
