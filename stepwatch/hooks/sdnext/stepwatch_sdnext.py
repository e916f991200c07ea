"""stepwatch's hook for SD.Next: leaves the frames and ``run.json`` of every pass of a pipeline, and nothing else.

Theory of operation. SD.Next runs diffusers pipelines and gives each of them one function to call after a step. That function is wrapped, in the
places where the host looks it up; it is the only thing that is replaced, its return value and its exceptions are the host's. Nothing tells when a
pass begins or ends, so that is read from the steps: they start again at 0, or come from another pipeline, and `on_after_process` comes at last, also
after an error. Base, hires, refiner and detailer passes are runs of their own.

A pipeline hands over the noisy latents. What the model takes the picture to be follows from them, from its last prediction and from the sigmas
of the scheduler; where one of these is missing, the latents are shown as they are. Tensors are only read, so the picture is that without the hook.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any, Callable, Mapping, Sequence

from modules import processing_args, processing_callbacks, script_callbacks, scripts, shared

# --- stepwatch writer: an installed hook has its source here ---
from stepwatch.hooks.writer import Recording, log, new_id, parse_overrides

# --- end of the stepwatch writer ---

HOOK = "stepwatch-sdnext"
CHEAP, TAESD, FULL = "Cheap", "TAESD", "Full VAE"
DECODED_BY = {CHEAP: "latent2rgb", TAESD: "taesd", FULL: "vae"}
FORMATS_OFFERED = ("PNG", "JPEG", "WebP")
SCALE = 8
"""Pixels of the picture for one of its latent, in each direction; frames of the cheap way are left that small."""
DEFAULTS: dict[str, Any] = {"enabled": False, "every": 1, "decode": CHEAP, "format": "PNG", "min_size": 0, "overrides": ""}
"""In the order of the controls, which is that of ``args`` in the API; ``stepwatch_`` before it, the name in the host's settings."""
LABELS = {
    "enabled": "Record every pass",
    "every": "Every Nth step",
    "decode": "Decode",
    "format": "Format",
    "min_size": "Leave out passes smaller than (pixels)",
    "overrides": "Policy for these runs, as in stepwatch.yaml",
}
BICUBIC = 3
"""Of every Pillow, by whatever name."""


class StepwatchScript(scripts.Script):  # type: ignore[misc]  # hosts have no types
    """The controls in the text and image tabs, and for the API; the Control tab shows no extension's, so the settings page has them as well."""

    def title(self) -> str:
        return "stepwatch"

    def show(self, is_img2img: bool) -> Any:  # noqa: ARG002, FBT001  # the host's signature
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:  # noqa: ARG002, FBT001  # the host's signature
        import gradio as gr

        with gr.Accordion("stepwatch: record the steps", open=False):
            enabled = gr.Checkbox(label=LABELS["enabled"], value=DEFAULTS["enabled"])
            every = gr.Slider(label=LABELS["every"], minimum=1, maximum=20, step=1, value=DEFAULTS["every"])
            decode = gr.Radio(label=LABELS["decode"], choices=list(DECODED_BY), value=DEFAULTS["decode"])
            image_format = gr.Radio(label=LABELS["format"], choices=list(FORMATS_OFFERED), value=DEFAULTS["format"])
            min_size = gr.Number(label=LABELS["min_size"], value=DEFAULTS["min_size"], precision=0)
            overrides = gr.Textbox(label=LABELS["overrides"], value=DEFAULTS["overrides"], lines=2, placeholder="duration: 6s")
        return [enabled, every, decode, image_format, min_size, overrides]

    def process(self, p: Any, *args: Any) -> None:
        # On the job itself: the detailer works on copies of it.
        p.stepwatch_args = args

    def postprocess_batch(self, p: Any, *args: Any, **_: Any) -> None:  # noqa: ARG002  # the host's signature
        finish_pass()


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by name; what is not given is as in the controls."""
    settings = {key: default if given.get(key) is None else given[key] for key, default in DEFAULTS.items()}
    known = {name.lower(): name for name in DECODED_BY}
    decode = known.get(str(settings["decode"]).lower())
    if decode is None:
        log.warning("stepwatch: there is no decode %r; it is one of %s", settings["decode"], ", ".join(DECODED_BY))
    overrides, complaints = parse_overrides(settings["overrides"])
    for complaint in complaints:
        log.warning("stepwatch: policy for these runs: %s", complaint)
    every, least = int(settings["every"]), int(settings["min_size"])
    return {**settings, "every": max(1, every), "decode": decode or CHEAP, "min_size": max(0, least), "overrides": overrides}


def settings_of(p: Any) -> dict[str, Any] | None:
    """Return the settings of a job, None when it is not to be recorded: its own, else those of the host's settings page."""
    args: Sequence[Any] = getattr(p, "stepwatch_args", ())
    given: Mapping[str, Any] = args[0] if args and isinstance(args[0], dict) else dict(zip(DEFAULTS, args))
    if given.get("enabled"):
        return read_settings(given)
    given = {key: getattr(shared.opts, "stepwatch_" + key, None) for key in DEFAULTS}
    return read_settings(given) if given["enabled"] else None


