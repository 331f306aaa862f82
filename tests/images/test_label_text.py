"""The text of labels: programs write byte order marks, NULs and blanks around it, which are no part of a class's name."""

import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat.images.label_text import clean_label, clean_labels
from densefeat.images.sources import open_source
from support.streams import make

TEXTS = [
    ("cat", "cat"),
    (" dog\t", "dog"),
    ("\ufeffcat\r\n", "cat"),
    ("dog\0\0", "dog"),
    (" \ufeff \0grey seal\n\0", "grey seal"),
    ("\u3000caf\u00e9\u00a0", "caf\u00e9"),
    ("a\0b", "a\0b"),
    (" \ufeff\0", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "label"), TEXTS)
def test_what_is_around_a_label(text: str, label: str | None) -> None:
    assert clean_label(text) == label
    assert clean_labels(pa.array([text, None])).to_pylist() == [label, None]


@pytest.mark.parametrize("kind", ["list.csv", "list.tsv", "list.parquet", "images.parquet", "x.tar"])
def test_every_input_has_the_same_labels(kind: str, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(len(TEXTS))]
    texts = [text for text, _ in TEXTS]
    path = make(tmp_path, *names) / kind
    if path.suffix in (".csv", ".tsv"):
        comma = "," if path.suffix == ".csv" else "\t"
        lines = [f'{name}{comma}"{text}"\n' for name, text in zip(names, texts, strict=True)]
        path.write_bytes("".join([f"path{comma}label\n", *lines]).encode())
    elif kind == "x.tar":
        with tarfile.open(path, "w") as tar:
            for number, text in enumerate(texts):
                for name, data in ((f"{number}.png", b"x"), (f"{number}.label", text.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
    else:
        images = pa.array([b"x"] * len(names), pa.binary())
        pq.write_table(
            pa.table({"image": images} if kind == "images.parquet" else {"path": names}).append_column("label", [texts]), path
        )
    source = open_source(path, label_column="label")
    assert source.label_values().to_pylist() == [label for _, label in TEXTS]
