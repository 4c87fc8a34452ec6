"""`python -m tools.report`: what it writes, and that its check can fail."""

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

import psycopg
import pytest
from redis.asyncio import Redis
from rich.progress import Progress

from ops.indexes import index_states, verify
from ops.sample_data import load_sample_data
from parlor.booking.v1.booking_pb2 import GetBookingByCodeRequest
from services.cache_tags import CacheTags
from tests.stack import Stack, unconnected_cache
from tools.report.cases import cases
from tools.report.measure import DIRECTIONS, Effort, check_database, measure_rows
from tools.report.page import ms
from tools.report.readers import connected
from tools.report.reference import LINES
from tools.report.results import Check, Reads, Row, headline, judge, query_checks
from tools.report.system import System, copy, without
from tools.workloads import Trace, Workload, salons

Measure: TypeAlias = Callable[..., Awaitable[Row]]
NEAR = ("GetSalon", "GetSalonByPhoneNumberId")
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Reads a document: its tables' cells, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        """Read it."""
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
        """End one, which must be the last begun."""
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        """Keep the text of a cell."""
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


class Run:
    """A quick run of the command: all that it wrote."""

    def __init__(self, folder: Path) -> None:
        """Run it."""
        document, section = folder / "report.html", folder / "performance.md"
        section.write_text("above\n<!-- report -->\nold\n<!-- /report -->\nbelow\n")
        options = ["--quick", "--check", "--json", "--output", str(document), "--markdown", str(section)]
        done = subprocess.run([sys.executable, "-m", "tools.report", *options], capture_output=True, text=True)  # noqa: S603 - ours
        self.code, self.stderr = done.returncode, done.stderr
        self.json = json.loads(done.stdout or "{}")
        assert self.json, done.stderr
        self.html, self.markdown = document.read_text(), section.read_text()
        self.page = Page(self.html)


def test_a_quick_report_is_complete(tmp_path: Path) -> None:
    """One test: on two workers a fixture would run the command twice."""
    run = Run(tmp_path)
    html_has_no_external_references(run)
    every_line_of_the_predecessors_tables_is_in_all_forms(run)
    every_target_is_in_all_forms(run)
    the_check_is_the_exit_code(run)
    the_markdown_stays_between_its_markers(run)


def html_has_no_external_references(run: Run) -> None:
    assert run.page.open == []
    [svg] = re.findall(r"<svg.*?</svg>", run.html, flags=re.DOTALL)
    assert ElementTree.fromstring(svg).findall(".//{http://www.w3.org/2000/svg}text")  # noqa: S314
    assert "<script" not in run.html
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", run.html)
    assert references  # a chart's clip paths
    assert [reference for reference in references if not reference.startswith("#")] == []
    assert "@import" not in run.html


def every_line_of_the_predecessors_tables_is_in_all_forms(run: Run) -> None:
    rows = run.json["rows"]
    assert [row["line"] for row in rows] == [asdict(line) for line in LINES]
    for row in rows:
        line, reads = row["line"], row["reads"]
        figures = [ms(reads["before"]), ms(reads["first"]), ms(row["after"]), f"{row['ratio']:.3f}"]
        cells = [line["name"], f"{line['before_ms']:g} → {line['after_ms']:g}"]
        shown = next(shown for shown in run.page.rows if shown[:2] == cells)
        assert shown[2:6] == figures
        assert shown[-1] == row["verdict"]
        assert f"| {' | '.join(shown)} |" in run.markdown
        assert row["ratio"] == round(row["after"] / reads["before"], 4)
        assert reads["hits"] == 100
        assert (reads["near"] > 90) if row["rpc"] in NEAR else (reads["near"] == 0)
        assert min(reads["before"], reads["first"], reads["repeated"]) > 0


def every_target_is_in_all_forms(run: Run) -> None:
    checks = {check["name"]: check for check in run.json["checks"]}
    assert len(checks) == 11
    for name, check in checks.items():
        cells = [name, check["figure"], check["target"], check["predecessor"], "met" if check["ok"] else "NOT met"]
        assert cells in run.page.rows
        assert f"| {' | '.join(cells)} |" in run.markdown
    for name in ("Callers at once", "Indexes present and used", "Plans on their indexes", "Buffer hit ratio"):
        assert checks[name]["ok"], checks[name]
    for name in ("Database load saved", "Cache hit rate"):
        assert 0 < float(checks[name]["figure"].partition(" ")[0]) < 100


def the_check_is_the_exit_code(run: Run) -> None:
    checks = run.json["checks"]
    assert run.json["ok"] == all(check["ok"] for check in checks)
    assert run.code == (0 if run.json["ok"] else 1)
    summary = f"{sum(check['ok'] for check in checks)} of 11 targets are met."
    for shown in (run.html, run.markdown, run.stderr):
        assert summary in shown.replace("\n", " ")


