"""Images to search for, embedded by the network that made the store."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densefeat.errors import DecodeError, DensefeatError, UnknownRange, UsageError, WeightsError
from densefeat.features import FeatureExtractor
from densefeat.images import Preprocessing
from densefeat.loading import check_fetched, describe_weights_source, find_config, is_run_folder
from densefeat.nets import file_sha256
from densefeat.store import Store, find_source, split_pools

_log = logging.getLogger(__name__)
_NEEDED = ("model", "weights", "blocks", "pool", "tap", "precision", "preprocessing")  # of provenance


def embed_images(
    store: Store, column: str, images: Sequence[str | Path], weights: str | Path | None = None, device: str = "auto"
) -> np.ndarray:
    """Embed image files, each as a whole, as the rows of a column were made: float32 ``(len(images), C)``.

    Raises UsageError for a file that cannot be read, and as :func:`rebuild_extractor`.
    """
    extractor = rebuild_extractor(store.provenance, [column], str(store.path), weights, device, "query it by --key")
    prepared = []
    for image in images:
        try:
            prepared.append(extractor.prepare([image]))
        except DecodeError as error:
            raise UsageError(f"query {str(image)!r}: {error.__cause__ or error}") from error
        except UnknownRange as error:
            rule = extractor.preprocessing.pixels
            raise UsageError(
                f"query {str(image)!r} does not say what is black and white, and the images of {str(store.path)!r} did (range"
                f" {rule.range!r}): convert it to their kind, or extract them with a --range that counts for both"
            ) from error
    return extractor.forward(torch.cat(prepared))[column].flatten(1).cpu().numpy()


def describe_extractor(extractor: FeatureExtractor, store: Store) -> dict[str, Any]:
    """Return a provenance by which :func:`rebuild_extractor` makes an extractor of the same maps.

    ``store``: what was computed of these maps; its job measured the percentiles of pixels where that is asked for.
    """
    return {
        **extractor.provenance,
        "weights": extractor.provenance["weights"] | {"sha256": extractor.weights_sha256},
        "preprocessing": store.provenance["preprocessing"],
        "decoder": extractor.decoder,
        "blocks": [tap.name for tap in extractor.taps],
        "tap": extractor.tap,
        "pool": ["none"],
        "precision": extractor.precision,
    }


def rebuild_extractor(
    provenance: dict[str, Any],
    columns: Sequence[str],
    owner: str,
    weights: str | Path | None = None,
    device: str = "auto",
    instead: str = "extract its features again",
) -> FeatureExtractor:
    """Build the extractor that made some columns, up to the last of their blocks, with the recorded preprocessing.

    Its features have the columns' names; if features were pooled in several ways, it makes all of them for each block.

    Args:
        provenance: That of a store.
        owner: The store, or what was made from it, in error messages. instead: their advice.
        weights: A checkpoint file; None: the recorded file, or the published weights if they were used and are on this
            machine: nothing is fetched because a store says so.

    Raises:
        UsageError: The provenance is incomplete, or the weights are not those that were used. WeightsError: no weights, or
            a provenance of other types than densefeat records.
    """
    try:
        return _rebuild(provenance, columns, owner, weights, device, instead)
    except DensefeatError:
        raise
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise WeightsError(f"{owner}: its record of the network is damaged ({type(error).__name__}: {error})") from error


def _rebuild(
    provenance: dict[str, Any],
    columns: Sequence[str],
    owner: str,
    weights: str | Path | None,
    device: str,
    instead: str,
) -> FeatureExtractor:
    if missing := [name for name in _NEEDED if name not in provenance]:
        raise UsageError(f"{owner} does not record what made it ({', '.join(missing)} missing): {instead}")
    preprocessing = Preprocessing.from_json(provenance["preprocessing"], owner)
    recorded = provenance["weights"]
    if recorded["source"] == "a model object":
        raise UsageError(f"{owner} was made by a model object ({provenance['model']}): {instead}")
    blocks = {
        find_source(provenance, column, f"{owner} does not record which block and pool made {column!r}: {instead}").block
        for column in columns
    }
    channels = preprocessing.pixels.in_chans
    precision = provenance["precision"]
    if precision == "int8":  # that network is the store's: whoever has a probe or a list of rows need not have it
        _warn_of_float32(owner, provenance["calibration"])
        precision = "fp32"
    extractor = FeatureExtractor(
        provenance["model"],
        pool=split_pools(provenance["pool"]),
        tap=provenance["tap"],
        weights=_find_weights(provenance["model"], recorded, weights, owner),
        device=device,
        precision=precision,
        decoder=provenance.get("decoder", "pillow"),
        in_chans=None if channels == 3 or is_run_folder(provenance["model"]) else channels,
    )
    _check_sha256(extractor.provenance["weights"] | {"sha256": extractor.weights_sha256}, recorded, owner)
    extractor.taps = [tap for tap in extractor.taps if tap.name in blocks]
    extractor.preprocessing = preprocessing
    return extractor


def _warn_of_float32(owner: str, calibration: dict[str, Any]) -> None:
    cosines = {name: float(measured["median"]) for name, measured in calibration["cosine"].items()}
    told = ", ".join(f"{name} {cosine:.4f}" for name, cosine in cosines.items())
    _log.warning("%s was made in int8; images are computed in float32 here (cosine of the two in the median: %s)", owner, told)


def _find_weights(model: str, recorded: dict[str, Any], weights: str | Path | None, owner: str) -> Path | None:
    """Return the checkpoint to load, with its hash compared; None for published weights and those of a run's folder."""
    if weights is None:
        if is_run_folder(model):
            return None
        config = find_config(model)
        if describe_weights_source(config) == recorded["source"]:
            check_fetched(config, owner)
            return None
    file = Path(recorded["source"] if weights is None else weights)
    if not file.is_file():
        if weights is not None:
            raise UsageError(f"weights {str(file)!r}: no such file")
        raise UsageError(
            f"the weights of {owner} were {recorded['source']!r}, which is not there now:"
            f" --weights FILE (sha256 {recorded['sha256']})"
        )
    _check_sha256({"source": str(file), "sha256": file_sha256(file)}, recorded, owner)
    return file


def _check_sha256(weights: dict[str, Any], recorded: dict[str, Any], owner: str) -> None:
    """Raise UsageError where weights are not those that were recorded."""
    if None not in (weights["sha256"], recorded["sha256"]) and weights["sha256"] != recorded["sha256"]:
        hashes = f"sha256 {weights['sha256']}, recorded {recorded['sha256']} ({recorded['source']!r})"
        raise UsageError(f"weights {weights['source']!r} are others than those of {owner}: {hashes}")
