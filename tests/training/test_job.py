"""A run: the folder it writes, resuming exactly, divergence."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from densefeat import DensefeatError, UsageError
from densefeat.training.checkpoints import _list_checkpoints
from densefeat.training.job import Trained, format_result, run_training, train
from densefeat.training.setup import TrainingSetup
from densefeat.training.watch import DivergedError
from densefeat.training.world import World
from support.processors import AVX2, AVX512_BF16
from support.runs import assert_same_training, newest_state, tiny_recipe, untimed, write_table


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    result = train(tiny_recipe(tmp_path, keep="last"), tmp_path / "run", "cpu")
    assert (result.step, result.steps) == (8, 8)
    assert result.scores is not None
    assert set(result.scores) == {"val"}
    events = untimed(tmp_path / "run")
    assert [(line["event"], line["step"]) for line in events] == [
        ("train", 3), ("val", 4), ("train", 6), ("val", 8),
    ]  # fmt: skip
    assert events[-1]["images"] == 21  # no image counted twice, none left out
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert model.num_classes == 10
    saved = load_file(tmp_path / "run/model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["label_names"] == [f"class {i}" for i in range(10)]
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]
    assert config["pretrained_cfg"]["mean"] == [0.4914, 0.4822, 0.4465]
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    again = train(tiny_recipe(tmp_path, keep="last"), tmp_path / "run", "cpu")
    assert again == Trained(result.path, 0, 8, 8, result.scores)
    assert untimed(tmp_path / "run") == events


@pytest.mark.parametrize(
    "changes",
    [
        dict(ema=0.9, label_smoothing=0.1, accumulation=2),
        dict(augment="cutout", precision="bf16", optimizer="adamw", clip_grad=1.0, keep="best", holdout=10),
        dict(loader="workers", augment="randaugment", workers=2),
        dict(image_size="{0: 8, 0.3: 12, 0.7: 16}", ema=0.9),
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.usefixtures("with_bf16")
def test_a_run_in_pieces_is_the_same_run(tmp_path: Path, changes: dict) -> None:
    recipe = tiny_recipe(tmp_path, **changes)
    train(recipe, tmp_path / "straight", "cpu")
    for steps in (1, 3, 1, 2):
        train(recipe, tmp_path / "pieces", "cpu", steps)
        torch.manual_seed(99)  # the next call must not use this process's generator
    train(recipe, tmp_path / "pieces", "cpu")
    assert_same_training(tmp_path / "straight", tmp_path / "pieces")
    weights = [load_file(tmp_path / run / "model.safetensors") for run in ("straight", "pieces")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_statistics_are_those_of_whole_images(tmp_path: Path) -> None:
    """Of the first norm: the mean and deviation, over all training images, of what the first convolution computes."""
    sizes = "{0: 8, 0.5: 16}"
    recipe = tiny_recipe(tmp_path, image_size=sizes, train=write_table(tmp_path / "64.parquet", 64, seed=1), ema=0.9)
    train(recipe, tmp_path / "run", "cpu")
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    data = TrainingSetup(recipe).open_data(World(0, 1, torch.device("cpu")), lambda _: None)
    x = torch.cat([x for x, _ in data.images.eval_batches(data.sampler.positions)])
    computed = model.get_submodule(model.pretrained_cfg["first_conv"])(x)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert torch.allclose(norm.running_mean, computed.mean((0, 2, 3)), atol=1e-5)
    assert x.shape[2:] == (16, 16)


def test_a_run_ends_its_call_after_some_minutes(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    result = train(recipe, tmp_path / "pieces", "cpu", minutes=1e-9)
    assert (result.step, result.scores) == (1, None)
    assert format_result(result) == [f"{tmp_path / 'pieces'}: stopped at step 1 of 8; the same command resumes the run"]
    train(recipe, tmp_path / "pieces", "cpu", minutes=60)
    train(recipe, tmp_path / "straight", "cpu")
    assert_same_training(tmp_path / "straight", tmp_path / "pieces")


def test_threads_are_those_of_the_recipe_for_the_time_of_the_run(tmp_path: Path) -> None:
    used = []

    class Watched(TrainingSetup):
        def make_model(self, num_classes: int) -> torch.nn.Module:
            used.append(torch.get_num_threads())
            return super().make_model(num_classes)

    before = torch.get_num_threads()
    for threads in (before + 1, None):
        run_training(Watched(tiny_recipe(tmp_path, threads=threads or "null")), tmp_path / "run", "cpu", 1)
    assert used == [before + 1, before]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_processor_would_emulate(
    precision: str, tmp_path: Path, pretend_flags: Callable[[str], None], capsys: pytest.CaptureFixture
) -> None:
    pretend_flags(AVX2)
    train(tiny_recipe(tmp_path), tmp_path / "full", "cpu")
    capsys.readouterr()
    train(tiny_recipe(tmp_path, precision=precision), tmp_path / "run", "cpu")
    said = f"precision: float32 (this processor has no arithmetic in {precision}, "
    assert capsys.readouterr().err.replace("\n", "").count(said) == 1
    assert_same_training(tmp_path / "full", tmp_path / "run")
    assert json.loads((tmp_path / "run/results.json").read_text())["precisions"] == ["float32"]
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["precision"] == precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_goes_on_with_a_processor_of_another_kind(
    precision: str, tmp_path: Path, pretend_flags: Callable[[str], None], capsys: pytest.CaptureFixture
) -> None:
    recipe, run = tiny_recipe(tmp_path, precision=precision, log_steps=1), tmp_path / "run"
    for flags, steps in ((AVX512_BF16, 2), (AVX2, 2), (AVX2, 1), (AVX512_BF16, 3)):
        pretend_flags(flags)
        train(recipe, run, "cpu", steps)
    output = capsys.readouterr().err.replace("\n", "")
    assert f"resuming from step 2, in float32 (earlier steps: {precision})" in output
    assert f"resuming from step 5, in {precision} (earlier steps: {precision}, float32)" in output
    used = [line["precision"] for line in untimed(run) if line["event"] == "train"]
    assert used == [precision] * 2 + ["float32"] * 3 + [precision] * 3
    assert json.loads((run / "results.json").read_text())["precisions"] == [precision, "float32", precision]


def test_holdout_is_validated_on_and_the_rest_tested(tmp_path: Path) -> None:
    result = train(tiny_recipe(tmp_path, holdout=20, epochs=2, keep="best"), tmp_path / "run", "cpu")
    assert result.steps == 10  # 46 images are five batches of 8
    assert result.scores is not None
    assert (result.scores["val"]["images"], result.scores["test"]["images"]) == (20, 21)
    best = max(line["top1"] for line in untimed(tmp_path / "run") if line["event"] == "val")
    assert result.scores["val"]["top1"] == best


def test_it_learns(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, epochs=6, augment="shift-mirror", eval_epochs=6, lr=0.1)
    result = train(recipe, tmp_path / "run", "cpu")
    assert result.scores is not None
    assert result.scores["val"]["top1"] > 50  # of ten colours


def test_accumulated_micro_batches_equal_the_batch(tmp_path: Path) -> None:
    for count in (1, 4):
        recipe = tiny_recipe(tmp_path, accumulation=count, precision="float64", lr=1e-9, freeze_norm=True, augment="none",
                             proj_drop_rate=0.0)  # fmt: skip
        train(recipe, tmp_path / f"run{count}", "cpu", 3)
    one, four = (newest_state(tmp_path / f"run{count}")["model"] for count in (1, 4))
    assert max((one[name] - four[name]).abs().max() for name in one) < 1e-10


def test_frozen_norms_do_not_move(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, freeze_norm=True, lr=1e-9), tmp_path / "run", "cpu", 2)
    state = newest_state(tmp_path / "run")["model"]
    assert all((value == 0).all() for name, value in state.items() if name.endswith("running_mean"))
    assert not any(value for name, value in state.items() if name.endswith("num_batches_tracked"))


def test_the_papers_step_schedule(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, schedule="step", milestones=[0.5, 0.75], warmup_epochs=0, log_steps=1, lr=0.1)
    train(recipe, tmp_path / "run", "cpu")
    rates = [line["lr"] for line in untimed(tmp_path / "run") if line["event"] == "train"]
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


def test_cosine_after_warmup(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, warmup_epochs=0.25, log_steps=1, lr=0.1)
    train(recipe, tmp_path / "run", "cpu")
    rates = [line["lr"] for line in untimed(tmp_path / "run") if line["event"] == "train"]
    after = [0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates == pytest.approx([0, 0.05, *after])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = tiny_recipe(tmp_path, checkpoint_steps=2)
    train(recipe, tmp_path / "straight", "cpu")
    train(recipe, tmp_path / "run", "cpu", 6)
    newest, _ = _list_checkpoints(tmp_path / "run/checkpoints")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    train(recipe, tmp_path / "run", "cpu")
    output = capsys.readouterr().err
    assert f"{newest.name} is damaged" in output.replace("\n", "")
    assert "resuming from step 4" in output
    assert_same_training(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize("keep", ["best", "last"])
def test_damaged_weights_and_results_of_a_complete_run_are_made_again(
    keep: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe, run = tiny_recipe(tmp_path, keep=keep, checkpoint_steps=8, eval_epochs=1), tmp_path / "run"
    scores = train(recipe, run, device="cpu").scores
    weights, results = ((run / name).read_bytes() for name in ("model.safetensors", "results.json"))
    (run / "results.json").write_bytes(results.replace(b'"images": 21', b'"images": 61'))
    assert train(recipe, run, device="cpu").scores == scores
    assert (run / "results.json").read_bytes() == results
    damaged = weights[:-2] + bytes([weights[-2] ^ 4]) + weights[-1:]
    (run / "model.safetensors").write_bytes(damaged)
    assert train(recipe, run, device="cpu").scores == scores
    assert (run / "model.safetensors").read_bytes() == weights  # the only evaluation was of the last step
    assert (run / "model.safetensors.damaged").read_bytes() == damaged
    assert "is damaged and was renamed to .damaged: the next evaluation writes it anew" in capsys.readouterr().err
    (run / "model.safetensors").unlink()
    train(recipe, run, device="cpu")
    assert (run / "model.safetensors").read_bytes() == weights


def test_divergence_stops_with_a_report(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"diverged at step \d+: loss .*; gradient norms: features\.conv0 .*classifier"):
        train(tiny_recipe(tmp_path, lr=1e20, warmup_epochs=0), tmp_path / "run", "cpu")
    report = json.loads((tmp_path / "run/divergence.json").read_text())
    assert len(report["keys"]) == 8
    assert all(key.startswith("train.parquet#") for key in report["keys"])
    assert {"features.denseblock1", "features.norm5", "classifier"} < set(report["gradient_norms"])


def test_retreat_goes_back_at_half_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = tiny_recipe(tmp_path, lr=1e12, warmup_epochs=0, retreats=1, checkpoint_steps=1)
    with pytest.raises(DivergedError):
        train(recipe, tmp_path / "run", "cpu")
    output = capsys.readouterr().err
    assert output.count("back to step") == 1
    assert "at 0.5 of the learning rate" in output
    recipe = tiny_recipe(tmp_path, lr=1e12, warmup_epochs=0, retreats=60, checkpoint_steps=1)
    assert train(recipe, tmp_path / "healed", "cpu").step == 8
    rates = [line["lr"] for line in untimed(tmp_path / "healed") if line["event"] == "train"]
    assert rates[0] < 5e11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="densefeat_densenet40"), "unknown model 'densefeat_densenet40'.*did you mean"),
        (dict(model="densefeat_delugenet146"), "does not accept an option of the recipe"),
        (dict(optimizer="sgdd"), "optimizer 'sgdd': timm has sgd, "),
        (dict(batch_size=100), "66 training images are less than one batch of 100"),
        (dict(accumulation=3), "batch_size 8 does not divide evenly between 1 processes with accumulation 3"),
        (dict(data="cifar100"), "data 'cifar100' has 100 classes, .* has 10"),
        (dict(train="nowhere/"), "no such folder or file"),
        (dict(holdout=66), "holdout 66: there are 66 training images"),
        (dict(sync_bn=True), "sync_bn: the device is cpu"),
        (dict(cuda_graph=True), "cuda_graph: the device is cpu"),
        (dict(cuda_graph=True, accumulation=2), "only with accumulation: 1"),
        (dict(loader="workers", augment="shift-mirror"), "loader: workers has none, crop-mirror, inception, randaugment"),
        (dict(momentum=0), "momentum 0.0: Nesterov's needs one above 0"),
        (dict(milestones=[0.7, 0.3]), "milestones .*: give them in order"),
        (dict(seed=-1), "seed -1: give 0 or more"),
    ],
)
def test_wrong_recipes(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(tiny_recipe(tmp_path, **changes), tmp_path / "run", "cpu")


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path), tmp_path / "run", "cpu", 1)
    with pytest.raises(UsageError, match=r"another recipe \(lr 0.05, now 0.1\): name another --out"):
        train(tiny_recipe(tmp_path, lr=0.1), tmp_path / "run", "cpu", 1)
    train(tiny_recipe(tmp_path, log_steps=1, checkpoint_minutes=1), tmp_path / "run", "cpu", 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("not a run")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        train(tiny_recipe(tmp_path), tmp_path / "mine", "cpu", 1)


def test_a_wrong_recipe_does_not_claim_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown model"):
        train(tiny_recipe(tmp_path, model="densefeat_densenet40"), tmp_path / "run", "cpu", 1)
    assert train(tiny_recipe(tmp_path), tmp_path / "run", "cpu", 1).step == 1


def test_other_images_are_refused(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path), tmp_path / "run", "cpu", 1)
    write_table(tmp_path / "train.parquet", 66, seed=7)
    with pytest.raises(UsageError, match="are not those that this run started with"):
        train(tiny_recipe(tmp_path), tmp_path / "run", "cpu", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("with_bf16")
def test_a_scaler_survives_retreats(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, lr=1e9, warmup_epochs=0, retreats=2, checkpoint_steps=1, precision="fp16")
    with pytest.raises(DivergedError, match="diverged at step"):
        train(recipe, tmp_path / "run", "cpu")


def test_images_that_workers_cannot_read_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = tiny_recipe(tmp_path, loader="workers", log_steps=2)
    table = pq.read_table(tmp_path / "train.parquet")
    rows = table.to_pylist()
    for row in rows[:5]:
        row["image"]["bytes"] = row["image"]["bytes"][:100]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "train.parquet", row_group_size=16)
    train(recipe, tmp_path / "run", "cpu")
    output = capsys.readouterr().err.replace("\n", "")
    assert "images could not be read and count nowhere, the first: train.parquet#" in output
    lines = [line for line in untimed(tmp_path / "run") if line["event"] == "train"]
    assert 3 <= lines[-1]["unread"] <= 5  # two images of the epoch fill no batch
    for row in rows:
        row["image"]["bytes"] = b"torn"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "train.parquet", row_group_size=16)
    with pytest.raises(DensefeatError, match="none of the images of the last 2 steps can be read, the first: train.parquet#"):
        train(recipe, tmp_path / "all", "cpu")


def test_huge_row_groups_are_refused(tmp_path: Path) -> None:
    row = pq.read_table(write_table(tmp_path / "small.parquet", 1))
    huge = pa.concat_tables([row] * 20_001).combine_chunks()
    pq.write_table(huge, tmp_path / "huge.parquet")
    recipe = tiny_recipe(tmp_path, loader="workers")
    with pytest.raises(UsageError, match="row groups of 20,001 images, .*: write it with row_group_size=1000"):
        train(replace(recipe, train=str(tmp_path / "huge.parquet")), tmp_path / "run", "cpu")
