"""Features as points of a plane: principal axes, UMAP, t-SNE."""

import warnings
from importlib.util import find_spec

import numpy as np

from densefeat.errors import UsageError

_METHODS = ("pca", "umap", "tsne")
_KEPT = 50  # principal axes that UMAP, t-SNE and k-means see
_SEED = 0
_FEWEST = 8  # points that have neighbourhoods to keep
_NEIGHBOURS, _PERPLEXITY = 15, 30.0  # umap-learn's and scikit-learn's own, less for few points
TITLES = {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE"}


def check_method(method: str) -> None:
    """UsageError for a method that there is not, or whose package is not installed."""
    if method not in _METHODS:
        raise UsageError(f"method {method!r}: choose one of {', '.join(_METHODS)}")
    if method == "umap" and find_spec("umap") is None:
        raise UsageError("method 'umap' needs umap-learn: pip install 'densefeat[umap]', or take pca or tsne")


def _principal(features: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """The first principal components, float32 ``(n, count)``, and the share of the variance in the first two.

    ``features``: ``(n, C)``, finite. Components that there are not (of few points or features) are 0. Each axis points to
    where its largest loading is positive, so that the same features give the same picture.
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    out = np.zeros((len(features), count), np.float32)
    total = float(np.square(centred).sum())
    scale = float(np.abs(features).max(initial=0))
    if total <= len(features) * (1e-6 * scale) ** 2:  # constant, but for rounding
        return out, 0.0
    axes = _axes_of(centred)[:, :count]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    components = centred @ axes
    out[:, : axes.shape[1]] = components
    return out, float(np.square(components[:, :2]).sum()) / total


def _axes_of(centred: np.ndarray) -> np.ndarray:
    """Orthonormal directions of largest variance first, ``(C, min(n, C))``."""
    if centred.shape[0] < centred.shape[1]:
        return np.linalg.svd(centred, full_matrices=False)[2].T
    return np.linalg.eigh(centred.T @ centred)[1][:, ::-1]


def project(features: np.ndarray, method: str = "pca") -> tuple[np.ndarray, str]:
    """Points, float32 ``(n, 2)``, and how they were made, in words. ``features``: ``(n, C)``, finite.

    UMAP and t-SNE see the first 50 principal components, and their seed is fixed; of fewer than 8 points, or of features that
    are all the same, they are PCA's, which the words tell. Raises UsageError as :func:`check_method`.
    """
    check_method(method)
    components, share = _principal(features, _KEPT)
    told = f"PCA, {100 * share:.0f} % of the variance"
    if method == "pca":
        return components[:, :2], told
    if len(features) < _FEWEST:
        return components[:, :2], f"{told} (too few points for {TITLES[method]})"
    if not components[:, 1].any():
        return components[:, :2], f"{told} (features of fewer than two dimensions: no {TITLES[method]})"
    used = components[:, : min(_KEPT, *features.shape)]
    made = {"umap": _by_umap, "tsne": _by_tsne}[method](used, components[:, :2] / np.abs(components[:, 0]).max())
    return np.ascontiguousarray(made, np.float32), f"{TITLES[method]} of the first {used.shape[1]} principal components"


def _by_umap(components: np.ndarray, start: np.ndarray) -> np.ndarray:
    """``start``: the first two components, to 1: UMAP's own start, by eigenvectors, fails on groups far apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # that Tensorflow is not there
        from umap import UMAP

    neighbours = min(_NEIGHBOURS, len(components) - 1)
    return UMAP(n_neighbors=neighbours, init=10 * start, random_state=_SEED, n_jobs=1).fit_transform(components)


def _by_tsne(components: np.ndarray, start: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(components) - 1) / 3)
    start = 1e-4 * start / start[:, 0].std()  # as init="pca" has it
    return TSNE(init=start, perplexity=perplexity, random_state=_SEED).fit_transform(components)


def clusters(features: np.ndarray, count: int) -> np.ndarray:
    """int64 ``(n,)``: k-means on the first 50 principal components, the largest cluster 0; fewer where points coincide."""
    from sklearn.cluster import KMeans

    components = _principal(features, min(_KEPT, features.shape[1]))[0]
    count = min(count, len(np.unique(components, axis=0)))
    found = KMeans(count, n_init=3, random_state=_SEED).fit_predict(components)
    sizes = np.bincount(found, minlength=count)
    places = np.empty(count, np.int64)
    places[np.argsort(-sizes, kind="stable")] = np.arange(count)
    return places[found]
