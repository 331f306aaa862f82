"""Training on a GPU: what the CPU does not have, and what its arithmetic might change."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from densefeat.training.job import train
from densefeat.training.loop import _backward
from densefeat.training.losses import Loss
from densefeat.training.recipe import Recipe
from densefeat.training.setup import TrainingSetup
from densefeat.training.state import State, build_state
from densefeat.training.world import World
from support.helpers import relative_difference
from support.runs import assert_same_training, find_tensors, newest_state, tiny_recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = "cuda:0"
# well conditioned: over deeper networks, smaller batches and larger rates, differences of rounding grow a hundredfold in a step
CALM = dict(model="densefeat_densenet40_k12", proj_drop_rate=0.0, lr=0.01, warmup_epochs=0, batch_size=32)
ROOT = Path(__file__).parents[2]
LOSS = Loss("single", 10, 0.0)


def built(recipe: Recipe) -> State:
    return build_state(TrainingSetup(recipe), 10, 16, 10, 100, World(0, 1, torch.device(DEVICE)))


def batch(seed: int, count: int = 32, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and labels for it, on the GPU."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, size, size, generator=generator)
    return x.to(DEVICE), torch.randint(10, (count,), generator=generator).to(DEVICE)


def take_steps(state: State, count: int) -> list[float]:
    """Losses of steps as ``fit`` takes them, each on a batch of its own."""
    losses = []
    for seed in range(count):
        state.set_lr()
        losses.append(_backward(state, [batch(seed)], LOSS))
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.step += 1
    return torch.stack(losses).tolist()


def moved(state: State, before: dict[str, torch.Tensor], statistics: bool) -> torch.Tensor:
    """How far a state is from ``before``, as one vector: its BatchNorms' statistics, or its weights."""
    after = state.model.state_dict()
    names = [name for name in after if ("running" in name) == statistics and not name.endswith("num_batches_tracked")]
    return torch.cat([(after[name] - before[name]).flatten() for name in names]).cpu()


def copied(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.model.state_dict().items()}


def test_sync_bn_is_batch_norm_over_the_whole_batch(tmp_path: Path) -> None:
    tiny_recipe(tmp_path)  # its data once, before two processes want to make it
    # on a machine without a network gloo finds no address by itself
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "GLOO_SOCKET_IFNAME": "lo"}
    script = Path(__file__).with_name("ranks.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, tmp_path, str(rank), str(size)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank, size in ((0, 1), (0, 2), (1, 2))
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], said
    alone, *both = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    for other in both:
        assert other.keys() == alone.keys()
        assert not [name for name in alone if not torch.allclose(other[name], alone[name], rtol=1e-8, atol=1e-8)]


