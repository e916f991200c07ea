"""The units under systemd/, and `service install`, which never fails for want of systemd and never loses a file that somebody has edited."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch import unit
from stepwatch.config import reading
from stepwatch.core.policy import DaemonConfig
from stepwatch.errors import ConfigError, EnvironmentFault
from stepwatch.unit import Answer

ROOT = Path(__file__).parent.parent
SYSTEMD = ROOT / "systemd"
UNITS = [SYSTEMD / "stepwatch.service", SYSTEMD / "stepwatch@.service"]

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")


@pytest.fixture(autouse=True)
def nobodys_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No service file of the machine that runs the tests counts, and none of its variables gets into a unit."""
    monkeypatch.setattr(reading, "MACHINE_FOLDER", tmp_path / "etc")
    monkeypatch.delenv("STEPWATCH_FFMPEG", raising=False)


class Commands:
    """Runs nothing, remembers what was asked for, and answers as told."""

    def __init__(self, answers: dict[str, Answer] | None = None) -> None:
        self.asked: list[str] = []
        self.answers = answers or {}

    def __call__(self, arguments: Sequence[str]) -> Answer:
        line = shlex.join(arguments)
        self.asked.append(line)
        return next((answer for part, answer in self.answers.items() if part in line), Answer(code=0))


NO_SYSTEMD = {"ctl": Answer(code=127, said="there is no systemctl on this machine")}
NO_BUS = {"systemctl": Answer(code=1, said="Failed to connect to bus: No medium found")}


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A service file that names a folder, where the daemon looks for it."""
    return service_file(f"watch: [{tmp_path}]\n")


def service_file(text: str) -> Path:
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "stepwatch" / "service.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def unit_path() -> Path:
    path = unit.place(platform="linux")
    assert path
    return path


def settings_of(path: Path) -> dict[str, list[str]]:
    """The lines of a unit, by their names."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def reader_of(line: str) -> list[str]:
    """Read a command line as systemd.service(5) and systemd.syntax(7) say that systemd does."""
    plain = line.startswith(":")
    words = []
    for word in re.findall(r'"(?:[^"\\]|\\.)*"|[^ ]+', line.removeprefix(":")):
        inner = re.sub(r"\\(x[0-9a-f]{2}|.)", c_escape, word[1:-1]) if word.startswith('"') else word
        inner = inner.replace("%%", "\0").replace("%", "SPECIFIER").replace("\0", "%")
        words.append(inner if plain else inner.replace("$", "VARIABLE"))
    return words


def c_escape(found: re.Match[str]) -> str:
    return os.fsdecode(bytes([int(found[1][1:], 16)])) if found[1].startswith("x") and len(found[1]) == 3 else found[1]


# --- the units themselves


def analyze(*arguments: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "run").mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    return subprocess.run(["systemd-analyze", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60)


def with_a_program(path: Path, folder: Path) -> Path:
    """A unit with a program that is there, as verify asks for one."""
    made = folder / path.name
    made.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", path.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8")
    return made


