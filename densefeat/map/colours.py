"""What the points of a map are coloured by: labels, what a probe makes of them, clusters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.labels import SEPARATOR, number_of, sorted_classes, task_of
from densefeat.map.rows import Shown
from densefeat.probe import Probe, predicted

# ten colours that people who see fewer tell apart, too: M. A. Petroff, 2107.02270, in matplotlib "petroff10"
_CLASS_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
_RIGHT, _WRONG = _CLASS_COLOURS[0], _CLASS_COLOURS[6]
REST = "#9a9a9a55"  # other classes, and no value: faint
_UNLABELLED = "no label"


@dataclass(frozen=True)
class Classes:
    """``entries``: (name, colour, rows) of the legend; ``codes``: int32 ``(n,)``, the entry of each point."""

    name: str
    entries: tuple[tuple[str, str, int], ...]
    codes: np.ndarray


@dataclass(frozen=True)
class Numbers:
    """``values``: float32 ``(n,)``, NaN where there is none."""

    name: str
    values: np.ndarray


Colouring = Classes | Numbers


def by_values(name: str, texts: Sequence[str | None]) -> Colouring:
    """Of labels: numbers where they are, not all whole, else classes, of which the ten largest have colours of their own."""
    known = [text for text in texts if text is not None]
    if known and task_of(known)[0] == "regression":
        return Numbers(name, _single_precision([np.nan if text is None else float(text) for text in texts]))
    return _by_class(name, texts)


def _single_precision(values: Sequence[float]) -> np.ndarray:
    """float32 ``(n,)``; NaN for what is not finite there."""
    with np.errstate(over="ignore"):
        found = np.array(values, np.float64).astype(np.float32)
    found[~np.isfinite(found)] = np.nan
    return found


def _by_class(name: str, texts: Sequence[str | None]) -> Classes:
    counts = Counter(text for text in texts if text is not None)
    places = {text: place for place, text in enumerate(sorted_classes(counts))}
    largest = sorted(counts, key=lambda text: (-counts[text], places[text]))[: len(_CLASS_COLOURS)]
    entries = [(text, _CLASS_COLOURS[i], counts[text]) for i, text in enumerate(sorted(largest, key=places.__getitem__))]
    codes = {text: code for code, (text, _, _) in enumerate(entries)}
    if others := len(counts) - len(largest):
        rows = sum(counts.values()) - sum(counts[text] for text in largest)
        entries.append((f"{others:,} other{'s' if others > 1 else ''}", REST, rows))
        codes |= dict.fromkeys(counts.keys() - codes.keys(), len(entries) - 1)
    if missing := len(texts) - sum(counts.values()):
        entries.append((_UNLABELLED, REST, missing))
    found = [len(entries) - 1 if text is None else codes[text] for text in texts]
    return Classes(name, tuple(entries), np.array(found, np.int32))


def by_cluster(name: str, found: np.ndarray) -> Classes:
    """``found``: int ``(n,)``, the largest cluster 0; people count from 1."""
    return _by_class(name, [str(number + 1) for number in found.tolist()])


@dataclass(frozen=True)
class Predictions:
    """Of each point: ``texts``, the prediction; ``failure``: how it compares with the label."""

    texts: list[str]
    failure: Colouring


def predictions_of(probe: Probe, shown: Shown, labels: Sequence[str | None]) -> Predictions:
    """What a probe makes of the points. Raises UsageError where it was fitted on features of another kind."""
    _check_same_network(probe, shown)
    scores = probe.scores(shown.features)
    texts = predicted(probe.task, probe.classes, scores)[0]
    if probe.task == "regression":
        numbers = [None if text is None else number_of(text) for text in labels]
        errors = [np.nan if true is None else abs(score - true) for score, true in zip(scores.tolist(), numbers, strict=True)]
        return Predictions(texts, Numbers("error of the probe", _single_precision(errors)))
    same = _same_labels if probe.task == "multi" else str.__eq__
    told = [None if true is None else same(true, text) for true, text in zip(labels, texts, strict=True)]
    return Predictions(texts, _right_or_wrong(told))


def _same_labels(one: str, other: str) -> bool:
    """Of several labels, whatever their order."""
    first, second = ({piece.strip() for piece in text.split(SEPARATOR)} - {""} for text in (one, other))
    return first == second


def _right_or_wrong(told: Sequence[bool | None]) -> Classes:
    codes = np.array([2 if right is None else int(right) for right in told], np.int32)
    counts = np.bincount(codes, minlength=3).tolist()
    entries = (("wrong", _WRONG, counts[0]), ("right", _RIGHT, counts[1]), (_UNLABELLED, REST, counts[2]))
    return Classes("right or wrong by the probe", entries if counts[2] else entries[:2], codes)


def _check_same_network(probe: Probe, shown: Shown) -> None:
    one, two = (_network(made) for made in (probe.provenance, shown.store.provenance))
    if one != two:
        told = f"of features of {one}, {shown.store.path} has those of {two}: give a probe of this store"
        raise UsageError(f"probe {str(probe.path)!r} is {told}")


def _network(made: dict[str, Any]) -> str:
    weights = made.get("weights")
    return f"{made.get('model')} (sha256 {weights.get('sha256') if isinstance(weights, dict) else weights})"
