from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from widefield._core.errors import InputError
from widefield.analysis.kernel_plot import draw_kernel_weights
from widefield.analysis.kernel_weights import measure_kernel_weights
from widefield.nn import ReparamConv2d


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            nn.Conv2d(3, 3, 5),
            "Expected a network with a kernel of 7 or more, but got Conv2d, whose largest is 5: lower",
        ),
        (
            nn.Linear(3, 3),
            "Expected a network with a kernel of 7 or more, but got Linear without any: use a network of",
        ),
    ],
)
def test_networks_without_large_kernels(model: nn.Module, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        measure_kernel_weights(model)


def test_layers_that_are_not_there() -> None:
    model = timm.create_model("resnet18").eval()
    with pytest.raises(
        InputError, match="the name of a layer with a large kernel, but got 'conv2': did you mean 'conv1'"
    ):
        measure_kernel_weights(model, layers=["conv2"])


def test_weights_that_are_missing_or_not_finite() -> None:
    with pytest.raises(InputError, match="Expected a network with values, but got one on the meta device: make it on"):
        measure_kernel_weights(nn.Sequential(ReparamConv2d(4, 9, device="meta")))
    conv = nn.Conv2d(1, 1, 7)
    with torch.no_grad():
        conv.weight[0, 0, 3, 3] = torch.nan
    with pytest.raises(
        InputError, match="Expected kernels of finite numbers, but got some that are not in Conv2d: look"
    ):
        measure_kernel_weights(conv)


@pytest.mark.parametrize("share", [0, 1.5])
def test_shares_that_are_none(share: float) -> None:
    layer = measure_kernel_weights(nn.Conv2d(1, 1, 7))[0]
    with pytest.raises(InputError, match=f"Expected a share above 0 and up to 1, but got {share}: give, for instance"):
        layer.effective_size(share)


def test_a_page_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected at least one layer to draw, but got none: choose layers with large"):
        draw_kernel_weights(tmp_path / "page.png", [])
    assert not (tmp_path / "page.png").exists()
