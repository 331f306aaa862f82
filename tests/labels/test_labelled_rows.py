"""Labels of a store's rows, from the store or a CSV file, and remarks on what is odd about them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import densefeat
from densefeat.errors import UsageError
from densefeat.labels.label_file import LabelFile
from densefeat.labels.labelled_rows import _number_groups, format_remarks, load_labels, lone_classes
from densefeat.labels.splits import TEST, TRAIN, VAL
from densefeat.labels.targets import Targets, absent_classes
from densefeat.store.reader import Store
from support.probes import single_targets, write_probe_store

KEYS = ["a.jpg", "b.jpg", "é/c.jpg", "d, e.jpg"]


def make_store(folder: Path, labels: list[str | None] | None = None, keys: list[str] = KEYS, name: str = "s") -> Store:
    features = {"block1": np.zeros((len(keys), 2), np.float32)}
    return densefeat.open_store(write_probe_store(folder / f"{name}.parquet", labels, features, keys))


def make_csv(folder: Path, content: str | bytes) -> LabelFile:
    path = folder / "labels.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return LabelFile(path)


def test_labels_of_the_store(tmp_path: Path) -> None:
    labelled = load_labels([make_store(tmp_path, ["dog", None, "cat", " "])])
    assert labelled.targets.classes == ("cat", "dog")
    assert labelled.targets.values.tolist() == [1, 0]
    assert (labelled.rows.tolist(), labelled.paths, labelled.parts) == ([0, 2], ["a.jpg", "é/c.jpg"], None)
    assert labelled.report["without_label"] == {"count": 2, "first": ["b.jpg", "d, e.jpg"]}
    assert format_remarks(labelled.report) == [
        "2 rows with a label, single-label (the labels are names)",
        "2 rows without a label are left out: b.jpg, d, e.jpg",
    ]


def test_another_column_of_the_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="all labels are '1'"):
        load_labels([make_store(tmp_path)], column="width")
    with pytest.raises(UsageError, match="has no column 'block1', it has path, width, height"):
        load_labels([make_store(tmp_path)], column="block1")


def test_csv_is_matched_by_path(tmp_path: Path) -> None:
    file = make_csv(
        tmp_path, '\ufeffname,path,label\nx,./b.jpg,dog\ny,a.jpg,"cat"\nz,"d, e.jpg", cat \nz,"d, e.jpg",cat\nq,no.jpg,cow\n'
    )
    labelled = load_labels([make_store(tmp_path, ["never"] * 4)], file)
    assert labelled.paths == ["a.jpg", "b.jpg", "d, e.jpg"]
    assert [labelled.targets.classes[code] for code in labelled.targets.values] == ["cat", "dog", "cat"]
    assert labelled.report["without_label"] == {"count": 1, "first": ["é/c.jpg"]}
    assert labelled.report["labels_without_row"] == {"count": 1, "first": ["no.jpg"]}
    assert labelled.report["repeated_lines"] == 1
    lines = format_remarks(labelled.report)
    assert "1 labels have no row: no.jpg" in lines
    assert "1 lines of the labels repeat others" in lines
    assert load_labels([make_store(tmp_path)], file, "name").targets.classes == ("x", "y", "z")


def test_tab_separated(tmp_path: Path) -> None:
    (tmp_path / "l.tsv").write_text("path\tlabel\na.jpg\t1\nb.jpg\t10\né/c.jpg\t9\n", encoding="utf-8")
    labelled = load_labels([make_store(tmp_path)], LabelFile(tmp_path / "l.tsv"))
    assert labelled.targets.classes == ("1", "9", "10")


def test_numbers_and_several_labels(tmp_path: Path) -> None:
    labelled = load_labels([make_store(tmp_path, ["1.5", "2", None, "-3e-2"])])
    assert (labelled.targets.task, labelled.targets.values.tolist()) == ("regression", [1.5, 2, -0.03])
    assert load_labels([make_store(tmp_path, ["1.5", "2", None, "3"])], task="single").targets.classes == ("1.5", "2", "3")
    labelled = load_labels([make_store(tmp_path, ["a|b", "a", "|", None])])
    assert (labelled.targets.task, labelled.targets.values.tolist()) == ("multi", [[True, True], [True, False], [False, False]])
    assert labelled.report["task_from"] == "some labels have a |"


def test_two_stores_share_their_classes(tmp_path: Path) -> None:
    first = make_store(tmp_path, ["b", "a", "b", None])
    second = make_store(tmp_path, ["c", "a"], ["x.jpg", "y.jpg"], "t")
    labelled = load_labels([first, second])
    assert labelled.targets.classes == ("a", "b", "c")
    assert labelled.rows.tolist() == [0, 1, 2, 4, 5]
    file = make_csv(tmp_path, "path,label\na.jpg,1\nx.jpg,2\n")
    labelled = load_labels([first, second], file)
    assert (labelled.rows.tolist(), labelled.report["labels_without_row"]["count"]) == ([0, 4], 0)


def test_split_and_group_columns(tmp_path: Path) -> None:
    lines = 'path,label,part,patient\na.jpg,1,train,p\nb.jpg,2,TEST,q\né/c.jpg,1,val,p\n"d, e.jpg",2,validation,\n'
    labelled = load_labels([make_store(tmp_path)], make_csv(tmp_path, lines), split_column="part", group_column="patient")
    assert labelled.parts is not None
    assert labelled.parts.tolist() == [0, 2, 1, 1]
    assert labelled.groups[0] == labelled.groups[2]
    assert len(set(labelled.groups.tolist())) == 3


def test_columns_of_the_store_beside_a_csv(tmp_path: Path) -> None:
    file = make_csv(tmp_path, "path,name\na.jpg,1\nb.jpg,2\n")
    labelled = load_labels([make_store(tmp_path, ["train", "test", "test", "test"])], file, "name", split_column="label")
    assert labelled.parts is not None
    assert (labelled.targets.classes, labelled.parts.tolist()) == (("1", "2"), [0, 2])
    with pytest.raises(UsageError, match="has no column 'part', it has path, width, height$"):
        load_labels([make_store(tmp_path)], file, "name", split_column="part")


def test_rows_of_a_path_are_one_group() -> None:
    assert _number_groups(["a", "b", "a", "c"], None).tolist() == [0, 1, 0, 2]
    members = _number_groups(["a", "b", "a", "c", "d", "e"], ["p", "q", "q", None, None, "p"])
    assert len({members[i] for i in (0, 1, 2, 5)}) == 1  # a joins p and q
    assert len(set(members.tolist())) == 3


def test_classes_of_one_image() -> None:
    train = np.full(5, TRAIN)
    assert lone_classes(single_targets([0, 0, 1, 2, 2]), np.arange(5), train) == ["class 1"]
    assert lone_classes(single_targets([0, 0, 1, 2, 2]), np.array([0, 1, 2, 3, 3]), train) == ["class 1", "class 2"]
    for part in (VAL, TEST):
        assert lone_classes(single_targets([0, 0, 1, 2, 2]), np.arange(5), np.array([0, 0, part, 0, 0])) == []
    multi = Targets("multi", ("a", "b"), np.array([[1, 0], [1, 1]], bool))
    assert lone_classes(multi, np.arange(2), train[:2]) == ["b"]
    assert lone_classes(multi, np.arange(2), np.array([TRAIN, TEST])) == []
    assert lone_classes(Targets("regression", (), np.zeros(2)), np.arange(2), train[:2]) == []
    assert absent_classes(single_targets([0, 2], 3)) == ["class 1"]
    assert absent_classes(multi.take(np.array([0]))) == ["b"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it has no header: the first line names the columns"),
        (b"\n\n", "it has no header"),
        (b"a.jpg,cat\nb.jpg,dog\n", "no column 'path': it has a.jpg, cat"),
        (b"path,path\na,b\n", "more than one column 'path'"),
        (b"\x89PNG\0\0path,\n\0", "a binary file"),
        ("path,label\na.jpg,b\n".encode("utf-16"), "text in UTF-16, .*: save it as UTF-8"),
        ("path,label\na.jpg,café\n".encode("latin-1"), "text that is not UTF-8, .*: save it as UTF-8"),
        (b"path,label\na.jpg,1,2\n", "Expected 2 columns, got 3: a.jpg,1,2"),
        (b"path,label\na.jpg\n", "Expected 2 columns, got 1"),
        (b"x" * 500 + b",y\n1,2\n", "no column 'path': it has x{100,}…$"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        make_csv(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"labels '{tmp_path}/labels.csv': ")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("path,name\na.jpg,x\n", "no column 'label', only path, name"),
        ("path,label\na.jpg,1\nb.jpg,2\na.jpg,3\n", "'a.jpg' has two values of 'label', '1' and '3'"),
        ("path,label\na.jpg,\na.jpg,3\n", "'a.jpg' has two values of 'label', None and '3'"),
        ('path,label\na.jpg,"cat\nb.jpg,dog\n', "a field of line 2 spans several lines: is a quote not closed"),
        ("path,label\nno.jpg,1\n", r"no path in it is a row of .*; the file has 'no.jpg', the rows have 'a.jpg'"),
        ("path,label\n", "the file has 'nothing', the rows have 'a.jpg'"),
        ("path,label\na.jpg,1.5\nb.jpg,x\n", None),
    ],
)
def test_unusable_labels(tmp_path: Path, content: str, match: str | None) -> None:
    if match is None:
        with pytest.raises(UsageError, match="label 'x' of 'b.jpg' is not a finite number"):
            load_labels([make_store(tmp_path)], make_csv(tmp_path, content), task="regression")
        return
    with pytest.raises(UsageError, match=match):
        load_labels([make_store(tmp_path)], make_csv(tmp_path, content))


@pytest.mark.parametrize(("value", "shown"), [("train ing", "'train ing'"), ("", "None")])
def test_unknown_part_names(tmp_path: Path, value: str, shown: str) -> None:
    file = make_csv(tmp_path, f"path,label,part\na.jpg,1,train\nb.jpg,2,{value}\n")
    with pytest.raises(UsageError, match=f"'part' of 'b.jpg' is {shown}: it must be train, val or test"):
        load_labels([make_store(tmp_path)], file, split_column="part")


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no such file; give a CSV file"):
        LabelFile(tmp_path / "no.csv")
    with pytest.raises(UsageError, match="a folder; give a CSV file"):
        LabelFile(tmp_path)
    monkeypatch.setattr("densefeat.labels.label_file._MAX_BYTES", 10)
    with pytest.raises(UsageError, match="more than 10 bytes"):
        make_csv(tmp_path, "path,label\na.jpg,1\n")


def test_unusable_stores(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no column 'label', it has path, width, height: give --labels FILE.csv"):
        load_labels([make_store(tmp_path)])
    with pytest.raises(UsageError, match="its column 'label' is empty; give --labels"):
        load_labels([make_store(tmp_path, [None] * 4)])
    with pytest.raises(UsageError, match="has no rows to learn from"):
        load_labels([make_store(tmp_path, [], [])])
    with pytest.raises(UsageError, match="task 'some': choose one of auto, single, multi, regression"):
        load_labels([make_store(tmp_path, ["a"] * 4)], task="some")


def test_paths_are_matched_as_the_store_has_them(tmp_path: Path) -> None:
    file = make_csv(tmp_path, "path,label\na//b.jpg,1\n")
    assert file.column("label", pa.array(["a/b.jpg", "b.jpg"], pa.large_string())) == ["1", None]
