"""The torture command: a few kills in the ordinary suite, a hundred where time does not matter, and what it would notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stepwatch.encoder import find_ffmpeg
from tests.torture import Verdict, read_ledger

ROOT = Path(__file__).parent.parent


def torture(home: Path, *arguments: str, timeout: float) -> str:
    """Run the command; what it said."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "torture.py"), "--home", str(home), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def judged(home: Path) -> list[str]:
    return Verdict(home / "watched", read_ledger(home / "ledger.jsonl"), find_ffmpeg()).wrong


def lose(home: Path) -> str:
    """A frame that the trash held is gone."""
    path = next((home / "watched" / "trash" / ".stepwatch" / "trash").glob("*/*.png"))
    path.unlink()
    return f"{path.name} is LOST"


def lose_what_covers(home: Path) -> str:
    """The animation is gone that was all that was left of frames that were deleted."""
    watched = home / "watched" / "delete"
    path = next(one for one in (watched / "animation").iterdir() if not (watched / one.stem.removesuffix("-incomplete")).exists())
    path.unlink()
    return "is LOST"


def cut(home: Path) -> str:
    """An animation is not whole."""
    path = next((home / "watched").glob("*/animation/*.mp4"))
    path.write_bytes(path.read_bytes()[:-200])
    return f"{path.name} has "


def double(home: Path) -> str:
    """The same animation is there twice."""
    path = next((home / "watched").glob("*/animation/*.mp4"))
    shutil.copyfile(path, path.with_name(f"{path.stem}-1.mp4"))
    return "two animations of the same frames"


def exchange(home: Path) -> str:
    """An animation shows another run."""
    one, other = list((home / "watched").glob("*/animation/*.mp4"))[:2]
    shutil.copyfile(one, other)
    return f"{other.name} is of no generation that it ever had"


def change(home: Path) -> str:
    """A frame that stays is not what was written."""
    path = next((home / "watched").glob("*/*-damaged/*.png"))
    path.write_bytes(path.read_bytes() + b"!")
    return f"{path.name} has changed"


def leave(home: Path) -> str:
    """A temporary file stays."""
    path = home / "watched" / "keep" / "animation" / ".stepwatch-1-00000000-00000000.tmp.mp4"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return f"{path.name} was left over"


DAMAGES: tuple[Callable[[Path], str], ...] = (lose, lose_what_covers, cut, double, exchange, change, leave)


def test_a_few_kills_lose_nothing_and_the_verdict_would_notice(tmp_path: Path) -> None:
    """Row 48, at random instants, with a run of every kind; and the verdict is not one that is always the same."""
    home = tmp_path / "t"
    home.mkdir()
    assert "nothing is wrong" in torture(home, "--seed", "1", "--kills", "4", timeout=110)
    assert judged(home) == []
    for damage in DAMAGES:
        spoilt = tmp_path / damage.__name__
        shutil.copytree(home / "watched", spoilt / "watched", ignore=shutil.ignore_patterns("*.sock"))
        # The ledger names folders by where they were.
        text = (home / "ledger.jsonl").read_text(encoding="utf-8")
        (spoilt / "ledger.jsonl").write_text(text.replace(str(home), str(spoilt)), encoding="utf-8")
        for manifest in (spoilt / "watched").glob("*/.stepwatch/trash/*/manifest.json"):
            manifest.write_text(manifest.read_text(encoding="ascii").replace(str(home), str(spoilt)), encoding="ascii")
        told = damage(spoilt)
        assert any(told in sentence for sentence in judged(spoilt)), damage.__name__


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    """The same at length, with a seed of its own each time, which it tells."""
    home = tmp_path / "t"
    home.mkdir()
    assert "nothing is wrong" in torture(home, "--kills", "100", timeout=2300)
