"""Layers become one policy by rules that do not depend on who wrote them, only on their order and on trust."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.policy import (
    LONGEST,
    MOST_OUTPUTS,
    PRESETS,
    FileFacts,
    Layer,
    Leaf,
    Looks,
    Policy,
    Reset,
    ServiceConfig,
    Setting,
    Stricter,
    distrust,
    leaf_of,
    leaves,
    resolve,
)
from stepwatch.errors import UsageError


def layer(name: str = "file", /, *, distrust: str = "", preset_folder: str = "", **settings: Any) -> Layer:
    """A layer whose keyword names are keys, with __ for the dots."""
    made = tuple(Setting(key=key.replace("__", "."), value=value, origin=f"{name}:{line}") for line, (key, value) in enumerate(settings.items(), 1))
    return Layer(name=name, settings=made, folder=f"/{name}", preset_folder=preset_folder, distrust=distrust)


def stranger(name: str = "theirs", /, **settings: Any) -> Layer:
    """A layer of somebody whom nobody trusts."""
    return layer(name, distrust="the file belongs to bob", **settings)


# --- merging --------------------------------------------------------------------------------------------------------------------------------


def test_without_layers_everything_is_the_default() -> None:
    """No layer at all gives the policy of the dataclasses, and every origin says so."""
    resolution = resolve([], watched="/w")
    assert resolution.policy == Policy()
    assert set(resolution.origins.values()) == {"default"}
    assert set(resolution.origins) == {key.replace("*", "0") for key in leaves()}
    assert resolution.folders == ("/w",)


def test_nearer_layer_wins_key_by_key() -> None:
    """Mappings merge: a nearer layer changes the keys it names and leaves the others of the section alone."""
    resolution = resolve([layer("far", timeline__duration=Fraction(5), timeline__fps=Fraction(24)), layer("near", timeline__duration=Fraction(7))])
    assert (resolution.policy.timeline.duration, resolution.policy.timeline.fps) == (Fraction(7), Fraction(24))
    assert resolution.origins["timeline.duration"] == "near:1"
    assert resolution.origins["timeline.fps"] == "far:2"


def test_a_list_of_outputs_replaces_the_list_below() -> None:
    """Lists replace: nothing of the lower layer's outputs shines through."""
    far = layer("far", outputs=2, outputs__0__codec="gif", outputs__0__dir="x", outputs__1__codec="webp")
    resolution = resolve([far, layer("near", outputs=1, outputs__0__quality="high")], watched="/w")
    (output,) = resolution.policy.outputs
    assert (output.codec, output.quality, output.dir) == ("h264", "high", None)
    assert resolution.folders == ("/w",)
    assert "outputs.1.codec" not in resolution.origins


def test_one_field_of_an_output_can_be_changed_by_its_index() -> None:
    """``outputs.1.codec`` alone changes that output and keeps the list."""
    resolution = resolve([layer("far", outputs=2, outputs__0__codec="gif"), layer("--set", outputs__1__codec="apng")])
    assert [output.codec for output in resolution.policy.outputs] == ["gif", "apng"]


def test_an_output_that_is_not_there_is_a_usage_error() -> None:
    """An index behind the end names how many outputs there are."""
    with pytest.raises(UsageError, match=r"outputs\.3\.codec: there is only one output"):
        resolve([layer("--set", outputs__3__codec="gif")])


def test_null_goes_back_to_the_built_in_default() -> None:
    """A reset forgets all layers below, and says who reset it."""
    resolution = resolve([layer("far", frames__every=3), layer("near", frames__every=Reset.DEFAULT)])
    assert resolution.policy.frames.every == 1
    assert resolution.origins["frames.every"] == "default (reset by near:1)"


