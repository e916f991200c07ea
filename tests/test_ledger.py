"""Receipts: what is committed stays, what is not was never there, and a file that cannot be trusted is set aside.

Row 45 of the fault matrix, and the receipts' share of rows 20 (names), 48 (kill -9), 56 (attempts) and 63 (several processes).
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwatch import ledger as module
from stepwatch.core.lifecycle import backoff
from stepwatch.core.model import Attempts, Covered, Frame, Published, Receipt, Render, Role, RunKey, Word
from stepwatch.core.policy import CleanupPolicy
from stepwatch.errors import EnvironmentFault
from stepwatch.ledger import Ledger, ReceiptsLost, Seen, Summary

ROOT = Path(__file__).parent.parent
KEY = RunKey(folder="/pictures/run")
OTHER = RunKey(folder="/pictures/flat", group="BB-12")
NAUGHTY = "bad\udcff \x1b[31m\nname\u2028 é"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "receipts.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, clock=lambda: 77.0) as opened:
        yield opened


def covered(step: int = 1, **changes: object) -> Covered:
    frame = Frame(step=step, name=f"{step:05d}.png", size=100 + step, mtime_ns=2**60 + step, ctime_ns=2**60, inode=7, device=3)
    return replace(Covered(frame=frame, digest=f"{step:064x}", role=Role.SHOWN), **changes)  # type: ignore[arg-type]


def published(path: str = "/pictures/animation/run.mp4", *, superseded: bool = False) -> Published:
    facts = {"codec": "h264", "size": 9, "mtime_ns": 2**60, "inode": 5, "device": 3, "sha256": "ab", "plan": "cd", "pictures": 300}
    return Published(path=path, duration="31/3", superseded=superseded, **facts)  # type: ignore[arg-type]


def rendered(generation: str = "g1", *, at: float = 50.0, frames: int = 3, incomplete: bool = False, path: str = "/out/run.mp4") -> Render:
    return Render(
        generation=generation,
        frames=tuple(covered(step) for step in range(1, frames + 1)),
        outputs=(published(path),),
        incomplete=incomplete,
        at=at,
        cleanup=CleanupPolicy(intermediates="trash", grace=Fraction(1, 3)),
    )


def begin(ledger: Ledger, fingerprint: str = "f1", *, key: RunKey = KEY, wall: float = 1000.0) -> int:
    return ledger.begin_attempt(key, "id", "name", "/pictures", fingerprint, wall, 0.5)


def see(ledger: Ledger, *, key: RunKey = KEY, reason: str = "rendered", at_rest: bool = True, wall: float = 5.0) -> bool:
    return ledger.see(key, "id", "name", "/pictures", "rendered", reason, "f1", at_rest=at_rest, wall=wall)


def known(ledger: Ledger, key: RunKey = KEY) -> Receipt:
    receipt = ledger.get(key)
    assert receipt is not None
    return receipt


def log_size(path: Path) -> int:
    return os.stat(f"{path}-wal").st_size


# -- what is said is what is asked


def test_a_receipt_comes_back_as_it_was(ledger: Ledger, path: Path) -> None:
    """Everything that the model knows of a run survives the process, fractions and order included."""
    first = rendered(incomplete=True)
    second = replace(
        rendered("g2", at=60.0),
        missing=(4, 9),
        guessed=True,
        cleared=2,
        clear_note=NAUGHTY,
        outputs=(published(), published(f"/out/{NAUGHTY}.gif", superseded=True)),
        frames=(covered(1, role=Role.DAMAGED, digest=""), covered(2, role=Role.SKIPPED)),
    )
    ledger.record_render(KEY, first, run_id="id", name="name", watched="/pictures")
    ledger.record_render(KEY, second)
    ledger.see(KEY, "id", "name", "/pictures", "rendered", NAUGHTY, "f1", at_rest=True, wall=8.0)
    begin(ledger)
    ledger.fail_attempt(KEY, NAUGHTY, 1234.5)
    ledger.set_word(KEY, Word.DISCARD, "f1")
    expected = Receipt(
        key=KEY,
        run_id="id",
        name="name",
        watched="/pictures",
        renders=(first, second),
        attempts=Attempts(fingerprint="f1", count=1, not_before=1234.5, error=NAUGHTY),
        word=Word.DISCARD,
        word_for="f1",
        phase="render-failed",
        reason=NAUGHTY,
        updated=77.0,
    )
    assert ledger.get(KEY) == expected
    ledger.close()
    with Ledger.open(path) as again:
        assert again.get(KEY) == expected
        assert tuple(again.all()) == (expected,) == again.by_run_id("id")
        assert not again.notes


def test_names_that_are_no_text_are_kept(ledger: Ledger) -> None:
    """Row 20: undecodable bytes in every place where a name can be."""
    key = RunKey(folder=f"/pictures/{NAUGHTY}", group=NAUGHTY)
    render = replace(rendered(path=f"/out/{NAUGHTY}"), frames=(covered(frame=Frame(step=1, name=NAUGHTY, size=1)),))
    ledger.see(key, NAUGHTY, NAUGHTY, f"/{NAUGHTY}", NAUGHTY, NAUGHTY, "f", at_rest=True, wall=1.0)
    ledger.record_render(key, render)
    ledger.set_meta("name", NAUGHTY)
    receipt = known(ledger, key)
    assert (receipt.key, receipt.run_id, receipt.name, receipt.watched) == (key, NAUGHTY, NAUGHTY, f"/{NAUGHTY}")
    assert receipt.renders == (render,)
    assert ledger.by_run_id(NAUGHTY) == (receipt,)
    assert ledger.summaries()[0].outputs == (f"/out/{NAUGHTY}",)
    assert ledger.meta("name") == NAUGHTY


@pytest.mark.parametrize("number", ["00042", "1e3", " 7", "0x10", "nan"])
def test_a_number_in_a_name_stays_text(ledger: Ledger, number: str) -> None:
    """SQLite would make numbers of texts that look like some."""
    ledger.see(KEY, number, number, number, number, number, number, at_rest=True, wall=1.0)
    ledger.set_meta("fact", number)
    begin(ledger, number)
    receipt = known(ledger)
    assert (receipt.reason, receipt.phase, receipt.attempts.fingerprint) == (number, number, number)
    assert ledger.meta("fact") == number
    see(ledger)
    ledger.see(KEY, number, number, number, number, number, number, at_rest=True, wall=1.0)
    assert ledger.by_run_id(number)[0].name == number


def test_another_locale_finds_the_same_receipt(ledger: Ledger, path: Path) -> None:
    """A process that knows ASCII only sees an umlaut as two undecodable bytes, and means the same file."""
    key = RunKey(folder="/bilder/süß")
    ledger.record_render(key, replace(rendered(path="/aus/süß.mp4"), frames=(covered(frame=Frame(step=1, name="größe\udcff.png", size=1)),)))
    ledger.close()
    script = f"""
