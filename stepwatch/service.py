"""The daemon: it looks where something may have changed, asks the core what to do, and has it done.

One thread decides, a few do. The main loop waits for hints, timers, finished visits, signals and questions on the status socket; whatever wakes
it, the answer is a look at the folder in question, and what is due then is queued for a worker. Nothing about a run is remembered but since
when it has been as it is, so a restart is an ordinary look.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import heapq
import itertools
import logging
import math
import os
import re
import selectors
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

from stepwatch import __version__, config, encoder, passes, store, system, trash, visit
from stepwatch.core.lifecycle import Action, Do, Now, Phase, WriterState, fingerprint, next_action
from stepwatch.core.manifest import Manifest
from stepwatch.core.model import Run, RunKey, Writer
from stepwatch.core.naming import printable
from stepwatch.core.plan import plural
from stepwatch.core.policy import DaemonConfig, ServiceConfig, WatchEntry
from stepwatch.errors import BusyError, ConfigError, EnvironmentFault, FramesChangedError, Interrupted, StepwatchError
from stepwatch.frames import UnreadableFrameError
from stepwatch.ledger import ReceiptsFault, ReceiptsLost, Seen
from stepwatch.live import Live, Lives
from stepwatch.status import Question, StatusSocket
from stepwatch.watcher import Watcher

LOOKING = 0.25
"""Seconds of a turn for looking at folders."""
SCANNING = 0.05
"""Seconds of a turn for finding them."""
LONGEST_REST = 0.02
"""Seconds that the loop rests after a turn at most, and no longer than the turn has taken: hints that come meanwhile lead to one look together."""
LONGEST_TURN = 5.0
"""Seconds that the loop sleeps at most; a gap longer than twice that was spent asleep, and counts for a moment."""
MOMENT = 1.0
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0
"""Seconds that a folder pauses after a fault of the machine; doubled with each."""
LONGEST_HOLD = 300.0
"""The same for the run that met it."""
FRAME_FAULTS = 3
"""Faults of the disk while it reads a frame that are the machine's; further ones are the run's."""
HOUSEKEEPING = 600.0
"""Seconds between looks into the trash."""
WRITER_CHECK = 5.0
"""Seconds between looks at a run whose writer lives: it may die without a word."""
CONFIG_CHECK = 2.0
"""Seconds between looks at the service file."""
SIGN_OF_LIFE = 3600.0
"""Seconds without a word from a visit after which the service manager is told nothing more."""
CLOCK_GOOD_FOR = 1.0
"""Seconds that a reading of a file system's clock is used; it errs towards runs being younger than they are."""
MOST_POLICIES = 20_000
MOST_TOLD = 1000
MOST_SHOWN = 200
"""Runs in a status; their number is told in full."""
PING = 10.0
"""Seconds between words to the service manager."""
GIVE_UP = 4
"""With ``once``: pauses of a folder after which what is left there is left."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Observer(passes.Observer, Protocol):
    """Who is told how it goes, with the runs and with the daemon."""

    def note(self, sentence: str, *, level: str = "info") -> None: ...


class AwakeClock:
    """Seconds while this process was awake: what passes in suspend, or stopped by a signal, is left out but for a moment."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()
        self._awake = 0.0
        self._lock = threading.Lock()

    def now(self) -> Now:
        with self._lock:
            read = self._monotonic()
            passed = max(read - self._last, 0.0)
            # Not for nothing: a machine on which every turn of the loop takes so long would never come to an end.
            self._awake += passed if passed <= 2 * LONGEST_TURN else MOMENT
            self._last = read
            return Now(awake=self._awake, wall=time.time())


@dataclass(slots=True, kw_only=True, eq=False)
class _Known:
    """One run that is not at rest for good."""

    key: RunKey
    run_id: str
    name: str
    place: Path
    """Folder in which a look finds it."""
    folder: _Folder
    sighting: visit.Sighting
    action: Action
    queued: bool = False
    visiting: bool = False
    hold_until: float = 0.0
    """Seconds awake; after a fault of the machine others come first."""
    faults: int = 0
    frame_faults: int = 0
    changes: int = 0
    """How often its frames changed during a render, while each look saw the same."""
    timer: float = math.inf
    """When it is looked at again even if nothing changes."""
    writer: Writer | None = None
    succeeded: bool = False
    lived: bool = False
    """Somebody has tried to encode it while it goes on; nobody tries it again."""
    progress: dict[str, tuple[int, int, float | None]] = field(default_factory=dict)
    sign_of_life: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Folder:
    """One watched folder."""

    path: Path
    entry: WatchEntry
    lock: system.FolderLock | None = None
    watcher: Watcher | None = None
    queue: deque[_Known] = field(default_factory=deque)
    paused_until: float = 0.0
    pauses: int = 0
    problem: str = ""
    """Why nothing is done there now."""
    told: str = ""
    """How it is watched, as it was last told."""
    counts: dict[str, int] = field(default_factory=dict)
    next_housekeeping: float = 0.0
    keeping_house: bool = False
    output_dirs: set[Path] = field(default_factory=set)
    not_before: float = 0.0
    """Seconds awake; after a fault of its watch it is left alone for a while."""
    seen: bool = False
    """Its first look is over: whatever lay there when its watch began has been looked at."""
    clock: float | None = None
    """What time it was on its file system at ``clock_read``."""
    clock_read: float = -math.inf


