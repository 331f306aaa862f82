"""Everything that a step changes: the network, its optimizer, their averages, and the place in the run."""

import logging
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from densefeat.errors import UsageError
from densefeat.finetuning import AnyRecipe, FineTuning, Stages, parameter_groups, set_trained, stages_of, trained_stages
from densefeat.loading import HeadedNet, find_config
from densefeat.training.recipe import Recipe, drop_rate
from densefeat.training.world import World

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class State:
    """``network``: what a step calls: ``model`` itself, or it in DistributedDataParallel.

    ``lr_scale``: halved by each of ``retreats``; ``best``: highest main figure so far; ``kept_step``: of the weights that are
    kept; ``stale``: evaluations since the best; ``seconds``: of training, earlier runs counted; ``images``: which ones are
    trained on; ``sums``: loss, hits and images since the last line of metrics; ``stages``, ``head_steps``: of fine-tuning, the
    steps in which the head learns alone.
    """

    recipe: AnyRecipe
    world: World
    model: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    stages: Stages | None = None
    head_steps: int = 0
    step: int = 0
    lr_scale: float = 1.0
    retreats: int = 0
    best: float = float("-inf")
    kept_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    images: str = ""
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are judged and kept: their average, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def autocast(self) -> torch.autocast:
        dtype = _AUTOCAST.get(self.recipe.precision)
        # a graph replays casts: none may come from a cache that was filled outside of it
        return torch.autocast(
            self.world.device.type, dtype, enabled=dtype is not None, cache_enabled=not self.recipe.cuda_graph
        )  # fmt: skip

    def formatted(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 3, H, W)`` in the memory format of the network."""
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return x.contiguous(memory_format=layout)

    @property
    def ended(self) -> bool:
        """By the recipe's patience."""
        return self.recipe.patience is not None and self.stale >= self.recipe.patience

    def set_lr(self) -> float:
        """The rate of the step to come, a function of its number; returns that of the head."""
        self.scheduler.step_update(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.lr_scale
        return max(group["lr"] for group in self.optimizer.param_groups)

    def set_mode(self) -> None:
        """Train mode for what the step to come may move, eval mode for all else."""
        if self.stages is None:
            _set_train(self.model, self.recipe.freeze_norm)
        else:
            trained = trained_stages(self.recipe, self.stages, self.step < self.head_steps)
            set_trained(self.model, self.stages, trained, self.recipe.freeze_norm)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the same on every rank but for ``rng``, which holds the generators of all. A collective call.

        The scheduler has no state: the rate follows from the step.
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
            "sums": self.world.total(self.sums),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "rng": self.world.gather(torch.get_rng_state()),
            "cuda_rng": self.world.gather(torch.cuda.get_rng_state()) if self.world.device.type == "cuda" else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint. With another number of ranks than it was made by, dropout draws anew.

        Raises UsageError where it was made with other images.
        """
        if saved["images"] != self.images:
            raise UsageError("the training images or their labels are not those that this run began with: name another --out")
        self.step, self.best, self.seconds = saved["step"], saved["best"], saved["seconds"]
        self.lr_scale, self.retreats = saved["lr_scale"], saved["retreats"]
        self.stale, self.kept_step = saved["stale"], saved["kept_step"]
        self.sums = (saved["sums"] if self.world.first else torch.zeros_like(saved["sums"])).to(self.sums.device)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler = _make_scaler(self.recipe, self.world)  # what the old one knows of its last step goes
        self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["ema"])
        if len(saved["rng"]) == self.world.size:
            torch.set_rng_state(saved["rng"][self.world.rank])
            if saved["cuda_rng"] is not None and self.world.device.type == "cuda":
                torch.cuda.set_rng_state(saved["cuda_rng"][self.world.rank])


def build(
    recipe: AnyRecipe,
    num_classes: int,
    size: int,
    steps_per_epoch: int,
    total_steps: int,
    world: World,
    backbone: nn.Module | None = None,
) -> State:
    """The state before the first step, for images of ``size`` pixels a side.

    ``backbone``: what fine-tuning starts from; it becomes the state's. Raises UsageError for an unknown network or optimizer,
    or what it cannot do.
    """
    if recipe.cuda_graph and world.device.type != "cuda":
        raise UsageError(f"cuda_graph: the device is {world.device.type}")
    torch.manual_seed(recipe.seed)  # the same weights on every rank
    model = _with_head(recipe, backbone, num_classes) if isinstance(recipe, FineTuning) else _make_model(recipe, num_classes)
    model = model.to(world.device)
    if recipe.precision == "float64":
        model = model.double()
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if recipe.sync_bn:
        if world.device.type != "cuda":
            raise UsageError(f"sync_bn: the device is {world.device.type}, torch has it for GPUs alone")
        model = convert_sync_batchnorm(model)
    ema = None if recipe.ema is None else ModelEmaV3(model, decay=recipe.ema, use_warmup=True)
    torch.manual_seed(recipe.seed + 1 + world.rank)  # other dropout on every rank
    stages = stages_of(model) if isinstance(recipe, FineTuning) else None
    optimizer = _make_optimizer(recipe, model, stages)
    head_steps = round(recipe.head_only_epochs * steps_per_epoch)
    if stages is None:
        _set_train(model, recipe.freeze_norm)
    else:
        set_trained(model, stages, trained_stages(recipe, stages, head_only=False), recipe.freeze_norm)
    if recipe.compile:
        model.compile()
    if recipe.cuda_graph:
        _graph_model(recipe, model, size, world)
    network: nn.Module = model
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        unused = head_steps > 0 or isinstance(model, HeadedNet)  # what lies between the last map and timm's classifier
        network = DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True, find_unused_parameters=unused
        )  # fmt: skip
    scaler = _make_scaler(recipe, world)
    scheduler = _make_scheduler(recipe, optimizer, steps_per_epoch, total_steps)
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    return State(recipe, world, model, network, optimizer, scheduler, scaler, ema, stages, head_steps, sums=sums)


def _make_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's network with fresh weights. UsageError for an unknown name, or an argument it does not take."""
    find_config(recipe.model)
    arguments: dict[str, Any] = {"memory_efficient": recipe.memory_efficient, "proj_drop_rate": drop_rate(recipe)}
    try:
        return timm.create_model(recipe.model, num_classes=num_classes, **{k: v for k, v in arguments.items() if v})
    except TypeError as error:
        raise UsageError(f"model {recipe.model!r} does not take what the recipe gives it: {error}") from error


def _with_head(recipe: FineTuning, backbone: nn.Module | None, num_classes: int) -> nn.Module:
    """A trained network with a fresh head; UsageError for one that cannot have it."""
    assert backbone is not None
    if recipe.memory_efficient:
        if not hasattr(backbone, "set_grad_checkpointing"):
            raise UsageError(f"memory_efficient: {recipe.model!r} has no way to recompute its activations")
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    if not hasattr(backbone, "reset_classifier"):
        raise UsageError(f"model {recipe.model!r} has no classifier to replace: take one of timm's image classifiers")
    backbone.reset_classifier(num_classes if recipe.head == "linear" else 0)  # type: ignore[operator]
    return backbone if recipe.head == "linear" else HeadedNet(backbone, recipe.head, recipe.head_width, num_classes)


def _make_optimizer(recipe: AnyRecipe, model: nn.Module, stages: Stages | None) -> torch.optim.Optimizer:
    names = list(map(str, list_optimizers()))
    if recipe.optimizer not in names:
        raise UsageError(
            f"optimizer {recipe.optimizer!r}: timm has {', '.join(get_close_matches(recipe.optimizer, names, 5, 0.3))}, …"
        )
    parameters: Any = model
    if stages is not None:
        parameters = parameter_groups(model, recipe, stages, trained_stages(recipe, stages, head_only=False))
    return create_optimizer_v2(
        parameters,
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        filter_bias_and_bn=not recipe.decay_norm,
    )


def _make_scaler(recipe: AnyRecipe, world: World) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")


def _make_scheduler(recipe: AnyRecipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int, total_steps: int) -> Scheduler:
    """The rate as a function of the step."""
    shortest = min(recipe.warmup_epochs, recipe.epochs / 2) if isinstance(recipe, FineTuning) else recipe.warmup_epochs
    warmup = min(round(shortest * steps_per_epoch), total_steps - 1)
    if recipe.schedule == "step":
        steps = [round(share * total_steps) + 1 for share in recipe.milestones]  # timm counts from 1
        return MultiStepLRScheduler(
            optimizer, steps, decay_rate=0.1, warmup_t=warmup, warmup_prefix=False, t_in_epochs=False
        )  # fmt: skip
    logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)  # it remarks on runs of one step
    return CosineLRScheduler(optimizer, total_steps - warmup, warmup_t=warmup, warmup_prefix=True, t_in_epochs=False)


def _set_train(model: nn.Module, freeze_norm: bool) -> None:
    """Train mode, but for BatchNorms that are to stay as they are."""
    model.train()
    if freeze_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _graph_model(recipe: AnyRecipe, model: nn.Module, pixels: int, world: World) -> None:
    """Forward and backward of a part as two CUDA graphs; evaluation goes on without. Statistics stay as they were."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    size = recipe.batch_size // (world.size * recipe.accumulation)
    dtype = next(model.parameters()).dtype
    sample = torch.zeros(size, 3, pixels, pixels, device=world.device, dtype=dtype)
    if recipe.channels_last:
        sample = sample.to(memory_format=torch.channels_last)
    with torch.autocast("cuda", _AUTOCAST.get(recipe.precision), enabled=recipe.precision in _AUTOCAST, cache_enabled=False):
        torch.cuda.make_graphed_callables(model, (sample,))  # in place: its forward
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
