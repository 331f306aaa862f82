from .base import StagedNet, he_init
from .checkpoint_file import (
    Checkpoint,
    describe_refusal,
    load_torch_file,
    read_checkpoint,
    read_checkpoint_records,
    read_state_dict,
)
from .deluge_net import Bottleneck, CompositeLayer, CrossLayerDepthwise, DelugeBlock, DelugeNet
from .dense_net import DenseBlock, DenseLayer, DenseNet, Transition
from .efficient import has_hooks, is_affine_norm, is_plain_conv
from .expectations import (
    ENTRY,
    MAKERS,
    Expectations,
    apply_expectations,
    count_channels,
    describe_maker,
    find_expectations,
)
from .flops import count_flops, count_network_flops
from .weights import file_sha256, find_shape, fits_network, load_checkpoint, load_weights, set_state_dict, state_sha256
from .zoo import BUNDLED, BUNDLED_SHA256, VARIANTS

__all__ = [
    "BUNDLED",
    "BUNDLED_SHA256",
    "ENTRY",
    "MAKERS",
    "VARIANTS",
    "Bottleneck",
    "Checkpoint",
    "CompositeLayer",
    "CrossLayerDepthwise",
    "DelugeBlock",
    "DelugeNet",
    "DenseBlock",
    "DenseLayer",
    "DenseNet",
    "Expectations",
    "StagedNet",
    "Transition",
    "apply_expectations",
    "count_channels",
    "count_flops",
    "count_network_flops",
    "describe_maker",
    "describe_refusal",
    "file_sha256",
    "find_expectations",
    "find_shape",
    "fits_network",
    "has_hooks",
    "he_init",
    "is_affine_norm",
    "is_plain_conv",
    "load_checkpoint",
    "load_torch_file",
    "load_weights",
    "read_checkpoint",
    "read_checkpoint_records",
    "read_state_dict",
    "set_state_dict",
    "state_sha256",
]
