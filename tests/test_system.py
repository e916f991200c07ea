"""The seam: what only some systems have, on this one, and with its Linux parts taken away."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepwatch import system
from stepwatch.core.lifecycle import WriterState
from stepwatch.core.model import RunKey, Writer
from stepwatch.errors import BusyError, EnvironmentFault, Interrupted, MissingToolError

ROOT = Path(__file__).parent.parent
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this; elsewhere the answer is that nobody knows")


def fake_msvcrt() -> SimpleNamespace:
    """What Windows has instead of fcntl, made of what is here: a lock that is refused with the error that Windows gives."""

    def locking(descriptor: int, mode: int, length: int) -> None:
        assert (mode, length) == (2, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    return SimpleNamespace(LK_NBLCK=2, locking=locking)


@pytest.fixture(params=["linux", "other unix", "windows"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of system in turn, as far as locks know the difference."""
    if request.param != "linux":
        monkeypatch.setattr(system, "LINUX", False)
    if request.param == "windows":
        monkeypatch.setattr(system, "_fcntl", None)
        monkeypatch.setattr(system, "_msvcrt", fake_msvcrt())
    return str(request.param)


@contextlib.contextmanager
def other_process(script: str, *arguments: object, kind: str = "linux") -> Iterator[subprocess.Popen[str]]:
    """A Python that runs *script*, which prints a line when it is ready and goes on until its stdin ends."""
    head = "import os, sys, threading\nfrom pathlib import Path\nfrom stepwatch import system\nfrom stepwatch.core.model import RunKey\n"
    if kind != "linux":
        head += "system.LINUX = False\n"
    if kind == "windows":
        head += "from tests.test_system import fake_msvcrt\nsystem._fcntl, system._msvcrt = None, fake_msvcrt()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def in_thread(work: Callable[[], object]) -> object:
    """What *work* returns when a thread of its own does it."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


# --- locking a watched folder

HOLD_FOLDER = """
lock = system.FolderLock.acquire(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
lock.release()
"""


def test_a_second_daemon_is_told_who_has_the_folder(tmp_path: Path, kind: str) -> None:
    """Row 63: exit code 75, and process, machine and time of the one that was first."""
    with other_process(HOLD_FOLDER, tmp_path, kind=kind) as first:
        assert said(first) == "locked"
        with pytest.raises(BusyError) as busy:
            system.FolderLock.acquire(tmp_path)
        assert busy.value.exit_code == 75
        assert f"another stepwatch: process {first.pid} on {socket.gethostname()}, since 2" in busy.value.message
        first.communicate("")
        assert first.returncode == 0
    with system.FolderLock.acquire(tmp_path) as lock:
        assert lock.still_same()


def test_one_process_does_not_lock_a_folder_twice(tmp_path: Path, kind: str) -> None:
    """The lock belongs to the object, not to the process; the folder next to it is free."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    busy = pytest.raises(BusyError, match=f"process {os.getpid()} on")
    with system.FolderLock.acquire(tmp_path / "one"), system.FolderLock.acquire(tmp_path / "other"), busy:
        system.FolderLock.acquire(tmp_path / "one")


def test_kill_9_releases_the_folder_at_once(tmp_path: Path, kind: str) -> None:
    """Even while a child of the killed one lives on, and whatever it has left in the folder."""
    script = """
    import subprocess
    lock = system.FolderLock.acquire(Path(sys.argv[1]))
    print(subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).pid, flush=True)
    sys.stdin.read()
    """
    with other_process(script, tmp_path, kind=kind) as first:
        child = int(said(first))
        try:
            first.kill()
            first.wait()
            assert (tmp_path / ".stepwatch" / "daemon.json").exists()
            system.FolderLock.acquire(tmp_path).release()
        finally:
            os.kill(child, signal.SIGKILL)
    left = {path.name for path in tmp_path.rglob("*")}
    assert left <= ({".stepwatch", "daemon.lock"} if kind == "windows" else {".stepwatch"})


@linux_only
def test_a_word_of_the_dead_is_not_passed_on(tmp_path: Path) -> None:
    """Between locking and saying so there is a moment in which an earlier daemon's word stands there."""
    with other_process("print(flush=True); sys.stdin.read()") as gone:
        said(gone)
        began = system.process_start(gone.pid)
    facts = {"pid": gone.pid, "host": socket.gethostname(), "boot_id": system.boot_id(), "start_time": began, "since": "2026-01-31T12:00:00Z"}
    (tmp_path / ".stepwatch").mkdir()
    (tmp_path / ".stepwatch" / "daemon.json").write_text(json.dumps(facts))
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="which does not say who it is"):
            system.FolderLock.acquire(tmp_path)
    finally:
        os.close(folder)


