"""`parlor up`, as run in a new clone of the repository."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import psycopg
import pytest

from ops.health import is_serving
from ops.migrate import service_url
from ops.process import free_ports
from ops.up import SERVICES

BIN = Path(sys.executable).parent
README = Path(__file__).parents[1] / "README.md"
CALLER = {"ca": "ca.pem", "cert": "operator.pem", "key": "operator.key"}
LONGEST_SECONDS = 180
END_SECONDS = 20


class Up:
    """A running `parlor up`: its process, its child processes, and its output."""

    def __init__(self, process: subprocess.Popen[str], ports: range) -> None:
        """Read the output until it has started or failed."""
        self.process = process
        self.ports = dict(zip(SERVICES, ports, strict=False))
        self.metrics_ports, self.ops_port = ports[3:6], ports[6]
        self.printed = ""
        for line in process.stdout or ():
            self.printed += line
            if "Ctrl-C stops it all" in line:
                break
        self.children = psutil.Process(process.pid).children(recursive=True)

    def wait(self) -> int:
        """Return the exit code, once the process and its children have ended."""
        code = self.process.wait(END_SECONDS)
        _, alive = psutil.wait_procs(self.children, END_SECONDS)
        assert not alive
        return code


@contextmanager
def up(folder: Path, *options: str, ports: range | None = None, more: Mapping[str, str] | None = None) -> Iterator[Up]:
    """Run `parlor up` in a folder until the block ends, also by an exception; `more` is added to its environment."""
    ports = ports or free_ports(9)
    environment = {key: value for key, value in os.environ.items() if not key.endswith(("DATABASE_URL", "REDIS_URL"))}
    names = [f"--{name}-port={port}" for name, port in zip((*SERVICES, "metrics"), ports, strict=False)]
    names.append(f"--ops-port={ports[6]}")
    with subprocess.Popen(  # noqa: S603 - ours
        [BIN / "parlor", "up", *names, *options],
        cwd=folder,
        env=environment | dict(more or {}),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(LONGEST_SECONDS, process.kill)
        watchdog.start()
        try:
            yield Up(process, ports)
        finally:
            watchdog.cancel()
            process.kill()


def test_up_starts_three_services_with_data_prints_working_calls_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral") as running:
        assert "Ctrl-C stops it all" in running.printed
        for name, port in running.ports.items():
            assert is_serving(f"127.0.0.1:{port}", SERVICES[name])
        salons, conversations, statistics = [
            call(line) for line in re.findall("^buf .*$", running.printed, re.MULTILINE)
        ]
        assert [salon["salonId"] for salon in salons["salons"]]
        assert len(conversations["conversations"]) == 2
        assert int(statistics["bookings"]) > 100
        talk(running)
        [dsn] = re.findall("^PostgreSQL: (.*)$", running.printed, re.MULTILINE)
        with psycopg.connect(dsn) as conn:
            query = "SELECT DISTINCT client_addr FROM pg_stat_activity WHERE application_name = ANY(%s)"
            assert conn.execute(query, [[f"parlor-{name}" for name in SERVICES]]).fetchall() == [
                (None,)
            ]  # through the socket
        with pytest.raises(psycopg.OperationalError, match="no password"):
            psycopg.connect(dsn.partition("?")[0])
        logs = Path(re.findall("^logs: (.*)$", running.printed, re.MULTILINE)[0])
        assert (logs / "booking.log").exists()
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0
        assert not logs.parent.exists()
    assert list(tmp_path.iterdir()) == []


def test_up_with_a_replica_reads_statistics_from_it(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", "--replica") as running:
        [line] = [line for line in re.findall("^buf .*$", running.printed, re.MULTILINE) if "GetSalonStats" in line]
        metrics = f"http://127.0.0.1:{running.metrics_ports[2]}/metrics"
        end = time.monotonic() + END_SECONDS
        while "parlor_cache_replica_loads_total 0.0" in urlopen(metrics, timeout=5).read().decode():
            assert time.monotonic() < end
            call(line.replace("2025-01-01T00:00:00Z", f"2025-01-01T00:00:0{int(time.monotonic()) % 10}Z"))
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0


def test_up_takes_secrets_from_files(tmp_path: Path, database_url: str, redis_url: str) -> None:
    secrets = {
        "DATABASE_URL": database_url,
        "BOOKING_DATABASE_URL": service_url(database_url, "parlor_booking"),
        "STATS_REPLICA_URL": service_url(database_url, "parlor_stats"),
        "REDIS_URL": redis_url,
        "CACHE_KEY": "of 20 characters, or so",
        "WHATSAPP_APP_SECRET": "of a file",
    }
    for name, secret in secrets.items():
        (tmp_path / name).write_text(f"{secret}\n")
    files = {f"{name}_FILE": str(tmp_path / name) for name in secrets}
    with up(tmp_path, "--ephemeral", "--no-sample-data", more=files) as running:
        assert "Ctrl-C stops it all" in running.printed
        assert len(running.children) == len(SERVICES)  # no servers of `parlor up`
        for child in running.children:
            environment = child.environ()
            assert {name: environment[name] for name in secrets} == secrets
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0


def test_a_killed_up_leaves_no_process_behind_and_starts_again_on_its_data(tmp_path: Path) -> None:
    with up(tmp_path, "--data=here", "--no-sample-data") as running:
        assert running.children
        running.process.kill()
        assert running.wait() == -signal.SIGKILL
    with up(tmp_path, "--data=here", "--no-seed") as running:  # the old name
        assert "--no-sample-data" in running.printed
        assert "Ctrl-C stops it all" in running.printed
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0


@pytest.mark.parametrize("place", [0, 5, 8])
def test_up_names_a_port_in_use_and_starts_nothing(tmp_path: Path, place: int) -> None:
    ports = free_ports(9)
    with socket.create_server(("127.0.0.1", ports[place])), up(tmp_path, "--ephemeral", ports=ports) as running:
        assert running.wait() == 1
    assert f"port {ports[place]}" in running.printed
    assert running.children == []


def script_of(running: Up, text: str) -> str:
    """Return the script of the README that contains a text, for the ports of a running `parlor up`."""
    scripts = re.findall("^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    [script] = [each for each in scripts if text in each]
    ports = {50051: running.ports["booking"], 50052: running.ports["messaging"], 50053: running.ports["stats"]}
    for before, port in (ports | {50061: running.ops_port}).items():
        script = script.replace(f"localhost:{before}", f"localhost:{port}")
    return f"set -e -o pipefail\n{script}"


def replies_of(output: str) -> list[Any]:
    """Return the JSON documents in an output."""
    decode, place, replies = json.JSONDecoder().raw_decode, 0, []
    while place < len(output.rstrip()):
        reply, place = decode(output, re.compile(r"\s*").match(output, place).end())  # type: ignore[union-attr]
        replies.append(reply)
    return replies


def test_with_certificates_callers_have_the_rights_of_the_policy(tmp_path: Path) -> None:
    subprocess.run([BIN / "parlor", "dev-certs", ".certs"], cwd=tmp_path, check=True, capture_output=True)  # noqa: S603
    options = "--ephemeral", "--certs=.certs", f"--policy={README.parent / 'deploy/policy.toml'}"
    with up(tmp_path, *options) as running:
        assert "Ctrl-C stops it all" in running.printed
        script = f"export PATH={BIN}:$PATH\n{script_of(running, 'dashboard.jwt')}"
        done = subprocess.run(["bash"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=60)  # noqa: S607
        assert done.returncode == 0, done.stderr
        found, counted, statistics = replies_of(done.stdout)
        assert (found["salon_id"], int(counted["bookings"]) > 100) == ("salon-123", True)
        assert statistics["redis"]["connected"]
        assert re.findall(r"Code: (\w+)", done.stderr) == ["PermissionDenied", "Unauthenticated"]
        assert re.findall(r'"reason": ?"(\w+)"', done.stderr) == ["METHOD_NOT_ALLOWED", "UNAUTHENTICATED"]
        for line in re.findall("^(?:buf|grpcurl) .*$", running.printed, re.MULTILINE):
            command, *arguments = shlex.split(line)
            subprocess.run([BIN / command, *arguments], cwd=tmp_path, check=True, capture_output=True)  # noqa: S603
        assert "not checked: https" not in examined(running, tmp_path)
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0


def examined(running: Up, folder: Path) -> str:
    """Return what `parlor doctor` says of a system with certificates."""
    [dsn] = re.findall("^PostgreSQL: (.*)$", running.printed, re.MULTILINE)
    files = [f"--{name}=.certs/{file}" for name, file in CALLER.items()]
    urls = [f"--metrics-url=https://localhost:{port}/metrics" for port in running.metrics_ports]
    command = [str(BIN / "parlor"), "doctor", f"--database-url={dsn}", *files, *urls]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def talk(running: Up) -> None:
    """Run the conversation of the README twice; the second time the first free slots are other ones."""
    script = script_of(running, "# A salon, when it is open").replace(".venv/bin/buf", str(BIN / "buf"))
    booked: list[int] = []
    for _ in range(2):
        done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60)  # noqa: S607
        assert done.returncode == 0, done.stderr
        replies = replies_of(done.stdout)
        *_, anna, _, cut, ingested, conversation, free, confirmed, sent, moved, updated = replies[:-4]
        inbox, events, found, counted = replies[-4:]
        assert (len(replies), anna["resourceId"], cut["serviceId"]) == (15, "anna", "cut")
        assert ingested == {"messages": 1}
        if not booked:  # WhatsApp's times are whole seconds: the second question may look older than the answer
            assert conversation["messages"][0]["content"] == "Hallo! Habt ihr am Montag noch etwas frei?"
        assert conversation["customerName"] == "Mia"
        assert len(free["slots"]) == 3
        assert "the time is outside of the salon's hours" in done.stderr
        assert confirmed["status"] == moved["status"] == "BOOKING_STATUS_CONFIRMED"
        assert (confirmed["priceMicros"], confirmed["bufferAfter"]) == ("35000000", "600s")
        assert confirmed["bookingCode"] == moved["bookingCode"] and confirmed["bookingCode"] in sent["content"]
        days = [date.fromisoformat(each["startTime"][:10]) for each in (confirmed, moved)]
        assert days[1] - days[0] == timedelta(days=1)
        assert updated["notes"] == "Likes it quiet"
        assert [event["type"].removeprefix("BOOKING_EVENT_TYPE_") for event in events["bookingEvents"]] == [
            "CREATED",
            "STATUS_CHANGED",
            "RESCHEDULED",
            "UPDATED",
        ]
        assert [each["customerName"] for each in inbox["conversations"]] == ["Mia"]
        assert "<b>" in found["messages"][0]["snippet"]
        booked.append(int(counted["bookings"]))
    assert booked[1] == booked[0] + 1


def call(line: str) -> Any:
    """Run a printed `buf curl` with the buf of this environment; return the reply."""
    command = shlex.split(line)
    answer = subprocess.run(  # noqa: S603 - what is printed is for running
        [BIN / command[0], *command[1:]], capture_output=True, text=True, timeout=30, check=True
    )
    return json.loads(answer.stdout)