# --- passes


def watched(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the host's callback with ours behind it."""

    def diffusers_callback(pipe: Any, step: int = 0, timestep: Any = 0, kwargs: Any = None) -> Any:
        try:
            result = original(pipe, step, timestep, kwargs)
        except BaseException as error:
            stopped = shared.state.interrupted or shared.state.skipped or not isinstance(error, Exception)
            finish_pass("interrupted" if stopped else "failed", error)
            raise
        # Without latents the host keeps those of an earlier step.
        if isinstance(kwargs, dict) and kwargs.get("latents") is not None:
            take_step(pipe, step)
        return result

    diffusers_callback.stepwatch_original = original  # type: ignore[attr-defined]
    return diffusers_callback


def install() -> None:
    """Put the callback in place, also for modules that are imported later; once, however often the host loads its scripts anew."""
    current = processing_callbacks.diffusers_callback
    ours = watched(getattr(current, "stepwatch_original", current))
    module: Any
    for module in (processing_callbacks, processing_args, sys.modules.get("modules.ltx.ltx_process")):
        if hasattr(module, "diffusers_callback"):
            module.diffusers_callback = ours


class PipelinePass:
    """One pass of one pipeline."""

    def __init__(self, pipe: Any, p: Any, settings: dict[str, Any] | None) -> None:
        self.pipe_id = id(pipe)
        self.p = p
        self.iteration = getattr(p, "iteration", 0)
        self.settings = settings
        self.step = -1
        self.planned: int | None = whole(getattr(pipe, "num_timesteps", None))
        self.recording: Recording | None = None
        self.decoder: Decoder | None = None
        self.over = settings is None

    def goes_on(self, pipe: Any, p: Any, step: int) -> bool:
        return (self.pipe_id, self.iteration) == (id(pipe), getattr(p, "iteration", 0)) and self.p is p and step > self.step

    def take(self, pipe: Any) -> None:
        """Record one step."""
        if self.over or self.settings is None:
            return
        latents, kind = predicted(pipe)
        if self.recording is None:
            self._begin(pipe, latents, kind)
        if self.recording is None or self.decoder is None or not self.recording.step():
            return
        for item, picture in enumerate(self.decoder.pictures(latents)):
            self.recording.put(item, *picture)
        self.recording.decode = DECODED_BY[self.decoder.way]

    def _begin(self, pipe: Any, latents: Any, kind: str) -> None:
        assert self.settings is not None
        batch, _, rows, columns = latents.shape
        if min(rows, columns) * SCALE < self.settings["min_size"]:
            self.over = True
            return
        self.decoder = Decoder(self.settings["decode"], pipe, latents)
        group, index = next_in_group()
        self.recording = Recording(
            output_root(),
            host={"app": "sdnext", "version": host_version(), "prompt_id": None, "node_id": None, "list_index": None},
            hook=HOOK,
            items=[item_facts(self.p, item, batch, (columns * SCALE, rows * SCALE)) for item in range(batch)],
            planned=self.planned,
            every=self.settings["every"],
            image_format=self.settings["format"],
            size=self.decoder.size,
            scale=self.decoder.scale,
            kind=kind,
            decode=DECODED_BY[self.decoder.way],
            group_id=group,
            pass_facts={"index": index, "name": pass_name(self.p), "sigma_first": first_sigma(pipe)},
            overrides=self.settings["overrides"],
        )

    def give_up(self, error: Exception) -> None:
        self.over = True
        log.warning("stepwatch: this pass is not recorded any further: %s: %s", type(error).__name__, error)
        if self.recording is not None:
            self.recording.end("failed", error)


_job: dict[str, Any] = {"pass": None, "depth": 0, "task": None, "group": "", "passes": 0, "refined": 0}
"""The pass that is going on, and the job that it belongs to: SD.Next does one at a time, but some call for others within them."""


def take_step(pipe: Any, step: int) -> None:
    going: PipelinePass | None = None
    try:
        p = processing_callbacks.p
        going = _job["pass"]
        if going is None or not going.goes_on(pipe, p, step):
            finish_pass()
            going = _job["pass"] = PipelinePass(pipe, p, settings_of(p))
        going.step = step
        going.take(pipe)
    except Exception as error:
        if going is not None:
            going.give_up(error)
        else:
            log.warning("stepwatch: this pass is not recorded: %s", error)


def finish_pass(state: str | None = None, error: BaseException | None = None) -> None:
    """End the pass that is going on, if any; without a *state*, as the host's flags say."""
    try:
        going: PipelinePass | None = _job["pass"]
        _job["pass"] = None
        if going is None or going.recording is None:
            return
        if going.planned is not None and going.recording.done >= going.planned:
            state, error = "complete", None
        elif state is None:
            state, error = how_it_ended()
        going.recording.end(state, error)
    except Exception as fault:
        log.warning("stepwatch: the end of this pass is not recorded: %s", fault)


def how_it_ended() -> tuple[str, BaseException | None]:
    """Return how a pass ended that stopped short without an error in its callback.

    Where the user stops it, the callback raises. Where the pipeline fails, the host catches that, logs it, and sets the flag of the user.
    """
    error = sys.exc_info()[1]
    if error is not None:
        return ("failed" if isinstance(error, Exception) else "interrupted"), error
    if shared.state.interrupted:
        return "failed", RuntimeError("the pipeline stopped; the log of SD.Next says why")
    return "complete", None


def predicted(pipe: Any) -> tuple[Any, str]:
    """Return what the model takes the picture to be at this step, and "x0", or the latents as they are, and "x"."""
    noisy, guess = shared.state.current_latent, shared.state.current_noise_pred
    scheduler = getattr(pipe, "scheduler", None)
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if guess is None or sigmas is None or not index or tuple(guess.shape) != tuple(noisy.shape):
        return noisy, "x"
    sigma, following = float(sigmas[index - 1]), float(sigmas[index])
    # From the scheduler: the host's own flag is put back to "epsilon" whenever it begins a job.
    kind = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    # Euler's step, turned back: from where it led to where it came from, and from there all the way.
    if kind == "v_prediction":
        total = sigma**2 + 1
        before = (noisy - guess * ((following - sigma) / total**0.5)) / (1 + (following - sigma) * sigma / total)
        return before / total - guess * (sigma / total**0.5), "x0"
    if kind in (None, "epsilon", "flow_prediction"):
        return noisy - guess * following, "x0"
    return noisy, "x"


# --- pixels


class Decoder:
    """Makes pictures of latents, all of one size, in the way that was asked for, or as near to it as this host can."""

    def __init__(self, way: str, pipe: Any, latents: Any) -> None:
        self.way = way
        self._model = pipe if hasattr(pipe, "vae") else shared.sd_model
        if way == TAESD and not taesd_is_there():
            self._fall_back("its TAESD model has not been downloaded (a live preview with TAESD does that)")
        self.size: tuple[int, int] | None = None
        # Latents that nobody can show are no run, and the first picture tells the size of all.
        self.size = self.pictures(latents)[0][1]
        self.scale = SCALE if self.size == (latents.shape[3], latents.shape[2]) else 1

    def pictures(self, latents: Any) -> list[tuple[Any, Any]]:
        """Return the pixels and size of each item's picture."""
        if self.way != CHEAP:
            try:
                return [self._fitting(self._decoded(latents[item : item + 1])) for item in range(len(latents))]
            except Exception as error:
                self._fall_back(f"{type(error).__name__}: {error}")
        rgb = host_vae("sd_vae_approx").cheap_approximation(latents.float()) if latents.shape[1] == 4 else None
        if rgb is None or rgb.shape[1] != 3:
            raise ValueError(f"the cheap way shows no latents of {latents.shape[1]} channels")
        return [self._fitting(picture) for picture in as_rgb(rgb)]

    def _decoded(self, latents: Any) -> tuple[bytes, tuple[int, int]]:
        if self.way == TAESD:
            picture = host_vae("sd_vae_taesd").decode(latents[0])
            # On any fault it returns the latents, or a black image.
            if len(getattr(picture, "shape", ())) != 3 or picture.shape[0] != 3:
                raise ValueError("this TAESD shows no such latents")
            return as_rgb(picture.unsqueeze(0) * 2 - 1)[0]
        from modules import processing_vae

        # Not `vae_decode`, which begins a job and so forgets a click on Interrupt.
        decoded = processing_vae.full_vae_decode(latents=latents, model=self._model)
        if len(getattr(decoded, "shape", ())) != 4:
            raise ValueError("the VAE shows no such latents")
        return as_rgb(decoded)[0]

    def _fitting(self, picture: tuple[bytes, tuple[int, int]]) -> tuple[Any, Any]:
        """Bring a picture to the size of its run: one that was made in another way than the first."""
        data, size = picture
        if self.size is None or size == self.size:
            return data, size
        from PIL import Image

        return Image.frombytes("RGB", size, data).resize(self.size, BICUBIC), None

    def _fall_back(self, why: str) -> None:
        log.warning("stepwatch: frames are decoded by the cheap way instead of %s: %s", self.way, why)
        self.way = CHEAP


def as_rgb(pictures: Any) -> list[tuple[bytes, tuple[int, int]]]:
    """Return the pixels of tensors of (picture, colour, row, column) from -1 to 1; what is no number is grey."""
    levels = pictures.detach().float().nan_to_num(0.0, 1.0, -1.0).clamp(-1, 1).add(1).mul(127.5).round()
    planes = levels.byte().to("cpu").permute(0, 2, 3, 1).contiguous().numpy()
    return [(plane.tobytes(), (plane.shape[1], plane.shape[0])) for plane in planes]


def host_vae(name: str) -> Any:
    """Return one of the host's modules of small decoders, which have moved once."""
    try:
        return importlib.import_module("modules.vae." + name)
    except ImportError:
        return importlib.import_module("modules." + name)


def taesd_is_there() -> bool:
    """Whether the TAESD of the model at work is on the disk: the host would download it in the middle of a picture."""
    try:
        from modules import paths

        taesd = host_vae("sd_vae_taesd")
        kind, variant = taesd.get_model(shared.sd_model_type)
        if variant in taesd.TAESD_MODELS:
            name = f"{taesd.TAESD_MODELS[variant]['fn']}decoder_{kind}.pth"
            return os.path.exists(os.path.join(paths.models_path, "TAESD", name))
        # Others come from a hub, which is asked again unless it was the last one that was used.
        return bool(variant) and (taesd.prev_cls, taesd.prev_type, taesd.prev_model) == (kind, "decoder", variant)
    except Exception:
        return False


# --- facts


def item_facts(p: Any, item: int, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return what the sidecar says of one item of the batch."""
    iteration = getattr(p, "iteration", 0) or 0
    size_of_batch = getattr(p, "batch_size", None) or batch
    if getattr(p, "is_refiner_pass", False) and batch < size_of_batch:
        item = refined_item(size_of_batch)  # The refiner takes the pictures of a batch one by one.
    k = iteration * size_of_batch + item
    second = getattr(p, "is_hr_pass", False) or getattr(p, "is_refiner_pass", False)

    def of_item(name: str) -> Any:
        values = getattr(p, name, None)
        return values[k] if isinstance(values, (list, tuple)) and k < len(values) else None

    checkpoint = getattr(shared.sd_model, "sd_checkpoint_info", None)
    prompt = of_item("all_prompts")
    generation = {
        "prompt": prompt,
        "negative": of_item("all_negative_prompts"),
        "seed": whole(of_item("all_seeds")),
        "subseed": whole(of_item("all_subseeds")) if getattr(p, "subseed_strength", 0) else None,
        "sampler": (getattr(p, "hr_sampler_name", None) if second else None) or getattr(p, "sampler_name", None),
        "steps": whole(getattr(p, "steps", None)),
        "cfg": getattr(p, "cfg_scale", None),
        "denoise": getattr(p, "denoising_strength", None) if second or getattr(p, "init_images", None) else None,
        "width": size[0],
        "height": size[1],
        "model": getattr(checkpoint, "name_for_extra", None) or getattr(checkpoint, "name", None),
        "model_hash": getattr(shared.sd_model, "sd_model_hash", None),
        "clip_skip": whole(getattr(p, "clip_skip", None)),
        "loras": re.findall(r"<(?:lora|lyco):([^:<>]+)", prompt) if isinstance(prompt, str) else None,
    }
    facts = {"index": item, "size": size_of_batch, "iteration": iteration, "iterations": getattr(p, "n_iter", None)}
    return {"generation": generation, "batch": facts, "infotext": infotext(p, iteration, item)}


def infotext(p: Any, iteration: int, item: int) -> str | None:
    try:
        from modules import processing

        said = processing.create_infotext(p, p.all_prompts, p.all_seeds, p.all_subseeds, iteration=iteration, position_in_batch=item)
        return said if isinstance(said, str) and said else None
    except Exception:
        return None


def pass_name(p: Any) -> str:
    if getattr(p, "is_refiner_pass", False):
        return "refiner"
    if "detailer" in (getattr(p, "ops", None) or ()):
        return "detail"
    if getattr(p, "is_hr_pass", False):
        return "hires"
    if getattr(p, "init_images", None):
        return "img2img" if getattr(p, "image_mask", None) is None and getattr(p, "mask", None) is None else "inpaint"
    return "base"


def first_sigma(pipe: Any) -> float | None:
    try:
        return float(pipe.scheduler.sigmas[0])
    except Exception:
        return None


def whole(value: Any) -> int | None:
    """Return a number as the exact whole one that it is: seeds may be of numpy, and as large as 64 bits are."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def begin_group() -> None:
    """Begin another group, unless the job is a part of the one before: of the same click in the browser, or called for by it."""
    task = getattr(sys.modules.get("modules.progress"), "current_task", None)
    if not _job["depth"] and (task is None or task != _job["task"]):
        _job.update(task=task, group=new_id(), passes=0)
    _job.update(depth=_job["depth"] + 1, refined=0)


def next_in_group() -> tuple[str, int]:
    """Return the id that all passes of one click share, and the number of this one among them."""
    _job["group"] = _job["group"] or new_id()
    _job["passes"] += 1
    return _job["group"], _job["passes"] - 1


def refined_item(size_of_batch: int) -> int:
    _job["refined"] += 1
    return int(_job["refined"] - 1) % size_of_batch


def host_version() -> str | None:
    try:
        import installer

        return f"{installer.version['updated']} {installer.version['commit']}"
    except Exception:
        return None


def output_root() -> str:
    """Return where frames go: the environment's word, the user's, or ``stepwatch`` in the host's output folder."""
    chosen = os.environ.get("STEPWATCH_OUTPUT") or getattr(shared.opts, "stepwatch_output", None)
    if isinstance(chosen, str) and chosen.strip():
        return chosen.strip()
    from modules import paths

    outputs = getattr(shared.opts, "outdir_samples", None) or os.path.join(paths.data_path, "outputs")
    return os.path.join(outputs, "stepwatch")


def on_ui_settings() -> None:
    import gradio as gr

    choices = {"decode": list(DECODED_BY), "format": list(FORMATS_OFFERED)}
    for key, default in DEFAULTS.items():
        how = (gr.Radio, {"choices": choices[key]}) if key in choices else ()
        shared.opts.add_option("stepwatch_" + key, shared.OptionInfo(default, LABELS[key], *how, section=("stepwatch", "stepwatch")))
    label = "Folder for the frames (empty: stepwatch in the output folder)"
    shared.opts.add_option("stepwatch_output", shared.OptionInfo("", label, section=("stepwatch", "stepwatch")))


def on_before_process(p: Any) -> None:  # noqa: ARG001  # the host's signature
    begin_group()


def on_after_process(p: Any) -> None:  # noqa: ARG001  # the host's signature
    # Comes without the other one when a job fails early.
    _job["depth"] = max(0, _job["depth"] - 1)
    finish_pass()


script_callbacks.on_ui_settings(on_ui_settings)
script_callbacks.on_before_process(on_before_process)
script_callbacks.on_after_process(on_after_process)
install()
