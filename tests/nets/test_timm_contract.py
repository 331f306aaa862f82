"""timm's own tests of models (tests/test_models.py in timm's source distribution, 1.0.31) for our networks.

| timm's test | here |
|---|---|
| test_model_forward | test_forward_with_and_without_checkpointing |
| test_model_backward | test_every_parameter_gets_a_gradient |
| test_model_default_cfgs, with its helpers for unknown arguments, groups, frozen parameters, device and dtype | test_configuration (all 17) |
| test_model_load_pretrained, test_model_features_pretrained | test_pretrained_loads (the bundled weights; the others need the hub) |
| test_reset_classifier_keeps_pool | test_reset_classifier_keeps_pool_and_mode |
| test_features_only_grad_checkpointing_backward | test_checkpointed_features_have_the_same_gradients |
| test_feature_hook_net_grad_checkpointing_order | test_hooked_features_keep_their_order_under_checkpointing |
| test_model_forward_torchscript, test_model_forward_fx_torchscript, test_model_forward_torchscript_with_features_fx | test_scriptable |
| test_model_forward_features | test_features_only |
| test_model_forward_intermediates_features, test_features_only_feature_cls_class | test_features_by_getter |
| test_model_forward_intermediates | test_forward_intermediates |
| test_pruned_features_torchscript, test_feature_getter_stage_ends_torchscript | test_feature_getter_is_scriptable |
| test_prune_intermediate_layers_params_used, test_prune_intermediate_layers_contract, test_prune_to_stem_feature,
  test_prune_intermediate_layers_last_feature, test_forward_after_prune_intermediate_layers,
  test_forward_intermediates_stop_early_final_norm, test_resnet_pruned_grad_checkpointing | test_pruning |
| test_head_hidden_size | test_head_hidden_size |
| test_resnetv2_stem_feature_odd_size | test_odd_sizes |
| test_nfnet_stem_feature_consistency | test_stem_feature_is_not_overwritten |
| test_model_forward_fx, test_model_backward_fx | test_fx_trace |
| test_headless_checkpoint_reload | test_headless_checkpoint_reloads |
| test_eval_refreshes_attention_bias_cache and the other dtype-after-forward tests | test_configuration, test_deluge_net.py (nothing is cached) |

Left out: test_model_inference (reference files on the hub, for timm's own test_* models), test_model_default_cfgs_non_std
(transformers), test_catavgmax_unsupported (for models that cannot; ours can: test_head_hidden_size),
test_model_features_output_stride (models with an ``output_stride`` argument), test_model_init_weights_after_to_empty (models
with non-persistent buffers), and every test that names one architecture's own arguments (Swin, NaFlexViT, EfficientViM, …).
"""

import copy
import math
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import get_notrace_modules
from timm.models._features import FeatureGetterNet, FeatureListNet
from timm.models._manipulate import group_parameters
from torchvision.models.feature_extraction import create_feature_extractor

# The code does not depend on depth and width: few layers in quick runs, the published depth in slow ones.
STRUCTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "densenet": ("densefeat_densenet121", dict(growth_rate=8, block_config=(2, 3, 2, 2))),
    "densenet-plain": ("densefeat_densenet40_k12", dict(block_config=(2, 2, 3))),
    "densenet-bc": ("densefeat_densenet_bc100_k12", dict(block_config=(2, 3, 2))),
    "delugenet": ("densefeat_delugenet92", dict(block_widths=(8, 12, 16, 20), block_config=(2, 3, 2, 2))),
    "delugenet-cifar": ("densefeat_delugenet146", dict(block_widths=(8, 12, 16), block_config=(3, 2, 3))),
}
DEEP: dict[str, tuple[str, dict[str, Any]]] = {
    "densenet121": ("densefeat_densenet121", {}),
    "delugenet92": ("densefeat_delugenet92", {"block_widths": (16, 24, 32, 40)}),  # narrower than published, to save time
}
each_structure = pytest.mark.parametrize("name", [*STRUCTURES, *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP)])


