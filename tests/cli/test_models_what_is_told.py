from __future__ import annotations

import pytest

from widefield import list_models
from widefield.cli.models import _kernel_size


def test_every_model_is_listed_with_its_sizes(widefield) -> None:
    outcome = widefield("models")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    for name in list_models():
        assert any(f" {name} " in line for line in lines)
    row = next(line for line in lines if " replknet_31b " in line)
    for part in ("79.9 M", "128 256 512", "2 2 18 2", "31 29 27 13", " 5 "):
        assert part in row


def test_a_card_tells_source_licence_cost_and_score(widefield) -> None:
    outcome = widefield("models", "replknet_31b")
    assert outcome.code == 0, outcome.err
    for part in (
        "parameters   79,864,168; merged 79,390,824",
        "MACs         15.35 G merged, at 224x224",
        "kernel sizes 31 29 27 13",
        "licence      mit",
        "replknet_31b.in1k: 1,000 classes (imagenet-1k), 224x224, top-1 83.5 %",
        "RepLKNet-31B_ImageNet-1K_224_20221024-debd6715.pth",
        "replknet_31b.in22k: 21,841 classes (imagenet-22k), 224x224, no ImageNet-1K score",
        "to be downloaded by hand",
        'timm.create_model("replknet_31b.in1k", pretrained=True, num_classes=10)',
        'widefield.load_published("FILE", num_classes=10)',
        "widefield convert FILE -o model.safetensors",
    ):
        assert part in outcome.out


def test_one_checkpoint_is_shown_by_its_tag(widefield) -> None:
    outcome = widefield("models", "replknet_31b.in1k_384")
    assert "MACs         45.1" in outcome.out
    assert "top-1 84.8 %" in outcome.out
    assert "83.5 %\n" not in outcome.out
    outcome = widefield("models", "replknet_31b.in1k_385")
    assert outcome.code == 2
    assert "the name of a published checkpoint" in outcome.err
    assert "'replknet_31b.in1k_384'" in outcome.err


def test_a_model_that_nobody_published_says_so(widefield) -> None:
    outcome = widefield("models", "replknet_nano")
    assert "weights      none published" in outcome.out
    assert "load_published" not in outcome.out


@pytest.mark.parametrize(
    ("size", "told"), [(31, "31"), ((13, 3) * 9, "(13,3)"), ((13,) * 3, "13"), ((5, 7, 9), "(5,7,9)")]
)
def test_kernel_sizes_that_take_turns_are_told_once(size: int | tuple[int, ...], told: str) -> None:
    assert _kernel_size(size) == told
