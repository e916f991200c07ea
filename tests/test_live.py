"""A run that is encoded while it goes on: what is taken over, what is thrown away, and what is left behind, with real frames and a real ffmpeg."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stepwatch import encoder, store, tags, visit
from stepwatch.config import load_service, resolve_for
from stepwatch.core.lifecycle import Do, Now, fingerprint
from stepwatch.core.live import Promise, promise
from stepwatch.core.metadata import read_identity
from stepwatch.core.model import Run
from stepwatch.errors import EnvironmentFault, Interrupted, MissingToolError
from stepwatch.live import Live
from tests.conftest import Daemon, sidecar_for, write_frame
from tests.test_liars import FAKE
from tests.test_service import phase_of

SIZE = (48, 32)
PLANNED = 6


OTHERS = re.compile(r"eq\(mod\(n\\?,\d+\)\\?,[1-9]")


class Ears:
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None:
        self.said.append(sentence)

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None:
        pass

    def finished(self, run_name: str) -> None:
        pass

    @property
    def encodes(self) -> int:
        """ffmpegs that were given pixels; of several that share out the pictures of one animation, the first."""
        return sum("-f rawvideo -framerate" in sentence and not OTHERS.search(sentence) for sentence in self.said)

    @property
    def thrown_away(self) -> str:
        return next((sentence for sentence in self.said if "thrown away" in sentence), "")


class Stage:
    """A run that is written frame by frame, and what a daemon does with it, one thing at a time."""

    def __init__(self, place: Path, ffmpeg: str, policy: Mapping[str, Any] | None = None, *, planned: int = PLANNED) -> None:
        self.watched = place / "watched"
        self.folder = self.watched / "run"
        self.folder.mkdir(parents=True)
        self.planned = planned
        self.ffmpeg = ffmpeg
        self.ears = Ears()
        self.stop = threading.Event()
        self.over = threading.Event()
        self.records = visit.open_records(place / "state")
        self.service_file = place / "service.yaml"
        self.set_policy(policy or {})
        self.live: Live | None = None

    def set_policy(self, policy: Mapping[str, Any]) -> None:
        timeline = {"duration": "1s", "fps": 12, "hold_last": "250ms", **policy.get("timeline", {})}
        rest = {key: value for key, value in policy.items() if key != "timeline"}
        chosen = {"outputs": [{"codec": "h264", "name": "{run}"}], **rest, "timeline": timeline}
        self.service_file.write_text(json.dumps({"version": 1, "watch": [{"path": str(self.watched)}], "policy": chosen}))
        self.service_file.chmod(0o600)
        self.service = load_service(self.service_file)

    @property
    def out(self) -> Path:
        return self.watched / "animation"

    def say(self, state: str = "running", count: int | None = None, **facts: Any) -> None:
        """Write the sidecar."""
        there = len(list(self.folder.glob("0*.png"))) if count is None else count
        told = sidecar_for(self.folder, there, names="{index:05d}.png", state=state, size=SIZE)
        told["generation"] = {**told["generation"], "steps": self.planned}  # type: ignore[dict-item]
        told["frames"] = {**told["frames"], "planned": self.planned}  # type: ignore[dict-item]
        (self.folder / ".run.json").write_text(json.dumps(told | facts))
        os.replace(self.folder / ".run.json", self.folder / "run.json")

    def frame(self, index: int, *, step: int | None = None, size: tuple[int, int] = SIZE) -> None:
        write_frame(self.folder / f".{index}.png", step=step or index + 1, size=size)
        os.replace(self.folder / f".{index}.png", self.folder / f"{index:05d}.png")

    def read(self) -> Run:
        return store.runs_in(self.folder, pattern=None)[0]

    def resolved(self) -> Any:
        return resolve_for(self.folder, service=self.service, watched=self.watched)

    def means(self) -> visit.Means:
        return visit.Means(
            records=self.records,
            ffmpeg=lambda: self.ffmpeg,
            options=visit.Options(verbose=True),
            observer=self.ears,
            stop=self.stop,
            now=lambda: Now(awake=1000.0, wall=time.time()),
            max_attempts=4,
        )

    def begin(self) -> Live | None:
        self.live = visit.go_live(self.read(), self.resolved(), means=self.means(), nice=0, news=self.over.set)
        return self.live

    def look(self) -> None:
        assert self.live is not None
        self.live.look(self.read())

    def record(self, indices: Sequence[int]) -> None:
        """Frame after frame, each with a look at it."""
        for index in indices:
            self.frame(index)
            self.look() if self.live else self.begin()

    def wait(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < end, self.ears.said
            time.sleep(0.01)

    def refusal(self) -> str:
        """Wait until the live encode is given up, and return why."""
        assert self.live is not None
        assert self.over.wait(30), self.ears.said
        return self.live.refused

    @property
    def attempts(self) -> int:
        return self.records.ledger.get(self.read().key).attempts.count  # type: ignore[union-attr]

    def advance(self, *, max_attempts: int = 4) -> visit.Step:
        """What the daemon does with the run as it is; it looks again while an ffmpeg that is just starting still has its parent's open files."""
        end = time.monotonic() + 10
        while (step := self._advance(max_attempts)).action.do is Do.WAIT and "open for writing" in step.action.reason:
            assert time.monotonic() < end
        return step

    def _advance(self, max_attempts: int) -> visit.Step:
        run = self.read()
        sighting = visit.Sighting(fingerprint=fingerprint(run), since=0.0, age=900.0)
        step = visit.advance(
            run.key,
            find=lambda _: (self.read(), self.resolved()),
            sighting=sighting,
            succeeded=False,
            means=replace(self.means(), max_attempts=max_attempts),
            live=self.live,
        )
        assert step is not None
        return step

    def close(self) -> None:
        if self.live is not None:
            self.live.close()
            self.live.join()
        self.records.ledger.close()

    @property
    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.watched.rglob(".stepwatch-*"))


