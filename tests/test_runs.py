"""``stepwatch runs`` and ``status`` when no daemon is there to ask: what the receipts tell, and what a person has to say about a run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stepwatch import cli, ledger
from tests.conftest import Daemon, MakeRun, sidecar_for, write_frame

_TEXT = {"type": "string"}
_TIME = {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}
_MAYBE = {"type": ["string", "null"]}


def _exactly(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


LISTED = _exactly(
    run=_TEXT,
    name=_TEXT,
    dir=_TEXT,
    group=_TEXT,
    watched=_TEXT,
    phase=_TEXT,
    reason=_TEXT,
    attempts=_COUNT,
    error=_MAYBE,
    updated=_TIME,
    outputs={"type": "array", "items": _TEXT},
)
LIST = _exactly(schema={"const": 1}, runs={"type": "array", "items": LISTED})
SHOWN = _exactly(
    schema={"const": 1},
    run=_TEXT,
    name=_TEXT,
    dir=_TEXT,
    group=_TEXT,
    watched=_TEXT,
    phase=_TEXT,
    reason=_TEXT,
    attempts=_exactly(count=_COUNT, not_before=_TIME, error=_MAYBE),
    word=_MAYBE,
    renders={
        "type": "array",
        "items": _exactly(
            generation=_TEXT,
            at=_TIME,
            incomplete={"type": "boolean"},
            outputs={
                "type": "array",
                "items": _exactly(path=_TEXT, codec=_TEXT, bytes=_COUNT, sha256=_TEXT, frames=_COUNT, superseded={"type": "boolean"}),
            },
            frames={"type": "object", "additionalProperties": _COUNT},
            missing={"type": "array", "items": _COUNT},
            cleanup={"enum": ["keep", "trash", "delete"]},
            cleared=_COUNT,
            note=_MAYBE,
        ),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ask = Callable[..., Said]


@pytest.fixture
def ask(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command in this process, with the service file and the receipts of *daemon*."""
    monkeypatch.setenv("XDG_STATE_HOME", str(daemon.home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(daemon.home))

    def run(*arguments: str) -> Said:
        code = cli.run(["-c", str(daemon.service_file), *arguments])
        said = capsys.readouterr()
        return Said(code=code, out=said.out, err=said.err)

    return run


def damaged(folder: Path) -> Path:
    """A run with a frame that does not decode."""
    for step in range(1, 5):
        write_frame(folder / f"{step - 1:05d}.png", step=step)
    (folder / "00002.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (folder / "run.json").write_text(json.dumps(sidecar_for(folder, 4, names="{index:05d}.png", state="complete", size=(32, 24))))
    return folder


def test_without_receipts_there_is_nothing_to_tell(ask: Ask, daemon: Daemon) -> None:
    """Where nothing was ever rendered, lists are empty and nothing fails; a run that is not recorded cannot be named."""
    said = ask("runs", "list")
    assert (said.code, said.out, said.err) == (0, "", "no run is recorded\n")
    assert ask("runs", "list", "--json").json == {"schema": 1, "runs": []}
    assert ask("runs", "list", "--phase", "held").err == "no run is recorded in phase held\n"
    assert ask("status", "--json").json == {"schema": 1, "daemon": None, "folders": [], "runs": []}
    said = ask("status")
    assert said.code == 0
    assert "no daemon is running" in said.err
    for command in ("show", "retry", "discard"):
        said = ask("runs", command, "nothing")
        assert said.code == 2
        assert "no run is recorded as nothing" in said.err


def test_receipts_tell_what_has_become_of_runs(ask: Ask, daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """``runs list`` and ``status`` show rendered, held and quarantined runs, the latest first, after the daemon has gone."""
    daemon.configure({"detect": {"incomplete": "hold"}, "frames": {"damaged": "fail"}}, max_attempts=1)
    make_run(daemon.watched / "good")
    make_run(daemon.watched / "cut", state="interrupted")
    damaged(daemon.watched / "bad")
    assert daemon.once() == 1
    listed = ask("runs", "list", "--json")
    jsonschema.validate(listed.json, LIST)
    assert listed.out.isascii()
    runs = {run["name"]: run for run in listed.json["runs"]}
    assert {name: run["phase"] for name, run in runs.items()} == {"good": "rendered", "cut": "held", "bad": "quarantined"}
    assert runs["good"]["outputs"] == [str(daemon.out / "good.mp4")]
    assert "00002.png" in runs["bad"]["error"]
    assert runs["cut"]["reason"] == "interrupted: its sidecar says interrupted; `stepwatch runs retry` renders it"
    assert [run["updated"] for run in listed.json["runs"]] == sorted((run["updated"] for run in runs.values()), reverse=True)
    assert [run["name"] for run in ask("runs", "list", "--phase", "held", "--json").json["runs"]] == ["cut"]
    asked = ask("status", "--json").json
    assert asked["daemon"] is None
    assert asked["runs"] == listed.json["runs"]
    table = ask("runs", "list").out
    for word in ("good.mp4", "rendered", "held", "quarantined"):
        assert word in table
    assert ask("status").out == table
    assert ask("runs", "list", "--phase", "rendering").out == ""


def test_a_receipt_is_shown_whole(ask: Ask, daemon: Daemon, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, ffmpeg: str) -> None:
    """``runs show`` knows a run by its id, its name and its folder, and tells every render: YAML for people, JSON for programs."""
    folder = make_run(daemon.watched / "good")
    assert daemon.once() == 0
    by_name = ask("runs", "show", "good", "--json")
    jsonschema.validate(by_name.json, SHOWN)
    (render,) = by_name.json["renders"]
    (output,) = render["outputs"]
    assert output["bytes"] == (daemon.out / "good.mp4").stat().st_size
    assert render["frames"]["shown"] == 6
    assert ask("runs", "show", str(folder), "--json").json == by_name.json
    monkeypatch.chdir(daemon.watched)
    assert ask("runs", "show", "./good", "--json").json == by_name.json
    import yaml

    assert yaml.safe_load(ask("runs", "show", "good").out) == {key: value for key, value in by_name.json.items() if key != "schema"}


def test_a_name_that_two_runs_have_is_not_enough(ask: Ask, daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """Of two runs of one name neither is meant; their folders tell them apart."""
    first = make_run(daemon.watched / "a" / "same")
    second = make_run(daemon.watched / "b" / "same")
    assert daemon.once() == 0
    said = ask("runs", "discard", "same")
    assert said.code == 2
    assert str(first) in said.err
    assert str(second) in said.err
    assert ask("runs", "discard", str(first)).out == "same: it is left alone; no daemon runs, so this counts when one does\n"


def test_a_word_counts_for_the_frames_it_was_said_of(ask: Ask, daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """``retry`` of a held run counts at the next start; once rendered it is used up, and new frames are held again."""
    daemon.configure({"detect": {"incomplete": "hold", "settle": "100ms"}})
    folder = make_run(daemon.watched / "cut", state="interrupted")
    assert daemon.once() == 0
    assert daemon.animations() == []
    said = ask("runs", "retry", "cut", "--json").json
    assert said == {"schema": 1, "run": "cut", "word": "retry", "daemon": False}
    assert daemon.once() == 0
    assert daemon.animations() == ["cut-incomplete.mp4"]
    assert ask("runs", "show", "cut", "--json").json["word"] is None
    write_frame(folder / "00006.png", step=7)
    assert daemon.once() == 0
    assert daemon.animations() == ["cut-incomplete.mp4"]
    assert ask("runs", "list", "--json").json["runs"][0]["phase"] == "held"


def test_a_retry_gives_a_run_all_its_tries_again(ask: Ask, daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """A quarantined run is tried anew after ``retry``, with the same number of tries, and rests when they are used up again."""
    daemon.configure({"frames": {"damaged": "fail"}}, max_attempts=1)
    folder = damaged(daemon.watched / "bad")
    assert daemon.once() == 1
    assert ask("runs", "list", "--json").json["runs"][0]["attempts"] == 1
    assert ask("runs", "retry", "bad").code == 0
    assert daemon.log.count("00002.png") > 0
    before = daemon.log.count("quarantined")
    assert daemon.once() == 1
    assert daemon.log.count("quarantined") == before + 1
    assert ask("runs", "list", "--json").json["runs"][0]["attempts"] == 1
    # A frame that is mended is another one: nobody has to say anything.
    write_frame(folder / "00002.png", step=3)
    assert daemon.once() == 0
    assert daemon.animations() == ["bad.mp4"]


def test_nothing_can_be_said_of_frames_that_are_gone(ask: Ask, daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """A word is meant for frames; without them it is refused with 66, and what was rendered stays recorded."""
    folder = make_run(daemon.watched / "run")
    assert daemon.once() == 0
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    said = ask("runs", "retry", "run")
    assert said.code == 66
    assert "are not in" in said.err
    assert ask("runs", "show", "run", "--json").json["renders"]


def test_receipts_can_be_read_while_a_daemon_writes_them(ask: Ask, daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """Lists are asked for over and over while runs are rendered: every answer is whole, and the daemon has no trouble."""
    for number in range(6):
        make_run(daemon.watched / f"run-{number}", steps=3)
    daemon.start()
    counts: list[int] = []
    end = time.monotonic() + 40
    while (not counts or counts[-1] < 6) and time.monotonic() < end:
        said = ask("runs", "list", "--phase", "rendered", "--json")
        assert said.code == 0, said.err
        counts.append(len(said.json["runs"]))
    assert counts[-1] == 6
    assert counts == sorted(counts)
    assert daemon.end() == 0
    assert "receipts cannot" not in daemon.log


def test_damaged_receipts_are_named_and_set_aside_by_whoever_opens_them(ask: Ask, daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """Row 45: ``runs list`` says what has happened to the receipts, once; the next pass of the daemon renders nothing twice."""
    make_run(daemon.watched / "run")
    assert daemon.once() == 0
    (daemon.state / "receipts.db").write_bytes(b"no database" * 1000)
    for path in daemon.state.glob("receipts.db-*"):
        path.unlink()
    said = ask("runs", "list")
    assert said.code == 0
    assert "receipts.db.corrupt-" in said.err
    assert "receipts.db.corrupt-" not in ask("runs", "list").err
    assert daemon.once() == 0
    assert daemon.animations() == ["run.mp4"]
    assert ask("runs", "list", "--json").json["runs"][0]["outputs"] == [str(daemon.out / "run.mp4")]


def test_receipts_that_are_in_use_are_waited_for(ask: Ask, daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """A word waits for a moment while another process writes the receipts."""
    daemon.configure({"detect": {"incomplete": "hold"}})
    make_run(daemon.watched / "cut", state="interrupted")
    assert daemon.once() == 0
    import sqlite3

    connection = sqlite3.connect(daemon.state / "receipts.db", isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, lambda: connection.execute("ROLLBACK"))
    release.start()
    said = ask("runs", "retry", "cut")
    release.join()
    connection.close()
    assert (said.code, said.err) == (0, "")
    assert ledger.BUSY > 0.5
    assert ask("runs", "show", "cut", "--json").json["word"] == "retry"
