"""Networks whose norms look as after training, and what the plain network computes: engines are compared with it."""

import torch
from torch import nn

from densefeat import FeatureExtractor
from densefeat.features.engines.engine import BlockOutput, EngineSpec
from support import small_nets
from support.helpers import randomize_statistics, relative_difference

CPU = torch.device("cpu")


def perturb_norms(model: nn.Module) -> nn.Module:
    """Randomise the norms as training does, with a fifth of their weights negative and a tenth zero."""
    generator = torch.Generator().manual_seed(1)
    for module in randomize_statistics(model).modules():
        if isinstance(module, nn.BatchNorm2d):
            draws = torch.rand(module.weight.shape, generator=generator)
            module.weight.data[draws < 0.3] *= -1
            module.weight.data[draws < 0.1] = 0
    return model.eval()


def dense(**changes: object) -> nn.Module:
    """Make a DenseNet-BC of three blocks, of 3, 2 and 3 layers, with the stem for ImageNet."""
    return perturb_norms(small_nets.dense(**(dict(growth_rate=12, block_config=(3, 2, 3), stem_type="imagenet") | changes)))


def deluge(**changes: object) -> nn.Module:
    """Make a DelugeNet of two blocks, of 4 and 3 layers, with the stem for ImageNet."""
    return perturb_norms(small_nets.deluge(**(dict(block_widths=(8, 12), block_config=(4, 3), stem_type="imagenet") | changes)))


def make_images(number: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(number))


def make_spec(blocks: tuple[int, ...] = (0, 1), tap: str = "norm", precision: str = "fp32") -> EngineSpec:
    return EngineSpec(blocks, tap, precision, CPU)


def compute_reference(
    model: nn.Module, x: torch.Tensor, blocks: tuple[int, ...] = (0, 1), tap: str = "norm"
) -> list[BlockOutput]:
    """Compute means and maps with the plain network."""
    numbers = [i + 1 for i in blocks]
    extractor = FeatureExtractor(model, numbers, pool=("avg", "none"), tap=tap, device="cpu", backend="reference")
    features = extractor(x)
    return [BlockOutput(features[f"block{i}_avg"], features[f"block{i}_none"]) for i in numbers]


def assert_close_outputs(outputs: list[BlockOutput], expected: list[BlockOutput]) -> None:
    assert len(outputs) == len(expected)
    for a, b in zip(outputs, expected, strict=True):
        for values, reference in ((a.mean, b.mean), (a.maps, b.maps)):
            assert values.dtype == torch.float32
            assert values.shape == reference.shape
            assert relative_difference(values, reference) <= 1e-5


def smallest_cosine(outputs: list[BlockOutput], expected: list[BlockOutput]) -> float:
    """Return the smallest cosine of two means, over all images and blocks."""
    pairs = zip(outputs, expected, strict=True)
    return float(torch.stack([torch.cosine_similarity(a.mean, b.mean).min() for a, b in pairs]).min())
