"""Plays three clicks in a fake host with an installed hook, where stepwatch cannot be imported: ``alone.py HOST HOOK-FILE FOLDER``.

A batch of two that completes, a picture that the user interrupts after two steps, and one that fails in its third. test_contract reads what is left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.modules["stepwatch"] = None  # type: ignore[assignment]  # an import of it fails from here on


def webui(kind: str, file: Path, home: Path) -> None:
    from tests.hooks import webui_host as fake

    host = fake.Host(cast("fake.Kind", kind), home)
    with fake.running(host):
        script = fake.load(file).StepwatchScript()
        script.args_from, script.args_to = 0, 6
        for clicks, batch in (({}, 2), ({2: "interrupted"}, 1), ({2: "oom"}, 1)):
            host.evaluations, host.clicks = 0, clicks
            host.begin_job()
            with suppress(fake.OutOfMemoryError):
                host.process_images(fake.Txt2Img(host, fake.Scripts(host, script), (True,), batch_size=batch))
    assert host.errors == []


def sdnext(file: Path, home: Path) -> None:
    from tests.hooks import sdnext_host as fake
    from tests.hooks.webui_host import load

    host = fake.Host(home)
    with fake.running(host):
        host.script = load(file).StepwatchScript()
        for clicks, facts in (({}, {"batch_size": 2}), ({2: "interrupted"}, {}), ({}, {"fail_at": 2})):
            host.clicks = {len(host.calls) + step: what for step, what in clicks.items()}
            host.process_images(fake.Job(host, (True,), **facts))


def comfyui(file: Path, home: Path) -> None:
    from tests.hooks import fake_comfyui as fake
    from tests.hooks.webui_host import load

    server = fake.Server(home, sys.modules.__setitem__)
    node = load(file).NODE_CLASS_MAPPINGS["Stepwatch"]()

    def trouble(error: Exception) -> Callable[[int], None]:
        def before(step: int) -> None:
            if step == 2:
                raise error

        return before

    for batch, before in ((2, None), (1, trouble(fake.InterruptProcessingException())), (1, trouble(fake.OutOfMemoryError("full")))):
        shape = (batch, 4, 2, 3)
        with server.prompt({}), suppress(fake.InterruptProcessingException, fake.OutOfMemoryError):
            (model,) = node.record(model=fake.model(), enabled=True, every=1, format="png", decode="latent2rgb")
            guider = sys.modules["comfy.samplers"].CFGGuider(model)
            sampler = fake.KSAMPLER(partial(lambda shape, step: fake.pure(shape, step / 10), shape), before=before)
            guider.sample(fake.full(shape, 1.0), fake.full(shape, 0.0), sampler, fake.sigmas(4), None, lambda *_: None, False, 5)


def diffusers(file: Path, home: Path) -> None:
    from tests.hooks import diffusers_host as fake
    from tests.hooks.webui_host import load

    record = load(file).record
    pipe = fake.StableDiffusionPipeline()

    def stop(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == 1
        return tensors

    clicks: list[tuple[dict[str, Any], dict[str, Any], dict[int, BaseException]]] = [
        ({}, {"num_images_per_prompt": 2}, {}),
        ({"callback_on_step_end": stop}, {}, {}),
        ({}, {}, {2: RuntimeError("full")}),
    ]
    for options, call, pipe.trouble in clicks:
        with suppress(RuntimeError), record(pipe, home / "outputs", prompt="a cat", **options) as rec:
            pipe(**call, **rec.kwargs)


def main(name: str, file: Path, home: Path) -> None:
    os.chdir(home)
    if name in ("a1111", "forge", "reforge"):
        webui(name, file, home)
    else:
        {"sdnext": sdnext, "comfyui": comfyui, "diffusers": diffusers}[name](file, home)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
