"""The command line: each command a few lines over the modules below.

Whatever a command needs is imported when it runs, so that ``--help``, ``--version`` and completion cost next to nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from stepwatch import __version__
from stepwatch.errors import ConfigError, EnvironmentFault, Interrupted, NoFramesError, StepwatchError, UsageError
from stepwatch.report import Report, output_facts, planned_line

if TYPE_CHECKING:
    from stepwatch import visit
    from stepwatch.config import Resolved
    from stepwatch.core.model import Run, RunKey
    from stepwatch.core.policy import ServiceConfig
    from stepwatch.core.result import RunResult

SEVERITY = (0, 66, 1, 69, 78, 2, 130)
"""Exit codes from harmless to final: several runs, or several folders, end with the one that comes last here."""
MOST_COUNTED = 1000
"""Images that are counted where no run was found; whoever has more has many."""

Command = TypeVar("Command", bound=Callable[..., Any])


def worst(codes: Sequence[int]) -> int:
    """The exit code that tells most about *codes*."""
    return max(codes, key=lambda code: SEVERITY.index(code) if code in SEVERITY else SEVERITY.index(1), default=0)


# -- what every command takes


@dataclass(slots=True)
class Settings:
    """The options that may stand before or behind the command's name."""

    config: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def report(self) -> Report:
        if self.quiet and self.verbose:
            raise UsageError("-q and -v contradict each other")
        return Report(quiet=self.quiet, verbose=self.verbose)

    def service(self) -> ServiceConfig:
        from stepwatch import config

        return config.load_service(self.config)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    settings = context.find_root().ensure_object(Settings)
    if value and parameter.name:
        setattr(settings, parameter.name, Path(value) if parameter.name == "config" else value)


def everywhere(command: Command) -> Command:
    """Give *command* the options that all of them have."""
    shared: Any = {"expose_value": False, "callback": _remember}
    options = (
        click.option("-c", "--config", metavar="FILE", help="Read this service file instead of the usual one.", **shared),
        click.option("--json", is_flag=True, help="Print the result as one JSON object.", **shared),
        click.option("-q", "--quiet", is_flag=True, help="Log errors only.", **shared),
        click.option("-v", "--verbose", is_flag=True, help="Log everything, ffmpeg's command and output too.", **shared),
        click.version_option(__version__, "--version", prog_name="stepwatch", message="%(prog)s %(version)s"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _settings() -> Settings:
    return click.get_current_context().find_root().ensure_object(Settings)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done, 1 a render failed, 2 usage, 66 no frames there, 69 ffmpeg or an encoder is missing, 78 bad configuration, "
    "130 interrupted. Several runs end with the gravest: 130, 2, 78, 69, 1, 66.",
)
@everywhere
def cli() -> None:
    """Turn the step frames of diffusion runs into verified animations.

    stdout carries the result, a path or JSON; stderr the log and the progress. No frame is ever changed.
    """


# -- render


@cli.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "destination",
    metavar="PATH",
    help="Where the animation goes: a folder (it exists, or PATH ends in /), or a file for one run and one output.",
)
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Decide one key of the policy, such as timeline.duration=6s; may be repeated."
)
@click.option("--keep", "clearing", flag_value="keep", help="Keep the frames, whatever the policy says.")
@click.option("--trash", "clearing", flag_value="trash", help="Not in this release: clearing comes with the daemon.")
@click.option("--delete", "clearing", flag_value="delete", help="Not in this release: clearing comes with the daemon.")
@click.option("--force", is_flag=True, help="Render although the same animation is there already.")
@click.option("--no-wait", is_flag=True, help="Never wait for another stepwatch. This release never does, with or without it.")
@click.option("--dry-run", is_flag=True, help="Show the plan and ffmpeg's command, and do nothing.")
@everywhere
def render(
    folders: tuple[str, ...],
    destination: str | None,
    settings: tuple[str, ...],
    clearing: str | None,
    force: bool,  # noqa: FBT001  # click calls by name
    no_wait: bool,  # noqa: ARG001, FBT001
    dry_run: bool,  # noqa: FBT001
) -> int:
    """Render the runs in DIR: a run, a folder of runs, or a flat folder of several."""
    from stepwatch import visit

    given = _settings()
    report = given.report()
    if clearing in ("trash", "delete"):
        raise UsageError(f"--{clearing} does not work yet: clearing comes with the daemon's release", hint="use --keep; no frame is touched")
    service = given.service()
    found = find_runs(folders, service=service, settings=settings, elsewhere=destination is not None)
    if clearing != "keep":
        refuse_clearing(found)
    found, file = send_to(destination, found)
    options = visit.Options(keep=clearing == "keep", force=force, dry_run=dry_run, destination=file, verbose=given.verbose)
    return render_runs(found, ffmpeg=service.ffmpeg, options=options, report=report, as_json=given.json)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Something that went wrong outside of any run."""

    folder: str | None
    """The folder of the command line that gave no runs; None when the whole work stopped."""
    error: StepwatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the folders of a command line hold."""

    runs: Sequence[tuple[Run, Resolved]]
    failures: Sequence[Failure]
    bare: frozenset[RunKey]
    """The runs of folders in which no run has a frame: only there is it an error that a run has none, elsewhere it has just begun."""


