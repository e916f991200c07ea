"""Receipts: what stepwatch has durably recorded about every run, in one SQLite file.

Every method that writes is one transaction, on the disk when it returns (`synchronous=FULL`) or not there at all, so that a crash at any instant
leaves what the last method that returned has said. Any number of threads may share a `Ledger`, and any number of processes the file: the daemon
and `stepwatch render` beside it.

The file only holds what folders and animations cannot tell again, so a lost one costs a look at every run, never an animation or a frame. A file
that cannot be trusted is therefore not repaired but set aside, whole, under another name, and a new one is `rebuilt` from what is on the disk.
Since that can happen under the hands of another process, every transaction makes sure that the file it wrote is still the one under the name.

Names of files are kept as the bytes they have on the disk, so that a process that knows another locale finds the same receipt. The frames of a
render are by far the most of it and lie in a table of their own: nothing but `get` and its like reads them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from stepwatch import system
from stepwatch.core.lifecycle import backoff
from stepwatch.core.model import Attempts, Covered, Frame, Published, Receipt, Render, Role, RunKey, Word
from stepwatch.core.naming import printable
from stepwatch.core.policy import CleanupPolicy
from stepwatch.errors import EnvironmentFault

APPLICATION = 0x73747077
"""``stpw``: how the file says whose it is."""
SCHEMA = 1
BUSY = 10.0
"""Seconds to wait for another process that is writing."""
WAL_LIMIT = 4 << 20
"""Bytes that the log beside the file keeps at most once it has been written back."""
CACHE = 256 << 10
"""Bytes of the file that SQLite keeps in memory; the system keeps it too, and a daemon waits for most of its life."""
_LEAST_ROOM = 64 << 10
"""Bytes: what SQLite needs for its log and shared memory to begin with."""
PAGE = 500
"""Receipts that are read at once when all are asked for."""

# What may lie beside the file; behind its name, as SQLite has it.
_COMPANIONS = ("-wal", "-shm", "-journal")
_DAMAGED = "-damaged"
_OPENING = "-opening"

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    folder BLOB NOT NULL, grouped BLOB NOT NULL,
    run_id TEXT NOT NULL, name TEXT NOT NULL, watched BLOB NOT NULL,
    tried TEXT NOT NULL DEFAULT '', count INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '', error_before TEXT NOT NULL DEFAULT '', trying INTEGER NOT NULL DEFAULT 0,
    word TEXT NOT NULL DEFAULT '', word_for TEXT NOT NULL DEFAULT '',
    phase TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', fingerprint TEXT NOT NULL DEFAULT '', at_rest INTEGER NOT NULL DEFAULT 0,
    updated REAL NOT NULL DEFAULT 0,
    UNIQUE (folder, grouped)
);
CREATE INDEX runs_by_run_id ON runs (run_id);
CREATE INDEX runs_by_fingerprint ON runs (fingerprint);
CREATE TABLE renders (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    generation TEXT NOT NULL, at REAL NOT NULL, incomplete INTEGER NOT NULL, guessed INTEGER NOT NULL,
    cleanup TEXT NOT NULL, missing TEXT NOT NULL, outputs TEXT NOT NULL, cleared INTEGER NOT NULL, clear_note TEXT NOT NULL,
    UNIQUE (run, generation, at)
);
CREATE TABLE frames (render INTEGER PRIMARY KEY REFERENCES renders (id) ON DELETE CASCADE, frames TEXT NOT NULL);
"""
_ADDED = "CREATE TABLE IF NOT EXISTS rests (folder BLOB PRIMARY KEY, mark INTEGER NOT NULL) WITHOUT ROWID"
"""Holds nothing that a look at a folder cannot tell again, so files without it are as good, and get it when they are opened."""
_RUN = "id, folder, grouped, run_id, name, watched, tried, count, not_before, error, word, word_for, phase, reason, updated"
_SEEN = "SELECT run_id, name, watched, phase, reason, fingerprint, at_rest FROM runs WHERE folder = ? AND grouped = ?"
_RENDER = "renders.id, generation, at, incomplete, guessed, cleanup, missing, outputs, cleared, clear_note, frames"

_log = logging.getLogger(__name__)

Row: TypeAlias = tuple[Any, ...]


RECEIPTS = "receipts.db"
"""Name of the file in the state folder."""


class ReceiptsFault(EnvironmentFault):
    """The receipts cannot be read or written; no run is to blame, and none can be worked on."""


class ReceiptsLost(ReceiptsFault):
    """The receipts that were open are damaged or no longer there; `Ledger.open` sets them aside and begins new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look at a run has found, for people and for the next start."""

    key: RunKey
    run_id: str
    name: str
    watched: str
    phase: str
    reason: str
    fingerprint: str
    at_rest: bool
    """For good: nothing is to be done until something changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A receipt without its frames: what a list of all runs shows."""

    key: RunKey
    run_id: str
    name: str
    watched: str
    phase: str
    reason: str
    attempts: int
    error: str
    word: Word
    updated: float
    outputs: tuple[str, ...]
    """Paths of the animations, oldest first, without those that went to the trash for a newer one."""
    renders: int


