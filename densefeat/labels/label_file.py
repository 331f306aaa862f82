"""CSV files of labels, and of other columns, by the path of each image."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from densefeat.base import describe_error
from densefeat.errors import UsageError
from densefeat.images import BOM, DELIMITERS, PATH, check_column, join_chunks, normalise_paths, printable_key

_MAX_BYTES = 2**30
_MAX_HEADER = 2**20
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
            self._table = _read_texts(path)
            check_column(self._table.schema, PATH, str(path))
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, UsageError):
                raise UsageError(f"{subject}: {_short(str(error).partition(': ')[2])}") from error
            advice = "give a CSV file in UTF-8 with the columns path,label"
            raise UsageError(f"{subject}: {_short(describe_error(error))}; {advice}") from error
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
            raise UsageError(f"labels {str(self.path)!r}: no column {name!r}, only {_short(', '.join(self.names))}")
        values = strip_blanks(join_chunks(self._table.column(name)))
        self._check_lines(name, values)
        find_repeats(self.keys, values, f"labels {str(self.path)!r}", name, labels)
        return values.take(pc.index_in(keys, self.keys)).to_pylist()

    def _check_lines(self, name: str, values: pa.Array) -> None:
        broken = pc.or_(pc.fill_null(pc.match_substring(values, "\n"), False), pc.match_substring(self.keys, "\n"))
        if pc.any(broken).as_py():
            path = _short(self.keys[pc.index(broken, True).as_py()].as_py())
            raise UsageError(f"labels {str(self.path)!r}: {name!r} of {path!r} spans several lines: is a quote not closed?")

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


def _read_texts(path: Path) -> pa.Table:
    """Read all columns as text, empty fields as null."""
    with open(path, "rb") as file:
        header = file.readline(_MAX_HEADER).removeprefix(BOM)
    if not header.strip():
        raise ValueError("it has no header")
    if b"\0" in header:
        raise ValueError("it is a binary file")
    parse = pa_csv.ParseOptions(delimiter=DELIMITERS.get(path.suffix.lower(), ","), newlines_in_values=True)
    with pa_csv.open_csv(path, parse_options=parse) as head:
        names = head.schema.names
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.large_string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    return pa_csv.read_csv(path, parse_options=parse, convert_options=convert)


def strip_blanks(values: pa.Array) -> pa.Array:
    """Remove blanks at both ends; null where nothing is left."""
    values = pc.utf8_trim_whitespace(values.cast(pa.large_string()))
    return pc.if_else(pc.equal(values, ""), None, values)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
