from __future__ import annotations

import json

import pytest
import timm
import torch
from support.families import FAMILIES, Family
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from widefield._core.errors import InputError
from widefield.analysis.cost import Cost, measure_cost
from widefield.analysis.latency import measure_latency
from widefield.reparam import fold


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()])
        self.head = nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return self.head(x.flatten(1))


def test_a_small_network_is_counted_by_hand() -> None:
    found = measure_cost(SmallNet(), (2, 3, 8, 8))
    # Bytes of float32: two images, two maps of 8 channels, parameters.
    image, maps, conv, bias, matrix = 4 * 2 * 3 * 64, 4 * 2 * 8 * 64, 4 * 8 * 27, 4 * 8, 4 * 512 * 5
    body = found.module("body.0")
    assert (body.kind, body.parameters, body.macs) == ("Conv2d", 8 * 27 + 8, 2 * 64 * 8 * 27)
    assert (body.output_bytes, body.moved_bytes) == (maps, image + conv + bias + maps)
    relu = found.module("body.1")
    assert (relu.macs, relu.output_bytes, relu.moved_bytes, relu.intensity) == (0, maps, 2 * maps, 0)
    head = found.module("head")
    assert (head.macs, head.output_bytes, head.moved_bytes) == (2 * 512 * 5, 40, maps + matrix + 20 + 40)
    assert head.intensity == pytest.approx(2 * head.macs / head.moved_bytes)
    # A list is never called: it has what its members have.
    assert found.module("body").macs == body.macs
    assert found.module("body").moved_bytes == body.moved_bytes + relu.moved_bytes
    assert found.total.macs == body.macs + head.macs
    assert found.total.output_bytes == 2 * maps + 40
    # The image stays, and the ReLU has its operand and its result at once.
    assert found.peak_bytes == image + 2 * maps
    assert [module.depth for module in found.modules] == [0, 1, 2, 2, 1]
    assert found.large_kernel_layers == 0
    assert found.large_kernel_mac_share == found.large_kernel_parameter_share == 0


@pytest.mark.parametrize("is_merged", [False, True], ids=["branched", "merged"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_macs_of_all_families_are_those_of_torchs_counter(family: Family, is_merged: bool) -> None:
    model = family.make(device="meta").eval()
    if is_merged:
        fold(model)
    agrees(model, (2, 3, 64, 64))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_macs_of_timms_models_are_those_of_torchs_counter(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    agrees(model, (1, 3, 224, 224))


def agrees(model: nn.Module, size: tuple[int, ...]) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(size, device="meta"))
    found = measure_cost(model, size)
    flops = counter.get_flop_counts()
    assert found.total.flops == counter.get_total_flops() > 0
    for module in found.modules[1:]:
        counted = flops.get(f"{type(model).__name__}.{module.name}")
        if counted is not None:
            assert module.flops == sum(counted.values()), module.name


class LooksAtValues(SmallNet):
    """Cannot run on the meta device."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) >= 0 else -x)


def test_a_network_that_looks_at_values_is_really_run_and_left_as_it_was() -> None:
    model = LooksAtValues().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    looking, plain = measure_cost(model, (1, 3, 8, 8)), measure_cost(SmallNet(), (1, 3, 8, 8))
    assert looking.total.macs == plain.total.macs
    assert looking.module("head") == plain.module("head")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_zeros_are_left_out_of_matrices_and_tied_parameters_are_counted_once() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    with torch.no_grad():
        first.weight[:, 0] = 0
        first.bias.zero_()
    model = nn.Sequential(first, second)
    found = measure_cost(model, (1, 6))
    assert (found.total.parameters, found.total.nonzeros) == (36 + 12, 30 + 12)
    assert (found.module("1").parameters, found.module("1").nonzeros) == (42, 36)
    assert found.total.macs == 72
    assert measure_cost(model.to("meta"), (1, 6)).total.nonzeros is None


def test_large_kernels_have_the_share_of_their_taps() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 9, padding=4, groups=4, bias=False),
        nn.Conv2d(4, 4, 9, padding=4, bias=False),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False),
    )
    found = measure_cost(model, (1, 4, 10, 10))
    assert found.large_kernel_layers == 1
    assert (found.large_kernel_parameters, found.large_kernel_macs) == (4 * 81, 4 * 81 * 100)
    assert found.large_kernel_mac_share == pytest.approx(4 * 81 / (4 * 81 + 16 * 81 + 4 * 25))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_large_kernels_of_a_merged_network_have_one_mac_for_each_tap_and_location(family: Family) -> None:
    model = family.make(device="meta").eval()
    fold(model)
    taps: list[int] = []

    def count(layer: nn.Conv2d, _: object, output: Tensor) -> None:
        if layer.groups == layer.in_channels and max(layer.kernel_size) >= 7:
            taps.append(output.numel() * layer.weight[0].numel())

    if family.variant == "slak_a":
        # Its stripes are two operands of one function.
        taps += [int(2 * 5 * size * channels * side**2) for size, channels, side in _SLAK_LAYERS]
    handles = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        model(torch.empty(1, 3, 64, 64, device="meta"))
    for handle in handles:
        handle.remove()
    assert measure_cost(model, (1, 3, 64, 64)).large_kernel_macs == sum(taps)


# Stripe length, channels and side of the map of each block.
_SLAK_LAYERS = ((51, 16, 16), (49, 24, 8), (47, 32, 4), (47, 32, 4), (13, 40, 2))


def test_figures_can_be_kept() -> None:
    found = measure_cost(SmallNet(), (1, 3, 8, 8))
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["macs"] == found.total.macs
    assert plain["modules"][0]["name"] == ""
    assert [module["macs"] for module in plain["modules"]] == [module.macs for module in found.modules]
    with pytest.raises(KeyError):
        found.module("tail")


def test_an_input_that_the_network_does_not_take() -> None:
    with pytest.raises(InputError, match=r"Expected an input that SmallNet takes, but got one of size \(1, 4, 8, 8\)"):
        measure_cost(SmallNet(), (1, 4, 8, 8))
    swin = timm.create_model("swin_tiny_patch4_window7_224", device="meta")
    with pytest.raises(InputError, match=r"\(AssertionError: Input height .*: give the size that it was made for\."):
        measure_cost(swin, (1, 3, 160, 160))


def test_latency_is_told_by_quantiles_in_order() -> None:
    found = measure_latency(SmallNet().eval(), torch.zeros(3, 3, 8, 8), warmup=1, budget_s=0.02)
    times = (found.p05_ms, found.p25_ms, found.median_ms, found.p75_ms, found.p95_ms)
    assert list(times) == sorted(times)
    assert times[0] > 0
    assert (found.batch, found.threads, found.device) == (3, torch.get_num_threads(), "cpu")
    assert 5 <= found.runs <= 1000
    assert found.images_per_s == pytest.approx(3 / (found.median_ms / 1000))


def test_latency_of_what_cannot_be_timed() -> None:
    model = SmallNet()
    with pytest.raises(
        InputError, match="Expected a network in evaluation mode to time, but got one in training mode:"
    ):
        measure_latency(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"Expected positive numbers, but got -1 and 5\.0: raise warmup and budget_s"):
        measure_latency(model.eval(), torch.zeros(1, 3, 8, 8), warmup=-1)


def test_costs_of_nothing_are_not_drawn(tmp_path) -> None:
    from widefield.analysis.cost_plot import draw_costs

    costs: dict[str, Cost] = {}
    with pytest.raises(InputError, match="Expected at least one network to draw, but got none: measure its cost first"):
        draw_costs(tmp_path / "bars.png", costs)
