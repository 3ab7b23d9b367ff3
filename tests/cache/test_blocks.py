"""Which memory the cache keeps of blocks that were made together."""

from __future__ import annotations

from hexz.cache import BlockCache, Loading

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
    loaded(cache, list(range(10, 15)))  # the hand passes 0 to 5
    assert [number for number in range(10) if cache.find(number)] == [3, 6, 7, 8, 9]
    assert kept.data is not None and len(kept.data) == SIZE
    assert kept.data.obj is not whole.obj and kept.data.nbytes == len(kept.data.obj)  # type: ignore[arg-type]
    assert cache.counts().held == 10 * SIZE
