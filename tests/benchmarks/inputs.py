"""Runs to measure with: numbered copies of somebody's frames, as many and as large as a case wants."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stepwatch import store

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "frames"
"""Longer recordings, where somebody has put them beside the project."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Numbered images of one size and kind in a folder of their own: ``00000.png`` and so on, as *Steps Animation* writes them."""

    folder: Path
    suffix: str
    count: int
    size: tuple[int, int]
    origin: str

    @property
    def pattern(self) -> str:
        return str(self.folder / f"%05d{self.suffix}")

    def paths(self) -> list[Path]:
        return [self.folder / f"{index:05d}{self.suffix}" for index in range(self.count)]


def sample() -> Path:
    """The run that ships with stepwatch."""
    (run,) = (path for path in (ROOT / "stepwatch" / "data" / "sample").iterdir() if path.is_dir())
    return run


def default() -> Path:
    """The 100 steps of 512x512 that the goals speak of, where they are there; else the sample run."""
    long = SHARED / "A"
    return long if long.is_dir() else sample()


def prepare(origin: Path, scratch: Path, *, count: int | None = None, side: int | None = None) -> Frames:
    """Copy the frames of the run in *origin* into a folder below *scratch*.

    With *count* there are so many, the run being told forwards and backwards as often as that takes. With *side* they are scaled to it.
    """
    runs = [run for run in store.find_runs(origin, pattern_for=lambda _: None, exclude=lambda _: False) if run.frames]
    if not runs:
        raise SystemExit(f"there is no run in {origin}")
    run = max(runs, key=lambda one: len(one.frames))
    there = [Path(run.key.folder, frame.name) for frame in run.frames]
    with Image.open(there[-1]) as image:
        size = image.size
    suffix = there[-1].suffix.lower()
    # ffmpeg's list of images ends at the first that is another kind of file, and so does the comparison.
    there = [path for path in there if path.suffix.lower() == suffix]
    if count is not None:
        there = _as_many(there, count)
    longest = max(size)
    if side is not None and side != longest:
        size = (round(size[0] * side / longest) // 2 * 2, round(size[1] * side / longest) // 2 * 2)
    folder = scratch / f"frames-{origin.name}-{len(there)}-{size[0]}x{size[1]}"
    made: dict[Path, Path] = {}
    if not folder.is_dir():
        unfinished = folder.with_suffix(".part")
        unfinished.mkdir(parents=True)
        for index, path in enumerate(there):
            _place(path, unfinished / f"{index:05d}{suffix}", size, made)
        unfinished.rename(folder)
    return Frames(folder=folder, suffix=suffix, count=len(there), size=size, origin=f"{origin.name}: {len(there)} x {size[0]}x{size[1]} {suffix[1:]}")


def _as_many(paths: list[Path], count: int) -> list[Path]:
    once = [*paths, *paths[::-1]]
    return [once[number % len(once)] for number in range(count)]


def _place(path: Path, to: Path, size: tuple[int, int], made: dict[Path, Path]) -> None:
    """Bring an image under its number, scaled where it has another size; one that was made before is linked again."""
    if path in made:
        os.link(made[path], to)
        return
    with Image.open(path) as image:
        if image.size == size:
            to.write_bytes(path.read_bytes())
        else:
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(to, quality=92)
    made[path] = to