import os, sys
from pathlib import Path
from stepwatch.ledger import Ledger
from stepwatch.core.model import RunKey
assert sys.getfilesystemencoding() != 'utf-8', sys.getfilesystemencoding()
with Ledger.open(Path({str(path)!r})) as ledger:
    key = RunKey(folder=os.fsdecode({os.fsencode(key.folder)!r}))
    (render,) = ledger.get(key).renders
    assert render.frames[0].frame.name == os.fsdecode({os.fsencode("größe" + chr(0xDCFF) + ".png")!r}), render
    assert ledger.summaries()[0].outputs == (render.outputs[0].path,) == (os.fsdecode({os.fsencode("/aus/süß.mp4")!r}),)
    ledger.update_render(key, 'g1', frames=render.frames, outputs=render.outputs)
"""
    before = tuple(read_all(path))
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if "AssertionError: utf-8" in done.stderr:
        pytest.skip("this Python knows no other locale")
    assert done.returncode == 0, done.stderr
    (after,) = read_all(path)
    assert (after.renders, after.key) == (before[0].renders, before[0].key)


def read_all(path: Path) -> tuple[Receipt, ...]:
    with Ledger.open(path) as opened:
        return tuple(opened.all())


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name).map(os.fsdecode)
TEXTS = st.text(max_size=12) | NAMES
NUMBERS = st.integers(min_value=0, max_value=2**63 - 1)
TIMES = st.floats(min_value=0, max_value=1e12)
FRAMES = st.builds(
    Frame, step=NUMBERS, name=NAMES, size=NUMBERS, mtime_ns=NUMBERS, ctime_ns=NUMBERS, inode=NUMBERS, device=NUMBERS, links=st.integers(1, 9)
)
COVERED = st.builds(Covered, frame=FRAMES, digest=st.text("0123456789abcdef", max_size=64), role=st.sampled_from(Role))
PUBLISHED = st.builds(
    Published,
    path=NAMES,
    codec=TEXTS,
    size=NUMBERS,
    mtime_ns=NUMBERS,
    inode=NUMBERS,
    device=NUMBERS,
    sha256=TEXTS,
    plan=TEXTS,
    pictures=NUMBERS,
    duration=st.fractions(min_value=0).map(str),
    superseded=st.booleans(),
)
CLEANUPS = st.builds(
    CleanupPolicy,
    intermediates=st.sampled_from(("keep", "trash", "delete")),
    skipped=st.sampled_from(("keep", "clear")),
    grace=st.fractions(min_value=0),
)
RENDERS = st.builds(
    Render,
    generation=st.text("0123456789abcdef", max_size=32),
    frames=st.lists(COVERED, max_size=4).map(tuple),
    outputs=st.lists(PUBLISHED, max_size=3).map(tuple),
    incomplete=st.booleans(),
    at=TIMES,
    cleanup=CLEANUPS,
    missing=st.lists(NUMBERS, max_size=3).map(tuple),
    guessed=st.booleans(),
    cleared=NUMBERS,
    clear_note=TEXTS,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_receipt_comes_back(ledger: Ledger, data: st.DataObject) -> None:
    """Whatever names, numbers, times and texts are recorded, the same come back, in the same order."""
    key = data.draw(st.builds(RunKey, folder=NAMES, group=NAMES | st.just("")))
    renders = data.draw(st.lists(RENDERS, max_size=3, unique_by=lambda render: (render.generation, render.at)))
    run_id, name, phase, reason, error = (data.draw(TEXTS) for _ in range(5))
    watched = data.draw(NAMES)
    word = data.draw(st.sampled_from((Word.DISCARD, Word.NONE)))
    wall, later = data.draw(TIMES), data.draw(TIMES)
    ledger.forget(key)
    for render in renders:
        ledger.record_render(key, render)
    assert ledger.see(key, run_id, name, watched, phase, reason, "mark", at_rest=True, wall=wall)
    assert not ledger.see(key, run_id, name, watched, phase, reason, "mark", at_rest=True, wall=later)
    assert ledger.fingerprints()[key] == "mark"
    assert known(ledger, key).updated == wall
    assert begin(ledger, "mark", key=key) == 1
    ledger.fail_attempt(key, error, later)
    ledger.set_word(key, word, "mark")
    ledger.see(key, run_id, name, watched, phase, reason, "mark", at_rest=False, wall=wall)
    assert ledger.get(key) == Receipt(
        key=key,
        run_id=run_id,
        name=name,
        watched=watched,
        renders=tuple(renders),
        attempts=Attempts(fingerprint="mark", count=1, not_before=later, error=error),
        word=word,
        word_for="mark" if word else "",
        phase=phase,
        reason=reason,
        updated=wall,
    )


def test_what_is_kept_of_a_frame_belongs_to_the_schema() -> None:
    """A field that is added to the model changes what the file holds, and asks for another SCHEMA."""
    kept = (
        module.SCHEMA,
        " ".join(field.name for field in fields(Frame)),
        " ".join(field.name for field in fields(Published)),
        " ".join(field.name for field in fields(Render)),
        " ".join(field.name for field in fields(CleanupPolicy)),
    )
    assert kept == (
        1,
        "step name size mtime_ns ctime_ns inode device links",
        "path codec size mtime_ns inode device sha256 plan pictures duration superseded",
        "generation frames outputs incomplete at cleanup missing guessed cleared clear_note",
        "intermediates skipped grace",
    )


# -- looks


def test_a_look_that_finds_nothing_new_writes_nothing(ledger: Ledger, path: Path) -> None:
    """An idle daemon leaves the disk asleep."""
    begin(ledger)
    assert see(ledger)
    size, changed = log_size(path), os.stat(f"{path}-wal").st_mtime_ns
    for wall in range(20):
        assert not see(ledger, wall=100.0 + wall)
    assert ledger.see_many((), 9.0) == 0
    assert (log_size(path), os.stat(f"{path}-wal").st_mtime_ns) == (size, changed)
    ledger.set_meta("fact", "1")
    assert ledger.meta("fact") == "1"
    grown, changed_then = log_size(path), os.stat(f"{path}-wal").st_mtime_ns
    ledger.set_meta("fact", "1")
    assert (log_size(path), os.stat(f"{path}-wal").st_mtime_ns) == (grown, changed_then)
    assert grown > size
    assert known(ledger).updated == 5.0


def test_many_looks_are_one_transaction(ledger: Ledger) -> None:
    """Only what is news is written, and a fault in the middle leaves none of it."""
    runs = [
        Seen(key=RunKey(folder=f"/{n}"), run_id=str(n), name="n", watched="/", phase="rendered", reason="r", fingerprint=str(n), at_rest=n % 2 == 0)
        for n in range(40)
    ]
    assert ledger.see_many(runs, 1.0) == 40
    assert ledger.see_many([*runs, replace(runs[3], reason="other")], 2.0) == 1
    assert ledger.fingerprints() == {one.key: one.fingerprint for one in runs if one.at_rest}
    broken = replace(runs[5], key=RunKey(folder="/new"), run_id=None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        ledger.see_many([replace(runs[4], reason="lost"), broken], 3.0)
    assert known(ledger, runs[4].key).reason == "r"
    assert known(ledger, runs[3].key).updated == 2.0


def test_a_run_that_something_happened_to_is_not_at_rest(ledger: Ledger) -> None:
    """After an attempt, a word, a render or its clearing, the next start looks at it again."""
    actions: tuple[Callable[[], object], ...] = (
        lambda: begin(ledger),
        lambda: ledger.refund_attempt(KEY),
        lambda: ledger.fail_attempt(KEY, "x", 1.0),
        lambda: ledger.record_render(KEY, rendered()),
        lambda: ledger.update_render(KEY, "g1", cleared=1),
        lambda: ledger.set_word(KEY, Word.RETRY, "f1"),
    )
    for action in actions:
        if action is actions[1]:
            begin(ledger)
        see(ledger)
        if action is actions[1]:
            begin(ledger)
        action()
        assert not ledger.fingerprints()


# -- attempts


def test_attempts_at_the_same_frames_count_on(ledger: Ledger, path: Path) -> None:
    """Row 56: each is counted before it is made; the first may begin at once, later ones wait longer and longer."""
    assert begin(ledger) == 1
    assert known(ledger).attempts == Attempts(fingerprint="f1", count=1, not_before=1000.0)
    ledger.fail_attempt(KEY, "ffmpeg stopped", 1010.0)
    assert known(ledger).attempts == Attempts(fingerprint="f1", count=1, not_before=1010.0, error="ffmpeg stopped")
    assert begin(ledger, wall=2000.0) == 2
    assert known(ledger).attempts == Attempts(fingerprint="f1", count=2, not_before=2000.0 + backoff(1, 0.5))
    ledger.close()
    with Ledger.open(path) as again:
        assert begin(again, wall=3000.0) == 3
        assert known(again).attempts.not_before == 3000.0 + backoff(2, 0.5)


def test_other_frames_start_anew(ledger: Ledger) -> None:
    """Attempts are about the frames as they are now."""
    assert [begin(ledger, mark) for mark in ("f1", "f1", "f2", "f1")] == [1, 2, 1, 1]


def test_an_attempt_that_the_machine_spoilt_is_given_back(ledger: Ledger) -> None:
    """A refund takes back one attempt, once, with the error that was known before; a crashed or failed one is not refunded."""
    begin(ledger)
    ledger.refund_attempt(KEY)
    assert known(ledger).attempts == Attempts(fingerprint="f1")
    begin(ledger)
    ledger.fail_attempt(KEY, "first", 1.0)
    ledger.refund_attempt(KEY)
    assert known(ledger).attempts.count == 1
    assert begin(ledger) == 2
    for _ in range(2):
        ledger.refund_attempt(KEY)
        assert known(ledger).attempts == Attempts(fingerprint="f1", count=1, error="first")
    assert begin(ledger) == 2


def test_a_render_ends_all_attempts_and_words(ledger: Ledger) -> None:
    """What has been published needs no retry, and no refund can take it back."""
    begin(ledger)
    ledger.set_word(KEY, Word.RETRY, "f1")
    begin(ledger)
    ledger.record_render(KEY, rendered())
    ledger.refund_attempt(KEY)
    receipt = known(ledger)
    assert (receipt.attempts, receipt.word, receipt.word_for) == (Attempts(), Word.NONE, "")
    assert (receipt.run_id, receipt.name, receipt.watched) == ("id", "name", "/pictures")


def test_retry_forgets_the_attempts(ledger: Ledger) -> None:
    """A person who says retry gets all attempts again; discard leaves them as they are."""
    for _ in range(4):
        begin(ledger)
    ledger.set_word(KEY, Word.DISCARD, "f1")
    assert known(ledger).attempts.count == 4
    ledger.set_word(KEY, Word.RETRY, "f1")
    receipt = known(ledger)
    assert (receipt.attempts, receipt.word, receipt.word_for) == (Attempts(), Word.RETRY, "f1")
    assert begin(ledger) == 1
    assert known(ledger).word is Word.RETRY


# -- renders


def test_a_render_recorded_twice_is_there_once(ledger: Ledger) -> None:
    """After a commit of which nobody knows whether it succeeded it is said again."""
    ledger.record_render(KEY, rendered())
    ledger.record_render(KEY, replace(rendered(), cleared=1))
    assert [render.cleared for render in known(ledger).renders] == [1]


def test_the_same_frames_rendered_twice_are_told_apart(ledger: Ledger) -> None:
    """First as an incomplete run, then as a complete one: the time says which is meant, and without it the latest is."""
    early, late = rendered(at=1.0, incomplete=True, path="/out/a"), rendered(at=2.0, path="/out/b")
    for render in (early, late):
        ledger.record_render(KEY, render)
    ledger.update_render(KEY, "g1", at=1.0, outputs=(published("/out/a", superseded=True),))
    ledger.update_render(KEY, "g1", outputs=(published("/out/c"),), cleared=3, clear_note="done")
    first, second = known(ledger).renders
    assert first == replace(early, outputs=(published("/out/a", superseded=True),))
    assert second == replace(late, outputs=(published("/out/c"),), cleared=3, clear_note="done")
    (summary,) = ledger.summaries()
    assert (summary.outputs, summary.renders) == (("/out/c",), 2)


def test_an_update_of_nothing_is_no_success(ledger: Ledger) -> None:
    """A receipt that somebody has removed stops whoever goes on from it."""
    ledger.record_render(KEY, rendered())
    for key, generation, at in ((OTHER, "g1", None), (KEY, "g2", None), (KEY, "g1", 49.0)):
        with pytest.raises(EnvironmentFault, match="no receipt of run"):
            ledger.update_render(key, generation, at=at, cleared=1)
    assert known(ledger).renders == (rendered(),)


def test_frames_that_came_back_are_known_again(ledger: Ledger) -> None:
    """A restore gives the same contents new inodes and times; other contents, and the step, are not taken over."""
    ledger.record_render(KEY, rendered(at=1.0))
    ledger.record_render(KEY, rendered(at=2.0))
    moved = Frame(step=99, name="00001.png", size=101, mtime_ns=1, ctime_ns=2, inode=3, device=4, links=2)
    foreign = covered(2, digest="f" * 64, frame=replace(covered(2).frame, inode=1))
    assert ledger.remember_facts(KEY, "g1", (covered(1, frame=moved), foreign, covered(7))) == 1
    for render in known(ledger).renders:
        assert render.frames == (covered(1, frame=replace(moved, step=1)), covered(2), covered(3))
    assert ledger.remember_facts(KEY, "g1", (covered(1, frame=moved),)) == 0
    assert ledger.remember_facts(OTHER, "g1", (covered(1, frame=moved),)) == 0


def test_a_run_that_moved_keeps_its_receipt(ledger: Ledger) -> None:
    """Also where its new place has been seen already: nothing that was rendered is forgotten."""
    ledger.record_render(KEY, rendered("g1"), run_id="id")
    begin(ledger)
    ledger.fail_attempt(KEY, "x", 9.0)
    assert ledger.rekey(KEY, OTHER)
    assert ledger.get(KEY) is None
    assert known(ledger, OTHER).renders == (rendered("g1"),)
    see(ledger)
    ledger.record_render(KEY, rendered("g2"))
    assert ledger.rekey(OTHER, KEY)
    receipt = known(ledger)
    assert [render.generation for render in receipt.renders] == ["g1", "g2"]
    assert receipt.attempts == Attempts(fingerprint="f1", count=1, not_before=9.0, error="x")
    assert not ledger.rekey(OTHER, KEY)
    assert ledger.rekey(KEY, KEY)
    assert known(ledger) == receipt


def test_forgotten_is_gone_frames_and_all(ledger: Ledger, path: Path) -> None:
    """Nothing of a run stays behind in any table."""
    ledger.record_render(KEY, rendered())
    assert ledger.forget(KEY)
    assert not ledger.forget(KEY)
    assert ledger.get(KEY) is None
    with sqlite3.connect(path) as plain:
        assert [plain.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("runs", "renders", "frames")] == [0, 0, 0]
    plain.close()


def test_ten_thousand_receipts_are_listed_and_opened_fast(path: Path) -> None:
    """Start-up and `runs list` read no frames; the limits are ten times what a quiet machine takes."""
    frames = tuple(covered(step) for step in range(1, 21))
    with Ledger.open(path) as ledger:
        runs = [
            Seen(key=RunKey(folder=f"/{n}"), run_id=str(n), name="n", watched="/", phase="rendered", reason="r", fingerprint=str(n), at_rest=True)
            for n in range(10_000)
        ]
        assert ledger.see_many(runs, 1.0) == 10_000
        ledger.record_render(runs[0].key, replace(rendered(), frames=frames))
        assert ledger.see_many(runs, 1.0) == 1
        connection = ledger._connection
        connection.execute("BEGIN")
        columns = "generation, at, incomplete, guessed, cleanup, missing, outputs, cleared, clear_note"
        connection.execute(f"INSERT INTO renders (run, {columns}) SELECT runs.id, {columns} FROM renders, runs WHERE runs.id > 1")
        connection.execute("INSERT INTO frames SELECT renders.id, frames FROM renders, frames WHERE renders.id > 1")
        connection.execute("COMMIT")
    took: dict[str, float] = {}
    begun = time.perf_counter()
    ledger = Ledger.open(path)
    asked: tuple[tuple[str, Callable[[], int]], ...] = (
        ("open", lambda: 10_000),
        ("fingerprints", lambda: len(ledger.fingerprints())),
        ("see_many", lambda: ledger.see_many(runs, 2.0) + 10_000),
        ("summaries", lambda: len(ledger.summaries())),
        ("all", lambda: 10 * sum(len(receipt.renders[0].frames) == 20 for receipt in islice(ledger.all(), 1000))),
        ("get", lambda: len([ledger.get(one.key) for one in runs[:100]]) * 100),
    )
    for name, ask in asked:
        assert ask() == 10_000, name
        took[name] = time.perf_counter() - begun
        begun = time.perf_counter()
    # As after a crash: the log is there, and all is checked.
    open(f"{path}-wal", "ab").close()
    Ledger.open(path).close()
    took["checked"] = time.perf_counter() - begun
    ledger.close()
    limits = {"open": 1.0, "fingerprints": 1.0, "see_many": 3.0, "summaries": 3.0, "all": 3.0, "get": 1.0, "checked": 4.0}
    assert all(took[name] < limit for name, limit in limits.items()), took


def test_a_summary_tells_what_a_list_shows(ledger: Ledger) -> None:
    """Without frames: who, where, how it stands, what went wrong, and which files there are."""
    see(ledger)
    ledger.record_render(KEY, rendered())
    begin(ledger)
    ledger.fail_attempt(KEY, "broken", 9.0)
    ledger.see(OTHER, "o", "other", "/pictures", "held", "why", "f", at_rest=True, wall=1.0)
    first = {"run_id": "id", "name": "name", "watched": "/pictures", "phase": "render-failed", "reason": "broken"}
    second = {"run_id": "o", "name": "other", "watched": "/pictures", "phase": "held", "reason": "why"}
    assert ledger.summaries() == (
        Summary(key=KEY, attempts=1, error="broken", word=Word.NONE, updated=77.0, outputs=("/out/run.mp4",), renders=1, **first),
        Summary(key=OTHER, attempts=0, error="", word=Word.NONE, updated=1.0, outputs=(), renders=0, **second),
    )


# -- the file


def test_only_its_user_may_read_it(path: Path) -> None:
    """Folder 0700, and every file of it 0600, whatever the umask says."""
    before = os.umask(0o022)
    try:
        with Ledger.open(path) as ledger:
            begin(ledger)
            modes = {name: stat.S_IMODE(os.stat(path.parent / name).st_mode) for name in os.listdir(path.parent)}
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
    assert set(modes.values()) == {0o600}, modes
    assert {"receipts.db", "receipts.db-wal", "receipts.db-shm"} <= set(modes)


def test_a_commit_is_on_the_disk_when_it_returns(path: Path) -> None:
    """A log with every commit synced; on a network file system a journal whose removal is synced as well."""
    for journal, level in (("wal", 2), ("delete", 3)):
        place = path.with_name(journal)
        with Ledger.open(place, journal=journal) as ledger:  # type: ignore[arg-type]
            begin(ledger)
            assert ledger._connection.execute("PRAGMA journal_mode").fetchone()[0] == journal
            assert ledger._connection.execute("PRAGMA synchronous").fetchone()[0] == level
            assert os.path.exists(f"{place}-wal") == (journal == "wal")
    with Ledger.open(path.with_name("wal"), journal="delete") as ledger:
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        assert begin(ledger) == 2


def test_a_new_file_is_rebuilt_until_it_is_reconciled(path: Path) -> None:
    """Across restarts, so that a crash in the middle of it does not end it."""
    for _ in range(2):
        with Ledger.open(path) as ledger:
            assert ledger.rebuilt
            assert not ledger.notes
    with Ledger.open(path) as ledger, Ledger.open(path) as beside:
        ledger.reconciled()
        assert not beside.rebuilt
    with Ledger.open(path) as ledger:
        assert not ledger.rebuilt


def filled(path: Path) -> bytes:
    with Ledger.open(path) as ledger:
        ledger.reconciled()
        for number in range(60):
            ledger.record_render(RunKey(folder=f"/{number}"), rendered(), run_id=str(number))
    return path.read_bytes()


def sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("somebody's")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_foreign(path: Path) -> None:
    path.unlink()
    sql(path, "CREATE TABLE theirs (x)")


def with_holes(path: Path) -> None:
    """Garbage in every page but the first, as after a crash."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + random.Random(1).randbytes(len(data) - 4096))
    open(f"{path}-wal", "wb").close()


