"""What lies on disk: the runs of a folder, and finished files under their names. The only module that lists and publishes.

Reading. Folders are walked without following links to folders. Only ``run.json`` is opened here, and what could be an animation instead of a
frame, for its first bytes; that never blocks. Every other name that a run's layout takes for a frame is listed, whatever hides behind it: a pipe
or a folder in a frame's place is a damaged frame and belongs into the report, so opening frames safely is left to who decodes them.

Writing. A file is written under a hidden temporary name in the folder it is meant for, and gets its final name by `publish`: a hard link, which
cannot overwrite. A temporary name tells which process on which boot wrote it, so that what a crash left behind can be told from what is in use.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import logging
import os
import platform
import re
import stat
import struct
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from stepwatch import system
from stepwatch.core.model import Frame, Outcome, Run, RunKey, Sidecar
from stepwatch.core.naming import (
    LAYOUTS,
    MISSING_LIMIT,
    Group,
    Layout,
    facts_of_group,
    guess_groups,
    is_frame_name,
    layout_for,
    missing_steps,
    natural,
    printable,
    sort_groups,
)
from stepwatch.core.policy import DEFAULT_DIR
from stepwatch.core.sidecar import SIZE_LIMIT, frame_index, parse_sidecar, promised_steps, step_of_index
from stepwatch.errors import ConfigError, EnvironmentFault, NoFramesError, PublishError

SIDECAR = "run.json"
WORKFLOW_LIMIT = 16 * 1024 * 1024
"""Bytes of a workflow file that are read at most."""

_log = logging.getLogger(__name__)


# ---------------------------------------------------------------- finding runs


def find_runs(folder: Path, *, pattern_for: Callable[[Path], str | None], exclude: Callable[[Path], bool], guess: bool = True) -> list[Run]:
    """Find the runs in a folder and below it, in natural order of their places.

    ``pattern_for`` gives the policy's ``frames.pattern`` of a folder, ``exclude`` tells folders to leave out, such as those of outputs; hidden
    folders are always left out. A folder without sidecar and pattern is guessed at, and its runs say so; only one that has the name of the default
    output folder is not, unless it is *folder* itself. Images that belong to no run are named in a note of the first run beside them.
    """
    runs: list[Run] = []
    top = Path(os.path.realpath(folder))
    for place, entries in _walk(top, exclude):
        runs.extend(_runs_in(place, entries, pattern_for, guess=guess and (place == top or place.name != DEFAULT_DIR)))
    runs.sort(key=lambda run: ([natural(part) for part in Path(run.key.folder).parts], natural(run.key.group)))
    return _with_twins_noted(runs)


def runs_in(place: Path, *, pattern: str | None) -> list[Run]:
    """The runs right in one folder, by its sidecar or by *pattern*, and nothing guessed; none when the folder is gone."""
    try:
        with os.scandir(place) as listing:
            entries = {entry.name: entry for entry in listing}
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise EnvironmentFault(f"cannot list {printable(str(place))}: {_reason(error)}") from error
    return _runs_in(place, entries, lambda _: pattern, guess=False)


def _walk(top: Path, exclude: Callable[[Path], bool]) -> Iterator[tuple[Path, dict[str, os.DirEntry[str]]]]:
    """Yield each folder with what lies in it, but for its folders; a stack of its own, as trees may be deeper than Python's."""
    waiting = [top]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as listing:
                entries = {entry.name: entry for entry in listing}
        except OSError as error:
            if place == top:
                raise _listing_fault(place, error) from error
            # Gone since its parent was listed, or closed to us: neither keeps the others from being seen.
            _log.warning("folder %s is left out: %s", printable(str(place)), _reason(error))
            continue
        yield place, entries
        for name, entry in entries.items():
            below = place / name
            if not name.startswith(".") and _is_folder(entry) and not exclude(below):
                waiting.append(below)


