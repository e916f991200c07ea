"""The benchmark runs, and what it measures with is right; how fast anything is, no test can say."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

from PIL import Image

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.inputs import prepare
from tests.benchmarks.quality import judge
from tests.conftest import MakeRun


def test_a_quick_round_of_rendering_names_everybody_and_judges_them(tmp_path: Path, make_run: MakeRun, ffmpeg: str) -> None:
    """One round of tiny frames: stepwatch, and whoever else is here, each with its file, its length and its quality."""
    said = tmp_path / "said.json"
    arguments = ["render", "--quick", "--case", "h264-none", "--input", str(make_run()), "--ffmpeg", ffmpeg]
    assert benchmarks.main([*arguments, "--json", str(said), "--scratch", str(tmp_path)]) == 0
    (result,) = json.loads(said.read_text())["results"]
    assert [row["name"] for row in result["rows"]] + list(result["missing"]) == ["stepwatch", "Steps Animation", "Video Combine's way"]
    ours = result["rows"][0]
    assert (ours["pictures"], ours["duration"], ours["gate"]) == (6, 1.8, True)
    assert ours["ssim"] > 0.95
    assert all(row["wall"] > 0 and row["cpu"] > 0 and row["peak"] > 1_000_000 for row in result["rows"])
    assert not list(tmp_path.glob("stepwatch-benchmark-*"))


def test_an_animation_that_shows_other_images_is_told_by_its_quality(tmp_path: Path, make_run: MakeRun, ffmpeg: str) -> None:
    """The very images at their times score 1; the same a step late score less."""
    frames = prepare(make_run(size=(64, 48)), tmp_path)
    exact, late = tmp_path / "exact.gif", tmp_path / "late.gif"
    for path, images in ((exact, frames.paths()), (late, [frames.paths()[0], *frames.paths()[:-1]])):
        first, *others = (Image.open(image).quantize(256) for image in images)
        first.save(path, save_all=True, append_images=others, duration=100, loop=0)
    right, wrong = (judge(path, frames, rate=Fraction(10), interpolation="none", ffmpeg=ffmpeg) for path in (exact, late))
    assert (right.pictures, right.duration) == (6, Fraction(6, 10))
    assert right.ssim > 0.99 > wrong.ssim
