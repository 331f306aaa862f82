"""What weights expect of images, and what they say of their outputs: from the metadata of a file, or known of its maker.

A safetensors file of ours has it as JSON in the metadata's entry ``densefeat``. Other files say nothing; of a few programs it
is known how they prepare images, and their files are known by their keys or the class of their module.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from densefeat.base import is_number, parse_json, shorten_text
from densefeat.errors import WeightsError
from densefeat.nets.checkpoint_file import Checkpoint

ENTRY = "densefeat"  # of a safetensors file's metadata
_MAX_CHANNELS, _MAX_LABELS, _MAX_SIDE, _MAX_WORD = 2**10, 2**20, 2**16, 20


@dataclass(frozen=True)
class Expectations:
    """What weights say of their images and outputs; None where they do not.

    Attributes:
        mean, std: One number for each channel, of pixels scaled to 0..1.
        size: Of the square input, to which images are brought by ``crop_pct``, ``crop_mode`` and ``interpolation`` as timm
            names them.
        label_names: Of the outputs.
        task: ``"single"``, or ``"multi"``: an image has one of these labels, or several.
        pixels: The rule by which pixels become 0..1, as JSON.

    Raises ValueError for values of other types or without a meaning.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    label_names: tuple[str, ...] | None = None
    task: str | None = None
    pixels: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        checks: dict[str, tuple[Callable[[Any], bool], str]] = {
            "mean": (_are_numbers, f"a finite number for each channel, at most {_MAX_CHANNELS:,}"),
            "std": (lambda std: _are_numbers(std) and min(std) > 0, "a finite number above 0 for each channel"),
            "size": (
                lambda size: type(size) is int and 0 < size <= _MAX_SIDE,
                f"a whole number of pixels, at most {_MAX_SIDE:,}",
            ),
            "crop_pct": (lambda share: is_number(share) and share > 0, "a share above 0"),
            "crop_mode": (_is_word, f"a word of at most {_MAX_WORD} letters"),
            "interpolation": (_is_word, f"a word of at most {_MAX_WORD} letters"),
            "label_names": (_are_names, f"names, at most {_MAX_LABELS:,}"),
            "task": (lambda task: task in ("single", "multi"), "single or multi"),
            "pixels": (lambda rule: isinstance(rule, dict), "a pixel rule"),
        }
        for name, (check, wanted) in checks.items():
            value = getattr(self, name)
            if value is not None and not check(value):
                raise ValueError(f"{name} {shorten_text(repr(value))} is not {wanted}")
        if len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std must have one number each for every channel")


def _are_numbers(values: object) -> bool:
    return isinstance(values, tuple) and 0 < len(values) <= _MAX_CHANNELS and all(map(is_number, values))


def _is_word(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_WORD


def _are_names(values: object) -> bool:
    return isinstance(values, tuple) and len(values) <= _MAX_LABELS and all(isinstance(name, str) for name in values)


_CIFAR: dict[str, Any] = dict(size=32, crop_pct=1.0)
_SQUASHED: dict[str, Any] = dict(size=224, crop_pct=1.0, crop_mode="squash", interpolation="bilinear")
# By maker: how its own scripts prepare images
MAKERS = {
    "torchxrayvision": Expectations(  # -1024 to 1024
        mean=(0.5,), std=(1 / 2048,), size=224, crop_pct=1.0, crop_mode="center", interpolation="bilinear", task="multi",
        label_names=(
            "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis", "Effusion",
            "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion", "Fracture",
            "Lung Opacity", "Enlarged Cardiomediastinum",
        ),
    ),
    "radimagenet": Expectations(mean=(0.5,) * 3, std=(0.5,) * 3, **_SQUASHED),
    # pixels less Keras' means, divided by 255; channels in the order blue, green, red, which are the same in grey images
    "radimagenet-keras": Expectations(mean=(103.939 / 255, 116.779 / 255, 123.68 / 255), std=(1.0,) * 3, **_SQUASHED),
    "andreasveit": Expectations(
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255), std=(63.0 / 255, 62.1 / 255, 66.7 / 255), **_CIFAR
    ),
    "bamos": Expectations(
        mean=(0.49139968, 0.48215827, 0.44653124), std=(0.24703233, 0.24348505, 0.26158768), **_CIFAR
    ),
}  # fmt: skip
# Ends of keys that files of one maker alone have
_MARKS = {
    "torchxrayvision": ("op_threshs",),
    "andreasveit": ("block1.layer.0.bn1.weight", "trans1.conv1.weight"),
    "bamos": ("dense1.0.bn1.weight", "trans1.conv1.weight"),
}