DAMAGE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "garbage": ("corrupt", "is damaged", lambda path: path.write_bytes(random.Random(0).randbytes(9000))),
    "text": ("corrupt", "is damaged", lambda path: path.write_text("receipts\n")),
    "cut to two bytes": ("corrupt", "is damaged", lambda path: os.truncate(path, 2)),
    "cut within its header": ("corrupt", "is damaged", lambda path: os.truncate(path, 99)),
    "cut to a page": ("corrupt", "is damaged", lambda path: os.truncate(path, 4096)),
    "cut in half": ("corrupt", "is damaged", lambda path: os.truncate(path, os.path.getsize(path) // 2 + 77)),
    "cut by a page": ("corrupt", "is damaged", lambda path: os.truncate(path, os.path.getsize(path) - 4096)),
    "garbage inside": ("corrupt", "is damaged", with_holes),
    "tables gone": ("corrupt", "is damaged", lambda path: sql(path, "DROP TABLE runs")),
    "a folder": ("corrupt", "is no file", as_folder),
    "a pipe": ("corrupt", "is no file", as_pipe),
    "another program's": ("foreign", "belongs to another program", as_foreign),
    "newer": ("newer", "newer stepwatch", lambda path: sql(path, f"PRAGMA user_version = {module.SCHEMA + 1}")),
    "older": ("older", "older stepwatch", lambda path: sql(path, "PRAGMA user_version = 0")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_cannot_be_used_is_set_aside(path: Path, damage: str) -> None:
    """Row 45: whole, under a name that says why, in a sentence; a new one takes its place, and is rebuilt."""
    filled(path)
    kind, why, inflict = DAMAGE[damage]
    inflict(path)
    before = path.read_bytes() if path.is_file() else b""
    with Ledger.open(path, clock=lambda: 1_795_000_000.5) as ledger:
        (note,) = ledger.notes
        assert ledger.rebuilt
        assert not ledger.summaries()
        begin(ledger)
    assert why in note
    (aside,) = (one for one in path.parent.glob("receipts.db.*") if not one.name.endswith(("-wal", "-shm")))
    assert aside.name == f"receipts.db.{kind}-20261118T110640Z"
    assert aside.name in note
    if before:
        assert aside.read_bytes() == before
    elif aside.is_dir():
        assert (aside / "something").read_text() == "somebody's"
    with Ledger.open(path) as ledger:
        assert not ledger.notes
        assert ledger.rebuilt
        assert begin(ledger) == 2


def test_files_set_aside_in_one_second_are_all_kept(path: Path) -> None:
    """No name is used twice."""
    for number in range(3):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"garbage {number}")
        Ledger.open(path, clock=lambda: 0.0).close()
    kept = {one.read_text() for one in path.parent.glob("receipts.db.corrupt-19700101T000000Z*")}
    assert kept == {"garbage 0", "garbage 1", "garbage 2"}


def test_the_log_goes_with_its_file(path: Path) -> None:
    """What a newer stepwatch had committed before it was killed can still be read there, and does not get into the new file."""
    script = "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('PRAGMA user_version = 9'); os._exit(0)"
    filled(path)
    subprocess.run([sys.executable, "-c", script, path], check=True)
    assert log_size(path) > 0
    with Ledger.open(path) as ledger:
        assert ledger.rebuilt
        assert not ledger.summaries()
    (aside,) = (one for one in path.parent.glob("receipts.db.newer-*") if not one.name.endswith(("-wal", "-shm")))
    with sqlite3.connect(aside) as kept:
        assert kept.execute("SELECT count(*) FROM runs").fetchone()[0] == 60
        assert kept.execute("PRAGMA user_version").fetchone()[0] == 9
    kept.close()


def test_an_empty_file_is_begun_and_an_old_log_does_not_fill_it(path: Path) -> None:
    """As a power cut may leave it: nothing to set aside, and nothing is believed."""
    filled(path)
    with Ledger.open(path) as ledger:
        begin(ledger)
        log = Path(f"{path}-wal").read_bytes()
    path.write_bytes(b"")
    Path(f"{path}-wal").write_bytes(log)
    with Ledger.open(path) as ledger:
        assert ledger.rebuilt
        assert not ledger.notes
        assert not ledger.summaries()


def test_a_damaged_lock_is_made_anew(path: Path) -> None:
    """The file that only keeps others from opening is worth nothing."""
    filled(path)
    Path(f"{path}-opening").write_bytes(b"garbage" * 1000)
    with Ledger.open(path) as ledger:
        assert len(ledger.summaries()) == 60
        assert not ledger.notes


def damage_row(path: Path) -> None:
    """What no check of SQLite finds: text that is none of ours."""
    sql(path, "UPDATE frames SET frames = '[[1,2' WHERE render = 1")


def damage_text(path: Path) -> None:
    sql(path, "UPDATE runs SET reason = CAST(x'ff80' AS TEXT) WHERE id = 1")


def damage_page(path: Path) -> None:
    """The pages of the frames alone, in a file that was closed well."""
    data = bytearray(path.read_bytes())
    connection = sqlite3.connect(path)
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'frames'").fetchone()[0]
    connection.close()
    data[(root - 1) * 4096 : root * 4096] = b"\x55" * 4096
    path.write_bytes(data)


@pytest.mark.parametrize("inflict", [damage_row, damage_text, damage_page])
def test_damage_found_in_use_is_told_and_the_next_open_believes_it(path: Path, inflict: Callable[[Path], None]) -> None:
    """Row 45: ReceiptsLost, and whoever opens the file again gets a new one, in this process or another."""
    filled(path)
    inflict(path)
    key = RunKey(folder="/0")
    with Ledger.open(path) as ledger:
        assert not ledger.notes
        with pytest.raises(ReceiptsLost, match="are damaged"):
            ledger.get(key)
        with Ledger.open(path) as again:
            assert "found damaged while it was in use" in again.notes[0]
            assert again.rebuilt
            assert begin(again, key=key) == 1
        # Whoever still has the old file open does not condemn the new one.
        for ask in (lambda: begin(ledger, key=key), lambda: ledger.get(key), ledger.summaries):
            with pytest.raises(ReceiptsLost, match="no longer there"):
                ask()
    with Ledger.open(path) as again:
        assert not again.notes
        assert known(again, key).attempts.count == 1


def test_after_a_crash_all_of_it_is_checked(path: Path) -> None:
    """Where a log was left behind, damage is found that a clean start leaves for its reader to find."""
    filled(path)
    damage_page(path)
    Ledger.open(path).close()
    open(f"{path}-wal", "wb").close()
    with Ledger.open(path) as ledger:
        assert "is damaged" in ledger.notes[0]


def test_a_mark_about_another_file_is_not_believed(path: Path) -> None:
    """What was found damaged is known by its inode."""
    filled(path)
    Path(f"{path}-damaged").write_text("(1, 2)\n")
    with Ledger.open(path) as ledger:
        assert len(ledger.summaries()) == 60
    assert not os.path.exists(f"{path}-damaged")


def test_a_file_removed_under_the_daemon_is_missed(path: Path) -> None:
    """Nothing is written into a file that nobody will find."""
    with Ledger.open(path) as ledger:
        begin(ledger)
        path.unlink()
        with pytest.raises(ReceiptsLost, match="no longer there"):
            begin(ledger)
        with pytest.raises(ReceiptsLost, match="no longer there"):
            ledger.get(KEY)


def test_a_file_set_aside_in_the_middle_of_a_write_is_missed(path: Path) -> None:
    """What was committed into the old file is not passed off as recorded."""

    def moves_it() -> float:
        path.rename(f"{path}.aside")
        return 1.0

    with Ledger.open(path, clock=moves_it) as ledger:
        begin(ledger)
        with pytest.raises(ReceiptsLost, match="no longer there"):
            ledger.fail_attempt(KEY, "x", 1.0)


def test_a_mistake_of_ours_is_no_damage(ledger: Ledger) -> None:
    """A programming error keeps its type, changes nothing, and does not cost the receipts."""
    begin(ledger)
    with pytest.raises(UnicodeEncodeError):
        ledger.get(RunKey(folder="\ud800"))
    with pytest.raises(sqlite3.Error):
        ledger.begin_attempt(KEY, "id", "name", "/pictures", object(), 1.0, 0.5)  # type: ignore[arg-type]
    assert known(ledger).attempts.count == 1
    assert not os.path.exists(f"{ledger.path}-damaged")


def test_no_state_folder_is_named(tmp_path: Path) -> None:
    """A file where the folder should be: a sentence with a hint, not a traceback."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "receipts.db", tmp_path / "file" / "below" / "receipts.db"):
        with pytest.raises(EnvironmentFault, match="receipts cannot be opened") as told:
            Ledger.open(place)
        assert told.value.hint


# -- other threads, other processes


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    """No attempt is lost between them."""
    numbers: list[int] = []

    def work() -> None:
        for _ in range(25):
            numbers.append(begin(ledger))
            ledger.get(KEY)
            ledger.summaries()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 151))


WORK = """
import sys
from pathlib import Path
from stepwatch.core.model import RunKey
from stepwatch.ledger import Ledger
for _ in range({opens}):
    with Ledger.open(Path(sys.argv[1])) as ledger:
        for _ in range({times}):
            print(ledger.begin_attempt(RunKey(folder='/pictures/run'), 'id', 'name', '/', 'f1', 1.0, 0.5), flush=True)
"""


def spawn(script: str, path: Path, *, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen([*prefix, sys.executable, "-c", script, path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("begun", ["none", "garbage"])
def test_processes_share_the_file(path: Path, begun: str) -> None:
    """Row 63: each attempt has its own number, also when all of them begin at once with no file or a damaged one."""
    if begun == "garbage":
        path.parent.mkdir()
        path.write_bytes(b"garbage" * 1000)
    others = [spawn(WORK.format(opens=5, times=10), path) for _ in range(3)]
    ended = [other.communicate(timeout=60) for other in others]
    assert [err for _, err in ended if "Error" in err] == []
    numbers = sorted(int(number) for out, _ in ended for number in out.split())
    assert numbers == list(range(1, 151))
    assert len([one for one in os.listdir(path.parent) if ".corrupt-" in one]) == (begun == "garbage")


def test_one_process_opens_at_a_time(path: Path) -> None:
    """Two that find the same damaged file must not set aside the new one of each other."""
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)
    with module._opening(path, 1.0):
        with pytest.raises(EnvironmentFault, match="receipts cannot be opened: another process"):
            Ledger.open(path, busy=0.05)
        assert path.read_bytes() == b"garbage" * 1000
    with Ledger.open(path, busy=0.05) as ledger:
        assert ledger.notes


def test_a_file_locked_for_too_long_is_the_machines_fault(path: Path) -> None:
    """Row 45: reading goes on, writing says who may be in the way, and works again afterwards."""
    with Ledger.open(path, busy=0.05) as ledger:
        begin(ledger)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(EnvironmentFault, match="receipts cannot be written: another process keeps them locked") as told:
            begin(ledger)
        assert "stepwatch" in told.value.hint
        assert not isinstance(told.value, ReceiptsLost)
        assert known(ledger).attempts.count == 1
        with pytest.raises(EnvironmentFault, match="receipts cannot be opened: another process"):
            Ledger.open(path, busy=0.05)
        other.execute("ROLLBACK")
        other.close()
        assert begin(ledger) == 2


LOOP = """
import sys
from pathlib import Path
from stepwatch.core.model import Covered, Frame, Render, Role, RunKey
from stepwatch.core.policy import CleanupPolicy
from stepwatch.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]))
key = RunKey(folder='/pictures/run')
known = ledger.get(key)
done = len(known.renders) if known else 0
for number in range(done, done + 100_000):
    ledger.begin_attempt(key, 'id', 'name', '/', str(number), 1.0, 0.5)
    print('tried', number, flush=True)
    frames = tuple(Covered(frame=Frame(step=n + 1, name=str(n), size=number), digest='ab' * 32, role=Role.SHOWN) for n in range(number % 7))
    ledger.record_render(key, Render(generation=str(number), frames=frames, outputs=(), incomplete=False, at=1.0, cleanup=CleanupPolicy()))
    print('made', number, flush=True)
    ledger.update_render(key, str(number), clear_note='kept')
    print('kept', number, flush=True)
