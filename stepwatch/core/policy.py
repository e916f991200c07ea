"""Policy: every choice that can be made for a run, typed, with its default, unit and meaning at the field; and how layers make one.

The YAML in ``stepwatch.yaml`` has exactly the shape of ``Policy`` (``outputs`` and ``quality`` also have short forms), the service file that of
``ServiceConfig``. ``config`` turns text into layers; the rest of the core reads nothing but a finished ``Policy``. The docstring under a field is
what users read: editors show it out of the JSON Schema, ``config/README.md`` and the files of ``config init`` are made from it.

Trust stands at the fields. A field is for trusted sources only, unless its type carries ``Looks`` (how a clip looks, within bounds) or
``Stricter`` (a promise about files, which anybody may tighten and nobody untrusted may loosen). The bounds keep a stranger's file from
filling the disk or the night: ``MOST_OUTPUTS`` files of ``LONGEST`` seconds, ``FASTEST`` pictures a second, ``WIDEST`` pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Annotated, Literal, TypeVar

from stepwatch.errors import UsageError

_Mark = TypeVar("_Mark")

MOST_OUTPUTS = 4
LONGEST = Fraction(600)
FASTEST = Fraction(120)
WIDEST = Fraction(4096)

DEFAULT_DIR = "animation"
"""Where outputs go when no layer says where: this folder of the watched folder."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Marks a Fraction that YAML writes as a duration: ``10s``, ``1m30s``, ``500ms``, ``1d``, or a plain number of seconds."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """Marks an int that YAML writes as a size: ``10MB`` (decimal), ``8MiB``, or a plain number of bytes."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Marks a positive Fraction that YAML writes as ``30``, ``29.97`` or ``30000/1001``."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Marks text such as ``1024`` or ``1080x1920``, which YAML may also write as a number."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Marks a named quality, or the int that YAML writes as ``crf: 23`` or ``crf:23``."""


@dataclass(frozen=True, slots=True)
class Template:
    """Marks a template of a file's name; which fields there are is known to ``naming``."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Marks a named layout or a regular expression; which there are is known to ``naming``."""


@dataclass(frozen=True, slots=True)
class Place:
    """Marks a path, relative to the folder of the file that sets it; ``~`` is the home folder."""


@dataclass(frozen=True, slots=True)
class Text:
    """Marks plain text that must not be empty."""


@dataclass(frozen=True, slots=True)
class Range:
    """Values below, at or above these are mistakes, whoever writes them."""

    at_least: Fraction | int | None = None
    at_most: Fraction | int | None = None
    above: Fraction | int | None = None


@dataclass(frozen=True, slots=True)
class Looks:
    """An untrusted source may set this field, within the given bound."""

    at_most: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Stricter:
    """An untrusted source may only move this field towards the front of ``order``, from where the layers below have put it."""

    order: tuple[object, ...]


Duration = Annotated[Fraction, Seconds()]
Size = Annotated[int, Bytes()]

