"""The commands around the daemon: watch, demo, simulate, status, runs, prune, service."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepwatch.cli.common import current, everywhere, require_folder, stoppable
from stepwatch.errors import EnvironmentFault, Interrupted, NoFramesError, RunError, StepwatchError, UsageError
from stepwatch.report import Report, run_facts

if TYPE_CHECKING:
    from stepwatch import visit
    from stepwatch.core.manifest import Manifest
    from stepwatch.core.model import Receipt
    from stepwatch.core.policy import ServiceConfig
    from stepwatch.core.result import RunResult
    from stepwatch.ledger import Ledger, Summary
    from stepwatch.trash import Purged, Restored

FOLLOW = 0.25
"""Seconds between two pictures of a status that is followed."""
DEMO_CADENCE = 0.1
"""Seconds from frame to frame of the demo: a fast card."""


# -- watch


@click.command()
@click.argument("folders", metavar="[DIR]...", nargs=-1)
@click.option("--once", is_flag=True, help="Bring everything there to rest, then end.")
@everywhere
def watch(folders: tuple[str, ...], once: bool) -> int:  # noqa: FBT001  # click calls by name
    """Watch folders and render every run in them: the daemon, in the foreground.

    DIR... takes the place of the folders in the service file. SIGTERM or Ctrl-C lets running renders finish, a second one does not; SIGHUP reads
    the configuration again, and so does an edited file.
    """
    from stepwatch import config
    from stepwatch.service import Service

    given = current()
    if given.json:
        raise UsageError(
            "watch has no result to print as JSON",
            hint="`daemon: {log: json}` in the service file gives log lines as JSON; `stepwatch status --json` asks the daemon",
        )

    def load() -> ServiceConfig:
        return with_folders(given.service(), folders)

    first = load()
    if not first.watch:
        raise UsageError("there is nothing to watch", hint="name folders, or list them under `watch` in the service file")
    if once:
        for entry in first.watch:
            require_folder(entry.path)
    report = given.report(log=first.daemon.log, daemon=True)
    service = Service(load=load, observer=report, config_file=lambda: config.service_file(given.config), once=once, verbose=given.verbose)
    try:
        with report.logged():
            return service.run()
    finally:
        report.close()


def with_folders(service: ServiceConfig, folders: tuple[str, ...]) -> ServiceConfig:
    """The service file with its list of folders replaced; an entry for the same folder keeps its policy."""
    if not folders:
        return service
    from stepwatch.core.policy import WatchEntry

    known = {os.path.realpath(entry.path): entry for entry in service.watch}
    named = dict.fromkeys(os.path.realpath(folder) for folder in folders)
    return replace(service, watch=tuple(known.get(path) or WatchEntry(path=path) for path in named))


# -- demo


@click.command()
@everywhere
def demo() -> int:
    """Show a daemon at work: a simulated hook plays a real run into ./stepwatch-demo/, and its animation is there when it ends."""
    from stepwatch import simulate, system
    from stepwatch.core.policy import ServiceConfig, WatchEntry
    from stepwatch.service import Service

    given = current()
    report = given.report()
    folder = Path(os.path.abspath("stepwatch-demo"))
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}", hint="run the demo in a folder of your own") from error
    # A configuration of its own: no file of this machine or further up has a say in what everybody's first animation is.
    configuration = ServiceConfig(watch=(WatchEntry(path=str(folder)),))
    steps: list[visit.Step] = []
    troubles: list[StepwatchError] = []
    ready, over = threading.Event(), threading.Event()

    def on_step(step: visit.Step) -> None:
        if step.action.do == "render":
            steps.append(step)
            service.end("demo")

    def play() -> None:
        ready.wait()
        try:
            run_folder = simulate.play(sample_run(), folder, cadence=DEMO_CADENCE, stop=over)
            report.note(f"the simulated hook has written its last frame into {run_folder}{os.sep}")
        except StepwatchError as error:
            troubles.append(error)
            service.end("demo")

    live = report.terminal and not given.json and not given.verbose
    service = Service(
        load=lambda: configuration,
        # The picture of the status stands where the log would.
        observer=Report(quiet=True) if live else report,
        state=folder / system.OWN_FOLDER / "demo",
        private=True,
        verbose=given.verbose,
        ready=ready.set,
        on_step=on_step,
    )
    report.note(f"a daemon watches {folder}{os.sep}, and a simulated hook plays a real run into it")
    with report.logged(), helper(play), helper(lambda: follow(report, service.snapshot, over) if live else None):
        try:
            code = service.run()
        finally:
            over.set()
            ready.set()
    report.close()
    return conclude_demo(code, steps, troubles, report, as_json=given.json)


@contextlib.contextmanager
def helper(work: Callable[[], object]) -> Iterator[None]:
    """Run *work* in a thread beside the block, and wait for its end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def follow(report: Report, snapshot: Callable[[], dict[str, Any] | None], over: threading.Event) -> None:
    """Show a status that changes until *over* is set, or there is none any more."""
    from stepwatch import tables

    with report.live() as picture:
        while (seen := snapshot()) is not None:
            picture(tables.snapshot_table(seen))
            if over.wait(FOLLOW):
                return


