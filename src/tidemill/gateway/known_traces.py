"""Which traces a host's workers answered lately, so that feedback on a mistaken trace id can be told from a late one.

A file of fixed size that all workers of a host map: one slot of eight bytes for each of ``SLOTS`` places. The last bits
of a trace id say which place, its first ones are what is noted there, both turned by the tenant, so that a trace is
known to its own tenant alone. A later trace takes the place of an earlier one; there is no lock, for a note is one
aligned word. It is a memory and no register: "unknown" proves nothing, "known" errs once in 2**64.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SLOTS: Final = 1 << 17
"""Places; a trace is remembered for about as many later ones."""

_NOTE: Final = struct.Struct("<Q")
_write: Final = _NOTE.pack_into
_PLACE: Final = SLOTS - 1


class KnownTraces:
    """The traces that were answered lately.

    Args:
        path: the file, made where it is missing.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        size = SLOTS * _NOTE.size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            self._notes = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._turns: dict[str, int] = {}

    def remember(self, tenant: str, trace_ids: Iterable[str]) -> None:
        """Note traces.

        Args:
            tenant: whose.
            trace_ids: 32 hexadecimal digits each.
        """
        turn, notes = self._turns.get(tenant), self._notes
        if turn is None:
            turn = self._turn(tenant)
        for trace_id in trace_ids:
            number = int(trace_id, 16) ^ turn
            _write(notes, (number & _PLACE) << 3, number >> 64)

    def knows(self, tenant: str, trace_id: str) -> bool:
        """Whether a trace of the tenant was noted, and its place not taken since."""
        number = int(trace_id, 16) ^ self._turn(tenant)
        return int(_NOTE.unpack_from(self._notes, (number & _PLACE) << 3)[0]) == number >> 64

    def _turn(self, tenant: str) -> int:
        turn = self._turns.get(tenant)
        if turn is None:
            turn = int.from_bytes(hashlib.blake2b(tenant.encode(), digest_size=16).digest(), "big")
            self._turns[tenant] = turn
        return turn
