"""VP9: pictures between coded ones, written without an encoder, and what real decoders make of them."""

from __future__ import annotations

import random
import struct
import subprocess
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.vp9 import LONGEST_FADE, Unexpected, Weaver, _Coder
from tests.weaving import images

GAPS = (0, 9, 1, 2, LONGEST_FADE, 1, 7)
"""Pictures from each anchor to the next; the second 1 leads to a picture that begins anew."""
ANEW = 5
GRAIN = 1 / 32
"""Of a fade: as far as a picture may be from its place."""
ROUNDING = 1.5
"""Levels that four halvings may add, each of which rounds up."""
IVF = 32, 12
"""Bytes of an IVF file's header, and of each frame's."""


def options(*more: str, resilient: str = "1", ahead: str = "0") -> list[str]:
    """What an encoder of anchors is asked for."""
    plain = ["-crf", "30", "-b:v", "0", "-deadline", "realtime", "-cpu-used", "7", "-row-mt", "1", "-aq-mode", "0", "-g", "9999"]
    plain += ["-error-resilient", resilient, "-auto-alt-ref", ahead, "-lag-in-frames", "16" if ahead == "1" else "0"]
    return ["-c:v", "libvpx-vp9", *plain, *more]


def encoded(ffmpeg: str, asked: Sequence[str], *, count: int = len(GAPS), size: tuple[int, int] = (64, 48), anew: int = 0) -> list[bytes]:
    """The samples of a few images; the picture *anew* begins anew."""
    argv = [ffmpeg, "-v", "error", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{size[0]}x{size[1]}", "-framerate", "30", "-i", "-"]
    argv += [*asked, *(["-force_key_frames", f"expr:eq(n,{anew})"] if anew else []), "-f", "ivf", "-"]
    data = subprocess.run(argv, input=images(count, size), capture_output=True, check=True).stdout
    samples, place = [], IVF[0]
    while place < len(data):
        (length,) = struct.unpack_from("<I", data, place)
        samples.append(data[place + IVF[1] : place + IVF[1] + length])
        place += IVF[1] + length
    return samples


def woven(samples: Sequence[bytes], gaps: Sequence[int]) -> list[bytes]:
    weaver = Weaver()
    return [picture for sample, gap in zip(samples, gaps, strict=True) for picture in weaver.pictures(sample, gap)]


def decoded(ffmpeg: str, samples: Sequence[bytes], *, size: tuple[int, int] = (64, 48), decoder: str = "vp9") -> list[array[int]]:
    """Levels of every picture in order, from a decoder that stops at the first thing it does not like."""
    head = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, IVF[0], b"VP90", *size, 30, 1, len(samples), 0)
    stream = head + b"".join(struct.pack("<IQ", len(sample), number) + sample for number, sample in enumerate(samples))
    argv = [ffmpeg, "-v", "error", "-xerror", "-err_detect", "explode", "-c:v", decoder, "-f", "ivf", "-i", "-"]
    argv += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    done = subprocess.run(argv, input=stream, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(errors="replace")
    levels = array("B", done.stdout)
    step = size[0] * size[1] * 3 // 2
    return [levels[at : at + step] for at in range(0, len(levels), step)]


def check_fades(pictures: Sequence[array[int]], anchors: Sequence[array[int]], gaps: Sequence[int]) -> None:
    """Anchors are what they were, and all between them is their mix, to the grain of a fade."""
    assert len(pictures) == sum(gaps) + 1
    place = 0
    for number, gap in enumerate(gaps):
        for step in range(1, gap):
            for level, before, after in zip(pictures[place + step], anchors[number - 1], anchors[number], strict=True):
                assert abs(level - before - (after - before) * step / gap) <= abs(after - before) * GRAIN + ROUNDING
        place += gap
        assert pictures[place] == anchors[number], number


@pytest.mark.parametrize("decoder", ["vp9", "libvpx-vp9"])
def test_pictures_between_two_are_their_mix_and_those_are_as_they_were(ffmpeg: str, each_ffmpeg: str, decoder: str) -> None:
    """Near ones, far ones and neighbours, and a picture in the middle that begins anew."""
    samples = encoded(ffmpeg, options(), anew=ANEW)
    check_fades(decoded(each_ffmpeg, woven(samples, GAPS), decoder=decoder), decoded(each_ffmpeg, samples, decoder=decoder), GAPS)


@pytest.mark.parametrize("size", [(16, 16), (66, 98), (72, 40), (130, 258), (18, 34), (4200, 18)], ids=str)
def test_sizes_that_no_block_divides_make_no_difference(size: tuple[int, int], ffmpeg: str) -> None:
    """Blocks at the edge are cut, and reach beyond it by little; what is wider than a tile may be has two."""
    gaps = (0, 5)
    samples = encoded(ffmpeg, options(), count=2, size=size)
    for decoder in ("vp9", "libvpx-vp9"):
        check_fades(decoded(ffmpeg, woven(samples, gaps), size=size, decoder=decoder), decoded(ffmpeg, samples, size=size), gaps)


@pytest.mark.parametrize(
    ("more", "size"),
    [
        (("-cpu-used", "5"), (64, 64)),
        (("-deadline", "good", "-cpu-used", "4"), (64, 64)),
        (("-tile-columns", "1", "-tile-rows", "1"), (512, 34)),
    ],
    ids=str,
)
def test_efforts_and_tiles_make_no_difference(more: tuple[str, ...], size: tuple[int, int], ffmpeg: str) -> None:
    gaps = (0, 4, 9)
    samples = encoded(ffmpeg, options(*more), count=3, size=size)
    check_fades(decoded(ffmpeg, woven(samples, gaps), size=size), decoded(ffmpeg, samples, size=size), gaps)


def test_a_fade_takes_hardly_any_bytes(ffmpeg: str) -> None:
    """Some thirty for a picture that shows, hidden ones and all."""
    first, second = encoded(ffmpeg, options(), count=2)
    weaver = Weaver()
    weaver.pictures(first, 0)
    fades = weaver.pictures(second, LONGEST_FADE)
    assert len(fades) == LONGEST_FADE
    assert sum(map(len, fades)) - len(second) < 32 * LONGEST_FADE


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (options(resilient="0"), "how another one was coded"),
        (options("-aq-mode", "3", "-b:v", "100k", "-crf", "10"), "in segments"),
        (options(resilient="0", ahead="1"), "several pictures|do not show|how another one"),
    ],
    ids=["not resilient", "segments", "hidden"],
)
def test_what_was_not_asked_for_is_refused_in_plain_words(asked: list[str], complaint: str, ffmpeg: str) -> None:
    """Rather than woven into something that no decoder takes."""
    samples = encoded(ffmpeg, asked)
    with pytest.raises(Unexpected, match=complaint):
        woven(samples, [0, *[1] * (len(samples) - 1)])


