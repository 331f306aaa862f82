"""The one way from what the user named (a network, a run, a weights file, a module) to a network and its provenance."""

import difflib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from timm.models import (
    PretrainedCfg,
    adapt_input_conv,
    get_arch_pretrained_cfgs,
    get_pretrained_cfg,
    is_model,
    split_model_name_tag,
)
from torch import nn

from densefeat.base import describe_error, parse_json
from densefeat.errors import UsageError, WeightsError
from densefeat.loading.names import check_model_name
from densefeat.loading.run_files import RunConfig, is_run_folder, make_backbone, make_network, read_run
from densefeat.nets import (
    BUNDLED,
    BUNDLED_SHA256,
    Checkpoint,
    describe_refusal,
    file_sha256,
    find_shape,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    read_state_dict,
    set_state_dict,
)

_BACKBONE = "backbone."  # prefix of the backbone's keys in the weights of a HeadedNet
_SHA256 = re.compile("[0-9a-f]{64}")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_ALTERNATIVES = "use the bundled densefeat_densenet_bc100_k12, or a checkpoint file of your own (--weights FILE)"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network and where it came from.

    ``name``: with its tag; of a run its folder. ``source``, ``sha256``, ``licence``: of the weights, None where not known.
    ``file``: the local file that the weights were read from. ``run``: the configuration, if it is a run. ``published``: the
    weights are those that the name stands for. ``multi_label``: the weights' file says that an image has several labels.
    """

    model: nn.Module
    name: str
    source: str
    sha256: str | None = None
    licence: str | None = None
    file: Path | None = None
    run: RunConfig | None = None
    published: bool = False
    multi_label: bool = False

    @property
    def provenance(self) -> dict[str, Any]:
        """The record that stores and probes keep: ``{"model": name, "weights": {"source", "sha256", "license"}}``."""
        return {"model": self.name, "weights": {"source": self.source, "sha256": self.sha256, "license": self.licence}}

    @property
    def num_classes(self) -> int:
        """The number of logits; 0 for a network without a classifier."""
        return int(getattr(self.model, "num_classes", 0))

    @cached_property
    def classes(self) -> list[str] | None:
        """The names of the classes in the order of the logits; None where they are not known, or without a classifier."""
        names = self.run.classes if self.run else (getattr(self.model, "pretrained_cfg", None) or {}).get("label_names")
        names = names or read_class_names(self.file)
        return list(map(str, names)) if names and len(names) == self.num_classes else None

    @property
    def task(self) -> Literal["single", "multi"]:
        """``"multi"`` for a network trained on several labels an image, else ``"single"``."""
        return "multi" if self.multi_label or (self.run and self.run.task == "multi") else "single"


def load_network(
    model: str | nn.Module, weights: str | Path | None = None, head: bool = False, in_chans: int | None = None
) -> LoadedNetwork:
    """Load a network with trained weights, in eval mode. Other weights than those named are never substituted.

    Args:
        model: A name of ours or timm's, which stands for its published weights; a run's folder; or a module, which is
            returned as it is.
        weights: A checkpoint file to read instead. A network by name gets as many classes and channels as the file has, and
            the preprocessing that the file states.
        head: Whether the classifier is needed: a run keeps a head of ours, and the file's classifier must fit. Without it
            such a run's network ends at its last map, and a classifier that does not fit is left out.
        in_chans: The channels that the network is to read, to which its first layer is adapted by timm's rule; None: those of
            the weights.

    Raises:
        UsageError: Unknown name or tag (the message suggests the closest); ``weights`` for a module.
        WeightsError: Weights that do not exist, cannot be fetched, or do not fit.
    """
    if in_chans is not None and (isinstance(model, nn.Module) or is_run_folder(model)):
        own = "a model object" if isinstance(model, nn.Module) else f"the run {model!r}"
        raise UsageError(f"in_chans {in_chans}: {own} reads what it was made for: leave it out")
    if isinstance(model, nn.Module):
        if weights is not None:
            raise UsageError("weights are for a model given by name: load them into your own with densefeat.load_weights")
        return LoadedNetwork(model, getattr(model, "recorded_name", type(model).__name__), "a model object")
    if is_run_folder(model):
        return _load_from_run(model, weights, head)
    return _load_by_name(model, weights, head, {} if in_chans is None else {"in_chans": in_chans})


def load_run(folder: str | Path, weights: str | Path | None = None) -> nn.Module:
    """Load the network that ``densefeat finetune`` or ``densefeat train`` ended with, head included, in eval mode.

    ``(N, 3, H, W)`` to logits; ``pretrained_cfg`` has its preprocessing, and its classes as ``label_names``. ``weights``: a
    file instead of the run's own. Raises UsageError where there is no run, WeightsError where its files do not fit.
    """
    return _load_from_run(folder, weights, head=True).model


def _load_from_run(folder: str | Path, weights: str | Path | None, head: bool) -> LoadedNetwork:
    run = read_run(folder)
    if weights is not None and not head:
        raise UsageError(f"weights {str(weights)!r}: the run {str(folder)!r} has its own")
    file = run.weights if weights is None else Path(weights)
    if head or run.head == "linear":
        model = make_network(run)
        sha256 = load_weights(model, file, whole=True).sha256
        if run.classes is not None and head:
            model.pretrained_cfg["label_names"] = run.classes  # type: ignore[index, operator, assignment]
    else:
        model = make_backbone(run, num_classes=0)
        set_state_dict(model, {k: value for k, value in read_state_dict(file).items() if k.startswith(_BACKBONE)}, file)
        sha256 = file_sha256(file)
    model.pixel_rule = run.pixels  # type: ignore[assignment]
    model.in_chans = int((run.pretrained_cfg.get("input_size") or (3,))[0])  # type: ignore[assignment]
    return LoadedNetwork(model.eval(), str(run.path.resolve()), str(file.resolve()), sha256, None, file, run)


def _load_by_name(name: str, weights: str | Path | None, head: bool, options: dict[str, Any]) -> LoadedNetwork:
    """Load a network by its name. ``options``: of ``timm.create_model``."""
    config = find_config(name)
    full_name = ".".join(filter(None, (config.architecture, config.tag)))
    if weights is not None:
        checkpoint = read_checkpoint(Path(weights))
        model = make_network_for(name, checkpoint)
        loaded = load_checkpoint(model, checkpoint, whole=head)
        if "in_chans" in options:
            _adapt_channels(model, options["in_chans"])
        multi_label = loaded.expectations.task == "multi"
        return LoadedNetwork(model, full_name, str(weights), loaded.sha256, None, loaded.path, multi_label=multi_label)
    cached = find_weights_file(config)
    sha256 = None if cached is None else _check_published_file(cached)
    model = _load_published(name, config, options)
    file = cached or find_weights_file(config)
    sha256 = _check_published_file(file) if cached is None and file is not None else sha256
    return LoadedNetwork(model, full_name, describe_weights_source(config), sha256, config.license, file, published=True)


def make_network_for(name: str, checkpoint: Checkpoint) -> nn.Module:
    """Make timm's network of a name, in eval mode, with as many classes and channels as a checkpoint has."""
    model = timm.create_model(name)
    shape: dict[str, Any] = find_shape(model, checkpoint)
    if shape:
        model = timm.create_model(name, **shape)
    model.in_chans = shape.get("in_chans", getattr(model, "in_chans", 3))
    return model.eval()


