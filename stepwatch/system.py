"""The one seam for what only some systems have: locks that die with their holder, processes and their threads, mounts, systemd.

Each function has an answer everywhere: where a system cannot do a thing, it says "unknown" or does the next best. `LINUX`, `_fcntl` and
`_msvcrt` decide which way is gone, and a test takes them away. Three of the ways want a word:

* A watched folder is locked by flock on the folder itself, and not on a file in it: a file can be deleted, and a second one locked.
* A run is locked by one byte of one file, with a lock that belongs to the open file and not to the process, so that two threads exclude one
  another like two processes do. Where there are no such locks, 256 files have to do, and two runs may have to share one.
* A child that shall not outlive us is started through ``setpriv --pdeathsig``. The signal comes when the *thread* that started it ends, so
  a thread that starts one has to stay until it is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import errno
import functools
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from stepwatch.core.lifecycle import WriterState
from stepwatch.core.model import RunKey, Writer
from stepwatch.core.naming import printable
from stepwatch.errors import BusyError, EnvironmentFault, Interrupted, MissingToolError


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


LINUX = sys.platform == "linux"
_fcntl = _imported("fcntl")
_msvcrt = _imported("msvcrt")

OWN_FOLDER = ".stepwatch"
"""In a watched folder, for what stepwatch keeps there: the trash, and who watches."""

STARTER = "stepwatch-start"
PASSES_DESCRIPTORS = os.name == "posix"
"""Whether a program can be given more open pipes than its three streams, and many pipes be read by one thread."""
_DEATH = ("--pdeathsig", "KILL", "--")
_HOLDER = "daemon.json"
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.ENOTTY})
_HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})
_FIRST_SECOND = 1.5e9
"""No writer's start in seconds of the epoch is less; one in ticks is only when the machine has been up for half a year."""
_LOOK_AGAIN = 0.05
"""Seconds between two tries to lock a run; a lock that waits by itself would not hear that it is to stop."""
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "coda", "lustre", "glusterfs", "ncpfs", "ocfs2", "gfs2", "orangefs", "beegfs"}
    | {"overlay", "aufs", "ecryptfs", "virtiofs", "vboxsf", "prl_fs", "vmhgfs", "drvfs", "fuse"}
)
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30, "ppc64le": 273, "s390x": 282, "i686": 289, "armv7l": 314}
"""Number of the system call, which the C library does not wrap."""


# --- processes ------------------------------------------------------------------------------------------------------------------------


def boot_id() -> str:
    """Which start of this machine we live in; empty where nobody says."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() if LINUX else ""
    except (OSError, ValueError):
        return ""


def process_start(pid: int) -> float | None:
    """When a living process was started, in clock ticks since the machine was; None when it has ended, or nobody says."""
    found = _process(pid)
    return found[1] if found and not found[0] else None


def _process(pid: int) -> tuple[bool, float] | None:
    """Whether a process has ended and only waits to be noticed, and its start."""
    try:
        # The name in brackets may hold anything, brackets too.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split() if LINUX else []
        return fields[0] in (b"Z", b"X", b"x"), float(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def writer_state(writer: Writer) -> WriterState:
    """Whether the process that writes a run still lives; unknown unless everything about it is told, and it is one of this machine."""
    if not writer.host or not writer.boot_id or writer.pid is None or writer.start_time is None or not 0 < writer.pid < 2**31:
        return WriterState.UNKNOWN
    here, boot = socket.gethostname().casefold(), boot_id()
    if writer.host.casefold() != here or not boot:
        return WriterState.UNKNOWN
    if writer.boot_id != boot:
        # The machine has been started anew since. But half of the world's machines are called localhost.
        return WriterState.UNKNOWN if here.startswith("localhost") else WriterState.DEAD
    found = _process(writer.pid)
    if found is None:
        return WriterState.UNKNOWN if _answers(writer.pid) else WriterState.DEAD
    ended, ticks = found
    return WriterState.DEAD if ended else _same_process(ticks, writer.start_time)


def _answers(pid: int) -> bool:
    """Whether there is a process of this number; True as well when that cannot be told."""
    if os.name == "nt":
        return True  # There, signal 0 is Ctrl-C.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _same_process(ticks: float, told: float) -> WriterState:
    """Hold the start of a living process against what the writer said of its own: in ticks since the machine's start, or in seconds of the epoch."""
    second = os.sysconf("SC_CLK_TCK")
    awake = time.clock_gettime(time.CLOCK_BOOTTIME)
    boot = time.time() - awake
    started = boot + ticks / second
    if told == ticks or abs(told - started) <= 2:
        return WriterState.ALIVE
    if told <= min(awake * second, _FIRST_SECOND) or boot - 2 <= told < started:
        return WriterState.DEAD  # Its number has been given to another process.
    # It says that it began before the machine, or after a process that has its number: somebody has set the clock.
    return WriterState.UNKNOWN


