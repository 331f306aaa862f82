"""A classification head that reads all blocks of a network: DelugeNet's cross-layer aggregation, on block features.

Source: Kuen et al., "DelugeNets: Deep Networks with Efficient and Flexible Cross-layer Information Inflows"
(arXiv 1611.05552), section 3.2; there within a block's layers, here across the blocks of any network.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from densefeat.heads.maps import FeatureInfos, check_maps, check_sizes, dropout, map_channels
from densefeat.nets import CrossLayerDepthwise, he_init


class CrossLayerHead(nn.Module):
    """Maps of all blocks to logits: projected, combined with one weight for each channel and block, pooled, classified.

    Each map is averaged down to the smallest one's size, taken to ``width`` channels by a 1×1 convolution (average and
    convolution commute: this order is the cheaper) and normalised; the sum over blocks, weighted channel by channel, goes
    through one more norm, ReLU, global average pooling, dropout and a linear classifier.

    Args:
        feature_info: timm's, of the maps that it will be given: ``model.feature_info``, entries of it, or the model.
        width: Channels that each block is projected to.
        num_classes: Logits.
        drop_rate: Of the pooled features, in training.

    Raises:
        UsageError: No ``feature_info``, or a number out of range.
    """

    def __init__(self, feature_info: FeatureInfos, width: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        check_sizes(width=width, num_classes=num_classes)
        self.channels = map_channels(feature_info)
        self.num_classes = num_classes
        self.projections = nn.ModuleList(nn.Conv2d(count, width, 1, bias=False) for count in self.channels)
        self.aggregate = CrossLayerDepthwise(width, len(self.channels))
        self.drop = dropout(drop_rate)
        self.classifier = nn.Linear(width, num_classes)
        self.apply(he_init)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """One map ``(N, C_i, H_i, W_i)`` a block, in the order of ``feature_info``, to logits ``(N, num_classes)``.

        Raises UsageError for other maps.
        """
        check_maps(maps, self.channels)
        size = min(given.shape[2] for given in maps), min(given.shape[3] for given in maps)
        projected = [project(pooled_to(given, size)) for project, given in zip(self.projections, maps, strict=True)]
        x = F.relu(self.aggregate(projected)).mean((2, 3))
        return self.classifier(self.drop(x))

    @torch.no_grad()
    def block_usage(self) -> torch.Tensor:
        """The share of each block in each channel of the sum, ``|w_i[c]| / Σ_j |w_j[c]|``: float32 ``(blocks, width)``, CPU.

        Every channel's shares sum to 1 over the blocks (they are 0 where all its weights are). What the weights multiply is
        normalised, so that on the training data each share is that of the block's standard deviation in the channel. It does
        not say what accuracy would be lost without a block: blocks are correlated and can stand in for one another, and how
        much the classifier uses a channel is left out.
        """
        if not len(self.aggregate.norms):
            return torch.ones(1, self.classifier.in_features)
        weights = torch.stack([norm.get_parameter("weight").float().cpu() for norm in self.aggregate.norms]).abs()
        return weights / weights.sum(0).clamp(min=torch.finfo(torch.float32).tiny)


def pooled_to(given: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``(N, C, H, W)`` averaged to ``(N, C, *size)``."""
    return given if given.shape[2:] == size else F.adaptive_avg_pool2d(given, size)
