"""More elements than a 32-bit index can count: minutes and gigabytes."""

from __future__ import annotations

import pytest
import torch

from widefield.ops import depthwise_conv2d, use_backend


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", ["fft", "dft"])
def test_more_than_2_to_the_31_elements_are_convolved(backend: str) -> None:
    one = torch.randn(1, 16, 32, 32).bfloat16()
    weight = torch.randn(16, 1, 9, 9).bfloat16()
    images = 2**31 // one.numel() + 3
    with torch.no_grad(), use_backend(backend):
        y = depthwise_conv2d(one.expand(images, -1, -1, -1), weight)
        expected = depthwise_conv2d(one, weight)
    assert y.numel() > 2**31
    for index in (0, images // 2, images - 2, images - 1):
        torch.testing.assert_close(y[index : index + 1], expected, rtol=0.02, atol=0.02)
