"""Large kernel beside dilated small ones, each with its BatchNorm: UniRepLKNet's dilated re-parameterization.

"UniRepLKNet" (Ding et al., CVPR 2024), section 3.2: a kernel of size k with dilation r is a sparse kernel of size
(k - 1) r + 1, so that a sum of such branches is one large kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from widefield._core.checks import check, check_name
from widefield.nn.conv_norm import ConvNorm2d
from widefield.reparam import check_evaluation_mode, embed_kernel, folded_after, set_parameters

Branch = tuple[int, int]
"""Kernel size and dilation."""

BranchSet = Literal["dilated", "none", "same_size", "same_equivalent_size"]
BRANCH_SETS: tuple[BranchSet, ...] = get_args(BranchSet)

PUBLISHED_BRANCHES: dict[int, tuple[Branch, ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""Branches of the published code for each K."""


def branch_table(kernel_size: int, branch_set: BranchSet = "dilated") -> tuple[Branch, ...]:
    """Return the branches that go with a large kernel: the published ones, and beyond them five by one rule.

    The rule continues the published rows 13 and 17, which it gives too: 5 x 5 with dilation 1; with dilation 2 the
    largest kernel that fits K; and three 3 x 3 whose dilations are 1/4, 1/2 and 3/4 of the way from 2 (a size of 5)
    to (K - 1) / 2 (a size of K), rounded half up. For K = 31 these span 5, 29, 11, 19, 25. Below K = 5 nothing fits
    that the large kernel would not be itself, and there are none.

    The other sets are those of the paper's ablation of the dilation: no branch at all; the same kernel sizes with
    dilation 1 (13: 5, 7, 3, 3, 3); and kernels with dilation 1 of the sizes that the dilated ones span (13: 5, 13, 7,
    9, 11). Branches that become equal there remain as many: in training they are not one.

    Args:
        kernel_size: K; odd.
        branch_set: Which set.

    Returns:
        (kernel size k, dilation r) of each branch; (k - 1) r + 1 <= K.

    Raises:
        InputError: If K is not odd and positive, or there is no such set.
    """
    _check_odd(kernel_size)
    check_name(branch_set, BRANCH_SETS, "branch set")
    if branch_set == "none":
        return ()
    dilated = _dilated_branches(kernel_size)
    if branch_set == "same_size":
        return tuple((size, 1) for size, _ in dilated)
    if branch_set == "same_equivalent_size":
        return tuple((_span(size, dilation), 1) for size, dilation in dilated)
    return dilated


def _dilated_branches(kernel_size: int) -> tuple[Branch, ...]:
    if kernel_size < min(PUBLISHED_BRANCHES):
        return ()
    if kernel_size in PUBLISHED_BRANCHES:
        return PUBLISHED_BRANCHES[kernel_size]
    # 2 + (K - 5) / 2 * quarter / 4, plus 1/2 to round, in whole eighths.
    spread = tuple((3, (20 + (kernel_size - 5) * quarter) // 8) for quarter in (1, 2, 3))
    return ((5, 1), (2 * (kernel_size // 4) + 1, 2), *spread)


class DilatedReparamConv2d(nn.Module):
    """``BN(depthwise K x K) + sum of BN(depthwise k x k with dilation r)``; merged, one depthwise K x K convolution.

    `large` holds the large kernel and its norm, and after the merge the sum; `dilated` holds the other branches, also
    those without dilation, and after the merge none.

    Args:
        channels: C.
        kernel_size: K of the large kernel; odd.
        branches: (k, r) of each parallel kernel, with k odd and (k - 1) r + 1 at most K; if not given,
            `branch_table(kernel_size, branch_set)`.
        branch_set: Which set of the table.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Raises:
        InputError: If a size is even, a dilation is not positive, a given branch is larger than K or there twice, or
            there is no such set.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        branches: Sequence[Branch] | None = None,
        branch_set: BranchSet = "dilated",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_odd(kernel_size)
        table = branch_table(kernel_size, branch_set)
        given = () if branches is None else tuple(branches)
        for size, dilation in given:
            check(
                size > 0 and size % 2 == 1 and dilation > 0 and _span(size, dilation) <= kernel_size,
                f"branches (k, r) of odd k and positive r with (k - 1) r + 1 at most {kernel_size}",
                f"({size}, {dilation})",
                "use a smaller odd size, or a smaller dilation",
            )
        check(
            len(set(given)) == len(given),
            "branches that differ",
            f"{list(given)}",
            "give each of them once: two that are equal are one",
        )
        self.channels = channels
        self.kernel_size = kernel_size
        self.large = ConvNorm2d(channels, channels, kernel_size, depthwise=True, device=device, dtype=dtype)
        self.dilated = nn.ModuleDict()
        seen: Counter[Branch] = Counter()
        for size, dilation in table if branches is None else given:
            seen[size, dilation] += 1
            number = f"_{seen[size, dilation]}" if seen[size, dilation] > 1 else ""
            self.dilated[f"k{size}_r{dilation}{number}"] = ConvNorm2d(
                channels, channels, size, dilation=dilation, depthwise=True, device=device, dtype=dtype
            )

    @property
    def is_merged(self) -> bool:
        """Whether the branches have been folded into one convolution."""
        return self.large.is_merged and not self.dilated

    def forward(self, x: Tensor) -> Tensor:
        """Add up the branches, or run the merged convolution."""
        y = self.large(x)
        for branch in self.dilated.values():
            y = y + branch(x)
        return y

    def example_input(self) -> Tensor:
        """Return noise (1, C, 2 K, 2 K), seed 0, for a certificate of this layer alone."""
        like = self.large.conv.weight
        size = (1, self.channels, 2 * self.kernel_size, 2 * self.kernel_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)

    def reparameterize(self) -> None:
        """Fold all branches and their norms into one kernel, in place.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        if self.is_merged:
            return
        weight, bias = folded_after(self.large.conv, self.large.norm)
        for branch in self.dilated.values():
            assert isinstance(branch, ConvNorm2d)
            branch_weight, branch_bias = folded_after(branch.conv, branch.norm)
            spread = _with_zeros_inserted(branch_weight, branch.conv.dilation[0])
            weight, bias = weight + embed_kernel(spread, (self.kernel_size, self.kernel_size)), bias + branch_bias
        set_parameters(self.large.conv, weight, bias)
        self.large.norm = nn.Identity().eval()
        self.dilated = nn.ModuleDict().eval()


def _span(size: int, dilation: int) -> int:
    return (size - 1) * dilation + 1


def _check_odd(kernel_size: int) -> None:
    check(
        kernel_size > 0 and kernel_size % 2 == 1,
        "an odd kernel size",
        f"{kernel_size}",
        f"use {max(kernel_size, 1) | 1}",
    )


def _with_zeros_inserted(weight: Tensor, dilation: int) -> Tensor:
    """Return the kernel (..., (k - 1) r + 1, (k - 1) r + 1) that is with dilation 1 what `weight` is with r."""
    spread = weight.new_zeros(*weight.shape[:-2], *(_span(size, dilation) for size in weight.shape[-2:]))
    spread[..., ::dilation, ::dilation] = weight
    return spread