"""


def test_what_was_committed_outlives_kill_9(path: Path) -> None:
    """Row 48: whatever the child reported before it was killed is there, whole, and at most one thing more."""
    dice = random.Random(45)
    cut_short: set[int] = set()
    for _ in range(8):
        child = spawn(LOOP, path)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(dice.randrange(1, 60))]
        time.sleep(dice.random() * 0.01)  # the instant is the point: anywhere within a transaction
        child.send_signal(signal.SIGKILL)
        out, err = child.communicate(timeout=30)
        assert not err
        lines += out.splitlines(keepends=True)
        said = [(word, int(number)) for word, number in (line.split() for line in lines if line.endswith("\n"))]
        with Ledger.open(path) as ledger:
            assert not ledger.notes
            receipt = known(ledger)
        count = len(receipt.renders)
        cut_short.add(count - 1)
        assert [render.generation for render in receipt.renders] == [str(number) for number in range(count)]
        assert all(len(render.frames) == number % 7 for number, render in enumerate(receipt.renders))
        assert all(render.clear_note == "kept" for number, render in enumerate(receipt.renders) if number not in cut_short)
        word, number = said[-1]
        # What was said, and at most what came next.
        if word == "tried":
            assert count in (number, number + 1)
            assert receipt.attempts == (Attempts() if count > number else Attempts(fingerprint=str(number), count=1, not_before=1.0))
        elif word == "made":
            assert count == number + 1
            assert receipt.attempts == Attempts()
        else:
            assert count == number + 1
            assert receipt.renders[number].clear_note == "kept"
            assert receipt.attempts.fingerprint in ("", str(number + 1))


# -- disks


@pytest.fixture(scope="session")
def own_mounts() -> list[str]:
    """The command behind which mounts are our own; skipped where the kernel gives none."""
    for command in (["unshare", "-Urm"], ["unshare", "-m"]):
        if shutil.which("unshare"):
            check = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True)
            if check.returncode == 0:
                return command
    pytest.skip("this kernel lets nobody mount a small disk of their own")


def on_disk(own_mounts: list[str], disk: Path, options: str, script: str) -> list[Any]:
    """Run a script with a small disk of its own at *disk*; it prints one JSON list."""
    disk.mkdir()
    shell = f'mount -t tmpfs -o {options} none {shlex.quote(str(disk))} && exec "$@"'
    command = [*own_mounts, "sh", "-c", shell, "sh", sys.executable, "-c", script, str(disk)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    told: list[Any] = json.loads(done.stdout)
    return told


DISK = """
import json, os, subprocess, sys
from pathlib import Path
from stepwatch.core.model import *
from stepwatch.core.policy import CleanupPolicy
from stepwatch.errors import EnvironmentFault
from stepwatch.ledger import Ledger, ReceiptsLost
disk = Path(sys.argv[1])
path = disk / 'state' / 'receipts.db'
key = RunKey(folder='/pictures/run')
def begin(ledger, key=key):
    return ledger.begin_attempt(key, 'id', 'name', '/', 'f1', 1.0, 0.5)