@needs_analyze
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_has_nothing_to_say_about_the_units(path: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent: a key that it does not know is a line and still status 0."""
    manager = () if "@" in path.name else ("--user",)
    done = analyze("verify", *manager, str(with_a_program(path, tmp_path)), tmp_path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
def test_verify_would_tell_of_a_mistake(tmp_path: Path) -> None:
    """The same check on a unit with a wrong key is not silent."""
    made = with_a_program(UNITS[1], tmp_path)
    made.write_text(made.read_text().replace("[Service]", "[Service]\nWatchdogs=1"))
    assert "Watchdogs" in analyze("verify", str(made), tmp_path=tmp_path).stderr


@needs_analyze
def test_the_system_unit_is_hardened(tmp_path: Path) -> None:
    """`systemd-analyze security` gives an exposure of 2.0 or better."""
    done = analyze("security", "--offline=true", str(with_a_program(UNITS[1], tmp_path)), tmp_path=tmp_path)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= 2.0


def calls_of(word: str, tmp_path: Path) -> set[str]:
    """The system calls of a group, or the one that is named."""
    if not word.startswith("@"):
        return {word}
    words = analyze("syscall-filter", word, tmp_path=tmp_path).stdout.split("\n")[1:]
    return set().union(*(calls_of(line.strip(), tmp_path) for line in words if line.strip() and not line.strip().startswith("#")))


NEEDED = {
    *("inotify_init1", "inotify_add_watch", "inotify_rm_watch", "flock", "fcntl", "fsync", "link", "linkat", "renameat2", "unlinkat", "statfs"),
    *("socket", "sendto", "clone", "clone3", "vfork", "execve", "kill", "setsid", "prctl", "capget", "capset"),
    *("setpriority", "ioprio_get", "ioprio_set", "sched_setaffinity", "set_mempolicy", "mbind", "prlimit64", "mmap", "mprotect"),
}
"""What daemon, setpriv and ffmpeg ask of the kernel beside the usual: watching, locking, publishing, stepping back, ending with the parent."""


@needs_analyze
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_what_daemon_and_ffmpeg_ask_of_the_kernel_is_allowed(path: Path, tmp_path: Path) -> None:
    """The filters are read as systemd reads them: line by line, adding, and taking away after ``~``."""
    allowed: set[str] = set()
    for value in settings_of(path)["SystemCallFilter"]:
        named = set().union(*(calls_of(word, tmp_path) for word in value.removeprefix("~").split()))
        allowed = allowed - named if value.startswith("~") else allowed | named
    assert allowed >= NEEDED
    assert "reboot" not in allowed


@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="it takes root to give rights up, and setpriv")
def test_setpriv_ties_a_child_to_its_parent_without_any_rights() -> None:
    """As in the system unit: another account, no capability, no way to new ones."""
    without = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    done = subprocess.run([*without, "setpriv", "--pdeathsig", "KILL", "--", "/bin/echo", "runs"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "runs\n", "")


@needs_analyze
@pytest.mark.parametrize("name", ["plain", "with a space", "100%n", "a$HOME", "it's", 'quo"te', "back\\slash", "\udcff", "äöü"])
def test_systemd_reads_what_install_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The rendered unit passes verify with its own program, wherever that lies."""
    program = tmp_path / name / "python"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))
    made = tmp_path / "stepwatch.service"
    made.write_text(unit.text(config=tmp_path / name / "my service.yaml", platform="linux"), encoding="utf-8")
    done = analyze("verify", "--user", str(made), tmp_path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_each_line_of_a_unit_has_its_reason(path: Path) -> None:
    """Above every setting stands a comment, or another setting that shares it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and line[0] not in "#[":
            assert before.startswith("#") or (before and before[0] != "["), line


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_units_agree_with_the_daemon(path: Path) -> None:
    """Stopping gives renders their time, configuration and busy folders are no reason to try again, and the watchdog is fed by the daemon only."""
    found = settings_of(path)
    assert float(found["TimeoutStopSec"][0]) >= DaemonConfig().drain + 30
    assert found["RestartPreventExitStatus"] == ["75 78"]
    assert (found["Type"], found["NotifyAccess"], found["KillMode"], found["Restart"]) == (["notify"], ["main"], ["mixed"], ["on-failure"])
    assert (found["OOMPolicy"], found["ExecReload"]) == (["continue"], ["kill -HUP $MAINPID"])
    assert {"WatchdogSec", "StartLimitBurst", "Nice", "CPUWeight", "RuntimeDirectory"} <= found.keys()
    for breaks in ("PrivateUsers", "ProcSubset", "PrivateDevices", "DevicePolicy", "ProtectProc", "DynamicUser", "NoExecPaths", "Documentation"):
        assert breaks not in found
    assert "@resources" not in " ".join(found["SystemCallFilter"])


def test_receipts_are_where_the_shell_looks_for_them() -> None:
    """A user's unit has no StateDirectory: before systemd 254 that would be ~/.config, and `render` would not see what the daemon rendered."""
    assert "StateDirectory" not in settings_of(UNITS[0])
    assert settings_of(UNITS[1])["StateDirectory"] == ["stepwatch/%i"]


def test_a_users_unit_locks_nothing_that_needs_a_namespace() -> None:
    """Some systems forbid those to users: the daemon would not start there at all."""
    risky = re.compile("^(Protect|Private|ReadWritePaths|ReadOnlyPaths|InaccessiblePaths|MemoryDeny|User|CapabilityBoundingSet)")
    assert not [name for name in settings_of(UNITS[0]) if risky.match(name)]


def test_the_units_are_in_the_wheel(tmp_path: Path) -> None:
    """Where `service install` finds them when stepwatch is installed."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for path in UNITS:
            assert archive.read(f"stepwatch/_data/systemd/{path.name}") == path.read_bytes()
        archive.extractall(tmp_path / "site")
    code = "from stepwatch import unit; print(unit.__file__); print(unit.text(platform='linux'))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    where, _, text = done.stdout.partition("\n")
    assert where.startswith(str(tmp_path))
    assert text.rstrip() == unit.text(platform="linux").rstrip()


# --- what is written


def test_the_unit_runs_this_python_with_this_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter, the module, the service file if one was named, and the variables that decide where files lie."""
    monkeypatch.setenv("STEPWATCH_FFMPEG", "/opt/my ffmpeg")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.chdir(tmp_path)
    lines = unit.text(config=Path("my.yaml"), platform="linux").splitlines()
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert reader_of(start.removeprefix("ExecStart=")) == [sys.executable, "-m", "stepwatch", "watch", "--config", str(tmp_path / "my.yaml")]
    assert 'Environment="STEPWATCH_FFMPEG=/opt/my ffmpeg"' in lines
    assert not any("XDG_STATE_HOME" in line for line in lines)


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_any_path_is_read_back_as_it_is(text: str) -> None:
    """Spaces, quotes, per cent and dollar signs, newlines, undecodable bytes: none ends the word, none is replaced."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return
    line = unit._exec_line(["/" + text, "watch", text])
    assert "\n" not in line
    # Bytes are compared: an escaped byte comes back as a byte.
    assert [os.fsencode(word) for word in reader_of(line)][-3:] == [os.fsencode(word) for word in ("/" + text, "watch", text)]


def test_macos_gets_a_launch_agent(watched: Path) -> None:
    """It starts with the login, comes back after a crash, stays in the background and gets the time to finish its renders."""
    run = Commands()
    sentences = unit.install(platform="darwin", run=run)
    path = Path.home() / "Library" / "LaunchAgents" / "stepwatch.plist"
    agent: dict[str, Any] = plistlib.loads(path.read_bytes())
    assert agent["ProgramArguments"] == [sys.executable, "-m", "stepwatch", "watch"]
    assert (agent["KeepAlive"], agent["ProcessType"], agent["RunAtLoad"]) == ({"SuccessfulExit": False}, "Background", True)
    assert agent["ExitTimeOut"] > DaemonConfig().drain
    assert agent["EnvironmentVariables"]["XDG_STATE_HOME"] == os.environ["XDG_STATE_HOME"]
    assert run.asked == [f"launchctl bootout gui/{os.getuid()}/stepwatch", f"launchctl bootstrap gui/{os.getuid()} {path}"]
    assert sentences[-1].startswith("the daemon runs")
    refused = unit.install(platform="darwin", run=Commands({"bootstrap": Answer(code=5, said="Bootstrap failed: 5: Input/output error")}))
    assert "next login" in refused[-1]
    unit.uninstall(platform="darwin", run=run)
    assert not path.exists()
    assert run.asked[-1] == f"launchctl bootout gui/{os.getuid()}/stepwatch"


def test_windows_gets_a_note() -> None:
    """Nothing is written or run; the sentences say what to type."""
    run = Commands()
    note = unit.install(platform="win32", run=run)
    assert any("schtasks /Create" in line and "stepwatch watch" in line for line in note)
    assert "schtasks /Delete" in unit.uninstall(platform="win32", run=run)[0]
    assert "\n".join(note) + "\n" == unit.text(platform="win32")
    assert run.asked == []


# --- install


def test_install_writes_enables_and_lets_linger(watched: Path) -> None:
    """The unit where the user's systemd looks, then its commands in their order."""
    run = Commands()
    sentences = unit.install(platform="linux", run=run)
    assert unit_path() == Path(os.environ["XDG_CONFIG_HOME"]) / "systemd" / "user" / "stepwatch.service"
    assert unit_path().read_text() == unit.text(platform="linux")
    assert run.asked == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now stepwatch.service",
        "loginctl --no-ask-password enable-linger",
    ]
    assert sentences[0] == f"wrote {unit_path()}"
    assert "the daemon runs" in sentences[1]
    assert not [name for name in os.listdir(unit_path().parent) if name != "stepwatch.service"]


