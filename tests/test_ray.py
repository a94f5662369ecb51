"""The Ray engine: the same records as local processes, also when a worker is killed."""

import psutil
import pytest
import torch
from safetensors.torch import load_file

import querykey
from querykey.study.engines import EngineError
from querykey.study.plan import from_mapping
from querykey.study.ray_engine import run_ray
from studied import lasting

pytest.importorskip("ray", reason="Ray is not installed: pip install 'querykey[ray]'")

TABLE = {
    "designs": ["q,k,v", "q=k,v"],
    "model": {"layers": 1, "dim": 12, "heads": 2, "mlp": 0, "steps": 25, "batch": 4, "evaluations": 2},
    "tasks": {"cycle": {"length": 6}, "induction": {}},
    "seeds": 6,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same_records_and_runs_a_lost_workers_cells_again(tmp_path):
    killed = []

    def kill_one(step):
        if step.done == 5:
            workers = [p for p in psutil.Process().children(recursive=True) if "_train_far" in " ".join(p.cmdline())]
            assert workers, "no worker was training"
            workers[0].kill()
            killed.append(workers[0].pid)

    plan = from_mapping(TABLE, "small")
    querykey.compare(plan, out=tmp_path / "ray", engine="ray", workers=2, watch=kill_one)
    querykey.compare(plan, out=tmp_path / "local", workers=2)
    assert len(killed) == 1
    assert lasting(tmp_path / "ray") == lasting(tmp_path / "local")
    weights = [sorted((tmp_path / engine / "weights").iterdir()) for engine in ("ray", "local")]
    assert [path.name for path in weights[0]] == [path.name for path in weights[1]]
    for far, near in zip(*([*map(load_file, paths)] for paths in weights), strict=True):
        assert all(torch.equal(far[name], near[name]) for name in far.keys() | near.keys())


def test_an_address_where_nobody_listens():
    with pytest.raises(EngineError, match=r"Ray cannot be reached at 127\.0\.0\.1:1: .*ray start --head"):
        list(run_ray([], 1, address="127.0.0.1:1"))
