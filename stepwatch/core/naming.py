"""Names to meaning and back: which file is a frame of which run and step, and what an output is called.

Frames. A `Layout` reads one file name at a time. What only the whole folder can tell is decided in `sort_groups`: which of two files of one
step is *the* frame, which ``-1`` suffix marks a copy, whether a run counts from 0, and whether a prefix separates runs. Where nobody says how
frames are named, `guess_groups` finds the runs of all layouts in a folder.

Steps count from 1. Both extensions of the WebUI number their frames by the sampler's own index, from 0: they are shifted by one, always.
Any other run is shifted when it has a frame 0.

Outputs. A template has plain fields only. Whatever its values hold, `output_stem` gives one plain file name that Linux, macOS and Windows accept.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from math import gcd

IMAGE_SUFFIXES = (".png", ".bmp", ".ppm", ".pnm", ".webp", ".jpg", ".jpeg")
"""Suffixes a frame may have, lossless ones first: the order in which two files of one step are preferred. Content decides what they really are."""

MISSING_LIMIT = 10_000
"""Missing steps that are listed one by one; a number in a name may be a time stamp, and the gap between two of those is no list anybody reads."""

# int() of more digits is either no step number or an attack; 18 keep within 64 bits.
_NUMBER = "[0-9]{1,18}"
_SUFFIX = "(?i:" + "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES) + ")"


# ---------------------------------------------------------------- frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a folder's files are named: tells run and step of a file by its name alone."""

    name: str
    """numbered, steps-animation, save-intermediate, comfyui, or ``pattern`` for a regular expression."""
    expressions: tuple[re.Pattern[str], ...]
    """The first that matches the whole name counts; groups ``step``, and ``run``, ``run2`` joined by a dash as the run's group."""
    zero_based: bool = False
    """Numbers count from 0 by definition."""
    copies: str = ""
    """Separators that may come before the number of a copy: ``f010-1.png`` beside ``f010.png``."""

    def match(self, file_name: str) -> tuple[str, int] | None:
        """Return group and step of a frame, or None; step 0 is left for `sort_groups` to shift."""
        if not is_frame_name(file_name):
            return None
        for expression in self.expressions:
            if found := expression.fullmatch(file_name):
                groups = found.groupdict()
                number = groups.get("step") or ""
                # `\d` of a user's expression also takes digits of other scripts; a step has plain ones.
                if not (number.isascii() and number.isdigit() and len(number) <= 18):
                    continue
                group = "-".join(part for key, part in groups.items() if key in ("run", "run2") and part is not None)
                return group, int(number) + self.zero_based
        return None


