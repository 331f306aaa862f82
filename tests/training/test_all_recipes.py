"""Every recipe of the package, run: two steps on tiny data of its kind, with everything that it switches on a CPU can do."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from densefeat.training.job import train
from densefeat.training.recipe import DATA, Recipe
from densefeat.training.recipe_files import load_recipe, recipe_names
from support.runs import write_table

pytestmark = pytest.mark.slow
LARGE = 64  # pixels, in place of 224: the networks are as they are


def write_cifar(folder: Path, images: int) -> Path:
    """CIFAR-10's python files, of a few images each."""
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {
            b"data": random.integers(0, 256, (images, 3072), np.uint8),
            b"labels": random.integers(0, 10, images).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [f"name {i}".encode() for i in range(10)]}, protocol=2))
    return folder


def write_svhn(folder: Path, images: int) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for name in ("train", "extra", "test"):
        pixels = random.integers(0, 256, (32, 32, 3, images), np.uint8)
        scipy.io.savemat(folder / f"{name}_32x32.mat", {"X": pixels, "y": random.integers(1, 11, (images, 1))})
    return folder


def made_data(folder: Path, recipe: Recipe) -> tuple[Path, Path]:
    if recipe.data == "cifar10":
        made = write_cifar(folder / "cifar-10-batches-py", 2)
        return made, made
    if recipe.data == "svhn":
        made = write_svhn(folder / "svhn", 6)
        return made, made
    size, classes = recipe.image_size if recipe.loader == "device" else 80, DATA[recipe.data].num_classes
    assert classes is not None
    train, val = folder / "train.parquet", folder / "val.parquet"
    return write_table(train, 8, classes, size, seed=1), write_table(val, 3, classes, size, seed=2)


@pytest.mark.parametrize("name", recipe_names("densefeat train"))
def test_two_steps(name: str, tmp_path: Path) -> None:
    whole = load_recipe(name)
    train_path, val_path = made_data(tmp_path, whole)
    small = [
        "cuda_graph=false",
        f"train={train_path}",
        f"val={val_path}",
        "batch_size=4",
        "epochs=1",
        "warmup_epochs=0",
        "workers=0",
    ]
    if whole.holdout:
        small.append("holdout=4")
    if whole.loader == "workers":
        small.append(f"image_size={LARGE}")
    result = train(load_recipe(name, small), tmp_path / "run", "cpu")
    assert result.step == result.steps == 2
    assert result.scores is not None
    assert set(result.scores) == ({"val", "test"} if whole.holdout else {"val"})
    assert (tmp_path / "run/model.safetensors").stat().st_size > 1e6
