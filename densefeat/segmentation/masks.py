"""Masks: PNG files of class numbers, the names of these classes, and which image each mask is of."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from densefeat.base import describe_error, parse_json, shorten_text
from densefeat.errors import DecodeError, UsageError
from densefeat.images import MAX_PIXELS, is_hidden

IGNORED = 255  # in encoded masks, in place of a class
MAX_CLASSES = 255
_MODES = ("1", "L", "P", "I", "I;16")
_LARGEST = 2**16 - 1  # number of a class
_MAX_NAMES = 2**20  # bytes of a file of names
_SHOWN = 3  # names in messages


@dataclass(frozen=True)
class ClassTable:
    """The K classes of masks. ``values``: their numbers in masks, ascending; ``ignored``: the number of pixels to leave out."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    ignored: int | None = None

    def encode(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Turn a mask's numbers into positions in the table, uint8 of the same shape, with IGNORED for pixels to leave out.

        Raises UsageError, with the file, for a number that is no class.
        """
        codes = np.full(_LARGEST + 2, -1, np.int16)
        codes[list(self.values)] = np.arange(len(self.values))
        if self.ignored is not None:
            codes[self.ignored] = IGNORED
        encoded = codes[np.clip(values, -1, _LARGEST)]
        if (encoded < 0).any():
            self._refuse(values[encoded < 0], path)
        return encoded.astype(np.uint8)

    def _refuse(self, values: np.ndarray, path: Path) -> None:
        numbers, counts = np.unique(values, return_counts=True)
        known = [f"{value} {name}" for value, name in zip(self.values[:_SHOWN], self.names[:_SHOWN], strict=True)]
        raise UsageError(
            f"mask {str(path)!r} has the number {numbers[0]} ({counts[0]:,} pixels), which is none of the"
            f" {len(self.values)} classes ({', '.join(known)}{', …' if len(self.values) > _SHOWN else ''}): name it in"
            f" --classes, or leave such pixels out by --ignore {numbers[0]}"
        )


@dataclass(frozen=True)
class MaskFiles:
    """Masks by the keys of their images, and what people should know about those that have no partner.

    ``whole``: every image has a mask.
    """

    by_key: dict[str, Path]
    whole: bool
    notes: list[str] = field(default_factory=list)


def read_names(path: Path) -> dict[int, str]:
    """Read the names of classes by their numbers: a line each from 0, a JSON list, or a JSON object ``{"0": "name"}``.

    Raises UsageError for anything else, for a name that is empty or repeated, and for numbers that no mask can have.
    """
    try:
        if path.stat().st_size > _MAX_NAMES:
            raise UsageError(f"class names {str(path)!r}: {path.stat().st_size:,} bytes are no list of names")
        text = path.read_text(encoding="utf-8-sig")
        content = parse_json(text) if path.suffix.lower() == ".json" else text.rstrip().splitlines()
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        names = {int(number): name.strip() for number, name in pairs}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"class names {str(path)!r} cannot be read ({describe_error(error)}): give a name a line, a JSON list of names, or"
            ' a JSON object {"0": "name", …}'
        ) from error
    if "" in names.values() or len(set(names.values())) < len(names):
        (name, _), *_ = Counter(sorted(names.values(), key=bool)).most_common() if "" not in names.values() else [("", 0)]
        raise UsageError(f"class names {str(path)!r}: {name!r} is empty or names several classes")
    if not all(0 <= number <= _LARGEST for number in names):
        raise UsageError(f"class names {str(path)!r}: numbers must be 0 to {_LARGEST}")
    return dict(sorted(names.items()))


def make_table(names: Mapping[int, str] | None, found: Sequence[int], ignored: int | None) -> tuple[ClassTable, list[str]]:
    """Make the table of classes, and notes. ``names``: as given, or None; ``found``: the numbers that occur in masks.

    Raises UsageError for fewer than two classes, or more than 255.
    """
    notes = []
    if names is None:
        names = {number: str(number) for number in found}
        if 255 in names and ignored is None and len(names) > 2:
            notes.append("255 counts as a class, as masks have it: --ignore 255 leaves such pixels out")
    names = {number: name for number, name in names.items() if number != ignored}
    if not 2 <= len(names) <= MAX_CLASSES:
        problem = f"{len(names)} classes ({shorten_text(', '.join(names.values()))})"
        raise UsageError(f"{problem} to tell apart: masks need 2 to {MAX_CLASSES}")
    return ClassTable(tuple(names), tuple(names.values()), ignored), notes


def find_masks(keys: Sequence[str], folder: Path) -> MaskFiles:
    """Find the mask of each image: the PNG of the same relative path, or else of the same name, whatever its suffix.

    Raises UsageError if there is none, or if two images have the same name but for their suffix.
    """
    if not folder.is_dir():
        raise UsageError(f"masks {str(folder)!r}: no such folder")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".png" and path.is_file()]
    files = [path for path in files if not any(map(is_hidden, path.relative_to(folder).parts))]
    masks = _index({path.relative_to(folder).as_posix(): path for path in files}, whole=True)
    images = _index({key: key for key in keys}, whole=True)
    if not masks.keys() & images.keys():
        masks = _index({path.relative_to(folder).as_posix(): path for path in files}, whole=False)
        images = _index({key: key for key in keys}, whole=False)
    common = masks.keys() & images.keys()
    if not common:
        first = [next(iter(names), "none") for names in (keys, [path.relative_to(folder).as_posix() for path in files])]
        raise UsageError(
            f"no image has a mask of its name in {str(folder)!r}: the first image is {shorten_text(first[0])!r}, the first PNG"
            f" {shorten_text(first[1])!r}; a mask has its image's path and name, and ends in .png"
        )
    for stem in common:
        for what, group in (("images", images[stem]), ("masks", masks[stem])):
            if len(group) > 1:
                raise UsageError(f"{what} {str(group[0])!r} and {str(group[1])!r} have one name: rename one of them")
    lone = [group[0] for stem, group in sorted(images.items()) if stem not in common]
    spare = [group[0] for stem, group in sorted(masks.items()) if stem not in common]
    notes = [f"{len(lone):,} of {len(keys):,} images have no mask and are left out, {lone[0]!r} first"] if lone else []
    notes += [f"{len(spare):,} masks have no image, {str(spare[0])!r} first"] if spare else []
    by_key = {images[stem][0]: masks[stem][0] for stem in common}
    return MaskFiles({key: by_key[key] for key in keys if key in by_key}, not lone, notes)


def _index(paths: Mapping[str, str | Path], whole: bool) -> dict[str, list]:
    """Group things by their path without its suffix, or by their name without it alone."""
    groups: dict[str, list] = {}
    for text, thing in paths.items():
        path = PurePosixPath(text)
        groups.setdefault(str(path.with_suffix("")) if whole and path.name else path.stem, []).append(thing)
    return groups


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask's numbers, uint8 or int32 ``(H, W)``: a PNG in grey, of at most 16 bits, or with a palette.

    ``size``: width and height of the image. Raises DecodeError for a damaged file, UsageError for a mask in colours or of
    another size.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=("PNG",)) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.mode not in _MODES:
                raise UsageError(
                    f"mask {str(path)!r} is a picture in colours ({image.mode}): save the number of each pixel's class, as"
                    " grey or with a palette"
                )
            if size is not None and image.size != size:
                raise UsageError(
                    f"mask {str(path)!r} has {image.width}×{image.height} pixels, its image {size[0]}×{size[1]} (upright): they"
                    " must be of one size"
                )
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError(f"{image.width}×{image.height} pixels are too many")
            values = np.asarray(image)
    except (DecodeError, UsageError):
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise DecodeError(f"{type(error).__name__}: {describe_error(error)}") from error
    return values.astype(np.uint8) if values.dtype == bool else values if values.dtype == np.uint8 else values.astype(np.int32)
