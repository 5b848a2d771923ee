"""A search that repeats goes to the device as one captured graph instead of a dozen launches.

A graph holds the addresses it was captured with. Rows are added in place, so a captured search stays good while the slabs
stay where they are: what changes besides (their number, the live bits, the bounds) lies in memory of its own, which is
set before each run to what the searcher's view says.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agentdb.kernels.choice import require_torch
from agentdb.kernels.view import View

__all__ = ["Replay", "Replays"]

_SEEN_BEFORE = 2
"""A capture costs about as much as a search: only what has been asked for before is worth one."""
_MOST_KEYS = 1024

_log = logging.getLogger(__name__)


class Replay:
    """One captured search: its queries, its numbers and its answer lie in memory that belongs to it.

    Whoever got it from `Replays.take` holds it alone until `release`; so what `launched` holds keeps its values until then.
    """

    def __init__(
        self,
        view: View,
        pages: Any,
        n_queries: int,
        numbers: int,
        n_columns: int,
        launch: Callable[[View, Any, Any, Any], Any],
    ) -> None:
        torch = require_torch()
        device = view.table.device
        self.lock = threading.Lock()
        self._view: View | None = None
        # As many rows as there is room for: the kernels stop at `count`, and bits tell which live.
        self._static = replace(
            view,
            n_rows=view.capacity,
            table=torch.empty_like(view.table),
            limits=torch.empty_like(view.limits),
            count=torch.empty_like(view.count),
        )
        self._pages = (
            None if pages is None else torch.zeros(view.capacity // view.page, dtype=torch.int64, device=device)
        )
        self._queries = torch.zeros((n_queries, view.width), dtype=torch.float32, device=device)
        self._numbers = torch.zeros(numbers, dtype=torch.int64).pin_memory()
        self._sent = torch.zeros(numbers, dtype=torch.int64, device=device)
        self._host = torch.empty((n_queries, n_columns), dtype=torch.int64).pin_memory()
        self._done = torch.cuda.Event()
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # Other threads go on allocating and copying meanwhile, which only this mode allows.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.launched = launch(self._static, self._queries, self._sent, self._pages)
                self._host.copy_(self.launched.table, non_blocking=True)
            finally:
                self._graph.capture_end()
        if self.launched.maxima is not None:
            # Groups past the last row are never written.
            self.launched.maxima[0].fill_(float("-inf"))

    def run(self, view: View, pages: Any, queries: Any, numbers: npt.NDArray[np.int64] | None) -> None:
        """Start a search over the rows of a view of the same layout, for `[Q, D]` of the device, and return at once."""
        if view is not self._view:
            for name in ("table", "limits", "count"):
                getattr(self._static, name).copy_(getattr(view, name))
            if pages is not None and self._pages is not None:
                self._pages[: len(pages)].copy_(pages)
            self._view = view
        self._queries[:, : queries.shape[1]].copy_(queries, non_blocking=True)
        if numbers is not None:
            # Outside the graph, so that it travels while the graph is being launched.
            self._numbers.numpy()[:] = numbers
            self._sent.copy_(self._numbers, non_blocking=True)
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
    """The captured searches of an index, good for one layout of its slabs at a time.

    Args:
        limit_bytes: of device memory that captured searches may keep.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes
        self._version = -1
        self._layout: tuple[int, ...] = ()
        self._seen: dict[Hashable, int] = {}
        self._known: dict[Hashable, Replay | None] = {}
        self._lock = threading.Lock()

    def take(self, view: View, key: Hashable, kept_bytes: int, capture: Callable[[], Replay]) -> Replay | None:
        """Return the search captured under a key, held for the caller alone, or None: launch it the ordinary way.

        Args:
            view: what is searched.
            key: whatever else decides which launches are made.
            kept_bytes: what a captured search keeps.
            capture: makes it, once the key has been asked for often enough.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if view.layout != self._layout:
                if view.version < self._version:
                    return None  # a search that began before the slabs moved
                self._known, self._left, self._layout = {}, self._limit, view.layout
            self._version = max(self._version, view.version)
            if key not in self._known:
                if len(self._seen) > _MOST_KEYS:
                    self._seen = {}
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
