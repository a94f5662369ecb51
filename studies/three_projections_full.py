"""The whole grid of three_projections.py, 36 sizes of five tasks: for a GPU, or for Ray.

querykey compare studies/three_projections_full.py --device cuda
querykey compare studies/three_projections_full.py --engine ray
"""

from pathlib import Path
from runpy import run_path

from querykey.study.plan import Plan, from_mapping

PART = run_path(str(Path(__file__).with_name("three_projections.py")))


def plan() -> Plan:
    """5,400 cells."""
    tasks = PART["grid"]((32, 64, 256), (2, 4), (2, 4), (16, 64, 128))
    for table in tasks.values():
        if table["task"] != "shift":
            del table["positions"]
    return from_mapping(
        {
            "question": "Do Transformers need three projections, on reverse, sort, shift, copy and sub?",
            "designs": PART["DESIGNS"],
            "seeds": 6,
            "model": {"steps": 320, "batch": 64, "lr": 1e-3},
            "tasks": tasks,
        },
        "three_projections_full",
    )
