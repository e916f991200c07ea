"""What goes wrong in one place costs that place a while, and never the daemon: its loop goes on, tells why once, and comes back to it by itself.

The daemon runs in a thread of this process, so that parts of it can fail when a test wants them to; an exception that ends its loop fails the test.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stepwatch import store, trash, visit
from stepwatch.config import load_service
from stepwatch.core.manifest import Manifest
from stepwatch.errors import EnvironmentFault
from stepwatch.ledger import Ledger, ReceiptsLost
from stepwatch.service import Service
from stepwatch.watcher import Watcher
from tests.conftest import Daemon
from tests.test_service import Listener, phase_of, published, record, serving

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="links and descriptors of a Unix"), pytest.mark.usefixtures("ffmpeg")]

PAUSE = 0.3
STEPS = range(1, 5)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of tenths of a second where the real ones are of many."""
    monkeypatch.setattr("stepwatch.service.FIRST_PAUSE", PAUSE)
    monkeypatch.setattr("stepwatch.service.LONGEST_PAUSE", PAUSE)


def mistakes(said: Sequence[str]) -> list[str]:
    """Sentences about faults that nobody had thought of."""
    return [sentence for sentence in said if "made a mistake" in sentence]


class Failing:
    """Stands before a function, and raises as often as it was told to, or for as long as *when* says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: Exception, *, times: int = 0) -> None:
        self.left = times
        self.when: Callable[..., bool] = lambda *_: True
        self.failed: list[float] = []
        original = getattr(owner, name)

        def failing(*arguments: Any, **named: Any) -> object:
            if self.left > 0 and self.when(*arguments):
                self.left -= 1
                self.failed.append(time.monotonic())
                raise error
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, failing)


# --- the trash ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clearing", [False, True], ids=["keep", "trash"])
def test_a_trash_that_is_a_link_keeps_nothing_but_the_trash_waiting(daemon: Daemon, tmp_path: Path, clearing: bool) -> None:  # noqa: FBT001
    """Everybody who may write into the share can make it one: that is told, nothing goes there, and runs are rendered as ever."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (daemon.watched / ".stepwatch").mkdir()
    (daemon.watched / ".stepwatch" / "trash").symlink_to(elsewhere)
    if clearing:
        daemon.configure({"cleanup": {"intermediates": "trash"}})
    first = record(daemon.watched / "first", STEPS)
    with serving(daemon) as (_, listener):
        daemon.wait_until(lambda: any("trash is a link" in sentence for sentence in listener.said))
        daemon.wait_until(lambda: daemon.animations() == ["first.mp4"])
        second = record(daemon.watched / "second", STEPS)
        daemon.wait_until(lambda: daemon.animations() == ["first.mp4", "second.mp4"])
        daemon.wait_until(lambda: not daemon.status()["rendering"])
        assert mistakes(listener.said) == []
    assert [len(list(run.glob("*.png"))) for run in (first, second)] == [4, 4]
    assert list(elsewhere.iterdir()) == []