@pytest.mark.parametrize("word", [b"", b"{", b"[]", b"\xff\x00", b"[" * 4000, b'{"pid": "x", "host": 3, "since": null}'])
def test_an_odd_word_about_the_holder_does_no_harm(tmp_path: Path, word: bytes) -> None:
    """The folder is busy all the same, in a sentence."""
    with system.FolderLock.acquire(tmp_path):
        (tmp_path / ".stepwatch" / "daemon.json").write_bytes(word)
        with pytest.raises(BusyError, match="which does not say who it is"):
            system.FolderLock.acquire(tmp_path)


def test_a_pipe_in_place_of_the_word_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Nothing in a shared folder is opened in a way that blocks."""
    with system.FolderLock.acquire(tmp_path):
        (tmp_path / ".stepwatch" / "daemon.json").unlink()
        os.mkfifo(tmp_path / ".stepwatch" / "daemon.json")
        with pytest.raises(BusyError, match="which does not say who it is"):
            system.FolderLock.acquire(tmp_path)


def test_an_escape_code_for_a_host_name_is_harmless(tmp_path: Path) -> None:
    """What a stranger may have written reaches a terminal as text only."""
    with system.FolderLock.acquire(tmp_path):
        word = {"pid": 7, "host": "\x1b[2Jbox", "since": "\x1b]0;x\x07", "boot_id": None, "start_time": None}
        (tmp_path / ".stepwatch" / "daemon.json").write_text(json.dumps(word))
        with pytest.raises(BusyError) as busy:
            system.FolderLock.acquire(tmp_path)
    assert "process 7" in busy.value.message
    assert busy.value.message.isprintable()


def test_release_leaves_what_was_there(tmp_path: Path) -> None:
    """The folder for the trash stays, its content too; a second release is nothing."""
    kept = tmp_path / ".stepwatch" / "trash" / "frame.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    lock = system.FolderLock.acquire(tmp_path)
    assert json.loads((tmp_path / ".stepwatch" / "daemon.json").read_text())["pid"] == os.getpid()
    lock.release()
    lock.release()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".stepwatch", "frame.png", "trash"]


@pytest.mark.parametrize("instead", ["file", "link"])
def test_a_folder_that_takes_no_word_is_locked_all_the_same(tmp_path: Path, instead: str) -> None:
    """Nothing is written through a link that leads elsewhere, and nothing is put in the place of somebody's file."""
    watched, elsewhere = tmp_path / "watched", tmp_path / "elsewhere"
    watched.mkdir()
    elsewhere.mkdir()
    if instead == "file":
        (watched / ".stepwatch").write_text("mine")
    else:
        (watched / ".stepwatch").symlink_to(elsewhere)
    with system.FolderLock.acquire(watched), pytest.raises(BusyError):
        system.FolderLock.acquire(watched)
    assert list(elsewhere.iterdir()) == []
    assert (watched / ".stepwatch").is_symlink() or (watched / ".stepwatch").read_text() == "mine"


def test_a_folder_that_has_gone_another_way_is_noticed(tmp_path: Path) -> None:
    """Row 38: renamed, deleted, made anew: the path no longer leads to what is locked, until it does again."""
    watched = tmp_path / "watched"
    watched.mkdir()
    lock = system.FolderLock.acquire(watched)
    watched.rename(tmp_path / "renamed")
    assert not lock.still_same()
    watched.mkdir()
    assert not lock.still_same()
    watched.rmdir()
    (tmp_path / "renamed").rename(watched)
    assert lock.still_same()
    shutil.rmtree(watched)
    assert not lock.still_same()
    watched.mkdir()
    assert not lock.still_same()
    lock.release()
    assert not lock.still_same()
    assert list(watched.iterdir()) == []


@pytest.mark.parametrize("what", ["nothing", "file"])
def test_what_is_no_folder_cannot_be_locked(tmp_path: Path, what: str, kind: str) -> None:
    """A fault of the machine, as the folder may come back: a mount that is not there yet."""
    place = tmp_path / "watched\x1b"
    if what == "file":
        place.write_text("x")
    with pytest.raises(EnvironmentFault, match=r"watched.* cannot be locked: N") as fault:
        system.FolderLock.acquire(place)
    assert fault.value.message.isprintable()


