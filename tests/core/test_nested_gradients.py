"""Gradients of gradients: whatever requires a gradient outside of `value_and_grad` is followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, testing
from ftrain.core import tree
from ftrain.core.errors import ImpureFunctionError, TraceError
from tests.core.differences import assert_derivative, is_close

W = torch.tensor([0.3, -0.7], dtype=torch.float64)
RATE = torch.tensor(0.1, dtype=torch.float64)
MODES = pytest.mark.parametrize("mode", ["eager", "compiled"])


def quartic(p: torch.Tensor) -> torch.Tensor:
    return (p**4).sum()


def run(f: Callable[..., Any], mode: str) -> Callable[..., Any]:
    return f if mode == "eager" else ftrain.compile(f, backend="eager")


def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: ftrain.value_and_grad(f)(*args)[1]


def descended(p: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """Three steps of gradient descent on `quartic`, in a scan."""

    def body(p: torch.Tensor, _: None) -> Any:
        value, grad = ftrain.value_and_grad(quartic)(p)
        return p - rate * grad, value

    last, values = ftrain.scan(body, p, length=3)
    return (last**2).sum() + values.sum()


# --- through scan ---------------------------------------------------------------------------------


@MODES
def test_gradient_through_inner_gradients_in_scan_is_that_of_finite_differences(mode: str) -> None:
    """MAML: by the start. Two orders."""
    f = lambda p: descended(p, RATE)  # noqa: E731
    for _ in range(2):
        assert_derivative(f, W, run(gradient(f), mode)(W))
        f = (lambda g: lambda p: (g(p) * torch.tensor([1.0, 2.0])).sum())(gradient(f))


@MODES
def test_hypergradient_of_a_rate_through_scan_is_that_of_finite_differences(mode: str) -> None:
    """By a tensor that the body captures. Three orders."""
    f = lambda rate: descended(W, rate)  # noqa: E731
    for _ in range(3):
        assert_derivative(f, RATE, run(gradient(f), mode)(RATE))
        f = gradient(f)


def test_first_value_of_maml_through_scan() -> None:
    w = torch.tensor([0.3, -0.7])

    def f(p: torch.Tensor) -> torch.Tensor:
        def body(p: torch.Tensor, _: None) -> Any:
            value, grad = ftrain.value_and_grad(quartic)(p)
            return p - 0.1 * grad, value

        return (ftrain.scan(body, p, length=3)[0] ** 2).sum()

    expected = torch.tensor([0.3939, -0.1611])
    for mode in ("eager", "compiled"):
        torch.testing.assert_close(run(gradient(f), mode)(w), expected, rtol=0, atol=5e-5)


class Sign(torch.autograd.Function):
    """A straight-through sign: its derivative is not that of its operators."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class Through(torch.autograd.Function):
    """Returns x; the gradient goes to another tensor, which does not enter the value."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return None, grad * 3


def custom_backward(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return c * Sign.apply(w)


def no_grad_inside(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        half = w * 0.5
    return c * w + half


def detached_inside(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return c * w.detach() + w


def custom_backward_to_a_captured_tensor(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return Through.apply(c * 2, w)


def autograd_inside(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    x = c.clone() if c.requires_grad else c.clone().requires_grad_()
    (grad,) = torch.autograd.grad((x**3 * w).sum(), x, create_graph=True)
    return c * 0.5 + grad * 0.1


def own_leaf(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return c * w + torch.tensor(0.0, requires_grad=True) * c


BODIES = [
    custom_backward,
    no_grad_inside,
    detached_inside,
    custom_backward_to_a_captured_tensor,
    autograd_inside,
    own_leaf,
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("capture", ["leaf", "both"])
def test_traced_scan_differentiates_its_body_as_the_loop_does(body: Any, capture: str) -> None:
    """By the start, and by what the body captures; a captured tensor may be computed from another."""

    def f(p: Any) -> torch.Tensor:
        start, w = p
        doubled = w * w

        def step(c: torch.Tensor, x: torch.Tensor) -> Any:
            c = body(c, w)
            if capture == "both":
                c = body(c, doubled)
            return c + x, c.sum()

        last, ys = ftrain.scan(step, start, torch.ones(3, 2, dtype=torch.float64) * w.sum())
        return last.sum() + (ys**2).sum()

    p = (W * 2, W)
    assert is_close(run(gradient(f), "compiled")(p), gradient(f)(p))
    second = gradient(lambda p: sum((g**2).sum() for g in gradient(f)(p)))
    if capture == "leaf" and body is not custom_backward_to_a_captured_tensor:  # not a derivative
        assert is_close(run(second, "compiled")(p), second(p))


def test_a_captured_result_of_a_custom_function_beside_its_input_is_refused() -> None:
    """Its backward would be called with zeros, of which it may make NaN."""

    def f(w: torch.Tensor) -> torch.Tensor:
        signs = Sign.apply(w)
        return ftrain.scan(lambda c, _: (c * signs + w, None), w * 2, length=2)[0].sum()

    with pytest.raises(TraceError, match="captures a result of SignBackward and a tensor"):
        run(gradient(f), "compiled")(W)


def test_outputs_of_a_traced_scan_that_are_constant_require_no_gradient() -> None:
    def f(w: torch.Tensor) -> torch.Tensor:
        last, ys = ftrain.scan(lambda c, _: ((c[0] * w, c[1] + 1), c[0].detach()), (w, W), length=2)
        assert [x.requires_grad for x in (*last, ys)] == [True, False, False]
        return last[0].sum()

    run(gradient(f), "compiled")(W)
    gradient(f)(W)


def test_a_scan_that_nothing_differentiates_is_one_operator_without_saved_carries() -> None:
    def f(w: torch.Tensor) -> Any:
        return ftrain.scan(lambda c, _: (c + gradient(quartic)(w), None), w * 0, length=5)

    graph = ftrain.compile(f, backend="eager").graph(W).graph
    (loop,) = (n for n in graph.nodes if n.op == "call_function" and n.name.startswith("scan"))
    body = getattr(graph.owning_module, loop.args[0].target).graph
    assert len(body.output_node().args[0]) == 1


class Encoder(nn.Module):
    """A scan in a module: weights, draws and autocast of the body, and a gradient inside it."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.inner, self.drop, self.autocast = nn.Linear(2, 2), nn.Dropout(0.5), autocast

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def body(c: torch.Tensor, x: torch.Tensor) -> Any:
            grad = ftrain.value_and_grad(lambda q: (F.dropout(q, 0.3) ** 3).sum())(c)[1]
            c = torch.tanh(self.drop(self.inner(c))).to(c.dtype) + F.dropout(x, 0.5) + 0.1 * grad
            return c, c.sum()

        with torch.autocast("cpu", enabled=self.autocast):
            return ftrain.scan(body, x[0], x)[1].sum()


