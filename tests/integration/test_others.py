"""Our networks inside other people's libraries: they learn there, and come back from their files as they were."""

import os
from pathlib import Path

import datasets
import lightning
import numpy as np
import pytest
import segmentation_models_pytorch
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

import densefeat
from densefeat.images.transforms import Preprocessing
from support.helpers import BUNDLED

pytestmark = pytest.mark.slow
IMAGENET_STEM = "densefeat_densenet121"
SMALL = dict(block_config=(2, 2, 2, 2))  # the same code in less time


def ten_steps(model: nn.Module, loss_of, lr: float = 1e-3) -> list[float]:
    optimizer, losses = torch.optim.Adam(model.parameters(), lr), []
    model.train()
    for _ in range(10):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("Unet", IMAGENET_STEM), ("Linknet", IMAGENET_STEM), ("Unet", "densefeat_delugenet92"), ("FPN", IMAGENET_STEM)],
)
def test_segmentation_learns(architecture: str, encoder: str) -> None:
    torch.manual_seed(0)
    small = SMALL if encoder == IMAGENET_STEM else dict(block_widths=(8, 16, 24, 32))
    make = getattr(segmentation_models_pytorch, architecture)
    model = make(f"tu-{encoder}", encoder_weights=None, in_channels=3, classes=1, **small)
    images = torch.rand(4, 3, 64, 96)
    bright = (images.mean(1, keepdim=True) > 0.5).float()
    losses = ten_steps(model, lambda model: binary_cross_entropy_with_logits(model(images), bright))
    assert losses[-1] < losses[1]  # the first is before any running statistics or moments
    assert model.eval()(images).shape == (4, 1, 64, 96)


def test_segmentation_encoder_is_the_network() -> None:
    torch.manual_seed(0)
    model = segmentation_models_pytorch.Unet(f"tu-{IMAGENET_STEM}", encoder_weights=None, in_channels=1).eval()
    assert model.encoder.out_channels == [1, 64, 256, 512, 1024, 1024]
    images = torch.rand(1, 1, 64, 64)
    own = timm.create_model(IMAGENET_STEM, in_chans=1, features_only=True).eval()
    own.load_state_dict(model.encoder.model.state_dict())
    torch.testing.assert_close(model.encoder(images)[1:], own(images))


class Pyramid(nn.Module):
    """What torchvision's detectors take for a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model(IMAGENET_STEM, features_only=True, out_indices=(1, 2, 3, 4), **SMALL)
        self.out_channels = 32
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels, LastLevelMaxPool())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(dict(zip("0123", self.body(x), strict=True)))


def boxes() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two dark images with a bright rectangle each."""
    images, targets = [torch.rand(3, 96, 96) * 0.3 for _ in range(2)], []
    for i, image in enumerate(images):
        image[:, 20 + 10 * i : 60 + 10 * i, 30:80] = 1
        targets.append({"boxes": torch.tensor([[30.0, 20 + 10 * i, 80, 60 + 10 * i]]), "labels": torch.tensor([1])})
    return images, targets


def test_detection_learns() -> None:
    torch.manual_seed(0)
    images, targets = boxes()
    few = dict(rpn_pre_nms_top_n_train=50, rpn_post_nms_top_n_train=20, box_batch_size_per_image=16)
    model = FasterRCNN(Pyramid(), num_classes=2, min_size=96, max_size=96, **few)
    losses = ten_steps(model, lambda model: sum(model(images, targets).values()))
    assert losses[-1] < 0.7 * losses[0]
    found = model.eval()(images)
    assert [set(each) for each in found] == [{"boxes", "labels", "scores"}] * 2


def test_torchvision_cuts_the_network_itself() -> None:
    network = timm.create_model(IMAGENET_STEM, num_classes=0, **SMALL).eval()
    stages = network.feature_info[1:]
    names = {stage["module"].removeprefix("features."): stage["module"] for stage in stages}
    backbone = BackboneWithFPN(network.features, names, [stage["num_chs"] for stage in stages], 16).eval()
    images = torch.rand(1, 3, 64, 64)
    maps = network.forward_intermediates(images, indices=4, intermediates_only=True)
    torch.testing.assert_close(list(backbone.body(images).values()), maps)
    assert [map_.shape[-1] for map_ in backbone(images).values()] == [16, 8, 4, 2, 1]


