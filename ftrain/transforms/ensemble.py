"""Mean prediction of the members of a sweep, and their disagreement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from ftrain.core._words import a_or_an, kind

__all__ = ["EnsemblePrediction", "ensemble"]


class EnsemblePrediction(NamedTuple):
    """Prediction of an ensemble.

    Attributes:
        mean: for numbers, the mean over the members; for logits, the logarithm of the mean probability,
            whose softmax is the mean probability. It has the shape of one member's prediction.
        disagreement: for numbers, the standard deviation over the members, in the units and the shape of
            a prediction; for logits, the mutual information between class and member in nats, without
            the axis of classes. 0 where all members agree.
    """

    mean: torch.Tensor
    disagreement: torch.Tensor


def ensemble(
    predict: Callable[[Any, Any], torch.Tensor], of: Literal["numbers", "logits"] = "numbers"
) -> Callable[..., EnsemblePrediction]:
    r"""Return a function that averages the predictions of all members of a stacked state.

    For logits with $p_m = \mathrm{softmax}(z_m)$, the mean is $\log \bar p$, $\bar p = \sum_m w_m p_m$,
    and the disagreement $H[\bar p] - \sum_m w_m H[p_m]$, with $H$ the entropy.

    Args:
        predict: `(state, batch) -> prediction` for a single state, a floating tensor; the last axis of
            logits is that of the classes.
        of: `"numbers"` or `"logits"`.

    Returns:
        `(states, batch, weights=None) -> EnsemblePrediction`, a pure function. `weights`, `(n,)`, bool
        or not negative, has one weight per member, such as `states.extras["active"]` of `stoppable`
        steps. A member of weight 0 has no influence, even if its prediction is NaN.

    Raises:
        ValueError: `of` is unknown; in a call, `weights` has another shape.
        TypeError: in a call, `predict` returns no floating tensor.

    Example:
        >>> import ftrain
        >>> apply = ftrain.bind(torch.nn.Linear(3, 2))
        >>> def predict(state, x):
        ...     return apply(*state, ftrain.random.key(0), x, training=False)[0]
        >>> states = torch.vmap(apply.init)(ftrain.random.split(ftrain.random.key(0), 5))
        >>> mean, disagreement = ensemble(predict, of="logits")(states, torch.ones(4, 3))
        >>> mean.shape, disagreement.shape
        (torch.Size([4, 2]), torch.Size([4]))

    References:
        Lakshminarayanan, Pritzel, Blundell (2017), "Simple and Scalable Predictive Uncertainty
        Estimation using Deep Ensembles". Houlsby et al. (2011), "Bayesian Active Learning for
        Classification and Preference Learning" (the mutual information).
    """
    if of not in ("numbers", "logits"):
        raise ValueError(f"of: expected 'numbers' or 'logits', got {of!r}. Write of='logits'.")

    def predicted(
        states: Any, batch: Any, weights: torch.Tensor | None = None
    ) -> EnsemblePrediction:
        rows = torch.vmap(predict, in_dims=(0, None))(states, batch)
        if not isinstance(rows, torch.Tensor) or not rows.is_floating_point():
            got = kind(rows) if isinstance(rows, torch.Tensor) else a_or_an(type(rows).__name__)
            raise TypeError(
                f"predict: expected a function that returns a floating tensor, got {got} from it. "
                "Return the logits or the numbers alone."
            )
        share = _shares(rows, weights)
        rows = torch.where(share > 0, rows, 0)
        return (_of_logits if of == "logits" else _of_numbers)(rows, share)

    return predicted


def _shares(rows: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Return the members' weights, normalized to sum 1, in a shape that broadcasts against `rows`."""
    n = len(rows)
    if weights is None:
        weights = torch.ones(n, device=rows.device)
    elif weights.shape != (n,):
        raise ValueError(
            f"weights: expected one number per member, shape ({n},), got {kind(weights)}. Leave it out "
            "for equal weights, or pass a tensor of this shape."
        )
    wide = weights.to(torch.promote_types(rows.dtype, torch.float32))
    return (wide / wide.sum()).reshape(n, *(1,) * (rows.ndim - 1))


def _of_numbers(rows: torch.Tensor, share: torch.Tensor) -> EnsemblePrediction:
    wide = rows.to(share.dtype)
    mean = (share * wide).sum(0)
    variance = (share * (wide - mean).square()).sum(0)
    return EnsemblePrediction(mean.to(rows.dtype), variance.sqrt().to(rows.dtype))


def _of_logits(rows: torch.Tensor, share: torch.Tensor) -> EnsemblePrediction:
    log_p = rows.to(share.dtype).log_softmax(-1)
    mean = (log_p + share.log()).logsumexp(0)
    information = _entropy(mean) - (share[..., 0] * _entropy(log_p)).sum(0)
    return EnsemblePrediction(mean.to(rows.dtype), information.clamp(min=0).to(rows.dtype))


def _entropy(log_p: torch.Tensor) -> torch.Tensor:
    p = log_p.exp()
    total: torch.Tensor = torch.special.xlogy(p, p).sum(-1)
    return -total
