"""YAML files and command line become a policy, or complaints that say where, what and what would be right."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stepwatch import config
from stepwatch.config import reading, strict_yaml, values
from stepwatch.config.manual import MODELS, facts, init_file, plain, scalar
from stepwatch.core.policy import FileFacts, Layer, Policy, ServiceConfig, leaves, resolve
from stepwatch.errors import ConfigError, UsageError

SHIPPED = Path(__file__).parent.parent / "config"
SAMPLES = sorted(SHIPPED.glob("*/stepwatch.yaml"))

Thing = TypeVar("Thing")

EDITOR = jsonschema.Draft202012Validator(json.loads((SHIPPED / "stepwatch.schema.json").read_text()))
"""What an editor says to a stepwatch.yaml."""


@pytest.fixture(autouse=True)
def nobodys_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No service file of the machine that runs the tests has a say in them."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(reading, "MACHINE_FOLDER", tmp_path / "etc")


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A folder to be watched, with a run in a folder of its own."""
    folder = (tmp_path / "outputs").resolve()
    (folder / "run").mkdir(parents=True)
    return folder


def write(folder: Path, text: str | bytes, name: str = "stepwatch.yaml") -> Path:
    """A file that nobody else may write, whatever the umask is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o644)
    return path


def resolved(folder: Path, *sets: str, service: ServiceConfig | None = None, **more: Any) -> config.Resolved:
    """The policy of a folder; without a service file unless one is given."""
    return config.resolve_for(folder, service=service or ServiceConfig(), settings=sets, **more)


def policy_of(text: str) -> Policy:
    """The policy that one stepwatch.yaml gives; its complaints as a ConfigError."""
    node, faults = strict_yaml.parse(text)
    reader = reading.Reader("f", faults)
    read = reader.policy(node) if node else ()
    if reader.faults:
        raise ConfigError(reader.complaints())
    return resolve([Layer(name="f", settings=read)]).policy


def outcome_of(read: Callable[[], Thing]) -> Thing | tuple[str, ...]:
    """What was read, or the complaints about it, of which there is at least one."""
    try:
        return read()
    except ConfigError as error:
        return error.complaints or ("\n",)


def complaints_of(text: str) -> list[str]:
    """What is wrong with a stepwatch.yaml."""
    with pytest.raises(ConfigError) as caught:
        policy_of(text)
    return list(caught.value.complaints)


# --- what values mean -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("500ms", Fraction(1, 2)),
        ("1d", 86400),
        ("0.1s", Fraction(1, 10)),
        ("12", 12),
        ("0.1", Fraction(1, 10)),
        ("1e1", 10),
        (".5s", Fraction(1, 2)),
        ("1ms1us1ns", Fraction(1001001, 10**9)),
        ('"7s"', 7),
    ],
)
def test_durations_are_exact(text: str, seconds: Fraction) -> None:
    """Go's syntax or a plain number of seconds, without a float on the way."""
    assert policy_of(f"timeline: {{duration: {text}}}").timeline.duration == seconds


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("1:30", "write 1m30s"),
        ("1:02:03", "write 1h2m3s"),
        ("90 s", "write 90s"),
        ("90S", "write 90s"),
        ("2 minutes", "write 2m"),
        ("012", "write 12s"),
        ("1m 30s", "write 1m30s"),
        ("5mm", "write a duration such as 90s"),
        ("soon", "write a duration"),
        ("no", "write a duration"),
        ("true", "write a duration"),
        ("[3s]", "write a duration"),
        ("-3s", "write more than 0s"),
        ("0s", "write more than 0s"),
        ("2d", "write 1d at most"),
        ("1e999", "write a duration"),
        ("1.2.3s", "write a duration"),
        (".inf", "write a duration"),
        ("9" * 400, "write a duration"),
        ('"1:30"', "write 1m30s"),
    ],
)
def test_what_is_no_duration_is_told_what_to_write(text: str, write: str) -> None:
    """Clock times, foreign units and numbers out of range get the value that was meant, or an example."""
    (complaint,) = complaints_of(f"timeline:\n  duration: {text}\n")
    assert complaint.startswith("f:2:13: timeline.duration: this is ")
    assert write in complaint


def test_holds_may_be_nothing() -> None:
    """A duration of nothing is a mistake, a hold of nothing is not; a negative one is."""
    assert policy_of("timeline: {hold_last: 0, hold_first: 0s}").timeline.hold_last == 0
    assert "write 0s or more" in complaints_of("timeline: {hold_last: -1}")[0]


@given(st.fractions(min_value=0, max_value=86400, max_denominator=1000).filter(lambda number: (number * 10**9).denominator == 1))
def test_durations_are_written_as_they_are_read(seconds: Fraction) -> None:
    """Any duration that decimal digits can say comes back from its own text."""
    assert values.parse_duration(values.write_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "rate"), [("30", 30), ("29.97", Fraction(2997, 100)), ("30000/1001", Fraction(30000, 1001)), ("1/2", Fraction(1, 2))]
)
def test_rates_are_exact(text: str, rate: Fraction) -> None:
    """Whole, decimal, or as a fraction."""
    assert policy_of(f"timeline: {{fps: {text}}}").timeline.fps == rate


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("0", "more than 0"),
        ("-5", "more than 0"),
        ("1001", "1000 at most"),
        ("30fps", "write 30"),
        ("30000 / 1001", "write 30000/1001"),
        ("1/0", "such as 30"),
        ("yes", "such as 30"),
        ("0/7", "more than 0"),
        ("1e-400", "more than 0"),
    ],
)
def test_what_is_no_rate_is_told_what_to_write(text: str, write: str) -> None:
    """A rate is above 0 and at most 1000."""
    assert write in complaints_of(f"timeline: {{fps: {text}}}")[0]


@pytest.mark.parametrize(
    ("text", "size"), [("10MB", 10_000_000), ("8MiB", 8 * 2**20), ("1.5GB", 1_500_000_000), ("123456", 123456), ("10 MB", 10_000_000)]
)
def test_sizes_are_decimal_unless_they_say_binary(text: str, size: int) -> None:
    """MB counts thousands, MiB 1024s, a plain number bytes."""
    assert policy_of(f"outputs: [{{max_size: {text}}}]").outputs[0].max_size == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "ten", "5 bit", "012", "true", "9" * 60 + "GB", "99999999999EB", "[1]"])
def test_what_is_no_size_is_a_complaint(text: str) -> None:
    """Nothing, negative, half a byte and more than any disk holds are not sizes."""
    assert len(complaints_of(f"outputs: [{{max_size: {text}}}]")) == 1


@pytest.mark.parametrize(("text", "scale"), [("1024", "1024"), ("1080x1920", "1080x1920"), ('"512"', "512")])
def test_scale_is_a_long_side_or_two_sides(text: str, scale: str) -> None:
    """A number or WIDTHxHEIGHT."""
    assert policy_of(f"size: {{scale: {text}}}").size.scale == scale


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("1", "2 or more"),
        ("16385", "16384 at most"),
        ("64x1", "2 or more"),
        ("1080 X 1920", "write 1080x1920"),
        ("1024px", "write 1024"),
        ("x5", "the long side"),
        ("1.5", "the long side"),
        ("012", "the long side"),
    ],
)
def test_what_is_no_scale_is_told_what_to_write(text: str, write: str) -> None:
    """Each side is 2 to 16384 pixels."""
    assert write in complaints_of(f"size: {{scale: {text}}}")[0]