def _adapt_channels(model: nn.Module, in_chans: int) -> None:
    """Make a network read another number of channels, by timm's rule for weights of three."""
    names = getattr(model, "pretrained_cfg", {}).get("first_conv")
    for name in [names] if isinstance(names, str) else names or ():
        layer = model.get_submodule(name)
        if layer.in_channels != in_chans:
            if layer.in_channels != 3:
                raise UsageError(f"in_chans {in_chans}: weights for {layer.in_channels} channels are not adapted")
            weight = adapt_input_conv(in_chans, layer.weight.detach())  # type: ignore[operator]
            layer.weight, layer.in_channels = nn.Parameter(weight), in_chans  # type: ignore[assignment]
    model.in_chans = in_chans  # type: ignore[assignment]


def _load_published(name: str, config: PretrainedCfg, options: dict[str, Any]) -> nn.Module:
    if not config.has_weights:
        raise WeightsError(f"{name}: nobody has published weights for it; {_ALTERNATIVES}")
    try:
        cached = find_weights_file(config)
        if cached is None and config.hf_hub_id:
            # The hub's client retries for most of a minute where the hub cannot be reached; this fails at once.
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        overlay = {"file": str(cached)} if cached and not config.custom_load else None
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
        model.in_chans = options.get("in_chans", getattr(model, "in_chans", 3))
        return model
    except Exception as error:  # failures of the network, the cache and the hub have many types
        reason = describe_refusal(error) or f"{type(error).__name__}: {describe_error(error)}"
        raise WeightsError(
            f"{name}: its weights could not be fetched from {describe_weights_source(config)} ({reason}); {_ALTERNATIVES}"
        ) from error


