"""Predictions of a trained network or a probe: a store of scores, and a table for people."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from densefeat.certainty import Certainty
from densefeat.errors import UsageError
from densefeat.evaluation.result_folder import ResultFolder, Results, list_place_columns
from densefeat.extraction import ColumnsNet, identify
from densefeat.images import PixelRule, Preprocessing
from densefeat.labels import SEPARATOR, Task
from densefeat.loading import load_network
from densefeat.nets import file_sha256
from densefeat.probing import (
    Probe,
    check_promises,
    find_probe_file,
    load_probe,
    make_predictions,
    tabulate_answers,
)
from densefeat.store import Store, open_store

_SCORES, _TABLE = "scores", "predictions.csv"
_KIND = "densefeat predictions"
# the last column of earlier versions was called score
_HEADER = re.compile(rb"path(,page)?(,x,y)?(,label)?,predicted,(score|probability(,ood)?(,answered)?(,set|,low,high)?)\r?\n")
_COLUMN, _OOD = "scores", "ood"  # in the store


@dataclass(frozen=True, kw_only=True)
class Predicted(Results):
    """The files that :func:`predict` wrote.

    ``table``: a CSV with ``path``, ``predicted``, ``probability`` and, where they are known or asked for, ``ood``, ``answered``
    and ``set`` or ``low`` and ``high``, see :func:`densefeat.probing.answers.tabulate_answers`. ``store``: all scores.
    ``counts``: images by predicted class, most frequent first; empty for a regression. ``answered``: how many answers are given
    for a risk; None if none was asked for.
    """

    counts: dict[str, int]
    answered: int | None = None


@dataclass(frozen=True)
class Scorer:
    """A network that scores images, and what its scores mean.

    ``net``: computes the columns ``scores``, K numbers, and for a probe that tells outliers ``ood``. ``classes``: K names; none
    for a regression. ``decoder``: of the images; ``certainty``: of a probe.
    """

    net: ColumnsNet
    classes: list[str]
    task: Task
    decoder: str
    certainty: Certainty | None = None

    @property
    def outputs(self) -> int:
        return max(1, len(self.classes))


class ProbeNet(nn.Module):
    """A probe behind the network whose features it reads.

    Images ``(N, C, H, W)`` to ``scores`` ``(N, K)`` and, if the probe tells outliers, their p-values ``ood`` ``(N, 1)``.
    """

    def __init__(self, probe: Probe, file: Path, weights: str | Path | None, device: str) -> None:
        super().__init__()
        self.extractor, self.probe = probe.extractor(weights, device), probe
        self.model = self.extractor.model
        identify(self, bytes.fromhex(file_sha256(file)))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = {name: value.cpu().numpy() for name, value in self.extractor.forward(x).items()}
        found = {_COLUMN: torch.from_numpy(self.probe.scores(features).reshape(len(x), -1))}
        if (ood := self.probe.p_values(features)) is not None:
            found[_OOD] = torch.from_numpy(ood[:, None].astype(np.float32))
        return found


def predict(
    model: str,
    images: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    batch_size: int | str = 32,
    workers: int | None = None,
    overwrite: bool = False,
    pixels: PixelRule | None = None,
    risk: float | None = None,
    level: float | None = None,
    **reading: Any,
) -> Predicted:
    """Predict every image's class (or labels, or value), in the order of the input; the same call resumes.

    Args:
        model: The folder of a run or of a probe, a probe's file, or a model name of timm with published weights.
        images, batch_size, workers, reading: As in :func:`densefeat.extract`; one row an image, failures beside them.
        out: A folder: ``scores/`` is a store with the column ``scores`` ``(rows, K)``, logits or a probe's own scores;
            ``predictions.csv`` is written at the end.
        overwrite: Start over if ``out`` has predictions of another model, or of other images.
        weights: A checkpoint file to use instead of a named network's weights; or the new place of a probe's weights.
        pixels: Which channels are read, and what is black and white; None: as the run or probe records.
        risk: For a probe: the share of the answers given that may be wrong, such as 0.05; the table says which to give.
        level: For a probe: the share of sets of classes, or of intervals of numbers, that hold the truth, such as 0.95.

    Raises as :func:`densefeat.extract` does; UsageError for an unknown model, WeightsError where its files do not fit.
    """
    folder = ResultFolder(Path(out), "predictions", _SCORES, _TABLE, _HEADER, _KIND)
    scorer = open_scorer(model, weights, device, pixels)
    check_promises(scorer.certainty, risk, level)
    if level is not None and (unclear := [name for name in scorer.classes if SEPARATOR in name]):
        raise UsageError(
            f"class {unclear[0]!r} has a {SEPARATOR}, which stands between the classes of a set in {_TABLE}: rename the class,"
            " or call Probe.predict, whose sets are lists"
        )
    result = folder.extract(
        model, scorer.net, images, device=device, batch_size=batch_size, workers=workers, decoder=scorer.decoder,
        overwrite=overwrite, **reading,
    )  # fmt: skip
    counts, answered = _write_table(folder, open_store(result.path), scorer, risk, level)
    return Predicted(**folder.describe(result), counts=counts, answered=answered)


def open_scorer(model: str, weights: str | Path | None, device: str, pixels: PixelRule | None) -> Scorer:
    """Load the scorer of a model. Its network computes in fp32; a probe's extractor has its recorded precision inside."""
    if (file := find_probe_file(model)) is not None:
        if pixels is not None:
            raise UsageError(f"probe {model!r} records ranges and channels: leave out the options for them")
        probe = load_probe(file)
        behind = ProbeNet(probe, file, weights, device)
        tells_outliers = probe.certainty is not None and probe.certainty.outliers is not None
        channels = {_COLUMN: max(1, len(probe.classes))} | ({_OOD: 1} if tells_outliers else {})
        extractor = behind.extractor
        net = ColumnsNet(str(Path(model).resolve()), behind, channels, extractor.preprocessing, extractor.precision)
        return Scorer(net, list(probe.classes), probe.task, extractor.decoder, probe.certainty)
    network = load_network(model, weights, head=True)
    if not network.num_classes:
        raise UsageError(f"model {model!r} has no classifier: fine-tune it, or give a probe")
    classes = network.classes or [str(number) for number in range(network.num_classes)]
    name = network.name if network.run else model
    if network.run and pixels is not None:
        raise UsageError(f"run {model!r} records ranges and channels: leave out the options for them")
    preprocessing = Preprocessing.for_model(network.model, pixels=pixels)
    outputs = {_COLUMN: 1 if network.task == "regression" else len(classes)}
    net = ColumnsNet(name, network.model, outputs, preprocessing)
    return Scorer(net, classes, network.task, "pillow")


