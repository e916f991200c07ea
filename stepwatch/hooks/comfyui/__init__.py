"""The ComfyUI hook: a node that goes between the model loader and the sampler, and records the frames of every pass through that model.

It is installed as ``custom_nodes/stepwatch/__init__.py``. Frames go below ``output/stepwatch/``.

Theory of operation. `Stepwatch` puts a wrapper on the model, and ComfyUI calls it round each sampler pass, outside everything that may interrupt
the pass or make it fail. A cached node is not executed again, its wrapper is called all the same: so the node hands over nothing but what the user
set in it, and all facts about a pass are read when that pass begins, from the queue and from the sampler's own arguments. With ``STEPWATCH_ALL=1``
in the environment, or ``{"all": true}`` in ``settings.json`` beside this file, every pass of the server is recorded, with or without a node.

Frames are made from x0, which the sampler hands to the callback of its steps; the host's previews, and whether they are on, play no part. The
matrix that each latent format brings makes a picture of a few pixels at next to no cost: they are saved as small as they are, and stepwatch
enlarges them. The host's callback is called after ours and is where an interrupt is raised, so the step that was interrupted has its frame.

What goes wrong here is said once in the log, and that one pass is not recorded any further; the host's results are the same bits as without us.
"""

from __future__ import annotations

import contextvars
import functools
import json
import os
from collections import OrderedDict
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

# --- stepwatch writer: an installed hook has its source here ---
from stepwatch.hooks.writer import Recording, log, parse_overrides

# --- end of the stepwatch writer ---

KEY = "stepwatch"
"""Of our wrapper on a model, and the folder below the host's output folder."""
DECODERS = ("latent2rgb", "taesd", "vae")
FORMATS_OF_FRAMES = ("png", "jpeg", "webp")
OWN_COUNT = ("dpm_fast", "dpm_adaptive")
"""Samplers that take another number of steps than they have sigmas."""
RATIOS = {"Wan22": 16, "HunyuanImage21": 32, "LTXV": 32, "ChromaRadiance": 1, "SC_B": 4, "SC_Prior": 42}
"""Pixels for each latent on a side, where it is not 8; newer hosts say so themselves."""
LARGEST_SCALE = 16
GROUPS_REMEMBERED = 64
NODES_LOOKED_AT = 200


class Options(NamedTuple):
    """What the user sets in a node, or for the whole server."""

    every: int = 1
    image_format: str = "png"
    decode: str = "latent2rgb"
    overrides: Mapping[str, Any] | None = None
    vae: Any = None