@pytest.fixture
def stage(tmp_path: Path, ffmpeg: str) -> Any:
    """Makes the stage of one run; what is left open is closed."""
    stages: list[Stage] = []

    def make(policy: Mapping[str, Any] | None = None, *, program: str = ffmpeg, planned: int = PLANNED) -> Stage:
        stages.append(Stage(tmp_path / str(len(stages)), program, policy, planned=planned))
        stages[-1].say()
        return stages[-1]

    yield make
    for one in stages:
        one.close()


BLEND: Mapping[str, Any] = {}
NONE: Mapping[str, Any] = {"timeline": {"interpolation": "none"}}


@pytest.mark.parametrize(
    "policy",
    [
        BLEND,
        NONE,
        {"timeline": {"interpolation": "none", "hold_first": "500ms"}, "outputs": [{"codec": "h264", "name": "{run}", "constant_rate": True}]},
        {"timeline": {"fps": 3}},
        {"frames": {"skip_first": 2, "every": 2}},
        {"size": {"scale": "64x64"}, "outputs": [{"codec": "h264", "name": "{run}", "quality": "classic"}], "metadata": {"mp4": "apple"}},
        {"outputs": [{"codec": codec, "name": "{run}"} for codec in ("h264", "vp9", "prores")]},
        {"outputs": [{"codec": codec, "name": "{run}"} for codec in ("h265", "av1")], "size": {"scale": 96}},
        {"outputs": [{"codec": codec, "name": "{run}"} for codec in ("webp", "apng")], "metadata": {"include": "none"}},
    ],
    ids=["blend", "none", "constant-rate", "dense", "skipping", "scaled-classic-apple", "h264-vp9-prores", "h265-av1", "webp-apng"],
)
def test_what_was_encoded_live_is_the_animation(stage: Any, policy: Mapping[str, Any]) -> None:
    """A run that keeps its promise is encoded once, while it goes on; what is published says of itself just what one from the disk would."""
    here = stage(policy)
    here.record(range(PLANNED))
    here.wait(lambda: here.live.over)
    assert here.live.refused == ""
    here.say("complete")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert here.ears.thrown_away == ""
    outputs = step.result.outputs
    assert here.ears.encodes == len(outputs)
    again = here.records.ledger.get(here.read().key)
    assert [Path(output.path).exists() for output in again.renders[-1].outputs] == [True] * len(outputs)
    assert again.attempts.count == 0
    for output in outputs:
        said = read_identity(tags.read(Path(output.path), ffmpeg=here.ffmpeg))
        assert said is not None
        assert (said.run, said.generation) == ("run", again.renders[-1].generation)
    # Another visit of the same frames finds it, and takes it for what it would have made itself.
    options = visit.Options()
    repeated = visit.visit(here.read(), here.resolved(), ffmpeg=here.ffmpeg, options=options, observer=here.ears, stop=here.stop)
    assert [output.exists for output in repeated.outputs] == [True] * len(outputs), here.ears.said
    here.close()
    assert here.leftovers == []


