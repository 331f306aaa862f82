"""Scores of linear heads, taken apart into the terms of their sum: over positions of maps, channels and blocks.

A linear head on averaged maps gives a class k the score ``b_k + Σ_c w_kc · mean_p x_cp``, which is ``b_k`` and a sum over
positions p of ``Σ_c w_kc x_cp / (h·w)``: the *evidence* for k at p. The scores of most other heads of probes are sums over
positions, too, if what they compute from the whole image is held fixed: the norm by which ``layers`` divides, the attention by
which ``attentive`` weighs positions. No gradient is taken, and evidence and bias add up to the score.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from densefeat.errors import UsageError
from densefeat.evaluation import ProbeNet
from densefeat.features import parse_pools
from densefeat.images import Preprocessing
from densefeat.probing import AttentiveHead, KnnHead, LayersHead, LinearHead, scale_layers
from densefeat.store import find_source

SCORES, EVIDENCE = "scores", "evidence"  # columns
_MAPS = parse_pools("none")
_LEAST = 1e-6  # what gem takes smaller features for


class Explainer(nn.Module):
    """A network that computes scores of images ``(N, K)`` and maps ``(N, P, h, w)`` of P classes, the predicted one first.

    ``named``: the numbers of the other classes. ``maps``: the names of the maps, that of all evidence first. ``bias``:
    float ``(K,)``, added to the sum of the evidence to give the score; None for maps that do not add up to scores.
    """

    named: torch.Tensor

    def __init__(self, named: Sequence[int], maps: Sequence[str], bias: np.ndarray | None) -> None:
        super().__init__()
        self.register_buffer("named", torch.tensor(named, dtype=torch.int64))  # which identifies the store, too
        self.maps, self.bias = maps, bias

    def choose_classes(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the classes to explain, int64 ``(N, P)``: of each row the one with the highest score, then the named ones."""
        named = self.named.to(scores.device).expand(len(scores), -1)
        return torch.cat([scores.argmax(1, keepdim=True), named], dim=1)


class ProbeEvidence(Explainer):
    """The evidence of a probe: a map for each of its blocks, and their sum on the grid of the finest one.

    ``named``: class numbers, see :class:`Explainer`. Raises UsageError for a probe by nearest neighbours.
    """

    def __init__(self, behind: ProbeNet, named: Sequence[int]) -> None:
        probe = behind.probe
        if isinstance(probe.head, KnnHead):
            raise UsageError(
                f"probe {str(probe.path)!r} lets training images vote: its scores are no sums over an image; fit one with"
                " another --protocol, such as logreg"
            )
        unknown = f"probe {str(probe.path)!r} does not record the blocks of its features: probe a store of densefeat extract"
        sources = [find_source(probe.provenance, column, unknown) for column in probe.columns]
        names = {source.block: f"{EVIDENCE}_{source.block.replace('.', '_')}" for source in sources}
        super().__init__(named, [EVIDENCE, *names.values()] if len(names) > 1 else [EVIDENCE], probe.head.bias)
        self.behind, self.sources, self.names = behind, sources, names
        self.head: LinearHead | LayersHead | AttentiveHead = probe.head

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Turn images ``(N, C, H, W)`` into scores and maps. Raises UsageError if the features are not the probe's."""
        by_block = self.behind.extractor.forward(x, _MAPS)
        columns = [by_block[source.block] for source in self.sources]
        pools = [next(iter(parse_pools(source.pool or "avg").values())) for source in self.sources]
        pooled = [pool(column).cpu().numpy() for pool, column in zip(pools, columns, strict=True)]
        own = self.behind.probe.scores(dict(zip(self.behind.probe.columns, pooled, strict=True)))
        scores = torch.from_numpy(own.reshape(len(x), -1))
        chosen = self.choose_classes(scores)
        parts: dict[str, torch.Tensor] = {}
        for source, evidence in zip(self.sources, self._weigh(columns, pooled, chosen), strict=True):
            parts[source.block] = parts[source.block] + evidence if source.block in parts else evidence
        shape = max((part.shape[2:] for part in parts.values()), key=lambda shape: shape[0] * shape[1])
        total = torch.stack([spread_maps(part, shape) for part in parts.values()]).sum(0)
        by_name = {self.names[block]: part for block, part in parts.items()} if len(parts) > 1 else {}
        return {SCORES: scores, EVIDENCE: total, **by_name}

    def _weigh(self, columns: list[torch.Tensor], pooled: list[np.ndarray], chosen: torch.Tensor) -> list[torch.Tensor]:
        """Return the evidence of each column, ``(N, P, h, w)``, for classes ``(N, P)``."""
        if isinstance(self.head, AttentiveHead):
            return _weigh_attended(self.head, columns, chosen)
        rows = _choose_weights(self.head, pooled, chosen.cpu())
        found, start = [], 0
        for source, column, vectors in zip(self.sources, columns, pooled, strict=True):
            stop = start + vectors[0].size
            shares = _split_pooled(column, source.pool or "avg")
            places = rows[:, :, start:stop].to(column.device)
            if vectors.ndim == 4:  # features of positions, each with its own weights
                found.append(torch.einsum("npchw,nchw->nphw", places.unflatten(2, column.shape[1:]), shares))
            else:
                found.append(torch.einsum("npc,nchw->nphw", places, shares))
            start = stop
        return found


