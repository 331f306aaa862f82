"""Which of the network's tensors each key of a checkpoint is."""

import pytest

from densefeat.nets.key_layouts import AmbiguousKeys, name_keys

OWN = (
    "features.conv0.weight",
    "features.denseblock1.denselayer1.norm1.weight",
    "features.denseblock1.denselayer1.norm1.num_batches_tracked",
    "features.transition1.conv.weight",
    "classifier.weight",
    "classifier.bias",
)
BACKBONE = OWN[:4]


def name(*keys: str) -> tuple[dict[str, str], str]:
    named = name_keys(keys, OWN, ("classifier.",))
    return dict(named.names), named.prefix


@pytest.mark.parametrize("prefix", ["", "network.", "0.model.", "module.densenet121.", "features.", "model._orig_mod."])
@pytest.mark.parametrize("keys", [OWN, BACKBONE, [key for key in OWN if not key.endswith("num_batches_tracked")]])
def test_prefixes(prefix: str, keys: list[str]) -> None:
    names, found = name(*(prefix + key for key in keys))
    assert names == {prefix + key: key for key in keys}
    assert found == prefix


@pytest.mark.parametrize("prefix", ["", "net.", "encoder.model."])
@pytest.mark.parametrize(
    ("index", "key"),
    [
        (1, "features.denseblock1.denselayer1.norm.1.weight"),
        (1, "features.denseblock1.denselayer1.layers.norm1.weight"),
        (1, "features_denseblock1.denselayer1.norm1.weight"),
        (1, "features.denseblock1._orig_mod.denselayer1.norm1.weight"),
        (1, "features.module.denseblock1.denselayer1.norm1.weight"),
        (0, "features_conv0.weight"),
        (3, "features_transition1.conv.weight"),
        (3, "features._fsdp_wrapped_module.transition1.conv.weight"),
        (4, "class_layers.out.weight"),
        (4, "classifier.0.weight"),
        (4, "classifier.12.weight"),
    ],
)
def test_names_of_other_programs(prefix: str, index: int, key: str) -> None:
    keys = [*OWN[:index], key, *OWN[index + 1 :]]
    names, found = name(*(prefix + other for other in keys))
    assert list(names.values()) == list(OWN)
    assert found == prefix


LAYOUTS = {
    "andreasveit": ["conv1.weight", "block1.layer.0.bn1.weight", None, "trans1.conv1.weight", "fc.weight", "fc.bias"],
    "bamos": ["conv1.weight", "dense1.0.bn1.weight", None, "trans1.conv1.weight", "fc.weight", "fc.bias"],
    "Keras": [
        "conv1_conv.weight",
        "conv2_block1_0_bn.weight",
        None,
        "pool2_conv.weight",
        "classifier.weight",
        "classifier.bias",
    ],
    "features alone": ["conv0.weight", "denseblock1.denselayer1.norm1.weight", None, "transition1.conv.weight"],
    "children": [
        "0.conv0.weight",
        "0.denseblock1.denselayer1.norm1.weight",
        None,
        "0.transition1.conv.weight",
        "1.weight",
        "1.bias",
    ],
}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "net.model."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_layouts(layout: str, prefix: str) -> None:
    keys = [(prefix + key, own) for key, own in zip(LAYOUTS[layout], OWN, strict=False) if key is not None]
    names, _ = name(*(key for key, _ in keys))
    assert names == dict(keys)


def test_the_keys_of_other_networks_stay() -> None:
    """Of a network of timm whose own names are those of a row."""
    own = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias")
    for keys in (own, own[:3]):
        for prefix in ("", "module."):
            named = name_keys([prefix + key for key in keys], own, ("fc.",))
            assert list(named.names.values()) == list(keys)
    without_classifier = own[:3]
    assert list(name_keys(own, without_classifier, ("fc.",)).names.values()) == list(own)


def test_several_layers_for_one_keep_their_names() -> None:
    names, _ = name(*(f"net.{key}" for key in (*BACKBONE, "classifier.0.weight", "classifier.3.weight", "classifier.3.bias")))
    assert list(names.values())[4:] == ["classifier.0.weight", "classifier.3.weight", "classifier.bias"]


def test_keys_of_other_modules_keep_their_names() -> None:
    names, prefix = name(*(f"network.{key}" for key in OWN), "loss.weight")
    assert prefix == "network."
    assert names["loss.weight"] == "loss.weight"


@pytest.mark.parametrize(
    "prefix", ["ema_model.module.", "_average_model.module.", "net._ema.", "averaged_model.", "swa_model."]
)
@pytest.mark.parametrize("counters", [[], ["step"], ["n_averaged", "step"]])
def test_averaged_weights_stand_alone(prefix: str, counters: list[str]) -> None:
    beside = [prefix.removesuffix("module.") + counter for counter in counters]
    names, found = name(*(f"model.{key}" for key in OWN), *(prefix + key for key in OWN), *beside)
    assert {key: names[key] for key in names if key not in beside} == {prefix + key: key for key in OWN}
    assert not set(names.values()) & set(OWN) - {names[prefix + key] for key in OWN}
    assert found == prefix


@pytest.mark.parametrize("other", ["net.n_averaged", "net.loss.weight", "net.module.loss.weight", "n_averaged"])
def test_what_is_beside_the_network_makes_no_second_reading(other: str) -> None:
    names, _ = name(*(f"net.module.{key}" for key in OWN), other)
    assert {key: names[key] for key in names if key != other} == {f"net.module.{key}": key for key in OWN}
    assert names[other] not in OWN


def test_a_classifier_outside_the_wrapped_part_is_named() -> None:
    names, _ = name(*(f"net.module.{key}" for key in BACKBONE), *(f"net.{key}" for key in OWN[4:]))
    assert tuple(names.values()) == OWN


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        (("student.", "teacher."), "with the prefixes 'student.' and 'teacher.': save one"),
        (("", "momentum."), "with the prefixes '' and 'momentum.'"),
        (("encoder_q.0.", "encoder_k.0.", "x."), "'encoder_k.0.' and 'encoder_q.0.' and 'x.'"),
        (("ema.module.", "model_ema."), "'ema.module.' and 'model_ema.'"),
    ],
)
def test_several_readings_are_refused(prefixes: tuple[str, ...], message: str) -> None:
    with pytest.raises(AmbiguousKeys, match=message):
        name(*(prefix + key for prefix in prefixes for key in BACKBONE))


def test_where_nothing_fits_the_best_prefix_is_named() -> None:
    names, prefix = name("net.features.conv0.weight", "net.classifier.weight")
    assert (prefix, names["net.classifier.weight"]) == ("net.", "classifier.weight")
    assert name("net.block.weight", "net.block.bias") == (
        {"net.block.weight": "net.block.weight", "net.block.bias": "net.block.bias"},
        "",
    )
    assert name() == ({}, "")
