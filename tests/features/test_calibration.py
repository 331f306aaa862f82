"""Networks in int8: close to float32, from one calibration for all sizes, and never of other weights or blocks."""

import pickle
import sys

import numpy as np
import pytest
import torch

from densefeat import FeatureExtractor, UsageError
from densefeat.errors import BackendError
from densefeat.features.engines.quantized import QuantizedNetwork
from densefeat.sklearn import DenseFeatTransformer
from support.engines import deluge, dense, make_images

POOLS = ["avg", "none"]


def calibrate(model: torch.nn.Module, **options: object) -> FeatureExtractor:
    extractor = FeatureExtractor(model, device="cpu", precision="int8", **options)
    extractor.calibrate(make_images(12))
    return extractor


@pytest.mark.parametrize("make", [dense, deluge])
@pytest.mark.parametrize("tap", ["norm", pytest.param("raw", marks=pytest.mark.slow)])
def test_close_to_float32_at_every_size(make: type, tap: str) -> None:
    model = make()
    extractor = calibrate(model, tap=tap, pool=POOLS)
    plain = FeatureExtractor(model, tap=tap, pool=POOLS, device="cpu", backend="reference")
    more = [make_images(2, 32, 32 + 8 * i) for i in range(1, 4)]  # than have graphs of their own in float32
    for x in (make_images(7), make_images(3, 80, 96), make_images(1, 48, 64), *more):
        own, expected = extractor(x), plain(x)
        assert list(own) == list(expected)
        for name, values in expected.items():
            assert (own[name].shape, own[name].dtype) == (values.shape, torch.float32)
            assert torch.cosine_similarity(own[name].flatten(1), values.flatten(1)).min() > 0.97
            assert not torch.allclose(own[name], values, rtol=1e-5, atol=1e-5)  # it is not float32's


def test_convolutions_alone_are_quantised() -> None:
    import openvino

    network = calibrate(dense()).quantized
    assert network is not None
    model = openvino.Core().read_model(network.nodes, network.constants)
    quantised = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    readers = {target.get_node().get_type_name() for node in quantised for target in node.output(0).get_target_inputs()}
    assert readers == {"Convolution"}
    assert len(quantised) == sum(node.get_type_name() == "Convolution" for node in model.get_ops())


def test_an_image_that_is_not_finite() -> None:
    x = make_images(3)
    x[1, 0, 5, 5] = torch.nan
    features = calibrate(dense())(x)["block3"]
    assert features.isnan().all(1).tolist() == [False, True, False]


def test_cosines_are_those_of_the_features() -> None:
    model, x = dense(), make_images(5)
    extractor, plain = calibrate(model), FeatureExtractor(model, device="cpu", backend="openvino")
    own, expected = extractor(x), plain(x)
    for name, cosines in extractor.compare_to_float32(x).items():
        assert torch.allclose(cosines, torch.cosine_similarity(own[name], expected[name]), atol=1e-6)


def test_a_copy_in_another_process_computes_the_same() -> None:
    extractor, x = calibrate(dense()), make_images(3)
    again = pickle.loads(pickle.dumps(extractor))
    assert again.quantized.sha256 == extractor.quantized.sha256
    assert torch.equal(again(x)["block2"], extractor(x)["block2"])


def change_weights(extractor: FeatureExtractor) -> None:
    with torch.no_grad():
        extractor.model.features.conv0.weight.mul_(1.01)


def change_blocks(extractor: FeatureExtractor) -> None:
    extractor.taps = extractor.taps[:1]


@pytest.mark.parametrize("change", [change_weights, change_blocks])
def test_a_changed_network_is_refused(change) -> None:
    extractor, x = calibrate(dense()), make_images(2)
    change(extractor)
    with pytest.raises(UsageError, match="was calibrated for other weights or blocks: call calibrate"):
        extractor(x)
    extractor.calibrate(make_images(12))
    assert extractor(x)["block1"].isfinite().all()


def test_grids_of_other_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match="was calibrated for other weights or blocks"):
        calibrate(dense()).grid(make_images(1), blocks=(1,))


def uncalibrated() -> FeatureExtractor:
    return FeatureExtractor(dense(), device="cpu", precision="int8")


def break_weights() -> None:
    model = dense()
    model.features.conv0.weight.data[0] = torch.nan
    FeatureExtractor(model, device="cpu", precision="int8").calibrate(make_images(2))


def use_something_else() -> None:
    extractor = uncalibrated()
    extractor.use_quantized(QuantizedNetwork(b"<net/>", b""))
    extractor(make_images(1))


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: uncalibrated()(make_images(1)), UsageError, "has to be calibrated first: call calibrate"),
        (lambda: uncalibrated().compare_to_float32(make_images(1)), UsageError, "has to be calibrated first"),
        (lambda: FeatureExtractor(dense(), device="cpu").calibrate(make_images(1)), UsageError, "'fp32' needs no calibration"),
        (break_weights, BackendError, "weights that are not finite"),
        (use_something_else, BackendError, "the quantised network is not one of these blocks"),
        (lambda: FeatureExtractor(dense(), precision="int4"), UsageError, "choose one of fp32, bf16, int8"),
        (lambda: FeatureExtractor(dense(), device="cpu", precision="int8", backend="reference"), BackendError, "not compute in int8"),
        (lambda: DenseFeatTransformer(precision="int8").fit([np.zeros((8, 8, 3), np.uint8)]), UsageError, "has to be calibrated"),
    ],
)  # fmt: skip
def test_wrong_use(use, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        use()


def test_without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = uncalibrated()
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(BackendError, match=r"calibrated by NNCF, which is not installed: pip install 'densefeat\[int8\]'"):
        extractor.calibrate(make_images(2))
