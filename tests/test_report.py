"""`parlor report`: its documents, and its check, which can fail."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest
from rich.progress import Progress

from ops.indexes import INDEXES, index_states
from ops.sample_data import load_sample_data
from tests.stack import Stack
from tools.report.cases import cases
from tools.report.checks import headline, passed, targets
from tools.report.figures import Check, Measured, Times
from tools.report.figures import row as judge
from tools.report.measure import measure_rows
from tools.report.rows import Effort, Rpcs
from tools.report.seed_figures import LINES
from tools.report.system import System, copy, without
from tools.report.tables import ms
from tools.report.ways import connected
from tools.report.workload import zipf

NEAR = ("GetSalon", "GetSalonByPhoneNumberId")
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Parses a document: the cells of its tables, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        """Parse a text."""
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        """Begin an element."""
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """End an element, which must be the last begun."""
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        """Record the text of a cell."""
        if self.open and self.open[-1] in ("td", "th"):  # without the small print of a cell
            self.rows[-1][-1] += data


class Run:
    """A quick run of the command, and its output."""

    def __init__(self, folder: Path) -> None:
        """Run the command."""
        document, section = folder / "report.html", folder / "performance.md"
        section.write_text("above\n<!-- report -->\nold\n<!-- /report -->\nbelow\n")
        options = ["--quick", "--check", "--json", "--output", str(document), "--markdown", str(section)]
        done = subprocess.run([sys.executable, "-m", "tools.report", *options], capture_output=True, text=True)  # noqa: S603 - ours
        self.code, self.output = done.returncode, done.stderr
        self.json = json.loads(done.stdout or "{}")
        assert self.json, done.stderr
        self.html, self.markdown = document.read_text(), section.read_text()
        self.page = Page(self.html)


def test_a_quick_report_is_complete(tmp_path: Path) -> None:
    """One test instead of a fixture, which would run the command once per pytest worker."""
    run = Run(tmp_path)
    html_refers_to_nothing_outside(run)
    every_line_of_the_tables_is_in_all_documents(run)
    every_index_has_its_measured_gain_and_its_plan(run)
    load_and_pools_are_measured(run)
    the_check_is_the_exit_code(run)
    the_markdown_replaces_the_text_between_its_markers(run)


def html_refers_to_nothing_outside(run: Run) -> None:
    assert run.page.open == []
    drawn = re.findall(r"<svg.*?</svg>", run.html, flags=re.DOTALL)
    assert len(drawn) == 3
    for svg in drawn:
        assert ElementTree.fromstring(svg).findall(".//{http://www.w3.org/2000/svg}text")  # noqa: S314
    assert "<script" not in run.html
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", run.html)
    assert references  # clip paths of charts
    assert [reference for reference in references if not reference.startswith("#")] == []
    assert "@import" not in run.html


def every_line_of_the_tables_is_in_all_documents(run: Run) -> None:
    rows = run.json["rows"]
    assert [(row["table"], row["name"]) for row in rows] == [(line.table, line.name) for line in LINES]
    for row in rows:
        figures = [ms(row["before"]["p50"]), ms(row["after"]["p50"]), ms(row["whole"]["p50"]), f"{row['ratio']:.3f}"]
        cells = [row["name"], f"{row['seed_before_ms']:g} → {row['seed_after_ms']:g}"]
        shown = next(shown for shown in run.page.rows if shown[:2] == cells)
        assert [shown[place] for place in (2, 4, 5, 6)] == figures
        assert shown[-1] == row["verdict"]
        assert f"| {' | '.join(shown)} |" in run.markdown
        assert [at["callers"] for at in row["at"]] == [1, 32]
        assert row["ratio"] == round(row["after"]["p50"] / row["before"]["p50"], 4)
        for at in row["at"]:
            assert at["hits"] == 100
            assert (at["near"] > 90) if row["rpc"] in NEAR else (at["near"] == 0)
            assert all(
                0 < at[way]["p50"] <= at[way]["p95"] <= at[way]["p99"] for way in ("before", "first", "after", "rpc")
            )


def every_index_has_its_measured_gain_and_its_plan(run: Run) -> None:
    indexes = {index["name"]: index for index in run.json["indexes"]}
    assert list(indexes) == [index.name for index in INDEXES]
    shown = {cells[0]: cells for cells in run.page.rows}
    for name, index in indexes.items():
        assert index["scans"] > 0 and index["size_bytes"] > 0
        assert shown[name][5] == f"{index['gain']:.1f} %"
    assert indexes["whatsapp_id"]["gain"] > 50  # without the index all messages are read
    assert indexes["idx_messages_phone_salon"]["gain"] > 50
    plans = run.json["plans"]
    assert {plan["index"] for plan in plans} >= set(indexes)
    assert run.html.count('<details class="plan">') == len(plans)
    assert all("Buffers" in plan["text"] and plan["ok"] for plan in plans)


def load_and_pools_are_measured(run: Run) -> None:
    work, pools = run.json["workload"], run.json["pools"]
    assert work["writes"] > 0
    assert 0 < work["statements_after"] < work["statements_before"]
    assert 0 < work["hits"] < work["reads"]
    assert pools["callers"] == 128
    for pool in (pools["before"], pools["after"]):
        assert pool["answered"] == pool["reads"]["calls"] >= 128
        assert pool["acquisitions"] > 0
    assert run.json["buffer_hit_rate"] > 90


def the_check_is_the_exit_code(run: Run) -> None:
    checks = run.json["checks"]
    assert len(checks) == 11
    assert run.json["ok"] == all(check["ok"] for check in checks)
    assert run.code == (0 if run.json["ok"] else 1)
    expected = f"{sum(check['ok'] for check in checks)} of 11 targets are met."
    for shown in (run.html, run.markdown, run.output):
        assert expected in shown.replace("\n", " ")
        assert "not checked" not in shown


def the_markdown_replaces_the_text_between_its_markers(run: Run) -> None:
    assert run.markdown.startswith("above\n<!-- report -->\n")
    assert run.markdown.endswith("<!-- /report -->\nbelow\n")
    assert "\nold\n" not in run.markdown


@pytest.fixture
def sample_urls(database_url: str) -> Iterator[tuple[str, str]]:
    """A database with the sample data, and a copy of it."""
    load_sample_data(database_url, 1)
    name = database_url.rpartition("/")[2] + "_before"
    yield database_url, copy(database_url, name)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
async def own_system(sample_urls: tuple[str, str], redis_url: str, stack: Stack) -> AsyncIterator[System]:
    yield System(*sample_urls, redis_url, {name: server.port for name, server in stack.servers.items()})


async def test_the_check_fails_without_the_cache(own_system: System) -> None:
    wanted = [case for case in cases(own_system.database_url) if case.key == "salon_bookings"]
    ratios = {}
    async with connected(own_system) as (before, after, _):
        for cached in (True, False):
            rpcs = Rpcs(own_system, cached=cached)
            effort = Effort(rounds=1, calls=128, seconds=0.3, operations=0)
            quiet = Progress(disable=True)
            rows = await measure_rows(own_system, wanted, before, after, rpcs, effort, quiet, cached=cached)
            await rpcs.close()
            ratios[cached] = rows[0].ratio
            assert rows[0].at[-1].hits == (100 if cached else 0)
    assert ratios[True] < ratios[False]
    assert not passed(targets(rows))


def test_a_dropped_index_is_created_again(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        for name in ("idx_messages_phone_salon", "whatsapp_id"):
            with without(database_url, name):
                assert {index.name for index in index_states(conn) if index.state == "missing"} == {name}
            assert all(index.state == "present" for index in index_states(conn))


@pytest.mark.parametrize(("after", "verdict"), [(25.0, "met"), (25.1, "NOT met")])
def test_a_row_is_judged_by_its_medians_with_the_most_callers(after: float, verdict: str) -> None:
    def measured(callers: int, before: float, after: float) -> Measured:
        old, new = Times(1, before, before, before), Times(1, after, after, after)
        return Measured(callers, old, old, new, None, new, 100.0, 0.0)

    judged = judge(LINES[0], "ListBookings", "", [measured(1, 1, 1), measured(32, 100, after)])
    assert (judged.verdict, judged.ok) == (verdict, verdict == "met")
    assert passed(targets([judged])) == judged.ok


@pytest.mark.parametrize(
    ("ok", "expected"),
    [
        ([True, True, True], "3 of 3 targets are met."),
        ([True, False, True], "2 of 3 targets are met. NOT met: 1."),
        ([False, True, False], "1 of 3 targets are met. NOT met: 0; 2."),
        ([False, False, False], "0 of 3 targets are met. NOT met: 0; 1; 2."),
    ],
)
def test_the_headline_counts_every_target(ok: list[bool], expected: str) -> None:
    checks = [Check(str(number), "", "", "", is_met) for number, is_met in enumerate(ok)]
    assert headline(checks) == expected
    assert passed(checks) == all(ok)


def test_zipf_ranks_occur_in_proportion() -> None:
    ranks = zipf(100, 100_000, Random(1))
    assert set(ranks) <= set(range(100))
    assert 1.8 < ranks.count(0) / ranks.count(1) < 2.2
    assert 9 < ranks.count(0) / ranks.count(9) < 11
