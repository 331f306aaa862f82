from .candidates import ALL, BlockFitter, Candidate, select_candidate
from .data import FeatureColumns, load_data
from .fitting import LinearHead, choose_setting
from .job import Probed, extract_images, label_options, probe, source_options
from .logreg import NEVER
from .metrics import MAIN, compute_metrics
from .page import candidate_table, few_shot_table
from .predictions import format_probabilities, predict_labels
from .probe_file import FILE, Probe, load_probe
from .protocols import LOWEST_LOSS, ProbeFit, fit_head
from .request import ProbeRequest, make_request
from .results import CHECKPOINTS, FEATURES, read_finished, to_json, write_report

__all__ = [
    "ALL",
    "CHECKPOINTS",
    "FEATURES",
    "FILE",
    "LOWEST_LOSS",
    "MAIN",
    "NEVER",
    "BlockFitter",
    "Candidate",
    "FeatureColumns",
    "LinearHead",
    "Probe",
    "ProbeFit",
    "ProbeRequest",
    "Probed",
    "candidate_table",
    "choose_setting",
    "compute_metrics",
    "extract_images",
    "few_shot_table",
    "fit_head",
    "format_probabilities",
    "label_options",
    "load_data",
    "load_probe",
    "make_request",
    "predict_labels",
    "probe",
    "read_finished",
    "select_candidate",
    "source_options",
    "to_json",
    "write_report",
]
