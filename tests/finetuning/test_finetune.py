"""Fine-tuning: which parameters change, resuming exactly, every head, and programs that read the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import densefeat
from densefeat import UsageError
from densefeat.evaluation.accuracy import evaluate
from densefeat.finetuning.recipe import load_finetuning
from densefeat.finetuning.setup import finetune
from densefeat.training.job import format_result
from densefeat.training.recipe_files import recipe_names
from support.helpers import BUNDLED
from support.runs import assert_same_training, newest_state, tiny_finetuning, untimed, write_classes, write_table
from support.tiny_net import TINY, tiny_state, write_tiny_weights

BACKBONE = "features."


def original() -> dict[str, torch.Tensor]:
    return tiny_state()


def changed_tensors(run: Path) -> set[str]:
    """Find the tensors, except the classifier's, that differ from the initial weights."""
    before, after = original(), newest_state(run)["model"]
    names = [name.removeprefix("backbone.") for name in after]
    features = {name: value for name, value in zip(names, after.values(), strict=True) if name.startswith(BACKBONE)}
    assert features.keys() == {name for name in before if name.startswith(BACKBONE)}
    return {name for name, value in features.items() if not torch.equal(value, before[name])}


def is_statistic(name: str) -> bool:
    return "running_" in name or "num_batches" in name


@pytest.mark.parametrize("head", ["linear", "mlp", "cross-layer"])
@pytest.mark.parametrize("freeze_norm", [True, False])
def test_a_frozen_backbone_stays_bit_for_bit(tmp_path: Path, head: str, freeze_norm: bool) -> None:
    start = "probe" if head == "linear" else "random"
    recipe = tiny_finetuning(
        tmp_path, mode="head", head=head, head_start=start, head_width=16, freeze_norm=freeze_norm, ema=0.9, weight_decay=0.1
    )
    finetune(recipe, tmp_path / "run", "cpu")
    assert not changed_tensors(tmp_path / "run")
    exported = load_file(tmp_path / "run/model.safetensors")
    before = original()
    kept = {name.removeprefix("backbone."): value for name, value in exported.items()}
    assert all(torch.equal(value, before[name]) for name, value in kept.items() if name.startswith(BACKBONE))


@pytest.mark.parametrize(
    ("mode", "first"),
    [
        ("full", "features.conv0"),
        ("blocks:2-3", "features.transition1"),
        ("blocks:3", "features.transition2"),
    ],
)
def test_modes(tmp_path: Path, mode: str, first: str) -> None:
    finetune(tiny_finetuning(tmp_path, mode=mode, freeze_norm=False, patience=None), tmp_path / "run", "cpu")
    names = [name for name in original() if name.startswith(BACKBONE)]
    start = next(place for place, name in enumerate(names) if name.startswith(first))
    assert changed_tensors(tmp_path / "run") == set(names[start:])


def test_freeze_norm_keeps_statistics_alone(tmp_path: Path) -> None:
    finetune(tiny_finetuning(tmp_path, mode="full", freeze_norm=True), tmp_path / "run", "cpu")
    names = {name for name in original() if name.startswith(BACKBONE)}
    assert changed_tensors(tmp_path / "run") == {name for name in names if not is_statistic(name)}


def test_head_epochs_train_the_head_alone(tmp_path: Path) -> None:
    recipe = tiny_finetuning(tmp_path, head_start="random", head_epochs=1, freeze_norm=False, patience=None)
    finetune(recipe, tmp_path / "run", "cpu", steps=3)
    assert not changed_tensors(tmp_path / "run")
    first = newest_state(tmp_path / "run")["model"]["classifier.weight"]
    finetune(recipe, tmp_path / "run", "cpu", steps=1)
    assert changed_tensors(tmp_path / "run") == {name for name in original() if name.startswith(BACKBONE)}
    assert not torch.equal(first, newest_state(tmp_path / "run")["model"]["classifier.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(mixup=0.4, cutmix=1.0, ema=0.9), marks=pytest.mark.slow),
        pytest.param(
            dict(head="cross-layer", head_width=8, head_start="random", head_epochs=0.7, freeze_norm=False),
            marks=pytest.mark.slow,
        ),
        dict(sampling="balanced", accumulation=2, precision="bf16", mode="blocks:3"),
        pytest.param(dict(loader="device", augment="cutout", class_weights="balanced", workers=2), marks=pytest.mark.slow),
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.usefixtures("with_bf16")
def test_a_run_in_pieces_is_the_same_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = tiny_finetuning(tmp_path, patience=None, **changes)
    finetune(recipe, tmp_path / "straight", "cpu")
    for steps in (1, 3, 2):
        finetune(recipe, tmp_path / "pieces", "cpu", steps)
    assert_same_training(tmp_path / "straight", tmp_path / "pieces")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("straight", "pieces")]
    assert results[0] == results[1]


def test_the_head_starts_as_a_probe(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "classes", 10)
    for split in ("train", "val"):
        for label in range(3):
            (tmp_path / "split" / split / f"class {label}").mkdir(parents=True)
            for i, file in enumerate(sorted((data / f"class {label}").iterdir())):
                if (i < 3) == (split == "val"):
                    file.rename(tmp_path / "split" / split / f"class {label}" / file.name)
    recipe = tiny_finetuning(tmp_path, model=BUNDLED, train=str(tmp_path / "split"), mode="head", lr=1e-30, weight_decay=0)
    finetune(recipe, tmp_path / "run", "cpu", steps=1)
    extractor = densefeat.FeatureExtractor(BUNDLED, blocks=3, device="cpu", decoder="pillow")
    features, labels = {}, {}
    for split in ("train", "val"):
        files = sorted((tmp_path / "split" / split).rglob("*.png"))
        features[split] = extractor(files)["block3"].numpy()
        labels[split] = np.array([int(file.parent.name[-1]) for file in files])
    head = newest_state(tmp_path / "run")["model"]
    logits = features["val"] @ head["classifier.weight"].numpy().T + head["classifier.bias"].numpy()
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert (first["event"], first["step"]) == ("val", 0)
    assert first["top1"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels["val"]))
    best_of_any = min(
        np.abs(LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(features["train"], labels["train"]).coef_
               - head["classifier.weight"].numpy()).max()
        for c in 10 ** np.linspace(-6, 5, 45)
    )  # fmt: skip
    assert best_of_any < 1e-2  # it is scikit-learn's, for one of the protocol's C


