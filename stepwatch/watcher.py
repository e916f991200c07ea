"""Where in a watched folder something has changed: file events and scans, boiled down to "look at these folders".

Three parts. `_Events` holds watchdog and its threads; what they tell is a hint, and no more: it marks a folder and wakes the caller. `_Tree`
remembers one small digest for each folder and compares; only what a scan has seen is ever reported. `_Place` tells whether the path still leads
to the folder it led to, by device, inode and a random id in ``.stepwatch/id``; while it does not, nothing is read, written or concluded.

Events can be missing in many ways, most of them silent: a network file system, a full queue, a used-up limit, a dead thread, a folder that was
renamed and made again. So `Watcher.collect` keeps asking. A cookie file is written now and then, and its event must come back. The kernel's own
list of watches is held against the folders that the scan knows. Where anything is in doubt the folder is polled, and a full scan runs every so
often in any case. All of this happens in the caller's thread and on the caller's clock.

A large tree keeps nobody waiting. Its watches are set by a thread of their own, and only then is it scanned: what happens in between is in one or
the other. The scan is made in slices, and what events have marked comes before the next of them. And while events are heard, a rescan mostly just
glances at a folder: names cannot come or go in it without its own times changing. Files that are rewritten in place, which would show nowhere else,
are looked at in turns.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import math
import os
import random
import re
import stat
import struct
import sys
import threading
import time
import uuid
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from stepwatch.core.naming import is_frame_name, printable
from stepwatch.core.plan import plural
from stepwatch.system import OWN_FOLDER, file_system, is_remote

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent
    from watchdog.observers.api import BaseObserver

TOLD_FILES = frozenset({"run.json", "stepwatch.yaml"})
"""Files beside the frames that change what is to be done with a run."""

COOKIE_INTERVAL = 30.0
COOKIE_LIMIT = 5.0
"""Seconds in which the event of a cookie must have come back."""
ASLEEP_INTERVAL = 3.0
SETTLING = 2.0
"""Seconds that watchdog gets to watch a new folder before its watch is missed."""
SHORTEST_POLL = 2.0
COST_FACTOR = 20
"""Polling may take at most one part in so many of the time."""
FIRST_REVIVAL = 5.0
"""Seconds between two starts of watchdog, doubled each time unless it lived for long."""
LONGEST_REVIVAL = 3600.0
OVERFLOWS_BORNE = 5
"""Overflows within a minute; with more than 16384 folders watchdog's own recovery from one fills the queue again."""
MARKS_LIMIT = 10_000
"""Marked folders beyond which a full scan costs less than remembering them."""
PROBLEMS_SHOWN = 5
TURNS = 12
"""Rescans after which every folder has been listed, and not just glanced at."""
YOUNG = 2_000_000_000
"""Nanoseconds since a folder's last change in which another one may leave it with the same time: some file systems count in steps of two seconds."""
KEEPING_TIMES = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs"})
"""File systems whose folders are known to tell when something comes or goes in them, whoever does it."""
BEGINNING = 0.25
"""Seconds between two questions whether all watches are set."""

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_ANEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | getattr(os, "O_CLOEXEC", 0)
_GONE = (errno.ENOENT, errno.ENOTDIR)
_DENIED = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one collect has found."""

    folders: frozenset[Path] = frozenset()
    """Folders that are new or whose content is not what it was, by their real paths."""
    gone: frozenset[Path] = frozenset()
    """Folders that were there, while the watched folder still is."""
    full: bool = False
    """Everything was scanned, nothing left out."""
    urgent: frozenset[Path] = field(default=frozenset(), compare=False)
    """Those of the folders that an event, or the caller, has named: somebody may wait for them, while a scan just comes by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How well a folder is being watched."""

    state: Literal["watching", "polling", "asleep"]
    reason: str
    """Why it is polled or asleep, in plain words; empty when all is well."""
    kind: str
    """File system, as the kernel calls it; empty when unknown."""
    folders: int
    watches: int
    """Of the kernel, when last counted: hidden and left-out folders have theirs too."""
    events: int
    recrawls: int
    """Full scans that were needed because events had been lost."""
    restarts: int
    """How often watchdog had to be started again."""
    problems: tuple[str, ...] = ()
    """Folders that cannot be listed: a few of them, with the reason."""
    ahead: int | None = None
    """Folders that the first scan has found and not been in yet; None when that is over."""


# ---------------------------------------------------------------- the tree


class _Seen(NamedTuple):
    digest: int
    inode: int
    below: tuple[str, ...]
    """Names of the folders in it."""
    own: int | None = None
    """What itself, sidecar and policy told of it; None when that is not enough to know that nothing has come or gone."""
    told: tuple[str, ...] = ()
    """Which of those two there are."""


@dataclass(slots=True)
class _Scan:
    changed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    truthful: bool = True
    vanished: dict[str, set[str]] = field(default_factory=dict)
    """Names that are no longer to be found, by their parent's path; they are gone when the scan ends, and nothing has cast doubt on it."""


@dataclass(slots=True)
class _Sweep:
    """A full scan that is under way."""

    waiting: dict[str, int]
    """Folders that it has still to look at, with their inodes; the last one is next."""
    begun: float
    fresh: set[str] = field(default_factory=set)
    """Those of them that were made while it was under way."""
    found: _Scan = field(default_factory=_Scan)
    urgent: set[str] = field(default_factory=set)
    """What has been found in those."""
    glancing: int | None = None
    """Which twelfth of the folders is listed, while a glance does for the others; None: all are."""
    cost: float = 0.0

    def put(self, path: str, inode: int, *, fresh: bool) -> None:
        """Have a folder looked at next."""
        self.waiting.pop(path, None)
        self.waiting[path] = inode
        if fresh:
            self.fresh.add(path)


