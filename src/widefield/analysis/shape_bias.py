"""Does a classifier go by shape or by texture, where the two contradict each other (Geirhos et al., ICLR 2019)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from widefield._core.checks import check
from widefield._core.files import write_text_atomically
from widefield.analysis.categories import CATEGORIES, CategoryMapping
from widefield.analysis.cue_conflict import Stimuli

Transform = Callable[[Image.Image], Tensor]
Progress = Callable[[int], None]

RESAMPLES = 10_000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True, kw_only=True)
class CueDecisions:
    """What was decided on conflict images, of all shapes or of one."""

    images: int
    """Images with a conflict."""
    shape_decisions: int
    """Those of which the category of the shape was chosen."""
    texture_decisions: int
    """Those of which the category of the texture was chosen; the rest was neither."""
    shape_fraction: float | None
    """Share of the shape among decisions for one of the two; None where there are none."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of that share, over images."""
    shape_accuracy: float
    """Share of all these images of which the category of the shape was chosen."""
    texture_accuracy: float
    """Share of all these images of which the category of the texture was chosen."""


@dataclass(frozen=True, kw_only=True)
class ShapeBias:
    """The shape bias of one classifier."""

    overall: CueDecisions
    """All images taken together: `overall.shape_fraction` is what the papers call shape bias."""
    category_mean: float | None
    """Mean of the share of the shape over the categories in which there is one; categories count alike."""
    by_shape: dict[str, CueDecisions]
    """The images of each shape category, by name."""
    chance: float
    """Share of images of which a guess names one of the two cues: with less, the shape bias says nothing."""
    equal_pairs: int = 0
    """Images without a conflict, which were left out."""
    uncovered: int = 0
    """Images left out because the classifier has no class for one of their cues."""


@dataclass(frozen=True, kw_only=True)
class ShapeAccuracy:
    """How often the shape was recognised where there is no texture."""

    images: int
    """Images that were judged."""
    accuracy: float
    """Share of them whose category was chosen."""
    by_shape: dict[str, float]
    """The same for each category."""
    uncovered: int = 0
    """Images left out because the classifier has no class for their shape."""


@dataclass(frozen=True, kw_only=True)
class CueReport:
    """One classifier and what it was found to go by."""

    name: str
    """What to call it."""
    weights: str
    """Where its weights are from."""
    bias: ShapeBias
    """On cue-conflict images."""
    edges: ShapeAccuracy | None = None
    """On edge drawings, if it was asked."""
    silhouettes: ShapeAccuracy | None = None
    """On silhouettes, if it was asked."""


def category_probabilities(probabilities: Tensor, mapping: CategoryMapping) -> Tensor:
    """Average the probabilities of the classes of each category.

    The mean and not the sum, so that a category with many classes is not chosen for their number (Geirhos et al.,
    arXiv 1808.08750, appendix). What the classes outside of all categories have does not count, so rows do not add up
    to 1.

    Args:
        probabilities: (N, classes).
        mapping: Which classes belong to each category.

    Returns:
        (N, categories), in the order of `mapping.categories`.

    Raises:
        InputError: If there are more or fewer classes than in the mapping.
    """
    check(
        probabilities.dim() == 2 and probabilities.shape[1] == mapping.num_classes,
        f"probabilities of shape (N, {mapping.num_classes})",
        f"{tuple(probabilities.shape)}",
        "use the mapping of this classifier",
    )
    columns = [probabilities[:, list(places)].mean(1) for places in mapping.members.values()]
    return torch.stack(columns, 1)


