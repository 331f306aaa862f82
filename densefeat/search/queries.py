"""Images to search for, embedded by the network that made the store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.errors import DecodeError, UsageError
from densefeat.features import FeatureExtractor
from densefeat.images import Preprocessing, open_image
from densefeat.loading import describe_source, find_config
from densefeat.nets import file_sha256
from densefeat.store import BY_KEY, Store, block_and_pool, pools_of

_NEEDED = ("model", "weights", "blocks", "pool", "tap", "precision", "preprocessing")  # of provenance


def embed(
    store: Store, column: str, images: Sequence[str | Path], weights: str | Path | None = None, device: str = "auto"
) -> np.ndarray:
    """float32 ``(len(images), C)``: image files, each whole, as the rows of a column were made.

    Raises UsageError for a file that cannot be read, and as :func:`_extractor_of`.
    """
    extractor = _extractor_of(store, column, weights, device)
    pixels = []
    for image in images:
        try:
            pixels.append(open_image(image, extractor.decoder))
        except DecodeError as error:
            raise UsageError(f"query {str(image)!r}: {error}") from error
    features = extractor(pixels)[column]
    return features.reshape(len(pixels), -1).numpy()


def _extractor_of(store: Store, column: str, weights: str | Path | None = None, device: str = "auto") -> FeatureExtractor:
    """The network that made a column, as :func:`extractor_by`."""
    return extractor_by(store.provenance, [column], str(store.path), weights, device, BY_KEY)


def extractor_by(
    made: dict[str, Any],
    columns: Sequence[str],
    shown: str,
    weights: str | Path | None = None,
    device: str = "auto",
    instead: str = "extract its features again",
) -> FeatureExtractor:
    """The network that made these columns, up to the last of their blocks, with the preprocessing that was recorded.

    Its features have the columns' names; with several pools there are more of them, as all pools of a block are made.

    Args:
        made: Provenance, as stores have it.
        shown: What errors call the store, or what was made from it. instead: what they say to do.
        weights: A checkpoint file; None: the file that is named, or the published weights if it was made by them.

    Raises:
        UsageError: Where it is not told what made them, or the weights are others. WeightsError: there are none.
    """
    if missing := [name for name in _NEEDED if name not in made]:
        raise UsageError(f"{shown} does not tell what made it ({', '.join(missing)} missing): {instead}")
    known = made["weights"]
    if known["source"] == "a model object":
        raise UsageError(f"{shown} was made by a model object ({made['model']}): {instead}")
    blocks = {
        block_and_pool(made, column, f"{shown} does not tell which block and pool made {column!r}: {instead}")[0]
        for column in columns
    }
    extractor = FeatureExtractor(
        made["model"],
        pool=pools_of(made),
        tap=made["tap"],
        weights=_weights_file(made["model"], known, weights, shown),
        device=device,
        precision=made["precision"],
        decoder=made.get("decoder", "pillow"),
    )
    _check_sha256(extractor.provenance["weights"] | {"sha256": extractor.weights_sha256}, known, shown)
    extractor.taps = [tap for tap in extractor.taps if tap.name in blocks]
    extractor.preprocessing = Preprocessing(**{name: _as_tuple(value) for name, value in made["preprocessing"].items()})
    return extractor


def _weights_file(model: str, known: dict[str, Any], weights: str | Path | None, shown: str) -> Path | None:
    """The checkpoint to load, its hash compared before it is read; None for published weights, and those of a run's folder."""
    if weights is None and (Path(model).is_dir() or describe_source(find_config(model)) == known["source"]):
        return None
    file = Path(known["source"] if weights is None else weights)
    if not file.is_file():
        if weights is not None:
            raise UsageError(f"weights {str(file)!r}: no such file")
        raise UsageError(
            f"the weights of {shown} were {known['source']!r}, not here now: --weights FILE (sha256 {known['sha256']})"
        )
    _check_sha256({"source": str(file), "sha256": file_sha256(file)}, known, shown)
    return file


def _check_sha256(here: dict[str, Any], known: dict[str, Any], shown: str) -> None:
    """Raise UsageError where two records of weights tell of different files."""
    if None not in (here["sha256"], known["sha256"]) and here["sha256"] != known["sha256"]:
        told = f"sha256 {here['sha256']}, its own ({known['source']!r}) {known['sha256']}"
        raise UsageError(f"weights {here['source']!r} are others than those of {shown}: {told}")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
