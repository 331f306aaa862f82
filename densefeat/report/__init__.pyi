from .card import read_card
from .input_picture import draw_input
from .judging import Journal, is_journal
from .model_page import collect_points, render_html, render_markdown
from .pruning import PRUNING_COLUMNS, Pruning, count_work, prune, write_pruning_csv
from .pruning_chart import draw_pruning
from .reuse import REUSE_COLUMNS, Finding, Reuse, feature_reuse, load_known_network, observations, write_reuse_csv
from .reuse_chart import draw_reuse
from .sample import load_sample
from .stages import Field, stages_of

__all__ = [
    "PRUNING_COLUMNS",
    "REUSE_COLUMNS",
    "Field",
    "Finding",
    "Journal",
    "Pruning",
    "Reuse",
    "collect_points",
    "count_work",
    "draw_input",
    "draw_pruning",
    "draw_reuse",
    "feature_reuse",
    "is_journal",
    "load_known_network",
    "load_sample",
    "observations",
    "prune",
    "read_card",
    "render_html",
    "render_markdown",
    "stages_of",
    "write_pruning_csv",
    "write_reuse_csv",
]
