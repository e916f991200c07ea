"""``run.json``: what is read, what is refused, and what is only left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.model import Outcome, Sidecar, Writer
from stepwatch.core.sidecar import SIZE_LIMIT, frame_index, parse_sidecar, step_of_index

FULL: dict[str, Any] = {
    "schema": "stepwatch.run/1",
    "run_id": "20260131-120000-a1b2c3-b1",
    "group_id": "job-7",
    "state": "complete",
    "error": None,
    "created": "2026-01-31T12:00:00.000Z",
    "updated": "2026-01-31T12:00:09.500Z",
    "ended": "2026-01-31T12:00:09.500Z",
    "writer": {"app": "comfyui", "version": "0.3", "host": "box", "boot_id": None, "pid": 4711, "start_time": None},
    "hook": {"name": "comfyui", "version": "1"},
    "host": {"app": "comfyui", "version": "0.3", "prompt_id": "p", "node_id": "3", "list_index": 0},
    "steps": {"planned": 30, "done": 30, "every": 2, "skip": 3},
    "frames": {
        "name": "{index:05d}.png",
        "count": 13,
        "planned": 14,
        "lost": [9, 4],
        "width": 64,
        "height": 48,
        "scale": 8,
        "kind": "x0",
        "decode": "latent2rgb",
    },
    "pass": {"index": 0, "name": "base", "sigma_first": 14.6, "sigma_last": 0.03},
    "batch": {"index": 1, "size": 2, "iteration": 0, "iterations": 1},
    "generation": {
        "prompt": 'a "slender" rocket\n',
        "negative": "",
        "seed": 2**64 - 1,
        "subseed": None,
        "sampler": "euler",
        "scheduler": "karras",
        "steps": 30,
        "cfg": 7,
        "denoise": 1.0,
        "width": 512,
        "height": 384,
        "model": "v1-5",
        "loras": ["x"],
    },
    "infotext": "a slender rocket\nSteps: 30",
    "workflow_file": "workflow.json",
    "final": {"path": "out/x.png", "width": 512, "height": 384},
    "stepwatch": {"timeline": {"duration": "6s"}},
}
LEAST: dict[str, Any] = {"schema": "stepwatch.run/1", "run_id": "r", "state": "running"}


def encode(content: object) -> bytes:
    """Write as a hook does."""
    return json.dumps(content).encode()


def read(content: object) -> Sidecar:
    """Read a sidecar with which nothing is wrong."""
    sidecar, wrong = parse_sidecar(encode(content))
    assert wrong == ()
    assert sidecar
    return sidecar


def refusal(data: bytes) -> str:
    """Read something that is no sidecar, and return the sentence about it."""
    sidecar, wrong = parse_sidecar(data)
    assert sidecar is None
    (sentence,) = wrong
    return sentence


def test_every_key_arrives() -> None:
    """A full sidecar is read without a complaint, each key in its field, the seed exact."""
    sidecar = read(FULL)
    assert sidecar == Sidecar(
        run_id="20260131-120000-a1b2c3-b1",
        state=Outcome.COMPLETE,
        group_id="job-7",
        created="2026-01-31T12:00:00.000Z",
        updated="2026-01-31T12:00:09.500Z",
        ended="2026-01-31T12:00:09.500Z",
        steps_planned=30,
        steps_done=30,
        every=2,
        skip=3,
        frame_name="{index:05d}.png",
        frame_count=13,
        frames_planned=14,
        lost=(4, 9),
        scale=8,
        width=64,
        height=48,
        generation={key: value for key, value in FULL["generation"].items() if value is not None} | {"loras": ("x",)},
        infotext="a slender rocket\nSteps: 30",
        workflow_file="workflow.json",
        writer=Writer(host="box", pid=4711),
        overrides={"timeline": {"duration": "6s"}},
        raw=FULL,
    )
    assert sidecar.generation["seed"] == 18446744073709551615


def test_three_keys_are_enough() -> None:
    """Everything but schema, run_id and state may be absent."""
    assert read(LEAST) == Sidecar(run_id="r", state=Outcome.RUNNING, raw=LEAST)


def test_null_is_absent() -> None:
    """A key that is null is not complained of."""
    nothing = dict.fromkeys(FULL, None) | LEAST
    assert read(nothing) == Sidecar(run_id="r", state=Outcome.RUNNING, raw=nothing)


@pytest.mark.parametrize("began", [123456, 1769860800.25, 0])
def test_a_writer_that_tells_all(began: float) -> None:
    """Ticks or seconds, whole or not: the number arrives as it is."""
    told = {"app": "comfyui", "version": "0.3", "host": "box", "boot_id": "b-1", "pid": 2**22, "start_time": began}
    assert read(LEAST | {"writer": told}).writer == Writer(host="box", boot_id="b-1", pid=2**22, start_time=began)


def test_one_wrong_key_leaves_the_rest_of_the_writer() -> None:
    """What is known of the writer is kept beside what is not."""
    sidecar, wrong = parse_sidecar(encode(LEAST | {"writer": {"host": "box", "boot_id": "b-1", "pid": "many", "start_time": 5}}))
    assert sidecar
    assert sidecar.writer == Writer(host="box", boot_id="b-1", start_time=5.0)
    assert wrong == ('run.json: writer.pid is ignored: it is "many", not a whole number from 1 to 4294967295',)


def test_unknown_keys_are_ignored() -> None:
    """A later minor version may add keys anywhere."""
    assert read(LEAST | {"colour": [1, {"a": None}], "steps": {"pace": "slow"}, "schema": "stepwatch.run/1.4"}).run_id == "r"


def test_a_byte_order_mark_is_tolerated() -> None:
    """What an editor of Windows saved is read."""
    sidecar, wrong = parse_sidecar(b"\xef\xbb\xbf" + encode(LEAST))
    assert sidecar
    assert wrong == ()


def test_a_failed_run_says_why() -> None:
    """The error's type and message become one sentence, of a failed run only."""
    fault = {"type": "OutOfMemoryError", "message": "x" * 900}
    assert read(LEAST | {"state": "failed", "error": fault}).error == ("OutOfMemoryError: " + "x" * 900)[:500]
    assert read(LEAST | {"state": "complete", "error": fault}).error is None
    assert read(LEAST | {"state": "failed", "error": {"type": 3}}).error is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "not complete JSON"),
        (b"{'schema': 1}", "not complete JSON"),
        (b"[]", "does not hold a JSON object"),
        (b"null", "does not hold a JSON object"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "a number has 5001 digits"),
        (b'{"a": -1.' + b"0" * 5000 + b"}", "too large"),
        (b'{"a": 1, "a": 2}', 'the key "a" is there twice'),
        (b'{"b": {"\\u0061": 1, "a": 2}}', 'the key "a" is there twice'),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 40_000, "nested too deeply"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested too deeply"),
        (b" " * SIZE_LIMIT + encode(LEAST), "larger than 256 KiB"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else value,
)
def test_what_is_no_json_object_is_no_sidecar(data: bytes, sentence: str) -> None:
    """Half-written, huge, deep and twisted files are named and not used."""
    assert sentence in refusal(data)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": None}, '"schema" is missing'),
        ({"schema": "stepwatch.run/2"}, 'this stepwatch reads "stepwatch.run/1"'),
        ({"schema": "stepwatch.run/10"}, 'this stepwatch reads "stepwatch.run/1"'),
        ({"schema": "stepwatch.run/"}, 'not "stepwatch.run/1"'),
        ({"schema": 1}, 'its schema is 1, not "stepwatch.run/1"'),
        ({"run_id": None}, '"run_id" is missing'),
        ({"run_id": 7}, "its run_id is 7"),
        ({"run_id": ""}, 'its run_id is ""'),
        ({"run_id": ".."}, 'its run_id is ".."'),
        ({"run_id": "."}, 'its run_id is "."'),
        ({"run_id": "a/b"}, 'its run_id is "a/b"'),
        ({"run_id": "a\n"}, 'its run_id is "a\\n"'),
        ({"run_id": "é"}, 'its run_id is "é"'),
        ({"run_id": "x" * 129}, "at most 128"),
        ({"state": None}, '"state" is missing'),
        ({"state": "done"}, "not one of running, complete, interrupted, failed"),
        ({"state": ["complete"]}, "not one of"),
    ],
)
def test_without_the_required_keys_there_is_no_sidecar(change: dict[str, object], sentence: str) -> None:
    """Another major version, a missing or wrong required key: the sentence names it and the value."""
    assert sentence in refusal(encode(LEAST | change))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"steps": 30}, "steps"),
        ({"steps": {"planned": "30"}}, "steps.planned"),
        ({"steps": {"planned": True}}, "steps.planned"),
        ({"steps": {"planned": -1}}, "steps.planned"),
        ({"steps": {"done": 1.5}}, "steps.done"),
        ({"steps": {"every": 0}}, "steps.every"),
        ({"steps": {"skip": 10**12}}, "steps.skip"),
        ({"frames": []}, "frames"),
        ({"frames": {"name": 5}}, "frames.name"),
        ({"frames": {"scale": 17}}, "frames.scale"),
        ({"frames": {"scale": 0}}, "frames.scale"),
        ({"frames": {"lost": [1, "2"]}}, "frames.lost"),
        ({"frames": {"lost": 3}}, "frames.lost"),
        ({"frames": {"lost": [-1]}}, "frames.lost"),
        ({"frames": {"width": 0}}, "frames.width"),
        ({"generation": "cat"}, "generation"),
        ({"generation": {"prompt": ["cat"]}}, "generation.prompt"),
        ({"generation": {"seed": "42"}}, "generation.seed"),
        ({"generation": {"seed": 2**64}}, "generation.seed"),
        ({"generation": {"seed": -1}}, "generation.seed"),
        ({"generation": {"cfg": "7"}}, "generation.cfg"),
        ({"generation": {"cfg": True}}, "generation.cfg"),
        ({"generation": {"loras": "x"}}, "generation.loras"),
        ({"infotext": {}}, "infotext"),
        ({"group_id": 3}, "group_id"),
        ({"created": 1769860800}, "created"),
        ({"created": "yesterday"}, "created"),
        ({"writer": "me"}, "writer"),
        ({"writer": {"host": 7}}, "writer.host"),
        ({"writer": {"boot_id": ["x"]}}, "writer.boot_id"),
        ({"writer": {"pid": "4711"}}, "writer.pid"),
        ({"writer": {"pid": 0}}, "writer.pid"),
        ({"writer": {"pid": -1}}, "writer.pid"),
        ({"writer": {"pid": True}}, "writer.pid"),
        ({"writer": {"pid": 2**32}}, "writer.pid"),
        ({"writer": {"start_time": "now"}}, "writer.start_time"),
        ({"writer": {"start_time": True}}, "writer.start_time"),
        ({"writer": {"start_time": -1.5}}, "writer.start_time"),
        ({"stepwatch": ["timeline"]}, "stepwatch"),
        ({"workflow_file": "../workflow.json"}, "workflow_file"),
        ({"workflow_file": "/etc/passwd"}, "workflow_file"),
        ({"workflow_file": "a\\b.json"}, "workflow_file"),
        ({"workflow_file": "C:x"}, "workflow_file"),
        ({"workflow_file": ".."}, "workflow_file"),
        ({"workflow_file": "~root"}, "workflow_file"),
        ({"workflow_file": "a\0b"}, "workflow_file"),
        ({"workflow_file": ""}, "workflow_file"),
    ],
)
def test_a_wrong_optional_key_is_absent_and_named(change: dict[str, object], where: str) -> None:
    """The run keeps its sidecar; the one key counts as absent, with one sentence."""
    sidecar, wrong = parse_sidecar(encode(LEAST | change))
    assert sidecar is not None
    absent = read(LEAST)
    assert sidecar == Sidecar(run_id="r", state=Outcome.RUNNING, raw=sidecar.raw)
    assert absent.generation == sidecar.generation
    (sentence,) = wrong
    assert sentence.startswith(f"run.json: {where} is ignored: it is ")


