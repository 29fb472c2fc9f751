"""How a network is made sparse, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from widefield._core.checks import check

Allocation = Literal["uniform", "erk", "snip", "file", "nonzero"]
Prune = Literal["magnitude", "set"]
Grow = Literal["random", "gradient", "momentum", "momentum_neuron"]
Moments = Literal["kept", "blanked"]
Schedule = Literal["cosine", "constant"]
Which = Literal["matrices", "weights", "large_kernels"]


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Sparse training; SLaK (Liu et al., 2023) is `snip`, `magnitude`, `random` and the defaults elsewhere.

    Where it differs from the published code, `widefield.sparsity` says so and why.
    """

    sparsity: float = 0.4
    """Share of the selected weights that are zero."""

    allocation: Allocation = "uniform"
    """How many weights each tensor keeps: the same share ("uniform"), more in thin ones ("erk"), by the gradients of
    some batches ("snip"), as `density_file` says ("file"), or those that are not zero now ("nonzero"); the last two
    leave `sparsity` unused."""

    density_file: Path | None = None
    """JSON file of a density from 0 to 1 for each selected parameter, for the allocation "file"."""

    snip_batches: int = 1
    """Batches whose gradients the allocation "snip" sees; in a run the first of the first epoch, not mixed."""

    dense_from: float = 0.99
    """Density from which a tensor becomes dense for good, whatever the allocation: its mask is true everywhere and
    never changes. Its zeros are not spread over the others, so that the whole gets a bit denser. With 1 only those are
    dense that were allocated so."""

    which: Which = "matrices"
    """Parameters that become sparse: 2-d and 4-d tensors as in SLaK ("matrices"), those of any 2 or more dimensions
    ("weights"), or convolutions longer than 7 on some side ("large_kernels")."""

    pattern: str = ""
    """Regular expression that must be found in the name of a parameter too; empty for all names."""

    prune: Prune = "magnitude"
    """Which weights are dropped at an update: the smallest ("magnitude"), or the same share of the positive and of the
    negative ones, next to zero ("set", Mocanu et al., 2018)."""

    grow: Grow = "random"
    """Which zeros take their place: drawn at random, those of the largest gradient, or of the largest momentum (for
    Adam over the root of the mean square), over the whole tensor or shared out to neurons by their mean momentum."""

    moments: Moments = "kept"
    """What the optimizer remembers of inactive weights: its running averages of their gradients, such as AdamW's
    moments ("kept", as published), or nothing ("blanked"; the first step of a grown weight is then up to 3 times the
    learning rate). SGD's momentum is zero there in both, except for growth by momentum."""

    prune_fraction: float = 0.5
    """Share of the non-zero weights of a tensor that the first update replaces."""

    schedule: Schedule = "cosine"
    """That share over the run: half a cosine down to `min_prune_fraction`, or constant."""

    min_prune_fraction: float = 0.005
    """Share at the end of the cosine."""

    update_every: int | None = 2000
    """Optimizer updates between two changes of the masks; None keeps the first masks."""

    last_update_share: float = 1.0
    """Share of the run after which masks no longer change; they never do at the very last optimizer update."""

    seed: int = 0
    """Seed of every random draw of masks."""

    def __post_init__(self) -> None:
        _check_share("sparsity", self.sparsity)
        _check_share("prune_fraction", self.prune_fraction)
        _check_share("min_prune_fraction", self.min_prune_fraction)
        _check_share("last_update_share", self.last_update_share)
        check(
            0 < self.dense_from <= 1,
            "dense_from above 0 and at most 1",
            f"{self.dense_from:g}",
            "give the density from which a tensor is dense, such as 0.99",
        )
        check(self.snip_batches > 0, "at least one batch for snip", f"{self.snip_batches}", "raise snip_batches")
        check(
            self.update_every is None or self.update_every > 0,
            "at least one step between two changes of the masks",
            f"update_every={self.update_every}",
            "raise it, or use None to keep the first masks",
        )
        check(
            (self.allocation == "file") == (self.density_file is not None),
            "a density_file for the allocation 'file' and for no other",
            f"allocation={self.allocation!r} and density_file={self.density_file}",
            "set both, or neither",
        )


def _check_share(name: str, value: float) -> None:
    check(0 <= value <= 1, f"{name} from 0 to 1", f"{value:g}", "give it as a share, not in percent")
