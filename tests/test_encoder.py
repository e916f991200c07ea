"""An ffmpeg's life: who starts it, how long it may take, what it takes with it, and that it outlives nobody."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from stepwatch import encoder, system, tags, verify
from stepwatch.core.plan import OutputPlan
from stepwatch.encoder import Encoder
from stepwatch.errors import EncodeError, EnvironmentFault, Interrupted, MissingToolError, VerifyError

ROOT = Path(__file__).parent.parent
IMAGE = bytes(range(48)) * 48
"""32x24 pixels."""
DEAF = "trap '' TERM INT HUP; sleep 60 & echo $$ $! > \"$PIDS\"; "
"""A program that hears no polite signal, and has a child that hears none either."""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has gone")

Fake = Callable[[str], str]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Make an ffmpeg of a few lines of shell; $PIDS is where it may write down its processes."""

    def make(script: str) -> str:
        program = tmp_path / "ffmpeg"
        program.write_text(f"#!/bin/sh\nPIDS='{tmp_path}/pids'\n{script}\n")
        program.chmod(0o755)
        return str(program)

    return make


def gone(pid: int) -> bool:
    """Whether a process has ended, noticed by its parent or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return sys.platform == "linux" and system.process_start(pid) is None


def all_gone(tmp_path: Path, seconds: float = 2) -> bool:
    """Whether the processes that a fake wrote down end in time."""
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    end = time.monotonic() + seconds
    while not all(map(gone, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


# --- limits


@pytest.mark.parametrize(("pictures", "seconds"), [(0, 600), (1, 600), (20, 600), (21, 630), (300, 9000)])
def test_the_limit_grows_with_the_pictures(pictures: int, seconds: float) -> None:
    """Ten minutes, or half a minute for each picture."""
    assert encoder.wall_limit(pictures) == seconds


@pytest.mark.parametrize("does", ["counts for ever", "counts and hears nothing"])
def test_endless_progress_is_ended_with_its_group(fake: Fake, tmp_path: Path, does: str) -> None:
    """Row 51: a picture more at every look, and no end: the limit ends it and what it has started, polite signals heard or not."""
    deaf = DEAF if does == "counts and hears nothing" else 'sleep 60 & echo $$ $! > "$PIDS"; '
    program = fake(deaf + "n=0; while :; do n=$((n+1)); echo frame=$n; echo progress=continue; sleep 0.02; done")
    made: list[int] = []
    with Encoder([program], limit=0.6, on_progress=lambda count, _: made.append(count)) as running:
        running.write(IMAGE)
        with pytest.raises(EncodeError, match=r"had not finished after 1 s and was ended"):
            running.finish()
    assert len(made) > 3
    assert all_gone(tmp_path)


def test_a_limit_ends_one_that_never_takes_an_image(fake: Fake, tmp_path: Path) -> None:
    """While images are being handed over the same limits hold as at the end."""
    program = fake(DEAF + "n=0; while :; do n=$((n+1)); echo frame=$n; echo progress=continue; sleep 0.02; done")
    images = itertools.repeat(bytes(1 << 20))
    with Encoder([program], limit=0.6) as running, pytest.raises(EncodeError, match="had not finished"):
        deque(map(running.write, images), maxlen=0)
    assert all_gone(tmp_path)


def test_no_progress_is_ended_with_its_group(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 51: the same picture again and again is no progress."""
    monkeypatch.setattr(encoder, "NO_PROGRESS", 0.5)
    program = fake(DEAF + "cat > /dev/null; while :; do echo frame=1; echo progress=continue; sleep 0.02; done")
    with Encoder([program]) as running:
        running.write(IMAGE)
        with pytest.raises(EncodeError, match="no progress"):
            running.finish()
    assert all_gone(tmp_path)


