"""A store as a map: its rows as points, each block's projection, on one page; and the same as Parquet."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densefeat.base import atomic_file, output_errors, progress_bar
from densefeat.errors import UsageError
from densefeat.images import one_array
from densefeat.labels import LABEL, LabelFile, values_of
from densefeat.map.colours import Colouring, by_cluster, by_values, predictions_of
from densefeat.map.page import LONGEST, Content, Fact, page
from densefeat.map.projection import TITLES, check_method, clusters, project
from densefeat.map.rows import Shown, columns_of_blocks, shown_rows
from densefeat.map.table import write_table
from densefeat.map.thumbnails import Sheets, no_sheets, sheets_of
from densefeat.probe import Probe, load_probe
from densefeat.search import Entry, place_fields
from densefeat.store import Store, check_output, points_beside

_PAGE_BYTES = 25_000_000
_CLUSTERS = 10
_ENCODED = ("utf-8", "backslashreplace")  # of folders whose names are no text
_NOTE_BYTES = 10_000  # for the notes on thumbnails and size
_ELSEWHERE = re.compile(r"^hf:|://|[*?\[{]")  # of images: an address, or a pattern


@dataclass(frozen=True)
class Mapped:
    """What was written: ``notes`` are those of the page."""

    page: Path
    table: Path
    points: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Described:
    """What is known of the points, beside where they are. ``values``: columns of the table."""

    facts: list[Fact]
    colourings: list[Colouring]
    values: dict[str, Sequence[str | None] | np.ndarray]
    notes: list[str]

    @property
    def labelled(self) -> bool:
        return "label" in self.values


def write_map(
    store: Store,
    out: Path,
    method: str = "pca",
    *,
    images: str | None = None,
    probe: Path | None = None,
    labels: Path | None = None,
    label_column: str | None = None,
    cluster_count: int = _CLUSTERS,
    pool: str | None = None,
    progress: bool = False,
) -> Mapped:
    """One page at ``out``, at most 25 MB unless paths and labels alone are more, and beside it the points as Parquet; each
    whole or not at all.

    Args:
        method: pca, umap or tsne, for every block.
        images: Where the images are. None: where the store's job found them, unless that is on a network.
        probe: Folder or file of a probe fitted on this store's features.
        labels: A CSV of path and label. None: the store's own, where it has any. label_column: other than ``label``.
        cluster_count: Of k-means on the last block's features.
        pool: Of a store with several. None: its first.
        progress: Shown on a terminal.

    Raises:
        UsageError: No rows, no pooled features, no such column or method, a probe of other features; a page that is not
            .html, or inside a store; a file beside it that is no map's. OutputError.
    """
    check_method(method)
    table = _table_beside(out)
    _check_there(images, probe)
    fitted = None if probe is None else load_probe(probe)
    texts = _label_texts(store, labels, label_column)
    columns = columns_of_blocks(store, pool)
    more = [] if fitted is None else _columns_of_probe(store, fitted)
    with progress_bar("reading", len({*columns.values(), *more}), "columns", progress) as done:
        shown = shown_rows(store, columns, more, done)
    points, told = _projected(shown, method, progress)
    with progress_bar("predictions and clusters", 1, "steps", progress) as done:
        known = _described(shown, texts, label_column or LABEL, fitted, cluster_count)
        done(1)
    entries = _entries_of(shown)
    content = Content(
        f"Map of {store.path}",
        [entry.name for entry in entries],
        points,
        told,
        known.facts,
        known.colourings,
        known.labelled,
    )
    write_table(table, shown, points, known.values)
    notes = [_first_note(shown, told, method), *shown.notes, *known.notes]
    return Mapped(out, table, len(entries), tuple(_write_page(out, content, shown, entries, notes, images, progress)))


def _table_beside(out: Path) -> Path:
    """Of a page that may be written, as :mod:`densefeat.store.outputs` has it."""
    if out.suffix.lower() != ".html":
        raise UsageError(f"output {str(out)!r}: the page's name must end in .html; its points go beside it, as .parquet")
    check_output(out)
    return points_beside(out)


def _check_there(images: str | None, probe: Path | None) -> None:
    """UsageError for a probe or images that are named and are not there; addresses and patterns are not asked."""
    if probe is not None and not probe.exists():
        raise UsageError(f"probe {str(probe)!r}: no such file or folder; give what `densefeat probe --out` was given")
    if images is not None and not _ELSEWHERE.search(images) and not Path(images).exists():
        raise UsageError(f"images {images!r}: no such folder or file")


def _columns_of_probe(store: Store, probe: Probe) -> list[str]:
    """UsageError where the store has not all of them."""
    columns = list(probe.columns)
    if missing := [name for name in columns if name not in store.shapes]:
        raise UsageError(f"{store.path} has no features {', '.join(missing)} for this probe: it takes {', '.join(columns)}")
    return columns


def _label_texts(store: Store, file: Path | None, column: str | None) -> list[str | None] | None:
    """Of all rows; None where there are none and none were asked for."""
    if file is None and column is None and LABEL not in store.schema.names:
        return None
    keys = one_array(store.column("path")).cast("large_string")
    return values_of([store], None if file is None else LabelFile(file), column or LABEL, keys, needed=True)


def _projected(shown: Shown, method: str, progress: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Points, and how they were made, by block."""
    points, told = {}, {}
    with progress_bar(f"projecting by {TITLES[method]}", len(shown.columns), "blocks", progress) as done:
        for block, column in shown.columns.items():
            points[block], told[block] = project(shown.features[column], method)
            done(1)
    return points, told


