"""The convolution that takes the place of a smaller one."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.func import functional_call

from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.ops import depthwise_conv2d
from widefield.reparam import check_evaluation_mode
from widefield.surgery.large_kernel import LargeKernel

# They look at shapes: a symbolic trace keeps the calls as one node each.
torch.fx.wrap("depthwise_conv2d")
torch.fx.wrap("pad_same")


class EnlargedConv2d(nn.Conv2d):
    """A convolution of the same stride, groups, channels and bias as another, with a large kernel.

    To other code it is a `torch.nn.Conv2d` with a K x K kernel, "same" padding and no dilation: reading ``weight``
    gives the sum of the branches, and assigning a parameter to it, as folding a norm does, merges the layer. The
    parameters that are trained lie in ``kernel``. A state dict of the smaller convolution (``weight`` of its size)
    loads into it.

    Args:
        conv: The smaller convolution, padded to keep the size of the image up to its stride; its bias is taken over.
        kernel: The large kernel.

    Shape:
        As that of `conv`.
    """

    kernel: LargeKernel | None

    def __init__(self, conv: nn.Conv2d, kernel: LargeKernel) -> None:
        pads_by_size = pads_by_image_size(conv)
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - torch leaves device and dtype untyped
            conv.in_channels,
            conv.out_channels,
            kernel.kernel_size,
            stride=cast("tuple[int, int]", conv.stride),
            padding=0 if pads_by_size else kernel.kernel_size // 2,
            groups=conv.groups,
            bias=False,
            device="meta",
        )
        del self.weight
        self.kernel = kernel
        self.bias = conv.bias
        self.pads_by_image_size = pads_by_size
        self.train(conv.training)

    @property
    def is_merged(self) -> bool:
        """Whether the branches have been summed up to one kernel for good."""
        return self._modules.get("kernel") is None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Convolve."""
        stride, kernel = (self.stride[0], self.stride[1]), self.kernel
        is_depthwise = is_depthwise_conv(self)
        if kernel is not None and is_depthwise and stride == (1, 1):
            return kernel.convolve(input, self.bias)
        weight = self.weight if kernel is None else kernel()
        if self.pads_by_image_size:
            input = pad_same(input, list(self.kernel_size), list(stride))  # noqa: A001 - torch's own name
        if is_depthwise:
            padding = 0 if self.pads_by_image_size else "same"
            return depthwise_conv2d(input, weight, self.bias, stride=stride, padding=padding)
        return F.conv2d(input, weight, self.bias, stride, self.padding, 1, self.groups)

    def reparameterize(self) -> None:
        """Sum up the branches to one parameter ``weight``, in place.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        if self.kernel is None:
            return
        parameters = dict(self.kernel.named_parameters())
        wide = {name: parameter.detach().to("cpu", torch.float64) for name, parameter in parameters.items()}
        like = next(iter(parameters.values()))
        weight = cast("Tensor", functional_call(self.kernel, wide, ())).to(like.device, like.dtype)
        self.weight = nn.Parameter(weight, requires_grad=any(p.requires_grad for p in parameters.values()))

    def fuse(self) -> nn.Conv2d:
        """Merge in place and return the plain convolution with the same parameters: the hook that replaces this layer.

        Returns:
            `widefield.nn.DepthwiseConv2d` if there is one kernel for each channel, else `torch.nn.Conv2d`; timm's
            ``Conv2dSame`` where the padding depends on the size of the image.

        Raises:
            InputError: In training mode.
        """
        self.reparameterize()
        options: dict[str, Any] = {"bias": self.bias is not None, "device": "meta"}
        if is_depthwise_conv(self) and not self.pads_by_image_size:
            plain: nn.Conv2d = DepthwiseConv2d(self.out_channels, cast("Any", self.kernel_size), **options)
            plain.stride = self.stride
        else:
            kind = cast("type[nn.Conv2d]", Conv2dSame) if self.pads_by_image_size else nn.Conv2d
            plain = kind(
                self.in_channels,
                self.out_channels,
                cast("Any", self.kernel_size),
                stride=cast("Any", self.stride),
                padding=cast("Any", self.padding),
                groups=self.groups,
                **options,
            )
        plain.weight, plain.bias = cast("nn.Parameter", self.weight), self.bias
        return plain.eval()

    def __getattr__(self, name: str) -> Any:
        kernel = self.__dict__.get("_modules", {}).get("kernel")
        if name != "weight" or kernel is None:
            return super().__getattr__(name)
        # Merging runs without gradients and then asks the weight whether it wants them.
        with torch.enable_grad():
            return kernel()

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "weight" or self.is_merged:
            super().__setattr__(name, value)
            return
        self.kernel = None
        bias = self._parameters.pop("bias")
        super().__setattr__(name, value)
        # Parameters come in the order of an ordinary convolution.
        self._parameters["bias"] = bias

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        small, kernel = state_dict.get(f"{prefix}weight"), self.kernel
        if kernel is not None and small is not None and tuple(small.shape[2:]) == kernel.small_size:
            del state_dict[f"{prefix}weight"]
            state_dict.update({f"{prefix}kernel.{name}": value for name, value in kernel.holding(small).items()})
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def is_depthwise_conv(conv: nn.Conv2d) -> bool:
    """Whether a convolution has exactly one kernel for each channel."""
    return conv.groups == conv.in_channels == conv.out_channels


def pads_by_image_size(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads as TensorFlow does at a stride: unevenly, and depending on the size of the image."""
    if isinstance(conv, EnlargedConv2d):
        return conv.pads_by_image_size
    return isinstance(conv, Conv2dSame) and max(conv.stride) > 1
