"""Numbers as reports print them: a real minus sign, a unit, and a dash for what is not there."""

from __future__ import annotations

from math import isnan

MISSING = "–"


def number(value: float, digits: int = 2) -> str:
    """`0.13`, `−0.21`, `–` for NaN."""
    if isnan(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """`+0.123`, `−0.123`, and `0.000` for what rounds to it."""
    text = number(value, digits)
    return f"+{text}" if float(f"{value:.{digits}f}") > 0 else text


def mean_and_sd(mean: float, sd: float) -> tuple[str, str]:
    """`0.296` and `± 0.216`; the second is empty where there is only one value."""
    return number(mean, 3), "" if isnan(sd) else f"± {sd:.3f}"


def probability(p: float) -> str:
    """Two digits, and `<0.0001` below that."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def percent(share: float, digits: int = 0) -> str:
    """`32 %`."""
    return f"{number(100 * share, digits)} %"


def ratio(value: float) -> str:
    """`0.75×`; empty for NaN."""
    return "" if isnan(value) else f"{value:.2f}×"


def perplexity(value: float) -> str:
    """`7.43`, `31,480`."""
    return number(value, 2 if value < 100 else 0)


def significant(value: float) -> str:
    """Three digits, and no power of ten: `0.0128`, `41.9`, `401,000`."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def amount(value: float) -> str:
    """Four digits and a unit: 41943040 is `41.94 M`; below a million the number itself."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if value >= size:
            return f"{value / size:,.4g}{unit}"
    return f"{value:,}"


def size(value: float) -> str:
    """Bytes in a unit that leaves three digits: `1.61 GB`, `640 B`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}" if value < 1e3 * unit else f"{value / unit:,.0f} {name}"
    return f"{value:,.0f} B"


def duration(seconds: float) -> str:
    """`8 s`, `3 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def plural(count: int, what: str) -> str:
    """`1 head`, `16,128 heads`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
