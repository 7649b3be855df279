"""Questions that mean the same: the nearest earlier question of the same shelf, by the cosine of embeddings.

A shelf is everything in the request but the last user message's text (see ``keys.read_question``), so only questions
of one user scope, one release, one system prompt and one course of the conversation are ever compared. The
cosine alone mistakes "in 2023" for "in 2024" and "can I" for "can't I": questions whose numbers, negations or
opposites differ are never the same here, however near.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from tidemill.gateway.cache.keys import Question

if TYPE_CHECKING:
    import numpy as np

_log = logging.getLogger(__name__)

Embed = Callable[[str], Awaitable[Sequence[float]]]
"""Turns a text into its vector, of any length but zero; raises what it likes, which counts as a miss."""

_FIRST_ROWS: Final = 4
_BLOCK_ROWS: Final = 512
_EMBED_MOST_S: Final = 10.0
_TEXT_BYTES: Final = 200  # what a row costs beside its vector and the characters of its text
_NUMBERS: Final = re.compile(r"\d+(?:[.,]\d+)*")
_WORDS: Final = re.compile(r"[^\W\d_]+(?:['’]t)?")
_NEGATION_WORDS: Final = (
    "no not never none nobody nothing neither nor without cannot cant dont doesnt isnt wont nicht kein keine nie ne pas"
)
_OPPOSED_WORDS: Final = (
    "enable disable on off open close start stop before after increase decrease more less most least best worst first "
    "last high low higher lower highest lowest maximum minimum max min buy sell add remove install uninstall upload "
    "download import export login logout up down in out left right north south east west male female man woman men "
    "women legal illegal safe unsafe allow forbid include exclude encrypt decrypt encode decode old new older newer "
    "oldest newest largest smallest longest shortest positive negative"
)
_NEGATIONS: Final = frozenset(_NEGATION_WORDS.split())
_OPPOSED: Final = frozenset(_OPPOSED_WORDS.split())


def same_facts(one: str, other: str) -> bool:
    """Whether two questions agree in what an embedding hardly sees: numbers, negation, words with an opposite."""
    return _facts(one) == _facts(other)


def _facts(text: str) -> tuple[list[str], bool, frozenset[str]]:
    words = [word.lower().replace("’", "'") for word in _WORDS.findall(text)]
    negated = sum(word.endswith("'t") or word in _NEGATIONS for word in words) % 2 == 1
    return sorted(_NUMBERS.findall(text)), negated, _OPPOSED.intersection(words)


class Shelf:
    """Unit vectors of questions and where their answers are kept; the oldest gives way when the shelf is full.

    Args:
        dimensions: of its vectors.
        capacity: most rows.
    """

    __slots__ = ("_capacity", "_chars", "_next", "digests", "texts", "vectors")

    def __init__(self, dimensions: int, capacity: int) -> None:
        import numpy as np

        self.vectors = np.zeros((min(_FIRST_ROWS, capacity), dimensions), np.float32)
        self.digests: list[bytes] = []
        self.texts: list[str] = []
        self._capacity = capacity
        self._chars = 0
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Memory of vectors and texts."""
        return self.vectors.nbytes + 4 * self._chars + _TEXT_BYTES * len(self.texts)

    def add(self, digest: bytes, text: str, vector: np.ndarray) -> None:
        """Put a question at the end, or in place of the oldest."""
        import numpy as np

        rows = len(self.digests)
        if rows == len(self.vectors) and rows < self._capacity:
            more = min(self._capacity, 2 * rows) - rows
            self.vectors = np.vstack([self.vectors, np.zeros((more, self.vectors.shape[1]), np.float32)])
        self._chars += len(text)
        if rows < len(self.vectors):
            place = rows
            self.digests.append(digest)
            self.texts.append(text)
        else:
            place = self._next
            self._next = (place + 1) % rows
            self._chars -= len(self.texts[place])
            self.digests[place], self.texts[place] = digest, text
        self.vectors[place] = vector

    def nearest(self, text: str, vector: np.ndarray, floor: float) -> tuple[bytes, float] | None:
        """The nearest question at or above the floor that agrees in its facts: its answer's key, and the cosine."""
        import numpy as np

        rows = len(self.digests)
        if not rows:
            return None
        # In blocks: the library would put threads to a larger product, which cost more than they compute.
        blocks = [self.vectors[at : min(at + _BLOCK_ROWS, rows)] @ vector for at in range(0, rows, _BLOCK_ROWS)]
        cosines = np.concatenate(blocks)
        best = int(cosines.argmax())
        while cosines[best] >= floor:
            if same_facts(text, self.texts[best]):
                return self.digests[best], float(min(cosines[best], 1.0))
            cosines[best] = -2.0
            best = int(cosines.argmax())
        return None


