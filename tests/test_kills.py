"""Kills at random moments, of workers and of the driver, on each engine: nothing lost, nothing twice, nobody left."""

import random
import subprocess
import sys
import threading
import time

import psutil
import pytest

import querykey
from querykey.study.plan import load_plan
from studied import count, finished, killed, lasting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 6
TOML = """
designs = ["q,k,v", "q=k,v"]
seeds = 12
[model]
layers = 1
dim = 12
heads = 2
mlp = 0
steps = 60
batch = 4
evaluations = 2
[tasks.cycle]
length = 6
[tasks.induction]
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.toml"
    path.write_text(TOML)
    return path


@pytest.fixture(scope="module")
def undisturbed(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    querykey.compare(load_plan(plan), out=folder, workers=2)
    return lasting(folder)


def training(engine):
    """The processes that train: the forkserver's children, or Ray's workers at work."""
    children = psutil.Process().children(recursive=True)
    if engine == "ray":
        return [one for one in children if "_train_far" in " ".join(one.cmdline())]
    return [one for one in children if one.status() != psutil.STATUS_ZOMBIE and "forkserver" in " ".join(one.cmdline())]


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_killed_at_random_moments(engine, plan, undisturbed, tmp_path):
    moments, done, killed, over = random.Random(3), [0], [], threading.Event()

    def kill_now_and_then():
        """Each kill after another cell has come, and no more than one cell may be lost: a fourth time is an error."""
        while len(killed) < 3 and not over.is_set():
            before = done[0]
            while done[0] == before and not over.wait(0.01):
                pass
            over.wait(moments.uniform(0, 0.3))
            workers = [one for one in training(engine) if not one.children()]
            if workers and not over.is_set():
                victim = moments.choice(workers)
                victim.kill()
                killed.append(victim.pid)

    def step(progress):
        done[0] = progress.done

    thread = threading.Thread(target=kill_now_and_then)
    thread.start()
    try:
        querykey.compare(load_plan(plan), out=tmp_path, engine=engine, workers=2, watch=step)
    finally:
        over.set()
        thread.join()
    assert len(killed) >= 3  # a study that has ended has no worker to kill
    assert lasting(tmp_path) == undisturbed


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_driver_killed_at_random_moments(engine, plan, undisturbed, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "querykey.cli", "compare", str(plan), "--out", str(out)]
    command += ["--engine", engine, "--workers", "2"]
    assert killed(command, out, KILLS, seed=5) >= 3
    finished(command, out)
    assert lasting(out) == undisturbed


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_workers_end_with_a_driver_that_was_killed_alone(end, plan, tmp_path):
    command = [sys.executable, "-m", "querykey.cli", "compare", str(plan), "--out", str(tmp_path), "--workers", "2"]
    driver = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not count(tmp_path):
        assert driver.poll() is None
        time.sleep(0.01)
    children = driver.children(recursive=True)
    assert len(children) >= 2
    getattr(driver, end)()
    driver.wait()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left
