"""Problems on which PyTorch's own CPU kernels never end, crash or compute something else, and the way round each.

Found by drawing problems and comparing with float64: torch 2.15 with oneDNN on AVX-512 with bfloat16. Each class is
wider than what was seen to fail, and is taken on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem

HALF = (torch.bfloat16, torch.float16)

MOST_CHANNELS = 32
"""Up to which a forward pass may never end; seen up to 16."""

WIDEST_KERNEL = 9
"""From the next kernel width on a forward pass may never end; seen from 14 on."""


def may_not_end(problem: Problem) -> bool:
    """Whether ``forward`` may loop for ever, if images or kernels lie as channels_last: use float32.

    Seen in bfloat16 with 2 to 16 channels, stride 1, kernel rows of at least 14 and output rows of at least 31.
    """
    is_small = 1 < problem.channels <= MOST_CHANNELS and problem.kernel_size[1] > WIDEST_KERNEL
    return problem.device_type == "cpu" and problem.dtype in HALF and is_small


def is_rounded_wrongly(problem: Problem) -> bool:
    """Whether ``grad_weight`` may be another number altogether: use float32.

    Seen in bfloat16 with a dilation, channels_last and rows of at least 30.
    """
    return problem.device_type == "cpu" and problem.dtype in HALF and problem.dilation != (1, 1)


def is_out_of_bounds(problem: Problem) -> bool:
    """Whether ``grad_weight`` may read and write outside its tensors: give it a second channel.

    Seen in float32 with one channel, which PyTorch does not run as a depthwise convolution, and kernels that reach
    about an image's height beyond it.
    """
    return problem.device_type == "cpu" and problem.channels == 1 and max(problem.kernel_size) > 1


def is_any(problem: Problem, pass_: Pass) -> bool:
    """Whether PyTorch's own kernel for the map is to be called with care."""
    if pass_ == "grad_weight":
        return is_rounded_wrongly(problem) or is_out_of_bounds(problem)
    return pass_ == "forward" and may_not_end(problem)


def is_plain_nchw(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch takes neither for channels_last."""
    # A kernel (C, 1, K_h, K_w) counts as contiguous in both formats; its strides tell how it is taken.
    is_image = x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    return is_image and weight.is_contiguous() and weight.stride(1) != 1