class SimilarAnswers:
    """A worker's semantic index. Answers themselves lie in the ``AnswerStore``; here are vectors and keys.

    Args:
        embed: turns a text into a vector, e.g. by an OpenAI-compatible ``/v1/embeddings``.
        timeout_s: a look-up that takes longer misses; its vector is still used to keep the answer.
        most_chars: longer questions are neither looked up nor kept: an embedding model reads only the beginning of a
            text, and two texts that begin alike are not the same.
        concurrency: embeddings asked for at once; beyond them look-ups miss.
        max_bytes: of all shelves; the least recently used go first.
        shelf_rows: questions on one shelf.
    """

    def __init__(
        self,
        embed: Embed,
        *,
        timeout_s: float = 0.15,
        most_chars: int = 800,
        concurrency: int = 16,
        max_bytes: int = 32 * 1024 * 1024,
        shelf_rows: int = 2048,
    ) -> None:
        self.most_chars = most_chars
        self.bytes = 0
        self.misses_late = 0
        self.failures = 0
        import numpy  # noqa: F401 - now, not while a request waits

        self._embed = embed
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._max_bytes = max_bytes
        self._shelf_rows = shelf_rows
        self._shelves: OrderedDict[bytes, Shelf] = OrderedDict()  # least recently used first
        self._asked: OrderedDict[Question, asyncio.Task[np.ndarray | None]] = OrderedDict()
        self._adding: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(len(shelf.digests) for shelf in self._shelves.values())

    async def find(self, question: Question, floor: float) -> tuple[bytes, float] | None:
        """The key of the answer to the nearest question and their cosine; ``None`` below the floor or out of time.

        Args:
            question: what to look for.
            floor: least cosine.
        """
        shelf = self._shelves.get(question.shelf)
        task = self._vector(question)
        if task is None or shelf is None:
            return None  # the vector is wanted all the same: it comes with the answer that is kept
        done, _ = await asyncio.wait((task,), timeout=self._timeout_s)
        if not done:
            self.misses_late += 1
            return None
        vector = task.result()
        if vector is None or vector.shape[0] != shelf.vectors.shape[1]:
            return None
        if question.shelf in self._shelves:
            self._shelves.move_to_end(question.shelf)
        return shelf.nearest(question.text, vector, floor)

    def add(self, question: Question, digest: bytes) -> None:
        """Put a question on its shelf as soon as its vector is there."""
        task = self._vector(question)
        if task is not None:
            adding = asyncio.get_running_loop().create_task(self._add(question, digest, task))
            self._adding.add(adding)
            adding.add_done_callback(self._adding.discard)

    async def close(self) -> None:
        """Stop asking for vectors."""
        tasks = [*self._asked.values(), *self._adding]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _vector(self, question: Question) -> asyncio.Task[np.ndarray | None] | None:
        """The task that makes a question's vector: one a question, however often it is wanted."""
        task = self._asked.get(question)
        if task is None and sum(not one.done() for one in self._asked.values()) < self._concurrency:
            task = asyncio.get_running_loop().create_task(self._embedded(question.text))
            self._asked[question] = task
            for old in [one for one, other in self._asked.items() if other.done()][: -4 * self._concurrency]:
                del self._asked[old]
        return task

    async def _embedded(self, text: str) -> np.ndarray | None:
        import numpy as np

        try:
            async with asyncio.timeout(_EMBED_MOST_S):
                vector = np.asarray(await self._embed(text), np.float32)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the embedding model, the request goes on
            self.failures += 1
            _log.warning("semantic cache: no embedding: %s", error)
            return None
        length = float(np.linalg.norm(vector)) if vector.ndim == 1 else 0.0
        return vector / length if 0.0 < length < float("inf") else None

    async def _add(self, question: Question, digest: bytes, task: asyncio.Task[np.ndarray | None]) -> None:
        vector = await task
        if vector is None:
            return
        shelf = self._shelves.get(question.shelf)
        if shelf is None or shelf.vectors.shape[1] != len(vector):
            self._drop(question.shelf)
            shelf = self._shelves[question.shelf] = Shelf(len(vector), self._shelf_rows)
        self.bytes -= shelf.nbytes if shelf.digests else 0
        shelf.add(digest, question.text, vector)
        self.bytes += shelf.nbytes
        self._shelves.move_to_end(question.shelf)
        while self.bytes > self._max_bytes and len(self._shelves) > 1:
            self._drop(next(iter(self._shelves)))

    def _drop(self, name: bytes) -> None:
        shelf = self._shelves.pop(name, None)
        if shelf is not None:
            self.bytes -= shelf.nbytes
