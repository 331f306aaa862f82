"""What precedes a JPEG's pixels is read without what could take memory or time, and the pixels stay the same."""

import io
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import DecodeError
from densefeat.images import decode_image, decode_pixels
from densefeat.images.jpeg import check_scans, find_jpeg_end, read_jpeg_header
from support.hostile import add_scans, add_segments, encode, make_exif_of_overlaps, make_segment, make_small_image

JPEG = encode(make_small_image(), "JPEG")
PIXELS = np.asarray(Image.open(io.BytesIO(JPEG)))
XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'
TABLE = make_exif_of_overlaps(65_000, 2700)


def test_only_what_decoding_needs_is_kept() -> None:
    data = add_segments(
        JPEG,
        make_segment(b"\xff\xe1", TABLE),
        make_segment(b"\xff\xe2", b"ICC_PROFILE\0\1\1" + bytes(60_000)),
        make_segment(b"\xff\xed", b"Photoshop 3.0\0" + bytes(60_000)),
        make_segment(b"\xff\xfe", b"a comment"),
    )
    header = read_jpeg_header(io.BytesIO(data))
    assert header.tables + JPEG[header.start - len(data) + len(JPEG) :] == JPEG
    assert data[header.start :] == JPEG[len(header.tables) :]
    assert header.info == {"exif": TABLE, "icc_profile": bytes(60_000)}
    assert header.open().size == (64, 48)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
def test_pixels_are_those_of_the_file_without_metadata(mode: str, decoder: str) -> None:
    """Adobe's segment, which says what the colours of a CMYK file are, is kept."""
    plain = encode(make_small_image().convert(mode), "JPEG")
    with_more = add_segments(
        plain, make_segment(b"\xff\xe1", XMP), b"\xff\xff\xff", make_segment(b"\xff\xe2", b"MPF\0" + TABLE[6:])
    )
    upright = decode_image(plain).transpose(Image.Transpose.ROTATE_270)
    pixels = decode_pixels(with_more, decoder)
    found = np.asarray(pixels) if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - np.asarray(upright)).max() <= (1 if decoder == "torchvision" else 0)


def test_bytes_between_segments_are_skipped() -> None:
    comment = make_segment(b"\xff\xfe", b"a comment")
    data = add_segments(JPEG, comment, bytes(5000) + b"\xff\0", comment, b"\xff\xff\xff")
    assert np.array_equal(np.asarray(decode_image(data)), PIXELS)


LARGE = b"Exif\0\0" + bytes(65_000)


@pytest.mark.parametrize(
    "segments",
    [
        [make_segment(b"\xff\xe1", TABLE)],
        [make_segment(b"\xff\xe2", b"MPF\0" + TABLE[6:])],
        [make_segment(b"\xff\xe1", TABLE), *[make_segment(b"\xff\xe1", LARGE)] * 400],  # joined by Pillow: 26 MB
        [make_segment(b"\xff\xed", b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000)],
        [make_segment(b"\xff\xfe", bytes(60_000))] * 400,
    ],
    ids=["exif", "mpf", "exif in pieces", "photoshop", "comments"],
)
def test_metadata_take_neither_memory_nor_time(segments: list[bytes]) -> None:
    data = add_segments(JPEG, *segments)
    started = time.process_time()
    tracemalloc.start()
    try:
        decode_image(data)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2 * len(data) + 10**6
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (add_segments(JPEG, make_segment(b"\xff\xfe", b"") * 20_000), "more than 33,554,432 bytes or 10,000 segments before"),
        (add_segments(JPEG, make_segment(b"\xff\xfe", bytes(65_000)) * 600), "more than 33,554,432 bytes or 10,000 segments"),
        (add_segments(JPEG, make_segment(b"\xff\xfe", b"") + bytes(10**6)), "the JPEG has no pixels"),
        (JPEG[:100], "the JPEG has no pixels"),
        (JPEG[:2] + b"\xff\xd9", "the JPEG has no pixels"),
        (JPEG[:2] + b"\xff\xd8" * 20_000, "10,000 segments"),
    ],
)
@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
def test_more_than_belongs_before_pixels_fails(data: bytes, match: str, decoder: str) -> None:
    started = time.process_time()
    with pytest.raises(DecodeError, match=match):
        decode_pixels(data, decoder)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
def test_scans_are_bounded_by_their_pixels(decoder: str) -> None:
    """As many as an image of the largest size may have: 20 of its pixels."""
    plain = encode(make_small_image(), "JPEG", progressive=True)
    _, usual = find_jpeg_end(plain)
    assert usual == 10
    many = add_scans(plain, 90)
    assert find_jpeg_end(many) == (len(many) - 2, 100)
    decode_pixels(many, decoder, max_pixels=5 * 64 * 48)
    with pytest.raises(DecodeError, match=r"^100 scans of 64×48 pixels take longer .* the 20 of an image of 15,359 pixels"):
        decode_pixels(many, decoder, max_pixels=5 * 64 * 48 - 1)


def test_usual_scans_of_the_largest_image_pass() -> None:
    check_scans(20, 10_000, 10_000, 10**8)
    with pytest.raises(DecodeError, match="21 scans"):
        check_scans(21, 10_000, 10_000, 10**8)