def test_null_for_a_section_resets_all_of_it() -> None:
    """A section that is null forgets each of its keys; a layer above may set them again."""
    far = layer("far", timeline__fps_in=Fraction(3), timeline__interpolation="mci", size__scale="512")
    resolution = resolve([far, layer("near", timeline=Reset.DEFAULT), layer("nearest", timeline__hold_last=Fraction(4))])
    assert resolution.policy.timeline == dataclasses.replace(Policy().timeline, hold_last=Fraction(4))
    assert resolution.policy.size.scale == "512"


def test_null_for_outputs_is_the_default_list() -> None:
    """Outputs that are null are the one default output."""
    assert resolve([layer("far", outputs=2), layer("near", outputs=Reset.DEFAULT)]).policy.outputs == Policy().outputs


@pytest.mark.parametrize(("first", "second"), [("duration", "fps_in"), ("fps_in", "duration")])
def test_of_duration_and_fps_in_the_nearer_one_counts(first: str, second: str) -> None:
    """Setting one of the two ways to say how long forgets the other one of the layers below."""
    far: dict[str, Any] = {f"timeline__{first}": Fraction(7)}
    near: dict[str, Any] = {f"timeline__{second}": Fraction(3)}
    layers = [layer("far", **far), layer("near", **near)]
    timeline = resolve(layers).policy.timeline
    assert (timeline.duration, timeline.fps_in) == ((Fraction(10), Fraction(3)) if second == "fps_in" else (Fraction(3), None))


def test_a_reset_does_not_forget_the_rival() -> None:
    """Duration back to its default says nothing about fps_in."""
    layers = [layer("far", timeline__fps_in=Fraction(3)), layer("near", timeline__duration=Reset.DEFAULT)]
    assert resolve(layers).policy.timeline.fps_in == 3


def test_paths_are_relative_to_the_layer_that_set_them() -> None:
    """Each output remembers the folder of the layer whose ``dir`` counts; without one it is the watched folder."""
    far = layer("far", outputs=2, outputs__0__dir="a")
    assert resolve([far], watched="/w").folders == ("/far", "/w")
    assert resolve([far, layer("near", outputs__1__dir="b")], watched="/w").folders == ("/far", "/near")
    assert resolve([far, layer("near", outputs__0__dir=Reset.DEFAULT)], watched="/w").folders == ("/w", "/w")


# --- presets --------------------------------------------------------------------------------------------------------------------------------


def test_the_preset_steps_animation_is_the_seed() -> None:
    """The preset has the extension's own defaults, to the letter."""
    resolution = resolve([layer("near", preset="steps-animation")], watched="/w")
    policy = resolution.policy
    assert (policy.timeline.duration, policy.timeline.fps, policy.timeline.interpolation) == (Fraction(10), Fraction(30), "mci")
    assert (policy.timeline.hold_first, policy.timeline.hold_last) == (Fraction(0), Fraction(0))
    assert (policy.frames.skip_first, policy.detect.incomplete, policy.create) == (5, "render", True)
    assert (policy.cleanup.intermediates, policy.cleanup.skipped) == ("delete", "clear")
    (output,) = policy.outputs
    assert (output.codec, output.quality, output.name, output.dir) == ("h264", "classic", "{seed}-{prompt:.96}", "../animation")
    assert resolution.folders == ("/near",)
    assert resolution.origins["frames.skip_first"] == "preset steps-animation (near:1)"


def test_a_preset_lies_right_below_the_layer_that_names_it() -> None:
    """It covers what lower layers say, and gives way to its own file and everything nearer."""
    far = layer("far", timeline__fps=Fraction(24), frames__skip_first=1, timeline__direction="reverse")
    near = layer("near", frames__skip_first=2, preset="steps-animation")
    resolution = resolve([far, near, layer("nearest", timeline__interpolation="none")])
    assert resolution.policy.timeline.fps == 30
    assert resolution.policy.frames.skip_first == 2
    assert resolution.policy.timeline.direction == "reverse"
    assert resolution.policy.timeline.interpolation == "none"


