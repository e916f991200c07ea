"""What every command takes, and how all of them end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from stepwatch import __version__
from stepwatch.errors import Interrupted, NoFramesError, UsageError
from stepwatch.report import Report

if TYPE_CHECKING:
    from stepwatch.core.policy import ServiceConfig

SEVERITY = (0, 66, 75, 1, 69, 78, 2, 130)
"""Exit codes from harmless to final: several runs, or several folders, end with the one that comes last here."""

Command = TypeVar("Command", bound=Callable[..., Any])


def worst(codes: Sequence[int]) -> int:
    """The exit code that tells most about *codes*."""
    return max(codes, key=lambda code: SEVERITY.index(code) if code in SEVERITY else SEVERITY.index(1), default=0)


@dataclass(slots=True)
class Settings:
    """The options that may stand before or behind the command's name."""

    config: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def report(self, *, log: Literal["text", "json"] = "text", daemon: bool = False) -> Report:
        if self.quiet and self.verbose:
            raise UsageError("-q and -v contradict each other")
        return Report(quiet=self.quiet, verbose=self.verbose, log=log, daemon=daemon)

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


def current() -> Settings:
    return click.get_current_context().find_root().ensure_object(Settings)


def require_folder(folder: str) -> None:
    """Raise NoFramesError unless *folder* is a folder that can be entered."""
    if not os.path.exists(folder):
        raise NoFramesError(f"{folder} does not exist")
    if not os.path.isdir(folder):
        raise NoFramesError(f"{folder} is not a folder", hint="name the folder that holds the frames")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise NoFramesError(f"{folder} may not be read by this user")


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
