"""Text that a trained run generates as the continuation of a prompt."""

from __future__ import annotations

from ftrain.config.errors import ConfigError
from ftrain.config.trained import Trained
from ftrain.core import random
from ftrain.data import Text
from ftrain.tasks import generate

__all__ = ["sample"]


def sample(
    run: Trained,
    prompt: str,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """Return a prompt, followed by `length` characters that the run's model generates.

    Args:
        run: a run that was trained on `data: text`, or on data with the fact `alphabet`.
        prompt: text of characters of the training text. An empty prompt is replaced by a line end, or
            by the first character of an alphabet without line ends.
        length: number of new characters.
        temperature: as for `generate`.
        top_k: as for `generate`.
        seed: seed of the draws.

    Raises:
        ConfigError: the run was not trained on a text; the prompt has another character; an option is
            out of range.
    """
    config, facts = run.config, {**run.parts.facts, **run.fitted}
    alphabet = facts.get("alphabet")
    if not isinstance(alphabet, str) or not alphabet:
        says = f"expected a run on a text, got data: {config.data.name}. Train one on data: text."
        raise ConfigError.at("data.name", config.places.of(("data", "name")), says)
    text = Text.of(alphabet, alphabet)
    prompt = prompt or ("\n" if "\n" in alphabet else alphabet[0])
    context = facts.get("context") or config.data.arguments.get("context")
    try:
        tokens = text.encode(prompt)[None]
    except ValueError:
        strange = next(character for character in prompt if character not in alphabet)
        says = f"expected characters of the training text, got {strange!r}. Leave this out."
        raise ConfigError.at("", "the prompt", says) from None
    try:
        found = generate(
            run.predict,
            tokens.to(run.parts.device),
            random.key(seed),
            length=length,
            context=context if isinstance(context, int) else None,
            temperature=temperature,
            top_k=top_k,
        )
    except ValueError as error:
        raise ConfigError.at("", "the command line", str(error)) from None
    return text.decode(found[0].cpu())
