"""The pictures between the images of mci: that they show what moves on its way, and that nobody who makes them is left over."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from PIL import Image, ImageChops, ImageStat

from stepwatch import config, encoder, flow, motion, visit
from stepwatch.core.codecs import CODECS
from stepwatch.core.plan import OutputPlan
from stepwatch.core.result import RunResult
from stepwatch.core.timeline import make_timeline
from stepwatch.errors import Interrupted, MissingToolError
from tests.conftest import MakeRun

installed = pytest.mark.skipif(not flow.available(), reason="the extra `flow` is not installed")


class Quiet:
    """An observer that has nothing to do."""

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None: ...

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None: ...

    def finished(self, run_name: str) -> None: ...


def render(folder: Path, ffmpeg: str, *settings: str, stop: threading.Event | None = None) -> RunResult:
    asked = ("timeline.interpolation=mci", "timeline.hold_last=0s", *settings)
    [(run, resolved)] = visit.runs_below(folder, service=config.load_service(None), settings=asked)
    return visit.visit(run, resolved, ffmpeg=ffmpeg, options=visit.Options(), observer=Quiet(), stop=stop or threading.Event())


def plan_for(images: list[Image.Image], *, pictures: int, kind: str) -> OutputPlan:
    timeline = make_timeline(len(images), duration=Fraction(pictures, 30), fps=Fraction(30), interpolation="mci")
    codec = CODECS["h264"]
    return OutputPlan(
        codec=codec,
        encoding=replace(codec.qualities["default"], pixels="yuv444p"),
        quality="default",
        fps=Fraction(30),
        timeline=timeline,
        width=images[0].width,
        height=images[0].height,
        variable=False,
        max_size=None,
        template="",
        motion=kind,  # type: ignore[arg-type]
    )


class Collector:
    """Takes the pictures, where an encoder would."""

    running = True

    def __init__(self) -> None:
        self.pictures: list[bytes] = []

    def write(self, picture: bytes, count: int = 1) -> None:
        assert count == 1
        self.pictures.append(picture)

    def finish(self) -> None: ...


def moved(images: list[Image.Image], ffmpeg: str, *, pictures: int, kind: str) -> list[Image.Image]:
    """Luma of every picture that an engine makes of *images*."""
    plan, collector = plan_for(images, pictures=pictures, kind=kind), Collector()
    engine = motion.Flow if kind == "flow" else motion.Parts
    with engine(plan, cast(encoder.Encoder, collector), ffmpeg=ffmpeg, stop=threading.Event()) as made:
        for image in images:
            made.write(image.tobytes())
        made.finish()
    assert len(collector.pictures) == pictures
    return [Image.frombytes("L", images[0].size, picture[: images[0].width * images[0].height]) for picture in collector.pictures]


def difference(one: Image.Image, other: Image.Image) -> float:
    return ImageStat.Stat(ImageChops.difference(one, other)).mean[0]


def pan(count: int) -> list[Image.Image]:
    """A photograph that passes by, four pixels from one image to the next."""
    (sample,) = (entry for entry in files("stepwatch").joinpath("data", "sample").iterdir() if entry.is_dir())
    with sample.joinpath("00029.jpg").open("rb") as file, Image.open(file) as image:
        whole = image.convert("RGB").resize((240, 360), Image.Resampling.LANCZOS)
    return [whole.crop((20 + 4 * number, 120, 180 + 4 * number, 240)) for number in range(count)]


@pytest.mark.parametrize("kind", ["minterpolate", pytest.param("flow", marks=installed)])
def test_what_moves_is_found_on_its_way(ffmpeg: str, kind: str) -> None:
    """Each second picture is an image, to the bit; between two images is what really was there, and not two of it."""
    truth = pan(9)
    images = truth[::2]
    made = moved(images, ffmpeg, pictures=2 * len(images), kind=kind)
    assert [picture.size for picture in made] == [images[0].size] * 10
    exact = moved(truth, ffmpeg, pictures=len(truth), kind=kind)
    assert made[::2] == exact[::2]
    for number in range(1, 8, 2):
        blended = Image.blend(made[number - 1], made[number + 1], 0.5)
        assert difference(made[number], exact[number]) < 0.6 * difference(blended, exact[number])


@installed
@pytest.mark.parametrize("size", [(16, 16), (40, 200), (130, 70)], ids=lambda size: "x".join(map(str, size)))
def test_flow_takes_pictures_of_any_size(make_run: MakeRun, ffmpeg: str, size: tuple[int, int]) -> None:
    """What is too small for flow is cross-faded; every codec's planes will do, and what comes out is verified like anything else."""
    result = render(
        make_run(steps=5, size=size), ffmpeg, "timeline.duration=500ms", "outputs=[h264, prores, gif, apng, {codec: h264, quality: small}]"
    )
    assert result.exit_code == 0, [output.error for output in result.outputs]
    assert {output.motion for output in result.outputs} == {"flow"}


