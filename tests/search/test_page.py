"""The page of a search is one file with its thumbnails, in which other people's text is escaped."""

from pathlib import Path

import numpy as np
import pytest

from densefeat.errors import OutputError
from densefeat.search.exact import find_nearest, find_pairs
from densefeat.search.page import write_page
from densefeat.search.results import Neighbours, Pairs, Query
from densefeat.store.entries import ImageEntry
from densefeat.store.reader import Store
from support.parsed_page import ParsedPage

EVIL = "\"><script src=//evil.example></script><img src=x onerror='alert(1)'>.jpg"


def neighbours(store: Store, queries: list[Query], k: int = 3) -> Neighbours:
    vectors = store["block1"][: len(queries)]
    return Neighbours(store, "block1", "cosine", tuple(queries), *find_nearest(store, vectors, "block1", k))


def vectors(rows: int) -> np.ndarray:
    return np.random.default_rng(0).random((rows, 5), np.float32)


def test_neighbours_with_their_pictures(make_store, photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "china/02.jpg").unlink()
    keys = [f"china/{i:02}.jpg" for i in range(3)]
    store = make_store({"block1": vectors(3)}, keys, ["a & b", None, "c"], model="some.model")
    queries = [Query(ImageEntry(str(photo_folder / "flower/06.jpg"))), Query(ImageEntry(keys[1]), 1)]
    assert write_page(tmp_path / "n.html", neighbours(store, queries), photo_folder) is None
    page = ParsedPage(tmp_path / "n.html")
    pictures = page.all("img")
    assert len(pictures) == 2 + 2 * 2  # both queries, and of three neighbours each the two that are there
    assert all(picture["src"].startswith("data:image/jpeg;base64,") for picture in pictures)
    assert len(page.all("figure")) == 2 * 4
    assert page.texts.count("no image") == 2
    assert {"1 · 1.0000", "china/02.jpg", "a & b", "3 rows, block1 of some.model; cosine similarity"} <= set(page.texts)


def test_the_page_requests_nothing(make_store, tmp_path: Path) -> None:
    """No scripts, styles, fonts or pictures from elsewhere, and a policy that would forbid them."""
    store = make_store({"block1": vectors(2)}, [EVIL, "b.jpg"], [EVIL, None])
    found = neighbours(store, [Query(ImageEntry(EVIL))])
    problem = write_page(tmp_path / "n.html", found, "/nowhere")
    assert problem is not None
    assert problem.startswith("images '/nowhere'")
    page = ParsedPage(tmp_path / "n.html")
    assert {tag for tag, _ in page.elements} == {"html", "head", "meta", "title", "style", "body", "h1", "p", "main", "section",
                                                 "h2", "bdi", "div", "figure", "figcaption", "b", "br", "span"}  # fmt: skip
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on") or name in ("src", "href")
    ]
    assert page.all("meta")[-1]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.texts.count(EVIL) == 3  # query, neighbour and its label, as they are
    assert f"Images could not be shown: {problem}" in page.texts


def test_attributes_are_escaped(make_store, photo_folder: Path, tmp_path: Path) -> None:
    name = "\"' onerror=x.jpg"
    (photo_folder / "china/00.jpg").rename(photo_folder / name)
    write_page(
        tmp_path / "n.html",
        neighbours(make_store({"block1": vectors(1)}, [name]), [Query(ImageEntry("q"))]),
        photo_folder,
    )
    (picture,) = ParsedPage(tmp_path / "n.html").all("img")
    assert set(picture) == {"src", "alt"}
    assert picture["alt"] == name


def test_groups_of_duplicates(make_store, photo_folder: Path, tmp_path: Path) -> None:
    values = np.float32([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, -1]])
    keys = [f"china/{i:02}.jpg" for i in range(5)]
    store = make_store({"block1": values}, keys)
    found = Pairs(store, "block1", "cosine", 0.9, find_pairs(store, "block1", 0.9))
    assert write_page(tmp_path / "d.html", found, photo_folder) is None
    page = ParsedPage(tmp_path / "d.html")
    assert len(page.all("img")) == 4
    assert {"Group 1: 2 images", "Group 2: 2 images", "0.9950"} <= set(page.texts)
    assert "2 pairs in 2 groups; under each image its score in its best pair" in page.texts


def test_large_groups_and_many_groups_are_cut(make_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.search.page._MAX_IMAGES", 6)
    monkeypatch.setattr("densefeat.search.page._MAX_GROUP_IMAGES", 4)
    store = make_store({"block1": np.repeat(np.eye(4, dtype=np.float32), [6, 2, 2, 2], 0)}, images="/nowhere")
    found = Pairs(store, "block1", "cosine", 0.9, find_pairs(store, "block1", 0.9))
    write_page(tmp_path / "d.html", found)
    page = ParsedPage(tmp_path / "d.html")
    assert len(page.all("figure")) == 6
    assert {"Group 1: 6 images, 4 shown", "Group 2: 2 images", "2 more groups are not shown."} <= set(page.texts)


def test_a_search_that_stopped_says_so(make_store, tmp_path: Path) -> None:
    store = make_store({"block1": np.ones((5, 2), np.float32)})
    write_page(tmp_path / "d.html", Pairs(store, "block1", "cosine", 0.9, find_pairs(store, "block1", 0.9, max_pairs=3)))
    assert "The search stopped at this number of pairs: there are more." in ParsedPage(tmp_path / "d.html").texts


def test_a_page_that_cannot_be_written(make_store, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no/n.html' cannot be written: No such"):
        write_page(tmp_path / "no/n.html", neighbours(make_store({"block1": vectors(2)}), [Query(ImageEntry("q"))]))