class _Nonsense(sqlite3.DatabaseError):
    """A row that SQLite reads without a complaint and that nobody has written."""


class _Unfit(Exception):
    """The file is not one that can be used; the first argument is the word for its new name, the second says why."""


class Ledger:
    """The receipts of all runs; `open` makes one, and every method may raise EnvironmentFault."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, notes: tuple[str, ...], clock: Callable[[], float]) -> None:
        self.path = path
        self.notes = notes
        """Sentences about what was wrong with the file that was there."""
        self._connection = connection
        self._clock = clock
        self._lock = threading.RLock()
        self._place = _identity(path)

    # --- opening and closing ----------------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, *, journal: Literal["wal", "delete"] = "wal", busy: float = BUSY, clock: Callable[[], float] = time.time) -> Self:
        """Open the receipts, or begin new ones where there are none that can be used; then `notes` says why.

        ``journal`` is ``delete`` where the file lies on a network file system, whose processes share no memory. Raises EnvironmentFault where
        nothing can be written, since no render may begin that could not be recorded.
        """
        path = Path(os.path.abspath(path))
        notes: list[str] = []
        try:
            _make_folder(path.parent)
            # One at a time: two that find the same damaged file must not set aside the new one of each other.
            with _opening(path, busy):
                try:
                    connection = _connect(path, journal, busy)
                except _Unfit as unfit:
                    kind, why = unfit.args
                    notes.append(_set_aside(path, kind, why, clock()))
                    connection = _connect(path, journal, busy)
                return cls(path, connection, notes=tuple(notes), clock=clock)
        except _Unfit as unfit:
            raise ReceiptsLost(f"receipts cannot be kept in {printable(str(path))}: a new file {unfit.args[1]}", hint=_HINT) from unfit
        except OSError as error:
            raise _cannot("opened", path, error.strerror or str(error)) from error
        except sqlite3.Error as error:
            raise _cannot("opened", path, _told(error, path)) from error

    def close(self) -> None:
        """Write the log back and close the file; harmless when it is closed."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- what is asked of all runs ----------------------------------------------------------------------------------------------------

    @property
    def rebuilt(self) -> bool:
        """Whether receipts may be missing here, since this file is new: look at what outputs say of themselves before rendering."""
        return self.meta(".rebuilt") == "1"

    def reconciled(self) -> None:
        """Say that what the disk tells has been recorded again: `rebuilt` is False from now on, in every process."""
        self.set_meta(".rebuilt", "0")

    def output_folders(self) -> set[Path]:
        """Where animations have been published: what a crash leaves behind lies there."""
        with self._reading() as connection:
            rows = connection.execute("SELECT outputs FROM renders")
            with _sense():
                return {
                    Path(place) for place in {os.path.dirname(output.path) for (text,) in rows for output in _outputs(text) if not output.superseded}
                }

    def meta(self, key: str) -> str | None:
        """Return a small fact."""
        with self._reading() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            return None if row is None else _text(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a small fact; keys that begin with a dot are the ledger's own."""
        if self.meta(key) != value:
            with self._writing() as connection:
                connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, _plain(value)))

    def fingerprints(self) -> dict[RunKey, str]:
        """Return the runs that were at rest for good when last seen, each with the fingerprint it had then."""
        with self._reading() as connection:
            # Row by row: a list of ten thousand would stay in the daemon's memory for good, as holes.
            rows = connection.execute("SELECT folder, grouped, fingerprint FROM runs WHERE at_rest")
            with _sense():
                return {_key(folder, group): fingerprint for folder, group, fingerprint in rows}

    def rests(self) -> dict[str, int]:
        """Return the marks of the folders all of whose runs are at rest for good, as `note_rests` was given them."""
        with self._reading() as connection:
            held = "SELECT 1 FROM runs WHERE runs.folder = rests.folder AND NOT at_rest"
            rows = connection.execute(f"SELECT folder, mark FROM rests WHERE NOT EXISTS ({held})")  # noqa: S608 - our own words
            with _sense():
                return {_path(folder): int(mark) for folder, mark in rows}

    def note_rests(self, marks: Mapping[str, int]) -> None:
        """Remember by which marks folders are known again in which everything is at rest."""
        if marks:
            with self._writing() as connection:
                rows = [(_bytes(folder), mark) for folder, mark in marks.items()]
                connection.executemany("INSERT OR REPLACE INTO rests (folder, mark) VALUES (?, ?)", rows)

    def summaries(self) -> tuple[Summary, ...]:
        """Return all receipts without their frames, in the order in which the runs were first seen."""
        with self._reading() as connection:
            connection.execute("BEGIN")
            rows = connection.execute(f"SELECT {_RUN} FROM runs ORDER BY id").fetchall()  # noqa: S608 - our own columns
            renders = connection.execute("SELECT run, outputs FROM renders ORDER BY id").fetchall()
            connection.execute("COMMIT")
        # The lock is free again: others need not wait for a list of ten thousand.
        try:
            with _sense():
                outputs: dict[int, list[str]] = {}
                for run, text in renders:
                    outputs.setdefault(run, []).append(text)
                return tuple(_summary(row, outputs.get(row[0], [])) for row in rows)
        except sqlite3.Error as error:
            raise self._fault(error, "read") from error

    def all(self) -> Iterator[Receipt]:
        """Yield every receipt whole, in the order in which the runs were first seen; a few at a time, and others may write meanwhile."""
        last = 0
        while True:
            with self._reading() as connection:
                sql = f"SELECT {_RUN} FROM runs WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 - our own columns
                rows = connection.execute(sql, (last, PAGE)).fetchall()
                receipts = [_receipt(connection, row) for row in rows]
            if not rows:
                return
            yield from receipts
            last = rows[-1][0]

    def get(self, key: RunKey) -> Receipt | None:
        """Return everything that is recorded about a run."""
        with self._reading() as connection:
            row = connection.execute(f"SELECT {_RUN} FROM runs WHERE folder = ? AND grouped = ?", _columns(key)).fetchone()  # noqa: S608
            return None if row is None else _receipt(connection, row)

    def by_run_id(self, run_id: str) -> tuple[Receipt, ...]:
        """Return the receipts of a run by what it is called, wherever it lay."""
        with self._reading() as connection:
            rows = connection.execute(f"SELECT {_RUN} FROM runs WHERE run_id = ? ORDER BY id", (_plain(run_id),)).fetchall()  # noqa: S608
            return tuple(_receipt(connection, row) for row in rows)

    # --- what a look has found --------------------------------------------------------------------------------------------------------

    def by_fingerprint(self, fingerprint: str) -> tuple[RunKey, ...]:
        """Return the runs that looked exactly so when they were last seen: a folder that was renamed holds the same files as before."""
        with self._reading() as connection:
            rows = connection.execute("SELECT folder, grouped FROM runs WHERE fingerprint = ?", (fingerprint,)).fetchall()
            with _sense():
                return tuple(_key(folder, group) for folder, group in rows)

    def see(
        self, key: RunKey, run_id: str, name: str, watched: str, phase: str, reason: str, fingerprint: str, *, at_rest: bool, wall: float
    ) -> bool:
        """Record how a run was found; returns whether that was news, and writes nothing when it was not."""
        seen = Seen(key=key, run_id=run_id, name=name, watched=watched, phase=phase, reason=reason, fingerprint=fingerprint, at_rest=at_rest)
        return self.see_many((seen,), wall) == 1

    def see_many(self, seen: Iterable[Seen], wall: float) -> int:
        """Record how many runs were found, all or none; returns how many were news."""
        with self._lock:
            with self._reading() as connection:
                news = [one for one in seen if connection.execute(_SEEN, _columns(one.key)).fetchone() != _facts(one)]
            if not news:
                return 0
            with self._writing() as connection:
                for one in news:
                    run = _row(connection, one.key, run_id=one.run_id, name=one.name, watched=one.watched)
                    facts = (_plain(one.phase), _plain(one.reason), one.fingerprint, one.at_rest, wall, run)
                    connection.execute("UPDATE runs SET phase = ?, reason = ?, fingerprint = ?, at_rest = ?, updated = ? WHERE id = ?", facts)
            return len(news)

    # --- attempts ---------------------------------------------------------------------------------------------------------------------

    def begin_attempt(self, key: RunKey, run_id: str, name: str, watched: str, fingerprint: str, wall: float, jitter: float) -> int:
        """Count one more attempt at these frames, before it is made, and return its number; other frames than last time start anew.

        It stands until `record_render` or `refund_attempt`, whatever kills the process: a run that kills it is given up in the end.
        """
        with self._writing() as connection:
            run = _row(connection, key, run_id=run_id, name=name, watched=watched)
            tried, count, error = connection.execute("SELECT tried, count, error FROM runs WHERE id = ?", (run,)).fetchone()
            if tried != fingerprint:
                count, error = 0, ""
            count += 1
            not_before = wall + (backoff(count - 1, jitter) if count > 1 else 0.0)
            connection.execute(
                "UPDATE runs SET tried = ?, count = ?, not_before = ?, error_before = ?, error = '', trying = 1, at_rest = 0, updated = ?"
                " WHERE id = ?",
                (fingerprint, count, not_before, error, wall, run),
            )
            return int(count)

    def refund_attempt(self, key: RunKey) -> None:
        """Take the attempt back that is going on: the machine was at fault, not the run. Once only, and not after it has failed or succeeded.

        Which frames it was for stays known: what lies in their output folder may come from it.
        """
        with self._writing() as connection:
            connection.execute(
                "UPDATE runs SET count = max(count - 1, 0), not_before = 0,"
                " error = error_before, error_before = '', trying = 0, at_rest = 0, updated = ?"
                " WHERE folder = ? AND grouped = ? AND trying",
                (self._clock(), *_columns(key)),
            )

    def fail_attempt(self, key: RunKey, error: str, not_before: float) -> None:
        """Record why the attempt that is going on has failed, and when the next one may begin."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE runs SET error = ?, error_before = '', not_before = ?, trying = 0, at_rest = 0, phase = 'render-failed', reason = ?,"
                " updated = ? WHERE folder = ? AND grouped = ?",
                (_plain(error), not_before, _plain(error), self._clock(), *_columns(key)),
            )

    # --- renders ----------------------------------------------------------------------------------------------------------------------

    def record_render(self, key: RunKey, render: Render, *, run_id: str = "", name: str = "", watched: str = "") -> None:
        """Record what has been published; attempts start anew, and what a person said of these frames is done.

        Harmless to say again, as after a commit of which nobody knows whether it succeeded. Whose run it is matters only where there is no
        receipt yet, such as for an animation that was found in its output folder.
        """
        with self._writing() as connection:
            run = _row(connection, key, run_id=run_id, name=name, watched=watched, only_new=True)
            connection.execute("DELETE FROM renders WHERE run = ? AND generation = ? AND at = ?", (run, render.generation, render.at))
            cleanup = render.cleanup
            values = (
                run,
                render.generation,
                render.at,
                render.incomplete,
                render.guessed,
                _json([cleanup.intermediates, cleanup.skipped, str(Fraction(cleanup.grace))]),
                _json(list(render.missing)),
                _outputs_text(render.outputs),
                render.cleared,
                _plain(render.clear_note),
            )
            made = connection.execute(
                "INSERT INTO renders (run, generation, at, incomplete, guessed, cleanup, missing, outputs, cleared, clear_note)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            connection.execute("INSERT INTO frames (render, frames) VALUES (?, ?)", (made.lastrowid, _frames_text(render.frames)))
            connection.execute(
                "UPDATE runs SET tried = '', count = 0, not_before = 0, error = '', error_before = '', trying = 0, word = '', word_for = '',"
                " at_rest = 0, phase = 'rendered', reason = ?, updated = ? WHERE id = ?",
                ("rendered as incomplete" if render.incomplete else "rendered", self._clock(), run),
            )

    def update_render(
        self,
        key: RunKey,
        generation: str,
        *,
        at: float | None = None,
        outputs: tuple[Published, ...] | None = None,
        cleared: int | None = None,
        clear_note: str | None = None,
        frames: tuple[Covered, ...] | None = None,
        phase: str | None = None,
    ) -> None:
        """Record what has become of a render: where its files are now, what has been cleared.

        The same frames may have been rendered more than once, first as an incomplete run and then as a complete one: ``at`` tells which is
        meant, without it the latest. Raises EnvironmentFault when there is none, so that nothing goes on that cannot be recorded.
        """
        with self._writing() as connection:
            found = _renders(connection, key, generation, at)
            if not found:
                raise EnvironmentFault(f"there is no receipt of run {_shown(key)} to be kept up to date", hint="somebody has removed it meanwhile")
            changes: dict[str, object] = {}
            if outputs is not None:
                changes["outputs"] = _outputs_text(outputs)
            if cleared is not None:
                changes["cleared"] = cleared
            if clear_note is not None:
                changes["clear_note"] = _plain(clear_note)
            for column, value in changes.items():
                connection.execute(f"UPDATE renders SET {column} = ? WHERE id = ?", (value, found[-1]))  # noqa: S608 - one of the three above
            if phase is not None:
                said = (phase, _plain(clear_note or ""), *_columns(key))
                connection.execute("UPDATE runs SET phase = ?, reason = ? WHERE folder = ? AND grouped = ?", said)
            if frames is not None:
                connection.execute("UPDATE frames SET frames = ? WHERE render = ?", (_frames_text(frames), found[-1]))
            self._touch(connection, key)

    def remember_facts(self, key: RunKey, generation: str, frames: tuple[Covered, ...]) -> int:
        """Take over new inodes and times of files with the same contents, as after a restore or a copy; returns how many were news.

        Every render of these frames learns them. What has another digest, or was not rendered at all, is left out: it is no fact about a frame
        that is covered. Files without a digest, which nobody could read or which double a step, cover nothing and are known by name alone.
        """
        given = {(covered.frame.name, covered.digest): covered.frame for covered in frames}
        news = 0
        with self._writing() as connection:
            for render in _renders(connection, key, generation):
                row = connection.execute("SELECT frames FROM frames WHERE render = ?", (render,)).fetchone()
                with _sense():
                    known = _frames(row[0])
                # The step is what the render made of the name, not a fact of the file.
                now = [(one, given.get((one.frame.name, one.digest))) for one in known]
                learnt = tuple(replace(one, frame=replace(frame, step=one.frame.step)) if frame else one for one, frame in now)
                if learnt != known:
                    news = max(news, sum(one != other for one, other in zip(learnt, known, strict=True)))
                    connection.execute("UPDATE frames SET frames = ? WHERE render = ?", (_frames_text(learnt), render))
            if news:
                self._touch(connection, key)
        return news

    # --- what people do ---------------------------------------------------------------------------------------------------------------

    def set_word(self, key: RunKey, word: Word, fingerprint: str) -> None:
        """Record what a person says of the frames with this fingerprint; ``retry`` forgets the attempts made so far."""
        with self._writing() as connection:
            run = _row(connection, key, run_id="", name="", watched="", only_new=True)
            facts = (word.value, fingerprint if word else "", self._clock(), run)
            connection.execute("UPDATE runs SET word = ?, word_for = ?, at_rest = 0, updated = ? WHERE id = ?", facts)
            if word is Word.RETRY:
                connection.execute("UPDATE runs SET tried = '', count = 0, not_before = 0, error = '', error_before = '' WHERE id = ?", (run,))

    def rekey(self, old: RunKey, new: RunKey) -> bool:
        """Let a run that has moved keep its receipt; returns whether there was one.

        Where its new place has been seen already, that receipt takes over the renders, and attempts and word unless it has its own.
        """
        if old == new:
            return self.get(old) is not None
        with self._writing() as connection:
            there = connection.execute("SELECT id, tried, word FROM runs WHERE folder = ? AND grouped = ?", _columns(new)).fetchone()
            moved = connection.execute("SELECT id FROM runs WHERE folder = ? AND grouped = ?", _columns(old)).fetchone()
            if moved is None:
                return False
            if there is None:
                connection.execute("UPDATE runs SET folder = ?, grouped = ?, at_rest = 0 WHERE id = ?", (*_columns(new), moved[0]))
            else:
                run, tried, word = there
                connection.execute("UPDATE OR IGNORE renders SET run = ? WHERE run = ?", (run, moved[0]))
                for own, columns in ((tried, "tried, count, not_before, error, error_before, trying"), (word, "word, word_for")):
                    if not own:
                        sql = f"UPDATE runs SET ({columns}) = (SELECT {columns} FROM runs WHERE id = ?) WHERE id = ?"  # noqa: S608
                        connection.execute(sql, (moved[0], run))
                connection.execute("DELETE FROM runs WHERE id = ?", (moved[0],))
            self._touch(connection, new)
            return True

    def forget(self, key: RunKey) -> bool:
        """Remove everything that is recorded about a run; returns whether there was anything."""
        with self._writing() as connection:
            return connection.execute("DELETE FROM runs WHERE folder = ? AND grouped = ?", _columns(key)).rowcount > 0

    # --- transactions -----------------------------------------------------------------------------------------------------------------

    def _touch(self, connection: sqlite3.Connection, key: RunKey) -> None:
        connection.execute("UPDATE runs SET at_rest = 0, updated = ? WHERE folder = ? AND grouped = ?", (self._clock(), *_columns(key)))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Ask, and leave no transaction open."""
        with self._lock:
            self._check_place()
            try:
                try:
                    yield self._connection
                finally:
                    self._roll_back()
            except sqlite3.Error as error:
                raise self._fault(error, "read") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on the disk at the end, or nothing has changed."""
        with self._lock:
            self._check_place()
            try:
                # At once for writing: a transaction that reads first may find out too late that another process has written.
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                finally:
                    self._roll_back()
            except sqlite3.Error as error:
                raise self._fault(error, "written") from error
            # Again, for whoever has set the file aside just now: what was written is in that one.
            self._check_place()

    def _roll_back(self) -> None:
        # SQLite does so by itself after some errors, and not after others.
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _check_place(self) -> None:
        try:
            place = _identity(self.path)
        except OSError as error:
            raise _cannot("reached", self.path, error.strerror or str(error)) from error
        if place != self._place:
            raise ReceiptsLost(f"the receipts in {printable(str(self.path))} are no longer there, or others have taken their place", hint=_HINT)

    def _fault(self, error: sqlite3.Error, what: str) -> Exception:
        if _damage(error):
            return self._lost(str(error))
        if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            return ReceiptsLost("the receipts were opened anew meanwhile", hint=_HINT)
        return _cannot(what, self.path, _told(error, self.path)) if _code(error) in _MACHINE else error

    def _lost(self, why: str) -> ReceiptsLost:
        """Leave word for the next to open the file: its quick check may find nothing."""
        _log.error("the receipts in %s are damaged: %s", printable(str(self.path)), why)
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._place:
                Path(f"{self.path}{_DAMAGED}").write_text(_mark(self._place), encoding="ascii")
        return ReceiptsLost(f"the receipts in {printable(str(self.path))} are damaged: {why}", hint=_HINT)


# --- the file -------------------------------------------------------------------------------------------------------------------------

_HINT = "nothing is lost: new ones are made from what is on the disk"
_ROOM = "no animation is made that cannot be recorded; make room or repair the disk, and it goes on"
_LOCKED = ("another process keeps them locked", "end the process that holds them: another stepwatch, a backup, a database browser")
_CLOSED = "make the folder writable for this user, or set $XDG_STATE_HOME to one that is"
_MACHINE = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_FULL: ("the disk is full", _ROOM),
    sqlite3.SQLITE_READONLY: ("they may only be read", _CLOSED),
    sqlite3.SQLITE_CANTOPEN: ("they cannot be opened", _CLOSED),
    sqlite3.SQLITE_PERM: ("they cannot be opened", _CLOSED),
    sqlite3.SQLITE_AUTH: ("they cannot be opened", _CLOSED),
    sqlite3.SQLITE_IOERR: ("the disk reports an error", _ROOM),
    sqlite3.SQLITE_NOLFS: ("the disk reports an error", _ROOM),
    sqlite3.SQLITE_NOMEM: ("there is no memory left", "end what uses it up"),
}
"""What SQLite says of the machine, in plain words, and what to do."""


def open_receipts(state: Path) -> Ledger:
    """Open the receipts of a state folder, in the way that its file system takes: a write-ahead log needs shared memory, which no share has."""
    existing = next(one for one in (state, *state.parents) if one.exists())
    journal: Literal["wal", "delete"] = "delete" if system.is_remote(system.file_system(existing)) else "wal"
    return Ledger.open(state / RECEIPTS, journal=journal)


def _code(error: sqlite3.Error) -> int:
    """Kind of an error; what says more about it lies above the lowest byte. Errors of Python's own module have none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _damage(error: sqlite3.Error) -> bool:
    """Whether the file is at fault: its pages, its tables, or bytes in a row that are no text, of which only Python complains."""
    if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or isinstance(error, _Nonsense):
        return True
    return str(error).startswith(("no such ", "Could not decode to UTF-8"))