class Stepwatch:
    """The node."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # this name and those below are ComfyUI's
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Every sampler that uses the outgoing model is recorded."}),
                "enabled": ("BOOLEAN", {"default": True, "tooltip": "Off: this model is not recorded, even where the whole server is."}),
                "every": ("INT", {"default": 1, "min": 1, "max": 1000, "tooltip": "Record every Nth step, the last one among them."}),
                "format": (list(FORMATS_OF_FRAMES), {"tooltip": "PNG and WebP are exact; JPEG (quality 95) is the fastest for large frames."}),
                "decode": (
                    list(DECODERS),
                    {
                        "tooltip": "latent2rgb costs next to nothing. taesd is sharper, and needs its decoder in models/vae_approx. "
                        "vae is the full picture, takes long at each step, and needs the VAE input."
                    },
                ),
            },
            "optional": {
                "vae": ("VAE", {"tooltip": "Only for decode: vae."}),
                "policy": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Wishes for the animation of these runs, as lines of stepwatch.yaml; for example duration: 6s, or codec: gif",
                    },
                ),
            },
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "record"
    CATEGORY = "stepwatch"
    DESCRIPTION = "Saves the picture of every sampler step below output/stepwatch, for stepwatch to make an animation of. Place it before a sampler."

    def record(
        self,
        model: Any,
        *,
        enabled: bool,
        every: int,
        format: str,  # noqa: A002  # the users' word
        decode: str,
        vae: Any = None,
        policy: str = "",
    ) -> tuple[Any]:
        """Return a copy of the model whose sampler passes are recorded."""
        try:
            import comfy.patcher_extension

            options = Options(every, format, decode, _overrides(policy), vae) if enabled else None
            recorded = model.clone()
            recorded.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, functools.partial(_around_pass, options))
            return (recorded,)
        except Exception as error:
            log.warning("stepwatch: nothing is recorded: %s: %s", type(error).__name__, error)
            return (model,)


NODE_CLASS_MAPPINGS = {"Stepwatch": Stepwatch}
NODE_DISPLAY_NAME_MAPPINGS = {"Stepwatch": "Record steps (stepwatch)"}


def _overrides(policy: Any) -> Mapping[str, Any]:
    overrides, complaints = parse_overrides(policy)
    for complaint in complaints:
        log.warning("stepwatch: policy: %s", complaint)
    return overrides


# --- around one pass of a sampler

_taken: contextvars.ContextVar[Mapping[int, bool]] = contextvars.ContextVar("stepwatch_taken")
"""By guider, the passes that somebody further out answers for already: True records it, False was told not to."""


def _around_pass(  # noqa: PLR0913, PLR0917  # the arguments are the host's
    options: Options | None,
    executor: Any,
    noise: Any,
    latent_image: Any,
    sampler: Any,
    sigmas: Any,
    denoise_mask: Any = None,
    callback: Any = None,
    disable_pbar: Any = False,  # noqa: FBT002
    seed: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run one pass of a sampler, and record it unless *options* is None or the pass is recorded already: two nodes in a row make one recording."""
    guider = getattr(executor, "class_obj", None)
    taken = _taken.get({})
    recorded: _Pass | None = None
    if options is not None and not taken.get(id(guider)):
        shapes = kwargs.get("latent_shapes", args[0] if args else None)
        recorded = _begin(options, guider, _Arguments(noise, latent_image, sampler, sigmas, denoise_mask, seed, shapes))
    token = _taken.set({**taken, id(guider): recorded is not None or taken.get(id(guider), False)})
    try:
        if recorded is None:
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, *args, **kwargs)
        try:
            result = executor(noise, latent_image, sampler, sigmas, denoise_mask, recorded.callback(callback), disable_pbar, seed, *args, **kwargs)
        except BaseException as error:
            recorded.recording.end("interrupted" if isinstance(error, recorded.interrupts) else "failed", error)
            raise
        recorded.recording.end()
        return result
    finally:
        _taken.reset(token)


class _Arguments(NamedTuple):
    """What the host hands to a pass, as far as it tells us something."""

    noise: Any
    latent_image: Any
    sampler: Any
    sigmas: Any
    denoise_mask: Any
    seed: Any
    shapes: Any
    """Of the parts of a packed latent (picture and sound); None in older hosts."""


class _Pass:
    """A pass that is being recorded."""

    def __init__(self, recording: Recording, decoder: _Decoder, interrupt: type[BaseException]) -> None:
        self.recording, self.decoder = recording, decoder
        self.interrupt = interrupt
        self.interrupts = (interrupt, KeyboardInterrupt, SystemExit)

    def callback(self, hosts: Callable[..., Any] | None) -> Callable[..., Any]:
        """Return what the sampler calls after each step: ours, then the host's, whose answer is kept."""

        def after_step(step: Any, x0: Any, *rest: Any, **named: Any) -> Any:
            self.see(x0)
            return None if hosts is None else hosts(step, x0, *rest, **named)

        return after_step

    def see(self, x0: Any) -> None:
        try:
            if self.recording.step():
                size = self.decoder.size
                for item, picture in enumerate(self.decoder.pictures(x0)):
                    self.recording.put(item, picture, size)
                self.recording.decode = self.decoder.way
        except self.interrupt:
            # The user's, raised in the full decode: the host must see it, for it will not raise it twice.
            raise
        except Exception as error:
            self.decoder.complain(error)


