"""densefeat.sklearn: scikit-learn's own checks, the inputs, the outputs, and life inside pipelines and searches."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import Tags
from sklearn.utils.estimator_checks import check_array_api_input, check_estimator, parametrize_with_checks
from sklearn.utils.validation import validate_data

import densefeat
from densefeat.errors import DecodeError, UsageError
from densefeat.sklearn import DenseFeatTransformer
from support.helpers import BUNDLED

EXPECTED_FAILED_CHECKS: dict[str, str] = {}  # check: why it fails


class OfTables(DenseFeatTransformer):
    """scikit-learn checks estimators with tables of numbers: each row is made an image here, all else is the transformer's."""

    def _samples(self, X, fitting: bool) -> np.ndarray:
        table = validate_data(self, X, dtype=np.float64, reset=fitting)
        levels = np.clip(128 + 32 * table, 0, 255).astype(np.uint8)
        return np.stack([np.resize(row, (32, 32)) for row in levels])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = tags.input_tags.string = False
        tags.input_tags.two_d_array = True
        return tags


@pytest.mark.slow
@parametrize_with_checks([OfTables(BUNDLED, blocks=1)], expected_failed_checks=lambda _: EXPECTED_FAILED_CHECKS)
def test_estimator_checks(estimator: DenseFeatTransformer, check) -> None:
    if check.func is check_array_api_input:
        check_in_a_process_with_array_api()
    else:
        check(estimator)


def check_in_a_process_with_array_api() -> None:
    """SciPy reads the variable when it is imported; without it the check skips itself."""
    code = "import test_transformer as t; t.check_array_api_input('OfTables', t.OfTables(t.BUNDLED, blocks=1), 'numpy',"
    code += " expect_only_array_outputs=False)"
    folder = Path(__file__).parent
    environment = os.environ | {"SCIPY_ARRAY_API": "1", "PYTHONPATH": f"{folder}{os.pathsep}{folder.parent}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_scikit_learn_has_no_checks_for_images() -> None:
    with pytest.warns(SkipTestWarning, match="requires input"):
        results = check_estimator(DenseFeatTransformer(BUNDLED))
    assert [result["status"] for result in results] == ["passed"]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def features(X, **options) -> np.ndarray:
    return DenseFeatTransformer(BUNDLED, **options).fit_transform(X)


def test_features_are_the_extractors(photo_folder: Path, small_extractor: densefeat.FeatureExtractor) -> None:
    transformer = DenseFeatTransformer(BUNDLED).fit(files(photo_folder))
    expected = small_extractor(files(photo_folder))
    found, names = transformer.transform(files(photo_folder)), transformer.get_feature_names_out()
    assert found.shape == (12, 858)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.cat(list(expected.values()), 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, names == "block2_17"][:, 0], found[:, expected["block1"].shape[1] + 17])


@pytest.mark.parametrize(
    ("options", "first", "width"),
    [
        (dict(blocks=3), "block3_0", 342),
        (dict(blocks=[1, 3]), "block1_0", 558),
        (dict(blocks=1, pool=["avg", "gem:4"]), "block1_avg_0", 432),
        (dict(blocks=3, pool="none", image_size=64), "block3_0", 342 * 16 * 16),
        (dict(blocks=2, tap="raw", precision="bf16", backend="reference", device="cpu"), "block2_0", 300),
    ],
)
@pytest.mark.usefixtures("with_bf16")
def test_parameters(options: dict, first: str, width: int, photographs: list[Image.Image]) -> None:
    transformer = DenseFeatTransformer(BUNDLED, **options).fit(photographs[:2])
    assert transformer.get_feature_names_out()[0] == first
    assert transformer.transform(photographs[:2]).shape == (2, width) == (2, len(transformer.get_feature_names_out()))


