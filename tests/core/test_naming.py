"""Names of frames and of outputs."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pathvalidate import is_valid_filename

from stepwatch.core.naming import (
    FIELDS,
    LAYOUTS,
    MISSING_LIMIT,
    STEM_BYTES,
    Group,
    check_template,
    facts_of_group,
    guess_groups,
    is_frame_name,
    layout_for,
    missing_steps,
    natural,
    output_stem,
    printable,
    sort_groups,
)


def sort(layout: str, *names: str, empty: tuple[str, ...] = ()) -> dict[str, Group]:
    """Sort names into groups, all files 100 bytes large but the empty ones."""
    return {group.name: group for group in sort_groups(layout_for(layout), dict.fromkeys(names, 100) | dict.fromkeys(empty, 0))}


ROCKET = "4242-a slender rocket"


@pytest.mark.parametrize(
    ("layout", "name", "group", "step"),
    [
        ("numbered", "step_00001.png", "step_", 1),
        ("numbered", "00001.jpg", "", 1),
        ("numbered", "f9.png", "f", 9),
        ("numbered", "f9.JPeG", "f", 9),
        ("numbered", "v2 take 010.webp", "v2 take ", 10),
        ("numbered", "line\nbreak 7.bmp", "line\nbreak ", 7),
        ("numbered", "bad\udcff7.ppm", "bad\udcff", 7),
        ("steps-animation", "00000.jpg", "", 1),
        ("steps-animation", "00019.jpg", "", 20),
        ("steps-animation", f"0000012-{ROCKET}.png", f"0000-{ROCKET}", 13),
        ("steps-animation", "0103000-7-.png", "0103-7-", 1),
        ("steps-animation", "00001000-7-x.png", "0000-7-x", 1001),
        ("steps-animation", "10000012-7-x.png", "10000-7-x", 13),
        ("save-intermediate", "00012-005-4242-a rocket.png", "00012-4242-a rocket", 6),
        ("save-intermediate", "000012-1005-4242.png", "000012-4242", 1006),
        ("comfyui", "ComfyUI_00001_.png", "ComfyUI", 1),
        ("comfyui", "two_words_00120_.png", "two_words", 120),
    ],
)
def test_named_layouts_read_the_names_their_hosts_write(layout: str, name: str, group: str, step: int) -> None:
    """Each layout gives the group and the step, counted from 1 where the host counts from 0."""
    assert layout_for(layout).match(name) == (group, step)


@pytest.mark.parametrize(
    "name",
    [
        ".f00001.png",
        ".f00001.png.123.tmp",
        "f00001.png.tmp",
        "f00001.png.part",
        "f00001.part",
        "meta1.json",
        "f٣.png",
        "f1²3².png",
        "fortytwo.png",
        "1.5",
        "f" + "1" * 19 + ".png",
        "",
        ".png",
        "png",
    ],
)
def test_what_is_no_frame_is_a_frame_of_no_layout(name: str) -> None:
    """Hidden and temporary names, other files, digits of other scripts and numbers beyond 18 digits are never frames."""
    assert [layout.name for layout in LAYOUTS.values() if layout.match(name)] == []


def test_unpadded_numbers_sort_by_step() -> None:
    """f9 comes before f10."""
    assert [name for _, name in sort("numbered", "f10.png", "f9.png", "f100.png")[""].frames] == ["f9.png", "f10.png", "f100.png"]


def test_one_prefix_is_the_folder_s_run_and_several_prefixes_are_several_runs() -> None:
    """With a single prefix the group has no name; with two, each prefix is a run."""
    assert list(sort("numbered", "step_1.png", "step_2.png")) == [""]
    assert {name: len(group.frames) for name, group in sort("numbered", "a1.png", "a2.png", "b1.png").items()} == {"a": 2, "b": 1}


def test_a_numbered_run_with_a_frame_0_is_shifted_and_others_are_not() -> None:
    """Steps count from 1; each run is looked at by itself."""
    groups = sort("numbered", "a0.png", "a1.png", "b1.png", "b2.png")
    assert groups["a"].frames == ((1, "a0.png"), (2, "a1.png"))
    assert groups["b"].frames == ((1, "b1.png"), (2, "b2.png"))


def test_indices_can_be_kept_as_they_are() -> None:
    """With a sidecar a number is an index, and frame 0 stays 0."""
    (group,) = sort_groups(layout_for("numbered"), {"00000.png": 1, "00001.png": 1}, shift=False)
    assert [step for step, _ in group.frames] == [0, 1]


def test_steps_animation_shifts_even_when_its_first_frames_were_skipped() -> None:
    """The sampler's index 5 is step 6, whether or not indices 0 to 4 were saved."""
    assert [step for step, _ in sort("steps-animation", "00005.jpg", "00006.jpg")[""].frames] == [6, 7]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0000{:03d}-12-a cat.png", "0000{:03d}-123-a cat.png"),
        ("0000{:03d}-12-a cat.png", "0001{:03d}-12-a cat.png"),
        ("0000{:03d}-12-a cat.png", "0100{:03d}-12-a cat.png"),
        ("0000{:03d}-12-a cat.png", "0000{:03d}-12-a catfish.png"),
        ("0000{:03d}-12-.png", "0000{:03d}-12-1.png"),
        ("00001-{:03d}-12-cat.png", "00001-{:03d}-123-cat.png"),
        ("00001-{:03d}-12-cat.png", "00011-{:03d}-12-cat.png"),
        ("cat_{:05d}_.png", "cat_fish_{:05d}_.png"),
        ("cat_{:05d}_.png", "cat-1_{:05d}_.png"),
        ("cat_1_{:05d}_.png", "cat_{:05d}_.png"),
        ("cat{:03d}.png", "cat-{:03d}.png"),
        ("cat1-{:03d}.png", "cat12-{:03d}.png"),
    ],
)
def test_interleaved_runs_stay_apart(one: str, other: str) -> None:
    """Two runs in one folder are two groups, also when one's seed, number or name is the beginning of the other's."""
    groups, left = guess_groups(dict.fromkeys([*(one.format(index) for index in range(10)), *(other.format(index) for index in range(4))], 1))
    assert left == ()
    assert sorted(len(group.frames) for _, group in groups) == [4, 10]
    assert len({layout for layout, _ in groups}) == 1
    assert not any(group.duplicates for _, group in groups)