@pytest.mark.parametrize("given", [None, "", "relative/config"])
def test_without_xdg_config_home_the_unit_lies_below_the_home(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """In ~/.config/systemd/user; a relative path counts as none."""
    monkeypatch.delenv("XDG_CONFIG_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_CONFIG_HOME", given)
    assert unit_path() == Path.home() / ".config" / "systemd" / "user" / "stepwatch.service"


def test_installing_again_restarts_and_keeps_no_copies(watched: Path) -> None:
    """A daemon that runs takes the new unit; a file of ours that nobody has edited needs no copy."""
    unit.install(platform="linux", run=Commands())
    run = Commands()
    unit.install(config=watched, platform="linux", run=run)
    assert run.asked[1:3] == ["systemctl --user enable stepwatch.service", "systemctl --user restart stepwatch.service"]
    assert "--config" in unit_path().read_text()
    assert os.listdir(unit_path().parent) == ["stepwatch.service"]


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda text: text + "# mine\n", id="added"),
        pytest.param(lambda text: text.replace("Nice=10", "Nice=5"), id="changed"),
        pytest.param(lambda _: "[Service]\nExecStart=/x\n", id="foreign"),
    ],
)
def test_a_unit_of_somebody_elses_hand_is_kept_and_said_so(watched: Path, edit: Callable[[str], str]) -> None:
    """Edited or foreign: it becomes .bak, then .bak-1, and a sentence says where it is."""
    unit.install(platform="linux", run=Commands())
    kept = []
    for name in ("stepwatch.service.bak", "stepwatch.service.bak-1"):
        edited = edit(unit_path().read_text())
        unit_path().write_text(edited)
        sentences = unit.install(platform="linux", run=Commands())
        assert name in sentences[0]
        kept.append(unit_path().with_name(name))
        assert kept[-1].read_text() == edited
        assert unit_path().read_text() == unit.text(platform="linux")
    assert sorted(os.listdir(unit_path().parent)) == ["stepwatch.service", *(path.name for path in kept)]


