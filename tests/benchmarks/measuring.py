"""One process and its children, from start to end: seconds, processor time, memory; and the machine that it ran on."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

SAMPLING = 0.05
"""Seconds between two looks at the memory of a tree of processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run of a command took, its children included."""

    wall: float
    cpu: float
    """Seconds of processor time, user and system."""
    peak: int
    """Bytes that all of its processes together had in memory, at most; of what several share, each counts its part. 0 where nobody looked."""


class CommandFailedError(Exception):
    """A command that was to be measured did not do its work."""


def measure(argv: Sequence[str], *, environment: Mapping[str, str] | None = None, memory: bool = False) -> Measured:
    """Run a command to its end, silently; raises CommandFailedError with the end of what it said.

    To look at its *memory* takes a sixth of a processor where it has several processes, so that its times are longer for it.
    """
    began = time.perf_counter()
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    with _memory_of(process.pid) if memory else contextlib.nullcontext([0]) as most:
        said = process.stderr.read()
        # Not Popen.wait: only wait4 tells what the process and its children have used.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = said.decode(errors="replace").strip()[-500:]
        raise CommandFailedError(f"{Path(argv[0]).name} ended with {process.returncode}: {tail}")
    peak = most[0] or usage.ru_maxrss * 1024 if memory else 0
    return Measured(wall=wall, cpu=usage.ru_utime + usage.ru_stime, peak=peak)


@contextlib.contextmanager
def _memory_of(pid: int) -> Iterator[list[int]]:
    """While it is open, watch how much memory a tree of processes has; the list holds the most."""
    most, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLING):
            most[0] = max(most[0], sum(map(proportional, tree(pid))))

    watching = threading.Thread(target=sample, daemon=True)
    watching.start()
    try:
        yield most
    finally:
        ended.set()
        watching.join()


def tree(pid: int) -> list[int]:
    """A process and all below it, where the kernel tells (Linux); else nothing."""
    found, waiting = [], [pid]
    while waiting:
        process = waiting.pop()
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{process}/task"):
                waiting += map(int, Path(f"/proc/{process}/task/{task}/children").read_text(encoding="ascii").split())
            found.append(process)
    return found


def proportional(pid: int) -> int:
    """Bytes that a process has in memory, a page that several have in equal parts (Linux's PSS); 0 when it is gone."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def resident(pid: int) -> int:
    """Bytes that a process has in memory; 0 when it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def used(pid: int) -> float:
    """Seconds of processor time that a process has used, with those of its children that have ended; 0 when it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The name of the program stands in brackets, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times more they took, round by round: what slows the machine for a while slows both."""
    return statistics.median(one / other for one, other in zip(theirs, ours, strict=True))


def machine() -> dict[str, object]:
    """Where and when this is."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    memory = 0
    with contextlib.suppress(ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
