"""The connections within the blocks of a network: which layer reads which, with the weights as views of the parameters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from timm.models.densenet import DenseNet as TimmDenseNet
from torch import nn

from densefeat.errors import UsageError
from densefeat.heads import HeadedNet
from densefeat.nets import DelugeBlock, DelugeNet, DenseNet

TRANSITION, CLASSIFIER = "transition", "classifier"
_KNOWN_KINDS = "a DenseNet or DelugeNet of densefeat, or a DenseNet of timm"


@dataclass(frozen=True)
class BlockReader:
    """A layer that reads a block's outputs: one of the block's own, or the transition or classifier after it.

    Attributes:
        block: The block's number, from 1.
        place: The number of the block's layers before it.
        name: The layer's number from 1, ``"transition"`` or ``"classifier"``.
        weights: The weights that read each source, as writable views: the block's input first (0), then the layers (1, 2, …).
            DenseNet: columns of the first convolution, ``(out, channels, kh, kw)``; of the classifier
            ``(classes, channels)``. DelugeNet: the affine weights of the source's own BatchNorm, ``(channels,)``.
    """

    block: int
    place: int
    name: str
    weights: tuple[torch.Tensor, ...]

    @property
    def leaves(self) -> bool:
        """Whether it comes after the block and reads all of it: the transition, or the classifier."""
        return self.name in (TRANSITION, CLASSIFIER)


def find_readers(model: nn.Module) -> list[BlockReader]:
    """List all readers, block by block: the layers in order, then the transition or classifier.

    A DelugeNet's first layer reads one source without weights and is left out; for its last block, the cross-layer sum that
    the classifier reads is listed. A DenseNet without a linear classifier has no such reader.

    Raises UsageError for any other kind of network.
    """
    check_known(model)
    return list(_deluge_readers(model) if isinstance(model, DelugeNet) else _dense_readers(model))  # type: ignore[arg-type]


def check_known(model: nn.Module) -> None:
    """Raise UsageError unless the network's structure is known."""
    if not isinstance(model, DelugeNet | DenseNet | TimmDenseNet):
        raise UsageError(f"{type(model).__name__}: its connections are not known: take {_KNOWN_KINDS}")


def check_classifies(model: nn.Module) -> None:
    """Raise UsageError unless the network has a linear classifier and a known structure."""
    if isinstance(model, HeadedNet):
        raise UsageError(f"its head is {model.kind!r}, and not a linear classifier: take a network or a run that has one")
    if not hasattr(model, "forward_head") or not getattr(model, "num_classes", 0):
        raise UsageError(f"{type(model).__name__} has no linear classifier whose accuracy could be measured: take one that has")
    check_known(model)


def list_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the blocks: their names within ``model.features``, and the modules."""
    prefix = "block" if isinstance(model, DelugeNet) else "denseblock"
    return [(name, stage) for name, stage in model.features.named_children() if name.startswith(prefix)]  # type: ignore[union-attr]


def list_layers(block: nn.Module) -> list[nn.Module]:
    return list(block.layers) if isinstance(block, DelugeBlock) else list(block.children())


def _deluge_readers(model: DelugeNet) -> Iterator[BlockReader]:
    blocks = list_blocks(model)
    for number, (_, block) in enumerate(blocks, 1):
        layers = list_layers(block)
        after = CLASSIFIER if number == len(blocks) else TRANSITION
        names = [*map(str, range(1, len(layers) + 1)), after]
        for place, (name, layer) in enumerate(zip(names, [*layers, block], strict=True)):
            norms = layer.aggregate.norms  # type: ignore[union-attr]
            if len(norms):  # type: ignore[arg-type]
                yield BlockReader(number, place, name, tuple(norm.weight.detach() for norm in norms))  # type: ignore[union-attr]


def _dense_readers(model: DenseNet | TimmDenseNet) -> Iterator[BlockReader]:
    blocks = list_blocks(model)
    for number, (_, block) in enumerate(blocks, 1):
        convolutions: list[nn.Conv2d] = [layer.conv1 for layer in list_layers(block)]  # type: ignore[misc]
        ends = [0, *(convolution.in_channels for convolution in convolutions)]
        for place, convolution in enumerate(convolutions):
            yield BlockReader(number, place, str(place + 1), _split_columns(convolution.weight, ends[: place + 2]))
        last = number == len(blocks)
        after = model.classifier if last else model.features.get_submodule(f"transition{number}.conv")
        if isinstance(after, nn.Conv2d | nn.Linear):
            name = CLASSIFIER if last else TRANSITION
            yield BlockReader(
                number, len(convolutions), name, _split_columns(after.weight, [*ends, _block_channels(model, after)])
            )


def _block_channels(model: DenseNet | TimmDenseNet, after: nn.Conv2d | nn.Linear) -> int:
    """Return the number of a block's output channels, all of which the transition or classifier reads."""
    if isinstance(after, nn.Conv2d):
        return after.in_channels
    if after.in_features != model.num_features:
        raise UsageError(
            f"classifier of {after.in_features} features on {model.num_features} channels: these are pooled in several ways"
        )
    return after.in_features


def _split_columns(weight: torch.Tensor, ends: Sequence[int]) -> tuple[torch.Tensor, ...]:
    return tuple(weight.detach()[:, start:stop] for start, stop in pairwise(ends))