@pytest.mark.parametrize(("text", "quality"), [("high", "high"), ("{crf: 23}", 23), ("crf:23", 23), ("'crf: 7'", 7), ("classic", "classic")])
def test_quality_is_a_name_or_a_crf(text: str, quality: str | int) -> None:
    """The crf may be a mapping or text; both are the number alone in the policy."""
    assert policy_of(f"outputs:\n  - quality: {text}\n").outputs[0].quality == quality


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("23", "`crf: 23`"),
        ("{crf: 64}", "63 at most"),
        ("{crf: x}", "crf: 23"),
        ("{crf: 3, x: 4}", "crf: 23"),
        ("hihg", "write high"),
        ("best", "classic"),
        ("{crf: true}", "crf: 23"),
        ("crf:-1", "crf: 23"),
    ],
)
def test_what_is_no_quality_is_told_what_to_write(text: str, write: str) -> None:
    """A number alone has no meaning that all codecs share."""
    assert write in complaints_of(f"outputs:\n  - quality: {text}\n")[0]


@pytest.mark.parametrize("text", ["gif", "[gif]", "[{codec: gif}]", "\n  - gif", "\n  - codec: gif"])
def test_outputs_have_short_forms(text: str) -> None:
    """One codec, a list of codecs, a list of mappings, or mixed."""
    assert [output.codec for output in policy_of(f"outputs: {text}").outputs] == ["gif"]


def test_short_and_long_outputs_may_be_mixed() -> None:
    """Each member of the list may be a word or a mapping."""
    outputs = policy_of("outputs: [{codec: gif, max_size: 8MB}, h264]").outputs
    assert [(output.codec, output.max_size) for output in outputs] == [("gif", 8_000_000), ("h264", None)]


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("[]", "create: false"),
        ("{codec: gif}", "write a list"),
        ("3", "neither a codec nor a mapping"),
        ("[gfi]", "write gif"),
        ("[[gif]]", "neither"),
        (f"[{', '.join(['gif'] * 65)}]", "64 at most"),
    ],
)
def test_what_is_no_list_of_outputs_is_told_what_to_write(text: str, write: str) -> None:
    """An empty list is no way to say that nothing should be made."""
    assert write in complaints_of(f"outputs: {text}")[0]


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("yes", "write true"),
        ("no", "write false"),
        ("on", "write true"),
        ("Off", "write false"),
        ("True", "write true"),
        ('"true"', "without quotes"),
        ("1", "write true or false"),
        ("maybe", "write true or false"),
    ],
)
def test_only_true_and_false_are_booleans(text: str, write: str) -> None:
    """YAML 1.1's other words for them are text, and told what to write."""
    assert write in complaints_of(f"create: {text}")[0]


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("012", "write 12"),
        ("0o14", "write 12"),
        ("0x1F", "write 31"),
        ("1_000", "write 1000"),
        ('"5"', "write 5 without quotes"),
        ("3.0", "write 3"),
        ("1:30", "a whole number"),
        ("no", "a whole number"),
        ("-1", "0 or more"),
        ("[1]", "a whole number"),
        ("1e3", "write 1000"),
    ],
)
def test_numbers_are_decimal(text: str, write: str) -> None:
    """No octal, hexadecimal, sexagesimal or quoted numbers; each complaint says the number that was meant."""
    assert write in complaints_of(f"frames: {{skip_first: {text}}}")[0]


def test_text_that_yaml_1_1_would_take_for_something_else_stays_text() -> None:
    """A folder called no, an author called Null."""
    policy = policy_of("outputs: [{dir: no, name: off}]\nmetadata: {author: 012}")
    assert (policy.outputs[0].dir, policy.outputs[0].name, policy.metadata.author) == ("no", "off", "012")


@pytest.mark.parametrize("text", ["2024", "true", "1.5"])
def test_other_values_are_not_taken_for_text(text: str) -> None:
    """A number or a boolean where text belongs is told to stand in quotes."""
    assert f'put it in quotes: "{text}"' in complaints_of(f"metadata: {{author: {text}}}")[0]


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_is_the_default(text: str) -> None:
    """All three ways to write null mean the default, for a value, a section and the list."""
    assert policy_of(f"frames:\n  every: {text}\ntimeline: {text}\noutputs: {text}\n") == Policy()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('outputs: [{name: "{seed!r}"}]', "outputs.0.name"),
        ('outputs: [{name: "{0.__class__}"}]', "outputs.0.name"),
        ('outputs: [{name: "{sed}"}]', "{seed}"),
        ("outputs: [{name: ../../x}]", "outputs.0.name"),
        ("frames: {pattern: '('}", "frames.pattern"),
        ("frames: {pattern: numberd}", "numbered"),
        ("frames: {pattern: 'a(?P<stop>[0-9])'}", "step"),
        ('outputs: [{dir: ""}]', "this is empty"),
        ('outputs: [{dir: "a\\0b"}]', "NUL"),
        ("outputs: [{dir: ~nobody-of-that-name/x}]", "no such user"),
    ],
)
def test_templates_patterns_and_places_are_checked(text: str, says: str) -> None:
    """What naming refuses is a complaint at its place in the file, before anything is rendered."""
    (complaint,) = complaints_of(text)
    assert complaint.startswith("f:1:")
    assert says in complaint


def test_home_is_known_in_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the home folder."""
    monkeypatch.setenv("HOME", "/home/anna")
    assert policy_of("outputs: [{dir: ~/clips}]").outputs[0].dir == "/home/anna/clips"


# --- what the text may be -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\n", "f:1:1: a: there is no such key; the keys here are version"),
        ("timeline:\n  durtion: 3s\n", "f:2:3: timeline.durtion: there is no such key; did you mean timeline.duration?"),
        ("duration: 3s\n", "f:1:1: duration: there is no such key; did you mean timeline.duration?"),
        ("timeline: {skip-first: 3}\n", "f:1:12: timeline.skip-first: there is no such key"),
        ("frames:\n  every: 1\n  every: 2\n", "f:3:3: frames.every: this key stands here a second time, first in line 2; keep one of them"),
        ("frames: 3\n", "f:1:9: frames: this must be a mapping of keys to values (got 3); the keys are pattern"),
        ("- a\n", "f:1:1: this must be a mapping of keys to values (got a list); the keys are version"),
        ("1: 2\n", "f:1:1: a key must be a word (got 1)"),
        ("true: 2\n", "f:1:1: a key must be a word (got true)"),
        ("? [a]\n: 3\n", "f:1:3: a key must be a word (got a list)"),
        ("live: !!str off\n", "f:1:7: live: tags have no meaning here; leave tag:yaml.org,2002:str out"),
        ("live: !!python/object/apply:os.system [echo]\n", "f:1:7: live: tags have no meaning here"),
        ("version: 2\n", "f:1:10: version: this stepwatch does not know that version of the format (got 2); write `version: 1`"),
        ("version: true\n", "f:1:10: version: this stepwatch does not know"),
        ("---\nlive: off\n---\nlive: auto\n", "f:3:1: a second document begins here"),
        ("live: *x\n", "f:1:7: live: there is no anchor &x before this alias"),
        ("timeline: &x\n  duration: *x\n", "f:2:13: timeline.duration: the alias *x stands inside of what it names"),
        ("frames:\n\tevery: 1\n", "f:2:1: this is not YAML"),
        ("frames: {every: 1\n", "f:2:1: this is not YAML"),
        ("live: 'off\n", "f:1:7: this is not YAML"),
        ("live: \x01\n", "f:1:7: this character may not stand in YAML"),
        ("<<: 3\n", "f:1:1: << takes a mapping"),
        ("timeline: {duration: 3s, fps_in: 4}\n", "f:1:34: timeline.fps_in: timeline.duration and timeline.fps_in say the same thing in two ways"),
    ],
)
def test_each_mistake_says_where_it_stands_and_what_would_be_right(text: str, complaint: str) -> None:
    """file:line:column: key: what is wrong (got VALUE); what would be right."""
    found = complaints_of(text)
    assert any(each.startswith(complaint) for each in found), found
    assert all("; " in each for each in found)


def test_every_mistake_is_told_at_once_in_the_order_of_the_file() -> None:
    """One look at the complaints is enough to mend the file."""
    found = complaints_of(
        "frames:\n  every: 0\n  evry: 1\n  every: 2\ntimeline:\n  fps: no\ncreate: yes\noutputs: [giff, {codec: gif, qualty: high}]\n"
    )
    assert [":".join(each.split(":")[1:4]) for each in found] == [
        "2:10: frames.every",
        "3:3: frames.evry",
        "4:3: frames.every",
        "6:8: timeline.fps",
        "7:9: create",
        "8:11: outputs.0",
        "8:30: outputs.1.qualty",
    ]


def test_very_many_mistakes_are_counted() -> None:
    """A file that is something else altogether does not fill the screen."""
    found = complaints_of("".join(f"key{number}: 1\n" for number in range(300)))
    assert len(found) == reading.MOST_COMPLAINTS + 1
    assert found[-1] == "f: and 250 more"


def test_a_value_is_shown_short_and_harmless() -> None:
    """What a complaint repeats cannot move the terminal's cursor or fill its screen."""
    (complaint,) = complaints_of('live: "\\e[2J' + "x" * 500 + '"\n')
    assert "\x1b" not in complaint
    assert len(complaint) < 300


