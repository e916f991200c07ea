"""The hook for diffusers beside a fake of it: what it records of each kind of call, and that the caller never notices."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import pytest

from stepwatch.core.model import Outcome
from stepwatch.hooks import diffusers as hook
from stepwatch.hooks.diffusers import record
from tests.hooks import contract
from tests.hooks.diffusers_host import HeunScheduler, Latents, LegacyPipeline, SilentScheduler, StableDiffusionPipeline, latents


def recorded(root: Path, pipe: Any, *, call: dict[str, Any] | None = None, **options: Any) -> list[contract.Recorded]:
    """Call a pipeline without the hook and with it: the result is the same, nothing is left on the scheduler, and these are the runs."""
    plain = pipe(**(call or {}))
    with record(pipe, root, **options) as rec:
        assert pipe(**(call or {}), **rec.kwargs) == plain
    assert "step" not in vars(pipe.scheduler)
    found = contract.runs(root)
    assert sorted(str(run.folder) for run in found) == sorted(rec.folders)
    return found


def drawn(values: Latents) -> bytes:
    """What the matrix of Stable Diffusion 1.5 makes of the first item, pixel by pixel."""
    matrix, bias = hook.LATENT_RGB["sd15"][1:]
    pixels = [[values.data[channel * 6 + place] for channel in range(4)] for place in range(6)]
    colours = [sum(pixel[c] * matrix[c][colour] for c in range(4)) + bias[colour] for pixel in pixels for colour in range(3)]
    return bytes(round(min(max(value / 2 + 0.5, 0), 1) * 255) for value in colours)


def test_a_call_is_a_run_with_a_frame_for_each_step(tmp_path: Path) -> None:
    """What the user tells and what the pipeline knows is in the sidecar; frames are as small as the latents."""
    generator = types.SimpleNamespace(initial_seed=lambda: 2**64 - 1)
    (run,) = recorded(tmp_path, StableDiffusionPipeline(), call={"prompt": "a cat", "generator": generator}, negative_prompt="blur", clip_skip=2)
    assert run.sidecar.state is Outcome.COMPLETE
    assert run.steps == [1, 2, 3, 4]
    assert (run.sidecar.steps_planned, run.sidecar.frames_planned, run.sidecar.scale) == (4, 4, 8)
    words = {"prompt": "a cat", "negative": "blur", "sampler": "EulerScheduler", "scheduler": "karras", "model": "tiny"}
    assert run.sidecar.generation == words | {"seed": 2**64 - 1, "steps": 4, "cfg": 7.5, "width": 24, "height": 16, "clip_skip": 2}
    assert run.raw["pass"] == {"index": 0, "name": "base", "sigma_first": 4.0, "sigma_last": 0.0}
    assert (run.raw["host"]["app"], run.raw["hook"]["name"]) == ("diffusers", "diffusers")


def test_frames_show_x0_where_it_is_offered_and_latents_where_not(tmp_path: Path) -> None:
    """The scheduler's own type of result says whether the second of two is a guess; one that keeps it to itself shows its latents."""
    (guessed,) = recorded(tmp_path / "guessed", StableDiffusionPipeline())
    assert guessed.raw["frames"]["kind"] == "x0"
    assert guessed.frames[3].tobytes() == drawn(latents(lambda b, c, y, x: (b + c + y + x + 3) % 7 / 7 - 0.4))
    pipe = StableDiffusionPipeline(SilentScheduler())
    (silent,) = recorded(tmp_path / "silent", pipe)
    assert silent.raw["frames"]["kind"] == "x"
    assert silent.frames[3].tobytes() == drawn(pipe())


def test_two_evaluations_are_one_step(tmp_path: Path) -> None:
    """Seven calls of Heun's kind are four steps; its frames show the second evaluation, and the last step has its frame, too."""
    (run,) = recorded(tmp_path, StableDiffusionPipeline(HeunScheduler()))
    assert run.steps == [1, 2, 3, 4]
    assert run.sidecar.steps_planned == 4
    assert [frame.tobytes() for frame in run.frames.values()].count(drawn(latents(lambda b, c, y, x: (b + c + y + x + 6) % 7 / 7 - 0.4))) == 1