def test_where_folders_cannot_be_locked_a_file_in_them_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems know no flock on a folder."""

    def flock(descriptor: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOTSUP, "Operation not supported")
        fcntl.flock(descriptor, operation)

    monkeypatch.setattr(system, "_fcntl", SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB))
    with system.FolderLock.acquire(tmp_path) as lock:
        assert lock.still_same()
        with pytest.raises(BusyError, match=f"process {os.getpid()} on"):
            system.FolderLock.acquire(tmp_path)
    system.FolderLock.acquire(tmp_path).release()


def test_a_system_without_any_lock_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better no daemon than two."""
    monkeypatch.setattr(system, "_fcntl", None)
    monkeypatch.setattr(system, "_msvcrt", None)
    with pytest.raises(EnvironmentFault, match="cannot be locked: Function not implemented"):
        system.FolderLock.acquire(tmp_path)


# --- locking a run

KEY = RunKey(folder="/runs/a\udcff\n1", group="7")
HOLD_RUN = """
with system.run_lock(Path(sys.argv[1]), RunKey(folder="/runs/a\\udcff\\n1", group="7"), wait=True, stop=threading.Event(), on_wait=lambda: None):
    print("locked", flush=True)
    sys.stdin.read()
"""


def take(state: Path, key: RunKey = KEY, *, wait: bool = False) -> contextlib.AbstractContextManager[None]:
    return system.run_lock(state, key, wait=wait, stop=threading.Event(), on_wait=lambda: None)


def test_two_processes_do_not_visit_one_run(tmp_path: Path, kind: str) -> None:
    """Row 63: who will not wait gets 75, and kill -9 of the first lets the second in."""
    state = tmp_path / "state"
    with other_process(HOLD_RUN, state, kind=kind) as first:
        assert said(first) == "locked"
        with pytest.raises(BusyError, match="is being visited by another stepwatch") as busy, take(state):
            pass
        assert busy.value.exit_code == 75
        assert busy.value.message.isprintable()
        first.kill()
        first.wait()
        with take(state):
            pass


def test_two_threads_do_not_visit_one_run(tmp_path: Path, kind: str) -> None:
    """The second waits, says so once, and goes on as soon as the first is done."""
    waiting, done = threading.Event(), threading.Event()
    told: list[str] = []

    def on_wait() -> None:
        told.append("waits")
        waiting.set()

    def second() -> None:
        with system.run_lock(tmp_path, KEY, wait=True, stop=threading.Event(), on_wait=on_wait):
            told.append("has it")
        done.set()

    thread = threading.Thread(target=second)
    with take(tmp_path):
        thread.start()
        assert waiting.wait(10)
        with pytest.raises(BusyError), take(tmp_path):
            pass
        told.append("first leaves")
    assert done.wait(10)
    thread.join()
    assert told == ["waits", "first leaves", "has it"]


def test_who_waits_for_a_run_can_be_stopped(tmp_path: Path, kind: str) -> None:
    """A stop that comes while another visits ends the waiting."""
    stop = threading.Event()
    with take(tmp_path), pytest.raises(Interrupted), system.run_lock(tmp_path, KEY, wait=True, stop=stop, on_wait=stop.set):
        pass


def test_an_error_within_lets_go_of_the_run(tmp_path: Path, kind: str) -> None:
    """Whatever ends a visit ends the lock."""
    with pytest.raises(ZeroDivisionError), take(tmp_path):
        raise ZeroDivisionError
    with take(tmp_path):
        pass


@linux_only
def test_many_runs_share_one_file_and_do_not_meet(tmp_path: Path) -> None:
    """Runs of other folders, and other runs of the same folder, are free."""
    with contextlib.ExitStack() as stack:
        for number in range(100):
            stack.enter_context(take(tmp_path, RunKey(folder=f"/runs/{number // 10}", group=str(number % 10))))
    assert [path.name for path in tmp_path.iterdir()] == ["visits.lock"]


def test_a_kernel_without_such_locks_falls_back_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the constant is known and the kernel refuses, as in some sandboxes."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    known = {name: getattr(fcntl, name) for name in ("flock", "LOCK_EX", "LOCK_NB", "F_WRLCK")}
    monkeypatch.setattr(system, "_fcntl", SimpleNamespace(**known, F_OFD_SETLK=37, fcntl=refuse))
    with take(tmp_path), pytest.raises(BusyError), take(tmp_path):
        pass
    assert (tmp_path / "visits").is_dir()


