"""A decoder that sees the packets of an encode while they are made, and what it says of the finished file."""

from __future__ import annotations

import os
import resource
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from stepwatch import frames, graph
from stepwatch.core.codecs import CODECS
from stepwatch.core.plan import OutputPlan, plan_output
from stepwatch.core.policy import OutputPolicy, Policy, TimelinePolicy
from stepwatch.encoder import Encoder, capabilities
from stepwatch.errors import EncodeError, EnvironmentFault, Interrupted, StepwatchError, VerifyError
from stepwatch.verify import Evidence, prove
from stepwatch.witness import Witness, can_witness

SIZE = (96, 64)
COUNT = 10
VIDEOS = [name for name, codec in CODECS.items() if codec.video]


def image(number: int) -> Image.Image:
    made = Image.new("RGB", SIZE, (30 + 15 * number, 80, 200 - 15 * number))
    ImageDraw.Draw(made).rectangle((8 * number, 10, 8 * number + 20, 50), fill=(240, 200, 20))
    return made


def planned(codec: str, interpolation: str, ffmpeg: str, quality: str = "default") -> OutputPlan:
    there = capabilities(ffmpeg).encoders
    if CODECS[codec].qualities[quality].encoder not in there:
        pytest.skip(f"{ffmpeg} has no encoder for {codec}")
    timeline = TimelinePolicy(duration=Fraction(2), fps=Fraction(15), interpolation=interpolation, hold_last=Fraction(1, 5))  # type: ignore[arg-type]
    return plan_output(OutputPolicy(codec=codec, quality=quality), Policy(timeline=timeline), COUNT, SIZE, there)  # type: ignore[arg-type]


def encode(plan: OutputPlan, path: Path, ffmpeg: str, stop: threading.Event, *, instead: dict[int, int] | None = None) -> Evidence:
    """Encode the images one by one, each with its thumbnail, as a run brings them; *instead* gives ffmpeg another image in place of one."""
    thumbnails = [b""] * COUNT
    with Witness(plan, thumbnails, ffmpeg=ffmpeg, stop=stop) as witness:
        argv = graph.render_argv(plan, ffmpeg_path=ffmpeg, destination=str(path), fragments=witness.descriptor)
        with Encoder(argv, stop=stop, pass_fds=[witness.descriptor]) as encoder:
            witness.release()
            for number in range(COUNT):
                thumbnails[number] = frames.thumbnail(image(number))
                encoder.write(image((instead or {}).get(number, number)).tobytes())
            try:
                encoder.finish()
            except EncodeError:
                witness.finish()  # It had nobody left to write to, and this says why.
                raise
        return witness.finish()


@pytest.mark.parametrize("interpolation", ["none", "blend"])
@pytest.mark.parametrize(("codec", "quality"), [*((codec, "default") for codec in VIDEOS), ("av1", "classic")])
def test_what_was_seen_proves_the_file(tmp_path: Path, each_ffmpeg: str, codec: str, quality: str, interpolation: str) -> None:
    """The file holds the very packets that were seen; a name full of signs that mean something to ffmpeg changes nothing."""
    plan = planned(codec, interpolation, each_ffmpeg, quality)
    path = tmp_path / f"a 'b'|c [d]\\:;, {plan.codec.name}{plan.codec.suffix}"
    evidence = encode(plan, path, each_ffmpeg, threading.Event())
    assert evidence.pictures == plan.pictures
    proved = prove(path, plan, evidence, ffmpeg=each_ffmpeg, stop=threading.Event())
    assert abs(proved.duration - plan.duration) <= Fraction(1, 500)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("harm", ["one bit", "the last byte", "another file"])
