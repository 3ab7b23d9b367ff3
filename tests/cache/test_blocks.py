"""Which memory the cache keeps of blocks that were made together."""

from __future__ import annotations

import pytest

from hexz.cache import Block, BlockCache, Loading, blocks

SIZE = 1000


def loaded(cache: BlockCache, keys: list[int]) -> memoryview:
    """Put blocks into the cache that are views of one piece of memory; that."""
    claims: list[Loading | None] = []
    cache.claim(keys, claims)
    whole = memoryview(bytes(SIZE * len(keys)))
    for place, claim in enumerate(claims):
        assert claim is not None
        claim.done(whole[place * SIZE : (place + 1) * SIZE], fresh=True)
    cache.settle(claims)
    return whole


def test_a_block_that_outlives_its_neighbours_keeps_none_of_them_in_memory() -> None:
    cache = BlockCache(10 * SIZE)
    whole = loaded(cache, list(range(10)))
    kept = cache.find(3)
    assert kept is not None and kept.data is not None
    assert kept.data.obj is whole.obj
    kept.touch()
    loaded(cache, list(range(10, 15)))
    assert [number for number in range(10) if cache.find(number)] == [3]
    assert kept.data is not None and len(kept.data) == SIZE
    assert kept.data.obj is not whole.obj and kept.data.nbytes == len(kept.data.obj)  # type: ignore[arg-type]
    assert cache.counts().held == 6 * SIZE


def test_what_was_made_together_stays_as_it_is_while_most_of_it_is_used() -> None:
    cache = BlockCache(10 * SIZE)
    whole = loaded(cache, list(range(4)))
    for number in range(3):
        used = cache.find(number)
        assert used is not None
        used.touch()
    loaded(cache, list(range(10, 16)))
    loaded(cache, list(range(20, 22)))  # the hand spares the first four, and meets the six
    assert [number for number in range(4) if cache.find(number)] == [0, 1, 2, 3]
    first = cache.find(0)
    assert first is not None and first.data is not None and first.data.obj is whole.obj
    assert not [number for number in range(10, 16) if cache.find(number)]
    loaded(cache, list(range(30, 36)))  # nobody used them since
    assert not [number for number in range(4) if cache.find(number)]
    assert cache.counts().held == 8 * SIZE
    cache.forget(lambda key: key in (20, 30))
    assert cache.counts().held == 6 * SIZE
    cache.shrink()
    assert cache.counts().held <= 3 * SIZE


def test_half_is_given_back_or_all() -> None:
    cache = BlockCache(10 * SIZE)
    for number in range(10):
        loaded(cache, [number])
    cache.shrink()
    assert cache.counts().held == 5 * SIZE
    cache.clear()
    assert (cache.counts().held, cache.counts().blocks) == (0, 0)


def test_what_is_left_of_a_run_that_failed_keeps_none_of_it_in_memory() -> None:
    """As where a block in the middle is not what its hash says: those before it are kept, and they alone."""
    cache = BlockCache(10 * SIZE)
    claims: list[Loading | None] = []
    cache.claim([1, 2, 3], claims)
    whole = memoryview(bytes(3 * SIZE))
    assert claims[0] is not None
    block = claims[0].done(whole[:SIZE], fresh=True)
    cache.settle(claims)
    assert cache.find(1) is block and block.data is not None
    assert block.data.obj is not whole.obj
    assert cache.counts().held == SIZE


def test_without_memory_the_rest_is_still_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = BlockCache(10 * SIZE)
    for start in (0, 4):
        loaded(cache, list(range(start, start + 4)))
        used = cache.find(start)
        assert used is not None
        used.touch()

    def none(block: Block) -> bool:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "_stands_alone", none)
        cache.shrink()
        cache.shrink()
        cache.shrink()
        cache.shrink()
    loaded(cache, list(range(20, 30)))
    assert cache.counts().held == 10 * SIZE
    assert not [number for number in range(8) if cache.find(number)]
