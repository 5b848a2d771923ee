import gc
import sys
import threading
import weakref

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from support.kernel_cases import nearest_case, operations_case, primitives_case, search_case  # noqa: E402

from agentdb.errors import InvalidInputError, UnavailableError  # noqa: E402
from agentdb.kernels import DeviceIndex, explain, primitives, reference  # noqa: E402
from agentdb.kernels.torch_ops import join, split  # noqa: E402


@pytest.fixture(autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("is_segmented", [False, True])
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates"])
def test_search_finds_what_float64_finds(metric, is_segmented, kind):
    search_case("cpu", 999, 40, 7, 10, metric, kind=kind, weighted=kind == "random", is_segmented=is_segmented)


@pytest.mark.parametrize(("n", "d", "k"), [(3, 8, 10), (1, 1, 1), (2500, 384, 100), (1500, 17, 1000), (700, 1536, 3)])
def test_shapes_that_are_no_power_of_two(n, d, k):
    search_case("cpu", n, d, 2, k, "cosine", slab_rows=1024)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 400),
    d=st.integers(1, 70),
    k=st.integers(1, 60),
    metric=st.sampled_from(["cosine", "dot", "l2"]),
    kind=st.sampled_from(["random", "clustered", "duplicates"]),
    is_segmented=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_recall_is_exactly_one(n, d, k, metric, kind, is_segmented, weighted, seed):
    search_case(
        "cpu", n, d, 3, k, metric, kind=kind, is_segmented=is_segmented, weighted=weighted, slab_rows=128, seed=seed
    )


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize(("n", "d"), [(700, 40), (333, 8), (300, 1536)])
def test_every_step_of_a_search_keeps_to_its_bound(metric, n, d):
    operations_case("cpu", metric=metric, n=n, d=d)


@pytest.mark.parametrize("d", [8, 17, 384, 1536])
def test_primitives_agree_with_their_oracles(d):
    primitives_case("cpu", d=d)


@pytest.mark.parametrize("is_segmented", [False, True])
@pytest.mark.parametrize(
    ("n", "d", "k"),
    [
        (20_011, 24, 40),
        pytest.param(1_000_003, 48, 1000, marks=pytest.mark.slow),
        pytest.param(1_000_000, 8, 10, marks=pytest.mark.slow),
        pytest.param(50_001, 1536, 100, marks=pytest.mark.slow),
    ],
)
def test_many_rows(n, d, k, is_segmented):
    search_case("cpu", n, d, 3, k, "cosine", kind="clustered", slab_rows=1 << 17, is_segmented=is_segmented)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 300),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    least=st.integers(-2, 5),
    k=st.integers(1, 40),
    direct=st.sampled_from([0, 10, 1000]),
    seed=st.integers(0, 1000),
)
def test_any_mask_is_kept_to(n, share, least, k, direct, seed):
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((n, 7)).astype(np.float32)
    column = generator.integers(0, 6, n)
    among = np.flatnonzero(generator.random(n) < share)
    index = DeviceIndex(7, metric="dot", slab_rows=128, attributes=("at",))
    index.put(np.arange(n), rows, attributes={"at": column})
    queries = generator.standard_normal((2, 7)).astype(np.float32)
    chosen, late = np.isin(np.arange(n), among), column >= least
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentdb.kernels.index._DIRECT_ROWS", direct)
        for live, options in (
            (chosen, {"among": among}),
            (late, {"where": {"at": (least, 99)}}),
            (chosen & late, {"among": among, "where": {"at": (least, 99)}}),
        ):
            found = index.search(queries, k, **options)
            np.testing.assert_array_equal(found.ids, reference.topk(queries, rows, k, "dot", live=live)[1])


