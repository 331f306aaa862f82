"""The heads of probes as modules, which compute the same as they do in numpy."""

from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import torch
from torch import nn

from densefeat.errors import UsageError, WeightsError
from densefeat.labels import Targets
from densefeat.probing import LEAST_SHARE, AttentiveHead, Head, KnnHead, LayersHead, LinearHead, normalize_layers, pool_maps

_MAX_BANK = 2**28  # bytes of the rows that vote


class HeadModule(nn.Module):
    """A head: from columns by name to the features that its last step uses, ``(N, R)``, and scores ``(N, K)``.

    ``reads``: the channels of each column that :meth:`forward` is given, ascending; columns without any are left out.
    ``uses``: the channels of each column whose features are used, ascending; None where features are not of one channel each.
    """

    def __init__(self, reads: dict[str, np.ndarray], uses: dict[str, np.ndarray] | None) -> None:
        super().__init__()
        self.reads, self.uses = reads, uses

    def forward(self, columns: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.use(*(columns[name] for name in self.reads))
        return features, self.score(features)

    def use(self, *columns: torch.Tensor) -> torch.Tensor:
        return torch.cat(columns, 1)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def make_head_module(head: Head, widths: Mapping[str, int]) -> HeadModule:
    """Make the module of a head. ``widths``: the number of channels of each of its columns, in their order.

    Raises WeightsError for a head of another number of features, UsageError for neighbours that are too many for a graph.
    """
    if isinstance(head, AttentiveHead):
        return _Attention(head, widths)
    size = sum(widths.values())
    expected = sum(head.widths) if isinstance(head, LayersHead) else _count_features(head)
    if size != expected:
        raise WeightsError(f"the probe reads {expected} features, and its network makes {size}: damaged, or of another network")
    if isinstance(head, LayersHead):
        return _Layers(head, widths)
    return _Linear(head, widths) if isinstance(head, LinearHead) else _Neighbours(head, widths)


def compute_features(head: Head, columns: list[np.ndarray]) -> np.ndarray:
    """Compute in numpy the features that the last step of a head uses, ``(n, R)``, from its columns ``(n, C, …)``."""
    if isinstance(head, AttentiveHead):
        return np.concatenate([pool_maps(*arrays) for arrays in zip(columns, head.queries, head.values, strict=True)], axis=1)
    x = np.concatenate(columns, axis=1)
    if isinstance(head, LayersHead):
        normalize_layers(x, head.widths)
        return x[:, head.kept]
    return x[:, _find_weighted(head)] if isinstance(head, LinearHead) else x


def _count_features(head: LinearHead | KnnHead) -> int:
    return (head.weight if isinstance(head, LinearHead) else head.features).shape[1]


def _find_weighted(head: LinearHead) -> np.ndarray:
    """Find the features that have a weight other than 0; all, if none has."""
    weighted = np.flatnonzero(head.weight.any(0))
    return weighted if len(weighted) else np.arange(head.weight.shape[1])


def _split_positions(positions: np.ndarray, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Split positions among columns side by side into channels of each; columns without any are left out."""
    starts = accumulate(widths.values(), initial=0)
    pairs = zip(widths.items(), starts, strict=False)
    split = {name: positions[(positions >= start) & (positions < start + width)] - start for (name, width), start in pairs}
    return {name: channels for name, channels in split.items() if len(channels)}


def _make_linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(weight)), requires_grad=False)
    linear.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)
    return linear


class _Linear(HeadModule):
    """A linear head on the features that have weights."""

    def __init__(self, head: LinearHead, widths: Mapping[str, int]) -> None:
        weighted = _find_weighted(head)
        reads = _split_positions(weighted, widths)
        super().__init__(reads, reads)
        self.linear = _make_linear(head.weight[:, weighted], head.bias)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features)


class _Layers(HeadModule):
    """The head of the protocol ``layers``: whole layers are read, since each is divided by its length."""

    members: torch.Tensor
    kept: torch.Tensor

    def __init__(self, head: LayersHead, widths: Mapping[str, int]) -> None:
        layers = np.repeat(np.arange(len(head.widths)), head.widths)
        read = np.flatnonzero(np.isin(layers, layers[head.kept]))
        super().__init__(_split_positions(read, widths), _split_positions(head.kept, widths))
        _, places = np.unique(layers[read], return_inverse=True)
        self.register_buffer("members", torch.eye(places.max() + 1)[torch.from_numpy(places)])  # (R, layers), 0 or 1
        self.register_buffer("kept", torch.from_numpy(np.searchsorted(read, head.kept)))
        self.linear = _make_linear(head.weight, head.bias)

    def use(self, *columns: torch.Tensor) -> torch.Tensor:
        x = torch.cat(columns, 1)
        length = (x.square() @ self.members).sqrt()
        lengths = torch.where(length > 0, length, 1.0) @ self.members.T
        return (x / lengths).index_select(1, self.kept)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features)


class _Neighbours(HeadModule):
    """The votes of the nearest rows."""

    rows: torch.Tensor
    votes: torch.Tensor

    def __init__(self, head: KnnHead, widths: Mapping[str, int]) -> None:
        rows, size = head.features.shape
        if 4 * rows * max(size, len(head.targets.classes)) > _MAX_BANK:
            raise UsageError(
                f"a probe of {rows:,} neighbours of {size:,} features is too large for a graph, which holds"
                f" {_MAX_BANK >> 20} MiB of them: fit it by another protocol, or on fewer rows or blocks"
            )
        reads = _split_positions(np.arange(size), widths)
        super().__init__(reads, reads)
        self.k, self.temperature, self.task = head.k, head.temperature, head.targets.task
        self.register_buffer("rows", torch.from_numpy(head.features.astype(np.float32)))
        self.register_buffer("votes", torch.from_numpy(_list_votes(head.targets)))

    def score(self, features: torch.Tensor) -> torch.Tensor:
        length = features.square().sum(1, keepdim=True).sqrt()
        cosines = features / torch.where(length > 0, length, 1.0) @ self.rows.T
        similarity, near = cosines.topk(self.k)
        weights = ((similarity - 1) / self.temperature).softmax(1)
        shares = (weights[:, :, None] * self.votes[near]).sum(1)
        if self.task == "single":
            return shares.clamp(min=LEAST_SHARE).log()
        return shares - 0.5 if self.task == "multi" else shares


def _list_votes(targets: Targets) -> np.ndarray:
    """List what each row votes for, float32 ``(n, K)``; of a regression its value, ``(n, 1)``."""
    if targets.task == "regression":
        return targets.values.astype(np.float32)[:, None]
    if targets.task == "multi":
        return targets.values.astype(np.float32)
    return np.eye(len(targets.classes), dtype=np.float32)[targets.values]


class _Attention(HeadModule):
    """Pooling of maps by learnt queries."""

    def __init__(self, head: AttentiveHead, widths: Mapping[str, int]) -> None:
        channels = [query.shape[1] for query in head.queries]
        if channels != list(widths.values()):
            raise WeightsError(f"the probe reads maps of {channels} channels, and its network makes {list(widths.values())}")
        super().__init__({name: np.arange(width) for name, width in widths.items()}, None)
        self.queries = nn.ParameterList(nn.Parameter(torch.from_numpy(query), requires_grad=False) for query in head.queries)
        self.values = nn.ParameterList(nn.Parameter(torch.from_numpy(value), requires_grad=False) for value in head.values)
        self.linear = _make_linear(head.weight, head.bias)

    def use(self, *columns: torch.Tensor) -> torch.Tensor:
        return torch.cat([_attend(*tensors) for tensors in zip(columns, self.queries, self.values, strict=True)], 1)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features)


def _attend(maps: torch.Tensor, queries: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Pool ``(N, C, H, W)`` by M queries ``(M, C)`` and their values ``(M, d, C)`` to ``(N, M·d)``."""
    x = maps.flatten(2)
    pooled = (queries @ x).softmax(2) @ x.transpose(1, 2)
    return (pooled[:, :, None] @ values.transpose(1, 2)).flatten(1)