def test_anchors_and_merges_work_within_bounds() -> None:
    """YAML's own ways to say a thing once are there; own keys win over merged ones."""
    policy = policy_of("outputs:\n  - &o {codec: gif, quality: high}\n  - {<<: *o, codec: webp}\n  - *o\n")
    assert [(output.codec, output.quality) for output in policy.outputs] == [("gif", "high"), ("webp", "high"), ("gif", "high")]


def test_an_alias_bomb_is_a_complaint() -> None:
    """A billion laughs are counted, not laughed."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 40)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert any("more than 100 aliases" in each for each in complaints_of(bomb))


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "? " * 5000, "".join("  " * depth + "a:\n" for depth in range(300))])
def test_deep_nesting_is_a_complaint(text: str) -> None:
    """No depth reaches Python's stack."""
    assert "nested deeper than 20 levels" in complaints_of(text)[-1]


def test_an_empty_file_is_the_default() -> None:
    """Nothing, comments only, and an empty document say nothing."""
    for text in ("", "# nothing\n", "---\n", "---\n...\n", "null\n"):
        assert policy_of(text) == Policy()


fragments = st.sampled_from(
    [
        "timeline:",
        " duration",
        ": ",
        "1:30",
        "012",
        "no",
        "\n",
        "  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&a ",
        "*a",
        "!!int ",
        "<<",
        '"',
        "'",
        "|",
        ">",
        "#",
        "outputs",
        "gif",
        "crf",
        "null",
        "~",
        "1e999",
        "---\n",
        "...",
        "%YAML 1.1\n",
        "? ",
        "\t",
        "\ud800",
        "\x00",
        "\x85",
        "\u2028",
        "\ufeff",
        "frames:\n  every: ",
        "🎞",
        "version: 1\n",
    ]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(), st.lists(fragments, max_size=25).map("".join), st.binary(max_size=200).map(lambda data: data.decode("latin-1"))))
@example("&a a: *a")
@example("? &a {b: *a}\n: c")
@example("outputs: [{quality: {? [a] : 1}}]")
@example("a: \ud800")
@example("size: {scale: ٣}")
@example("timeline: {fps: ٣/٤, duration: ٣s}")
@example("frames: {every: " + "9" * 5000 + "}")
@example("frames: {pattern: '" + "(" * 2000 + "'}")
@example("outputs: [{name: '{n:" + "9" * 30 + "d}'}]")
@example("detect: {stall: {a: {b: {c: d}}}}")
def test_any_text_is_a_policy_or_complaints(text: str) -> None:
    """Whatever the file holds: a valid policy, or complaints; never another exception."""
    outcome = outcome_of(lambda: policy_of(text))
    assert isinstance(outcome, Policy) or all(each.isprintable() for each in outcome)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.sampled_from(["gif", "3s", "{seed}", "delete", "auto"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=5), st.sampled_from(sorted({part for key in leaves() for part in key.split(".")} | {"outputs", "crf"}))),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["timeline", "outputs", "frames", "cleanup", "version", "size", "preset", "x"]), json_values, max_size=5))
def test_no_sidecar_can_fail_a_run(tmp_path: Path, overrides: dict[str, object]) -> None:
    """Whatever JSON a sidecar holds, there is a policy, and it clears nothing."""
    found = resolved(tmp_path, overrides=overrides)
    assert found.policy.cleanup == Policy().cleanup
    assert found.output_dirs == (tmp_path.resolve() / "animation",) * len(found.policy.outputs)


def test_a_monstrous_sidecar_is_a_warning(tmp_path: Path) -> None:
    """Depth, width and huge numbers in a sidecar stay within bounds."""
    deep: dict[str, object] = {}
    for _ in range(900):
        deep = {"timeline": deep}
    monster = {"timeline": {"duration": 10**5000, "fps": float("nan"), "hold_last": "\ud800"}, "outputs": ["gif"] * 50_000, "frames": {"every": True}}
    for overrides in (deep, monster):
        found = resolved(tmp_path, overrides=overrides)
        assert found.policy.timeline == Policy().timeline
        assert found.warnings
        assert all(warning.isprintable() for warning in found.warnings)


# --- files ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"live: off\nx: \xff\n"), "line 2 is not UTF-8 text (byte 0xff)"),
        (lambda path: path.write_bytes(b"#" * (256 * 1024 + 1)), "this is larger than 256 KiB"),
        (lambda path: path.mkdir(), "this is a folder"),
        (os.mkfifo, "this is not an ordinary file"),
        (lambda path: path.symlink_to("/dev/zero"), "this is not an ordinary file"),
        (lambda path: path.symlink_to(path), "this cannot be read"),
        (lambda path: path.symlink_to("nowhere"), "this link leads nowhere"),
    ],
)
def test_what_is_not_a_readable_file_is_a_complaint(watched: Path, make: Callable[[Path], object], says: str) -> None:
    """In the place of a stepwatch.yaml stands a YAML file or nothing; anything else is named, and never waited for."""
    make(watched / "stepwatch.yaml")
    with pytest.raises(ConfigError) as caught:
        resolved(watched)
    (complaint,) = caught.value.complaints
    assert complaint.startswith(f"{watched}/stepwatch.yaml: ")
    assert says in complaint
    assert config.validate([watched]) == [complaint]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_a_complaint(watched: Path) -> None:
    """A policy that cannot be read is not taken for none."""
    write(watched, "live: off").chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        resolved(watched)


def test_a_byte_order_mark_is_no_mistake(watched: Path) -> None:
    """Editors of Windows leave one."""
    write(watched, b"\xef\xbb\xbflive: off\r\nframes:\r\n  every: 2\r\n")
    assert (resolved(watched).policy.live, resolved(watched).policy.frames.every) == ("off", 2)