def test_a_preset_on_the_command_line_starts_its_paths_at_the_watched_folder() -> None:
    """A layer may say that its preset's paths are relative to another folder than its own."""
    assert resolve([layer("--set", preset_folder="/w", preset="steps-animation")], watched="/w").folders == ("/w",)


def test_null_for_preset_names_none() -> None:
    """A nearer null takes the name away, not the keys that the farther file brought with its preset."""
    resolution = resolve([layer("far", preset="steps-animation"), layer("near", preset=Reset.DEFAULT)])
    assert resolution.policy.preset is None
    assert resolution.policy.frames.skip_first == 5


def test_every_preset_holds_only_known_keys_of_the_right_choices() -> None:
    """A preset cannot name a key that the model does not have."""
    for preset in PRESETS.values():
        for key in preset:
            assert key == "outputs" or leaf_of(key).name == key.rpartition(".")[2]


# --- properties -----------------------------------------------------------------------------------------------------------------------------

VALUES: dict[str, st.SearchStrategy[object]] = {
    "timeline.fps": st.integers(1, 99).map(Fraction),
    "timeline.interpolation": st.sampled_from(["none", "blend", "mci"]),
    "frames.every": st.integers(1, 9),
    "frames.skip_first": st.integers(0, 9),
    "cleanup.intermediates": st.sampled_from(["keep", "trash", "delete"]),
    "size.scale": st.sampled_from(["256", "64x48"]),
    "create": st.booleans(),
    "preset": st.just("steps-animation"),
}


@st.composite
def layers_of_settings(draw: st.DrawFn) -> list[Layer]:
    """A few trusted layers, each with some keys set, reset, or left alone."""
    made = []
    for number in range(draw(st.integers(0, 5))):
        keys = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True))
        settings: dict[str, Any] = {key.replace(".", "__"): Reset.DEFAULT if draw(st.integers(0, 3)) == 0 else draw(VALUES[key]) for key in keys}
        made.append(layer(f"layer{number}", **settings))
    return made


@given(layers_of_settings())
def test_each_key_has_the_value_of_the_nearest_layer_that_speaks_of_it(layers: list[Layer]) -> None:
    """For any stack: the nearest word counts, null means the default, and a preset speaks just before its own layer."""
    resolution = resolve(layers)
    for key in VALUES:
        expected, origin = leaf_of(key).default, "default"
        for each in layers:
            said = {setting.key: setting for setting in each.settings}
            named = said.get("preset")
            if named and named.value is not Reset.DEFAULT and key in PRESETS["steps-animation"]:
                expected, origin = PRESETS["steps-animation"][key], f"preset steps-animation ({named.origin})"
            if key in said:
                reset = said[key].value is Reset.DEFAULT
                expected = leaf_of(key).default if reset else said[key].value
                origin = f"default (reset by {said[key].origin})" if reset else said[key].origin
        value: object = resolution.policy
        for part in key.split("."):
            value = getattr(value, part)
        assert value == expected
        assert resolution.origins[key] == origin


@given(layers_of_settings(), layers_of_settings())
def test_an_untrusted_layer_never_loosens_anything(below: list[Layer], theirs: list[Layer]) -> None:
    """Whatever strangers write above trusted layers: cleanup is at most as strong, nothing is created that was not, no other key moves."""
    trusted = resolve(below).policy
    mixed = resolve([*below, *(dataclasses.replace(each, distrust="it is a stranger's") for each in theirs)]).policy
    order = ("keep", "trash", "delete")
    assert order.index(mixed.cleanup.intermediates) <= order.index(trusted.cleanup.intermediates)
    assert mixed.cleanup.skipped == trusted.cleanup.skipped
    assert mixed.create <= trusted.create
    assert (mixed.detect, mixed.live, mixed.preset) == (trusted.detect, trusted.live, trusted.preset)
    assert [output.dir for output in mixed.outputs] == [output.dir for output in trusted.outputs]


# --- trust ----------------------------------------------------------------------------------------------------------------------------------


