"""What is around the code: the sample run, the pins, the wheel and ./dev."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import stepwatch
from stepwatch import hook
from stepwatch.core.model import Outcome
from stepwatch.core.sidecar import parse_sidecar

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "stepwatch" / "data" / "sample"
MADE = {".git", ".venv", ".dev", "__pycache__", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".import_linter_cache", "dist", "build"}


def project_files() -> Iterator[Path]:
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in MADE and not name.endswith("-demo")]
        yield from (Path(folder, name) for name in files)


def sample() -> Path:
    (run,) = (path for path in SAMPLES.iterdir() if path.is_dir())
    return run


def test_the_sample_is_small() -> None:
    """The run that ships with the package stays clearly below a megabyte."""
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 800_000


def test_the_sample_has_a_sidecar_without_a_flaw() -> None:
    """Its run.json is what a hook should write: complete, and nothing in it to complain of."""
    sidecar, complaints = parse_sidecar((sample() / "run.json").read_bytes())
    assert complaints == ()
    assert sidecar is not None
    assert (sidecar.run_id, sidecar.state, sidecar.frame_count) == (sample().name, Outcome.COMPLETE, 30)
    assert sidecar.generation["seed"] == 4242


def test_the_sample_frames_are_whole_and_say_how_they_were_made() -> None:
    """All 30 frames decode, have one size, and carry the generation parameters as the WebUI writes them."""
    frames = sorted(sample().glob("*.jpg"))
    assert [path.name for path in frames] == [f"{index:05d}.jpg" for index in range(30)]
    for path in frames:
        with Image.open(path) as image:
            image.load()
            comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert image.size == (384, 576)
        assert "Seed: 4242" in comment.removeprefix(b"UNICODE\0").decode("utf-16-be")


def test_versions_agree() -> None:
    """The installed distribution and the package tell the same version."""
    try:
        installed = importlib.metadata.version("stepwatch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("stepwatch runs from its folder here, without being installed")
    assert installed == stepwatch.__version__


def test_every_dependency_is_pinned() -> None:
    """constraints.txt has an exact version for everything that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for extra in ("flow", "test") for line in project["optional-dependencies"][extra])]
    names = {re.split(r"[<>=! ]", line)[0].lower().replace("_", "-") for line in wanted}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert names <= {line.partition("==")[0] for line in pins}
    assert all(re.fullmatch(r"[a-z0-9-]+==[^ @]+( ;.*)?", line) for line in pins)


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the business of each machine's own settings."""
    addresses = re.compile(rb"p[y]pi\.org|python[h]osted\.org|n[p]mjs|astral\.[s]h|inde[x]-url")
    guilty = [str(path) for path in project_files() if path.suffix not in (".jpg", ".png") and addresses.search(path.read_bytes())]
    assert guilty == []


def test_the_wheel_holds_what_a_user_needs(tmp_path: Path) -> None:
    """Sample run, typing marker, sample configuration and all that hooks are made of are in the wheel; tests and tools are not."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in ("stepwatch/cli/__init__.py", "stepwatch/py.typed", f"stepwatch/data/sample/{sample().name}/run.json"):
        assert wanted in names
    hooks = {"writer.py", "run.schema.json", "PROTOCOL.md"} | {source for host in hook.HOSTS.values() for source in host.files.values()}
    assert {f"stepwatch/hooks/{name}" for name in hooks} <= set(names)
    assert sum(name.endswith(".jpg") for name in names) == 30
    assert any(name.startswith("stepwatch/_data/config/") for name in names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "stubs", ".ci", "dev"))]


# -- ./dev


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what ./dev looks at, in a folder whose name has a space."""
    tree = tmp_path / "a clone"
    tree.mkdir()
    for name in ("dev", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tree / name)
    return tree


def tools(folder: Path) -> str:
    """A PATH with the few programs of any Unix, and no Python."""
    folder.mkdir()
    for name in ("sh", "dirname", "cat", "mkdir", "rm", "sleep", "touch"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return str(folder)


def test_dev_says_what_is_missing(tree: Path, tmp_path: Path) -> None:
    """Without any Python, ./dev ends with one line that names it, and leaves no half-made environment."""
    done = subprocess.run([str(tree / "dev"), "true"], env={"PATH": tools(tmp_path / "bin")}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no python3" in done.stderr.splitlines()[-1]
    assert not (tree / ".venv").exists()
    assert not (tree / ".dev" / "lock").exists()


def ready(tree: Path) -> None:
    """An environment as ./dev leaves it, with one program in it."""
    program = tree / ".venv" / "bin" / "where"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\npwd\necho "$1"\nexit 7\n')
    program.chmod(0o755)
    (tree / ".venv" / ".ready").write_text(f"{tree}\n")


def test_dev_runs_the_command_where_the_caller_stands(tree: Path, tmp_path: Path) -> None:
    """Relative folders mean what they say, arguments arrive whole, and the exit code comes back."""
    ready(tree)
    done = subprocess.run([str(tree / "dev"), "where", "two  words"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, f"{tmp_path}\ntwo  words\n", "")


@pytest.mark.parametrize("change", ["pyproject.toml", "constraints.txt", "moved"])
def test_dev_makes_its_environment_anew(tree: Path, tmp_path: Path, change: str) -> None:
    """A changed pin, a changed project file or a copied tree means another environment."""
    ready(tree)
    if change == "moved":
        tree = Path(shutil.move(tree, tmp_path / "elsewhere"))
    else:
        later = (tree / ".venv" / ".ready").stat().st_mtime + 10
        os.utime(tree / change, (later, later))
    done = subprocess.run([str(tree / "dev"), "where"], env={"PATH": tools(tmp_path / "bin")}, capture_output=True, text=True, check=False)
    assert "setting up .venv/" in done.stderr


def test_dev_waits_for_another_one_and_takes_over_from_a_dead_one(tree: Path, tmp_path: Path) -> None:
    """The lock of a process that no longer lives is no reason to wait."""
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout
    (tree / ".dev" / "lock").mkdir(parents=True)
    (tree / ".dev" / "lock" / "pid").write_text(gone)
    done = subprocess.run([str(tree / "dev"), "true"], env={"PATH": tools(tmp_path / "bin")}, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert "setting up .venv/" in done.stderr


def test_the_scripts_are_sound() -> None:
    """The shells can read ./dev and .ci/run, which may be executed."""
    subprocess.run(["sh", "-n", str(ROOT / "dev")], check=True)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    assert os.access(ROOT / "dev", os.X_OK)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
