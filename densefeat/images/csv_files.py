"""CSV and TSV files with a header, as lists of images and files of labels have them; this file alone reads them."""

import codecs
import csv
from collections.abc import Mapping
from io import TextIOWrapper
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from densefeat.base import shorten_text
from densefeat.errors import UsageError
from densefeat.images.rows import check_column

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BOM = b"\xef\xbb\xbf"
_MAX_HEADER = 2**20
_NOT_CLOSED = "spans several lines: is a quote not closed?"


def read_csv(
    file: BinaryIO, delimiter: str, subject: str, required: Mapping[str, pa.DataType], advice: str = "", others: bool = False
) -> pa.Table:
    """Read columns as they are written; an empty field is null.

    ``required``: the columns that must be there, with their types, the one of paths first; ``advice``: what to do where that
    one is missing; ``others``: read the other columns, too, as text. ``subject``: begins each message,
    such as "labels 'a.csv'".
    Raises UsageError for a file that is not such a table, pyarrow's errors for broken lines.
    """
    check_encoding(file, subject)
    header = file.read(_MAX_HEADER).removeprefix(BOM).lstrip().partition(b"\n")[0]
    file.seek(0)
    if not header:
        raise UsageError(f"{subject}: it has no header: the first line names the columns, such as path,label")
    if b"\0" in header:
        raise UsageError(f"{subject}: a binary file, or text in UTF-16: save it as text in UTF-8")
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        with pa_csv.open_csv(file, parse_options=parse) as head:
            schema = head.schema
        for number, column in enumerate(required):
            check_column(schema, column, subject, _advise_on_separators(schema) or ("" if number else advice))
        types = (dict.fromkeys(schema.names, pa.large_string()) if others else {}) | dict(required)
        convert = pa_csv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )
        file.seek(0)
        table = pa_csv.read_csv(file, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error):
            problem = "text that is not UTF-8, as some programs write it (Latin-1, Windows-1252): save it as UTF-8"
            raise UsageError(f"{subject}: {_find_line(file)}{problem}") from error
        raise
    _check_quotes(file, len(table), delimiter, subject)
    return table


def check_encoding(file: BinaryIO, subject: str) -> None:
    """Raise UsageError for text in UTF-16, by its first bytes; the file is left at its start."""
    start = file.read(2)
    file.seek(0)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise UsageError(f"{subject}: text in UTF-16, as some Windows programs write it: save it as UTF-8")


def check_line_breaks(paths: pa.Array, values: pa.Array, name: str, subject: str) -> None:
    """Raise UsageError for a path or a value of the column ``name`` with a line break in it.

    Two quotes that are not closed make a pair, and the lines between them a part of a field.
    """
    broken = [pc.fill_null(pc.match_substring_regex(column, r"[\r\n]"), False) for column in (paths, values)]
    at = pc.index(pc.or_(*broken), True).as_py()
    if at >= 0:
        path = (paths[at].cast(pa.large_binary()).as_py() or b"").decode("utf-8", "backslashreplace")
        raise UsageError(f"{subject}: {name!r} of {shorten_text(path)!r} {_NOT_CLOSED}")


def _find_line(file: BinaryIO) -> str:
    """Name the first line that is not UTF-8."""
    file.seek(0)
    for number, line in enumerate(file, 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            return f"line {number:,}, byte {error.start + 1:,}: "
    return ""


def _check_quotes(file: BinaryIO, rows: int, delimiter: str, subject: str) -> None:
    """Raise UsageError where a quote in any column is not closed: pyarrow takes the lines behind it into the field.

    Only files in which a field spans lines are read for this, since Python's reader is slow.
    """
    file.seek(0)
    if sum(1 for line in file if line.strip(b"\r\n")) == rows + 1:
        return
    file.seek(0)
    text = TextIOWrapper(file, "latin-1", newline="")
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    start = 1
    try:
        for _ in lines:
            start = lines.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{subject}: a field of line {start} {_NOT_CLOSED}") from error
    finally:
        text.detach()  # else it would close the file


def _advise_on_separators(schema: pa.Schema) -> str:
    """Say what to do where all columns were read as one."""
    if len(schema) == 1 and any(letter in schema.names[0] for letter in ";\t,"):
        return "; separate columns by commas in .csv, by tabs in .tsv"
    return ""
