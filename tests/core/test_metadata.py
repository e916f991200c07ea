"""Facts of a run from foreign texts, and the tags that are written of them."""

from __future__ import annotations

import json
import struct
import time
import zlib
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwatch.core import metadata
from stepwatch.core.metadata import Facts, Identity, Infotext, gather, output_tags, parse_infotext
from stepwatch.core.model import Outcome, Sidecar

INFOTEXT = (
    "a slender rocket, (floodlights:1.2)\nsecond line, dusk\nNegative prompt: blurry, watermark\n"
    "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 18446744073709551615, Size: 512x768, "
    'Model hash: abc123, Model: tiny, Lora hashes: "one: 1, two: 2", Version: v1.10.1'
)
IDENTITY = Identity(run="20261122-161728-c0ffee", generation="g" * 64, plan="p" * 64, version="0.1.0", frames=30)
STAMP = {"run": IDENTITY.run, "generation": IDENTITY.generation, "plan": IDENTITY.plan, "frames": 30, "version": "0.1.0"}

NODES: dict[str, object] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
}


def sidecar(infotext: str | None = None, **generation: object) -> Sidecar:
    """A sidecar that says so much of its generation."""
    return Sidecar(run_id="r", state=Outcome.COMPLETE, created="2026-11-22T16:17:28.000Z", generation=generation, infotext=infotext)


# --- AUTOMATIC1111 ---------------------------------------------------------------------------------------------------------------


def test_infotext_is_taken_apart() -> None:
    """Prompt and negative prompt of several lines, pairs with quoted values, a seed of 64 bits."""
    facts = gather(None, {"parameters": INFOTEXT})
    assert facts.prompt == "a slender rocket, (floodlights:1.2)\nsecond line, dusk"
    assert facts.negative == "blurry, watermark"
    assert (facts.seed, facts.steps, facts.cfg) == (18446744073709551615, 30, "7.5")
    assert (facts.sampler, facts.scheduler, facts.model, facts.model_hash) == ("DPM++ 2M", "Karras", "tiny", "abc123")
    assert (facts.width, facts.height) == (512, 768)
    assert facts.infotext == INFOTEXT
    assert parse_infotext(INFOTEXT).settings["Lora hashes"] == "one: 1, two: 2"


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "seed"),
    [
        ("", "", "", None),
        ("only a prompt: with, colons: and, commas", "only a prompt: with, colons: and, commas", "", None),
        ("Steps: 20, Sampler: Euler, Seed: 5", "", "", "5"),
        ("a cat\nSteps: 20, Sampler: Euler, Seed: 5", "a cat", "", "5"),
        ("a cat\r\nNegative prompt: dog\r\nSteps: 20, Seed: 5\r\n", "a cat", "dog", "5"),
        ("a cat\nNegative prompt: a\nb\nc", "a cat", "a\nb\nc", None),
        ("Negative prompt: dog\nSteps: 20, Sampler: Euler, Seed: 5", "", "dog", "5"),
        ("a cat\nSampler: Euler, CFG scale: 7, Seed: 5", "a cat", "", "5"),
        ("Steps: 10 of them\nSteps: 20, Sampler: Euler, Seed: 5", "Steps: 10 of them", "", "5"),
        ("a cat\nSteps: 20, Sampler: Euler, Seed: 5\nTemplate: a {cat|dog}\nNegative Template: x", "a cat", "", "5"),
        ('a cat\nSteps: 20, Note: "Seed: 9, \\"q\\" x", broken, Seed: 5, intermediate: 012', "a cat", "", "5"),
        ('a cat\nSteps: 20, Note: "never closed, Seed: 5', "a cat", "", "5"),
    ],
)
def test_infotext_as_real_life_writes_it(text: str, prompt: str, negative: str, seed: str | None) -> None:
    """Missing parts, other line ends, lines of extensions after the settings, quotes that do not close."""
    parsed = parse_infotext(text)
    assert (parsed.prompt, parsed.negative, parsed.settings.get("Seed")) == (prompt, negative, seed)


