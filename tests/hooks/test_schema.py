"""The JSON Schema of run.json, which other people's producers are held against: it must promise no more than the reader keeps."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from stepwatch import hook, simulate
from stepwatch.cli import cli
from stepwatch.core.sidecar import parse_sidecar
from tests.core.test_sidecar import FULL, LEAST

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = hook.sidecar_schema()
VALID = jsonschema.Draft202012Validator(SCHEMA)
SAMPLE = next((ROOT / "stepwatch" / "data" / "sample").glob("*/run.json"))


def places(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every key that the schema knows, with what it says of it."""
    for name, about in schema.get("properties", {}).items():
        yield (*path, name), about
        yield from places(about, (*path, name))


PLACES = dict(places(SCHEMA))


def test_the_schema_is_one() -> None:
    """The file is a JSON Schema, and every key in it says what it means."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert [path for path, about in PLACES.items() if not about.get("description")] == []


def test_the_command_prints_it() -> None:
    """``config schema sidecar`` prints what lies in the package."""
    done = CliRunner().invoke(cli, ["config", "schema", "sidecar"])
    assert json.loads(done.stdout) == SCHEMA


def test_the_contract_is_in_it() -> None:
    """A sidecar with all keys of the contract is valid, and the schema knows each of them."""
    VALID.validate(FULL)
    VALID.validate(LEAST)
    named = {(key,) for key in FULL} | {(key, inner) for key, value in FULL.items() if isinstance(value, dict) for inner in value}
    assert {path for path in named if path[0] != "stepwatch" or len(path) == 1} <= set(PLACES)


@pytest.mark.parametrize("end", ["complete", "interrupted", "failed", "running"])
def test_what_simulate_writes_is_valid(tmp_path: Path, end: simulate.State) -> None:
    """The hook without a host writes valid sidecars, whatever its end, and so did whoever made the sample run."""
    VALID.validate(json.loads(SAMPLE.read_text(encoding="utf-8")))
    folder = simulate.play(SAMPLE.parent, tmp_path, cadence=0, stop_after=2, state=end)
    VALID.validate(json.loads((folder / "run.json").read_text(encoding="utf-8")))


WORDS = st.sampled_from(
    [
        *("", "r", "..", ".", "a b", "r\n", "running", "complete", "x0", "vae", "other", "base", "\ud800", "x" * 501),
        *("{index:05d}.png", "{index}.jpg", ".{index}.png", "a/{index}.png", "{index:05d}.png\n", "workflow.json", "../workflow.json", "~w"),
        *("stepwatch.run/1", "stepwatch.run/1.2", "stepwatch.run/2"),
        *("2026-01-31T12:00:00.000Z", "2026-01-31T12:00:00+01:00", "2026-01-31 12:00", "2026-01-31T12:00:00.000Z\n"),
    ]
)
NUMBERS = st.one_of(
    st.sampled_from([-1, 0, 1, 16, 17, 10**9, 10**9 + 1, 2**32 - 1, 2**32, 2**64 - 1, 2**64, 8.0, 0.5, -0.0, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=30))
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)), max_leaves=6
)


def put(content: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    """Change one key of a sidecar, and make the object that it belongs to where there is none."""
    for key in path[:-1]:
        if not isinstance(content.get(key), dict):
            content[key] = {}
        content = content[key]
    content[path[-1]] = value


@given(base=st.sampled_from([LEAST, FULL]), changes=st.lists(st.tuples(st.sampled_from(sorted(PLACES)), VALUES), max_size=4))
def test_what_the_schema_accepts_the_reader_takes(base: dict[str, Any], changes: list[tuple[tuple[str, ...], object]]) -> None:
    """Whoever writes what is valid is read without a single complaint."""
    content = copy.deepcopy(base)
    for path, value in changes:
        put(content, path, value)
    sidecar, wrong = parse_sidecar(json.dumps(content).encode())
    if VALID.is_valid(content):
        assert wrong == ()
        assert sidecar is not None


PASSED_ON = {path for path in PLACES if len(path) == 2 and path[0] in ("host", "hook", "pass", "batch", "final", "error")}
PASSED_ON |= {("writer", "app"), ("writer", "version"), ("frames", "kind"), ("frames", "decode")}
"""Keys that the reader does not look at; there the schema is the stricter one."""


@given(path=st.sampled_from(sorted(set(PLACES) - PASSED_ON)), value=st.one_of(VALUES, WORDS, NUMBERS))
def test_what_the_reader_complains_of_is_invalid_and_the_other_way_round(path: tuple[str, ...], value: object) -> None:
    """For a key that the reader looks at, both draw the line at the same place; for an image's suffix in capitals only the reader is lenient."""
    content = copy.deepcopy(FULL)
    put(content, path, value)
    _, wrong = parse_sidecar(json.dumps(content).encode())
    assert VALID.is_valid(content) == (wrong == ())


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """8.0 is 8: some languages write every number so, and JSON Schema calls it an integer."""
    content = copy.deepcopy(FULL)
    content["frames"] |= {"count": 13.0, "lost": [9.0]}
    content["generation"]["seed"] = 4242.0
    VALID.validate(content)
    sidecar, wrong = parse_sidecar(json.dumps(content).encode())
    assert wrong == ()
    assert sidecar is not None
    numbers = (sidecar.frame_count, *sidecar.lost, sidecar.generation["seed"])
    assert numbers == (13, 9, 4242)
    assert all(isinstance(number, int) for number in numbers)
