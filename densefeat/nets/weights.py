"""Load checkpoints into networks: all tensors or none."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densefeat.errors import WeightsError
from densefeat.nets.checkpoint_file import Checkpoint, find_tensors, read_checkpoint
from densefeat.nets.expectations import Expectations, apply_expectations, count_channels, find_expectations
from densefeat.nets.key_layouts import BESIDE_NETWORK, AmbiguousKeys, name_keys

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedWeights:
    """A checkpoint file, its SHA-256, and the keys of a classifier that the network's cannot take, which were left out.

    ``expectations``: what the file says of images and outputs.
    """

    path: Path
    sha256: str
    dropped: tuple[str, ...]
    expectations: Expectations


def load_weights(model: nn.Module, path: str | Path, whole: bool = False) -> LoadedWeights:
    """Load a checkpoint file into ``model``. Where a part of the file does not fit, nothing in the model changes.

    Reads safetensors, torch files (read with ``weights_only``; networks that were pickled whole by an unpickler that runs
    nothing) and Keras', the key names of the programs in docs/models.md, ``num_batches_tracked`` present or not, any prefix
    that all keys have in common (DDP, Lightning, ``torch.compile``), and averaged weights before others. A classifier for
    another number of classes is left out, and the model keeps its own, unless ``whole`` requires the classifier to fit, too; so
    is one of other layers, with a warning.

    What the file says of its images, or is known of its maker, is written into the model's ``pretrained_cfg``: mean, deviation,
    size, and the names of the classes; and the rule by which pixels become 0 to 1, as JSON, into its ``pixel_rule``.

    Raises:
        WeightsError: The file cannot be read, holds code, does not fit, holds the network more than once, or holds averaged
            weights as tensors without names; the message counts and names the keys.
    """
    return load_checkpoint(model, read_checkpoint(Path(path)), whole)


def load_checkpoint(model: nn.Module, checkpoint: Checkpoint, whole: bool = False) -> LoadedWeights:
    """Load what was read of a checkpoint file; see :func:`load_weights`."""
    expectations, _ = find_expectations(checkpoint, count_channels(model) or 3)
    dropped = set_state_dict(model, checkpoint.tensors, checkpoint.path, whole)
    apply_expectations(model, expectations, with_labels=not dropped)
    if expectations.pixels is not None:
        model.pixel_rule = expectations.pixels  # type: ignore[assignment]
    return LoadedWeights(checkpoint.path, file_sha256(checkpoint.path), dropped, expectations)


def find_shape(model: nn.Module, checkpoint: Checkpoint) -> dict[str, int]:
    """Find the numbers of classes and channels of a checkpoint where they are not the model's, as arguments for timm."""
    tensors, _ = _name_tensors(checkpoint.tensors, model, f"weights {checkpoint.path}")
    own = model.state_dict()
    weights = [f"{prefix}weight" for prefix in _list_classifier_prefixes(model)]
    classes = {
        len(tensors[key])
        for key in weights
        if key in tensors and key in own and tensors[key].ndim == 2 and tensors[key].shape[1:] == own[key].shape[1:]
    }
    shape = {}
    if len(classes) == 1 and classes != {getattr(model, "num_classes", None)}:
        shape["num_classes"] = classes.pop()
    if channels := _find_channels(tensors, model):
        shape["in_chans"] = channels
    return shape


def fits_network(model: nn.Module, checkpoint: Checkpoint) -> bool:
    """Check whether a checkpoint's tensors are a model's; the model may be on torch's meta device."""
    try:
        tensors, prefix = _name_tensors(checkpoint.tensors, model, f"weights {checkpoint.path}")
        _check_fit(_drop_other_classifier(tensors, model)[0], model, checkpoint.path, prefix, whole=False)
    except WeightsError:
        return False
    return True