def test_the_number_of_a_single_frame_is_dropped() -> None:
    """Extensions that save steps add the step to the text of each frame; the text is to speak of the run."""
    assert gather(None, {"parameters": INFOTEXT + ", intermediate: 001"}).infotext == INFOTEXT


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300) | st.text(alphabet='Steps: 1,"\\\nNegative prompt:', max_size=300))
def test_any_text_can_be_parsed(text: str) -> None:
    """Whatever a text chunk holds, there are facts and tags, and every tag is fit for a container."""
    facts = gather(None, {"parameters": text, "prompt": text, "workflow": text})
    tags = output_tags(facts, include="full", author=None, identity=IDENTITY)
    for value in tags.values():
        assert value == metadata.clean(value)
        value.encode("utf-8")
    assert json.loads(tags["stepwatch"]) == STAMP


words = st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
lines = st.lists(words, min_size=1, max_size=5).map(" ".join).filter(lambda line: not line.startswith(("Steps:", "Negative")))


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(lines, min_size=1, max_size=3).map("\n".join),
    negative=lines,
    seed=st.integers(min_value=0, max_value=2**64 - 1),
    steps=st.integers(min_value=1, max_value=999),
    sampler=words,
    model=lines,
)
def test_facts_survive_as_infotext(prompt: str, negative: str, seed: int, steps: int, sampler: str, model: str) -> None:
    """A text that we write of facts says the same facts when it is read."""
    facts = Facts(prompt=prompt, negative=negative, seed=seed, steps=steps, sampler=sampler, model=model, width=8, height=9, cfg="2.5")
    again = gather(None, {"parameters": facts.parameters})
    assert (again.prompt, again.negative, again.seed, again.steps) == (prompt, negative, seed, steps)
    assert (again.sampler, again.model, again.width, again.height, again.cfg) == (sampler, model, 8, 9, "2.5")


def test_hostile_texts_take_no_time() -> None:
    """300 kB of what makes careless patterns slow are parsed at once."""
    began = time.process_time()
    for part in (" ", "a: ", 'a: "', "\\", "Steps: 1, ", ",", '"', "a\n", "[", "{"):
        text = part * (300_000 // len(part))
        gather(None, {"parameters": text, "prompt": text})
        metadata.parse_ffmetadata(text)
        metadata.clean(text)
    assert time.process_time() - began < 10


# --- sources ---------------------------------------------------------------------------------------------------------------------


def test_the_sidecar_speaks_first_and_frames_fill_the_gaps() -> None:
    """Each fact comes from the best source that has it."""
    facts = gather(sidecar(prompt="from the sidecar", seed=7), {"parameters": INFOTEXT, "prompt": json.dumps(NODES), "workflow": "{}"})
    assert (facts.prompt, facts.seed) == ("from the sidecar", 7)
    assert (facts.sampler, facts.steps, facts.negative) == ("DPM++ 2M", 30, "blurry, watermark")
    assert facts.created == "2026-11-22T16:17:28.000Z"
    assert (facts.prompt_json, facts.workflow) == (json.dumps(NODES), "{}")


def test_the_sidecars_own_infotext_counts() -> None:
    """It is kept whole, before what the frames have."""
    assert gather(sidecar(INFOTEXT), {"parameters": "other"}).infotext == INFOTEXT


def test_nothing_known_is_nothing_said() -> None:
    """Frames of a camera have no prompt, no seed and no such artist."""
    facts = gather(None, {})
    assert facts == Facts()
    tags = output_tags(facts, include="full", author=None, identity=IDENTITY)
    assert set(tags) == {"software", "stepwatch"}


def test_values_of_a_wrong_kind_are_unknown() -> None:
    """A sidecar or a graph may hold anything under a key."""
    facts = gather(sidecar(prompt=3, seed="x", steps=True, cfg=[1], width=1e400, height=float("nan"), model={}, sampler=" "), {})
    assert facts == Facts(created="2026-11-22T16:17:28.000Z")
    assert gather(sidecar(seed="12", steps=20.0, cfg=7), {}) == Facts(created=facts.created, seed=12, steps=20, cfg="7")
    assert gather(sidecar(seed=10**4000, cfg=10**4000), {}) == facts


# --- ComfyUI ---------------------------------------------------------------------------------------------------------------------


def test_facts_of_a_comfyui_graph() -> None:
    """The default workflow: sampler, prompts behind links, model and size."""
    facts = gather(None, {"prompt": json.dumps(NODES)})
    assert (facts.prompt, facts.negative) == ("a glass bottle", "text, watermark")
    assert (facts.seed, facts.steps, facts.cfg, facts.sampler, facts.scheduler) == (156680208700286, 20, "8", "euler", "normal")
    assert (facts.model, facts.width, facts.height) == ("v1-5.safetensors", 512, 640)
    assert facts.infotext is None
    assert facts.parameters == (
        "a glass bottle\nNegative prompt: text, watermark\n"
        "Steps: 20, Sampler: euler, Schedule type: normal, CFG scale: 8, Seed: 156680208700286, Size: 512x640, Model: v1-5.safetensors"
    )


def test_facts_of_a_custom_sampler() -> None:
    """Noise, guider, sampler and schedule in nodes of their own, text in a primitive, guidance in between."""
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
        "2": {"class_type": "PrimitiveString", "inputs": {"value": "a lighthouse"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": ["2", 0], "clip": ["1", 1]}},
        "4": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["3", 0]}},
        "5": {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": ["4", 0]}},
        "6": {"class_type": "RandomNoise", "inputs": {"noise_seed": 42}},
        "7": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpmpp_2m"}},
        "8": {"class_type": "BasicScheduler", "inputs": {"scheduler": "beta", "steps": 8, "denoise": 1, "model": ["1", 0]}},
        "9": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"noise": ["6", 0], "guider": ["5", 0], "sampler": ["7", 0], "sigmas": ["8", 0], "latent_image": ["10", 0]},
        },
        "10": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 768}},
    }
    facts = gather(None, {"prompt": json.dumps(graph)})
    assert (facts.prompt, facts.negative, facts.seed, facts.steps) == ("a lighthouse", None, 42, 8)
    assert (facts.sampler, facts.scheduler, facts.model, facts.width) == ("dpmpp_2m", "beta", "flux.safetensors", 1024)


