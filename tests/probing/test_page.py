"""The report as a page: all in one file, other people's text escaped, the worst mistakes with their images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import densefeat
from densefeat.errors import OutputError
from densefeat.labels.targets import Targets
from densefeat.probing.candidates import Candidate, Selection, select_candidate
from densefeat.probing.fitting import LinearHead
from densefeat.probing.page import write_page
from densefeat.probing.protocols import ProbeFit
from densefeat.probing.request import ProbeRequest
from densefeat.probing.results import _summarize, write_report
from support.helpers import BUNDLED
from support.parsed_page import ParsedPage

EVIL = "\"><script src=//evil.example></script><img src=x onerror='alert(1)'>"


def make_selection(targets: Targets, scores: np.ndarray, name: str = "block1") -> Selection:
    head = LinearHead(
        np.zeros((max(1, len(targets.classes)), 2), np.float32), np.zeros(max(1, len(targets.classes)), np.float32)
    )
    fit = ProbeFit(head, {"C": 0.1}, [], scores)
    return select_candidate(
        [Candidate(name, (name,), 2, fit, scores), Candidate("other", ("other",), 2, fit, scores)], targets, targets
    )


def make_request(paths: list[str], **options: Any) -> ProbeRequest:
    labels = {"rows": 9, "labelled": 8, "without_label": {"count": 1, "first": [EVIL]}, "task": "single", "task_from": "…"}
    sizes = {"train": 5, "val": 1, "test": len(paths)}
    return ProbeRequest({"name": "knn"}, {}, 0, sizes, "0" * 64, labels, paths, **{"provenance": {"model": EVIL}} | options)


def write(folder: Path, selection: Selection, request: ProbeRequest) -> tuple[ParsedPage, str | None]:
    problem = write_page(folder / "p.html", selection, request, _summarize(selection, request), [])
    return ParsedPage(folder / "p.html"), problem


def test_the_worst_mistakes_with_their_images(photo_folder: Path, tmp_path: Path) -> None:
    densefeat.extract(photo_folder, tmp_path / "e.parquet", BUNDLED, device="cpu", workers=1, blocks="1", labels="folder")
    store = densefeat.open_store(tmp_path / "e.parquet")
    paths, targets = store.keys.tolist(), Targets("single", ("china", "flower"), (np.arange(12) >= 6).astype(np.int64))
    scores = np.eye(2, dtype=np.float32)[targets.values]
    scores[3], scores[8], scores[5] = (0, 5), (9, 0), (0, 1)  # three mistakes
    (photo_folder / paths[5]).unlink()
    selection = make_selection(targets, scores)
    request = make_request(paths, provenance=store.provenance, images=str(photo_folder))
    results = write_report(tmp_path / "out", selection, request)
    page = ParsedPage(tmp_path / "out/report.html")
    assert len(page.all("figure")) == 3
    names = [attributes["alt"] for attributes in page.all("img") if str(attributes["src"]).startswith("data:image/jpeg")]
    assert names == [paths[8], paths[3]]  # the surest first; the third is gone
    assert page.texts.count("no image") == 1
    assert {"flower", "china", "· 99 %", "Worst mistakes of block1 on the test rows: surest in a wrong class"} <= set(
        page.texts
    )
    charts = [attributes for attributes in page.all("img") if str(attributes["src"]).startswith("data:image/svg+xml;base64,")]
    assert len(charts) == 2
    assert results["confusions"] == [
        {"label": "china", "predicted": "flower", "rows": 2, "of": 6},
        {"label": "flower", "predicted": "china", "rows": 1, "of": 6},
    ]


def test_page_loads_nothing(tmp_path: Path) -> None:
    """No scripts, styles, fonts or pictures from elsewhere, and a policy that would forbid them."""
    targets = Targets("single", (EVIL, "b"), np.array([0, 1, 0]))
    scores = np.float32([[0, 1], [0, 1], [1, 0]])
    page, problem = write(tmp_path, make_selection(targets, scores, EVIL), make_request([EVIL, "b", "c"], images="/nowhere"))
    assert problem is not None
    assert problem.startswith("images '/nowhere'")
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "main", "section", "bdi", "div", "figure",
               "figcaption", "b", "br", "span", "table", "tr", "th", "td"}  # fmt: skip
    assert {tag for tag, _ in page.elements} == allowed
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on") or name in ("src", "href")
    ]
    assert page.all("meta")[-1]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f"1 rows without a label are left out: {EVIL}" in page.texts
    assert page.texts.count(EVIL) >= 4  # candidate, confusion, the image and its label, as they are
    assert f"Images could not be shown: {problem}" in page.texts


@pytest.mark.parametrize(
    ("targets", "scores", "figures", "texts"),
    [
        (Targets("regression", (), np.array([1.0, 2, 4])), np.float32([1, 2.5, 3]), 2, {"3 (-1)", "2.5 (+0.5)"}),
        (
            Targets("multi", ("a", "b"), np.array([[1, 0], [1, 1], [0, 1]], bool)),
            np.float32([[1, -1], [1, -5], [1, -9]]),
            2,
            {"a", "a|b", "Worst mistakes of block1 on the test rows: largest loss"},
        ),
        (Targets("single", ("a", "b"), np.array([0, 1, 0])), np.float32([[1, 0], [0, 1], [1, 0]]), 0, {"100.0 (100.0–100.0)"}),
    ],
)
def test_every_task(targets: Targets, scores: np.ndarray, figures: int, texts: set[str], tmp_path: Path) -> None:
    page, _ = write(tmp_path, make_selection(targets, scores), make_request(["0.jpg", "1.jpg", "2.jpg"]))
    assert len(page.all("figure")) == figures
    assert texts <= set(page.texts)


def test_tiles_are_shown_with_their_place(tmp_path: Path) -> None:
    targets = Targets("single", ("a", "b"), np.array([0, 1]))
    page, _ = write(
        tmp_path,
        make_selection(targets, np.float32([[0, 1], [0, 1]])),
        make_request(["a", "a"], places={"x": np.array([32, 0]), "y": np.array([64, 0])}),
    )
    assert "x 32, y 64" in page.texts


def test_page_cannot_be_written(tmp_path: Path) -> None:
    targets = Targets("single", ("a", "b"), np.array([0, 1]))
    selection, request = make_selection(targets, np.eye(2, dtype=np.float32)), make_request(["a", "b"])
    with pytest.raises(OutputError, match=r"no/p.html' cannot be written: No such"):
        write_page(tmp_path / "no/p.html", selection, request, _summarize(selection, request), [])