def test_a_complaint_is_short_and_harmless() -> None:
    """A value of 100 kB with escape codes neither fills the screen nor steers it."""
    _, (sentence,) = parse_sidecar(encode(LEAST | {"created": "\x1b[2J" * 20_000}))
    assert len(sentence) < 200
    assert "\x1b" not in sentence


def test_lone_surrogates_are_replaced() -> None:
    """JSON can hold half of a pair; nothing that is kept does, so that it can be written anywhere."""
    sidecar, _ = parse_sidecar(encode(LEAST | {"infotext": "a\ud83d b\udcff \ud83d\ude80", "\udc00": 1}))
    assert sidecar
    assert sidecar.infotext == "a\ufffd b\ufffd 🚀"
    json.dumps(sidecar.raw, ensure_ascii=False).encode()


# ---------------------------------------------------------------- names of frames


@pytest.mark.parametrize(
    "name", ["{index:05d}.png", "{index}.jpg", "{index:d}.webp", "{index:012d}.bmp", "frame-{index:03d}.PNG", "x0 {index:04d} v2.png"]
)
def test_plain_formats_of_frame_names_are_taken(name: str) -> None:
    """Text around the index is fine; the index is found again in every name the format makes."""
    sidecar = read(LEAST | {"frames": {"name": name}})
    for index in (0, 7, 123, 99999, 123456789012):
        assert frame_index(sidecar, name.format(index=index)) == index


