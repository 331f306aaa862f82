"""What a recipe of fine-tuning says besides what every run does."""

import re
from dataclasses import dataclass
from typing import Literal

from densefeat.heads import KINDS
from densefeat.training import Recipe, Run, check_run, refuse

_FIRST_EPOCHS = 2.0  # of a head that no probe starts
_MODE = re.compile(r"head|full|blocks:([1-9]\d*)(?:-([1-9]\d*))?")


@dataclass(frozen=True, kw_only=True)
class FineTuning(Run):
    """From published weights, a checkpoint file, or an earlier run."""

    weights: str | None  # a checkpoint file for the network; None: the published ones
    mode: str  # head: nothing else moves; full; blocks:3-4: these and the head, numbered as in densefeat extract
    head: Literal["linear", "mlp", "cross-layer"]
    head_width: int  # channels that each block is projected to (cross-layer), hidden units (mlp)
    head_start: Literal["auto", "random", "probe"]  # probe: logistic regression on the images' features; auto: where linear
    head_epochs: float | Literal["auto"]  # in which the head alone learns, before the rest does; auto: a few where not a probe
    layer_decay: float  # factor on the rate from block to block, backwards from the head

    task: Literal["auto", "single", "multi"]  # multi: labels are a|b; auto: multi where any has a |
    val: str | None  # as train; None: the val/ beside train/, or val_share of the training images; may change
    val_share: float  # stratified by class
    image_size: int | None  # pixels, of a side; None: the weights' own
    crop_pct: float | None  # share of a side that the single crop of evaluation keeps; None: the weights' own

    mixup: float  # alpha of the Beta distribution; 0: none (arXiv 1710.09412)
    cutmix: float  # likewise (arXiv 1905.04899)
    class_weights: Literal["uniform", "balanced"]  # balanced: errors on rare classes cost more, in proportion
    sampling: Literal["uniform", "balanced"]  # balanced: rare classes are drawn as often as others
    patience: int | None  # evaluations without a better one after which the run ends

    @property
    def start(self) -> Literal["random", "probe"]:
        """Of the head."""
        if self.head_start == "auto":
            return "probe" if self.head == "linear" else "random"
        return self.head_start

    @property
    def head_only_epochs(self) -> float:
        """In which nothing but the head moves, though more will."""
        if self.head_epochs != "auto":
            return self.head_epochs
        return 0.0 if self.start == "probe" or self.mode == "head" else min(_FIRST_EPOCHS, self.epochs / 4)


AnyRecipe = Recipe | FineTuning


def check_finetuning(recipe: FineTuning) -> None:
    """Raise UsageError for values that no run can have, or that do not go together."""
    check_run(recipe)
    found = _MODE.fullmatch(recipe.mode)
    refuse(not found, "mode", recipe.mode, "give head, full, or blocks:3-4")
    assert found is not None
    refuse(found[2] and int(found[2]) < int(found[1]), "mode", recipe.mode, "give the lower block first")
    refuse(recipe.head not in KINDS, "head", recipe.head, f"give one of {', '.join(KINDS)}")
    refuse(not 0 < recipe.val_share < 1, "val_share", recipe.val_share, "give a share, above 0 and below 1")
    probe_of_other = recipe.head_start == "probe" and recipe.head != "linear"
    refuse(probe_of_other, "head_start", "probe", f"it is a linear head, not {recipe.head}: give random, and head_epochs")
    first = recipe.head_only_epochs
    refuse(first < 0, "head_epochs", first, "give 0 or more")
    refuse(first and recipe.mode == "head", "head_epochs", first, "mode: head has no other epochs")
    refuse(first >= recipe.epochs, "head_epochs", first, f"epochs are {recipe.epochs}")
    refuse(recipe.cuda_graph and (first or mixes(recipe)), "cuda_graph", True, "not with head_epochs or mixing")
    lost = recipe.patience is not None and recipe.keep == "last"
    refuse(lost, "patience", recipe.patience, "it chooses weights that keep: last does not keep")
    balanced = recipe.class_weights == recipe.sampling == "balanced"
    refuse(balanced, "class_weights", "balanced", "sampling is balanced, too: rare classes would count twice")
    odd = mixes(recipe) and (recipe.batch_size // recipe.accumulation) % 2
    refuse(odd, "batch_size", recipe.batch_size, "images are mixed in pairs: give parts of even size")


def mixes(recipe: AnyRecipe) -> bool:
    return recipe.mixup > 0 or recipe.cutmix > 0


def trained_blocks(mode: str) -> tuple[int, int] | None:
    """First and last of ``blocks:3-4``; None for head and full."""
    found = _MODE.fullmatch(mode)
    if found is None or found[1] is None:
        return None
    return int(found[1]), int(found[2] or found[1])