def _begin(options: Options, guider: Any, given: _Arguments) -> _Pass | None:
    """Return the recording of a pass that is about to start; None, with a reason in the log, where there is nothing to record."""
    try:
        import comfy.model_management
        import folder_paths

        model = guider.model_patcher.model
        shape = tuple(given.shapes[0]) if given.shapes else tuple(given.noise.shape)
        if len(given.sigmas) < 2:
            return None
        decoder = _Decoder(options, model, shape)
        if not decoder.size:
            _say_once(f"latents of the format {type(model.latent_format).__name__} cannot be shown, so passes with them are not recorded")
            return None
        job = _job()
        facts = _facts(job, guider, given, decoder)
        recording = Recording(
            os.path.join(folder_paths.get_output_directory(), KEY),
            host={"app": "comfyui", "version": _version(), "prompt_id": job.prompt_id, "node_id": job.node_id, "list_index": job.list_index},
            hook="comfyui",
            items=[{"generation": facts, "batch": {"index": index, "size": shape[0]}} for index in range(shape[0])],
            planned=None if any(name in facts["sampler"] for name in OWN_COUNT) else len(given.sigmas) - 1,
            every=options.every,
            image_format=options.image_format,
            size=decoder.size,
            scale=decoder.scale,
            decode=decoder.way,
            group_id=job.prompt_id,
            pass_facts=_pass_facts(job, guider.model_patcher, given, (facts["width"], facts["height"])),
            workflow=job.workflow,
            overrides=options.overrides,
        )
        return _Pass(recording, decoder, comfy.model_management.InterruptProcessingException) if recording.active else None
    except Exception as error:
        _say_once(f"a pass is not recorded: {type(error).__name__}: {error}")
        return None


_said: set[str] = set()


def _say_once(what: str) -> None:
    """Log a sentence once in the life of the server: what is true of a model is true of its every pass."""
    if what not in _said and len(_said) < 1000:
        _said.add(what)
        log.warning("stepwatch: %s", what)


def _version() -> str | None:
    try:
        import comfyui_version

        return str(comfyui_version.__version__)
    except Exception:
        return None


# --- latents to pixels