def conclude_demo(code: int, steps: Sequence[visit.Step], troubles: Sequence[StepwatchError], report: Report, *, as_json: bool) -> int:
    """Say what came of the demo: the animation's path, or what kept it from being made."""
    errors = [*troubles, *(step.error for step in steps if step.error is not None)]
    if errors:
        raise errors[0]
    results = [step.result for step in steps if step.result is not None]
    if as_json:
        report.result_json({"schema": 1, "runs": [run_facts(result) for result in results]})
        return code
    for result in results:
        for output in result.outputs:
            if output.path is not None:
                report.result(output.path)
    return code


def sample_run() -> Path:
    """The run that comes with the package."""
    from importlib.resources import files

    (sample,) = (entry for entry in files("stepwatch").joinpath("data", "sample").iterdir() if entry.is_dir())
    return Path(str(sample))


# -- simulate


@click.command()
@click.argument("recorded", metavar="RUN")
@click.option("--into", "into", metavar="DIR", required=True, help="Folder in which the run is made, such as a watched one.")
@click.option("--cadence", metavar="TIME", help="Time from frame to frame, such as 200ms; as recorded when left out.")
@click.option("--stop-after", type=click.IntRange(min=0), metavar="N", help="End after so many frames.")
@click.option(
    "--end",
    "state",
    type=click.Choice(["complete", "interrupted", "failed", "running"]),
    default="complete",
    show_default=True,
    help="How the run ends; running: its writer dies without a word.",
)
@click.option("--careless", is_flag=True, help="Let frames grow under their own names, as writers do that know no better.")
@everywhere
def simulate(recorded: str, into: str, cadence: str | None, stop_after: int | None, state: str, careless: bool) -> int:  # noqa: FBT001  # click calls by name
    """Play a recorded run into DIR as a hook would, to try a policy or a daemon on it."""
    from stepwatch import config
    from stepwatch import simulate as simulation

    given = current()
    report = given.report()
    require_folder(into)
    seconds = None
    if cadence is not None:
        try:
            seconds = float(config.parse_duration(cadence))
        except ValueError as error:
            raise UsageError(f"--cadence: {error}", hint="write 200ms or 2s") from error

    def on_frame(played: int, total: int) -> None:
        report.progress("", "frames", played, total, None)

    with stoppable(report) as stop:
        folder = simulation.play(
            Path(recorded),
            Path(into),
            cadence=seconds,
            stop_after=stop_after,
            state=state,  # type: ignore[arg-type]  # click has checked the choice
            atomic=not careless,
            stop=stop,
            on_frame=on_frame,
        )
    report.close()
    if given.json:
        report.result_json({"schema": 1, "dir": str(folder)})
    else:
        report.result(str(folder))
    return Interrupted.exit_code if stop.is_set() else 0


# -- status


@click.command()
@click.option("--follow", "following", is_flag=True, help="Keep showing it until Ctrl-C.")
@everywhere
def status(following: bool) -> int:  # noqa: FBT001  # click calls by name
    """Show what the daemon does: folders, runs with phase and reason, queue, progress, disk."""
    from stepwatch import status as sockets
    from stepwatch import system, tables

    given = current()
    report = given.report()
    snapshots = [(path, answer) for path in sockets.sockets_in(system.runtime_dir()) if (answer := sockets.ask(path, "status")) is not None]
    if given.json:
        if snapshots:
            report.result_json(snapshots[0][1] | ({"daemons": [answer for _, answer in snapshots]} if len(snapshots) > 1 else {}))
        else:
            report.result_json({"schema": 1, "daemon": None, "folders": [], "runs": [summary_facts(one) for one in recorded_runs(report)]})
        return 0
    if not snapshots:
        report.note("no daemon is running; this is what its receipts say")
        report.show(tables.summary_table(recorded_runs(report)[: tables.SHOWN]))
        return 0
    if following:
        path = snapshots[0][0]
        with stoppable(report) as stop:
            follow(report, lambda: sockets.ask(path, "status"), stop)
        return 0
    for _, answer in snapshots:
        report.show(tables.snapshot_table(answer))
    return 0


