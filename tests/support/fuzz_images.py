"""Small images of each format, and their readers, for fuzzing."""

from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import tifffile
from PIL import Image
from sklearn.datasets import load_sample_image

from densefeat.images import TiledSource, decode_pixels, open_source
from support.fuzz_inputs import decode_item, try_all
from support.icc_profiles import make_cmyk_profile, make_grey_profile, make_rgb_profile

_MAX_PIXELS = 2**22
_PILLOW: dict[str, dict[str, Any]] = {
    "baseline.jpg": {"quality": 80}, "progressive.jpg": {"progressive": True}, "grey.jpg": {"mode": "L"},
    "cmyk.jpg": {"mode": "CMYK"}, "plain.png": {}, "palette.png": {"mode": "P"}, "alpha.png": {"mode": "RGBA"},
    "one.png": {"mode": "1"}, "lossy.webp": {}, "lossless.webp": {"lossless": True}, "alpha.webp": {"mode": "RGBA"},
    "plain.gif": {"mode": "P"}, "plain.bmp": {}, "palette.bmp": {"mode": "P"}, "plain.avif": {"speed": 9},
    "alpha.avif": {"mode": "RGBA", "speed": 9}, "plain.jp2": {}, "alpha.jp2": {"mode": "RGBA"},
    "tiles.j2k": {"tile_size": (32, 32), "irreversible": True, "quality_layers": [20]},
    "plain.ppm": {}, "plain.pgm": {"mode": "L"}, "plain.pbm": {"mode": "1"},
}  # fmt: skip
_TIFF: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 16}, "lzw": {"compression": "lzw", "predictor": True, "rowsperstrip": 32},
    "deflate": {"compression": "deflate", "tile": (32, 32)}, "jpeg": {"compression": "jpeg", "tile": (32, 32)},
    "zstd": {"compression": "zstd", "tile": (64, 64)}, "webp": {"compression": "webp", "tile": (64, 64)},
    "packbits": {"compression": "packbits"}, "planes": {"planarconfig": "separate", "tile": (32, 32)},
    "big": {"bigtiff": True, "tile": (32, 32)},
}  # fmt: skip


def write_images(folder: Path) -> None:
    photograph = Image.fromarray(load_sample_image("china.jpg")[100:196, 200:296])
    for name, options in _PILLOW.items():
        converted = photograph.convert(options.get("mode", "RGB"))
        converted.save(folder / name, **{key: value for key, value in options.items() if key != "mode"})
    turned = Image.Exif()
    turned[274] = 6
    photograph.save(folder / "turned.jpg", exif=turned)
    for suffix in ("gif", "webp", "png"):
        photograph.save(folder / f"animated.{suffix}", save_all=True, append_images=[photograph.rotate(90)])
    pixels = np.asarray(photograph)
    _write_with_profiles(folder, photograph)
    (folder / "text.ppm").write_bytes(b"P3 96 96 255\n" + " ".join(map(str, pixels.ravel().tolist())).encode())
    (folder / "alpha.pam").write_bytes(
        b"P7\nWIDTH 96\nHEIGHT 72\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + pixels.tobytes()
    )
    image = pillow_heif.from_bytes("RGB", photograph.size, photograph.tobytes())
    image[0].info["exif"] = turned.tobytes()
    image.save(folder / "turned.heic")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    for name, options in _TIFF.items():
        data = pixels.transpose(2, 0, 1) if name == "planes" else pixels
        tifffile.imwrite(folder / f"{name}.tif", np.ascontiguousarray(data), photometric="rgb", **options)
    tifffile.imwrite(folder / "deep.tif", pixels.astype(np.uint16) * 257, photometric="rgb", compression="deflate")


def _write_with_profiles(folder: Path, photograph: Image.Image) -> None:
    colours, ink, grey = make_rgb_profile("p3", 1.8), make_cmyk_profile(), make_grey_profile(1.8)
    for name in ("profile.jpg", "profile.png", "profile.webp", "profile.avif"):
        photograph.save(folder / name, icc_profile=colours)
    photograph.convert("CMYK").save(folder / "ink.jpg", icc_profile=ink)
    photograph.convert("L").save(folder / "curve.png", icc_profile=grey)
    tifffile.imwrite(folder / "profile.tif", np.asarray(photograph), photometric="rgb", tile=(32, 32), iccprofile=colours)


def decode_file(_: Path, file: Path) -> None:
    """Decode as extract does with either decoder."""
    data = file.read_bytes()
    try_all(*(lambda decoder=decoder: decode_pixels(data, decoder, _MAX_PIXELS) for decoder in ("torchvision", "pillow")))


def cut_tiles(folder: Path, file: Path) -> None:
    """Cut tiles as ``extract --tile`` does."""
    (folder / "alone.txt").write_text(f"{file.name}\n")
    source = TiledSource(open_source(folder / "alone.txt"), 32, max_pixels=_MAX_PIXELS)
    for item in source.items(0, min(source.length, 12)):
        decode_item(item)
