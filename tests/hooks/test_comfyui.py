"""The ComfyUI hook beside a fake of the host: what it records of each kind of pass, and that the host never notices."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.model import Outcome
from stepwatch.hooks import comfyui as hook
from stepwatch.hooks import writer
from tests.hooks import contract
from tests.hooks import fake_comfyui as fake
from tests.hooks.fake_comfyui import KSAMPLER, Server

PLACE = Path(hook.__file__).parent
SHAPE = (1, 4, 2, 3)
NODES: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "lora_name": "ink.safetensors", "strength_model": 0.8}},
    "7": {"class_type": "Stepwatch", "inputs": {"model": ["2", 0]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a disc", "clip": ["1", 1]}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0], "clip": ["1", 1]}},
    "9": {"class_type": "PrimitiveString", "inputs": {"value": "a square"}},
    "3": {
        "class_type": "KSampler",
        "inputs": {"model": ["7", 0], "positive": ["4", 0], "negative": ["5", 0], "seed": 5, "steps": 8, "cfg": 7.5}
        | {"sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0},
    },
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(hook, "_said", set())
    monkeypatch.setattr(hook, "_passes", type(hook._passes)())
    monkeypatch.setattr(hook, "_taesds", {})
    monkeypatch.delenv("STEPWATCH_ALL", raising=False)
    return Server(tmp_path, lambda name, module: monkeypatch.setitem(sys.modules, name, module))


def node(model: Any = None, **inputs: Any) -> Any:
    """The MODEL that comes out of our node."""
    given: dict[str, Any] = {"enabled": True, "every": 1, "format": "png", "decode": "latent2rgb"}
    (out,) = hook.Stepwatch().record(model=model or fake.model(), **given | inputs)
    return out


def grey(step: int) -> Any:
    return fake.pure(SHAPE, step / 10)


def sample(
    server: Server,
    model: Any,
    x0: Callable[[int], Any] = grey,
    *,
    steps: int = 4,
    shape: tuple[int, ...] = SHAPE,
    noise: float = 1.0,
    latent: float = 0.0,
    first: float = 14.6,
    callback: Any = lambda *_: None,
    sampler: KSAMPLER | None = None,
    mask: Any = None,
    seed: Any = 5,
    guider: Any = None,
    **newer: Any,
) -> Any:
    """Run one pass through a model, as the sampler's node does."""
    chosen = guider or sys.modules["comfy.samplers"].CFGGuider(model)
    chosen.newer = bool(newer)
    loop = sampler or KSAMPLER(x0)
    arguments = (fake.full(shape, noise), fake.full(shape, latent), loop, fake.sigmas(steps, first), mask, callback, False, seed)
    return chosen.sample(*arguments, **newer)


def recorded(server: Server) -> list[contract.Recorded]:
    found = contract.runs(server.output / "stepwatch")
    return sorted(found, key=lambda run: (run.raw["pass"]["index"], run.raw["batch"]["index"]))


def only(server: Server) -> contract.Recorded:
    (run,) = recorded(server)
    return run


# --- what is recorded


def test_a_pass_is_recorded_step_by_step_with_what_is_known_of_it(server: Server) -> None:
    """One frame for each callback, made from x0; the facts come from the sampler's arguments and from the workflow around it."""
    with server.prompt(NODES, extra={"extra_pnginfo": {"workflow": {"nodes": [1]}}}) as prompt:
        sample(server, node(policy="duration: 3s"))
    run = only(server)
    assert run.sidecar.state is Outcome.COMPLETE
    # Red is (step / 10 + 1) / 2 of 255.
    assert [run.frames[index].getpixel((0, 0)) for index in range(4)] == [(128, 128, 128), (140, 128, 128), (153, 128, 128), (166, 128, 128)]
    assert [image.size for image in run.frames.values()] == [(3, 2)] * 4
    assert (run.sidecar.scale, run.sidecar.frames_planned, run.sidecar.group_id) == (8, 4, prompt)
    assert run.sidecar.generation == {
        "prompt": "a disc", "negative": "a square", "seed": 5, "sampler": "dpmpp_2m", "scheduler": "karras", "steps": 8, "cfg": 7.5, "denoise": 1.0,
        "width": 24, "height": 16, "model": "sd15.safetensors", "loras": ({"name": "ink.safetensors", "strength": 0.8},),
    }  # fmt: skip
    assert run.raw["host"] == {"app": "comfyui", "version": "0.3.64", "prompt_id": prompt, "node_id": "3", "list_index": None}
    assert run.raw["pass"] == {"index": 0, "name": "base", "sigma_first": 14.6, "sigma_last": 0.0}
    assert run.sidecar.overrides == {"timeline": {"duration": "3s"}}
    assert json.loads((run.folder / "workflow.json").read_text()) == {"prompt": NODES, "workflow": {"nodes": [1]}}