def test_of_two_files_of_a_step_one_is_chosen_and_the_other_reported() -> None:
    """Lossless wins over lossy, whatever the order in which the folder lists them."""
    for names in (("f010.jpg", "f010.png", "f011.png"), ("f011.png", "f010.png", "f010.jpg")):
        group = sort("numbered", *names)[""]
        assert group.frames == ((10, "f010.png"), (11, "f011.png"))
        assert group.duplicates == ((10, "f010.jpg"),)


def test_an_empty_file_never_wins_over_one_with_content() -> None:
    """A zero-byte PNG beside a good JPEG is the duplicate."""
    group = sort("numbered", "f010.jpg", empty=("f010.png",))[""]
    assert group.frames == ((10, "f010.jpg"),)
    assert group.duplicates == ((10, "f010.png"),)


def test_two_spellings_of_a_number_are_one_step() -> None:
    """f9 and f009 are the same step; the shorter name is the frame."""
    group = sort("numbered", "f009.png", "f9.png")[""]
    assert group.frames == ((9, "f9.png"),)
    assert group.duplicates == ((9, "f009.png"),)


@pytest.mark.parametrize(
    ("layout", "shape", "copy"),
    [
        ("numbered", "f{:03d}.png", "f{:03d}-{}.png"),
        ("numbered", "{:05d}.png", "{:05d} {}.png"),
        ("steps-animation", "0000{:03d}-42-a cat.png", "0000{:03d}-42-a cat-{}.png"),
        ("save-intermediate", "00001-{:03d}-42.png", "00001-{:03d}-42-{}.png"),
    ],
)
def test_a_numbered_copy_is_a_duplicate_of_its_original(layout: str, shape: str, copy: str) -> None:
    """``f010-1.png`` beside ``f010.png`` is no run of its own."""
    groups = sort(layout, *(shape.format(number) for number in range(1, 13)), copy.format(10, 1), copy.format(10, 2), copy.format(3, 1))
    (group,) = groups.values()
    assert [name for _, name in group.frames] == [shape.format(number) for number in range(1, 13)]
    assert sorted(name for _, name in group.duplicates) == sorted([copy.format(10, 1), copy.format(10, 2), copy.format(3, 1)])
    steps = {name: step for step, name in group.frames}
    assert {step for step, name in group.duplicates if name == copy.format(3, 1)} == {steps[shape.format(3)]}


def test_finished_pictures_beside_runs_do_not_swallow_them() -> None:
    """Runs ``shot1-001.png`` stay runs although pictures ``shot1.png``, ``shot2.png`` lie beside them."""
    names = [f"shot{shot}-{step:03d}.png" for shot in (1, 2) for step in range(1, 6)]
    groups = sort("numbered", *names, *(f"shot{shot}.png" for shot in range(1, 9)))
    assert {name: len(group.frames) for name, group in groups.items()} == {"shot": 8, "shot1-": 5, "shot2-": 5}


