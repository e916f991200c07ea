"""Generation facts: read from the sidecar and from texts found in frames, and written as the tags of an animation.

Three sources, best first, and a later one only fills what an earlier one left open: the sidecar, the text that AUTOMATIC1111 and its forks
write under ``parameters``, and the node graph that ComfyUI writes under ``prompt``. All of it is foreign text: it may be junk, endless or
hostile, and here it is only ever data. Nothing in this module raises for what such a text says.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from stepwatch.core.model import Sidecar

MAX_VALUE = 1 << 20
"""Bytes of UTF-8 that one tag may have; a longer text is cut and says so."""
MAX_GRAPH = 16 << 20
"""Characters of ComfyUI JSON that are looked into; a larger graph is kept but not understood."""

_LARGEST = 10**30
_TITLE_PART = 1000
_MAX_NODES = 2000
_MAX_TEXTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """How the picture of a run was made, as far as anybody said; None is unknown."""

    prompt: str | None = None
    negative: str | None = None
    seed: int | None = None
    sampler: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    cfg: str | None = None
    """Guidance scale as written, such as ``7.5``."""
    model: str | None = None
    model_hash: str | None = None
    width: int | None = None
    height: int | None = None
    created: str | None = None
    """RFC 3339 text from the sidecar."""
    infotext: str | None = None
    """The whole text in the form of AUTOMATIC1111, where somebody wrote one."""
    prompt_json: str | None = None
    """ComfyUI's API graph as found."""
    workflow: str | None = None
    """ComfyUI's workflow as found."""

    @property
    def parameters(self) -> str:
        """The infotext as found, else one made from the other facts; empty when nothing is known."""
        return self.infotext or write_infotext(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which run, which frames and which plan an animation was made from: digests and ids, never anything of a prompt."""

    run: str
    generation: str
    plan: str
    version: str
    """Of stepwatch."""
    frames: int | None = None
    """Frames that the animation shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Infotext:
    """The parts of a text in the form of AUTOMATIC1111."""

    prompt: str = ""
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    """``Steps``, ``Sampler``, ``Seed`` ...: keys and values as written, quoted values unquoted."""


# --- reading texts from image files (their bytes are the shell's to read) --------------------------------------------------------


def png_text(kind: bytes, body: bytes, limit: int) -> tuple[str, str] | None:
    """Return keyword and text of a PNG text chunk (``tEXt``, ``zTXt``, ``iTXt``); None when it is broken or longer than ``limit`` bytes.

    A compressed text is never unpacked beyond the limit.
    """
    keyword, separator, rest = body.partition(b"\0")
    if not separator or not 1 <= len(keyword) <= 79:
        return None
    data: bytes | None = rest
    encoding = "latin-1"
    if kind == b"zTXt":
        data = _inflate(rest[1:], limit)
    elif kind == b"iTXt":
        encoding = "utf-8"
        pieces = rest[2:].split(b"\0", 2)
        if len(rest) < 2 or len(pieces) < 3:
            return None
        data = _inflate(pieces[2], limit) if rest[0] else pieces[2]
    if data is None or len(data) > limit:
        return None
    if encoding == "latin-1" and not data.isascii():
        # Many programs put UTF-8 into a chunk that is Latin-1 by its standard; bytes that happen to be valid UTF-8 are UTF-8.
        try:
            return keyword.decode("latin-1"), data.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return keyword.decode("latin-1"), data.decode(encoding, "replace")


def _inflate(data: bytes, limit: int) -> bytes | None:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, limit + 1)
    except zlib.error:
        return None
    return text if unpacker.eof and len(text) <= limit else None


def parse_exif(data: bytes) -> tuple[dict[int, bytes | int], dict[int, bytes | int]]:
    """Return the tags of an EXIF block: those of the image, and those of its EXIF folder.

    Texts and raw values are bytes, numbers the first of their kind. What is broken is left out; nothing is believed about sizes and places.
    """
    data = data.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] | None = {b"II*\0": "little", b"MM\0*": "big"}.get(data[:4])  # type: ignore[assignment]
    if order is None:
        return {}, {}
    image = _exif_folder(data, int.from_bytes(data[4:8], order), order)
    details = image.get(0x8769)
    return image, _exif_folder(data, details, order) if isinstance(details, int) else {}


