"""``stepwatch service install | uninstall | print``: the daemon as a service of the person who asks.

On Linux that is a unit of the user's own systemd, made from ``systemd/stepwatch.service``; on macOS a LaunchAgent; on Windows a note that says
what to type. Nothing here is needed to run the daemon, so nothing here fails for want of systemd: the file is written, and what remains to be done
is said.

A file that we wrote carries a digest of itself. Where that no longer fits, somebody has edited the file, and where there is none it is somebody
else's: it is kept under another name before ours takes its place, and `uninstall` leaves what is not ours alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import plistlib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from stepwatch import config as configuration
from stepwatch import store
from stepwatch.core.naming import printable
from stepwatch.errors import EnvironmentFault

UNIT = "stepwatch.service"
LABEL = "stepwatch"
"""What launchd and the Task Scheduler know the daemon by."""
PATIENCE = 60
"""Seconds for one command; a daemon with many folders on a slow share may take longer to start, and is not waited for."""
KEPT = ("STEPWATCH_FFMPEG", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
"""Variables that a service would not inherit, and without which its configuration and its receipts were others than those of the shell."""

_MARK = re.compile(r"^(?:# |<!-- )stepwatch-file ([0-9a-f]{16}):.*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command had to say."""

    code: int
    """Its status; 127 where it is not on this machine, 124 when it took too long."""
    said: str = ""
    """The end of what it wrote, one line."""


Runner = Callable[[Sequence[str]], Answer]


