"""From a network and images to named features, in one pass for all blocks."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from densefeat.base import choose_device, choose_precision, describe_error
from densefeat.errors import DecodeError, UnknownRange, UsageError
from densefeat.features.engines.quantized import QuantizedNetwork
from densefeat.features.feature_network import FeatureNetwork, concat_features
from densefeat.features.grid import GridRule
from densefeat.features.pooling import Pool, parse_pools
from densefeat.features.proof import Trial
from densefeat.features.taps import Tap, find_taps
from densefeat.images import MEMORY, ChannelStats, Geometry, ImageLike, PixelRule, Preprocessing, check_decoder, open_image
from densefeat.loading import load_network
from densefeat.nets import state_sha256

_PRECISIONS = ("fp32", "bf16", "int8")
_BATCH_SIZE = 32  # images prepared at a time inside one call
_MAPS = parse_pools("none")


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
            ``"triton"`` on a GPU: the same numbers faster, for networks of ours; ``"openvino"`` also for timm's. In the last
            two cases the first batch is compared with the plain network's. ``"auto"``: the fastest that needs no such
            comparison here (for ours, OpenVINO where it is installed), until :meth:`prove` finds another. When weights change,
            the engine is built again. For a module on the CPU every change is noticed; otherwise those that torch counts,
            which are all but writes through ``.data`` and numpy.
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
        given = isinstance(model, nn.Module)
        if isinstance(model, nn.Module) and device == "auto":
            place = next(model.parameters(), torch.empty(0)).device
        else:
            place = choose_device(device)
        loaded = load_network(model, weights, in_chans=in_chans)
        self.provenance = loaded.provenance
        taps = find_taps(loaded.model, blocks, tap)
        loaded.model.to(place)
        if not given:
            loaded.model.to(memory_format=torch.channels_last)
        precision = choose_precision(precision, place)
        self.network = FeatureNetwork(loaded.model, taps, tap, precision, place, backend, thorough=given)
        self._grid_network: FeatureNetwork | None = None

    @property
    def model(self) -> nn.Module:
        """The network's module."""
        return self.network.model

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.device

    @property
    def precision(self) -> str:
        """The precision that is used."""
        return self.network.precision

    @property
    def backend(self) -> str:
        """The backend that is used."""
        return self.network.backend

    @property
    def taps(self) -> list[Tap]:
        """Where features are read, in the order that was asked for."""
        return self.network.taps

    @taps.setter
    def taps(self, taps: list[Tap]) -> None:
        self.network.taps = taps

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
        return concat_features(parts)

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
        maps = self._with_blocks(rule.blocks).compute(x, _MAPS)
        return rule.combine(list(maps.values()), *x.shape[2:])

    def _with_blocks(self, blocks: Sequence[int]) -> FeatureNetwork:
        """Return the network or, for other blocks, a copy that shares its weights; the last copy is kept."""
        taps = find_taps(self.model, blocks, self.tap)
        if taps == self.taps:
            return self.network
        if self._grid_network is None or self._grid_network.taps != taps:
            self._grid_network = self.network.with_taps(taps)
        return self._grid_network

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
        return self.network.compute(x, pools)

    @property
    def has_candidates(self) -> bool:
        """Whether :meth:`prove` has a backend to try that can run here."""
        return self.network.has_candidates

    def prove(self, images: torch.Tensor | ImageLike | Sequence[ImageLike]) -> list[Trial]:
        """Look whether a faster backend than the plain network is right on these images, and faster; from then on use it.

        For the backend ``"auto"`` where it has chosen the plain network: on a GPU, and for networks that are not ours.

        Args:
            images: As of :meth:`__call__`, a batch like those to come.

        Returns:
            What was measured of each candidate, also in the log; empty where there is none.
        """
        return self.network.prove(next(self._batches(images)), self.pools)

    def calibrate(self, images: torch.Tensor | ImageLike | Sequence[ImageLike]) -> None:
        """Quantise the network to int8, by the values that its maps take on a few hundred images like those to come.

        ``images``: as of :meth:`__call__`; all of them are held in memory, prepared.

        Raises:
            UsageError: The extractor's precision is not int8, or the images are not such.
            BackendError: NNCF is not installed, or the weights are not finite.
        """
        self.network.calibrate(self._batches(images))
        self._grid_network = None

    def compare_to_float32(self, images: torch.Tensor | ImageLike | Sequence[ImageLike]) -> dict[str, torch.Tensor]:
        """Measure what int8 changes: for each block the cosine of each image's average-pooled features to float32's, ``(N,)``.

        ``images``: as of :meth:`__call__`, others than those of the calibration. Raises UsageError before there was one.
        """
        return self.network.compare_to_float32(self._batches(images))

    def use_quantized(self, network: QuantizedNetwork) -> None:
        """Compute by a network that :meth:`calibrate` made of the same weights, blocks and tap, perhaps in another process."""
        self.network.use_quantized(network)
        self._grid_network = None

    @property
    def quantized(self) -> QuantizedNetwork | None:
        """The network in int8, once there is one."""
        return self.network.quantized

    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Find the shape of each feature of one image, at the size of :attr:`preprocessing`, by a pass over a blank image."""
        size = self.preprocessing.size
        blank = self.preprocessing.make_blank(1, self.device)
        try:
            features = self.network.compute_plainly(self.preprocessing.normalize(blank), self.pools)  # no engine is built
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
        return self.__dict__ | {"_grid_network": None}
