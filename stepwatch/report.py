"""What people and programs read: results on stdout, the log and the progress bar on stderr. The only module that prints.

Names and prompts come from anywhere, so no text reaches a terminal but through ``printable``; and a reader that went away, a closed stderr
or a terminal that knows no Unicode never stops the work.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TextIO

from stepwatch.core.naming import printable
from stepwatch.errors import ConfigError, EncodeError, EnvironmentFault, StepwatchError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from stepwatch.core.result import OutputResult, RunResult

_RANK: Mapping[str, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_PRIORITY: Mapping[str, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}
"""As syslog counts, which is how journald takes them in front of a line."""
_COLOUR: Mapping[str, str] = {"debug": "2", "info": "", "warning": "33", "error": "31"}

SHOW_CURSOR = b"\x1b[?25h"


@dataclass(slots=True, kw_only=True)
class _Sink:
    """A stream that may be closed, broken, or unable to write some letters."""

    stream: TextIO | None

    def write(self, text: str) -> None:
        """Write and flush *text*; raises OSError when nobody can receive it."""
        if self.stream is None:
            return
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self.stream.flush()

    @property
    def terminal(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False


def _is_journal(stream: TextIO | None) -> bool:
    """Whether a stream leads to systemd's journal, which tells by JOURNAL_STREAM where it listens."""
    try:
        facts = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):
        return False
    return facts is not None and os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def _now() -> datetime:
    return datetime.now().astimezone()


def planned_line(output: OutputResult) -> str:
    """What an output is, or will be, in one line."""
    return f"{output.codec}, {output.width}x{output.height}, {output.frames} pictures, {float(output.duration):.3f} s: {output.path}"


def planned_facts(output: OutputResult) -> dict[str, object]:
    """The same for JSON: what is known of an output before there is a file."""
    return {
        "path": output.path,
        "codec": output.codec,
        "width": output.width,
        "height": output.height,
        "frames": output.frames,
        "duration": round(float(output.duration), 6),
        "motion": output.motion,
    }


def output_facts(output: OutputResult) -> dict[str, object]:
    """One output of ``render --json``."""
    return planned_facts(output) | {"bytes": output.bytes, "sha256": output.sha256, "error": output.error, "exists": output.exists}