def test_a_file_with_other_packets_is_refused(tmp_path: Path, ffmpeg: str, codec: str, harm: str) -> None:
    """One flipped bit, of which no decoder would complain, or a good file of other pictures."""
    plan = planned(codec, "blend", ffmpeg)
    path = tmp_path / f"clip{plan.codec.suffix}"
    evidence = encode(plan, path, ffmpeg, threading.Event())
    data = bytearray(path.read_bytes())
    if harm == "another file":
        encode(plan, path, ffmpeg, threading.Event())
        data = bytearray(path.read_bytes())
        assert prove(path, plan, evidence, ffmpeg=ffmpeg, stop=threading.Event()).pictures == plan.pictures
        with pytest.raises(VerifyError):
            encode(plan, path, ffmpeg, threading.Event(), instead={4: 5})
        return
    if harm == "one bit":
        data[len(data) * 6 // 10] ^= 4
    else:
        del data[-1]
    path.write_bytes(data)
    with pytest.raises(VerifyError):
        prove(path, plan, evidence, ffmpeg=ffmpeg, stop=threading.Event())


def test_other_packets_of_the_same_pictures_are_refused(tmp_path: Path, ffmpeg: str) -> None:
    """What was seen was seen of these packets; that others might be as good is not asked."""
    one, other = planned("h264", "blend", ffmpeg), planned("h264", "blend", ffmpeg, "high")
    seen = encode(one, tmp_path / "one.mp4", ffmpeg, threading.Event())
    encode(other, tmp_path / "other.mp4", ffmpeg, threading.Event())
    with pytest.raises(VerifyError, match="not those that were seen"):
        prove(tmp_path / "other.mp4", one, seen, ffmpeg=ffmpeg, stop=threading.Event())


def test_other_times_may_not_change_the_order_of_the_pictures(tmp_path: Path, ffmpeg: str) -> None:
    """Of an encode that got other times, each packet still shows behind the one that it showed behind; which is to show when is not forgotten."""
    plan = planned("h264", "none", ffmpeg)
    evidence = replace(encode(plan, tmp_path / "it.mp4", ffmpeg, threading.Event()), retimed=True)
    assert prove(tmp_path / "it.mp4", plan, evidence, ffmpeg=ffmpeg, stop=threading.Event()).pictures == plan.pictures
    seen = [line.split(",") for line in evidence.listing]
    one, other = [fields for fields in seen if not fields[0].startswith("#")][3:5]
    one[2], other[2] = other[2], one[2]
    swapped = replace(evidence, listing=tuple(map(",".join, seen)))
    with pytest.raises(VerifyError, match="from packet 3 on"):
        prove(tmp_path / "it.mp4", plan, swapped, ffmpeg=ffmpeg, stop=threading.Event())


def test_a_picture_of_another_moment_ends_the_encode(tmp_path: Path, ffmpeg: str) -> None:
    """The encoder has nobody left to write to, and the reason is the picture."""
    with pytest.raises(StepwatchError):
        encode(planned("h264", "none", ffmpeg), tmp_path / "clip.mp4", ffmpeg, threading.Event(), instead={3: 7})


def test_pictures_are_seen_while_the_run_goes_on(tmp_path: Path, ffmpeg: str) -> None:
    """The decoder does not wait for the end: most of what has been fed has been decoded and judged a moment later."""
    plan = planned("prores", "none", ffmpeg)
    thumbnails = [b""] * COUNT
    with Witness(plan, thumbnails, ffmpeg=ffmpeg, stop=threading.Event()) as witness:
        argv = graph.render_argv(plan, ffmpeg_path=ffmpeg, destination=str(tmp_path / "clip.mov"), fragments=witness.descriptor)
        with Encoder(argv, pass_fds=[witness.descriptor]) as encoder:
            witness.release()
            for number in range(COUNT):
                thumbnails[number] = frames.thumbnail(image(number))
                encoder.write(image(number).tobytes())
            end = time.monotonic() + 20
            while witness.seen < COUNT - 3 and time.monotonic() < end:
                time.sleep(0.01)
            assert witness.seen >= COUNT - 3
            encoder.finish()
        assert witness.finish().pictures == COUNT


def test_a_machine_without_free_descriptors_is_at_fault_and_none_is_lost(ffmpeg: str) -> None:
    """However many are still free: the fault is the machine's, and those that were opened until then are closed again."""
    plan = planned("h264", "none", ffmpeg)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = sorted(map(int, os.listdir("/proc/self/fd")))
    refused = 0
    for most in range(3, before[-1] + 30):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
        try:
            with Witness(plan, [b""] * COUNT, ffmpeg=ffmpeg, stop=threading.Event()):
                break
        except EnvironmentFault:
            refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert sorted(map(int, os.listdir("/proc/self/fd"))) == before
    else:
        pytest.fail("no limit was high enough")
    assert refused > 3


def test_a_stop_ends_the_decoder(ffmpeg: str) -> None:
    """Nobody waits for packets that will not come, and no descriptor stays open."""
    open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    stop = threading.Event()
    with Witness(planned("h264", "blend", ffmpeg), [b""] * COUNT, ffmpeg=ffmpeg, stop=stop) as witness:
        stop.set()
        with pytest.raises(Interrupted):
            witness.finish()
    if open_before:
        assert len(os.listdir("/proc/self/fd")) <= open_before


def test_only_videos_of_one_try_are_watched(ffmpeg: str) -> None:
    """Animated images are read back by whoever can; of several tries for a size, the one that is kept is verified."""
    assert can_witness(planned("h264", "blend", ffmpeg))
    assert not can_witness(planned("gif", "blend", ffmpeg))
    there = capabilities(ffmpeg).encoders
    assert not can_witness(plan_output(OutputPolicy(codec="h264", max_size=10**6), Policy(), COUNT, SIZE, there))
