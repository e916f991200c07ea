"""Encoder options that follow from the timeline: where the pictures lie that the others are made of.

Theory of operation. A cross-fade is what B-frames are: where every image of the run is a P-frame, and the pictures between two images are
B-frames, weighted prediction gives the whole cross-fade for a few bytes. Where images are some pictures apart, h264 and h265 have the images encoded
only, and the B-frames are written without an encoder (`fades`, `weaving`): then the encoder must write no B-frames of its own, and nothing else that
could not be moved apart. Elsewhere, as for ``mci``, its decisions are switched off, so that it repeats one pattern, as long as an image is shown: the
*rhythm*. Where that is no whole number, or a hold shifts the images, the P-frames come to lie beside the images; that costs a few per cent of bytes.

The B-frames refer to P-frames only, never to one another, so that a decoder needs two pictures of memory whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType

from stepwatch.core import hevc
from stepwatch.core.codecs import Encoding
from stepwatch.core.fades import KEYFRAME_EVERY, Fades
from stepwatch.core.timeline import Timeline, half_up

LONGEST_RHYTHM = 16
"""Pictures from one P-frame to the next; an image that is shown for longer has several. x264 and x265 take no more than 16 B-frames in a row."""
SVT_LEFT_OUT = "enable-tf=0:enable-dlf=0"
"""What SVT-AV1 does not do for cross-fades: filter noise out of images before, and block edges after. It costs a fifth of the time and wins no
likeness."""
SHORTEST_LOOKAHEAD = 16
"""Pictures that x265 sees in advance, at least, to know what is worth its bits."""

ANCHORS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"libx264": ("x264-params", "bframes=0:ref=1:keyint=infinite"), "libx265": ("x265-params", hevc.PARAMS)}
)
"""For each encoder whose anchors can be woven (`weaving`), the option that takes them and what makes it write such as are understood there."""


def can_weave(encoding: Encoding) -> bool:
    """Whether the encoder need see the ends of cross-fades only."""
    return encoding.follows and encoding.encoder in ANCHORS


def tuned(encoding: Encoding, timeline: Timeline, *, variable: bool, fades: Fades | None = None) -> Encoding:
    """*encoding* with what follows from *timeline*.

    *variable* outputs have one encoded picture for each image; of those with *fades* the encoder sees the anchors only.
    """
    if not encoding.follows:
        return encoding
    if fades is not None:
        name, more = ANCHORS[encoding.encoder]
        return _with(encoding, name, more)
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
