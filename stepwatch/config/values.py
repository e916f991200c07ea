"""Values of a policy: what may be written for a field, and what it becomes.

Each field's type from ``core.policy`` goes through a pydantic TypeAdapter; its marks (``Seconds``, ``Rate`` ...) stand for the syntaxes here.
A value that does not fit says what is wrong with it, and what its writer probably meant. pydantic is imported by the first value that is not plainly
right.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

from stepwatch.config.strict_yaml import Node
from stepwatch.core import policy as model

MOST_CHARACTERS = 60
"""Longer text is no duration, size or rate, and is not searched for one."""


class WrongValue(ValueError):
    """A value that its field cannot take; ``right`` says what to write when that can be told from the value."""

    def __init__(self, wrong: str, right: str = "") -> None:
        super().__init__(wrong)
        self.right = right


_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)([a-zµμ]+)")
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2})")
_LONG_UNITS = {
    name: unit
    for unit, names in {
        "ms": "msec millisecond milliseconds",
        "s": "sec secs second seconds",
        "m": "min mins minute minutes",
        "h": "hr hrs hour hours",
        "d": "day days",
        "w": "week weeks",
    }.items()
    for name in names.split()
}


def parse_duration(value: object) -> Fraction:
    """Read a duration in durationpy's syntax as exact seconds; a plain number counts seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _exact(value)
    if not isinstance(value, str):
        raise WrongValue("this is not a duration")
    seconds = _duration(value)
    if seconds is None:
        raise WrongValue("this is not a duration", _duration_meant(value))
    return seconds


def _duration(text: str) -> Fraction | None:
    # durationpy's own sum goes through floats and microseconds; its table of units is what makes a duration here, the sum is exact.
    from durationpy.duration import units

    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text)
    parts = _PART.findall(body) if len(body) <= MOST_CHARACTERS else []
    if not parts or "".join(number + unit for number, unit in parts) != body:
        return None
    # `mm` and `y` are left out: a month of 30 days is nobody's intention, and `5mm` is somebody's typing error for five minutes.
    if any(unit not in units or unit in {"mm", "y"} for _, unit in parts):
        return None
    return sign * sum((Fraction(number) * units[unit] for number, unit in parts), Fraction(0)) / 10**9


def _duration_meant(text: str) -> str:
    clock = _CLOCK.fullmatch(text)
    if clock:
        units = zip(clock.groups(), "hms", strict=True)
        return "write " + ("".join(f"{int(number)}{unit}" for number, unit in units if number and int(number)) or "0s")
    if re.fullmatch(r"[0-9]{1,9}", text):
        return f"write {int(text)}s"
    words = re.sub(r"[\s_]+", "", text.lower()) if len(text) <= MOST_CHARACTERS else ""
    meant = re.sub(r"[a-z]+", lambda word: _LONG_UNITS.get(word.group(), word.group()), words)
    return f"write {meant}" if _duration(meant) is not None else ""


def _exact(number: float) -> Fraction:
    """The number as it was written: 0.1 is one tenth."""
    if not math.isfinite(number):
        raise WrongValue("this is not a number")
    return Fraction(repr(number))


def parse_size(value: object) -> int:
    """Read a size in pydantic's syntax, or a plain number of bytes."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    if isinstance(value, bool) or not isinstance(value, int | str):
        raise WrongValue("this is not a size")
    try:
        text = value if isinstance(value, int) or len(value) <= MOST_CHARACTERS else ""
        if isinstance(text, str) and (text.lower().endswith("bit") or re.fullmatch(r"0[0-9]+", text)):
            raise WrongValue("this is not a size")
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError):
        raise WrongValue("this is not a size") from None
    if size >= 2**63:
        raise WrongValue("larger than any disk")
    return size


LARGEST_TERM = 1_001_000
"""Of a rate that ffmpeg takes as it is; it rounds what is larger, and then nothing falls on its pictures any more."""


def _simple(rate: Fraction) -> Fraction:
    """The rate, or where ffmpeg could not keep it, the one that was meant: 59.94006 is 60000/1001 as others print it."""
    return rate if max(rate.numerator, rate.denominator) <= LARGEST_TERM else rate.limit_denominator(1001)


def parse_rate(value: object) -> Fraction:
    """Read ``30``, ``29.97`` or ``30000/1001``, exact; with more digits than ffmpeg keeps, what they stand for."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _simple(_exact(value))
    if isinstance(value, str):
        ratio = re.fullmatch(r"([0-9]{1,9})(?:/([0-9]{1,9}))", value)
        if ratio and int(ratio[2]):
            return _simple(Fraction(int(ratio[1]), int(ratio[2])))
        meant = re.sub(r"\s+", "", value.lower().removesuffix("fps").removesuffix("hz")) if len(value) <= MOST_CHARACTERS else ""
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?(/[1-9][0-9]*)?", meant):
            raise WrongValue("this is not a rate", f"write {meant.lstrip('0') or '30'}")
    raise WrongValue("this is not a rate")


