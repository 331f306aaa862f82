"""The state of a run, which steps change, and the setup, which says what a step trains."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from densefeat.base import StopRequest, has_arithmetic
from densefeat.errors import UsageError
from densefeat.training.data import TrainingData
from densefeat.training.device_data import MicroBatch
from densefeat.training.losses import Loss
from densefeat.training.progress import Progress
from densefeat.training.recipe import Run
from densefeat.training.sizes import SizeSchedule
from densefeat.training.world import World

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Setup(ABC):
    """A kind of run: its images, its network, and which parameters it trains by which loss."""

    recipe: Run
    patience: int | None = None  # evaluations without improvement after which the run ends
    head_epochs: float = 0.0  # at the start, in which only the head is trained

    def check_output(self, out: Path) -> None:  # noqa: B027  (most kinds accept any folder)
        """Raise UsageError for a folder that the run must not use."""

    @abstractmethod
    def open_data(self, world: World, advance: Callable[[int], None]) -> TrainingData:
        """Open the images; ``advance`` is called with the number of images decoded."""

    @abstractmethod
    def make_model(self, num_classes: int) -> nn.Module:
        """Return the network as it is before the first step, on the CPU."""

    @abstractmethod
    def make_loss(self, data: TrainingData, device: torch.device) -> Loss:
        """Return the loss of a step."""

    def make_mixing(self, data: TrainingData) -> Callable[[MicroBatch, int, int], MicroBatch] | None:  # noqa: ARG002
        """Return a function of a micro-batch, the step, and its number over all ranks, that mixes its images."""
        return None

    def parameter_groups(self, model: nn.Module) -> Any:
        """Return what timm makes an optimizer of: the network, or groups of parameters."""
        return model

    def has_unused_parameters(self, model: nn.Module) -> bool:  # noqa: ARG002
        """Return whether a step may compute no gradient for some trainable parameter."""
        return False

    def sizes(self) -> dict[float, int]:
        """Return the sizes of training images by share of the run; none: the images' own."""
        return {}

    def warmup_epochs(self) -> float:
        return self.recipe.warmup_epochs

    def set_mode(self, model: nn.Module, head_only: bool) -> None:  # noqa: ARG002
        """Set train mode for the modules that a step changes, eval mode for all others."""
        _set_train_mode(model, self.recipe.freeze_norm)

    def start(self, state: "State", data: TrainingData, stop: StopRequest, progress: Progress) -> bool:  # noqa: ARG002
        """Prepare the network on the images, before the first step; return whether anything changed."""
        return False


