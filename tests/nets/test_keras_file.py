"""Keras' files, written by hand with h5py: names of all versions, and data sets that could be of any size or elsewhere."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from densefeat.errors import WeightsError
from densefeat.nets import keras_file
from densefeat.nets.checkpoint_file import read_checkpoint

KERNEL = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)  # height, width, in, out
DENSE = np.arange(6, dtype=np.float32).reshape(3, 2)  # in, out


def read(path: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in read_checkpoint(path).tensors.items()}


def write(path: Path, content: dict[str, np.ndarray], **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file.create_dataset(name, data=values, **options)
    return path


@pytest.mark.parametrize("root", ["", "model_weights/", "model_weights/densenet121/"])
@pytest.mark.parametrize("first", ["conv1/conv", "conv1_conv"])
@pytest.mark.parametrize("end", ["", ":0"])
def test_names_of_all_versions(root: str, first: str, end: str, tmp_path: Path) -> None:
    group = f"{first}/{first}" if root != "model_weights/densenet121/" else first
    content = {
        f"{root}{group}/kernel{end}": KERNEL,
        f"{root}bn/bn/moving_variance{end}": np.ones(2, np.float32),
        f"{root}fc1000/fc1000/kernel{end}": DENSE,
        f"{root}fc1000/fc1000/bias{end}": np.ones(2, np.float32),
        f"optimizer_weights/{group}/kernel{end}": KERNEL,
    }
    found = read(write(tmp_path / "w.h5", content))
    assert sorted(found) == ["bn.running_var", "classifier.bias", "classifier.weight", "conv1_conv.weight"]
    assert np.array_equal(found["conv1_conv.weight"], KERNEL.transpose(3, 2, 0, 1))
    assert np.array_equal(found["classifier.weight"], DENSE.T)
    assert found["bn.running_var"] == pytest.approx(np.float32(1 + 1e-8))


def test_the_variance_takes_up_the_epsilon(tmp_path: Path) -> None:
    values = np.array([0, 1e-6, 3e-3, 1], np.float32)
    found = read(write(tmp_path / "w.h5", {"bn/bn/moving_variance": values}))["bn.running_var"]
    assert found.astype(np.float64) + 1e-5 == pytest.approx(values.astype(np.float64) + 1.001e-5, rel=1e-7)


def test_an_archive_of_keras_3(tmp_path: Path) -> None:
    """Layers are numbered groups, which name themselves, and so are their variables."""
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        for group, name, values in (("conv2d", "conv1_conv", [KERNEL]), ("dense", "top", [DENSE, np.ones(2, np.float32)]),
                                    ("batch_normalization_9", "bn", [np.full(2, i, np.float32) for i in range(4)]),
                                    ("relu", "relu", [])):  # fmt: skip
            variables = file.create_group(f"layers/functional/layers/{group}/vars")
            variables.attrs["name"] = name
            for i, value in enumerate(values):
                variables[str(i)] = value
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    for path in (tmp_path / "w.keras", tmp_path / "model.weights.h5"):
        found = read(path)
        assert sorted(found) == [
            "bn.bias", "bn.running_mean", "bn.running_var", "bn.weight", "classifier.bias", "classifier.weight", "conv1_conv.weight",
        ]  # fmt: skip
        assert (found["bn.weight"][0], found["bn.bias"][0], found["bn.running_mean"][0]) == (0, 1, 2)


def test_several_dense_layers_are_numbered(tmp_path: Path) -> None:
    found = read(write(tmp_path / "w.h5", {"dense/dense/kernel": DENSE, "dense_1/dense_1/kernel": DENSE}))
    assert sorted(found) == ["classifier.0.weight", "classifier.1.weight"]


def link_elsewhere(path: Path) -> None:
    write(path.with_name("other.h5"), {"kernel": KERNEL})
    with h5py.File(path, "w") as file:
        file["conv1_conv/kernel"] = h5py.ExternalLink("other.h5", "kernel")


def store_elsewhere(path: Path) -> None:
    path.with_name("secret").write_bytes(bytes(64))
    with h5py.File(path, "w") as file:
        file.create_dataset("conv1_conv/kernel", (16,), "f4", external=[(path.with_name("secret"), 0, 64)])


def view_elsewhere(path: Path) -> None:
    write(path.with_name("other.h5"), {"kernel": KERNEL})
    layout = h5py.VirtualLayout(KERNEL.shape, "f4")
    layout[...] = h5py.VirtualSource(path.with_name("other.h5"), "kernel", KERNEL.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("conv1_conv/kernel", layout)


def claim(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("conv1_conv/kernel", (2**20, 2**20), "f4", chunks=(1024, 1024))


REFUSED = "conv1_conv/kernel is compressed, elsewhere than in the file, or not of floats"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to another file": (link_elsewhere, "no layers of Keras"),
    "numbers in another file": (store_elsewhere, REFUSED),
    "a view of another file": (view_elsewhere, REFUSED),
    "four terabytes that are not there": (claim, REFUSED),
    "compressed": (lambda path: write(path, {"conv1_conv/kernel": np.zeros((9, 9))}, compression="gzip"), REFUSED),
    "words": (lambda path: write(path, {"conv1_conv/kernel": np.array([b"a"])}), REFUSED),
    "one name twice": (lambda path: write(path, {"a/bn/gamma": np.ones(1), "b/bn/gamma": np.ones(1)}), "several layers are named 'bn'"),
    "something else": (lambda path: write(path, {"images": KERNEL}), "no layers of Keras"),
    "truncated": (lambda path: path.write_bytes(write(path, {"bn/gamma": KERNEL}).read_bytes()[:900]), "truncated or not a"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_refused(name: str, tmp_path: Path) -> None:
    make, match = FILES[name]
    make(tmp_path / "w.h5")
    with pytest.raises(WeightsError, match=rf"w.h5: .*{match}"):
        read_checkpoint(tmp_path / "w.h5")


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "w.h5", {"bn/gamma": np.ones(1)})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"files of Keras need h5py: pip install 'densefeat\[keras\]'"):
        read_checkpoint(path)


def test_what_keeps_hdf5_for_ever_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a layer, whose place in the file says that it has no bytes."""
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        variables = file.create_group("layers/dense/vars")
        variables.attrs["name"], variables["0"] = "dense", DENSE
    data = bytearray(path.read_bytes())
    size = data.index(b"GCOL") + 24  # of the first text of the heap
    assert int.from_bytes(data[size : size + 8], "little") == len("dense")
    data[size : size + 8] = bytes(8)
    path.write_bytes(data)
    monkeypatch.setattr(keras_file, "_PATIENCE", 3)
    with pytest.raises(WeightsError, match=r"w.h5: damaged, HDF5's library has not read it in 3 seconds"):
        read_checkpoint(path)
