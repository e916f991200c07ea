"""Results as text: a table for each case, and the one in the README."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
"""What stands around the table in the README."""


def case_text(result: Mapping[str, Any]) -> str:
    """All that was measured of one case."""
    headings, rows = _CASES.get(result["case"].partition("-")[0], _render_rows)(result)
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


def _live_rows(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    headings = (
        "",
        "ms",
        "worst ms",
        "Steps Animation after the run s",
        "ratio",
        "of a core meanwhile",
        "pictures",
        "duration",
        "SSIM",
        "theirs",
        "gate",
    )
    return headings, (
        (
            row["name"],
            f"{row['delay'] * 1e3:.0f}",
            f"{row['worst'] * 1e3:.0f}",
            f"{row['seed']:.2f}",
            f"{row['times']:.1f}x",
            f"{row['share']:.0%}",
            str(row["pictures"]),
            f"{row['duration']:.3f}",
            f"{row['ssim']:.4f}",
            f"{row['seed_ssim']:.4f}",
            "holds" if row["gate"] else "fails",
        )
        for row in result["rows"]
    )


def _hook_rows(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    return ("", "median ms", "worst ms", "ratio"), (
        (row["name"], f"{row['ms']:.2f}", f"{row['worst']:.2f}", f"{row['times']:.1f}x" if "times" in row else "") for row in result["rows"]
    )


def _fact_rows(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    return ("", ""), ((row["name"], _value(row)) for row in result["rows"])


def _value(row: Mapping[str, Any]) -> str:
    if "seconds" in row:
        return f"{row['seconds']:.2f} s"
    if "bytes" in row:
        return f"{row['bytes'] / 1e6:.0f} MB"
    return f"{row['share']:.2%} of a core"


_CASES = {
    "startup": _startup_rows,
    "known": _known_rows,
    "overflow": _fact_rows,
    "idle": _fact_rows,
    "live": _live_rows,
    "early": _live_rows,
    "hook": _hook_rows,
}


def write_readme(readme: Path, reports: Sequence[Mapping[str, Any]]) -> None:
    """Put a table of what was measured between the two marks of the README; a later report of a case takes the place of an earlier one."""
    results = {result["case"]: result for report in reports for result in report["results"]}
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{readme.name} has no {BEGIN} and {END}")
    page = "\n".join((_where(reports[-1]["machine"]), *_short(results)))
    readme.write_text(f"{before}{BEGIN}\n{page}\n{END}{after}", encoding="utf-8")


def _where(machine: Mapping[str, Any]) -> str:
    memory = f"{machine['memory'] / 2**30:.0f} GB"
    versions = f"Python {machine['python']}, ffmpeg {machine['ffmpeg']}; the others with ffmpeg {machine['ffmpeg of the others']}"
    return f"{machine['date']}, {machine['cores']} cores ({machine['processor']}), {memory}, {machine['system']}; {versions}."


def _short(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line for each comparison, then one for each other figure."""
    lines: list[tuple[str, ...]] = []
    for result in results.values():
        if "input" in result and "ssim_low" in result["rows"][0]:
            ours, *others = result["rows"]
            lines += (
                (
                    f"{result['what']} ({result['input']})",
                    row["name"],
                    f"{ours['wall']:.2f} s / {row['wall']:.2f} s",
                    f"**{row['times_wall']:.1f}x**",
                    f"{row['times_cpu']:.1f}x",
                    f"{row['bytes_of_ours']:.2f}x",
                    f"{ours['peak'] / 1e6:.0f} / {row['peak'] / 1e6:.0f} MB",
                    f"{ours['ssim']:.4f} / {row['ssim']:.4f}",
                )
                for row in others
            )
    if lines:
        yield ""
        yield from _table(("animation", "beside", "time, ours / theirs", "faster", "less CPU", "our bytes", "memory", "SSIM, ours / theirs"), lines)
    others = [result for result in results.values() if not ("input" in result and "ssim_low" in result["rows"][0])]
    for result in others:
        headings, rows = _CASES[result["case"].partition("-")[0]](result)
        yield ""
        yield from _table((result["what"], *headings[1:]), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown that can be read as it is."""
    cells = [list(headings), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
