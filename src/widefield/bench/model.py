"""Whole networks against each other in one process: inference or a training step, with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.bench.entries import AUTO, Form, ModelEntry, Result
from widefield.bench.environment import environment
from widefield.bench.gate import WORST_LIMIT
from widefield.bench.race import Contestant, race
from widefield.bench.records import Record
from widefield.bench.timers import Timer, timer_for
from widefield.models import create_model, list_models
from widefield.nn import DecomposedConv2d, DepthwiseConv2d, PeripheralConv2d
from widefield.ops import use_backend
from widefield.ops.depthwise_conv.problem import Layout, memory_format
from widefield.reparam import merge

Mode = Literal["inference", "train_step"]

OUTPUT_LIMITS = {torch.float32: 1e-3, torch.float16: WORST_LIMIT, torch.bfloat16: WORST_LIMIT}
"""Largest relative difference of logits between a network on our dispatcher and on PyTorch's convolution."""

ATEN_NCHW = "aten_nchw"
"""The backend "aten" on inputs made contiguous first: PyTorch's convolution as a network in NCHW has it."""

SPATIAL = (DepthwiseConv2d, DecomposedConv2d, PeripheralConv2d)
"""Layers that call the operators."""

CLOSED = 1e-2
"""A residual branch whose scale starts below this is as good as absent."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How networks are run."""

    batch: int = 1
    image_size: int = 224
    dtype: torch.dtype = torch.float32
    """Of weights and images in inference; of autocast in a training step, whose weights stay float32."""
    device: str = "cpu"
    layout: Layout = "contiguous"
    mode: Mode = "inference"
    is_merged: bool = True
    """Whether ours are merged first; a training step is always that of the train form."""
    is_compiled: bool = False
    """Whether `torch.compile` is put around each network."""


