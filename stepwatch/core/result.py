"""What a visit to a run has brought: the content of ``render --json``, one value for each run and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputResult:
    """One output of a run: published, found again, planned only (``--dry-run``), or failed with ``error``."""

    path: str | None
    codec: str
    width: int
    height: int
    frames: int
    """Encoded pictures in the file."""
    duration: Fraction
    """Seconds, holds included."""
    motion: str | None = None
    """What makes the pictures between the images of mci: ``flow`` or ``minterpolate``."""
    bytes: int = 0
    sha256: str | None = None
    error: str | None = None
    exists: bool = False
    """The very same animation was there already; nothing was rendered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What became of one run."""

    run: str
    """Its id; ``name`` is what people read."""
    name: str
    folder: str = ""
    """Where its frames are."""
    phase: str
    """One of the phases of DESIGN's vocabulary: rendered, render-failed, complete (planned only), ignored ..."""
    reason: str
    """One sentence in plain words."""
    found: int = 0
    shown: int = 0
    damaged: tuple[str, ...] = ()
    """Names of frames that cannot be used."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why, by name."""
    missing: tuple[int, ...] = ()
    """Steps without a frame."""
    unshown: tuple[str, ...] = ()
    """Names of chosen frames that no output picture shows: there are more of them than pictures."""
    outputs: tuple[OutputResult, ...] = ()
    cleared: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    """ffmpeg's argument lists, for ``--dry-run`` and ``-v``."""
    exit_code: int = 0
    """0; 1 render failed; 66 no readable frame; 69 missing encoder."""
