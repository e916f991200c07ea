"""The commands around the hooks: install, uninstall, list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepwatch.cli.common import current, everywhere
from stepwatch.errors import UsageError

if TYPE_CHECKING:
    from stepwatch.hook import Hook, Outcome

HOST_NAMES = ("a1111", "forge", "reforge", "sdnext", "comfyui", "diffusers")
"""As in `stepwatch.hook.HOSTS`, which help need not load."""


@click.group("hook")
@everywhere
def hook_group() -> None:
    """Install the hooks, which have a host write its steps for stepwatch."""


def say_outcome(outcome: Outcome) -> int:
    """Print what was done to a hook, and what is left to be done by hand."""
    from stepwatch import hook

    given = current()
    report = given.report()
    if given.json:
        report.result_json({"schema": 1, **hook.outcome_facts(outcome)})
    else:
        for line in outcome.sentences:
            report.result_text(line)
    return 0


@hook_group.command("install")
@click.argument("host", type=click.Choice(HOST_NAMES))
@click.argument("folder", metavar="PATH")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@everywhere
def hook_install(host: str, folder: str, dry_run: bool) -> int:  # noqa: FBT001  # click calls by name
    """Install the hook for HOST, which lies in the folder PATH, or bring it up to date; what you have edited is kept beside it."""
    from stepwatch import hook

    return say_outcome(hook.install(host, Path(folder), dry=dry_run))


@hook_group.command("uninstall")
@click.argument("host", type=click.Choice(HOST_NAMES))
@click.argument("folder", metavar="PATH")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@everywhere
def hook_uninstall(host: str, folder: str, dry_run: bool) -> int:  # noqa: FBT001  # click calls by name
    """Remove the hook for HOST from the folder PATH, but no file that was edited or is not ours; frames stay."""
    from stepwatch import hook

    return say_outcome(hook.uninstall(host, Path(folder), dry=dry_run))


@hook_group.command("list")
@click.argument("folders", metavar="[PATH...]", nargs=-1)
@everywhere
def hook_list(folders: tuple[str, ...]) -> int:
    """Show the hooks of the hosts in PATH (default: of the hosts to which the watched folders belong), and whether they are up to date."""
    from stepwatch import hook

    given = current()
    report = given.report()
    places = [Path(folder) for folder in folders] or hook.near(Path(entry.path) for entry in given.service().watch)
    hooks: list[Hook] = []
    code = 0
    for place in places:
        try:
            hooks += hook.installed(place)
        except UsageError as error:
            report.error(error)
            code = error.exit_code
    if given.json:
        report.result_json({"schema": 1, "hooks": [hook.facts(one) for one in hooks]})
        return code
    for one in hooks:
        report.result_text(hook.sentence(one) + (f"; {hint}" if (hint := hook.remedy(one)) else ""))
    if not places:
        report.note("no watched folder belongs to a host; name the host's folder")
    return code
