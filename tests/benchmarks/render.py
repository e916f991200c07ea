"""From a folder of frames to a finished animation: stepwatch and what people use instead, one after the other, round after round.

stepwatch's time is that of its whole process: Python's start, every frame read, digested and decoded, the finished file decoded again and held
against its frames, and published. Nobody else does the latter.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from stepwatch.core.codecs import CODECS
from tests.benchmarks import peers
from tests.benchmarks.inputs import Frames, prepare
from tests.benchmarks.measuring import CommandFailedError, Measured, measure, ratio
from tests.benchmarks.peers import Job, Peer
from tests.benchmarks.program import Program
from tests.benchmarks.quality import SLACK, Judged, judge

GATE = 0.0005
"""SSIM by which stepwatch may be below somebody else, at most."""
OURS = "stepwatch"

SLOW_RATE = Fraction(10, 3)
"""Images a second: 100 of them make the 30 s of *Steps Animation*'s own table."""
QUICK_IMAGES = 6
QUICK_SIDE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """How far ahead of the first peer stepwatch means to be; None: no matter."""

    wall: float | None = None
    cpu: float | None = None
    size: float | None = None
    """Its bytes, as a part of theirs, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of animation, and who else makes it."""

    name: str
    codec: str
    suffix: str
    interpolation: str
    others: tuple[Peer, ...]
    rate: Fraction = SLOW_RATE
    goal: Goal = Goal()
    slow: bool = False
    """Only where it is asked for by name: it takes minutes."""
    count: int | None = None
    """Images; None: as many as there are."""


CASES = (
    Case(
        name="h264-blend",
        codec="h264",
        suffix=".mp4",
        interpolation="blend",
        others=(peers.SEED, peers.FRAMERATE, peers.TMIX),
        goal=Goal(wall=4, cpu=4.5, size=0.85),
    ),
    Case(
        name="h264-none",
        codec="h264",
        suffix=".mp4",
        interpolation="none",
        others=(peers.SEED, peers.VIDEO_COMBINE),
        goal=Goal(wall=3, size=1.0),
    ),
    Case(name="h265-blend", codec="h265", suffix=".mp4", interpolation="blend", others=(peers.SEED,), goal=Goal(wall=2, size=1.0)),
    Case(name="av1-blend", codec="av1", suffix=".mp4", interpolation="blend", others=(peers.SEED,), goal=Goal(wall=4, size=0.75)),
    Case(name="vp9-blend", codec="vp9", suffix=".webm", interpolation="blend", others=(peers.SEED,), goal=Goal(wall=3.5, size=1.0)),
    Case(name="prores-blend", codec="prores", suffix=".mov", interpolation="blend", others=(peers.SEED,), goal=Goal(wall=3.5, size=1.0)),
    Case(
        name="gif",
        codec="gif",
        suffix=".gif",
        interpolation="none",
        others=(peers.PALETTE, peers.PALETTE_BAYER, peers.PILLOW),
        rate=Fraction(10),
        goal=Goal(wall=3),
    ),
    Case(
        name="webp",
        codec="webp",
        suffix=".webp",
        interpolation="none",
        others=(peers.PILLOW, peers.IMG2WEBP, peers.LIBWEBP_ANIM),
        rate=Fraction(10),
        goal=Goal(wall=5),
    ),
    Case(name="apng", codec="apng", suffix=".apng", interpolation="none", others=(peers.APNG,), rate=Fraction(10)),
    Case(
        name="mci", codec="h264", suffix=".mp4", interpolation="mci", others=(peers.SEED,), rate=Fraction(2), goal=Goal(wall=3), slow=True, count=20
    ),
    Case(
        name="growth",
        codec="h264",
        suffix=".mp4",
        interpolation="blend",
        others=(peers.SEED,),
        rate=Fraction(10),
        slow=True,
        count=5000,
    ),
)
QUICK = ("h264-blend", "h264-none", "gif", "webp")


