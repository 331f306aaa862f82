"""CSV files of labels, and of other columns, by the path of each image."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from densefeat.base import describe_error
from densefeat.errors import UsageError
from densefeat.images import BOM, DELIMITERS, PATH, check_column, join_chunks, normalise_paths

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

    def column(self, name: str, keys: pa.Array) -> list[str | None]:
        """Return the value for each of these paths, None where there is none.

        Raises UsageError for a column that does not exist, and for a path with two different values.
        """
        if name not in self.names:
            raise UsageError(f"labels {str(self.path)!r}: no column {name!r}, only {_short(', '.join(self.names))}")
        values = strip_blanks(join_chunks(self._table.column(name)))
        self._check_lines(name, values)
        first = pc.index_in(self.keys, self.keys)
        differs = pc.fill_null(pc.not_equal(pc.fill_null(values, ""), pc.fill_null(values.take(first), "")), False)
        if pc.any(differs).as_py():
            at = pc.index(differs, True).as_py()
            both = f"{values[first[at].as_py()].as_py()!r} and {values[at].as_py()!r}"
            raise UsageError(f"labels {str(self.path)!r}: {self.keys[at].as_py()!r} has two values of {name!r}, {both}")
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
