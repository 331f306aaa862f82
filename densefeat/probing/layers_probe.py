"""The protocol ``layers`` beside the candidates of logreg (for numbers, ridge), and how it compares with them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from densefeat.labels import TEST, VAL, Targets, Task
from densefeat.probing.candidates import (
    ALL,
    BlockFitter,
    Candidate,
    Selection,
    compare_if_defined,
    count_settings,
    fit_candidates,
    select_candidate,
)
from densefeat.probing.column_layers import Layer
from densefeat.probing.layer_selection import PENALTIES, RESAMPLES, SHARES
from densefeat.probing.layers import LAYERS, LayersFit, choose_base, count_layer_settings, fit_layers
from densefeat.probing.protocols import describe_protocol
from densefeat.store import parse_columns


def describe_layers(task: Task, layers: Sequence[Layer]) -> dict[str, Any]:
    """Describe the protocol as :func:`densefeat.probing.protocols.describe_protocol` does, with the widths of the layers.

    The texts identify finished probes: with another wording these would count as other probes.
    """
    base = describe_protocol(choose_base(task), task)
    widths: dict[str, list[int]] = {}
    for layer in layers:
        widths.setdefault(layer.column, []).append(layer.width)
    return {
        "name": LAYERS,
        "grid": {"penalty": list(PENALTIES), "share": list(SHARES), **base["grid"]},
        "trials": "penalty and share: by heads with every fourth C; then all of them"
        if "C" in base["grid"]
        else "all settings",
        "criterion": base["criterion"],
        "objective": "relevance: squared errors of targets 1 and -1 (numbers: as they are) / 2n + penalty * sum of the norms of"
        f" the features' rows; penalties are shares of the largest useful one; features divided by the norm of their layer."
        f" Head on the most relevant features: {base['name']}, {base['objective']}",
        "solver": f"FISTA on working sets, to a duality gap of 1e-5 of the loss without features; head: {base['solver']}",
        "refit": "head: on all rows; features are selected by the training rows",
        "resamples": f"{RESAMPLES} bootstrap resamples of the training rows, by group",
        "layers": widths,
        "sources": ["arXiv 2201.03529 (Head2Toe)", *base["sources"]],
    }


def count_probe_settings(task: Task, columns: int) -> int:
    """Count the steps of :func:`select_layers`, of which the fitter's ``advance`` is told."""
    return count_settings(choose_base(task), columns) + count_layer_settings(task)


def select_layers(
    fitter: BlockFitter, groups: np.ndarray, layers: Sequence[Layer], provenance: dict[str, Any]
) -> tuple[Selection, list[str]]:
    """Fit the candidates and ``layers``, which is the best by decree; return a note if another one is better.

    ``fitter``: of the protocol that :func:`densefeat.probing.layers.choose_base` names; ``groups``: ``(n,)`` of its rows.
    """
    val, test = (fitter.targets.take(fitter.parts == part) for part in (VAL, TEST))
    rivals = _Rivals(fitter, _find_last_block(tuple(fitter.columns.widths), provenance))
    fitted: list[LayersFit] = []

    def list_candidates() -> Iterator[Candidate]:
        for candidate in fit_candidates(fitter):
            rivals.see(candidate)
            yield candidate
        candidate, found = _fit_candidate(fitter, groups, layers)
        fitted.append(found)
        yield candidate

    selection = select_candidate(list_candidates(), val, test, fitter.seed, saved=LAYERS)
    comparisons = rivals.compare(selection.scores, test, fitter.seed)
    selection = replace(selection, layers=fitted[0].told | {"comparisons": comparisons})
    return selection, _note_better(selection)


def _fit_candidate(fitter: BlockFitter, groups: np.ndarray, layers: Sequence[Layer]) -> tuple[Candidate, LayersFit]:
    names, targets = tuple(fitter.columns.widths), fitter.targets.take(fitter.fitting)
    x = fitter.features(names)
    found = fit_layers(x, targets, fitter.val, layers, groups[fitter.fitting], fitter.seed, fitter.advance)
    del x  # before the test rows are read
    scores = fitter.test_scores(found.fit.head, found.columns)
    return Candidate(LAYERS, found.columns, found.told["kept"], found.fit, scores), found


def _find_last_block(names: Sequence[str], provenance: dict[str, Any]) -> list[str]:
    """Return the columns of the last block, one for each pool."""
    columns = parse_columns(names, provenance)
    return [column.name for column in columns if column.block == columns[-1].block]


class _Rivals:
    """The candidates that ``layers`` is compared with, their ratings on the validation rows and scores of the test rows."""

    def __init__(self, fitter: BlockFitter, last_block: list[str]) -> None:
        self.fitter, self.last_block = fitter, last_block
        self.best: dict[str, tuple[float, str, np.ndarray | None]] = {}  # by role

    def see(self, candidate: Candidate) -> None:
        roles = ["best by block"]
        roles += ["last block"] if len(candidate.columns) == 1 and candidate.columns[0] in self.last_block else []
        roles += ["all blocks"] if candidate.name == ALL else []
        rating = self.fitter.rate(candidate.fit)
        for role in roles:
            if role not in self.best or rating > self.best[role][0]:
                self.best[role] = rating, candidate.name, candidate.test_scores

    def compare(self, scores: np.ndarray | None, test: Targets, seed: int) -> list[dict[str, Any]]:
        """Compare scores of the test rows with those of each rival, as results.json has it."""
        found = []
        for role, (_, name, others) in sorted(self.best.items(), reverse=True):
            if scores is not None and others is not None and (compared := compare_if_defined(test, scores, others, seed)):
                found.append({"role": role, "with": name} | asdict(compared))
        return found


def _note_better(selection: Selection) -> list[str]:
    """Say so if another candidate is better on the validation rows."""
    metric, other = selection.main_metric, selection.runner_up
    own, best = selection.best.val[metric], None if other is None else other.val[metric]
    if other is None or own is None or best is None or best <= own:
        return []
    return [f"{other.name} is better than {LAYERS} on the validation rows: {metric} {best:.4g}, {own:.4g}"]
