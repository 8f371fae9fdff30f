"""Steps that change their inputs, their module or the process."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

import ftrain
from ftrain import optim
from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import (
    batch_norm_mlp,
    batches,
    buffers_of,
    descend,
    mlp,
    params_of,
    seeded,
    zeros_like,
)


@broken(
    "pure",
    says=["num_batches_tracked", "BatchNorm1d", "copies of the buffers"],
    seen="https://github.com/pytorch/pytorch/issues/46808",
    compiled=["buffers", "writes|written|changes"],
)
def batch_norm_writes_into_the_given_buffers() -> Case:
    """`functional_call` lets BatchNorm update the statistics of the old state in place."""
    model = batch_norm_mlp()

    def step(state: Any, batch: Any) -> Any:
        params = {k: p.detach().requires_grad_() for k, p in state["params"].items()}
        logits = functional_call(model, (params, state["buffers"]), (batch["x"],))
        loss = F.cross_entropy(logits, batch["y"])
        grads = torch.autograd.grad(loss, list(params.values()))
        new = {k: (p - 0.1 * g).detach() for (k, p), g in zip(params.items(), grads, strict=True)}
        buffers = {k: b.clone() for k, b in state["buffers"].items()}
        return {"params": new, "buffers": buffers}, {"loss": loss.detach()}

    return Case(step, batches(), {"params": params_of(model), "buffers": buffers_of(model)})


@broken(
    "pure",
    says=["batch.'x'.", "aten.sub_", "x = x . y"],
    seen="https://github.com/pytorch/vision/issues/680",
    compiled=["'x'", "sub_|writes|written"],
)
def batch_is_normalized_in_place() -> Case:
    """The step normalizes the loader's tensor in place, so the second epoch sees other data."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        x = batch["x"].sub_(batch["x"].mean(0)).div_(batch["x"].std(0) + 1e-5)

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (x,)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["state.'momentum'.", "aten.mul_|aten.add_", "x = x . y"],
    seen="https://github.com/yangluo7/CAME/issues/2",
    compiled=["momentum", "mul_|writes|written"],
)
def momentum_is_updated_in_place() -> Case:
    """A hand-written SGD scales the old state's momentum with `mul_`."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        momentum = {k: m.mul_(0.9).add_(grads[k]) for k, m in state["momentum"].items()}
        return {"params": descend(state["params"], momentum), "momentum": momentum}, {"loss": loss}

    params = params_of(model)
    return Case(step, batches(), {"params": params, "momentum": zeros_like(params)})


@broken(
    "pure",
    says=["model.0.weight", r"optimizer\.step\(\)", "a part of the state"],
    seen="https://github.com/pytorch/functorch/issues/372",
    compiled=["writes into a tensor that it captures", r"optimizer\.step\(\)"],
)
def torch_optimizer_steps_the_module() -> Case:
    """The state is the module's own `state_dict()`, which `optimizer.step()` changes in place."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(state: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        optimizer.step()
        return {"params": dict(model.state_dict())}, {"loss": loss.detach()}

    return Case(step, batches(), {"params": dict(model.state_dict())})


@broken(
    "pure",
    says=["'frozen'", "shares memory with input", r"\.clone\(\)"],
    seen="https://github.com/learnsyslab/crazyflow/pull/110",
)
def frozen_part_is_handed_on_without_a_copy() -> Case:
    """Only the head is trained, and the new state holds the old one's encoder tensors."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(head: Any) -> Tensor:
            everything = {**state["frozen"], **head}
            return F.cross_entropy(functional_call(model, everything, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["head"])
        return {"head": descend(state["head"], grads), "frozen": state["frozen"]}, {"loss": loss}

    params = params_of(model)
    head = {k: v for k, v in params.items() if k.startswith("2.")}
    frozen = {k: v for k, v in params.items() if not k.startswith("2.")}
    return Case(step, batches(), {"head": head, "frozen": frozen})


@broken(
    "pure",
    says=["gradient of model.0", "torch.autograd.grad"],
    seen="https://github.com/TrenTorch/TrenTorch/pull/187",
)
def gradients_of_the_last_step_are_not_cleared() -> Case:
    """`loss.backward()` adds to the gradients of the last call, which nobody cleared."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        model.load_state_dict(state["params"])
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        return {"params": descend(state["params"], grads)}, {"loss": loss.detach()}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["before", "shares memory", "clone"],
    seen="https://github.com/pytorch/pytorch/issues/34765",
)
def metrics_hold_views_of_the_old_weights() -> Case:
    """The metrics hold flat views of the old weights for a histogram, which the next update changes."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        before = {k: p.view(-1) for k, p in state["params"].items()}
        return {"params": descend(state["params"], grads)}, {"loss": loss, "before": before}

    return Case(step, batches(), {"params": params_of(model)})


class CachedPositions(nn.Module):
    """Positions that the first forward pass computes and keeps, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)
        self._angles: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._angles is None or self._angles.shape != x.shape:
            self._angles = torch.arange(x.numel()).view(x.shape).to(x).cos()
        return self.out(x * self._angles)


