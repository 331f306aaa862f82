"""Frames of animations are what programs show one after the other."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageSequence

from densefeat.errors import DecodeError
from densefeat.images.decode import decode
from densefeat.images.frames import Frames, count_frames, may_have_frames, open_frames
from densefeat.images.guards import MAX_PIXELS
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule

Encode = Callable[..., bytes]


def make_frames(count: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> list[Image.Image]:
    """Blobs that move over a still ground, so that encoders store only what changes."""
    frames = []
    for number in range(count):
        image = Image.new("RGB", size, (200, 100, 50))
        image.paste((10 * number, 255 - 10 * number, 90), (3 * number, 2 * number, 3 * number + 8, 2 * number + 8))
        frames.append(image.convert(mode))
    return frames


def encode(frames: list[Image.Image], kind: str, **options) -> bytes:
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
    return file.getvalue()


def decode_frame(frames: Frames, page: int, rule: PixelRule = PHOTOGRAPHS) -> np.ndarray:
    return np.asarray(frames.decode(page, MAX_PIXELS, rule).pixels)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {"disposal": 0}), ("GIF", {"disposal": 1}), ("WEBP", {"lossless": True}), ("PNG", {}), ("PNG", {"default_image": True})],
)  # fmt: skip
@pytest.mark.parametrize("order", [range(1, 13), range(12, 0, -1), (7, 3, 12, 1)])
def test_frames_in_any_order(kind: str, options: dict, order: range) -> None:
    pictures = make_frames(12)
    data = encode(pictures, kind, **options)
    assert may_have_frames(data[:16])
    assert count_frames(io.BytesIO(data), MAX_PIXELS) == 12
    frames = open_frames(data, MAX_PIXELS)
    for page in order:
        assert np.array_equal(decode_frame(frames, page), np.asarray(pictures[page - 1]))
    assert np.array_equal(decode_frame(frames, 1), np.asarray(decode(data, "pillow").pixels))
    with pytest.raises(DecodeError, match="page 13: the file has 12"):
        frames.decode(13, MAX_PIXELS, PHOTOGRAPHS)


def test_frames_that_leave_nothing_behind() -> None:
    """GIF's disposal 2: the place of a frame is cleared before the next one; transparency lies over white."""
    pictures = make_frames(5, mode="RGBA")
    for picture in pictures:
        picture.putalpha(Image.fromarray((np.asarray(picture)[..., 2] == 90).astype(np.uint8) * 255))
    frames = open_frames(encode(pictures, "GIF", disposal=2), MAX_PIXELS)
    for page, picture in enumerate(pictures, 1):
        rgba = np.asarray(picture)
        assert np.array_equal(decode_frame(frames, page), np.where(rgba[..., 3:] == 255, rgba[..., :3], 255))


def test_frames_by_a_rule() -> None:
    pictures = make_frames(3)
    frames = open_frames(encode(pictures, "WEBP", lossless=True), MAX_PIXELS)
    swapped = decode_frame(frames, 3, PixelRule(channels=("3", "2", "1")))
    assert np.array_equal(swapped, np.asarray(pictures[2])[..., ::-1])


def test_threads_share_an_animation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.images.frames._KEPT", 5 * 40 * 30 * 3)
    pictures = make_frames(12)
    frames = open_frames(encode(pictures, "GIF"), MAX_PIXELS)
    pages = np.random.default_rng(0).integers(1, 13, 200).tolist()
    pages.append(1)  # of one band, where the others have three
    with ThreadPoolExecutor(8) as pool:
        for page, pixels in zip(pages, pool.map(lambda page: decode_frame(frames, page), pages), strict=True):
            assert np.array_equal(pixels, np.asarray(pictures[page - 1]))
    assert sum(40 * 30 * len(frame.getbands()) for frame in frames._kept.values()) <= 5 * 40 * 30 * 3


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "PNG", "GIF", "WEBP"])
def test_one_picture_is_one_frame(kind: str) -> None:
    data = encode(make_frames(1), kind) if kind not in ("JPEG", "BMP") else b""
    if not data:
        file = io.BytesIO()
        make_frames(1)[0].save(file, kind)
        data = file.getvalue()
    assert count_frames(io.BytesIO(data), MAX_PIXELS) == 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_a_file_that_ends_early_loses_only_its_last_frames(kind: str) -> None:
    pictures = make_frames(12)
    data = encode(pictures, kind, **({"lossless": True} if kind == "WEBP" else {}))
    data = data[: len(data) * 2 // 3]
    try:
        frames = open_frames(data, MAX_PIXELS)
    except DecodeError:
        assert kind == "WEBP"  # whose decoder wants the whole file
        return
    good = 0
    for page in range(1, 13):
        try:
            pixels = decode_frame(frames, page)
        except DecodeError:
            continue
        good += 1
        assert np.array_equal(pixels, np.asarray(pictures[page - 1]))
    assert 4 <= good < 12


def test_deep_animations_are_refused() -> None:
    pictures = [Image.fromarray(np.full((20, 30), value, np.uint16)) for value in (20_000, 40_000)]
    with pytest.raises(DecodeError, match="an animated PNG of 16 bits"):
        open_frames(encode(pictures, "PNG"), MAX_PIXELS)


def test_large_canvases_are_refused() -> None:
    for kind in ("GIF", "WEBP", "PNG"):
        with pytest.raises(DecodeError, match="40×30 pixels are more than the limit of 1,000"):
            open_frames(encode(make_frames(3), kind), 1000)


def test_blocks_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.images.footprint._MAX_GIF_BLOCKS", 100)
    data = encode(make_frames(1), "GIF")[:-1] + b"!\xfe" + b"\1a" * 200
    with pytest.raises(DecodeError, match="more than 100 blocks in a GIF"):
        count_frames(io.BytesIO(data), MAX_PIXELS)


def test_counts_are_those_of_pillow() -> None:
    for count in (1, 2, 7, 40):
        data = encode(make_frames(count, (130, 90)), "GIF", optimize=False)
        assert (
            count_frames(io.BytesIO(data), MAX_PIXELS)
            == len(list(ImageSequence.Iterator(Image.open(io.BytesIO(data)))))
            == count
        )