def child_prefix() -> tuple[str, ...]:
    """What to put before a command so that it dies with the thread that starts it; nothing where that cannot be.

    What cannot be run then says so on stderr, in a line that begins with `STARTER`.
    """
    found = shutil.which("setpriv") if LINUX else None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # Not remembered: the next one may have more room.
        if found and _knows_death(found):
            # A parent that dies before setpriv has asked for the signal sends none; the shell sees that it has another parent by then.
            return (found, *_DEATH, "/bin/sh", "-c", f'[ "$PPID" = {os.getpid()} ] && exec "$@"', STARTER)
    return ()


@functools.lru_cache(maxsize=4)
def _knows_death(setpriv: str) -> bool:
    """Whether a setpriv can do what is wanted of it: that of BusyBox cannot."""
    command = [setpriv, *_DEATH, setpriv, "--version"]
    return not subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False).returncode


WIDE = 1 << 20
"""Bytes; the most that anybody may ask for on Linux."""


def start(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
    pass_fds: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program that does not outlive this thread, out of the terminal's reach, as the head of its own group.

    It also gets the descriptors *pass_fds*, under their numbers; only where `PASSES_DESCRIPTORS`.

    Raises MissingToolError when there is no such program or it is made for another machine, EnvironmentFault when this one has no room for it.
    """
    program = shutil.which(argv[0])
    if program is None:
        reason = "Permission denied" if os.path.exists(argv[0]) else "No such file or directory"
        raise _not_started(argv[0], reason)
    try:
        prefix = child_prefix() if _ours(program) else ()
        # Ctrl-C in the terminal is for stepwatch; it stops its children in its own way.
        return subprocess.Popen(
            [*prefix, *argv], stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True, pass_fds=tuple(pass_fds)
        )
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _EXHAUSTED:
            raise EnvironmentFault(
                f"{printable(argv[0])} cannot be started: {reason}",
                hint="raise the limits on open files, processes or memory, or lower daemon.workers",
            ) from error
        raise _not_started(argv[0], reason) from error


def _not_started(program: str, reason: str) -> MissingToolError:
    return MissingToolError(f"{printable(program)} cannot be started: {reason}", hint="run `stepwatch doctor`")


def _ours(program: str) -> bool:
    """Whether the kernel would run a program as it would run this Python.

    Anything else would end in a shell, which takes a binary for another machine for a script; the kernel itself says what it is.
    """
    with contextlib.suppress(OSError), open(program, "rb") as file:
        head = file.read(20)
        if head.startswith(b"#!"):
            return True
        with open("/proc/self/exe", "rb") as own:
            mine = own.read(20)
        return (head[:6], head[18:20]) == (mine[:6], mine[18:20])
    return False


def widen(pipe: int) -> None:
    """Let a pipe take a whole image at a time, where it can: who writes and who reads are then woken for each, and not for each part of it."""
    with contextlib.suppress(OSError, AttributeError, ImportError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, WIDE)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process made by `start` and all that it has started, without a chance to say good-bye; harmless when it has ended."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def background_thread(nice: int) -> None:
    """Let the calling thread, and every process that it starts, give way to all others; *nice* from 0 (no change) to 19. Never raises."""
    if not LINUX or nice <= 0:
        return  # Elsewhere a thread has no niceness of its own, and the whole process is not ours to slow down.
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
    with contextlib.suppress(OSError, AttributeError, KeyError):
        number = _IOPRIO_SET[os.uname().machine]
        library = ctypes.CDLL(None, use_errno=True)
        for priority in (3 << 13, 2 << 13 | 7):  # idle; where that is not allowed the last of the ordinary ones
            if library.syscall(ctypes.c_long(number), 1, 0, priority) == 0:
                break


# --- files and their systems -----------------------------------------------------------------------------------------------------------


def open_for_writing(path: Path) -> bool | None:
    """Whether some process has a file open for writing; None when that cannot be told.

    The kernel grants a read lease on a file only while nobody has it open for writing. It goes back at once, so a writer that comes meanwhile
    waits for no more than a moment.
    """
    if not LINUX or _fcntl is None or not hasattr(_fcntl, "F_SETLEASE"):
        return None
    # Who opens the file during that moment has us sent a signal. The usual one would end this process; this one, unless caught, does nothing.
    if signal.getsignal(signal.SIGURG) not in (signal.SIG_DFL, signal.SIG_IGN):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        _fcntl.fcntl(descriptor, _fcntl.F_SETSIG, signal.SIGURG)
        _fcntl.fcntl(descriptor, _fcntl.F_SETLEASE, _fcntl.F_RDLCK)
        _fcntl.fcntl(descriptor, _fcntl.F_SETLEASE, _fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(descriptor)
    return False


def file_system(path: Path) -> str:
    """The kind of file system that *path* lies on, as the kernel calls it (``ext4``, ``nfs4``, ``fuse.sshfs``); empty when nobody says."""
    if not LINUX:
        return ""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        # By the mount's number, not by the longest name: a mount may hide another one.
        facts = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines())
        mount = facts["mnt_id"].strip().encode()
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            before, _, after = line.partition(b" - ")
            if before.split(b" ", 1)[0] == mount:
                return os.fsdecode(after.split(b" ", 1)[0])
    except (OSError, KeyError, ValueError):
        pass
    finally:
        os.close(descriptor)
    return ""


def is_remote(kind: str) -> bool:
    """Whether files on this kind of file system change without the kernel's telling us: on other machines, or behind a layer's back."""
    return kind in _REMOTE or kind.startswith("fuse.")


def fsync_folder(path: Path) -> bool:
    """Bring the names in a folder to the disk. False when this system cannot, or may not: then they are there, but who knows for how long.

    Raises OSError when the disk has a fault.
    """
    if os.name == "nt":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return False  # A folder that one may enter and change, but not list.
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


# --- locks ----------------------------------------------------------------------------------------------------------------------------


def _lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, by whatever closes it; False when it is locked. OSError where that cannot be."""
    try:
        if _fcntl is not None:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        elif _msvcrt is not None:
            _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
        else:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


class _Own:
    """The folder ``.stepwatch`` in a watched folder; what it opens never leads out of it through a link."""

    def __init__(self, folder: Path, *, create: bool) -> None:
        path = folder / OWN_FOLDER
        self.made = False
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
                self.made = True
        self._base = ""
        self._folder: int | None = None
        if os.open in os.supports_dir_fd:
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        else:
            self._base = f"{path}{os.sep}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            os.close(self._folder)

    def open(self, name: str, flags: int) -> int:
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        return os.open(self._base + name, flags, 0o644, dir_fd=self._folder)

    def replace(self, name: str, other: str) -> None:
        os.replace(self._base + name, self._base + other, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def remove(self, name: str) -> None:
        os.unlink(self._base + name, dir_fd=self._folder)


_PROBED = 3
_held: dict[str, FolderLock] = {}
"""The locks of this process, by real path."""


class FolderLock:
    """A watched folder that no other daemon watches, from `acquire` to `release` or to the end of this process, whatever ends it.

    On a network share it keeps out the daemons of this machine only.
    """

    def __init__(self, folder: Path, descriptor: int, identity: tuple[int, int]) -> None:
        self.folder = folder
        self._descriptor: int | None = descriptor
        self._identity = identity
        self._made = False

    @classmethod
    def acquire(cls, folder: Path) -> Self:
        """Lock *folder*. Raises BusyError, which says who has it, and EnvironmentFault when it is not there or cannot be locked."""
        try:
            facts = os.stat(folder)
            descriptor = _open_lock(folder)
            for _ in range(_PROBED):
                if descriptor is not None:
                    break
                # Somebody may only be asking whether it is held.
                time.sleep(0.05)
                descriptor = _open_lock(folder)
        except OSError as error:
            raise EnvironmentFault(f"{printable(str(folder))} cannot be locked: {error.strerror or error}") from error
        if descriptor is None:
            raise BusyError(
                f"{printable(str(folder))} is watched by {_holder(folder)}",
                hint="one daemon watches a folder; `stepwatch status` asks it how it goes",
            )
        locked = os.fstat(descriptor)
        if stat.S_ISDIR(locked.st_mode):
            facts = locked  # Whatever the path leads to by now.
        for above in Path(os.path.realpath(folder)).parents:
            other = held_by_other(str(above))
            if other is not None:
                os.close(descriptor)
                raise BusyError(
                    f"{printable(str(folder))} lies in {printable(str(above))}, which is watched by {other}",
                    hint="one daemon watches a tree; list both folders under `watch` of one service file",
                )
        lock = cls(folder, descriptor, (facts.st_dev, facts.st_ino))
        _held[os.path.realpath(folder)] = lock
        lock._tell()
        return lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def still_same(self) -> bool:
        """Whether the path still leads to the folder that was locked: not renamed, not replaced, not unmounted, nothing mounted over it."""
        try:
            facts = os.stat(self.folder)
        except OSError:
            return False
        return self._descriptor is not None and (facts.st_dev, facts.st_ino) == self._identity

    def release(self) -> None:
        """Let others have the folder; harmless when that has been done."""
        if self._descriptor is None:
            return
        if self.still_same():
            with contextlib.suppress(OSError):
                with _Own(self.folder, create=False) as own:
                    own.remove(_HOLDER)
                if self._made:
                    os.rmdir(self.folder / OWN_FOLDER)  # Only while nothing is in it.
        for path in [path for path, lock in _held.items() if lock is self]:
            del _held[path]
        os.close(self._descriptor)
        self._descriptor = None

    def _tell(self) -> None:
        """Write down who has the folder, for those who come too late; a folder that nobody may write into keeps no secret that matters."""
        now = dt.datetime.now(dt.UTC)
        facts = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "boot_id": boot_id() or None,
            "start_time": process_start(os.getpid()),
            "since": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        # Always the same name: whoever holds the lock is alone, and clears away what one that was killed has left.
        temporary = f".{_HOLDER}.tmp"
        with contextlib.suppress(OSError), _Own(self.folder, create=True) as own:
            self._made = own.made
            with contextlib.suppress(FileNotFoundError):
                own.remove(temporary)
            try:
                with os.fdopen(own.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="ascii") as file:
                    json.dump(facts, file)
                own.replace(temporary, _HOLDER)
            except OSError:
                own.remove(temporary)


def _open_lock(folder: Path) -> int | None:
    """Open and lock a folder; None when another has it."""
    if _fcntl is not None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _lock(descriptor):
                return descriptor
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise
    # No system lets go of this file while somebody has it open, or it is never removed: either way it is the same for all.
    with _Own(folder, create=True) as own:
        descriptor = own.open("daemon.lock", os.O_RDWR | os.O_CREAT)
    try:
        locked = _lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    if not locked:
        os.close(descriptor)
    return descriptor if locked else None


def held_by_other(folder: str) -> str | None:
    """Who else on this machine watches exactly this folder, in words for people; None when nobody does, or this process itself."""
    # Nearly always there is none, and that must cost next to nothing: it is asked of every folder in every scan.
    if not os.path.lexists(f"{folder}/{OWN_FOLDER}/{_HOLDER}") or _held.get(os.path.realpath(folder)):
        return None
    try:
        descriptor = _open_lock(Path(folder))
    except OSError:
        return None
    if descriptor is None:
        return _holder(Path(folder))
    os.close(descriptor)
    return None


def _holder(folder: Path) -> str:
    """Who watches a folder, by its own word, in words for people."""
    facts: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError), _Own(folder, create=False) as own:
        descriptor = own.open(_HOLDER, os.O_RDONLY)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                facts = json.loads(os.read(descriptor, 4096))
        finally:
            os.close(descriptor)
    match facts:
        case {
            "pid": int(pid),
            "host": str(host),
            "since": str(since),
            "boot_id": (str() | None) as boot,
            "start_time": (float() | None) as began,
        }:
            # Whoever has the lock now may not have had the time to say so, and what stands there is an earlier one's word.
            if writer_state(Writer(host=host, boot_id=boot, pid=pid, start_time=began)) is not WriterState.DEAD:
                return f"another stepwatch: process {pid} on {printable(host[:80])}, since {printable(since[:40])}"
    return "another stepwatch, which does not say who it is"


@contextlib.contextmanager
def run_lock(state_dir: Path, key: RunKey, *, wait: bool, stop: threading.Event, on_wait: Callable[[], None]) -> Iterator[None]:
    """Be the only one, of all threads and processes with this *state_dir*, that visits a run.

    Calls *on_wait* once when another does. Raises BusyError at once unless *wait*, Interrupted when *stop* is set meanwhile.
    """
    waited = False
    while (descriptor := _lock_run(state_dir, key)) is None:
        if not wait:
            raise BusyError(f"{printable(str(key))} is being visited by another stepwatch", hint="try again later, or leave out --no-wait")
        if not waited:
            on_wait()
            waited = True
        if stop.wait(_LOOK_AGAIN):
            raise Interrupted("stopped by the user")
    try:
        yield
    finally:
        os.close(descriptor)


def _lock_run(state_dir: Path, key: RunKey) -> int | None:
    digest = hashlib.sha256(f"{key.folder}\0{key.group}".encode("utf-8", "surrogateescape")).digest()
    number = int.from_bytes(digest[:8], "big") >> 2  # The last byte of the largest file is not lockable everywhere.
    try:
        if LINUX and hasattr(_fcntl, "F_OFD_SETLK"):
            wanted = struct.pack("hhqqi4x", _fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
            try:
                return _lock_file(state_dir / "visits.lock", lambda descriptor: _lock_byte(descriptor, wanted))
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        return _lock_file(state_dir / "visits" / f"{number % 256:02x}.lock", _lock)
    except OSError as error:
        raise EnvironmentFault(
            f"runs cannot be locked in {printable(str(state_dir))}: {error.strerror or error}", hint="that folder must be writable for stepwatch"
        ) from error


def _lock_byte(descriptor: int, wanted: bytes) -> bool:
    try:
        _fcntl.fcntl(descriptor, _fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _lock_file(path: Path, lock: Callable[[int], bool]) -> int | None:
    """Open a file that is there for its lock alone, and lock it; None when another has it."""
    os.makedirs(path.parent, mode=0o700, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            if not lock(descriptor):
                os.close(descriptor)
                return None
            # Somebody who tidies up may have deleted it between the two; the lock of a deleted file keeps nobody out.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def give_back_memory() -> None:
    """Have the C library return to the system what it keeps of memory that is no longer used: after much has been read once, a few megabytes."""
    if LINUX:
        # glibc's own; musl has nothing of the kind, and does not need to be asked.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


# --- systemd, and the places that systems keep for programs ------------------------------------------------------------------------------


def notify(state: str) -> bool:
    """Tell systemd how we are (``READY=1``, ``STATUS=...``); False when nobody asked or nobody listens. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    # A leading @ stands for a zero byte: a name that is no file.
    place: bytes = os.fsencode(address)
    place = b"\0" + place[1:] if address.startswith("@") else place
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(1)
            connection.connect(place)
            connection.sendall(state.encode("utf-8", "replace"))
    except OSError:
        return False
    return True


def state_dir() -> Path:
    """Where receipts and locks are kept: what systemd gives a service, else the user's own place for such things. It may not be there yet."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_state_path("stepwatch", appauthor=False))


def runtime_dir() -> Path:
    """Where the status socket is, as long as the daemon lives; `state_dir` where the system has no place for that. It may not be there yet."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(session) / "stepwatch" if os.path.isabs(session) and os.path.isdir(session) else state_dir()