class _Tree:
    """What was last seen of each folder, and the scan that compares.

    A folder counts as changed when its digest does: 64 bits over the names, sizes, times and inodes of its files, the same in every process. Should
    two contents ever share one, the next file that is written tells them apart.
    """

    def __init__(self, exclude: Callable[[str], bool], recognise: Callable[[str, int], bool]) -> None:
        self.known: dict[str, _Seen] = {}
        self.problems: dict[str, str] = {}
        """Folders that cannot be listed, and why."""
        self.again: dict[str, bool] = {}
        """What a scan could not find out; True: with all below."""
        self.device = -1
        """Of the watched folder; nothing is concluded from the times of folders on another one."""
        self._told: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._exclude = exclude
        self._recognise = recognise

    def scan(self, marks: Iterable[tuple[str, int, bool]], *, sweep: _Sweep | None = None) -> _Scan:
        """Look at folders, each given with its inode, with all that lies below where that is asked for or where it is new.

        A folder that is closed to us keeps what was known of it, and so do all below it. Any other failure to list one (no descriptors left, a
        disk or server that fails) casts doubt on the whole scan: nothing is gone by its word. While a *sweep* is under way, what lies below is
        left to it.
        """
        result = _Scan()
        visited: set[str] = set()
        waiting = list(marks)
        while waiting:
            path, inode, deep = waiting.pop()
            if path in visited:
                continue
            visited.add(path)
            before = self.known.get(path)
            for child, number in self._visit(path, inode, result, deep=deep).items():
                known = self.known.get(child)
                if not deep and known is not None and known.inode == number:
                    continue
                if sweep is None:
                    waiting.append((child, number, True))
                else:
                    is_new = path not in sweep.waiting if before is None else os.path.basename(child) not in before.below
                    sweep.put(child, number, fresh=is_new)
        self._bury(result)
        return result

    def go_on(self, sweep: _Sweep, pause: Callable[[], bool]) -> bool:
        """Go on with a scan of everything until *pause* says so, after one folder at the earliest; tell whether that was the last one."""
        while sweep.waiting:
            path, inode = sweep.waiting.popitem()
            below = self._glance(path, inode, sweep.glancing) if sweep.glancing is not None else None
            if below is None:
                below = self._visit(path, inode, sweep.found, deep=True)
            sweep.waiting.update(below)
            if path in sweep.fresh:
                sweep.fresh.remove(path)
                sweep.fresh.update(below)
                sweep.urgent.update({path} & sweep.found.changed)
            if pause() and sweep.waiting:
                return False
        self._bury(sweep.found)
        return True

    def _glance(self, path: str, inode: int, turn: int) -> dict[str, int] | None:
        """Return the folders in one where nothing has come or gone, as far as it tells itself; None when it is to be listed."""
        seen = self.known.get(path)
        if seen is None or seen.own is None or seen.inode != inode or hash(path) % TURNS == turn:
            return None
        try:
            own = _own(os.lstat(path), (_facts_of(name, os.lstat(os.path.join(path, name))) for name in seen.told))
        except OSError:
            return None
        below = {}
        for name in seen.below:
            child = os.path.join(path, name)
            if child not in self.known:
                return None
            below[child] = self.known[child].inode
        return below if own == seen.own else None

    def _visit(self, path: str, inode: int, result: _Scan, *, deep: bool) -> dict[str, int]:
        """Look at one folder, and return those in it, by path, with their inodes."""
        before = self.known.get(path)
        try:
            digest, below, own, told = self._list(path, before, deep=deep)
        except OSError as error:
            above, name = os.path.split(path)
            if error.errno in _GONE and above in self.known:
                result.vanished.setdefault(above, set()).add(name)
                return {}
            # The watched folder itself included: whether that is gone is not for a scan to say.
            self.problems[path] = f"{printable(path)}: {_reason(error)}"
            if error.errno not in _DENIED:
                result.truthful = False
                self.again[path] = deep
            return {}
        self.problems.pop(path, None)
        if not self._recognise(path, digest) if before is None else before.digest != digest:
            result.changed.add(path)
        if before is not None and (missing := {name for name in before.below if name not in below}):
            result.vanished.setdefault(path, set()).update(missing)
        self.known[path] = _Seen(digest, inode, tuple(below), own, self._told.setdefault(told, told))
        return {os.path.join(path, name): number for name, number in below.items()}

    def _list(self, path: str, before: _Seen | None, *, deep: bool) -> tuple[int, dict[str, int], int | None, tuple[str, ...]]:
        """Return the digest of a folder, the folders in it with their inodes, and what `_Seen` calls ``own`` and ``told``."""
        accepted = frozenset(before.below) if before is not None and not deep else frozenset()
        files: list[bytes] = []
        told: dict[str, bytes] = {}
        below: dict[str, int] = {}
        # Before it is listed: what comes meanwhile makes it another one.
        itself = os.lstat(path)
        telling = itself.st_dev == self.device and time.time_ns() - max(itself.st_mtime_ns, itself.st_ctime_ns) > YOUNG
        with os.scandir(path) as listing:
            for entry in listing:
                name = entry.name
                if name.startswith("."):
                    continue
                is_told = name in TOLD_FILES
                counts = is_told or is_frame_name(name)
                if _is_folder(entry):
                    if counts:
                        files.append(_fields(name, entry.inode() & 0x7FFF_FFFF_FFFF_FFFF))
                    if name in accepted or not self._exclude(os.path.join(path, name)):
                        below[name] = entry.inode()
                    else:
                        # That may change without a trace.
                        telling = False
                elif counts:
                    fields = _facts(entry)
                    files.append(fields)
                    if is_told:
                        told[name] = fields
                    if telling and entry.is_symlink():
                        telling = False
        files.sort()
        digest = int.from_bytes(hashlib.blake2b(b"".join(files), digest_size=8).digest(), "big")
        return digest, below, _own(itself, told.values()) if telling else None, tuple(told)

    def _bury(self, result: _Scan) -> None:
        """Forget the folders that went away; after a doubtful scan keep them, to be looked for again."""
        for parent, names in result.vanished.items():
            above = self.known.get(parent)
            if result.truthful:
                # Another scan may have found it again since.
                back = {name for name in names.intersection(above.below if above else ()) if not _is_gone(os.path.join(parent, name))}
                self.again.update((os.path.join(parent, name), True) for name in back)
                lost = names - back
                if above is not None:
                    self.known[parent] = above._replace(below=tuple(name for name in above.below if name not in lost))
                for name in lost:
                    result.gone.update(self._forget(os.path.join(parent, name)))
            elif above is not None:
                self.again.setdefault(parent, False)
                others = (name for name in above.below if name not in names)
                kept = (name for name in names if os.path.join(parent, name) in self.known)
                self.known[parent] = above._replace(below=(*others, *kept))

    def _forget(self, path: str) -> Iterator[str]:
        waiting = [path]
        while waiting:
            place = waiting.pop()
            self.problems.pop(place, None)
            seen = self.known.pop(place, None)
            if seen is not None:
                yield place
                waiting.extend(os.path.join(place, name) for name in seen.below)

    def forget_all(self) -> set[str]:
        """Start anew, and name all that was known."""
        everything = set(self.known)
        self.known.clear()
        self.problems.clear()
        self.again.clear()
        return everything

    def nearest(self, path: str, top: str) -> str | None:
        """Return the deepest known folder on the way to *path* from which a scan can find it; None when it is hidden, left out or elsewhere."""
        if path in self.known:
            return path
        if path != top and not path.startswith(os.path.join(top, "")):
            return None
        place = top
        for part in os.path.relpath(path, top).split(os.sep):
            below = os.path.join(place, part)
            if below in self.known:
                place = below
                continue
            return None if part.startswith(".") or self._exclude(below) else place
        return place

    def has_way(self, place: str, path: str) -> bool:
        """Whether a scan that starts at *place* would come to the folder *path* below it."""
        at = place
        for part in os.path.relpath(path, place).split(os.sep):
            at = os.path.join(at, part)
            try:
                if part.startswith(".") or not stat.S_ISDIR(os.lstat(at).st_mode) or self._exclude(at):
                    return False
            except OSError:
                return False
        return True