def shape_bias(
    decisions: Sequence[str],
    shapes: Sequence[str],
    textures: Sequence[str],
    *,
    categories: int = len(CATEGORIES),
    seed: int = 0,
) -> ShapeBias:
    """Count how often decisions follow the shape, and how often the texture.

    The interval is a percentile bootstrap over images: as many as there are, drawn with replacement from all of them
    together, or from those of the category. There are no strata: with few images of each kind, strata would make the
    interval too narrow. Samples without any decision for one of the two cues are passed over. Where all decisions are
    of one kind the interval is a single point, which says little of the truth.

    Args:
        decisions: The category that was chosen for each image.
        shapes: The category of its shape.
        textures: The category of its texture.
        categories: How many there were to choose from.
        seed: Of the bootstrap.

    Returns:
        The counts and shares.

    Raises:
        InputError: If there are no images, their numbers differ, or an image has no conflict.

    Source: Geirhos et al., ICLR 2019, section 2 and figure 4.
    """
    check(
        len(decisions) == len(shapes) == len(textures) > 0,
        "one decision, one shape and one texture for each of some images",
        f"{len(decisions)}, {len(shapes)} and {len(textures)}",
        "pass lists of the same length",
    )
    equal = sum(shape == texture for shape, texture in zip(shapes, textures, strict=True))
    check(equal == 0, "images whose shape and texture differ", f"{equal} whose do not", "leave these out")
    trials = list(zip(decisions, shapes, textures, strict=True))
    by_shape = {
        category: _count([trial for trial in trials if trial[1] == category], seed) for category in sorted(set(shapes))
    }
    fractions = [each.shape_fraction for each in by_shape.values() if each.shape_fraction is not None]
    return ShapeBias(
        overall=_count(trials, seed),
        category_mean=sum(fractions) / len(fractions) if fractions else None,
        by_shape=by_shape,
        chance=2 / categories,
    )


def shape_accuracy(decisions: Sequence[str], shapes: Sequence[str]) -> ShapeAccuracy:
    """Count how often the category of the shape was chosen.

    Args:
        decisions: The category that was chosen for each image.
        shapes: The category of its shape.

    Returns:
        The shares, overall and for each category.

    Raises:
        InputError: If there are no images, or their numbers differ.
    """
    check(
        len(decisions) == len(shapes) > 0,
        "one decision and one shape for each of some images",
        f"{len(decisions)} and {len(shapes)}",
        "pass lists of the same length",
    )
    right = [decision == shape for decision, shape in zip(decisions, shapes, strict=True)]
    by_shape = {
        category: sum(hit for hit, shape in zip(right, shapes, strict=True) if shape == category)
        / list(shapes).count(category)
        for category in sorted(set(shapes))
    }
    return ShapeAccuracy(images=len(right), accuracy=sum(right) / len(right), by_shape=by_shape)


