"""The same weights and images for every arm, and the features that each must return."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
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
from densefeat.nets import VARIANTS

_CHECKED = 4  # images whose features are compared before anything is timed
_NOISE_SIDES = (1, 2, 4, 8, 16, 32)  # pixels of the layers of noise before they are enlarged
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Inputs:
    """What all workers of a comparison read.

    Args:
        files: Paths of the ``weights``, the ``batch`` of images and the ``expected`` features of the images in ``rows``.
        rows: Positions of the images whose features are checked.
        taps_of_ours, taps_of_stages: Names of the expected features, block by block, of our backends and of
            ``forward_intermediates``.
        rounding: The distance of the plain network's float32 features from the expected ones, which are float64.
    """

    files: dict[str, str]
    rows: list[int]
    taps_of_ours: list[str]
    taps_of_stages: list[str]
    rounding: float


def write_inputs(folder: Path, name: str, batch: int, size: int, images: Path | None) -> Inputs:
    """Write weights of the network ``name``, ``batch`` images (from the folder ``images``, or noise) and their features.

    Raises UsageError for a folder without images, and images whose features are not finite.
    """
    model = calibrated_network(name, size)
    x = _make_batch(images, model, batch, size)
    # engines work in chunks, so the first and the last image are among those that are checked
    rows = sorted({round(i * (batch - 1) / (_CHECKED - 1)) for i in range(_CHECKED)})
    expected, rounding = _exact_features(model, x[rows])
    files = {}
    for key, tensors in {"weights": model.state_dict(), "batch": {"x": x}, "expected": expected}.items():
        files[key] = str(folder / f"{key}.safetensors")
        save_file({each: value.contiguous() for each, value in tensors.items()}, files[key])
    stages = _stage_taps(model)
    return Inputs(files, rows, [f"norm{i}" for i in range(1, len(stages) + 1)], stages, rounding)


def check_name(name: str) -> None:
    """Raise UsageError unless it is a network of ours."""
    if name not in VARIANTS:
        raise UsageError(f"model {name!r}: engines are for {', '.join(VARIANTS)}")


def default_size(name: str) -> int:
    """Pixels of a side in the network's own configuration."""
    config: Any = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1])


def network_code(name: str) -> str:
    """Whose code the arms of others run: ``"timm"``, or ``"plain network"``, ours, where timm does not have the network."""
    return "timm" if _timm_name(name) else "plain network"


def load_network(name: str, weights: str) -> nn.Module:
    """timm's network with these weights, or our plain one where timm does not have it; in eval mode."""
    model = timm.create_model(_timm_name(name) or name, num_classes=1000 if _timm_name(name) else None)
    model.load_state_dict(load_file(weights))
    return model.eval()


def _timm_name(name: str) -> str | None:
    """timm's network with the same structure and keys; None where it has none."""
    own = name.removeprefix("densefeat_")
    return own if name in VARIANTS and is_model(own) else None


def calibrated_network(name: str, size: int | None = None, seed: int = 0) -> nn.Module:
    """A network of ours in eval mode, float32, with random weights and BatchNorm statistics of noise.

    Without statistics the features of a deep network overflow; without biases of 1 its ReLUs halve what they read, and rounding
    errors grow beyond anything that happens in a trained network. ``size``: pixels of the noise's sides.
    """
    check_name(name)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = timm.create_model(name)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            nn.init.ones_(norm.bias)
            norm.momentum = 1.0
        model.train()(_make_noise(4, size or default_size(name)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _make_noise(count: int, size: int) -> torch.Tensor:
    """Images ``(count, 3, size, size)`` that differ at every scale, as photographs do, by torch's global generator."""
    layers = [F.interpolate(torch.randn(count, 3, side, side), (size, size), mode="bilinear") for side in _NOISE_SIDES]
    return torch.stack(layers).sum(0) / len(layers) ** 0.5


def _make_batch(folder: Path | None, model: nn.Module, count: int, size: int) -> torch.Tensor:
    """Prepared images ``(count, 3, size, size)``: from a folder, repeated where it has fewer; without a folder, noise.

    Raises:
        UsageError: No image in the folder. DecodeError: one that cannot be read.
    """
    if folder is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return _make_noise(count, size)
    chosen = list_images(folder)[:count]
    prepared = FeatureExtractor(model, device="cpu", image_size=size, backend="reference").prepare(chosen)
    return prepared[torch.arange(count) % len(chosen)]


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted. Raises UsageError where there are none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise UsageError(f"images {str(folder)!r}: no image file there")
    return files


def _block_means(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Average-pooled maps of every block of a network of ours by ``{tap}{block number}``: ``(N, C)``, in the type of ``x``."""
    means: dict[str, torch.Tensor] = {}

    def keep(name: str, _: nn.Module, __: Any, maps: torch.Tensor) -> None:
        means[name] = maps.mean((2, 3))

    taps = {f"{kind}{i}": tap for kind in ("norm", "raw") for i, tap in enumerate(find_taps(model, "all", kind), 1)}
    handles = [model.get_submodule(tap.module).register_forward_hook(partial(keep, name)) for name, tap in taps.items()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return means


def _exact_features(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], float]:
    """The plain network's features in float64, and the largest ``‖a − b‖ / ‖b‖`` of its own float32 ones from them.

    Raises UsageError where they are not finite.
    """
    exact = _block_means(copy.deepcopy(model).double(), x.double())
    single = _block_means(model, x)
    rounding = worst_difference((single[name], value) for name, value in exact.items())
    if rounding is None:
        raise UsageError("the plain network's own features of these images are not finite: choose other images")
    return exact, rounding


def worst_difference(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """The largest ``‖a − b‖ / ‖b‖``, in float64; None where one is not finite."""
    doubles = ((a.double(), b.double()) for a, b in pairs)
    return finite_or_none(torch.stack([(a - b).norm() / b.norm() for a, b in doubles]).max())


def finite_or_none(value: torch.Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _stage_taps(model: nn.Module) -> list[str]:
    """The names of the features that ``forward_intermediates`` returns, block by block, by timm's ``feature_info``."""
    taps: Any = model.block_taps
    info: Any = model.feature_info
    modules = [entry["module"] for entry in info[1:]]  # the first is the stem
    return [f"{'raw' if module == taps['raw'][i] else 'norm'}{i + 1}" for i, module in enumerate(modules)]
