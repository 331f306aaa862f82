from .find import find_duplicates, find_neighbours
from .page import write_page
from .queries import extractor_by
from .results import Neighbours, Pairs

__all__ = [
    "Neighbours",
    "Pairs",
    "extractor_by",
    "find_duplicates",
    "find_neighbours",
    "write_page",
]
