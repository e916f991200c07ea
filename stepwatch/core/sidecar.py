"""``run.json``, the sidecar that a hook writes beside its frames: bytes to `Sidecar`, and a frame's index from its name.

The file comes from another program, perhaps half-written, perhaps hostile. Nothing in it can raise: what cannot be used at all is "no sidecar"
and a sentence, an optional key of a wrong type is absent and a sentence, an unknown key is ignored.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeGuard

from stepwatch.core.model import Outcome, Sidecar, Writer
from stepwatch.core.naming import IMAGE_SUFFIXES, printable

SIZE_LIMIT = 256 * 1024
"""Bytes; the reader's cap, before anything is parsed."""
DEPTH_LIMIT = 64
"""Nested objects and lists; deeper ones would sooner or later end somebody's recursion."""
LARGEST_SEED = 2**64 - 1
LARGEST_PID = 2**32 - 1
LARGEST_COUNT = 10**9
"""Steps, frames, indices: more is a mistake, and would make lists that fill the memory."""
MOST_PROMISED = 10_000
"""Frames of a sidecar's word that are looked for one by one."""

_SCHEMA = re.compile(r"stepwatch\.run/([0-9]{1,6})(\.[0-9]{1,6})?")
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")
MOST_DIGITS = 18
"""Of an index in a name."""
_FRAME_NAME = re.compile(
    r"(?P<before>(?!\.)[^/\\{}\x00-\x1f]{0,80})\{index(?::(?P<width>0[1-9][0-9]?)?d?)?\}(?P<after>[^/\\{}\x00-\x1f]{0,80})"
    rf"(?i:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})"
)
_GENERATION: Mapping[str, type] = {
    "prompt": str, "negative": str, "seed": int, "subseed": int, "sampler": str, "scheduler": str, "steps": int, "cfg": float, "denoise": float,
    "width": int, "height": int, "model": str, "model_hash": str, "vae": str, "clip_skip": int, "loras": list,
}  # fmt: skip
_OBJECTS = ("writer", "hook", "host", "steps", "frames", "pass", "batch", "generation", "final", "stepwatch", "error")


def parse_sidecar(data: bytes) -> tuple[Sidecar | None, tuple[str, ...]]:
    """Read a sidecar; return it, or None when it cannot be used, and a sentence for everything that was wrong. Never raises."""
    try:
        root = _load(data)
        return _Reader(root).sidecar()
    except _Unusable as reason:
        return None, (f"run.json is not used: {reason}",)


def frame_index(sidecar: Sidecar, name: str) -> int | None:
    """Return the index in a frame's name, or None for a file that `Sidecar.frame_name` does not make; its step is `step_of_index`."""
    shape = _shape_of(sidecar.frame_name) if sidecar.frame_name is not None else None
    if shape is None:
        return None
    before, after, width = shape
    digits = name[len(before) : len(name) - len(after)]
    if not (name.startswith(before) and name.endswith(after) and len(digits) <= MOST_DIGITS and digits.isascii() and digits.isdigit()):
        return None
    # The hook's exact name only: 5.png beside 00005.png is somebody else's.
    index = int(digits)
    return index if format(index, width) == digits else None


@functools.lru_cache(maxsize=64)
def _shape_of(frame_name: str) -> tuple[str, str, str] | None:
    """What stands before and behind the index in a name, and how the index is written; asked for every file of a folder at every look."""
    shape = _FRAME_NAME.fullmatch(frame_name)
    return shape and (frame_name.partition("{")[0], frame_name.partition("}")[2], f"{shape['width'] or ''}d")


def frame_name(sidecar: Sidecar, index: int) -> str:
    """The name of the frame with this index, by a sidecar that says how its frames are named."""
    assert sidecar.frame_name is not None
    # Only a number and its width stand between the braces: `_frame_name` has let nothing else in.
    return sidecar.frame_name.format(index=index)


def promised_steps(sidecar: Sidecar) -> frozenset[int]:
    """The steps that must have frames by the sidecar's word: those it calls lost, and once it is final all that it counts."""
    indices = set(sidecar.lost)
    if sidecar.state is not Outcome.RUNNING and sidecar.frame_count is not None:
        indices.update(range(min(sidecar.frame_count + len(sidecar.lost), MOST_PROMISED)))
    return frozenset(step_of_index(sidecar, index) for index in indices)


