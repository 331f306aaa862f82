"""Labels that are names of folders, and the parts that folders of splits give."""

import pytest

from densefeat.errors import UsageError
from densefeat.labels.folders import check_classes_are_no_splits, find_label_depth, read_parts
from densefeat.labels.splits import TEST, TRAIN, VAL


@pytest.mark.parametrize(
    ("paths", "labels", "depth"),
    [
        (["cat/1.jpg", "a|b/2.jpg"], ["cat", "a|b"], 0),
        (["train/cat/1.jpg", "val/dog/2.jpg"], ["cat", "dog"], 1),
        (["Train/cat/1.jpg"], ["cat"], 1),
        (["more/cat/1.jpg"], ["cat"], None),
        (["train/1.jpg", "train/cat/1.jpg"], ["cat", "cat"], None),
        (["train/cat/1.jpg", "val/dog/2.jpg"], ["train", "val"], 0),
        (["cat/1.jpg", "dog/2.jpg"], ["cat", "cat"], None),
        (["1.jpg"], ["1.jpg"], None),
        ([], [], None),
    ],
)
def test_which_folder_is_the_label(paths: list[str], labels: list[str], depth: int | None) -> None:
    assert find_label_depth(paths, labels) == depth


def test_parts_by_folder() -> None:
    assert read_parts(["training/a/1", "Valid/a/1", "dev/b/1", "TEST/a/1"]).tolist() == [TRAIN, VAL, VAL, TEST]


def test_labels_that_are_splits() -> None:
    with pytest.raises(UsageError, match="emb: its labels are the splits 'train' and 'val', not the classes in them: extract"):
        check_classes_are_no_splits(["train/cat/1.jpg", "val/cat/1.jpg"], "emb")
    check_classes_are_no_splits(["train/1.jpg", "tram/1.jpg"], "emb")
