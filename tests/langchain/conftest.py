"""A suite counts only if every test of it has run and passed: what is skipped or expected to fail fails the run."""

from __future__ import annotations

from collections import Counter

import pytest

SUITES = {
    "AsyncCacheTestSuite": 8,
    "AsyncDocumentIndexTestSuite": 11,
    "BaseStoreAsyncTests": 12,
    "BaseStoreSyncTests": 12,
    "DocumentIndexerTestSuite": 11,
    "EmbeddingsIntegrationTests": 5,
    "RetrieversIntegrationTests": 5,
    "SyncCacheTestSuite": 8,
    "VectorStoreIntegrationTests": 25,
}
"""How many tests each suite of langchain-tests 1.1 has."""

_passed: Counter[str] = Counter()
_other: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
        _passed[report.nodeid.split("::")[1]] += 1
    elif report.skipped or hasattr(report, "wasxfail"):
        _other.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus != pytest.ExitCode.OK or _is_part(session.config):
        return
    wrong = [f"{one} did not pass" for one in _other]
    suites = {item.cls: next(base for base in item.cls.__mro__ if base.__name__ in SUITES) for item in session.items}
    for cls, suite in suites.items():
        if _passed[cls.__name__] != SUITES[suite.__name__]:
            wrong.append(f"{cls.__name__}: {_passed[cls.__name__]} of {SUITES[suite.__name__]} tests passed")
    missing = SUITES.keys() - {suite.__name__ for suite in suites.values()}
    wrong += [f"{one} is not used" for one in sorted(missing)]
    if wrong:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\n" + "\n".join(wrong))


def _is_part(config: pytest.Config) -> bool:
    """Whether only some of the tests were asked for."""
    return bool(config.option.keyword or config.option.markexpr) or any("::" in one for one in config.args)
