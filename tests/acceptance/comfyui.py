"""Acceptance of the ComfyUI hook on a real ComfyUI: `./dev python tests/acceptance/comfyui.py --comfyui CHECKOUT --python ITS_PYTHON`.

Copies the checkout, installs the hook into the copy as a user does, and drives the server, headless and on the CPU, through its own API; the models
are toys (`comfyui_toy.py`), the sampler loop is the host's. Meanwhile a stepwatch daemon watches the output folder. Takes three minutes or so and
needs no network; not part of the test suite, which has no ComfyUI. What a host's environment lacks of torchvision and torchaudio is stood in for.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from stepwatch.core.model import Outcome, Sidecar
from stepwatch.core.sidecar import parse_sidecar

HERE = Path(__file__).resolve().parent
LEFT_OUT = {".git", "models", "output", "input", "temp", "user", "custom_nodes"}
TOKENS = {"auth_token_comfy_org": "SECRET-TOKEN", "api_key_comfy_org": "SECRET-KEY"}
UI_WORKFLOW = {"nodes": [], "version": 0.4}
POLICY = 'version: 1\ntimeline: {duration: 1s, fps: 12, hold_last: 0s}\noutputs: [{codec: h264, quality: high, name: "{run}"}]\n'
DECODERS = """
import sys, torch, safetensors.torch
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, ".")
import comfy.options
comfy.options.enable_args_parsing()
from comfy.taesd.taesd import TAESD
torch.manual_seed(1)
toy = TAESD()
for part in ("encoder", "decoder"):
    weights = {key: torch.randn_like(value) * 0.05 for key, value in getattr(toy, "taesd_" + part).state_dict().items()}
    safetensors.torch.save_file(weights, f"models/vae_approx/taesd_{part}.safetensors")
