"""Our operator beside what else computes the same: PyTorch in both layouts, compiled, and by torch.fft."""

from __future__ import annotations

import weakref
from dataclasses import replace

import torch
import torch.nn.functional as F
from layers import DTYPES, problems
from part import Part
from torch import Tensor

from widefield.bench import records
from widefield.bench.entries import MapEntry
from widefield.bench.operands import Operands
from widefield.bench.operator import Candidate, auto_candidate, backend_candidates, bench_map
from widefield.bench.records import Record
from widefield.ops.backends import PASSES, Pass
from widefield.ops.depthwise_conv.aten import AtenBackend
from widefield.ops.depthwise_conv.problem import Problem

BUDGET_S = 0.8
COMPILED_LAYERS = 4


def main() -> None:
    part = Part("peers")
    torch.backends.cudnn.benchmark = True
    dtypes = {"float32": torch.float32} if part.is_tiny else DTYPES
    entries: list[MapEntry] = []
    planned = [(dtype, p) for dtype in dtypes for p in problems(dtypes[dtype], part.device, part.is_tiny)]
    for index, (_, (_, problem)) in enumerate(planned):
        for pass_ in PASSES:
            if part.seconds_left < 5:
                break
            candidates = [*backend_candidates(problem, pass_), auto_candidate(problem, pass_)]
            candidates += peers(pass_, is_compiled=index < COMPILED_LAYERS and not part.is_tiny)
            budget_s = 0.05 if part.is_tiny else BUDGET_S
            entries.append(bench_map(problem, pass_, candidates, budget_s=budget_s))
        record = Record(kind="operator", environment=part.environment, planned=len(planned), maps=tuple(entries))
        records.write(record, part.output)
    wrong = sorted({name for entry in entries for name in entry.wrong})
    print(f"peers: {len(entries)} maps; wrong: {', '.join(wrong) or 'none'}")


def peers(pass_: Pass, *, is_compiled: bool) -> list[Candidate]:
    """Return those that are no backends of ours."""
    found = [Candidate(name="cudnn", compute=CuDnn(pass_), how="input and output channels_last as they lie, no copies")]
    if pass_ == "forward":
        found.append(Candidate(name="torch_fft", compute=by_fft, how="rfft2 in float32, sides of the next fast size"))
        if is_compiled:
            compiled = torch.compile(convolved)
            found.append(
                Candidate(
                    name="compile",
                    compute=lambda operands, problem: compiled(operands.x, operands.weight, problem.padding),
                )
            )
    return found


class CuDnn:
    """PyTorch on inputs that are channels_last to begin with, which always goes to cuDNN; the copy is not timed."""

    def __init__(self, pass_: Pass) -> None:
        self._pass = pass_
        self._copies: dict[int, tuple[weakref.ref[Operands], Operands]] = {}

    def __call__(self, operands: Operands, problem: Problem) -> Tensor:
        known = self._copies.get(id(operands))
        if known is None or known[0]() is not operands:
            x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (operands.x, operands.grad))
            known = weakref.ref(operands), replace(operands, x=x, grad=grad)
            self._copies[id(operands)] = known
        return known[1].run(AtenBackend(), self._pass, replace(problem, layout="channels_last"))


def convolved(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    return F.conv2d(x, weight, padding=padding, groups=x.shape[1])


def by_fft(operands: Operands, problem: Problem) -> Tensor:
    sides = [
        fast_size(size + kernel // 2)
        for size, kernel in zip((problem.height, problem.width), problem.kernel_size, strict=True)
    ]
    spectrum = (
        torch.fft.rfft2(operands.x.float(), s=sides) * torch.fft.rfft2(operands.weight[:, 0].float(), s=sides).conj()
    )
    y = torch.fft.irfft2(spectrum, s=sides)
    shifted = torch.roll(y, problem.padding, dims=(-2, -1))
    return shifted[..., : problem.height, : problem.width].to(problem.dtype)


def fast_size(size: int) -> int:
    """Return the next number without prime factors above 5."""
    rest = size
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return size if rest == 1 else fast_size(size + 1)


if __name__ == "__main__":
    main()
