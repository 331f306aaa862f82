"""Networks with statistics as after training, and what the plain ones compute: what engines are compared with."""

import torch
from torch import nn

from densefeat import DelugeNet, DenseNet, FeatureExtractor
from densefeat.features.engines.engine import BlockOutput, EngineSpec
from support.helpers import randomize_statistics, relative_difference

CPU = torch.device("cpu")


def perturbed(model: nn.Module) -> nn.Module:
    """Norms as after training, a fifth of their weights negative and a tenth zero."""
    generator = torch.Generator().manual_seed(1)
    for module in randomize_statistics(model).modules():
        if isinstance(module, nn.BatchNorm2d):
            draws = torch.rand(module.weight.shape, generator=generator)
            module.weight.data[draws < 0.3] *= -1
            module.weight.data[draws < 0.1] = 0
    return model.eval()


def dense(**structure: object) -> nn.Module:
    torch.manual_seed(0)
    return perturbed(DenseNet(**(dict(growth_rate=12, block_config=(3, 2, 3), num_classes=4) | structure)))


def deluge(**structure: object) -> nn.Module:
    torch.manual_seed(0)
    return perturbed(DelugeNet(**(dict(block_widths=(8, 12), block_config=(4, 3), num_classes=4) | structure)))


def images(number: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(number))


def wanted(blocks: tuple[int, ...] = (0, 1), tap: str = "norm", precision: str = "fp32") -> EngineSpec:
    return EngineSpec(blocks, tap, precision, CPU)


def plain(model: nn.Module, x: torch.Tensor, blocks: tuple[int, ...] = (0, 1), tap: str = "norm") -> list[BlockOutput]:
    """Means and maps of the plain network."""
    numbers = [i + 1 for i in blocks]
    extractor = FeatureExtractor(model, numbers, pool=("avg", "none"), tap=tap, device="cpu", backend="reference")
    features = extractor(x)
    return [BlockOutput(features[f"block{i}_avg"], features[f"block{i}_none"]) for i in numbers]


def check_equal(found: list[BlockOutput], expected: list[BlockOutput]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for one, other in ((a.mean, b.mean), (a.maps, b.maps)):
            assert one.dtype == torch.float32
            assert one.shape == other.shape
            assert relative_difference(one, other) <= 1e-5


def smallest_cosine(found: list[BlockOutput], expected: list[BlockOutput]) -> float:
    """Over images and blocks, of the means."""
    return float(
        torch.stack([torch.cosine_similarity(a.mean, b.mean).min() for a, b in zip(found, expected, strict=True)]).min()
    )