def test_groups_come_in_natural_order() -> None:
    """Run 9 comes before run 10."""
    assert list(sort("comfyui", "run10_00001_.png", "run9_00001_.png", "run100_00001_.png")) == ["run9", "run10", "run100"]


@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    names=st.lists(
        st.one_of(
            st.from_regex(r"[a-c]?-?[0-9]{1,4}(-[0-9])?\.(png|jpg|webp)", fullmatch=True),
            st.from_regex(r"000[01]00[0-9]-12?-(a|ab)?(-1)?\.(png|jpg)", fullmatch=True),
            st.from_regex(r"0000[12]-00[0-9]-(x|xy)?\.png", fullmatch=True),
            st.from_regex(r"(a|a_1)_0000[0-9]_\.png", fullmatch=True),
            st.text(max_size=12),
        ),
        unique=True,
        max_size=30,
    ),
    data=st.data(),
)
def test_every_matching_file_is_in_exactly_one_place_whatever_the_order(layout: str, names: list[str], data: st.DataObject) -> None:
    """No file is lost or counted twice, steps of a run are unique, ascend and start at 1 or later, and the listing's order changes nothing."""
    chosen = layout_for(layout)
    groups = sort_groups(chosen, dict.fromkeys(names, 1))
    placed = [name for group in groups for _, name in (*group.frames, *group.duplicates)]
    assert sorted(placed) == sorted(name for name in names if chosen.match(name))
    for group in groups:
        steps = [step for step, _ in group.frames]
        assert steps == sorted(set(steps))
        assert all(step >= 1 for step in steps)
        assert {step for step, _ in group.duplicates} <= set(steps)
    assert sort_groups(chosen, dict.fromkeys(data.draw(st.permutations(names)), 1)) == groups


# ---------------------------------------------------------------- guessing


def guess(*names: str) -> tuple[list[tuple[str, str, int]], tuple[str, ...]]:
    """Guess at files of 100 bytes: layout, name and number of frames of each run, and what belongs to none."""
    runs, left = guess_groups(dict.fromkeys(names, 100))
    return [(layout, group.name, len(group.frames)) for layout, group in runs], left


def shot(shape: str, count: int = 3, first: int = 0) -> list[str]:
    """Write so many names of a run."""
    return [shape.format(number) for number in range(first, first + count)]


@pytest.mark.parametrize(
    ("names", "runs", "left"),
    [
        (["step_00001.png"], [("numbered", "", 1)], ()),
        (["00000.jpg", "00001.jpg"], [("numbered", "", 2)], ()),
        (shot("0000{:03d}-4242-a slender rocket.png"), [("steps-animation", "0000-4242-a slender rocket", 3)], ()),
        (["0000000-4242-section 9.png"], [("steps-animation", "0000-4242-section 9", 1)], ()),
        (["00001-001-4242.png", "00001-002-4242.png"], [("save-intermediate", "00001-4242", 2)], ()),
        (["ComfyUI_00001_.png"], [("comfyui", "ComfyUI", 1)], ()),
        (["a_00001_.png", "b_00001_.png", "b_00002_.png"], [("comfyui", "a", 1), ("comfyui", "b", 2)], ()),
        (["00001-4242.png", "00002-4243.png"], [("numbered", "00001-", 1), ("numbered", "00002-", 1)], ()),
        (["cat.png", "dog.jpg"], [], ("cat.png", "dog.jpg")),
        ([], [], ()),
    ],
)
def test_a_folder_of_one_layout_is_guessed(names: list[str], runs: list[tuple[str, str, int]], left: tuple[str, ...]) -> None:
    """Among layouts that explain a folder the more particular one is guessed, and none where nothing matches."""
    assert guess(*names) == (runs, left)


def test_every_layout_of_a_mixed_folder_gives_its_runs() -> None:
    """A flat folder that several hosts write into holds the runs of all of them; nothing of it is lost."""
    names = [
        *shot("{:05d}.jpg", 5),
        *shot("0000{:03d}-12-a cat.png"),
        *shot("0000{:03d}-123-section 9.png", 4),
        *shot("00001-{:03d}-4242.png", 5),
        *shot("00002-{:03d}-4243.png", 6),
        *shot("ComfyUI_{:05d}_.png", 7, 1),
        *shot("two_words_{:05d}_.png", 8, 1),
    ]
    assert guess(*names) == (
        [
            ("numbered", "", 5),
            ("steps-animation", "0000-12-a cat", 3),
            ("steps-animation", "0000-123-section 9", 4),
            ("save-intermediate", "00001-4242", 5),
            ("save-intermediate", "00002-4243", 6),
            ("comfyui", "ComfyUI", 7),
            ("comfyui", "two_words", 8),
        ],
        (),
    )