def test_a_batch_of_four_is_four_runs(tmp_path: Path) -> None:
    """Each with its own prompt and seed, in one group."""
    found = recorded(tmp_path, StableDiffusionPipeline(), call={"num_images_per_prompt": 4}, prompt=["a", "b"], seed=[1, 2, 3, 4])
    assert [(run.raw["generation"]["prompt"], run.raw["generation"]["seed"]) for run in found] == [("a", 1), ("a", 2), ("b", 3), ("b", 4)]
    assert len({run.sidecar.group_id for run in found}) == 1
    assert {run.raw["batch"]["size"] for run in found} == {4}


def test_the_users_own_callback_is_called_as_without_the_hook(tmp_path: Path) -> None:
    """It gets the tensors that it asked for and no others, and what it returns counts; an interrupt by it is one."""
    pipe = StableDiffusionPipeline()
    seen: list[tuple[int, list[str]]] = []

    def mine(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((index, list(tensors)))
        pipe._interrupt = index == 1
        return {"latents": latents(lambda *_: 0.25)}

    with record(pipe, tmp_path, callback_on_step_end=mine, callback_on_step_end_tensor_inputs=["prompt_embeds"]) as rec:
        assert pipe(**rec.kwargs) == latents(lambda *_: 0.25)
    assert seen == [(0, ["prompt_embeds"]), (1, ["prompt_embeds"])]
    (run,) = contract.runs(tmp_path)
    assert (run.sidecar.state, run.steps) == (Outcome.INTERRUPTED, [1, 2])


@pytest.mark.parametrize(
    ("error", "state"),
    [(RuntimeError("out of memory"), Outcome.FAILED), (KeyboardInterrupt(), Outcome.INTERRUPTED), (SystemExit(3), Outcome.INTERRUPTED)],
)
def test_a_call_that_fails_leaves_its_steps_and_its_exception(tmp_path: Path, error: BaseException, state: Outcome) -> None:
    """The exception comes through as it was, the run says how it ended, and the scheduler has its own step again."""
    pipe = StableDiffusionPipeline()
    pipe.trouble = {2: error}
    with pytest.raises(type(error)) as raised, record(pipe, tmp_path) as rec:
        pipe(**rec.kwargs)
    assert raised.value is error
    assert "step" not in vars(pipe.scheduler)
    (run,) = contract.runs(tmp_path)
    assert (run.sidecar.state, run.steps) == (state, [1, 2])


def test_a_callback_that_fails_is_the_users_affair(tmp_path: Path) -> None:
    """Its exception is not swallowed."""
    pipe = StableDiffusionPipeline()

    def mine(*_: Any) -> Any:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"), record(pipe, tmp_path, callback_on_step_end=mine) as rec:
        pipe(**rec.kwargs)
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_whose_step_was_replaced_before_keeps_that(tmp_path: Path) -> None:
    """Somebody else's wrapper on the instance is called, and is there afterwards; so is one that comes in between."""
    pipe = StableDiffusionPipeline()
    original, calls = pipe.scheduler.step, []

    def theirs(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return original(*arguments, **named)

    pipe.scheduler.step = theirs  # type: ignore[method-assign]
    with record(pipe, tmp_path) as rec:
        pipe(**rec.kwargs)
    assert pipe.scheduler.step is theirs
    assert len(calls) == 4
    with record(pipe, tmp_path) as rec:
        pipe.scheduler.step = original  # type: ignore[method-assign]
        inner = pipe.scheduler.step
    assert pipe.scheduler.step is inner


def test_two_calls_are_two_passes_of_one_group(tmp_path: Path) -> None:
    """Also when the second has another scheduler."""
    pipe = StableDiffusionPipeline()
    with record(pipe, tmp_path) as rec:
        pipe(**rec.kwargs)
        pipe.scheduler = HeunScheduler()
        pipe(**rec.kwargs)
    found = sorted(contract.runs(tmp_path), key=lambda run: run.raw["pass"]["index"])
    assert [(run.raw["pass"]["index"], run.raw["generation"]["sampler"], len(run.frames)) for run in found] == [
        (0, "EulerScheduler", 4),
        (1, "HeunScheduler", 4),
    ]
    assert {run.sidecar.group_id for run in found} == {rec.group_id}


def test_a_pipeline_without_callbacks_is_recorded_from_its_scheduler(tmp_path: Path) -> None:
    """There is nothing to hand to the call, and every step has its frame."""
    pipe = LegacyPipeline()
    with record(pipe, tmp_path) as rec:
        assert rec.kwargs == {}
        pipe(**rec.kwargs)
    (run,) = contract.runs(tmp_path)
    assert (run.sidecar.state, run.steps) == (Outcome.COMPLETE, [1, 2, 3, 4])


def test_a_vae_that_fails_is_not_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The matrix draws instead, enlarged to the size of the run."""
    (run,) = recorded(tmp_path, StableDiffusionPipeline(), decode="vae")
    assert (run.sidecar.scale, run.sidecar.width, run.raw["frames"]["decode"]) == (1, 24, "latent2rgb")
    assert len([one for one in caplog.records if "without the VAE" in one.getMessage()]) == 1


def test_nothing_of_ours_reaches_the_host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Latents that nobody knows, a folder that cannot be made and a pipeline like none give the picture, a line in the log, and no run."""
    pipe = StableDiffusionPipeline()
    pipe.vae.config.scaling_factor = 0.5
    type(pipe).__name__ = "OtherPipeline"
    try:
        assert recorded(tmp_path / "unknown", pipe) == []
    finally:
        type(pipe).__name__ = "StableDiffusionPipeline"
    (tmp_path / "file").write_text("")
    assert recorded(tmp_path / "file" / "below", StableDiffusionPipeline()) == []
    with record(object(), tmp_path) as rec:
        assert rec.kwargs == {}
    assert caplog.text.count("not recorded") == 3
    assert not (tmp_path / "unknown").exists()


@pytest.mark.parametrize(
    "facts", [{"seed": "many"}, {"seed": -1}, {"seed": 2**64}, {"cfg": object()}, {"width": "wide"}, {"model": Path("m"), "loras": 3}]
)
def test_odd_facts_are_left_out_or_made_plain(tmp_path: Path, facts: dict[str, Any]) -> None:
    """Whatever a user tells, the sidecar is one that stepwatch reads without a complaint."""
    (run,) = recorded(tmp_path, StableDiffusionPipeline(), **facts)
    for key in facts:
        assert run.raw["generation"].get(key) == ("m" if key == "model" else None)


def test_packed_latents_are_unpacked_by_the_pipelines_own_rule(tmp_path: Path) -> None:
    """Flux packs four pixels into one row of numbers; its call knows the size, and it the rule."""

    class FluxPipeline(StableDiffusionPipeline):
        vae_scale_factor = 8
        num_timesteps = 2

        def __call__(self, *, height: int = 32, width: int = 48, callback_on_step_end: Any = None, **_: Any) -> Any:  # type: ignore[override]
            self.scheduler.set_timesteps(2)
            x = packed(0.5)
            for index, t in enumerate(self.scheduler.timesteps):
                x = self.scheduler.step(packed(0.1), t, x, return_dict=False)[0]
                if callback_on_step_end is not None:
                    callback_on_step_end(self, index, t, {"latents": x})
            return x

        def _unpack_latents(self, latents: Any, height: int, width: int, factor: int) -> Latents:
            assert (latents.shape, height, width, factor) == ((1, 6, 64), 32, 48, 8)
            return Latents((1, 16, 4, 6), latents.data)

    def packed(value: float) -> Latents:
        return Latents((1, 6, 64), [value] * 384)

    pipe = FluxPipeline()
    pipe.vae.config.scaling_factor = 0.3611
    (run,) = recorded(tmp_path, pipe)
    assert (run.sidecar.width, run.sidecar.height, run.raw["generation"]["width"], len(run.frames)) == (6, 4, 48, 2)
    _, matrix, bias = hook.LATENT_RGB["flux"]
    wanted = tuple(round((sum(0.1 * row[colour] for row in matrix) + bias[colour]) * 127.5 + 127.5) for colour in range(3))
    assert run.frames[0].getpixel((0, 0)) == wanted


def test_frames_lie_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder is one of the program's."""
    monkeypatch.chdir(tmp_path)
    with record(StableDiffusionPipeline(), "steps") as rec:
        rec._pipe(**rec.kwargs)
    assert os.path.dirname(os.path.dirname(rec.folders[0])) == str(tmp_path / "steps")
