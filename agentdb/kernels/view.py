"""What a search sees: the rows of an index as they were at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentdb.types import Metric

__all__ = ["METRICS", "PAGE", "View"]

METRICS: dict[Metric, int] = {"dot": 0, "cosine": 1, "l2": 2}
PAGE = 64
"""Rows of a page; a page belongs to one owner."""


@dataclass(frozen=True, slots=True)
class View:
    """The slabs of an index and how far they are filled. Nothing it holds is changed for a row that it contains.

    A row's *address* is its slab's number times ``slab_rows`` plus its place in the slab.

    Attributes:
        metric: what similarity means.
        width: stored numbers of a row, D padded with zeros.
        slab_rows: rows of a slab, a multiple of 128.
        n_rows: addresses in use, dead rows included; every slab but the last is full.
        high: per slab `[slab_rows, width]` bfloat16, the rounded rows.
        low: per slab `[slab_rows, width]` int16: ``(high << 16) + low`` are the bits of the float32.
        alpha: per slab `[slab_rows]` float32, the factor of the rounded scan (1/norm for cosine, and weights).
        beta: per slab `[slab_rows]` float32, its summand.
        weight: per slab the caller's factors; empty if there are none.
        bias: per slab the caller's summands; empty if there are none.
        bits: per slab `[slab_rows / 32]` int32, one bit a live row.
        ids: per slab `[slab_rows]` int64.
        limits: `[4]` float64 over rows: the largest ``|alpha x - alpha' high|``, ``|alpha| |high|``, ``|alpha|``, ``|beta|``.
        table: `[5, S]` int64, device addresses of high, low, alpha, beta and bits of each slab.
        id_table: `[S]` int64 of ids.
        weight_table: `[S]` int64 or None.
        bias_table: `[S]` int64 or None.
        count: `[1]` int64, n_rows on the device.
        version: rises with every change of the index.
        layout: where all slabs lie; equal layouts differ only in ``n_rows``, ``bits``, ``limits`` and what tells them.
    """

    metric: Metric
    width: int
    slab_rows: int
    n_rows: int
    high: tuple[Any, ...]
    low: tuple[Any, ...]
    alpha: tuple[Any, ...]
    beta: tuple[Any, ...]
    weight: tuple[Any, ...]
    bias: tuple[Any, ...]
    bits: tuple[Any, ...]
    ids: tuple[Any, ...]
    limits: Any
    table: Any
    id_table: Any
    weight_table: Any
    bias_table: Any
    count: Any
    version: int
    layout: tuple[int, ...]
    page: int = PAGE

    @property
    def capacity(self) -> int:
        """Rows that the slabs have room for."""
        return sum(len(one) for one in self.ids)

    @property
    def n_slabs(self) -> int:
        """Slabs that hold a row."""
        return -(-self.n_rows // self.slab_rows)

    def rows_in(self, slab: int) -> int:
        """Rows in use in a slab."""
        return min(self.slab_rows, self.n_rows - slab * self.slab_rows)

    def n_groups(self, group: int) -> int:
        """Groups of ``group`` rows that hold a row."""
        return -(-self.n_rows // group)

    def maxima(self, n_queries: int, group: int, torch: Any) -> Any:
        """Return `[Q, groups]` float32 to write group maxima to; further columns, up to a multiple of 32, are -inf."""
        n_groups = self.n_groups(group)
        out = torch.empty((n_queries, -(-n_groups // 32) * 32), dtype=torch.float32, device=self.limits.device)
        if out.shape[1] > n_groups:
            out[:, n_groups:] = float("-inf")
        return out
