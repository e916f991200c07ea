"""The hook for programs that use diffusers: a context manager around the call of a pipeline.

    from stepwatch_diffusers import record            # or, where stepwatch is installed: from stepwatch.hooks.diffusers import record

    with record(pipe, "steps", prompt=prompt, seed=7) as rec:
        image = pipe(prompt, generator=torch.Generator().manual_seed(7), **rec.kwargs).images[0]

Every item of the batch becomes a run below ``steps/DATE/``. What is drawn is the scheduler's guess at the finished picture (x0) where it offers one,
else the noisy latents. The picture is the same as without the hook, bit for bit: nothing is written into a tensor, and no random number is drawn.

Theory of operation. The scheduler's ``step`` is replaced, on this instance and for this time only, by a function that calls it and remembers what it
returned; ``callback_on_step_end``, which the pipeline calls behind it, makes the frame. Pipelines without that callback are recorded from ``step``
alone. Some schedulers evaluate the model several times for one step; only the last of these calls makes a frame. How the call ended, only the context
manager sees: an exception, the pipeline's own interrupt flag, or neither.
"""

from __future__ import annotations

import functools
import inspect
import sys
from types import TracebackType
from typing import Any, Callable, Mapping, Sequence

# --- stepwatch writer: an installed hook has its source here ---
from stepwatch.hooks.writer import Recording, log, new_id

# --- end of the stepwatch writer ---

LATENT_RGB: dict[str, tuple[float, list[list[float]], list[float]]] = {
    "sd15": (
        0.18215,
        [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]],
        [0.0, 0.0, 0.0],
    ),
    "sdxl": (
        0.13025,
        [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]],
        [0.1084, -0.0175, -0.0011],
    ),
    "sd3": (
        1.5305,
        [
            *([-0.0922, -0.0175, 0.0749], [0.0311, 0.0633, 0.0954], [0.1994, 0.0927, 0.0458], [0.0856, 0.0339, 0.0902]),
            *([0.0587, 0.0272, -0.0496], [-0.0006, 0.1104, 0.0309], [0.0978, 0.0306, 0.0427], [-0.0042, 0.1038, 0.1358]),
            *([-0.0194, 0.0020, 0.0669], [-0.0488, 0.0130, -0.0268], [0.0922, 0.0988, 0.0951], [-0.0278, 0.0524, -0.0542]),
            *([0.0332, 0.0456, 0.0895], [-0.0069, -0.0030, -0.0810], [-0.0596, -0.0465, -0.0293], [-0.1448, -0.1463, -0.1189]),
        ],
        [0.2394, 0.2135, 0.1925],
    ),
    "flux": (
        0.3611,
        [
            *([-0.0346, 0.0244, 0.0681], [0.0034, 0.0210, 0.0687], [0.0275, -0.0668, -0.0433], [-0.0174, 0.0160, 0.0617]),
            *([0.0859, 0.0721, 0.0329], [0.0004, 0.0383, 0.0115], [0.0405, 0.0861, 0.0915], [-0.0236, -0.0185, -0.0259]),
            *([-0.0245, 0.0250, 0.1180], [0.1008, 0.0755, -0.0421], [-0.0515, 0.0201, 0.0011], [0.0428, -0.0012, -0.0036]),
            *([0.0817, 0.0765, 0.0749], [-0.1264, -0.0522, -0.1103], [-0.0280, -0.0881, -0.0499], [-0.1262, -0.0982, -0.0778]),
        ],
        [-0.0329, -0.0718, -0.0851],
    ),
}
"""By family: the scaling factor of its VAE, by which it is known, and what each latent channel adds to red, green and blue, with a bias. The figures
are those of ComfyUI's ``latent_formats.py``, for latents as the sampler sees them."""


