"""CSV files: lists of images and files of labels are refused for the same reasons, in the same words."""

from pathlib import Path

import pyarrow as pa
import pytest

from densefeat.errors import UsageError
from densefeat.images.sources import open_source
from densefeat.labels.label_file import LabelFile
from support.streams import make, read_source

KEYS = ["cat/0.png", "dog/0.png", "dog/1.png"]
OPEN = "spans several lines: is a quote not closed"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("l.csv", b'path,label\ncat/0.png,"cat\ndog/0.png,dog\ndog/1.png,dog\n', f"a field of line 2 {OPEN}"),
        ("l.csv", b'path,label\ncat/0.png,cat\ndog/0.png,"dog\ndog/1.png,"dog"\n', f"a field of line 3 {OPEN}"),
        ("l.csv", b'path,label\ncat/0.png,"cat\ndog/0.png,"\ndog/1.png,dog\n', f"'label' of 'cat/0.png' {OPEN}"),
        ("l.csv", b'path,text,label\ncat/0.png,"a,cat\ndog/0.png,"b",dog\n', f"a field of line 2 {OPEN}"),
        ("l.csv", b'path,label\rcat/0.png,"cat\rdog/0.png,dog\r', f"a field of line 2 {OPEN}"),
        ("l.tsv", b'path\tlabel\ncat/0.png\t"big cat\ndog/0.png\tdog\n', f"a field of line 2 {OPEN}"),
        ("l.csv", b'label,path\ncat,"cat/0.png\ndog,dog/0.png\n', f"a field of line 2 {OPEN}"),
        ("l.csv", b'path,label,text\ncat/0.png,cat,"a cat\ndog/0.png,dog,a dog\n', f"a field of line 2 {OPEN}"),
        ("l.csv", b"", "it has no header"),
        ("l.csv", b"path;label\ncat/0.png;cat\n", "separate columns by commas in .csv, by tabs in .tsv"),
        ("l.csv", b"path\tlabel\ncat/0.png\tcat\n", "separate columns by commas in .csv, by tabs in .tsv"),
        ("l.tsv", b"path,label\ncat/0.png,cat\n", "separate columns by commas in .csv, by tabs in .tsv"),
        ("l.csv", "path,label\ncat/0.png,café\n".encode("latin-1"), r"l\.csv': line 2, byte 14: text that is not UTF-8, .*: save it as UTF-8"),
        ("l.csv", "Dateigröße,label\ncat/0.png,cat\n".encode("latin-1"), "line 1, byte 8: text that is not UTF-8, .*: save it as UTF-8"),
        ("l.csv", b"path,label\n" + b"cat/0.png,cat\n" * 200_000 + b"dog/0.png,d\xf6g\n", r"line 200,002, byte 12: text that is not UTF-8"),
        ("l.tsv", b"path\tlabel\ncat/0.png\tcat\ndog/0.png\t\x80\x81\n", "line 3, byte 11: text that is not UTF-8"),
        ("l.csv", b'path,label\ncat/0.png,"c\na\xfft"\n', "line 3, byte 2: text that is not UTF-8"),
        ("l.csv", "path,label\ncat/0.png,cat\n".encode("utf-16"), "text in UTF-16, .*: save it as UTF-8"),
        ("l.csv", "path,label\ncat/0.png,cat\n".encode("utf-16-le"), "a binary file, or text in UTF-16"),
        ("l.csv", b"Path,label\ncat/0.png,cat\n", "no column 'path', but 'Path': write 'path' there"),
        ("l.csv", b"path,label\ncat/0.png\n", "Expected 2 columns, got 1"),
    ],
)  # fmt: skip
def test_both_readers_refuse(name: str, content: bytes, match: str, tmp_path: Path) -> None:
    path = make(tmp_path, *KEYS) / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=match):
        open_source(path, label_column="label")
    with pytest.raises(UsageError, match=match):
        LabelFile(path).column("label", pa.array(KEYS, pa.large_string()))


@pytest.mark.parametrize(
    "content",
    [
        b'path,label\ncat/0.png,"cat"\ndog/0.png,dog\ndog/1.png,"dog"',
        b'path,label\ncat/0.png,"cat\n"\ndog/0.png,dog\ndog/1.png,dog\n',
        b'path,label,text\ncat/0.png,cat,"two\nlines"\ndog/0.png,dog,5" wide\ndog/1.png,dog,"two\n""lines"""\r\n',
        b'path,text,label\ncat/0.png,"two\nlines",cat\n\ndog/0.png,,dog\ndog/1.png,,dog\n',
        b"\n\npath,label,x,x\ncat/0.png,cat,1,2\ndog/0.png,dog,1,2\ndog/1.png,dog,1,2\n",
        b"path,label\rcat/0.png,cat\rdog/0.png,dog\rdog/1.png,dog\r",
    ],
)
def test_both_readers_read(content: bytes, tmp_path: Path) -> None:
    path = make(tmp_path, *KEYS) / "l.csv"
    path.write_bytes(content)
    labels = ["cat", "dog", "dog"]
    found = read_source(open_source(path, label_column="label"))
    assert found == [(key, label, key.encode()) for key, label in zip(KEYS, labels, strict=True)]
    assert LabelFile(path).column("label", pa.array(KEYS, pa.large_string())) == labels
