"""Guesses from what a sequence has said before, against a search through all of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.speculation import ngram_index
from workers.speculation.ngram_index import LENGTH, NgramIndex


def searched(tokens: list[int], most: int) -> list[int]:
    """What a search for the last tokens finds, the latest first."""
    end = len(tokens)
    for place in range(end - 1, LENGTH - 1, -1):
        if tokens[place - LENGTH : place] == tokens[end - LENGTH :]:
            period = end - place
            return [tokens[place + number % period] for number in range(most)]
    return []


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=12), st.integers(1, 20))
def test_the_index_finds_what_a_search_finds(pieces: list[list[int]], most: int) -> None:
    index, tokens = NgramIndex(), list[int]()
    for piece in pieces:
        tokens += piece
        assert index.continuation(tokens, most) == searched(tokens, most)


def test_a_long_prompt_is_taken_in_over_several_steps() -> None:
    prompt = [number % 1000 for number in range(3 * ngram_index._AT_ONCE)]
    index, steps = NgramIndex(), 1
    while not (found := index.continuation(prompt, 4)):
        steps += 1
    assert steps == 3
    assert found == searched(prompt, 4)
