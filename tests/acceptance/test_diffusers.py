"""The diffusers hook on the real thing: tiny random models, real pipelines, real schedulers. README, "Working on stepwatch", has the command."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepwatch import hook
from tests.hooks.contract import Recorded, runs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="needs the extra `hosts`")
    diffusers = pytest.importorskip("diffusers", reason="needs the extra `hosts`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `hosts`")
    from diffusers import schedulers as all_schedulers

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("ignore")]

STEPS = 6
SIDE = 32
"""Pixels; the tiny VAE makes two of each latent."""

Record = Callable[..., Any]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The hook as it is copied into somebody's program, whole in one file."""
    folder = tmp_path_factory.mktemp("program")
    hook.install("diffusers", folder)
    spec = importlib.util.spec_from_file_location("stepwatch_diffusers", folder / "stepwatch_diffusers.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record(installed: Any) -> Record:
    return installed.record  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """One thread, so that sums are added in one order, and no progress bars."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    yield
    logging.getLogger("stepwatch.hook").handlers.clear()


# -- tiny models


@pytest.fixture(scope="session")
def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    )


def make_vae(channels: int, **config: float) -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        norm_num_groups=8,
        **config,
    )


@pytest.fixture(scope="session")
def vae() -> Any:
    return make_vae(4)


@pytest.fixture(scope="session")
def text_encoder() -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=100,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return transformers.CLIPTextModel(config)


MakePipe = Callable[..., Any]


@pytest.fixture
def make_pipe(unet: Any, vae: Any, text_encoder: Any) -> MakePipe:
    """A Stable Diffusion pipeline with the scheduler that is asked for."""

    def make(scheduler: Any = None, kind: str = "StableDiffusionPipeline") -> Any:
        scheduler = scheduler or made(diffusers.EulerDiscreteScheduler)
        parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": None, "scheduler": scheduler}
        return getattr(diffusers, kind)(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)

    return make


def made(kind: type) -> Any:
    """A scheduler with the betas of Stable Diffusion, where it has betas."""
    config: dict[str, Any] = {}
    known = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    if "beta_start" in known:
        config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return kind(**config)


def arguments(batch: int = 1, **more: Any) -> dict[str, Any]:
    """What a call of a pipeline takes in every test; the same each time."""
    generator = torch.Generator().manual_seed(7)
    prompts = torch.randn(batch, 77, 32, generator=generator)
    return {
        "prompt_embeds": prompts,
        "negative_prompt_embeds": torch.zeros_like(prompts),
        "num_inference_steps": STEPS,
        "height": SIDE,
        "width": SIDE,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
    } | more


def latents_of(pipe: Any, **call: Any) -> Any:
    """The finished latents of one call."""
    torch.manual_seed(5)  # Some schedulers draw from the global generator.
    answer = pipe(**call)
    return answer.images if hasattr(answer, "images") else answer


def same(first: Any, second: Any) -> bool:
    return bool(torch.equal(torch.nan_to_num(first, nan=1e9), torch.nan_to_num(second, nan=1e9)))


def recorded_like_plain(record: Record, root: Path, pipe: Any, call: Callable[[], dict[str, Any]], **options: Any) -> list[Recorded]:
    """Call a pipeline without the hook and with it; return the runs, after a look at everything that must be the same."""
    plain = latents_of(pipe, **call())
    with record(pipe, root, **options) as rec:
        hooked = latents_of(pipe, **call(), **rec.kwargs)
    assert same(plain, hooked)
    assert "step" not in vars(pipe.scheduler)
    found = runs(root)
    assert sorted(str(run.folder) for run in found) == sorted(rec.folders)
    return found


# -- every scheduler

# They are loaded when they are asked for, so `vars` does not have them.
KINDS: dict[str, Any] = {
    name: kind
    for name in dir(all_schedulers)
    if not name.startswith("Flax") and inspect.isclass(kind := getattr(all_schedulers, name)) and hasattr(kind, "step")
}
NO_PICTURE = {
    "AmusedScheduler": "tokens",
    "BlockRefinementScheduler": "tokens",
    "DiscreteDDIMScheduler": "tokens",
    "EntropyBoundScheduler": "tokens",
    "VQDiffusionScheduler": "tokens",
    "RFD4ProteinaScheduler": "proteins",
}
"""They step through something that is no picture."""


def loop_call(kind: str, scheduler: Any, guess: Any, t: Any, x: Any, before: dict[str, Any]) -> Any:
    """Call ``step`` as the pipeline that a scheduler was made for would, where that differs from Stable Diffusion's."""
    if kind == "CogVideoXDPMScheduler":
        back = before.get("t")
        x, before["x0"] = scheduler.step(guess, before.get("x0"), t, back, x, return_dict=False)
        before["t"] = t
        return x
    if kind == "DDPMWuerstchenScheduler":
        t = t[None]
    if kind == "PiflowScheduler":
        guess = guess.repeat(1, 1, 1, scheduler.config.n_grid)
    if kind == "KarrasVeScheduler":
        sigma, following = scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else 0
        noisy, sigma_hat = scheduler.add_noise_to_input(x, sigma, generator=torch.Generator().manual_seed(1))
        return scheduler.step(guess, sigma_hat, following, noisy).prev_sample
    if kind == "RePaintScheduler":
        return scheduler.step(guess, t, x, torch.zeros_like(x), torch.ones_like(x), generator=torch.Generator().manual_seed(1)).prev_sample
    return scheduler.step(guess, t, x, return_dict=False)[0]


STEPS_OF = {"SCMScheduler": 2, "ConsistencyDecoderScheduler": 2}
NEEDS_MORE = ("HeliosScheduler", "HeliosDMDScheduler")
"""They need the stages of a video model of their own, which the loop here has not."""


class Loop:
    """A pipeline with nothing but the loop, for schedulers that only other pipelines than Stable Diffusion's can use."""

    _callback_tensor_inputs = ("latents",)
    interrupt = False
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.18215, block_out_channels=[1, 1]))

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.scheduler = KINDS[kind]()
        self.knows: Any = None
        """The picture that its model always sees; None: it has an opinion of its own."""
        self.channels = 4

    def __call__(self, callback_on_step_end: Any = None, callback_on_step_end_tensor_inputs: Any = ()) -> Any:
        scheduler = self.scheduler
        steps = STEPS_OF.get(self.kind, STEPS)
        try:
            scheduler.set_timesteps(steps)
        except ValueError:
            scheduler.set_timesteps(sigmas=[1 - index / steps for index in range(steps)])
        timesteps = scheduler.timesteps
        if self.kind in ("DDPMWuerstchenScheduler", "SCMScheduler"):
            # Their last one is where the last step ends.
            timesteps = timesteps[:-1]
        self.num_timesteps = len(timesteps)
        latents = torch.randn(1, self.channels, 16, 16, generator=torch.Generator().manual_seed(2))
        before: dict[str, Any] = {}
        for index, t in enumerate(timesteps):
            guess = torch.tanh(latents) * 0.3 if self.knows is None else self.known(index, latents)
            latents = loop_call(self.kind, scheduler, guess, t, latents, before)
            if callback_on_step_end is not None:
                latents = callback_on_step_end(self, index, t, {"latents": latents}).pop("latents", latents)
        return latents

    def known(self, index: int, latents: Any) -> Any:
        """The answer of a model that knows the picture: itself, or where the noise is, by the kind of its scheduler."""
        if self.scheduler.config.get("prediction_type") == "sample":
            return self.knows
        return (latents - self.knows) / self.scheduler.sigmas[index]


