"""A hook without a host: plays a recorded run into a folder as the hooks of the hosts write one, to try a policy or the daemon on it.

What is written is what HOSTS calls the write protocol, step by step: a folder of its own; ``run.json`` with the state ``running``, the promise and
the writer before the first frame; every file under a temporary name first, then renamed; a heartbeat at most once a second; the final state behind
the last frame, synced. The frames' bytes are those of the recording. Whoever wants a bad hook gets one, too: `play` writes frames bit by bit under
their names, stops early, or dies without a word.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
import re
import secrets
import socket
import statistics
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from math import gcd
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from stepwatch import __version__, frames, store, system
from stepwatch.core.model import Frame, Run, Sidecar
from stepwatch.core.naming import printable
from stepwatch.errors import EnvironmentFault, NoFramesError, UsageError

State = Literal["complete", "interrupted", "failed", "running"]
"""What the sidecar says in the end; ``running``: the writer dies without a word."""

HEARTBEAT = 1.0
"""Seconds; ``run.json`` is not written again earlier while the run goes on."""
USUAL_CADENCE = 0.2
"""Seconds between two frames where the recording does not tell."""
LONGEST_GAP = 60.0
"""Seconds; a host that was paused overnight need not be waited for."""
CHUNKS = 4
"""Pieces in which a careless writer writes a frame."""

_log = logging.getLogger(__name__)


def play(  # noqa: PLR0913  # each is one way in which writers differ
    recorded: Path,
    into: Path,
    *,
    cadence: float | None = None,
    speed: float = 1.0,
    stop_after: int | None = None,
    state: State = "complete",
    atomic: bool = True,
    run_id: str | None = None,
    stop: threading.Event | None = None,
    wait: Callable[[float], object] | None = None,
    on_frame: Callable[[int, int], object] = lambda _played, _total: None,
) -> Path:
    """Play the run in *recorded* into a new folder of *into*, and return that folder.

    *cadence* is the seconds between two frames, None what the recording tells; *speed* divides either. *stop_after* is the number of frames after
    which the run ends, in *state*. With *atomic* off, frames grow under their own names. Once *stop* is set, the sidecar says interrupted, as that
    of a host whose user pressed the button. *wait* sleeps for some seconds or until *stop* is set; *on_frame* hears how many frames of how many have
    been written. *recorded* may also be the name of one of several runs in a flat folder, put behind the folder's path as if it were a folder.
    """
    _check(cadence=cadence, speed=speed, stop_after=stop_after, run_id=run_id)
    stop = stop or threading.Event()
    wait = wait or stop.wait
    recording = _recording(recorded, None if cadence is None else cadence / speed, speed)
    shots = recording.shots[:stop_after]
    writer = _Writer.begin(into, recording, run_id)
    try:
        for played, shot in enumerate(shots, start=1):
            wait(shot.gap if atomic else shot.gap / 2)
            if stop.is_set():
                break
            writer.frame(shot, None if atomic else partial(wait, shot.gap / 2 / CHUNKS))
            on_frame(played, len(shots))
        if stop.is_set():
            writer.end("interrupted")
        elif state != "running":
            writer.end(state)
    except OSError as error:
        # As a hook: say so if that can still be written, and stop recording.
        with contextlib.suppress(OSError):
            writer.end("failed", error)
        raise _fault(writer.folder, error) from error
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            writer.end("interrupted")
        raise
    except Exception as error:
        with contextlib.suppress(OSError):
            writer.end("failed", error)
        raise
    return writer.folder


def _check(*, cadence: float | None, speed: float, stop_after: int | None, run_id: str | None) -> None:
    if cadence is not None and not (math.isfinite(cadence) and cadence >= 0):
        raise UsageError(f"frames cannot come every {cadence} s", hint="a cadence is a time such as 200ms")
    if not (math.isfinite(speed) and speed > 0):
        raise UsageError(f"a run cannot be played at the speed {speed}", hint="2 is twice as fast")
    if stop_after is not None and stop_after < 1:
        raise UsageError(f"a run cannot stop after {stop_after} frames", hint="it stops after 1 or more")
    if run_id is not None and not re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,128}", run_id):
        raise UsageError(f'{printable(run_id)} is no run_id: letters, digits, ".", "_" and "-" make one, at most 128')


# ---------------------------------------------------------------- the recording


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shot:
    """One frame and its moment."""

    frame: Frame
    index: int
    """From 0; the frame's step is ``1 + skip + index * every``."""
    gap: float
    """Seconds since the frame before it; for the first one, since the run's begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    """A run as it will be played."""

    run: Run
    shots: tuple[_Shot, ...]
    every: int
    skip: int
    frame_name: str | None
    """None where the frames' suffixes differ: then their numbers alone tell which they are."""


