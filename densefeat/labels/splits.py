"""Which rows train, choose and test: stratified, with groups kept together, the same for the same seed."""

import hashlib
from collections.abc import Sequence

import numpy as np

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets

PARTS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
_TEST_SHARE, _VAL_SHARE = 0.2, 0.1  # of all rows; of those that are left
_ROUNDS = 2  # in which groups may change sides
_QUANTILES = 10  # that the values of a regression are held out by


def split_rows(targets: Targets, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """int8 ``(n,)``, positions in ``PARTS``: 20 % test, of the rest 10 % validation. Else as :func:`hold_out`."""
    parts = np.full(len(targets), TRAIN, np.int8)
    parts[hold_out(targets, _TEST_SHARE, seed, groups)] = TEST
    return hold_out_validation(targets, parts, seed, groups)


def hold_out_validation(targets: Targets, parts: np.ndarray, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The parts, with 10 % of the training rows as validation."""
    train = np.flatnonzero(parts == TRAIN)
    chosen = hold_out(targets.take(train), _VAL_SHARE, seed + 1, None if groups is None else groups[train])
    parts = parts.copy()
    parts[train[chosen]] = VAL
    return parts


def hold_out(targets: Targets, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """bool ``(n,)``: the rows to hold out, about ``share`` of every class, and at least one row of a class on either side.

    A class of one row is not held out. Rows of several labels count for the rarest of them, the values of a regression for
    their tenth of the order. ``groups`` ``(n,)`` of anything sortable: rows that stay together (a patient's images); the share
    and the classes are then met as well as whole groups can. UsageError where there are fewer than two rows, or groups.
    """
    if not 0 < share < 1:
        raise UsageError(f"share {share} to hold out: more than 0, less than 1")
    if len(targets) < 2:
        raise UsageError(f"{len(targets)} rows with a label cannot be split: give more, or a --split-column")
    order = np.random.default_rng(seed)
    strata = _stratify(targets)
    if groups is None:
        return _hold_out_rows(strata, share, order)
    members = np.unique(groups, return_inverse=True)[1]
    if members.max() == 0:
        raise UsageError(f"all {len(targets)} rows are of one group: they cannot be split")
    if members.max() == len(members) - 1:
        return _hold_out_rows(strata, share, order)
    return _hold_out_groups(strata, members, share, order)


def _stratify(targets: Targets) -> np.ndarray:
    """int64 ``(n,)``, 0 to their number: what the two sides should have alike shares of."""
    values = targets.values
    if targets.task == "regression":
        ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        codes = ranks * max(1, min(_QUANTILES, len(values) // 2)) // len(values)
    elif targets.task == "multi":
        counts = values.sum(0)
        rarity = np.where(values, counts, len(values) + 1)
        codes = np.where(values.any(1), rarity.argmin(1), values.shape[1])
    else:
        codes = values
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def _hold_out_rows(strata: np.ndarray, share: float, order: np.random.Generator) -> np.ndarray:
    """The share is met to a row, but for strata so small that they have to give or keep one."""
    sizes = np.bincount(strata)
    quota = np.floor(share * sizes).astype(np.int64)
    left = round(share * len(strata)) - int(quota.sum())
    quota[np.argsort(-(share * sizes - quota), kind="stable")[:left]] += 1
    quota = np.clip(quota, np.minimum(1, sizes - 1), sizes - 1)
    if not quota.any():  # strata of one row each
        quota[order.permutation(len(sizes))[: max(1, round(share * len(sizes)))]] = 1
    shuffled = order.permutation(len(strata))
    shuffled = shuffled[np.argsort(strata[shuffled], kind="stable")]
    rank = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    out = np.zeros(len(strata), bool)
    out[shuffled] = rank < np.repeat(quota, sizes)
    return out


def _hold_out_groups(strata: np.ndarray, members: np.ndarray, share: float, order: np.random.Generator) -> np.ndarray:
    """Groups in turn, large ones first, each put where it brings the strata nearer to their share; and once more."""
    sizes = np.bincount(members)
    contents = _group_contents(strata, members)
    wanted = (share * np.bincount(strata)).tolist()
    held, chosen = [0] * len(wanted), np.zeros(len(sizes), bool)
    shuffled = order.permutation(len(sizes))
    for group in np.tile(shuffled[np.argsort(-sizes[shuffled], kind="stable")], _ROUNDS).tolist():
        sign = -1 if chosen[group] else 1
        if _cost_change(contents[group], held, wanted, sign) < 0:
            chosen[group] = sign > 0
            for stratum, count in contents[group]:
                held[stratum] += sign * count
    _put_strata_on_both_sides(chosen, contents, held, wanted, sizes)
    return chosen[members]


def _group_contents(strata: np.ndarray, members: np.ndarray) -> list[list[tuple[int, int]]]:
    """Of each group its strata and the rows of each."""
    pairs, counts = np.unique(np.stack([members, strata], 1), axis=0, return_counts=True)
    contents: list[list[tuple[int, int]]] = [[] for _ in range(int(members.max()) + 1)]
    for (group, stratum), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        contents[group].append((stratum, count))
    return contents


def _cost_change(content: Sequence[tuple[int, int]], held: list[int], wanted: list[float], sign: int) -> float:
    """How much further from the shares (squared, relative to each) the rows held out are with, or without (-1), a group."""
    return sum(count * (count + 2 * sign * (held[k] - wanted[k])) / wanted[k] for k, count in content)


def _put_strata_on_both_sides(
    chosen: np.ndarray, contents: list[list[tuple[int, int]]], held: list[int], wanted: list[float], sizes: np.ndarray
) -> None:
    """Change the side of a group for each stratum that is on one side alone, if none else loses its side by that."""
    owners: list[list[int]] = [[] for _ in held]
    for group, content in enumerate(contents):
        for stratum, _ in content:
            owners[stratum].append(group)
    for stratum in sorted(range(len(held)), key=lambda k: (len(owners[k]), k)):
        sides = {bool(chosen[group]) for group in owners[stratum]}
        if len(owners[stratum]) < 2 or len(sides) == 2:
            continue
        sign = -1 if True in sides else 1
        movable = [group for group in owners[stratum] if _can_move(group, chosen, contents, owners)]
        if movable:
            best = min(movable, key=lambda group: (_cost_change(contents[group], held, wanted, sign), int(sizes[group]), group))
            chosen[best] = ~chosen[best]
            for k, count in contents[best]:
                held[k] += sign * count
    if chosen.all() or not chosen.any():  # of no stratum two groups
        smallest = int(sizes.argmin())
        chosen[smallest] = ~chosen[smallest]


def _can_move(group: int, chosen: np.ndarray, contents: list[list[tuple[int, int]]], owners: list[list[int]]) -> bool:
    """Whether each of a group's strata keeps another group on this group's side."""
    return all(any(other != group and chosen[other] == chosen[group] for other in owners[k]) for k, _ in contents[group])


def split_sha256(paths: Sequence[str], parts: np.ndarray) -> str:
    """Of the (path, part) pairs in their order as text: two splits of the same images are the same where this is."""
    pairs = sorted(zip(paths, parts.tolist(), strict=True))
    digest = hashlib.sha256()
    for path, part in pairs:
        digest.update(f"{path}\0{PARTS[part]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
