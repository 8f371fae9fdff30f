"""Every functional loss, with rows that it accepts and an independent formula in float64.

A case makes tensors whose first axis counts rows: `params`, with respect to which the loss is
differentiated, and `data`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ftrain.core.metrics import Mean
from ftrain.tasks import functional as loss

Tensors = dict[str, Tensor]
CLASSES, LENGTH = 4, 5
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)


class Case(NamedTuple):
    """A loss, its rows and its oracle.

    Attributes:
        make: the number of rows and a generator -> params and data.
        loss: params, data and options -> the loss.
        oracle: params and data -> the value.
        splits: the mean over parts of the rows is that of all rows.
        weighs: the loss has row weights.
        ignores: the data that hold labels, which may be ignored.
        vmaps: torch can vmap it.
    """

    make: Callable[[int, torch.Generator], tuple[Tensors, Tensors]]
    loss: Callable[..., Mean]
    oracle: Callable[[Tensors, Tensors], Tensor]
    splits: bool = True
    weighs: bool = True
    ignores: str | None = None
    vmaps: bool = True


def normal(draws: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draws, dtype=torch.float64)


def classes(draws: torch.Generator, *shape: int) -> Tensor:
    """Return classes, of which about one in five is ignored, the first of each row never."""
    found = torch.randint(0, CLASSES, shape, generator=draws)
    ignored = torch.rand(shape, generator=draws) < 0.2
    if len(shape) > 1:
        ignored.view(shape[0], -1)[:, :2] = False  # a causal loss does not read the first label
    else:
        ignored[0] = False
    return found.where(~ignored, -100)


def of_classes(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"logits": normal(draws, n, CLASSES)}, {"labels": classes(draws, n)}


def of_soft(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    data = {"labels": normal(draws, n, CLASSES).softmax(-1)}
    return {"logits": normal(draws, n, CLASSES)}, data


def of_tokens(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"logits": normal(draws, n, LENGTH, CLASSES)}, {"labels": classes(draws, n, LENGTH)}


def of_hidden(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"hidden": normal(draws, n, LENGTH, 3)}, {"labels": classes(draws, n, LENGTH)}


def of_images(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"logits": normal(draws, n, CLASSES, 3, 2)}, {"labels": classes(draws, n, 3, 2)}


def of_numbers(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"predictions": normal(draws, n, 2)}, {"targets": normal(draws, n, 2)}


def of_normals(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    params = {"means": normal(draws, n, 2), "log_variances": normal(draws, n, 2)}
    return params, {"targets": normal(draws, n, 2)}


def of_pairs(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {"queries": normal(draws, n, 3), "documents": normal(draws, n, 3)}, {}


def of_embeddings(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    labels = torch.randint(0, 2, (n,), generator=draws)
    labels[:2] = 0  # a pair
    return {"embeddings": normal(draws, n, 3)}, {"labels": labels}


def of_triplets(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    return {name: normal(draws, n, 3) for name in ("anchors", "positives", "negatives")}, {}


def of_preferences(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected")
    made = {name: normal(draws, n) for name in names}
    return dict(itertools.islice(made.items(), 2)), dict(itertools.islice(made.items(), 2, 4))


def of_speech(n: int, draws: torch.Generator) -> tuple[Tensors, Tensors]:
    def lengths(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=draws)

    data = {
        "labels": torch.randint(1, CLASSES, (n, 2), generator=draws),
        "input_lengths": lengths(4, 7),
        "label_lengths": lengths(1, 3),
    }
    return {"logits": normal(draws, n, 6, CLASSES)}, data


HEAD = torch.linspace(-1, 1, 3 * CLASSES, dtype=torch.float64).reshape(CLASSES, 3)


def chunked(size: int, **options: Any) -> Callable[..., Mean]:
    def chunked_loss(hidden: Tensor, labels: Tensor, **more: Any) -> Mean:
        return loss.chunked_causal_lm(hidden, HEAD, labels, chunk_size=size, **options, **more)

    return chunked_loss


def partial(function: Callable[..., Mean], **options: Any) -> Callable[..., Mean]:
    return lambda **given: function(**given, **options)


def token_losses(logits: Tensor, labels: Tensor, smoothing: float, z: float) -> Tensor:
    """Return the mean over labels that count, one label after the other."""
    found = []
    for row, label in zip(logits.flatten(0, -2), labels.flatten().tolist(), strict=True):
        if label != -100:
            log_p = row - row.exp().sum().log()
            smooth = -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()
            found.append(smooth + z * row.exp().sum().log() ** 2)
    return torch.stack(found).mean()


def shifted(logits: Tensor, labels: Tensor, smoothing: float = 0.0, z: float = 0.0) -> Tensor:
    return token_losses(logits[:, :-1], labels[:, 1:], smoothing, z)


def focal_oracle(p: Tensors, d: Tensors, gamma: float) -> Tensor:
    found = []
    probabilities = p["logits"].softmax(1).movedim(1, -1).reshape(-1, CLASSES)
    for row, label in zip(probabilities, d["labels"].flatten().tolist(), strict=True):
        if label != -100:
            found.append(-((1 - row[label]) ** gamma) * row[label].log())
    return torch.stack(found).mean()


def regions(p: Tensors, d: Tensors, one: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the mean of a loss of probabilities and truth over images and classes in the labels."""
    found = []
    for logits, labels in zip(p["logits"], d["labels"], strict=True):
        counts = labels != -100
        for k in range(CLASSES):
            truth = (labels[counts] == k).double()
            if truth.any():
                found.append(one(logits.softmax(0)[k][counts], truth))
    return torch.stack(found).mean()


