"""A ffmpeg that lies: whatever it does or says, what it made is published only when it is the animation that was planned."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from stepwatch import config, encoder, visit
from stepwatch.core.result import RunResult

FAKE = """\
#!/bin/sh
'''exec' '{python}' "$0" "$@" # the path of a Python may hold a space, which no shebang takes
' '''
import os, re, signal, subprocess, sys, time
REAL, MODE, LOG = {real!r}, {mode!r}, {log!r}
args = sys.argv[1:]
if "pipe:0" not in args:
    os.execv(REAL, [REAL, *args])
with open(LOG, "a") as log:
    log.write(str(os.getpid()) + "\\n")
# With its packets also going into a pipe, the last argument is `[f=mp4]file:TARGET|[f=mp4]pipe:N`.
target = re.sub(r"^(\\[.*?\\])?file:|\\|\\[f=\\w+:[^|]*\\]pipe:[0-9]+$", "", args[-1])
width, height = map(int, args[args.index("-s") + 1].split("x"))
size = width * height * 3

def images():
    read = sys.stdin.buffer.read
    while (image := read(size)) and len(image) == size:
        yield image

def real(pictures, options=args):
    process = subprocess.Popen([REAL, *options], stdin=subprocess.PIPE, close_fds=False)
    try:
        for picture in pictures:
            process.stdin.write(picture)
        process.stdin.close()
    except BrokenPipeError:
        pass
    return process.wait()

def with_option(name, value):
    options = list(args)
    options[options.index(name) + 1] = value(options[options.index(name) + 1])
    return options

if MODE == "drops the last picture":
    sys.exit(real(images(), with_option("-frames:v", lambda count: str(int(count) - 1))))
if MODE == "drops the last image":
    sys.exit(real(list(images())[:-1]))
if MODE == "repeats an image":
    all_of_them = list(images())
    middle = len(all_of_them) // 2
    sys.exit(real(all_of_them[:middle] + [all_of_them[middle - 1]] + all_of_them[middle + 1:]))
if MODE == "inserts an image twice":
    all_of_them = list(images())
    sys.exit(real(all_of_them[:2] + all_of_them[1:]))
if MODE == "swaps two images":
    all_of_them = list(images())
    all_of_them[1], all_of_them[2] = all_of_them[2], all_of_them[1]
    sys.exit(real(all_of_them))
if MODE == "writes black":
    sys.exit(real(bytes(size) for image in images()))
if MODE == "turns the picture over":
    sys.exit(real(image[::-1] for image in images()))
if MODE == "cuts the file":
    code = real(images())
    os.truncate(target, os.path.getsize(target) * 7 // 10)
    sys.exit(0)
if MODE == "flips bits":
    code = real(images())
    with open(target, "r+b") as file:
        data = file.read()
        pixels = data.index(b"mdat")
        place = pixels + (len(data) - pixels) * 6 // 10
        file.seek(place)
        was = file.read(64)
        file.seek(place)
        file.write(bytes(byte ^ 0x55 for byte in was))
    sys.exit(0)
if MODE == "shows the truth to the pipe only":
    all_of_them = list(images())
    real(all_of_them, [*args[:-1], args[-1].replace(target, "/dev/null").replace("+faststart", "+empty_moov")])
    os.dup2(os.open("/dev/null", os.O_WRONLY), int(args[-1].rpartition(":")[2]))
    sys.exit(real([*all_of_them[:5], all_of_them[4], *all_of_them[6:]]))
if MODE == "plays too slowly":
    options = with_option("-framerate", lambda rate: rate.split("/")[0] + "/" + str(2 * int(rate.split("/")[1])))
    sys.exit(real(images(), options))
if MODE == "another size":
    sys.exit(real(images(), with_option("-filter_complex", lambda graph: graph.replace("[0]scale=", "[0]scale=w=iw/2:h=ih/2:"))))
if MODE == "fails and says 0":
    list(images())
    sys.exit(0)
if MODE == "empty file and 0":
    list(images())
    open(target, "wb").close()
    sys.exit(0)
if MODE == "text and 0":
    list(images())
    open(target, "w").write("this is fine")
    sys.exit(0)
if MODE == "stops early and says 0":
    sys.exit(real([image for number, image in enumerate(images()) if number < 3], with_option("-frames:v", lambda count: "20")) and 0)
if MODE == "status 1 after a good file":
    real(images())
    sys.exit(1)
if MODE == "killed":
    next(images())
    os.kill(os.getpid(), signal.SIGKILL)
if MODE == "disk full":
    next(images())
    sys.stderr.write("av_interleaved_write_frame(): No space left on device\\n")
    sys.exit(228)
if MODE == "hangs":
    time.sleep(600)
if MODE == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)
if MODE == "spins without progress":
    list(images())
    while True:
        print("frame=0\\nprogress=continue", flush=True)
        time.sleep(0.05)
