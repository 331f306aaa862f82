"""The folder of a probe: what it may hold, and results.json, by which the same request finds a finished probe again."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densefeat.base import (
    TensorFile,
    atomic_file,
    check_checksum,
    has_kind,
    parse_json,
    recognize_none,
    refuse_links,
    refuse_other_content,
    refuse_stranger,
)
from densefeat.errors import UsageError

RESULTS = "results.json"
FEATURES, TEST_FEATURES = "features", "test-features"  # stores that the probe of a folder of images makes
CHECKPOINTS = ".checkpoints"  # of the protocol sgd, until the probe is finished


def check_folder(out: Path, what: str, files: Collection[str], head: TensorFile) -> None:
    """Raise UsageError if a folder holds anything but a probe, finished or not; OutputError if it cannot be read.

    Files with the names of a probe's are its own where the first or the last of them, which have marks inside, is a probe's:
    the ``head`` and ``results.json``. ``what``: "probe", with which the kind of results ends; ``files``: their names.
    """
    refuse_other_content(out, (*files, FEATURES, TEST_FEATURES), f"a {what}")
    refuse_links([out / name for name in (FEATURES, TEST_FEATURES, CHECKPOINTS)])
    begun = head.recognize(out / head.name) or has_kind(f"densefeat {what}")(out / RESULTS)
    for name in files:
        refuse_stranger(out / name, None if begun else recognize_none)


def to_json(value: Any) -> Any:
    """Turn numpy values and tuples into JSON types, and numbers that are not finite into null."""
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return to_json(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value


def save_results(out: Path, results: Mapping[str, Any]) -> None:
    """Write results, JSON values with a checksum, into the folder of a probe. Raises OutputError if they cannot be written."""
    with atomic_file(out / RESULTS) as beside:
        beside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")


def read_results(out: Path, what: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results in a folder if they are of this request, None if there are none.

    ``what``: ``"probe"``, with which their kind ends; ``identity``: what determines the results, by its key in them. Raises
    UsageError for results of something else, or of another request, WeightsError for damaged ones.
    """
    if not (out / RESULTS).exists():
        return None
    place = repr(str(out))
    try:
        results: dict[str, Any] = parse_json((out / RESULTS).read_text(encoding="utf-8"))
        kind = results.get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != f"densefeat {what}":
        raise UsageError(f"output {place}: its {RESULTS} was not written by a {what}: choose another --out")
    check_checksum(results, f"results {str(out / RESULTS)!r}")
    if differing := [name for name, value in to_json(identity).items() if results.get(name) != value]:
        raise UsageError(f"output {place} holds another {what} ({', '.join(differing)} differ): choose another --out")
    return results
