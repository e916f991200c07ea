"""What all hooks share: a recording of one sampler pass, which writes frames and ``run.json`` by the protocol that stepwatch reads.

Installed hooks have this text inside them, so it needs nothing but the standard library and the Pillow of the host, and Python 3.8.

Theory of operation. The sampler's thread never touches the disk: `step`, `put` and `end` put tasks into one queue, and one writer thread makes the
folders, encodes, writes and renames, in that order. So a frame never comes before its sidecar, the final state never before the last frame, and a
disk that hangs stops the writer but not the picture. The queue holds 16 frames; when it is full, `put` waits, which is the wanted brake, but not for
ever: a frame that finds no room within `PATIENCE` is recorded as lost, and those after it do not wait again until there is room.

Nothing here raises into the host. What goes wrong is said once in the log, and this one recording ends; only what the user asks for, such as
KeyboardInterrupt, passes through.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import queue
import re
import secrets
import socket
import threading
import time
from datetime import datetime, timezone
from typing import Any, Mapping, Sequence

__all__ = ["VERSION", "Recording", "log", "new_id", "parse_overrides"]

VERSION = "0.1.0"
"""Of the hooks: that of the stepwatch they come with."""
SCHEMA = "stepwatch.run/1"
QUEUE_LIMIT = 16
"""Frames that are put and not yet written, at most."""
PATIENCE = 10.0
"""Seconds that `put` waits for room: longer than any frame takes to encode, and once in a run rather than once for each frame."""
END_PATIENCE = 30.0
"""Seconds that `end` waits for the last frames to reach the disk; they are still written after that, as long as the host lives."""
HEARTBEAT = 1.0
"""Seconds between two writes of ``run.json`` at least."""
SIDECAR_LIMIT = 256 * 1024
"""Bytes of ``run.json`` that readers take."""
FACTS_LIMIT = 192 * 1024
"""Bytes of it before the first frame; the rest is for the indices of lost frames."""
OVERRIDES_LIMIT = 16 * 1024
MOST_LOST = 5000
"""Lost frames after which a recording has failed, so that their list always fits."""
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": (".png", "PNG", {"compress_level": 1}),  # the default level saves 15 % and takes four times as long
    "jpeg": (".jpg", "JPEG", {"quality": 95, "subsampling": 0}),
    "webp": (".webp", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
}
SHORT_KEYS = {
    **{key: "timeline." + key for key in ("duration", "fps_in", "fps", "interpolation", "hold_first", "hold_last", "direction", "early_end")},
    "codec": "outputs",
}
"""What may be written without its section in the free text of a hook."""

log = logging.getLogger("stepwatch.hook")

_ENDS_A_RECORDING = (errno.ENOSPC, errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
"""A full or read-only disk, and a folder that somebody took away: the next frame would fare no better."""
_DEEPEST = 32
_unfinished: dict[str, Recording] = {}
"""By root, the last recording whose end nobody could wait for."""


class Recording:
    """One pass of a sampler: one run folder for each item of its batch, below ``root/DATE/RUN_ID/``.

    Call `step` once in each callback of the sampler; where it says so, call `put` for each item; in the end, in any case, `end`. An item for which
    nothing was put by then has lost that frame. One thread calls these; all of them return at once when the recording has ended early.

    *host* is the sidecar's ``host`` and must name the ``app``; *hook* is the hook's name. *items* has one mapping for each item of the batch, with
    the sidecar's ``generation``, ``batch`` and ``infotext``. *planned* is the number of callbacks to come, as a hint, None when it is not known.
    *every* Nth step is recorded from the one after *skip* on; without *skip*, so that the last planned step is among them. *size* is that of the
    frames' files, None when the first frame tells; *scale* enlarges them. *pass_facts* is the sidecar's ``pass``. *workflow*, {prompt, workflow},
    goes into a file of its own. *overrides* is policy for this run.
    """

    decode: str
    """How latents become pixels; a hook that has to change its way sets it."""

    def __init__(  # noqa: PLR0913  # each is a part of the sidecar
        self,
        root: Any,
        *,
        host: Mapping[str, Any],
        hook: str,
        items: Sequence[Mapping[str, Any]],
        planned: int | None = None,
        every: int = 1,
        skip: int | None = None,
        image_format: str = "png",
        size: tuple[int, int] | None = None,
        scale: int = 1,
        kind: str = "x0",
        decode: str = "latent2rgb",
        group_id: str | None = None,
        pass_facts: Mapping[str, Any] | None = None,
        workflow: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.decode = decode
        self.done = 0
        """Callbacks so far."""
        self._off = True
        self._failure: dict[str, Any] | None = None
        self._said: list[str] = []
        self._runs: list[_RunFolder] = []
        self._tasks: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._room = threading.Semaphore(QUEUE_LIMIT)
        self._patient = True
        self._awaited: list[int] = []
        self._index: int | None = None
        self._ended = False
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        self._moved = time.monotonic()
        try:
            self.every = max(1, int(every))
            self.skip = _default_skip(planned, self.every) if skip is None else max(0, int(skip))
            self._root = os.path.abspath(os.path.expanduser(os.fspath(root)))
            self._format = _usable_format(image_format)
            promised = None if planned is None else max(0, -(-(int(planned) - self.skip) // self.every))
            frames = {"name": "{index:05d}" + FORMATS[self._format][0], "count": 0, "planned": promised, "lost": []}
            width, height = size or (None, None)
            common: dict[str, Any] = {
                "group_id": group_id,
                "writer": _this_process(host),
                "hook": {"name": hook, "version": VERSION},
                "host": dict(host),
                "steps": {"planned": planned, "done": 0, "every": self.every, "skip": self.skip},
                "frames": {**frames, "width": width, "height": height, "scale": scale, "kind": kind, "decode": decode},
                "pass": dict(pass_facts or {"index": 0, "name": "unknown"}),
                "stepwatch": _fitting_overrides(overrides),
            }
            self._runs = [_RunFolder(_first_facts(common, item)) for item in items]
            self._workflow = None if workflow is None else _workflow_text(workflow)
            before = _unfinished.pop(self._root, None)
            if before is not None and before.hangs:
                _unfinished[self._root] = before
                self._say("this run is not recorded", f"the frames of an earlier one still cannot be written to {self._root}")
            elif self._runs:
                self._off = False
                self._thread = threading.Thread(target=self._write_all, name="stepwatch-writer", daemon=True)
                self._thread.start()
        except Exception as error:
            self._off = True
            self._say("this run is not recorded", _named(error))

    @property
    def active(self) -> bool:
        """Whether frames are still wanted."""
        return not (self._off or self._ended)

    @property
    def hangs(self) -> bool:
        """Whether the writer has got nothing done for long: its disk does not answer."""
        return self._thread is not None and self._thread.is_alive() and time.monotonic() - self._moved > END_PATIENCE

    @property
    def folders(self) -> list[str]:
        """The folders of the items' runs; complete after `end` at the latest, empty when they could not be made."""
        return [run.folder for run in self._runs if run.folder]

    def step(self) -> bool:
        """Count one callback of the sampler; return whether its frame is wanted."""
        try:
            self._settle()
            if self._ended:
                return False
            self.done += 1
            beyond = self.done - 1 - self.skip
            if self._off or beyond < 0 or beyond % self.every:
                return False
            self._index = beyond // self.every
            self._awaited = list(range(len(self._runs)))
            return True
        except Exception as error:
            self._give_up(error)
            return False

    def put(self, item: int, picture: Any, size: tuple[int, int] | None = None) -> None:
        """Hand over the frame of one item for the step that `step` counted last.

        *picture* is a Pillow image, or RGB bytes in rows from the top with their *size*, (width, height); it is copied, unless it cannot change.
        None means that it could not be made: the frame is lost.
        """
        try:
            if self._off or self._ended or self._index is None or item not in self._awaited:
                return
            own = None if picture is None else _own_copy(picture, size)
            if own is not None and self._admit():
                self._tasks.put(("frame", item, self._index, self.done, own, size))
                # Only now: what an interrupt cut off before is recorded as lost.
                self._awaited.remove(item)
        except Exception as error:
            self._say("a frame is lost", _named(error))

    def end(self, state: str = "complete", error: Any = None) -> None:
        """Say how the pass ended (complete, interrupted, failed), and wait until all of it is on the disk, but 30 seconds at most.

        Only the first call counts. *error* is what made it fail.
        """
        try:
            if self._ended:
                return
            self._settle()
            self._ended = True
            if self._thread is None:
                return
            self._tasks.put(("end", state, None if error is None else _error_facts(error), self.done))
            if not self._finished.wait(END_PATIENCE):
                _unfinished[self._root] = self
                self._say("the host goes on", f"the last frames of this run are still being written to {self._root}")
        except Exception as fault:
            self._give_up(fault)

    # --- the sampler's thread

    def _settle(self) -> None:
        """Record as lost what was wanted for the step before and has not been put."""
        for item in self._awaited:
            self._runs[item].lost.append(self._index or 0)
        if self._awaited and not self._off:
            self._say("a frame is lost", f"that of step {self.done}")
        self._awaited, self._index = [], None

    def _admit(self) -> bool:
        """Wait for room in the queue."""
        if self._room.acquire(timeout=PATIENCE if self._patient else 0):
            self._patient = True
            return True
        self._patient = False
        return False

    def _say(self, what: str, why: str) -> None:
        """Log what happened, once in a run."""
        if what not in self._said:
            self._said.append(what)
            log.warning("stepwatch: %s: %s", what, why)

    def _give_up(self, error: Any) -> None:
        self._off = True
        self._say("this run is not recorded any further", _named(error))

    # --- the writer's thread

    def _write_all(self) -> None:
        try:
            self._make_folders()
        except Exception as error:
            self._give_up(error)
            for run in self._runs:
                run.remove()
        while not self._finished.is_set():
            task = self._tasks.get()
            try:
                if task[0] == "end":
                    self._write_end(*task[1:])
                elif not self._off:
                    self._write_frame(*task[1:])
            except Exception as error:
                self._give_up(error)
            finally:
                self._moved = time.monotonic()
                if task[0] == "end":
                    self._finished.set()
                else:
                    self._room.release()

    def _make_folders(self) -> None:
        """Make a new folder for each item, with all that there is before the first frame."""
        for _ in range(100):
            run_id = new_id()
            place = os.path.join(self._root, "-".join((run_id[:4], run_id[4:6], run_id[6:8])))
            os.makedirs(place, exist_ok=True)
            try:
                for item, run in enumerate(self._runs):
                    run.make(place, run_id if len(self._runs) == 1 else run_id + "-b" + str(item))
                break
            except FileExistsError:
                for run in self._runs:
                    run.remove()
        else:
            raise FileExistsError(errno.EEXIST, "every name is taken", self._root)
        for run in self._runs:
            if run.facts["group_id"] is None and len(self._runs) > 1:
                run.facts["group_id"] = run_id
            if self._workflow is not None:
                _replace(os.path.join(run.folder, "workflow.json"), self._workflow)
                run.facts["workflow_file"] = "workflow.json"
            run.write_facts(self.decode)
        log.info("stepwatch: frames go to %s", ", ".join(self.folders))

    def _write_frame(self, item: int, index: int, done: int, picture: Any, size: tuple[int, int] | None) -> None:
        run = self._runs[item]
        for tries_left in (1, 0):
            try:
                image = _as_image(picture, size)
                _replace(os.path.join(run.folder, f"{index:05d}{FORMATS[self._format][0]}"), _encoded(image, self._format))
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _ENDS_A_RECORDING:
                    run.lost.append(index)
                    self._fail(error)
                    return
                if not tries_left:
                    run.lost.append(index)
                    self._say("a frame is lost", _named(error))
            else:
                run.wrote(index, image.size, done)
                break
        if len(run.lost) > MOST_LOST:
            self._fail(OSError(errno.EIO, "too many frames could not be written"))
            return
        try:
            run.beat(self.decode)
        except OSError as error:
            if error.errno in _ENDS_A_RECORDING:
                self._fail(error)
            else:
                self._say("run.json could not be written", _named(error))

    def _fail(self, error: Exception) -> None:
        """End this recording, as far as the disk still lets us say so; the generation goes on."""
        self._give_up(error)
        self._failure = _error_facts(error)
        self._write_end("failed", self._failure, self.done)

    def _write_end(self, state: str, error: dict[str, Any] | None, done: int) -> None:
        if self._failure:
            # Perhaps the disk has room again by now, and did not when it failed.
            state, error = "failed", self._failure
        for run in self._runs:
            try:
                run.end(state, error, done, self.decode)
            except Exception as fault:
                self._say("the end of this run could not be recorded", _named(fault))


