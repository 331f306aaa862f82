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
from densefeat.images import ImageLike

ACCEPTED = "pass paths, PIL images or uint8 arrays (H, W, 3), in a list or an array (N,), or one uint8 array (N, H, W, 3)"
CHANNELS = ((), (1,), (3,), (4,))  # of an array after (H, W): grey, grey, RGB, RGB over white


class DenseFeatTransformer(TransformerMixin, BaseEstimator):
    """Images in, the pooled features of a network's blocks side by side out: float32 ``(n, f)``.

    Parameters are those of :class:`densefeat.FeatureExtractor`, checked by ``fit``, which loads the network and learns nothing.
    A fitted transformer is pickled with its weights. Images are decoded and pass the network ``batch_size`` at a time, so that
    only the features of all are in memory at once.

    ``X``: paths, PIL images or uint8 arrays ``(H, W)``, ``(H, W, 3)``, ``(H, W, 4)``, of any sizes, in a list, an array, a
    series or a table of one column; or one uint8 array ``(N, H, W, 3)`` or ``(N, H, W)``. Arrays are treated as PIL images.

    Args:
        model: A name, with its published weights, a training run's folder, or a model of your own.
        blocks: ``"all"``, a number from 1, or several.
        tap: ``"norm"`` or ``"raw"``.
        pool: ``"avg"``, ``"max"``, ``"gem"``, several, or ``"none"`` for flattened maps.
        weights: A checkpoint file instead of the published weights.
        image_size: Pixels of the square input; None for the weights' own.
        precision: ``"fp32"`` or ``"bf16"``.
        batch_size: Images at a time.
        device: ``"auto"``, or as torch names them.
        backend: What computes the features; ``"auto"``: the fastest that can run here.

    Attributes:
        extractor_: The network and its preprocessing.
        n_features_in_: 1: a sample is one image. ``feature_names_in_``: the column, where ``fit`` was given a table.

    Raises:
        UsageError: In ``fit`` a parameter that does not exist for this network, in both what is no image.
        WeightsError: Weights that cannot be fetched or do not fit.
        DecodeError: A file that cannot be read, by name. A transformer cannot leave rows out: find such files before,
            ``densefeat extract`` lists them.
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

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Load the network. ``X`` is looked at, but not read: nothing is learnt from it."""
        size: Any = self.batch_size  # of numpy's, too, which searches use
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise UsageError(f"batch_size {size!r}: give a number of images, 1 or more")
        self._samples(X, fitting=True)
        options = self.get_params(deep=False)
        del options["batch_size"]
        self.extractor_ = FeatureExtractor(**options)
        self._shapes = self.extractor_.feature_shapes()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features of the images, one row each, in their order."""
        check_is_fitted(self)
        samples = self._samples(X, fitting=False)
        features = np.empty((len(samples), sum(map(prod, self._shapes.values()))), np.float32)
        for start in range(0, len(samples), self.batch_size):
            batch = self.extractor_.prepare([as_image(sample) for sample in samples[start : start + self.batch_size]], start)
            blocks = self.extractor_.forward(batch)
            rows = torch.cat([maps.flatten(1) for maps in blocks.values()], 1)
            features[start : start + len(rows)] = rows.cpu().numpy()
        return features

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``block1_0``, ``block1_1``, …; with several pools ``block1_avg_0``, …: one name a column of ``transform``."""
        check_is_fitted(self)
        seen = getattr(self, "feature_names_in_", input_features)
        if input_features is not None and not np.array_equal(input_features, seen):
            raise UsageError(f"input_features {input_features!r} is not equal to feature_names_in_: {list(seen)}")
        names = [f"{name}_{i}" for name, shape in self._shapes.items() for i in range(prod(shape))]
        return np.asarray(names, dtype=object)

    def _samples(self, X: Any, fitting: bool) -> Any:
        """What :func:`as_samples` makes of X; a table's column keeps the name that it had in ``fit``."""
        samples = as_samples(X)
        column = X if getattr(X, "ndim", 1) == 2 else np.empty((len(samples), 1), dtype=object)
        validate_data(self, column, reset=fitting, skip_check_array=True)
        return samples

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "extractor_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = tags.input_tags.string = True
        tags.input_tags.two_d_array = False  # no table of numbers
        assert tags.transformer_tags is not None
        tags.transformer_tags.preserves_dtype = []  # float32, whatever the images are
        return tags


def as_samples(X: Any) -> Any:
    """Images as something with a length and slices; UsageError for what cannot be images. Nothing is decoded."""
    if isinstance(X, str | Path | Image.Image) or not hasattr(X, "__len__") or not hasattr(X, "__getitem__"):
        raise UsageError(f"a {type(X).__name__} is no sequence of images: {ACCEPTED}")
    samples = np.asarray(X) if hasattr(X, "__array__") else X  # else as it is: a column of datasets decodes what is sliced
    if isinstance(samples, np.ndarray):
        samples = array_samples(samples)
    if len(samples) == 0:
        raise UsageError(f"no images: {ACCEPTED}")
    return samples


def array_samples(array: np.ndarray) -> np.ndarray:
    """uint8 images ``(N, H, W)`` or ``(N, H, W, C)`` as they are; of paths or objects the one column, ``(N,)``."""
    if array.dtype.kind in "OTU":
        if array.ndim == 1:
            return array
        if array.ndim == 2 and array.shape[1] == 1:
            return array[:, 0]
        raise UsageError(f"a table of shape {array.shape}: give the column with the images alone")
    if array.dtype != np.uint8 or array.ndim < 3 or array.shape[3:] not in CHANNELS:
        raise UsageError(f"an array of shape {array.shape} and {array.dtype} holds no images: {ACCEPTED}")
    return array


def as_image(sample: Any) -> ImageLike:
    """Arrays as PIL images; the rest is the extractor's to open."""
    if not isinstance(sample, np.ndarray):
        return sample
    if sample.dtype != np.uint8 or sample.ndim not in (2, 3) or sample.shape[2:] not in CHANNELS or not sample.size:
        raise UsageError(f"an array of shape {sample.shape} and {sample.dtype} is no image: {ACCEPTED}")
    return Image.fromarray(sample[..., 0] if sample.shape[2:] == (1,) else sample)