class Service:
    """The daemon. `run` is its life."""

    def __init__(  # noqa: PLR0915  # what it remembers between two turns, each with its meaning
        self,
        *,
        load: Callable[[], ServiceConfig],
        observer: Observer,
        config_file: Callable[[], Path | None] = lambda: None,
        once: bool = False,
        state: Path | None = None,
        verbose: bool = False,
        private: bool = False,
        ready: Callable[[], None] = lambda: None,
        on_step: Callable[[visit.Step], None] = lambda _: None,
    ) -> None:
        self._load = load
        self._config_file = config_file
        self._observer = observer
        self._once = once
        self._state = state
        self._verbose = verbose
        self._private = private
        self._ready = ready
        self._on_step = on_step
        self.clock = AwakeClock()
        self._service = ServiceConfig()
        self._folders: list[_Folder] = []
        self._runs: dict[RunKey, _Known] = {}
        self._by_place: dict[Path, set[RunKey]] = {}
        self._at_rest: dict[int, int] = {}
        """The fingerprints that runs at rest had, all by their hashes: ten thousand keys and texts are three megabytes."""
        self._rests: dict[str, int] = {}
        """By what an earlier daemon knew folders in which everything was at rest; each until it has been seen once."""
        self._resting: dict[str, int] = {}
        """The same of this one, to be written down."""
        self._timers: list[tuple[float, int, RunKey]] = []
        self._order = itertools.count()
        self._futures: dict[Future[visit.Step | None], _Known] = {}
        self._lives = Lives()
        self._chores: set[Future[None]] = set()
        self._turn = 0
        self._policies: dict[Path, config.Resolved] = {}
        """The last valid policy of each folder that a run was found in: what counts while a file is wrong."""
        self._resolved: dict[Path, config.Resolved] = {}
        """The policies of folders, for one turn of the loop."""
        self._read: dict[Path, tuple[int, ...] | None] = {}
        """The marks of their files when they were read, for one turn."""
        self._marks: dict[str, str | None] = {}
        """What of them decides which runs there are in the folders right below, for one turn."""
        self._left: dict[str, frozenset[str]] = {}
        """What is left out right below a folder, for one turn."""
        self._begun: dict[Writer, tuple[float, str | None]] = {}
        """When each writer began its latest run, and of which group that is."""
        self._policy_marks: dict[Path, tuple[int, ...]] = {}
        self._told: set[str] = set()
        self._complaints: set[str] = set()
        """What was told of policies that are wrong still."""
        self._stop = threading.Event()
        self._ending: str = ""
        self._deadline: float | None = None
        self._reload = False
        self._wake_reader, self._wake_writer = _wake_pipe()
        self._hinted = True
        self._failed: set[RunKey] = set()
        self._gave_up = False
        self._cut_short: deque[tuple[_Folder, Manifest]] = deque()
        """Clearings that were begun and never finished."""
        self._rendered = 0
        self._started = time.time()
        self._next_config = 0.0
        self._config_mark: object = None
        self._notified = 0.0
        self._saved: dict[RunKey, Seen] = {}
        self._later: list[tuple[float, int, _Folder, Path]] = []
        """Where a look failed, with when it is tried again."""
        self._troubles: dict[tuple[Path, Path | None], int] = {}
        """How often in a row."""
        self._pending: dict[tuple[_Folder, Path], None] = {}
        """Where something has changed and nobody has looked yet, in that order."""
        self._backlog: dict[tuple[_Folder, Path], None] = {}
        """The same for what a scan has come by: it is looked at when nothing else is to be."""
        self._global_pause = 0.0
        self._records: visit.Records | None = None
        self._executor: Executor | None = None
        self._retired: list[Executor] = []
        self._workers = 1

    # --- life -----------------------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until told to end, or with ``once`` until everything is at rest; returns the exit code.

        Raises ConfigError, BusyError and EnvironmentFault for what keeps it from starting.
        """
        self._service = self._load()
        self._config_mark = self._mark_of_config()
        self._records = self._open_records()
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._signals())
                stack.callback(self._close_folders)
                self._open_folders(self._service.watch, must=True)
                sockets = stack.enter_context(StatusSocket(self._socket_path()))
                self._open_executor()
                stack.callback(self._lives.end_all)
                stack.callback(self._close_executor)
                self._loop(sockets)
        finally:
            system.notify("STOPPING=1")
            self._save(at_last=True)
            self._records.ledger.close()
            os.close(self._wake_reader)
            os.close(self._wake_writer)
        if self._ending == "SIGINT":
            return Interrupted.exit_code
        return 1 if self._once and (self._failed or self._gave_up) else 0

    def _socket_path(self) -> Path:
        # One that nobody is meant to ask keeps out of the way of the one that people do ask.
        assert self._records is not None
        return (self._records.state if self._private else system.runtime_dir()) / "status.sock"

    def _open_records(self) -> visit.Records:
        records = visit.open_records(self._state)
        for note in records.ledger.notes:
            self._observer.note(note, level="warning")
        self._at_rest = {hash(key): hash(mark) for key, mark in records.ledger.fingerprints().items()}
        self._rests = records.ledger.rests()
        self._sweep(records.ledger.output_folders())
        return records

    def _open_executor(self) -> None:
        daemon = self._service.daemon
        self._workers = workers_for(daemon)
        self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="visit", initializer=system.background_thread, initargs=(daemon.nice,))

    def _close_executor(self) -> None:
        self._stop.set()
        for executor in (*self._retired, self._executor):
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)

    def wake(self) -> None:
        """Have the loop turn; from any thread, and from signal handlers."""
        self._hinted = True
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"\0")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[str, Callable[[int, FrameType | None], None]] = {
            "SIGTERM": self._on_end,
            "SIGINT": self._on_end,
            "SIGHUP": self._on_reload,
        }
        before = {}
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None:
                before[number] = signal.signal(number, handler)
        try:
            yield
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)

    def _on_end(self, number: int, _frame: FrameType | None) -> None:
        self.end(signal.Signals(number).name)

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._reload = True
        self.wake()

    def end(self, why: str) -> None:
        """Drain: start nothing new, and end when what runs has finished or ``daemon.drain`` is over; the second call does not wait."""
        if self._stop.is_set():
            # Something does not even notice that; ffmpeg goes with its parent.
            os._exit(Interrupted.exit_code)
        if self._ending:
            self._stop.set()
        self._ending = self._ending or why
        self.wake()

    # --- the loop -------------------------------------------------------------------------------------------------------------------

    def _loop(self, sockets: StatusSocket) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._wake_reader, selectors.EVENT_READ)
        sockets.register(selector)
        # What happens from now on is seen, be it by its event or by a look that comes later than its watch; so nobody needs to wait for that look.
        system.notify("READY=1")
        self._ready()
        with selector:
            while True:
                begun = time.monotonic()
                now = self.clock.now()
                self._collect(now)
                self._look_at_pending()
                self._fire_timers(now)
                self._reap()
                # Before anybody is sent: what was decided must not be written over what a visit records.
                self._save()
                self._dispatch(self.clock.now())
                self._keep_house(self.clock.now())
                self._tell_manager(now)
                if self._is_over(self.clock.now()):
                    return
                ended = time.monotonic()
                events = selector.select(0.0 if self._hinted or self._has_work() else self._until_next(self.clock.now()))
                if any(key.fileobj == self._wake_reader for key, _ in events):
                    with contextlib.suppress(OSError):
                        while os.read(self._wake_reader, 4096):
                            pass
                    # The first hint is followed at once: somebody may wait for this frame. A flood of them takes half of a processor at most.
                    time.sleep(max(0.0, ended + min(LONGEST_REST, ended - begun) - time.monotonic()))
                for question in sockets.questions(events):
                    question.answer(self._answer(question))
                # By the time that it is now: it may be what the loop has slept for.
                if self._reload or self.clock.now().awake >= self._next_config:
                    self._check_config(self.clock.now())

    def _until_next(self, now: Now) -> float:
        """Seconds until something is due by itself."""
        dues = [heap[0][0] for heap in (self._timers, self._later) if heap]
        dues += [self._next_config, self._notified + PING, self._global_pause]
        for folder in self._folders:
            dues += [folder.next_housekeeping, folder.paused_until]
        if self._deadline is not None:
            dues.append(self._deadline)
        waits = [due - now.awake for due in dues if due > now.awake]
        waits += [max(0.0, folder.watcher.due(now.awake) - now.awake, folder.not_before - now.awake) for folder in self._folders if folder.watcher]
        return min([*waits, LONGEST_TURN])

    def _is_over(self, now: Now) -> bool:
        if self._ending:
            if self._deadline is None:
                drain = float(self._service.daemon.drain)
                self._deadline = now.awake + drain
                busy = plural(len(self._futures), "render")
                system.notify(f"STOPPING=1\nSTATUS=finishing {busy}")
                if self._futures:
                    self._observer.note(f"stopping: {busy} may finish within {drain:.0f} s; once more stops at once", level="warning")
            if now.awake >= self._deadline:
                self._stop.set()
            return not self._futures or self._stop.is_set()
        return self._once and self._all_at_rest(now)

    def _all_at_rest(self, now: Now) -> bool:
        if any(map(self._asleep, self._folders)):
            self._gave_up = True
            return not self._futures
        if self._futures or self._chores or self._cut_short or self._hinted or self._pending or self._backlog:
            return False
        hopeless = {at for at, count in self._troubles.items() if count >= GIVE_UP}
        if any((folder.path, place) not in hopeless for _, _, folder, place in self._later):
            return False
        self._gave_up = bool(hopeless)
        for folder in self._folders:
            if folder.watcher and (folder.watcher.looking or folder.watcher.due(now.awake) <= now.awake):
                return False
            given_up = folder.pauses >= GIVE_UP
            if folder.queue and not given_up:
                return False
            if given_up:
                self._failed.update(known.key for known in folder.queue)
        return not any(known.action.do is Do.WAIT for known in self._runs.values())

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def _collect(self, now: Now) -> None:
        hinted, self._hinted = self._hinted, False
        self._read_anew()
        for folder in self._folders:
            if now.awake < folder.not_before:
                continue
            if folder.watcher is None:
                with self._guard(folder):
                    self._watch(folder, now)
                continue
            if not hinted and folder.watcher.due(now.awake) > now.awake:
                continue
            with self._guard(folder):
                changes = folder.watcher.collect(now.awake)
                for place in sorted(changes.folders):
                    self._put_down(folder, place, urgent=place in changes.urgent)
                self._tell_health(folder)
                for place in changes.gone:
                    self._forget_place(folder, place)
        while self._later and self._later[0][0] <= now.awake:
            _, _, failed, where = heapq.heappop(self._later)
            self._pending[failed, where] = None

    def _read_anew(self) -> None:
        """Policies may be other ones by now."""
        self._resolved, self._read, self._marks, self._left = {}, {}, {}, {}

    def _put_down(self, folder: _Folder, place: Path, *, urgent: bool) -> None:
        """Have a folder looked at: soon where somebody may wait for it, else when it is its turn."""
        at = (folder, place)
        if urgent:
            self._backlog.pop(at, None)
            self._pending[at] = None
        elif at not in self._pending:
            self._backlog[at] = None

    def _is_resting(self, folder: _Folder, path: str, digest: int) -> bool:
        """Whether nothing is to be done in a folder, and nothing about any file is other than when an earlier daemon looked and found that."""
        earlier = self._rests.pop(path, None)
        return earlier is not None and earlier == self._mark_of_rest(folder, path, digest)

    def _mark_of_rest(self, folder: _Folder, path: str, digest: int | None) -> int | None:
        policy = self._mark_of_policy(folder, os.path.dirname(path))
        if policy is None or digest is None:
            return None
        # A number, for there may be ten thousand of them.
        told = hashlib.blake2b(f"{digest} {policy}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(told, "big", signed=True)

    def _mark_of_policy(self, folder: _Folder, above: str) -> str | None:
        """What decides, beside its files, which runs a folder right in *above* holds that has no policy of its own; None: more than that."""
        if above not in self._marks:
            self._marks[above] = None
            with contextlib.suppress(ConfigError):
                resolved = self._resolver(folder)(Path(above), None)
                self._sweep(set(resolved.output_dirs) - folder.output_dirs)
                folder.output_dirs.update(resolved.output_dirs)
                if not resolved.policy.frames.append:
                    self._marks[above] = f"{__version__} {resolved.policy.frames.pattern or ''}"
        return self._marks[above]

    def _note_rest(self, folder: _Folder, place: Path, runs: Iterable[Run]) -> None:
        """After a look: when every run of a folder is at rest, the next daemon may know that by the facts of its files alone."""
        if place == folder.path or place in self._policy_marks or place in self._by_place or folder.watcher is None:
            return
        path = os.fspath(place)
        keys = [run.key for run in runs]
        if keys and all(key.folder == path and hash(key) in self._at_rest for key in keys):
            mark = self._mark_of_rest(folder, path, folder.watcher.digest(path))
            if mark is not None:
                self._resting[path] = mark

    def _look_at_pending(self) -> None:
        """Look where something has changed, for a while: a tree of ten thousand folders must not keep signals and questions waiting."""
        end = time.monotonic() + LOOKING
        while self._pending and self._has_work() and time.monotonic() < end:
            self._look_at_next(self._pending, urgent=True)
        begun = time.monotonic()
        while self._backlog and self._has_work():
            self._look_at_next(self._backlog, urgent=False)
            taken = time.monotonic() - begun
            # However much happens, a part of the turn is for what has waited.
            if taken >= LOOKING or (taken >= LOOKING / 10 and (self._hinted or self._pending)):
                break
        for folder in self._folders:
            if not folder.seen and folder.watcher and not self._asleep(folder) and not folder.watcher.looking:
                folder.seen = not self._ahead_in(folder)
                if folder.seen and not self._is_looking():
                    # The service manager need not read for longer that it is at it.
                    self._notified = 0.0
                    if not self._rests:
                        # A table keeps its size when it is emptied.
                        self._rests = {}
                    system.give_back_memory()

    def _look_at_next(self, places: dict[tuple[_Folder, Path], None], *, urgent: bool) -> None:
        folder, place = at = next(iter(places))
        del places[at]
        if not self._asleep(folder):
            self._look(folder, place, urgent=urgent)

    def _ahead_in(self, folder: _Folder) -> int:
        """How many places of a watched folder are known and have still to be looked at."""
        return sum(1 for one, _ in (*self._pending, *self._backlog) if one is folder)

    def _is_looking(self) -> bool:
        """Whether the first look at some watched folder is still under way."""
        return any(not folder.seen and not self._asleep(folder) for folder in self._folders)

    def _has_work(self) -> bool:
        """Whether there is something to look at, and receipts to look it up in."""
        # Without them every look would fail, and a locked file takes its time to do so.
        return bool(self._pending or self._backlog) and self.clock.now().awake >= self._global_pause

    @contextlib.contextmanager
    def _guard(self, folder: _Folder, place: Path | None = None) -> Iterator[None]:
        """Do one piece of the loop's work: what goes wrong in it costs that piece a while, and never the daemon."""
        at = (folder.path, place)
        try:
            yield
        except ReceiptsFault as error:
            self._ledger_fault(error, self.clock.now())
        except StepwatchError as error:
            self._tell_once(error.message, level="error")
        except Exception as error:  # noqa: BLE001  # a mistake of ours
            where = printable(str(place or folder.path))
            _log.debug("%s", where, exc_info=True)
            self._tell_once(f"{where}: stepwatch made a mistake: {type(error).__name__}: {printable(str(error))}; please report it", level="error")
        else:
            self._troubles.pop(at, None)
            return
        self._troubles[at] = self._troubles.get(at, 0) + 1
        again = self.clock.now().awake + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._troubles[at] - 1, 10))
        if place is None:
            folder.not_before = again
        else:
            heapq.heappush(self._later, (again, next(self._order), folder, place))

    def _look(self, folder: _Folder, place: Path, *, urgent: bool = False) -> None:
        """Read the runs of one folder, and decide about each."""
        with self._guard(folder, place):
            if urgent and not folder.seen:
                # It is looked at before those above it. A policy in one of them counts, and must be known again when it is another one later.
                for above in reversed([above for above in place.parents if above.is_relative_to(folder.path)]):
                    self._policy_seen(folder, above)
            self._policy_seen(folder, place, changed=urgent)
            self._look_at(folder, place)

    def _look_at(self, folder: _Folder, place: Path) -> None:
        now = self.clock.now()
        try:
            resolve = self._resolver(folder)
            if place in self._policy_marks:
                # What is refused in it may be the very reason for which no run is found.
                for warning in resolve(place, None).warnings:
                    self._tell_once(warning, level="warning")
            found = visit.runs_at(place, resolve)
        except ConfigError as error:
            self._complain(error)
            return
        seen = set()
        for run, resolved in found:
            seen.add(run.key)
            self._sweep(set(resolved.output_dirs) - folder.output_dirs)
            folder.output_dirs.update(resolved.output_dirs)
            self._decide(folder, place, run, resolved, now)
        for key in self._by_place.get(place, set()) - seen:
            self._drop(key)
        self._note_rest(folder, place, (run for run, _ in found))

    @staticmethod
    def _sweep(places: Iterable[Path]) -> None:
        """Remove what renders left behind that were killed."""
        for place in places:
            with contextlib.suppress(EnvironmentFault):
                store.sweep_temporaries(place, time.time())

    def _decide(self, folder: _Folder, place: Path, run: Run, resolved: config.Resolved, now: Now) -> None:
        assert self._records is not None
        mark = fingerprint(run)
        known = self._runs.get(run.key)
        if known is not None and known.folder is not folder:
            # It was another's, or this one's before its watch began anew; that one's queue leads nowhere.
            self._drop(run.key)
            known.folder = folder
            known = self._runs.get(run.key)
        if known is None and self._at_rest.get(hash(run.key)) == hash(mark):
            return
        if known and (known.visiting or (known.queued and known.sighting.fingerprint == mark)):
            # Whoever visits it looks for himself, and it is looked at again afterwards.
            return
        sighting = self._sighted(folder, run, mark, known, now)
        receipt = visit.receipt_of(run, self._records)
        succeeded = self._succeeded(run)
        sight = visit.see(run, resolved, receipt, sighting, succeeded=succeeded, max_attempts=self._service.daemon.max_attempts)
        action = next_action(sight, resolved.policy, now)
        is_new = known is None
        if known is None:
            known = _Known(key=run.key, run_id=run.run_id, name=run.name, place=place, folder=folder, sighting=sighting, action=action)
            for note in (*run.notes, *resolved.warnings):
                self._tell_once(f"run {run.name}: {note}", level="warning")
            self._remember(known)
        elif known.sighting.fingerprint != mark:
            known.faults = known.frame_faults = known.changes = 0
        changed = is_new or (known.action.phase, known.action.reason) != (action.phase, action.reason)
        known.sighting, known.writer, known.succeeded = sighting, _writer_of(run), succeeded
        self._note_writer(run, now)
        self._settle(known, action, mark, str(resolved.watched), tell=changed)
        if action.do is Do.WAIT and sight.writer is WriterState.ALIVE:
            # Its end makes no event; and once it is known, there is little left to wait for.
            self._set_timer(known, now.awake + WRITER_CHECK)
        self._encode_live(known, run, resolved, action)

    def _encode_live(self, known: _Known, run: Run, resolved: config.Resolved, action: Action) -> None:
        """Have a run that goes on encoded while it does, or tell who does that how it stands."""
        if (live := self._lives.get(known.key)) is not None:
            if action.do is Do.REST:
                self._end_live(known.key)
            else:
                live.look(run)
        elif action.do is Do.WAIT and action.phase is Phase.RECORDING and run.frames and not known.lived:
            if len(self._lives) >= self._workers or self._ending or self._paused(known.folder):
                return
            with self._guard(known.folder, known.place):
                begun = visit.go_live(run, resolved, means=self._means(known), nice=self._service.daemon.nice, news=self.wake)
                if begun is not None:
                    known.lived = True
                    self._lives.add(known.key, begun)
                    self._observer.say(known.name, f"encoded while it goes on: {plural(begun.promised, 'frame')} are promised", level="debug")

    def _paused(self, folder: _Folder) -> bool:
        now = self.clock.now().awake
        return now < self._global_pause or now < folder.paused_until or self._asleep(folder)

    def _end_refused(self) -> None:
        """Let go the live encodes that were given up: another run may have their place."""
        for key, reason in self._lives.refused():
            known = self._runs.get(key)
            if known is None or not known.visiting:
                self._observer.say(known.name if known else str(key), f"no longer encoded while it goes on: {reason}", level="debug")
                self._end_live(key)

    def _end_live(self, key: RunKey) -> None:
        if self._lives.end(key) and key in self._runs:
            self._runs[key].progress.clear()

    def _settle(self, known: _Known, action: Action, mark: str, watched: str, *, tell: bool) -> None:
        """Take over a decision: queue it, set a timer, or let the run rest."""
        known.action = action
        settled = action.do is Do.REST and action.phase in (Phase.RENDERED, Phase.CLEARED)
        self._write_down(known, action.phase, action.reason, mark, watched, at_rest=settled)
        if known.queued and action.do in (Do.WAIT, Do.REST):
            known.queued = False
            known.folder.queue.remove(known)
        if action.do is Do.WAIT:
            assert action.at is not None
            self._set_timer(known, action.at)
        elif action.do is Do.REST:
            if settled and tell and "its frames stay" in action.reason:
                self._observer.say(known.name, action.reason, level="warning")
            if settled:
                self._at_rest[hash(known.key)] = hash(mark)
                if not known.visiting:
                    self._drop(known.key)
            elif action.phase in (Phase.QUARANTINED, Phase.HELD) and tell:
                self._observer.say(known.name, f"{action.phase}: {action.reason}", level="warning")
                self._failed.update({known.key} if action.phase is Phase.QUARANTINED else ())
        elif not known.queued and not known.visiting:
            known.queued = True
            # What takes no time goes first: it also makes room.
            (known.folder.queue.append if action.do is Do.RENDER else known.folder.queue.appendleft)(known)
            if action.do is Do.RENDER:
                self._observer.say(known.name, f"{action.phase}: {action.reason}")

    def _set_timer(self, known: _Known, at: float) -> None:
        """Have a run looked at at a time, or before: an earlier look finds out about the later one, so that one timer a run is enough."""
        if at < known.timer:
            known.timer = at
            heapq.heappush(self._timers, (at, next(self._order), known.key))

    def _write_down(self, known: _Known, phase: str, reason: str, mark: str, watched: str, *, at_rest: bool) -> None:
        """Have the receipts know where a run stands."""
        key = known.key
        self._saved[key] = Seen(
            key=key, run_id=known.run_id, name=known.name, watched=watched, phase=phase, reason=reason, fingerprint=mark, at_rest=at_rest
        )

    def _sighted(self, folder: _Folder, run: Run, mark: str, known: _Known | None, now: Now) -> visit.Sighting:
        if known is not None:
            return known.sighting if known.sighting.fingerprint == mark else visit.Sighting(fingerprint=mark, since=now.awake)
        if now.awake - folder.clock_read > CLOCK_GOOD_FOR:
            folder.clock, folder.clock_read = folder.watcher.clock() if folder.watcher else None, now.awake
        clock = folder.clock
        # ctime: what `cp -p` and `touch` cannot set, so that a copy of an old run is as young as it is here.
        newest = max((frame.ctime_ns for frame in run.frames), default=0) / 1e9
        age = max(0.0, clock - newest) if clock is not None and newest else 0.0
        return visit.Sighting(fingerprint=mark, since=now.awake, age=age)

    def _succeeded(self, run: Run) -> bool:
        """Whether the writer of *run* has begun another one after it; batches and passes of one job, which share a group, go on side by side."""
        writer, own = _writer_of(run), _began(run)
        if writer is None or own is None or run.sidecar is None:
            return False
        latest = self._begun.get(writer)
        return latest is not None and latest[0] > own and (latest[1] is None or latest[1] != run.sidecar.group_id)

    def _note_writer(self, run: Run, now: Now) -> None:
        """Remember when a writer, by its own clock, began its latest run, and have its earlier ones looked at."""
        writer, began = _writer_of(run), _began(run)
        if writer is None or began is None or run.sidecar is None:
            return
        latest = self._begun.get(writer)
        if latest is None or began > latest[0]:
            self._begun[writer] = (began, run.sidecar.group_id)
            for known in self._runs.values():
                if known.writer == writer and known.key != run.key and known.action.do is Do.WAIT:
                    self._set_timer(known, now.awake)

    def _remember(self, known: _Known) -> None:
        self._runs[known.key] = known
        self._by_place.setdefault(known.place, set()).add(known.key)

    def _drop(self, key: RunKey) -> None:
        known = self._runs.get(key)
        if known is None or known.visiting:
            return
        self._end_live(key)
        del self._runs[key]
        if known.queued:
            known.folder.queue.remove(known)
        keys = self._by_place.get(known.place, set())
        keys.discard(key)
        if not keys:
            self._by_place.pop(known.place, None)

    def _forget_place(self, folder: _Folder, place: Path) -> None:
        for key in list(self._by_place.get(place, ())):
            # One that has become another's is not gone.
            if self._runs[key].folder is folder:
                self._drop(key)
                if key.folder != str(place) and os.path.isdir(key.folder):
                    # Only one of the parts of an appended run has gone; any other leads to it as well.
                    self._pending.update(dict.fromkeys((folder, part) for part in store.folders_in(Path(key.folder))))

    # --- policies -------------------------------------------------------------------------------------------------------------------

    def _resolver(self, folder: _Folder) -> visit.Resolve:
        resolve = visit.resolver(service=self._service, watched=folder.path)

        def with_memory(place: Path, overrides: Mapping[str, object] | None) -> config.Resolved:
            asked = place
            if overrides is None:
                # What no file of its own says otherwise is as it is above: ten thousand folders need not read the same files each.
                while place not in self._resolved and place != folder.path and not os.path.lexists(place / config.FILE_NAME):
                    self._read.setdefault(place, None)
                    place = place.parent if place.is_relative_to(folder.path) else folder.path
                if place in self._resolved:
                    found = self._resolved[asked] = self._resolved[place]
                    return found
                for above in (place, *place.parents):
                    if above.is_relative_to(folder.path):
                        self._read.setdefault(above, store.mark_of(above / config.FILE_NAME))
            try:
                resolved = resolve(place, overrides)
            except ConfigError as error:
                if overrides is not None:
                    return with_memory(place, None)
                known = self._policies.get(place)
                if known is None:
                    raise
                self._complain(error, "\nthe last valid policy stays in force")
                return known
            if self._complaints and overrides is None:
                mended = str(place / config.FILE_NAME)
                self._complaints = {told for told in self._complaints if mended not in told}
            if overrides is None:
                if len(self._policies) >= MOST_POLICIES:
                    self._policies.clear()
                self._policies[place] = self._resolved[place] = self._resolved[asked] = resolved
            return resolved

        return with_memory

    def _policy_seen(self, folder: _Folder, place: Path, *, changed: bool = False) -> None:
        """A stepwatch.yaml lies here: when it has changed, everything below may be another thing now.

        One that nobody knew is no change during the first look, which comes from above; unless it is *changed* what lies there.
        """
        mark = store.mark_of(place / config.FILE_NAME)
        before = self._policy_marks.get(place)
        if mark is None:
            self._policy_marks.pop(place, None)
        else:
            self._policy_marks[place] = mark
        is_other = self._read.get(place, mark) != mark
        if is_other:
            # What was read for this turn, to find out what is left out here, is of yesterday.
            self._read_anew()
        if is_other or (before != mark and (before is not None or folder.seen or changed)):
            for line in [line for line in self._told if str(place / config.FILE_NAME) in line]:
                self._told.discard(line)
            if folder.watcher:
                folder.watcher.look_again(None)
                self._hinted = True

    def _mark_of_config(self) -> object:
        path = self._config_file()
        return store.mark_of(path) if path else None

    def _check_config(self, now: Now) -> None:
        """Take over an edited service file; a wrong one is told of once and changes nothing."""
        self._next_config = now.awake + CONFIG_CHECK
        mark = self._mark_of_config()
        asked, self._reload = self._reload, False
        if mark == self._config_mark and not asked:
            return
        self._config_mark = mark
        system.notify("RELOADING=1")
        try:
            new = self._load()
        except (ConfigError, EnvironmentFault) as error:
            complaints = error.complaints if isinstance(error, ConfigError) else (error.message,)
            self._observer.note("\n".join(complaints) + "\nthe configuration stays as it was", level="error")
        else:
            self._take_over(new)
            self._observer.note("the configuration is read again")
        system.notify("READY=1")

    def _take_over(self, new: ServiceConfig) -> None:
        old, self._service = self._service, new
        self._told.clear()
        self._complaints = set()
        wanted = {os.path.realpath(entry.path): entry for entry in new.watch}
        for folder in list(self._folders):
            entry = wanted.pop(str(folder.path), None)
            if entry is None or (entry.poll, new.daemon.rescan) != (folder.entry.poll, old.daemon.rescan):
                self._close_folder(folder)
                self._folders.remove(folder)
                if entry is not None:
                    wanted[str(folder.path)] = entry
            else:
                folder.entry = entry
                if folder.watcher:
                    folder.watcher.look_again(None)
        self._try_now()
        self._open_folders([entry for entry in new.watch if os.path.realpath(entry.path) in wanted], must=False)
        if (workers_for(new.daemon), new.daemon.nice) != (self._workers, old.daemon.nice):
            retired = self._executor
            self._open_executor()
            if retired is not None:
                # What it is at is finished, and waited for when we end.
                retired.shutdown(wait=False)
                self._retired.append(retired)
        self._hinted = True

    # --- watched folders ------------------------------------------------------------------------------------------------------------

    def _open_folders(self, entries: Sequence[WatchEntry], *, must: bool) -> None:
        for entry in entries:
            folder = _Folder(path=Path(os.path.realpath(entry.path)), entry=entry)
            if any(folder.path == other.path for other in self._folders):
                continue
            self._folders.append(folder)
            self._watch(folder, self.clock.now(), must=must)

    def _watch(self, folder: _Folder, now: Now, *, must: bool = False) -> None:
        """Lock a folder and begin to watch it; one that is not there, or is held by somebody else, is tried again later."""
        if now.awake < folder.paused_until:
            return
        if folder.lock is None:
            try:
                folder.lock = system.FolderLock.acquire(folder.path)
            except (BusyError, EnvironmentFault) as error:
                if must and isinstance(error, BusyError):
                    raise
                there = os.path.isdir(folder.path)
                folder.problem = error.message if there else "the folder is not there"
                folder.paused_until = now.awake + FIRST_PAUSE
                what = error.message if there else f"{printable(str(folder.path))} is not there"
                self._tell_once(f"{what}; it is watched as soon as that has changed", level="warning")
                return
        folder.problem = ""
        poll = folder.entry.poll
        folder.watcher = Watcher(
            folder.path,
            poll=poll if isinstance(poll, str) else float(poll),
            rescan=float(self._service.daemon.rescan),
            exclude=lambda path: self._left_out(folder, path),
            recognise=lambda path, digest: self._is_resting(folder, path, digest),
            hint=self.wake,
            turn=SCANNING,
        )
        folder.seen = False
        folder.watcher.start()
        self._observer.note(f"watching {printable(str(folder.path))}")
        self._hinted = True

    def _left_out(self, folder: _Folder, path: str) -> bool:
        """Whether what lies there is none of this watched folder's runs: outputs go there, or it is watched by itself."""
        above = os.path.dirname(path)
        if above not in self._left:
            places = {other.path for other in self._folders}
            with contextlib.suppress(ConfigError):
                places.update(self._resolver(folder)(Path(above), None).output_dirs)
            self._left[above] = frozenset(map(os.fspath, places))
        if path in self._left[above]:
            return True
        other = system.held_by_other(path)
        if other is not None:
            self._tell_once(f"{printable(path)} is left to {other}", level="warning")
        return other is not None

    def _close_folders(self) -> None:
        for folder in self._folders:
            self._close_folder(folder)

    def _close_folder(self, folder: _Folder) -> None:
        for known in [known for known in self._runs.values() if known.folder is folder]:
            self._drop(known.key)
        if folder.watcher:
            folder.watcher.stop()
            folder.watcher = None
        if folder.lock:
            folder.lock.release()
            folder.lock = None

    def _tell_health(self, folder: _Folder) -> None:
        assert folder.watcher is not None
        health = folder.watcher.health
        asleep = health.state == "asleep"
        # A sentence whose numbers alone have changed is told already.
        told = health.state + re.sub(r"[0-9]+", "", health.reason)
        if told != folder.told and (health.state != "watching" or folder.told):
            level = "info" if health.state == "watching" else "warning"
            self._observer.note(f"{printable(str(folder.path))}: {health.state}{f': {health.reason}' * bool(health.reason)}", level=level)
        if folder.told.startswith("asleep") and not asleep:
            # What was due when it fell asleep is as unchanged as its folders.
            folder.watcher.look_again(None)
            self._hinted = True
        folder.told = told
        if not asleep:
            self._keep_lock(folder)

    def _keep_lock(self, folder: _Folder) -> None:
        """Hold the lock on what lies at the path now: the folder may have been deleted and made again, or another disk mounted over it."""
        if folder.lock and not folder.lock.still_same():
            folder.lock.release()
            folder.lock = None
        if folder.lock is None and folder.watcher and folder.watcher.is_there():
            # Only what the watcher has recognised: after an unmount the path leads to an empty folder, where nothing is to be written.
            try:
                folder.lock = system.FolderLock.acquire(folder.path)
            except (BusyError, EnvironmentFault) as error:
                self._tell_once(error.message, level="error")

    # --- timers and visits ----------------------------------------------------------------------------------------------------------

    def _fire_timers(self, now: Now) -> None:
        places: dict[tuple[int, Path], tuple[_Folder, Path]] = {}
        while self._timers and self._timers[0][0] <= now.awake:
            at, _, key = heapq.heappop(self._timers)
            known = self._runs.get(key)
            if known is None or at != known.timer:
                continue
            known.timer = math.inf
            if not known.visiting and not known.queued:
                places[id(known.folder), known.place] = (known.folder, known.place)
        for folder, place in places.values():
            if not self._asleep(folder):
                self._look(folder, place)

    @staticmethod
    def _asleep(folder: _Folder) -> bool:
        return folder.watcher is None or folder.watcher.health.state == "asleep" or folder.lock is None

    def _dispatch(self, now: Now) -> None:
        """Give free workers what is due, folder by folder in turn, so that none waits for another's backlog."""
        if self._ending or self._executor is None or now.awake < self._global_pause:
            return
        skipped = 0
        while len(self._futures) < self._workers and skipped < len(self._folders):
            folder = self._folders[self._turn % len(self._folders)]
            self._turn += 1
            known = self._next_in(folder, now)
            if known is None:
                skipped += 1
                continue
            skipped = 0
            known.queued, known.visiting, known.sign_of_life = False, True, now.awake
            future = self._send(functools.partial(self._visit, known, self._lives.get(known.key)))
            if future is None:
                known.queued, known.visiting = True, False
                folder.queue.appendleft(known)
                return
            self._futures[future] = known
            future.add_done_callback(lambda _: self.wake())

    def _send(self, work: Callable[[], _T]) -> Future[_T | None] | None:
        """Have a worker do something; None while no thread is to be had, for the machine has limits."""
        assert self._executor is not None
        called_off = threading.Event()
        try:
            return self._executor.submit(lambda: None if called_off.is_set() else work())
        except RuntimeError as error:
            # It waits in the pool all the same, for whatever thread comes next.
            called_off.set()
            self._global_pause = self.clock.now().awake + FIRST_PAUSE
            self._tell_once(f"no work can be begun: {error}", level="error")
            return None

    def _next_in(self, folder: _Folder, now: Now) -> _Known | None:
        if now.awake < folder.paused_until or self._asleep(folder):
            return None
        if folder.pauses and any(known.folder is folder for known in self._futures.values()):
            # After a fault one run at a time finds out whether it is over.
            return None
        for known in folder.queue:
            if known.hold_until <= now.awake:
                folder.queue.remove(known)
                return known
        return None

    def _visit(self, known: _Known, live: Live | None) -> visit.Step | None:
        """In a worker's thread."""
        return visit.advance(
            known.key,
            find=lambda key: self._find(known, key),
            sighting=known.sighting,
            succeeded=known.succeeded,
            patient=known.frame_faults < FRAME_FAULTS,
            means=self._means(known),
            live=live,
        )

    def _means(self, known: _Known) -> visit.Means:
        assert self._records is not None
        service = self._service
        return visit.Means(
            records=self._records,
            ffmpeg=lambda: self._ffmpeg(service),
            options=visit.Options(min_free_space=service.daemon.min_free_space, verbose=self._verbose),
            observer=_Told(self._observer, known, self.clock),
            stop=self._stop,
            now=self.clock.now,
            max_attempts=service.daemon.max_attempts,
        )

    @staticmethod
    def _ffmpeg(service: ServiceConfig) -> str:
        binary = encoder.find_ffmpeg(service.ffmpeg)
        encoder.capabilities(binary)
        return binary

    def _find(self, known: _Known, key: RunKey) -> tuple[Run, config.Resolved] | None:
        """Read one run anew. One whose frames are all in the trash has nothing left on disk, and is still to be concluded."""
        resolve = self._resolver(known.folder)
        found = next(((run, resolved) for run, resolved in visit.runs_at(known.place, resolve) if run.key == key), None)
        if found is None and known.action.do is Do.CLEAR:
            return Run(key=key, name=known.name, frames=()), resolve(known.place, None)
        return found

    def _reap(self) -> None:
        for chore in [chore for chore in self._chores if chore.done()]:
            self._chores.discard(chore)
            if (fault := chore.exception()) is not None:
                self._observer.note(f"the trash could not be looked through: {fault}", level="warning")
        self._end_refused()
        for future in [future for future in self._futures if future.done()]:
            known = self._futures.pop(future)
            known.visiting = False
            known.progress.clear()
            if (live := self._lives.get(known.key)) is not None and live.claimed:
                self._end_live(known.key)
            now = self.clock.now()
            try:
                step = future.result()
            except Interrupted:
                continue
            except EnvironmentFault as error:
                self._ledger_fault(error, now)
                step = None
            except Exception as error:  # noqa: BLE001  # a mistake of ours must not end the daemon, nor be tried in a tight loop
                _log.exception("visit of run %s", known.name)
                self._observer.say(known.name, f"stepwatch made a mistake: {type(error).__name__}: {error}", level="error")
                known.hold_until = now.awake + LONGEST_HOLD
                step = None
            if step is not None:
                self._concluded(known, step, now)
                self._on_step(step)
            self._look_again(known)
        self._reconcile()

    def _reconcile(self) -> None:
        """Receipts that had to begin anew know all runs again once none is left to be looked for among the outputs."""
        assert self._records is not None
        waiting = any(known.queued or known.action.do is Do.WAIT for known in self._runs.values())
        try:
            if not self._futures and not waiting and not self._is_looking() and self._records.ledger.rebuilt:
                self._records.ledger.reconciled()
        except EnvironmentFault as error:
            self._ledger_fault(error, self.clock.now())

    def _look_again(self, known: _Known) -> None:
        if known.folder not in self._folders:
            self._drop(known.key)
        elif known.hold_until > self.clock.now().awake and self._runs.get(known.key) is known:
            # It waits in the queue, where others pass it by.
            known.queued = True
            known.folder.queue.append(known)
            heapq.heappush(self._timers, (known.hold_until, next(self._order), known.key))
        elif not self._asleep(known.folder):
            self._at_rest.pop(hash(known.key), None)
            self._look(known.folder, known.place)

    def _concluded(self, known: _Known, step: visit.Step, now: Now) -> None:
        folder = known.folder
        error = step.error
        if error is None:
            folder.pauses, folder.problem = 0, ""
            known.faults = 0
            if step.action.do is Do.CLEAR and step.result is not None:
                # Its folder may be gone, and nobody will find it there again.
                self._write_down(known, step.result.phase, step.result.reason, known.sighting.fingerprint, str(folder.path), at_rest=True)
            if step.action.do is Do.RENDER:
                self._rendered += 1
                self._failed.discard(known.key)
            return
        if not isinstance(error, visit.FREE_ERRORS):
            self._failed.add(known.key)
            return
        if isinstance(error, FramesChangedError):
            # A file system that never says the same of a file twice must not keep us busy for ever.
            known.changes += 1
            if known.changes > 1:
                known.hold_until = now.awake + min(LONGEST_HOLD, FIRST_PAUSE * 2.0 ** min(known.changes - 2, 10))
            return
        if isinstance(error, UnreadableFrameError):
            known.frame_faults += 1
            if known.frame_faults > FRAME_FAULTS:
                # It cost the run an attempt, and the others nothing.
                self._failed.add(known.key)
                return
        known.faults += 1
        known.hold_until = now.awake + min(LONGEST_HOLD, FIRST_PAUSE * 2.0 ** min(known.faults, 10))
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(folder.pauses, 10))
        folder.pauses += 1
        folder.paused_until = now.awake + pause
        folder.problem = error.message
        self._tell_once(f"{printable(str(folder.path))} pauses: {error.message}; it goes on by itself", level="warning")

    def _ledger_fault(self, error: EnvironmentFault, now: Now) -> None:
        """Without receipts nothing is rendered: wait, and open them anew when they are broken."""
        self._global_pause = now.awake + FIRST_PAUSE
        self._tell_once(error.message, level="error")
        if isinstance(error, ReceiptsLost):
            broken = self._records
            try:
                self._records = self._open_records()
            except StepwatchError as still:
                self._tell_once(still.message, level="error")
                return
            if broken is not None:
                broken.ledger.close()
            for folder in self._folders:
                if folder.watcher:
                    folder.watcher.look_again(None)
            self._hinted = True

    # --- the trash ------------------------------------------------------------------------------------------------------------------

    def _keep_house(self, now: Now) -> None:
        """Every now and then: conclude what a crash has left, and empty the trash by policy."""
        while self._cut_short:
            folder, manifest = self._cut_short.popleft()
            if not self._asleep(folder):
                with self._guard(folder):
                    self._conclude_clearing(folder, manifest, now)
        for folder in self._folders:
            if self._asleep(folder) or folder.keeping_house or now.awake < folder.next_housekeeping or self._ending or self._executor is None:
                continue
            if not folder.seen:
                # First things first: the trash is in no hurry.
                continue
            folder.next_housekeeping = now.awake + HOUSEKEEPING
            with self._guard(folder):
                self._sweep(folder.output_dirs)
                # Before it is sent: it may be done before we are told that it is on its way.
                folder.keeping_house = True
                chore = self._send(functools.partial(self._purge, folder))
                if chore is None:
                    folder.keeping_house, folder.next_housekeeping = False, self._global_pause
                    return
                self._chores.add(chore)
                chore.add_done_callback(lambda _: self.wake())

    def _conclude_clearing(self, folder: _Folder, manifest: Manifest, now: Now) -> None:
        assert self._records is not None
        key = RunKey(folder=manifest.source, group=manifest.group)
        receipt = self._records.ledger.get(key)
        if key in self._runs or receipt is None:
            return
        action = Action(do=Do.CLEAR, phase=Phase.RENDERED, reason="clearing was cut short")
        empty = Run(key=key, name=receipt.name, frames=())
        sighting = visit.Sighting(fingerprint=fingerprint(empty), since=now.awake)
        known = _Known(
            key=key, run_id=receipt.run_id, name=receipt.name, place=Path(key.folder), folder=folder, sighting=sighting, action=action, queued=True
        )
        self._remember(known)
        folder.queue.appendleft(known)

    def _purge(self, folder: _Folder) -> None:
        """In a worker's thread: find clearings that were cut short, and let go what has been in the trash long enough."""
        try:
            self._cut_short.extend((folder, manifest) for manifest in trash.unfinished(folder.path))
            for purged in visit.empty_trash(folder.path, self._resolver(folder), now=time.time(), stop=self._stop):
                kept = f"; {plural(len(purged.kept), 'file')} stay: {', '.join(purged.kept[:3])}" if purged.kept else ""
                removed = plural(purged.removed, "file")
                self._observer.say(purged.manifest.name, f"{removed} removed from the trash ({purged.size / 1e6:.1f} MB){kept}")
        finally:
            folder.keeping_house = False

    # --- records, words, questions --------------------------------------------------------------------------------------------------

    def _save(self, *, at_last: bool = False) -> None:
        """Write down where the runs stand, for people who ask when no daemon runs, and for the next start."""
        if not (self._saved or self._resting) or self._records is None or (self.clock.now().awake < self._global_pause and not at_last):
            return
        try:
            self._records.ledger.see_many(self._saved.values(), wall=time.time())
            self._records.ledger.note_rests(self._resting)
        except EnvironmentFault as error:
            self._ledger_fault(error, self.clock.now())
        else:
            self._saved.clear()
            self._resting.clear()

    def _complain(self, error: ConfigError, what_now: str = "") -> None:
        told = "\n".join(error.complaints)
        if told not in self._complaints:
            self._complaints |= {told}
            self._observer.note(told + what_now, level="error")

    def _tell_once(self, sentence: str, *, level: str) -> None:
        if sentence not in self._told:
            if len(self._told) >= MOST_TOLD:
                self._told.clear()
            self._told.add(sentence)
            self._observer.note(sentence, level=level)

    def _tell_manager(self, now: Now) -> None:
        """Tell systemd that the loop has turned, unless a visit has been without a sign of life for too long."""
        if now.awake - self._notified < PING and self._notified:
            return
        self._notified = now.awake
        if any(now.awake - known.sign_of_life > SIGN_OF_LIFE for known in self._futures.values()):
            return
        waiting = sum(len(folder.queue) for folder in self._folders)
        looks = [look for folder in self._folders if (look := self._first_look(folder)) is not None]
        first = f"first look: {sum(look['done'] for look in looks):,} of {sum(look['found'] for look in looks):,} folders; " if looks else ""
        system.notify(f"WATCHDOG=1\nSTATUS={first}{len(self._futures)} rendering, {waiting} waiting, {self._rendered} rendered")

    def _first_look(self, folder: _Folder) -> dict[str, int] | None:
        """How far the first look at a watched folder has come; None when it is over, or waits for the folder itself."""
        if folder.seen or self._asleep(folder):
            return None
        assert folder.watcher is not None
        health = folder.watcher.health
        return {"done": max(0, health.folders - self._ahead_in(folder)), "found": health.folders + (health.ahead or 0)}

    def _answer(self, question: Question) -> dict[str, object]:
        if question.ask == "status":
            return self.snapshot()
        if question.ask == "retry":
            for folder in self._folders:
                if folder.watcher:
                    folder.watcher.look_again(None)
            self._try_now()
            return {"ok": True}
        return {"error": f"no such question: {printable(question.ask)}"}

    def _try_now(self) -> None:
        """Somebody has done something about it: no pause is any longer."""
        for folder in self._folders:
            folder.paused_until = 0.0
        for known in self._runs.values():
            known.hold_until = 0.0
        self._hinted = True

    def snapshot(self) -> dict[str, object]:
        """What the daemon does now, as ``status --json`` prints it."""
        now = self.clock.now()
        folders = []
        for folder in list(self._folders):
            health = folder.watcher.health if folder.watcher else None
            paused = folder.paused_until > now.awake and bool(folder.problem)
            free = None
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(folder.path).free
            folders.append(
                {
                    "path": str(folder.path),
                    "state": ("stopped" if self._ending else "asleep") if health is None else "paused" if paused else health.state,
                    "reason": folder.problem or (health.reason if health else ""),
                    "file_system": health.kind if health else "",
                    "folders": health.folders if health else 0,
                    "watches": health.watches if health else 0,
                    "recrawls": health.recrawls if health else 0,
                    "first_look": self._first_look(folder),
                    "waiting": len(folder.queue),
                    "free_bytes": free,
                }
            )
        runs = [self._run_facts(known, now) for known in list(self._runs.values())]
        runs.sort(key=lambda facts: (facts["phase"] != Phase.RENDERING, facts["phase"], facts["name"]))
        return {
            "schema": 1,
            "daemon": {"pid": os.getpid(), "version": __version__, "started": self._started, "workers": self._workers, "ending": bool(self._ending)},
            "folders": folders,
            "runs": runs[:MOST_SHOWN],
            "active": len(runs),
            "at_rest": len(self._at_rest),
            "rendering": len(self._futures),
            "waiting": sum(len(folder.queue) for folder in self._folders),
            "rendered": self._rendered,
        }

    def _run_facts(self, known: _Known, now: Now) -> dict[str, object]:
        rendering = known.visiting and known.action.do is Do.RENDER
        at, live = known.action.at, self._lives.get(known.key)
        return {
            "run": known.run_id,
            "name": known.name,
            "dir": known.key.folder,
            "phase": str(Phase.RENDERING if rendering else known.action.phase),
            "reason": known.action.reason,
            "waiting": known.queued,
            "live": {"encoded": live.fed, "promised": live.promised} if live is not None else None,
            "next_look": round(at - now.awake, 1) if at is not None and known.action.do is Do.WAIT else None,
            "progress": [
                {"label": label, "done": done, "total": total, "speed": speed} for label, (done, total, speed) in dict(known.progress).items()
            ],
        }