# -- runs


@click.group()
@everywhere
def runs() -> None:
    """List and show runs; retry, discard, or restore one."""


def recorded_runs(report: Report) -> list[Summary]:
    """Every run that has a receipt, the one seen last first."""
    with receipts(report) as ledger:
        return sorted(ledger.summaries(), key=lambda one: -one.updated)


@contextlib.contextmanager
def receipts(report: Report) -> Iterator[Ledger]:
    """The receipts, open as long as they are needed."""
    from stepwatch import system
    from stepwatch.ledger import open_receipts

    ledger = open_receipts(system.state_dir())
    try:
        for note in ledger.notes:
            report.note(note, level="warning")
        yield ledger
    finally:
        ledger.close()


def summary_facts(summary: Summary) -> dict[str, object]:
    """One run of ``runs list --json``."""
    return {
        "run": summary.run_id,
        "name": summary.name,
        "dir": summary.key.folder,
        "group": summary.key.group,
        "watched": summary.watched,
        "phase": summary.phase,
        "reason": summary.reason,
        "attempts": summary.attempts,
        "error": summary.error or None,
        "updated": summary.updated,
        "outputs": list(summary.outputs),
    }


def one_run(ledger: Ledger, named: str) -> Receipt:
    """The receipt of the run that a person names: by its id or name, or by its folder."""
    path = os.path.realpath(named)
    found = [one for one in ledger.summaries() if named in (one.run_id, one.name) or one.key.folder == path]
    if not found:
        raise UsageError(f"no run is recorded as {named}", hint="`stepwatch runs list` shows them all")
    if len(found) > 1:
        places = ", ".join(str(one.key) for one in found[:5])
        raise UsageError(f"{len(found)} runs are recorded as {named}: {places}", hint="name the folder of one of them")
    receipt = ledger.get(found[0].key)
    assert receipt is not None
    return receipt


@runs.command("list")
@click.option("--phase", metavar="PHASE", help="Only those in this phase, such as quarantined or held.")
@everywhere
def runs_list(phase: str | None) -> int:
    """List the runs that have been rendered, failed, or are held."""
    from stepwatch import tables

    given = current()
    report = given.report()
    found = [one for one in recorded_runs(report) if phase in (None, one.phase)]
    if given.json:
        report.result_json({"schema": 1, "runs": [summary_facts(one) for one in found]})
    elif found:
        report.show(tables.summary_table(found))
    else:
        report.note("no run is recorded" + (f" in phase {phase}" if phase else ""))
    return 0


@runs.command("show")
@click.argument("run")
@everywhere
def runs_show(run: str) -> int:
    """Show everything that is recorded of RUN (its id, name or folder)."""
    given = current()
    report = given.report()
    with receipts(report) as ledger:
        receipt = one_run(ledger, run)
    facts = receipt_facts(receipt)
    if given.json:
        report.result_json({"schema": 1, **facts})
        return 0
    import yaml

    report.result_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=120))
    return 0


def receipt_facts(receipt: Receipt) -> dict[str, object]:
    """A receipt for ``runs show``."""
    from stepwatch.core.model import Role

    return {
        "run": receipt.run_id,
        "name": receipt.name,
        "dir": receipt.key.folder,
        "group": receipt.key.group,
        "watched": receipt.watched,
        "phase": receipt.phase,
        "reason": receipt.reason,
        "attempts": {"count": receipt.attempts.count, "not_before": receipt.attempts.not_before, "error": receipt.attempts.error or None},
        "word": str(receipt.word) or None,
        "renders": [
            {
                "generation": render.generation,
                "at": render.at,
                "incomplete": render.incomplete,
                "outputs": [
                    {
                        "path": out.path,
                        "codec": out.codec,
                        "bytes": out.size,
                        "sha256": out.sha256,
                        "frames": out.pictures,
                        "superseded": out.superseded,
                    }
                    for out in render.outputs
                ],
                "frames": {role.value: sum(covered.role is role for covered in render.frames) for role in Role},
                "missing": list(render.missing),
                "cleanup": render.cleanup.intermediates,
                "cleared": render.cleared,
                "note": render.clear_note or None,
            }
            for render in receipt.renders
        ],
    }


