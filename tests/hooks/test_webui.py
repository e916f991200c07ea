"""The hook for AUTOMATIC1111, Forge and reForge, in hosts with exactly their signatures: one run per pass and item, and the picture as without it."""

from __future__ import annotations

import errno
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwatch.core.model import Outcome
from stepwatch.hooks import writer
from tests.hooks import contract
from tests.hooks.tensors import Tensor
from tests.hooks.webui_host import (
    HOOK,
    Host,
    Img2Img,
    InterruptedException,
    Kind,
    OutOfMemoryError,
    Processing,
    Sampler,
    Scripts,
    Txt2Img,
    adaptive,
    heun,
    load,
    running,
    unipc,
)

KINDS: tuple[Kind, ...] = ("a1111", "forge", "reforge")


class Bench:
    """A host with the hook in it."""

    def __init__(self, host: Host, hook: Any) -> None:
        self.host = host
        self.hook = hook
        self.script = hook.StepwatchScript()
        self.script.args_from, self.script.args_to = 1, 7

    def p(self, kind: type[Processing] = Txt2Img, args: tuple[Any, ...] = (True,), **facts: Any) -> Any:
        """A job; *args* are the values of the hook's controls, behind somebody else's."""
        return kind(self.host, Scripts(self.host, self.script), ("somebody else's", *args), **facts)

    def run(self, kind: type[Processing] = Txt2Img, args: tuple[Any, ...] = (True,), **facts: Any) -> list[contract.Recorded]:
        """One click, and all runs that there are after it."""
        self.host.begin_job()
        self.host.process_images(self.p(kind, args, **facts))
        return self.runs()

    def runs(self) -> list[contract.Recorded]:
        assert self.host.errors == []
        return contract.runs(self.host.home / "outputs")


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    host = Host(request.param, tmp_path)
    with running(host):
        yield Bench(host, load(HOOK))


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Bench]:
    host = Host("forge", tmp_path)
    with running(host):
        yield Bench(host, load(HOOK))


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Bench]:
    """One of the hosts, for what does not differ between them."""
    host = Host("a1111", tmp_path)
    with running(host):
        yield Bench(host, load(HOOK))


def test_one_pass_is_one_run_with_a_frame_for_each_step(bench: Bench) -> None:
    """All facts of the picture are in the sidecar, and the frames lie below the host's output folder."""
    (run,) = bench.run(seed=2**64 - 5)
    assert run.sidecar.state is Outcome.COMPLETE
    assert run.steps == [1, 2, 3, 4]
    assert run.folder.is_relative_to(bench.host.home / "outputs" / "stepwatch")
    assert (run.sidecar.steps_planned, run.sidecar.frames_planned, run.sidecar.steps_done) == (4, 4, 4)
    assert (run.sidecar.width, run.sidecar.height, run.sidecar.scale) == (3, 2, 8)
    words = {"prompt": "a cat <lora:fur:0.8>", "negative": "blurry", "sampler": "Euler", "scheduler": "Karras", "model": "toy", "loras": ("fur",)}
    numbers = {"seed": 2**64 - 5, "steps": 4, "cfg": 7.0, "width": 24, "height": 16, "clip_skip": 1}
    assert run.sidecar.generation == words | numbers
    assert run.sidecar.infotext == f"a cat <lora:fur:0.8>\nSteps: 4, Seed: {2**64 - 5}"
    assert run.raw["host"]["app"] == bench.host.kind
    assert run.raw["host"]["version"] == "v1.10.1"
    assert run.raw["hook"] == {"name": "stepwatch-webui", "version": writer.VERSION}
    assert run.raw["pass"] == {"index": 0, "name": "base", "sigma_first": 14.6}


def test_frames_show_what_the_model_thought(one: Bench) -> None:
    """A pixel is the colour of its latent, from -1 to 1 as from black to white."""
    (run,) = one.run()
    for index, frame in run.frames.items():
        wanted = tuple(round(((c + 1 + 2 + index) % 7 / 7 - 0.4 + 1) * 127.5) for c in range(3))
        assert frame.getpixel((2, 1)) == wanted


