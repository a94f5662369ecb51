"""The examples run, at a size that takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_two_designs_train_under_accelerate_on_two_processes():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += [str(EXAMPLES / "train_shared.py"), "--steps", "2", "--batch", "2", "--designs", "q,k,v", "q=k=v"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("q")}
    parameters = [int(rows[design][0].replace(",", "")) for design in ("q,k,v", "q=k=v")]
    assert parameters[0] - parameters[1] == 4 * 2 * 192 * 192  # two projections less in each of four layers
    assert all(0 < float(rows[design][1]) < 9 for design in rows)
