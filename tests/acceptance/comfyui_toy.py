"""Nodes for the acceptance of the ComfyUI hook, loaded by a real ComfyUI as a custom node of one file.

The toy model runs in the host's own sampler loop and costs nothing, because it knows the answer: a disc over a gradient, blurred by as much as
the noise hides, so that the frames go from blur to sharp and a person sees at a glance whether one is right. Its latents are made for whatever
latent format is asked for, through the pseudo-inverse of the format's own matrix.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import folder_paths
import torch
from PIL import Image


def disc(item: int, height: int, width: int) -> Any:
    """The picture of one batch item in -1..1, three channels: the disc stands further to the right with each item."""
    down, across = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = torch.stack([across, down, 1 - across]) * 1.2 - 0.6
    inside = ((across - 0.2 - 0.2 * (item % 4)) ** 2 + (down - 0.5) ** 2) < 0.04
    picture[:, inside] = torch.tensor([0.9, 0.7, -0.7])[:, None]
    return picture


class Answer(torch.nn.Module):  # type: ignore[misc]  # nobody has said what a module is
    """In the place of the network: the noise that leads to the picture."""

    dtype = torch.float32

    def __init__(self, sampling: Any, latent_format: Any) -> None:
        super().__init__()
        self.sampling, self.format = sampling, latent_format
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def latent(self, shape: tuple[int, ...], sigma: float) -> Any:
        factors = self.format.latent_rgb_factors
        if factors is None or len(shape) not in (4, 5):
            return torch.zeros(shape)
        matrix = torch.tensor(factors)
        bias = torch.tensor(self.format.latent_rgb_factors_bias or [0.0, 0.0, 0.0])
        height, width = shape[-2:]
        items = []
        for item in range(shape[0]):
            picture = disc(item, height, width)
            radius = min(int(sigma), min(height, width) // 2 - 1)
            if radius:
                picture = torch.nn.functional.avg_pool2d(picture[None], 2 * radius + 1, 1, radius, count_include_pad=False)[0]
            items.append(torch.einsum("rhw,rc->chw", picture - bias[:, None, None], torch.linalg.pinv(matrix)))
        latent = torch.stack(items)
        return latent if len(shape) == 4 else latent[:, :, None].expand(shape)

    def forward(self, x: Any, timesteps: Any, **_: Any) -> Any:
        sigma = self.sampling.sigma(timesteps.flatten()[0]).item()
        noisy = x * (sigma**2 + self.sampling.sigma_data**2) ** 0.5  # the host hands over its scaled input
        return (noisy - self.latent(tuple(x.shape), sigma).to(x)) / sigma


class ToyModel:
    """A MODEL of any latent format."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": {"latents": ("STRING", {"default": "SD15"}), "ckpt_name": ("STRING", {"default": "toy"})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "toy"

    def load(self, latents: str, ckpt_name: str) -> tuple[Any]:
        config = comfy.supported_models.SD15({"disable_unet_model_creation": True, "in_channels": 4})
        config.latent_format = getattr(comfy.latent_formats, latents)()
        model = comfy.model_base.BaseModel(config)
        model.diffusion_model = Answer(model.model_sampling, config.latent_format)
        device = comfy.model_management.get_torch_device()
        return (comfy.model_patcher.ModelPatcher(model, device, device),)


class ToyText:
    """CONDITIONING without a text encoder; the text is what the hook is to find."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": {"text": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "toy"

    def encode(self, text: str) -> tuple[Any]:
        return ([[torch.zeros(1, 77, 768), {}]],)


class ToyTrouble:
    """Makes the model slow, or fail or yield NaN at one of its calls; 0 is never."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        whole = ("INT", {"default": 0})
        return {"required": {"model": ("MODEL",), "seconds": ("FLOAT", {"default": 0.0}), "oom_at": whole, "nan_at": whole}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "toy"

    def patch(self, model: Any, seconds: float, oom_at: int, nan_at: int) -> tuple[Any]:
        calls = 0

        def predict(executor: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            time.sleep(seconds)
            if calls == oom_at:
                raise comfy.model_management.OOM_EXCEPTION("the toy is out of memory")
            result = executor(*args, **kwargs)
            return result * float("nan") if calls == nan_at else result

        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "trouble", predict)
        return (model,)


class ToyClock:
    """Measures what the callbacks of a sampler cost its thread; with a VAE, what they cost the way of *Steps Animation*: decode all, and save."""

    seconds: ClassVar[list[float]] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": {"model": ("MODEL",)}, "optional": {"vae": ("VAE",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "toy"

    def patch(self, model: Any, vae: Any = None) -> tuple[Any]:
        def measure(
            executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Any, mask: Any = None, callback: Any = None, *rest: Any, **named: Any
        ) -> Any:
            def after_step(step: int, x0: Any, x: Any, total: int) -> None:
                began = time.perf_counter()
                if vae is not None:
                    picture = vae.decode(model.model.process_latent_out(x0))[0] * 255
                    Image.fromarray(picture.clamp(0, 255).to(torch.uint8).numpy()).save(
                        os.path.join(folder_paths.get_temp_directory(), f"{step:05d}.png")
                    )
                callback(step, x0, x, total)
                self.seconds.append(time.perf_counter() - began)

            os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)
            self.seconds.clear()
            return executor(noise, latent, sampler, sigmas, mask, after_step, *rest, **named)

        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "clock", measure)
        return (model,)


class ToyLatent:
    """A LATENT of any shape, empty or not, with or without a mask over its left half."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": {"shape": ("STRING", {"default": "1,4,64,64"}), "masked": ("BOOLEAN", {"default": False})}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "toy"

    def make(self, shape: str, masked: bool) -> tuple[Any]:  # noqa: FBT001  # an input
        samples = torch.zeros([int(part) for part in shape.split(",")])
        if not masked:
            return ({"samples": samples},)
        mask = torch.zeros(1, 1, *samples.shape[-2:])
        mask[..., : samples.shape[-1] // 2] = 1
        return ({"samples": samples + 0.5, "noise_mask": mask},)


class ToyDigest:
    """Ends a workflow: the digest of the latent goes into the history of the prompt."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": {"latent": ("LATENT",)}}

    RETURN_TYPES = ()
    FUNCTION = "take"
    CATEGORY = "toy"
    OUTPUT_NODE = True

    def take(self, latent: Any) -> dict[str, Any]:
        data = latent["samples"].detach().cpu().contiguous()
        return {"ui": {"digest": [hashlib.sha256(data.numpy().tobytes()).hexdigest()], "seconds": list(ToyClock.seconds)}}


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (ToyModel, ToyText, ToyTrouble, ToyClock, ToyLatent, ToyDigest)}
