"""Accuracy of networks with weights, against a loop of timm's own."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import Compose, FiveCrop, InterpolationMode, Normalize, Resize, ToTensor

from densefeat import DensefeatError, UsageError, WeightsError
from densefeat.evaluation.accuracy import evaluate
from densefeat.images.transforms import Preprocessing
from densefeat.training.run_folder import RunFolder
from support.helpers import BUNDLED, randomize_statistics
from support.tiny_net import TINY

MakeFolder = MakeParquet = Callable[..., Path]
NAMES = ["x", "y", "z"]


@pytest.fixture(scope="session")
def classes(trained: nn.Module) -> list[str]:
    with safe_open(trained.pretrained_cfg["file"], "pt") as opened:
        return json.loads(opened.metadata()["classes"])


def by_timm(model: nn.Module, files: list[Path], **options: Any) -> torch.Tensor:
    """Logits, ``(N, C)``, image by image."""
    config = timm.data.resolve_model_data_config(model) | options
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        return torch.cat([model(transform(Image.open(file).convert("RGB"))[None]) for file in files])


@pytest.fixture
def few(folder: Path) -> Path:
    """Four of these images."""
    for file in sorted(folder.rglob("*.png"))[4:]:
        file.unlink()
    return folder


@pytest.fixture
def folder(tmp_path: Path, pieces: np.ndarray, trained: nn.Module, classes: list[str]) -> Path:
    """12 images of 32×32 whose classes the network ranks first, among five, or lower."""
    for i, piece in enumerate(pieces[:12]):
        Image.fromarray(piece).save(tmp_path / f"{i:02}.png")
    ranked = by_timm(trained, [tmp_path / f"{i:02}.png" for i in range(12)]).argsort(1, descending=True)
    for i in range(12):
        own = tmp_path / "in" / classes[ranked[i, (0, 0, 3, 50)[i % 4]]]
        own.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{i:02}.png").rename(own / f"{i:02}.png")
    return tmp_path / "in"


def read_labels(files: list[Path], names: list[str]) -> torch.Tensor:
    return torch.tensor([names.index(file.parent.name) for file in files])


def assert_equals(found: dict[str, Any], logits: torch.Tensor, y: torch.Tensor) -> None:
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
    assert found["images"] == len(y)
    assert found["top1"] == pytest.approx(100 * hits[:, 0].float().mean().item(), abs=1e-3)
    assert found["top5"] == pytest.approx(100 * hits.any(1).float().mean().item(), abs=1e-3)
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-4)


def test_the_bundled_network(folder: Path, trained: nn.Module, classes: list[str]) -> None:
    done: list[int] = []
    found = evaluate(BUNDLED, str(folder), advance=done.append).to_json()
    files = sorted(folder.rglob("*.png"))
    y = read_labels(files, classes)
    assert_equals(found, by_timm(trained, files), y)
    assert (found["top1"], found["top5"], sum(done)) == (50.0, 75.0, 12)
    assert (found["model"], found["crops"], found["image_size"]) == (BUNDLED, 1, 32)
    assert (found["unlabelled"], found["unread"]) == (0, [])
    assert [row["class"] for row in found["per_class"]] == classes
    for label in range(200):
        row = found["per_class"][label]
        assert row["images"] == (y == label).sum()
        assert (row["top1"] is None) == (row["images"] == 0)
    hits = sum(row["images"] * row["top1"] for row in found["per_class"] if row["images"])
    assert hits == pytest.approx(12 * found["top1"], abs=0.01)


def test_workers_and_layouts_change_nothing(folder: Path, classes: list[str], make_parquet: MakeParquet) -> None:
    alone = evaluate(BUNDLED, str(folder)).to_json()
    assert evaluate(BUNDLED, str(folder), workers=2).to_json() == alone
    by_number = {file.stem: file for file in folder.rglob("*.png")}
    names = sorted(classes, reverse=True)  # an order of the file's own
    labels = [names.index(by_number[f"{i:02}"].parent.name) for i in range(12)]
    found = evaluate(BUNDLED, str(make_parquet("x.parquet", labels, names))).to_json()
    assert {**found, "loss": None} == {**alone, "loss": None}
    assert found["loss"] == pytest.approx(alone["loss"], abs=1e-4)


@pytest.mark.parametrize(("image_size", "crop_pct"), [(64, None), (48, 0.8)])
def test_image_size_and_crop(
    image_size: int, crop_pct: float | None, few: Path, trained: nn.Module, classes: list[str]
) -> None:
    found = evaluate(BUNDLED, str(few), image_size=image_size, crop_pct=crop_pct).to_json()
    files = sorted(few.rglob("*.png"))
    logits = by_timm(trained, files, input_size=(3, image_size, image_size), crop_pct=crop_pct or 1.0)
    assert_equals(found, logits, read_labels(files, classes))
    assert found["image_size"] == image_size


@pytest.mark.parametrize(("options", "side"), [({}, 36), ({"crop_pct": 0.8}, 40), ({"crop_pct": 1.0}, 32)])
def test_ten_crops(options: dict[str, float], side: int, few: Path, trained: nn.Module, classes: list[str]) -> None:
    """The mean softmax of corners and centre of the whole image, each mirrored."""
    for file in few.rglob("*.png"):
        Image.open(file).resize((60, 40)).save(file)
    found = evaluate(BUNDLED, str(few), crops=10, **options).to_json()  # type: ignore[arg-type]
    files = sorted(few.rglob("*.png"))
    config = timm.data.resolve_model_data_config(trained)
    transform = Compose([Resize(side, InterpolationMode.BICUBIC), ToTensor(), Normalize(config["mean"], config["std"])])
    means = []
    with torch.inference_mode():
        for file in files:
            crops = torch.stack(FiveCrop(32)(transform(Image.open(file))))
            means.append(trained(torch.cat([crops, crops.flip(3)])).softmax(1).mean(0))
    assert_equals(found, torch.stack(means).log(), read_labels(files, classes))
    assert (found["crops"], found["image_size"]) == (10, 32)


def test_images_without_a_label_and_images_that_cannot_be_read(folder: Path, pngs: list[bytes]) -> None:
    before = evaluate(BUNDLED, str(folder)).to_json()
    label = next(folder.iterdir())
    (label / "torn.png").write_bytes(pngs[0][:500])
    (label / "empty.png").write_bytes(b"")
    (folder / "beside.png").write_bytes(pngs[0])
    found = evaluate(BUNDLED, str(folder)).to_json()
    assert [failure["key"] for failure in found["unread"]] == [f"{label.name}/empty.png", f"{label.name}/torn.png"]
    assert found["unread"][0]["reason"] == "the file is empty"
    assert found["unlabelled"] == 1
    for key in ("images", "top1", "top5", "per_class"):
        assert found[key] == before[key]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crops": 5}, "^crops 5: choose 1 or 10$"),
        ({"crop_pct": 0.0}, "^crop_pct 0.0: give a share, above 0 and at most 1$"),
        ({"crop_pct": 1.1}, "^crop_pct 1.1: give a share, above 0 and at most 1$"),
        ({"crop_pct": float("nan")}, "^crop_pct nan: give a share"),
        ({"image_size": 16}, "^image size 16: the networks need at least 32 pixels$"),
        ({"model": "densefeat_densenet_bc100_k13"}, "^unknown model 'densefeat_densenet_bc100_k13': did you mean densefeat_"),
        ({"model": "densefeat_densenet_bc100_k13", "weights": "x"}, "^unknown model 'densefeat_densenet_bc100_k13': did you"),
        ({"data": "nowhere"}, "^images 'nowhere': no such folder or file"),
        ({"data": "{strange}"}, "strange': label 'cat' is not one of the 200 known classes"),
        ({"data": "{strange}", "label_column": "label"}, "label_column 'label' is not for a folder"),
        ({"model": "{strange}"}, "strange': this folder holds no config.json: not a run, or one that was not evaluated yet"),
    ],
)
def test_refused(options: dict[str, Any], message: str, folder: Path, make_folder: MakeFolder) -> None:
    strange = make_folder({"cat": 1}, "strange")
    options = {key: value.format(strange=strange) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(UsageError, match=message):
        evaluate(**{"model": BUNDLED, "data": str(folder)} | options)


def small(num_classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize_statistics(timm.create_model(TINY, num_classes=num_classes)).eval()


def write_run(path: Path, model: nn.Module, names: list[str]) -> Path:
    path.mkdir()
    preprocessing = Preprocessing(32, 1.0, "center", "bicubic", (0.49, 0.48, 0.44), (0.24, 0.25, 0.26))
    RunFolder(path).export(model, preprocessing, names, "single")
    return path


@pytest.fixture
def labelled(make_folder: MakeFolder) -> Path:
    return make_folder({"z": 5, "x": 4, "y": 6})


def test_the_folder_of_a_run(tmp_path: Path, labelled: Path) -> None:
    names = ["z", "x", "y"]  # the order of the network's outputs, which is not the folder's
    model = small()
    run = write_run(tmp_path / "run", model, names)
    theirs = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    files = sorted(labelled.rglob("*.png"))
    logits = by_timm(theirs, files)
    assert timm.data.resolve_model_data_config(theirs)["mean"] == [0.49, 0.48, 0.44]
    assert torch.equal(logits, by_timm(model, files, mean=(0.49, 0.48, 0.44), std=(0.24, 0.25, 0.26)))
    found = evaluate(str(run), str(labelled)).to_json()
    assert_equals(found, logits, read_labels(files, names))
    assert [(row["class"], row["images"]) for row in found["per_class"]] == [("z", 5), ("x", 4), ("y", 6)]
    assert found["top5"] == 100.0


def test_arguments_of_the_network_are_kept(tmp_path: Path, labelled: Path) -> None:
    torch.manual_seed(0)
    model = randomize_statistics(timm.create_model(TINY, num_classes=3, growth_rate=4, block_config=(1, 2, 1))).eval()
    run = write_run(tmp_path / "run", model, NAMES)
    files = sorted(labelled.rglob("*.png"))
    logits = by_timm(model, files, mean=(0.49, 0.48, 0.44), std=(0.24, 0.25, 0.26))
    assert_equals(evaluate(str(run), str(labelled)).to_json(), logits, read_labels(files, NAMES))


def test_other_weights_for_a_run(tmp_path: Path, labelled: Path) -> None:
    run, other = write_run(tmp_path / "run", small(), NAMES), write_run(tmp_path / "other", small(seed=1), NAMES)
    found = evaluate(str(run), str(labelled), weights=other / "model.safetensors").to_json()
    wanted = evaluate(str(other), str(labelled)).to_json()
    assert found["loss"] == wanted["loss"] != evaluate(str(run), str(labelled)).to_json()["loss"]


def test_weights_of_ones_own_name_their_classes(tmp_path: Path, folder: Path, trained: nn.Module, classes: list[str]) -> None:
    wanted = evaluate(BUNDLED, str(folder)).to_json()
    tensors = {name: value.contiguous() for name, value in trained.state_dict().items()}
    save_file(tensors, tmp_path / "named.safetensors", {"classes": json.dumps(classes)})
    assert evaluate(BUNDLED, str(folder), weights=tmp_path / "named.safetensors").to_json() == wanted
    for strange in ("cat, dog", "[1, 2]", "{}"):  # as if there were none: then the data must have all classes
        save_file(tensors, tmp_path / "strange.safetensors", {"classes": strange})
        with pytest.raises(
            UsageError,
            match="classes, the network 200: they cannot be matched, unless --classes FILE names those of the network$",
        ):
            evaluate(BUNDLED, str(folder), weights=tmp_path / "strange.safetensors")


def test_a_classifier_for_other_classes_is_refused(tmp_path: Path, labelled: Path) -> None:
    """A run would keep a random one; a network by name gets the classes of the file."""
    run, other = write_run(tmp_path / "run", small(), NAMES), write_run(tmp_path / "other", small(4), [*NAMES, "w"])
    with pytest.raises(WeightsError, match="classifier.weight.*: for another number of classes than the network's 3$"):
        evaluate(str(run), str(labelled), weights=other / "model.safetensors")
    assert evaluate(TINY, str(labelled), weights=other / "model.safetensors").classes == [*NAMES, "w"]


def write_cifar100(path: Path, pieces: np.ndarray, names: list[str]) -> Path:
    path.mkdir()
    (path / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, 2))
    rows = pieces.transpose(0, 3, 1, 2).reshape(-1, 3072)
    content = {b"data": rows, b"fine_labels": [i % 3 for i in range(len(rows))]}
    for name in ("train", "test"):
        (path / name).write_bytes(pickle.dumps(content, 2))
    return path


def test_decoded_arrays(tmp_path: Path, pieces: np.ndarray) -> None:
    model = small()
    run = write_run(tmp_path / "run", model, NAMES)
    data = write_cifar100(tmp_path / "c", pieces[:10], NAMES)
    found = evaluate(str(run), str(data)).to_json()
    files = [tmp_path / f"{i}.png" for i in range(10)]
    for file, piece in zip(files, pieces, strict=False):
        Image.fromarray(piece).save(file)
    logits = by_timm(model, files, mean=(0.49, 0.48, 0.44), std=(0.24, 0.25, 0.26))
    assert_equals(found, logits, torch.arange(10) % 3)
    with pytest.raises(UsageError, match="image size 40, crops 1: the images of c/test have 32 pixels"):
        evaluate(str(run), str(data), image_size=40)
    other = write_cifar100(tmp_path / "other", pieces[:10], ["x", "z", "y"])
    with pytest.raises(UsageError, match=re.escape("its classes (x, …) are not the network's (x, …)")):
        evaluate(str(run), str(other))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "no network can be made of it"),
        ("{}", "no network can be made of it: 'architecture'"),
        ('{"architecture": "nothing", "num_classes": 3, "pretrained_cfg": {}}', "no network can be made of it: Unknown model"),
        ('{"architecture": "hf-hub:a/b", "num_classes": 3, "pretrained_cfg": {"x": 1}}', "no network can be made of it"),
        (f'{{"architecture": "{TINY}", "num_classes": 3, "pretrained_cfg": {{}}, "model_args": 7}}', "no network can be"),
        (f'{{"architecture": "{TINY}", "num_classes": 3, "pretrained_cfg": {{}}, "model_args": {{"checkpoint_path": "/x"}}}}',
         "model_args has 'checkpoint_path'"),
        ('{"architecture": "local-dir:/x", "num_classes": 3, "pretrained_cfg": {}}', "Unknown model 'local-dir:/x'"),
        (f'{{"architecture": "{TINY}", "num_classes": 300000000, "pretrained_cfg": {{}}}}', "num_classes 300000000"),
        (f'{{"architecture": "{TINY}", "num_classes": 3, "pretrained_cfg": {{"input_size": [3, 200000, 200000]}}}}',
         "input_size"),
        (f'{{"architecture": "{TINY}", "num_classes": 4, "pretrained_cfg": {{}}}}', "another number of classes than the network's 4"),
    ],
)  # fmt: skip
def test_damaged_runs(text: str, message: str, tmp_path: Path, labelled: Path) -> None:
    run = write_run(tmp_path / "run", small(), NAMES)
    (run / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        evaluate(str(run), str(labelled))


def test_a_run_without_weights(tmp_path: Path, labelled: Path) -> None:
    run = write_run(tmp_path / "run", small(), NAMES)
    (run / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file$"):
        evaluate(str(run), str(labelled))


def test_nothing_that_can_be_read(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_bytes(b"torn")
    with pytest.raises(DensefeatError, match="none of its images can be read, the first: .*: not an image"):
        evaluate(BUNDLED, str(folder))
