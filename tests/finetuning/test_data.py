"""Images for fine-tuning: where train and val are found, what is held out, how often rare classes are drawn."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import densefeat  # noqa: F401  (registers the models)
from densefeat import DensefeatError, FeatureExtractor, UsageError
from densefeat.finetuning.data import _balanced_chances, open_finetuning_data
from densefeat.labels.splits import hold_out
from densefeat.labels.targets import Targets
from densefeat.training.data import TrainingData
from densefeat.training.world import World
from support.helpers import BUNDLED
from support.runs import tiny_finetuning, write_classes, write_table


def open_data(folder: Path, rank: int = 0, ranks: int = 1, **changes: Any) -> TrainingData:
    preprocessing = FeatureExtractor(BUNDLED, device="cpu").preprocessing
    return open_finetuning_data(tiny_finetuning(folder, **changes), preprocessing, World(rank, ranks, torch.device("cpu")))


def keys(data: TrainingData, positions: np.ndarray) -> list[str]:
    return [data.labelled.key(int(position)) for position in positions]


def test_one_folder_is_split_class_by_class(tmp_path: Path) -> None:
    data = open_data(tmp_path, train=str(write_classes(tmp_path / "in", 10)))
    train, val = keys(data, data.sampler.positions), keys(data, data.val.positions)
    assert Counter(key.partition("/")[0] for key in val) == {"class 0": 2, "class 1": 2, "class 2": 2}
    assert sorted(train + val) == sorted(str(file.relative_to(tmp_path / "in")) for file in (tmp_path / "in").rglob("*.png"))
    targets = Targets("single", ("class 0", "class 1", "class 2"), np.repeat(np.arange(3), 10))
    assert val == keys(data, np.flatnonzero(hold_out(targets, 0.2, 0)))  # as the probe splits
    halves = [open_data(tmp_path, rank, 2, train=str(tmp_path / "in")) for rank in (0, 1)]
    assert sorted(key for half in halves for key in keys(half, half.val.positions)) == sorted(val)


def test_folders_that_are_already_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "in/train", 4)
    write_classes(tmp_path / "in/val", 2, seed=1)
    data = open_data(tmp_path, train=str(tmp_path / "in"))
    assert (len(data.sampler.positions), len(data.val.positions)) == (12, 6)
    (tmp_path / "in/val").rename(tmp_path / "elsewhere")
    data = open_data(tmp_path, train=str(tmp_path / "in"))
    assert (len(data.sampler.positions), len(data.val.positions)) == (9, 3)
    data = open_data(tmp_path, train=str(tmp_path / "in/train"), val=str(tmp_path / "elsewhere"))
    assert (len(data.sampler.positions), len(data.val.positions)) == (12, 6)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "tram"):
        write_classes(tmp_path / "other" / name, 5, classes=1)
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "other" / name / "class 0").rename(tmp_path / "in" / name)
    assert open_data(tmp_path, train=str(tmp_path / "in"), batch_size=4).labelled.classes == ["train", "tram"]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_the_validation_folder(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "in/train", 4)
    write_classes(tmp_path / "in" / name, 2, seed=1)
    for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "test"):
        (tmp_path / "in" / folder).mkdir()
    for val in (None, str(tmp_path / "in" / name)):
        data = open_data(tmp_path, train=str(tmp_path / "in"), val=val)
        assert data.labelled.classes == ["class 0", "class 1", "class 2"]
        assert (len(data.sampler.positions), len(data.val.positions)) == (12, 6)
    write_classes(tmp_path / "in/more", 1)
    with pytest.raises(UsageError, match="holds train/ with folders in it, and 'more' beside it: if train is a split, give"):
        open_data(tmp_path, train=str(tmp_path / "in"))
    (tmp_path / "in/more").rename(tmp_path / "in" / ("valid" if name == "val" else "val"))
    with pytest.raises(UsageError, match="are names of one split: name the folder of one of them"):
        open_data(tmp_path, train=str(tmp_path / "in"))


def test_splits_in_any_case_and_a_test_beside_them(tmp_path: Path) -> None:
    for place, (name, count) in enumerate((("Training", 4), ("VAL", 2), ("test", 3))):
        write_classes(tmp_path / "in" / name, count, seed=place)
    data = open_data(tmp_path, train=str(tmp_path / "in"))
    assert data.test is not None
    assert (len(data.sampler.positions), len(data.val.positions), len(data.test.positions)) == (12, 6, 9)
    assert data.labelled.classes == ["class 0", "class 1", "class 2"]
    (tmp_path / "in/VAL").rename(tmp_path / "elsewhere")
    data = open_data(tmp_path, train=str(tmp_path / "in"), test=str(tmp_path / "elsewhere"))
    assert data.test is not None
    assert (len(data.sampler.positions), len(data.val.positions), len(data.test.positions)) == (9, 3, 6)
    (tmp_path / "in/Training").rename(tmp_path / "gone")
    with pytest.raises(UsageError, match="holds splits, but none to train on, only '.*in/test': name the folder of training"):
        open_data(tmp_path, train=str(tmp_path / "in"))


def write_list(path: Path, folder: Path, **columns: list[str]) -> Path:
    """A list of all images of a folder, with their class and more columns."""
    files = sorted(folder.rglob("*.png"))
    rows = zip(*(columns[name] for name in columns), strict=True) if columns else ([] for _ in files)
    lines = [
        ",".join([str(file.relative_to(path.parent)), file.parent.name, *row]) for file, row in zip(files, rows, strict=True)
    ]
    path.write_text("\n".join([",".join(["path", "label", *columns]), *lines]))
    return path


def test_groups_are_not_split(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "in", 12)
    patients = [f"p{number // 2 % 9}" for number in range(36)]
    place = write_list(tmp_path / "list.csv", folder, patient=patients)
    data = open_data(tmp_path, train=str(place), group_column="patient")
    sides = [{patients[position] for position in positions} for positions in (data.sampler.positions, data.val.positions)]
    assert not sides[0] & sides[1]
    assert sides[1]
    assert sorted([*data.sampler.positions, *data.val.positions]) == list(range(36))
    alone = open_data(tmp_path, train=str(write_list(tmp_path / "list.csv", folder, patient=[""] * 36)), group_column="patient")
    assert np.array_equal(alone.val.positions, open_data(tmp_path, train=str(place)).val.positions)
    with pytest.raises(UsageError, match="group_column 'patient': '.*in' is a folder: give a list"):
        open_data(tmp_path, train=str(folder), group_column="patient")
    with pytest.raises(UsageError, match="no column 'person'"):
        open_data(tmp_path, train=str(place), group_column="person")


def test_groups_that_others_have_split_are_said(tmp_path: Path) -> None:
    folder, other = write_classes(tmp_path / "in", 4), write_classes(tmp_path / "val", 2, seed=1)
    train = write_list(tmp_path / "list.csv", folder, patient=[f"p{number}" for number in range(12)])
    val = write_list(tmp_path / "val.csv", other, patient=["p3", "q", "p1", "q", "q", "q"])
    data = open_data(tmp_path, train=str(train), val=str(val), group_column="patient")
    assert data.notes == [f"2 groups of {str(val)!r} are in the training images, too, such as 'p1': figures will be too good"]


@pytest.mark.parametrize("loader", [{}, {"loader": "device", "augment": "shift-mirror"}])
def test_images_that_cannot_be_read(tmp_path: Path, loader: dict[str, str]) -> None:
    folder = write_classes(tmp_path / "in", 4)
    place = write_list(tmp_path / "list.csv", folder)
    for file in (folder / "class 1").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(
        DensefeatError, match=r"list.csv': no image of 'class 1' can be read, the first: 'in/class 1/000.png': "
    ):
        open_data(tmp_path, train=str(place), image_size=32, **loader)
    place.write_text(place.read_text().replace("in/", "gone\\"))
    message = r"list.csv': none of its images can be read, the first: 'gone\\\\class 0/000.png': No such file.*--base, with / between folders"
    with pytest.raises(DensefeatError, match=message):
        open_data(tmp_path, train=str(place), image_size=32, **loader)


def test_a_list_that_lies_elsewhere(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "in", 10)
    place = write_list(tmp_path / "list.csv", folder)
    (tmp_path / "lists").mkdir()
    place.rename(tmp_path / "lists/list.csv")
    data = open_data(tmp_path, train=str(tmp_path / "lists/list.csv"), base=str(tmp_path))
    assert (len(data.sampler.positions), len(data.val.positions)) == (24, 6)


def test_odd_labels_are_said(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "in", 5)
    (folder / "class 2").rename(folder / "NA")
    place = write_list(tmp_path / "list.csv", folder)
    place.write_text(place.read_text() + "\n" + place.read_text().splitlines()[1])
    data = open_data(tmp_path, train=str(place), batch_size=4)
    assert data.notes == [
        "'NA' is a class: where a label is missing, leave the field empty",
        f"1 lines of {str(place)!r} repeat others",
    ]
    assert len(data.sampler.positions) + len(data.val.positions) == 15


def test_remarks_on_labels(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "in", 6)
    for file in sorted((folder / "class 1").iterdir())[1:]:
        file.unlink()
    lines = [f"in/{file.relative_to(folder)},{file.parent.name}" for file in sorted(folder.rglob("*.png"))]
    lines[2] = lines[2].partition(",")[0] + ","
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    data = open_data(tmp_path, train=str(tmp_path / "list.csv"), batch_size=4)
    place = str(tmp_path / "list.csv")
    assert data.notes == [
        f"1 images of {place!r} have no label and are left out, the first: 'in/class 0/002.png'",
        "1 classes have one image, the first: 'class 1'",
    ]


def test_numbers_are_refused_as_classes(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "in", 2)
    lines = [f"in/{file.relative_to(folder)},{i + 0.5}" for i, file in enumerate(sorted(folder.rglob("*.png")))]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    with pytest.raises(UsageError, match=r"its labels are numbers \(0.5, 1.5, 2.5, …\), which only probes predict"):
        open_data(tmp_path, train=str(tmp_path / "list.csv"))
    assert len(open_data(tmp_path, train=str(tmp_path / "list.csv"), task="single", batch_size=2).labelled.classes) == 6


def test_validation_images_that_all_have_the_same_labels(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "in", 2)
    files = sorted(folder.rglob("*.png"))
    for name, tags in (
        ("train", ["a|b", "a", "b", "|", "a", "c"]),
        ("val", ["a"] * 6),
        ("none", ["|"] * 6),
        ("new", ["d"] * 6),
    ):
        lines = [f"in/{file.relative_to(folder)},{tag}" for file, tag in zip(files, tags, strict=True)]
        (tmp_path / f"{name}.csv").write_text("path,label\n" + "\n".join(lines))
    for name in ("val", "none"):
        data = open_data(
            tmp_path, train=str(tmp_path / "train.csv"), val=str(tmp_path / f"{name}.csv"), task="multi", batch_size=2
        )
        assert data.labelled.classes == ["a", "b", "c"]
        labels = np.concatenate([y.numpy() for _, y in data.val.batches()])
        assert labels.sum(0).tolist() == [6 * (name == "val"), 0, 0]
    with pytest.raises(UsageError, match=r"new.csv': label 'd' is not one of the 3 known classes, a, b, c"):
        open_data(tmp_path, train=str(tmp_path / "train.csv"), val=str(tmp_path / "new.csv"), task="multi")


def test_every_kind_of_input_gives_the_same(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "in", 10)
    files = sorted(folder.rglob("*.png"))
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"in/{f.relative_to(folder)},{f.parent.name}\n" for f in files))
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": [int(file.parent.name[-1]) for file in files],
    }
    names = datasets.ClassLabel(names=["class 0", "class 1", "class 2"])
    saved = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), "label": names}))
    saved.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "hub").mkdir()
    saved.to_parquet(str(tmp_path / "hub/train.parquet"))
    saved.to_parquet(str(tmp_path / "one.parquet"))
    found = [
        open_data(tmp_path, train=str(tmp_path / place) if "hf:" not in place else place)
        for place in ("in", "list.csv", "saved", "one.parquet", f"hf:{tmp_path / 'hub'}:train")
    ]
    first = next(found[0].batches(0, 1))[0]
    for data in found:
        assert data.labelled.classes == ["class 0", "class 1", "class 2"]
        assert data.fingerprint() == found[0].fingerprint()
        assert np.array_equal(data.val.positions, found[0].val.positions)
        x, y = next(data.batches(0, 1))[0]
        if data.labelled.groups is None:  # row groups change the order
            assert torch.equal(x, first[0])
            assert torch.equal(y, first[1])


def test_rare_classes_are_drawn_as_often_as_others(tmp_path: Path) -> None:
    chances = _balanced_chances(np.array([0] * 8 + [1] * 2))
    assert chances.sum() == pytest.approx(1)
    assert chances[:8].sum() == pytest.approx(0.5)
    tags = np.array([[1, 0]] * 6 + [[1, 1]] * 2 + [[0, 0]] * 2, np.int8)
    assert _balanced_chances(tags)[6] / _balanced_chances(tags)[0] == pytest.approx(4)
    folder = write_classes(tmp_path / "in", 12, classes=2)
    for file in sorted((folder / "class 1").iterdir())[3:]:
        file.unlink()
    data = open_data(tmp_path, train=str(folder), sampling="balanced", batch_size=4)
    drawn = np.concatenate([data.sampler.batch(step) for step in range(100 * data.sampler.steps_per_epoch)])
    assert 0.45 < (data.labelled.labels[drawn] == 1).mean() < 0.55


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\nin/class 0/000.png,a\nin/class 0/001.png,a\n", "all images are 'a': training needs two classes or more"),
        ("path,label\nin/class 0/000.png,\n", "no image with a label in it"),
        ("path,other\nin/class 0/000.png,a\n", "no column 'label'"),
        ("path,label\nin/class 0/000.png,a\nin/class 1/001.png,b\n", "1 training images, and every step needs 2"),
        ("", "list.csv"),
    ],
)
def test_unusable_lists(tmp_path: Path, content: str, message: str) -> None:
    write_classes(tmp_path / "in", 2)
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        open_data(tmp_path, train=str(tmp_path / "list.csv"), mixup=0.5)


def test_val_has_a_class_that_train_lacks(tmp_path: Path) -> None:
    write_classes(tmp_path / "in/train", 4, classes=2)
    write_classes(tmp_path / "in/val", 2, classes=3)
    with pytest.raises(UsageError, match="label 'class 2' is not one of the 2 known classes"):
        open_data(tmp_path, train=str(tmp_path / "in"), batch_size=4)


def test_small_row_groups_are_read_together(tmp_path: Path) -> None:
    data = open_data(tmp_path, train=str(write_table(tmp_path / "x.parquet", 40)), batch_size=8)
    assert data.sampler.groups is not None
    x, y = next(data.batches(0, 1))[0]
    assert (tuple(x.shape), tuple(y.shape)) == ((8, 3, 32, 32), (8,))
