from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model import loading
from autottt.ttt_core.model.bounded_cache import BoundedCache
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12))))
def test_the_newest_entries_that_fit_stay(entries: list[tuple[int, int]]) -> None:
    cache = BoundedCache[int, int](10, lambda key, size: size)
    for key, size in entries:
        cache.put(key, size)
        assert cache.get(key) == (size if size <= 10 else None)
        assert cache.nbytes <= 10
    stored = {key: cache.get(key) for key in range(10)}
    assert cache.nbytes == sum(size for size in stored.values() if size is not None)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_the_oldest_entry_is_evicted_first() -> None:
    cache = BoundedCache[str, int](10, lambda key, size: size)
    for key in ("a", "b", "c"):
        cache.put(key, 4)
    assert [cache.get(key) for key in ("a", "b", "c")] == [None, 4, 4]


def test_several_threads_may_share_a_cache() -> None:
    cache = BoundedCache[int, int](100, lambda key, size: size)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.put(number % 37, number % 11), range(5000)))
    assert cache.nbytes == sum(cache.get(key) or 0 for key in range(37)) <= 100


def test_ids_of_many_long_texts_take_bounded_memory() -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    learner.loaded.tokens("warm up")
    tracemalloc.start()
    for number in range(2000):
        text = f"{number} " + "many different words " * (loading.MAX_CACHED_TEXT_LENGTH // 22)
        ids = learner.loaded.tokens(text)
        assert ids == learner.loaded.tokens(text)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1.25 * loading.TOKEN_CACHE_BYTES
    assert ids == tuple(learner.loaded.tokenizer.encode(text, add_special_tokens=False))
