"""What a step costs the sampler: our hook, and the way of *Steps Animation*, which decodes the whole picture and saves it before the next step.

Ours is the hook for diffusers with its real writer beside it: the product with the matrix, and a put into the queue. The other way is measured in
two parts that may be wanted apart: the save alone, as if decoding were free, and with a decode by the VAE of Stable Diffusion 1.5 (its architecture,
random weights) on the same device. A CPU takes minutes for that; there a smaller picture is decoded, and its time multiplied by how many times more
pixels there are, which is less than the truth, for a part of the work grows faster. All take turns, round after round. Needs torch, and diffusers for
the VAE: the extra ``hosts``.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from stepwatch.hooks.diffusers import record

SIDES = (512, 1024)
STEPS = 30
"""Of ours in each round; one of the others takes longer than all of them."""
PAUSE = 0.03
"""Seconds between two steps, in which a fast model would be at work."""
SMALL = 128
"""Side of the picture that stands for a large one on a CPU."""
Taken = tuple[float, float]
"""Seconds, and seconds of the sampler's own thread at work: those say more on a machine with other work."""
OURS, SAVE, FULL = "stepwatch: x0 by the matrix, into the queue", "PNG saved before the next step, decoding left out", "whole VAE, then PNG saved"
SAMPLE = Path(__file__).parents[2] / "stepwatch" / "data" / "sample"


def run(*, rounds: int = 3, quick: bool = False, sides: Sequence[int] = SIDES, scratch: Path | None = None) -> Iterator[dict[str, Any]]:
    """Measure a step at each size; without torch say so, and measure what can be."""
    missing = _missing()
    for side in (64,) if quick else sides:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            taken = _measured(side, 1 if quick else rounds, 3 if quick else STEPS, Path(folder), missing)
        rows: list[dict[str, Any]] = []
        for name, times in taken.items():
            walls, cpus = zip(*times, strict=True)
            rows.append({"name": name, "ms": statistics.median(walls) * 1e3, "worst": max(walls) * 1e3, "cpu": statistics.median(cpus) * 1e3})
        for row in rows if OURS in taken else ():
            row["times"], row["times_cpu"] = row["ms"] / rows[0]["ms"], row["cpu"] / rows[0]["cpu"]
        yield {
            "case": "hook",
            "what": f"one step of {side}x{side} on the sampler's thread{'' if 'torch' in missing else f', on the {_device()}, one thread'}",
            "rounds": rounds,
            "rows": rows,
            "missing": missing,
            "goal": [],
        }


def _missing() -> dict[str, str]:
    needed = {"torch": "ours and the VAE", "diffusers": "the VAE"}
    return {name: f"{what}: {name} is not installed" for name, what in needed.items() if importlib.util.find_spec(name) is None}