def test_agents_without_rows_find_nothing_beside_those_that_have_some():
    rows = np.random.default_rng(9).standard_normal((300, 5)).astype(np.float32)
    index = DeviceIndex(5, slab_rows=128)
    index.put(np.arange(300), rows, owners=np.arange(300) % 3 * 10)
    index.delete(np.arange(1, 300, 3))
    wanted = np.array([20, 10, 5, 0, -1, 20, 99])
    found = index.search_segments(rows[:7], wanted, 200)
    owners, live = np.arange(300) % 3 * 10, np.arange(300) % 3 != 1
    best = reference.segmented_topk(rows[:7], wanted, rows, owners, 200, "cosine", live=live)[1]
    np.testing.assert_array_equal(found.ids, best)
    assert (found.ids[[1, 2, 4, 6]] == -1).all()
    assert (found.ids[[0, 3, 5]] >= 0).sum(axis=1).tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("n_queries", "n", "d", "k", "least"),
    [
        (9, 70, 8, 5, -0.5),
        (33, 513, 40, 10, 0.2),
        (3, 5, 1536, 12, -1.1),
        (1, 1, 3, 1, 0.0),
        (2, 300, 16, 300, -np.inf),
    ],
)
@pytest.mark.parametrize("block", [64, 1 << 14])
def test_neighbours_among_some_rows_are_those_of_float64(monkeypatch, n_queries, n, d, k, least, block):
    monkeypatch.setattr(primitives, "_BLOCK_ROWS", block)
    monkeypatch.setattr(primitives, "_BLOCK_SCORES", 7 * block)
    monkeypatch.setattr(primitives, "_EXACT_NUMBERS", 500)
    nearest_case("cpu", n_queries, n, d, k, least)
    nearest_case("cpu", n_queries, n, d, k, least, share=0.0)


def test_neighbours_of_nothing_and_among_nothing():
    none, some = np.empty((0, 4), np.float32), np.eye(4, dtype=np.float32)
    at, cosines = primitives.nearest(some, none, 2, allowed=np.ones((4, 0), bool), least=0.0)
    assert at.tolist() == [[-1, -1]] * 4
    assert np.isneginf(cosines).all()
    assert primitives.nearest(none, some, 2, allowed=np.ones((0, 4), bool), least=0.0)[0].shape == (0, 2)
    for bad in (
        {"rows": some[:, :3]},
        {"allowed": np.ones((4, 3), bool)},
        {"allowed": np.ones((4, 4))},
        {"k": 0},
        {"least": np.nan},
        {"rows": np.full((4, 4), np.nan)},
    ):
        with pytest.raises(InvalidInputError):
            primitives.nearest(**{"queries": some, "rows": some, "k": 1, "allowed": np.eye(4) > 0, "least": 0.0} | bad)


def test_planes_hold_every_float32():
    bits = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint32)
    special = np.array([0, 0x80000000, 0x7F7FFFFF, 0x7F800000, 1, 0x00008000, 0x3F7F8000], np.uint32)
    values = torch.from_numpy(np.concatenate([bits, special]).view(np.float32))
    assert torch.equal(join(*split(values)).view(torch.int32), values.view(torch.int32))


def test_ties_go_to_the_lower_id_even_when_all_rows_are_equal():
    index = DeviceIndex(8, slab_rows=128)
    index.put(np.arange(1000)[::-1].copy(), np.ones((1000, 8), np.float32))
    found = index.search(np.ones((1, 8), np.float32), 20)
    assert found.ids[0].tolist() == list(range(20))
    assert found.counts.widened + found.counts.scanned == 1


def test_an_index_without_live_rows_finds_nothing():
    index = DeviceIndex(4)
    assert (index.search(np.ones((2, 4)), 3).ids == -1).all()
    index.put([1, 2], np.ones((2, 4)))
    index.delete([1, 2])
    assert len(index) == 0
    assert (index.search(np.ones((2, 4)), 3).ids == -1).all()
    assert (index.search_segments(np.ones((2, 4)), [0, 1], 3).ids == -1).all()


