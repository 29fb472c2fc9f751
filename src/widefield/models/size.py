"""How large a network is, before it is made: one that cannot be had is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield._core.memory import memory_bytes

_MOST_TENSORS = 20_000


def check_size(make: Callable[[], nn.Module], what: str, copies: int = 1) -> nn.Module:
    """Make a network without values and raise if its parameters do not fit into the memory of this machine.

    Args:
        make: Makes it.
        what: What it is, for the message.
        copies: How many times its parameters are going to be held, as for their gradients.

    Returns:
        The network on the meta device.

    Raises:
        InputError: If it does not fit; the message has the figure.
    """
    tensors = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors
        tensors += 1
        check(
            tensors <= _MOST_TENSORS,
            f"a network of at most {_MOST_TENSORS:,} tensors",
            f"{what} with more",
            "lower its depths",
        )

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = make()
    except RuntimeError as error:
        # Numbers of elements beyond 64 bits, negative sizes.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError("settings of which a network can be made", f"{what} ({reason})", "change them") from error
    finally:
        hook.remove()
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    needed, there = copies * parameters, memory_bytes()
    times = f" {copies} times" if copies > 1 else ""
    check(
        needed <= there,
        f"a network that fits into the {there / 1e9:.1f} GB of memory of this machine",
        f"{what}, whose {parameters / 1e9:,.1f} GB of parameters are needed{times}",
        "lower its kernel sizes, widths or depths, or use a machine with more memory",
    )
    return model
