"""Heads on a network's last map, with the calling convention of those that read all of them."""

from collections.abc import Sequence

import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.heads.maps import check_sizes, dropout
from densefeat.nets import he_init


class LinearHead(nn.Module):
    """Average pooling of the last map, dropout, a linear classifier.

    Raises UsageError for a number out of range.
    """

    def __init__(self, num_features: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        check_sizes(num_features=num_features, num_classes=num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.drop = dropout(drop_rate)
        self.classifier = nn.Linear(num_features, num_classes)
        self.apply(he_init)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps, the last ``(N, num_features, H, W)``, to logits ``(N, num_classes)``; UsageError for another last map."""
        return self.classifier(self.drop(_pooled_last(maps, self.num_features)))


class MlpHead(nn.Module):
    """Average pooling of the last map, then one hidden layer: linear, GELU, dropout, linear.

    Raises UsageError for a number out of range.
    """

    def __init__(self, num_features: int, num_classes: int, hidden: int = 512, drop_rate: float = 0.0) -> None:
        super().__init__()
        check_sizes(num_features=num_features, hidden=hidden, num_classes=num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.hidden = nn.Linear(num_features, hidden)
        self.act = nn.GELU()
        self.drop = dropout(drop_rate)
        self.classifier = nn.Linear(hidden, num_classes)
        self.apply(he_init)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps, the last ``(N, num_features, H, W)``, to logits ``(N, num_classes)``; UsageError for another last map."""
        x = self.act(self.hidden(_pooled_last(maps, self.num_features)))
        return self.classifier(self.drop(x))


def _pooled_last(maps: Sequence[torch.Tensor], num_features: int) -> torch.Tensor:
    """The mean over places of the last map: ``(N, num_features)``."""
    if not maps or maps[-1].ndim != 4 or maps[-1].shape[1] != num_features:
        shapes = [tuple(given.shape) for given in maps]
        raise UsageError(f"maps of shapes {shapes}: this head reads the last, which must be (N, {num_features}, H, W)")
    return maps[-1].mean((2, 3))
