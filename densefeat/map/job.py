"""The job of ``densefeat map``: the rows of a store as points on one page, and the same points as Parquet."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densefeat.base import atomic_file, is_page, output_errors, progress_bar, save_page
from densefeat.errors import UsageError
from densefeat.images import join_chunks
from densefeat.labels import LABEL, LabelFile, find_image_folders, read_text_column
from densefeat.map.colours import Colouring, colour_by_cluster, colour_by_values, predict_points
from densefeat.map.page import LONGEST_LABEL, MapContent, PointFact, render_map
from densefeat.map.projection import TITLES, check_method, find_clusters, project
from densefeat.map.rows import MapRows, choose_block_columns, read_map_rows
from densefeat.map.thumbnails import Sheets, empty_sheets, make_sheets
from densefeat.probing import Probe, load_probe
from densefeat.store import MAP_KEY, ImageEntry, Store, check_output, choose_points_file, is_points_file, list_entry_columns

_PAGE_BYTES = 25_000_000
_NOTE_BYTES = 10_000  # kept free for the notes on thumbnails and size
_CLUSTERS = 10
_ENCODING = ("utf-8", "backslashreplace")  # as save_page writes it
_NOT_LOCAL = re.compile(r"^hf:|://|[*?\[{]")  # an address, or a pattern


@dataclass(frozen=True)
class MapResult:
    """The files that were written. ``notes`` are those of the page."""

    page: Path
    table: Path
    points: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PointDetails:
    """The facts about the points besides their places. ``values`` are columns of the table."""

    facts: list[PointFact] = field(default_factory=list)
    colourings: list[Colouring] = field(default_factory=list)
    values: dict[str, Sequence[str | None] | np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
) -> MapResult:
    """Write a page at ``out``, and beside it the points as Parquet; neither file is ever incomplete.

    The page has at most 25 MB, unless paths and labels alone are more.

    Args:
        method: ``"pca"``, ``"umap"`` or ``"tsne"``, for every block.
        images: Where the images are. None: the page has no thumbnails.
        probe: The folder or file of a probe that was fitted on this store's features.
        labels: A CSV file of path and label. None stands for the store's own labels, if it has any.
        label_column: The column with the labels, if it is not ``label``.
        cluster_count: The number of clusters of the last block's features.
        pool: The pooling to show, for a store with several. None stands for its first.
        progress: Whether to show progress on a terminal.

    Raises:
        UsageError: The store has no rows, no pooled features or no such column; the method is not available; the probe is for
            other features; the page's name does not end in .html, or lies in a store; the file beside it is not a map's.
        OutputError: A file cannot be written.
    """
    check_method(method)
    table = _choose_table(out)
    _check_inputs(images, probe)
    fitted = None if probe is None else load_probe(probe)
    texts = _read_labels(store, labels, label_column)
    columns = choose_block_columns(store, pool)
    more = [] if fitted is None else _find_probe_columns(store, fitted)
    with progress_bar("reading", len({*columns.values(), *more}), "columns", progress) as advance:
        rows = read_map_rows(store, columns, more, advance)
    points, projections = _project_blocks(rows, method, progress)
    with progress_bar("predictions and clusters", 1, "steps", progress) as advance:
        details = _collect_details(rows, texts, label_column or LABEL, fitted, cluster_count)
        advance(1)
    entries = _read_entries(rows)
    content = MapContent(
        title=f"Map of {store.path}",
        names=[entry.name for entry in entries],
        points=points,
        projections=projections,
        facts=details.facts,
        colourings=details.colourings,
        labelled="label" in details.values,
    )
    _write_table(table, rows, points, details.values)
    notes = [_summarize(rows, projections, method), *rows.notes, *details.notes]
    notes = _write_page(out, content, rows, entries, notes, images, progress)
    return MapResult(out, table, len(entries), tuple(notes))


def _choose_table(out: Path) -> Path:
    """Check where the page goes, and return the path of the table beside it."""
    if out.suffix.lower() != ".html":
        raise UsageError(f"output {str(out)!r}: the page's name must end in .html; its points go beside it, as .parquet")
    check_output(out, is_page)
    return choose_points_file(out)


def _check_inputs(images: str | None, probe: Path | None) -> None:
    """Raise UsageError for a local probe or local images that do not exist."""
    if probe is not None and not probe.exists():
        raise UsageError(f"probe {str(probe)!r}: no such file or folder; give the --out of `densefeat probe`")
    if images is not None and not _NOT_LOCAL.search(images) and not Path(images).exists():
        raise UsageError(f"images {images!r}: no such folder or file")


def _find_probe_columns(store: Store, probe: Probe) -> list[str]:
    columns = list(probe.columns)
    if missing := [name for name in columns if name not in store.shapes]:
        raise UsageError(f"{store.path} has no features {', '.join(missing)} for this probe: it takes {', '.join(columns)}")
    return columns


def _read_labels(store: Store, file: Path | None, column: str | None) -> list[str | None] | None:
    """Read the labels of all rows; return None if the store has none and no file or column was named."""
    if file is None and column is None and LABEL not in store.schema.names:
        return None
    keys = join_chunks(store.column("path")).cast("large_string")
    label_file = None if file is None else LabelFile(file).align(keys, find_image_folders([store]))
    return read_text_column([store], label_file, column or LABEL, keys, labels=True)


def _project_blocks(rows: MapRows, method: str, progress: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return for each block its points, and how they were made, in words."""
    points, projections = {}, {}
    with progress_bar(f"projecting by {TITLES[method]}", len(rows.columns), "blocks", progress) as advance:
        for block, column in rows.columns.items():
            points[block], projections[block] = project(rows.features[column], method)
            advance(1)
    return points, projections


