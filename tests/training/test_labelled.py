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
from densefeat.images.tables import RowGroupReader
from densefeat.training.labelled import EncodedImages, open_labelled

MakeFolder = MakeParquet = MakeTar = Callable[..., Path]
COUNTS = {"zebra": 3, "Ant": 2, "bee": 4}


def opened(path: object, **options: object) -> EncodedImages:
    found = open_labelled(str(path), train=True, **options)  # type: ignore[arg-type]
    assert isinstance(found, EncodedImages)
    assert found.labels.dtype == np.int64
    return found


def told(found: EncodedImages) -> list[str | None]:
    return [found.classes[label] if label >= 0 else None for label in found.labels]


def read(found: EncodedImages, positions: range | list[int]) -> list[bytes | str]:
    """By one reader; of an image that cannot be had, why."""
    reader, outcomes = found.reader(), list[bytes | str]()
    for position in positions:
        try:
            outcomes.append(reader.read(position))
        except DecodeError as error:
            assert error.stage == "read"
            outcomes.append(str(error))
    return outcomes


def assert_random_access(found: EncodedImages, seed: int = 0) -> None:
    """Each position in any order, in a copy as a worker gets it, is what the stream has there; and so are the keys."""
    count = len(found.labels)
    stream = [(item.key, item.read()) for item in found.source.items(0, count)]
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(count), 2)).tolist()
    assert read(pickle.loads(pickle.dumps(found)), order) == [stream[position][1] for position in order]
    assert [found.key(position) for position in range(count)] == [key for key, _ in stream]


def test_a_folder_of_classes_is_in_the_order_of_torchvision(make_folder: MakeFolder) -> None:
    folder = make_folder(COUNTS)
    found, theirs = opened(folder), ImageFolder(folder)
    assert found.classes == theirs.classes == ["Ant", "bee", "zebra"]
    assert [os.path.relpath(path, folder) for path, _ in theirs.samples] == [found.key(i) for i in range(9)]
    assert found.labels.tolist() == theirs.targets
    assert found.groups is None
    assert_random_access(found)


def test_classes_that_are_numbers_count_by_their_value(make_folder: MakeFolder) -> None:
    assert opened(make_folder({str(i): 1 for i in range(12)})).classes == [str(i) for i in range(12)]
    assert opened(make_folder({"2": 1, "10": 1, "x": 1}, "mixed")).classes == ["10", "2", "x"]


def test_files_beside_the_folders_have_no_label(make_folder: MakeFolder, pngs: list[bytes]) -> None:
    folder = make_folder(COUNTS)
    (folder / "M.png").write_bytes(pngs[0])
    found = opened(folder)
    assert told(found) == ["Ant"] * 2 + [None] + ["bee"] * 4 + ["zebra"] * 3
    assert found.key(2) == "M.png"


def test_classes_of_the_training_data(make_folder: MakeFolder, make_parquet: MakeParquet) -> None:
    train = opened(make_folder(COUNTS)).classes
    val = opened(make_folder({"zebra": 1, "bee": 2}, "val"), classes=train)
    assert (val.classes, val.labels.tolist()) == (train, [1, 1, 2])
    other_order = make_parquet("val.parquet", [0, 1, 2], ["zebra", "bee", "Ant"])
    assert opened(other_order, classes=train).labels.tolist() == [2, 1, 0]
    message = r"val2': label 'cat' is not one of the 3 known classes, "
    with pytest.raises(UsageError, match=message):
        opened(make_folder({"bee": 1, "cat": 1}, "val2"), classes=train)


def test_parquet_keeps_the_order_of_its_classes(make_parquet: MakeParquet) -> None:
    names = ["dog", "cat", "unused", "ant"]
    path = make_parquet("x.parquet", [3, 1, 0, None, -1, 1], names, row_group_size=4)
    found = opened(path)
    assert found.classes == names
    assert found.labels.tolist() == [3, 1, 0, -1, -1, 1]
    assert found.groups is not None
    assert found.groups.tolist() == [4, 2]
    assert_random_access(found)


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        (["b", None, "a", "b"], ["a", "b"], [1, -1, 0, 1]),
        ([10, 9, None, 9], ["9", "10"], [1, 0, -1, 0]),
        ([True, False, True, None], ["false", "true"], [1, 0, 1, -1]),
    ],
)
def test_parquet_without_class_names(labels: list, classes: list[str], codes: list[int], make_parquet: MakeParquet) -> None:
    found = opened(make_parquet("x.parquet", labels))
    assert (found.classes, found.labels.tolist()) == (classes, codes)


def test_parquet_with_another_column_of_labels(make_parquet: MakeParquet) -> None:
    path = make_parquet("x.parquet", [1, 0], ["apple", "pear"], column="fine_label")
    assert told(opened(path, label_column="fine_label")) == ["pear", "apple"]
    with pytest.raises(UsageError, match="no column 'label': it has image, fine_label"):
        opened(path)