def is_frame_name(name: str) -> bool:
    """Tell whether a name can be a frame's at all: not hidden, not temporary, an image's suffix."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _layout(name: str, *expressions: str, zero_based: bool = False, copies: str = "") -> Layout:
    # (?s): a line break is a character of a name like any other.
    compiled = tuple(re.compile(f"(?s){expression}{_SUFFIX}") for expression in expressions)
    return Layout(name=name, expressions=compiled, zero_based=zero_based, copies=copies)


# Iteration and batch have two digits or, from 100 on, more; the sampler's index three or, from 1000 on, more without a leading zero.
_STEPS_ANIMATION = r"(?P<run>[0-9]{2,}?[0-9]{2})(?P<step>[0-9]{3}|[1-9][0-9]{3,17})-(?P<run2>[0-9]+-.*)"

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        _layout("numbered", rf"(?P<run>(?:.*[^0-9])?)(?P<step>{_NUMBER})", copies="- "),
        _layout("steps-animation", _STEPS_ANIMATION, rf"(?P<step>{_NUMBER})", zero_based=True, copies="-"),
        # The rest of the name belongs to the group: the WebUI counts from 1 again in an emptied folder, and then only the seed tells two runs apart.
        _layout("save-intermediate", r"(?P<run>[0-9]{5,6})-(?P<step>[0-9]{3,4})-(?P<run2>.*)", zero_based=True, copies="-"),
        _layout("comfyui", rf"(?P<run>.*)_(?P<step>{_NUMBER})_"),
    )
}
"""The layouts that have a name."""

# Flat `00000.jpg` is left to `numbered`, which gives the same steps wherever frame 0 is there and does not shift `00001.png`.
_PARTICULAR = (
    LAYOUTS["comfyui"],
    _layout("steps-animation", _STEPS_ANIMATION, zero_based=True, copies="-"),
    LAYOUTS["save-intermediate"],
)
_NUMBERED = LAYOUTS["numbered"]


def layout_for(pattern: str) -> Layout:
    """Return the layout of that name, or one made from a regular expression with groups ``step`` and, optionally, ``run``.

    ValueError says what is wrong and what would be right; expressions that some name could keep busy for hours are refused.
    """
    if named := LAYOUTS.get(pattern):
        return named
    known = ", ".join(LAYOUTS)
    if re.fullmatch(r"[A-Za-z_-]*", pattern):
        raise ValueError(f"there is no layout {pattern!r}; use one of {known}, or a regular expression with a group (?P<step>[0-9]+)")
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}; use one of {known}, or something like 'shot_(?P<step>[0-9]+)\\.png'") from error
    if "step" not in expression.groupindex:
        raise ValueError("the regular expression has no group named step; write (?P<step>[0-9]+) where the step number is")
    if unknown := sorted(set(expression.groupindex) - {"step", "run"}):
        raise ValueError(f"the regular expression has a group named {unknown[0]}; only step and run have a meaning")
    if reason := _slow(pattern):
        raise ValueError(f"the regular expression could take for ever: {reason}")
    return Layout(name="pattern", expressions=(expression,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The files of one run in a folder, by step."""

    name: str
    frames: tuple[tuple[int, str], ...]
    """(step, file name), one for each step, in order."""
    duplicates: tuple[tuple[int, str], ...]
    """Further files of these steps."""


def sort_groups(layout: Layout, sizes: Mapping[str, int], *, shift: bool = True) -> tuple[Group, ...]:
    """Sort a folder's files (name -> bytes) into runs, in natural order of their names.

    Of several files of one step the frame is the one that is not empty, is not a copy (``f010-1.png``), has the better suffix
    (`IMAGE_SUFFIXES`), the shorter name, the first name: in this order, so the choice is always the same. Without ``shift`` a run that has a
    frame 0 keeps it: for numbers that are indices.
    """
    found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in sizes:
        if matched := layout.match(name):
            found[matched[0]].append((matched[1], name))
    copies: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for group, original in _copy_groups(layout, found).items():
        owner, step = original
        copies[owner].extend((number if step is None else step, name) for number, name in found.pop(group))
    if layout.name == "numbered" and len(found) == 1:
        # One prefix only: it says nothing, the folder is the run.
        prefix, only = found.popitem()
        found[""] = only
        copies[""] = copies.pop(prefix, [])
    groups = [_group(name, files, copies[name], sizes, shift=shift and not layout.zero_based) for name, files in found.items()]
    return tuple(sorted(groups, key=lambda group: natural(group.name)))


def guess_groups(sizes: Mapping[str, int]) -> tuple[tuple[tuple[str, Group], ...], tuple[str, ...]]:
    """Sort a folder's images (name -> bytes) into runs when nobody said how frames are named there.

    Returns (layout's name, group) for each run, no two of the same group name, in natural order; then the images that belong to none.

    Each file belongs to the most particular layout that explains it and in which its run has further steps; single files, which any layout may
    explain by accident, follow a layout that has such runs, but a single numbered image beside runs is none: `cover1.png`. Where nothing has a
    second step, the layout that explains most of the names is taken.
    """
    owners = _particular_owners(sizes)
    groups = sort_groups(_NUMBERED, {name: size for name, size in sizes.items() if name not in owners})
    several = tuple(group for group in groups if len(group.frames) > 1)
    if not owners and not several:
        best = max((*_PARTICULAR, _NUMBERED), key=lambda layout: sum(1 for name in sizes if layout.match(name)))
        if best is not _NUMBERED:
            owners = {name: best for name in sizes if best.match(name)}
    if owners or several:
        # As if single images were not there: of one prefix, the folder is the run.
        groups = several if len(several) > 1 else tuple(replace(group, name="") for group in several)
    found: dict[str, tuple[str, Group]] = {}
    for layout in _PARTICULAR:
        for group in sort_groups(layout, {name: sizes[name] for name, owner in owners.items() if owner is layout}):
            _add(found, layout, group)
    for group in groups:
        _add(found, _NUMBERED, group)
    placed = {name for _, group in found.values() for _, name in (*group.frames, *group.duplicates)}
    runs = tuple(found[name] for name in sorted(found, key=natural))
    return runs, tuple(sorted(sizes.keys() - placed, key=natural))


