"""From a survey and a policy to a plan."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from stepwatch.core.codecs import CODECS
from stepwatch.core.model import Frame, FrameFacts, Outcome, Run, RunKey, Sidecar, Survey
from stepwatch.core.plan import RenderPlan, generation, plan_digest, plan_render
from stepwatch.core.policy import FramesPolicy, OutputPolicy, Policy, SizePolicy, TimelinePolicy
from stepwatch.errors import ConfigError, DamagedFramesError, MissingToolError, NoFramesError

ALL = frozenset(encoding.encoder for codec in CODECS.values() for encoding in codec.qualities.values())


def facts(count: int, *, size: tuple[int, int] = (64, 48), bad: tuple[int, ...] = ()) -> tuple[FrameFacts, ...]:
    return tuple(
        FrameFacts(
            frame=Frame(step=step, name=f"{step:05d}.png", size=100),
            width=size[0],
            height=size[1],
            problem="is cut off" if step in bad else None,
        )
        for step in range(1, count + 1)
    )


def run_of(found: tuple[FrameFacts, ...], *, sidecar: Sidecar | None = None) -> Run:
    return Run(key=RunKey(folder="/runs/one"), name="one", frames=tuple(one.frame for one in found), sidecar=sidecar)


def planned(
    found: tuple[FrameFacts, ...], policy: Policy | None = None, *, sidecar: Sidecar | None = None, encoders: frozenset[str] = ALL
) -> RenderPlan:
    return plan_render(run_of(found, sidecar=sidecar), Survey(facts=found), policy or Policy(), encoders=encoders)


def steps(plan: RenderPlan) -> list[int]:
    return [frame.step for frame in plan.frames]


def test_skip_first_leaves_out_the_first_frames() -> None:
    """skip_first counts frames from the start of the run, skip_last from its end."""
    plan = planned(facts(10), Policy(frames=FramesPolicy(skip_first=3, skip_last=2)))
    assert steps(plan) == [4, 5, 6, 7, 8]
    assert [frame.step for frame in plan.skipped] == [1, 2, 3, 9, 10]


def test_every_keeps_the_last_frame() -> None:
    """Every third of ten frames, and the last one whatever the count: it is the picture."""
    assert steps(planned(facts(9), Policy(frames=FramesPolicy(every=3)))) == [1, 4, 7, 9]


def test_leaving_out_everything_is_an_error_that_says_so() -> None:
    """A policy that skips all frames of a short run is named as the reason."""
    with pytest.raises(NoFramesError, match="leaves out all that can be read"):
        planned(facts(4), Policy(frames=FramesPolicy(skip_first=5)))


def test_damaged_frames_are_left_out_and_named() -> None:
    """With `damaged: skip` the others are rendered."""
    plan = planned(facts(5, bad=(2, 4)))
    assert steps(plan) == [1, 3, 5]
    assert [frame.name for frame, _ in plan.damaged] == ["00002.png", "00004.png"]


def test_damaged_frames_fail_the_render_by_policy() -> None:
    """With `damaged: fail` nothing is rendered, and the frame is named."""
    with pytest.raises(DamagedFramesError, match=r"00002\.png"):
        planned(facts(5, bad=(2,)), Policy(frames=FramesPolicy(damaged="fail")))


def test_a_run_without_a_good_frame_is_no_run() -> None:
    """Only damaged frames: exit code 66, with the first reason."""
    with pytest.raises(NoFramesError, match="is cut off"):
        planned(facts(2, bad=(1, 2)))


@pytest.mark.parametrize(("match", "canvas"), [("largest", (128, 96)), ("last", (64, 48)), ("first", (32, 24))])
def test_the_canvas_is_the_size_of_the_frame_that_the_policy_names(match: str, canvas: tuple[int, int]) -> None:
    """A run whose size changes is brought to one size."""
    small, large, middle = facts(3, size=(32, 24)), facts(3, size=(128, 96)), facts(3, size=(64, 48))
    plan = planned((small[0], large[1], middle[2]), Policy(size=SizePolicy(match=match)))  # type: ignore[arg-type]
    assert plan.canvas == canvas


def test_scale_gives_the_long_side_or_both() -> None:
    """`1024` keeps the shape, `1080x1920` gives it."""
    assert planned(facts(2), Policy(size=SizePolicy(scale="32"))).canvas == (32, 24)
    assert planned(facts(2), Policy(size=SizePolicy(scale="1080x1920"))).canvas == (1080, 1920)


def test_the_sidecars_scale_enlarges_the_canvas() -> None:
    """Frames saved at latent size become as large as the picture."""
    sidecar = Sidecar(run_id="r", state=Outcome.COMPLETE, scale=8)
    assert planned(facts(2, size=(64, 48)), sidecar=sidecar).canvas == (512, 384)


def test_odd_sizes_become_even_for_video_only() -> None:
    """65x63 is 66x64 in h264 and itself in a gif."""
    plan = planned(facts(2, size=(65, 63)), Policy(outputs=(OutputPolicy(), OutputPolicy(codec="gif"))))
    assert [(output.width, output.height) for output in plan.outputs] == [(66, 64), (65, 63)]


def test_a_missing_encoder_names_what_is_there() -> None:
    """Exit code 69, with the codecs that this ffmpeg can make."""
    with pytest.raises(MissingToolError, match=r"libsvtav1.*can make gif, h264"):
        planned(facts(2), Policy(outputs=(OutputPolicy(codec="av1"),)), encoders=frozenset({"libx264", "gif"}))


def test_crf_goes_only_where_there_is_one() -> None:
    """`crf: 18` is an option of h264, and a complaint for a gif or out of range."""
    plan = planned(facts(2), Policy(outputs=(OutputPolicy(quality=18),)))
    assert ("crf", "18") in plan.outputs[0].encoding.options
    for output in (OutputPolicy(codec="gif", quality=18), OutputPolicy(quality=60)):
        with pytest.raises(ConfigError, match="crf"):
            planned(facts(2), Policy(outputs=(output,)))


def test_a_gif_is_never_faster_than_players_honour() -> None:
    """120 fps become 50, with the same duration."""
    plan = planned(
        facts(20), Policy(timeline=TimelinePolicy(fps=Fraction(120), duration=Fraction(2)), outputs=(OutputPolicy(), OutputPolicy(codec="gif")))
    )
    video, gif = plan.outputs
    assert video.pictures == 240 + 120
    assert gif.fps == 50
    assert video.duration == gif.duration == 3


def test_an_untrusted_rate_cannot_make_an_endless_animation() -> None:
    """Where only the number of frames tells how long fps_in takes, the bound of untrusted policy holds."""
    found = facts(100)
    policy = Policy(timeline=TimelinePolicy(fps_in=Fraction(1, 1000), hold_last=Fraction(0)))
    plan = plan_render(run_of(found), Survey(facts=found), policy, encoders=ALL, longest=Fraction(600))
    assert plan.timeline.duration <= 600
    long = replace(policy, timeline=replace(policy.timeline, fps_in=Fraction(1), hold_last=Fraction(540)))
    assert plan_render(run_of(found), Survey(facts=found), long, encoders=ALL, longest=Fraction(600)).timeline.duration == 600
    legal = replace(policy, timeline=replace(policy.timeline, fps_in=Fraction(1, 5)))
    assert plan_render(run_of(found), Survey(facts=found), legal, encoders=ALL, longest=Fraction(600)).timeline.duration == 500


def test_incomplete_unless_the_sidecar_says_complete() -> None:
    """No sidecar, or one that says anything else, makes an incomplete animation."""
    said = {state: planned(facts(2), sidecar=Sidecar(run_id="r", state=state)).incomplete for state in Outcome}
    assert said == {Outcome.COMPLETE: False, Outcome.RUNNING: True, Outcome.INTERRUPTED: True, Outcome.FAILED: True}
    assert planned(facts(2)).incomplete


def test_the_plan_digest_follows_what_is_seen_and_not_what_it_is_called() -> None:
    """Another name or folder is the same plan; another duration, codec or frame is not."""
    found = facts(4)

    def digest(policy: Policy, frames: tuple[FrameFacts, ...] = found) -> str:
        plan = planned(frames, policy)
        return plan_digest(plan, plan.outputs[0])

    base = Policy()
    assert digest(replace(base, outputs=(OutputPolicy(name="other", dir="elsewhere"),))) == digest(base)
    different = [
        replace(base, outputs=(OutputPolicy(codec="vp9"),)),
        replace(base, outputs=(OutputPolicy(quality="high"),)),
        replace(base, timeline=TimelinePolicy(duration=Fraction(9))),
        replace(base, timeline=TimelinePolicy(direction="reverse")),
        replace(base, timeline=TimelinePolicy(interpolation="none")),
        replace(base, size=SizePolicy(scale="32")),
    ]
    digests = {digest(policy) for policy in different} | {digest(base), digest(base, facts(3))}
    assert len(digests) == len(different) + 2


def test_a_generation_is_names_sizes_and_contents() -> None:
    """Anything of a frame that changes makes another generation."""
    frame = Frame(step=1, name="a.png", size=10)
    base = generation((frame,), {"a.png": "00"})
    others = [
        generation((replace(frame, name="b.png"),), {"b.png": "00"}),
        generation((replace(frame, size=11),), {"a.png": "00"}),
        generation((frame,), {"a.png": "01"}),
        generation((frame, replace(frame, step=2, name="b.png")), {"a.png": "00"}),
    ]
    assert len({base, *others}) == 5


def test_classic_is_the_seeds_own_parameters() -> None:
    """The published command line of Steps Animation, option by option."""
    published = {
        "h264": ("libx264", {"preset": "medium", "crf": "23"}),
        "h265": ("libx265", {"preset": "faster", "crf": "28"}),
        "vp9": ("libvpx-vp9", {"crf": "34", "b:v": "0", "deadline": "realtime", "cpu-used": "4"}),
        "av1": ("libaom-av1", {"crf": "28", "b:v": "0", "usage": "realtime", "cpu-used": "8"}),
        "prores": ("prores_ks", {"profile:v": "3", "vendor": "apl0", "bits_per_mb": "8000"}),
    }
    for name, (encoder, options) in published.items():
        classic = CODECS[name].qualities["classic"]
        assert (classic.encoder, dict(classic.options).items() >= options.items()) == (encoder, True), name
    assert CODECS["av1"].qualities["classic"].pixels == "yuv444p"
    assert CODECS["prores"].qualities["classic"].pixels == "yuv422p10le"
    assert CODECS["av1"].qualities["default"].encoder == "libsvtav1"
    assert CODECS["av1"].qualities["default"].pixels == "yuv420p"
    assert not any(codec.qualities["classic"].follows for codec in CODECS.values())


def test_every_codec_has_every_quality_that_the_policy_can_name() -> None:
    """default, classic, high and small, for each codec of the policy."""
    assert all(set(codec.qualities) == {"default", "classic", "high", "small"} for codec in CODECS.values())


def test_skips_count_places_in_the_run_whether_or_not_they_can_be_read() -> None:
    """A damaged frame among the skipped ones changes nothing for the others."""
    policy = Policy(frames=FramesPolicy(skip_first=3, damaged="fail"))
    assert steps(planned(facts(6, bad=(1,)), policy)) == [4, 5, 6]
    assert steps(planned(facts(7, bad=(7,)), Policy(frames=FramesPolicy(every=3)))) == [1, 4, 6], "the last readable one stays"


def test_what_makes_the_motion_is_part_of_the_plan() -> None:
    """With optical flow there, mci is another animation; nothing else is, and where there is nothing between the images neither engine is asked."""

    def digest(interpolation: str, *, flow: bool, count: int = 10) -> tuple[str | None, str]:
        found = facts(count)
        policy = Policy(timeline=TimelinePolicy(interpolation=interpolation))  # type: ignore[arg-type]
        plan = plan_render(run_of(found), Survey(facts=found), policy, encoders=ALL, flow=flow)
        return plan.outputs[0].motion, plan_digest(plan, plan.outputs[0])

    assert digest("blend", flow=True) == digest("blend", flow=False)
    assert [digest("mci", flow=flow)[0] for flow in (False, True)] == ["minterpolate", "flow"]
    assert digest("mci", flow=True)[1] != digest("mci", flow=False)[1]
    assert [digest("mci", flow=True, count=count)[0] for count in (1, 301)] == [None, None]
