"""AV1: pictures between coded ones, written without an encoder, and what real decoders make of them."""

from __future__ import annotations

import functools
import subprocess
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.av1 import LONGEST_FADE, Unexpected, Weaver, _all_skipped, _parted
from tests.weaving import images

GAPS = (0, 9, 1, 2, 20, 1, 5, 1, 63, 16, 3, 7)
"""Pictures from each anchor to the next; the second and third 1 lead to pictures that begin anew."""
ANEW = 5
"""Anchors from one that begins anew to the next, at most."""
LOW_DELAY = "pred-struct=1:hierarchical-levels=2:lookahead=0:scd=0:enable-tf=0"
SIZE = 66, 98
LEVELS = 2
"""How far a picture may be from the nearest mix that halving leads to: each halving rounds to whole levels."""


def options(preset: int = 10, params: str = LOW_DELAY, *more: str) -> list[str]:
    """What an encoder of anchors is asked for."""
    return ["-c:v", "libsvtav1", "-preset", str(preset), "-crf", "30", "-svtav1-params", params, *more]


@dataclass(frozen=True, slots=True)
class Coded:
    """A stream in its parts."""

    header: bytes
    samples: list[bytes]

    def stream(self) -> bytes:
        return joined(self.samples)


def joined(samples: Sequence[bytes]) -> bytes:
    """A stream without a container: each picture begins with a delimiter."""
    return b"".join(b"\x12\x00" + sample for sample in samples)


@functools.cache
def encoded(
    ffmpeg: str, asked: tuple[str, ...], *, count: int = len(GAPS), size: tuple[int, int] = SIZE, pixels: str = "yuv420p", shown: int = 0
) -> Coded:
    """A few images, encoded; *shown* are as many pictures as there should be, unless it is 0."""
    argv = [ffmpeg, "-v", "error", "-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{size[0]}x{size[1]}", "-framerate", "30", "-i", "-"]
    done = subprocess.run([*argv, *asked, "-f", "obu", "-"], input=images(count, size, pixels=pixels), capture_output=True, check=False)
    if b"Unknown encoder" in done.stderr:
        pytest.skip("this ffmpeg has no SVT-AV1")
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    header, samples = b"", list[bytes]()
    for kind, unit, _ in _parted(done.stdout):
        if kind == 2:
            samples.append(b"")
        else:
            samples[-1] += unit
            header = unit if kind == 1 else header
    assert len(samples) == (shown or count)
    return Coded(header, samples)


def woven(coded: Coded, gaps: Sequence[int]) -> list[bytes]:
    """Samples of the anchors at their places, and of the cross-fades between them."""
    weaver = Weaver([coded.header])
    made = [weaver.pictures(sample, gap) for sample, gap in zip(coded.samples, gaps, strict=True)]
    assert [len(samples) for samples in made] == [max(gap, 1) for gap in gaps]
    assert weaver.units == [coded.header]
    return [sample for samples in made for sample in samples]


def decoded(ffmpeg: str, decoder: str, stream: bytes, *, size: tuple[int, int] = SIZE, pixels: str = "yuv420p") -> list[array[int]]:
    """Samples of every picture in order, from a decoder that stops at the first thing it does not like."""
    argv = [ffmpeg, "-v", "error", "-xerror", "-err_detect", "explode", "-c:v", decoder, "-f", "obu", "-i", "-"]
    argv += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", pixels, "-"]
    done = subprocess.run(argv, input=stream, capture_output=True, check=False)
    if b"Unknown decoder" in done.stderr:
        pytest.skip(f"this ffmpeg has no {decoder}")
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(errors="replace")
    deep = pixels.endswith("10le")
    samples = array("H" if deep else "B", done.stdout)
    each = size[0] * size[1] + 2 * -(-size[0] // 2) * -(-size[1] // 2)
    assert len(samples) % each == 0
    return [samples[start : start + each] for start in range(0, len(samples), each)]


def check_fades(pictures: Sequence[array[int]], anchors: Sequence[array[int]], gaps: Sequence[int]) -> None:
    """Every anchor is in its place and as it was, and every picture between two is nearly their mix in proportion."""
    assert len(anchors) == len(gaps)
    assert len(pictures) == sum(gaps) + 1
    for number, (place, gap) in enumerate(zip(accumulate(gaps), gaps, strict=True)):
        assert pictures[place] == anchors[number], f"anchor {number} is not what it was"
        before, after = anchors[number - 1], anchors[number]
        # Half a step of the finest halving.
        coarse = 1 / 32 if gap <= 16 else 1 / 64
        for step in range(1, gap):
            share = step / gap
            shown = pictures[place - gap + step]
            worst = max(abs(a + (b - a) * share - c) - abs(b - a) * coarse for a, b, c in zip(before, after, shown, strict=True))
            assert worst <= LEVELS, f"picture {step} of {gap} before anchor {number} is {worst} levels off"


@pytest.mark.parametrize("decoder", ["libdav1d", "libaom-av1"])
def test_pictures_between_two_are_their_mix_and_those_are_as_they_were(decoder: str, each_ffmpeg: str) -> None:
    """Near ones, far ones and neighbours, and pictures in the middle that begin anew; as two encoders and four decoders have it."""
    coded = encoded(each_ffmpeg, (*options(), "-g", str(ANEW)))
    anchors = decoded(each_ffmpeg, decoder, coded.stream())
    # Key frames come where a container is told of them: fades lead to none.
    gaps = [min(gap, 1) if number % ANEW == 0 else gap for number, gap in enumerate(GAPS)]
    check_fades(decoded(each_ffmpeg, decoder, joined(woven(coded, gaps))), anchors, gaps)


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        ((96, 64), options(12, f"{LOW_DELAY}:aq-mode=1")),
        ((200, 120), options(10, f"{LOW_DELAY}:tile-columns=1")),
        ((130, 72), options(8, f"{LOW_DELAY}:hierarchical-levels=1:enable-dlf=0")),
    ],
    ids=str,
)
def test_presets_tiles_and_sizes_make_no_difference(size: tuple[int, int], asked: list[str], ffmpeg: str) -> None:
    """Superblocks that lie partly outside, in every way, and anchors in several tiles."""
    gaps = (0, 4, 9)
    coded = encoded(ffmpeg, tuple(asked), count=3, size=size)
    anchors = decoded(ffmpeg, "libdav1d", coded.stream(), size=size)
    check_fades(decoded(ffmpeg, "libdav1d", joined(woven(coded, gaps)), size=size), anchors, gaps)


