"""results.json and tables."""

import json
import sys

import numpy as np
import pytest

from densefeat.base.pages import Table
from densefeat.probing.folder import to_json
from densefeat.probing.page import candidate_table, few_shot_table
from densefeat.probing.results import _list_files


def test_only_what_json_has() -> None:
    value = {"a": np.float32(1.5), 2: (np.int64(3), float("nan")), "b": np.array([1.0, np.inf]), "c": [True, None, "x"]}
    expected = {"a": 1.5, "2": [3, None], "b": [1.0, None], "c": [True, None, "x"]}
    assert to_json(value) == expected
    assert json.loads(json.dumps(to_json(value), allow_nan=False)) == expected


FILES = {"results.json", "report.html", "predictions.csv", "probe.safetensors"}
RESULTS = {
    "main_metric": "top1",
    "best": "block1",
    "candidates": [
        {
            "name": "block1",
            "features": 1024,
            "chosen": {"C": 0.0001234},
            "val": {"top1": 61.26},
            "test": {"top1": 60.04, "auroc": 0.91234, "macro_f1": None},
            "intervals": {"top1": [58.0, 62.06], "auroc": [0.9, 0.92], "macro_f1": None},
        },
        {"name": "all", "features": 5, "chosen": {"k": 10}, "val": {"top1": None}, "test": {}, "intervals": {}},
    ],
    "few_shot": [
        {"name": "a", "shots": 1, "mean": 10.0, "deviation": 1.26},
        {"name": "a", "shots": 5, "mean": 20.0, "deviation": 0.5},
        {"name": "b", "shots": 1, "mean": None, "deviation": None},
    ],
}


def test_files_of_a_whole_report(monkeypatch: pytest.MonkeyPatch) -> None:
    charts = {"blocks.png", "blocks.svg"}
    assert _list_files("single", 2001) == _list_files("multi", 3) == _list_files("regression", 0) == FILES | charts
    assert _list_files("single", 3) == FILES | charts | {"confusion.png", "confusion.svg"}
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert _list_files("single", 3) == FILES


def test_tables() -> None:
    table = candidate_table(RESULTS)
    assert table.headings == ["candidate", "features", "setting", "val top-1, %", "top-1, %", "macro F1, %", "AUROC"]
    assert table.rows == [
        ["block1", "1,024", "C 0.000123", "61.3", "60.0 (58.0–62.1)", "–", "0.912 (0.900–0.920)"],
        ["all", "5", "k 10", "–", "–", "–", "–"],
    ]
    assert table.bold_rows == [0]
    narrow = candidate_table(RESULTS, narrow=True)
    assert (narrow.headings[3:], narrow.rows[0][3:]) == (["val top-1, %", "top-1, %"], ["61.3", "60.0 (58.0–62.1)"])
    assert few_shot_table(RESULTS) == Table(
        ["candidate", "1 a class", "5 a class"],
        [["a", "10.0 ± 1.3", "20.0 ± 0.5"], ["b", "–", "–"]],
    )
