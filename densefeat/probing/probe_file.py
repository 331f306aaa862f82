"""A fitted probe as one safetensors file, with everything needed to use it, and without pickle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densefeat.base import TensorFile
from densefeat.certainty import Certainty
from densefeat.errors import UsageError, WeightsError
from densefeat.features import FeatureExtractor
from densefeat.labels import Task
from densefeat.probing.answers import Predictions, check_promises, make_predictions
from densefeat.probing.attentive import AttentiveHead
from densefeat.probing.certainty_file import pack_certainty, parse_certainty
from densefeat.probing.head_file import pack_head, parse_head, parse_names
from densefeat.probing.layers_head import LayersHead
from densefeat.probing.protocols import Head
from densefeat.search import rebuild_extractor

FILE = "probe.safetensors"
PROBE_FILE = TensorFile("densefeat_probe", 1, "probe", FILE, "densefeat probe")
_RECORD = ("column", "layer"), ("features", "kept"), ("share", "relevance")  # of a layer: text, counts, shares
_INTERVALS = ("share_interval", "relevance_interval")
_TASKS = ("single", "multi", "regression")


@dataclass(frozen=True)
class Probe:
    """A head on columns of features, side by side in their order.

    ``provenance``: of the features, as in a store's manifest; ``told``: protocol, setting, and metrics of the fit, as JSON.
    ``certainty``: how sure its answers are; None in files of earlier versions.
    """

    task: Task
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    provenance: dict[str, Any]
    head: Head
    told: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    certainty: Certainty | None = None

    def scores(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Score features by column, ``(n, C)`` each, as an extractor returns them: float32 ``(n, K)``, regression ``(n,)``.

        An attentive head takes maps, ``(n, C, H, W)`` each.

        Raises UsageError if a column is missing, or has another size than the probe was fitted on.
        """
        if missing := [name for name in self.columns if name not in features]:
            raise UsageError(f"no features {', '.join(missing)} for this probe: it takes {', '.join(self.columns)}")
        parts = [np.asarray(features[name], np.float32) for name in self.columns]
        if isinstance(self.head, AttentiveHead):
            return self.head.scores(parts)
        return self.head.scores(np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1))

    @property
    def columns_read(self) -> tuple[str, ...]:
        """The columns that scores and p-values are computed from."""
        outliers = None if self.certainty is None else self.certainty.outliers
        return self.columns if outliers is None else tuple(dict.fromkeys((*self.columns, *outliers.blocks)))

    def p_values(self, features: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Test whether images are like those that were learnt from: p-values, float64 ``(n,)``; None where that is not known.

        ``features``: as in :meth:`scores`, of the columns in :attr:`columns_read`.
        """
        outliers = None if self.certainty is None else self.certainty.outliers
        if outliers is None:
            return None
        if isinstance(self.head, AttentiveHead):  # which reads maps; outliers are told by their averages
            read = [name for name in outliers.blocks if name in features]
            features = {name: np.asarray(features[name], np.float32).mean((2, 3)) for name in read}
        return outliers.p_values(features)

    def predict(
        self,
        images: Any,
        *,
        risk: float | None = None,
        level: float | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
    ) -> Predictions:
        """Predict images, as ``densefeat predict`` does.

        The network is loaded at every call: for many small calls, keep :meth:`extractor` and use :meth:`scores`.

        Args:
            images: What :class:`densefeat.FeatureExtractor` takes: PIL images, paths, uint8 tensors; or uint8 arrays
                ``(H, W, 3)`` in a list.
            risk: The share of the answers given that may be wrong, such as 0.05: says which answers to give.
            level: The share of sets of classes (of numbers: intervals) that hold the truth, such as 0.95.
            weights, device: As in :meth:`extractor`.

        Raises:
            UsageError: Not images; a risk or a level that the validation rows cannot promise.
            DecodeError: An image that cannot be read.
        """
        check_promises(self.certainty, risk, level)
        found = self.extractor(weights, device)(_convert_arrays(images))
        features = {name: value.numpy() for name, value in found.items()}
        ood = self.p_values(features)
        return make_predictions(self.task, self.classes, self.scores(features), self.certainty, ood, risk, level)

    def explain_layers(self) -> list[dict[str, Any]]:
        """Say which layers serve the labels, of a probe by the protocol ``layers``: a record for each layer, in their order.

        ``column``, ``layer``: its names. ``features``: how many it has; ``kept``: how many of them the head reads. ``share``:
        of the layer in all kept features, ``relevance``: in the relevance of all features, both from 0 to 1, with
        ``share_interval`` and ``relevance_interval``: 2.5 and 97.5 % of resamples of the training rows; None where rows could
        not be resampled. Layers of columns that the head does not read are there, too.

        Raises UsageError for a probe of another protocol, WeightsError if the file's records are damaged.
        """
        if not isinstance(self.head, LayersHead):
            raise UsageError("this probe does not choose features of layers: make one with --protocol layers")
        try:
            return [_check_record(record) for record in self.told["layers"]]
        except (KeyError, TypeError, ValueError) as error:
            subject = PROBE_FILE.describe(self.path)
            raise WeightsError(f"{subject}: its records of layers are damaged ({type(error).__name__}: {error})") from error

    def extractor(self, weights: str | Path | None = None, device: str = "auto") -> FeatureExtractor:
        """Load the network that makes this probe's features, up to its last block, with the recorded preprocessing.

        ``weights``: a checkpoint, if the recorded one has been moved; it must be the same file.
        Raises UsageError or WeightsError as :func:`densefeat.search.queries.rebuild_extractor`.
        """
        subject = PROBE_FILE.describe(self.path)
        return rebuild_extractor(
            self.provenance, self.columns_read, subject, weights, device, "probe a store of densefeat extract"
        )


def save_probe(path: Path, probe: Probe) -> None:
    """Write a probe atomically. Raises OutputError if it cannot be written."""
    tensors, facts = pack_head(probe.head)
    facts |= {name: getattr(probe, name) for name in ("task", "classes", "columns", "told", "provenance")}
    if probe.certainty is not None:
        more, facts["certainty"] = pack_certainty(probe.certainty)
        tensors |= more
    PROBE_FILE.save(path, facts, tensors)


def find_probe_file(path: str | Path) -> Path | None:
    """Return the file of a probe that the user named, or whose folder; None for anything else but a file."""
    file = PROBE_FILE.find(path)
    return file if file.is_file() else None


def load_probe(path: str | Path) -> Probe:
    """Load a probe from its file, or from the folder that ``densefeat probe --out`` wrote.

    Raises WeightsError for a file that is missing, damaged, of a newer version, or not a probe.
    """
    return PROBE_FILE.load(path, _parse_probe)


def _parse_probe(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Probe:
    """Raise ValueError, TypeError or KeyError if anything is not as :func:`save_probe` writes it."""
    task, classes = metadata["task"], parse_names(metadata["classes"])
    columns = parse_names(metadata["columns"])
    if task not in _TASKS or not columns or (task == "regression") != (not classes) or len(classes) == 1:
        raise ValueError(f"task {task!r} of {len(classes)} classes, {len(columns)} columns")
    for name in ("provenance", "told"):
        if not isinstance(metadata[name], dict):
            raise TypeError(f"{name} is not an object")
    head = parse_head(metadata, tensors, task, classes, len(columns))
    certainty = None
    if metadata.get("certainty") is not None:  # earlier versions have none
        certainty = parse_certainty(tensors, metadata["certainty"], task)
    return Probe(task, classes, columns, metadata["provenance"], head, metadata["told"], path, certainty)


def _convert_arrays(images: Any) -> Any:
    """Turn uint8 arrays ``(H, W, 3)`` and ``(H, W)``, in a sequence or one array, into PIL images."""
    if isinstance(images, np.ndarray):
        images = [images] if images.ndim < 4 else list(images)
    if not isinstance(images, list | tuple):
        return images
    for image in images:
        if isinstance(image, np.ndarray) and (image.dtype != np.uint8 or image.shape[2:] not in ((), (3,), (4,))):
            raise UsageError(
                f"an array of shape {image.shape} and {image.dtype} is not an image: give uint8 (H, W, 3) or (H, W)"
            )
    return [Image.fromarray(image) if isinstance(image, np.ndarray) else image for image in images]


def _check_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the record of a layer. Raises ValueError, TypeError or KeyError if it is not as a probe writes it."""
    names, counts, shares = ((record[name] for name in group) for group in _RECORD)
    if not all(isinstance(name, str) for name in names) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"names or counts of layer {record['layer']!r}")
    ends = [end for name in _INTERVALS if record[name] is not None for end in record[name]]
    if not all(type(share) is float and 0 <= share <= 1 for share in (*shares, *ends)) or len(ends) not in (0, 4):
        raise ValueError(f"shares of layer {record['layer']!r}")
    return {name: record[name] for name in (*(name for group in _RECORD for name in group), *_INTERVALS)}
