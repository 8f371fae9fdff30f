"""Teacher model of a distillation, whose tensors are in `state.extras` and are not trained.

    teacher = Teacher(Large)
    loss_fn = functools.partial(tasks.distillation, teacher=teacher, temperature=4.0)
    steps = with_teacher(ftrain.make_steps(Small, loss_fn, optimizer), teacher, params, buffers)

Read next: `self_taught.py`, in which the teacher is an average of the student.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ftrain.core import random, tree
from ftrain.core.functional import Bound, bind
from ftrain.core.random.keyed import innermost_stream
from ftrain.core.state import TrainState
from ftrain.core.step import Steps

__all__ = ["Teacher", "with_teacher"]


class Teacher:
    """Teacher model, called by a loss without gradients; its tensors are in `state.extras`.

    Its tensors are the entry `{"params": ..., "buffers": ...}` of the extras. The step returns them
    unchanged, so they are in every checkpoint, move to another device with the state, and have their own
    rows under `vmap`. Inside a loss, the precision policy applies to them too.

    Args:
        model: a module (whose weights are the initial ones), a function that builds one, or the result
            of `bind`.
        name: the entry of the extras.
        training: True to call the model in train mode, with dropout (from the step's key) and batch
            statistics; running statistics that the model writes are discarded. Default: eval mode.

    Example:
        >>> teacher = Teacher(nn.Linear(2, 3))
        >>> extras = {"teacher": teacher.start()}
        >>> teacher(extras, torch.ones(4, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module] | Bound,
        name: str = "teacher",
        *,
        training: bool = False,
    ) -> None:
        self.model, self.name, self.training = bind(model), name, training

    def __call__(self, extras: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the teacher with the arguments of its model, and return its outputs."""
        return self.call(extras, lambda module: module(*args, **kwargs))

    def call(self, extras: Any, fn: Callable[[nn.Module], Any]) -> Any:
        """Return `fn(module)`, computed with the teacher's tensors in place of the module's own.

        Use it to call methods and parts of the model: `teacher.call(extras, lambda m: m.features(x))`.

        Args:
            extras: the extras of the state, which are passed to a loss with a parameter `extras`.
            fn: a function of the module, which is not differentiated.

        Raises:
            KeyError: the extras have no entry of the teacher's name.
            ValueError: the entry does not hold the tensors of this model.
        """
        tensors = self._tensors(extras)
        with torch.no_grad(), random.keyed(self._key(), self.model.skeleton.module):
            out, _ = self.model.call(fn, tensors["params"], tensors["buffers"], self.training)
        return tree.map(lambda x: x.detach() if isinstance(x, Tensor) else x, out)

    def start(self, seed: int = 0) -> dict[str, Any]:
        """Return initial tensors: copies of those of the given module, or drawn from `seed`."""
        params, buffers = self.model.init(random.key(seed))
        return {"params": params, "buffers": buffers}

    def into(self, state: TrainState, params: Any = None, buffers: Any = None) -> TrainState:
        """Return the state with the teacher's tensors in its extras, as copies on the state's device.

        Args:
            state: the student's state.
            params: the teacher's parameters, such as `trained.params` of its own state; `None`: those of
                `start()`.
            buffers: the teacher's buffers; `None`: none, or those of `start()` if `params` is `None`
                too.

        Raises:
            ValueError: the tensors are not those of the model, or the extras have such an entry.

        Example:
            >>> import ftrain
            >>> from ftrain import optim
            >>> steps = ftrain.make_steps(nn.Linear(2, 3), lambda m, b: m(b).mean(), optim.sgd(0.1))
            >>> sorted(Teacher(nn.Linear(2, 3)).into(steps.init_state(0)).extras)
            ['teacher']
        """
        if self.name in state.extras:
            raise ValueError(
                f"state.extras: expected no entry {self.name!r}, got one. Give the teacher another "
                "name: Teacher(model, name=...)."
            )
        if params is None and buffers is None:
            tensors = self.start()
        else:
            tensors = {"params": dict(params or {}), "buffers": dict(buffers or {})}
        self._check(tensors)
        device = state.step.device
        own = tree.map(lambda x: x.detach().to(device, copy=True), tensors)
        return state.replace(extras={**state.extras, self.name: own})

    def _tensors(self, extras: Any) -> Any:
        if not isinstance(extras, dict) or self.name not in extras:
            known = (
                ", ".join(map(repr, extras)) if isinstance(extras, dict) else type(extras).__name__
            )
            raise KeyError(
                f"state.extras: expected an entry {self.name!r} with the teacher's tensors, got "
                f"{known or 'no entries'}. Make the steps with tasks.with_teacher(steps, teacher), or "
                "the state with teacher.into(state)."
            )
        tensors = extras[self.name]
        if not isinstance(tensors, dict) or tensors.keys() != {"params", "buffers"}:
            raise ValueError(
                f"state.extras[{self.name!r}]: expected a dict of 'params' and 'buffers', got "
                f"{sorted(tensors) if isinstance(tensors, dict) else type(tensors).__name__}. Write "
                "teacher.into(state, params, buffers)."
            )
        return tensors

    def _check(self, tensors: dict[str, Any]) -> None:
        try:
            self.model.skeleton.checked(tensors["params"], tensors["buffers"])
        except ValueError as error:
            raise ValueError(f"teacher {self.name!r}: {error}") from None

    def _key(self) -> Tensor:
        """Return the key of a call's random draws; in eval mode outside of a loss, it is constant."""
        if self.training:
            return random.next_key()
        stream = innermost_stream()
        return random.key(0) if stream is None else stream.key_of(f"teacher {self.name}")

    def __repr__(self) -> str:
        return f"Teacher({self.model!r}, name={self.name!r}, training={self.training})"


def with_teacher(steps: Steps, teacher: Teacher, params: Any = None, buffers: Any = None) -> Steps:
    """Return the steps with an `init_state` that also stores a teacher's tensors in `state.extras`.

    The other steps are returned unchanged.

    Args:
        steps: the result of `ftrain.make_steps`, whose loss evaluates the teacher.
        teacher: the teacher.
        params: the teacher's parameters, such as those of `config.load_run(folder).state`; `None`: those
            of its module.
        buffers: the teacher's buffers.

    Raises:
        ValueError: the tensors are not those of the teacher's model.

    Example:
        >>> import functools, ftrain
        >>> from ftrain import optim, tasks
        >>> teacher = Teacher(nn.Linear(4, 3))
        >>> loss_fn = functools.partial(tasks.distillation, teacher=teacher)
        >>> steps = with_teacher(ftrain.make_steps(nn.Linear(4, 3), loss_fn, optim.sgd(0.1)), teacher)
        >>> batch = {"x": torch.ones(2, 4), "y": torch.tensor([0, 2])}
        >>> state, metrics = steps.train_step(steps.init_state(0), batch)
        >>> sorted(metrics)
        ['accuracy', 'agreement', 'grad_norm', 'learning_rate', 'loss', 'skipped']
    """

    def init_state(seed: int) -> TrainState:
        return teacher.into(steps.init_state(seed), params, buffers)

    return steps._replace(init_state=init_state)
