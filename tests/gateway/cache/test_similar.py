"""Questions that mean the same, by vectors that the test chooses."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.cache.desk import RELEASE_2, answer, cache, call, keep, route
from tidemill.gateway.cache import AnswerCache, CachedAnswer, SimilarAnswers, same_facts
from tidemill.gateway.cache.similar import Shelf
from tidemill.kernel.routing_policy import CacheMode

WAIT_S = 30.0


class Embedder:
    """Puts a text on the unit circle, at the angle that the test gave it."""

    def __init__(self, **angles: float) -> None:
        self.angles = angles
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False

    async def __call__(self, text: str) -> list[float]:
        self.asked.append(text)
        await self.gate.wait()
        if self.fails:
            raise OSError("no embedding model")
        angle = self.angles.get(text.split(maxsplit=1)[0], 0.0)
        return [3 * math.cos(angle), 3 * math.sin(angle)]  # of any length


def semantic(similar: SimilarAnswers, **policy: Any) -> AnswerCache:
    return cache(route(mode=CacheMode.SEMANTIC, **{"similarity": 0.95, **policy}), similar=similar)


async def further(desk: AnswerCache, *texts: str, **more: Any) -> CachedAnswer | None:
    key = desk.key(call(*texts, **more))
    assert key is not None
    found: list[CachedAnswer | None] = []
    task = desk.look_further(key, found.append)
    if task is not None:
        await task
    assert len(found) == 1
    return found[0]


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_a_question_near_enough_gets_the_answer_and_a_farther_one_does_not() -> None:
    async def main() -> None:
        embed = Embedder(near=0.2, far=0.5)
        similar = SimilarAnswers(embed, timeout_s=WAIT_S)
        desk = semantic(similar)
        keep(desk, desk.key(call("how does it work")))
        await until(lambda: len(similar) == 1)
        found = await further(desk, "near question")
        assert found is not None
        assert found.body == answer()
        assert found.similarity == pytest.approx(math.cos(0.2), abs=1e-4)
        assert found.attributes()["tidemill.cache"] == "similar"
        assert b"x-tidemill-cache: similar" in found.header()
        assert await further(desk, "far question") is None
        await similar.close()

    run(main())


@pytest.mark.parametrize(
    "change",
    [{"user": "ben"}, {"release": RELEASE_2}, {"key_name": "other"}, {"tools": []}, {"top_p": 0.5}, {"model": "other"},
     {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "near it"}]},
     {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                   {"role": "user", "content": "near it"}]}],
)  # fmt: skip
def test_likeness_never_crosses_a_partition(change: dict[str, Any]) -> None:
    async def main() -> None:
        similar = SimilarAnswers(Embedder(), timeout_s=WAIT_S)
        desk = semantic(similar)
        keep(desk, desk.key(call("how", user="anna")))
        await until(lambda: len(similar) == 1)
        assert await further(desk, "near it", user="anna") is not None
        assert await further(desk, "near it", **{"user": "anna", **change}) is None
        await similar.close()

    run(main())


def test_a_slow_embedding_is_a_miss_and_serves_the_answer_that_follows() -> None:
    async def main() -> None:
        embed = Embedder()
        similar = SimilarAnswers(embed, timeout_s=0.01)
        desk = semantic(similar)
        keep(desk, desk.key(call("one")))
        await until(lambda: len(similar) == 1)
        embed.gate.clear()
        assert await further(desk, "two") is None
        assert similar.misses_late == 1
        keep(desk, desk.key(call("two")), answer("second"))
        embed.gate.set()
        await until(lambda: len(similar) == 2)
        assert embed.asked == ["one", "two"]  # asked once for look-up and keeping
        await similar.close()

    run(main())


def test_an_embedding_model_that_fails_costs_nothing_but_hits() -> None:
    async def main() -> None:
        embed = Embedder()
        similar = SimilarAnswers(embed, timeout_s=WAIT_S)
        desk = semantic(similar)
        keep(desk, desk.key(call("one")))
        await until(lambda: len(similar) == 1)
        embed.fails = True
        assert await further(desk, "two") is None
        assert similar.failures == 1
        await similar.close()

    run(main())


def test_embeddings_asked_for_at_once_are_bounded() -> None:
    async def main() -> None:
        embed = Embedder()
        similar = SimilarAnswers(embed, timeout_s=0.01, concurrency=2)
        desk = semantic(similar)
        keep(desk, desk.key(call("one")))
        await until(lambda: len(similar) == 1)
        embed.gate.clear()
        await asyncio.gather(*[further(desk, f"word{letter}") for letter in "abcdef"])
        assert len(embed.asked) == 3
        await similar.close()

    run(main())


def test_an_answer_that_has_run_out_is_not_found_by_likeness() -> None:
    async def main() -> None:
        similar = SimilarAnswers(Embedder(), timeout_s=WAIT_S)
        desk = semantic(similar, ttl_s=60)
        keep(desk, desk.key(call("one")))
        await until(lambda: len(similar) == 1)
        desk._now.now_s += 61  # type: ignore[attr-defined]
        assert await further(desk, "two") is None
        await similar.close()

    run(main())


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 9), st.integers(0, 40))
def test_a_shelf_finds_the_nearest_of_its_newest(angles: list[int], capacity: int, asked: int) -> None:
    shelf = Shelf(2, capacity)
    for place, angle in enumerate(angles):
        vector = np.array([math.cos(angle / 10), math.sin(angle / 10)], np.float32)
        shelf.add(bytes([place]), f"text {'x' * angle}", vector)
    newest = dict(enumerate(angles[-capacity:], max(0, len(angles) - capacity)))
    vector = np.array([math.cos(asked / 10), math.sin(asked / 10)], np.float32)
    found = shelf.nearest("text", vector, 0.9)
    nearest = max((math.cos((angle - asked) / 10) for angle in newest.values()), default=-1.0)
    assert (found is not None) == (nearest >= 0.9) or nearest == pytest.approx(0.9, abs=1e-5)
    if found is not None:
        assert found[1] == pytest.approx(nearest, abs=1e-5)
        assert found[0][0] in newest
    assert len(shelf.digests) == len(newest)


def test_memory_is_bounded_by_forgetting_whole_shelves() -> None:
    async def main() -> None:
        similar = SimilarAnswers(Embedder(), timeout_s=WAIT_S, max_bytes=2000)
        desk = semantic(similar)
        for number in range(20):
            keep(desk, desk.key(call("one", seed=number)))
            await until(lambda: not similar._adding)
        assert similar.bytes <= 2000
        assert similar.bytes == sum(shelf.nbytes for shelf in similar._shelves.values())
        assert 1 <= len(similar) < 20
        await similar.close()

    run(main())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Who won in 2023?", "Who won in 2024?", False),
        ("Can I smoke here?", "Can't I smoke here?", False),
        ("How do I enable it?", "How do I disable it?", False),
        ("It is 3.5 percent?", "It is 35 percent?", False),
        ("How do I reset my password?", "How can I reset the password?", True),
        ("Why isn't it allowed?", "Why is it not allowed?", True),
    ],
)
def test_numbers_negations_and_opposites_tell_questions_apart(one: str, other: str, same: bool) -> None:
    assert same_facts(one, other) is same
