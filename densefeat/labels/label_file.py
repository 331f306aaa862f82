"""CSV files of labels, and of other columns, by the path of each image."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from densefeat.base import describe_error, shorten_text
from densefeat.errors import UsageError
from densefeat.images import (
    DELIMITERS,
    PATH,
    check_line_breaks,
    clean_labels,
    join_chunks,
    normalise_paths,
    printable_key,
    read_csv,
)

_MAX_BYTES = 2**30
EXAMPLES = 3  # rows that a message names


class LabelFile:
    """A CSV or TSV file with a header and a column ``path``, read as text.

    Raises UsageError for any other file. ``keys``: the normalised paths, one a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        subject = f"labels {str(path)!r}"
        if not path.is_file():
            problem = "a folder" if path.is_dir() else "no such file"
            raise UsageError(f"{subject}: {problem}; give a CSV file with the columns path,label")
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise UsageError(f"{subject}: more than {_MAX_BYTES:,} bytes: leave out the columns that are not needed")
            delimiter = DELIMITERS.get(path.suffix.lower(), ",")
            with open(path, "rb") as file:
                self._table = read_csv(file, delimiter, subject, {PATH: pa.large_string()}, others=True)
        except (pa.ArrowException, OSError) as error:
            advice = "give a CSV file in UTF-8 with the columns path,label"
            raise UsageError(f"{subject}: {shorten_text(describe_error(error))}; {advice}") from error
        paths = join_chunks(self._table.column(PATH)).cast(pa.large_binary())
        self.keys = normalise_paths(paths, []).cast(pa.large_string())

    @property
    def names(self) -> list[str]:
        return self._table.schema.names

    def align(self, keys: pa.Array, folders: Sequence[str]) -> "LabelFile":
        """Return this file with its paths as ``keys`` have them, which are relative to the images' ``folders``.

        Paths are relative to these folders, too, or else to the file's own folder, as a list of images has them. Backslashes
        separate folders where a path with them is no key. Raises UsageError where both readings match some keys.
        """
        slashed = pc.replace_substring(self.keys, "\\", "/")
        aligned = copy.copy(self)
        aligned.keys = _prefer_known(self.keys, slashed, keys)
        matches = pc.sum(pc.is_in(aligned.keys, keys)).as_py() or 0
        if not folders or matches == len(self.keys):
            return aligned
        beside = _prefer_known(self._read_beside(self.keys, folders), self._read_beside(slashed, folders), keys)
        if beside.equals(aligned.keys) or not pc.any(pc.is_in(beside, keys)).as_py():
            return aligned
        if matches:
            raise UsageError(
                f"labels {str(self.path)!r}: some paths are images relative to {folders[0]!r}, others relative to the file:"
                " write all of them in one way"
            )
        aligned.keys = beside
        return aligned

    def _read_beside(self, keys: pa.Array, folders: Sequence[str]) -> pa.Array:
        """Read paths as relative to the file's folder, and return them relative to the folder of images that they lie in."""
        places = dict.fromkeys(resolve(folder) for folder in folders for resolve in (os.path.abspath, os.path.realpath))
        prefixes = [place.rstrip(os.sep) + os.sep for place in places]
        home = os.path.dirname(os.path.abspath(self.path))

        def resolve(key: str) -> str:
            path = os.path.normpath(os.path.join(home, key))
            return next((path[len(prefix) :] for prefix in prefixes if path.startswith(prefix)), key)

        return pa.array(map(resolve, keys.to_pylist()), pa.large_string())

    def column(self, name: str, keys: pa.Array, labels: bool = False) -> list[str | None]:
        """Return the value for each of these paths, None where there is none. ``labels``: it is the column of labels.

        Raises UsageError for a column that does not exist, and for a path with two different values.
        """
        if name not in self.names:
            raise UsageError(f"labels {str(self.path)!r}: no column {name!r}, only {shorten_text(', '.join(self.names))}")
        values = clean_labels(join_chunks(self._table.column(name)))
        check_line_breaks(self.keys, values, name, f"labels {str(self.path)!r}")
        find_repeats(self.keys, values, f"labels {str(self.path)!r}", name, labels)
        return values.take(pc.index_in(keys, self.keys)).to_pylist()

    def count_repeats(self) -> int:
        """Count the lines whose path is also in an earlier line."""
        return len(self.keys) - pc.count_distinct(self.keys).as_py()

    def find_unmatched(self, keys: pa.Array) -> dict[str, Any]:
        """Count the paths that are not among these keys, and name the first of them."""
        missing = pc.unique(self.keys.filter(pc.invert(pc.is_in(self.keys, keys))))
        return {"count": len(missing), "first": missing[:EXAMPLES].to_pylist()}


def find_repeats(keys: pa.Array, values: pa.Array, subject: str, name: str, labels: bool) -> np.ndarray:
    """Mark the lines whose path an earlier line has, bool ``(n,)``.

    Raises UsageError for a path with two different values of the column ``name``; ``labels``: these are labels.
    """
    first = pc.index_in(keys, keys)
    differs = pc.not_equal(pc.fill_null(values, ""), pc.fill_null(values.take(first), ""))
    if pc.any(differs).as_py():
        at = pc.index(differs, True).as_py()
        one, other = values[first[at].as_py()].as_py(), values[at].as_py()
        key = keys[at].as_py()
        key = key if isinstance(key, str) else printable_key(os.fsdecode(key))
        advice = f": several labels of an image go into one line, {one}|{other}" if labels and one and other else ""
        raise UsageError(f"{subject}: {key!r} has two values of {name!r}, {one!r} and {other!r}{advice}")
    return first.to_numpy(zero_copy_only=False) != np.arange(len(keys))


def _prefer_known(keys: pa.Array, others: pa.Array, known: pa.Array) -> pa.Array:
    """Replace each key by the other one at its place if that alone is known, or by a known one of the same letters.

    macOS writes names with accents as letters of their own (Unicode's NFD), other systems do not (NFC).
    """
    chosen = pc.if_else(pc.and_not(pc.is_in(others, known), pc.is_in(keys, known)), others, keys)
    if pc.all(pc.string_is_ascii(chosen)).as_py() or pc.all(pc.is_in(chosen, known)).as_py():
        return chosen
    composed = pc.index_in(pc.utf8_normalize(chosen, "NFC"), pc.utf8_normalize(known, "NFC"))
    return pc.if_else(pc.is_in(chosen, known), chosen, pc.coalesce(known.take(composed), chosen))
