"""How sure a probe is, on its page: tables of promises, and the strangest test images."""

from typing import Any

import numpy as np

from densefeat.base import ImageCard, Section, Table
from densefeat.labels import decode_labels
from densefeat.probing.candidates import Selection
from densefeat.probing.predictions import predict_labels
from densefeat.probing.request import ProbeRequest

_STRANGEST = 24
_ROWS = {"ece": "calibration error (ECE, 15 bins)", "brier": "Brier score", "log_loss": "log loss"}


def certainty_sections(results: dict[str, Any]) -> list[Section]:
    """Return the tables on calibration, risk and sets; none for results of earlier versions."""
    certainty = results.get("certainty")
    if not certainty:
        return []
    sections = [_sets_section(certainty, results["task"])]
    if "calibration" in certainty:
        sections = [_calibration_section(certainty), _risk_section(certainty), *sections]
    return sections


def _calibration_section(certainty: dict[str, Any]) -> Section:
    measured = certainty["calibration"]
    headings, rows = ["", "validation before", "after"], []
    for name, title in _ROWS.items():
        row = [title, *(f"{measured['val'][when][name]:.4f}" for when in ("before", "after"))]
        if "test" in measured:
            row += [_with_interval(measured, when, name) for when in ("before", "after")]
        rows.append(row)
    headings += ["test before", "after"] if "test" in measured else []
    text = (
        f"Scores are divided by a temperature of {certainty['temperature']:.4g}, fitted on the validation rows; brackets are"
        " 95 % bootstrap intervals on the test rows."
    )
    return Section("Calibration of the best candidate", [Table(headings, rows)], text)


def _with_interval(measured: dict[str, Any], when: str, name: str) -> str:
    low, high = measured["intervals"][when][name]
    return f"{measured['test'][when][name]:.4f} ({low:.4f}–{high:.4f})"


def _risk_section(certainty: dict[str, Any]) -> Section:
    rows = []
    for entry in certainty["risk"]:
        promised = f"{100 * entry['risk']:g} %"
        if "problem" in entry:
            rows.append([promised, "–", "–", entry["problem"].partition(";")[0]])
        else:
            rows.append([promised, _percent(entry.get("answered")), _percent(entry.get("wrong")), f"{entry['threshold']:.4f}"])
    text = (
        "Only answers of at least the threshold are given. It is fitted on"
        f" {certainty['validation_rows']:,} validation rows so that, with a confidence of {100 * certainty['confidence']:g} %,"
        " no more of the answers are wrong than promised, for images that are drawn as those were."
    )
    headings = ("at most wrong", "answered (test rows)", "of these wrong", "threshold")
    return Section("Answers with a promised risk", [Table(headings, rows)], text)


def _sets_section(certainty: dict[str, Any], task: str) -> Section:
    size = {"single": "classes in a set", "multi": "labels in a set", "regression": "width"}[task]
    rows = []
    for entry in certainty["sets"]:
        level = f"{100 * entry['level']:g} %"
        measured = "–" if entry.get("size") is None else f"{entry['size']:.4g}"
        rows.append([level, _percent(entry.get("coverage")), entry.get("problem", measured).partition(";")[0]])
    kind = "Intervals" if task == "regression" else "Sets"
    text = f"{kind} hold the truth of a new image at least as often as promised, if it is drawn as the validation rows were."
    return Section(f"{kind} with a promised coverage", [Table(("promised", "holds the truth (test rows)", size), rows)], text)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def strange_section(selection: Selection, request: ProbeRequest) -> tuple[list[Section], str | None]:
    """Return the test images that are least like those learnt from, and why they cannot be shown, or None."""
    ood, scores, targets = selection.ood, selection.calibrated, selection.targets
    if ood is None or scores is None or not len(ood):
        return [], None
    chosen = np.argsort(ood, kind="stable")[:_STRANGEST]
    labels = decode_labels(targets.take(chosen))
    guesses, _ = predict_labels(targets.task, targets.classes, scores[chosen])
    entries, pictures, problem = request.show_images(chosen.tolist(), labels)
    cards = [
        ImageCard(guess, remark=f" · p {value:.2g}", picture=pictures.get(entry), **vars(entry))
        for entry, guess, value in zip(entries, guesses, ood[chosen].tolist(), strict=True)
    ]
    text = (
        "p: the share of validation images that are no more usual, by distances to the training images in"
        f" {', '.join(selection.certainty.outliers.blocks) if selection.certainty and selection.certainty.outliers else ''}."
    )
    return [Section("The test images least like those learnt from", cards, text)], problem
