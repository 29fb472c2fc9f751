"""Distillation: a student that also learns what a teacher would say, such as small kernels from large ones."""

from widefield.tasks.distillation.config import DistillationConfig as DistillationConfig
from widefield.tasks.distillation.losses import feature_loss as feature_loss
from widefield.tasks.distillation.losses import kd_loss as kd_loss
from widefield.tasks.distillation.losses import nkd_loss as nkd_loss
from widefield.tasks.distillation.student import AdaptedStudent as AdaptedStudent
from widefield.tasks.distillation.student import student_patterns as student_patterns
from widefield.tasks.distillation.student import student_weights as student_weights
from widefield.tasks.distillation.task import DistillationTask as DistillationTask
from widefield.tasks.distillation.teacher import Teacher as Teacher
