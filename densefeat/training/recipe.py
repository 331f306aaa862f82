"""The keys of a recipe: each key's type and meaning. A recipe file gives a value for every key."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

from densefeat.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Run:
    """The keys that every kind of run has. A resumed run may change only the keys in ``MAY_CHANGE``."""

    command: ClassVar[str]  # the command that takes recipes of this kind

    # the network
    model: str  # a model name of timm, which includes densefeat's
    memory_efficient: bool  # recompute concatenation, BatchNorm and ReLU in the backward pass (arXiv 1707.06990)

    # the data
    train: str  # a folder of classes, Parquet files, tar files, or the files of CIFAR or SVHN; may change
    label_column: str | None  # column of Parquet files, extension of tar members; None: "label", "cls"
    range: str = "auto"  # which values are black and white, as densefeat extract's --range
    channels: str | int | None = None  # bands to read, such as "4,3,2"; null: the colours of a picture
    in_chans: int | None = None  # channels that the network reads; null: those of its weights
    channel_stats: str | None = None  # mean and deviation of each channel: a file, or fit; null: those of the weights or data
    nodata: float | None = None  # the value of pixels without data
    icc: Literal["convert", "ignore"] = "convert"  # embedded colour profiles
    loader: Literal["device", "workers"]  # device: decode once, keep as uint8 on the device; workers: decode in every epoch
    workers: int  # decoding processes of each rank, for loader: workers; may change

    # augmentation
    augment: Literal["none", "shift-mirror", "cutout", "crop-mirror", "inception", "randaugment"]  # shift-mirror: papers' "+"
    label_smoothing: float

    # optimisation
    epochs: float
    batch_size: int  # images in one step, over all ranks and all micro-batches
    accumulation: int  # micro-batches in which each rank computes its share of a batch, accumulating gradients
    optimizer: str  # an optimizer name of timm; sgd has Nesterov momentum and no dampening
    lr: float
    momentum: float
    weight_decay: float
    decay_norm: bool  # apply weight decay also to biases and BatchNorm weights, as the papers do
    schedule: Literal["step", "cosine"]
    milestones: list[float]  # for schedule: step, the fractions of the run at which lr is divided by ten
    warmup_epochs: float  # lr rises linearly from 0
    clip_grad: float | None  # largest norm of all gradients together
    ema: float | None  # decay of the moving average of the weights, which is then evaluated and saved
    freeze_norm: bool  # keep BatchNorm layers in eval mode, so that their statistics do not change

    # arithmetic
    precision: Literal["float32", "bf16", "fp16", "float64"]  # bf16, fp16: autocast; float32 on a CPU without their arithmetic
    channels_last: bool
    compile: bool  # torch.compile
    cuda_graph: bool  # run the network as one CUDA graph: kernel launches limit a step on few small images
    sync_bn: bool  # compute BatchNorm statistics over all ranks (GPU only)
    deterministic: bool  # use torch's deterministic algorithms; slower
    seed: int

    # the run
    threads: int | None = None  # of the CPU, for each rank; null: one for each core; may change
    keep: Literal["best", "last"]  # the weights that become model.safetensors
    eval_epochs: float  # epochs between evaluations
    log_steps: int  # steps between lines of metrics.jsonl; may change
    checkpoint_steps: int | None  # steps between checkpoints; may change
    checkpoint_minutes: float  # minutes between checkpoints; may change
    retreats: int  # how often a diverged run returns to its last good checkpoint, at half the lr; may change


@dataclass(frozen=True, kw_only=True)
class Recipe(Run):
    """A recipe for training from scratch."""

    command = "densefeat train"

    proj_drop_rate: float | Literal["auto"]  # dropout after each convolution; auto: 0.2 without augmentation (1608.06993, 3)

    data: Literal["cifar10", "cifar100", "svhn", "tin200", "imagenet", "images"]  # sets classes and normalisation; images: any
    val: str  # like train; may change
    holdout: int  # training images kept back to select weights; 0: train on everything
    image_size: int | dict[float, int]  # pixels of a side; or, by share of the run, {0: 16, 0.5: 32}: smaller ones at first
    crop_pct: float  # share of the short side that the central crop of evaluation keeps
    weights: str | None = None  # a checkpoint file or a run's folder to start from; published: those of the name; null: fresh

    @property
    def sizes(self) -> dict[float, int]:
        """The sizes of training images by share of the run, the last of which is that of evaluation."""
        return self.image_size if isinstance(self.image_size, dict) else {0.0: self.image_size}


# keys that do not affect the weights that a run ends with, or only by the decision of whoever resumes it
MAY_CHANGE = {
    "train", "val", "test", "base", "workers", "threads", "log_steps", "checkpoint_steps", "checkpoint_minutes", "retreats",
}  # fmt: skip


@dataclass(frozen=True)
class DataFacts:
    """Facts about a data set. ``mean`` and ``std`` are per channel, of pixels in [0, 1]."""

    num_classes: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATA = {
    "cifar10": DataFacts(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": DataFacts(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": DataFacts(10, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # only scaled to [0, 1] (1608.06993, 4.2)
    "tin200": DataFacts(200, *_IMAGENET),
    "imagenet": DataFacts(1000, *_IMAGENET),
    "images": DataFacts(None, *_IMAGENET),
}

_POSITIVE = ("epochs", "threads", "batch_size", "accumulation", "lr", "eval_epochs", "log_steps", "checkpoint_minutes",
            "crop_pct", "checkpoint_steps", "clip_grad", "ema")  # fmt: skip
_NOT_NEGATIVE = ("holdout", "workers", "label_smoothing", "momentum", "weight_decay", "warmup_epochs", "retreats", "seed")
_SHARES = ("label_smoothing", "momentum", "ema", "crop_pct")
_AUGMENT = {  # by loader
    "device": ("none", "shift-mirror", "cutout"),
    "workers": ("none", "crop-mirror", "inception", "randaugment"),
}


def check_recipe(recipe: Recipe) -> None:
    """Raise UsageError for values that are impossible or do not go together."""
    check_run(recipe)
    drop = recipe.proj_drop_rate
    refuse_if(recipe.warmup_epochs >= recipe.epochs, "warmup_epochs", recipe.warmup_epochs, f"epochs are {recipe.epochs}")
    shares, sizes = list(recipe.sizes), list(recipe.sizes.values())
    refuse_if(min(sizes, default=0) <= 0, "image_size", recipe.image_size, "give numbers above 0")
    ordered = shares[0] == 0 and all(0 <= share < 1 for share in shares) and sorted(set(shares)) == shares
    refuse_if(not ordered, "image_size", recipe.image_size, "give the shares of the run in order, the first 0, all below 1")
    refuse_if(sorted(sizes) != sizes, "image_size", recipe.image_size, "give rising sizes: the last is that of evaluation")
    several = len(sizes) > 1
    refuse_if(several and recipe.cuda_graph, "cuda_graph", True, "it is captured for one image_size")
    refuse_if(several and recipe.keep == "best", "keep", "best", "weights of several image sizes do not compare: give last")
    refuse_if(drop != "auto" and not 0 <= float(drop) < 1, "proj_drop_rate", drop, "give auto, or a share below 1")


def check_run(recipe: Run, positive: Sequence[str] = (), not_negative: Sequence[str] = (), shares: Sequence[str] = ()) -> None:
    """Check the keys that every kind of run has, and the range of numbers under the keys listed besides."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    for field in fields(recipe):  # without pydantic, nothing has checked the choices yet
        choices = get_args(field.type)
        if get_origin(field.type) is Literal:
            refuse_if(values[field.name] not in choices, field.name, values[field.name], f"give one of {', '.join(choices)}")
    for key, value in values.items():
        refuse_if(isinstance(value, float) and not math.isfinite(value), key, value, "give a finite number")
    for keys, wrong, instead in (
        ((*_POSITIVE, *positive), lambda value: value <= 0, "give a number above 0"),
        ((*_NOT_NEGATIVE, *not_negative), lambda value: value < 0, "give 0 or more"),
        ((*_SHARES, *shares), lambda value: value > 1, "give a share, at most 1"),
    ):
        for key in keys:
            refuse_if(values.get(key) is not None and wrong(values[key]), key, values.get(key), instead)
    refuse_if(not all(0 < share < 1 for share in recipe.milestones), "milestones", recipe.milestones, "give shares of the run")
    choices = _AUGMENT[recipe.loader]
    refuse_if(recipe.augment not in choices, "augment", recipe.augment, f"loader: {recipe.loader} has {', '.join(choices)}")
    refuse_if(recipe.milestones != sorted(recipe.milestones), "milestones", recipe.milestones, "give them in order")
    refuse_if(recipe.optimizer == "sgd" and not recipe.momentum, "momentum", recipe.momentum, "Nesterov's needs one above 0")
    several = recipe.cuda_graph and recipe.accumulation > 1
    refuse_if(several, "cuda_graph", True, "it computes one gradient for all micro-batches: only with accumulation: 1")
    refuse_if(recipe.sync_bn and recipe.memory_efficient, "sync_bn", True, "its layers are not memory_efficient: choose one")
    refuse_if(recipe.sync_bn and recipe.cuda_graph, "sync_bn", True, "a cuda_graph cannot hold its communication: choose one")
    refuse_if(recipe.compile and recipe.cuda_graph, "cuda_graph", True, "compile makes its own kernels: choose one")


def refuse_if(wrong: Any, key: str, value: object, instead: str) -> None:
    """Raise UsageError for the value of a key if it is ``wrong``; ``instead`` says what to give."""
    if wrong:
        raise UsageError(f"recipe: {key} {value!r}: {instead}")


def drop_rate(recipe: Recipe) -> float:
    """Return the dropout rate after each convolution."""
    if recipe.proj_drop_rate == "auto":
        return 0.2 if recipe.augment == "none" else 0.0
    return recipe.proj_drop_rate
