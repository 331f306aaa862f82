"""Labelled images of every layout: which classes, in which order, and reading one by its position."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchvision.datasets import ImageFolder

from densefeat.errors import DecodeError, UsageError
from densefeat.images.sources import open_source
from densefeat.images.tables import RowGroupReader
from densefeat.labels.labelled_rows import load_labels
from densefeat.labels.listing import ListedImages
from densefeat.training.labelled import EncodedImages, open_labelled

MakeFolder = MakeParquet = MakeTar = Callable[..., Path]
COUNTS = {"zebra": 3, "Ant": 2, "bee": 4}


def open_encoded(path: object, **options: object) -> EncodedImages:
    images = open_labelled(str(path), train=True, **options)  # type: ignore[arg-type]
    assert isinstance(images, EncodedImages)
    assert images.labels.dtype == np.int64
    return images


def list_labels(images: EncodedImages) -> list[str | None]:
    return [images.classes[label] if label >= 0 else None for label in images.labels]


def read_images(images: EncodedImages, positions: range | list[int]) -> list[bytes | str]:
    """Read images with one reader; for one that cannot be read, the reason."""
    reader, outcomes = images.reader(), list[bytes | str]()
    for position in positions:
        try:
            outcomes.append(reader.read(position))
        except DecodeError as error:
            assert error.stage == "read"
            outcomes.append(str(error))
    return outcomes


def assert_random_access(images: EncodedImages, seed: int = 0) -> None:
    """Check images read in any order, from a copy as workers have it, against the stream; and the keys."""
    count = len(images.labels)
    stream = [(item.key, item.read()) for item in images.source.items(0, count)]
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(count), 2)).tolist()
    assert read_images(pickle.loads(pickle.dumps(images)), order) == [stream[position][1] for position in order]
    assert [images.key(position) for position in range(count)] == [key for key, _ in stream]


def test_a_folder_of_classes_has_the_order_of_torchvision(make_folder: MakeFolder) -> None:
    folder = make_folder(COUNTS)
    images, theirs = open_encoded(folder), ImageFolder(folder)
    assert images.classes == theirs.classes == ["Ant", "bee", "zebra"]
    assert [os.path.relpath(path, folder) for path, _ in theirs.samples] == [images.key(i) for i in range(9)]
    assert images.labels.tolist() == theirs.targets
    assert images.groups is None
    assert_random_access(images)


def test_classes_that_are_numbers_are_sorted_by_value(make_folder: MakeFolder) -> None:
    assert open_encoded(make_folder({str(i): 1 for i in range(12)})).classes == [str(i) for i in range(12)]
    assert open_encoded(make_folder({"2": 1, "10": 1, "x": 1}, "mixed")).classes == ["10", "2", "x"]


def test_files_beside_the_folders_have_no_label(make_folder: MakeFolder, pngs: list[bytes]) -> None:
    folder = make_folder(COUNTS)
    (folder / "M.png").write_bytes(pngs[0])
    images = open_encoded(folder)
    assert list_labels(images) == ["Ant"] * 2 + [None] + ["bee"] * 4 + ["zebra"] * 3
    assert images.key(2) == "M.png"


def test_classes_of_the_training_data(make_folder: MakeFolder, make_parquet: MakeParquet) -> None:
    train = open_encoded(make_folder(COUNTS)).classes
    val = open_encoded(make_folder({"zebra": 1, "bee": 2}, "val"), classes=train)
    assert (val.classes, val.labels.tolist()) == (train, [1, 1, 2])
    other_order = make_parquet("val.parquet", [0, 1, 2], ["zebra", "bee", "Ant"])
    assert open_encoded(other_order, classes=train).labels.tolist() == [2, 1, 0]
    message = r"val2': label 'cat' is not one of the 3 known classes, "
    with pytest.raises(UsageError, match=message):
        open_encoded(make_folder({"bee": 1, "cat": 1}, "val2"), classes=train)


def test_parquet_keeps_the_order_of_its_classes(make_parquet: MakeParquet) -> None:
    names = ["dog", "cat", "unused", "ant"]
    path = make_parquet("x.parquet", [3, 1, 0, None, -1, 1], names, row_group_size=4)
    images = open_encoded(path)
    assert images.classes == names
    assert images.labels.tolist() == [3, 1, 0, -1, -1, 1]
    assert images.groups is not None
    assert images.groups.tolist() == [4, 2]
    assert_random_access(images)


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        (["b", None, "a", "b"], ["a", "b"], [1, -1, 0, 1]),
        ([10, 9, None, 9], ["9", "10"], [1, 0, -1, 0]),
        ([True, False, True, None], ["false", "true"], [1, 0, 1, -1]),
    ],
)
def test_parquet_without_class_names(labels: list, classes: list[str], codes: list[int], make_parquet: MakeParquet) -> None:
    images = open_encoded(make_parquet("x.parquet", labels))
    assert (images.classes, images.labels.tolist()) == (classes, codes)


def test_parquet_with_another_column_of_labels(make_parquet: MakeParquet) -> None:
    path = make_parquet("x.parquet", [1, 0], ["apple", "pear"], column="fine_label")
    assert list_labels(open_encoded(path, label_column="fine_label")) == ["pear", "apple"]
    with pytest.raises(UsageError, match="no column 'label': it has image, fine_label"):
        open_encoded(path)


def test_shards_one_of_them_damaged(make_parquet: MakeParquet, tmp_path: Path) -> None:
    names = ["a", "b"]
    for i in range(4):
        make_parquet(f"s-{i}.parquet", [i % 2] * 3, names, first=3 * i, row_group_size=2)
    damaged = tmp_path / "s-1.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    images = open_encoded(tmp_path / "s-?.parquet")
    assert images.labels.tolist() == [0, 0, 0, -1, 0, 0, 0, 1, 1, 1]
    assert images.groups is not None
    assert images.groups.tolist() == [2, 1, 1, 2, 1, 2, 1]
    outcomes = read_images(images, [9, 3, 0, 3, 4])
    assert [type(outcome) for outcome in outcomes] == [bytes, str, bytes, str, bytes]
    assert str(outcomes[1]).startswith("not a Parquet file, or damaged: ")
    assert [images.key(i) for i in (0, 3, 4)] == ["s-0.parquet#0", "s-1.parquet", "s-2.parquet#0"]
    some = open_encoded(tmp_path / "s-{2..3}.parquet")
    assert some.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert_random_access(some)


def test_row_groups_without_rows(pngs: list[bytes], tmp_path: Path) -> None:
    table = pa.table({"image": pngs[:5], "label": list("ababa")})
    with pq.ParquetWriter(tmp_path / "x.parquet", table.schema) as writer:
        for start, stop in ((0, 0), (0, 2), (2, 2), (2, 5), (5, 5)):
            writer.write_table(table.slice(start, stop - start))
    images = open_encoded(tmp_path / "x.parquet")
    assert sum(images.groups.tolist()) == 5  # type: ignore[union-attr]
    assert read_images(images, [4, 2, 0, 1, 3]) == [pngs[i] for i in (4, 2, 0, 1, 3)]


def test_tars_with_labels_beside_the_images(make_tar: MakeTar, pngs: list[bytes], tmp_path: Path) -> None:
    members = [("a/1.cls", b"10\n"), ("a/1.png", pngs[0]), ("a/2.png", pngs[1]), ("a/2.cls", b"9"), ("a/3.png", pngs[2])]
    make_tar("x-0.tar", members)
    make_tar("x-1.tar", [("b.png", pngs[3]), ("b.cls", b"9"), ("b.txt", b"nine")])
    images = open_encoded(tmp_path / "x-{0..1}.tar")
    assert (images.classes, images.labels.tolist()) == (["9", "10"], [1, 0, -1, 0])
    assert images.groups is None
    assert_random_access(images)
    assert list_labels(open_encoded(tmp_path / "x-*.tar", label_column="txt")) == [None] * 3 + ["nine"]


def test_lists_and_saved_data_sets(make_folder: MakeFolder, pngs: list[bytes], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = [str(path.relative_to(tmp_path)) for path in sorted(make_folder({"x": 3}).rglob("*.png"))]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{name},{name[-5]}\n" for name in names))
    images = open_encoded(tmp_path / "list.csv")
    assert images.classes == sorted(name[-5] for name in names)
    assert_random_access(images)

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    rows = {"image": [{"bytes": png, "path": None} for png in pngs[:40]], "label": [i % 2 for i in range(40)]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
    images = open_encoded(tmp_path / "saved")
    assert (images.classes, images.labels.tolist(), images.groups) == (["b", "a"], [0, 1] * 20, None)
    assert_random_access(images)


@pytest.mark.parametrize(
    ("folders", "train", "splits", "wanted"),
    [
        (["train", "val", "test"], True, (), "train"),
        (["Train", "Val"], True, (), "Train"),
        (["train", "val", "test"], False, (), "test"),
        (["train", "val", "test"], False, ("val", "test"), "val"),
        (["training", "dev"], False, (), "dev"),
        (["train", "testing"], False, ("val", "test"), "testing"),
    ],
)
def test_a_folder_of_splits(
    folders: list[str], train: bool, splits: tuple[str, ...], wanted: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    for folder in folders:
        make_folder({"b": 2, "a": 1}, f"in/{folder}")
    images = open_labelled(str(tmp_path / "in"), train, splits=splits)
    assert isinstance(images, EncodedImages)
    assert (images.place, images.classes) == (str(tmp_path / "in" / wanted), ["a", "b"])
    assert [images.key(i) for i in range(3)] == ["a/000.png", "b/000.png", "b/001.png"]


def test_a_folder_of_splits_without_the_wanted_one(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder({"a": 1, "b": 1}, "in/train")
    with pytest.raises(UsageError, match="in' holds splits, but no test or val: name the folder to use, such as '.*in/train'"):
        open_labelled(str(tmp_path / "in"), train=False)


def test_a_bar_in_the_name_of_a_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder({"a|b": 2, "c": 1})
    assert open_encoded(folder, task="auto").classes == ["a|b", "c"]
    (tmp_path / "list.csv").write_text("path,label\nin/a|b/000.png,a|b\nin/c/000.png,c\n")
    assert open_labelled(str(tmp_path / "list.csv"), True, task="auto").classes == ["a", "b", "c"]
    (tmp_path / "list.csv").write_text("path,label\na|b/000.png,a|b\nc/000.png,c\n")  # folders again
    images = open_labelled(str(tmp_path / "list.csv"), True, task="auto", base=str(folder))
    assert (images.task, images.classes) == ("single", ["a|b", "c"])


def test_lines_that_repeat_others(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder({"x": 3})
    lines = ["in/x/000.png,a", "in/x/001.png,b", "./in/x/000.png,a", "in/x/002.png, b "]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    images = open_encoded(tmp_path / "list.csv")
    assert (images.classes, images.labels.tolist(), images.repeats.tolist()) == (["a", "b"], [0, 1, -1, 1], [2])
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines, "in/x/001.png,c"]))
    message = (
        r"list.csv': 'in/x/001.png' has two values of 'label', 'b' and 'c': several labels of an image go into one line, b\|c"
    )
    with pytest.raises(UsageError, match=message):
        open_encoded(tmp_path / "list.csv")


def test_words_for_missing_values_and_numbers_as_tables_write_them(make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder({"x": 4})

    def read(*labels: str, **options: object) -> EncodedImages:
        lines = [f"in/x/{i:03}.png,{label}" for i, label in enumerate(labels)]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
        return open_encoded(tmp_path / "list.csv", **options)

    assert list_labels(read("NA", "null", "", "nan")) == ["NA", "null", None, "nan"]
    assert read("1.0", "2.0", "", "1.0", classes=["1", "2", "3"]).labels.tolist() == [0, 1, -1, 0]
    assert read("1", "2", "2", "1", classes=["1.0", "2.0"]).labels.tolist() == [0, 1, 1, 0]
    assert read("1.0", "2.0", "", "1.0").classes == ["1.0", "2.0"]
    with pytest.raises(UsageError, match="label '4' is not one of the 2 known classes"):
        read("1", "4", "", "", classes=["1.0", "2.0"])


def test_lists_from_windows_and_lists_that_lie_elsewhere(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder({"cat": 2, "dog": 1})
    (tmp_path / "list.csv").write_text("path,label\nin\\cat\\000.png,cat\nin\\none.png,cat\nin\\dog\\000.png,dog\n")
    images = open_encoded(tmp_path / "list.csv")
    assert [images.key(i) for i in range(3)] == ["in/cat/000.png", "in/none.png", "in/dog/000.png"]
    assert [type(outcome) for outcome in read_images(images, range(3))] == [bytes, str, bytes]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list.csv").write_text("path,label\ncat\\000.png,cat\n../out.png,cat\n")
    images = open_encoded(tmp_path / "lists/list.csv", base=str(folder))
    assert [type(outcome) for outcome in read_images(images, range(2))] == [bytes, str]
    (folder / "cat\\000.png").write_bytes((folder / "cat/001.png").read_bytes())
    images = open_encoded(tmp_path / "lists/list.csv", base=str(folder))
    assert images.key(0) == "cat\\000.png"  # a file that is there


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", {}, "nowhere': no such folder or file"),
        ("flat", {}, "flat': no image with a label in it: labels are folders"),
        ("flat", {"label_column": "label"}, "label_column 'label' is not for a folder of images"),
        ("none.parquet", {}, "none.parquet': no image with a label in it: labels are folders"),
        ("far.parquet", {}, "far.parquet': label '7' is not one of the 2 known classes"),
        ("none.tar", {}, "none.tar': no member with the extension 'cls' is named like an image: there are png"),
    ],
)
def test_inputs_without_usable_labels(
    name: str, options: dict, message: str, make_parquet: MakeParquet, make_tar: MakeTar, pngs: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/a.png").write_bytes(pngs[0])
    make_parquet("none.parquet", pa.nulls(2, pa.int64()), ["a", "b"])
    make_parquet("far.parquet", [0, 7], ["a", "b"])
    make_tar("none.tar", [("a.png", pngs[0])])
    with pytest.raises(UsageError, match=message):
        open_encoded(tmp_path / name, **options)


def test_groups_are_kept_up_to_a_limit(make_parquet: MakeParquet, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_encoded(make_parquet("x.parquet", [0] * 40, ["a"], row_group_size=4))
    group = max(sum(map(len, pngs[start : start + 4])) for start in range(0, 40, 4))
    monkeypatch.setattr("densefeat.images.tables._CACHE_BYTES", 3 * group)
    reader = images.reader()
    assert isinstance(reader, RowGroupReader)
    most = 0
    for position in np.random.default_rng(0).permutation(np.repeat(np.arange(40), 3)):
        assert reader.read(int(position)) == pngs[position]
        kept = sum(len(row) for rows in reader.groups.values() for row in rows)  # type: ignore[arg-type]
        assert kept == reader.size <= 3 * group
        most = max(most, len(reader.groups))
    assert most >= 3  # not one at a time


def test_the_groups_used_last_are_kept(make_parquet: MakeParquet, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_encoded(make_parquet("x.parquet", [0] * 12, ["a"], row_group_size=4))
    monkeypatch.setattr("densefeat.images.tables._CACHE_BYTES", sum(map(len, pngs[:12])) - 1)  # never all three
    reader = images.reader()
    assert isinstance(reader, RowGroupReader)
    for position in (0, 4, 1, 8):
        reader.read(position)
    assert list(reader.groups) == [0, 2]


def test_a_group_over_the_limit_is_kept_alone(
    make_parquet: MakeParquet, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_encoded(make_parquet("x.parquet", [0] * 12, ["a"], row_group_size=4))
    monkeypatch.setattr("densefeat.images.tables._CACHE_BYTES", 1)
    reader = images.reader()
    assert isinstance(reader, RowGroupReader)
    for position in (0, 5, 6, 11, 1):
        assert reader.read(position) == pngs[position]
        assert list(reader.groups) == [position // 4]


@pytest.mark.parametrize("kind", ["list.csv", "list.parquet"])
def test_extraction_probes_and_training_agree_on_labels(kind: str, tmp_path: Path) -> None:
    names, texts = [f"{number}.png" for number in range(5)], ["cat", " dog ", "\ufeffcat", "dog\0", " "]
    if kind == "list.csv":
        lines = [f"{name},{text}\n" for name, text in zip(names, texts, strict=True)]
        (tmp_path / kind).write_bytes("".join(["path,label\n", *lines]).encode())
    else:
        pq.write_table(pa.table({"path": names, "label": texts}), tmp_path / kind)
    wanted = ["cat", "dog", "cat", "dog", None]
    source = open_source(tmp_path / kind, label_column="label")
    listed = ListedImages.from_source(source, str(tmp_path / kind), {})
    assert listed is not None
    assert listed.column("label").to_pylist() == wanted
    rows = load_labels([listed])
    assert [rows.targets.classes[code] for code in rows.targets.values] == wanted[:4]
    assert list_labels(open_encoded(tmp_path / kind)) == wanted