def record(  # noqa: PLR0913  # each is asked for by its name
    pipe: Any,
    folder: Any,
    *,
    prompt: Any = None,
    negative_prompt: Any = None,
    seed: Any = None,
    every: int = 1,
    image_format: str = "png",
    decode: str = "latent2rgb",
    overrides: Mapping[str, Any] | None = None,
    group_id: str | None = None,
    callback_on_step_end: Callable[..., Any] | None = None,
    callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    **generation: Any,
) -> Recorder:
    """Record the calls of *pipe* within the ``with`` as runs below *folder*.

    *prompt*, *negative_prompt* and *seed* (one, or one for each picture of a batch) are for the animation's name and metadata, and so is whatever
    else is given: ``model``, ``loras``, ``width``, ``height``. What is not given is taken from the pipeline's own call where it can be seen there.
    Every Nth step is recorded; *image_format* is png, jpeg or webp. *decode* is "latent2rgb", which costs next to nothing and gives frames of latent
    size that stepwatch enlarges, or "vae", which takes as long as the picture's own last decode, for each frame. *overrides* is policy for the runs.
    *group_id* ties them to others, such as those of a base model to a refiner's. A callback of your own goes in here, and is called as the pipeline
    would call it.
    """
    return Recorder(
        pipe,
        folder,
        facts={**generation, "prompt": prompt, "negative": negative_prompt, "seed": seed},
        options={"every": every, "image_format": image_format, "overrides": overrides},
        decode=decode,
        group_id=group_id,
        callback=callback_on_step_end,
        inputs=callback_on_step_end_tensor_inputs,
    )


