from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from support.random_statistics import randomise
from timm.models._manipulate import group_parameters
from torch import Tensor

from widefield._core.errors import InputError
from widefield.checkpoints.slak import to_published
from widefield.models.slak import SLaK
from widefield.nn.decomposed_conv import MERGED_FORMS, DecomposedConv2d
from widefield.nn.reparam_conv import ReparamConv2d
from widefield.reparam import merge

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("slak_a", **{"num_classes": 10, **options})


def images(dtype: torch.dtype = torch.float32, size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


# With its first value, 1e-6, the layer scale would hide what the blocks do.
@pytest.mark.parametrize("form", [*MERGED_FORMS, None])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", LIMIT)
def test_a_merged_network_is_the_same_function(form: Any, layout: torch.memory_format, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"decomposed": False} if form is None else {"merged_form": form}
    model = randomise(make(layer_scale=1.0, dtype=dtype, **options)).to(memory_format=layout)
    x = images(dtype).contiguous(memory_format=layout)
    expected = model(x)
    report = merge(model, x)
    assert len(report.unit_errors) == sum((2, 2, 6, 2))
    assert report.relative_error < LIMIT[dtype]
    assert all(unit.relative_error < LIMIT[dtype] for unit in report.unit_errors)
    assert (model(x) - expected).abs().max() < LIMIT[dtype] * expected.abs().max()
    assert not any("gamma" in name or "running_mean" in name for name in model.state_dict())
    kernel = {"stripes": "merged_tall.weight", "cross": "merged.weight", None: "merged.weight"}[form]
    assert f"stages.2.blocks.5.large_kernel.{kernel}" in model.state_dict()
    again = merge(model, x)
    assert again.unit_errors == ()
    assert again.relative_error == 0


@pytest.mark.parametrize("form", MERGED_FORMS)
def test_a_merged_network_works_in_bfloat16(form: Any) -> None:
    model = randomise(make(layer_scale=1.0)).bfloat16()
    model.merged_form = form
    before = model(images(torch.bfloat16)).float()
    merge(model, images(torch.bfloat16))
    after = model(images(torch.bfloat16))
    assert after.dtype == torch.bfloat16
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert (after.float() - before).abs().max() < 0.05 * before.abs().max()


def test_the_merged_form_is_chosen_for_the_whole_network() -> None:
    model = randomise(make())
    assert model.merged_form == "stripes"
    model.merged_form = "cross"
    assert model.merged_form == "cross"
    merge(model.stages[0].blocks[0].large_kernel)
    merge(model, images())
    kernels = [layer for layer in model.modules() if isinstance(layer, DecomposedConv2d)]
    assert len(kernels) == 12
    assert all(layer.merged is not None and layer.merged_tall is None for layer in kernels)
    with pytest.raises(InputError, match=r"Expected the name of a merged form, but got 'crosses': did you mean 'cross"):
        model.merged_form = "crosses"


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({}, DecomposedConv2d),
        ({"decomposed": False}, ReparamConv2d),
        ({"decomposed": False, "small_kernel_size": None}, ReparamConv2d),
    ],
)
def test_every_parameter_gets_a_gradient(options: dict[str, Any], kernel: type) -> None:
    model = make(layer_scale=1.0, **options).train()
    assert sum(isinstance(layer, kernel) for layer in model.modules()) == 12
    y = model(images())
    assert y.shape == (2, 10)
    (y * torch.randn(10, generator=torch.Generator().manual_seed(2))).sum().backward()
    idle = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []
    assert all(torch.isfinite(value.grad).all() for value in model.parameters())


def test_checkpointing_gives_the_same_gradients() -> None:
    plain, saved = make(kernel_sizes=(7, 7, 7, 7)), make(kernel_sizes=(7, 7, 7, 7))
    saved.set_grad_checkpointing()
    for model in (plain, saved):
        model.train()(images()).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_a_stage_with_a_kernel_no_larger_than_the_small_one_has_no_small_one() -> None:
    for decomposed in (True, False):
        model = make(kernel_sizes=(7, 5, 3, 13), decomposed=decomposed)
        smalls = [stage.blocks[0].large_kernel.small is not None for stage in model.stages]
        assert smalls == [True, False, False, True]
        assert model(images(size=32)).shape == (2, 10)


def test_drop_path_grows_from_the_first_block_to_the_last() -> None:
    model = make(drop_path_rate=0.22)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.02 * block for block in range(12)])


def test_features_come_at_strides_4_to_32_and_with_norms_of_their_own() -> None:
    plain = make(features_only=True).eval()
    normed = make(features_only=True, feature_norms=True).eval()
    assert plain.feature_info.reduction() == [4, 8, 16, 32]
    for index, (a, b) in enumerate(zip(plain(images()), normed(images()), strict=True)):
        assert a.shape == (2, 40 * 2**index, 16 // 2**index, 16 // 2**index)
        torch.testing.assert_close(
            b, torch.nn.functional.layer_norm(a.movedim(1, -1), a.shape[1:2], eps=1e-6).movedim(-1, 1)
        )


def test_layers_for_learning_rate_decay_cover_the_network() -> None:
    model = make(device="meta")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == dict(model.named_parameters()).keys()
    assert set(layers.values()) == set(range(7))


def test_published_weights_come_from_a_file_for_any_number_of_classes(tmp_path: Any) -> None:
    source = randomise(make())
    path = tmp_path / "published.pth"
    torch.save({"model": to_published(source.state_dict())}, path)
    overlay = {"file": str(path), "num_classes": 10}
    same = make(pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(same(images()), source(images()), rtol=0, atol=0)
    other = make(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1).eval()
    assert other(images()[:, :1]).shape == (2, 7)
    given = source.stages.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in other.stages.state_dict().items())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"depths": (1, 1, 1)},
            "Expected one width, one depth and one kernel size for each stage, "
            "but got 4 widths, 3 depths and 4 kernel sizes: give as many of each.",
        ),
        ({"kernel_sizes": (51, 49, 46, 13)}, "Expected an odd kernel size, but got 46: use 47."),
        (
            {"small_kernel_size": None},
            "Expected a width for the stripes of a decomposed kernel, but got small_kernel_size=None: "
            "give one, for instance 5, or use decomposed=False.",
        ),
        ({"merged_form": "square"}, "Expected the name of a merged form, but got 'square': "),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        SLaK(device="meta", **options)


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernel_sises'"):
        make(kernel_sises=(3, 3, 3, 3))
