"""Which arms a comparison has, and their titles."""

import pytest

from densefeat.bench.arms import ARMS, Arm, choose_arms
from densefeat.bench.builders import BUILDERS
from densefeat.errors import UsageError


def choose_names(request: str, device: str = "cpu", precision: str = "fp32") -> list[str]:
    return [arm.name for arm in choose_arms(request, device, precision)]


def test_every_arm_has_a_builder_and_a_unique_name() -> None:
    for arms in ARMS.values():
        assert {arm.kind for arm in arms} <= BUILDERS.keys()
        assert len({arm.name for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("request_", "device", "names"),
    [
        ("quick", "cpu", ["timm-nhwc", "timm-nhwc-tuned", "reference", "buffer", "openvino"]),
        ("quick", "cuda", ["timm-nhwc", "reference", "triton"]),
        ("ours", "cpu", ["reference", "buffer", "openvino"]),
        ("buffer,hooks", "cpu", ["hooks", "buffer"]),  # in the table's order
        ("hooks,ours", "cuda", ["hooks", "reference", "triton"]),
        ("compile", "cuda", ["compile", "compile-reduce-overhead", "compile-max-autotune"]),  # a kind
        ("compile-max-autotune", "cuda", ["compile-max-autotune"]),
        ("all", "cpu", [arm.name for arm in ARMS["cpu"]]),
    ],
)
def test_groups_names_and_kinds(request_: str, device: str, names: list[str]) -> None:
    assert choose_names(request_, device) == names


def test_all_arms_of_a_gpu_run_in_bf16() -> None:
    assert choose_names("all", "cuda", "bf16") == [arm.name for arm in ARMS["cuda"]]


def test_precisions_follow_each_other() -> None:
    arms = [(arm.name, arm.precision) for arm in choose_arms("timm-nchw,timm-nhwc,reference", "cpu", "both")]
    assert arms == [
        ("timm-nchw", "fp32"), ("timm-nhwc", "fp32"), ("reference", "fp32"), ("timm-nhwc", "bf16"), ("reference", "bf16"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "device", "precision", "message"),
    [
        ("tim", "cpu", "fp32", "arm 'tim': on cpu choose quick, ours, all, or some of timm-nchw, "),
        ("reference,", "cpu", "fp32", "arm '': "),
        ("openvino", "cuda", "fp32", "arm 'openvino': on cuda choose"),
        ("hooks", "cpu", "bf16", "arms 'hooks': none of them runs in bf16 on cpu"),
    ],
)
def test_wrong_names(request_: str, device: str, precision: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        choose_arms(request_, device, precision)


def test_titles_say_whose_code_runs() -> None:
    arm = Arm("timm-nhwc-tuned", "timm", "channels_last", "tuned")
    assert arm.title("timm") == "timm eager, channels_last, tuned allocator, fp32"
    assert arm.title("plain network") == "plain network eager, channels_last, tuned allocator, fp32"
    compiled = Arm("c", "compile", "channels_last", mode="max-autotune", precision="bf16")
    assert compiled.title("timm") == "timm, torch.compile, channels_last, max-autotune, bf16"
    assert Arm("buffer", "buffer").title("timm") == "densefeat buffer, fp32"


def test_our_engines_pool_before_they_convolve() -> None:
    assert [arm.name for arms in ARMS.values() for arm in arms if arm.pools_first] == ["buffer", "openvino", "triton"]
