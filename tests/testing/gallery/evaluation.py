"""Evaluations that change the training steps after them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ftrain
from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import batches, mlp, seeded


class Loop:
    """Three functions over a module that they share, as most projects write them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def init_state(self, seed: int) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def train_step(self, state: Any, batch: Any) -> Any:
        tensors = {k: v.clone() for k, v in state.items()}
        params = {k: tensors[k].requires_grad_() for k, _ in self.model.named_parameters()}
        with ftrain.random.keyed(ftrain.random.key(0)):
            logits = torch.func.functional_call(self.model, tensors, (batch["x"],))
        loss = F.cross_entropy(logits, batch["y"])
        grads = torch.autograd.grad(loss, list(params.values()))
        for (k, p), g in zip(params.items(), grads, strict=True):
            tensors[k] = (p - 0.1 * g).detach()
        return tensors, {"loss": loss.detach()}

    def eval_step(self, state: Any, batch: Any) -> Any:
        with torch.no_grad():
            logits = torch.func.functional_call(self.model, state, (batch["x"],))
        return {"loss": F.cross_entropy(logits, batch["y"])}


def dropout_mlp() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    )


class SwapsAverage(Loop):
    """Training reads the module's own weights; evaluation replaces them with their average."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.ema = {k: 0.5 * v.detach() for k, v in model.named_parameters()}

    def train_step(self, state: Any, batch: Any) -> Any:
        anchor = dict(self.model.named_parameters())
        params = {k: p.detach().clone().requires_grad_() for k, p in state.items()}
        loss = F.cross_entropy(
            torch.func.functional_call(self.model, params, (batch["x"],)), batch["y"]
        )
        loss = loss + 0.1 * sum((params[k] - anchor[k].detach()).square().sum() for k in params)
        grads = torch.autograd.grad(loss, list(params.values()))
        new = {k: (p - 0.1 * g).detach() for (k, p), g in zip(params.items(), grads, strict=True)}
        return new, {"loss": loss.detach()}

    def eval_step(self, state: Any, batch: Any) -> Any:
        with torch.no_grad():
            for k, p in self.model.named_parameters():
                p.copy_(self.ema[k])
            return {"loss": F.cross_entropy(self.model(batch["x"]), batch["y"])}


@broken(
    "evaluation",
    says=["model.0.weight", "aten.copy_", r"evaluation\.py"],
    seen="https://github.com/PKU-YuanGroup/Open-Sora-Plan/issues/186",
)
def averaged_weights_are_swapped_in_and_not_back() -> Case:
    """Evaluation copies the averaged weights into the model and does not restore the others."""
    return Case(SwapsAverage(mlp()), batches())


class StaysInEvalMode(Loop):
    def eval_step(self, state: Any, batch: Any) -> Any:
        self.model.eval()
        return super().eval_step(state, batch)


@broken(
    "evaluation",
    says=["'training' of model", "Restore the mode"],
    seen="https://github.com/shubhamagarwal92/mmd/issues/14",
    compiled=["'training' of model", "Restore the mode"],
)
def module_stays_in_eval_mode() -> Case:
    """Evaluation calls `model.eval()` and nobody calls `model.train()`: no dropout from then on."""
    return Case(StaysInEvalMode(dropout_mlp()), batches())


class EvaluatesInTrainingMode(Loop):
    pass


@broken(
    "evaluation",
    says=["num_batches_tracked", "BatchNorm1d", "copies of the buffers"],
    seen="https://github.com/udacity/P1_Facial_Keypoints/issues/28",
    compiled=["num_batches_tracked|writes into|argument"],
)
def evaluation_updates_batch_norm() -> Case:
    """Nobody calls `model.eval()`, so validation data enter BatchNorm's statistics."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    return Case(EvaluatesInTrainingMode(model), batches())


class IteratesLoader(Loop):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.loader = DataLoader(
            TensorDataset(torch.ones(4, 4), torch.zeros(4).long()), batch_size=2
        )

    def eval_step(self, state: Any, batch: Any) -> Any:
        losses = [
            super(IteratesLoader, self).eval_step(state, {"x": x, "y": y})["loss"]
            for x, y in self.loader
        ]
        return {"loss": torch.stack(losses).mean()}


@broken(
    "evaluation",
    says=["the random state of torch", "a key that is part of the state|generator"],
    seen="https://github.com/pytorch/pytorch/issues/80119",
)
def validation_loader_draws_from_the_global_generator() -> Case:
    """`iter(DataLoader(...))` draws a seed from the global generator, even without shuffling."""
    return Case(IteratesLoader(mlp()), batches())


class LeavesGradientsOff(Loop):
    def eval_step(self, state: Any, batch: Any) -> Any:
        torch.set_grad_enabled(False)
        logits = torch.func.functional_call(self.model, state, (batch["x"],))
        return {"loss": F.cross_entropy(logits, batch["y"])}


@broken(
    "evaluation",
    says=["the grad mode", "with torch"],
    seen="https://github.com/Lightning-AI/pytorch-lightning/issues/2180",
)
def evaluation_leaves_gradients_disabled() -> Case:
    """Evaluation calls `torch.set_grad_enabled(False)` and does not enable gradients again."""
    return Case(LeavesGradientsOff(mlp()), batches())


class CountsExamples(Loop):
    """The learning rate of training follows a counter that evaluation moves too."""

    seen = 0

    def train_step(self, state: Any, batch: Any) -> Any:
        new, metrics = super().train_step(state, batch)
        rate = 0.5 ** (self.seen / 6)
        return {k: s + rate * (new[k] - s) for k, s in state.items()}, metrics

    def eval_step(self, state: Any, batch: Any) -> Any:
        self.seen += len(batch["x"])
        return super().eval_step(state, batch)


@broken(
    "evaluation",
    says=["'seen' of CountsExamples", "a part of the state"],
    seen="https://github.com/chandar-lab/RLHive/pull/127",
)
def counter_of_examples_is_shared_with_training() -> Case:
    """Evaluation adds its examples to the counter that the learning rate of training follows."""
    return Case(CountsExamples(mlp()), batches())
