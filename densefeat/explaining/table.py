"""The table of scores, predictions and sums of evidence, and the order of rows on the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from densefeat.evaluation import Scorer
from densefeat.explaining.evidence import SCORES, Explainer
from densefeat.labels import Targets, encode_multi_labels, match_numbers, parse_number, split_label
from densefeat.probing import make_predictions, predict_labels, rate_mistakes, tabulate_answers
from densefeat.store import Store

_COPIED = ("path", "page", "x", "y", "label")


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
    def header(self) -> list[str]:
        names = [name for name in _COPIED if name in self.store.schema.names] + ["predicted", "probability"]
        names += ["explained"] if self.scorer.task == "multi" else []
        return [*names, "score", *([] if self.explainer.bias is None else ["bias", *self.explainer.maps])]

    def list_rows(self) -> Iterator[list[Any]]:
        """Yield the cells of each row, and keep what the page needs."""
        copied = [name for name in _COPIED if name in self.store.schema.names]
        maps = [] if self.explainer.bias is None else list(self.explainer.maps)
        named = self.explainer.named.cpu().numpy()
        for batch in self.store.record_batches([*copied, SCORES, *maps]):
            values = {name: batch.column(name).flatten().to_numpy().reshape(len(batch), -1) for name in (SCORES, *maps)}
            scores = values[SCORES]
            chosen = np.column_stack([scores.argmax(1), np.broadcast_to(named, (len(batch), len(named)))])
            explained = np.take_along_axis(scores, chosen, 1)
            sums = np.stack([_sum_maps(values[name], chosen.shape[1]) for name in maps], 1) if maps else None
            if sums is not None and self.explainer.bias is not None:
                differences = np.abs(self.explainer.bias[chosen] + sums[:, 0] - explained)
                self.gap = max(self.gap or 0.0, float(differences.max(initial=0)))
                self.sums.extend(sums)
            self.chosen.extend(chosen)
            self.scores.extend(explained)
            labels = batch.column("label").to_pylist() if "label" in copied else [None] * len(batch)
            self._rate(scores, labels)
            columns = [batch.column(name).to_pylist() for name in copied]
            for row in range(len(batch)):
                number = len(self.chosen) - len(batch) + row
                yield [*(column[row] for column in columns), *self.answers[number], *self._tell(number)]

    def _tell(self, row: int) -> list[str]:
        """Return a row's cells from ``explained`` or ``score`` on."""
        first = self.chosen[row][0]
        cells = [self.scorer.classes[first]] if self.scorer.task == "multi" else []
        numbers = [self.scores[row][0]]
        if self.explainer.bias is not None:
            numbers += [self.explainer.bias[first], *self.sums[row][:, 0]]
        return cells + [f"{value:.7g}" for value in numbers]

    def _rate(self, scores: np.ndarray, labels: Sequence[str | None]) -> None:
        """Take down the answers of some rows, how sure they are, and how wrong."""
        task, classes, certainty = self.scorer.task, self.scorer.classes, self.scorer.certainty
        scores = scores[:, 0] if task == "regression" else scores
        made = make_predictions(task, classes, scores, certainty)
        told = tabulate_answers(made, scores)
        self.answers.extend(zip(told["predicted"], told["probability"], strict=True))
        calibrated = scores if certainty is None else certainty.calibrate(scores)
        self.sureness.extend([0.0] * len(scores) if task == "regression" else predict_labels(task, classes, calibrated)[1])
        rows, targets = _encode_known(self.scorer, labels)
        badness = np.full(len(scores), np.nan)
        if len(rows):
            badness[rows] = rate_mistakes(targets, calibrated[rows])
        self.badness.extend(badness.tolist())

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
    classes = tuple(scorer.classes)
    changed = match_numbers({label for label in labels if label is not None}, classes) if scorer.task == "single" else {}
    texts = [None if label is None else changed.get(label, label) for label in labels]
    known = set(classes)

    def is_known(text: str | None) -> bool:
        if text is None:
            return False
        if scorer.task == "regression":
            return parse_number(text) is not None
        return known.issuperset(split_label(text)) if scorer.task == "multi" else text in known

    rows = np.array([row for row, text in enumerate(texts) if is_known(text)], np.int64)
    found = [str(texts[row]) for row in rows]
    if scorer.task == "multi":
        return rows, encode_multi_labels(found, list(classes))
    codes = {name: code for code, name in enumerate(classes)}
    values = [parse_number(text) if scorer.task == "regression" else codes[text] for text in found]
    return rows, Targets(scorer.task, classes, np.array(values, np.float64 if scorer.task == "regression" else np.int64))
