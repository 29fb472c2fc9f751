"""Losses against slow definitions in float64, written out class by class as the papers have them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from widefield._core.errors import InputError
from widefield.tasks.distillation import feature_loss, kd_loss, nkd_loss


def logits(batch: int, classes: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    return student, teacher


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def kd_by_definition(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax(theirs, temperature), softmax(mine, temperature)
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


def nkd_by_definition(student: Tensor, teacher: Tensor, targets: list[int], temperature: float, gamma: float) -> float:
    total = 0.0
    for mine, theirs, target in zip(student.tolist(), teacher.tolist(), targets, strict=True):
        total -= softmax(theirs, 1)[target] * math.log(softmax(mine, 1)[target])
        p, q = softmax(theirs, temperature), softmax(mine, temperature)
        for other in range(len(p)):
            if other != target:
                normalised = p[other] / (1 - p[target]), q[other] / (1 - q[target])
                total -= gamma * temperature**2 * normalised[0] * math.log(normalised[1])
    return total / len(student)


problems = given(
    batch=st.integers(1, 5),
    classes=st.integers(2, 9),
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.5, 8),
    gamma=st.floats(0, 4),
)


@settings(max_examples=60, deadline=None)
@problems
def test_kd_is_the_softened_divergence(batch: int, classes: int, seed: int, temperature: float, gamma: float) -> None:
    student, teacher = logits(batch, classes, seed)
    expected = kd_by_definition(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@problems
def test_nkd_is_the_published_sum(batch: int, classes: int, seed: int, temperature: float, gamma: float) -> None:
    student, teacher = logits(batch, classes, seed)
    targets = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    expected = nkd_by_definition(student, teacher, targets.tolist(), temperature, gamma)
    assert nkd_loss(student, teacher, targets, temperature, gamma).item() == pytest.approx(expected, rel=1e-9)


def published_nkd(student: Tensor, teacher: Tensor, mixed: Tensor) -> Tensor:
    """SLaK's loss restated: target by the largest share, the others by a softmax that the target is pushed out of."""
    rows: list[Tensor] = []
    for mine, theirs, target in zip(student, teacher, mixed.argmax(1).tolist(), strict=True):
        at_target = theirs.softmax(0)[target] * mine.softmax(0)[target].log()
        others = [index for index in range(len(mine)) if index != target]
        elsewhere = theirs[others].softmax(0) * mine[others].softmax(0).log()
        rows.append(-at_target - elsewhere.sum())
    return torch.stack(rows).mean()


def feature_by_definition(student: Tensor, teacher: Tensor, kind: str, beta: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for mine, theirs in zip(student.flatten(), teacher.flatten(), strict=True):
        distance = (mine - theirs).abs()
        if kind == "mse":
            total = total + distance**2
        elif bool(distance < beta):
            total = total + distance**2 / (2 * beta)
        else:
            total = total + distance - beta / 2
    return total / student.numel()


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


def test_nkd_with_all_weights_one_is_the_published_loss_and_gradient() -> None:
    student, teacher = logits(6, 7, 8)
    mixed = torch.rand(6, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    student.requires_grad_()
    ours, theirs = nkd_loss(student, teacher, mixed, 1.0, 1.0), published_nkd(student, teacher, mixed)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(ours, student), gradient(theirs, student), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(("kind", "beta"), [("smooth_l1", 2.0), ("smooth_l1", 0.3), ("mse", 2.0)])
def test_raw_features_are_compared_as_defined_gradient_included(kind: Any, beta: float) -> None:
    generator = torch.Generator().manual_seed(11)
    student, teacher = 2 * torch.randn(2, 2, 3, 2, 4, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    ours, expected = feature_loss(student, teacher, kind, beta), feature_by_definition(student, teacher, kind, beta)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(ours, student), gradient(expected, student), rtol=1e-12, atol=1e-15)
    if kind == "smooth_l1" and beta == 2.0:
        assert torch.equal(feature_loss(student, teacher), ours)


def test_raw_features_depend_on_the_teachers_scale_and_standardised_ones_do_not() -> None:
    student, teacher = torch.randn(2, 2, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw = feature_loss(student, 10 * teacher) / feature_loss(student, teacher)
    assert raw > 3
    same = feature_loss(student, 10 * teacher, "standardised_mse") / feature_loss(student, teacher, "standardised_mse")
    assert abs(float(same) - 1) < 1e-4


def test_of_soft_targets_nkd_takes_the_largest_share() -> None:
    student, teacher = logits(3, 5, 0)
    mixed = torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1], [0.0, 0.5, 0.0, 0.5, 0.0], [0.7, 0.3, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        nkd_loss(student, teacher, mixed), nkd_loss(student, teacher, torch.tensor([1, 1, 0])), rtol=0, atol=0
    )


def test_gradients_are_those_of_differences_and_end_at_the_teacher() -> None:
    student, teacher = logits(3, 5, 1)
    targets = torch.tensor([0, 4, 2])
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kd_loss(x, teacher, 3.0), student)
    assert torch.autograd.gradcheck(lambda x: nkd_loss(x, teacher, targets, 2.0), student)
    maps = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True).unbind()
    kinds: tuple[Any, ...] = ("smooth_l1", "mse", "standardised_mse")
    for kind in kinds:
        assert torch.autograd.gradcheck(lambda x, k=kind: feature_loss(x, maps[1][None], k), maps[0][None])
    teacher.requires_grad_()
    (kd_loss(student, teacher) + nkd_loss(student, teacher, targets)).backward()
    assert teacher.grad is None


