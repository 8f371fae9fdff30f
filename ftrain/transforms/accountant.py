"""Privacy cost of DP-SGD, computed by the library dp-accounting.

Read next: `private.py`, the training whose cost it is.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Iterator
from typing import Any, Literal

__all__ = ["dp_epsilon", "dp_noise_multiplier"]

#: Largest epsilon for the accountant "pld". Its time and memory grow with epsilon: 18 s were
#: measured for 284; a noise multiplier of 0.001 (5 * 10^7) asked for an array of 38 GiB.
MOST_OF_PLD = 1000.0

Accountant = Literal["pld", "rdp"]


def dp_epsilon(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    *,
    accountant: Accountant = "pld",
) -> float:
    """Return the epsilon of the (epsilon, delta) guarantee for training with `private_steps`.

    Neighbouring data sets differ in one example that is added or removed, and each example enters each
    batch independently (Poisson sampling).

    Args:
        noise_multiplier: of `private_steps`; positive.
        sample_rate: the probability that an example enters a batch: the expected batch size over the
            number of examples.
        steps: the number of steps.
        delta: the probability that the guarantee may fail; well below 1 over the number of examples.
        accountant: `"pld"`, privacy loss distributions (tight; for epsilons up to about 1000, beyond
            which its time and memory grow without bound); `"rdp"`, Rényi differential privacy (an upper
            bound, faster).

    Raises:
        ImportError: dp-accounting is not installed; the message says how to install it.
        ValueError: an argument is out of range, or the accountant cannot compute the result.

    References:
        Mironov, "Rényi differential privacy", CSF 2017; Doroshenko, Ghazi, Kamath, Kumar and Manurangsi,
        "Connect the dots: tighter discrete approximations of privacy loss distributions", PETS 2022.

    >>> epsilon = dp_epsilon(1.1, 0.01, 1000, 1e-5, accountant="rdp")
    >>> round(epsilon, 2)
    1.71
    """
    if not 0 < noise_multiplier < math.inf:
        raise ValueError(
            f"noise_multiplier: expected a positive number, got {noise_multiplier!r}. Write "
            "noise_multiplier=1.1."
        )
    _check(sample_rate, steps, delta)
    _new(accountant)  # checks the name
    given = f"noise_multiplier={noise_multiplier!r}, sample_rate={sample_rate!r}, steps={steps}, "
    given += f"delta={delta!r}"

    def epsilon_by(name: str) -> float:
        made = _new(name)
        with _explained(f"dp_epsilon({given}, accountant={name!r})"):
            made.compose(_event(noise_multiplier, sample_rate), steps)
            found = float(made.get_epsilon(delta))
        if not found < math.inf:
            raise ValueError(
                f"dp_epsilon: expected arguments that give a finite epsilon, got {found} for {given} "
                f"and accountant={name!r}. Raise noise_multiplier or delta"
                f"{', or write accountant=' + repr('rdp') if name == 'pld' else ''}."
            )
        return found

    with _quiet_library() if accountant == "pld" else contextlib.nullcontext():
        bound = epsilon_by("rdp")
    if accountant == "rdp":
        return bound
    if bound > MOST_OF_PLD:
        raise ValueError(
            f"dp_epsilon: expected an epsilon of at most {MOST_OF_PLD:g} for accountant='pld', got "
            f"about {bound:.3g} for {given}. Write accountant='rdp', or raise noise_multiplier."
        )
    return epsilon_by(accountant)


def dp_noise_multiplier(
    epsilon: float,
    sample_rate: float,
    steps: int,
    delta: float,
    *,
    accountant: Accountant = "pld",
) -> float:
    """Return the least noise multiplier of `private_steps` for an (epsilon, delta) guarantee.

    The inverse of `dp_epsilon`, found by a search that computes it for many multipliers: the accountant
    `"pld"` takes ten times as long as `"rdp"` or longer (15 s and 1.3 s were measured on a CPU for
    `epsilon=3, sample_rate=0.02, steps=100, delta=1e-5`).

    Args:
        epsilon: the epsilon of the guarantee; positive.
        sample_rate: as of `dp_epsilon`.
        steps: as of `dp_epsilon`.
        delta: as of `dp_epsilon`.
        accountant: as of `dp_epsilon`.

    Raises:
        ImportError: dp-accounting is not installed; the message says how to install it.
        ValueError: an argument is out of range, or the accountant cannot compute the result.

    >>> noise = dp_noise_multiplier(1.71, 0.01, 1000, 1e-5, accountant="rdp")
    >>> round(noise, 2)
    1.1
    """
    most = MOST_OF_PLD if accountant == "pld" else sys.float_info.max
    if not 0 < epsilon <= most:
        raise ValueError(
            f"epsilon: expected a positive number of at most {most:g} for accountant={accountant!r}, "
            f"got {epsilon!r}. Write epsilon=3.0."
        )
    _check(sample_rate, steps, delta)
    library = _library()
    with _explained(
        f"dp_noise_multiplier(epsilon={epsilon!r}, sample_rate={sample_rate!r}, steps={steps}, "
        f"delta={delta!r}, accountant={accountant!r})"
    ):
        found: float = library.calibrate_dp_mechanism(
            lambda: _new(accountant),
            lambda noise: library.SelfComposedDpEvent(_event(noise, sample_rate), steps),
            epsilon,
            delta,
            library.LowerEndpointAndGuess(0.0, 1.0),
        )
    return float(found)


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """Silence dp-accounting's warnings about RDP orders that it leaves out; the bound still holds."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def _explained(call: str) -> Iterator[None]:
    """Replace an error inside dp-accounting by a ValueError that names the call."""
    try:
        yield
    except (ArithmeticError, MemoryError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"expected arguments for which dp-accounting computes a result, got "
            f"{type(error).__name__} ({error}) for {call}. Choose less extreme numbers."
        ) from error


def _event(noise_multiplier: float, sample_rate: float) -> Any:
    library = _library()
    return library.PoissonSampledDpEvent(sample_rate, library.GaussianDpEvent(noise_multiplier))


def _new(accountant: str) -> Any:
    if accountant not in ("pld", "rdp"):
        raise ValueError(
            f"accountant: expected 'pld' or 'rdp', got {accountant!r}. Write accountant='pld'."
        )
    library = _library()
    return library.pld.PLDAccountant() if accountant == "pld" else library.rdp.RdpAccountant()


def _library() -> Any:
    try:
        import dp_accounting  # noqa: PLC0415  # optional
        import dp_accounting.pld  # noqa: PLC0415
        import dp_accounting.rdp  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "the privacy accountant requires dp-accounting, which is not installed. Run "
            "`pip install 'ftrain[privacy]'`."
        ) from error
    return dp_accounting


def _check(sample_rate: float, steps: int, delta: float) -> None:
    if not 0 < sample_rate <= 1:
        raise ValueError(
            f"sample_rate: expected a number above 0 and at most 1, got {sample_rate!r}. Pass the "
            "expected batch size over the number of examples."
        )
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(
            f"steps: expected an integer of at least 1, got {steps!r}. Pass the number of steps."
        )
    if not 0 < delta < 1:
        raise ValueError(
            f"delta: expected a number between 0 and 1, got {delta!r}. Write delta=1e-5."
        )