@broken(
    "pure",
    says=["'_angles' of model", "a part of the state"],
    seen="https://github.com/facebookresearch/xformers/issues/728",
)
def table_is_cached_on_the_module() -> Case:
    """The first forward pass stores a table on the module, which a trace keeps as a dead tensor."""
    model = seeded(CachedPositions)

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["losses that the function holds", "a part of the state"],
    seen="https://github.com/google/brax/pull/152",
    compiled=["compiled (train_)?step gives other results", "tensor of the state"],
    compiled_law="compiled",
)
def losses_are_collected_in_a_captured_list() -> Case:
    """The step appends each loss, with its graph, to a list outside: memory grows with every step."""
    model = mlp()
    losses: list[Tensor] = []

    def step(state: Any, batch: Any) -> Any:
        params = {k: p.detach().requires_grad_() for k, p in state["params"].items()}
        loss = F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])
        losses.append(loss)
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
        new = {k: (p - 0.1 * g).detach() for (k, p), g in zip(params.items(), grads, strict=True)}
        return {"params": new}, {"loss": torch.stack(losses).mean().detach()}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["model.0._forward_hooks", "Remove the hook"],
    seen="https://github.com/huggingface/peft/pull/2761",
)
def feature_hook_is_never_removed() -> Case:
    """Each step registers a forward hook to read features, and never removes it."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        features: list[Tensor] = []
        model[0].register_forward_hook(lambda _module, _args, out: features.append(out))

        def loss_fn(params: Any) -> Tensor:
            loss = F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])
            return loss + 0.01 * features[-1].square().mean()

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["the random state of torch", "Draw from a key"],
    seen="https://github.com/soran-ghaderi/torchebm/issues/319",
    compiled=["randn", r"purity\.py", "key"],
)
def global_generator_is_seeded_in_the_step() -> Case:
    """For reproducible noise the step calls `torch.manual_seed`, which resets everybody's stream."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        torch.manual_seed(0)
        noise = torch.randn(batch["x"].shape)

        def loss_fn(params: Any) -> Tensor:
            noisy = batch["x"] + 0.1 * noise
            return F.cross_entropy(functional_call(model, params, (noisy,)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["the default dtype", "finally"],
    seen="https://github.com/cics-nd/gptorch/pull/14",
)
def default_dtype_is_left_changed() -> Case:
    """The loss is computed in float64 by changing torch's default dtype, which stays changed."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        torch.set_default_dtype(torch.float64)
        weights = torch.tensor([0.2, 0.3, 0.5])

        def loss_fn(params: Any) -> Tensor:
            logits = functional_call(model, params, (batch["x"],))
            return F.cross_entropy(logits.double(), batch["y"], weights)

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss.float()}

    return Case(step, batches(), {"params": params_of(model)})


class LossWithMeter:
    """Loss function that keeps a running mean of itself."""

    def __init__(self) -> None:
        self.mean = 0.0

    def __call__(self, model: Any, batch: Any) -> Tensor:
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return loss / (self.mean + 1e-3)


@broken(
    "pure",
    says=["'mean' of LossWithMeter", "a part of the state"],
    seen="https://github.com/pnnl/neuromancer/pull/292",
    compiled=["compiled (train_)?step gives other results", "tensor of the state"],
    compiled_law="compiled",
)
def loss_is_divided_by_its_own_running_mean() -> Case:
    """A loss object of `make_steps` keeps a running mean as an attribute, outside the state."""
    return Case(ftrain.make_steps(mlp, LossWithMeter(), optim.sgd(0.1)), batches())