class _RunFolder:
    """The run of one item: its folder and what its sidecar says."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.folder = ""
        self.written: set[int] = set()
        self.lost: list[int] = []
        """Indices that have no frame; those that the sampler's thread could not put are added by it."""
        self._ended = False
        self._news = False
        """Whether a frame was written that the sidecar does not count."""
        self._beaten = 0.0

    def make(self, place: str, run_id: str) -> None:
        folder = os.path.join(place, run_id)
        os.mkdir(folder)
        self.folder = folder
        self.facts["run_id"] = run_id

    def remove(self) -> None:
        """Take a folder without frames away again."""
        if not self.folder:
            return
        try:
            for name in ("run.json", "workflow.json"):
                if os.path.exists(os.path.join(self.folder, name)):
                    os.unlink(os.path.join(self.folder, name))
            os.rmdir(self.folder)
        except OSError as error:
            log.warning("stepwatch: %s stays: %s", self.folder, _named(error))
        self.folder = ""

    def wrote(self, index: int, size: tuple[int, int], done: int) -> None:
        self.written.add(index)
        self._news = True
        self.facts["steps"]["done"] = done
        if self.facts["frames"]["width"] is None:
            self.facts["frames"]["width"], self.facts["frames"]["height"] = size
            self._beaten = -HEARTBEAT  # Whoever encodes while the run goes on waits for the size.

    def beat(self, decode: str) -> None:
        """Write the sidecar anew when it is time to, and only when there is a new frame."""
        if self._news and time.monotonic() - self._beaten >= HEARTBEAT:
            self.write_facts(decode)

    def end(self, state: str, error: dict[str, Any] | None, done: int, decode: str) -> None:
        """Write the final state for good; a complete run without any frame leaves nothing behind. Only the first call that succeeds counts."""
        if self._ended or not self.folder:
            return
        if state == "complete" and not self.written and not self.lost:
            self.remove()
            return
        self.facts["steps"]["done"] = done
        self.write_facts(decode, {"state": state, "error": error if state == "failed" else None, "ended": _now()})
        self._ended = True

    def write_facts(self, decode: str, final: dict[str, Any] | None = None) -> None:
        self._beaten = time.monotonic()
        self._news = False
        lost = sorted(set(self.lost) - self.written)[:MOST_LOST]
        frames = {**self.facts["frames"], "count": len(self.written), "lost": lost, "decode": decode}
        facts = {**self.facts, "updated": _now(), "frames": frames, **(final or {})}
        _replace(os.path.join(self.folder, "run.json"), _json_bytes(facts), durable=final is not None)