def test_values_behind_links_and_sides_of_a_control_net() -> None:
    """A seed from a primitive node; a node that hands on both prompts is followed on the right side; several texts are joined."""
    graph = json.loads(json.dumps(NODES))
    graph["3"]["inputs"] |= {"seed": ["20", 0], "positive": ["21", 0], "negative": ["21", 1]}
    graph["20"] = {"class_type": "PrimitiveInt", "inputs": {"value": 99}}
    graph["21"] = {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["22", 0], "negative": ["7", 0], "strength": 1}}
    graph["22"] = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0], "conditioning_2": ["23", 0]}}
    graph["23"] = {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "on a shelf", "text_l": "", "width": 4096, "clip": ["4", 1]}}
    facts = gather(None, {"prompt": json.dumps(graph)})
    assert (facts.seed, facts.prompt, facts.negative, facts.width) == (99, "a glass bottle, on a shelf", "text, watermark", 512)


def test_the_first_pass_speaks_for_a_run() -> None:
    """Of two samplers the one that begins from noise."""
    graph = json.loads(json.dumps(NODES))
    refine = {"2": {"class_type": "KSampler", "inputs": graph["3"]["inputs"] | {"seed": 1, "denoise": 0.4}}}
    assert gather(None, {"prompt": json.dumps(refine | graph)}).seed == 156680208700286


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        '{"1": 5}',
        '{"1": {"inputs": []}}',
        '{"1": {"inputs": {"positive": ["1", 0], "negative": ["x", 0], "seed": ["1", 0]}, "class_type": 7}}',
        '{"1": {"inputs": {"positive": ["1"], "seed": NaN, "steps": 1e999, "cfg": true}}}',
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps({str(n): {"class_type": "KSampler", "inputs": {"seed": n, "positive": [str(n + 1), 0]}} for n in range(5000)}),
    ],
)
def test_junk_graphs_are_tolerated(text: str) -> None:
    """Loops, dangling links, endless chains, deep nesting and wrong types end in few facts, never in an exception."""
    facts = gather(None, {"prompt": text})
    assert facts.prompt is None
    assert facts.cfg is None


# --- tags ------------------------------------------------------------------------------------------------------------------------


