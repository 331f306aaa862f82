"""Folders of labelled images: which are splits, which are classes, and what may be either."""

import os
import re
from pathlib import Path

import pyarrow as pa
import pytest

from densefeat.errors import UsageError
from densefeat.images.files import open_folder
from densefeat.images.folders import LocalFolder
from densefeat.images.sources import is_image_folder, list_splits, open_source
from densefeat.images.split_folders import find_splits, label_by_folder, list_inner_folders
from support.streams import make, read_source

CLASSES = ("cat", "dog")


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ({"train": CLASSES, "val": CLASSES}, {"train": "train", "val": "val"}),
        ({"Train": CLASSES, "VAL": CLASSES, "Test": CLASSES}, {"train": "Train", "val": "VAL", "test": "Test"}),
        ({"training": CLASSES, "validation": CLASSES}, {"train": "training", "val": "validation"}),
        ({"train": CLASSES, "valid": ("cat",), "testing": ("dog",)}, {"train": "train", "val": "valid", "test": "testing"}),
        ({"train": CLASSES, "dev": CLASSES}, {"train": "train", "val": "dev"}),
        ({"train": CLASSES, "test": ()}, {"train": "train"}),  # test images without labels
        ({"test": CLASSES}, {"test": "test"}),
        ({"train": CLASSES}, {"train": "train"}),
        ({"cat": (), "dog": ()}, {}),
        ({"cat": ("2020", "2021"), "dog": ("2020", "2021")}, {}),
        ({"train": (), "tram": ()}, {}),
        ({"train": (), "bus": (), "car": ()}, {}),
        ({"test_tube": (), "flask": ()}, {}),
        ({"dev": (), "ops": (), "test": ()}, {}),
        ({"bullet_train": (), "test_tube": (), "bus": ()}, {}),  # of different things
        ({"train": (), "crash_test": ("2020",)}, {}),
        ({"trainer": (), "tester": ()}, {}),
        ({"valid_stamp": (), "invalid_stamp": (), "test_stamp": ()}, {}),
        ({"train": ("Cat", "cat"), "val": ("cat",)}, {"train": "train", "val": "val"}),
        ({"test": ("a", "b"), "bus": ("c",)}, {}),
        ({"train": ()}, {}),
        ({"latest": CLASSES, "contest": CLASSES}, {}),  # no words of their own
        ({"test_a": (), "test_b": ()}, {}),
        ({}, {}),
    ],
)
def test_splits_and_classes(folders: dict[str, tuple[str, ...]], splits: dict[str, str]) -> None:
    assert find_splits(folders, "in") == splits


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"train": (), "test": ()}, "'test' and 'train' may be classes, or splits, but 'test' holds no folders of classes"),
        ({"train": (), "val": CLASSES}, "'train' and 'val' may be classes, or splits, but 'train' holds no folders"),
        ({"train": CLASSES, "val": ()}, "but 'val' holds no folders of classes"),
        ({"train": ("2020",), "test": ("2021",)}, "'train' and 'test' may be classes, or splits, but no folder is in both"),
        ({"train": CLASSES, "more": CLASSES}, "holds train/ with folders in it, and 'more' beside it: if train is a split"),
        ({"cat": (), "dog": (), "val": CLASSES}, "holds val/ with folders in it, and 'cat' beside it"),
        ({"train": CLASSES, "val": CLASSES, "valid": CLASSES}, "'val' and 'valid' are names of one split"),
        ({"Train": CLASSES, "train": CLASSES}, "'Train' and 'train' are names of one split"),
        ({"training_set": CLASSES, "test_set": CLASSES}, "'test_set' and 'training_set' may be classes, or splits, for they"),
        ({"seg_train": CLASSES, "seg_test": CLASSES}, "'in/seg_test'; for classes, give a list with labels"),
        ({"train2017": CLASSES, "val2017": CLASSES}, "may be classes, or splits, for they hold the same folders"),
        ({"seg_val": CLASSES, "seg_test": CLASSES}, "may be classes, or splits, for they hold the same folders"),
        ({"trainval": CLASSES, "test": CLASSES}, "'test' and 'trainval' may be classes, or splits, for they hold"),
        ({"seg_train": CLASSES, "seg_eval": CLASSES}, "'seg_eval' and 'seg_train' may be classes, or splits, for they hold"),
        ({"train_cleaned": CLASSES, "test": CLASSES, "drawn": CLASSES}, "'test' and 'train_cleaned' may be classes, or splits"),
        ({"test": (), "train": (), "bus": ()}, "'test' and 'train' may be classes, or splits, for they are called so"),
        ({"training_set": (), "test_set": ()}, "'test_set' and 'training_set' may be classes, or splits, for they are called"),
        ({"trainset": (), "testset": ()}, "'testset' and 'trainset' may be classes, or splits, for they are called so"),
        ({"TrainImages": (), "TestImages": ()}, "'TestImages' and 'TrainImages' may be classes, or splits, for they are"),
        ({"train": (), "test1": ()}, "'test1' and 'train' may be classes, or splits, for they are called so"),
        ({"seg_train": CLASSES, "seg_test": CLASSES, "seg_pred": ()}, "'seg_test' and 'seg_train' may be classes, or splits"),
        ({"seg_train": ("seg_train",), "seg_test": ("seg_test",), "seg_pred": ("seg_pred",)}, "such as 'in/seg_test/seg_test'"),
        ({"training_set": ("training_set",), "test_set": ("test_set",)}, "such as 'in/test_set/test_set'; for classes"),
        ({"train-set": ("train",), "test-set": ("test",)}, "such as 'in/test-set/test'; for classes"),
        ({"asl_alphabet_train": ("asl_alphabet_train",), "asl_alphabet_test": ("asl_alphabet_test",)}, "are called so"),
        ({"asl_alphabet_train": ("A", "B"), "asl_alphabet_test": ()}, "such as 'in/asl_alphabet_test'; for classes"),
        (
            {"train": ("train",), "test": ("test",)},
            "but no folder is in both: for splits, name each by its folder, such as 'in/train/",
        ),
        (
            {"train": ("Cat",), "val": ("cat",)},
            "'train/Cat' and 'val/cat' differ only in capital letters: give a class the same",
        ),
        (
            {"train": ("Cat", "dog"), "val": ("dog",), "Test": ("CAT", "dog")},
            "'train/Cat' and 'Test/CAT' differ only in capital",
        ),
    ],
)
def test_folders_that_may_be_either(folders: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        find_splits(folders, "in/")


def test_folders_are_read_off_the_keys() -> None:
    keys = [b"a.png", b"b/1.png", b"b/c/2.png", b"b/c/d/3.png", b"e/f/4.png", "é/1.png".encode()]
    assert list_inner_folders(keys) == {"b": {"c"}, "e": {"f"}, "é": set()}


def test_labels_are_the_classes_in_splits() -> None:
    keys = pa.array(
        [b"loose.png", b"test/1.png", b"train/cat/1.png", b"train/cat/more/1.png", b"val/cat/1.png"], pa.large_binary()
    )
    assert label_by_folder(keys, "in").to_pylist() == [None, None, "cat", "cat", "cat"]
    assert label_by_folder(keys.slice(2, 0), "in").to_pylist() == []


def test_a_folder_of_splits_is_read_alike_everywhere(tmp_path: Path) -> None:
    make(tmp_path / "in", "Train/cat/1.png", "Train/dog/1.png", "VAL/dog/2.png", "VAL/.cache/2.png", "notes/a.txt")
    labels = {key: label for key, label, _ in read_source(open_source(tmp_path / "in", labels="folder"))}
    assert labels == {"Train/cat/1.png": "cat", "Train/dog/1.png": "dog", "VAL/dog/2.png": "dog"}
    for place in (f"{tmp_path}/in", f"{tmp_path}/in/", f"file://{tmp_path}/in"):
        assert list_splits(place) == {"train": place.rstrip("/") + "/Train", "val": place.rstrip("/") + "/VAL"}
    assert list_splits(tmp_path / "in/Train") == {}
    assert list_splits(tmp_path / "nowhere") == list_splits(tmp_path / "notes/a.txt") == list_splits("hf:x:train") == {}


def test_a_folder_of_splits_at_an_address() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("train/a/1.png", "train/b/1.png", "test/a/2.png", "annotations/x.json"):
        memory.pipe(f"/splits/{name}", b"x")
    assert list_splits("memory://splits") == {"train": "memory://splits/train", "test": "memory://splits/test"}
    assert is_image_folder("memory://splits")
    assert not is_image_folder("memory://splits/annotations/x.json")
    assert open_source("memory://splits", labels="folder").label_values().to_pylist() == ["a", "a", "b"]


def test_splits_may_be_links(tmp_path: Path) -> None:
    make(tmp_path / "far", "train/cat/1.png", "val/cat/1.png")
    (tmp_path / "in").mkdir()
    for name in ("train", "val"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "far" / name)
    assert list_splits(tmp_path / "in") == {"train": f"{tmp_path}/in/train", "val": f"{tmp_path}/in/val"}


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    make(
        tmp_path,
        "cat/1.png",
        "cat/.ipynb_checkpoints/1.png",
        ".ipynb_checkpoints/2.png",
        "@eaDir/3.png",
        "__MACOSX/cat/._1.png",
    )
    source = open_folder(LocalFolder(os.path.realpath(tmp_path)), str(tmp_path), "folder")
    assert [(key, label) for key, label, _ in read_source(source)] == [("cat/1.png", "cat")]


def test_splits_nested_once_more_are_not_read_as_classes(tmp_path: Path) -> None:
    make(
        tmp_path,
        "seg_train/seg_train/cat/1.png",
        "seg_train/seg_train/dog/1.png",
        "seg_test/seg_test/cat/1.png",
        "seg_pred/1.png",
    )
    with pytest.raises(UsageError, match="'seg_test' and 'seg_train' may be classes, or splits"):
        list(read_source(open_source(tmp_path, labels="folder")))
    with pytest.raises(UsageError, match="such as '.*/seg_test/seg_test'"):
        list_splits(tmp_path)
    source = open_source(tmp_path / "seg_train/seg_train", labels="folder")
    assert [label for _, label, _ in read_source(source)] == ["cat", "dog"]
