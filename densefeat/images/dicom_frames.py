"""One frame of a DICOM, from its bytes to the samples that are stored: packed, or in any of the standard's compressions."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.dicom_header import DEFLATED_FRAMES, NATIVE, RLE, Header, inflate
from densefeat.images.dicom_items import BoundedReader
from densefeat.images.jpeg import check_scans, find_jpeg_end
from densefeat.images.jpeg_2000 import check_codestream

_JPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 57, 70))
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
_VIDEO = tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(100, 109))
_FLOATS = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
_MAX_FRAGMENT_READS = 2_000_000
_MAX_OFFSET_BYTES = 2**23  # of a table with the places of a million frames
_MAX_SEGMENTS = 1000  # before a JPEG's first scan
_CODESTREAM = b"\xff\x4f\xff\x51"
_START_OF_IMAGE, _START_OF_SCAN = 0xFFD8, 0xFFDA
_START_OF_FRAME = {0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3, 0xFFF7}  # of JPEG: baseline, extended, progressive, lossless; of JPEG-LS
_JFIF, _ADOBE = b"JFIF\0", b"Adobe"
COLOURS = {  # by photometric interpretation
    "MONOCHROME1": "grey",
    "MONOCHROME2": "grey",
    "PALETTE COLOR": "palette",
    "RGB": "rgb",
    "YBR_FULL": "ycbcr",
    "YBR_FULL_422": "ycbcr",
    "YBR_ICT": "rgb",
    "YBR_RCT": "rgb",
}
_OF_JPEG_2000 = ("YBR_ICT", "YBR_RCT")  # whose decoder turns both into RGB


@dataclass(frozen=True)
class Layout:
    """How a DICOM stores the samples of a frame.

    Attributes:
        colours: What they are, of ``densefeat.images.samples.COLOURS``.
        inverted: The lowest value is white.
        stored: Bits of a sample that are used, of which ``top`` is the highest; 0 for floats.
        dtype: Of a stored sample, in the byte order of this machine.
    """

    height: int
    width: int
    samples: int
    frames: int
    photometric: str
    colours: str
    inverted: bool
    allocated: int
    stored: int
    top: int
    signed: bool
    planar: bool
    dtype: np.dtype

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest sample that can be stored."""
        return (-(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1) if self.signed else (0, 2**self.stored - 1)

    def extend(self, values: np.ndarray, top: int, bits: int) -> np.ndarray:
        """Take the ``bits`` from bit ``top`` down of integers, with their sign: others may be overlays, or have no meaning."""
        size = 8 * values.itemsize
        values = values.view(f"{'i' if self.signed else 'u'}{values.itemsize}")
        if bits >= size:
            return values
        return (values << (size - 1 - top)) >> (size - bits)


def read_layout(header: Header) -> Layout:
    """Read how samples are stored. Raises DecodeError for what is not read, or has no meaning."""
    _check_syntax(header.syntax)
    photometric = header.word("PhotometricInterpretation", "")
    colours = COLOURS.get(photometric)
    if colours is None or (photometric in _OF_JPEG_2000 and header.syntax not in _JPEG_2000):
        raise DecodeError(f"a DICOM whose photometric interpretation is none of {', '.join(COLOURS)} that fits its compression")
    samples, allocated = header.integer("SamplesPerPixel", 1), header.integer("BitsAllocated")
    if samples != (1 if colours in ("grey", "palette") else 3):
        raise DecodeError(f"{samples} samples a pixel in a DICOM of {photometric}")
    form = _FLOATS.get(header.pixels.keyword)
    signed = form is None and header.integer("PixelRepresentation", 0) == 1
    stored = 0 if form else header.integer("BitsStored", allocated)
    if form is None and not (allocated in (1, 8, 16, 32) and 0 < stored <= allocated):
        raise DecodeError(f"{stored} bits stored in {allocated} of a DICOM's sample: read are 1, 8, 16 and 32")
    if form and (colours != "grey" or allocated != 8 * np.dtype(form).itemsize):
        raise DecodeError(f"a DICOM of {photometric} in floats of {allocated} bits")
    top = header.integer("HighBit", stored - 1)
    return Layout(
        height=header.integer("Rows"),
        width=header.integer("Columns"),
        samples=samples,
        frames=max(1, header.integer("NumberOfFrames", 1)),
        photometric=photometric,
        colours=colours,
        inverted=photometric == "MONOCHROME1",
        allocated=allocated,
        stored=stored,
        top=top if stored - 1 <= top < allocated else stored - 1,
        signed=signed,
        planar=samples > 1 and header.integer("PlanarConfiguration", 0) == 1,
        dtype=np.dtype(form or f"{'i' if signed else 'u'}{max(allocated // 8, 1)}"),
    )


def _check_syntax(syntax: str) -> None:
    if syntax in _VIDEO:
        raise DecodeError("a DICOM with video: convert its frames to images")
    if syntax not in (*NATIVE, *_JPEG, *_JPEG_LS, *_JPEG_2000, RLE, DEFLATED_FRAMES):
        known = syntax if len(syntax) <= 64 and set(syntax) <= set("0123456789.") else "that is no UID"
        raise DecodeError(
            f"a DICOM of transfer syntax {known}: read are uncompressed and deflated ones, RLE, JPEG, JPEG-LS and JPEG 2000"
        )


def read_frame(header: Header, layout: Layout, frame: int, max_pixels: int) -> tuple[np.ndarray, str]:
    """Read the stored samples of a frame ``(h, w, n)``, and what they are: a decoder may know better than the header.

    Raises DecodeError where the frame is truncated or damaged, or not as the header says.
    """
    if header.syntax in NATIVE:
        values = _unpack(header, layout, frame)
        return (values if not layout.stored else layout.extend(values, layout.top, layout.stored)), layout.colours
    if header.pixels.length is not None:
        raise DecodeError("a compressed DICOM whose pixels are not in items")
    data = _read_encapsulated(header, layout, frame)
    if header.syntax in (RLE, DEFLATED_FRAMES):
        values = _decode_rle(data, layout) if header.syntax == RLE else _inflate_frame(data, layout)
        return (values if not layout.stored else layout.extend(values, layout.top, layout.stored)), layout.colours
    if header.syntax in _JPEG_2000:
        values, bits, colours = _decode_jpeg_2000(data, layout)
    else:
        values, bits, colours = _decode_jpeg(data, layout, header.syntax in _JPEG_LS, max_pixels)
    if values.shape[:2] != (layout.height, layout.width) or values.ndim != 2 + (layout.samples > 1):
        raise DecodeError(f"samples {values.shape} in place of {layout.width}×{layout.height} pixels of {layout.samples}")
    values = values.reshape(layout.height, layout.width, layout.samples)
    if values.dtype.kind not in "ui" or bits > 8 * values.itemsize:
        raise DecodeError(f"samples of {bits} bits decoded to {values.dtype}")
    return layout.extend(values, bits - 1, bits), colours


def _unpack(header: Header, layout: Layout, frame: int) -> np.ndarray:
    """Read a frame that is not compressed."""
    halved = layout.photometric == "YBR_FULL_422"
    pixels = layout.height * layout.width
    bits = pixels * (2 if halved else layout.samples) * layout.allocated
    first, end = frame * bits // 8, -(-(frame + 1) * bits // 8)
    swapped = not header.little_endian and layout.allocated == 8 and header.pixels.words
    data = _read_part(header, first - first % 2, end + end % 2) if swapped else _read_part(header, first, end)
    if swapped:
        data = np.frombuffer(data, "u2").byteswap().tobytes()[first % 2 :][: end - first]
    return _arrange(data, layout, frame * bits % 8, "<" if header.little_endian else ">")


def _read_part(header: Header, start: int, end: int) -> bytes:
    length = header.pixels.length
    header.file.seek(header.pixels.start + start)
    data = header.file.read(end - start)
    if length is None or end > length or len(data) < end - start:
        raise DecodeError("truncated: the DICOM ends before its pixels")
    return data


def _arrange(data: bytes, layout: Layout, skipped: int, order: str) -> np.ndarray:
    """Arrange the bytes of a frame as samples ``(h, w, n)``; ``skipped`` bits at their beginning are another frame's."""
    shape = layout.height, layout.width
    if layout.allocated == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[skipped : skipped + shape[0] * shape[1]].reshape(*shape, 1)
    values = np.frombuffer(data, np.dtype(order + layout.dtype.str[1:])).astype(layout.dtype, copy=False)
    if layout.photometric == "YBR_FULL_422":
        if shape[1] % 2:
            raise DecodeError(f"YBR_FULL_422 of odd width {shape[1]}")
        pairs = values.reshape(-1, 4)  # two luminances, blue, red
        return pairs[:, [0, 2, 3, 1, 2, 3]].reshape(*shape, 3)
    if layout.planar:
        return np.moveaxis(values.reshape(layout.samples, *shape), 0, -1)
    return values.reshape(*shape, layout.samples)


def _read_encapsulated(header: Header, layout: Layout, frame: int) -> bytes:
    """Read the bytes of a compressed frame."""
    from pydicom.encaps import get_frame

    offsets, lengths = (header.raw(f"ExtendedOffsetTable{part}") for part in ("", "Lengths"))
    extended: Any = (offsets, lengths) if offsets and lengths else None
    header.file.seek(header.pixels.start)
    first = header.file.read(8)
    table = int.from_bytes(first[4:8], "little")
    if len(first) < 8 or max(table, len(offsets), len(lengths)) > _MAX_OFFSET_BYTES:
        raise DecodeError("damaged, or a DICOM of too many frames")
    header.file.seek(header.pixels.start)
    reader: Any = BoundedReader(header.file, _MAX_FRAGMENT_READS, 2**32)
    return get_frame(reader, frame, number_of_frames=layout.frames, extended_offsets=extended)


def _decode_rle(data: bytes, layout: Layout) -> np.ndarray:
    import imagecodecs

    size = layout.height * layout.width * layout.samples * layout.dtype.itemsize
    decoded = imagecodecs.dicomrle_decode(data, layout.dtype.str.replace("i", "u"), out=bytearray(size))
    if len(decoded) != size:
        raise DecodeError(f"truncated: {len(decoded):,} bytes of a frame of {size:,}")
    values = np.frombuffer(decoded, layout.dtype).reshape(layout.samples, layout.height, layout.width)
    return np.moveaxis(values, 0, -1)


def _inflate_frame(data: bytes, layout: Layout) -> np.ndarray:
    size = -(-layout.height * layout.width * layout.samples * layout.allocated // 8)
    inflated = inflate(data, size + size % 2, "a frame")
    if len(inflated) < size:
        raise DecodeError(f"truncated: {len(inflated):,} bytes of a frame of {size:,}")
    return _arrange(inflated[:size], layout, 0, "<")


def _decode_jpeg_2000(data: bytes, layout: Layout) -> tuple[np.ndarray, int, str]:
    """Decode JPEG 2000: the samples, their bits, and what they are."""
    import imagecodecs

    check_codestream(data)
    start = data.find(_CODESTREAM)
    if start < 0 or len(data) < start + 41:
        raise DecodeError("damaged or truncated: no JPEG 2000 in a frame")
    right, bottom, left, top = struct.unpack_from(">4L", data, start + 8)
    components, depth = struct.unpack_from(">HB", data, start + 40)
    _check_size(right - left, bottom - top, components, layout)
    return imagecodecs.jpeg2k_decode(data), (depth & 0x7F) + 1, layout.colours


def _decode_jpeg(data: bytes, layout: Layout, lossless: bool, max_pixels: int) -> tuple[np.ndarray, int, str]:
    """Decode JPEG, or JPEG-LS: the samples, their bits, and what they are."""
    import imagecodecs

    segments = _list_segments(data)
    frame = next((content for marker, content in segments if marker in _START_OF_FRAME), b"")
    if len(frame) < 6:
        raise DecodeError("damaged: no JPEG of a kind that is read in a frame")
    bits, height, width, components = struct.unpack_from(">BHHB", frame)
    _check_size(width, height, components, layout)
    check_scans(find_jpeg_end(data)[1], width, height, max_pixels)
    if lossless:
        return imagecodecs.jpegls_decode(data), bits, layout.colours
    if components == 1:
        return imagecodecs.jpeg8_decode(data), bits, layout.colours
    # as they are stored: the decoder's guess would be another one for every file without a marker
    values = imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB")
    return values, bits, _read_jpeg_colours(segments, frame[6::3][:components], layout)


def _read_jpeg_colours(segments: list[tuple[int, bytes]], names: bytes, layout: Layout) -> str:
    """Tell what a JPEG's samples are where it says so; else they are what the header says."""
    if names == b"RGB":
        return "rgb"
    is_ycbcr = any(
        content.startswith(_JFIF) or (content.startswith(_ADOBE) and content[11:12] == b"\1") for _, content in segments
    )
    return "ycbcr" if is_ycbcr else layout.colours


def _list_segments(data: bytes) -> list[tuple[int, bytes]]:
    """List marker and content of the segments before a JPEG's first scan."""
    segments: list[tuple[int, bytes]] = []
    position = 2
    while position + 4 <= len(data) and len(segments) < _MAX_SEGMENTS:
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == _START_OF_SCAN:
            break
        if marker == 0xFFFF:  # a byte that fills
            position += 1
            continue
        segments.append((marker, data[position + 4 : position + 2 + length]))
        position += 2 + max(length, 2)
    return segments


def _check_size(width: int, height: int, components: int, layout: Layout) -> None:
    if (width, height, components) != (layout.width, layout.height, layout.samples):
        raise DecodeError(
            f"a frame of {width}×{height} pixels of {components} samples in place of {layout.width}×{layout.height} of"
            f" {layout.samples}"
        )
