"""Channels that OME-TIFF and ImageJ store as pages are the bands of one image; Z and time are images of their own."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from densefeat.errors import DecodeError
from densefeat.images.byte_cache import ByteCache
from densefeat.images.decode import decode
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.tiff import open_tiff, read_index
from densefeat.images.tiff_image import TiffImage
from support.tiffs import change

NAMES = ["DAPI", "CD45", "Ki-67"]


def raw(channels: int) -> PixelRule:
    """All channels as they are in the file."""
    return PixelRule(range="raw", in_chans=channels, channels=tuple(str(number + 1) for number in range(channels)))


RAW = raw(3)


def make_planes(*sizes: int) -> np.ndarray:
    """Values of 16 bits, all bits of which are used; the last two axes are of 40 × 70 pixels."""
    return np.random.default_rng(0).integers(0, 2**16, (*sizes, 40, 70), np.uint16)


def open_page(path: Path, page: int | None = None, rule: PixelRule = RAW) -> TiffImage:
    return open_tiff(partial(open, path, "rb"), path.name, rule=rule, page=page)


def write_ome(path: Path, pixels: np.ndarray, axes: str, names: list[str] = NAMES, **options: Any) -> Path:
    metadata = {"axes": axes, "Channel": {"Name": names}}
    tifffile.imwrite(path, pixels, ome=True, metadata=metadata, photometric="minisblack", **options)
    return path


def check_stacks(path: Path, stacks: np.ndarray, names: tuple[str, ...]) -> None:
    """Check each image of a file against samples ``(n, channels, h, w)``."""
    index = read_index(partial(open, path, "rb"))
    assert len(index.entries) == len(stacks)
    rule = raw(stacks.shape[1])
    for number, channels in enumerate(stacks, 1):
        for known in (None, index):
            image = open_tiff(partial(open, path, "rb"), "", rule=rule, page=number, index=known)
            assert image.samples.names == names
            assert not image.several
            assert np.array_equal(image.read(), channels.transpose(1, 2, 0))
        assert np.array_equal(image.region(7, 11, 50, 20, ByteCache(10**6)), channels[:, 11:31, 7:57].transpose(1, 2, 0))
    first = open_page(path, rule=rule)
    assert first.several == (len(stacks) > 1)
    assert np.array_equal(first.read(), stacks[0].transpose(1, 2, 0))


@pytest.mark.parametrize("options", [{}, {"tile": (16, 32)}, {"compression": "zlib", "predictor": 2}, {"bigtiff": True}])
def test_channels_of_ome(options: dict[str, Any], tmp_path: Path) -> None:
    pixels = make_planes(3)
    check_stacks(write_ome(tmp_path / "a.ome.tif", pixels, "CYX", **options), pixels[None], tuple(NAMES))


def test_z_and_time_of_ome_are_images_in_the_order_of_the_file(tmp_path: Path) -> None:
    for axes, order in (
        ("TZCYX", (0, 1, 2)),
        ("ZTCYX", (0, 1, 2)),
        ("TCZYX", (0, 2, 1)),
        ("CTZYX", (1, 2, 0)),
        ("CZTYX", (1, 2, 0)),
    ):
        sizes = {"T": 2, "Z": 4, "C": 3}
        pixels = make_planes(*(sizes[axis] for axis in axes[:3]))
        path = write_ome(tmp_path / "a.ome.tif", pixels, axes)
        stacks = pixels.transpose(*order, 3, 4).reshape(8, 3, 40, 70)
        check_stacks(path, stacks, tuple(NAMES))


def test_channels_of_samples(tmp_path: Path) -> None:
    """One channel of three samples is a picture."""
    pixels = make_planes(2)[..., None].repeat(3, 3)
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, ome=True, metadata={"axes": "ZYXS"}, photometric="rgb")
    first, second = open_page(tmp_path / "a.ome.tif"), open_page(tmp_path / "a.ome.tif", 2)
    assert first.samples.colours == second.samples.colours == "rgb"
    assert first.several
    assert np.array_equal(second.read(), pixels[1])


def test_several_images_of_ome(tmp_path: Path) -> None:
    """Two positions of a microscope, and the slide's label."""
    one, two, label = make_planes(2), make_planes(2) // 2, make_planes(1)[0]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(one, photometric="minisblack", metadata={"axes": "CYX"})
        writer.write(two, photometric="minisblack", metadata={"axes": "CYX"})
        writer.write(label, photometric="minisblack", metadata={"axes": "YX", "Name": "label image"})
    index = read_index(partial(open, tmp_path / "a.ome.tif", "rb"))
    assert len(index.entries) == 2
    assert np.array_equal(open_page(tmp_path / "a.ome.tif", 2, raw(2)).read(), two.transpose(1, 2, 0))