def find_runs(folders: Sequence[str], *, service: ServiceConfig, settings: Sequence[str], elsewhere: bool = False) -> Found:
    """Every run below *folders*, once, with its policy; a folder that is wrong does not keep the others from being rendered.

    With *elsewhere* nothing is going to be written into the output folders of the policy, so nothing about them is wrong.
    """
    from stepwatch import visit

    runs: dict[RunKey, tuple[Run, Resolved]] = {}
    failures: list[Failure] = []
    bare: set[RunKey] = set()
    for folder in folders:
        try:
            require_folder(folder)
            below = visit.runs_below(Path(folder), service=service, settings=settings)
            if not below:
                raise nothing_found(folder)
            for _, resolved in below if not elsewhere else ():
                resolved.require_places()
        except UsageError:
            raise
        except StepwatchError as error:
            failures.append(Failure(folder=folder, error=error))
        else:
            runs.update({run.key: (run, resolved) for run, resolved in below if run.key not in runs})
            if not any(run.frames for run, _ in below):
                bare.update(run.key for run, _ in below)
    return Found(runs=tuple(runs.values()), failures=tuple(failures), bare=frozenset(bare))


def nothing_found(folder: str) -> NoFramesError:
    """What to say of a folder without runs: what is there instead, and which key may explain it."""
    from stepwatch import store
    from stepwatch.core.naming import printable

    _, wrong = store.read_sidecar(Path(folder))
    images = store.images_below(Path(folder), MOST_COUNTED)
    sidecar = "; ".join(wrong) or "there is no run.json"
    if not images:
        return NoFramesError(f"{folder} holds no run: {sidecar}, and no image", hint="name the folder into which the frames are written")
    count = f"{MOST_COUNTED} or more" if len(images) == MOST_COUNTED else str(len(images))
    names = f"the names of its {count} images, such as" if len(images) > 1 else "the name of its only image,"
    return NoFramesError(
        f"{folder} holds no run: {sidecar}, and no known layout explains {names} {printable(images[0])}",
        hint="say where the step stands in them: --set 'frames.pattern=shot-(?P<step>[0-9]+)-final\\.png'",
    )


def require_folder(folder: str) -> None:
    """Raise NoFramesError unless *folder* is a folder that can be entered."""
    if not os.path.exists(folder):
        raise NoFramesError(f"{folder} does not exist")
    if not os.path.isdir(folder):
        raise NoFramesError(f"{folder} is not a folder", hint="name the folder that holds the frames")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise NoFramesError(f"{folder} may not be read by this user")


def refuse_clearing(found: Found) -> None:
    """Raise UsageError where a policy would clear frames, which this release cannot."""
    for run, resolved in found.runs:
        wish = resolved.policy.cleanup.intermediates
        if wish != "keep":
            origin = resolved.origins.get("cleanup.intermediates")
            raise UsageError(
                f"the policy of run {run.name} says `cleanup.intermediates: {wish}`{f' ({origin})' if origin else ''}, "
                "and clearing comes with the daemon's release",
                hint="use --keep to render and keep the frames",
            )


