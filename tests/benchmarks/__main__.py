"""How fast is stepwatch, and compared with what: ``./dev python -m tests.benchmarks render``.

Every number comes from this machine, now: stepwatch and the others take turns, round after round, so that whatever else slows the machine slows
all of them. Medians are shown. A ratio is what the other took, divided by what stepwatch took, round by round. SSIM is that of the finished file
against the exact timeline; the gate holds where stepwatch's file is as long as was asked, to the millisecond, and its SSIM not more than 0.0005
below the other's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepwatch.encoder import find_ffmpeg
from tests.benchmarks import daemon, inputs, live, render, startup, tables
from tests.benchmarks.measuring import CommandFailedError, machine

PARTS = ("render", "live", "daemon", "startup", "hook")


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.what == "table":
        if not given.json:
            raise SystemExit("table: name the files with --json FILE; may be repeated")
        tables.write_readme(inputs.ROOT / "README.md", [json.loads(path.read_text(encoding="utf-8")) for path in given.json])
        return 0
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stepwatch-benchmark-", dir=given.scratch)))
        theirs = given.ffmpeg or shutil.which("ffmpeg") or find_ffmpeg()
        ours = given.ffmpeg or find_ffmpeg()
        report: dict[str, Any] = {"schema": 1, "machine": {**machine(), "ffmpeg": _version(ours), "ffmpeg of the others": _version(theirs)}}
        _say("\n".join(f"{what}: {value}" for what, value in report["machine"].items()) + "\n")
        results = report["results"] = []
        try:
            for part in PARTS if given.what == "all" else (given.what,):
                for result in _results(part, given, scratch, ours=ours, theirs=theirs):
                    results.append(result)
                    _say(tables.case_text(result))
        except CommandFailedError as failed:
            _say(f"stepped out: {failed}")
            return 1
        finally:
            for path in given.json:
                path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _results(part: str, given: argparse.Namespace, scratch: Path, *, ours: str, theirs: str) -> Iterator[dict[str, Any]]:
    rounds = 1 if given.quick else given.rounds
    match part:
        case "render":
            yield from render.run(
                origin=given.input or inputs.default(),
                scratch=scratch,
                names=given.case,
                rounds=rounds,
                quick=given.quick,
                side=given.side,
                ours=ours,
                theirs=theirs,
                settings=given.set,
            )
        case "live":
            yield from live.run(
                origin=given.input or inputs.default(),
                scratch=scratch,
                names=given.case,
                rounds=rounds,
                quick=given.quick,
                ours=ours,
                theirs=theirs,
                settings={"live": "off"} if "live=off" in given.set else {},
            )
        case "hook":
            yield from _hook(rounds=rounds, quick=given.quick, scratch=scratch)
        case "daemon":
            yield from daemon.run(scratch=scratch, quick=given.quick, names=given.case)
        case "startup":
            yield from startup.run(scratch=scratch, rounds=rounds)


def _hook(**given: Any) -> Iterator[dict[str, Any]]:
    """What a hook costs its host; the hosts' own packages are large, and nothing else needs them."""
    try:
        hook = importlib.import_module("tests.benchmarks.hook")
        results = list(hook.run(**given))
    except ImportError as missing:
        _say(f"hook: not measured, {missing}; it needs the packages of the host that the hook is for, in this environment\n")
    else:
        yield from results


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    first, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=first, epilog=rest)
    known = {
        "render": [case.name for case in render.CASES],
        "live": [case.name for case in live.CASES],
        "daemon": ["known", "overflow", "idle"],
    }
    cases = "; ".join(f"{part}: {', '.join(names)}" for part, names in known.items())
    parser.add_argument("what", choices=(*PARTS, "all", "table"), help="what to measure; table: write what --json has kept into the README")
    parser.add_argument("--input", type=Path, metavar="DIR", help="a run of your own; else a long one beside the project, else the sample run")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help=f"only this; may be repeated. {cases}")
    parser.add_argument("--side", type=int, metavar="N", help="scale the frames to N pixels at their longer side, for render")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="3 unless said")
    parser.add_argument("--quick", action="store_true", help="one round of a few tiny frames: whether it runs, not how fast")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="try stepwatch with another policy")
    parser.add_argument("--ffmpeg", metavar="PATH", help="for everybody; else stepwatch's own choice for it, and the one on PATH for the others")
    parser.add_argument("--json", type=Path, action="append", default=[], metavar="FILE", help="write all of it down")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where the work is done; else where temporary files go")
    return parser


def _version(ffmpeg: str) -> str:
    said = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout
    return said.split()[2]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
