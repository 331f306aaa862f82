from .find import find_duplicates, find_neighbours
from .page import format_card, format_page, format_section, write_page
from .queries import extractor_by
from .results import Entry, Neighbours, Pairs, place_fields

__all__ = [
    "Entry",
    "Neighbours",
    "Pairs",
    "extractor_by",
    "find_duplicates",
    "find_neighbours",
    "format_card",
    "format_page",
    "format_section",
    "place_fields",
    "write_page",
]
