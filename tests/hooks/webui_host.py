"""AUTOMATIC1111's WebUI 1.10, Forge and reForge as a hook sees them: the signatures, the order of calls and the ways in which a pass ends.

Only what lies between the hook and a picture is here; the picture itself is a few numbers.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.hooks.tensors import Tensor

HOOK = Path(__file__).resolve().parents[2] / "stepwatch" / "hooks" / "webui" / "stepwatch_webui.py"
Kind = Literal["a1111", "forge", "reforge"]


class InterruptedException(BaseException):
    """Raised by the denoiser when the user has clicked, and by a sampler that is to stop early."""


class OutOfMemoryError(RuntimeError):
    """As torch has it."""


class Host:
    """One WebUI, with its modules in ``sys.modules`` for as long as a test runs."""

    def __init__(self, kind: Kind, home: Path) -> None:
        self.kind = kind
        self.home = home
        self.errors: list[Exception] = []
        self.calls: list[str] = []
        self.clicks: dict[int, str] = {}
        """What the user does, by the evaluation of the model at which it happens."""
        self.evaluations = 0
        self.downloads: list[str] = []
        self.unloaded: list[str] = []
        self.free_memory = 10**12
        self.state = types.SimpleNamespace(
            interrupted=False,
            skipped=False,
            stopping_generation=False,
            job_timestamp="0",
            current_latent=None,
            sampling_step=0,
            sampling_steps=0,
        )
        self.opts = types.SimpleNamespace(CLIP_stop_at_last_layers=1, options={})
        self.opts.add_option = self.opts.options.__setitem__
        self.sd_model = types.SimpleNamespace(is_sdxl=False, is_sd3=False, sd_checkpoint_info=types.SimpleNamespace(name_for_extra="toy"))
        if kind != "a1111":
            vae = types.SimpleNamespace(device="cuda:0", vae_dtype="float16", first_stage_model=object())
            vae.memory_used_decode = lambda _shape, _dtype: 2 * 10**9
            self.sd_model.forge_objects = types.SimpleNamespace(vae=vae)
        if kind == "forge":
            self.sd_model.is_webui_legacy_model = lambda: True
        self.sd_model.decode_first_stage = self._full_vae
        self.modules = self._modules()

    # --- the modules

    def _modules(self) -> dict[str, Any]:
        class Script:
            args_from = 0
            args_to = 0

        if self.kind == "reforge":
            Script.process_before_every_step = lambda self, p, *args, **kwargs: None  # type: ignore[attr-defined]
        made: dict[str, dict[str, Any]] = {
            "modules": {},
            "modules.scripts": {"Script": Script, "AlwaysVisible": object()},
            "modules.script_callbacks": {"on_ui_settings": lambda callback: callback()},
            "modules.shared": {"state": self.state, "opts": self.opts, "sd_model": self.sd_model, "OptionInfo": _option},
            "modules.devices": {"device": "cuda", "dtype": "float16"},
            "modules.paths_internal": {"data_path": str(self.home), "models_path": str(self.home / "models")},
            "modules.launch_utils": {"git_tag": lambda: "v1.10.1"},
            "modules.sd_vae_approx": {"cheap_approximation": _cheap},
            "modules.sd_vae_taesd": {"sd_vae_taesd_models": {}, "TAESDDecoder": self._taesd, "decoder_model": self._download},
            "modules.sd_samplers_common": {"samples_to_images_tensor": self._samples_to_images_tensor, "InterruptedException": InterruptedException},
            "modules.processing": {"create_infotext": _create_infotext},
        }
        if self.kind != "a1111":
            made["modules.paths_internal"]["default_output_dir"] = str(self.home / "outputs")
            memory = {
                "vram_state": types.SimpleNamespace(name="NORMAL_VRAM"),
                "minimum_inference_memory": lambda: 10**9,
                "module_size": lambda _module: 3 * 10**8,
                "get_free_memory": lambda _device: self.free_memory,
            }
            parent, _, name = ("backend.memory_management" if self.kind == "forge" else "ldm_patched.modules.model_management").rpartition(".")
            made |= {parent.partition(".")[0]: {}, parent: {name: types.SimpleNamespace(**memory)}}
        built: dict[str, Any] = {}
        for full, names in made.items():
            built[full] = types.ModuleType(full)
            vars(built[full]).update(names)
            above, _, last = full.rpartition(".")
            if above:
                setattr(built[above], last, built[full])
        return built

    def _taesd(self, path: str) -> Any:
        assert Path(path).exists()
        return types.SimpleNamespace(eval=lambda: None, to=lambda *_: None, decoder=lambda latents: (_large(_cheap(latents)) + 1) * 0.5)

    def _download(self) -> Any:
        self.downloads.append("taesd")
        raise AssertionError("the hook has the host download something in the middle of a picture")

    def _full_vae(self, latents: Tensor) -> Tensor:
        if self.kind != "a1111" and self.free_memory < 3 * 10**9:
            self.unloaded.append("the model that is at work")
        return _large(_cheap(latents))

    def _samples_to_images_tensor(self, sample: Tensor, approximation: int | None = None, model: Any = None) -> Tensor:
        if approximation is None or self.state.interrupted:
            return _cheap(sample)  # The live preview's own way: small.
        assert approximation == 0
        return (model or self.sd_model).decode_first_stage(sample)  # type: ignore[no-any-return]

    # --- one click

    def begin_job(self, timestamp: str = "20260101120000") -> None:
        self.state.job_timestamp = timestamp
        self.state.interrupted = self.state.skipped = self.state.stopping_generation = False

    def process_images(self, p: Processing) -> list[Tensor]:
        """As ``process_images_inner``: one call of ``p.sample`` for each iteration."""
        results: list[Tensor] = []
        p.all_seeds = [p.seed + k for k in range(p.batch_size * p.n_iter)]
        p.all_subseeds = [p.subseed + k for k in range(p.batch_size * p.n_iter)]
        p.all_prompts = [p.prompt] * len(p.all_seeds)
        p.all_negative_prompts = [p.negative_prompt] * len(p.all_seeds)
        p.init()
        for n in range(p.n_iter):
            p.iteration = n
            self.state.skipped = False
            if self.state.interrupted or self.state.stopping_generation:
                break
            samples = p.sample()
            results += [] if samples is None else list(samples)
        return results

    def model(self, x: Tensor, step: int) -> Tensor:
        """The denoiser: the nearer the end, the nearer its answer is to the picture."""
        self._click()
        if self.state.interrupted or self.state.skipped:
            raise InterruptedException
        denoised = Tensor.full(x.shape, lambda b, c, y, z: (b + c + y + z + step) % 7 / 7 - 0.4)
        self.state.current_latent = denoised
        return denoised

    def _click(self) -> None:
        what = self.clicks.get(self.evaluations)
        self.evaluations += 1
        if what == "oom":
            raise OutOfMemoryError("CUDA out of memory")
        if what == "ctrl-c":
            raise KeyboardInterrupt
        if what == "refiner":
            self.sd_model.sd_checkpoint_info = types.SimpleNamespace(name_for_extra="refiner")
        elif what is not None:
            setattr(self.state, what, True)


def _option(default: Any, label: str, section: tuple[str, str]) -> Any:
    return types.SimpleNamespace(default=default, label=label, section=section)


def _cheap(sample: Tensor) -> Tensor:
    """Colours of latents: the first three of them."""
    batch, _, rows, columns = sample.shape
    return Tensor.full((batch, 3, rows, columns), lambda b, c, y, x: sample[b][c].data[y * columns + x])


def _large(picture: Tensor) -> Tensor:
    batch, colours, rows, columns = picture.shape
    return Tensor.full((batch, colours, rows * 8, columns * 8), lambda b, c, y, x: picture[b][c].data[y // 8 * columns + x // 8])


def _create_infotext(
    p: Any, all_prompts: Any, all_seeds: Any, all_subseeds: Any, comments: Any = None, iteration: int = 0, position_in_batch: int = 0, **_: Any
) -> str:
    k = iteration * p.batch_size + position_in_batch
    return f"{all_prompts[k]}\nSteps: {p.steps}, Seed: {all_seeds[k]}"


class Sampler:
    """As ``sd_samplers_common.Sampler`` and its two kinds of children."""

    def __init__(self, host: Host, func: Callable[..., Tensor]) -> None:
        self.host = host
        self.func = func
        self.stop_at: int | None = None
        self.last_latent: Tensor | None = None
        self.p: Any = None

    def callback_state(self, d: dict[str, Any]) -> str:
        step = d["i"]
        if self.stop_at is not None and step > self.stop_at:
            raise InterruptedException
        self.host.state.sampling_step = step
        self.host.calls.append(f"callback {step}")
        return "kept"

    def launch_sampling(self, steps: int, func: Callable[[], Tensor]) -> Tensor | None:
        self.host.calls.append(f"launch {steps}")
        self.host.state.sampling_steps = steps
        self.host.state.sampling_step = 0
        try:
            return func()
        except InterruptedException:
            return self.last_latent

    def denoise(self, x: Tensor, step: int) -> Tensor:
        self.last_latent = self.host.model(x, step)
        return self.last_latent

    def sample(
        self, p: Any, x: Tensor, conditioning: Any, unconditional_conditioning: Any, steps: int | None = None, image_conditioning: Any = None
    ) -> Any:
        steps = steps or p.steps
        return self.launch_sampling(steps, lambda: self.func(self.denoise, x, steps, callback=self.callback_state))

    def sample_img2img(
        self,
        p: Any,
        x: Tensor,
        noise: Tensor,
        conditioning: Any,
        unconditional_conditioning: Any,
        steps: int | None = None,
        image_conditioning: Any = None,
    ) -> Any:
        t_enc = steps - 1 if steps else int(min(p.denoising_strength, 0.999) * p.steps)
        return self.launch_sampling(t_enc + 1, lambda: self.func(self.denoise, x + noise, t_enc + 1, callback=self.callback_state))


def _number(value: float) -> Tensor:
    return Tensor((), [value])


def euler(model: Callable[..., Tensor], x: Tensor, steps: int, callback: Callable[..., object]) -> Tensor:
    for i in range(steps):
        denoised = model(x, i)
        said = callback({"x": x, "i": i, "sigma": _number(14.6 / (i + 1)), "sigma_hat": _number(14.6 / (i + 1)), "denoised": denoised})
        assert said == "kept"
        x = x + (denoised - x) * 0.5
    return x


def heun(model: Callable[..., Tensor], x: Tensor, steps: int, callback: Callable[..., object]) -> Tensor:
    for i in range(steps):
        denoised = model(x, i)
        callback({"x": x, "i": i, "sigma": _number(14.6), "sigma_hat": _number(14.6), "denoised": denoised})
        again = model(x + denoised, i)
        x = x + (denoised + again - x) * 0.25
    return x


def adaptive(model: Callable[..., Tensor], x: Tensor, steps: int, callback: Callable[..., object]) -> Tensor:
    return euler(model, x, steps + 3, callback)


def unipc(model: Callable[..., Tensor], x: Tensor, steps: int, callback: Callable[..., object]) -> Tensor:
    """As UniPCCFG: no sigma, and no latent at the last step."""
    for i in range(steps):
        denoised = model(x, i)
        callback({"x": x, "i": i, "sigma": 0, "sigma_hat": 0, "denoised": None if i == steps - 1 else denoised})
        x = x + (denoised - x) * 0.5
    return x


class Scripts:
    """As ``ScriptRunner``: an error of a script is reported, and the picture goes on."""

    def __init__(self, host: Host, script: Any) -> None:
        self.host = host
        self.script = script

    def process_before_every_sampling(self, p: Any, **kwargs: Any) -> None:
        try:
            self.script.process_before_every_sampling(p, *p.script_args[self.script.args_from : self.script.args_to], **kwargs)
        except Exception as error:  # noqa: BLE001  # as the host
            self.host.errors.append(error)


class Processing:
    """``p``: one job of one click."""

    init_images: list[object] | None = None
    image_mask: object = None
    mask: object = None

    def __init__(self, host: Host, scripts: Scripts | None, args: tuple[Any, ...], **facts: Any) -> None:
        self.host = host
        self.scripts = scripts
        self.script_args = args
        self.prompt, self.negative_prompt = "a cat <lora:fur:0.8>", "blurry"
        self.seed, self.subseed, self.subseed_strength = 100, 7, 0.0
        self.steps, self.cfg_scale, self.batch_size, self.n_iter, self.iteration = 4, 7.0, 1, 1, 0
        self.sampler_name, self.scheduler, self.func = "Euler", "Karras", euler
        self.width, self.height = 24, 16
        self.sampler: Sampler | None = None
        self.all_prompts: list[str] = []
        self.all_negative_prompts: list[str] = []
        self.all_seeds: list[int] = []
        self.all_subseeds: list[int] = []
        vars(self).update(facts)

    def init(self) -> None:
        pass

    def sample(self) -> Tensor | None:
        raise NotImplementedError

    def before_sampling(self, **kwargs: Any) -> None:
        if self.scripts is None:
            return
        if self.host.kind == "a1111":
            self.scripts.process_before_every_sampling(p=self, **kwargs)
        else:
            self.scripts.process_before_every_sampling(self, **kwargs)

    def noise(self, width: int, height: int) -> Tensor:
        return Tensor.full(
            (self.batch_size, 4, height // 8, width // 8), lambda b, c, y, x: (b * 5 + c * 3 + y * 2 + x + self.iteration) % 11 / 5 - 1
        )


class Txt2Img(Processing):
    """As ``StableDiffusionProcessingTxt2Img``."""

    enable_hr = False
    is_hr_pass = False
    hr_second_pass_steps = 0
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    denoising_strength: float | None = None

    def sample(self) -> Any:
        self.sampler = Sampler(self.host, self.func)
        x = self.noise(self.width, self.height)
        self.before_sampling(x=x, noise=x, c=None, uc=None)
        samples = self.sampler.sample(self, x, None, None, image_conditioning=None)
        if not self.enable_hr or self.host.state.interrupted:
            return samples
        self.is_hr_pass = True
        self.sampler = Sampler(self.host, self.func)
        x = self.noise(self.width * 2, self.height * 2)
        self.before_sampling(x=x, noise=x, c=None, uc=None)
        if self.host.kind == "forge":
            self.before_sampling(x=x, noise=x, c=None, uc=None)
        samples = self.sampler.sample_img2img(self, x, x, None, None, steps=self.hr_second_pass_steps or self.steps, image_conditioning=None)
        self.sampler = None
        self.is_hr_pass = False
        return samples


class Img2Img(Processing):
    """As ``StableDiffusionProcessingImg2Img``: its sampler is made once and serves all iterations."""

    denoising_strength = 0.5

    def init(self) -> None:
        self.init_images = [object()]
        self.sampler = Sampler(self.host, self.func)

    def sample(self) -> Any:
        assert self.sampler is not None
        x = self.noise(self.width, self.height)
        self.before_sampling(x=x, noise=x, c=None, uc=None)
        return self.sampler.sample_img2img(self, x, x, None, None, image_conditioning=None)


def load(path: Path, name: str = "stepwatch_hook_under_test") -> Any:
    """Import a hook as the host's script loader does."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def running(host: Host) -> Iterator[Host]:
    """The host's modules are there, and no others of those names."""
    taken = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in ("modules", "backend", "ldm_patched", "gradio")}
    sys.modules.update(host.modules)
    try:
        yield host
    finally:
        for name in host.modules:
            sys.modules.pop(name, None)
        sys.modules.update(taken)
