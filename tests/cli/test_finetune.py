"""``densefeat finetune`` and ``densefeat predict`` as a newcomer runs them."""

import json
import re
from pathlib import Path

import pytest

from support.commands import run_command
from support.helpers import BUNDLED
from support.runs import write_classes

QUICK = ["workers=0", "batch_size=8"]


def call(*arguments: object) -> str:
    return run_command(*arguments, check=True).stdout


def test_from_a_folder_to_predictions(tmp_path: Path) -> None:
    data, run = write_classes(tmp_path / "photos", 10, classes=2), tmp_path / "run"
    common = ["finetune", "--data", data, "--model", BUNDLED, "--out", run, "--device", "cpu", "--epochs", "2", *QUICK]
    assert "stopped at step 1 of 4; the same command " in call(*common, "--steps", 1)
    output = call(*common)
    assert f"{run}: 4 steps; weights in {run / 'model.safetensors'}" in output
    assert "val: 4 images, top-1 100.00 %" in output
    output = call("predict", "--model", run, "--images", data, "--out", tmp_path / "new", "--device", "cpu")
    assert output.splitlines()[1].split() == ["class", "0", "10"]
    assert f"wrote {tmp_path / 'new/predictions.csv'}: 20 rows; all scores in {tmp_path / 'new/scores'}" in output
    assert "100.00" in call("evaluate", run, "--data", data, "--device", "cpu")
    assert "20 rows" in call("extract", "--images", data, "--model", run, "--out", tmp_path / "store", "--device", "cpu")


@pytest.mark.parametrize("head", ["mlp", "cross-layer"])
def test_another_head_first_learns_by_itself(tmp_path: Path, head: str) -> None:
    data = write_classes(tmp_path / "photos", 5, classes=2)
    call("finetune", "--data", data, "--model", BUNDLED, "--out", tmp_path / "run", "--head", head, "--epochs", 1,
         "--device", "cpu", *QUICK, "warmup_epochs=0", "head_width=8")  # fmt: skip
    starts = [line for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines() if '"step": 0,' in line]
    assert not starts  # no probe
    assert json.loads((tmp_path / "run/config.json").read_text())["densefeat"]["head"] == head


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "tail"], "mode 'tail': give head, full, or blocks:3-4"),
        (["--mode", "blocks:3-2"], "mode 'blocks:3-2': give the lower block first"),
        (["--recipe", "cifar10_fast"], "recipe cifar10_fast is for densefeat train, not for densefeat finetune"),
        (["lr"], "'lr': overrides are written key=value"),
        (["leaning_rate=1"], "unknown key 'leaning_rate'"),
        (["proj_drop_rate=0"], "unknown key 'proj_drop_rate'"),
        (["head=mlp", "head_start=probe"], "head_start 'probe': a probe is a linear head, not mlp"),
        (["class_weights=balanced", "sampling=balanced"], "sampling is balanced, too"),
        (["mixup=0.2", "batch_size=9"], "batch_size 9: images are mixed in pairs"),
        (["val_share=1"], "val_share 1.0: give a share"),
        (["keep=last"], "patience 6: it ends a run some steps after its best weights, which keep: last loses"),
        (["head_epochs=20"], "head_epochs 20.0: epochs are 15"),
        (["--model", "densefeat_densnet121"], "unknown model 'densefeat_densnet121': did you mean"),
    ],
)
def test_wrong_use(tmp_path: Path, arguments: list[str], message: str) -> None:
    data = write_classes(tmp_path / "photos", 2, classes=2)
    command = ["finetune", "--data", str(data), "--out", str(tmp_path / "run"), "--model", BUNDLED, *arguments]
    finished = run_command(*command)
    assert finished.exit_code == 2
    assert message in finished.stderr


def test_names_that_yaml_would_read_otherwise(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "emo😀: [x]", 3, classes=2)
    output = call("finetune", "--data", data, "--model", BUNDLED, "--out", tmp_path / "run", "--recipe", "finetune_few_shot",
                "--head", "mlp", "--epochs", 1, "--device", "cpu", *QUICK)  # fmt: skip
    assert "val: 2 images" in output


def test_a_run_is_no_image(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "photos", 3, classes=2)
    command = ["finetune", "--data", str(data), "--model", BUNDLED, "--out", str(data / "run")]
    finished = run_command(*command)
    assert finished.exit_code == 2
    assert re.search("is in the folder of images .*: name another --out", finished.stderr)


def test_train_refuses_a_recipe_for_fine_tuning() -> None:
    finished = run_command("train", "finetune_folder")
    assert finished.exit_code == 2
    assert "recipe finetune_folder is for densefeat finetune, not for densefeat train" in finished.stderr
