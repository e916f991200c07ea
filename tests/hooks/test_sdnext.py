"""The hook for SD.Next, in a host with exactly its signatures: one run per pass and item, and the picture as without it."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwatch.core.model import Outcome
from tests.hooks import contract
from tests.hooks.sdnext_host import HOOK, Host, Job, Pipeline, running
from tests.hooks.tensors import Tensor
from tests.hooks.test_webui import one_file
from tests.hooks.webui_host import load


class Bench:
    """A host with the hook in it."""

    def __init__(self, host: Host, path: Path = HOOK) -> None:
        self.host = host
        self.hook = load(path)
        host.script = self.hook.StepwatchScript()

    def run(self, args: tuple[Any, ...] = (True,), **facts: Any) -> list[contract.Recorded]:
        """One job, and all runs that there are after it."""
        self.host.process_images(Job(self.host, args, **facts))
        return contract.runs(self.host.home / "outputs")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    host = Host(tmp_path)
    with running(host):
        yield Bench(host)


def test_one_pass_is_one_run_with_a_frame_for_each_step(bench: Bench) -> None:
    """All facts of the picture are in the sidecar, and the frames lie below the host's output folder."""
    (run,) = bench.run(seed=2**64 - 1)
    assert (run.sidecar.state, run.steps) == (Outcome.COMPLETE, [1, 2, 3, 4])
    assert run.folder.is_relative_to(bench.host.home / "outputs" / "stepwatch")
    assert (run.sidecar.steps_planned, run.sidecar.frames_planned, run.sidecar.steps_done) == (4, 4, 4)
    assert (run.sidecar.width, run.sidecar.height, run.sidecar.scale) == (3, 2, 8)
    words = {"prompt": "a cat", "negative": "", "sampler": "Euler a", "model": "toy", "model_hash": "abc", "loras": ()}
    assert run.sidecar.generation == words | {"seed": 2**64 - 1, "steps": 4, "cfg": 6.0, "width": 24, "height": 16, "clip_skip": 1}
    assert run.sidecar.infotext == f"a cat\nSeed: {2**64 - 1}"
    assert run.raw["host"] | {"app": "sdnext", "version": "2026-07-23 058a7f0c"} == run.raw["host"]
    assert run.raw["pass"] == {"index": 0, "name": "base", "sigma_first": 14.6}


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction", None, "v_prediction", "sample", "no sigmas"])
def test_frames_show_what_the_model_takes_the_picture_to_be(bench: Bench, kind: str | None) -> None:
    """By the algebra of each kind of prediction; where there is none, the noisy latents, and the sidecar says so."""
    pipe = Pipeline(bench.host, steps=4, kind="epsilon" if kind == "no sigmas" else kind, sigmas=kind != "no sigmas")
    job = Job(bench.host)
    (run,) = bench.run(pipe=pipe)
    z, wanted = job.noise(), []
    for i in range(4):
        guess = bench.host.guess(z, i)
        if kind == "no sigmas":
            wanted.append(z)
            continue
        sigma, following = pipe.scheduler.sigmas[i], pipe.scheduler.sigmas[i + 1]
        thought, z = pipe.thought(z, guess, sigma), pipe.euler(z, guess, sigma, following)
        wanted.append(z if kind == "sample" else thought)
    assert run.raw["frames"]["kind"] == ("x" if kind in ("sample", "no sigmas") else "x0")
    for index, latents in enumerate(wanted):
        pixel = run.frames[index].getpixel((2, 1))
        assert pixel == pytest.approx([(min(max(latents[0][c].data[5], -1), 1) + 1) * 127.5 for c in range(3)], abs=1)


def test_a_prediction_of_another_shape_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where latents were unpacked and the prediction was not, the latents are shown as they are."""
    state, callback = bench.host.state, bench.host._diffusers_callback

    def packed(*args: Any) -> dict[str, Any]:
        result = callback(*args)
        state.current_noise_pred = state.current_noise_pred[0]
        return result

    monkeypatch.setattr(bench.host.modules["modules.processing_args"], "diffusers_callback", bench.hook.watched(packed))
    (run,) = bench.run()
    assert (run.raw["frames"]["kind"], len(run.frames)) == ("x", 4)


def test_the_picture_is_the_same_bit_for_bit(bench: Bench) -> None:
    """With and without the hook, on and off, in every way to decode, the host's calls and its result are the same."""
    results = []
    for args in (None, (False,), (True,), (True, 2, "TAESD", "WebP"), (True, 1, "Full VAE", "JPEG")):
        bench.host.calls.clear()
        job = Job(bench.host, args or (), batch_size=2, hires=Pipeline(bench.host, steps=3))
        if args is None:
            callback = bench.host.modules["modules.processing_args"].diffusers_callback
            bench.host.modules["modules.processing_args"].diffusers_callback = callback.stepwatch_original
            results.append((bench.host.process_images(job), list(bench.host.calls)))
            bench.host.modules["modules.processing_args"].diffusers_callback = callback
        else:
            results.append((bench.host.process_images(job), list(bench.host.calls)))
    assert all(result == results[0] for result in results)
    assert len(contract.runs(bench.host.home / "outputs")) == 4 * 3