def test_an_edit_counts_at_once_and_an_unchanged_file_is_read_once(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are remembered by their identity, size and times."""
    path = write(watched, "frames: {every: 2}")
    assert resolved(watched / "run").policy.frames.every == 2
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_text", None)
        assert resolved(watched / "run").policy.frames.every == 2
    path.write_text("frames: {every: 3}")
    os.utime(path, ns=(1, 1))
    assert resolved(watched / "run").policy.frames.every == 3
    path.unlink()
    assert resolved(watched / "run").policy.frames.every == 1


def test_the_complaints_of_all_files_come_at_once(watched: Path) -> None:
    """Mistakes in two files of the chain are told together."""
    write(watched, "live: on\n")
    write(watched / "run", "\ncreate: no\n")
    with pytest.raises(ConfigError) as caught:
        resolved(watched / "run")
    assert [each.split(": ")[0] for each in caught.value.complaints] == [f"{watched}/stepwatch.yaml:1:7", f"{watched}/run/stepwatch.yaml:2:9"]
    assert caught.value.exit_code == 78


def test_names_that_no_encoding_can_write_are_shown_harmless(tmp_path: Path) -> None:
    """A folder whose name is no text, or holds a newline, cannot break a complaint."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\nb"))
    write(folder, "live: on")
    with pytest.raises(ConfigError) as caught:
        resolved(folder)
    assert caught.value.complaints[0].isprintable()


# --- layers of a folder ---------------------------------------------------------------------------------------------------------------------


def test_without_configuration_the_animation_lands_below_the_folder(watched: Path) -> None:
    """DIR itself is the watched folder, and nothing is imported that only a file would need."""
    found = resolved(watched / "run")
    assert found.policy == Policy()
    assert (found.watched, found.output_dirs) == (watched / "run", (watched / "run/animation",))
    script = f"""
import sys
from pathlib import Path
from stepwatch import config
config.resolve_for(Path({str(watched)!r}), service=config.load_service(None))
print(sorted({{"pydantic", "yaml", "PIL", "rich", "click"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=SHIPPED.parent)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_files_count_from_the_watched_folder_down(watched: Path) -> None:
    """The nearest file wins key by key; a file above the watched folder has no say."""
    write(watched.parent, "live: off")
    write(watched, "timeline: {duration: 5s, fps: 24}")
    write(watched / "run", "timeline: {duration: 7s}")
    found = resolved(watched / "run", watched=watched)
    assert (found.policy.timeline.duration, found.policy.timeline.fps, found.policy.live) == (Fraction(7), Fraction(24), "auto")
    assert found.origins["timeline.duration"] == f"{watched}/run/stepwatch.yaml:1"
    assert found.origins["timeline.fps"] == f"{watched}/stepwatch.yaml:1"
    assert found.origins["live"] == "default"


def test_all_layers_in_their_order(watched: Path) -> None:
    """Service base, watch entry, file, sidecar, command line: each wins over those before it."""
    keys = ["skip_first", "skip_last", "every"]
    write(
        watched.parent,
        f"policy: {{frames: {{skip_first: 1, skip_last: 1, every: 1, damaged: fail}}}}\n"
        f"watch: [{{path: {watched}, policy: {{frames: {{skip_first: 2, skip_last: 2, every: 2}}}}}}]",
        "service.yaml",
    )
    service = config.load_service(watched.parent / "service.yaml")
    assert [getattr(resolved(watched, service=service).policy.frames, key) for key in keys] == [2, 2, 2]
    write(watched, "frames: {skip_first: 3, skip_last: 3, every: 3}")
    sidecar = {"frames": {"skip_last": 4, "every": 4}}
    found = resolved(watched / "run", "frames.every=5", service=service, overrides=sidecar)
    assert [getattr(found.policy.frames, key) for key in keys] == [3, 4, 5]
    assert found.policy.frames.damaged == "fail"
    assert [found.origins[f"frames.{key}"] for key in keys] == [f"{watched}/stepwatch.yaml:1", "run.json", "--set"]
    assert found.origins["frames.damaged"] == f"{watched.parent}/service.yaml:1"


def test_the_topmost_file_makes_its_folder_the_watched_one(watched: Path) -> None:
    """Without a watch entry, the topmost ancestor with a stepwatch.yaml is where animations go."""
    write(watched / "run", "live: off")
    assert resolved(watched / "run").watched == watched / "run"
    write(watched, "live: off")
    found = resolved(watched / "run")
    assert (found.watched, found.output_dirs) == (watched, (watched / "animation",))


def test_the_deepest_watch_entry_owns_a_folder(watched: Path) -> None:
    """Its layers start there, also when a walk began in the outer one."""
    write(watched, "live: off")
    write(watched.parent, f"watch:\n  - {watched}\n  - path: {watched}/run\n    policy: {{frames: {{every: 4}}}}\n", "service.yaml")
    service = config.load_service(watched.parent / "service.yaml")
    for start in (None, watched):
        found = resolved(watched / "run", service=service, watched=start)
        assert (found.watched, found.policy.frames.every, found.policy.live) == (watched / "run", 4, "auto")
    assert resolved(watched, service=service).watched == watched


def test_links_are_followed_before_folders_are_compared(watched: Path) -> None:
    """A run that is looked at through a link belongs to the folder where it really lies."""
    (watched.parent / "link").symlink_to(watched)
    write(watched.parent, f"watch: [{watched.parent}/link]", "service.yaml")
    service = config.load_service(watched.parent / "service.yaml")
    assert resolved(watched.parent / "link/run", service=service).watched == watched
    assert resolved(watched / "run", service=service).watched == watched


def test_output_folders_are_relative_to_where_they_are_written(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's dir starts at its folder, a watch entry's at that folder, the base policy's at each watched folder, --set's at the current one."""
    write(watched.parent, f"policy: {{outputs: [{{dir: base}}]}}\nwatch: [{watched}]", "service.yaml")
    service = config.load_service(watched.parent / "service.yaml")
    assert resolved(watched / "run", service=service).output_dirs == (watched / "base",)
    assert resolved(watched.parent, service=service).output_dirs == (watched.parent / "base",)
    write(watched / "run", "outputs: [{dir: ../near}, gif, {dir: /abs/x}]")
    assert resolved(watched / "run", service=service).output_dirs == (watched / "near", watched / "animation", Path("/abs/x"))
    monkeypatch.chdir(watched.parent)
    assert resolved(watched / "run", "outputs.0.dir=here", service=service).output_dirs[0] == watched.parent / "here"


def test_a_watch_entrys_dir_starts_at_its_path(watched: Path) -> None:
    """Wherever the service file lies."""
    write(watched.parent, f"watch: [{{path: {watched}, policy: {{outputs: [{{dir: out}}]}}}}]", "service.yaml")
    service = config.load_service(watched.parent / "service.yaml")
    assert resolved(watched / "run", service=service).output_dirs == (watched / "out",)


def test_the_presets_animations_lie_beside_the_frames_folder(watched: Path) -> None:
    """``../animation`` starts at the file that names the preset, or at the watched folder for --set and the service file."""
    beside = (watched.parent / "animation",)
    assert resolved(watched, "preset=steps-animation").output_dirs == beside
    write(watched, "preset: steps-animation")
    found = resolved(watched / "run")
    assert found.output_dirs == beside
    assert found.origins["frames.skip_first"] == f"preset steps-animation ({watched}/stepwatch.yaml:1)"
    (watched / "stepwatch.yaml").unlink()
    write(watched.parent, f"policy: {{preset: steps-animation}}\nwatch: [{watched}]", "service.yaml")
    assert resolved(watched / "run", service=config.load_service(watched.parent / "service.yaml")).output_dirs == beside


def test_a_default_folder_may_not_lead_out_of_the_watched_one(watched: Path) -> None:
    """A link named animation that leads elsewhere is followed only where somebody has configured it."""
    elsewhere = watched.parent / "elsewhere"
    elsewhere.mkdir()
    (watched / "animation").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="leads out of the watched folder"):
        resolved(watched).require_places()
    assert "leads out of the watched folder" in config.show(resolved(watched))
    assert config.facts(resolved(watched))["warnings"]
    write(watched, "outputs: [{dir: animation}]")
    assert resolved(watched).output_dirs == (watched / "animation",)
    resolved(watched).require_places()