def _told(error: sqlite3.Error, path: Path) -> str:
    code = _code(error)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _full(path.parent):
        # Shared memory and logs that cannot grow are errors of another name.
        code = sqlite3.SQLITE_FULL
    return _MACHINE.get(code, (str(error), ""))[0]


def _full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _LEAST_ROOM
    except OSError:
        return False


def _cannot(what: str, path: Path, why: str) -> ReceiptsFault:
    hints = [hint for reason, hint in _MACHINE.values() if reason == why]
    hint = hints[0] if hints else "stepwatch keeps its receipts in $XDG_STATE_HOME/stepwatch; that folder has to be writable"
    return ReceiptsFault(f"receipts cannot be {what}: {why} ({printable(str(path))})", hint=hint)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _mark(place: tuple[int, int] | None) -> str:
    return f"{place}\n"


def _make_folder(folder: Path) -> None:
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What was rendered is nobody else's business; a folder that is there has been made so on purpose.
    folder.mkdir(mode=0o700, exist_ok=True)
    for place in missing:
        _sync(place.parent)


def _sync(folder: Path) -> None:
    """Make names in a folder durable, where the file system can."""
    with contextlib.suppress(OSError):
        system.fsync_folder(folder)


@contextlib.contextmanager
def _opening(path: Path, busy: float) -> Iterator[None]:
    """Keep other processes from opening the receipts: by a lock on an empty database, which works wherever the receipts themselves do."""
    place = f"{path}{_OPENING}"
    for again in (True, False):
        # Only a file that is new may be opened by anybody but SQLite: to close it again would release the locks of this process.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        lock = sqlite3.connect(place, timeout=busy, isolation_level=None)
        with contextlib.closing(lock):
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.DatabaseError as error:
                if again and _damage(error):
                    os.unlink(place)
                    continue
                raise
            yield
            return


