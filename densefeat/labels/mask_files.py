"""Masks: PNG files with the class number of each pixel, and the image that each belongs to."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from densefeat.base import describe_error, shorten_text
from densefeat.errors import DecodeError, UsageError
from densefeat.images import MAX_PIXELS, is_hidden

_MODES = ("1", "L", "P", "I", "I;16")
_ENDING = "_mask"  # that masks' names may have behind those of their images


@dataclass(frozen=True)
class MaskFiles:
    """Mask files by the keys of their images. ``whole``: every image has a mask.

    ``notes``: sentences on images without a mask and masks without an image.
    """

    by_key: dict[str, Path]
    whole: bool
    notes: list[str] = field(default_factory=list)


def find_masks(keys: Sequence[str], folder: Path) -> MaskFiles:
    """Find the mask of each image: the PNG of the same relative path but for the suffix, or with ``_mask`` behind its name.

    Where no path fits and the masks are in no sub-folders, the name alone counts.

    Raises UsageError if no image has a mask, or if two images or two masks have one name but for the suffix.
    """
    if not folder.is_dir():
        raise UsageError(f"masks {str(folder)!r}: no such folder")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".png" and path.is_file()]
    files = [path for path in files if not any(map(is_hidden, path.relative_to(folder).parts))]
    by_path = {path.relative_to(folder).as_posix(): path for path in files}
    images, masks = _group_by_image(keys, by_path, whole=True)
    if not masks.keys() & images.keys() and not any("/" in path for path in by_path):
        images, masks = _group_by_image(keys, by_path, whole=False)
    common = masks.keys() & images.keys()
    if not common:
        first = [next(iter(names), "none") for names in (keys, by_path)]
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


def _group_by_image(
    keys: Sequence[str], masks: Mapping[str, Path], whole: bool
) -> tuple[dict[str, list[str]], dict[str, list[Path]]]:
    """Group images, and masks by relative path, by the image's path without its suffix, or by its name without it alone."""
    image_groups: dict[str, list[str]] = {}
    for key in keys:
        image_groups.setdefault(_drop_suffix(key, whole), []).append(key)
    mask_groups: dict[str, list[Path]] = {}
    for text, path in masks.items():
        name = _drop_suffix(text, whole)
        mask_groups.setdefault(name if name in image_groups else name.removesuffix(_ENDING), []).append(path)
    return image_groups, mask_groups


def _drop_suffix(text: str, whole: bool) -> str:
    path = PurePosixPath(text)
    return str(path.with_suffix("")) if whole and path.name else path.stem


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask's class numbers, uint8 or int32 ``(H, W)``, from a PNG in grey of at most 16 bits, or with a palette.

    ``size``: width and height of its image. Raises DecodeError for a damaged file or too many pixels, UsageError for a mask in
    colours or of another size.
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
