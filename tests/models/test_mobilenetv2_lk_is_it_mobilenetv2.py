from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
import torch.fx
from support.random_statistics import randomise
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from widefield import merge
from widefield._core.errors import InputError
from widefield.models.mobilenetv2_lk import InvertedResidual, MobileNetV2LK
from widefield.nn import ReparamConv2d

PLAIN: dict[str, Any] = {"kernel_sizes": (3, 3, 3, 3), "small_kernel_size": None}
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    return MobileNetV2LK(**{"num_classes": 10, **options})


def images(size: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def published_key(key: str) -> str:
    """Our name of a tensor of timm's MobileNetV2."""
    head = {"conv_stem": "stem.0.conv", "conv_head": "norm.conv", "classifier": "head.fc"}
    head |= {"bn1": "stem.0.norm", "bn2": "norm.norm"}
    first, _, rest = key.partition(".")
    if first != "blocks":
        return f"{head[first]}.{rest}"
    group, block, layer, leaf = rest.split(".")
    if group == "0":
        ours = {
            "conv_dw": "large_kernel.large.conv",
            "bn1": "large_kernel.large.norm",
            "conv_pw": "conv2.conv",
            "bn2": "conv2.norm",
        }
        return f"stem.1.{ours[layer]}.{leaf}"
    # timm's groups are of one width each, ours of one resolution each: stage and first place of each group.
    stage, place = {1: (0, 0), 2: (1, 0), 3: (2, 0), 4: (2, 4), 5: (3, 0), 6: (3, 3)}[int(group)]
    place += int(block)
    spatial = "large_kernel" if place == 0 else "large_kernel.large"
    ours = {
        "conv_pw": "conv1.conv",
        "bn1": "conv1.norm",
        "conv_dw": f"{spatial}.conv",
        "bn2": f"{spatial}.norm",
        "conv_pwl": "conv2.conv",
        "bn3": "conv2.norm",
    }
    where = "downsample" if place == 0 else f"blocks.{place - 1}"
    return f"stages.{stage}.{where}.{ours[layer]}.{leaf}"


@pytest.mark.parametrize(("name", "width_mult"), [("mobilenetv2_100", 1.0), ("mobilenetv2_050", 0.5)])
@torch.no_grad()
def test_with_small_kernels_it_is_timms_mobilenetv2(name: str, width_mult: float) -> None:
    torch.manual_seed(0)
    theirs: Any = randomise(timm.create_model(name))
    ours = make(**PLAIN, width_mult=width_mult, num_classes=1000).eval()
    ours.load_state_dict({published_key(key): value for key, value in theirs.state_dict().items()})
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-5, atol=1e-5)
    stages = ours.forward_intermediates(images(), intermediates_only=True)
    expected = theirs.forward_intermediates(images(), intermediates_only=True)
    for stage, other in zip(stages, expected[1:], strict=True):
        torch.testing.assert_close(stage, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width_mult", "count"), [(1.0, 3_504_872), (1.4, 6_108_776)])
def test_with_small_kernels_it_has_the_known_number_of_parameters(width_mult: float, count: int) -> None:
    assert parameters(make(**PLAIN, width_mult=width_mult, num_classes=1000, device="meta")) == count


def test_the_default_has_large_kernels_beside_small_ones_at_the_last_resolution() -> None:
    model: Any = timm.create_model("mobilenetv2_lk", device="meta")
    layers = [
        [(layer.kernel_size, layer.small is not None) for layer in stage.modules() if isinstance(layer, ReparamConv2d)]
        for stage in model.stages
    ]
    assert layers == [[(3, False)], [(3, False)] * 2, [(3, False)] * 6, [(13, True)] * 3]
    # Of the depthwise layers, two of 960 channels and the one of 960 before the last width.
    more = 3 * 960 * (13 * 13 + 2)
    assert parameters(model) == 3_504_872 + more
    assert model.feature_info[-1]["num_chs"] == 320
    assert model.num_features == 1280


def test_resolutions_and_widths_are_those_of_every_timm_backbone() -> None:
    model: Any = timm.create_model("mobilenetv2_lk", features_only=True).eval()
    assert model.feature_info.channels() == [24, 32, 96, 320]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(y.shape[1:]) for y in model(images())] == [(24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 2, 2)]
    assert timm.create_model("mobilenetv2_lk", num_classes=3, in_chans=1)(images()[:, :1]).shape == (2, 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_sizes": (13, 13, 13, 13), "shortcut": False},
        {"kernel_sizes": (3, 5, 3, 3), "dilation": (1, 2, 4, 6)},
    ],
)
@pytest.mark.parametrize("dtype", LIMIT)
def test_every_parameter_gets_a_gradient_and_the_network_merges(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = make(**options, dtype=dtype).train()
    x = images(dtype=dtype)
    model(x).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    randomise(model)
    alone = copy.deepcopy(model)
    for layout in (torch.contiguous_format, torch.channels_last):
        merged = copy.deepcopy(model)
        report = merge(merged, x.contiguous(memory_format=layout))
        assert max(unit.relative_error for unit in report.unit_errors) < LIMIT[dtype]
        assert report.relative_error < LIMIT[dtype]
        assert not any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())
        assert all(module.is_merged for module in merged.modules() if isinstance(module, InvertedResidual))
        assert merge(merged, x).unit_errors == ()
    block = alone.stages[3].blocks[0]
    assert isinstance(block, InvertedResidual)
    expected = alone(x)
    block.reparameterize()
    block.reparameterize()
    assert block.is_merged
    assert (alone(x) - expected).abs().max() < LIMIT[dtype] * expected.abs().max()


