"""A Python that has imported everything and waits: each `stepwatch` that is asked of it is a fork, not a start of Python.

To import stepwatch and what it needs takes longer than most of what the tests have it do, and they start it hundreds of times. A copy is a process
of its own as any other: with the command line, environment, folder, umask and streams that it is given, and it ends as Python ends. What differs is
its parent, and the arguments that the kernel shows. `start` gives it only where nothing else would differ; each test may start a Python itself, and
those that speak of its start do.

Each request is a connection of its own. Asked: one line of JSON with three descriptors beside it. Answered: the number of the process, and in the
end its status, as `os.waitpid` gives it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
PRELOADED = ("cli.common", "cli.daemon", "cli.hooks", "doctor", "flow", "inspection", "live", "motion", "service", "simulate", "tables", "witness")
PICTURES = ("BmpImagePlugin", "JpegImagePlugin", "PngImagePlugin", "PpmImagePlugin", "WebPImagePlugin")
INTERPRETERS = ("PYTHON", "COVERAGE", "LC_", "LANG", "LD_", "MALLOC_")
"""Beginnings of the variables that count when Python starts: a copy cannot have others than the original."""


# -- the one who asks


class Copy:
    """A process that somebody else has started for us; what `subprocess.Popen` is called for here, it does in the same way."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._text = b""
        self.returncode: int | None = None
        while b"\n" not in self._text:
            self._text += self._connection.recv(64)
        number, _, self._text = self._text.partition(b"\n")
        self.pid = int(number)

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self._look(0.05 if end is None else min(0.05, max(0.0, end - time.monotonic())))) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired("stepwatch", timeout or 0.0)
        return code

    def _look(self, seconds: float) -> int | None:
        """Wait so long for its end to be told."""
        with self._lock:
            if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
                self._text += self._connection.recv(64)
                if self._text.endswith(b"\n"):
                    self.returncode = os.waitstatus_to_exitcode(int(self._text))
                    self._connection.close()
            return self.returncode

    def poll(self) -> int | None:
        return self._look(0.0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _address(mine: int) -> str:
    """Where the Python that waits for process *mine* is asked; it is started by the first request, and ends with us."""
    address = f"{tempfile.mkdtemp(prefix='stepwatch-')}/ready"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, __file__, address], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    atexit.register(process.wait)
    atexit.register(process.stdin.close)
    return address


def _for_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(INTERPRETERS) and name not in ("PYTHONPATH", "PYTHONUNBUFFERED")}


def can_copy(environment: Mapping[str, str]) -> bool:
    """Whether a copy with these variables is what a start of Python with them would be."""
    theirs = _for_python(environment)
    measured = any(name.startswith("COVERAGE") for name in theirs)
    return hasattr(os, "pidfd_open") and not measured and environment.get("PYTHONPATH") == str(ROOT) and theirs == _for_python(os.environ)


def start(command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, streams: tuple[int, int, int]) -> Copy:
    """Run ``python -m MODULE ..`` or ``python SCRIPT ..`` (*command* is what would follow ``python``) with these descriptors for its streams."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_address(os.getpid()))
    request = {"command": list(command), "environment": dict(env), "folder": os.fspath(cwd or os.getcwd()), "umask": _umask()}
    data = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(connection, [data], list(streams))
    connection.sendall(data[sent:])
    return Copy(connection)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def run(command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 100) -> tuple[int, bytes, bytes]:
    """Run it to its end with nothing to read; its exit code, and what it and those that it started wrote to its two streams."""
    (out, theirs), (err, theirs_too) = os.pipe(), os.pipe()
    with open(os.devnull, "rb") as nothing:
        process = start(command, env=env, cwd=cwd, streams=(nothing.fileno(), theirs, theirs_too))
    os.close(theirs)
    os.close(theirs_too)
    said = {out: b"", err: b""}
    still, end = [out, err], time.monotonic() + timeout
    while still and time.monotonic() < end:
        for stream in select.select(still, [], [], max(0.0, end - time.monotonic()))[0]:
            data = os.read(stream, 65536)
            said[stream] += data
            if not data:
                still.remove(stream)
    os.close(out)
    os.close(err)
    try:
        return process.wait(max(0.0, end - time.monotonic())), said[out], said[err]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


_begun: set[str] = set()


def stepwatch(*arguments: str, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ``python -m stepwatch`` to its end; in each process that tests, the first of every command is a start of Python."""
    command = ("-m", "stepwatch", *arguments)
    # The command is one of the plain words.
    words = {word for word in arguments if re.fullmatch("[a-z]+", word)}
    if words <= _begun and can_copy(env):
        return subprocess.CompletedProcess(command, *run(command, env=env, cwd=cwd))
    _begun.update(words)
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, check=False)


# -- the one who waits


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, descriptors, _, _ = socket.recv_fds(connection, 65536, 3)
    while not data.endswith(b"\n"):
        more = connection.recv(65536)
        if not more:
            raise EOFError
        data += more
    return json.loads(data), descriptors


def _be(request: dict[str, Any], descriptors: Sequence[int]) -> list[str]:
    """Become, in a copy, the process that was asked for; what is to follow ``python``."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.umask(request["umask"])
    os.chdir(request["folder"])
    if os.environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(write_through=True)
    command: list[str] = request["command"]
    return command


def serve(address: str, told: IO[bytes]) -> list[str]:
    """Make a copy for each request until nobody is left to ask; returns in the copies only, with what each is to run."""
    for name in (*(f"stepwatch.{name}" for name in PRELOADED), *(f"PIL.{name}" for name in PICTURES)):
        __import__(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    told.write(b"ready\n")
    told.close()
    # What was made so far stays; a copy that went through it in search of garbage would copy every page.
    gc.collect()
    gc.freeze()
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([0, listener.fileno(), *running], [], [])[0]:
            if ready == 0:
                os.unlink(address)
                os.rmdir(os.path.dirname(address))
                os._exit(0)
            if ready == listener.fileno():
                connection = listener.accept()[0]
                request, descriptors = _request(connection)
                process = os.fork()
                if process == 0:
                    return _be(request, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                running[os.pidfd_open(process)] = (process, connection)
                connection.sendall(b"%d\n" % process)
                continue
            process, connection = running.pop(ready)
            os.close(ready)
            status = os.waitpid(process, 0)[1]
            # Who asked may have gone.
            with contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % status)
            connection.close()


def _main() -> None:
    address = sys.argv[1]
    # Nothing of what is asked or answered here may stand in the streams that the copies have.
    told = os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_WRONLY)
    os.dup2(empty, 1)
    os.close(empty)
    command = serve(address, told)
    if command[0] == "-m":
        sys.argv = command[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command)
        sys.path[0] = os.path.dirname(command[0])
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _main()
