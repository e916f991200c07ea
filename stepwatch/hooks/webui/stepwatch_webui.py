"""stepwatch's hook for AUTOMATIC1111's WebUI, Forge and reForge: leaves the frames and ``run.json`` of every sampler pass, and nothing else.

Theory of operation. The host calls `process_before_every_sampling` when the sampler of a pass is there. Two methods of that one *instance* are
replaced until its pass ends: ``launch_sampling`` encloses exactly one pass, whatever ends it, and ``callback_state`` is called once for each step,
also by samplers of second order. No class is patched, so nothing can stay behind: what is not undone goes with the sampler. A run begins with the
first step, for only then the batch and its latents are known.

Pixels are made here rather than by the host's live preview: that one follows the user's settings, shrinks, switches to another method after a click
on Interrupt, downloads models, and in reForge draws random numbers. All of it happens between two steps and reads tensors only, so the picture
comes out bit for bit as without the hook.
"""

from __future__ import annotations

import os
import re
from typing import Any, Callable, Mapping

from modules import script_callbacks, scripts, shared

# --- stepwatch writer: an installed hook has its source here ---
from stepwatch.hooks.writer import Recording, log, new_id, parse_overrides

# --- end of the stepwatch writer ---

HOOK = "stepwatch-webui"
CHEAP, TAESD, FULL = "Cheap", "TAESD", "Full VAE"
DECODED_BY = {CHEAP: "latent2rgb", TAESD: "taesd", FULL: "vae"}
SCALE = 8
"""Pixels of the picture for one of its latent, in each direction; frames of the cheap way are left that small."""
DEFAULTS: dict[str, Any] = {"enabled": False, "every": 1, "decode": CHEAP, "format": "PNG", "min_size": 0, "overrides": ""}
"""In the order of the controls, which is that of ``args`` in the API."""

BICUBIC = 3
"""Of every Pillow, by whatever name."""

_MISSING = object()
_decoders: dict[str, Any] = {}
"""TAESD by file name, as far as the host has not loaded it itself."""