@pytest.mark.parametrize("autocast", [False, True])
def test_traced_scan_in_a_module_runs_its_body_again_as_it_was(autocast: bool) -> None:
    """The backward pass comes after the call of the model, to second order."""
    dtype = torch.float32 if autocast else torch.float64
    apply = ftrain.bind(lambda: nn.Sequential(Encoder(autocast)).to(dtype))
    params, buffers = apply.init(ftrain.random.key(0))
    x = torch.linspace(-1, 1, 6, dtype=dtype).view(3, 2)

    def f(params: Any) -> torch.Tensor:
        out: torch.Tensor = apply(params, buffers, ftrain.random.key(1), x)[0]
        return out

    second = gradient(lambda p: sum((g**2).sum() for g in gradient(f)(p).values()))
    for g in (gradient(f), second):
        # In bfloat16 autocast, the order in which sums of gradients are rounded differs.
        assert is_close(run(g, "compiled")(params), g(params), 3e-2 if autocast else 1e-9)


# --- who differentiates outside -------------------------------------------------------------------


def inner_step(p: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    return quartic(p - rate * gradient(quartic)(p))


@pytest.mark.parametrize("by", ["func", "vjp", "jvp", "autograd", "value_and_grad", "hessian"])
def test_inner_gradient_is_followed_whoever_differentiates(by: str) -> None:
    f = lambda p: inner_step(p, RATE)  # noqa: E731
    if by == "func":
        found = torch.func.grad(f)(W)
    elif by == "vjp":
        (found,) = torch.func.vjp(f, W)[1](torch.ones((), dtype=torch.float64))
    elif by == "jvp":
        basis = torch.eye(2, dtype=torch.float64)
        found = torch.stack([torch.func.jvp(f, (W,), (e,))[1] for e in basis])
    elif by == "autograd":
        leaf = W.clone().requires_grad_()
        (found,) = torch.autograd.grad(f(leaf), leaf)
    elif by == "value_and_grad":
        found = gradient(f)(W)
    else:
        for i, row in enumerate(torch.func.hessian(f)(W)):
            assert_derivative(lambda p, i=i: gradient(f)(p)[i], W, row)
        return
    assert_derivative(f, W, found)


def test_rows_of_a_vmap_are_followed_by_plain_autograd() -> None:
    leaf = torch.stack([W, W * 2]).requires_grad_()
    (found,) = torch.autograd.grad(torch.vmap(gradient(quartic))(leaf).sum(), leaf)
    assert is_close(found, 12 * leaf.detach() ** 2)
    assert not torch.vmap(gradient(quartic))(leaf.detach()).requires_grad


def test_forward_mode_goes_through_a_gradient() -> None:
    import torch.autograd.forward_ad as forward

    with forward.dual_level():
        dual = forward.make_dual(W, torch.ones_like(W))
        tangent = forward.unpack_dual(gradient(quartic)(dual)).tangent
        with torch.no_grad():
            again = forward.unpack_dual(gradient(quartic)(dual.requires_grad_())).tangent
    assert is_close((tangent, again), (12 * W**2, 12 * W**2))


def test_captured_tensors_are_followed() -> None:
    """A leaf, something computed from a leaf that is gone, and one that only auxiliary outputs use."""
    leaf = RATE.clone().requires_grad_()
    computed = RATE.clone().requires_grad_() * 2

    def f(p: torch.Tensor, captured: torch.Tensor) -> Any:
        return ftrain.value_and_grad(lambda p: (captured * p**3).sum())(p)[1].sum()

    for captured in (leaf, computed):
        (found,) = torch.autograd.grad(f(W, captured), captured)
        assert is_close(found, (3 * W**2).sum())
    (_, aux), _ = ftrain.value_and_grad(lambda p: (quartic(p), leaf * p), has_aux=True)(W)
    (found,) = torch.autograd.grad(aux.sum(), leaf)
    assert is_close(found, W.sum())


def test_only_the_argument_is_differentiated_by_where_it_is_captured_too() -> None:
    leaf = W.clone().requires_grad_()
    expected = leaf.detach()
    for x in (leaf, leaf * 1.0, W):
        grad = ftrain.value_and_grad(lambda q, x=x: (q * x).sum())(x)[1]
        assert is_close(grad.detach(), expected)
    pair = ftrain.value_and_grad(lambda q: (q[0] * 2 + q[1] * 3).sum())((leaf, leaf))[1]
    assert is_close(pair, (torch.full_like(W, 2), torch.full_like(W, 3)))


def test_nothing_is_kept_where_nobody_differentiates() -> None:
    leaf = W.clone().requires_grad_()

    def penalty(p: torch.Tensor) -> Any:
        x = W.clone().requires_grad_()
        (grad,) = torch.autograd.grad((x**3 * p).sum(), x, create_graph=True)
        return (grad**2).sum(), grad

    for kept in (
        ftrain.value_and_grad(quartic)(W),
        ftrain.value_and_grad(penalty, has_aux=True)(W),
        ftrain.value_and_grad(lambda p: quartic(p) + leaf.detach().sum())(W),
    ):
        assert not any(t.requires_grad for t in tree.leaves(kept))
    with torch.no_grad():
        assert not ftrain.value_and_grad(quartic)(leaf)[1].requires_grad
        assert ftrain.value_and_grad(quartic, differentiable=True)(leaf)[1].requires_grad


def test_inference_mode_around_a_gradient_changes_nothing() -> None:
    with torch.inference_mode():
        made_inside = W * 1
        for x in (W, made_inside):
            assert is_close(gradient(quartic)(x), 4 * W**3)
    assert is_close(gradient(quartic)(made_inside), 4 * W**3)


def test_writing_into_the_argument_is_refused() -> None:
    leaf = (W * 1).requires_grad_() * 1

    def f(p: torch.Tensor) -> torch.Tensor:
        p.mul_(2)
        return quartic(p)

    with pytest.raises(ImpureFunctionError, match="writes into its argument"):
        ftrain.value_and_grad(f)(leaf)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        ftrain.value_and_grad(f)(W)


def test_a_value_that_depends_on_captured_tensors_alone_is_refused() -> None:
    leaf = W.clone().requires_grad_()
    with pytest.raises(ValueError, match="does not depend on its parameters"):
        ftrain.value_and_grad(lambda p: (leaf * p.detach()).sum())(W)


# --- losses that differentiate inside -------------------------------------------------------------


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def points(batch: Any) -> torch.Tensor:
    return batch["x"].clone().requires_grad_()


def wgan_gp(model: Any, batch: Any) -> torch.Tensor:
    x = points(batch)
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return model(batch["x"]).mean() + 10 * (grad.norm(dim=1) - 1).square().mean()


def r1(model: Any, batch: Any) -> torch.Tensor:
    grad = ftrain.value_and_grad(lambda x: model(x).sum())(batch["x"])[1]
    return F.softplus(-model(batch["x"])).mean() + grad.square().sum(1).mean()


def pinn(model: Any, batch: Any) -> torch.Tensor:
    """u_xx + u_yy = 1."""
    x = points(batch)
    (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    second = [
        torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)
    ]
    return (sum(second) - 1).square().mean()


def forces(model: Any, batch: Any) -> torch.Tensor:
    x = points(batch)
    energy = model(x)
    (grad,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return F.mse_loss(-grad, batch["y"]) + energy.square().mean()


def quantized(model: Any, batch: Any) -> torch.Tensor:
    """A sum that starts from a leaf, and a straight-through estimator."""
    total = torch.tensor(0.0, requires_grad=True, dtype=torch.float64)
    z = model(batch["x"])
    straight = z + (z.round() - z).detach()
    return total + (straight - batch["y"][:, :1]).square().mean() + 0.25 * z.square().mean()


LOSSES = [wgan_gp, r1, pinn, forces, quantized]
BATCH = {
    "x": torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2),
    "y": torch.linspace(1, -1, 12, dtype=torch.float64).view(6, 2).square(),
}


@MODES
@pytest.mark.parametrize("loss_fn", LOSSES)
def test_losses_that_differentiate_inside_train(loss_fn: Any, mode: str) -> None:
    """One step of SGD, against finite differences of the loss by one layer."""
    init_state, train_step, _ = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    state = init_state(0)
    new, metrics = run(train_step, mode)(state, BATCH)
    model = net()

    def loss_at(weight: torch.Tensor) -> torch.Tensor:
        params = {**state.params, "0.weight": weight}
        value: torch.Tensor = torch.func.functional_call(
            _Loss(model, loss_fn), {f"model.{k}": v for k, v in params.items()}, (BATCH,)
        )
        return value.detach()

    if loss_fn is not quantized:  # whose gradient is not that of its value
        weight = state.params["0.weight"]
        assert_derivative(loss_at, weight, (weight - new.params["0.weight"]) / 0.1)
    assert is_close(metrics["loss"], loss_at(state.params["0.weight"]).float(), 1e-6)
    parts, _ = run(ftrain.make_steps(net, loss_fn, optim.sgd(0.1), accumulate=3).train_step, mode)(
        state, BATCH
    )
    assert is_close(parts.params, new.params)


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, loss_fn: Any) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> torch.Tensor:
        result: torch.Tensor = self.loss_fn(self.model, batch)
        return result


