"""Timing every design, its floor and its peers at every shape and pass: `bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from querykey.attention.layer import SelfAttention
from querykey.bench import memory, passes, theory
from querykey.bench import peers as others
from querykey.bench.config import Case, Setting, Shape, machine
from querykey.bench.passes import LayerPass
from querykey.bench.peers import Peer
from querykey.bench.timing import Run, Spread, interleave, ratio, spread
from querykey.design import Design, DesignError
from querykey.layout import Layout

_PLAIN = Design()


class Progress(NamedTuple):
    """How far a benchmark is: rounds done of all, and what is timed now."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Row:
    """What was found for one layer in one pass at one shape. Times are in seconds.

    Args:
        shape: of the input and the layer.
        what: the pass.
        name: of the layer, as the table shows it.
        design: of the layer; of a peer, that of ours which computes the same.
        peer: whether it is another library's.
        seconds: of one pass.
        floor_seconds: of the floor of its design.
        to_floor: ratio of times, round by round.
        to_baseline: ratio of times to the layer named `compared`, round by round.
        compared: the first design; of a peer, the layer of ours that computes the same.
        theory: the ratio to the first design that FLOPs (decoding: bytes) give; see `theory`. None for peers.
        backend: the kernel that ran; "" for peers.
        peak_bytes: the most that the pass held beside weights and input.
        flops: of the pass.
        step_bytes: read by a step of decoding; None of other passes.
        cache_bytes: kept per token; None of other passes, and of peers.
    """

    shape: Shape
    what: str
    name: str
    design: str
    peer: bool
    seconds: Spread
    floor_seconds: Spread
    to_floor: Spread
    to_baseline: Spread
    compared: str
    theory: float | None
    backend: str
    peak_bytes: int
    flops: int
    step_bytes: int | None
    cache_bytes: int | None

    @property
    def rate(self) -> float:
        """FLOPs per second; of decoding, bytes per second."""
        return (self.flops if self.step_bytes is None else self.step_bytes) / self.seconds.median


@dataclass(frozen=True)
class Bench:
    """A finished benchmark: what was asked, where it ran, what was found, and what was left out."""

    setting: Setting
    machine: str
    torch: str
    threads: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def bench(setting: Setting, watch: Callable[[Progress], object] = lambda step: None) -> Bench:
    """Time all that a setting asks for.

    Designs, floors and peers of one shape and pass run in one interleaving, so that all their ratios are within rounds.

    Raises:
        ValueError: if the first design cannot be at a shape, a shape does not fit in memory, or the device cannot
            compute in the dtype; before anything large is allocated.
    """
    with _placed(setting):
        notes = [note for name in setting.against if (note := others.missing(name))]
        words = [name for name in setting.against if not others.missing(name)]
        cases = [Case.of(setting, shape, what) for shape in setting.shapes for what in setting.passes]
        layouts = {shape: _resolved(setting, shape, notes) for shape in setting.shapes}
        rivals = {shape: _rivals(setting, words, shape, notes) for shape in setting.shapes}
        for case in cases:
            layers = layouts[case.shape]  # and for each peer its own and the one of ours that it is compared with
            memory.refuse_too_large([*layers, *[layers[0]] * 2 * len(rivals[case.shape])], case)
            _try_out(case)
        rows: list[Row] = []
        for number, case in enumerate(cases):
            told = partial(_tell, watch, f"{case.what} at {case.shape}", number * setting.rounds, len(cases), setting)
            told(0)
            try:
                rows += _rows(setting, case, layouts[case.shape], rivals[case.shape], told)
            except torch.OutOfMemoryError as error:  # others use the accelerator too
                reason = str(error).partition(". ")[0]
                raise ValueError(f"shape {case.shape}: {case.what}: {reason}; take a smaller shape") from None
        return Bench(
            setting,
            machine(setting.device),
            torch.__version__,
            torch.get_num_threads(),
            (*rows,),
            (*dict.fromkeys(notes),),
        )


class _Ours(NamedTuple):
    """A layer of ours that is timed."""

    layout: Layout
    name: str


class _Timed(NamedTuple):
    """All that was found of one shape and pass; `times` has layers, floors and peers by name."""

    case: Case
    first: Layout
    made: dict[str, LayerPass]
    peaks: dict[str, int]
    times: dict[str, list[float]]


def _tell(watch: Callable[[Progress], object], what: str, begun: int, cases: int, setting: Setting, done: int) -> None:
    watch(Progress(begun + done, cases * setting.rounds, what))


