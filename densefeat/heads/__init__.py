"""What is learnt on top of features: probes by protocol, the cross-layer aggregation head, and how good they are."""

from densefeat.heads.cross_layer import CrossLayerHead

__all__ = ["CrossLayerHead"]