def the_markdown_stays_between_its_markers(run: Run) -> None:
    assert run.markdown.startswith("above\n<!-- report -->\n")
    assert run.markdown.endswith("<!-- /report -->\nbelow\n")
    assert "\nold\n" not in run.markdown


@pytest.fixture
def databases(database_url: str) -> Iterator[tuple[str, str]]:
    """A database with the sample data, and its copy."""
    load_sample_data(database_url, 1)
    name = database_url.rpartition("/")[2] + "_before"
    yield database_url, copy(database_url, name)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
async def measure(databases: tuple[str, str], redis_url: str, stack: Stack) -> AsyncIterator[Measure]:
    """A function that measures one line, with or without the cache, in some rounds."""
    system = System(*databases, redis_url, {name: server.port for name, server in stack.servers.items()}, {})
    wanted = [case for case in cases(system.database_url) if case.key == "salon_bookings"]
    async with connected(system) as (before, after):

        async def measured(*, cached: bool = True, rounds: int = 1) -> Row:
            effort = Effort(rounds, calls=128, seconds=0.3, operations=0)
            quiet = Progress(disable=True)
            [row] = await measure_rows(system, wanted, before, after, effort, quiet, cached=cached)
            return row

        yield measured


async def test_check_fails_without_the_cache(measure: Measure) -> None:
    cached, uncached = await measure(rounds=3), await measure(cached=False, rounds=3)
    assert (cached.reads.hits, uncached.reads.hits) == (100, 0)
    assert cached.ratio < uncached.ratio
    assert not all(check.ok for check in query_checks([uncached]))


async def test_hits_are_measured_although_redis_hangs_for_a_moment(measure: Measure, redis_url: str) -> None:
    async def hang(redis: Redis, delay: float) -> None:
        await asyncio.sleep(delay)
        await redis.client_pause(120)  # ms: longer than REDIS_TIMEOUT

    async with Redis.from_url(redis_url) as redis:
        for number in range(16):  # some of the moments are in the reads that count
            row, _ = await asyncio.gather(measure(), hang(redis, number / 32))
            assert row.reads.hits == 100


@pytest.mark.parametrize("name", ["idx_messages_phone_salon", "whatsapp_id"])
def test_a_dropped_index_is_created_again(database_url: str, name: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        with without(database_url, name):
            assert {index.name for index in index_states(conn) if index.state == "missing"} == {name}
        assert all(index.state == "present" for index in index_states(conn))


def test_an_index_counts_as_used_only_if_a_plan_uses_it(database_url: str) -> None:
    load_sample_data(database_url, 1)
    [check] = [each for each in check_database(verify(database_url, [DIRECTIONS]), database_url) if "used" in each.name]
    assert (check.figure, check.ok) == ("1 of 15", False)


@pytest.mark.parametrize(("after", "verdict"), [(25.0, "met"), (25.1, "NOT met")])
def test_a_row_is_judged_by_its_medians(after: float, verdict: str) -> None:
    row = judge(LINES[0], "ListBookings", Reads(100.0, 100.0, after, 100.0, 0.0))
    assert (row.verdict, row.ok) == (verdict, verdict == "met")
    assert [check.ok for check in query_checks([row])] == [row.ok]


@pytest.mark.parametrize(
    ("ok", "summary"),
    [
        ([True, True, True], "3 of 3 targets are met."),
        ([True, False, True], "2 of 3 targets are met. NOT met: 1."),
        ([False, True, False], "1 of 3 targets are met. NOT met: 0; 2."),
        ([False, False, False], "0 of 3 targets are met. NOT met: 0; 1; 2."),
    ],
)
def test_the_headline_counts_every_target(ok: list[bool], summary: str) -> None:
    assert headline([Check(str(number), "", "", "", is_met) for number, is_met in enumerate(ok)]) == summary


def test_calls_are_made_by_zipfs_law(database_url: str) -> None:
    load_sample_data(database_url, 1)
    [salon, *_] = salons(database_url)
    tags = CacheTags(unconnected_cache())
    workload = Workload("Zipf", {"GetBookingByCode": 1}, {}, mix=(1, 0), calls=100_000, warm=False)
    requests = [step.request for step in Trace(workload, [salon], tags).steps()]
    asked = Counter(each.booking_code for each in requests if isinstance(each, GetBookingByCodeRequest))
    first, second, tenth = (asked[salon.codes[rank]] for rank in (0, 1, 9))
    assert 1.8 < first / second < 2.2
    assert 9 < first / tenth < 11
