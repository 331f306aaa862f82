"""Mean absolute weights against plain loops over the parameters, and the statistics on weights made up so that they differ."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.heads.modules import HeadedNet
from densefeat.nets.deluge_net import DelugeNet
from densefeat.report.connections import find_readers
from densefeat.report.reuse import Finding, feature_reuse, load_known_network, observations, write_reuse_csv
from support.helpers import BUNDLED
from support.small_nets import deluge, dense


def loops(parameters: dict[str, torch.Tensor], block: int, layers: int, growth: int) -> list[list[float]]:
    """Compute for a DenseNet-BC, element by element, the mean |weight| of each layer's sources."""
    found = []
    for layer in range(1, layers + 1):
        weight = parameters[f"features.denseblock{block}.denselayer{layer}.conv1.weight"][:, :, 0, 0].double().numpy()
        first = weight.shape[1] - growth * (layer - 1)
        sums, counts = [0.0] * layer, [0] * layer
        for row in weight:
            for channel, value in enumerate(row):
                source = 0 if channel < first else 1 + (channel - first) // growth
                sums[source] += abs(value)
                counts[source] += 1
        found.append([total / count for total, count in zip(sums, counts, strict=True)])
    return found


def test_the_bundled_network_against_loops(trained: nn.Module) -> None:
    reuse = feature_reuse(trained)
    assert reuse.blocks == 3
    for block in (1, 2, 3):
        columns = reuse.block(block)
        for column, wanted in zip(columns[:-1], loops(trained.state_dict(), block, 16, 12), strict=True):
            np.testing.assert_allclose(column.means, wanted, rtol=1e-9)
    classifier = trained.get_parameter("classifier.weight").detach().abs().double()
    np.testing.assert_allclose(reuse.block(3)[-1].means[0], classifier[:, :150].mean(), rtol=1e-12)
    np.testing.assert_allclose(reuse.block(3)[-1].means[5], classifier[:, 198:210].mean(), rtol=1e-12)
    assert reuse.block(3)[-1].weights.tolist() == [200 * 150, *[200 * 12] * 16]


def test_a_delugenet_against_its_norms() -> None:
    model = deluge()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    last = feature_reuse(model).columns[-1]
    wanted = [model.get_parameter(f"features.block2.aggregate.norms.{i}.weight").abs().double().mean().item() for i in range(4)]
    np.testing.assert_allclose(last.means, wanted, rtol=1e-12)
    assert last.weights.tolist() == [12] * 4
    assert feature_reuse(model).cross_layer


def test_the_triangle_is_empty_below_the_diagonal(trained: nn.Module) -> None:
    triangle = feature_reuse(trained).triangle(2)
    assert triangle.shape == (17, 17)
    np.testing.assert_array_equal(np.isnan(triangle), np.tril(np.ones((17, 17), bool), -1))


def test_the_csv_has_every_connection(trained: nn.Module, tmp_path: Path) -> None:
    reuse = feature_reuse(trained)
    write_reuse_csv(reuse, tmp_path / "reuse.csv")
    with open(tmp_path / "reuse.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["block", "target", "source", "mean_abs_weight", "weights"]
    assert len(rows) == 3 * (16 * 17 // 2 + 17)
    assert (rows[-1]["block"], rows[-1]["target"], rows[-1]["source"]) == ("3", "classifier", "16")
    assert float(rows[-1]["mean_abs_weight"]) == reuse.columns[-1].means[-1]


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.observation[0] + finding.statistic[:5]: finding for finding in findings}


def scaled(model: nn.Module, pattern: str, source: int, factor: float) -> nn.Module:
    """A network whose readers of that name all have weights of 1, but for one source."""
    for reader in find_readers(model):
        for number, weight in enumerate(reader.weights):
            weight.fill_(factor if number == source and pattern in (reader.name, "all") else 1)
    return model


def test_even_weights_are_spread_and_nothing_else() -> None:
    found = by_name(observations(feature_reuse(scaled(dense(), "all", 0, 1.0))))
    assert [found[name].holds for name in ("1effec", "2effec", "3layer", "3its m", "4last ")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert found["1effec"].values == pytest.approx((1, 1))
    assert found["2effec"].values == (pytest.approx(1), None)
    assert found["4last "].values == (None, pytest.approx(1))


def test_a_layer_that_reads_one_source_is_not_spread() -> None:
    found = by_name(observations(feature_reuse(scaled(dense(block_config=(6, 6)), "6", 0, 1e6))))
    assert found["1effec"].values == pytest.approx((1 / 6, 1 / 6), rel=1e-3)
    assert found["1effec"].holds is False
    assert found["2effec"].holds is True


def test_a_transition_that_reads_one_source_is_not_spread() -> None:
    found = by_name(observations(feature_reuse(scaled(dense(), "transition", 1, 1e6))))
    assert found["2effec"].holds is False
    assert found["1effec"].holds is True


@pytest.mark.parametrize(("factor", "share", "ratio"), [(0.5, 1.0, 0.5), (2.0, 0.0, 2.0)])
def test_the_input_of_a_block(factor: float, share: float, ratio: float) -> None:
    found = by_name(observations(feature_reuse(scaled(dense(), "all", 0, factor))))
    assert found["3layer"].values == (None, share)
    assert found["3its m"].values == (None, pytest.approx(ratio))
    assert found["3layer"].holds is found["3its m"].holds is (factor < 1)


def test_a_classifier_that_prefers_the_last_layer() -> None:
    found = by_name(observations(feature_reuse(scaled(dense(), "classifier", 3, 4.0))))
    channels = [8, 4, 4, 4]  # of the sources; the last quarter of three layers is one of them
    assert found["4last "].values == (None, pytest.approx(16 / 32 / (4 / sum(channels))))
    assert found["4last "].holds is True


def test_without_a_classifier_there_is_no_finding_on_it() -> None:
    assert by_name(observations(feature_reuse(dense(num_classes=0))))["4last "].holds is None


def test_networks_by_name(tmp_path: Path) -> None:
    assert len(feature_reuse(load_known_network(BUNDLED)).columns) == 51
    with pytest.raises(UsageError, match="unknown model 'densnet'"):
        load_known_network("densnet")


def test_a_head_of_ours_is_left_out() -> None:
    headed = HeadedNet(dense(num_classes=0), "mlp", 8, 3)
    with pytest.raises(UsageError, match="HeadedNet: its connections are not known"):
        feature_reuse(headed)
    assert feature_reuse(headed.backbone).columns[-1].reader.name == "3"


def test_zero_weights_are_no_error() -> None:
    model = deluge()
    assert isinstance(model, DelugeNet)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = observations(feature_reuse(model))
    assert [finding.holds for finding in found] == [False, False, False, None, None]
