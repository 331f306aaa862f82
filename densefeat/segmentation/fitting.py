"""Heads on the positions of every block alone, of blocks added, and of all: fitted, chosen and measured.

A head is fitted on a sample of training positions with equal numbers of each class, as far as there are enough. This favours
rare classes. The scores are corrected by the prior: the logarithm of each class's share among all positions over its share in
the sample (King and Zeng, Logistic Regression in Rare Events Data, 2001, section 4.1). How much of it is added (none, half or
all) is chosen on the validation images.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from densefeat.base import progress_bar
from densefeat.labels import TEST, TRAIN, VAL, Targets
from densefeat.overlay import enlarge_maps
from densefeat.probing import Head, count_settings, fit_candidates, fit_knn, fit_logreg
from densefeat.segmentation.data import DenseData
from densefeat.segmentation.grid_net import add_prior, choose_classes, score_positions
from densefeat.segmentation.positions import count_classes
from densefeat.segmentation.scores import compute_mean_iou, count_overlaps, measure

PROTOCOLS = {"logreg": 50_000, "knn": 10_000}  # with the most training positions: each votes for every position of an image
_SAMPLE_BYTES = 2**28  # of features of training positions, as float32
_VAL_SHARE = 0.25  # validation positions for each training position
_STRENGTHS = (0.0, 0.5, 1.0)  # of the classes' shares


@dataclass(frozen=True)
class DenseFit:
    """A head fitted on training positions. ``chosen``: its settings; ``val``: its mean IoU on the validation images."""

    head: Head
    log_prior: np.ndarray
    chosen: dict[str, float | int]
    tried: list[dict[str, float | int]]
    val: float


@dataclass(frozen=True)
class DenseCandidate:
    """A head on some blocks. ``counts``: of :func:`count_overlaps` for each test image, int64 ``(n, 3, K)``."""

    name: str
    columns: tuple[str, ...]
    features: int
    fit: DenseFit
    counts: np.ndarray

    def to_json(self, seed: int) -> dict[str, Any]:
        """Return the candidate's entry in results.json."""
        measured = measure(self.counts, seed)
        return {
            "name": self.name,
            "columns": list(self.columns),
            "features": self.features,
            "chosen": self.fit.chosen,
            "tried": self.fit.tried,
            "val": {"mean_iou": self.fit.val},
            "test": measured["values"],
            "intervals": measured["intervals"],
        }


@dataclass(frozen=True)
class PositionSample:
    """Positions to fit on: the first ``train`` of them are for training, the others for choosing C or k.

    ``rows``: for each training image, in order, the indices in its flattened grid. ``features``: float16 ``(n, C)`` by column;
    ``log_prior``: float32 ``(K,)``, the logarithm of each class's share among all training positions over that in the sample.
    """

    rows: list[np.ndarray]
    features: dict[str, np.ndarray]
    targets: Targets
    train: int
    log_prior: np.ndarray


