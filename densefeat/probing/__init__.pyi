from .answers import Predictions, check_promises, make_predictions, tabulate_answers
from .attentive import AttentiveHead, pool_maps
from .candidates import (
    ALL,
    ATTENTIVE,
    BlockFitter,
    Candidate,
    Fitter,
    compare_candidates,
    count_settings,
    fit_candidates,
    select_candidate,
)
from .certainty import add_certainty
from .data import FeatureColumns, ProbeData, load_data
from .fitting import LinearHead, choose_setting, encode_targets
from .folder import CHECKPOINTS, FEATURES, RESULTS, TEST_FEATURES, check_folder, read_results, save_results, to_json
from .head_file import pack_head, parse_head, parse_names
from .job import Probed, extract_images, label_options, probe, source_options
from .knn import LEAST_SHARE, KnnHead, fit_knn
from .layer_selection import keep_features, mark_kept
from .layers_head import LayersHead, normalize_layers, scale_layers
from .logreg import NEVER, fit_logreg
from .metrics import MAIN, compute_metrics, draw_resamples, find_interval
from .page import candidate_table, few_shot_table, format_metric
from .predictions import predict_labels, rate_mistakes
from .probe_file import FILE, Probe, find_probe_file, load_probe
from .protocols import LOWEST_LOSS, Head, ProbeFit, fit_head
from .relevance import find_largest_penalty, fit_group_lasso, measure_moments, measure_relevance
from .request import ProbeRequest, make_request
from .results import read_finished, write_report

__all__ = [
    "ALL",
    "ATTENTIVE",
    "CHECKPOINTS",
    "FEATURES",
    "FILE",
    "LEAST_SHARE",
    "LOWEST_LOSS",
    "MAIN",
    "NEVER",
    "RESULTS",
    "TEST_FEATURES",
    "AttentiveHead",
    "BlockFitter",
    "Candidate",
    "FeatureColumns",
    "Fitter",
    "Head",
    "KnnHead",
    "LayersHead",
    "LinearHead",
    "Predictions",
    "Probe",
    "ProbeData",
    "ProbeFit",
    "ProbeRequest",
    "Probed",
    "add_certainty",
    "candidate_table",
    "check_folder",
    "check_promises",
    "choose_setting",
    "compare_candidates",
    "compute_metrics",
    "count_settings",
    "draw_resamples",
    "encode_targets",
    "extract_images",
    "few_shot_table",
    "find_interval",
    "find_largest_penalty",
    "find_probe_file",
    "fit_candidates",
    "fit_group_lasso",
    "fit_head",
    "fit_knn",
    "fit_logreg",
    "format_metric",
    "keep_features",
    "label_options",
    "load_data",
    "load_probe",
    "make_predictions",
    "make_request",
    "mark_kept",
    "measure_moments",
    "measure_relevance",
    "normalize_layers",
    "pack_head",
    "parse_head",
    "parse_names",
    "pool_maps",
    "predict_labels",
    "probe",
    "rate_mistakes",
    "read_finished",
    "read_results",
    "save_results",
    "scale_layers",
    "select_candidate",
    "source_options",
    "tabulate_answers",
    "to_json",
    "write_report",
]