def _inode_at(path: str) -> int:
    """The inode of what lies there; 0 when that cannot be told."""
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0


def _is_gone(path: str) -> bool:
    """Whether there is surely nothing under this name."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno in _GONE
    return False


def _fields(name: str, *numbers: int) -> bytes:
    """A name and what is known of it, so that no two of them written one behind the other can pass for others."""
    shape = _FOUR if len(numbers) == 4 else struct.Struct(f"<xB{len(numbers)}q")
    return name.encode("utf-8", "surrogateescape") + shape.pack(len(numbers), *numbers)


_FOUR = struct.Struct("<xB4q")


def _inode(facts: os.stat_result) -> int:
    # Some file systems use all 64 bits.
    return facts.st_ino & 0x7FFF_FFFF_FFFF_FFFF


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _own(itself: os.stat_result, told: Iterable[bytes]) -> int:
    """What a folder and the files in it that speak of it tell; means something in this process only."""
    return hash((itself.st_dev, itself.st_ino, itself.st_mtime_ns, itself.st_ctime_ns, *told))


def _facts_of(name: str, facts: os.stat_result) -> bytes:
    return _fields(name, _inode(facts), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _facts(entry: os.DirEntry[str]) -> bytes:
    """Everything about a file that a rewrite of it changes; the change time cannot be set back."""
    try:
        facts = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(facts.st_mode):
            with contextlib.suppress(OSError):
                target = os.stat(entry.path)
                return _fields(entry.name, _inode(facts), _inode(target), target.st_size, target.st_mtime_ns, target.st_ctime_ns)
    except OSError as error:
        # Gone again, or in a folder that may be listed and no more. Anything else is said of the folder.
        if error.errno not in (*_GONE, *_DENIED):
            raise
        return _fields(entry.name)
    return _facts_of(entry.name, facts)


# ---------------------------------------------------------------- the place


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What a path led to when somebody looked."""

    device: int
    inode: int
    token: str
    """Random id, kept in the folder itself; empty when there is none."""
    empty: bool
    """Nothing but hidden files in it."""
    mounted: bool = False
    """Another device than the folder around it."""


class _Verdict(Enum):
    SAME = "same"
    AGAIN = "again"
    """The folder is to be watched, but as if for the first time: the watches are on something else."""
    ELSEWHERE = "elsewhere"


def _judge(before: _Place, now: _Place, *, had_folders: bool) -> _Verdict:
    """Tell whether a path still leads to the folder that was watched.

    Unmounting leaves an empty folder of another device; it must not pass for the watched folder from which everything was deleted. Devices
    without a disk (major number 0: tmpfs, NFS, overlay) get the number of one that is gone, so there an empty folder without our id is not
    believed either.
    """
    same_device = before.device == now.device
    if same_device and before.inode == now.inode and before.token in ("", now.token):
        return _Verdict.SAME
    if now.token and now.token == before.token:
        return _Verdict.AGAIN
    if before.mounted and not now.mounted and not same_device:
        return _Verdict.ELSEWHERE
    if not had_folders:
        return _Verdict.AGAIN
    if now.empty:
        return _Verdict.AGAIN if same_device and os.major(now.device) != 0 else _Verdict.ELSEWHERE
    # Another device is believed when it has been watched before, or when there was no leaving a mark on the one we knew.
    return _Verdict.AGAIN if same_device or now.token or not before.token else _Verdict.ELSEWHERE


def _look_at(folder: Path) -> _Place:
    descriptor = os.open(folder, _FOLDER)
    try:
        facts = os.fstat(descriptor)
        with os.scandir(descriptor) as listing:
            empty = all(entry.name.startswith(".") for entry in listing)
        around = os.stat("..", dir_fd=descriptor).st_dev
        return _Place(device=facts.st_dev, inode=facts.st_ino, token=_read_token(descriptor), empty=empty, mounted=facts.st_dev != around)
    finally:
        os.close(descriptor)


def _read_token(top: int) -> str:
    try:
        descriptor = os.open(f"{OWN_FOLDER}/id", _READ, dir_fd=top)
    except OSError:
        return ""
    with open(descriptor, "rb") as file:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        text = file.read(64).decode("ascii", "replace").strip() if regular else ""
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else ""


