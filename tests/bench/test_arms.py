"""Which arms a comparison has, and what they are called."""

import pytest

from densefeat.bench.arms import CPU, CUDA, Arm, chosen_arms
from densefeat.bench.builders import BUILDERS
from densefeat.errors import UsageError


def names(asked: str, device: str = "cpu", precision: str = "fp32") -> list[str]:
    return [arm.name for arm in chosen_arms(asked, device, precision)]


def test_every_arm_can_be_built_and_has_a_name_of_its_own() -> None:
    for arms in (CPU, CUDA):
        assert {arm.kind for arm in arms} <= BUILDERS.keys()
        assert len({arm.name for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("asked", "device", "found"),
    [
        ("quick", "cpu", ["timm-nchw", "timm-nhwc", "reference", "buffer", "openvino"]),
        ("quick", "cuda", ["timm-nchw", "timm-nhwc", "reference", "triton"]),
        ("ours", "cpu", ["reference", "buffer", "openvino"]),
        ("buffer,hooks", "cpu", ["hooks", "buffer"]),  # in the table's order
        ("hooks,ours", "cuda", ["hooks", "reference", "triton"]),
        ("compile", "cuda", ["compile", "compile-reduce-overhead", "compile-max-autotune"]),  # a kind
        ("compile-max-autotune", "cuda", ["compile-max-autotune"]),
    ],
)
def test_what_is_asked_for(asked: str, device: str, found: list[str]) -> None:
    assert names(asked, device) == found


def test_all_are_all() -> None:
    assert names("all") == [arm.name for arm in CPU]
    assert names("all", "cuda", "bf16") == [arm.name for arm in CUDA]


def test_both_precisions_come_one_after_the_other() -> None:
    arms = [(arm.name, arm.precision) for arm in chosen_arms("timm-nchw,timm-nhwc,reference", "cpu", "both")]
    assert arms == [
        ("timm-nchw", "fp32"), ("timm-nhwc", "fp32"), ("reference", "fp32"), ("timm-nhwc", "bf16"), ("reference", "bf16"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "device", "precision", "message"),
    [
        ("tim", "cpu", "fp32", "arm 'tim': on cpu choose quick, ours, all, or some of timm-nchw, "),
        ("reference,", "cpu", "fp32", "arm '': "),
        ("openvino", "cuda", "fp32", "arm 'openvino': on cuda choose"),
        ("hooks", "cpu", "bf16", "arms 'hooks': none of them runs in bf16 on cpu"),
    ],
)
def test_wrong_names(asked: str, device: str, precision: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        chosen_arms(asked, device, precision)


def test_titles_say_whose_code_runs() -> None:
    arm = Arm("timm-nhwc-tuned", "timm", layout="channels_last", allocator="tuned")
    assert arm.title("timm") == "timm eager, channels_last, tuned allocator, fp32"
    assert arm.title("plain network") == "plain network eager, channels_last, tuned allocator, fp32"
    compiled = Arm("c", "compile", "bf16", layout="channels_last", mode="max-autotune")
    assert compiled.title("timm") == "timm, torch.compile, channels_last, max-autotune, bf16"
    assert Arm("buffer", "buffer").title("timm") == "densefeat buffer, fp32"


def test_which_pool_before_they_convolve() -> None:
    assert [arm.name for arm in (*CPU, *CUDA) if arm.pools_first] == ["buffer", "openvino", "triton"]
