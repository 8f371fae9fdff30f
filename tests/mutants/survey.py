"""Results of a sample of mutants: the share that tests kill, with its confidence interval."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import harmless
from tests.mutants.harmless import HARMLESS
from tests.mutants.mutations import Mutant
from tests.mutants.trial import KILLED, SURVIVED, TIMED_OUT

__all__ = ["NOT_RUN", "Key", "Result", "interval", "key", "load", "report", "save"]

NOT_RUN = "not run"  # no test runs the line
Key = tuple[str, int, str, str, str]


@dataclass(frozen=True)
class Result:
    """Outcome of one mutant.

    Attributes:
        module: the changed module, such as `random.keys`.
        line: the line of the change, from 1.
        function: the qualified name of the function or class around it.
        before: the statement without the change.
        after: the statement with the change.
        result: `KILLED`, `TIMED_OUT`, `SURVIVED` or `NOT_RUN`.
        test: the test that failed first.
    """

    module: str
    line: int
    function: str
    before: str
    after: str
    result: str
    test: str | None = None

    @property
    def key(self) -> Key:
        return self.module, self.line, self.function, self.before, self.after

    @property
    def is_killed(self) -> bool:
        """True if a test fails, or does not end: a suite that hangs is noticed as well."""
        return self.result in (KILLED, TIMED_OUT)

    @property
    def reason(self) -> str | None:
        """The reason why no test need find this mutant, out of `harmless.py`."""
        return harmless.reason(*self._name)

    @property
    def _name(self) -> tuple[str, str, str, str]:
        return self.module, self.function, self.before, self.after


def key(module: str, mutant: Mutant) -> Key:
    """Return the name of a mutant: its module, line and function, both forms of the statement."""
    return module, mutant.line, mutant.function, *mutant.lines


def interval(killed: int, tried: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share: Wilson's (1927), which holds near 100 % too."""
    if tried == 0:
        return 0.0, 1.0
    share, part = killed / tried, z * z / tried
    middle = (share + part / 2) / (1 + part)
    half = z * math.sqrt(share * (1 - share) / tried + part / (4 * tried)) / (1 + part)
    return max(0.0, middle - half), min(1.0, middle + half)


def report(results: Sequence[Result], population: int) -> str:
    """Return the table of modules, the survivors without a reason, and the shares."""
    columns = (KILLED, TIMED_OUT, SURVIVED, NOT_RUN)
    lines = [f"{'module':28}" + "".join(f"{column:>11}" for column in columns)]
    for name in sorted({each.module for each in results}):
        counts = Counter(each.result for each in results if each.module == name)
        if counts.total() > counts[KILLED] + counts[TIMED_OUT]:
            lines.append(f"{name:28}" + "".join(f"{counts[column]:>11}" for column in columns))
    counts = Counter(each.result for each in results)
    lines.append(f"{'all':28}" + "".join(f"{counts[column]:>11}" for column in columns))
    alive = [each for each in results if not each.is_killed]
    killed = len(results) - len(alive)
    explained = sum(each.reason is not None for each in alive)
    lines += [
        "",
        f"{len(results)} of {population} mutants were tried.",
        _share("killed of all", killed, len(results)),
        _share(f"killed of all but {explained} harmless ones", killed, len(results) - explained),
        f"{len(alive) - explained} are not killed and not explained.",
        *(
            f"explained as harmless, but killed by {each.test}; delete it from `HARMLESS`: {each.key}"
            for each in results
            if each.result == KILLED and each._name in HARMLESS
        ),
    ]
    return "\n".join(lines)


def load(path: Path) -> list[Result]:
    return [Result(**each) for each in json.loads(path.read_text())] if path.exists() else []


def save(results: Sequence[Result], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([each.__dict__ for each in results], indent=1))


def _share(name: str, killed: int, tried: int) -> str:
    low, high = interval(killed, tried)
    share = killed / max(1, tried)
    return f"{name}: {killed} of {tried}, {share:.1%} (95 % confidence: {low:.1%} to {high:.1%})"
