"""Classification heads: the cross-layer head against its description in numpy, what all heads share, the usage chart."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import nn

from densefeat.errors import UsageError
from densefeat.heads.modules import KINDS, CrossLayerHead, LinearHead, MlpHead, make_head
from densefeat.heads.usage_chart import _sort_by_strongest_block, draw_usage
from densefeat.loading.load import load_network
from support.helpers import BUNDLED, randomize_statistics, relative_difference

INFO = [
    dict(num_chs=5, reduction=1, module="a"),
    dict(num_chs=7, reduction=2, module="b"),
    dict(num_chs=9, reduction=4, module="c"),
]


def random_maps(images: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(5, 12, 12), (7, 6, 6), (9, 3, 3)]
    return [torch.randn(images, *size, generator=generator, dtype=dtype) + 0.3 for size in sizes]


def random_head(num_classes: int = 4) -> CrossLayerHead:
    torch.manual_seed(0)
    return randomize_statistics(CrossLayerHead(INFO, 8, num_classes)).double()


def compute_in_numpy(head: CrossLayerHead, maps: list[torch.Tensor], training: bool) -> np.ndarray:
    """Projected at full size, then averaged to 3×3, each normalised, summed, normalised, ReLU, averaged, classified."""

    def norm(module: nn.Module, x: np.ndarray) -> np.ndarray:
        mean, variance = (
            (x.mean((0, 2, 3)), x.var((0, 2, 3))) if training else (module.running_mean.numpy(), module.running_var.numpy())
        )
        weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
        scaled = (x - mean[:, None, None]) / np.sqrt(variance + module.eps)[:, None, None]
        return scaled * weight[:, None, None] + bias[:, None, None]

    total = 0.0
    for values, project, own in zip(maps, head.projections, head.aggregate.norms, strict=True):
        x = np.einsum("nchw,dc->ndhw", values.numpy(), project.weight.detach().numpy()[:, :, 0, 0])
        n, d, height, width = x.shape
        total = total + norm(own, x.reshape(n, d, 3, height // 3, 3, width // 3).mean((3, 5)))
    pooled = np.maximum(norm(head.aggregate.norm, total), 0).mean((2, 3))
    return pooled @ head.classifier.weight.detach().numpy().T + head.classifier.bias.detach().numpy()


@pytest.mark.parametrize("training", [False, True])
def test_the_head_computes_its_description(training: bool) -> None:
    head, maps = random_head(), random_maps()
    expected = compute_in_numpy(head, maps, training)
    assert np.abs(head.train(training)(maps).detach().numpy() - expected).max() < 1e-12
    assert expected.std(0).min() > 1e-3


def test_pooling_sizes_that_do_not_divide() -> None:
    head, maps = random_head().eval(), random_maps()
    maps[0] = maps[0][:, :, :11, :10]
    commuted = [F.adaptive_avg_pool2d(x, 3) for x in maps]
    assert torch.equal(head(maps), head(commuted))


def test_one_block_has_one_norm_and_all_the_usage() -> None:
    torch.manual_seed(0)
    head = randomize_statistics(CrossLayerHead(INFO[:1], 8, 4)).double().eval()
    x = torch.from_numpy(
        np.einsum("nchw,dc->ndhw", random_maps()[0].numpy(), head.projections[0].weight.detach().numpy()[:, :, 0, 0])
    )
    expected = head.classifier(F.relu(head.aggregate.norm(x)).mean((2, 3)))
    assert torch.allclose(head(random_maps()[:1]), expected, atol=1e-12)
    assert torch.equal(head.block_usage(), torch.ones(1, 8))


def test_block_usage_is_each_blocks_share_of_the_sum() -> None:
    head = random_head().train()
    with torch.no_grad():
        head.aggregate.norms[1].weight[3] *= -2
        head.aggregate.norms[1].weight[5] = 0
    terms, handles = [], [norm.register_forward_hook(lambda _, __, y: terms.append(y)) for norm in head.aggregate.norms]
    head(random_maps(64))
    for handle in handles:
        handle.remove()
    spread = torch.stack([term.transpose(0, 1).flatten(1).std(1, correction=0) for term in terms])
    usage = head.block_usage()
    assert usage.dtype == torch.float32
    assert torch.allclose(usage.double(), spread / spread.sum(0), atol=1e-4)
    assert torch.allclose(usage.sum(0), torch.ones(8))
    assert usage[1, 5] == 0


def test_usage_of_a_channel_without_weights_is_zero() -> None:
    head = random_head()
    with torch.no_grad():
        for norm in head.aggregate.norms:
            norm.weight[2] = 0
    usage = head.block_usage()
    assert (usage[:, 2] == 0).all()
    assert torch.allclose(usage.sum(0)[[0, 1, 3]], torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_learn_on_maps_of_any_timm_network(kind: str) -> None:
    """The head learns on the maps of a frozen network, which stays unchanged."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3)).eval().requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    head = make_head(kind, network.feature_info, 3, 16, 0.0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    y = torch.arange(12) % 3
    images = torch.randn(12, 3, 64, 64) + 3 * F.one_hot(y, 3)[:, :, None, None]
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(head(network(images)), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in head.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert head.num_classes == 3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_our_networks_blocks() -> None:
    network = load_network(BUNDLED).model
    network.eval()
    maps = network.forward_intermediates(torch.randn(2, 3, 32, 32), intermediates_only=True)
    for inputs, info in ((maps, network), (maps, network.feature_info), (maps[1:], network.feature_info[1:])):
        head = make_head("cross-layer", info, 5, 16, 0.0)
        assert head(inputs).shape == (2, 5)
        assert head.block_usage().shape == (len(inputs), 16)


def test_channels_last_and_autocast() -> None:
    head, maps = random_head().float(), [x.float() for x in random_maps()]
    for mode in (True, False):
        plain = copy.deepcopy(head).train(mode)(maps)
        last = [x.contiguous(memory_format=torch.channels_last) for x in maps]
        assert (
            relative_difference(
                copy.deepcopy(head).train(mode).to(memory_format=torch.channels_last)(last).detach(), plain.detach()
            )
            < 1e-5
        )
        with torch.autocast("cpu", torch.bfloat16):
            cast = copy.deepcopy(head).train(mode)(maps)
        assert cast.dtype == torch.bfloat16
        assert relative_difference(cast.float().detach(), plain.detach()) < 0.03


def test_weights_can_be_loaded_into_another_head() -> None:
    first, second = random_head().eval(), CrossLayerHead(INFO, 8, 4).double().eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(random_maps()), second(random_maps()))


