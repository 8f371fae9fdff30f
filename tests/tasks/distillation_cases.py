"""Every functional loss of a student against a teacher, with an independent formula in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ftrain.tasks import functional as loss
from tests.tasks.cases import CLASSES, Case, Tensors, normal, of_images, partial, torch_loss

CENTER = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64)


def of_soft_classes(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"logits": normal(draws, n, CLASSES)}, {"teacher_logits": normal(draws, n, CLASSES)}


def of_soft_images(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    params, data = of_images(n, draws)
    return params, {"teacher_logits": normal(draws, n, CLASSES, 3, 2), **data}


def of_features(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"features": normal(draws, n, 5, 3)}, {"teacher_features": normal(draws, n, 5, 3)}


def of_views(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"predictions": normal(draws, n, 3)}, {"targets": normal(draws, n, 3)}


def distilled(p: Tensors, d: Tensors, temperature: float, soft: float) -> Tensor:
    """Return the mean over pixels that count of the weighted hard and soft loss."""
    found = []
    teacher = d["teacher_logits"].movedim(1, -1).reshape(-1, CLASSES)
    student = p["logits"].movedim(1, -1).reshape(-1, CLASSES)
    for row, wanted, label in zip(student, teacher, d["labels"].flatten().tolist(), strict=True):
        if label != -100:
            divergence = F.kl_div(
                (row / temperature).log_softmax(0),
                (wanted / temperature).softmax(0),
                reduction="sum",
            )
            hard = F.cross_entropy(row, torch.tensor(label))
            found.append((1 - soft) * hard + soft * temperature**2 * divergence)
    return torch.stack(found).mean()


def dino_oracle(p: Tensors, d: Tensors, student: float, teacher: float) -> Tensor:
    targets = ((d["teacher_logits"] - CENTER) / teacher).softmax(1)
    return F.cross_entropy(p["logits"] / student, targets)  # of soft labels


DISTILLATION: dict[str, Case] = {
    "soft_targets": Case(
        of_soft_classes,
        partial(loss.soft_targets, temperature=3.0),
        lambda p, d: (
            9
            * F.kl_div(
                F.log_softmax(p["logits"] / 3, 1),
                F.softmax(d["teacher_logits"] / 3, 1),
                reduction="batchmean",
            )
        ),
    ),
    "distillation": Case(
        of_soft_images,
        partial(loss.distillation, temperature=2.0, soft_weight=0.7, class_axis=1),
        lambda p, d: distilled(p, d, 2.0, 0.7),
        ignores="labels",
    ),
    "feature_matching": Case(of_features, loss.feature_matching, torch_loss(F.mse_loss)),
    "feature_matching, cosine": Case(
        of_features,
        partial(loss.feature_matching, distance="cosine"),
        lambda p, d: 1 - F.cosine_similarity(p["features"], d["teacher_features"], dim=2).mean(),
    ),
    "byol": Case(
        of_views,
        loss.byol,
        lambda p, d: (
            (F.normalize(p["predictions"], dim=1) - F.normalize(d["targets"], dim=1))
            .square()
            .sum(1)
            .mean()
        ),
    ),
    "dino": Case(
        of_soft_classes,
        partial(loss.dino, center=CENTER, temperature=0.5, teacher_temperature=0.2),
        lambda p, d: dino_oracle(p, d, 0.5, 0.2),
    ),
}
