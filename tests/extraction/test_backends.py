"""A store keeps the backend that it was started with, and all backends give the same rows."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import densefeat
from densefeat import UsageError
from support.helpers import BUNDLED, relative_difference

BACKENDS = ["reference", "buffer", "openvino"]


def recorded_backend(folder: Path) -> str:
    return densefeat.open_store(folder).provenance["backend"]


def add_image(photo_folder: Path) -> None:
    shutil.copy(photo_folder / "china/00.jpg", photo_folder / "china/one-more.jpg")


def test_rows_of_every_backend(photo_folder: Path, tmp_path: Path) -> None:
    stores = {}
    for backend in BACKENDS:
        densefeat.extract(photo_folder, tmp_path / backend, BUNDLED, backend=backend, device="cpu")
        stores[backend] = densefeat.open_store(tmp_path / backend)
    for column in stores["reference"].shapes:
        expected = stores["reference"][column]
        for backend in BACKENDS[1:]:
            assert relative_difference(stores[backend][column], expected) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_auto_keeps_the_backend_of_a_store(backend: str, photo_folder: Path, tmp_path: Path) -> None:
    densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, backend=backend, device="cpu")
    add_image(photo_folder)
    result = densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, update=True, device="cpu")
    assert (result.rows, result.extracted) == (13, 1)
    assert recorded_backend(tmp_path / "store") == backend


def test_another_backend_is_refused(photo_folder: Path, tmp_path: Path) -> None:
    densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, backend="buffer", device="cpu")
    with pytest.raises(UsageError, match="backend is 'buffer' there, not 'reference'"):
        densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, backend="reference", device="cpu")
    densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, overwrite=True, device="cpu")
    assert recorded_backend(tmp_path / "store") == "openvino"


def test_a_backend_that_is_no_longer_there(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, backend="openvino", device="cpu")
    add_image(photo_folder)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match="openvino is not installed.*; '.*store' was started with it, --overwrite starts over"):
        densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, update=True, device="cpu")
    densefeat.extract(photo_folder, tmp_path / "store", BUNDLED, overwrite=True, device="cpu")
    assert recorded_backend(tmp_path / "store") == "buffer"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, photographs: list[Image.Image]) -> Path:
    """2,000 small images, most of them hard links, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("many")
    for number, photograph in enumerate(photographs):
        photograph.resize((40, 40)).save(folder / f"0000-{number:02}.png")
    first = sorted(folder.iterdir())
    (folder / "broken.png").write_bytes(first[0].read_bytes()[:200])
    for number in range(2_000 - len(first) - 1):
        (folder / f"more-{number:04}.png").hardlink_to(first[number % len(first)])
    return folder


def test_a_long_job_on_a_network_of_timm_proves_a_backend(many: Path, tmp_path: Path) -> None:
    """On images of its own; the figures are recorded, and a job that goes on keeps what was chosen."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t").eval()
    options: dict[str, Any] = dict(model=model, device="cpu", image_size=32, blocks="5", max_failures=1)
    result = densefeat.extract(many, tmp_path / "store", **options)
    assert (result.rows, result.failures) == (1_999, 1)
    store = densefeat.open_store(tmp_path / "store")
    (trial,) = store.provenance["trials"]
    assert trial["backend"] == "openvino"
    assert trial["difference"] < 1e-5
    assert trial["speed"] > 0
    assert recorded_backend(tmp_path / "store") == ("openvino" if trial["refused"] is None else "reference")
    plain = densefeat.FeatureExtractor(model, "5", device="cpu", image_size=32, backend="reference")
    keys = store.keys.tolist()
    (column,) = store.shapes
    found, expected = store[column], plain([many / key for key in keys[:12]])[column].numpy()
    assert relative_difference(found[:12], expected) < 1e-5
    for row, key in enumerate(keys[12:], 12):  # the links, in the order of the input
        assert relative_difference(found[row], expected[int(key[5:9]) % 12]) < 1e-5
    shutil.copytree(many, tmp_path / "more", copy_function=os.link)
    (tmp_path / "more/zz.png").hardlink_to(tmp_path / "more/0000-00.png")
    made = densefeat.extract(tmp_path / "more", tmp_path / "store", update=True, **options)
    assert made.extracted == 1
    again = densefeat.open_store(tmp_path / "store")
    assert (again.provenance["backend"], again.provenance["trials"]) == (store.provenance["backend"], [trial])


def test_a_short_job_proves_nothing(photo_folder: Path, tmp_path: Path) -> None:
    model = timm.create_model("resnet10t").eval()
    densefeat.extract(photo_folder, tmp_path / "store", model, device="cpu", image_size=32, blocks="1")
    provenance = densefeat.open_store(tmp_path / "store").provenance
    assert (provenance["backend"], provenance["trials"]) == ("reference", None)
