"""Every cell of the papers' tables has a recipe that says its protocol and its number.

The tables: 1608.06993 (DenseNet), tables 2 and 3, sections 4.1 and 4.2; 1611.05552 (DelugeNet).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from densefeat.nets.deluge_net import DelugeNet
from densefeat.nets.dense_net import DenseNet
from densefeat.nets.zoo import VARIANTS
from densefeat.training.recipe import DATA, Recipe, drop_rate
from densefeat.training.recipe_files import load_recipe, recipe_names, recipe_text

MODERN = {"cifar10_fast", "imagenet_densenet121_modern", "tin200"}  # no paper's

# network: (depth L, growth rate k, layers of each of the 3 blocks, bottleneck and compression)
CIFAR_DENSENETS = {
    "densenet40_k12": (40, 12, 12, False),
    "densenet100_k12": (100, 12, 32, False),
    "densenet100_k24": (100, 24, 32, False),
    "densenet_bc100_k12": (100, 12, 16, True),
    "densenet_bc250_k24": (250, 24, 41, True),
    "densenet_bc190_k40": (190, 40, 31, True),
}
# error in %; None: the paper has no number
CIFAR_COLUMNS = ("C10", "C10+", "C100", "C100+", "SVHN")
CIFAR_ERRORS = {
    "densenet40_k12": ("7.00", "5.24", "27.55", "24.42", "1.79"),
    "densenet100_k12": ("5.77", "4.10", "23.79", "20.20", "1.67"),
    "densenet100_k24": ("5.83", "3.74", "23.42", "19.25", "1.59"),
    "densenet_bc100_k12": ("5.92", "4.51", "24.15", "22.27", "1.76"),
    "densenet_bc250_k24": ("5.19", "3.62", "19.64", "17.60", "1.74"),
    "densenet_bc190_k40": (None, "3.46", None, "17.18", None),
    "delugenet146": (None, "3.98", None, "19.72", None),
    "delugenet218": (None, "3.88", None, "19.31", None),
    "wide_delugenet146": (None, "3.76", None, "19.02", None),
}
# network: (layers of the blocks, growth rate; top-1 and top-5 of a single crop, of ten crops)
IMAGENET_DENSENETS = {
    "densenet121": ((6, 12, 24, 16), 32, ("25.02", "7.71"), ("23.61", "6.66")),
    "densenet169": ((6, 12, 32, 32), 32, ("23.80", "6.85"), ("22.08", "5.92")),
    "densenet201": ((6, 12, 48, 32), 32, ("22.58", "6.34"), ("21.46", "5.54")),
    "densenet264": ((6, 12, 64, 48), 32, ("22.15", "6.12"), ("20.80", "5.29")),
    "densenet161": ((6, 12, 36, 24), 48, None, None),
}
# network: (m, w): blocks of m, 2m and 3m layers of widths 32w, 64w and 128w
CIFAR_DELUGENETS = {"delugenet146": (8, 1), "delugenet218": (12, 1), "wide_delugenet146": (8, 1.75)}
IMAGENET_DELUGENETS = {
    "delugenet92": ((7, 7, 8, 8), ("22.05", "6.03")),
    "delugenet104": ((7, 8, 9, 10), ("21.86", "5.98")),
    "delugenet122": ((7, 9, 11, 13), ("21.53", "5.86")),
}
# data: (channel means, standard deviations)
NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0, 0, 0), (1, 1, 1)),  # pixels in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "imagenet": 1000}

OPTIMISATION = {
    "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm": True, "schedule": "step",
}  # fmt: skip
PLAIN = {  # what came after the papers
    "label_smoothing": 0, "warmup_epochs": 0, "clip_grad": None, "ema": None, "freeze_norm": False, "accumulation": 1,
    "precision": "float32",
}  # fmt: skip
SMALL = {"batch_size": 64, "image_size": 32, "crop_pct": 1}
LARGE = {"batch_size": 256, "image_size": 224, "crop_pct": 0.875, "augment": "inception", "holdout": 0, "keep": "last"}
CIFAR = {"epochs": 300, "holdout": 0, "keep": "last"}
SVHN = {"epochs": 40, "augment": "none", "holdout": 6000, "keep": "best"}


@dataclass(frozen=True)
class Cell:
    """``settings``: the recipe's keys as the paper has them; ``drops``: the epochs at which lr is divided by ten."""

    network: str
    column: str
    name: str
    data: Literal["cifar10", "cifar100", "svhn", "imagenet"]
    settings: dict[str, Any]
    drops: list[int]
    dropout: float
    says: str
    overrides: list[str] = field(default_factory=list)


