from .find import find_duplicates, find_neighbours
from .page import write_page
from .queries import describe_extractor, rebuild_extractor
from .results import Neighbours, Pairs

__all__ = [
    "Neighbours",
    "Pairs",
    "describe_extractor",
    "find_duplicates",
    "find_neighbours",
    "rebuild_extractor",
    "write_page",
]
