"""The result of a search as one HTML page with thumbnails."""

from collections.abc import Iterator
from pathlib import Path

from densefeat.base import ImageCard, Section, is_page, render_page, save_page
from densefeat.search.results import Group, Neighbours, Pairs
from densefeat.store import ImageEntry, check_output, make_file_thumbnail, make_thumbnails

_MAX_IMAGES = 1000  # on a page
_MAX_GROUP_IMAGES = 24


def write_page(path: Path, result: Neighbours | Pairs, images: str | Path | None = None) -> str | None:
    """Write the page to ``path``, whole or not at all; return why images are missing from it, or None.

    ``images``: where the images are; None: the page shows none, as in :func:`densefeat.store.thumbnails.make_thumbnails`. An
    image that cannot be read is a grey box.
    Raises OutputError where the page cannot be written, UsageError where it would lie in a store or replace what is no page of
    densefeat.
    """
    check_output(path, is_page)
    if isinstance(result, Neighbours):
        entries = [query.entry for query in result.queries if query.row is not None] + list(result.entries.values())
        pictures, problem = make_thumbnails(result.store.provenance, entries[:_MAX_IMAGES], images)
        sections = list(_make_query_sections(result, pictures))
    else:
        groups = _choose_groups(result)
        entries = [result.entries[row] for group in groups for row in group.rows[:_MAX_GROUP_IMAGES].tolist()]
        pictures, problem = make_thumbnails(result.store.provenance, entries, images)
        sections = list(_make_group_sections(result, groups, pictures))
    kind = "Near neighbours" if isinstance(result, Neighbours) else "Near duplicates"
    notes = _make_notes(result) + ([f"Images could not be shown: {problem}"] if problem else [])
    save_page(path, render_page(f"{kind} in {result.store.path}", notes, sections, side_by_side=isinstance(result, Pairs)))
    return problem


def _make_notes(result: Neighbours | Pairs) -> list[str]:
    measure = "distance" if result.metric == "euclidean" else "similarity"
    model = result.store.provenance.get("model", "a network")
    notes = [f"{len(result.store):,} rows, {result.column} of {model}; {result.metric} {measure}"]
    if isinstance(result, Pairs):
        limit = "at most" if result.metric == "euclidean" else "at least"
        notes[0] += f" {limit} {result.threshold:g}"
        notes.append(
            f"{len(result.pairs.first):,} pairs in {result.group_count:,} groups; under each image its score in its best pair"
        )
        if not result.pairs.complete:
            notes.append("The search stopped at this number of pairs: there are more.")
    return notes


def _make_query_sections(result: Neighbours, pictures: dict[ImageEntry, str]) -> Iterator[Section]:
    for number, query in enumerate(result.queries):
        picture = (
            make_file_thumbnail(query.entry.path, result.store.provenance) if query.row is None else pictures.get(query.entry)
        )
        cards = [ImageCard("query", picture=picture, is_query=True, **vars(query.entry))]
        cards += [
            ImageCard(f"{rank} · {score:.4f}", picture=pictures.get(entry), **vars(entry))
            for rank, score, entry in result.list_neighbours(number)
        ]
        yield Section(f"Nearest to {query.entry.name}", cards)


def _choose_groups(result: Pairs) -> list[Group]:
    """Return the best groups, as many as a page holds."""
    groups, room = [], _MAX_IMAGES
    for group in result.groups():
        room -= min(len(group.rows), _MAX_GROUP_IMAGES)
        if room < 0:
            break
        groups.append(group)
    return groups


def _make_group_sections(result: Pairs, groups: list[Group], pictures: dict[ImageEntry, str]) -> Iterator[Section]:
    for number, group in enumerate(groups, 1):
        cards = []
        for row, score in zip(group.rows[:_MAX_GROUP_IMAGES].tolist(), group.scores, strict=False):
            entry = result.entries[row]
            cards.append(ImageCard(f"{score:.4f}", picture=pictures.get(entry), **vars(entry)))
        shown = f", {_MAX_GROUP_IMAGES} shown" if len(group.rows) > _MAX_GROUP_IMAGES else ""
        yield Section(f"Group {number}: {len(group.rows)} images{shown}", cards)
    if (hidden := result.group_count - len(groups)) > 0:
        yield Section(text=f"{hidden:,} more groups are not shown.")