def _add(found: dict[str, tuple[str, Group]], layout: Layout, group: Group) -> None:
    """Put a group among others of its folder; a run is known by its name, so `cat1.png` must not be the `cat` of `cat_00001_.png`."""
    name = group.name
    while name in found:
        name = f"{name} ({layout.name})".lstrip()
    found[name] = layout.name, replace(group, name=name)


def _particular_owners(names: Iterable[str]) -> dict[str, Layout]:
    """Find the particular layout of each name that has one: the first in which its run has further steps, else the first that has such runs."""
    stems = {name.rpartition(".")[0]: name for name in names}
    claims: list[tuple[Layout, dict[str, str], set[str]]] = []
    for layout in _PARTICULAR:
        matched = {name: found for name in names if (found := layout.match(name)) and not _copies_a_numbered(name, stems, layout)}
        counts = Counter(group for group, _ in set(matched.values()))
        runs = {group for group, steps in counts.items() if steps > 1}
        if runs:
            claims.append((layout, {name: group for name, (group, _) in matched.items()}, runs))
    owners: dict[str, Layout] = {}
    for name in names:
        fitting = [(groups[name] not in runs, layout) for layout, groups, runs in claims if name in groups]
        if fitting:
            owners[name] = min(fitting, key=lambda one: one[0])[1]
    return owners


def _copies_a_numbered(name: str, stems: Mapping[str, str], layout: Layout) -> bool:
    """Whether ``00001-010-1.png`` is a copy of a ``00001-010.png`` that this layout does not explain, so that it cannot explain the copy."""
    marked = re.fullmatch(r"(?s)(.*)[- ][1-9][0-9]?", name.rpartition(".")[0])
    original = stems.get(marked[1]) if marked else None
    return original is not None and _NUMBERED.match(original) is not None and layout.match(original) is None


def facts_of_group(layout_name: str, group: str) -> tuple[int | None, str | None]:
    """Return the seed and the prompt that a run's group tells; only the names of Steps Animation promise them: ``BBII-SEED-PROMPT``."""
    found = re.fullmatch(r"(?s)[0-9]+-([0-9]+)-(.*)", group) if layout_name == "steps-animation" else None
    if found is None:
        return None, None
    # More digits than a seed has are something else, and more than int() takes.
    return int(found[1]) if len(found[1]) <= 20 else None, found[2].strip() or None


def _group(name: str, files: list[tuple[int, str]], copies: list[tuple[int, str]], sizes: Mapping[str, int], *, shift: bool) -> Group:
    def order(entry: tuple[int, str]) -> tuple[int, bool, bool, int, int, str]:
        step, file_name = entry
        suffix = "." + file_name.rpartition(".")[2].lower()
        return step, not sizes[file_name], entry in copied, IMAGE_SUFFIXES.index(suffix), len(file_name), file_name

    copied = frozenset(copies)
    first = int(shift and any(step == 0 for step, _ in files))
    frames: dict[int, str] = {}
    duplicates: list[tuple[int, str]] = []
    for step, file_name in sorted([*files, *copies], key=order):
        if step + first in frames:
            duplicates.append((step + first, file_name))
        else:
            frames[step + first] = file_name
    return Group(name=name, frames=tuple(frames.items()), duplicates=tuple(duplicates))


