from .candidates import ALL, BlockFitter, Candidate, select_candidate
from .charts import Picture
from .data import Columns, ProbeData, load_data
from .fitting import Linear, choose
from .job import Probed, extract_images, label_options, probe, source_options
from .logreg import NEVER
from .metrics import MAIN, compute_metrics
from .page import STYLE, Table, candidate_table, few_shot_table, format_picture, format_table
from .predictions import format_probabilities, predict_labels
from .probe_file import FILE, Probe, load_probe
from .protocols import LOWEST_LOSS, ProbeFit, fit_head
from .request import ProbeRequest, identity, make_request
from .results import FEATURES, read_finished, to_json, write_report

__all__ = [
    "ALL",
    "FEATURES",
    "FILE",
    "LOWEST_LOSS",
    "MAIN",
    "NEVER",
    "STYLE",
    "BlockFitter",
    "Candidate",
    "Columns",
    "Linear",
    "Picture",
    "Probe",
    "ProbeData",
    "ProbeFit",
    "ProbeRequest",
    "Probed",
    "Table",
    "candidate_table",
    "choose",
    "compute_metrics",
    "extract_images",
    "few_shot_table",
    "fit_head",
    "format_picture",
    "format_probabilities",
    "format_table",
    "identity",
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