class _Decoder:
    """Makes RGB bytes, all of one size, of the latents of one pass; falls back to the matrix for the rest of the pass where another way fails."""

    def __init__(self, options: Options, model: Any, shape: tuple[int, ...]) -> None:
        self.model, self.format, self.shape = model, model.latent_format, shape
        self.vae = options.vae
        self.way = "none"
        """latent2rgb, taesd or vae; none without a size."""
        self.size: tuple[int, int] | None = None
        self.scale = 1
        self._matrix: Any = None
        self._taesd: Any = None
        self._complained = False
        if len(shape) not in (4, 5):
            return
        self.ratio = int(getattr(self.format, "spacial_downscale_ratio", None) or RATIOS.get(type(self.format).__name__, 8))
        pixels = (shape[-1] * self.ratio, shape[-2] * self.ratio)
        small = self._matrix_size()
        if options.decode != "latent2rgb" and self._can(options.decode):
            self.way, self.size = options.decode, pixels
        elif small:
            self.way, self.size, self.scale = "latent2rgb", small, max(1, min(LARGEST_SCALE, pixels[0] // small[0]))

    def pictures(self, x0: Any) -> list[bytes]:
        """Return the picture of each item of the batch."""
        import comfy.model_management
        import torch

        latents = self._latents(x0)
        with torch.no_grad():
            if self.way != "latent2rgb":
                try:
                    return self._by_network(latents)
                except comfy.model_management.InterruptProcessingException:
                    raise
                except Exception as error:
                    if not self._matrix_size():
                        raise
                    log.warning("stepwatch: latent2rgb for the rest of this pass: %s failed: %s: %s", self.way, type(error).__name__, error)
                    self.way = "latent2rgb"
            return [self._fitted(picture) for picture in _quantised(self._by_matrix(latents))]

    def complain(self, error: BaseException) -> None:
        if not self._complained:
            self._complained = True
            log.warning("stepwatch: a step has no frame: %s: %s", type(error).__name__, error)

    def _latents(self, x0: Any) -> Any:
        """Return the latents of the pictures, of a packed or nested tensor its first part."""
        if getattr(x0, "is_nested", False):
            x0 = x0.unbind()[0]
        if tuple(x0.shape) != self.shape and x0.ndim != len(self.shape):
            one = 1
            for side in self.shape[1:]:
                one *= side
            x0 = x0.reshape(x0.shape[0], -1)[:, :one].reshape(x0.shape[0], *self.shape[1:])
        return x0.detach()

    # the matrix

    def _reshaped(self, latents: Any) -> Any:
        """Return the latents with as many channels as the matrix has rows, and of a video the frame in the middle."""
        reshape = getattr(self.format, "latent_rgb_factors_reshape", None)
        if reshape is not None:
            latents = reshape(latents)
        return latents[:, :, latents.shape[2] // 2] if latents.ndim == 5 else latents

    def _matrix_size(self) -> tuple[int, int] | None:
        """Return the size of the pictures that the matrix makes; None where the format has none that fits."""
        import torch

        factors = self.format.latent_rgb_factors
        if factors is None or len(self.shape) not in (4, 5):
            return None
        made = self._reshaped(torch.empty((1, *self.shape[1:]), device="meta"))
        return (made.shape[-1], made.shape[-2]) if made.ndim == 4 and made.shape[1] == len(factors) else None

    def _by_matrix(self, latents: Any) -> Any:
        """Return all items as one tensor: item, row, column, colour."""
        import torch

        # In float32: the bias of a format may be small, and half floats have little to spare.
        latents = self._reshaped(latents).float()
        if self._matrix is None:
            bias = getattr(self.format, "latent_rgb_factors_bias", None) or (0.0, 0.0, 0.0)
            self._matrix = [torch.tensor(part, dtype=torch.float32, device=latents.device) for part in (self.format.latent_rgb_factors, bias)]
        factors, bias = self._matrix
        return torch.einsum("bchw,cr->bhwr", latents, factors) + bias

    # the networks

    def _can(self, way: str) -> bool:
        """Return whether a network is there to decode with; nothing is ever downloaded."""
        if way == "vae":
            if self.vae is None:
                _say_once("decode: vae needs a VAE at the node's input; latent2rgb is used")
            return self.vae is not None
        if self._taesd_path() is None or len(self.shape) != 4:
            name = getattr(self.format, "taesd_decoder_name", None)
            _say_once(
                f"decode: taesd needs {name}.safetensors or .pth in models/vae_approx; latent2rgb is used"
                if name and len(self.shape) == 4
                else f"there is no TAESD for latents of the format {type(self.format).__name__}; latent2rgb is used"
            )
            return False
        return True

    def _taesd_path(self) -> str | None:
        import folder_paths

        name = getattr(self.format, "taesd_decoder_name", None)
        if not name:
            return None
        for file in folder_paths.get_filename_list("vae_approx"):
            if file.startswith(name):
                path = folder_paths.get_full_path("vae_approx", file)
                return None if path is None else str(path)
        return None

    def _by_network(self, latents: Any) -> list[bytes]:
        import torch

        decode = self._by_taesd if self.way == "taesd" else self._by_vae
        # Some decoders draw noise, and the sampler's own comes from the same generators.
        kind = latents.device.type if latents.device.type in ("cuda", "xpu") else None
        with torch.random.fork_rng(devices=[latents.device] if kind else [], device_type=kind or "cuda"):
            return [self._fitted(_quantised(decode(latents[item : item + 1]))) for item in range(len(latents))]

    def _by_taesd(self, latent: Any) -> Any:
        if self._taesd is None:
            self._taesd = _load_taesd(self._taesd_path(), self.format.latent_channels, latent.device)
        return self._taesd.decode(latent.float())[0, :3].movedim(0, -1)

    def _by_vae(self, latent: Any) -> Any:
        import comfy.model_management as host

        if latent.ndim == 5:
            middle = latent.shape[2] // 2
            latent = latent[:, :, middle : middle + 1]
        # The host makes room for a VAE by unloading other models, and here that would be the one that is sampling.
        needed = self.vae.memory_used_decode(latent.shape, self.vae.vae_dtype) + self.vae.patcher.model_size()
        if host.get_free_memory(self.vae.device) < 1.1 * needed + host.minimum_inference_memory():
            raise MemoryError("there is no room for the VAE beside the model")
        pixels = self.vae.decode(self.model.process_latent_out(latent.float()))
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        return pixels[len(pixels) // 2, :, :, :3] * 2 - 1

    def _fitted(self, picture: Any) -> bytes:
        """Return the bytes of a picture in the size that the sidecar promises."""
        data, size = bytes(picture.numpy().tobytes()), (picture.shape[1], picture.shape[0])
        if size == self.size or self.size is None:
            return data
        from PIL import Image

        return Image.frombytes("RGB", size, data).resize(self.size, Image.Resampling.BICUBIC).tobytes()


def _quantised(pictures: Any) -> Any:
    """Turn colours in -1..1 into bytes, and bring them over to the processor, all in one go: each time it waits for the graphics card."""
    import torch

    # What is not a number has no byte; what would become of it is up to the machine.
    values = ((pictures.float().nan_to_num(0.0, 1.0, -1.0) + 1) * 127.5).round().clamp(0, 255)
    return values.to(torch.uint8).cpu().contiguous()


_taesds: dict[tuple[Any, ...], Any] = {}
"""The decoder that was used last stays loaded, for it is small."""


def _load_taesd(path: Any, channels: int, device: Any) -> Any:
    from comfy.taesd.taesd import TAESD

    wanted = (path, channels, str(device))
    if wanted not in _taesds:
        _taesds.clear()
        _taesds[wanted] = TAESD(None, path, latent_channels=channels).to(device)
    return _taesds[wanted]


# --- facts about a pass


class _Job(NamedTuple):
    """What the host is working on; everything is None outside of a prompt."""

    prompt_id: str | None
    node_id: str | None
    list_index: int | None
    prompt: Mapping[str, Any]
    workflow: Mapping[str, Any] | None
    """For ``workflow.json``; only these two, for what stands beside them in the queue can hold login tokens."""


def _job() -> _Job:
    prompt_id, node_id, list_index = None, None, None
    try:
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
        if context is not None:
            prompt_id, node_id, list_index = context.prompt_id, context.node_id, context.list_index
    except ImportError:
        pass
    try:
        from server import PromptServer

        instance = PromptServer.instance
        if prompt_id is None:
            prompt_id, node_id = getattr(instance, "last_prompt_id", None), getattr(instance, "last_node_id", None)
        # What is running now; the other list holds what waits. The call that copies the whole queue is for hosts that have no other.
        queue = instance.prompt_queue
        for item in getattr(queue, "get_current_queue_volatile", queue.get_current_queue)()[0]:
            if prompt_id is not None and item[1] == prompt_id:
                workflow = ((item[3] or {}).get("extra_pnginfo") or {}).get("workflow")
                kept = None if _metadata_unwanted() else {"prompt": item[2], "workflow": workflow}
                return _Job(str(prompt_id), _text_or_none(node_id), list_index, item[2], kept)
    except Exception as error:
        _say_once(f"runs have no workflow: {type(error).__name__}: {error}")
    return _Job(_text_or_none(prompt_id), _text_or_none(node_id), list_index, {}, None)


def _metadata_unwanted() -> bool:
    """Whether the user keeps prompts and workflows out of files, by ``--disable-metadata``."""
    try:
        from comfy.cli_args import args

        return bool(args.disable_metadata)
    except (ImportError, AttributeError):
        return False


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _facts(job: _Job, guider: Any, given: _Arguments, decoder: _Decoder) -> dict[str, Any]:
    """Return the sidecar's ``generation``: from the sampler's arguments what they tell, the rest from the workflow as far as it can be followed."""
    graph = _Graph(job.prompt)
    function = getattr(getattr(given.sampler, "sampler_function", None), "__name__", type(given.sampler).__name__)
    named = graph.nearest(job.node_id, "sampler_name", ("sampler",))
    steps = graph.nearest(job.node_id, "steps", ("sigmas",))
    cfg = getattr(guider, "cfg", None)
    return {
        "prompt": graph.words(job.node_id, "positive") if job.workflow else None,
        "negative": graph.words(job.node_id, "negative") if job.workflow else None,
        "seed": given.seed if isinstance(given.seed, int) and given.seed >= 0 else None,
        "sampler": named if isinstance(named, str) else function[len("sample_") :] if function.startswith("sample_") else function,
        "scheduler": graph.nearest(job.node_id, "scheduler", ("sigmas",)),
        "steps": steps if isinstance(steps, int) else len(given.sigmas) - 1,
        "cfg": float(cfg) if isinstance(cfg, (int, float)) else None,
        "denoise": graph.nearest(job.node_id, "denoise", ("sigmas",)),
        "width": decoder.shape[-1] * decoder.ratio,
        "height": decoder.shape[-2] * decoder.ratio,
        "model": next((name for key in MODEL_KEYS if (name := graph.nearest(job.node_id, key, MODEL_LINKS))), None),
        "loras": graph.loras(job.node_id),
    }


MODEL_KEYS = ("ckpt_name", "unet_name", "model_name")
MODEL_LINKS = ("model", "guider", "model1", "unet")


class _Graph:
    """A prompt as the API has it: nodes by id, whose inputs are values, or links [node id, output]."""

    def __init__(self, prompt: Any) -> None:
        self.prompt = prompt if isinstance(prompt, Mapping) else {}

    def inputs(self, node: Any) -> Mapping[str, Any]:
        found = self.prompt.get(str(node))
        inputs = found.get("inputs") if isinstance(found, Mapping) else None
        return inputs if isinstance(inputs, Mapping) else {}

    def along(self, node: Any, links: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yield the inputs of a node, and of those above it that links of these names lead to, the nearest first."""
        waiting = [node]
        seen: set[str] = set()
        while waiting and len(seen) < NODES_LOOKED_AT:
            node = waiting.pop(0)
            if node is None or str(node) in seen:
                continue
            seen.add(str(node))
            inputs = self.inputs(node)
            yield inputs
            waiting.extend(_linked(inputs.get(key))[0] for key in links)

    def value(self, value: Any) -> Any:
        """Return a value, for a link the one that the node at its end was given by the user."""
        for _ in range(8):
            node, _output = _linked(value)
            if node is None:
                return None if isinstance(value, (list, dict)) else value
            inputs = self.inputs(node)
            value = next((inputs[key] for key in ("value", "string", "text", "float", "int", "number", "seed") if key in inputs), None)
        return None

    def nearest(self, node: Any, key: str, links: Sequence[str]) -> Any:
        for inputs in self.along(node, links):
            if key in inputs:
                return self.value(inputs[key])
        return None

    def words(self, node: Any, side: str) -> str | None:
        """Return the text behind one side of a sampler's conditioning; None where it cannot be told."""
        for inputs in self.along(node, ("guider",)):
            for key in (side, *(("conditioning", "cond1") if side == "positive" else ())):
                if _linked(inputs.get(key))[0] is not None:
                    return self._behind(inputs[key], side)
        return None

    def _behind(self, link: Any, side: str) -> str | None:
        for _ in range(NODES_LOOKED_AT):
            node, output = _linked(link)
            if node is None:
                return None
            inputs = self.inputs(node)
            texts = [self.value(inputs[key]) for key in ("text", "text_g", "text_l", "t5xxl", "clip_l", "prompt") if key in inputs]
            told = [text for text in texts if isinstance(text, str) and text.strip()]
            if told:
                return told[0]
            if texts:
                return ""
            # A node that passes both sides on, such as a ControlNet, has the positive one first.
            own = ("positive" if output == 0 else "negative") if "positive" in inputs and "negative" in inputs else side
            link = next((inputs[key] for key in (own, "conditioning", "conditioning_1", "conditioning_to") if key in inputs), None)
        return None

    def loras(self, node: Any) -> list[dict[str, Any]]:
        return [
            {"name": inputs["lora_name"], "strength": self.value(inputs.get("strength_model"))}
            for inputs in self.along(node, MODEL_LINKS)
            if isinstance(inputs.get("lora_name"), str)
        ]


def _linked(value: Any) -> tuple[str | None, int]:
    """Return the node and the output that an input is linked to."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], int):
        return str(value[0]), value[1]
    return None, 0


class _Seen(NamedTuple):
    size: tuple[int, int]
    model: int


_passes: OrderedDict[str, list[_Seen]] = OrderedDict()
"""By prompt, its passes so far."""


def _pass_facts(job: _Job, patcher: Any, given: _Arguments, size: tuple[int, int]) -> dict[str, Any]:
    """Return the sidecar's ``pass``: which one of its prompt it is, and of what kind."""
    import torch

    before: list[_Seen] = []
    if job.prompt_id is not None:
        before = _passes.setdefault(job.prompt_id, before)
        while len(_passes) > GROUPS_REMEMBERED:
            _passes.popitem(last=False)
    first = float(given.sigmas[0])
    facts = {"index": len(before), "name": "base", "sigma_first": first, "sigma_last": float(given.sigmas[-1])}
    # Nodes may have given the model other sigmas than its own.
    partial = first < 0.99 * float(getattr(patcher.get_model_object("model_sampling"), "sigma_max", 0.0))
    if given.denoise_mask is not None:
        facts["name"] = "inpaint"
    elif partial and bool(torch.count_nonzero(given.latent_image)):
        if not bool(torch.count_nonzero(given.noise)):
            # It takes over where another sampler stopped.
            facts["name"] = "refiner" if before and before[-1].model != id(patcher.model) else "base"
        else:
            facts["name"] = "hires" if before and before[-1].size != size else "img2img"
    before.append(_Seen(size, id(patcher.model)))
    return facts


# --- every pass of the server


def _settings() -> Options | None:
    """Return how to record every pass of this server; None unless the environment or ``settings.json`` asks for it."""
    told: dict[str, Any] = {}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "settings.json")
    try:
        with open(path, encoding="utf-8-sig") as file:
            told = json.load(file)
        if not isinstance(told, dict):
            raise TypeError("it does not hold a JSON object")
    except FileNotFoundError:
        pass
    except Exception as error:
        log.warning("stepwatch: %s is not used: %s", path, error)
        told = {}
    wanted = os.environ.get("STEPWATCH_ALL")
    if (wanted.lower() not in ("", "0", "false", "no", "off")) if wanted is not None else told.get("all") is True:
        every, image_format, decode = told.get("every", 1), told.get("format", "png"), told.get("decode", "latent2rgb")
        right = isinstance(every, int) and every >= 1 and image_format in FORMATS_OF_FRAMES and decode in ("latent2rgb", "taesd")
        if not right:
            log.warning(
                'stepwatch: %s: "every" is a whole number, "format" png, jpeg or webp, "decode" latent2rgb or taesd; the defaults are used', path
            )
            every, image_format, decode = 1, "png", "latent2rgb"
        return Options(every, image_format, decode, _overrides(told.get("policy") or {}))
    return None


class _Original(NamedTuple):
    """The host's own method, in the place of an executor."""

    class_obj: Any
    method: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(self.class_obj, *args, **kwargs)


def record_everything(options: Options) -> None:
    """Record every pass of this server that no node answers for: the one method that all of them go through is replaced, once."""
    import comfy.samplers

    original = comfy.samplers.CFGGuider.outer_sample
    if getattr(original, "stepwatch", False):
        return

    @functools.wraps(original)
    def outer_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        executor = _Original(self, original)
        if id(self) in _taken.get({}):
            return executor(*args, **kwargs)
        return _around_pass(options, executor, *args, **kwargs)

    outer_sample.stepwatch = True  # type: ignore[attr-defined]
    comfy.samplers.CFGGuider.outer_sample = outer_sample
    log.info("stepwatch: every sampler pass of this server is recorded")


try:
    if (_for_all := _settings()) is not None:
        record_everything(_for_all)
except Exception as _error:
    log.warning("stepwatch: only passes with the node are recorded: %s: %s", type(_error).__name__, _error)