def small_cells() -> list[Cell]:
    cells = []
    for network, errors in CIFAR_ERRORS.items():
        for column, error in zip(CIFAR_COLUMNS, errors, strict=True):
            if error is None:
                continue
            says = f"{column} {error}"
            if column == "SVHN":
                cells.append(Cell(network, column, f"svhn_{network}", "svhn", SMALL | SVHN, [20, 30], 0.2, says))
                continue
            augmented, data = column.endswith("+"), "cifar100" if column.startswith("C100") else "cifar10"
            settings = SMALL | CIFAR | {"augment": "shift-mirror" if augmented else "none"}
            overrides = ([] if augmented else ["augment=none"]) + ([] if data == "cifar10" else ["data=cifar100"])
            dropout = 0.0 if augmented else 0.2
            cells.append(
                Cell(network, column, f"cifar10_{network}", data, settings, [150, 225], dropout, says, overrides)
            )  # fmt: skip
    return cells


def large_cells() -> list[Cell]:
    cells = []
    for network, (_, _, single, ten) in IMAGENET_DENSENETS.items():
        for column, errors in (("single crop", single), ("ten-crop", ten)):
            says = f"top-1 {errors[0]}, top-5 {errors[1]} ({column})" if errors else "table 3 has no row for this network"
            settings = LARGE | {"epochs": 90}
            cells.append(Cell(network, column, f"imagenet_{network}", "imagenet", settings, [30, 60], 0.0, says))
    for network, (_, errors) in IMAGENET_DELUGENETS.items():
        says, settings = f"top-1 {errors[0]}, top-5 {errors[1]} (1611.05552", LARGE | {"epochs": 100}
        cells.append(Cell(network, "top-1, top-5", f"imagenet_{network}", "imagenet", settings, [30, 60, 90], 0.0, says))
    return cells


CELLS = [*small_cells(), *large_cells()]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.network} {cell.column}")


def loaded(cell: Cell) -> Recipe:
    return load_recipe(cell.name, cell.overrides)


def head(name: str) -> str:
    """The comment that a recipe opens with, as one line."""
    comment = recipe_text(name).partition("\n\n")[0]
    return " ".join(line.removeprefix("#").strip() for line in comment.splitlines())


@each_cell
def test_protocol(cell: Cell) -> None:
    recipe = loaded(cell)
    expected = OPTIMISATION | PLAIN | cell.settings | {"data": cell.data, "model": f"densefeat_{cell.network}"}
    assert {key: getattr(recipe, key) for key in expected} == expected
    assert [share * recipe.epochs for share in recipe.milestones] == pytest.approx(cell.drops, abs=1e-4)
    assert drop_rate(recipe) == cell.dropout


@each_cell
def test_data(cell: Cell) -> None:
    facts = DATA[loaded(cell).data]
    assert (facts.mean, facts.std) == NORMALISATION[cell.data]
    assert facts.num_classes == CLASSES[cell.data]