"""


class Unfulfilled(Exception):
    """What was found instead."""


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise Unfulfilled(f"{what}: {found!r}, not {wanted!r}")


@dataclass
class Run:
    """A run folder, read as stepwatch reads it."""

    folder: Path
    sidecar: Sidecar
    facts: Mapping[str, Any]
    frames: list[Path]

    @property
    def size(self) -> tuple[int, int]:
        with Image.open(self.frames[0]) as image:
            return image.size

    def expect(self, state: Outcome, frames: int | None, **facts: object) -> None:
        """Hold the run against its sidecar and against what is wanted: the state, the number of whole frames, and facts of ``generation``."""
        expect(self.sidecar.state, state, f"state of {self.folder.name}")
        expect([frame.stem for frame in self.frames], [f"{index:05d}" for index in range(len(self.frames))], "frames")
        if frames is not None:
            expect(len(self.frames), frames, f"frames of {self.folder.name}")
        if state is not Outcome.RUNNING:
            expect(self.sidecar.frame_count, len(self.frames), "frames by the sidecar's word")
            expect([name for name in os.listdir(self.folder) if name.endswith(".tmp")], [], "temporary files")
        for frame in self.frames:
            with Image.open(frame) as image:
                image.load()
                expect(image.size, (self.sidecar.width, self.sidecar.height), f"size of {frame}")
        for key, value in facts.items():
            expect(self.sidecar.generation.get(key), value, f"{key} of {self.folder.name}")


def read_runs(output: Path, *, besides: Collection[str] = ()) -> dict[str, Run]:
    """Read all runs, by name, but those whose names are known already."""
    runs = {}
    for path in sorted(output.glob("*/*/run.json")):
        if path.parent.name in besides:
            continue
        sidecar, complaints = parse_sidecar(path.read_bytes())
        expect(complaints, (), f"complaints about {path}")
        assert sidecar is not None
        expect(sidecar.run_id, path.parent.name, "run_id")
        frames = sorted(frame for frame in path.parent.iterdir() if frame.suffix in (".png", ".jpg", ".webp") and not frame.name.startswith("."))
        runs[path.parent.name] = Run(path.parent, sidecar, json.loads(path.read_text()), frames)
    return runs


@dataclass
class Host:
    """One ComfyUI and its API."""

    root: Path
    python: str
    environment: Mapping[str, str]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        return self.root / "output" / "stepwatch"

    @contextlib.contextmanager
    def serving(self, *arguments: str, **environment: str) -> Iterator[Host]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [self.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch", *arguments]
        command += ["--front-end-root", str(self.root / "no-front-end")]
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env={**self.environment, **environment}, stdout=log, stderr=log)
        try:
            self._wait_until(lambda: bool(self.call("/system_stats")), 120)
            yield self
        finally:
            self.process.kill()
            self.process.wait()

    def _wait_until(self, true: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise Unfulfilled(f"ComfyUI ended with status {self.process.returncode}; see {self.root}/server.log")
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if true():
                    return
            time.sleep(0.05)
        raise Unfulfilled(f"nothing happened within {seconds} s; see {self.root}/server.log")

    def call(self, path: str, data: object = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Unfulfilled(f"ComfyUI refused {path}: {error.read().decode()[:2000]}") from None
        return json.loads(text) if text else None

    def start(self, nodes: Mapping[str, Any]) -> str:
        extra = {"extra_pnginfo": {"workflow": UI_WORKFLOW}, **TOKENS}
        return str(self.call("/prompt", {"prompt": nodes, "extra_data": extra})["prompt_id"])

    def finish(self, prompt: str) -> Any:
        self._wait_until(lambda: prompt in self.call(f"/history/{prompt}"), 120)
        return self.call(f"/history/{prompt}")[prompt]

    def run(self, nodes: Mapping[str, Any]) -> tuple[list[Run], Any]:
        """Run a workflow; return its new runs, the order being that of their passes and items, and its history."""
        before = self.names()
        history = self.finish(self.start(nodes))
        runs = list(read_runs(self.output, besides=before).values())
        return sorted(runs, key=lambda run: (run.facts["pass"]["index"], run.facts["batch"]["index"])), history

    def names(self) -> set[str]:
        """The names of all runs so far."""
        return {path.parent.name for path in self.output.glob("*/*/run.json")}

    def wait_for_frames(self, count: int, before: set[str]) -> None:
        """Wait until a run that was not there before has so many frames."""
        self._wait_until(lambda: any(len(run.frames) >= count for run in read_runs(self.output, besides=before).values()), 60)


@dataclass
class Flow:
    """A workflow in the making, as the API takes it."""

    nodes: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, **inputs: object) -> list[Any]:
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return [name, 0]

    def model(self, latent_format: str = "SD15", trouble: Mapping[str, object] | None = None, nodes: int = 1, **settings: object) -> list[Any]:
        model = self.add("ToyModel", latents=latent_format, ckpt_name="toy.safetensors")
        for _ in range(nodes):
            told = {"enabled": True, "every": 1, "format": "png", "decode": "latent2rgb", **settings}
            model = self.add("Stepwatch", model=model, **told)
        return model if trouble is None else self.add("ToyTrouble", model=model, **{"seconds": 0.0, "oom_at": 0, "nan_at": 0, **trouble})

    def latent(self, shape: str = "1,4,16,16", *, masked: bool = False) -> list[Any]:
        return self.add("ToyLatent", shape=shape, masked=masked)

    def sample(self, model: list[Any], latent: list[Any], kind: str = "KSampler", **settings: Any) -> list[Any]:
        both = {"positive": self.add("ToyText", text="a disc, 光"), "negative": self.add("ToyText", text="a square")}
        told: dict[str, object] = {"steps": 8, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", **both}
        if kind == "KSampler":
            told |= {"seed": 7, "denoise": 1.0}
        else:
            told |= {"noise_seed": 7, "add_noise": "enable", "return_with_leftover_noise": "disable", "start_at_step": 0, "end_at_step": 10000}
        return self.add(kind, model=model, latent_image=latent, **{**told, **settings})

    def end(self, latent: list[Any]) -> dict[str, Any]:
        self.add("ToyDigest", latent=latent)
        return self.nodes


def plain(
    *, latents: str = "SD15", shape: str = "1,4,16,16", trouble: Mapping[str, object] | None = None, nodes: int = 1, **settings: Any
) -> dict[str, Any]:
    """One sampler; settings that are the node's go there, the others to the sampler."""
    flow = Flow()
    own = {key: settings.pop(key) for key in ("every", "format", "decode", "policy", "enabled", "vae") if key in settings}
    if own.get("decode") == "vae":
        own["vae"] = flow.add("VAELoader", vae_name="taesd")
    model = flow.model(latents, trouble, nodes, **own)
    return flow.end(flow.sample(model, flow.latent(shape), **settings))


