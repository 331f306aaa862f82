"""The pixel rule of a run: what its recipe says, and what has to be measured on the training images."""

from collections.abc import Callable

from densefeat.base import count_usable_cores
from densefeat.errors import UsageError
from densefeat.images import (
    PHOTOGRAPHS,
    ChannelStats,
    PixelRule,
    PixelStatistics,
    Preprocessing,
    complete_preprocessing,
    measure_values,
    parse_channels,
)
from densefeat.training.classic import DecodedImages
from densefeat.training.labelled import LabelledImages
from densefeat.training.recipe import Run

_FIT = "fit"


def make_pixel_rule(recipe: Run) -> PixelRule | None:
    """Make the rule of a recipe; None for the weights' own. Raises UsageError for values without a meaning."""
    channels = None if recipe.channels is None else parse_channels(str(recipe.channels))
    rule = PixelRule(recipe.range, channels, nodata=recipe.nodata, icc=recipe.icc)
    return None if rule == PHOTOGRAPHS else rule


def read_recipe_stats(recipe: Run, channels: int) -> ChannelStats | None:
    """Read the mean and deviation that a recipe names; None for the weights' own. Those that are to be fitted are blank."""
    if recipe.channel_stats == _FIT:
        return ChannelStats.make_blank(channels)
    if recipe.channel_stats is None:
        return None
    from densefeat.extraction import load_channel_stats  # needs packages that training on photographs does without

    return load_channel_stats(recipe.channel_stats)


def measure_training_images(
    recipe: Run, preprocessing: Preprocessing, train: LabelledImages, advance: Callable[[int], None]
) -> Preprocessing:
    """Complete a preprocessing by what the recipe leaves to the training images: percentiles, mean and deviation.

    Raises UsageError where they cannot be measured, and UnknownRange.
    """
    rule, fit = preprocessing.pixels, recipe.channel_stats == _FIT
    if not (rule.must_be_measured or fit):
        return preprocessing
    if isinstance(train, DecodedImages):
        raise UsageError(f"{train.name} holds pictures of 8 bits in three channels: leave out ranges and channels")

    def measure(rule: PixelRule) -> PixelStatistics:
        def go_on(count: int) -> bool:
            advance(count)
            return True

        items = train.source.items(0, len(train.labels))
        return measure_values(items, rule, PixelStatistics(), count_usable_cores(), advance=go_on)

    return complete_preprocessing(preprocessing, fit, measure, recipe.train)
