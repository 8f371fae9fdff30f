"""One step that trains several states, each with its own loss, such as the two networks of a GAN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftrain.core.accumulate import MicroBatches
from ftrain.core.metrics import Metrics
from ftrain.core.state import TrainState
from ftrain.core.step import Steps
from ftrain.transforms._wrapped import named

__all__ = ["alternate"]

States = dict[str, TrainState]


def alternate(players: Mapping[str, Steps], turns: Sequence[str] | None = None) -> Steps:
    """Return the steps of several players, each with a state, a loss and an optimizer of its own.

    A player is a model that trains together with others, such as the generator or the critic of a GAN.
    In its turn, it takes one training step. Its loss reads the newest tensors of the other players from
    `extras["players"][name]`, `{"params": ..., "buffers": ...}`, as constants, and calls the other
    models with `ftrain.bind`:

        generate = ftrain.bind(generator)
        def critic_loss(model, real, key, extras):
            other = extras["players"]["generator"]
            fake, _ = generate(other["params"], other["buffers"], key, noise)
            return model(fake).mean() - model(real).mean() + gradient_penalty(model, real, fake)

    `ftrain.compile(steps.train_step, donate=True)` donates the states of all players.

    Args:
        players: `Steps` by name. `init_state(seed)` gives player `i` of `n` the seed `n * seed + i`.
        turns: the names of the players in the order of their turns, each at least once, such as
            `("critic",) * 5 + ("generator",)`; default: each once, in the order of the mapping.

    Returns:
        Steps of a dict of states by name. `train_step(states, batches)` takes one batch for each turn, a
        tuple or list, or `MicroBatches` of these; metrics are those of each player under `name/`, merged
        over its turns. `eval_step(states, batch)` evaluates each player on the same batch.

    Raises:
        ValueError: `turns` leaves out a player, or has an unknown name; in a call, the number of batches
            is not the number of turns, or a state has an entry `players` in its extras.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import optim
        >>> generate, judge = ftrain.bind(torch.nn.Linear(2, 1)), ftrain.bind(torch.nn.Linear(1, 1))
        >>> def generator_loss(model, real, key, extras):
        ...     other = extras["players"]["critic"]
        ...     fake = model(ftrain.random.normal(key, (4, 2)))
        ...     return -judge(other["params"], other["buffers"], key, fake)[0].mean()
        >>> def critic_loss(model, real, key, extras):
        ...     other, noise = extras["players"]["generator"], ftrain.random.normal(key, (4, 2))
        ...     fake, _ = generate(other["params"], other["buffers"], key, noise)
        ...     return model(fake).mean() - model(real).mean()
        >>> steps = alternate({
        ...     "critic": ftrain.make_steps(judge, critic_loss, optim.rmsprop(1e-3)),
        ...     "generator": ftrain.make_steps(generate, generator_loss, optim.rmsprop(1e-3)),
        ... })
        >>> states, metrics = steps.train_step(steps.init_state(0), (torch.ones(4, 1),) * 2)
        >>> sorted(states), "critic/loss" in metrics
        (['critic', 'generator'], True)

    References:
        Goodfellow et al. (2014), [Generative Adversarial Networks](https://arxiv.org/abs/1406.2661);
        Gulrajani et al. (2017), [Improved Training of Wasserstein
        GANs](https://arxiv.org/abs/1704.00028).
    """
    order = tuple(players) if turns is None else tuple(turns)
    if not order or set(order) != set(players):
        raise ValueError(
            f"turns: expected each of {sorted(players)} at least once, and no other name, got "
            f"{list(order)}. Write turns=(name, ...)."
        )

    def init_state(seed: int) -> Any:
        return {
            name: steps.init_state(len(players) * seed + i)
            for i, (name, steps) in enumerate(players.items())
        }

    def train_step(states: Any, batches: Any) -> tuple[Any, Metrics]:
        if isinstance(batches, MicroBatches):
            batches = _by_turn(batches)
        is_list = isinstance(batches, (tuple, list)) and not isinstance(batches, MicroBatches)
        if not is_list or len(batches) != len(order):
            got = len(batches) if is_list else type(batches).__name__
            raise ValueError(
                f"batches: expected one batch for each of {len(order)} turns, got {got}. Write "
                f"train_step(states, (batch,) * {len(order)})."
            )
        states, merged = dict(states), dict[str, Metrics]()
        for name, batch in zip(order, batches, strict=True):
            extras = states[name].extras
            new, latest = players[name].train_step(_seeing(states, name), batch)
            kept = {key: value for key, value in new.extras.items() if key in extras}
            states[name] = new.replace(extras=kept)
            merged[name] = merged[name].merge(latest) if name in merged else latest
        entries: dict[str, Any] = {}
        for name, metrics in merged.items():
            entries |= named(metrics, name)
        return states, Metrics(entries)

    def eval_step(states: Any, batch: Any) -> Metrics:
        entries: dict[str, Any] = {}
        for name, steps in players.items():
            entries |= named(steps.eval_step(_seeing(states, name), batch), name)
        return Metrics(entries)

    return Steps(init_state, train_step, eval_step)


def _by_turn(batches: MicroBatches) -> Any:
    """Return the micro-batches of each turn, from micro-batches that each have a batch for each turn."""
    if not all(isinstance(part, (tuple, list)) for part in batches.batches):
        return batches
    lengths = sorted({len(part) for part in batches.batches})
    if len(lengths) > 1:
        raise ValueError(
            "alternate: expected micro-batches with equal numbers of batches, one for each turn, got "
            f"{lengths} batches. Cut the batch of every turn into the same number of parts."
        )
    columns = zip(*batches.batches, strict=True)
    return tuple(MicroBatches(column, batches.weights) for column in columns)


def _seeing(states: States, name: str) -> TrainState:
    """Return the state of a player, with the tensors of the other players in its extras."""
    own = states[name]
    if "players" in own.extras:
        raise ValueError(
            f"alternate: expected the extras of {name!r} without an entry 'players', got "
            f"{sorted(own.extras)}. Rename the entry."
        )
    others = {
        other: {"params": state.params, "buffers": state.buffers}
        for other, state in states.items()
        if other != name
    }
    return own.replace(extras={**own.extras, "players": others})