def unhooked(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The same workflow without the node, for a server that has no hook."""
    around = {name: node["inputs"]["model"] for name, node in nodes.items() if node["class_type"] == "Stepwatch"}

    def source(value: Any) -> Any:
        while isinstance(value, list) and value[0] in around:
            value = around[value[0]]
        return value

    kept = {name: node for name, node in nodes.items() if name not in around}
    return {name: {**node, "inputs": {key: source(value) for key, value in node["inputs"].items()}} for name, node in kept.items()}


def digest(history: Any) -> object:
    return next(output["digest"] for output in history["outputs"].values() if "digest" in output)


class Acceptance:
    """Each method that begins with `check` proves what its docstring says."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.samplers: list[str] = []

    def check_samplers(self) -> str:
        """Every sampler of this ComfyUI: one frame for each of its callbacks, one run, complete."""
        counts = {}
        for name in self.samplers:
            runs, history = self.host.run(plain(sampler_name=name))
            expect(history["status"]["status_str"], "success", f"{name} in ComfyUI")
            expect(len(runs), 1, f"runs of {name}")
            told = {"seed": 7, "cfg": 1.0, "scheduler": "normal", "prompt": "a disc, 光", "negative": "a square", "model": "toy.safetensors"}
            runs[0].expect(Outcome.COMPLETE, None, sampler=name, steps=8, **told)
            expect(runs[0].sidecar.steps_done, len(runs[0].frames), f"callbacks of {name}")
            counts[name] = len(runs[0].frames)
        expect([name for name, count in counts.items() if count != 8 and not name.startswith("dpm_")], [], "samplers with another count than 8")
        return f"{len(counts)} samplers, " + ", ".join(f"{name}: {count}" for name, count in counts.items() if count != 8)

    def check_identical(self) -> str:
        """The result of every sampler, batch and decoder is the same, bit by bit, with and without the hook."""
        flows = [plain(sampler_name=name, seed=11) for name in self.samplers]
        flows += [plain(shape="4,4,24,16", sampler_name="euler_ancestral"), plain(decode="taesd", sampler_name="ddpm", shape="2,4,16,16")]
        flows += [plain(decode="vae", sampler_name="dpmpp_sde"), plain(latents="Wan21", shape="1,16,5,16,16"), plain(every=3, format="jpeg")]
        recorded = [digest(self.host.run(flow)[1]) for flow in flows]
        bare = [digest(self.host.run(unhooked(flow))[1]) for flow in flows]
        expect([index for index, pair in enumerate(zip(recorded, bare, strict=True)) if pair[0] != pair[1]], [], "workflows with another result")
        # Nor is it the hook alone that makes both the same: the results of a server that has no hook at all.
        expect(bare, self.bare([unhooked(flow) for flow in flows]), "results in a server without the hook")
        return f"{len(flows)} workflows"

    def bare(self, flows: list[dict[str, Any]]) -> list[object]:
        """Run workflows on a server into which no hook is installed."""
        nodes, aside = self.host.root / "custom_nodes" / "stepwatch", self.host.root / "custom_nodes" / "stepwatch.disabled"
        other = Host(self.host.root, self.host.python, self.host.environment)
        nodes.rename(aside)
        try:
            with other.serving("--preview-method", "none"):
                expect("Stepwatch" in other.call("/object_info"), False, "the node in a server without the hook")
                return [digest(other.run(flow)[1]) for flow in flows]
        finally:
            aside.rename(nodes)

    def check_batch(self) -> str:
        """A batch of 4 makes 4 folders of one group, each with the frames of its own item."""
        runs, _ = self.host.run(plain(shape="4,4,16,16"))
        expect(len(runs), 4, "runs")
        expect(len({run.sidecar.group_id for run in runs}), 1, "groups")
        expect([run.facts["batch"] for run in runs], [{"index": item, "size": 4} for item in range(4)], "batch")
        for run in runs:
            run.expect(Outcome.COMPLETE, 8, width=128, height=128)
        expect(len({run.frames[-1].read_bytes() for run in runs}), 4, "different last frames")
        return ""

    def check_two_passes(self) -> str:
        """A second sampler on an enlarged latent is a second run of the group, told to be the hires pass."""
        flow = Flow()
        model = flow.model()
        first = flow.sample(model, flow.latent())
        larger = flow.add("LatentUpscaleBy", samples=first, upscale_method="bilinear", scale_by=2.0)
        runs, _ = self.host.run(flow.end(flow.sample(model, larger, denoise=0.5)))
        expect([run.facts["pass"]["name"] for run in runs], ["base", "hires"], "passes")
        expect([run.size for run in runs], [(16, 16), (32, 32)], "sizes")
        expect([run.sidecar.generation["width"] for run in runs], [128, 256], "widths of the pictures")
        expect(len({run.sidecar.group_id for run in runs}), 1, "groups")
        for run in runs:
            run.expect(Outcome.COMPLETE, 8)
        return ""

    def check_split(self) -> str:
        """A sampler of the steps 0 to 6 and one of 6 to 10 are runs of 6 and 4 frames."""
        flow = Flow()
        model = flow.model()
        first = flow.sample(model, flow.latent(), "KSamplerAdvanced", steps=10, end_at_step=6, return_with_leftover_noise="enable")
        second = flow.sample(model, first, "KSamplerAdvanced", steps=10, start_at_step=6, add_noise="disable")
        runs, _ = self.host.run(flow.end(second))
        expect([(run.facts["pass"]["index"], len(run.frames), run.sidecar.state) for run in runs], [(0, 6, "complete"), (1, 4, "complete")], "runs")
        expect(runs[0].facts["pass"]["sigma_last"] > 0, True, "the first one stops early")
        return ""

    def check_custom_sampler(self) -> str:
        """SamplerCustomAdvanced with a BasicGuider is recorded, with what can be told of it."""
        flow = Flow()
        model = flow.model()
        sampler = flow.add("KSamplerSelect", sampler_name="dpmpp_2m")
        sigmas = flow.add("BasicScheduler", model=model, scheduler="karras", steps=8, denoise=1.0)
        guider = flow.add("BasicGuider", model=model, conditioning=flow.add("ToyText", text="a disc"))
        noise = flow.add("RandomNoise", noise_seed=99)
        custom = flow.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=flow.latent())
        runs, _ = self.host.run(flow.end(custom))
        expect(len(runs), 1, "runs")
        runs[0].expect(Outcome.COMPLETE, 8, sampler="dpmpp_2m", scheduler="karras", seed=99, prompt="a disc", cfg=1.0, steps=8)
        return ""

    def check_mask(self) -> str:
        """A masked latent is a run whose pass is inpainting."""
        flow = Flow()
        runs, _ = self.host.run(flow.end(flow.sample(flow.model(), flow.latent(masked=True))))
        expect([(run.facts["pass"]["name"], len(run.frames)) for run in runs], [("inpaint", 8)], "runs")
        return ""

    def check_list(self) -> str:
        """A list of 3 latents makes 3 runs of one group, numbered."""
        flow = Flow()
        latents = flow.add("RebatchLatents", latents=flow.latent("3,4,16,16"), batch_size=1)
        runs, _ = self.host.run(flow.end(flow.sample(flow.model(), latents)))
        expect(sorted(run.facts["host"]["list_index"] for run in runs), [0, 1, 2], "list indices")
        expect([(run.facts["pass"]["index"], len(run.frames)) for run in runs], [(0, 8), (1, 8), (2, 8)], "runs")
        expect(len({run.sidecar.group_id for run in runs}), 1, "groups")
        return ""

    def check_denoise(self) -> str:
        """Half the denoising of 8 steps still has 8 frames, and says where it began."""
        runs, _ = self.host.run(plain(denoise=0.5))
        runs[0].expect(Outcome.COMPLETE, 8, denoise=0.5)
        expect(runs[0].facts["pass"]["sigma_first"] < 5, True, "it begins low")
        return ""

    def check_every(self) -> str:
        """Every third of 8 steps: steps 2, 5 and 8, with the last one among them."""
        runs, _ = self.host.run(plain(every=3))
        runs[0].expect(Outcome.COMPLETE, 3)
        expect((runs[0].sidecar.skip, runs[0].sidecar.every), (1, 3), "skip and every")
        return ""

    def check_formats(self) -> str:
        """Each format of frames; latents of 4 to 48 channels, with a bias, of 5 dimensions; of a format without a matrix there is no run."""
        for frame_format, suffix in (("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")):
            runs, _ = self.host.run(plain(format=frame_format))
            expect({frame.suffix for frame in runs[0].frames}, {suffix}, "suffixes")
        kinds = [
            ("SDXL", "1,4,16,24", 8),
            ("SD3", "1,16,16,16", 8),
            ("Flux", "2,16,16,24", 8),
            ("Wan21", "1,16,5,16,24", 8),
            ("Wan22", "1,48,3,16,16", 16),
        ]
        for latents, shape, ratio in kinds:
            runs, _ = self.host.run(plain(latents=latents, shape=shape))
            expect(len(runs), int(shape[0]), f"runs of {latents}")
            side = [int(part) for part in shape.split(",")][-2:]
            runs[0].expect(Outcome.COMPLETE, 8, height=side[0] * ratio, width=side[1] * ratio)
            expect((runs[0].size, runs[0].sidecar.scale), ((side[1], side[0]), ratio), f"frames of {latents}")
        runs, history = self.host.run(plain(latents="ACEAudio", shape="1,8,16,16"))
        expect((runs, history["status"]["status_str"]), ([], "success"), "runs of a format without a matrix")
        return ""

    def check_decoders(self) -> str:
        """TAESD and the VAE make frames of full size; TAESD without its file falls back to the matrix, and nothing is downloaded."""
        pixels = []
        for decode in ("taesd", "vae"):
            runs, _ = self.host.run(plain(decode=decode, shape="2,4,8,12"))
            expect([(run.size, run.sidecar.scale, run.facts["frames"]["decode"]) for run in runs], [((96, 64), 1, decode)] * 2, decode)
            runs[1].expect(Outcome.COMPLETE, 8, width=96)
            with Image.open(runs[1].frames[-1]) as image:
                pixels.append(image.tobytes())
        # The VAE of this host is made of the same weights, on another way.
        expect(max(abs(a - b) for a, b in zip(*pixels, strict=True)) <= 1, True, "both make the same picture")
        runs, _ = self.host.run(plain(latents="SDXL", decode="taesd"))
        expect([(run.size, run.facts["frames"]["decode"]) for run in runs], [((16, 16), "latent2rgb")], "TAESD without its file")
        return ""

    def check_not_a_number(self) -> str:
        """A latent of NaN makes a grey frame and no other harm."""
        runs, history = self.host.run(plain(trouble={"nan_at": 3}))
        expect(history["status"]["status_str"], "success", "the prompt")
        runs[0].expect(Outcome.COMPLETE, 8)
        with Image.open(runs[0].frames[2]) as image:
            expect(len(set(image.get_flattened_data())), 1, "colours")
        return ""

    def check_workflow(self) -> str:
        """The workflow stands beside the frames, a policy in the sidecar, and no login token anywhere."""
        nodes = plain(policy="duration: 2s\ntimeline:\n  fps: 24 # fine\n")
        runs, history = self.host.run(nodes)
        told = json.loads((runs[0].folder / "workflow.json").read_text())
        expect(told, {"prompt": nodes, "workflow": UI_WORKFLOW}, "workflow.json")
        expect(runs[0].sidecar.workflow_file, "workflow.json", "its name")
        expect(dict(runs[0].sidecar.overrides), {"timeline": {"duration": "2s", "fps": 24}}, "the policy")
        expect((runs[0].sidecar.group_id, runs[0].facts["host"]["prompt_id"]), (history["prompt"][1],) * 2, "group and prompt")
        found = [path for path in self.host.output.rglob("*.json") if b"SECRET" in path.read_bytes()]
        expect(found, [], "files with tokens")
        return ""

    def check_cached(self) -> str:
        """A rerun with a new seed, for which the node is cached, shows the new seed."""
        self.host.run(plain(seed=21))
        runs, history = self.host.run(plain(seed=22))
        cached = next(told["nodes"] for kind, told in history["status"]["messages"] if kind == "execution_cached")
        expect("2" in cached, True, "the node is cached")
        runs[0].expect(Outcome.COMPLETE, 8, seed=22)
        runs, _ = self.host.run(plain(seed=22))
        expect(runs, [], "runs when all is cached")
        return ""

    def check_double(self) -> str:
        """Two nodes in a row make one recording, and a node that is switched off none."""
        runs, _ = self.host.run(plain(nodes=2))
        expect(len(runs), 1, "runs of two nodes")
        runs, _ = self.host.run(plain(enabled=False))
        expect(runs, [], "runs of a node that is off")
        return ""

    def check_interrupt(self) -> str:
        """An interrupted prompt leaves a run that says interrupted, with the frames so far; the server goes on."""
        before = self.host.names()
        prompt = self.host.start(plain(trouble={"seconds": 0.2}, steps=40, shape="2,4,16,16"))
        self.host.wait_for_frames(3, before)
        self.host.call("/interrupt", {})
        self.host.finish(prompt)
        runs = list(read_runs(self.host.output, besides=before).values())
        expect(len(runs), 2, "runs")
        for run in runs:
            run.expect(Outcome.INTERRUPTED, None)
            expect(3 <= len(run.frames) < 40, True, f"some frames: {len(run.frames)}")
        return f"{len(runs[0].frames)} of 40 frames"

    def check_out_of_memory(self) -> str:
        """A prompt that runs out of memory leaves a run that failed, with the frames so far and the reason; the server goes on."""
        runs, history = self.host.run(plain(trouble={"oom_at": 6}))
        expect(history["status"]["status_str"], "error", "the prompt")
        runs[0].expect(Outcome.FAILED, 5)
        expect("memory" in (runs[0].sidecar.error or ""), True, f"the reason: {runs[0].sidecar.error}")
        self.host.run(plain(seed=5))[0][0].expect(Outcome.COMPLETE, 8)
        return str(runs[0].sidecar.error)

    def check_cost(self) -> str:
        """What a step costs the sampler's thread, beside the way of *Steps Animation*, whose VAE is a tiny one here: told, and not judged."""
        told = []
        for side, vae in ((64, False), (128, False), (64, True)):
            flow = Flow()
            model = flow.add("ToyModel", latents="SD15", ckpt_name="toy.safetensors") if vae else flow.model()
            clock = flow.add("ToyClock", model=model, **({"vae": flow.add("VAELoader", vae_name="taesd")} if vae else {}))
            _, history = self.host.run(flow.end(flow.sample(clock, flow.latent(f"1,4,{side},{side}"), steps=1 if vae else 30)))
            seconds = next(output["seconds"] for output in history["outputs"].values())
            told.append(f"{side * 8}x{side * 8}{' by TAESD, saved at once' if vae else ''}: {statistics.median(seconds) * 1000:.1f} ms a step")
        return "; ".join(told)

    def check_killed(self) -> str:
        """kill -9 leaves a run that still says running, whose frames are whole, and which has no temporary file that counts."""
        before = self.host.names()
        self.host.start(plain(trouble={"seconds": 0.1}, steps=200, shape="1,4,64,64"))
        self.host.wait_for_frames(4, before)
        assert self.host.process is not None
        self.host.process.send_signal(signal.SIGKILL)
        self.host.process.wait()
        (run,) = read_runs(self.host.output, besides=before).values()
        run.expect(Outcome.RUNNING, None)
        return f"{len(run.frames)} frames"

    def all_server(self) -> str:
        """With STEPWATCH_ALL and no node every pass is recorded, once, also with previews on; a node that is off keeps its model out."""
        runs, history = self.host.run(unhooked(plain(seed=3)))
        expect(len(runs), 1, "runs without a node")
        runs[0].expect(Outcome.COMPLETE, 8, seed=3)
        same = digest(history)
        runs, history = self.host.run(plain(seed=3, every=2))
        expect([len(run.frames) for run in runs], [4], "frames of runs with a node")
        expect(digest(history), same, "result")
        expect(self.host.run(plain(seed=4, enabled=False))[0], [], "runs of a node that is off")
        return ""