def test_a_stranger_may_say_how_a_clip_looks() -> None:
    """Timeline, size, codec, quality, name and skips are free within the bounds."""
    theirs = stranger(
        timeline__duration=Fraction(600),
        timeline__fps=Fraction(120),
        size__scale="4096",
        frames__skip_first=9,
        outputs=1,
        outputs__0__codec="gif",
        outputs__0__quality=30,
        outputs__0__name="{run}",
    )
    resolution = resolve([theirs])
    assert resolution.warnings == ()
    assert (resolution.policy.timeline.duration, resolution.policy.size.scale, resolution.policy.outputs[0].codec) == (Fraction(600), "4096", "gif")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cleanup.intermediates", "delete"),
        ("cleanup.intermediates", "trash"),
        ("cleanup.skipped", "clear"),
        ("cleanup.grace", Fraction(0)),
        ("frames.pattern", "numbered"),
        ("frames.append", True),
        ("frames.damaged", "fail"),
        ("detect.incomplete", "render"),
        ("detect.min_frames", 1),
        ("timeline.early_end", "retime"),
        ("live", "off"),
        ("preset", "steps-animation"),
        ("timeline.duration", Fraction(601)),
        ("timeline.fps", Fraction(121)),
        ("timeline.fps_in", Fraction(121)),
        ("timeline.hold_last", Fraction(601)),
        ("size.scale", "4097"),
        ("size.scale", "16x5000"),
    ],
)
def test_a_stranger_is_refused_what_is_not_looks(key: str, value: object) -> None:
    """Everything else drops out with a warning that names file, line and key."""
    theirs = Layer(name="theirs", settings=(Setting(key=key, value=value, origin="theirs:3"),), distrust="the file belongs to bob")
    resolution = resolve([theirs])
    assert resolution.policy == Policy()
    (warning,) = resolution.warnings
    assert warning.startswith(f"theirs:3: {key}: ignored, because the file belongs to bob; ")


def test_a_stranger_cannot_choose_the_folder_of_an_output() -> None:
    """The list of outputs counts, the place in it does not."""
    resolution = resolve([stranger(outputs=1, outputs__0__codec="gif", outputs__0__dir="/tmp")], watched="/w")
    assert (resolution.policy.outputs[0].codec, resolution.policy.outputs[0].dir, resolution.folders) == ("gif", None, ("/w",))
    assert len(resolution.warnings) == 1


def test_a_stranger_gets_four_outputs_at_most() -> None:
    """A longer list drops out as a whole, with one warning."""
    many: dict[str, Any] = {f"outputs__{index}__codec": "gif" for index in range(MOST_OUTPUTS + 1)}
    resolution = resolve([stranger(outputs=MOST_OUTPUTS + 1, **many)])
    assert resolution.policy.outputs == Policy().outputs
    assert len(resolution.warnings) == 1


def test_a_stranger_may_make_promises_about_files_stricter() -> None:
    """From delete to trash or keep, from full metadata to none, from an animation to none."""
    own = layer(cleanup__intermediates="delete", cleanup__skipped="clear")
    theirs = stranger(cleanup__intermediates="trash", cleanup__skipped="keep", metadata__include="none", create=False)
    resolution = resolve([own, theirs])
    assert resolution.warnings == ()
    policy = resolution.policy
    assert (policy.cleanup.intermediates, policy.cleanup.skipped, policy.metadata.include, policy.create) == ("trash", "keep", "none", False)


def test_a_stranger_cannot_publish_prompts_or_start_what_is_switched_off() -> None:
    """Metadata that the owner keeps to himself stays so, and create: false stays false."""
    own = layer(metadata__include="none", create=False)
    resolution = resolve([own, stranger(metadata__include="full", create=True)])
    assert (resolution.policy.metadata.include, resolution.policy.create) == ("none", False)
    assert len(resolution.warnings) == 2


