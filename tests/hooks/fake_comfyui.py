"""A ComfyUI for tests: modules with the names and signatures that the hook meets there, and as much of a tensor as it uses.

What a host does with them is played by `Server`: it queues a prompt, says which node is running, and drives a guider as the host's own
`CFGGuider.sample` does, round by round. The real one is met in tests/acceptance.
"""

from __future__ import annotations

import contextvars
import functools
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

# --- torch


class Tensor:
    """Numbers in rows, of any number of dimensions."""

    is_nested = False
    device = types.SimpleNamespace(type="cpu")

    def __init__(self, shape: Sequence[int], data: Sequence[float]) -> None:
        self.shape, self.data = tuple(shape), list(data)
        assert len(self.data) == math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: Any) -> Tensor:
        first, *rest = key if isinstance(key, tuple) else (key,)
        wanted: Any = range(self.shape[0])[first]
        step = math.prod(self.shape[1:])
        parts = [Tensor(self.shape[1:], self.data[index * step : (index + 1) * step]) for index in ([wanted] if isinstance(wanted, int) else wanted)]
        parts = [part[tuple(rest)] if rest else part for part in parts]
        if isinstance(wanted, int):
            return parts[0]
        return Tensor((len(parts), *(parts[0].shape if parts else ())), [number for part in parts for number in part.data])

    def __float__(self) -> float:
        (number,) = self.data
        return float(number)

    def each(self, change: Callable[[float], float]) -> Tensor:
        return Tensor(self.shape, [change(number) for number in self.data])

    def __add__(self, other: Any) -> Tensor:
        if isinstance(other, Tensor):
            return Tensor(self.shape, [number + other.data[index % len(other.data)] for index, number in enumerate(self.data)])
        return self.each(lambda number: number + other)

    def __sub__(self, other: float) -> Tensor:
        return self + -other

    def __mul__(self, other: float) -> Tensor:
        return self.each(lambda number: number * other)

    def reshape(self, *shape: int) -> Tensor:
        known = math.prod(side for side in shape if side != -1)
        return Tensor([len(self.data) // known if side == -1 else side for side in shape], self.data)

    def nan_to_num(self, nan: float, high: float, low: float) -> Tensor:
        return self.each(
            lambda number: (
                nan if math.isnan(number) else min(max(number, low * 1e30), high * 1e30) if math.isfinite(number) else math.copysign(1, number)
            )
        )

    def round(self) -> Tensor:
        return self.each(round)

    def clamp(self, low: float, high: float) -> Tensor:
        return self.each(lambda number: min(max(number, low), high))

    def movedim(self, source: int, target: int) -> Tensor:
        assert (source, target) == (0, -1)
        step = math.prod(self.shape[1:])
        return Tensor((*self.shape[1:], self.shape[0]), [self.data[row * step + index] for index in range(step) for row in range(self.shape[0])])

    def itself(self, *_: Any) -> Tensor:
        return self

    float = detach = to = cpu = contiguous = numpy = itself

    def tobytes(self) -> bytes:
        return bytes(int(number) for number in self.data)


class Nested:
    """What newer hosts hand over for a picture with sound."""

    is_nested = True

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts

    def unbind(self) -> Sequence[Tensor]:
        return self.parts


def full(shape: Sequence[int], number: float) -> Tensor:
    return Tensor(shape, [number] * math.prod(shape))


def tensor(rows: Any, **_: Any) -> Tensor:
    if isinstance(rows[0], int | float):
        return Tensor((len(rows),), rows)
    return Tensor((len(rows), len(rows[0])), [number for row in rows for number in row])


def einsum(rule: str, latents: Tensor, factors: Tensor) -> Tensor:
    assert rule == "bchw,cr->bhwr"
    items, channels, height, width = latents.shape
    assert channels == factors.shape[0]
    area = height * width
    data = [
        sum(latents.data[(item * channels + channel) * area + place] * factors.data[channel * 3 + colour] for channel in range(channels))
        for item in range(items)
        for place in range(area)
        for colour in range(3)
    ]
    return Tensor((items, height, width, 3), data)


def _torch() -> types.ModuleType:
    torch = types.ModuleType("torch")
    found: dict[str, Any] = {
        "tensor": tensor,
        "einsum": einsum,
        "empty": lambda shape, device: full(shape, 0.0),
        "count_nonzero": lambda whole: sum(number != 0 for number in whole.data),
        "no_grad": nullcontext,
        "float32": "float32",
        "uint8": "uint8",
        "random": types.SimpleNamespace(fork_rng=lambda devices, device_type: nullcontext()),
    }
    torch.__dict__.update(found)
    return torch


# --- comfy


class InterruptProcessingException(Exception):  # the host's name
    """What the host raises when its user stops a prompt."""


class OutOfMemoryError(RuntimeError):
    """Torch's."""


class WrapperExecutor:
    """Calls wrappers from the outside in, and the original in the end."""

    def __init__(self, original: Callable[..., Any], class_obj: Any, wrappers: list[Callable[..., Any]]) -> None:
        self.original, self.class_obj, self.wrappers = original, class_obj, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](WrapperExecutor(self.original, self.class_obj, self.wrappers[1:]), *args, **kwargs)


class ModelPatcher:
    """A model with what nodes have put on it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.wrappers: dict[str, dict[str, list[Callable[..., Any]]]] = {}
        self.object_patches: dict[str, Any] = {}

    def clone(self) -> ModelPatcher:
        copied = ModelPatcher(self.model)
        copied.object_patches = dict(self.object_patches)
        copied.wrappers = {kind: {key: list(wrappers) for key, wrappers in named.items()} for kind, named in self.wrappers.items()}
        return copied

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name) or getattr(self.model, name)

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)


class CFGGuider:
    """The host's; `steps` plays what the sampler's loop would do."""

    def __init__(self, model_patcher: ModelPatcher, *, cfg: float = 7.5) -> None:
        self.model_patcher, self.cfg = model_patcher, cfg
        self.newer = False
        """Whether this is a host of 2026, which also hands over the shapes of the latents."""

    def outer_sample(
        self,
        noise: Any,
        latent_image: Any,
        sampler: Any,
        sigmas: Any,
        denoise_mask: Any = None,
        callback: Any = None,
        disable_pbar: Any = False,  # noqa: FBT002  # the host's signature
        seed: Any = None,
        latent_shapes: Any = None,
    ) -> Any:
        assert (latent_shapes is not None) == self.newer
        return sampler.sample(noise, sigmas, callback)

    def sample(
        self,
        noise: Any,
        latent_image: Any,
        sampler: Any,
        sigmas: Any,
        denoise_mask: Any = None,
        callback: Any = None,
        disable_pbar: Any = False,  # noqa: FBT002  # the host's signature
        seed: Any = None,
        **newer: Any,
    ) -> Any:
        wrappers = [wrapper for named in self.model_patcher.wrappers.get("outer_sample", {}).values() for wrapper in named]
        return WrapperExecutor(self.outer_sample, self, wrappers)(
            noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **newer
        )


class SD15:
    """A latent format whose red, green and blue are its first three channels."""

    latent_channels = 4
    latent_dimensions = 2
    taesd_decoder_name = "taesd_decoder"

    def __init__(self) -> None:
        self.latent_rgb_factors: Any = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
        self.latent_rgb_factors_bias: Any = None


class KSAMPLER:
    """A sampler: calls back for each of its steps with what `x0` says, and does what `trouble` says at that step."""

    def __init__(
        self, x0: Callable[[int], Any], *, name: str = "sample_euler", steps: int | None = None, before: Callable[[int], Any] | None = None
    ) -> None:
        def sampler_function() -> None:
            """Known by its name only."""

        sampler_function.__name__ = name
        self.sampler_function, self.x0, self.steps, self.before = sampler_function, x0, steps, before
        self.result = object()
        self.answers: list[Any] = []

    def sample(self, noise: Any, sigmas: Any, callback: Any) -> Any:
        total = len(sigmas) - 1
        for step in range(total if self.steps is None else self.steps):
            if self.before is not None:
                self.before(step)
            if callback is not None:
                self.answers.append(callback(step, self.x0(step), noise, total))
        return self.result


class ExecutionContext(NamedTuple):
    """The host's."""

    prompt_id: str
    node_id: str
    list_index: int | None


_context: contextvars.ContextVar[ExecutionContext | None] = contextvars.ContextVar("current_executing_context", default=None)


class PromptQueue:
    """The prompts that are running and those that wait; a prompt is (number, id, nodes, extra data, outputs)."""

    def __init__(self) -> None:
        self.currently_running: dict[int, Any] = {}

    def get_current_queue(self) -> Any:
        return list(self.currently_running.values()), []

    def get_current_queue_volatile(self) -> Any:
        return list(self.currently_running.values()), []


class Server:
    """A running ComfyUI, its modules in `sys.modules`."""

    def __init__(self, root: Path, set_module: Callable[[str, types.ModuleType], None]) -> None:
        self.output = root / "output"
        self.queue = PromptQueue()
        self.vae_approx: list[str] = []
        self.free_memory = 1e12
        self.decoded: list[Tensor] = []
        self.prompts = 0
        self.arguments = types.SimpleNamespace(disable_metadata=False)

        def module(name: str, **members: Any) -> types.ModuleType:
            made = types.ModuleType(name)
            made.__dict__.update(members)
            set_module(name, made)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, made)
            return made

        set_module("torch", _torch())
        module("comfy")
        module("comfy.patcher_extension", WrappersMP=types.SimpleNamespace(OUTER_SAMPLE="outer_sample"), WrapperExecutor=WrapperExecutor)
        module("comfy.samplers", CFGGuider=type("CFGGuider", (CFGGuider,), {"outer_sample": CFGGuider.outer_sample}))
        module(
            "comfy.model_management",
            InterruptProcessingException=InterruptProcessingException,
            get_free_memory=lambda device: self.free_memory,
            minimum_inference_memory=lambda: 1000,
        )
        module("comfy.cli_args", args=self.arguments)
        module("comfy.taesd")
        module("comfy.taesd.taesd", TAESD=functools.partial(_Taesd, self.decoded))
        module("comfy_execution")
        module("comfy_execution.utils", get_executing_context=_context.get)
        module("comfyui_version", __version__="0.3.64")
        module(
            "folder_paths",
            get_output_directory=lambda: str(self.output),
            get_filename_list=self._files,
            get_full_path=lambda kind, name: f"/{kind}/{name}",
        )
        instance = types.SimpleNamespace(prompt_queue=self.queue, last_prompt_id=None, last_node_id=None)
        module("server", PromptServer=types.SimpleNamespace(instance=instance))

    def _files(self, kind: str) -> list[str]:
        assert kind == "vae_approx"
        return self.vae_approx

    @contextmanager
    def prompt(self, nodes: Any = None, node: str = "3", *, list_index: int | None = None, extra: Any = None) -> Iterator[str]:
        """Run a prompt, being at one of its nodes."""
        self.prompts += 1
        name = f"prompt-{self.prompts}"
        self.queue.currently_running[self.prompts] = (0, name, nodes or {}, extra or {}, [])
        token = _context.set(ExecutionContext(name, node, list_index))
        try:
            yield name
        finally:
            _context.reset(token)
            del self.queue.currently_running[self.prompts]