_day = 86400
_some_time = Range(above=0, at_most=_day)
_any_time = Range(at_least=0, at_most=_day)
_sane_rate = Range(above=0, at_most=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectPolicy:
    """When a run is ready; guides the daemon only."""

    settle: Literal["auto"] | Annotated[Duration, _any_time] = "auto"
    """A frame is readable after this long unchanged; auto = from the cadence of the run."""
    stall: Literal["auto"] | Annotated[Duration, _some_time] = "auto"
    """No new frame for this long, and nobody said complete = stalled; auto = from the cadence of the run."""
    incomplete: Literal["render", "hold", "ignore"] = "render"
    """What to do with a run that stalled, was interrupted or failed: render what is there, hold it for a person's word, or ignore it."""
    min_frames: Annotated[int, Range(at_least=1)] = 2
    """Fewer frames than this: the daemon leaves the run alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesPolicy:
    """Which images are frames, and which of them are shown."""

    pattern: Annotated[str, Pattern()] | None = None
    """numbered, steps-animation, save-intermediate, comfyui, or a regular expression with a group ``step`` and, for several runs in one folder,
    a group ``run``. Unset, the daemon takes only folders with a sidecar for runs."""
    skip_first: Annotated[int, Range(at_least=0), Looks()] = 0
    """Leave out this many frames at the start of the run."""
    skip_last: Annotated[int, Range(at_least=0), Looks()] = 0
    """Leave out this many frames at the end of the run."""
    every: Annotated[int, Range(at_least=1), Looks()] = 1
    """Show every Nth of the frames that remain; the last one always stays."""
    damaged: Literal["skip", "fail"] = "skip"
    """What a frame that cannot be decoded does to the render; it always forbids clearing."""
    append: bool = False
    """The runs of this folder become one animation, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelinePolicy:
    """When each frame shows."""

    duration: Annotated[Duration, _some_time, Looks(LONGEST)] = Fraction(10)
    """Length of the animation without its holds, exact whatever the interpolation."""
    fps_in: Annotated[Fraction, Rate(), _sane_rate, Looks(FASTEST)] | None = None
    """Instead of ``duration``: this many frames of the run in a second. Of the two, the nearer layer's counts."""
    fps: Annotated[Fraction, Rate(), _sane_rate, Looks(FASTEST)] = Fraction(30)
    """Pictures a second in the animation."""
    interpolation: Annotated[Literal["none", "blend", "mci"], Looks()] = "blend"
    """Between two frames: nothing, a cross-fade, or motion-compensated interpolation (slow without the extra ``flow``)."""
    hold_first: Annotated[Duration, _any_time, Looks(LONGEST)] = Fraction(0)
    """Show the animation's first picture this much longer, on top of ``duration``. Whatever the direction: in reverse it is the run's last frame."""
    hold_last: Annotated[Duration, _any_time, Looks(LONGEST)] = Fraction(1)
    """Show the animation's last picture this much longer, on top of ``duration``. Whatever the direction: in reverse it is the run's first frame,
    in pingpong its second."""
    direction: Annotated[Literal["forward", "reverse", "pingpong"], Looks()] = "forward"
    """Order of the frames; pingpong plays 1..n..2 within the duration."""
    early_end: Literal["rerender", "retime"] = "rerender"
    """What a live encode does when the run ends before its promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePolicy:
    """How large the animation is."""

    match: Annotated[Literal["largest", "last", "first"], Looks()] = "largest"
    """Which frame gives the size when they differ."""
    scale: Annotated[str, Scale(), Range(at_least=2, at_most=16384), Looks(WIDEST)] | None = None
    """``1024`` (long side) or ``1080x1920``; unset: as large as the frames."""
    fit: Annotated[Literal["pad", "crop", "stretch"], Looks()] = "pad"
    """What happens to a frame of another shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPolicy:
    """One file to be rendered from a run."""

    codec: Annotated[Literal["h264", "h265", "av1", "vp9", "prores", "gif", "webp", "apng"], Looks()] = "h264"
    """h264, h265 and av1 make mp4 files, vp9 webm, prores mov; gif, webp and apng are animated pictures."""
    quality: Annotated[str | int, Quality(), Range(at_least=0, at_most=63), Looks()] = "default"
    """default (tuned), classic (the parameters of Steps Animation), high, small, or ``crf: N``."""
    name: Annotated[str, Template(), Looks()] = "{seed}-{prompt:.80}"
    """Template of the file's name without its suffix: {seed} {prompt:.80} {date:%Y%m%d} {sampler} {model} {steps} {run} {n:03d} {status}.
    With all fields empty it is {run}; incomplete runs get ``-incomplete``, equal names the codec."""
    dir: Annotated[str, Place()] | None = None
    """Folder for the file, relative to the folder of the YAML file that sets it; unset: ``animation`` in the watched folder."""
    max_size: Annotated[Size, Range(at_least=1), Looks()] | None = None
    """The file must not be larger; it is encoded again until it fits."""
    constant_rate: Annotated[bool, Looks()] = False
    """With interpolation none: repeat frames at fps instead of one encoded frame for each image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupPolicy:
    """What happens to intermediates that a published output covers."""

    intermediates: Annotated[Literal["keep", "trash", "delete"], Stricter(("keep", "trash", "delete"))] = "keep"
    """Keep them, move them to the trash of the watched folder, or delete them."""
    skipped: Annotated[Literal["keep", "clear"], Stricter(("keep", "clear"))] = "keep"
    """Frames left out by skip_first, skip_last and every: keep them, or clear them with the others."""
    grace: Annotated[Duration, Range(at_least=0)] = Fraction(_day)
    """How long the trash keeps them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataPolicy:
    """What the animation says of itself."""

    # Not Looks: a stranger's file must not publish prompts that the owner of the folder keeps to himself.
    include: Annotated[Literal["full", "basic", "none"], Stricter(("none", "basic", "full"))] = "full"
    """full; basic leaves prompts out; none writes digests only."""
    mp4: Annotated[Literal["keys", "apple"], Looks()] = "keys"
    """keys (what ComfyUI and civitai read) or apple (what Explorer and QuickTime read)."""
    author: Annotated[str, Text(), Looks()] | None = None
    """Name written as the artist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All choices for a run, resolved from its layers."""

    version: Literal[1] = 1
    """Version of this file's format."""
    detect: DetectPolicy = field(default_factory=DetectPolicy)
    frames: FramesPolicy = field(default_factory=FramesPolicy)
    timeline: TimelinePolicy = field(default_factory=TimelinePolicy)
    size: SizePolicy = field(default_factory=SizePolicy)
    outputs: tuple[OutputPolicy, ...] = (OutputPolicy(),)
    """The files to be rendered from one run; short forms: ``outputs: gif``, ``outputs: [h264, gif]``."""
    # Withholding an animation harms nothing that cannot be rendered later, so anybody may; starting renders that the owner switched off may not.
    create: Annotated[bool, Stricter((False, True))] = True
    """false: make no animation at all."""
    cleanup: CleanupPolicy = field(default_factory=CleanupPolicy)
    metadata: MetadataPolicy = field(default_factory=MetadataPolicy)
    live: Literal["auto", "off"] = "auto"
    """Encode while the run goes on, where that can be exact."""
    preset: Literal["steps-animation"] | None = None
    """``steps-animation``: the defaults of that extension, below this file's own keys."""


# --- layers ---------------------------------------------------------------------------------------------------------------------------------


class Reset(Enum):
    """What YAML's ``null`` means: forget the layers below, back to the built-in default."""

    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key of one layer, its value checked and of the field's type."""

    key: str
    """``timeline.duration``, ``outputs.0.codec``; ``outputs`` alone (value: how many) replaces the whole list; a section only to reset it."""
    value: object
    origin: str
    """Where it was set: ``file:line``, ``--set``, ``run.json``, ``preset NAME (file:line)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One source of policy, its settings in the order they were written."""

    name: str = ""
    settings: tuple[Setting, ...] = ()
    folder: str = ""
    """What a relative ``dir`` in it is relative to."""
    preset_folder: str = ""
    """The same for the keys of a preset that it names; empty: ``folder``."""
    distrust: str = ""
    """Why it may decide only how a clip looks, in plain words; empty for a trusted source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What a stack of layers comes to."""

    policy: Policy
    origins: Mapping[str, str]
    """Where each value comes from, by its key (``outputs.0.codec``); ``default`` for what nobody set."""
    folders: tuple[str, ...]
    """For each output, the folder that its ``dir`` is relative to."""
    warnings: tuple[str, ...] = ()
    """A sentence for each key that an untrusted layer was refused."""
    longest: Fraction | None = None
    """Seconds; set when an untrusted layer chose ``fps_in``, so that only the number of frames tells how long the animation gets."""


PRESETS: Mapping[str, Mapping[str, object]] = {
    # The defaults of the WebUI extension Steps Animation, whose users expect them to the letter: animations lie beside the frames' folder.
    "steps-animation": {
        "detect.incomplete": "render",
        "frames.skip_first": 5,
        "timeline.duration": Fraction(10),
        "timeline.fps": Fraction(30),
        "timeline.interpolation": "mci",
        "timeline.hold_first": Fraction(0),
        "timeline.hold_last": Fraction(0),
        "outputs": 1,
        "outputs.0.codec": "h264",
        "outputs.0.quality": "classic",
        "outputs.0.name": "{seed}-{prompt:.96}",
        "outputs.0.dir": "../animation",
        "create": True,
        "cleanup.intermediates": "delete",
        "cleanup.skipped": "clear",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One key of a model that holds a value, as its field declares it."""

    key: str
    """``timeline.duration``; ``outputs.*.codec`` for a field of each output."""
    hint: object
    """Its type with all marks."""
    default: object
    owner: type
    name: str

    def mark(self, kind: type[_Mark]) -> _Mark | None:
        """Find the mark of this kind in the field's type."""
        return next((mark for mark in marks(self.hint) if isinstance(mark, kind)), None)


def marks(hint: object) -> Iterable[object]:
    """All marks of a type, those inside of a union too."""
    yield from getattr(hint, "__metadata__", ())
    for part in typing.get_args(hint):
        yield from marks(part)


@functools.cache
def leaves(model: type = Policy, prefix: str = "") -> Mapping[str, Leaf]:
    """List the keys of a model in the order of their fields, sections entered, lists entered under ``*``."""
    hints = typing.get_type_hints(model, include_extras=True)
    found: dict[str, Leaf] = {}
    for member in dataclasses.fields(model):
        key, hint = prefix + member.name, hints[member.name]
        inner, many = section_of(hint)
        if inner:
            found |= leaves(inner, f"{key}.*." if many else f"{key}.")
        else:
            found[key] = Leaf(key=key, hint=hint, default=member.default, owner=model, name=member.name)
    return found


def section_of(hint: object) -> tuple[type | None, bool]:
    """Tell whether a field's type is a section of its own, or a list of them (second value)."""
    if typing.get_origin(hint) is tuple:
        hint, many = typing.get_args(hint)[0], True
    else:
        many = False
    return (hint, many) if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint is not Layer else (None, False)


def leaf_of(key: str) -> Leaf:
    """Find the field behind a setting's key, ``outputs.0.codec`` too; KeyError for a section."""
    return leaves()[".".join("*" if part.isdecimal() else part for part in key.split("."))]


def holds_text(key: str) -> bool:
    """Tell whether any text may stand under a key: a template, a pattern, a path, a name."""
    try:
        leaf = leaf_of(key)
    except KeyError:
        return False
    return any(isinstance(mark, Template | Pattern | Place | Text) for mark in marks(leaf.hint))


# --- resolving ------------------------------------------------------------------------------------------------------------------------------
# Layers are flattened to keys, and every key remembers the layer that set it last. So "mappings merge" is no code at all, and a value's origin,
# the folder its path is relative to, and who may loosen it are all found in one place. Only three keys touch others: ``outputs`` replaces the
# list, and ``duration`` and ``fps_in`` are two ways to say one thing, so that setting one forgets the other.

_Held = dict[str, tuple[Setting, Layer]]
_RIVALS = {"timeline.duration": "timeline.fps_in", "timeline.fps_in": "timeline.duration"}
_TIMES = ("timeline.duration", "timeline.fps_in", "timeline.hold_first", "timeline.hold_last")


def resolve(layers: Sequence[Layer], *, watched: str = "") -> Resolution:
    """Merge layers, given from low to high, into one policy.

    A refused key of an untrusted layer becomes a warning and changes nothing. Raises UsageError for an output that is not there.
    """
    held: _Held = {}
    warnings: list[str] = []
    for layer in layers:
        if layer.distrust:
            warnings += _apply_untrusted(held, layer)
        else:
            for each in _with_preset(layer):
                for setting in each.settings:
                    _apply(held, setting, each)
    fps_in = held.get("timeline.fps_in")
    return Resolution(
        policy=_build(held),
        origins=_origins(held),
        folders=tuple(_folder(held, index, watched) for index in range(_count(held))),
        warnings=tuple(warnings),
        longest=LONGEST if fps_in and fps_in[1].distrust and fps_in[0].value is not Reset.DEFAULT else None,
    )


def _with_preset(layer: Layer) -> Iterable[Layer]:
    """The layer, and right below it the preset that it names."""
    named = next((setting for setting in reversed(layer.settings) if setting.key == "preset"), None)
    if named and named.value is not Reset.DEFAULT:
        origin = f"preset {named.value} ({named.origin})"
        settings = tuple(Setting(key=key, value=value, origin=origin) for key, value in PRESETS[str(named.value)].items())
        yield Layer(name=origin, settings=settings, folder=layer.preset_folder or layer.folder)
    yield layer


def _apply(held: _Held, setting: Setting, layer: Layer) -> None:
    key = setting.key
    for single in _singly(setting):
        held[single.key] = (single, layer)
    if key == "outputs":
        for old in [other for other in held if other.startswith("outputs.")]:
            del held[old]
    elif key.startswith("outputs.") and int(key.split(".")[1]) >= _count(held):
        count = _count(held)
        raise UsageError(
            f"{setting.origin}: {key}: there {'is only one output' if count == 1 else f'are only {count} outputs'}, counted from 0",
            hint="`--set outputs=[h264, gif]` lists them all",
        )
    rival = _RIVALS.get(key)
    if rival in held and setting.value is not Reset.DEFAULT:
        del held[rival]


def _singly(setting: Setting) -> Iterable[Setting]:
    """The setting itself; for a section that is reset, one reset for each of its keys."""
    below = [key for key in leaves() if key.startswith(setting.key + ".") and "*" not in key]
    if not below:
        return (setting,)
    return tuple(dataclasses.replace(setting, key=key) for key in below)


def _apply_untrusted(held: _Held, layer: Layer) -> list[str]:
    """Apply what an untrusted layer may say; returns a warning for everything else."""
    warnings = []
    before = {key: held[key] for key in _TIMES if key in held}
    refused_list = False
    for setting in (single for written in layer.settings for single in _singly(written)):
        if refused_list and setting.key.startswith("outputs."):
            continue
        refusal = _refusal(setting, held)
        if refusal:
            refused_list = refused_list or setting.key == "outputs"
            warnings.append(f"{setting.origin}: {setting.key}: ignored, because {layer.distrust}; {refusal}")
        else:
            _apply(held, setting, layer)
    asked = _asked(held)
    if asked > LONGEST:
        for key in _TIMES:
            held.pop(key, None)
        held.update(before)
        warnings.append(
            f"{layer.name}: timeline: its times are ignored, because {layer.distrust}; together they come to {float(asked):g} seconds,"
            f" and it may ask for {LONGEST} at most"
        )
    return warnings


def _refusal(setting: Setting, held: _Held) -> str | None:
    """Say what an untrusted layer may do with this key instead; None when it may do just this."""
    if setting.key == "outputs":
        if setting.value is Reset.DEFAULT or (isinstance(setting.value, int) and setting.value <= MOST_OUTPUTS):
            return None
        return f"it may ask for {MOST_OUTPUTS} outputs at most"
    leaf = leaf_of(setting.key)
    value = leaf.default if setting.value is Reset.DEFAULT else setting.value
    stricter, looks = leaf.mark(Stricter), leaf.mark(Looks)
    if stricter:
        now = held[setting.key][0].value if setting.key in held else leaf.default
        limit = stricter.order.index(leaf.default if now is Reset.DEFAULT else now)
        if stricter.order.index(value) <= limit:
            return None
        allowed = " or ".join(_written(each) for each in stricter.order[: limit + 1])
        return f"it may only say {allowed}, not {_written(value)}"
    if looks is None:
        return "only a trusted file, or the command line, may set this"
    if looks.at_most is not None and setting.value is not Reset.DEFAULT and _magnitude(value) > looks.at_most:
        return f"it may ask for {looks.at_most} at most"
    return None


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _magnitude(value: object) -> Fraction:
    """The largest number in a value: a duration, a rate, or one side of ``1080x1920``."""
    return max(Fraction(part) for part in str(value).split("x"))


def _value(held: Mapping[str, tuple[Setting, Layer]], key: str) -> object:
    """The value that counts for a key now."""
    if key in held and held[key][0].value is not Reset.DEFAULT:
        return held[key][0].value
    return leaf_of(key).default


def _count(held: _Held) -> int:
    value = held["outputs"][0].value if "outputs" in held else Reset.DEFAULT
    return value if isinstance(value, int) else len(Policy().outputs)


def _asked(held: _Held) -> Fraction:
    """Seconds of animation that untrusted layers ask for; those of ``fps_in`` are known with the frames only."""
    values = (held[key][0].value for key in _TIMES if key in held and key != "timeline.fps_in" and held[key][1].distrust)
    return sum((value for value in values if isinstance(value, Fraction)), Fraction(0))


def _folder(held: _Held, index: int, watched: str) -> str:
    """The folder that an output's ``dir`` is relative to."""
    entry = held.get(f"outputs.{index}.dir")
    return entry[1].folder if entry and entry[0].value is not Reset.DEFAULT else watched


def _origins(held: _Held) -> dict[str, str]:
    origins: dict[str, str] = {}
    for pattern in leaves():
        for index in range(_count(held)) if "*" in pattern else (0,):
            key = pattern.replace("*", str(index))
            entry = held.get(key)
            if entry is None:
                origins[key] = "default"
            else:
                origins[key] = f"default (reset by {entry[0].origin})" if entry[0].value is Reset.DEFAULT else entry[0].origin
    return origins


def _build(held: _Held) -> Policy:
    """Make the typed policy out of the keys that count."""
    values: dict[str, typing.Any] = {}
    for name, model, many in _sections():
        if model is None:
            values[name] = _value(held, name)
        elif many:
            values[name] = tuple(_section(held, model, f"{name}.{index}.") for index in range(_count(held)))
        else:
            values[name] = _section(held, model, f"{name}.")
    return Policy(**values)


@functools.cache
def _sections() -> tuple[tuple[str, type | None, bool], ...]:
    """For each field of a policy, what `section_of` says of it."""
    return tuple((name, *section_of(hint)) for name, hint in typing.get_type_hints(Policy, include_extras=True).items())


def _section(held: _Held, model: type, prefix: str) -> object:
    return model(**{member.name: _value(held, prefix + member.name) for member in dataclasses.fields(model)})


# --- trust ----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What the file system says about who can have written a file."""

    owners: tuple[tuple[int, str], ...]
    """User id and name of the file's owner; of the link's too, where the name is a link."""
    others_write: bool = False
    """Anybody may write it."""
    group_writes: str | None = None
    """Name of the group that may write it; None when none may, or only its owner's private group."""


def distrust(facts: FileFacts, *, trusted: frozenset[int]) -> str:
    """Say why a file is not to be trusted; empty when it is.

    ``trusted`` holds the user running stepwatch and those named under ``trust``; root always counts.
    """
    for user, name in facts.owners:
        if user not in trusted and user != 0:
            return f"the file belongs to {name}"
    if facts.others_write:
        return "anybody may write the file"
    if facts.group_writes is not None:
        return f"everybody in the group {facts.group_writes} may write the file"
    return ""


# --- the service file -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEntry:
    """One watched folder of the service file."""

    path: Annotated[str, Place()]
    """Folder tree to be watched; ``~`` is the home folder, a relative path starts at the service file."""
    policy: Layer = Layer()
    """Policy for the runs in it, the same keys as in stepwatch.yaml."""
    trust: tuple[str, ...] = ()
    """Further users whose stepwatch.yaml files below this folder count as trusted."""
    poll: Literal["auto", "off"] | Annotated[Duration, _some_time] = "auto"
    """Look at the folder this often instead of waiting for events; auto = on network mounts only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """How the daemon works."""

    workers: Literal["auto"] | Annotated[int, Range(at_least=1, at_most=256)] = "auto"
    """Renders at the same time; auto = by the number of processors."""
    nice: Annotated[int, Range(at_least=0, at_most=19)] = 19
    """How far renders step back behind other programs: 0 not at all, 19 as far as possible."""
    rescan: Annotated[Duration, Range(at_least=1, at_most=_day)] = Fraction(300)
    """All watched folders are looked through this often, in case an event was lost; files rewritten in place, a twelfth of the folders each time."""
    min_free_space: Annotated[Size, Range(at_least=0)] = 10**9
    """No render starts with less than this free on the disk of its output."""
    max_attempts: Annotated[int, Range(at_least=1, at_most=1000)] = 4
    """A run that failed this often is left alone until somebody retries it."""
    drain: Annotated[Duration, _any_time] = Fraction(30)
    """When the daemon is stopped, renders have this long to finish."""
    log: Literal["text", "json"] = "text"
    """Log lines for people, or one JSON object each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """The service file: what is watched, the policy below all others, and how the daemon works."""

    version: Literal[1] = 1
    """Version of this file's format."""
    watch: tuple[WatchEntry, ...] = ()
    """The watched folders; the deepest one that contains a run owns it."""
    policy: Layer = Layer()
    """Base policy for all watched folders, the same keys as in stepwatch.yaml."""
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    ffmpeg: Annotated[str, Text()] = "auto"
    """auto = STEPWATCH_FFMPEG, the bundled one, PATH; or the path of an ffmpeg."""