def fault(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except ReceiptsLost as error:
        return 'lost: ' + str(error)
    except EnvironmentFault as error:
        assert error.hint
        return str(error)
    return 'no fault'
def fill():
    with open(disk / 'balloon', 'wb', buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b'x' * size):
                    pass
            except OSError:
                pass
def render(frames):
    covered = tuple(Covered(frame=Frame(step=n + 1, name='%05d' % n, size=n), digest='ab' * 32, role=Role.SHOWN) for n in range(frames))
    return Render(generation='g', frames=covered, outputs=(), incomplete=False, at=1.0, cleanup=CleanupPolicy())
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_full_disk_keeps_what_was_committed(own_mounts: list[str], tmp_path: Path, journal: str) -> None:
    """Row 45: a render that does not fit leaves the receipt as it was, and with room again it is recorded by the same ledger."""
    script = f"""{DISK}
ledger = Ledger.open(path, journal={journal!r})
first = begin(ledger)
before = ledger.get(key)
fill()
told = fault(ledger.record_render, key, render(5000))
same = ledger.get(key) == before
os.unlink(disk / 'balloon')
ledger.record_render(key, render(5000))
ledger.close()
with Ledger.open(path, journal={journal!r}) as again:
    print(json.dumps([told, same, again.notes, len(again.get(key).renders[0].frames)]))
"""
    told, same, notes, frames = on_disk(own_mounts, tmp_path / "disk", "size=4m", script)
    assert told.startswith("receipts cannot be written: the disk is full"), told
    assert (same, notes, frames) == (True, [], 5000)


def test_a_disk_too_full_to_begin_is_named(own_mounts: list[str], tmp_path: Path) -> None:
    """Row 45: no file and no room for one; no room beside an old one; with room again the old one is as it was."""
    script = f"""{DISK}
path.parent.mkdir()
fill()
new = fault(Ledger.open, path)
os.unlink(disk / 'balloon')
with Ledger.open(path) as ledger:
    begin(ledger)
fill()
old = fault(Ledger.open, path)
os.unlink(disk / 'balloon')
with Ledger.open(path) as ledger:
    print(json.dumps([new, old, ledger.notes, begin(ledger), sorted(os.listdir(path.parent))]))
"""
    new, old, notes, count, left = on_disk(own_mounts, tmp_path / "disk", "size=1m", script)
    assert new.startswith("receipts cannot be opened: the disk is full"), new
    assert old.startswith("receipts cannot be opened: the disk is full"), old
    assert (notes, count) == ([], 2)
    assert not [name for name in left if "corrupt" in name]


def test_a_read_only_disk_is_named(own_mounts: list[str], tmp_path: Path) -> None:
    """Row 45: whether the receipts are there already or not; nothing is set aside."""
    script = f"""{DISK}
with Ledger.open(path) as ledger:
    begin(ledger)
subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
told = [fault(Ledger.open, path), fault(Ledger.open, path, journal='delete'), fault(Ledger.open, disk / 'other' / 'receipts.db')]
subprocess.run(['mount', '-o', 'remount,rw', str(disk)], check=True)
with Ledger.open(path) as ledger:
    print(json.dumps([told, ledger.notes, begin(ledger)]))
"""
    told, notes, count = on_disk(own_mounts, tmp_path / "disk", "size=1m", script)
    for sentence in told:
        assert sentence.startswith("receipts cannot be opened: ")
        assert "only be read" in sentence or "Read-only" in sentence or "cannot be opened (" in sentence, sentence
    assert (notes, count) == ([], 2)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize(("call", "error"), [("fdatasync", "EIO"), ("pwrite64", "EROFS"), ("pwrite64", "ENOSPC")])
def test_a_disk_that_fails_in_use_is_the_machines_fault(path: Path, call: str, error: str) -> None:
    """Row 45: a write or sync that fails raises EnvironmentFault, whichever it is, and never costs what was committed before."""
    script = f"""{DISK}
path = disk
ledger = Ledger.open(path)
count = 0
told = ''
for number in range(40):
    try:
        count = begin(ledger)
    except EnvironmentFault as error:
        told = str(error)
        break
print(json.dumps([count, told]), flush=True)
os._exit(0)
"""
    failures = 0
    for when in (25, 35, 45):
        place = path.with_name(f"{when}.db")
        prefix: tuple[str, ...] = ("strace", "-f", "-qq", "-o", "/dev/null", "-P", f"{place}-wal", "-P", str(place), "-e", f"trace={call}")
        prefix += ("-e", f"inject={call}:error={error}:when={when}+")
        place.parent.mkdir(exist_ok=True)
        child = spawn(script, place, prefix=prefix)
        out, err = child.communicate(timeout=60)
        if "ptrace" in err or "PTRACE" in err:
            pytest.skip("this kernel lets nobody trace a process")
        assert child.returncode == 0, err
        count, told = json.loads(out)
        if told:
            failures += 1
            assert told.startswith("receipts cannot be written: "), told
        with Ledger.open(place) as ledger:
            assert not ledger.notes
            receipt = ledger.get(KEY)
            assert (receipt.attempts.count if receipt else 0) in (count, count + 1)
    assert failures
