"""From the stored samples of a DICOM to values in their own units, such as Hounsfield's, and which are black and white."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.dicom_frames import Layout
from densefeat.images.dicom_header import Header, read_item
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.samples import Samples

_DEEP = 16  # stored bits: writers that do not know better say so, while fewer are meant
_LUT_BITS = range(8, 17)
_ENTRIES = 2**16
_DISCRETE, _LINEAR = 0, 1  # segments of a palette
_PALETTE = ("Red", "Green", "Blue")
_STEEP = 80  # an exponent beyond which a sigmoid is flat

Range = tuple[float, float]


@dataclass(frozen=True)
class _Table:
    """A look-up table: ``entries`` are the values of inputs from ``first`` on, of so many bits."""

    first: int
    entries: np.ndarray
    bits: int

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Replace values by their entries; those beyond the table take its first or last."""
        places = np.rint(values) if values.dtype.kind == "f" else values
        places = np.clip(places.astype(np.int64), self.first, self.first + len(self.entries) - 1) - self.first
        return self.entries[places]

    @property
    def limits(self) -> Range:
        """The range of the entries, of the bits that they use where these are far fewer than the table declares."""
        brightest = int(self.entries.max())
        return 0, 2 ** (self.bits if brightest >= 2 ** (self.bits - 2) else max(1, brightest.bit_length())) - 1


@dataclass(frozen=True)
class _Sigmoid:
    """The curve of a window whose function is SIGMOID."""

    centre: float
    width: float
    limits: Range = (0.0, 1.0)

    def apply(self, values: np.ndarray) -> np.ndarray:
        exponents = (values.astype(np.float32) - np.float32(self.centre)) * np.float32(-4 / self.width)
        return 1 / (1 + np.exp(np.clip(exponents, -_STEEP, _STEEP)))


@dataclass(frozen=True)
class _Scale:
    """Rescaling by a slope and an intercept."""

    slope: float
    intercept: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        if (self.slope, self.intercept) == (1, 0):
            return values
        return values.astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)

    def find_limits(self, low: float, high: float) -> Range:
        ends = sorted((low * self.slope + self.intercept, high * self.slope + self.intercept))
        return ends[0], ends[1]


def describe_frame(
    values: np.ndarray, colours: str, header: Header, layout: Layout, frame: int, rule: PixelRule
) -> tuple[np.ndarray, Samples]:
    """Turn the stored samples ``(h, w, n)`` of a frame into values, and say what they mean.

    Values are in the units that the file's rescaling gives. A curve that it declares for the screen, a table or a sigmoid, is
    applied for the rule's range ``auto`` alone: other ranges are given in those units.
    """
    if colours == "palette":
        return _describe_palette(values, header, layout)
    if colours == "grey":
        return _describe_grey(values, header, layout, frame, rule)
    if layout.signed or layout.stored > 16:
        return values, Samples(colours, 0, declared=layout.limits)
    return values, Samples(colours, layout.stored, icc=header.profile)


def _describe_grey(
    values: np.ndarray, header: Header, layout: Layout, frame: int, rule: PixelRule
) -> tuple[np.ndarray, Samples]:
    missing = _find_padding(values, header, layout)
    modality = _read_modality(header, layout, frame)
    values = modality.apply(values)
    limits: Range | None = None
    if layout.stored:
        limits = modality.limits if isinstance(modality, _Table) else modality.find_limits(*layout.limits)
    curve = _read_table(header, "VOILUTSequence", frame, limits) or _read_window(header, layout, frame)
    declared = curve if isinstance(curve, tuple) else None
    if isinstance(curve, _Table | _Sigmoid) and rule.range == "auto":
        values, declared, limits = curve.apply(values), curve.limits, curve.limits
    if missing is not None:
        values = np.where(missing, np.float32("nan"), values.astype(np.float32))
    if values.dtype.kind == "u" and limits is not None and limits[1] < 2**16:
        bits = int(limits[1]).bit_length()
        small = values if values.itemsize <= 2 else np.minimum(values, 2**16 - 1).astype(np.uint16)
        return small, Samples("grey", bits, inverted=layout.inverted, declared=declared)
    if declared is None and not layout.signed and layout.stored < _DEEP:
        declared = limits
    return values, Samples("grey", 0, inverted=layout.inverted, declared=declared, limits=limits)


