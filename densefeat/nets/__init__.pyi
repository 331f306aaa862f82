from .base import StagedNet, he_init
from .checkpoint_file import read_checkpoint_records, read_state_dict
from .deluge_net import Bottleneck, CompositeLayer, CrossLayerDepthwise, DelugeBlock, DelugeNet
from .dense_net import DenseBlock, DenseLayer, DenseNet, Transition
from .efficient import has_hooks, is_affine_norm, is_plain_conv
from .flops import count_flops, count_network_flops
from .weights import file_sha256, load_weights, set_state_dict, state_sha256
from .zoo import BUNDLED, BUNDLED_SHA256, VARIANTS

__all__ = [
    "BUNDLED",
    "BUNDLED_SHA256",
    "VARIANTS",
    "Bottleneck",
    "CompositeLayer",
    "CrossLayerDepthwise",
    "DelugeBlock",
    "DelugeNet",
    "DenseBlock",
    "DenseLayer",
    "DenseNet",
    "StagedNet",
    "Transition",
    "count_flops",
    "count_network_flops",
    "file_sha256",
    "has_hooks",
    "he_init",
    "is_affine_norm",
    "is_plain_conv",
    "load_weights",
    "read_checkpoint_records",
    "read_state_dict",
    "set_state_dict",
    "state_sha256",
]
