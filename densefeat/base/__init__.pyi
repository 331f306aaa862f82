from .files import atomic_file, check_target, current_umask, output_errors, sync
from .locks import hold_lock
from .pictures import check_picture, picture_bytes, save_picture
from .progress import RateColumn, progress_bar
from .ranks import Ranks
from .signals import Interrupted, StopRequest, stop_on_signal

__all__ = [
    "Interrupted",
    "Ranks",
    "RateColumn",
    "StopRequest",
    "atomic_file",
    "check_picture",
    "check_target",
    "current_umask",
    "hold_lock",
    "output_errors",
    "picture_bytes",
    "progress_bar",
    "save_picture",
    "stop_on_signal",
    "sync",
]