def find_expectations(checkpoint: Checkpoint, channels: int) -> tuple[Expectations, str]:
    """Find what weights for so many channels expect, and who says so: the file, a maker of :data:`MAKERS`, or nobody, ``""``.

    Raises WeightsError for metadata of ours that make no sense.
    """
    if ENTRY in checkpoint.metadata:
        stated = _parse_metadata(checkpoint)
        if stated.mean is not None and len(stated.mean) != channels:
            raise WeightsError(
                f"weights {checkpoint.path}: for images of {len(stated.mean)} channels, and the network reads {channels}:"
                f" make it with in_chans={len(stated.mean)}"
            )
        return stated, "its metadata"
    for maker, marks in _MARKS.items():
        known = describe_maker(maker, checkpoint)
        if len(known.mean or ()) == channels and (_is_of_module(maker, checkpoint) or all(map(checkpoint.has_key, marks))):
            return known, maker
    return Expectations(), ""


def _is_of_module(maker: str, checkpoint: Checkpoint) -> bool:
    return checkpoint.class_name.partition(".")[0] == maker


def describe_maker(maker: str, checkpoint: Checkpoint) -> Expectations:
    """Give a maker's expectations; labels for which torchxrayvision has no threshold are marked as untrained."""
    known = MAKERS[maker]
    thresholds = next((value for key, value in checkpoint.tensors.items() if key.rpartition(".")[2] == "op_threshs"), None)
    names = known.label_names or ()
    if maker != "torchxrayvision" or thresholds is None or thresholds.shape != (len(names),):
        return known
    trained = torch.isfinite(thresholds).tolist()
    labels = [name if used else f"{name} (untrained)" for name, used in zip(names, trained, strict=True)]
    return replace(known, label_names=tuple(labels))


def _parse_metadata(checkpoint: Checkpoint) -> Expectations:
    title = f"weights {checkpoint.path}: its metadata"
    try:
        content = parse_json(checkpoint.metadata[ENTRY])
        stated = {name: value for name, value in content.items() if name in ("label_names", "task")}
        images = content.get("preprocessing", {})
        stated |= {name: value for name, value in images.items() if name in Expectations.__dataclass_fields__}
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{title} cannot be read: {shorten_text(str(error))}") from error
    options: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()}
    try:
        return Expectations(**options)
    except ValueError as error:
        raise WeightsError(f"{title} have no meaning: {error}") from error


def count_channels(model: nn.Module) -> int | None:
    """Count the channels of a network's images by its first convolution, which timm's models name; None where none is named."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    modules = dict(model.named_modules())
    return getattr(modules.get(name), "in_channels", None) if isinstance(name, str) else None


def apply_expectations(model: nn.Module, expectations: Expectations, with_labels: bool) -> None:
    """Write what weights expect into a model's ``pretrained_cfg``, and its labels where its classifier has as many."""
    if getattr(model, "pretrained_cfg", None) is None:
        model.pretrained_cfg = {}  # type: ignore[assignment]
    config: Any = model.pretrained_cfg
    channels, height, width = config.get("input_size") or (3, 224, 224)
    size = expectations.size
    shape = (count_channels(model) or channels, size or height, size or width)
    names_of_timm = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
    stated = {name: value for name in names_of_timm if (value := getattr(expectations, name)) is not None}
    if stated or shape != (channels, height, width):
        for unused in ("test_input_size", "test_crop_pct"):
            config.pop(unused, None)
        config |= stated | {"input_size": shape}
    names = expectations.label_names
    if with_labels and names and len(names) == getattr(model, "num_classes", 0):
        config["label_names"] = list(names)
