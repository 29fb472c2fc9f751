"""Which kinds of operators a forward pass spends its multiply-accumulates and its time on.

RepLKNet (Ding et al., CVPR 2022, section 3, Table 1) argues by such a share: depthwise convolution takes 49.5 % of its
time with PyTorch's kernels and 12.3 % with better ones.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from widefield._core.checks import check
from widefield.analysis.cost import MIN_SIZE, twin
from widefield.analysis.large_kernels import large_kernels
from widefield.analysis.latency import LEAST_RUNS, MOST_RUNS

logger = logging.getLogger(__name__)

Kind = Literal[
    "large depthwise",
    "small depthwise",
    "pointwise convolution",
    "dense convolution",
    "linear",
    "norm",
    "activation",
    "other",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Depthwise convolutions by the longer side of the kernel, gaps of dilation left out, large from 7 on; convolutions of
1 x 1; all other convolutions, those in groups too; matrix products, those of attention too; norms; activations; sums,
products, means, copies and the rest."""

_CONVOLUTION = re.compile(r"aten::_?(mkldnn_|cudnn_|miopen_|thnn_|slow_)?conv")
_MATRIX = re.compile(r"aten::(linear|matmul|mm|addmm|bmm|baddbmm|mv|addmv|_?scaled_dot_product\w*|_addmm_activation)$")
_NORM = re.compile(r"aten::\w*(batch|layer|group|instance|rms)_norm\w*")
_ACTIVATION = re.compile(
    r"aten::(relu6?|gelu|silu|mish|elu|celu|selu|hardswish|hardsigmoid|hardtanh|sigmoid|tanh|leaky_relu|_?prelu\w*"
    r"|rrelu\w*|softplus|log_sigmoid\w*|_?(log_)?softmax|hardshrink|softshrink|threshold)_?$"
)


@dataclass(frozen=True, kw_only=True)
class OperatorShares:
    """Multiply-accumulates and time of one forward pass of a batch, by kind of operator."""

    macs: Mapping[Kind, int]
    """Of every kind; their sum is `Cost.total.macs`."""
    milliseconds: Mapping[Kind, float]
    """Of every kind, the mean of all runs: operators alone, each to its end, without what Python does between them."""
    batch: int
    runs: int
    threads: int
    """That PyTorch computes with on a CPU."""
    device: str

    @property
    def of_macs(self) -> dict[Kind, float]:
        """Share of each kind in the multiply-accumulates; 1 in all, unless there are none."""
        return _shares(self.macs)

    @property
    def of_time(self) -> dict[Kind, float]:
        """Share of each kind in the time of all operators; 1 in all."""
        return _shares(self.milliseconds)

    def to_plain(self) -> dict[str, Any]:
        """Return all figures as plain values for a JSON file."""
        of_macs, of_time = self.of_macs, self.of_time
        return {
            "batch": self.batch,
            "runs": self.runs,
            "threads": self.threads,
            "device": self.device,
            "kinds": {
                kind: {
                    "macs": self.macs[kind],
                    "share_of_macs": of_macs[kind],
                    "milliseconds": self.milliseconds[kind],
                    "share_of_time": of_time[kind],
                }
                for kind in KINDS
            },
        }


@torch.no_grad()
def measure_shares(model: nn.Module, example: Tensor, *, warmup: int = 1, budget_s: float = 5.0) -> OperatorShares:
    """Run a network again and again, and sum up what each kind of operator takes.

    Operators are told apart by their own names and shapes, so that a network may call them as modules or as functions.
    What is "other" or a matrix product by itself belongs to the norm or depthwise layer that computes it: the sums
    of a response norm, the sum of a kernel's branches. Our own operators are depthwise convolutions, whatever they are
    computed by.

    Args:
        model: In evaluation mode, on the device of the example.
        example: Its input, (N, C, H, W) for images; N is the batch.
        warmup: Runs before the first one that counts.
        budget_s: Seconds for the runs that count; at least 5 are made whatever they take, and at most 1000.

    Returns:
        Sums by kind.

    Raises:
        InputError: If the network is in training mode, or a number is negative.
    """
    check(not model.training, "a network in evaluation mode to time", "one in training mode", "call model.eval() first")
    check(warmup >= 0 and budget_s >= 0, "positive numbers", f"{warmup} and {budget_s}", "raise warmup and budget_s")
    macs = _macs(model, example)
    for _ in range(warmup):
        _seconds(model, example)
    total = dict.fromkeys(KINDS, 0.0)
    runs, start = 0, time.perf_counter()
    while runs < LEAST_RUNS or (time.perf_counter() - start < budget_s and runs < MOST_RUNS):
        for kind, seconds in _seconds(model, example).items():
            total[kind] += seconds
        runs += 1
    return OperatorShares(
        macs=macs,
        milliseconds={kind: 1000 * seconds / runs for kind, seconds in total.items()},
        batch=example.shape[0],
        runs=runs,
        threads=torch.get_num_threads(),
        device=str(example.device),
    )