def send_to(destination: str | None, found: Found) -> tuple[Found, Path | None]:
    """Follow ``-o``: the runs with another output folder, or the one file that is asked for; UsageError when one file is named for several."""
    if destination is None:
        return found, None
    if not destination:
        raise UsageError("-o needs a path", hint="name a folder or a file")
    if destination.endswith((os.sep, "/")) or os.path.isdir(destination):
        folder = Path(os.path.abspath(destination))
        sent = [(run, replace(resolved, output_dirs=(folder,) * len(resolved.policy.outputs), astray=())) for run, resolved in found.runs]
        return replace(found, runs=sent), None
    counts = [len(resolved.policy.outputs) for run, resolved in found.runs if resolved.policy.create and run.frames]
    if sum(counts) > 1:
        runs = "1 run" if len(counts) == 1 else f"{len(counts)} runs"
        raise UsageError(
            f"-o names one file, {destination}, and {sum(counts)} animations would be written ({runs})",
            hint="name a folder instead: one that exists, or end it with /",
        )
    return found, Path(destination)


def render_runs(found: Found, *, ffmpeg: str, options: visit.Options, report: Report, as_json: bool) -> int:
    """Render one run after the other, and say what became of each; *ffmpeg* is the setting of the service file."""
    from stepwatch import encoder, visit

    codes = []
    results = []
    failures = list(found.failures)
    for failure in failures:
        report.error(failure.error)
    try:
        binary = ""
        if any(resolved.policy.create for _, resolved in found.runs):
            binary = encoder.find_ffmpeg(ffmpeg)
            encoder.capabilities(binary)  # Once and here: a binary that does not run is one error, not one for each run.
        with stoppable(report) as stop:
            for run, resolved in found.runs:
                result = visit.visit(run, resolved, ffmpeg=binary, options=options, observer=report, stop=stop)
                begun = result.exit_code == NoFramesError.exit_code and not run.frames and run.key not in found.bare
                codes.append(0 if begun else result.exit_code)
                results.append(result_facts(run, result))
                if not as_json:
                    print_result(result, report, planned=options.dry_run)
    except StepwatchError as error:
        report.error(error)
        failures.append(Failure(folder=None, error=error))
    finally:
        report.close()
    if as_json:
        report.result_json({"schema": 1, "runs": results} | failure_facts(failures))
    return worst([*codes, *(failure.error.exit_code for failure in failures)])


def failure_facts(failures: Sequence[Failure]) -> dict[str, object]:
    """What went wrong outside of any run, for JSON; nothing when nothing did."""
    errors = [{"dir": failure.folder, "error": failure.error.message, "code": failure.error.exit_code} for failure in failures]
    return {"errors": errors} if errors else {}


def print_result(result: RunResult, report: Report, *, planned: bool) -> None:
    """One path a line for what is there now; the visit itself has told the log all that was worth saying. A dry run prints its plan."""
    if not planned:
        for output in result.outputs:
            if output.path is not None and output.error is None:
                report.result(output.path)
        return
    report.result(f"run {result.name}: {result.reason}")
    for output, command in zip_longest(result.outputs, result.commands):
        if output is not None:
            report.result(f"  {planned_line(output)}")
        if command is not None:
            report.result(f"  $ {shlex.join(command)}")


def result_facts(run: Run, result: RunResult) -> dict[str, object]:
    """One run of ``render --json``."""
    facts: dict[str, object] = {
        "run": result.run,
        "name": result.name,
        "dir": run.key.folder,
        "phase": result.phase,
        "reason": result.reason,
        "frames": {
            "found": result.found,
            "shown": result.shown,
            "damaged": list(result.damaged),
            "problems": dict(result.problems),
            "missing": list(result.missing),
            "unshown": list(result.unshown),
        },
        "outputs": [output_facts(output) for output in result.outputs],
        "cleared": result.cleared,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
    }
    if result.commands:
        facts["commands"] = [list(command) for command in result.commands]
    return facts


