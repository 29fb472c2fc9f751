"""Measuring effective receptive fields: image after image, to be broken off and taken up at any of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from widefield._core.checks import check, check_name
from widefield._core.errors import RunError
from widefield.analysis.contribution import Location, contribution, frozen
from widefield.analysis.contribution_state import (
    ContributionState,
    check_same_images,
    digest_images,
    digest_weights,
    load_state,
)
from widefield.analysis.contribution_statistics import ContributionStatistics
from widefield.analysis.features import Features, Layer
from widefield.analysis.receptive_field import THRESHOLDS, Around, ReceptiveField
from widefield.analysis.recomputation import recomputing

_LARGE_IMAGE = 512 * 512
_SECONDS_BETWEEN_SAVES = 30.0


def measure_receptive_field(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    layer: Layer = None,
    location: Location | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    around: Around = "image",
    checkpointing: bool | None = None,
    state_file: str | Path | None = None,
    on_progress: Callable[[int], object] | None = None,
    name: str | None = None,
    weights: str = "",
) -> ReceptiveField:
    """Measure the effective receptive field of one location, as `measure_receptive_fields` does for several.

    Args:
        model: As there.
        images: As there.
        layer: As there.
        location: Row and column in the feature map; the centre (h // 2, w // 2) if not given.
        thresholds: As there.
        around: As there.
        checkpointing: As there.
        state_file: As there.
        on_progress: As there.
        name: As there.
        weights: As there.

    Returns:
        Its field.

    Raises:
        InputError: As there.
        RunError: As there.
    """
    (only,) = measure_receptive_fields(
        model,
        images,
        layer=layer,
        locations=None if location is None else (location,),
        thresholds=thresholds,
        around=around,
        checkpointing=checkpointing,
        state_file=state_file,
        on_progress=on_progress,
        name=name,
        weights=weights,
    )
    return only


def measure_receptive_fields(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    layer: Layer = None,
    locations: Sequence[Location] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    around: Around = "image",
    checkpointing: bool | None = None,
    state_file: str | Path | None = None,
    on_progress: Callable[[int], object] | None = None,
    name: str | None = None,
    weights: str = "",
) -> tuple[ReceptiveField, ...]:
    """Measure the effective receptive fields of locations of a feature map, over images.

    Network, device and gradients are left as they were; the computation runs where the parameters are, in their type.

    Args:
        model: Any network on images.
        images: Normalised, (1, C, H, W) or (C, H, W), all of one size: `PhotoTensors`, `NoiseTensors` or any other.
        layer: Whose output to look at: see `Features`.
        locations: Row and column in the feature map; the centre (h // 2, w // 2) if not given.
        thresholds: Shares t of the area ratios r(t).
        around: What to centre squares and profiles on: see `ReceptiveField.centre_px`.
        checkpointing: Whether to compute blocks again in the backward pass rather than keep what is in them, which
            needs a fraction of the memory and a third more time; if not said, above 512 x 512 pixels.
        state_file: File to keep the computation in, every half minute and at the end. If it is there already, the
            images that it has seen are not computed again, and the result is the same, on a CPU bit for bit.
        on_progress: Called with 1 after each image.
        name: What to call the network in the result; its class if not given.
        weights: Where its weights are from, for the result.

    Returns:
        A field for each location.

    Raises:
        InputError: If there is no image, sizes differ, the state is that of another network or other images, or as
            `Features` and `contribution`.
        RunError: If no image has finite gradients.

    Source: RepLKNet, arXiv 2203.06717, and its published code: 50 photos at 1024 px, bicubic without a crop.
    """
    for threshold in thresholds:
        check(0 < threshold < 1, "a threshold between 0 and 1", f"{threshold}", "use a share such as 0.5")
    check_name(around, ("image", "map"), "centre")
    features = Features(model, layer)
    file = None if state_file is None else Path(state_file)
    request = f"{_title(layer)} at {'the centre' if locations is None else ', '.join(map(str, locations))}"
    state = ContributionState("", request) if file is None else load_state(file, digest_weights(model), request)
    known, seen, digest = state.seen, 0, ""
    with frozen(model), _kept(state, file) as keep:
        for seen, image in enumerate(images, 1):
            batch = image if image.dim() == 4 else image[None]
            _check_image(batch, state)
            if file is not None:
                digest = digest_images(digest, batch)
            if seen == known:
                check_same_images(state, seen, digest, file)
            elif seen > known:
                _see(features, batch, locations, checkpointing, state)
                state.seen, state.digest = seen, digest
                keep()
            if on_progress is not None:
                on_progress(1)
    check(seen > 0, "at least one image", "none", "give some")
    if seen < known:
        check_same_images(state, seen, digest, file)
    return _results(state, tuple(thresholds), around, name or type(model).__name__, weights)


def _title(layer: Layer) -> str:
    if layer is None:
        return "the default layer"
    return repr(layer) if isinstance(layer, str) else getattr(layer, "__name__", type(layer).__name__)


@contextmanager
def _kept(state: ContributionState, file: Path | None) -> Iterator[Callable[[], None]]:
    """Save what is new now and then, and at the end, whatever ends it."""
    saved_at, saved_seen = time.monotonic(), state.seen

    def keep() -> None:
        nonlocal saved_at, saved_seen
        if file is not None and time.monotonic() - saved_at > _SECONDS_BETWEEN_SAVES:
            state.save(file)
            saved_at, saved_seen = time.monotonic(), state.seen

    try:
        yield keep
    finally:
        if file is not None and state.seen > saved_seen:
            state.save(file)


def _check_image(batch: Tensor, state: ContributionState) -> None:
    check(
        batch.dim() == 4 and batch.shape[0] == 1,
        "images (1, C, H, W) or (C, H, W)",
        f"one of shape {tuple(batch.shape)}",
        "give them one by one",
    )
    height, width = batch.shape[-2:]
    if not state.seen:
        state.input_size = (height, width)
    check(
        state.input_size == (height, width),
        f"images of one size, {state.input_size[0]} x {state.input_size[1]} px as the first",
        f"one of {height} x {width} px",
        "resize them",
    )


def _see(
    features: Features,
    batch: Tensor,
    locations: Sequence[Location] | None,
    checkpointing: bool | None,
    state: ContributionState,
) -> None:
    """Count one image in."""
    parameter = next((p for p in features.model.parameters() if p.is_floating_point()), None)
    pixels = batch if parameter is None else batch.to(parameter.device, parameter.dtype)
    features.find(pixels)
    is_large = batch.shape[-2] * batch.shape[-1] > _LARGE_IMAGE
    saves_memory = is_large if checkpointing is None else checkpointing
    with recomputing(features.model, features.module_name) if saves_memory else nullcontext():
        found = contribution(features, pixels, locations)
    state.layer, state.locations, state.output_size = features.layer, found.locations, found.output_size
    if not torch.isfinite(found.maps).all():
        state.skipped += 1
        return
    if state.statistics is None:
        state.statistics = ContributionStatistics(len(found.locations), state.input_size)
    state.statistics.add(found.maps)


def _results(
    state: ContributionState, thresholds: tuple[float, ...], around: Around, name: str, weights: str
) -> tuple[ReceptiveField, ...]:
    statistics = state.statistics
    if statistics is None:
        raise RunError(
            f"Expected finite gradients for at least one image, but got none for all {state.skipped} of {name}: "
            "look for weights that are not finite, or for images far from those that it was trained on."
        )
    errors = statistics.standard_error
    return tuple(
        ReceptiveField(
            name=name,
            weights=weights,
            layer=state.layer,
            location=location,
            input_size=state.input_size,
            output_size=state.output_size,
            images=statistics.images,
            skipped=state.skipped,
            mean=statistics.mean[index].clone(),
            standard_error=errors[index],
            group_sums=statistics.group_sums[:, index].clone(),
            thresholds=thresholds,
            around=around,
        )
        for index, location in enumerate(state.locations)
    )