@each_cell
def test_the_comment_says_its_number_and_how_to_get_it(cell: Cell) -> None:
    comment = head(cell.name)
    expected = comment[comment.index("Expected error") :]
    # C10 is the end of no other column's name; a number ends where its digits do
    assert any(f"{before}{cell.says}{after}" in expected for before in (" ", ": ") for after in (",", " ", ";", "."))
    assert all(override in comment for override in cell.overrides)
    if cell.data.startswith("cifar"):
        assert load_recipe(cell.name, [*cell.overrides, "holdout=5000"]).holdout == 5000
        assert "held-out training images: holdout=5000" in comment
    if cell.column == "ten-crop":
        assert f"densefeat evaluate runs/{cell.name} --data val/ --crops 10" in comment
    if "deluge" in cell.network:
        assert "retreats=3" in comment
        assert loaded(cell).retreats == 0


@pytest.mark.parametrize("network", CIFAR_DENSENETS)
def test_structure_of_cifar_densenets(network: str) -> None:
    depth, growth_rate, layers, bc = CIFAR_DENSENETS[network]
    net = make_checked_network(network, DenseNet)
    assert depth == (6 if bc else 3) * layers + 4
    assert weighted_layers(net) == depth
    structure = VARIANTS[f"densefeat_{network}"][1]
    assert (structure["growth_rate"], structure["block_config"]) == (growth_rate, (layers,) * 3)
    assert net.features.conv0.stride == (1, 1)
    assert net.features.conv0.out_channels == (2 * growth_rate if bc else 16)
    halved = net.features.transition1.conv
    assert halved.out_channels == (halved.in_channels // 2 if bc else halved.in_channels)


@pytest.mark.parametrize("network", IMAGENET_DENSENETS)
def test_structure_of_imagenet_densenets(network: str) -> None:
    blocks, growth_rate, *_ = IMAGENET_DENSENETS[network]
    net = make_checked_network(network, DenseNet)
    miscounted = network == "densenet264"  # table 1's blocks of 130 layers make it 265
    assert weighted_layers(net) == int(network.removeprefix("densenet")) + miscounted
    assert [len(net.features.get_submodule(f"denseblock{i}")) for i in range(1, 5)] == list(blocks)
    assert net.features.denseblock1.denselayer1.conv2.out_channels == growth_rate
    assert net.features.conv0.out_channels == 2 * growth_rate


def test_structure_of_delugenets() -> None:
    for network, (m, w) in CIFAR_DELUGENETS.items():
        structure = dict(block_widths=(32 * w, 64 * w, 128 * w), block_config=(m, 2 * m, 3 * m), stem_type="cifar")
        assert VARIANTS[f"densefeat_{network}"] == (DelugeNet, structure)
    for network, (layers, _) in IMAGENET_DELUGENETS.items():
        assert VARIANTS[f"densefeat_{network}"] == (DelugeNet, dict(block_config=layers))


def make_checked_network(network: str, kind: type) -> Any:
    with torch.device("meta"):
        net = timm.create_model(f"densefeat_{network}")
    assert type(net) is kind
    return net


def weighted_layers(net: torch.nn.Module) -> int:
    """Count the layers that the depth in a network's name counts."""
    return sum(isinstance(module, torch.nn.Conv2d | torch.nn.Linear) for module in net.modules())


def test_sgd_is_nesterovs_without_dampening() -> None:
    net = timm.create_model("densefeat_densenet_bc100_k12")
    recipe = load_recipe("cifar10_densenet_bc100_k12")
    optimizer = create_optimizer_v2(net, recipe.optimizer, lr=recipe.lr, momentum=recipe.momentum)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD
    assert (group["nesterov"], group["dampening"], group["momentum"]) == (True, 0, 0.9)


def test_every_network_and_every_recipe_has_its_cells() -> None:
    assert {cell.name for cell in CELLS} == set(recipe_names("densefeat train")) - MODERN
    assert {f"densefeat_{cell.network}" for cell in CELLS} == set(VARIANTS)
    assert set(recipe_names("densefeat train")) >= MODERN
    assert len(CELLS) == 5 * 5 + 2 + 2 * 3 + 2 * 5 + 3
