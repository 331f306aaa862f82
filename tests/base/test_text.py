"""Other people's text on a terminal."""

import pytest

from densefeat.base.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 象.jpg", "größe 象.jpg"),
        ("\x1b[2Jred\r\n.jpg", r"\x1b[2Jred\r\n.jpg"),
        ("\u202egpj\x07", r"\u202egpj\x07"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