def test_a_link_in_its_place_is_kept_and_not_followed(watched: Path, tmp_path: Path) -> None:
    """A unit that was linked from elsewhere, or masked, stays what it is beside ours."""
    (tmp_path / "theirs").write_text("[Service]\n")
    unit_path().parent.mkdir(parents=True)
    for target in (tmp_path / "theirs", Path(os.devnull), tmp_path / "nowhere"):
        unit_path().unlink(missing_ok=True)
        unit_path().symlink_to(target)
        sentences = unit.install(platform="linux", run=Commands())
        assert "is now" in sentences[0]
        assert not unit_path().is_symlink()
    assert (tmp_path / "theirs").read_text() == "[Service]\n"
    assert not (tmp_path / "nowhere").exists()
    assert os.readlink(unit_path().with_name("stepwatch.service.bak-1")) == os.devnull


def test_without_systemctl_the_file_is_written_and_the_rest_is_said(watched: Path) -> None:
    """One plain sentence, no further command."""
    run = Commands(NO_SYSTEMD)
    sentences = unit.install(platform="linux", run=run)
    assert unit_path().is_file()
    assert len(run.asked) == 1
    assert "stepwatch watch" in sentences[-1]


def test_without_a_bus_the_commands_to_type_are_said(watched: Path) -> None:
    """As after su or in a container: what systemctl said, and what to run later."""
    run = Commands(NO_BUS)
    sentences = unit.install(platform="linux", run=run)
    assert unit_path().is_file()
    assert len(run.asked) == 1
    assert "No medium found" in sentences[-1]
    assert "systemctl --user daemon-reload && systemctl --user enable --now stepwatch.service" in sentences[-1]


def test_a_daemon_that_does_not_start_is_told_of(watched: Path) -> None:
    """With the place where its reason can be read; one that takes long is not called failed."""
    failed = unit.install(platform="linux", run=Commands({"enable --now": Answer(code=1, said="Job for stepwatch.service failed")}))
    assert "Job for stepwatch.service failed" in failed[-1]
    assert "journalctl --user -u stepwatch" in failed[-1]
    slow = unit.install(platform="linux", run=Commands({"restart": Answer(code=124, said="no answer within 60 s")}))
    assert "still starting" in slow[-1]


def test_lingering_that_cannot_be_switched_on_is_a_warning(watched: Path) -> None:
    """Else the daemon would die at logout and nobody would know why."""
    sentences = unit.install(platform="linux", run=Commands({"loginctl": Answer(code=1, said="Could not enable linger: Access denied")}))
    assert "the daemon runs" in sentences[-2]
    assert sentences[-1].startswith("warning: it ends when you log out")
    assert "Access denied" in sentences[-1]
    assert "sudo loginctl enable-linger" in sentences[-1]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_with_nothing_to_watch_the_daemon_is_not_started(platform: str) -> None:
    """It is enabled, and a sentence says which file wants a folder."""
    run = Commands()
    sentences = unit.install(platform=platform, run=run)
    assert not [line for line in run.asked if "--now" in line or "bootstrap" in line or "restart" in line]
    assert any("nothing is watched yet" in sentence and "service.yaml" in sentence for sentence in sentences)
    assert "next login" in " ".join(sentences)


