"""Network and images to named features: one pass, all blocks."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from densefeat.errors import BackendError, DecodeError, UsageError
from densefeat.features.engines.choose import build, choose
from densefeat.features.engines.engine import BlockOutput, Engine, EngineSpec
from densefeat.features.engines.foldable import NotFoldable
from densefeat.features.engines.snapshot import Snapshot
from densefeat.features.pooling import Pool, parse_pools
from densefeat.features.taps import Tap, find_taps
from densefeat.images import Geometry, Preprocessing, check_decoder, decode_pixels, image_tensor, rgb_image
from densefeat.loading import create_model, make_provenance
from densefeat.nets import StagedNet, state_sha256

_PRECISIONS = ("fp32", "bf16")
_BATCH_SIZE = 32  # images prepared at a time inside one call
_CPU_CHUNK = 8  # images a pass on the CPU: larger maps leave its caches, and glibc maps fresh pages for each

ImageLike = Image.Image | str | Path | torch.Tensor


class FeatureExtractor:
    """Features of images from any blocks of a network, in one pass that stops after the last block asked for.

    Args:
        model: A name (``"densefeat_densenet121"``, any timm name), made with its published weights, or a model of your own:
            a network of ours or any with timm's ``feature_info``. It is moved to the device, and left in the mode it was in.
        blocks: ``"all"``, or block numbers from 1.
        pool: ``"avg"``, ``"max"``, ``"gem"`` (``"gem:P"`` for a power other than 3), ``"none"``, or several.
        tap: ``"norm"``: what the next stage reads, a block's output after the BatchNorm and ReLU that follow it.
            ``"raw"``: the block's own output. DelugeNet: the cross-layer sum after its BatchNorm (after the last block with
            ReLU), or the last composite layer's output. Other models have one tap a block, their ``feature_info`` module.
        weights: A checkpoint file instead of the published weights.
        device: ``"auto"`` (a GPU if there is one; for a model object, where it is), or as torch names them.
        precision: ``"fp32"``, or ``"bf16"`` (autocast; features are pooled and returned in float32).
        image_size: Pixels of the square input; None for the weights' own.
        backend: What computes the features: ``"reference"``, the plain network; ``"buffer"`` and ``"openvino"`` on a CPU,
            ``"triton"`` on a GPU: the same numbers faster, for networks of ours. ``"auto"``: the fastest that can run here
            (OpenVINO where it is installed). Weights may change: the engine is then made again. Of a model object on the CPU
            every change is noticed; else those that torch counts, which are all but writes through ``.data`` and numpy.
        decoder: Of files. ``"torchvision"`` decodes and resizes JPEGs faster, all else is Pillow's; ``"pillow"`` equals timm's
            evaluation transform bit for bit. Images go through Pillow and tensors through torchvision with either.

    Raises:
        UsageError: An argument that does not exist for this network.
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
    ) -> None:
        if precision not in _PRECISIONS:
            raise UsageError(f"precision {precision!r}: choose one of {', '.join(_PRECISIONS)}")
        check_decoder(decoder)
        self.pools = parse_pools(pool)
        self.blocks, self.pool, self.tap, self.precision = blocks, pool, tap, precision
        self.image_size, self.decoder = image_size, decoder
        if isinstance(model, str):
            self.device = resolve_device(device)
            self.model, self.provenance = create_model(model, weights)
            self.taps = find_taps(self.model, blocks, tap)
            self.model.to(self.device).to(memory_format=torch.channels_last)
        elif weights is not None:
            raise UsageError("weights are for a model given by name: load them into your own with densefeat.load_weights")
        else:
            own_device = next(model.parameters(), torch.empty(0)).device
            self.device = own_device if device == "auto" else resolve_device(device)
            self.model = model.to(self.device)
            self.provenance = make_provenance(getattr(model, "made_by", type(model).__name__), "a model object", None, None)
            self.taps = find_taps(self.model, blocks, tap)
        self._asked, self._model_is_given = backend, not isinstance(model, str)
        self.backend = choose(backend, self.model, self._wanted())
        self._built: CachedEngine | None = None

    def _wanted(self) -> EngineSpec:
        every = find_taps(self.model, "all", self.tap)
        return EngineSpec(tuple(every.index(tap) for tap in self._taps_in_order()), self.tap, self.precision, self.device)

    def _taps_in_order(self) -> list[Tap]:
        return [tap for tap in find_taps(self.model, "all", self.tap) if tap in self.taps]

    @property
    def weights_sha256(self) -> str:
        """Of the file that the weights came from; where that is not known, of the model's tensors as they are now."""
        return self.provenance["weights"]["sha256"] or state_sha256(self.model)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The weights' own, at ``image_size`` if given."""
        return Preprocessing.of(self.model, self.image_size)

    @cached_property
    def _geometry(self) -> Geometry:
        return self.preprocessing.geometry()

    def __call__(
        self,
        images: torch.Tensor | ImageLike | Sequence[ImageLike],
        pool: str | Sequence[str] | None = None,
        output_device: str | torch.device = "cpu",
        output_dtype: torch.dtype = torch.float32,
    ) -> dict[str, torch.Tensor]:
        """Features by name, in the order of the images.

        Args:
            images: PIL images, paths, uint8 tensors ``(3, H, W)``, each prepared as the weights ask; or one float tensor
                ``(N, C, H, W)``, taken as prepared.
            pool: Other than the extractor's, for this call.
            output_device, output_dtype: Of the results.

        Returns:
            ``{"block1": (N, C1), …}``, maps ``(N, C1, H1, W1)`` where pool is ``"none"``; with several pools
            ``{"block1_avg": …, "block1_max": …}``.

        Raises:
            UsageError: Not images. DecodeError: an image that cannot be read, with its place in the sequence.
        """
        pools = self.pools if pool is None else parse_pools(pool)
        parts = [
            {name: value.to(output_device, output_dtype) for name, value in self.forward(batch, pools).items()}
            for batch in self._batches(images)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def forward(self, x: torch.Tensor, pools: dict[str, Pool] | None = None) -> dict[str, torch.Tensor]:
        """Prepared images ``(N, C, H, W)`` on any device to features on the extractor's device, float32; no gradient."""
        pools = self.pools if pools is None else pools
        if x.ndim != 4:
            raise UsageError(f"images of shape {tuple(x.shape)}: pass (N, C, H, W)")
        built = self._current() if len(x) else None
        one_pass = self._forward_plain if built is None else partial(self._forward_engine, built)
        parts = [one_pass(chunk, pools) for chunk in x.split(self._images_at_once(built, pools, len(x)))]
        return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _images_at_once(self, built: "CachedEngine | None", pools: dict[str, Pool], images: int) -> int:
        """Engines know best, but for maps, which they give of all images."""
        if self.device.type != "cpu" or (built is not None and set(pools) == {"avg"}):
            return max(1, images)
        return _CPU_CHUNK if built is None else max(_CPU_CHUNK, torch.get_num_threads())

    def _forward_engine(self, built: "CachedEngine", x: torch.Tensor, pools: dict[str, Pool]) -> dict[str, torch.Tensor]:
        x = x.to(self.device, torch.float32)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            outputs = built.engine(x, mean="avg" in pools, maps=bool(set(pools) - {"avg"}))
            return {
                feature_name(tap, name, len(pools)): _pooled(output, name, function)
                for tap, output in zip(built.in_order, outputs, strict=True)
                for name, function in pools.items()
            }

    def _current(self) -> "CachedEngine | None":
        """The engine, of the weights as they are now; None: the plain network computes.

        Raises BackendError where the model or the process has become one that the backend asked for cannot serve.
        """
        built = self._built
        if self.backend != "reference" and (built is None or not built.holds(self.taps)):
            built = self._built = self._build()
        return built

    def _build(self) -> "CachedEngine | None":
        wanted = self._wanted()
        try:
            engine = build(self.backend, self.model, wanted)
        except (NotFoldable, BackendError):  # the model has changed since, or this is a process forked from the first
            self.backend = choose(self._asked, self.model, wanted)
            if self.backend == "reference":
                return None
            engine = build(self.backend, self.model, wanted)
        snapshot = Snapshot(self.model, thorough=self._model_is_given)
        return CachedEngine(engine, list(self.taps), self._taps_in_order(), snapshot, os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        """Without the engine, whose threads belong to this process: a copy makes its own."""
        return self.__dict__ | {"_built": None}

    def _forward_plain(self, x: torch.Tensor, pools: dict[str, Pool]) -> dict[str, torch.Tensor]:
        dtype = next((p.dtype for p in self.model.parameters()), x.dtype)
        x = x.to(self.device, dtype, memory_format=torch.channels_last)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        features: dict[str, torch.Tensor] = {}

        def pool_maps(tap: Tap, maps: torch.Tensor) -> None:
            if maps.ndim != 4:
                raise UsageError(f"{tap.name} of {type(self.model).__name__} is no map: its shape is {tuple(maps.shape)}")
            for name, function in pools.items():
                features[feature_name(tap, name, len(pools))] = function(maps.float())

        with torch.no_grad(), evaluating(self.model), autocast, _full_float32(self.device):
            self._run(x, pool_maps)
        return features

    def prepare(self, images: Sequence[ImageLike], first: int = 0) -> torch.Tensor:
        """Images of any accepted kind to one normalised float32 batch ``(N, 3, size, size)``; errors count from ``first``."""
        pixels = []
        for i, image in enumerate(images, first):
            try:
                pixels.append(self._geometry(open_image(image, self.decoder)))
            except DecodeError as error:
                where = f" ({image})" if isinstance(image, str | Path) else ""
                raise DecodeError(f"image {i}{where}: {error}", error.stage) from error
        return self.preprocessing.normalize(torch.stack(pixels).to(self.device))

    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each feature of one image at the size of :attr:`preprocessing`, found by a pass over a blank one."""
        size = self.preprocessing.size
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.device)
        try:
            features = self._forward_plain(self.preprocessing.normalize(blank), self.pools)  # engines would get ready for it
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"{type(self.model).__name__} cannot take images of {size}×{size} pixels: {reason}") from error
        return {name: tuple(value.shape[1:]) for name, value in features.items()}

    def _batches(self, images: Any) -> Iterator[torch.Tensor]:
        if isinstance(images, torch.Tensor) and images.is_floating_point():
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

    def _run(self, x: torch.Tensor, use_maps: Callable[[Tap, torch.Tensor], None]) -> None:
        """One pass that hands over each tap's maps and ends after the last; timm's own method where a foreign model has it."""
        if isinstance(self.model, StagedNet) or not hasattr(self.model, "forward_intermediates"):
            run_hooked(self.model, self.taps, x, use_maps)
            return
        every = find_taps(self.model, "all", self.tap)
        indices = [every.index(tap) for tap in self.taps]
        forward_intermediates: Any = self.model.forward_intermediates
        maps = forward_intermediates(x, indices=indices, stop_early=True, intermediates_only=True)
        for tap, tap_maps in zip(self.taps, maps, strict=True):
            use_maps(tap, tap_maps)


@dataclass(frozen=True)
class CachedEngine:
    """An engine, and what it was made from and in: it serves as long as these are the same."""

    engine: Engine
    taps: list[Tap]
    in_order: list[Tap]  # as the engine gives them
    snapshot: Snapshot
    process: int

    def holds(self, taps: list[Tap]) -> bool:
        return self.process == os.getpid() and self.taps == taps and self.snapshot.holds()


def _pooled(output: BlockOutput, name: str, function: Pool) -> torch.Tensor:
    """By an engine's own mean, or from its maps."""
    vectors = output.mean if name == "avg" else None if output.maps is None else function(output.maps.float())
    assert vectors is not None  # one of the two was asked for
    return vectors


def feature_name(tap: Tap, pool: str, pools: int) -> str:
    return tap.name if pools == 1 else f"{tap.name}_{pool}"


def open_image(image: ImageLike, decoder: str) -> Image.Image | torch.Tensor:
    """RGB, upright, whatever kind of image it was given as: an image, or a tensor ``(3, H, W)``; uint8."""
    if isinstance(image, str | Path):
        try:
            return decode_pixels(Path(image).read_bytes(), decoder)
        except OSError as error:
            raise DecodeError(error.strerror or type(error).__name__, "read") from error
    if isinstance(image, Image.Image):
        return rgb_image(image)
    if isinstance(image, torch.Tensor):
        return image_tensor(image)
    raise UsageError(f"a {type(image).__name__} is no image: pass PIL images, paths or uint8 tensors (3, H, W)")


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"``: CUDA, then MPS, then the CPU. Raises UsageError where torch does not know or have the device."""
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r}: {str(error).splitlines()[0]}") from error
    return resolved


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """On CUDA torch would round float32 convolutions to TF32: rows would then depend on the batch they were in."""
    cudnn = torch.backends.cudnn
    if device.type != "cuda":
        yield
        return
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while: BatchNorm reads its statistics and moves none; each module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _LastTapReached(Exception):
    """Ends a forward pass from inside a hook."""


def run_hooked(model: nn.Module, taps: Sequence[Tap], x: torch.Tensor, use_maps: Callable[[Tap, torch.Tensor], None]) -> None:
    """A forward pass that hands over each tap's module's output as it comes, and ends at the last of them."""
    left = {tap.module for tap in taps}

    def hook_for(tap: Tap) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            use_maps(tap, output)
            left.discard(tap.module)
            if not left:
                raise _LastTapReached

        return hook

    handles = [model.get_submodule(tap.module).register_forward_hook(hook_for(tap)) for tap in taps]
    try:
        model(x)
    except _LastTapReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
