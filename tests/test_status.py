"""The status socket: what a daemon answers, to whom, and what it does not mind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest

from stepwatch import status as sockets
from stepwatch.errors import EnvironmentFault
from tests.conftest import Daemon, MakeRun, sidecar_for, write_frame

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


def _exactly(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


SCHEMA = _exactly(
    schema={"const": 1},
    daemon=_exactly(pid=_COUNT, version=_TEXT, started={"type": "number"}, workers={"type": "integer", "minimum": 1}, ending={"type": "boolean"}),
    folders={
        "type": "array",
        "items": _exactly(
            path=_TEXT,
            state={"enum": ["watching", "polling", "paused", "asleep"]},
            reason=_TEXT,
            file_system=_TEXT,
            folders=_COUNT,
            watches=_COUNT,
            recrawls=_COUNT,
            first_look={"anyOf": [{"type": "null"}, _exactly(done=_COUNT, found=_COUNT)]},
            waiting=_COUNT,
            free_bytes={"type": ["integer", "null"]},
        ),
    },
    runs={
        "type": "array",
        "items": _exactly(
            run=_TEXT,
            name=_TEXT,
            dir=_TEXT,
            phase=_TEXT,
            reason=_TEXT,
            waiting={"type": "boolean"},
            live={"anyOf": [{"type": "null"}, _exactly(encoded=_COUNT, promised=_COUNT)]},
            next_look={"type": ["number", "null"]},
            progress={
                "type": "array",
                "items": _exactly(label=_TEXT, done=_COUNT, total=_COUNT, speed={"type": ["number", "null"]}),
            },
        ),
    },
    active=_COUNT,
    at_rest=_COUNT,
    rendering=_COUNT,
    waiting=_COUNT,
    rendered=_COUNT,
)


@contextlib.contextmanager
def answering(path: Path) -> Iterator[list[str]]:
    """A loop like the daemon's, in a thread, that says back what it is asked; yields what it has heard."""
    heard: list[str] = []
    over = threading.Event()

    def loop() -> None:
        with sockets.StatusSocket(path) as status, selectors.DefaultSelector() as selector:
            status.register(selector)
            listening.set()
            while not over.is_set():
                for question in status.questions(selector.select(0.05)):
                    heard.append(question.ask)
                    question.answer({"you": question.ask})

    listening = threading.Event()
    thread = threading.Thread(target=loop)
    thread.start()
    listening.wait()
    try:
        yield heard
    finally:
        over.set()
        thread.join()


def caller_of(path: Path) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    caller.settimeout(5)
    sockets._connect(caller, path)
    return caller


# --- the socket by itself -----------------------------------------------------------------------------------------------------------------


