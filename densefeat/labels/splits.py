"""Splits into training, validation and test rows: stratified, with groups kept together, equal for equal seeds.

scikit-learn's splitters do not meet this: StratifiedShuffleSplit refuses classes of one row, GroupShuffleSplit does not
stratify, and StratifiedGroupKFold may leave a class out of one side. Besides, results.json records the SHA-256 of the split,
and a probe that is resumed or compared later has to find the same one for its seed.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from densefeat.errors import UsageError
from densefeat.labels.targets import Targets

PARTS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
_TEST_SHARE = 0.2  # of all rows
_VAL_SHARE = 0.1  # of the rows that are not for testing
_ROUNDS = 2  # passes over the groups; in each pass a group may change sides
_QUANTILES = 10  # strata of the values of a regression


def split_rows(targets: Targets, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Assign each row a position in ``PARTS``, int8 ``(n,)``: 20 % are for testing, 10 % of the rest for validation.

    Arguments and errors as :func:`hold_out`.
    """
    parts = np.full(len(targets), TRAIN, np.int8)
    parts[hold_out(targets, _TEST_SHARE, seed, groups)] = TEST
    return hold_out_validation(targets, parts, seed, groups)


def hold_out_validation(targets: Targets, parts: np.ndarray, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return a copy of the parts in which 10 % of the training rows are for validation."""
    train = np.flatnonzero(parts == TRAIN)
    chosen = hold_out(targets.take(train), _VAL_SHARE, seed + 1, None if groups is None else groups[train])
    parts = parts.copy()
    parts[train[chosen]] = VAL
    return parts


def hold_out(targets: Targets, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Choose rows to hold out, bool ``(n,)``: about ``share`` of every class, and at least one row of it on either side.

    A class of one row is not held out. A row with several labels counts for the rarest of them; the values of a regression
    are divided into tenths of their order.

    Args:
        groups: ``(n,)`` of a sortable type; rows of one value, such as the images of a patient, stay together. The share and
            the classes are then met as closely as the groups allow.

    Raises:
        UsageError: Fewer than two rows or groups, or a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"share {share} to hold out: it must be more than 0 and less than 1")
    if len(targets) < 2:
        raise UsageError(f"{len(targets)} rows with a label cannot be split: give more, or split them yourself")
    generator = np.random.default_rng(seed)
    strata = _stratify(targets)
    if groups is None:
        return _hold_out_rows(strata, share, generator)
    members = np.unique(groups, return_inverse=True)[1]
    if members.max() == 0:
        raise UsageError(f"all {len(targets)} rows are in one group: they cannot be split")
    if members.max() == len(members) - 1:
        return _hold_out_rows(strata, share, generator)
    return _hold_out_groups(strata, members, share, generator)


def _stratify(targets: Targets) -> np.ndarray:
    """Return the stratum of each row, int64 ``(n,)``, from 0; both sides should have the same share of a stratum."""
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


def _hold_out_rows(strata: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Hold out single rows. The share is met to a row, except where a small stratum has to give or keep one."""
    sizes = np.bincount(strata)
    quota = np.floor(share * sizes).astype(np.int64)
    left = round(share * len(strata)) - int(quota.sum())
    quota[np.argsort(-(share * sizes - quota), kind="stable")[:left]] += 1
    quota = np.clip(quota, np.minimum(1, sizes - 1), sizes - 1)
    if not quota.any():  # every stratum has one row
        quota[generator.permutation(len(sizes))[: max(1, round(share * len(sizes)))]] = 1
    shuffled = generator.permutation(len(strata))
    shuffled = shuffled[np.argsort(strata[shuffled], kind="stable")]
    rank = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    out = np.zeros(len(strata), bool)
    out[shuffled] = rank < np.repeat(quota, sizes)
    return out


def _hold_out_groups(strata: np.ndarray, members: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Hold out complete groups.

    Groups change sides one by one, large ones first, where that brings the strata nearer to their share.
    """
    sizes = np.bincount(members)
    contents = _group_contents(strata, members)
    wanted = (share * np.bincount(strata)).tolist()
    held, chosen = [0] * len(wanted), np.zeros(len(sizes), bool)
    shuffled = generator.permutation(len(sizes))
    for group in np.tile(shuffled[np.argsort(-sizes[shuffled], kind="stable")], _ROUNDS).tolist():
        sign = -1 if chosen[group] else 1
        if _cost_change(contents[group], held, wanted, sign) < 0:
            chosen[group] = sign > 0
            for stratum, count in contents[group]:
                held[stratum] += sign * count
    _put_strata_on_both_sides(chosen, contents, held, wanted, sizes)
    return chosen[members]


def _group_contents(strata: np.ndarray, members: np.ndarray) -> list[list[tuple[int, int]]]:
    """List for each group its pairs of a stratum and how many rows of it the group has."""
    pairs, counts = np.unique(np.stack([members, strata], 1), axis=0, return_counts=True)
    contents: list[list[tuple[int, int]]] = [[] for _ in range(int(members.max()) + 1)]
    for (group, stratum), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        contents[group].append((stratum, count))
    return contents


def _cost_change(content: Sequence[tuple[int, int]], held: list[int], wanted: list[float], sign: int) -> float:
    """Return how much the distance from the wanted shares grows when a group is added (``sign`` 1) or taken away (-1).

    The distance is the sum over strata of squared differences, each divided by the wanted number of rows.
    """
    return sum(count * (count + 2 * sign * (held[k] - wanted[k])) / wanted[k] for k, count in content)


def _put_strata_on_both_sides(
    chosen: np.ndarray, contents: list[list[tuple[int, int]]], held: list[int], wanted: list[float], sizes: np.ndarray
) -> None:
    """Move a group for each stratum that is on one side alone, unless that takes another stratum off a side.

    ``chosen`` and ``held`` are changed in place.
    """
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
    if chosen.all() or not chosen.any():  # no stratum has two groups
        smallest = int(sizes.argmin())
        chosen[smallest] = ~chosen[smallest]


def _can_move(group: int, chosen: np.ndarray, contents: list[list[tuple[int, int]]], owners: list[list[int]]) -> bool:
    """Return whether each stratum of a group has another group on the same side."""
    return all(any(other != group and chosen[other] == chosen[group] for other in owners[k]) for k, _ in contents[group])


def split_sha256(paths: Sequence[str], parts: np.ndarray) -> str:
    """Hash the sorted pairs of path and part: equal for equal splits of the same images."""
    pairs = sorted(zip(paths, parts.tolist(), strict=True))
    digest = hashlib.sha256()
    for path, part in pairs:
        digest.update(f"{path}\0{PARTS[part]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
