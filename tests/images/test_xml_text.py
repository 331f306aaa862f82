"""XML of metadata is parsed without entities, and not at any length."""

import pytest

from densefeat.images.xml_text import parse_xml


@pytest.mark.parametrize("text", ["<a b='1'/>", "\ufeff<a b='1'/>\0\0", '<?xml version="1.0" encoding="UTF-16"?>\n<a b="1"/>'])
def test_what_is_parsed(text: str) -> None:
    root = parse_xml(text)
    assert root is not None
    assert (root.tag, root.get("b")) == ("a", "1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "<a>",
        "<a>\ud800</a>",
        "<a>&b;</a>",
        '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<?xml version="1.0"?><!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        "<a>" + " " * 2**24 + "</a>",
    ],
)
def test_what_is_not(text: str) -> None:
    assert parse_xml(text) is None