def _recording(recorded: Path, cadence: float | None, speed: float) -> _Recording:
    run = _chosen_run(recorded)
    indices, every, skip = _indices(run)
    gaps = [cadence] * len(run.frames) if cadence is not None else [gap / speed for gap in _gaps(run)]
    shots = tuple(_Shot(frame=frame, index=index, gap=gap) for frame, index, gap in zip(run.frames, indices, gaps, strict=True))
    return _Recording(run=run, shots=shots, every=every, skip=skip, frame_name=_frame_name(run))


def _chosen_run(recorded: Path) -> Run:
    if not os.path.lexists(recorded) and recorded.parent.is_dir():
        for run in _runs(recorded.parent):
            if run.name == recorded.name and run.key.group:
                return run
    runs = _runs(recorded)
    top = os.path.realpath(recorded)
    here = [run for run in runs if run.key.folder == top] or runs
    if not here:
        hint = "a run is a folder with numbered images, or with a run.json and its frames"
        raise NoFramesError(f"there is no run in {printable(str(recorded))}", hint=hint)
    if len(here) > 1:
        places = [str(recorded / run.name) if run.key.group else run.key.folder for run in here]
        shown = ", ".join(map(printable, places[:5])) + (" ..." if len(places) > 5 else "")
        raise UsageError(f"{printable(str(recorded))} holds {len(here)} runs", hint=f"name one of them: {shown}")
    return here[0]


def _runs(folder: Path) -> list[Run]:
    return [run for run in store.find_runs(folder, pattern_for=lambda _: None, exclude=lambda _: False) if run.frames]


