"""DICOM headers, read within bounds: of all their elements only those that are asked for.

A header is full of the patient's data. What pydicom says of damage may quote them, so errors are told by their type alone, and
its log is silent.
"""

import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, BinaryIO

from densefeat.errors import DecodeError, UsageError
from densefeat.images.dicom_items import UNDEFINED, BoundedReader, find_item, skip_items
from densefeat.images.guards import silence_logger
from densefeat.images.memory import MEMORY

HEAD_BYTES = 132  # that tell a format: a DICOM's name stands behind 128 others
DEFLATED_FRAMES, RLE = "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.5"  # transfer syntaxes
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
NATIVE = (_IMPLICIT, _EXPLICIT, _BIG_ENDIAN, _DEFLATED)
_PREAMBLE, _PREFIX = 128, b"DICM"
_FIRST = {0: b"UL", 1: b"UL", 5: b"CS", 8: b"CS", 0x12: b"DA", 0x14: b"UI", 0x16: b"UI", 0x18: b"UI"}  # of group 8
PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
_TRANSFER_SYNTAX = 0x00020010
_MAX_ITEM_READS = 50_000  # of one item, which is read with all that is nested in it
MAX_TEXT_BYTES = 2**14  # of a number or word, or several: pydicom makes an object of each
_MAX_INFLATED = 2**31
_BLOCK = 2**20
_COLOURS = ("Red", "Green", "Blue")
_KEYWORDS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "FloatPixelPaddingValue",
    "DoubleFloatPixelPaddingValue", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ICCProfile", "OpticalPathSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in _COLOURS for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
)  # fmt: skip


def is_dicom(head: bytes) -> bool:
    """Check by a file's first ``HEAD_BYTES`` whether it is a DICOM; some begin with the header, without the preamble."""
    if head[_PREAMBLE:HEAD_BYTES] == _PREFIX or head[:6] == b"\2\0\0\0UL":
        return True
    kind = head[4:6]
    if head[:2] == b"\0\x08":
        return _FIRST.get(int.from_bytes(head[2:4])) == kind
    vr = _FIRST.get(int.from_bytes(head[2:4], "little"))
    return head[:2] == b"\x08\0" and vr is not None and (kind == vr or (head[4] % 2 == 0 < head[4] and head[5:8] == b"\0\0\0"))


def _has_pydicom() -> bool:
    return find_spec("pydicom") is not None


def check_pydicom() -> None:
    """Raise UsageError where pydicom is not installed."""
    if not _has_pydicom():
        raise UsageError("DICOM files are read by a package that is not installed: pip install 'densefeat[dicom]'")


@contextmanager
def hide_values() -> Iterator[None]:
    """Raise all errors of a block as DecodeError, without their text, which may quote what the header says of a person."""
    try:
        yield
    except (DecodeError, UsageError):
        raise
    except Exception as error:
        raise DecodeError(f"damaged or truncated: the DICOM cannot be read ({type(error).__name__})") from None


@dataclass(frozen=True)
class PixelElement:
    """Where a file has its pixels. ``length``: None where they are in items. ``words``: they are words of 16 bits."""

    keyword: str
    words: bool
    start: int
    length: int | None


@dataclass(frozen=True)
class Header:
    """The elements of a DICOM that say what its pixels mean; ``file`` holds them, inflated."""

    file: BinaryIO
    elements: Any
    syntax: str
    little_endian: bool
    pixels: PixelElement

    def integer(self, keyword: str, default: int | None = None) -> int:
        """Return a whole number. Raises DecodeError where there is none, and no default."""
        value = _read_value(self.elements, keyword)
        if value is None:
            value = default
        if value is None:
            raise DecodeError(f"a DICOM without {keyword}")
        return int(value)

    def number(self, keyword: str, elements: Any = None) -> float | None:
        """Return a number, the first of several; None where there is none. ``elements``: of a group, else of the header."""
        value = _read_value(self.elements if elements is None else elements, keyword)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[0] if value else None
        return None if value is None or value == "" else float(value)

    def word(self, keyword: str, default: str, elements: Any = None) -> str:
        """Return a word of the standard, as it stands."""
        value = _read_value(self.elements if elements is None else elements, keyword)
        return default if value is None else str(value).strip()

    def raw(self, keyword: str, elements: Any = None) -> bytes:
        """Return the bytes of a value, empty where there is none."""
        from pydicom.datadict import tag_for_keyword

        elements, tag = self.elements if elements is None else elements, tag_for_keyword(keyword)
        value = elements.get_item(tag).value if tag in elements else None
        return value if isinstance(value, bytes) else b""

    @property
    def words(self) -> str:
        """numpy's name of the type of 16-bit words."""
        return "<u2" if self.little_endian else ">u2"

    @property
    def profile(self) -> bytes | None:
        """The colour profile: of the image, or of a slide's first optical path; None where there is none."""
        path = read_item(self.elements, "OpticalPathSequence")
        return self.raw("ICCProfile") or (None if path is None else self.raw("ICCProfile", path)) or None

    def groups(self, keyword: str | None, frame: int) -> Iterator[Any]:
        """List what may hold an attribute of a frame: its own group of this name, the shared one, then the header."""
        for sequence, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
            group = read_item(self.elements, sequence, index)
            found = None if group is None or keyword is None else read_item(group, keyword)
            if found is not None:
                yield found
        yield self.elements


