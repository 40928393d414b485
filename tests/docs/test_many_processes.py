"""The page on several processes, its example and its measurements."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.ranks import measure, table


def test_example_starts_with_torchrun_and_ranks_stay_in_step():
    example = Path(__file__).parents[2] / "examples" / "distributed.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(example), "--epochs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 processes, test accuracy \d\d\.\d\d %", done.stdout)
    assert "the same in all processes: True" in done.stdout


PAGE = (Path(__file__).parents[2] / "docs" / "many_processes.md").read_text()


def shown(name):
    """What stands between two marks of the page."""
    return re.search(f"<!-- {name} -->\n(.*?)<!-- /{name} -->", PAGE, flags=re.DOTALL)[1]


def test_page_shows_what_its_model_says(capsys):
    exec(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[-1], {})
    assert shown("model").split("|---|---|---|---|\n")[1] == capsys.readouterr().out


def test_page_shows_what_was_measured():
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu-ranks.json"
    for found in json.loads(results.read_text())["ranks"]:
        assert table(found["rows"]) in shown("ranks")
    assert f"medians of {json.loads(results.read_text())['settings']['repeats']} repeats" in " ".join(PAGE.split())


def test_measuring_counts_bytes_and_times_every_entrant():
    found = measure("vgg-1x5-0.1", batch=8, ranks=2, repeats=2)
    network, generator = found["parameter_bytes"]
    assert 2 * network + generator < found["bytes"] < 3 * (network + generator)
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found["seconds"].values())
    lines = table(found["rows"]).splitlines()
    assert len(lines) == 2 + 6
    assert lines[3].startswith("| MAXL, 2 ranks, a part each |")