@dataclass
class State:
    """Everything that a step changes."""

    setup: Setup
    world: World
    model: nn.Module
    network: nn.Module  # what a step calls: ``model``, or DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    precision: str  # of this process's steps: the recipe's, or float32 where a CPU would emulate it
    sizes: SizeSchedule
    head_steps: int = 0  # at the start, in which only the head is trained
    step: int = 0
    lr_scale: float = 1.0  # halved by each of ``retreats``
    retreats: int = 0
    best: float = float("-inf")  # highest main score up to now
    kept_step: int = 0  # of the weights in the run folder
    stale: int = 0  # evaluations since the best
    seconds: float = 0.0  # of training, in all calls
    images: str = ""  # fingerprint of the training images
    precisions: list[str] = field(default_factory=list)  # of all steps, in all calls, in the order of their use
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))  # see Progress.advance

    @property
    def recipe(self) -> Run:
        return self.setup.recipe

    @property
    def eval_model(self) -> nn.Module:
        """The network with the weights that are evaluated and saved: their moving average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def autocast(self) -> torch.autocast:
        dtype = _AUTOCAST.get(self.precision)
        # a CUDA graph replays casts: none may come from a cache that was filled outside of it
        return torch.autocast(
            self.world.device.type, dtype, enabled=dtype is not None, cache_enabled=not self.recipe.cuda_graph
        )  # fmt: skip

    def to_layout(self, x: torch.Tensor) -> torch.Tensor:
        """Convert ``(N, 3, H, W)`` to the memory format of the network."""
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return x.contiguous(memory_format=layout)

    @property
    def patience_exhausted(self) -> bool:
        return self.setup.patience is not None and self.stale >= self.setup.patience

    def set_lr(self) -> float:
        """Set the learning rate of the next step, a function of its number; return that of the head."""
        self.scheduler.step_update(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.lr_scale
        return max(group["lr"] for group in self.optimizer.param_groups)

    def set_mode(self) -> None:
        """Set train mode for the modules that the next step changes, eval mode for all others."""
        self.setup.set_mode(self.model, head_only=self.step < self.head_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint, the generators of all ranks in it. All ranks must call this together.

        The scheduler has no state: the learning rate follows from the step.
        """
        return {
            "step": self.step,
            "lr_scale": self.lr_scale,
            "retreats": self.retreats,
            "best": self.best,
            "kept_step": self.kept_step,
            "stale": self.stale,
            "seconds": self.seconds,
            "images": self.images,
            "precisions": self.precisions,
            "sums": self.world.sum(self.sums),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "rng": self.world.gather_tensors(torch.get_rng_state()),
            "cuda_rng": self.world.gather_tensors(torch.cuda.get_rng_state()) if self.world.device.type == "cuda" else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Resume from a checkpoint. With another number of ranks, dropout draws other numbers.

        Raises UsageError if the checkpoint was made with other images.
        """
        if saved["images"] != self.images:
            raise UsageError("the training images or their labels are not those that this run started with: name another --out")
        self.step, self.best, self.seconds = saved["step"], saved["best"], saved["seconds"]
        self.lr_scale, self.retreats = saved["lr_scale"], saved["retreats"]
        self.stale, self.kept_step = saved["stale"], saved["kept_step"]
        self.sums = (saved["sums"] if self.world.first else torch.zeros_like(saved["sums"])).to(self.sums.device)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.precisions = saved.get("precisions", [self.recipe.precision])  # earlier versions recorded none
        if self.precisions[-1:] != [self.precision]:
            self.precisions = [*self.precisions, self.precision]
        self.scaler = _make_scaler(self.precision, self.world)  # a new one, without the old one's record of its last step
        if saved["scaler"]:  # empty after steps in other precisions than fp16
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])
        if len(saved["rng"]) == self.world.size:
            torch.set_rng_state(saved["rng"][self.world.rank])
            if saved["cuda_rng"] is not None and self.world.device.type == "cuda":
                torch.cuda.set_rng_state(saved["cuda_rng"][self.world.rank])


def build_state(
    setup: Setup, num_classes: int, size: int, steps_per_epoch: int, total_steps: int, world: World
) -> State:  # fmt: skip
    """Build the state before the first step, for images of ``size`` pixels a side.

    Raises UsageError for an unknown network or optimizer, and for options that the network or device does not support.
    """
    recipe = setup.recipe
    if recipe.cuda_graph and world.device.type != "cuda":
        raise UsageError(f"cuda_graph: the device is {world.device.type}")
    torch.manual_seed(recipe.seed)  # the same initial weights on every rank
    model = setup.make_model(num_classes).to(world.device)
    if recipe.precision == "float64":
        model = model.double()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if recipe.sync_bn:
        if world.device.type != "cuda":
            raise UsageError(f"sync_bn: the device is {world.device.type}, and torch supports it on GPUs only")
        model = convert_sync_batchnorm(model)
    ema = None if recipe.ema is None else ModelEmaV3(model, decay=recipe.ema, use_warmup=True)
    torch.manual_seed(recipe.seed + 1 + world.rank)  # different dropout on every rank
    optimizer = _make_optimizer(recipe, setup.parameter_groups(model))
    setup.set_mode(model, head_only=False)
    if recipe.compile:
        model.compile()
    if recipe.cuda_graph:
        _capture_cuda_graph(recipe, model, size, world)
    network: nn.Module = model
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        unused = setup.has_unused_parameters(model)
        network = DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True, find_unused_parameters=unused
        )  # fmt: skip
    scheduler = _make_scheduler(setup, optimizer, steps_per_epoch, total_steps)
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    head_steps = round(setup.head_epochs * steps_per_epoch)
    precision = _agree_on_precision(recipe, world)
    scaler = _make_scaler(precision, world)
    return State(
        setup, world, model, network, optimizer, scheduler, scaler, ema, precision,
        SizeSchedule.from_shares(setup.sizes(), total_steps), head_steps,
        precisions=[precision], sums=sums,
    )  # fmt: skip


def _agree_on_precision(recipe: Run, world: World) -> str:
    """Return the recipe's precision, or float32 where the CPU of some rank would emulate it."""
    (emulates,) = world.max([float(world.device.type == "cpu" and not has_arithmetic(recipe.precision))])
    return "float32" if emulates else recipe.precision


def _set_train_mode(model: nn.Module, freeze_norm: bool) -> None:
    """Set train mode, except for BatchNorm layers that are to keep their statistics."""
    model.train()
    if freeze_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _make_optimizer(recipe: Run, parameters: Any) -> torch.optim.Optimizer:
    names = list(map(str, list_optimizers()))
    if recipe.optimizer not in names:
        close = ", ".join(get_close_matches(recipe.optimizer, names, 5, 0.3))
        raise UsageError(f"optimizer {recipe.optimizer!r}: timm has {close}, …")
    return create_optimizer_v2(
        parameters,
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        filter_bias_and_bn=not recipe.decay_norm,
    )


def _make_scaler(precision: str, world: World) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")


def _make_scheduler(
    setup: Setup, optimizer: torch.optim.Optimizer, steps_per_epoch: int, total_steps: int
) -> Scheduler:  # fmt: skip
    """Return the learning rate as a function of the step."""
    recipe = setup.recipe
    warmup = min(round(setup.warmup_epochs() * steps_per_epoch), total_steps - 1)
    if recipe.schedule == "step":
        steps = [round(share * total_steps) + 1 for share in recipe.milestones]  # timm counts from 1
        return MultiStepLRScheduler(
            optimizer, steps, decay_rate=0.1, warmup_t=warmup, warmup_prefix=False, t_in_epochs=False
        )  # fmt: skip
    logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)  # it warns of runs of one step
    return CosineLRScheduler(optimizer, total_steps - warmup, warmup_t=warmup, warmup_prefix=True, t_in_epochs=False)


def _capture_cuda_graph(recipe: Run, model: nn.Module, pixels: int, world: World) -> None:
    """Capture forward and backward of a micro-batch as two CUDA graphs, for training alone. Statistics are left unchanged."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    size = recipe.batch_size // (world.size * recipe.accumulation)
    dtype = next(model.parameters()).dtype
    sample = torch.zeros(size, getattr(model, "in_chans", 3), pixels, pixels, device=world.device, dtype=dtype)
    if recipe.channels_last:
        sample = sample.to(memory_format=torch.channels_last)
    with torch.autocast("cuda", _AUTOCAST.get(recipe.precision), enabled=recipe.precision in _AUTOCAST, cache_enabled=False):
        torch.cuda.make_graphed_callables(model, (sample,))  # replaces model.forward
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
