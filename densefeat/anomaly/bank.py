"""PatchCore: a memory bank of features of good images, and the distances of another image's positions to it.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, arXiv 2106.08265.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

_NEIGHBOURS = 9  # b of the paper's equation 7
_QUERIES = 512  # compared with the bank at a time: 10 MB for a bank of 5,000
_CONSIDERED = 1024  # points that may be chosen next
_SAME = 1e-6  # of the largest squared distance: what is nearer differs by rounding alone


class MemoryBank(nn.Module):
    """Features of positions of good images: ``arrays["features"]``, float16 ``(M, D)``, no two the same."""

    center: torch.Tensor
    bank: torch.Tensor

    def __init__(self, features: np.ndarray) -> None:
        super().__init__()
        self.arrays = {"features": features}
        whole = features.astype(np.float32)
        # the mean is taken off everything: squares of what is far from 0 lose digits
        self.register_buffer("center", torch.from_numpy(whole.mean(0)))
        self.register_buffer("bank", torch.from_numpy(whole) - self.center)

    def forward(self, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Measure grids, float32 ``(N, D, h, w)``: return scores of images ``(N,)`` and distances of positions ``(N, h, w)``.

        A position's distance is the Euclidean distance to the nearest feature of the bank. An image's score is the largest of
        these, weighted by how isolated that nearest feature is in the bank (section 3.3, equation 7).
        """
        count, dims, height, width = grid.shape
        queries = grid.permute(0, 2, 3, 1).reshape(-1, dims) - self.center
        nearest = self._find_nearest(queries)
        distances = (queries - self.bank[nearest]).norm(dim=1).view(count, height * width)
        rows = distances.argmax(1) + torch.arange(count, device=grid.device) * height * width
        scores = _weigh(queries[rows], nearest[rows], self.bank) * distances.amax(1)
        return scores, distances.view(count, height, width)

    def _find_nearest(self, queries: torch.Tensor) -> torch.Tensor:
        """Return the row of the bank that is nearest to each query ``(n, D)``: int64 ``(n,)``."""
        if torch.compiler.is_exporting():  # a graph has no loop over pieces whose number depends on the number of images
            return _compare(queries, self.bank).argmin(1)
        buffer = queries.new_empty(min(_QUERIES, len(queries)), len(self.bank))  # one for all pieces: new pages are slow
        pieces = queries.split(_QUERIES)
        return torch.cat([_compare(piece, self.bank, buffer[: len(piece)]).argmin(1) for piece in pieces])


def _compare(queries: torch.Tensor, bank: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return half of the squared distances ``(n, M)``, less half of the queries' own squares: the order is the same."""
    return torch.addmm(bank.square().sum(1) / 2, queries, bank.T, alpha=-1, out=out)


def _weigh(queries: torch.Tensor, nearest: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Compute the weights ``(n,)`` of queries ``(n, D)`` whose nearest features have these rows in the bank.

    ``1 - exp(d*) / sum(exp(d))`` over the distances d to the 9 features around the nearest one, itself among them.
    """
    around = _compare(bank[nearest], bank)
    around.scatter_(1, nearest[:, None], -torch.inf)
    rows = around.topk(min(_NEIGHBOURS, len(bank)), largest=False).indices
    distances = (queries[:, None] - bank[rows]).norm(dim=2)
    return 1 - torch.softmax(distances, 1)[:, 0]  # the first is the nearest itself


def choose_coreset(points: np.ndarray, count: int, advance: Callable[[int], None] = lambda _: None) -> np.ndarray:
    """Choose rows of points so that every point is near a chosen one: int64 ``(count,)``, in the order of choice.

    Greedy k-centre (section 3.2, algorithm 1): the first is the point farthest from the mean, each next the one farthest from
    those chosen. As points are chosen, the distance to the nearest one only shrinks, so earlier distances are upper bounds:
    only the points with the largest bounds are compared again, and the choice is the same. ``points``: float32 ``(n, d)``.
    Fewer rows are returned where all other points are copies of chosen ones.
    """
    centred = torch.from_numpy(points - points.mean(0))
    squares = centred.square().sum(1)
    least = _SAME * float(squares.max())
    chosen = [int(squares.argmax())]
    bounds = torch.addmv(squares, centred, centred[chosen[0]], alpha=-2).add_(squares[chosen[0]])
    bounds[chosen[0]] = -1  # rounding does not choose it again
    compared = torch.ones(len(points), dtype=torch.int64)  # with how many of the chosen
    advance(1)
    while len(chosen) < min(count, len(points)):
        values, rows = bounds.topk(min(_CONSIDERED + 1, len(points)))
        rest = float(values[-1]) if len(values) > _CONSIDERED else -1.0  # no other point is farther
        rows = rows[:_CONSIDERED]
        near, lengths = centred[rows], squares[rows]
        centers = torch.tensor(chosen[int(compared[rows].min()) :], dtype=torch.int64)
        distances = bounds[rows]
        if len(centers):
            found = torch.addmm(squares[centers], near, centred[centers].T, alpha=-2).amin(1).add_(lengths)
            distances = torch.where(distances < 0, distances, torch.minimum(distances, found))
        before = len(chosen)
        while len(chosen) < count and float(farthest := distances.max()) > least and farthest >= rest:
            place = int(distances.argmax())
            chosen.append(int(rows[place]))
            found = torch.addmv(lengths, near, near[place], alpha=-2).add_(lengths[place])
            distances = torch.where(distances < 0, distances, torch.minimum(distances, found))
            distances[place] = -1
        bounds[rows], compared[rows] = distances, len(chosen)
        advance(len(chosen) - before)
        if max(float(distances.max()), rest) <= least:
            break
    return np.array(chosen, np.int64)