# --- --set ----------------------------------------------------------------------------------------------------------------------------------


def test_set_takes_yaml(watched: Path) -> None:
    """Words, lists, mappings, null, and one field of one output; later ones count."""
    write(watched, "frames: {every: 4}\noutputs: [webp, apng]")
    sets = [
        "timeline.duration=6s",
        "frames.every=",
        "size={scale: 64x48, fit: crop}",
        "outputs.1.quality={crf: 5}",
        "timeline.fps=10",
        "timeline.fps=12",
    ]
    policy = resolved(watched, *sets).policy
    assert (policy.timeline.duration, policy.timeline.fps, policy.frames.every) == (Fraction(6), Fraction(12), 1)
    assert (policy.size.scale, policy.size.fit, policy.outputs[1].codec, policy.outputs[1].quality) == ("64x48", "crop", "apng", 5)
    assert [output.codec for output in resolved(watched, "outputs=gif").policy.outputs] == ["gif"]
    assert [output.codec for output in resolved(watched, "outputs=[gif, h264]", "outputs.0=webp").policy.outputs] == ["webp", "h264"]


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("outputs.0.name", "{run}", "{run}"),
        ("outputs.0.name", "{run}-{codec}", "{run}-{codec}"),
        ("outputs.0.name", "{seed}: {prompt:.20}", "{seed}: {prompt:.20}"),
        ("outputs.0.name", " {run} #1 ", "{run} #1"),
        ("outputs.0.name", "'{run}'", "{run}"),
        ("outputs.0.name", '"{run}\\u00e9"', "{run}\u00e9"),
        ("outputs.0.name", "null", Policy().outputs[0].name),
        ("outputs.0.name", "", Policy().outputs[0].name),
        ("outputs.0.dir", "[new] clips", "[new] clips"),
        ("metadata.author", "42", "42"),
        ("metadata.author", "*anna*", "*anna*"),
        ("metadata.author", "@anna", "@anna"),
        ("frames.pattern", r"[a-z]+(?P<step>[0-9]{4})\.png", r"[a-z]+(?P<step>[0-9]{4})\.png"),
        ("frames.pattern", r"a: (?P<step>[0-9]+) # b", r"a: (?P<step>[0-9]+) # b"),
    ],
)
def test_set_takes_text_as_it_is_written(watched: Path, key: str, written: str, value: str) -> None:
    """Where a key holds text, what stands behind = is that text, whatever YAML would make of it; quotes and null mean what they do in YAML."""
    policy: Any = resolved(watched, f"{key}={written}").policy
    for part in key.split("."):
        policy = policy[int(part)] if part.isdecimal() else getattr(policy, part)
    assert policy == value


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["outputs=[]"], "outputs: this list names no output (got []); name one at least, or write `create: false` to render nothing"),
        (["outputs.0.name={sead}"], "outputs.0.name: no name can be made of this template (got {sead}); "),
        (["timeline.durtion=3s"], "timeline.durtion: there is no such key; did you mean timeline.duration?"),
        (["duration=3s"], "did you mean timeline.duration?"),
        (["timeline.duration=1:30"], "timeline.duration: this is not a duration (got 1:30); write 1m30s"),
        (["outputs.0.codec=h256"], "outputs.0.codec: there is no such choice (got h256); write h265"),
        (["outputs.7.codec=gif"], "there is only one output"),
        (["outputs.x.codec=gif"], "outputs"),
        (["timeline"], "`timeline` sets nothing"),
        (["=3"], "sets nothing"),
        (["..=3"], "there is no such key"),
        (["timeline.fps=[1"], "timeline.fps: this is not YAML"),
        (["timeline.fps=\udcff"], "timeline.fps: this character may not stand"),
        (["timeline.fps.x=3"], "timeline.fps: this is not a rate"),
        (["version=2"], "version: this stepwatch does not know"),
        (["timeline.duration=3s", "timeline.fps_in=4"], "say the same thing in two ways"),
        (["a=1", "b=2"], "--set: b: there is no such key"),
    ],
)
def test_a_wrong_set_is_a_usage_error(watched: Path, sets: list[str], says: str) -> None:
    """Exit code 2 and the same words as for a file."""
    with pytest.raises(UsageError) as caught:
        resolved(watched, *sets)
    assert says in caught.value.message
    assert caught.value.exit_code == 2


def test_set_presets_lie_below_every_other_set(watched: Path) -> None:
    """All --set are one layer, so that their order does not matter to the preset."""
    assert resolved(watched, "timeline.fps=12", "preset=steps-animation").policy.timeline.fps == 12


# --- trust ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes a file somebody else's: by chown for root, for others by being somebody else."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 65533)

    yield give
    reading._cache.clear()


THEIRS = "cleanup: {intermediates: delete}\ntimeline: {interpolation: none}\n"


def test_a_file_of_ours_may_clear(watched: Path) -> None:
    """Our own file that only we may write decides everything."""
    write(watched, THEIRS)
    assert resolved(watched).policy.cleanup.intermediates == "delete"


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o602])
def test_a_file_that_anybody_may_write_decides_only_looks(watched: Path, mode: int) -> None:
    """Its cleanup is refused with file, line and reason; its looks count."""
    write(watched, THEIRS).chmod(mode)
    found = resolved(watched)
    assert (found.policy.cleanup.intermediates, found.policy.timeline.interpolation) == ("keep", "none")
    (warning,) = found.warnings
    assert warning.startswith(f"{watched}/stepwatch.yaml:1: cleanup.intermediates: ignored, because anybody may write the file; ")


def test_a_file_of_somebody_else_decides_only_looks(watched: Path, give_away: Callable[[Path], None]) -> None:
    """Whoever may not clear by hand may not clear by policy."""
    give_away(write(watched, THEIRS))
    found = resolved(watched)
    assert (found.policy.cleanup.intermediates, found.policy.timeline.interpolation) == ("keep", "none")
    assert "the file belongs to" in found.warnings[0]


def test_users_named_under_trust_are_trusted(watched: Path, give_away: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """``trust`` of the watch entry adds users; a name that nobody has is a warning."""
    import pwd

    path = write(watched, THEIRS)
    owner = pwd.getpwuid(65534 if os.geteuid() == 0 else os.geteuid()).pw_name
    give_away(path)
    write(watched.parent, f"watch: [{{path: {watched}, trust: [{owner}, no-such-user]}}]", "service.yaml")
    service = config.load_service(watched.parent / "service.yaml")
    found = resolved(watched, service=service)
    assert found.policy.cleanup.intermediates == "delete"
    assert found.warnings == ("trust: there is no user no-such-user on this machine",)


def test_a_link_is_trusted_only_when_its_owner_is(watched: Path, give_away: Callable[[Path], None]) -> None:
    """Somebody's link to a file of ours would let him choose which of our policies counts where."""
    ours = write(watched.parent / "ours", THEIRS)
    link = watched / "stepwatch.yaml"
    link.symlink_to(ours)
    assert resolved(watched).policy.cleanup.intermediates == "delete"
    give_away(link)
    assert resolved(watched).policy.cleanup.intermediates == "keep"


def test_the_owners_private_group_is_not_somebody_else(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group write is fine for a group of the owner's name that is his primary one and has no other members."""
    import grp
    import pwd

    write(watched, THEIRS).chmod(0o664)
    status = (watched / "stepwatch.yaml").stat()

    def private(*, name: str = "anna", gid: int = status.st_gid, members: tuple[str, ...] = ()) -> str:
        reading._cache.clear()
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("anna", "x", uid, gid, "", "/", "/bin/sh")))
        monkeypatch.setattr(grp, "getgrgid", lambda group: grp.struct_group((name, "x", group, list(members))))
        return resolved(watched).policy.cleanup.intermediates

    assert private() == "delete"
    assert private(members=("anna",)) == "delete"
    assert private(members=("bob",)) == "keep"
    assert private(name="users") == "keep"
    assert private(gid=status.st_gid + 1) == "keep"