# --- facts


def new_id() -> str:
    """Return a name that no other run or group has, which begins with the time."""
    return datetime.now().strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)  # noqa: DTZ005  # as the host's own folders: the user's time


def _default_skip(planned: int | None, every: int) -> int:
    """The first steps to leave out so that the last planned one is recorded."""
    return (int(planned) - 1) % every if planned and planned > 0 else 0


def _this_process(host: Mapping[str, Any]) -> dict[str, Any]:
    """Who writes, so that a reader can tell whether that process still lives; null where the system does not say."""
    boot, began = None, None
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip() or None
        with open("/proc/self/stat", "rb") as stat:
            # Ticks since the machine's start. The name in brackets may hold anything, brackets too.
            began = int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        pass
    name = socket.gethostname() or None
    return {"app": host.get("app"), "version": host.get("version"), "host": name, "boot_id": boot, "pid": os.getpid(), "start_time": began}


def _first_facts(common: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``run.json`` of one item before its first frame, cut down to what readers take."""
    now = _now()
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": "",
        "group_id": common["group_id"],
        "state": "running",
        "error": None,
        "created": now,
        "updated": now,
        "ended": None,
        **common,
        "batch": item.get("batch") or {},
        "generation": {key: value for key, value in (item.get("generation") or {}).items() if value is not None},
        "infotext": item.get("infotext"),
        "workflow_file": None,
        "final": None,
    }
    for key, value in facts.items():
        facts[key] = _plain(value, 0)
    for longest in (65536, 16384, 4096, 1024, 256):
        if len(_json_bytes(facts)) <= FACTS_LIMIT:
            return facts
        for key in ("infotext", "generation", "host", "batch", "pass"):
            facts[key] = _cut(facts[key], longest)
    if len(_json_bytes(facts)) > FACTS_LIMIT:
        facts["generation"], facts["batch"], facts["pass"], facts["host"] = {}, {}, {}, {"app": str(facts["writer"]["app"])[:200]}
    return facts


def _plain(value: Any, depth: int) -> Any:
    """Copy a value as something that JSON can say and every reader takes."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # Half a pair of surrogates is no character, and no file takes it.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int):
        return int(value) if abs(value) < 2**127 else None
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth >= _DEEPEST:
        return None
    if isinstance(value, Mapping):
        return {_plain(str(key), depth): _plain(one, depth + 1) for key, one in list(value.items())}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one, depth + 1) for one in value]
    number = getattr(value, "item", None)
    try:
        # A number of numpy or torch.
        return _plain(number(), depth + 1) if callable(number) else str(value)
    except Exception:
        return None


