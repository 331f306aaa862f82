"""The names under which checkpoints keep a network's tensors: other programs' names, and prefixes that wrappers put before all.

Another program's layout is a row in :data:`_RENAMES`.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

# Patterns in the names of other programs, and what the network has in their place; a key that the network has is its own name.
# Rows apply one after another; \A stands for the begin of a name without its prefix.
_RENAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(rf"(?<![^.]){pattern}"), replacement)
    for pattern, replacement in (
        (r"(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.", ""),  # torch's wrappers of parts
        (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),  # torchvision's first DenseNets
        (r"(denselayer\d+\.)layers\.", r"\1"),  # MONAI's DenseNets
        (r"class_layers\.out\.", "classifier."),  # MONAI's DenseNets
        (r"features_(\w+\.)", r"features.\1"),  # timm's features_only, which segmentation_models_pytorch wraps
        # the features alone, or a Sequential of features and classifier, as RadImageNet's backbone is
        (r"\A(?:0\.)?(?=(?:conv0|norm0|denseblock\d+|transition\d+|norm5)\.)", "features."),
        (r"\A1\.(?=(?:weight|bias)\Z)", "classifier."),
        # andreasveit's and bamos' DenseNets for CIFAR
        (r"\A(?:block(\d+)\.layer|dense(\d+))\.(\d+)\.", lambda m: _name_layer(m[1] or m[2], int(m[3]) + 1)),
        (r"(denselayer\d+\.)bn([12]\.)", r"\1norm\2"),
        (r"\Atrans(\d+)\.bn1\.", r"features.transition\1.norm."),
        (r"\Atrans(\d+)\.conv1\.", r"features.transition\1.conv."),
        (r"\Aconv1\.", "features.conv0."),
        (r"\Abn1\.", "features.norm5."),
        (r"\Afc\.", "classifier."),
        # Keras' DenseNets, in which the blocks are stages 2 to 5
        (r"\Aconv1_conv\.", "features.conv0."),
        (r"\Aconv1_bn\.", "features.norm0."),
        (r"\Aconv(\d+)_block(\d+)_0_bn\.", lambda m: _name_layer(int(m[1]) - 1, m[2]) + "norm1."),
        (r"\Aconv(\d+)_block(\d+)_1_bn\.", lambda m: _name_layer(int(m[1]) - 1, m[2]) + "norm2."),
        (r"\Aconv(\d+)_block(\d+)_([12])_conv\.", lambda m: _name_layer(int(m[1]) - 1, m[2]) + f"conv{m[3]}."),
        (r"\Apool(\d+)_bn\.", lambda m: f"features.transition{int(m[1]) - 1}.norm."),
        (r"\Apool(\d+)_conv\.", lambda m: f"features.transition{int(m[1]) - 1}.conv."),
        (r"\Abn\.", "features.norm5."),
    )
)
# Tensors that a program keeps beside the network's: torchxrayvision's thresholds, by which it scales its probabilities.
BESIDE_NETWORK = ("op_threshs",)
# Names under which training programs keep averaged weights, in containers and prefixes; they come first, as in timm.
_AVERAGED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "ema_state", "ema_weights", "ema_params"),
    *("model_ema_state_dict", "ema_model_state_dict", "params_ema", "net_ema", "ema_net"),
    *("average_model", "averaged_model", "swa_model", "swa_state_dict"),
)


class AmbiguousKeys(Exception):
    """Keys that hold the network several times; the message names the prefixes."""


@dataclass(frozen=True)
class NamedKeys:
    """The network's name for each key of a checkpoint, and the prefix that was taken off. Averaged weights stand alone.

    Keys that are nothing of the network's keep their names, and so do several keys of which each would be the same tensor.
    """

    names: Mapping[str, str]
    prefix: str


def name_keys(keys: Collection[str], own: Collection[str], classifiers: tuple[str, ...]) -> NamedKeys:
    """Find the prefix under which a checkpoint's keys are all of the network's, and name them as the network does.

    Args:
        keys: The checkpoint's.
        own: The network's.
        classifiers: The prefixes of the classifier's names, such as ``"classifier."``. A checkpoint may lack the classifier,
            and may have it as the one layer with weights in a Sequential, ``classifier.1.weight``.

    Raises:
        AmbiguousKeys: The network is there under several prefixes, as teacher and student are.
    """
    backbone = {name for name in own if not name.endswith("num_batches_tracked") and not name.startswith(classifiers)}
    readings = {prefix: _name_after(prefix, keys, own, classifiers) for prefix in _list_prefixes(keys, own, backbone)}
    complete = {prefix: names for prefix, names in readings.items() if backbone <= set(names.values())}
    # Readings that take the same tensors for the backbone are one: that of the highest rank.
    fitting = {
        frozenset((key, name) for key, name in complete[prefix].items() if name in backbone): prefix
        for prefix in sorted(complete, key=lambda prefix: _rank_reading(prefix, complete[prefix], own))
    }.values()
    averaged = [prefix for prefix in fitting if rank_averaged(prefix.split(".")) is not None]
    if len(averaged or fitting) > 1:
        ways = " and ".join(repr(prefix) for prefix in sorted(averaged or fitting))
        raise AmbiguousKeys(f"the network's tensors are there more than once, with the prefixes {ways}: save one of them alone")
    if averaged:
        (prefix,) = averaged
        return NamedKeys({key: name for key, name in readings[prefix].items() if key.startswith(prefix)}, prefix)
    best = max(fitting or readings, key=lambda prefix: len(backbone & set(readings[prefix].values())))
    return NamedKeys(readings[best], best)


def _rank_reading(prefix: str, names: Mapping[str, str], own: Collection[str]) -> tuple[int, int, int]:
    """Rank a reading by how many names it finds, then by how many without a row's help, then by the prefix's length."""
    found = {key: name for key, name in names.items() if name in own}
    return len(set(found.values())), sum(key == prefix + name for key, name in found.items()), len(prefix)


def rank_averaged(names: Sequence[str]) -> tuple[int, int] | None:
    """Rank nested names, the outermost first, by the first that stands for averaged weights; None where none does.

    Returns its place among the names and in the order in which programs' names are preferred: the smallest rank comes first.
    """
    plain = [name.lstrip("_").lower() for name in names]
    return min(((place, _AVERAGED.index(name)) for place, name in enumerate(plain) if name in _AVERAGED), default=None)


def _list_prefixes(keys: Collection[str], own: Collection[str], backbone: Collection[str]) -> list[str]:
    """List the prefixes to try: none, what all keys begin with, and what stands before the network's first tensor."""
    first = next((name for name in own if name in backbone), "")
    prefixes = {"": None, _find_common_prefix(keys): None}
    for key in keys:
        prefixes |= {name.removesuffix(first): None for name in (key, _rename(key)) if name.endswith(f".{first}")}
    return list(prefixes)


