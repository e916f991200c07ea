"""The table of codecs: data, not code.

``classic`` holds the parameters of the WebUI extension Steps Animation, as published. Encoder options are opaque words here; only ``graph``
knows that they go to ffmpeg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """One way to call one encoder."""

    encoder: str
    options: tuple[tuple[str, str], ...]
    pixels: str
    """ffmpeg's name of the pixel format that the encoder is given."""
    follows: bool = False
    """Options that depend on the timeline are added by `tuning`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """What stepwatch knows of one ``codec:`` of the policy."""

    name: str
    suffix: str
    muxer: str
    stream: str
    """What a demuxer calls the stream, to recognise it again."""
    qualities: Mapping[str, Encoding]
    """default, classic, high, small."""
    quality_option: str | None = None
    """Encoder option that ``crf: N`` and ``max_size`` move; None: there is none."""
    coarsest: int = 0
    """Value of that option beyond which nobody wants to look; the end of the search for ``max_size``."""
    finest: int = 0
    even: bool = True
    """Width and height must be even (4:2:0 and 4:2:2 planes)."""
    video: bool = True
    """A video with bt709 planes; False for animated images in RGB."""
    tags: Literal["mp4", "mov", "webm", "embedded"] = "mp4"
    """How metadata gets in: by ffmpeg into the container, or added to the finished file."""
    muxer_options: tuple[tuple[str, str], ...] = ()
    timescale: int | None = None
    """Ticks a second in which the container counts; None: as many as needed."""
    fastest: int | None = None
    """Pictures a second that players still honour."""
    largest: int = 16384
    """Longest side in pixels."""
    smallest: int = 1
    """Shortest side in pixels that its encoders take; smaller pictures are enlarged by a whole factor."""
    holds_by_delay: bool = False
    """The container counts in ticks of its own: a hold is one picture with a long delay, not many equal ones."""
    moving: bool = False
    """A single picture would be a still image that knows no time: it is written twice."""
    apart: bool = False
    """Each picture is encoded by itself."""
    palette: bool = False
    """A pass over the images first finds the colours."""
    tolerance: float = 3.0
    """Mean difference of 32x32 luma thumbnails (levels of 255) that the encoder's loss may cause."""
    extra: Mapping[str, str] = field(default_factory=dict)


def _x264(preset: str, crf: int) -> Encoding:
    return Encoding(encoder="libx264", options=(("preset", preset), ("crf", str(crf))), pixels="yuv420p")


def _tuned_x264(preset: str, crf: int, *params: str) -> Encoding:
    """Made for images with cross-fades between them, see `tuning`. No scene cuts: a jump is a cross-fade like any other.

    One quantiser for all images and a coarser one for what is mixed of them (qcomp, pbratio): where every picture is a new draft of the whole image,
    nothing is worth more than the rest, and looking ahead for it costs a third of the time. Within a picture a little more goes to what is dark and
    flat (aq-mode): without it a night sky is further from its frames than the classic parameters leave it.
    """
    chosen = ":".join(
        ("scenecut=0", "sync-lookahead=0", "rc-lookahead=0", "mbtree=0", "aq-mode=3", "aq-strength=0.5", "qcomp=1", "pbratio=3", *params)
    )
    return Encoding(encoder="libx264", options=(("preset", preset), ("crf", str(crf)), ("x264-params", chosen)), pixels="yuv420p", follows=True)


def _x265(preset: str, crf: int) -> Encoding:
    return Encoding(
        encoder="libx265",
        options=(("preset", preset), ("crf", str(crf)), ("x265-params", "log-level=error")),
        pixels="yuv420p",
    )


def _tuned_x265(preset: str, crf: int, *params: str) -> Encoding:
    """As for x264; but here looking ahead pays (cutree), and the encoder spends no less where the quantiser is the same everywhere."""
    chosen = ":".join(("log-level=error", "scenecut=0", "weightb=1", "aq-mode=3", "aq-strength=0.5", "cutree=1", *params))
    return Encoding(encoder="libx265", options=(("preset", preset), ("crf", str(crf)), ("x265-params", chosen)), pixels="yuv420p", follows=True)


def _vp9(crf: int) -> Encoding:
    options = (("crf", str(crf)), ("b:v", "0"), ("deadline", "realtime"), ("cpu-used", "4"))
    return Encoding(encoder="libvpx-vp9", options=options, pixels="yuv420p")


def _tuned_vp9(speed: int, crf: int) -> Encoding:
    """Rows of blocks are shared out among threads, the quantiser is the same for all of a picture, and key frames cost too much to come often."""
    options = (("crf", str(crf)), ("b:v", "0"), ("deadline", "realtime"), ("cpu-used", str(speed)), ("row-mt", "1"), ("aq-mode", "0"), ("g", "250"))
    return Encoding(encoder="libvpx-vp9", options=options, pixels="yuv420p", follows=True)


def _svt(preset: int, crf: int) -> Encoding:
    return Encoding(encoder="libsvtav1", options=(("preset", str(preset)), ("crf", str(crf))), pixels="yuv420p", follows=True)


def _aom(crf: int) -> Encoding:
    options = (("crf", str(crf)), ("b:v", "0"), ("usage", "realtime"), ("cpu-used", "8"))
    return Encoding(encoder="libaom-av1", options=options, pixels="yuv444p")


def _prores_ks(profile: int) -> Encoding:
    options = (("profile:v", str(profile)), ("vendor", "apl0"), ("bits_per_mb", "8000"))
    return Encoding(encoder="prores_ks", options=options, pixels="yuv422p10le")