def run_command(arguments: Sequence[str]) -> Answer:
    """Run a command and wait for it; that it is missing, hangs or cannot be started is an answer, too."""
    try:
        done = subprocess.run(
            list(arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
        )
    except FileNotFoundError:
        return Answer(code=127, said=f"there is no {arguments[0]} on this machine")
    except subprocess.TimeoutExpired:
        return Answer(code=124, said=f"no answer within {PATIENCE} s")
    except OSError as error:
        return Answer(code=126, said=f"{arguments[0]} cannot be run: {error.strerror}")
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return Answer(code=done.returncode, said=printable(lines[-1].strip()) if lines else "")


# ---------------------------------------------------------------- what is written


def text(*, config: Path | None = None, platform: str = sys.platform) -> str:
    """The unit, the LaunchAgent or the note, as `install` would write or say it; *config* is the service file of the command line."""
    if platform == "win32":
        return _note(_command(config))
    if platform == "darwin":
        return _agent(_command(config), _environment())
    return _unit(_command(config), _environment())


def place(*, platform: str = sys.platform) -> Path | None:
    """Where that file lies; None where there is none to write."""
    if platform == "win32":
        return None
    if platform == "darwin":
        return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    given = os.environ.get("XDG_CONFIG_HOME", "")
    # By its specification, a relative one counts as unset.
    base = Path(given) if os.path.isabs(given) else Path.home() / ".config"
    return base / "systemd" / "user" / UNIT


def _command(config: Path | None) -> list[str]:
    return [sys.executable, "-m", "stepwatch", "watch", *(("--config", os.path.abspath(config)) if config is not None else ())]


def _environment() -> dict[str, str]:
    # Neither systemd nor a plist takes bytes that are no text; a control character would be no folder that anybody means.
    return {name: value for name in KEPT if (value := os.environ.get(name)) and value.isprintable()}


def _unit(command: Sequence[str], environment: Mapping[str, str]) -> str:
    lines = [f"ExecStart={_exec_line(command)}"]
    if environment:
        lines.append("# As in the shell in which it was installed, so that both mean the same files.")
        lines += [f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()]
    template = _template(UNIT)
    made, count = re.subn(r"^ExecStart=.*$", lambda _: "\n".join(lines), template, flags=re.MULTILINE)
    assert count == 1, "the template has one ExecStart"
    return _marked(made, "# {}")


def _template(name: str) -> str:
    """A file of ``systemd/``: inside the installed package, beside it in a source tree."""
    package = files("stepwatch")
    installed = package.joinpath("_data", "systemd", name)
    return (installed if installed.is_file() else Path(str(package)).parent / "systemd" / name).read_text(encoding="utf-8")


def _exec_line(command: Sequence[str]) -> str:
    # systemd takes no program whose path has quotes, backslashes or control characters; a shell gets its name as an argument.
    odd = re.search(r"[\"'\\\x00-\x1f\x7f]", command[0])
    whole = ["/bin/sh", "-c", 'exec "$0" "$@"', *command] if odd else list(command)
    # A dollar sign is a variable, unless a colon says that none is meant; systemd knows the colon since 244, so it stands only where it must.
    return (":" if any("$" in word for word in whole) else "") + " ".join(map(_quoted, whole))


def _quoted(word: str) -> str:
    """Write one word so that systemd reads it back as it is: quotes and backslashes as in C, and per cent signs twice."""
    if re.fullmatch(r"[A-Za-z0-9_/.:=+,@-]+", word):
        return word
    special = {'"': '\\"', "\\": "\\\\", "%": "%%"}
    return '"' + "".join(special.get(char) or (char if char.isprintable() else _escaped(char)) for char in word) + '"'


def _escaped(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def _agent(command: Sequence[str], environment: Mapping[str, str]) -> str:
    log = str(Path.home() / "Library" / "Logs" / "stepwatch.log")
    agent = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        **({"EnvironmentVariables": dict(environment)} if environment else {}),
        "RunAtLoad": True,
        # Back after a crash, not after it was told to end; and not more often than every half minute.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 30,
        # Behind the host that makes pictures.
        "ProcessType": "Background",
        "LowPriorityIO": True,
        "Nice": 10,
        # Renders may finish for `daemon.drain`; launchd's own 20 s are less than that.
        "ExitTimeOut": 90,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    return _marked(plistlib.dumps(agent, sort_keys=False).decode("utf-8"), "<!-- {} -->", after_lines=2)


def _note(command: Sequence[str]) -> str:
    line = subprocess.list2cmdline(command)
    return (
        "stepwatch has no service for Windows. The Task Scheduler starts it whenever you log in:\n"
        f"  {subprocess.list2cmdline(['schtasks', '/Create', '/TN', LABEL, '/SC', 'ONLOGON', '/RL', 'LIMITED', '/TR', line])}\n"
        f"  schtasks /Run /TN {LABEL}       (now)\n"
        f"  schtasks /Delete /TN {LABEL}    (never again)\n"
    )


def _marked(content: str, comment: str, *, after_lines: int = 0) -> str:
    mark = comment.format(
        f"stepwatch-file {_digest(content)}: written by `stepwatch service install`, which keeps a copy of this file if you edit it"
    )
    lines = content.splitlines(keepends=True)
    return "".join([*lines[:after_lines], f"{mark}\n", *lines[after_lines:]])


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]


# ---------------------------------------------------------------- install


def install(*, config: Path | None = None, dry: bool = False, platform: str = sys.platform, run: Runner = run_command) -> tuple[str, ...]:
    """Write the file, have the daemon started now and at every login, and return the sentences that say what was done and what was not.

    Raises ConfigError for a service file with which the daemon would not start, and EnvironmentFault when the file cannot be written; everything else
    that does not work is a sentence. With *dry* nothing is done, and the sentences say what would be.
    """
    path = place(platform=platform)
    content = text(config=config, platform=platform)
    if path is None:
        return tuple(content.splitlines())
    watched = bool(configuration.load_service(config).watch)
    darwin = platform == "darwin"
    if dry:
        commands = _launchd_commands(path, start=watched) if darwin else _systemd_commands(again=os.path.lexists(path), start=watched)
        return (f"would write {printable(str(path))}", *(f"would run: {' '.join(map(printable, command))}" for command in commands))
    again = os.path.lexists(path)
    sentences = [*_write(path, content), *(() if watched else (_nothing_watched(config),))]
    return (*sentences, *(_start_agent(path, run, start=watched) if darwin else _start_unit(run, again=again, start=watched)))


def _nothing_watched(config: Path | None) -> str:
    file = configuration.service_file(config) or "~/.config/stepwatch/service.yaml"
    return f"nothing is watched yet, so the daemon is not started: name folders under `watch:` in {printable(str(file))}"


def _systemd_commands(*, again: bool, start: bool) -> list[list[str]]:
    systemctl = ["systemctl", "--user"]
    if not start:
        starting = [[*systemctl, "enable", UNIT]]
    elif again:
        # A daemon that runs already would not notice that its unit has changed.
        starting = [[*systemctl, "enable", UNIT], [*systemctl, "restart", UNIT]]
    else:
        starting = [[*systemctl, "enable", "--now", UNIT]]
    return [[*systemctl, "daemon-reload"], *starting, ["loginctl", "--no-ask-password", "enable-linger"]]


def _start_unit(run: Runner, *, again: bool, start: bool) -> list[str]:
    reload, *starting, linger = _systemd_commands(again=again, start=start)
    answer = run(reload)
    if answer.code == 127:
        return ["systemd is not here (there is no systemctl), so nothing starts the daemon by itself: run `stepwatch watch`, or have it run at login"]
    if answer.code:
        rest = " && ".join(" ".join(command) for command in (reload, *starting))
        return [f"your own systemd does not answer ({answer.said}); log in as yourself, not through su or sudo, and run: {rest}"]
    sentences = []
    for command in starting:
        answer = run(command)
        if answer.code == 124:
            return ["the daemon is still starting: `systemctl --user status stepwatch` shows how far it is"]
        if answer.code:
            shown = " ".join(command)
            return [f"`{shown}` failed: {answer.said}; `systemctl --user status stepwatch` and `journalctl --user -u stepwatch` tell more"]
    sentences.append("the daemon runs, and starts with every login" if start else "the daemon starts with your next login")
    answer = run(linger)
    if answer.code:
        name = _user()
        sentences.append(
            f"warning: it ends when you log out, as lingering could not be switched on ({answer.said}); `sudo loginctl enable-linger {name}` does it"
        )
    else:
        sentences.append("it goes on when you log out (lingering is on)")
    return sentences


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "$USER"


def _launchd_commands(path: Path, *, start: bool) -> list[list[str]]:
    domain = f"gui/{_uid()}"
    # The first one fails where nothing was loaded, as at the first time.
    return [["launchctl", "bootout", f"{domain}/{LABEL}"], *([["launchctl", "bootstrap", domain, str(path)]] if start else [])]


def _uid() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _start_agent(path: Path, run: Runner, *, start: bool) -> list[str]:
    for command in (commands := _launchd_commands(path, start=start)):
        answer = run(command)
    if not start:
        return ["the daemon starts with your next login"]
    if answer.code:
        return [f"launchd did not take it ({answer.said}); it starts with your next login, or now by: {' '.join(map(printable, commands[-1]))}"]
    return ["the daemon runs, and starts with every login; its log is ~/Library/Logs/stepwatch.log"]


# ---------------------------------------------------------------- uninstall


def uninstall(*, dry: bool = False, platform: str = sys.platform, run: Runner = run_command) -> tuple[str, ...]:
    """Stop the daemon, have it no longer started and remove the file; return what was done and what was not. A file that is not ours stays."""
    path = place(platform=platform)
    if path is None:
        return (f"Windows keeps no file of stepwatch; `schtasks /Delete /TN {LABEL}` removes the task",)
    shown = printable(str(path))
    whose = _whose(path)
    if whose == "nobody":
        return (f"there is nothing to uninstall: no {shown}",)
    if whose == "foreign":
        return (f"{shown} was not written by `stepwatch service install`, so it stays as it is",)
    darwin = platform == "darwin"
    stop = _launchd_commands(path, start=False)[0] if darwin else ["systemctl", "--user", "disable", "--now", UNIT]
    if dry:
        return (f"would run: {' '.join(stop)}", f"would remove {shown}" if whose == "ours" else f"would set {shown} aside, as it has been edited")
    answer = run(stop)
    sentences = ["the daemon is stopped, and no longer started" if not answer.code else f"a daemon that still runs goes on ({answer.said})"]
    try:
        if whose == "edited":
            sentences.append(f"{shown} has been edited: it is now {printable(str(store.set_aside(path)))}")
        else:
            path.unlink()
            sentences.append(f"removed {shown}")
        if not darwin:
            # `systemctl enable` made it; without systemctl nobody else takes it away.
            with contextlib.suppress(FileNotFoundError):
                (path.parent / "default.target.wants" / UNIT).unlink()
    except OSError as error:
        raise EnvironmentFault(f"cannot remove {shown}: {printable(str(error.strerror or error)).lower()}") from error
    if not darwin and not answer.code:
        run(["systemctl", "--user", "daemon-reload"])
        sentences.append("lingering stays as it is: `loginctl disable-linger` ends it where nothing else needs it")
    return tuple(sentences)


# ---------------------------------------------------------------- whose file


def _whose(path: Path) -> Literal["nobody", "ours", "edited", "foreign"]:
    try:
        # What was put there with `systemctl link`, or masked, is a link, and nothing of ours.
        if path.is_symlink():
            return "foreign"
        content = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return "nobody"
    except OSError:
        return "foreign"
    found = _MARK.search(content)
    if found is None:
        return "foreign"
    return "ours" if _digest(content[: found.start()] + content[found.end() :]) == found[1] else "edited"


def _write(path: Path, content: str) -> list[str]:
    """Put the file in its place; whatever stands there and is not ours as we left it, is kept beside it."""
    shown = printable(str(path))
    sentences = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whose = _whose(path)
        if whose in ("edited", "foreign"):
            why = "had been edited" if whose == "edited" else "was not written by `stepwatch service install`"
            sentences.append(f"the file that was there {why}: it is now {printable(str(store.set_aside(path)))}")
        temporary = store.temporary_path(path.parent, "")
        try:
            temporary.write_text(content, encoding="utf-8", newline="\n")
            store.fsync_file(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {shown}: {printable(str(error.strerror or error)).lower()}") from error
    return [*sentences, f"wrote {shown}"]