@pytest.mark.parametrize(
    "name",
    [
        "{index!r:05d}.png", "{index.real}.png", "{index[0]}.png", "{0}.png", "{}.png", "{step:05d}.png", "frame.png", "{index:05d}",
        "{index:05d}.gif", "{index:05d}.exe", "../{index:05d}.png", "a/{index}.png", "a\\{index}.png", ".{index}.png", "{index}{index}.png",
        "{index:x}.png", "{index:5d}.png", "{index:0999d}.png",
        "{index:>5}.png", "{index:{index}}.png", "{{index}}.png", "{index:05d}\n.png", "{index:05d}.png\n", "",
    ],
)  # fmt: skip
def test_other_formats_of_frame_names_are_refused(name: str) -> None:
    """Attributes, conversions, other fields, paths and other suffixes: the key is absent."""
    sidecar, wrong = parse_sidecar(encode(LEAST | {"frames": {"name": name}}))
    assert sidecar
    assert sidecar.frame_name is None
    assert "frames.name is ignored" in wrong[0]


@pytest.mark.parametrize(
    "name",
    [
        "5.png",
        "000005.png",
        "00005.jpg",
        "00005.PNG",
        "a00005.png",
        "00005.png.tmp",
        ".00005.png",
        "0000\u0665.png",
        "-0005.png",
        "",
        ".png",
        "00005-1.png",
    ],
)
def test_a_name_the_hook_would_not_write_has_no_index(name: str) -> None:
    """Only the exact name counts."""
    assert frame_index(read(LEAST | {"frames": {"name": "{index:05d}.png"}}), name) is None