def _read_value(elements: Any, keyword: str) -> Any:
    """Read a number or a word, or several; None where there is none. Raises DecodeError for more than there can be."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag not in elements:
        return None
    raw = elements.get_item(tag).value
    if isinstance(raw, bytes) and len(raw) > MAX_TEXT_BYTES:
        raise DecodeError(f"{len(raw):,} bytes of {keyword} in a DICOM")
    value = elements[tag].value
    return None if value == "" else value


def read_item(elements: Any, keyword: str, index: int = 0) -> Any:
    """Read one item of a sequence; None where there is none."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_sequence

    tag = tag_for_keyword(keyword)
    if tag not in elements:
        return None
    element = elements.get_item(tag)
    if not isinstance(element, RawDataElement):
        return element.value[index] if index < len(element.value) else None
    implicit, little_endian = element.is_implicit_VR, element.is_little_endian
    data = find_item(element.value or b"", index, implicit, little_endian)
    if data is None:
        return None
    reader: Any = BoundedReader(io.BytesIO(data), _MAX_ITEM_READS)
    return read_sequence(reader, implicit, little_endian, len(data), "iso8859")[0]


def read_header(file: BinaryIO) -> Header:
    """Read a DICOM up to its pixels. Raises DecodeError where it is damaged or has none, and UsageError without pydicom."""
    check_pydicom()
    from pydicom.datadict import tag_for_keyword

    with hide_values():
        tags = [tag for tag in map(tag_for_keyword, _KEYWORDS) if tag is not None]
        file, syntax, little_endian, elements, pixels = read_elements(file, tags)
        if pixels is None:
            raise DecodeError("a DICOM without pixels, or truncated before them")
        return Header(file, elements, syntax, little_endian, pixels)


def read_elements(file: BinaryIO, tags: list[int]) -> tuple[BinaryIO, str, bool, Any, PixelElement | None]:
    """Read elements up to the pixels: file, transfer syntax, whether it is little-endian, elements, where the pixels are."""
    from pydicom.filereader import read_dataset

    silence_logger("pydicom")
    head = file.read(HEAD_BYTES)
    file.seek(HEAD_BYTES if head[_PREAMBLE:] == _PREFIX else 0)
    reader: Any = BoundedReader(file)
    meta = read_dataset(reader, False, True, stop_when=lambda tag, *_: tag >> 16 != 2, specific_tags=[_TRANSFER_SYNTAX])
    syntax = str(_read_value(meta, "TransferSyntaxUID") or "").strip() or _guess_syntax(reader)
    if syntax == _DEFLATED:
        file = io.BytesIO(inflate(file.read(), _MAX_INFLATED, "a deflated DICOM"))
        reader = BoundedReader(file)
    little_endian = syntax != _BIG_ENDIAN
    elements, pixels = _read_parts(reader, tags, syntax == _IMPLICIT, little_endian)
    return file, syntax, little_endian, elements, pixels


def _read_parts(reader: BoundedReader, tags: list[int], implicit: bool, little_endian: bool) -> tuple[Any, PixelElement | None]:
    """Read elements up to the pixels. Sequences of undefined length are left as bytes, of which pydicom would read all."""
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_dataset
    from pydicom.tag import BaseTag

    stops: list[tuple[int, str | None, int, int]] = []

    def stop(tag: int, vr: str | None, length: int) -> bool:
        if int(tag) not in PIXELS and length != UNDEFINED:
            return False
        stops.append((int(tag), vr, reader.tell(), length))
        return True

    elements: Any = None
    while True:
        stops.clear()
        source: Any = reader
        wanted: Any = tags
        part = read_dataset(source, implicit, little_endian, stop_when=stop, specific_tags=wanted)
        if elements is None:
            elements, implicit = part, bool(part.original_encoding[0])
        else:
            elements.update(part)
        if not stops:
            return elements, None
        tag, vr, start, length = stops[-1]
        if tag in PIXELS:
            return elements, PixelElement(PIXELS[tag], vr != "OB", start, None if length == UNDEFINED else length)
        reader.seek(start)
        skip_items(reader, implicit or vr == "UN", little_endian)
        if tag in tags:
            size = reader.tell() - start
            reader.seek(start)
            value = reader.read(size)
            elements[tag] = RawDataElement(BaseTag(tag), "SQ", size, value, start, implicit, little_endian)


def _guess_syntax(reader: BoundedReader) -> str:
    """Tell from the first element of a file that does not name its transfer syntax how it is written."""
    place = reader.tell()
    head = reader.read(6)
    reader.seek(place)
    if not (head[4:6].isalpha() and head[4:6].isupper()):
        return _IMPLICIT
    return _BIG_ENDIAN if head[0] == 0 else _EXPLICIT


def inflate(data: bytes, limit: int, what: str) -> bytes:
    """Inflate data without a header, once for its size, and once to keep it.

    Raises DecodeError where it is truncated, or larger than ``limit`` or the memory for images.
    """
    size, rest, counter = 0, data, zlib.decompressobj(-zlib.MAX_WBITS)
    while not counter.eof:
        block = counter.decompress(rest, _BLOCK)
        size, rest = size + len(block), counter.unconsumed_tail
        if size > limit:
            raise DecodeError(f"{what} of more than {limit:,} bytes when it is inflated")
        if not block and not rest and not counter.eof:
            raise DecodeError(f"truncated: {what} that ends too early")
    MEMORY.claim(2 * size, f"{size:,} bytes of {what}")
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data)
