"""Where a feature map comes from: a layer of any network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from widefield._core.checks import check, nearest
from widefield._core.errors import InputError, WidefieldError
from widefield.analysis.feature_layout import AmbiguousLayoutError, one_tensor, spatial_map

Layer = str | Callable[[nn.Module, Tensor], object] | None
"""A module by name ("" is the whole network), a function of the network and the images, or the last map there is."""


class Features:
    """The map (N, C, h, w) that a layer makes of images (N, C_in, H, W).

    With no layer named, it is the last one that a timm network lists in its ``feature_info``, which comes before the
    final norm; of other networks, the last module in a forward pass whose output is a map.

    Args:
        model: Any network on images.
        layer: Name of one of its modules, "" for its own output, or a function from the network and images to a map.

    Raises:
        InputError: If there is no module of that name.
    """

    def __init__(self, model: nn.Module, layer: Layer = None) -> None:
        self.model = model
        self._function = layer if callable(layer) else None
        self._name = layer if isinstance(layer, str) else None
        if self._name:
            names = dict(model.named_modules())
            close = nearest(self._name, names) or [name for name, _ in model.named_children()]
            check(
                self._name in names,
                f"the name of a layer of {type(model).__name__}",
                repr(self._name),
                f"did you mean {' or '.join(map(repr, close))}",
            )
        self._prefix_tokens: int | None = getattr(model, "num_prefix_tokens", None)
        self._is_channels_last: bool | None = None

    @property
    def layer(self) -> str:
        """Name of the layer; "output" for that of the whole network, "" until the first call has found out."""
        if self._function is not None:
            return getattr(self._function, "__name__", type(self._function).__name__)
        return "" if self._name is None else self._name or "output"

    @property
    def module_name(self) -> str | None:
        """Name of the module as in ``named_modules``; None for a function, and until the first call has found out."""
        return self._name

    def __call__(self, images: Tensor) -> Tensor:
        """Run the network.

        Args:
            images: (N, C_in, H, W).

        Returns:
            (N, C, h, w).

        Raises:
            InputError: If the network does not take such images, the layer is not used, or what it returns is no map.
        """
        if self._function is not None:
            output = self._guarded(lambda: cast("Any", self._function)(self.model, images), images)
            # What a function returns in four dimensions is (N, C, h, w) by its contract.
            if isinstance(output, Tensor) and output.dim() == 4:
                return output
            return self._as_map(output, images, self._is_channels_last)
        if self._name is None:
            self.find(images)
        tensor = self._output(images)
        try:
            return self._as_map(tensor, images, self._is_channels_last)
        except AmbiguousLayoutError:
            self._is_channels_last = self._tell_layout(images)
            return self._as_map(tensor, images, self._is_channels_last)

    def _output(self, images: Tensor) -> Tensor:
        """What the layer returns, as it is."""
        outputs: list[Tensor] = []

        # Later layers may work in place on what this one returns, so a copy is taken.
        def hook(_: nn.Module, __: object, output: object) -> None:
            outputs.append(one_tensor(output).clone())

        handle = self.model.get_submodule(cast("str", self._name)).register_forward_hook(hook)
        try:
            self._guarded(lambda: self.model(images), images)
        finally:
            handle.remove()
        check(bool(outputs), "a layer that a forward pass uses", f"{self._name!r}, which is not called", "name another")
        return outputs[-1]

    def _tell_layout(self, images: Tensor) -> bool | None:
        """See which axes of the output follow the image when half of it is taken away."""
        half = images[:1, :, :, : images.shape[-1] // 2]
        try:
            with torch.no_grad():
                tensor = self._output(half)
                found = self._as_map(tensor, half, None)
        except InputError:
            # A network that is made for one size of images may say what it does.
            return True if getattr(self.model, "output_fmt", None) == "NHWC" else None
        return tuple(found.shape) != tuple(tensor.shape)

    def find(self, images: Tensor) -> None:
        """Choose a layer by a forward pass, unless one is chosen.

        Raises:
            InputError: If no module returns a map.
        """
        if self._name is not None or self._function is not None:
            return
        found: list[str] = []

        def hook(name: str) -> Callable[[nn.Module, object, object], None]:
            def note(_: nn.Module, __: object, output: object) -> None:
                try:
                    # A map that could be read in two ways is still the last one.
                    self._as_map(output, images, is_channels_last=True)
                except InputError:
                    return
                found.append(name)

            return note

        handles = [module.register_forward_hook(hook(name)) for name, module in self.model.named_modules()]
        try:
            with torch.no_grad():
                self._guarded(lambda: self.model(images[:1]), images)
        finally:
            for handle in handles:
                handle.remove()
        check(
            bool(found),
            "a network with a layer whose output is a map",
            f"{type(self.model).__name__} without one for images of {_by(images)} px",
            "use larger images, or pass a function from (model, images) to (N, C, h, w)",
        )
        stated = cast("Any", getattr(self.model, "feature_info", None))
        module = stated[-1].get("module") if isinstance(stated, list) and stated else None
        self._name = module if module in found else found[-1]

    def _as_map(self, output: object, images: Tensor, is_channels_last: bool | None) -> Tensor:
        height, width = images.shape[-2:]
        tokens = self._prefix_tokens
        return spatial_map(output, (height, width), prefix_tokens=tokens, is_channels_last=is_channels_last)

    def _guarded(self, run: Callable[[], object], images: Tensor) -> object:
        # What a network raises on images that it does not take is anybody's choice: assertions, shape errors, and more.
        try:
            return run()
        except (WidefieldError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(".") or type(error).__name__
            raise InputError(
                f"images that {type(self.model).__name__} takes",
                f"an error in its forward pass on {images.shape[1]} x {_by(images)} ({reason})",
                "use another image size, or another layer",
            ) from error


def _by(images: Tensor) -> str:
    return " x ".join(str(length) for length in images.shape[-2:])