def folders_in(place: Path) -> list[Path]:
    """The folders right in a folder, hidden ones left out; none when it cannot be listed."""
    try:
        with os.scandir(place) as listing:
            return sorted(Path(entry.path) for entry in listing if not entry.name.startswith(".") and _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        # Where listings tell no types, this looks at the entry, which can be denied; then it could not be listed either.
        return False


def _listing_fault(place: Path, error: OSError) -> NoFramesError | EnvironmentFault:
    shown = printable(str(place))
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        kind = "is not a folder" if error.errno == errno.ENOTDIR else "does not exist"
        return NoFramesError(f"{shown} {kind}", hint="name the folder that holds the frames, or one above it")
    return EnvironmentFault(f"cannot list {shown}: {_reason(error)}")


def _runs_in(place: Path, entries: Mapping[str, os.DirEntry[str]], pattern_for: Callable[[Path], str | None], *, guess: bool) -> list[Run]:
    sidecar, notes = read_sidecar(place) if SIDECAR in entries else (None, ())
    if sidecar is not None:
        return [_sidecar_run(place, entries, sidecar, notes)]
    if not any(map(is_frame_name, entries)):
        return []
    pattern = pattern_for(place)
    if not pattern and not guess:
        return []
    frames, groups, left_out = _grouped(place, entries, pattern)
    runs = []
    for layout_name, group in groups:
        missing = missing_steps([step for step, _ in group.frames])
        seed, prompt = facts_of_group(layout_name, group.name)
        runs.append(
            Run(
                key=RunKey(folder=str(place), group=group.name),
                name=printable(group.name or place.name) or "run",
                frames=_numbered(frames, group.frames),
                duplicates=_numbered(frames, group.duplicates),
                missing=missing,
                layout=layout_name,
                guessed=not pattern,
                seed_hint=seed,
                prompt_hint=prompt,
                notes=(*notes, *_frame_notes(group, missing)),
            )
        )
    # Once for the folder: each of its runs would say the same.
    return [replace(runs[0], notes=(*runs[0].notes, *left_out)), *runs[1:]] if runs else []


def _grouped(
    place: Path, entries: Mapping[str, os.DirEntry[str]], pattern: str | None
) -> tuple[dict[str, Frame], Sequence[tuple[str, Group]], tuple[str, ...]]:
    """Sort a folder's images by its pattern, or by guess: the frames by name, their runs with the name of the layout, and notes on all others."""
    images, animations = _images(entries, guessed=not pattern)
    if pattern:
        layout = _layout(pattern, place)
        layouts: Collection[Layout] = (layout,)
        frames = _frames(entries, filter(layout.match, images))
        groups: Sequence[tuple[str, Group]] = [(layout.name, group) for group in sort_groups(layout, _sizes(frames))]
        others: Sequence[str] = sorted((name for name in images if not layout.match(name)), key=natural)
        reason = f"{_count(len(others), 'image')} not named as frames.pattern says ({printable(pattern)})"
    else:
        layouts = LAYOUTS.values()
        frames = _frames(entries, images)
        groups, others = guess_groups(_sizes(frames))
        reason = "no part of a run"
    in_a_frame_s_place = [name for name in animations if any(layout.match(name) for layout in layouts)]
    return frames, groups, (*_left_out("an animation and no frame", in_a_frame_s_place), *_left_out(reason, others))


def _left_out(reason: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"left out, {reason}: {', '.join(map(printable, names[:5]))}{' ...' if len(names) > 5 else ''}"


def _sidecar_run(place: Path, entries: Mapping[str, os.DirEntry[str]], sidecar: Sidecar, notes: tuple[str, ...]) -> Run:
    indices = {name: index for name in entries if is_frame_name(name) and (index := frame_index(sidecar, name)) is not None}
    if indices:
        frames = _frames(entries, indices)
        steps = sorted((step_of_index(sidecar, indices[name]), name) for name in frames)
        group = Group(name="", frames=tuple(steps), duplicates=())
    else:
        # No name promised, or a promise not kept: any numbered images will do, and their number is the index.
        layout = LAYOUTS["numbered"]
        images, _ = _images(entries, guessed=True)
        frames = _frames(entries, filter(layout.match, images))
        if frames and sidecar.frame_name is not None:
            notes = (*notes, f"no frame is named as run.json says ({printable(sidecar.frame_name)}); numbered images are taken instead")
        groups = sort_groups(layout, _sizes(frames), shift=False)
        group = max(groups, key=lambda one: len(one.frames), default=Group(name="", frames=(), duplicates=()))
        others = [one for one in groups if one is not group]
        notes = (*notes, *(f"left out, no frames of this run: {_count(len(one.frames), 'image')} named {printable(one.name)}..." for one in others))
        group = _from_indices(group, sidecar)
    there = [step for step, _ in group.frames]
    missing = tuple(sorted({*missing_steps(there, stride=sidecar.every), *promised_steps(sidecar)} - set(there)))
    return Run(
        key=RunKey(folder=str(place)),
        name=sidecar.run_id,
        frames=_numbered(frames, group.frames),
        duplicates=_numbered(frames, group.duplicates),
        missing=missing,
        layout="sidecar",
        sidecar=sidecar,
        notes=(*notes, *_frame_notes(group, missing), *_count_notes(sidecar, len(group.frames))),
    )


def _from_indices(group: Group, sidecar: Sidecar) -> Group:
    def shifted(entries: tuple[tuple[int, str], ...]) -> tuple[tuple[int, str], ...]:
        return tuple((step_of_index(sidecar, index), name) for index, name in entries)

    return replace(group, frames=shifted(group.frames), duplicates=shifted(group.duplicates))


def _layout(pattern: str, place: Path) -> Layout:
    try:
        return layout_for(pattern)
    except ValueError as error:
        raise ConfigError((f"frames.pattern for {printable(str(place))}: {error}",)) from error


def _images(entries: Mapping[str, os.DirEntry[str]], *, guessed: bool) -> tuple[list[str], list[str]]:
    """Part the images that may be frames from those that are animations."""
    images: list[str] = []
    animations: list[str] = []
    for name in filter(is_frame_name, entries):
        (animations if _is_animation(Path(entries[name].path), guessed=guessed) else images).append(name)
    return images, sorted(animations, key=natural)


def _is_animation(path: Path, *, guessed: bool) -> bool:
    """Tell from its first bytes whether an image is an animation, or an output of ours with a single picture: neither is ever a frame.

    A PNG is opened only where it was guessed to be a frame; outputs do not have that suffix unless somebody renamed them.
    """
    test = {".webp": _is_webp_animation, ".png": _is_png_animation if guessed else None}.get(path.suffix.lower())
    if test is None:
        return False
    try:
        with _open_file(path) as file:
            return test(file)
    except OSError:
        # What it is will be found out when it is decoded.
        return False


def _is_webp_animation(file: BinaryIO) -> bool:
    head = file.read(30)
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X":
        return False
    animated, with_exif = head[20] & 0x02, head[20] & 0x08
    if animated or not with_exif:
        return bool(animated)
    position = 30
    # A still picture has a handful of blocks; more are somebody's joke.
    for _ in range(16):
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        if kind == b"EXIF":
            return _is_our_exif(file.read(256))
        position += 8 + length + length % 2
    return False


def _is_our_exif(start: bytes) -> bool:
    """Tell whether EXIF begins as `tags.embed` writes it: DocumentName first, and in it a line of ours."""
    if len(start) < 22:
        return False
    header, _, tag, kind, _, offset = struct.unpack(">8sHHHII", start[:22])
    return header == b"MM\0*\0\0\0\x08" and (tag, kind) == (0x010D, 2) and start[offset : offset + 10] == b"stepwatch:"


def _is_png_animation(file: BinaryIO) -> bool:
    # Its mark stands before the pixels, and where ffmpeg looks for it.
    head = file.read(2048)
    position = 8
    while head.startswith(b"\x89PNG") and position + 8 <= len(head):
        length, kind = struct.unpack_from(">I4s", head, position)
        if kind == b"acTL" or head.startswith(b"stepwatch\0", position + 8):
            return True
        if kind == b"IDAT":
            return False
        position += 12 + length
    return False


def mark_of(path: Path) -> tuple[int, ...] | None:
    """Facts by which a small file is known to be unchanged; None when it is not there."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def images_below(folder: Path, limit: int) -> list[str]:
    """Name the still images in a folder and below it, at most so many: where there is no run, a pattern may be all that they need."""
    try:
        images = (name for _, entries in _walk(Path(os.path.realpath(folder)), lambda _: False) for name in _images(entries, guessed=True)[0])
        return sorted(islice(images, limit), key=natural)
    except (NoFramesError, EnvironmentFault):
        return []


def _frames(entries: Mapping[str, os.DirEntry[str]], names: Iterable[str]) -> dict[str, Frame]:
    found = {}
    for name in names:
        frame = _frame(entries[name])
        if frame is not None:
            found[name] = frame
    return found


def _sizes(frames: Mapping[str, Frame]) -> dict[str, int]:
    return {name: frame.size for name, frame in frames.items()}


def _frame(entry: os.DirEntry[str]) -> Frame | None:
    """Return the facts of a frame; those of a link's target if that is a file. None when it is gone."""
    try:
        facts = os.lstat(entry.path)
        if stat.S_ISLNK(facts.st_mode):
            try:
                target = os.stat(entry.path)
                facts = target if stat.S_ISREG(target.st_mode) else facts
            except OSError:
                # A link to nowhere stays a frame that cannot be read.
                pass
    except FileNotFoundError:
        return None
    except PermissionError:
        return Frame(step=0, name=entry.name, size=0)
    except OSError as error:
        raise EnvironmentFault(f"cannot look at {printable(entry.path)}: {_reason(error)}") from error
    return Frame(
        step=0,
        name=entry.name,
        size=facts.st_size if stat.S_ISREG(facts.st_mode) else 0,
        mtime_ns=facts.st_mtime_ns,
        ctime_ns=facts.st_ctime_ns,
        inode=facts.st_ino,
        device=facts.st_dev,
        links=facts.st_nlink,
    )


def is_unchanged(folder: str, frame: Frame) -> bool:
    """Whether a frame is still the file that it was when its run was read, as far as its facts tell."""
    path = os.path.join(folder, frame.name)
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        # A link to nowhere has been listed as what it is.
        return os.path.islink(path)
    except OSError:
        # Whoever opens it learns why it cannot be looked at.
        return True
    known = (frame.inode, frame.mtime_ns, frame.ctime_ns)
    return known == (0, 0, 0) or not stat.S_ISREG(facts.st_mode) or known == (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns)


def _numbered(frames: Mapping[str, Frame], entries: tuple[tuple[int, str], ...]) -> tuple[Frame, ...]:
    return tuple(_at_step(frames[name], step) for step, name in entries)


def _at_step(frame: Frame, step: int) -> Frame:
    # As `replace` does, in a fifth of the time: a run of a thousand frames is looked at a thousand times while it grows.
    return Frame(
        step=step,
        name=frame.name,
        size=frame.size,
        mtime_ns=frame.mtime_ns,
        ctime_ns=frame.ctime_ns,
        inode=frame.inode,
        device=frame.device,
        links=frame.links,
    )


def _frame_notes(group: Group, missing: tuple[int, ...]) -> Iterator[str]:
    if group.duplicates:
        chosen = dict(group.frames)
        shown = ", ".join(f"{printable(name)} (step {step} is {printable(chosen[step])})" for step, name in group.duplicates[:5])
        yield f"further files of a step that has its frame: {shown}{' ...' if len(group.duplicates) > 5 else ''}"
    if len(missing) == MISSING_LIMIT:
        yield f"only the first {MISSING_LIMIT} missing steps are listed"


def _count_notes(sidecar: Sidecar, found: int) -> Iterator[str]:
    # Terminal counts are exact by contract; while the run goes on they are hints.
    if sidecar.state is not Outcome.RUNNING and sidecar.frame_count is not None and sidecar.frame_count != found:
        yield f"run.json counts {_count(sidecar.frame_count, 'frame')}, {found} {'is' if found == 1 else 'are'} here"
    if sidecar.lost:
        yield f"the hook could not write {_count(len(sidecar.lost), 'frame')}: index {', '.join(map(str, sidecar.lost[:10]))}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _with_twins_noted(runs: list[Run]) -> list[Run]:
    """Note in runs that claim the same run_id, as copied folders do, that they cannot be told apart by it."""
    known = Counter(run.sidecar.run_id for run in runs if run.sidecar)
    return [
        replace(run, notes=(*run.notes, f"another folder has the run_id {run.sidecar.run_id} too"))
        if run.sidecar and known[run.sidecar.run_id] > 1
        else run
        for run in runs
    ]


def read_sidecar(place: Path) -> tuple[Sidecar | None, tuple[str, ...]]:
    """Read the sidecar of a folder, if there is one, and say what is wrong with it."""
    try:
        data = read_capped(place / SIDECAR, SIZE_LIMIT + 1)
    except FileNotFoundError:
        return None, ()
    except OSError as error:
        return None, (f"run.json is not used: {_reason(error)}",)
    return parse_sidecar(data)


def read_capped(path: Path, limit: int) -> bytes:
    """Read at most ``limit`` bytes of a regular file; OSError for anything else. Never waits, and never follows a link at the end of the path."""
    with _open_file(path) as file:
        return file.read(limit)


def _open_file(path: Path) -> BinaryIO:
    # O_NONBLOCK: opening a pipe would wait for a writer that never comes.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, and links are not followed") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_workflow(run: Run) -> dict[str, str]:
    """Return the JSON texts ``prompt`` and ``workflow`` of the file that the sidecar names; what is absent or unreadable is left out."""
    if run.sidecar is None or run.sidecar.workflow_file is None:
        return {}
    try:
        data = read_capped(Path(run.key.folder) / run.sidecar.workflow_file, WORKFLOW_LIMIT + 1)
        content = json.loads(data.decode("utf-8-sig")) if len(data) <= WORKFLOW_LIMIT else None
        parts = content if isinstance(content, dict) else {}
        texts = {key: json.dumps(parts[key], ensure_ascii=False) for key in ("prompt", "workflow") if isinstance(parts.get(key), dict)}
        for text in texts.values():
            text.encode("utf-8")
    except (OSError, ValueError, RecursionError) as error:
        _log.info("run %s: %s is not used: %s", run.name, printable(run.sidecar.workflow_file), error)
        return {}
    return texts


def append_runs(folder: Path, runs: Sequence[Run]) -> Run:
    """Make one run of several, for ``frames.append``: their frames in the order given, steps counted on from one run to the next.

    It is known by the folder, not by its parts, so it stays the same run while it grows. Sidecar and texts are those of the first part that has
    a sidecar; it is complete only if every part says complete. Frames' names become relative to the folder.
    """
    if not runs:
        raise NoFramesError(f"there is no run in {printable(str(folder))} to append")
    top = os.path.realpath(folder)
    frames: list[Frame] = []
    duplicates: list[Frame] = []
    missing: list[int] = []
    notes: list[str] = []
    offset = 0
    for run in runs:
        prefix = os.path.relpath(run.key.folder, top)
        if prefix.split(os.sep)[0] == os.pardir:
            raise ValueError(f"run {run.key} does not lie below {top}")

        def moved(frame: Frame, prefix: str = prefix, offset: int = offset) -> Frame:
            return replace(frame, step=frame.step + offset, name=os.path.normpath(os.path.join(prefix, frame.name)))

        frames.extend(map(moved, run.frames))
        duplicates.extend(map(moved, run.duplicates))
        missing.extend(step + offset for step in run.missing)
        notes.extend(f"{printable(run.name)}: {note}" for note in run.notes)
        if run.frames:
            offset += run.frames[-1].step
    bare = Run(key=RunKey(folder=top), name=printable(os.path.basename(top)) or "run", frames=tuple(frames))
    layouts = {run.layout for run in runs}
    hinted = next((run for run in runs if run.frames), bare)
    sidecar, scale_note = _appended_sidecar(runs, bare.run_id)
    return replace(
        bare,
        duplicates=tuple(duplicates),
        missing=tuple(missing),
        layout=layouts.pop() if len(layouts) == 1 else "pattern",
        seed_hint=hinted.seed_hint,
        prompt_hint=hinted.prompt_hint,
        guessed=any(run.guessed for run in runs),
        sidecar=sidecar,
        notes=(*notes, *scale_note),
    )


def _appended_sidecar(runs: Sequence[Run], run_id: str) -> tuple[Sidecar | None, tuple[str, ...]]:
    first = next((run.sidecar for run in runs if run.sidecar), None)
    if first is None:
        return None, ()
    states = {run.sidecar.state if run.sidecar else Outcome.INTERRUPTED for run in runs}
    # The least finished part speaks for all: a running one forbids clearing.
    state = next(one for one in (Outcome.RUNNING, Outcome.FAILED, Outcome.INTERRUPTED, Outcome.COMPLETE) if one in states)
    scales = {run.sidecar.scale if run.sidecar else 1 for run in runs if run.frames}
    note = () if len(scales) < 2 else ("its parts are enlarged by different factors, so none is: frames count with the size of their files",)
    return (
        replace(
            first,
            run_id=run_id,
            state=state,
            every=1,
            skip=0,
            frame_name=None,
            frame_count=None,
            frames_planned=None,
            steps_planned=None,
            steps_done=None,
            lost=(),
            scale=scales.pop() if len(scales) == 1 else 1,
            width=None,
            height=None,
            workflow_file=None,
        ),
        note,
    )


# ---------------------------------------------------------------- temporary files

_TEMPORARY = re.compile(r"\.stepwatch-([0-9]{1,10})-([0-9a-f]{8})-[0-9a-f]{8}\.tmp(\.[A-Za-z0-9.]{1,16})?")
_ABANDONED_ELSEWHERE_AFTER = 3600
"""Seconds unchanged, when it is from another boot, or from another machine on the same share, which may still be writing."""


def temporary_path(folder: Path, suffix: str) -> Path:
    """Return a new hidden name in the folder where a file with this suffix will be published."""
    if not re.fullmatch(r"(\.[A-Za-z0-9.]{1,16})?", suffix):
        raise ValueError(f"not a file's suffix: {suffix!r}")
    return folder / f".stepwatch-{os.getpid()}-{_boot()}-{uuid.uuid4().hex[:8]}.tmp{suffix}"


def set_aside(path: Path) -> Path:
    """Give a file that somebody has edited another name beside its own, which no file has yet, and return that."""
    kept = path.with_name(f"{path.name}.bak")
    number = 0
    while os.path.lexists(kept):
        number += 1
        kept = path.with_name(f"{path.name}.bak-{number}")
    os.rename(path, kept)
    return kept


_left_behind: set[Path] = set()
"""Temporary files of this process that could not be removed when they should have been: their disk was read-only by then."""


def remove_temporary(path: Path) -> None:
    """Remove a temporary file of ours; one that cannot be removed now goes with a later sweep of its folder."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        _left_behind.add(path)
    else:
        _left_behind.discard(path)


def sweep_temporaries(folder: Path, now: float) -> list[Path]:
    """Remove temporary files whose process is gone, and return their paths; ``now`` in seconds of the file system's clock."""
    removed = []
    for path in [path for path in list(_left_behind) if path.parent == folder]:
        remove_temporary(path)
    try:
        with os.scandir(folder) as listing:
            candidates = [(found, entry) for entry in listing if (found := _TEMPORARY.fullmatch(entry.name))]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EnvironmentFault(f"cannot list {printable(str(folder))}: {_reason(error)}") from error
    for found, entry in candidates:
        here = found[2] == _boot()
        if here and _alive(int(found[1])):
            continue
        try:
            facts = entry.stat(follow_symlinks=False)
            # Of a process of this boot it is known that it is gone, and its ffmpeg with it.
            if stat.S_ISREG(facts.st_mode) and (here or now - facts.st_mtime > _ABANDONED_ELSEWHERE_AFTER):
                os.unlink(entry.path)
                removed.append(folder / entry.name)
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.warning("temporary file %s stays: %s", printable(entry.path), _reason(error))
    return removed


def _boot() -> str:
    """Return 8 hex digits for what a process id means something in: this boot and its process namespace; without them, this machine."""
    try:
        place = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place += f"/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        place = platform.node()
    return hashlib.sha256(place.encode("utf-8", "replace")).hexdigest()[:8]


def _alive(process: int) -> bool:
    if os.name == "nt":
        # There, signal 0 is Ctrl-C. Better keep a file than stop a stranger.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


# ---------------------------------------------------------------- publishing

_ENVIRONMENT = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.ENOTDIR, errno.ELOOP}
)
_NUMBERS = 10_000
"""Files of one name, before something must be wrong."""


