"""Fits against scikit-learn on features taken by plain hooks, and the choice of priors and candidates."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from densefeat.labels import TEST, TRAIN, VAL
from densefeat.segmentation import Segmented, load_segmenter
from densefeat.segmentation.fitting import _compare_shares
from densefeat.segmentation.grid_net import choose_classes
from support.segments import probe_textures, write_textures
from support.tiny_net import TINY, tiny_state

SIDE, STRIDE = 48, 4


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Segmented:
    folder = tmp_path_factory.mktemp("fits")
    write_textures(folder, 8)
    return probe_textures(folder, folder / "out", protocol="logreg")


def hook_features(image: Path) -> np.ndarray:
    """Take the three blocks' maps of an image by hooks of torch: ``(positions, D)`` of the grid, float32."""
    network = timm.create_model(TINY).eval()
    network.load_state_dict(tiny_state())
    pixels = Image.open(image).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(pixels).transpose(2, 0, 1).copy())[None].float() / 255
    config = network.pretrained_cfg
    x = (x - torch.tensor(config["mean"]).view(1, 3, 1, 1)) / torch.tensor(config["std"]).view(1, 3, 1, 1)
    maps: list[torch.Tensor] = []
    for name in ("features.transition1.act", "features.transition2.act", "features.act5"):
        network.get_submodule(name).register_forward_hook(lambda *arguments: maps.append(arguments[2]))
    with torch.no_grad():
        network(x)
    grids = [functional.interpolate(each, (SIDE // STRIDE,) * 2, mode="bilinear", antialias=True) for each in maps]
    return torch.cat(grids, 1)[0].flatten(1).T.numpy()


def test_the_linear_map_is_scikit_learns(probed: Segmented) -> None:
    """The same positions, the same C: the decisions agree, and so do the masks."""
    folder = probed.path.parent
    segmenter = load_segmenter(probed.path)
    assert [grid.column for grid in segmenter.grids] == list(segmenter.told["columns"])
    assert probed.results["positions"]["grid"] == [12, 12]
    features = {i: hook_features(folder / f"images/{i}.png") for i in range(8)}
    network = segmenter.network(folder / "tiny.safetensors", "cpu")
    from densefeat.store import open_store

    store = open_store(probed.path / "features")
    widths = [store.shapes[f"block{number}"][0] for number in (1, 2, 3)]
    starts = np.cumsum([0, *widths])
    chosen = [starts[int(grid.column[-1]) - 1] + np.arange(grid.channels) for grid in segmenter.grids]
    columns = np.concatenate(chosen)
    for row, key in enumerate(store.keys):
        stored = store.read("block1", row, row + 1).reshape(widths[0], -1).T
        np.testing.assert_allclose(stored, features[int(Path(key).stem)][:, : widths[0]], atol=0.02)

    x, y = [], []
    parts = read_parts(probed)
    for i in (i for i, part in parts.items() if part == TRAIN):
        labels = label_by_blocks(folder / f"masks/{i}.png")
        known = labels >= 0
        x.append(features[i][known][:, columns])
        y.append(labels[known])
    c = probed.results["candidates"][[each["name"] for each in probed.results["candidates"]].index(probed.results["best"])]
    model = LogisticRegression(C=c["chosen"]["C"], tol=1e-8, max_iter=20_000)
    model.fit(np.concatenate(x).astype(np.float64), np.concatenate(y))
    for i in (i for i, part in parts.items() if part == TEST):
        image = Image.open(folder / f"images/{i}.png")
        ours = network(network.extractor.prepare([folder / f"images/{i}.png"]))[0].numpy()
        margin = (ours[1] - ours[0]).ravel() - (segmenter.log_prior[1] - segmenter.log_prior[0])
        theirs = model.decision_function(features[i][:, columns].astype(np.float64))
        agree = np.sign(margin) == np.sign(theirs)
        assert agree.mean() > 0.98
        assert choose_classes(ours, image.height, image.width).shape == (image.height, image.width)
        image.close()


def read_parts(probed: Segmented) -> dict[int, int]:
    """Find the part of each image again, by its own draw."""
    from densefeat.segmentation.data import Annotation, assign_parts

    folder = probed.path.parent
    annotations = []
    for i in range(8):
        labels = label_by_blocks(folder / f"masks/{i}.png")
        codes = np.where(labels < 0, 255, labels).astype(np.uint8)
        annotations.append(Annotation(f"{i}.png", folder / f"masks/{i}.png", (1, 1), codes, 0, i))
    assigned, _ = assign_parts(annotations, 2, 0)
    return {each.row: each.part for each in assigned}


def label_by_blocks(mask: Path) -> np.ndarray:
    """Give each position the class of most of its pixels, by copying pixels until a position has whole ones; -1: ignored."""
    codes = np.asarray(Image.open(mask)).astype(int)
    n = SIDE // STRIDE
    copied = np.repeat(np.repeat(codes, n, 0), n, 1)
    parts = copied.reshape(n, codes.shape[0], n, codes.shape[1]).transpose(0, 2, 1, 3).reshape(n * n, -1)
    counts = np.stack([(parts == value).sum(1) for value in (0, 1, 255)], 1)
    return np.where(counts[:, 2] > parts.shape[1] / 2, -1, counts[:, :2].argmax(1))


def test_shares_of_classes() -> None:
    ratio = np.exp(_compare_shares(np.array([900, 100, 0, 50]), np.array([0] * 50 + [1] * 50)))
    np.testing.assert_allclose(ratio, [900 / 1050 / 0.5, 100 / 1050 / 0.5, 1, 1], rtol=1e-6)


def test_settings_are_chosen_on_validation_images(probed: Segmented) -> None:
    names = [candidate["name"] for candidate in probed.results["candidates"]]
    assert names[:3] == ["block1", "block2", "block3"]
    assert (names[-1], len(names)) == ("all", 5)
    by_val = max(probed.results["candidates"], key=lambda each: (each["val"]["mean_iou"], -each["features"]))
    assert probed.results["best"] == by_val["name"]
    for candidate in probed.results["candidates"]:
        priors = {each["prior"]: each["mean_iou"] for each in candidate["tried"] if "prior" in each}
        assert priors[candidate["chosen"]["prior"]] == max(priors.values()) == candidate["val"]["mean_iou"]
    assert by_val["test"]["mean_iou"] > 0.8
    assert (probed.results["images"], VAL) == ({"train": 4, "val": 2, "test": 2}, 1)
