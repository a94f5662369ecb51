"""The synthetic tasks of Kayyam, Madan Gopal and Lewis (2026, arXiv 2606.04032), on a part of their grid.

    querykey compare studies/three_projections.py

Theirs: dim 32, 64 and 256; 2 and 4 layers; 2 and 4 heads; lengths 16, 64 and 128; 3 seeds; 10,000 examples for 2
epochs, Adam at 1e-3. Here: dim 32 at lengths 16 and 64 and dim 64 at length 16, 2 layers, 2 heads, 6 seeds, 320 steps
of 64 examples drawn anew, AdamW at 1e-3 with a warm-up. Two arms are added: the task `shift`, which is directed where
theirs are not, and the self-mask. With learned positions their `swap` is `reverse` with the positions renamed, so one
of them stands for both. The whole grid is in three_projections_full.py.
"""

from querykey.study.plan import Plan, from_mapping

DESIGNS = ["q,k,v", "q=k,v", "q,k=v", "q=k=v", "q=k,v+selfmask"]
TASKS = ("reverse", "sort", "shift", "copy", "sub")


def grid(dims, depths, heads, lengths, tasks=TASKS):
    """A table of tasks: each at each size, like reverse-32-16, or reverse-32-2-4-16 where depth or heads vary."""
    several = len(depths) * len(heads) > 1
    return {
        "-".join(map(str, (task, dim, *((depth, head) if several else ()), length))): {
            "task": task,
            "length": length,
            "dim": dim,
            "layers": depth,
            "heads": head,
            "positions": "learned",
        }
        for task in tasks
        for dim in dims
        for depth in depths
        for head in heads
        for length in lengths
    }


def plan() -> Plan:
    """Sized for two cores: the tasks that tell designs apart at three sizes, the other two at the smaller dim."""
    tasks = grid((32,), (2,), (2,), (16, 64)) | grid((64,), (2,), (2,), (16,), TASKS[:3])
    for table in tasks.values():
        if table["task"] != "shift":
            del table["positions"]  # theirs have no other
    return from_mapping(
        {
            "question": "Do Transformers need three projections, on reverse, sort, shift, copy and sub?",
            "designs": DESIGNS,
            "seeds": 6,
            "model": {"steps": 320, "batch": 64, "lr": 1e-3},
            "tasks": tasks,
        },
        "three_projections",
    )