def _copy_groups(layout: Layout, found: Mapping[str, Sequence[tuple[int, str]]]) -> dict[str, tuple[str, int | None]]:
    """Find groups that are copies of single frames: group -> (group of the originals, their step; None: each the step of its own name).

    A host that must not overwrite writes ``f010-1.png`` beside ``f010.png``. Read by itself that is step 1 of a run ``f010-``. It is taken for a
    copy when ``f010`` is a frame of a run that has more frames, and there are at most nine such numbers, none of them padded.
    """
    if not layout.copies:
        return {}
    result: dict[str, tuple[str, int | None]] = {}
    if layout.name == "numbered":
        stems = {name.rpartition(".")[0]: (group, step) for group, files in found.items() for step, name in files}
        for group, files in found.items():
            original = stems.get(group[:-1]) if group.endswith(tuple(layout.copies)) else None
            plain = all(f"{group}{step}" == name.rpartition(".")[0] and 0 < step < 100 for step, name in files)
            if original and plain and len(files) <= 9 and len(files) < len(found[original[0]]):
                result[group] = original
    else:
        for group, files in found.items():
            marked = re.fullmatch(r"(?s)(.*)-[1-9][0-9]?", group)
            steps = {step for step, _ in found.get(marked[1], ())} if marked else set()
            if marked and len(files) < len(steps) and all(step in steps for step, _ in files):
                result[group] = (marked[1], None)
    # A copy of a copy stays a run of its own: rare, and never wrong to show.
    return {group: original for group, original in result.items() if original[0] not in result}


def missing_steps(steps: Sequence[int], *, stride: int | None = None) -> tuple[int, ...]:
    """List the steps absent between the first and the last one, at most `MISSING_LIMIT` of them.

    ``steps`` ascend. Without a known stride it is the greatest common divisor of the differences, so a run that kept every fifth step has no holes.
    """
    if len(steps) < 2:
        return ()
    if stride is None:
        stride = gcd(*(after - before for before, after in pairwise(steps)))
    missing: list[int] = []
    for before, after in pairwise(steps):
        for step in range(before + stride, after, stride):
            if len(missing) == MISSING_LIMIT:
                return tuple(missing)
            missing.append(step)
    return tuple(missing)


def natural(text: str) -> tuple[tuple[object, ...], str]:
    """Return a sort key that puts ``run 9`` before ``run 10``."""
    parts: list[object] = list(re.split(r"([0-9]+)", text.casefold()))
    for index in range(1, len(parts), 2):
        digits = str(parts[index]).lstrip("0")
        # Not int(): a name may hold more digits than Python likes to convert.
        parts[index] = (len(digits), digits)
    return tuple(parts), text


def printable(name: str) -> str:
    """Write any name so that terminals, logs, JSON and databases can take it: undecodable bytes and control characters are escaped."""
    shown = []
    for character in name:
        if "\udc80" <= character <= "\udcff":
            shown.append(f"\\x{ord(character) - 0xDC00:02x}")
        elif unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI:
            shown.append(character.encode("unicode_escape").decode("ascii"))
        else:
            shown.append(character)
    return "".join(shown)


# ---------------------------------------------------------------- regular expressions that could take for ever
#
# Python's matcher backtracks and cannot be given a time limit, so an expression is judged before it is used, by its text. Exponential time needs
# a repeat around something that can itself match in several ways: refused. Polynomial time needs repeats in a row that compete for the same
# characters: `.*.*.*` can share out a name in n^2 ways. Up to three such competitors are harmless on names of at most 255 bytes.