def create(name: str, **kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model, structure = (STRUCTURES | DEEP)[name]
    return timm.create_model(model, **(structure | kwargs))


def images(n: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


@each_structure
def test_forward_with_and_without_checkpointing(name: str) -> None:
    model, x = create(name).eval(), images(1, 96, 96)
    plain = model(x)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)
    assert plain.shape == (1, model.num_classes)
    assert plain.isfinite().all()


@each_structure
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = create(name, num_classes=42).train()
    outputs = model(images(2))
    outputs.mean().backward()
    assert outputs.shape == (2, 42)
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", STRUCTURES)
def test_configuration(name: str) -> None:
    """What depends on the published structure is checked for every network in test_zoo.py, too."""
    device = torch.device("meta")
    name, structure = STRUCTURES.get(name, (name, {}))
    create_model = partial(timm.create_model, name, device=device, **structure)
    model = create_model(dtype=torch.float32).eval()
    assert {t.device for t in (*model.parameters(), *model.buffers())} == {device}
    cfg, keys = model.default_cfg, model.state_dict()
    assert cfg["first_conv"] + ".weight" in keys
    assert cfg["classifier"] + ".weight" in keys
    assert model.in_chans == cfg["input_size"][0] == 3
    assert create_model(in_chans=5).features.conv0.weight.shape[1] == 5

    with pytest.raises(TypeError, match="not_a_model_arg"):
        create_model(not_a_model_arg=1)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    fine = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert 3 < len(set(coarse.values())) < 7 < len(set(fine.values()))
    assert set(coarse) == set(fine) == {key for key, _ in model.named_parameters()}

    x = torch.empty(1, *cfg["input_size"], device=device)
    maps = model.forward_features(x)
    assert maps.shape == (1, model.num_features, *cfg["pool_size"])
    pooled = model.forward_head(maps, pre_logits=True)
    assert pooled.shape == (1, model.head_hidden_size)
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16

    model = model.to(torch.float64).requires_grad_(False)
    model.reset_classifier(0)
    assert model(x.double()).shape == pooled.shape
    assert not [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    model.reset_classifier(0, "")
    assert model(x.double()).shape == maps.shape
    model.reset_classifier(2)
    classifier = model.get_classifier()
    assert (classifier.weight.device, classifier.weight.dtype, classifier.training) == (device, torch.float64, False)

    headless = create_model(num_classes=0)
    assert headless(x).shape == pooled.shape
    assert create_model(num_classes=0, global_pool="")(x).shape == maps.shape


@pytest.mark.parametrize("kwargs", [dict(in_chans=1, num_classes=5), dict(in_chans=1, num_classes=0), dict(features_only=True)])
def test_pretrained_loads(kwargs: dict, trained: torch.nn.Module) -> None:
    model = timm.create_model("densefeat_densenet_bc100_k12", pretrained=True, **kwargs)
    block = "features_denseblock3" if "features_only" in kwargs else "features.denseblock3"
    own = trained.features.denseblock3.denselayer16.conv1.weight
    assert torch.equal(model.get_submodule(block).denselayer16.conv1.weight, own)


def test_reset_classifier_keeps_pool_and_mode() -> None:
    for name in STRUCTURES:
        model, x = create(name, global_pool="max").eval(), images(2)
        with torch.no_grad():
            expected = model.forward_head(model.forward_features(x), pre_logits=True)
            model.reset_classifier(5)
            torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), expected)
            assert model(x).shape == (2, 5)
            assert not any(module.training for module in model.modules())
            model.reset_classifier(5, "avg")
            assert not torch.allclose(model.forward_head(model.forward_features(x), pre_logits=True), expected)


