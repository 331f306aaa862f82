"""Predictions of a trained network or a probe: a store of scores, and a table for people."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from densefeat.base import atomic_file, check_output_name, has_kind, output_errors, refuse_links, refuse_stranger
from densefeat.errors import UsageError
from densefeat.extraction import extract
from densefeat.images import Preprocessing
from densefeat.labels import Task
from densefeat.loading import load_network
from densefeat.nets import file_sha256
from densefeat.probe import FILE, Probe, format_probabilities, load_probe, predict_labels
from densefeat.store import Layout, Store, check_store_folder, is_store, open_store

_SCORES, _TABLE = "scores", "predictions.csv"
_RECORD = ".predictions.json"  # which tables densefeat wrote: one that the user has changed since is the user's
_KIND = "densefeat predictions"
_HEADER = re.compile(rb"path(,x,y)?(,label)?,predicted,score\r?\n")
_COLUMN = "scores"  # in the store


@dataclass(frozen=True)
class Predicted:
    """The files that :func:`predict` wrote.

    ``table``: a CSV with ``path``, ``predicted`` and ``score`` (:func:`densefeat.probe.predictions.format_probabilities`).
    ``store``: all scores, one row an image. ``counts``: images by predicted class, most frequent first; empty for a regression.
    """

    table: Path
    store: Path
    rows: int
    failures: int
    failures_path: Path
    counts: dict[str, int]


class Scorer(nn.Module):
    """A network whose scores look like the only feature map of a timm model, so that an extraction writes and resumes them.

    ``(N, 3, H, W)`` to ``(N, K)``. ``recorded_name``: the model's name in the store. ``classes``: K names; none for a
    regression.
    """

    def __init__(
        self, recorded_name: str, network: nn.Module, classes: list[str], task: Task, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.recorded_name, self.network, self.classes, self.task = recorded_name, network, classes, task
        self.scores = nn.Identity()
        facts = preprocessing.to_json()
        size = facts.pop("size")
        self.pretrained_cfg = facts | {"input_size": (3, size, size)}
        self.feature_info = [{"num_chs": max(1, len(classes)), "reduction": size, "module": _COLUMN}]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(self.network(x)[:, :, None, None])[:, :, 0, 0]


class ProbeNet(nn.Module):
    """A probe behind the network whose features it reads: images ``(N, 3, H, W)`` to scores ``(N, K)``."""

    def __init__(self, probe: Probe, file: Path, weights: str | Path | None, device: str) -> None:
        super().__init__()
        self.extractor, self.probe = probe.extractor(weights, device), probe
        self.model = self.extractor.model
        # a store is identified by the tensors of its network: this one makes the stores of two probes differ
        sha256 = bytearray.fromhex(file_sha256(file))
        self.register_buffer("identity", torch.frombuffer(sha256, dtype=torch.uint8).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = {name: value.cpu().numpy() for name, value in self.extractor.forward(x).items()}
        scores = self.probe.scores(features)
        return torch.from_numpy(scores.reshape(len(x), -1))


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

    Raises as :func:`densefeat.extract` does; UsageError for an unknown model, WeightsError where its files do not fit.
    """
    check_output_name(out)
    out = Path(out)
    if out.is_dir() and any(entry.name not in (_SCORES, _TABLE) and entry.name[0] != "." for entry in out.iterdir()):
        raise UsageError(f"output {str(out)!r} holds other files than predictions: name another folder")
    refuse_links([out / _SCORES])
    check_store_folder(Layout(out / _SCORES))
    refuse_stranger(out / _TABLE, _is_own_table)
    refuse_stranger(out / _RECORD, has_kind(_KIND))
    scorer, decoder, precision = _open_scorer(model, weights, device)
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    result = extract(
        images, out / _SCORES, model=scorer, device=device, batch_size=batch_size, workers=workers, decoder=decoder,
        precision=precision, overwrite=overwrite, **reading,
    )  # fmt: skip
    store = open_store(result.path)
    counts = _write_table(out / _TABLE, store, scorer.task, scorer.classes)
    return Predicted(out / _TABLE, result.path, result.rows, result.failures, result.failures_path, counts)


def _open_scorer(model: str, weights: str | Path | None, device: str) -> tuple[Scorer, str, str]:
    """Return the scorer of a model, and the decoder and precision to extract with."""
    path = Path(model)
    if path.is_file() or (path / FILE).is_file():
        probe = load_probe(path)
        net = ProbeNet(probe, path if path.is_file() else path / FILE, weights, device)
        scorer = Scorer(str(path.resolve()), net, list(probe.classes), probe.task, net.extractor.preprocessing)
        return scorer, net.extractor.decoder, "fp32"  # the probe's extractor has its recorded precision inside
    network = load_network(model, weights, head=True)
    if not network.num_classes:
        raise UsageError(f"model {model!r} has no classifier: fine-tune it, or give a probe")
    classes = network.classes or [str(number) for number in range(network.num_classes)]
    name = network.name if network.run else model
    return Scorer(name, network.model, classes, network.task, Preprocessing.for_model(network.model)), "pillow", "fp32"


def _write_table(path: Path, store: Store, task: Task, classes: list[str]) -> dict[str, int]:
    """Write the predictions of a store's scores as CSV; return the number of images by predicted class."""
    counts: Counter[str] = Counter()
    copied = [name for name in ("path", "x", "y", "label") if name in store.schema.names]
    with atomic_file(path, _is_own_table) as beside, output_errors(path):
        with open(beside, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*copied, "predicted", "score"])
            for columns, scores in _read_scores(store, copied):
                names, probabilities = predict_labels(task, classes, scores[:, 0] if task == "regression" else scores)
                counts.update(names)
                for row, name, score in zip(
                    zip(*columns, strict=True), names, format_probabilities(task, scores, probabilities), strict=True
                ):
                    writer.writerow(["" if value is None else value for value in row] + [name, score])
        _record_table(path, beside)
    return {} if task == "regression" else dict(counts.most_common())


def _is_own_table(path: Path) -> bool:
    """Recognize the table beside a store of scores, unless it was changed since; earlier versions kept no record of it."""
    with open(path, "rb") as file:
        if not (_HEADER.fullmatch(file.readline(100)) and is_store(path.parent / _SCORES)):
            return False
    recorded = _read_record(path.parent / _RECORD)
    return not recorded or file_sha256(path) in recorded


def _read_record(path: Path) -> list[str]:
    return json.loads(path.read_text("utf-8")).get("sha256", []) if path.is_file() else []


def _record_table(path: Path, beside: Path) -> None:
    """Record the table that is about to replace ``path``, and the one there, which stays if the process ends before that."""
    record = path.parent / _RECORD
    known = [file_sha256(file) for file in (beside, path) if file.is_file()]
    with atomic_file(record, has_kind(_KIND)) as beside_record:
        beside_record.write_text(json.dumps({"kind": _KIND, "sha256": known}) + "\n", encoding="utf-8")


def _read_scores(store: Store, names: list[str]) -> Iterator[tuple[list[list[Any]], np.ndarray]]:
    for batch in store.record_batches([*names, _COLUMN]):
        values = batch.column(_COLUMN).flatten().to_numpy().reshape(len(batch), -1)
        yield [batch.column(name).to_pylist() for name in names], values
