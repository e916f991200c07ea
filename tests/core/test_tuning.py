"""Encoder options that follow from the timeline."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.codecs import CODECS
from stepwatch.core.timeline import Timeline, make_timeline
from stepwatch.core.tuning import LONGEST_RHYTHM, rhythm, tuned

DEFAULT = CODECS["h264"].qualities["default"]


def timeline(count: int, seconds: int) -> Timeline:
    return make_timeline(count, duration=Fraction(seconds), fps=Fraction(30))


def params(count: int, seconds: int) -> dict[str, str]:
    said = dict(tuned(DEFAULT, timeline(count, seconds), variable=False).options)["x264-params"]
    return dict(part.split("=") for part in said.split(":"))


def test_every_image_is_what_the_pictures_behind_it_are_made_of() -> None:
    """100 images in 30 s are 9 pictures each: 8 of them may be B-frames, and key frames fall on images too."""
    said = params(100, 30)
    assert (said["bframes"], said["b-adapt"], said["b-pyramid"], said["scenecut"]) == ("8", "0", "none", "0")
    assert int(said["keyint"]) % 9 == 0


def test_an_image_shown_for_long_is_cut_into_equal_parts() -> None:
    """20 images in 30 s are 45 pictures each, in three parts of 15."""
    assert rhythm(timeline(20, 30)) == 15
    assert int(params(20, 30)["keyint"]) % 15 == 0


def test_more_images_than_pictures_have_no_rhythm() -> None:
    """Then every picture shows other images, and the encoder decides by itself."""
    assert rhythm(timeline(400, 10)) == 1
    assert "bframes" not in params(400, 10)


@given(st.integers(1, 400), st.integers(1, 120))
def test_the_rhythm_is_never_longer_than_encoders_take(count: int, seconds: int) -> None:
    """Never more B-frames in a row than there may be; where an image is shown for a whole number of pictures, P-frames fall on images."""
    length = rhythm(timeline(count, seconds))
    assert 1 <= length <= LONGEST_RHYTHM
    pictures = seconds * 30
    if count <= pictures and pictures % count == 0 and pictures // count <= LONGEST_RHYTHM:
        assert length == pictures // count


def test_classic_and_foreign_encoders_are_left_as_they_are() -> None:
    """What does not ask for it gets nothing."""
    for codec in CODECS.values():
        classic = codec.qualities["classic"]
        assert tuned(classic, timeline(100, 30), variable=False) == classic


def test_one_picture_for_each_image_leaves_frame_types_to_the_container_rules() -> None:
    """No P-B pattern without pictures in between."""
    said = dict(tuned(DEFAULT, timeline(10, 10), variable=True).options)["x264-params"]
    assert "bframes" not in said
    assert "keyint" not in said


def test_x265_sees_further_than_its_longest_row_of_b_frames() -> None:
    """Otherwise it does not start: 20 images in 10 s are 14 B-frames in a row."""
    said = dict(tuned(CODECS["h265"].qualities["default"], timeline(20, 10), variable=False).options)["x265-params"]
    found = dict(part.split("=") for part in said.split(":"))
    assert int(found["bframes"]) == 14 < int(found["rc-lookahead"])


def test_av1_leaves_out_its_filters_only_where_pictures_fade() -> None:
    """And its preset stays: a faster one lets stand what changes by little."""
    default = CODECS["av1"].qualities["default"]
    still = make_timeline(100, duration=Fraction(30), fps=Fraction(30), interpolation="none")
    fading = dict(tuned(default, timeline(100, 30), variable=False).options)
    assert (fading["preset"], fading["svtav1-params"]) == ("10", "enable-tf=0:enable-dlf=0")
    assert dict(tuned(default, still, variable=False).options) == dict(default.options)
    assert tuned(CODECS["av1"].qualities["classic"], timeline(100, 30), variable=False) == CODECS["av1"].qualities["classic"]