@each_structure
def test_checkpointed_features_have_the_same_gradients(name: str) -> None:
    gradients = []
    for enable in (False, True):
        model = create(name, features_only=True).train()
        model.set_grad_checkpointing(enable)
        sum(maps.square().mean() for maps in model(images(2))).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_hooked_features_keep_their_order_under_checkpointing() -> None:
    for name in STRUCTURES:
        model, x = create(name, features_only=True, feature_cls="hook").train(), images(2)
        with torch.no_grad():
            expected = model(x)
        model.set_grad_checkpointing(True)
        for _ in range(2):
            maps = model(x)
            torch.testing.assert_close(maps, expected)
            sum(m.mean() for m in maps).backward()


def fx(model: torch.nn.Module):
    outputs = {"classifier": "logits"}
    tracer = {"leaf_modules": get_notrace_modules(), "param_shapes_constant": True}
    return create_feature_extractor(model, return_nodes=outputs, tracer_kwargs=tracer)


# DelugeNet folds its norms in eval mode: its two graphs differ, as they should
traced_twice = pytest.mark.filterwarnings("ignore:The nodes obtained by tracing the model in train mode are different")


@each_structure
@traced_twice
def test_scriptable(name: str) -> None:
    model, x = create(name).eval(), images(1)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
        torch.testing.assert_close(torch.jit.script(fx(model))(x)["logits"], expected)


@each_structure
@traced_twice
def test_fx_trace(name: str) -> None:
    model, x = create(name).eval(), images(2)
    graph = fx(model)
    with torch.no_grad():
        torch.testing.assert_close(graph(x)["logits"], model(x), rtol=1e-4, atol=1e-5)
    graph.train()(x)["logits"].mean().backward()
    assert not [key for key, parameter in graph.named_parameters() if parameter.grad is None]


def check_maps(info, maps: list[torch.Tensor], side: int) -> None:
    assert len(maps) == len(info.channels())
    for channels, reduction, map_ in zip(info.channels(), info.reduction(), maps, strict=True):
        assert map_.shape[1] == channels
        assert side / (2 * reduction) < map_.shape[-1] <= math.ceil(side / reduction) + 1
        assert map_.isfinite().all()


@each_structure
def test_features_only(name: str) -> None:
    model = create(name, features_only=True).eval()
    check_maps(model.feature_info, model(images(1, 96, 96)), 96)
    some = create(name, features_only=True, out_indices=(1, 3)).eval()
    assert [maps.shape for maps in some(images(1))] == [model(images(1))[i].shape for i in (1, 3)]


@each_structure
def test_features_by_getter(name: str) -> None:
    by_list = create(name, features_only=True).eval()
    for feature_cls in ("getter", FeatureGetterNet):
        by_getter = create(name, features_only=True, feature_cls=feature_cls).eval()
        assert isinstance(by_getter, FeatureGetterNet)
        torch.testing.assert_close(by_getter(images(1)), by_list(images(1)))


@each_structure
def test_forward_intermediates(name: str) -> None:
    model, x = create(name).eval(), images(1, 96, 96)
    final, maps = model.forward_intermediates(x)
    check_maps(timm.models.FeatureInfo(model.feature_info, len(model.feature_info)), maps, 96)
    torch.testing.assert_close(final, model.forward_features(x), rtol=1e-5, atol=1e-8)
    last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    torch.testing.assert_close(last_two, maps[-2:])
    stopped, first = model.forward_intermediates(x, indices=[1], stop_early=True, norm=True)
    torch.testing.assert_close([stopped, first[0]], [maps[1], maps[1]])


@each_structure
def test_feature_getter_is_scriptable(name: str) -> None:
    model, x = create(name).eval(), images(1, 96, 96)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=(0, 1, 2), intermediates_only=True)
        getter = FeatureGetterNet(model, out_indices=(0, 1, 2)).eval()
        torch.testing.assert_close(getter(x), expected)
        torch.testing.assert_close(torch.jit.script(getter)(x), expected)


