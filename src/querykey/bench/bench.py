"""Timing every design, its lower bound and its peers at every shape and pass: `bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from querykey import machine
from querykey.attention.layer import SelfAttention
from querykey.bench import memory, passes, work
from querykey.bench import peers as others
from querykey.bench.case import Case
from querykey.bench.config import Config, Shape
from querykey.bench.passes import LayerPass
from querykey.bench.peers import Peer
from querykey.bench.timing import Run, Spread, interleave, ratio, spread
from querykey.design import Design, DesignError
from querykey.layout import Layout

if TYPE_CHECKING:
    from querykey.report.progress import Watch

_PLAIN = Design()


@dataclass(frozen=True)
class Row:
    """The results of one layer in one pass at one shape. Times are in seconds.

    Args:
        shape: of the input and the layer.
        what: the pass.
        name: of the layer, as the table shows it.
        design: of the layer; of a peer, that of the equal querykey layer.
        peer: whether the layer is another library's.
        seconds: of one pass.
        bound_seconds: of the lower bound of its design.
        to_bound: ratio of times to the lower bound, round by round.
        to_baseline: ratio of times to the layer named `compared`, round by round.
        compared: the first design; for a peer, the querykey layer that computes the same.
        predicted: the ratio to the first design of FLOPs, or of bytes in decoding; see `work`. None for peers.
        backend: the kernel that ran; "" for peers.
        peak_bytes: the most bytes that the pass allocated, without weights and input.
        flops: of the pass.
        step_bytes: read by a decoding step; None for other passes.
        cache_bytes: cached per token; None for other passes, and for peers.
    """

    shape: Shape
    what: str
    name: str
    design: str
    peer: bool
    seconds: Spread
    bound_seconds: Spread
    to_bound: Spread
    to_baseline: Spread
    compared: str
    predicted: float | None
    backend: str
    peak_bytes: int
    flops: int
    step_bytes: int | None
    cache_bytes: int | None

    @property
    def rate(self) -> float:
        """FLOPs per second; for decoding, bytes per second."""
        return (self.flops if self.step_bytes is None else self.step_bytes) / self.seconds.median


@dataclass(frozen=True)
class Bench:
    """A finished benchmark: its config, where it ran, its results, and notes on what was left out."""

    config: Config
    machine: str
    torch: str
    threads: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def bench(config: Config, watch: Watch = lambda what, done, total: None) -> Bench:
    """Time all that a config asks for.

    Designs, lower bounds and peers of one shape and pass take turns in the same rounds; all ratios are of one round.

    Raises:
        ValueError: if the first design is impossible at a shape, a shape does not fit in memory, or the device cannot
            compute in the dtype; before anything large is allocated.
    """
    cases = [Case.of(config, shape, what) for shape in config.shapes for what in config.passes]
    with _placed(config):
        notes = [note for name in config.against if (note := others.missing(name))]
        words = [name for name in config.against if not others.missing(name)]
        layouts = {shape: _layouts(config, shape, notes) for shape in config.shapes}
        rivals = {shape: _rivals(config, words, shape, notes) for shape in config.shapes}
        for case in cases:
            layers = layouts[case.shape]  # and for each peer, its own and the querykey layer that it is compared with
            memory.refuse_too_large([*layers, *[layers[0]] * 2 * len(rivals[case.shape])], case)
            _try_out(case)
        rows: list[Row] = []
        for number, case in enumerate(cases):
            try:
                told = _counted(watch, config, number, case)
                rows += _rows(config, case, layouts[case.shape], rivals[case.shape], told)
            except torch.OutOfMemoryError as error:  # other programs use the accelerator too
                reason = str(error).partition(". ")[0]
                raise ValueError(f"shape {case.shape}: {case.what}: {reason}; take a smaller shape") from None
        name = machine.name(config.device)
        return Bench(config, name, torch.__version__, torch.get_num_threads(), (*rows,), (*dict.fromkeys(notes),))


class _Ours(NamedTuple):
    """A querykey layer that is timed."""

    layout: Layout
    name: str


class _Timed(NamedTuple):
    """The results of one shape and pass; `times` has layers, lower bounds and peers by name."""

    case: Case
    first: Layout
    made: dict[str, LayerPass]
    peaks: dict[str, int]
    times: dict[str, list[float]]


def _counted(watch: Watch, config: Config, number: int, case: Case) -> Callable[[int], object]:
    """Tells `watch` the rounds of a case among those of all cases."""
    total = len(config.shapes) * len(config.passes) * config.rounds
    return lambda done: watch(f"{case.what} at {case.shape}", number * config.rounds + done, total)


def _rows(
    config: Config, case: Case, layouts: list[Layout], names: list[str], told: Callable[[int], object]
) -> Iterator[Row]:
    """All rows of one shape and pass, timed together."""
    told(0)
    found = [others.PEERS[name](case.shape, case.causal) for name in names]
    rivals = [peer for peer in found if peer.decoding or not case.decoding]
    ours = _ours(layouts, rivals, config.rotary)
    x = case.input()
    made = {name: passes.of_layer(_layer(layout, case), x, case) for layout, name in ours}
    runs: dict[str, Run] = {}
    for layout, name in ours:  # a layer and its lower bound run one after the other, so that noise hits both
        runs[name] = made[name].run
        runs.setdefault(_bound_name(layout), passes.of_lower_bound(layout, case))
    compiled = "hf-compiled" in config.against
    named = {name: (peer, run) for peer in rivals for name, run in others.runs_of(peer, x, case, compiled).items()}
    runs |= {name: run for name, (_, run) in named.items()}
    peaks = {name: memory.peak_bytes(run, case.device) for name, run in runs.items()}
    timed = _Timed(case, layouts[0], made, peaks, interleave(runs, config.rounds, watch=told))
    for layout, name in ours:
        yield _row(timed, name, layout, ours[0].name, peer=False)
    for name, (peer, _) in named.items():
        same = _matching(peer, layouts[0])
        yield _row(timed, name, same, next(name for layout, name in ours if layout == same), peer=True)


def _row(timed: _Timed, name: str, layout: Layout, compared: str, *, peer: bool) -> Row:
    case, first, made, peaks, times = timed
    return Row(
        shape=case.shape,
        what=case.what,
        name=name,
        design=str(layout.design),
        peer=peer,
        seconds=spread(times[name]),
        bound_seconds=spread(times[_bound_name(layout)]),
        to_bound=ratio(times, name, _bound_name(layout)),
        to_baseline=ratio(times, name, compared),
        compared=compared,
        predicted=None if peer else work.work(layout, case) / work.work(first, case),
        backend="" if peer else made[name].backend,
        peak_bytes=peaks[name],
        flops=work.flops(layout, case),
        step_bytes=work.step_bytes(layout, case) if case.decoding else None,
        cache_bytes=None if peer else made[name].cache_bytes,
    )


def _ours(layouts: list[Layout], rivals: list[Peer], rotary: bool) -> list[_Ours]:
    """The designs asked for, and those that peers are compared with, where they are not among these."""
    ours = [_Ours(layout, str(layout.design)) for layout in layouts]
    for peer in rivals:
        layout = _matching(peer, layouts[0])
        if all(layout != one.layout for one in ours):
            words = [
                "biases" if peer.bias else "",
                "rotary" if peer.rotary > rotary else "no rotary" if peer.rotary < rotary else "",
            ]
            name = f"{layout.design} " + ", ".join(filter(None, words))
            ours.append(_Ours(layout, name.strip()))
    return ours


def _matching(peer: Peer, like: Layout) -> Layout:
    """The layout of q,k,v that computes the same as a peer."""
    return Layout.of(_PLAIN, like.dim, like.heads, bias=peer.bias, rotary=peer.rotary)


def _layer(layout: Layout, case: Case) -> SelfAttention:
    layer = SelfAttention(
        layout.dim,
        layout.heads,
        layout.design,
        causal=case.causal,
        window=case.window,
        bias=layout.bias,
        rotary=layout.rotary,
    )
    return layer.to(case.device, case.dtype)


def _bound_name(layout: Layout) -> str:
    return f"lower bound of {layout.design}"


def _rivals(config: Config, words: Sequence[str], shape: Shape, notes: list[str]) -> list[str]:
    """The names of the peers that are possible at this shape, and a note on each that is not, or cannot decode.

    They are made on the meta device, where nothing is allocated.
    """
    found = []
    for name in dict.fromkeys(name for word in words for name in others.NAMES[word]):
        try:
            with torch.device("meta"):
                peer = others.PEERS[name](shape, config.causal)
        except Exception as error:
            notes.append(f"{name} is left out at shape {shape}: {' '.join(str(error).split())[:200]}")
            continue
        found.append(name)
        if not peer.decoding and "decoding" in config.passes:
            notes.append(f"{name} has no cache, and is left out of decoding")
    return found


def _layouts(config: Config, shape: Shape, notes: list[str]) -> list[Layout]:
    """The designs that are possible at this shape, and a note on each that is not; the first must be."""
    found = []
    for number, design in enumerate(config.designs):
        try:
            found.append(Layout.of(design, shape.dim, shape.heads, rotary=config.rotary))
        except DesignError as error:
            if number == 0:
                raise ValueError(
                    f"shape {shape}: the first design is the baseline and must be possible: {error}"
                ) from None
            notes.append(f"left out at shape {shape}: {error}")
    return found


def _try_out(case: Case) -> None:
    """Run a tiny layer, so that a dtype in which the device cannot compute is refused at the start."""
    small = case._replace(shape=Shape(1, 2, 16, 2), cached=2)
    try:
        passes.of_layer(_layer(Layout.of(_PLAIN, 16, 2), small), small.input(), small).run()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        dtype = str(case.dtype).removeprefix("torch.")
        reason = str(error).splitlines()[0]
        raise ValueError(f"{case.device} cannot do {case.what} in {dtype}: {reason}; try float32") from None


@contextmanager
def _placed(config: Config) -> Iterator[None]:
    """Within this block torch uses the threads and the accelerator of the config; the clock waits for the latter."""
    device = torch.device(config.device)
    placed = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with machine.threads(config.threads or torch.get_num_threads()), placed:
        yield
