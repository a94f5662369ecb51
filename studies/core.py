"""One matrix and a small core against two matrices, on text: the primary question, declared before it ran.

    querykey compare studies/core.py

Two sizes. At the larger one four designs, of which `q,k,v+qk_dim=20` has the parameters of the core there as
`q,k,v+qk_dim=10` has them at the smaller one. The margin, 0.03 bits per byte, is one per cent of the smaller loss.
The rest of the study is in core_variants.toml, core_break.toml and core_grouped.toml.
"""

from querykey.study.plan import Plan, from_mapping

SMALL = {"layers": 2, "dim": 64, "heads": 4, "steps": 200, "batch": 16}
LARGE = {"layers": 4, "dim": 128, "heads": 4, "steps": 400, "batch": 16}
CORES = ["q=k,v+core=full", "q=k,v+core=full+selfmask"]


def plan() -> Plan:
    """Ten pairs of seeds, and eight comparisons in one family."""
    small, large = "q,k,v+qk_dim=10", "q,k,v+qk_dim=20"
    return from_mapping(
        {
            "question": "Does one matrix with a k × k core do what two matrices do?",
            "designs": ["q,k,v", *CORES, "q=k,v+selfmask", small, large],
            "seeds": 10,
            "tasks": {
                "text": {**SMALL, "margin": 0.03, "designs": [*CORES, "q=k,v+selfmask", small]},
                "text-large": {
                    "task": "text",
                    **LARGE,
                    "margin": 0.03,
                    "designs": ["q=k,v+core=full", "q=k,v+selfmask", large],
                },
            },
        },
        "core",
    )
