"""Classification heads by name."""

from torch import nn

from densefeat.errors import UsageError
from densefeat.heads.cross_layer import CrossLayerHead
from densefeat.heads.maps import FeatureInfos, map_channels
from densefeat.heads.mlp import LinearHead, MlpHead

KINDS = ("linear", "mlp", "cross-layer")


def make_head(kind: str, feature_info: FeatureInfos, num_classes: int, width: int, drop_rate: float = 0.0) -> nn.Module:
    """A head that takes the maps of ``feature_info`` (one each, in its order) to logits ``(N, num_classes)``.

    Args:
        kind: ``"linear"`` or ``"mlp"`` (one hidden layer), both on the last map; ``"cross-layer"``, on all of them.
        feature_info: timm's, of the maps that the head will be given: ``model.feature_info``, entries of it, or the model.
        num_classes: Logits.
        width: Hidden units of ``"mlp"``, channels that ``"cross-layer"`` projects each map to.
        drop_rate: Before the classifier, in training.

    Raises:
        UsageError: No such kind, no ``feature_info``, or a number out of range.
    """
    channels = map_channels(feature_info)
    if kind == "linear":
        return LinearHead(channels[-1], num_classes, drop_rate)
    if kind == "mlp":
        return MlpHead(channels[-1], num_classes, width, drop_rate)
    if kind == "cross-layer":
        return CrossLayerHead(feature_info, width, num_classes, drop_rate)
    raise UsageError(f"head {kind!r}: choose one of {', '.join(KINDS)}")
