from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from support.golden import half_units, image, record, state
from torch import Tensor, nn

from widefield.checkpoints.slak import to_widefield
from widefield.models.slak import VARIANTS, SLaK
from widefield.nn.decomposed_conv import MERGED_FORMS
from widefield.reparam import fold

RECORD = record("slak_t")

# Parameters; millions of them that remain at a sparsity of 40 %; GMACs when dense at 224 pixels.
PUBLISHED = {
    "slak_t": (50_703_838, "30.5", "8.70"),
    "slak_s": (91_131_820, "54.8", "16.60"),
    "slak_b": (157_950_792, "94.9", "28.51"),
}
# The study of kernel sizes with SLaK-T: millions of parameters, GMACs.
STUDY: dict[tuple[int, ...], tuple[str, str]] = {
    (31, 29, 27, 13): ("49.58", "8.18"),
    (61, 59, 57, 13): ("51.26", "8.97"),
}


@pytest.fixture(scope="module")
def published() -> SLaK:
    model = timm.create_model("slak_t", device="meta").double()
    assert isinstance(model, SLaK)
    model.load_state_dict(to_widefield(state(RECORD["state"])), assign=True)
    return model.eval()


@torch.no_grad()
def test_stages_and_logits_are_those_of_the_published_code(published: SLaK) -> None:
    features, stages = published.forward_intermediates(image(RECORD["input"]))
    assert isinstance(features, Tensor)
    logits = published.forward_head(features)
    for stage, recorded in zip(stages, RECORD["stages"], strict=True):
        assert isinstance(stage, Tensor)
        assert list(stage.shape) == recorded["shape"]
        assert stage.norm().item() == pytest.approx(recorded["norm"], rel=1e-10)
        check_values(stage[0, :8, 0, 0], recorded["head"])
    assert logits.norm().item() == pytest.approx(RECORD["logits_norm"], rel=1e-10)
    for row, recorded in zip(logits, RECORD["logits"], strict=True):
        check_values(row[:32], recorded)


@pytest.mark.slow
@torch.no_grad()
def test_float32_and_both_merged_forms_stay_close_to_the_record(published: SLaK) -> None:
    x = image(RECORD["input"])[:1].float()
    recorded = torch.tensor(RECORD["logits"][0], dtype=torch.float64)
    branched = copy.deepcopy(published).float()
    merged: dict[Any, SLaK] = {form: copy.deepcopy(published) for form in MERGED_FORMS}
    for form, model in merged.items():
        model.merged_form = form
        fold(model)
    for model in (branched, *merged.values()):
        error = (model.float()(x)[0, :32].double() - recorded).norm() / recorded.norm()
        assert error < 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiplications_are_those_of_the_paper(name: str) -> None:
    count, sparse, gmacs = PUBLISHED[name]
    model = timm.create_model(name, device="meta")
    assert all(value.is_meta for value in model.state_dict().values())
    assert parameters(model) == count
    maskable = sum(value.numel() for value in model.parameters() if value.dim() in (2, 4))
    assert fits((count - 0.4 * maskable) / 1e6, sparse)
    assert fits(macs(model, 224) / 1e9, gmacs)


@pytest.mark.parametrize("kernel_sizes", STUDY)
def test_other_kernel_sizes_cost_what_the_study_states(kernel_sizes: tuple[int, ...]) -> None:
    millions, gmacs = STUDY[kernel_sizes]
    model = timm.create_model("slak_t", kernel_sizes=kernel_sizes, device="meta")
    assert fits(parameters(model) / 1e6, millions)
    assert fits(macs(model, 224) / 1e9, gmacs)


def test_the_base_network_at_384_pixels_costs_what_the_paper_states() -> None:
    assert fits(macs(timm.create_model("slak_b", device="meta"), 384) / 1e9, "83.8")


def test_our_own_variant_has_the_size_that_its_docstring_states() -> None:
    count = parameters(timm.create_model("slak_a", device="meta")) / 1e6
    assert f"ours: {count:.1f}M parameters" in str(timm.model_entrypoint("slak_a").__doc__)
    assert count < 6
    assert list(VARIANTS) == ["slak_a", *PUBLISHED, "slak_l"]


def test_the_large_network_has_the_size_that_its_docstring_states() -> None:
    model: Any = timm.create_model("slak_l", device="meta")
    assert [stage.blocks[0].gamma.numel() for stage in model.stages] == [249, 499, 998, 1996]
    assert [len(stage.blocks) for stage in model.stages] == [3, 3, 27, 3]
    stated = f"{parameters(model) / 1e6:.0f}M parameters and {macs(model, 224) / 1e9:.1f} GMACs"
    assert stated in str(timm.model_entrypoint("slak_l").__doc__)


def test_the_first_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("slak_a", head_init_scale=0.5)
    block = model.stages[3].blocks[1]
    kernels = [block.large_kernel.tall.conv, block.large_kernel.wide.conv, block.fc1, block.fc2]
    assert all(layer.weight.std().item() == pytest.approx(0.02, rel=0.1) for layer in kernels)
    assert all(layer.bias.abs().max() == 0 for layer in (block.fc1, block.fc2, model.head.fc, model.stem[0]))
    assert torch.equal(block.gamma, torch.full((320,), 1e-6))
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.1)


def check_values(actual: Tensor, recorded: list[float]) -> None:
    """To half a unit of the last recorded digit."""
    difference = (actual - torch.tensor(recorded, dtype=torch.float64)).abs()
    assert (difference <= half_units(recorded)).all()


def fits(value: float, printed: str) -> bool:
    """Whether `value` rounds to the printed digits."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image."""
    counts: list[int] = []

    def count(layer: Any, _: Any, output: Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return sum(counts)