if MODE == "floods stderr":
    line = b"x" * 1023 + b"\\n"
    for number in range(100 * 1024):
        sys.stderr.buffer.write(line)
    sys.exit(real(images()))
sys.exit("unknown mode " + MODE)
"""


class Silent:
    """An observer that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None:
        self.said.append(f"{level}: {sentence}")

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None:
        pass

    def finished(self, run_name: str) -> None:
        pass


@pytest.fixture
def liar(tmp_path: Path, ffmpeg: str) -> Callable[[str], str]:
    """Make a program that is the real ffmpeg in everything but the render itself."""

    def make(mode: str) -> str:
        path = tmp_path / "bin" / "ffmpeg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAKE.format(python=sys.executable, real=ffmpeg, mode=mode, log=str(tmp_path / "pids")))
        path.chmod(0o755)
        return str(path)

    return make


def render(folder: Path, program: str, *settings: str, observer: Silent | None = None) -> RunResult:
    settings = ("timeline.duration=1s", "timeline.hold_last=0s", *settings)
    [(run, resolved)] = visit.runs_below(folder, service=config.load_service(None), settings=settings)
    return visit.visit(run, resolved, ffmpeg=program, options=visit.Options(), observer=observer or Silent(), stop=threading.Event())


def nothing_but_frames(folder: Path) -> bool:
    """No animation and no temporary file is left, and every frame is there."""
    output = folder / "animation"
    left = sorted(output.iterdir()) if output.exists() else []
    return not left and len(list(folder.glob("*.png"))) == 12


LIES = [
    "drops the last picture",
    "drops the last image",
    "repeats an image",
    "inserts an image twice",
    "swaps two images",
    "writes black",
    "turns the picture over",
    "cuts the file",
    "flips bits",
    "shows the truth to the pipe only",
    "plays too slowly",
    "another size",
    "fails and says 0",
    "empty file and 0",
    "text and 0",
    "stops early and says 0",
    "status 1 after a good file",
    "killed",
    "disk full",
]


@pytest.mark.parametrize(
    ("lie", "interpolation"),
    # With `none` the times do not depend on the rate at which images are read: that lie changes nothing.
    [(lie, interpolation) for lie in LIES for interpolation in ("none", "blend") if (lie, interpolation) != ("plays too slowly", "none")],
)
def test_what_a_lying_ffmpeg_made_is_never_published(make_run, liar, lie: str, interpolation: str) -> None:  # type: ignore[no-untyped-def]
    """Rows 42, 43, 50, 53, 54: the run fails with a sentence, nothing is left in the output folder, no frame is touched."""
    folder = make_run(steps=12, size=(64, 48))
    result = render(folder, liar(lie), f"timeline.interpolation={interpolation}")
    assert (result.phase, result.exit_code) == ("render-failed", 1)
    assert result.reason
    assert nothing_but_frames(folder)


@pytest.mark.parametrize("codec", ["vp9", "gif", "webp", "apng"])
@pytest.mark.parametrize("lie", ["drops the last image", "swaps two images", "writes black", "cuts the file", "fails and says 0"])
def test_lies_are_found_out_in_every_kind_of_container(make_run, liar, lie: str, codec: str) -> None:  # type: ignore[no-untyped-def]
    """The proof is the same whatever reads the file back."""
    folder = make_run(steps=12, size=(64, 48))
    result = render(folder, liar(lie), f"outputs={codec}", "timeline.interpolation=none")
    assert result.phase == "render-failed"
    assert nothing_but_frames(folder)