def test_a_sidecar_decides_only_looks(watched: Path) -> None:
    """Its other keys, its mistakes and its unknown keys are warnings."""
    overrides = {
        "timeline": {"fps": 12, "duration": "1:30", "durtion": 3},
        "cleanup": {"intermediates": "trash"},
        "outputs": [{"codec": "gif", "dir": "/tmp"}],
    }
    found = resolved(watched, overrides=overrides)
    assert (found.policy.timeline.fps, found.policy.timeline.duration, found.policy.outputs[0].codec) == (Fraction(12), Fraction(10), "gif")
    assert found.output_dirs == (watched / "animation",)
    assert len(found.warnings) == 4
    assert all(warning.startswith("run.json: ") for warning in found.warnings)


def test_an_untrusted_file_in_a_folder_of_everybody_does_not_move_animations(
    watched: Path, give_away: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stepwatch.yaml that somebody leaves in /tmp does not make /tmp the watched folder."""
    write(watched, THEIRS).chmod(0o666)
    watched.chmod(0o755)
    assert resolved(watched / "run").watched == watched
    watched.chmod(0o777)
    found = resolved(watched / "run")
    assert (found.watched, found.policy) == (watched / "run", Policy())
    assert "does not count, because anybody may write the file" in found.warnings[0]


def test_without_owners_a_file_is_ours(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the platform knows no user ids (Windows), its own rights keep strangers out."""
    write(watched, THEIRS).chmod(0o666)
    monkeypatch.delattr(os, "getuid")
    assert resolved(watched).policy.cleanup.intermediates == "delete"


def test_without_libyaml_the_same_mistakes_are_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's own scanner serves where the fast one was not built."""
    monkeypatch.delattr(yaml, "CSafeLoader")
    for text in ("[" * 5000, "live: on", 'live: "\\UFFFFFFFF"', "live: \x01", "live: 'off", "frames:\n\tevery: 1", "a: *x", "live: \ud800"):
        assert complaints_of(text)
    assert policy_of("frames: {every: 2}").frames.every == 2


# --- the service file -----------------------------------------------------------------------------------------------------------------------


def test_without_a_service_file_all_is_default() -> None:
    """Neither the user's nor the machine's has to be there."""
    assert config.load_service(None) == ServiceConfig()


def test_a_service_file_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    """A missing --config is a complaint."""
    with pytest.raises(ConfigError, match="there is no such file"):
        config.load_service(tmp_path / "x.yaml")


def test_the_users_service_file_hides_the_machines(tmp_path: Path) -> None:
    """The first one that is there counts alone."""
    write(tmp_path / "etc", "daemon: {nice: 1}", "service.yaml")
    assert config.load_service(None).daemon.nice == 1
    write(tmp_path / "xdg/stepwatch", "daemon: {max_attempts: 2}", "service.yaml")
    assert (config.load_service(None).daemon.nice, config.load_service(None).daemon.max_attempts) == (19, 2)


def test_a_service_file_that_others_may_write_is_refused_unless_named(tmp_path: Path) -> None:
    """It names programs; naming it with --config vouches for it."""
    path = write(tmp_path / "xdg/stepwatch", "daemon: {nice: 3}", "service.yaml")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="anybody may write the file, so it is not trusted"):
        config.load_service(None)
    assert config.load_service(path).daemon.nice == 3


def test_everything_in_a_service_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys arrive as typed values; paths are absolute."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(
        tmp_path,
        "version: 1\nwatch:\n  - path: ~/a\n    trust: [anna]\n    poll: 5s\n  - path: b\n    trust: ben\n    poll: off\npolicy: {live: off}\n"
        "daemon: {workers: 2, nice: 0, rescan: 1m, min_free_space: 2GB, max_attempts: 9, drain: 0s, log: json}\nffmpeg: ~/bin/ffmpeg\n",
        "service.yaml",
    )
    service = config.load_service(path)
    assert [(entry.path, entry.trust, entry.poll) for entry in service.watch] == [
        (str(tmp_path / "a"), ("anna",), Fraction(5)),
        (str(tmp_path / "b"), ("ben",), "off"),
    ]
    assert (service.daemon.workers, service.daemon.nice, service.daemon.rescan, service.daemon.min_free_space) == (2, 0, Fraction(60), 2 * 10**9)
    assert (service.daemon.max_attempts, service.daemon.drain, service.daemon.log, service.ffmpeg) == (
        9,
        Fraction(0),
        "json",
        f"{tmp_path}/bin/ffmpeg",
    )
    assert resolved(tmp_path, service=service).policy.live == "off"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("watch: ~/x\n", "1:8: watch: this is not a list"),
        ("watch: [{trust: [x]}]\n", "1:9: watch.0.path: a watched folder needs its path"),
        ("watch: [{path: 3}]\n", "1:16: watch.0.path: this is not text (got 3); put it in quotes"),
        ("watch: [3]\n", "1:9: watch.0: this must be a mapping"),
        ("watch:\n  - /a\n  - path: /a/../a\n", "3:5: watch.1.path: this folder is watched by watch.0 already"),
        ("watch: [{path: /a, trust: [3]}]\n", "1:28: watch.0.trust: this is not the name of a user"),
        ("watch: [{path: /a, poll: 0}]\n", "1:26: watch.0.poll: this is too small"),
        ("watch: [{path: /a, policy: {timline: {}}}]\n", "1:29: watch.0.policy.timline: there is no such key; did you mean watch.0.policy.timeline?"),
        ("policy: {outputs: gfi}\n", "1:19: policy.outputs.0: there is no such choice (got gfi); write gif"),
        ("policy: {timeline: {duration: 1s, fps_in: 3}}\n", "1:43: policy.timeline.fps_in: timeline.duration and"),
        ("daemon: {workers: 0}\n", "1:19: daemon.workers: "),
        ("daemon: {workers: many}\n", "1:19: daemon.workers: this is not auto, or a whole number, 1 to 256 (got many)"),
        ("daemon: {log: jason}\n", "1:15: daemon.log: there is no such choice (got jason); write json"),
        ("daemon: 3\n", "1:9: daemon: this must be a mapping"),
        ("ffmpeg: true\n", "1:9: ffmpeg: this is not text"),
        ("timeline: {}\n", "1:1: timeline: there is no such key"),
        ("version: 0\n", "1:10: version: this stepwatch does not know"),
    ],
)
def test_each_mistake_in_a_service_file_says_where_it_stands(tmp_path: Path, text: str, complaint: str) -> None:
    """The same complaints as for a stepwatch.yaml, with the keys of the service file."""
    path = write(tmp_path, text, "service.yaml")
    with pytest.raises(ConfigError) as caught:
        config.load_service(path)
    assert any(each.startswith(f"{path}:{complaint}") for each in caught.value.complaints), caught.value.complaints


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(fragments, st.sampled_from(["watch:", "policy:", "daemon: ", "path: ", "trust: ", "nice: ", "/a", "poll: "])), max_size=20
    ).map("".join)
)
def test_any_service_file_is_a_configuration_or_complaints(tmp_path: Path, text: str) -> None:
    """Whatever the file holds, never another exception."""
    path = write(tmp_path, text.encode("utf-8", "surrogatepass"), "service.yaml")
    outcome = outcome_of(lambda: config.load_service(path))
    assert isinstance(outcome, ServiceConfig) or all(each.isprintable() for each in outcome)