def _exif_folder(data: bytes, offset: int, order: Literal["little", "big"]) -> dict[int, bytes | int]:
    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    tags: dict[int, bytes | int] = {}
    left = len(data)  # of values: tags that share theirs must not make more of it than there is
    for at in range(offset + 2, offset + 2 + 12 * min(number(offset, 2), 1000), 12):
        if at + 12 > len(data):
            break
        tag, kind, count = number(at, 2), number(at + 2, 2), number(at + 4, 4)
        if kind in (3, 4) and count:  # 16 and 32 bits
            size = 2 if kind == 3 else 4
            tags.setdefault(tag, number(at + 8 if size * count <= 4 else number(at + 8, 4), size))
        elif kind in (1, 2, 7) and count <= left:  # bytes, text, anything
            start = at + 8 if count <= 4 else number(at + 8, 4)
            if start + count <= len(data):
                tags.setdefault(tag, data[start : start + count])
                left -= count
    return tags


def exif_texts(data: bytes) -> dict[str, str]:
    """Return ``parameters``, ``prompt`` and ``workflow`` as hosts hide them in EXIF.

    AUTOMATIC1111 and its forks put their text into UserComment; ComfyUI has ``prompt:{...}`` under Model, ``workflow:{...}`` under Make and
    further ones below that.
    """
    image, details = parse_exif(data)
    texts: dict[str, str] = {}
    comment = user_comment(details.get(0x9286))
    if comment.lstrip().startswith("{"):
        texts["prompt"] = comment
    elif comment:
        texts["parameters"] = comment
    for value in image.values():
        text = exif_text(value)
        for key in ("prompt", "workflow"):
            if text.startswith(key + ":"):
                texts.setdefault(key, text[len(key) + 1 :])
    return texts


def exif_text(value: bytes | int | None) -> str:
    """Return an EXIF value as text: ASCII by its standard, UTF-8 in practice."""
    return value.decode("utf-8", "replace").strip("\0") if isinstance(value, bytes) else ""


def user_comment(value: bytes | int | None) -> str:
    """Return the text of an EXIF UserComment: eight bytes that name its encoding, then the text; many writers get either part wrong."""
    if not isinstance(value, bytes):
        return ""
    code, body = value[:8], value[8:]
    if code == b"UNICODE\0":
        return _utf16(body).strip("\0")
    if code in (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * 8):
        value = body
    return value.decode("utf-8", "replace").strip("\0")


def _utf16(body: bytes) -> str:
    """Decode UTF-16 of unknown byte order: by its mark, else by where the zeros of ASCII characters are."""
    if body.startswith(b"\xff\xfe"):
        return body[2:].decode("utf-16-le", "replace")
    if body.startswith(b"\xfe\xff"):
        return body[2:].decode("utf-16-be", "replace")
    order = "be" if body[0::2].count(0) >= body[1::2].count(0) else "le"
    return body.decode(f"utf-16-{order}", "replace")


# --- facts -----------------------------------------------------------------------------------------------------------------------


def gather(sidecar: Sidecar | None, texts: Mapping[str, str], *, hints: Mapping[str, object] | None = None) -> Facts:
    """Put together what is known of a run: from its sidecar, then from texts of its frames (``parameters``, ``prompt``, ``workflow``).

    *hints*, such as a seed in the frames' names, count where neither says anything.
    """
    infotext = (sidecar.infotext if sidecar else None) or texts.get("parameters") or None
    if infotext:
        infotext = _without_frame_number(infotext)
    prompt_json = texts.get("prompt") or None
    sources: list[Mapping[str, object]] = []
    if sidecar:
        sources.append(sidecar.generation)
    if infotext:
        sources.append(_facts_of_infotext(parse_infotext(infotext)))
    if prompt_json:
        sources.append(_facts_of_graph(prompt_json))
    sources.append(hints or {})

    def first(key: str) -> object:
        return next((source[key] for source in sources if source.get(key) not in (None, "")), None)

    return Facts(
        prompt=_as_text(first("prompt")),
        negative=_as_text(first("negative")),
        seed=_as_int(first("seed")),
        sampler=_as_text(first("sampler")),
        scheduler=_as_text(first("scheduler")),
        steps=_as_int(first("steps")),
        cfg=_as_number(first("cfg")),
        model=_as_text(first("model")),
        model_hash=_as_text(first("model_hash")),
        width=_as_int(first("width")),
        height=_as_int(first("height")),
        created=sidecar.created if sidecar else None,
        infotext=infotext,
        prompt_json=prompt_json,
        workflow=texts.get("workflow") or None,
    )