@pytest.mark.parametrize("who", ["those that make pictures", "the encoder"])
@pytest.mark.parametrize("lie", ["swaps two images", "drops the last image", "killed", "hangs"])
def test_mci_that_shows_other_images_is_found_out(  # type: ignore[no-untyped-def]
    make_run, liar, lie: str, who: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Motion interpolation has its freedom between two images, not at them; and whichever of its processes is at fault, none is left over."""
    monkeypatch.setattr(encoder, "NO_PROGRESS", 1.0)
    folder = make_run(steps=12, size=(160, 120))
    program = Path(liar(lie))
    honest = "args[-1] != 'pipe:1'" if who == "those that make pictures" else "args[-1] == 'pipe:1'"
    program.write_text(program.read_text().replace('if "pipe:0" not in args:', f'if "pipe:0" not in args or {honest}:'))
    result = render(folder, str(program), "timeline.interpolation=mci")
    assert (result.phase, result.exit_code) == ("render-failed", 1)
    assert nothing_but_frames(folder)
    for pid in (tmp_path / "pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_an_honest_ffmpeg_passes(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """The same runs, rendered by the real thing, are published: the tests above fail for the lie alone."""
    folder = make_run(steps=12, size=(64, 48))
    for setting in ("timeline.interpolation=none", "timeline.interpolation=blend", "timeline.interpolation=mci", "outputs=[vp9, gif, webp, apng]"):
        result = render(folder, ffmpeg, setting)
        assert result.exit_code == 0, result.reason


@pytest.mark.parametrize("fault", ["hangs", "ignores SIGTERM", "spins without progress"])
def test_a_ffmpeg_without_progress_is_ended_with_its_group(  # type: ignore[no-untyped-def]
    make_run, liar, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Row 51: within the limit, and no process is left over."""
    monkeypatch.setattr(encoder, "NO_PROGRESS", 1.0)
    monkeypatch.setattr(encoder, "PATIENCE", 0.5)
    folder = make_run(steps=12, size=(64, 48))
    started = time.monotonic()
    result = render(folder, liar(fault))
    assert result.phase == "render-failed"
    assert "no progress" in result.reason
    assert time.monotonic() - started < 20
    assert nothing_but_frames(folder)
    for pid in (tmp_path / "pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_flood_on_stderr_neither_blocks_nor_fills_memory(make_run, liar) -> None:  # type: ignore[no-untyped-def]
    """Row 55: 100 MB of complaints are drained, and a good file behind them counts."""
    folder = make_run(steps=12, size=(64, 48))
    assert render(folder, liar("floods stderr")).exit_code == 0


def test_a_disk_full_is_called_by_its_name(make_run, liar) -> None:  # type: ignore[no-untyped-def]
    """Row 42: the sentence says what is full and that the frames are untouched."""
    observer = Silent()
    result = render(make_run(steps=12, size=(64, 48)), liar("disk full"), observer=observer)
    assert "disk is full" in result.reason
    assert any("frames are untouched" in sentence for sentence in observer.said)


def test_one_failing_output_does_not_spoil_the_others(make_run, liar, ffmpeg: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Each output has its own ffmpeg: where one dies, the other is published, and the exit code says that something failed."""
    folder = make_run(steps=12, size=(64, 48))
    program = Path(liar("killed"))
    text = program.read_text().replace('if "pipe:0" not in args:', 'if "pipe:0" not in args or "libx264" in args:')
    program.write_text(text)
    result = render(folder, str(program), "outputs=[vp9, h264]")
    assert [output.error is None for output in result.outputs] == [False, True]
    assert result.exit_code == 1
    assert [path.suffix for path in (folder / "animation").iterdir()] == [".mp4"]


def test_a_program_that_is_no_ffmpeg_is_a_missing_tool(make_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Row 52: wrong architecture or not a program at all is exit code 69, not a traceback."""
    program = tmp_path / "ffmpeg"
    program.write_bytes(b"\x7fELF" + bytes(60))
    program.chmod(0o755)
    result = render(make_run(steps=3), str(program))
    assert result.exit_code == 69


def test_a_ffmpeg_replaced_in_mid_flight_fails_the_run_only(make_run, liar, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """Row 52: the program vanishes after it has been asked what it can do."""
    program = liar("killed")
    encoder.capabilities(program)
    Path(program).unlink()
    folder = make_run(steps=12, size=(64, 48))
    result = render(folder, program)
    assert result.exit_code == 69
    assert nothing_but_frames(folder)


def test_what_a_crash_left_is_never_adopted(make_run, ffmpeg: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Row 49: killed -9 while feeding, ffmpeg may finish a short, valid file; the next render takes no notice of it."""
    folder = make_run(steps=12, size=(64, 48))
    script = textwrap.dedent(
        """
        import os, sys, signal
        from stepwatch import cli, passes
        original = passes._Feed.advance
        def advance(self, position):
            original(self, position)
            if position == 6:
                os.kill(os.getpid(), signal.SIGKILL)
        passes._Feed.advance = advance
        cli.main(["render", sys.argv[1]])
        """
    )
    died = subprocess.run([sys.executable, "-c", script, str(folder)], check=False, capture_output=True, timeout=60)
    assert died.returncode == -9
    assert not [path for path in (folder / "animation").iterdir() if not path.name.startswith(".")]
    result = render(folder, ffmpeg)
    assert result.exit_code == 0
    published = [path for path in (folder / "animation").iterdir() if not path.name.startswith(".")]
    assert [str(path) for path in published] == [result.outputs[0].path]


def test_a_dropped_image_is_noticed_even_where_nobody_could_see_it(make_run, liar) -> None:  # type: ignore[no-untyped-def]
    """The end of a run hardly changes: there ffmpeg's own count of what it has read is held against what it was given."""
    folder = make_run(steps=12, size=(64, 48))
    with Image.open(folder / "00010.png") as image:
        image.putpixel((3, 3), (9, 9, 9))
        image.save(folder / "00011.png")
    result = render(folder, liar("drops the last image"))
    assert result.exit_code == 1
    assert "read 11 of the 12 images" in result.reason
    assert nothing_but_frames(folder)