def tversky_ratio(p: Tensor, truth: Tensor, alpha: float, beta: float, smooth: float) -> Tensor:
    hits = (p * truth).sum()
    wrong, missed = (p * (1 - truth)).sum(), ((1 - p) * truth).sum()
    return 1 - (hits + smooth) / (hits + alpha * wrong + beta * missed + smooth)


def lovasz_extension(p: Tensor, truth: Tensor) -> Tensor:
    """Return the Lovász extension of the Jaccard loss by its definition, on growing sets of errors."""

    def jaccard_loss(wrong: Tensor) -> float:
        """Return one minus the intersection over union if these pixels are classified wrongly."""
        intersection = ((truth == 1) & ~wrong).sum()
        union = ((truth == 1) | wrong).sum()
        return 1 - float(intersection) / float(union)

    errors = (truth - p).abs()
    found, wrong, before = torch.zeros((), dtype=p.dtype), torch.zeros_like(truth).bool(), 0.0
    for place in sorted(range(len(errors)), key=lambda i: -float(errors[i].detach())):
        wrong[place] = True
        now = jaccard_loss(wrong)
        found, before = found + errors[place] * (now - before), now
    return found


def nce_oracle(p: Tensors, _: Tensors, symmetric: bool = True, temperature: float = 0.5) -> Tensor:
    q, d = (x / x.norm(dim=1, keepdim=True) for x in p.values())
    found = []
    for i in range(len(q)):
        there = torch.stack([(q[i] * d[j]).sum() / temperature for j in range(len(d))]).exp()
        back = torch.stack([(q[j] * d[i]).sum() / temperature for j in range(len(q))]).exp()
        ways = [-(x[i] / x.sum()).log() for x in ((there, back) if symmetric else (there,))]
        found.append(torch.stack(ways).mean())
    return torch.stack(found).mean()


def supcon_oracle(p: Tensors, d: Tensors, temperature: float = 0.5) -> Tensor:
    z = p["embeddings"] / p["embeddings"].norm(dim=1, keepdim=True)
    scores, labels = (z @ z.T / temperature).exp(), d["labels"].tolist()
    found = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        same = [j for j in others if labels[j] == labels[i]]
        if same:
            below = scores[i, others].sum()
            found.append(torch.stack([-(scores[i, j] / below).log() for j in same]).mean())
    return torch.stack(found).mean()


def dpo_oracle(p: Tensors, d: Tensors, beta: float, smoothing: float) -> Tensor:
    h = p["chosen"] - d["reference_chosen"] - p["rejected"] + d["reference_rejected"]
    right, wrong = torch.sigmoid(beta * h).log(), torch.sigmoid(-beta * h).log()
    return (-(1 - smoothing) * right - smoothing * wrong).mean()


def ctc_oracle(p: Tensors, d: Tensors) -> Tensor:
    """Return the mean of minus the log of the sum over all alignments, enumerated."""
    found = []
    rows = zip(p["logits"].softmax(-1), *d.values(), strict=True)
    for probabilities, labels, places, length in rows:
        wanted, total = tuple(labels[:length].tolist()), torch.zeros((), dtype=torch.float64)
        for path in itertools.product(range(CLASSES), repeat=int(places)):
            kept = tuple(k for k, _ in itertools.groupby(path) if k)
            if kept == wanted:
                total = total + math.prod(probabilities[t, k] for t, k in enumerate(path))
        found.append(-total.log())
    return torch.stack(found).mean()


