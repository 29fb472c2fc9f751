"""Copy bandwidth and the rates of a large matrix product: what every other figure is a share of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from part import Part

from widefield.bench.race import summary
from widefield.bench.timers import timer_for

RATES = (
    ("bfloat16", torch.bfloat16, False),
    ("float16", torch.float16, False),
    ("tf32", torch.float32, True),
    ("float32", torch.float32, False),
)


def main() -> None:
    part = Part("ceilings")
    timer = timer_for(part.device, 2**40)

    def median_s(call: Callable[[int], object]) -> float:
        timer.once(call)
        sample = timer.sampler(call, timer.once(call))
        median_ms = summary([sample() for _ in range(3 if part.is_tiny else 11)]).median_ms
        assert median_ms is not None
        return median_ms / 1000

    elements = 2**16 if part.is_tiny else 2**30
    source = torch.ones(elements, dtype=torch.bfloat16, device=part.device)
    target = torch.empty_like(source)
    seconds = median_s(lambda index, target=target, source=source: target.copy_(source))
    part.add(what="copy", bytes=4 * elements, seconds=seconds, copy_bytes_per_s=4 * elements / seconds)
    del source, target
    size = 64 if part.is_tiny else 8192
    for name, dtype, allows_tf32 in RATES:
        torch.backends.cuda.matmul.allow_tf32 = allows_tf32
        a, b = (torch.randn(size, size, device=part.device).to(dtype) for _ in range(2))
        seconds = median_s(lambda index, a=a, b=b: a @ b)
        part.add(what="matmul", dtype=name, size=size, seconds=seconds, matmul_flops=2 * size**3 / seconds)
    part.write(is_complete=True)


if __name__ == "__main__":
    main()
