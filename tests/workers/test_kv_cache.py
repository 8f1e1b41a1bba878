from __future__ import annotations

import random

from workers.kv_cache import BlockManager

_ROOT = -1  # of the tenant whose blocks these are


def remember_all(blocks: BlockManager, owned: list[int], tokens: list[int]) -> None:
    identity = _ROOT
    for index in range(len(tokens) // blocks.block_size):
        start = index * blocks.block_size
        identity = blocks.remember(identity, owned[index], tokens[start : start + blocks.block_size])


def test_a_prefix_is_found_again_up_to_the_last_full_block_but_one_token() -> None:
    blocks = BlockManager(8, block_size=4)
    tokens = list(range(12))
    owned = blocks.take(3)
    assert owned is not None
    remember_all(blocks, owned, tokens)
    assert blocks.find_prefix(_ROOT, tokens) == owned[:2]  # the third would leave nothing to compute
    assert blocks.find_prefix(_ROOT, [*tokens, 99]) == owned
    assert blocks.find_prefix(_ROOT, [0, 1, 2, 3, 9, 9, 9, 9, 9]) == owned[:1]
    assert blocks.find_prefix(_ROOT, [9, *tokens]) == []


def test_equal_blocks_after_different_beginnings_are_not_confused() -> None:
    blocks = BlockManager(8, block_size=2)
    first = blocks.take(2)
    assert first is not None
    remember_all(blocks, first, [1, 1, 5, 5])
    assert blocks.find_prefix(_ROOT, [2, 2, 5, 5, 0]) == []


def test_the_least_recently_released_block_is_evicted_first() -> None:
    blocks = BlockManager(3, block_size=1)
    for token in (7, 8, 9):
        owned = blocks.take(1)
        assert owned is not None
        blocks.remember(_ROOT, owned[0], [token])
        blocks.release(owned)
    blocks.take(1)
    assert blocks.find_prefix(_ROOT, [7, 0]) == []
    assert len(blocks.find_prefix(_ROOT, [8, 0])) == 1


def test_taking_more_than_there_is_takes_nothing() -> None:
    blocks = BlockManager(3, block_size=4)
    assert blocks.take(4) is None
    assert blocks.free == 3


def test_the_books_balance_through_random_use() -> None:
    rng = random.Random(3)
    blocks = BlockManager(20, block_size=2)
    alive: list[list[int]] = []
    for _ in range(2000):
        if alive and rng.random() < 0.5:
            blocks.release(alive.pop(rng.randrange(len(alive))))
        else:
            tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
            found = blocks.find_prefix(_ROOT, tokens)
            fresh = blocks.take(blocks.blocks_for(len(tokens)) - len(found))
            if fresh is None:
                blocks.release(found)
                continue
            remember_all(blocks, found + fresh, tokens)
            alive.append(found + fresh)
        blocks.check()
    for owned in alive:
        blocks.release(owned)
    assert blocks.free == 20


def test_what_one_tenant_has_computed_no_other_finds() -> None:
    blocks = BlockManager(8, block_size=2)
    own, other = [1, 1, 5, 5], blocks.take(2)
    assert other is not None
    remember_all(blocks, other, own)
    assert blocks.find_prefix(-2, [*own, 0]) == []
    twin = blocks.take(2)
    assert twin is not None
    identity = -2
    for index in range(2):
        identity = blocks.remember(identity, twin[index], own[2 * index : 2 * index + 2])
    assert blocks.find_prefix(-2, [*own, 0]) == twin
    assert blocks.find_prefix(_ROOT, [*own, 0]) == other
    blocks.check()
