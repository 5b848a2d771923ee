import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_importing_kernels_imports_neither_torch_nor_triton():
    code = "import sys, agentdb.kernels, agentdb.embedding.batch; print(sorted({'torch', 'triton', 'lance'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


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
    # Two have so much to hold that D decides: these at the largest that is promised too.
    lines = _compiled(tmp_path, "384", "1536:near_pairs,segment_scores_one")
    assert len(lines) > 17
    assert [line for line in lines if not line.endswith(": 0 bytes spilled")] == []


@pytest.mark.slow
@pytest.mark.parametrize("d", ["64", "768", "1024", "1536"])
def test_programs_compile_for_sm_90_without_spills_at_other_dimensions(tmp_path, d):
    lines = _compiled(tmp_path, d)
    assert len(lines) > 15
    assert [line for line in lines if not line.endswith(": 0 bytes spilled")] == []