def run_facts(result: RunResult) -> dict[str, object]:
    """One run of ``render --json``."""
    facts: dict[str, object] = {
        "run": result.run,
        "name": result.name,
        "dir": result.folder,
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


class _Lines(logging.Handler):
    """What the modules log, as lines of a report."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        # What the receipts have to tell is told by whoever opens them.
        if record.name == "stepwatch.ledger":
            return
        trace = "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
        level = record.levelname.lower()
        self._report.note(record.getMessage() + trace, level=level if level in _RANK else "error")


class Report:
    """Where a command says what it does and what came of it; what ``visit`` calls an observer."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, log: Literal["text", "json"] = "text", daemon: bool = False) -> None:
        self.verbose = verbose
        self._json = log == "json"
        self._journal = daemon and not self._json and _is_journal(sys.stderr)
        self._timed = daemon and not self._journal
        self._least = "error" if quiet else "debug" if verbose else "info"
        self._out = _Sink(stream=sys.stdout)
        self._log = _Sink(stream=sys.stderr)
        self._coloured = self._log.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._bar_wanted = self._log.terminal and not quiet and not self._json and os.environ.get("TERM") != "dumb"
        self._bar: Progress | None = None
        self._tasks: dict[tuple[str, str], TaskID] = {}
        # The feeder and the readers of ffmpeg's pipes are threads, and all of them talk.
        self._lock = threading.RLock()

    @property
    def terminal(self) -> bool:
        """Whether results and log go to a person's terminal."""
        return self._out.terminal and self._log.terminal and os.environ.get("TERM") != "dumb"

    # -- results: stdout

    def result(self, line: str) -> None:
        """Print one line of the result.

        When its reader has gone away the work goes on and the lines go nowhere; any other trouble is an error, for a result was lost.
        """
        try:
            self._out.write(printable(line) + "\n")
        except BrokenPipeError:
            self._silence_stdout()
        except OSError as error:
            self._silence_stdout()
            raise EnvironmentFault(f"standard output cannot be written: {error.strerror}") from error

    def result_json(self, value: object) -> None:
        """Print *value* as one JSON object, all in ASCII, which also carries names that are no Unicode."""
        self.result(json.dumps(value, ensure_ascii=True, allow_nan=False))

    def result_text(self, text: str) -> None:
        """Print *text* of several lines."""
        for line in text.rstrip("\n").split("\n"):
            self.result(line)

    def _silence_stdout(self) -> None:
        self._out.stream = None
        # Python flushes stdout once more when it ends and would complain then.
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            sys.stdout = None  # that is what Python itself does where there is none

    # -- the log: stderr

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None:
        """Log one sentence about a run."""
        self._say(f"run {run_name}: {sentence}" if run_name else sentence, level, run=run_name, message=sentence)

    def note(self, sentence: str, *, level: str = "info") -> None:
        """Log one sentence about the work as a whole; a line break in it starts another line."""
        self._say(sentence, level, run="", message=sentence)

    def _say(self, sentence: str, level: str, *, run: str, message: str) -> None:
        if _RANK[level] < _RANK[self._least]:
            return
        with self._lock:
            if self._json:
                facts = {"time": _now().isoformat(timespec="milliseconds"), "level": level, "message": message} | ({"run": run} if run else {})
                self._write_log(json.dumps(facts, ensure_ascii=True))
                return
            before = f"<{_PRIORITY[level]}>" if self._journal else f"{_now():%H:%M:%S} " if self._timed else ""
            colour = _COLOUR[level] if self._coloured else ""
            for line in sentence.split("\n"):
                text = before + printable(line)
                self._write_log(f"\x1b[{colour}m{text}\x1b[0m" if colour else text)

    @contextlib.contextmanager
    def logged(self) -> Iterator[None]:
        """Take over what the modules log: left to itself, Python would write it to stderr in a form that no journal or program expects."""
        logger = logging.getLogger("stepwatch")
        lines, before = _Lines(self), logger.level
        logger.addHandler(lines)
        logger.setLevel(logging.DEBUG if self.verbose else logging.WARNING)
        try:
            yield
        finally:
            logger.removeHandler(lines)
            logger.setLevel(before)

    def error(self, error: StepwatchError) -> None:
        """Log what went wrong and what can be done about it."""
        if isinstance(error, ConfigError):
            for complaint in error.complaints:
                self.note(complaint, level="error")
        else:
            self.note(f"stepwatch: {error.message}", level="error")
        if isinstance(error, EncodeError) and error.stderr and self.verbose:
            self.note(error.stderr, level="debug")
        if error.hint:
            self.note(f"  hint: {error.hint}", level="error")
        if self.verbose and error.__cause__ is not None:
            self.note("".join(traceback.format_exception(error.__cause__)).rstrip(), level="debug")

    def _write_log(self, line: str) -> None:
        try:
            if self._bar is not None:
                from rich.text import Text

                # Through rich, which puts the line above the bar.
                self._bar.console.print(Text.from_ansi(line), soft_wrap=True)
            else:
                self._log.write(line + "\n")
        except (OSError, ValueError):
            # Nobody listens any more. The frames matter, the log does not.
            self._bar_wanted = False
            self._log.stream = None

    # -- progress: stderr, and only on a terminal

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None:
        """Show that *done* of *total* pictures of an output are encoded, *speed* times as fast as they play."""
        if not self._bar_wanted:
            return
        with self._lock:
            try:
                bar = self._bar or self._start_bar()
                task = self._tasks.get((run_name, label))
                if task is None:
                    task = self._tasks[run_name, label] = bar.add_task(printable(f"{run_name} {label}"), total=total, speed="")
                bar.update(task, completed=done, total=total, speed=f"{speed:.1f}x" if speed else "")
            except (OSError, ValueError):
                self._bar_wanted = False

    def finished(self, run_name: str) -> None:
        """Take a run's bars away."""
        with self._lock:
            for key in [key for key in self._tasks if key[0] == run_name]:
                task = self._tasks.pop(key)
                if self._bar is not None:
                    self._bar.remove_task(task)
            if not self._tasks:
                self.close()

    # -- pictures that change: stdout, and only on a terminal

    def show(self, renderable: RenderableType) -> None:
        """Print a table; without a terminal as plain text of 100 columns."""
        from io import StringIO

        from rich.console import Console

        if self._out.terminal:
            self._console().print(renderable)
            return
        text = StringIO()
        Console(file=text, width=100, color_system=None, highlight=False).print(renderable)
        self.result_text(text.getvalue())

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[RenderableType], None]]:
        """Show one picture in the place of the one before; without a terminal, one below the other."""
        if not self._out.terminal:
            yield self.show
            return
        from rich.live import Live

        with Live(console=self._console(), auto_refresh=False, transient=False) as live:
            yield lambda renderable: live.update(renderable, refresh=True)

    def _console(self) -> Console:
        from rich.console import Console

        return Console(highlight=False, markup=False, emoji=False)

    def _start_bar(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("frames"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True, highlight=False, markup=False, emoji=False),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar.start()
        return self._bar

    def close(self) -> None:
        """Take the bar away; whatever is said later stands on plain lines."""
        with self._lock:
            bar, self._bar = self._bar, None
            self._tasks.clear()
            if bar is not None:
                try:
                    bar.stop()
                except (OSError, ValueError):
                    self._bar_wanted = False

    def restore_terminal(self) -> None:
        """Bring the cursor back, at once and without a lock: for a process that is about to end."""
        if self._bar is not None:
            try:
                os.write(2, b"\r" + SHOW_CURSOR + b"\n")
            except OSError:
                self._bar_wanted = False
