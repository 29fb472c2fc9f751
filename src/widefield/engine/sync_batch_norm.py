"""BatchNorm whose statistics are those of the batches of all processes, on any device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class _SyncedNormalisation(torch.autograd.Function):
    """Normalise by mean and biased variance over all processes; backward sums its two terms over them too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = wide.new_tensor([wide.numel() // wide.shape[1]])
        sums = torch.cat([wide.sum(over), count])
        dist.all_reduce(sums)
        total = sums[-1]
        mean = sums[:-1] / total
        deviation = wide - mean.view(shape)
        # A second reduction of squared deviations: E[x^2] - E[x]^2 would cancel where the mean is large.
        variance = deviation.square().sum(over)
        dist.all_reduce(variance)
        variance /= total
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight
        y = deviation * scale.view(shape)
        if bias is not None:
            y = y + bias.view(shape)
        ctx.save_for_backward(x, weight, bias, mean, inverse, total)
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse, total = ctx.saved_tensors
        over = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        grad = grads[0].to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        grad_bias = grad.sum(over)
        grad_weight = (grad * normalised).sum(over)
        grad_x = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([grad_bias, grad_weight])
            dist.all_reduce(sums)
            sums /= total
            centred = grad - sums[0].view(shape) - normalised * sums[1].view(shape)
            scale = inverse if weight is None else inverse * weight
            grad_x = (centred * scale.view(shape)).to(x.dtype)
        return (
            grad_x,
            None if weight is None else grad_weight.to(weight.dtype),
            None if bias is None else grad_bias.to(bias.dtype),
            None,
        )


def _forward(module: _BatchNorm, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    if not module.training or not dist.is_initialized() or dist.get_world_size() == 1:
        return plain(x)
    module._check_input_dim(x)
    y, mean, variance, total = _SyncedNormalisation.apply(x, module.weight, module.bias, module.eps)  # pyright: ignore[reportGeneralTypeIssues]
    if module.track_running_stats and module.running_mean is not None and module.running_var is not None:
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.add_(1)
        share = 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        with torch.no_grad():
            unbiased = variance * (total / (total - 1).clamp(min=1))
            module.running_mean.lerp_(mean.to(module.running_mean.dtype), share)
            module.running_var.lerp_(unbiased.to(module.running_var.dtype), share)
    return y


class SyncBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the batches of all processes; see `SyncBatchNorm2d`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (N, C) or (N, C, L)."""
        return _forward(self, input, super().forward)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are taken over the batches of all processes.

    It works on any device (`torch.nn.SyncBatchNorm` refuses CPU tensors), weights every process by its number of
    values, normalises by the biased variance and keeps the unbiased one in `running_var`. State-dict keys, evaluation
    mode and a single process are those of `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (N, C, H, W)."""
        return _forward(self, input, super().forward)


class SyncBatchNorm3d(nn.BatchNorm3d):
    """`nn.BatchNorm3d` over the batches of all processes; see `SyncBatchNorm2d`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (N, C, D, H, W)."""
        return _forward(self, input, super().forward)


class SyncBatchNormAct2d(SyncBatchNorm2d):
    """The counterpart of timm's `BatchNormAct2d`, with its dropout and activation; made by conversion alone."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (N, C, H, W), drop, activate."""
        return self.act(self.drop(super().forward(input)))


@dataclass(frozen=True, kw_only=True)
class BatchNormConversion:
    """The BatchNorm layers that were replaced, so that they can be put back."""

    replaced: list[tuple[nn.Module, str, nn.Module]]
    """Parent, name of the child, and the layer that was there."""

    def restore(self) -> None:
        """Put the layers back, with the weights and statistics that their counterparts have reached."""
        for parent, name, plain in self.replaced:
            parent._modules[name] = plain
            vars(plain).pop("process_group", None)


def _counterpart(module: nn.Module) -> type[nn.Module] | None:
    from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct

    tensor = next((t for t in (module.weight, module.running_mean) if isinstance(t, Tensor)), None)
    on_cuda = torch.cuda.is_available() if tensor is None else tensor.is_cuda
    kind = type(module)
    if on_cuda and kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return nn.SyncBatchNorm
    if kind is BatchNormAct2d:
        return SyncBatchNormAct if on_cuda else SyncBatchNormAct2d
    ours: dict[type[nn.Module], type[nn.Module]] = {
        nn.BatchNorm1d: SyncBatchNorm1d,
        nn.BatchNorm2d: SyncBatchNorm2d,
        nn.BatchNorm3d: SyncBatchNorm3d,
    }
    return ours.get(kind)


def convert_sync_batch_norm(model: nn.Module) -> BatchNormConversion:
    """Replace the BatchNorm layers inside `model`, in place, by synchronised counterparts.

    Layers on CUDA get torch's own `SyncBatchNorm`, others the classes of this file. A counterpart shares parameters,
    buffers, hooks and every other attribute with the layer that it stands for, so optimizers built before stay valid.
    Subclasses of BatchNorm that are not known here are left alone and named in a warning.

    Args:
        model: The model, already on its device.

    Returns:
        The conversion; its `restore()` gives the plain layers back.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    counterparts: dict[int, nn.Module] = {}
    synced = (nn.SyncBatchNorm, SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if not isinstance(child, _BatchNorm) or isinstance(child, synced):
                continue
            if id(child) not in counterparts:
                kind = _counterpart(child)
                if kind is None:
                    logger.warning("%s is not synchronised between processes: %s", name, type(child).__name__)
                    continue
                counterpart: nn.Module = object.__new__(kind)
                object.__setattr__(counterpart, "__dict__", vars(child))
                if issubclass(kind, nn.SyncBatchNorm):
                    vars(child)["process_group"] = None
                counterparts[id(child)] = counterpart
            replaced.append((parent, name, child))
            parent._modules[name] = counterparts[id(child)]
    return BatchNormConversion(replaced=replaced)
