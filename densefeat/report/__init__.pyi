from .card import read_card
from .journal import 
from .model_page import html_page, markdown_page, points_for
from .pruning_chart import draw_pruning
from .pruning import PRUNING_COLUMNS, Pruning, prune, count_work, write_pruning_csv
from .reuse import REUSE_COLUMNS, Finding, feature_reuse, load_plain, observations, write_reuse_csv
from .reuse_chart import draw_reuse
from .sample import load_sample

from .judging import Journal

__all__ = [
    "PRUNING_COLUMNS",
    "REUSE_COLUMNS",
    "Finding",
    "Journal",
    "Pruning",
    "draw_pruning",
    "draw_reuse",
    "feature_reuse",
    "html_page",
    "load_plain",
    "load_sample",
    "markdown_page",
    "observations",
    "points_for",
    "prune",
    "read_card",
    "count_work",
    "write_pruning_csv",
    "write_reuse_csv",
]
