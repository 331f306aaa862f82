"""The module that is traced, from images to named outputs, and the plain network that its files are measured against."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.features import FeatureExtractor, Pool, Tap, find_taps, parse_pools
from densefeat.images import Preprocessing
from densefeat.nets import StagedNet
from densefeat.store import column_name

_OUTPUTS = ("features", "maps", "logits")
_Reference = Callable[[torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Outputs:
    """The outputs of an exported graph: ``kind`` is features (pooled), maps or logits; the rest is as in FeatureExtractor."""

    kind: str = "features"
    blocks: str | int | tuple[int, ...] = "all"
    tap: str = "norm"
    pool: str | tuple[str, ...] = "avg"

    def check(self) -> None:
        """Raise UsageError for an unknown kind, or options that do not apply to it."""
        if self.kind not in _OUTPUTS:
            raise UsageError(f"outputs {self.kind!r}: choose one of {', '.join(_OUTPUTS)}")
        if self.kind == "logits" and (self.blocks, self.tap) != ("all", "norm"):
            raise UsageError("outputs 'logits': blocks and tap are for features and maps")
        if self.kind != "features" and self.pool != "avg":
            raise UsageError(f"outputs {self.kind!r}: pool is for features")
        if "none" in self.pools and self.kind == "features":
            raise UsageError("pool 'none': ask for outputs 'maps'")

    @property
    def pools(self) -> dict[str, Pool]:
        return parse_pools("none" if self.kind == "maps" else self.pool)

    def taps(self, model: nn.Module) -> list[Tap]:
        return [] if self.kind == "logits" else find_taps(model, self.blocks, self.tap)

    def names(self, model: nn.Module) -> list[str]:
        """Return the names of the outputs, in order."""
        if self.kind == "logits":
            return ["logits"]
        return [column_name(tap.name, pool, len(self.pools)) for tap in self.taps(model) for pool in self.pools]


class ExportedNet(nn.Module):
    """A network with named outputs: ``(N, 3, H, W)``, float32, normalised, or ``(N, H, W, 3)``, uint8, to a dict by name.

    Args:
        model: In eval mode; it is copied, and the copy ends after the last block that is read.
        outputs: What to compute.
        preprocessing: If present, images are uint8, and scale, mean and standard deviation are part of the module.

    Raises:
        UsageError: No such block or tap; logits of a network without a classifier.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, outputs: Outputs, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        self.taps, self.pools = outputs.taps(model), outputs.pools
        self.names = outputs.names(model)
        if not self.taps and not getattr(model, "num_classes", 1):
            raise UsageError(f"outputs 'logits': {type(model).__name__} has no classifier: ask for features")
        self.model: Any = copy.deepcopy(model)
        if self.taps and isinstance(self.model, StagedNet):
            _truncate_after(self.model, self.taps[-1].module)
        self.takes_pixels = preprocessing is not None
        if preprocessing is not None:
            self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1))
            self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.normalize(images) if self.takes_pixels else images
        if not self.taps:
            return {"logits": self.model(x)}
        results = self.run_hooked(x) if self.uses_hooks() else self.run_intermediates(x)
        return {name: results[name] for name in self.names}

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def uses_hooks(self) -> bool:
        return isinstance(self.model, StagedNet) or not hasattr(self.model, "forward_intermediates")

    def pool_maps(self, tap: Tap, maps: torch.Tensor) -> dict[str, torch.Tensor]:
        return {column_name(tap.name, name, len(self.pools)): pool(maps) for name, pool in self.pools.items()}

    def run_intermediates(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Read the maps of other people's networks by timm's own method."""
        every = find_taps(self.model, "all", "norm")
        indices = [every.index(tap) for tap in self.taps]
        maps = self.model.forward_intermediates(x, indices=indices, stop_early=True, intermediates_only=True)
        results: dict[str, torch.Tensor] = {}
        for tap, tap_maps in zip(self.taps, maps, strict=True):
            results |= self.pool_maps(tap, tap_maps)
        return results

    def run_hooked(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Read maps by hooks, as FeatureExtractor does, but run to the end: a trace cannot be left by an exception."""
        results: dict[str, torch.Tensor] = {}

        def hook_for(tap: Tap) -> Callable[..., None]:
            return lambda _, __, maps: results.update(self.pool_maps(tap, maps))

        handles = [self.model.get_submodule(tap.module).register_forward_hook(hook_for(tap)) for tap in self.taps]
        try:
            self.model.forward_features(x) if isinstance(self.model, StagedNet) else self.model(x)
        finally:
            for handle in handles:
                handle.remove()
        return results


def _truncate_after(model: StagedNet, module: str) -> None:
    """Remove what runs after a module, and the classifier."""
    model.features = _truncate(model.features, module.split(".")[1:])
    model.reset_classifier(0, "")


def _truncate(sequence: nn.Sequential, path: list[str]) -> nn.Sequential:
    """Keep the modules of a sequence up to the one at ``path``.

    A module that contains it but is no sequence is kept entirely.
    """
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in sequence.named_children():
        last = name == path[0]
        kept[name] = _truncate(child, path[1:]) if last and len(path) > 1 and isinstance(child, nn.Sequential) else child
        if last:
            break
    return nn.Sequential(kept)


def make_reference(model: nn.Module, outputs: Outputs) -> _Reference:
    """Make the function to measure against: normalised images ``(N, 3, H, W)`` to the plain network's outputs by name."""
    if outputs.kind == "logits":
        return lambda x: {"logits": model(x)}
    pool = tuple(outputs.pools) if outputs.kind == "maps" else outputs.pool
    extractor = FeatureExtractor(model, blocks=outputs.blocks, tap=outputs.tap, pool=pool, device="cpu", backend="reference")
    return extractor.forward
