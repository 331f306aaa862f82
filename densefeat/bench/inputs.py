"""The same weights and images for every arm, and the features that each must return."""

import copy
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
from densefeat.nets import VARIANTS

_CHECKED = 4  # images whose features are compared before anything is timed
_NOISE_SIDES = (1, 2, 4, 8, 16, 32)  # pixels of the layers of noise before they are enlarged
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Inputs:
    """What all workers of a comparison read.

    Args:
        weights: The file of the network's weights.
        tensors: A file with the images ``x``, and of those in ``rows`` the pooled features of each block, float64: at the taps
            of our backends (``ours``) and as ``forward_intermediates`` returns them (``others``).
        rounding: The distance of the plain network's float32 features from the expected ones.
    """

    weights: str
    tensors: str
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
    inputs = Inputs(str(folder / "weights.safetensors"), str(folder / "tensors.pt"), rounding)
    save_file(model.state_dict(), inputs.weights)
    torch.save({"x": x, "rows": rows, **expected}, inputs.tensors)
    return inputs


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
    return "timm" if is_model(name.removeprefix("densefeat_")) else "plain network"


def load_network(name: str, weights: str) -> nn.Module:
    """timm's network with these weights, or our plain one where timm does not have it; in eval mode."""
    own = network_code(name) != "timm"
    model = timm.create_model(name if own else name.removeprefix("densefeat_"), num_classes=None if own else 1000)
    model.load_state_dict(load_file(weights))
    return model.eval()


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
    """Prepared images ``(count, 3, size, size)``: from a folder, repeated where it has fewer; without a folder, noise."""
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


class PooledBlocks(nn.Module):
    """The maps of timm's ``forward_intermediates`` but the stem's, average-pooled in float32 or the maps' wider type."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.indices = list(range(1, len(model.feature_info)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        return tuple(each.mean((2, 3), dtype=torch.promote_types(each.dtype, torch.float32)) for each in maps)


def _pool_blocks(model: nn.Module, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Pooled features of a network of ours, ``(N, C)`` for each block, as in :class:`Inputs`."""
    ours: list[torch.Tensor] = []
    handles = [
        model.get_submodule(tap.module).register_forward_hook(lambda _, __, maps: ours.append(maps.mean((2, 3))))
        for tap in find_taps(model, "all", "norm")
    ]
    with torch.no_grad():
        others = list(PooledBlocks(model)(x))
    for handle in handles:
        handle.remove()
    return {"ours": ours, "others": others}


def _exact_features(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, list[torch.Tensor]], float]:
    """The plain network's features in float64, and the largest ``‖a − b‖ / ‖b‖`` of its own float32 ones from them.

    Raises UsageError where they are not finite.
    """
    exact, single = _pool_blocks(copy.deepcopy(model).double(), x.double()), _pool_blocks(model, x)
    differences = [worst_difference(single[taps], exact[taps]) for taps in exact]
    if None in differences:
        raise UsageError("the plain network's own features of these images are not finite: choose other images")
    return exact, max(each for each in differences if each is not None)


def worst_difference(own: list[torch.Tensor], expected: list[torch.Tensor]) -> float | None:
    """The largest ``‖a − b‖ / ‖b‖`` of a block, in float64; None where one is not finite."""
    pairs = zip(own, expected, strict=True)
    return finite_or_none(torch.stack([(a.double() - b).norm() / b.norm() for a, b in pairs]).max())


def finite_or_none(value: torch.Tensor) -> float | None:
    return float(value) if value.isfinite() else None