def torch_loss(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return lambda p, d: function(*p.values(), *d.values(), **options)


CASES: dict[str, Case] = {
    "cross_entropy": Case(
        of_classes, loss.cross_entropy, torch_loss(F.cross_entropy), ignores="labels"
    ),
    "cross_entropy, weighted and smooth": Case(
        of_classes,
        partial(loss.cross_entropy, class_weights=WEIGHTS, label_smoothing=0.2),
        torch_loss(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.2),
        ignores="labels",
    ),
    "cross_entropy, soft labels": Case(
        of_soft,
        partial(loss.cross_entropy, class_weights=WEIGHTS, label_smoothing=0.2),
        torch_loss(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.2),
    ),
    "cross_entropy, images": Case(
        of_images,
        partial(loss.cross_entropy, class_axis=1, class_weights=WEIGHTS),
        torch_loss(F.cross_entropy, weight=WEIGHTS),
        ignores="labels",
    ),
    "multi_label": Case(
        of_soft,
        partial(loss.multi_label, positive_weights=WEIGHTS),
        torch_loss(F.binary_cross_entropy_with_logits, pos_weight=WEIGHTS),
    ),
    "causal_lm": Case(of_tokens, loss.causal_lm, lambda p, d: shifted(**p, **d), ignores="labels"),
    "causal_lm, smooth with z-loss": Case(
        of_tokens,
        partial(loss.causal_lm, label_smoothing=0.2, z_loss=0.1),
        lambda p, d: shifted(**p, **d, smoothing=0.2, z=0.1),
        ignores="labels",
    ),
    "masked_lm": Case(
        of_tokens,
        loss.masked_lm,
        lambda p, d: token_losses(**p, **d, smoothing=0.0, z=0.0),
        ignores="labels",
    ),
    "chunked_causal_lm": Case(
        of_hidden,
        chunked(3, label_smoothing=0.2, z_loss=0.1),
        lambda p, d: shifted(p["hidden"] @ HEAD.T, d["labels"], 0.2, 0.1),
        ignores="labels",
    ),
    "chunked_causal_lm, one chunk": Case(
        of_hidden,
        chunked(0),
        lambda p, d: shifted(p["hidden"] @ HEAD.T, d["labels"]),
        ignores="labels",
    ),
    "mse": Case(of_numbers, loss.mse, torch_loss(F.mse_loss)),
    "mae": Case(of_numbers, loss.mae, torch_loss(F.l1_loss)),
    "huber": Case(of_numbers, partial(loss.huber, delta=0.7), torch_loss(F.huber_loss, delta=0.7)),
    "gaussian_nll": Case(
        of_normals,
        loss.gaussian_nll,
        lambda p, d: F.gaussian_nll_loss(
            p["means"], d["targets"], p["log_variances"].exp(), full=True, eps=1e-300
        ),
    ),
    "focal": Case(
        of_images,
        partial(loss.focal, gamma=1.5),
        lambda p, d: focal_oracle(p, d, 1.5),
        ignores="labels",
    ),
    "dice": Case(
        of_images,
        partial(loss.dice, smooth=0.3),
        lambda p, d: regions(
            p, d, lambda x, t: 1 - (2 * (x * t).sum() + 0.3) / (x.sum() + t.sum() + 0.3)
        ),
        ignores="labels",
    ),
    "tversky": Case(
        of_images,
        loss.tversky,
        lambda p, d: regions(p, d, lambda x, t: tversky_ratio(x, t, 0.3, 0.7, 0.0)),
        ignores="labels",
    ),
    "lovasz": Case(
        of_images, loss.lovasz, lambda p, d: regions(p, d, lovasz_extension), ignores="labels"
    ),
    "info_nce": Case(
        of_pairs, partial(loss.info_nce, temperature=0.5), nce_oracle, splits=False, weighs=False
    ),
    "info_nce, one way": Case(
        of_pairs,
        partial(loss.info_nce, temperature=0.5, symmetric=False),
        lambda p, d: nce_oracle(p, d, symmetric=False),
        splits=False,
        weighs=False,
    ),
    "supervised_contrastive": Case(
        of_embeddings,
        partial(loss.supervised_contrastive, temperature=0.5),
        supcon_oracle,
        splits=False,
        weighs=False,
    ),
    "triplet": Case(
        of_triplets,
        partial(loss.triplet, margin=2.0),
        torch_loss(F.triplet_margin_loss, margin=2.0),
    ),
    "dpo": Case(
        of_preferences,
        partial(loss.dpo, beta=0.5, label_smoothing=0.1),
        lambda p, d: dpo_oracle(p, d, 0.5, 0.1),
    ),
    "ctc": Case(of_speech, loss.ctc, ctc_oracle, vmaps=False),
}
