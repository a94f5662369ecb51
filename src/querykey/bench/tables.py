"""A finished benchmark as tables and sentences: one table for each shape and pass, the noise, and a summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import geometric_mean

from querykey.bench.bench import Bench, Row
from querykey.bench.config import Config
from querykey.bench.timing import Spread
from querykey.report.numbers import plural, significant, size
from querykey.report.table import Cell, Column, Table

_NOISE = 0.05  # of a ratio: less is as good as a timing gets, and no reason to warn


def tables(result: Bench) -> Iterator[Table]:
    """A table for each shape and pass; the first explains the columns."""
    for number, (_, group) in enumerate(groupby(result.rows, key=lambda row: (row.shape, row.what))):
        rows = list(group)
        columns = _columns(result, rows) if number == 0 else [_unexplained(one) for one in _columns(result, rows)]
        notes = [note] if (note := _compared(rows)) else []
        yield Table(columns, [_cells(row, rows[0]) for row in rows], caption=title(rows[0], result.config), notes=notes)


def title(row: Row, config: Config) -> str:
    """The caption of a row's table: pass and sizes."""
    batch, length, dim, heads = row.shape
    if row.what == "decoding":
        seen = f", of which {config.window:,} are attended to" if config.window is not None else ""
        return f"decoding: batch {batch}, {config.cached:,} positions cached{seen}, dim {dim}, {heads} heads"
    causal = ", causal" * config.causal + f", window {config.window}" * (config.window is not None)
    return f"{row.what}: batch {batch}, length {length}, dim {dim}, {heads} heads{causal}"


def summary(result: Bench) -> str:
    """One sentence: the fastest design of each pass, with the ratio that FLOPs or bytes predict.

    With several shapes, ratios are geometric means over the shapes that a design is possible at.
    """
    first = str(result.config.designs[0])
    parts = [_fastest(result, what) for what in dict.fromkeys(row.what for row in result.rows)]
    shapes = len({row.shape for row in result.rows})
    over = f", over {shapes} shapes" if shapes > 1 else ""
    compared = first if len(result.config.designs) > 1 else f"the lower bound of {first}"
    return f"Time relative to {compared}{over}: {'; '.join(parts)}."


def noise(result: Bench) -> str:
    """A warning if ratios to the first design are less certain than they differ from 1; else ""."""
    found = [row for row in result.rows if row.name != row.compared]
    noisy = [row for row in found if _unclear(row, result.config)]
    if not noisy:
        return ""
    worst = max(noisy, key=lambda row: row.to_baseline.high - row.to_baseline.low)
    text, interval = ratio_texts(worst.to_baseline)
    return (
        f"noise: {len(noisy)} of {plural(len(found), 'ratio')} to another layer "
        f"{'is' if len(noisy) == 1 else 'are'} less certain than the difference that they show; the worst is "
        f"{worst.name} in {worst.what} at {worst.shape}, {text} ({interval}); close other programs, or raise --rounds"
    )


def ratio_texts(spread: Spread, digits: int = 2) -> tuple[str, str]:
    """The median and the interval as text; the interval is empty for a layer compared with itself."""
    if set(spread) == {1.0}:
        return "1", ""
    return f"{spread.median:,.{digits}f}", f"{spread.low:,.{digits}f}–{spread.high:,.{digits}f}"


def _unclear(row: Row, config: Config) -> bool:
    """Whether the noise of a ratio is larger than its difference from 1, and large at all."""
    return row.to_baseline.noise(config.rounds) > max(abs(row.to_baseline.median - 1), _NOISE)


def _fastest(result: Bench, what: str) -> str:
    designs = list(map(str, result.config.designs))
    rows = {name: [row for row in result.rows if (row.what, row.name) == (what, name)] for name in designs}
    mean = {name: geometric_mean([row.to_baseline.median for row in found]) for name, found in rows.items() if found}
    best = min(mean, key=lambda name: mean[name])
    if best == designs[0]:
        bound = geometric_mean([row.to_bound.median for row in rows[best]])
        return f"no design is faster in {what}" if len(designs) > 1 else f"{bound:.2f} in {what}"
    predicted = geometric_mean([row.predicted or 1.0 for row in rows[best]])
    unsure = ", within the noise" * all(_unclear(row, result.config) for row in rows[best])
    counted = "bytes" if what == "decoding" else "FLOPs"
    return f"{mean[best]:.2f} with {best} in {what} ({counted}: {predicted:.2f}{unsure})"


def _columns(result: Bench, rows: Sequence[Row]) -> list[Column]:
    first = rows[0].name if len(rows[0].name) < 8 else "first"  # a long title would take the width of the numbers
    own = " or ".join(sorted({row.backend for row in result.rows} & {"blocked", "products"}))
    faster = f"; the kernel {own} can be faster" if own else ""
    rotation = "; without rotation" if result.config.rotary else ""
    bound = f"relative to bare matrix products and PyTorch's stock kernel{faster}{rotation}"
    unit = "GFLOP/s" if rows[0].step_bytes is None else "GB/s"
    columns = [
        Column("layer", "left", wrap=True),
        Column("time (ms)", about="median of the rounds and their middle half"),
        Column("÷ bound", about=bound),
        Column(f"÷ {first}", about="relative to the first design; for other libraries, to the equal querykey layer"),
        Column("predicted", about="ratio of FLOPs to the first design; in decoding, of bytes of weights and cache"),
        Column("peak", about="memory that the pass allocates, without weights, input and cache", rank=3),
        Column("kernel", "left", rank=4),
        Column(unit, about="FLOPs over time; in decoding, bytes over time (GB/s)", rank=2),
    ]
    if any(row.cache_bytes is not None for row in rows):
        columns.append(Column("B/token", about="cached bytes of one position", rank=1))
    return columns


def _unexplained(column: Column) -> Column:
    return Column(column.title, column.align, column.detail, wrap=column.wrap, rank=column.rank)


def _cells(row: Row, first: Row) -> list[Cell | str]:
    milliseconds = 1e3 * row.seconds.median
    digits = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    cells: list[Cell | str] = [
        Cell(row.name, style="" if row.peer else "code"),
        Cell(*ratio_texts(Spread(*(1e3 * value for value in row.seconds)), digits)),
        Cell(*ratio_texts(row.to_bound)),
        Cell(*ratio_texts(row.to_baseline)),
        "" if row.predicted is None else f"{row.predicted:.2f}",
        size(row.peak_bytes),
        row.backend,
        significant(row.rate / 1e9),
    ]
    if first.cache_bytes is not None:
        cells.append("" if row.cache_bytes is None else f"{row.cache_bytes:,}")
    return cells


def _compared(rows: Sequence[Row]) -> str:
    """The querykey layers that peers are compared with, where these are not the first design."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.peer and row.compared != rows[0].name:
            found.setdefault(row.compared, []).append(row.name)
    pairs = [f"{', '.join(names)} to {ours}" for ours, names in found.items()]
    return f"compared with the equal layer: {'; '.join(pairs)}" if pairs else ""