@pytest.mark.parametrize("asked", ["sb-size=128:enable-qm=1:aq-mode=0", "sb-size=64:deltaq-mode=0:aq-mode=1", "sb-size=64:tile-rows=1"])
def test_whatever_a_header_says_is_understood(asked: str, ffmpeg: str) -> None:
    """Of another encoder's, which does much more: filters, segments, and motion that all of a picture shares."""
    more = ["-vf", "gblur=2,loop=5:1,rotate=0.03*n", "-color_primaries", "bt709", "-aom-params", asked]
    coded = encoded(ffmpeg, ("-c:v", "libaom-av1", "-cpu-used", "4", "-lag-in-frames", "0", "-crf", "30", *more), count=1, size=(192, 128), shown=6)
    anchors = decoded(ffmpeg, "libdav1d", coded.stream(), size=(192, 128))
    gaps = (0, 2, 2, 1, 2, 2)
    check_fades(decoded(ffmpeg, "libdav1d", joined(woven(coded, gaps)), size=(192, 128)), anchors, gaps)


def test_deep_samples_are_mixed_too(ffmpeg: str) -> None:
    """Ten bits, as they are chosen for smooth gradients."""
    gaps = (0, 5, 1, 18)
    coded = encoded(ffmpeg, tuple(options()), count=4, pixels="yuv420p10le")
    anchors = decoded(ffmpeg, "libdav1d", coded.stream(), pixels="yuv420p10le")
    check_fades(decoded(ffmpeg, "libdav1d", joined(woven(coded, gaps)), pixels="yuv420p10le"), anchors, gaps)


def test_a_key_frame_is_named(ffmpeg: str) -> None:
    """Every so many pictures, and nowhere else."""
    coded = encoded(ffmpeg, (*options(), "-g", "4"))
    weaver = Weaver([coded.header])
    keys = []
    for number, sample in enumerate(coded.samples):
        weaver.pictures(sample, min(number, 1))
        keys.append(weaver.key)
    assert [number for number, key in enumerate(keys) if key] == [0, 4, 8]


@pytest.mark.parametrize(("preset", "levels"), [(8, 1), (10, 2)])
def test_what_an_encoder_refers_to_outlives_the_longest_fades(preset: int, levels: int, each_ffmpeg: str) -> None:
    """However many anchors there are, also when their order hints begin anew: nothing gives way to means that is asked for later."""
    asked = options(preset, LOW_DELAY.replace("levels=2", f"levels={levels}"), "-g", "999", "-vf", "loop=9:15")
    coded = encoded(each_ffmpeg, tuple(asked), count=15, size=(64, 64), shown=150)
    assert len(woven(coded, [0] + [LONGEST_FADE] * 149)) == 149 * LONGEST_FADE + 1


def test_pictures_of_several_tiles_are_refused(ffmpeg: str) -> None:
    """At once, not where the first fade would be."""
    coded = encoded(ffmpeg, (*options(12), "-vf", "scale=4160:64"), count=1)
    with pytest.raises(Unexpected, match="too large"):
        Weaver([coded.header])


