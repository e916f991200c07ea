"""Ways of making an animation that are a few lines of Python: run by the benchmark as programs of their own."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

from PIL import Image


def main(way: str, folder: str, out: str, rate: str, *more: str) -> None:
    paths = sorted(Path(folder).iterdir())
    if way == "pillow":
        pillow(paths, out, Fraction(rate))
    else:
        video_combine(paths, out, rate, more[0])


def pillow(paths: list[Path], out: str, rate: Fraction) -> None:
    """As its documentation has it: a list of images and ``save_all``."""
    first, *others = map(Image.open, paths)
    # A gif's writer passes over what is a webp's.
    first.save(out, save_all=True, append_images=others, duration=round(1000 / rate), loop=0, quality=70, method=0)


def video_combine(paths: list[Path], out: str, rate: str, ffmpeg: str) -> None:
    """As ComfyUI's Video Combine: raw RGB into ffmpeg's stdin, crf 19, no pictures between the images; without its tensors, which cost more."""
    with Image.open(paths[0]) as image:
        size = f"{image.width}x{image.height}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-color_range", "pc", "-colorspace", "rgb", "-s", size, "-r", rate, "-i", "-"]
    tags = ["-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    encoder = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "19", "-vf", "scale=out_color_matrix=bt709"]
    process = subprocess.Popen([ffmpeg, "-v", "error", *source, "-y", *encoder, *tags, out], stdin=subprocess.PIPE)
    assert process.stdin is not None
    for path in paths:
        with Image.open(path) as image:
            process.stdin.write(image.convert("RGB").tobytes())
    process.stdin.close()
    if process.wait():
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