def test_shards_one_of_them_damaged(make_parquet: MakeParquet, tmp_path: Path) -> None:
    names = ["a", "b"]
    for i in range(4):
        make_parquet(f"s-{i}.parquet", [i % 2] * 3, names, first=3 * i, row_group_size=2)
    damaged = tmp_path / "s-1.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    found = opened(tmp_path / "s-?.parquet")
    assert found.labels.tolist() == [0, 0, 0, -1, 0, 0, 0, 1, 1, 1]
    assert found.groups is not None
    assert found.groups.tolist() == [2, 1, 1, 2, 1, 2, 1]
    outcomes = read(found, [9, 3, 0, 3, 4])
    assert [type(outcome) for outcome in outcomes] == [bytes, str, bytes, str, bytes]
    assert str(outcomes[1]).startswith("not a Parquet file, or damaged: ")
    assert [found.key(i) for i in (0, 3, 4)] == ["s-0.parquet#0", "s-1.parquet", "s-2.parquet#0"]
    some = opened(tmp_path / "s-{2..3}.parquet")
    assert some.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert_random_access(some)


def test_row_groups_without_rows(pngs: list[bytes], tmp_path: Path) -> None:
    table = pa.table({"image": pngs[:5], "label": list("ababa")})
    with pq.ParquetWriter(tmp_path / "x.parquet", table.schema) as writer:
        for start, stop in ((0, 0), (0, 2), (2, 2), (2, 5), (5, 5)):
            writer.write_table(table.slice(start, stop - start))
    found = opened(tmp_path / "x.parquet")
    assert sum(found.groups.tolist()) == 5  # type: ignore[union-attr]
    assert read(found, [4, 2, 0, 1, 3]) == [pngs[i] for i in (4, 2, 0, 1, 3)]


def test_tars_with_labels_beside_the_images(make_tar: MakeTar, pngs: list[bytes], tmp_path: Path) -> None:
    members = [("a/1.cls", b"10\n"), ("a/1.png", pngs[0]), ("a/2.png", pngs[1]), ("a/2.cls", b"9"), ("a/3.png", pngs[2])]
    make_tar("x-0.tar", members)
    make_tar("x-1.tar", [("b.png", pngs[3]), ("b.cls", b"9"), ("b.txt", b"nine")])
    found = opened(tmp_path / "x-{0..1}.tar")
    assert (found.classes, found.labels.tolist()) == (["9", "10"], [1, 0, -1, 0])
    assert found.groups is None
    assert_random_access(found)
    assert told(opened(tmp_path / "x-*.tar", label_column="txt")) == [None] * 3 + ["nine"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", {}, "nowhere': no such folder or file"),
        ("flat", {}, "flat': no image with a label in it: labels are folders"),
        ("flat", {"label_column": "label"}, "label_column 'label' is not for a folder of images"),
        ("none.parquet", {}, "none.parquet': no image with a label in it: labels are folders"),
        ("far.parquet", {}, "far.parquet': label '7' is not one of the 2 known classes"),
        ("none.tar", {}, "none.tar': no member with the extension 'cls': there are png"),
    ],
)
def test_refused(
    name: str, options: dict, message: str, make_parquet: MakeParquet, make_tar: MakeTar, pngs: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/a.png").write_bytes(pngs[0])
    make_parquet("none.parquet", pa.nulls(2, pa.int64()), ["a", "b"])
    make_parquet("far.parquet", [0, 7], ["a", "b"])
    make_tar("none.tar", [("a.png", pngs[0])])
    with pytest.raises(UsageError, match=message):
        opened(tmp_path / name, **options)


def test_rows_are_kept_up_to_a_limit(make_parquet: MakeParquet, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(make_parquet("x.parquet", [0] * 40, ["a"], row_group_size=4))
    group = max(sum(map(len, pngs[start : start + 4])) for start in range(0, 40, 4))
    monkeypatch.setattr("densefeat.images.tables._CACHE_BYTES", 3 * group)
    reader = found.reader()
    assert isinstance(reader, RowGroupReader)
    most = 0
    for position in np.random.default_rng(0).permutation(np.repeat(np.arange(40), 3)):
        assert reader.read(int(position)) == pngs[position]
        kept = sum(len(row) for rows in reader.groups.values() for row in rows)  # type: ignore[arg-type]
        assert kept == reader.size <= 3 * group
        most = max(most, len(reader.groups))
    assert most >= 3  # not one at a time


def test_the_rows_used_last_are_kept(make_parquet: MakeParquet, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(make_parquet("x.parquet", [0] * 12, ["a"], row_group_size=4))
    monkeypatch.setattr("densefeat.images.tables._CACHE_BYTES", sum(map(len, pngs[:12])) - 1)  # never all three
    reader = found.reader()
    assert isinstance(reader, RowGroupReader)
    for position in (0, 4, 1, 8):
        reader.read(position)
    assert list(reader.groups) == [0, 2]


def test_a_group_over_the_limit_is_kept_alone(
    make_parquet: MakeParquet, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(make_parquet("x.parquet", [0] * 12, ["a"], row_group_size=4))
    monkeypatch.setattr("densefeat.images.tables._CACHE_BYTES", 1)
    reader = found.reader()
    assert isinstance(reader, RowGroupReader)
    for position in (0, 5, 6, 11, 1):
        assert reader.read(position) == pngs[position]
        assert list(reader.groups) == [position // 4]