_COMPETITORS = 3
_ONCE, _OPTIONAL, _REPEATED = 0, 1, 2
_ALPHABET = (*map(chr, range(32, 127)), "\n", "\u00e9", "\u6c49")
_OPENING = re.compile(r"\((?!\?)|\(\?(?:P<\w+>|:|=|!|<=|<!|>|P=\w+(?=\))|[aiLmsu]+(?=\))|[aimsuL-]+:)")
_QUANTIFIER = re.compile(r"(?:([*+?])|\{(?=[0-9,])([0-9]*)(,?)([0-9]*)\})[?+]?")
_ATOM = re.compile(r"\\[^0-9]|\\[0-9]{1,3}|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)


def _slow(pattern: str) -> str:
    """Say why an expression may take far too long, or return an empty string."""
    try:
        items = _items(pattern)
    except ValueError as error:
        return str(error)
    if sum(times == _OPTIONAL for _, times in items) > 10:
        return "more than ten optional parts; spell out what the names really look like"
    # Longest chain of repeats that compete, by dynamic programming over the order in which they are written.
    longest: dict[int, int] = {}
    for index, (characters, times) in enumerate(items):
        if times != _REPEATED:
            continue
        longest[index] = 1
        for earlier in [other for other in longest if other != index and items[other][0] & characters]:
            both = items[earlier][0], characters
            between = (letters for letters, passed in items[earlier + 1 : index] if passed == _ONCE)
            if all(letters & both[0] and letters & both[1] for letters in between):
                longest[index] = max(longest[index], longest[earlier] + 1)
    if max(longest.values(), default=0) > _COMPETITORS:
        return f"more than {_COMPETITORS} repeats in a row can match the same characters; part them by a character that they cannot match"
    return ""


def _items(pattern: str) -> list[tuple[frozenset[str], int]]:
    """List what a valid pattern consumes, in writing order: the characters of each atom, and how often."""
    items: list[tuple[frozenset[str], int]] = []
    opened: list[int] = []
    branched = [False]
    position = 0
    while position < len(pattern):
        if pattern[position] == "(":
            opening = _OPENING.match(pattern, position)
            if opening is None:
                raise ValueError("conditions, comments and the flag x are not supported here; leave them out")
            opened.append(len(items))
            branched.append(False)
            if opening[0].startswith("(?P="):
                items.append((frozenset(_ALPHABET), _REPEATED))
            position = opening.end()
        elif pattern[position] == "|":
            branched[-1] = True
            position += 1
        elif pattern[position] == ")":
            start, alternatives = opened.pop(), branched.pop()
            position, times, many = _quantifier(pattern, position + 1)
            inside = items[start:]
            if many:
                if alternatives or any(passed != _ONCE for _, passed in inside):
                    raise ValueError("a repeat, an option or alternatives inside a repeated group; repeat single characters only, as in [a-z-]+")
                items[start:] = [(frozenset().union(*(characters for characters, _ in inside)), times)]
            elif times == _OPTIONAL:
                items[start:] = [(characters, max(passed, _OPTIONAL)) for characters, passed in inside]
            branched[-1] = branched[-1] or alternatives
        else:
            atom = _ATOM.match(pattern, position)
            assert atom is not None  # its last alternative takes any character
            position, times, _ = _quantifier(pattern, atom.end())
            if atom[0] not in ("^", "$", r"\b", r"\B", r"\A", r"\Z"):
                items.append((_characters(atom[0]), times))
    return items


def _quantifier(pattern: str, position: int) -> tuple[int, int, bool]:
    """Read the quantifier at this place, if any: position after it, how often, and whether it may be more than once."""
    found = _QUANTIFIER.match(pattern, position)
    if not found:
        return position, _ONCE, False
    least, most = found[2], found[4] if found[3] else found[2]
    if found[1] == "?" or (least in ("", "0") and most == "1"):
        return found.end(), _OPTIONAL, False
    if least is not None and least == most and least:
        return found.end(), _ONCE, int(least) > 1
    return found.end(), _REPEATED, True


def _characters(atom: str) -> frozenset[str]:
    """Find which characters of a sample alphabet an atom matches, itself included."""
    try:
        expression = re.compile(atom, re.DOTALL | re.IGNORECASE)
    except re.error:
        # A back reference by number: anything.
        return frozenset(_ALPHABET)
    return frozenset(filter(expression.fullmatch, _ALPHABET)) or frozenset({atom})


# ---------------------------------------------------------------- outputs

FIELDS: Mapping[str, object] = {
    "seed": 2**64 - 1,
    "prompt": "a slender rocket",
    "date": datetime(2026, 11, 22, 18, 0, 51, tzinfo=UTC),
    "sampler": "Euler a",
    "model": "model",
    "steps": 30,
    "run": "20261122-180051-a1b2c3",
    "n": 1,
    "status": "complete",
    "codec": "h264",
}
"""Fields of a name's template, each with a sample of its type."""

STEM_BYTES = 200
"""Room for a name before ``-incomplete``, ``-12`` and the suffix; file systems take 255 bytes."""

_TELLING = frozenset(FIELDS) - {"n", "status", "codec"}
"""Fields that tell one run from another."""
_SEPARATORS = r"[ \-_.,+]*"
_EMPTY = "\0"
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|clock\$|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)")