def step_of_index(sidecar: Sidecar, index: int) -> int:
    """Return the sampler step, from 1, of the frame with this index."""
    return 1 + sidecar.skip + index * sidecar.every


class _Unusable(Exception):
    """Why there is no sidecar."""


def _load(data: bytes) -> dict[str, object]:
    if len(data) > SIZE_LIMIT:
        raise _Unusable(f"it is larger than {SIZE_LIMIT // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
        root = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_number)
    except UnicodeDecodeError:
        raise _Unusable("it is not UTF-8 text") from None
    except RecursionError:
        raise _Unusable("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        reason = "it is empty" if not data.strip() else f"it is not complete JSON ({error.msg}, line {error.lineno} column {error.colno})"
        raise _Unusable(reason) from None
    if not isinstance(root, dict):
        raise _Unusable("it does not hold a JSON object")
    cleaned = _cleaned(root, 0)
    assert isinstance(cleaned, dict)
    return cleaned


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise _Unusable(f"the key {_shown(key)} is there twice")
        result[key] = value
    return result


def _constant(text: str) -> NoReturn:
    raise _Unusable(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) > 40:
        raise _Unusable(f"a number has {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text) if len(text) <= 400 else math.inf
    if not math.isfinite(value):
        raise _Unusable(f"the number {_shown(text)} is too large")
    return value


def _cleaned(value: object, depth: int) -> object:
    """Copy a JSON value with lone surrogates replaced: no encoder takes them, so they would fail far from here."""
    if depth > DEPTH_LIMIT:
        raise _Unusable("it is nested too deeply")
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_cleaned(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {str(_cleaned(key, depth)): _cleaned(item, depth + 1) for key, item in value.items()}
    return value


def _shown(value: object) -> str:
    """Write a value into a sentence: short, and harmless on a terminal."""
    text = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    text = text if len(text) <= 60 else text[:57] + "..."
    return f'"{text}"' if isinstance(value, str) else text


def _plain_file(name: str) -> bool:
    return bool(name) and len(name) <= 200 and not name.startswith((".", "~")) and not re.search(r"[/\\:\x00-\x1f\x7f]", name)


class _Reader:
    """Takes typed values out of the JSON object and writes down what was wrong."""

    def __init__(self, root: dict[str, object]) -> None:
        self.root = root
        self.wrong: list[str] = []

    def sidecar(self) -> tuple[Sidecar, tuple[str, ...]]:
        self._check_schema()
        run_id, state = self._required()
        for key in _OBJECTS:
            self._object(key)
        sidecar = Sidecar(
            run_id=run_id,
            state=state,
            group_id=self._text("group_id"),
            error=self._error() if state is Outcome.FAILED else None,
            created=self._time("created"),
            updated=self._time("updated"),
            ended=self._time("ended"),
            steps_planned=self._count("steps", "planned"),
            steps_done=self._count("steps", "done"),
            every=self._count("steps", "every", least=1) or 1,
            skip=self._count("steps", "skip") or 0,
            frame_name=self._text("frames", "name", rule=_frame_name, wanted="a file name such as {index:05d}.png"),
            frame_count=self._count("frames", "count"),
            frames_planned=self._count("frames", "planned"),
            lost=self._lost(),
            scale=self._count("frames", "scale", least=1, most=16) or 1,
            width=self._count("frames", "width", least=1),
            height=self._count("frames", "height", least=1),
            generation=self._generation(),
            infotext=self._text("infotext"),
            workflow_file=self._text("workflow_file", rule=_plain_file, wanted="the name of a file beside run.json"),
            writer=self._writer(),
            overrides=dict(self._object("stepwatch")),
            raw=self.root,
        )
        return sidecar, tuple(self.wrong)

    def _check_schema(self) -> None:
        schema = self.root.get("schema")
        if schema is None:
            raise _Unusable('the key "schema" is missing')
        found = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
        if found is None:
            raise _Unusable(f'its schema is {_shown(schema)}, not "stepwatch.run/1"')
        if int(found[1]) != 1:
            raise _Unusable(f'its schema is {_shown(schema)}; this stepwatch reads "stepwatch.run/1"')

    def _required(self) -> tuple[str, Outcome]:
        run_id, state = self.root.get("run_id"), self.root.get("state")
        if run_id is None:
            raise _Unusable('the key "run_id" is missing')
        # `.`, `..` and hidden names would mean other places in paths that are made of it.
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id) or run_id in (".", ".."):
            raise _Unusable(f'its run_id is {_shown(run_id)}; only letters, digits, ".", "_" and "-" make one, at most 128')
        if state is None:
            raise _Unusable('the key "state" is missing')
        if not isinstance(state, str) or state not in tuple(Outcome):
            raise _Unusable(f"its state is {_shown(state)}, not one of {', '.join(Outcome)}")
        return run_id, Outcome(state)

    def _object(self, key: str) -> Mapping[str, object]:
        """Return an object of the root; a wrong one is complained of once and taken out."""
        value = self.root.get(key)
        if isinstance(value, dict):
            return value
        if value is not None:
            self._complain(key, value, "an object")
            self.root = {other: kept for other, kept in self.root.items() if other != key}
        return {}

    def _value(self, *path: str) -> object:
        return self.root.get(path[0]) if len(path) == 1 else self._object(path[0]).get(path[1])

    def _complain(self, where: str, value: object, wanted: str) -> None:
        self.wrong.append(f"run.json: {where} is ignored: it is {_shown(value)}, not {wanted}")

    def _text(self, *path: str, rule: Callable[[str], bool] | None = None, wanted: str = "a text") -> str | None:
        value = self._value(*path)
        if isinstance(value, str) and (rule is None or rule(value)):
            return value
        if value is not None:
            self._complain(".".join(path), value, wanted)
        return None

    def _time(self, key: str) -> str | None:
        return self._text(key, rule=lambda text: bool(_TIME.fullmatch(text)), wanted="a time such as 2026-01-31T12:00:00.000Z")

    def _count(self, *path: str, least: int = 0, most: int = LARGEST_COUNT) -> int | None:
        value = _integral(self._value(*path))
        if _whole(value, least, most):
            return value
        if value is not None:
            self._complain(".".join(path), value, f"a whole number from {least} to {most}")
        return None

    def _error(self) -> str | None:
        fault = self._object("error")
        words = [text for key in ("type", "message") if isinstance(text := fault.get(key), str) and text]
        return ": ".join(words)[:500] or None

    def _lost(self) -> tuple[int, ...]:
        value = self._value("frames", "lost")
        if isinstance(value, list) and all(_whole(_integral(index), 0, LARGEST_COUNT) for index in value):
            return tuple(sorted({int(index) for index in value}))
        if value is not None:
            self._complain("frames.lost", value, "a list of indices")
        return ()

    def _writer(self) -> Writer:
        began, told = self._value("writer", "start_time"), None
        if _is_number(began) and began >= 0:
            told = float(began)
        elif began is not None:
            self._complain("writer.start_time", began, "a number of clock ticks or seconds")
        return Writer(
            host=self._text("writer", "host"),
            boot_id=self._text("writer", "boot_id"),
            pid=self._count("writer", "pid", least=1, most=LARGEST_PID),
            start_time=told,
        )

    def _generation(self) -> Mapping[str, object]:
        result: dict[str, object] = {}
        for key, found in self._object("generation").items():
            wanted = _GENERATION.get(key)
            if wanted is None or found is None:
                continue
            value = _integral(found) if wanted is int else found
            if wanted is int:
                most = LARGEST_SEED if key in ("seed", "subseed") else LARGEST_COUNT
                right, said = _whole(value, 0, most), f"a whole number from 0 to {most}"
            elif wanted is float:
                right, said = _is_number(value), "a number"
            else:
                right, said = isinstance(value, wanted), "a list" if wanted is list else "a text"
            if right:
                result[key] = tuple(value) if isinstance(value, list) else value
            else:
                self._complain(f"generation.{key}", value, said)
        return result


def _integral(value: object) -> object:
    """Return 8.0 as 8: JSON knows one kind of number, and some languages write all of them with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole(value: object, least: int, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _frame_name(text: str) -> bool:
    return bool(_FRAME_NAME.fullmatch(text))
