"""The setup of fine-tuning: known weights, a new head, frozen blocks, the user's images."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densefeat.base import StopRequest
from densefeat.errors import UsageError
from densefeat.finetuning.data import open_finetuning_data
from densefeat.finetuning.mixing import Mixing, class_weights
from densefeat.finetuning.recipe import FineTuning
from densefeat.finetuning.stages import Stages, parameter_groups, set_trainable, split_into_stages, trainable_stages
from densefeat.finetuning.start import start_from_probe
from densefeat.heads import HeadedNet
from densefeat.images import Preprocessing
from densefeat.loading import load_network
from densefeat.training import (
    Loss,
    Progress,
    Setup,
    State,
    Trained,
    TrainingData,
    World,
    make_pixel_rule,
    read_recipe_stats,
    run_training,
)


def finetune(
    recipe: FineTuning, out: str | Path, device: str | None = None, steps: int | None = None, minutes: float | None = None
) -> Trained:
    """Fine-tune a network in the folder ``out``; arguments and errors as for :func:`densefeat.training.train`.

    Raises WeightsError, too, if there are no weights to start from.
    """
    return run_training(FineTuningSetup(recipe), out, device, steps, minutes)


class FineTuningSetup(Setup):
    """Fine-tuning: a network with known weights and a new head, of which the recipe's ``mode`` says what is trained."""

    recipe: FineTuning
    backbone: nn.Module  # with its weights, from open_data on
    stages: Stages  # of the network, from make_model on

    def __init__(self, recipe: FineTuning) -> None:
        self.recipe = recipe
        self.patience, self.head_epochs = recipe.patience, recipe.head_only_epochs

    def check_output(self, out: Path) -> None:
        """Raise UsageError where the run would be among its own images."""
        for place in (self.recipe.train, self.recipe.val, self.recipe.test):
            if place is not None and os.path.isdir(place) and out.resolve().is_relative_to(Path(place).resolve()):
                raise UsageError(f"output {str(out)!r} is in the folder of images {place!r}: name another --out")

    def open_data(self, world: World, advance: Callable[[int], None]) -> TrainingData:
        """Open the network, whose weights set the preprocessing, and the images; few images make a smaller batch."""
        recipe = self.recipe
        self.backbone = load_network(recipe.model, recipe.weights, in_chans=recipe.in_chans).model
        stats = read_recipe_stats(recipe, getattr(self.backbone, "in_chans", 3))
        preprocessing = Preprocessing.for_model(self.backbone, recipe.image_size, make_pixel_rule(recipe), stats)
        if self.recipe.crop_pct is not None:
            preprocessing = replace(preprocessing, crop_pct=self.recipe.crop_pct)
        data = open_finetuning_data(self.recipe, preprocessing, world, advance)
        self.recipe = replace(self.recipe, batch_size=data.sampler.batch_size)
        return data

    def make_model(self, num_classes: int) -> nn.Module:
        """Put a new head on the network; UsageError if it cannot have one."""
        recipe, backbone = self.recipe, self.backbone
        if recipe.memory_efficient:
            if not hasattr(backbone, "set_grad_checkpointing"):
                raise UsageError(f"memory_efficient: {recipe.model!r} does not support recomputing its activations")
            backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        if not hasattr(backbone, "reset_classifier"):
            raise UsageError(f"model {recipe.model!r} has no classifier to replace: choose one of timm's image classifiers")
        backbone.reset_classifier(num_classes if recipe.head == "linear" else 0)  # type: ignore[operator]
        (getattr(backbone, "pretrained_cfg", None) or {}).pop("label_names", None)  # of the classifier that was replaced
        model = backbone
        if recipe.head != "linear":
            model = HeadedNet(backbone, recipe.head, recipe.head_width, num_classes)
            model.in_chans = getattr(backbone, "in_chans", 3)  # type: ignore[arg-type]
        self.stages = split_into_stages(model)
        return model

    def make_loss(self, data: TrainingData, device: torch.device) -> Loss:
        weights, num_classes = None, len(data.labelled.classes)
        if self.recipe.class_weights == "balanced":
            weights = class_weights(data.task, data.train_labels(), num_classes).to(device)
        return Loss(data.task, num_classes, self.recipe.label_smoothing, weights)

    def make_mixing(self, data: TrainingData) -> Mixing | None:
        return Mixing.from_recipe(self.recipe, data.task, len(data.labelled.classes)) if self.recipe.mixes_images else None

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        trainable = trainable_stages(self.recipe, self.stages, head_only=False)
        return parameter_groups(model, self.recipe, self.stages, trainable)

    def has_unused_parameters(self, model: nn.Module) -> bool:
        """Steps of the head alone use no others, and other heads do not use the layers behind the last block's map."""
        return self.head_epochs > 0 or isinstance(model, HeadedNet)

    def warmup_epochs(self) -> float:
        return min(self.recipe.warmup_epochs, self.recipe.epochs / 2)

    def set_mode(self, model: nn.Module, head_only: bool) -> None:
        trainable = trainable_stages(self.recipe, self.stages, head_only)
        set_trainable(model, self.stages, trainable, self.recipe.freeze_norm)

    def start(self, state: State, data: TrainingData, stop: StopRequest, progress: Progress) -> bool:
        """Fit a linear head to the images' features, if the recipe says so."""
        if self.recipe.start != "probe":
            return False
        progress.print(start_from_probe(state, data, stop, progress))
        return True
