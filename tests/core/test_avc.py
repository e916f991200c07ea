"""H.264: pictures between coded ones, written without an encoder, and what real decoders make of them."""

from __future__ import annotations

import pytest

from stepwatch.core.avc import LONGEST_FADE, Unexpected, Weaver, _all_skipped
from stepwatch.core.bits import Reader
from stepwatch.core.cabac import Context
from tests.weaving import ANEW, AVC, GAPS, Decoder, check_fades, decoded, encoded, woven


def options(preset: str = "superfast", params: str = "", *more: str) -> list[str]:
    """What an encoder of anchors is asked for."""
    chosen = f"scenecut=0:keyint=250{':' if params else ''}{params}"
    return ["-c:v", "libx264", "-preset", preset, "-crf", "19", "-bf", "0", "-x264-params", chosen, *more]


@pytest.mark.parametrize("macroblocks", [1, 2, 12, 1000, 32400])
def test_a_fade_is_nothing_but_skipped_blocks(macroblocks: int) -> None:
    """As many as there are, whatever the size, and hardly any bytes."""
    value, size = _all_skipped(macroblocks, 26)
    assert size < 80 + macroblocks / 20
    reader = Reader((value << -size % 8).to_bytes(-(-size // 8), "big"))
    decoder, skipped = Decoder(reader), Context(18, 64, 26)
    for number in range(macroblocks):
        assert decoder.take(skipped) == 1
        assert decoder.ended() == (number == macroblocks - 1)
    assert reader.place == size


def test_pictures_between_two_are_their_mix_and_those_are_as_they_were(ffmpeg: str, each_ffmpeg: str) -> None:
    """Near ones, far ones and neighbours, and a picture in the middle that begins anew."""
    coded = encoded(ffmpeg, AVC, options(), anew=ANEW)
    anchors = decoded(each_ffmpeg, AVC, coded.stream())
    check_fades(decoded(each_ffmpeg, AVC, woven(Weaver, coded, GAPS)), anchors, GAPS)


@pytest.mark.parametrize(
    ("preset", "params", "size"),
    [
        ("ultrafast", "cabac=1:no-deblock=0", (16, 16)),
        ("medium", "ref=1:weightp=2", (50, 38)),
        ("veryfast", "slices=3:ref=1:subme=1", (64, 96)),
    ],
    ids=str,
)
def test_presets_slices_and_sizes_make_no_difference(preset: str, params: str, size: tuple[int, int], ffmpeg: str) -> None:
    """Weighted prediction, several slices, and pictures that are cropped."""
    gaps = (0, 4, 9)
    coded = encoded(ffmpeg, AVC, options(preset, params), count=3, size=size)
    anchors = decoded(ffmpeg, AVC, coded.stream(), size=size)
    check_fades(decoded(ffmpeg, AVC, woven(Weaver, coded, gaps), size=size), anchors, gaps)


def test_planes_in_full_are_mixed_too(ffmpeg: str) -> None:
    """4:4:4, as it is chosen where colours must not bleed."""
    gaps = (0, 5)
    coded = encoded(ffmpeg, AVC, options(), count=2, pixels="yuv444p")
    anchors = decoded(ffmpeg, AVC, coded.stream(), pixels="yuv444p")
    check_fades(decoded(ffmpeg, AVC, woven(Weaver, coded, gaps), pixels="yuv444p"), anchors, gaps)


def test_a_fade_takes_hardly_any_bytes(ffmpeg: str) -> None:
    """Fewer than twenty, header and all."""
    coded = encoded(ffmpeg, AVC, options(), count=2)
    weaver = Weaver(coded.parameters)
    weaver.anchor(coded.pictures[0], 0)
    weaver.anchor(coded.pictures[1], LONGEST_FADE)
    fades = list(weaver.fades(LONGEST_FADE))
    assert len(fades) == LONGEST_FADE - 1
    assert max(map(len, fades)) < 20


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (options("superfast", "bframes=2:b-adapt=0"), "later ones"),
        (options("superfast", "cabac=0"), "not arithmetic"),
        (options("superfast", "ref=3"), "refers to several"),
        (options("superfast", "nal-hrd=vbr:vbv-maxrate=900:vbv-bufsize=900"), "bit rate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_not_asked_for_is_refused_in_plain_words(asked: list[str], complaint: str, ffmpeg: str) -> None:
    """Rather than woven into something that no decoder takes."""
    coded = encoded(ffmpeg, AVC, asked)
    with pytest.raises(Unexpected, match=complaint):
        woven(Weaver, coded, GAPS)


def test_parameters_are_two_units_that_do_not_change(ffmpeg: str) -> None:
    """One of each kind, at the start; and a picture has slices."""
    coded = encoded(ffmpeg, AVC, options(), count=1)
    for units in ([], coded.parameters[:1], [*coded.parameters, coded.parameters[-1]]):
        with pytest.raises(Unexpected, match="does not begin with"):
            Weaver(units)
    with pytest.raises(Unexpected, match="parameters change"):
        Weaver(coded.parameters).anchor([*coded.parameters, *coded.pictures[0]], 0)
    with pytest.raises(Unexpected, match="no slice"):
        Weaver(coded.parameters).anchor([], 0)
    with pytest.raises(ValueError, match="are more than"):
        Weaver(coded.parameters).anchor(coded.pictures[0], LONGEST_FADE + 1)
