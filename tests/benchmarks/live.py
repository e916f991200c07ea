"""From the last frame to the published animation, with a daemon that watches while the run goes on, beside a render after the run.

A real ``stepwatch watch``, a real run played into its folder frame by frame as a hook writes one. The time counts from the last write of the last
frame to when the animation stands under its name, verified; the processor's share is that of the daemon and all its children while frames come.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from stepwatch import simulate
from tests.benchmarks import peers
from tests.benchmarks.daemon import PATIENCE, Watching
from tests.benchmarks.inputs import Frames, prepare
from tests.benchmarks.measuring import measure, ratio
from tests.benchmarks.peers import Job
from tests.benchmarks.quality import SLACK, judge
from tests.benchmarks.render import GATE

SECONDS = 30
"""Length of the animations."""
POLL = 0.001
"""Seconds between two looks for the animation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way in which a run is written while the daemon watches."""

    name: str
    side: int
    cadence: float
    times: float
    """How often its delay must go into the render after the run: the goal."""
    within: float | None = None
    """Seconds that the delay may be at most."""
    share: float | None = None
    """Of one core, while frames come."""
    interpolation: str = "blend"
    stop_after: int | None = None
    early_end: str = "rerender"


CASES = (
    Case(name="live-512", side=512, cadence=0.1, times=50, within=0.15, share=0.4),
    Case(name="live-1024", side=1024, cadence=0.2, times=50, within=0.25),
    Case(name="early-none", side=512, cadence=0.1, times=20, interpolation="none", stop_after=60),
    Case(name="early-retime", side=512, cadence=0.1, times=20, stop_after=60, early_end="retime"),
)
QUICK = (Case(name="live-quick", side=64, cadence=0.02, times=0),)


def run(
    *, origin: Path, scratch: Path, names: Sequence[str], rounds: int, quick: bool, ours: str, theirs: str, settings: Mapping[str, object]
) -> Iterator[dict[str, Any]]:
    """Measure the cases with these *names*, all when there are none."""
    for case in QUICK if quick else CASES:
        if not names or case.name in names:
            frames = prepare(origin, scratch, count=6 if quick else 100, side=case.side)
            yield _measure_case(case, frames, scratch, rounds=rounds, ours=ours, theirs=theirs, settings=settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Played:
    delay: float
    share: float
    path: Path


def _measure_case(
    case: Case, frames: Frames, scratch: Path, *, rounds: int, ours: str, theirs: str, settings: Mapping[str, object]
) -> dict[str, Any]:
    count = min(case.stop_after or frames.count, frames.count)
    shown = Frames(folder=frames.folder, suffix=frames.suffix, count=count, size=frames.size, origin=frames.origin)
    rate = Fraction(count, SECONDS)
    seed = Job(
        frames=_only(shown, scratch), rate=rate, codec="h264", interpolation=case.interpolation, ffmpeg=theirs, out=scratch / f"{case.name}.mp4"
    )
    command = peers.SEED.command(seed)
    timeline = {"duration": f"{SECONDS}s", "fps": peers.FPS, "interpolation": case.interpolation, "hold_last": "0s", "early_end": case.early_end}
    policy = {"timeline": timeline, "outputs": [{"codec": "h264", "name": "{run}"}], **settings}
    after, played = [], []
    watched = scratch / case.name / "watched"
    with Watching(scratch / case.name / "home", watched, observed=False, policy=policy, ffmpeg=ours) as daemon:
        for _ in range(rounds):
            seed.out.unlink(missing_ok=True)
            after.append(measure(command).wall)
            played.append(_play(case, frames, watched, daemon))
    theirs_judged, judged = (judge(path, shown, rate=rate, interpolation=case.interpolation, ffmpeg=theirs) for path in (seed.out, played[-1].path))
    delays = [one.delay for one in played]
    row = {
        "name": f"{count} of {frames.count} steps of {case.side}, {case.cadence * 1000:.0f} ms apart",
        "delay": statistics.median(delays),
        "worst": max(delays),
        "seed": statistics.median(after),
        "times": ratio(after, delays),
        "share": statistics.median(one.share for one in played),
        "pictures": judged.pictures,
        "duration": float(judged.duration),
        "ssim": judged.ssim,
        "seed_ssim": theirs_judged.ssim,
        "gate": judged.ssim >= theirs_judged.ssim - GATE and abs(judged.duration - SECONDS) <= SLACK,
    }
    what = f"h264 {case.interpolation}, {SECONDS} s" + (f", early_end: {case.early_end}" if case.stop_after else "")
    return {"case": case.name, "what": what, "input": frames.origin, "rounds": rounds, "rows": [row], "missing": {}, "goal": _held(case, row)}


def _only(frames: Frames, scratch: Path) -> Frames:
    """The same frames where no others are: ffmpeg takes all that it finds under their pattern."""
    folder = scratch / f"{frames.folder.name}-first-{frames.count}"
    if not folder.exists():
        folder.mkdir()
        for path in frames.paths():
            os.link(path, folder / path.name)
    return Frames(folder=folder, suffix=frames.suffix, count=frames.count, size=frames.size, origin=frames.origin)


def _play(case: Case, frames: Frames, watched: Path, daemon: Watching) -> _Played:
    """Play the run once, and wait for what comes of it."""
    before = set(_animations(watched))
    appeared: list[tuple[float, Path]] = []

    def wait() -> None:
        end = time.monotonic() + frames.count * case.cadence + PATIENCE
        while time.monotonic() < end and not appeared:
            appeared.extend((time.time(), path) for path in _animations(watched) if path not in before)
            time.sleep(POLL)

    used: list[tuple[float, float]] = []

    def on_frame(played: int, total: int) -> None:
        if played in (1, total):
            used.append((time.monotonic(), daemon.cpu()))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    state: simulate.State = "complete" if case.stop_after is None else "interrupted"
    folder = simulate.play(frames.folder, watched, cadence=case.cadence, stop_after=case.stop_after, state=state, on_frame=on_frame)
    waiting.join()
    if not appeared:
        log = (daemon.program.home / "log").read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"no animation has come of {folder}; the daemon said:\n{log[-2000:]}")
    seen, path = appeared[0]
    last = max(one.stat().st_mtime for one in folder.glob(f"*{frames.suffix}"))
    (first_time, first_cpu), (last_time, last_cpu) = used
    return _Played(delay=seen - last, share=(last_cpu - first_cpu) / (last_time - first_time), path=path)


def _animations(watched: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(watched / "animation") if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def _held(case: Case, row: Mapping[str, Any]) -> list[str]:
    told = []
    if case.times:
        met = "met" if row["times"] >= case.times else "missed"
        told.append(f"1/{row['times']:.0f} of the render after the run, goal 1/{case.times:.0f}: {met}")
    if case.within is not None:
        told.append(f"{row['delay'] * 1000:.0f} ms, goal {case.within * 1000:.0f} ms: {'met' if row['delay'] <= case.within else 'missed'}")
    if case.share is not None:
        told.append(f"{row['share']:.0%} of a core while frames come, goal {case.share:.0%}: {'met' if row['share'] <= case.share else 'missed'}")
    return told
