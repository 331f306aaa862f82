"""What the samples of a TIFF's page mean, by its tags (TIFF 6.0)."""

from typing import Any

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.samples import COLOURS, Samples

JPEG, APERIO_YCBCR, JPEG_2000 = 7, 33003, (33003, 33005, 34712)  # compressions
_COLOURS = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "ycbcr"}  # by photometric interpretation
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4  # sample formats
_PREMULTIPLIED, _TRANSPARENCY = 1, 2  # meanings of an extra sample
_MAX_SAMPLE_VALUE, _INK_SET, _COEFFICIENTS, _REFERENCE = 281, 332, 529, 532  # tags


def read_samples(page: Any) -> Samples:
    """Read the meaning of samples. Raises DecodeError where there is none that all readers agree on."""
    bits, form = page.bitspersample, page.sampleformat
    if not isinstance(bits, int):
        raise DecodeError(f"samples of {', '.join(map(str, bits))} bits: convert to 8 bits each")
    if form == _SIGNED:
        raise DecodeError(f"signed {bits}-bit samples have no agreed black and white: convert to unsigned 8 or 16 bits")
    if form == _FLOAT:
        raise DecodeError("floating-point pixels have no agreed white: convert to 8 or 16 bits")
    if form not in (_UNSIGNED, _UNDEFINED) or bits > 16 or page.dtype is None:
        raise DecodeError(f"{bits}-bit pixels have no agreed white: convert to 8 or 16 bits")
    colours = _read_colours(page)
    extra = tuple(int(meaning) for meaning in page.extrasamples)
    count = page.samplesperpixel - COLOURS[colours]
    if count < 0:
        raise DecodeError(f"{page.samplesperpixel} samples a pixel where {COLOURS[colours]} are needed")
    alpha = next((i for i in range(min(count, len(extra))) if extra[i] in (_PREMULTIPLIED, _TRANSPARENCY)), None)
    if colours == "grey" and count > (alpha is not None):
        raise DecodeError(
            f"{page.samplesperpixel} bands without a word on which are red, green and blue: choose three of them, and write"
            " them as RGB"
        )
    codec = page.compression == JPEG or page.compression in JPEG_2000
    if codec and (count or (page.compression == JPEG and bits != 8)):
        raise DecodeError(f"{page.samplesperpixel} samples of {bits} bits in JPEG: convert to RGB of 8 bits")
    return Samples(
        colours,
        _read_bits_used(page),
        inverted=page.photometric == _WHITE_IS_ZERO,
        alpha=None if alpha is None else COLOURS[colours] + alpha,
        premultiplied=alpha is not None and extra[alpha] == _PREMULTIPLIED,
        palette=_read_palette(page, bits) if colours == "palette" else None,
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


def _read_bits_used(page: Any) -> int:
    """Return the number of bits that samples have, which may be fewer than they are stored in.

    The tag is often only the largest value that occurs, which says nothing; a value in which all bits are set does.
    """
    bits = page.bitspersample
    values = page.tags.valueof(_MAX_SAMPLE_VALUE)
    declared = set(values) if isinstance(values, tuple) else {values}
    largest = declared.pop() if len(declared) == 1 else None
    if isinstance(largest, int) and 2**8 <= largest + 1 < 2**bits and (largest + 1).bit_count() == 1:
        return largest.bit_length()
    return bits


def _read_palette(page: Any, bits: int) -> np.ndarray:
    """Return the palette, uint8 ``(2**bits, 3)``; one without a value above 255 is taken to have 8 bits, as libtiff does."""
    if bits > 8 or page.colormap is None or np.size(page.colormap) != 3 * 2**bits:
        raise DecodeError(f"a palette of {np.size(page.colormap)} values for {bits} bits: convert to RGB")
    colours = np.asarray(page.colormap).reshape(3, -1).T
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