def _without_frame_number(infotext: str) -> str:
    """Drop what extensions that save steps append for the single frame; the text is to speak of the whole run."""
    return re.sub(r", intermediate: \d{1,6}\s*\Z", "", infotext)


def _as_text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _as_int(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,30}\s*", value):
        return int(value)
    # Seeds have up to 20 digits; what has thousands is no number that anybody set, and Python refuses to write it.
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST and value == int(value):
        return int(value)
    return None


def _as_number(value: object) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return f"{value:.10g}"
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,30}(\.[0-9]{0,30})?\s*", value):
        return value.strip()
    return None


# --- AUTOMATIC1111 ---------------------------------------------------------------------------------------------------------------

# The text has no grammar, only a habit: prompt (any lines), "Negative prompt: " (any lines), one line of "Key: value, Key: value".
# Extensions add lines after that one, and a prompt may look like anything, so the line of settings is found from the end.

_SETTING = re.compile(r'\s*([A-Za-z][^:,"\n]{0,99}):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')


def parse_infotext(text: str) -> Infotext:
    """Take apart a text in the form of AUTOMATIC1111; without a line of settings all of it is prompt."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").strip().split("\n")
    settings: dict[str, str] = {}
    at = _settings_line(lines)
    if at is not None:
        settings = _settings(lines[at])
        lines = lines[:at]
    start = next((number for number, line in enumerate(lines) if line.lstrip().startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:]).lstrip().removeprefix("Negative prompt:")
    return Infotext(prompt="\n".join(lines[:start]).strip(), negative=negative.strip(), settings=settings)


def _settings_line(lines: list[str]) -> int | None:
    for number in reversed(range(len(lines))):
        if re.match(r"\s*Steps:\s*[0-9]", lines[number]):
            return number
    last = len(lines) - 1
    return last if len(_settings(lines[last])) >= 3 else None


def _settings(line: str) -> dict[str, str]:
    """Return the pairs of a line; the line is no line of settings, and has none, unless it begins with a pair."""
    settings: dict[str, str] = {}
    position = 0
    while position < len(line):
        found = _SETTING.match(line, position)
        if found is None:
            if not settings:
                break
            position = line.find(",", position) + 1 or len(line)
            continue
        key, value = found.group(1).strip(), found.group(2).strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            try:
                value = str(json.loads(value))
            except ValueError:
                value = value[1:-1]
        settings.setdefault(key, value)
        position = found.end()
    return settings


def _facts_of_infotext(infotext: Infotext) -> dict[str, object]:
    settings = infotext.settings
    width, _, height = settings.get("Size", "").partition("x")
    return {
        "prompt": infotext.prompt,
        "negative": infotext.negative,
        "seed": settings.get("Seed"),
        "sampler": settings.get("Sampler"),
        "scheduler": settings.get("Schedule type"),
        "steps": settings.get("Steps"),
        "cfg": settings.get("CFG scale"),
        "model": settings.get("Model"),
        "model_hash": settings.get("Model hash"),
        "width": width,
        "height": height,
    }


def write_infotext(facts: Facts) -> str:
    """Write facts in the form of AUTOMATIC1111, which most readers of prompts understand; empty when there are none."""
    settings = [
        ("Steps", facts.steps),
        ("Sampler", facts.sampler),
        ("Schedule type", facts.scheduler),
        ("CFG scale", facts.cfg),
        ("Seed", facts.seed),
        ("Size", f"{facts.width}x{facts.height}" if facts.width and facts.height else None),
        ("Model hash", facts.model_hash),
        ("Model", facts.model),
    ]
    pairs = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings if value is not None)
    lines = [facts.prompt or "", f"Negative prompt: {facts.negative}" if facts.negative else "", pairs]
    return "\n".join(line for line in lines if line)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


# --- ComfyUI ---------------------------------------------------------------------------------------------------------------------

# The graph is {id: {"class_type", "inputs": {name: value or [id, output]}}}. From the sampler, values are looked for nearest first along its
# links, so that it does not matter whether steps are set at the sampler itself or at a scheduler node before it. Every walk is bounded.

_SOUGHT: Mapping[str, tuple[str, ...]] = {
    "seed": ("seed", "noise_seed"),
    "steps": ("steps",),
    "cfg": ("cfg", "cfg_scale"),
    "sampler": ("sampler_name", "sampler"),
    "scheduler": ("scheduler",),
    "model": ("ckpt_name", "unet_name", "model_name"),
    "width": ("width",),
    "height": ("height",),
}
_VALUE_KEYS = ("value", "int", "float", "string", "number", "text")
_TEXT_KEYS = ("text", "text_g", "t5xxl", "clip_l", "prompt", "string", "value")
_NO_TEXT = frozenset({"clip", "model", "vae", "image", "pixels", "control_net", "samples", "latent_image", "latent", "style_model"})
"""Inputs that never lead to the text of a conditioning."""

_Inputs = Mapping[str, object]
_Nodes = Mapping[str, tuple[str, _Inputs]]


def _facts_of_graph(text: str) -> dict[str, object]:
    nodes = _nodes(text)
    start = _sampler(nodes)
    if start is None:
        return {}
    facts: dict[str, object] = {}
    conditioning: dict[str, str] = {}
    # Nodes that encode a prompt may have sizes of their own: the one that counts is the latent's.
    latent = _link(nodes[start][1].get("latent_image"))
    if latent in nodes:
        for inputs in _upstream(nodes, latent):
            _take_values(facts, nodes, inputs, ("width", "height"))
    for inputs in _upstream(nodes, start):
        _take_values(facts, nodes, inputs, tuple(_SOUGHT))
        for role, name in (("prompt", "positive"), ("negative", "negative"), ("prompt", "conditioning")):
            node = _link(inputs.get(name))
            if node is not None:
                conditioning.setdefault(role, node)
    for role, node in conditioning.items():
        facts[role] = ", ".join(_texts(nodes, node, "positive" if role == "prompt" else "negative"))
    return facts


def _take_values(facts: dict[str, object], nodes: _Nodes, inputs: _Inputs, wanted: tuple[str, ...]) -> None:
    for fact in wanted:
        for name in _SOUGHT[fact]:
            if fact not in facts and name in inputs:
                value = _scalar(nodes, inputs[name], _SOUGHT[fact])
                if value is not None:
                    facts[fact] = value


def _nodes(text: str) -> dict[str, tuple[str, _Inputs]]:
    """Return the nodes of a graph as kind and inputs; junk has none."""
    if len(text) > MAX_GRAPH:
        return {}
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(graph, dict):
        return {}
    nodes: dict[str, tuple[str, _Inputs]] = {}
    for key, node in graph.items():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            kind = node.get("class_type")
            nodes[key] = (kind if isinstance(kind, str) else "", node["inputs"])
    return nodes


def _sampler(nodes: _Nodes) -> str | None:
    """Return the node that samples: of several the first that begins from scratch, else the first."""
    samplers = [
        key
        for key, (kind, inputs) in nodes.items()
        if ("positive" in inputs and ("seed" in inputs or "noise_seed" in inputs)) or "guider" in inputs or ("ampler" in kind and "steps" in inputs)
    ]
    whole = [key for key in samplers if nodes[key][1].get("denoise", 1) == 1 and nodes[key][1].get("add_noise", "enable") == "enable"]
    return next(iter(whole or samplers), None)


def _link(value: object) -> str | None:
    """Return the id of the node that an input is connected to."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and isinstance(value[1], int):
        return str(value[0])
    return None