def _connect(path: Path, journal: Literal["wal", "delete"], busy: float) -> sqlite3.Connection:
    """Open and check the file, and give an empty one its tables; raises _Unfit, and then at most its log has been written back."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        # SQLite would let the umask decide who may read it; what lies beside it takes over its mode.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        _sync(path.parent)
    else:
        if not stat.S_ISREG(mode):
            raise _Unfit("corrupt", "is no file")
    _check_mark(path)
    # What a crash leaves behind is this log; another process that has the file open has one too, and then the check costs little.
    left_open = any(os.path.exists(f"{path}{companion}") for companion in _COMPANIONS)
    connection = sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False)
    try:
        _check(connection, whole=left_open)
        connection.execute("PRAGMA foreign_keys = ON")
        mode_now = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if mode_now != journal:
            mode_now = connection.execute(f"PRAGMA journal_mode = {journal}").fetchone()[0]
        # Without a log, a commit is the removal of a journal, and only EXTRA makes that durable.
        connection.execute(f"PRAGMA synchronous = {'FULL' if mode_now == 'wal' else 'EXTRA'}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
        connection.execute(f"PRAGMA cache_size = -{CACHE >> 10}")
        _begin(connection)
        # SQLite opens what it may not write for reading, and would say so only when something has to be recorded.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        connection.close()
        if _damage(error):
            raise _Unfit("corrupt", f"is damaged ({error})") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _check_mark(path: Path) -> None:
    """Believe whoever found this very file damaged while it was in use."""
    mark = Path(f"{path}{_DAMAGED}")
    try:
        about = mark.read_text(encoding="ascii")
    except FileNotFoundError:
        return
    except ValueError:
        about = ""
    if about == _mark(_identity(path)):
        raise _Unfit("corrupt", "was found damaged while it was in use")
    mark.unlink()


def _check(connection: sqlite3.Connection, *, whole: bool) -> None:
    """See that the file is ours, of this version and sound.

    To check all of 40 MB takes 0.03 s from memory and a second from a slow disk, so it is done after a crash only. Otherwise only what is asked of
    all runs is checked, and damage elsewhere is found by who reads it, and left word of.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if empty and (application, version) == (0, 0):
        return
    if application != APPLICATION:
        raise _Unfit("foreign", "belongs to another program")
    if version > SCHEMA:
        raise _Unfit("newer", f"was written by a newer stepwatch (schema {version}, this one knows {SCHEMA})")
    if version < SCHEMA:
        raise _Unfit("older", f"was written by an older stepwatch (schema {version}, this one knows {SCHEMA})")
    for table in ("",) if whole else ("('runs')", "('meta')"):
        complaint = connection.execute(f"PRAGMA quick_check{table}").fetchone()[0]
        if complaint != "ok":
            raise _Unfit("corrupt", f"is damaged ({str(complaint).splitlines()[-1]})")


