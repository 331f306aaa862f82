"""Photographs and models that many tests use. The photographs are cut from the two that ship with scikit-learn."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import densefeat
from support.helpers import BUNDLED
from support.labelled_images import make_folder, make_parquet, make_tar, pieces, pngs  # noqa: F401  (fixtures)
from support.processors import pretend_flags, with_bf16, without_bf16  # noqa: F401  (fixtures)
from support.stores import write_single_store


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Twelve real pieces of photograph, of different sizes and shapes."""
    boxes = [
        (0, 0, 640, 427),
        (0, 0, 300, 300),
        (200, 100, 520, 420),
        (100, 50, 260, 400),
        (320, 200, 640, 300),
        (0, 200, 99, 297),
    ]
    return [Image.fromarray(image).crop(box) for image in load_sample_images().images for box in boxes]


@pytest.fixture
def photo_folder(tmp_path: Path, photographs: list[Image.Image]) -> Path:
    """The photographs as JPEG files in two folders."""
    folder = tmp_path / "photos"
    for i, photograph in enumerate(photographs):
        path = folder / ("china" if i < 6 else "flower") / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.save(path, quality=92)
    return folder


@pytest.fixture(scope="session")
def trained() -> torch.nn.Module:
    """The bundled network with its weights, in eval mode. Shared: leave it as it is."""
    return timm.create_model(BUNDLED, pretrained=True).eval()


@pytest.fixture(scope="session")
def small_extractor() -> densefeat.FeatureExtractor:
    return densefeat.FeatureExtractor(BUNDLED, device="cpu")


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., densefeat.Store]:
    """Write vectors that a test chooses to a store of one file: :func:`support.stores.write_single_store`."""
    return partial(write_single_store, tmp_path / "store.parquet")