def test_all_kinds_of_input_give_the_same(tmp_path: Path, photographs: list[Image.Image]) -> None:
    images = [photograph.resize((40, 36)) for photograph in photographs[:3]]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    arrays = np.stack([np.asarray(image) for image in images])
    arrays.flags.writeable = False  # as joblib hands them to its processes
    series = pd.Series(map(str, paths), name="photo")
    column = datasets.Dataset.from_dict({"image": list(map(str, paths))}).cast_column("image", datasets.Image())["image"]
    objects = np.empty(3, dtype=object)
    objects[:] = images
    options = dict(blocks=1, backend="reference")
    expected = features(images, **options)
    for X in (paths, tuple(paths), list(map(str, paths)), np.array(list(map(str, paths))), arrays, list(arrays), objects,
              series, series.to_frame(), series.astype("string"), column, [images[0], str(paths[1]), arrays[2]]):  # fmt: skip
        np.testing.assert_array_equal(features(X, **options), expected)


def test_grey_and_transparent_arrays(photographs: list[Image.Image]) -> None:
    grey = np.asarray(photographs[0].convert("L"))
    np.testing.assert_array_equal(features(grey[None], blocks=1), features([photographs[0].convert("L")], blocks=1))
    np.testing.assert_array_equal(features(grey[None, ..., None], blocks=1), features(grey[None], blocks=1))
    clear = np.dstack([np.asarray(photographs[0]), np.zeros_like(grey)])
    np.testing.assert_array_equal(features([clear], blocks=1), features([np.full((427, 640, 3), 255, np.uint8)], blocks=1))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("photo.jpg", "a str is not a sequence of images"),
        (Path("photo.jpg"), "is not a sequence of images"),
        (Image.new("RGB", (9, 9)), "a Image is not a sequence of images"),
        ((path for path in ["photo.jpg"]), "a generator is not a sequence of images"),
        (None, "a NoneType is not a sequence of images"),
        ([], "no images"),
        (np.empty((0, 9, 9, 3), np.uint8), "no images"),
        (np.zeros((4, 5)), r"shape \(4, 5\) and float64 holds no images"),
        (np.zeros((4, 9, 9, 3)), "image 0: floating-point 64-bit values from 0 to 0"),
        (np.zeros((4, 9, 9, 3, 3), np.uint8), r"shape \(4, 9, 9, 3, 3\) and uint8 holds no images"),
        (pd.DataFrame({"path": ["a"], "label": ["b"]}), r"table of shape \(1, 2\): give the column"),
        ([np.zeros((9, 9, 3))], "image 0: floating-point 64-bit values from 0 to 0"),
        ([np.zeros((9, 9, 3), complex)], r"shape \(9, 9, 3\) and complex128 is not an image"),
        ([np.zeros((9, 0, 3), np.uint8)], r"shape \(9, 0, 3\) and uint8 is not an image"),
        ([1.5], "a float is not an image"),
    ],
)
def test_what_is_no_image(X, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        features(X)


def test_file_that_cannot_be_read(photo_folder: Path) -> None:
    paths = files(photo_folder)
    transformer = DenseFeatTransformer(BUNDLED, batch_size=np.int64(4)).fit(paths)
    paths[9].write_bytes(paths[9].read_bytes()[:-500])
    with pytest.raises(DecodeError, match=r"image 9 \(.*09\.jpg\): truncated"):
        transformer.transform(paths)
    with pytest.raises(DecodeError, match=r"image 0 \(absent\.jpg\): No such file"):
        transformer.transform(["absent.jpg"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(blocks=9), "blocks 9: this network has 1 to 3"),
        (dict(tap="middle"), "tap 'middle'"),
        (dict(pool="sum"), "pool 'sum'"),
        (dict(precision="int8"), "precision 'int8'"),
        (dict(backend="fast"), "backend 'fast'"),
        (dict(image_size=8), "image size 8"),
        (dict(batch_size=0), "batch_size 0"),
        (dict(batch_size=True), "batch_size True"),
        (dict(batch_size=2.0), "batch_size 2.0"),
    ],
)
def test_parameters_are_checked_by_fit(options: dict, message: str, photographs: list[Image.Image]) -> None:
    transformer = DenseFeatTransformer(BUNDLED, **options)
    with pytest.raises(UsageError, match=message):
        transformer.fit(photographs)