def bench_models(
    name: str,
    *,
    against: Sequence[str] = (),
    backends: Sequence[str] = (AUTO,),
    settings: ModelSettings | None = None,
    budget_s: float = 30.0,
    timer: Timer | None = None,
    progress: Callable[[str], object] | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> Record:
    """Measure a network's throughput beside that of others.

    One of ours is timed only if its logits for one image agree with those on the backend "aten".

    Args:
        name: The network: one of ours, or any of timm's.
        against: Others, timed in turns with it.
        backends: Backends of depthwise convolution that `name` is timed on; "auto" leaves the choice to the dispatcher,
            "aten_nchw" is `ATEN_NCHW`.
        settings: How they are run.
        budget_s: Seconds of timing for all together.
        timer: Takes the samples; the device's own if not given.
        progress: Called with the name of each network before it is made.
        model_kwargs: Passed to the constructor of every network.

    Returns:
        A record of one entry for each network and backend, in the order given.

    Raises:
        InputError: If there is no network or backend of a name, or a size is not positive.
    """
    how = settings or ModelSettings()
    check(
        how.batch > 0 and how.image_size > 0, "positive sizes", f"{how.batch}, {how.image_size}", "give whole numbers"
    )
    for backend in backends:
        if backend not in (AUTO, ATEN_NCHW):
            with use_backend(backend):
                pass
    asked = [(name, backend) for backend in backends] if _is_ours(name) else [(name, "")]
    runs = asked + [(other, AUTO if _is_ours(other) else "") for other in against]
    networks: dict[str, _Network] = {}
    entries: dict[str, ModelEntry] = {}
    contestants: list[Contestant] = []
    for model_name, backend in runs:
        if progress is not None:
            progress(model_name)
        if model_name not in networks:
            networks[model_name] = _network(model_name, how, model_kwargs or {})
        network = networks[model_name]
        key = f"{model_name} {backend}".strip()
        result = _checked(key, network, backend, how)
        entries[key] = _entry(model_name, network, backend, result, how)
        if not result.is_wrong:
            contestants.append(Contestant(name=key, call=_call(network, backend, how)))
    # Networks stream more than any cache holds: one set of images is enough.
    timings = race(contestants, timer or timer_for(how.device, 2**40), budget_s=budget_s)
    models = [
        replace(entry, result=entry.result.with_timing(timings[key])) if key in timings else entry
        for key, entry in entries.items()
    ]
    return Record(kind="models", environment=environment(how.device), planned=len(models), models=tuple(models))


def throughput_ratio(record: Record, index: int = 0, other: int = 1) -> float:
    """Return how many times as many images per second one entry does as another; NaN if that was not timed."""
    slower = record.models[other].images_per_s
    return record.models[index].images_per_s / slower if slower else math.nan


@dataclass(frozen=True, kw_only=True)
class _Network:
    module: nn.Module
    """What the check runs."""
    timed: Callable[[Tensor], Tensor]
    """What is timed: the module, compiled if that was asked for."""
    form: Form
    images: Tensor


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in list_models()


def _network(name: str, how: ModelSettings, model_kwargs: dict[str, Any]) -> _Network:
    torch.manual_seed(0)
    is_ours, is_training = _is_ours(name), how.mode == "train_step"
    settings = None if is_ours else timm.get_pretrained_cfg(name, allow_unregistered=True)
    sized = {"img_size": how.image_size} if settings is not None and settings.fixed_input_size else {}
    model = create_model(name, **sized, **model_kwargs).eval()
    _open_residual_branches(model)
    is_merged = is_ours and how.is_merged and not is_training
    if is_merged:
        merge(model)
    form = memory_format(how.layout)
    model = cast("nn.Module", cast("Any", model).to(device=how.device, memory_format=form))
    if not is_training:
        model = model.to(how.dtype)
    images = torch.randn(how.batch, 3, how.image_size, how.image_size, device=how.device)
    images = images.to(torch.float32 if is_training else how.dtype).contiguous(memory_format=form)
    return _Network(
        module=model,
        timed=cast("Callable[[Tensor], Tensor]", torch.compile(model) if how.is_compiled else model),
        form="merged" if is_merged else "branched" if is_ours else "as it is",
        images=images,
    )


def _open_residual_branches(model: nn.Module) -> None:
    """Undo initialisations that start blocks as the identity: a network that ignores its kernels checks nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.dim() == 1 and not name.endswith("bias")
            if is_scale and bool(parameter.abs().max() < CLOSED):
                parameter.fill_(0.1)


@contextmanager
def _on(backend: str, module: nn.Module) -> Generator[None]:
    if backend in ("", AUTO):
        yield
    elif backend != ATEN_NCHW:
        with use_backend(backend):
            yield
    else:
        layers = [layer for layer in module.modules() if isinstance(layer, SPATIAL)]
        handles = [layer.register_forward_pre_hook(_made_contiguous) for layer in layers]
        try:
            with use_backend("aten"):
                yield
        finally:
            for handle in handles:
                handle.remove()


def _made_contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = inputs
    return x.contiguous(), *others


def _checked(key: str, network: _Network, backend: str, how: ModelSettings) -> Result:
    """Compare the logits of one image with those on PyTorch's convolution."""
    if not backend:
        return Result(name=key)
    network.module.eval()
    with torch.no_grad():
        with use_backend("aten"):
            expected = network.module(network.images[:1]).double()
        with _on(backend, network.module):
            actual = network.module(network.images[:1]).double()
    error = float((actual - expected).norm() / expected.norm())
    if not math.isfinite(error):
        return Result(name=key, is_wrong=True, failure="its logits are not finite")
    largest = OUTPUT_LIMITS[how.dtype if how.mode == "inference" else torch.float32]
    return Result(name=key, relative_error=error, is_wrong=error > largest)


def _call(network: _Network, backend: str, how: ModelSettings) -> Callable[[int], object]:
    if how.mode == "train_step":
        return _training_step(network, backend, how)

    def infer(index: int) -> Tensor:
        with torch.no_grad(), _on(backend, network.module):
            return network.timed(network.images)

    return infer


def _training_step(network: _Network, backend: str, how: ModelSettings) -> Callable[[int], object]:
    is_cuda, is_half = how.device == "cuda", how.dtype != torch.float32
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=1e-4, capturable=is_cuda)
    labels = torch.zeros(how.batch, dtype=torch.long, device=how.device)

    def step(index: int) -> None:
        network.module.train()
        with _on(backend, network.module), torch.autocast(how.device, how.dtype, enabled=is_half):
            loss = F.cross_entropy(network.timed(network.images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _entry(name: str, network: _Network, backend: str, result: Result, how: ModelSettings) -> ModelEntry:
    return ModelEntry(
        model=name,
        form=network.form,
        mode=how.mode,
        backend=backend,
        batch=how.batch,
        image_size=how.image_size,
        dtype=str(how.dtype).removeprefix("torch."),
        device=how.device,
        layout=how.layout,
        is_compiled=how.is_compiled,
        parameters=sum(parameter.numel() for parameter in network.module.parameters()),
        result=result,
    )
