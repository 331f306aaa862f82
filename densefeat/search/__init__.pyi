from .find import find_duplicates, find_neighbours
from .page import write_page
from .queries import rebuild_extractor
from .results import Neighbours, Pairs

__all__ = [
    "Neighbours",
    "Pairs",
    "find_duplicates",
    "find_neighbours",
    "rebuild_extractor",
    "write_page",
]