ODD = {
    *(
        "CogVideoXDPMScheduler",
        "ConsistencyDecoderScheduler",
        "DDPMWuerstchenScheduler",
        "FlowMapEulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
    ),
    *("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "KarrasVeScheduler", "LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler"),
    *("PiflowScheduler", "RePaintScheduler", "SCMScheduler", "UnCLIPScheduler"),
}
"""Made for pipelines of another kind: they are stepped through by the loop above."""


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(NO_PICTURE) - set(NEEDS_MORE)))
def test_every_scheduler_gives_one_frame_for_each_step(record: Record, make_pipe: MakePipe, tmp_path: Path, name: str) -> None:
    """However often a scheduler evaluates its model for a step, the step has one frame, the last one included, and the picture is the same."""
    odd = name in ODD
    pipe = Loop(name) if odd else make_pipe(made(KINDS[name]))
    (run,) = recorded_like_plain(record, tmp_path, pipe, lambda: {} if odd else arguments())
    steps = len(pipe.scheduler.timesteps) if name == "MiniMaxH3Scheduler" else STEPS_OF.get(name, STEPS)
    assert run.sidecar.state == "complete"
    assert run.steps == list(range(1, steps + 1))
    assert (run.sidecar.steps_planned, run.sidecar.frames_planned, run.sidecar.lost) == (steps, steps, ())
    assert (run.raw["generation"]["sampler"], run.raw["host"]["app"]) == (name, "diffusers")