def test_a_shortcut_is_there_only_if_it_is_wanted_and_possible() -> None:
    for shortcut in (True, False):
        blocks = [m for m in make(shortcut=shortcut, device="meta").modules() if isinstance(m, InvertedResidual)]
        assert len(blocks) == 17
        assert sum(block.has_shortcut for block in blocks) == (10 if shortcut else 0)
    block = randomise(InvertedResidual(8, 8))
    x = torch.randn(1, 8, 6, 6)
    without = randomise(InvertedResidual(8, 8, shortcut=False))
    without.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x), x + without(x))


def test_only_what_has_a_shortcut_can_be_dropped() -> None:
    model = make(drop_path_rate=0.3)
    blocks = [m for m in model.modules() if isinstance(m, InvertedResidual)]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks if block.has_shortcut]
    assert rates == pytest.approx([0.3 * place / 9 for place in range(10)])
    assert all(isinstance(block.drop_path, nn.Identity) for block in blocks if not block.has_shortcut)
    narrow = make(width_mult=0.05, drop_path_rate=0.3, device="meta")
    assert narrow.stages[2].blocks[3].has_shortcut
    assert narrow.stages[3].blocks[1].drop_path.drop_prob == pytest.approx(0.3)
    model.train()(images()).mean().backward()


@torch.no_grad()
def test_a_dilated_kernel_is_a_dense_one_with_zeros_between_its_taps() -> None:
    dilated = make(**PLAIN | {"dilation": (1, 1, 2, 3)}).eval()
    dense = make(**PLAIN | {"kernel_sizes": (3, 3, 5, 7)}).eval()
    state = {}
    for key, value in dilated.state_dict().items():
        stage = re.match(r"stages\.([23])\.blocks\.\d+\.large_kernel\.", key)
        if stage:
            key = key.replace("large_kernel.", "large_kernel.large.")
            gap = {"2": 2, "3": 3}[stage[1]]
            if value.dim() == 4:
                kernel = value.new_zeros(value.shape[0], 1, 2 * gap + 1, 2 * gap + 1)
                kernel[..., ::gap, ::gap] = value
                value = kernel
        state[key] = value
    dense.load_state_dict(state)
    torch.testing.assert_close(dilated(images(128)), dense(images(128)), rtol=1e-4, atol=1e-6)


def test_layers_for_learning_rate_decay_are_the_blocks() -> None:
    model = make(device="meta")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers.values()) == set(range(18))
    assert layers["stem.1.conv2.conv.weight"] == 0
    assert layers["stages.0.downsample.conv1.conv.weight"] == 1
    assert layers["stages.3.blocks.2.conv1.conv.weight"] == 16
    assert layers["norm.conv.weight"] == layers["head.fc.weight"] == 17
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(coarse.values()) == set(range(6))


def test_a_symbolic_trace_gives_the_same() -> None:
    model = randomise(make())
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images()), model(images()))


def test_bfloat16_merges_to_bfloat16_and_training_mode_is_refused() -> None:
    model = randomise(make().bfloat16())
    merge(model, images(dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    block = make().stages[0].downsample
    assert isinstance(block, InvertedResidual)
    text = "Expected a network in evaluation mode for merging, but got one in training mode (the module itself)"
    with pytest.raises(InputError, match=re.escape(text)):
        block.train().reparameterize()
    assert not block.is_merged


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"kernel_sizes": (3, 3, 3)},
            "Expected 4 or 6 kernel sizes, but got 3 (3, 3, 3): give one for each of the strides 4, 8, 16 and 32, "
            "or of the widths 24, 32, 64, 96, 160 and 320.",
        ),
        ({"dilation": (1, 2)}, "Expected 4 or 6 dilations, but got 2 (1, 2): give one for each"),
        ({"dilation": (1, 0, 1, 1)}, "Expected dilations of at least 1, but got 1, 0, 1, 1: use 1 for a dense kernel."),
        ({"kernel_sizes": (3, 4, 3, 12)}, "Expected odd kernel sizes, but got 3, 4, 3, 12: use 3, 5, 3, 13."),
        ({"small_kernel_size": 2}, "Expected a small kernel of odd size up to 3, but got 2: use"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        make(**options)
