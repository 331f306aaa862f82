"""A network behind the backend that computes its features: which one, its engine, and whether that is still the right one."""

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from densefeat.errors import BackendError, UsageError
from densefeat.features.calibration import Calibration, measure_cosines
from densefeat.features.engines.choose import LOG, build_engine, choose_backend, list_candidates, needs_proof
from densefeat.features.engines.engine import BlockOutput, Engine, EngineSpec
from densefeat.features.engines.foldable import NotFoldable
from densefeat.features.engines.folded import fold_network
from densefeat.features.engines.openvino.quantize import quantize_network
from densefeat.features.engines.quantized import QuantizedNetwork
from densefeat.features.engines.snapshot import Snapshot
from densefeat.features.forward import eval_mode, full_float32, run_network
from densefeat.features.pooling import Pool
from densefeat.features.proof import Trial, compare_features, try_backend
from densefeat.features.taps import Tap, list_taps
from densefeat.nets import state_sha256
from densefeat.store import column_name

_CPU_CHUNK = 8  # images a pass on the CPU: larger maps leave its caches, and glibc maps fresh pages for each
_Features = dict[str, torch.Tensor]


class FeatureNetwork:
    """A network that computes the features of some of its blocks.

    Args:
        model: On ``device``.
        taps: Where features are read; they may be replaced between calls.
        tap, precision, backend: As in FeatureExtractor; ``precision`` is the one to compute in.
        device: Where it computes.
        thorough: Whether every change of the weights is to be noticed, see Snapshot.

    Raises BackendError where the backend cannot run this network here.
    """

    def __init__(
        self, model: nn.Module, taps: list[Tap], tap: str, precision: str, device: torch.device, backend: str, thorough: bool
    ) -> None:
        self.model, self.taps, self.tap = model, taps, tap
        self.precision, self.device, self._thorough = precision, device, thorough
        self._requested = backend
        self.backend = choose_backend(backend, model, self._spec())
        self._cached: CachedEngine | None = None
        self._proved: set[torch.Size] = set()  # sizes of images for which the engine was compared with the plain network
        self._calibration: Calibration | None = None

    def with_taps(self, taps: list[Tap]) -> "FeatureNetwork":
        """Return a copy for other taps, which shares the model."""
        other = copy.copy(self)
        other.taps, other._cached = taps, None
        other.backend = choose_backend(self._requested, self.model, other._spec())
        return other

    def compute(self, x: torch.Tensor, pools: dict[str, Pool]) -> _Features:
        """Turn images ``(N, C, H, W)`` into float32 features by name, without gradient."""
        return self._compute_by(self._get_engine(x, pools) if len(x) else None, x, pools)

    def _compute_by(self, cached: "CachedEngine | None", x: torch.Tensor, pools: dict[str, Pool]) -> _Features:
        """Compute by an engine or, without one, by the plain network."""
        run = self.compute_plainly if cached is None else partial(self._run_engine, cached)
        return concat_features([run(chunk, pools) for chunk in x.split(self._chunk_size(cached, pools, len(x)))])

    def _chunk_size(self, cached: "CachedEngine | None", pools: dict[str, Pool], images: int) -> int:
        """Return how many images go through one pass.

        Engines split a batch themselves, except for maps, which they return whole.
        """
        if self.device.type != "cpu" or (cached is not None and set(pools) == {"avg"}):
            return max(1, images)
        return _CPU_CHUNK if cached is None else max(_CPU_CHUNK, torch.get_num_threads())

    def compute_plainly(self, x: torch.Tensor, pools: dict[str, Pool]) -> _Features:
        """Compute as :meth:`compute` does, by the plain network, whatever the backend."""
        dtype = next((p.dtype for p in self.model.parameters()), x.dtype)
        x = x.to(self.device, dtype, memory_format=torch.channels_last)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        features: _Features = {}

        def pool_maps(tap: Tap, maps: torch.Tensor) -> None:
            if maps.ndim != 4:
                raise UsageError(f"{tap.name} of {type(self.model).__name__} is no map: its shape is {tuple(maps.shape)}")
            for name, pool in pools.items():
                features[column_name(tap.name, name, len(pools))] = pool(maps.float())

        with torch.no_grad(), eval_mode(self.model), autocast, full_float32(self.device):
            run_network(self.model, self.taps, x, pool_maps)
        return features

    def _run_engine(self, cached: "CachedEngine", x: torch.Tensor, pools: dict[str, Pool]) -> _Features:
        x = x.to(self.device, torch.float32)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            outputs = cached.engine(x, mean="avg" in pools, maps=bool(set(pools) - {"avg"}))
            return {
                column_name(tap.name, name, len(pools)): _pool_output(output, name, pool)
                for tap, output in zip(cached.ordered_taps, outputs, strict=True)
                for name, pool in pools.items()
            }

    def _get_engine(self, x: torch.Tensor, pools: dict[str, Pool]) -> "CachedEngine | None":
        """Return the engine for the current weights and taps, built again if they have changed.

        None: the plain network computes. An engine that has to prove itself is compared with that on ``x (N, C, H, W)``, once
        for each size of images.

        Raises BackendError where the requested backend can no longer run this model, or not in this process, or is not equal.
        """
        if self.backend != "reference" and (self._cached is None or not self._cached.is_current(self.taps)):
            self._cached, self._proved = self._build_engine(), set()
        if self._cached is not None and needs_proof(self.backend, self.model) and x.shape[1:] not in self._proved:
            self._check_engine(self._cached, x[:_CPU_CHUNK], pools)
            self._proved.add(x.shape[1:])
        return None if self.backend == "reference" else self._cached

    def _check_engine(self, cached: "CachedEngine", x: torch.Tensor, pools: dict[str, Pool]) -> None:
        try:
            found, expected = (self._compute_by(each, x, pools) for each in (cached, None))
            _, reason = compare_features(found, expected, self.precision, self.device)
        except BackendError as error:  # a traced network may not take images of every size
            reason = str(error).removeprefix(f"backend {self.backend!r}: ")
        if reason is None:
            return
        self._cached = None
        if self._requested != "auto":
            raise BackendError(f"backend {self.backend!r}: {reason}: choose backend 'reference'")
        LOG.warning("backend: reference (%s: %s)", self.backend, reason)
        self.backend = "reference"

    @property
    def has_candidates(self) -> bool:
        """Whether :meth:`prove` has a backend to try that can run here."""
        return self._is_undecided() and None in list_candidates(self.model, self._spec()).values()

    def _is_undecided(self) -> bool:
        return self._requested == "auto" and self.backend == "reference"

    def keep_backend(self) -> None:
        """Raise BackendError from now on where the backend cannot compute or is not equal, instead of taking another."""
        self._requested = self.backend

    def prove(self, x: torch.Tensor, pools: dict[str, Pool]) -> list[Trial]:
        """Look whether a faster backend than the plain network is right on images ``(N, C, H, W)``; from then on use it.

        See :meth:`densefeat.FeatureExtractor.prove`.
        """
        if not self._is_undecided():
            return []
        plain = partial(self._compute_by, None, x, pools)
        trials, best = [], None
        for backend, obstacle in list_candidates(self.model, self._spec()).items():
            cached, trial = self._try_backend(backend, obstacle, plain, x, pools)
            trials.append(trial)
            LOG.info(trial.describe())
            if trial.refused is None and (best is None or (trial.speed or 0) > best):
                best, self.backend, self._cached, self._proved = trial.speed, backend, cached, {x.shape[1:]}
        return trials

    def _try_backend(
        self, backend: str, obstacle: str | None, plain: Callable[[], _Features], x: torch.Tensor, pools: dict[str, Pool]
    ) -> tuple["CachedEngine | None", Trial]:
        if obstacle is not None:
            return None, Trial(backend, obstacle)
        built: list[CachedEngine] = []

        def build() -> Callable[[], _Features]:
            built.append(self._cache_engine(build_engine(backend, self.model, self._spec())))
            return partial(self._compute_by, built[0], x, pools)

        trial = try_backend(backend, plain, build, self.precision, self.device)
        return (built[0] if built else None), trial

    def use_backend(self, backend: str) -> None:
        """Compute by another backend from now on. Raises BackendError where it cannot run this network here."""
        self.backend = choose_backend(backend, self.model, self._spec())
        self._requested, self._cached = backend, None

    def _build_engine(self) -> "CachedEngine | None":
        spec = self._spec()
        quantized = self._get_quantized() if self.precision == "int8" else None
        try:
            engine = build_engine(self.backend, self.model, spec, quantized)
        except (NotFoldable, BackendError):  # the model has changed since, or this process was forked from the first one
            self.backend = choose_backend(self._requested, self.model, spec)
            if self.backend == "reference":
                return None
            engine = build_engine(self.backend, self.model, spec, quantized)
        return self._cache_engine(engine)

    def _cache_engine(self, engine: Engine) -> "CachedEngine":
        snapshot = Snapshot(self.model, thorough=self._thorough)
        return CachedEngine(engine, list(self.taps), self._ordered_taps(), snapshot, os.getpid())

    def calibrate(self, batches: Iterable[torch.Tensor]) -> None:
        """Quantise the network to int8 on prepared images, see :meth:`densefeat.FeatureExtractor.calibrate`."""
        if self.precision != "int8":
            raise UsageError(f"precision {self.precision!r} needs no calibration: make the extractor with precision='int8'")
        prepared = [image for batch in batches for image in batch.split(1)]
        self.use_quantized(quantize_network(fold_network(self.model), self._spec(), prepared))

    def compare_to_float32(self, batches: Iterable[torch.Tensor]) -> _Features:
        """Measure what int8 changes on prepared images, see :meth:`densefeat.FeatureExtractor.compare_to_float32`."""
        own = build_engine(self.backend, self.model, self._spec(), self._get_quantized())
        plain = build_engine(self.backend, self.model, replace(self._spec(), precision="fp32"))
        cosines = measure_cosines(own, plain, batches)
        return {tap.name: values for tap, values in zip(self._ordered_taps(), cosines, strict=True)}

    def use_quantized(self, network: QuantizedNetwork) -> None:
        """Compute by a network that :meth:`calibrate` made of the same weights, blocks and tap, perhaps in another process."""
        self._calibration = Calibration(network, list(self.taps), state_sha256(self.model))
        self._cached = None

    @property
    def quantized(self) -> QuantizedNetwork | None:
        """The network in int8, once there is one."""
        return None if self._calibration is None else self._calibration.network

    def _get_quantized(self) -> QuantizedNetwork:
        """Return the network in int8. Raises UsageError where there is none for the current weights and taps."""
        if self._calibration is None:
            raise UsageError("precision 'int8' has to be calibrated first: call calibrate(images) with a few hundred images")
        return self._calibration.check(self.model, self.taps)

    def _spec(self) -> EngineSpec:
        every = list_taps(self.model, self.tap)
        return EngineSpec(tuple(every.index(tap) for tap in self._ordered_taps()), self.tap, self.precision, self.device)

    def _ordered_taps(self) -> list[Tap]:
        """Return the requested taps in the network's order, in which engines return them."""
        return [tap for tap in list_taps(self.model, self.tap) if tap in self.taps]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the engine, whose threads belong to this process; a copy builds one for itself."""
        return self.__dict__ | {"_cached": None}


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


def concat_features(parts: list[_Features]) -> _Features:
    """Concatenate the features of several groups of images."""
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
