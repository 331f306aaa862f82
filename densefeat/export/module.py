"""The module that is traced, from images to named outputs, and the plain network that its files are measured against."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.export.answer import Answer
from densefeat.export.cutting import cut_network, make_selection, truncate_after
from densefeat.features import FeatureExtractor, Pool, Tap, find_taps, parse_pools
from densefeat.images import Preprocessing
from densefeat.nets import StagedNet
from densefeat.store import column_name

_OUTPUTS = ("features", "maps", "logits", "answer")
_BY_CLASSIFIER = ("logits", "answer")
_Reference = Callable[[torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Outputs:
    """What a graph takes from a network: ``kind`` is features (pooled), maps, logits, or an answer, which is made of logits.

    The rest is as in FeatureExtractor.
    """

    kind: str = "features"
    blocks: str | int | tuple[int, ...] = "all"
    tap: str = "norm"
    pool: str | tuple[str, ...] = "avg"

    def check(self) -> None:
        """Raise UsageError for an unknown kind, or options that do not apply to it."""
        if self.kind not in _OUTPUTS:
            raise UsageError(f"outputs {self.kind!r}: choose one of {', '.join(_OUTPUTS)}")
        if self.by_classifier and (self.blocks, self.tap) != ("all", "norm"):
            raise UsageError(f"outputs {self.kind!r}: blocks and tap are for features and maps")
        if self.kind != "features" and self.pool != "avg":
            raise UsageError(f"outputs {self.kind!r}: pool is for features")
        if "none" in self.pools and self.kind == "features":
            raise UsageError("pool 'none': ask for outputs 'maps'")

    @property
    def by_classifier(self) -> bool:
        """Whether the network's own classifier makes them."""
        return self.kind in _BY_CLASSIFIER

    @property
    def pools(self) -> dict[str, Pool]:
        return parse_pools("none" if self.kind == "maps" else self.pool)

    def taps(self, model: nn.Module) -> list[Tap]:
        return [] if self.by_classifier else find_taps(model, self.blocks, self.tap)

    def names(self, model: nn.Module) -> list[str]:
        """Return the names of the outputs, in order."""
        if self.by_classifier:
            return ["logits"]
        return [column_name(tap.name, pool, len(self.pools)) for tap in self.taps(model) for pool in self.pools]


class ExportedNet(nn.Module):
    """A network with named outputs: ``(N, 3, H, W)``, float32, normalised, or ``(N, H, W, 3)``, uint8, to a dict by name.

    Args:
        model: In eval mode; it is copied, and the copy ends after the last block that is read.
        outputs: What the network computes.
        preprocessing: If present, images are uint8, and scale, mean and standard deviation are part of the module.
        answer: If present, the outputs are its own, from the network's; channels that it does not read are cut off.

    Raises:
        UsageError: No such block or tap; logits of a network without a classifier.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, model: nn.Module, outputs: Outputs, preprocessing: Preprocessing | None = None, answer: Answer | None = None
    ) -> None:
        super().__init__()
        self.taps, self.pools = outputs.taps(model), outputs.pools
        self.names = outputs.names(model) if answer is None else answer.names
        if not self.taps and not getattr(model, "num_classes", 1):
            raise UsageError(f"outputs {outputs.kind!r}: {type(model).__name__} has no classifier: ask for features")
        self.model: Any = copy.deepcopy(model)
        self.answer = answer
        self.selections = nn.ModuleDict()  # by column with "." replaced: modules of a network have names with dots
        if self.taps and answer is not None:
            self.cut(answer.reads, answer.widths)
        elif self.taps and isinstance(self.model, StagedNet):
            truncate_after(self.model, self.taps[-1].module)
        self.takes_pixels = preprocessing is not None
        if preprocessing is not None:
            self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1))
            self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1))

    def cut(self, reads: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> None:
        """Cut the network to the channels of each column that are read. ``widths``: how many each column has."""
        columns = {tap: [name for name in self.column_names(tap) if name in reads] for tap in self.taps}
        self.taps = [tap for tap in self.taps if columns[tap]]
        read = {tap.module: np.unique(np.concatenate([reads[name] for name in columns[tap]])) for tap in self.taps}
        left = cut_network(self.model, read) if isinstance(self.model, StagedNet) else {}
        for tap in self.taps:
            for name in columns[tap]:
                outputs = left.get(tap.module, np.arange(widths[name]))
                positions = np.searchsorted(outputs, reads[name])
                self.selections[name.replace(".", "/")] = make_selection(positions, len(outputs))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.normalize(images) if self.takes_pixels else images
        if not self.taps:
            results = {"logits": self.model(x)}
        else:
            results = self.run_hooked(x) if self.uses_hooks() else self.run_intermediates(x)
        if self.answer is not None:
            results = self.answer(results)
        return {name: results[name] for name in self.names}

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def uses_hooks(self) -> bool:
        return isinstance(self.model, StagedNet) or not hasattr(self.model, "forward_intermediates")

    def pool_maps(self, tap: Tap, maps: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = {name: pool(maps) for name, pool in zip(self.column_names(tap), self.pools.values(), strict=True)}
        if self.answer is None:
            return pooled
        selections = {name: self.selections[name.replace(".", "/")] for name in pooled if name in self.answer.reads}
        return {name: selection(pooled[name]) for name, selection in selections.items()}

    def column_names(self, tap: Tap) -> list[str]:
        return [column_name(tap.name, pool, len(self.pools)) for pool in self.pools]

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


def make_reference(model: nn.Module, outputs: Outputs) -> _Reference:
    """Make the function to measure against: normalised images ``(N, 3, H, W)`` to the plain network's outputs by name."""
    if outputs.by_classifier:
        return lambda x: {"logits": model(x)}
    pool = tuple(outputs.pools) if outputs.kind == "maps" else outputs.pool
    extractor = FeatureExtractor(model, blocks=outputs.blocks, tap=outputs.tap, pool=pool, device="cpu", backend="reference")
    return extractor.forward