def _begin(connection: sqlite3.Connection) -> None:
    """Give a new file its tables: all of them or none."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA:
        connection.execute(_ADDED)
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in (*_TABLES.split(";\n"), _ADDED):
        connection.execute(statement)
    connection.execute("INSERT INTO meta (key, value) VALUES ('.rebuilt', '1')")
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.execute("COMMIT")


def _set_aside(path: Path, kind: str, why: str, wall: float) -> str:
    """Rename what is there and all that belongs to it; returns the sentence about it."""
    stem = f"{path}.{kind}-{datetime.fromtimestamp(wall, UTC):%Y%m%dT%H%M%SZ}"
    aside, number = stem, 0
    while os.path.lexists(aside):
        number += 1
        aside = f"{stem}-{number}"
    # The file first: a log without it is thrown away by SQLite, while the file without its log would pass for sound.
    os.rename(path, aside)
    # As far as SQLite has left one: it throws the log of a file away that it cannot read.
    for companion in _COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{companion}", f"{aside}{companion}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}{_DAMAGED}")
    _sync(path.parent)
    note = f"the receipts in {printable(str(path))} cannot be used: the file {why}; it is kept as {printable(os.path.basename(aside))}, and {_NEW}"
    _log.warning("%s", note)
    return note


_NEW = "new receipts are made from what is on the disk"


# --- rows ---------------------------------------------------------------------------------------------------------------------------------


def _row(connection: sqlite3.Connection, key: RunKey, *, run_id: str, name: str, watched: str, only_new: bool = False) -> int:
    """Return the number of a run's row, which is made or brought up to date."""
    update = "id = id" if only_new else "run_id = excluded.run_id, name = excluded.name, watched = excluded.watched"
    sql = "INSERT INTO runs (folder, grouped, run_id, name, watched) VALUES (?, ?, ?, ?, ?) ON CONFLICT (folder, grouped) DO UPDATE SET "
    connection.execute(sql + update, (*_columns(key), _plain(run_id), _plain(name), _bytes(watched)))
    found = connection.execute("SELECT id FROM runs WHERE folder = ? AND grouped = ?", _columns(key)).fetchone()
    return int(found[0])


