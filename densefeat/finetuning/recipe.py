"""The keys of a recipe for fine-tuning, besides those of every run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from densefeat.training import Run, check_run, read_recipe, refuse_if

_MAX_HEAD_EPOCHS = 2.0  # for head_epochs: auto
_Head = Literal["linear", "mlp", "cross-layer"]  # the kinds of densefeat.heads, which would load torch
_MODE = re.compile(r"head|full|blocks:([1-9]\d*)(?:-([1-9]\d*))?")


@dataclass(frozen=True, kw_only=True)
class FineTuning(Run):
    """A recipe for fine-tuning published weights, a checkpoint file, or an earlier run."""

    command = "densefeat finetune"

    weights: str | None  # a checkpoint file for the network; None: the published ones
    mode: str  # what is trained: head; full; blocks:3-4, these blocks and the head, numbered as in densefeat extract
    head: _Head
    head_width: int  # channels that each block is projected to (cross-layer), hidden units (mlp)
    head_start: Literal["auto", "random", "probe"]  # probe: logistic regression on the images' features; auto: for linear heads
    head_epochs: float | Literal["auto"]  # epochs at the start that train the head alone; auto: at most 2, none after a probe
    layer_decay: float  # factor on the learning rate from block to block, backwards from the head

    task: Literal["auto", "single", "multi"]  # multi: labels are a|b; auto: multi where any has a |
    val: str | None  # like train; None: the val/ beside train/, or val_share of the training images; may change
    val_share: float  # stratified by class
    test: str | None = None  # like train, scored once at the end; None: the test/ beside train/, if it is there; may change
    group_column: str | None = None  # images with one value of it, such as a patient's, are all held out or all trained on
    base: str | None = None  # the folder that a list's paths are relative to; None: the list's own; may change
    image_size: int | None  # pixels of a side; None: as the weights expect
    crop_pct: float | None  # share of the short side that the central crop of evaluation keeps; None: as the weights expect

    mixup: float  # alpha of the Beta distribution; 0: none (arXiv 1710.09412)
    cutmix: float  # likewise (arXiv 1905.04899)
    class_weights: Literal["uniform", "balanced"]  # balanced: an error on a rare class costs more, in proportion
    sampling: Literal["uniform", "balanced"]  # balanced: rare classes are drawn as often as others
    patience: int | None  # evaluations without improvement after which the run ends

    @property
    def start(self) -> Literal["random", "probe"]:
        """The initial weights of the head."""
        if self.head_start == "auto":
            return "probe" if self.head == "linear" else "random"
        return self.head_start

    @property
    def head_only_epochs(self) -> float:
        """Epochs at the start that train the head alone, although later ones train more."""
        if self.head_epochs != "auto":
            return self.head_epochs
        return 0.0 if self.start == "probe" or self.mode == "head" else min(_MAX_HEAD_EPOCHS, self.epochs / 4)

    @property
    def mixes_images(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def blocks(self) -> tuple[int, int] | None:
        """First and last block of ``mode: blocks:3-4``; None for head and full."""
        match = _MODE.fullmatch(self.mode)
        if match is None or match[1] is None:
            return None
        return int(match[1]), int(match[2] or match[1])


def load_finetuning(name: str, overrides: Sequence[str] = ()) -> FineTuning:
    """Load a recipe for fine-tuning, as :func:`densefeat.training.load_recipe` loads one for training from scratch."""
    recipe = read_recipe(name, overrides, FineTuning)
    _check_finetuning(recipe)
    return recipe


def _check_finetuning(recipe: FineTuning) -> None:
    """Raise UsageError for values that are impossible or do not go together."""
    check_run(recipe, ("image_size", "layer_decay", "head_width", "patience"), ("mixup", "cutmix"), ("layer_decay",))
    refuse_if(not _MODE.fullmatch(recipe.mode), "mode", recipe.mode, "give head, full, or blocks:3-4")
    refuse_if(recipe.blocks and recipe.blocks[1] < recipe.blocks[0], "mode", recipe.mode, "give the lower block first")
    refuse_if(recipe.head not in get_args(_Head), "head", recipe.head, f"give one of {', '.join(get_args(_Head))}")
    refuse_if(not 0 < recipe.val_share < 1, "val_share", recipe.val_share, "give a share, above 0 and below 1")
    impossible = recipe.head_start == "probe" and recipe.head != "linear"
    refuse_if(impossible, "head_start", "probe", f"a probe is a linear head, not {recipe.head}: give random, and head_epochs")
    first = recipe.head_only_epochs
    refuse_if(first < 0, "head_epochs", first, "give 0 or more")
    refuse_if(first and recipe.mode == "head", "head_epochs", first, "mode: head has no other epochs")
    refuse_if(first >= recipe.epochs, "head_epochs", first, f"epochs are {recipe.epochs}")
    refuse_if(recipe.cuda_graph and (first or recipe.mixes_images), "cuda_graph", True, "not with head_epochs or mixing")
    useless = recipe.patience is not None and recipe.keep == "last"
    refuse_if(useless, "patience", recipe.patience, "it ends a run some steps after its best weights, which keep: last loses")
    twice = recipe.class_weights == recipe.sampling == "balanced"
    refuse_if(twice, "class_weights", "balanced", "sampling is balanced, too: rare classes would count twice")
    odd = recipe.mixes_images and (recipe.batch_size // recipe.accumulation) % 2
    refuse_if(odd, "batch_size", recipe.batch_size, "images are mixed in pairs: give micro-batches of even size")
