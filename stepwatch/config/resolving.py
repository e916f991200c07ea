"""Layers to the policy of a folder: which sources count there, in which order, and whom of them to trust."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stepwatch.config import strict_yaml
from stepwatch.config.reading import FILE_NAME, Reader, display, facts_of, policy_file, trusted_users
from stepwatch.config.strict_yaml import Fault, Node, shown
from stepwatch.core import policy as model
from stepwatch.core.policy import Layer, Policy, ServiceConfig, WatchEntry
from stepwatch.errors import ConfigError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The policy for one folder, or for one run in it, with everything that depends on where it lies."""

    policy: Policy
    watched: Path
    """Real path of the watched folder that owns the run."""
    output_dirs: tuple[Path, ...]
    """Absolute folder of each output, in their order."""
    origins: Mapping[str, str]
    """Where each value comes from, by its key (``outputs.0.codec``): ``file:line``, ``default``, ``--set``, ``run.json``, ``preset ...``."""
    warnings: tuple[str, ...] = ()
    """Sentences about keys that were refused or ignored; the policy is valid without them."""
    longest: Fraction | None = None
    """Seconds that the animation may take; set when an untrusted source chose ``fps_in`` and only the number of frames tells."""
    astray: tuple[str, ...] = ()
    """Complaints about folders of ``output_dirs`` into which nothing may be written as they are."""

    def require_places(self) -> None:
        """Raise ConfigError unless ``output_dirs`` may be written to: for whoever is about to, and sends the outputs nowhere else."""
        if self.astray:
            raise ConfigError(self.astray)


def resolve_for(
    folder: Path,
    *,
    service: ServiceConfig,
    settings: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    watched: Path | None = None,
) -> Resolved:
    """Work out the policy for a folder: service file, every stepwatch.yaml from the watched folder down, the sidecar's wishes, ``--set``.

    ``overrides`` is the sidecar's ``stepwatch`` object; whatever is wrong with it is a warning. Raises ConfigError with the complaints of all
    files, UsageError for ``settings``.
    """
    chosen = _command_line(settings)
    folder = _real(folder)
    root, entry, warnings = watched_folder(folder, service=service, watched=watched)
    users, unknown = trusted_users(entry.trust if entry else ())
    warnings += [f"trust: there is no user {shown(name)} on this machine" for name in unknown]

    layers = [dataclasses.replace(service.policy, folder=str(root))]
    if entry:
        layers.append(dataclasses.replace(entry.policy, folder=str(root)))
    complaints: list[str] = []
    for place in folders_between(root, folder):
        file = policy_file(place / FILE_NAME)
        if file is None:
            continue
        complaints += file.complaints
        reason = model.distrust(file.facts, trusted=users)
        layers.append(Layer(name=display(place / FILE_NAME), settings=file.settings, folder=str(place), distrust=reason))
    if overrides:
        layer, problems = _sidecar_layer(overrides, folder)
        layers.append(layer)
        warnings += problems
    layers.append(dataclasses.replace(chosen, folder=os.getcwd() if chosen.settings else "", preset_folder=str(root)))

    if complaints:
        raise ConfigError(tuple(dict.fromkeys(complaints)))
    resolution = model.resolve(layers, watched=str(root))
    places, astray = _output_dirs(resolution, root)
    return Resolved(
        policy=resolution.policy,
        watched=root,
        output_dirs=places,
        origins=resolution.origins,
        warnings=(*warnings, *resolution.warnings),
        longest=resolution.longest,
        astray=astray,
    )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def watched_folder(folder: Path, *, service: ServiceConfig, watched: Path | None = None) -> tuple[Path, WatchEntry | None, list[str]]:
    """Find the watched folder that owns a folder, its entry in the service file, and what was odd on the way."""
    entries = [(_real(Path(entry.path)), entry) for entry in service.watch]
    owners = [(path, entry) for path, entry in entries if folder.is_relative_to(path)]
    if watched is not None:
        root = _real(watched)
        # The walk that began at `root` may come into a folder that is watched by itself.
        owners = [(path, entry) for path, entry in owners if path.is_relative_to(root)]
        if not owners:
            return root, None, []
    if owners:
        path, entry = max(owners, key=lambda owner: len(owner[0].parts))
        return path, entry, []
    warnings: list[str] = []
    for ancestor in (*reversed(folder.parents), folder):
        name = ancestor / FILE_NAME
        if not os.path.lexists(name):
            continue
        # It decides where animations go. In /tmp anybody can leave such a file: one that is not trusted counts only where its folder is.
        reason = "" if ancestor == folder else _place_distrust(name)
        if not reason:
            return ancestor, None, warnings
        warnings.append(f"{display(name)}: does not count, because {reason} and others may write its folder too")
    return folder, None, warnings