# --- what the model says of itself ----------------------------------------------------------------------------------------------------------


def uncommented(text: str) -> str:
    """A sample with all its keys made active."""
    return re.sub(r"^#(?! \S)", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("kind", ["stepwatch", "service"])
def test_the_shipped_schemas_are_current(kind: Any) -> None:
    """What ``config schema`` prints is what lies under config/."""
    shipped = json.loads((SHIPPED / f"{kind}.schema.json").read_text())
    assert shipped == config.schema(kind)
    jsonschema.Draft202012Validator.check_schema(shipped)


def test_the_option_reference_is_current() -> None:
    """config/README.md holds the tables that the model gives."""
    assert config.reference() in (SHIPPED / "README.md").read_text()


def test_the_shipped_service_file_is_current() -> None:
    """config/service.yaml is what the model gives, with a line for editors above."""
    first, rest = (SHIPPED / "service.yaml").read_text().split("\n", 1)
    assert first == "# yaml-language-server: $schema=service.schema.json"
    assert rest == config.init_text("service")


@pytest.mark.parametrize("kind", ["stepwatch", "service"])
def test_every_key_has_its_docs_and_stands_in_sample_and_reference(kind: Any) -> None:
    """No key without a sentence, a place in the commented file, and a row in the table."""
    for leaf in leaves(MODELS[kind]).values():
        assert config.docs(leaf.owner).get(leaf.name), leaf.key
        assert f"{leaf.name}:" in config.init_text(kind)
        assert f"| `{leaf.key.replace('.*', '[]')}` |" in config.reference()


def test_the_commented_sample_gives_the_defaults_with_and_without_its_comments() -> None:
    """A file of ``config init`` changes nothing, and its keys really are at their defaults."""
    text = config.init_text()
    assert policy_of(text) == Policy()
    active = uncommented(text)
    assert policy_of(active) == Policy()
    jsonschema.validate(yaml.safe_load(active), config.schema())
    node, _ = strict_yaml.parse(active)
    reader = reading.Reader("f")
    assert node
    keys = {setting.key.replace(".0.", ".*.") for setting in reader.policy(node)} | {"version"}
    assert keys == set(leaves()) | {"outputs"}


def test_the_commented_service_file_gives_the_defaults(tmp_path: Path) -> None:
    """The same for the service file, but for its example of a watched folder."""
    text = uncommented(config.init_text("service"))
    jsonschema.validate(yaml.safe_load(text.replace("log: text", 'log: "text"')), config.schema("service"))
    service = config.load_service(write(tmp_path, text, "service.yaml"))
    assert len(service.watch) == 1
    assert dataclasses.replace(service, watch=()).daemon == ServiceConfig().daemon
    assert service.ffmpeg == "auto"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.parent.name)
def test_shipped_samples_are_valid_for_editors_and_for_us(sample: Path, tmp_path: Path) -> None:
    """Each sample passes the schema and the loader, and says something."""
    assert sample.read_text().startswith("# yaml-language-server: $schema=../stepwatch.schema.json\n")
    jsonschema.validate(yaml.safe_load(sample.read_text()), json.loads((SHIPPED / "stepwatch.schema.json").read_text()))
    assert config.validate([sample]) == []
    write(tmp_path, sample.read_text())
    assert resolved(tmp_path).policy != Policy()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.parent.name)
def test_shipped_samples_offer_no_clearing_without_a_way_back(sample: Path, tmp_path: Path) -> None:
    """Where a sample clears, frames can be brought back for days, it says how, and what no clip shows stays."""
    write(tmp_path, sample.read_text())
    cleanup = resolved(tmp_path).policy.cleanup
    assert cleanup.intermediates in ("keep", "trash")
    assert cleanup.skipped == "keep"
    if cleanup.intermediates == "trash":
        assert cleanup.grace >= 3 * 86_400
        assert "grace:" in sample.read_text()
        assert "stepwatch runs restore" in sample.read_text()


def test_some_samples_keep_every_frame_and_some_use_the_trash() -> None:
    """Where frames pile up by themselves they go to the trash: a workflow that runs all day, a share that fills up."""
    trash = {path.parent.name for path in SAMPLES if policy_of(path.read_text()).cleanup.intermediates == "trash"}
    assert trash == {"comfyui", "studio-share"}


def test_there_is_a_sample_for_each_kind_of_folder() -> None:
    """WebUI, ComfyUI, numbered frames and a studio's share."""
    assert [path.parent.name for path in SAMPLES] == ["comfyui", "numbered-frames", "studio-share", "webui"]


@pytest.mark.parametrize(
    "text",
    [
        "outputs: gif",
        "outputs: [gif, {codec: h264, quality: {crf: 3}}]",
        "outputs: [{quality: 'crf: 3'}]",
        "timeline: {duration: 3, fps: 30000/1001}",
        "frames: null",
        "size: {scale: 64}",
        "size: {scale: 64x48}",
        "outputs: [{max_size: 10MB}]",
        "detect: {settle: 1m30s, stall: auto}",
        "preset: steps-animation",
        "{}",
    ],
)
def test_the_schema_takes_what_the_loader_takes(text: str) -> None:
    """Short forms and nulls included."""
    policy_of(text)
    jsonschema.validate(yaml.safe_load(text), config.schema())


@pytest.mark.parametrize(
    "text", ["outputs: gfi", "outputs: []", "timeline: {duration: soon}", "x: 1", "create: 1", "frames: {every: 0}", "outputs: [{quality: best}]"]
)
def test_the_schema_refuses_what_the_loader_refuses(text: str) -> None:
    """An editor underlines what we would complain about."""
    complaints_of(text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), config.schema())


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    author=st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and "\0" not in text),
    fps=st.fractions(min_value=Fraction(1, 100), max_value=1000, max_denominator=1001),
    hold=st.integers(0, 10**6).map(lambda count: Fraction(count, 1000)),
    quality=st.one_of(st.integers(0, 63), st.sampled_from(["high", "default"])),
    size=st.one_of(st.none(), st.integers(1, 10**12)),
    pattern=st.sampled_from([None, "numbered", r'(?P<step>[0-9]+)"\.png', "a: (?P<step>[0-9]+) # b"]),
    fps_in=st.one_of(st.none(), st.just(Fraction(5, 3))),
)
@example(author="00", fps=Fraction(30), hold=Fraction(1), quality="default", size=None, pattern=None, fps_in=None)
def test_what_show_prints_gives_the_same_policy_again(
    tmp_path: Path, author: str, fps: Fraction, hold: Fraction, quality: str | int, size: int | None, pattern: str | None, fps_in: Fraction | None
) -> None:
    """``config show`` is a stepwatch.yaml: read back, it gives the policy it shows, and the schema agrees."""
    base = Policy()
    policy = dataclasses.replace(
        base,
        timeline=dataclasses.replace(base.timeline, fps=fps, hold_last=hold, fps_in=fps_in),
        outputs=(dataclasses.replace(base.outputs[0], quality=quality, max_size=size),),
        metadata=dataclasses.replace(base.metadata, author=author),
        frames=dataclasses.replace(base.frames, pattern=pattern),
    )
    shown = config.show(dataclasses.replace(resolved(tmp_path), policy=policy))
    assert policy_of(shown) == policy
    assert EDITOR.is_valid(yaml.safe_load(shown))


