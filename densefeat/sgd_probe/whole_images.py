"""The maps of whole images, read again where a store would be too large for them: to standardise, to choose, and to test."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from densefeat.base import count_usable_cores
from densefeat.errors import DensefeatError
from densefeat.extraction import Decoding, decode_batches, embed_batches
from densefeat.features import FeatureExtractor
from densefeat.images import SelectedSource, Source
from densefeat.labels import TRAIN
from densefeat.probing import AttentiveHead, Head, ProbeData
from densefeat.sgd_probe.attentive_heads import AttentiveHeads, ChannelMoments
from densefeat.sgd_probe.learning import locate_images
from densefeat.training import World

_BATCH = 32  # images a pass
_MOMENTS_OF = 1000  # training images
_EPSILON = 1e-6  # added to variances, as in AIM

_Maps = dict[str, np.ndarray]


@dataclass(frozen=True)
class WholeImages:
    """The labelled images of a probe as an extraction reads them. ``sources``: those of the probe's stores, in their order."""

    sources: Sequence[Source]
    data: ProbeData
    extractor: FeatureExtractor
    world: World

    def measure_channels(self) -> dict[str, ChannelMoments]:
        """Measure each channel over the positions of at most 1,000 training images, by column. All ranks must call it."""
        train = np.flatnonzero(self.data.parts == TRAIN)
        chosen = train[np.linspace(0, len(train) - 1, min(_MOMENTS_OF, len(train))).astype(np.int64)]
        sums: dict[str, torch.Tensor] = {}
        for maps in self._read(self._share(chosen)):
            for name, x in maps.items():
                values = torch.from_numpy(x).flatten(2).double()
                number = torch.full((values.shape[1],), values.shape[0] * values.shape[2], dtype=torch.float64)
                added = torch.stack([number, values.sum((0, 2)), values.square().sum((0, 2))])
                sums[name] = sums[name] + added if name in sums else added
        shapes = self.extractor.feature_shapes()
        return {name: _to_moments(self.world.sum(sums.get(name, torch.zeros(3, shape[0], dtype=torch.float64))))
                for name, shape in shapes.items()}  # fmt: skip

    def score_rates(self, heads: AttentiveHeads, part: int, advance: Callable[[int], None]) -> dict[str, np.ndarray]:
        """Score the images of a part by the heads of all rates: float32 ``(R, n, K)`` by candidate, on every rank."""
        device = self.world.device

        def score(maps: _Maps) -> dict[str, np.ndarray]:
            features = {name: torch.from_numpy(x).to(device) for name, x in maps.items()}
            return {name: heads.scores(name, features).cpu().numpy() for name in heads.candidates}

        scores = self._score(part, score, advance)
        return {name: values.transpose(1, 0, 2) for name, values in scores.items()}

    def score_heads(
        self,
        candidates: Mapping[str, tuple[str, ...]],
        heads: Mapping[str, Head],
        part: int,
        advance: Callable[[int], None],
    ) -> dict[str, np.ndarray]:
        """Score the images of a part by one head of each candidate: float32 ``(n, K)`` by candidate, on every rank."""

        def score(maps: _Maps) -> dict[str, np.ndarray]:
            found = {}
            for name, head in heads.items():
                assert isinstance(head, AttentiveHead)
                found[name] = head.scores([maps[column] for column in candidates[name]])
            return found

        return self._score(part, score, advance)

    def _score(
        self, part: int, score: Callable[[_Maps], dict[str, np.ndarray]], advance: Callable[[int], None]
    ) -> dict[str, np.ndarray]:
        """Score the images of a part, each rank its share; return all scores, in the order of the rows."""
        pieces = []
        for maps in self._read(self._share(np.flatnonzero(self.data.parts == part))):
            pieces.append(score(maps))
            advance(len(next(iter(maps.values()))))
        gathered = [piece for rank in self.world.gather_objects(pieces) for piece in rank]
        return {name: np.concatenate([piece[name] for piece in gathered]) for name in gathered[0]}

    def _share(self, rows: np.ndarray) -> np.ndarray:
        return np.array_split(rows, self.world.size)[self.world.rank]

    def _read(self, rows: np.ndarray) -> Iterator[_Maps]:
        """Yield the maps of labelled rows, ascending, some at a time. Raises DensefeatError for an image that is gone."""
        first = 0
        for source, store in zip(self.sources, self.data.stores, strict=True):
            stored = self.data.labelled.rows[rows]
            own = rows[(stored >= first) & (stored < first + len(store))]
            first += len(store)
            yield from self._read_source(source, [self.data.labelled.paths[row] for row in own])

    def _read_source(self, source: Source, paths: list[str]) -> Iterator[_Maps]:
        preprocessing = self.extractor.preprocessing
        items = SelectedSource(source, locate_images(source, paths)).items(0, len(paths))
        decoding = Decoding(preprocessing.geometry(), self.extractor.decoder, rule=preprocessing.pixels)
        with (
            ThreadPoolExecutor(count_usable_cores()) as pool,
            closing(decode_batches(items, _BATCH, decoding, pool, ahead=0)) as batches,
            closing(embed_batches(batches, self.extractor, "float32")) as results,
        ):
            for batch, features in results:
                if batch.failures:
                    failure = batch.failures[0]
                    raise DensefeatError(f"{failure.path} could be read before, and cannot now: {failure.reason}")
                yield features


def _to_moments(sums: torch.Tensor) -> ChannelMoments:
    """Turn count, sum and sum of squares ``(3, C)`` into moments."""
    mean = sums[1] / sums[0]
    square = sums[2] / sums[0]
    variance = square - mean.square()
    varies = variance > 1e-12 * square
    scale = torch.where(varies, (variance.clamp(min=0) + _EPSILON).rsqrt(), 0.0)
    return ChannelMoments(mean.float(), scale.float())
