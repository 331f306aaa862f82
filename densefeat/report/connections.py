"""Who reads what within the blocks of a network: every connection with its weights, as views of the parameters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from timm.models.densenet import DenseNet as TimmDenseNet
from torch import nn

from densefeat.errors import UsageError
from densefeat.loading import HeadedNet
from densefeat.nets import DelugeBlock, DelugeNet, DenseNet

TRANSITION, CLASSIFIER = "transition", "classifier"
_KNOWN = "a DenseNet or DelugeNet of densefeat, or a DenseNet of timm"


@dataclass(frozen=True)
class Reader:
    """A column of the triangle: a layer of a block, or what leaves it.

    Attributes:
        block: From 1.
        place: How many layers of the block come before it.
        name: A layer's number from 1, ``"transition"`` or ``"classifier"``.
        weights: For each source the weights that read it, views that can be written to: of the block's input (0), then of
            the layers (1, 2, …). DenseNet: columns of the first convolution, ``(out, channels, kh, kw)``; of the classifier
            ``(classes, channels)``. DelugeNet: the affine weights of the source's own BatchNorm, ``(channels,)``.
    """

    block: int
    place: int
    name: str
    weights: tuple[torch.Tensor, ...]

    @property
    def leaves(self) -> bool:
        """Whether it reads the whole block: the transition, or the classifier."""
        return self.name in (TRANSITION, CLASSIFIER)


def find_readers(model: nn.Module) -> list[Reader]:
    """All readers, block by block, layers in order and then what leaves the block.

    A DelugeNet's first layer reads one source, without weights of its own, and is left out; what leaves its last block is the
    cross-layer sum that the classifier reads. A DenseNet without a linear classifier has no such column.

    Raises UsageError for any other kind of network.
    """
    check_known(model)
    return list(_deluge_readers(model) if isinstance(model, DelugeNet) else _dense_readers(model))  # type: ignore[arg-type]


def check_known(model: nn.Module) -> None:
    """UsageError unless the network's structure is known."""
    if not isinstance(model, DelugeNet | DenseNet | TimmDenseNet):
        raise UsageError(f"{type(model).__name__}: its connections are not known: take {_KNOWN}")


def check_classifies(model: nn.Module) -> None:
    """UsageError unless the network has a linear classifier of its own, and a known structure."""
    if isinstance(model, HeadedNet):
        raise UsageError(f"its head is {model.kind!r}, no linear classifier of its own: take a network or a run that has one")
    if not hasattr(model, "forward_head") or not getattr(model, "num_classes", 0):
        told = "no linear classifier of its own, whose accuracy could be lost"
        raise UsageError(f"{type(model).__name__}: {told}: take a network that classifies")
    check_known(model)


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names within ``model.features``, and modules."""
    prefix = "block" if isinstance(model, DelugeNet) else "denseblock"
    return [(name, stage) for name, stage in model.features.named_children() if name.startswith(prefix)]  # type: ignore[union-attr]


def layers_of(block: nn.Module) -> list[nn.Module]:
    return list(block.layers) if isinstance(block, DelugeBlock) else list(block.children())


def _deluge_readers(model: DelugeNet) -> Iterator[Reader]:
    blocks = blocks_of(model)
    for number, (_, block) in enumerate(blocks, 1):
        layers = layers_of(block)
        leaving = CLASSIFIER if number == len(blocks) else TRANSITION
        names = [*map(str, range(1, len(layers) + 1)), leaving]
        for place, (name, layer) in enumerate(zip(names, [*layers, block], strict=True)):
            norms = layer.aggregate.norms  # type: ignore[union-attr]
            if len(norms):  # type: ignore[arg-type]
                yield Reader(number, place, name, tuple(norm.weight.detach() for norm in norms))  # type: ignore[union-attr]


def _dense_readers(model: DenseNet | TimmDenseNet) -> Iterator[Reader]:
    blocks = blocks_of(model)
    for number, (_, block) in enumerate(blocks, 1):
        convolutions: list[nn.Conv2d] = [layer.conv1 for layer in layers_of(block)]  # type: ignore[misc]
        ends = [0, *(convolution.in_channels for convolution in convolutions)]
        for place, convolution in enumerate(convolutions):
            yield Reader(number, place, str(place + 1), _columns(convolution.weight, ends[: place + 2]))
        last = number == len(blocks)
        leaving = model.classifier if last else model.features.get_submodule(f"transition{number}.conv")
        if isinstance(leaving, nn.Conv2d | nn.Linear):
            name = CLASSIFIER if last else TRANSITION
            yield Reader(number, len(convolutions), name, _columns(leaving.weight, [*ends, _block_channels(model, leaving)]))


def _block_channels(model: DenseNet | TimmDenseNet, leaving: nn.Conv2d | nn.Linear) -> int:
    """Channels of a whole block, which are all that leaves it reads."""
    if isinstance(leaving, nn.Conv2d):
        return leaving.in_channels
    if leaving.in_features != model.num_features:
        raise UsageError(
            f"classifier of {leaving.in_features} features on {model.num_features} channels: these are pooled in several ways"
        )
    return leaving.in_features


def _columns(weight: torch.Tensor, ends: Sequence[int]) -> tuple[torch.Tensor, ...]:
    return tuple(weight.detach()[:, start:stop] for start, stop in pairwise(ends))