def test_dropout_applies_in_training_alone() -> None:
    for kind in KINDS:
        torch.manual_seed(0)
        head, maps = make_head(kind, INFO, 4, 8, 0.5).double(), random_maps()
        assert not torch.equal(head.train()(maps), head(maps))
        assert torch.equal(head.eval()(maps), head(maps))


def test_every_parameter_is_trained_under_ddp(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        head, alone = random_head().train(), random_head().train()
        network = nn.parallel.DistributedDataParallel(head)
        for _ in range(2):  # DDP reports an unused parameter in the second step
            network(random_maps()).square().sum().backward()
            alone(random_maps()).square().sum().backward()
        for own, other in zip(head.parameters(), alone.parameters(), strict=True):
            assert torch.allclose(own.grad, other.grad, atol=1e-12)
    finally:
        dist.destroy_process_group()


def test_linear_and_mlp_read_the_pooled_last_map() -> None:
    torch.manual_seed(0)
    maps = random_maps()
    pooled = maps[-1].numpy().mean((2, 3))
    linear, mlp = LinearHead(9, 4).double(), MlpHead(9, 4, hidden=6).double()

    def affine(module: nn.Linear, x: np.ndarray) -> np.ndarray:
        return x @ module.weight.detach().numpy().T + module.bias.detach().numpy()

    assert np.abs(linear(maps).detach().numpy() - affine(linear.classifier, pooled)).max() < 1e-12
    hidden = affine(mlp.hidden, pooled)
    error_function = torch.erf(torch.from_numpy(hidden) / 2**0.5).numpy()
    expected = affine(mlp.classifier, 0.5 * hidden * (1 + error_function))
    assert np.abs(mlp(maps).detach().numpy() - expected).max() < 1e-12


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (random_maps()[:2], "2 maps: this head reads 3"),
        ([], "0 maps"),
        (random_maps()[::-1], r"map 1 of shape \(6, 9, 3, 3\): this head reads \(6, 5, H, W\)"),
        ([*random_maps()[:2], random_maps()[2].mean((2, 3))], r"map 3 of shape \(6, 9\)"),
        ([*random_maps()[:2], random_maps(3)[2]], r"map 3 of shape \(3, 9, 3, 3\): this head reads \(6, 9"),
    ],
)
def test_wrong_maps(maps: list[torch.Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        random_head()(maps)


@pytest.mark.parametrize("maps", [[], [torch.ones(2, 9)], [torch.ones(2, 7, 3, 3)]])
def test_wrong_last_maps(maps: list[torch.Tensor]) -> None:
    for head in (LinearHead(9, 2), MlpHead(9, 2)):
        with pytest.raises(UsageError, match=r"must be \(N, 9, H, W\)"):
            head(maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="transformer"), "head 'transformer': choose one of linear, mlp, cross-layer"),
        (dict(feature_info=None), "NoneType: no feature_info"),
        (dict(feature_info=nn.Linear(2, 2)), "Linear: no feature_info"),
        (dict(feature_info=[]), r"num_chs \[\]"),
        (dict(feature_info=[dict(module="a")]), r"num_chs \[None\]"),
        (dict(feature_info=[dict(num_chs=0)]), r"num_chs \[0\]"),
        (dict(feature_info=["a"]), r"num_chs \[None\]"),
        (dict(width=0), "width 0: give at least 1"),
        (dict(num_classes=0), "num_classes 0: give at least 1"),
        (dict(drop_rate=1.0), "drop_rate 1.0"),
        (dict(drop_rate=-0.1), "drop_rate -0.1"),
    ],
)
def test_heads_that_cannot_be_made(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_head(**dict(kind="cross-layer", feature_info=INFO, num_classes=3, width=8, drop_rate=0.0) | change)  # type: ignore[arg-type]


def test_the_picture_shows_the_shares(tmp_path: Path) -> None:
    usage = np.random.default_rng(0).dirichlet((1, 1, 4), 64).T.astype(np.float32)
    assert draw_usage(usage, ["block1", "block2", "$3$"], tmp_path / "usage")
    picture = np.asarray(Image.open(tmp_path / "usage.png").convert("RGB"))
    assert (np.ptp(picture, axis=2) > 60).mean() > 0.2
    svg = (tmp_path / "usage.svg").read_bytes()
    assert b"<svg" in svg
    assert draw_usage(usage, ["block1", "block2", "$3$"], tmp_path / "again")
    assert (tmp_path / "again.svg").read_bytes() == svg
    with pytest.raises(UsageError, match="for 2 names"):
        draw_usage(usage, ["a", "b"], tmp_path / "usage")


def test_channels_are_sorted_sort_by_strongest_block() -> None:
    usage = np.array([[0.6, 0.1, 0.9, 0.2], [0.4, 0.9, 0.1, 0.8]])
    assert _sort_by_strongest_block(usage).tolist() == [2, 0, 1, 3]
