"""The text of a label, without what programs write around it."""

import pyarrow as pa
import pyarrow.compute as pc

_BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff\0"  # all of Unicode's, byte order mark, NUL


def clean_label(text: str) -> str | None:
    """Remove blanks, byte order marks and NULs at both ends; None where nothing is left."""
    return text.strip(_BLANKS) or None


def clean_labels(values: pa.Array) -> pa.LargeStringArray:
    """Clean each text as :func:`clean_label` does."""
    values = pc.utf8_trim(values.cast(pa.large_string()), _BLANKS)
    return pc.if_else(pc.equal(values, ""), None, values)