def test_time_in_which_nobody_waited_is_not_held_against_it(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 61: eight hours of suspend, or of a slow disk that the images come from, between any two looks."""
    jumps = iter(range(10**9))
    clock = time.monotonic
    monkeypatch.setattr(encoder, "time", SimpleNamespace(monotonic=lambda: clock() + 8 * 3600 * next(jumps)))
    program = fake("for i in 1 2 3 4 5; do sleep 0.1; head -c 2304 > /dev/null; done; cat > /dev/null; sleep 0.5")
    with Encoder([program], limit=60) as running:
        for _ in range(5):
            running.write(IMAGE)
        running.finish()


def test_one_that_was_killed_is_a_fault_of_its_run(fake: Fake) -> None:
    """Row 50: the kernel takes it when memory is short; what it had written counts for nothing."""
    with Encoder([fake("head -c 100 > /dev/null; kill -9 $$")]) as running:
        running.write(IMAGE)
        with pytest.raises(EncodeError, match="killed by signal 9"):
            running.finish()


def test_stop_ends_one_that_hears_nothing(fake: Fake, tmp_path: Path) -> None:
    """Within a moment, its group too."""
    stop = threading.Event()
    program = fake(DEAF + "while :; do sleep 1; done")
    with Encoder([program], stop=stop) as running:
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(Interrupted):
            running.finish()
    assert all_gone(tmp_path)


# --- what the machine has not


def test_what_cannot_be_started_is_a_missing_tool(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 52: gone before it is started, or its interpreter is: with setpriv before it and without."""
    with pytest.raises(MissingToolError, match="ffmpeg cannot be started: No such file or directory"):
        Encoder([str(tmp_path / "ffmpeg")])
    program = Path(fake(""))
    program.write_text("#!/nowhere/interpreter\n")
    for linux in (system.LINUX, False):
        monkeypatch.setattr(system, "LINUX", linux)
        with pytest.raises(MissingToolError, match=r"ffmpeg cannot be started: .*(No such file|not found)"), Encoder([str(program)]) as running:  # noqa: PT012
            running.write(IMAGE)
            running.finish()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN], ids=lambda number: errno.errorcode[number])
def test_a_machine_at_its_limits_is_a_fault_of_the_machine(fake: Fake, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 33: it passes, and does not count against the run."""
    program = fake("")
    system.child_prefix()

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(EnvironmentFault, match=os.strerror(number)):
        Encoder([program])


def test_no_thread_left_is_a_fault_of_the_machine(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 33: the ffmpeg that nobody could feed does not stay."""
    program = fake('echo $$ > "$PIDS"; exec sleep 60')
    begin = threading.Thread.start
    begun: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if begun:
            end = time.monotonic() + 5
            while not (tmp_path / "pids").exists() and time.monotonic() < end:
                time.sleep(0.005)
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(EnvironmentFault, match="no more threads"):
        Encoder([program])
    monkeypatch.undo()
    assert all_gone(tmp_path)
    begun[0].join(5)
    assert not begun[0].is_alive()


# --- asking


@pytest.fixture
def forgetful() -> Iterator[None]:
    encoder.capabilities.cache_clear()
    yield
    encoder.capabilities.cache_clear()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'libx264.so.164: cannot open shared object file' >&2; exit 127", "libx264.so.164: cannot open shared object file"),
        ("exit 3", "it stops with status 3"),
    ],
)
def test_one_that_cannot_answer_is_a_missing_tool(fake: Fake, script: str, reason: str) -> None:
    """Row 52: a library is missing, or it is not what it seems."""
    with pytest.raises(MissingToolError) as missing:
        encoder.capabilities(fake(script))
    assert missing.value.message.endswith(f"ffmpeg cannot be run as ffmpeg: {reason}")


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("content", [None, b"#!/nowhere/interpreter\n", b"\x7fELF" + bytes(60)], ids=["missing", "half there", "of another machine"])
def test_one_that_does_not_run_is_a_missing_tool(fake: Fake, content: bytes | None) -> None:
    """Row 52: and how it was started is nobody's business."""
    program = Path(fake(""))
    program.unlink()
    if content is not None:
        program.write_bytes(content)
        program.chmod(0o755)
    with pytest.raises(MissingToolError, match=r"/ffmpeg cannot be run as ffmpeg: (No such file|not found|Exec format|.*interpreter)"):
        encoder.capabilities(str(program))


