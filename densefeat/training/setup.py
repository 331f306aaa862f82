"""The setup of training from scratch."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.loading import find_config
from densefeat.training.data import TrainingData, open_data
from densefeat.training.losses import Loss
from densefeat.training.recipe import Recipe, drop_rate
from densefeat.training.state import Setup
from densefeat.training.world import World


class TrainingSetup(Setup):
    """Training from scratch: every parameter of a network with fresh weights, on one class an image."""

    recipe: Recipe

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def open_data(self, world: World, advance: Callable[[int], None]) -> TrainingData:
        return open_data(self.recipe, world, advance)

    def make_model(self, num_classes: int) -> nn.Module:
        """Raise UsageError for an unknown name, or an argument that the network does not take."""
        recipe = self.recipe
        find_config(recipe.model)
        arguments: dict[str, Any] = {"memory_efficient": recipe.memory_efficient, "proj_drop_rate": drop_rate(recipe)}
        arguments["in_chans"] = recipe.in_chans
        try:
            model: Any = timm.create_model(recipe.model, num_classes=num_classes, **{k: v for k, v in arguments.items() if v})
            model.in_chans = recipe.in_chans or getattr(model, "in_chans", 3)
            return model
        except TypeError as error:
            raise UsageError(f"model {recipe.model!r} does not accept an option of the recipe: {error}") from error

    def make_loss(self, data: TrainingData, device: torch.device) -> Loss:  # noqa: ARG002
        return Loss(data.task, len(data.labelled.classes), self.recipe.label_smoothing)
