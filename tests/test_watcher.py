"""Changed folders found by events and scans, and watching that goes on whatever happens to either."""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwatch import system, watcher
from stepwatch.watcher import Changes, Health, Watcher

NOTHING = Changes()


class Watched:
    """A watcher with a clock that moves only when told to."""

    def __init__(
        self,
        folder: Path,
        *,
        poll: Literal["auto", "off"] | float = "auto",
        rescan: float = 300.0,
        exclude: Callable[[str], bool] = lambda _: False,
        native: bool = True,
        stopwatch: Callable[[], float] = lambda: 0.0,
        turn: float = math.inf,
    ) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.hinted = threading.Event()
        self.now = 1000.0
        self.patience = 5.0
        self._waited_for: float | None = None
        self.watcher = Watcher(
            folder,
            poll=poll,
            rescan=rescan,
            exclude=exclude,
            hint=self.hinted.set,
            jitter=lambda: 0.5,
            native=native,
            stopwatch=stopwatch,
            turn=turn,
        )

    @property
    def health(self) -> Health:
        return self.watcher.health

    def state(self) -> str:
        return self.watcher.health.state

    def collect(self, *, after: float = 0.0) -> Changes:
        self.now += after
        return self.watcher.collect(self.now)

    def after_hint(self, *wanted: Path) -> set[Path]:
        """Collect on hints alone, the clock standing still, until all these folders have been reported; return everything that was."""
        told: set[Path] = set()
        deadline = time.monotonic() + 10
        while not told.issuperset(wanted):
            assert self.hinted.wait(max(0.0, deadline - time.monotonic())), f"no hint for {set(wanted) - told}"
            self.hinted.clear()
            time.sleep(0.01)
            told |= self.collect().folders
        return told

    def gone_after_hint(self, folder: Path) -> None:
        """Collect on hints alone until this folder is reported as gone."""
        while True:
            assert self.hinted.wait(10)
            self.hinted.clear()
            if folder in self.collect().gone:
                return

    def let(self, seconds: float) -> Changes:
        """Let time pass, from one due moment to the next; an event that the cookie asks for gets a real moment to arrive."""
        end = self.now + seconds
        folders: set[Path] = set()
        gone: set[Path] = set()
        full = False
        while True:
            self._hear_cookie()
            changes = self.watcher.collect(self.now)
            folders |= changes.folders
            gone |= changes.gone
            full |= changes.full
            later = self.watcher.due(self.now)
            if later > end:
                break
            self.now = max(self.now, later) if later > self.now else self.now + 0.001
        self.now = end
        return Changes(folders=frozenset(folders), gone=frozenset(gone), full=full)

    def _hear_cookie(self) -> None:
        if self.watcher._cookie_until == self._waited_for:
            return
        self._waited_for = self.watcher._cookie_until
        deadline = time.monotonic() + self.patience
        while self.watcher._cookie_until is not None and not self.watcher._events.cookie_seen and time.monotonic() < deadline:
            time.sleep(0.002)


@contextmanager
def watching(folder: Path, **choices: Any) -> Iterator[Watched]:
    """Start a watcher, and let it make its first scan."""
    watched = Watched(folder, **choices)
    watched.watcher.start()
    try:
        first = watched.collect()
        assert first.full or watched.state() == "asleep"
        yield watched
    finally:
        watched.watcher.stop()


def write(folder: Path, *names: str, content: bytes = b"x") -> Path:
    """Write files into a folder, made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """An empty folder to watch."""
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


# ---------------------------------------------------------------- what a scan finds


def test_first_collect_reports_every_folder_and_the_next_none(top: Path) -> None:
    """All folders are new once; nothing is told twice."""
    runs = [write(top / name, "00000.png") for name in ("a", "b", "b/c")]
    watched = Watched(top)
    watched.watcher.start()
    try:
        assert watched.watcher.due(watched.now) == watched.now
        assert watched.collect() == Changes(folders=frozenset({top, *runs}), full=True)
        assert watched.collect() == NOTHING
        assert watched.let(100) == NOTHING
        assert watched.health.folders == 4
    finally:
        watched.watcher.stop()


def test_a_scan_of_two_thousand_folders_finds_exactly_the_changed_ones(top: Path) -> None:
    """Additions, rewrites and deletions among many folders that stay as they are."""
    runs = [write(top / f"{number:04d}", "00000.png", "run.json") for number in range(2000)]
    with watching(top, native=False, poll="off") as watched:
        write(runs[7], "00001.png")
        write(runs[70], "run.json", content=b"{}")
        write(runs[700], "notes.txt")
        (runs[1700] / "00000.png").unlink()
        shutil.rmtree(runs[1999])
        new = write(top / "new" / "deep", "00000.png")
        assert watched.let(301) == Changes(
            folders=frozenset({runs[7], runs[70], runs[1700], new.parent, new}), gone=frozenset({runs[1999]}), full=True
        )


def test_idle_touches_no_file(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two thousand folders, a collect that is not due asks the file system for nothing."""
    for number in range(2000):
        (top / str(number)).mkdir()
    with watching(top) as watched:
        watched.let(4)
        due = watched.watcher.due(watched.now)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError

        with monkeypatch.context() as patch:
            for name in ("scandir", "stat", "lstat", "open", "listdir"):
                patch.setattr(os, name, refuse)
            for _ in range(100):
                assert watched.collect() == NOTHING
            assert watched.watcher.due(watched.now) == due > watched.now


def tick(folder: Path) -> None:
    """Wait until the file system's clock has moved on: some count in steps of milliseconds."""
    probe = folder / "probe.txt"
    probe.write_bytes(b"")
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        os.utime(probe)