def _write_own(folder: str, place: _Place, name: str, text: str) -> os.stat_result | None:
    """Write a small file of ours anew and return its facts; None where that cannot be, or where another folder is by now.

    Whoever may write into the watched folder could have put a link in our way, so none is followed and nothing is opened that was there before.
    """
    opened: list[int] = []
    try:
        opened.append(os.open(folder, _FOLDER))
        facts = os.fstat(opened[0])
        if (facts.st_dev, facts.st_ino) != (place.device, place.inode):
            return None
        with contextlib.suppress(FileExistsError):
            os.mkdir(OWN_FOLDER, dir_fd=opened[0])
        opened.append(os.open(OWN_FOLDER, _FOLDER | _NO_LINK, dir_fd=opened[0]))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=opened[1])
        opened.append(os.open(name, _ANEW, 0o644, dir_fd=opened[1]))
        os.write(opened[2], text.encode())
        # Closed first: some servers set the time only then.
        os.close(opened.pop())
        return os.stat(name, dir_fd=opened[1], follow_symlinks=False)
    except OSError as error:
        _log.debug("cannot write %s in %s: %s", name, printable(folder), _reason(error))
        return None
    finally:
        for descriptor in opened:
            os.close(descriptor)


# ---------------------------------------------------------------- the events


class _Complaints(logging.Handler):
    """Hears what watchdog logs: a warning is all it ever says about lost events."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.listeners: weakref.WeakSet[_Events] = weakref.WeakSet()

    def emit(self, record: logging.LogRecord) -> None:
        listeners = list(self.listeners)
        meant = [events for events in listeners if record.thread in events.threads()]
        for events in meant or listeners:
            events.lose()


_complaints = _Complaints()


class _Events:
    """watchdog for one folder, and what its threads have told since somebody last asked."""

    def __init__(self, hint: Callable[[], None]) -> None:
        self.count = 0
        self.cookie_seen = False
        self._hint = hint
        self._lock = threading.Lock()
        self._marks: dict[str, bool] = {}
        self._lost = False
        self._observer: BaseObserver | None = None
        self._top = ""
        self._begun = threading.Event()
        self.fault: Exception | None = None
        """Why the watches could not be set."""

    def begin(self, top: str, *, patience: float) -> None:
        """Have a folder and all below it watched; OSError or RuntimeError when that cannot be.

        Ten thousand folders take half a second, and those of a slow server far longer. After *patience* seconds a thread goes on with it: until
        it has done, we are `starting`, and it may still end in a `fault`. The caller is given a hint then.
        """
        from watchdog import events as kinds
        from watchdog.observers import Observer

        # watchdog 7.1 warns with a dump of all its tables. Where warnings are errors, the first one would end its thread in silence.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"watchdog\.")
        logger = logging.getLogger("watchdog")
        logger.propagate = False
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
        logger.addHandler(_complaints)

        wanted: list[type[FileSystemEvent]] = [
            kinds.FileCreatedEvent,
            kinds.FileClosedEvent,
            kinds.FileMovedEvent,
            kinds.FileDeletedEvent,
            kinds.DirCreatedEvent,
            kinds.DirMovedEvent,
            kinds.DirDeletedEvent,
        ]
        if sys.platform != "linux":
            wanted.append(kinds.FileModifiedEvent)

        class Handler(kinds.FileSystemEventHandler):
            def dispatch(self, event: FileSystemEvent) -> None:
                # An observer that was given up may still have something to say.
                if events._observer is observer:
                    events._note(event)

        # Where descriptors run out halfway, watchdog 7.1 leaks the one that it got, and the next try would find one less.
        with contextlib.ExitStack() as spare:
            for _ in range(8):
                spare.enter_context(open(os.devnull, "rb"))
        events = self
        self._top = top
        observer = Observer()
        self._observer = observer
        self._begun = begun = threading.Event()
        self.fault = None
        try:
            observer.schedule(Handler(), top, recursive=True, event_filter=wanted)
            threading.Thread(target=self._set_watches, args=(observer, begun), daemon=True, name="stepwatch-watch").start()
        except BaseException:
            begun.set()
            self.end()
            raise
        _complaints.listeners.add(self)
        begun.wait(None if math.isinf(patience) else patience)

    def _set_watches(self, observer: BaseObserver, begun: threading.Event) -> None:
        try:
            observer.start()
        except Exception as error:  # noqa: BLE001  # told to whoever asks next
            if self._observer is observer:
                self.fault = error
        finally:
            begun.set()
            self._hint()

    def end(self) -> None:
        """Let go of watchdog's threads, waiting for them no longer than two seconds: on a dead server they may hang for good."""
        observer, self._observer = self._observer, None
        _complaints.listeners.discard(self)
        with self._lock:
            self._marks.clear()
            self._lost = False
            self.cookie_seen = False
        if observer is not None:
            ending = threading.Thread(target=_dispose, args=(observer, self._begun), daemon=True, name="stepwatch-unwatch")
            ending.start()
            ending.join(1.8)

    @property
    def running(self) -> bool:
        return self._observer is not None

    @property
    def starting(self) -> bool:
        """Whether watches are still being set."""
        return self._observer is not None and not self._begun.is_set()

    @property
    def alive(self) -> bool:
        """Whether every thread between the kernel and us is; the observer alone says so even after its emitter has died."""
        observer = self._observer
        if observer is None:
            return False
        if self.starting:
            return True
        emitters = list(observer.emitters)
        reader = getattr(observer, "_inotify_fd", None)
        return (
            observer.is_alive()
            and bool(emitters)
            and all(emitter.is_alive() for emitter in emitters)
            and (not isinstance(reader, threading.Thread) or reader.is_alive())
        )

    def threads(self) -> set[int | None]:
        """Identify the threads that complain on our behalf."""
        observer = self._observer
        if observer is None:
            return set()
        parts = (observer, getattr(observer, "_inotify_fd", None), *observer.emitters)
        return {part.ident for part in parts if isinstance(part, threading.Thread)}

    @property
    def marked(self) -> bool:
        return bool(self._marks)

    @property
    def lost(self) -> bool:
        return self._lost

    def lose(self) -> None:
        """Events are known to be missing."""
        self._lost = True
        self._hint()

    def take(self) -> tuple[dict[str, bool], bool]:
        """Return what was marked (True: with all below), and whether events were lost, and begin anew."""
        with self._lock:
            marks, self._marks = self._marks, {}
            lost, self._lost = self._lost, False
        return marks, lost

    def watched_inodes(self) -> set[int] | None:
        """Inodes that the kernel watches for us; None where it does not tell."""
        number = getattr(getattr(self._observer, "_inotify_fd", None), "_inotify_fd", None)
        found: set[int] = set()
        try:
            # Without knowing which descriptor is ours: all of this process. Inodes of other watched folders do no harm.
            numbers = [number] if isinstance(number, int) else _inotify_descriptors()
            for descriptor in numbers:
                with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
                    found.update(int(told[1], 16) for line in file if (told := re.match(rb"inotify wd:\S+ ino:([0-9a-f]+)", line)))
        except OSError:
            return None
        return found if numbers else None

    def _note(self, event: FileSystemEvent) -> None:
        heard = False
        for path, appeared in ((event.src_path, event.event_type == "created"), (event.dest_path, True)):
            if path:
                heard |= self._mark(os.fsdecode(path), deep=appeared and event.is_directory)
        if heard:
            self._hint()

    def _mark(self, path: str, *, deep: bool) -> bool:
        inner = path[len(self._top) :].lstrip(os.sep) if path.startswith(os.path.join(self._top, "")) else ""
        if inner == os.path.join(OWN_FOLDER, "cookie"):
            self.cookie_seen = True
            return False
        if inner.startswith(".") or f"{os.sep}." in inner:
            return False
        with self._lock:
            self.count += 1
            if len(self._marks) >= MARKS_LIMIT:
                self._marks = {self._top: True}
            if deep or not inner:
                self._marks[path] = self._marks.get(path, False) or deep
            if inner:
                self._marks.setdefault(os.path.dirname(path), False)
        return True