@pytest.mark.parametrize(
    ("names", "runs", "left"),
    [
        ([*shot("f{}.png"), "ComfyUI_00001_.png", "final.png"], [("numbered", "", 3)], ("ComfyUI_00001_.png", "final.png")),
        ([*shot("c_{}_.png"), "cover1.png", "00001-4242.png"], [("comfyui", "c", 3)], ("00001-4242.png", "cover1.png")),
        ([*shot("c_{}_.png"), "d_1_.png", "0000000-4242-cat.png"], [("comfyui", "c", 3), ("comfyui", "d", 1)], ("0000000-4242-cat.png",)),
        (["ComfyUI_00001_.png", "cover1.png"], [("comfyui", "ComfyUI", 1)], ("cover1.png",)),
    ],
)
def test_single_pictures_of_another_layout_are_no_runs(names: list[str], runs: list[tuple[str, str, int]], left: tuple[str, ...]) -> None:
    """A lone finished picture beside runs is named as left out, whatever layout its name fits; beside its like it is a run of one frame."""
    assert guess(*names) == (runs, left)


def test_a_layout_that_would_tear_a_run_into_single_frames_is_passed_over() -> None:
    """A date, a take and a number look like Steps Animation's names; as such each frame would be a run of its own."""
    assert guess(*shot("20260101-12-{:04d}.png", 5, 1)) == ([("numbered", "", 5)], ())
    assert guess(*shot("0000{:03d}-42-foo_1_.png")) == ([("steps-animation", "0000-42-foo_1_", 3)], ())


def test_copies_of_numbered_frames_are_no_run_of_another_layout() -> None:
    """``00001-010-1.png`` beside ``00001-010.png`` is a copy, although Save Intermediate Images could have written such a name."""
    ((layout, group),), left = guess_groups(dict.fromkeys([*shot("00001-{:03d}.png", 12), *shot("00001-{:03d}-1.png", 3, 5)], 1))
    assert (layout, left, len(group.frames)) == ("numbered", (), 12)
    assert [name for _, name in group.duplicates] == shot("00001-{:03d}-1.png", 3, 5)


def test_runs_of_two_layouts_never_have_one_name() -> None:
    """A run is known by its folder and its name: ``cat_00001_.png`` and ``cat1.png`` are told apart."""
    assert guess(*shot("cat_{:05d}_.png"), *shot("cat{}.png"), *shot("dog{}.png"))[0] == [
        ("comfyui", "cat", 3),
        ("numbered", "cat (numbered)", 3),
        ("numbered", "dog", 3),
    ]


@given(
    names=st.lists(
        st.one_of(
            st.from_regex(r"[a-c]?-?[0-9]{1,4}(-[0-9])?\.(png|jpg|webp)", fullmatch=True),
            st.from_regex(r"000[01]00[0-9]-12?-(a|ab|1)?(-1)?(_1_)?\.(png|jpg)", fullmatch=True),
            st.from_regex(r"0000[12]-00[0-9](-[1x])?(-1)?\.png", fullmatch=True),
            st.from_regex(r"(a|a_1|)_0000[0-9]_\.png", fullmatch=True),
            st.sampled_from(["final.png", "a.jpg"]),
        ),
        unique=True,
        max_size=30,
    ),
    data=st.data(),
)
def test_a_guess_puts_every_image_in_exactly_one_place_whatever_the_order(names: list[str], data: st.DataObject) -> None:
    """Each image is in one run or named as left out, no two runs share a name, and something is found wherever a layout explains a name."""
    runs, left = guess_groups(dict.fromkeys(names, 1))
    placed = [name for _, group in runs for _, name in (*group.frames, *group.duplicates)]
    assert sorted([*placed, *left]) == sorted(names)
    assert len({group.name for _, group in runs}) == len(runs)
    assert bool(runs) is any(layout.match(name) for layout in LAYOUTS.values() for name in names)
    assert guess_groups(dict.fromkeys(data.draw(st.permutations(names)), 1)) == (runs, left)


@pytest.mark.parametrize(
    ("layout", "name", "seed", "prompt"),
    [
        ("steps-animation", "0101000-12-cat.png", 12, "cat"),
        ("steps-animation", "0000012-4242-a cat-like thing - 9.png", 4242, "a cat-like thing - 9"),
        ("steps-animation", "00001000-18446744073709551615-.png", 2**64 - 1, None),
        ("steps-animation", f"0000000-{'9' * 120}-cat.png", None, "cat"),
        ("steps-animation", "00000.jpg", None, None),
        ("save-intermediate", "00001-001-4242-cat.png", None, None),
        ("numbered", "0101000-12-1.png", None, None),
    ],
)
def test_a_group_of_steps_animation_tells_seed_and_prompt(layout: str, name: str, seed: int | None, prompt: str | None) -> None:
    """Only that layout promises them; a number too long for a seed is none."""
    matched = layout_for(layout).match(name)
    assert matched
    assert facts_of_group(layout, matched[0]) == (seed, prompt)


