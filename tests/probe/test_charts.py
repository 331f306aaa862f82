"""Pictures: there, the same each time, whatever classes are called."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from densefeat.labels.targets import Targets
from densefeat.probe.charts import _short_name, draw_blocks, draw_confusion


def results_of(count: int, interval: bool = True, value: float | None = 70.0) -> dict[str, Any]:
    candidates = []
    for number in range(count):
        columns = [f"block{i}" for i in range(max(1, number - count // 2))]
        rated = None if value is None else value + number
        ends = [rated - 2, rated + 1] if interval and rated is not None else None
        test = {"top1": rated} if interval else {}
        candidates.append(
            {
                "name": f"$block_{number}^ <b>",
                "columns": columns,
                "features": 32 * 2 ** min(number, 8),
                "val": {"top1": rated},
                "test": test,
                "intervals": {"top1": ends} if interval else {},
            }
        )
    return {"candidates": candidates, "main_metric": "top1", "best": candidates[-1]["name"]}


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(
    "results", [results_of(1), results_of(3), results_of(22), results_of(4, False), results_of(3, value=None)]
)
def test_blocks(results: dict[str, Any], tmp_path: Path) -> None:
    picture = draw_blocks(tmp_path / "blocks", results)
    assert picture is not None
    assert size_of(tmp_path / "blocks.png")[0] > 1000
    assert (tmp_path / "blocks.svg").read_bytes() == picture.svg
    assert ElementTree.fromstring(picture.svg).tag.endswith("svg")
    assert f"the best is {results['best']}" in picture.alt
    assert draw_blocks(tmp_path / "again", results) == picture
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "blocks.png").read_bytes()


@pytest.mark.parametrize("classes", [2, 15, 30, 200])
def test_confusion(classes: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    names = tuple(f"日本 $x^{i} \x1b[31m" for i in range(classes))
    targets = Targets("single", names, generator.integers(0, classes, 500))
    scores = generator.random((500, classes))
    picture = draw_confusion(tmp_path / "c", targets, scores)
    assert picture is not None
    share = 100 * np.mean(scores.argmax(1) == targets.values)
    assert picture.alt == f"Confusion matrix of {classes} classes; {share:.1f} % are on its diagonal"
    assert 0.5 < np.divide(*size_of(tmp_path / "c.png")) < 2.5
    assert not re.search(rb"\x1b", picture.svg)


def test_too_many_classes_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.probe.charts.MATRIX_CLASSES", 2)
    targets = Targets("single", tuple("abc"), np.arange(3))
    assert draw_confusion(tmp_path / "c", targets, np.eye(3)) is None
    assert list(tmp_path.iterdir()) == []


def test_names_are_one_line_and_not_too_long() -> None:
    assert _short_name("a\nb") == "a·b"
    assert _short_name("x" * 100) == "x" * 25 + "…"