def test_login_tokens_are_written_nowhere(server: Server) -> None:
    """Beside the workflow the queue holds what belongs to nobody else."""
    with server.prompt(NODES, extra={"auth_token_comfy_org": "SECRET", "api_key_comfy_org": "SECRET", "client_id": "SECRET"}):
        sample(server, node())
    assert only(server).sidecar.state is Outcome.COMPLETE
    assert not [path for path in server.output.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]


def test_a_host_that_keeps_prompts_out_of_files_is_heeded(server: Server) -> None:
    """With --disable-metadata there is neither a workflow nor a text; the rest is as ever."""
    server.arguments.disable_metadata = True
    with server.prompt(NODES):
        sample(server, node())
    run = only(server)
    assert (run.sidecar.workflow_file, (run.folder / "workflow.json").exists()) == (None, False)
    assert not {"prompt", "negative"} & run.sidecar.generation.keys()
    assert run.sidecar.generation["model"] == "sd15.safetensors"


def test_each_item_of_a_batch_has_its_own_folder(server: Server) -> None:
    """Four folders of one group, each with its own item's pictures."""
    with server.prompt(NODES):
        sample(server, node(), lambda _: fake.pure((4, *SHAPE[1:]), -1.0, -0.5, 0.5, 1.0), shape=(4, *SHAPE[1:]))
    runs = recorded(server)
    assert [run.frames[3].getpixel((2, 1)) for run in runs] == [(0, 128, 128), (64, 128, 128), (191, 128, 128), (255, 128, 128)]
    assert [run.raw["batch"] for run in runs] == [{"index": index, "size": 4} for index in range(4)]
    assert len({run.sidecar.group_id for run in runs}) == 1


@pytest.mark.parametrize(
    ("passes", "names"),
    [
        ([{}], ["base"]),
        ([{"latent": 1.0, "first": 3.0}], ["img2img"]),
        ([{"mask": object()}], ["inpaint"]),
        ([{}, {"latent": 1.0, "first": 3.0, "shape": (1, 4, 4, 6)}], ["base", "hires"]),
        ([{}, {"latent": 1.0, "first": 3.0, "noise": 0.0}], ["base", "base"]),
        ([{}, {"latent": 1.0, "first": 3.0, "noise": 0.0, "other": True}], ["base", "refiner"]),
    ],
)
def test_the_passes_of_a_prompt_are_numbered_and_named(server: Server, passes: list[dict[str, Any]], names: list[str]) -> None:
    """Each sampler is a run of its own; where it begins, and with what, tells what kind it is."""
    model = node()
    with server.prompt(NODES):
        for settings in passes:
            latents = fake.pure(settings.get("shape", SHAPE), 0.0)
            sample(server, node() if settings.pop("other", False) else model, [latents].__getitem__, steps=1, **settings)
    runs = recorded(server)
    assert [(run.raw["pass"]["index"], run.raw["pass"]["name"]) for run in runs] == list(enumerate(names))
    assert len({run.sidecar.group_id for run in runs}) == 1


def test_a_pass_begins_where_the_models_own_sigmas_begin(server: Server) -> None:
    """A node has given the model other sigmas: 100 is its first one, so a pass that begins at 14.6 on a filled latent is no whole one."""
    model = fake.model()
    model.object_patches["model_sampling"] = types.SimpleNamespace(sigma_max=100.0)
    with server.prompt(NODES):
        sample(server, node(model), latent=1.0)
    assert only(server).raw["pass"]["name"] == "img2img"