@contextlib.contextmanager
def stoppable(report: Report) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C (or SIGTERM, or the terminal's end) into a set event, and the second one into the end of the process."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            report.restore_terminal()
            os._exit(Interrupted.exit_code)
        stop.set()
        report.note("stopping; once more stops at once and leaves a hidden temporary file", level="warning")

    with handling(on_signal):
        yield stop


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Give everything that asks this process to end to *handler*; in another thread than the first, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Who was started with a signal ignored (nohup) keeps ignoring it.
    before = {number: signal.getsignal(number) for number in wanted if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


# -- demo


@cli.command()
@everywhere
def demo() -> int:
    """Render a real run that comes with stepwatch into ./stepwatch-demo/."""
    from stepwatch import visit
    from stepwatch.core.policy import ServiceConfig, WatchEntry

    given = _settings()
    report = given.report()
    folder = Path("stepwatch-demo")
    run_folder = unpack_sample(folder)
    report.note(f"the sample run, 30 real frames of one picture: {run_folder}{os.sep}")
    # Its own folder is the watched one, so that no file of this machine or further up has a say in what everybody's first animation is.
    service = ServiceConfig(watch=(WatchEntry(path=os.path.abspath(folder)),))
    found = find_runs([str(run_folder)], service=service, settings=())
    options = visit.Options(keep=True, verbose=given.verbose)
    return render_runs(found, ffmpeg=service.ffmpeg, options=options, report=report, as_json=given.json)


def unpack_sample(folder: Path) -> Path:
    """Copy the packaged run below *folder*, where people can look at what goes in; what is there already stays."""
    from importlib.resources import files

    (sample,) = (entry for entry in files("stepwatch").joinpath("data", "sample").iterdir() if entry.is_dir())
    run_folder = folder / sample.name
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        for entry in sorted(sample.iterdir(), key=lambda entry: entry.name):
            place = run_folder / entry.name
            data = entry.read_bytes()
            if not place.is_file() or place.stat().st_size != len(data):
                place.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{run_folder} cannot be written: {error.strerror}", hint="run the demo in a folder of your own") from error
    return run_folder


# -- inspect


@cli.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Decide one key of the policy, as for render.")
@click.option("--quick", is_flag=True, help="Read headers only; a frame that is cut in its pixels then looks whole.")
@everywhere
def inspect(folders: tuple[str, ...], settings: tuple[str, ...], quick: bool) -> int:  # noqa: FBT001  # click calls by name
    """Show the runs in DIR: frames, holes, damage, policy, and what would be rendered."""
    from stepwatch import inspection

    given = _settings()
    report = given.report()
    service = given.service()
    found = find_runs(folders, service=service, settings=settings)
    views = [inspection.look(run, resolved, decode=not quick, ffmpeg=service.ffmpeg) for run, resolved in found.runs]
    for failure in found.failures:
        report.error(failure.error)
    if given.json:
        report.result_json({"schema": 1, "runs": [inspection.facts(view) for view in views]} | failure_facts(found.failures))
    else:
        for number, view in enumerate(views):
            report.result_text(("\n" if number else "") + inspection.text(view))
    return worst([failure.error.exit_code for failure in found.failures])


# -- config


@cli.group()
@everywhere
def config() -> None:
    """Write, check and show the YAML files that hold the policy."""


@config.command("init")
@click.argument("folder", metavar="[DIR]", default=".")
@everywhere
def config_init(folder: str) -> int:
    """Write a stepwatch.yaml into DIR with every key, its meaning and its default."""
    from stepwatch import config

    given = _settings()
    path = str(config.init_file(Path(os.path.abspath(folder))))
    report = given.report()
    if given.json:
        report.result_json({"schema": 1, "path": path})
    else:
        report.result(path)
    return 0


@config.command("validate")
@click.argument("paths", metavar="[PATH...]", nargs=-1)
@everywhere
def config_validate(paths: tuple[str, ...]) -> int:
    """Check the service file, and every stepwatch.yaml that counts in PATH or lies below it (default: here)."""
    from stepwatch import config

    given = _settings()
    report = given.report()
    complaints = tuple(config.validate([Path(path) for path in paths or (".",)], given.config))
    if given.json:
        report.result_json({"schema": 1, "complaints": list(complaints)})
        return ConfigError.exit_code if complaints else 0
    if complaints:
        raise ConfigError(complaints)
    report.note("nothing to complain of")
    return 0


@config.command("show")
@click.argument("folder", metavar="[DIR]", default=".")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Decide one key of the policy, as for render.")
@everywhere
def config_show(folder: str, settings: tuple[str, ...]) -> int:
    """Show the policy that counts in DIR, every value with the file and line that set it."""
    from stepwatch import config, store

    given = _settings()
    require_folder(folder)
    sidecar, wrong = store.read_sidecar(Path(folder))
    resolved = config.resolve_for(Path(folder), service=given.service(), settings=settings, overrides=sidecar.overrides if sidecar else None)
    resolved = replace(resolved, warnings=(*wrong, *resolved.warnings))
    report = given.report()
    if given.json:
        report.result_json({"schema": 1, **config.facts(resolved)})
    else:
        report.result_text(config.show(resolved))
    return 0


@config.command("schema")
@click.argument("kind", type=click.Choice(["stepwatch", "service"]), default="stepwatch")
@everywhere
def config_schema(kind: Literal["stepwatch", "service"]) -> int:
    """Print the JSON Schema of stepwatch.yaml, or of the service file, for an editor."""
    from stepwatch import config

    _settings().report().result_text(json.dumps(config.schema(kind), indent=2))
    return 0


# -- doctor


@cli.command()
@everywhere
def doctor() -> int:
    """Check ffmpeg and its encoders, the configuration and the disk."""
    from stepwatch import doctor as examination

    given = _settings()
    report = given.report()
    findings = examination.examine(config_file=given.config)
    if given.json:
        report.result_json({"schema": 1, "findings": [examination.facts(finding) for finding in findings]})
    else:
        report.result_text(examination.text(findings))
    return worst([finding.exit_code for finding in findings])


# -- completion


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@everywhere
def completion(shell: str) -> int:
    """Print the lines that teach SHELL to complete stepwatch's commands and options.

    For bash: `eval "$(stepwatch completion bash)"` in ~/.bashrc; for zsh the same in ~/.zshrc; for fish
    `stepwatch completion fish > ~/.config/fish/completions/stepwatch.fish`.
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    _settings().report().result_text(complete(cli, {}, "stepwatch", "_STEPWATCH_COMPLETE").source())
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code. Until frames are rendered, being told to end is an exception like Ctrl-C's, and unwinds."""
    open_standard_streams()
    try:
        with handling(signal.default_int_handler):
            code = run(arguments)
    except KeyboardInterrupt:  # the second one, while the first was being told of
        code = Interrupted.exit_code
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: every error that stepwatch or click raises on purpose is a sentence on stderr."""
    report = Report()
    try:
        return cli.main(arguments, prog_name="stepwatch", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        report.note(error.format_message(), level="error")
        return error.exit_code
    except click.ClickException as error:
        report.note(f"stepwatch: {error.format_message()}", level="error")
        context = getattr(error, "ctx", None)
        if context is not None:
            report.note(f"  hint: `{context.command_path} --help` shows what there is", level="error")
        return error.exit_code
    except StepwatchError as error:
        report.error(error)
        return error.exit_code
    except OSError as error:
        # Whoever knows more about it has caught it before: here, the machine refused something that no run is to blame for.
        fault = EnvironmentFault(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        fault.__cause__ = error
        report.error(fault)
        return fault.exit_code
    except (KeyboardInterrupt, click.Abort):
        report.note("stepwatch: interrupted", level="error")
        return Interrupted.exit_code


def open_standard_streams() -> None:
    """Open /dev/null in the place of a closed stdin, stdout or stderr, before some file of ours gets its number and the log ends up in it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
