"""Encoder options that follow from the timeline: where the pictures lie that the others are made of.

Theory of operation. A cross-fade is what B-frames are: where every image of the run is a P-frame, and the pictures between two images are
B-frames, weighted prediction gives the whole cross-fade for a few bytes. Where images are some pictures apart, only the images are encoded, and the
pictures between them are written without an encoder (`fades`, `weaving`): then it must write no B-frames of its own, and nothing else that could
not be moved apart. Elsewhere, as for ``mci``, the decisions of x264 and x265 are switched off, so that they repeat one pattern, as long as an image
is shown: the *rhythm*. Where that is no whole number, or a hold shifts the images, the P-frames come to lie beside the images; that costs a few per
cent of bytes.

The B-frames refer to P-frames only, never to one another, so that a decoder needs two pictures of memory whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

from stepwatch.core import av1, avc, hevc, vp9
from stepwatch.core.codecs import Encoding
from stepwatch.core.fades import KEYFRAME_EVERY, Fades
from stepwatch.core.timeline import Timeline, half_up

LONGEST_RHYTHM = 16
"""Pictures from one P-frame to the next; an image that is shown for longer has several. x264 and x265 take no more than 16 B-frames in a row."""
SVT_LEFT_OUT = "enable-tf=0:enable-dlf=0"
"""What SVT-AV1 does not do for cross-fades: filter noise out of images before, and block edges after. It costs a fifth of the time and wins no
likeness."""
NEVER = 999_999
"""Pictures after which an encoder writes a key frame that nobody asked for."""
SHORTEST_LOOKAHEAD = 16
"""Pictures that x265 sees in advance, at least, to know what is worth its bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """What makes an encoder write anchors that can be woven (`weaving`)."""

    longest: int
    """Pictures from one to the next, at most."""
    options: tuple[tuple[str, str], ...]
    """In place of the same options of a quality, or in addition; one that is a list of parameters is added to."""
    finer: int = 0
    """By how much the quality's crf is lowered: where it saw all pictures, those of a cross-fade would refine the images before and behind."""
    off: Fraction = Fraction(0)
    """Share of the way from one to the next by which pictures between them may be off their places."""
    widest: int = 1 << 16
    """Pixels from side to side of what can be woven, at most."""
    largest: int = 1 << 32
    """Pixels in all."""
    regular: bool = False
    """It takes no orders where to write key frames, but for every so many."""


ANCHORS: Mapping[str, Anchors] = MappingProxyType(
    {
        "libx264": Anchors(longest=avc.LONGEST_FADE, options=(("x264-params", "bframes=0:ref=1:keyint=infinite"),), off=Fraction(1, 64)),
        "libx265": Anchors(longest=hevc.LONGEST_FADE, options=(("x265-params", hevc.PARAMS),)),
        "libvpx-vp9": Anchors(
            longest=vp9.LONGEST_FADE,
            options=(("error-resilient", "1"), ("auto-alt-ref", "0"), ("lag-in-frames", "0"), ("g", str(NEVER))),
            finer=3,
            off=Fraction(1, 32),
        ),
        "libsvtav1": Anchors(
            longest=av1.LONGEST_FADE,
            # Beyond 10 it lets stand what changes by little, and below with these levels it refers to more pictures than can be kept.
            options=(("preset", "10"), ("svtav1-params", "pred-struct=1:hierarchical-levels=2:lookahead=0:scd=0:enable-tf=0:lp=1")),
            finer=10,
            widest=av1.WIDEST,
            largest=av1.LARGEST,
            off=Fraction(1, 32),
            regular=True,
        ),
    }
)
"""For each encoder for which that is known."""


def can_weave(encoding: Encoding, width: int, height: int) -> bool:
    """Whether the encoder need see the ends of cross-fades only, in pictures of this size."""
    anchors = ANCHORS.get(encoding.encoder)
    return encoding.follows and anchors is not None and width <= anchors.widest and width * height <= anchors.largest


def tuned(encoding: Encoding, timeline: Timeline, *, variable: bool, fades: Fades | None = None) -> Encoding:
    """*encoding* with what follows from *timeline*.

    *variable* outputs have one encoded picture for each image; of those with *fades* the encoder sees the anchors only.
    """
    if not encoding.follows:
        return encoding
    if fades is not None:
        anchors = ANCHORS[encoding.encoder]
        for name, value in anchors.options:
            encoding = _added(encoding, name, value) if name.endswith("-params") else _replaced(encoding, name, value)
        return _replaced(encoding, "crf", str(max(1, int(dict(encoding.options)["crf"]) - anchors.finer))) if anchors.finer else encoding
    if encoding.encoder == "libx264":
        return _with(encoding, "x264-params", _x264(rhythm(timeline), variable=variable))
    if encoding.encoder == "libx265":
        return _with(encoding, "x265-params", _x265(rhythm(timeline), variable=variable))
    if encoding.encoder == "libsvtav1" and timeline.interpolation == "blend" and not variable and not timeline.dense:
        # A faster preset than 10 would leave out more than that: what changes by little from image to image then stays as it was.
        return replace(encoding, options=(*encoding.options, ("svtav1-params", SVT_LEFT_OUT)))
    return encoding


def _with(encoding: Encoding, name: str, more: str) -> Encoding:
    return replace(encoding, options=tuple((key, f"{value}:{more}" if key == name and more else value) for key, value in encoding.options))


def _added(encoding: Encoding, name: str, more: str) -> Encoding:
    return _with(encoding, name, more) if name in dict(encoding.options) else _replaced(encoding, name, more)


def _replaced(encoding: Encoding, name: str, value: str) -> Encoding:
    return replace(encoding, options=(*((key, old) for key, old in encoding.options if key != name), (name, value)))


def rhythm(timeline: Timeline) -> int:
    """Pictures from one P-frame to the next: a whole image, or an equal part of one that is shown for long."""
    if timeline.dense:
        return 1
    shown = Fraction(timeline.pictures, timeline.positions)
    return max(1, half_up(shown / math.ceil(shown / LONGEST_RHYTHM)))


def _x264(pictures: int, *, variable: bool) -> str:
    if variable:
        return ""
    if pictures == 1:
        return f"b-pyramid=none:keyint={KEYFRAME_EVERY}"
    return f"bframes={pictures - 1}:b-adapt=0:b-pyramid=none:keyint={KEYFRAME_EVERY // pictures * pictures}"


def _x265(pictures: int, *, variable: bool) -> str:
    if variable:
        return ""
    if pictures == 1:
        return f"b-pyramid=0:keyint={KEYFRAME_EVERY}"
    # It has to see further than its longest row of B-frames, and is given two images.
    lookahead = max(2 * pictures, SHORTEST_LOOKAHEAD)
    return f"bframes={pictures - 1}:b-adapt=0:b-pyramid=0:rc-lookahead={lookahead}:keyint={KEYFRAME_EVERY // pictures * pictures}"