def test_frames_that_came_before_anybody_looked_are_caught_up_with(stage: Any) -> None:
    """A daemon that starts in the middle of a run, or whose encoder is slow, feeds what is there, in order."""
    here = stage()
    for index in range(4):
        here.frame(index)
    here.begin()
    here.wait(lambda: here.live.fed == 4)
    here.record(range(4, PLANNED))
    here.say("complete")
    assert here.advance().error is None
    assert (here.ears.encodes, here.ears.thrown_away) == (1, ""), here.ears.said


def test_a_visit_waits_for_the_tail(stage: Any) -> None:
    """Where the last frames and the sidecar's last word come at once, the visit waits for the encoder, and does not begin anew."""
    here = stage()
    here.record(range(2))
    for index in range(2, PLANNED):
        here.frame(index)
    here.say("complete")
    assert here.advance().error is None
    assert (here.ears.encodes, here.ears.thrown_away) == (1, ""), here.ears.said


def rewrite_fed(here: Stage) -> None:
    here.wait(lambda: here.live and here.live.fed == 3)
    here.frame(1, step=9)


def remove_fed(here: Stage) -> None:
    here.wait(lambda: here.live and here.live.fed == 3)
    (here.folder / "00000.png").unlink()


def damage(here: Stage) -> None:
    path = here.folder / "00003.png"
    here.frame(3)
    path.write_bytes(path.read_bytes()[:-40])


def promise_less(here: Stage) -> None:
    here.planned = 5
    here.say()


SURPRISES: Mapping[str, Callable[[Stage], object]] = {
    "a fed frame is rewritten": rewrite_fed,
    "a frame is damaged": damage,
    "a frame has another size": lambda here: here.frame(3, size=(32, 48)),
    "the promise changes": promise_less,
    "a frame is lost": lambda here: here.say(frames={"name": "{index:05d}.png", "planned": 6, "lost": [3], "width": 48, "height": 32}),
    "a fed frame goes away": remove_fed,
    "there are more than promised": lambda here: here.frame(PLANNED),
    "the run ends early": lambda here: here.say("complete"),
}


@pytest.mark.parametrize("surprise", SURPRISES)
def test_any_surprise_throws_the_live_encode_away_and_the_run_is_rendered_from_the_disk(stage: Any, surprise: str) -> None:
    """Whatever is not as promised ends it at once, leaves nothing behind, costs no attempt, and the animation has what is really there."""
    here = stage()
    here.record(range(3))
    SURPRISES[surprise](here)
    here.look()
    assert here.refusal()
    here.wait(lambda: here.live.gone)
    assert here.leftovers == []
    assert here.records.ledger.get(here.read().key).attempts.count == 0
    here.say("complete")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert step.result.found == len(list(here.folder.glob("0*.png")))
    assert Path(step.result.outputs[0].path).exists()


