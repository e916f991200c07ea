"""A plan for one output, in ffmpeg's words: filters, encoder, container. The only module that imports ffmpeg-python.

Pixels come in on stdin as rgb24, every image once, at a constant rate; the interpolation happens in the filter graph, on the encoder's own
planes. Where `motion` makes the pictures between the images, the encoder gets them all, and what makes them gets the images. Three facts about
ffmpeg shape what is written here, all seen with versions 5.1 and 9.0:

* ``framerate`` and ``minterpolate`` swallow the end of their input, so the last image is cloned behind it and ``-frames:v`` cuts the count.
* ``minterpolate`` takes the first jumps of a run for scene changes and then shows no interpolation at all: ``scd=none``.
* The last packet of a stream with true times gets a length of one tick; a bitstream filter (or the container's own option) gives it its span.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from stepwatch.core.plan import OutputPlan, Pace
from stepwatch.core.timeline import half_up

TRUE_TIMES = 90000
"""Ticks a second for pictures with true times, where the container does not dictate its own; the clock of MPEG systems."""

KEYFRAME_EVERY = 25
"""Pictures between key frames when each picture is an image of its own: seeking stays possible at three pictures a second."""

MIXES = 6
"""Pictures of each cross-fade that a palette is made from."""

PALETTE_IMAGES = 16
"""Images that a palette is made from. More know no better colours, and it takes as long as the encode to look at all of a long run."""

PALETTE_PIXELS = 1 << 16
"""Pixels of each of them, or a little more. To count the colours of all would take as long as a third of the encode, and finds no better ones."""

MCI_SIDE = 32
"""Pixels; ``minterpolate`` refuses less, so smaller pictures are enlarged for it and come back afterwards."""

MCI_SEARCH = 16
"""Pixels that ``minterpolate`` looks around for where a block has gone. Steps of a run hardly move, and with its own 32 it finds more that is not
there: held-out images of three runs come back with an SSIM of .9857 .9876 .9866 instead of .9847 .9843 .9862."""

MCI_TICKS = 10**6
"""Ticks a second, or a little less, in which ``minterpolate`` is told when images begin."""

DESTINATION, PALETTE, SOURCE = "<destination>", "<palette>", "<source>"
"""Stand for paths in the graph, because ffmpeg-python takes text in Unicode only, and the name of a folder may be any bytes."""

COLOURS = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
"""What an encoder is to say of the planes of a video."""
TO_PLANES = {"out_color_matrix": "bt709", "flags": "bicubic+accurate_rnd"}


def render_argv(
    plan: OutputPlan,
    *,
    ffmpeg_path: str,
    destination: str,
    metadata: str | None = None,
    palette: str | None = None,
    apple: bool = False,
    fragments: int | None = None,
    threads: int | None = None,
    joined: bool = False,
) -> list[str]:
    """The argument list that turns the pixels of *plan* on stdin into the file *destination*.

    *metadata* is the path of an ffmetadata file, *palette* that of a gif's palette; progress comes on stdout. Where *fragments* is a descriptor, each
    packet of a video goes there too as soon as it is made, in a container of the same kind that needs no end. *joined*: on stdin come the pictures of
    a plan that are made apart, in their order (`apart_argv`).
    """
    import ffmpeg  # 4 MB, which a daemon that waits need not carry

    if joined and plan.codec.apart:
        return _joined_argv(plan, ffmpeg_path=ffmpeg_path, destination=destination)
    if joined:
        stream = _timed(_pixels(plan, "pal8", plan.timeline.feed_rate if plan.variable else plan.fps), plan)
    else:
        stream = _ready_source(plan) if plan.motion else _source(plan)
        stream = _timed(_interpolated(stream, plan), plan)
        if palette is not None:
            stream = _with_palette(stream, plan)
    # Filters and encoder each; None: as they like.
    limit = {} if threads is None else {"threads": str(threads), "filter_complex_threads": str(threads)}
    output = ffmpeg.output(stream, DESTINATION, **_output_options(plan, apple=apple), **limit)
    argv = _compile(output, ffmpeg_path, files={DESTINATION: destination, PALETTE: palette or ""})
    if metadata is not None:
        argv = _with_metadata(argv, metadata)
    return argv if fragments is None else _with_fragments(argv, plan, fragments)


def anchors_argv(plan: OutputPlan, *, ffmpeg_path: str, threads: int | None = None) -> list[str]:
    """The argument list that encodes the anchors of *plan*: their pixels on stdin, a fragment of MP4 for each on stdout, at once."""
    import ffmpeg

    assert plan.fades is not None
    limit = {} if threads is None else {"threads": str(threads), "filter_complex_threads": str(threads)}
    # Where in time they really are is for `weaving` to say; the encoder has to know the rate, for that decides on the level.
    stream = _colours_named(_to_planes(_pixels(plan, "rgb24", plan.fps), plan))
    options = {"c:v": plan.encoding.encoder, **dict(plan.encoding.options), **COLOURS, "fps_mode": "passthrough"}
    options |= {"force_key_frames": f"expr:{_any_of([f'eq(n,{place})' for place in plan.fades.keys])}"}
    if plan.codec.name in ("h264", "h265"):
        options["forced-idr"] = "1"
    if plan.fades.period:
        options["g"] = str(plan.fades.period)
    options |= {"f": "mp4", "movflags": "empty_moov+default_base_moof+frag_every_frame", "flush_packets": "1"}
    return _compile(ffmpeg.output(stream, "pipe:1", **options, **limit), ffmpeg_path, files={}, progress=False)


def _any_of(terms: Sequence[str]) -> str:
    """The sum of many terms as a balanced tree: ffmpeg takes no more than a hundred operators in a row."""
    half = len(terms) // 2
    return f"({_any_of(terms[:half])}+{_any_of(terms[half:])})" if half else terms[0]


def woven_argv(
    plan: OutputPlan, *, ffmpeg_path: str, destination: str, metadata: str | None = None, apple: bool = False, fragments: int | None = None
) -> list[str]:
    """The argument list that makes the file *destination* of encoded pictures on stdin, as `weaving` gives them; else as `render_argv`."""
    import ffmpeg

    # Nothing is guessed about what comes, so that the first picture need not wait for others.
    packets = ffmpeg.input("pipe:0", protocol_whitelist="pipe", f="mov", fpsprobesize="0")
    codec = plan.codec
    options = {"c": "copy", "f": codec.muxer, "frames:v": str(plan.pictures), "map_metadata": "-1", **dict(codec.muxer_options)}
    # ffmpeg 5.1 takes a picture's length for the time to the next one, and knows no next one where each is in a fragment of its own. (Where pictures
    # are not decoded in their order, it does, and setts would change more than it is told to.)
    if codec.stream in ("av1", "vp9"):
        options["bsf:v"] = f"setts=duration='round({_seconds(1 / plan.fps)}/TB)'"
    _allow_any_tag(options, plan, apple=apple)
    argv = _compile(ffmpeg.output(packets["v"], DESTINATION, **options), ffmpeg_path, files={DESTINATION: destination})
    if metadata is not None:
        argv = _with_metadata(argv, metadata)
    return argv if fragments is None else _with_fragments(argv, plan, fragments)


def palette_argv(plan: OutputPlan, *, ffmpeg_path: str, destination: str) -> list[str]:
    """The argument list that finds the colours of a gif: pixels of some images on stdin, one small PNG as *destination*."""
    import ffmpeg

    colours = 128 if plan.quality == "small" else 256
    stream = _source(plan)
    coarser = math.isqrt(max(0, plan.width * plan.height - 1) // PALETTE_PIXELS) + 1
    if coarser > 1:
        stream = stream.filter("scale", w=-(-plan.width // coarser), h=-(-plan.height // coarser), flags="neighbor")
    blends = not plan.variable and not plan.timeline.dense and plan.timeline.interpolation != "none"
    if blends and plan.timeline.feed_count <= PALETTE_IMAGES:
        # A cross-fade shows colours that neither image has; a few pictures of each are enough to know them.
        rate = min(plan.fps, MIXES * plan.timeline.feed_rate)
        stream = _rgb_of_planes(_framerate(_planes_of_rgb(stream), rate, held=0))
    stream = stream.filter("palettegen", max_colors=str(colours), stats_mode="full", reserve_transparent="1")
    output = ffmpeg.output(stream, DESTINATION, f="image2", update="1", **{"frames:v": "1", "c:v": "png"})
    return _compile(output, ffmpeg_path, files={DESTINATION: destination})


def apart_argv(plan: OutputPlan, *, ffmpeg_path: str, palette: str | None, part: int, parts: int) -> list[str]:
    """The argument list that makes every picture of *plan* whose number leaves *part* when divided by *parts*.

    Images on stdin. On stdout, where there is a *palette*, an index for each pixel, and the palette behind those of each picture (ffmpeg's ``pal8``);
    else each picture as a file of its own.
    """
    import ffmpeg

    # Every image is read, wanted or not: that they were is counted.
    wanted = f"lt(n,{plan.pictures})*eq(mod(n,{parts}),{part})"
    stream = _interpolated(_source(plan), plan).filter("select", wanted)
    options = {"c:v": "rawvideo", "f": "rawvideo", "pix_fmt": "pal8"}
    if palette is not None:
        stream = _with_palette(stream, plan)
    else:
        options = {"c:v": plan.encoding.encoder, "f": "image2pipe", **dict(plan.encoding.options)}
    output = ffmpeg.output(stream, "pipe:1", **options, fps_mode="passthrough")
    return _compile(output, ffmpeg_path, files={PALETTE: palette or ""}, progress=False)


def _joined_argv(plan: OutputPlan, *, ffmpeg_path: str, destination: str) -> list[str]:
    """The argument list that puts pictures that are encoded already, each as a file of its own on stdin, into one."""
    import ffmpeg

    ticks = ticks_a_second(plan)
    pictures = ffmpeg.input("pipe:0", protocol_whitelist="pipe", f=f"{plan.codec.stream}_pipe", framerate=str(ticks))
    options = {"c": "copy", "f": plan.codec.muxer, "frames:v": str(plan.pictures), "map_metadata": "-1", **dict(plan.codec.muxer_options)}
    options["bsf:v"] = f"setts=pts='{_shown_at(plan)}':dts='{_shown_at(plan)}'"
    return _compile(ffmpeg.output(pictures["v"], DESTINATION, **options), ffmpeg_path, files={DESTINATION: destination})


def _with_palette(stream: Any, plan: OutputPlan) -> Any:
    import ffmpeg

    colours = ffmpeg.input(PALETTE, protocol_whitelist="file", f="image2", pattern_type="none")
    return ffmpeg.filter([stream, colours], "paletteuse", **_paletteuse(plan))


def motion_argv(plan: OutputPlan, *, ffmpeg_path: str, part: int, parts: int) -> list[str]:
    """The argument list that makes every picture of *plan* whose number leaves *part* when divided by *parts*: images on stdin, planes on stdout.

    Every part finds the same motion in the same images, so that their pictures are, to the bit, those of a single one.
    """
    import ffmpeg

    fps, timeline = plan.fps, plan.timeline
    # Images and pictures meet on one clock, on which pictures fall exactly, and picture *part* on the second tick of the part's own slower one.
    clock = fps.numerator * max(1, MCI_TICKS // fps.numerator)
    tick = clock / fps
    step = clock / timeline.feed_rate
    begin = f"round(N*{step.numerator}/{step.denominator})+{(parts - part) * tick}"
    stream = _planes(plan)
    beyond = 4 + math.ceil(parts * timeline.feed_rate / fps)
    stream = stream.filter("tpad", stop=beyond, stop_mode="clone").filter("settb", f"1/{clock}").filter("setpts", begin)
    larger = -(-MCI_SIDE // min(plan.width, plan.height))
    if larger > 1:
        stream = stream.filter("scale", w=plan.width * larger, h=plan.height * larger, flags="neighbor")
    rate = fps / parts
    how = {"fps": f"{rate.numerator}/{rate.denominator}", "mi_mode": "mci", "scd": "none", "search_param": MCI_SEARCH}
    stream = stream.filter("minterpolate", **how).filter("trim", start_pts=1)
    if larger > 1:
        stream = stream.filter("scale", w=plan.width, h=plan.height, flags="area")
    options = {"c:v": "rawvideo", "f": "rawvideo", "fps_mode": "passthrough", "frames:v": str(part_pictures(plan, part, parts))}
    return _compile(ffmpeg.output(stream, "pipe:1", **options), ffmpeg_path, files={}, progress=False)


def part_pictures(plan: OutputPlan, part: int, parts: int) -> int:
    """How many pictures one part makes: all of its own, and on until it has had to read every image, since that is counted."""
    timeline = plan.timeline
    last = math.ceil(Fraction((timeline.positions - 1) * timeline.pictures, timeline.positions))
    return max(-(-(timeline.pictures - part) // parts), -(-(last - part) // parts) + 1)


def between_planes(plan: OutputPlan) -> str:
    """ffmpeg's name of the planes on which motion is looked for: the encoder's own, with eight bits, for ``minterpolate`` knows no others."""
    planes = plan.encoding.pixels
    if not plan.codec.video:
        return "yuv444p"
    return planes.removesuffix("p10le") + "p" if planes.endswith("p10le") else planes


def plane_sizes(plan: OutputPlan) -> list[tuple[int, int]]:
    """Width and height of each plane that `motion_argv` and `planes_argv` give, in their order, one byte for each pixel."""
    across, down = {"yuv420p": (2, 2), "yuv422p": (2, 1), "yuv444p": (1, 1)}[between_planes(plan)]
    colour = -(-plan.width // across), -(-plan.height // down)
    return [(plan.width, plan.height), colour, colour]


def planes_argv(plan: OutputPlan, *, ffmpeg_path: str) -> list[str]:
    """The argument list that turns each image on stdin into planes on stdout, and makes nothing between them."""
    import ffmpeg

    options = {"c:v": "rawvideo", "f": "rawvideo", "fps_mode": "passthrough"}
    return _compile(ffmpeg.output(_planes(plan), "pipe:1", **options), ffmpeg_path, files={}, progress=False)


def _planes(plan: OutputPlan) -> Any:
    if plan.codec.video:
        return _source(plan).filter("scale", out_range="tv", **TO_PLANES).filter("format", between_planes(plan))
    return _planes_of_rgb(_source(plan))


def retimed_argv(plan: OutputPlan, pace: Pace, *, ffmpeg_path: str, source: str, destination: str, metadata: str, apple: bool = False) -> list[str]:
    """The argument list that gives the pictures of the file *source* the times of *plan*, by *pace*, without encoding anything.

    Times are monotone in one another, so what is decoded first still is: decoding times go the same way as those of showing.
    """
    import ffmpeg

    packets = ffmpeg.input(SOURCE, protocol_whitelist="file")
    codec = plan.codec
    last = max(plan.starts())
    ends = f"({plan.duration.numerator}/{plan.duration.denominator}/TB)"
    was, decoded, until = "PTS", "DTS", "(PTS+DURATION)"
    if plan.fades and codec.timescale:
        # Its times are rounded, and a steep pace would make more of that. It shows pictures as it decodes them, one by one at a constant rate.
        was = decoded = f"(N*{_seconds(1 / plan.fps)}/TB)"
        until = f"((N+1)*{_seconds(1 / plan.fps)}/TB)"
    shows, decoded = _paced(was, pace), _paced(decoded, pace)
    # Only the last picture's own length is to be said; a container knows the others from what follows.
    lasts = f"if(gte({shows},{_seconds(last)}/TB-1),{ends}-{shows},{_paced(until, pace)}-{shows})"
    options = {"c": "copy", "f": codec.muxer, "map_metadata": "-1", **dict(codec.muxer_options)}
    if plan.fades:
        # What shows last is decoded last and can wait until it shows, so that by the times of decoding, too, all ends when it should.
        decoded = f"if(eq(N,{plan.pictures - 1}),{shows},{decoded})"
    options["bsf:v"] = f"setts=pts='{shows}':dts='{decoded}':duration='{lasts}'"
    # The ticks stay those of *source*: ffmpeg 5.1 tells the expressions those of the new file, while the times still count in the old ones.
    _allow_any_tag(options, plan, apple=apple)
    argv = _compile(ffmpeg.output(packets["v"], DESTINATION, **options), ffmpeg_path, files={DESTINATION: destination, SOURCE: source})
    return _with_metadata(argv, metadata, behind=f"file:{source}")


def _paced(ticks: str, pace: Pace) -> str:
    """An expression for when what was encoded for *ticks* shows, in ticks."""
    time = f"({ticks}*TB)"
    *earlier, final = (f"{_seconds(shows)}+({time}-{_seconds(start)})*{_seconds(factor)}" for start, shows, factor in pace)
    expression = final
    for piece, (start, _, _) in zip(reversed(earlier), reversed(pace), strict=False):
        expression = f"if(lt({time},{_seconds(start)}),{piece},{expression})"
    return f"round(({expression})/TB)"


def _seconds(value: Fraction) -> str:
    return f"({value.numerator}/{value.denominator})"


def _source(plan: OutputPlan) -> Any:
    return _pixels(plan, "rgb24", plan.timeline.feed_rate)


def _ready_source(plan: OutputPlan) -> Any:
    """Every picture of the moving part, in planes, made by somebody else."""
    return _pixels(plan, between_planes(plan), plan.fps)


def _pixels(plan: OutputPlan, layout: str, rate: Fraction) -> Any:
    import ffmpeg

    return ffmpeg.input(
        "pipe:0",
        protocol_whitelist="pipe",
        f="rawvideo",
        pix_fmt=layout,
        s=f"{plan.width}x{plan.height}",
        framerate=f"{rate.numerator}/{rate.denominator}",
    )


def _interpolated(stream: Any, plan: OutputPlan) -> Any:
    """Bring the pixels to the encoder's planes and make the pictures between the images."""
    timeline = plan.timeline
    planes = plan.encoding.pixels
    if plan.motion and plan.codec.video:
        stream = stream.filter("setparams", range="tv", colorspace="bt709").filter("format", planes)
    elif plan.codec.video:
        stream = _to_planes(stream, plan)
    elif plan.motion:
        stream = _rgb_of_planes(stream)
    elif not plan.ready and timeline.interpolation == "blend":
        stream = _planes_of_rgb(stream)
    if not plan.ready:
        if timeline.interpolation == "blend":
            # The tail is held here, in images: behind `framerate` a tpad does not always see the end of the stream.
            stream = _framerate(stream, plan.fps, held=math.ceil(timeline.tail * timeline.feed_rate / timeline.fps))
        else:
            # Picture k shows the image that started last: image j begins at picture ceil(j * pictures / n).
            stream = stream.filter("tpad", stop=2, stop_mode="clone").filter("fps", fps=f"{plan.fps.numerator}/{plan.fps.denominator}", round="up")
    if plan.codec.video:
        return _colours_named(stream)
    if not plan.ready and timeline.interpolation == "blend":
        stream = _rgb_of_planes(stream)
    return stream.filter("format", "rgb24" if plan.codec.palette else planes)


def _to_planes(stream: Any, plan: OutputPlan) -> Any:
    return stream.filter("scale", out_range="tv", **TO_PLANES).filter("format", plan.encoding.pixels)


def _colours_named(stream: Any) -> Any:
    return stream.filter("setparams", range="tv", color_primaries="bt709", color_trc="bt709", colorspace="bt709")


def _framerate(stream: Any, fps: Fraction, *, held: int) -> Any:
    """Cross-fade planes of images to *fps* pictures a second; the last image stays for *held* images more."""
    stream = stream.filter("tpad", stop=held + 2, stop_mode="clone")
    return stream.filter("framerate", fps=f"{fps.numerator}/{fps.denominator}", interp_start=0, interp_end=255, flags=0)


def _planes_of_rgb(stream: Any) -> Any:
    """4:4:4 planes at full range, for the interpolating filters know no RGB; there and back costs at most one level."""
    return stream.filter("scale", out_range="pc", **TO_PLANES).filter("format", "yuv444p")


def _rgb_of_planes(stream: Any) -> Any:
    return stream.filter("scale", in_color_matrix="bt709", in_range="pc", flags="bicubic+accurate_rnd")


def _timed(stream: Any, plan: OutputPlan) -> Any:
    """Add the holds: as more pictures at a constant rate, else as longer times."""
    timeline = plan.timeline
    if not plan.codec.holds_by_delay and not plan.variable:
        if timeline.head or timeline.tail:
            # Two more than the tail, for clones at the end may be fewer than asked; -frames:v has the last word.
            stream = stream.filter("tpad", start=timeline.head, start_mode="clone", stop=timeline.tail + 2, stop_mode="clone")
        return stream
    ticks = ticks_a_second(plan)
    return stream.filter("settb", f"{ticks.denominator}/{ticks.numerator}").filter("setpts", _shown_at(plan))


def _shown_at(plan: OutputPlan) -> str:
    """An expression for the tick at which picture N shows, where holds are longer times."""
    timeline, ticks = plan.timeline, ticks_a_second(plan)
    step = ticks / (timeline.feed_rate if plan.variable else timeline.fps)
    head = ticks * timeline.head / timeline.fps
    return f"if(eq(N,0),0,round({head.numerator}/{head.denominator}+N*{step.numerator}/{step.denominator}))"


def ticks_a_second(plan: OutputPlan) -> Fraction:
    """The resolution of the times in the finished file."""
    if plan.codec.timescale:
        return Fraction(plan.codec.timescale)
    if plan.variable:
        return Fraction(TRUE_TIMES if plan.codec.video else 1000)
    return plan.fps


def _paletteuse(plan: OutputPlan) -> dict[str, str]:
    dither, _, scale = plan.dither.partition(":bayer_scale=")
    return {"dither": dither, "diff_mode": "rectangle"} | ({"bayer_scale": scale} if scale else {})


def _output_options(plan: OutputPlan, *, apple: bool) -> dict[str, str]:
    codec, ticks = plan.codec, ticks_a_second(plan)
    options = {"c:v": plan.encoding.encoder, "f": codec.muxer, "frames:v": str(plan.pictures), "map_metadata": "-1"}
    options |= dict(plan.encoding.options)
    options |= dict(codec.muxer_options)
    starts = plan.starts()
    last = plan.duration - starts[-1]
    if codec.video:
        options |= COLOURS
    if not codec.holds_by_delay and not plan.variable:
        options |= {"fps_mode": "cfr", "r": f"{plan.fps.numerator}/{plan.fps.denominator}"}
    else:
        options |= {"fps_mode": "passthrough", "enc_time_base": f"{ticks.denominator}/{ticks.numerator}"}
    if codec.video and plan.variable:
        options["g"] = str(KEYFRAME_EVERY)
        options["bsf:v"] = f"setts=duration='if(gte(PTS,{half_up(starts[-1] * ticks)}),{half_up(last * ticks)},DURATION)'"
        if codec.name in ("h264", "h265"):
            options["bf"] = "0"
        if codec.tags in ("mp4", "mov"):
            options["video_track_timescale"] = str(ticks)
    if codec.muxer == "gif":
        options["final_delay"] = str(half_up(plan.duration * ticks) - half_up(starts[-1] * ticks))
    if codec.muxer == "apng":
        options["final_delay"] = f"{last.numerator}/{last.denominator}"
    _allow_any_tag(options, plan, apple=apple)
    return options


def _allow_any_tag(options: dict[str, str], plan: OutputPlan, *, apple: bool) -> None:
    """Have the container take any name of metadata, where it need not be Apple's."""
    if plan.codec.tags in ("mp4", "mov") and not (apple and plan.codec.tags == "mp4"):
        options["movflags"] = options.get("movflags", "") + "+use_metadata_tags"


def _compile(output: Any, ffmpeg_path: str, *, files: Mapping[str, str], progress: bool = True) -> list[str]:
    # Everything is said, each line with its level: `encoder` keeps the complaints, and counts the images that were read.
    import ffmpeg

    head = [ffmpeg_path, "-hide_banner", "-nostdin", "-v", "level+verbose", "-xerror"]
    head += ["-progress", "pipe:1", "-stats_period", "0.2"] if progress else ["-nostats"]
    compiled: Sequence[str] = ffmpeg.compile(output, cmd=head, overwrite_output=False)
    argv = [f"file:{files[part]}" if part in files else str(part) for part in compiled]
    return [*argv[: len(head)], "-y", *argv[len(head) :]]


def _with_metadata(argv: list[str], metadata: str, *, behind: str = "pipe:0") -> list[str]:
    """Add the ffmetadata file as the second input, *behind* the first: ffmpeg-python keeps only inputs that give a stream."""
    place = argv.index(behind) + 1
    first = argv.index("-map_metadata") + 1
    argv = [*argv[:first], "1", *argv[first + 1 :]]
    return [*argv[:place], "-protocol_whitelist", "file", "-f", "ffmetadata", "-i", f"file:{metadata}", *argv[place:]]


MUXER_OPTIONS = ("movflags", "video_track_timescale")
"""Options of `_output_options` that are the container's, and have to be told to each of two containers."""


def _with_fragments(argv: list[str], plan: OutputPlan, descriptor: int) -> list[str]:
    """Give every packet to two containers: the file, and fragments in the pipe *descriptor*."""
    *argv, destination = argv
    own: dict[str, str] = {}
    for name in MUXER_OPTIONS:
        if f"-{name}" in argv:
            place = argv.index(f"-{name}")
            own[name] = argv[place + 1]
            del argv[place : place + 2]
    muxer = len(argv) - 1 - argv[::-1].index("-f")
    argv[muxer + 1] = "tee"
    # Times in both count in the same ticks; and each picture goes out by itself, so that the reader is not kept waiting.
    flowing = own | {"movflags": "empty_moov+default_base_moof+frag_every_frame"} if own else {"cluster_time_limit": "1"}
    kind = plan.codec.muxer
    slaves = [_slave({"f": kind} | own, destination), _slave({"f": kind, "flush_packets": "1"} | flowing, f"pipe:{descriptor}")]
    # Containers ask their encoder to keep its headers out of the packets; this one does not ask for those behind it.
    return [*argv, "-flags", "+global_header", "|".join(slaves)]


def _slave(options: Mapping[str, str], destination: str) -> str:
    """One of several containers in the words of the tee muxer, in which some characters mean something."""
    said = ":".join(f"{name}={value}" for name, value in options.items())
    return "".join(f"\\{character}" if character in "\\'| \t\r\n" else character for character in f"[{said}]{destination}")
