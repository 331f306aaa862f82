"""A probe of positions from beginning to end: splits, files, images and masks without a partner, resuming."""

import base64
import json
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densefeat.errors import UsageError, WeightsError
from densefeat.labels import TEST, TRAIN, VAL
from densefeat.segmentation import load_segmenter
from densefeat.segmentation.data import Annotation, assign_parts
from densefeat.store import open_store
from support.segments import probe_textures, write_textures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_textures(folder, 8)
    probe_textures(folder, folder / "out")
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def read_files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("results.json", "index.html", "segmenter.safetensors")}


def test_the_files_of_a_probe(folder: Path) -> None:
    results = json.loads((folder / "out/results.json").read_text())
    assert results["kind"] == "densefeat segment probe"
    assert (results["classes"], results["ignored"]) == ({"0": "0", "1": "1"}, 255)
    segmenter = load_segmenter(folder / "out")
    assert segmenter.told["val"]["mean_iou"] == max(each["val"]["mean_iou"] for each in results["candidates"])
    assert segmenter.provenance["model"] == "tiny_densenet"
    page = (folder / "out/index.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 2 * results["images"]["test"]
    assert open_store(folder / "out/features").schema.field("block1").type.value_type == "halffloat"


def test_the_same_call_does_nothing_and_another_is_refused(folder: Path) -> None:
    before = read_files(folder / "out")
    assert probe_textures(folder, folder / "out").done_before
    for options, name in (({"seed": 1}, "seed"), ({"protocol": "logreg"}, "protocol"), ({"ignore": None}, "classes")):
        with pytest.raises(UsageError, match=f"holds another segment probe .*{name}.* differ"):
            probe_textures(folder, folder / "out", **options)
    with pytest.raises(UsageError, match="shapes|settings|was made with"):
        probe_textures(folder, folder / "out", stride=8)
    assert read_files(folder / "out") == before


def test_what_is_missing_is_made_again_with_the_same_bytes(folder: Path) -> None:
    before = read_files(folder / "out")
    assert not probe_textures(folder, folder / "again").done_before
    assert read_files(folder / "again") == before
    damaged = bytearray(before["segmenter.safetensors"])
    damaged[-3] ^= 1
    (folder / "again/segmenter.safetensors").write_bytes(damaged)
    (folder / "again/index.html").unlink()
    assert not probe_textures(folder, folder / "again").done_before
    assert read_files(folder / "again") == before


def test_damaged_results_are_told(copy: Path) -> None:
    path = copy / "out/results.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7', 1))
    with pytest.raises(WeightsError, match="damaged"):
        probe_textures(copy, copy / "out")


def test_images_and_masks_without_a_partner(copy: Path) -> None:
    shutil.rmtree(copy / "out")
    (copy / "masks/7.png").rename(copy / "masks/no image.png")
    (copy / "images/6.png").write_bytes(b"no image")
    (copy / "masks/5.png").write_bytes((copy / "masks/5.png").read_bytes()[:60])
    probed = probe_textures(copy, copy / "out")
    told = " / ".join(probed.results["notes"])
    assert "1 of 8 images have no mask and are left out, '7.png' first" in told
    assert "1 masks have no image, 'no image.png' first" in told or "no image.png" in told
    assert "1 of 7 masks cannot be read and are left out" in told
    assert (probed.failures, sum(probed.results["images"].values())) == (1, 5)
    assert open_store(copy / "out/features").keys.tolist() == [f"{i}.png" for i in range(6)]

    (copy / "masks/no image.png").rename(copy / "masks/7.png")  # a mask more: its image is extracted, too
    for name in ("results.json", "segmenter.safetensors", "index.html"):
        (copy / "out" / name).unlink()
    assert sum(probe_textures(copy, copy / "out").results["images"].values()) == 6


def test_the_list_of_annotated_images(copy: Path) -> None:
    shutil.rmtree(copy / "out")
    for name in ("images", "masks"):
        (copy / name / "3.png").rename(copy / name / '3,\n"a" .png')
    (copy / "masks/7.png").unlink()
    own = copy / "out/.features.parquet"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"\.features\.parquet' exists and was not written by this command"):
        probe_textures(copy, copy / "out")
    assert own.read_bytes() == b"mine"
    own.unlink()
    results = probe_textures(copy, copy / "out").results
    assert '3,\n"a" .png' in [key for keys in results["parts"].values() for key in keys]
    assert sum(results["images"].values()) == 7
    assert probe_textures(copy, copy / "out").done_before


def draw_legend(page: Path) -> str:
    coded = re.search('src="data:image/svg\\+xml;base64,([^"]+)"', page.read_text())
    assert coded is not None
    return base64.b64decode(coded[1]).decode()


def test_the_page_draws_classes_in_the_colours_of_their_numbers(folder: Path, tmp_path: Path) -> None:
    write_textures(tmp_path, 5)
    for path in (tmp_path / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:16] = 255
        Image.fromarray(np.where(mask == 255, 255, 3 * mask + 1).astype(np.uint8)).save(path)  # 1 and 4
    probe_textures(tmp_path, tmp_path / "out")
    fills = [re.findall('fill="(none|#[0-9a-f]{6})"', draw_legend(each / "out/index.html")) for each in (folder, tmp_path)]
    assert fills == [["none", "#800000"], ["#800000", "#000080"]]
    card = re.search('src="data:image/jpeg;base64,([^"]+)"', (tmp_path / "out/index.html").read_text())
    assert card is not None
    drawn = np.asarray(Image.open(BytesIO(base64.b64decode(card[1]))), np.int16)
    assert (drawn[16:].max(2) - drawn[16:].min(2) > 40).mean() > 0.9  # images are grey: what has a hue is coloured
    assert (drawn[:14].max(2) - drawn[:14].min(2) < 10).all()  # ignored