@each_structure
def test_pruning(name: str) -> None:
    model, x = create(name, drop_rate=0.5).eval(), images(2)
    last = len(model.feature_info) - 1
    with torch.no_grad():
        logits, taps = model(x), model.forward_intermediates(x, intermediates_only=True)
        whole = copy.deepcopy(model)
        whole.prune_intermediate_layers([last], prune_head=False)
        torch.testing.assert_close(whole(x), logits, rtol=0, atol=0)
    for i in range(last + 1):
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([i], prune_norm=True) == [i]
        with torch.no_grad():
            maps = pruned.forward_intermediates(x, indices=[i], intermediates_only=True)[0]
            torch.testing.assert_close(maps, taps[i], rtol=0, atol=0)
            torch.testing.assert_close(pruned.forward_features(x), taps[i], rtol=0, atol=0)
            assert torch.equal(pruned(x), pruned(x))
            pruned.reset_classifier(0, "avg")
            torch.testing.assert_close(pruned(x), taps[i].mean((2, 3)))
        pruned.train().set_grad_checkpointing()
        pruned.forward_features(x).sum().backward()
        assert not [key for key, parameter in pruned.named_parameters() if parameter.grad is None]


@each_structure
def test_head_hidden_size(name: str) -> None:
    model, x = create(name, num_classes=0).eval(), images(2)
    for classes, pool in ((0, None), (7, "avg"), (7, "catavgmax")):
        model.reset_classifier(classes, pool)
        assert model.forward_head(model.forward_features(x), pre_logits=True).shape[1] == model.head_hidden_size
        assert model(x).shape[1] == (classes or model.head_hidden_size)
    tap = len(model.feature_info) - 2
    model.prune_intermediate_layers([tap], prune_norm=True)
    model.reset_classifier(7, "avg")
    assert model.head_hidden_size == model.feature_info[tap]["num_chs"]
    assert model(x).shape == (2, 7)


@each_structure
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (65, 67), (97, 131)])
def test_odd_sizes(name: str, height: int, width: int) -> None:
    model, x = create(name).eval(), images(1, height, width)
    stem = {}
    model.get_submodule(model.feature_info[0]["module"]).register_forward_hook(lambda m, i, o: stem.setdefault("out", o))
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        stride = model.feature_info[0]["reduction"]
        assert maps[0].shape[-2:] == (math.ceil(height / stride), math.ceil(width / stride))
        assert torch.equal(maps[0], stem["out"])
        torch.testing.assert_close(final, model.forward_features(x))
        assert model(x).isfinite().all()


@each_structure
def test_stem_feature_is_not_overwritten(name: str) -> None:
    model, x = create(name).eval(), images(1)
    every = tuple(range(len(model.feature_info)))
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)[0]
        for i, maps in enumerate(model.forward_intermediates(x, intermediates_only=True)):
            alone = model.forward_intermediates(x, indices=[i], stop_early=True, intermediates_only=True)[0]
            assert torch.equal(maps, alone)
        stages = FeatureListNet(model, out_indices=every, flatten_sequential=True)
        assert torch.equal(stages(x)[0], expected)


@each_structure
def test_headless_checkpoint_reloads(name: str, tmp_path) -> None:
    model = create(name, num_classes=0).eval()
    torch.save(dict(sorted(model.state_dict().items())), tmp_path / "headless.pt")
    reloaded = create(name, num_classes=0, checkpoint_path=tmp_path / "headless.pt").eval()
    with torch.no_grad():
        assert torch.equal(reloaded(images(1)), model(images(1)))


@each_structure
def test_exportable_with_dynamic_batch(name: str) -> None:
    model = create(name).eval()
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(3)), model(images(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet", "delugenet-cifar"])
def test_compilable_in_one_graph(name: str) -> None:
    model = create(name).eval()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(compiled(images(2)), model(images(2)), rtol=1e-4, atol=1e-4)
