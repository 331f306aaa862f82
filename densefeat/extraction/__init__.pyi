from .arguments import RunOptions, check_arguments
from .batches import Decoding, decode_batches, embed_batches
from .columns_net import ColumnsNet, identify
from .job import extract
from .measured import load_channel_stats
from .settings import ExtractResult

__all__ = [
    "ColumnsNet",
    "Decoding",
    "ExtractResult",
    "RunOptions",
    "check_arguments",
    "decode_batches",
    "embed_batches",
    "extract",
    "identify",
    "load_channel_stats",
]
