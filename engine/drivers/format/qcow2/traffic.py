"""Who is doing what to which clusters right now: allocating writes in flight, and users of host clusters.

All methods but leave() are called with the image's lock held.
"""

from __future__ import annotations

import threading


class Traffic:
    """Exclusion of allocating writes, and epochs that tell when a freed cluster has lost its last user.

    A request that touches guest data outside the lock enters the current epoch while it still holds the lock under
    which it looked the clusters up. Clusters unlinked in an epoch may be handed out again once no request of that
    epoch or an older one is left.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.condition = threading.Condition(lock)
        self._lock = lock
        self._claims: list[tuple[int, int]] = []
        self._waiters = 0
        self.epoch = 0
        self._users: dict[int, int] = {}

    # -- users of host clusters ------------------------------------------------------------------------------

    def enter(self) -> int:
        """Become a user of the clusters just looked up; give the result to leave()."""
        epoch = self.epoch
        self._users[epoch] = self._users.get(epoch, 0) + 1
        return epoch

    def leave(self, epoch: int) -> None:
        """The request is over. Takes the lock."""
        with self._lock:
            left = self._users[epoch] - 1
            if left:
                self._users[epoch] = left
            else:
                del self._users[epoch]

    def new_epoch(self) -> int:
        """Start a new epoch; return the one that ended."""
        self.epoch += 1
        return self.epoch - 1

    @property
    def busy(self) -> bool:
        """Whether any request uses host clusters or allocates."""
        return bool(self._users or self._claims)

    def idle_since(self, epoch: int) -> bool:
        """Whether no request of *epoch* or before is left."""
        return not self._users or min(self._users) > epoch

    # -- allocating writes -----------------------------------------------------------------------------------

    def free_until(self, start: int, stop: int) -> int:
        """How far from guest offset *start* up to *stop* no allocating write is in flight; *start* if one is there."""
        limit = stop
        for first, end in self._claims:
            if first < limit and end > start:
                limit = first if first > start else start
        return limit

    def wait_free(self, start: int, stop: int) -> bool:
        """Wait until no allocating write touches [start, stop). True if it waited: look everything up again."""
        waited = False
        while self._claims and self.free_until(start, stop) < stop:
            waited = True
            self.wait()
        return waited

    def wait(self) -> None:
        """Wait until some claim is released."""
        self._waiters += 1
        try:
            self.condition.wait()
        finally:
            self._waiters -= 1

    def claim(self, start: int, stop: int) -> tuple[int, int]:
        """Mark guest range [start, stop) as being allocated."""
        claim = (start, stop)
        self._claims.append(claim)
        return claim

    def release(self, claim: tuple[int, int]) -> None:
        """The allocation is linked or undone."""
        self._claims.remove(claim)
        if self._waiters:
            self.condition.notify_all()
