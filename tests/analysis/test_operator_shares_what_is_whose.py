from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.families import FAMILIES, Family
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.analysis.cost import measure_cost
from widefield.analysis.operator_shares import KINDS, kind_of, measure_shares
from widefield.models import create_model
from widefield.nn import DecomposedConv2d, DilatedReparamConv2d, GlobalResponseNorm, PeripheralConv2d
from widefield.ops import use_backend
from widefield.reparam import fold


class Known(nn.Module):
    """One operator of each kind on 12 x 10 pixels, called as modules and as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(8, 8, (1, 7), padding=(0, 3), groups=8, bias=False)
        self.small = nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 4, 1)
        self.dense = nn.Conv2d(4, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.response = GlobalResponseNorm(6)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.dense(self.pointwise(F.gelu(self.small(self.large(x))))))
        x = self.norm(self.response(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        x = F.conv_transpose2d(x, torch.ones_like(x[0, :, None, :3, :3]), stride=2, groups=6)
        return self.head(x.mean((2, 3)))


def test_multiply_accumulates_and_time_are_told_apart_by_kind() -> None:
    found = measure_shares(Known().eval(), torch.randn(2, 8, 12, 10), budget_s=0)
    pixels = 2 * 12 * 10
    assert found.macs == {
        "large depthwise": pixels * 8 * 7,
        "small depthwise": pixels * 8 * 25 + pixels * 6 * 9,
        "pointwise convolution": pixels * 8 * 4,
        "dense convolution": pixels * (4 * 6 * 9 + 6 * 2 * 9),
        "linear": 2 * 6 * 3,
        "norm": 0,
        "activation": 0,
        "other": 0,
    }
    total = sum(found.macs.values())
    assert found.of_macs == {kind: found.macs[kind] / total for kind in KINDS}
    assert all(share > 0 for share in found.of_time.values())
    assert sum(found.of_time.values()) == pytest.approx(1)
    assert (found.batch, found.runs, found.threads, found.device) == (2, 5, torch.get_num_threads(), "cpu")
    plain = found.to_plain()
    assert list(plain["kinds"]) == list(KINDS)
    assert plain["kinds"]["linear"]["share_of_time"] == found.of_time["linear"]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_sums_are_the_cost_of_every_family(family: Family, merged: bool) -> None:
    model = family.make().eval()
    if merged:
        fold(model)
    found, cost = (
        measure_shares(model, torch.randn(1, 3, 64, 64), warmup=0, budget_s=0),
        measure_cost(model, (1, 3, 64, 64)),
    )
    assert sum(found.macs.values()) == cost.total.macs
    depthwise = found.macs["large depthwise"] + found.macs["small depthwise"]
    assert depthwise >= cost.large_kernel_macs > 0
    assert found.milliseconds["large depthwise"] > 0


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_other_networks_are_told_apart_too(name: str) -> None:
    options: dict[str, Any] = {"img_size": 32} if name.startswith("vit") else {}
    model = create_model(name, **options).eval()
    found, cost = measure_shares(model, torch.randn(1, 3, 32, 32), budget_s=0), measure_cost(model, (1, 3, 32, 32))
    assert sum(found.macs.values()) == cost.total.macs
    assert found.macs["large depthwise"] == found.macs["small depthwise"] == 0
    assert found.of_macs["linear" if name.startswith("vit") else "dense convolution"] > 0.9
    assert found.of_time["norm"] > 0
    assert found.of_time["activation"] > 0


@pytest.mark.parametrize("backend", ["fft", "channels_last", "transposed"])
def test_whatever_computes_it_our_operator_is_a_depthwise_convolution(backend: Any) -> None:
    layer = DilatedReparamConv2d(8, 13).eval()
    fold(layer)
    with use_backend(backend):
        found = measure_shares(layer, torch.randn(1, 8, 20, 20), budget_s=0)
    assert found.of_time["large depthwise"] == found.of_macs["large depthwise"] == 1


@pytest.mark.parametrize("layer", [DecomposedConv2d(8, 31, 5), PeripheralConv2d(8, 31, position="kernel")])
def test_all_that_a_depthwise_layer_computes_is_its_own(layer: nn.Module) -> None:
    found = measure_shares(nn.Sequential(layer).eval(), torch.randn(1, 8, 40, 40), budget_s=0)
    assert found.of_time["other"] == found.of_time["linear"] == 0
    assert found.of_macs["large depthwise"] + found.of_macs["small depthwise"] == 1
    # Stripes and square have norms, the peripheral kernel has none.
    assert (found.of_time["norm"] > 0) is isinstance(layer, DecomposedConv2d)


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("widefield::depthwise_conv_forward", ((1, 4, 9, 9), (4, 1, 3, 9)), "large depthwise"),
        ("widefield::depthwise_conv_grad_input", ((1, 4, 9, 9), (4, 1, 5, 5)), "small depthwise"),
        (
            "widefield::peripheral_conv_forward",
            ((1, 4, 9, 9), (4, 1, 3, 3), None, [3, 1, 3], [1, 1, 1]),
            "large depthwise",
        ),
        ("aten::convolution", ((1, 4, 9, 9), (4, 1, 3, 3), None, [1], [1], [1], False, [0], 4), "small depthwise"),
        ("aten::convolution", ((1, 4, 9, 9), (8, 1, 3, 3), None, [1], [1], [1], False, [0], 4), "dense convolution"),
        ("aten::convolution", ((1, 1, 9, 9), (1, 1, 7, 7), None, [1], [1], [1], False, [0], 1), "dense convolution"),
        ("aten::mkldnn_convolution", ((1, 4, 9), (4, 1, 7), None, [3], [1], [1], 4), "large depthwise"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", (), "linear"),
        ("aten::addmm", (), "linear"),
        ("aten::native_group_norm", (), "norm"),
        ("aten::hardswish_", (), "activation"),
        ("aten::_softmax", (), "activation"),
        ("aten::mean", (), "other"),
    ],
)
def test_operators_are_known_by_name_and_shape(name: str, args: tuple[Any, ...], kind: str) -> None:
    tensors = [torch.empty(value, device="meta") if isinstance(value, tuple) else value for value in args]
    assert kind_of(name, tensors) == kind


def test_a_network_that_looks_at_values_is_really_run() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x if x.sum().item() < 1e9 else -x)

    found = measure_shares(Looking().eval(), torch.randn(3, 4), budget_s=0)
    assert found.macs["linear"] == sum(found.macs.values()) == 24


def test_nothing_of_the_network_changes() -> None:
    model = Known().eval()
    x = torch.randn(1, 8, 6, 6)
    before = model(x)
    measure_shares(model, x, budget_s=0)
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_network_without_products_has_shares_of_time_alone() -> None:
    found = measure_shares(nn.Sequential(nn.ReLU()).eval(), torch.randn(1, 2), budget_s=0)
    assert set(found.of_macs.values()) == {0.0}
    assert found.of_time["activation"] == 1


def test_what_cannot_be_timed_is_refused() -> None:
    text = "Expected a network in evaluation mode to time, but got one in training mode: call model.eval() first."
    with pytest.raises(InputError, match=re.escape(text)):
        measure_shares(Known().train(), torch.randn(1, 8, 6, 6))
    with pytest.raises(InputError, match=r"Expected positive numbers, but got -1 and 5.0: raise warmup and budget_s."):
        measure_shares(Known().eval(), torch.randn(1, 8, 6, 6), warmup=-1)