@pytest.mark.parametrize(("kind", "func"), [(Txt2Img, heun), (Txt2Img, unipc), (Img2Img, adaptive)])
def test_the_picture_is_the_same_bit_for_bit(bench: Bench, kind: type[Processing], func: Any) -> None:
    """With and without the hook, on and off, in every way to decode, the host's calls and its result are the same."""
    results = []
    for args in (None, (False,), (True,), (True, 2, "TAESD", "WebP"), (True, 1, "Full VAE", "JPEG")):
        bench.host.begin_job()
        bench.host.calls.clear()
        p = bench.p(kind, args or (), func=func, batch_size=2, steps=3, enable_hr=kind is Txt2Img)
        if args is None:
            p.scripts = None
        results.append((bench.host.process_images(p), list(bench.host.calls)))
    assert all(result == results[0] for result in results)
    assert len(results[0][0]) == 2
    assert len(bench.runs()) == (4 if kind is Txt2Img else 2) * 3


def test_a_sampler_of_second_order_has_one_frame_for_each_step(bench: Bench) -> None:
    """Heun asks the model twice in a step, and calls back once."""
    (run,) = bench.run(func=heun)
    assert bench.host.evaluations == 8
    assert run.steps == [1, 2, 3, 4]


def test_a_sampler_that_takes_more_steps_than_planned(one: Bench) -> None:
    """The plan is a hint: every step that was made is there."""
    (run,) = one.run(func=adaptive)
    assert (run.sidecar.steps_planned, run.sidecar.steps_done, len(run.frames)) == (4, 7, 7)
    assert run.sidecar.state is Outcome.COMPLETE


def test_the_last_step_of_unipc_has_its_frame(bench: Bench) -> None:
    """Where the sampler hands over nothing, the host's own latent is shown; it has no sigma to tell."""
    (run,) = bench.run(func=unipc)
    assert run.steps == [1, 2, 3, 4]
    assert run.frames[3] != run.frames[2]
    assert run.raw["pass"]["sigma_first"] is None


def test_batches_are_runs_of_their_own(bench: Bench) -> None:
    """Two iterations of three pictures: six runs with the seed of each, and one group."""
    found = bench.run(batch_size=3, n_iter=2)
    assert sorted(run.sidecar.generation["seed"] for run in found) == [100, 101, 102, 103, 104, 105]  # type: ignore[type-var]
    assert len({run.sidecar.group_id for run in found}) == 1
    by_seed = {run.sidecar.generation["seed"]: run for run in found}
    assert by_seed[104].raw["batch"] == {"index": 1, "size": 3, "iteration": 1, "iterations": 2}
    assert "Seed: 104" in (by_seed[104].sidecar.infotext or "")
    assert by_seed[101].frames[0] != by_seed[102].frames[0]


def test_the_hires_pass_is_a_second_run(bench: Bench) -> None:
    """Another size, its own steps and denoise, the next pass of the same group; Forge, which asks twice before it, is watched once."""
    base, hires = bench.run(enable_hr=True, hr_second_pass_steps=3, denoising_strength=0.4, hr_sampler_name="DPM++ 2M")
    assert (base.raw["pass"]["name"], base.raw["pass"]["index"], base.steps) == ("base", 0, [1, 2, 3, 4])
    assert (hires.raw["pass"]["name"], hires.raw["pass"]["index"], hires.steps) == ("hires", 1, [1, 2, 3])
    assert base.sidecar.group_id == hires.sidecar.group_id
    assert (hires.sidecar.width, hires.sidecar.height) == (6, 4)
    assert {"denoise": 0.4, "sampler": "DPM++ 2M", "width": 48, "height": 32, "steps": 3}.items() <= hires.sidecar.generation.items()
    assert "denoise" not in base.sidecar.generation


