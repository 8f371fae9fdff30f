"""Losses, metrics, models, task recipes, batch adapters, and predictions as table columns.

    cross_entropy  mse  causal_lm  dice  ...    losses of a model and a batch, for configurations
    language_modeling()  segmentation()  ...    loss, evaluation and metrics of a kind of problem
    functional                                  losses as functions of predictions and labels
    metrics                                     F1, perplexity, recall@k, ..., exact over any batches
    Teacher  distillation  byol  dino           a student's losses against a teacher
    gradient_statistics(grads)                  norms and histograms of gradients by module
    models                                      a multilayer perceptron, LeNet-5, ResNet, U-Net, GPT, ...
    lora(module, targets)                       low-rank adapters on a frozen model
    read_lora  write_lora                       adapters in the file format of peft
    TwoTower(vocabulary)                        encoders of queries and documents
    predictions(outputs, target)                class names and probabilities, or numbers in their units
    generate(predict, prompt, key, length=...)  tokens drawn from a model's predictions
    grad_cache(encode, loss, chunk_size=...)    contrastive losses of batches that do not fit in memory
    call_model  find_output  find_labels        of batches and outputs of any form

A loss returns a `Mean`, so that means over any batches merge exactly; it goes into `make_steps`.
Configurations name them: `loss: mse`. Start reading at `losses/rows.py`.
"""

from ftrain.core._compares_rows import compares_rows
from ftrain.tasks import functional as functional
from ftrain.tasks import metrics as metrics
from ftrain.tasks import models as models
from ftrain.tasks.adapters import (
    Prediction,
    call_model,
    find_labels,
    find_output,
    output_and_labels,
)
from ftrain.tasks.distillation import (
    Teacher,
    byol,
    dino,
    distillation,
    feature_distillation,
    self_taught,
    with_running_mean,
    with_teacher,
)
from ftrain.tasks.generate import generate
from ftrain.tasks.grad_cache import GradCache, grad_cache
from ftrain.tasks.gradient_statistics import gradient_statistics
from ftrain.tasks.lora import LoraModel, lora
from ftrain.tasks.lora_files import read_lora, write_lora
from ftrain.tasks.losses import (
    binary_cross_entropy,
    cached_info_nce,
    causal_lm,
    cross_entropy,
    ctc,
    dice,
    dpo,
    focal,
    gaussian_nll,
    huber,
    info_nce,
    lovasz,
    mae,
    masked_lm,
    mse,
    multi_label,
    next_token,
    supervised_contrastive,
    triplet,
    tversky,
)
from ftrain.tasks.predictions import predictions
from ftrain.tasks.recipes import (
    Task,
    image_classification,
    language_modeling,
    retrieval,
    segmentation,
    text_classification,
)
from ftrain.tasks.two_tower import TokenTower, TwoTower

__all__ = [
    "GradCache",
    "LoraModel",
    "Prediction",
    "Task",
    "Teacher",
    "TokenTower",
    "TwoTower",
    "binary_cross_entropy",
    "byol",
    "cached_info_nce",
    "call_model",
    "causal_lm",
    "compares_rows",
    "cross_entropy",
    "ctc",
    "dice",
    "dino",
    "distillation",
    "dpo",
    "feature_distillation",
    "find_labels",
    "find_output",
    "focal",
    "gaussian_nll",
    "generate",
    "grad_cache",
    "gradient_statistics",
    "huber",
    "image_classification",
    "info_nce",
    "language_modeling",
    "lora",
    "lovasz",
    "mae",
    "masked_lm",
    "mse",
    "multi_label",
    "next_token",
    "output_and_labels",
    "predictions",
    "read_lora",
    "retrieval",
    "segmentation",
    "self_taught",
    "supervised_contrastive",
    "text_classification",
    "triplet",
    "tversky",
    "with_running_mean",
    "with_teacher",
    "write_lora",
]