def _measured(side: int, rounds: int, steps: int, folder: Path, missing: Mapping[str, str]) -> dict[str, list[Taken]]:
    save = _saving(side, folder / "theirs")
    ways: dict[str, Callable[[], list[Taken]]] = {}
    if "torch" not in missing:
        import torch

        # On a CPU that others use, threads wait for each other longer than any of this takes.
        torch.set_num_threads(1)
        ways[OURS] = _recording(side, steps, folder / "ours")
    ways[SAVE] = lambda: [_timed(save) for _ in range(3)]
    if not missing:
        decoded = side if _device() == "cuda" else min(side, SMALL)
        times = (side // decoded) ** 2
        decode = _decoding(decoded)
        ways[FULL if times == 1 else f"{FULL} (the VAE at {decoded}x{decoded}, x{times})"] = lambda: [_both(_timed(decode, times), _timed(save))]
    taken: dict[str, list[Taken]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name] += way()
    return taken


def _timed(work: Callable[[], object], times: int = 1) -> Taken:
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return (time.perf_counter() - wall) * times, (time.thread_time() - cpu) * times


def _both(first: Taken, second: Taken) -> Taken:
    return first[0] + second[0], first[1] + second[1]


def _recording(side: int, steps: int, folder: Path) -> Callable[[], list[Taken]]:
    """Our hook: what it adds to a step, from the scheduler's return to the callback's."""
    import torch

    class Scheduler:
        config: Mapping[str, Any] = {}
        timesteps = range(steps)

        def step(self, _guess: Any, _t: Any, sample: Any) -> Any:
            return SimpleNamespace(prev_sample=sample, pred_original_sample=sample)

    class StableDiffusionPipeline:
        _callback_tensor_inputs = ("latents",)
        num_timesteps = steps
        vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.18215, block_out_channels=[1] * 4))

        def __init__(self) -> None:
            self.scheduler = Scheduler()

        def __call__(self, callback_on_step_end: Callable[..., Any]) -> list[Taken]:
            taken = []
            for index in range(steps):
                time.sleep(PAUSE)
                latents = torch.randn(1, 4, side // 8, side // 8, device=_device())
                _settle()
                taken.append(_timed(partial(self.after, index, latents, callback_on_step_end)))
            # The first one makes the run: its thread, its facts, the matrix on the device.
            return taken[1:]

        def after(self, index: int, latents: Any, callback_on_step_end: Callable[..., Any]) -> None:
            """What a pipeline does once its model has answered."""
            self.scheduler.step(None, index, latents)
            callback_on_step_end(self, index, index, {"latents": latents})

    def once() -> list[Taken]:
        pipe = StableDiffusionPipeline()
        with record(pipe, folder, prompt="a benchmark", seed=1) as rec:
            return pipe(rec.kwargs["callback_on_step_end"])

    once()
    return once


def _decoding(side: int) -> Callable[[], object]:
    """The VAE of Stable Diffusion 1.5, from latents to an image as its users have it."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=[128, 256, 512, 512],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
    ).to(_device())
    latents = torch.randn(1, 4, side // 8, side // 8, device=_device())

    def decode(latents: Any = latents) -> Image.Image:
        with torch.no_grad():
            picture = vae.decode(latents / 0.18215).sample[0]
        levels = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(levels)

    # The first call of anything in torch prepares it.
    decode(latents[..., :8, :8])
    return decode


def _saving(side: int, folder: Path) -> Callable[[], object]:
    """A picture as Pillow saves it when nobody says otherwise."""
    folder.mkdir(parents=True)
    last = max(SAMPLE.glob("*/*.jpg"))
    with Image.open(last) as image:
        picture = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    count = iter(range(10**6))
    return lambda: picture.save(folder / f"{next(count):05d}.png")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _settle() -> None:
    """Have a GPU finish what the model left, so that only our own waiting is counted."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(result: Mapping[str, Any]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    """Headings and rows; the ratio is what the other way takes, divided by what ours does."""
    return ("", "ms", "worst ms", "ratio", "CPU ms", "ratio"), (
        (
            row["name"],
            f"{row['ms']:.2f}",
            f"{row['worst']:.2f}",
            f"{row['times']:.1f}x" if "times" in row else "",
            f"{row['cpu']:.2f}",
            f"{row['times_cpu']:.1f}x" if "times_cpu" in row else "",
        )
        for row in result["rows"]
    )


def text(result: Mapping[str, Any]) -> str:
    """A result for people."""
    headings, rows = table(result)
    lines = [f"{cells[0]:<60}" + "".join(f"{cell:>12}" for cell in cells[1:]) for cells in (headings, *rows)]
    missing = [f"not measured, {why}" for why in result["missing"].values()]
    return "\n".join([f"{result['case']}: {result['what']}", *lines, *missing, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of a tiny picture: whether it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, action="append", help="512 and 1024 unless said")
    given = parser.parse_args()
    for one in run(rounds=given.rounds, quick=given.quick, sides=given.side or SIDES):
        sys.stdout.write(text(one) + "\n")