def _described(shown: Shown, texts: list[str | None] | None, name: str, probe: Probe | None, count: int) -> Described:
    """``texts``: labels of all rows; ``name``: what they are called; ``count``: of clusters."""
    known = Described([], [], {}, [])
    labels = [None] * len(shown.rows) if texts is None else [texts[row] for row in shown.rows.tolist()]
    if any(label is not None for label in labels):
        known.facts.append(Fact(name, labels))
        known.colourings.append(by_values(name, labels))
        known.values["label"] = labels
    if probe is not None:
        _add_probe(known, shown, labels, probe)
    last = list(shown.columns)[-1]
    found = clusters(shown.features[shown.columns[last]], count)
    known.facts.append(Fact("cluster", [str(number + 1) for number in found.tolist()]))
    known.colourings.append(by_cluster(f"cluster of {last}", found))
    known.values["cluster"] = (found + 1).astype(np.int32)
    known.notes.append(f"Clusters: {found.max() + 1} by k-means on {shown.columns[last]}, numbered from the largest.")
    if any(text is not None and len(text) > LONGEST for fact in known.facts for text in fact.texts):
        known.notes.append(f"Labels of more than {LONGEST} characters are cut on the page.")
    return known


def _add_probe(known: Described, shown: Shown, labels: Sequence[str | None], probe: Probe) -> None:
    """Its failures are what the page shows first."""
    made = predictions_of(probe, shown, labels)
    known.facts.append(Fact("predicted", made.texts))
    known.colourings.append(by_values("predicted", made.texts))
    if any(label is not None for label in labels):
        known.colourings.insert(0, made.failure)
    known.values["predicted"] = made.texts
    known.notes.append(f"Predictions: {probe.path}; it may have learnt from some of these rows.")


def _entries_of(shown: Shown) -> list[Entry]:
    names = [name for name in place_fields(shown.store) if name != "label"]
    columns = [shown.store.column(name).take(shown.rows).to_pylist() for name in names]
    return [Entry(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _first_note(shown: Shown, told: Mapping[str, str], method: str) -> str:
    """``told``: how each block's points were made, which may be by PCA where ``method`` needs more points or dimensions."""
    model, count = shown.store.provenance.get("model", "a network"), len(shown.rows)
    ways: dict[str, list[str]] = {}
    for block, column in shown.columns.items():
        title = TITLES[method] if told[block].startswith(TITLES[method]) else f"PCA, which stands in for {TITLES[method]}"
        ways.setdefault(title, []).append(column)
    made = "; ".join(f"{', '.join(some)} by {title}" for title, some in ways.items())
    return f"{count:,} point{'' if count == 1 else 's'} of {model}: {made}."


def _write_page(
    out: Path, content: Content, shown: Shown, entries: list[Entry], notes: list[str], images: str | None, progress: bool
) -> list[str]:
    """Returns the page's notes, with the one on thumbnails."""
    plain = len(page(content, no_sheets(len(entries)), notes).encode(*_ENCODED))
    room = _PAGE_BYTES - plain - _NOTE_BYTES
    with progress_bar("thumbnails", len(entries), "images", progress) as done:
        sheets = sheets_of(shown.store.provenance, entries, room, images, done)
    notes = notes + _thumbnail_notes(sheets, len(entries))
    if plain > _PAGE_BYTES:
        notes.append(
            f"The page has {plain / 1e6:.0f} MB rather than at most {_PAGE_BYTES // 10**6}: its paths and labels are long."
        )
    with atomic_file(out) as beside, output_errors(out):
        beside.write_text(page(content, sheets, notes), *_ENCODED)
    return notes


def _thumbnail_notes(sheets: Sheets, points: int) -> list[str]:
    there = int(np.count_nonzero(sheets.squares >= 0))
    if there == points:
        return []
    if sheets.problem:
        why = sheets.problem
    elif sheets.full:
        why = f"chosen evenly, more would make the page larger than {_PAGE_BYTES // 10**6} MB"
    else:
        why = "the other images were not found or could not be decoded"
    return [f"Thumbnails of {there:,} of {points:,} points: {why}."]
