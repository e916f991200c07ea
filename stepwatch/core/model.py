"""The nouns that several core modules speak of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from stepwatch.core.policy import CleanupPolicy


class Outcome(StrEnum):
    """What the producer says of a run, as written under ``state`` in the sidecar."""

    RUNNING = "running"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """Where a run lies: the same key whoever looks, from whichever watched folder."""

    folder: str
    """Real path of the folder that holds the frames."""
    group: str = ""
    """Name of the run among several in one flat folder; empty when the folder is the run."""

    def __str__(self) -> str:
        return f"{self.folder}[{self.group}]" if self.group else self.folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One image on disk that some sampler step left behind."""

    step: int
    """Sampler step that produced this frame: 1.., with holes."""
    name: str
    """Path relative to the run's folder; may hold any character, surrogates for undecodable bytes included."""
    size: int
    """Bytes."""
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    device: int = 0
    links: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """The process that writes a run, as the sidecar tells it; what it does not tell is None."""

    host: str | None = None
    boot_id: str | None = None
    pid: int | None = None
    start_time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What the hook wrote into ``run.json``, checked: every field is absent or of its right type."""

    run_id: str
    state: Outcome
    group_id: str | None = None
    error: str | None = None
    created: str | None = None
    """RFC 3339 text, as written."""
    updated: str | None = None
    ended: str | None = None
    steps_planned: int | None = None
    steps_done: int | None = None
    every: int = 1
    skip: int = 0
    frame_name: str | None = None
    """Format of the frames' names, such as ``{index:05d}.png``."""
    frame_count: int | None = None
    frames_planned: int | None = None
    lost: tuple[int, ...] = ()
    """Indices of frames that the hook could not write."""
    scale: int = 1
    """Frames on disk are to be enlarged by this factor, 1..16."""
    width: int | None = None
    height: int | None = None
    generation: Mapping[str, object] = field(default_factory=dict)
    """prompt, negative, seed, sampler, ...: known keys with values of their right type."""
    infotext: str | None = None
    workflow_file: str | None = None
    writer: Writer = Writer()
    overrides: Mapping[str, object] = field(default_factory=dict)
    """The ``stepwatch`` object: policy for this run, untrusted and unchecked."""
    raw: Mapping[str, object] = field(default_factory=dict)
    """The whole JSON object, for what has no field here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One pass of one picture's denoising, as its folder shows it."""

    key: RunKey
    name: str
    """Short name for people and for ``{run}``: the sidecar's run_id, else the group, else the folder's name."""
    frames: tuple[Frame, ...]
    """One frame for each step, in the order of the steps."""
    duplicates: tuple[Frame, ...] = ()
    """Further files of a step that already has its frame."""
    missing: tuple[int, ...] = ()
    """Steps without a frame between the first and the last one, by the run's own stride."""
    layout: str = "numbered"
    """``sidecar``, a named layout, or ``pattern`` for a regular expression of the policy."""
    guessed: bool = False
    """Nobody said that this folder holds frames; what was only guessed is never cleared."""
    sidecar: Sidecar | None = None
    seed_hint: int | None = None
    """Seed in the names of the frames, where their layout promises one; whatever sidecar or frames say is better."""
    prompt_hint: str | None = None
    """Prompt in the names of the frames, as far as a name could hold it."""
    notes: tuple[str, ...] = ()
    """Sentences about what was odd: an unreadable sidecar, keys of a wrong type, duplicates."""

    @property
    def run_id(self) -> str:
        """Identity for receipts and metadata: the sidecar's, else a digest of where the run lies."""
        if self.sidecar:
            return self.sidecar.run_id
        where = f"{self.key.folder}\0{self.key.group}".encode("utf-8", "surrogateescape")
        return "path-" + hashlib.sha256(where).hexdigest()[:16]

    @property
    def complete(self) -> bool:
        """Whether the producer said that it finished; a folder without a sidecar never says so."""
        return self.sidecar is not None and self.sidecar.state is Outcome.COMPLETE


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFacts:
    """What a frame's header says, before anything is decoded."""

    frame: Frame
    width: int = 0
    """Pixels, upright (EXIF rotation applied), before the sidecar's ``scale``."""
    height: int = 0
    mode: str = ""
    format: str = ""
    problem: str | None = None
    """Why this frame cannot be used, in plain words; None for a good one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Facts about a run's frames from their headers; a clean survey is a hope, the decode is the proof."""

    facts: tuple[FrameFacts, ...]
    """One for each frame of the run, in the same order."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Generation texts found in the frames: ``parameters`` (A1111), ``prompt`` and ``workflow`` (ComfyUI JSON)."""


class Role(StrEnum):
    """What a render did with one file of its run."""

    SHOWN = "shown"
    """Some picture of every output shows it."""
    UNSHOWN = "unshown"
    """Chosen, but there are more images than pictures."""
    SKIPPED = "skipped"
    """Left out by skip_first, skip_last or every."""
    DAMAGED = "damaged"
    """It could not be decoded."""
    DUPLICATE = "duplicate"
    """A further file of a step that has its frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """One file of a run as it was when it was rendered."""

    frame: Frame
    digest: str
    """sha256 of its content, hexadecimal; empty when it could not be read."""
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One output as it was when it was published."""

    path: str
    codec: str
    size: int
    """Bytes."""
    mtime_ns: int
    inode: int
    device: int
    sha256: str
    plan: str
    """Plan digest, as in the file's own metadata."""
    pictures: int
    duration: str
    """Seconds, a fraction as text."""
    superseded: bool = False
    """An incomplete one that went to the trash when a newer one contained its frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Render:
    """One generation of a run that has been rendered, verified and published whole."""

    generation: str
    frames: tuple[Covered, ...]
    outputs: tuple[Published, ...]
    incomplete: bool
    at: float
    """Seconds since the epoch."""
    cleanup: CleanupPolicy
    """What the policy said when it was published; ``keep`` unless the run's place may be cleared at all."""
    missing: tuple[int, ...] = ()
    """Steps that had no frame."""
    guessed: bool = False
    cleared: int = 0
    """Files moved to the trash so far."""
    clear_note: str = ""
    """Set when clearing has come to its end: what was done, or why frames stay."""

    @property
    def whole(self) -> bool:
        """Whether every frame of the run was there and could be decoded; nothing of a run is cleared otherwise."""
        return not self.missing and not any(covered.role is Role.DAMAGED for covered in self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """What has been tried for the frames as they are now; other frames start anew."""

    fingerprint: str = ""
    """Of the frames that were tried."""
    count: int = 0
    not_before: float = 0.0
    """Seconds since the epoch; no further try earlier."""
    error: str = ""
    """Why the last one failed; empty while it goes on, and after a crash."""


class Word(StrEnum):
    """What a person has said about a run, for the frames as they are now."""

    NONE = ""
    RETRY = "retry"
    """Render it, held or quarantined or not."""
    DISCARD = "discard"
    """Leave it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What stepwatch has durably recorded about a run."""

    key: RunKey
    run_id: str
    name: str
    watched: str
    """Real path of the watched folder that owned it."""
    renders: tuple[Render, ...] = ()
    """Oldest first."""
    attempts: Attempts = Attempts()
    word: Word = Word.NONE
    word_for: str = ""
    """Fingerprint of the frames that the word is about."""
    phase: str = ""
    """As last seen, for people who ask when no daemon runs."""
    reason: str = ""
    updated: float = 0.0
    """Seconds since the epoch."""
