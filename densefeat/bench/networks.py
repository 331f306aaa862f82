"""The same weights for every arm, and the numbers that each must give."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models import is_model
from torch import nn

from densefeat.errors import UsageError
from densefeat.features import FeatureExtractor, find_taps
from densefeat.features.extractor import evaluating, run_hooked
from densefeat.features.taps import TAPS
from densefeat.images.files import EXTENSIONS
from densefeat.nets import VARIANTS

CHECKED = 4  # images whose features are compared before anything is timed
NOISE_SIDES = (1, 2, 4, 8, 16, 32)  # pixels, of the layers of noise before they are enlarged


@dataclass(frozen=True)
class Inputs:
    """What all workers of a comparison read.

    Args:
        files: Paths of the ``weights``, the ``batch`` of images and the ``expected`` features of those in ``rows``.
        taps_of_ours, taps_of_stages: Which of the expected features an arm gives, block by block: ours, or by
            ``forward_intermediates``.
        rounding: How far the plain network's float32 features are from the expected ones, which are float64.
    """

    files: dict[str, str]
    rows: list[int]
    taps_of_ours: list[str]
    taps_of_stages: list[str]
    rounding: float


def timm_name(name: str) -> str | None:
    """timm's own network of the same structure and keys; None where it has none."""
    own = name.removeprefix("densefeat_")
    return own if name in VARIANTS and is_model(own) else None


def check_name(name: str) -> None:
    """Raise UsageError unless it is a network of ours."""
    if name not in VARIANTS:
        raise UsageError(f"model {name!r}: engines are for {', '.join(VARIANTS)}")


def plain_network(name: str, size: int | None = None, seed: int = 0) -> nn.Module:
    """A network of ours in eval mode, float32, with random weights and statistics of noise: without, deep features overflow.

    ``size``: pixels of the noise's sides. Raises UsageError for a name that is not ours.
    """
    check_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name)
        calibrate(model, noise(4, size or own_size(name)))
    return model.eval()


def calibrate(model: nn.Module, images: torch.Tensor) -> None:
    """Statistics of ``images``, and biases of 1: ReLUs that halve what they read make deep random networks chaotic.

    Rounding errors would grow beyond anything that happens in a trained network.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.ones_(norm.bias)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def noise(count: int, size: int) -> torch.Tensor:
    """Images ``(count, 3, size, size)`` that differ at every scale, as photographs do, by torch's own generator."""
    layers = [F.interpolate(torch.randn(count, 3, side, side), (size, size), mode="bilinear") for side in NOISE_SIDES]
    return torch.stack(layers).sum(0) / len(layers) ** 0.5


def own_size(name: str) -> int:
    """Pixels of the sides that the network's own configuration has."""
    config: Any = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1])


def images_of(folder: Path | None, model: nn.Module, count: int, size: int) -> torch.Tensor:
    """Prepared images ``(count, 3, size, size)``: of a folder, again from its start where it has fewer; without, noise.

    Raises:
        UsageError: No image in the folder. DecodeError: one that cannot be read.
    """
    if folder is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return noise(count, size)
    chosen = image_files(folder)[:count]
    prepared = FeatureExtractor(model, device="cpu", image_size=size, backend="reference").prepare(chosen)
    return prepared[torch.arange(count) % len(chosen)]


def image_files(folder: Path) -> list[Path]:
    """All below a folder, sorted. Raises UsageError where there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise UsageError(f"images {str(folder)!r}: no image file there")
    return found


def checked_rows(batch: int) -> list[int]:
    """Which images of a batch are compared, the first and the last among them: engines work in chunks."""
    return sorted({round(i * (batch - 1) / (CHECKED - 1)) for i in range(CHECKED)})


def block_means(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Average-pooled maps of every block of a network of ours, by ``{tap}{block number}``; ``(N, C)``, in the type of ``x``."""
    features: dict[str, torch.Tensor] = {}
    for tap in TAPS:
        taps = find_taps(model, "all", tap)
        found: dict[str, torch.Tensor] = {}
        with torch.no_grad(), evaluating(model):
            run_hooked(model, taps, x, lambda at, maps: found.update({at.module: maps.mean((2, 3))}))  # noqa: B023
        features |= {f"{tap}{i}": found[each.module] for i, each in enumerate(taps, 1)}
    return features


def exact_and_rounding(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], float]:
    """The plain network's features in float64, and how far its own float32 is from them: ``‖a − b‖ / ‖b‖``, the worst.

    Raises UsageError where they are not finite.
    """
    exact = block_means(copy.deepcopy(model).double(), x.double())
    single = block_means(model, x)
    rounding = worst_difference((single[name], value) for name, value in exact.items())
    if rounding is None:
        raise UsageError("the plain network's own features of these images are not finite: choose other images")
    return exact, rounding


def worst_difference(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """The largest ``‖a − b‖ / ‖b‖``, in float64; None where one is not finite."""
    doubles = ((a.double(), b.double()) for a, b in pairs)
    return finite(torch.stack([(a - b).norm() / b.norm() for a, b in doubles]).max())


def finite(value: torch.Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def stage_taps(model: nn.Module) -> list[str]:
    """Which expected features ``forward_intermediates`` gives, block by block, where timm's ``feature_info`` is read."""
    taps: Any = model.block_taps
    info: Any = model.feature_info
    modules = [entry["module"] for entry in info[1:]]  # the first is the stem
    return [f"{'raw' if module == taps['raw'][i] else 'norm'}{i + 1}" for i, module in enumerate(modules)]


def write_inputs(folder: Path, name: str, batch: int, size: int, images: Path | None) -> Inputs:
    """Weights of the network ``name``, ``batch`` images (of the folder ``images``, or noise) and their features.

    Raises UsageError as ``images_of`` and ``exact_and_rounding`` do.
    """
    model = plain_network(name, size)
    x = images_of(images, model, batch, size)
    rows = checked_rows(batch)
    expected, rounding = exact_and_rounding(model, x[rows])
    contents = {"weights": model.state_dict(), "batch": {"x": x}, "expected": expected}
    files = {}
    for key, tensors in contents.items():
        files[key] = str(folder / f"{key}.safetensors")
        save_file({each: value.contiguous() for each, value in tensors.items()}, files[key])
    stages = stage_taps(model)
    return Inputs(files, rows, [f"norm{i}" for i in range(1, len(stages) + 1)], stages, rounding)


def network_code(name: str) -> str:
    """Whose code the arms run that are not ours: ``"timm"``, or ``"plain network"``, ours, where timm has none."""
    return "timm" if timm_name(name) else "plain network"


def torch_network(name: str, weights: str) -> nn.Module:
    """timm's own network with the weights, or the plain one of ours where timm has none; in eval mode."""
    model = timm.create_model(timm_name(name) or name, num_classes=1000 if timm_name(name) else None)
    model.load_state_dict(load_file(weights))
    return model.eval()
