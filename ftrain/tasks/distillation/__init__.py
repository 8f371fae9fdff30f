"""Training of a student model on the outputs of a teacher.

The teacher is either another model or the optimizer's average of the student.

    Teacher a model whose tensors are in `state.extras`
    with_teacher         steps that start with a teacher in the extras
    self_taught          steps whose teacher is the optimizer's average of the student
    with_running_mean    steps that average a metric over batches, such as DINO's center

The losses `distillation`, `feature_distillation`, `byol` and `dino` go into `make_steps`, with a teacher
bound by `functools.partial`. Start reading at `teacher.py`.
"""

from ftrain.tasks.distillation.losses import byol, dino, distillation, feature_distillation
from ftrain.tasks.distillation.self_taught import self_taught, with_running_mean
from ftrain.tasks.distillation.teacher import Teacher, with_teacher

__all__ = [
    "Teacher",
    "byol",
    "dino",
    "distillation",
    "feature_distillation",
    "self_taught",
    "with_running_mean",
    "with_teacher",
]