class _Taesd:
    def __init__(self, decoded: list[Tensor], encoder_path: Any = None, decoder_path: Any = None, latent_channels: int = 4) -> None:
        assert encoder_path is None
        self.decoded, self.path, self.channels = decoded, decoder_path, latent_channels

    def to(self, device: Any) -> _Taesd:
        return self

    def decode(self, latent: Tensor) -> Tensor:
        self.decoded.append(latent)
        assert latent.shape[:2] == (1, self.channels)
        return full((1, 3, latent.shape[2] * 8, latent.shape[3] * 8), 1.0)


class VAE:
    """A VAE that answers with white, when it has not been told to fail."""

    device = vae_dtype = None

    def __init__(self, trouble: Exception | None = None, ratio: int = 8) -> None:
        self.trouble, self.ratio = trouble, ratio
        self.patcher = types.SimpleNamespace(model_size=lambda: 1000)

    def memory_used_decode(self, shape: Any, dtype: Any) -> int:
        return 1000

    def decode(self, samples: Tensor) -> Tensor:
        if self.trouble is not None:
            raise self.trouble
        height, width = samples.shape[-2] * self.ratio, samples.shape[-1] * self.ratio
        return full((1, height, width, 3) if samples.ndim == 4 else (1, 1, height, width, 3), 1.0)


def model(latent_format: Any = None, *, sigma_max: float = 14.6) -> ModelPatcher:
    """A MODEL as the loader's node returns it."""
    sampling = types.SimpleNamespace(sigma_max=sigma_max)
    return ModelPatcher(
        types.SimpleNamespace(latent_format=latent_format or SD15(), model_sampling=sampling, process_latent_out=lambda latent: latent)
    )


def sigmas(steps: int, first: float = 14.6, last: float = 0.0) -> Tensor:
    return Tensor((steps + 1,), [first + (last - first) * step / steps for step in range(steps + 1)])


def pure(shape: Sequence[int], *levels: float) -> Tensor:
    """Latents in which item *i* has the level *i* of *levels* in its first channel, and 0 in the others."""
    area = math.prod(shape[2:])
    return Tensor(
        shape, [levels[item % len(levels)] if not channel else 0.0 for item in range(shape[0]) for channel in range(shape[1]) for _ in range(area)]
    )