@MODES
def test_a_parameter_beside_a_leaf_made_inside_is_still_refused(mode: str) -> None:
    outside = nn.Linear(2, 1).double()

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        x = points(batch)
        return (model(x) * outside(x)).mean()

    steps = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    with pytest.raises(ValueError, match="is not in the state .float64.1, 2.."):
        run(steps.train_step, mode)(steps.init_state(0), BATCH)
    loss_fn = lambda model, batch: (model(batch["x"]) * outside(batch["x"])).mean()  # noqa: E731
    steps = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    states = tree.map(lambda *rows: torch.stack(rows), *map(steps.init_state, range(2)))
    with pytest.raises(ValueError, match="is not in the state .float64.1, 2.."):
        run(torch.vmap(steps.train_step, in_dims=(0, None)), mode)(states, BATCH)


def test_a_view_of_the_batch_made_to_require_a_gradient_trains() -> None:
    """As Wav2Vec2 does for checkpointing."""

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        x = batch["x"][:, None]
        x.requires_grad = True
        return model(x).square().mean()

    steps = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    found = [run(steps.train_step, mode)(state, BATCH)[0] for mode in ("eager", "compiled")]
    testing.assert_same_bits(*found)
    assert not BATCH["x"].requires_grad


# --- optimizers -----------------------------------------------------------------------------------


