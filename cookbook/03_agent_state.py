"""An agent's state: every save is a version; versions can be compared, restored, branched and guarded."""

import tempfile
from pathlib import Path

import numpy as np

import agentdb
from agentdb import ConflictError

with tempfile.TemporaryDirectory() as directory, agentdb.open(Path(directory) / "db") as db:
    states = db.states
    me = ("researcher", "session-1", "working_memory")

    # Any JSON-like value, and bytes, datetimes, numpy arrays and Arrow tables in it. Never pickle.
    first = states.save(*me, {"goal": "find the bug", "seen": ["log.txt"], "focus": np.array([0.1, 0.9], np.float32)})
    states.save(*me, {"goal": "find the bug", "seen": ["log.txt", "main.py"], "focus": np.array([0.5], np.float32)})
    third = states.save(*me, {"goal": "fix the bug", "seen": ["log.txt", "main.py"]}, metadata={"step": "plan"})
    print(f"version {third.version}, {third.size_bytes} bytes, checksum {third.checksum[:8]}...")

    # Compare-and-set: of two writers that read the same version, only one wins. The other reads again and decides.
    try:
        states.save(*me, {"goal": "give up"}, expected_version=first.version)
    except ConflictError as error:
        print(f"refused: expected {error.expected}, but the newest is {error.actual}")

    for version in states.history(*me):
        print(f"  v{version.version}: {version.data['goal']!r}, metadata {dict(version.metadata)}")
    for change in states.diff(*me, 1, 3):
        print("  changed:", ".".join(map(str, change.path)), change.op)

    # A name for a version outlives any number of saves, and retention policies keep what is tagged.
    states.tag(*me, 1, "before-the-fix")
    tagged = states.load(*me, tag="before-the-fix")
    print("tagged:", tagged.version if tagged else None)

    # Restoring never rewrites history: the old content becomes a new version.
    back = states.restore(*me, 1)
    print(f"restored 1 as {back.version}, equal: {back.checksum == first.checksum}")

    # What if? A branch is a new session that begins where this one stands (or stood, with as_of).
    states.branch("researcher", "session-1", "what-if", as_of=third.created_at)
    states.save("researcher", "what-if", "working_memory", {"goal": "rewrite it"})
    print("sessions:", states.sessions("researcher"), "of", list(states.agents()))
    mine = states.load(*me)
    print("this session is untouched:", mine.version if mine else None)
