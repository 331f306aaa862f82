"""The numbers of a job's preprocessing that its images decide: percentiles of the range, mean and deviation of the channels."""

import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from densefeat.base import Interrupted, Ranks, progress_bar, stop_on_signal
from densefeat.extraction.changes import refuse_other_settings
from densefeat.extraction.plan import has_nothing
from densefeat.extraction.settings import JobInput
from densefeat.features import FeatureExtractor
from densefeat.images import (
    ChannelStats,
    PixelRule,
    PixelStatistics,
    Preprocessing,
    complete_preprocessing,
    measure_values,
    read_channel_stats,
)
from densefeat.store import Layout, Manifest, is_store, load_measured, open_store, save_measured

_SAVED_EVERY = 10  # seconds


@dataclass(frozen=True)
class Measuring:
    """A pass over all images of a job. ``layout``: where it is kept while it runs; None: nowhere, for a single file."""

    input: JobInput
    threads: int
    layout: Layout | None
    ranks: Ranks

    def complete(self, preprocessing: Preprocessing, fit: bool) -> Preprocessing:
        """Measure what the range leaves open and, to ``fit``, mean and deviation of the channels in that range.

        Raises as :func:`densefeat.images.measuring.complete_preprocessing` and ``measure_values`` do; Interrupted after Ctrl-C,
        with what was measured saved for the same call.
        """
        return complete_preprocessing(preprocessing, fit, self._measure, self.input.images)

    def _measure(self, rule: PixelRule) -> PixelStatistics:
        tiling = self.input.tiling
        source = tiling.open_pages(self.input.listing)
        identity = self._identify(rule)
        earlier = load_measured(self.layout, identity) if self.layout else None
        done, statistics = (earlier[0], PixelStatistics.from_arrays(earlier[1])) if earlier else (0, PixelStatistics())
        total = None if source.length is None else source.length - done
        saved = time.monotonic()
        with stop_on_signal() as stop, progress_bar("measuring", total, "images", show=self.ranks.rank == 0) as move:

            def advance(count: int) -> bool:
                nonlocal done, saved
                done += count
                move(count)
                if stop or time.monotonic() - saved > _SAVED_EVERY:
                    self._save(identity, done, statistics)
                    saved = time.monotonic()
                return not stop

            items = source.items(done, source.length or 2**62)
            measure_values(items, rule, statistics, self.threads, tiling.max_pixels, advance)
        if stop:
            message = "interrupted while the images were measured; the same command (without --overwrite) goes on there"
            raise Interrupted(message, stop.exit_code)
        return statistics

    def _save(self, identity: str, done: int, statistics: PixelStatistics) -> None:
        if self.layout is not None and self.ranks.rank == 0:
            save_measured(self.layout, identity, done, statistics.to_arrays())

    def _identify(self, rule: PixelRule) -> str:
        facts = [self.input.fingerprint, rule.to_json(), self.input.tiling.max_pixels, self.input.tiling.pages]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def settle_preprocessing(extractor: FeatureExtractor, fit: bool, earlier: Manifest | None, measuring: Measuring) -> None:
    """Set the numbers of an extractor's preprocessing that the images decide.

    ``fit``: mean and deviation are among them; ``earlier``: the manifest of a store that is gone on with. Raises UsageError
    where that was started by another rule, before anything is measured; UsageError and Interrupted as
    :meth:`Measuring.complete` does.
    """
    if fit:
        blank = ChannelStats.make_blank(getattr(extractor.model, "in_chans", 3))
        requested = Preprocessing.for_model(extractor.model, extractor.image_size, extractor.pixels, blank)
    else:
        requested = extractor.preprocessing
    if fit or requested.pixels.must_be_measured:
        kept = None
        if earlier is not None and measuring.layout is not None and not has_nothing(measuring.layout, earlier):
            recorded = Preprocessing.from_json(earlier.settings["preprocessing"], "the store")
            rules = [{"pixels": replace(rule, bounds=None).to_json()} for rule in (recorded.pixels, requested.pixels)]
            refuse_other_settings(measuring.layout, *rules)
            kept = _keep_measured(requested, fit, recorded, earlier.provenance.get("channel_stats") == "fit")
        extractor.preprocessing = kept or measuring.complete(requested, fit)


def _keep_measured(requested: Preprocessing, fit: bool, recorded: Preprocessing, was_fitted: bool) -> Preprocessing | None:
    """Take the numbers that a store of the same rule was started with; None where they were not measured.

    Images that are added to a store are converted as those before, whatever their own percentiles are.
    """
    if requested.pixels.must_be_measured and recorded.pixels.bounds is None:
        return None
    if not fit:
        return replace(requested, pixels=recorded.pixels)
    return replace(requested, pixels=recorded.pixels, mean=recorded.mean, std=recorded.std) if was_fitted else None


def load_channel_stats(source: str | Path | ChannelStats | None) -> ChannelStats | None:
    """Read mean and deviation of the channels from a JSON file, or from a store that was made with them, by its pixel rule.

    Raises UsageError for anything else.
    """
    if source is None or isinstance(source, ChannelStats):
        return source
    if not is_store(source):
        return read_channel_stats(Path(source))
    recorded = Preprocessing.from_json(open_store(source).provenance.get("preprocessing"), f"store {str(source)!r}")
    return ChannelStats(recorded.mean, recorded.std, recorded.pixels)
