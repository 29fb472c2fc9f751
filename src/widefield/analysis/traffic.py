"""What a forward pass reads, writes and keeps alive, operator by operator."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker


class Traffic(TorchDispatchMode):
    """Counts the bytes of every operator that is called within it; views are free.

    Args:
        tracker: Says which modules are at work.
        model: The network, whose parameters and buffers are not activations.
        example: Its input, which is one.
    """

    def __init__(self, tracker: ModuleTracker, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.moved: dict[str, int] = defaultdict(int)
        """By module, with all below it: bytes of each operator's operands, parameters included, and results."""
        self.written: dict[str, int] = defaultdict(int)
        """By module: bytes of results."""
        self.peak = 0
        """Largest sum of bytes of all activations alive at a time."""
        self._tracker = tracker
        self._alive = 0
        self._known: set[int] = set()
        # These outlive the count, so that no other storage gets their identity.
        self._parameters = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        self._known.update(map(id, self._parameters))
        self._keep([example])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands, results = _tensors((args, kwargs)), _tensors(result)
        storages = {id(tensor.untyped_storage()) for tensor in operands}
        is_view = not func._schema.is_mutable and all(id(y.untyped_storage()) in storages for y in results)
        if results and not is_view:
            written = sum(map(_bytes, results))
            moved = written + sum(map(_bytes, operands))
            for module in self._tracker.parents:
                self.moved[module] += moved
                self.written[module] += written
            self._keep(results)
        return result

    def _keep(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._known:
                self._known.add(id(storage))
                self._alive += storage.nbytes()
                weakref.finalize(storage, self._release, id(storage), storage.nbytes())
        self.peak = max(self.peak, self._alive)

    def _release(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self._alive -= size


def _tensors(value: Any) -> list[Tensor]:
    found = {id(leaf): leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
    return list(found.values())


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; an expanded one is read as often as it is stored."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