def say_word(run: str, spoken: str, done: str) -> int:
    """Record what a person has said about a run, and tell the daemon to look."""
    from stepwatch import status as sockets
    from stepwatch import system
    from stepwatch.core.model import Word

    given = current()
    report = given.report()
    word = Word(spoken)
    with receipts(report) as ledger:
        receipt = one_run(ledger, run)
        ledger.set_word(receipt.key, word, mark_of(receipt))
    told = [path for path in sockets.sockets_in(system.runtime_dir()) if sockets.ask(path, "retry") is not None]
    if given.json:
        report.result_json({"schema": 1, "run": receipt.run_id, "word": str(word), "daemon": bool(told)})
        return 0
    report.result(f"{receipt.name}: {done}" + ("" if told else "; no daemon runs, so this counts when one does"))
    return 0


def mark_of(receipt: Receipt) -> str:
    """The fingerprint of the run's frames as they are now, for which the word is meant."""
    from stepwatch import visit
    from stepwatch.core.lifecycle import fingerprint

    service = current().service()
    resolve = visit.resolver(service=service, watched=Path(receipt.watched))
    found = [run for run, _ in visit.runs_at(Path(receipt.key.folder), resolve) if run.key == receipt.key]
    if not found:
        raise NoFramesError(f"the frames of run {receipt.name} are not in {receipt.key.folder} any more")
    return fingerprint(found[0])


@runs.command("retry")
@click.argument("run")
@everywhere
def runs_retry(run: str) -> int:
    """Have the daemon render RUN although it is held, ignored, or has failed too often."""
    return say_word(run, "retry", "it will be rendered")


@runs.command("discard")
@click.argument("run")
@everywhere
def runs_discard(run: str) -> int:
    """Have the daemon leave RUN alone as long as its frames stay as they are; no frame is touched."""
    return say_word(run, "discard", "it is left alone")


@runs.command("restore")
@click.argument("run")
@everywhere
def runs_restore(run: str) -> int:
    """Bring the frames of RUN back from the trash: by its id, name or former folder, or by its folder in the trash."""
    from stepwatch import trash

    given = current()
    report = given.report()
    watched, manifest = manifest_named(run, report)
    restored = trash.restore(watched, manifest)
    with contextlib.suppress(EnvironmentFault), receipts(report) as ledger:
        record_restored(ledger, manifest, restored)
    for kept in restored.kept:
        report.note(f"stays in the trash: {kept}", level="warning")
    if given.json:
        report.result_json({"schema": 1, "dir": str(restored.source), "frames": len(restored.frames), "kept": list(restored.kept)})
    else:
        report.note(f"{len(restored.frames)} frames are back")
        report.result(str(restored.source))
    return 1 if restored.kept else 0


def record_restored(ledger: Ledger, manifest: Manifest, restored: Restored) -> None:
    """Have the receipts know the frames as they are now, so that nobody renders or clears them again; a lost receipt costs a look."""
    from stepwatch.core.model import RunKey

    receipt = ledger.get(RunKey(folder=str(restored.source), group=manifest.group))
    render = next((one for one in reversed(receipt.renders if receipt else ()) if one.generation == manifest.generation), None)
    if receipt is None or render is None:
        return
    back = {frame.name: frame for frame in restored.frames}
    frames = tuple(replace(covered, frame=back.get(covered.frame.name, covered.frame)) for covered in render.frames)
    note = "its frames were brought back from the trash"
    ledger.update_render(receipt.key, render.generation, at=render.at, frames=frames, cleared=0, clear_note=note, phase="rendered")