def animations(output: Path) -> dict[str, Path]:
    """The animations that stepwatch made, by run, with what it adds to the name of an incomplete one."""
    return {path.stem: path for path in (output / "animation").glob("*.mp4")}


def watched(command: list[str], host: Host) -> str:
    """One animation of every run; the interrupted, failed and killed ones say so in their names."""
    deadline = time.monotonic() + 300
    once = subprocess.run([*command, "watch", "--once", str(host.output)], capture_output=True, text=True, check=False, timeout=600)
    expect(once.returncode, 0, f"status of watch --once ({once.stderr[-2000:]})")
    runs = {name: run for name, run in read_runs(host.output).items() if len(run.frames) > 1}
    wanted = {name + ("" if run.sidecar.state is Outcome.COMPLETE else "-incomplete") for name, run in runs.items()}
    found = animations(host.output)
    expect(sorted(set(found) ^ wanted), [], f"animations that are missing or too many, after {deadline - time.monotonic():.0f} s")
    states = collections.Counter(run.sidecar.state.value for run in runs.values())
    return f"{len(found)} animations of runs that are {dict(states)}"


def prepared(checkout: Path, python: str, root: Path, command: list[str]) -> Host:
    """Copy ComfyUI, add the toys, and install the hook."""
    shutil.copytree(checkout, root, ignore=lambda folder, names: LEFT_OUT.intersection(names) if Path(folder) == checkout else ())
    for folder in ("custom_nodes", "input", "output", "user", "no-front-end", "models/vae_approx", "models/checkpoints"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "comfyui_toy.py", root / "custom_nodes" / "toy.py")
    paths = []
    for name in ("torchvision", "torchaudio"):
        if subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False).returncode:
            # Empty stand-ins, for this server only: what a sampler needs of them is that they can be imported.
            stand_in = root / "stand-ins" / name
            (stand_in / "transforms").mkdir(parents=True)
            (stand_in / "__init__.py").touch()
            (stand_in / "transforms" / "__init__.py").touch()
            paths = [str(root / "stand-ins")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("STEPWATCH", "PYTHON"))}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    subprocess.run([python, "-c", DECODERS], cwd=root, env=environment, check=True, capture_output=True)
    installed = subprocess.run([*command, "hook", "install", "comfyui", str(root)], capture_output=True, text=True, check=False)
    expect(installed.returncode, 0, f"status of hook install ({installed.stderr})")
    host = Host(root, python, environment)
    host.output.mkdir(parents=True, exist_ok=True)
    (host.output / "stepwatch.yaml").write_text(POLICY)
    return host


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a checkout of ComfyUI; it is copied and stays as it is")
    parser.add_argument("--python", required=True, help="the Python of an environment that has ComfyUI's requirements")
    parser.add_argument("--into", type=Path, help="a folder for the copy, which stays; without it a temporary one")
    parser.add_argument("--only", action="append", help="checks to do, by the end of their names")
    told = parser.parse_args()
    root = (told.into or Path(tempfile.mkdtemp(prefix="stepwatch-comfyui-"))).absolute() / "ComfyUI"
    state = root.parent / "state"
    command = ["env", f"XDG_STATE_HOME={state}", f"XDG_CONFIG_HOME={state}", f"XDG_RUNTIME_DIR={state}", sys.executable, "-m", "stepwatch"]
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    failed: list[str] = []

    def prove(name: str, check: Callable[[], str]) -> None:
        began = time.monotonic()
        try:
            result = check()
        except Unfulfilled as what:
            result = f"FAILED: {what}"
        except Exception:  # noqa: BLE001  # the other checks shall still tell what they find
            result = f"FAILED: {traceback.format_exc()}"
        if result.startswith("FAILED"):
            failed.append(name)
        print(f"{name}: {'ok' if not result.startswith('FAILED') else ''} {result} ({time.monotonic() - began:.1f} s)", flush=True)  # noqa: T201

    host = prepared(told.comfyui, told.python, root, command)
    acceptance = Acceptance(host)
    checks = [name for name in vars(Acceptance) if name.startswith("check_")]
    checks = [name for name in checks if not told.only or any(name.endswith(end) for end in told.only)]
    with (root.parent / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen([*command, "watch", str(host.output)], stdout=log, stderr=log)
    try:
        with host.serving("--preview-method", "none"):
            acceptance.samplers = host.call("/object_info/KSampler")["KSampler"]["input"]["required"]["sampler_name"][0]
            for name in checks:
                prove(name, getattr(acceptance, name))
        with host.serving("--preview-method", "auto", STEPWATCH_ALL="1"):
            prove("all_server", acceptance.all_server)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
    live = len(animations(host.output))
    prove("watched", lambda: f"{live} by the daemon while ComfyUI ran; " + watched(command, host))
    print(f"{'FAILED: ' + ', '.join(failed) if failed else 'all is as it should be'}; all files are in {root.parent}")  # noqa: T201
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