def _choose_weights(head: LinearHead | LayersHead, pooled: list[np.ndarray], chosen: torch.Tensor) -> torch.Tensor:
    """Return the weight of each feature for classes ``(N, P)``, ``(N, P, D)``; ``layers`` has others for each image."""
    if isinstance(head, LinearHead):
        return torch.from_numpy(head.weight)[chosen]
    weight = np.zeros((len(head.weight), sum(head.widths)), np.float32)
    weight[:, head.kept] = head.weight
    x = np.concatenate([part.reshape(len(part), -1) for part in pooled], axis=1)
    return torch.from_numpy(weight)[chosen] * torch.from_numpy(scale_layers(x, head.widths).astype(np.float32))[:, None]


def _weigh_attended(head: AttentiveHead, columns: list[torch.Tensor], chosen: torch.Tensor) -> list[torch.Tensor]:
    """Return the evidence of each column: positions' values, weighed by the attention that the head pays to them."""
    found, start = [], 0
    for column, query, value in zip(columns, head.queries, head.values, strict=True):
        queries, count, size = torch.from_numpy(query).to(column.device), *value.shape[:2]
        weight = torch.from_numpy(head.weight[:, start : start + count * size])[chosen.cpu()].unflatten(2, (count, size))
        read = torch.einsum("npmd,mdc->npmc", weight, torch.from_numpy(value)).to(column.device)
        x = column.flatten(2)
        attention = (queries @ x).softmax(2)  # (N, M, positions)
        evidence = (torch.einsum("npmc,ncs->npms", read, x) * attention[:, None]).sum(2)
        found.append(evidence.unflatten(2, column.shape[2:]))
        start += count * size
    return found


class NetworkEvidence(Explainer):
    """The evidence of a network's own linear classifier on its averaged last map. ``named``: see :class:`Explainer`."""

    def __init__(self, network: Any, named: Sequence[int]) -> None:
        bias = network.get_classifier().bias
        super().__init__(named, [EVIDENCE], np.zeros(network.num_classes) if bias is None else bias.detach().cpu().numpy())
        self.network = network

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.network.forward_features(x)
        scores = self.network.forward_head(maps)
        weight = self.network.get_classifier().weight[self.choose_classes(scores)]
        return {SCORES: scores, EVIDENCE: torch.einsum("npc,nchw->nphw", weight, maps) / maps[0, 0].numel()}


def averages_maps(network: Any, preprocessing: Preprocessing) -> bool:
    """Check on noise whether a network's logits are those of a linear classifier on its averaged last map."""
    if not (hasattr(network, "forward_features") and hasattr(network, "get_classifier")):
        return False
    classifier = network.get_classifier()
    x = torch.randn(preprocessing.make_blank(1).shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = network.forward_features(x)
        if not isinstance(classifier, nn.Linear) or maps.ndim != 4 or maps.shape[1] != classifier.in_features:
            return False
        logits = network(x)
        return torch.allclose(classifier(maps.mean((2, 3))), logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


def _split_pooled(maps: torch.Tensor, pool: str) -> torch.Tensor:
    """Divide pooled features among positions: ``(N, C, h, w)`` like the maps, whose sum over positions is what the pool gives.

    ``avg``: each position's part of the mean. ``max``: the largest, at its positions. ``gem:P``: by shares in the sum of P-th
    powers, which is feature times gradient, since this mean is homogeneous. ``none``: the maps themselves.
    """
    name, _, power = pool.partition(":")
    if name == "max":
        largest = maps.amax((2, 3), keepdim=True)
        places = (maps == largest).float()
        return largest * places / places.sum((2, 3), keepdim=True)
    if name == "gem":
        powers = maps.clamp(min=_LEAST).double().pow(float(power or 3))
        mean = powers.mean((2, 3), keepdim=True).pow(1 / float(power or 3))
        return (mean * powers / powers.sum((2, 3), keepdim=True)).float()
    return maps if name == "none" else maps / maps[0, 0].numel()


def spread_maps(maps: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Spread maps ``(…, h, w)`` to a finer grid ``(…, *shape)`` without changing their sums.

    This is the transpose of bilinear averaging between grids: the value of a position is shared among the finer positions
    around it, by the weights with which they would be averaged.
    """
    for axis, size in zip((-2, -1), shape, strict=True):
        if maps.shape[axis] != size:
            identity = torch.eye(size, device=maps.device)[None, None]
            weights = functional.interpolate(
                identity, (maps.shape[axis], size), mode="bilinear", align_corners=False, antialias=True
            )
            maps = (maps.transpose(axis, -1) @ weights[0, 0]).transpose(axis, -1)
    return maps