def test_a_lock_file_deleted_in_between_locks_nobody_out(tmp_path: Path) -> None:
    """Somebody tidies up between opening and locking: the file that is there afterwards is the one that counts."""
    path, seen = tmp_path / "x.lock", []

    def lock(descriptor: int) -> bool:
        seen.append(os.fstat(descriptor).st_nlink)
        if len(seen) == 1:
            path.unlink()
        return True

    descriptor = system._lock_file(path, lock)
    assert descriptor is not None
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    assert len(seen) == 2
    os.close(descriptor)


def test_a_state_folder_that_cannot_be_is_a_fault_of_the_machine(tmp_path: Path, kind: str) -> None:
    """Row 45: no lock, no visit, and a sentence."""
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"runs cannot be locked in .*state: "), take(tmp_path / "state"):
        pass


# --- processes


@linux_only
def test_a_living_writer_is_alive() -> None:
    """By its start in ticks, and by its start in seconds, which clocks know to a second or two."""
    began = system.process_start(os.getpid())
    assert began is not None
    writer = Writer(host=socket.gethostname().upper(), boot_id=system.boot_id(), pid=os.getpid(), start_time=began)
    assert system.writer_state(writer) is WriterState.ALIVE
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    seconds = boot + began / os.sysconf("SC_CLK_TCK")
    for off in (-1.5, 0, 1.5):
        assert system.writer_state(replace(writer, start_time=seconds + off)) is WriterState.ALIVE


@linux_only
def test_a_writer_that_has_ended_is_dead() -> None:
    """As soon as it has ended, noticed by its parent or not."""
    with other_process("print(flush=True); sys.stdin.read()") as process:
        said(process)
        writer = Writer(host=socket.gethostname(), boot_id=system.boot_id(), pid=process.pid, start_time=system.process_start(process.pid))
        assert system.writer_state(writer) is WriterState.ALIVE
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert system.writer_state(writer) is WriterState.DEAD
        assert system.process_start(process.pid) is None
    assert system.writer_state(writer) is WriterState.DEAD


@linux_only
def test_another_process_with_the_writers_number_is_not_the_writer() -> None:
    """A number that has been given away again: what lives there was started later than the writer says of itself."""
    began = system.process_start(os.getpid())
    assert began is not None
    writer = Writer(host=socket.gethostname(), boot_id=system.boot_id(), pid=os.getpid(), start_time=min(began - 1, 1e6))
    assert system.writer_state(writer) is WriterState.DEAD
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    seconds = boot + began / os.sysconf("SC_CLK_TCK")
    assert system.writer_state(replace(writer, start_time=max(seconds - 60, boot + (seconds - boot) / 2))) is WriterState.DEAD


@linux_only
@pytest.mark.parametrize("years", [-1, 1])
def test_a_clock_that_was_set_kills_no_writer(years: int) -> None:
    """Row 60: seconds that do not fit this start of the machine say that a clock was set, and nothing else."""
    told = time.time() + years * 365 * 86400
    writer = Writer(host=socket.gethostname(), boot_id=system.boot_id(), pid=os.getpid(), start_time=told)
    assert system.writer_state(writer) is WriterState.UNKNOWN


@linux_only
@pytest.mark.parametrize(
    "change",
    [
        {"host": None},
        {"host": ""},
        {"boot_id": None},
        {"pid": None},
        {"start_time": None},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**31},
        {"host": "elsewhere"},
    ],
    ids=str,
)
def test_what_is_not_told_is_not_known(change: dict[str, str | int | None]) -> None:
    """A writer of another machine, and one that keeps something to itself, may be alive or not."""
    whole = {"host": socket.gethostname(), "boot_id": system.boot_id(), "pid": 2**22 + 1, "start_time": 1.0}
    assert system.writer_state(Writer(**(whole | change))) is WriterState.UNKNOWN  # type: ignore[arg-type]
    assert system.writer_state(Writer(**whole)) is WriterState.DEAD  # type: ignore[arg-type]


