"""The table of scores, predictions and sums of evidence, and the order of rows on the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from densefeat.evaluation import Scorer, list_place_columns
from densefeat.explaining.evidence import SCORES, Explainer
from densefeat.labels import Targets, encode_multi_labels, match_numbers, parse_number, split_label
from densefeat.probing import make_predictions, predict_labels, rate_mistakes, tabulate_answers
from densefeat.store import Store


@dataclass
class ExplainedTable:
    """The rows of a store of explanations, read once, in order, by :meth:`list_rows`; the lists below then have an entry a row.

    ``answers``: predicted class and probability, as text. ``chosen``: the ``(P,)`` classes that are explained. ``scores``: the
    scores of these. ``sums``: the sums of the maps, ``(M, P)``, if maps add up. ``badness``: how wrong a mistake is; -1 for a
    right answer, NaN without a label. ``sureness``: how certain an answer is; larger is surer. ``gap``: the largest difference
    between a score and the sum of bias and evidence; None if maps do not add up.
    """

    store: Store
    scorer: Scorer
    explainer: Explainer
    answers: list[tuple[str, str]] = field(default_factory=list)
    chosen: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)
    badness: list[float] = field(default_factory=list)
    sureness: list[float] = field(default_factory=list)
    gap: float | None = None

    @property
    def _copied(self) -> list[str]:
        return list_place_columns(self.store)

    @property
    def header(self) -> list[str]:
        explained = ["explained"] if self.scorer.task == "multi" else []
        terms = [] if self.explainer.bias is None else ["bias", *self.explainer.maps]
        return [*self._copied, "predicted", "probability", *explained, "score", *terms]

    def list_rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the cells of each row, and keep what the page needs."""
        bias = self.explainer.bias
        maps = [] if bias is None else list(self.explainer.maps)
        named = self.explainer.named.cpu().numpy()
        for batch in self.store.record_batches([*self._copied, SCORES, *maps]):
            values = {name: batch.column(name).flatten().to_numpy().reshape(len(batch), -1) for name in (SCORES, *maps)}
            chosen = np.column_stack([values[SCORES].argmax(1), np.broadcast_to(named, (len(batch), len(named)))])
            explained = np.take_along_axis(values[SCORES], chosen, 1)
            numbers = [explained[:, 0]]
            if bias is not None:
                sums = np.stack([_sum_maps(values[name], chosen.shape[1]) for name in maps], 1)
                differences = np.abs(bias[chosen] + sums[:, 0] - explained)
                self.gap = max(self.gap or 0.0, float(differences.max(initial=0)))
                self.sums.extend(sums)
                numbers += [bias[chosen[:, 0]], *sums[:, :, 0].T]
            self.chosen.extend(chosen)
            self.scores.extend(explained)
            columns = {name: batch.column(name).to_pylist() for name in self._copied}
            answers = self._rate(values[SCORES], columns.get("label", [None] * len(batch)))
            names = [[self.scorer.classes[number] for number in chosen[:, 0]]] if self.scorer.task == "multi" else []
            cells = [[f"{value:.7g}" for value in column] for column in numbers]
            yield from zip(*columns.values(), *answers, *names, *cells, strict=True)

    def _rate(self, scores: np.ndarray, labels: Sequence[str | None]) -> tuple[list[str], list[str]]:
        """Return the answers for some rows and their probabilities; take down these, how sure they are, and how wrong."""
        task, classes, certainty = self.scorer.task, self.scorer.classes, self.scorer.certainty
        scores = scores[:, 0] if task == "regression" else scores
        told = tabulate_answers(make_predictions(task, classes, scores, certainty), scores)
        answers = told["predicted"], told["probability"]
        self.answers.extend(zip(*answers, strict=True))
        calibrated = scores if certainty is None else certainty.calibrate(scores)
        self.sureness.extend([0.0] * len(scores) if task == "regression" else predict_labels(task, classes, calibrated)[1])
        rows, targets = _encode_known(self.scorer, labels)
        badness = np.full(len(scores), np.nan)
        if len(rows):
            badness[rows] = rate_mistakes(targets, calibrated[rows])
        self.badness.extend(badness.tolist())
        return answers

    def order(self) -> tuple[np.ndarray, int]:
        """Return all rows, mistakes first (the worst before others), then the least certain; and the number of mistakes."""
        badness = np.nan_to_num(np.array(self.badness), nan=-1.0)
        wrong = int(np.count_nonzero(badness >= 0))
        by_badness = np.argsort(-badness, kind="stable")[:wrong]
        rest = np.setdiff1d(np.arange(len(badness)), by_badness)
        return np.concatenate([by_badness, rest[np.argsort(np.array(self.sureness)[rest], kind="stable")]]), wrong

    @property
    def labelled(self) -> int:
        """The number of rows with a label that the model knows."""
        return int(np.count_nonzero(~np.isnan(self.badness)))


def _sum_maps(values: np.ndarray, classes: int) -> np.ndarray:
    return values.reshape(len(values), classes, -1).sum(2, dtype=np.float64)


def _encode_known(scorer: Scorer, labels: Sequence[str | None]) -> tuple[np.ndarray, Targets]:
    """Return the positions of the labels that the model could predict, and these as targets."""
    classes, given = tuple(scorer.classes), {label for label in labels if label is not None}
    codes = {name: code for code, name in enumerate(classes)}
    known: dict[str | None, Any]  # what each label is encoded as
    if scorer.task == "regression":
        known = {label: number for label in given if (number := parse_number(label)) is not None}
    elif scorer.task == "multi":
        known = {label: label for label in given if codes.keys() >= set(split_label(label))}
    else:
        changed = match_numbers(given, classes)
        known = {label: codes[name] for label in given if (name := changed.get(label, label)) in codes}
    rows = np.array([row for row, label in enumerate(labels) if label in known], np.int64)
    found = [known[labels[row]] for row in rows]
    if scorer.task == "multi":
        return rows, encode_multi_labels(found, list(classes))
    return rows, Targets(scorer.task, classes, np.array(found, np.float64 if scorer.task == "regression" else np.int64))
