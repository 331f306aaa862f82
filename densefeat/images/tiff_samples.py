"""What the samples of a TIFF's page mean, by its tags (TIFF 6.0)."""

from math import isfinite
from typing import Any

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.gdal_metadata import is_other_band, read_band_names
from densefeat.images.icc import MAX_PROFILE_BYTES
from densefeat.images.samples import COLOURS, Samples

JPEG, APERIO_YCBCR, JPEG_2000 = 7, 33003, (33003, 33005, 34712)  # compressions
_COLOURS = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "ycbcr"}  # by photometric interpretation
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4  # sample formats
_PREMULTIPLIED, _TRANSPARENCY = 1, 2  # meanings of an extra sample
_MAX_SAMPLE_VALUE, _S_MIN_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE, _GDAL_NODATA = 281, 340, 341, 42113  # tags
_ICC_PROFILE = 34675
_INK_SET, _COEFFICIENTS, _REFERENCE = 332, 529, 532


def read_samples(page: Any) -> Samples:
    """Read the meaning of samples. Raises DecodeError where there is none that all readers agree on."""
    bits, form = page.bitspersample, page.sampleformat
    if not isinstance(bits, int):
        raise DecodeError(f"samples of {', '.join(map(str, bits))} bits: convert to 8 bits each")
    if form not in (_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED) or page.dtype is None:
        raise DecodeError(
            f"samples of {bits} bits and format {getattr(form, 'name', form)}: write real numbers, not complex ones"
        )
    colours = _read_colours(page)
    extra = tuple(int(meaning) for meaning in page.extrasamples)
    count = page.samplesperpixel - COLOURS[colours]
    if count < 0:
        raise DecodeError(f"{page.samplesperpixel} samples a pixel where {COLOURS[colours]} are needed")
    alpha = next((i for i in range(min(count, len(extra))) if extra[i] in (_PREMULTIPLIED, _TRANSPARENCY)), None)
    if alpha is not None and is_other_band(page, COLOURS[colours] + alpha):
        alpha = None
    if colours == "grey" and count > (alpha is not None):
        colours, alpha = "bands", None
    whole = form in (_UNSIGNED, _UNDEFINED) and bits <= 16
    if colours in ("palette", "ycbcr", "cmyk") and not whole:
        raise DecodeError(f"{colours} of {bits} bits that are not whole numbers from 0: convert to RGB")
    codec = page.compression == JPEG or page.compression in JPEG_2000
    if codec and (count or (page.compression == JPEG and bits != 8)):
        raise DecodeError(f"{page.samplesperpixel} samples of {bits} bits in JPEG: convert to RGB of 8 bits")
    return Samples(
        colours,
        bits if whole else 0,
        inverted=page.photometric == _WHITE_IS_ZERO,
        alpha=None if alpha is None else COLOURS[colours] + alpha,
        premultiplied=alpha is not None and extra[alpha] == _PREMULTIPLIED,
        palette=_read_palette(page, bits) if colours == "palette" else None,
        declared=_read_declared(page, whole),
        names=read_band_names(page),
        nodata=_read_nodata(page),
        icc=_read_profile(page),
    )


def _read_colours(page: Any) -> str:
    """Return what the samples are, once they are decoded: a key of ``COLOURS``."""
    if page.compression == APERIO_YCBCR:
        return "ycbcr"  # whatever the tag says
    colours = _COLOURS.get(int(page.photometric), "")
    if not colours or (colours == "cmyk" and page.tags.valueof(_INK_SET, 1) != 1):
        name = getattr(page.photometric, "name", page.photometric)
        raise DecodeError(f"TIFF with colours {name}: convert to RGB")
    if colours != "ycbcr":
        return colours
    if page.compression == JPEG and page.planarconfig == 1:
        return "rgb"  # libjpeg converts it
    if page.planarconfig != 1 or page.bitspersample != 8 or page.compression in JPEG_2000 or not _is_plain_ycbcr(page):
        raise DecodeError("TIFF with an unusual kind of YCbCr: convert to RGB")
    return colours


def _is_plain_ycbcr(page: Any) -> bool:
    """Check that YCbCr is that of JPEG files, which is also TIFF's default."""
    coefficients, reference = page.tags.valueof(_COEFFICIENTS), page.tags.valueof(_REFERENCE)
    usual = (299, 1000, 587, 1000, 114, 1000)
    full_range = (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)
    return (coefficients is None or _is_equal(coefficients, usual)) and (reference is None or _is_equal(reference, full_range))


def _is_equal(fractions: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Compare two lists of numerators and denominators."""
    pairs = zip(fractions[::2], fractions[1::2], others[::2], others[1::2], strict=False)
    return len(fractions) == len(others) and all(abs(a * d - c * b) <= abs(b * d) / 1000 for a, b, c, d in pairs)


def _read_declared(page: Any, whole: bool) -> tuple[float, float] | None:
    """Return black and white where tags declare them.

    The largest value of unsigned samples is often only the largest that occurs, which says nothing; one in which all bits are
    set does. The range of other samples is taken as it stands.
    """
    largest = _read_single(page, _MAX_SAMPLE_VALUE)
    if whole:
        if isinstance(largest, int) and 2**8 <= largest + 1 < 2**page.bitspersample and (largest + 1).bit_count() == 1:
            return 0, largest
        return None
    low, high = _read_single(page, _S_MIN_SAMPLE_VALUE), _read_single(page, _S_MAX_SAMPLE_VALUE)
    if isinstance(low, int | float) and isinstance(high, int | float) and isfinite(low) and isfinite(high) and low < high:
        return low, high
    return None


def _read_single(page: Any, tag: int) -> Any:
    """Return the value that a tag has for all samples; None where there is none, or they differ."""
    values = page.tags.valueof(tag)
    distinct = set(values) if isinstance(values, tuple) else {values}
    return distinct.pop() if len(distinct) == 1 else None


def _read_nodata(page: Any) -> float | None:
    """Return GDAL's value for missing pixels; None where there is none that is a number."""
    try:
        return float(str(page.tags.valueof(_GDAL_NODATA, "")).strip().rstrip("\0"))
    except ValueError:
        return None


def _read_profile(page: Any) -> bytes | None:
    """Return the colour profile, None where there is none; empty where its tag holds something else."""
    profile = page.tags.valueof(_ICC_PROFILE)
    return profile if profile is None or (isinstance(profile, bytes) and len(profile) <= MAX_PROFILE_BYTES) else b""


def _read_palette(page: Any, bits: int) -> np.ndarray:
    """Return the palette, uint8 ``(2**bits, 3)``; one without a value above 255 is taken to have 8 bits, as libtiff does."""
    if bits > 8 or page.colormap is None or np.size(page.colormap) != 3 * 2**bits:
        raise DecodeError(f"a palette of {np.size(page.colormap)} values for {bits} bits: convert to RGB")
    colours = np.asarray(page.colormap).reshape(3, -1).T
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