def _upstream(nodes: _Nodes, start: str) -> Iterable[_Inputs]:
    """Yield the inputs of a node and of all before it, nearest first; loops in the graph end by themselves."""
    queue, seen = deque([start]), {start}
    while queue and len(seen) <= _MAX_NODES:
        _, inputs = nodes[queue.popleft()]
        yield inputs
        for value in inputs.values():
            node = _link(value)
            if node is not None and node in nodes and node not in seen:
                seen.add(node)
                queue.append(node)


def _scalar(nodes: _Nodes, value: object, names: tuple[str, ...]) -> object:
    """Return a plain value, followed through at most a few nodes that only hold it."""
    for _ in range(8):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return value
        node = _link(value)
        if node is None or node not in nodes:
            return None
        inputs = nodes[node][1]
        value = next((inputs[name] for name in (*names, *_VALUE_KEYS) if name in inputs), None)
    return None


def _texts(nodes: _Nodes, start: str, role: str) -> list[str]:
    """Return the texts that lead to a conditioning, in the order of the links."""
    texts: list[str] = []
    stack, seen = [start], set[str]()
    while stack and len(seen) <= _MAX_NODES and len(texts) < _MAX_TEXTS:
        node = stack.pop()
        if node in seen or node not in nodes:
            continue
        seen.add(node)
        inputs = nodes[node][1]
        texts.extend(text for text in dict.fromkeys(_strings(inputs)) if text not in texts)
        # A node that hands on both conditionings (ControlNet and the like) is followed on the side that was asked for.
        names = [role] if _link(inputs.get(role)) else [name for name in inputs if name not in _NO_TEXT]
        links = [link for name in names if (link := _link(inputs[name])) is not None]
        stack.extend(reversed(links))
    return texts


