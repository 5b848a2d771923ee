"""What users install: the wheel is built from the working tree and looked into."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import agentdb

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "agentdb": ROOT / "agentdb",
    "agentdb_embedders": ROOT / "adapters" / "agentdb_embedders",
    "langchain_agentdb": ROOT / "integrations" / "langchain_agentdb",
    "langgraph_agentdb": ROOT / "integrations" / "langgraph_agentdb",
    "llama_index_agentdb": ROOT / "integrations" / "llama_index_agentdb",
}
DIST_INFO = f"agentdb_lance-{agentdb.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = target.iterdir()
    return built


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


def test_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"{DIST_INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    for package, folder in PACKAGES.items():
        expected |= {
            f"{package}/{path.relative_to(folder).as_posix()}"
            for path in folder.rglob("*")
            if path.suffix == ".py" or path.name == "py.typed"
        }
        assert f"{package}/py.typed" in expected
        assert f"{package}/__init__.py" in expected
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(archive.namelist()) == sorted(expected)


def test_every_folder_is_a_package() -> None:
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_metadata(wheel: Path) -> None:
    assert wheel.name == f"agentdb_lance-{agentdb.__version__}-py3-none-any.whl"
    metadata = message_from_string(read(wheel, f"{DIST_INFO}/METADATA"))
    assert metadata["Name"] == "agentdb-lance"
    assert metadata["Version"] == agentdb.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("all", "documents", "http", "langchain", "langchain-classic", "langgraph", "llama-index", "local"),
    }
    core = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in core if line.startswith(("torch", "lancedb", "sentence-transformers", "httpx"))]


def test_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import agentdb, agentdb_embedders, pathlib; "
        f"root = pathlib.Path({str(tmp_path)!r}); "
        "assert root in pathlib.Path(agentdb.__file__).parents; "
        "assert root in pathlib.Path(agentdb_embedders.__file__).parents; "
        "print(agentdb.load_embedder('hashing').dimension)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "256"
