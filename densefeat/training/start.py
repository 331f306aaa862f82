"""Where fine-tuning starts: the weights' own preprocessing, and a head that is fitted before the first step."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from densefeat.heads.linear import Linear
from densefeat.heads.protocols import fit
from densefeat.heads.splits import held_out
from densefeat.heads.targets import Targets
from densefeat.images.transforms import Preprocessing
from densefeat.training.data import Split, TrainingData
from densefeat.training.finetune_recipe import FineTuning
from densefeat.training.state import State

MOST = 20_000  # images that a head is fitted to
CHOSEN_ON = 0.1  # of them


def own_preprocessing(recipe: FineTuning, backbone: nn.Module) -> Preprocessing:
    """The weights' own, but for what the recipe asks."""
    own = Preprocessing.of(backbone, recipe.image_size)
    return own if recipe.crop_pct is None else replace(own, crop_pct=recipe.crop_pct)


def start_from_probe(state: State, data: TrainingData) -> str:
    """Fit the linear head to the training images' features by logistic regression; returns what to tell of it.

    At most ``MOST`` images, drawn by the seed; C as the protocol ``logreg`` chooses it, on a tenth of them. All ranks then have
    the same head. Fine-tuning that starts here distorts features less (arXiv 2202.10054).
    """
    head = state.model.get_classifier()  # type: ignore[operator]
    text: str | None = None
    if state.world.first:
        linear, chosen, images = probe_of(state, data)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(linear.weight))
            head.bias.copy_(torch.from_numpy(linear.bias))
        text = f"the head starts as a logistic regression on {images:,} images, C {chosen:.3g}"
    state.world.same([head.weight, head.bias])
    if state.ema is not None:
        state.ema.set(state.model)
    return state.world.tell(text) or ""


def probe_of(state: State, data: TrainingData) -> tuple[Linear, float, int]:
    """Linear head, its C, and the number of images it was fitted to."""
    positions = data.sampler.positions
    if len(positions) > MOST:
        random = np.random.default_rng([state.recipe.seed, MOST])
        positions = np.sort(random.choice(positions, MOST, replace=False))
    features, labels = features_of(state, Split(data.images, positions))
    values = labels > 0 if data.task == "multi" else labels
    targets = Targets(data.task, tuple(data.labelled.classes), values)
    val = held_out(targets, CHOSEN_ON, state.recipe.seed)
    fitted = fit("logreg", features, targets, val)
    assert isinstance(fitted.head, Linear)
    return fitted.head, float(fitted.chosen["C"]), len(targets)


@torch.inference_mode()
def features_of(state: State, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier reads, float32 ``(n, D)``, and labels, of the images that can be read."""
    model = state.model.eval()
    rows, labels = [], []
    for x, y in split.batches():
        there = (y >= 0) if y.ndim == 1 else (y[:, 0] >= 0)
        with state.autocast():
            pooled = model.forward_head(model.forward_features(state.formatted(x[there])), pre_logits=True)  # type: ignore[operator]
        rows.append(pooled.float().cpu().numpy())
        labels.append(y[there].cpu().numpy())
    return np.concatenate(rows), np.concatenate(labels)
