"""Collections on a device, with torch on the processor where a GPU would be."""

import numpy as np
import pytest

pytest.importorskip("torch")

import agentdb
from agentdb import Config, VectorSpec, field
from agentdb.kernels import DeviceIndex
from agentdb.vectors import resident


def test_a_collection_is_searched_on_the_device_of_the_configuration_and_says_so(db_path, monkeypatch):
    rows = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    options = {"k": 5, "filter": field("half") == 1}
    with agentdb.open(db_path, config=Config(maintenance=False, device="cpu")) as db:
        here = db.collection("here", vectors={"vector": VectorSpec(8)})
        here.upsert([f"i{i}" for i in range(300)], vectors=rows, metadata=[{"half": i % 2} for i in range(300)])
        host = [[(hit.id, hit.distance) for hit in here.search(row, **options)] for row in rows[:4]]
        assert "takes at most" in str(here.explain_search(rows[0], **options))

    asked = []
    search = DeviceIndex.search

    def counted(self, *given, **named):
        asked.append(self.device.type)
        return search(self, *given, **named)

    monkeypatch.setattr(DeviceIndex, "search", counted)
    for module in ("resident", "search"):
        monkeypatch.setattr(f"agentdb.vectors.{module}.cuda_device", {"cuda": "cpu"}.get)
    with agentdb.open(db_path, config=Config(maintenance=False, device="cuda")) as db:
        here = db.collection("here")
        assert [[(hit.id, hit.distance) for hit in here.search(row, **options)] for row in rows[:4]] == host
        assert "searched on the host" in str(here.explain_search(rows[0], **options))
    assert asked == []
    monkeypatch.setattr(resident, "_DEVICE_BYTES", 1)
    with agentdb.open(db_path, config=Config(maintenance=False, device="cuda")) as db:
        here = db.collection("here")
        assert [[(hit.id, hit.distance) for hit in here.search(row, **options)] for row in rows[:4]] == host
        assert "searched on cpu by torch (Triton needs a CUDA device" in str(here.explain_search(rows[0], **options))
    assert asked == ["cpu"] * 5
