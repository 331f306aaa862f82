"""What a recipe says: every key, its type, and what it means. A recipe file names them all."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

from densefeat.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every kind of run says. Only keys that a resumed run may change are marked so; all others are its identity."""

    # the network
    model: str  # a name of timm's, ours among them
    memory_efficient: bool  # recompute concatenation, BatchNorm and ReLU in the backward pass (arXiv 1707.06990)

    # the data
    train: str  # a folder of classes, Parquet files, tar files, or CIFAR's or SVHN's own; may change
    label_column: str | None  # of Parquet files, extension of tar members; None: "label", "cls"
    loader: Literal["device", "workers"]  # device: decoded once, kept there as uint8; workers: decoded anew for every epoch
    workers: int  # processes of the latter, in each rank; may change

    # augmentation
    augment: Literal["none", "shift-mirror", "cutout", "crop-mirror", "inception", "randaugment"]  # shift-mirror: papers' "+"
    label_smoothing: float

    # optimisation
    epochs: float
    batch_size: int  # images in one step: of all ranks, and of all parts where gradients are accumulated
    accumulation: int  # parts that each rank computes its share of a batch in
    optimizer: str  # a name of timm's; sgd has Nesterov momentum and no dampening
    lr: float
    momentum: float
    weight_decay: float
    decay_norm: bool  # weight decay also on biases and the BatchNorms' weights, as in the papers
    schedule: Literal["step", "cosine"]
    milestones: list[float]  # of step: shares of the run after which lr is divided by ten
    warmup_epochs: float  # from 0, linearly
    clip_grad: float | None  # largest norm of all gradients
    ema: float | None  # decay of an average of the weights, which is then what is evaluated and kept
    freeze_norm: bool  # BatchNorms in eval mode: their statistics never move

    # arithmetic
    precision: Literal["float32", "bf16", "fp16", "float64"]  # bf16, fp16: autocast
    channels_last: bool
    compile: bool  # torch.compile
    cuda_graph: bool  # the network's kernels as one graph: a batch of 64 small images is bound by their launches
    sync_bn: bool  # BatchNorm over all ranks (GPU only)
    deterministic: bool  # of torch's algorithms; slower
    seed: int

    # the run
    keep: Literal["best", "last"]  # which weights become model.safetensors
    eval_epochs: float  # between evaluations
    log_steps: int  # between lines of metrics.jsonl; may change
    checkpoint_steps: int | None  # between checkpoints; may change
    checkpoint_minutes: float  # likewise, by the clock; may change
    retreats: int  # times to go back to the last good checkpoint, at half the lr, after divergence; may change


@dataclass(frozen=True, kw_only=True)
class Recipe(Run):
    """Training from scratch."""

    proj_drop_rate: float | Literal["auto"]  # after each convolution; auto: 0.2 where augment is none, else 0 (1608.06993, 3)

    data: Literal["cifar10", "cifar100", "svhn", "tin200", "imagenet", "images"]  # classes and colours; images: any, counted
    val: str  # as train; may change
    holdout: int  # training images kept to choose by; 0: the final run on everything
    image_size: int  # pixels, of a side
    crop_pct: float  # share of a side that the single crop of evaluation keeps

    # what only fine-tuning varies
    mode, head, head_only_epochs, layer_decay = "full", "linear", 0.0, 1.0
    mixup = cutmix = 0.0
    class_weights = sampling = "uniform"
    patience = None


# what does not change the weights that a run ends with, or only by its own decision
MAY_CHANGE = {
    "train", "val", "workers", "log_steps", "checkpoint_steps", "checkpoint_minutes", "retreats",
}  # fmt: skip


