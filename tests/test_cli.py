"""The command line, from outside: what goes to which stream, which exit code comes back, and what is left on the disk."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import click
import jsonschema
import pytest

from stepwatch import __version__, overview, system
from stepwatch.cli import SEVERITY, cli, worst
from stepwatch.cli import run as run_here
from stepwatch.core.model import RunKey
from tests import ready
from tests.conftest import Daemon, MakeRun

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "config").rglob("*") if path.suffix in {".yaml", ".md", ".json"})]
"""Everything that tells people what to type."""
QUICK = ("--set", "timeline.duration=1s", "--set", "timeline.hold_last=0s", "--set", "timeline.fps=10")
"""A policy whose animations are made in no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def path(self) -> Path:
        """The one path that is the whole result."""
        (line,) = self.lines
        return Path(line)


class Stepwatch(Protocol):
    def __call__(self, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ended: ...


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "stepwatch", *map(str, arguments)]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}


@pytest.fixture
def stepwatch(tmp_path: Path) -> Stepwatch:
    """Run the program as a user does, with tmp_path as its folder."""

    def run(*arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Ended:
        done = ready.stepwatch(*map(str, arguments), cwd=cwd or tmp_path, env=environment(env))
        return Ended(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below *folder*, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- help, version, completion


def test_help_lists_the_commands(stepwatch: Stepwatch) -> None:
    """--help and -h name every command and the exit codes, on stdout."""
    done = stepwatch("--help")
    assert done.code == 0
    assert done.err == ""
    for word in ("render", "watch", "demo", "simulate", "status", "runs", "prune", "inspect", "config", "hook", "doctor", "completion"):
        assert f"\n  {word} " in done.out
    for word in ("75 busy", "130 interrupted"):
        assert word in " ".join(done.out.split())
    assert stepwatch("-h") == done


def test_the_overview_says_of_each_command_and_option_what_they_say_themselves() -> None:
    """The page that --help shows at once is a copy; a command that is new or says something else belongs on it."""
    assert {name: one.get_short_help_str(1000) for name, one in cli.commands.items()} == overview.COMMANDS
    assert list(overview.COMMANDS) == sorted(overview.COMMANDS)
    context = click.Context(cli, **cli.context_settings)
    assert dict(record for one in cli.get_params(context) if (record := one.get_help_record(context))) == overview.OPTIONS
    assert cli.help == overview.ABOUT


def test_the_overview_fits_its_terminal(stepwatch: Stepwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow or wide that is, and whether the command line itself says it or not."""
    monkeypatch.setenv("COLUMNS", "70")
    page = stepwatch("--help").out
    assert max(map(len, page.splitlines())) in range(60, 71)
    assert stepwatch("-q", "--help").out == page
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, stepwatch("-h").out.splitlines())) in range(100, 121)


def commands(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, one in group.commands.items():
        found.append((*prefix, name))
        if isinstance(one, click.Group):
            found += commands(one, (*prefix, name))
    return found


@pytest.mark.parametrize("names", commands(), ids=" ".join)
def test_every_command_has_help_and_the_common_options(names: tuple[str, ...]) -> None:
    """-c, --json, -q, -v, --version and -h stand on every command."""
    one: click.Command = cli
    for name in names:
        assert isinstance(one, click.Group)
        one = one.commands[name]
    assert one.help
    options = {option for parameter in one.params for option in parameter.opts}
    assert {"-c", "--config", "--json", "-q", "--quiet", "-v", "--verbose", "--version"} <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_our_pages_name_is_there(page: Path) -> None:
    """Readers type what README, samples and reference say."""
    known = {" ".join(names) for names in commands()}
    groups = {name.split()[0] for name in known if " " in name}
    for line in re.findall(r"(?:`|\./dev )stepwatch ([^`\n]*)", page.read_text()):
        words = [word for word in line.split() if re.fullmatch("[a-z]+", word)]
        if words and not line.startswith("-"):
            assert " ".join(words[: 2 if words[0] in groups else 1]).removesuffix(",") in known, line


def test_version(stepwatch: Stepwatch) -> None:
    """--version says name and version, also behind a command."""
    assert stepwatch("--version").out == f"stepwatch {__version__}\n"
    assert stepwatch("render", "--version").out == f"stepwatch {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(stepwatch: Stepwatch, shell: str) -> None:
    """Each shell gets lines that ask stepwatch itself for completions."""
    done = stepwatch("completion", shell)
    assert done.code == 0
    assert "_STEPWATCH_COMPLETE" in done.out


def test_completion_knows_commands_and_options(stepwatch: Stepwatch) -> None:
    """What the scripts ask is answered."""
    asked = {"_STEPWATCH_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "stepwatch ren"}
    assert "render" in stepwatch(env=asked).out
    assert "--dry-run" in stepwatch(env=asked | {"COMP_WORDS": "stepwatch render --d", "COMP_CWORD": "2"}).out


# -- usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["config", "sho"], "No such command 'sho'"),
        (["rende"], "No such command 'rende'"),
        (["render"], "Missing argument"),
        (["render", "--sett", "x"], "No such option"),
        (["render", "-q", "-v", "."], "contradict"),
        (["watch"], "there is nothing to watch"),
        (["watch", "--json", "."], "no result to print as JSON"),
        (["simulate", "."], "Missing option '--into'"),
        (["simulate", ".", "--into", ".", "--cadence", "soon"], "--cadence"),
        (["runs", "show", "nothing"], "no run is recorded as nothing"),
        (["runs", "restore", "nothing"], "the trash holds nothing of nothing"),
        (["completion", "tcsh"], "'tcsh'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_are_a_sentence(stepwatch: Stepwatch, arguments: list[str], says: str) -> None:
    """What cannot be meant ends with 2, one sentence and a hint on stderr, and nothing on stdout."""
    done = stepwatch(*arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 2


def test_nothing_asked_shows_the_help(stepwatch: Stepwatch) -> None:
    """Without a command the help goes to stderr, for nothing came of it: 2."""
    done = stepwatch()
    assert (done.code, done.out) == (2, "")
    assert done.err == stepwatch("--help").out
    assert "init" in stepwatch("config").err


def test_common_options_may_stand_before_the_command(stepwatch: Stepwatch, make_run: MakeRun) -> None:
    """`stepwatch --json inspect DIR` and `stepwatch inspect DIR --json` are one."""
    run = make_run()
    before, behind = stepwatch("--json", "inspect", run), stepwatch("inspect", run, "--json")
    assert json.loads(before.out) == json.loads(behind.out)


# -- render


def test_render_prints_the_path(stepwatch: Stepwatch, make_run: MakeRun, ffmpeg: str) -> None:
    """stdout holds the path of the animation and nothing else; the log is on stderr."""
    run = make_run()
    frames = contents(run)
    done = stepwatch("render", run, *QUICK)
    assert done.code == 0
    assert done.path == run / "animation" / "4242-a slender rocket at dusk.mp4"
    assert done.path.stat().st_size > 500
    assert "published" in done.err
    assert {name: data for name, data in contents(run).items() if not name.startswith("animation/")} == frames


def test_render_json(stepwatch: Stepwatch, make_run: MakeRun, ffmpeg: str) -> None:
    """--json prints one object with the documented keys; durations and counts are numbers."""
    run = make_run(steps=[1, 2, 3, 5, 6])
    (run / "00001.png").write_bytes(b"this is no image")
    done = stepwatch("render", run, *QUICK, "--set", "outputs=[h264, gif]", "--json")
    assert done.code == 0
    answer = json.loads(done.out)
    assert answer["schema"] == 1
    assert "errors" not in answer
    (one,) = answer["runs"]
    assert "commands" not in one
    assert {"run", "dir", "phase", "reason", "frames", "outputs", "cleared", "seconds"} <= set(one)
    assert (one["run"], one["dir"], one["phase"], one["cleared"]) == (run.name, str(run), "rendered", 0)
    assert (one["frames"]["found"], one["frames"]["shown"], one["frames"]["missing"]) == (5, 4, [4])
    assert [name.partition(":")[0] for name in one["frames"]["damaged"]] == ["00001.png"]
    assert [output["codec"] for output in one["outputs"]] == ["h264", "gif"]
    for output in one["outputs"]:
        assert set(output) >= {"path", "codec", "width", "height", "frames", "duration", "bytes", "sha256", "error"}
        assert (output["frames"], output["duration"], output["width"], output["height"], output["error"]) == (10, 1.0, 32, 24, None)
        assert Path(output["path"]).stat().st_size == output["bytes"]
        assert len(output["sha256"]) == 64


def test_the_same_again_prints_the_existing_path(stepwatch: Stepwatch, make_run: MakeRun, ffmpeg: str) -> None:
    """A second render finds the first one's animation; --force makes another beside it."""
    run = make_run()
    first = stepwatch("render", run, *QUICK)
    second = stepwatch("render", run, *QUICK)
    assert (second.code, second.out) == (0, first.out)
    assert "already there" in second.err
    forced = stepwatch("render", run, *QUICK, "--force")
    assert forced.path == first.path.with_name(f"{first.path.stem}-1.mp4")
    assert len(list(first.path.parent.iterdir())) == 2


@pytest.mark.parametrize(("name", "says"), [("nowhere", "does not exist"), ("file", "is not a folder"), ("empty", "no run")])
def test_no_frames_there(stepwatch: Stepwatch, tmp_path: Path, name: str, says: str) -> None:
    """A folder that is missing, no folder or empty ends with 66 and a sentence."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    done = stepwatch("render", name)
    assert (done.code, done.out) == (66, "")
    assert says in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "empty" / "animation").exists()
    answer = json.loads(stepwatch("render", name, "--json").out)
    assert answer["runs"] == []
    assert [(error["dir"], error["code"]) for error in answer["errors"]] == [(name, 66)]


@pytest.mark.parametrize("command", ["render", "inspect"])
def test_a_folder_without_runs_says_what_it_holds(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, command: str) -> None:
    """Images that no layout explains are counted, and the key that explains them is named; an unusable run.json is named with its fault."""
    make_run(tmp_path / "shots" / "deep", names="frame-{index:02d}-final.png", sidecar=None)
    done = stepwatch(command, "shots")
    assert (done.code, done.out) == (66, "")
    assert "shots holds no run" in done.err
    assert "6 images" in done.err
    assert "frame-00-final.png" in done.err
    assert "frames.pattern" in done.err
    assert "stepwatch inspect" not in done.err
    pattern = r"frames.pattern=frame-(?P<step>[0-9]+)-final\.png"
    assert stepwatch("inspect", "shots", "--set", pattern).code == 0
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    unusable = stepwatch(command, "begun")
    assert unusable.code == 66
    assert 'run.json is not used: the key "schema" is missing' in unusable.err
    assert "no image" in unusable.err


def test_one_wrong_folder_does_not_stop_the_others(stepwatch: Stepwatch, make_run: MakeRun, ffmpeg: str) -> None:
    """What can be rendered is, and the exit code tells of the rest."""
    run = make_run()
    done = stepwatch("render", "nowhere", run, *QUICK)
    assert done.code == 66
    assert done.path.exists()
    assert "nowhere does not exist" in done.err


def test_a_run_named_twice_is_rendered_once(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """Folders may overlap: a run inside of another folder of the command line is the same run."""
    run = make_run(tmp_path / "runs" / "20261122-161728-c0ffee")
    done = stepwatch("render", run, tmp_path / "runs", *QUICK, "--force")
    assert (done.code, len(done.lines)) == (0, 1)


@contextmanager
def visited(run: Path) -> Iterator[None]:
    """Be somebody who visits *run*, as the daemon does while it renders it."""
    with system.run_lock(system.state_dir(), RunKey(folder=str(run)), wait=False, stop=threading.Event(), on_wait=lambda: None):
        yield


def test_a_run_that_is_being_visited_is_not_waited_for_with_no_wait(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """--no-wait leaves a busy run alone, renders the others and ends with 75; JSON says the same."""
    busy, free = make_run(tmp_path / "runs" / "busy"), make_run(tmp_path / "runs" / "free")
    with visited(busy):
        done = stepwatch("render", "runs", *QUICK, "--no-wait", "--json")
    assert done.code == 75
    assert "is being visited by another stepwatch" in done.err
    answer = json.loads(done.out)
    assert [one["dir"] for one in answer["runs"]] == [str(free)]
    assert [(error["dir"], error["code"]) for error in answer["errors"]] == [(str(busy), 75)]


def test_a_run_that_is_being_visited_is_waited_for(make_run: MakeRun, ffmpeg: str) -> None:
    """Without it a render says that it waits, and goes on when the other has done."""
    run = make_run()
    with visited(run):
        process = subprocess.Popen(command("render", run, *QUICK), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "somebody else is visiting it; waiting" in process.stderr.readline()
        assert process.poll() is None
        assert not (run / "animation").exists()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert Path(out.strip()).exists()


def test_output_into_a_folder(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """-o with a folder that exists, or with a trailing slash, keeps the name and changes the place."""
    run = make_run()
    (tmp_path / "there").mkdir()
    assert stepwatch("render", run, *QUICK, "-o", "there").path == tmp_path / "there" / "4242-a slender rocket at dusk.mp4"
    assert stepwatch("render", run, *QUICK, "-o", "new/deep/").path == tmp_path / "new" / "deep" / "4242-a slender rocket at dusk.mp4"
    assert not (run / "animation").exists()


@pytest.mark.parametrize("place", ["there/", "there/clip.mp4"])
def test_output_elsewhere_needs_no_folder_in_the_watched_one(
    stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str, place: str
) -> None:
    """A link named animation that leads out is refused (78) until -o, or --set, says where to."""
    run = make_run()
    (tmp_path / "disk").mkdir()
    (run / "animation").symlink_to(tmp_path / "disk")
    for refused in (stepwatch("render", run, *QUICK), stepwatch("inspect", run)):
        assert (refused.code, refused.out) == (78, "")
        assert "leads out of the watched folder" in refused.err
    assert stepwatch("render", run, *QUICK, "-o", place).path.parent == tmp_path / "there"
    assert not list((tmp_path / "disk").iterdir())


def test_output_into_a_file(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """-o with a file gives that file, in the codec that its suffix asks for; it never replaces one."""
    run = make_run()
    assert stepwatch("render", run, *QUICK, "-o", "clip.mp4").path == tmp_path / "clip.mp4"
    gif = stepwatch("render", run, *QUICK, "-o", "clip.gif").path
    assert gif.read_bytes().startswith(b"GIF89a")
    (tmp_path / "mine.mp4").write_text("precious")
    assert stepwatch("render", run, *QUICK, "-o", "mine.mp4").path == tmp_path / "mine-1.mp4"
    assert (tmp_path / "mine.mp4").read_text() == "precious"


@pytest.mark.parametrize("case", ["two outputs", "two runs", "no animation", "empty"])
def test_output_that_cannot_be(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, case: str) -> None:
    """One file cannot take several animations, and not every suffix is one; nothing is rendered then."""
    run = make_run(tmp_path / "runs" / "one")
    arguments = {"two outputs": ["-o", "x.mp4", "--set", "outputs=[h264, gif]"], "no animation": ["-o", "x.txt"], "empty": ["-o", ""]}.get(case)
    if case == "two runs":
        make_run(tmp_path / "runs" / "two")
        arguments = ["-o", "x.mp4"]
    assert arguments is not None
    done = stepwatch("render", run.parent, *QUICK, *arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".mp4", ".txt", ".gif")]


def test_dry_run_shows_and_does_nothing(stepwatch: Stepwatch, make_run: MakeRun, ffmpeg: str) -> None:
    """--dry-run prints what would be rendered and ffmpeg's command; the disk stays as it is."""
    run = make_run()
    before = contents(run)
    done = stepwatch("render", run, *QUICK, "--dry-run")
    assert done.code == 0
    assert "h264, 32x24, 10 pictures, 1.000 s" in done.out
    assert "-c:v libx264" in done.out
    assert contents(run) == before
    assert not (run / "animation").exists()
    (one,) = json.loads(stepwatch("render", run, *QUICK, "--dry-run", "--json").out)["runs"]
    assert one["commands"][0][0].endswith(os.path.basename(ffmpeg))
    assert one["outputs"][0]["bytes"] == 0


def test_verbose_shows_ffmpeg_at_work(stepwatch: Stepwatch, make_run: MakeRun, ffmpeg: str) -> None:
    """-v logs ffmpeg's command and what it says; without it neither is there, and -q leaves silence."""
    run = make_run()
    verbose = stepwatch("render", run, *QUICK, "-v")
    assert "-c:v libx264" in verbose.err
    assert "Input #0, rawvideo" in verbose.err
    plain = stepwatch("render", run, *QUICK, "--force")
    assert "libx264" not in plain.err
    quiet = stepwatch("render", run, *QUICK, "--force", "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.path.exists()


def test_create_false_renders_nothing_and_says_so(stepwatch: Stepwatch, make_run: MakeRun) -> None:
    """The policy says no animation: a sentence, 0, and not even ffmpeg is needed."""
    run = make_run()
    done = stepwatch("render", run, "--set", "create=false", env={"STEPWATCH_FFMPEG": "/nowhere/ffmpeg"})
    assert (done.code, done.out) == (0, "")
    assert "create: false" in done.err
    assert not (run / "animation").exists()


def test_bad_configuration(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path) -> None:
    """A wrong file ends with 78 and names each line; a wrong --set is a usage error; a missing -c file is 78."""
    run = make_run()
    (run / "stepwatch.yaml").write_text("timeline:\n  duraton: 6s\n  fps: many\n")
    done = stepwatch("render", run)
    assert (done.code, done.out) == (78, "")
    assert "stepwatch.yaml:2" in done.err
    assert "stepwatch.yaml:3" in done.err
    (run / "stepwatch.yaml").unlink()
    assert stepwatch("render", run, "--set", "timeline.duration=soon").code == 2
    assert stepwatch("render", run, "-c", "nowhere.yaml").code == 78
    assert not (run / "animation").exists()


def test_no_ffmpeg(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path) -> None:
    """A missing ffmpeg, or a program that is none, is one error for all runs (69), and nothing is left behind."""
    make_run(tmp_path / "runs" / "one")
    make_run(tmp_path / "runs" / "two")
    missing = stepwatch("render", "runs", env={"STEPWATCH_FFMPEG": "/nowhere/ffmpeg"})
    assert (missing.code, missing.out) == (69, "")
    assert missing.err.count("/nowhere/ffmpeg") == 1
    assert not (tmp_path / "runs" / "animation").exists()


def test_a_broken_run_does_not_stop_the_others(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """One run without a readable frame is told of (66), the next one is rendered."""
    broken = make_run(tmp_path / "runs" / "broken")
    for frame in broken.glob("*.png"):
        frame.write_bytes(b"")
    make_run(tmp_path / "runs" / "good")
    done = stepwatch("render", "runs", *QUICK)
    assert done.code == 66
    assert done.path.exists()
    assert "run broken" in done.err


def test_a_run_that_has_just_begun_is_no_error_beside_others(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """A run.json without frames is told of and costs no exit code, unless its DIR holds no frame at all."""
    make_run(tmp_path / "runs" / "begun", steps=0, state="running")
    make_run(tmp_path / "runs" / "good")
    done = stepwatch("render", "runs", *QUICK, "-o", "clip.mp4")
    assert done.code == 0
    assert done.path == tmp_path / "clip.mp4"
    assert "run begun" in done.err
    named = stepwatch("render", "runs", "runs/begun", *QUICK, "--dry-run")
    assert named.code == 66
    assert named.out.count("run good") == 1


def test_the_gravest_code_wins() -> None:
    """Several runs end with the code that matters most."""
    assert worst([]) == 0
    assert worst([0, 66, 0]) == 66
    assert worst([66, 1, 0]) == 1
    assert worst([1, 69, 66]) == 69
    assert worst([130, 78]) == 130
    assert worst([66, 75, 0]) == 75
    assert worst([75, 1]) == 1
    assert set(SEVERITY) == {0, 1, 2, 66, 69, 75, 78, 130}


# -- being stopped


def fake_ffmpeg(folder: Path, real: str, does: str) -> str:
    """An ffmpeg that answers questions like the real one and does something else when it is to render."""
    program = folder / "fake ffmpeg"
    program.write_text(f'#!/bin/sh\ncase "$*" in *pipe:0*) {does};; esac\nexec "{real}" "$@"\n')
    program.chmod(0o755)
    return str(program)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_leaves_nothing_behind(make_run: MakeRun, tmp_path: Path, ffmpeg: str, number: signal.Signals) -> None:
    """Ctrl-C, or a polite kill, in the middle of an encode ends with 130; no temporary file stays, no frame is touched."""
    run = make_run()
    before = contents(run)
    mark = tmp_path / "started"
    slow = fake_ffmpeg(tmp_path, ffmpeg, f"touch '{mark}'; sleep 60; exit 0")
    process = subprocess.Popen(
        command("render", run, *QUICK), env=environment({"STEPWATCH_FFMPEG": slow}), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(mark.exists)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert contents(run) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("module", ["click", "stepwatch.store", "yaml"])
def test_interrupted_before_anything_has_begun(make_run: MakeRun, tmp_path: Path, number: signal.Signals, module: str) -> None:
    """While modules are still being loaded, before any frame is read: 130, and no traceback."""
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(f"""
import os, sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signal())
""")
    run = make_run()
    (run / "stepwatch.yaml").write_text("create: false\n")
    paths = f"{ROOT}{os.pathsep}{tmp_path / 'hooks'}"
    done = subprocess.run(command("render", run, *QUICK), env=environment({"PYTHONPATH": paths}), capture_output=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stdout == b""
    assert done.stderr.strip() in (b"", b"stepwatch: interrupted")


def test_the_script_begins_where_the_module_does() -> None:
    """What pip installs as `stepwatch` listens to signals as early as `python -m stepwatch`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"stepwatch": "stepwatch.__main__:main"}


def test_who_ignores_a_signal_goes_on_ignoring_it(make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """Under nohup the end of the terminal ends nothing."""
    run = make_run()
    mark = tmp_path / "started"
    slow = fake_ffmpeg(tmp_path, ffmpeg, f"touch '{mark}'; sleep 0.5")
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    process = subprocess.Popen([*nohup, *command("render", run, *QUICK)], env=environment({"STEPWATCH_FFMPEG": slow}), stdout=subprocess.PIPE)
    wait_for(mark.exists)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert Path(out.decode().strip()).exists()


def test_a_second_interrupt_ends_at_once(make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """Who presses Ctrl-C twice does not wait for an ffmpeg that does not listen."""
    run = make_run()
    mark = tmp_path / "started"
    deaf = fake_ffmpeg(tmp_path, ffmpeg, f"trap '' TERM INT; touch '{mark}'; while :; do sleep 0.2 || :; kill -0 $PPID || exit; done")
    process = subprocess.Popen(command("render", run, *QUICK), env=environment({"STEPWATCH_FFMPEG": deaf}), stderr=subprocess.PIPE)
    assert process.stderr is not None
    wait_for(mark.exists)
    process.send_signal(signal.SIGINT)
    assert b"stopping" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert process.wait(20) == 130
    assert time.monotonic() - begun < 1.5
    process.stderr.close()


# -- streams and terminals


def test_a_reader_that_goes_away_is_no_error(make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """`stepwatch render ... | true` still renders everything, and says nothing of the broken pipe."""
    for name in ("one", "two"):
        make_run(tmp_path / "runs" / name, generation={})
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command("render", tmp_path / "runs", *QUICK), env=environment(), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert b"Broken pipe" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert len(list((tmp_path / "runs" / "animation").iterdir())) == 2


def test_a_result_that_cannot_be_written_is_an_error(make_run: MakeRun, ffmpeg: str) -> None:
    """A full disk behind stdout loses the result: 1, with the reason."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command("inspect", make_run()), env=environment(), stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"standard output cannot be written" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_nothing(make_run: MakeRun, ffmpeg: str, closed: str) -> None:
    """Without stdin, stdout or stderr the animation is made, and no log ends up in a file that took their number."""
    run = make_run()
    script = f'exec "$@" {closed}'
    done = subprocess.run(["sh", "-c", script, "sh", *command("render", run, *QUICK, "-v")], env=environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (animation,) = (run / "animation").iterdir()
    check = subprocess.run([ffmpeg, "-v", "error", "-xerror", "-i", str(animation), "-f", "null", "-"], capture_output=True, check=False)
    assert (check.returncode, check.stderr) == (0, b"")


def test_a_log_that_nobody_reads_stops_nothing(make_run: MakeRun, ffmpeg: str) -> None:
    """A log whose reader has gone does not cost the animation."""
    run = make_run()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command("render", run, *QUICK, "-v"), env=environment(), stdout=subprocess.PIPE, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert Path(done.stdout.decode().strip()).exists()


EVIL = "evil \x1b]0;owned\x07\x1b[31m\nname\u202egpj"


@pytest.mark.parametrize("arguments", [["render", *QUICK], ["render", *QUICK, "-v"], ["render", "--dry-run"], ["inspect"]], ids=" ".join)
def test_no_name_and_no_prompt_reaches_the_terminal_raw(
    stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str, arguments: list[str]
) -> None:
    """Escape sequences, line breaks and reversed text in names and prompts are shown as escapes, in results and in the log."""
    run = make_run(tmp_path / EVIL, generation={"prompt": EVIL, "seed": 1}, texts={"parameters": EVIL})
    (run / f"00002{EVIL}.png").write_bytes(b"no image")
    (run / "00001.png").write_bytes(b"")
    done = stepwatch(*arguments, run)
    assert done.code == 0, done.err
    assert done.out
    for text in (done.out, done.err):
        assert not [character for character in text if character in "\x1b\x07\u202e\r"]
    assert "\\x1b]0;owned" in done.out + done.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_are_no_unicode(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str, encoding: str) -> None:
    """A folder whose name is no UTF-8 renders on any locale; the path is escaped, and JSON stays valid."""
    folder = tmp_path / os.fsdecode(b"bad\xff \xe2\x9c\xa8")
    try:
        make_run(folder)
    except OSError as error:
        if error.errno not in (errno.EILSEQ, errno.EINVAL):
            raise
        pytest.skip("this file system takes UTF-8 names only")
    env = {"LC_ALL": "C", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = stepwatch("render", folder, *QUICK, env=env)
    assert done.code == 0, done.err
    assert "bad\\xff" in done.out
    again = stepwatch("render", folder, *QUICK, "--json", env=env)
    (one,) = json.loads(again.out)["runs"]
    assert os.fsencode(one["dir"]) == os.fsencode(folder)
    assert Path(one["outputs"][0]["path"]).exists()


def in_a_terminal(arguments: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
    """Run a command whose stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(list(arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=dict(env), start_new_session=True)
    os.close(theirs)
    said = b""
    while True:
        if select.select([ours], [], [], 60)[0]:
            try:
                chunk = os.read(ours, 65536)
            except OSError:
                break
            if not chunk:
                break
            said += chunk
    os.close(ours)
    return process.wait(), said.decode()


def test_progress_is_for_terminals(stepwatch: Stepwatch, make_run: MakeRun, ffmpeg: str) -> None:
    """On a terminal a bar counts frames and goes away again; in a file there is none, nor any control character."""
    run = make_run()
    code, shown = in_a_terminal(command("render", run, *QUICK), environment({"TERM": "xterm-256color", "COLUMNS": "150"}))
    assert code == 0, shown
    assert "/10 frames" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "\x1b[?25h" in shown
    filed = stepwatch("render", run, *QUICK, "--force")
    assert "frames" not in filed.err.replace("frames are rendered", "")
    assert "\x1b" not in filed.err
    assert "\r" not in filed.err


def test_no_color_is_honoured(make_run: MakeRun) -> None:
    """Errors are red on a terminal, and not with NO_COLOR."""
    _, coloured = in_a_terminal(command("render", "/nowhere"), environment({"TERM": "xterm-256color"}))
    assert "\x1b[31m" in coloured
    _, plain = in_a_terminal(command("render", "/nowhere"), environment({"TERM": "xterm-256color", "NO_COLOR": "1"}))
    assert "does not exist" in plain
    assert "\x1b[31m" not in plain


# -- demo


def test_demo(stepwatch: Stepwatch, tmp_path: Path, ffmpeg: str) -> None:
    """A daemon watches ./stepwatch-demo/, a hook plays the sample run into it, and the path of its animation is the result.

    It leaves nobody's files behind but those, and asks no receipts but its own; a second one plays another run.
    """
    first = stepwatch("demo")
    assert first.code == 0, first.err
    folder = tmp_path / "stepwatch-demo"
    assert first.path.parent == folder / "animation"
    assert first.path.suffix == ".mp4"
    (run,) = folder.glob("2*")
    assert len(list(run.glob("*.jpg"))) == 30
    assert json.loads((run / "run.json").read_text())["state"] == "complete"
    assert not system.state_dir().exists()
    # No stepwatch.yaml above, valid or not, and no service file has a say in it.
    (tmp_path / "stepwatch.yaml").write_text("create: false\ncleanup: {intermediates: delete}\nno such key: 1\n")
    (tmp_path / "settings" / "stepwatch").mkdir(parents=True)
    (tmp_path / "settings" / "stepwatch" / "service.yaml").write_text(f"watch: [{tmp_path}]\npolicy: {{create: false}}\nffmpeg: /nowhere\n")
    second = stepwatch("demo", "--json", env={"XDG_CONFIG_HOME": str(tmp_path / "settings")})
    assert second.code == 0, second.err
    (one,) = json.loads(second.out)["runs"]
    assert (one["phase"], one["frames"]["found"]) == ("rendered", 30)
    assert Path(one["outputs"][0]["path"]) == first.path.with_name(f"{first.path.stem}-1.mp4")
    assert len(list(folder.glob("2*"))) == 2


def test_demo_where_nothing_can_be_written(stepwatch: Stepwatch, tmp_path: Path) -> None:
    """A place that takes no folder is a usage error with a sentence."""
    (tmp_path / "stepwatch-demo").write_text("a file")
    done = stepwatch("demo")
    assert (done.code, done.out) == (2, "")
    assert "stepwatch-demo" in done.err


# -- inspect


def test_inspect_tells_what_is_there(stepwatch: Stepwatch, make_run: MakeRun, ffmpeg: str) -> None:
    """Frames, holes, damage, the policy with its origins, what would be rendered and why; nothing is written."""
    run = make_run(steps=[1, 2, 3, 6, 7, 8])
    (run / "00001.png").write_bytes(b"plain text")
    (run / "stepwatch.yaml").write_text("timeline:\n  duration: 6s\n")
    before = contents(run)
    done = stepwatch("inspect", run)
    assert done.code == 0
    for words in ("run.json, which says complete", "6, steps 1 to 8", "step 4-5", "00001.png:", "32x24 PNG RGB (5 frames)"):
        assert words in done.out
    assert "timeline.duration: 6s" in done.out
    assert "stepwatch.yaml:2" in done.out
    assert "h264, 32x24, 210 pictures, 7.000 s" in done.out
    assert contents(run) == before


def test_inspect_finds_what_headers_hide(stepwatch: Stepwatch, make_run: MakeRun) -> None:
    """A frame cut in its pixels looks whole until it is decoded."""
    run = make_run(sidecar=None)
    data = (run / "00003.png").read_bytes()
    (run / "00003.png").write_bytes(data[: len(data) * 2 // 3])
    (headers,) = json.loads(stepwatch("inspect", run, "--json", "--quick").out)["runs"]
    (decoded,) = json.loads(stepwatch("inspect", run, "--json").out)["runs"]
    assert headers["frames"]["decoded"] is False
    assert decoded["frames"]["damaged"] == ["00003.png"]
    assert decoded["frames"]["problems"]["00003.png"]
    assert (decoded["guessed"], decoded["layout"], decoded["state"]) == (True, "numbered", None)


def test_inspect_works_without_ffmpeg(stepwatch: Stepwatch, make_run: MakeRun) -> None:
    """Looking needs no ffmpeg; only what would be rendered cannot be said."""
    done = stepwatch("inspect", make_run(), env={"STEPWATCH_FFMPEG": "/nowhere/ffmpeg"})
    assert done.code == 0
    assert "6, steps 1 to 6" in done.out
    assert "/nowhere/ffmpeg" in done.out


def test_inspect_of_nothing(stepwatch: Stepwatch) -> None:
    """A missing folder is 66, also as JSON."""
    done = stepwatch("inspect", "nowhere", "--json")
    assert done.code == 66
    assert json.loads(done.out)["runs"] == []


def test_inspect_writes_values_as_yaml_does(stepwatch: Stepwatch, make_run: MakeRun) -> None:
    """What inspect shows of the policy can be put into a stepwatch.yaml."""
    settings = ("--set", "timeline.fps=30000/1001", "--set", "outputs=[{codec: h264, quality: 'crf:20', max_size: 8MB}]")
    (one,) = json.loads(stepwatch("inspect", make_run(), *settings, "--json").out)["runs"]
    assert {key: choice["value"] for key, choice in one["policy"].items()} == {
        "timeline.fps": "30000/1001",
        "outputs.0.codec": "h264",
        "outputs.0.quality": "{crf: 20}",
        "outputs.0.max_size": "8MB",
    }


# -- config


def test_config_init_writes_a_file_that_changes_nothing(stepwatch: Stepwatch, tmp_path: Path) -> None:
    """The new stepwatch.yaml is valid and all default; a file that is there stays."""
    assert stepwatch("config", "init").path == tmp_path / "stepwatch.yaml"
    text = (tmp_path / "stepwatch.yaml").read_text()
    assert stepwatch("config", "validate").code == 0
    assert set(json.loads(stepwatch("config", "show", "--json").out)["origins"].values()) <= {"default", f"{tmp_path}/stepwatch.yaml:3"}
    assert stepwatch("config", "init").code == 78
    assert (tmp_path / "stepwatch.yaml").read_text() == text


def test_config_validate_tells_every_fault(stepwatch: Stepwatch, tmp_path: Path) -> None:
    """All complaints come at once, below the folder too, as lines or as JSON; 78."""
    (tmp_path / "below").mkdir()
    (tmp_path / "stepwatch.yaml").write_text("timeline: {fps: many}\n")
    (tmp_path / "below" / "stepwatch.yaml").write_text("create: yes\ncreate: true\n")
    done = stepwatch("config", "validate")
    assert (done.code, done.out) == (78, "")
    assert {line.split(":")[0].removeprefix(f"{tmp_path}/") for line in done.err.splitlines() if ": " in line} >= {
        "stepwatch.yaml",
        "below/stepwatch.yaml",
    }
    asked = stepwatch("config", "validate", "below", "--json")
    assert asked.code == 78
    assert len(json.loads(asked.out)["complaints"]) >= 2


def test_config_show_tells_where_a_value_comes_from(stepwatch: Stepwatch, tmp_path: Path) -> None:
    """Each line has its value and its origin."""
    (tmp_path / "stepwatch.yaml").write_text("timeline:\n  duration: 6s\n")
    shown = stepwatch("config", "show", "--set", "timeline.fps=24").out
    assert re.search(r"duration: 6s +# .*stepwatch.yaml:2", shown)
    assert re.search(r"fps: 24 +# --set", shown)
    assert stepwatch("config", "show", "nowhere").code == 66


def test_config_show_knows_the_sidecar(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path) -> None:
    """What a run.json wishes is a layer like the others, with its origin; what it is refused, and what is wrong with it, is told."""
    wishes = {"timeline": {"duration": "4s", "fps": 12}, "cleanup": {"intermediates": "delete"}, "size": {"scal": 3}}
    run = make_run(sidecar={"stepwatch": wishes, "infotext": 7})
    done = stepwatch("config", "show", run, "--set", "timeline.fps=24")
    assert done.code == 0
    assert re.search(r"duration: 4s +# run.json$", done.out, re.MULTILINE)
    assert re.search(r"fps: 24 +# --set$", done.out, re.MULTILINE)
    assert re.search(r"intermediates: keep +# default$", done.out, re.MULTILINE)
    for words in ("cleanup.intermediates: ignored", "size.scal: there is no such key", "infotext is ignored"):
        assert any(line.startswith("# warning: ") and words in line for line in done.out.splitlines()), done.out
    assert json.loads(stepwatch("config", "show", run, "--json").out)["origins"]["timeline.fps"] == "run.json"
    (run / "run.json").write_text("{")
    assert "# warning: run.json is not used" in stepwatch("config", "show", run).out


@pytest.mark.parametrize("kind", ["stepwatch", "service"])
def test_config_schema_is_json_schema(stepwatch: Stepwatch, kind: str) -> None:
    """The schema is itself valid."""
    jsonschema.Draft202012Validator.check_schema(json.loads(stepwatch("config", "schema", kind).out))


# -- doctor


def test_doctor_is_content_here(stepwatch: Stepwatch, ffmpeg: str) -> None:
    """With an ffmpeg there: 0, its version and path, and a line for each codec."""
    done = stepwatch("doctor")
    assert done.code == 0
    assert ffmpeg in done.out
    for codec in ("h264", "h265", "av1", "vp9", "prores", "gif", "webp", "apng"):
        assert f"codec {codec}" in done.out
    findings = json.loads(stepwatch("doctor", "--json").out)["findings"]
    assert {"subject", "state", "sentence", "hint"} == set(findings[0])


def test_doctor_looks_at_the_watched_folders(stepwatch: Stepwatch, tmp_path: Path, ffmpeg: str) -> None:
    """A watched folder that is gone is a warning, one that is there tells its free space."""
    (tmp_path / "there").mkdir()
    (tmp_path / "service.yaml").write_text("watch: [there, gone]\n")
    done = stepwatch("doctor", "-c", "service.yaml")
    assert done.code == 0
    assert f"{tmp_path}/gone is not there" in done.out
    assert f"GB free in {tmp_path}/there" in done.out


def test_doctor_names_what_is_missing(stepwatch: Stepwatch, tmp_path: Path) -> None:
    """No ffmpeg is 69, a wrong service file 78, each with its sentence and the rest still examined."""
    missing = stepwatch("doctor", env={"STEPWATCH_FFMPEG": "/nowhere/ffmpeg"})
    assert missing.code == 69
    assert "problem  ffmpeg" in missing.out
    (tmp_path / "service.yaml").write_text("watsch: []\n")
    wrong = stepwatch("doctor", "-c", "service.yaml")
    assert wrong.code == 78
    assert "service.yaml:1" in wrong.out
    assert "ffmpeg" in wrong.out


def test_doctor_looks_at_what_the_daemon_stands_on(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """Watch limits against the folders there, file system and durability, receipts, setpriv, a daemon and its unit; nothing is begun by looking."""
    make_run(tmp_path / "there" / "deep" / "run")
    (tmp_path / "service.yaml").write_text("watch: [there]\ndaemon: {min_free_space: 900TB}\n")
    found = {one["subject"]: one for one in json.loads(stepwatch("doctor", "-c", "service.yaml", "--json").out)["findings"]}
    assert "so events are used" in found["file system"]["sentence"] or "polled" in found["file system"]["sentence"]
    if sys.platform == "linux":
        assert "3 folders below the watched ones" in found["watch limits"]["sentence"]
    assert "setpriv" in found
    assert "daemon.min_free_space (900000 GB)" in found["watched"]["hint"]
    assert "no receipts yet" in found["state"]["sentence"]
    assert "none is running" in found["daemon"]["sentence"]
    assert "not installed" in found["service"]["sentence"]
    assert not system.state_dir().exists()


def test_doctor_says_what_is_wrong_with_receipts_and_leaves_them(stepwatch: Stepwatch, make_run: MakeRun, tmp_path: Path, ffmpeg: str) -> None:
    """Sound receipts are counted, damaged ones named and not touched; a place that takes none is a problem."""
    assert stepwatch("render", make_run(), *QUICK).code == 0
    path = system.state_dir() / "receipts.db"
    assert f"1 run in {path}, which is in order" in stepwatch("doctor").out
    damaged = b"no database" * 1000
    path.write_bytes(damaged)
    done = stepwatch("doctor")
    assert (done.code, path.read_bytes()) == (0, damaged)
    assert f"{path} is damaged" in done.out
    (tmp_path / "file").write_text("x")
    nowhere = stepwatch("doctor", env={"XDG_STATE_HOME": str(tmp_path / "file")})
    assert nowhere.code == 1
    assert "receipts cannot be kept" in nowhere.out


def test_doctor_knows_a_daemon_that_runs(daemon: Daemon, ffmpeg: str) -> None:
    """It asks the daemon's socket: its process, its folders, and what keeps it."""
    daemon.start()
    assert daemon.process is not None
    said = daemon.run("doctor").stdout
    assert f"process {daemon.process.pid} runs since" in said
    assert "watches 1 folder" in said


# -- inspect and the daemon


class Inspected(Protocol):
    def __call__(self, *arguments: str | Path) -> tuple[dict[str, str], dict[str, object]]: ...


@pytest.fixture
def inspected(capsys: pytest.CaptureFixture[str]) -> Inspected:
    """What the daemon would do next, and whether frames may go, of the only run; asked in this process."""

    def ask(*arguments: str | Path) -> tuple[dict[str, str], dict[str, object]]:
        capsys.readouterr()
        assert run_here(["inspect", "--json", *map(str, arguments)]) == 0
        (one,) = json.loads(capsys.readouterr().out)["runs"]
        return one["next"], one["clearing"]

    return ask


def test_inspect_says_what_the_daemon_would_do_next(
    stepwatch: Stepwatch, inspected: Inspected, make_run: MakeRun, tmp_path: Path, ffmpeg: str
) -> None:
    """Action, phase and reason, by the same rules and the same receipts as the daemon; nothing is written, not even receipts."""
    run = make_run()
    assert inspected(run)[0] == {"action": "render", "phase": "complete", "reason": "its sidecar says complete"}
    assert not system.state_dir().exists()
    assert "next       the daemon renders it (complete): its sidecar says complete" in stepwatch("inspect", run).out
    assert stepwatch("render", run, *QUICK).code == 0
    assert inspected(run)[0] == {"action": "rest", "phase": "rendered", "reason": "rendered"}

    going = make_run(tmp_path / "going", state="running", sidecar={"frames": {"name": "{index:05d}.png", "count": 6, "planned": 900}})
    waits, _ = inspected(going)
    assert (waits["action"], waits["phase"]) == ("wait", "recording")
    assert waits["reason"].startswith("it counts as stalled when no frame comes for")
    held, _ = inspected(make_run(tmp_path / "off", state="interrupted"), "--set", "detect.incomplete=hold")
    assert (held["action"], held["phase"]) == ("rest", "held")
    guessed, _ = inspected(make_run(tmp_path / "bare", sidecar=None))
    assert (guessed["action"], guessed["phase"]) == ("rest", "ignored")
    assert "does not guess" in guessed["reason"]


def test_inspect_says_whether_frames_may_be_cleared(
    stepwatch: Stepwatch, inspected: Inspected, make_run: MakeRun, tmp_path: Path, ffmpeg: str
) -> None:
    """What the policy wants is one thing, what this very run allows another; both are said."""
    trash = ("--set", "cleanup.intermediates=trash")
    assert inspected(make_run())[1] == {"intermediates": "keep", "allowed": False, "reason": "the policy says keep"}
    assert inspected(make_run(), *trash)[1] == {"intermediates": "trash", "allowed": True, "reason": None}
    holed = make_run(tmp_path / "holed", steps=[1, 2, 4, 5])
    assert inspected(holed, *trash)[1]["reason"] == "steps are missing (3)"
    damaged = make_run(tmp_path / "damaged")
    (damaged / "00003.png").write_bytes(b"")
    assert inspected(damaged, *trash)[1]["reason"] == "a frame is damaged"
    assert "trash, but what is here stays: a frame is damaged" in stepwatch("inspect", damaged, *trash).out
    rendered = make_run(tmp_path / "rendered")
    assert stepwatch("render", rendered, *QUICK).code == 0
    allowed = inspected(rendered, *trash)[1]
    assert allowed["allowed"] is False
    assert "rendered under a policy that keeps them" in str(allowed["reason"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "at once"])
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_what_cannot_be_printed_is_no_traceback(argument: str, more: dict[str, str]) -> None:
    """A full disk, or a reader that is gone, gives an exit code and nothing else."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "stepwatch", argument], stdout=full, stderr=subprocess.PIPE, env=os.environ | more, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
