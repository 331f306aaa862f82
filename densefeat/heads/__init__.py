"""What is learnt on top of features: probes by protocol, the cross-layer aggregation head, and how good they are."""
