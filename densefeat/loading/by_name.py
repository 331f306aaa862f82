"""A network by name with its weights, and a record of where they came from."""

import difflib
import os
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg, is_model, split_model_name_tag
from torch import nn

from densefeat.errors import UsageError, WeightsError
from densefeat.loading.run_files import load_backbone, names_folder, read_run
from densefeat.nets import BUNDLED, file_sha256, load_weights

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_WAYS_OUT = "use the bundled densefeat_densenet_bc100_k12, or a checkpoint file of your own (--weights FILE)"


def create_model(name: str, weights: str | Path | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A network with the weights its name stands for, or with those in a file; in eval mode.

    ``name``: timm's or ours, or the folder of a run, whose network comes without a head that is not timm's.

    Returns:
        The model, and ``{"model": name with tag, "weights": {"source", "sha256", "license"}}``.

    Raises:
        UsageError: Unknown name or tag; names the closest.
        WeightsError: Weights that do not exist, cannot be fetched, or do not fit. Never another network's, never random ones.
    """
    if names_folder(name):
        return _run_model(name, weights)
    config = find_config(name)
    full_name = ".".join(filter(None, (config.architecture, config.tag)))
    if weights is not None:
        model = timm.create_model(name).eval()
        loaded = load_weights(model, weights)
        return model, make_provenance(full_name, str(weights), loaded.sha256, None)
    if not config.has_weights:
        raise WeightsError(f"{name}: nobody has published weights for it; {_WAYS_OUT}")
    try:
        cached = weights_file(config)
        if cached is None and config.hf_hub_id:
            _ask_hub()
        overlay = {"file": str(cached)} if cached and not config.custom_load else None
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    except Exception as error:  # network, cache and hub failures come in many types
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise WeightsError(
            f"{name}: its weights could not be fetched from {describe_source(config)}"
            f" ({type(error).__name__}: {reason}); {_WAYS_OUT}"
        ) from error
    file = weights_file(config)
    return model, make_provenance(full_name, describe_source(config), file_sha256(file) if file else None, config.license)


def _run_model(folder: str, weights: str | Path | None) -> tuple[nn.Module, dict[str, Any]]:
    run = read_run(folder)
    if weights is not None:
        raise UsageError(f"weights {str(weights)!r}: the run {folder!r} has its own")
    model, sha256 = load_backbone(run)
    return model, make_provenance(str(run.path.resolve()), str(run.weights.resolve()), sha256, None)


def _ask_hub() -> None:
    """Raise at once where the hub cannot be reached: its own client would try for most of a minute, and say so on the way."""
    get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def make_provenance(name: str, source: str, sha256: str | None, licence: str | None) -> dict[str, Any]:
    return {"model": name, "weights": {"source": source, "sha256": sha256, "license": licence}}


def find_config(name: str) -> PretrainedCfg:
    """timm's configuration of a model name, tag included; UsageError with the closest names where there is none."""
    architecture, tag = split_model_name_tag(name)
    known_tags = get_arch_pretrained_cfgs(architecture) if is_model(architecture) else {}
    if is_model(architecture) and (not tag or name in known_tags) and (config := get_pretrained_cfg(name)) is not None:
        return config
    if "/" in name and not name.startswith("hf-hub:"):
        raise UsageError(f"model {name!r}: no such folder, and no model of that name")
    known = timm.list_models(include_tags=True) + timm.list_models()
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    ours = timm.list_models(f"densefeat_*{name}*")[:3] if name else []
    ours += difflib.get_close_matches(f"densefeat_{name}", timm.list_models("densefeat_*"), n=1, cutoff=0.8)
    hint = f"did you mean {', '.join(dict.fromkeys(ours + close))}?" if ours or close else "see: densefeat models"
    raise UsageError(f"unknown model {name!r}: {hint}")


def describe_source(config: PretrainedCfg) -> str:
    """Where the weights of a configuration are, in words for people."""
    if config.file:
        return f"densefeat/{Path(config.file).name}" if Path(config.file).parent == BUNDLED else config.file
    return f"hf-hub:{config.hf_hub_id}" if config.hf_hub_id else str(config.url)


def weights_file(config: PretrainedCfg) -> Path | None:
    """The local file that timm loaded a configuration's weights from, where it can be told."""
    if config.file:
        return Path(config.file)
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        names = [config.hf_hub_filename] if config.hf_hub_filename else _HUB_FILES
        for name in names:
            cached = try_to_load_from_cache(repository, name, revision=revision or None)
            if isinstance(cached, str):
                return Path(cached)
        return None
    cached = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(str(config.url)))
    return Path(cached) if os.path.isfile(cached) else None
