"""What ``status`` and ``runs`` show: the daemon's snapshot, and receipts, as tables for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepwatch.core.naming import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stepwatch.ledger import Summary

_STYLE = {
    "rendering": "bold cyan",
    "recording": "cyan",
    "complete": "green",
    "rendered": "green",
    "cleared": "green",
    "stalled": "yellow",
    "interrupted": "yellow",
    "failed": "yellow",
    "held": "yellow",
    "render-failed": "red",
    "quarantined": "bold red",
    "ignored": "dim",
    "watching": "green",
    "polling": "green",
    "paused": "yellow",
    "asleep": "yellow",
}
SHOWN = 20
"""Runs in the table; the line below it tells of the others."""


def _word(word: str) -> Text:
    return Text(word, style=_STYLE.get(word, ""))


def _text(value: object) -> Text:
    return Text(printable(str(value)))


def snapshot_table(snapshot: Mapping[str, Any]) -> RenderableType:
    """The daemon: its folders, and the runs that are not at rest."""
    parts: list[RenderableType] = []
    folders = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("folder", "state", "file system", "waiting", "free", ""):
        folders.add_column(column, overflow="fold")
    for folder in snapshot["folders"]:
        free = f"{folder['free_bytes'] / 1e9:.1f} GB" if folder["free_bytes"] is not None else ""
        # A daemon of an earlier version says nothing of it.
        look = folder.get("first_look")
        first = f"first look: {look['done']:,} of {look['found']:,} folders" if look else ""
        why = "; ".join(filter(None, (first, folder["reason"])))
        folders.add_row(_text(folder["path"]), _word(folder["state"]), _text(folder["file_system"]), str(folder["waiting"]), free, _text(why))
    parts.append(folders)
    runs = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "phase", "progress", "why"):
        runs.add_column(column, overflow="fold")
    for run in snapshot["runs"][:SHOWN]:
        runs.add_row(_text(run["name"]), _word(run["phase"]), _progress(run["progress"]), _text(run["reason"]))
    if snapshot["runs"]:
        parts += [Text(), runs]
    more = f", {snapshot['active'] - SHOWN} more active" if snapshot["active"] > SHOWN else ""
    parts += [Text(), Text(f"{snapshot['rendering']} rendering, {snapshot['waiting']} waiting, {snapshot['at_rest']} at rest{more}")]
    return Group(*parts)


def _progress(outputs: Iterable[Mapping[str, Any]]) -> RenderableType:
    rows = Table.grid(padding=(0, 1))
    for output in outputs:
        bar = ProgressBar(total=max(output["total"], 1), completed=min(output["done"], output["total"]), width=20)
        rows.add_row(_text(output["label"]), bar, f"{output['done']}/{output['total']}")
    return rows


def summary_table(summaries: Iterable[Summary]) -> RenderableType:
    """Runs as their receipts tell of them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "phase", "seen", "animation", "why"):
        table.add_column(column, overflow="fold")
    for summary in summaries:
        seen = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.updated)) if summary.updated else ""
        outputs = "\n".join(printable(Path(path).name) for path in summary.outputs)
        why = summary.error if summary.error and summary.phase not in ("rendered", "cleared") else summary.reason
        table.add_row(_text(summary.name), _word(summary.phase), seen, Text(outputs), _text(why))
    return table
