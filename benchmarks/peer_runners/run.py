"""The programs that ``benchmarks/peers.py`` compares densefeat with, each in one function, as its own documentation shows.

    PYTHON benchmarks/peer_runners/run.py ARM IMAGES WEIGHTS OUT.npz

PYTHON is the peer's own. IMAGES is a flat folder of JPEGs, WEIGHTS a file of DenseNet-121. All use batches of 32 and, where
they have them, 2 workers. Each writes file names and the average-pooled maps after the last norm and ReLU.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH, WORKERS = 32, 2


def save(out: Path, names: Sequence[str], features: Any) -> None:
    rows = [np.asarray(row, np.float32).ravel() for row in features]
    np.savez(out, names=np.array(names, str), features=np.array(rows))


def load_timm(weights: Path) -> tuple[Any, Any]:
    """timm's network, which returns pooled features, and its evaluation transform."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model("densenet121", checkpoint_path=str(weights)).eval()
    model.reset_classifier(0)
    return model, create_transform(**resolve_model_data_config(model))


@torch.inference_mode()
def run_timm(images: Path, weights: Path, out: Path) -> None:
    """As timm's inference.py with --channels-last."""
    from timm.data import create_dataset, create_loader, resolve_model_data_config

    model, _ = load_timm(weights)
    dataset = create_dataset("", root=str(images))
    config = resolve_model_data_config(model)
    device = torch.device("cpu")
    loader = create_loader(dataset, batch_size=BATCH, num_workers=WORKERS, device=device, **config)
    model = model.to(memory_format=torch.channels_last)
    features = [model(x.to(memory_format=torch.channels_last)) for x, _ in loader]
    save(out, loader.dataset.filenames(basename=True), torch.cat(features))


class Files(torch.utils.data.Dataset):  # torchvision's folders need classes
    def __init__(self, images: Path, transform: Any) -> None:
        self.paths, self.transform = sorted(images.iterdir()), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from torchvision.datasets.folder import default_loader

        return self.transform(default_loader(str(self.paths[index])))


@torch.inference_mode()
def run_torchvision(images: Path, weights: Path, out: Path) -> None:
    """create_feature_extractor in channels_last, and torch's loader."""
    from safetensors.torch import load_file
    from torchvision import models, transforms
    from torchvision.models.feature_extraction import create_feature_extractor

    resize = transforms.Resize(256, transforms.InterpolationMode.BICUBIC)
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    files = Files(images, transforms.Compose([resize, transforms.CenterCrop(224), transforms.ToTensor(), normalize]))
    model = models.densenet121()
    model.load_state_dict(load_file(weights))
    model = create_feature_extractor(model.eval(), ["flatten"]).to(memory_format=torch.channels_last)
    loader = torch.utils.data.DataLoader(files, BATCH, num_workers=WORKERS)
    features = [model(x.to(memory_format=torch.channels_last))["flatten"] for x in loader]
    save(out, [path.name for path in files.paths], torch.cat(features))


def run_transformers(images: Path, weights: Path, out: Path) -> None:
    """The pipeline of a folder in timm's layout, by TimmWrapper."""
    import timm
    from timm.models import save_for_hf
    from transformers import pipeline

    folder = weights.parent / "transformers"
    if not folder.exists():
        model = timm.create_model("densenet121", checkpoint_path=str(weights))
        save_for_hf(model, str(folder), safe_serialization=True)
        config = json.loads((folder / "config.json").read_text())
        del config["model_args"]  # files on the hub have none, and some versions of TimmWrapper fail at num_classes in it
        (folder / "config.json").write_text(json.dumps(config))
    extractor = pipeline("image-feature-extraction", model=str(folder), device="cpu")
    paths = sorted(images.iterdir())
    files = [str(path) for path in paths]
    found = extractor(files, batch_size=BATCH, num_workers=WORKERS, pool=True, return_tensors=True)
    save(out, [path.name for path in paths], torch.cat(found))


def run_lightly(images: Path, weights: Path, out: Path) -> None:
    """embed; it takes a checkpoint of its own kind, and always squashes images to the size, bilinear."""
    import lightly_train
    from lightly_train._checkpoint import Checkpoint, CheckpointLightlyTrain, CheckpointLightlyTrainModels
    from lightly_train._models.embedding_model import EmbeddingModel
    from lightly_train._models.package_helpers import get_wrapped_model
    from lightly_train._transforms.transform import NormalizeArgs

    checkpoint, embeddings = weights.parent / "lightly.ckpt", out.with_suffix(".pt")
    if not checkpoint.exists():
        model = load_timm(weights)[0]
        wrapped = get_wrapped_model(model, num_input_channels=3)
        models = CheckpointLightlyTrainModels(model, wrapped, EmbeddingModel(wrapped))
        Checkpoint(model.state_dict(), CheckpointLightlyTrain.from_now(models, NormalizeArgs())).save(checkpoint)
    lightly_train.embed(
        out=embeddings, data=images, checkpoint=checkpoint, batch_size=BATCH, num_workers=WORKERS, overwrite=True
    )
    found = torch.load(embeddings, weights_only=True)
    save(out, [Path(name).name for name in found["filenames"]], found["embeddings"])


def run_thingsvision(images: Path, weights: Path, out: Path) -> None:
    """extract_features with its own loader, which has no workers."""
    from thingsvision import get_extractor_from_model
    from thingsvision.utils.data import DataLoader, ImageDataset

    model, transform = load_timm(weights)
    extractor = get_extractor_from_model(model=model, device="cpu", backend="pt")
    dataset = ImageDataset(root=str(images), out_path=str(out.parent), backend="pt", transforms=transform)
    loader = DataLoader(dataset=dataset, batch_size=BATCH, backend="pt")
    save(out, dataset.file_names, extractor.extract_features(loader, module_name="global_pool"))


def run_fiftyone(images: Path, weights: Path, out: Path) -> None:
    """compute_embeddings of a dataset of the folder; it leaves out what fails."""
    from fiftyone import Dataset
    from fiftyone.utils.torch import TorchImageModel, TorchImageModelConfig

    model, transform = load_timm(weights)
    config = {"model": model, "transforms": transform, "ragged_batches": False, "as_feature_extractor": True}
    dataset = Dataset.from_images_dir(str(images))
    wrapped = TorchImageModel(TorchImageModelConfig(config))
    found = dataset.compute_embeddings(wrapped, batch_size=BATCH, num_workers=WORKERS)
    rows = [(Path(path).name, row) for path, row in zip(dataset.values("filepath"), found, strict=True) if row is not None]
    save(out, [name for name, _ in rows], [row for _, row in rows])


ARMS: dict[str, Callable[[Path, Path, Path], None]] = {
    "timm": run_timm, "torchvision": run_torchvision, "transformers": run_transformers, "lightly-train": run_lightly,
    "thingsvision": run_thingsvision, "fiftyone": run_fiftyone,
}  # fmt: skip

if __name__ == "__main__":
    ARMS[sys.argv[1]](*map(Path, sys.argv[2:]))
