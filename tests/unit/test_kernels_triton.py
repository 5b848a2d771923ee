import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest


def test_importing_kernels_imports_neither_torch_nor_triton():
    code = "import sys, agentdb.kernels, agentdb.embedding.batch; print(sorted({'torch', 'triton', 'lance'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_kernels_and_batch_encoding_run_without_lance_and_sqlite():
    pytest.importorskip("torch")
    code = """
import sys
sys.modules.update(dict.fromkeys(("lance", "lancedb", "apsw")))  # importing them fails
import numpy as np
from agentdb.embedding.batch import BatchEncoder
from agentdb.kernels import DeviceIndex, primitives
import benchmarks.gpu_search, benchmarks.gpu_embed
index = DeviceIndex(4)
index.put([7, 8], np.eye(4)[:2])
print(index.search(np.eye(4)[1:2], 1).ids, primitives.near_duplicates(np.eye(4), 0.5)[1])
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert found.stdout.strip() == "[[8]] [0 1 2 3]", found.stderr[-3000:]


def test_a_broken_triton_shows_in_the_table(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "triton.py").write_text("raise RuntimeError('no compiler')")
    code = "from agentdb.kernels import explain; print(explain('cuda')['group_max'])"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "backend='torch'" in found.stdout
    assert "no compiler" in found.stdout


def test_programs_agree_with_their_oracles_in_the_interpreter():
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="Triton is not installed")
    tests = Path(__file__).parents[1]
    # Of its own process: whether Triton interprets is decided when it is imported.
    path = os.pathsep.join([str(tests), *sys.path])
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.kernel_cases"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "interpreted" in found.stdout


def _compiled(cache, *wanted):
    """Lines of `support.compile_kernels`, in a process of its own."""
    pytest.importorskip("torch")
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("this build of Triton brings no assembler")
    tests = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.compile_kernels", *wanted],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tests), *sys.path]),
            "TRITON_CACHE_DIR": str(cache),
        },
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout.splitlines()


def test_programs_compile_for_sm_90_without_spills(tmp_path):
    # Three have so much to hold that D decides: these at the largest that is promised too.
    lines = _compiled(tmp_path, "384", "1536:near_pairs,segment_scores_one,exact_scores")
    assert len(lines) > 17
    assert [line for line in lines if not line.endswith(": 0 bytes spilled")] == []


@pytest.mark.slow
@pytest.mark.parametrize("d", ["64", "768", "1024", "1536"])
def test_programs_compile_for_sm_90_without_spills_at_other_dimensions(tmp_path, d):
    lines = _compiled(tmp_path, d)
    assert len(lines) > 15
    assert [line for line in lines if not line.endswith(": 0 bytes spilled")] == []


class Program:
    """A compiled program that only looks at where its arguments lie."""

    def __getitem__(self, grid):
        assert all(size > 0 for size in grid)
        return self

    def __call__(self, *given, **constants):
        places = {one.device.type for one in given if hasattr(one, "device")}
        assert places == {"meta"}


@pytest.mark.parametrize(
    ("metric", "n_queries", "k"), [("l2", 1, 1), ("cosine", 64, 10), ("l2", 200, 10), ("cosine", 70, 300)]
)
def test_what_a_search_launches_waits_for_nothing_and_can_be_captured(monkeypatch, metric, n_queries, k):
    """On the device "meta" tensors have no numbers: whoever asks for one, or for a tensor of the host, fails."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton", reason="Triton is not installed")
    from agentdb.kernels import DeviceIndex, search, triton_kernels, triton_ops
    from agentdb.kernels.choice import OPERATIONS

    for name, program in vars(triton_kernels).items():
        if hasattr(program, "arg_names"):
            monkeypatch.setattr(triton_kernels, name, Program())
    monkeypatch.setattr(triton_ops, "_has_tma", lambda _: True)
    monkeypatch.setattr(triton_ops, "_processors", lambda _: 132)
    launched = []

    def begin(self, view, replays, key, kept_bytes, given, numbers, pages, k, launch):
        sent = None if numbers is None else torch.empty(numbers.shape, dtype=torch.int64, device="meta")
        begun = search._Begun(launch(view, self._pad(given), sent, pages), None, torch)
        launched.append(begun.launched.table)
        return begun

    monkeypatch.setattr(search.Searcher, "_begin", begin)
    monkeypatch.setattr(
        search.Searcher, "_settle", lambda _, view, begun, k: search._nothing(len(begun.launched.table), k)
    )

    def away(value):
        if isinstance(value, torch.Tensor):
            return value.to("meta")
        return tuple(map(away, value)) if isinstance(value, tuple) else value

    index = DeviceIndex(96, metric=metric, slab_rows=512)
    index.put(np.arange(3_000), np.ones((3_000, 96), np.float32), owners=np.arange(3_000) % 9, alpha=2.0)
    view = index._state.view
    view = replace(view, **{one.name: away(getattr(view, one.name)) for one in fields(view)})
    searcher = search.Searcher(torch.device("cpu"), 96, view.width, None)
    searcher.device, searcher._modules = torch.device("meta"), dict.fromkeys(OPERATIONS, triton_ops)
    queries = torch.empty((n_queries, 96), device="meta")
    searcher.flat(view, None, queries, k)
    owners, first, _, pages = index._state.segments
    for wanted in (np.arange(n_queries) % len(owners), np.arange(n_queries)):
        slot = np.minimum(wanted, len(owners) - 1)
        n_pages = np.where(wanted < len(owners), first[slot + 1] - first[slot], 0)
        searcher.segments(view, None, queries, wanted, first[slot], n_pages, pages.to("meta"), k)
    assert {(table.device.type, table.shape[1]) for table in launched} == {("meta", 2 * k + 1)}
    assert sum(len(table) for table in launched) == 3 * n_queries
