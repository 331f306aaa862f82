"""A network split into stages, one for each block: which are frozen, and the learning rates of the others."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from densefeat.errors import UsageError
from densefeat.features import list_taps
from densefeat.finetuning.recipe import FineTuning
from densefeat.heads import HeadedNet


@dataclass(frozen=True)
class Stages:
    """The stage of each module by name, from 1 for all modules up to the first block's output to ``head`` for the head.

    Blocks are numbered as in ``densefeat extract --blocks``; a transition belongs to the block that it leads to.
    """

    by_module: dict[str, int]
    head: int

    def find(self, parameter: str) -> int:
        """Return the stage of a parameter or buffer, by its name in the network."""
        return self.by_module[parameter.rpartition(".")[0]]


def split_into_stages(model: nn.Module) -> Stages:
    """Split a network by the order of its modules, which in timm's models and ours is that of the forward pass.

    ``model``: a :class:`HeadedNet`, or a timm model with its classifier. UsageError if it lacks ``feature_info``.
    """
    headed = isinstance(model, HeadedNet)
    backbone: nn.Module = model.backbone if isinstance(model, HeadedNet) else model
    prefix = "backbone." if headed else ""
    ends = [tap.module for tap in list_taps(backbone, "raw")]
    classifier = "head" if headed else _module_name(model, model.get_classifier())  # type: ignore[operator]
    by_module, stage = {"": 1}, 1
    for name, _ in model.named_modules():
        if name and (name == classifier or name.startswith(f"{classifier}.")):
            by_module[name] = len(ends) + 1
            continue
        while stage < len(ends) and _is_past(name.removeprefix(prefix), ends[stage - 1], by_module, prefix):
            stage += 1
        by_module[name] = stage
    return Stages(by_module, len(ends) + 1)


def _is_past(name: str, end: str, by_module: dict[str, int], prefix: str) -> bool:
    """Return whether a module comes after the module that ends a stage, and is not inside it."""
    return prefix + end in by_module and name != end and not name.startswith(f"{end}.")


def _module_name(model: nn.Module, module: nn.Module) -> str:
    """Find the name of a module; UsageError if it is none of the network's, as where there are several classifiers."""
    for name, candidate in model.named_modules():
        if candidate is module:
            return name
    raise UsageError(
        f"{type(model).__name__} has no classifier that is one module: choose head: mlp or cross-layer, or another network"
    )


def trainable_stages(recipe: FineTuning, stages: Stages, head_only: bool) -> set[int]:
    """Return the stages whose weights and statistics may change. UsageError for blocks that the network does not have."""
    if recipe.mode == "head" or head_only:
        return {stages.head}
    if recipe.blocks is None:
        return set(range(1, stages.head + 1))
    first, last = recipe.blocks
    if last >= stages.head:
        raise UsageError(f"mode {recipe.mode!r}: the network has blocks 1 to {stages.head - 1}")
    return {*range(first, last + 1), stages.head}


def set_trainable(model: nn.Module, stages: Stages, trainable: set[int], freeze_norm: bool) -> None:
    """Set train mode and gradients for some stages, and eval mode for all others, whose BatchNorms then keep statistics."""
    for name, module in model.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        module.training = stages.by_module[name] in trainable and not (norm and freeze_norm)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stages.find(name) in trainable)


def parameter_groups(model: nn.Module, recipe: FineTuning, stages: Stages, trainable: set[int]) -> list[dict[str, Any]]:
    """Return a group for each stage with, and one without, weight decay.

    ``lr_scale`` of a group: ``layer_decay`` to the power of the number of stages between it and the head.
    """
    no_decay: Collection[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = recipe.decay_norm or (parameter.ndim > 1 and name not in no_decay)
        if (stage := stages.find(name)) in trainable:
            groups.setdefault((stage, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr_scale": recipe.layer_decay ** (stages.head - stage),
        }
        for (stage, decays), parameters in groups.items()
    ]