def _collect_details(
    rows: MapRows, texts: list[str | None] | None, name: str, probe: Probe | None, cluster_count: int
) -> PointDetails:
    """Collect labels, predictions and clusters. ``texts`` are the labels of all rows of the store, called ``name``."""
    details = PointDetails()
    labels = [None] * len(rows.rows) if texts is None else [texts[row] for row in rows.rows.tolist()]
    if any(label is not None for label in labels):
        details.facts.append(PointFact(name, labels))
        details.colourings.append(colour_by_values(name, labels))
        details.values["label"] = labels
    if probe is not None:
        _add_predictions(details, rows, labels, probe)
    last, column = list(rows.columns.items())[-1]
    clusters = find_clusters(rows.features[column], cluster_count)
    details.facts.append(PointFact("cluster", [str(number + 1) for number in clusters.tolist()]))
    details.colourings.append(colour_by_cluster(f"cluster of {last}", clusters))
    details.values["cluster"] = (clusters + 1).astype(np.int32)
    details.notes.append(f"Clusters: {clusters.max() + 1} by k-means on {column}, numbered from the largest.")
    if any(text is not None and len(text) > LONGEST_LABEL for fact in details.facts for text in fact.texts):
        details.notes.append(f"Labels of more than {LONGEST_LABEL} characters are cut on the page.")
    return details


def _add_predictions(details: PointDetails, rows: MapRows, labels: Sequence[str | None], probe: Probe) -> None:
    """Add a probe's predictions. Where there are labels, the page first shows which predictions are wrong."""
    predictions = predict_points(probe, rows, labels)
    details.facts.append(PointFact("predicted", predictions.texts))
    details.colourings.append(colour_by_values("predicted", predictions.texts))
    if any(label is not None for label in labels):
        details.colourings.insert(0, predictions.outcome)
    details.values["predicted"] = predictions.texts
    details.notes.append(f"Predictions: {probe.path}; it may have been trained on some of these rows.")


def _read_entries(rows: MapRows) -> list[ImageEntry]:
    names = [name for name in list_entry_columns(rows.store) if name != "label"]
    columns = [rows.store.column(name).take(rows.rows).to_pylist() for name in names]
    return [ImageEntry(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _write_table(
    path: Path, rows: MapRows, points: Mapping[str, np.ndarray], values: Mapping[str, Sequence[str | None] | np.ndarray]
) -> None:
    """Write the points as Parquet, which embedding-atlas and others open.

    Columns: ``path``, ``x`` and ``y`` of a tile, then ``values`` by name, then for each block BLOCK_x and BLOCK_y, float32. The
    schema's metadata marks the file as a map's.
    """
    columns = {
        name: rows.store.column(name).take(rows.rows)
        for name in list_entry_columns(rows.store)
        if name not in ("label", *values)
    }
    columns |= {name: pa.array(column) for name, column in values.items()}
    for block, places in points.items():
        columns |= {f"{block}_{axis}": pa.array(places[:, number]) for number, axis in enumerate("xy")}
    with atomic_file(path, is_points_file) as beside, output_errors(path), open(beside, "wb") as file:
        pq.write_table(pa.table(columns).replace_schema_metadata({MAP_KEY: b"1"}), file, compression="zstd")


def _summarize(rows: MapRows, projections: Mapping[str, str], method: str) -> str:
    """Describe the map in a sentence: its points, and the method that projected each block."""
    model, count = rows.store.provenance.get("model", "a network"), len(rows.rows)
    columns: dict[str, list[str]] = {}
    for block, column in rows.columns.items():
        as_requested = projections[block].startswith(TITLES[method])
        title = TITLES[method] if as_requested else f"PCA, in place of {TITLES[method]}"
        columns.setdefault(title, []).append(column)
    methods = "; ".join(f"{', '.join(names)} by {title}" for title, names in columns.items())
    return f"{count:,} point{'' if count == 1 else 's'} of {model}: {methods}."


def _write_page(
    out: Path,
    content: MapContent,
    rows: MapRows,
    entries: list[ImageEntry],
    notes: list[str],
    images: str | None,
    progress: bool,
) -> list[str]:
    """Write the page with as many thumbnails as fit; return its notes, the one on thumbnails among them."""
    plain = len(render_map(content, empty_sheets(len(entries)), notes).encode(*_ENCODING))
    room = _PAGE_BYTES - plain - _NOTE_BYTES
    with progress_bar("thumbnails", len(entries), "images", progress) as advance:
        sheets = make_sheets(rows.store.provenance, entries, room, images, advance)
    notes = notes + _note_thumbnails(sheets, len(entries))
    if plain > _PAGE_BYTES:
        limit = _PAGE_BYTES // 10**6
        notes.append(f"The page has {plain / 1e6:.0f} MB rather than at most {limit}: its paths and labels are long.")
    save_page(out, render_map(content, sheets, notes))
    return notes


def _note_thumbnails(sheets: Sheets, points: int) -> list[str]:
    """Return a note on how many points have thumbnails, and why others have none; no note if all have one."""
    count = int(np.count_nonzero(sheets.squares >= 0))
    if count == points:
        return []
    if sheets.problem:
        reason = sheets.problem
    elif sheets.full:
        reason = f"chosen evenly, more would make the page larger than {_PAGE_BYTES // 10**6} MB"
    else:
        reason = "the other images were not found or could not be decoded"
    return [f"Thumbnails of {count:,} of {points:,} points: {reason}."]
