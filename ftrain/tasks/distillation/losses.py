"""Losses of a student and its teacher, as functions of model, batch and `state.extras`.

Read next: `ftrain/tasks/functional/distillation.py`, which has the same losses as functions of tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from ftrain.core._nearest import nearest
from ftrain.core.metrics import Mean
from ftrain.tasks import functional, metrics
from ftrain.tasks._numpy_dtypes import as_classes
from ftrain.tasks._weighted import over, widened
from ftrain.tasks.adapters import call_model, find_labels, find_output
from ftrain.tasks.distillation.teacher import Teacher
from ftrain.tasks.losses._batches import Loss, entry, of_batch, row_weights

__all__ = ["byol", "dino", "distillation", "feature_distillation"]


def distillation(
    model: nn.Module,
    batch: Any,
    extras: Any = None,
    *,
    teacher: Teacher | None = None,
    cached: str | int = "teacher",
    input: str | int | None = "x",
    target: str | int | None = "y",
    temperature: float = 4.0,
    soft_weight: float = 0.9,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    causal: bool = False,
) -> Loss:
    """Return the loss against labels and a teacher, the accuracy, and the agreement with the teacher.

    Args:
        model: gives logits `(n, classes)`, `(n, classes, height, width)`, or `(n, length, vocabulary)`
            with `causal`.
        batch: the targets are integer classes, or soft labels like the logits; a `weight` `(n,)` of rows
            is taken into account.
        extras: the extras of the state, with the teacher's tensors.
        teacher: the teacher, called with the same inputs; null: its logits are an entry of the batch.
        cached: the name of that entry, which `data.with_outputs` adds.
        input: the name of the input of both models in the batch; null: entries named as their arguments.
        target: the name of the classes; null with `soft_weight: 1`: no labels.
        temperature: the divisor of the logits in the soft loss.
        soft_weight: the weight of the soft loss, in [0, 1]; the hard loss has weight `1 - soft_weight`.
        label_smoothing: the share of each hard label that is spread over all classes.
        ignore_index: labels whose rows are ignored.
        causal: compare the logits of each place with the next label, as a language model's.
    """
    has_labels = target is not None
    labels = as_classes(find_labels(batch, of_batch(batch, target))) if has_labels else None
    logits = find_output(_called(model, batch, input, target))
    if teacher is None:
        taught = entry(batch, cached, "cached")
    else:
        taught = find_output(teacher.call(extras, lambda m: _called(m, batch, input, target)))
    axis, weights = (-1 if causal else 1), row_weights(batch)
    if causal:
        logits, taught = logits[:, :-1], taught[:, :-1]
        labels = labels if labels is None else labels[:, 1:]
    loss = functional.distillation(
        logits,
        taught,
        labels,
        temperature=temperature,
        soft_weight=soft_weight,
        class_axis=axis,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        row_weights=weights,
    )
    best = taught.argmax(axis)
    if labels is not None and labels.is_floating_point():
        labels = labels.argmax(axis)
    elif labels is not None:
        best = best.where(labels != ignore_index, ignore_index)
    named = {"agreement": best} if labels is None else {"accuracy": labels, "agreement": best}
    return loss, {
        name: metrics.accuracy(
            logits, wanted, class_axis=axis, ignore_index=ignore_index, row_weights=weights
        )
        for name, wanted in named.items()
    }


def feature_distillation(
    model: nn.Module,
    batch: Any,
    extras: Any = None,
    *,
    layer: str,
    teacher: Teacher | None = None,
    teacher_layer: str | None = None,
    cached: str | int = "teacher",
    projection: str | None = None,
    distance: Literal["mse", "cosine"] = "mse",
    feature_axis: int = -1,
    feature_weight: float = 1.0,
    input: str | int | None = "x",
    target: str | int | None = "y",
    ignore_index: int = -100,
) -> Loss:
    """Return the cross-entropy plus the distance between a student's and a teacher's layer outputs.

    Args:
        model: gives logits `(n, classes)`; `layer` is one of its modules.
        batch: the targets are integer classes; a `weight` `(n,)` of rows is taken into account.
        extras: the extras of the state, with the teacher's tensors.
        layer: the path of the student's module whose output is matched, such as `features.3`.
        teacher: the teacher, called with the same inputs; null: its features are an entry of the batch.
        teacher_layer: the path of the teacher's module; null: the same path as the student's.
        cached: the name of the entry with the teacher's features.
        projection: the path of a module of the student, not called in its forward, that maps its
            features to the teacher's width; it is trained with the student.
        distance: `mse`, or `cosine`.
        feature_axis: the axis of the vectors: 1 for the channels of images.
        feature_weight: the factor of the distance.
        input: the name of the input of both models in the batch; null: entries named as their arguments.
        target: the name of the classes; null: there are no labels, and the loss is the distance alone.
        ignore_index: labels whose rows are ignored.
    """
    weights = row_weights(batch)
    with _output_of(model, layer, "layer") as seen:
        outputs = _called(model, batch, input, target)
    features = seen()
    if projection is not None:
        features = _module(model, projection, "projection")(features)
    if teacher is None:
        wanted = entry(batch, cached, "cached")
    else:
        wanted = teacher.call(
            extras, lambda m: _features(m, teacher_layer or layer, batch, input, target)
        )
    hard, found = None, {}
    if target is not None:
        logits, labels = (
            find_output(outputs),
            as_classes(find_labels(batch, of_batch(batch, target))),
        )
        hard = functional.cross_entropy(
            logits, labels, ignore_index=ignore_index, row_weights=weights
        )
        found["accuracy"] = metrics.accuracy(
            logits, labels, ignore_index=ignore_index, row_weights=weights
        )
        counts = labels != ignore_index
        weights = counts if weights is None else counts * over(weights, counts)
    near = functional.feature_matching(
        features, wanted, distance=distance, feature_axis=feature_axis, row_weights=weights
    )
    total = feature_weight * near.total
    distance_metric = Mean(near.total.detach(), near.weight)
    loss = Mean(total if hard is None else hard.total + total, near.weight)
    return loss, {**found, "feature_distance": distance_metric}


def byol(
    model: nn.Module,
    batch: Any,
    extras: Any = None,
    *,
    teacher: Teacher | None = None,
    first: str | int = "first",
    second: str | int = "second",
    predictor: str | None = "predictor",
) -> Mean:
    """Return the BYOL loss: the distance of predictions for one view from teacher outputs for the other.

    The teacher is the average of the student: `self_taught`.

    Args:
        model: gives embeddings `(n, width)` of a view.
        batch: two named entries; a `weight` `(n,)` of rows is taken into account.
        extras: the extras of the state, with the teacher's tensors.
        teacher: a teacher of the same model.
        first: the name of one view.
        second: the name of the other view.
        predictor: the path of a module of the student that is applied to its embeddings, but not to the
            teacher's; null: none.
    """
    views, weights = _views(batch, first, second), row_weights(batch)
    targets = _of_teacher(teacher, extras, views)
    embeddings = [find_output(model(view)) for view in views]
    if predictor is not None:
        embeddings = [_module(model, predictor, "predictor")(each) for each in embeddings]
    there, back = (
        functional.byol(mine, theirs, row_weights=weights)
        for mine, theirs in zip(embeddings, reversed(targets), strict=True)
    )
    return Mean(there.total + back.total, there.weight)


def dino(
    model: nn.Module,
    batch: Any,
    extras: Any = None,
    *,
    teacher: Teacher | None = None,
    center: str = "center",
    first: str | int = "first",
    second: str | int = "second",
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Loss:
    """Return the DINO loss: the cross-entropy of one view against teacher outputs for the other view.

    The teacher is the average of the student: `self_taught`; the center is kept by
    `with_running_mean(steps, "center", (width,))`, which takes this loss's metric of that name.

    Args:
        model: gives logits `(n, width)` of a view.
        batch: two named entries; a `weight` `(n,)` of rows is taken into account.
        extras: the extras of the state, with the teacher's tensors and the center.
        teacher: a teacher of the same model.
        center: the entry of the extras that holds the center, and the name of the metric.
        first: the name of one view.
        second: the name of the other view.
        temperature: the divisor of the student's logits.
        teacher_temperature: the divisor of the teacher's logits; smaller values sharpen.
    """
    views, weights = _views(batch, first, second), row_weights(batch)
    targets = _of_teacher(teacher, extras, views)
    if center not in extras:
        raise KeyError(
            f"state.extras: expected an entry {center!r} with the center, got "
            f"{', '.join(map(repr, extras))}. Make the steps with "
            f"tasks.with_running_mean(steps, {center!r}, (width,))."
        )
    there, back = (
        functional.dino(
            find_output(model(view)),
            wanted,
            extras[center],
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            row_weights=weights,
        )
        for view, wanted in zip(views, reversed(targets), strict=True)
    )
    rows = widened(targets[0]) + widened(targets[1])
    rows = rows if weights is None else rows * over(weights, rows)
    loss = Mean((there.total + back.total) / 2, there.weight)
    return loss, {center: Mean(rows.sum(0), 2 * there.weight)}


def _called(model: nn.Module, batch: Any, input: str | int | None, target: str | int | None) -> Any:
    """Call the model with the entries of the batch except the labels; return its outputs."""
    has_labels = target is not None
    return call_model(
        model,
        batch,
        input=of_batch(batch, input),
        target=of_batch(batch, target),
        has_labels=has_labels,
    )


def _views(batch: Any, first: str | int, second: str | int) -> list[Tensor]:
    return [entry(batch, name, at) for name, at in ((first, "first"), (second, "second"))]


def _of_teacher(teacher: Teacher | None, extras: Any, views: list[Tensor]) -> list[Tensor]:
    if teacher is None:
        raise TypeError(
            "teacher: expected tasks.Teacher(model), got None. Give the loss and the steps the same "
            "teacher: functools.partial(loss, teacher=teacher), and tasks.self_taught(steps, teacher)."
        )
    return [find_output(teacher(extras, view)) for view in views]


def _features(
    model: nn.Module, layer: str, batch: Any, input: str | int | None, target: str | int | None
) -> Tensor:
    with _output_of(model, layer, "teacher_layer") as seen:
        _called(model, batch, input, target)
    found: Tensor = seen()
    return found


@contextlib.contextmanager
def _output_of(model: nn.Module, path: str, option: str) -> Iterator[Any]:
    """Record a module's output in a `with` block; yield a function that returns this output.

    The output is a copy, because a later module may write to the original: `nn.ReLU(inplace=True)`.
    """
    seen: list[Tensor] = []

    def read() -> Tensor:
        if len(seen) != 1:
            raise ValueError(
                f"{option}: expected a module that the model calls once, got {len(seen)} calls of "
                f"{path!r}. Name a module that is called once."
            )
        return seen[0]

    hook = _module(model, path, option).register_forward_hook(
        lambda module, args, output: seen.append(find_output(output).clone())
    )
    try:
        yield read
    finally:
        hook.remove()


def _module(model: nn.Module, path: str, option: str) -> nn.Module:
    known = dict(model.named_modules())
    if path not in known:
        near = nearest(path, known)
        advice = f"Did you mean {near!r}?" if near else f"It has {', '.join(filter(None, known))}."
        raise ValueError(
            f"{option}: expected the path of a module of {type(model).__name__}, got {path!r}. {advice}"
        )
    found: nn.Module = known[path]
    return found
