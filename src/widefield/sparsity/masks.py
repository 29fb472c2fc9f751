"""Which weights of a network are there, tensor by tensor."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.sparsity.criteria import draw, grow_random
from widefield.sparsity.packing import pack_bits, packed_size, unpack_bits
from widefield.sparsity.sharding import local, share_of, whole


class Masks(Mapping[str, Tensor]):
    """Bool tensors by the names of parameters: true where a weight is active.

    Args:
        tensors: Bool, of the shapes of the parameters; kept as they are, not copied.

    Raises:
        InputError: If one is not of type bool.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            check(tensor.dtype == torch.bool, "masks of type bool", f"{tensor.dtype} for {name}", "use mask.bool()")
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.nonzeros} of {self.size} active)"

    @classmethod
    def drawn(cls, parameters: Mapping[str, Tensor], counts: Mapping[str, int], seed: int) -> Masks:
        """Draw exactly `counts[name]` active weights of each parameter at random, on its device.

        Args:
            parameters: By name; their values are not looked at.
            counts: Numbers from 0 to the size of the parameter.
            seed: The same seed gives the same masks on every device and rank.

        Raises:
            InputError: If a count is missing or too large.
        """
        tensors: dict[str, Tensor] = {}
        for index, (name, parameter) in enumerate(parameters.items()):
            count = counts.get(name, -1)
            check(
                0 <= count <= parameter.numel(),
                f"a number from 0 to {parameter.numel()} of weights to keep in {name}",
                f"{counts.get(name)}",
                "give one for each parameter",
            )
            nothing = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
            tensors[name] = grow_random(nothing, nothing, count, draw(seed, 0, index))
        return cls(tensors)

    @classmethod
    def of_nonzeros(cls, parameters: Mapping[str, Tensor]) -> Masks:
        """Take as active what is not zero now: for weights that were trained sparse elsewhere.

        Args:
            parameters: By name.
        """
        return cls({name: whole(parameter) != 0 for name, parameter in parameters.items()})

    @property
    def counts(self) -> dict[str, int]:
        """Active weights of each tensor."""
        return {name: int(tensor.sum()) for name, tensor in self._tensors.items()}

    @property
    def nonzeros(self) -> int:
        """Active weights in all."""
        return sum(self.counts.values())

    @property
    def size(self) -> int:
        """Elements in all."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    @property
    def density(self) -> float:
        """Share of active weights over all tensors."""
        return self.nonzeros / max(self.size, 1)

    @property
    def checksum(self) -> int:
        """CRC-32 of names and bits."""
        value = 0
        for name, packed in self.state_dict().items():
            value = zlib.crc32(packed.cpu().numpy().tobytes(), zlib.crc32(name.encode(), value))
        return value

    def equals(self, other: Mapping[str, Tensor]) -> bool:
        """Return whether names and every bit are the same."""
        return list(self) == list(other) and all(torch.equal(self[name].cpu(), other[name].cpu()) for name in self)

    def to(self, device: torch.device | str) -> Masks:
        """Return the masks on another device."""
        return Masks({name: tensor.to(device) for name, tensor in self._tensors.items()})

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every inactive weight of `model` to zero, in place.

        Args:
            model: With parameters of these names, not wrapped.

        Raises:
            InputError: If it lacks one, or one has another shape.
        """
        self.apply_to_tensors(dict(model.named_parameters()))

    @torch.no_grad()
    def apply_to_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Do the same to a state dict, such as that of an average of the weights.

        Args:
            tensors: By name; others than the masks' are left alone.

        Raises:
            InputError: If one is missing or has another shape.
        """
        self.check_fit(tensors)
        for name, mask in self._tensors.items():
            tensor = tensors[name]
            local(tensor).masked_fill_(~share_of(mask.to(tensor.device), tensor), 0)

    @torch.no_grad()
    def violations(self, tensors: Mapping[str, Tensor] | nn.Module) -> dict[str, int]:
        """Return how many inactive weights are not zero in this process, for those tensors where there are any.

        Args:
            tensors: A model or a state dict.

        Raises:
            InputError: If one is missing or has another shape.
        """
        tensors = dict(tensors.named_parameters()) if isinstance(tensors, nn.Module) else tensors
        self.check_fit(tensors)
        found: dict[str, int] = {}
        for name, mask in self._tensors.items():
            here = share_of(mask.to(tensors[name].device), tensors[name])
            found[name] = int(((local(tensors[name]) != 0) & ~here).sum())
        return {name: count for name, count in found.items() if count}

    def state_dict(self) -> dict[str, Tensor]:
        """Return one bit for each weight: uint8 tensors by the same names, on the CPU."""
        return {name: pack_bits(tensor.cpu()) for name, tensor in self._tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the bits that `state_dict` gave; shapes and devices stay.

        Args:
            state: One uint8 tensor for each name.

        Raises:
            InputError: If names or sizes are not those of these masks.
        """
        _check_names(sorted(state.keys() ^ self._tensors.keys()), "a mask for each sparse parameter and for no other")
        for name, tensor in self._tensors.items():
            check(
                state[name].dtype == torch.uint8 and state[name].shape == (packed_size(tensor.numel()),),
                f"{packed_size(tensor.numel())} bytes for the mask of {name}",
                f"{tuple(state[name].shape)} of {state[name].dtype}",
                "use masks that were saved for this model",
            )
        for name, tensor in self._tensors.items():
            self._tensors[name] = unpack_bits(state[name].to(tensor.device), tensor.shape)

    def replace(self, name: str, mask: Tensor) -> None:
        """Put another bool tensor of the same shape in the place of one."""
        assert mask.shape == self._tensors[name].shape
        assert mask.dtype == torch.bool
        self._tensors[name] = mask

    def check_fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise unless there is a tensor of the right shape for each mask.

        Args:
            tensors: By name.

        Raises:
            InputError: If one is missing or has another shape.
        """
        _check_names([name for name in self._tensors if name not in tensors], "a tensor for each mask")
        for name, mask in self._tensors.items():
            check(
                tensors[name].shape == mask.shape,
                f"{name} of shape {tuple(mask.shape)}",
                f"{tuple(tensors[name].shape)}",
                "use the model that the masks were made for",
            )


def _check_names(odd: list[str], expected: str) -> None:
    check(
        not odd,
        expected,
        f"{len(odd)} names on one side only, such as {', '.join(odd[:3])}",
        "use the model that the masks were made for",
    )