@MODES
def test_hyperparameters_set_in_a_differentiated_function_are_followed(mode: str) -> None:
    optimizer = optim.with_hyperparams(optim.sgd, learning_rate=0.5)
    start = {"w": torch.tensor(2.0, dtype=torch.float64)}

    def f(rate: torch.Tensor) -> torch.Tensor:
        opt_state = optim.set_hyperparams(optimizer.init(start), learning_rate=rate)
        params = start
        for _ in range(2):
            grads = gradient(lambda p: p["w"] ** 2)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optim.apply_updates(params, updates)
        return params["w"] ** 2

    rate = torch.tensor(0.1, dtype=torch.float64)
    assert_derivative(f, rate, run(gradient(f), mode)(rate))


# --- around and inside of compiled functions ------------------------------------------------------


def test_a_compiled_function_inside_a_loss_is_part_of_it() -> None:
    """Its draws too: they have the key of the step."""

    def twice(x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x.tanh(), 0.5) * 2

    inner = ftrain.compile(twice, backend="eager")
    found = []
    for fn in (twice, inner):
        loss_fn = lambda model, batch, fn=fn: fn(model(batch["x"])).square().mean()  # noqa: E731
        init_state, train_step, eval_step = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
        state = init_state(0)
        for mode in ("eager", "compiled"):
            found.append((run(train_step, mode)(state, BATCH), eval_step(state, BATCH)))
    for other in found[1:]:
        testing.assert_same_bits(other, found[0])


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_the_first_compiled_call_may_be_inside_detect_anomaly() -> None:
    init_state, train_step, _ = ftrain.make_steps(net, r1, optim.sgd(0.1))
    state = init_state(0)
    with torch.autograd.detect_anomaly():
        with pytest.warns(UserWarning, match="`train_step` is compiled inside torch.autograd"):
            found = run(train_step, "compiled")(state, BATCH)
        assert torch.is_anomaly_enabled()
    testing.assert_same_bits(found, train_step(state, BATCH))