def _place_distrust(name: Path) -> str:
    """Say why a stepwatch.yaml may not make its folder a watched one; empty when it may."""
    users, _ = trusted_users(())
    file = policy_file(name)
    reason = model.distrust(file.facts, trusted=users) if file else ""
    if not reason:
        return ""
    try:
        status = name.parent.stat()
    except OSError:
        return reason
    folder = facts_of(handle_status=status, link=status, path=name.parent)
    return reason if model.distrust(folder, trusted=users) else ""


def folders_between(root: Path, folder: Path) -> list[Path]:
    """The folders from the watched one down to the run's."""
    if not folder.is_relative_to(root):
        return [root, folder]
    steps = folder.relative_to(root).parts
    return [root.joinpath(*steps[:count]) for count in range(len(steps) + 1)]


def _sidecar_layer(overrides: Mapping[str, object], folder: Path) -> tuple[Layer, list[str]]:
    """Read what a sidecar wishes; it is untrusted input, so that nothing in it is an error."""
    node, faults = strict_yaml.from_object(overrides)
    reader = Reader("run.json", faults, lines=False)
    settings = reader.policy(node)
    problems = [f"{complaint} (ignored)" for complaint in reader.complaints()]
    return Layer(name="run.json", settings=settings, folder=str(folder), distrust="a sidecar may only say how a clip looks"), problems


def _command_line(settings: Sequence[str]) -> Layer:
    """Read all ``--set KEY=VALUE`` into one layer; the last one for a key counts. Values are YAML; where a key holds text, they are that text."""
    if not settings:
        return Layer(name="--set")
    reader = Reader("--set", lines=False)
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            reader.faults.append(Fault(line=0, column=0, key="", wrong=f"`{shown(text)}` sets nothing", right="write --set timeline.duration=6s"))
            continue
        node, faults = strict_yaml.parse(value)
        if model.holds_text(key) and not (node and not faults and (node.value is None or node.quoted)):
            # Braces, colons and `#` are as common in templates and patterns as they are special in YAML.
            node, faults = Node(value=value.strip(), written=shown(value.strip())), []
        reader.faults += [dataclasses.replace(fault, key=shown(f"{key}.{fault.key}".rstrip("."))) for fault in faults]
        if node is None:
            continue
        reader.assign(key, node if value.strip() else Node(value=None, written="nothing"))
    reader.check_rivals()
    if reader.faults:
        raise UsageError("\n".join(reader.complaints()))
    return Layer(name="--set", settings=tuple(reader.settings))


def _output_dirs(resolution: model.Resolution, root: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Work out where each output goes; second, complaints: a folder that nobody configured may not lead out of the watched one."""
    places: list[Path] = []
    astray: list[str] = []
    for output, base in zip(resolution.policy.outputs, resolution.folders, strict=True):
        if output.dir is not None:
            # On disk a name is UTF-8; where the locale says otherwise, Python writes another text for the same bytes.
            written = os.fsdecode(output.dir.encode("utf-8", "surrogateescape"))
            places.append(Path(os.path.normpath(os.path.join(base, written))))
            continue
        place = root / model.DEFAULT_DIR
        if not _real(place).is_relative_to(root):
            says = f"{display(place)}: this link leads out of the watched folder, to {display(_real(place))}"
            astray.append(f"{says}; if that is meant, set `dir` under `outputs` in a file of yours")
        places.append(place)
    return tuple(places), tuple(dict.fromkeys(astray))
