"""YAML that others wrote: no aliases, and no deep nesting."""

from pathlib import Path

import pytest
import yaml

from densefeat.base import PlainLoader, read_yaml

BOMB = "a: &a [x, x]\n" + "".join(f"{name}: &{name} [*{last}, *{last}]\n" for last, name in zip("abcde", "bcdef", strict=True))


@pytest.mark.parametrize("text", ["{}", "a: [1, {b: 2e3}]", "a: &name 1", "- x\n- null", "[" * 20 + "]" * 20])
def test_plain_values(text: str) -> None:
    assert yaml.load(text, PlainLoader) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB, "aliases are not read"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "aliases are not read"),
        ("a: &a [*a]", "aliases are not read"),
        ("[" * 22 + "]" * 22, "lists and mappings in more than 20 levels"),
        ("[" * 10**5, "lists and mappings in more than 20 levels"),
        ("".join(" " * level + "a:\n" for level in range(22)), "lists and mappings in more than 20 levels"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_other_text(text: str, match: str) -> None:
    with pytest.raises(yaml.YAMLError, match=match):
        yaml.load(text, PlainLoader)


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"#" * 2**20 + b"\n", "1,048,577 bytes: at most 1,048,576 are read"), (b"a: \xe9", "can't decode byte")],
)
def test_files_that_are_not_read(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_yaml(tmp_path / "a.yaml")