def test_base_hires_refiner_and_detailer_are_passes(bench: Bench) -> None:
    """Each begins where the step starts again or the pipeline is another; all are one group, also the copy of the job that the detailer works on."""
    hires, refiner, detailer = (Pipeline(bench.host, steps=3) for _ in range(3))
    found = bench.run(batch_size=2, hires=hires, refiner=refiner, detailer=detailer)
    names = [(run.raw["pass"]["name"], run.raw["pass"]["index"], run.raw["batch"]["index"], len(run.frames)) for run in found]
    assert names == [
        ("base", 0, 0, 4), ("base", 0, 1, 4), ("hires", 1, 0, 3), ("hires", 1, 1, 3), ("refiner", 2, 0, 3), ("refiner", 3, 1, 3),
        ("detail", 4, 0, 3), ("detail", 4, 1, 3),
    ]  # fmt: skip
    assert all(run.sidecar.state is Outcome.COMPLETE for run in found)
    assert len({run.sidecar.group_id for run in found}) == 1
    assert [run.sidecar.generation["seed"] for run in found] == [100, 101] * 4
    assert (found[2].sidecar.generation["sampler"], found[2].sidecar.generation["denoise"], found[2].sidecar.width) == ("DPM++ 2M", 0.3, 6)
    assert "denoise" not in found[0].sidecar.generation


def test_iterations_of_one_pipeline_are_runs_of_their_own(bench: Bench) -> None:
    """Three times the same pipeline: three runs with their seeds."""
    found = bench.run(n_iter=3)
    assert [run.sidecar.generation["seed"] for run in found] == [100, 101, 102]
    assert [run.raw["batch"]["iteration"] for run in found] == [0, 1, 2]


