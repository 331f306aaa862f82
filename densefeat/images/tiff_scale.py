"""The size in microns of a pixel of a TIFF's image, wherever its kind of file says it."""

import re
from math import isfinite
from typing import Any

from densefeat.images.xml_text import parse_xml

_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _METAMORPH = 282, 283, 296, 33628  # tags
_UNITS = {2: 25_400.0, 3: 10_000.0}  # microns, by TIFF's number: inch and centimetre
_NAMED_UNITS = {  # microns
    "nm": 1e-3, "nanometer": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "inch": 25_400.0, "in": 25_400.0,
}  # fmt: skip
_APERIO = re.compile(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)")
_PHILIPS = re.compile(r"DICOM_PIXEL_SPACING[^<]*?>\s*(?:&quot;|\")([0-9.eE+-]+)(?:&quot;|\")\s*(?:&quot;|\")([0-9.eE+-]+)")


def read_pixel_size(tiff: Any, page: Any) -> tuple[float, float] | None:
    """Return width and height of a pixel of a page of a TIFF, in microns; None where the file does not say."""
    first = tiff.pages.first
    text = first.description
    if text.startswith("Aperio"):
        return _check(_parse(_APERIO, text))
    if first.is_ome:
        return _read_ome(text)
    if "DICOM_PIXEL_SPACING" in text:
        spacings = [tuple(map(float, found)) for found in _PHILIPS.findall(text)]  # of all levels: of the finest, millimetres
        return _check([1000 * length for length in min(spacings)]) if spacings else None
    if tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
        return _read_resolution(page, _NAMED_UNITS.get(unit.casefold()))
    if metamorph := _read_metamorph(first):
        return _check(metamorph)
    return _read_resolution(page, _UNITS.get(page.tags.valueof(_RESOLUTION_UNIT, 2)))


def _check(lengths: list[float]) -> tuple[float, float] | None:
    """Return width and height, of which a file may give one alone; None where there is no number that can be meant."""
    if not lengths or not all(isfinite(length) and length > 0 for length in lengths):
        return None
    return lengths[0], lengths[-1]


def _parse(pattern: re.Pattern[str], text: str) -> list[float]:
    match = pattern.search(text)
    try:
        return [float(number) for number in match.groups()] if match else []
    except ValueError:
        return []


def _read_ome(text: str) -> tuple[float, float] | None:
    root = parse_xml(text)
    pixels = None if root is None else root.find("{*}Image/{*}Pixels")
    if pixels is None:
        return None
    lengths = []
    for axis in ("X", "Y"):
        unit = _NAMED_UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            size = float(pixels.get(f"PhysicalSize{axis}", ""))
        except ValueError:
            continue
        if unit is None:
            return None
        lengths.append(unit * size)
    return _check(lengths)


def _read_metamorph(page: Any) -> list[float]:
    values = page.tags.valueof(_METAMORPH)
    if not isinstance(values, dict) or not values.get("SpatialCalibration"):
        return []
    unit = _NAMED_UNITS.get(str(values.get("CalibrationUnits")).casefold())
    sizes = [values.get(name) for name in ("XCalibration", "YCalibration")]
    return [unit * float(size) for size in sizes if isinstance(size, int | float)] if unit else []


def _read_resolution(page: Any, unit: float | None) -> tuple[float, float] | None:
    """Return width and height of a pixel by TIFF's pixels a unit. ``unit``: its microns; None: it has none."""
    lengths = []
    for tag in (_X_RESOLUTION, _Y_RESOLUTION):
        value = page.tags.valueof(tag)
        if unit is None or not isinstance(value, tuple) or len(value) != 2 or not all(value):
            return None
        lengths.append(unit * value[1] / value[0])
    return _check(lengths)