def test_put_replaces_and_weights_change():
    index = DeviceIndex(4, metric="dot")
    index.put([1, 2], np.eye(4, dtype=np.float32)[:2])
    index.put([1], 3 * np.eye(4, dtype=np.float32)[2:3])
    assert len(index) == 2
    assert index.search([[0.0, 0, 1, 0]], 1).scores[0, 0] == 3
    assert index.set_weights([1, 9], alpha=0.5, beta=[1.0, 0.0]) == 1
    assert index.search([[0.0, 0, 1, 0]], 2).scores[0].tolist() == [2.5, 0]
    for ids, alpha in (([1, 1], 2.0), ([1, 2], [1.0, np.inf]), ([1], [1.0, 2.0])):
        with pytest.raises(InvalidInputError):
            index.set_weights(ids, alpha=alpha, beta=0.0)
    assert index.search([[0.0, 0, 1, 0]], 2).scores[0].tolist() == [2.5, 0]


def test_memory_is_given_back_with_the_last_reader():
    index = DeviceIndex(8, budget_bytes=1 << 20)
    index.put(np.arange(300), np.ones((300, 8), np.float32), owners=np.arange(300) % 3)
    index.search(np.ones((1, 8), np.float32), 3)
    slab, state = weakref.ref(index._slabs[0].high), index._state
    index.compact()
    assert slab() is not None, "a reader still has it"
    del state
    assert slab() is None
    gone = weakref.ref(index)
    slab = weakref.ref(index._slabs[0].high)
    del index
    assert gone() is None
    assert slab() is None


def test_compaction_keeps_rows_ids_owners_and_weights():
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((9000, 8)).astype(np.float32)
    index = DeviceIndex(8, slab_rows=1024)
    owners = np.arange(9000) % 5
    index.put(np.arange(9000), rows, owners=owners, alpha=2.0)
    before = index.bytes
    index.delete(np.arange(0, 9000, 2))
    index.delete(np.arange(1, 3000, 2))
    assert index.bytes < before
    kept = np.arange(3001, 9000, 2)
    assert np.array_equal(index.get(kept), rows[kept])
    found = index.search_segments(rows[kept[:4]], owners[kept[:4]], 1)
    assert found.ids[:, 0].tolist() == kept[:4].tolist()
    np.testing.assert_allclose(found.scores, 2, rtol=1e-6)


def test_filters_by_id_and_by_attribute():
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((6000, 12)).astype(np.float32)
    index = DeviceIndex(12, slab_rows=1024, attributes=("at", "type"))
    index.put(np.arange(6000), rows, attributes={"at": np.arange(6000), "type": np.arange(6000) % 3})
    query = generator.standard_normal((2, 12)).astype(np.float32)
    for among, where in (
        (np.arange(0, 6000, 7), {}),
        (np.arange(5000), {}),
        (None, {"at": (100, 4000), "type": (2, 2)}),
        (np.arange(50, 300), {"type": (1, 2)}),
        (np.array([77777]), {}),
    ):
        live = np.ones(6000, bool) if among is None else np.isin(np.arange(6000), among)
        for name, (least, most) in where.items():
            column = np.arange(6000) if name == "at" else np.arange(6000) % 3
            live &= (column >= least) & (column <= most)
        found = index.search(query, 5, among=among, where=where)
        np.testing.assert_array_equal(found.ids, reference.topk(query, rows, 5, "cosine", live=live)[1])
    empty = DeviceIndex(12, attributes=("at", "type"))
    for where in ({"nothing": (0, 1)}, {"at": (0, 2**64)}, {"at": (0.5, 1)}, {"at": (1, 2, 3)}, {"at": 1}):
        for one in (index, empty):
            with pytest.raises(InvalidInputError):
                one.search(query, 5, where=where)


