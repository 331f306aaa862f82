from .blocks import BlockFits
from .candidates import ALL, Candidate, conclude
from .charts import Picture
from .choice import choose
from .columns import Columns
from .extraction import extract_images, labels_of, reading_of
from .job import FEATURES, Probed, asked_before, asked_of, finished, probe
from .linear import Linear
from .logreg import NEVER
from .metrics import MAIN, compute_metrics
from .page import STYLE, picture_section, table
from .predictions import likelihoods, predicted
from .prepared import Prepared, prepare
from .probe_file import FILE, Probe, load_probe
from .protocols import LOWEST_LOSS, Fitted, fit
from .request import ProbeRequest
from .results import plain, write_report
from .tables import Table, cells, few_shot_cells

__all__ = [
    "ALL",
    "FEATURES",
    "FILE",
    "LOWEST_LOSS",
    "MAIN",
    "NEVER",
    "STYLE",
    "BlockFits",
    "Candidate",
    "Columns",
    "Fitted",
    "Linear",
    "Picture",
    "Prepared",
    "Probe",
    "ProbeRequest",
    "Probed",
    "Table",
    "asked_before",
    "asked_of",
    "cells",
    "choose",
    "compute_metrics",
    "conclude",
    "extract_images",
    "few_shot_cells",
    "finished",
    "fit",
    "labels_of",
    "likelihoods",
    "load_probe",
    "picture_section",
    "plain",
    "predicted",
    "prepare",
    "probe",
    "reading_of",
    "table",
    "write_report",
]
