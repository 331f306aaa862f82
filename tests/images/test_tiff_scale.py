"""Microns a pixel, as each kind of file states them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from densefeat.images.tiff_scale import read_pixel_size

APERIO = (
    "Aperio Image Library v11.2.1\r\n46000x32914 [0,100 46000x32814] (256x256) JPEG/RGB Q=30|AppMag = 20|MPP = {}|Left = 25.69"
)
PHILIPS = (
    '<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028"'
    ' Element="0x0030" PMSVR="IDoubleArray">"0.000908" "0.000908"</Attribute><Attribute Name="DICOM_PIXEL_SPACING"'
    ' Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">"0.000226891" "0.000226907"</Attribute></DataObject>'
)
OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" SizeX="8" SizeY="8" SizeC="1" SizeZ="1" SizeT="1" Type="uint8" {}>'
    "<TiffData/></Pixels></Image></OME>"
)
NONE: dict[str, Any] = {"resolution": (72, 72), "resolutionunit": "inch"}  # what programs write that know no better


def read(path: Path, **options: Any) -> tuple[float, float] | None:
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), **{"metadata": None, **options})
    with tifffile.TiffFile(path) as tiff:
        return read_pixel_size(tiff, tiff.pages.first)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"description": APERIO.format("0.4990"), **NONE}, 0.499),
        ({"description": APERIO.format("?"), **NONE}, None),
        ({"description": "Aperio Image Library v10", **NONE}, None),
        ({"description": PHILIPS, **NONE}, 0.226891),
        ({"description": OME.format('PhysicalSizeX="0.65" PhysicalSizeY="0.65"'), **NONE}, 0.65),
        ({"description": OME.format('PhysicalSizeX="325" PhysicalSizeXUnit="nm"'), **NONE}, 0.325),
        ({"description": OME.format('PhysicalSizeX="0.002" PhysicalSizeXUnit="mm"'), **NONE}, 2),
        ({"description": OME.format('PhysicalSizeX="3" PhysicalSizeXUnit="pixel"'), **NONE}, None),
        ({"description": OME.format(""), **NONE}, None),
        ({"resolution": (20_000, 20_000), "resolutionunit": "centimeter"}, 0.5),
        ({"resolution": (25_400, 25_400), "resolutionunit": "inch"}, 1),
        ({"resolution": (20_000, 20_000), "resolutionunit": "none"}, None),
        ({"resolution": (0, 1), "resolutionunit": "centimeter"}, None),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, 0.25),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "mm"}}, 500),
        ({"imagej": True, "resolution": (2, 2), "metadata": {"unit": "pixel"}}, None),
        ({"resolution": (20_000, 10_000), "resolutionunit": "centimeter"}, (0.5, 1)),
        ({"description": OME.format('PhysicalSizeX="0.65" PhysicalSizeY="2"')}, (0.65, 2)),
    ],
)
def test_kinds(options: dict[str, Any], size: float | tuple[float, float] | None, tmp_path: Path) -> None:
    expected = (size, size) if isinstance(size, int | float) else size
    assert read(tmp_path / "a.tif", **options) == (expected and pytest.approx(expected, rel=1e-4))