def test_patience_ends_a_run_and_keeps_the_best(tmp_path: Path) -> None:
    recipe = tiny_finetuning(tmp_path, epochs=20, patience=2, lr=1e-12)
    result = finetune(recipe, tmp_path / "run", "cpu")
    assert (result.step, result.steps) == (6, 60)
    values = [line for line in untimed(tmp_path / "run") if line["event"] == "val"]
    assert [line["step"] for line in values] == [0, 3, 6]
    assert result.scores is not None
    assert result.scores["val"]["top1"] == values[0]["top1"]
    assert result.chosen == 0
    assert "the weights before the first step: no later ones were better" in format_result(result)[0]
    again = finetune(recipe, tmp_path / "run", "cpu")
    assert again == result
    assert [line for line in untimed(tmp_path / "run") if line["event"] == "val"] == values


def test_a_run_that_may_retreat_starts_once(tmp_path: Path) -> None:
    recipe = tiny_finetuning(tmp_path, retreats=1, patience=1, lr=1e-12, epochs=9)
    straight = finetune(recipe, tmp_path / "straight", "cpu")
    assert (straight.step, newest_state(tmp_path / "straight")["step"]) == (3, 3)
    finetune(recipe, tmp_path / "pieces", "cpu", steps=1)
    for file in (tmp_path / "pieces/checkpoints").glob("step-00000001-*"):
        file.unlink()  # as if it had stopped right after the first one
    finetune(recipe, tmp_path / "pieces", "cpu")
    assert_same_training(tmp_path / "straight", tmp_path / "pieces")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "pieces")]
    assert files[0] == files[1]


def test_too_few_images_for_a_probe(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "few", 2, classes=2)
    result = finetune(tiny_finetuning(tmp_path, train=str(data), epochs=1), tmp_path / "run", "cpu")
    assert result.scores is not None
    assert np.isfinite(result.scores["val"]["loss"])


def test_a_class_without_training_images(tmp_path: Path) -> None:
    """A class of the data set, or of the validation images alone, is unlikely, not impossible."""
    table = write_table(tmp_path / "train.parquet", 40, classes=3)
    rows = pq.read_table(table)
    pq.write_table(rows.filter(pc.not_equal(rows["label"], 2)), table)
    write_table(tmp_path / "val.parquet", 12, classes=3, seed=1)
    recipe = tiny_finetuning(tmp_path, train=str(table), val=str(tmp_path / "val.parquet"), mode="head", epochs=1)
    result = finetune(recipe, tmp_path / "run", "cpu")
    assert result.scores is not None
    assert np.abs(newest_state(tmp_path / "run")["model"]["classifier.bias"].numpy()).max() < 20
    losses = [line["loss"] for line in untimed(tmp_path / "run") if line["event"] == "train"]
    assert max(losses) < 5


def test_few_images_make_a_smaller_batch(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "few", 4, classes=2)
    recipe = tiny_finetuning(tmp_path, train=str(data), batch_size=32, mixup=0.2, val_share=0.3, warmup_epochs=0)
    result = finetune(recipe, tmp_path / "run", "cpu")
    assert result.steps == 2
    assert result.scores is not None
    assert finetune(recipe, tmp_path / "run", "cpu") == result


