"""Read checkpoints: safetensors and torch files, with older key names and the prefixes that training programs add."""

import hashlib
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from densefeat.base import describe_error
from densefeat.errors import WeightsError

_logger = logging.getLogger(__name__)

# Keys under which training programs put a model into a checkpoint; averaged weights come first, as in timm.
_CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model")
_EMA_PREFIXES = ("ema_model.", "model_ema.", "ema.")
_ZIP_MAGIC = b"PK\x03\x04"
_PREFIXES = ("module.", "_orig_mod.", "model.", *_EMA_PREFIXES)
_OLD_TORCHVISION_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


@dataclass(frozen=True)
class LoadedWeights:
    """A checkpoint file, its SHA-256, and those of its keys that were left out because the classifier has other classes."""

    path: Path
    sha256: str
    dropped: tuple[str, ...]


def load_weights(model: nn.Module, path: str | Path, whole: bool = False) -> LoadedWeights:
    """Load a checkpoint file into ``model``. Where a part of the file does not fit, nothing in the model changes.

    Reads safetensors and torch files (read with ``weights_only``), torchvision's older key names, ``num_batches_tracked``
    present or not, and the prefixes of DDP, ``torch.compile`` and averaged models. A classifier for another number of
    classes is left out, and the model keeps its own, unless ``whole`` requires the classifier to fit, too.

    Raises:
        WeightsError: The file cannot be read, holds code, or does not fit; the message counts and names the keys.
    """
    path = Path(path)
    dropped = set_state_dict(model, read_state_dict(path), path, whole)
    return LoadedWeights(path, file_sha256(path), dropped)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the model's tensors in a checkpoint file, under the key names of today's torchvision and timm."""
    return _rename_keys(_read_checkpoint(path))


def set_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor], path: Path, whole: bool = False) -> tuple[str, ...]:
    """Copy tensors into ``model`` and return the keys of a classifier for other classes, which are left out.

    Raises WeightsError, which names ``path``, where the tensors do not fit; the model is then unchanged. ``whole``: the
    classifier must fit, too.
    """
    state_dict, dropped = _drop_other_classifier(state_dict, model)
    if whole and dropped:
        classes = getattr(model, "num_classes", "own")
        raise WeightsError(f"weights {path}: {', '.join(dropped)}: for another number of classes than the network's {classes}")
    _check_fit(state_dict, model, path, whole)
    model.load_state_dict(state_dict, strict=False)  # checked above; only num_batches_tracked may be missing
    return dropped


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Convert a state dict for timm, which calls this between file and model, by the rules of :func:`load_weights`."""
    kept, dropped = _drop_other_classifier(_rename_keys(state_dict), model)
    if dropped:
        _logger.warning("%s: the file has another number of classes; the model keeps its own values", ", ".join(dropped))
        own = model.state_dict()
        kept.update({key: own[key] for key in dropped if key in own})
    return kept


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint file, whose format is found from its first bytes. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[8:] == b"{" and not start.startswith(_ZIP_MAGIC):
            return safetensors.torch.load_file(path)
        if start.startswith(_ZIP_MAGIC):
            _check_archive_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on unusual pickles, which load or are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"weights {path}: refused, its pickle holds more than tensors ({match.group(1)}), which"
                " would run as code; save the state dict alone, best as safetensors"
            ) from error
        raise WeightsError(f"weights {path}: neither safetensors nor a torch checkpoint that can be read safely") from error
    except WeightsError:
        raise
    except Exception as error:  # damaged files make the readers raise errors of many types
        raise WeightsError(
            f"weights {path}: truncated or not a checkpoint ({type(error).__name__}: {describe_error(error)})"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {path}: holds a {type(content).__name__}, not a state dict")
    return content


def _check_archive_size(path: Path) -> None:
    """Refuse compressed archives: torch.save never compresses, and such a file could unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise WeightsError(
            f"weights {path}: refused, a compressed archive ({path.stat().st_size:,} bytes that unpack to {unpacked:,})"
        )


def _rename_keys(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Take the model's tensors out of a checkpoint and rename them as :func:`read_state_dict` describes."""
    for container in _CONTAINERS:
        inner = content.get(container)
        if isinstance(inner, Mapping) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            content = inner
            break
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor) and key != "n_averaged"
    }
    averaged = {key: value for key, value in tensors.items() if key.startswith(_EMA_PREFIXES)}
    return {_rename_key(key): value for key, value in (averaged or tensors).items()}


def _rename_key(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return _OLD_TORCHVISION_KEY.sub(r"\1\2", key)


def _drop_other_classifier(
    state_dict: dict[str, torch.Tensor], model: nn.Module
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Split off a classifier whose number of classes is not the model's: the rest, and the keys left out."""
    own = model.state_dict()

    def has_other_classes(key: str, value: torch.Tensor) -> bool:
        if not key.startswith(_list_classifier_prefixes(model)):
            return False
        return key not in own or (own[key].shape != value.shape and own[key].shape[1:] == value.shape[1:])

    dropped = tuple(key for key, value in state_dict.items() if has_other_classes(key, value))
    return {key: value for key, value in state_dict.items() if key not in dropped}, dropped


def _list_classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """List the prefixes of the classifier's keys; timm's models name the classifier in ``pretrained_cfg``."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or "classifier"
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _check_fit(state_dict: dict[str, torch.Tensor], model: nn.Module, path: Path, whole: bool) -> None:
    """Raise WeightsError unless keys and shapes equal the model's.

    ``num_batches_tracked`` may be missing, and so may the classifier unless ``whole`` is set.
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
    if problems:
        name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
        raise WeightsError(
            f"weights {path} do not fit {name}: {'; '.join(problems)}; of {len(own)} keys. The model is unchanged."
        )


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
