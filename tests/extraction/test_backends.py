"""A store keeps the backend that it was started with, and all backends give the same rows."""

import shutil
import sys
from pathlib import Path

import pytest

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