# ---------------------------------------------------------------- regular expressions


def test_a_regular_expression_gives_run_and_step_of_the_whole_name() -> None:
    """Groups ``step`` and ``run`` are read; a name that matches only in part is no frame."""
    layout = layout_for(r"(?P<run>[a-z]+)-s(?P<step>\d+)\.png")
    assert layout.name == "pattern"
    assert layout.match("cat-s12.png") == ("cat", 12)
    assert layout.match("cat-s12.png.png") is None
    assert layout.match("xcat_cat-s12.png") is None
    assert layout.match("cat-s٣.png") is None


def test_a_regular_expression_may_do_without_run() -> None:
    """Without a group ``run``, or when that group took no part, the folder is one run."""
    assert layout_for(r"(?P<step>\d+)\.png").match("7.png") == ("", 7)
    assert layout_for(r"(?:(?P<run>[a-z]+)-)?(?P<step>\d+)\.png").match("7.png") == ("", 7)


def test_a_regular_expression_cannot_make_temporary_files_frames() -> None:
    """What is never a frame is none by anybody's expression."""
    assert layout_for(r".*?(?P<step>\d+).*").match(".f1.png") is None
    assert layout_for(r".*?(?P<step>\d+).*").match("f1.png.tmp") is None


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("nummbered", "there is no layout 'nummbered'; use one of numbered, steps-animation, save-intermediate, comfyui"),
        ("", "there is no layout ''"),
        ("(", "not a regular expression: missing )"),
        (r"(?P<step>\d+", "not a regular expression"),
        (r"f(\d+)\.png", "no group named step"),
        (r"(?P<run>\d+)\.png", "no group named step"),
        (r"(?P<step>\d+)(?P<seed>\d+)", "a group named seed"),
        (r"(?P<step>\d+){99999999999999999999}", "not a regular expression"),
    ],
)
def test_a_wrong_pattern_is_refused_with_what_would_be_right(pattern: str, sentence: str) -> None:
    """Typing errors and missing groups are ValueErrors that name them."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        layout_for(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?P<step>\d+)(a+)+b",
        r"(?P<step>\d+)(?:a|a)*b",
        r"(?P<step>\d+)(?:a?a?)*b",
        r"(?P<step>\d+)((ab)*c*)*",
        r"(?P<step>\d+)(?:(?:a+)|b){2,}",
        r"(?P<step>\d+)(?:.*){9}",
        r".*.*.*.*(?P<step>\d+)",
        r"\d*\d*\d*(?P<step>\d+)x",
        r"[ab]+[bc]*b.{0,99}(?P<step>b|\d+)\w*b*",
        r"(?P<step>\d+)" + "a?" * 30 + "a" * 30,
        r"(?P<run>a+)(?P=run)*(?P=run)*(?P<step>\d*)(?P=run)*",
        r"(?(step)a|b)(?P<step>\d+)",
    ],
)
def test_expressions_that_could_take_for_ever_are_refused(pattern: str) -> None:
    """Nested or competing repeats never get to see a name."""
    with pytest.raises(ValueError, match=r"could take for ever|not a regular expression"):
        layout_for(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?P<run>.+)-(?P<step>[0-9]+)-.*\.png",
        r"(?P<run>\w+)_(?P<step>\d+)(?:_copy)?\.(png|jpe?g)",
        r"(?i)frame[ _-]?(?P<step>\d{1,6})\.[a-z]+",
        r"\d+-\d+-\d+-\d+-\d+-(?P<step>\d+)\.png",
        r"(?P<run>[^-]+)-(?:[a-f0-9]{8})-(?P<step>\d+)(?:-\d)*\.png",
        r"^(?P<run>shot\d+)\.(?P<step>\d+)\.png$",
        r"[]a]*[^]]*(?P<step>\d+)",
    ],
)
def test_ordinary_expressions_are_taken_and_quick(pattern: str) -> None:
    """Expressions of everyday shape pass, and no name keeps them busy."""
    layout = layout_for(pattern)
    started = time.process_time()
    for letters in ("1", "a", "-", "1-", "a-1", "_1"):
        layout.match((letters * 250)[:250] + "!.png")
    assert time.process_time() - started < 2


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
@given(pattern=st.text(alphabet="ab1.*+?|()[]{},\\^$-d", max_size=14).map(lambda text: f"(?P<step>1){text}"))
def test_any_text_as_a_pattern_is_taken_or_refused(pattern: str) -> None:
    """Whatever stands in the YAML gives a layout or a ValueError."""
    try:
        layout = layout_for(pattern)
    except ValueError:
        return
    layout.match("1ab1.png")


# ---------------------------------------------------------------- holes


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ([], ()),
        ([7], ()),
        ([1, 9], ()),
        ([1, 2, 3], ()),
        ([*range(1, 10), *range(11, 21)], (10,)),
        ([5, 10, 15, 20], ()),
        ([5, 10, 20], (15,)),
        ([1, 3, 5, 6], (2, 4)),
    ],
)
def test_holes_are_found_by_the_run_s_own_stride(steps: list[int], missing: tuple[int, ...]) -> None:
    """A run that kept every fifth step has no holes; one that lost a frame has that hole."""
    assert missing_steps(steps) == missing


def test_a_known_stride_beats_the_guess() -> None:
    """Where the sidecar says that every step was kept, 2 and 4 are missing."""
    assert missing_steps([1, 3, 5], stride=1) == (2, 4)


def test_a_list_of_holes_has_an_end() -> None:
    """A time stamp among the numbers does not fill the memory."""
    assert missing_steps([1, 2, 10**17]) == tuple(range(3, 3 + MISSING_LIMIT))


# ---------------------------------------------------------------- names of outputs

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def stem(template: str, fields: Mapping[str, object], *, incomplete: bool = False) -> str:
    """Make a stem with the run's name given."""
    return output_stem(template, {"run": "the-run", "n": 1, "status": "complete", "codec": "h264"} | dict(fields), incomplete=incomplete)


