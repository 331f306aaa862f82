"""What GDAL writes into a GeoTIFF about its bands: their names, and what each one is."""

from typing import Any

from densefeat.images.xml_text import parse_xml

_METADATA = 42112  # tag
_MAX_NAME = 100  # characters
_NO_COLOURS = ("", "gray", "grey", "undefined", "palette")


def _read_band_items(page: Any, name: str) -> dict[int, str]:
    """Read the entries of a name, such as ``"DESCRIPTION"``, by the number of their band from 0."""
    text = page.tags.valueof(_METADATA)
    root = parse_xml(text) if isinstance(text, str) else None
    if root is None:
        return {}
    items = [item for item in root.iterfind("{*}Item") if item.get("name") == name and item.get("sample", "").isdecimal()]
    return {int(item.get("sample", "")): (item.text or "").strip()[:_MAX_NAME] for item in items}


def read_band_names(page: Any) -> tuple[str, ...]:
    """Return the names of all bands: their descriptions, else their colours; none unless every band has one of its own."""
    descriptions, colours = _read_band_items(page, "DESCRIPTION"), _read_band_items(page, "COLORINTERP")
    names = [descriptions.get(band) or colours.get(band, "") for band in range(page.samplesperpixel)]
    folded = [name.casefold() for name in names]
    if len(set(folded)) < len(folded) or any(name in _NO_COLOURS for name in folded):
        return ()
    return tuple(names)


def is_other_band(page: Any, band: int) -> bool:
    """Check whether GDAL says that a band is not transparency, whatever the tags of TIFF say."""
    return _read_band_items(page, "COLORINTERP").get(band, "Alpha").casefold() != "alpha"
