"""Stop texts: nothing of one is passed on, whatever pieces the answer comes in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.stops import StopCutter

# Few letters, so that stop texts are met, and begin without ending.
TEXT = st.text("ab\n😀", max_size=30)
STOPS = st.lists(st.text("ab\n😀", min_size=1, max_size=5), max_size=4)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The answer up to the stop text that is complete first, and whether there was one."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)], True
    return text, False


def in_pieces(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    cutter = StopCutter(stops)
    passed = [cutter.feed(piece) for piece in pieces]
    return [*passed, cutter.flush()], cutter.has_stopped


def test_text_up_to_the_stop_is_passed_on():
    assert in_pieces(["one END two"], ["END"]) == (["one ", ""], True)


def test_stop_across_pieces_is_held_back_until_it_is_known():
    assert in_pieces(["one E", "N", "D two"], ["END"]) == (["one ", "", "", ""], True)


def test_beginning_that_is_no_stop_is_passed_on_late():
    assert in_pieces(["one E", "N", "TER"], ["END"]) == (["one ", "", "ENTER", ""], False)


def test_beginning_at_the_end_of_the_answer_is_part_of_it():
    assert in_pieces(["one EN"], ["END"]) == (["one ", "EN"], False)


def test_earliest_of_several_stops_counts():
    assert in_pieces(["a.b;c"], [";", "."]) == (["a", ""], True)


def test_nothing_is_passed_on_after_the_stop():
    assert in_pieces(["a.", "b", "."], ["."]) == (["a", "", "", ""], True)


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_a_stop_text_nothing_is_held_back(stops: list[str]):
    assert in_pieces(["a", "b"], stops) == (["a", "b", ""], False)


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=8))
@example("aab", ["ab"], [1, 2])
@example("abab", ["aba", "bab"], [1, 2, 3])
@example("aba", ["b", "aba"], [2])
def test_any_split_gives_what_cutting_the_whole_gives(
    text: str, stops: list[str], places: list[int]
):
    edges = sorted({0, len(text), *(min(place, len(text)) for place in places)})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    passed, has_stopped = in_pieces(pieces, stops)
    assert ("".join(passed), has_stopped) == cut(text, stops)


@given(TEXT, STOPS)
def test_no_more_is_held_back_than_may_begin_a_stop(text: str, stops: list[str]):
    cutter = StopCutter(stops)
    longest = max(map(len, stops), default=0)
    passed = ""
    for index, letter in enumerate(text, 1):
        passed += cutter.feed(letter)
        if not cutter.has_stopped:
            assert index - len(passed) <= max(longest - 1, 0)
