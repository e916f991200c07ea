"""Records runs and is killed in the middle of each: ``killing.py ROOT SEED COUNT`` forks COUNT children, and each dies at a byte of its own.

The files of the writer are replaced by ones that count bytes and, at the chosen one, have written all before it and nothing after it; its renames,
folders and removals count as some. Then it is killed as by the kernel, with nothing unwound. Prints how many children died of that.
"""

from __future__ import annotations

import builtins
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from stepwatch.hooks import writer

CALL = 200
"""Bytes that a call counts as, so that some die between two of them."""
LONGEST = 21_000
"""Bytes, a little more than a whole run takes."""

left = 0


def spend(cost: int) -> int:
    """Take from the bytes that are left to live; return how many of them there were."""
    global left  # noqa: PLW0603  # the life of this process
    granted = min(cost, left)
    left -= cost
    return granted


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """A file for writing whose process dies at a byte."""

    def __init__(self, path: str, mode: str) -> None:
        self._file = builtins.open(path, mode, buffering=0)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        granted = spend(len(data))
        self._file.write(data[:granted])
        if left < 0:
            die()

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()


def mortal(name: str) -> Any:
    real = getattr(os, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if spend(CALL) < CALL:
            die()
        return real(*arguments, **options)

    return call


def record(root: Path, lifetime: int) -> None:
    global left  # noqa: PLW0603
    left = lifetime
    writer.open = lambda path, mode="r", **options: (  # type: ignore[attr-defined]
        Mortal(path, mode) if "w" in mode else builtins.open(path, mode, **options)  # noqa: SIM115
    )
    for name in ("replace", "mkdir", "makedirs", "unlink", "rmdir", "fsync"):
        setattr(os, name, mortal(name))
    writer.HEARTBEAT = 0.0
    recording = writer.Recording(
        root, host={"app": "other"}, hook="killing", items=[{"generation": {"seed": 1}}, {}], planned=5, workflow={"prompt": {"1": {}}}
    )
    for step in range(5):
        if recording.step():
            for item in range(2):
                recording.put(item, Image.new("RGB", (16, 16), (step * 50, item * 200, 0)))
    recording.end("complete")


def main(root: Path, seed: int, count: int) -> None:
    chance = random.Random(seed)
    killed = 0
    for child in range(count):
        lifetime = chance.randrange(LONGEST)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            record(root / f"{child:04d}", lifetime)
            os._exit(0)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    sys.stdout.write(f"{killed}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
