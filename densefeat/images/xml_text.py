"""Read small XML texts that files hold as metadata: without entities, which could grow to any size."""

from xml.etree import ElementTree

_MAX_CHARACTERS = 2**24
_DECLARATIONS = ("<!DOCTYPE", "<!ENTITY")


def parse_xml(text: str) -> ElementTree.Element | None:
    """Parse a text of XML; None where it is none, is too long, or declares entities."""
    text = text.strip("\0 \t\r\n\ufeff")
    if not text.startswith("<") or len(text) > _MAX_CHARACTERS or any(name in text for name in _DECLARATIONS):
        return None
    if text.startswith("<?xml"):  # it names an encoding, which a text that is decoded no longer has
        text = text.partition("?>")[2].strip()
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None
