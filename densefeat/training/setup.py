"""The setup of training from scratch."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.loading import find_config, is_run_folder, load_network
from densefeat.nets import set_state_dict
from densefeat.training.data import TrainingData, open_data
from densefeat.training.losses import Loss
from densefeat.training.recipe import Recipe, drop_rate
from densefeat.training.state import Setup
from densefeat.training.world import World

_PUBLISHED = "published"
_log = logging.getLogger(__name__)


class TrainingSetup(Setup):
    """Training of every parameter of a network, most often from fresh weights, on one class an image."""

    recipe: Recipe
    classes: list[str]  # of the images, from open_data on

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def open_data(self, world: World, advance: Callable[[int], None]) -> TrainingData:
        data = open_data(self.recipe, world, advance)
        self.classes = data.labelled.classes
        return data

    def sizes(self) -> dict[float, int]:
        return self.recipe.sizes

    def make_model(self, num_classes: int) -> nn.Module:
        """Raise UsageError for an unknown name, or an argument that the network does not take."""
        recipe = self.recipe
        find_config(recipe.model)
        arguments: dict[str, Any] = {"memory_efficient": recipe.memory_efficient, "proj_drop_rate": drop_rate(recipe)}
        arguments["in_chans"] = recipe.in_chans
        try:
            model: Any = timm.create_model(recipe.model, num_classes=num_classes, **{k: v for k, v in arguments.items() if v})
        except TypeError as error:
            raise UsageError(f"model {recipe.model!r} does not accept an option of the recipe: {error}") from error
        model.in_chans = recipe.in_chans or getattr(model, "in_chans", 3)
        if recipe.weights is not None:
            self._take_weights(model, recipe.weights)
        return model

    def _take_weights(self, model: nn.Module, weights: str) -> None:
        """Start from weights; their classifier is left out if it is one of other classes."""
        if is_run_folder(weights):
            loaded = load_network(weights)
        else:
            loaded = load_network(self.recipe.model, None if weights == _PUBLISHED else weights, in_chans=self.recipe.in_chans)
        left_out = set_state_dict(model, loaded.model.state_dict(), Path(loaded.source))
        if not left_out and loaded.classes not in (None, self.classes):
            model.reset_classifier(len(self.classes))  # type: ignore[operator]
            left_out = ("the classifier",)
        what = f": {', '.join(left_out)} of other classes left out" if left_out else ""
        _log.info("starting from the weights %s%s", loaded.source, what)

    def make_loss(self, data: TrainingData, device: torch.device) -> Loss:  # noqa: ARG002
        return Loss(data.task, len(data.labelled.classes), self.recipe.label_smoothing)