def ensure_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file of that name" if isinstance(error, FileExistsError | NotADirectoryError) else _reason(error)
        raise EnvironmentFault(
            f"cannot make the folder {printable(str(path))}: {reason}", hint="set `dir` to a folder that can be written"
        ) from error


def identity_of(folder: Path) -> tuple[int, int] | None:
    """Device and inode, by which a folder is told from another that takes its place; None when it is not there."""
    try:
        facts = folder.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def write_file(path: Path, data: bytes) -> None:
    """Write a small file that helps on the way to an output."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write into {printable(str(path.parent))}: {_reason(error)}", hint="make room or set `dir` to a folder that can be written"
        ) from error


def files_named_like(folder: Path, stem: str, suffix: str) -> list[Path]:
    """Return the regular files that ``publish`` may have given this name to: ``stem`` itself, then ``stem-1`` and so on."""
    numbered = re.compile(re.escape(stem) + r"(?:-(\d{1,6}))?" + re.escape(suffix))
    try:
        with os.scandir(folder) as listing:
            found = [
                (int(match[1] or 0), entry.path)
                for entry in listing
                if (match := numbered.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return []
    return [Path(path) for _, path in sorted(found)]


def files_with_marks(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """Return the regular files of a folder of outputs, each with its size and mtime_ns, by which a known one is known again."""
    found = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                    facts = entry.stat(follow_symlinks=False)
                    found.append((Path(entry.path), (facts.st_size, facts.st_mtime_ns)))
    except OSError:
        return []
    return sorted(found)


def take_plain_name(path: str, plain: str) -> str:
    """Rename ``stem-1.mp4`` to ``stem.mp4`` when that name has become free, and return the name that the file has then."""
    numbered, wanted = Path(path), Path(plain)
    is_numbered = re.fullmatch(re.escape(wanted.stem) + r"-\d+", numbered.stem)
    if numbered.parent != wanted.parent or numbered.suffix != wanted.suffix or not is_numbered:
        return path
    try:
        rename_without_replacing(numbered, wanted)
    except FileNotFoundError:
        # A crash came between the rename and its receipt.
        return plain if wanted.exists() else path
    except OSError as error:
        _log.info("%s keeps its name: %s", printable(path), _reason(error))
        return path
    _fsync_folder(wanted.parent)
    return plain


def publish(temporary: Path, folder: Path, stem: str, suffix: str) -> Path:
    """Give a finished temporary file its final name, ``stem-1`` and so on if the name is taken; return where it is.

    Nothing is overwritten: either the whole file appears or none does, also across a crash. Its content must have been synced before.
    """
    if not stem or stem.startswith(".") or any(separator in stem + suffix for separator in ("/", "\\", "\0")):
        raise ValueError(f"not a file's name: {stem + suffix!r}")
    longest = _longest_name(folder)
    number = 0
    while number < _NUMBERS:
        name = _shortened(stem, f"-{number}" if number else "", suffix, longest)
        final = folder / name
        try:
            if _claim(temporary, final):
                break
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG and longest > 40:
                # The path as a whole, or a file system that takes less than it says.
                longest = longest * 3 // 4
                continue
            raise _publish_fault(temporary, final, error) from error
        number += 1
    else:
        raise PublishError(f"{printable(str(folder))} has {_NUMBERS} files named {printable(stem)}", hint="clear out the folder")
    _forget(temporary)
    _fsync_folder(folder)
    return final


def _claim(temporary: Path, final: Path) -> bool:
    """Give the file this name unless it is taken; OSError when the file system cannot do that without the risk of overwriting."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        # A share may repeat a request whose answer was lost: then the name is taken by our own file.
        return _same_file(temporary, final)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL):
            raise
        try:
            rename_without_replacing(temporary, final)
        except FileExistsError:
            return False
    return True


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def rename_without_replacing(source: Path, target: Path) -> None:
    """Rename a file unless the new name is taken, in one step; OSError with ENOSYS where the system knows no such step."""
    if os.name == "nt":
        # There, a plain rename refuses a name that is taken.
        os.rename(source, target)
        return
    function = _renameat2()
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_working_directory, no_replace = -100, 1
    if function(at_working_directory, os.fsencode(source), at_working_directory, os.fsencode(target), no_replace) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(source), None, os.fspath(target))