def _facts(seen: Seen) -> Row:
    """What a look has found, as `_SEEN` finds it in a row."""
    here = (_plain(seen.run_id), _plain(seen.name), _bytes(seen.watched))
    return (*here, _plain(seen.phase), _plain(seen.reason), seen.fingerprint, int(seen.at_rest))


def _renders(connection: sqlite3.Connection, key: RunKey, generation: str, at: float | None = None) -> list[int]:
    sql = "SELECT renders.id FROM renders JOIN runs ON runs.id = run WHERE folder = ? AND grouped = ? AND generation = ?"
    if at is None:
        rows = connection.execute(f"{sql} ORDER BY renders.id", (*_columns(key), generation))
    else:
        rows = connection.execute(f"{sql} AND at = ? ORDER BY renders.id", (*_columns(key), generation, at))
    return [row[0] for row in rows]


def _receipt(connection: sqlite3.Connection, row: Row) -> Receipt:
    run, folder, group, run_id, name, watched, tried, count, not_before, error, word, word_for, phase, reason, updated = row
    sql = f"SELECT {_RENDER} FROM renders LEFT JOIN frames ON render = renders.id WHERE run = ? ORDER BY renders.id"  # noqa: S608
    renders = connection.execute(sql, (run,)).fetchall()
    with _sense():
        return Receipt(
            key=_key(folder, group),
            run_id=_text(run_id),
            name=_text(name),
            watched=_path(watched),
            renders=tuple(map(_render, renders)),
            attempts=Attempts(fingerprint=tried, count=count, not_before=not_before, error=_text(error)),
            word=Word(word),
            word_for=word_for,
            phase=_text(phase),
            reason=_text(reason),
            updated=updated,
        )


