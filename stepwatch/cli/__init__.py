"""The command line: each command a few lines over the modules below.

Whatever a command needs is imported when it runs, so that ``--help``, ``--version`` and completion cost next to nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from stepwatch import overview
from stepwatch.cli import daemon, hooks
from stepwatch.cli.common import SEVERITY, current, everywhere, handling, require_folder, stoppable, worst
from stepwatch.errors import BusyError, ConfigError, EnvironmentFault, Interrupted, NoFramesError, StepwatchError, UsageError
from stepwatch.report import Report, planned_line, run_facts

if TYPE_CHECKING:
    from stepwatch import visit
    from stepwatch.config import Resolved
    from stepwatch.core.model import Run, RunKey
    from stepwatch.core.policy import ServiceConfig
    from stepwatch.core.result import RunResult

MOST_COUNTED = 1000
"""Images that are counted where no run was found; whoever has more has many."""

__all__ = ["SEVERITY", "cli", "main", "run", "worst"]


class _Overview(click.Group):
    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's own signature
        # The page that `__main__` shows by itself.
        formatter.write(overview.overview(overview.columns()))


@click.group(cls=_Overview, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": overview.WIDEST})
@everywhere
def cli() -> None:
    """Turn the step frames of diffusion runs into verified animations."""


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
@click.option("--trash", "clearing", flag_value="trash", help="Move the frames that the animation contains to the trash of the watched folder.")
@click.option("--delete", "clearing", flag_value="delete", help="Delete the frames that the animation contains.")
@click.option("--force", is_flag=True, help="Render although the same animation is there already.")
@click.option("--no-wait", is_flag=True, help="End with 75 instead of waiting while the daemon visits the run.")
@click.option("--dry-run", is_flag=True, help="Show the plan and ffmpeg's command, and do nothing.")
@everywhere
def render(
    folders: tuple[str, ...],
    destination: str | None,
    settings: tuple[str, ...],
    clearing: str | None,
    force: bool,  # noqa: FBT001  # click calls by name
    no_wait: bool,  # noqa: FBT001  # click calls by name
    dry_run: bool,  # noqa: FBT001
) -> int:
    """Render the runs in DIR: a run, a folder of runs, or a flat folder of several."""
    from stepwatch import visit

    given = current()
    report = given.report()
    service = given.service()
    found = find_runs(folders, service=service, settings=settings, elsewhere=destination is not None)
    if clearing is not None:
        found = with_clearing(found, clearing)
    found, file = send_to(destination, found)
    options = visit.Options(
        force=force,
        dry_run=dry_run,
        destination=file,
        elsewhere=destination is not None,
        verbose=given.verbose,
        wait=not no_wait,
        asked=clearing in ("trash", "delete"),
    )
    records = None if dry_run else open_records(report, needed=options.asked)
    return render_runs(found, ffmpeg=service.ffmpeg, options=options, report=report, as_json=given.json, records=records)


def open_records(report: Report, *, needed: bool) -> visit.Records | None:
    """The receipts; without them a render works all the same, but nothing is cleared."""
    from stepwatch import visit

    try:
        records = visit.open_records()
    except EnvironmentFault as error:
        if needed:
            raise
        report.note(f"{error.message}; nothing is recorded, and nothing is cleared", level="warning")
        return None
    for note in records.ledger.notes:
        report.note(note, level="warning")
    return records


def with_clearing(found: Found, word: str) -> Found:
    """The same runs with what the command line says of their intermediates."""
    runs = []
    for run, resolved in found.runs:
        cleanup = replace(resolved.policy.cleanup, intermediates=word)  # type: ignore[arg-type]  # one of the flags' values
        runs.append((run, replace(resolved, policy=replace(resolved.policy, cleanup=cleanup))))
    return replace(found, runs=runs)


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


def render_runs(found: Found, *, ffmpeg: str, options: visit.Options, report: Report, as_json: bool, records: visit.Records | None = None) -> int:
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
                try:
                    result = visit.visit(run, resolved, ffmpeg=binary, options=options, observer=report, stop=stop, records=records)
                except BusyError as error:
                    report.error(error)
                    failures.append(Failure(folder=run.key.folder, error=error))
                    continue
                begun = result.exit_code == NoFramesError.exit_code and not run.frames and run.key not in found.bare
                codes.append(0 if begun else result.exit_code)
                results.append(run_facts(result))
                if not as_json:
                    print_result(result, report, planned=options.dry_run)
    except StepwatchError as error:
        report.error(error)
        failures.append(Failure(folder=None, error=error))
    finally:
        report.close()
        if records is not None:
            records.ledger.close()
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


# -- inspect


@cli.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Decide one key of the policy, as for render.")
@click.option("--quick", is_flag=True, help="Read headers only; a frame that is cut in its pixels then looks whole.")
@everywhere
def inspect(folders: tuple[str, ...], settings: tuple[str, ...], quick: bool) -> int:  # noqa: FBT001  # click calls by name
    """Show the runs in DIR: frames, holes, damage, policy, what would be rendered, and what the daemon would do next."""
    from stepwatch import inspection

    given = current()
    report = given.report()
    service = given.service()
    found = find_runs(folders, service=service, settings=settings)
    attempts = service.daemon.max_attempts
    with inspection.receipts() as known:
        views = [
            inspection.look(run, resolved, decode=not quick, ffmpeg=service.ffmpeg, known=known, max_attempts=attempts)
            for run, resolved in found.runs
        ]
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

    given = current()
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

    given = current()
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

    given = current()
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
@click.argument("kind", type=click.Choice(["stepwatch", "service", "sidecar"]), default="stepwatch")
@everywhere
def config_schema(kind: Literal["stepwatch", "service", "sidecar"]) -> int:
    """Print the JSON Schema of stepwatch.yaml, of the service file, or of the run.json that a hook writes."""
    from stepwatch import config, hook

    schema = hook.sidecar_schema() if kind == "sidecar" else config.schema(kind)
    current().report().result_text(json.dumps(schema, indent=2))
    return 0


# -- doctor


@cli.command()
@everywhere
def doctor() -> int:
    """Check ffmpeg and its encoders, the configuration, the watched folders and the disk, the hooks, the receipts and the daemon."""
    from stepwatch import doctor as examination
    from stepwatch import unit

    given = current()
    report = given.report()
    findings = examination.examine(config_file=given.config, unit=unit.place())
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
    current().report().result_text(complete(cli, {}, "stepwatch", "_STEPWATCH_COMPLETE").source())
    return 0


for command in (*daemon.COMMANDS, hooks.hook_group):
    cli.add_command(command)


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