def test_images_pass_in_batches(photographs: list[Image.Image]) -> None:
    transformer = DenseFeatTransformer(BUNDLED, batch_size=5, backend="reference").fit(photographs)
    passed: list[int] = []
    transformer.extractor_.model.features.conv0.register_forward_hook(lambda _, inputs, __: passed.append(len(inputs[0])))
    found = transformer.transform(photographs)
    assert passed == [5, 5, 2]
    np.testing.assert_allclose(found, features(photographs, batch_size=100), rtol=1e-4, atol=1e-5)


def test_pickled_with_its_weights(photographs: list[Image.Image]) -> None:
    transformer = DenseFeatTransformer(BUNDLED, blocks=2)
    with pytest.raises(NotFittedError):
        transformer.transform(photographs)
    expected = transformer.fit(photographs).transform(photographs)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(transformer)).transform(photographs), expected)
    again = clone(transformer)
    assert not hasattr(again, "extractor_")
    assert again.get_params() == transformer.get_params()


def test_model_of_ones_own(trained: torch.nn.Module, photographs: list[Image.Image]) -> None:
    transformer = clone(DenseFeatTransformer(trained, blocks=3))
    assert transformer.model is not trained
    np.testing.assert_allclose(transformer.fit_transform(photographs), features(photographs, blocks=3), rtol=1e-5, atol=1e-6)


def test_tables_out(photo_folder: Path) -> None:
    table = pd.DataFrame({"photo": map(str, files(photo_folder))}, index=range(100, 112))
    transformer = DenseFeatTransformer(BUNDLED, blocks=1).set_output(transform="pandas")
    found = transformer.fit_transform(table)
    assert list(found.index) == list(table.index)
    assert list(found.columns) == list(transformer.get_feature_names_out(["photo"]))
    assert set(found.dtypes) == {np.dtype(np.float32)}
    assert list(transformer.feature_names_in_) == ["photo"]
    assert transformer.n_features_in_ == 1
    with pytest.raises(UsageError, match="not equal to feature_names_in_"):
        transformer.get_feature_names_out(["image"])
    with pytest.raises(ValueError, match="feature names should match"):
        transformer.transform(table.rename(columns={"photo": "image"}))


def test_one_column_of_several(photo_folder: Path) -> None:
    table = pd.DataFrame({"photo": map(str, files(photo_folder)), "width": 7.0})
    columns = ColumnTransformer(
        [("image", DenseFeatTransformer(BUNDLED, blocks=3), ["photo"]), ("rest", "passthrough", ["width"])]
    )
    found = columns.fit_transform(table)
    np.testing.assert_array_equal(found[:, :342], features(table["photo"], blocks=3))
    assert columns.get_feature_names_out()[[0, -1]].tolist() == ["image__block3_0", "rest__width"]


def test_tasks_can_be_sent_to_other_processes(photographs: list[Image.Image]) -> None:
    """scikit-learn sends the filters of warnings along, and decoding has put one of its own among them."""
    features(photographs[:1], blocks=1)
    assert pickle.loads(pickle.dumps(warnings.filters)) == warnings.filters
    messages = [message for _, message, *_ in warnings.filters if message is not None]
    assert all(isinstance(message, str) or isinstance(message.pattern, str) for message in messages)


@pytest.mark.slow
def test_search_over_blocks_in_processes(photo_folder: Path) -> None:
    """This process has used its engine before; the others make their own."""
    paths = files(photo_folder)
    labels = [path.parent.name for path in paths]
    features(paths[:2])
    pipeline = make_pipeline(DenseFeatTransformer(BUNDLED), LogisticRegression())
    grid = {"densefeattransformer__blocks": [1, [2, 3]]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(paths, labels)
    alone = cross_val_score(pipeline.set_params(densefeattransformer__blocks=[2, 3]), paths, labels, cv=2)
    assert search.cv_results_["mean_test_score"][1] == pytest.approx(alone.mean())
    assert search.best_score_ > 0.7
    assert list(search.predict(paths)) == labels