class Recorder:
    """What `record` returns: ``kwargs`` for the call of the pipeline, and afterwards the ``folders`` of its runs."""

    def __init__(
        self,
        pipe: Any,
        folder: Any,
        *,
        facts: Mapping[str, Any],
        options: Mapping[str, Any],
        decode: str,
        group_id: str | None,
        callback: Callable[..., Any] | None,
        inputs: Sequence[str] | None,
    ) -> None:
        self.group_id = group_id or new_id()
        self.folders: list[str] = []
        self._pipe = pipe
        self._folder = folder
        self._facts = facts
        self._options = options
        self._decode = decode
        self._callback = callback
        self._wanted = list(getattr(callback, "tensor_inputs", None) or inputs or (["latents"] if callback else []))
        self._calls_back = False
        """Whether the pipeline tells of each step by itself."""
        self._passes = 0
        self._run: _Pass | None = None
        self._off = False
        self._inside = False
        self._scheduler: Any = None
        self._step: Any = None
        self._earlier: Any = None
        self._offered: _Offer | None = None

    @property
    def kwargs(self) -> dict[str, Any]:
        """What the call of the pipeline needs so that it tells of its steps; ask for it anew for each call."""
        try:
            if self._inside and not self._off:
                # The scheduler may have been changed since.
                self._leave_scheduler()
                self._watch_scheduler()
            self._calls_back = "callback_on_step_end" in inspect.signature(self._pipe.__call__).parameters
            if not self._calls_back:
                return {}
            inputs = list(self._wanted)
            if "latents" in getattr(self._pipe, "_callback_tensor_inputs", ()) and "latents" not in inputs:
                inputs.append("latents")
            return {"callback_on_step_end": self._step_end, "callback_on_step_end_tensor_inputs": inputs}
        except Exception as error:
            self._give_up(error)
            return {"callback_on_step_end": self._callback, "callback_on_step_end_tensor_inputs": self._wanted} if self._callback else {}

    def __enter__(self) -> Recorder:  # noqa: PYI034  # Self is newer than some hosts
        self._inside = True
        try:
            self._watch_scheduler()
        except Exception as error:
            self._give_up(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inside = False
        self._leave_scheduler()
        if error is None:
            self._finish()
        else:
            self._finish("failed" if isinstance(error, Exception) else "interrupted", error)

    # --- what the pipeline calls

    def _watch_scheduler(self) -> None:
        scheduler = self._pipe.scheduler
        original = scheduler.step
        self._earlier = vars(scheduler).get("step")

        # Pipelines look at the signature of `step` to learn what it takes.
        @functools.wraps(original)
        def step(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            if self._step is step and not self._off:
                try:
                    self._offered = _Offer(scheduler, arguments, named, result)
                    if not self._calls_back:
                        self._called(None, None)
                except Exception as error:
                    self._give_up(error)
            return result

        scheduler.step = step
        self._scheduler, self._step = scheduler, step

    def _leave_scheduler(self) -> None:
        scheduler, step, self._step = self._scheduler, self._step, None
        try:
            # Whoever has replaced it since keeps theirs; ours only passes on by then.
            if step is not None and vars(scheduler).get("step") is step:
                if self._earlier is None:
                    del scheduler.step
                else:
                    scheduler.step = self._earlier
        except Exception as error:
            self._give_up(error)

    def _step_end(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        answer: Any = tensors
        if self._callback is not None:
            answer = self._callback(pipe, index, timestep, {name: tensors[name] for name in self._wanted if name in tensors})
        if not self._off:
            try:
                latents = answer.get("latents") if isinstance(answer, dict) else None
                self._called(index, tensors.get("latents") if latents is None else latents)
            except Exception as error:
                self._give_up(error)
        return answer

    # --- what is made of it

    def _called(self, index: int | None, latents: Any) -> None:
        """Follow one call of the scheduler; *index* is the pipeline's own count of the calls, from 0, where it tells."""
        offered, self._offered = self._offered, None
        if latents is None and offered is not None:
            latents = offered.after
        run = self._run
        if run is None or (run.calls >= run.expected if index is None else index <= run.index):
            self._finish()
            run = self._run = self._begun(latents, guessed=offered is not None and offered.guess is not None)
        run.index = run.calls if index is None else index
        run.calls += 1
        if (run.calls >= run.expected or _step_is_whole(self._pipe.scheduler)) and run.recording.step():
            guess = offered.guess if run.guessed and offered is not None else None
            for item, (picture, size) in enumerate(run.drawing.pictures(latents if guess is None else guess)):
                run.recording.put(item, picture, size)
            run.recording.decode = run.drawing.name

    def _begun(self, latents: Any, *, guessed: bool) -> _Pass:
        """Begin the runs of one call, whose first step has just been taken."""
        pipe, call = self._pipe, _call_facts(self._pipe)
        expected = int(getattr(pipe, "num_timesteps", None) or len(pipe.scheduler.timesteps))
        drawing = _Drawing(pipe, latents, {**call, **{key: value for key, value in self._facts.items() if value}}, self._decode)
        recording = Recording(
            self._folder,
            host={"app": "diffusers", "version": getattr(sys.modules.get("diffusers"), "__version__", None)},
            hook="diffusers",
            items=_items(pipe, drawing, call, self._facts),
            planned=_steps_of(pipe.scheduler, expected),
            size=drawing.size,
            scale=drawing.scale,
            kind="x0" if guessed else "x",
            decode=drawing.name,
            group_id=self.group_id,
            pass_facts={"index": self._passes, "name": _pass_name(pipe), **_noise(pipe.scheduler)},
            **self._options,
        )
        self._passes += 1
        return _Pass(recording, drawing, expected=expected, guessed=guessed)

    def _finish(self, state: str = "complete", error: Any = None) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        cut_short = run.calls < run.expected and bool(getattr(self._pipe, "interrupt", False))
        run.recording.end("interrupted" if state == "complete" and cut_short else state, error)
        self.folders += run.recording.folders

    def _give_up(self, error: Any) -> None:
        if not self._off:
            log.warning("stepwatch: this call of the pipeline is not recorded any further: %s: %s", type(error).__name__, error)
        self._off = True
        self._finish("failed", error)


class _Pass:
    """One call of the pipeline: a run for each item of its batch."""

    def __init__(self, recording: Recording, drawing: _Drawing, *, expected: int, guessed: bool) -> None:
        self.recording = recording
        self.drawing = drawing
        self.expected = expected
        """Calls of the scheduler until it is complete."""
        self.guessed = guessed
        """Whether its frames show x0."""
        self.index = -1
        self.calls = 0


# --- what a scheduler offers


class _Offer:
    """What one call of the scheduler's ``step`` gave."""

    def __init__(self, scheduler: Any, arguments: Sequence[Any], named: Mapping[str, Any], result: Any) -> None:
        self.after: Any = result[0] if isinstance(result, tuple) else getattr(result, "prev_sample", None)
        """The latents, as noisy as they are now."""
        guess = _named_guess(scheduler, result)
        if guess is None:
            guess = _solver_guess(scheduler)
        if guess is None and type(scheduler).__name__.startswith(("FlowMatch", "FlowMap")) and named.get("per_token_timesteps") is None:
            guess = _flow_guess(scheduler, arguments, named)
        usable = guess is not None and getattr(guess, "shape", None) == getattr(self.after, "shape", ())
        self.guess: Any = guess if usable else None
        """What the scheduler takes the finished latents for; None where it does not tell."""


def _named_guess(scheduler: Any, result: Any) -> Any:
    """Many return it, by name or as the second of two; which it is, the scheduler's own type of result tells."""
    if not isinstance(result, tuple):
        return getattr(result, "pred_original_sample", getattr(result, "denoised", None))
    kind: Any = type(scheduler)
    named = _second_field(kind) if len(result) > 1 else ""
    return result[1] if named in ("pred_original_sample", "denoised") else None


@functools.lru_cache(maxsize=64)
def _second_field(scheduler: Any) -> str:
    for kind in scheduler.__mro__:
        for name, one in vars(sys.modules.get(kind.__module__, object)).items():
            if name.endswith("Output") and getattr(one, "__module__", "") == kind.__module__:
                fields = list(getattr(one, "__dataclass_fields__", ()))
                if len(fields) > 1:
                    return str(fields[1])
    return ""


def _solver_guess(scheduler: Any) -> Any:
    """The multistep solvers that work on x0 keep the last few of them."""
    kept = getattr(scheduler, "model_outputs", None)
    config = getattr(scheduler, "config", {})
    on_data = config.get("algorithm_type") in ("dpmsolver++", "sde-dpmsolver++", "data_prediction") or config.get("predict_x0") is True
    return kept[-1] if kept and (on_data or type(scheduler).__name__.startswith("CosineDPMSolver")) else None


def _flow_guess(scheduler: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """In a flow the model's answer points straight from the picture to the noise."""
    velocity = arguments[0] if arguments else named["model_output"]
    before = arguments[2] if len(arguments) > 2 else named["sample"]
    return before.float() - scheduler.sigmas[scheduler.step_index - 1].to(before.device) * velocity.float()


def _step_is_whole(scheduler: Any) -> bool:
    """Whether the scheduler has just finished a step, rather than one of several evaluations for it."""
    early = getattr(scheduler, "prk_timesteps", None)
    if early is None:
        # Heun, KDPM2 and their like know whether they are between the two evaluations.
        return bool(getattr(scheduler, "state_in_first_order", True))
    # PNDM: Runge-Kutta takes four calls for each of its steps; without it, the second call takes the first step once more.
    return scheduler.counter % 4 == 0 if scheduler.counter <= len(early) else bool(len(early)) or scheduler.counter != 1


def _steps_of(scheduler: Any, calls: int) -> int:
    """How many steps so many calls make."""
    early = getattr(scheduler, "prk_timesteps", None)
    if early is not None:
        return max(1, calls - (len(early) - len(early) // 4 if len(early) else 1))
    return (calls + 1) // 2 if hasattr(scheduler, "state_in_first_order") else calls


def _noise(scheduler: Any) -> dict[str, float]:
    """The noise at both ends of this pass, where the scheduler counts in it."""
    try:
        sigmas = scheduler.sigmas
        return {"sigma_first": float(sigmas[getattr(scheduler, "begin_index", None) or 0]), "sigma_last": float(sigmas[-1])}
    except Exception:
        return {}


# --- from latents to pixels


class _Drawing:
    """How the latents of one pipeline become frames; raises ValueError for latents that nobody here knows."""

    def __init__(self, pipe: Any, latents: Any, facts: Mapping[str, Any], decode: str) -> None:
        self._pipe = pipe
        self._facts = facts
        shown = self._unpacked(latents)
        channels, rows, columns = (int(number) for number in shown.shape[1:])
        vae = getattr(pipe, "vae", None)
        family = _family(pipe, channels)
        self.name = "vae" if decode == "vae" and vae is not None else "latent2rgb"
        """How it is done just now."""
        enlarged = 1 if vae is None else _enlargement(vae)
        if family is not None:
            _, factors, bias = LATENT_RGB[family]
            # Colours by channels, so that the product runs along rows of memory: several times faster than the other way round.
            exact = shown.float()
            self._factors = exact.new_tensor([list(colour) for colour in zip(*factors)])
            self._bias = exact.new_tensor([[one] for one in bias])
        elif channels == 3 and vae is None:
            # A pipeline without latents: these are pixels.
            self._factors, self._bias, self.name = None, None, "none"
        elif self.name == "vae":
            self._factors, self._bias = None, None
        else:
            raise ValueError(f'latents of the shape {tuple(latents.shape)} are not known to this hook; decode="vae" may draw them')
        self.batch = int(shown.shape[0])
        self.picture = (columns * enlarged, rows * enlarged)
        """Width and height of the finished picture."""
        self.scale = 1 if self.name == "vae" else enlarged
        self.size = (self.picture[0] // self.scale, self.picture[1] // self.scale)
        """Width and height of the frames."""

    def pictures(self, latents: Any) -> list[tuple[Any, Any]]:
        """Draw each item of the batch, as what a recording takes."""
        shown = self._unpacked(latents.detach())
        if self.name == "vae":
            try:
                return [self._decoded(shown[item : item + 1]) for item in range(shown.shape[0])]
            except Exception as error:
                if self._factors is None:
                    raise
                log.warning("stepwatch: frames are drawn without the VAE from here on: %s: %s", type(error).__name__, error)
                self.name = "latent2rgb"
        values = shown.float().flatten(2)
        if self._factors is not None:
            values = self._factors @ values + self._bias
        size = (int(shown.shape[3]), int(shown.shape[2]))
        if size == self.size:
            return [(data, size) for data in _rgb_bytes(values)]
        from PIL import Image

        # The run began with larger ones.
        return [(Image.frombytes("RGB", size, data).resize(self.size), None) for data in _rgb_bytes(values)]

    def _decoded(self, latents: Any) -> tuple[bytes, tuple[int, int]]:
        vae = self._pipe.vae
        weight = next(iter(vae.parameters()))
        raw = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)
        with sys.modules["torch"].no_grad():
            image = vae.decode(raw.to(weight.device, weight.dtype), return_dict=False)[0]
        if not bool(image.isfinite().all()):
            raise ValueError("the VAE gives no picture in this precision")
        (data,) = _rgb_bytes(image.float())
        return data, (int(image.shape[3]), int(image.shape[2]))

    def _unpacked(self, latents: Any) -> Any:
        """Return latents as (batch, channels, rows, columns): of a video the middle picture, and those of Flux and its like unpacked."""
        if latents.dim() == 3:
            factor = self._pipe.vae_scale_factor
            # A square where nobody tells, which is what pipelines make then, too.
            side = 2 * factor * int(latents.shape[1] ** 0.5)
            height, width = self._facts.get("height") or side, self._facts.get("width") or side
            latents = self._pipe._unpack_latents(latents, height, width, factor)  # noqa: SLF001  # there is no other name for it
        if latents.dim() == 5:
            latents = latents[:, :, latents.shape[2] // 2]
        if latents.dim() != 4:
            raise ValueError(f"latents of the shape {tuple(latents.shape)} are not known to this hook")
        return latents


def _rgb_bytes(values: Any) -> list[bytes]:
    """Return the pixels of each picture of (picture, colour, ...), from values of -1 to 1; what is not a number is grey."""
    levels = (values / 2 + 0.5).nan_to_num(nan=0.5, posinf=1.0, neginf=0.0).clamp(0, 1) * 255
    # The whole batch at once, for a GPU is waited for here.
    return [plane.tobytes() for plane in levels.round().byte().cpu().movedim(1, -1).contiguous().numpy()]


def _family(pipe: Any, channels: int) -> str | None:
    """Tell by the VAE's scaling factor, else by the pipeline's name, whose latents these are."""
    fitting = {family: factor for family, (factor, rows, _) in LATENT_RGB.items() if len(rows) == channels}
    factor = getattr(getattr(getattr(pipe, "vae", None), "config", None), "scaling_factor", None)
    for family, known in fitting.items():
        if isinstance(factor, float) and abs(factor - known) < 1e-4:
            return family
    words = {"sdxl": "XL", "sd3": "Diffusion3", "flux": "FluxP", "sd15": "StableDiffusion"}
    return next((family for family, word in words.items() if family in fitting and word in type(pipe).__name__), None)


def _enlargement(vae: Any) -> int:
    """How much larger than its latents a picture is."""
    try:
        return int(min(16, 2 ** (len(vae.config.block_out_channels) - 1)))
    except Exception:
        return 8


# --- what is known of the pictures


def _call_facts(pipe: Any) -> dict[str, Any]:
    """Return what the running call of *pipe* was given, or nothing where it cannot be seen.

    Only there stand the size by which packed latents are unpacked, the strength of img2img and the generator. The pipeline takes the tensors for its
    callbacks out of the same place.
    """
    frame: Any = sys._getframe()  # noqa: SLF001  # the only name that it has
    for _ in range(20):
        frame = frame.f_back
        if frame is None:
            break
        if frame.f_code.co_name == "__call__" and frame.f_code.co_varnames[:1] == ("self",) and frame.f_locals.get("self") is pipe:
            known = frame.f_locals
            return {
                name: known.get(name) for name in ("prompt", "negative_prompt", "height", "width", "num_inference_steps", "strength", "generator")
            }
    return {}


def _items(pipe: Any, drawing: _Drawing, call: Mapping[str, Any], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the facts of each picture: what the user told first, then what the pipeline knows."""
    scheduler = pipe.scheduler
    known = {
        "prompt": call.get("prompt"),
        "negative": call.get("negative_prompt"),
        "seed": _seeds(call.get("generator")),
        "sampler": type(scheduler).__name__,
        "scheduler": _schedule(scheduler),
        # The call's own number is cut by the strength of img2img.
        "steps": getattr(scheduler, "num_inference_steps", None) or call.get("num_inference_steps"),
        "cfg": getattr(pipe, "guidance_scale", None),
        "denoise": call.get("strength"),
        "width": drawing.picture[0],
        "height": drawing.picture[1],
        "model": getattr(pipe, "name_or_path", None),
        "clip_skip": getattr(pipe, "clip_skip", None),
    }
    facts = {**known, **{key: value for key, value in told.items() if value is not None}}
    batch = drawing.batch
    return [
        {
            "generation": {key: _typed(key, _of_item(value, item, batch) if key in PER_ITEM else value) for key, value in facts.items()},
            "batch": {"index": item, "size": batch, "iteration": 0, "iterations": 1},
        }
        for item in range(batch)
    ]


PER_ITEM = ("prompt", "negative", "seed", "subseed")
"""Facts of which there may be one for each picture of a batch."""
TYPES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("prompt", "negative", "sampler", "scheduler", "model", "model_hash", "vae"), str),
    **dict.fromkeys(("seed", "subseed", "steps", "width", "height", "clip_skip"), int),
    **dict.fromkeys(("cfg", "denoise"), float),
    "loras": list,
}


def _typed(key: str, value: Any) -> Any:
    """Return a fact as readers take it, or None."""
    if value is None or value == "":
        return None
    try:
        result = TYPES.get(key, lambda one: one)(value)
    except Exception:
        return None
    return None if isinstance(result, int) and not 0 <= result < 2**64 else result


def _of_item(value: Any, item: int, batch: int) -> Any:
    """Return what belongs to one picture: pipelines make all pictures of the first prompt first."""
    if not isinstance(value, (list, tuple)):
        return value
    return value[item * len(value) // batch] if value else None


def _seeds(generator: Any) -> Any:
    if isinstance(generator, (list, tuple)):
        return [_seeds(one) for one in generator]
    try:
        return generator.initial_seed()
    except Exception:
        return None


def _schedule(scheduler: Any) -> str | None:
    config = getattr(scheduler, "config", {})
    return next((name for name in ("karras", "exponential", "beta") if config.get(f"use_{name}_sigmas")), None)


def _pass_name(pipe: Any) -> str:
    name = type(pipe).__name__
    if getattr(pipe, "denoising_start", None):
        return "refiner"
    return "inpaint" if "Inpaint" in name else "img2img" if "Img2Img" in name else "base"