def _parts(template: str) -> list[tuple[str, str | None, str]]:
    """Split a template into (literal text, field after it or None, its format); ValueError for anything but plain fields."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; fields are {_field_list()}, a brace itself is written twice") from error
    for _, field, spec, conversion in parsed:
        if field is None:
            continue
        # The whole text between the braces: `seed.real` and `seed[0]` are no fields either.
        if field not in FIELDS:
            raise ValueError(f"there is no field {{{field}}}; fields are {_field_list()}")
        if conversion:
            raise ValueError(f"{{{field}!{conversion}}}: a field cannot be converted; write {{{field}}}")
        if spec and ("{" in spec or "}" in spec):
            raise ValueError(f"{{{field}}}: a format cannot hold another field")
    return [(literal, field, spec or "") for literal, field, spec, _ in parsed]


def _format(value: object, spec: str) -> str:
    """Format a value; ValueError when the format does not fit its type."""
    # Width and precision of many digits would fill the memory; strftime knows widths as well.
    if re.search("[0-9]{4}", spec) or len(spec) > 80:
        raise ValueError(f"the format {spec!r} is too wide for a file name")
    try:
        if isinstance(value, datetime) and spec and "%" not in spec:
            raise ValueError("no % in it")
        return format(value, spec)
    except (ValueError, OverflowError) as error:
        kind = {str: "text; write something like {prompt:.80}", int: "a number; write something like {n:03d}"}
        raise ValueError(f"the format {spec!r} does not fit {kind.get(type(value), 'a date; write something like {date:%Y%m%d}')}") from error


def _field_list() -> str:
    return " ".join(f"{{{field}}}" for field in FIELDS)


def check_template(template: str) -> None:
    """Raise ValueError when a name's template is not plain text and plain fields, each with a format that fits it."""
    parts = _parts(template)
    if not template.strip():
        raise ValueError(f"the name is empty; write something like {{seed}}-{{prompt:.80}}, fields are {_field_list()}")
    if template.startswith(("~", ".")):
        raise ValueError(f"a file's name cannot start with {template[0]!r}; folders are set with dir")
    for literal, field, spec in parts:
        if any(character in "/\\" for character in literal):
            raise ValueError("a name is one file's name, without / or \\; folders are set with dir")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in literal + spec):
            raise ValueError("a name cannot hold control characters or undecodable bytes")
        if field is not None:
            try:
                _format(FIELDS[field], spec)
            except ValueError as error:
                raise ValueError(f"{{{field}:{spec}}}: {error}") from error


def uses_field(template: str, field: str) -> bool:
    """Whether a checked template has *field* in it."""
    return any(name == field for _, name, _ in _parts(template))


def output_stem(template: str, fields: Mapping[str, object], *, incomplete: bool) -> str:
    """Return an output's file name without its suffix: one plain name, safe on Linux, macOS and Windows, at most 211 bytes of UTF-8.

    A field that is None or empty takes its separators along. When every field is empty the name is the run's; when only those are empty that
    tell runs apart, the run's name stands in for the first of them.
    """
    parts = _parts(template)
    values = [None if field is None else _value(fields.get(field), spec) for _, field, spec in parts]
    run = _value(fields.get("run"), "")
    telling = [index for index, (_, field, _) in enumerate(parts) if field in _TELLING]
    if any(value is not None for value in values) and not any(values):
        text = run
    else:
        if telling and not any(values[index] for index in telling):
            values[telling[0]] = run
        literals = [_plain(literal) for literal, _, _ in parts]
        texts = _fitted(literals, ["" if value is None else value or _EMPTY for value in values])
        text = _close_gaps("".join(literal + value for literal, value in zip(literals, texts, strict=True)))
    stem = _safe(text) or _safe(run) or "run"
    return f"{stem}-incomplete" if incomplete and not stem.endswith("-incomplete") else stem


