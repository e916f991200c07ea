"""The status socket: a Unix socket on which a daemon answers one JSON question with one JSON object, each on a line."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from stepwatch.errors import EnvironmentFault

LONGEST_QUESTION = 4096
"""Bytes."""
LONGEST_ANSWER = 16 << 20
PATIENCE = 5.0
"""Seconds that a side waits for the other."""
MOST_CALLERS = 64
"""Those who have not said all they want; one more, and the one that has kept us waiting for longest has to go."""
WAITING_CALLERS = 128
"""Kept by the kernel until we come to them; further ones have to try again."""
TRY_AGAIN = 0.05
LONGEST_ADDRESS = 100
"""Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What somebody wants to know, or to be done."""

    ask: str
    """``status`` or ``retry``."""
    caller: socket.socket

    def answer(self, value: object) -> None:
        """Send the answer; a caller that has gone away, or does not listen, costs a moment at most."""
        with contextlib.suppress(OSError), self.caller:
            self.caller.settimeout(1.0)
            self.caller.sendall(json.dumps(value, ensure_ascii=True).encode() + b"\n")


@dataclass(slots=True)
class StatusSocket:
    """The daemon's end. Without a place for the socket, or on a system that has none, it hears nothing, and all else goes on."""

    path: Path
    _listening: socket.socket | None = None
    _selector: selectors.BaseSelector | None = None
    _heard: dict[socket.socket, bytes] = field(default_factory=dict)

    def __enter__(self) -> Self:
        if not hasattr(socket, "AF_UNIX"):
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.path.exists() and _answers(self.path):
                # Another daemon of this user, for other folders: it keeps the name.
                self.path = self.path.with_name(f"status-{os.getpid()}.sock")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with _address(self.path) as address:
                listening.bind(address)
            os.chmod(self.path, 0o600)
            listening.listen(WAITING_CALLERS)
            listening.setblocking(False)
            self._listening = listening
        except OSError:
            self._listening = None
        return self

    def __exit__(self, *_: object) -> None:
        for caller in self._heard:
            caller.close()
        if self._listening is not None:
            self._listening.close()
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def register(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        if self._listening is not None:
            selector.register(self._listening, selectors.EVENT_READ)

    def questions(self, events: Iterable[tuple[selectors.SelectorKey, int]]) -> Iterator[Question]:
        """Take in what has arrived, and yield each question that is whole."""
        assert self._selector is not None
        for key, _ in events:
            callers = self._accept() if key.fileobj is self._listening else [key.fileobj]
            for caller in callers:
                if isinstance(caller, socket.socket) and caller in self._heard:
                    question = self._hear(caller)
                    if question is not None:
                        yield question

    def _accept(self) -> Iterator[socket.socket]:
        assert self._listening is not None
        assert self._selector is not None
        for _ in range(MOST_CALLERS):
            try:
                caller, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError:
                # No descriptor is left for those who talk as long as so many say nothing.
                self._dismiss()
                return
            if len(self._heard) >= MOST_CALLERS:
                self._dismiss()
            caller.setblocking(False)
            self._heard[caller] = b""
            self._selector.register(caller, selectors.EVENT_READ)
            yield caller

    def _dismiss(self) -> None:
        """Let the caller go that has kept us waiting for longest."""
        assert self._selector is not None
        for caller in list(self._heard)[:1]:
            self._selector.unregister(caller)
            del self._heard[caller]
            caller.close()

    def _hear(self, caller: socket.socket) -> Question | None:
        assert self._selector is not None
        try:
            data = caller.recv(LONGEST_QUESTION)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        said = self._heard[caller] + data
        if data and b"\n" not in said and len(said) < LONGEST_QUESTION:
            self._heard[caller] = said
            return None
        self._selector.unregister(caller)
        del self._heard[caller]
        try:
            wanted = json.loads(said.partition(b"\n")[0])
            return Question(ask=str(wanted["ask"]), caller=caller)
        except (ValueError, KeyError, TypeError, RecursionError):
            caller.close()
            return None


def sockets_in(folder: Path) -> list[Path]:
    """The status sockets of this user's daemons, those of crashed ones included."""
    return sorted(folder.glob("status*.sock"))


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The name of a socket for bind and connect, which take 107 bytes and no more; Linux can say a long one through its folder."""
    if len(os.fsencode(path)) < LONGEST_ADDRESS or not sys.platform.startswith("linux"):
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(1.0)
            with _address(path) as address:
                caller.connect(address)
    except BlockingIOError:
        # So many ask that there is no more room for us.
        return True
    except OSError:
        return False
    return True


def _connect(caller: socket.socket, path: Path) -> None:
    """Connect to a daemon; while too many others do, wait for a place. BlockingIOError when none becomes free."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with _address(path) as address:
                caller.connect(address)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(TRY_AGAIN)


def ask(path: Path, question: str) -> dict[str, object] | None:
    """Ask the daemon behind *path*; None when there is none. Raises EnvironmentFault for one that does not answer."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(PATIENCE)
        try:
            _connect(caller, path)
        except BlockingIOError as error:
            raise EnvironmentFault("the daemon does not answer: too many ask at the same time", hint="ask again later") from error
        except OSError:
            return None
        try:
            caller.sendall(json.dumps({"ask": question}).encode() + b"\n")
            received = bytearray()
            while not received.endswith(b"\n") and len(received) < LONGEST_ANSWER:
                part = caller.recv(1 << 16)
                if not part:
                    break
                received += part
            answer = json.loads(bytes(received))
        except (OSError, ValueError) as error:
            raise EnvironmentFault("the daemon does not answer", hint="`systemctl --user status stepwatch` or its log may tell why") from error
    return answer if isinstance(answer, dict) else None
