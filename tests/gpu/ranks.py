"""One process of some that share a GPU, each with its part of the same batches. Run by tests as a script: FOLDER RANK SIZE.

Leaves the network after five steps in ``FOLDER/SIZE-RANK.safetensors``.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from densefeat.training.loop import _backward
from densefeat.training.losses import Loss
from densefeat.training.setup import TrainingSetup
from densefeat.training.state import build_state
from densefeat.training.world import World
from support.runs import tiny_recipe

STEPS, IMAGES = 5, 8


def main(folder: Path, rank: int, size: int) -> None:
    if size > 1:  # not as World does it: nccl takes one process a GPU
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size)
    recipe = tiny_recipe(folder, precision="float64", sync_bn=size > 1, proj_drop_rate=0.0, batch_size=IMAGES)
    state = build_state(TrainingSetup(recipe), 10, 16, STEPS, 10 * STEPS, World(rank, size, torch.device("cuda", 0)))
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(IMAGES, 3, 16, 16, dtype=torch.float64, generator=generator).chunk(size)[rank]
        y = torch.randint(10, (IMAGES,), generator=generator).chunk(size)[rank]
        state.set_lr()
        _backward(state, [(x.cuda(), y.cuda())], Loss("single", 10, 0.0))
        state.optimizer.step()
        state.step += 1
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in state.model.state_dict().items()},
        folder / f"{size}-{rank}.safetensors",
    )
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
