"""Tasks: loss, evaluation and metrics for a kind of problem, ready for `make_steps`.

    task = tasks.image_classification(label_smoothing=0.1, mixup=0.2, classes=10)
    steps = ftrain.make_steps(model, task.loss_fn, optimizer, eval_fn=task.eval_fn)

Configurations name them: `task: {name: image_classification, mixup: 0.2}`. Each task is a short
composition of losses and metrics of this package. Start reading at `task.py`.
"""

from ftrain.tasks.recipes.embeddings import retrieval
from ftrain.tasks.recipes.images import image_classification, segmentation
from ftrain.tasks.recipes.task import Task
from ftrain.tasks.recipes.text import language_modeling, text_classification

__all__ = [
    "Task",
    "image_classification",
    "language_modeling",
    "retrieval",
    "segmentation",
    "text_classification",
]