@pytest.mark.parametrize("head", ["linear", "cross-layer"])
def test_programs_that_read_a_run(tmp_path: Path, head: str) -> None:
    start = "probe" if head == "linear" else "random"
    data = write_classes(tmp_path / "classes", 10)
    val = write_classes(tmp_path / "val", 4, seed=5)
    recipe = tiny_finetuning(tmp_path, head=head, head_start=start, head_width=8, val=str(val), train=str(data))
    result = finetune(recipe, tmp_path / "run", "cpu")
    run = str(tmp_path / "run")
    assert result.scores is not None
    model = densefeat.load_run(run)
    assert not model.training
    assert model.pretrained_cfg["label_names"] == ["class 0", "class 1", "class 2"]
    found = evaluate(run, str(val)).to_json()
    assert found["top1"] == pytest.approx(result.scores["val"]["top1"])
    assert found["loss"] == pytest.approx(result.scores["val"]["loss"], abs=2e-4)
    if head == "linear":
        theirs = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(theirs(x), model(x))
        assert theirs.pretrained_cfg["label_names"] == ["class 0", "class 1", "class 2"]
    extractor = densefeat.FeatureExtractor(run, device="cpu")
    files = sorted(val.rglob("*.png"))[:3]
    backbone = model if head == "linear" else model.backbone
    (last,) = (extractor(files)[name] for name in ("block3",))
    with torch.no_grad():
        wanted = backbone.forward_features(extractor.prepare(files)).mean((2, 3))
    assert torch.allclose(last, wanted, atol=1e-5)
    assert extractor.weights_sha256 == densefeat.nets.weights.file_sha256(tmp_path / "run/model.safetensors")
    next_recipe = tiny_finetuning(
        tmp_path, model=run, head_start="probe", train=str(data), epochs=1, warmup_epochs=0, mode="head"
    )
    assert finetune(next_recipe, tmp_path / "next", "cpu").scores is not None


def test_several_labels(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "classes", 10, classes=3)
    lines = ["path,label"]
    for file in sorted(data.rglob("*.png")):
        label = int(file.parent.name[-1])
        tags = [name for name, there in (("even", label % 2 == 0), ("low", label < 2)) if there]
        lines.append(f"{file.relative_to(tmp_path)},{'|'.join(tags) or '|'}")
    lines[3] = lines[3].partition(",")[0] + ","  # has no label at all
    (tmp_path / "tags.csv").write_text("\n".join(lines))
    recipe = tiny_finetuning(
        tmp_path, train=str(tmp_path / "tags.csv"), label_column="label", class_weights="balanced", mixup=0.2, epochs=3
    )
    result = finetune(recipe, tmp_path / "run", "cpu")
    assert result.scores is not None
    assert result.scores["val"]["map"] == 100.0  # of colours
    assert result.scores["val"]["images"] == 6
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["label_names"], config["densefeat"]["task"]) == (["even", "low"], "multi")
    found = evaluate(str(tmp_path / "run"), str(tmp_path / "tags.csv")).to_json()
    assert (found["images"], found["unlabelled"]) == (29, 1)
    assert found["map"] == pytest.approx(100.0, abs=2)
    assert [row["class"] for row in found["per_class"]] == ["even", "low"]
    with pytest.raises(UsageError, match="crops 10: .* gives several labels an image: choose 1"):
        evaluate(str(tmp_path / "run"), str(tmp_path / "tags.csv"), crops=10)


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names("densefeat finetune"))
def test_every_recipe(tmp_path: Path, name: str) -> None:
    data = write_classes(tmp_path / "classes", 10)
    files = sorted(data.rglob("*.png"))
    lines = [f"{file.relative_to(tmp_path)},{file.parent.name}|{i % 2}" for i, file in enumerate(files)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines))
    place = tmp_path / ("labels.csv" if "csv" in name else "classes")
    values = [
        f"model={TINY}",
        f"weights={write_tiny_weights(tmp_path)}",
        f"train={json.dumps(str(place))}",
        "batch_size=8",
        "workers=1",
    ]
    recipe = load_finetuning(name, values)
    assert finetune(recipe, tmp_path / "run", "cpu", steps=2).step == 2
    result = finetune(replace(recipe, epochs=0.9), tmp_path / "whole", "cpu")
    assert result.scores is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(mode="blocks:4"), "mode 'blocks:4': the network has blocks 1 to 3"),
        (dict(model="nowhere"), "unknown model 'nowhere'"),
        (dict(train="nowhere/"), "no such folder or file"),
        (dict(optimizer="nothing"), "optimizer 'nothing'"),
        (dict(image_size=8), "image size 8"),
        (dict(mixup=0.2, batch_size=12, accumulation=4), "batch_size 12: images are mixed in pairs"),
    ],
)
def test_wrong_recipes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        finetune(tiny_finetuning(tmp_path, **changes), tmp_path / "run", "cpu")
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "one", 4, classes=1)
    with pytest.raises(UsageError, match="all images are 'class 0': training needs two classes or more"):
        finetune(tiny_finetuning(tmp_path, train=str(data)), tmp_path / "run", "cpu")


def test_damaged_images_are_left_out(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "classes", 10)
    for label in range(3):
        (data / f"class {label}" / "000.png").write_bytes(b"nothing")
    result = finetune(tiny_finetuning(tmp_path, train=str(data), mixup=0.2), tmp_path / "run", "cpu")
    assert result.scores is not None
    last = [line for line in untimed(tmp_path / "run") if line["event"] == "train"][-1]
    assert last["unread"] >= 1
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["unread"] == 3
    assert [entry["key"] for entry in results["first_unread"]] == [f"class {label}/000.png" for label in range(3)]
    assert np.isfinite(last["loss"])