def _rows(
    setting: Setting, case: Case, layouts: list[Layout], names: list[str], told: Callable[[int], object]
) -> Iterator[Row]:
    """All that is timed of one shape and pass, in one interleaving."""
    found = [others.PEERS[name](case.shape, case.causal) for name in names]
    rivals = [peer for peer in found if not case.decoding or peer.decoding is not None]
    ours = _ours(layouts, rivals, setting.rotary)
    x = case.input()
    made = {name: passes.of_layer(_layer(layout, case), x, case) for layout, name in ours}
    runs: dict[str, Run] = {}
    for layout, name in ours:  # a layer and its floor one after the other, which is kind to their ratio
        runs[name] = made[name].run
        runs.setdefault(_floor_name(layout), passes.of_floor(layout, case))
    runs |= {peer.name: others.of_peer(peer, x, case) for peer in rivals}
    peaks = {name: memory.peak_bytes(run, case.device) for name, run in runs.items()}
    timed = _Timed(case, layouts[0], made, peaks, interleave(runs, setting.rounds, watch=told))
    for layout, name in ours:
        yield _row(timed, name, layout, ours[0].name, peer=False)
    for peer in rivals:
        same = _matching(peer, layouts[0])
        yield _row(timed, peer.name, same, next(name for layout, name in ours if layout == same), peer=True)


def _row(timed: _Timed, name: str, layout: Layout, compared: str, *, peer: bool) -> Row:
    case, _, made, peaks, times = timed
    return Row(
        shape=case.shape,
        what=case.what,
        name=name,
        design=str(layout.design),
        peer=peer,
        seconds=spread(times[name]),
        floor_seconds=spread(times[_floor_name(layout)]),
        to_floor=ratio(times, name, _floor_name(layout)),
        to_baseline=ratio(times, name, compared),
        compared=compared,
        theory=None if peer else theory.work(layout, case) / theory.work(timed.first, case),
        backend="" if peer else made[name].backend,
        peak_bytes=peaks[name],
        flops=theory.flops(layout, case),
        step_bytes=theory.step_bytes(layout, case) if case.decoding else None,
        cache_bytes=None if peer else made[name].cache_bytes,
    )


def _ours(layouts: list[Layout], rivals: list[Peer], rotary: bool) -> list[_Ours]:
    """The designs asked for, and what peers are compared with, where it is not among these."""
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
    """Of q,k,v, with what it takes to compute the same as a peer."""
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


def _floor_name(layout: Layout) -> str:
    return f"floor of {layout.design}"


def _rivals(setting: Setting, words: list[str], shape: Shape, notes: list[str]) -> list[str]:
    """The names of the peers that can be at this shape, and a note on each that cannot, or cannot decode.

    They are made on the meta device, where nothing is allocated.
    """
    found = []
    for name in (name for word in words for name in others.NAMES[word]):
        try:
            with torch.device("meta"):
                peer = others.PEERS[name](shape, setting.causal)
        except Exception as error:
            notes.append(f"{name} is left out at shape {shape}: {' '.join(str(error).split())[:200]}")
            continue
        found.append(name)
        if peer.decoding is None and "decoding" in setting.passes:
            notes.append(f"{name} has no cache, and is left out of decoding")
    return found


def _resolved(setting: Setting, shape: Shape, notes: list[str]) -> list[Layout]:
    """The designs that can be at this shape, and a note on each that cannot; the first must."""
    found = []
    for number, design in enumerate(setting.designs):
        try:
            found.append(Layout.of(design, shape.dim, shape.heads, rotary=setting.rotary))
        except DesignError as error:
            if number == 0:
                raise ValueError(f"shape {shape}: the first design is the baseline and must be: {error}") from None
            notes.append(f"left out at shape {shape}: {error}")
    return found


def _try_out(case: Case) -> None:
    """A pass of a tiny layer, so that a dtype which the device cannot compute in is refused at the start."""
    small = case._replace(shape=Shape(1, 2, 16, 2), cached=2)
    try:
        passes.of_layer(_layer(Layout.of(_PLAIN, 16, 2), small), small.input(), small).run()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        dtype = str(case.dtype).removeprefix("torch.")
        reason = str(error).splitlines()[0]
        raise ValueError(f"{case.device} cannot do {case.what} in {dtype}: {reason}; try float32") from None


@contextmanager
def _placed(setting: Setting) -> Iterator[None]:
    """Within, torch uses the threads and the accelerator that are asked for; the clock waits for the current one."""
    before, device = torch.get_num_threads(), torch.device(setting.device)
    torch.set_num_threads(setting.threads or before)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)
