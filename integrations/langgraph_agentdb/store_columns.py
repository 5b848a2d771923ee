"""Many items in memory as columns, so that a filter is answered for all of them by a few comparisons of arrays.

Of each item there are its key, its times and its value as JSON text; of a place in the values that is asked for, what lies there
in every item, as numbers. Only the items of a page become objects.

Like a namespace in memory, columns hold as long as the number of the store's last change is the one that they know. When it is
not, what was written since is read by its number and appended; what was deleted shows in the number of items of a namespace.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from agentdb import And, Compare, Exists, Filter, In, IsNull, Not, Or

__all__ = ["COLUMNS", "ColumnSets", "Columns", "HeldColumns", "paths_of"]

Mask = npt.NDArray[np.bool_]
Path = tuple[str, ...]
Counts = Mapping[str, int]
"""How many items each namespace has."""

COLUMNS = ["namespace", "key", "value", "created_at", "updated_at", "ttl", "vectors"]
"""What is read of the items."""
_ORDER: Any = [("updated_at", "ascending"), ("namespace", "descending"), ("key", "descending")]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ABSENT, _NULL, _FALSE, _TRUE, _NUMBER, _TEXT, _OTHER = range(7)
_ITEM_BYTES = 500
"""What an item takes besides its text, about."""
_LEAF_BYTES = 13
_TEXT_BYTES = 200
"""What a text among the leaves takes besides its characters, about: it stands in a list and in a dictionary."""
_IN_TABLES = 1
"""So many searches for the same are answered by the tables: what is asked once does not pay for columns."""
_REMEMBERED = 4_096
_WORN_ROWS = 4_096
_AGAIN = 1_000
"""After so many searches it is tried again whether what was too much to hold fits now."""


class _Leaf:
    """What lies at one place of the values of all items.

    ``kinds`` `[N]` says what it is, ``numbers`` `[N]` holds numbers and is NaN elsewhere, ``codes`` `[N]` says which of ``texts``
    it is, -1 where it is none.
    """

    __slots__ = ("codes", "kinds", "known", "numbers", "text_bytes", "texts")

    def __init__(self) -> None:
        self.kinds = np.empty(0, np.uint8)
        self.numbers = np.empty(0, np.float64)
        self.codes = np.empty(0, np.int32)
        self.texts: list[str] = []
        self.known: dict[str, int] = {}
        self.text_bytes = 0

    def bytes(self) -> int:
        """Return about what it takes."""
        return _LEAF_BYTES * len(self.kinds) + self.text_bytes

    def longer(self, found: Sequence[Any]) -> _Leaf:
        """Return the column with what lies in more items behind its own."""
        kinds = np.fromiter((_KINDS.get(type(one), _OTHER) for one in found), np.uint8, len(found))
        numbers = np.full(len(found), np.nan)
        codes = np.full(len(found), -1, np.int32)
        for i in np.flatnonzero(kinds == _NUMBER).tolist():
            numbers[i] = float(found[i])
        for i in np.flatnonzero(kinds == _TRUE).tolist():
            if not found[i]:
                kinds[i] = _FALSE
        for i in np.flatnonzero(kinds == _TEXT).tolist():
            codes[i] = self._code(found[i])
        made = _Leaf()
        made.kinds = np.concatenate([self.kinds, kinds])
        made.numbers = np.concatenate([self.numbers, numbers])
        made.codes = np.concatenate([self.codes, codes])
        # Texts are only ever added: an older column goes on with the codes that it has.
        made.texts, made.known, made.text_bytes = self.texts, self.known, self.text_bytes
        return made

    def _code(self, text: str) -> int:
        code = self.known.get(text)
        if code is None:
            code = self.known[text] = len(self.texts)
            self.texts.append(text)
            self.text_bytes += _TEXT_BYTES + len(text)
        return code

    def compared(self, op: str, wanted: str | float) -> Mask:
        """Return `[N]` where a value of the same type stands in this relation."""
        if isinstance(wanted, bool):
            return np.equal(self.kinds, _TRUE if wanted else _FALSE)
        if not isinstance(wanted, str):
            return _compared(self.numbers, op, float(wanted))
        if op == "eq":
            code = self.known.get(wanted)
            return np.zeros(len(self.codes), np.bool_) if code is None else np.equal(self.codes, code)
        compare = {"lt": wanted.__gt__, "lte": wanted.__ge__, "gt": wanted.__lt__, "gte": wanted.__le__}[op]
        fits = np.fromiter((compare(text) for text in [*self.texts, ""]), np.bool_)
        fits[-1] = False  # where -1 leads
        mask: Mask = fits[self.codes]
        return mask

    def one_of(self, wanted: Sequence[str | float]) -> Mask:
        """Return `[N]` where a value is equal to one of these, which may be of several types."""
        flags = [_TRUE if one else _FALSE for one in wanted if isinstance(one, bool)]
        numbers = [float(one) for one in wanted if not isinstance(one, bool | str)]
        codes = [self.known[one] for one in wanted if isinstance(one, str) and one in self.known]
        mask: Mask = np.isin(self.kinds, flags) | np.isin(self.numbers, numbers) | np.isin(self.codes, codes)
        return mask


_KINDS = {type(None): _NULL, bool: _TRUE, int: _NUMBER, float: _NUMBER, str: _TEXT, dict: _OTHER, list: _OTHER}


class _Absent:
    """Nothing lies there."""


_KINDS[_Absent] = _ABSENT
_NOTHING = _Absent()


def _compared(numbers: npt.NDArray[np.float64], op: str, wanted: float) -> Mask:
    match op:
        case "eq":
            return np.equal(numbers, wanted)
        case "lt":
            return np.less(numbers, wanted)
        case "lte":
            return np.less_equal(numbers, wanted)
        case "gt":
            return np.greater(numbers, wanted)
        case _:
            return np.greater_equal(numbers, wanted)


@dataclass(frozen=True, slots=True)
class Columns:
    """The items below a prefix as of a revision of the store, oldest first. Never changed: a change makes another one.

    What grows by appending (``keys``, ``texts``, ``names``) is shared by successive ones, and each looks at its own part.
    """

    prefix: str
    revision: int
    namespaces: npt.NDArray[np.int32]
    """`[N]`: which of ``names`` an item is in."""
    names: list[str]
    keys: list[str]
    texts: list[str]
    """Values as JSON."""
    created: npt.NDArray[np.int64]
    updated: npt.NDArray[np.int64]
    """`[N]` in microseconds."""
    ttls: npt.NDArray[np.float64]
    """`[N]` in minutes; NaN: none."""
    counts: npt.NDArray[np.int32]
    alive: Mask
    """`[N]`: False where an item was replaced or deleted."""
    leaves: Mapping[Path, _Leaf]
    is_sorted: bool

    def __len__(self) -> int:
        return len(self.alive)

    @property
    def any_ttl(self) -> bool:
        """Whether an item may ever expire."""
        return not bool(np.isnan(self.ttls).all())

    def bytes(self, text_bytes: int) -> int:
        """Return about what it takes, given the length of all values."""
        return text_bytes + _ITEM_BYTES * len(self) + sum(leaf.bytes() for leaf in self.leaves.values())

    def rows(self, prefix: str, tree: Filter | None) -> Sequence[int] | npt.NDArray[np.int64]:
        """Return the rows of the items below a prefix, its own or a longer one, that a tree lets through, newest first."""
        mask = self.alive if tree is None else self._mask(tree) & self.alive
        if prefix != self.prefix:
            below = np.fromiter((name.startswith(prefix) for name in self.names), np.bool_)
            mask = mask & below[self.namespaces]
        rows = np.flatnonzero(mask)[::-1]
        return rows if self.is_sorted else sorted(rows.tolist(), key=self._newest_first)

    def _newest_first(self, row: int) -> Any:
        return -int(self.updated[row]), self.names[self.namespaces[row]], self.keys[row]

    def at(self, row: int) -> tuple[str, str]:
        """Return namespace and key of an item."""
        return self.names[self.namespaces[row]], self.keys[row]

    def item(self, row: int) -> dict[str, Any]:
        """Return an item, as a row of its table."""
        namespace, key = self.at(row)
        ttl = float(self.ttls[row])
        return {
            "namespace": namespace,
            "key": key,
            "value": json.loads(self.texts[row]),
            "created_at": _moment(self.created[row]),
            "updated_at": _moment(self.updated[row]),
            "ttl": None if np.isnan(ttl) else ttl,
            "vectors": int(self.counts[row]),
        }

    def _mask(self, tree: Filter) -> Mask:
        match tree:
            case And():
                mask = np.ones(len(self), np.bool_)
                for one in tree.filters:
                    mask &= self._mask(one)
                return mask
            case Or():
                mask = np.zeros(len(self), np.bool_)
                for one in tree.filters:
                    mask |= self._mask(one)
                return mask
            case Not():
                return ~self._mask(tree.condition)
            case Exists():
                return np.not_equal(self.leaves[tree.path].kinds, _ABSENT)
            case IsNull():
                return np.equal(self.leaves[tree.path].kinds, _NULL)
            case Compare():
                return self.leaves[tree.path].compared(tree.op, tree.value)
            case In(negated=False):
                return self.leaves[tree.path].one_of(tree.values)
        raise TypeError(f"a store's filter makes no {type(tree).__name__}")


def _moment(microseconds: Any) -> datetime:
    return _EPOCH + timedelta(microseconds=int(microseconds))


def paths_of(tree: Filter | None) -> set[Path]:
    """Return the places that a tree looks at."""
    match tree:
        case None:
            return set()
        case And() | Or():
            return {path for one in tree.filters for path in paths_of(one)}
        case Not():
            return paths_of(tree.condition)
        case Exists() | IsNull() | Compare() | In():
            return {tree.path}
    raise TypeError(f"a store's filter makes no {type(tree).__name__}")


class HeldColumns:
    """The columns of a prefix, brought up to date again and again; by one thread at a time, which has its lock."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.lock = threading.Lock()
        self.is_dropped = False
        self.columns = Columns(
            prefix, 0, np.empty(0, np.int32), [], [], [], np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64),
            np.empty(0, np.int32), np.empty(0, np.bool_), {}, is_sorted=True,
        )  # fmt: skip
        self._rows: dict[tuple[int, str], int] = {}
        self._codes: dict[str, int] = {}
        self._text_bytes = 0

    def bytes(self) -> int:
        """Return about what they take."""
        return self.columns.bytes(self._text_bytes)

    def estimated_bytes(self, items: int) -> int:
        """Return about what they take at least when there are so many items."""
        return self._text_bytes + _ITEM_BYTES * items

    def append(self, revision: int, table: pa.Table) -> None:
        """Take over items that were written, of whatever namespace; those of the same keys are replaced."""
        before = self.columns
        if self.prefix:
            table = table.filter(pc.starts_with(table.column("namespace"), self.prefix))
        table = table.sort_by(_ORDER)
        first, size = len(before), table.num_rows
        names, keys = table.column("namespace").to_pylist(), table.column("key").to_pylist()
        texts = table.column("value").cast(pa.string()).to_pylist()
        codes = [self._code(name) for name in names]
        alive = np.concatenate([before.alive, np.ones(size, np.bool_)])
        for row, at in enumerate(zip(codes, keys, strict=True), first):
            old = self._rows.get(at)
            if old is not None:
                alive[old] = False
            self._rows[at] = row
        updated = _integers(table.column("updated_at"))
        is_sorted = before.is_sorted and (not first or not size or int(before.updated[-1]) < int(updated[0]))
        before.keys.extend(keys)
        before.texts.extend(texts)
        self._text_bytes += sum(map(len, texts))
        ttls = table.column("ttl").to_numpy(zero_copy_only=False).astype(np.float64)
        self.columns = Columns(
            self.prefix,
            revision,
            np.concatenate([before.namespaces, np.array(codes, np.int32)]),
            before.names,
            before.keys,
            before.texts,
            np.concatenate([before.created, _integers(table.column("created_at"))]),
            np.concatenate([before.updated, updated]),
            np.concatenate([before.ttls, ttls]),
            np.concatenate([before.counts, table.column("vectors").to_numpy().astype(np.int32)]),
            alive,
            _longer(before.leaves, texts),
            is_sorted,
        )

    def _code(self, name: str) -> int:
        code = self._codes.get(name)
        if code is None:
            code = self._codes[name] = len(self.columns.names)
            self.columns.names.append(name)
        return code

    def differing(self, counts: Counts) -> list[str]:
        """Return the namespaces that have more items here than they should: some were deleted."""
        columns = self.columns
        here = np.bincount(columns.namespaces[columns.alive], minlength=len(columns.names)).tolist()
        return [name for name, count in zip(columns.names, here, strict=True) if count != counts.get(name, 0)]

    def retain(self, names: Iterable[str], kept: set[tuple[str, str]]) -> None:
        """Forget the items of namespaces that are not among those which are there."""
        columns = self.columns
        alive = columns.alive.copy()
        codes = [self._codes[name] for name in names]
        for row in np.flatnonzero(alive & np.isin(columns.namespaces, codes)).tolist():
            if columns.at(row) not in kept:
                alive[row] = False
                del self._rows[int(columns.namespaces[row]), columns.keys[row]]
        self.columns = _replaced(columns, alive=alive)

    def add_leaves(self, paths: Iterable[Path]) -> None:
        """Make columns of places in the values."""
        columns = self.columns
        leaves = {**columns.leaves, **_longer(dict.fromkeys(paths, _Leaf()), columns.texts)}
        self.columns = _replaced(columns, leaves=leaves)

    def drop_leaves(self) -> None:
        """Forget what was made of places in the values."""
        self.columns = _replaced(self.columns, leaves={})

    @property
    def is_worn(self) -> bool:
        """Whether most of it is of the past."""
        alive = self.columns.alive
        return bool(len(alive) > _WORN_ROWS and 2 * np.count_nonzero(alive) < len(alive))