def _render(row: Row) -> Render:
    _, generation, at, incomplete, guessed, cleanup, missing, outputs, cleared, clear_note, frames = row
    intermediates, skipped, grace = json.loads(cleanup)
    return Render(
        generation=generation,
        frames=_frames(frames),
        outputs=_outputs(outputs),
        incomplete=bool(incomplete),
        at=at,
        cleanup=CleanupPolicy(intermediates=intermediates, skipped=skipped, grace=Fraction(grace)),
        missing=tuple(json.loads(missing)),
        guessed=bool(guessed),
        cleared=cleared,
        clear_note=_text(clear_note),
    )


def _summary(row: Row, renders: list[str]) -> Summary:
    _, folder, group, run_id, name, watched, _, count, _, error, word, _, phase, reason, updated = row
    return Summary(
        key=_key(folder, group),
        run_id=_text(run_id),
        name=_text(name),
        watched=_path(watched),
        phase=_text(phase),
        reason=_text(reason),
        attempts=count,
        error=_text(error),
        word=Word(word),
        updated=updated,
        # Who renders the same again is shown the same file.
        outputs=tuple(dict.fromkeys(_as_here(output["path"]) for text in renders for output in json.loads(text) if not output["superseded"])),
        renders=len(renders),
    )


# A frame is a list of its fields in the order of the class, then its digest and role: a third of what names for all of them would take.
_FRAME_FIELDS = tuple(field.name for field in fields(Frame))
_OUTPUT_FIELDS = tuple(field.name for field in fields(Published))