@dataclass(frozen=True)
class DataFacts:
    """What is known of a family of data. ``mean`` and ``std``: of channels, pixels in [0, 1]."""

    num_classes: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATA = {
    "cifar10": DataFacts(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": DataFacts(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": DataFacts(10, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # pixels in [0, 1], no more (1608.06993, 4.2)
    "tin200": DataFacts(200, *_IMAGENET),
    "imagenet": DataFacts(1000, *_IMAGENET),
    "images": DataFacts(None, *_IMAGENET),
}

_POSITIVE = ("image_size", "epochs", "batch_size", "accumulation", "lr", "eval_epochs", "log_steps", "checkpoint_minutes",
            "crop_pct", "checkpoint_steps", "clip_grad", "ema", "layer_decay", "head_width", "patience")  # fmt: skip
_NOT_NEGATIVE = ("holdout", "workers", "label_smoothing", "momentum", "weight_decay", "warmup_epochs", "retreats",
                "mixup", "cutmix", "seed")  # fmt: skip
_SHARES = ("label_smoothing", "momentum", "ema", "crop_pct", "layer_decay")
_DEVICE_AUGMENT = ("none", "shift-mirror", "cutout")
_WORKER_AUGMENT = ("none", "crop-mirror", "inception", "randaugment")


def check(recipe: Recipe) -> None:
    """Raise UsageError for values that no run can have, or that do not go together."""
    check_run(recipe)
    drop = recipe.proj_drop_rate
    refuse(recipe.warmup_epochs >= recipe.epochs, "warmup_epochs", recipe.warmup_epochs, f"epochs are {recipe.epochs}")
    refuse(drop != "auto" and not 0 <= float(drop) < 1, "proj_drop_rate", drop, "give auto, or a share below 1")


def check_run(recipe: Run) -> None:
    """What holds for every kind of run."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    for field in fields(recipe):  # pydantic has seen to it, but for a machine without it
        choices = get_args(field.type)
        if get_origin(field.type) is Literal:
            refuse(values[field.name] not in choices, field.name, values[field.name], f"give one of {', '.join(choices)}")
    for key, value in values.items():
        refuse(isinstance(value, float) and not math.isfinite(value), key, value, "give a finite number")
    for keys, wrong, instead in (
        (_POSITIVE, lambda value: value <= 0, "give a number above 0"),
        (_NOT_NEGATIVE, lambda value: value < 0, "give 0 or more"),
        (_SHARES, lambda value: value > 1, "give a share, at most 1"),
    ):
        for key in keys:
            refuse(values.get(key) is not None and wrong(values[key]), key, values.get(key), instead)
    refuse(not all(0 < share < 1 for share in recipe.milestones), "milestones", recipe.milestones, "give shares of the run")
    on_device = recipe.augment in _DEVICE_AUGMENT
    refuse(recipe.loader == "device" and not on_device, "augment", recipe.augment,
           f"loader: device has {', '.join(_DEVICE_AUGMENT)}")  # fmt: skip
    by_workers = recipe.augment in _WORKER_AUGMENT
    refuse(recipe.loader == "workers" and not by_workers, "augment", recipe.augment,
           f"loader: workers has {', '.join(_WORKER_AUGMENT)}")  # fmt: skip
    refuse(recipe.milestones != sorted(recipe.milestones), "milestones", recipe.milestones, "give them in order")
    refuse(recipe.optimizer == "sgd" and not recipe.momentum, "momentum", recipe.momentum, "Nesterov's needs one above 0")
    graph_of_parts = recipe.cuda_graph and recipe.accumulation > 1
    refuse(graph_of_parts, "cuda_graph", True, "it has one gradient for all parts: only with accumulation: 1")
    refuse(recipe.sync_bn and recipe.memory_efficient, "sync_bn", True, "its layers are not memory_efficient: choose one")
    refuse(recipe.sync_bn and recipe.cuda_graph, "sync_bn", True, "its communication is in no cuda_graph: choose one")
    refuse(recipe.compile and recipe.cuda_graph, "cuda_graph", True, "compile makes kernels of its own: choose one")


def refuse(wrong: Any, key: str, value: object, instead: str) -> None:
    if wrong:
        raise UsageError(f"recipe: {key} {value!r}: {instead}")


def drop_rate(recipe: Recipe) -> float:
    """Dropout after each convolution."""
    if recipe.proj_drop_rate == "auto":
        return 0.2 if recipe.augment == "none" else 0.0
    return recipe.proj_drop_rate
