from __future__ import annotations

import pytest
import torch

from widefield.nn.squeeze_excite import SqueezeExcite


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_channel_of_an_image_is_multiplied_by_one_weight(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = SqueezeExcite(8, 3, dtype=torch.float64)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64).contiguous(memory_format=layout)
    assert layer.down.bias is not None
    assert layer.up.bias is not None
    mean = x.mean((2, 3))
    hidden = torch.relu(mean @ layer.down.weight[:, :, 0, 0].T + layer.down.bias)
    weights = 1 / (1 + torch.exp(-(hidden @ layer.up.weight[:, :, 0, 0].T + layer.up.bias)))
    y = layer(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, x * weights[:, :, None, None], rtol=1e-12, atol=1e-12)


def test_its_parameters_are_two_convolutions_and_learn() -> None:
    torch.manual_seed(0)
    layer = SqueezeExcite(8, 4)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "down.weight": (4, 8, 1, 1),
        "down.bias": (4,),
        "up.weight": (8, 4, 1, 1),
        "up.bias": (8,),
    }
    means = 3 * torch.randn(4, 8, 1, 1)
    layer(means + torch.randn(4, 8, 5, 6)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    assert all(parameter.is_meta for parameter in SqueezeExcite(8, 4, device="meta").parameters())