def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int

    def call(*arguments: int | bytes) -> int:
        return int(function(*arguments))

    return call


def _publish_fault(temporary: Path, final: Path, error: OSError) -> PublishError | EnvironmentFault:
    shown = printable(str(final))
    if error.errno in _ENVIRONMENT:
        return EnvironmentFault(f"cannot publish {shown}: {_reason(error)}")
    if error.errno == errno.ENOENT:
        if not final.parent.is_dir():
            return EnvironmentFault(f"cannot publish {shown}: its folder is gone")
        return PublishError(f"cannot publish {shown}: the finished file {printable(temporary.name)} is gone")
    if error.errno == errno.EXDEV:
        return PublishError(f"cannot publish {shown}: it was rendered on another file system")
    if error.errno == errno.ENAMETOOLONG:
        return PublishError(f"cannot publish {shown}: the path is too long", hint="a shorter `name`, or a `dir` higher up")
    return PublishError(
        f"cannot publish {shown}: this file system can neither link nor rename without overwriting ({_reason(error)})",
        hint="set `dir` to a folder on another file system",
    )


def _longest_name(folder: Path) -> int:
    try:
        return min(255, os.pathconf(folder, "PC_NAME_MAX"))
    except (OSError, ValueError, AttributeError):
        return 255


def _shortened(stem: str, number: str, suffix: str, longest: int) -> str:
    """Put a name together in at most so many bytes; what is cut is the end of the stem, but not its ``-incomplete``."""
    mark = "-incomplete" if stem.endswith("-incomplete") else ""
    room = longest - len(f"{mark}{number}{suffix}".encode())
    text = stem.removesuffix(mark)
    # Not encode(): a name that the user gave may be any bytes.
    if len(os.fsencode(text)) > room:
        text = os.fsdecode(os.fsencode(text)[: max(room, 1)].decode("utf-8", "ignore").encode()).rstrip(" .-_") or "run"
    return f"{text}{mark}{number}{suffix}"