def test_the_gradient_of_kd_vanishes_at_the_teacher_and_that_of_nkd_among_the_other_classes() -> None:
    teacher = logits(4, 6, 2)[1]
    targets = torch.tensor([0, 1, 2, 3])
    same = teacher.clone().requires_grad_()
    kd_loss(same, teacher, 4.0).backward()
    torch.testing.assert_close(same.grad, torch.zeros_like(teacher), rtol=0, atol=1e-14)
    # Only the ratios between the other classes count there, so that their sum may differ from the teacher's.
    shifted = teacher.scatter(1, targets[:, None], 7.0).requires_grad_()
    (nkd_loss(shifted, teacher, targets, 2.0, 1.0) - nkd_loss(shifted, teacher, targets, 2.0, 0.0)).backward()
    torch.testing.assert_close(shifted.grad, torch.zeros_like(teacher), rtol=0, atol=1e-14)


def test_losses_are_finite_and_in_float32_where_a_softmax_saturates_in_half_precision() -> None:
    student, teacher = logits(4, 6, 3, scale=200.0)
    for dtype in (torch.float16, torch.bfloat16):
        mine = student.to(dtype).requires_grad_()
        loss = nkd_loss(mine, teacher.to(dtype), torch.tensor([0, 1, 2, 3])) + kd_loss(mine, teacher.to(dtype))
        assert loss.dtype == torch.float32
        loss.backward()
        assert mine.grad is not None
        assert loss.isfinite()
        assert mine.grad.isfinite().all()


def test_features_are_compared_with_the_teachers_at_mean_0_and_variance_1() -> None:
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 2, 7, 3, 4, generator=generator, dtype=torch.float64)
    expected = F.layer_norm((1000 * teacher + 3).permute(0, 2, 3, 1), (7,), eps=1e-6).permute(0, 3, 1, 2)
    error = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), expected.flatten().tolist(), strict=True))
    loss = feature_loss(student, 1000 * teacher + 3, "standardised_mse")
    assert loss.item() == pytest.approx(error / student.numel(), rel=1e-10)


def test_what_cannot_be_compared_is_told() -> None:
    with pytest.raises(
        InputError,
        match=r"Expected logits of the student's shape \(2, 3\) from the teacher, but got \(2, 4\): use a teacher",
    ):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match=r"Expected feature maps of the student's shape \(1, 2, 4, 4\) from"):
        feature_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2))
    with pytest.raises(InputError, match="Expected two or more classes for the method nkd, but got 1: use more"):
        nkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 0]))
