"""Features of images as a scikit-learn transformer, for pipelines and searches over them."""

from collections.abc import Sequence
from math import prod
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from densefeat.errors import UsageError
from densefeat.features import FeatureExtractor
from densefeat.images import ChannelStats, ImageLike, PixelRule

_ACCEPTED = "pass paths, PIL images or uint8 arrays (H, W, 3), in a list or an array (N,), or one uint8 array (N, H, W, 3)"
_CHANNELS = ((), (1,), (3,), (4,))  # what may follow (H, W) in a shape: grey, grey, RGB, RGBA over white


class DenseFeatTransformer(TransformerMixin, BaseEstimator):
    """A transformer from images to the pooled features of a network's blocks, side by side: float32 ``(n, f)``.

    The parameters are those of :class:`densefeat.FeatureExtractor`. ``fit`` checks them and loads the network, but learns
    nothing. A fitted transformer is pickled with its weights. Images are decoded and embedded ``batch_size`` at a time: only
    their features are in memory together.

    ``X``: paths, PIL images or uint8 arrays ``(H, W)``, ``(H, W, 3)``, ``(H, W, 4)``, of any sizes, in a list, an array, a
    series or a table of one column; or one uint8 array ``(N, H, W, 3)`` or ``(N, H, W)``. Arrays are treated as PIL images.

    Args:
        model: A name, whose published weights are loaded, a training run's folder, or a model of your own.
        blocks: ``"all"``, a number from 1, or several.
        tap: ``"norm"`` or ``"raw"``.
        pool: ``"avg"``, ``"max"``, ``"gem"``, several, or ``"none"`` for flattened maps.
        weights: A checkpoint file instead of the published weights.
        image_size: Pixels of the square input; None for the weights' own.
        precision: ``"fp32"`` or ``"bf16"``.
        batch_size: Images at a time.
        device: ``"auto"``, or a name that torch knows.
        backend: What computes the features; ``"auto"``: the fastest that can run here.
        in_chans, pixels, channel_stats: Channels, ranges, and what they are normalised by, for images that are no photographs.

    Attributes:
        extractor_: The network and its preprocessing.
        n_features_in_: 1, because a sample is one image.
        feature_names_in_: The name of the column, if ``fit`` got a table.

    Raises:
        UsageError: In ``fit``, a parameter does not exist for this network; in both methods, a sample is not an image.
        WeightsError: Weights cannot be fetched or do not fit.
        DecodeError: A file cannot be read; the message names it. A transformer cannot leave rows out: find such files
            first, ``densefeat extract`` lists them.
    """

    def __init__(
        self,
        model: str | nn.Module = "densefeat_densenet121",
        blocks: str | int | Sequence[int] = "all",
        tap: str = "norm",
        pool: str | Sequence[str] = "avg",
        weights: str | Path | None = None,
        image_size: int | None = None,
        precision: str = "fp32",
        batch_size: int = 32,
        device: str | torch.device = "auto",
        backend: str = "auto",
        in_chans: int | None = None,
        pixels: PixelRule | None = None,
        channel_stats: ChannelStats | None = None,
    ) -> None:
        self.model = model
        self.blocks = blocks
        self.tap = tap
        self.pool = pool
        self.weights = weights
        self.image_size = image_size
        self.precision = precision
        self.batch_size = batch_size
        self.device = device
        self.backend = backend
        self.in_chans = in_chans
        self.pixels = pixels
        self.channel_stats = channel_stats

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Load the network. The kind of ``X`` is checked; its images are not read, as there is nothing to learn from them."""
        size: Any = self.batch_size  # may be numpy's integer, which parameter searches pass
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise UsageError(f"batch_size {size!r}: give a number of images, 1 or more")
        if self.precision == "int8":
            raise UsageError("precision 'int8' has to be calibrated: use FeatureExtractor, or `densefeat extract`")
        self._samples(X, fitting=True)
        options = self.get_params(deep=False)
        del options["batch_size"]
        self.extractor_ = FeatureExtractor(**options)
        self._shapes = self.extractor_.feature_shapes()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the features of the images, one row each, in their order."""
        check_is_fitted(self)
        samples = self._samples(X, fitting=False)
        features = np.empty((len(samples), sum(map(prod, self._shapes.values()))), np.float32)
        for start in range(0, len(samples), self.batch_size):
            batch = self.extractor_.prepare([_as_image(sample) for sample in samples[start : start + self.batch_size]], start)
            blocks = self.extractor_.forward(batch)
            rows = torch.cat([maps.flatten(1) for maps in blocks.values()], 1)
            features[start : start + len(rows)] = rows.cpu().numpy()
        return features

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return a name for each column of ``transform``, such as ``block1_0``; with several pools, ``block1_avg_0``."""
        check_is_fitted(self)
        fitted = getattr(self, "feature_names_in_", input_features)
        if input_features is not None and not np.array_equal(input_features, fitted):
            raise UsageError(f"input_features {input_features!r} is not equal to feature_names_in_: {list(fitted)}")
        names = [f"{name}_{i}" for name, shape in self._shapes.items() for i in range(prod(shape))]
        return np.asarray(names, dtype=object)

    def _samples(self, X: Any, fitting: bool) -> Any:
        """Return X as samples, and check that the column of a table has the name that it had in ``fit``."""
        samples = _as_samples(X)
        column = X if getattr(X, "ndim", 1) == 2 else np.empty((len(samples), 1), dtype=object)
        validate_data(self, column, reset=fitting, skip_check_array=True)
        return samples

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "extractor_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = tags.input_tags.string = True
        tags.input_tags.two_d_array = False  # tables of numbers are not images
        assert tags.transformer_tags is not None
        tags.transformer_tags.preserves_dtype = []  # float32, whatever the images are
        return tags


def _as_samples(X: Any) -> Any:
    """Return images as a sequence with slices, without decoding any. UsageError for what cannot be images."""
    if isinstance(X, str | Path | Image.Image) or not hasattr(X, "__len__") or not hasattr(X, "__getitem__"):
        raise UsageError(f"a {type(X).__name__} is not a sequence of images: {_ACCEPTED}")
    samples = np.asarray(X) if hasattr(X, "__array__") else X  # a column of datasets decodes only what is sliced
    if isinstance(samples, np.ndarray):
        samples = _array_samples(samples)
    if len(samples) == 0:
        raise UsageError(f"no images: {_ACCEPTED}")
    return samples


def _array_samples(array: np.ndarray) -> np.ndarray:
    """Return uint8 images ``(N, H, W)`` or ``(N, H, W, C)`` unchanged, and of paths or objects the only column, ``(N,)``."""
    if array.dtype.kind in "OTU":
        if array.ndim == 1:
            return array
        if array.ndim == 2 and array.shape[1] == 1:
            return array[:, 0]
        raise UsageError(f"a table of shape {array.shape}: give the column with the images alone")
    if array.dtype.kind not in "uif" or array.ndim not in (3, 4):
        raise UsageError(f"an array of shape {array.shape} and {array.dtype} holds no images: {_ACCEPTED}")
    return array


def _as_image(sample: Any) -> ImageLike:
    """Convert an array to a PIL image, or one that is no picture of 8 bits to a tensor; the extractor opens everything else."""
    if not isinstance(sample, np.ndarray):
        return sample
    if sample.dtype.kind not in "uif" or sample.ndim not in (2, 3) or not sample.size:
        raise UsageError(f"an array of shape {sample.shape} and {sample.dtype} is not an image: {_ACCEPTED}")
    if sample.dtype == np.uint8 and sample.shape[2:] in _CHANNELS:
        return Image.fromarray(sample[..., 0] if sample.shape[2:] == (1,) else sample)
    native = np.ascontiguousarray(np.atleast_3d(sample).transpose(2, 0, 1))
    return torch.from_numpy(native.astype(native.dtype.newbyteorder("="), copy=False))
