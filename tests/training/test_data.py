"""The images that a run trains on, and those that it is evaluated on."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from densefeat import UsageError
from densefeat.training.data import TrainingData, open_data
from densefeat.training.device_data import DeviceImages
from densefeat.training.recipe import Recipe
from densefeat.training.recipe_files import load_recipe
from densefeat.training.worker_data import WorkerImages
from densefeat.training.world import World

MakeFolder = MakeParquet = Callable[..., Path]
NAMES = ["x", "y", "z"]
BASE = {"data": "images", "image_size": 32, "batch_size": 4, "augment": "none", "precision": "float32", "cuda_graph": "false"}


@pytest.fixture
def files(make_parquet: MakeParquet) -> dict[str, Path]:
    """30 images to train with, two of them without a label; 10 to validate, one without."""
    labels = [None if i in (3, 17) else i % 3 for i in range(30)]
    return {
        "train": make_parquet("train.parquet", labels, NAMES, row_group_size=8),
        "val": make_parquet("val.parquet", [None, *(i % 3 for i in range(9))], NAMES, first=30),
    }


def recipe(files: dict[str, Path], **changes: object) -> Recipe:
    return load_recipe("cifar10_fast", [f"{key}={value}" for key, value in (BASE | files | changes).items()])


def data(recipe: Recipe, rank: int = 0, ranks: int = 1) -> TrainingData:
    return open_data(recipe, World(rank, ranks, torch.device("cpu")))


LOADERS = pytest.mark.parametrize("loader", ["device", "workers"])


@LOADERS
def test_batches_and_splits(loader: str, files: dict[str, Path], pieces: np.ndarray) -> None:
    found = data(recipe(files, loader=loader))
    assert isinstance(found.images, DeviceImages if loader == "device" else WorkerImages)
    labelled = np.delete(np.arange(30), [3, 17])
    assert np.array_equal(found.sampler.positions, labelled)
    assert (found.sampler.groups is None) == (loader == "device")
    assert found.val.positions.tolist() == list(range(1, 10))
    assert (found.test, found.failures) == (None, [])
    assert found.labelled.classes == NAMES
    steps = list(found.batches(5, 9))
    for step, ((x, y),) in zip(range(5, 9), steps, strict=True):
        batch = found.sampler.batch(step)
        assert y.tolist() == (batch % 3).tolist()
        pixels = torch.from_numpy(pieces[batch].transpose(0, 3, 1, 2).copy())
        torch.testing.assert_close(x, found.preprocessing.normalize(pixels), rtol=0, atol=1e-5)
        assert found.keys(step) == [f"train.parquet#{position}" for position in batch]
    assert torch.cat([y for _, y in found.val.batches()]).tolist() == [i % 3 for i in range(9)]


@LOADERS
def test_held_out_images_are_not_trained_on(loader: str, files: dict[str, Path]) -> None:
    found = data(recipe(files, loader=loader, holdout=6))
    kept = found.val.positions
    assert len(kept) == 6
    assert np.array_equal(np.union1d(kept, found.sampler.positions), np.delete(np.arange(30), [3, 17]))
    assert not set(kept.tolist()) & set(found.sampler.positions.tolist())
    assert torch.cat([y for _, y in found.val.batches()]).tolist() == (kept % 3).tolist()
    assert found.test is not None
    assert found.test.positions.tolist() == list(range(1, 10))
    trained = {key for step in range(2 * found.sampler.steps_per_epoch) for key in found.keys(step)}
    assert not trained & {f"train.parquet#{position}" for position in kept}
    assert np.array_equal(data(recipe(files, loader=loader, holdout=6)).val.positions, kept)


@LOADERS
def test_held_out_images_are_not_augmented(loader: str, files: dict[str, Path], pieces: np.ndarray) -> None:
    augment = "shift-mirror" if loader == "device" else "inception"
    found = data(recipe(files, loader=loader, holdout=6, augment=augment))
    pixels = torch.from_numpy(pieces[found.val.positions].transpose(0, 3, 1, 2).copy())
    ((x, _),) = found.val.batches()
    torch.testing.assert_close(x, found.preprocessing.normalize(pixels), rtol=0, atol=1e-5)


@LOADERS
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_all_images(loader: str, ranks: int, files: dict[str, Path]) -> None:
    wanted = recipe(files, loader=loader, holdout=6, batch_size=8)
    alone, each = data(wanted), [data(wanted, rank, ranks) for rank in range(ranks)]
    for split in ("val", "test"):
        positions = [getattr(found, split).positions for found in each]
        assert sorted(np.concatenate(positions).tolist()) == getattr(alone, split).positions.tolist()
        assert max(map(len, positions)) - min(map(len, positions)) <= 1
    ((whole,),) = alone.batches(3, 4)
    parts = [part for found in each for step in found.batches(3, 4) for part in step]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0])
    assert torch.equal(torch.cat([y for _, y in parts]), whole[1])


def test_validation_data_in_an_order_of_its_own(files: dict[str, Path], make_parquet: MakeParquet) -> None:
    other = make_parquet("other.parquet", [0, 1, 2, 0], ["z", "x", "y"])
    found = data(recipe(files | {"val": other}))
    ((_, y),) = found.val.batches()
    assert y.tolist() == [2, 0, 1, 2]


def test_images_that_cannot_be_decoded_are_left_out(make_folder: MakeFolder) -> None:
    folder = make_folder({"x": 6, "y": 6})
    (folder / "x/002.png").write_bytes(b"")
    found = data(recipe({"train": folder, "val": folder}))
    assert found.sampler.positions.tolist() == [0, 1, *range(3, 12)]
    assert found.val.positions.tolist() == [0, 1, *range(3, 12)]
    assert found.failures == [("x/002.png", "the file is empty")] * 2  # in both


def test_float64(files: dict[str, Path]) -> None:
    for loader in ("device", "workers"):
        ((part,),) = data(recipe(files, precision="float64", loader=loader)).batches(0, 1)
        assert part[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "cifar10"}, r"data 'cifar10' has 10 classes, '.*train\.parquet' has 3$"),
        ({"val": "{strange}"}, r"strange\.parquet': label 'w' is not one of the 3 known classes, "),
        ({"val": "nowhere"}, "images 'nowhere': no such folder or file"),
        ({"holdout": 28}, "^holdout 28: there are 28 training images$"),
        ({"holdout": 25}, "^3 training images are less than one batch of 4$"),
        ({"batch_size": 29}, "^28 training images are less than one batch of 29$"),
        ({"batch_size": 5, "accumulation": 2}, "^batch_size 5 does not divide evenly between 1 processes with accumulation 2"),
        ({"label_column": "kind"}, "no column 'kind': it has image, label$"),
    ],
)
def test_refused(changes: dict, message: str, files: dict[str, Path], make_parquet: MakeParquet) -> None:
    strange = make_parquet("strange.parquet", [0, 1], ["x", "w"])
    changes = {key: value.format(strange=strange) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UsageError, match=message):
        data(recipe(files, **changes))


def test_decoded_arrays(pieces: np.ndarray, tmp_path: Path) -> None:
    """CIFAR's own files: on the device; their classes must be those of the other split."""
    names = [f"fine {i}" for i in range(100)]
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, 2))
    for name, some in (("train", pieces[:12]), ("test", pieces[12:17])):
        content = {b"data": some.transpose(0, 3, 1, 2).reshape(-1, 3072), b"fine_labels": list(range(len(some)))}
        (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    wanted = recipe({"train": tmp_path, "val": tmp_path}, data="cifar100")
    found = data(wanted)
    assert found.keys(0) == [f"{tmp_path.name}/train#{position}" for position in found.sampler.batch(0)]
    ((x, y),) = found.val.batches()
    assert y.tolist() == [0, 1, 2, 3, 4]
    pixels = torch.from_numpy(pieces[12:17].transpose(0, 3, 1, 2).copy())
    torch.testing.assert_close(x, found.preprocessing.normalize(pixels), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match=re.escape("/train holds decoded images: use loader=device")):
        data(recipe({"train": tmp_path, "val": tmp_path}, data="cifar100", loader="workers"))
    with pytest.raises(UsageError, match="image_size 40: the images of .*/train have 32 pixels"):
        data(recipe({"train": tmp_path, "val": tmp_path}, data="cifar100", image_size=40))
    other = tmp_path / "other"
    other.mkdir()
    (other / "meta").write_bytes(pickle.dumps({b"fine_label_names": names[::-1]}, 2))
    for name in ("train", "test"):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(UsageError, match="other': its classes are not those of "):
        data(recipe({"train": tmp_path, "val": other}, data="cifar100"))