def _strings(inputs: _Inputs) -> Iterable[str]:
    for name in _TEXT_KEYS:
        value = inputs.get(name)
        if isinstance(value, str) and value.strip():
            yield value.strip()


# --- tags ------------------------------------------------------------------------------------------------------------------------


def output_tags(facts: Facts, *, include: Literal["full", "basic", "none"], author: str | None, identity: Identity) -> dict[str, str]:
    """Return the tags of an animation.

    ``full`` has everything; ``basic`` has nothing of a prompt or a workflow; ``none`` has only ``stepwatch``, without which an animation could
    not be found again after its receipt is lost: ids and digests, whatever else may be said.
    """
    known = {"run": identity.run, "generation": identity.generation, "plan": identity.plan, "frames": identity.frames, "version": identity.version}
    stamp = {"stepwatch": json.dumps({key: value for key, value in known.items() if value is not None}, separators=(",", ":"))}
    if include == "none":
        return stamp
    full = include == "full"
    diffusion = any(value is not None for value in (facts.seed, facts.sampler, facts.model, facts.prompt))
    summary = one_line(facts, prompts=False)
    tags = {
        "title": one_line(facts, prompts=full),
        "description": facts.parameters if full else summary,
        # The seed wrote `stable-diffusion` and its own address here. Frames of a camera or of Blender have no such artist.
        "artist": author or ("stable-diffusion" if diffusion else ""),
        "album_artist": author or ("stepwatch" if diffusion else ""),
        "comment": summary,
        "date": facts.created or "",
        "software": f"stepwatch {identity.version}",
        "parameters": facts.parameters if full else "",
        "prompt": facts.prompt_json or "" if full else "",
        "workflow": facts.workflow or "" if full else "",
    }
    cleaned = {key: clean(value, keep_whole=key in ("prompt", "workflow")) for key, value in tags.items()}
    return {key: value for key, value in cleaned.items() if value} | stamp