def _read_sample(protocol: str, data: DenseData) -> PositionSample:
    """Read the features of drawn positions, at the resolution of the grid. Raises UsageError as fits do."""
    names, classes = list(data.widths), len(data.table.names)
    most = min(PROTOCOLS[protocol], _SAMPLE_BYTES // (4 * sum(data.widths.values())))
    drawn = {part: data.draw(part, int(share * most)) for part, share in ((TRAIN, 1.0), (VAL, _VAL_SHARE))}
    sizes = {part: sum(map(len, rows)) for part, rows in drawn.items()}
    features = {name: np.empty((sum(sizes.values()), width), np.float16) for name, width in data.widths.items()}
    labels = np.empty(sum(sizes.values()), np.int64)
    with progress_bar("reading positions", len(drawn[TRAIN]) + len(drawn[VAL])) as advance:
        for part, offset in ((TRAIN, 0), (VAL, sizes[TRAIN])):
            starts = offset + np.cumsum([0, *map(len, drawn[part])])
            for place, (each, maps) in enumerate(data.read_maps(part, names)):
                rows, span = drawn[part][place], slice(starts[place], starts[place + 1])
                for name, values in zip(names, maps, strict=True):
                    features[name][span] = enlarge_maps(values, *data.shape).reshape(len(values), -1).T[rows]
                labels[span] = each.labels.ravel()[rows]
                advance(1)
    targets = Targets("single", data.table.names, labels)
    natural = count_classes([each.labels for each in data.select(TRAIN)], classes)
    return PositionSample(drawn[TRAIN], features, targets, sizes[TRAIN], _compare_shares(natural, labels[: sizes[TRAIN]]))


def _compare_shares(natural: np.ndarray, labels: np.ndarray) -> np.ndarray:
    sampled = np.bincount(labels, minlength=len(natural))
    both = (natural > 0) & (sampled > 0)
    ratio = np.divide(natural / max(1, natural.sum()), sampled / max(1, sampled.sum()), out=np.ones(len(natural)), where=both)
    return np.log(ratio).astype(np.float32)


@dataclass(frozen=True)
class DenseFitter:
    """The data and the protocol that all fits share, with the methods that :func:`densefeat.probing.fit_candidates` calls."""

    protocol: str
    data: DenseData
    sample: PositionSample
    advance: Callable[[int], None]

    @property
    def widths(self) -> dict[str, int]:
        return self.data.widths

    def fit(self, names: tuple[str, ...]) -> DenseFit:
        """Fit training positions; choose C or k by the accuracy on validation positions, the prior on validation images."""
        sample = self.sample
        x = np.concatenate([sample.features[name] for name in names], axis=1, dtype=np.float32)
        head: Head
        if self.protocol == "knn":
            head, choice = fit_knn(x, sample.targets, sample.train, lambda _: None, refit=False)
        else:
            head, choice = fit_logreg(x, sample.targets, sample.train, False, lambda _: None, refit=False)
        del x
        self.advance(count_settings(self.protocol, 1))
        counts = np.zeros((len(_STRENGTHS), 3, len(self.data.table.names)), np.int64)
        for truth, scores in self._score_images(VAL, names, head):
            for number, strength in enumerate(_STRENGTHS):
                counts[number] += self._count(head, scores, truth, strength * sample.log_prior)
        ratings = np.nan_to_num(compute_mean_iou(counts))
        best = int(ratings.argmax())
        tried = [{"prior": strength, "mean_iou": float(rating)} for strength, rating in zip(_STRENGTHS, ratings, strict=True)]
        chosen = choice.chosen | {"prior": _STRENGTHS[best]}
        return DenseFit(head, _STRENGTHS[best] * sample.log_prior, chosen, choice.tried + tried, float(ratings[best]))

    def rate(self, fit: DenseFit) -> float:
        return fit.val

    def candidate(self, name: str, names: tuple[str, ...], fit: DenseFit) -> DenseCandidate:
        """Measure a fit on the test images, at their own resolution."""
        counts = [
            self._count(fit.head, scores, truth, fit.log_prior) for truth, scores in self._score_images(TEST, names, fit.head)
        ]
        return DenseCandidate(name, names, sum(self.widths[column] for column in names), fit, np.stack(counts))

    def _score_images(self, part: int, names: tuple[str, ...], head: Head) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for each, maps in self.data.read_maps(part, names):
            yield each.read(self.data.table), score_positions(head, maps, self.data.shape)

    def _count(self, head: Head, scores: np.ndarray, truth: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
        predicted = choose_classes(add_prior(head, scores, log_prior), *truth.shape)
        return count_overlaps(predicted, truth, len(self.data.table.names))


def _select_candidate(candidates: Iterable[DenseCandidate], seed: int) -> tuple[DenseCandidate, list[dict[str, Any]]]:
    """Choose the candidate of the highest mean IoU on the validation images, among equals of the fewest features.

    Returns it, and the reports on all of them; heads of others are dropped.
    """
    best: DenseCandidate | None = None
    reports = []
    for candidate in candidates:
        reports.append(candidate.to_json(seed))
        if best is None or (candidate.fit.val, -candidate.features) > (best.fit.val, -best.features):
            best = candidate
    assert best is not None
    return best, reports


def fit_all(protocol: str, data: DenseData) -> tuple[DenseCandidate, list[dict[str, Any]], PositionSample]:
    """Fit and measure every candidate, and choose the best. Returns it, all candidates as JSON, and the sample."""
    sample = _read_sample(protocol, data)
    with progress_bar("fitting", count_settings(protocol, len(data.widths)), "settings") as advance:
        fitter = DenseFitter(protocol, data, sample, advance)
        return *_select_candidate(fit_candidates(fitter), data.seed), sample