def test_a_pass_has_ended_when_its_batch_has(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of the first iteration is complete before the second one begins, not only at the end of the job."""
    seen: list[Outcome] = []
    process = bench.host.process_diffusers

    def looking(p: Job) -> list[Tensor]:
        seen.extend(run.sidecar.state for run in contract.runs(bench.host.home / "outputs"))
        return process(p)

    monkeypatch.setattr(bench.host, "process_diffusers", looking)
    bench.run(n_iter=2)
    assert seen == [Outcome.COMPLETE]


def test_one_click_is_one_group(bench: Bench) -> None:
    """The jobs of a grid belong to one task of the browser; from the API, each job is a group."""
    progress = bench.host.modules["modules.progress"]
    for task in ("task(a)", "task(a)", None, None):
        progress.current_task = task
        bench.host.process_images(Job(bench.host))
    groups = [run.sidecar.group_id for run in contract.runs(bench.host.home / "outputs")]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_a_job_that_another_one_calls_for_belongs_to_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script within a job makes jobs of its own: the same group; one that failed before it began does not count."""
    bench.hook.on_after_process(None)
    process = bench.host.process_diffusers

    def calling(p: Job) -> list[Tensor]:
        results = process(p)
        monkeypatch.setattr(bench.host, "process_diffusers", process)
        return results + bench.host.process_images(Job(bench.host))

    monkeypatch.setattr(bench.host, "process_diffusers", calling)
    found = bench.run()
    assert [run.raw["pass"]["index"] for run in found] == [0, 1]
    assert found[0].sidecar.group_id == found[1].sidecar.group_id
    assert bench.run()[-1].sidecar.group_id != found[0].sidecar.group_id


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_a_pass_that_the_user_ends_is_interrupted(bench: Bench, button: str) -> None:
    """The host's exception goes on its way; the frames before the click stay."""
    bench.host.clicks = {2: button}
    (run,) = bench.run()
    assert (run.sidecar.state, run.steps) == (Outcome.INTERRUPTED, [1, 2])


def test_a_pipeline_that_fails_is_not_called_interrupted(bench: Bench) -> None:
    """The host catches the error and sets the flag of the user; the run says that it failed."""
    (run,) = bench.run(fail_at=2)
    assert (run.sidecar.state, run.steps) == (Outcome.FAILED, [1, 2])
    assert "the log of SD.Next says why" in (run.sidecar.error or "")
    assert len(bench.host.errors) == 1


def test_an_error_that_the_host_does_not_catch_is_named(bench: Bench) -> None:
    """What goes on its way through the end of the job is what the run failed of."""
    with pytest.raises(RuntimeError):
        bench.run(fail_at=2, raises=True)
    (run,) = contract.runs(bench.host.home / "outputs")
    assert (run.sidecar.state, run.sidecar.error) == (Outcome.FAILED, "RuntimeError: CUDA out of memory")


def test_ctrl_c_passes_through(bench: Bench) -> None:
    """Whoever ends the server is not held up, and the run is interrupted."""
    bench.host.clicks = {2: "ctrl-c"}
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    (run,) = contract.runs(bench.host.home / "outputs")
    assert run.sidecar.state is Outcome.INTERRUPTED


def test_a_click_after_the_last_step_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that has made all its steps is complete."""
    process = bench.host.process_diffusers

    def clicked(p: Job) -> list[Tensor]:
        results = process(p)
        bench.host.state.interrupted = True
        return results

    monkeypatch.setattr(bench.host, "process_diffusers", clicked)
    (run,) = bench.run()
    assert run.sidecar.state is Outcome.COMPLETE


def test_a_step_without_latents_is_no_frame(bench: Bench) -> None:
    """Pipelines that hand over an image instead keep the latents of an older pass in the host's state."""

    class Pixels(Pipeline):
        def __call__(self, latents: Tensor, callback_on_step_end: Any, *, fail_at: int | None = None) -> Tensor:
            for i in range(3):
                callback_on_step_end(self, i, 0, {"image": object()})
            return latents

    bench.run()
    assert len(bench.run(pipe=Pixels(bench.host, steps=3))) == 1


def test_it_is_off_until_somebody_ticks_it(bench: Bench) -> None:
    """Neither in the tab nor on the settings page: nothing is recorded."""
    assert bench.run(args=(False,)) == []
    assert list(bench.host.home.iterdir()) == []


def test_the_settings_page_serves_where_the_tab_has_no_controls(bench: Bench) -> None:
    """In the Control tab there are no scripts of extensions, so the page alone decides; a tick in a tab that has them goes first."""
    assert list(bench.host.settings) == [f"stepwatch_{key}" for key in bench.hook.DEFAULTS] + ["stepwatch_output"]
    for key, value in {"enabled": True, "every": 3, "format": "WebP", "overrides": "codec: gif"}.items():
        setattr(bench.host.opts, f"stepwatch_{key}", value)
    (run,) = bench.run(scripted=False)
    assert (run.steps, run.sidecar.frame_name, run.sidecar.overrides) == ([1, 4], "{index:05d}.webp", {"outputs": "gif"})
    assert bench.run(args=(True, 2))[-1].steps == [2, 4]
    assert bench.run(args=({"enabled": True, "every": 4},))[-1].steps == [4]


def test_small_passes_can_be_left_out(bench: Bench) -> None:
    """Of a pass of 24x16 and one of 48x32, only the second is at least 32 pixels."""
    (run,) = bench.run(args=(True, 1, "Cheap", "PNG", 32), hires=Pipeline(bench.host, steps=3))
    assert run.raw["pass"]["name"] == "hires"


def test_the_place_of_frames_can_be_chosen(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The host's base folder for images, the settings page above it, the environment above all."""
    bench.host.opts.outdir_samples = str(tmp_path / "images")
    bench.run()
    assert len(contract.runs(tmp_path / "images" / "stepwatch")) == 1
    bench.host.opts.stepwatch_output = str(tmp_path / "chosen")
    bench.run()
    assert len(contract.runs(tmp_path / "chosen")) == 1
    monkeypatch.setenv("STEPWATCH_OUTPUT", str(tmp_path / "environment"))
    bench.run()
    assert len(contract.runs(tmp_path / "environment")) == 1


def test_the_callback_is_wrapped_once_however_often_scripts_are_loaded(bench: Bench) -> None:
    """A reload takes the place of the hook before it, also in modules that are imported later."""
    original = bench.host.modules["modules.processing_args"].diffusers_callback.stepwatch_original
    later = types.ModuleType("modules.ltx.ltx_process")
    later.diffusers_callback = bench.host.modules["modules.processing_callbacks"].diffusers_callback  # type: ignore[attr-defined]
    sys.modules["modules.ltx.ltx_process"] = later
    try:
        again = Bench(bench.host)
    finally:
        del sys.modules["modules.ltx.ltx_process"]
    for module in (bench.host.modules["modules.processing_args"], bench.host.modules["modules.processing_callbacks"], later):
        assert module.diffusers_callback.stepwatch_original is original
    assert len(again.run()) == 1
    assert bench.host.calls == [("Pipeline", step) for step in range(4)]


# --- pixels


def ready_taesd(bench: Bench) -> None:
    folder = bench.host.home / "models" / "TAESD"
    folder.mkdir(parents=True)
    (folder / "taesd_13_decoder_sd.pth").write_bytes(b"weights")


@pytest.mark.parametrize(("way", "said"), [("TAESD", "taesd"), ("Full VAE", "vae")])
def test_better_ways_make_frames_of_full_size(bench: Bench, way: str, said: str) -> None:
    """TAESD and the whole VAE show the picture in its own size, and the sidecar says how."""
    ready_taesd(bench)
    (run,) = bench.run(args=(True, 1, way))
    assert (run.sidecar.width, run.sidecar.height, run.sidecar.scale) == (24, 16, 1)
    assert run.raw["frames"]["decode"] == said


def test_taesd_is_never_downloaded(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Without its file frames are decoded the cheap way, and that is said."""
    (run,) = bench.run(args=(True, 1, "TAESD"))
    assert (run.raw["frames"]["decode"], len(run.frames)) == ("latent2rgb", 4)
    assert bench.host.downloads == []
    assert "has not been downloaded" in caplog.text


def test_a_model_of_a_hub_is_used_only_while_it_is_loaded(bench: Bench) -> None:
    """A hub may be asked for news of what is on the disk already, so only the very last model is taken."""
    taesd = bench.host.modules["modules.vae.sd_vae_taesd"]
    taesd.get_model = lambda kind: (kind, "Hybrid-Tiny SD")
    for last, there in (
        (("sd", "decoder", "Hybrid-Tiny SD"), True),
        (("sd", "decoder", "TAESD 1.3"), False),
        (("sdxl", "decoder", "Hybrid-Tiny SD"), False),
    ):
        taesd.prev_cls, taesd.prev_type, taesd.prev_model = last
        assert bench.hook.taesd_is_there() is there


@pytest.mark.parametrize("answer", [[], "raises"])
def test_a_decoder_that_fails_gives_way_to_the_cheap_one(bench: Bench, answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The VAE says nothing at the third frame: the rest of the run is decoded cheaply, in the size of the first frames."""
    vae = bench.host.modules["modules.processing_vae"]
    decode, calls = vae.full_vae_decode, iter(range(100))

    def failing(latents: Tensor, model: Any) -> Any:
        if next(calls) < 3:
            return decode(latents, model)
        if answer == "raises":
            raise RuntimeError("CUDA out of memory")
        return answer

    vae.full_vae_decode = failing
    (run,) = bench.run(args=(True, 1, "Full VAE"))
    assert (run.steps, run.sidecar.state) == ([1, 2, 3, 4], Outcome.COMPLETE)
    assert {image.size for image in run.frames.values()} == {(24, 16)}
    assert run.raw["frames"]["decode"] == "latent2rgb"
    assert "instead of Full VAE" in caplog.text


def test_latents_that_nobody_can_show_are_no_run(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The cheap way of this host knows latents of four channels only: no frames, and that is said once."""
    assert bench.run(channels=16) == []
    assert caplog.text.count("of 16 channels") == 1


def test_what_is_no_number_is_grey(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that breaks down in half precision is shown, not turned into undefined colours."""
    monkeypatch.setattr(bench.host, "guess", lambda latents, step: latents.map(lambda value: float("nan") if step else value))
    (run,) = bench.run()
    assert run.frames[2].getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("broken", ["predicted", "as_rgb", "item_facts", "Decoder", "output_root", "settings_of", "PipelinePass"])
def test_whatever_breaks_in_the_hook_the_picture_goes_on(bench: Bench, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    """An error in any part of the hook is said, and the host's result is that without the hook."""

    def breaks(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a mistake in the hook")

    setattr(bench.hook, broken, breaks)
    result = bench.host.process_images(Job(bench.host))
    assert result == bench.host.process_images(Job(bench.host, (False,)))
    assert contract.runs(bench.host.home) == []
    assert "a mistake in the hook" in caplog.text


def test_installed_it_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the writer's source in it, the hook records where there is no stepwatch to import."""
    installed = tmp_path / "extensions" / "stepwatch" / "scripts" / "stepwatch.py"
    installed.parent.mkdir(parents=True)
    installed.write_text(one_file(HOOK), encoding="utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] == "stepwatch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stepwatch", None)
    host = Host(tmp_path)
    with running(host):
        host.script = (alone := Bench(host, installed)).host.script
        alone.host.process_images(Job(host, batch_size=2))
    monkeypatch.undo()
    assert len(contract.runs(tmp_path / "outputs")) == 2
