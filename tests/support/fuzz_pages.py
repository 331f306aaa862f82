"""Small files of several pages, channels and scales, and their reader, for fuzzing."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from sklearn.datasets import load_sample_image

from densefeat.images import PagedSource, TiledSource, open_source
from densefeat.images.pixel_rule import PixelRule
from support.fuzz_inputs import decode_item, try_all

_MAX_PIXELS = 2**22
_ITEMS = 12
_SCALED = ("slide.svs", "subfiles.tif", "a.ome.tif", "imagej.tif")
_BANDS = PixelRule(channels=("1", "2", "1"))


def write_files_of_pages(folder: Path) -> None:
    photograph = load_sample_image("china.jpg")[100:196, 200:296]
    grey = np.stack([photograph[..., 0], photograph[..., 1]] * 2)
    plain: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(folder / "slide.svs") as writer:
        text = "Aperio Image Library v11.2.1\r\n96x96 (32x32) JPEG/RGB|AppMag = 20|MPP = 0.25"
        writer.write(photograph, tile=(32, 32), description=text, **plain)
        writer.write(np.ascontiguousarray(photograph[::2, ::2]), tile=(32, 32), **plain)
    scale = {"resolution": (40_000, 40_000), "resolutionunit": "centimeter"}
    with tifffile.TiffWriter(folder / "subfiles.tif") as writer:
        for page in (photograph, photograph[::-1]):
            writer.write(np.ascontiguousarray(page), tile=(32, 32), subifds=1, **scale, **plain)
            writer.write(np.ascontiguousarray(page[::2, ::2]), tile=(32, 32), subfiletype=1, **plain)
    channels = {"axes": "ZCYX", "Channel": {"Name": ["DAPI", "CD45"]}, "PhysicalSizeX": 0.25}
    tifffile.imwrite(folder / "a.ome.tif", grey.reshape(2, 2, 96, 96), ome=True, photometric="minisblack", metadata=channels)
    labels = {"axes": "ZCYX", "unit": "um", "Labels": ["DAPI", "CD45"] * 2}
    tifffile.imwrite(folder / "imagej.tif", grey.reshape(2, 2, 96, 96), imagej=True, resolution=(4, 4), metadata=labels)
    items = "".join(f'<Item name="DESCRIPTION" sample="{band}" role="description">B{band}</Item>' for band in range(4))
    tags = [(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)]
    tifffile.imwrite(folder / "geo.tif", grey, photometric="minisblack", planarconfig="separate", extratags=tags, metadata=None)
    frames = [Image.fromarray(np.roll(photograph, 20 * number, axis=0)) for number in range(4)]
    for suffix in ("gif", "webp", "png"):
        frames[0].save(folder / f"frames.{suffix}", save_all=True, append_images=frames[1:])


def read_pages(folder: Path, file: Path) -> None:
    """Read all pages, whole and as tiles of a scale, as extract does."""
    (folder / "alone.txt").write_text(f"{file.name}\n")
    mpp = 0.5 if file.name in _SCALED else None

    def read(tile: int | None) -> None:
        pages = PagedSource(open_source(folder / "alone.txt"), "all", _MAX_PIXELS)
        source = pages if tile is None else TiledSource(pages, tile, max_pixels=_MAX_PIXELS, mpp=mpp)
        for item in source.items(0, min(source.length or 0, _ITEMS)):
            decode_item(item)
            try_all(lambda item=item: item.decode("pillow", _MAX_PIXELS, _BANDS))

    try_all(lambda: read(None), lambda: read(32))