def set_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor], path: Path, whole: bool = False) -> tuple[str, ...]:
    """Copy tensors, under the keys of any layout, into ``model``; return the names of a classifier that is left out.

    Raises WeightsError, which names ``path``, where the tensors do not fit; the model is then unchanged. ``whole``: the
    classifier must fit, too.
    """
    state_dict, prefix = _name_tensors(state_dict, model, f"weights {path}")
    tensors, dropped = _drop_other_classifier(state_dict, model)
    layers = [key for key in dropped if key not in model.state_dict()] if getattr(model, "num_classes", 0) else []
    if whole and dropped:
        classes = getattr(model, "num_classes", "own")
        reason = (
            "a classifier of other layers than the network's"
            if layers
            else f"for another number of classes than the network's {classes}"
        )
        raise WeightsError(f"weights {path}: {', '.join(dropped)}: {reason}")
    _check_fit(tensors, model, path, prefix, whole)
    if layers:
        _logger.warning(
            "weights %s: a classifier of other layers is left out (%s); the network keeps its own", path, ", ".join(layers)
        )
    model.load_state_dict(tensors, strict=False)  # checked above; only num_batches_tracked may be missing
    return dropped


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Convert a state dict for timm, which calls this between file and model, by the rules of :func:`load_weights`."""
    tensors, _ = _name_tensors(find_tensors(state_dict, "weights"), model, "weights")
    kept, dropped = _drop_other_classifier(tensors, model)
    if dropped:
        _logger.warning(
            "%s: of other classes or layers than the model's classifier, which keeps its own values", ", ".join(dropped)
        )
        own = model.state_dict()
        kept.update({key: value for key, value in own.items() if key.startswith(_list_classifier_prefixes(model))})
    return kept


def _name_tensors(state_dict: Mapping[str, torch.Tensor], model: nn.Module, title: str) -> tuple[dict[str, torch.Tensor], str]:
    """Give tensors the model's names; return them and the prefix that was taken off. Errors begin with ``title``."""
    try:
        named = name_keys(state_dict.keys(), model.state_dict().keys(), _list_classifier_prefixes(model))
    except AmbiguousKeys as error:
        raise WeightsError(f"{title}: {error}") from error
    tensors = {name: state_dict[key] for key, name in named.names.items()}
    return {name: value for name, value in tensors.items() if name.rpartition(".")[2] not in BESIDE_NETWORK}, named.prefix


def _drop_other_classifier(
    state_dict: dict[str, torch.Tensor], model: nn.Module
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Split off a classifier of other layers or classes than the model's: the rest, and the keys left out."""
    own = model.state_dict()
    head = {key: value for key, value in state_dict.items() if key.startswith(_list_classifier_prefixes(model))}
    reshaped = [key for key, value in head.items() if key in own and own[key].shape != value.shape]
    has_other_classes = reshaped and all(own[key].shape[1:] == head[key].shape[1:] for key in reshaped)
    if not has_other_classes and head.keys() <= own.keys():
        return state_dict, ()
    return {key: value for key, value in state_dict.items() if key not in head}, tuple(head)


def _list_classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """List the prefixes of the classifier's keys; timm's models name the classifier in ``pretrained_cfg``."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or "classifier"
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _check_fit(state_dict: dict[str, torch.Tensor], model: nn.Module, path: Path, prefix: str, whole: bool) -> None:
    """Raise WeightsError unless names and shapes equal the model's.

    ``num_batches_tracked`` may be missing, and so may the classifier unless ``whole`` is set. ``prefix``: what was taken off.
    """
    own = model.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    head = _list_classifier_prefixes(model)
    if not whole and not any(key.startswith(head) for key in state_dict):
        optional |= {key for key in own if key.startswith(head)}
    missing = [key for key in own if key not in state_dict and key not in optional]
    unexpected = [key for key in state_dict if key not in own]
    reshaped = [
        f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
        for key, value in state_dict.items()
        if key in own and value.shape != own[key].shape
    ]
    unusable = [key for key, value in state_dict.items() if key in own and not _can_copy(value, own[key])]
    problems = [
        f"{len(keys)} {what} (first: {', '.join(keys[:3])})"
        for what, keys in (
            ("keys missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
            ("of another kind of number", unusable),
        )
        if keys
    ]
    if channels := _find_channels(state_dict, model):
        problems.append(f"it reads images of {channels} channels, as a network made with in_chans={channels} does")
    if problems:
        name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
        without = f" without the prefix {prefix!r}" if prefix else ""
        raise WeightsError(
            f"weights {path} do not fit {name}{without}: {'; '.join(problems)}; of {len(own)} keys. The model is unchanged."
        )


def _find_channels(state_dict: dict[str, torch.Tensor], model: nn.Module) -> int | None:
    """Find the channels of a checkpoint's images where they are not the model's; timm's models name their first layer."""
    own = model.state_dict()
    key = f"{getattr(model, 'pretrained_cfg', {}).get('first_conv')}.weight"
    if key not in own or key not in state_dict or state_dict[key].ndim != 4 or state_dict[key].shape[1] == own[key].shape[1]:
        return None
    return state_dict[key].shape[1]


def _can_copy(value: torch.Tensor, own: torch.Tensor) -> bool:
    """Check whether a tensor is dense, in memory, not quantised, and floating where the model's is."""
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type != "meta"
    return plain and value.is_floating_point() == own.is_floating_point()


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_sha256(model: nn.Module) -> str:
    """Compute the SHA-256 of a model's tensors with their names, dtypes and shapes, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
