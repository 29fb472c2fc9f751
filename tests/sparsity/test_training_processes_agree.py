from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sparsity import processes
from sparsity.small_net import Run, adamw, loss_of
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.sparsity import SparseTraining, initial_masks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have left."""
    path = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, processes.__file__, str(path), str(rank)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    return path


def alone(grow: str) -> dict[str, Tensor]:
    """One process that sees both halves of every batch, that of snip too."""
    model = processes.network()
    settings = processes.settings(grow)
    masks = initial_masks(model, settings, batches=processes.data(), loss=loss_of)
    optimizer = adamw(model)
    sparse = SparseTraining(model, optimizer, settings, total_steps=processes.STEPS, masks=masks)
    average = processes.network()
    sparse.follow(average)
    list(Run(model, optimizer, sparse, average=average).train(processes.data()))
    return processes.result(model, sparse, average)


@pytest.mark.parametrize(("kind", "grow"), processes.RUNS)
def test_two_ranks_have_the_masks_of_one_process(kind: str, grow: str, folder: Path) -> None:
    ranks = [load_file(folder / f"{kind}_{grow}_{rank}.safetensors") for rank in range(2)]
    one = alone(grow)
    assert int(one["step"]) == processes.STEPS
    assert sum(name.startswith("masks.") for name in one) == 4
    for name, value in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        if name.startswith(("weights/", "means/")):
            torch.testing.assert_close(ranks[0][name], value, rtol=1e-9, atol=1e-12)
        else:
            assert torch.equal(ranks[0][name], value), name


def test_ranks_whose_masks_differ_are_told(folder: Path) -> None:
    for rank in range(2):
        sharded, differ = (folder / f"errors_{rank}.txt").read_text().splitlines()
        assert sharded == (
            "Expected a whole model for snip, but got one whose parameters are sharded over processes: "
            "allocate before sharding and pass masks=."
        )
        assert differ.startswith("The masks differ between the 2 processes: train them with equal weights")


def test_one_process_has_nothing_to_compare() -> None:
    model = processes.network()
    settings = type(processes.settings("random"))(sparsity=0.5)
    SparseTraining(model, adamw(model), settings, total_steps=1).check_ranks()


def test_flattened_parameters_are_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        """Goes by the name of FSDP1's wrapper, which needs a process group to be made."""

    model = nn.Sequential(nn.Linear(2, 2), FullyShardedDataParallel())
    settings = type(processes.settings("random"))(sparsity=0.5)
    with pytest.raises(InputError, match="Expected a model that keeps the shapes of its parameters"):
        initial_masks(model, settings)