def test_full_tags_have_the_keys_of_steps_animation() -> None:
    """Title in one line, the whole text as description, artist and album artist; and what readers of prompts look for."""
    facts = gather(None, {"parameters": INFOTEXT, "prompt": "{}", "workflow": '{"nodes": []}'})
    tags = output_tags(facts, include="full", author=None, identity=IDENTITY)
    assert tags["title"] == (
        "a slender rocket, (floodlights:1.2) second line, dusk | negative blurry, watermark | seed 18446744073709551615"
        " | sampler DPM++ 2M | scheduler Karras | cfgscale 7.5 | steps 30 | model tiny"
    )
    assert tags["description"] == tags["parameters"] == INFOTEXT
    assert (tags["artist"], tags["album_artist"], tags["software"]) == ("stable-diffusion", "stepwatch", "stepwatch 0.1.0")
    assert (tags["prompt"], tags["workflow"]) == ("{}", '{"nodes": []}')
    assert json.loads(tags["stepwatch"]) == STAMP


def test_an_author_is_named() -> None:
    """The policy's author is artist and album artist."""
    tags = output_tags(Facts(seed=1), include="basic", author="Ada L.", identity=IDENTITY)
    assert (tags["artist"], tags["album_artist"]) == ("Ada L.", "Ada L.")


@pytest.mark.parametrize("include", ["basic", "none"])
def test_private_tags_say_nothing_of_a_prompt(include: Literal["full", "basic", "none"]) -> None:
    """No value of `basic` or `none` holds a word of prompt, negative prompt, graph or workflow; `none` has the stamp alone."""
    facts = gather(
        sidecar("SECRET\nNegative prompt: SECRET\nSteps: 3", prompt="SECRET", negative="SECRET", seed=5, model="tiny"),
        {"workflow": "SECRET", "prompt": "SECRET"},
    )
    tags = output_tags(facts, include=include, author=None, identity=IDENTITY)
    assert "SECRET" not in json.dumps(tags)
    assert json.loads(tags["stepwatch"]) == STAMP
    if include == "none":
        assert set(tags) == {"stepwatch"}
    else:
        assert tags["title"] == tags["description"] == "seed 5 | steps 3 | model tiny"
        assert not {"parameters", "prompt", "workflow"} & set(tags)


def test_texts_are_cleaned() -> None:
    """Row 21: NUL, escape codes and other controls go, line ends are line feeds, a lone surrogate is replaced, letters stay."""
    assert metadata.clean("\0a\x1b[31m\tb\r\nc\rd\x85\x9be \ud800 é😀\x7f ") == "a[31m\tb\nc\nde \ufffd é😀"


def test_an_endless_prompt_is_cut_by_rule() -> None:
    """Row 21: 300 kB stay as they are; beyond the limit a text is cut and says so, a graph that a cut would break is left out."""
    prompt = "é" * 150_000
    tags = output_tags(gather(sidecar(prompt=prompt), {}), include="full", author=None, identity=IDENTITY)
    assert tags["parameters"] == prompt
    assert len(tags["title"]) <= 1000
    assert tags["title"].endswith("…")
    huge = output_tags(
        gather(sidecar(prompt="é" * 1_000_000), {"workflow": "[" + "1," * 600_000 + "1]"}), include="full", author=None, identity=IDENTITY
    )
    assert len(huge["parameters"].encode()) <= metadata.MAX_VALUE
    assert huge["parameters"].endswith("é\n[cut by stepwatch: 2000000 bytes were too many]")
    assert "workflow" not in huge


def test_an_identity_is_read_back() -> None:
    """From the tags of our own files, also where the stamp has another name; foreign tags have none."""
    tags = output_tags(Facts(), include="none", author=None, identity=IDENTITY)
    for found in (metadata.read_identity(tags), metadata.read_identity(metadata.apple_tags(tags))):
        assert found is not None
        assert (found.run, found.generation, found.plan, found.version) == (IDENTITY.run, IDENTITY.generation, IDENTITY.plan, "0.1.0")
    for text in ("", "{", "[]", "7", '"run"', '{"run": "r"}', "[" * 100_000):
        assert metadata.read_identity({"stepwatch": text}) is None
    assert metadata.read_identity({}) is None


def test_apple_tags_keep_the_stamp() -> None:
    """Where only known names have room, the stamp has one of them, and nothing else is there that would be dropped."""
    tags = output_tags(gather(sidecar(INFOTEXT), {"workflow": "{}"}), include="full", author=None, identity=IDENTITY)
    apple = metadata.apple_tags(tags)
    assert set(apple) == {"title", "artist", "album_artist", "comment", "description", "date", "grouping"}
    assert apple["grouping"] == tags["stepwatch"]


values = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60) | st.text(
    alphabet="\\=;#\n[]\r", max_size=12
)


@settings(max_examples=200, deadline=None)
@given(tags=st.dictionaries(st.sampled_from(["title", "comment", "parameters", "workflow"]), values))
def test_ffmetadata_is_read_as_it_was_written(tags: dict[str, str]) -> None:
    """Also with our own reader (a NUL behind a last backslash is for ffmpeg, which ends the value there)."""
    assert {key: value.removesuffix("\0") for key, value in metadata.parse_ffmetadata(metadata.ffmetadata(tags)).items()} == tags


def test_ffmetadata_of_a_chapter_is_not_of_the_file() -> None:
    """Reading ends where streams and chapters begin; names are in lower case."""
    assert metadata.parse_ffmetadata(";FFMETADATA1\nTITLE=a\\=b\n# no\nnone\n[STREAM]\nlanguage=und\n") == {"title": "a=b"}


# --- texts of files --------------------------------------------------------------------------------------------------------------


def test_png_texts() -> None:
    """Three kinds of chunk; UTF-8 where the standard says Latin-1; what is broken or too long is None."""
    assert metadata.png_text(b"tEXt", b"parameters\0caf\xe9", 100) == ("parameters", "café")
    assert metadata.png_text(b"tEXt", b"parameters\0caf\xc3\xa9", 100) == ("parameters", "café")
    assert metadata.png_text(b"zTXt", b"prompt\0\0" + zlib.compress(b"{}"), 100) == ("prompt", "{}")
    assert metadata.png_text(b"iTXt", b"prompt\0\0\0en\0translated\0caf\xc3\xa9", 100) == ("prompt", "café")
    assert metadata.png_text(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"{}"), 100) == ("prompt", "{}")
    for kind, body in (
        (b"tEXt", b"no end"),
        (b"tEXt", b"\0empty"),
        (b"tEXt", b"a\0" + b"x" * 101),
        (b"zTXt", b"a\0\0junk"),
        (b"zTXt", b"a\0"),
        (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 101)),
        (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 50)[:-6]),
        (b"iTXt", b"a\0\0"),
        (b"iTXt", b"a\0\0\0en"),
    ):
        assert metadata.png_text(kind, body, 100) is None


@settings(max_examples=150, deadline=None)
@given(junk=st.binary(max_size=120), order=st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0\x08\0\0\0", b""]))
def test_any_exif_can_be_read(junk: bytes, order: bytes) -> None:
    """Broken blocks have few tags and no exception, and their values are no larger than they are."""
    image, details = metadata.parse_exif(order + junk)
    for tags in (image, details):
        assert sum(len(value) for value in tags.values() if isinstance(value, bytes)) <= len(junk) + 14
    metadata.exif_texts(order + junk)


def test_exif_values_cannot_be_multiplied() -> None:
    """A thousand tags that share one long value do not become a thousand long values."""
    long = 100_000
    entries = b"".join(struct.pack("<HHII", 1000 + n, 2, long, 20_000) for n in range(1000))
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 1000) + entries
    image, _ = metadata.parse_exif(block.ljust(20_000, b"\0") + b"x" * long)
    assert len(image) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (5, ""),
        (b"", ""),
        (b"UNICODE\0" + "猫, Steps: 20".encode("utf-16-be"), "猫, Steps: 20"),
        (b"UNICODE\0" + "猫, Steps: 20".encode("utf-16-le"), "猫, Steps: 20"),
        (b"UNICODE\0\xff\xfe" + "猫猫猫".encode("utf-16-le"), "猫猫猫"),
        (b"UNICODE\0\xfe\xff" + "猫猫猫".encode("utf-16-be"), "猫猫猫"),
        (b"UNICODE\0" + "a".encode("utf-16-be") + b"\xd8", "a\ufffd"),
        (b"ASCII\0\0\0caf\xc3\xa9\0\0", "café"),
        (b"\0\0\0\0\0\0\0\0plain", "plain"),
        (b"plain text without a code", "plain text without a code"),
    ],
)
def test_user_comments(value: bytes | int | None, text: str) -> None:
    """Every way in which hosts and editors write UserComment."""
    assert metadata.user_comment(value) == text


def test_infotext_defaults() -> None:
    """An empty text has no parts."""
    assert parse_infotext("") == Infotext()
