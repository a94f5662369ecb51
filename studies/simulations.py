"""Do the statistics of a comparison hold what they promise, with few seeds and with noise like that of real cells?

    python studies/simulations.py [--scale 1.0] [--seed 0] [--out studies/results]

writes simulations.csv, one row per measured share, and simulations.md, the same as tables, after about an hour on one
core (with --scale 0.1, six minutes). Every share comes out of the functions that judge real runs. The score of a cell
is drawn from a `Noise`; two designs that do not differ have the same one, and draw from it independently: what seeds
share in real runs can only make differences smaller.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from querykey.stats.comparison import Arms, Key
from querykey.stats.statistics import SeedSchedule, SignFlips, paired_difference
from querykey.stats.verdict import compare_family

Family = dict[Key, Arms]


@dataclass(frozen=True)
class Noise:
    """How the score of a design varies over seeds, with its exact mean and standard deviation."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    mean: float
    sd: float


CEILING = "ceiling: 1, every fifth seed 0.3 to 0.9"
NOISES = {
    "normal": Noise(lambda rng, n: rng.normal(0.7, 0.05, n), 0.7, 0.05),
    "skewed: exponential below 1": Noise(lambda rng, n: 1 - rng.gamma(1, 0.03, n), 0.97, 0.03),
    "very skewed: gamma(0.3) below 1": Noise(lambda rng, n: 1 - rng.gamma(0.3, 0.1, n), 0.97, 0.1 * 0.3**0.5),
    CEILING: Noise(lambda rng, n: np.where(rng.random(n) < 0.8, 1.0, rng.uniform(0.3, 0.9, n)), 0.92, 0.0316**0.5),
    "coin: 0.5 or 1, ± 0.01": Noise(
        lambda rng, n: rng.choice((0.5, 1.0), n) + rng.normal(0, 0.01, n), 0.75, 0.0626**0.5
    ),
    "heavy tails: t with 3 degrees": Noise(lambda rng, n: 0.7 + 0.05 * rng.standard_t(3, n), 0.7, 0.05 * 3**0.5),
}
GAPS = ("none", "same noise, shifted", "thrice as far below 1", "baseline always 1")
SEEDS = (6, 7, 8, 9, 10)
TASKS = {9: 1, 16: 4, 40: 4}  # of a family of so many comparisons; each task has baseline cells of its own


class Share(NamedTuple):
    """One measured number, and from how many draws."""

    table: str
    noise: str
    case: str
    quantity: str
    value: float
    draws: int


def coverage(noise: Noise, n: int, gap: str, draws: int, rng: np.random.Generator) -> float:
    """How often the 95 % interval holds the true mean difference.

    The gap: none; a shift of one of two designs with the same noise; a design whose every distance to the ceiling
    of 1 is three times that of the baseline; a baseline that is at 1 in every seed.
    """
    shift, factor, steady = {GAPS[0]: (0, 1, 0), GAPS[1]: (-0.2, 1, 0), GAPS[2]: (0, 3, 0), GAPS[3]: (0, 1, 1)}[gap]
    truth = shift - (factor - 1 + steady) * (1 - noise.mean)
    held = 0
    for _ in range(draws):
        baseline = np.ones(n) if steady else noise.draw(rng, n)
        d = 1 - factor * (1 - noise.draw(rng, n)) + shift - baseline
        x = paired_difference(d, SignFlips.of(d, rng))
        held += x.low - 1e-12 <= truth <= x.high + 1e-12
    return held / draws