def test_a_strangers_null_is_judged_like_the_default_it_means() -> None:
    """Null may reset looks and make cleanup stricter; it may not bring back what the owner has switched off."""
    own = layer(cleanup__intermediates="delete", metadata__include="none", timeline__fps=Fraction(12), detect__min_frames=9)
    theirs = stranger(cleanup=Reset.DEFAULT, metadata__include=Reset.DEFAULT, timeline=Reset.DEFAULT, detect=Reset.DEFAULT)
    policy = resolve([own, theirs]).policy
    assert (policy.cleanup.intermediates, policy.metadata.include, policy.timeline.fps, policy.detect.min_frames) == ("keep", "none", Fraction(30), 9)


def test_a_stranger_gets_ten_minutes_with_all_holds() -> None:
    """Three times that are each allowed are not allowed together; the owner's stay."""
    own = layer(timeline__duration=Fraction(20))
    resolution = resolve([own, stranger(timeline__duration=Fraction(500), timeline__hold_last=Fraction(200), timeline__interpolation="none")])
    assert (resolution.policy.timeline.duration, resolution.policy.timeline.hold_last) == (Fraction(20), Fraction(1))
    assert resolution.policy.timeline.interpolation == "none"
    assert "700 seconds" in resolution.warnings[0]


def test_an_owner_may_exceed_the_bounds_of_strangers() -> None:
    """A long animation of the owner's survives a stranger's harmless word."""
    resolution = resolve([layer(timeline__duration=Fraction(3600)), stranger(timeline__hold_first=Fraction(0), timeline__direction="reverse")])
    assert resolution.policy.timeline.duration == 3600
    assert resolution.warnings == ()


def test_fps_in_of_a_stranger_leaves_a_limit_to_the_plan() -> None:
    """How long fps_in makes the animation is known with the frames only, so the limit goes along; an owner's has none."""
    assert resolve([stranger(timeline__fps_in=Fraction(1, 10))]).longest == LONGEST
    assert resolve([layer(timeline__fps_in=Fraction(1, 10))]).longest is None
    assert resolve([stranger(timeline__fps_in=Fraction(1, 10)), layer("--set", timeline__duration=Fraction(5))]).longest is None


def test_only_known_fields_may_be_loosened_by_nobody() -> None:
    """The fields that strangers may touch are listed here once more, so that a new field is never open by accident."""

    def may(leaf: Leaf) -> bool:
        return leaf.mark(Looks) is not None or leaf.mark(Stricter) is not None

    closed = {key for key, leaf in leaves().items() if not may(leaf)}
    assert closed == {
        "version",
        "detect.settle",
        "detect.stall",
        "detect.incomplete",
        "detect.min_frames",
        "frames.pattern",
        "frames.damaged",
        "frames.append",
        "timeline.early_end",
        "outputs.*.dir",
        "cleanup.grace",
        "live",
        "preset",
    }


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (FileFacts(owners=((1000, "me"),)), ""),
        (FileFacts(owners=((0, "root"),)), ""),
        (FileFacts(owners=((1001, "anna"),)), ""),
        (FileFacts(owners=((1002, "bob"),)), "the file belongs to bob"),
        (FileFacts(owners=((1000, "me"), (1002, "bob"))), "the file belongs to bob"),
        (FileFacts(owners=((1000, "me"),), others_write=True), "anybody may write the file"),
        (FileFacts(owners=((0, "root"),), group_writes="users"), "everybody in the group users may write the file"),
    ],
)
def test_a_file_is_trusted_by_its_owners_and_by_who_else_may_write_it(facts: FileFacts, reason: str) -> None:
    """Me, root and those named; nobody else may write it; a link's owner counts as well."""
    assert distrust(facts, trusted=frozenset({1000, 1001})) == reason


def test_the_service_file_has_a_model_of_its_own() -> None:
    """Its keys are listed like a policy's, with a policy as one value."""
    assert "watch.*.path" in leaves(ServiceConfig)
    assert "daemon.min_free_space" in leaves(ServiceConfig)
    assert leaves(ServiceConfig)["policy"].hint is Layer
