from .arguments import RunOptions, check_arguments
from .batches import Decoding, decode_batches, embed_batches
from .columns_net import ColumnsNet, identify
from .job import extract
from .measured import load_channel_stats
from .samples import HELD_OUT, choose_for_int8, count_for_int8
from .settings import ExtractResult

__all__ = [
    "HELD_OUT",
    "ColumnsNet",
    "Decoding",
    "ExtractResult",
    "RunOptions",
    "check_arguments",
    "choose_for_int8",
    "count_for_int8",
    "decode_batches",
    "embed_batches",
    "extract",
    "identify",
    "load_channel_stats",
]
