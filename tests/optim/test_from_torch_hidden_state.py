"""Test `from_torch` on optimizer classes with state elsewhere than under a parameter.

Either the steps are those of the class, or the class is refused.
"""

from __future__ import annotations

import pytest
import torch

from ftrain import optim


class Plain(torch.optim.Optimizer):
    """Gradient descent by a factor that a subclass computes."""

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, {"lr": lr, **options})

    def factor(self, group):
        return group["lr"]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            factor = self.factor(group)
            for p in group["params"]:
                p.sub_(self.direction(p) * factor)

    def direction(self, p):
        return p.grad


class Counts(Plain):
    """A count that is an attribute."""

    k = 0

    def factor(self, group):
        self.k += 1
        return group["lr"] / self.k


class CountsLate(Counts):
    """A count that has no effect before its tenth step."""

    def factor(self, group):
        return group["lr"] if super().factor(group) > group["lr"] / 10 else 0.0


class GlobalState(Plain):
    def factor(self, group):
        self.state["k"] = self.state.get("k", 0) + 1
        return group["lr"] / self.state["k"]


class GroupTensor(Plain):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr, k=torch.zeros(()))

    def factor(self, group):
        group["k"] += 1
        return group["lr"] / group["k"]


class GroupList(Plain):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr, k=[0])

    def factor(self, group):
        group["k"][0] += 1
        return group["lr"] / group["k"][0]


class OwnBuffers(Plain):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.momentum = {p: torch.zeros_like(p) for p in self.param_groups[0]["params"]}

    def direction(self, p):
        return self.momentum[p].mul_(0.9).add_(p.grad)


class FirstGradient(Plain):
    """Momentum that starts as the first gradient, as torch's SGD with dampening."""

    def direction(self, p):
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = p.grad.clone()
        else:
            state["momentum"].mul_(0.9).add_(p.grad, alpha=0.1)
        return state["momentum"]


class StepHook(Plain):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.register_step_post_hook(lambda *_: [p.data.clamp_(-1, 1) for p in self.of()])

    def of(self):
        return self.param_groups[0]["params"]


class Derives(Plain):
    """A class that computes another value from its learning rate."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr, floor=lr / 10)

    def factor(self, group):
        return group["lr"] + group["floor"]


class NeedsRate(Plain):
    def __init__(self, params, lr):
        super().__init__(params, lr)


class Unset(Plain):
    def __init__(self, params, lr=None):
        super().__init__(params, lr)

    def factor(self, group):
        return group["lr"] or 0.5


class Keeps(Plain):
    """A class with all of its state under its parameters, and attributes that do not change."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.beta, self.history = 0.5, []

    def direction(self, p):
        state = self.state[p]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), scale=1.0)
        state["step"] += 1
        state["scale"] *= 0.9
        return state["mean"].lerp_(p.grad, self.beta) * state["scale"] / state["step"]


def distance_of_runs(make, steps=12, **options):
    """Return the largest distance of a run by `from_torch` from one by the class itself."""
    generator = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(4, 3, generator=generator), "b": torch.randn(3, generator=generator)}
    theirs = [p.clone() for p in params.values()]
    optimizer, reference = optim.from_torch(make, **options), make(theirs, **options)
    state, distances = optimizer.init(params), []
    for _ in range(steps):
        grads = {name: torch.randn(p.shape, generator=generator) for name, p in params.items()}
        for p, grad in zip(theirs, grads.values(), strict=True):
            p.grad = grad.clone()
        reference.step()
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        distances += [
            float((p - q).abs().max()) for p, q in zip(params.values(), theirs, strict=True)
        ]
    return max(distances)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Counts, "changes its attribute 'k'"),
        (CountsLate, "changes its attribute 'k'"),
        (GlobalState, "keeps state under the key 'k'"),
        (GroupTensor, "step 2 depends on more than"),
        (GroupList, "step 2 depends on more than"),
        (OwnBuffers, "step 2 depends on more than"),
        (FirstGradient, "on which gradient is the first"),
        (StepHook, "a hook"),
    ],
)
def test_from_torch_refuses_a_class_with_state_that_is_not_of_a_parameter(make, what):
    with pytest.raises(ValueError, match=f"got {make.__name__}, wh.*{what}.*it would be lost"):
        optim.from_torch(make)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Plain, {}),
        (Keeps, {}),
        (Keeps, {"lr": 0.3}),
        (Derives, {"lr": 0.3}),
        (NeedsRate, {"lr": 0.3}),
        (Unset, {"lr": 0.3}),
    ],
)
def test_from_torch_steps_match_those_of_each_class_that_it_accepts(make, options):
    assert distance_of_runs(make, **options) <= 1e-6


def test_from_torch_accepts_a_schedule_for_a_class_that_requires_a_learning_rate():
    optimizer = optim.from_torch(NeedsRate, lr=optim.linear_warmup(1.0, 4, start=0.25))
    params = {"w": torch.ones(2)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["w"].tolist() == [-0.25, -0.25]


def test_from_torch_refuses_a_schedule_for_a_class_that_derives_values_from_its_rate():
    with pytest.raises(
        ValueError, match=r"expected a number for Derives, whose constructor computes 'floor'"
    ):
        optim.from_torch(Derives, lr=optim.linear_warmup(1.0, 4))


def test_from_torch_refuses_a_class_whose_default_learning_rate_is_none():
    with pytest.raises(
        TypeError, match=r"got None, the default of Unset. Write `from_torch\(Unset, lr="
    ):
        optim.from_torch(Unset)


def test_from_torch_does_not_advance_the_global_generator():
    class Noisy(Plain):
        def direction(self, p):
            return p.grad + torch.randn_like(p)

    before = torch.get_rng_state()
    optim.from_torch(Noisy)
    assert torch.equal(torch.get_rng_state(), before)
