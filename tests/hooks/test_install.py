"""``stepwatch hook``: hosts are told apart by what lies in their folders, and nothing is written over or removed that is not ours."""

from __future__ import annotations

import ast
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stepwatch import __version__, doctor, hook
from stepwatch.cli import run
from stepwatch.config import resolve_for
from stepwatch.core.policy import ServiceConfig, WatchEntry
from stepwatch.errors import EnvironmentFault, UsageError

POINT = "class Script:\n    def process_before_every_sampling(self, p, *args, **kwargs):\n        pass\n"
WEBUI = {
    "webui.py": "",
    "launch.py": "",
    "modules/processing.py": "",
    "modules/scripts.py": POINT,
    "modules/sd_samplers_kdiffusion.py": "",
    "CHANGELOG.md": "## 1.10.1\n\n### Bug Fixes:\n",
    "extensions/put extensions here.txt": "",
}
FORGE = WEBUI | {"modules_forge/forge_version.py": "version = '2.0.1v1.10.1'\n", "backend/args.py": "", "extensions-builtin/sd_forge_lora/x.py": ""}
LAYOUTS: dict[str, dict[str, str]] = {
    "a1111": WEBUI,
    "forge": FORGE,
    "reforge": WEBUI
    | {
        "modules_forge/forge_version.py": "version = '1.0.0v2-v1.10.1RC'",
        "ldm_patched/args.py": "",
        "extensions-builtin/sd_forge_freeu/x.py": "",
        "extensions-builtin/reForge-RescaleCFG/x.py": "",
    },
    "sdnext": {
        "webui.py": "",
        "launch.py": "",
        "installer.py": "",
        "modules/processing.py": "",
        "modules/scripts.py": "",
        "modules/sd_samplers_diffusers.py": "",
        "modules/processing_callbacks.py": "",
        "CHANGELOG.md": "# Change Log for SD.Next\n\n## Update for 2026-07-23\n",
        "extensions/.placeholder": "",
    },
    "comfyui": {
        "main.py": "",
        "execution.py": "",
        "nodes.py": "",
        "folder_paths.py": "",
        "comfy/samplers.py": "",
        "comfy/patcher_extension.py": 'class WrappersMP:\n    OUTER_SAMPLE = "outer_sample"\n',
        "comfyui_version.py": '__version__ = "0.3.64"\n',
        "custom_nodes/websocket_image_save.py": "",
    },
    "diffusers": {"generate.py": ""},
}
"""What tells the hosts apart, as it stands in their own repositories."""
VERSIONS = {"a1111": "1.10.1", "forge": "2.0.1v1.10.1", "reforge": "1.0.0v2-v1.10.1RC", "sdnext": "2026-07-23", "comfyui": "0.3.64", "diffusers": ""}

MakeHost = Callable[..., Path]


@pytest.fixture
def make_host(tmp_path: Path) -> MakeHost:
    """Lay out the folder of a host."""

    def make(name: str, folder: str = "", **changes: str | None) -> Path:
        place = tmp_path / (folder or name)
        for file, content in (LAYOUTS[name] | changes).items():
            if content is not None:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_text(content)
        return place

    return make


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


HOSTS = sorted(hook.HOSTS)
WITH_FOLDER = [name for name in HOSTS if hook.HOSTS[name].place]


# -- which host it is


@pytest.mark.parametrize("name", WITH_FOLDER)
def test_each_host_is_recognised_by_its_files(make_host: MakeHost, name: str) -> None:
    """The hosts that share most of their files are told apart, and each one's version is read."""
    found = hook.recognise(make_host(name))
    assert (found.host and found.host.name, found.version, found.too_old) == (name, VERSIONS[name], "")


def test_comfyui_desktop_keeps_its_folders_apart_from_the_program(tmp_path: Path) -> None:
    """The base folder of ComfyUI Desktop holds custom nodes and output, and no program; hooks go there."""
    for name in ("custom_nodes", "models", "output", "user", "input"):
        (tmp_path / name).mkdir()
    assert hook.recognise(tmp_path).host is hook.HOSTS["comfyui"]


