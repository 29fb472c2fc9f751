"""How the operators run on `DTensor`s: spread over the batch or over the channels, each process on its own part.

torch's machinery for distributed tensors is imported when the first of them arrives.
"""

# What tells apart calls in the cache of torch's placements can be set on a private object alone.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import sys
from functools import lru_cache
from typing import Any

import torch

_MODULE = "torch.distributed.tensor"


def prepare() -> bool:
    """Tell torch how the operators are spread, once, if distributed tensors are in use."""
    if _MODULE in sys.modules:
        _register()
    return True


# What `torch.compiler.assume_constant_result` would say: compilation runs it and goes on. That imports the compiler.
prepare._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@lru_cache(maxsize=1)
def _register() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    batch, channels, kernels, same = Shard(0), Shard(1), Shard(0), Replicate()
    operators = torch.ops.widefield

    def of_image_and_kernel(image: Any, kernel: Any, *rest: Any) -> list[tuple[list[Any], list[Any]]]:
        """Forward and the input's gradient."""
        others = [None] * len(rest)
        return [
            ([same], [same, same, *others]),
            ([batch], [batch, same, *others]),
            ([channels], [channels, kernels, *others]),
        ]

    def of_image_kernel_and_bias(image: Any, kernel: Any, bias: Any, *rest: Any) -> list[tuple[list[Any], list[Any]]]:
        others = [None] * len(rest)
        whole, part = (None, None) if bias is None else (same, kernels)
        return [
            ([same], [same, same, whole, *others]),
            ([batch], [batch, same, whole, *others]),
            ([channels], [channels, kernels, part, *others]),
        ]

    def of_two_images(grad: Any, image: Any, *rest: Any) -> list[tuple[list[Any], list[Any]]]:
        """The kernel's gradient: a sum over the batch."""
        others = [None] * len(rest)
        return [
            ([same], [same, same, *others]),
            ([Partial()], [batch, batch, *others]),
            ([kernels], [channels, channels, *others]),
        ]

    rules = (
        (operators.depthwise_conv_forward, of_image_kernel_and_bias, 3),
        (operators.depthwise_conv_grad_input, of_image_and_kernel, 2),
        (operators.depthwise_conv_grad_weight, of_two_images, 2),
        (operators.peripheral_conv_forward, of_image_kernel_and_bias, 3),
        (operators.peripheral_conv_grad_input, of_image_and_kernel, 2),
        (operators.peripheral_conv_grad_cells, of_two_images, 2),
    )
    for operator, rule, tensors in rules:
        register_sharding(operator.default)(rule)
        _tell_apart(operator.default, tensors)


def _tell_apart(operator: Any, tensors: int) -> None:
    """Let torch remember placements and shapes by all arguments behind the tensors: it takes no lists of its own."""
    from torch.distributed.tensor import DTensor

    known: dict[Any, Any] = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    known[operator] = dataclasses.replace(known[operator], static_argnum=tensors)
