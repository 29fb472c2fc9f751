"""An unfinished receptive field in a file, and the proof that it goes on with the same network and images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield._core.files import write_atomically
from widefield.analysis.contribution import Location
from widefield.analysis.contribution_statistics import ContributionStatistics

_KIND = "widefield receptive field, unfinished"
_FIX = "go on with the same, or name another state file"


@dataclass
class ContributionState:
    """What was seen so far."""

    weights: str
    """Digest of the network's parameters and buffers."""
    request: str
    """Layer and locations that were asked for."""
    seen: int = 0
    """Images, also those that were skipped."""
    skipped: int = 0
    """Images whose gradients were not finite."""
    digest: str = ""
    """Of all images seen, in their order."""
    layer: str = ""
    locations: tuple[Location, ...] = ()
    output_size: tuple[int, int] = (0, 0)
    input_size: tuple[int, int] = (0, 0)
    statistics: ContributionStatistics | None = field(default=None, repr=False)

    def save(self, path: Path) -> None:
        """Write the state in place of an earlier one: a crash leaves one of the two."""
        from safetensors.torch import save_file

        statistics = self.statistics
        values = {name: value for name, value in vars(self).items() if name != "statistics"}
        header = json.dumps({"images": 0 if statistics is None else statistics.images, **values})
        tensors = {} if statistics is None else statistics.tensors()
        write_atomically(path, lambda partial: save_file(tensors, partial, metadata={_KIND: header}))


def load_state(path: Path, weights: str, request: str) -> ContributionState:
    """Read what `ContributionState.save` wrote, or begin if there is no file.

    Args:
        path: The file.
        weights: Digest of the network that goes on.
        request: Layer and locations that are asked for.

    Raises:
        InputError: If the file is no such state, or that of another network, layer or location.
    """
    from safetensors import SafetensorError, safe_open

    begun = ContributionState(weights=weights, request=request)
    if not path.exists():
        return begun
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})[_KIND])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError("the state of a receptive field", f"{str(path)!r}, which is none", "name another") from error
    images = header.pop("images")
    state = ContributionState(**{name: _tupled(value) for name, value in header.items()})
    state.statistics = ContributionStatistics.of(tensors, images) if tensors else None
    check(state.weights == weights, "the state of this network", f"{str(path)!r}, of other weights", _FIX)
    check(state.request == request, f"a state of {request}", f"{str(path)!r}, of {state.request}", _FIX)
    return state


def check_same_images(state: ContributionState, seen: int, digest: str, path: Path | None) -> None:
    """Refuse to go on with other images than those that the state has seen.

    Raises:
        InputError: If the first ones differ, or there are fewer.
    """
    is_same = seen == state.seen and digest == state.digest
    others = f"other ones of {path}" if seen == state.seen else f"{seen} of the {state.seen} in {path}"
    check(is_same, "the images that the state has seen, first and in their order", others, _FIX)


def digest_images(digest: str, image: Tensor) -> str:
    """Return the digest of all images so far and one more."""
    return hashlib.sha256(f"{digest} {tuple(image.shape)} ".encode() + _bytes(image)).hexdigest()


def digest_weights(model: nn.Module) -> str:
    """Return the digest of all parameters and persistent buffers, with their names."""
    known = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            known.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            known.update(_bytes(tensor))
    return known.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tupled(value: Any) -> Any:
    """JSON has lists only."""
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
