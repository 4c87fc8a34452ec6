"""The alerts and the board of deploy/ use only metrics, labels and values that the running services export."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from parlor.booking.v1 import booking_pb2
from tests.processes import processes, stubs
from tests.stack import SALON, failure, salon

DEPLOY = Path(__file__).parent.parent / "deploy"
SELECTOR = re.compile(r"\b((?:grpc|parlor|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(=~|!=|=)\s*\"([^\"]*)\"")
BY = re.compile(r"\bby \(([^)]*)\)")
OF_PROMETHEUS = {"instance", "job"}
CODES = {"".join(part.capitalize() for part in code.name.split("_")) for code in grpc.StatusCode} | {"OK"}


def expressions() -> dict[str, str]:
    """Return every PromQL expression of deploy/, by the name of its alert, or the title of its panel and its number."""
    rules = yaml.safe_load((DEPLOY / "prometheus/parlor.rules.yml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    for panel in json.loads((DEPLOY / "grafana/parlor.json").read_text())["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


Exported = dict[str, dict[str, set[str]]]


@pytest.fixture
async def exported(tmp_path: Path, database_url: str, redis_url: str) -> Exported:
    """The values of each label of each metric of the three services, after a call that succeeds and one that fails."""
    with processes(database_url, redis_url, tmp_path, {"SERVER_TRANSPORT": "http2"}) as system:
        async with stubs(system) as stack:
            await salon(stack)
            await failure(stack.booking.GetSalon(booking_pb2.GetSalonRequest(salon_id="nobody")))
            await stack.booking.GetSalon(booking_pb2.GetSalonRequest(salon_id=SALON))
        return metrics(system.metrics_ports.values())


def metrics(ports: Iterable[int]) -> Exported:
    """Return the values of each label of each metric on these ports."""
    values: Exported = {}
    for port in ports:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            text = reply.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = values.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)
    return values


def faults(expression: str, exported: Exported) -> Iterator[str]:
    """Yield what an expression asks for that no service exports."""
    used = SELECTOR.findall(BY.sub("", expression))
    known = OF_PROMETHEUS.union(*(exported[name] for name, _ in used if name in exported))
    for name, selector in used:
        if name not in exported:
            yield f"no metric {name}"
        for label, operator, value in LABEL.findall(selector):
            if label in OF_PROMETHEUS:
                continue
            if label not in exported.get(name, ()):
                yield f"{name} has no label {label}"
                continue
            values = set(value.split("|")) if operator == "=~" else {value}
            if unknown := values - (CODES if label == "grpc_code" else exported[name][label]):
                yield f"{label} is never {unknown}"
    for labels in BY.findall(expression):
        for label in labels.split(", "):
            if label not in known:
                yield f"no label {label}"


async def test_every_alert_and_panel_asks_for_what_the_services_export(exported: Exported) -> None:
    found = expressions()
    assert len(found) > 30
    assert {name: list(faults(text, exported)) for name, text in found.items() if list(faults(text, exported))} == {}


async def test_expressions_with_faults_are_found(exported: Exported) -> None:
    assert list(faults("parlor_nothing > 1", exported)) == ["no metric parlor_nothing"]
    assert list(faults('parlor_cache_reads_total{source="disk"}', exported)) == ["source is never {'disk'}"]
    assert list(faults('grpc_server_handled_total{grpc_code="INTERNAL"}', exported)) == [
        "grpc_code is never {'INTERNAL'}"
    ]
    assert list(faults("sum by (salon) (parlor_db_queries_total)", exported)) == ["no label salon"]
