"""Samples that know with which chance each of their members came in.

A member's weight is the inverse of that chance; sums over the sample, each value times its weight, are then unbiased
for sums over everything there was (Horvitz and Thompson, "A generalization of sampling without replacement from a
finite universe", 1952). Chance comes from a hash of seed and key: the same seed draws the same members, whatever the
order in which they were read and in whatever process.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from tidemill.kernel import InvalidInput

Allocation = Literal["equal", "proportional"]

_RANKS: Final = 2.0**64


class Unit(NamedTuple):
    """What may be drawn.

    Args:
        key: unlike any other's.
        stratum: the part of the population it belongs to; empty where there are no parts.
        size: above zero; the chance of being drawn is proportional to it. 1 where all are alike.
    """

    key: str
    stratum: str = ""
    size: float = 1.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """A member of a sample.

    Args:
        key: the unit's.
        probability: the chance with which it came in, in (0, 1].
        stratum: the unit's.
    """

    key: str
    probability: float
    stratum: str = ""

    @property
    def weight(self) -> float:
        """How many of the population it stands for: the inverse of its chance."""
        return 1 / self.probability


@dataclass(frozen=True, slots=True)
class Sample:
    """What was drawn, by key, and the sizes of the strata it was drawn from."""

    drawn: tuple[Drawn, ...]
    strata: Mapping[str, int]

    @property
    def population(self) -> int:
        """How many there were to draw from."""
        return sum(self.strata.values())


def draw_stratified(units: Iterable[Unit], size: int, *, seed: int, allocation: Allocation = "proportional") -> Sample:
    """Draw from every stratum alone, without replacement, each of a stratum's members with the same chance.

    With one stratum this is a simple random sample. Memory holds at most ``size`` members of each stratum.

    Args:
        units: the population; read once.
        size: members to draw; all where there are fewer.
        seed: chooses the sample.
        allocation: ``equal`` draws the same number from each stratum as far as it has so many, ``proportional`` draws
            as the strata are large, and at least one of each.

    Raises:
        InvalidInput: fewer members are asked for than there are strata: those left out could never come in.
    """
    _check_size(size)
    counts: dict[str, int] = {}
    lowest: dict[str, list[tuple[int, str]]] = {}  # heaps of the ranks so far lowest, negated
    for unit in units:
        counts[unit.stratum] = counts.get(unit.stratum, 0) + 1
        heap = lowest.setdefault(unit.stratum, [])
        entry = (-_rank(seed, unit.key), unit.key)
        if len(heap) < size:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
    if len(counts) > size:
        raise InvalidInput(
            f"{size} rows cannot be drawn from {len(counts)} strata: each needs one.",
            hint="Draw more, or stratify by something with fewer values.",
        )
    shares = _allocated(counts, size, allocation)
    drawn = [
        Drawn(key, shares[stratum] / counts[stratum], stratum)
        for stratum, heap in lowest.items()
        for _, key in heapq.nlargest(shares[stratum], heap)
    ]
    return Sample(tuple(sorted(drawn, key=lambda one: one.key)), dict(sorted(counts.items())))


def draw_by_size(units: Iterable[Unit], size: int, *, seed: int) -> Sample:
    """Draw with chances proportional to sizes, exactly ``size`` members (all where there are fewer).

    Systematic sampling over a random order (Madow, 1949): the chances are exact, the number drawn is fixed. Units so
    large that their share would exceed one are taken with certainty.

    Args:
        units: the population; read once and held in memory.
        size: members to draw.
        seed: chooses the sample.

    Raises:
        InvalidInput: a size that is not above zero: such a unit could never come in.
    """
    _check_size(size)
    ordered = sorted((_rank(seed, unit.key), unit) for unit in units)
    for _, unit in ordered:
        if not 0 < unit.size < math.inf:
            raise InvalidInput(f"the size of '{unit.key}' is {unit.size}; it must be above zero")
    counts: dict[str, int] = {}
    for _, unit in ordered:
        counts[unit.stratum] = counts.get(unit.stratum, 0) + 1
    certain, left, total = _certainties([unit for _, unit in ordered], size)
    drawn = [Drawn(unit.key, 1.0, unit.stratum) for unit in certain]
    wanted = size - len(certain)
    if left and wanted > 0:
        # Chances reach `wanted` at the last unit; a mark stands at a random place within each whole one.
        mark = _rank(seed, "start") / _RANKS
        reached = 0.0
        for unit in left:
            probability = wanted * unit.size / total
            reached += probability
            if reached > mark:
                drawn.append(Drawn(unit.key, probability, unit.stratum))
                mark += 1
    return Sample(tuple(sorted(drawn, key=lambda one: one.key)), dict(sorted(counts.items())))


def uncertainty(probability: float, *, floor: float = 0.05) -> float:
    """How uncertain a score in [0, 1] is: 1 at one half, ``floor`` at 0 and 1.

    The variance of a coin with that chance, scaled; the floor gives every unit a chance to come in.

    Raises:
        InvalidInput: the score is out of range.
    """
    if not 0 <= probability <= 1:
        raise InvalidInput(f"a score of {probability:g} is out of range: uncertainty is that of scores from 0 to 1")
    return floor + (1 - floor) * 4 * probability * (1 - probability)


def _certainties(units: Sequence[Unit], size: int) -> tuple[list[Unit], list[Unit], float]:
    """Those that are taken for certain, the others, and the others' sizes added up."""
    if size >= len(units):
        return list(units), [], 0.0
    ordered = sorted(units, key=lambda unit: -unit.size)
    rest = math.fsum(unit.size for unit in units)
    taken = 0
    while taken < size and (size - taken) * ordered[taken].size >= rest:
        rest -= ordered[taken].size
        taken += 1
    certain = {unit.key for unit in ordered[:taken]}
    left = [unit for unit in units if unit.key not in certain]
    return ordered[:taken], left, math.fsum(unit.size for unit in left)


def _allocated(counts: Mapping[str, int], size: int, allocation: Allocation) -> dict[str, int]:
    """How many to draw from each stratum: at least one, at most all, ``size`` together."""
    if sum(counts.values()) <= size:
        return dict(counts)
    shares = dict.fromkeys(counts, 1)
    total = sum(counts.values())
    # What is wanted of each; one at a time goes to whoever is furthest below it.
    wanted = {
        name: size / len(counts) if allocation == "equal" else size * count / total for name, count in counts.items()
    }
    heap = [(-(wanted[name] - 1), name) for name in sorted(counts) if counts[name] > 1]
    heapq.heapify(heap)
    for _ in range(size - len(counts)):
        _, name = heapq.heappop(heap)
        shares[name] += 1
        if shares[name] < counts[name]:
            heapq.heappush(heap, (-(wanted[name] - shares[name]), name))
    return shares


def _check_size(size: int) -> None:
    if size < 1:
        raise InvalidInput(f"{size} rows cannot be drawn: one is the least")


def _rank(seed: int, key: str) -> int:
    """64 bits that nobody can tell from random ones."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