def test_a_question_gets_its_answer_and_the_socket_goes_with_its_daemon(tmp_path: Path) -> None:
    """One JSON question, one JSON answer; the socket is for its owner only, and is gone when the daemon has ended."""
    path = tmp_path / "run" / "status.sock"
    with answering(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert sockets.ask(path, "statüs") == {"you": "statüs"}
        assert sockets.sockets_in(path.parent) == [path]
    assert not path.exists()
    assert sockets.ask(path, "status") is None


def test_a_path_too_long_for_a_socket_is_said_through_its_folder(tmp_path: Path) -> None:
    """Names of sockets end at 107 bytes, names of folders do not."""
    path = tmp_path / ("f" * 80) / ("g" * 80) / "status.sock"
    with answering(path):
        assert sockets.ask(path, "status") == {"you": "status"}


def test_the_socket_of_a_crashed_daemon_is_taken_over_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    """A second daemon of the same user gets a name beside the first; a name that nobody answers to is free."""
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    beside = path.with_name(f"status-{os.getpid()}.sock")
    with answering(path):
        with answering(path):
            assert sockets.sockets_in(tmp_path) == [beside, path]
            assert sockets.ask(beside, "b") == {"you": "b"}
        assert sockets.ask(path, "a") == {"you": "a"}


def test_one_that_is_too_busy_to_answer_still_has_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue of callers is not taken for a dead daemon: its name stays its own, and who asks is told why there is no answer."""
    path = tmp_path / "status.sock"
    monkeypatch.setattr(sockets, "PATIENCE", 0.2)
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        busy.bind(str(path))
        busy.listen(0)
        stack.enter_context(caller_of(path))
        with pytest.raises(EnvironmentFault, match="too many ask"):
            sockets.ask(path, "status")
        with sockets.StatusSocket(path) as second:
            assert second.path != path
        assert path.exists()


def test_those_who_say_nothing_do_not_keep_others_from_being_heard(tmp_path: Path) -> None:
    """However many connect and are silent, the next one that asks is answered."""
    path = tmp_path / "status.sock"
    with answering(path), contextlib.ExitStack() as stack:
        silent = [stack.enter_context(caller_of(path)) for _ in range(3 * sockets.MOST_CALLERS)]
        assert sockets.ask(path, "status") == {"you": "status"}
        # Half a question is a kind of silence.
        silent[-1].sendall(b'{"ask": ')
        assert sockets.ask(path, "status") == {"you": "status"}
        silent[-1].sendall(b'"late"}\n')
        assert json.loads(silent[-1].recv(100)) == {"you": "late"}


@pytest.mark.parametrize(
    "said",
    [b"\n", b"nonsense\n", b"\xff\xfe\n", b"[]\n", b"7\n", b'{"tell": 1}\n', b"[" * 4000 + b"\n", b"x" * 4096, b"x" * 1_000_000],
    ids=["nothing", "words", "bytes", "list", "number", "other", "deep", "long", "huge"],
)
def test_nonsense_gets_no_answer_and_does_no_harm(tmp_path: Path, said: bytes) -> None:
    """What is no question ends the conversation, and nothing else."""
    path = tmp_path / "status.sock"
    with answering(path) as heard, caller_of(path) as caller:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            caller.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            assert caller.recv(100) == b""
        assert sockets.ask(path, "status") == {"you": "status"}
        assert heard == ["status"]


def test_two_hundred_at_once_are_all_answered(tmp_path: Path) -> None:
    """Nobody is sent away for coming at the same time as everybody else."""
    path = tmp_path / "status.sock"
    with answering(path), ThreadPoolExecutor(200) as crowd:
        answers = list(crowd.map(lambda number: sockets.ask(path, str(number)), range(400)))
    assert answers == [{"you": str(number)} for number in range(400)]


def test_a_place_where_no_socket_can_be_is_no_reason_not_to_work(tmp_path: Path) -> None:
    """Where the socket cannot be made, the daemon hears nothing and goes on."""
    (tmp_path / "file").touch()
    with sockets.StatusSocket(tmp_path / "file" / "status.sock") as status, selectors.DefaultSelector() as selector:
        status.register(selector)
        assert list(status.questions(selector.select(0))) == []


# --- a daemon that is asked ---------------------------------------------------------------------------------------------------------------


def recording(folder: Path, steps: int) -> Path:
    """A run of which more is to come."""
    for step in range(1, steps + 1):
        write_frame(folder / f"{step - 1:05d}.png", step=step)
    facts = sidecar_for(folder, steps, names="{index:05d}.png", state="running", size=(32, 24))
    (folder / "run.json").write_text(json.dumps(facts | {"frames": {"name": "{index:05d}.png", "count": steps, "planned": 50}}))
    return folder


def test_a_status_has_exactly_what_its_schema_says(daemon: Daemon, make_run: MakeRun) -> None:
    """``status --json`` is one object with ``schema: 1`` and exactly these keys, whatever a run is called, and the table tells the same."""
    daemon.configure({"detect": {"stall": "60s"}})
    make_run(daemon.watched / "done")
    recording(daemon.watched / os.fsdecode(b"n\xe4me \x1b[31m"), 3)
    daemon.start()
    daemon.wait_until(lambda: daemon.status()["rendered"] == 1 and len(daemon.status()["runs"]) == 1)
    asked = daemon.run("status", "--json")
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout)
    jsonschema.validate(said, SCHEMA)
    assert asked.stdout.isascii()
    (run,) = said["runs"]
    assert (run["phase"], run["waiting"], run["progress"]) == ("recording", False, [])
    assert 0 < run["next_look"] <= 60
    assert said["at_rest"] == said["rendered"] == said["folders"][0]["watches"] - 3 == 1
    table = daemon.run("status")
    assert "0 rendering, 0 waiting, 1 at rest" in table.stdout
    assert "recording" in table.stdout
    assert "\x1b" not in table.stdout


def test_a_daemon_that_is_besieged_goes_on_with_its_work(daemon: Daemon, make_run: MakeRun) -> None:
    """Two hundred who ask, others who are silent or talk nonsense: runs are rendered meanwhile, and all who asked are answered."""
    daemon.start()
    path = daemon.state / "status.sock"
    with contextlib.ExitStack() as stack:
        for said in (b"", b"", b"rubbish\n", b"y" * 5000):
            with contextlib.suppress(BrokenPipeError):
                stack.enter_context(caller_of(path)).sendall(said)
        crowd = stack.enter_context(ThreadPoolExecutor(200))
        asked = [crowd.submit(sockets.ask, path, "status") for _ in range(200)]
        make_run(daemon.watched / "run")
        daemon.wait_until(lambda: daemon.animations() == ["run.mp4"])
        answers = [one.result() for one in asked]
    judge = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
    for answer in answers:
        judge.validate(answer)
    assert daemon.end() == 0
    assert not path.exists()


def test_following_shows_one_picture_in_the_place_of_the_other(daemon: Daemon) -> None:
    """``status --follow`` in a terminal keeps showing how it goes until Ctrl-C, then ends with 0 and a visible cursor."""
    daemon.configure({"detect": {"stall": "60s"}})
    daemon.start()
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        daemon.command("status", "--follow"), env=daemon.environment | {"TERM": "xterm", "COLUMNS": "120"}, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = bytearray()

        def read() -> None:
            with contextlib.suppress(OSError):
                while part := os.read(ours, 65536):
                    shown.extend(part)

        reader = threading.Thread(target=read)
        reader.start()
        daemon.wait_until(lambda: b"at rest" in shown)
        recording(daemon.watched / "run-a", 3)
        daemon.wait_until(lambda: b"run-a" in shown and b"recording" in shown)
        process.send_signal(2)
        assert process.wait(10) == 0
        reader.join()
        os.close(ours)
    assert b"\x1b[?25h" in shown
    assert len(re.findall(rb"at rest", shown)) > 2


def test_following_ends_with_the_daemon(daemon: Daemon) -> None:
    """When there is nobody left to ask, following is over, without an error."""
    daemon.start()
    with subprocess.Popen(daemon.command("status", "--follow"), env=daemon.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert b"folder" in process.stdout.readline()
        assert daemon.end() == 0
        _, complaints = process.communicate(timeout=20)
    assert process.returncode == 0
    assert complaints == b""


def test_two_daemons_of_one_user_are_both_shown(daemon: Daemon, tmp_path: Path, make_run: MakeRun) -> None:
    """Row 63: a second daemon on another folder works beside the first, and ``status`` shows both; one socket more, none less afterwards."""
    make_run(daemon.watched / "a")
    daemon.start()
    other = Daemon(tmp_path / "other", tmp_path / "elsewhere")
    other.environment = daemon.environment
    make_run(other.watched / "b")
    try:
        other.start(wait=False)  # Its socket has another name.
        daemon.wait_until(lambda: daemon.animations() == ["a.mp4"] and other.animations() == ["b.mp4"])
        assert other.process is not None
        said = json.loads(daemon.run("status", "--json").stdout)
        assert {folder["path"] for one in said["daemons"] for folder in one["folders"]} == {str(daemon.watched), str(other.watched)}
        table = daemon.run("status").stdout
        assert table.count("at rest") == 2
        assert len(sockets.sockets_in(daemon.state)) == 2
        assert other.end() == 0
        assert len(sockets.sockets_in(daemon.state)) == 1
    finally:
        if other.process is not None and other.process.poll() is None:
            other.process.kill()
            other.process.wait()


def test_a_folder_that_vanishes_is_asleep_and_says_why(daemon: Daemon) -> None:
    """A watched folder that is not there is shown as asleep, with the reason, until it is there again."""
    daemon.prepare()
    daemon.start()
    away = daemon.watched.rename(daemon.watched.with_name("away"))
    # Nothing tells of a rename by itself; but whoever goes on writing there is still heard.
    (away / "poke.png").touch()
    daemon.wait_until(lambda: daemon.status()["folders"][0]["state"] == "asleep")
    folder = daemon.status()["folders"][0]
    assert folder["reason"] == "the folder is not there"
    assert folder["free_bytes"] is None
    away.rename(daemon.watched)
    daemon.wait_until(lambda: daemon.status()["folders"][0]["state"] == "watching")
    asleep = [line for line in daemon.log.splitlines() if "asleep" in line]
    assert len(asleep) == 1, daemon.log
    started = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - started < 5