def test_arrow_is_taken_as_it_is():
    rows = np.random.default_rng(4).standard_normal((50, 6)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 6)
    index = DeviceIndex(6)
    index.put(pa.array(range(50)), pa.chunked_array([column.slice(0, 20), column.slice(20)]))
    assert np.array_equal(index.get(range(50)), rows)
    index.put(pa.array(range(5, 9)), column.slice(5, 4))
    assert np.array_equal(index.get(range(50)), rows)


def test_rows_of_arrow_are_not_visited_one_by_one():
    def calls(count):
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8 * count, np.float32)), 8)
        ids, index, seen = pa.array(np.arange(count)), DeviceIndex(8), []
        index.put(ids, column)  # whatever is imported or made once
        gc.disable()  # it may call anything
        sys.setprofile(lambda _frame, event, _: seen.append(event) if "call" in event else None)
        try:
            index.put(ids, column)
        finally:
            sys.setprofile(None)
            gc.enable()
        assert len(index) == count
        return len(seen)

    assert calls(300) == calls(2000) > 50


def test_a_budget_removes_the_owners_used_longest_ago():
    rows = np.random.default_rng(5).standard_normal((640, 16)).astype(np.float32)
    one = 64 * (16 * 4 + 16)
    index = DeviceIndex(16, budget_bytes=3 * one)
    for owner in range(3):
        index.put(np.arange(64) + owner * 64, rows[owner * 64 : owner * 64 + 64], owners=owner)
    index.search_segments(rows[:1], [0], 1)
    index.put(np.arange(64) + 1000, rows[:64], owners=9)
    assert (index.search_segments(rows[:4], [0, 1, 2, 9], 1).ids[:, 0] >= 0).tolist() == [True, False, True, True]
    with pytest.raises(UnavailableError):
        index.put(np.arange(640), rows)


@pytest.mark.parametrize(
    ("ids", "rows"),
    [
        ([1, 1], [[1.0], [2.0]]),
        ([-1], [[1.0]]),
        ([1], [[np.nan]]),
        ([1], [[1e30]]),
        ([1], [[1.0, 2.0]]),
        ([1.5], [[1.0]]),
    ],
)
def test_what_cannot_be_stored_is_refused_and_nothing_changes(ids, rows):
    index = DeviceIndex(1)
    with pytest.raises(InvalidInputError):
        index.put(ids, np.array(rows))
    assert len(index) == 0


def test_queries_that_are_not_finite_are_refused():
    index = DeviceIndex(2)
    index.put([1], [[1.0, 2.0]])
    for bad in (np.nan, np.inf):
        with pytest.raises(InvalidInputError):
            index.search([[bad, 1.0]], 1)
    for k in (0, 1001):
        with pytest.raises(InvalidInputError):
            index.search([[1.0, 1.0]], k)


def test_tiny_and_zero_rows_are_ranked_as_float64_ranks_them():
    rows = np.array([[0, 0], [1e-40, 0], [1e-30, 1e-30], [0, 1], [-1, 0]], np.float32)
    index = DeviceIndex(2)
    index.put(np.arange(5), rows)
    for query in ([[1.0, 0.0]], [[0.0, 0.0]]):
        found = index.search(query, 5)
        np.testing.assert_array_equal(found.ids, reference.topk(np.array(query), rows, 5, "cosine")[1])


