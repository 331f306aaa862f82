"""From a network and images to named features, in one pass for all blocks."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from densefeat.base import choose_device, choose_precision, describe_error
from densefeat.errors import BackendError, DecodeError, UnknownRange, UsageError
from densefeat.features.calibration import Calibration, measure_cosines
from densefeat.features.engines.choose import LOG, build_engine, choose_backend, list_candidates, needs_proof
from densefeat.features.engines.engine import BlockOutput, Engine, EngineSpec
from densefeat.features.engines.foldable import NotFoldable
from densefeat.features.engines.folded import fold_network
from densefeat.features.engines.openvino.quantize import quantize_network
from densefeat.features.engines.quantized import QuantizedNetwork
from densefeat.features.engines.snapshot import Snapshot
from densefeat.features.forward import eval_mode, full_float32, run_network
from densefeat.features.grid import GridRule
from densefeat.features.pooling import Pool, parse_pools
from densefeat.features.proof import Trial, compare_features, try_backend
from densefeat.features.taps import Tap, find_taps
from densefeat.images import MEMORY, ChannelStats, Geometry, ImageLike, PixelRule, Preprocessing, check_decoder, open_image
from densefeat.loading import load_network
from densefeat.nets import state_sha256
from densefeat.store import column_name

_PRECISIONS = ("fp32", "bf16", "int8")
_BATCH_SIZE = 32  # images prepared at a time inside one call
_MAPS = parse_pools("none")
_CPU_CHUNK = 8  # images a pass on the CPU: larger maps leave its caches, and glibc maps fresh pages for each


class FeatureExtractor:
    """The features of images from any blocks of a network, in one pass that stops after the last requested block.

    Args:
        model: A name (``"densefeat_densenet121"``, any timm name), loaded with its published weights; a run's folder; or a
            module: a network of ours or any with timm's ``feature_info``. A module is moved to the device and keeps its mode.
        blocks: ``"all"``, or block numbers from 1.
        pool: ``"avg"``, ``"max"``, ``"gem"`` (``"gem:P"`` for a power other than 3), ``"none"``, or several.
        tap: ``"norm"``: what the next stage reads, a block's output after the BatchNorm and ReLU that follow it.
            ``"raw"``: the block's own output. DelugeNet: the cross-layer sum after its BatchNorm (after the last block with
            ReLU), or the last composite layer's output. Other models have one tap a block, their ``feature_info`` module.
        weights: A checkpoint file instead of the published weights.
        device: ``"auto"`` (a GPU if there is one; for a module, its own device), or a name of torch's.
        precision: ``"fp32"``; ``"bf16"`` (autocast; features are pooled and returned in float32); or ``"int8"`` (by OpenVINO on
            a CPU, for networks of ours; :meth:`calibrate` comes first). A CPU that would emulate bf16, several times slower,
            computes in fp32: a line in the log says so, and the attribute ``precision`` is what is used.
        image_size: Side of the square input in pixels; None for the weights' own.
        backend: What computes the features: ``"reference"``, the plain network; ``"buffer"`` and ``"openvino"`` on a CPU,
            ``"triton"`` on a GPU: the same numbers faster, for networks of ours. ``"auto"``: the fastest that can run here
            (OpenVINO where it is installed). When weights change, the engine is built again. For a module on the CPU every
            change is noticed; otherwise those that torch counts, which are all but writes through ``.data`` and numpy.
        decoder: Reads image files. ``"torchvision"`` decodes and resizes JPEGs faster and leaves the rest to Pillow;
            ``"pillow"`` equals timm's evaluation transform bit for bit. With either, Pillow resizes PIL images and
            torchvision resizes tensors.
        in_chans: How many channels the network reads; others than three are adapted from the weights as timm does.
        pixels: Which channels of an image are read, and what is black and white; None: as the weights expect, or by
            :class:`densefeat.PixelRule`'s defaults.
        channel_stats: Mean and deviation of each channel in place of the weights' own.

    Raises:
        UsageError: An argument that is unknown, or does not fit this network.
        WeightsError: Weights that cannot be fetched or do not fit.
    """

    def __init__(
        self,
        model: str | nn.Module = "densefeat_densenet121",
        blocks: str | int | Sequence[int] = "all",
        pool: str | Sequence[str] = "avg",
        tap: str = "norm",
        weights: str | Path | None = None,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        image_size: int | None = None,
        decoder: str = "torchvision",
        backend: str = "auto",
        in_chans: int | None = None,
        pixels: PixelRule | None = None,
        channel_stats: ChannelStats | None = None,
    ) -> None:
        if precision not in _PRECISIONS:
            raise UsageError(f"precision {precision!r}: choose one of {', '.join(_PRECISIONS)}")
        check_decoder(decoder)
        self.blocks, self.pool, self.tap = blocks, pool, tap
        self.image_size, self.decoder = image_size, decoder
        self.pixels, self._channel_stats = pixels, channel_stats
        self.pools = parse_pools(pool)
        if isinstance(model, nn.Module) and device == "auto":
            self.device = next(model.parameters(), torch.empty(0)).device
        else:
            self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        network = load_network(model, weights, in_chans=in_chans)
        self.model, self.provenance = network.model, network.provenance
        self.taps = find_taps(self.model, blocks, tap)
        self.model.to(self.device)
        self._is_own_model = isinstance(model, nn.Module)
        if not self._is_own_model:
            self.model.to(memory_format=torch.channels_last)
        self._requested_backend = backend
        self.backend = choose_backend(backend, self.model, self._engine_spec())
        self._cached_engine: CachedEngine | None = None
        self._grid_extractor: FeatureExtractor | None = None
        self._calibration: Calibration | None = None

    def __call__(
        self,
        images: torch.Tensor | ImageLike | Sequence[ImageLike],
        pool: str | Sequence[str] | None = None,
        output_device: str | torch.device = "cpu",
        output_dtype: torch.dtype = torch.float32,
    ) -> dict[str, torch.Tensor]:
        """Compute features by name, in the order of the images.

        Args:
            images: PIL images, paths, tensors ``(C, H, W)`` (uint8 of three channels, or what ``pixels`` rules on), each
                prepared as the weights require; or one float tensor ``(N, C, H, W)``, which is used as it is.
            pool: Replaces the extractor's ``pool`` in this call.
            output_device, output_dtype: Device and dtype of the results.

        Returns:
            ``{"block1": (N, C1), …}``, maps ``(N, C1, H1, W1)`` where pool is ``"none"``; with several pools
            ``{"block1_avg": …, "block1_max": …}``.

        Raises:
            UsageError: Not images.
            DecodeError: An image that cannot be read; the message has its position in the sequence.
        """
        pools = self.pools if pool is None else parse_pools(pool)
        parts = [
            {name: value.to(output_device, output_dtype) for name, value in self.forward(batch, pools).items()}
            for batch in self._batches(images)
        ]
        return _concat_features(parts)

    def grid(
        self,
        images: torch.Tensor | ImageLike | Sequence[ImageLike],
        blocks: Sequence[int] = (2, 3),
        stride: int = 8,
        *,
        average: bool = False,
        normalize: bool = False,
        dims: int | None = None,
        output_device: str | torch.device = "cpu",
    ) -> torch.Tensor:
        """Compute the features of some blocks at every position of one grid: float32 ``(N, D, h, w)``.

        Args:
            images: As of :meth:`__call__`.
            blocks: Block numbers, not limited to the extractor's own ``blocks``; the pass ends after the last of them.
            stride, average, normalize, dims: See :class:`densefeat.features.GridRule`, which also says what a position stands
                for.
            output_device: Device of the result, the only tensor that grows with the number of images.

        Raises as :meth:`__call__` does, UsageError also for blocks, a stride or dims that are out of range.
        """
        rule = GridRule(tuple(blocks), stride, average, normalize, dims)
        parts = [self.forward_grid(batch, rule).to(output_device) for batch in self._batches(images)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forward_grid(self, x: torch.Tensor, rule: GridRule) -> torch.Tensor:
        """Turn prepared images ``(N, C, H, W)`` into a float32 grid ``(N, D, h, w)`` on the extractor's device."""
        maps = self._with_blocks(rule.blocks).forward(x, _MAPS)
        return rule.combine(list(maps.values()), *x.shape[2:])

    def _with_blocks(self, blocks: Sequence[int]) -> "FeatureExtractor":
        """Return this extractor or, for other blocks, a copy that shares its network; the last copy is kept."""
        taps = find_taps(self.model, blocks, self.tap)
        if taps == self.taps:
            return self
        if self._grid_extractor is None or self._grid_extractor.taps != taps:
            self._grid_extractor = copy.copy(self)
            self._grid_extractor.taps = taps
            self._grid_extractor.backend = choose_backend(
                self._requested_backend, self.model, self._grid_extractor._engine_spec()
            )
        return self._grid_extractor

    def _batches(self, images: Any) -> Iterator[torch.Tensor]:
        """Split any accepted kind of images into normalised batches."""
        if isinstance(images, torch.Tensor) and images.is_floating_point() and images.ndim != 3:
            if images.ndim != 4 or len(images) == 0:
                raise UsageError(f"float images of shape {tuple(images.shape)}: pass (N, C, H, W), already normalised")
            yield from images.split(_BATCH_SIZE)
            return
        if isinstance(images, str | Path | Image.Image) or (isinstance(images, torch.Tensor) and images.ndim == 3):
            images = [images]
        if not isinstance(images, Iterable) or not (items := list(images)):
            raise UsageError("no images: pass PIL images, paths, uint8 tensors (3, H, W) or one float tensor (N, C, H, W)")
        for start in range(0, len(items), _BATCH_SIZE):
            yield self.prepare(items[start : start + _BATCH_SIZE], start)

    def prepare(self, images: Sequence[ImageLike], first: int = 0) -> torch.Tensor:
        """Turn images of any accepted kind into one normalised float32 batch ``(N, C, size, size)``.

        Positions in the messages of errors count from ``first``.
        """
        pixels = []
        for i, image in enumerate(images, first):
            try:
                with MEMORY.hold():
                    pixels.append(self._geometry(open_image(image, self.decoder, self.preprocessing.pixels)))
            except (DecodeError, UnknownRange) as error:
                where = f" ({image})" if isinstance(image, str | Path) else ""
                message = f"image {i}{where}: {error}"
                raise (
                    DecodeError(message, error.stage) if isinstance(error, DecodeError) else UnknownRange(message)
                ) from error
        return self.preprocessing.normalize(torch.stack(pixels).to(self.device))

    def forward(self, x: torch.Tensor, pools: dict[str, Pool] | None = None) -> dict[str, torch.Tensor]:
        """Turn prepared images ``(N, C, H, W)`` on any device into float32 features on the extractor's, without gradient."""
        pools = self.pools if pools is None else pools
        if x.ndim != 4:
            raise UsageError(f"images of shape {tuple(x.shape)}: pass (N, C, H, W)")
        return self._forward_by(self._get_engine(x) if len(x) else None, x, pools)

    def _forward_by(self, cached: "CachedEngine | None", x: torch.Tensor, pools: dict[str, Pool]) -> dict[str, torch.Tensor]:
        """Compute by an engine or, without one, by the plain network."""
        run = self._run_plain_network if cached is None else partial(self._run_engine, cached)
        return _concat_features([run(chunk, pools) for chunk in x.split(self._chunk_size(cached, pools, len(x)))])

    def _chunk_size(self, cached: "CachedEngine | None", pools: dict[str, Pool], images: int) -> int:
        """Return how many images go through one pass.

        Engines split a batch themselves, except for maps, which they return whole.
        """
        if self.device.type != "cpu" or (cached is not None and set(pools) == {"avg"}):
            return max(1, images)
        return _CPU_CHUNK if cached is None else max(_CPU_CHUNK, torch.get_num_threads())

    def _run_plain_network(self, x: torch.Tensor, pools: dict[str, Pool]) -> dict[str, torch.Tensor]:
        dtype = next((p.dtype for p in self.model.parameters()), x.dtype)
        x = x.to(self.device, dtype, memory_format=torch.channels_last)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        features: dict[str, torch.Tensor] = {}

        def pool_maps(tap: Tap, maps: torch.Tensor) -> None:
            if maps.ndim != 4:
                raise UsageError(f"{tap.name} of {type(self.model).__name__} is no map: its shape is {tuple(maps.shape)}")
            for name, pool in pools.items():
                features[column_name(tap.name, name, len(pools))] = pool(maps.float())

        with torch.no_grad(), eval_mode(self.model), autocast, full_float32(self.device):
            run_network(self.model, self.taps, x, pool_maps)
        return features

    def _run_engine(self, cached: "CachedEngine", x: torch.Tensor, pools: dict[str, Pool]) -> dict[str, torch.Tensor]:
        x = x.to(self.device, torch.float32)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            outputs = cached.engine(x, mean="avg" in pools, maps=bool(set(pools) - {"avg"}))
            return {
                column_name(tap.name, name, len(pools)): _pool_output(output, name, pool)
                for tap, output in zip(cached.ordered_taps, outputs, strict=True)
                for name, pool in pools.items()
            }

    def _get_engine(self, x: torch.Tensor) -> "CachedEngine | None":
        """Return the engine for the current weights and taps, built again if they have changed.

        None: the plain network computes. One that has to prove itself is compared with that on ``x (N, C, H, W)``.

        Raises BackendError where the requested backend can no longer run this model, or not in this process, or is not equal.
        """
        if self.backend != "reference" and (self._cached_engine is None or not self._cached_engine.is_current(self.taps)):
            self._cached_engine = self._build_engine()
            if self._cached_engine is not None and needs_proof(self.backend, self.model):
                self._check_engine(self._cached_engine, x[:_CPU_CHUNK])
        return None if self.backend == "reference" else self._cached_engine

    def _check_engine(self, cached: "CachedEngine", x: torch.Tensor) -> None:
        found, expected = (self._forward_by(each, x, self.pools) for each in (cached, None))
        _, reason = compare_features(found, expected, self.precision, self.device)
        if reason is not None:
            self._cached_engine = None
            raise BackendError(f"backend {self.backend!r}: {reason}: choose backend 'reference'")

    def prove(self, images: torch.Tensor | Sequence[ImageLike]) -> list[Trial]:
        """Look whether a faster backend than the plain network is right on these images, and faster; from then on use it.

        For the backend ``"auto"``, where it has chosen the plain network: on a GPU, and for networks that are not ours.

        Args:
            images: As of :meth:`__call__`, a batch like those to come.

        Returns:
            What was measured of each candidate, one line of which is logged; empty where there are none.
        """
        if self._requested_backend != "auto" or self.backend != "reference":
            return []
        x = next(self._batches(images))
        plain = partial(self._forward_by, None, x, self.pools)
        trials, best = [], None
        for backend, obstacle in list_candidates(self.model, self._engine_spec()).items():
            cached, trial = self._try_backend(backend, obstacle, x, plain)
            trials.append(trial)
            LOG.info(trial.describe())
            if trial.refused is None and (best is None or (trial.speed or 0) > best):
                best, self.backend, self._cached_engine = trial.speed, backend, cached
        return trials

    def _try_backend(
        self, backend: str, obstacle: str | None, x: torch.Tensor, plain: Callable[[], dict[str, torch.Tensor]]
    ) -> tuple["CachedEngine | None", Trial]:
        if obstacle is not None:
            return None, Trial(backend, obstacle)
        built: list[CachedEngine] = []

        def build() -> Callable[[], dict[str, torch.Tensor]]:
            built.append(self._cache_engine(build_engine(backend, self.model, self._engine_spec())))
            return partial(self._forward_by, built[0], x, self.pools)

        trial = try_backend(backend, plain, build, self.precision, self.device)
        return (built[0] if built else None), trial

    def use_backend(self, backend: str) -> None:
        """Compute by another backend from now on. Raises BackendError where it cannot run this network here."""
        self.backend = choose_backend(backend, self.model, self._engine_spec())
        self._requested_backend, self._cached_engine = backend, None

    def _build_engine(self) -> "CachedEngine | None":
        spec = self._engine_spec()
        quantized = self._get_quantized() if self.precision == "int8" else None
        try:
            engine = build_engine(self.backend, self.model, spec, quantized)
        except (NotFoldable, BackendError):  # the model has changed since, or this process was forked from the first one
            self.backend = choose_backend(self._requested_backend, self.model, spec)
            if self.backend == "reference":
                return None
            engine = build_engine(self.backend, self.model, spec, quantized)
        return self._cache_engine(engine)

    def _cache_engine(self, engine: Engine) -> "CachedEngine":
        snapshot = Snapshot(self.model, thorough=self._is_own_model)
        return CachedEngine(engine, list(self.taps), self._ordered_taps(), snapshot, os.getpid())

    def calibrate(self, images: torch.Tensor | Sequence[ImageLike]) -> None:
        """Quantise the network to int8, by the values that its maps take on a few hundred images like those to come.

        ``images``: as of :meth:`__call__`; all of them are held in memory, prepared.

        Raises:
            UsageError: The extractor's precision is not int8, or the images are not such.
            BackendError: NNCF is not installed, or the weights are not finite.
        """
        if self.precision != "int8":
            raise UsageError(f"precision {self.precision!r} needs no calibration: make the extractor with precision='int8'")
        prepared = [image for batch in self._batches(images) for image in batch.split(1)]
        self.use_quantized(quantize_network(fold_network(self.model), self._engine_spec(), prepared))

    def compare_to_float32(self, images: torch.Tensor | Sequence[ImageLike]) -> dict[str, torch.Tensor]:
        """Measure what int8 changes: for each block the cosine of each image's average-pooled features to float32's, ``(N,)``.

        ``images``: as of :meth:`__call__`, others than those of the calibration. Raises UsageError before there was one.
        """
        own = build_engine(self.backend, self.model, self._engine_spec(), self._get_quantized())
        plain = build_engine(self.backend, self.model, replace(self._engine_spec(), precision="fp32"))
        cosines = measure_cosines(own, plain, self._batches(images))
        return {tap.name: values for tap, values in zip(self._ordered_taps(), cosines, strict=True)}

    def use_quantized(self, network: QuantizedNetwork) -> None:
        """Compute by a network that :meth:`calibrate` made of the same weights, blocks and tap, perhaps in another process."""
        self._calibration = Calibration(network, list(self.taps), state_sha256(self.model))
        self._cached_engine = None

    @property
    def quantized(self) -> QuantizedNetwork | None:
        """The network in int8, once there is one."""
        return None if self._calibration is None else self._calibration.network

    def _get_quantized(self) -> QuantizedNetwork:
        """Return the network in int8. Raises UsageError where there is none for the current weights and taps."""
        if self._calibration is None:
            raise UsageError("precision 'int8' has to be calibrated first: call calibrate(images) with a few hundred images")
        return self._calibration.check(self.model, self.taps)

    def _engine_spec(self) -> EngineSpec:
        every = find_taps(self.model, "all", self.tap)
        return EngineSpec(tuple(every.index(tap) for tap in self._ordered_taps()), self.tap, self.precision, self.device)

    def _ordered_taps(self) -> list[Tap]:
        """Return the requested taps in the network's order, in which engines return them."""
        return [tap for tap in find_taps(self.model, "all", self.tap) if tap in self.taps]

    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Find the shape of each feature of one image, at the size of :attr:`preprocessing`, by a pass over a blank image."""
        size = self.preprocessing.size
        blank = self.preprocessing.make_blank(1, self.device)
        try:
            features = self._run_plain_network(
                self.preprocessing.normalize(blank), self.pools
            )  # an engine would be built first
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            reason = describe_error(error)
            raise UsageError(f"{type(self.model).__name__} cannot take images of {size}×{size} pixels: {reason}") from error
        return {name: tuple(value.shape[1:]) for name, value in features.items()}

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights' file or, where that is not known, of the model's current tensors."""
        return self.provenance["weights"]["sha256"] or state_sha256(self.model)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that the weights were trained with, at ``image_size`` if that is set."""
        return Preprocessing.for_model(self.model, self.image_size, self.pixels, self._channel_stats)

    @cached_property
    def _geometry(self) -> Geometry:
        return self.preprocessing.geometry()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the engine, whose threads belong to this process; a copy builds one for itself."""
        return self.__dict__ | {"_cached_engine": None, "_grid_extractor": None}


@dataclass(frozen=True)
class CachedEngine:
    """An engine with the taps, the weights and the process that it was built for."""

    engine: Engine
    taps: list[Tap]
    ordered_taps: list[Tap]  # in the order of the engine's outputs
    snapshot: Snapshot
    process: int

    def is_current(self, taps: list[Tap]) -> bool:
        return self.process == os.getpid() and self.taps == taps and self.snapshot.is_current()


def _pool_output(output: BlockOutput, name: str, pool: Pool) -> torch.Tensor:
    """Take an engine's own mean, or pool its maps."""
    vectors = output.mean if name == "avg" else None if output.maps is None else pool(output.maps.float())
    assert vectors is not None  # the engine was called for one of the two
    return vectors


def _concat_features(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
