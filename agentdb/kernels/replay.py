"""A search that repeats goes to the device as one captured graph instead of a dozen launches.

A graph holds the addresses it was captured with, so it belongs to the rows of one moment: whoever keeps `Replays`
beside those rows drops both together.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from agentdb.kernels.choice import require_torch

__all__ = ["Replay", "Replays"]

_SEEN_BEFORE = 2
"""A capture costs about as much as a search: only what has been asked for before is worth one."""

_log = logging.getLogger(__name__)


class Replay:
    """One captured search: its queries, its numbers and its answer lie in memory that belongs to it.

    Whoever got it from `Replays.take` holds it alone until `release`; so what `launched` holds keeps its values until then.
    """

    def __init__(
        self, device: Any, width: int, n_queries: int, numbers: int, n_columns: int, launch: Callable[[Any, Any], Any]
    ) -> None:
        torch = require_torch()
        self.lock = threading.Lock()
        self.queries = torch.zeros((n_queries, width), dtype=torch.float32, device=device)
        self._numbers = torch.zeros(numbers, dtype=torch.int64).pin_memory()
        self._host = torch.empty((n_queries, n_columns), dtype=torch.int64).pin_memory()
        self._done = torch.cuda.Event()
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # Other threads go on allocating and copying meanwhile, which only this mode allows.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                sent = self._numbers.to(device, non_blocking=True) if numbers else None
                self.launched = launch(self.queries, sent)
                self._host.copy_(self.launched.table, non_blocking=True)
            finally:
                self._graph.capture_end()
        # Kept alive, because the graph reads it by its address.
        self._sent = sent

    def run(self, queries: Any, numbers: npt.NDArray[np.int64] | None) -> None:
        """Start a search for queries of the device `[Q, D]`, and return at once."""
        self.queries[:, : queries.shape[1]].copy_(queries, non_blocking=True)
        if numbers is not None:
            self._numbers.numpy()[:] = numbers
        self._graph.replay()
        self._done.record()

    def result(self) -> npt.NDArray[np.int64]:
        """Wait for the answer and return it in memory that the next run overwrites."""
        self._done.synchronize()
        table: npt.NDArray[np.int64] = self._host.numpy()
        return table

    def release(self) -> None:
        """Let others use it."""
        self.lock.release()


class Replays:
    """The captured searches over the rows of one moment.

    Args:
        limit_bytes: of device memory that captured searches may keep.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._seen: dict[Hashable, int] = {}
        self._known: dict[Hashable, Replay | None] = {}
        self._lock = threading.Lock()

    def take(self, key: Hashable, kept_bytes: int, capture: Callable[[], Replay]) -> Replay | None:
        """Return the search captured under a key, held for the caller alone, or None: launch it the ordinary way.

        Args:
            key: whatever decides which launches are made.
            kept_bytes: what a captured search keeps.
            capture: makes it, once the key has been asked for often enough.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if key not in self._known:
                self._seen[key] = self._seen.get(key, 0) + 1
                if self._seen[key] <= _SEEN_BEFORE or kept_bytes > self._left:
                    return None
                try:
                    self._known[key] = capture()
                except RuntimeError as error:
                    # The ordinary way answers as well, only later.
                    _log.warning("a search could not be captured: %s", error)
                    self._known[key] = None
                else:
                    self._left -= kept_bytes
            found = self._known[key]
        finally:
            self._lock.release()
        return found if found is not None and found.lock.acquire(blocking=False) else None