@pytest.mark.parametrize("superblock", [8, 16])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 13), (64, 64), (240, 135), (512, 288)], ids=str)
def test_a_fade_is_nothing_but_skipped_blocks(size: tuple[int, int], superblock: int) -> None:
    """However large a picture is, they take hardly any bytes."""
    assert len(_all_skipped(*size, superblock)) < 12 + sum(size) / 8


def test_a_fade_takes_hardly_any_bytes(ffmpeg: str) -> None:
    """Fewer than thirty for each picture that is shown, and what it is made of besides; three where it was made before."""
    coded = encoded(ffmpeg, tuple(options()))
    weaver = Weaver([coded.header])
    weaver.pictures(coded.samples[0], 0)
    samples = weaver.pictures(coded.samples[1], 16)
    assert len(samples[0]) < len(coded.samples[1]) + 5 * 22 + 8
    assert max(map(len, samples[1:])) < 3 * 22
    assert len(samples[-1]) == 3


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (options(10, "lookahead=0:scd=0"), "as soon as it is decoded|more than a picture"),
        (options(10, f"{LOW_DELAY}:film-grain=9"), "film grain"),
        (["-c:v", "libaom-av1", "-usage", "realtime", "-cpu-used", "8", "-lag-in-frames", "0", "-b:v", "0"], "long ago"),
        (["-c:v", "libaom-av1", "-usage", "realtime", "-cpu-used", "8", "-pix_fmt", "yuv444p"], "half the resolution"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_not_asked_for_is_refused_in_plain_words(asked: list[str], complaint: str, ffmpeg: str) -> None:
    """Rather than woven into something that no decoder takes."""
    coded = encoded(ffmpeg, tuple(asked))
    with pytest.raises(Unexpected, match=complaint):
        woven(coded, [0] + [9] * (len(GAPS) - 1))


def test_fades_lead_from_a_key_frame_and_to_none(ffmpeg: str) -> None:
    """One begins the stream, no other has a fade before it, and a fade is only so long."""
    coded = encoded(ffmpeg, (*options(), "-g", "2"))
    with pytest.raises(Unexpected, match="begin with a key frame"):
        Weaver([coded.header]).pictures(coded.samples[1], 1)
    weaver = Weaver([coded.header])
    weaver.pictures(coded.samples[0], 0)
    with pytest.raises(ValueError, match="are more than"):
        weaver.pictures(coded.samples[1], LONGEST_FADE + 1)
    weaver.pictures(coded.samples[1], LONGEST_FADE)
    with pytest.raises(Unexpected, match="key frame follows"):
        weaver.pictures(coded.samples[2], 2)


def test_parameters_are_one_unit_that_does_not_change(ffmpeg: str) -> None:
    """At the start, and nothing beside it; and a sample has one picture."""
    coded = encoded(ffmpeg, tuple(options()))
    for units in ([], [coded.header] * 2, [coded.samples[1]]):
        with pytest.raises(Unexpected, match="does not begin with"):
            Weaver(units)
    weaver = Weaver([coded.header])
    weaver.pictures(coded.samples[0], 0)
    changed = coded.header[:-1] + bytes([coded.header[-1] ^ 0x80])
    for sample, complaint in ((changed, "parameters change"), (b"", "no picture"), (coded.samples[1] * 2, "more than a picture")):
        with pytest.raises(Unexpected, match=complaint):
            weaver.pictures(sample, 1)
    with pytest.raises(Unexpected, match="no size"):
        weaver.pictures(b"\x30" + coded.samples[1][2:], 1)


def test_parameters_are_those_of_the_first_picture(ffmpeg: str) -> None:
    """Whatever a container was told before: what is woven goes by what decoders go by."""
    coded = encoded(ffmpeg, tuple(options()))
    other = encoded(ffmpeg, (*options(), "-vf", "scale=128:128"))
    weaver = Weaver([other.header])
    made = [weaver.pictures(sample, gap) for sample, gap in zip(coded.samples[:3], (0, 3, 5), strict=True)]
    assert weaver.units == [coded.header]
    assert [sample for samples in made for sample in samples] == woven(Coded(coded.header, coded.samples[:3]), (0, 3, 5))


@given(data=st.data())
def test_a_lie_is_woven_or_refused(data: st.DataObject, ffmpeg: str) -> None:
    """Whatever is cut off or turned over: an answer comes at once, and it is a stream or a ValueError."""
    coded = encoded(ffmpeg, tuple(options()))
    lies = [bytearray(part) for part in (coded.header, *coded.samples[:3])]
    for lie in data.draw(st.lists(st.sampled_from(lies), max_size=3)):
        place = data.draw(st.integers(0, min(60, len(lie) - 1)))
        lie[place] ^= data.draw(st.integers(1, 255))
        del lie[data.draw(st.integers(1, 2 * len(lie))) :]
    try:
        weaver = Weaver([bytes(lies[0])])
        for lie, gap in zip(lies[1:], (0, 9, 20), strict=True):
            weaver.pictures(bytes(lie), gap)
    except ValueError:
        pass