class StepwatchScript(scripts.Script):  # type: ignore[misc]  # hosts have no types
    """The controls, and the one moment at which the host shows us the sampler."""

    def title(self) -> str:
        return "stepwatch"

    def show(self, is_img2img: bool) -> Any:  # noqa: ARG002, FBT001  # the host's signature
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:  # noqa: ARG002, FBT001  # the host's signature
        import gradio as gr

        with gr.Accordion("stepwatch: record the steps", open=False):
            enabled = gr.Checkbox(label="Record every pass", value=DEFAULTS["enabled"])
            every = gr.Slider(label="Every Nth step", minimum=1, maximum=20, step=1, value=DEFAULTS["every"])
            decode = gr.Radio(label="Decode", choices=list(DECODED_BY), value=DEFAULTS["decode"])
            image_format = gr.Radio(label="Format", choices=["PNG", "JPEG", "WebP"], value=DEFAULTS["format"])
            min_size = gr.Number(label="Leave out passes smaller than (pixels)", value=DEFAULTS["min_size"], precision=0)
            label = "Policy for these runs, as in stepwatch.yaml"
            overrides = gr.Textbox(label=label, value=DEFAULTS["overrides"], lines=2, placeholder="duration: 6s")
        return [enabled, every, decode, image_format, min_size, overrides]

    def process_before_every_sampling(self, p: Any, *args: Any, **_: Any) -> None:
        try:
            given: Mapping[str, Any] = args[0] if args and isinstance(args[0], dict) else dict(zip(DEFAULTS, args))
            sampler = getattr(p, "sampler", None)
            if given.get("enabled") and sampler is not None:
                PassWatch.attach(sampler, p, read_settings(given))
        except Exception as error:
            log.warning("stepwatch: this pass is not recorded: %s", error)


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by name; from the API come as many as somebody wanted, the others are as in the controls."""
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


class PassWatch:
    """Stands round one pass of one sampler."""

    def __init__(self, sampler: Any, p: Any, settings: dict[str, Any]) -> None:
        self.sampler = sampler
        self.p = p
        self.settings = settings
        self.launched = False
        self.planned: int | None = None
        self.recording: Recording | None = None
        self.decoder: Decoder | None = None
        self.over = False
        self._before: dict[str, Any] = {}
        self._ours: dict[str, Any] = {}

    @classmethod
    def attach(cls, sampler: Any, p: Any, settings: dict[str, Any]) -> None:
        """Watch the next pass of a sampler; Forge asks twice before a hires pass, which must not watch it twice."""
        found = getattr(vars(sampler).get("launch_sampling"), "stepwatch", None)
        if isinstance(found, cls) and not found.over and not found.launched:
            found.p, found.settings = p, settings
            return
        watch = cls(sampler, p, settings)
        watch._replace("launch_sampling", watch._launching(sampler.launch_sampling))
        watch._replace("callback_state", watch._stepping(sampler.callback_state))

    def _replace(self, name: str, ours: Any) -> None:
        ours.stepwatch = self
        self._before[name] = vars(self.sampler).get(name, _MISSING)
        self._ours[name] = ours
        setattr(self.sampler, name, ours)

    def detach(self) -> None:
        """Leave the sampler as it was; what another extension has put over ours stays, and finds ours idle."""
        self.over = True
        for name, ours in self._ours.items():
            if vars(self.sampler).get(name) is not ours:
                continue
            if self._before[name] is _MISSING:
                delattr(self.sampler, name)
            else:
                setattr(self.sampler, name, self._before[name])
        # What another extension holds on to must not keep a whole picture's tensors.
        self.sampler, self.p, self._ours, self._before = None, None, {}, {}

    def _launching(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def launch_sampling(steps: Any, *args: Any, **kwargs: Any) -> Any:
            if self.over or self.launched:
                return original(steps, *args, **kwargs)
            self.launched, self.planned = True, whole(steps)
            try:
                result = original(steps, *args, **kwargs)
            except BaseException as error:
                # InterruptedException of the host, Ctrl-C: somebody wanted it so.
                self._end("failed" if isinstance(error, Exception) else "interrupted", error)
                raise
            # A pass that was interrupted or skipped returns what it has; the flags go back before the next one. With all steps it is complete.
            stopped = getattr(shared.state, "interrupted", False) or getattr(shared.state, "skipped", False)
            made = self.recording is not None and self.planned is not None and self.recording.done >= self.planned
            self._end("interrupted" if stopped and not made else "complete")
            return result

        return launch_sampling

    def _stepping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def callback_state(d: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.over:
                self._step(d)
            return original(d, *args, **kwargs)

        return callback_state

    def _step(self, d: Any) -> None:
        """Record one step; ahead of the host's own callback, which may end the pass at this very step."""
        try:
            latents = d["denoised"]
            if latents is None:  # The last step of UniPC.
                latents = shared.state.current_latent
            if self.recording is None:
                self.recording, self.decoder = self._begin(latents, d)
            if self.recording is None or self.decoder is None or not self.recording.step():
                return
            for item, picture in enumerate(self.decoder.pictures(latents)):
                self.recording.put(item, *picture)
            self.recording.decode = DECODED_BY[self.decoder.way]
        except Exception as error:
            self._give_up(error)

    def _begin(self, latents: Any, d: Mapping[str, Any]) -> tuple[Recording | None, Decoder | None]:
        batch, _, rows, columns = latents.shape
        if min(rows, columns) * SCALE < self.settings["min_size"]:
            self.over = True
            return None, None
        decoder = Decoder(self.settings["decode"], latents)
        if decoder.way == CHEAP:
            decoder.pictures(latents)  # Latents of a kind that nobody can show are no run.
        group, index = next_in_group()
        recording = Recording(
            output_root(),
            host={"app": host_app(), "version": host_version(), "prompt_id": None, "node_id": None, "list_index": None},
            hook=HOOK,
            items=[item_facts(self.p, item, batch, (columns * SCALE, rows * SCALE)) for item in range(batch)],
            planned=self.planned,
            every=self.settings["every"],
            image_format=self.settings["format"],
            size=decoder.size,
            scale=decoder.scale,
            decode=DECODED_BY[decoder.way],
            group_id=group,
            pass_facts={"index": index, "name": pass_name(self.p), "sigma_first": first_number(d.get("sigma"))},
            overrides=self.settings["overrides"],
        )
        return recording, decoder

    def _end(self, state: str, error: BaseException | None = None) -> None:
        try:
            self.detach()
            if self.recording is not None:
                self.recording.end(state, error)
        except Exception as fault:
            self._give_up(fault)

    def _give_up(self, error: Exception) -> None:
        self.over = True
        log.warning("stepwatch: this pass is not recorded any further: %s: %s", type(error).__name__, error)
        if self.recording is not None:
            self.recording.end("failed", error)