@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize(("precision", "largest"), [("float32", 0.02), ("bf16", 0.15)])
def test_a_cuda_graph_takes_the_steps_of_eager(
    tmp_path: Path, precision: str, largest: float, memory_efficient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # the same convolutions in both
    changes = CALM | dict(precision=precision, memory_efficient=memory_efficient)
    eager, graph = (built(tiny_recipe(tmp_path, cuda_graph=cuda_graph, **changes)) for cuda_graph in (False, True))
    before = copied(eager)
    assert not [
        name for name, tensor in copied(graph).items() if not torch.equal(tensor, before[name])
    ]  # warm-up left no trace
    assert take_steps(graph, 5) == pytest.approx(take_steps(eager, 5), rel=1e-2)
    for statistics in (False, True):
        expected = moved(eager, before, statistics)
        assert expected.norm() > 0.02
        assert relative_difference(moved(graph, before, statistics), expected) < largest
    counts = [name for name in before if name.endswith("num_batches_tracked")]
    assert {int(graph.model.state_dict()[name]) for name in counts} == {5}
    graph.model.eval()  # evaluation is no part of the graph, and takes any number of images
    eager.model.eval()
    eager.model.load_state_dict(graph.model.state_dict())
    with torch.no_grad():
        x, _ = batch(9, count=3)
        assert relative_difference(graph.model(x).cpu(), eager.model(x).cpu()) < 1e-3


@pytest.mark.filterwarnings("default")  # the compiler's own are none of ours
@pytest.mark.parametrize("memory_efficient", [False, True])
def test_compiled_steps(tmp_path: Path, memory_efficient: bool) -> None:
    changes = CALM | dict(memory_efficient=memory_efficient)
    eager, compiled = (built(tiny_recipe(tmp_path, compile=compile, **changes)) for compile in (False, True))
    before = copied(eager)
    assert take_steps(compiled, 3) == pytest.approx(take_steps(eager, 3), rel=1e-2)
    for statistics in (False, True):
        assert relative_difference(moved(compiled, before, statistics), moved(eager, before, statistics)) < 0.05


def gradients(state: State) -> torch.Tensor:
    """Of all parameters as one vector, float64, on the CPU."""
    x, y = batch(0)
    with state.autocast():
        logits = state.model(state.to_layout(x if state.recipe.precision != "float64" else x.double()))
    (256 * F.cross_entropy(logits.double(), y)).backward()  # else fp16 loses the small ones
    found = [parameter.grad for parameter in state.model.parameters()]
    return torch.cat([gradient.flatten().double() for gradient in found if gradient is not None]).cpu()


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_memory_efficient_gradients_are_as_exact_as_plain_ones(tmp_path: Path, precision: str) -> None:
    def of(precision: str, memory_efficient: bool) -> torch.Tensor:
        return gradients(built(tiny_recipe(tmp_path, precision=precision, memory_efficient=memory_efficient, **CALM)))

    exact = of("float64", False)
    assert relative_difference(of("float64", True), exact) < 1e-10
    plain, efficient = (relative_difference(of(precision, way), exact) for way in (False, True))
    assert efficient < 2 * plain + 1e-3


def peak_bytes(state: State) -> int:
    """Beyond what there is before, of a step of 64 images of 32×32."""
    parts = [batch(0, count=64, size=32)]
    for _ in range(2):  # the first makes gradients, and finds cuDNN's workspaces
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _backward(state, parts, LOSS)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_memory_efficient_takes_less_memory(tmp_path: Path, precision: str) -> None:
    changes = CALM | dict(precision=precision, batch_size=64, image_size=32)
    plain, efficient = (peak_bytes(built(tiny_recipe(tmp_path, memory_efficient=way, **changes))) for way in (False, True))
    assert efficient < 0.7 * plain


@pytest.mark.parametrize(
    "changes",
    [dict(precision="fp16"), dict(precision="bf16", cuda_graph=True), dict(memory_efficient=True, channels_last=False)],
    ids=lambda changes: next(iter(changes.values())),
)
def test_it_learns(tmp_path: Path, changes: dict) -> None:
    result = train(tiny_recipe(tmp_path, epochs=6, augment="shift-mirror", lr=0.1, **changes), tmp_path / "run", DEVICE)
    assert result.scores is not None
    assert result.scores["val"]["top1"] > 50  # of ten colours
    saved = newest_state(tmp_path / "run")
    assert not [name for name, tensor in find_tensors(saved).items() if not tensor.isfinite().all()]
    if changes.get("precision") == "fp16":
        assert saved["scaler"]["scale"] >= 1
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "changes",
    [dict(ema=0.9, augment="cutout"), dict(cuda_graph=True, precision="bf16"), dict(precision="fp16", memory_efficient=True)],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_in_pieces_is_the_same_run(tmp_path: Path, changes: dict) -> None:
    recipe = tiny_recipe(tmp_path, deterministic=True, **changes)  # with dropout, but for cutout
    train(recipe, tmp_path / "straight", DEVICE)
    for steps in (1, 3, 2):
        train(recipe, tmp_path / "pieces", DEVICE, steps)
        torch.cuda.manual_seed(99)  # the next call must not go on from a generator of this process
    train(recipe, tmp_path / "pieces", DEVICE)
    assert_same_training(tmp_path / "straight", tmp_path / "pieces")
