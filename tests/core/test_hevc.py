"""H.265: pictures between coded ones, written without an encoder, and what real decoders make of them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepwatch.core.bits import Reader
from stepwatch.core.cabac import Context
from stepwatch.core.hevc import LONGEST_FADE, PARAMS, Unexpected, Weaver, _all_skipped
from tests.weaving import ANEW, GAPS, HEVC, Decoder, check_fades, decoded, encoded, woven


def options(preset: str = "veryfast", params: str = "") -> list[str]:
    """What an encoder of anchors is asked for."""
    return ["-c:v", "libx265", "-preset", preset, "-crf", "24", "-x265-params", f"log-level=error:{PARAMS}{':' if params else ''}{params}"]


def skipped_blocks(data: tuple[int, int], width: int, height: int, *, smallest: int, largest: int, quantiser: int) -> list[tuple[int, int, int]]:
    """Place and side of every block of a picture, all of which are skipped: slice data as clause 7.3.8.4 reads it, looking at every sample's depth.

    Contexts begin as clause 9.3.2.2 says.
    """
    value, size = data
    reader = Reader((value << -size % 8).to_bytes(-(-size // 8), "big"))
    decoder = Decoder(reader)
    split, skipped = (
        [Context((start >> 4) * 5 - 45, ((start & 15) << 3) - 16, quantiser) for start in starts] for starts in ((107, 139, 126), (197, 185, 201))
    )
    depths: dict[tuple[int, int], int] = {}
    """Of each smallest block."""
    blocks = []

    def tree(x: int, y: int, side: int, depth: int) -> None:
        neighbours = [depths[place] for place in ((x - smallest, y), (x, y - smallest)) if place in depths]
        if x + side > width or y + side > height:
            parted = side > smallest
        else:
            parted = side > smallest and bool(decoder.take(split[sum(one > depth for one in neighbours)]))
        if parted:
            half = side // 2
            for place in ((x, y), (x + half, y), (x, y + half), (x + half, y + half)):
                if place[0] < width and place[1] < height:
                    tree(*place, half, depth + 1)
            return
        assert decoder.take(skipped[len(neighbours)]) == 1
        blocks.append((x, y, side))
        depths.update(dict.fromkeys(((x + across, y + down) for across in range(0, side, smallest) for down in range(0, side, smallest)), depth))

    units = [(x, y) for y in range(0, height, largest) for x in range(0, width, largest)]
    for place in units:
        tree(*place, largest, 0)
        assert decoder.ended() == (place == units[-1])
    assert reader.place == size
    return blocks


@given(st.integers(1, 40), st.integers(1, 40), st.integers(3, 5), st.integers(0, 3), st.integers(-5, 51))
@example(8, 6, 3, 2, 26)
@example(1, 1, 3, 0, 26)
@example(65, 49, 3, 3, 26)
def test_a_fade_is_nothing_but_skipped_blocks(across: int, down: int, smallest: int, more: int, quantiser: int) -> None:
    """Whatever the sides: blocks as large as fit, which cover the picture, and no bit left over."""
    largest = min(6, smallest + more)
    width, height = across << smallest, down << smallest
    blocks = skipped_blocks(
        _all_skipped(width, height, smallest, largest, quantiser), width, height, smallest=1 << smallest, largest=1 << largest, quantiser=quantiser
    )
    assert sum(side * side for _, _, side in blocks) == width * height
    assert all(x + side <= width and y + side <= height for x, y, side in blocks)
    assert sum(side == 1 << largest for _, _, side in blocks) == (width >> largest) * (height >> largest)


def test_pictures_between_two_are_their_mix_and_those_are_as_they_were(ffmpeg: str, each_ffmpeg: str) -> None:
    """Near ones, far ones and neighbours, and a picture in the middle that begins anew."""
    coded = encoded(ffmpeg, HEVC, options(), anew=ANEW)
    anchors = decoded(each_ffmpeg, HEVC, coded.stream())
    check_fades(decoded(each_ffmpeg, HEVC, woven(Weaver, coded, GAPS)), anchors, GAPS)


@pytest.mark.parametrize(
    ("preset", "params", "size"),
    [
        ("ultrafast", "", (16, 16)),
        ("superfast", "weightp=1:deblock=-1,-1", (64, 48)),
        ("faster", "no-sao=1:min-cu-size=16", (134, 102)),
        ("fast", "no-deblock=1", (50, 38)),
        ("medium", "ctu=16:hash=1", (70, 150)),
    ],
    ids=str,
)
def test_presets_slices_and_sizes_make_no_difference(preset: str, params: str, size: tuple[int, int], ffmpeg: str) -> None:
    """Blocks of all sizes, filters that are on, off or set, weighted prediction, checksums, and pictures that are cropped."""
    gaps = (0, 4, 9)
    coded = encoded(ffmpeg, HEVC, options(preset, params), count=3, size=size)
    anchors = decoded(ffmpeg, HEVC, coded.stream(), size=size)
    check_fades(decoded(ffmpeg, HEVC, woven(Weaver, coded, gaps), size=size), anchors, gaps)


@pytest.mark.parametrize(("pixels", "levels"), [("yuv444p", 1.5), ("yuv420p10le", 4.5), ("gray", 1.5)])
def test_all_samples_are_mixed(pixels: str, levels: float, ffmpeg: str) -> None:
    """4:4:4, ten bits, and no colours; weights in 128 parts are worth four levels where there are 1024. Places come round."""
    gaps = (0, 5, LONGEST_FADE, LONGEST_FADE)
    coded = encoded(ffmpeg, HEVC, options(), count=len(gaps), pixels=pixels)
    anchors = decoded(ffmpeg, HEVC, coded.stream(), pixels=pixels)
    check_fades(decoded(ffmpeg, HEVC, woven(Weaver, coded, gaps), pixels=pixels), anchors, gaps, levels=levels)


def test_a_fade_takes_hardly_any_bytes(ffmpeg: str) -> None:
    """Fewer than thirty, header and all; most are for weights."""
    coded = encoded(ffmpeg, HEVC, options(), count=2)
    weaver = Weaver(coded.parameters)
    weaver.anchor(coded.pictures[0], 0)
    weaver.anchor(coded.pictures[1], LONGEST_FADE)
    fades = list(weaver.fades(LONGEST_FADE))
    assert len(fades) == LONGEST_FADE - 1
    assert max(map(len, fades)) < 30


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ("bframes=2", "another than the one before"),
        ("temporal-mvp=1", "motion from other pictures"),
        ("lossless=1", "lossless"),
        ("hrd=1:vbv-maxrate=900:vbv-bufsize=900", "bit rate"),
        ("scaling-list=default", "matrices"),
        ("ref=3:keyint=250", "several"),
    ],
)
def test_what_was_not_asked_for_is_refused_in_plain_words(params: str, complaint: str, ffmpeg: str) -> None:
    """Rather than woven into something that no decoder takes."""
    coded = encoded(ffmpeg, HEVC, options("veryfast", params))
    with pytest.raises(Unexpected, match=complaint):
        woven(Weaver, coded, GAPS)


def test_rows_that_are_coded_side_by_side_are_refused(ffmpeg: str) -> None:
    """x265 does so by itself where there are enough of them."""
    coded = encoded(ffmpeg, HEVC, options("veryfast", "wpp=1:ctu=16"), count=1, size=(128, 128))
    with pytest.raises(Unexpected, match="side by side"):
        Weaver(coded.parameters)


def test_parameters_are_three_units_that_do_not_change(ffmpeg: str) -> None:
    """One of each kind, at the start; and a picture has slices."""
    coded = encoded(ffmpeg, HEVC, options(), count=1)
    for units in ([], coded.parameters[:2], [*coded.parameters, coded.parameters[-1]]):
        with pytest.raises(Unexpected, match="does not begin with"):
            Weaver(units)
    with pytest.raises(Unexpected, match="parameters change"):
        Weaver(coded.parameters).anchor([*coded.parameters, *coded.pictures[0]], 0)
    with pytest.raises(Unexpected, match="no slice"):
        Weaver(coded.parameters).anchor([], 0)


def test_no_fade_leads_to_a_picture_that_begins_anew(ffmpeg: str) -> None:
    """What comes before it could not be kept beside it; it shows in the very next place."""
    coded = encoded(ffmpeg, HEVC, options(), count=1)
    weaver = Weaver(coded.parameters)
    weaver.anchor(coded.pictures[0], 0)
    with pytest.raises(Unexpected, match="begins anew"):
        weaver.anchor(coded.pictures[0], 2)
    with pytest.raises(ValueError, match="more than 127"):
        weaver.anchor(coded.pictures[0], LONGEST_FADE + 1)
    weaver.anchor(coded.pictures[0], 1)
    assert not list(weaver.fades(1))
