"""Predicted times of the CPU backends: sums of a few counted quantities, with coefficients fitted to measurements.

What a backend does is countable (multiplications of taps that meet a pixel, butterflies, values moved); how fast a
machine does each is not, so the coefficients are data: ``cost_tables`` in the package, or what
``widefield tune`` has measured here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.correlation import nchw_kernel_width_limit
from widefield.ops.depthwise_conv.fft import LibraryTransform, MatrixTransform, make_transform
from widefield.ops.depthwise_conv.fft.backend import Transform
from widefield.ops.depthwise_conv.fft.placement import Places, geometry, is_sequence, mirrored
from widefield.ops.depthwise_conv.problem import Problem

Features = tuple[float, ...]
"""Counts in millions, the first of them the constant 1."""


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Milliseconds for each unit of each feature, by what `regime` returns."""

    source: str
    """Where the coefficients come from, in words."""
    capability: str
    """Vector instructions, as torch names them."""
    threads: int
    """For which the coefficients were fitted."""
    coefficients: Mapping[str, Features]

    def predict(self, backend: str, pass_: Pass, problem: Problem, threads: int) -> float:
        """Return the predicted milliseconds of one map, infinite for what was never measured.

        Args:
            backend: Its name.
            pass_: Which map.
            problem: Clipped to the taps that meet a pixel.
            threads: Of torch.
        """
        known = self.coefficients.get(regime(backend, pass_, problem))
        if known is None:
            return math.inf
        constant, *rest = (k * value for k, value in zip(known, features(backend, problem), strict=True))
        return constant + sum(rest) * self.threads / threads

    def as_json(self) -> str:
        """Return the text that `read_costs` reads."""
        head = {"source": self.source, "capability": self.capability, "threads": self.threads}
        fields = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        rows = [
            f"    {json.dumps(key)}: [{', '.join(f'{value:.4g}' for value in values)}]"
            for key, values in sorted(self.coefficients.items())
        ]
        fields.append('  "coefficients": {\n' + ",\n".join(rows) + "\n  }")
        return "{\n" + ",\n".join(fields) + "\n}\n"


def read_costs(path: Path) -> CostTable:
    """Read a table.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no table.
    """
    return _parsed(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=8)
def shipped_costs(capability: str) -> CostTable:
    """Return the table that comes with the package for a CPU capability of torch, the nearest one if there is none."""
    name = "avx512" if capability.startswith("AVX512") else "avx2"
    return _parsed(
        resources.files("widefield.ops.depthwise_conv")
        .joinpath("cost_tables", f"{name}.json")
        .read_text(encoding="utf-8")
    )


def _parsed(text: str) -> CostTable:
    try:
        values = json.loads(text)
        coefficients = {str(k): tuple(float(x) for x in v) for k, v in values["coefficients"].items()}
        return CostTable(
            source=str(values["source"]),
            capability=str(values["capability"]),
            threads=int(values["threads"]),
            coefficients=coefficients,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a table of costs") from error


def regime(backend: str, pass_: Pass, problem: Problem) -> str:
    """Return the name of the conditions under which a backend's time is one sum of its features."""
    parts = [backend, pass_, _precision(problem.dtype)]
    if backend in ("aten", "channels_last"):
        parts.append(problem.layout)
        # PyTorch has a kernel of its own for the weight's gradient of a 3 x 3 convolution.
        if pass_ == "grad_weight" and max(problem.kernel_size) <= 3:
            parts.append("3x3")
    if backend == "transposed" or (backend, problem.layout) == ("aten", "contiguous") or backend == "correlation":
        is_wide = problem.kernel_size[1] > nchw_kernel_width_limit()
        parts.append("wide" if is_wide else "narrow")
    if problem.stride != (1, 1) or problem.dilation != (1, 1):
        parts.append("spaced")
    return "/".join(parts)


def _precision(dtype: torch.dtype) -> str:
    return {torch.float32: "float32", torch.float64: "float64"}.get(dtype, "half")


def features(backend: str, problem: Problem) -> Features:
    """Return the counts that a backend's time is a sum of."""
    if backend in ("fft", "dft"):
        return _fourier(backend, problem)
    return _direct(problem)


def _direct(problem: Problem) -> Features:
    height, width = problem.output_size
    rows, columns = _valid_pairs(problem, 0), _valid_pairs(problem, 1)
    # oneDNN works on blocks of channels; a last block that is not full costs as much as a full one.
    planes = problem.batch * (-(-problem.channels // 8) * 8)
    taps = problem.kernel_size[0] * problem.kernel_size[1]
    values = planes * (problem.height * problem.width + height * width)
    return (
        1.0,
        values / 1e6,
        (values / 1e6 if problem.layout == "channels_last" else 0.0),
        planes * rows * columns / 1e6,
        planes * rows * width * problem.kernel_size[1] / 1e6,
        planes * rows * (width + problem.kernel_size[1]) / 1e6,
        problem.channels * taps / 1e6,
        planes * taps / 1e6,
    )


def _valid_pairs(problem: Problem, axis: int) -> int:
    """Pairs of an output and a tap that meet a pixel, on one axis."""
    size, count = (problem.height, problem.width)[axis], problem.output_size[axis]
    kernel, stride = problem.kernel_size[axis], problem.stride[axis]
    padding, dilation = problem.padding[axis], problem.dilation[axis]
    total = 0
    for output in range(count):
        start = output * stride - padding
        first = max(0, -(start // dilation))
        last = min(kernel - 1, (size - 1 - start) // dilation)
        total += max(0, last - first + 1)
    return total


def _fourier(backend: str, problem: Problem) -> Features:
    if is_sequence(problem):
        problem = mirrored(problem)
    places = geometry(problem)
    transform = make_transform(LibraryTransform if backend == "fft" else MatrixTransform, problem)
    planes, (height, width) = problem.batch * problem.channels, problem.output_size
    values = planes * (problem.height * problem.width + height * width)
    points, columns = math.prod(transform.shape), transform.size[1] // 2 + 1
    work = _butterflies if isinstance(transform, LibraryTransform) else _products
    images = planes * (work(transform, places.image) + work(transform, places.gradient))
    return (
        1.0,
        values / 1e6,
        (values / 1e6 if problem.layout == "channels_last" else 0.0),
        images / 1e6,
        problem.channels * work(transform, places.taps) / 1e6,
        planes * points / 1e6,
        planes * (problem.height + height + 2 * columns) / 1e6,
        -(-planes * points // (1 << 18)),
    )


def _butterflies(transform: Transform, places: Places) -> float:
    (height, width), columns = transform.size, transform.shape[0]
    return places[0].count * width * math.log2(width + 1) + 2 * columns * height * math.log2(height + 1)


def _products(transform: Transform, places: Places) -> float:
    rows, columns = transform.shape
    return 2 * places[0].count * columns * (places[1].count + rows)