@pytest.mark.parametrize(("name", "other"), list(itertools.permutations(WITH_FOLDER, 2)))
def test_the_wrong_host_is_refused(make_host: MakeHost, name: str, other: str) -> None:
    """Whoever names another host than the folder holds is told which one it is, and nothing is written."""
    place = make_host(name)
    before = tree(place)
    with pytest.raises(UsageError, match=f"is {hook.HOSTS[name].title}, not {hook.HOSTS[other].title}") as refused:
        hook.install(other, place)
    assert f"stepwatch hook install {name}" in refused.value.hint
    assert tree(place) == before


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("a1111", {"modules/scripts.py": "class Script: pass\n"}, "1.10"),
        ("comfyui", {"comfy/patcher_extension.py": ""}, "OUTER_SAMPLE"),
        ("sdnext", {"modules/processing_callbacks.py": None}, "processing_callbacks"),
    ],
)
def test_a_host_that_is_too_old_is_refused(make_host: MakeHost, name: str, changes: dict[str, str | None], why: str) -> None:
    """A hook that could never be called is not installed; the reason names what is missing."""
    with pytest.raises(UsageError, match=why):
        hook.install(name, make_host(name, **changes))


def test_a_folder_that_is_no_host_is_refused_with_the_one_that_is_meant(
    make_host: MakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder above a host, or one within it, is not it; the hint names the host's own. The exit code is that of a wrong command line."""
    make_host("comfyui", "ComfyUI")
    (tmp_path / "aaa").mkdir()
    for wrong in (tmp_path, tmp_path / "ComfyUI" / "custom_nodes"):
        assert run(["hook", "install", "comfyui", str(wrong)]) == 2
        assert f"hint: {tmp_path / 'ComfyUI'} is ComfyUI: name that folder" in capsys.readouterr().err
    assert run(["hook", "install", "comfyui", str(tmp_path / "aaa")]) == 2
    assert run(["hook", "install", "comfyui", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


# -- what is installed


@pytest.mark.parametrize("name", HOSTS)
def test_an_installed_hook_stands_alone(name: str) -> None:
    """Each Python file compiles, has the writer's source once, does not import stepwatch, and says in its first line what it is."""
    for target, content in hook.contents(name).items():
        assert content.startswith(f"# stepwatch-hook {name} {__version__} ")
        if not target.endswith(".py"):
            continue
        parsed = ast.parse(content, feature_version=(3, 9))
        imported = {alias.name for node in ast.walk(parsed) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(parsed) if isinstance(node, ast.ImportFrom)}
        assert not [one for one in imported if one.partition(".")[0] == "stepwatch"]
        assert "__future__" in imported
        assert content.count("class Recording") == 1
        names = [node.name for node in parsed.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        names += [target.id for node in parsed.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)]
        names += [node.target.id for node in parsed.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
        assert sorted(names) == sorted(set(names)), "a name of the writer is one of the adapter's, too"


@pytest.mark.parametrize("name", HOSTS)
def test_install_writes_the_hook_and_says_what_to_do(make_host: MakeHost, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After the install the hook is there, and the user knows what to tick, where frames appear and how they are watched."""
    place = make_host(name)
    assert run(["hook", "install", name, str(place)]) == 0
    said = capsys.readouterr().out
    host = hook.HOSTS[name]
    for target, content in hook.contents(name).items():
        assert (place / host.place / target).read_text() == content
        assert f"wrote {place / host.place / target}" in said
    frames = place / host.frames if host.frames else "DIR"
    assert f"stepwatch watch {frames}" in said
    assert all(step in said for step in host.steps)
    assert hook.look(host, place).state == "current"


def test_the_printed_policy_is_one_and_the_watched_folder_is_there(make_host: MakeHost) -> None:
    """What install prints can be pasted as it is: the YAML resolves without a warning, and the watch line names a folder that exists."""
    outcome = hook.install("comfyui", make_host("comfyui", "a folder"))
    command = shlex.split(outcome.watch)
    assert command[:2] == ["stepwatch", "watch"]
    folder = Path(command[2])
    assert folder.is_dir()
    assert yaml.safe_load(outcome.policy)["version"] == 1
    (folder / "stepwatch.yaml").write_text(outcome.policy)
    resolved = resolve_for(folder, service=ServiceConfig(watch=(WatchEntry(path=str(folder)),)))
    assert resolved.warnings == ()
    assert resolved.policy.timeline.duration == 8


def test_a_dry_run_writes_nothing(make_host: MakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """``--dry-run`` names the files, for install and uninstall, and leaves the folder as it is."""
    place = make_host("forge")
    before = tree(place)
    assert run(["hook", "install", "forge", str(place), "--dry-run"]) == 0
    assert f"would write {place / 'extensions/stepwatch/scripts/stepwatch.py'}" in capsys.readouterr().out
    assert tree(place) == before
    hook.install("forge", place)
    before = tree(place)
    assert run(["hook", "uninstall", "forge", str(place), "--dry-run"]) == 0
    assert "would remove" in capsys.readouterr().out
    assert tree(place) == before


def test_install_as_json(make_host: MakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` gives one object with files, frames, watch line and policy."""
    place = make_host("sdnext")
    assert run(["hook", "install", "sdnext", str(place), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["host"], told["host_version"], told["state"], told["version"]) == (1, "sdnext", "2026-07-23", "current", __version__)
    assert told["written"] == [str(place / "extensions/stepwatch" / name) for name in ("metadata.ini", "scripts/stepwatch.py")]
    assert told["frames"] == str(place / "outputs/stepwatch")


def test_a_second_install_writes_nothing(make_host: MakeHost) -> None:
    """An up-to-date hook is left as it is, to the file's own time."""
    place = make_host("comfyui")
    hook.install("comfyui", place)
    file = place / "custom_nodes/stepwatch/__init__.py"
    os.utime(file, (1, 1))
    outcome = hook.install("comfyui", place)
    assert outcome.written == []
    assert "is up to date" in outcome.sentences[0]
    assert file.stat().st_mtime == 1


def older(content: str) -> str:
    """The same hook as another version would have installed it."""
    mark, _, rest = content.partition("\n")
    rest += "# as it was\n"
    digest = hook._digest(rest)
    words = mark.split(" ")
    return " ".join([*words[:3], "0.0.9", digest + ":", *words[5:]]) + "\n" + rest


def test_an_older_hook_is_updated_and_the_users_settings_stay(make_host: MakeHost) -> None:
    """An update replaces our files only; a settings file that the user or the hook has put beside them is kept."""
    place = make_host("comfyui")
    hook.install("comfyui", place)
    ours = place / "custom_nodes/stepwatch"
    (ours / "__init__.py").write_text(older((ours / "__init__.py").read_text()))
    (ours / "settings.json").write_text('{"all": true}')
    found = hook.look(hook.HOSTS["comfyui"], place)
    assert (found.state, found.version) == ("outdated", "0.0.9")
    assert "not the one of this stepwatch" in hook.sentence(found)
    outcome = hook.install("comfyui", place)
    assert outcome.written == [ours / "__init__.py"]
    assert (ours / "settings.json").read_text() == '{"all": true}'
    assert hook.look(hook.HOSTS["comfyui"], place).state == "current"
    assert [path.name for path in ours.iterdir() if path.name.startswith(".")] == []


def test_an_edited_hook_is_kept_beside_the_new_one(make_host: MakeHost) -> None:
    """What a user has changed is set aside under another name, and never lost."""
    place = make_host("a1111")
    hook.install("a1111", place)
    script = place / "extensions/stepwatch/scripts/stepwatch.py"
    script.write_text(script.read_text() + "\nMINE = 1\n")
    assert hook.look(hook.HOSTS["a1111"], place).state == "edited"
    outcome = hook.install("a1111", place)
    assert outcome.kept == [script.with_name("stepwatch.py.bak")]
    assert outcome.kept[0].read_text().endswith("MINE = 1\n")
    assert hook.look(hook.HOSTS["a1111"], place).state == "current"


# -- what is refused


def test_a_foreign_folder_of_that_name_is_refused(make_host: MakeHost) -> None:
    """An extension that somebody else calls stepwatch is not written into, whatever its files are called."""
    for name, file in (("forge", "scripts/stepwatch.py"), ("a1111", "install.py"), ("comfyui", "nodes.py")):
        place = make_host(name)
        theirs = place / hook.HOSTS[name].place / file
        theirs.parent.mkdir(parents=True)
        theirs.write_text("print('mine')\n")
        before = tree(place)
        with pytest.raises(UsageError, match="did not write it"):
            hook.install(name, place)
        assert tree(place) == before


@pytest.mark.parametrize("linked", ["extensions/stepwatch", "extensions/stepwatch/scripts", "extensions/stepwatch/scripts/stepwatch.py"])
def test_links_are_refused(make_host: MakeHost, tmp_path: Path, linked: str) -> None:
    """A link in the place of the hook leads to files that are not the host's, perhaps a developer's; they stay as they are."""
    place = make_host("forge")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "scripts").mkdir(parents=True)
    target = elsewhere / "file.py" if linked.endswith(".py") else elsewhere
    if linked.endswith(".py"):
        target.write_text("x = 1\n")
    (place / linked).parent.mkdir(parents=True, exist_ok=True)
    (place / linked).symlink_to(target)
    with pytest.raises(UsageError, match=r"link|did not write it"):
        hook.install("forge", place)
    assert tree(elsewhere) in ({}, {"file.py": "x = 1\n"})


def test_a_folder_of_extensions_may_be_a_link(make_host: MakeHost, tmp_path: Path) -> None:
    """Some keep all extensions on another disk; the host follows that link, and so does the install."""
    place = make_host("comfyui")
    moved = tmp_path / "other disk"
    (place / "custom_nodes").rename(moved)
    (place / "custom_nodes").symlink_to(moved)
    hook.install("comfyui", place)
    assert (moved / "stepwatch" / "__init__.py").is_file()


def test_what_cannot_be_written_is_a_sentence(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without permission, and a file in the place of a folder, end with a reason and no traceback."""
    place = make_host("forge")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EnvironmentFault, match="may not be written by this user"):
        hook.install("forge", place)
    monkeypatch.undo()
    (place / "extensions" / "stepwatch").write_text("")
    assert run(["hook", "install", "forge", str(place)]) == 2
    assert "is not a folder" in capsys.readouterr().err


# -- uninstall


@pytest.mark.parametrize("name", HOSTS)
def test_uninstall_leaves_the_host_as_it_was(make_host: MakeHost, name: str) -> None:
    """Our files go, with what Python compiled of them and the folders that this leaves empty; frames stay."""
    place = make_host(name)
    before = tree(place)
    hook.install(name, place)
    host = hook.HOSTS[name]
    for path in hook.look(host, place).files:
        compiled = path.parent / "__pycache__" / f"{path.stem}.cpython-310.pyc"
        compiled.parent.mkdir(exist_ok=True)
        compiled.write_bytes(b"")
    if host.frames:
        (place / host.frames / "frame.png").write_text("")
    outcome = hook.uninstall(name, place)
    assert len([path for path in outcome.removed if path.suffix != ".pyc"]) == len(host.files)
    assert tree(place) == before | ({f"{host.frames}/frame.png": ""} if host.frames else {})
    if host.place:
        assert not (place / host.place).exists()
    assert hook.uninstall(name, place).sentences == [f"there is no hook for {host.title} in {place}"]


def test_uninstall_leaves_what_is_not_ours(make_host: MakeHost) -> None:
    """An edited file, a user's settings and somebody's notes stay, each with a sentence."""
    place = make_host("comfyui")
    hook.install("comfyui", place)
    ours = place / "custom_nodes/stepwatch"
    (ours / "settings.json").write_text("{}")
    (ours / "pyproject.toml").write_text((ours / "pyproject.toml").read_text() + "\n# mine\n")
    outcome = hook.uninstall("comfyui", place)
    assert sorted(path.name for path in ours.iterdir()) == ["pyproject.toml", "settings.json"]
    assert sorted(path.name for path in outcome.kept) == ["pyproject.toml", "settings.json"]
    assert any("has been edited" in one for one in outcome.sentences)
    assert any("is not ours" in one for one in outcome.sentences)


def test_uninstall_touches_nobody_elses_extension(make_host: MakeHost) -> None:
    """A foreign folder of that name stays whole, empty folders in it too."""
    place = make_host("forge")
    (place / "extensions/stepwatch/scripts").mkdir(parents=True)
    (place / "extensions/stepwatch/empty").mkdir()
    (place / "extensions/stepwatch/scripts/stepwatch.py").write_text("mine")
    outcome = hook.uninstall("forge", place)
    assert outcome.removed == []
    assert (place / "extensions/stepwatch/empty").is_dir()


def test_uninstall_works_when_the_host_has_gone(make_host: MakeHost) -> None:
    """A hook can be taken out of a host that was half removed; but one of another host is named."""
    place = make_host("forge")
    hook.install("forge", place)
    with pytest.raises(UsageError, match="is that for forge"):
        hook.uninstall("a1111", place)
    (place / "webui.py").unlink()
    assert hook.uninstall("forge", place).removed


# -- list, doctor


def test_list_shows_hooks_and_their_versions(make_host: MakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each host's hook is named with its version and whether it is up to date; a folder that is no host gives exit code 2, after the others."""
    first, second, third = make_host("forge"), make_host("comfyui"), make_host("diffusers")
    hook.install("forge", first)
    hook.install("diffusers", third)
    assert run(["hook", "list", str(first), str(second), str(third)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Forge 2.0.1v1.10.1 in {first}: hook {__version__}, up to date"
    assert lines[1] == f"ComfyUI 0.3.64 in {second}: no hook; `stepwatch hook install comfyui {second}`"
    assert lines[2] == f"diffusers in {third}: hook {__version__}, up to date"
    assert run(["hook", "list", "--json", str(tmp_path), str(second)]) == 2
    hooks = json.loads(capsys.readouterr().out)["hooks"]
    assert [(one["host"], one["state"], one["version"]) for one in hooks] == [("comfyui", "absent", None)]


def test_list_and_doctor_find_the_hosts_of_the_watched_folders(
    make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A watched folder below a host's is enough for both to tell whether that host has a hook, and whether it is this version's."""
    place = make_host("comfyui")
    hook.install("comfyui", place)
    script = place / "custom_nodes/stepwatch/__init__.py"
    script.write_text(older(script.read_text()))
    service = tmp_path / "service.yaml"
    service.write_text(f"version: 1\nwatch:\n  - path: {place}/output/stepwatch\n  - path: {tmp_path}\n")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert run(["hook", "list", "-c", str(service)]) == 0
    assert "hook 0.0.9, not the one of this stepwatch" in capsys.readouterr().out
    (finding,) = [one for one in doctor.examine(config_file=service) if one.subject == "hook"]
    assert (finding.state, finding.hint) == ("warning", f"`stepwatch hook install comfyui {place}`")


def test_a_copied_hook_needs_nothing_of_stepwatch(make_host: MakeHost) -> None:
    """The file for diffusers can be imported where there is no stepwatch, and nothing but the standard library."""
    place = make_host("diffusers")
    hook.install("diffusers", place)
    script = "import sys; sys.modules['stepwatch'] = None; import stepwatch_diffusers as hook; print(hook.VERSION, hook.record.__name__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=place, capture_output=True, text=True, check=True, env={"PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert done.stdout.split() == [__version__, "record"]


def test_hook_help_knows_every_host(capsys: pytest.CaptureFixture[str]) -> None:
    """The names that help shows without loading anything are the hosts that there are."""
    from stepwatch.cli.hooks import HOST_NAMES

    assert set(HOST_NAMES) == set(hook.HOSTS)
    assert run(["hook", "install", "blender", "."]) == 2
    assert "'comfyui'" in capsys.readouterr().err
