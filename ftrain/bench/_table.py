"""Report of a benchmark as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ftrain.bench.measurement import Measurement
from ftrain.bench.noise import Difference, compare_turns

__all__ = ["swept", "table", "threads"]

_Cell = Callable[[Measurement], str]


def table(
    rows: tuple[Measurement, ...],
    here: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """Return a report as text: the machine, a table of measurements, differences and notes."""
    where = here.get("device", here["cpu"])
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [f"{where}, {here['cores']} cores, {threads(here)}, load {here['load']}; {software}"]
    if rows:
        rates = {dtype: rate for row in rows for dtype, rate in row.rates.items()}
        if rates:
            figures = [f"{dtype} {_giga(rate)}" for dtype, rate in rates.items()]
            lines.append(f"matrix rate, GFLOP/s: {', '.join(figures)}")
        lines += ["", *_grid(rows), "", *_differences(rows)]
    lines += [f"note: {note}" for note in notes]
    lines += [f"\n{row.name}\n{row.cost}" for row in rows if row.cost is not None]
    return "\n".join(lines).rstrip()


def _grid(rows: tuple[Measurement, ...]) -> Iterator[str]:
    """Yield the lines of the table; columns that are empty in every row are left out."""
    columns: list[tuple[str, _Cell, Callable[[Measurement], Any]]] = [
        ("ms", lambda r: _ms(r.median), lambda r: True),
        ("noise", lambda r: f"±{r.noise:.1%}" if r.noise < 10 else "?", lambda r: True),
        ("p5", lambda r: _ms(r.p5), lambda r: True),
        ("p95", lambda r: _ms(r.p95), lambda r: True),
        ("samples/s", lambda r: f"{r.samples_per_second:,.0f}", lambda r: r.samples),
        ("tokens/s", lambda r: f"{r.tokens_per_second:,.0f}", lambda r: r.tokens),
        ("GFLOP/s", lambda r: _giga(r.flops_per_second), lambda r: r.flops),
        ("of matrix rate", lambda r: f"{r.matrix_share or 0:.0%}", lambda r: r.matrix_share),
        ("kernels", lambda r: f"{r.kernels:,}", lambda r: r.kernels),
        ("in kernels ms", lambda r: _ms(r.device_seconds), lambda r: r.kernels),
        ("host ms", lambda r: _ms(r.host_seconds), lambda r: r.kernels),
        ("1st call s", lambda r: f"{r.first_call:.3g}", lambda r: True),
        ("2nd ms", lambda r: _ms(r.second_call), lambda r: True),
        ("cold s", lambda r: _optional(r.cold_call), lambda r: r.cold_call),
        ("warm s", lambda r: _optional(r.warm_call), lambda r: r.warm_call),
        ("peak MB", lambda r: _mega(r.peak_bytes), lambda r: r.peak_bytes),
        ("steady MB", lambda r: _mega(r.steady_bytes), lambda r: r.steady_bytes),
    ]
    columns = [column for column in columns if any(column[2](row) for row in rows)]
    cells = [["a step", *(title for title, _, _ in columns)]]
    cells += [[row.name, *(cell(row) for _, cell, _ in columns)] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        numbers = zip(line[1:], widths[1:], strict=True)
        yield line[0].ljust(widths[0]) + "".join(
            f"  {cell.rjust(width)}" for cell, width in numbers
        )


def _differences(rows: tuple[Measurement, ...]) -> Iterator[str]:
    """Yield lines that compare each variant, and each value of a setting, with the first one."""
    by_settings: dict[str, list[Measurement]] = {}
    for row in rows:
        by_settings.setdefault(str(row.settings), []).append(row)
    for first, *others in by_settings.values():
        for other in others:
            found = compare_turns(other.seconds, first.seconds)
            yield f"{other.name}, against {first.variant}: {_time(found)}"
    for key in swept(rows):
        groups: dict[str, list[Measurement]] = {}
        for row in rows:
            rest = {name: value for name, value in row.settings.items() if name != key}
            groups.setdefault(f"{row.variant} {rest}", []).append(row)
        for first, *others in groups.values():
            for other in others:
                found = compare_turns(other.seconds, first.seconds)
                yield f"{other.name}, against {key}={first.settings[key]}: {_time(found)}"


def threads(here: Mapping[str, Any]) -> str:
    """Return the number of threads of a machine as text: `2 threads`."""
    return "1 thread" if here["threads"] == 1 else f"{here['threads']} threads"


def swept(rows: tuple[Measurement, ...]) -> list[str]:
    """Return the names of the settings that have several values."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.settings.items():
            values.setdefault(key, set()).add(str(value))
    return [key for key, found in values.items() if len(found) > 1]


def _time(found: Difference) -> str:
    if not found.is_real:
        return str(found)
    if found.ratio < 1:
        speed = found.inverted()
        return f"{speed.ratio:.2f} times as fast ({speed.low:.2f} to {speed.high:.2f})"
    return f"{found.ratio:.2f} times the time ({found.low:.2f} to {found.high:.2f})"


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.4f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _giga(rate: float) -> str:
    return f"{rate / 1e9:,.0f}" if rate >= 1e10 else f"{rate / 1e9:.2g}"


def _mega(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _optional(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f}"
