"""The job: every readable image explained, in order, resumed, with the worst mistakes first, and nobody else's files touched."""

import csv
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import densefeat
from densefeat.errors import DensefeatError, UsageError
from densefeat.explaining import Explained, explain
from densefeat.labels import Task
from densefeat.probing import LinearHead, Probe, rate_mistakes
from densefeat.probing.probe_file import save_probe
from support.probes import single_targets
from support.runs import write_classes
from support.tiny_net import TINY, write_tiny_weights

CLASSES = ("class 0", "class 1", "class 2", "other")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images/`` of three classes and many sizes, one of them broken, and ``probe/``, ``multi/``, …"""
    folder = tmp_path_factory.mktemp("place")
    write_classes(folder / "images", 5, size=40)
    for i, size in enumerate([(20, 300), (500, 31), (33, 33)]):
        path = folder / f"images/class {i}/000.png"
        Image.open(path).resize(size).save(path)
    (folder / "images/class 1/002.png").write_bytes(b"no image")
    store = densefeat.extract(folder / "images", folder / "store", TINY, write_tiny_weights(folder), device="cpu", blocks="2,3")
    provenance = densefeat.open_store(store.path).provenance
    generator = np.random.default_rng(0)
    tasks: list[tuple[str, Task, int]] = [("probe", "single", 4), ("multi", "multi", 4), ("numbers", "regression", 1)]
    tasks.append(("quiet", "multi", 4))  # which finds no label in any image
    for name, task, outputs in tasks:
        weight, bias = generator.normal(size=(outputs, 48)), generator.normal(size=outputs)
        bias -= 100 * (name == "quiet")
        head = LinearHead(weight.astype(np.float32), bias.astype(np.float32), squeeze=task == "regression")
        (folder / name).mkdir()
        classes = () if task == "regression" else CLASSES
        save_probe(folder / name / "probe.safetensors", Probe(task, classes, ("block2", "block3"), provenance, head))
    return folder


@pytest.fixture(scope="module")
def explained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    out = tmp_path_factory.mktemp("out") / "explained"
    return run(place, out, classes=["class 0", "other", "class 0"], labels="folder")


def run(place: Path, out: Path, model: str = "probe", **options: Any) -> Explained:
    images = options.pop("images", place / "images")
    return explain(str(place / model), images, out, **{"device": "cpu"} | options)


def read_table(result: Explained) -> list[dict[str, str]]:
    with open(result.table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_broken_image_costs_one_row(place: Path, explained: Explained) -> None:
    assert (explained.rows, explained.failures, explained.not_drawn) == (14, 1, {})
    keys = densefeat.open_store(explained.store).keys.tolist()
    paths = sorted(path.relative_to(place / "images").as_posix() for path in (place / "images").rglob("*.png"))
    assert keys == [path for path in paths if path != "class 1/002.png"]
    assert [row["path"] for row in read_table(explained)] == keys
    pictures = sorted(path.relative_to(explained.pictures).as_posix() for path in explained.pictures.rglob("*.png"))
    assert pictures == keys


def test_the_table_says_what_adds_up(explained: Explained) -> None:
    for row in read_table(explained):
        score, *parts = (float(row[name]) for name in ("score", "bias", "evidence", "evidence_block2", "evidence_block3"))
        assert parts[0] + parts[1] == pytest.approx(score, abs=1e-4)
        assert parts[0] + parts[2] + parts[3] == pytest.approx(score, abs=1e-4)
        assert row["label"] == row["path"].partition("/")[0]
        assert 0 < float(row["probability"]) <= 1


def test_the_worst_mistakes_come_first_on_the_page(explained: Explained) -> None:
    store = densefeat.open_store(explained.store)
    codes = [CLASSES.index(label) for label in store.labels.tolist()]
    badness = rate_mistakes(single_targets(codes, 4), store["scores"])
    wrong = [key for rating, key in sorted(zip(-badness, store.keys, strict=True)) if rating < 0]
    assert explained.mistakes == len(wrong) > 3
    page = explained.page.read_text()
    shown = list(dict.fromkeys(re.findall(r"<bdi>(class \d/\d+\.png)</bdi>", page)))
    assert shown[: len(wrong)] == wrong
    assert sorted(shown) == sorted(store.keys)
    assert f"{len(wrong)} wrong of 14 with labels: the worst first" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:image)", page)


def test_without_labels_the_least_certain_come_first(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "out")
    rows = read_table(result)
    assert result.mistakes is None
    page = result.page.read_text()
    assert "14 of 14 images, the least certain predictions first." in page
    shown = re.findall(r"<bdi>(class \d/\d+\.png)</bdi>", page)
    assert shown == [row["path"] for row in sorted(rows, key=lambda row: float(row["probability"]))]


def test_labels_beside_the_images_are_read_unasked(place: Path, tmp_path: Path) -> None:
    labels = {"class 0/001.png": "class 0", "class 2/003.png": "class 2"}
    with_labels, without, tar = (place / name for name in ("labelled.csv", "bare.csv", "shard.tar"))
    with_labels.write_text("path,label\n" + "".join(f"images/{path},{label}\n" for path, label in labels.items()))
    without.write_text("path,sort\n" + "".join(f"images/{path},{label}\n" for path, label in labels.items()))
    with tarfile.open(tar, "w") as archive:
        for number, (path, label) in enumerate(labels.items()):
            (tmp_path / "member.cls").write_text(label)
            archive.add(place / "images" / path, f"{number}.png")
            archive.add(tmp_path / "member.cls", f"{number}.cls")
    found = {}
    for images in (with_labels, without, tar, place / "images"):
        result = run(place, tmp_path / images.name, images=images)
        found[images.name] = [row.get("label") for row in read_table(result)]
        assert (result.mistakes is None) == (images in (without, place / "images"))
    given = list(labels.values())
    assert found == {"labelled.csv": given, "bare.csv": [None, None], "shard.tar": given, "images": [None] * 14}
    asked = run(place, tmp_path / "asked", images=without, label_column="sort")
    assert [row["label"] for row in read_table(asked)] == given
    with pytest.raises(UsageError, match="no column 'nothing'"):
        run(place, tmp_path / "missing", images=with_labels, label_column="nothing")


def test_a_list_with_its_images_elsewhere(place: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\nclass 0/001.png\n")
    result = run(place, tmp_path / "out", images=tmp_path / "list.csv", base=place / "images")
    assert (result.rows, result.not_drawn) == (1, {})
    assert (result.pictures / "class 0/001.png").exists()


def test_several_labels_and_numbers(place: Path, tmp_path: Path) -> None:
    rows = read_table(run(place, tmp_path / "multi out", "multi"))
    scores = densefeat.open_store(tmp_path / "multi out/maps")["scores"]
    assert [row["explained"] for row in rows] == [CLASSES[place] for place in scores.argmax(1)]
    assert all(row["predicted"] == "|" or row["explained"] in row["predicted"].split("|") for row in rows)
    titles = re.findall(r"<h2><bdi>(.*)</bdi></h2>", (tmp_path / "multi out/index.html").read_text())
    assert sorted(titles) == sorted(row["predicted"] for row in rows)
    quiet = run(place, tmp_path / "quiet out", "quiet", labels="folder")
    wanted = [f"no label · explained: {row['explained']} · label {row['label']}" for row in read_table(quiet)]
    assert sorted(re.findall(r"<h2><bdi>(.*)</bdi></h2>", quiet.page.read_text())) == sorted(wanted)
    result = run(place, tmp_path / "numbers out", "numbers")
    assert all(float(row["predicted"]) == float(row["score"]) for row in read_table(result))
    assert "The score of the value is a bias and the sum" in result.page.read_text()


def test_a_class_has_one_line_and_a_row_of_its_own(explained: Explained) -> None:
    page, seen = explained.page.read_text(), set()
    sections = {re.findall(r"<bdi>(class \d/\d+\.png)</bdi>", part)[0]: part for part in page.split("<section>")[1:]}
    for row in read_table(explained):
        classes = list(dict.fromkeys([row["predicted"], "class 0", "other"]))
        seen.add(len(classes))
        assert np.asarray(Image.open(explained.pictures / row["path"])).shape == (len(classes) * 224, 4 * 224, 3)
        rows = sections[row["path"]].split('<div class="cards">')[1:]
        assert [re.findall(r"<bdi>for (.*)</bdi>", part) for part in rows] == [[name] * 3 for name in classes]
        assert [part.count("<img") for part in rows] == [4] * len(classes)
        assert len(re.findall(r"= bias", sections[row["path"]])) == len(classes)
    assert seen == {2, 3}


@pytest.mark.parametrize(("row", "lines"), [(1, 3), (7, 2)])  # the second predicts a class that is named, too
def test_pictures_show_the_image_and_the_maps(place: Path, explained: Explained, row: int, lines: int) -> None:
    path = read_table(explained)[row]["path"]
    picture = np.asarray(Image.open(explained.pictures / path), np.int64)
    assert picture.shape == (lines * 224, 4 * 224, 3)  # classes; the image, all evidence, two blocks
    image = np.asarray(Image.open(place / "images" / path).resize((224, 224)), np.int64)
    assert np.abs(picture[:224, :224] - image).mean() < 12  # resized in one step rather than in two
    store = densefeat.open_store(explained.store)
    evidence = store["evidence"][row].reshape(store.shapes["evidence"])[2]
    redness = (picture[-224:, 224:448, 0] - picture[-224:, 224:448, 2]).reshape(16, 14, 16, 14).mean((1, 3))
    clear = np.abs(evidence) > 0.1 * np.abs(evidence).max()
    assert (np.sign(redness) == np.sign(evidence))[clear].mean() > 0.95


def test_it_resumes(place: Path, tmp_path: Path) -> None:
    first = run(place, tmp_path / "out")
    made = {path: path.stat().st_mtime_ns for path in first.pictures.rglob("*.png")}
    missing = first.pictures / "class 2/003.png"
    missing.unlink()
    table = first.table.read_bytes()
    parts = {path: path.stat().st_mtime_ns for path in (first.store / "data").iterdir()}
    again = run(place, tmp_path / "out")
    assert (again.rows, again.table.read_bytes()) == (14, table)
    assert {path: path.stat().st_mtime_ns for path in (first.store / "data").iterdir()} == parts
    assert [path for path in made if path.stat().st_mtime_ns != made[path]] == [missing]
    with pytest.raises(
        UsageError, match="out' explains no class besides the predicted one; choose another --out, or --overwrite"
    ):
        run(place, tmp_path / "out", classes=["other"])
    other = run(place, tmp_path / "out", classes=["other"], overwrite=True)
    assert densefeat.open_store(other.store).shapes["evidence"][0] == 2
    message = re.escape(f"output '{tmp_path / 'out'}' explains other; choose another --out, or --overwrite")
    for classes in (["class 1"], [], ["other", "class 1"]):
        with pytest.raises(UsageError, match=message):
            run(place, tmp_path / "out", classes=classes)
    assert run(place, tmp_path / "out", classes=["other", "other"]).rows == 14
    assert missing.stat().st_mtime_ns != made[missing]


def test_images_that_are_gone_are_told(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "images", tmp_path / "images")
    first = run(place, tmp_path / "out", images=tmp_path / "images")
    for path in (tmp_path / "images/class 0/001.png", first.pictures / "class 0/001.png"):
        path.unlink()
    again = run(place, tmp_path / "out", images=tmp_path / "images", update=True)
    assert again.rows == 14  # an update keeps rows
    assert again.not_drawn == {"class 0/001.png": "No such file or directory"}
    assert again.page.read_text().count("no image") == 4  # the image, all evidence, two blocks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes=["clas 1"]), "class 'clas 1' is none of the model's 4: class 1, class 2, class 0, …"),
        (dict(classes=["zebra"]), "class 'zebra' is none of the model's 4: class 0, class 1, class 2, other"),
        (dict(classes=["1"], model="numbers"), "class '1': this model predicts numbers"),
        (dict(images="nowhere"), "no such"),
        (dict(model="nothing"), "no such folder"),
    ],
)
def test_wrong_use(place: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        run(place, tmp_path / "out", **options)
    assert not (tmp_path / "out/explained.csv").exists()


@pytest.mark.parametrize(
    "name", ["mine.txt", "explained.csv", "explained.json", "index.html", "maps", "pictures", ".explained.json"]
)
def test_strangers_stay(place: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("years of work")
    with pytest.raises(DensefeatError, match=re.escape(name) if name != "mine.txt" else "holds other files"):
        run(place, tmp_path / "out", overwrite=True)
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["years of work"]


def test_a_table_that_was_changed_is_the_users(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "out")
    result.table.write_text(result.table.read_text().replace("class 1", "my class"))
    with pytest.raises(UsageError, match=r"explained\.csv' exists and was not written"):
        run(place, tmp_path / "out")