def test_datasets_map(
    photo_folder: Path, tmp_path: Path, small_extractor: densefeat.FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of a saved data set, in this process and then in two others."""
    monkeypatch.setattr(os, "environ", os.environ)  # map replaces it by a copy; rich would go on reading the first object
    files = sorted(photo_folder.rglob("*.jpg"))
    made = datasets.Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "saved")
    images = datasets.load_from_disk(tmp_path / "saved")

    def embed(batch: dict[str, list]) -> dict[str, np.ndarray]:
        return {name: block.numpy() for name, block in small_extractor(batch["image"]).items()}

    one = images.map(embed, batched=True, batch_size=5).with_format("numpy")
    two = images.map(embed, batched=True, batch_size=4, num_proc=2).with_format("numpy")
    pictures = [Image.open(file) for file in files]
    for name, expected in small_extractor(pictures).items():
        np.testing.assert_allclose(np.stack(one[name]), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.stack(two[name]), expected, rtol=1e-4, atol=1e-5)


class Tuned(lightning.LightningModule):
    """The whole network learns."""

    lr = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model(BUNDLED, pretrained=True, num_classes=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([parameter for parameter in self.parameters() if parameter.requires_grad], self.lr)


class Headed(Tuned):
    """A head learns from the features of a network that stays as it is, in whatever mode Lightning puts it."""

    lr = 0.002

    def __init__(self) -> None:
        super().__init__()
        self.network.requires_grad_(False)
        self.head = nn.Linear(342, 2)
        self.extractor = densefeat.FeatureExtractor(self.network, blocks=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.extractor.forward(x)["block3"])


def fit(module: lightning.LightningModule, folder: Path) -> lightning.Trainer:
    lightning.seed_everything(0, verbose=False)
    labels = torch.arange(16) % 2
    images = torch.randn(16, 3, 32, 32) + labels.view(-1, 1, 1, 1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=8)
    keep = ModelCheckpoint(folder, save_last=True)
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(max_steps=10, accelerator="cpu", callbacks=[keep], default_root_dir=folder, **quiet)
    before = nn.functional.cross_entropy(module.eval()(images), labels).item()
    trainer.fit(module.train(), data)
    assert trainer.global_step == 10
    assert trainer.callback_metrics["loss"] < before
    return trainer


# on this machine's cores and GPU, and on a class of torch's that Lightning itself uses
lightning_remarks = pytest.mark.filterwarnings(
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:GPU available but not used",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
)


@lightning_remarks
def test_lightning_trains_and_keeps(tmp_path: Path) -> None:
    module = Tuned()
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    fit(module, tmp_path)
    assert not torch.equal(module.network.features.conv0.weight, before["features.conv0.weight"])
    images = torch.rand(2, 3, 32, 32)
    kept = Tuned.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu", weights_only=True).eval()
    assert torch.equal(kept(images), module.eval()(images))


@lightning_remarks
def test_frozen_network_stays_frozen_in_lightning(tmp_path: Path) -> None:
    module = Headed()
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    head = module.head.weight.clone()
    fit(module, tmp_path)
    assert not torch.equal(module.head.weight, head)
    after = module.network.state_dict()
    assert not [name for name, tensor in before.items() if not torch.equal(after[name], tensor)]


def test_transformers_wrapper(tmp_path: Path, trained: nn.Module, photographs: list[Image.Image]) -> None:
    preprocessing = timm.data.resolve_model_data_config(trained)
    config = TimmWrapperConfig(architecture=BUNDLED, num_labels=200, pretrained_cfg=preprocessing)
    model = TimmWrapperForImageClassification(config).eval()
    model.timm_model.load_state_dict(trained.state_dict())
    model.save_pretrained(tmp_path)
    kept = AutoModelForImageClassification.from_pretrained(tmp_path).eval()

    inputs = AutoImageProcessor.from_pretrained(tmp_path)(photographs)
    own = Preprocessing.for_model(trained)
    pixels = own.normalize(torch.stack([own.geometry()(photograph) for photograph in photographs]))
    torch.testing.assert_close(inputs["pixel_values"], pixels)
    with torch.no_grad():
        assert torch.equal(kept(**inputs).logits, trained(pixels))
        blocks = TimmWrapperModel.from_pretrained(tmp_path).eval()(**inputs, output_hidden_states=True)
    torch.testing.assert_close(blocks.pooler_output, densefeat.FeatureExtractor(trained, blocks=3).forward(pixels)["block3"])
    assert [maps.shape[1] for maps in blocks.hidden_states] == [24, 216, 300, 342]


def test_transformers_wrapper_learns(trained: nn.Module) -> None:
    torch.manual_seed(0)
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=BUNDLED, num_labels=2))
    model.activation_checkpointing_enable()
    labels = torch.arange(4) % 2
    images = torch.randn(4, 3, 16, 16) + labels.view(-1, 1, 1, 1)
    losses = ten_steps(model, lambda model: model(images, labels=labels).loss)
    assert losses[-1] < losses[0]
