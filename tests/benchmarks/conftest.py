"""The shared system of a benchmark run, and the tables at its end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.system import System, running

DOCS = Path(__file__).parents[2] / "docs/performance.md"
VARIANTS = {"ours": {}, "grpcio": {"SERVER_TRANSPORT": "grpcio"}}


class Report:
    """Tables by title, filled by the tests."""

    def __init__(self) -> None:
        """Begin without tables."""
        self._tables: dict[str, dict[str, dict[str, str]]] = {}

    def add(self, title: str, row: str, **cells: str) -> None:
        """Fill cells of a row; their names become columns, with spaces for underscores."""
        self._tables.setdefault(title, {}).setdefault(row, {}).update(cells)

    def markdown(self) -> str:
        """Return the tables."""
        return "\n\n".join(f"{title}\n\n{self._table(title)}" for title in self._tables)

    def _table(self, title: str) -> str:
        rows = self._tables[title]
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        heading = ["", *(column.replace("_", " ") for column in columns)]
        lines = [heading, ["---"] * len(heading)]
        lines += [[row, *(cells.get(column, "-") for column in columns)] for row, cells in rows.items()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


REPORT = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The echo, the services with default settings (`ours`), and the services on grpcio's server."""
    with running(tmp_path_factory.mktemp("bench"), VARIANTS) as system:
        yield system


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Report:
    """The tables printed at the end of the run."""
    return pytestconfig.stash.setdefault(REPORT, Report())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --write-docs."""
    parser.addoption("--write-docs", action="store_true", help="Put the tables into docs/performance.md.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables, and write them to the documentation with --write-docs."""
    if not (tables := config.stash.get(REPORT, Report()).markdown()):
        return
    terminalreporter.section("costs in echoes of grpcio")
    terminalreporter.write_line(tables)
    if config.getoption("--write-docs"):
        text = DOCS.read_text()
        marked = f"<!-- bench -->\n{tables}\n<!-- /bench -->"
        DOCS.write_text(re.sub(r"<!-- bench -->.*<!-- /bench -->", lambda _: marked, text, flags=re.DOTALL))