def test_a_frame_rewritten_behind_the_encoder_is_not_taken_over(stage: Any) -> None:
    """A frame that changes after everything was encoded is seen by the visit, which then encodes what is there now."""
    here = stage()
    here.record(range(PLANNED))
    here.wait(lambda: here.live.over)
    here.frame(2, step=11)
    here.say("complete")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert "rewritten" in here.ears.thrown_away
    assert here.ears.encodes == 2


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"timeline": {"duration": "2s"}}, "policy"),
        ({"outputs": [{"codec": "h264", "name": "{run}", "dir": "elsewhere"}]}, "policy"),
        ({"metadata": {"author": "somebody"}}, "policy"),
    ],
)
def test_an_edited_policy_counts(stage: Any, edit: Mapping[str, Any], words: str) -> None:
    """The policy that counts is that of the end: what was encoded by an earlier one is thrown away."""
    here = stage()
    here.record(range(PLANNED))
    here.wait(lambda: here.live.over)
    here.set_policy(edit)
    here.say("complete")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert words in here.ears.thrown_away
    assert here.ears.encodes == 2


def test_one_output_that_fails_does_not_spoil_the_other(stage: Any, tmp_path: Path, ffmpeg: str) -> None:
    """An ffmpeg that dies takes its own output with it: the other is taken over, and the failed one rendered from the disk."""
    broken = tmp_path / "broken"
    mark = tmp_path / "failed-once"
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *pipe:0*libvpx*) [ -e {mark} ] || {{ touch {mark}; echo "[error] no" >&2; exit 3; }};; esac\nexec "{ffmpeg}" "$@"\n'
    )
    broken.chmod(0o755)
    here = stage({"outputs": [{"codec": "h264", "name": "{run}"}, {"codec": "vp9", "name": "{run}"}]}, program=str(broken))
    here.record(range(PLANNED))
    here.wait(lambda: here.live.over)
    here.say("complete")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert [Path(output.path).suffix for output in step.result.outputs] == [".mp4", ".webm"]
    assert (here.ears.encodes, mark.exists()) == (3, True)