def _fixed_prores(profile: int, quantiser: int) -> Encoding:
    """One quantiser for all blocks: to look for each slice's own, as large as a rate allows, takes five times as long."""
    options = (("profile:v", str(profile)), ("vendor", "apl0"), ("q:v", str(quantiser)))
    return Encoding(encoder="prores_ks", options=options, pixels="yuv422p10le")


def _gif() -> Encoding:
    return Encoding(encoder="gif", options=(), pixels="pal8")


def _webp(quality: int, effort: int) -> Encoding:
    # Not libwebp_anim: what changes by less than a few levels it leaves as it was, so that the end of a run, where little changes, lags by whole
    # images or is lost; and it joins such pictures, so that nobody can tell how many there will be. Each picture by itself costs up to twice as much.
    # From effort 3 on it takes three times as long, for a twentieth of the bytes.
    return Encoding(encoder="libwebp", options=(("quality", str(quality)), ("compression_level", str(effort))), pixels="bgra")


def _apng(prediction: str, effort: int) -> Encoding:
    # Steps of a run are smooth: "up" finds as much as trying all of them for each row. Effort 3 takes two fifths of the time of 6, for a tenth more
    # bytes.
    return Encoding(encoder="apng", options=(("pred", prediction), ("compression_level", str(effort))), pixels="rgb24")


_TABLE = (
    Codec(
        name="h264",
        suffix=".mp4",
        muxer="mp4",
        stream="h264",
        qualities={
            "default": _tuned_x264("superfast", 19, "subme=0", "weightp=0", "partitions=i8x8"),
            "classic": _x264("medium", 23),
            "high": _tuned_x264("faster", 15),
            "small": _tuned_x264("medium", 26),
        },
        quality_option="crf",
        coarsest=45,
        finest=1,
        muxer_options=(("movflags", "+faststart"),),
        smallest=16,
    ),
    Codec(
        name="h265",
        suffix=".mp4",
        muxer="mp4",
        stream="hevc",
        qualities={
            "default": _tuned_x265("veryfast", 25, "weightp=0", "ref=1", "max-merge=1", "me=dia", "subme=1", "min-cu-size=16"),
            "classic": _x265("faster", 28),
            "high": _tuned_x265("faster", 18),
            "small": _tuned_x265("fast", 30),
        },
        quality_option="crf",
        coarsest=48,
        finest=1,
        muxer_options=(("movflags", "+faststart"), ("tag:v", "hvc1")),
        smallest=64,  # x265 now and then writes beyond its memory where one side is shorter.
        tolerance=4.0,
    ),
    Codec(
        name="av1",
        suffix=".mp4",
        muxer="mp4",
        stream="av1",
        qualities={"default": _svt(10, 43), "classic": _aom(28), "high": _svt(10, 24), "small": _svt(8, 50)},
        quality_option="crf",
        coarsest=63,
        finest=1,
        muxer_options=(("movflags", "+faststart"),),
        smallest=64,  # SVT-AV1 1.4 refuses less, newer ones do not.
        largest=8704,  # Its pictures may be wider, but not higher.
    ),
    Codec(
        name="vp9",
        suffix=".webm",
        muxer="webm",
        stream="vp9",
        qualities={"default": _tuned_vp9(7, 35), "classic": _vp9(34), "high": _tuned_vp9(5, 20), "small": _tuned_vp9(5, 46)},
        quality_option="crf",
        coarsest=63,
        finest=1,
        tags="webm",
        timescale=1000,
        smallest=16,
    ),
    Codec(
        name="prores",
        suffix=".mov",
        muxer="mov",
        stream="prores",
        qualities={
            "default": _fixed_prores(3, 4),
            "classic": _prores_ks(3),
            "high": _fixed_prores(3, 1),
            "small": _fixed_prores(1, 6),
        },
        tags="mov",
        muxer_options=(("movflags", "+faststart"),),
        tolerance=2.0,
        smallest=16,
    ),
    Codec(
        name="gif",
        suffix=".gif",
        muxer="gif",
        stream="gif",
        qualities={name: _gif() for name in ("default", "classic", "high", "small")},
        even=False,
        video=False,
        tags="embedded",
        muxer_options=(("loop", "0"),),
        timescale=100,
        fastest=50,
        largest=65535,
        palette=True,
        holds_by_delay=True,
        tolerance=6.0,
        # An ordered pattern stands still where the picture does: half the bytes, a sixth of the time, and nearer to the images than noise that
        # crawls. What it cannot do is hide that there are steps in a smooth sky.
        extra={"default": "bayer:bayer_scale=4", "classic": "sierra2_4a", "high": "floyd_steinberg", "small": "bayer:bayer_scale=5"},
    ),
    Codec(
        name="webp",
        suffix=".webp",
        muxer="webp",
        stream="webp",
        qualities={"default": _webp(75, 2), "classic": _webp(75, 4), "high": _webp(92, 4), "small": _webp(50, 4)},
        quality_option="quality",
        coarsest=30,
        finest=100,
        even=False,
        video=False,
        tags="embedded",
        muxer_options=(("loop", "0"),),
        timescale=1000,
        fastest=100,
        largest=16383,
        moving=True,
        apart=True,
        holds_by_delay=True,
        tolerance=4.0,
    ),
    Codec(
        name="apng",
        suffix=".apng",
        muxer="apng",
        stream="apng",
        qualities={"default": _apng("up", 3), "classic": _apng("mixed", 6), "high": _apng("up", 3), "small": _apng("up", 6)},
        even=False,
        video=False,
        tags="embedded",
        muxer_options=(("plays", "0"),),
        largest=65535,
        moving=True,
        tolerance=2.5,  # None of its own; a cross-fade goes through 4:4:4 planes and back.
    ),
)

CODECS: Mapping[str, Codec] = MappingProxyType({codec.name: codec for codec in _TABLE})
