"""Which images a network is judged on."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import densefeat
from densefeat.errors import UsageError
from densefeat.evaluation.accuracy import evaluate
from densefeat.heads.modules import HeadedNet
from densefeat.images.transforms import Preprocessing
from densefeat.loading.load import load_network
from densefeat.report.judging import judge
from densefeat.report.sample import _choose_evenly, load_sample
from densefeat.training.run_folder import RunFolder
from support.helpers import BUNDLED


@pytest.fixture
def data(tmp_path: Path, photographs: list[Image.Image]) -> Path:
    """The photographs at 32×32, four in each of three of the bundled network's classes."""
    classes = load_network(BUNDLED, head=True).classes
    assert classes is not None
    for i, photograph in enumerate(photographs):
        path = tmp_path / "data" / classes[i % 3] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.resize((32, 32)).save(path)
    return tmp_path / "data"


def test_all_of_them_are_what_evaluate_judges(data: Path) -> None:
    network, sample = load_sample(BUNDLED, None, str(data), 100)
    assert (len(sample), sample.available) == (12, 12)
    assert sample.images.shape == (12, 3, 32, 32)
    wanted = evaluate(BUNDLED, str(data)).scores
    judged = judge(network, sample)
    assert judged.top1 == pytest.approx(wanted.top1)
    assert judged.loss == pytest.approx(wanted.loss / 12, rel=1e-5)


def test_some_of_them_evenly(data: Path) -> None:
    _, every = load_sample(BUNDLED, None, str(data), 12)
    _, some = load_sample(BUNDLED, None, str(data), 4)
    assert (len(some), some.available) == (4, 12)
    assert torch.equal(some.images, every.images[[0, 4, 7, 11]])
    assert some.sha256() != every.sha256()
    assert sorted(set(some.labels.tolist())) == [0, 1, 2]


def test_networks_are_checked_before_images(tmp_path: Path) -> None:
    network = HeadedNet(timm.create_model(BUNDLED, num_classes=0), "mlp", 16, 3)
    folder = RunFolder(tmp_path)
    folder.export(network, Preprocessing.for_model(network), ["a", "b", "c"], "single")
    for model, match in [
        (str(tmp_path), "its head is 'mlp', and not a linear classifier"),
        ("resnet18", "ResNet: its connections"),
    ]:
        with pytest.raises(UsageError, match=match):
            load_sample(model, None, str(tmp_path / "nothing"), 12)


def test_positions() -> None:
    np.testing.assert_array_equal(_choose_evenly(np.array([3, 5, 9]), 3), [3, 5, 9])
    np.testing.assert_array_equal(_choose_evenly(np.arange(100), 2), [0, 99])


def test_a_store_stands_for_its_images(data: Path, tmp_path: Path) -> None:
    densefeat.extract(str(data), tmp_path / "store", model=BUNDLED, labels="folder", device="cpu")
    _, sample = load_sample(BUNDLED, None, str(tmp_path / "store"), 12)
    _, wanted = load_sample(BUNDLED, None, str(data), 12)
    assert torch.equal(sample.images, wanted.images)
    assert torch.equal(sample.labels, wanted.labels)


def test_images_that_cannot_be_read_do_not_count(data: Path) -> None:
    next(data.glob("*/*.png")).write_bytes(b"no image")
    _, sample = load_sample(BUNDLED, None, str(data), 12)
    assert (len(sample), sample.available) == (11, 12)


def test_tiles_are_refused(data: Path, tmp_path: Path) -> None:
    densefeat.extract(str(data), tmp_path / "tiles", model=BUNDLED, tile=32, device="cpu")
    with pytest.raises(UsageError, match="has tiles, which have no labels"):
        load_sample(BUNDLED, None, str(tmp_path / "tiles"), 12)


@pytest.mark.parametrize(
    ("model", "images", "match"),
    [
        ("densnet", "{data}", "unknown model 'densnet'"),
        (BUNDLED, "{data}/nothing", "nothing"),
        (BUNDLED, "{others}", "label 'cat' is not one of the 200 known classes"),
    ],
)
def test_errors(data: Path, tmp_path: Path, model: str, images: str, match: str) -> None:
    (tmp_path / "others/cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "others/cat/1.png")
    with pytest.raises(UsageError, match=match):
        load_sample(model, None, images.format(data=data, others=tmp_path / "others"), 12)
