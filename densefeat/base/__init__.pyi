from .checksums import add_checksum, check_checksum, check_tensors, save_tensors
from .devices import choose_device
from .files import (
    atomic_file,
    atomic_folder,
    check_output_name,
    check_path_name,
    check_target,
    current_umask,
    hold_lock,
    output_errors,
    sync,
    sync_folder,
)
from .full_disk import find_full_disk
from .pages import Chart, ImageCard, Section, Table, render_page, render_template, save_page
from .pictures import check_picture, render_picture, save_picture
from .progress import RateColumn, progress_bar
from .ranks import Ranks
from .rendezvous import enter_after_rank_0, open_shared_store
from .signals import PREEMPTION_SIGNALS, Interrupted, StopRequest, raise_on_sigterm, stop_on_signal
from .text import describe_error, printable, shorten_text

__all__ = [
    "PREEMPTION_SIGNALS",
    "Chart",
    "ImageCard",
    "Interrupted",
    "Ranks",
    "RateColumn",
    "Section",
    "StopRequest",
    "Table",
    "add_checksum",
    "atomic_file",
    "atomic_folder",
    "check_checksum",
    "check_output_name",
    "check_path_name",
    "check_picture",
    "check_target",
    "check_tensors",
    "choose_device",
    "current_umask",
    "describe_error",
    "enter_after_rank_0",
    "find_full_disk",
    "hold_lock",
    "open_shared_store",
    "output_errors",
    "printable",
    "progress_bar",
    "raise_on_sigterm",
    "render_page",
    "render_picture",
    "render_template",
    "save_page",
    "save_picture",
    "save_tensors",
    "shorten_text",
    "stop_on_signal",
    "sync",
    "sync_folder",
]