def one_line(facts: Facts, *, prompts: bool) -> str:
    """Return the facts in one line, as the titles of Steps Animation have them; what is unknown is left out, an endless prompt shortened."""
    parts = [
        ("", facts.prompt if prompts else None),
        ("negative", facts.negative if prompts else None),
        ("seed", facts.seed),
        ("sampler", facts.sampler),
        ("scheduler", facts.scheduler),
        ("cfgscale", facts.cfg),
        ("steps", facts.steps),
        ("model", facts.model),
    ]
    return " | ".join(f"{name} {_short(str(value))}".strip() for name, value in parts if value not in (None, ""))


def _short(text: str) -> str:
    text = " ".join(text[: 4 * _TITLE_PART].split())
    return text if len(text) <= _TITLE_PART else text[: _TITLE_PART - 1] + "…"


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(value: str, *, keep_whole: bool = False) -> str:
    """Make a text fit to be a tag in any container.

    Control characters go, apart from tab and line feed (line ends of other systems become line feeds); lone surrogates become U+FFFD; blanks
    at both ends go. A text of more than MAX_VALUE bytes is cut and ends with a remark that says so; with ``keep_whole``, for JSON that a cut
    would make useless, it is left out.
    """
    value = _CONTROLS.sub("", value.replace("\r\n", "\n").replace("\r", "\n"))
    value = _SURROGATES.sub("\ufffd", value).strip()
    data = value.encode("utf-8")
    if len(data) <= MAX_VALUE:
        return value
    if keep_whole:
        return ""
    remark = f"\n[cut by stepwatch: {len(data)} bytes were too many]"
    return data[: MAX_VALUE - len(remark)].decode("utf-8", "ignore") + remark


def read_identity(tags: Mapping[str, str]) -> Identity | None:
    """Return what an animation's tags say of where it comes from; None when they are not ours."""
    try:
        said = json.loads(tags.get("stepwatch") or tags.get("grouping") or "")
        return Identity(run=said["run"], generation=said["generation"], plan=said["plan"], version=str(said.get("version", "")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


APPLE_KEYS = frozenset({"title", "artist", "album_artist", "comment", "description", "date"})
"""Tags that an mp4 keeps in the atoms that Explorer and QuickTime read."""


def apple_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags for an mp4 with Apple's atoms (``metadata.mp4: apple``), which has room for known names only.

    The stamp of stepwatch goes where nobody looks, under ``grouping``; the full text is in ``description`` anyway; graphs have no place.
    """
    kept = {key: value for key, value in tags.items() if key in APPLE_KEYS}
    return kept | ({"grouping": tags["stepwatch"]} if "stepwatch" in tags else {})


def ffmetadata(tags: Mapping[str, str]) -> str:
    """Write tags as a file of ffmpeg's own metadata format, from which it reads exactly these values."""
    return ";FFMETADATA1\n" + "".join(f"{_escaped(key)}={_escaped(value)}\n" for key, value in tags.items())


def parse_ffmetadata(text: str) -> dict[str, str]:
    """Return the tags of the whole file from text in ffmpeg's metadata format; keys in lower case, as Matroska writes them in capitals."""
    tags: dict[str, str] = {}
    for found in re.finditer(r"((?:[^\\\n]++|\\(?:.|\Z))*+)(?:\n|\Z)", text, re.DOTALL):
        line = found.group(1)
        if line.startswith("["):
            break  # a chapter or a stream; nothing of the whole file follows
        pair = re.match(r"((?:[^\\=]++|\\.)*+)=(.*)", line, re.DOTALL)
        if pair and not line.startswith((";", "#")):
            tags.setdefault(_unescaped(pair.group(1)).lower(), _unescaped(pair.group(2)))
    return tags


def _escaped(text: str) -> str:
    escaped = re.sub(r"([=;#\\\r\n])", r"\\\1", text.replace("\0", ""))
    # ffmpeg looks for the end of a line at the one character before it, and takes the second half of an escaped backslash for an escape:
    # the next tag would become part of this one. A NUL ends the value for ffmpeg and parts the two.
    return escaped + "\0" if text.endswith("\\") else escaped


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)