@pytest.mark.parametrize(
    ("template", "fields", "expected"),
    [
        ("{seed}-{prompt:.80}", {"seed": 42, "prompt": "a slender rocket"}, "42-a slender rocket"),
        ("{seed}-{prompt:.6}", {"seed": 42, "prompt": "a slender rocket"}, "42-a slen"),
        ("{seed}-{prompt}", {"seed": 2**64 - 1, "prompt": "x"}, "18446744073709551615-x"),
        ("{date:%Y%m%d}_{run}", {"date": NOW}, "20260102_the-run"),
        ("{date:%H:%M}", {"date": NOW}, "03-04"),
        ("{date}", {"date": NOW}, "20260102-030405"),
        ("{sampler} {model} {steps}", {"sampler": "Euler a", "model": "v1.5", "steps": 30}, "Euler a v1.5 30"),
        ("{n:03d}", {"n": 7}, "007"),
        ("{status}.{codec}", {}, "complete.h264"),
        ("{{{seed}}}", {"seed": 1}, "{1}"),
        ("clip", {}, "clip"),
        ("{prompt}", {"prompt": "two\nlines\tand  spaces "}, "two lines and spaces"),
        ("{prompt}", {"prompt": 'a/b\\c: "what?" <x|y>*'}, "a-b-c what x y"),
        ("{prompt}", {"prompt": "Cafe\u0301"}, "Caf\u00e9"),
        ("{prompt}", {"prompt": "../../etc/passwd"}, "etc-passwd"),
        ("{prompt}", {"prompt": "--rf"}, "rf"),
        ("{prompt}", {"prompt": "ends with dots..."}, "ends with dots"),
        ("{model}", {"model": "C:\\models\\x"}, "C -models-x"),
        ("{prompt}", {"prompt": "gnp\u202e.txt"}, "gnp.txt"),
        ("{prompt}", {"prompt": "👩\u200d🚀 \udcff\x00\x1b[31m"}, "👩\u200d🚀 [31m"),
    ],
)
def test_fields_are_filled_in(template: str, fields: dict[str, object], expected: str) -> None:
    """Each field takes its format, and loses what no file name can hold."""
    check_template(template)
    assert stem(template, fields) == expected