def parse_scale(value: object) -> str:
    """Read the long side in pixels, or WIDTHxHEIGHT."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        if re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})?", value):
            return value
        meant = re.sub(r"\s+|px", "", value.lower()).replace("\u00d7", "x").replace("*", "x") if len(value) <= MOST_CHARACTERS else ""
        if re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})?", meant):
            raise WrongValue("this is not a size in pixels", f"write {meant}")
    raise WrongValue("this is not a size in pixels")


_QUALITIES = ("default", "classic", "high", "small")


def parse_quality(value: object) -> str | int:
    """Read a named quality, ``{crf: N}`` or ``crf:N``; the number alone is what ``crf`` becomes."""
    if isinstance(value, str) and value in _QUALITIES:
        return value
    if isinstance(value, Mapping) and list(value) == ["crf"] and isinstance(value["crf"], int) and not isinstance(value["crf"], bool):
        return value["crf"]
    crf = re.fullmatch(r"crf:\s*(0|[1-9][0-9]?)", value) if isinstance(value, str) else None
    if crf:
        return int(crf[1])
    if isinstance(value, int) and not isinstance(value, bool):
        raise WrongValue("a number alone is no quality", f"write `crf: {value}` below it, or `crf:{value}`")
    import difflib

    near = difflib.get_close_matches(value, _QUALITIES, 1) if isinstance(value, str) else []
    raise WrongValue("there is no such quality", f"write {near[0]}" if near else "")


def parse_text(value: object) -> str:
    """Read text that is not empty."""
    if isinstance(value, str):
        if not value.strip():
            raise WrongValue("this is empty", "write a value, or null for the default")
        if "\0" in value:
            raise WrongValue("this holds a NUL character", "leave the NUL out")
        if not value.isprintable() and any("\ud800" <= char <= "\udfff" for char in value):
            raise WrongValue("this holds half a character (a lone surrogate)", "write the whole character")
        return value
    raise WrongValue("this is not text")


def parse_place(value: object) -> str:
    """Read a path; ``~`` becomes the home folder."""
    path = os.path.expanduser(parse_text(value))
    if path.startswith("~"):
        raise WrongValue("there is no such user's home folder", "write the path out, or ./~name for a folder of that name")
    return path


def parse_template(value: object) -> str:
    """Read a template of a file's name."""
    from stepwatch.core.naming import check_template

    text = parse_text(value)
    try:
        check_template(text)
    except ValueError as error:
        raise WrongValue("no name can be made of this template", str(error)) from None
    return text