def _replaced(columns: Columns, **changes: Any) -> Columns:
    values = {name: getattr(columns, name) for name in Columns.__slots__}
    return Columns(**{**values, **changes})


def _integers(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return found


def _longer(leaves: Mapping[Path, _Leaf], texts: Sequence[str]) -> dict[Path, _Leaf]:
    """Return columns of places with what lies there in more values."""
    found: dict[Path, list[Any]] = {path: [] for path in leaves}
    steps = [(path[1:], into.append) for path, into in found.items()]
    if steps:
        for text in texts:
            value = json.loads(text)
            for keys, put in steps:
                one = value
                for key in keys:
                    one = one.get(key, _NOTHING) if type(one) is dict else _NOTHING
                put(one)
    return {path: leaf.longer(found[path]) for path, leaf in leaves.items()}


class ColumnSets:
    """Which columns are held: those of what was asked for before, as far as they fit. Safe for threads."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._mutex = threading.Lock()
        self._held: OrderedDict[str, HeldColumns] = OrderedDict()
        self._asked: OrderedDict[tuple[str, Path], int] = OrderedDict()

    def find(self, prefix: str, paths: Iterable[Path]) -> HeldColumns | None:
        """Return the columns for a search below a prefix; None: the tables are to be searched."""
        with self._mutex:
            held = next((one for one in self._held.values() if prefix.startswith(one.prefix)), None)
            if held is None:
                missing = [(prefix, path) for path in [(), *paths]]
            else:
                missing = [(held.prefix, path) for path in paths if path not in held.columns.leaves]
            # All are counted, also where one of them decides.
            if missing and min([self._ask(one) for one in missing]) <= _IN_TABLES:
                return None
            if held is None:
                for name in [name for name in self._held if name.startswith(prefix)]:
                    self._held.pop(name).is_dropped = True
                held = self._held[prefix] = HeldColumns(prefix)
            self._held.move_to_end(held.prefix)
            return held

    def _ask(self, what: tuple[str, Path]) -> int:
        times = self._asked[what] = self._asked.pop(what, 0) + 1
        if len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        return times

    def drop(self, held: HeldColumns, *, is_too_large: bool = False) -> None:
        """Hold it no longer; what is too large is not tried again soon."""
        with self._mutex:
            self._drop(held, is_too_large=is_too_large)

    def _drop(self, held: HeldColumns, *, is_too_large: bool = False) -> None:
        held.is_dropped = True
        if self._held.get(held.prefix) is held:
            del self._held[held.prefix]
        if is_too_large:
            self._asked[held.prefix, ()] = -_AGAIN

    def trim(self, held: HeldColumns) -> None:
        """Make room for columns that have grown: others go first, then what they have of places in the values."""
        with self._mutex:
            sizes = {name: one.bytes() for name, one in self._held.items()}
            for name, one in list(self._held.items()):
                if sum(sizes.values()) > self.budget_bytes and one is not held:
                    self._drop(one)
                    del sizes[name]
            if held.bytes() <= self.budget_bytes:
                return
            for path in held.columns.leaves:
                self._asked[held.prefix, path] = -_AGAIN
            held.drop_leaves()
            if held.bytes() > self.budget_bytes:
                self._drop(held, is_too_large=True)