@pytest.mark.parametrize(
    ("template", "fields", "expected"),
    [
        ("{seed}-{prompt}", {"seed": 42}, "42"),
        ("{seed}-{prompt}", {"prompt": "cat"}, "cat"),
        ("{seed}-{prompt}", {"seed": 42, "prompt": " \n"}, "42"),
        ("{seed}-{prompt}-{model}", {"seed": 42, "model": "m"}, "42-m"),
        ("{seed} - {sampler} - {model}", {"seed": 42, "model": "m"}, "42 - m"),
        ("{seed}{prompt}-{model}", {"seed": 42, "model": "m"}, "42-m"),
        ("{seed}-{prompt}{model}", {"seed": 42, "model": "m"}, "42-m"),
        ("{seed} ({sampler})", {"seed": 42}, "42"),
        ("{seed} [{sampler}, {steps}]", {"seed": 42}, "42"),
        ("{seed} [{sampler}, {steps}]", {"seed": 42, "steps": 8}, "42 [8]"),
        ("{prompt}_{sampler}_{steps}_{n}", {"n": 3, "steps": 0}, "0_3"),
        ("{seed:010d}-{prompt}", {"prompt": "cat"}, "cat"),
        ("clip {seed}", {}, "the-run"),
        ("{seed}-{prompt:.80}", {}, "the-run"),
        ("{prompt}-{codec}", {}, "the-run-h264"),
        ("{prompt}-{seed}.{codec}", {}, "the-run.h264"),
    ],
)
def test_empty_fields_leave_nothing_behind(template: str, fields: dict[str, object], expected: str) -> None:
    """No stray dashes, double separators or empty brackets; with nothing to tell runs apart, the run's name stands in."""
    assert stem(template, fields) == expected


def test_a_dash_inside_a_value_is_the_user_s() -> None:
    """Only what separates an empty field is taken away."""
    assert stem("{seed}-{prompt}", {"seed": 1, "prompt": "sci-fi - -- city"}) == "1-sci-fi - -- city"


@pytest.mark.parametrize("run", ["", None, "...", "\udcff"])
def test_without_any_name_it_is_called_run(run: str | None) -> None:
    """Even a run without a name gets a file."""
    assert stem("{seed}", {"run": run}) == "run"


def test_incomplete_runs_say_so_behind_what_was_cut() -> None:
    """The mark survives a long prompt and is not doubled."""
    assert stem("{prompt}", {"prompt": "x" * 1000}, incomplete=True) == "x" * STEM_BYTES + "-incomplete"
    assert stem("{prompt}-incomplete", {"prompt": "x"}, incomplete=True) == "x-incomplete"