def _dispose(observer: BaseObserver, begun: threading.Event) -> None:
    # While its watches are being set it must not be taken apart.
    begun.wait()
    # One that never came to run has threads all the same: those that read for it.
    with contextlib.suppress(OSError, RuntimeError):
        observer.stop()
    with contextlib.suppress(RuntimeError):
        observer.join()


def _inotify_descriptors() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify":
                found.append(int(name))
    return found


# ---------------------------------------------------------------- the watcher


class Watcher:
    """Watches one folder tree for its caller, who calls `collect` after a hint and whenever `due` says so.

    ``exclude`` names folders that are none of its business. ``recognise`` hears of each folder that is seen for the first time, with the digest of
    what is known of its frames, sidecar and policy without their contents: True keeps it from being told of. That digest is equal in every process.
    ``hint`` is called from other threads, and should do no more than wake the caller. Everything else belongs to one thread, but for `clock` and
    `health`. ``stopwatch`` only measures what scans cost. ``turn`` is for how many seconds a call may go on with a full scan, or wait for watches
    to be set, before it returns and is due again.
    """

    def __init__(  # noqa: PLR0913  # what its caller wants, and what tests want otherwise
        self,
        folder: Path,
        *,
        poll: Literal["auto", "off"] | float,
        rescan: float,
        exclude: Callable[[str], bool],
        recognise: Callable[[str, int], bool] = lambda _path, _digest: False,
        hint: Callable[[], None],
        jitter: Callable[[], float] = random.random,
        native: bool = True,
        stopwatch: Callable[[], float] = time.perf_counter,
        turn: float = math.inf,
    ) -> None:
        self.folder = folder
        self._turn = turn
        self._poll = poll
        self._rescan = rescan
        self._jitter = jitter
        self._native = native
        self._stopwatch = stopwatch
        self._tree = _Tree(exclude, recognise)
        self._events = _Events(hint)
        self._writing = threading.Lock()

        self._started = False
        self._top = os.path.realpath(folder)
        self._place: _Place | None = None
        """None until the folder has been there once."""
        self._asleep = ""
        self._kind = ""

        # Everything that has been found and not yet been told, and what the caller wants to be told again.
        self._changed: set[str] = set()
        self._urgent: set[str] = set()
        self._gone: set[str] = set()
        self._asked: set[str] = set()
        self._asked_all = False

        self._beginning = False
        """Watches are being set. They come first, the scan after them: nothing can then happen unseen between the two."""
        self._sweep: _Sweep | None = None
        self._swept = False
        """There has been a full scan since the start."""
        self._routines = 0
        self._heard = False
        """A cookie's event has arrived since watches were set."""

        # When what is due, on the caller's clock. None: nothing of the kind.
        self._look_at = 0.0
        """The first collect looks at once, whatever its clock says: it has no ``_last`` yet."""
        self._full_at = 0.0
        self._routine_at = math.nan
        """When the next full scan was planned; one at another time has been asked for by something that has happened."""
        self._full_again_at: float | None = None
        self._again_at: float | None = None
        self._held = False
        self._not_before = 0.0
        """Marked folders rest until then, so that scans of a huge one do not eat the machine."""
        self._cookie_at = 0.0
        self._cookie_until: float | None = None
        self._count_at: float | None = None
        self._revive_at = 0.0
        self._revive_wait = FIRST_REVIVAL
        self._begun = 0.0
        self._last: float | None = None
        self._overflows: deque[float] = deque(maxlen=OVERFLOWS_BORNE)

        # What is wrong with the events, each in a sentence of its own; empty: nothing.
        self._unwatchable = "" if native else "file events are not used here"
        self._silent = ""
        self._limited = ""
        self._suspects: frozenset[str] = frozenset()

        self._cost = 0.0
        self._doubts = 0
        self._watches = 0
        self._recrawls = 0
        self._restarts = 0
        self._said = ""

    # ------------------------------------------------ for the caller

    def start(self) -> None:
        """Begin to watch; a folder that is not there is asleep, and no error."""
        self._started = True
        self._last = None
        self._full_at = 0.0
        self._sweep, self._swept = None, False
        self._recognise(0.0)

    def stop(self) -> None:
        """End the threads within two seconds; what is known stays, for a later start."""
        self._started = False
        self._events.end()

    def due(self, now: float) -> float:
        """When `collect` wants to be called next, even if nothing hints."""
        if not self._started:
            return float("inf")
        if self._last is None:
            return now
        if self._asleep:
            return self._look_at
        if self._beginning:
            return now if not self._events.starting else self._last + BEGINNING
        if self._sweep is not None or self._asked or self._asked_all or self._events.lost or self._mute():
            return now
        times = [self._full_at, self._full_again_at, self._again_at, self._cookie_at, self._cookie_until, self._count_at]
        if self._held:
            times.append(self._not_before)
        if self._native and not self._events.running:
            times.append(self._revive_at)
        return min(when for when in times if when is not None)

    def collect(self, now: float) -> Changes:
        """Scan what is due, and return what has changed since the last time; touches no file when nothing is due and nothing was hinted."""
        if not self._started or (self.due(now) > now and not self._events.marked):
            return Changes()
        if self._last is None:
            # `start` had no clock.
            self._begun, self._revive_at = now, now + FIRST_REVIVAL
        if not self._recognise(now):
            self._last = now
            return Changes()
        if self._beginning and not self._events.starting:
            self._conclude_begin(now)
        if not self._beginning:
            self._attend(now)
        full = not self._beginning and self._look(now)
        self._last = now
        return self._tell(full=full) if self._still_there(now) else Changes()

    def look_again(self, folder: Path | None) -> None:
        """Have the next collect report a folder, or with None all of them, changed or not; one that is not there is reported as gone."""
        if folder is None:
            self._asked_all = True
        else:
            self._asked.add(os.fspath(folder))

    def clock(self) -> float | None:
        """Tell the file system's own time, in seconds since the epoch; None when nothing can be written there."""
        place = self._place
        if place is None or self._asleep:
            return None
        facts = self._write("cookie", place)
        return facts.st_mtime_ns / 1e9 if facts else None

    def digest(self, folder: str) -> int | None:
        """The digest of a folder at the last scan, as ``recognise`` hears it; None when it is not known."""
        seen = self._tree.known.get(folder)
        return seen.digest if seen is not None else None

    def is_there(self) -> bool:
        """Whether the path leads, right now, to the folder that the last look recognised."""
        place = self._place
        if place is None or self._asleep:
            return False
        try:
            facts = os.stat(self.folder)
        except OSError:
            return False
        return (facts.st_dev, facts.st_ino) == (place.device, place.inode)

    @property
    def looking(self) -> bool:
        """Whether watches are still being set, or a full scan is under way or has never been made."""
        return self._started and not self._asleep and (self._beginning or self._sweep is not None or not self._swept)

    @property
    def health(self) -> Health:
        """How well the folder is watched at present."""
        sweep = self._sweep
        trouble = next(filter(None, self._troubles()), "")
        polled = self._interval() is not None
        return Health(
            state="asleep" if self._asleep else "polling" if polled else "watching",
            reason=self._asleep or trouble,
            kind=self._kind,
            folders=len(self._tree.known),
            watches=self._watches if self._events.running else 0,
            events=self._events.count,
            recrawls=self._recrawls,
            restarts=self._restarts,
            problems=tuple(list(self._tree.problems.values())[:PROBLEMS_SHOWN]),
            ahead=None if self._swept or self._asleep else len(sweep.waiting) if sweep is not None else 0,
        )

    # ------------------------------------------------ the place

    def _recognise(self, now: float) -> bool:
        """Look where the path leads, and fall asleep or wake up by it; tell whether the watched folder is there."""
        try:
            place = _look_at(self.folder)
        except OSError as error:
            missing = error.errno in _GONE
            self._sleep(now, "the folder is not there" if missing else f"the folder cannot be looked at: {_reason(error)}")
            return False
        if self._place is None:
            verdict = _Verdict.AGAIN
        else:
            # A file in the watched folder itself is as good as a folder in it.
            verdict = _judge(self._place, place, had_folders=len(self._tree.known) > 1 or not self._place.empty)
        if verdict is _Verdict.ELSEWHERE:
            self._sleep(now, "this is not the same file system as before; if it is meant to be watched, start stepwatch again")
            return False
        if verdict is _Verdict.AGAIN or self._asleep or not (self._events.running or self._unwatchable):
            self._wake(place, now)
        else:
            self._place = place if place.token else self._mark_place(place)
        return True

    def _still_there(self, now: float) -> bool:
        """Look once more after a scan: what was found while the folder was taken away is kept to itself, not told."""
        if not self._gone and not (self._sweep is not None and self._sweep.found.vanished):
            return True
        if self.is_there():
            return True
        # The next look decides; whatever it finds, everything is scanned then, and what is found again is not gone.
        self._sweep, self._full_at = None, now
        return False

    def _sleep(self, now: float, reason: str) -> None:
        self._look_at = now + ASLEEP_INTERVAL
        if self._asleep != reason:
            self._events.end()
            self._watches = 0
            self._beginning, self._sweep = False, None
            self._asleep = reason
            self._say()

    def _wake(self, place: _Place, now: float) -> None:
        top = os.path.realpath(self.folder)
        if top != self._top:
            self._gone |= self._tree.forget_all()
            self._top = top
        self._place = place if place.token else self._mark_place(place)
        self._tree.device = place.device
        self._asleep = ""
        self._kind = file_system(Path(top))
        self._silent = self._limited = ""
        if self._last is not None:
            self._restarts += 1
        self._sweep = None
        self._begin(now)
        self._full_at = now

    def _mark_place(self, place: _Place) -> _Place:
        token = uuid.uuid4().hex
        written = self._write("id", place, token)
        return replace(place, token=token if written else "")

    def _write(self, name: str, place: _Place, text: str = "") -> os.stat_result | None:
        with self._writing:
            return _write_own(self._top, place, name, text or uuid.uuid4().hex)

    # ------------------------------------------------ the events

    def _mute(self) -> bool:
        return self._events.running and not self._events.alive

    def _begin(self, now: float) -> None:
        """Start watchdog, or say why it cannot be; each failure doubles the time until the next try."""
        self._events.end()
        self._beginning = self._heard = False
        self._cookie_until = None
        self._suspects = frozenset()
        if not self._native:
            return
        if now - self._begun > 4 * self._revive_wait:
            self._revive_wait = FIRST_REVIVAL
        self._begun = now
        self._revive_at = now + self._revive_wait
        self._revive_wait = min(2 * self._revive_wait, LONGEST_REVIVAL)
        self._unwatchable = ""
        try:
            self._events.begin(self._top, patience=self._turn)
        except (OSError, RuntimeError) as error:
            self._unwatchable = _why_unwatchable(error)
            return
        self._beginning = True
        if not self._events.starting:
            self._conclude_begin(now)

    def _conclude_begin(self, now: float) -> None:
        """Watches are set, as many as there may be; or it turns out that there are none."""
        self._beginning = False
        fault = self._events.fault
        if fault is not None:
            self._events.end()
            self._unwatchable = _why_unwatchable(fault)
            return
        # Its event tells whether events arrive here at all.
        self._cookie_at = now
        self._count_at = now

    def _revive(self, now: float) -> None:
        """Start watchdog again and scan everything: nobody knows what was missed."""
        self._restarts += 1
        self._begin(now)
        self._full_at = now

    def _attend(self, now: float) -> None:
        """Ask whether events are alive: threads, cookie, watches, in this order."""
        if self._native and not self._events.alive:
            if self._events.running:
                _log.warning("%s: the threads that hear file events have died", printable(self._top))
                self._events.end()
                self._unwatchable = "file events are not heard for the moment."
                self._full_at = now
            if now >= self._revive_at:
                self._revive(now)
        self._probe(now)
        if self._count_at is not None and now >= self._count_at:
            self._count_watches(now)

    def _recover(self, now: float) -> None:
        """Scan everything now, and once more when watchdog has surely put all its watches back."""
        self._recrawls += 1
        self._full_at = now
        self._full_again_at = now + max(COOKIE_LIMIT, COST_FACTOR * self._cost)
        self._count_at = self._full_again_at
        self._overflows.append(now)
        if len(self._overflows) == OVERFLOWS_BORNE and now - self._overflows[0] < 60:
            self._overflows.clear()
            self._events.end()
            self._unwatchable = "file events are lost faster than they can be heard."
            self._revive_at = max(self._revive_at, now + FIRST_REVIVAL)

    def _probe(self, now: float) -> None:
        events = self._events
        if events.cookie_seen:
            events.cookie_seen = False
            self._heard = True
            self._cookie_until = None
            if self._silent:
                # What came between the last poll and the first event was seen by neither.
                self._silent = ""
                self._full_at = now
        if self._cookie_until is not None and now >= self._cookie_until:
            if self._last is not None and now - self._last > 2 * COOKIE_LIMIT:
                # We have not been awake to hear it: suspended, or stopped.
                self._cookie_until = now + COOKIE_LIMIT
            else:
                self._cookie_until = None
                self._fall_silent(now)
        if now >= self._cookie_at:
            self._cookie_at = now + COOKIE_INTERVAL
            place = self._place
            if events.running and place is not None and self._write("cookie", place) is not None:
                self._cookie_until = now + COOKIE_LIMIT

    def _fall_silent(self, now: float) -> None:
        if not self._silent:
            self._silent = "file events do not arrive here."
            self._full_at = now
        # Perhaps the watch is on something else by now.
        if now >= self._revive_at:
            self._revive(now)

    def _count_watches(self, now: float) -> None:
        """Hold the kernel's watches against the folders we know; one that lacks its watch is scanned again and, when it still does, polled."""
        self._count_at = None
        watched = self._events.watched_inodes() if self._events.running else None
        if watched is None:
            self._watches = 0
            return
        self._watches = len(watched)
        known = self._tree.known
        top = known.get(self._top)
        if top is None or top.inode not in watched:
            # Numbers that cannot be compared (some layered file systems): only how many there are.
            missing = [] if len(watched) >= len(known) else list(known)
        else:
            missing = [path for path, seen in known.items() if seen.inode not in watched and path not in self._tree.problems]
        still = frozenset(path for path in missing if _stands(path, watched))
        if not still:
            self._limited = ""
            self._suspects = still
            return
        if self._limited or still & self._suspects:
            if not self._limited:
                self._full_at = now
            self._limited = _limit_sentence(len(known) - len(still), len(known))
        else:
            self._count_at = now + SETTLING
            self._tree.again.update(dict.fromkeys(still, True))
            self._again_at = now
        self._suspects = still

    # ------------------------------------------------ the scans

    def _look(self, now: float) -> bool:
        """Scan what is due, and go on with a scan of everything; tell whether that has come to its end."""
        full = self._asked_all or now >= self._full_at or (self._full_again_at is not None and now >= self._full_again_at)
        urgent = full or self._events.lost or bool(self._asked) or self._due_again(now)
        self._held = not urgent and self._events.marked and now < self._not_before
        if self._held and self._sweep is None:
            return False
        before = len(self._tree.known)
        begun = self._stopwatch()
        marks, lost = ({}, False) if self._held else self._events.take()
        if lost:
            marks = {}
            self._recover(now)
        if full or lost or marks.get(self._top):
            self._begin_sweep(now, routine=not lost and not marks.get(self._top) and self._is_routine(now))
        truthful = self._scan_some(self._wanted(marks, now))
        sweep = self._sweep
        over = sweep is not None and self._go_on(sweep)
        cost = self._stopwatch() - begun
        if sweep is None:
            self._not_before = now + cost * (COST_FACTOR // 2)
            self._plan_again(now + cost, truthful=truthful)
        else:
            sweep.cost += cost
            if over:
                truthful = sweep.found.truthful and truthful
                self._end_sweep(sweep, now + cost, truthful=truthful)
        if self._events.running and self._sweep is None and (len(self._tree.known) > before or over) and self._count_at is None:
            self._count_at = now + SETTLING
        self._say()
        return over and truthful

    def _is_routine(self, now: float) -> bool:
        """Whether nothing has happened but that it is time for a rescan, and events tell what a glance does not show."""
        again = self._full_again_at is not None and now >= self._full_again_at
        if self._asked_all or again or self._full_at != self._routine_at or not self._swept:
            return False
        return self._heard and self._events.alive and not any(self._troubles()) and self._interval() is None and self._kind in KEEPING_TIMES

    def _begin_sweep(self, now: float, *, routine: bool) -> None:
        """Begin a scan of everything; while one is under way, another one follows."""
        if self._sweep is not None:
            self._full_at = now
            return
        place = self._place
        self._sweep = _Sweep(waiting={self._top: place.inode if place is not None else 0}, begun=now)
        if routine:
            self._sweep.glancing = self._routines % TURNS
            self._routines += 1
        self._full_at = math.inf
        self._tree.again.clear()
        self._again_at = None

    def _go_on(self, sweep: _Sweep) -> bool:
        begun, heard = time.monotonic(), self._events.count

        def pause() -> bool:
            taken = time.monotonic() - begun
            # A part of the turn is its own, so that it comes to an end however much happens meanwhile.
            return taken >= self._turn or (taken >= self._turn / 10 and self._events.count != heard)

        over = self._tree.go_on(sweep, pause)
        self._changed |= sweep.found.changed
        self._urgent |= sweep.urgent
        sweep.found.changed.clear()
        sweep.urgent.clear()
        if over:
            self._gone |= sweep.found.gone
        return over

    def _end_sweep(self, sweep: _Sweep, now: float, *, truthful: bool) -> None:
        self._sweep, self._swept = None, True
        self._cost = sweep.cost
        wanted_anew = not math.isinf(self._full_at)
        self._plan_full(now, begun=sweep.begun)
        if wanted_anew:
            self._full_at = now
        self._plan_again(now, truthful=truthful)

    def _due_again(self, now: float) -> bool:
        return self._again_at is not None and now >= self._again_at

    def _wanted(self, marks: dict[str, bool], now: float) -> dict[str, bool]:
        wanted: dict[str, bool] = {}
        if self._due_again(now):
            for path, deep in self._tree.again.items():
                marks[path] = marks.get(path, False) or deep
            self._tree.again.clear()
        for path in self._asked:
            marks.setdefault(path, False)
        for path, deep in marks.items():
            place = self._tree.nearest(path, self._top)
            if place is None:
                continue
            if self._sweep is not None and place != path and self._tree.has_way(place, path):
                # Who writes there now need not wait until the sweep comes by.
                wanted[path] = True
                if os.path.join(place, os.path.relpath(path, place).split(os.sep)[0]) in self._sweep.waiting:
                    continue
            wanted[place] = wanted.get(place, False) or (deep and place == path)
        return wanted

    def _scan_some(self, wanted: dict[str, bool]) -> bool:
        marks = []
        for path, deep in wanted.items():
            seen = self._tree.known.get(path)
            place = self._place
            inode = place.inode if path == self._top and place is not None else seen.inode if seen is not None else _inode_at(path)
            marks.append((path, inode, deep))
        # Taken from the end: what is to be seen with all below comes before a plain look at the same folder, ancestors before what they contain.
        marks.sort(key=lambda mark: (mark[2], -len(mark[0])))
        result = self._tree.scan(marks, sweep=self._sweep)
        self._changed |= result.changed
        self._urgent |= result.changed
        self._gone |= result.gone
        return result.truthful

    def _interval(self) -> float | None:
        """Seconds between two polls; None where nothing is polled."""
        if not isinstance(self._poll, str):
            return float(self._poll)
        if self._poll == "off" or not any(self._troubles()):
            return None
        return max(SHORTEST_POLL, COST_FACTOR * self._cost)

    def _troubles(self) -> tuple[str, ...]:
        remote = f"{self._kind} does not tell what other machines write." if self._kind and is_remote(self._kind) else ""
        return (remote, self._unwatchable, self._limited, self._silent)

    def _plan_full(self, now: float, *, begun: float) -> None:
        jittered = self._rescan * (0.75 + 0.5 * self._jitter())
        interval = self._interval()
        self._full_at = self._routine_at = now + (jittered if interval is None else min(interval, jittered))
        if self._full_again_at is not None and begun >= self._full_again_at:
            self._full_again_at = None
        if self._limited and begun >= self._revive_at:
            # Perhaps somebody has raised the limit.
            self._revive(now)
            self._full_at = now

    def _plan_again(self, now: float, *, truthful: bool) -> None:
        self._doubts = 0 if truthful else min(self._doubts + 1, 8)
        if not self._tree.again:
            self._again_at = None
        elif self._again_at is None or not truthful or self._again_at <= now:
            self._again_at = now + min(SHORTEST_POLL * 2**self._doubts, max(self._rescan, SHORTEST_POLL))

    def _tell(self, *, full: bool) -> Changes:
        known = self._tree.known
        if self._asked_all:
            self._changed.update(known)
        self._changed |= self._asked
        self._urgent |= self._asked
        self._gone |= self._asked
        told = Changes(
            folders=frozenset(Path(path) for path in self._changed if path in known),
            gone=frozenset(Path(path) for path in self._gone if path not in known),
            full=full,
            urgent=frozenset(Path(path) for path in self._urgent if path in known),
        )
        self._changed, self._urgent, self._gone, self._asked, self._asked_all = set(), set(), set(), set(), False
        return told

    def _say(self) -> None:
        """Log how the folder is watched when that has changed: once, not with each poll. People are told of it by whoever reads `health`."""
        health = self.health
        said = health.state + re.sub(r"[0-9]+", "", health.reason)
        if said != self._said and (self._said or health.state != "watching"):
            _log.info("%s: %s%s", printable(self._top), health.state, f": {health.reason}" if health.reason else "")
        self._said = said


def _stands(path: str, watched: set[int]) -> bool:
    """Whether a folder is really there and without a watch; a mount below shows another inode than its parent's listing does."""
    try:
        return os.lstat(path).st_ino not in watched
    except OSError:
        return False


def _why_unwatchable(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC:
        return _limit_sentence(0, 0)
    if number == errno.EMFILE:
        return (
            "no more file events can be asked for: too many open files, or too many programs that watch; "
            "try `ulimit -n` or `sudo sysctl fs.inotify.max_user_instances=1024`."
        )
    return f"file events cannot be had: {_reason(error) if isinstance(error, OSError) else error}."


def _limit_sentence(watched: int, folders: int) -> str:
    try:
        with open("/proc/sys/fs/inotify/max_user_watches", encoding="ascii") as file:
            limit = int(file.read())
    except (OSError, ValueError):
        limit = 0
    wanted = 1 << (2 * max(limit, folders, 262_143)).bit_length()
    of_them = f"only {watched} of {plural(folders, 'folder')} can be watched" if folders else "no folder can be watched"
    return f"{of_them}: the limit of file watches is reached; raise it with `sudo sysctl fs.inotify.max_user_watches={wanted}`."


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
