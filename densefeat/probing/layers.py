"""The fit of the protocol ``layers``: a linear head on the features that matter, from all layers of all blocks.

Source: Evci et al., Head2Toe (arXiv 2201.03529). Features are divided by the norm of their layer; their relevance is the norm
of their row in a fit with a group lasso; a share of them is kept, and a head is fitted on these. What differs from the paper:

- Layers are those whose outputs a dense block holds side by side, pooled to one value a channel; the paper pools the maps of a
  ResNet or a transformer to many values a channel.
- The group lasso has the squared error of targets 1 and -1, and is solved to its minimum (:mod:`densefeat.probing.relevance`).
- Its penalty is chosen together with the share, on validation rows. Shares above 0.1 are tried, too.
- The head is the logistic regression of the protocol ``logreg``, for numbers ridge. A layer is divided by the norm of all its
  features; the authors' code then takes that of the kept ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from densefeat.labels import Targets, Task
from densefeat.probing.column_layers import Layer
from densefeat.probing.fitting import Advance, Choice, LinearHead, encode_targets
from densefeat.probing.layer_selection import (
    PENALTIES,
    RESAMPLES,
    SHARES,
    RelevanceFit,
    Stability,
    find_intervals,
    fit_penalties,
    keep_features,
    mark_kept,
    measure_stability,
    share_by_layer,
    sum_by_layer,
)
from densefeat.probing.layers_head import LayersHead, normalize_layers
from densefeat.probing.logreg import FEW, C, fit_logreg
from densefeat.probing.matrices import move_validation_last
from densefeat.probing.metrics import MAIN
from densefeat.probing.protocols import GRIDS, ProbeFit, check_rows
from densefeat.probing.ridge import fit_ridge

LAYERS = "layers"  # the protocol, and its candidate
TRIAL_C = C[::4]  # of heads that only compare penalties and shares: the head on the features that win has all values


@dataclass(frozen=True)
class LayersFit:
    """A head on some features of all layers. ``columns``: those with a kept feature, which the head reads.

    ``told``: the entry ``layers`` of results.json, without comparisons.
    """

    fit: ProbeFit
    columns: tuple[str, ...]
    told: dict[str, Any]


@dataclass(frozen=True)
class _Trial:
    """A head on the features that one penalty and share keep, ascending positions; ``choice``: of the head's setting."""

    relevance: RelevanceFit
    share: float
    kept: np.ndarray
    choice: Choice

    @property
    def setting(self) -> dict[str, float | int]:
        return {"penalty": self.relevance.penalty, "share": self.share} | self.choice.chosen

    def describe(self) -> dict[str, float | int]:
        """Return the setting with the number of kept features, and the metrics on the validation rows."""
        (figures,) = (tried for tried in self.choice.tried if self.choice.chosen.items() <= tried.items())
        return self.setting | {"features": len(self.kept)} | figures


def choose_base(task: Task) -> str:
    """Name the protocol that fits the heads: on blocks, to compare with, and on kept features."""
    return "ridge" if task == "regression" else "logreg"


def count_layer_settings(task: Task) -> int:
    """Count the steps of :func:`fit_layers`, of which ``advance`` is told."""
    final = len(GRIDS[choose_base(task)])
    return len(PENALTIES) * len(SHARES) * (final if task == "regression" else len(TRIAL_C)) + final + RESAMPLES


def fit_layers(
    x: np.ndarray, targets: Targets, val: np.ndarray, layers: Sequence[Layer], groups: np.ndarray, seed: int, advance: Advance
) -> LayersFit:
    """Choose penalty, share and setting of the head on the validation rows; then fit the head on all rows.

    Features are selected by the training rows alone.

    Args:
        x: Float32 ``(n, D)``, C-contiguous, the features of all layers side by side. It is overwritten.
        val: Bool ``(n,)``, the validation rows.
        groups: ``(n,)``; rows of one value stay together in resamples.
        advance: Called with the number of steps done since the last call: ``count_layer_settings`` in all.

    Raises UsageError as :func:`densefeat.probing.protocols.fit_head`.
    """
    check_rows(x, targets, val)
    total, done = count_layer_settings(targets.task), 0

    def count(steps: int) -> None:
        nonlocal done
        done += steps
        advance(steps)

    order = move_validation_last(x, val)
    train, targets, groups = int(np.count_nonzero(~val)), targets.take(order), groups[order]
    widths = [layer.width for layer in layers]
    normalize_layers(x, widths)
    fitting = encode_targets(targets.take(np.arange(train)))
    best, tried = _choose_trial(_try_settings(x, fitting, targets, train, count), targets.task, len(x) - train)
    linear, choice = _fit_kept(x, best.kept, targets, train, count)
    place, best = tried.index(best.describe()), replace(best, choice=choice)
    tried[place] = best.describe()
    stability = measure_stability(x[:train], fitting, groups[:train], best.relevance, best.kept, widths, seed, count)
    advance(total - done)

    columns, head = _narrow_head(layers, best.kept, linear)
    val_scores = best.choice.val_scores[np.argsort(order[train:])]
    told = {
        "features": x.shape[1],
        "kept": len(best.kept),
        "absolute_penalty": best.relevance.absolute_penalty,
        "channels": _list_channels(layers, best.kept),
        "by_layer": _describe_layers(layers, best, stability),
        "resamples": {"number": len(stability.kept), "rows": stability.rows, "agreement": stability.agreement},
    }
    return LayersFit(ProbeFit(head, best.setting, tried, val_scores), columns, told)


