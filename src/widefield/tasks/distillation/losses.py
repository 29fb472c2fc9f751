"""The losses of distillation, as functions of what student and teacher return."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield._core.checks import check
from widefield.tasks.distillation.config import FeatureLoss


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean of T^2 KL(softmax(teacher / T) || softmax(student / T)) over images.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2. It needs no
    targets, so mixed images are as good as others.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C), without gradient.
        temperature: T.

    Raises:
        InputError: If the shapes differ.
    """
    student, teacher = _logits(student, teacher)
    log_student = (student / temperature).log_softmax(1)
    log_teacher = (teacher / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def nkd_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 1.0, non_target_weight: float = 1.5
) -> Tensor:
    """Return the normalised distillation loss, without the cross-entropy that it is added to.

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation" (ICCV 2023). With the target class
    t, the probabilities T of the teacher and S of the student, and those of the other classes normalised to a sum of 1
    at the temperature (N(.)):  -T_t log S_t - gamma temperature^2 sum_{i != t} N(T)_i log N(S)_i, averaged over images.
    Published values are gamma 1.5 (1 for DeiT, and in SLaK's code) and temperature 1.

    Of soft targets (mixed images) the class of the largest share counts as the target, the first of equal ones, as in
    the published code; the mixture as such is left to the cross-entropy.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C), without gradient.
        targets: Class indices (N,), or distributions (N, C).
        temperature: Of the non-target classes.
        non_target_weight: gamma.

    Raises:
        InputError: If the shapes differ, or there is one class only.
    """
    student, teacher = _logits(student, teacher)
    check(
        student.shape[1] > 1, "two or more classes for the method nkd", f"{student.shape[1]}", "use more classes, or kd"
    )
    target = (targets.argmax(1) if targets.ndim == 2 else targets)[:, None]
    at_target = -teacher.softmax(1).gather(1, target) * student.log_softmax(1).gather(1, target)
    is_target = torch.zeros_like(student, dtype=torch.bool).scatter(1, target, True)
    others = (teacher / temperature).masked_fill(is_target, -torch.inf).softmax(1)
    log_others = (student / temperature).masked_fill(is_target, -torch.inf).log_softmax(1)
    # 0 * -inf at the target would be nan.
    elsewhere = -(others * log_others.masked_fill(is_target, 0.0)).sum(1)
    return at_target.mean() + non_target_weight * temperature**2 * elsewhere.mean()


def feature_loss(student: Tensor, teacher: Tensor, kind: FeatureLoss = "smooth_l1", beta: float = 2.0) -> Tensor:
    """Return how far the student's features are from the teacher's, averaged over all elements.

    Source: Huang et al., "Are Large Kernels Better Teachers than Transformers for ConvNets?" (ICML 2023), in whose code
    features are raw, and compared by a smooth L1 loss with beta 2, or by the mean squared error. Standardised features
    are the teacher's brought to mean 0 and variance 1 over the channels of each position (a LayerNorm without scale) as
    in Wei et al., "Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via Feature Distillation" (2022):
    teachers differ in scale by orders of magnitude.

    Args:
        student: Adapted features (N, C, H, W).
        teacher: Features of the same shape, without gradient.
        kind: "smooth_l1" or "mse" of raw features, or "standardised_mse".
        beta: For "smooth_l1", whose loss of a difference d is d^2 / (2 beta) where |d| < beta, else |d| - beta / 2.

    Raises:
        InputError: If the shapes differ.
    """
    student, teacher = _pair(student, teacher, "feature maps")
    if kind == "smooth_l1":
        return F.smooth_l1_loss(student, teacher, beta=beta)
    if kind == "standardised_mse":
        variance, mean = torch.var_mean(teacher, dim=1, correction=0, keepdim=True)
        teacher = (teacher - mean) * (variance + 1e-6).rsqrt()
    return F.mse_loss(student, teacher)


def _logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return _pair(student, teacher, "logits")


def _pair(student: Tensor, teacher: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Both in float32 at least, the teacher's as a constant."""
    check(
        student.shape == teacher.shape,
        f"{what} of the student's shape {tuple(student.shape)} from the teacher",
        f"{tuple(teacher.shape)}",
        "use a teacher for the same classes and image size",
    )
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)
