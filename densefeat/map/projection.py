"""From features to points of a plane, by principal components, UMAP or t-SNE; and to clusters."""

import warnings
from importlib.util import find_spec

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from densefeat.errors import UsageError

_METHODS = ("pca", "umap", "tsne")
_COMPONENTS = 50  # principal components that UMAP, t-SNE and k-means get
_SEED = 0
_FEWEST_POINTS = 8  # fewer have no neighbourhoods to keep
_NEIGHBOURS, _PERPLEXITY = 15, 30.0  # the defaults of umap-learn and scikit-learn; few points get less
TITLES = {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE"}


def check_method(method: str) -> None:
    """Raise UsageError if the method does not exist or its package is not installed."""
    if method not in _METHODS:
        raise UsageError(f"method {method!r}: choose one of {', '.join(_METHODS)}")
    if method == "umap" and find_spec("umap") is None:
        raise UsageError("method 'umap' needs umap-learn: pip install 'densefeat[umap]', or take pca or tsne")


def _principal_components(features: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Return the first principal components, float32 ``(n, count)``, and the first two's share of the variance.

    ``features`` are finite, ``(n, C)``. Components beyond those of few points or few features are 0. scikit-learn points each
    axis to where its largest loading is positive, so that the same features give the same picture.
    """
    out = np.zeros((len(features), count), np.float32)
    scale = float(np.abs(features).max(initial=0))
    variance = float(features.var(0, dtype=np.float64).sum())
    if variance <= (1e-6 * scale) ** 2:  # constant, apart from rounding
        return out, 0.0
    solver = "full" if features.shape[0] < features.shape[1] else "covariance_eigh"  # neither draws random numbers
    pca = PCA(min(count, *features.shape), svd_solver=solver)
    components = pca.fit_transform(features.astype(np.float64))
    out[:, : components.shape[1]] = components
    return out, float(np.square(components[:, :2]).sum() / (len(features) * variance))


def project(features: np.ndarray, method: str = "pca") -> tuple[np.ndarray, str]:
    """Project finite features ``(n, C)``; return points, float32 ``(n, 2)``, and how they were made, in words.

    UMAP and t-SNE get the first 50 principal components, and a fixed seed. For fewer than 8 points, and for features that are
    all the same, PCA takes their place, and the words say so. Raises UsageError as :func:`check_method` does.
    """
    check_method(method)
    components, share = _principal_components(features, _COMPONENTS)
    words = f"PCA, {100 * share:.0f} % of the variance"
    if method == "pca":
        return components[:, :2], words
    if len(features) < _FEWEST_POINTS:
        return components[:, :2], f"{words} (too few points for {TITLES[method]})"
    if not components[:, 1].any():
        return components[:, :2], f"{words} (features of fewer than two dimensions: no {TITLES[method]})"
    used = components[:, : min(_COMPONENTS, *features.shape)]
    points = {"umap": _run_umap, "tsne": _run_tsne}[method](used, components[:, :2] / np.abs(components[:, 0]).max())
    return np.ascontiguousarray(points, np.float32), f"{TITLES[method]} of the first {used.shape[1]} principal components"


def _run_umap(components: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Run UMAP from ``start``, the first two components scaled to 1; its own start fails on distant groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # umap warns that Tensorflow is not installed
        from umap import UMAP  # an extra

    neighbours = min(_NEIGHBOURS, len(components) - 1)
    return UMAP(n_neighbors=neighbours, init=10 * start, random_state=_SEED, n_jobs=1).fit_transform(components)


def _run_tsne(components: np.ndarray, start: np.ndarray) -> np.ndarray:
    perplexity = min(_PERPLEXITY, (len(components) - 1) / 3)
    start = 1e-4 * start / start[:, 0].std()  # the scale of init="pca"
    return TSNE(init=start, perplexity=perplexity, random_state=_SEED).fit_transform(components)


def find_clusters(features: np.ndarray, count: int) -> np.ndarray:
    """Return int64 ``(n,)``: clusters by k-means on the first 50 principal components, the largest one 0.

    There are fewer than ``count`` if points coincide.
    """
    components = _principal_components(features, min(_COMPONENTS, features.shape[1]))[0]
    count = min(count, len(np.unique(components, axis=0)))
    labels = KMeans(count, n_init=3, random_state=_SEED).fit_predict(components)
    sizes = np.bincount(labels, minlength=count)
    ranks = np.empty(count, np.int64)
    ranks[np.argsort(-sizes, kind="stable")] = np.arange(count)
    return ranks[labels]