def _forget(temporary: Path) -> None:
    try:
        os.unlink(temporary)
    except FileNotFoundError:
        # Renamed instead of linked.
        pass
    except OSError as error:
        _log.warning("temporary file %s stays: %s", printable(str(temporary)), _reason(error))


def fsync_file(path: Path) -> None:
    """Bring a file's content to the disk; a fault here means that it may not be there, and trying again would hide that."""
    try:
        # Windows syncs only what is open for writing.
        descriptor = os.open(path, (os.O_RDWR if os.name == "nt" else os.O_RDONLY) | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _sync_fault(path, error) from error


def _fsync_folder(folder: Path) -> None:
    # Where folders cannot be synced there is nothing to be done about it here; clearing asks again, and does not go on.
    try:
        system.fsync_folder(folder)
    except OSError as error:
        raise _sync_fault(folder, error) from error


def _sync_fault(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(f"cannot bring {printable(str(path))} to the disk: {_reason(error)}")


def _reason(error: OSError) -> str:
    """Say what a system error means to a user."""
    words = {
        errno.ENOSPC: "no space is left on the disk",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EIO: "the disk reports an error",
        errno.ESTALE: "the share has gone away",
        errno.EACCES: "permission is denied",
        errno.EMFILE: "too many files are open",
    }
    return words.get(error.errno or 0) or printable(str(error.strerror or error)).lower()
