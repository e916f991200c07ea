"""diffusers as a hook sees it: pipelines that step a scheduler and call back, without torch. The real ones are met in tests/acceptance."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from tests.hooks.tensors import Tensor


class Latents(Tensor):
    """A tensor with what the hook for diffusers uses beside."""

    def dim(self) -> int:
        return self.ndim

    def map(self, change: Callable[[float], float]) -> Latents:
        return Latents(self.shape, super().map(change).data)

    def flatten(self, start: int) -> Latents:
        return Latents((*self.shape[:start], math.prod(self.shape[start:])), self.data)

    def movedim(self, source: int, target: int) -> Latents:
        assert (source, target) == (1, -1)
        moved = self.permute(0, *range(2, self.ndim), 1)
        return Latents(moved.shape, moved.data)

    def new_tensor(self, rows: Any) -> Latents:
        return Latents((len(rows), len(rows[0])), [float(value) for row in rows for value in row])

    def __matmul__(self, other: Tensor) -> Latents:
        """Colours by channels, with channels by pixels of each picture."""
        colours, channels = self.shape
        pictures, same, pixels = other.shape
        assert same == channels
        drawn = [
            sum(self.data[colour * channels + c] * other.data[(picture * channels + c) * pixels + pixel] for c in range(channels))
            for picture, colour, pixel in product(range(pictures), range(colours), range(pixels))
        ]
        return Latents((pictures, colours, pixels), drawn)

    def __add__(self, other: Any) -> Latents:
        if isinstance(other, Tensor) and other.shape == (self.shape[1], 1):
            colours, pixels = self.shape[1:]
            return Latents(self.shape, [value + other.data[place // pixels % colours] for place, value in enumerate(self.data)])
        return Latents(self.shape, super().__add__(other).data)


def latents(value: Callable[..., float], batch: int = 1) -> Latents:
    """A batch of four channels, two rows and three columns."""
    made = Tensor.full((batch, 4, 2, 3), value)
    return Latents(made.shape, made.data)


@dataclass
class EulerSchedulerOutput:
    """What ``step`` returns to those who want it by name."""

    prev_sample: Any
    pred_original_sample: Any


class EulerScheduler:
    """Goes half of the way to the model's answer in each step, which it also returns as its guess."""

    order = 1
    evaluations = 1

    def __init__(self) -> None:
        self.config: dict[str, Any] = {"use_karras_sigmas": True}
        self.timesteps: list[int] = []

    def set_timesteps(self, steps: int) -> None:
        self.num_inference_steps = steps
        self.timesteps = list(range(steps * self.evaluations - (self.evaluations - 1), 0, -1))
        self.sigmas = [float(step) for step in [*self.timesteps, 0]]

    def step(self, model_output: Any, timestep: Any, sample: Any, *, return_dict: bool = True) -> Any:
        after = Latents(sample.shape, ((sample + model_output) * 0.5).data)
        return EulerSchedulerOutput(after, model_output) if return_dict else (after, model_output)


class HeunScheduler(EulerScheduler):
    """Two evaluations for each step but the last."""

    evaluations = 2

    def set_timesteps(self, steps: int) -> None:
        super().set_timesteps(steps)
        self.state_in_first_order = True

    def step(self, model_output: Any, timestep: Any, sample: Any, *, return_dict: bool = True) -> Any:
        self.state_in_first_order = not self.state_in_first_order
        return super().step(model_output, timestep, sample, return_dict=return_dict)


class SilentScheduler(EulerScheduler):
    """Keeps its guess to itself."""

    def step(self, model_output: Any, timestep: Any, sample: Any, *, return_dict: bool = True) -> Any:
        return super().step(model_output, timestep, sample, return_dict=False)[:1]


class StableDiffusionPipeline:
    """Steps its scheduler, and calls back; *trouble* happens at the step that it names."""

    _callback_tensor_inputs = ("latents", "prompt_embeds")
    guidance_scale = 7.5
    name_or_path = "tiny"

    def __init__(self, scheduler: Any = None) -> None:
        self.scheduler = scheduler or EulerScheduler()
        self.vae = types.SimpleNamespace(config=types.SimpleNamespace(scaling_factor=0.18215, block_out_channels=[1, 1, 1, 1]))
        self.trouble: dict[int, BaseException] = {}
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def __call__(
        self,
        prompt: Any = None,
        num_inference_steps: int = 4,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Any = ("latents",),
    ) -> Any:
        self._interrupt = False
        self.scheduler.set_timesteps(num_inference_steps)
        self.num_timesteps = len(self.scheduler.timesteps)
        prompt_embeds = object()
        x: Any = latents(lambda b, c, y, x: (b * 5 + c * 3 + y * 2 + x) % 11 / 5 - 1, num_images_per_prompt)
        for index, t in enumerate(self.scheduler.timesteps):
            if self.interrupt:
                continue
            if index in self.trouble:
                raise self.trouble[index]
            guess = latents(lambda b, c, y, x, index=index: (b + c + y + x + index) % 7 / 7 - 0.4, num_images_per_prompt)
            x = self.scheduler.step(guess, t, x, return_dict=False)[0]
            if callback_on_step_end is not None:
                known = {"latents": x, "prompt_embeds": prompt_embeds}
                answer = callback_on_step_end(self, index, t, {name: known[name] for name in callback_on_step_end_tensor_inputs})
                x = answer.pop("latents", x)
        return x


class LegacyPipeline(StableDiffusionPipeline):
    """Has never heard of callbacks."""

    def __call__(self, num_inference_steps: int = 4) -> Any:  # type: ignore[override]
        return super().__call__(num_inference_steps=num_inference_steps)