def _fitted(literals: Sequence[str], values: list[str]) -> list[str]:
    """Shorten the longest values until the name fits, so that a long prompt does not push the seed or the number behind it out of the name."""
    sizes = [len(value.encode("utf-8")) for value in values]
    room = max(STEM_BYTES - sum(len(literal.encode("utf-8")) for literal in literals), 0)
    # The largest size for all at which the sum fits: short values stay whole.
    most = next((most for most in range(STEM_BYTES, 0, -1) if sum(min(size, most) for size in sizes) <= room), 1)
    return [
        value.encode("utf-8")[:most].decode("utf-8", "ignore").rstrip() or _EMPTY if size > most else value
        for value, size in zip(values, sizes, strict=True)
    ]


def _value(value: object, spec: str) -> str:
    """Format a field's value as text for a name; a value that its format does not fit is written as it is."""
    if value is None:
        return ""
    if isinstance(value, str):
        value = " ".join(_plain(value).split()).strip(" -_.,+")
        if not value:
            return ""
    if isinstance(value, datetime) and not spec:
        spec = "%Y%m%d-%H%M%S"
    try:
        text = _format(value, spec)
    except ValueError:
        text = str(value)
    if isinstance(value, datetime):
        text = text.replace(":", "-")
    # More would be cut off anyway.
    return " ".join(_plain(text).split())[:STEM_BYTES]


def _plain(text: str) -> str:
    """Replace what no file name can hold; spaces stay as many as they are."""
    # More than any name can take, and prompts may have 300 kB.
    text = unicodedata.normalize("NFC", text[:4096])
    return "".join(_letter(character) for character in text)


def _letter(character: str) -> str:
    if character in "/\\":
        return "-"
    if character in ":|":
        return " "
    if character in '<>"?*':
        return ""
    match unicodedata.category(character):
        case "Cc" | "Zs" | "Zl" | "Zp":
            return " "
        case "Cf":
            # Joiners hold emoji and some scripts together; other invisible ones only make two names look alike.
            return character if character in "\u200c\u200d" else ""
        case "Cs" | "Cn" | "Co":
            return ""
    return character


def _close_gaps(text: str) -> str:
    """Take out the marks of empty fields, with the brackets that hold nothing else and the separators that parted them from something."""
    gap = f"{_SEPARATORS}(?:{_EMPTY}{_SEPARATORS})+"
    before = None
    while before != text:
        before, text = text, re.sub(rf"[(\[{{]{gap}[)\]}}]", _EMPTY, text)
    text = re.sub(rf"(^|[(\[{{]){gap}", r"\1", text)
    text = re.sub(rf"{gap}($|[)\]}}])", r"\1", text)

    def last(found: re.Match[str]) -> str:
        # A field takes along what stands before it.
        return next((separators for separators in reversed(found[0].split(_EMPTY)) if separators), "")

    return re.sub(gap, last, text)


def _safe(text: str) -> str:
    """Make one plain file name of at most `STEM_BYTES` bytes, or nothing when nothing of the text can be kept."""
    from pathvalidate import sanitize_filename

    name = " ".join(sanitize_filename(_plain(text), platform="universal", fs_encoding="utf-8").split()).lstrip(" .-~")
    name = name.encode("utf-8")[:STEM_BYTES].decode("utf-8", "ignore").rstrip(" .-_,+\u200d")
    # pathvalidate lets `..`, `-rf` and `CON .a` pass.
    return f"_{name}" if _RESERVED.match(name) else name