def test_a_fade_begins_behind_a_key_frame_and_leads_to_none(ffmpeg: str) -> None:
    samples = encoded(ffmpeg, options(), count=2, anew=1)
    with pytest.raises(Unexpected, match="a key frame follows"):
        woven(samples, (0, 4))
    weaver = Weaver()
    with pytest.raises(ValueError, match="are more than"):
        weaver.pictures(samples[0], LONGEST_FADE + 1)
    with pytest.raises(Unexpected, match="does not begin with a key frame"):
        weaver.pictures(encoded(ffmpeg, options(), count=2)[1], 1)


def test_what_is_cut_or_changed_is_refused_or_woven_but_never_a_surprise(ffmpeg: str) -> None:
    """Bytes that an encoder never writes end in a ValueError, whatever they are."""
    first, second = encoded(ffmpeg, options(), count=2)
    chance = random.Random(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(second[: chance.randrange(len(second))])
        for _ in range(chance.randrange(3)):
            if damaged:
                damaged[chance.randrange(min(len(damaged), 16))] ^= 1 << chance.randrange(8)
        weaver = Weaver()
        weaver.pictures(first, 0)
        try:
            assert len(weaver.pictures(bytes(damaged), 3)) == 3
        except ValueError:
            refused += 1
    assert 0 < refused < 300


@given(st.lists(st.tuples(st.integers(1, 255), st.integers(0, 1)), max_size=400))
def test_what_is_coded_is_read_again_as_the_standard_reads_it(bits: list[tuple[int, int]]) -> None:
    """The decoder of clause 9.2.2, which needs no byte beyond the last."""
    coder = _Coder()
    for probability, bit in bits:
        coder.put(probability, bit)
    data = coder.coded()
    left = 8 * len(data) - 8
    value, width = int.from_bytes(data, "big"), 255
    read = []
    for probability, _ in [(128, 0), *bits]:
        split = 1 + ((width - 1) * probability >> 8)
        bit = int(value >> left >= split)
        value -= bit * split << left
        width = width - split if bit else split
        while width < 128:
            width, left = 2 * width, left - 1
        assert left >= 0
        read.append(bit)
    assert read == [0, *(bit for _, bit in bits)]
    assert data[-1] >> 5 != 0b110
