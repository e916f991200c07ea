"""Every hook as it is installed, in a process without stepwatch: what it leaves is what stepwatch reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stepwatch import __version__, hook, visit
from stepwatch.core.policy import ServiceConfig, WatchEntry
from tests.hooks import contract

DRIVER = Path(__file__).with_name("alone.py")


@pytest.mark.parametrize("name", sorted(hook.HOSTS))
def test_an_installed_hook_keeps_the_contract(tmp_path: Path, name: str) -> None:
    """A batch of two, an interrupt and a failure: four runs, each read without a complaint, valid by the schema, and found by stepwatch."""
    for file, content in hook.contents(name).items():
        (tmp_path / "hook" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hook" / file).write_text(content, encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    script = tmp_path / "hook" / list(hook.HOSTS[name].files)[-1]
    done = subprocess.run([sys.executable, "-P", str(DRIVER), name, str(script), str(home)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    (top,) = home.iterdir()
    runs = contract.runs(top, ended=True)
    assert sorted((str(run.sidecar.state), run.steps) for run in runs) == [
        ("complete", [1, 2, 3, 4]),
        ("complete", [1, 2, 3, 4]),
        ("failed", [1, 2]),
        ("interrupted", [1, 2]),
    ]
    for run in runs:
        assert run.raw["host"]["app"] == name
        assert run.raw["hook"]["version"] == __version__
        assert run.sidecar.frame_count == len(run.frames)
    batch = [run for run in runs if run.sidecar.state == "complete"]
    assert {run.raw["batch"]["index"] for run in batch} == {0, 1}
    assert len({run.sidecar.group_id for run in batch}) == 1
    service = ServiceConfig(watch=(WatchEntry(path=str(top)),))
    found = visit.runs_below(top, service=service)
    assert sorted(run.name for run, _ in found) == sorted(run.sidecar.run_id for run in runs)
