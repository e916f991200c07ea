"""SD.Next as a hook sees it: jobs, pipelines that call back after each step, and the order in which things begin, end and fail.

Only what lies between the hook and a picture is here; the picture itself is a few numbers.
"""

from __future__ import annotations

import copy
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.hooks.tensors import Tensor
from tests.hooks.webui_host import _cheap, _large

HOOK = Path(__file__).resolve().parents[2] / "stepwatch" / "hooks" / "sdnext" / "stepwatch_sdnext.py"


class Pipeline:
    """A diffusers pipeline: it calls back with noisy latents after each step, and knows nothing of hosts."""

    def __init__(self, host: Host, *, steps: int, kind: str | None = "epsilon", sigmas: bool = True, repeats: int = 1, vae: bool = True) -> None:
        self.host = host
        self.num_timesteps = steps * repeats
        config = types.SimpleNamespace(**({} if kind is None else {"prediction_type": kind}))
        self.scheduler = types.SimpleNamespace(step_index=None, config=config)
        if sigmas:
            self.scheduler.sigmas = [14.6 * (1 - index / self.num_timesteps) for index in range(self.num_timesteps)] + [0.0]
        if vae:
            self.vae = object()

    def __call__(self, latents: Tensor, callback_on_step_end: Callable[..., dict[str, Any]], *, fail_at: int | None = None) -> Tensor:
        for i in range(self.num_timesteps):
            if i == fail_at:
                raise RuntimeError("CUDA out of memory")
            guess = self.host.guess(latents, i)
            if hasattr(self.scheduler, "sigmas"):
                latents = self.euler(latents, guess, self.scheduler.sigmas[i], self.scheduler.sigmas[i + 1])
            self.scheduler.step_index = i + 1
            returned = callback_on_step_end(self, i, 1000 - i, {"latents": latents, "noise_pred": guess})
            latents = returned["latents"]
        return latents

    def thought(self, latents: Tensor, guess: Tensor, sigma: float) -> Tensor:
        """What the model takes the picture to be, by what kind of prediction it makes."""
        if getattr(self.scheduler.config, "prediction_type", None) == "v_prediction":
            return latents / (sigma**2 + 1) - guess * (sigma / math.sqrt(sigma**2 + 1))
        return latents - guess * sigma

    def euler(self, latents: Tensor, guess: Tensor, sigma: float, following: float) -> Tensor:
        return latents + (latents - self.thought(latents, guess, sigma)) * ((following - sigma) / sigma)