def test_searches_see_whole_writes_while_rows_are_added():
    generator = np.random.default_rng(6)
    rows = generator.standard_normal((64, 16)).astype(np.float32)
    index = DeviceIndex(16, metric="dot", slab_rows=256)
    index.put(np.arange(64), rows)
    failures, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            # Every batch has one row of a size of its own: a search that saw half a batch would miss one.
            found = index.search(np.ones((1, 16), np.float32), 3)
            known = found.scores[0][found.scores[0] > 100]
            if len(set((known // 16).round().astype(int).tolist())) != len(known):
                failures.append(found)

    thread = threading.Thread(target=search)
    thread.start()
    for batch in range(40):
        index.put(np.arange(20) + 1000 + 20 * batch, np.full((20, 16), batch / 100, np.float32))
        index.put([500], np.full((1, 16), 100 + batch, np.float32))
    stop.set()
    thread.join()
    assert not failures
    assert index.search(np.ones((1, 16), np.float32), 1).scores[0, 0] == 139 * 16


def test_the_table_says_what_runs_and_why():
    table = explain("cpu")
    assert {choice.backend for choice in table.values()} == {"torch"}
    assert table.pop("nearest").reason == "there is no other implementation"
    assert all("CUDA" in choice.reason for choice in table.values())


def test_a_search_among_ids_keeps_to_rows_of_one_moment(monkeypatch):
    rows = np.random.default_rng(7).standard_normal((9000, 8)).astype(np.float32)
    index = DeviceIndex(8, slab_rows=1024)
    index.put(np.arange(9000), rows)
    checked = index._check_queries

    def compact_meanwhile(*given):
        if len(index) == 9000:
            index.delete(np.arange(0, 9000, 2))  # more than a quarter: every row moves
        return checked(*given)

    monkeypatch.setattr(index, "_check_queries", compact_meanwhile)
    among = np.arange(1, 9000, 500)
    found = index.search(rows[:3], 5, among=among)
    np.testing.assert_array_equal(
        found.ids, reference.topk(rows[:3], rows, 5, "cosine", live=np.isin(np.arange(9000), among))[1]
    )


def test_searches_among_ids_while_rows_are_removed_and_compacted(monkeypatch):
    monkeypatch.setattr("agentdb.kernels.index._FIRST_ROWS", 128)  # compaction after as many dead rows
    generator = np.random.default_rng(11)
    rows = generator.standard_normal((2000, 8)).astype(np.float32)
    index = DeviceIndex(8, slab_rows=256)
    index.put(np.arange(2000), rows, owners=np.arange(2000) % 3)
    even = np.arange(0, 2000, 2)
    wanted = reference.topk(rows[:4], rows, 5, "cosine", live=np.arange(2000) % 2 == 0)[1]
    failed, stop = [], threading.Event()

    def search():
        try:
            while not stop.is_set():
                np.testing.assert_array_equal(index.search(rows[:4], 5, among=even).ids, wanted)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        odd = generator.permutation(1000)[:700] * 2 + 1
        index.delete(odd)
        index.put(odd, rows[odd], owners=odd % 3 + turn)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]


@pytest.mark.parametrize("step", ["_place", "_write", "_publish"])
def test_a_write_that_fails_leaves_what_was_there(monkeypatch, step):
    rows = np.random.default_rng(8).standard_normal((300, 8)).astype(np.float32)
    index = DeviceIndex(8, slab_rows=128)
    index.put(np.arange(200), rows[:200])

    def fail(*_):
        raise MemoryError("the device is full")

    with monkeypatch.context() as patch:
        patch.setattr(index, step, fail)
        with pytest.raises(MemoryError):
            index.put(np.arange(100, 300), -rows[100:])
        if step != "_write":
            with pytest.raises(MemoryError):
                index.compact()
    index.put([1000], rows[:1])
    index.compact()
    assert len(index) == 201
    assert np.array_equal(index.get(np.arange(200)), rows[:200])
    assert np.isnan(index.get(np.arange(200, 300))).all()
    found = index.search(rows[:200], 1)
    assert found.ids[:, 0].tolist() == list(range(200))


def test_a_budget_that_cannot_hold_a_write_removes_nobody():
    rows = np.random.default_rng(5).standard_normal((640, 16)).astype(np.float32)
    index = DeviceIndex(16, budget_bytes=3 * 64 * (16 * 4 + 16))
    for owner in range(3):
        index.put(np.arange(64) + owner * 64, rows[owner * 64 : owner * 64 + 64], owners=owner)
    for count in (192, 640):
        with pytest.raises(UnavailableError):
            index.put(np.arange(count) + 1000, rows[:count], owners=np.arange(count) % 2)
    assert len(index) == 192
    assert index.bytes <= 4 * 64 * (16 * 4 + 16 + 1), "places come in pairs of pages"


def test_a_budget_has_room_for_rows_that_take_the_place_of_others():
    rows = np.random.default_rng(5).standard_normal((128, 16)).astype(np.float32)
    index = DeviceIndex(16, budget_bytes=2 * 64 * (16 * 4 + 16 + 8), attributes=("at",))
    index.put(np.arange(64), rows[:64], owners=1, attributes={"at": np.arange(64)})
    index.put(np.arange(64, 128), rows[64:], owners=2, attributes={"at": np.arange(64)})
    for turn in range(3):
        index.put(np.arange(128), rows[::-1], owners=np.repeat([1, 2], 64), attributes={"at": np.arange(128) + turn})
        assert len(index) == 128
        assert np.array_equal(index.get(np.arange(128)), rows[::-1])
    assert index.bytes <= 2 * 64 * (16 * 4 + 16 + 8 + 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
@pytest.mark.parametrize("layout", ["plain", "transposed", "strided", "reversed"])
def test_any_real_numbers_in_any_layout_are_taken(dtype, layout):
    rows = (np.random.default_rng(1).standard_normal((60, 6)) * 40).astype(dtype)
    if layout == "transposed":
        given = np.asfortranarray(rows)
    elif layout == "strided":
        wide = np.zeros((120, 12), dtype)
        wide[::2, ::2] = rows
        given = wide[::2, ::2]
    else:
        given = rows[::-1].copy()[::-1] if layout == "reversed" else rows
    for vectors in (given, torch.from_numpy(given.copy() if layout == "reversed" else given)):
        index = DeviceIndex(6)
        index.put(np.arange(60), vectors)
        assert np.array_equal(index.get(np.arange(60)), rows.astype(np.float32))
        found = index.search(vectors[:3], 4)
        want = reference.topk(rows[:3].astype(np.float64), rows.astype(np.float64), 4, "cosine")
        np.testing.assert_array_equal(found.ids, want[1])


def test_bfloat16_and_tensors_that_remember_gradients_are_taken():
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    index = DeviceIndex(6)
    index.put(np.arange(20), rows)
    index.put(np.arange(20, 40), rows.float().requires_grad_())
    assert np.array_equal(index.get(np.arange(20)), rows.float().numpy())
    assert index.search(rows[:2], 2).ids.tolist() == [[0, 20], [1, 21]]


@pytest.mark.parametrize(
    ("ids", "rows"),
    [
        (3, [[1.0]]),
        ([[1], [2]], [[1.0], [2.0]]),
        (np.array([2**63], np.uint64), [[1.0]]),
        ([1], [[1e300]]),
        ([1], [[1j]]),
        ([1], torch.tensor([[1j]])),
        ([1], torch.tensor([[True]])),
        ([1], pa.array([1.0])),
        ([1, 2], pa.array([[1.0, 2.0], []])),
        ([1], pa.array([None], pa.list_(pa.float32(), 1))),
        ([1], pa.FixedSizeListArray.from_arrays(pa.array([None], pa.float32()), 1)),
        ([1], [["a"]]),
    ],
)
def test_what_is_no_row_is_refused_as_such(ids, rows):
    index = DeviceIndex(1)
    with pytest.raises(InvalidInputError):
        index.put(ids, rows if isinstance(rows, (torch.Tensor, pa.Array)) else np.array(rows))
    assert len(index) == 0
    for wrong in (3, [[1]]):
        for call in (index.delete, index.get, lambda some: index.search([[1.0]], 1, among=some)):
            with pytest.raises(InvalidInputError, match="one axis"):
                call(wrong)


def test_scores_beyond_float32_are_refused_not_lost():
    rows = np.random.default_rng(2).standard_normal((200, 9)).astype(np.float32)
    index = DeviceIndex(9, metric="l2")
    index.put(np.arange(200), 1e13 * rows, alpha=1e30, beta=0.0)
    with pytest.raises(InvalidInputError, match="too large"):
        index.search(rows[:2], 3)
    index.set_weights(np.arange(200), alpha=1.0, beta=0.0)
    index.compact()
    np.testing.assert_array_equal(
        index.search(1e13 * rows[:2], 3).ids, reference.topk(1e13 * rows[:2], 1e13 * rows, 3, "l2")[1]
    )


def test_factors_that_only_float64_can_apply_to_small_rows_count():
    generator = np.random.default_rng(480)
    rows = (1e-9 * generator.standard_normal((60, 3))).astype(np.float32)
    factors = (1e34 * generator.random(60)).astype(np.float32)
    index = DeviceIndex(3)
    index.put(np.arange(60), rows, alpha=factors)
    want = reference.topk(rows[:2], rows, 5, "cosine", alpha=factors)
    np.testing.assert_array_equal(index.search(rows[:2], 5).ids, want[1])


@pytest.mark.parametrize(
    "options", [{"dimension": 2.5}, {"dimension": 0}, {"slab_rows": 100}, {"slab_rows": 130}, {"budget_bytes": -1}]
)
def test_an_index_that_cannot_be_is_refused(options):
    with pytest.raises(InvalidInputError):
        DeviceIndex(**{"dimension": 3} | options)


@pytest.mark.parametrize(
    "options",
    [{"owners": np.arange(3)}, {"owners": [[1, 2]]}, {"alpha": "a"}, {"alpha": [[1.0, 2.0]]}, {"beta": 1e300}],
)
def test_owners_and_weights_that_do_not_fit_are_refused(options):
    index = DeviceIndex(3)
    with pytest.raises(InvalidInputError):
        index.put([1, 2], np.ones((2, 3)), **options)
    assert len(index) == 0


@pytest.mark.parametrize(("queries", "k"), [(None, 1), ([], 1), ([1.0, 2.0, 3.0], 1), ([[1.0] * 3], 1.5), (["a"], 1)])
def test_queries_that_are_none_are_refused(queries, k):
    index = DeviceIndex(3)
    with pytest.raises(InvalidInputError):
        index.search(queries, k)
    assert index.search(np.ones((0, 3)), 2).ids.shape == (0, 2)


def test_primitives_refuse_what_is_no_matrix_of_numbers():
    tokens = np.ones((5, 4), np.float32)
    for offsets in ([], [0, 2.5, 5], [[0, 5]], [0, 3], [0, 4, 3, 5]):
        with pytest.raises(InvalidInputError, match="offsets"):
            primitives.maxsim(tokens[None], tokens, offsets)
    for bad in (np.full((3, 4), 1e300), np.ones((3, 4), object), torch.ones((3, 4), dtype=torch.complex64), tokens[0]):
        with pytest.raises(InvalidInputError, match="vectors"):
            primitives.near_duplicates(bad, 0.5)
    assert np.isneginf(primitives.maxsim(tokens[None], tokens[:0], [0, 0, 0])).all()
    assert primitives.maxsim(tokens[None, :0], tokens, [0, 5]).tolist() == [[0.0]]


def test_mmr_refuses_relevance_without_an_order():
    rows = np.eye(3, dtype=np.float32)[None]
    for bad in (np.nan, np.inf, "a"):
        with pytest.raises(InvalidInputError, match="relevance"):
            primitives.mmr(rows, np.array([[1.0, bad, 0.0]]), 2, weight=0.5)
    with pytest.raises(InvalidInputError):
        primitives.mmr(np.float64(1e300) * rows.astype(np.float64), np.zeros((1, 3)), 2, weight=0.5)
    assert primitives.mmr(rows, np.zeros((1, 3)), 5, weight=0.5).tolist() == [[0, 1, 2, -1, -1]]