def _check_published_file(file: Path) -> str:
    """Return the SHA-256 of a file of published weights.

    Raises WeightsError where it differs from the one known: of the bundled file, or the name of a file in the hub's cache.
    """
    stored, sha256 = file.resolve(), file_sha256(file)
    expected = BUNDLED_SHA256.get(file.name, "") if file.parent == BUNDLED else stored.name
    if _SHA256.fullmatch(expected) and sha256 != expected:
        cure = "install densefeat again" if file.parent == BUNDLED else "remove it, so that it is fetched again"
        raise WeightsError(f"weights {stored}: damaged, the SHA-256 is not the published {expected[:16]}…: {cure}")
    return sha256


def find_config(name: str) -> PretrainedCfg:
    """Find timm's configuration of a model name, tag included. Raises UsageError with the closest names where there is none."""
    architecture, tag = split_model_name_tag(name)
    known_tags = get_arch_pretrained_cfgs(architecture) if is_model(architecture) else {}
    if is_model(architecture) and (not tag or name in known_tags) and (config := get_pretrained_cfg(name)) is not None:
        return config
    check_model_name(name)
    known = timm.list_models(include_tags=True) + timm.list_models()
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    ours = timm.list_models(f"densefeat_*{name}*")[:3] if name else []
    ours += difflib.get_close_matches(f"densefeat_{name}", timm.list_models("densefeat_*"), n=1, cutoff=0.8)
    hint = f"did you mean {', '.join(dict.fromkeys(ours + close))}?" if ours or close else "see: densefeat models"
    raise UsageError(f"unknown model {name!r}: {hint}")


def describe_weights_source(config: PretrainedCfg) -> str:
    """Say where the weights of a configuration are published."""
    if config.file:
        return f"densefeat/{Path(config.file).name}" if Path(config.file).parent == BUNDLED else config.file
    return f"hf-hub:{config.hf_hub_id}" if config.hf_hub_id else str(config.url)


def find_weights_file(config: PretrainedCfg) -> Path | None:
    """Find the local file that holds a configuration's weights; None where they were not fetched yet."""
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


def check_fetched(config: PretrainedCfg, owner: str) -> None:
    """Check that published weights are on this machine: a file, ``owner``, may not decide what is fetched.

    Raises WeightsError, with the ways to get them, where loading them would ask a server.
    """
    if find_weights_file(config) is not None and (config.file or not config.custom_load):  # timm asks for those in any case
        return
    ways = "--weights FILE"
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        name = config.hf_hub_filename or _HUB_FILES[0]
        ways = f"hf download {repository} {name}{f' --revision {revision}' if revision else ''}, or {ways}"
    raise WeightsError(
        f"the weights of {owner} are {describe_weights_source(config)}, which are not on this machine, and a file that names"
        f" them does not make densefeat fetch them: {ways}"
    )


def read_class_names(file: Path | None) -> list[str] | None:
    """Read the class names in the metadata of a safetensors file of ours (entry ``classes``, JSON).

    None where there are none.
    """
    if file is None or file.suffix != ".safetensors":
        return None
    try:
        with safe_open(str(file), "pt") as opened:
            names = parse_json((opened.metadata() or {}).get("classes", "null"))
    except (SafetensorError, ValueError):  # another format under this name, metadata of another program
        return None
    return list(map(str, names)) if isinstance(names, list) else None


def read_card_text(file: Path | None) -> str | None:
    """Read the model card, in Markdown, that lies beside a weights file (the bundled one has one); None where there is none."""
    card = None if file is None else file.with_suffix(".md")
    return card.read_text(encoding="utf-8", errors="replace") if card is not None and card.is_file() else None