def draw_family(
    noise: Noise,
    n: int,
    comparisons: int,
    rng: np.random.Generator,
    *,
    baseline: Noise | None = None,
    gaps: Sequence[float] = (0.0,),
    margin: float = 0.02,
) -> Family:
    """A family as plans have it. By turns the designs of a task are on average `gaps` below its baseline."""
    tasks = TASKS.get(comparisons, 1)
    family = {}
    for task in range(tasks):
        base = dict(enumerate((baseline or noise).draw(rng, n).tolist()))
        for i in range(comparisons // tasks):
            scores = dict(enumerate((noise.draw(rng, n) - gaps[i % len(gaps)]).tolist()))
            family[f"task {task}", f"design {i}"] = Arms(base, scores, higher_is_better=True, margin=margin)
    return family


def false_better(
    families: Iterable[Family], rng: np.random.Generator, schedule: SeedSchedule | None = None
) -> dict[str, float]:
    """The share of families without a true gap in which anything is better, to either test alone and in words."""
    return _shares(
        {
            "t test": any(c.p_holm <= 0.05 for c in comparisons),
            "sign-flip test": any(c.p_flip_holm <= 0.05 for c in comparisons),
            "verdict": any(c.better is not None for c in comparisons),
        }
        for comparisons in (compare_family(family, "baseline", rng, schedule=schedule) for family in families)
    )


def gaps_found(families: Iterable[Family], rng: np.random.Generator) -> dict[str, float]:
    """The share of comparisons in which the baseline is called better, as in truth it is in all."""
    return _shares(
        {
            "t test": c.p_holm <= 0.05,
            "sign-flip test": c.p_flip_holm <= 0.05,
            "verdict": c.better == "baseline",
        }
        for family in families
        for c in compare_family(family, "baseline", rng)
    )


def called_equal(families: Iterable[Family], rng: np.random.Generator) -> float:
    """The share of families in which anything is said to lie within the margin."""
    return float(np.mean([any(c.within_margin for c in compare_family(f, "", rng)) for f in families]))


def mixed_families(
    noise: Noise, n: int, comparisons: int, draws: int, rng: np.random.Generator
) -> Iterator[tuple[Family, float]]:
    """Families at the edges of all statements, with their margin: gaps of nothing, of just under it and of just it.

    The margin is three standard errors of a difference, so that each kind of statement is within reach.
    """
    margin = 3 * noise.sd * (2 / n) ** 0.5
    for _ in range(draws):
        yield draw_family(noise, n, comparisons, rng, gaps=[0.0, 0.999 * margin, 1.001 * margin], margin=margin), margin


def false_statements(families: Iterable[tuple[Family, float]], rng: np.random.Generator) -> dict[str, float]:
    """The share of `mixed_families` with a false statement of each kind, and of any."""

    def errors(family: Family) -> dict[str, bool]:
        by_gap = [(int(c.design.removeprefix("design ")) % 3, c) for c in compare_family(family, "baseline", rng)]
        found = {
            "false better": any(c.better is not None and (gap == 0 or c.better == c.design) for gap, c in by_gap),
            "false within": any(c.within_margin and gap == 2 for gap, c in by_gap),
            "false beyond": any(c.beyond_margin and gap < 2 for gap, c in by_gap),
        }
        return found | {"any of them": any(found.values())}

    return _shares(errors(family) for family, _ in families)


def added_seeds(families: Iterable[Family], schedule: SeedSchedule, rng: np.random.Generator) -> dict[str, float]:
    """What it brings to add seeds until each verdict is decided, where every second design has a true gap."""
    return _shares(
        {"gap found": c.better == "baseline", "seeds at the verdict": c.difference.n}
        for family in families
        for c in compare_family(family, "baseline", rng, schedule=schedule)
        if int(c.design.removeprefix("design ")) % 2
    )


def interval_table(scale: float, rng: np.random.Generator) -> Iterator[Share]:
    """Coverage of the interval."""
    draws = _scaled(10000, scale)
    for gap, (name, noise), n in product(GAPS, NOISES.items(), SEEDS):
        value = coverage(noise, n, gap, draws, rng)
        yield Share(f"Coverage of the 95 % interval; gap: {gap}", name, f"{n} seeds", "t interval", value, draws)


def error_table(scale: float, rng: np.random.Generator) -> Iterator[Share]:
    """Family-wise error without a gap and, the hard case, with equal means of unequal shapes."""
    for m, (name, noise), n in product(TASKS, NOISES.items(), SEEDS):
        draws = _scaled(2000 if m < 40 else 1000, scale)
        families = (draw_family(noise, n, m, rng) for _ in range(draws))
        for test, value in false_better(families, rng).items():
            yield Share(f'No gap: any "better" in {m} comparisons', name, f"{n} seeds", test, value, draws)
    steady = Noise(lambda rng, n: rng.normal(0.92, 0.01, n), 0.92, 0.01)
    for n in SEEDS:
        draws = _scaled(2000, scale)
        families = (draw_family(NOISES[CEILING], n, 9, rng, baseline=steady) for _ in range(draws))
        for test, value in false_better(families, rng).items():
            table = 'Equal means, unequal shapes: any "better" in 9 comparisons'
            yield Share(table, f"{CEILING}; baseline 0.92 ± 0.01", f"{n} seeds", test, value, draws)


def power_table(scale: float, rng: np.random.Generator) -> Iterator[Share]:
    """True gaps that are found, by their size in standard deviations of the difference."""
    draws, noise = _scaled(500, scale), NOISES["normal"]
    for gap, n in product((1.0, 1.5, 2.0, 3.0), (6, 8, 10, 12)):
        families = (draw_family(noise, n, 16, rng, gaps=[gap * noise.sd * 2**0.5]) for _ in range(draws))
        for test, value in gaps_found(families, rng).items():
            yield Share("Gaps found in 16 comparisons", f"normal, {gap:g} sd", f"{n} seeds", test, value, draws * 16)


def equivalence_table(scale: float, rng: np.random.Generator) -> Iterator[Share]:
    """ "No difference" where the gap is just the margin, and where there is none."""
    for m, (name, noise), n in product((1, 9), NOISES.items(), (6, 10, 16)):
        draws, gap = _scaled(1000 if n < 16 else 300, scale), 2 * noise.sd
        families = (draw_family(noise, n, m, rng, gaps=[gap], margin=gap) for _ in range(draws))
        table = f'A gap of just the margin, 2 sd: any "no difference" in {m} comparison{"s" * (m > 1)}'
        yield Share(table, name, f"{n} seeds", "said", called_equal(families, rng), draws)
    draws = _scaled(300, scale)
    for (name, noise), n, multiple in product(NOISES.items(), (6, 10, 16, 24), (1, 2, 3)):
        families = (draw_family(noise, n, 1, rng, margin=multiple * noise.sd) for _ in range(draws))
        value = called_equal(families, rng)
        yield Share(
            'No gap: "no difference", one comparison', name, f"{n} seeds", f"margin {multiple} sd", value, draws
        )


def statements_table(scale: float, rng: np.random.Generator) -> Iterator[Share]:
    """Family-wise error of each kind of statement and of all, with gaps of nothing and of about the margin."""
    draws = _scaled(1000, scale)
    for m, (name, noise), n in product((9, 40), NOISES.items(), (6, 8, 10)):
        for quantity, value in false_statements(mixed_families(noise, n, m, draws, rng), rng).items():
            table = f"Gaps of 0, just under and just over the margin: errors in {m} comparisons"
            yield Share(table, name, f"{n} seeds", quantity, value, draws)


def schedule_table(scale: float, rng: np.random.Generator) -> Iterator[Share]:
    """Seeds added until decided: error without a gap, and with gaps of two sd what is found with how many seeds."""
    errors, draws = _scaled(500, scale), _scaled(200, scale)
    table = "Seeds added until decided, 9 comparisons"
    for schedule, (name, noise) in product((SeedSchedule.within(16), SeedSchedule()), NOISES.items()):
        last, looks = schedule.looks[-1], "looks at " + ", ".join(map(str, schedule.looks))
        null = (draw_family(noise, last, 9, rng) for _ in range(errors))
        value = false_better(null, rng, schedule)["verdict"]
        yield Share(table, name, looks, 'no gap: any "better"', value, errors)
        gapped = (draw_family(noise, last, 9, rng, gaps=[0, 2 * noise.sd * 2**0.5]) for _ in range(draws))
        for quantity, value in added_seeds(gapped, schedule, rng).items():
            yield Share(table, name, looks, quantity, value, draws)


def write(shares: Sequence[Share], out: Path) -> None:
    """Write the csv and the tables of the same numbers."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "simulations.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Share._fields)
        rows.writerows(share._replace(value=round(share.value, 4)) for share in shares)
    (out / "simulations.md").write_text(markdown(shares), encoding="utf-8")


def markdown(shares: Sequence[Share]) -> str:
    """One table for each `table`: noises and cases down, quantities across."""
    lines = [
        "# Simulated coverage and error",
        "",
        "Written by `python studies/simulations.py`, which says what is drawn.",
        "",
    ]
    for title, group in groupby(shares, key=lambda share: share.table):
        members = list(group)
        cells = {(s.noise, s.case, s.quantity): s.value for s in members}
        quantities = list(dict.fromkeys(s.quantity for s in members))
        draws = sorted({s.draws for s in members})
        error = (0.05 * 0.95 / draws[0]) ** 0.5
        ranges = "; ".join(f"{q}: {_range(members, q)}" for q in quantities)
        lines += [
            f"## {title}",
            "",
            f"From {' or '.join(f'{d:,}' for d in draws)} draws each, so a share near 0.05 is known to ± {error:.3f}.",
        ]
        lines += [f"Ranges: {ranges}.", ""]
        lines += ["| noise | | " + " | ".join(quantities) + " |", "|---|---|" + "---:|" * len(quantities)]
        for noise, case in dict.fromkeys((s.noise, s.case) for s in members):
            values = " | ".join(f"{cells[noise, case, quantity]:.3f}" for quantity in quantities)
            lines.append(f"| {noise} | {case} | {values} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run all tables and write them."""
    parser = argparse.ArgumentParser(description="Simulate the coverage and the errors of querykey's statistics.")
    parser.add_argument("--scale", type=float, default=1.0, help="times the recorded number of draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    shares: list[Share] = []
    tables = (interval_table, error_table, power_table, equivalence_table, statements_table, schedule_table)
    for table, rng in zip(tables, np.random.default_rng(options.seed).spawn(len(tables)), strict=True):
        for share in table(options.scale, rng):
            print(*share, sep="\t", flush=True)
            shares.append(share)
    write(shares, options.out)


def _scaled(draws: int, scale: float) -> int:
    return max(1, round(draws * scale))


def _range(shares: Sequence[Share], quantity: str) -> str:
    values = [share.value for share in shares if share.quantity == quantity]
    return f"{min(values):.3f} to {max(values):.3f}"


def _shares(measured: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each quantity."""
    rows = list(measured)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


if __name__ == "__main__":
    main()
