"""The choice of a learning rate for each candidate, on the validation images, which are not augmented."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from densefeat.base import progress_bar
from densefeat.errors import DensefeatError
from densefeat.labels import TEST, VAL, Targets
from densefeat.probing import ALL, ATTENTIVE, BlockFitter, Candidate, FeatureColumns, Head, ProbeFit, choose_setting
from densefeat.sgd_probe.attentive_heads import ATTENTIVE_RATES, AttentiveHeads
from densefeat.sgd_probe.parallel_heads import RATES, ParallelHeads
from densefeat.sgd_probe.whole_images import WholeImages


def name_linear(columns: FeatureColumns) -> dict[str, tuple[str, ...]]:
    """Name the linear candidates: each column alone, and all side by side."""
    alone = {name: (name,) for name in columns.widths}
    return alone | ({ALL: tuple(alone)} if len(alone) > 1 else {})


def name_attentive(columns: FeatureColumns) -> dict[str, tuple[str, ...]]:
    """Name the attentive candidates: the last block, and all blocks."""
    named = name_linear(columns)
    last = list(columns.widths)[-1]
    return {name + ATTENTIVE: named[name] for name in dict.fromkeys((last, *named)) if name in (last, ALL)}


def make_linear_candidates(heads: ParallelHeads, fitter: BlockFitter) -> Iterator[Candidate]:
    """Choose the rate of each linear candidate by the pooled features in the store."""
    for name, columns in name_linear(fitter.columns).items():
        yield fitter.candidate(name, columns, _choose_linear(heads, name, fitter, columns))


def _choose_linear(heads: ParallelHeads, name: str, fitter: BlockFitter, columns: tuple[str, ...]) -> ProbeFit:
    val = fitter.parts == VAL
    x = fitter.columns.read(columns, fitter.rows[val])

    def score(place: int) -> tuple[Head, np.ndarray]:
        head = heads.linear(name, place)
        return head, head.scores(x)

    return _choose_rate(name, RATES, score, fitter.targets.take(val))


def make_attentive_candidates(heads: AttentiveHeads, images: WholeImages, fitter: BlockFitter) -> list[Candidate]:
    """Choose the rate of each attentive candidate by maps of the validation images; then score the test images.

    All ranks must call it.
    """
    sizes, show = images.data.sizes(), images.world.first
    with progress_bar("scoring", (sizes["val"] + sizes["test"]) // images.world.size, show=show) as advance:
        scores = images.score_rates(heads, VAL, advance)
        targets, fits = fitter.targets.take(fitter.parts == VAL), {}
        for name in heads.candidates:

            def score(place: int, name: str = name) -> tuple[Head, np.ndarray]:
                return heads.head(name, place), scores[name][place]

            fits[name] = _choose_rate(name, ATTENTIVE_RATES, score, targets)
        tested = images.score_heads(heads.candidates, {name: fit.head for name, fit in fits.items()}, TEST, advance)
    return [
        Candidate(name, columns, fitter.columns.width(columns), fits[name], tested[name])
        for name, columns in heads.candidates.items()
    ]


def _choose_rate(
    name: str, rates: Sequence[float], score: Callable[[int], tuple[Head, np.ndarray]], targets: Targets
) -> ProbeFit:
    """Choose the rate that is best on the validation images. Raises DensefeatError if the heads of all rates diverged.

    ``score``: returns the head of a rate, by its position, and its scores of the validation images.
    """
    solutions = _skip_diverged(name, rates, score)
    choice, (head, _) = choose_setting("lr", solutions, lambda pair: pair[1], targets, lambda _: None)
    return ProbeFit(head, choice.chosen, choice.tried, choice.val_scores)


def _skip_diverged(
    name: str, rates: Sequence[float], score: Callable[[int], tuple[Head, np.ndarray]]
) -> Iterator[tuple[float, tuple[Head, np.ndarray]]]:
    """Yield rates with their heads and scores, without those that diverged."""
    all_diverged = True
    for place, rate in enumerate(rates):
        with np.errstate(over="ignore", invalid="ignore"):
            head, scores = score(place)
        if np.isfinite(scores).all():
            all_diverged = False
            yield rate, (head, scores)
    if all_diverged:
        raise DensefeatError(f"heads on {name!r} diverged at all {len(rates)} learning rates: use --protocol ridge")