def _find_common_prefix(keys: Collection[str]) -> str:
    """Find the parts that all keys begin with, each with its dot."""
    prefix = ""
    for parts in zip(*(key.split(".")[:-1] for key in keys), strict=False):
        if len(set(parts)) > 1:
            break
        prefix += f"{parts[0]}."
    return prefix


def _name_after(prefix: str, keys: Collection[str], own: Collection[str], classifiers: tuple[str, ...]) -> dict[str, str]:
    """Name the keys that begin with a prefix as the network does; the others keep their names."""
    plain = {key: key.removeprefix(prefix) for key in keys}
    renamed = {key: name if name in own or name.startswith(classifiers) else _rename(name) for key, name in plain.items()}
    names = {key: name if name in own else _name_classifier(name, classifiers) for key, name in renamed.items()}
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else plain[key] for key, name in names.items()}


@lru_cache(2**14)
def _rename(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def _name_layer(block: str | int, layer: str | int) -> str:
    return f"features.denseblock{block}.denselayer{layer}."


def _name_classifier(name: str, classifiers: tuple[str, ...]) -> str:
    """Take the number of a layer of a Sequential off the classifier's name."""
    for classifier in classifiers:
        if match := re.fullmatch(rf"{re.escape(classifier)}\d+\.(\w+)", name):
            return classifier + match[1]
    return name
