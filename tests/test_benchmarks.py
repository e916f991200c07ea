"""The benchmark runs, and what it measures with is right; how fast anything is, no test can say."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import inputs, tables
from tests.benchmarks.inputs import prepare
from tests.benchmarks.quality import judge
from tests.conftest import MakeRun


def test_a_quick_round_of_rendering_names_and_judges_everybody_and_stands_in_the_readme(
    tmp_path: Path, make_run: MakeRun, ffmpeg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round of tiny frames: stepwatch and whoever else is here, each with its file, length and quality; then a table between two marks."""
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

    page = tmp_path / "README.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    monkeypatch.setattr(inputs, "ROOT", tmp_path)
    assert benchmarks.main(["table", "--json", str(said)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{tables.BEGIN}\n{json.loads(said.read_text())['machine']['date']}, ")
    assert text.endswith(f"|\n{tables.END}\nafter\n")
    assert "| h264 none, 1.8 s (" in text
    assert "| Steps Animation " in text
    assert "old" not in text


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


@pytest.mark.slow
@pytest.mark.parametrize("part", ["live", "daemon", "startup"])
def test_every_part_runs(tmp_path: Path, part: str) -> None:
    """A quick round of each, with a real daemon, ends with a figure for everything."""
    said = tmp_path / "said.json"
    assert benchmarks.main([part, "--quick", "--json", str(said), "--scratch", str(tmp_path)]) == 0
    results = json.loads(said.read_text())["results"]
    assert results
    assert all(result["rows"] for result in results)
