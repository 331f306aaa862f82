from .find import find_duplicates, find_neighbours
from .page import write_page
from .queries import rebuild_extractor
from .results import Neighbours, Pairs

__all__ = [
    "Neighbours",
    "Pairs",
    "rebuild_extractor",
    "find_duplicates",
    "find_neighbours",
    "write_page",
]
