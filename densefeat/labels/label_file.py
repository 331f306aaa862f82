"""Labels, and whatever else is told of images, in a CSV by their paths."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from densefeat.errors import UsageError
from densefeat.images import BOM, DELIMITERS, PATH, check_column, normalised, one_array, reason_of

_MAX_BYTES = 2**30  # of a CSV
_MAX_HEADER = 2**20
EXAMPLES = 3  # of rows that a message is about


class LabelFile:
    """A CSV (or TSV) with a header, the column ``path``, and others: all as text. UsageError for anything else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shown = f"labels {str(path)!r}"
        if not path.is_file():
            raise UsageError(f"{shown}: {'a folder' if path.is_dir() else 'no such file'}; give a CSV with columns path,label")
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise UsageError(f"{shown}: more than {_MAX_BYTES:,} bytes: give only the columns that are needed")
            self._table = _read_texts(path)
            check_column(self._table.schema, PATH, str(path))
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, UsageError):
                raise UsageError(f"{shown}: {_short(str(error).partition(': ')[2])}") from error
            raise UsageError(f"{shown}: {_short(reason_of(error))}; give a CSV in UTF-8 with columns path,label") from error
        paths = one_array(self._table.column(PATH)).cast(pa.large_binary())
        self.keys = normalised(paths, []).cast(pa.large_string())

    @property
    def names(self) -> list[str]:
        return self._table.schema.names

    def column(self, name: str, keys: pa.Array) -> list[str | None]:
        """The values for these paths; None where there is none. UsageError for a path with two different ones."""
        if name not in self.names:
            raise UsageError(f"labels {str(self.path)!r}: no column {name!r}: it has {_short(', '.join(self.names))}")
        values = strip_blanks(one_array(self._table.column(name)))
        self._check_lines(name, values)
        first = pc.index_in(self.keys, self.keys)
        differs = pc.fill_null(pc.not_equal(pc.fill_null(values, ""), pc.fill_null(values.take(first), "")), False)
        if pc.any(differs).as_py():
            at = pc.index(differs, True).as_py()
            told = f"{values[first[at].as_py()].as_py()!r} and {values[at].as_py()!r}"
            raise UsageError(f"labels {str(self.path)!r}: {self.keys[at].as_py()!r} has two values of {name!r}, {told}")
        return values.take(pc.index_in(keys, self.keys)).to_pylist()

    def _check_lines(self, name: str, values: pa.Array) -> None:
        broken = pc.or_(pc.fill_null(pc.match_substring(values, "\n"), False), pc.match_substring(self.keys, "\n"))
        if pc.any(broken).as_py():
            path = _short(self.keys[pc.index(broken, True).as_py()].as_py())
            raise UsageError(
                f"labels {str(self.path)!r}: {name!r} of {path!r} goes over several lines: a quote that is not closed?"
            )

    def repeats(self) -> int:
        return len(self.keys) - pc.count_distinct(self.keys).as_py()

    def without_row(self, keys: pa.Array) -> dict[str, Any]:
        """Of the paths that the store does not have: how many, and the first."""
        missing = pc.unique(self.keys.filter(pc.invert(pc.is_in(self.keys, keys))))
        return {"count": len(missing), "first": missing[:EXAMPLES].to_pylist()}


def _read_texts(path: Path) -> pa.Table:
    """All columns as text; an empty field is null."""
    with open(path, "rb") as file:
        header = file.readline(_MAX_HEADER).removeprefix(BOM)
    if not header.strip():
        raise ValueError("no header in it")
    if b"\0" in header:
        raise ValueError("a binary file")
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
    """Without blanks around them; null where nothing is left."""
    values = pc.utf8_trim_whitespace(values.cast(pa.large_string()))
    return pc.if_else(pc.equal(values, ""), None, values)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