def test_flow_that_cannot_be_loaded_is_a_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OpenCV is there and broken, the error says what to do about it."""
    flow._libraries.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingToolError, match="optical flow cannot be used"):
        flow._libraries()


def test_nothing_of_flow_is_loaded_before_it_is_needed() -> None:
    """Whether it is there is known without OpenCV and NumPy, which take a third of a second."""
    program = "import sys; from stepwatch import flow, service; flow.available(); sys.exit('cv2' in sys.modules or 'numpy' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program]) == 0


@pytest.mark.parametrize("kind", ["minterpolate", pytest.param("flow", marks=installed)])
def test_a_stop_ends_every_process_at_once(make_run: MakeRun, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """In the middle of the work, a stop leaves neither a process nor a thread nor a file behind."""
    monkeypatch.setattr(flow, "available", lambda: kind == "flow")
    folder = make_run(steps=12, size=(512, 384))
    program = tmp_path / "ffmpeg"
    program.write_text(f'#!/bin/sh\necho $$ >> {shlex.quote(str(tmp_path))}/pids\nexec {shlex.quote(ffmpeg)} "$@"\n')
    program.chmod(0o755)
    encoder.capabilities(str(program))
    stop = threading.Event()
    timer = threading.Timer(1.0, stop.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        render(folder, str(program), "timeline.duration=10m", stop=stop)
    assert time.monotonic() - started < 10  # An encode of all would take minutes.
    timer.join()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("motion", "flow", "ffmpeg"))]
    assert not (folder / "animation").exists()


@pytest.mark.parametrize(
    ("side", "pictures", "processors", "parts"), [(512, 300, 2, 2), (512, 300, 16, 16), (512, 3, 16, 3), (2048, 300, 16, 1), (4096, 300, 2, 1)]
)
def test_processes_are_as_many_as_processors_memory_and_pictures_allow(side: int, pictures: int, processors: int, parts: int) -> None:
    """One for each processor, as long as all of them together do not take gigabytes."""
    plan = SimpleNamespace(width=side, height=side, pictures=pictures)
    assert motion.parts_for(cast(OutputPlan, plan), processors, motion.BYTES_A_PIXEL) == parts


APART = {
    "none": ("timeline.interpolation=none", "timeline.duration=1s"),
    "blend": ("timeline.interpolation=blend", "timeline.duration=2s", "timeline.hold_last=1s"),
    "held at both ends": ("timeline.interpolation=none", "timeline.duration=1s", "timeline.hold_first=330ms", "timeline.hold_last=1s"),
    "dense": ("timeline.interpolation=blend", "timeline.duration=200ms"),
}


@pytest.mark.render
@pytest.mark.parametrize("codec", ["gif", "webp"])
@pytest.mark.parametrize("settings", APART.values(), ids=APART)
def test_what_several_processes_make_is_what_one_makes(
    make_run: MakeRun, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], codec: str
) -> None:
    """To the byte, however the pictures come about and whether or not their number can be divided."""
    folder = make_run(steps=7, size=(50, 34))
    made = []
    for processors in (1, 2, 3):
        monkeypatch.setattr(motion, "processors", lambda count=processors: count)
        result = render(folder, ffmpeg, f"outputs=[{{codec: {codec}, dir: {tmp_path / str(processors)}}}]", *settings)
        assert result.exit_code == 0, result
        (output,) = result.outputs
        assert output.path is not None
        made.append(Path(output.path).read_bytes())
    assert made[0] == made[1] == made[2]


@pytest.mark.render
def test_a_process_that_finds_no_colours_is_found_out(make_run: MakeRun, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two ends early and says that all is well: nothing is published, and the error says what is missing."""
    monkeypatch.setattr(motion, "processors", lambda: 2)
    program = tmp_path / "ffmpeg"
    second = r"*'eq(mod(n\,2)\,1)'*"
    program.write_text(f'#!/bin/sh\ncase "$*" in {second}) cat >/dev/null; exit 0;; esac\nexec {shlex.quote(ffmpeg)} "$@"\n')
    program.chmod(0o755)
    result = render(make_run(steps=7, size=(50, 34)), str(program), "timeline.interpolation=none", "timeline.duration=1s", "outputs=[{codec: gif}]")
    (output,) = result.outputs
    assert output.path is None
    assert output.error is not None
    assert "only 1 of 7 pictures were made" in output.error