@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_a_live_file_that_does_not_hold_is_encoded_anew_at_once(stage: Any, where: str) -> None:
    """Whatever has happened to the file since it was seen, it is not published; the same visit makes another one, and it costs no attempt."""
    here = stage()
    here.record(range(PLANNED))
    here.wait(lambda: here.live.over)
    (path,) = here.out.glob(".stepwatch-*.mp4")
    content = bytearray(path.read_bytes())
    spot = {"start": content.index(b"mdat") + 40, "middle": (content.index(b"mdat") + len(content)) // 2, "end": len(content) - 9}[where]
    content[spot] ^= 0x10
    path.write_bytes(content)
    here.say("complete")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert any("encoded anew" in sentence for sentence in here.ears.said)
    assert (here.ears.encodes, len(list(here.out.glob("*.mp4")))) == (2, 1)
    assert here.records.ledger.get(here.read().key).attempts.count == 0


@pytest.mark.parametrize("lie", ["swaps two images", "shows the truth to the pipe only", "killed"])
def test_a_lie_that_is_told_while_a_run_goes_on_is_found_out(stage: Any, tmp_path: Path, ffmpeg: str, lie: str) -> None:
    """What a lying ffmpeg made live is not published: the run is encoded anew, and costs no attempt, and a second lie is a failed render."""
    program, log = tmp_path / "liar", tmp_path / "pids"
    program.write_text(FAKE.format(python=sys.executable, real=ffmpeg, mode=lie, log=str(log)))
    program.chmod(0o755)
    here = stage({"timeline": {"hold_last": "0s"}}, program=str(program), planned=8)
    here.record(range(8))
    here.wait(lambda: here.live.over)
    here.say("complete")
    step = here.advance()
    assert (here.ears.encodes, len(log.read_text().split())) == (2, 2)
    assert step.result.phase == "render-failed"
    assert [path.name for path in here.out.iterdir() if not path.name.startswith(".stepwatch-")] == []
    here.close()
    assert here.leftovers == []


def test_nothing_is_started_for_a_size_that_is_made_up(stage: Any) -> None:
    """The first frame is held against the promise before any ffmpeg is told of its size."""
    here = stage()
    here.say(frames={"name": "{index:05d}.png", "planned": PLANNED, "width": 10**6, "height": 10**6})
    here.record(range(1))
    assert "48x32, and 1000000x1000000 was promised" in here.refusal()
    here.wait(lambda: here.live.gone)
    assert (here.ears.encodes, here.attempts, here.out.exists()) == (0, 0, False)


def test_it_leaves_the_processor_to_the_host(stage: Any) -> None:
    """Each ffmpeg of a live encode has one thread for its codec and one for its filters."""
    here = stage({"outputs": [{"codec": "h264", "name": "{run}"}, {"codec": "vp9", "name": "{run}"}]})
    here.record(range(2))
    here.wait(lambda: here.ears.encodes == 2)
    commands = [sentence for sentence in here.ears.said if "-f rawvideo -framerate" in sentence]
    assert all(" -threads 1 " in command and " -filter_complex_threads 1 " in command for command in commands)


def test_no_ffmpeg_costs_the_head_start_alone(stage: Any) -> None:
    """A live encode that cannot begin is no failure of the run."""
    here = stage(program="/nowhere/ffmpeg")
    here.record(range(3))
    with pytest.raises(MissingToolError):
        encoder.capabilities("/nowhere/ffmpeg")
    assert "cannot be" in here.refusal()
    here.wait(lambda: here.live.gone)
    assert here.records.ledger.get(here.read().key).attempts.count == 0


def test_what_killed_a_daemon_is_not_encoded_live_again(stage: Any) -> None:
    """The attempt stands until it is taken back: a run whose live encode ended with its daemon is rendered when it has ended, and not before."""
    here = stage()
    here.record(range(3))
    here.wait(lambda: here.live.fed == 3)
    assert here.records.ledger.get(here.read().key).attempts.count == 1
    assert visit.go_live(here.read(), here.resolved(), means=here.means(), nice=0, news=lambda: None) is None
    here.live.close()
    here.live.join()
    assert here.records.ledger.get(here.read().key).attempts.count == 0
    assert here.leftovers == []


def test_a_run_that_stalls_as_it_was_found_has_all_its_attempts(stage: Any) -> None:
    """Where nothing came since its live encode began, that attempt is not held against the run: even one is enough to render it."""
    here = stage()
    for index in range(3):
        here.frame(index)
    here.begin()
    here.wait(lambda: here.live.fed == 3)
    assert here.attempts == 1
    step = here.advance(max_attempts=1)
    assert (step.action.do, step.error) == (Do.RENDER, None), step.action.reason
    assert here.attempts == 0


def test_an_attempt_of_somebody_else_is_not_taken_back(stage: Any) -> None:
    """A live encode that had no room to begin leaves the attempt alone that a render by hand is at."""
    here = stage()
    here.frame(0)
    run = here.read()
    here.records.ledger.begin_attempt(run.key, run.run_id, run.name, str(here.watched), fingerprint(run), time.time(), 0.5)
    promised = promise(run, here.resolved().policy)
    assert isinstance(promised, Promise)

    def begin() -> None:
        raise EnvironmentFault("no room")

    means = here.means()
    call_off = lambda: here.records.ledger.refund_attempt(run.key)  # noqa: E731
    here.live = Live(promised, here.resolved(), ffmpeg=means.ffmpeg, observer=here.ears, nice=0, begin=begin, call_off=call_off, news=here.over.set)
    assert here.refusal() == "no room"
    here.wait(lambda: here.live.gone)
    assert here.attempts == 1


def test_frames_are_not_read_again_when_they_were_read_live(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The visit knows the contents of files that are the very ones that were fed."""
    here = stage()
    here.record(range(PLANNED))
    here.wait(lambda: here.live.over)
    here.say("complete")
    reads: list[str] = []
    real = Image.Image.load
    monkeypatch.setattr("stepwatch.frames.read", lambda *_: reads.append("read"))
    monkeypatch.setattr("stepwatch.frames.digest", lambda *_: reads.append("digest"))
    monkeypatch.setattr("stepwatch.frames.decode", lambda *_, **__: reads.append("decode"))
    assert here.advance().action.do is Do.RENDER
    assert reads == []
    assert real is Image.Image.load


# --- runs that end early ------------------------------------------------------------------------------------------------------------------


RETIME: Mapping[str, Any] = {"timeline": {"early_end": "retime", "hold_first": "250ms"}}


@pytest.mark.parametrize("how", ["interrupted", "complete", "stalled"])
@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "vp9", "prores"])
def test_a_picture_for_each_image_only_needs_other_times_when_a_run_ends_early(stage: Any, codec: str, how: str) -> None:
    """Without interpolation an interrupted run is not encoded anew: its pictures get the times that they would have had."""
    here = stage({**NONE, "outputs": [{"codec": codec, "name": "{run}"}], "size": {"scale": 96}})
    here.record(range(4))
    here.wait(lambda: here.live.fed == 4)
    here.say("running" if how == "stalled" else how)
    step = here.advance()
    assert step.error is None, here.ears.said
    assert (here.ears.encodes, here.ears.thrown_away) == (1, ""), here.ears.said
    output = step.result.outputs[0]
    assert (output.frames, output.duration, step.result.found) == (4, Fraction(5, 4), 4)
    assert ("-incomplete" in output.path) == (how != "complete")
    repeated = visit.visit(here.read(), here.resolved(), ffmpeg=here.ffmpeg, options=visit.Options(), observer=here.ears, stop=here.stop)
    assert repeated.outputs[0].exists, here.ears.said
    here.close()
    assert here.leftovers == []


@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "vp9", "prores"])
def test_a_cross_fade_gets_other_times_where_the_policy_says_so(stage: Any, codec: str) -> None:
    """``early_end: retime``: the animation of a run that ends early lasts as long as it should, with the pictures that were encoded."""
    here = stage({**RETIME, "outputs": [{"codec": codec, "name": "{run}"}], "size": {"scale": 96}})
    here.record(range(4))
    here.wait(lambda: here.live.fed == 4)
    here.say("interrupted")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert (here.ears.encodes, here.ears.thrown_away) == (1, ""), here.ears.said
    output = step.result.outputs[0]
    assert output.duration == Fraction(3, 2)
    assert output.frames > 8
    assert any(f"verified {output.frames} pictures, 1.500 s" in sentence for sentence in here.ears.said)


@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "vp9"])
def test_a_cross_fade_that_never_came_ends_with_the_last_image_that_did(stage: Any, codec: str) -> None:
    """Images that begin between two pictures are seen in both of them; the last one that came, without its successor, by itself."""
    timeline = {**RETIME["timeline"], "duration": "1100ms", "fps": 30}
    here = stage({"timeline": timeline, "outputs": [{"codec": codec, "name": "{run}"}], "size": {"scale": 96}})
    here.record(range(4))
    here.wait(lambda: here.live.fed == 4)
    here.say("interrupted")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert (here.ears.encodes, here.ears.thrown_away) == (1, ""), here.ears.said
    assert any("force_key_frames" in sentence for sentence in here.ears.said), "it was not woven"
    assert step.result.outputs[0].duration == Fraction(33 + 8 + 8, 30)


@pytest.mark.parametrize("policy", [NONE, RETIME], ids=["none", "retime"])
@pytest.mark.parametrize("how", ["interrupted", "stalled"])
def test_a_run_that_ends_behind_a_hole_is_rendered_from_the_disk(stage: Any, how: str, policy: Mapping[str, Any]) -> None:
    """What lies behind a frame that never came is not waited for: it is the visit's, like everything before it."""
    here = stage(policy)
    here.record(range(2))
    here.wait(lambda: here.live.fed == 2)
    here.frame(3)
    here.say("running" if how == "stalled" else how)
    step = here.advance()
    assert step.error is None, here.ears.said
    assert (step.result.found, here.ears.encodes) == (3, 2)
    assert here.ears.thrown_away


def test_a_last_word_that_is_read_before_the_last_frame_does_not_end_it(stage: Any) -> None:
    """A folder is listed before its sidecar is read: one that has ended with more frames than were listed is not taken for one that ended early."""
    here = stage()
    here.record(range(PLANNED - 1))
    here.wait(lambda: here.live.fed == PLANNED - 1)
    listed = here.read()
    here.frame(PLANNED - 1)
    here.say("complete")
    here.live.look(replace(listed, sidecar=here.read().sidecar))
    assert here.advance().error is None
    assert (here.ears.encodes, here.ears.thrown_away) == (1, ""), here.ears.said


@pytest.mark.parametrize("policy", [BLEND, {**NONE, "frames": {"every": 3}}, {**RETIME, "outputs": [{"codec": "webp", "name": "{run}"}]}])
def test_what_other_times_cannot_make_right_is_encoded_anew(stage: Any, policy: Mapping[str, Any]) -> None:
    """A cross-fade by ``rerender``, a last frame that was left out, an animated image: rendered from the disk."""
    here = stage(policy)
    here.record(range(3))
    here.wait(lambda: here.live.fed == 3 or here.live.over)
    here.say("interrupted")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert here.ears.encodes == 2
    assert here.ears.thrown_away


def only_other_times(here: Stage, shell: str) -> None:
    """Have the ffmpeg that would give other times do something else."""
    program = here.watched.parent / "ffmpeg"
    program.write_text(f'#!/bin/sh\ncase "$*" in *setts=pts*) {shell};; esac\nexec "{here.ffmpeg}" "$@"\n')
    program.chmod(0o755)
    here.ffmpeg = str(program)


@pytest.mark.parametrize("shell", ["exit 0", "exit 1", 'for last; do :; done; : > "${last#file:}"; exit 0'], ids=["nothing", "fails", "empty"])
def test_other_times_that_cannot_be_given_cost_the_head_start_alone(stage: Any, shell: str) -> None:
    """Whatever becomes of the ffmpeg that gives other times: the run is no worse off than without a live encode."""
    here = stage(NONE)
    only_other_times(here, shell)
    here.record(range(4))
    here.wait(lambda: here.live.fed == 4)
    here.say("interrupted")
    step = here.advance()
    assert step.error is None, here.ears.said
    assert (step.result.outputs[0].frames, here.ears.encodes, here.attempts) == (4, 2, 0)


def test_a_visit_that_waits_for_other_times_can_be_stopped(stage: Any) -> None:
    """A daemon that ends does not wait for an ffmpeg that hangs."""
    here = stage(NONE)
    only_other_times(here, "exec sleep 60")
    here.record(range(4))
    here.wait(lambda: here.live.fed == 4)
    here.say("interrupted")
    threading.Timer(1, here.stop.set).start()
    with pytest.raises(Interrupted):
        here.advance()
    assert here.attempts == 0


# --- in the daemon ------------------------------------------------------------------------------------------------------------------------


def test_the_daemon_encodes_while_a_run_goes_on(daemon: Daemon) -> None:
    """A run that a hook writes into a watched folder is encoded once, its progress is in the status, and nothing is left of it but the animation."""
    daemon.configure({"detect": {"settle": "30s", "stall": "60s"}})
    daemon.start("-v")
    run = daemon.watched / "run"
    run.mkdir()

    def say(state: str, count: int) -> None:
        told = sidecar_for(run, count, names="{index:05d}.png", state=state, size=SIZE)
        told["frames"] = {**told["frames"], "planned": 5}  # type: ignore[dict-item]
        told["generation"] = {}
        (run / ".run.json").write_text(json.dumps(told))
        os.replace(run / ".run.json", run / "run.json")

    told = sidecar_for(run, 0, names="{index:05d}.png", state="running", size=SIZE)
    # A hook that learns the size from the first frame promises it a moment later.
    told["frames"] = {**told["frames"], "planned": 5, "width": None, "height": None}  # type: ignore[dict-item]
    told["generation"] = {}
    (run / "run.json").write_text(json.dumps(told))
    write_frame(run / "00000.png", step=1, size=SIZE)
    daemon.wait_until(lambda: phase_of(daemon, "run") == "recording")
    say("running", 1)
    for index in range(1, 5):
        write_frame(run / f".{index}.png", step=index + 1, size=SIZE)
        os.replace(run / f".{index}.png", run / f"{index:05d}.png")
        daemon.wait_until(lambda: "encoded while it goes on: 5 frames are promised" in daemon.log)
    daemon.wait_until(lambda: [one["live"] for one in daemon.status()["runs"]] == [{"encoded": 5, "promised": 5}])
    inspected = json.loads(daemon.run("inspect", str(run), "--json").stdout)["runs"][0]
    assert inspected["live"] == {"possible": True, "reason": None}
    backwards = json.loads(daemon.run("inspect", str(run), "--json", "--set", "timeline.direction=reverse").stdout)["runs"][0]
    assert backwards["live"] == {"possible": False, "reason": "reverse begins with what comes last"}
    say("complete", 5)
    daemon.wait_until(lambda: daemon.animations() == ["run.mp4"])
    daemon.wait_at_rest()
    assert daemon.log.count("-f rawvideo -framerate") == 1
    assert daemon.leftovers() == []
    assert daemon.end() == 0


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_daemon_that_ends_leaves_no_encoder_and_the_next_one_renders(daemon: Daemon, how: str) -> None:
    """However a daemon ends in the middle of a live encode, its ffmpeg ends too, and the run gets its one animation from the next daemon."""
    daemon.configure({"detect": {"stall": "60s"}})
    daemon.start("-v")
    run = daemon.watched / "run"
    run.mkdir()
    told = sidecar_for(run, 0, names="{index:05d}.png", state="running", size=SIZE)
    told["frames"] = {**told["frames"], "planned": 5}  # type: ignore[dict-item]
    (run / "run.json").write_text(json.dumps(told))
    for index in range(3):
        write_frame(run / f"{index:05d}.png", step=index + 1, size=SIZE)
    daemon.wait_until(lambda: "-f rawvideo -framerate" in daemon.log)
    assert daemon.process is not None
    if how == "SIGTERM":
        assert daemon.end() == 0
        assert daemon.leftovers() == []
    else:
        daemon.process.kill()
        daemon.process.wait()
    daemon.wait_until(lambda: not _encoders(daemon.watched))
    daemon.start()
    for index in range(3, 5):
        write_frame(run / f"{index:05d}.png", step=index + 1, size=SIZE)
    (run / "run.json").write_text(json.dumps(sidecar_for(run, 5, names="{index:05d}.png", state="complete", size=SIZE)))
    daemon.wait_until(lambda: daemon.animations() == ["run.mp4"])
    daemon.wait_at_rest()
    assert daemon.leftovers() == []
    assert daemon.animations() == ["run.mp4"]


def _encoders(watched: Path) -> list[str]:
    """Processes that write below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(watched / "animation") in said:
            found.append(process.name)
    return found
