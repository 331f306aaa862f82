"""The page of a model: what it says is so, it needs nothing beside it, and texts of others are no markup."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from densefeat.errors import UsageError, WeightsError
from densefeat.heads.modules import HeadedNet
from densefeat.images.transforms import Preprocessing
from densefeat.nets.weights import file_sha256
from densefeat.nets.zoo import BUNDLED as FOLDER
from densefeat.report.card import _name_data, collect_run_points, read_card
from densefeat.report.comparison import _shorten_name, draw_comparison
from densefeat.report.model_page import collect_points, render_html, render_markdown
from densefeat.report.stages import sum_stages
from densefeat.training.job import train
from densefeat.training.run_folder import RunFolder
from support.helpers import BUNDLED
from support.runs import tiny_recipe

HOSTILE = "</td><img src=x onerror=alert(1)> | `a`"


def test_the_bundled_card() -> None:
    """Against the file that comes with the weights."""
    card = read_card(BUNDLED)
    facts = dict(card.facts)
    file = FOLDER / "densenet_bc100_k12.tin200.safetensors"
    assert facts["SHA-256 of their file"] == file_sha256(file)
    assert (facts["model"], facts["licence"]) == (f"{BUNDLED}.tin200", "apache-2.0")
    assert facts["classes"].startswith("200: n01443537, n01629819")
    assert facts["its card: data"].startswith("Tiny ImageNet: 200 ImageNet classes")
    (point,) = card.measured
    assert f"{point.top1} % top-1" in file.with_suffix(".md").read_text()
    assert (point.data, point.papers, point.parameters) == ("Tiny ImageNet", False, 834_332)


def test_published_weights_are_not_fetched() -> None:
    facts = dict(read_card("densefeat_densenet264").facts)
    assert (facts["weights"], facts["SHA-256 of their file"]) == ("none", "none")
    assert dict(read_card("densenet121").facts)["weights"].startswith("hf-hub:timm/densenet121")


def test_weights_of_ones_own(trained: nn.Module, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "own.safetensors", {"classes": json.dumps([HOSTILE] * 200)})
    card = read_card(BUNDLED, tmp_path / "own.safetensors")
    facts = dict(card.facts)
    assert facts["SHA-256 of their file"] == file_sha256(tmp_path / "own.safetensors")
    assert (facts["licence"], card.measured) == ("not stated", [])
    points = collect_points(card)
    page = render_html(card, points)
    assert HOSTILE not in page
    assert "&lt;/td&gt;&lt;img src=x" in page
    assert "\\</td\\>\\<img src=x onerror=alert(1)\\> \\| \\`a\\`" in render_markdown(card, points)


def test_the_page_needs_nothing_beside_it() -> None:
    card = read_card(BUNDLED)
    page = render_html(card, collect_points(card))
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert f"{sum_stages(card.stages).parameters:,}" in page
    assert page.count("paper: arXiv") == 18
    assert page.count("measured: its card") == 1


def test_markdown() -> None:
    card = read_card(BUNDLED)
    text = render_markdown(card, collect_points(card))
    assert "| denseblock2 | 300×16×16 | 242,880 | 1,003 | 60.2 | 120.3 | 983 | 100 | 2 |" in text
    assert "| densefeat\\_densenet" not in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| dense") and "×" in line}
    assert widths == {8}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tiny"
    train(tiny_recipe(tmp_path, model=BUNDLED), folder, device="cpu")
    return folder


def test_a_run(run: Path) -> None:
    card = read_card(str(run))
    results = json.loads((run / "results.json").read_text())
    assert dict(card.facts)["SHA-256 of their file"] == file_sha256(run / "model.safetensors")
    assert dict(card.recipe)["batch_size"] == "8"
    (point,) = card.measured
    assert (point.top1, point.where, point.data) == (results["val"]["top1"], "tiny, validation", "CIFAR-10")
    assert collect_run_points(run.parent) == [point]
    points = collect_points(card, run.parent)
    assert [each for each in points if not each.papers] == [point]
    figure = draw_comparison(points)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["CIFAR-10+", "CIFAR-10+", "CIFAR-100+", "CIFAR-100+", "CIFAR-10", "CIFAR-10"]
    assert "## Recipe" in render_markdown(card, points)


@pytest.mark.parametrize("head", ["mlp", "cross-layer"])
def test_a_head_counts(tmp_path: Path, head: str) -> None:
    """Its parameters are among those of the network, and no weights are read."""
    network = HeadedNet(timm.create_model(BUNDLED, num_classes=0), head, 16, 3)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.export(network, Preprocessing.for_model(network), ["a", "b", "c"], "single")
    folder.write("results.json", {"val": {"top1": 40.0}, "test": {"top1": 50.0}})
    card = read_card(str(folder.path))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert (card.stages[-1].name, card.stages[-1].shape) == (f"{head} head", (3,))
    assert card.stages[-1].macs >= card.stages[-1].parameters - 200
    (folder.path / "model.safetensors").unlink()
    (point,) = collect_run_points(tmp_path)
    assert point == card.measured[0]
    assert (point.parameters, point.where, point.top1) == (parameters, "run", 50.0)


@pytest.mark.parametrize(
    ("data", "augment", "wanted"),
    [
        ("cifar10", "shift-mirror", "CIFAR-10+"),
        ("cifar100", "none", "CIFAR-100"),
        ("cifar10", "cutout", "CIFAR-10, cutout"),
        ("imagenet", "inception", "ImageNet"),
    ],
)
def test_the_papers_augmentation_alone_is_plus(data: str, augment: str, wanted: str) -> None:
    assert _name_data({"data": data, "augment": augment}) == wanted


def test_folders_that_hold_no_runs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/results.json").write_text("{}")
    assert collect_run_points(tmp_path) == []
    with pytest.raises(UsageError, match="no such folder"):
        collect_run_points(tmp_path / "nothing")


def test_the_chart_has_every_point() -> None:
    points = collect_points(read_card(BUNDLED))
    figure = draw_comparison(points)
    shown = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert shown == {_shorten_name(point.network) for point in points}
    assert [(line.get_markerfacecolor(), len(line.get_xdata())) for line in figure.axes[0].lines] == [("none", 9)]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown model 'densnet'"):
        read_card("densnet")
    with pytest.raises(UsageError, match="ResNet: its connections are not known"):
        read_card("resnet18")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="do not fit"):
        read_card(BUNDLED, tmp_path / "other.pt")