def evaluate_shape_bias(
    model: nn.Module,
    stimuli: Stimuli,
    mapping: CategoryMapping,
    *,
    transform: Transform,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> ShapeBias:
    """Ask a classifier about cue-conflict images.

    Only images count of whose two cues the classifier has both: of the others it could not choose one if it wanted.

    Args:
        model: Images (N, 3, H, W) -> logits (N, classes), on `device`. Its mode is restored afterwards.
        stimuli: The images, see `open_cue_conflict`.
        mapping: Which of its classes belong to each category.
        transform: Makes the input (3, H, W) of an RGB image.
        batch_size: Images in a batch.
        device: Where the model is.
        seed: Of the bootstrap.
        progress: Called after each batch with the number of its images.

    Returns:
        Its shape bias.

    Raises:
        InputError: If no image is covered, or the model does not give one finite score for each class.
    """
    stimuli = stimuli.within(mapping.categories)
    decisions = decide(
        model, stimuli, mapping, transform=transform, batch_size=batch_size, device=device, progress=progress
    )
    shapes = [item.shape for item in stimuli.items]
    textures = [item.texture or item.shape for item in stimuli.items]
    bias = shape_bias(decisions, shapes, textures, categories=len(mapping.categories), seed=seed)
    return replace(bias, equal_pairs=stimuli.equal_pairs, uncovered=stimuli.uncovered)


def evaluate_shapes(
    model: nn.Module,
    stimuli: Stimuli,
    mapping: CategoryMapping,
    *,
    transform: Transform,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ShapeAccuracy:
    """Return how many edge drawings or silhouettes are recognised; arguments and errors as of `evaluate_shape_bias`."""
    stimuli = stimuli.within(mapping.categories)
    decisions = decide(
        model, stimuli, mapping, transform=transform, batch_size=batch_size, device=device, progress=progress
    )
    return replace(shape_accuracy(decisions, [item.shape for item in stimuli.items]), uncovered=stimuli.uncovered)


@torch.no_grad()
def decide(
    model: nn.Module,
    stimuli: Stimuli,
    mapping: CategoryMapping,
    *,
    transform: Transform,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[str]:
    """Return the category chosen for each image; arguments and errors as of `evaluate_shape_bias`."""
    check(batch_size >= 1, "at least one image in a batch", f"{batch_size}", "use a number from 1")
    decisions: list[str] = []
    with _evaluating(model):
        for start in range(0, len(stimuli), batch_size):
            places = range(start, min(start + batch_size, len(stimuli)))
            images = torch.stack([transform(stimuli.load(place)) for place in places])
            # Half precision, and float32 for a sure network, would round small probabilities to equal zeros.
            probabilities = _logits(model, images.to(device)).double().softmax(1)
            chosen = category_probabilities(probabilities, mapping).argmax(1)
            decisions += [mapping.categories[index] for index in chosen.tolist()]
            if progress is not None:
                progress(len(places))
    return decisions


@torch.no_grad()
def count_classes(model: nn.Module, image: Tensor) -> int:
    """Return the number of outputs of a classifier.

    Args:
        model: Images (N, 3, H, W) -> logits (N, classes). Its mode is restored afterwards.
        image: One input (3, H, W), where the model is.

    Returns:
        The number of classes.

    Raises:
        InputError: If the model gives something else than one score for each class.
    """
    with _evaluating(model):
        return _logits(model, image[None]).shape[1]


def save_reports(path: Path, reports: Sequence[CueReport]) -> None:
    """Write reports as JSON, atomically.

    Args:
        path: A new file.
        reports: One for each classifier.

    Raises:
        InputError: If the file exists.
    """
    check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
    write_text_atomically(path, json.dumps({"models": [asdict(report) for report in reports]}, indent=1) + "\n")


def _count(trials: Sequence[tuple[str, str, str]], seed: int) -> CueDecisions:
    images = len(trials)
    shape = sum(decision == of_shape for decision, of_shape, _ in trials)
    texture = sum(decision == of_texture for decision, _, of_texture in trials)
    return CueDecisions(
        images=images,
        shape_decisions=shape,
        texture_decisions=texture,
        shape_fraction=shape / (shape + texture) if shape + texture else None,
        interval=_bootstrap_interval(shape, texture, images, seed) if shape + texture else None,
        shape_accuracy=shape / images,
        texture_accuracy=texture / images,
    )


def _bootstrap_interval(shape: int, texture: int, images: int, seed: int) -> tuple[float, float]:
    import numpy as np

    # Drawing images with replacement is drawing how many of each of the three outcomes there are.
    outcomes = np.array([shape, texture, images - shape - texture]) / images
    drawn = np.random.default_rng(seed).multinomial(images, outcomes, size=RESAMPLES)
    decided = drawn[drawn[:, :2].sum(1) > 0]
    low, high = np.quantile(decided[:, 0] / decided[:, :2].sum(1), [0.025, 0.975])
    return float(low), float(high)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    output: object = model(images)
    logits = output if isinstance(output, Tensor) else torch.empty(0)
    check(
        logits.dim() == 2 and len(logits) == len(images),
        f"a classifier: one score for each class and image, ({len(images)}, classes)",
        f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}",
        "use a network that classifies images",
    )
    broken = int((~logits.isfinite()).any(1).sum())
    check(
        broken == 0, "finite scores", f"NaN or infinite ones for {broken} of {len(images)} images", "check the weights"
    )
    return logits


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
