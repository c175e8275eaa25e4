"""What requests may hold in memory at once."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from pipeline import metrics
from pipeline.ingest.problem import ProblemError

#: The part of the budget, one in so many, that requests of unverified signatures may hold together.
_UNVERIFIED_SHARE: Final = 4


class Budget:
    """Bytes of requests being handled, over all and per key, bounded. Used from any thread.

    Over all: 503, the gateway is full. One key above half: 429, so that it leaves room for the others. So do
    all requests together whose signature is not verified yet: anybody can send one, and name any key.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._unverified = 0
        self._by_key: Counter[str] = Counter()
        self._lock = threading.Lock()
        metrics.gateway_in_flight_bytes.set_function(lambda: self._used)

    def take(self, key_id: str, size: int, *, verified: bool = True, own: int = 0) -> None:
        """own : bytes that the same request holds already: alone, a key may hold more than half.

        Raises ProblemError 429 or 503.
        """
        with self._lock:
            held = self._by_key[key_id]
            if held + size > self._limit // 2 and held > own:
                raise ProblemError(
                    429, "too_many_requests", "too much is under way with this key; send slower"
                )
            if self._used + size > self._limit:
                raise ProblemError(503, "overloaded", "the gateway is handling all it can; send again")
            if not verified:
                if self._unverified + size > self._limit // _UNVERIFIED_SHARE:
                    raise ProblemError(
                        503,
                        "overloaded",
                        "too many signatures are being verified; send again, or with a plain key",
                    )
                self._unverified += size
            self._used += size
            self._by_key[key_id] += size

    def verify(self, size: int) -> None:
        """These bytes, taken before, are of a request whose signature is verified now."""
        with self._lock:
            self._unverified -= size

    def give_back(self, key_id: str, size: int, *, verified: bool = True) -> None:
        with self._lock:
            self._used -= size
            if not verified:
                self._unverified -= size
            self._by_key[key_id] -= size
            if self._by_key[key_id] <= 0:
                del self._by_key[key_id]


class Hold:
    """What one request holds of a budget, until `give_back`. size : bytes now.

    It grows on the thread that unpacks the body, which goes on when the request is cancelled: then `grow`
    refuses, so that nothing is held for nobody.
    """

    def __init__(self, budget: Budget, key_id: str, size: int, *, verified: bool) -> None:
        budget.take(key_id, size, verified=verified)
        self._budget = budget
        self._key_id = key_id
        self._verified = verified
        self._over = False
        self._lock = threading.Lock()
        self.size = size

    def grow(self, size: int) -> None:
        """Raises ProblemError 429 or 503."""
        with self._lock:
            if self._over:
                raise ProblemError(503, "overloaded", "the request has ended")
            self._budget.take(self._key_id, size, verified=self._verified, own=self.size)
            self.size += size

    def verify(self) -> None:
        """The request's signature is verified now."""
        with self._lock:
            self._budget.verify(self.size)
            self._verified = True

    def give_back(self) -> None:
        with self._lock:
            self._over = True
            self._budget.give_back(self._key_id, self.size, verified=self._verified)