def _write_table(
    folder: ResultFolder, store: Store, scorer: Scorer, risk: float | None, level: float | None
) -> tuple[dict[str, int], int | None]:  # fmt: skip
    """Write the predictions of a store's scores as CSV.

    Returns the number of images by predicted class, and of answers given, if a risk was asked for.
    """
    counts: Counter[str] = Counter()
    given: Counter[str] = Counter()
    copied = list_place_columns(store)

    def tabulate(scores: np.ndarray, ood: np.ndarray | None) -> dict[str, list[str]]:
        scores = scores[:, 0] if scorer.task == "regression" else scores
        made = make_predictions(scorer.task, scorer.classes, scores, scorer.certainty, ood, risk, level)
        return tabulate_answers(made, scores)

    def list_rows() -> Iterator[tuple[Any, ...]]:
        for columns, scores, ood in _read_scores(store, copied):
            answers = tabulate(scores, ood)
            counts.update(answers["predicted"])
            given.update(answers.get("answered", []))
            yield from zip(*columns, *answers.values(), strict=True)

    known = np.empty(0) if _OOD in store.schema.names else None
    header = [*copied, *tabulate(np.empty((0, scorer.outputs), np.float32), known)]
    folder.write_table(header, list_rows())
    by_class = {} if scorer.task == "regression" else dict(counts.most_common())
    return by_class, None if risk is None else given["yes"]


def _read_scores(store: Store, names: list[str]) -> Iterator[tuple[list[list[Any]], np.ndarray, np.ndarray | None]]:
    """Yield some columns, the scores ``(n, K)`` and the p-values ``(n,)``, if there are any, of some rows at a time."""
    has_ood = _OOD in store.schema.names
    for batch in store.record_batches([*names, _COLUMN, *([_OOD] if has_ood else [])]):
        values = batch.column(_COLUMN).flatten().to_numpy().reshape(len(batch), -1)
        ood = batch.column(_OOD).flatten().to_numpy().astype(np.float64) if has_ood else None
        yield [batch.column(name).to_pylist() for name in names], values, ood
