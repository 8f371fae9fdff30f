"""Generation of tokens by a model that predicts the next token, as a pure function of a key.

Read next: `ftrain/cli/sample.py`, which generates text with a trained run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftrain.core import random
from ftrain.tasks.adapters import find_output

__all__ = ["generate"]


def generate(
    predict: Callable[[Tensor], Any],
    prompt: Tensor,
    key: Tensor,
    *,
    length: int,
    context: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    r"""Return a prompt continued by tokens that are drawn from a model's predictions.

    Token $i$ of a row is drawn from $\operatorname{softmax}(z / T)$, where $z$ are the logits after all
    tokens before it and $T$ is the temperature. The draws depend on `key` alone: the same key gives
    the same tokens.

    Args:
        predict: `tokens (n, length) -> logits (n, length, vocabulary)`, or an output that holds them.
        prompt: int64 `(n, t)`, with `t` of at least 1.
        key: a key of `ftrain.random`.
        length: the number of new tokens.
        context: the largest number of tokens that `predict` accepts; it gets the last ones. `None`: all.
        temperature: $T$. Below 1, likely tokens are drawn more often; 0 selects the most likely token.
        top_k: draw from the `top_k` most likely tokens only; `None`: from all.

    Returns:
        int64 `(n, t + length)`: the prompt and the new tokens.

    Raises:
        ValueError: an argument is out of range, or a logit is NaN.

    Example:
        >>> def count(tokens):                      # the next token is one more, up to 9
        ...     return 99.0 * torch.nn.functional.one_hot((tokens + 1).clamp(max=9), 10)
        >>> generate(count, torch.tensor([[3], [7]]), random.key(0), length=4)
        tensor([[3, 4, 5, 6, 7],
                [7, 8, 9, 9, 9]])

    References:
        Sampling by the maximum of logits plus Gumbel noise: Gumbel, 1954; Maddison et al., 2014 (arXiv
        1411.0030). Top-k: Fan et al., 2018 (arXiv 1805.04833).
    """
    _check(prompt, length, context, temperature, top_k)
    tokens = prompt
    for index in range(length):
        seen = tokens if context is None else tokens[:, -context:]
        logits = find_output(predict(seen))[:, -1].float()
        if logits.isnan().any():
            raise ValueError(
                f"predict: expected logits, got NaN after {tokens.shape[1]} tokens. Load another "
                "checkpoint of the model."
            )
        drawn = _drawn(logits, random.fold_in(key, index), temperature, top_k)
        tokens = torch.cat([tokens, drawn.to(tokens.device)[:, None]], dim=1)
    return tokens


def _drawn(logits: Tensor, key: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Draw a token for each row of logits `(n, vocabulary)`; return int64 `(n,)`."""
    if temperature == 0:
        return logits.argmax(1)
    if top_k is not None and top_k < logits.shape[1]:
        values, places = logits.topk(top_k, dim=1)
        logits = torch.full_like(logits, -torch.inf).scatter(1, places, values)
    uniform = random.uniform(key.to(logits.device), tuple(logits.shape))
    gumbel = -torch.log(-torch.log(uniform))
    return (logits / temperature + gumbel).argmax(1)


def _check(
    prompt: Tensor, length: int, context: int | None, temperature: float, top_k: int | None
) -> None:
    if prompt.dtype != torch.int64 or prompt.ndim != 2 or not prompt.shape[1]:
        raise ValueError(
            "prompt: expected int64 tokens of shape (n, t) with t of at least 1, got "
            f"{prompt.dtype} {tuple(prompt.shape)}. Pass torch.tensor([[token]])."
        )
    for name, value, least in (("length", length, 0), ("context", context, 1), ("top_k", top_k, 1)):
        if value is not None and value < least:
            raise ValueError(
                f"{name}: expected an integer of at least {least}, got {value!r}. Write {name}={least} "
                "or more."
            )
    if not 0 <= temperature < float("inf"):
        raise ValueError(
            f"temperature: expected a number of at least 0, got {temperature!r}. Write temperature=1."
        )