@pytest.mark.usefixtures("forgetful")
def test_one_that_does_not_answer_is_not_waited_for(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 51: nor does it stay, or what it has started."""
    monkeypatch.setattr(encoder, "ANSWER", 0.5)
    with pytest.raises(MissingToolError, match="does not answer"):
        encoder.capabilities(fake(DEAF + "wait; sleep 60"))
    assert all_gone(tmp_path)


# --- reading back


def test_one_that_decodes_for_ever_is_not_waited_for(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 51: an earlier output is taken for whole only when it ends where it should."""
    plan = cast("OutputPlan", SimpleNamespace(codec=SimpleNamespace(name="h264", video=True), pictures=3, max_size=None))
    monkeypatch.setattr(verify, "_check_packets", lambda *_, **__: (Fraction(1), (32, 24)))
    program = fake('echo $$ > "$PIDS"; exec cat /dev/zero')
    with pytest.raises(VerifyError, match="decodes to more pictures, 3 were planned"):
        verify.whole_file(tmp_path / "x.mp4", plan, ffmpeg=program, stop=threading.Event())
    assert all_gone(tmp_path)


def test_a_silent_decoder_is_ended_with_its_group(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 51: no picture for too long."""
    monkeypatch.setattr(verify, "SILENCE", 0.5)
    with pytest.raises(VerifyError, match="does not decode"):
        list(verify._decoded(tmp_path / "x.mp4", fake(DEAF + "while :; do sleep 1; done"), threading.Event(), luma=True))
    assert all_gone(tmp_path)


def test_a_reader_of_tags_that_hangs_is_ended_with_its_group(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 51: a file that makes ffmpeg hang has no tags of ours."""
    monkeypatch.setattr(tags, "_READ_SECONDS", 0.5)
    (tmp_path / "x.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    assert tags.read(tmp_path / "x.mp4", ffmpeg=fake(DEAF + "while :; do sleep 1; done")) == {}
    assert all_gone(tmp_path)


def test_a_decoder_that_has_gone_is_a_missing_tool(tmp_path: Path) -> None:
    """Row 52: not a fault of the file that it was to read."""
    missing = str(tmp_path / "ffmpeg")
    with pytest.raises(MissingToolError):
        list(verify._decoded(tmp_path / "x.mp4", missing, threading.Event(), luma=True))
    with pytest.raises(MissingToolError):
        verify.run([missing], threading.Event())
    assert tags.read(tmp_path / "x.mp4", ffmpeg=missing) == {}


# --- orphans

PARENTS = {
    "encoding": "running = encoder.Encoder([program])\nrunning.write(bytes(2304))\nwait()",
    "asking": "threading.Thread(target=wait).start()\nencoder.capabilities(program)",
    "listing": "threading.Thread(target=wait).start()\nverify.run([program], threading.Event())",
    "decoding": "threading.Thread(target=wait).start()\nlist(verify._decoded(Path('x.mp4'), program, threading.Event(), luma=True))",
    "reading tags": "threading.Thread(target=wait).start()\ntags._read_by_ffmpeg(Path('x.mp4'), 'mov', program)",
}


@linux_only
@pytest.mark.parametrize("doing", PARENTS)
def test_kill_9_of_the_daemon_leaves_no_orphan(fake: Fake, tmp_path: Path, doing: str) -> None:
    """Row 49: within a second there is no ffmpeg, one that hears nothing and reads nothing included, whatever it was started for."""
    if not system.child_prefix():
        pytest.skip("no setpriv with --pdeathsig on this machine")
    script = textwrap.dedent(
        """
        import os, sys, threading, time
        from pathlib import Path
        from stepwatch import encoder, tags, verify
        program, pids = sys.argv[1:]
        def wait():
            while not os.path.exists(pids) or not Path(pids).read_text().endswith("\\n"):
                time.sleep(0.005)
            print("now", flush=True)
            time.sleep(60)
        """
    )
    program = fake('trap "" TERM INT HUP; echo $$ > "$PIDS"; exec sleep 60')
    command = [sys.executable, "-c", script + PARENTS[doing], program, str(tmp_path / "pids")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as daemon:
        try:
            assert daemon.stdout
            assert daemon.stdout.readline() == b"now\n"
            assert not all_gone(tmp_path, 0)
            daemon.send_signal(signal.SIGKILL)
            daemon.wait(5)
            assert all_gone(tmp_path, 1)
        finally:
            daemon.kill()


@linux_only
def test_the_real_ffmpeg_does_not_outlive_the_daemon_that_fed_it(tmp_path: Path, ffmpeg: str) -> None:
    """Row 49: it is gone within a second, whatever it makes of the end of its pipe in that time; nobody publishes that."""
    if not system.child_prefix():
        pytest.skip("no setpriv with --pdeathsig on this machine")
    script = textwrap.dedent(
        """
        import sys, threading
        from stepwatch.encoder import Encoder
        seen = threading.Event()
        running = Encoder(sys.argv[1:], on_progress=lambda made, speed: seen.set())
        for number in range(10):
            running.write(bytes([number]) * 2304)
        seen.wait(20)
        print(running._process.pid, flush=True)
        sys.stdin.read()
        """
    )
    target = tmp_path / "x.mp4"
    argv = [ffmpeg, "-v", "error", "-progress", "pipe:1", "-stats_period", "0.05", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "32x24"]
    argv += ["-i", "pipe:0", "-c:v", "mpeg4", str(target)]
    command = [sys.executable, "-c", script, *argv]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as daemon:
        assert daemon.stdout
        (tmp_path / "pids").write_bytes(daemon.stdout.readline())
        assert not all_gone(tmp_path, 0)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait(5)
        assert all_gone(tmp_path, 1)


def test_the_command_that_people_see_is_ffmpegs_own(fake: Fake) -> None:
    """What keeps it from outliving us is no part of the command that people see."""
    program = fake("cat > /dev/null")
    with Encoder([program, "-i", "pipe:0"]) as running:
        assert running.argv == (program, "-i", "pipe:0")
        running.write(IMAGE)
        running.finish()