def manifest_named(named: str, report: Report) -> tuple[Path, Manifest]:
    """Find in the trash what a person names, and the watched folder that it belongs to.

    The manifests are enough for a folder of the trash, wherever it has moved to, so that works without receipts too.
    """
    from stepwatch import trash
    from stepwatch.core.manifest import MANIFEST

    path = Path(os.path.abspath(named))
    if (path / MANIFEST).is_file():
        watched = Path(os.path.realpath(path)).parents[len(trash.TRASH)]
        found = [(watched, one) for one in trash.listing(watched) if one.place == path.name]
    else:
        found = [
            (watched, one)
            for watched in trash_owners(report)
            for one in trash.listing(watched)
            if named in (one.run_id, one.name) or one.source == str(path)
        ]
        found = [(watched, one) for watched, one in found if one.kind == "frames"] or found
    if not found:
        raise UsageError(f"the trash holds nothing of {named}", hint="`stepwatch runs list --phase cleared` shows whose frames it holds")
    if len(found) > 1:
        places = ", ".join(str(watched.joinpath(*trash.TRASH, one.place)) for watched, one in found[:5])
        raise UsageError(f"the trash holds {len(found)} of {named}: {places}", hint="name one of these folders")
    return found[0]


def trash_owners(report: Report) -> list[Path]:
    """Folders that may have a trash: the watched ones, and those of all receipts."""
    places = [Path(os.path.realpath(entry.path)) for entry in current().service().watch]
    with contextlib.suppress(EnvironmentFault):
        places += [Path(one.watched) for one in recorded_runs(report)]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


# -- prune


@click.command()
@click.option("--finished", metavar="DIR", help="Also clear the finished runs in DIR by today's policy, whatever it was when they were rendered.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@everywhere
def prune(finished: str | None, dry_run: bool) -> int:  # noqa: FBT001  # click calls by name
    """Empty the trash by policy."""
    from stepwatch import visit

    given = current()
    report = given.report()
    service = given.service()
    results: list[RunResult] = []
    code = 0
    if finished is not None:
        require_folder(finished)
        records = visit.open_records()
        with stoppable(report) as stop:
            for run, resolved in visit.runs_below(Path(finished), service=service):
                try:
                    result = visit.prune(run, resolved, observer=report, stop=stop, records=records, dry_run=dry_run)
                except RunError as error:
                    report.error(error)
                    code = error.exit_code
                else:
                    results += [result] if result is not None else []
        records.ledger.close()
    purged: list[Purged] = []
    for place in trash_owners(report):
        purged += visit.empty_trash(place, visit.resolver(service=service, watched=place), now=time.time(), dry_run=dry_run)
    if given.json:
        gone = [
            {"name": one.manifest.name, "place": one.manifest.place, "files": one.removed, "bytes": one.size, "kept": list(one.kept)}
            for one in purged
        ]
        report.result_json({"schema": 1, "cleared": [run_facts(one) for one in results], "purged": gone})
        return code
    would = "would be " if dry_run else ""
    for result in results:
        report.result(f"run {result.name}: {result.cleared} files {would}cleared" if result.cleared else f"run {result.name}: {result.reason}")
    for one in purged:
        report.result(f"run {one.manifest.name}: {one.removed} files ({one.size / 1e6:.1f} MB) {would}removed from the trash")
        for kept in one.kept:
            report.note(f"run {one.manifest.name}: stays in the trash: {kept}", level="warning")
    if not results and not purged:
        report.note("nothing is due")
    return code


# -- service


@click.group("service")
@everywhere
def service_group() -> None:
    """Run the daemon in the background: as a systemd user service, or what the system has in its place."""


def say_sentences(sentences: Sequence[str]) -> int:
    """Print what was done, and what is left to be done by hand."""
    given = current()
    report = given.report()
    if given.json:
        report.result_json({"schema": 1, "done": list(sentences)})
    else:
        for sentence in sentences:
            report.result_text(sentence)
    return 0


@service_group.command("install")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@everywhere
def service_install(dry_run: bool) -> int:  # noqa: FBT001  # click calls by name
    """Install the daemon as a service of this user, and start it."""
    from stepwatch import unit

    return say_sentences(unit.install(config=current().config, dry=dry_run))


@service_group.command("uninstall")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@everywhere
def service_uninstall(dry_run: bool) -> int:  # noqa: FBT001  # click calls by name
    """Stop the daemon and take its service away; frames, animations and receipts stay."""
    from stepwatch import unit

    return say_sentences(unit.uninstall(dry=dry_run))


@service_group.command("print")
@everywhere
def service_print() -> int:
    """Print the service as it would be installed."""
    from stepwatch import unit

    current().report().result_text(unit.text(config=current().config))
    return 0


COMMANDS: tuple[click.Command, ...] = (watch, demo, simulate, status, runs, prune, service_group)
