"""The pictures: there, of the right size, with a colour for each connection and none elsewhere, the same each time."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from densefeat.base.pictures import save_picture
from densefeat.errors import OutputError, UsageError
from densefeat.report.judging import Journal
from densefeat.report.pruning import prune
from densefeat.report.pruning_chart import _lost_triangles, draw_pruning
from densefeat.report.reuse import feature_reuse
from densefeat.report.reuse_chart import _ticks, draw_reuse, format_guide
from densefeat.report.sample import Sample
from support.small_nets import deluge, dense


def drop_nan(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def test_colours_are_over_the_largest_of_a_block(trained: nn.Module) -> None:
    reuse = feature_reuse(trained)
    panels = draw_reuse(reuse, "bundled").axes[:3]
    for number, axes in enumerate(panels, 1):
        shown, triangle = np.ma.filled(axes.images[0].get_array().astype(float), np.nan), reuse.triangle(number)
        if number == 3:  # of a linear layer
            np.testing.assert_allclose(shown[:, -1], triangle[:, -1] / triangle[:, -1].max())
            shown, triangle = shown[:, :-1], triangle[:, :-1]
        np.testing.assert_allclose(shown, triangle / np.nanmax(triangle))
        assert len(axes.patches) == 1  # the frame
        assert axes.patches[0].get_x() == 15.5


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (dense(), "weights over the largest of their block; classifier: of their column"),
        (dense(bottleneck=False), "weights over the largest of their block; transition and classifier: of their column"),
        (deluge(), "weights over the largest of their column"),
    ],
)
def test_the_guide_says_what_colours_are_over(model: nn.Module, match: str) -> None:
    assert format_guide(feature_reuse(model)).splitlines()[1] == match


def test_a_delugenets_are_over_the_largest_of_a_column() -> None:
    reuse = feature_reuse(deluge())
    shown = draw_reuse(reuse, "deluge").axes[1].images[0].get_array()
    np.testing.assert_allclose(np.nanmax(np.ma.filled(shown.astype(float), np.nan), 0), 1)


@pytest.mark.parametrize("name", ["densefeat_densenet264", "densefeat_delugenet146", "densenet121"])
def test_png(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_picture(draw_reuse(feature_reuse(timm.create_model(name)), "$no_math^ <b>"), tmp_path / "reuse.png")
    with Image.open(tmp_path / "reuse.png") as image:
        assert image.width > 1400
        assert 0.25 < image.height / image.width < 1
        assert len(image.convert("RGB").getcolors(2**24)) > 50


def test_svg_is_the_same_each_time(trained: nn.Module, tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        save_picture(draw_reuse(feature_reuse(trained), "bundled"), tmp_path / name)
    one = (tmp_path / "one.svg").read_bytes()
    assert one == (tmp_path / "two.svg").read_bytes()
    assert ElementTree.fromstring(one).tag.endswith("svg")


def test_pruning(tmp_path: Path) -> None:
    model = dense()
    generator = torch.Generator().manual_seed(0)
    sample = Sample(torch.randn(20, 3, 16, 16, generator=generator), torch.randint(0, 5, (20,), generator=generator), 20)
    pruning, reuse = prune(model, sample, Journal(None, {})), feature_reuse(model)
    triangles = _lost_triangles(pruning, reuse)
    for number, triangle in enumerate(triangles, 1):
        np.testing.assert_array_equal(np.isnan(triangle), np.isnan(reuse.triangle(number)))
    last = next(each for each in pruning.removed if (each.target, each.source) == ("classifier", 3))
    assert triangles[1][3, 3] == last.accuracy_lost
    figure = draw_pruning(pruning, reuse, "small")
    curves = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata()) > 2]
    assert [tuple(line.get_ydata()[1:]) for line in curves] == list(pruning.curves.values())
    save_picture(figure, tmp_path / "prune.png")
    with Image.open(tmp_path / "prune.png") as image:
        assert image.height > 700
        assert len(image.convert("RGB").getcolors(2**24)) > 50


@pytest.mark.parametrize(("count", "first"), [(1, 1), (9, 0), (17, 1), (65, 0), (300, 1)])
def test_ticks_are_few(count: int, first: int) -> None:
    marks = _ticks(count, first)
    assert marks[0] == first
    assert len(marks) <= 10
    assert all(first <= mark < first + count for mark in marks)


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [("reuse.gif", UsageError, "must end in .png or .svg"), ("none/reuse.png", OutputError, "cannot be written")],
)
def test_names_of_pictures(name: str, kind: type[Exception], match: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=match):
        save_picture(draw_reuse(feature_reuse(dense()), ""), tmp_path / name)