def test_long_names_are_cut_between_characters() -> None:
    """A cut never leaves half of a character, nor a space or dot at the end."""
    assert stem("{prompt}", {"prompt": "汉" * 300}) == "汉" * (STEM_BYTES // 3)
    assert stem("{prompt}", {"prompt": "x" * (STEM_BYTES - 2) + ". y"}) == "x" * (STEM_BYTES - 2)


def test_a_long_prompt_is_cut_before_what_stands_behind_it() -> None:
    """Seed and number tell files apart, so they survive; short values stay whole."""
    assert stem("{prompt}-{seed}-{n:03d}", {"prompt": "x" * 900, "seed": 42, "n": 7}) == "x" * (STEM_BYTES - 7) + "-42-007"
    assert stem("{prompt} {model}-{seed}", {"prompt": "汉" * 99, "model": "m" * 99, "seed": 4}) == "汉" * 32 + " " + "m" * 98 + "-4"


def test_a_prompt_of_300_kilobytes_is_no_work() -> None:
    """Only what can become part of a name is looked at."""
    started = time.process_time()
    stem("{prompt}-{prompt}", {"prompt": "a (b:1.2), " * 30_000})
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize("value", ["CON", "nul", "aux.tar", "COM1", "LPT¹", "con ", "CON .x", "-prn", "conin$", "PRN."])
def test_device_names_of_windows_are_avoided(value: str) -> None:
    """No output is called like a device."""
    assert not PureWindowsPath(stem("{prompt}", {"prompt": value}) + ".mp4").is_reserved()
    assert is_valid_filename(stem("{prompt}", {"prompt": value}) + ".mp4", platform="universal")


def test_a_value_its_format_does_not_fit_is_written_plainly() -> None:
    """A seed that came as text does not stop a render."""
    assert stem("{seed:05d}", {"seed": "forty-two"}) == "forty-two"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{seed!r}", "cannot be converted"),
        ("{prompt!s:.80}", "cannot be converted"),
        ("{0.__class__}", "there is no field {0.__class__}; fields are {seed} {prompt} {date}"),
        ("{seed.real}", "there is no field {seed.real}"),
        ("{prompt[0]}", "there is no field {prompt[0]}"),
        ("{}", "there is no field {}"),
        ("{0}", "there is no field {0}"),
        ("{sed}", "there is no field {sed}; fields are"),
        ("{prompt:{n}}", "cannot hold another field"),
        ("{prompt:.{n}}", "cannot hold another field"),
        ("{seed:.80}", "does not fit a number; write something like {n:03d}"),
        ("{prompt:03d}", "does not fit text; write something like {prompt:.80}"),
        ("{date:YYYY}", "does not fit a date; write something like {date:%Y%m%d}"),
        ("{seed:c}", "does not fit a number"),
        ("{n:9999999999d}", "too wide"),
        ("{prompt:>99999}", "too wide"),
        ("{date:%99999d}", "too wide"),
        ("{seed", "fields are"),
        ("seed}", "fields are"),
        ("", "the name is empty"),
        ("  ", "the name is empty"),
        ("../../x", "cannot start with '.'"),
        ("/tmp/{seed}", "without / or"),
        ("a/{seed}", "without / or"),
        ("a\\{seed}", "without / or"),
        ("~/{seed}", "cannot start with '~'"),
        ("{seed}\n", "control characters"),
        ("a\0", "control characters"),
        ("\udcff{seed}", "undecodable"),
    ],
)
def test_a_wrong_template_is_refused_with_what_would_be_right(template: str, sentence: str) -> None:
    """Only plain text and plain fields with a fitting format pass."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_template(template)


def test_samples_fit_every_plain_field() -> None:
    """The fields that the error lists can all be used."""
    check_template("-".join(f"{{{field}}}" for field in FIELDS))


_NASTY = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="./\\~-: \0\n\x7f*?<>|\"%$'\u202e\u200d\udcff\u0301é汉👩", max_size=40),
    st.sampled_from(["CON", "nul.txt", "..", ".", "~root", "-rf", "COM1", "a" * 500, "汉" * 300, "\u212bngstrom"]),
)


@given(
    template=st.lists(
        st.one_of(
            st.sampled_from([*(f"{{{field}}}" for field in FIELDS), "{prompt:.80}", "{n:03d}", "{date:%Y%m%d}", "{seed:>20}"]),
            st.text(alphabet="-_. ,+()[]a汉\u0301:*?CON", max_size=4),
        ),
        max_size=8,
    ).map("".join),
    fields=st.fixed_dictionaries(
        {},
        optional={field: st.one_of(st.none(), _NASTY) for field in ("prompt", "sampler", "model", "run", "status", "codec")}
        | {field: st.one_of(st.none(), st.integers(min_value=0, max_value=2**64 - 1)) for field in ("seed", "steps", "n")}
        | {"date": st.one_of(st.none(), st.datetimes())},
    ),
    incomplete=st.booleans(),
)
@example(template="{prompt}.{run}", fields={"prompt": "CON", "run": " "}, incomplete=True)
def test_any_values_give_one_plain_name_that_is_safe_everywhere(template: str, fields: dict[str, object], *, incomplete: bool) -> None:
    """Whatever a prompt holds, the name is valid on Linux, macOS and Windows, short enough, visible, and stays in its folder."""
    name = output_stem(template, fields, incomplete=incomplete)
    assert name
    assert PurePosixPath(name).name == PureWindowsPath(name).name == name
    assert not PureWindowsPath(name + ".mp4").is_reserved()
    assert is_valid_filename(name + ".mp4", platform="universal")
    assert name[0] not in ".-~ "
    assert name[-1] not in ". "
    assert len(name.encode("utf-8")) <= STEM_BYTES + len("-incomplete")
    assert unicodedata.is_normalized("NFC", name)
    assert not incomplete or name.endswith("-incomplete")
    assert all(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in name)


# ---------------------------------------------------------------- showing and sorting names


@given(text=st.text(alphabet=st.characters()))
def test_every_name_can_be_printed(text: str) -> None:
    """What is shown encodes as UTF-8 and cannot steer a terminal."""
    shown = printable(text)
    shown.encode("utf-8")
    assert not any(unicodedata.category(character) == "Cc" for character in shown)


def test_undecodable_bytes_show_as_bytes() -> None:
    """A Latin-1 name stays recognisable."""
    assert printable("caf\udce9\n\x1b[2J.png") == "caf\\xe9\\n\\x1b[2J.png"


@given(names=st.lists(st.text()), data=st.data())
def test_natural_order_is_an_order_for_any_names(names: list[str], data: st.DataObject) -> None:
    """Sorting never fails and does not depend on the order before."""
    assert sorted(data.draw(st.permutations(names)), key=natural) == sorted(names, key=natural)


def test_natural_order_counts() -> None:
    """Numbers sort by value, also with more digits than Python converts."""
    names = ["run 10", "run 9", "run " + "1" * 5000, "run 010", "run"]
    assert sorted(names, key=natural) == ["run", "run 9", "run 010", "run 10", "run " + "1" * 5000]


@pytest.mark.parametrize(("name", "expected"), [("a.PNG", True), ("a.jpg", True), ("a.gif", False), ("a", False), (".a.png", False)])
def test_suffix_and_first_character_decide_whether_a_name_can_be_a_frame_s(name: str, expected: bool) -> None:  # noqa: FBT001
    """Content decides later."""
    assert is_frame_name(name) is expected