def test_img2img_plans_the_steps_that_it_makes(bench: Bench) -> None:
    """Half the strength of ten steps are six, in each of three iterations, which share one sampler."""
    found = bench.run(Img2Img, steps=10, n_iter=3)
    assert [(run.sidecar.steps_planned, len(run.frames), run.raw["pass"]["name"]) for run in found] == [(6, 6, "img2img")] * 3
    assert [run.raw["pass"]["index"] for run in found] == [0, 1, 2]
    assert found[0].sidecar.generation["denoise"] == 0.5


def test_inpainting_says_so(one: Bench) -> None:
    """A mask makes another kind of pass."""
    (run,) = one.run(Img2Img, image_mask=object())
    assert run.raw["pass"]["name"] == "inpaint"


def test_a_refiner_takes_over_within_the_run(bench: Bench) -> None:
    """The model is exchanged in the middle of the pass: that is one run."""
    bench.host.clicks = {2: "refiner"}
    (run,) = bench.run()
    assert run.steps == [1, 2, 3, 4]


def test_all_cells_of_a_grid_are_one_group(bench: Bench) -> None:
    """X/Y/Z makes many jobs of one click, and the next click is another group, even in the same second on another machine."""
    bench.host.begin_job()
    for seed in (1, 2, 3):
        bench.host.process_images(bench.p(seed=seed))
    bench.host.begin_job("20260101120001")
    bench.host.process_images(bench.p(seed=4))
    found = bench.runs()
    assert [run.sidecar.group_id == found[0].sidecar.group_id for run in found] == [True, True, True, False]
    assert [run.raw["pass"]["index"] for run in found] == [0, 1, 2, 0]
    other = load(HOOK)
    assert other.next_in_group()[0] != found[3].sidecar.group_id


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_a_pass_that_the_user_ends_is_interrupted(bench: Bench, button: str) -> None:
    """The host returns what it has; the run says how it ended and keeps its frames, and after a skip the next iteration is complete."""
    bench.host.clicks = {2: button}
    found = bench.run(n_iter=2)
    assert found[0].sidecar.state is Outcome.INTERRUPTED
    assert found[0].steps == [1, 2]
    assert [run.sidecar.state for run in found[1:]] == ([Outcome.COMPLETE] if button == "skipped" else [])


def test_a_click_after_the_last_step_changes_nothing(one: Bench) -> None:
    """A pass that has made all its steps is complete."""
    sampled = Sampler.launch_sampling

    def clicked(self: Sampler, steps: int, func: Any) -> Any:
        result = sampled(self, steps, func)
        self.host.state.interrupted = True
        return result

    Sampler.launch_sampling = clicked  # type: ignore[method-assign]
    try:
        (run,) = one.run()
    finally:
        Sampler.launch_sampling = sampled  # type: ignore[method-assign]
    assert run.sidecar.state is Outcome.COMPLETE


def test_a_pass_that_stops_by_itself_is_complete(one: Bench) -> None:
    """A sampler that is told to stop early ends as if interrupted, but nobody clicked."""
    p = one.p(Img2Img, steps=10)
    one.host.begin_job()
    initialise = p.init

    def init() -> None:
        initialise()
        p.sampler.stop_at = 2

    p.init = init
    one.host.process_images(p)
    (run,) = one.runs()
    assert (run.sidecar.state, run.steps) == (Outcome.COMPLETE, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("what", "raised", "state", "said"),
    [("oom", OutOfMemoryError, Outcome.FAILED, "OutOfMemoryError: CUDA out of memory"), ("ctrl-c", KeyboardInterrupt, Outcome.INTERRUPTED, None)],
)
def test_what_ends_a_pass_reaches_the_host_and_the_run(
    bench: Bench, what: str, raised: type[BaseException], state: Outcome, said: str | None
) -> None:
    """The error goes on its way unchanged; the sampler is left as it was, and the next picture is recorded as ever."""
    bench.host.clicks = {3: what}
    p = bench.p(Img2Img, steps=10)
    bench.host.begin_job()
    with pytest.raises(raised):
        bench.host.process_images(p)
    (run,) = bench.runs()
    assert (run.sidecar.state, run.sidecar.error, run.steps) == (state, said, [1, 2, 3])
    assert not {"launch_sampling", "callback_state"} & vars(p.sampler).keys()
    assert bench.run()[-1].sidecar.state is Outcome.COMPLETE


