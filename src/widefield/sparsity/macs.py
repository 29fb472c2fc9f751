"""Multiply-accumulates of a forward pass, by the parameter that is multiplied with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MacCount:
    """The multiply-accumulates of one forward pass."""

    by_parameter: dict[str, int]
    """Those with each parameter that there are any with."""

    other: int
    """Those between activations, or with a kernel that is computed from parameters first."""


class _Counter(TorchDispatchMode):
    """Sees every operator, also those of functions that no module is called for."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        # Operators with formulas of their own look for a counter with a registry, as torch's `FlopCounterMode` is one.
        self.counter = self
        self.flop_registry: dict[Any, Any] = dict(flop_registry)
        self.by_parameter = dict.fromkeys(parameters, 0)
        self.other = 0
        self._names = {_storage(tensor): name for name, tensor in reversed(parameters.items())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        output = func(*args, **kwargs)
        if packet not in self.flop_registry:
            return output
        macs = self.flop_registry[packet](*args, **kwargs, out_val=output) // 2
        operands = (self._names.get(_storage(arg)) for arg in args if isinstance(arg, Tensor) and arg.dim() > 1)
        name = next((name for name in operands if name is not None), None)
        if name is None:
            self.other += macs
        else:
            self.by_parameter[name] += macs
        return output


def count_macs(model: nn.Module, example: Tensor) -> MacCount:
    """Count the multiply-accumulates of `model(example)` in evaluation mode, zero padding included.

    It runs on the meta device, so that it costs no time; a model that cannot, because its forward looks at values, is
    really run.

    Args:
        model: Any module; nothing of it changes.
        example: Its input, (1, C, H, W) for the cost of one image; only the shape and type matter.

    Returns:
        Counts as torch's `FlopCounterMode` has them, halved, for each parameter.
    """
    # In inference mode an operator such as `linear` would be seen before it is taken apart.
    with _in_evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        state = _on_meta(model)
        parameters = {name: state[name] for name, _ in model.named_parameters()}
        try:
            return _count(model, parameters, state, example.to("meta"))
        except Exception:
            # Whatever is wrong with the example or the model itself comes up again in the real run.
            logger.debug("%s does not run on the meta device", type(model).__name__, exc_info=True)
            return _count(model, dict(model.named_parameters()), {}, example)


def _count(model: nn.Module, parameters: dict[str, Tensor], state: dict[str, Tensor], example: Tensor) -> MacCount:
    counter = _Counter(parameters)
    with counter:
        # What is tied is tied in the state; torch's own way loses the parameters of a module under two names.
        torch.func.functional_call(model, state, (example,), tie_weights=False)
    return MacCount(by_parameter={name: n for name, n in counter.by_parameter.items() if n}, other=counter.other)


def _on_meta(model: nn.Module) -> dict[str, Tensor]:
    """Return a tensor without values for each parameter and buffer of each module, one for all that are tied."""
    twins: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                twin = twins.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
                state[f"{prefix}.{name}" if prefix else name] = twin
    return state


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