def replace_mask(folder: Path, image: Image.Image) -> None:
    image.save(folder / "masks/3.png")


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (Image.new("L", (30, 30)), "masks/3.png' has 30×30 pixels, its image '3.png' has 40×72"),
        (Image.new("RGB", (40, 72)), "masks/3.png' is a picture in colours"),
        (Image.new("L", (40, 72), 9), "masks/3.png' has the number 9"),
    ],
)
def test_masks_that_do_not_fit(copy: Path, image: Image.Image, match: str) -> None:
    shutil.rmtree(copy / "out")
    replace_mask(copy, image)
    (copy / "names.txt").write_text("noise\nstripes\n")
    with pytest.raises(UsageError, match=match):
        probe_textures(copy, copy / "out", classes=copy / "names.txt")


def test_test_images_of_their_own(copy: Path, tmp_path: Path) -> None:
    images, masks = write_textures(tmp_path / "test", 3, ((50, 50),))
    shutil.rmtree(copy / "out")
    (copy / "names.json").write_text('{"0": "noise", "1": "stripes", "9": "never"}')
    options = {"test_images": images, "test_masks": masks, "classes": copy / "names.json"}
    results = probe_textures(copy, copy / "out", **options).results
    assert results["images"] == {"train": 6, "val": 2, "test": 3}
    assert any("'never'" in note for note in results["notes"])
    best = next(each for each in results["candidates"] if each["name"] == results["best"])
    assert best["test"]["iou"][2] is None
    assert best["test"]["mean_iou"] > 0.7
    assert {"k", "prior"} == best["chosen"].keys()
    with pytest.raises(UsageError, match="give both"):
        probe_textures(copy, copy / "out", test_images=images)


def test_few_images_and_a_class_that_only_a_validation_image_has(tmp_path: Path) -> None:
    write_textures(tmp_path, 5)
    for name in ("images", "masks"):
        for part, numbers in (("train", "012"), ("val", "3"), ("test", "4")):
            (tmp_path / name / part).mkdir()
            for number in numbers:
                (tmp_path / name / f"{number}.png").rename(tmp_path / name / part / f"{number}.png")
    mask = np.array(Image.open(tmp_path / "masks/val/3.png"))
    mask[-20:] = 2
    Image.fromarray(mask).save(tmp_path / "masks/val/3.png")
    (tmp_path / "names.txt").write_text("noise\nstripes\nband\n")
    results = probe_textures(tmp_path, tmp_path / "out", classes=tmp_path / "names.txt").results
    assert results["notes"][-2:] == [
        "only 1 validation and 1 test images: figures and choices are rough",
        "no position to learn from has the class 'band'",
    ]
    assert results["parts"] == {
        "train": ["train/0.png", "train/1.png", "train/2.png"], "val": ["val/3.png"], "test": ["test/4.png"]
    }  # fmt: skip
    assert all(each["intervals"]["mean_iou"] is None for each in results["candidates"])
    page = (tmp_path / "out/index.html").read_text()
    assert ("only 1 validation" in page, "intervals" in page) == (True, False)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"protocol": "ridge"}, "protocol 'ridge'"), ({"ignore": -1}, "number -1"), ({"stride": 0}, "stride 0"),
     ({"image_size": 8}, "image size 8")],
)  # fmt: skip
def test_wrong_arguments(folder: Path, tmp_path: Path, options: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        probe_textures(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def make_annotations(keys: list[str], present: list[list[int]]) -> list[Annotation]:
    return [
        Annotation(key, Path("m.png"), (1, 1), np.array([codes], np.uint8), 0, row)
        for row, (key, codes) in enumerate(zip(keys, present, strict=True))
    ]


def test_splits() -> None:
    keys, rare = [f"{i:02d}.png" for i in range(20)], [3, 11, 17]
    annotations = make_annotations(keys, [[0, 1] if row in rare else [0, 0] for row in range(20)])
    assigned, notes = assign_parts(annotations, 2, 0)
    parts = np.array([each.part for each in assigned])
    assert (int((parts == TEST).sum()), int((parts == VAL).sum()) in (4, 5), notes) == (4, True, [])
    assert sorted(parts[rare].tolist()) == [TRAIN, VAL, TEST]  # a rare class is on every side
    other, _ = assign_parts(annotations[::-1], 2, 0)
    assert [each.part for each in other] == parts.tolist()
    assert [each.part for each in assign_parts(annotations, 2, 1)[0]] != parts.tolist()


def test_folders_of_splits() -> None:
    keys = ["train/a.png", "train/b.png", "Val/a.png", "test/a.png"]
    assigned, notes = assign_parts(make_annotations(keys, [[0, 1]] * 4), 2, 0)
    assert ([each.part for each in assigned], notes) == ([TRAIN, TRAIN, VAL, TEST], ["the folders test, train, val are splits"])
    assigned, _ = assign_parts(make_annotations(["train/a.png", "train/b.png", "val/a.png"], [[0, 1]] * 3), 2, 0)
    assert [each.part for each in assigned][2] == TEST
    with pytest.raises(UsageError, match="2 annotated images cannot be split"):
        assign_parts(make_annotations(keys[:2], [[0, 1]] * 2), 2, 0)