def _cut(value: Any, longest: int) -> Any:
    """Shorten the texts and lists in a value."""
    if isinstance(value, str):
        return value if len(value) <= longest else value[: longest - 3] + "..."
    if isinstance(value, list):
        return [_cut(one, longest) for one in value[: longest // 16]]
    if isinstance(value, dict):
        return {key[:256]: _cut(one, longest) for key, one in list(value.items())[: longest // 16]}
    return value


def _fitting_overrides(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the overrides as they are, or none: half of a policy would be another one."""
    plain = _plain(dict(overrides or {}), 0)
    if len(_json_bytes(plain)) <= OVERRIDES_LIMIT:
        return dict(plain)
    log.warning("stepwatch: the policy of this run is left out: it is larger than %d KiB", OVERRIDES_LIMIT // 1024)
    return {}


def _workflow_text(workflow: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(workflow, allow_nan=False, default=str, separators=(",", ":")).encode("ascii")
    except (ValueError, TypeError, RecursionError):
        return _json_bytes(_plain(workflow, 0))


def _error_facts(error: Any) -> dict[str, Any]:
    try:
        message = str(error)
    except Exception:
        message = ""
    kind = "Error" if isinstance(error, str) else type(error).__name__
    return {"type": kind, "message": _plain(message[:500], 0)}


def _named(error: Any) -> str:
    facts = _error_facts(error)
    first = next(iter(facts["message"].strip().splitlines()), "")
    return f"{facts['type']}: {first}" if first else str(facts["type"])


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- pictures and files


def _usable_format(name: str) -> str:
    """Return a format that this Pillow writes."""
    wanted = str(name).lower()
    wanted = "jpeg" if wanted == "jpg" else wanted
    if wanted == "png":
        return wanted
    from PIL import features

    if wanted in FORMATS and features.check({"jpeg": "jpg"}.get(wanted, wanted)):
        return wanted
    log.warning("stepwatch: frames cannot be saved as %s here; they are saved as PNG", name)
    return "png"


def _own_copy(picture: Any, size: tuple[int, int] | None) -> Any:
    """Return a picture that the host cannot change any more."""
    if hasattr(picture, "save"):
        return picture.copy()
    data = picture if isinstance(picture, bytes) else bytes(picture)
    if size is None or len(data) != size[0] * size[1] * 3:
        raise ValueError(f"{len(data)} bytes are no RGB picture of {size}")
    return data


def _as_image(picture: Any, size: tuple[int, int] | None) -> Any:
    from PIL import Image

    if isinstance(picture, bytes):
        return Image.frombytes("RGB", size or (0, 0), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _encoded(image: Any, image_format: str) -> bytes:
    _, name, options = FORMATS[image_format]
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _replace(path: str, data: bytes, *, durable: bool = False) -> None:
    """Write a file under a name that nobody takes for a frame, and give it its own in one step; with *durable*, so that a loss of power keeps it."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, "." + name + "." + str(os.getpid()) + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        for tries_left in (5, 4, 3, 2, 1, 0):
            try:
                os.replace(temporary, path)
                break
            except PermissionError:
                # On Windows, while a viewer or a virus scanner has the file open.
                if not tries_left:
                    raise
                time.sleep(0.05)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    if durable:
        _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders.
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


# --- the free text of a hook


def parse_overrides(text: Any) -> tuple[dict[str, Any], list[str]]:
    """Read the policy that a user typed for one run; return it, and a sentence for each line that is left out.

    It is a JSON object, or lines as in ``stepwatch.yaml``: ``timeline.duration: 6s``, or ``timeline:`` with ``duration: 6s`` indented below it.
    Values are JSON, lists of words such as [h264, gif], or plain text. Never raises.
    """
    try:
        if isinstance(text, Mapping):
            return _nested(text), []
        return _parsed_text(str(text or ""))
    except Exception as error:
        return {}, ["nothing of it can be read: " + _named(error)]


def _nested(pairs: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    _set_override(result, [], pairs)
    return result


def _parsed_text(text: str) -> tuple[dict[str, Any], list[str]]:
    if text.lstrip().startswith("{"):
        return _nested(json.loads(text)), []
    result: dict[str, Any] = {}
    complaints: list[str] = []
    above: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        bare = _without_comment(line)
        if not bare:
            continue
        indent = len(bare) - len(bare.lstrip())
        while above and above[-1][0] >= indent:
            above.pop()
        found = re.fullmatch(r"( *)([A-Za-z_][A-Za-z0-9_.]*)(?: *= *|:(?: +|$))(.*)", bare)
        if found is None or (indent and not above):
            complaints.append(f'line {number} is left out: "{bare.strip()[:60]}" is not "key: value"')
        elif not found[3].strip():
            above.append((indent, found[2]))
        elif not _set_override(result, [key for _, key in above] + [found[2]], _override_value(found[3].strip())):
            complaints.append(f'line {number} is left out: "{found[2]}" is set otherwise above')
    return result, complaints


def _set_override(result: dict[str, Any], path: list[str], value: Any) -> bool:
    """Set one value, or all that a mapping holds; return whether there was a place for it."""
    if isinstance(value, Mapping):
        placed = [_set_override(result, [*path, str(key)], one) for key, one in value.items()]
        return all(placed)
    dotted = ".".join(path)
    *sections, name = SHORT_KEYS.get(dotted, dotted).split(".")
    into = result
    for section in sections:
        into = into.setdefault(section, {})
        if not isinstance(into, dict):
            return False
    if isinstance(into.get(name), dict):
        return False
    into[name] = value
    return True


def _without_comment(line: str) -> str:
    """Take a comment off a line; a "#" within quotation marks or a word is none."""
    quote = ""
    for position, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#" and (not position or line[position - 1].isspace()):
            return line[:position].rstrip()
    return line.rstrip()


def _override_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    if text.startswith("[") and text.endswith("]"):
        return [_override_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return {"~": None}.get(text, text)