def parse_pattern(value: object) -> str:
    """Read a named layout or a regular expression."""
    from stepwatch.core.naming import layout_for

    text = parse_text(value)
    try:
        layout_for(text)
    except ValueError as error:
        raise WrongValue("no frames can be found by this pattern", str(error)) from None
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a marked field reads its values, and how its syntax is told to people and editors."""

    parse: Callable[[Any], object]
    expects: str
    schema: Mapping[str, object]


_DURATION = r"^([0-9]+(\.[0-9]+)?(ns|us|µs|μs|ms|s|m|h|d|w))+$"
_SIZE = r"^\s*[0-9]*\.?[0-9]+\s*([kKmMgGtTpPeE]?[iI]?[bB]?)\s*$"
_SCALE_TEXT = r"^[1-9][0-9]*(x[1-9][0-9]*)?$"
_TEXT: Mapping[str, object] = {"type": "string", "pattern": r"\S"}
KINDS: Mapping[type, Kind] = {
    model.Seconds: Kind(
        parse=parse_duration,
        expects="a duration such as 90s, 1m30s, 1.5h, 500ms or 1d",
        schema={"anyOf": [{"type": "string", "pattern": _DURATION}, {"type": "number", "minimum": 0}]},
    ),
    model.Bytes: Kind(
        parse=parse_size,
        expects="a size such as 10MB or 8MiB",
        schema={"anyOf": [{"type": "string", "pattern": _SIZE}, {"type": "integer", "minimum": 0}]},
    ),
    model.Rate: Kind(
        parse=parse_rate,
        expects="a rate such as 30, 29.97 or 30000/1001",
        schema={"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1000}, {"type": "string", "pattern": r"^[0-9]{1,9}/[0-9]{1,9}$"}]},
    ),
    model.Scale: Kind(
        parse=parse_scale,
        expects="the long side such as 1024, or 1080x1920",
        schema={"anyOf": [{"type": "integer", "minimum": 2, "maximum": 16384}, {"type": "string", "pattern": _SCALE_TEXT}]},
    ),
    model.Quality: Kind(
        parse=parse_quality,
        expects="default, classic, high, small or crf: 23",
        schema={
            "anyOf": [
                {"enum": list(_QUALITIES)},
                {"type": "string", "pattern": r"^crf:\s*[0-9]{1,2}$"},
                {
                    "type": "object",
                    "properties": {"crf": {"type": "integer", "minimum": 0, "maximum": 63}},
                    "required": ["crf"],
                    "additionalProperties": False,
                },
            ]
        },
    ),
    model.Template: Kind(parse=parse_template, expects='a template such as "{seed}-{prompt:.80}"', schema=_TEXT),
    model.Pattern: Kind(
        parse=parse_pattern,
        expects=r"numbered, steps-animation, save-intermediate, comfyui, or a regular expression such as '(?P<step>\d+)\.png'",
        schema=_TEXT,
    ),
    model.Place: Kind(parse=parse_place, expects="the path of a folder", schema=_TEXT),
    model.Text: Kind(parse=parse_text, expects="text", schema=_TEXT),
}


def _within(parse: Callable[[Any], object], limits: model.Range, value: object) -> object:
    """Parse a value and hold it against its limits; of ``1080x1920``, each side."""
    parsed = parse(value)
    sides = parsed.split("x") if isinstance(parsed, str) else [parsed]
    for number in (Fraction(side) for side in sides if isinstance(side, int | Fraction) or (isinstance(side, str) and side.isdecimal())):
        if limits.at_least is not None and number < limits.at_least:
            raise WrongValue("this is too small", f"write {_limit(limits.at_least, parse)} or more")
        if limits.above is not None and number <= limits.above:
            raise WrongValue("this is too small", f"write more than {_limit(limits.above, parse)}")
        if limits.at_most is not None and number > limits.at_most:
            raise WrongValue("this is too large", f"write {_limit(limits.at_most, parse)} at most")
    return parsed


def _limit(number: Fraction | int, parse: Callable[[Any], object]) -> str:
    return write_duration(Fraction(number)) if parse is parse_duration else str(number)


def write_duration(seconds: Fraction) -> str:
    """Write seconds as ``parse_duration`` reads them."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % length == 0 and (unit != "m" or seconds >= 120):
            return f"{seconds // length}{unit}"
    return f"{_decimal(seconds)}s" if seconds == 0 or seconds >= 1 else f"{_decimal(seconds * 1000)}ms"


def _decimal(number: Fraction) -> str:
    """Write a fraction whose denominator divides a power of ten without loss; any other as close as a float gets."""
    places = next((places for places in range(40) if (number * 10**places).denominator == 1), None)
    if places is None:
        return repr(float(number))
    whole, rest = divmod(int(number * 10**places), 10**places)
    return f"{whole}.{rest:0{places}d}" if places else str(whole)


@functools.cache
def adapter(hint: Any) -> Any:
    """Make the pydantic TypeAdapter of a field, once."""
    from pydantic import TypeAdapter

    return TypeAdapter(at_the_door(hint))


def at_the_door(hint: Any) -> Any:
    """Turn a field's type into the one that pydantic checks: marks become parsers, limits and schemas; null is dealt with before."""
    from pydantic import Field, PlainValidator, WithJsonSchema

    if typing.get_origin(hint) is Annotated:
        base, marks = hint.__origin__, hint.__metadata__
        limits = next((mark for mark in marks if isinstance(mark, model.Range)), model.Range())
        kind = next((KINDS[type(mark)] for mark in marks if type(mark) in KINDS), None)
        if kind:
            return Annotated[base, PlainValidator(functools.partial(_within, kind.parse, limits)), WithJsonSchema(dict(kind.schema))]
        return Annotated[base, Field(ge=limits.at_least, le=limits.at_most)] if base is int else base
    if typing.get_origin(hint) in {typing.Union, UnionType}:
        return typing.Union[tuple(at_the_door(part) for part in typing.get_args(hint) if part is not NoneType)]  # noqa: UP007  -- made of a list
    return hint


