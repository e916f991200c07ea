"""What it costs to start: ``python -c pass`` and the commands that people type and complete most, one after the other."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import measure, ratio
from tests.benchmarks.program import Program, executable

EMPTY = "python -c pass"
GOAL = 4
"""Times an empty Python that ``stepwatch --help`` may take."""
ROUNDS = 7
"""For each round that is asked for: these are over in an instant."""


def run(*, scratch: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Measure what ends before it has looked at anything."""
    program = Program.at(scratch / "home", "auto")
    commands = {EMPTY: [sys.executable, "-c", "pass"]}
    commands |= {f"stepwatch {arguments}": [executable(), *arguments.split()] for arguments in ("--help", "--version", "render --help")}
    commands["stepwatch config validate"] = program.command("config", "validate")
    taken: dict[str, list[float]] = {name: [] for name in commands}
    # The first start of each reads its files from the disk.
    for number in range(1 + rounds * ROUNDS):
        for name, command in commands.items():
            wall = measure(command, environment=program.environment).wall
            if number:
                taken[name].append(wall)
    rows = [{"name": name, "wall": statistics.median(walls), "times": ratio(walls, taken[EMPTY])} for name, walls in taken.items()]
    got = rows[1]["times"]
    assert isinstance(got, float)
    goal = f"stepwatch --help takes {got:.1f}x an empty Python, goal at most {GOAL}x: {'met' if got <= GOAL else 'missed'}"
    yield {"case": "startup", "what": "start-up", "rounds": rounds * ROUNDS, "rows": rows, "missing": {}, "goal": [goal]}
