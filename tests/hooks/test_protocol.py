"""The page for authors of other producers: its examples are taken from it and run, and stepwatch makes an animation of what they leave."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from stepwatch import hook, store
from stepwatch.core.model import Outcome
from stepwatch.hooks.diffusers import record
from tests.conftest import MakeFrame

PAGE = (Path(__file__).parents[2] / "stepwatch" / "hooks" / "PROTOCOL.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(found.splitlines()) <= 40, "it is an example, not a library"
    return str(found)


@pytest.fixture
def pictures(make_frame: MakeFrame, tmp_path: Path) -> list[str]:
    return [str(make_frame(tmp_path / "pictures" / f"a picture {step}.png", step=step)) for step in range(1, 7)]


def play(language: str, tmp_path: Path, pictures: list[str]) -> Path:
    """Run an example of the page, and return the folder of its run."""
    script = tmp_path / f"record.{language}"
    script.write_text(example(language), encoding="utf-8")
    command = [sys.executable, "-I"] if language == "python" else [shutil.which("dash") or "sh"]
    arguments = [str(tmp_path / "all steps"), *(pictures if language == "sh" else ())]
    subprocess.run([*command, str(script), *arguments], check=True, capture_output=True, timeout=60)
    (folder,) = (tmp_path / "all steps").iterdir()
    return folder


@pytest.mark.parametrize(("language", "frames"), [("python", 12), ("sh", 6)])
def test_the_examples_keep_the_protocol(language: str, frames: int, tmp_path: Path, pictures: list[str]) -> None:
    """What they leave is complete, valid, read without a complaint, and has no file beside frames and sidecar."""
    folder = play(language, tmp_path, pictures)
    sidecar, wrong = store.read_sidecar(folder)
    assert wrong == ()
    assert sidecar is not None
    jsonschema.validate(dict(sidecar.raw), hook.sidecar_schema())
    assert (sidecar.state, sidecar.run_id, sidecar.frame_count, sidecar.frames_planned) == (Outcome.COMPLETE, folder.name, frames, frames)
    assert len(list(folder.iterdir())) == frames + 1


@pytest.mark.parametrize(("language", "name"), [("python", "7-a sunrise.mp4"), ("sh", "")])
def test_stepwatch_animates_the_examples(language: str, name: str, tmp_path: Path, pictures: list[str], ffmpeg: str) -> None:
    """The daemon makes one animation of each."""
    folder = play(language, tmp_path, pictures)
    done = subprocess.run(
        [sys.executable, "-m", "stepwatch", "watch", "--once", str(folder.parent)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (folder.parent / "animation").iterdir()] == [name or f"{folder.name}.mp4"]


def test_the_python_example_says_that_it_failed(tmp_path: Path) -> None:
    """An exception in the work ends the run as failed, and comes through."""
    script = tmp_path / "record.py"
    script.write_text(example("python").replace("here the work is done", "\n        index == 3 and sys.exit('no more film')"), encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", str(script), str(tmp_path / "steps")], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (1, "no more film")
    (folder,) = (tmp_path / "steps").iterdir()
    sidecar, _ = store.read_sidecar(folder)
    assert sidecar is not None
    assert (sidecar.state, sidecar.error, sidecar.frame_count) == (Outcome.FAILED, "SystemExit: no more film", 3)


def test_the_page_names_what_there_is() -> None:
    """Every file that it links to is beside it, and every key in its table is one of the schema's."""
    folder = Path(hook.__file__).parent / "hooks"
    assert all((folder / name).is_file() for name in re.findall(r"\]\(([^)]+)\)", PAGE))
    table = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    keys = {word.partition(".")[0] for row in table for word in re.findall(r"`([a-z_.]+)`", row)}
    known = set(hook.sidecar_schema()["properties"])
    inner = {name for about in hook.sidecar_schema()["properties"].values() for name in about.get("properties", {})}
    assert keys - known - inner == set()


def test_the_readme_of_the_hooks_names_the_arguments_of_record() -> None:
    """Each argument in the table for diffusers is one that `record` takes, and has the form that is shown."""
    readme = Path(hook.__file__).parent.joinpath("hooks", "README.md").read_text(encoding="utf-8")
    table = readme.partition("## diffusers")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| `([a-z_]+)=", table, flags=re.MULTILINE)
    assert len(shown) == 6
    assert set(shown) <= set(inspect.signature(record).parameters)