class _Told:
    """Passes on what a visit tells, and keeps its progress for ``status``."""

    def __init__(self, observer: Observer, known: _Known, clock: AwakeClock) -> None:
        self._observer = observer
        self._known = known
        self._clock = clock

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None:
        self._known.sign_of_life = self._clock.now().awake
        self._observer.say(run_name, sentence, level=level)

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None:
        self._known.sign_of_life = self._clock.now().awake
        self._known.progress[label] = (done, total, speed)
        self._observer.progress(run_name, label, done, total, speed)

    def finished(self, run_name: str) -> None:
        self._observer.finished(run_name)


def _wake_pipe() -> tuple[int, int]:
    """A pipe neither of whose ends ever makes anybody wait."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def _writer_of(run: Run) -> Writer | None:
    """Who writes a run, if its sidecar tells enough to know the same writer again."""
    return run.sidecar.writer if run.sidecar and run.sidecar.writer.pid is not None else None


def _began(run: Run) -> float | None:
    """When a run began, by its writer's clock."""
    with contextlib.suppress(ValueError, OverflowError):
        if run.sidecar and run.sidecar.created:
            return datetime.fromisoformat(run.sidecar.created).timestamp()
    return None


def workers_for(daemon: DaemonConfig) -> int:
    """Renders at the same time: ffmpeg uses several processors itself, and the host wants some."""
    if daemon.workers != "auto":
        return daemon.workers
    return max(1, min(4, (os.cpu_count() or 1) // 4))
