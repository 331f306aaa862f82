"""Values that no run can have, or that do not go together."""

import re
from dataclasses import fields, replace
from typing import Any

import pytest

from densefeat import UsageError
from densefeat.finetuning.recipe import FineTuning
from densefeat.training.recipe import DATA, MAY_CHANGE, Recipe, check_recipe, drop_rate
from densefeat.training.recipe_files import load_recipe

RECIPE = load_recipe("cifar10_densenet_bc100_k12")
ABOVE_0, NOT_NEGATIVE, SHARE = "give a number above 0", "give 0 or more", "give a share, at most 1"
DEVICE = "loader: device has none, shift-mirror, cutout"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({key: 0}, f"{key} 0: {ABOVE_0}") for key in (
            "threads", "crop_pct", "epochs", "batch_size", "accumulation", "lr", "clip_grad", "ema", "eval_epochs",
            "log_steps", "checkpoint_steps", "checkpoint_minutes")),
        *(({key: -1}, f"{key} -1: {NOT_NEGATIVE}") for key in (
            "holdout", "workers", "label_smoothing", "momentum", "weight_decay", "warmup_epochs", "retreats")),
        *(({key: 1.5}, f"{key} 1.5: {SHARE}") for key in ("label_smoothing", "momentum", "ema", "crop_pct")),
        *(({key: value}, f"{key} {value}: give a finite number") for value in (float("nan"), float("inf")) for key in (
            "lr", "epochs", "weight_decay", "label_smoothing", "proj_drop_rate", "ema", "checkpoint_minutes")),
        *(({"image_size": value}, f"image_size {value}: give {what}") for value, what in (
            (0, "numbers above 0"), ({}, "numbers above 0"), ({0: -1, 0.5: 32}, "numbers above 0"),
            ({0.1: 16, 0.5: 32}, "the shares"), ({0: 16, 1: 32}, "the shares"), ({0.5: 16, 0: 32}, "the shares"),
            ({0: 16, float("nan"): 32}, "the shares"), ({0: 32, 0.5: 16}, "rising sizes"))),
        ({"image_size": {0: 16, 0.5: 32}, "cuda_graph": True}, "cuda_graph True: it is captured for one image_size"),
        ({"image_size": {0: 16, 0.5: 32}, "keep": "best"}, "keep 'best': weights of several image sizes do not compare"),
        ({"lr": -0.1}, f"lr -0.1: {ABOVE_0}"),
        ({"ema": -0.9}, f"ema -0.9: {ABOVE_0}"),
        ({"proj_drop_rate": 1.0}, "proj_drop_rate 1.0: give auto, or a share below 1"),
        ({"proj_drop_rate": -0.1}, "proj_drop_rate -0.1: give auto, or a share below 1"),
        ({"milestones": [150, 225]}, "milestones [150, 225]: give shares of the run"),
        ({"milestones": [0.0]}, "milestones [0.0]: give shares of the run"),
        ({"milestones": [0.5, 1.0]}, "milestones [0.5, 1.0]: give shares of the run"),
        ({"milestones": [float("nan")]}, "milestones [nan]: give shares of the run"),
        ({"warmup_epochs": 300}, "warmup_epochs 300: epochs are 300"),
        ({"augment": "inception"}, f"augment 'inception': {DEVICE}"),
        ({"augment": "randaugment"}, f"augment 'randaugment': {DEVICE}"),
        ({"loader": "workers", "augment": "cutout"}, "augment 'cutout': loader: workers has none, crop-mirror, inception, randaugment"),
        ({"sync_bn": True, "memory_efficient": True}, "sync_bn True: its layers are not memory_efficient: choose one"),
        ({"sync_bn": True, "cuda_graph": True}, "sync_bn True: a cuda_graph cannot hold its communication: choose one"),
        ({"compile": True, "cuda_graph": True}, "cuda_graph True: compile makes its own kernels: choose one"),
    ],
    ids=lambda value: " ".join(f"{key}={part}" for key, part in value.items()) if isinstance(value, dict) else "",
)  # fmt: skip
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^recipe: {re.escape(message)}"):
        check_recipe(replace(RECIPE, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0.5, "eval_epochs": 0.1, "checkpoint_minutes": 0.01},
        {"holdout": 0, "workers": 0, "label_smoothing": 0, "weight_decay": 0, "warmup_epochs": 0, "retreats": 0},
        {"crop_pct": 1, "ema": 1e-6, "proj_drop_rate": 0.999},
        {"clip_grad": None, "ema": None, "checkpoint_steps": None},
        {"milestones": []},
        {"image_size": {0: 16, 0.45: 24, 0.8: 32}},
        {"image_size": {0: 32}, "keep": "best"},
        {"milestones": [0.001, 0.999]},
        {"warmup_epochs": 299.9},
        {"loader": "workers", "augment": "none"},
        {"loader": "workers", "augment": "inception"},
        {"loader": "workers", "augment": "randaugment"},
        {"augment": "cutout"},
        {"compile": True, "sync_bn": True},
        {"compile": True, "memory_efficient": True},
    ],
    ids=str,
)
def test_accepted(changes: dict[str, Any]) -> None:
    check_recipe(replace(RECIPE, **changes))


@pytest.mark.parametrize(
    ("proj_drop_rate", "augment", "rate"),
    [
        ("auto", "none", 0.2),
        ("auto", "shift-mirror", 0.0),
        ("auto", "inception", 0.0),
        (0.0, "none", 0.0),
        (0.1, "none", 0.1),
        (0.1, "shift-mirror", 0.1),
    ],
)
def test_drop_rate(proj_drop_rate: float | str, augment: Any, rate: float) -> None:
    assert drop_rate(replace(RECIPE, proj_drop_rate=proj_drop_rate, augment=augment)) == rate


def test_names_hold_together() -> None:
    annotations = {field.name: field.type for field in fields(Recipe)}
    assert {*annotations, *(field.name for field in fields(FineTuning))} >= MAY_CHANGE
    assert set(DATA) == set(getattr(annotations["data"], "__args__", ()))
