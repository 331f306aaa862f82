from .arms import check_arms
from .comparison import compare, make_plan
from .inputs import calibrated_network, list_images, load_network
from .measure import (
    REPORT_KIND,
    Report,
    benchmark_options,
    measure_rounds,
    rate_rows,
    read_peak,
    reset_peak,
    time_call,
    time_rounds,
)
from .report import format_comparison, format_overview

__all__ = [
    "REPORT_KIND",
    "Report",
    "benchmark_options",
    "calibrated_network",
    "check_arms",
    "compare",
    "format_comparison",
    "format_overview",
    "list_images",
    "load_network",
    "make_plan",
    "measure_rounds",
    "rate_rows",
    "read_peak",
    "reset_peak",
    "time_call",
    "time_rounds",
]