@given(data=st.data())
@settings(max_examples=40)
def test_every_way_to_change_a_frame_shows(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A rewrite, a rename, a swap, a touch, even with the old size and times put back, changes the digest; looking does not."""
    folder = tmp_path_factory.mktemp("digest")
    names = data.draw(st.lists(st.sampled_from(["1.png", "2.PNG", "3.jpg", "run.json", "stepwatch.yaml", "ü.webp"]), min_size=2, unique=True))
    write(folder, *names)
    tree = watcher._Tree(lambda _: False, lambda _path, _digest: False)
    assert tree.scan([(str(folder), 1, True)]).changed == {str(folder)}
    assert not tree.scan([(str(folder), 1, True)]).changed
    tick(folder)
    one, other = (folder / name for name in data.draw(st.permutations(names))[:2])
    facts = one.stat()
    match data.draw(st.sampled_from(["rewrite", "replace", "rename", "swap", "touch", "grow", "delete", "link", "add", "mode"])):
        case "rewrite":
            one.write_bytes(b"y")
            os.utime(one, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        case "replace":
            (folder / "new.tmp").write_bytes(b"y")
            os.utime(folder / "new.tmp", ns=(facts.st_atime_ns, facts.st_mtime_ns))
            (folder / "new.tmp").rename(one)
        case "rename":
            one.rename(folder / "9.png")
        case "swap":
            one.rename(folder / "aside")
            other.rename(one)
            (folder / "aside").rename(other)
        case "touch":
            os.utime(one)
        case "grow":
            with one.open("ab") as file:
                file.write(b"z")
        case "delete":
            one.unlink()
        case "link":
            os.link(one, folder / "elsewhere")
        case "add":
            write(folder, "new.bmp")
        case "mode":
            one.chmod(0o600)
    assert tree.scan([(str(folder), 1, True)]).changed == {str(folder)}
    assert not tree.scan([(str(folder), 1, True)]).changed


def test_other_files_do_not_count(top: Path) -> None:
    """Hidden and temporary files and those that are no frames change nothing."""
    run = write(top / "run", "00000.png")
    with watching(top, native=False, poll="off") as watched:
        write(run, ".00001.png.tmp", ".hidden.png", "00001.png.part", "clip.mp4", "notes.txt")
        assert watched.let(400) == Changes(full=True)


def test_hidden_left_out_and_linked_folders_are_never_entered(top: Path, tmp_path: Path) -> None:
    """What is in them is not reported, by scan or by event, and costs no scan."""
    elsewhere = write(tmp_path / "elsewhere", "00000.png")
    write(top / ".stepwatch" / "trash", "00000.png")
    outputs = write(top / "animation" / "deeper", "00000.png").parent
    (top / "link").symlink_to(elsewhere, target_is_directory=True)
    run = write(top / "run", "00000.png")
    with watching(top, exclude=lambda path: path.endswith("/animation")) as watched:
        assert watched.health.folders == 2
        write(elsewhere, "00001.png")
        write(top / ".stepwatch" / "trash" / "2", "00001.png")
        write(outputs / "2", "00001.png")
        write(run, "00001.png")
        assert watched.after_hint(run) == {run}
        assert watched.let(400) == Changes(full=True)
        assert watched.health.folders == 2


def test_a_linked_frame_shows_when_its_target_changes(top: Path, tmp_path: Path) -> None:
    """A link in a frame's place counts with what it leads to."""
    target = write(tmp_path / "elsewhere", "00000.png") / "00000.png"
    run = write(top / "run")
    (run / "00000.png").symlink_to(target)
    with watching(top, native=False, poll="off") as watched:
        target.write_bytes(b"longer")
        assert watched.let(400).folders == {run}


def test_names_that_are_no_text_survive(top: Path) -> None:
    """Undecodable bytes in folder and file names come back as they are, from scans and from events."""
    run = write(top / os.fsdecode(b"run \xff\xfe"), os.fsdecode(b"\xe9-00000.png"))
    with watching(top) as watched:
        write(run, os.fsdecode(b"\xe9-00001.png"))
        assert watched.after_hint(run) == {run}
        assert os.fsencode(run).endswith(b"run \xff\xfe")


def test_a_folder_is_looked_at_again_on_request(top: Path) -> None:
    """One folder, or all of them, are reported although nothing changed; one that is not there is gone."""
    run = write(top / "run", "00000.png")
    with watching(top) as watched:
        watched.watcher.look_again(run)
        assert watched.watcher.due(watched.now) == watched.now
        assert watched.collect() == Changes(folders=frozenset({run}))
        watched.watcher.look_again(None)
        assert watched.collect() == Changes(folders=frozenset({top, run}), full=True)
        watched.watcher.look_again(top / "never")
        assert watched.collect() == Changes(gone=frozenset({top / "never"}))
        assert watched.collect() == NOTHING


@contextmanager
def failing(folder: Path, number: int) -> Iterator[None]:
    """Let one folder fail to be listed."""
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if path == str(folder):
            raise OSError(number, os.strerror(number))
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        yield


def test_a_folder_closed_to_us_loses_neither_itself_nor_the_others(top: Path) -> None:
    """It is named among the problems, nothing in it is gone, and all others are seen."""
    closed = write(top / "closed", "00000.png")
    inner = write(closed / "inner", "00000.png")
    run = write(top / "run", "00000.png")
    other = write(top / "other", "00000.png")
    with watching(top, native=False, poll="off") as watched:
        with failing(closed, errno.EACCES):
            write(run, "00001.png")
            shutil.rmtree(other)
            assert watched.let(301) == Changes(folders=frozenset({run}), gone=frozenset({other}), full=True)
            assert watched.health.problems == (f"{closed}: Permission denied",)
        write(inner, "00001.png")
        assert watched.let(301) == Changes(folders=frozenset({inner}), full=True)
        assert not watched.health.problems


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_failing_disk_makes_nothing_gone(top: Path, number: int) -> None:
    """A scan with a failure concludes nothing from what it did not see; the truth is told soon after the failure ends."""
    broken = write(top / "broken", "00000.png")
    other = write(top / "other" / "inner", "00000.png").parent
    run = write(top / "run", "00000.png")
    with watching(top, native=False, poll="off") as watched:
        with failing(broken, number):
            shutil.rmtree(other)
            write(run, "00001.png")
            changes = watched.collect(after=301)
            assert changes == Changes(folders=frozenset({run}), full=False)
        assert watched.let(10) == Changes(gone=frozenset({other, other / "inner"}))
        assert watched.let(20) == NOTHING


def test_nothing_is_gone_when_the_watched_folder_itself_cannot_be_listed(top: Path) -> None:
    """The scan of a folder whose disk fails keeps everything."""
    write(top / "run", "00000.png")
    with watching(top, native=False, poll="off") as watched:
        with failing(top, errno.EIO):
            assert watched.collect(after=301) == NOTHING
        assert watched.let(10) == NOTHING
        assert watched.health.folders == 2


# ---------------------------------------------------------------- a scan in slices


@contextmanager
def slicing(folder: Path, **choices: Any) -> Iterator[Watched]:
    """Start a watcher that looks at one folder each time, with all its watches set and nothing looked at yet."""
    watched = Watched(folder, turn=0.0, **choices)
    watched.watcher.start()
    try:
        watched.collect()
        while watched.watcher._events.starting:
            time.sleep(0.002)
        yield watched
    finally:
        watched.watcher.stop()


def finish(watched: Watched) -> list[Changes]:
    """Go on with a full scan, the clock standing still, to its end."""
    found = []
    while watched.watcher.looking or watched.watcher.due(watched.now) <= watched.now:
        assert watched.watcher.due(watched.now) <= watched.now
        found.append(watched.collect())
    return found


def test_a_full_scan_goes_on_in_slices_until_everything_was_seen_once(top: Path) -> None:
    """Each slice tells what it has found, the last one that it was the last; health counts how many folders are still ahead."""
    runs = [write(top / f"{number // 3}" / f"{number}", "00000.png") for number in range(9)]
    everything = {top, *runs, *(run.parent for run in runs)}
    with slicing(top, native=False, poll="off") as watched:
        ahead = watched.health.ahead
        assert ahead == 3
        slices = [Changes(folders=frozenset({top})), *finish(watched)]
        assert [len(changes.folders) for changes in slices] == [1] * 13
        assert set().union(*(changes.folders for changes in slices)) == everything
        assert [changes.full for changes in slices] == [False] * 12 + [True]
        assert watched.health.ahead is None
        assert watched.watcher.due(watched.now) > watched.now


def test_what_happens_during_a_full_scan_comes_before_the_rest_of_it(top: Path) -> None:
    """A frame in a folder that the scan has not come to, and a run that begins meanwhile, are told by the next collect, as urgent; nothing twice."""
    for number in range(30):
        write(top / "old" / f"{number}", "00000.png")
    with slicing(top) as watched:
        assert watched.collect().folders == {top}
        write(top / "old" / "7", "00001.png")
        new = write(top / "new" / "run", "00000.png")
        told: list[Changes] = []
        while not {top / "old" / "7", new} <= set().union(*(changes.folders for changes in told), ()):
            assert watched.hinted.wait(5)
            time.sleep(0.02)
            told.append(watched.collect())
        assert {top / "old" / "7", new} <= set().union(*(changes.urgent for changes in told))
        assert watched.health.folders < 20
        told += finish(watched)
        assert watched.health.folders == 34
        seen = [folder for changes in told for folder in changes.folders if folder.parent == top / "old"]
        assert sorted(seen) == sorted(set(seen)) == sorted(top / "old" / f"{number}" for number in range(30))
        assert watched.watcher._tree.scan([(str(top), 0, True)]).changed == set()


def test_what_goes_and_comes_back_between_two_slices_is_not_gone(top: Path) -> None:
    """A folder that one slice has missed and an event has found again is there; what stays away is gone when the scan ends."""
    runs = [write(top / name, "00000.png") for name in ("a", "b", "c", "d")]
    with slicing(top) as watched:
        finish(watched)
        aside = top / ".aside"
        runs[0].rename(aside)
        shutil.rmtree(runs[1])
        # As if these events had been lost.
        time.sleep(0.3)
        watched.watcher._events.take()
        watched.now = watched.watcher._full_at
        assert watched.collect().gone == frozenset()
        write(aside, "00001.png")
        aside.rename(runs[0])
        assert watched.hinted.wait(5)
        time.sleep(0.1)
        changes = finish(watched)
        assert set().union(*(one.gone for one in changes)) == {runs[1]}
        assert runs[0] in set().union(*(one.folders for one in (*changes, watched.let(5))))
        assert watched.watcher._tree.scan([(str(top), 0, True)]).changed == set()
        assert sorted(watched.watcher._tree.known) == sorted(map(str, (top, runs[0], *runs[2:])))


def test_a_folder_that_is_taken_away_between_two_slices_loses_nothing(top: Path) -> None:
    """The scan is given up, nothing is gone, and it begins anew when the folder is back."""
    for number in range(5):
        write(top / f"{number}", "00000.png")
    away = top.with_name("aside")
    with slicing(top, native=False, poll="off") as watched:
        watched.collect()
        top.rename(away)
        assert watched.collect(after=0.1) == NOTHING
        assert watched.state() == "asleep"
        assert not watched.watcher.looking
        assert watched.health.ahead is None
        away.rename(top)
        changes = watched.let(10)
        assert changes.full
        assert changes.gone == frozenset()
        assert watched.health.folders == 6


def test_who_asks_for_everything_during_a_full_scan_gets_another_one(top: Path) -> None:
    """What is known is told at once; folders that have been passed may be left out, or no longer be left out, by now."""
    write(top / "run", "00000.png")
    hidden = write(top / "hidden", "00000.png")
    left_out = {str(hidden)}
    with slicing(top, native=False, poll="off", exclude=left_out.__contains__) as watched:
        left_out.clear()
        watched.watcher.look_again(None)
        assert top in watched.collect().folders
        assert hidden in set().union(*(changes.folders for changes in finish(watched)))


def test_watches_come_before_the_scan_and_keep_nobody_waiting(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While watches are being set nothing is listed, and each collect comes back at once; what was written meanwhile is found."""
    from watchdog.observers.api import BaseObserver

    go_on = threading.Event()
    real = BaseObserver.start

    def slowly(self: BaseObserver) -> None:
        assert go_on.wait(20)
        real(self)

    monkeypatch.setattr(BaseObserver, "start", slowly)
    run = write(top / "run", "00000.png")
    watched = Watched(top, turn=0.01)
    watched.watcher.start()
    try:
        assert watched.collect() == watched.collect(after=1) == NOTHING
        assert watched.watcher.looking
        assert watched.watcher.due(watched.now) > watched.now
        assert (watched.state(), watched.health.folders, watched.health.ahead) == ("watching", 0, 0)
        later = write(top / "later", "00000.png")
        watched.hinted.clear()
        go_on.set()
        assert watched.hinted.wait(10)
        assert watched.collect() == Changes(folders=frozenset({top, run, later}), full=True)
        write(run, "00001.png")
        assert watched.after_hint(run) == {run}
    finally:
        go_on.set()
        watched.watcher.stop()


def test_watches_that_cannot_be_set_after_all_lead_to_polling(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is met when the caller has gone on long ago has the same reason as one that is met at once."""
    from watchdog.observers.api import BaseObserver

    def fail(_: object) -> None:
        time.sleep(0.1)
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(BaseObserver, "start", fail)
    run = write(top / "run", "00000.png")
    watched = Watched(top, turn=0.01)
    watched.watcher.start()
    try:
        assert watched.hinted.wait(10)
        assert watched.collect().folders == {top, run}
        assert watched.state() == "polling"
        assert watched.health.reason.startswith("no folder can be watched: the limit of file watches is reached;")
    finally:
        watched.watcher.stop()


def test_a_watcher_may_be_stopped_while_its_watches_are_set(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends within two seconds, and in the end no thread is left."""
    from watchdog.observers.api import BaseObserver

    real = BaseObserver.start

    def slowly(self: BaseObserver) -> None:
        time.sleep(2.5)
        real(self)

    monkeypatch.setattr(BaseObserver, "start", slowly)
    before = threading.active_count()
    watched = Watched(top, turn=0.01)
    watched.watcher.start()
    began = time.monotonic()
    watched.watcher.stop()
    assert time.monotonic() - began < 2
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


# ---------------------------------------------------------------- a rescan that glances


@contextmanager
def glancing(folder: Path, **choices: Any) -> Iterator[tuple[Watched, Callable[[], set[str]]]]:
    """A watcher that hears its cookies and no other event; and what a rescan finds, with the folders that it lists."""
    watched = Watched(folder, **choices)
    listed: set[str] = set()
    real_list, real_note = watched.watcher._tree._list, watched.watcher._events._note

    def listing(path: str, *arguments: Any, **choices: Any) -> Any:
        listed.add(path)
        return real_list(path, *arguments, **choices)

    def rescan() -> set[str]:
        listed.clear()
        changes = watched.let(301)
        assert changes.full
        return {str(path) for path in changes.folders | changes.gone}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watcher, "YOUNG", 0)
        patch.setattr(watched.watcher._events, "_note", lambda event: real_note(event) if "cookie" in event.src_path else None)
        patch.setattr(watched.watcher._tree, "_list", listing)
        tick(folder)
        watched.watcher.start()
        try:
            watched.collect()
            watched.let(10)
            rescan.listed = listed  # type: ignore[attr-defined]
            yield watched, rescan
        finally:
            watched.watcher.stop()


def test_a_rescan_lists_a_twelfth_of_the_folders_and_glances_at_the_others(top: Path) -> None:
    """While events are heard; after twelve of them each folder was listed."""
    for number in range(240):
        write(top / f"{number % 8}" / f"{number}", "00000.png", "run.json")
    with glancing(top) as (watched, rescan):
        listed: list[set[str]] = []
        for _ in range(watcher.TURNS):
            assert rescan() == set()
            listed.append(set(rescan.listed))  # type: ignore[attr-defined]
        assert set().union(*listed) == set(watched.watcher._tree.known)
        assert sum(map(len, listed)) == len(watched.watcher._tree.known) == 249


@pytest.mark.parametrize(
    "change", ["add", "delete", "rename", "replace", "new folder", "folder gone", "folder replaced", "sidecar", "policy", "sidecar gone"]
)
def test_a_glance_sees_what_comes_and_goes_and_what_sidecars_say(top: Path, change: str) -> None:
    """Whatever makes a run or completes one is found by the next rescan, although its event was lost."""
    run = write(top / "a" / "run", "00000.png", "00001.png", "run.json", "stepwatch.yaml")
    write(run / "inner", "00000.png")
    for number in range(20):
        write(top / "a" / f"{number}", "00000.png", "run.json")
    write(top / "aside.tmp", "00000.png")
    # Whichever twelfth it is in, it is not listed for that.
    with glancing(top) as (watched, rescan):
        turn = hash(str(run)) % watcher.TURNS
        watched.watcher._routines = (turn + 1) % watcher.TURNS if turn + 1 != hash(str(run.parent)) % watcher.TURNS else (turn + 2) % watcher.TURNS
        wanted = {str(run)}
        match change:
            case "add":
                write(run, "00002.png")
            case "delete":
                (run / "00000.png").unlink()
            case "rename":
                (run / "00000.png").rename(run / "00002.png")
            case "replace":
                (run / "new.tmp").write_bytes(b"x")
                (run / "new.tmp").rename(run / "00000.png")
            case "new folder":
                wanted = {str(write(run / "new", "00000.png"))}
            case "folder gone":
                shutil.rmtree(run / "inner")
                wanted = {str(run / "inner")}
            case "folder replaced":
                shutil.rmtree(run)
                (top / "aside.tmp").rename(run)
                wanted |= {str(run / "inner")}
            case "sidecar":
                write(run, "run.json", content=b"y")
            case "policy":
                write(run, "stepwatch.yaml", content=b"y")
            case "sidecar gone":
                (run / "run.json").unlink()
        assert rescan() - {str(top / "aside.tmp")} == wanted


def test_a_frame_rewritten_in_place_is_found_after_twelve_rescans_at_the_latest(top: Path) -> None:
    """Should its event be lost, without anybody's noticing, the twelfth of the folders in which it lies has its turn."""
    run = write(top / "run", "00000.png")
    with glancing(top) as (_, rescan):
        tick(top)
        rescan()
        write(run, "00000.png", content=b"y")
        found = [rescan() for _ in range(watcher.TURNS)]
        assert found.count({str(run)}) == 1
        assert found.count(set()) == watcher.TURNS - 1


@pytest.mark.parametrize("why", ["polled", "unknown", "silent", "silent, off", "no events", "lost", "asked"])
def test_a_glance_will_not_do_where_events_are_in_doubt(top: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Then every folder is listed, so that a frame rewritten in place is found by the very next scan."""
    runs = [write(top / f"{number}", "00000.png") for number in range(20)]
    if why == "unknown":
        monkeypatch.setattr(watcher, "file_system", lambda _: "fat9")
    poll = 5.0 if why == "polled" else "off" if why == "silent, off" else "auto"
    with glancing(top, native=why != "no events", poll=poll) as (watched, rescan):
        rescan()
        if why.startswith("silent"):
            watched.watcher._events._note = lambda event: None  # type: ignore[method-assign]
            watched.patience = 0.0
            watched.let(60)
        for run in runs:
            write(run, "00000.png", content=b"y")
        match why:
            case "lost":
                watched.watcher._events.lose()
                assert watched.collect().folders == set(runs)
            case "asked":
                watched.watcher.look_again(None)
                assert watched.collect().folders == {top, *runs}
                assert rescan() == set()
            case "no events" | "polled" | "silent":
                assert watched.let(10).folders == set(runs)
            case _:
                assert rescan() == set(map(str, runs))


def test_a_folder_that_does_not_tell_enough_is_listed_each_time(top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a link among its frames, one with something in it that is left out, and one that has changed only a moment ago."""
    target = write(tmp_path / "elsewhere", "00000.png") / "00000.png"
    linked = write(top / "a" / "linked")
    (linked / "00000.png").symlink_to(target)
    left_out = {str(write(top / "a" / "outer" / "other", "00000.png"))}
    plain = [str(write(top / "a" / f"{number}", "00000.png")) for number in range(30)]
    with glancing(top, exclude=left_out.__contains__) as (watched, rescan):
        target.write_bytes(b"longer")
        assert rescan() == {str(linked)}
        assert len(rescan.listed.intersection(plain)) < 10  # type: ignore[attr-defined]
        other = left_out.pop()
        assert rescan() == {other}
        monkeypatch.setattr(watcher, "YOUNG", 10**12)
        for _ in range(watcher.TURNS):
            rescan()
        rescan()
        assert rescan.listed == set(watched.watcher._tree.known)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- what events do


def test_a_new_frame_is_known_by_its_event(top: Path) -> None:
    """A file written, renamed into place or deleted is reported on the hint, with nothing else due."""
    run = write(top / "run", "00000.png")
    with watching(top) as watched:
        write(run, "00001.png")
        assert watched.after_hint(run) == {run}
        write(run, "00002.png.tmp")
        (run / "00002.png.tmp").rename(run / "00002.png")
        assert watched.after_hint(run) == {run}
        (run / "00002.png").unlink()
        assert watched.after_hint(run) == {run}
        assert watched.state() == "watching"
        assert watched.health.events >= 3


def test_renamed_and_deleted_folders_are_gone(top: Path) -> None:
    """A folder that was renamed is gone under its old name and new under the other, with all below it."""
    write(top / "a" / "b", "00000.png")
    with watching(top) as watched:
        (top / "a").rename(top / "z")
        assert watched.after_hint(top / "z" / "b") == {top / "z", top / "z" / "b"}
        shutil.rmtree(top / "z")
        watched.gone_after_hint(top / "z")
        assert watched.let(400) == Changes(full=True)
        assert watched.health.folders == 1


def test_a_folder_replaced_by_another_is_scanned_with_all_below(top: Path) -> None:
    """The same name on another folder is another folder."""
    write(top / "run" / "inner", "00000.png")
    other = write(top / ".aside" / "inner", "00000.png", "00001.png").parent
    with watching(top) as watched:
        shutil.rmtree(top / "run")
        other.rename(top / "run")
        assert top / "run" / "inner" in watched.after_hint(top / "run" / "inner")


def test_nested_folders_made_at_once_are_all_found(top: Path) -> None:
    """Row 35: most files of such a burst have no event of their own; every folder is reported with its last file seen."""
    with watching(top) as watched:
        leaves = [write(top / f"{number}" / "b" / "c", *(f"{index:05d}.png" for index in range(5))) for number in range(60)]
        watched.after_hint(*leaves)
        while watched.hinted.wait(0.3):
            watched.hinted.clear()
            watched.collect()
        assert watched.watcher._tree.scan([(str(top), 0, True)]).changed == set()
        assert watched.health.folders == 181
        assert watched.watcher._events.alive


def test_a_tree_moved_in_and_then_written_into_is_followed(top: Path, tmp_path: Path) -> None:
    """Row 36: frames that arrive after the move are reported by their own events."""
    inner = write(tmp_path / "outside" / "inner", "00000.png")
    with watching(top) as watched:
        inner.parent.rename(top / "moved")
        run = top / "moved" / "inner"
        watched.after_hint(run)
        write(run, "00001.png")
        assert watched.after_hint(run) >= {run}
        assert watched.watcher._tree.scan([(str(top), 0, True)]).changed == set()


def test_a_full_queue_leads_to_a_full_scan(top: Path) -> None:
    """Row 31: events were lost, so everything is scanned, counted, and scanned once more when the watches are surely back."""
    run = write(top / "run", "00000.png")
    with watching(top) as watched:
        watched.let(4)
        observer: Any = watched.watcher._events._observer
        with observer._inotify_fd._lock:
            for number in range(8400):
                os.close(os.open(run / f"{number}.txt", os.O_CREAT | os.O_WRONLY))
            during = [write(top / "during" / str(number), "00000.png") for number in range(20)]
        deadline = time.monotonic() + 10
        while not watched.watcher._events.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watched.hinted.is_set()
        changes = watched.collect()
        assert changes.full
        assert changes.folders >= set(during)
        assert watched.health.recrawls == 1
        assert watched.let(20).full
        write(during[7], "00001.png")
        watched.after_hint(during[7])
        assert watched.state() == "watching"


@contextmanager
def hearing(logger: logging.Logger) -> Iterator[list[str]]:
    """Hear what reaches a logger."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def test_what_watchdog_says_reaches_nobody_else(top: Path) -> None:
    """Its warnings are a reason to scan, not lines in our log."""
    with watching(top) as watched, hearing(logging.getLogger()) as said:
        logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; filesystem events were lost")
        assert watched.hinted.is_set()
        assert watched.collect().full
        assert watched.health.recrawls == 1
        assert said == []


def test_events_lost_again_and_again_are_given_up_for_polling(top: Path) -> None:
    """watchdog's own recovery can overflow the queue for ever: polling takes over, and events get another chance later."""
    run = write(top / "run", "00000.png")
    with watching(top) as watched:
        watched.let(3)
        for _ in range(5):
            logging.getLogger("watchdog").warning("lost")
            watched.collect(after=1)
        assert watched.state() == "polling"
        assert watched.health.reason == "file events are lost faster than they can be heard."
        write(run, "00001.png")
        assert watched.let(3).folders == {run}
        watched.let(120)
        assert watched.state() == "watching"


def test_two_watchers_in_one_process_count_their_own_watches(top: Path, tmp_path: Path) -> None:
    """Each holds the kernel's list of its own descriptor against its own folders, and only its own lost events make it scan."""
    write(top / "a" / "b", "00000.png")
    other = write(tmp_path / "other", "00000.png")
    with watching(top) as one, watching(other) as two:
        one.let(4)
        two.let(4)
        # Each has `.stepwatch` besides.
        assert (one.health.folders, one.health.watches) == (3, 4)
        assert (two.health.folders, two.health.watches) == (1, 2)
        assert two.watcher._events._observer is not None
        record = logging.makeLogRecord({"levelno": logging.WARNING, "thread": two.watcher._events._observer.ident})
        watcher._complaints.emit(record)
        one.collect()
        two.collect()
        assert (one.health.recrawls, two.health.recrawls) == (0, 1)


def test_watches_are_counted_without_knowing_watchdogs_insides(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that names things otherwise is not taken for one without watches."""
    write(top / "a" / "b", "00000.png")
    with watching(top) as watched:
        observer = watched.watcher._events._observer
        with monkeypatch.context() as patch:
            patch.setattr(observer, "_inotify_fd", None)
            watched.let(4)
            assert watched.state() == "watching"
            assert watched.health.watches >= 4


@pytest.mark.parametrize("part", ["emitter", "reader", "dispatcher"])
def test_a_dead_thread_is_replaced(top: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 34: whichever of watchdog's threads dies, it is noticed, everything is scanned, and events are heard again."""
    run = write(top / "run", "00000.png")
    with watching(top) as watched:
        watched.let(10)
        observer: Any = watched.watcher._events._observer
        emitter = next(iter(observer.emitters))
        thread, method = {
            "emitter": (emitter, "queue_events"),
            "reader": (observer._inotify_fd, "read_events"),
            "dispatcher": (observer, "dispatch_events"),
        }[part]

        def die(*_: object, **__: object) -> None:
            raise ValueError

        monkeypatch.setattr(threading, "excepthook", lambda _: None)

        monkeypatch.setattr(thread, method, die)
        deadline = time.monotonic() + 5
        while thread.is_alive() and time.monotonic() < deadline:
            # The call that goes on at present has to end first.
            write(run, "wake.txt")
            time.sleep(0.01)
        write(run, "00001.png")
        changes = watched.collect()
        assert changes.full
        assert changes.folders == {run}
        assert watched.health.restarts == 1
        watched.hinted.clear()
        write(run, "00002.png")
        assert run in watched.after_hint(run)
        watched.let(10)
        assert watched.state() == "watching"


def test_stopping_ends_every_thread_and_may_be_said_twice(top: Path) -> None:
    """Nothing of watchdog's is left, and a watcher that was stopped can start again."""
    before = threading.active_count()
    run = write(top / "run", "00000.png")
    watched = Watched(top)
    watched.watcher.stop()
    watched.watcher.start()
    watched.collect()
    began = time.monotonic()
    watched.watcher.stop()
    watched.watcher.stop()
    assert time.monotonic() - began < 2
    assert threading.active_count() == before
    assert watched.watcher.due(watched.now) == float("inf")
    assert watched.collect() == NOTHING
    write(run, "00001.png")
    watched.watcher.start()
    assert watched.collect() == Changes(folders=frozenset({run}), full=True)
    watched.watcher.stop()


def test_stopping_does_not_wait_for_a_thread_that_hangs(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server that does not answer, watchdog's threads may never end."""
    release = threading.Event()
    with watching(top) as watched:
        observer: Any = watched.watcher._events._observer
        real = observer.stop

        def hang() -> None:
            release.wait(20)
            real()

        monkeypatch.setattr(observer, "stop", hang)
        began = time.monotonic()
        watched.watcher.stop()
        assert time.monotonic() - began < 2
        release.set()
        observer.join(5)


# ---------------------------------------------------------------- polling


def test_without_events_changes_are_found_by_polling(top: Path) -> None:
    """Row 37, no events at all: a poll each two seconds finds the frame, and health says why."""
    run = write(top / "run", "00000.png")
    with watching(top, native=False) as watched:
        assert watched.state() == "polling"
        assert watched.health.reason == "file events are not used here"
        write(run, "00001.png")
        assert watched.let(2.1) == Changes(folders=frozenset({run}), full=True)


def test_events_that_do_not_arrive_are_noticed_by_the_cookie(top: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Row 37: polling begins five seconds after a cookie without an event, is said once, and ends when events come back."""
    run = write(top / "run", "00000.png")
    caplog.set_level(logging.INFO, logger="stepwatch.watcher")
    with watching(top) as watched:
        watched.let(6)
        assert watched.state() == "watching"
        with monkeypatch.context() as patch:
            patch.setattr(watched.watcher._events, "_note", lambda event: None)
            watched.patience = 0.0
            watched.let(40)
            assert watched.state() == "polling"
            assert watched.health.reason == "file events do not arrive here."
            write(run, "00001.png")
            assert watched.let(2.1).folders == {run}
            watched.let(60)
        watched.patience = 5.0
        # watchdog may complain when it is ended between two events.
        ours = [record.getMessage() for record in caplog.records if record.name == "stepwatch.watcher"]
        assert ours == [f"{top}: polling: file events do not arrive here."]
        watched.let(40)
        assert watched.state() == "watching"
        watched.hinted.clear()
        write(run, "00002.png")
        watched.after_hint(run)


def test_time_that_nobody_was_awake_is_not_held_against_the_cookie(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 61: after eight hours of suspend the event of the last cookie gets its five seconds anew."""
    with watching(top) as watched:
        watched.let(10)
        monkeypatch.setattr(watched.watcher._events, "_note", lambda event: None)
        watched.patience = 0.0
        watched.let(21)
        assert watched.watcher._cookie_until is not None
        watched.collect(after=8 * 3600)
        assert watched.state() == "watching"
        watched.collect(after=5)
        assert watched.state() == "polling"


@pytest.mark.parametrize(("kind", "remote"), [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("9p", True), ("overlay", True), ("ext4", False)])
def test_remote_file_systems_are_polled_from_the_start(top: Path, monkeypatch: pytest.MonkeyPatch, kind: str, remote: bool) -> None:  # noqa: FBT001
    """Other machines' writes have no events here; our own have, and are heard besides."""
    monkeypatch.setattr(watcher, "file_system", lambda path: kind)
    run = write(top / "run", "00000.png")
    with watching(top) as watched:
        assert watched.health.kind == kind
        assert watched.state() == ("polling" if remote else "watching")
        assert watched.health.reason == (f"{kind} does not tell what other machines write." if remote else "")
        write(run, "00001.png")
        watched.after_hint(run)


def test_auto_polls_no_more_than_a_twentieth_of_the_time(top: Path) -> None:
    """A scan that takes a second is made every twenty seconds, a quick one every two."""
    seconds = 0.0

    def stopwatch() -> float:
        nonlocal seconds
        seconds += 1.0
        return seconds

    with watching(top, native=False, stopwatch=stopwatch) as watched:
        assert watched.watcher.due(watched.now) == watched.now + 21
    with watching(top, native=False) as watched:
        assert watched.watcher.due(watched.now) == watched.now + 2


def test_a_number_polls_always_and_off_never(top: Path) -> None:
    """A configured interval holds although events are alive; `off` leaves the rescan."""
    run = write(top / "run", "00000.png")
    with watching(top, poll=7.0, native=False) as watched:
        assert watched.watcher.due(watched.now) == watched.now + 7
    with watching(top, poll=7.0) as watched:
        watched.let(3)
        assert watched.state() == "polling"
        assert watched.health.reason == ""
    with watching(top, poll="off", native=False) as watched:
        assert watched.state() == "watching"
        assert watched.health.reason == "file events are not used here"
        write(run, "00001.png")
        assert watched.let(299) == NOTHING
        assert watched.let(2) == Changes(folders=frozenset({run}), full=True)


def test_rescans_are_spread(top: Path) -> None:
    """Each full scan comes between three and five quarters of the interval after the last one."""
    dues = []
    for jitter in (0.0, 1.0):
        watched = Watched(top, native=False, poll="off", rescan=100)
        watched.watcher._jitter = lambda value=jitter: value  # type: ignore[misc]
        watched.watcher.start()
        assert watched.collect().full
        began = watched.now
        while not watched.collect().full:
            watched.now = max(watched.watcher.due(watched.now), watched.now + 1)
        dues.append(watched.now - began)
    assert dues == [75, 125]


def test_a_huge_folder_is_not_listed_for_every_frame(top: Path) -> None:
    """Marked folders rest for ten times what the last scan cost; then they are due by themselves."""
    seconds = 0.0

    def stopwatch() -> float:
        nonlocal seconds
        seconds += 0.1
        return seconds

    with watching(top, stopwatch=stopwatch) as watched:
        write(top, "00000.png")
        watched.after_hint(top)
        while watched.hinted.wait(0.2):
            watched.hinted.clear()
        watched.collect(after=10)
        write(top, "00001.png")
        assert watched.hinted.wait(5)
        assert watched.collect(after=0.5) == NOTHING
        assert watched.watcher.due(watched.now) == pytest.approx(watched.now + 0.5)
        assert watched.collect(after=0.6).folders == {top}


# ---------------------------------------------------------------- the folder itself


def test_the_clock_is_that_of_the_file_system(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 62: the time of a fresh cookie, whatever this machine's clock says; None where nothing can be written."""
    with watching(top) as watched:
        probe = write(top / "probe", "x") / "x"
        said = watched.watcher.clock()
        assert said is not None
        assert said == pytest.approx(probe.stat().st_mtime, abs=5)
        assert (top / ".stepwatch" / "cookie").stat().st_mtime == pytest.approx(said)
        monkeypatch.setattr(os, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")))
        assert watched.watcher.clock() is None


def test_nothing_is_written_into_another_folder_under_the_same_name(top: Path) -> None:
    """Between two looks at the folder, the clock notices by itself that it was replaced."""
    with watching(top) as watched:
        assert watched.watcher.clock() is not None
        top.rename(top.with_name("aside"))
        top.mkdir()
        assert watched.watcher.clock() is None
        assert os.listdir(top) == []


def test_our_files_are_never_written_through_a_link(top: Path, tmp_path: Path) -> None:
    """Who may write into the watched folder cannot make us write elsewhere."""
    victim = write(tmp_path / "victim", "cookie", "id")
    (top / ".stepwatch").symlink_to(victim, target_is_directory=True)
    with watching(top) as watched:
        assert watched.watcher.clock() is None
        assert watched.state() == "watching"
    (top / ".stepwatch").unlink()
    (top / ".stepwatch").mkdir()
    for name in ("cookie", "id"):
        (top / ".stepwatch" / name).symlink_to(victim / name)
    with watching(top) as watched:
        assert watched.watcher.clock() is not None
    assert {path.read_bytes() for path in victim.iterdir()} == {b"x"}


def test_a_folder_that_is_not_there_is_waited_for(top: Path) -> None:
    """It is asleep, without an error; when it appears it is watched."""
    with watching(top / "later") as watched:
        assert watched.state() == "asleep"
        assert watched.health.reason == "the folder is not there"
        assert watched.watcher.clock() is None
        assert watched.let(10) == NOTHING
        run = write(top / "later" / "run", "00000.png")
        assert watched.let(3.1) == Changes(folders=frozenset({run.parent, run}), full=True)
        write(run, "00001.png")
        watched.after_hint(run)


@pytest.mark.parametrize("how", ["deleted", "renamed", "missing for long"])
def test_a_folder_made_again_is_watched_again(top: Path, how: str) -> None:
    """Row 38: the watch moves to the new folder, and what is known follows the truth there."""
    old = write(top / "old", "00000.png")
    with watching(top) as watched:
        watched.let(10)
        assert watched.state() == "watching"
        if how == "renamed":
            top.rename(top.with_name("aside"))
        else:
            shutil.rmtree(top)
        if how == "missing for long":
            assert watched.let(100) == NOTHING
            assert watched.state() == "asleep"
        run = write(top / "run", "00000.png")
        assert watched.let(40) == Changes(folders=frozenset({run}), gone=frozenset({old}), full=True)
        assert watched.state() == "watching"
        watched.hinted.clear()
        write(run, "00001.png")
        assert watched.after_hint(run) == {run}
        if how == "renamed":
            while watched.hinted.wait(0.2):
                watched.hinted.clear()
            write(top.with_name("aside") / "old", "00001.png")
            assert not watched.hinted.wait(0.2)


def test_a_folder_that_comes_back_is_as_it_was(top: Path) -> None:
    """Renamed away and back: only what changed meanwhile is reported."""
    one, other = write(top / "one", "00000.png"), write(top / "other", "00000.png")
    with watching(top) as watched:
        top.rename(top.with_name("aside"))
        assert watched.let(40) == NOTHING
        write(top.with_name("aside") / other.name, "00001.png")
        top.with_name("aside").rename(top)
        assert watched.let(40) == Changes(folders=frozenset({other}), full=True)
        assert one.is_dir()


def test_a_folder_taken_away_during_a_scan_is_not_taken_for_empty(top: Path) -> None:
    """What a scan did not find is only gone if the watched folder is still there afterwards."""
    run = write(top / "run", "00000.png")
    away = top.with_name("aside")
    seconds = 0.0

    def stopwatch() -> float:
        nonlocal seconds
        seconds += 1.0
        if seconds == 3.0:
            top.rename(away)
            top.mkdir()
        return 0.0

    with watching(top, native=False, poll="off", stopwatch=stopwatch) as watched:
        assert watched.collect(after=301) == NOTHING
        top.rmdir()
        away.rename(top)
        assert watched.let(10) == Changes(folders=frozenset({run}), full=True)
        assert watched.health.folders == 2


def place(**facts: Any) -> watcher._Place:
    """Return a place with an id on the first disk."""
    sample = watcher._Place(device=os.makedev(8, 1), inode=2, token="a", empty=False, mounted=True)
    return dataclasses.replace(sample, **facts)


@pytest.mark.parametrize(
    ("now", "had", "verdict"),
    [
        (place(), True, "same"),
        (place(inode=3), True, "again"),
        (place(inode=3, token=""), True, "again"),
        (place(token=""), True, "again"),
        (place(device=os.makedev(8, 2)), True, "again"),
        (place(device=os.makedev(8, 2), token=""), True, "elsewhere"),
        (place(device=os.makedev(8, 2), token="", empty=True), True, "elsewhere"),
        (place(device=os.makedev(8, 2), token="", empty=True), False, "again"),
        (place(device=os.makedev(8, 2), token="b"), True, "again"),
        (place(device=os.makedev(8, 2), token="b", empty=True), True, "elsewhere"),
        (place(device=os.makedev(8, 2), token="b", mounted=False), True, "elsewhere"),
        (place(device=os.makedev(8, 2), token="", empty=True, mounted=False), False, "elsewhere"),
        (place(device=os.makedev(8, 2), mounted=False), True, "again"),
    ],
)
def test_places_are_told_apart(now: watcher._Place, had: bool, verdict: str) -> None:  # noqa: FBT001
    """By id first, then by device and inode; an empty folder on another device is no watched folder."""
    assert watcher._judge(place(), now, had_folders=had).value == verdict


def test_a_new_memory_disk_with_an_old_number_is_not_believed() -> None:
    """Devices without a disk reuse numbers, and every root has inode 1: only the id tells them apart."""
    before = place(device=os.makedev(0, 50), inode=1)
    assert watcher._judge(before, place(device=os.makedev(0, 50), inode=1, token="", empty=True), had_folders=True).value == "elsewhere"
    assert watcher._judge(before, place(device=os.makedev(0, 50), inode=1, token=""), had_folders=True).value == "again"


# ---------------------------------------------------------------- in a process of its own


def in_process(name: str, folder: Path, *, namespace: str = "") -> None:
    """Run a function of this file in another process, in namespaces of its own where asked; skip where the kernel refuses those."""
    prefix = []
    if namespace:
        unshare = shutil.which("unshare")
        if unshare is None or subprocess.run([unshare, namespace, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip(f"this machine does not allow `unshare {namespace}`")
        prefix = [unshare, namespace]
    code = (
        "import importlib.util as u, pathlib, sys\n"
        "s = u.spec_from_file_location('watched_child', sys.argv[1]); m = u.module_from_spec(s)\n"
        "sys.modules[s.name] = m; s.loader.exec_module(m)\n"
        "getattr(m, sys.argv[2])(pathlib.Path(sys.argv[3]))\n"
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", code, __file__, name, os.fspath(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.fspath(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])},
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr


def skip(reason: str) -> None:
    """End a process of its own with a reason for its test to be skipped."""
    print(reason)  # noqa: T201
    raise SystemExit(77)


def set_limit(name: str, value: int) -> None:
    """Set a limit of the user namespace."""
    try:
        Path("/proc/sys/user", name).write_text(str(value), encoding="ascii")
    except OSError as error:
        skip(f"this kernel does not let a namespace set {name}: {error}")


def mount(*words: str | Path) -> None:
    """Mount something, in a mount namespace."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        skip(f"no mount here: {done.stderr.strip()}")


def watch_limit_at_start(top: Path) -> None:
    """Ten folders with four watches to be had, then with enough."""
    runs = [write(top / str(number), "00000.png") for number in range(10)]
    set_limit("max_inotify_watches", 4)
    with hearing(logging.getLogger("stepwatch.watcher")) as said, watching(top) as watched:
        watched.patience = 0.1
        watched.let(10)
        assert watched.state() == "polling", watched.health
        assert re.search(r"only \d of 11 folders .*`sudo sysctl fs.inotify.max_user_watches=\d+`", watched.health.reason), watched.health
        assert watched.health.watches == 4
        for run in runs:
            write(run, "00001.png")
        assert watched.let(2.1).folders == set(runs)
        watched.let(100)
        assert len([line for line in said if "sysctl" in line]) == 1, said
        set_limit("max_inotify_watches", 1000)
        watched.patience = 5.0
        watched.let(200)
        assert watched.state() == "watching", watched.health
        watched.hinted.clear()
        write(runs[9], "00002.png")
        watched.after_hint(runs[9])


def watch_limit_later(top: Path) -> None:
    """Three folders, then five more than there are watches for; then a limit that allows none at all."""
    write(top / "first", "00000.png")
    set_limit("max_inotify_watches", 5)
    with watching(top) as watched:
        watched.patience = 1.0
        watched.let(10)
        assert watched.state() == "watching", watched.health
        runs = [write(top / f"later{number}", "00000.png") for number in range(6)]
        watched.after_hint(*runs)
        watched.let(10)
        assert watched.state() == "polling", watched.health
        assert "sysctl" in watched.health.reason
        write(runs[5], "00001.png")
        assert watched.let(2.1).folders == {runs[5]}
    set_limit("max_inotify_watches", 0)
    with watching(top) as watched:
        assert watched.state() == "polling", watched.health
        assert watched.health.reason.startswith("no folder can be watched: the limit of file watches is reached;")


def instance_limit(top: Path) -> None:
    """No inotify instance to be had, then one."""
    run = write(top / "run", "00000.png")
    set_limit("max_inotify_instances", 0)
    with watching(top) as watched:
        watched.let(10)
        assert watched.state() == "polling", watched.health
        assert "max_user_instances" in watched.health.reason
        write(run, "00001.png")
        assert watched.let(2.1).folders == {run}
        set_limit("max_inotify_instances", 10)
        watched.let(100)
        assert watched.state() == "watching", watched.health


def descriptor_limit(top: Path) -> None:
    """Too few descriptors for watchdog, then none even for a scan, then enough."""
    run = write(top / "run", "00000.png")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    from watchdog.observers import Observer  # noqa: F401  so that only the descriptors are short

    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, hard))
    with watching(top) as watched:
        watched.let(100)
        assert watched.state() == "polling", watched.health
        assert "too many open files" in watched.health.reason
        assert len(os.listdir("/proc/self/fd")) == used
        write(run, "00001.png")
        assert watched.let(2.1).folders == {run}
        write(run, "00002.png")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        assert watched.let(10) == NOTHING
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert watched.let(5).folders == {run}
        watched.let(3600)
        assert watched.state() == "watching", watched.health


def overlay(base: Path) -> None:
    """Another machine's writes, as an overlay shows them: through the layer below."""
    mount("-t", "tmpfs", "tmpfs", base)
    for name in ("lower", "upper", "work", "merged"):
        (base / name).mkdir()
    write(base / "lower" / "run", "00000.png")
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work", base / "merged")
    with watching(base / "merged") as watched:
        assert watched.health.kind == "overlay"
        assert watched.state() == "polling"
        write(base / "merged" / "run", "00001.png")
        watched.let(10)
        # What is still said of our own writes, the cookie's among them, must not be taken for news from below.
        watched.hinted.clear()
        while watched.hinted.wait(0.2):
            watched.hinted.clear()
        write(base / "upper" / "run", "00002.png")
        assert not watched.hinted.wait(0.2)
        assert watched.let(2.1).folders == {base / "merged" / "run"}


def unmounted(base: Path) -> None:
    """A share that goes away, is replaced by an empty one, and comes back."""
    share, top = base / "share", base / "top"
    share.mkdir()
    top.mkdir()
    mount("-t", "tmpfs", "tmpfs", share)
    mount("--bind", share, top)
    one, other = write(top / "one", "00000.png"), write(top / "other", "00000.png")
    with watching(top) as watched:
        watched.let(10)
        subprocess.run(["umount", "-l", top], check=True)
        assert watched.let(100) == NOTHING
        assert watched.state() == "asleep"
        assert watched.health.reason.startswith("this is not the same file system as before")
        assert watched.watcher.clock() is None
        watched.watcher.look_again(one)
        assert watched.let(10) == NOTHING
        assert os.listdir(top) == []

        write(share / "other", "00001.png")
        mount("--bind", share, top)
        assert watched.let(4) == Changes(folders=frozenset({one, other}), full=True)
        assert watched.state() == "watching", watched.health
        watched.hinted.clear()
        write(one, "00001.png")
        watched.after_hint(one)

        subprocess.run(["umount", "-l", top], check=True)
        mount("-t", "tmpfs", "tmpfs", top)
        assert watched.let(100) == NOTHING
        assert watched.state() == "asleep"
        assert os.listdir(top) == []


@pytest.mark.skipif(not system.LINUX, reason="inotify is Linux's")
@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("watch_limit_at_start", "-Ur"),
        ("watch_limit_later", "-Ur"),
        ("instance_limit", "-Ur"),
        ("descriptor_limit", ""),
        ("overlay", "-Urm"),
        ("unmounted", "-Urm"),
    ],
)
def test_scarcity_and_mounts(name: str, namespace: str, top: Path) -> None:
    """Rows 32, 33, 37, 39: degraded with a reason, nothing lost, and well again by itself."""
    in_process(name, top, namespace=namespace)