def kind_of(name: str, args: Sequence[Any]) -> Kind:
    """Return the kind of an operator by itself.

    Args:
        name: Of its schema, such as "aten::convolution".
        args: What it is called with.
    """
    if name.startswith("widefield::"):
        return _depthwise(_size_of_ours(name, args))
    if _CONVOLUTION.match(name):
        return _convolution(args)
    if _MATRIX.match(name):
        return "linear"
    if _NORM.match(name):
        return "norm"
    return "activation" if _ACTIVATION.match(name) else "other"


def _size_of_ours(name: str, args: Sequence[Any]) -> int:
    if "peripheral" in name:
        # Cells of both axes; their sums are the sides of the kernel.
        return max(sum(cells) for cells in args if isinstance(cells, list | tuple))
    return max(args[1].shape[2:])


def _convolution(args: Sequence[Any]) -> Kind:
    x, weight = args[:2]
    # Of a transposed convolution the weight is (C_in, C_out / groups, ...): 1 channel for each kernel all the same.
    groups = next((value for value in reversed(args) if type(value) is int), 1)
    if 1 < groups == x.shape[1] == weight.shape[0] and weight.shape[1] == 1:
        return _depthwise(max(weight.shape[2:]))
    return "pointwise convolution" if max(weight.shape[2:]) == 1 else "dense convolution"


def _depthwise(size: int) -> Kind:
    return "large depthwise" if size >= MIN_SIZE else "small depthwise"


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    layers = nn.Linear | nn.modules.conv._ConvNd  # pyright: ignore[reportPrivateUsage]
    return ("norm" in name or "grn" in name) and not any(isinstance(part, layers) for part in module.modules())


class _Operators(TorchDispatchMode):
    """Tells the kind of every operator that is called within it to `counted`."""

    def __init__(self) -> None:
        super().__init__()
        self.around: list[Kind] = []
        """Kinds of the norms and depthwise layers at work, the innermost last."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = kind_of(func._schema.name, args)
        # Neither has linear layers: products within are those of kernels with what spreads them out.
        if kind in ("other", "linear") and self.around:
            kind = self.around[-1]
        return self.counted(kind, lambda: func(*args, **(kwargs or {})))

    def counted(self, kind: Kind, call: Any) -> Any:
        """Call the operator and count it."""
        return call()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know which norms and depthwise layers of a network are at work."""
        kinds: dict[nn.Module, Kind] = {module: "norm" for module in model.modules() if _is_norm(module)}
        kinds |= {
            layer.module: _depthwise(max(layer.kernel_size)) for layer in large_kernels(model, 1) if layer.is_depthwise
        }

        def enter(module: nn.Module, _: Any) -> None:
            self.around.append(kinds[module])

        def leave(*_: Any) -> None:
            self.around.pop()

        with ExitStack() as hooks:
            for module in kinds:
                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
            # In inference mode composite operators would not be taken apart.
            with torch.inference_mode(False), self:
                yield


class _Macs(_Operators):
    def __init__(self, counter: Any) -> None:
        super().__init__()
        self.counter = counter
        self.macs = dict.fromkeys(KINDS, 0)

    def counted(self, kind: Kind, call: Any) -> Any:
        before = self.counter.get_total_flops()
        result = call()
        self.macs[kind] += (self.counter.get_total_flops() - before) // 2
        return result


class _Time(_Operators):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.seconds = dict.fromkeys(KINDS, 0.0)

    def counted(self, kind: Kind, call: Any) -> Any:
        self._finish()
        start = time.perf_counter()
        result = call()
        self._finish()
        self.seconds[kind] += time.perf_counter() - start
        return result

    def _finish(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def _macs(model: nn.Module, example: Tensor) -> dict[Kind, int]:
    """Count as `measure_cost` does: without computing, and really only if the network looks at values."""
    try:
        return _counted(twin(model, "meta"), example.to("meta"))
    except Exception:
        logger.debug("%s does not run on the meta device", type(model).__name__, exc_info=True)
    return _counted(model, example)


def _counted(model: nn.Module, example: Tensor) -> dict[Kind, int]:
    # It brings Triton along, where that is installed.
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        operators = _Macs(counter)
        with operators.watching(model):
            model(example)
    return operators.macs


def _seconds(model: nn.Module, example: Tensor) -> dict[Kind, float]:
    operators = _Time(example.device)
    with operators.watching(model):
        model(example)
    return operators.seconds


def _shares(amounts: Mapping[Kind, float]) -> dict[Kind, float]:
    total = sum(amounts.values())
    return {kind: amount / total if total else 0.0 for kind, amount in amounts.items()}
