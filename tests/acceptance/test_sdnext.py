"""The hook for SD.Next under a real pipeline of diffusers with tiny random models; the host around it is the fake of tests/hooks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwatch.core.model import Outcome
from tests.hooks import contract
from tests.hooks.sdnext_host import HOOK, Host, Job, running
from tests.hooks.webui_host import load

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="needs the extra `hosts`")
    diffusers = pytest.importorskip("diffusers", reason="needs the extra `hosts`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `hosts`")

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("ignore")]

STEPS = 6


def tiny_pipeline() -> Any:
    """A Stable Diffusion with next to nothing in it, which hands over its prediction as SD.Next has pipelines do."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=8, cross_attention_dim=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        vae=diffusers.AutoencoderKL(
            block_out_channels=[8, 8, 8, 8], norm_num_groups=4, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=100)
        ),
        tokenizer=None, scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe._callback_tensor_inputs = ["latents", "noise_pred"]
    return pipe


class RealJob(Job):
    """``p`` whose pipeline is a real one, called as by `process_base`."""

    def call(self, pipe: Any, callback: Any) -> Any:
        torch.manual_seed(self.seed)
        embeds = torch.randn(self.batch_size, 77, 32)
        asked = {"prompt_embeds": embeds, "negative_prompt_embeds": torch.zeros_like(embeds), "height": 48, "width": 64, "output_type": "latent"}
        handed_over = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", "noise_pred"]}
        return pipe(num_inference_steps=STEPS, **asked, **handed_over).images


class RealHost(Host):
    """The fake with real tensors in it."""

    def _modules(self) -> dict[str, Any]:
        built = super()._modules()
        built["modules.vae.sd_vae_approx"].cheap_approximation = lambda sample: sample[:, :3]
        built["modules.processing_vae"].full_vae_decode = lambda latents, model: model.vae.decode(latents.to(model.vae.dtype), return_dict=False)[0]
        return built

    def _pipeline(self, p: Any, pipe: Any, latents: Any, fail_at: int | None = None) -> Any:
        del latents, fail_at

        def called(_latents: Any, callback: Any, *, fail_at: int | None = None) -> Any:
            return p.call(pipe, callback)

        return super()._pipeline(p, called, None)  # type: ignore[arg-type]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[RealHost]:
    torch.set_num_threads(1)
    made = RealHost(tmp_path)
    with running(made):
        made.hook = load(HOOK)  # type: ignore[attr-defined]
        made.script = made.hook.StepwatchScript()  # type: ignore[attr-defined]
        yield made


def runs(host: Host, **facts: Any) -> tuple[Any, list[contract.Recorded]]:
    result = host.process_images(RealJob(host, **{"batch_size": 2, "pipe": tiny_pipeline(), **facts}))
    assert host.errors == []
    return result, contract.runs(host.home / "outputs")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
        ("DDIMScheduler", {}),
    ],
)
def test_every_scheduler_has_one_frame_for_each_callback(host: RealHost, name: str, options: dict[str, Any]) -> None:
    """A batch of two; and the latents are those without the hook, bit for bit."""
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options)
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler
    plain, none = runs(host, pipe=pipe, args=(False,))
    assert none == []
    calls = len(host.calls)
    hooked, found = runs(host, pipe=pipe)
    assert all(torch.equal(one, other) for one, other in zip(plain, hooked, strict=True))
    assert [(run.sidecar.state, run.sidecar.steps_planned, len(run.frames)) for run in found] == [(Outcome.COMPLETE, calls, calls)] * 2
    assert {run.raw["frames"]["kind"] for run in found} == {"x" if name == "DDIMScheduler" else "x0"}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_is_shown_is_what_the_scheduler_makes_of_it(host: RealHost, kind: str) -> None:
    """Euler tells its own idea of the picture; ours is the same."""
    pipe = tiny_pipeline()
    pipe.scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)
    told: list[Any] = []
    shown: list[Any] = []
    step, predicted = pipe.scheduler.step, host.hook.predicted  # type: ignore[attr-defined]

    def telling(*args: Any, **kwargs: Any) -> Any:
        told.append(step(*args, **{**kwargs, "return_dict": True}).pred_original_sample)
        pipe.scheduler._step_index -= 1
        return step(*args, **kwargs)

    def showing(pipe: Any) -> Any:
        shown.append(predicted(pipe)[0])
        return predicted(pipe)

    pipe.scheduler.step = telling
    host.hook.predicted = showing  # type: ignore[attr-defined]
    runs(host, pipe=pipe)
    assert len(told) == len(shown) == STEPS
    for ours, theirs in zip(shown, told, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=2e-3, rtol=1e-3)


def test_the_whole_vae_shows_the_picture_in_its_size(host: RealHost) -> None:
    """A real decode of a real latent, for each of two items."""
    _, found = runs(host, args=(True, 3, "Full VAE"))
    assert [(run.steps, run.sidecar.width, run.sidecar.height, run.sidecar.scale) for run in found] == [([3, 6], 64, 48, 1)] * 2


def test_an_interrupt_ends_a_real_pipeline(host: RealHost) -> None:
    """The host's exception goes through the pipeline; three steps are there."""
    host.clicks = {3: "interrupted"}
    _, found = runs(host)
    assert [(run.sidecar.state, run.steps) for run in found] == [(Outcome.INTERRUPTED, [1, 2, 3])] * 2