def test_a_wrong_service_file_is_told_of_before_anything_is_written() -> None:
    """A daemon that could not start is not installed."""
    service_file("watch: 3\n")
    with pytest.raises(ConfigError):
        unit.install(platform="linux", run=Commands())
    assert not unit_path().exists()


def test_a_dry_run_only_says(watched: Path) -> None:
    """No file, no command."""
    run = Commands()
    sentences = unit.install(dry=True, platform="linux", run=run)
    assert sentences[0] == f"would write {unit_path()}"
    assert "would run: systemctl --user enable --now stepwatch.service" in sentences
    assert not unit_path().exists()
    assert run.asked == []
    unit.install(platform="linux", run=run)
    assert unit.uninstall(dry=True, platform="linux", run=run)[-1] == f"would remove {unit_path()}"
    assert unit_path().exists()


def test_a_place_that_cannot_be_written_is_a_sentence(watched: Path) -> None:
    """A file where the folder should be."""
    (Path(os.environ["XDG_CONFIG_HOME"]) / "systemd").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        unit.install(platform="linux", run=Commands())


# --- uninstall


def test_uninstall_undoes_install(watched: Path) -> None:
    """Stopped, disabled, removed; the second time there is nothing to do."""
    unit.install(platform="linux", run=Commands())
    run = Commands()
    sentences = unit.uninstall(platform="linux", run=run)
    assert run.asked == ["systemctl --user disable --now stepwatch.service", "systemctl --user daemon-reload"]
    assert not unit_path().exists()
    assert f"removed {unit_path()}" in sentences
    again = Commands()
    assert "nothing to uninstall" in unit.uninstall(platform="linux", run=again)[0]
    assert again.asked == []


def test_uninstall_leaves_what_is_not_ours(watched: Path) -> None:
    """A foreign unit stays and goes on; an edited one is stopped and kept as .bak."""
    unit.install(platform="linux", run=Commands())
    edited = unit_path().read_text() + "# mine\n"
    unit_path().write_text(edited)
    assert "has been edited" in " ".join(unit.uninstall(platform="linux", run=Commands()))
    assert unit_path().with_name("stepwatch.service.bak").read_text() == edited
    unit_path().write_text("[Service]\n")
    run = Commands()
    assert "stays as it is" in unit.uninstall(platform="linux", run=run)[0]
    assert run.asked == []
    assert unit_path().read_text() == "[Service]\n"


def test_uninstall_without_systemd_removes_the_file_and_what_starts_it(watched: Path) -> None:
    """The link that `enable` made goes too, and a daemon that may still run is mentioned."""
    unit.install(platform="linux", run=Commands())
    link = unit_path().parent / "default.target.wants" / "stepwatch.service"
    link.parent.mkdir()
    link.symlink_to(unit_path())
    sentences = unit.uninstall(platform="linux", run=Commands(NO_SYSTEMD))
    assert "goes on" in sentences[0]
    assert not unit_path().exists()
    assert not link.is_symlink()


# --- with programs


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/asked"\n{script}\n')
    path.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="the programs are shell scripts")
def test_the_programs_on_path_are_run(watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemctl and loginctl as processes: their arguments arrive, and what they say on stderr comes back."""
    programs = tmp_path / "bin"
    fake(programs, "systemctl", "")
    fake(programs, "loginctl", "echo trouble >&2; echo 'Could not enable linger: No such device' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/bin:/usr/bin")
    sentences = unit.install(platform="linux")
    assert (programs / "asked").read_text().splitlines() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now stepwatch.service",
        "loginctl --no-ask-password enable-linger",
    ]
    assert "(Could not enable linger: No such device)" in sentences[-1]
    assert "the daemon is stopped" in unit.uninstall(platform="linux")[0]


def test_a_machine_without_programs_is_no_traceback(watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty PATH, a program that may not be run, and one that never answers."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "there is no systemctl" in unit.install(platform="linux")[-1]
    assert "no systemctl" in unit.uninstall(platform="linux")[0]
    assert unit.run_command([str(tmp_path)]).code == 126
    monkeypatch.setattr(unit, "PATIENCE", 0.05)
    assert unit.run_command([sys.executable, "-c", "import sys; sys.stdin.read(); import threading; threading.Event().wait()"]).code == 124
