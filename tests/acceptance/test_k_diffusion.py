"""The WebUI hook on the real samplers of k-diffusion, which are A1111's loop; the host around them is a fake with its signatures."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwatch import hook
from tests.hooks import contract
from tests.hooks.webui_host import Host, InterruptedException, OutOfMemoryError, Scripts, Txt2Img, load, running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="needs the extra `hosts`")
    pytest.importorskip("torchsde", reason="needs the extra `hosts`")
    pytest.importorskip("torchdiffeq", reason="needs the extra `hosts`")

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("ignore")]

STEPS = 8


def load_sampling() -> Any:
    """``k_diffusion/sampling.py`` alone: the package around it wants to train models, and half of the world's packages for that."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs k-diffusion: pip install --no-deps k-diffusion", allow_module_level=True)
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = []
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", Path(found.submodule_search_locations[0]) / "sampling.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


sampling = load_sampling()
SAMPLERS = sorted(name for name in vars(sampling) if name.startswith("sample_"))
OWN_COUNT = ("sample_dpm_fast", "sample_dpm_adaptive")
"""Their steps are not those that the user asks for."""


class TorchHost(Host):
    """The fake with real tensors, and a model that knows the picture."""

    def __init__(self, home: Path) -> None:
        super().__init__("a1111", home)
        self.modules["modules.sd_vae_approx"].cheap_approximation = lambda sample: sample[:, :3]
        self.picture = torch.linspace(-0.9, 0.9, 4 * 4 * 4 * 6).reshape(4, 4, 4, 6)

    def denoised(self, x: Any, sigma: Any) -> Any:
        self._click()
        if self.state.interrupted or self.state.skipped:
            raise InterruptedException
        picture = self.picture[: x.shape[0]]
        self.state.current_latent = picture + 0.01 * x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        return self.state.current_latent


class Job(Txt2Img):
    """A txt2img whose sampler is one of k-diffusion's."""

    def noise(self, width: int, height: int) -> Any:
        return torch.randn(self.batch_size, 4, 4, 6, generator=torch.Generator().manual_seed(1))

    def sample(self) -> Any:
        samples = super().sample()
        return None if samples is None else list(samples)


def of_k_diffusion(host: TorchHost, name: str) -> Callable[..., Any]:
    """A sampler as A1111 calls it: noise, sigmas and its own callback."""
    sample = getattr(sampling, name)

    def run(_model: Any, x: Any, steps: int, callback: Callable[..., object]) -> Any:
        def model(x: Any, sigma: Any, **_: Any) -> Any:
            return host.denoised(x, sigma)

        if name == "sample_dpm_fast":
            return sample(model, x * 14.6, 0.03, 14.6, steps, callback=callback, disable=True)
        if name == "sample_dpm_adaptive":
            return sample(model, x * 14.6, 0.03, 14.6, callback=callback, disable=True)
        sigmas = sampling.get_sigmas_karras(steps, 0.03, 14.6)
        return sample(model, x * sigmas[0], sigmas, callback=callback, disable=True)

    return run


@pytest.fixture
def host(tmp_path: Path) -> Iterator[TorchHost]:
    torch.set_num_threads(1)
    made = TorchHost(tmp_path / "webui")
    with running(made):
        yield made


@pytest.fixture
def script(host: TorchHost, tmp_path: Path) -> Any:
    """The installed hook, whole in one file."""
    file = tmp_path / "stepwatch.py"
    file.write_text(hook.contents("a1111")["scripts/stepwatch.py"], encoding="utf-8")
    made = load(file).StepwatchScript()
    made.args_from, made.args_to = 0, 6
    return made


def click(host: TorchHost, script: Any, name: str, *, enabled: bool = True, **facts: Any) -> Any:
    """One job; return the latents of its pictures."""
    host.evaluations = 0
    host.begin_job()
    torch.manual_seed(5)
    p = Job(host, Scripts(host, script), (enabled,), func=of_k_diffusion(host, name), steps=STEPS, **facts)
    results = host.process_images(p)
    assert host.errors == []
    return results


def runs(host: TorchHost) -> list[contract.Recorded]:
    return contract.runs(host.home / "outputs") if (host.home / "outputs").exists() else []


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_one_frame_for_each_callback(host: TorchHost, script: Any, name: str) -> None:
    """Second order or not, ancestral or not: one frame for each step, x0 in it, and the picture is the same bit for bit."""
    plain = click(host, script, name, enabled=False)
    assert runs(host) == []
    called = len(host.calls)
    hooked = click(host, script, name)
    steps = sum(call.startswith("callback") for call in host.calls[called:])
    assert all(torch.equal(first, second) for first, second in zip(plain, hooked, strict=True))
    (run,) = runs(host)
    assert str(run.sidecar.state) == "complete"
    assert run.steps == list(range(1, steps + 1))
    assert (steps == STEPS) or name in OWN_COUNT
    assert (run.sidecar.lost, run.raw["frames"]["kind"]) == ((), "x0")
    first = torch.tensor(list(run.frames[0].tobytes())).reshape(4, 6, 3)
    wanted = (host.picture[0, :3].movedim(0, -1) + 1) * 127.5
    assert (first - wanted).abs().max() < 40, "the first frame shows x0, and not the noise"


def test_a_batch_of_four(host: TorchHost, script: Any) -> None:
    """Each picture is a run of its own, in one group."""
    click(host, script, "sample_heun", batch_size=4)
    found = runs(host)
    assert [run.raw["batch"]["index"] for run in found] == [0, 1, 2, 3]
    assert [run.steps for run in found] == [list(range(1, STEPS + 1))] * 4
    assert len({run.sidecar.group_id for run in found}) == 1
    assert len({run.frames[STEPS - 1].tobytes() for run in found}) == 4


@pytest.mark.parametrize(("name", "done"), [("sample_euler_ancestral", 5), ("sample_heun", 3), ("sample_dpmpp_2m", 5)])
def test_a_click_on_interrupt(host: TorchHost, script: Any, name: str, done: int) -> None:
    """The sixth evaluation is the sixth step of Euler, and the middle of the third of Heun."""
    host.clicks = {5: "interrupted"}
    click(host, script, name)
    (run,) = runs(host)
    assert str(run.sidecar.state) == "interrupted"
    assert len(run.frames) == done


def test_out_of_memory(host: TorchHost, script: Any) -> None:
    """The host's exception comes through, and the run says so."""
    host.clicks = {5: "oom"}
    with pytest.raises(OutOfMemoryError):
        click(host, script, "sample_dpm_2")
    (run,) = runs(host)
    assert str(run.sidecar.state) == "failed"
    assert run.raw["error"] == {"type": "OutOfMemoryError", "message": "CUDA out of memory"}