def test_a_trash_that_cannot_be_read_is_looked_through_apart_from_the_loop(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of manifests take a while, and a disk may fail meanwhile: a worker reads them, and it is tried again later."""
    readers: list[str] = []

    def unfinished(watched: Path, generation: str = "") -> tuple[Manifest, ...]:
        if not generation:
            readers.append(threading.current_thread().name)
            raise EnvironmentFault("the disk does not answer")
        return ()

    monkeypatch.setattr(trash, "unfinished", unfinished)
    monkeypatch.setattr("stepwatch.service.HOUSEKEEPING", PAUSE)
    with serving(daemon):
        daemon.wait_until(lambda: len(readers) > 1)
        record(daemon.watched / "run", STEPS)
        published(daemon, "run.mp4")
    assert {name.partition("_")[0] for name in readers} == {"visit"}


@pytest.mark.parametrize("error", [ReceiptsLost("the receipts are damaged"), EnvironmentFault("receipts cannot be read")], ids=["lost", "locked"])
def test_a_clearing_that_was_cut_short_and_no_receipts_to_conclude_it_by(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, error: EnvironmentFault
) -> None:
    """What a crash has left in the trash is asked of the receipts; when they do not answer, the daemon goes on."""
    daemon.configure({"cleanup": {"intermediates": "trash", "grace": "1h"}})
    monkeypatch.setattr("stepwatch.service.HOUSEKEEPING", PAUSE)
    record(daemon.watched / "cleared", STEPS)
    asked = Failing(monkeypatch, Ledger, "get", error)
    with serving(daemon) as (_, listener):
        daemon.wait_until(lambda: not (daemon.watched / "cleared").exists())
        daemon.wait_at_rest()
        (manifest,) = trash.listing(daemon.watched)
        monkeypatch.setattr(trash, "unfinished", lambda watched, generation="": (manifest,) if asked.left and not generation else ())
        asked.left = 1
        daemon.wait_until(lambda: not asked.left)
        daemon.wait_until(lambda: error.message in listener.said)
        record(daemon.watched / "next", STEPS)
        published(daemon, "cleared.mp4", "next.mp4")


# --- receipts -----------------------------------------------------------------------------------------------------------------------------


def remove_receipts(daemon: Daemon) -> None:
    for path in daemon.state.glob("receipts.db*"):
        path.unlink()


def test_receipts_that_are_removed_while_nothing_happens_begin_anew(daemon: Daemon) -> None:
    """Row 45: an idle daemon notices on its own, says so, and knows its runs again; none is rendered a second time."""
    record(daemon.watched / "before", STEPS)
    with serving(daemon) as (service, listener):
        published(daemon, "before.mp4")
        remove_receipts(daemon)
        service.wake()
        daemon.wait_until(lambda: any("no longer there" in sentence for sentence in listener.said))
        daemon.wait_until((daemon.state / "receipts.db").exists)
        record(daemon.watched / "after", STEPS)
        published(daemon, "after.mp4", "before.mp4")
        assert mistakes(listener.said) == []


@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_receipts_that_are_lost_while_no_new_ones_can_be_opened(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The disk is full when they are to begin anew: they are asked for until there is room, and the old ones are not closed under anybody's hands."""
    opening = Failing(monkeypatch, visit, "open_records", EnvironmentFault("no space left on the disk"))
    reading = Failing(monkeypatch, Ledger, "get", ReceiptsLost("the receipts are damaged"))
    with serving(daemon) as (service, listener):
        opening.left = 2
        if how == "removed":
            remove_receipts(daemon)
        else:
            reading.left = 2
        record(daemon.watched / "run", STEPS)
        service.wake()
        daemon.wait_until(lambda: "no space left on the disk" in listener.said)
        published(daemon, "run.mp4")
        assert (opening.left, reading.left) == (0, 0)
        assert mistakes(listener.said) == []


def test_receipts_that_stay_locked_do_not_keep_the_loop_waiting(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write down where the runs stand may take ten seconds each time; it is tried once a pause, nothing of it is lost, and people get answers."""
    locked = Failing(monkeypatch, Ledger, "see_many", EnvironmentFault("receipts cannot be written: somebody holds them"))
    with serving(daemon) as (service, _):
        locked.left = 1000
        record(daemon.watched / "run", STEPS, "running")
        daemon.wait_until(lambda: locked.failed)
        while len(locked.failed) < 3:
            service.wake()
            assert daemon.status()["folders"]
        assert locked.failed[2] - locked.failed[0] > 1.5 * PAUSE
        locked.left = 0
        daemon.wait_until(lambda: not service._saved)
    ledger = Ledger.open(daemon.state / "receipts.db")
    assert [one.name for one in ledger.all()] == ["run"]
    ledger.close()


def test_who_still_holds_receipts_that_were_closed_is_told_that_they_are_lost(tmp_path: Path) -> None:
    """A visit that outlasts the old receipts meets a fault of the machine, which costs its run nothing, and no mistake of ours."""
    ledger = Ledger.open(tmp_path / "receipts.db")
    ledger.close()
    with pytest.raises(ReceiptsLost, match="opened anew"):
        list(ledger.all())
    with pytest.raises(ReceiptsLost, match="opened anew"):
        ledger.reconciled()


# --- folders ------------------------------------------------------------------------------------------------------------------------------


def nested(top: Path, length: int) -> None:
    """Make folders in one another until the path is so long that there is no room for the name of a file in it."""
    descriptor = os.open(top, os.O_RDONLY)
    left = length - len(str(top))
    while left > 1:
        # One never ends a name short of a slash and a character.
        name = "n" * min(200, left - 1 if left <= 201 else left - 3)
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor, left = below, left - len(name) - 1
    os.close(descriptor)


def test_a_folder_whose_files_have_too_long_a_path_is_passed_by(daemon: Daemon) -> None:
    """Such a folder can be made by anybody who may write into the share; no policy is in it, no run is found in it, and the others are rendered."""
    nested(daemon.watched, 4088)
    try:
        with serving(daemon) as (_, listener):
            record(daemon.watched / "run", STEPS)
            published(daemon, "run.mp4")
            assert mistakes(listener.said) == []
    finally:
        shutil.rmtree(daemon.watched)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), ValueError("oh")], ids=type)
def test_a_folder_that_cannot_be_looked_at_is_looked_at_again_by_itself(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whatever is raised by a look, the other folders are rendered meanwhile; it is told once, and when it is over no event is needed."""
    look = Failing(monkeypatch, visit, "runs_at", error, times=3)
    look.when = lambda place, _: place.name == "bad"
    record(daemon.watched / "bad", STEPS)
    record(daemon.watched / "good", STEPS)
    with serving(daemon) as (_, listener):
        published(daemon, "bad.mp4", "good.mp4")
        assert len(look.failed) == 3
        assert len(mistakes(listener.said)) == 1
        assert all(later - earlier > PAUSE / 2 for earlier, later in zip(look.failed, look.failed[1:], strict=False))


def test_one_pass_ends_with_an_error_when_a_folder_could_never_be_looked_at(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--once`` neither waits for ever nor calls that a success; what could be done is done."""
    look = Failing(monkeypatch, visit, "runs_at", PermissionError(13, "Permission denied"), times=1000)
    look.when = lambda place, _: place.name == "bad"
    record(daemon.watched / "bad", STEPS)
    record(daemon.watched / "good", STEPS)
    assert once(daemon) == 1
    assert daemon.animations() == ["good.mp4"]
    look.left = 0
    assert once(daemon) == 0
    assert daemon.animations() == ["bad.mp4", "good.mp4"]


def once(daemon: Daemon) -> int:
    """One pass of the daemon in this process."""
    codes: list[int] = []
    service = Service(load=lambda: load_service(daemon.service_file), observer=Listener(), once=True, state=daemon.state, private=True)
    thread = threading.Thread(target=lambda: codes.append(service.run()), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return codes[0]


@pytest.mark.parametrize("when", ["is looked for", "is joined"])
def test_a_folder_of_appended_runs_that_goes_away_during_the_look(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """The runs of an ``append`` folder are looked for beside the one that has changed, and there may be none any more."""
    daemon.configure({"frames": {"append": True}, "detect": {"settle": "100ms"}})
    name = "runs_in" if when == "is looked for" else "append_runs"
    original: Callable[..., object] = getattr(store, name)
    gone = daemon.watched / "gone"

    def going(place: Path, *arguments: Any, **named: Any) -> object:
        found = original(place, *arguments, **named) if name == "runs_in" else None
        if place.is_relative_to(gone) and gone.exists():
            shutil.rmtree(gone)
        return original(place, *arguments, **named) if found is None else found

    monkeypatch.setattr(store, name, going)
    record(gone / "part", STEPS)
    with serving(daemon) as (_, listener):
        daemon.wait_until(lambda: not gone.exists())
        record(daemon.watched / "stays" / "part", STEPS)
        published(daemon, "stays.mp4")
        assert mistakes(listener.said) == []


# --- threads, and the watch itself --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_without_a_thread_to_be_had_a_render_waits_for_one(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """The machine's limit of threads is reached for a while: nothing is lost, the run keeps its place, and it is visited once."""
    daemon.configure(workers=workers)
    visits: list[str] = []
    advance = visit.advance

    def counted(key: Any, **named: Any) -> object:
        visits.append(Path(key.folder).name)
        return advance(key, **named)

    monkeypatch.setattr(visit, "advance", counted)
    # As the real one: what is to be done is in the pool's queue already when the thread for it cannot be started.
    starting = Failing(monkeypatch, ThreadPoolExecutor, "_adjust_thread_count", RuntimeError("can't start new thread"), times=3)
    record(daemon.watched / "run", STEPS)
    with serving(daemon) as (_, listener):
        published(daemon, "run.mp4")
        daemon.wait_until(lambda: phase_of(daemon, "run") == "")
        assert starting.left == 0
        assert len([sentence for sentence in listener.said if "no work can be begun: can't start new thread" in sentence]) == 1
        assert mistakes(listener.said) == []
    assert visits == ["run"]


def test_a_watch_that_always_fails_is_no_hot_loop_and_recovers(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once a pause, however often the loop is woken; the other folder is watched as ever, and no event of the time after it is lost."""
    other = daemon.watched.with_name("other")
    other.mkdir()
    daemon.configure(watch=[daemon.watched, other])
    collect = Failing(monkeypatch, Watcher, "collect", RuntimeError("no idea"))
    collect.when = lambda watcher, _: watcher.folder == daemon.watched
    turns: list[None] = []
    monkeypatch.setattr(Service, "_tell_manager", lambda *_: turns.append(None))
    with serving(daemon) as (service, listener):
        collect.left = 1000
        record(daemon.watched / "run", STEPS)
        daemon.wait_until(lambda: collect.failed)
        while len(collect.failed) < 4:
            service.wake()
            time.sleep(0.01)
        assert collect.failed[3] - collect.failed[0] > 2 * PAUSE
        before, tried = len(turns), len(collect.failed)
        daemon.wait_until(lambda: len(collect.failed) > tried + 1)
        # What waits for a pause to end costs nothing meanwhile.
        assert len(turns) - before < 20
        record(other / "fine", STEPS)
        daemon.wait_until((other / "animation" / "fine.mp4").exists)
        assert len(service._later) == 0
        collect.left = 0
        published(daemon, "run.mp4")
        assert len(mistakes(listener.said)) == 1


def test_changes_that_were_heard_of_are_kept_when_something_fails_after_that(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher tells of a change once; whatever goes wrong between that and the look, the look comes."""
    told = Failing(monkeypatch, Service, "_tell_health", RuntimeError("no idea"))
    with serving(daemon):
        daemon.wait_at_rest()
        told.left = 3
        record(daemon.watched / "run", STEPS)
        published(daemon, "run.mp4")
        assert told.left < 3