TEXT = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" SizeX="70" SizeY="40" SizeC="{c}" SizeZ="1" SizeT="1" Type="uint16">
<Channel ID="Channel:0:0" Name="DAPI"/><Channel ID="Channel:0:1" Name="{second}"/>{data}</Pixels></Image></OME>"""


def write_text(
    path: Path, pixels: np.ndarray, second: str = "CD45", c: Any = 2, data: str = "<TiffData/>", doctype: str = ""
) -> Path:
    text = TEXT.format(c=c, second=second, data=data).replace("?><OME", f"?>{doctype}<OME")
    tifffile.imwrite(path, pixels, photometric="minisblack", description=text, metadata=None)
    return path


def test_pages_are_those_that_the_elements_name(tmp_path: Path) -> None:
    pixels = make_planes(2)
    data = '<TiffData FirstC="1" IFD="0"/><TiffData FirstC="0" IFD="1" PlaneCount="1"/>'
    check_stacks(write_text(tmp_path / "a.tif", pixels, data=data), pixels[None, ::-1], ("DAPI", "CD45"))
    check_stacks(write_text(tmp_path / "a.tif", pixels, data=""), pixels[None], ("DAPI", "CD45"))
    check_stacks(write_text(tmp_path / "a.tif", pixels, second="dapi"), pixels[None], ())  # no names that tell them apart
    elsewhere = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{c}.tif">urn:uuid:{c}</UUID></TiffData>' for c in (0, 1)
    )
    path = write_text(tmp_path / "a.tif", pixels[:1], data=elsewhere)
    assert np.array_equal(open_page(path, rule=raw(1)).read(), pixels[0][..., None])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"data": '<TiffData FirstC="0" IFD="0"/>'}, "the page is missing in the file"),
        ({"c": 3}, "the page is missing in the file"),
        ({"c": "many"}, "OME-XML with SizeC 'many'"),
        ({"c": 0}, "OME-XML with planes of sizes"),
        ({"c": 2**21}, "OME-XML with planes of sizes"),
        ({"data": '<TiffData IFD="-1"/>'}, "OME-XML with IFD '-1'"),
        ({"second": "<"}, "its OME-XML, which says what the pages are, cannot be read"),
        ({"doctype": '<!DOCTYPE OME [<!ENTITY a "CD">]>'}, "its OME-XML, which says what the pages are, cannot be read"),
    ],
)  # fmt: skip
def test_a_declaration_that_does_not_fit_the_file(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tif", make_planes(2), **options)
    with pytest.raises(DecodeError, match=match):
        open_page(path)
    with pytest.raises(DecodeError, match=match):
        decode(path.read_bytes(), rule=RAW)


def test_elements_that_name_the_same_planes_without_end(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tif", make_planes(2), c=90_000, data="<TiffData/>" * 10_000)
    with pytest.raises(DecodeError, match="names its planes again and again"):
        open_page(path)


def test_channels_of_different_sizes_are_no_image(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tif", make_planes(2))
    change(path, ImageLength=39, RowsPerStrip=39, StripByteCounts=39 * 140)
    with pytest.raises(DecodeError, match="its channels are pages of different sizes or kinds"):
        open_page(path)


def test_channels_are_chosen_by_name(tmp_path: Path) -> None:
    pixels = (make_planes(3) >> 8).astype(np.uint8)
    path = write_ome(tmp_path / "a.ome.tif", pixels, "CYX")
    decoded = decode(path.read_bytes(), rule=PixelRule(channels=("ki-67", "DAPI", "CD45")))
    assert np.array_equal(np.asarray(decoded.pixels), pixels[[2, 0, 1]].transpose(1, 2, 0))
    with pytest.raises(DecodeError, match=r"3 bands \(DAPI, CD45, Ki-67\) without a word on which"):
        decode(path.read_bytes())


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_hyperstacks_of_imagej(byteorder: str, tmp_path: Path) -> None:
    pixels = make_planes(2, 4, 3)
    path = tmp_path / "a.tif"
    labels = [f"c:{c}/3 z:{z}/4 t:{t}/2 - {NAMES[c - 1]}" for t in (1, 2) for z in range(1, 5) for c in (1, 2, 3)]
    metadata = {"axes": "TZCYX", "Labels": labels, "Ranges": (0.0, 4095.0) * 3}
    tifffile.imwrite(path, pixels, imagej=True, byteorder=byteorder, metadata=metadata)
    check_stacks(path, pixels.reshape(8, 3, 40, 70), tuple(NAMES))


@pytest.mark.parametrize("rows", [40, 7])
def test_a_stack_behind_one_table(rows: int, tmp_path: Path) -> None:
    """ImageJ writes so what is larger than 4 GB."""
    pixels = make_planes(2, 3)
    text = "ImageJ=1.54f\nimages=6\nchannels=3\nslices=2\nhyperstack=true\n"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels[0, 0], description=text, metadata=None, rowsperstrip=rows, photometric="minisblack")
    with open(path, "r+b") as file:
        data = file.read()
        start = data.index(pixels[0, 0].tobytes())
        assert start + pixels[0, 0].nbytes == len(data)
        file.write(pixels.tobytes()[pixels[0, 0].nbytes :])
    check_stacks(path, pixels, ())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DecodeError, match="truncated"):
        open_page(path, 2).read()


def test_plain_stacks_of_imagej_are_images(tmp_path: Path) -> None:
    pixels = make_planes(5)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "ZYX"})
    assert len(read_index(partial(open, tmp_path / "a.tif", "rb")).entries) == 5
    image = open_page(tmp_path / "a.tif", 4, raw(1))
    assert np.array_equal(image.read(), pixels[3][..., None])


def test_the_range_for_display_is_no_range_of_values(tmp_path: Path) -> None:
    """What ImageJ records as minimum and maximum is how an image was last looked at."""
    pixels = make_planes(1)[0]
    metadata = {"axes": "YX", "min": 100.0, "max": 200.0, "Ranges": (100.0, 200.0)}
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata=metadata)
    decoded = decode((tmp_path / "a.tif").read_bytes())
    assert np.array_equal(np.asarray(decoded.pixels)[..., 0], pixels >> 8)
