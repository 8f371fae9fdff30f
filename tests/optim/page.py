"""Write the documentation page about parity of optimizers: `python -m tests.optim.page [draws]`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.optim import test_lbfgs, test_muon, test_prodigy, test_schedule_free, test_sophia
from tests.optim.parity import BOUNDS, Hyper, Parity, difference
from tests.optim.parity_table import PARITY

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
START, END = "<!-- parity: start -->\n", "<!-- parity: end -->\n"
ROWS = [
    *PARITY,
    test_muon.TORCH,
    test_muon.OPTAX,
    test_sophia.OPTAX,
    test_schedule_free.SGD,
    test_schedule_free.ADAMW,
    test_prodigy.OPTAX,
    test_lbfgs.TORCH,
    test_lbfgs.OPTAX,
]
NOTES = {
    "sgd": "The same but for rounding. `mask` is `matrices` by default; both oracles decay all.",
    "adam": "The same but for rounding; torch's `weight_decay` is `add_decayed_weights` before it.",
    "adamw": "As `sgd`.",
    "nadam": "They disagree: torch's momentum rises (`momentum_decay`), optax's is constant. "
    "ftrain follows torch; `momentum_decay=None` is optax.",
    "radam": "They disagree on whether `eps` comes before the correction of the squares (torch) or "
    "after it (optax). ftrain follows torch; against optax at `eps=0`.",
    "adamax": "The same but for rounding.",
    "amsgrad": "They disagree: torch takes the maximum before the correction of the squares, optax "
    "after it. ftrain follows torch; against optax's maximum of what is not corrected, corrected by a "
    "schedule, at `eps=0`.",
    "adagrad": "They disagree: torch adds `eps` to the root and starts the sum at 0, optax adds it "
    "under the root and starts at 0.1. ftrain follows torch; against optax at `eps=0` and one start.",
    "adadelta": "The same but for rounding.",
    "rmsprop": "They disagree on defaults, on the place of `eps`, and optax has the rate inside the "
    "momentum. ftrain follows torch; against optax with `eps_in_sqrt=False` and a constant rate. A "
    "centered variance is never less than 0, where rounding gives torch NaN.",
    "lion": "As optax (no torch).",
    "lamb": "As optax (no torch), but that `mask` (default `matrices`) says what is adapted too; "
    "held with `everything`.",
    "lars": "As optax (no torch), but that one `mask` (default `matrices`) says what is adapted and "
    "what decays; held with `everything`.",
    "adafactor": "They disagree on which dimensions are factored, the cap `1 / sqrt(t)` on the rate, "
    "bounds and decay. ftrain follows torch; against optax on matrices, where none of these has a "
    "say, and with its `t ** -0.8` in float64.",
    "adan": "optax 0.2.8 weighs the differences of gradients by `1 - b2`, the paper and its authors' "
    "code by `b2`. ftrain follows the paper; against optax at `b2 = 1/2`, where they agree.",
    "yogi": "As optax (no torch), but that the mean of gradients starts at 0 as in the paper, not at "
    "1e-6; held with optax's set to 0.",
    "adabelief": "As optax (no torch).",
    "asgd": "As torch (optax has none).",
    "rprop": "As torch. optax 0.2.8 takes each step one update late and drops it if the sign has "
    "changed by then; ftrain is not compared with it.",
    "muon": "They disagree on Nesterov's correction, on what `eps` does, and optax takes a matrix as "
    "`(in, out)`. ftrain follows torch, in bfloat16 products; against optax in full precision, "
    "without Nesterov and `eps`.",
    "soap": "No implementation to hold it against; laws in `test_soap.py`.",
    "sophia": "As optax (no torch); the signs of the estimates are drawn alike.",
    "schedule_free_sgd": "As optax (no torch), at a constant rate: under a schedule optax weighs a "
    "step by the rate of the next.",
    "schedule_free_adamw": "As `schedule_free_sgd`.",
    "prodigy": "As optax (no torch), along gradients of which one half is constant: along random ones "
    "there is no distance to find. In float32 to 3e-5: the distance is a ratio of sums that it feeds.",
    "lbfgs": "As both, with fixed steps down a convex function; they disagree on the first step: ftrain "
    "follows optax (the Euclidean norm, torch's is the sum; held where both are below 1). In float32 "
    "to 3e-4: the memory is of differences, a hundredth of what they are taken of. The line search is "
    "ftrain's own.",
}
"""For every algorithm: where its oracles disagree, and which ftrain follows."""

Figures = dict[tuple[str, str], tuple[str, ...]]
"""For an algorithm and an oracle: the worst difference found, by the order of `BOUNDS`."""


def measure(row: Parity, examples: int) -> tuple[str, ...]:
    """Return the largest difference over draws, for each dtype."""
    worst = dict.fromkeys(BOUNDS, 0.0)

    @given(row.hyper, st.integers(0, 2**31))
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def run(h: Hyper, seed: int) -> None:
        for dtype in BOUNDS:
            worst[dtype] = max(worst[dtype], difference(row, h, seed, dtype))

    run()
    return tuple(f"{x:.1e}" if x else "0" for x in worst.values())


def render(figures: Figures) -> str:
    """Return the table of the documentation."""
    lines = [
        "| algorithm | compared with | float64 | float32 | where they differ |",
        "|---" * 5 + "|",
    ]
    for algorithm, note in NOTES.items():
        here = [oracle for name, oracle in figures if name == algorithm]
        oracles = here or [""]
        for index, oracle in enumerate(oracles):
            cells = " | ".join(figures.get((algorithm, oracle), ("", "")))
            lines.append(f"| `{algorithm}` | {oracle} | {cells} | {'' if index else note} |")
    return "\n".join(lines) + "\n"


def table() -> str:
    """Return the table that the page contains."""
    return PAGE.read_text().split(START)[1].split(END)[0]


def figures_in(text: str) -> Figures:
    """Return the figures of a rendered table."""
    cells = [[c.strip(" `") for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return {(c[0], c[1]): (c[2], c[3]) for c in cells if c[2]}


def main() -> None:
    """Measure every row over the given number of draws (default 40) and write the page's table."""
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    torch.set_num_threads(1)
    figures: Figures = {}
    for row in ROWS:
        figures[row.algorithm, row.oracle] = measure(row, examples)
        print(row.algorithm, row.oracle, *figures[row.algorithm, row.oracle], flush=True)
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + render(figures) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