class Host:
    """One SD.Next, with its modules in ``sys.modules`` for as long as a test runs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.errors: list[BaseException] = []
        self.downloads: list[str] = []
        self.calls: list[tuple[str, int]] = []
        self.clicks: dict[int, str] = {}
        """What the user does, by the callback before which it happens."""
        self.callbacks_before: list[Callable[[Any], None]] = []
        self.callbacks_after: list[Callable[[Any], None]] = []
        self.settings: dict[str, Any] = {}
        self.state = types.SimpleNamespace(interrupted=False, skipped=False, current_latent=None, current_noise_pred=None, sampling_step=0)
        self.opts = types.SimpleNamespace()
        self.opts.add_option = self.settings.__setitem__
        self.sd_model = types.SimpleNamespace(vae=object(), sd_checkpoint_info=types.SimpleNamespace(name_for_extra="toy"), sd_model_hash="abc")
        self.script: Any = None
        self.modules = self._modules()

    def _modules(self) -> dict[str, Any]:
        script = type("Script", (), {})
        taesd = {"TAESD 1.3": {"fn": "taesd_13_", "model": None}}
        made: dict[str, dict[str, Any]] = {
            "modules": {},
            "modules.scripts": {"Script": script, "AlwaysVisible": object()},
            "modules.script_callbacks": {
                "on_ui_settings": self._settings_page,
                "on_before_process": self.callbacks_before.append,
                "on_after_process": self.callbacks_after.append,
            },
            "modules.shared": {"state": self.state, "opts": self.opts, "sd_model": self.sd_model, "sd_model_type": "sd", "OptionInfo": _option},
            "modules.progress": {"current_task": None},
            "modules.paths": {"data_path": str(self.home), "models_path": str(self.home / "models")},
            "modules.processing": {"create_infotext": _create_infotext},
            "modules.processing_callbacks": {"p": None, "diffusers_callback": self._diffusers_callback},
            "modules.processing_args": {"diffusers_callback": self._diffusers_callback},
            "modules.processing_vae": {"full_vae_decode": lambda latents, model: _large(_cheap(latents)) if model else []},
            "modules.vae": {},
            "modules.vae.sd_vae_approx": {"cheap_approximation": _cheap},
            "modules.vae.sd_vae_taesd": {"TAESD_MODELS": taesd, "get_model": lambda kind: (kind, "TAESD 1.3"), "decode": self._taesd},
            "installer": {"version": {"updated": "2026-07-23", "commit": "058a7f0c"}},
            "gradio": {"Radio": object()},
        }
        built: dict[str, Any] = {}
        for full, names in made.items():
            built[full] = types.ModuleType(full)
            vars(built[full]).update(names)
            above, _, last = full.rpartition(".")
            if above:
                setattr(built[above], last, built[full])
        return built

    def _settings_page(self, callback: Callable[[], None]) -> None:
        self.settings.clear()
        callback()

    def _taesd(self, latents: Tensor) -> Tensor:
        if not (self.home / "models" / "TAESD" / "taesd_13_decoder_sd.pth").exists():
            self.downloads.append("taesd")
            raise AssertionError("the hook has the host download something in the middle of a picture")
        return ((_large(_cheap(latents.unsqueeze(0))) + 1) * 0.5)[0]

    def _diffusers_callback(self, pipe: Any, step: int = 0, timestep: int = 0, kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        """As ``processing_callbacks.diffusers_callback``: a click raises before anything else is done."""
        kwargs = kwargs or {}
        what = self.clicks.get(len(self.calls))
        self.calls.append((type(pipe).__name__, step))
        if what == "ctrl-c":
            raise KeyboardInterrupt
        if what is not None:
            setattr(self.state, what, True)
        if self.state.interrupted or self.state.skipped:
            raise AssertionError("Interrupted...")
        if kwargs.get("latents") is None:
            return kwargs
        self.state.current_latent = kwargs["latents"]
        self.state.current_noise_pred = kwargs.get("noise_pred")
        return kwargs

    def guess(self, latents: Tensor, step: int) -> Tensor:
        return Tensor.full(latents.shape, lambda b, c, y, x: (b + c + y + x + step) % 5 / 5 - 0.4)

    # --- one click

    def process_images(self, p: Job) -> list[Tensor]:
        self.state.interrupted = self.state.skipped = False
        try:
            for callback in self.callbacks_before:
                callback(p)
            return self._inner(p)
        finally:
            for callback in self.callbacks_after:
                callback(p)

    def _inner(self, p: Job) -> list[Tensor]:
        results: list[Tensor] = []
        count = p.batch_size * p.n_iter
        p.all_prompts, p.all_negative_prompts = [p.prompt] * count, [""] * count
        p.all_seeds, p.all_subseeds = [p.seed + k for k in range(count)], [0] * count
        if p.scripted:
            self.script.process(p, *p.args)
        for n in range(p.n_iter):
            p.iteration = n
            if self.state.interrupted:
                break
            if self.state.skipped:
                self.state.skipped = False
                continue
            output = self.process_diffusers(p)
            if self.state.interrupted:
                break
            if p.scripted:
                self.script.postprocess_batch(p, *p.args, batch_number=n)
            results += output
        return results

    def process_diffusers(self, p: Job) -> list[Tensor]:
        latents = self._pipeline(p, p.pipe, p.noise(), p.fail_at)
        if latents is None or self.state.interrupted or self.state.skipped:
            return []
        if p.hires is not None:
            p.is_hr_pass = True
            latents = self._pipeline(p, p.hires, p.noise(2))
            p.is_hr_pass = False
            if latents is None:
                return []
        if p.refiner is not None:
            p.is_refiner_pass = True
            for i in range(len(latents)):
                self._pipeline(p, p.refiner, latents[i : i + 1])
            p.is_refiner_pass = False
        if p.detailer is not None:
            inner = copy.copy(p)
            inner.ops = ["detailer"]
            self._pipeline(inner, p.detailer, p.noise())
        return list(latents)

    def _pipeline(self, p: Job, pipe: Pipeline, latents: Tensor, fail_at: int | None = None) -> Tensor | None:
        """As ``process_base`` and its like: what a pipeline raises is caught, and some of it looks like a click afterwards."""
        self.modules["modules.processing_callbacks"].p = p
        callback = self.modules["modules.processing_args"].diffusers_callback
        try:
            return pipe(latents, callback, fail_at=fail_at)
        except AssertionError:
            return None
        except RuntimeError as error:
            if p.raises:
                raise
            self.errors.append(error)
            self.state.interrupted = True
            return None


class Job:
    """``p``: one job."""

    def __init__(self, host: Host, args: tuple[Any, ...] = (True,), **facts: Any) -> None:
        self.host = host
        self.args = args
        self.scripted = True
        self.prompt, self.seed, self.batch_size, self.n_iter, self.iteration = "a cat", 100, 1, 1, 0
        self.steps, self.cfg_scale, self.sampler_name, self.clip_skip = 4, 6.0, "Euler a", 1
        self.hr_sampler_name, self.denoising_strength, self.subseed_strength = "DPM++ 2M", 0.3, 0
        self.width, self.height = 24, 16
        self.is_hr_pass = self.is_refiner_pass = False
        self.ops: list[str] = []
        self.all_prompts: list[str] = []
        self.all_negative_prompts: list[str] = []
        self.all_seeds: list[int] = []
        self.all_subseeds: list[int] = []
        self.init_images: list[object] = []
        self.pipe: Any = Pipeline(host, steps=4)
        self.hires: Any = None
        self.refiner: Any = None
        self.detailer: Any = None
        self.fail_at: int | None = None
        self.raises = False
        vars(self).update(facts)

    def noise(self, scale: int = 1) -> Tensor:
        shape = (self.batch_size, getattr(self, "channels", 4), self.height * scale // 8, self.width * scale // 8)
        return Tensor.full(shape, lambda b, c, y, x: (b * 5 + c * 3 + y * 2 + x + self.iteration) % 11 - 5)


def _option(default: Any, label: str, component: Any = None, component_args: Any = None, section: tuple[str, str] | None = None) -> Any:
    return types.SimpleNamespace(default=default, label=label, component=component, section=section)


def _create_infotext(
    p: Any,
    all_prompts: Any = None,
    all_seeds: Any = None,
    all_subseeds: Any = None,
    comments: Any = None,
    iteration: int = 0,
    position_in_batch: int = 0,
) -> str:
    return f"{all_prompts[0]}\nSeed: {all_seeds[iteration * p.batch_size + position_in_batch]}"


@contextmanager
def running(host: Host) -> Iterator[Host]:
    """The host's modules are there, and no others of those names."""
    taken = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in ("modules", "installer", "gradio")}
    sys.modules.update(host.modules)
    try:
        yield host
    finally:
        for name in host.modules:
            with suppress(KeyError):
                del sys.modules[name]
        sys.modules.update(taken)
