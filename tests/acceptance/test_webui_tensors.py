"""The hook for the WebUIs with real tensors of every precision; the samplers of k-diffusion have a file of their own."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwatch.core.model import Outcome
from tests.hooks import contract
from tests.hooks.webui_host import HOOK, Host, Kind, Processing, Sampler, Scripts, load, running

torch = pytest.importorskip("torch", reason="needs the extra `hosts`")

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("ignore")]

STEPS = 4


def cheap(sample: Any) -> Any:
    """As the hosts' own: a product of four channels and three colours."""
    factors = torch.tensor([[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]])
    return torch.einsum("...lxy,lr -> ...rxy", sample, factors.to(sample.device))


def picture(batch: int = 1) -> Any:
    return (torch.linspace(-2, 2, 6)[:, None] * torch.linspace(-1, 1, 8)[None, :]).expand(batch, 4, 6, 8)


class TorchHost(Host):
    """The fake with real tensors in it."""

    def _modules(self) -> dict[str, Any]:
        built = super()._modules()
        built["modules.sd_vae_approx"].cheap_approximation = cheap
        built["modules.sd_samplers_common"].samples_to_images_tensor = lambda sample, approximation: self.sd_model.decode_first_stage(sample)
        self.sd_model.decode_first_stage = lambda sample: torch.nn.functional.interpolate(cheap(sample.float()), scale_factor=8)
        built["modules.devices"].device, built["modules.devices"].dtype = "cpu", torch.float16
        return built

    def _taesd(self, path: str) -> Any:
        assert Path(path).exists()
        decoder: Callable[[Any], Any] = lambda latents: (self.sd_model.decode_first_stage(latents) + 1).half() / 2  # noqa: E731  # as a module
        return types.SimpleNamespace(eval=lambda: None, to=lambda *_: None, decoder=decoder)


class Job(Processing):
    """``p`` whose sampler hands over latents of one type."""

    dtype: Any

    def sample(self) -> Any:
        def func(_model: Any, x: Any, steps: int, callback: Callable[..., object]) -> Any:
            for i in range(steps):
                denoised = (x * (1 - (i + 1) / steps) + picture(self.batch_size) * ((i + 1) / steps)).to(self.dtype)
                before = denoised.clone()
                callback({"x": x, "i": i, "sigma": torch.tensor(14.6), "sigma_hat": torch.tensor(14.6), "denoised": denoised})
                assert torch.equal(denoised.nan_to_num(7.0), before.nan_to_num(7.0))
            return denoised

        x = torch.randn(self.batch_size, 4, 6, 8, generator=torch.Generator().manual_seed(1))
        sampler: Any = Sampler(self.host, func)
        self.sampler = sampler
        self.before_sampling(x=x, noise=x, c=None, uc=None)
        with torch.inference_mode():
            return sampler.sample(self, x, None, None, self.steps)


@pytest.fixture(params=["a1111", "forge", "reforge"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., list[contract.Recorded]]]:
    kind: Kind = request.param
    host = TorchHost(kind, tmp_path)
    (tmp_path / "models" / "VAE-taesd").mkdir(parents=True)
    (tmp_path / "models" / "VAE-taesd" / "taesd_decoder.pth").write_bytes(b"weights")
    with running(host):
        script = load(HOOK).StepwatchScript()
        script.args_from, script.args_to = 0, 6

        def click(*args: Any, dtype: Any) -> list[contract.Recorded]:
            host.begin_job()
            host.process_images(Job(host, Scripts(host, script), args, steps=STEPS, dtype=dtype, width=64, height=48, batch_size=2))
            assert host.errors == []
            return contract.runs(tmp_path / "outputs")

        yield click


@pytest.mark.parametrize(("way", "said", "size"), [("Cheap", "latent2rgb", (8, 6)), ("TAESD", "taesd", (64, 48)), ("Full VAE", "vae", (64, 48))])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_latents_of_every_precision_are_shown_as_they_are(run: Any, way: str, said: str, size: tuple[int, int], dtype: str) -> None:
    """In every way the last frame has the colours of the picture, and no latent of the host is changed by looking at it."""
    found = run(True, 1, way, dtype=getattr(torch, dtype))
    assert [(one.sidecar.state, len(one.frames), one.raw["frames"]["decode"]) for one in found] == [(Outcome.COMPLETE, STEPS, said)] * 2
    last = found[1].frames[STEPS - 1]
    assert last.size == size
    wanted = cheap(picture())[0].clamp(-1, 1)
    for column, row in ((0, 0), (7, 0), (4, 3)):
        colour = last.resize((8, 6), 0).getpixel((column, row))
        assert colour == pytest.approx([(float(wanted[c, row, column]) + 1) * 127.5 for c in range(3)], abs=2)


def test_what_is_no_number_is_grey(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has broken down makes no undefined colours."""
    monkeypatch.setitem(globals(), "picture", lambda batch=1: torch.full((batch, 4, 6, 8), float("nan")))
    found = run(True, dtype=torch.float16)
    assert found[0].frames[STEPS - 1].getpixel((0, 0)) == (128, 128, 128)
