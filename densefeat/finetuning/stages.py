"""A network cut into stages, one for each block: what stays frozen, and the learning rate of what does not."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from densefeat.errors import UsageError
from densefeat.features import all_taps
from densefeat.finetuning.recipe import AnyRecipe, trained_blocks
from densefeat.loading import HeadedNet


@dataclass(frozen=True)
class Stages:
    """``of_module``: the stage of each module, by name, from 1 for all up to the first block's output; the head is the last.

    Blocks are numbered as ``densefeat extract --blocks`` does; a transition belongs to the block that it leads to.
    """

    of_module: dict[str, int]
    head: int

    def of(self, parameter: str) -> int:
        """The stage of a parameter or buffer, by its name in the network."""
        return self.of_module[parameter.rpartition(".")[0]]


def stages_of(model: nn.Module) -> Stages:
    """By the order of a network's modules, which is that of its forward pass in timm's models and ours.

    ``model``: a :class:`HeadedNet`, or one of timm's with a classifier of its own. UsageError without ``feature_info``.
    """
    headed = isinstance(model, HeadedNet)
    backbone: nn.Module = model.backbone if isinstance(model, HeadedNet) else model
    prefix = "backbone." if headed else ""
    ends = [tap.module for tap in all_taps(backbone, "raw")]
    classifier = "head" if headed else _name_of(model, model.get_classifier())  # type: ignore[operator]
    of_module, stage = {"": 1}, 1
    for name, _ in model.named_modules():
        own = name.removeprefix(prefix)
        if name and (name == classifier or name.startswith(f"{classifier}.")):
            of_module[name] = len(ends) + 1
            continue
        while stage < len(ends) and _past(own, ends[stage - 1], of_module, prefix):
            stage += 1
        of_module[name] = stage
    return Stages(of_module, len(ends) + 1)


def _past(name: str, end: str, seen: dict[str, int], prefix: str) -> bool:
    """Whether a module comes after the one that ends a stage, and is not inside it."""
    return prefix + end in seen and name != end and not name.startswith(f"{end}.")


def _name_of(model: nn.Module, module: nn.Module) -> str:
    """UsageError for what is none of its modules, as where there are several classifiers."""
    for name, candidate in model.named_modules():
        if candidate is module:
            return name
    raise UsageError(
        f"{type(model).__name__} has no classifier of one module: take head: mlp or cross-layer, or another network"
    )


def trained_stages(recipe: AnyRecipe, stages: Stages, head_only: bool) -> set[int]:
    """Those whose weights and statistics may move. UsageError for blocks that the network does not have."""
    if recipe.mode == "head" or head_only:
        return {stages.head}
    chosen = trained_blocks(recipe.mode)
    if chosen is None:
        return set(range(1, stages.head + 1))
    if chosen[1] >= stages.head:
        raise UsageError(f"mode {recipe.mode!r}: the network has blocks 1 to {stages.head - 1}")
    return {*range(chosen[0], chosen[1] + 1), stages.head}


def set_trained(model: nn.Module, stages: Stages, trained: set[int], freeze_norm: bool) -> None:
    """Train mode and gradients for some stages; all others in eval mode, so that no BatchNorm of theirs moves."""
    for name, module in model.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        module.training = stages.of_module[name] in trained and not (norm and freeze_norm)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stages.of(name) in trained)


def parameter_groups(model: nn.Module, recipe: AnyRecipe, stages: Stages, trained: set[int]) -> list[dict[str, Any]]:
    """For each stage, with and without weight decay; ``lr_scale``: ``layer_decay`` to the number of stages above it."""
    kept: Collection[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = recipe.decay_norm or (parameter.ndim > 1 and name not in kept)
        if (stage := stages.of(name)) in trained:
            groups.setdefault((stage, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr_scale": recipe.layer_decay ** (stages.head - stage),
        }
        for (stage, decays), parameters in groups.items()
    ]
