"""Charts: complete, reproducible, and safe for any class name."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from densefeat.labels.targets import Targets
from densefeat.probing.charts import draw_blocks, draw_confusion, short_name


def make_results(count: int, interval: bool = True, value: float | None = 70.0) -> dict[str, Any]:
    candidates = []
    for number in range(count):
        columns = [f"block{i}" for i in range(max(1, number - count // 2))]
        metric = None if value is None else value + number
        interval_ends = [metric - 2, metric + 1] if interval and metric is not None else None
        test = {"top1": metric} if interval else {}
        candidates.append(
            {
                "name": f"$block_{number}^ <b>",
                "columns": columns,
                "features": 32 * 2 ** min(number, 8),
                "val": {"top1": metric},
                "test": test,
                "intervals": {"top1": interval_ends} if interval else {},
            }
        )
    return {"candidates": candidates, "main_metric": "top1", "best": candidates[-1]["name"]}


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(
    "results", [make_results(1), make_results(3), make_results(22), make_results(4, False), make_results(3, value=None)]
)
def test_blocks(results: dict[str, Any], tmp_path: Path) -> None:
    chart = draw_blocks(tmp_path / "blocks", results)
    assert chart is not None
    assert image_size(tmp_path / "blocks.png")[0] > 1000
    assert (tmp_path / "blocks.svg").read_bytes() == chart.svg
    assert ElementTree.fromstring(chart.svg).tag.endswith("svg")
    assert f"the best is {results['best']}" in chart.alt


def test_attentive_candidates_are_beside_the_line_of_added_blocks(tmp_path: Path) -> None:
    results = make_results(3)
    chart = draw_blocks(tmp_path / "plain", results)
    assert chart is not None
    legend = b"<!-- maps pooled by attention -->"  # as matplotlib writes a text's words before its glyphs
    assert legend not in chart.svg
    results["candidates"].append(results["candidates"][-1] | {"name": "all attentive"})
    pooled = draw_blocks(tmp_path / "pooled", results)
    assert pooled is not None
    assert legend in pooled.svg


def test_same_bytes_again(tmp_path: Path) -> None:
    first, again = (draw_blocks(tmp_path / name, make_results(3)) for name in ("first", "again"))
    assert first == again
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "first.png").read_bytes()


@pytest.mark.parametrize("classes", [2, 15, 30, 200])
def test_confusion(classes: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    names = tuple(f"日本 $x^{i} \x1b[31m" for i in range(classes))
    targets = Targets("single", names, generator.integers(0, classes, 500))
    scores = generator.random((500, classes))
    chart = draw_confusion(tmp_path / "c", targets, scores)
    assert chart is not None
    share = 100 * np.mean(scores.argmax(1) == targets.values)
    assert chart.alt == f"Confusion matrix of {classes} classes; {share:.1f} % are on its diagonal"
    assert 0.5 < np.divide(*image_size(tmp_path / "c.png")) < 2.5
    assert not re.search(rb"\x1b", chart.svg)


def test_too_many_classes_for_a_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.probing.charts.MATRIX_CLASSES", 2)
    targets = Targets("single", tuple("abc"), np.arange(3))
    assert draw_confusion(tmp_path / "c", targets, np.eye(3)) is None
    assert list(tmp_path.iterdir()) == []


def test_names_are_shortened_to_one_line() -> None:
    assert short_name("a\nb") == "a·b"
    assert short_name("x" * 100) == "x" * 25 + "…"
