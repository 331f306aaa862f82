"""Colours of a map's points: by label, by a probe's predictions, by cluster."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from densefeat.errors import UsageError
from densefeat.labels import infer_task, parse_number, sort_classes, split_label
from densefeat.map.rows import MapRows
from densefeat.probing import Probe, predict_labels

# ten colours that colour-blind people can tell apart, too (M. A. Petroff, arXiv 2107.02270; matplotlib's petroff10)
_CLASS_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
_RIGHT, _WRONG = _CLASS_COLOURS[0], _CLASS_COLOURS[6]
REST = "#9a9a9a55"  # faint: other classes, and points without a value
_UNLABELLED = "no label"


@dataclass(frozen=True)
class ClassColouring:
    """Colours by class. ``entries`` are (name, colour, rows) of the legend; ``codes``, int32 ``(n,)``, each point's entry."""

    name: str
    entries: tuple[tuple[str, str, int], ...]
    codes: np.ndarray


@dataclass(frozen=True)
class NumberColouring:
    """Colours on a scale. ``values`` are float32 ``(n,)``, NaN for a point without one."""

    name: str
    values: np.ndarray


Colouring = ClassColouring | NumberColouring


def colour_by_values(name: str, texts: Sequence[str | None]) -> Colouring:
    """Colour by labels: on a scale if they are numbers, not all integers; else the ten largest classes each in a colour."""
    known = [text for text in texts if text is not None]
    if known and infer_task(known)[0] == "regression":
        numbers = [None if text is None else parse_number(text) for text in texts]
        return NumberColouring(name, _to_float32([np.nan if number is None else number for number in numbers]))
    return _colour_by_class(name, texts)


def _to_float32(values: Sequence[float]) -> np.ndarray:
    """Return float32 ``(n,)``, with NaN for what is not finite in float32."""
    with np.errstate(over="ignore"):
        numbers = np.array(values, np.float64).astype(np.float32)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def _colour_by_class(name: str, texts: Sequence[str | None]) -> ClassColouring:
    counts = Counter(text for text in texts if text is not None)
    places = {text: place for place, text in enumerate(sort_classes(counts))}
    largest = sorted(counts, key=lambda text: (-counts[text], places[text]))[: len(_CLASS_COLOURS)]
    entries = [(text, _CLASS_COLOURS[i], counts[text]) for i, text in enumerate(sorted(largest, key=places.__getitem__))]
    codes = {text: code for code, (text, _, _) in enumerate(entries)}
    if others := len(counts) - len(largest):
        rows = sum(counts.values()) - sum(counts[text] for text in largest)
        entries.append((f"{others:,} other{'s' if others > 1 else ''}", REST, rows))
        codes |= dict.fromkeys(counts.keys() - codes.keys(), len(entries) - 1)
    if missing := len(texts) - sum(counts.values()):
        entries.append((_UNLABELLED, REST, missing))
    points = [len(entries) - 1 if text is None else codes[text] for text in texts]
    return ClassColouring(name, tuple(entries), np.array(points, np.int32))


def colour_by_cluster(name: str, clusters: np.ndarray) -> ClassColouring:
    """Colour by ``clusters``, int ``(n,)``, numbered from 0; the legend counts from 1."""
    return _colour_by_class(name, [str(number + 1) for number in clusters.tolist()])


@dataclass(frozen=True)
class PointPredictions:
    """A probe's predictions for the points: ``texts``, and ``outcome``, how they compare with the labels."""

    texts: list[str]
    outcome: Colouring


def predict_points(probe: Probe, rows: MapRows, labels: Sequence[str | None]) -> PointPredictions:
    """Predict the labels of the points. Raises UsageError if the probe was fitted on features of another network."""
    _check_same_network(probe, rows)
    scores = probe.scores(rows.features)
    texts = predict_labels(probe.task, probe.classes, scores)[0]
    if probe.task == "regression":
        numbers = [None if text is None else parse_number(text) for text in labels]
        errors = [np.nan if true is None else abs(score - true) for score, true in zip(scores.tolist(), numbers, strict=True)]
        return PointPredictions(texts, NumberColouring("error of the probe", _to_float32(errors)))
    same = _match_labels if probe.task == "multi" else str.__eq__
    outcomes = [None if true is None else same(true, text) for true, text in zip(labels, texts, strict=True)]
    return PointPredictions(texts, _colour_by_outcome(outcomes))


def _match_labels(one: str, other: str) -> bool:
    """Compare lists of labels, whatever their order."""
    return set(split_label(one)) == set(split_label(other))


def _colour_by_outcome(outcomes: Sequence[bool | None]) -> ClassColouring:
    codes = np.array([2 if right is None else int(right) for right in outcomes], np.int32)
    counts = np.bincount(codes, minlength=3).tolist()
    entries = (("wrong", _WRONG, counts[0]), ("right", _RIGHT, counts[1]), (_UNLABELLED, REST, counts[2]))
    return ClassColouring("right or wrong by the probe", entries if counts[2] else entries[:2], codes)


def _check_same_network(probe: Probe, rows: MapRows) -> None:
    own, other = _describe_network(probe.provenance), _describe_network(rows.store.provenance)
    if own != other:
        raise UsageError(
            f"probe {str(probe.path)!r} is for features of {own}, and {rows.store.path} has those of {other}:"
            " give a probe of this store"
        )


def _describe_network(provenance: dict[str, Any]) -> str:
    weights = provenance.get("weights")
    return f"{provenance.get('model')} (sha256 {weights.get('sha256') if isinstance(weights, dict) else weights})"