# --- pixels


class Decoder:
    """Makes pictures of latents, all of one size, in the way that was asked for, or as near to it as this host can."""

    def __init__(self, way: str, latents: Any) -> None:
        self.way = way
        self._taesd: Any = None
        if way == TAESD:
            self._taesd = taesd_decoder()
            if self._taesd is None:
                self._fall_back("its TAESD model has not been downloaded (a live preview with TAESD does that)")
        elif way == FULL and not full_vae_fits(latents):
            self._fall_back("beside the model there is no room for the VAE")
        self.scale = SCALE if self.way == CHEAP else 1
        _, _, rows, columns = latents.shape
        self.size = (columns * SCALE // self.scale, rows * SCALE // self.scale)

    def pictures(self, latents: Any) -> list[tuple[Any, Any]]:
        """Return the pixels and size of each item's picture."""
        if self.way != CHEAP:
            try:
                return [self._fitting(self._decoded(latents[item : item + 1])) for item in range(len(latents))]
            except Exception as error:
                self._fall_back(f"{type(error).__name__}: {error}")
        from modules import sd_vae_approx

        # The whole batch at once: one small product, and the device is waited for once.
        rgb = sd_vae_approx.cheap_approximation(latents.float())
        return [self._fitting(picture) for picture in as_rgb(rgb)]

    def _decoded(self, latents: Any) -> tuple[bytes, tuple[int, int]]:
        if self.way == TAESD:
            from modules import devices

            return as_rgb(self._taesd(latents.to(devices.device, devices.dtype)).detach() * 2 - 1)[0]
        if not full_vae_fits(latents):
            raise MemoryError("beside the model there is no room for the VAE any more")
        if getattr(shared.state, "interrupted", False):
            # With the option for it, the host decodes as for its live preview from the click on, which may mean a download.
            raise InterruptedError("somebody clicked on Interrupt")
        from modules import sd_samplers_common

        return as_rgb(sd_samplers_common.samples_to_images_tensor(latents, 0))[0]

    def _fitting(self, picture: tuple[bytes, tuple[int, int]]) -> tuple[Any, Any]:
        """Bring a picture to the size of its run: one that was made in another way than the first."""
        data, size = picture
        if size == self.size:
            return data, size
        from PIL import Image

        return Image.frombytes("RGB", size, data).resize(self.size, BICUBIC), None

    def _fall_back(self, why: str) -> None:
        log.warning("stepwatch: frames are decoded by the cheap way instead of %s: %s", self.way, why)
        self.way = CHEAP


def as_rgb(pictures: Any) -> list[tuple[bytes, tuple[int, int]]]:
    """Return the pixels of tensors of (picture, colour, row, column) from -1 to 1; what is no number is grey."""
    levels = pictures.detach().float().nan_to_num(0.0, 1.0, -1.0).clamp(-1, 1).add(1).mul(127.5).round()
    planes = levels.to("cpu").byte().permute(0, 2, 3, 1).contiguous().numpy()
    return [(plane.tobytes(), (plane.shape[1], plane.shape[0])) for plane in planes]


def taesd_decoder() -> Any:
    """Return the TAESD of the model, if its file is there: the host's own way of asking would download it in the middle of a picture."""
    try:
        from modules import devices, paths_internal, sd_vae_taesd

        model = shared.sd_model
        legacy = getattr(model, "is_webui_legacy_model", None)
        if getattr(model, "is_sd3", False):
            kind = "taesd3"
        elif legacy is not None and not legacy():
            kind = "taef1"
        else:
            kind = "taesdxl" if getattr(model, "is_sdxl", False) else "taesd"
        name = kind + "_decoder.pth"
        loaded = getattr(sd_vae_taesd, "sd_vae_taesd_models", {}).get(name) or _decoders.get(name)
        path = os.path.join(paths_internal.models_path, "VAE-taesd", name)
        if loaded is None and os.path.exists(path):
            loaded = sd_vae_taesd.TAESDDecoder(path)
            loaded.eval()
            loaded.to(devices.device, devices.dtype)
            _decoders[name] = loaded
        return None if loaded is None else loaded.decoder
    except Exception as error:
        log.warning("stepwatch: TAESD cannot be loaded: %s", error)
        return None


def full_vae_fits(latents: Any) -> bool:
    """Whether the whole VAE can be used in the middle of a pass without the model being moved out of its way.

    Forge and reForge make room for it by unloading the very model that is at work, which ends the picture; AUTOMATIC1111 moves modules to and fro.
    """
    loaded = getattr(shared.sd_model, "forge_objects", None)
    if loaded is None:
        return True
    try:
        try:
            from backend import memory_management as memory
        except ImportError:
            from ldm_patched.modules import model_management as memory
        vae = loaded.vae
        if str(vae.device) == "cpu":
            return True
        always = getattr(memory, "ALWAYS_VRAM_OFFLOAD", False) or getattr(memory, "DISABLE_SMART_MEMORY", False)
        if always or memory.vram_state.name in ("NO_VRAM", "LOW_VRAM"):
            return False
        needed = max(memory.minimum_inference_memory(), vae.memory_used_decode((1, *latents.shape[1:]), vae.vae_dtype))
        needed += getattr(memory, "extra_reserved_memory", int)()
        # Both hosts add a third to the model's size; a little more than that, for they look at what is free a moment later.
        return bool(memory.get_free_memory(vae.device) > 1.5 * memory.module_size(vae.first_stage_model) + 1.5 * needed)
    except Exception as error:
        log.warning("stepwatch: this host does not say how much memory is free: %s", error)
        return False


# --- facts


def item_facts(p: Any, item: int, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return what the sidecar says of one item of the batch."""
    iteration = getattr(p, "iteration", 0) or 0
    k = iteration * (getattr(p, "batch_size", None) or batch) + item
    hires = bool(getattr(p, "is_hr_pass", False))

    def of_pass(name: str) -> Any:
        """Return a value that the hires pass may have of its own."""
        return (getattr(p, "hr_" + name, None) if hires else None) or getattr(p, name, None)

    def of_item(name: str) -> Any:
        values = getattr(p, "all_" + name, None)
        return values[k] if isinstance(values, (list, tuple)) and k < len(values) else None

    model = getattr(shared, "sd_model", None)
    checkpoint = getattr(model, "sd_checkpoint_info", None)
    prompt = (of_item("hr_prompts") if hires else None) or of_item("prompts")
    strength = getattr(p, "subseed_strength", 0)
    generation = {
        "prompt": prompt,
        "negative": (of_item("hr_negative_prompts") if hires else None) or of_item("negative_prompts"),
        "seed": whole(of_item("seeds")),
        "subseed": whole(of_item("subseeds")) if strength else None,
        "sampler": of_pass("sampler_name"),
        "scheduler": of_pass("scheduler"),
        "steps": whole((getattr(p, "hr_second_pass_steps", None) if hires else None) or getattr(p, "steps", None)),
        "cfg": (getattr(p, "hr_cfg", None) if hires else None) or getattr(p, "cfg_scale", None),
        "denoise": getattr(p, "denoising_strength", None) if hires or is_img2img(p) else None,
        "width": size[0],
        "height": size[1],
        "model": getattr(p, "sd_model_name", None) or getattr(checkpoint, "name_for_extra", None),
        "model_hash": getattr(p, "sd_model_hash", None) or getattr(model, "sd_model_hash", None),
        "vae": getattr(p, "sd_vae_name", None),
        "clip_skip": whole(getattr(shared.opts, "CLIP_stop_at_last_layers", None)),
        "loras": re.findall(r"<(?:lora|lyco):([^:<>]+)", prompt) if isinstance(prompt, str) else None,
    }
    facts = {"index": item, "size": batch, "iteration": iteration, "iterations": getattr(p, "n_iter", None)}
    return {"generation": generation, "batch": facts, "infotext": infotext(p, iteration, item)}


def infotext(p: Any, iteration: int, item: int) -> str | None:
    try:
        from modules import processing

        said = processing.create_infotext(p, p.all_prompts, p.all_seeds, p.all_subseeds, [], iteration=iteration, position_in_batch=item)
        return said if isinstance(said, str) else None
    except Exception:
        return None


def is_img2img(p: Any) -> bool:
    return bool(getattr(p, "init_images", None))


def pass_name(p: Any) -> str:
    if getattr(p, "_ad_inner", False):
        return "detail"
    if getattr(p, "is_hr_pass", False):
        return "hires"
    if is_img2img(p):
        return "img2img" if getattr(p, "image_mask", None) is None and getattr(p, "mask", None) is None else "inpaint"
    return "base"


def whole(value: Any) -> int | None:
    """Return a number as the exact whole one that it is: seeds may be of numpy, and as large as 64 bits are."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def first_number(value: Any) -> float | None:
    """Return a sigma, None for the zero that DDIM and its like have in its place."""
    try:
        return float(value if not getattr(value, "shape", None) else value[0]) or None
    except (TypeError, ValueError, IndexError, RuntimeError):
        return None


_job: dict[str, Any] = {"timestamp": None, "group": "", "passes": 0}


def next_in_group() -> tuple[str, int]:
    """Return the id that all passes of one click share, and the number of this one among them."""
    timestamp = getattr(shared.state, "job_timestamp", None)
    if timestamp != _job["timestamp"] or not _job["group"]:
        # The host's own time stamp is that of every machine that writes to the same place.
        _job.update(timestamp=timestamp, group=new_id(), passes=0)
    _job["passes"] += 1
    return _job["group"], _job["passes"] - 1


def host_app() -> str:
    if hasattr(scripts.Script, "process_before_every_step"):
        return "reforge"
    return "forge" if hasattr(shared.sd_model, "forge_objects") else "a1111"


def host_version() -> str | None:
    try:
        from modules import launch_utils

        return str(launch_utils.git_tag())
    except Exception:
        return None


def output_root() -> str:
    """Return where frames go: the environment's word, the user's, or ``stepwatch`` in the host's output folder."""
    chosen = os.environ.get("STEPWATCH_OUTPUT") or getattr(shared.opts, "stepwatch_output", None)
    if isinstance(chosen, str) and chosen.strip():
        return chosen.strip()
    from modules import paths_internal

    outputs = getattr(paths_internal, "default_output_dir", None) or os.path.join(paths_internal.data_path, "outputs")
    return os.path.join(outputs, "stepwatch")


def on_ui_settings() -> None:
    label = "Folder for the frames that stepwatch records (empty: stepwatch in the output folder)"
    shared.opts.add_option("stepwatch_output", shared.OptionInfo("", label, section=("stepwatch", "stepwatch")))


script_callbacks.on_ui_settings(on_ui_settings)