def test_show_says_where_each_value_comes_from(watched: Path) -> None:
    """Every line has its origin, and the folders stand above."""
    write(watched, "version: 1\ntimeline:\n  fps_in: 4\noutputs: [h264, gif]\n")
    lines = config.show(resolved(watched, "outputs=[gif, gif]", "outputs.1.quality=high", "preset=steps-animation")).splitlines()
    assert lines[0] == f"# watched folder: {watched}"
    assert lines[1] == f"# output 0: {watched}/animation"
    said = {line.split(":")[0].strip(): line.rpartition("# ")[2] for line in lines[3:]}
    assert said["skip_first"] == "preset steps-animation (--set)"
    assert said["- codec"] == "--set"
    assert said["grace"] == "default"


def test_facts_are_plain_values(watched: Path) -> None:
    """The JSON of ``config show`` has every key with its value as YAML would write it."""
    said = facts(resolved(watched, "timeline.fps=30000/1001", "outputs=[{quality: {crf: 3}, max_size: 10MB}]"))
    assert json.loads(json.dumps(said)) == said
    policy: Any = said["policy"]
    assert policy["timeline"] | {"x": 1} == policy["timeline"] | {"duration": "10s", "fps": "30000/1001", "x": 1}
    assert policy["outputs"][0] == {
        "codec": "h264",
        "quality": {"crf": 3},
        "name": "{seed}-{prompt:.80}",
        "dir": None,
        "max_size": "10MB",
        "constant_rate": False,
    }


TRAPS = [
    *("no", "Off", "y", "true", "Null", "null", "~", "00", "012", "0x1F", "0b1", "0o17", "1_000", "1:30", "1e3", "1.5", ".5", ".inf", "2026-11-22"),
    *("- a", "a: b", "a #b", "*x", "&x", "!x", "%x", "'", '"', "...", "=", "<<"),
]
"""Text that some version of YAML takes for something else."""


@given(st.one_of(st.text(), st.sampled_from(TRAPS)))
@example("00")
@example("0x1F")
@example("1_000")
@example("2026-11-22")
def test_text_is_written_so_that_it_is_read_back(text: str) -> None:
    """Any text that UTF-8 can write survives our own YAML, and that of others, who take more for numbers, dates and booleans."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        return
    node, faults = strict_yaml.parse(f"a: {scalar(plain(text))}  # b\n")
    assert node
    assert isinstance(node.value, dict)
    assert (node.value["a"].node.value, faults) == (text, [])
    assert yaml.safe_load(f"a: {scalar(plain(text))}  # b\n") == {"a": text}


def test_init_never_writes_over_a_file(watched: Path) -> None:
    """A new file appears; a file, and even a broken link, that is there stays as it is."""
    path = init_file(watched)
    assert path.read_text() == config.init_text()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        init_file(watched)
    assert path.read_text() == "mine"
    (watched / "run/stepwatch.yaml").symlink_to(watched / "target")
    with pytest.raises(ConfigError, match="there already"):
        init_file(watched / "run")
    assert not (watched / "target").exists()
    with pytest.raises(ConfigError, match="cannot be written"):
        init_file(watched / "nowhere")


def test_validate_names_every_mistake_in_every_file(watched: Path, tmp_path: Path) -> None:
    """The service file, the chain above a folder, and all below it; nothing for what is well."""
    assert config.validate([watched]) == []
    service = write(tmp_path, "daemon: {nice: 30}\nwatch: [{path: /x, trust: [no-such-user]}]", "my.yaml")
    write(watched, "live: on")
    write(watched / "run", "live: yes")
    found = config.validate([watched], service)
    assert [each.split(":")[0] for each in found] == [str(service), f"{watched}/stepwatch.yaml", f"{watched}/run/stepwatch.yaml"]
    assert config.validate([watched / "run/stepwatch.yaml", service]) == [found[2], found[0]]
    assert config.validate([tmp_path / "nothing.yaml"]) == [f"{tmp_path}/nothing.yaml: there is no such file"]
    service.write_text("watch: [{path: /x, trust: [no-such-user]}]")
    assert config.validate([], service) == ["watch /x: trust: there is no user no-such-user on this machine"]


def test_resolving_ten_thousand_folders_does_not_fill_the_memory(watched: Path) -> None:
    """The memory of files is bounded."""
    path = write(watched, "live: off")
    for number in range(reading.MOST_CACHED + 10):
        reading._cache[f"x{number}"] = ((), reading.PolicyFile(settings=(), complaints=(), facts=FileFacts(owners=())))
    path.write_text("live: auto")
    resolved(watched)
    assert len(reading._cache) <= reading.MOST_CACHED
    reading._cache.clear()


@pytest.mark.parametrize(("written", "meant"), [("rel/ffmpeg", "rel/ffmpeg"), ("./ffmpeg", "ffmpeg"), ("ffmpeg", None), ("/opt/ffmpeg", None)])
def test_a_relative_ffmpeg_counts_from_the_service_file(tmp_path: Path, written: str, meant: str | None) -> None:
    """As the watched folders do; a bare name is left for PATH, an absolute path as it is."""
    service = config.load_service(write(tmp_path, f"ffmpeg: {written}", "service.yaml"))
    expected = str(tmp_path / meant) if meant else written
    assert os.path.normpath(service.ffmpeg) == os.path.normpath(expected)


LIKELY = ["default", "none", "blend", "h264", "complete", "30s", "500ms", "1m30s", "24000/1001", "10MB", "768x512", "auto", "{seed}", "never", ""]
WRITTEN = st.none() | st.booleans() | st.integers(-3, 70) | st.floats(-2, 99, width=16) | st.sampled_from(LIKELY) | st.text(max_size=8)


@given(
    st.sampled_from([leaf.hint for model in (Policy, ServiceConfig) for leaf in leaves(model).values()]),
    WRITTEN | st.dictionaries(st.sampled_from(["crf", "x"]), st.integers(-1, 60)),
)
def test_what_is_plainly_right_is_what_pydantic_makes_of_it(hint: Any, value: object) -> None:
    """Most values never reach pydantic; those that do not become exactly what they would become there, and nothing it refuses gets past it."""
    found = values._plainly(value, hint)
    if len(found) == 1:
        made = values.adapter(hint).validate_python(value, strict=True)
        assert (type(made), made) == (type(found[0]), found[0])


def test_a_policy_that_is_right_needs_no_pydantic(tmp_path: Path) -> None:
    """It takes as long to be imported as everything else that a render needs."""
    (tmp_path / "stepwatch.yaml").write_text(
        "timeline: {duration: 30s, fps: 24, interpolation: blend}\noutputs: [{codec: av1, quality: {crf: 30}}]\n"
    )
    script = "import sys; from pathlib import Path; from stepwatch import visit, config; list(visit.runs_below(Path(sys.argv[1]), "
    script += "service=config.load_service(None), settings=('timeline.hold_last=0s',))); print('pydantic' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr


@pytest.mark.parametrize(("written", "rate"), [("59.94006", "60000/1001"), ("23.976024", "24000/1001"), ("29.97", "2997/100"), ("25/2", "25/2")])
def test_a_rate_with_more_digits_than_ffmpeg_keeps_is_the_one_that_is_meant(written: str, rate: str) -> None:
    """What ffprobe prints of 60000/1001 comes back as that; ffmpeg would round it to a rate on whose pictures nothing falls."""
    assert values.parse_rate(float(written) if "/" not in written else written) == Fraction(rate)


def test_a_name_of_thousands_of_digits_is_a_complaint(tmp_path: Path) -> None:
    """Python makes no number of them, and says so in its own way."""
    (tmp_path / "stepwatch.yaml").write_text(f'metadata: {{author: "{"1" * 5000}"}}\n')
    with pytest.raises(ConfigError, match=r"metadata\.author"):
        config.resolve_for(tmp_path, service=config.load_service(None))
