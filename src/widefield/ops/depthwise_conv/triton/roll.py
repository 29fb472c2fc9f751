"""Forward and input gradient for maps of at most 64 x 64 on Hopper, where the input is read once for every four rows.

The row kernel reads the input again for each row of taps. Here rows of the input are streamed once, and the Toeplitz
tiles of the kernel roll through registers, from which Hopper's tensor cores take their first operand. This kernel has
passed compilers and an emulation of its index algebra, but has never been executed on a GPU. It therefore runs on
request alone, or where a table measured on the very machine names it, and `verify` compares it with PyTorch there.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.launch import is_interpreted, on_device
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, TileConfig
from widefield.ops.weight_cache import derived

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
LARGEST_MAP = 64


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes that the kernel and its expanded weights share."""

    columns: int
    """A row of pixels, filled up to 16, 32 or 64."""
    rows: int
    """Output rows of one program, and rows of zeros above and below the kernel."""
    offset: int
    """Zeros before the first tap of a row."""
    length: int
    """Elements of one copy of a row of taps."""


def geometry(problem: Problem) -> Geometry:
    """Return the `Geometry` of a problem without `refusals`."""
    columns = max(16, 1 << (problem.width - 1).bit_length())
    length = -(-(2 * columns + problem.kernel_size[1] // 2 + 2) // 8) * 8
    return Geometry(columns=columns, rows=4 * (64 // columns), offset=columns, length=length)


def refusals(problem: Problem, pass_: Pass, capability: tuple[int, int]) -> list[str]:
    """Return every reason, each a clause, why this kernel cannot run one map.

    Args:
        problem: The shape, already without taps that meet no pixel.
        pass_: The map.
        capability: Of the GPU, (9, 0) for Hopper.
    """
    height, width = problem.height, problem.width
    rules = (
        (pass_ != "grad_weight", "the roll kernel has no weight gradient"),
        (capability[0] == 9, f"the roll kernel needs a Hopper GPU, not capability {capability[0]}.{capability[1]}"),
        (not is_interpreted(), "Triton's interpreter does not know Gluon"),
        (problem.dtype in _TYPES, f"the roll kernel has 16-bit types only, not {problem.dtype}"),
        (problem.stride == (1, 1) and problem.dilation == (1, 1), "the roll kernel needs stride 1 and dilation 1"),
        (_is_same(problem), 'the roll kernel needs an odd kernel and "same" padding'),
        (max(height, width) <= LARGEST_MAP, f"the roll kernel needs a map of at most {LARGEST_MAP}x{LARGEST_MAP}"),
        (LARGEST_MAP * problem.channels * height * width < 2**31, "the roll kernel counts 64 images in 31 bits"),
    )
    return [reason for holds, reason in rules if not holds]


def _is_same(problem: Problem) -> bool:
    kernel = problem.kernel_size
    return all(k % 2 == 1 for k in kernel) and problem.padding == (kernel[0] // 2, kernel[1] // 2)


def default(problem: Problem) -> TileConfig:
    """Return the tiles: as many images as registers hold, fewer where the batch is small."""
    return min(candidates(problem), key=lambda config: (-min(config.block_n, problem.batch), config.block_n))


def candidates(problem: Problem) -> list[TileConfig]:
    """Return the tiles worth timing."""
    columns = geometry(problem).columns
    # Short loads take more addresses, and registers with them: 64 images would spill.
    most = 32 if columns == LARGEST_MAP and problem.width % 8 else 64
    return [
        TileConfig(kernel="roll", block_m=64, block_n=images, block_k=columns, num_warps=4, num_stages=2)
        for images in (16, 32, 64)
        if images <= most
    ]


def expand(weight: Tensor, problem: Problem, pass_: Pass) -> Tensor:
    """Lay a kernel out for `launch`.

    Args:
        weight: (C, 1, K_h, K_w).
        problem: The shape.
        pass_: "forward", or "grad_input", which turns the kernel by 180 degrees.

    Returns:
        (C, K_h + 2 rows, 2, length): rows of zeros above and below, and each row of taps twice between zeros, the
        second time one element further on. Kept for inference.
    """
    form = geometry(problem)

    def make() -> Tensor:
        kernel_h, kernel_w = problem.kernel_size
        taps = weight[:, 0].flip(-2, -1) if pass_ == "grad_input" else weight[:, 0]
        expanded = weight.new_zeros((problem.channels, kernel_h + 2 * form.rows, 2, form.length))
        for copy in (0, 1):
            first = form.offset + copy
            expanded[:, form.rows : form.rows + kernel_h, copy, first : first + kernel_w] = taps
        return expanded

    return derived(weight, ("roll", form, pass_), make)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    problem: Problem,
    pass_: Pass,
    config: TileConfig | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Run one map.

    Args:
        x: What is convolved, (N, C, H, W): the input, or the output's gradient; copied if it is not contiguous.
        weight: (C, 1, K_h, K_w).
        bias: (C,) or None.
        problem: The shape, one without `refusals`.
        pass_: "forward" or "grad_input".
        config: Tiles; `default` if None.
        out: Where to write, contiguous; allocated if None.

    Returns:
        (N, C, H, W) in the type of x.
    """
    tiles, x = config or default(problem), x.contiguous()
    y = torch.empty_like(x) if out is None else out
    constants = _constants(problem, tiles, has_bias=bias is not None)
    image_tiles = -(-problem.batch // tiles.block_n)
    programs = -(-problem.height // geometry(problem).rows) * image_tiles * problem.channels
    with on_device(x):
        expanded = expand(weight, problem, pass_)
        _kernel()[(programs,)](
            x,
            expanded,
            expanded if bias is None else bias,
            y,
            problem.batch,
            problem.channels,
            image_tiles,
            **constants,
            num_warps=tiles.num_warps,
            enable_fp_fusion=True,
        )
    return y


def verify(problem: Problem, config: TileConfig | None = None) -> float:
    """Compare the kernel with PyTorch's own convolution on this machine's GPU, both maps, on random tensors.

    Args:
        problem: The shape, one without `refusals` on this GPU.
        config: Tiles; `default` if None.

    Returns:
        The largest error of an output over the largest sum of the absolute values of its terms; half a unit of the
        last place of the type is right (2e-3 in bfloat16), and anything that is not small means: do not use it here.
    """
    generator = torch.Generator(problem.device_type).manual_seed(0)
    size = (problem.batch, problem.channels, problem.height, problem.width)

    def draw(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator, device=problem.device_type)
        return numbers.to(problem.dtype)

    x, weight = draw(*size), draw(problem.channels, 1, *problem.kernel_size)
    worst = 0.0
    passes: tuple[Pass, ...] = ("forward", "grad_input")
    for pass_ in passes:
        taps = weight.flip(-2, -1) if pass_ == "grad_input" else weight
        actual = launch(x, weight, None, problem, pass_, config, out=torch.full_like(x, torch.nan))
        expected = F.conv2d(x.float(), taps.float(), padding=problem.padding, groups=problem.channels)
        scale = F.conv2d(x.float().abs(), taps.float().abs(), padding=problem.padding, groups=problem.channels).max()
        error = ((actual.float() - expected).abs().nan_to_num(torch.inf).max() / scale).item()
        worst = max(worst, error)
    return worst


def compile_case(problem: Problem, config: TileConfig) -> CompileCase:
    """Return what an ahead-of-time compile of the kernel for `problem` needs; not in the interpreter's process."""
    type_ = f"*{_TYPES[problem.dtype]}"
    shape = f"{problem.height}x{problem.width} k{problem.kernel_size[0]}x{problem.kernel_size[1]}"
    tiles = f"{config.block_m}x{config.block_n}x{config.block_k}"
    pointers, numbers = ("x_ptr", "weight_ptr", "bias_ptr", "y_ptr"), ("batch", "channels", "image_tiles")
    signature: dict[str, str] = {}
    signature.update(dict.fromkeys(pointers, type_) | dict.fromkeys(numbers, "i32"))
    return CompileCase(
        name=f"roll forward {shape} {_TYPES[problem.dtype]} {tiles} w{config.num_warps}",
        kernel=_kernel(),
        signature=signature,
        constexprs=_constants(problem, config, has_bias=True) | {"num_warps": config.num_warps},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _kernel() -> Any:
    # Triton is imported with it, and gives its functions types that no call fits.
    return import_module("widefield.ops.depthwise_conv.triton.roll_kernel").roll


def _constants(problem: Problem, config: TileConfig, *, has_bias: bool) -> dict[str, object]:
    form = geometry(problem)
    return {
        "HEIGHT": problem.height,
        "WIDTH": problem.width,
        "KERNEL_H": problem.kernel_size[0],
        "KERNEL_W": problem.kernel_size[1],
        "COLUMNS": form.columns,
        "IMAGES": config.block_n,
        "LENGTH": form.length,
        "OFFSET": form.offset,
        "VECTOR": min(8, problem.width & -problem.width),
        "HAS_BIAS": has_bias,
    }