def test_a_pass_that_ends_before_its_first_step_is_no_run(one: Bench) -> None:
    """Where nothing was made there is nothing to show."""
    one.host.clicks = {0: "interrupted"}
    assert one.run() == []


def test_nothing_is_left_on_any_sampler_or_class(bench: Bench) -> None:
    """After a pass the instance is as it was, and the class is never touched."""
    before = dict(vars(Sampler))
    p = bench.p(Img2Img, n_iter=2)
    bench.host.begin_job()
    bench.host.process_images(p)
    assert dict(vars(Sampler)) == before
    assert vars(p.sampler).keys() == {"host", "func", "stop_at", "last_latent", "p"}


def test_other_extensions_may_stand_on_either_side(one: Bench) -> None:
    """What was there before the hook comes back, what came after it stays; both are called as without it."""
    heard: list[str] = []

    def listening(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def callback_state(d: Any) -> Any:
            heard.append(name)
            return original(d)

        return callback_state

    p = one.p(Img2Img, n_iter=2)
    one.host.begin_job()
    initialise, before_sampling = p.init, p.before_sampling

    def init() -> None:
        initialise()
        p.sampler.callback_state = p.inner = listening("inner", p.sampler.callback_state)

    def before(**kwargs: Any) -> None:
        before_sampling(**kwargs)
        if p.iteration == 1:
            p.sampler.callback_state = p.outer = listening("outer", p.sampler.callback_state)

    p.init, p.before_sampling = init, before
    one.host.process_images(p)
    steps = int(0.5 * 4) + 1
    assert heard == ["inner"] * steps + ["outer", "inner"] * steps
    assert [len(run.frames) for run in one.runs()] == [steps, steps]
    assert p.sampler.callback_state is p.outer
    p.sampler.callback_state({"i": 0})
    assert len(one.runs()) == 2


def test_a_pass_that_was_announced_and_never_came_is_watched_later(one: Bench) -> None:
    """An error between the announcement and the sampling does not double the frames of the next pass of the same sampler."""
    p = one.p(Img2Img)
    one.host.begin_job()
    p.init()
    p.before_sampling(x=None)
    one.script.process_before_every_sampling(p, True, 2)
    p.init = lambda: None
    p.script_args = ("", True, 2)
    one.host.process_images(p)
    (run,) = one.runs()
    assert run.steps == [1, 3]


@pytest.mark.parametrize("args", [(), (False,), ({"enabled": False},)])
def test_it_is_off_until_somebody_ticks_it(bench: Bench, args: tuple[Any, ...]) -> None:
    """Without a tick the hook leaves the sampler alone and makes no folder."""
    p = bench.p(Img2Img, args)
    bench.host.begin_job()
    p.init()
    p.before_sampling(x=None)
    assert not {"launch_sampling", "callback_state"} & vars(p.sampler).keys()
    assert bench.run(args=args) == []
    assert list(bench.host.home.iterdir()) == []


def test_settings_come_from_the_api_too(bench: Bench) -> None:
    """By position as the controls are, or by name; what is not given is as in the controls."""
    bench.run(args=(True, 2, "cheap", "jpeg", 0, "duration: 6s\noutputs: [h264, gif]"))
    bench.run(args=({"enabled": True, "every": 3, "format": "WebP", "overrides": {"timeline": {"fps": 25}}},))
    first, second = bench.runs()
    assert (first.steps, first.sidecar.frame_name) == ([2, 4], "{index:05d}.jpg")
    assert first.sidecar.overrides == {"timeline": {"duration": "6s"}, "outputs": ["h264", "gif"]}
    assert (second.steps, second.sidecar.frame_name) == ([1, 4], "{index:05d}.webp")
    assert second.sidecar.overrides == {"timeline": {"fps": 25}}


def test_what_cannot_be_used_is_said_and_left_out(one: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A policy that cannot be read, and a way to decode that is none, cost themselves and no frame."""
    (run,) = one.run(args=(True, 1, "magic", "PNG", 0, "create: false\nfaster please"))
    assert len(run.frames) == 4
    assert run.sidecar.overrides == {"create": False}
    assert "faster please" in caplog.text
    assert "magic" in caplog.text


def test_small_passes_can_be_left_out(one: Bench) -> None:
    """Of a pass of 24x16 and one of 48x32, only the second is at least 32 pixels."""
    (run,) = one.run(args=(True, 1, "Cheap", "PNG", 32), enable_hr=True)
    assert run.raw["pass"]["name"] == "hires"


# --- pixels


def ready_taesd(bench: Bench) -> None:
    folder = bench.host.home / "models" / "VAE-taesd"
    folder.mkdir(parents=True)
    (folder / "taesd_decoder.pth").write_bytes(b"weights")


@pytest.mark.parametrize(("way", "said"), [("TAESD", "taesd"), ("Full VAE", "vae")])
def test_better_ways_make_frames_of_full_size(bench: Bench, way: str, said: str) -> None:
    """TAESD and the whole VAE show the picture in its own size, and the sidecar says how."""
    ready_taesd(bench)
    (run,) = bench.run(args=(True, 1, way), batch_size=1)
    assert (run.sidecar.width, run.sidecar.height, run.sidecar.scale) == (24, 16, 1)
    assert run.raw["frames"]["decode"] == said
    assert run.frames[0].getpixel((17, 9)) == tuple(round(((c + 1 + 2) % 7 / 7 - 0.4 + 1) * 127.5) for c in range(3))


def test_taesd_is_never_downloaded(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Without its file frames are decoded the cheap way, and that is said."""
    (run,) = bench.run(args=(True, 1, "TAESD"))
    assert run.raw["frames"]["decode"] == "latent2rgb"
    assert (run.sidecar.scale, len(run.frames)) == (8, 4)
    assert bench.host.downloads == []
    assert "has not been downloaded" in caplog.text


def test_a_taesd_that_the_host_has_loaded_is_used(bench: Bench) -> None:
    """Whatever has been loaded for the live preview is there to be used, for the model at work."""
    bench.host.sd_model.is_sdxl = True
    loaded = bench.host.modules["modules.sd_vae_taesd"]
    ready_taesd(bench)
    loaded.sd_vae_taesd_models["taesdxl_decoder.pth"] = loaded.TAESDDecoder(str(bench.host.home / "models" / "VAE-taesd" / "taesd_decoder.pth"))
    (run,) = bench.run(args=(True, 1, "TAESD"))
    assert run.raw["frames"]["decode"] == "taesd"


def test_a_decoder_that_fails_gives_way_to_the_cheap_one(one: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Out of memory at the third frame: the rest of the run is decoded cheaply, in the size of the first frames."""
    decode, calls = one.host.sd_model.decode_first_stage, iter(range(100))

    def failing(latents: Tensor) -> Any:
        if next(calls) >= 2:
            raise OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    one.host.sd_model.decode_first_stage = failing
    (run,) = one.run(args=(True, 1, "Full VAE"))
    assert (run.steps, run.sidecar.state) == ([1, 2, 3, 4], Outcome.COMPLETE)
    assert {image.size for image in run.frames.values()} == {(24, 16)}
    assert (run.raw["frames"]["decode"], run.sidecar.scale) == ("latent2rgb", 1)
    assert "CUDA out of memory" in caplog.text


def test_after_a_click_the_preview_of_the_host_is_not_asked(one: Bench) -> None:
    """A click during a step has the host decode in the way of its live preview; that step's frame has the size of the others all the same."""
    model, common = one.host.model, one.host.modules["modules.sd_samplers_common"]
    decode = common.samples_to_images_tensor

    def clicked(x: Tensor, step: int) -> Tensor:
        denoised = model(x, step)
        one.host.state.interrupted = step == 1
        return denoised

    def asked(sample: Tensor, approximation: int) -> Any:
        assert not one.host.state.interrupted
        return decode(sample, approximation)

    one.host.model, common.samples_to_images_tensor = clicked, asked  # type: ignore[method-assign]
    (run,) = one.run(args=(True, 1, "Full VAE"))
    assert (run.sidecar.state, run.steps) == (Outcome.INTERRUPTED, [1, 2])
    assert {image.size for image in run.frames.values()} == {(24, 16)}


def test_the_whole_vae_never_drives_out_the_model(forge: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Forge makes room for a VAE by unloading the model at work: without room for both, the VAE is not asked."""
    forge.host.free_memory = 10**9
    (run,) = forge.run(args=(True, 1, "Full VAE"))
    assert (run.raw["frames"]["decode"], run.sidecar.scale, len(run.frames)) == ("latent2rgb", 8, 4)
    assert forge.host.unloaded == []
    assert "no room for the VAE" in caplog.text


def test_memory_that_runs_short_later_is_noticed(forge: Bench) -> None:
    """Room is looked for before each frame, for the model may grow."""
    model = forge.host.model

    def growing(x: Tensor, step: int) -> Tensor:
        forge.host.free_memory = 10**12 if step < 2 else 10**9
        return model(x, step)

    forge.host.model = growing  # type: ignore[method-assign]
    (run,) = forge.run(args=(True, 1, "Full VAE"))
    assert {image.size for image in run.frames.values()} == {(24, 16)}
    assert (len(run.frames), run.raw["frames"]["decode"]) == (4, "latent2rgb")
    assert forge.host.unloaded == []


def test_what_is_no_number_is_grey(one: Bench) -> None:
    """A model that breaks down in half precision is shown, not turned into undefined colours."""
    model = one.host.model
    one.host.model = lambda x, step: model(x, step).map(lambda value: float("nan") if step == 1 else value * 1e30)  # type: ignore[method-assign]
    (run,) = one.run()
    assert run.frames[1].getpixel((0, 0)) == (128, 128, 128)
    assert set(run.frames[0].tobytes()) <= {0, 255, 128}


def test_latents_that_nobody_can_show_are_no_run(one: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A host without colours for this model costs the frames, not the picture."""
    one.host.modules["modules.sd_vae_approx"].cheap_approximation = lambda sample: sample[99]
    one.host.begin_job()
    without = one.p()
    without.scripts = None
    wanted = one.host.process_images(without)
    assert one.host.process_images(one.p()) == wanted
    assert one.runs() == []
    assert caplog.text.count("is not recorded any further") == 1


# --- faults


def test_a_full_disk_is_no_affair_of_the_host(one: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends as failed, the picture as ever."""
    written = one.hook.Recording.__init__.__globals__
    replace, seen = written["_replace"], iter(range(100))

    def full(path: str, data: bytes, **options: Any) -> None:
        if path.endswith(".png") and next(seen) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        replace(path, data, **options)

    monkeypatch.setitem(written, "_replace", full)
    (run,) = one.run(steps=6)
    assert (run.sidecar.state, len(run.frames)) == (Outcome.FAILED, 2)
    assert one.host.calls[-1] == "callback 5"


@pytest.mark.parametrize("broken", ["as_rgb", "item_facts", "Decoder", "output_root", "next_in_group", "pass_name"])
def test_whatever_breaks_in_the_hook_the_picture_goes_on(one: Bench, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    """An error in any part of the hook is said once and ends the recording of that pass."""

    def breaks(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a mistake in the hook")

    setattr(one.hook, broken, breaks)
    one.host.begin_job()
    (result,) = one.host.process_images(one.p())
    without = one.p()
    without.scripts = None
    assert [result] == one.host.process_images(without)
    assert one.runs() == []
    assert caplog.text.count("a mistake in the hook") == 1


def test_a_number_of_steps_that_is_none_is_the_business_of_the_host(one: Bench) -> None:
    """What the host gives its own method reaches it as it is; nothing is promised then."""
    one.host.begin_job()
    p = one.p(Img2Img)
    p.all_seeds = p.all_subseeds = [1]
    p.init()
    p.before_sampling(x=None)

    def func() -> str:
        p.sampler.callback_state({"i": 0, "sigma": 1.0, "denoised": p.noise(24, 16)})
        return "the host's own"

    assert p.sampler.launch_sampling(None, func) == "the host's own"
    (run,) = one.runs()
    assert (run.sidecar.steps_planned, run.sidecar.frames_planned, run.steps) == (None, None, [1])


def test_the_place_of_frames_can_be_chosen(one: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The host's settings page has a field for it, and the environment is above that."""
    assert list(one.host.opts.options) == ["stepwatch_output"]
    one.host.opts.stepwatch_output = str(tmp_path / "chosen")
    assert one.run() == []
    assert len(contract.runs(tmp_path / "chosen")) == 1
    monkeypatch.setenv("STEPWATCH_OUTPUT", str(tmp_path / "environment"))
    one.run()
    assert len(contract.runs(tmp_path / "environment")) == 1


def test_the_controls_are_in_the_order_of_the_arguments(one: Bench) -> None:
    """Six controls, all as they are when nobody touches them, and always visible."""
    made: list[tuple[str, Any]] = []

    class Control:
        def __init__(self, label: str, **options: Any) -> None:
            made.append((label, options.get("value")))

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    gradio = types.ModuleType("gradio")
    vars(gradio).update(dict.fromkeys(("Accordion", "Checkbox", "Slider", "Radio", "Number", "Textbox"), Control))
    sys.modules["gradio"] = gradio
    try:
        controls = one.script.ui(False)
    finally:
        del sys.modules["gradio"]
    assert len(controls) == len(one.hook.DEFAULTS)
    assert [value for _, value in made[1:]] == list(one.hook.DEFAULTS.values())
    assert one.script.show(True) is one.host.modules["modules.scripts"].AlwaysVisible
    assert one.script.title() == "stepwatch"


def test_the_exception_of_the_host_itself_is_not_swallowed(one: Bench) -> None:
    """Should a host let its InterruptedException through, the run is interrupted and the host gets its exception."""
    one.host.begin_job()
    p = one.p(Img2Img)
    p.init()
    p.before_sampling(x=None)

    def func() -> Any:
        p.sampler.callback_state({"i": 0, "sigma": 1.0, "denoised": p.noise(24, 16)})
        raise InterruptedException

    launch = Sampler.launch_sampling
    Sampler.launch_sampling = lambda self, steps, func: func()  # type: ignore[method-assign]
    try:
        q = one.p(Img2Img)
        q.init()
        q.before_sampling(x=None)
        p = q
        p.all_seeds = p.all_subseeds = [1]
        with pytest.raises(InterruptedException):
            q.sampler.launch_sampling(3, func)
    finally:
        Sampler.launch_sampling = launch  # type: ignore[method-assign]
    (run,) = one.runs()
    assert (run.sidecar.state, run.steps) == (Outcome.INTERRUPTED, [1])


MARKED = "# --- stepwatch writer: an installed hook has its source here ---\n"
END = "# --- end of the stepwatch writer ---\n"


def one_file(adapter: Path) -> str:
    """An adapter with the writer's source in it, as an installed hook is."""
    before, _, rest = adapter.read_text(encoding="utf-8").partition(MARKED)
    _, _, after = rest.partition(END)
    assert after
    text = (adapter.parents[1] / "writer.py").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith(("from __future__", "__all__"))]
    return before + "".join(lines) + after


def test_installed_it_stands_alone(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the writer's source in it, the hook records where there is no stepwatch to import."""
    installed = tmp_path / "extensions" / "stepwatch" / "scripts" / "stepwatch.py"
    installed.parent.mkdir(parents=True)
    installed.write_text(one_file(HOOK), encoding="utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] == "stepwatch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stepwatch", None)
    alone = Bench(bench.host, load(installed))
    alone.host.begin_job()
    alone.host.process_images(alone.p(batch_size=2))
    monkeypatch.undo()
    assert len(contract.runs(tmp_path / "outputs")) == 2