def _indices(run: Run) -> tuple[list[int], int, int]:
    """Number a run's frames from their steps; return the indices with ``every`` and ``skip``."""
    steps = [frame.step for frame in run.frames]
    if run.sidecar:
        every, skip = run.sidecar.every, run.sidecar.skip
        return [(step - 1 - skip) // every for step in steps], every, skip
    every = gcd(*(after - before for before, after in pairwise(steps))) or 1
    holes = (steps[-1] - steps[0]) // every + 1 - len(steps)
    if holes > len(steps):
        # Numbers so far apart are time stamps rather than steps.
        return list(range(len(steps))), 1, 0
    return [(step - steps[0]) // every for step in steps], every, steps[0] - 1


def _frame_name(run: Run) -> str | None:
    if run.sidecar and run.sidecar.frame_name:
        before, _, after = run.sidecar.frame_name.partition("{index")
        after = after.partition("}")[2]
        if all(frame.name.startswith(before) and frame.name.endswith(after) for frame in run.frames):
            return run.sidecar.frame_name
    suffixes = {_suffix(frame) for frame in run.frames}
    return "{index:05d}" + suffixes.pop() if len(suffixes) == 1 else None


def _suffix(frame: Frame) -> str:
    return os.path.splitext(frame.name)[1].lower()


def _gaps(run: Run) -> list[float]:
    """The seconds before each frame, by the frames' own times; a copy has lost those, then by the sidecar's, then as usual."""
    times = [frame.mtime_ns / 1e9 for frame in run.frames]
    between = [after - before for before, after in pairwise(times)]
    told = _told_cadence(run.sidecar, len(run.frames)) if run.sidecar else None
    if between and min(between) >= 0 and statistics.median(between) >= 0.005:
        mean = statistics.fmean(between)
        if told is None or told / 2 <= mean <= told * 2:
            return [min(gap, LONGEST_GAP) for gap in (statistics.median(between), *between)]
    return [min(told or USUAL_CADENCE, LONGEST_GAP)] * len(times)


def _told_cadence(sidecar: Sidecar, count: int) -> float | None:
    ended = sidecar.ended or sidecar.updated
    if not (sidecar.created and ended):
        return None
    try:
        seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(sidecar.created)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return seconds / count if seconds > 0 else None


# ---------------------------------------------------------------- the writer


@dataclass(slots=True, kw_only=True)
class _Writer:
    """The part of a hook that writes; it knows nothing of time but that of the heartbeat."""

    folder: Path
    recording: _Recording
    facts: dict[str, Any]
    """The whole of ``run.json``."""
    lost: list[int] = field(default_factory=list)
    next_index: int = 0
    beat: float = 0.0

    @classmethod
    def begin(cls, into: Path, recording: _Recording, run_id: str | None) -> _Writer:
        """Make the run's folder, with all that there is before the first frame."""
        facts = _first_facts(recording)
        try:
            into.mkdir(parents=True, exist_ok=True)
            folder = _new_folder(into, run_id)
            facts["run_id"] = folder.name
            writer = cls(folder=folder, recording=recording, facts=facts)
            workflow = _workflow(recording.run)
            if workflow is not None:
                facts["workflow_file"] = "workflow.json"
                _replace(folder / "workflow.json", workflow)
            writer._write_facts()
        except OSError as error:
            raise _fault(into, error) from error
        return writer

    def frame(self, shot: _Shot, between_chunks: Callable[[], object] | None) -> None:
        """Write one frame, and a heartbeat when it is time for one; with *between_chunks*, bit by bit under its own name."""
        self.lost += range(self.next_index, shot.index)
        self.next_index = shot.index + 1
        try:
            data = _read(self.recording.run, shot.frame)
        except OSError as error:
            # As a hook whose encoder failed: named, and its index stays unused.
            _log.warning("run %s: frame %s is recorded as lost: %s", self.folder.name, printable(shot.frame.name), error.strerror or error)
            self.lost.append(shot.index)
        else:
            name = (self.recording.frame_name or "{index:05d}" + _suffix(shot.frame)).format(index=shot.index)
            if between_chunks is None:
                _replace(self.folder / name, data)
            else:
                _write_in_chunks(self.folder / name, data, between_chunks)
            self.facts["frames"]["count"] += 1
        self.facts["steps"]["done"] = 1 + self.recording.skip + shot.index * self.recording.every
        if monotonic() - self.beat >= HEARTBEAT:
            self._write_facts()

    def end(self, state: State, error: BaseException | None = None) -> None:
        """Write the final state behind the last frame, so that who sees it sees all frames, also after a loss of power."""
        if state == "failed":
            step = self.facts["steps"]["done"]
            message = str(error) if error else f"simulated failure at step {step}"
            self.facts["error"] = {"type": type(error).__name__ if error else "RuntimeError", "message": message[:500]}
        self.facts["state"] = state
        self.facts["ended"] = _now()
        self._write_facts(durable=True)

    def _write_facts(self, *, durable: bool = False) -> None:
        self.facts["updated"] = _now()
        self.facts["frames"]["lost"] = self.lost
        self.beat = monotonic()
        # Lone surrogates are gone since it was read, and escapes could make it larger than readers take.
        data = json.dumps(self.facts, ensure_ascii=False, separators=(",", ":")).encode()
        _replace(self.folder / store.SIDECAR, data, durable=durable)
        if durable:
            system.fsync_folder(self.folder)


def _first_facts(recording: _Recording) -> dict[str, Any]:
    """``run.json`` before the first frame: what the recording said of its picture, and what is true of this writer."""
    run, sidecar = recording.run, recording.run.sidecar
    facts: dict[str, Any] = copy.deepcopy(dict(sidecar.raw)) if sidecar else {"generation": _hints(run)}
    last = recording.shots[-1].index
    promised = (sidecar.frames_planned if sidecar else None) or last + 1
    planned = (sidecar.steps_planned if sidecar else None) or run.frames[-1].step
    width, height = (sidecar.width, sidecar.height) if sidecar else (None, None)
    if width is None or height is None:
        width, height = _size(run)
    facts |= {
        "schema": "stepwatch.run/1",
        "run_id": "",
        "group_id": None,
        "state": "running",
        "error": None,
        "created": _now(),
        "ended": None,
        "writer": {
            "app": "stepwatch",
            "version": __version__,
            "host": socket.gethostname() or None,
            "boot_id": system.boot_id() or None,
            "pid": os.getpid(),
            "start_time": system.process_start(os.getpid()),
        },
        "hook": {"name": "simulate", "version": __version__},
        "steps": {"planned": planned, "done": 0, "every": recording.every, "skip": recording.skip},
        "frames": {
            **_object(facts, "frames"),
            "name": recording.frame_name,
            "count": 0,
            "planned": promised,
            "lost": [],
            "width": width,
            "height": height,
            "scale": sidecar.scale if sidecar else 1,
        },
        # They name files beside the recording.
        "workflow_file": None,
        "final": None,
    }
    return facts


def _object(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = facts.get(key)
    return value if isinstance(value, dict) else {}


def _hints(run: Run) -> dict[str, object]:
    hints = {"seed": run.seed_hint, "prompt": run.prompt_hint}
    return {key: value for key, value in hints.items() if value is not None}


def _size(run: Run) -> tuple[int | None, int | None]:
    """The size of the first frame that has one."""
    for frame in run.frames[:3]:
        (facts,) = frames.survey(replace(run, frames=(frame,))).facts
        if not facts.problem:
            return facts.width, facts.height
    return None, None


def _workflow(run: Run) -> bytes | None:
    if run.sidecar is None or run.sidecar.workflow_file is None:
        return None
    try:
        return store.read_capped(Path(run.key.folder) / run.sidecar.workflow_file, store.WORKFLOW_LIMIT)
    except OSError as error:
        _log.warning("run %s: %s is left out: %s", printable(run.name), printable(run.sidecar.workflow_file), error.strerror or error)
        return None


def _read(run: Run, frame: Frame) -> bytes:
    # A frame may be a link to a file, and a pipe in its place must not be waited for.
    return store.read_capped(Path(os.path.realpath(os.path.join(run.key.folder, frame.name))), frame.size)


def _new_folder(into: Path, run_id: str | None) -> Path:
    if run_id is not None:
        folder = into / run_id
        try:
            folder.mkdir()
        except FileExistsError:
            raise UsageError(f"{printable(str(folder))} is there already", hint="leave the run_id out, and each run gets a new one") from None
        return folder
    while True:
        folder = into / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def _replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file under a name that nobody takes for one of a run's, and give it its own in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_in_chunks(path: Path, data: bytes, between: Callable[[], object]) -> None:
    size = max(1, math.ceil(len(data) / CHUNKS))
    with open(path, "wb") as file:
        for start in range(0, len(data), size):
            file.write(data[start : start + size])
            file.flush()
            between()


def _fault(place: Path, error: OSError) -> EnvironmentFault:
    reason = printable(str(error.strerror or error)).lower()
    return EnvironmentFault(f"cannot play a run into {printable(str(place))}: {reason}", hint="name a folder that can be written")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
