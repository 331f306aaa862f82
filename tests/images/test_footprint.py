"""What decoding is said to take is what a process really grows by, format by format."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image

import support.decode_growth
from densefeat.errors import DecodeError
from densefeat.images import MEMORY, decode_pixels
from densefeat.images.footprint import read_gif_size, read_webp_header
from support.dicoms import make_dicom
from support.icc_profiles import make_cmyk_profile, make_rgb_profile

SIDE = 3072
SPARE = 2**24  # bytes of a process, whatever the image
TURNED = Image.Exif()
TURNED[0x112] = 6


def make_pixels(channels: int) -> np.ndarray:
    """Return blocks of colours, which compress but are not alike: uint8 ``(SIDE, SIDE, channels)``."""
    blocks = np.random.default_rng(channels).integers(0, 256, (SIDE // 8, SIDE // 8, channels), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)


def make_dicoms() -> Iterator[tuple[str, bytes]]:
    grey = make_pixels(1)[..., 0].astype(np.uint16) * 16
    rescaled: dict[str, Any] = {
        "BitsStored": 12,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "WindowCenter": 40,
        "WindowWidth": 400,
    }
    yield "rescaled.dcm", make_dicom(grey, **rescaled)
    yield "padded.dcm", make_dicom(grey, "rle", PixelPaddingValue=int(grey[0, 0]), **rescaled)
    yield "sigmoid.dcm", make_dicom(grey, "jpeg-ls", VOILUTFunction="SIGMOID", **rescaled)
    yield "colours.dcm", make_dicom(make_pixels(3), "jpeg 2000")
    palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{colour}PaletteColorLookupTableData"] = np.arange(256, dtype="<u2").tobytes()
    yield "palette.dcm", make_dicom(make_pixels(1)[..., 0], "deflated", **palette)


def write_images(folder: Path, decoder: str) -> None:
    colours = Image.fromarray(make_pixels(3))
    kinds: dict[str, dict[str, Any]] = {
        "plain.jpg": {},
        "turned.jpg": {"exif": TURNED},
        "progressive.jpg": {"progressive": True, "subsampling": 0},
        "cmyk.jpg": {"mode": "CMYK", "progressive": True, "exif": TURNED},
        "profile.jpg": {"icc_profile": make_rgb_profile("p3")},
        "ink.jpg": {"mode": "CMYK", "icc_profile": make_cmyk_profile()},
    }
    if decoder == "torchvision":
        kinds |= {
            "turned.png": {"exif": TURNED, "compress_level": 1},
            "palette.png": {"mode": "P"},
            "plain.webp": {"method": 0},
            "lossless.webp": {"lossless": True, "method": 0},
            "plain.gif": {"mode": "P"},
            "transparent.gif": {"mode": "P", "transparency": 3},
            "plain.bmp": {},
            "plain.jp2": {},
            "turned.avif": {"speed": 10, "exif": TURNED},
            "plain.ppm": {},
            "plain.pbm": {"mode": "1"},
            "profile.png": {"icc_profile": make_rgb_profile("p3"), "compress_level": 1},
            "profile.webp": {"icc_profile": make_rgb_profile("p3"), "method": 0},
        }
        clear = Image.fromarray(make_pixels(4))
        clear.save(folder / "clear.webp", method=0)
        clear.save(folder / "clear.png", compress_level=1)
        clear.save(folder / "clear.jp2")
        clear.save(folder / "clear.avif", speed=10)
        pillow_heif.from_pillow(clear).save(folder / "clear.heic", quality=30)
        numbers = b" ".join(b"%d" % value for value in make_pixels(1).ravel().tolist())
        (folder / "text.pgm").write_bytes(b"P2 %d %d 255\n" % (SIDE, SIDE) + numbers)
        for name, pixels, options in (
            ("tiles.tif", make_pixels(3), {"tile": (256, 256)}),
            ("one.tif", make_pixels(3), {"rowsperstrip": SIDE}),
            ("deep.tif", make_pixels(3).astype(np.uint16) * 257, {"rowsperstrip": SIDE}),
            ("clear.tif", make_pixels(4), {"rowsperstrip": SIDE, "extrasamples": ["assocalpha"]}),
            ("profile.tif", make_pixels(3), {"rowsperstrip": SIDE, "iccprofile": make_rgb_profile("p3")}),
            ("jpeg.tif", make_pixels(3), {"tile": (SIDE, SIDE), "compression": "jpeg"}),
            ("jpeg2000.tif", make_pixels(3), {"tile": (SIDE, SIDE), "compression": "jpeg2000"}),
        ):
            tifffile.imwrite(folder / name, pixels, photometric="rgb", **{"compression": "deflate", **options})
        np.save(folder / "array.npy", make_pixels(3))
        for name, data in make_dicoms():
            (folder / name).write_bytes(data)
    for name, options in kinds.items():
        colours.convert(options.pop("mode", "RGB")).save(folder / name, **options)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
def test_a_budget_below_what_decoding_takes_refuses_and_a_few_times_as_much_is_enough(decoder: str, tmp_path: Path) -> None:
    write_images(tmp_path, decoder)
    script = support.decode_growth.__file__
    mapped = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # what is freed is not used again
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path), decoder], check=True, capture_output=True, text=True, env=mapped
    )
    growths: dict[str, int] = json.loads(ended.stdout)
    assert len(growths) == len(list(tmp_path.iterdir()))
    for name, growth in growths.items():
        data = (tmp_path / name).read_bytes()
        assert growth > 3 * SIDE**2, name
        with MEMORY.limit(growth - SPARE), pytest.raises(DecodeError, match=r"\(--memory\)"):
            decode_pixels(data, decoder)
            pytest.fail(f"{name} grows by {growth:,} bytes")
        with MEMORY.limit(4 * growth):
            decode_pixels(data, decoder)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "options", "transparent"),
    [("RGB", {}, False), ("RGB", {"lossless": True}, False), ("RGBA", {}, True), ("RGBA", {"lossless": True}, True)],
)
def test_headers_of_webp(mode: str, options: dict[str, Any], transparent: bool) -> None:
    data = encode(Image.new(mode, (301, 47), "#12345678" if mode == "RGBA" else "red"), "WEBP", **options)
    assert read_webp_header(data[:30]) == (301, 47, transparent)


def test_an_animated_webp_has_the_size_of_its_canvas() -> None:
    frames = [Image.new("RGB", (90, 30), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert read_webp_header(data[:30])[:2] == (90, 30)


@pytest.mark.parametrize(
    "head", [b"RIFF\4\0\0\0WEBP", b"RIFF\x20\0\0\0WEBPVP8 " + bytes(14), b"RIFF\x20\0\0\0WEBPALPH" + bytes(14)]
)
def test_a_webp_without_its_header_is_damaged(head: bytes) -> None:
    with pytest.raises(DecodeError, match="does not begin with its header"):
        read_webp_header(head)


@pytest.mark.parametrize(("place", "size"), [(b"\0\0\0\0\x0a\0\x05\0", (30, 20)), (b"\x1e\0\0\0\x0a\0\x40\0", (40, 64))])
def test_the_canvas_of_a_gif_holds_its_first_frame(place: bytes, size: tuple[int, int]) -> None:
    comment = b"!\xfe\x05hello\x05again\0"
    assert read_gif_size(io.BytesIO(b"GIF89a\x1e\0\x14\0\x80\0\0" + bytes(6) + comment + b"," + place)) == size


def test_a_gif_of_comments_ends() -> None:
    with pytest.raises(DecodeError, match=r"more than 10,000 blocks"):
        read_gif_size(io.BytesIO(b"GIF89a\x1e\0\x14\0\0\0\0" + b"!\xfe\0" * 20_000))
