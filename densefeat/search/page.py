"""What was found as one page of HTML, with thumbnails, that needs nothing beside it."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from densefeat.base import atomic_file, output_errors
from densefeat.search.results import Entry, Group, Neighbours, Pairs
from densefeat.store import thumbnail_of_file, thumbnails

_SHOWN = 1000  # images on a page
_SHOWN_OF_GROUP = 24

_STYLE = """
:root { color-scheme: light dark; --line: #d9d9d9; --quiet: #666; --box: #e4e4e4; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --quiet: #aaa; --box: #3a3a3a; } }
body { font: 14px/1.4 system-ui, sans-serif; margin: 24px auto; max-width: 1280px; padding: 0 16px; }
h1 { font-size: 20px; margin: 0 0 4px; }
h2 { font-size: 15px; margin: 0 0 12px; }
p { color: var(--quiet); margin: 0 0 4px; }
section { border-top: 1px solid var(--line); margin-top: 20px; padding-top: 16px; }
.groups { display: flex; flex-wrap: wrap; gap: 0 40px; }
.cards { display: flex; flex-wrap: wrap; gap: 16px; }
figure { margin: 0; width: 160px; }
figure.query { border-right: 1px solid var(--line); padding-right: 16px; }
.picture { align-items: flex-end; display: flex; height: 160px; justify-content: center; width: 160px; }
.picture img { max-height: 160px; max-width: 160px; }
.missing { align-items: center; background: var(--box); color: var(--quiet); font-size: 12px; }
figcaption { font-size: 12px; overflow-wrap: anywhere; padding-top: 4px; }
figcaption b { font-size: 14px; }
figcaption span { color: var(--quiet); }
"""


def write_page(path: Path, found: Neighbours | Pairs, images: str | Path | None = None) -> str | None:
    """A page at ``path``, whole or not at all; returns what the reader should know about its pictures, or None.

    ``images``: as in :func:`densefeat.store.originals.thumbnails`. An image that cannot be shown is a grey box with its path.
    Raises OutputError where it cannot be written.
    """
    with atomic_file(path) as beside:
        if isinstance(found, Neighbours):
            wanted = [query.entry for query in found.queries if query.row is not None] + list(found.entries.values())
            pictures, problem = thumbnails(found.store, wanted[:_SHOWN], images)
            sections, kind = list(_neighbour_sections(found, pictures)), ""
        else:
            groups = _shown_groups(found)
            wanted = [found.entries[row] for group in groups for row in group.rows[:_SHOWN_OF_GROUP].tolist()]
            pictures, problem = thumbnails(found.store, wanted, images)
            sections, kind = _group_sections(found, groups, pictures), ' class="groups"'
        with output_errors(path), open(beside, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(format_page(_title_of(found), _notes_of(found, problem), sections, kind))
    return problem


def format_page(title: str, notes: list[str], sections: list[str], kind: str = "", style: str = "") -> str:
    """``sections``: HTML; ``kind``: attributes of what is around them; ``style``: more of it."""
    told = "\n".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{told}
<main{kind}>
{"".join(sections)}</main>
</body>
</html>
"""


def _title_of(found: Neighbours | Pairs) -> str:
    what = "Near neighbours" if isinstance(found, Neighbours) else "Near duplicates"
    return f"{what} in {found.store.path}"


def _notes_of(found: Neighbours | Pairs, problem: str | None) -> list[str]:
    measure = "distance" if found.metric == "euclidean" else "similarity"
    model = found.store.provenance.get("model", "a network")
    notes = [f"{len(found.store):,} rows, {found.column} of {model}; {found.metric} {measure}"]
    if isinstance(found, Pairs):
        limit = "at most" if found.metric == "euclidean" else "at least"
        notes[0] += f" {limit} {found.threshold:g}"
        groups = found.numbers.max(initial=0)
        notes.append(f"{len(found.pairs.first):,} pairs in {groups:,} groups; under each image its score in its best pair")
        if not found.pairs.complete:
            notes.append("The search stopped at this number of pairs: there are more.")
    return notes + ([f"Images could not be shown: {problem}"] if problem else [])


def _neighbour_sections(found: Neighbours, pictures: dict[Entry, str]) -> Iterator[str]:
    for number, query in enumerate(found.queries):
        picture = thumbnail_of_file(query.entry.path) if query.row is None else pictures.get(query.entry)
        cards = [format_card(query.entry, picture, "query", kind=' class="query"')]
        cards += [
            format_card(entry, pictures.get(entry), f"{rank} · {score:.4f}") for rank, score, entry in found.of_query(number)
        ]
        yield format_section(f"Nearest to {query.entry.name}", cards)


def _shown_groups(found: Pairs) -> list[Group]:
    """The best groups, as many as a page holds."""
    groups, left = [], _SHOWN
    for group in found.groups():
        left -= min(len(group.rows), _SHOWN_OF_GROUP)
        if left < 0:
            break
        groups.append(group)
    return groups


def _group_sections(found: Pairs, groups: list[Group], pictures: dict[Entry, str]) -> list[str]:
    sections = []
    for number, group in enumerate(groups, 1):
        cards = []
        for row, best in zip(group.rows[:_SHOWN_OF_GROUP].tolist(), group.best, strict=False):
            entry = found.entries[row]
            cards.append(format_card(entry, pictures.get(entry), f"{best:.4f}"))
        more = f", {_SHOWN_OF_GROUP} shown" if len(group.rows) > _SHOWN_OF_GROUP else ""
        sections.append(format_section(f"Group {number}: {len(group.rows)} images{more}", cards))
    left_out = int(found.numbers.max(initial=0)) - len(groups)
    return [*sections, *([f"<section><p>{left_out:,} more groups are not shown.</p></section>\n"] if left_out else [])]


def format_section(title: str, cards: list[str]) -> str:
    return f'<section>\n<h2><bdi>{escape(title)}</bdi></h2>\n<div class="cards">\n{"".join(cards)}</div>\n</section>\n'


def format_card(entry: Entry, picture: str | None, heading: str, kind: str = "") -> str:
    """One image. Paths and labels are other people's text: escaped, and set apart in their own direction of writing."""
    if picture is None:
        box = '<div class="picture missing">no image</div>'
    else:
        box = f'<div class="picture"><img src="{picture}" alt="{escape(entry.name)}"></div>'
    lines = [f"<b>{heading}</b>", f"<bdi>{escape(entry.path)}</bdi>"]
    if entry.label is not None:
        lines.append(f"<span>label <bdi>{escape(entry.label)}</bdi></span>")
    if entry.x is not None:
        lines.append(f"<span>x {entry.x}, y {entry.y}</span>")
    return f"<figure{kind}>{box}<figcaption>{'<br>'.join(lines)}</figcaption></figure>\n"