def _try_settings(x: np.ndarray, fitting: np.ndarray, targets: Targets, train: int, advance: Advance) -> Iterator[_Trial]:
    """Yield a trial for each penalty and share that keep features which none before has kept."""
    seen = set[bytes]()
    for relevance in fit_penalties(x[:train], fitting):
        for share in SHARES:
            kept = keep_features(relevance.relevance, max(1, round(share * x.shape[1])))
            if (identity := kept.tobytes()) not in seen:
                seen.add(identity)
                yield _Trial(relevance, share, kept, _fit_kept(x, kept, targets, train, advance, trial=True)[1])


def _fit_kept(
    x: np.ndarray, kept: np.ndarray, targets: Targets, train: int, advance: Advance, trial: bool = False
) -> tuple[LinearHead, Choice]:
    """Fit the head on some features, of which a copy is made. ``trial``: to the training rows alone, for fewer settings."""
    some = np.ascontiguousarray(x[:, kept])
    if targets.task == "regression":
        return fit_ridge(some, targets, train, advance, refit=not trial)
    return fit_logreg(some, targets, train, False, advance, refit=not trial, values=TRIAL_C if trial else C)


def _choose_trial(trials: Iterator[_Trial], task: Task, val_rows: int) -> tuple[_Trial, list[dict[str, float | int]]]:
    """Choose by the main metric on the validation rows, among equals by the loss; on few rows by the loss alone.

    Returns the best trial and what was tried.
    """
    metric, by_loss = MAIN[task], task != "regression" and val_rows < FEW
    best: _Trial | None = None
    best_rating, tried = (-np.inf, -np.inf), []
    for trial in trials:
        tried.append(trial.describe())
        rating = (0.0 if by_loss else tried[-1][metric], -tried[-1].get("log_loss", 0.0))
        if rating > best_rating:
            best, best_rating = trial, rating
    assert best is not None
    return best, tried


def _narrow_head(layers: Sequence[Layer], kept: np.ndarray, linear: LinearHead) -> tuple[tuple[str, ...], LayersHead]:
    """Make a head that reads only the columns with a kept feature; return them, too."""
    column_of = _repeat([layer.column for layer in layers], layers)
    columns = tuple(name for name in dict.fromkeys(layer.column for layer in layers) if name in column_of[kept])
    used = np.isin(column_of, columns)
    positions = (np.cumsum(used) - 1)[kept]
    widths = tuple(layer.width for layer in layers if layer.column in columns)
    return columns, LayersHead(widths, positions, linear.weight, linear.bias, linear.squeeze)


def _list_channels(layers: Sequence[Layer], kept: np.ndarray) -> dict[str, list[int]]:
    """List the kept channels of each column that has some."""
    column_of = _repeat([layer.column for layer in layers], layers)
    channels: dict[str, list[int]] = {}
    for name in dict.fromkeys(column_of[kept].tolist()):
        own = kept[column_of[kept] == name]
        channels[name] = (own - np.flatnonzero(column_of == name)[0]).tolist()
    return channels


def _repeat(names: list[str], layers: Sequence[Layer]) -> np.ndarray:
    return np.repeat(np.array(names, dtype=object), [layer.width for layer in layers])


def _describe_layers(layers: Sequence[Layer], trial: _Trial, stability: Stability) -> list[dict[str, Any]]:
    """Describe each layer as results.json and :meth:`densefeat.Probe.explain_layers` do."""
    widths = [layer.width for layer in layers]
    relevance = trial.relevance.relevance
    marks = mark_kept(trial.kept, len(relevance))
    counts = sum_by_layer(marks, widths).astype(int)
    return [
        {
            "column": layer.column,
            "layer": layer.name,
            "features": layer.width,
            "kept": int(count),
            "share": float(share),
            "share_interval": share_ends,
            "relevance": float(own),
            "relevance_interval": own_ends,
        }
        for layer, count, share, share_ends, own, own_ends in zip(
            layers,
            counts,
            share_by_layer(marks, widths),
            find_intervals(stability.kept),
            share_by_layer(relevance, widths),
            find_intervals(stability.relevance),
            strict=True,
        )
    ]
