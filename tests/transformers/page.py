"""Write docs/transformers.md from the tables of the tests: `python -m tests.transformers.page`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.transformers.architectures import ARCHITECTURES, SUITE
from tests.transformers.audio import AUDIO
from tests.transformers.decoders import DECODERS
from tests.transformers.encoders import ENCODERS, SEQ2SEQ
from tests.transformers.multimodal import MULTIMODAL
from tests.transformers.others import OTHERS
from tests.transformers.refusals import DRAWS, REFUSED
from tests.transformers.tiny import Architecture
from tests.transformers.vision import VISION

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
KINDS: dict[str, Mapping[str, Architecture]] = {
    "Decoders (state-space models and mixtures of experts among them)": DECODERS,
    "Encoders": ENCODERS,
    "Encoder-decoders": SEQ2SEQ,
    "Images": VISION,
    "Sound": AUDIO,
    "Several modalities": MULTIMODAL,
    "Time series, video, detection and others": OTHERS,
}
CHECKS = {
    "init": "initialization",
    "eager": "eager steps",
    "compiled": "compiled steps",
    "evaluation": "evaluation",
    "gradients": "gradients",
    "checkpointing": "gradient checkpointing",
}
HEAD = """# Models of transformers

Written by `python -m tests.transformers.page`, from the tables of the tests.

{count} classes of the `transformers` library have been tried, with small random configurations, in
training mode and with dropout. The tests hold, for each class that is not refused:

- `init_state` is a pure function of its seed.
- Three eager steps are pure and deterministic, and keep the structure of the state (laws 1 to 3).
- Steps compiled to one graph have the bytes of eager ones, random streams included (law 4), and compile
  once.
- Evaluation changes nothing, and has the loss of the plain module.
- Loss and gradients are those of plain PyTorch (relative norm 1e-6).
- `gradient_checkpointing_enable()`, where a model supports it, keeps the bytes of a step.

`make transformers` runs all of them, the suite the {suite} classes in bold. The graph of a compiled step
is executed as it is; six models are compiled to machine code, too. {whole} classes pass everything.
{eager} pass all but the compiled step, which would need the values of tensors. {rest} are refused in
eager steps or in evaluation.

```python
import transformers
from ftrain import optim, tasks

config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=99)
task = tasks.language_modeling()                     # batches: input_ids, attention_mask, labels
steps = ftrain.make_steps(
    lambda: transformers.GPT2LMHeadModel(config), task.loss_fn, optim.adamw(1e-3), eval_fn=task.eval_fn
)
```

## What is refused

Each raises an error that says why, and what to write instead.

| class | what is refused | why |
|---|---|---|
"""


def refusals() -> dict[str, tuple[list[str], list[str]]]:
    """Return the refused checks and the reasons of each class that has any."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for (name, check), refusal in REFUSED.items():
        checks, reasons = found.setdefault(name, ([], []))
        checks.append(CHECKS[check])
        if refusal.reason not in reasons:
            reasons.append(refusal.reason)
    return dict(sorted(found.items()))


def text() -> str:
    """Return the page."""
    refused = refusals()
    only_compiled = [name for name, (checks, _) in refused.items() if checks == ["compiled steps"]]
    lines = HEAD.format(
        count=len(ARCHITECTURES),
        suite=len(SUITE),
        whole=len(ARCHITECTURES) - len(refused),
        eager=len(only_compiled),
        rest=len(refused) - len(only_compiled),
    ).splitlines()
    lines += [
        f"| `{name}` | {', '.join(checks)} | {'; '.join(reasons)} |"
        for name, (checks, reasons) in refused.items()
    ]
    lines += [
        "",
        "Two draw in training even without dropout, so that their gradients are compared with",
    ]
    lines += ["nothing: " + "; ".join(f"`{name}` ({why})" for name, why in DRAWS.items()) + "."]
    for kind, names in KINDS.items():
        lines += ["", f"## {kind}: {len(names)}", ""]
        lines += [", ".join(_listed(name) for name in names)]
    return "\n".join(lines) + "\n"


def _listed(name: str) -> str:
    shown = f"**{name}**" if name in SUITE else name
    return f"{shown} (refused)" if name in refusals() else shown


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