def test_pndm_with_its_runge_kutta_steps(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """The first three steps take four evaluations each, and one frame each."""
    pipe = make_pipe(diffusers.PNDMScheduler(skip_prk_steps=False))
    (run,) = recorded_like_plain(record, tmp_path, pipe, arguments)
    assert run.steps == list(range(1, STEPS + 1))
    assert len(pipe.scheduler.timesteps) == STEPS + 9


PICTURE = torch.linspace(-0.9, 0.9, 4 * 16 * 16).reshape(1, 4, 16, 16)
BY_SAMPLE = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler")
BY_NOISE = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
BY_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")


@pytest.mark.parametrize("name", [*BY_SAMPLE, "SASolverScheduler", *BY_NOISE, *BY_FLOW])
def test_frames_show_x0_where_the_scheduler_offers_it(record: Record, installed: Any, tmp_path: Path, name: str) -> None:
    """With a model that knows the picture every frame shows it, the first one too, when the latents are still noise."""
    pipe = Loop(name)
    if name not in BY_NOISE + BY_FLOW:
        pipe.scheduler = KINDS[name](prediction_type="sample")
    pipe.knows = PICTURE
    with record(pipe, tmp_path) as rec:
        pipe(**rec.kwargs)
    (run,) = runs(tmp_path)
    assert run.raw["frames"]["kind"] == "x0"
    wanted = drawn(installed, "sd15", PICTURE[0])
    assert all((pixels(frame) - wanted).abs().max() <= 1 for frame in run.frames.values())


def drawn(installed: Any, family: str, latents: Any) -> Any:
    """What the matrix of a family makes of (channels, rows, columns)."""
    _, factors, bias = installed.LATENT_RGB[family]
    values = latents.float().movedim(0, -1) @ torch.tensor(factors) + torch.tensor(bias)
    return ((values / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.int)


def pixels(frame: Any) -> Any:
    return torch.tensor(list(frame.tobytes()), dtype=torch.int).reshape(frame.height, frame.width, 3)


def test_a_scheduler_without_x0_shows_the_latents(record: Record, installed: Any, make_pipe: MakePipe, tmp_path: Path) -> None:
    """PNDM keeps its guess to itself: the frames show the noisy latents, the sidecar says so, and the last one is the result."""
    pipe = make_pipe(made(diffusers.PNDMScheduler))
    (run,) = recorded_like_plain(record, tmp_path, pipe, arguments)
    assert run.raw["frames"]["kind"] == "x"
    finished = latents_of(pipe, **arguments())
    assert (pixels(run.frames[STEPS - 1]) - drawn(installed, "sd15", finished[0])).abs().max() <= 1


# -- batches, passes, ends


def test_a_batch_of_four_becomes_four_runs(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """Each picture has a folder of its own with its own prompt, seed and frames, and one group ties them together."""
    pipe = make_pipe()
    found = recorded_like_plain(record, tmp_path, pipe, lambda: arguments(4), prompt=["a", "b", "c", "d"], negative_prompt="blur", seed=[1, 2, 3, 4])
    assert [run.raw["batch"]["index"] for run in found] == [0, 1, 2, 3]
    assert [(run.raw["generation"]["prompt"], run.raw["generation"]["seed"]) for run in found] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    assert {run.raw["generation"]["negative"] for run in found} == {"blur"}
    assert len({run.sidecar.group_id for run in found}) == 1
    assert all(run.steps == list(range(1, STEPS + 1)) for run in found)
    assert len({run.frames[STEPS - 1].tobytes() for run in found}) == 4


def test_images_per_prompt_keep_their_prompt(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """Two prompts with two pictures each: the pictures of the first prompt come first."""
    found = recorded_like_plain(record, tmp_path, make_pipe(), lambda: arguments(2, num_images_per_prompt=2), prompt=["a", "b"])
    assert [run.raw["generation"]["prompt"] for run in found] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler", "DDIMScheduler"])
def test_a_partial_img2img_plans_what_it_takes(record: Record, make_pipe: MakePipe, tmp_path: Path, kind: str) -> None:
    """At strength 0.5 half of the steps are taken; that many are promised and recorded."""
    pipe = make_pipe(made(KINDS[kind]), "StableDiffusionImg2ImgPipeline")
    call = {"image": torch.zeros(1, 3, SIDE, SIDE), "strength": 0.5}
    (run,) = recorded_like_plain(
        record, tmp_path, pipe, lambda: {key: value for key, value in (arguments() | call).items() if key not in ("height", "width")}
    )
    assert run.steps == [1, 2, 3]
    assert run.sidecar.steps_planned == 3
    assert (run.raw["pass"]["name"], run.raw["generation"]["denoise"], run.raw["generation"]["steps"]) == ("img2img", 0.5, STEPS)


def test_inpainting_is_called_so(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """A mask makes it a pass of its own kind."""
    pipe = make_pipe(kind="StableDiffusionInpaintPipeline")
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    (run,) = recorded_like_plain(record, tmp_path, pipe, lambda: arguments(image=torch.zeros(1, 3, SIDE, SIDE), mask_image=mask, strength=1.0))
    assert run.raw["pass"]["name"] == "inpaint"
    assert len(run.frames) == STEPS


def test_every_third_step(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """With ``every`` the frames that are there include the last step."""
    (run,) = recorded_like_plain(record, tmp_path, make_pipe(), lambda: arguments(num_inference_steps=8), every=3)
    assert run.steps == [2, 5, 8]
    assert run.sidecar.frames_planned == 3


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_an_interrupted_call_is_interrupted(record: Record, make_pipe: MakePipe, tmp_path: Path, kind: str) -> None:
    """The pipeline's own flag ends the loop and the call returns a picture; the run has the steps that were taken, and says interrupted."""
    pipe = make_pipe(made(KINDS[kind]))
    seen: list[int] = []

    def mine(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert set(tensors) == {"prompt_embeds"}
        seen.append(index)
        pipe._interrupt = index == 3
        return tensors

    plain = latents_of(pipe, **arguments(), callback_on_step_end=mine, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with record(pipe, tmp_path, callback_on_step_end=mine, callback_on_step_end_tensor_inputs=["prompt_embeds"]) as rec:
        hooked = latents_of(pipe, **arguments(), **rec.kwargs)
    assert same(plain, hooked)
    assert seen == [0, 1, 2, 3] * 2
    (run,) = runs(tmp_path)
    assert run.sidecar.state == "interrupted"
    assert run.steps == ([1, 2, 3, 4] if kind == "EulerDiscreteScheduler" else [1, 2])


def test_an_interrupt_at_the_last_step_changes_nothing(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """All steps were taken by then: the run is complete."""

    def mine(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == STEPS - 1
        return tensors

    pipe = make_pipe()
    with record(pipe, tmp_path, callback_on_step_end=mine) as rec:
        pipe(**arguments(), **rec.kwargs)
    (run,) = runs(tmp_path)
    assert (run.sidecar.state, len(run.frames)) == ("complete", STEPS)


def test_what_a_callback_changes_is_changed(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """A callback that returns other latents, as guidance does, has the effect that it has without the hook."""

    def mine(_pipe: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 0.9}

    pipe = make_pipe()
    plain = latents_of(pipe, **arguments(), callback_on_step_end=mine)
    with record(pipe, tmp_path, callback_on_step_end=mine) as rec:
        hooked = latents_of(pipe, **arguments(), **rec.kwargs)
    assert same(plain, hooked)
    assert not same(plain, latents_of(pipe, **arguments()))


def test_a_callback_object_of_diffusers_still_works(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """diffusers has callbacks that are objects and name their own tensors; they are called as the pipeline calls them."""
    from diffusers.callbacks import SDCFGCutoffCallback

    pipe = make_pipe()
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    plain = latents_of(pipe, **arguments(), callback_on_step_end=cutoff)
    with record(pipe, tmp_path, callback_on_step_end=cutoff) as rec:
        hooked = latents_of(pipe, **arguments(), **rec.kwargs)
    assert same(plain, hooked)
    assert not same(plain, latents_of(pipe, **arguments()))
    assert len(runs(tmp_path)[0].frames) == STEPS


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("boom"), KeyboardInterrupt()])
def test_a_failing_call_leaves_a_failed_run(record: Record, make_pipe: MakePipe, tmp_path: Path, error: BaseException) -> None:
    """The exception comes through as it was; the run says how it ended and has the steps before; the scheduler is as it was."""
    pipe = make_pipe()
    unet, calls = pipe.unet, 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise error
        return unet(*args, **kwargs)

    pipe.unet = type("Unet", (), {"__call__": staticmethod(failing), "config": unet.config, "dtype": unet.dtype})()
    with pytest.raises(type(error)) as raised, record(pipe, tmp_path) as rec:
        pipe(**arguments(), **rec.kwargs)
    assert raised.value is error
    assert "step" not in vars(pipe.scheduler)
    (run,) = runs(tmp_path)
    assert run.steps == [1, 2, 3]
    if isinstance(error, Exception):
        assert run.sidecar.state == "failed"
        assert run.raw["error"] == {"type": type(error).__name__, "message": str(error)}
    else:
        assert run.sidecar.state == "interrupted"


def test_a_call_that_never_took_a_step_leaves_nothing(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """Wrong arguments are the caller's to mend; there is no run to tell of."""
    pipe = make_pipe()
    with pytest.raises(ValueError, match="height"), record(pipe, tmp_path) as rec:
        pipe(**arguments(height=33), **rec.kwargs)
    assert list(tmp_path.iterdir()) == []
    assert "step" not in vars(pipe.scheduler)


def test_two_calls_are_two_passes(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """Whatever is called within one ``with`` belongs together: one group, passes 0 and 1, also with another scheduler in between."""
    pipe = make_pipe()
    with record(pipe, tmp_path) as rec:
        pipe(**arguments(), **rec.kwargs)
        pipe.scheduler = made(diffusers.HeunDiscreteScheduler)
        pipe(**arguments(), **rec.kwargs)
    found = sorted(runs(tmp_path), key=lambda run: run.raw["pass"]["index"])
    assert [run.raw["pass"]["index"] for run in found] == [0, 1]
    assert [run.raw["generation"]["sampler"] for run in found] == ["EulerDiscreteScheduler", "HeunDiscreteScheduler"]
    assert [(run.sidecar.state, len(run.frames), run.raw["frames"]["kind"]) for run in found] == [("complete", STEPS, "x0")] * 2
    assert {run.sidecar.group_id for run in found} == {rec.group_id}


def test_facts_come_from_the_call_where_the_user_tells_none(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """Seed, size, steps, guidance and the noise at both ends are known without a word; what the user tells counts first."""
    (run,) = recorded_like_plain(record, tmp_path, make_pipe(), lambda: arguments(guidance_scale=4.5), model="tiny", loras=["one"])
    told = run.raw["generation"]
    assert [told[key] for key in ("seed", "sampler", "steps", "cfg", "width", "height")] == [3, "EulerDiscreteScheduler", STEPS, 4.5, SIDE, SIDE]
    assert (told["model"], told["loras"]) == ("tiny", ["one"])
    assert run.raw["pass"]["sigma_first"] == pytest.approx(14.6, abs=0.1)
    assert run.raw["pass"]["sigma_last"] == 0


def test_a_full_disk_costs_frames_and_no_picture(record: Record, make_pipe: MakePipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be written the picture is made all the same, and one line says so."""
    (tmp_path / "file").write_text("")
    pipe = make_pipe()
    plain = latents_of(pipe, **arguments())
    with record(pipe, tmp_path / "file" / "below") as rec:
        hooked = latents_of(pipe, **arguments(), **rec.kwargs)
    assert same(plain, hooked)
    assert rec.folders == []
    assert "not recorded" in caplog.text


# -- pixels


def test_frames_by_the_vae_are_full_size(record: Record, make_pipe: MakePipe, tmp_path: Path) -> None:
    """decode="vae" gives what the pipeline's own decode gives: the last frame is the finished picture."""
    pipe = make_pipe()
    (run,) = recorded_like_plain(record, tmp_path, pipe, arguments, decode="vae")
    assert (run.sidecar.width, run.sidecar.height, run.sidecar.scale, run.raw["frames"]["decode"]) == (SIDE, SIDE, 1, "vae")
    image = pipe(**arguments(output_type="pil")).images[0]
    assert (pixels(run.frames[STEPS - 1]) - pixels(image)).abs().max() <= 1


def test_a_vae_that_fails_is_not_asked_again(record: Record, make_pipe: MakePipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in our own decode: from there on the matrix draws, in the size that the run has."""
    pipe = make_pipe()
    decode, asked = pipe.vae.decode, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        if len(asked) > 2:
            raise torch.OutOfMemoryError("no room")
        return decode(*args, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", failing)
    with record(pipe, tmp_path, decode="vae") as rec:
        latents_of(pipe, **arguments(), **rec.kwargs)
    (run,) = runs(tmp_path)
    assert (len(run.frames), run.raw["frames"]["decode"], run.sidecar.scale) == (STEPS, "latent2rgb", 1)
    assert len(asked) == 3


@pytest.mark.parametrize("decode", ["latent2rgb", "vae"])
def test_half_precision(record: Record, make_pipe: MakePipe, tmp_path: Path, decode: str) -> None:
    """bfloat16, which numpy does not have."""
    import copy

    pipe = copy.deepcopy(make_pipe()).to(torch.bfloat16)
    half = {key: arguments()[key].to(torch.bfloat16) for key in ("prompt_embeds", "negative_prompt_embeds")}
    (run,) = recorded_like_plain(record, tmp_path, pipe, lambda: arguments(**half), decode=decode)
    assert (len(run.frames), run.raw["frames"]["decode"]) == (STEPS, decode)


@pytest.mark.parametrize("decode", ["latent2rgb", "vae"])
def test_what_is_not_a_number_is_grey(record: Record, make_pipe: MakePipe, tmp_path: Path, decode: str) -> None:
    """A model that breaks down in half precision gives NaN; the frames are whole all the same."""
    pipe = make_pipe()
    call = arguments()
    call["prompt_embeds"] = torch.full_like(call["prompt_embeds"], float("nan"))
    (run,) = recorded_like_plain(record, tmp_path, pipe, lambda: call | {"generator": torch.Generator().manual_seed(3)}, decode=decode)
    assert len(run.frames) == STEPS
    assert run.frames[STEPS - 1].getpixel((3, 3)) == (128, 128, 128)
    assert run.raw["frames"]["decode"] == "latent2rgb"


# -- other pipelines


def sdxl(unet: Any, text_encoder: Any) -> tuple[Any, dict[str, Any], str, int]:
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        **{key: value for key, value in unet.config.items() if not key.startswith("_")}
        | {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 32}
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        unet=model,
        vae=make_vae(4, scaling_factor=0.13025),
        text_encoder=text_encoder,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        scheduler=made(diffusers.EulerDiscreteScheduler),
        add_watermarker=False,
    )
    pooled = torch.ones(1, 32)
    return pipe, arguments(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=pooled), "sdxl", 4


def sd3() -> tuple[Any, dict[str, Any], str, int]:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"))
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=make_vae(16, scaling_factor=1.5305, shift_factor=0.0609),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **parts,
    )
    pooled = torch.ones(1, 64)
    return pipe, arguments(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=pooled), "sd3", 16


def flux() -> tuple[Any, dict[str, Any], str, int]:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = diffusers.FluxPipeline(
        transformer=transformer,
        vae=make_vae(16, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **parts,
    )
    call = arguments(pooled_prompt_embeds=torch.ones(1, 32), width=2 * SIDE)
    del call["negative_prompt_embeds"]
    return pipe, call, "flux", 16


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
@pytest.mark.parametrize("decode", ["latent2rgb", "vae"])
def test_pipelines_of_other_families(record: Record, installed: Any, unet: Any, text_encoder: Any, tmp_path: Path, family: str, decode: str) -> None:
    """SDXL, SD3 and Flux, whose latents are packed and here twice as wide as high: x0 in the right colours, and the last frame is the result."""
    pipe, call, family, _ = {"sdxl": lambda: sdxl(unet, text_encoder), "sd3": sd3, "flux": flux}[family]()

    def again() -> dict[str, Any]:
        return call | {"generator": torch.Generator().manual_seed(3)}

    (run,) = recorded_like_plain(record, tmp_path, pipe, again, decode=decode)
    assert run.steps == list(range(1, STEPS + 1))
    assert (run.raw["frames"]["kind"], run.raw["frames"]["decode"]) == ("x0", decode)
    width = call["width"]
    assert (run.raw["generation"]["width"], run.raw["generation"]["height"]) == (width, SIDE)
    assert (run.sidecar.width, run.sidecar.height, run.sidecar.scale) == ((width // 2, SIDE // 2, 2) if decode == "latent2rgb" else (width, SIDE, 1))
    last = pixels(run.frames[STEPS - 1])
    if decode == "vae":
        wanted = pixels(pipe(**again() | {"output_type": "pil"}).images[0])
    else:
        finished = latents_of(pipe, **again())
        if finished.dim() == 3:
            finished = pipe._unpack_latents(finished, SIDE, width, pipe.vae_scale_factor)
        wanted = drawn(installed, family, finished[0])
    assert (last - wanted).abs().max() <= 1


def test_a_pipeline_without_callback_and_without_latents(record: Record, tmp_path: Path) -> None:
    """The old DDIM pipeline paints pixels and calls nobody back: it is recorded from its scheduler alone."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    pipe = diffusers.DDIMPipeline(unet=model, scheduler=diffusers.DDIMScheduler())

    def paint(**more: Any) -> Any:
        return pipe(batch_size=2, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(1), output_type="np", **more).images

    plain = paint()
    with record(pipe, tmp_path, prompt="a cat") as rec:
        assert rec.kwargs == {}
        hooked = paint(**rec.kwargs)
    assert (plain == hooked).all()
    found = runs(tmp_path)
    assert [(run.steps, run.sidecar.scale, run.sidecar.width) for run in found] == [(list(range(1, STEPS + 1)), 1, 16)] * 2
    finished = (torch.tensor(plain[1]) * 255).round().to(torch.int)
    assert (pixels(found[1].frames[STEPS - 1]) - finished).abs().max() <= 1


def test_latents_that_nobody_knows_are_no_frames(record: Record, make_pipe: MakePipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model with latents of another kind is not recorded, with one line that says why; the picture is the same."""
    pipe = Loop("EulerDiscreteScheduler")
    pipe.channels = 7
    plain = pipe()
    with record(pipe, tmp_path) as rec:
        assert same(plain, pipe(**rec.kwargs))
    assert list(tmp_path.iterdir()) == []
    assert len([one for one in caplog.records if "not known to this hook" in one.getMessage()]) == 1


# -- and then


def test_stepwatch_makes_one_animation_of_each_run(record: Record, make_pipe: MakePipe, tmp_path: Path, ffmpeg: str) -> None:
    """A complete run, a batch and an interrupted one, watched: one animation each, the interrupted one marked."""
    pipe = make_pipe()

    def stop(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == 2
        return tensors

    with record(pipe, tmp_path / "steps", prompt="whole", seed=1) as rec:
        pipe(**arguments(), **rec.kwargs)
    with record(pipe, tmp_path / "steps", prompt="many", seed=2) as rec:
        pipe(**arguments(2), **rec.kwargs)
    with record(pipe, tmp_path / "steps", prompt="cut", seed=3, callback_on_step_end=stop) as rec:
        pipe(**arguments(), **rec.kwargs)
    done = subprocess.run(
        [sys.executable, "-m", "stepwatch", "watch", "--once", str(tmp_path / "steps")], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "steps" / "animation").iterdir())
    assert names == ["1-whole.mp4", "2-many-1.mp4", "2-many.mp4", "3-cut-incomplete.mp4"]
