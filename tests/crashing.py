"""A place to die in: forks ``stepwatch`` again and again, and kills it at the N-th call that changes something on the disk.

`test_crash` runs it as a process of its own, which imports everything once; each request then costs a fork instead of a start of Python. What is
counted are the calls of all threads of the daemon to fsync, rename, link, unlink, rmdir and mkdir, and its statements that change the receipts.

One JSON object a line. Asked: ``arguments`` of the command line, ``environment``, ``log`` (a file to append to) and ``calls`` (a file that gets
a line for each call), ``kill`` (at which call; null: never), ``side`` (``before`` or ``after`` it), ``inline`` (visits run in the main thread)
and ``strace`` (arguments for a strace that watches the main thread; null: none). Answered: ``code``, as that of a `subprocess.Popen`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

_CHANGES = re.compile(r"\s*(BEGIN IMMEDIATE|BEGIN EXCLUSIVE|COMMIT|INSERT|UPDATE|DELETE|CREATE|PRAGMA \w+ = )", re.IGNORECASE)
_YAMA = 0x59616D61
"""PR_SET_PTRACER."""


class Inline(Executor):
    """Does what is submitted at once, in the thread that submits it: the calls of one thread have one order."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except BaseException as error:  # noqa: BLE001  # as the thread of an executor does
            future.set_exception(error)
        return future


class Counter:
    """Counts calls, writes them down, and ends the process at one of them."""

    def __init__(self, calls: str, kill: int | None, side: str) -> None:
        self._file = os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kill = kill
        self._side = side
        self._count = 0
        self._lock = threading.Lock()

    def counted(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                self._count += 1
                mine = self._count == self._kill
                line = " ".join(f"{name}({', '.join(map(shown, arguments))})".split())
                os.write(self._file, f"{line}\n".encode("utf-8", "replace"))
                if mine and self._side == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
            try:
                return function(*arguments, **named)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    def install(self) -> None:
        for name in ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir"):
            setattr(os, name, self.counted(getattr(os, name), name))
        counted, load = self.counted, ctypes.CDLL

        class Library:
            def __init__(self, *arguments: Any, **named: Any) -> None:
                self._library = load(*arguments, **named)
                self.renameat2 = counted(self._library.renameat2, "renameat2")

            def __getattr__(self, name: str) -> Any:
                return getattr(self._library, name)

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                run = super().execute
                if not _CHANGES.match(sql):
                    return run(sql, *arguments)
                return counted(lambda _: run(sql, *arguments), "execute")(sql)  # type: ignore[no-any-return]

        connect = sqlite3.connect
        ctypes.CDLL = Library  # type: ignore[misc,assignment]
        sqlite3.connect = lambda *arguments, **named: connect(*arguments, factory=Connection, **named)  # type: ignore[assignment]


def shown(argument: object) -> str:
    """An argument of a call: a descriptor by the path that it stands for."""
    if isinstance(argument, int):
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{argument}")
    return os.fsdecode(argument) if isinstance(argument, (str, bytes, os.PathLike)) else repr(argument)


def be_traced() -> None:
    """Wait until somebody traces this process, which everybody may."""
    libc = ctypes.CDLL(None)
    libc.prctl(_YAMA, ctypes.c_ulong(-1 & (1 << 64) - 1), 0, 0, 0)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            if "TracerPid:\t0\n" not in status.read():
                return
        time.sleep(0.002)
    os._exit(99)


def begin(request: dict[str, Any]) -> int:
    """Run the command in this process; its exit code."""
    from stepwatch import __main__

    vars(__main__)["leave"] = sys.exit  # This process has more to do.
    for number, path in ((1, request["log"]), (2, request["log"])):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["stepwatch", *request["arguments"]]
    try:
        __main__.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
    return 0


def child(request: dict[str, Any]) -> None:
    if request["inline"]:
        from stepwatch import service

        vars(service)["ThreadPoolExecutor"] = Inline
    if request["strace"] is not None:
        be_traced()
    else:
        Counter(request["calls"], request["kill"], request["side"]).install()
    # As a process of its own would end; this one is a copy of somebody who has more to do.
    os._exit(begin(request))


def serve() -> None:
    """Carry out the first request here, so that whatever is imported or asked of ffmpeg once is known, and each other one in a copy."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", closefd=True)
    requests = map(json.loads, sys.stdin)
    code = begin(next(requests))
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print(json.dumps({"code": code, "threads": threads}), file=answers, flush=True)
    for request in requests:
        process = os.fork()
        if process == 0:
            try:
                child(request)
            finally:
                os._exit(98)
        watcher = None
        if request["strace"] is not None:
            watcher = subprocess.Popen(["strace", *request["strace"], "-p", str(process)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status = os.waitpid(process, 0)
        if watcher is not None:
            watcher.wait()
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
