"""Results as text: a table for each case, and the one in the README."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
"""What stands around the table in the README."""


def case_text(result: Mapping[str, Any]) -> str:
    """All that was measured of one case."""
    headings, rows = _CASES.get(result["case"], _render_rows)(result)
    lines = [f"## {result['case']}: {result['what']}", ""]
    if "input" in result:
        lines += [f"{result['input']}, {result['rounds']} rounds", ""]
    lines += _table(headings, rows)
    lines += [f"{name}: not measured, {why}" for name, why in result["missing"].items()]
    lines += [f"goal: {sentence}" for sentence in result["goal"]]
    return "\n".join([*lines, ""])


def _render_rows(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    headings = ("", "s", "ratio", "CPU s", "ratio", "peak MB", "KB", "our bytes", "pictures", "duration", "SSIM", "5 %", "gate")
    ours = result["rows"][0]
    return headings, (
        (
            row["name"],
            f"{row['wall']:.2f}",
            "" if row is ours else f"{row['times_wall']:.2f}x",
            f"{row['cpu']:.2f}",
            "" if row is ours else f"{row['times_cpu']:.2f}x",
            f"{row['peak'] / 1e6:.0f}",
            f"{row['bytes'] / 1e3:.0f}",
            "" if row is ours else f"{row['bytes_of_ours']:.2f}x",
            str(row["pictures"]),
            f"{row['duration']:.3f}",
            f"{row['ssim']:.4f}",
            f"{row['ssim_low']:.4f}",
            "" if row is ours else "holds" if row["gate"] else "fails",
        )
        for row in result["rows"]
    )


def _startup_rows(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    return ("", "ms", "of an empty Python"), ((row["name"], f"{row['wall'] * 1e3:.0f}", f"{row['times']:.1f}x") for row in result["rows"])


def _known_rows(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    return ("", "median ms", "99 % ms", "CPU ms each"), (
        (row["name"], f"{row['median'] * 1e3:.1f}", f"{row['late'] * 1e3:.1f}", f"{row['cpu'] * 1e3:.1f}") for row in result["rows"]
    )


def _fact_rows(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    return ("", ""), ((row["name"], _value(row)) for row in result["rows"])


def _value(row: Mapping[str, Any]) -> str:
    if "seconds" in row:
        return f"{row['seconds']:.2f} s"
    if "bytes" in row:
        return f"{row['bytes'] / 1e6:.0f} MB"
    return f"{row['share']:.2%} of a core"


_CASES = {"startup": _startup_rows, "known": _known_rows, "overflow": _fact_rows, "idle": _fact_rows}


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown that can be read as it is."""
    cells = [list(headings), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
