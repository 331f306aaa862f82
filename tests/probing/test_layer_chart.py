"""The chart of layers: complete and reproducible, for few layers and many."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from densefeat.probing.layer_chart import draw_layers


def make_results(columns: dict[str, int], interval: bool = True, compared: bool = True) -> dict[str, Any]:
    total = sum(count or 1 for count in columns.values())
    by_layer = [
        {
            "column": column,
            "layer": "all" if not count else f"layer {number}" if number else "input",
            "features": 12,
            "kept": number % 13,
            "share": 1 / total,
            "share_interval": None,
            "relevance": 1 / total,
            "relevance_interval": [0.5 / total, 1.5 / total] if interval else None,
        }
        for column, count in columns.items()
        for number in range(count or 1)
    ]
    tried = [{"penalty": p, "share": s, "features": int(100 * s), "top1": 80 * s} for p in (0.1, 0.01) for s in (0.1, 0.5)]
    candidates = [
        {"name": "$block^ <b>", "val": {"top1": 50.0}, "features": 12},
        {"name": "layers", "val": {"top1": 40.0}, "features": 50, "tried": tried},
    ]
    comparisons = [{"role": "last block", "with": "$block^ <b>"}] if compared else []
    layers = {"by_layer": by_layer, "comparisons": comparisons, "kept": 50, "features": 12 * total}
    return {"layers": layers, "candidates": candidates, "best": "layers", "main_metric": "top1"}


@pytest.mark.parametrize(
    "results",
    [
        make_results({"block1": 7, "block2": 13, "block3": 25, "block4": 17}),
        make_results({f"block{number}_{pool}": 17 for number in (1, 2) for pool in ("avg", "max")}),
        make_results({"$a^": 0, "<b>": 0}, interval=False, compared=False),
    ],
)
def test_layers(results: dict[str, Any], tmp_path: Path) -> None:
    chart = draw_layers(tmp_path / "layers", results)
    assert chart is not None
    with Image.open(tmp_path / "layers.png") as image:
        assert 1000 < image.width < 3000
    assert (tmp_path / "layers.svg").read_bytes() == chart.svg
    assert ElementTree.fromstring(chart.svg).tag.endswith("svg")
    layers = results["layers"]
    assert chart.alt == f"Relevance of {len(layers['by_layer'])} layers; 50 of {layers['features']:,} features are kept"


def test_same_bytes_again(tmp_path: Path) -> None:
    first, again = (draw_layers(tmp_path / name, make_results({"block1": 5})) for name in ("first", "again"))
    assert first == again
