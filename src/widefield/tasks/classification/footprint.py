"""The least memory that a training step takes, so that sizes that cannot be had are refused before anything is written.

What really is taken is more, and found by `--memory-limit` on the device itself.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield._core.memory import memory_bytes

_FLOAT_BYTES = 4


def check_step_fits(
    model: nn.Module, image_size: int, batch: int, device: torch.device, *, is_low_precision: bool, keeps_inputs: bool
) -> None:
    """Raise if the images of a step, and what its backward pass needs of the forward pass, exceed the memory.

    Counted are the images and, once each, the inputs of layers with matrices or kernels, of which the gradients of
    these are made.

    Args:
        model: The network.
        image_size: Height and width of the images, which it takes.
        batch: Images of one step of one process.
        device: Where the step is taken.
        is_low_precision: Whether these inputs have 16 bits.
        keeps_inputs: Whether they are kept; with gradient checkpointing most are not.

    Raises:
        InputError: If they do not fit; the message has the figures.
    """
    images = 3 * image_size**2 * _FLOAT_BYTES
    kept = _input_bytes(model, image_size) // (2 if is_low_precision else 1) if keeps_inputs else 0
    needed = batch * (images + kept)
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()
    check(
        needed <= there,
        f"a step of {batch:,} images of {image_size} px that fits into {there / 1e9:.1f} GB of memory",
        f"at least {needed / 1e9:,.1f} GB that it needs",
        "lower data.image_size or data.batch_size, or find a batch with --memory-limit",
    )


def _input_bytes(model: nn.Module, image_size: int) -> int:
    """Bytes of what the layers of a network are given for one image, in float32."""
    given: dict[int, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[object, ...]) -> None:
        # The tensors stay here, so that no other has their identity.
        given.update({id(value): value for value in inputs if isinstance(value, Tensor)})

    probe = copy.deepcopy(model).to("meta").eval()
    for module in probe.modules():
        own = list(module.parameters(recurse=False))
        if any(parameter.dim() > 1 for parameter in own):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        probe(torch.empty(1, 3, image_size, image_size, device="meta"))
    return sum(cast("int", tensor.numel()) * _FLOAT_BYTES for tensor in given.values())