def expectation(hint: Any) -> str:
    """Say in words what a field takes."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind = next((KINDS[type(mark)] for mark in hint.__metadata__ if type(mark) in KINDS), None)
        if kind:
            return kind.expects
        limits = next((mark for mark in hint.__metadata__ if isinstance(mark, model.Range)), model.Range())
        most = f" to {limits.at_most}" if limits.at_most is not None else " or more"
        return f"a whole number, {limits.at_least}{most}" if hint.__origin__ is int else expectation(hint.__origin__)
    if origin in {typing.Union, UnionType}:
        return ", or ".join(expectation(part) for part in typing.get_args(hint) if part is not NoneType)
    if origin is Literal:
        names = [str(name) for name in typing.get_args(hint)]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    return "true or false" if hint is bool else "a value"


_YES = {"yes": "true", "y": "true", "on": "true", "true": "true", "no": "false", "n": "false", "off": "false", "false": "false"}


def check(node: Node, hint: Any) -> object:
    """Return the node's value in its field's type; raises WrongValue with what is wrong and what would be right."""
    value = _bare(node)
    found = _plainly(value, hint)
    if len(found) == 1:
        return found[0]
    from pydantic import ValidationError

    wants = expectation(hint)
    try:
        return adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        causes = [each.get("ctx", {}).get("error") for each in error.errors(include_url=False)]
        wrong = next((cause for cause in causes if isinstance(cause, WrongValue)), None)
    meant = (wrong.right if wrong else "") or _meant(node, value, wants)
    if wrong is None:
        in_range = type(value) is not int or "whole number" not in wants
        chosen = typing.get_origin(_base(hint)) is Literal and isinstance(value, str)
        wrong = WrongValue(("there is no such choice" if chosen else f"this is not {wants}") if in_range else "this is out of range")
    raise WrongValue(str(wrong), meant or f"write {wants}")


def _plainly(value: object, hint: Any) -> list[object]:
    """What a value is to the fields of an alternative that take it as it is.

    One answer is the answer: pydantic, which takes as long to be imported as all else that a command needs, would give the same. For none or several
    it has the last word.
    """
    if typing.get_origin(hint) in {typing.Union, UnionType}:
        return [found for part in typing.get_args(hint) if part is not NoneType for found in _plainly(value, part)]
    if typing.get_origin(hint) is Literal:
        return [value for choice in typing.get_args(hint) if type(choice) is type(value) and choice == value]
    if hint is bool:
        return [value] if isinstance(value, bool) else []
    if typing.get_origin(hint) is Annotated:
        limits = next((mark for mark in hint.__metadata__ if isinstance(mark, model.Range)), model.Range())
        kind = next((KINDS[type(mark)] for mark in hint.__metadata__ if type(mark) in KINDS), None)
        if kind is not None:
            with contextlib.suppress(ValueError):  # WrongValue, and what Python says of a number of thousands of digits.
                return [_within(kind.parse, limits, value)]
        elif hint.__origin__ is not int:
            return _plainly(value, hint.__origin__)
        elif type(value) is int:
            low = limits.at_least is None or value >= limits.at_least
            return [value] if low and (limits.at_most is None or value <= limits.at_most) else []
    return []


def _base(hint: Any) -> Any:
    """The type behind its marks."""
    return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def _bare(node: Node) -> object:
    """The value alone; of lists and mappings only as much as a field could want."""
    if isinstance(node.value, dict):
        return {key: entry.node.value for key, entry in node.value.items()} if len(node.value) == 1 else {}
    return [] if isinstance(node.value, list) else node.value


def _meant(node: Node, value: object, wants: str) -> str:
    """Guess what the writer meant, for the traps that YAML 1.1 has taught people to fall into."""
    if isinstance(value, str):
        if wants == "true or false" and value.lower() in _YES:
            return f"write {_YES[value.lower()]}" + (" without quotes" if node.quoted else "; yes, no, on and off are text here")
        if "whole number" in wants:
            number = value.replace("_", "").replace(",", "") if len(value) < 20 else ""
            if re.fullmatch(r"[-+]?[0-9]+", number):
                return f"write {int(number)}" + (" without quotes" if node.quoted else "")
            if re.fullmatch(r"0([xX][0-9a-fA-F]+|[oO][0-7]+|[bB][01]+)", number):
                return f"write {int(number, 0)}"
        import difflib

        choices = re.split(r", or |, | or ", wants)
        near = difflib.get_close_matches(value.lower(), choices, 1)
        return f"write {near[0]}" if near and near[0].isalnum() else ""
    if isinstance(value, float) and "whole number" in wants and value.is_integer() and abs(value) < 10**9:
        return f"write {int(value)}"
    if isinstance(value, bool | int | float) and (wants == "text" or wants.startswith(("a template", "the path"))):
        return f'put it in quotes: "{node.written}"'
    return ""