@linux_only
@pytest.mark.parametrize(("host", "state"), [("box", WriterState.DEAD), ("localhost.localdomain", WriterState.UNKNOWN)])
def test_a_machine_that_was_started_anew_has_no_old_writers(host: str, state: WriterState, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its name is everybody's name."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert system.writer_state(Writer(host=host, boot_id="earlier", pid=os.getpid(), start_time=1.0)) is state


@linux_only
def test_a_process_that_hides_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hardened service sees no strangers in /proc; that they are there it can be told all the same."""
    writer = Writer(host=socket.gethostname(), boot_id=system.boot_id(), pid=os.getpid(), start_time=1.0)
    monkeypatch.setattr(system, "_process", lambda _: None)
    assert system.writer_state(writer) is WriterState.UNKNOWN
    assert system.writer_state(replace(writer, pid=2**22 + 1)) is WriterState.DEAD


def test_without_linux_no_writer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time alone decides there."""
    monkeypatch.setattr(system, "LINUX", False)
    assert system.boot_id() == ""
    assert system.process_start(os.getpid()) is None
    assert system.writer_state(Writer(host=socket.gethostname(), boot_id="x", pid=os.getpid(), start_time=1.0)) is WriterState.UNKNOWN


@linux_only
def test_any_name_of_a_process_is_read_past(tmp_path: Path) -> None:
    """The name of a program may look like the fields behind it."""
    program = tmp_path / "x) Z 1 (y"
    program.symlink_to(shutil.which("sleep") or "")
    with subprocess.Popen([str(program), "60"]) as process:
        own = system.process_start(os.getpid())
        found = system.process_start(process.pid)
        process.kill()
    assert own is not None
    assert found is not None
    assert found >= own


START = """
child = system.start(["sleep", "60"])
print(child.pid, flush=True)
sys.stdin.read()
"""


@linux_only
def test_kill_9_of_the_parent_ends_its_child_within_a_second() -> None:
    """Row 49: nobody is there to end it, and it ends."""
    if not system.child_prefix():
        pytest.skip("no setpriv with --pdeathsig on this machine")
    with other_process(START) as parent:
        child = int(said(parent))
        assert system.process_start(child)
        parent.kill()
        parent.wait()
        assert until(lambda: system.process_start(child) is None, 1)


@linux_only
def test_a_parent_that_dies_too_early_to_be_missed_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 49: killed between starting the child and the child's asking for the signal, which then never comes."""
    real = shutil.which("setpriv")
    if not real or not system.child_prefix():
        pytest.skip("no setpriv with --pdeathsig on this machine")
    slow = tmp_path / "setpriv"
    slow.write_text(
        f'#!/bin/sh\ncase "$*" in *sleep*) touch "{tmp_path}/asked"; while [ ! -e "{tmp_path}/on" ]; do sleep 0.01; done;; esac\nexec {real} "$@"\n'
    )
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with other_process(START) as parent:
        child = int(said(parent))
        assert until((tmp_path / "asked").exists, 10)
        parent.kill()
        parent.wait()
        assert system.process_start(child)
        (tmp_path / "on").touch()
        assert until(lambda: system.process_start(child) is None, 1)


@linux_only
def test_a_child_leads_its_group_and_ends_with_it(tmp_path: Path) -> None:
    """Ctrl-C in a terminal does not reach it; ending it ends what it has started, whatever signals it does not hear."""
    script = f"trap '' TERM INT; sleep 60 & echo $! > '{tmp_path}/pid'; echo ready; wait"
    with system.start(["sh", "-c", script]) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        grandchild = int((tmp_path / "pid").read_text())
        assert os.getpgid(process.pid) == os.getsid(grandchild) == process.pid != os.getpgrp()
        system.end_group(process)
        assert process.wait(5) == -signal.SIGKILL
        system.end_group(process)
    assert until(lambda: system.process_start(grandchild) is None, 2)


@pytest.mark.parametrize("missing", ["not linux", "no setpriv", "a setpriv of busybox", "a setpriv that cannot run"])
def test_without_setpriv_programs_start_all_the_same(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may then outlive us by as long as they take."""
    sleep = shutil.which("sleep")
    assert sleep
    if missing == "not linux":
        monkeypatch.setattr(system, "LINUX", False)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    if missing == "a setpriv of busybox":
        (tmp_path / "setpriv").write_text("#!/bin/sh\necho setpriv: unrecognized option >&2\nexit 1\n")
        (tmp_path / "setpriv").chmod(0o755)
    if missing == "a setpriv that cannot run":
        (tmp_path / "setpriv").write_bytes(b"\x7fELF" + bytes(60))
        (tmp_path / "setpriv").chmod(0o755)
    assert system.child_prefix() == ()
    with system.start([sleep, "0"]) as process:
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [(None, 0, "No such file"), (b"#!/bin/sh\n", 0o644, "Permission denied"), (b"\x7fELF" + bytes(60), 0o755, "Exec format error")],
    ids=["missing", "not executable", "of another machine"],
)
def test_a_program_that_cannot_run_is_a_missing_tool(tmp_path: Path, content: bytes | None, mode: int, reason: str) -> None:
    """Row 52: the sentence says which, and why."""
    program = tmp_path / "ffmpeg"
    if content is not None:
        program.write_bytes(content)
        program.chmod(mode)
    with pytest.raises(MissingToolError, match=f"ffmpeg cannot be started: {reason}") as missing:
        system.start([str(program)])
    assert missing.value.exit_code == 69


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM], ids=lambda number: errno.errorcode[number])
def test_a_machine_without_room_is_no_missing_tool(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 33: too many files or processes pass, and nothing has to be installed."""

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    system.child_prefix()
    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(EnvironmentFault, match=f"cannot be started: {os.strerror(number)}"):
        system.start([sys.executable])


def test_no_file_left_to_open_is_no_missing_tool() -> None:
    """Row 33: the same with a real limit; and once there is room again everything is as before."""
    script = """
    import resource
    from stepwatch.errors import EnvironmentFault
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        system.start([sys.executable, "-c", ""])
    except EnvironmentFault as fault:
        for descriptor in taken:
            os.close(descriptor)
        print(fault, system.start([sys.executable, "-c", ""]).wait(), len(system.child_prefix()), flush=True)
    """
    with other_process(script) as process:
        line = said(process)
    assert "Too many open files" in line
    assert line.endswith(f"0 {len(system.child_prefix())}")


@linux_only
def test_a_background_thread_gives_way_with_its_children_and_alone() -> None:
    """Niceness and disk priority are those of the thread and of what it starts; the thread beside it keeps its own."""
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    show = ["sh", "-c", "nice; ionice"] if shutil.which("ionice") else ["sh", "-c", "nice; echo idle"]

    def work() -> tuple[str, int]:
        system.background_thread(15)
        system.background_thread(5)
        shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
        return shown, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    nice = max(15, mine)
    assert in_thread(work) == (f"{nice}\nidle\n", nice)
    assert os.getpriority(os.PRIO_PROCESS, 0) == os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


@pytest.mark.parametrize("away", ["nothing", "linux", "the system call", "the right to it"])
def test_who_cannot_give_way_goes_on(away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing about priorities is worth an error."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    def work() -> int:
        system.background_thread(0 if away == "nothing" else 19)
        return os.getpriority(os.PRIO_PROCESS, 0)

    before = os.getpriority(os.PRIO_PROCESS, 0)
    if away == "linux":
        monkeypatch.setattr(system, "LINUX", False)
    if away == "the system call":
        monkeypatch.setattr(system, "_IOPRIO_SET", {})
    if away == "the right to it":
        monkeypatch.setattr(os, "setpriority", refuse)
    assert in_thread(work) == (19 if away == "the system call" else before)


# --- files


@linux_only
def test_a_slow_writer_is_seen_while_it_has_the_file_open(tmp_path: Path) -> None:
    """Row 4: half a frame with its writer at it, then the whole one; who only reads does not count."""
    frame = tmp_path / "00001.png"
    script = """
    with open(sys.argv[1], "wb") as file:
        file.write(b"half")
        file.flush()
        print("half", flush=True)
        sys.stdin.readline()
        file.write(b" and half")
    with open(sys.argv[1], "rb") as file:
        print("whole", flush=True)
        sys.stdin.read()
    """
    with other_process(script, frame) as writer:
        assert writer.stdin
        assert said(writer) == "half"
        if system.open_for_writing(frame) is None:
            pytest.skip("this file system grants no leases")
        assert system.open_for_writing(frame) is True
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert said(writer) == "whole"
        assert system.open_for_writing(frame) is False
    assert frame.read_bytes() == b"half and half"


@linux_only
def test_a_writer_that_comes_during_the_look_ends_nobody(tmp_path: Path) -> None:
    """The kernel's signal for it would end a process; ours is one that does not, and the writer is not kept waiting."""
    frame = tmp_path / "frame"
    frame.write_bytes(b"x")
    script = """
    print("begins", flush=True)
    path, going = Path(sys.argv[1]), True
    threading.Thread(target=sys.stdin.read, daemon=True).start()
    while not Path(sys.argv[2]).exists():
        system.open_for_writing(path)
    print("lives", flush=True)
    """
    with other_process(script, frame, tmp_path / "end") as looker:
        assert said(looker) == "begins"
        started = time.monotonic()
        for _ in range(2000):
            os.close(os.open(frame, os.O_WRONLY))
        assert time.monotonic() - started < 20
        (tmp_path / "end").touch()
        assert said(looker) == "lives"


@pytest.mark.parametrize("what", ["missing", "pipe", "link", "folder"])
def test_only_files_can_be_open_for_writing(tmp_path: Path, what: str) -> None:
    """Of anything else nothing is said, and nothing blocks."""
    place = tmp_path / "x"
    (tmp_path / "real").write_text("x")
    make: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "pipe": lambda: os.mkfifo(place),
        "link": lambda: place.symlink_to("real"),
        "folder": place.mkdir,
    }
    make[what]()
    assert system.open_for_writing(place) is None


def test_who_has_a_file_open_is_unknown_without_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where somebody wants the signal for another purpose."""
    (tmp_path / "x").write_text("x")
    with monkeypatch.context() as away:
        away.setattr(system, "LINUX", False)
        assert system.open_for_writing(tmp_path / "x") is None
    monkeypatch.setattr(signal, "getsignal", lambda _: print)
    assert system.open_for_writing(tmp_path / "x") is None


@linux_only
def test_the_file_system_is_called_by_its_name(tmp_path: Path) -> None:
    """What `findmnt` says too."""
    assert system.file_system(Path("/proc")) == "proc"
    assert system.file_system(Path("/proc/self/status")) == "proc"
    assert system.file_system(tmp_path)
    if shutil.which("findmnt"):
        told = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", str(tmp_path)], capture_output=True, text=True, check=False).stdout.strip()
        assert told in ("", system.file_system(tmp_path))
    assert system.file_system(tmp_path / "missing") == ""


def in_namespace(commands: str, script: str, *arguments: object) -> str:
    """What *script* prints where *commands* have mounted something; skips where the kernel gives nobody a namespace of their own."""
    unshare = ["unshare", "-Urm"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel lets no user mount a file system in a namespace of their own")
    python = [sys.executable, "-c", "import sys\nfrom pathlib import Path\nfrom stepwatch import system\n" + textwrap.dedent(script)]
    command = [*unshare, "sh", "-ec", f'{commands}\nexec "$@"', "sh", *python, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux_only
def test_a_mount_that_hides_another_is_the_one_that_counts(tmp_path: Path) -> None:
    """The longest name in the list of mounts may be one that nobody can reach any more; names may hold blanks."""
    place = tmp_path / "a b"
    (place / "sub").mkdir(parents=True)
    mounts = f"mount -t ramfs none '{place}/sub'\nmount -t tmpfs none '{place}'\nmkdir '{place}/sub'"
    script = (
        "print(system.file_system(Path(sys.argv[1])), system.file_system(Path(sys.argv[1]) / 'sub'), system.file_system(Path(sys.argv[1]).parent))"
    )
    assert in_namespace(mounts, script, place).split() == ["tmpfs", "tmpfs", system.file_system(tmp_path)]


@linux_only
def test_an_unmounted_folder_is_no_longer_the_same(tmp_path: Path) -> None:
    """Row 39: unmounted lazily, the empty mount point is left; mounted anew, it is another folder."""
    script = """
    import subprocess
    lock = system.FolderLock.acquire(Path(sys.argv[1]))
    print(lock.still_same())
    subprocess.run(["umount", "-l", sys.argv[1]], check=True)
    print(lock.still_same())
    subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
    print(lock.still_same())
    lock.release()
    print(list(Path(sys.argv[1]).iterdir()))
    """
    assert in_namespace(f"mount -t tmpfs none '{tmp_path}'", script, tmp_path).split() == ["True", "False", "False", "[]"]


def test_the_file_system_is_unknown_without_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown one is asked whether it sends events, and not polled from the start."""
    monkeypatch.setattr(system, "LINUX", False)
    assert system.file_system(tmp_path) == ""
    assert not system.is_remote("")


@pytest.mark.parametrize(
    ("kinds", "remote"),
    [
        (("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.rclone", "fuse", "overlay", "virtiofs", "ceph", "vboxsf"), True),
        (("ext4", "btrfs", "xfs", "zfs", "tmpfs", "vfat", "ntfs3", "fuseblk", "bcachefs", "f2fs", "apfs"), False),
    ],
)
def test_remote_is_what_changes_behind_the_kernels_back(kinds: tuple[str, ...], remote: bool) -> None:  # noqa: FBT001
    """Network shares, shared folders of virtual machines, and layers over other folders."""
    assert {system.is_remote(kind) for kind in kinds} == {remote}


def test_names_are_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not there is an error, one that cannot be synced is not."""
    assert system.fsync_folder(tmp_path) is True
    with pytest.raises(FileNotFoundError):
        system.fsync_folder(tmp_path / "missing")
    if sys.platform == "linux":
        assert system.fsync_folder(Path("/proc")) is False
    monkeypatch.setattr(os, "name", "nt")
    assert system.fsync_folder(tmp_path) is False


@linux_only
@pytest.mark.parametrize(("error", "answer"), [("EIO", "5"), ("ENOSPC", "28"), ("EINVAL", "False"), ("ENOSYS", "False")])
def test_a_fault_of_the_disk_is_not_an_unknown(tmp_path: Path, error: str, answer: str) -> None:
    """Row 46: an error of the disk is raised, a system that does not know the call is not."""
    strace = ["strace", "-f", "-qq", "-o", os.devnull]
    if not shutil.which("strace") or subprocess.run([*strace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no strace that may look at processes on this machine")
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from stepwatch import system
        try:
            print(system.fsync_folder(Path(sys.argv[1])))
        except OSError as error:
            print(error.errno)
        """
    )
    command = [*strace, "-e", f"inject=fsync:error={error}", sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer


# --- systemd


@contextlib.contextmanager
def listener(address: str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        server.settimeout(10)
        yield server


def test_systemd_is_told_through_a_socket_with_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message, the whole state in it, whatever a name in it is made of."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "notify" if len(str(tmp_path)) < 90 else Path("notify")
    with listener(str(place)) as server:
        monkeypatch.setenv("NOTIFY_SOCKET", str(place.absolute()))
        assert system.notify("READY=1\nSTATUS=rendering b\u00e4r \udcff") is True
        assert server.recv(1000) == "READY=1\nSTATUS=rendering bär ?".encode()


@linux_only
def test_systemd_is_told_through_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 72: a name that is no file."""
    name = f"stepwatch-test-{os.getpid()}-{time.monotonic_ns()}"
    with listener(b"\0" + name.encode()) as server:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert system.notify("WATCHDOG=1") is True
        assert server.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", [None, "", "/nowhere/notify", "@nobody-listens-here", "relative", "vsock:2:1234", "/" + "x" * 300, "FILE", "@"])
def test_nobody_to_tell_is_silently_fine(address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 72: absent, gone, of an unknown kind, too long, or no socket at all."""
    (tmp_path / "file").write_text("x")
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "file") if address == "FILE" else address)
    assert system.notify("READY=1") is False


def test_a_socket_that_one_may_not_write_to_is_silently_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 72: somebody else's."""
    monkeypatch.chdir(tmp_path)
    with listener("notify"):
        os.chmod("notify", 0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        if os.geteuid():
            assert system.notify("READY=1") is False
            return
        os.seteuid(65534)
        try:
            assert system.notify("READY=1") is False
        finally:
            os.seteuid(0)


def test_a_listener_that_does_not_listen_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 72: its queue is full; a daemon goes on."""
    monkeypatch.chdir(tmp_path)
    name = f"@stepwatch-test-{os.getpid()}-{time.monotonic_ns()}"
    with listener(b"\0" + name[1:].encode()):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        started = time.monotonic()
        assert False in (system.notify("STATUS=x") for _ in range(10_000))
        assert time.monotonic() - started < 10


def test_systemd_says_where_things_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gives a service comes before the user's own places; of several the first."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    if sys.platform == "linux":
        assert system.state_dir() == tmp_path / "state" / "stepwatch"
    assert system.runtime_dir() == system.state_dir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert system.runtime_dir() == tmp_path / "stepwatch"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/stepwatch:/var/lib/other")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/stepwatch")
    assert (system.state_dir(), system.runtime_dir()) == (Path("/var/lib/stepwatch"), Path("/run/stepwatch"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps memory and gives it back when told to")
def test_memory_that_was_needed_once_is_given_back() -> None:
    """What many small pieces have left behind goes back to the system; asked twice it has nothing more to give, and elsewhere nothing happens."""
    script = """
import ctypes
from stepwatch import system

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
pieces = [library.malloc(1024) for _ in range(20_000)]
for piece in pieces:
    ctypes.memset(piece, 1, 1024)
last = library.malloc(1024)
for piece in pieces:
    library.free(piece)
before = resident()
system.give_back_memory()
system.give_back_memory()
print(before - resident())
system.LINUX = False
system.give_back_memory()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 10_000_000
