"""What a network costs: parameters, multiply-accumulates, memory and traffic of one forward pass, module by module."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.analysis.large_kernels import large_kernels
from widefield.analysis.traffic import Traffic

logger = logging.getLogger(__name__)

MIN_SIZE = 7
"""From which size on a depthwise kernel counts as a large one."""


@dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """One module, with all that is below it."""

    name: str
    """Its path in the network; empty for the network itself."""
    kind: str
    """Its class."""
    parameters: int
    """Elements of its parameters, tied ones counted once."""
    nonzeros: int | None
    """Those that are not zero in tensors of two or more dimensions, and all of the others, as in SLaK's tables; none
    without values."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products, those of attention and of padding included."""
    output_bytes: int
    """Of all operators' results, views left out: about what training keeps for the backward pass."""
    moved_bytes: int
    """Operands, parameters included, and results of all operators: what memory carries if no operator is fused with
    another and nothing is found in a cache."""

    @property
    def flops(self) -> int:
        """Two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that is moved (Williams et al., 2009, the roofline model); 0 where nothing is moved."""
        return self.flops / self.moved_bytes if self.moved_bytes else 0.0

    @property
    def depth(self) -> int:
        """0 for the network, 1 for its children."""
        return self.name.count(".") + 1 if self.name else 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A network and all its modules."""

    input_size: tuple[int, ...]
    """(N, C, H, W): everything but the parameters is for the whole batch."""
    modules: tuple[ModuleCost, ...]
    """The network first, then its modules in the order of the network."""
    peak_bytes: int
    """Most bytes of activations alive at a time in inference: input and results, no parameters and no scratch memory
    within an operator."""
    large_kernel_layers: int
    """Number of depthwise layers with kernels of 7 or more, each with its branches and their norms."""
    large_kernel_parameters: int
    """Parameters in them."""
    large_kernel_macs: int
    """Multiply-accumulates in them."""

    @property
    def total(self) -> ModuleCost:
        """The whole network."""
        return self.modules[0]

    @property
    def large_kernel_parameter_share(self) -> float:
        """Share of all parameters."""
        return self.large_kernel_parameters / max(self.total.parameters, 1)

    @property
    def large_kernel_mac_share(self) -> float:
        """Share of all multiply-accumulates."""
        return self.large_kernel_macs / max(self.total.macs, 1)

    def module(self, name: str) -> ModuleCost:
        """Return one module by its path.

        Raises:
            KeyError: If there is none.
        """
        return {module.name: module for module in self.modules}[name]

    def to_plain(self) -> dict[str, Any]:
        """Return all figures as plain values for a JSON file."""
        return {
            "input_size": list(self.input_size),
            "parameters": self.total.parameters,
            "nonzeros": self.total.nonzeros,
            "macs": self.total.macs,
            "output_bytes": self.total.output_bytes,
            "peak_bytes": self.peak_bytes,
            "moved_bytes": self.total.moved_bytes,
            "intensity": self.total.intensity,
            "large_kernel_layers": self.large_kernel_layers,
            "large_kernel_parameters": self.large_kernel_parameters,
            "large_kernel_macs": self.large_kernel_macs,
            "modules": [
                {
                    "name": module.name,
                    "kind": module.kind,
                    "parameters": module.parameters,
                    "nonzeros": module.nonzeros,
                    "macs": module.macs,
                    "output_bytes": module.output_bytes,
                    "moved_bytes": module.moved_bytes,
                }
                for module in self.modules
            ],
        }


def measure_cost(model: nn.Module, input_size: Sequence[int] = (1, 3, 224, 224)) -> Cost:
    """Count what a forward pass in evaluation mode costs.

    Multiply-accumulates are those of torch's `FlopCounterMode`, halved. This is how the papers count: all convolutions
    and linear layers, and the two matrix products of attention, as Swin's published figures have them. Norms,
    activations and pooling are left out. The network runs on the meta device, so that it takes no time and no memory;
    one that cannot, because its forward looks at values, is really run.

    Args:
        model: Any module; nothing of it changes.
        input_size: Of its one input, (N, C, H, W) for images.

    Returns:
        The network's cost, module by module. A module that is called through another name, or whose parameters are used
        without calling it, has its parameters alone; the module that does so has the rest.

    Raises:
        InputError: If the network does not run with such an input.
    """
    size = tuple(input_size)
    counted = _count(model, size)
    rows = [
        ModuleCost(
            name=name,
            kind=type(module).__name__,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            nonzeros=_nonzeros(module),
            macs=counted.of(module, name, counted.macs),
            output_bytes=counted.of(module, name, counted.written),
            moved_bytes=counted.of(module, name, counted.moved),
        )
        for name, module in model.named_modules()
    ]
    by_name = {row.name: row for row in rows}
    large = [by_name[layer.name] for layer in large_kernels(model, MIN_SIZE) if layer.is_depthwise]
    return Cost(
        input_size=size,
        modules=tuple(rows),
        peak_bytes=counted.peak,
        large_kernel_layers=len(large),
        large_kernel_parameters=sum(row.parameters for row in large),
        large_kernel_macs=sum(row.macs for row in large),
    )


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """By the path of each module that was called."""

    macs: Mapping[str, int]
    moved: Mapping[str, int]
    written: Mapping[str, int]
    peak: int

    def of(self, module: nn.Module, name: str, counts: Mapping[str, int]) -> int:
        """Return what was counted in a module; of one that is not called, as a list is not, in its children."""
        if name in self.moved:
            return counts.get(name, 0)
        children = module.named_children()
        return sum(self.of(child, f"{name}.{leaf}" if name else leaf, counts) for leaf, child in children)


def _count(model: nn.Module, size: tuple[int, ...]) -> _Counted:
    floating = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    like = next(floating, torch.empty(0))
    try:
        return _run(twin(model, "meta"), torch.zeros(size, dtype=like.dtype, device="meta"))
    except Exception:
        # Whatever is wrong with the input or the model itself comes up again in the real run.
        logger.debug("%s does not run on the meta device", type(model).__name__, exc_info=True)
    try:
        return _run(twin(model, None), torch.zeros(size, dtype=like.dtype, device=like.device))
    except Exception as error:
        # A network of somebody else's may refuse an input by any exception at all.
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"an input that {type(model).__name__} takes",
            f"one of size {size} ({type(error).__name__}: {reason.rstrip('.')})",
            "give the size that it was made for",
        ) from error


@torch.no_grad()
def _run(model: nn.Module, example: Tensor) -> _Counted:
    # It brings Triton along, where that is installed.
    from torch.utils.flop_counter import FlopCounterMode

    # In inference mode composite operators would not be taken apart.
    with (
        torch.inference_mode(False),
        FlopCounterMode(display=False) as counter,
        Traffic(counter.mod_tracker, model, example) as traffic,
    ):
        model(example)
    prefix = type(model).__name__

    def by_name(counts: Mapping[str, int]) -> dict[str, int]:
        return {path[len(prefix) + 1 :]: count for path, count in counts.items() if path != "Global"}

    return _Counted(
        macs=by_name({path: sum(counts.values()) // 2 for path, counts in counter.get_flop_counts().items()}),
        moved=by_name(traffic.moved),
        written=by_name(traffic.written),
        peak=traffic.peak,
    )


def twin(model: nn.Module, device: str | None) -> nn.Module:
    """Return a copy in evaluation mode, with tensors without values on a device, or with the model's own tensors."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = tensor if device is None else torch.empty_like(tensor, device=device)
    return copy.deepcopy(model, memo).eval()


def _nonzeros(module: nn.Module) -> int | None:
    parameters = list(module.parameters())
    if any(parameter.is_meta for parameter in parameters):
        return None
    return sum(int(p.count_nonzero()) if p.dim() > 1 else p.numel() for p in parameters)
