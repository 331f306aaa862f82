"""Convert weights of other programs into a safetensors file that says what they expect, so that no command needs to be told."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from densefeat.base import atomic_file, check_target, output_errors, recognize_none, save_tensors
from densefeat.errors import UsageError, WeightsError
from densefeat.loading.load import find_config, make_network_for
from densefeat.nets import (
    ENTRY,
    MAKERS,
    VARIANTS,
    Checkpoint,
    Expectations,
    apply_expectations,
    count_channels,
    describe_maker,
    file_sha256,
    find_expectations,
    fits_network,
    load_checkpoint,
    read_checkpoint,
)
from densefeat.version import __version__


@dataclass(frozen=True)
class ConvertedWeights:
    """A converted file. ``metadata``: its entry ``densefeat``; ``stated_by``: who said how images are normalised."""

    path: Path
    metadata: dict[str, Any]
    num_classes: int
    stated_by: str


def convert_weights(
    file: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    made_by: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: list[str] | None = None,
) -> ConvertedWeights:
    """Write the weights of any file that densefeat reads as safetensors with our names, and what they expect in its metadata.

    Args:
        out: A file of the ending .safetensors, which must not exist.
        model: The network's name; None: the one of ours that the tensors fit.
        made_by: The program that made the weights, one of :data:`densefeat.nets.MAKERS`, where the file does not show it.
        mean, std: One number for each channel, of pixels scaled to 0..1, instead of what is known of the weights.
        classes: The names of the outputs, in their order.

    Raises:
        UsageError: Wrong arguments, and missing ones: how images of other than three channels are normalised must be known.
        WeightsError: The file cannot be read, or fits no network.
    """
    file, out = Path(file), Path(out)
    _check_arguments(out, made_by, mean, std)
    check_target(out, recognize_none)
    checkpoint = read_checkpoint(file)
    name = model or _find_network(checkpoint)
    find_config(name)
    network = _make_network(name, checkpoint)
    channels = count_channels(network) or 3
    found, source = find_expectations(checkpoint, channels)
    if made_by is not None:
        found, source = describe_maker(made_by, checkpoint), made_by
    if mean is not None:
        found, source = _state_colours(found, mean, std), "you"
    if classes is not None:
        found = replace(found, label_names=tuple(classes))
    num_classes = int(getattr(network, "num_classes", 0))
    _check_expectations(found, file, channels, num_classes, classes)
    apply_expectations(network, found, with_labels=True)
    metadata = _describe(name, network, found, file)
    _save(network, metadata, out)
    return ConvertedWeights(out, metadata, num_classes, source)


def _check_arguments(out: Path, made_by: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"output {str(out)!r}: give a name that ends in .safetensors")
    if made_by is not None and made_by not in MAKERS:
        raise UsageError(f"made_by {made_by!r}: choose one of {', '.join(MAKERS)}")
    if (mean is None) != (std is None):
        raise UsageError("mean and std belong together: give both, one number for each channel, of pixels scaled to 0..1")


def _state_colours(found: Expectations, mean: tuple[float, ...], std: tuple[float, ...] | None) -> Expectations:
    """Put other means and deviations in. Raises UsageError for numbers without meaning."""
    try:
        return replace(found, mean=mean, std=std)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _find_network(checkpoint: Checkpoint) -> str:
    """Find the network of ours whose tensors a checkpoint has. Raises WeightsError where there is none."""
    lengths = Counter(len(value) for value in checkpoint.tensors.values() if value.ndim == 1)
    for name in VARIANTS:
        with torch.device("meta"):
            features: Any = timm.create_model(name).features
            norms = Counter(len(value) for value in features.parameters() if value.ndim == 1)
            if norms <= lengths and fits_network(make_network_for(name, checkpoint), checkpoint):
                return name
    first = ", ".join(list(checkpoint.tensors)[:3]) or "none"
    raise WeightsError(
        f"weights {checkpoint.path}: {len(checkpoint.tensors)} tensors (first: {first}), which are those of no network of"
        " `densefeat models`; with --model NAME the differences from that one are told"
    )


def _make_network(name: str, checkpoint: Checkpoint) -> nn.Module:
    """Make the network with the checkpoint's weights, without a classifier where the checkpoint has none that fits."""
    network: Any = make_network_for(name, checkpoint)
    try:
        load_checkpoint(network, checkpoint, whole=True)
    except WeightsError:
        load_checkpoint(network, checkpoint)
        network.reset_classifier(0)
    return network


def _check_expectations(found: Expectations, file: Path, channels: int, num_classes: int, classes: list[str] | None) -> None:
    """Raise UsageError where what is known of images is missing or of other channels, or the classes are of another number."""
    if found.mean is None and channels != 3:
        raise UsageError(
            f"weights {str(file)!r} are for images of {channels} channels, whose mean and deviation they do not state: give"
            " these for pixels scaled to 0..1, one number a channel (--mean, --std), or say who made them (--made-by)"
        )
    if found.mean is not None and len(found.mean) != channels:
        raise UsageError(f"mean of {len(found.mean)} channels: the weights {str(file)!r} are for images of {channels}")
    if classes is not None and len(classes) != num_classes:
        raise UsageError(f"{len(classes)} classes: the weights {str(file)!r} have {num_classes} outputs")


def _describe(name: str, network: Any, found: Expectations, file: Path) -> dict[str, Any]:
    """Describe the converted weights as an exported network's are."""
    config = network.pretrained_cfg
    preprocessing = {
        "size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    } | ({"pixels": found.pixels} if found.pixels is not None else {})
    facts = {
        "made_by": f"densefeat {__version__}",
        "model": name,
        "weights": {"source": file.name, "sha256": file_sha256(file), "license": None},
        "preprocessing": preprocessing,
    }
    names = config.get("label_names")
    return facts | ({"label_names": names} if names else {}) | ({"task": found.task} if found.task else {})


def _save(network: nn.Module, metadata: dict[str, Any], out: Path) -> None:
    names = metadata.get("label_names")
    entries = {ENTRY: json.dumps(metadata)} | ({"classes": json.dumps(names)} if names else {})
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    with atomic_file(out, recognize_none) as beside, output_errors(out):
        save_tensors(save_file, tensors, beside, entries)
