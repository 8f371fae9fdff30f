"""LoRA and DoRA: low-rank adapters as a transformation of the parameter tree.

    model = tasks.lora(module, "attention", rank=8)
    init_state, train_step, eval_step = ftrain.make_steps(model, loss_fn, optimizer)

Only the adapters are in `state.params`, and so in the gradients and the optimizer's state. The weights
of the base model are in `state.buffers`. Before each call the changed weights are computed from both
and installed in the module: no module is wrapped, and every use of a weight sees the change.

Read next: `_lora_weights.py`, which has the formulas; `lora_files.py`, which reads and writes files.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ftrain.core._torch_tensors import version
from ftrain.core.errors import ImpureFunctionError
from ftrain.core.functional import Bound, bind
from ftrain.core.random.keyed import key_of, keyed
from ftrain.tasks._lora_weights import (
    Adapter,
    Settings,
    Targets,
    adapted,
    initial,
    matched,
    removed,
    selected,
)

__all__ = ["LoraModel", "lora"]

Tensors = dict[str, Tensor]


def lora(
    model: nn.Module | Callable[[], nn.Module] | Bound,
    targets: Targets = nn.Linear,
    *,
    rank: int = 8,
    alpha: float = 8.0,
    rank_stabilized: bool = False,
    dora: bool = False,
    dropout: float = 0.0,
    unfrozen: str | re.Pattern[str] | None = None,
) -> LoraModel:
    r"""Return a model for `make_steps` that adds trained low-rank adapters to some frozen weights.

    $$W' = W + s B A, \qquad s = \frac{\alpha}{r}$$

    with $A$ of shape (rank, inputs) and $B$ of shape (outputs, rank); one of them starts at zero. With
    DoRA, $W' = m (W + s B A) / \|W + s B A\|$, where the norm is over the inputs of each output and is a
    constant in the gradient, and $m$ starts at the norm of $W$. The weight of a convolution is treated
    as the matrix of its first axis and all other axes; the weight of an embedding is transposed.

    The state of `make_steps` has the adapters in `params`, under the names `NAME.lora_A`, `NAME.lora_B`
    and `NAME.magnitude` for a weight `NAME`, and all tensors of the base model in `buffers`, where a
    step does not change the weights (statistics such as BatchNorm's are updated). A tied weight stays
    tied: its single adapter changes it wherever it is used. The changed weights are computed in float32
    or wider, and rounded once to the dtype of the base.

    A step computes the full gradient of each changed weight and projects it onto the adapter, so it
    takes as long as full training, and memory for one more copy of the changed weights. The optimizer's
    state is for the adapters only.

    Args:
        model: the base model: an `nn.Module` with pretrained weights, or a function that builds one.
        targets: the weights to adapt: a regular expression that is searched for in their names
            (`"attention"`, `r"(q|v)_proj\.weight$"`), a module class, or a list of both. A class selects
            the weights of its instances and of all modules inside them. Biases and gains are not
            adapted.
        rank: the rank $r$ of the change.
        alpha: the numerator $\alpha$ of the scale.
        rank_stabilized: True to divide by the square root of the rank, $s = \alpha / \sqrt{r}$.
        dora: True to train the norm of each output's weights separately (DoRA).
        dropout: the rate at which inputs of an adapter are set to zero in training, one mask for each
            micro-batch, drawn from the state's key. (peft draws a mask for each token.)
        unfrozen: a regular expression for parameters of the base model that are trained, such as a new
            head.

    Returns:
        A model for `make_steps`, `bind` and `ftrain.export`.

    Raises:
        ValueError: a target or `unfrozen` matches nothing, or both match one weight; an option is out of
            its range.
        TypeError: a target is neither a pattern nor a class; the model already has adapters.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> base = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> model = lora(base, rank=4)
        >>> loss_fn = lambda model, batch: model(batch).square().mean()
        >>> init_state, train_step, _ = ftrain.make_steps(model, loss_fn, optim.adam(1e-2))
        >>> state, _ = train_step(init_state(seed=0), torch.ones(8, 16))
        >>> {name: tuple(p.shape) for name, p in state.params.items()}
        {'0.weight.lora_A': (4, 16), '0.weight.lora_B': (32, 4),
         '2.weight.lora_A': (4, 32), '2.weight.lora_B': (2, 4)}
        >>> sorted(state.buffers)
        ['0.bias', '0.weight', '2.bias', '2.weight']

    References:
        LoRA: https://arxiv.org/abs/2106.09685. DoRA: https://arxiv.org/abs/2402.09353. Rank-stabilized
        scale: https://arxiv.org/abs/2312.03732. Dropout of an adapter's inputs:
        https://arxiv.org/abs/2404.09610.
    """
    settings = Settings(rank, alpha, rank_stabilized, dora, dropout)
    return LoraModel(model, targets, settings, unfrozen)


class LoraModel(Bound):
    """Model with low-rank adapters, as a pure function of the adapters and the base model; see `lora`.

    Attributes:
        base: the model without adapters.
        adapters: the adapters.
        settings: rank, scale, dropout and DoRA.
        unfrozen: the names of the base model's parameters that are trained.
        shapes: the shape of each tensor of `params`, by name.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module] | Bound,
        targets: Targets,
        settings: Settings,
        unfrozen: str | re.Pattern[str] | None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        if isinstance(model, LoraModel):
            raise TypeError(
                "model: expected a model without adapters, got one that `lora` returned. Give all "
                'targets in one call, targets=["attention", nn.Embedding], or merge the first adapters '
                "into a module with ftrain.export."
            )
        self.base = bind(model)
        self.skeleton, self._watch = self.base.skeleton, self.base._watch
        self.settings, self._given = settings, {} if start is None else start
        root = self.skeleton.module
        self.adapters: tuple[Adapter, ...] = tuple(selected(root, targets))
        for each in self.adapters:
            if any(getattr(owner.module, "sparse", False) for owner in each.owners):
                raise ValueError(
                    f"targets: expected weights with dense gradients, got {each.name!r} of an embedding "
                    "with sparse=True. Create it with sparse=False, or exclude it."
                )
        names = {each.name for each in self.adapters}
        parameters = dict(root.named_parameters())
        self.unfrozen: tuple[str, ...] = ()
        if unfrozen is not None:
            self.unfrozen = tuple(matched("unfrozen", unfrozen, sorted(parameters)))
            for name in names.intersection(self.unfrozen):
                raise ValueError(
                    f"unfrozen: expected parameters without an adapter, got {name!r}, which is a target "
                    "too. Exclude it from one of the two patterns."
                )
        shapes = {name: tuple(parameters[name].shape) for name in self.unfrozen}
        for each in self.adapters:
            shapes |= each.shapes(settings)
        self.shapes: dict[str, tuple[int, ...]] = dict(sorted(shapes.items()))
        kept = {*self.skeleton.trainable, *self.skeleton.carried}.difference(self.unfrozen)
        self._kept = sorted(kept)
        # The base model's own forward may write to parameters that were frozen before.
        self._frozen = sorted(names.intersection(self.skeleton.carried))
        self.constants = frozenset(kept & {*self.skeleton.trainable, *self._frozen})

    def dtypes(self) -> dict[str, torch.dtype]:
        """Return the dtype of each trained tensor, by name."""
        found = {n: self.skeleton.module.get_parameter(n).dtype for n in self.unfrozen}
        for each in self.adapters:
            found |= dict.fromkeys(each.shapes(self.settings), each.dtype)
        return {name: found[name] for name in self.shapes}

    def init(self, key: Tensor) -> tuple[Tensors, Tensors]:
        """Return initial values: `(adapters, tensors of the base model)`.

        The base model's values do not depend on the adapters. An adapter's values are a function of
        `key` and of the name of its weight.

        Args:
            key: int32, shape (2,).
        """
        params, buffers = self.base.init(key)
        base = {**params, **buffers}
        trained = {name: base[name] for name in self.unfrozen}
        with keyed(key):
            for each in self.adapters:
                at = key_of(f"lora {each.name}")
                trained |= initial(each, self.settings, base[each.name], at)
        for name, value in self._given.items():
            kind = trained if name in trained else base
            kind[name] = value.to(kind[name].dtype).to(kind[name].device).clone()
        return (
            {name: trained[name] for name in self.shapes},
            {name: base[name] for name in self._kept},
        )

    def call(
        self,
        fn: Callable[[nn.Module], Any],
        params: Tensors,
        buffers: Tensors,
        training: bool,
        until: contextlib.ExitStack | None = None,
    ) -> tuple[Any, Tensors]:
        """Call `fn` on the base module with the adapted weights installed; see `Bound.call`."""
        installed = self._installed(params, buffers, training and self.settings.dropout > 0)
        out, after = self.base.call(self._watched(fn), *installed, training, until)
        return out, {n: b if n in self.constants else after[n] for n, b in buffers.items()}

    def _watched(self, fn: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
        """Return a function that calls `fn`, and raises if `fn` writes to a weight with an adapter."""

        def watched(module: nn.Module) -> Any:
            before = self.skeleton.read(self._frozen)
            versions = {name: version(tensor) for name, tensor in before.items()}
            out = fn(module)
            for name, tensor in self.skeleton.read(self._frozen).items():
                if tensor is not before[name] or version(tensor) != versions[name]:
                    raise ImpureFunctionError(
                        f"the model wrote to its frozen parameter {name!r}, which has an adapter: "
                        "expected a weight that stays as it is. Exclude it from the targets."
                    )
            return out

        return watched if self._frozen else fn

    def module(self, params: Tensors, buffers: Tensors) -> nn.Module:
        """Return an nn.Module in eval mode: the base model with the adapters merged into its weights."""
        return self.base.module(*self.merge(params, buffers))

    def merge(self, params: Tensors, buffers: Tensors) -> tuple[Tensors, Tensors]:
        """Return `(params, buffers)` of the base model, with the adapters added to its weights.

        With these weights, the outputs of the base model equal the evaluation outputs of this model to
        the bit.

        Args:
            params: the adapters, as `state.params`.
            buffers: the tensors of the base model, as `state.buffers`.

        Example:
            >>> from ftrain import random
            >>> model = lora(nn.Linear(3, 2), rank=1)
            >>> adapters, base = model.init(random.key(0))
            >>> params, buffers = model.merge(adapters, base)
            >>> torch.equal(params["weight"], base["weight"])  # one of the matrices is zero
            True
        """
        merged = self._installed(params, buffers, drops=False)
        mine, theirs = ({name: t.clone() for name, t in tensors.items()} for tensors in merged)
        return mine, theirs

    def unmerge(
        self, params: Tensors, merged_params: Tensors, merged_buffers: Tensors
    ) -> tuple[Tensors, Tensors]:
        r"""Return `(params, buffers)` of the base model before `merge`, up to rounding.

        Each element differs from the original by at most $\epsilon (|W| + |s B A|)$ with the machine
        epsilon of the weight's dtype. The state's `buffers` have the exact original weights.

        Args:
            params: the adapters that were merged.
            merged_params: the parameters that `merge` returned.
            merged_buffers: the buffers that `merge` returned.

        Raises:
            ValueError: the adapters use DoRA, whose merged weights retain only the directions of the
                original ones.
        """
        if self.settings.dora:
            raise ValueError(
                "unmerge: expected adapters with dora=False, got dora=True: weights merged with DoRA "
                "do not determine the base weights. Take the base weights from state.buffers."
            )
        self._check("params", params, self.shapes)
        self.skeleton.checked(merged_params, merged_buffers)
        found: list[Tensors] = []
        for tensors in (merged_params, merged_buffers):
            new = {name: t.clone() for name, t in tensors.items()}
            for each in self.adapters:
                if each.name in new:
                    new[each.name] = removed(each, self.settings, new[each.name], params)
            found.append(new)
        return found[0], found[1]

    def _installed(self, params: Tensors, buffers: Tensors, drops: bool) -> tuple[Tensors, Tensors]:
        """Return the base model's `(params, buffers)`, with the adapters added to their weights."""
        self._check("params", params, self.shapes)
        self._check("buffers", buffers, dict.fromkeys(self._kept))
        tensors = {**buffers, **{name: params[name] for name in self.unfrozen}}
        for each in self.adapters:
            key = key_of(f"lora {each.name}") if drops else None
            tensors[each.name] = adapted(each, self.settings, buffers[each.name], params, key)
        return (
            {name: tensors[name] for name in self.skeleton.trainable},
            {name: tensors[name] for name in self.skeleton.carried},
        )

    def _check(self, what: str, given: Any, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
        """Raise unless the given tensors have the names and shapes of this model's tensors."""
        if not isinstance(given, dict) or given.keys() != shapes.keys():
            have = set(given) if isinstance(given, dict) else set()
            missing, extra = sorted(shapes.keys() - have), sorted(have - shapes.keys())
            raise ValueError(
                f"{what} do not fit {self}: "
                + (f"missing {missing[:5]} " if missing else "")
                + (f"unexpected {extra[:5]} " if extra else "")
                + f"(expected {len(shapes)} names). Take them from the init_state of this model."
            )
        for name, shape in shapes.items():
            if shape is not None and given[name].shape != shape:
                raise ValueError(
                    f"{name!r}: expected shape {shape}, as in {self}, got {tuple(given[name].shape)}: "
                    "the adapters have another rank or belong to another model. Make a state with the "
                    "init_state of this model."
                )

    def __repr__(self) -> str:
        name = type(self.skeleton.module).__name__
        kind = "dora" if self.settings.dora else "lora"
        return f"{kind}({name}, {len(self.adapters)} weights, rank {self.settings.rank})"