def test_without_a_format_no_name_has_an_index() -> None:
    """The caller then falls back to numbered images."""
    assert frame_index(read(LEAST), "00005.png") is None


def test_a_step_is_one_plus_skip_plus_index_times_every() -> None:
    """With skip 3 and every 2 the first frames are of steps 4, 6, 8."""
    sidecar = read(FULL)
    assert [step_of_index(sidecar, index) for index in range(3)] == [4, 6, 8]


# ---------------------------------------------------------------- properties

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    run_id=st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", fullmatch=True),
    state=st.sampled_from(Outcome),
    seed=st.integers(0, 2**64 - 1),
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    every=st.integers(1, 50),
    skip=st.integers(0, 50),
    ascii_only=st.booleans(),
)
def test_what_a_hook_writes_comes_back(run_id: str, state: Outcome, seed: int, prompt: str, every: int, skip: int, *, ascii_only: bool) -> None:
    """Ids, states, seeds and prompts survive the way through JSON exactly, however the hook escapes them."""
    content = {
        "schema": "stepwatch.run/1",
        "run_id": run_id,
        "state": state,
        "generation": {"seed": seed, "prompt": prompt},
        "steps": {"every": every, "skip": skip},
    }
    sidecar, wrong = parse_sidecar(json.dumps(content, ensure_ascii=ascii_only).encode())
    assert wrong == ()
    assert sidecar
    assert (sidecar.run_id, sidecar.state, sidecar.every, sidecar.skip) == (run_id, state, every, skip)
    assert sidecar.generation == {"seed": seed, "prompt": prompt}


def test_a_sidecar_cut_anywhere_is_no_sidecar() -> None:
    """Whichever byte a crash leaves as the last one, nothing half-read is believed."""
    data = encode(FULL)
    for length in range(len(data)):
        sidecar, wrong = parse_sidecar(data[:length])
        assert sidecar is None
        assert len(wrong) == 1


@given(data=st.binary(max_size=200))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    """Garbage gives a sentence."""
    sidecar, wrong = parse_sidecar(data)
    assert sidecar or wrong


@given(
    content=st.dictionaries(st.sampled_from(sorted(FULL)), _JSON),
    inner=st.dictionaries(st.sampled_from(["name", "lost", "scale", "every", "seed", "prompt", "cfg"]), _JSON),
)
def test_no_values_make_it_raise(content: dict[str, object], inner: dict[str, object]) -> None:
    """Any JSON under any known key gives a sidecar or a sentence, and a sidecar's fields have their types."""
    for data in (content, LEAST | content, content | LEAST | {"frames": inner, "steps": inner, "generation": inner}):
        sidecar, wrong = parse_sidecar(encode(data))
        assert sidecar or wrong
        if sidecar:
            assert isinstance(sidecar.every, int)
            assert sidecar.every >= 1
            assert 1 <= sidecar.scale <= 16
            assert all(isinstance(index, int) for index in sidecar.lost)
            assert isinstance(sidecar.generation.get("seed", 0), int)
            assert sidecar.frame_name is None or "{index" in sidecar.frame_name
            frame_index(sidecar, "00001.png")
