"""What ``stepwatch --help`` says, without the command line itself: importing that takes several times as long as starting Python.

The commands read this page too, so that there is one; a test holds every line of it against the command that it is about.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

USAGE = "Usage: stepwatch [OPTIONS] COMMAND [ARGS]..."
ABOUT = "Turn the step frames of diffusion runs into verified animations."
MORE = (
    "stdout carries the result, a path or JSON; stderr the log and the progress. No frame is ever changed, and none goes away unless a policy or "
    "you say so, and an animation that was proved to contain it is safe on the disk."
)
OPTIONS: Mapping[str, str] = {
    "-c, --config FILE": "Read this service file instead of the usual one.",
    "--json": "Print the result as one JSON object.",
    "-q, --quiet": "Log errors only.",
    "-v, --verbose": "Log everything, ffmpeg's command and output too.",
    "--version": "Show the version and exit.",
    "-h, --help": "Show this message and exit.",
}
COMMANDS: Mapping[str, str] = {
    "completion": "Print the lines that teach SHELL to complete stepwatch's commands and options.",
    "config": "Write, check and show the YAML files that hold the policy.",
    "demo": "Show a daemon at work: a simulated hook plays a real run into ./stepwatch-demo/, and its animation is there when it ends.",
    "doctor": "Check ffmpeg and its encoders, the configuration, the watched folders and the disk, the hooks, the receipts and the daemon.",
    "hook": "Install the hooks, which have a host write its steps for stepwatch.",
    "inspect": "Show the runs in DIR: frames, holes, damage, policy, what would be rendered, and what the daemon would do next.",
    "prune": "Empty the trash by policy.",
    "render": "Render the runs in DIR: a run, a folder of runs, or a flat folder of several.",
    "runs": "List and show runs; retry, discard, or restore one.",
    "service": "Run the daemon in the background: as a systemd user service, or what the system has in its place.",
    "simulate": "Play a recorded run into DIR as a hook would, to try a policy or a daemon on it.",
    "status": "Show what the daemon does: folders, runs with phase and reason, queue, progress, disk.",
    "watch": "Watch folders and render every run in them: the daemon, in the foreground.",
}
END = (
    "Exit codes: 0 done, 1 a render failed, 2 usage, 66 no frames there, 69 ffmpeg or an encoder is missing, 75 busy, 78 bad configuration, "
    "130 interrupted. Several runs end with the gravest: 130, 2, 78, 69, 1, 75, 66."
)
WIDEST = 120
"""Columns; longer lines are hard to read."""


def overview(columns: int) -> str:
    """The page for a terminal of so many columns."""
    import textwrap

    width = max(min(columns, WIDEST) - 2, 50)

    def indented(text: str) -> str:
        return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ")

    def listed(title: str, lines: Mapping[str, str]) -> str:
        room = max(map(len, lines)) + 4
        told = (textwrap.fill(text, width, initial_indent=f"  {name}".ljust(room), subsequent_indent=" " * room) for name, text in lines.items())
        return "\n".join((f"{title}:", *told))

    parts = (USAGE, indented(ABOUT), indented(MORE), listed("Options", OPTIONS), listed("Commands", COMMANDS), indented(END))
    return "\n\n".join(parts) + "\n"


def columns() -> int:
    """How wide the terminal is, as `shutil.get_terminal_size` would say; that is slow to import."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        assert sys.__stdout__ is not None
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80
    except (AssertionError, OSError, ValueError):
        return 80