def test_a_list_makes_a_run_for_each_of_its_elements(server: Server) -> None:
    """The host calls one node several times in one prompt."""
    model = node()
    for index in range(2):
        with server.prompt(NODES, list_index=index):
            sample(server, model)
    assert [run.raw["host"]["list_index"] for run in contract.runs(server.output / "stepwatch")] == [0, 1]


def test_a_cached_node_records_the_prompt_that_is_running(server: Server) -> None:
    """Facts are those of the queue when the pass begins: our node ran once, for another seed and another text."""
    model = node()
    with server.prompt(NODES):
        sample(server, model, seed=1)
    later = NODES | {"4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}}}
    with server.prompt(later):
        sample(server, model, seed=2)
    told = {(run.sidecar.generation["seed"], run.sidecar.generation["prompt"]) for run in recorded(server)}
    assert told == {(1, "a disc"), (2, "a cat")}


def test_without_a_workflow_the_arguments_tell(server: Server) -> None:
    """A pass outside of any prompt, or at a node that is not in it, still has the sampler's name, the seed and the size."""
    with server.prompt({}, node="12.0.3"):
        sample(server, node(), seed=2**64 - 1, sampler=KSAMPLER(grey, name="sample_heun"))
    sample(server, node(), seed=None, sampler=KSAMPLER(grey, name="own"))
    told = [(run.sidecar.generation.get("seed"), run.sidecar.generation["sampler"], run.sidecar.workflow_file) for run in recorded(server)]
    assert sorted(told, key=str) == [(2**64 - 1, "heun", "workflow.json"), (None, "own", None)]


def test_a_sampler_with_its_own_count_promises_nothing(server: Server) -> None:
    """dpm_fast calls back three times for eight sigmas; its run is complete all the same."""
    with server.prompt({}):
        sample(server, node(), sampler=KSAMPLER(grey, name="dpm_fast_function", steps=3), steps=8)
    run = only(server)
    assert (run.sidecar.frames_planned, run.sidecar.steps_planned, len(run.frames), run.sidecar.state) == (None, None, 3, Outcome.COMPLETE)


def test_every_third_step_with_the_last_one_among_them(server: Server) -> None:
    """Eight steps, every third: 2, 5 and 8."""
    with server.prompt(NODES):
        sample(server, node(every=3), steps=8)
    assert only(server).steps == [2, 5, 8]


@pytest.mark.parametrize(("chosen", "name"), [("png", "00003.png"), ("jpeg", "00003.jpg"), ("webp", "00003.webp")])
def test_frames_are_saved_in_the_chosen_format(server: Server, chosen: str, name: str) -> None:
    """The node offers three."""
    with server.prompt(NODES):
        sample(server, node(format=chosen))
    assert (only(server).folder / name).exists()


# --- latents of all kinds


class Wan(fake.SD15):
    """Video: one more dimension."""

    latent_dimensions = 3
    spacial_downscale_ratio = 16

    def __init__(self) -> None:
        super().__init__()
        self.latent_rgb_factors_bias = [0.0, 0.5, 0.0]


class Flux2(fake.SD15):
    """Latents that the matrix wants in another shape."""

    spacial_downscale_ratio = 16

    @staticmethod
    def latent_rgb_factors_reshape(latents: fake.Tensor) -> fake.Tensor:
        items, _channels, height, width = latents.shape
        return fake.Tensor((items, 4, height * 2, width * 2), latents.data[: items * 16 * height * width])


def test_a_video_is_shown_by_its_middle_frame(server: Server) -> None:
    """Of five dimensions the third is time; the bias of the format counts, and a latent is 16 pixels wide."""
    shape = (1, 4, 3, 2, 3)
    x0 = fake.Tensor(shape, [1.0 if place // 6 % 3 == 1 and place < 18 else 0.0 for place in range(72)])
    with server.prompt(NODES):
        sample(server, node(fake.model(Wan())), lambda _: x0, shape=shape)
    run = only(server)
    assert run.frames[0].getpixel((0, 0)) == (255, 191, 128)
    assert (run.sidecar.scale, run.sidecar.generation["width"]) == (16, 48)


@pytest.mark.parametrize("nested", [False, True])
def test_of_a_picture_with_sound_the_picture_is_shown(server: Server, nested: bool) -> None:  # noqa: FBT001  # a parameter
    """Newer hosts pack several latents into one row and say their shapes, or hand them over nested."""
    shapes = [(2, 4, 2, 3), (2, 1, 7)]
    picture, sound = fake.pure(shapes[0], 1.0, -1.0), fake.full(shapes[1], 9.0)
    rows = [number for item in range(2) for part in (picture, sound) for number in part[item].data]
    packed = fake.Tensor((2, 1, 31), rows)
    with server.prompt(NODES):
        sample(server, node(), lambda _: fake.Nested([picture, sound]) if nested else packed, shape=packed.shape, latent_shapes=shapes)
    assert [run.frames[0].getpixel((1, 1)) for run in recorded(server)] == [(255, 128, 128), (0, 128, 128)]


def test_a_format_may_reshape_its_latents(server: Server) -> None:
    """The frame is twice as large then, and is enlarged half as much."""
    with server.prompt(NODES):
        sample(server, node(fake.model(Flux2())), lambda _: fake.pure((1, 16, 2, 3), 0.0), shape=(1, 16, 2, 3))
    run = only(server)
    assert (run.frames[0].size, run.sidecar.scale, run.sidecar.generation["width"]) == ((6, 4), 8, 48)


@pytest.mark.parametrize(("shape", "factors"), [((1, 4, 9), "its own"), ((1, 4, 2, 3), None), ((1, 8, 2, 3), "its own")])
def test_latents_that_cannot_be_shown_are_not_recorded(server: Server, caplog: pytest.LogCaptureFixture, shape: Any, factors: Any) -> None:
    """Sound, a format without a matrix, other channels than the matrix has rows: one sentence, however many passes, and no folder."""
    latents = fake.SD15()
    if factors is None:
        latents.latent_rgb_factors = None
    model = node(fake.model(latents))
    for _ in range(2):
        with server.prompt(NODES):
            sampler = KSAMPLER(lambda _: fake.full(shape, 0.0))
            assert sample(server, model, sampler=sampler, shape=shape) is sampler.result
    assert not server.output.exists()
    assert len([line for line in caplog.messages if "cannot be shown" in line]) == 1


def test_numbers_that_are_none_have_a_colour(server: Server) -> None:
    """NaN is grey; what is infinite is as bright or dark as can be."""
    with server.prompt(NODES):
        sample(server, node(), lambda step: fake.pure(SHAPE, [float("nan"), float("inf"), float("-inf"), 7.0][step]))
    # The product of the matrix and an infinity is no number in the channels where the factor is 0.
    assert [only(server).frames[step].getpixel((0, 0))[0] for step in range(4)] == [128, 255, 0, 255]  # type: ignore[index]


# --- other decoders


def test_taesd_decodes_each_item_in_full_size(server: Server) -> None:
    """Item by item, with the decoder of the format, which is loaded once."""
    server.vae_approx = ["other.pth", "taesd_decoder.pth"]
    for _ in range(2):
        with server.prompt(NODES):
            sample(server, node(decode="taesd"), lambda _: fake.pure((2, *SHAPE[1:]), 0.0), shape=(2, *SHAPE[1:]), steps=2)
    for run in recorded(server):
        assert (run.frames[1].size, run.sidecar.scale, run.raw["frames"]["decode"]) == ((24, 16), 1, "taesd")
        assert run.frames[1].getpixel((0, 0)) == (255, 255, 255)
    assert len(server.decoded) == 8
    assert [key[0] for key in hook._taesds] == ["/vae_approx/taesd_decoder.pth"]


def test_without_its_file_taesd_gives_way_to_the_matrix(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is downloaded; a sentence names the file."""
    with server.prompt(NODES):
        sample(server, node(decode="taesd"))
    assert only(server).raw["frames"]["decode"] == "latent2rgb"
    assert "taesd_decoder" in caplog.text


@pytest.mark.parametrize(("latents", "shape"), [(None, SHAPE), (Wan(), (1, 4, 5, 2, 3))])
def test_the_vae_decodes_in_full_size(server: Server, latents: Any, shape: tuple[int, ...]) -> None:
    """Of a video one frame only, for the whole would take the memory of the whole."""
    ratio = 16 if latents else 8
    with server.prompt(NODES):
        sample(server, node(fake.model(latents), decode="vae", vae=fake.VAE(ratio=ratio)), lambda _: fake.pure(shape, 0.0), shape=shape)
    run = only(server)
    assert (run.frames[0].size, run.sidecar.scale, run.raw["frames"]["decode"]) == ((3 * ratio, 2 * ratio), 1, "vae")
    assert run.frames[0].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("trouble", [fake.OutOfMemoryError("full"), "no room", "no vae"])
def test_where_the_vae_cannot_the_matrix_does_in_the_promised_size(server: Server, caplog: pytest.LogCaptureFixture, trouble: Any) -> None:
    """Out of memory, or no room for it beside the model that is sampling: one sentence, and every step has its frame."""
    vae = None if trouble == "no vae" else fake.VAE(trouble if isinstance(trouble, Exception) else None)
    server.free_memory = 1000 if trouble == "no room" else 1e12
    with server.prompt(NODES):
        sample(server, node(decode="vae", vae=vae), lambda _: fake.pure(SHAPE, 1.0))
    run = only(server)
    assert (len(run.frames), run.sidecar.lost, run.raw["frames"]["decode"]) == (4, (), "latent2rgb")
    assert {image.size for image in run.frames.values()} == {(3, 2) if vae is None else (24, 16)}
    assert run.frames[2].getpixel((0, 0)) == (255, 128, 128)
    assert len([line for line in caplog.messages if "latent2rgb" in line]) == 1


def test_an_interrupt_that_comes_while_we_decode_is_the_hosts(server: Server) -> None:
    """The host raises it once only; swallowed here, the user's click would be lost."""
    with server.prompt(NODES), pytest.raises(fake.InterruptProcessingException):
        sample(server, node(decode="vae", vae=fake.VAE(fake.InterruptProcessingException())))
    assert only(server).sidecar.state is Outcome.INTERRUPTED


# --- the host does not notice


def test_the_hosts_callback_is_called_and_its_answers_kept(server: Server) -> None:
    """With the same objects, with whatever a newer host adds; the result is the sampler's own object."""
    seen: list[tuple[Any, ...]] = []

    def hosts(step: int, x0: Any, x: Any, total: int) -> str:
        seen.append((step, x0, x, total))
        return f"answer {step}"

    pictures = [grey(step) for step in range(4)]
    sampler = KSAMPLER(lambda step: pictures[step])
    with server.prompt(NODES):
        assert sample(server, node(), sampler=sampler, callback=hosts, latent_shapes=[SHAPE]) is sampler.result
    assert sampler.answers == ["answer 0", "answer 1", "answer 2", "answer 3"]
    assert [(step, total) for step, _, _, total in seen] == [(step, 4) for step in range(4)]
    assert all(x0 is pictures[step] for step, x0, _, _ in seen)


def test_a_host_without_a_callback_is_recorded_too(server: Server) -> None:
    """Some nodes pass none."""
    with server.prompt(NODES):
        sample(server, node(), callback=None)
    assert len(only(server).frames) == 4


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (fake.InterruptProcessingException(), Outcome.INTERRUPTED),
        (KeyboardInterrupt(), Outcome.INTERRUPTED),
        (fake.OutOfMemoryError("no memory left"), Outcome.FAILED),
        (ValueError("a shape"), Outcome.FAILED),
    ],
)
def test_what_ends_a_pass_early_is_passed_on_and_recorded(server: Server, fault: BaseException, state: Outcome) -> None:
    """The host gets the same exception; the run says how it ended, and the step at which it was stopped has its frame."""

    def hosts(step: int, *_: Any) -> None:
        if step == 2:
            raise fault

    with server.prompt(NODES), pytest.raises(type(fault)) as raised:
        sample(server, node(), callback=hosts)
    assert raised.value is fault
    run = only(server)
    assert (run.sidecar.state, len(run.frames)) == (state, 3)
    assert run.sidecar.error == (f"{type(fault).__name__}: {fault}" if state is Outcome.FAILED else None)


def test_a_failure_before_the_first_step_is_recorded_as_such(server: Server) -> None:
    """The model did not fit: nothing to see, but no run that would wait for frames for ever."""

    def fail(step: int) -> None:
        raise fake.OutOfMemoryError("the model does not fit")

    with server.prompt(NODES), pytest.raises(fake.OutOfMemoryError):
        sample(server, node(), sampler=KSAMPLER(grey, before=fail))
    assert only(server).sidecar.state is Outcome.FAILED


def test_a_step_that_cannot_be_shown_is_a_hole(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A tensor of another kind at one step: the frame is on record as lost, the steps after it are there, the host goes on."""
    with server.prompt(NODES):
        sampler = KSAMPLER(lambda step: object() if step == 1 else grey(step))
        assert sample(server, node(), sampler=sampler) is sampler.result
    run = only(server)
    assert (sorted(run.frames), run.sidecar.lost) == ([0, 2, 3], (1,))
    assert "a step has no frame" in caplog.text


@pytest.mark.parametrize("missing", ["server", "comfy_execution.utils", "comfyui_version", "queue", "output", "model"])
def test_a_host_that_is_built_otherwise_still_samples(server: Server, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Whatever is not where we look for it, the result is the sampler's, and what can be recorded is."""
    model = node()
    if missing == "queue":
        monkeypatch.setattr(sys.modules["server"].PromptServer.instance, "prompt_queue", None)
    elif missing == "output":
        monkeypatch.delattr(sys.modules["folder_paths"], "get_output_directory")
    elif missing == "model":
        model.model = None
    else:
        monkeypatch.setitem(sys.modules, missing, None)
    with server.prompt(NODES):
        sampler = KSAMPLER(grey)
        assert sample(server, model, sampler=sampler) is sampler.result
    assert len(recorded(server)) == (missing not in ("output", "model"))


def test_an_older_host_tells_prompt_and_node_at_its_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there was an execution context, the server knew what it was working on; its queue is copied to be read."""
    monkeypatch.setitem(sys.modules, "comfy_execution.utils", types.ModuleType("comfy_execution.utils"))
    monkeypatch.delattr(fake.PromptQueue, "get_current_queue_volatile")
    instance = sys.modules["server"].PromptServer.instance
    with server.prompt(NODES) as prompt:
        instance.last_prompt_id, instance.last_node_id = prompt, "3"
        sample(server, node())
    run = only(server)
    assert (run.sidecar.group_id, run.raw["host"]["node_id"], run.sidecar.generation["scheduler"]) == (prompt, "3", "karras")


def test_a_model_that_cannot_be_wrapped_is_passed_through(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A host from before there were wrappers: the node does nothing, and says so."""
    model = object()
    assert node(model) is model
    assert "nothing is recorded" in caplog.text


def test_a_disk_that_cannot_be_written_stops_the_recording_and_nothing_else(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A file stands where the folder would be."""
    server.output.write_text("in the way")
    with server.prompt(NODES):
        sampler = KSAMPLER(grey)
        assert sample(server, node(), sampler=sampler) is sampler.result
    assert "is not recorded" in caplog.text


# --- one recording of a pass, and that of all passes


def test_two_nodes_in_a_row_make_one_recording(server: Server) -> None:
    """The outer one's, that next to the loader; a pass within a pass, through another guider, is recorded for itself."""
    model = node(node(every=2))
    with server.prompt(NODES):
        sample(server, model)
    assert only(server).sidecar.every == 2
    inner = KSAMPLER(grey, before=lambda step: sample(server, node(), steps=1) if step == 0 else None)
    with server.prompt(NODES):
        sample(server, model, sampler=inner)
    assert [len(run.frames) for run in contract.runs(server.output / "stepwatch")] == [2, 2, 1]


def everything(server: Server, **settings: Any) -> None:
    hook.record_everything(hook.Options(**settings))


def test_the_whole_server_is_recorded_without_a_node(server: Server) -> None:
    """Also a host that passes on what we do not know; twice switched on is once."""
    everything(server)
    once = sys.modules["comfy.samplers"].CFGGuider.outer_sample
    everything(server)
    assert sys.modules["comfy.samplers"].CFGGuider.outer_sample is once
    with server.prompt(NODES):
        sampler = KSAMPLER(grey)
        assert sample(server, fake.model(), sampler=sampler, latent_shapes=[SHAPE]) is sampler.result
    assert len(only(server).frames) == 4


def test_a_node_comes_before_the_setting_of_the_server(server: Server) -> None:
    """Its wishes count, and switched off it keeps its model out."""
    everything(server)
    with server.prompt(NODES):
        sample(server, node(every=4))
    assert only(server).sidecar.every == 4
    with server.prompt(NODES):
        sample(server, node(enabled=False))
    only(server)


def test_a_node_that_is_off_records_nothing_unless_another_one_is_on(server: Server) -> None:
    """Off means this node."""
    with server.prompt(NODES):
        sample(server, node(enabled=False))
    assert not server.output.exists()
    with server.prompt(NODES):
        sample(server, node(node(enabled=False)))
    only(server)


@pytest.mark.parametrize(
    ("settings", "environment", "wanted"),
    [
        (None, None, None),
        (None, "1", hook.Options(overrides={})),
        (None, "0", None),
        ('{"all": true, "every": 5, "format": "webp", "decode": "taesd"}', None, hook.Options(5, "webp", "taesd", {})),
        ('{"all": true}', "no", None),
        ('{"every": 2, "policy": {"codec": "gif"}}', "yes", hook.Options(2, overrides={"outputs": "gif"})),
        ('{"all": true, "every": "many"}', None, hook.Options(overrides={})),
        ('{"all": 1}', None, None),
        ("[]", None, None),
        ('{"all": tru', "1", hook.Options(overrides={})),
    ],
)
def test_the_setting_of_the_server_is_read_from_the_environment_and_a_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str | None, environment: str | None, wanted: object
) -> None:
    """The environment decides whether, the file beside the hook how; what is wrong in it is not taken."""
    monkeypatch.setattr(hook, "__file__", str(tmp_path / "__init__.py"))
    if settings is not None:
        (tmp_path / "settings.json").write_text(settings)
    if environment is not None:
        monkeypatch.setenv("STEPWATCH_ALL", environment)
    assert hook._settings() == wanted


# --- the workflow as a graph

CONTROLLED: dict[str, Any] = {
    "1": {"inputs": {"guider": ["2", 0], "sampler": ["3", 0], "sigmas": ["4", 0]}},
    "2": {"inputs": {"model": ["9", 0], "positive": ["5", 0], "negative": ["5", 1], "cfg": 3}},
    "3": {"inputs": {"sampler_name": "euler"}},
    "4": {"inputs": {"scheduler": "beta", "steps": 30, "denoise": 0.4}},
    "5": {"inputs": {"positive": ["6", 0], "negative": ["7", 0], "control_net": ["8", 0]}},
    "6": {"inputs": {"conditioning_1": ["10", 0], "conditioning_2": ["7", 0]}},
    "7": {"inputs": {"text_g": "", "text_l": "blur"}},
    "9": {"inputs": {"unet_name": "flux.safetensors"}},
    "10": {"inputs": {"clip_l": "short", "t5xxl": "a long text"}},
}


def test_facts_are_found_behind_guiders_combiners_and_controls(server: Server) -> None:
    """A custom sampler's workflow: the text behind the positive side of a ControlNet is not that of its negative side."""
    with server.prompt(CONTROLLED, node="1"):
        sample(server, node(), sampler=KSAMPLER(grey, name="not_asked"))
    told = only(server).sidecar.generation
    wanted = {
        "prompt": "a long text",
        "negative": "blur",
        "sampler": "euler",
        "scheduler": "beta",
        "steps": 30,
        "denoise": 0.4,
        "model": "flux.safetensors",
    }
    assert {key: told[key] for key in wanted} == wanted


def test_sides_that_were_swapped_on_purpose_stay_swapped(server: Server) -> None:
    """Which text a sampler calls positive is told by the links, not by the names of the nodes above."""
    swapped = CONTROLLED | {"2": {"inputs": {"model": ["9", 0], "positive": ["5", 1], "negative": ["5", 0]}}}
    with server.prompt(swapped, node="1"):
        sample(server, node())
    told = only(server).sidecar.generation
    assert (told["prompt"], told["negative"]) == ("blur", "a long text")


def test_a_workflow_that_runs_in_circles_tells_nothing(server: Server) -> None:
    """A node that is linked to itself ends no search and stops no picture."""
    circle = {"3": {"inputs": {key: ["3", 0] for key in ("model", "positive", "negative", "seed", "scheduler", "sampler", "sigmas", "value")}}}
    with server.prompt(circle):
        sample(server, node())
    assert "prompt" not in only(server).sidecar.generation


LINKS = st.lists(st.one_of(st.sampled_from(["1", "2", "3"]), st.integers(0, 3)), min_size=2, max_size=2)
INPUTS = st.dictionaries(
    st.sampled_from(
        ["model", "positive", "negative", "conditioning", "text", "guider", "sigmas", "steps", "lora_name", "ckpt_name", "value", "scheduler"]
    ),
    st.one_of(LINKS, st.text(max_size=3), st.integers(), st.none(), st.lists(st.integers(), max_size=3)),
)


@given(st.dictionaries(st.sampled_from(["1", "2", "3"]), st.one_of(st.none(), st.fixed_dictionaries({"inputs": st.one_of(st.none(), INPUTS)}))))
def test_no_workflow_is_too_strange_to_be_looked_at(prompt: Any) -> None:
    """Whatever a client has sent, looking for facts ends, and without an exception."""
    graph = hook._Graph(prompt)
    for start in ("1", None, "missing"):
        graph.words(start, "positive")
        graph.words(start, "negative")
        graph.loras(start)
        graph.nearest(start, "scheduler", ("sigmas",))
        graph.nearest(start, "ckpt_name", hook.MODEL_LINKS)


def test_a_prompt_of_another_shape_tells_nothing(server: Server) -> None:
    """A list where the nodes should be: what the sampler itself says is recorded."""
    with server.prompt([1, 2]):
        sample(server, node())
    assert only(server).sidecar.generation["seed"] == 5


# --- as it is installed


def test_the_package_of_the_registry_is_the_writers_version() -> None:
    """ComfyUI's registry takes names without "ComfyUI" and versions of three numbers; nothing has to be installed for it."""
    told = tomllib.loads((PLACE / "pyproject.toml").read_text())
    assert told["project"]["version"] == writer.VERSION
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", told["project"]["version"])
    assert told["project"]["dependencies"] == []
    assert set(told["tool"]["comfy"]) == {"PublisherId", "DisplayName", "Icon"}


def test_the_node_is_all_that_the_host_is_told_of() -> None:
    """A module with these mappings is a V1 node pack, which every version of ComfyUI loads; each input of the node is one of its method."""
    assert list(hook.NODE_CLASS_MAPPINGS) == list(hook.NODE_DISPLAY_NAME_MAPPINGS) == ["Stepwatch"]
    inputs = hook.Stepwatch.INPUT_TYPES()
    taken = hook.Stepwatch.record.__annotations__.keys() - {"return"}
    assert inputs["required"].keys() | inputs["optional"].keys() == taken
    assert callable(getattr(hook.Stepwatch, hook.Stepwatch.FUNCTION))


def test_the_hook_runs_nothing_and_fetches_nothing() -> None:
    """What the scan of ComfyUI's registry looks for: no process, no eval, no pip, no network."""
    names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(ast.parse((PLACE / "__init__.py").read_text()))}
    modules = {
        alias.name.partition(".")[0]
        for part in ast.walk(ast.parse((PLACE / "__init__.py").read_text()))
        if isinstance(part, ast.Import | ast.ImportFrom)
        for alias in ([ast.alias(part.module or "")] if isinstance(part, ast.ImportFrom) else part.names)
    }
    assert not names & {"eval", "exec", "compile", "system", "popen", "__import__"}
    hosts = {"torch", "comfy", "comfy_execution", "comfyui_version", "folder_paths", "server", "PIL", "stepwatch"}
    assert modules <= hosts | {"__future__", "contextvars", "functools", "json", "os", "collections", "typing"}


def test_a_log_line_of_ours_says_whose_it_is(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The host's log is shared by many."""
    caplog.set_level(logging.INFO, "stepwatch.hook")
    everything(server)
    with server.prompt(NODES):
        sample(server, node(policy="no policy at all"))
    assert caplog.messages
    assert all(message.startswith("stepwatch: ") for message in caplog.messages)
