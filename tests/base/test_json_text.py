"""JSON that anybody may have written: what nobody means is a ValueError, which every reader of files expects."""

import json

import pytest

from densefeat.base.json_text import parse_json


def nest(opening: str, middle: str, closing: str, depth: int) -> str:
    return opening * depth + middle + closing * depth


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 200_000, "nested too deeply"),
        (nest("[", "1", "]", 200_000), "nested too deeply"),
        (nest('{"a":', "1", "}", 200_000), "nested too deeply"),
        (nest('[{"a":', "1", "}]", 300), "nested too deeply"),  # which json reads
        (nest("[", "1", "]", 101), "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        (b'{"a": "\xe9"}', "can't decode byte"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_what_is_refused(text: str | bytes, match: str) -> None:
    for content in (text, text if isinstance(text, bytes) else text.encode()):
        with pytest.raises(ValueError, match=match):
            parse_json(content)


@pytest.mark.parametrize(
    "content", [json.loads(nest("[", "1", "]", 100)), [{"a": [i]} for i in range(1000)], {"[": "{" * 1000}, None, "é", 1.5]
)
def test_what_is_read(content: object) -> None:
    text = json.dumps(content, ensure_ascii=False)
    assert parse_json(text) == parse_json(text.encode()) == content