def _find_padding(values: np.ndarray, header: Header, layout: Layout) -> np.ndarray | None:
    """Mark the pixels that stand for nothing; None where there are none."""
    if not layout.stored:
        padding = header.number(f"{header.pixels.keyword.removesuffix('PixelData')}PixelPaddingValue")
        missing = None if padding is None else values == values.dtype.type(padding)
    else:
        ends = [header.number(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
        if ends[0] is None:
            return None
        unsigned = [int(end) % 2**layout.allocated for end in ends if end is not None]
        stored = layout.extend(np.array(unsigned, f"u{layout.dtype.itemsize}"), layout.stored - 1, layout.stored)
        missing = (values >= stored.min()) & (values <= stored.max())
    return missing if missing is not None and missing.any() else None


def _read_modality(header: Header, layout: Layout, frame: int) -> _Table | _Scale:
    """Read the way from stored samples to values."""
    table = _read_table(header, "ModalityLUTSequence", frame, layout.limits if layout.stored else None)
    if table is not None:
        return table
    for group in header.groups("PixelValueTransformationSequence", frame):
        slope, intercept = header.number("RescaleSlope", group), header.number("RescaleIntercept", group)
        if slope is not None or intercept is not None:
            slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
            if not slope or not isfinite(slope) or not isfinite(intercept):
                raise DecodeError(f"a DICOM whose values are rescaled by {slope:g} and {intercept:g}")
            return _Scale(slope, intercept)
    return _Scale(1, 0)


def _read_window(header: Header, layout: Layout, frame: int) -> Range | _Sigmoid | None:
    """Read the first window (DICOM PS3.3 C.11.2): black and white of a linear one; None where there is none that is one.

    LINEAR is for whole numbers, half a step beside their window; writers of floats mean the window itself.
    """
    for group in header.groups("FrameVOILUTSequence", frame):
        centre, width = header.number("WindowCenter", group), header.number("WindowWidth", group)
        if centre is None or width is None or not isfinite(centre) or not isfinite(width) or width <= 0:
            continue
        function = header.word("VOILUTFunction", "LINEAR", group)
        if function == "SIGMOID":
            return _Sigmoid(centre, width)
        if function == "LINEAR_EXACT" or (function == "LINEAR" and not layout.stored):
            return centre - width / 2, centre + width / 2
        if function != "LINEAR":
            raise DecodeError("a DICOM whose window is none of LINEAR, LINEAR_EXACT and SIGMOID")
        if width >= 1:
            half = max(width - 1, 1e-3) / 2  # of width 1: a threshold
            return centre - 0.5 - half, centre - 0.5 + half
    return None


def _read_table(header: Header, sequence: str, frame: int, limits: Range | None) -> _Table | None:
    """Read the first table of a sequence, for inputs in a range; None where there is none."""
    item = None
    for group in header.groups("FrameVOILUTSequence" if sequence == "VOILUTSequence" else None, frame):
        item = item or read_item(group, sequence)
    if item is None or limits is None:
        return None
    count, first, bits = _read_descriptor(item, "LUTDescriptor", header, signed=limits[0] < 0)
    if bits not in _LUT_BITS:
        raise DecodeError(f"a table of {bits} bits in a DICOM")
    return _Table(first, _read_entries(item, "LUTData", header, count), bits)


def _read_descriptor(elements: Any, keyword: str, header: Header, signed: bool) -> tuple[int, int, int]:
    """Read the number of a table's entries, the first input, and the bits of an entry."""
    raw = header.raw(keyword, elements)
    if len(raw) < 6:
        raise DecodeError("damaged: a table without a description in a DICOM")
    count, first, bits = np.frombuffer(raw, header.words, 3).tolist()
    return count or _ENTRIES, first - 2**16 if signed and first >= 2**15 else first, bits


def _read_entries(elements: Any, keyword: str, header: Header, count: int) -> np.ndarray:
    """Read the entries of a table, uint16, of 16 bits each or of 8."""
    raw = header.raw(keyword, elements)
    if len(raw) >= 2 * count:
        return np.frombuffer(raw, header.words, count).astype(np.uint16)
    if len(raw) < count:
        raise DecodeError(f"truncated: {len(raw):,} bytes of a DICOM's table of {count:,} entries")
    return np.frombuffer(raw, np.uint8, count).astype(np.uint16)


def _describe_palette(values: np.ndarray, header: Header, layout: Layout) -> tuple[np.ndarray, Samples]:
    descriptors = [
        _read_descriptor(header.elements, f"{colour}PaletteColorLookupTableDescriptor", header, layout.signed)
        for colour in _PALETTE
    ]
    if descriptors[0][:2] != descriptors[1][:2] or descriptors[0][:2] != descriptors[2][:2]:
        raise DecodeError("a DICOM whose palette has tables of different sizes")
    count, first, bits = descriptors[0]
    columns = [_read_colour(colour, header, count, bits) for colour in _PALETTE]
    table = np.stack(columns, axis=1)
    palette = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
    numbers = np.clip(values.astype(np.int64), first, first + count - 1) - first
    return numbers.astype(np.uint16), Samples(
        "palette", 16, palette=palette, declared=(0, max(1, count - 1)), icc=header.profile
    )


def _read_colour(colour: str, header: Header, count: int, bits: int) -> np.ndarray:
    """Read one colour of a palette, uint16 ``(count,)``."""
    segmented = f"Segmented{colour}PaletteColorLookupTableData"
    if not header.raw(segmented):
        return _read_entries(header.elements, f"{colour}PaletteColorLookupTableData", header, count)
    raw = header.raw(segmented)
    words = np.frombuffer(raw, np.uint8 if bits == 8 else header.words, len(raw) // (1 if bits == 8 else 2)).tolist()
    return _expand_segments(words, count)


def _expand_segments(words: list[int], count: int) -> np.ndarray:
    """Expand a palette of segments (DICOM PS3.3 C.7.9.2): values, or the last value of a line that leads there."""
    entries: list[int] = []
    position = 0
    while len(entries) < count and position + 2 < len(words):
        kind, length = words[position : position + 2]
        position += 2
        if kind == _DISCRETE:
            entries += words[position : position + length]
            position += length
        elif kind == _LINEAR and entries:
            last = entries[-1]
            entries += np.rint(np.linspace(last, words[position], length + 1)[1:]).astype(int).tolist()
            position += 1
        else:
            raise DecodeError("a DICOM whose palette has segments of a kind that is not read")
    if len(entries) < count:
        raise DecodeError(f"truncated: {len(entries):,} of a DICOM's {count:,} colours")
    return np.array(entries[:count], np.uint16)