def run(
    *, origin: Path, scratch: Path, names: Sequence[str], rounds: int, quick: bool, side: int | None, ours: str, theirs: str, settings: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Measure the cases with these *names*, all but the slow ones when there are none; yields each as it is done."""
    program = Program.at(scratch / "home", ours)
    measure(program.command("config", "validate"), environment=program.environment)
    measure([theirs, "-version"])
    for case in CASES:
        if case.name in names or (not names and not case.slow and (not quick or case.name in QUICK)):
            frames = prepare(origin, scratch, count=QUICK_IMAGES if quick else case.count, side=QUICK_SIDE if quick else side)
            yield _measure_case(case, frames, scratch, rounds=rounds, quick=quick, program=program, theirs=theirs, settings=settings)


def _measure_case(
    case: Case, frames: Frames, scratch: Path, *, rounds: int, quick: bool, program: Program, theirs: str, settings: Sequence[str]
) -> dict[str, Any]:
    def job(number: int) -> Job:
        out = scratch / f"{case.name}-{number}{case.suffix}"
        return Job(frames=frames, rate=case.rate, codec=case.codec, interpolation=case.interpolation, ffmpeg=theirs, out=out)

    jobs = {name: job(number) for number, name in enumerate([OURS, *(peer.name for peer in case.others)])}
    missing = {peer.name: why for peer in case.others if (why := peer.missing(jobs[peer.name]))}
    commands = {OURS: program.command(*_arguments(jobs[OURS], settings))}
    commands |= {peer.name: peer.command(jobs[peer.name]) for peer in case.others if peer.name not in missing}
    taken: dict[str, list[Measured]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            if name in missing:
                continue
            jobs[name].out.unlink(missing_ok=True)
            try:
                taken[name].append(measure(command, environment=program.environment, memory=not number))
            except CommandFailedError as failed:
                if name == OURS:
                    raise
                missing[name] = str(failed)
    there = [name for name in commands if name not in missing]
    judged = {name: _judge(jobs[name]) for name in there}
    sizes = {name: jobs[name].out.stat().st_size for name in there}
    wanted = frames.count / case.rate
    rows = [_row(name, taken, judged, sizes, wanted) for name in there]
    return {
        "case": case.name,
        "what": f"{case.codec} {case.interpolation}, {float(wanted):g} s",
        "input": frames.origin,
        "rounds": rounds,
        "rows": rows,
        "missing": missing,
        "goal": _held(case.goal, rows[1]) if len(rows) > 1 and not quick else [],
    }


def _arguments(job: Job, settings: Sequence[str]) -> list[str]:
    """stepwatch's own choice of everything but what makes the animations comparable."""
    # Everybody's animated images have one picture for each image.
    fps = job.rate if CODECS[job.codec].tags == "embedded" else Fraction(peers.FPS)
    chosen = [
        f"timeline.duration={float(job.frames.count * 1000 / job.rate):g}ms",
        f"timeline.fps={fps}",
        f"timeline.interpolation={job.interpolation}",
        "timeline.hold_last=0s",
        f"outputs=[{{codec: {job.codec}}}]",
        *settings,
    ]
    return ["render", str(job.frames.folder), "-o", str(job.out), "--force", "-q", *(part for one in chosen for part in ("--set", one))]


def _judge(job: Job) -> Judged:
    # Motion has no exact timeline; where an image is shown as it is, it has.
    return judge(job.out, job.frames, rate=job.rate, interpolation=job.interpolation, ffmpeg=job.ffmpeg)


def _row(
    name: str, taken: Mapping[str, Sequence[Measured]], judged: Mapping[str, Judged], sizes: Mapping[str, int], wanted: Fraction
) -> dict[str, Any]:
    mine, ours, quality = taken[name], taken[OURS], judged[name]
    return {
        "name": name,
        "wall": statistics.median(one.wall for one in mine),
        "cpu": statistics.median(one.cpu for one in mine),
        "peak": max(one.peak for one in mine),
        "bytes": sizes[name],
        "pictures": quality.pictures,
        "duration": float(quality.duration),
        "ssim": quality.ssim,
        "ssim_low": quality.ssim_low,
        "times_wall": ratio([one.wall for one in mine], [one.wall for one in ours]),
        "times_cpu": ratio([one.cpu for one in mine], [one.cpu for one in ours]),
        "bytes_of_ours": sizes[OURS] / sizes[name],
        "gate": judged[OURS].ssim >= quality.ssim - GATE and abs(judged[OURS].duration - wanted) <= SLACK,
    }


def _held(goal: Goal, row: Mapping[str, Any]) -> list[str]:
    """What was aimed at and what came of it, against the first of the others."""
    told = []
    for wanted, got, what in ((goal.wall, row["times_wall"], "faster"), (goal.cpu, row["times_cpu"], "less processor time")):
        if wanted is not None:
            told.append(f"{got:.2f}x {what}, goal {wanted:g}x: {'met' if got >= wanted else 'missed'}")
    if goal.size is not None:
        told.append(f"{row['bytes_of_ours']:.2f}x the bytes, goal {goal.size:g}x: {'met' if row['bytes_of_ours'] <= goal.size else 'missed'}")
    return told