def _frames_text(frames: tuple[Covered, ...]) -> str:
    rows = []
    for covered in frames:
        values = {name: getattr(covered.frame, name) for name in _FRAME_FIELDS}
        values["name"] = _same_everywhere(covered.frame.name)
        rows.append([*values.values(), covered.digest, covered.role.value])
    return _json(rows)


def _frames(text: str) -> tuple[Covered, ...]:
    found = []
    for *values, digest, role in json.loads(text):
        frame = Frame(**dict(zip(_FRAME_FIELDS, values, strict=True)))
        found.append(Covered(frame=replace(frame, name=_as_here(frame.name)) if _FOREIGN else frame, digest=digest, role=Role(role)))
    return tuple(found)


def _outputs_text(outputs: tuple[Published, ...]) -> str:
    return _json([{name: getattr(output, name) for name in _OUTPUT_FIELDS} | {"path": _same_everywhere(output.path)} for output in outputs])


def _outputs(text: str) -> tuple[Published, ...]:
    return tuple(Published(**(facts | {"path": _as_here(facts["path"])})) for facts in json.loads(text))


# --- values ---------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sense() -> Iterator[None]:
    """Tell damage from mistakes of ours: around what reads values that SQLite has given, and nothing else."""
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:
        raise _Nonsense(f"a row makes no sense ({type(error).__name__}: {error})") from error


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _columns(key: RunKey) -> tuple[bytes, bytes]:
    return _bytes(key.folder), _bytes(key.group)


def _key(folder: bytes, group: bytes) -> RunKey:
    return RunKey(folder=_path(folder), group=_path(group))


def _shown(key: RunKey) -> str:
    return printable(str(key))


def _bytes(path: str) -> bytes:
    return os.fsencode(path)


def _path(path: bytes) -> str:
    return os.fsdecode(path)


# In a locale of ASCII only, Python knows the bytes of an umlaut as two surrogates; everywhere else they are one character.
_FOREIGN = sys.getfilesystemencoding().lower().replace("_", "-") not in ("utf-8", "utf8")


def _same_everywhere(path: str) -> str:
    """Write a name as a process that knows UTF-8 would."""
    return os.fsencode(path).decode("utf-8", "surrogateescape") if _FOREIGN else path


def _as_here(path: str) -> str:
    return os.fsdecode(path.encode("utf-8", "surrogateescape")) if _FOREIGN else path


def _plain(text: str) -> str | bytes:
    """Text as SQLite takes it; with surrogates, which it refuses, as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value
