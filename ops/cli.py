"""The `parlor` command."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID, TimeElapsedColumn

from ops.process import StartError
from ops.servers import running_url

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Start, fill and check Parlor.")
console = Console()
DATA = Path(".parlor")
POLICY = Path("deploy/policy.toml")
METRICS_URLS = [f"http://127.0.0.1:{port}/metrics" for port in (9051, 9052, 9053)]  # of `parlor up`
SECRETS = (
    "DATABASE_URL",
    *(f"{name}_{kind}_URL" for name in ("BOOKING", "MESSAGING", "STATS") for kind in ("DATABASE", "REPLICA")),
    *("REDIS_URL", "CACHE_KEY", "WHATSAPP_APP_SECRET"),
)
FILE = {"dir_okay": False, "exists": True, "show_default": False}


@app.callback()
def read_secrets() -> None:
    """Start, fill and check Parlor. A variable such as DATABASE_URL may also be in a file: DATABASE_URL_FILE."""
    from libs.server.secret_files import read_secret_files

    try:
        read_secret_files(SECRETS)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def running_database() -> str:
    """Return the database URL of the `parlor up` that runs in this folder."""
    if url := running_url(DATA / "postgres"):
        return url
    raise typer.BadParameter("is not given, DATABASE_URL is not set, and no `parlor up` runs in this folder")


DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="DATABASE_URL",
        default_factory=running_database,
        help="The owner's URL of the database.",
        show_default="that of the `parlor up` in this folder",
    ),
]
RedisUrl = Annotated[
    str,
    typer.Option(
        "--redis-url",
        envvar="REDIS_URL",
        help="Redis of the services, whose cache is dropped when messages come or go.",
    ),
]
Scale = Annotated[
    int, typer.Option(min=1, max=100, help="Size of the data set: 1 is 10,000 bookings and 50,000 messages.")
]


@contextmanager
def failing_on(*errors: type[Exception], status: int = 1) -> Iterator[None]:
    """Print an error of these kinds in one line, and exit with a status."""
    try:
        yield
    except errors as error:
        reason = escape(" ".join(str(error).split()))
        Console(stderr=True).print(f"[red]{reason}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(status) from None


def show_progress() -> Progress:
    """Return a progress bar on stderr."""
    return Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True))


@app.command()
def up(
    data: Annotated[Path, typer.Option(help="Folder for the servers' data and logs.")] = DATA,
    pg_bin: Annotated[
        Path | None, typer.Option(envvar="PG_BIN", help="Folder of another PostgreSQL's programs.", show_default=False)
    ] = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Use a temporary folder, removed at the end.")] = False,
    scale: Scale = 1,
    sample_data: Annotated[bool, typer.Option(help="Load the sample data if there are no salons yet.")] = True,
    seed: Annotated[bool | None, typer.Option(hidden=True)] = None,
    booking_port: Annotated[int, typer.Option(help="Port of booking.")] = 50051,
    messaging_port: Annotated[int, typer.Option(help="Port of messaging.")] = 50052,
    stats_port: Annotated[int, typer.Option(help="Port of stats.")] = 50053,
    metrics_port: Annotated[int, typer.Option(help="Metrics port of booking; the others use the next two.")] = 9051,
    ops_port: Annotated[int, typer.Option(help="OpsService's port of booking; the others use the next two.")] = 50061,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes of each service, which share its port.")] = 1,
    certs: Annotated[
        Path | None,
        typer.Option(help="Folder of `parlor dev-certs`: speak TLS, to callers with an identity only.", exists=True),
    ] = None,
    policy: Annotated[Path, typer.Option(help="With --certs, the file of the callers and their rights.")] = POLICY,
    replica: Annotated[bool, typer.Option("--replica", help="Start a standby, too, and read from it.")] = False,
) -> None:
    """Start everything: PostgreSQL, Valkey, the schema, the data and the three services. Ctrl-C stops it all.

    If DATABASE_URL or REDIS_URL is set, that server is used instead.
    """
    from ops.up import Plan, run

    if seed is not None:
        console.print("[yellow]--seed and --no-seed are now --sample-data and --no-sample-data[/yellow]")
        sample_data = seed
    ports = {"booking": booking_port, "messaging": messaging_port, "stats": stats_port}
    chosen = scale if sample_data else None
    plan = Plan(data, pg_bin, ephemeral, chosen, ports, metrics_port, workers, ops_port, certs, policy, replica)
    try:
        run(plan, console)
    except (StartError, OSError) as error:
        console.print(f"[red]{error}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None


@app.command()
def migrate(
    database_url: DatabaseUrl,
    connection_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            envvar="DB_LOGIN_CONNECTION_LIMIT",
            help="Most connections of a service's login.",
            show_default="half of max_connections",
        ),
    ] = None,
) -> None:
    """Bring the schema up to date; create the services' logins.

    A login gets the password in the URL of its service (BOOKING_DATABASE_URL and so on), if that is set.
    """
    import psycopg

    from ops.migrate import MigrationBusy, migrate, passwords

    with failing_on(psycopg.Error, ValueError, MigrationBusy):
        applied = migrate(database_url, passwords(os.environ), connection_limit)
    console.print("\n".join(applied) or "up to date", highlight=False)


@app.command()
def health(
    address: Annotated[str, typer.Argument(help="Host and port, for example localhost:50051.")],
    service: Annotated[str, typer.Argument(help="Full name of a service; the whole server if not given.")] = "",
    ca: Annotated[Path | None, typer.Option(help="CA of the server's certificate: speak TLS.", **FILE)] = None,
    cert: Annotated[Path | None, typer.Option(help="Certificate to show to the server.", **FILE)] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.", **FILE)] = None,
) -> None:
    """Exit with 0 if a server is SERVING, else with 1."""
    from ops.health import credentials, is_serving

    serving = is_serving(address, service, credentials=credentials(ca, cert, key) if ca else None)
    console.print("SERVING" if serving else "NOT SERVING")
    raise typer.Exit(0 if serving else 1)


@app.command()
def dev_certs(
    folder: Annotated[Path, typer.Argument(help="Folder for the files.", file_okay=False)],
) -> None:
    """Make a CA and certificates for trying TLS, of a server and of clients (bot, dashboard and so on), and a token.

    For development: the CA's key lies beside the certificates. A second run makes new certificates of the same CA.
    `parlor up --certs FOLDER` uses them.
    """
    from ops.dev_certs import FolderInUse, write_certificates, write_token

    with failing_on(OSError, ValueError, FolderInUse):
        written = write_certificates(folder) + write_token(folder)
    console.print("\n".join(map(str, written)), soft_wrap=True, highlight=False)


@app.command()
def compose_secrets(
    folder: Annotated[Path, typer.Argument(help="Folder for the files.", file_okay=False)] = Path(".secrets"),
) -> None:
    """Make the secrets and certificates that docker-compose.yml reads. A second run keeps what exists."""
    from ops.compose_secrets import write_secrets
    from ops.dev_certs import FolderInUse

    with failing_on(OSError, ValueError, FolderInUse):
        written = write_secrets(folder)
    console.print(f"{len(written)} files: {folder}", highlight=False)


@app.command()
def redis_acl(
    user: Annotated[str, typer.Argument(help="Name of the user.")] = "parlor",
) -> None:
    """Print the command that creates the services' user in Redis or Valkey, with the least rights they need.

    Replace PASSWORD. The rules after it may also stand in an ACL file: `user parlor on >PASSWORD resetchannels ...`.
    """
    from libs.cache import acl_rules

    typer.echo(" ".join(["ACL", "SETUSER", user, "on", "'>PASSWORD'", *acl_rules()]))


@app.command()
def protos_image(
    file: Annotated[Path, typer.Argument(help="The file to write, for example parlor.binpb.", dir_okay=False)],
) -> None:
    """Write the protos and their imports as one FileDescriptorSet, for clients in any language.

    docs/clients.md shows how clients in Node and in Go use it.
    """
    from ops.protos_image import write_image

    try:
        count = write_image(file)
    except OSError as error:
        console.print(f"[red]cannot write {file}: {error.strerror}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    console.print(f"{count} files: {file}", highlight=False)


@app.command("seed", hidden=True)
@app.command()
def load_sample_data(
    context: typer.Context,
    database_url: DatabaseUrl,
    scale: Scale = 1,
    replace: Annotated[bool, typer.Option("--replace", help="Delete every row of every salon first.")] = False,
    redis_url: Annotated[
        str | None, typer.Option(envvar="REDIS_URL", help="Redis of running services, whose cache is dropped.")
    ] = None,
) -> None:
    """Load the sample data: 20 salons with services, resources, bookings, conversations; always the same rows."""
    from ops.sample_data import DataExistsError
    from ops.sample_data import load_sample_data as load

    if context.info_name == "seed":
        console.print("[yellow]`parlor seed` is now `parlor load-sample-data`[/yellow]")

    with failing_on(DataExistsError), show_progress() as progress:
        written = load(database_url, scale, replace=replace, progress=progress, redis_url=redis_url)
    console.print(", ".join(f"{rows:,} {table}" for table, rows in written.items()), highlight=False)


@app.command()
def maintain(
    database_url: DatabaseUrl,
    reindex: Annotated[bool, typer.Option("--reindex", help="Build bloated indexes anew, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Do what the database needs from time to time; exit with 1 if a step fails.

    rollups: sums messages, conversations and AI messages by hour, so that statistics need not read every row. The
    messaging service does this every 10 minutes; run it where that is not running, or after a restore.
    partitions: if messages are partitioned by month, makes partitions for the next 12 months, and analyzes the whole.
    vacuum: VACUUM (ANALYZE) of the tables with more than 10 % of dead rows, or 20 % of changed ones.
    reindex: REINDEX CONCURRENTLY of indexes of which about half is empty; reads and writes go on.

    Safe at any time, beside the services and beside another run.
    """
    from ops.maintain import maintain as run

    outcomes = run(database_url, with_reindex=reindex)
    if as_json:
        typer.echo(json.dumps({outcome.step: {"ok": outcome.ok, **outcome.details} for outcome in outcomes}, indent=2))
    else:
        for outcome in outcomes:
            style = "" if outcome.ok else "[red]"
            console.print(f"{style}{outcome.step}: {escape(outcome.text)}", soft_wrap=True, highlight=False)
    raise typer.Exit(0 if all(outcome.ok for outcome in outcomes) else 1)


@app.command()
def partition(
    database_url: DatabaseUrl,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Partition the messages by month, so that `parlor archive` can take months out. The services go on meanwhile.

    Needs as much disk again as the messages take. Reads of single messages get slower: docs/operations.md says when to
    do it. After a run that was killed, run it again: it begins anew.
    """
    import psycopg

    from ops.migrate import MigrationBusy
    from ops.months import TableBusy
    from ops.partition import CannotPartition
    from ops.partition import partition as run

    with failing_on(psycopg.Error, CannotPartition, MigrationBusy, TableBusy), show_progress() as progress:
        done = run(database_url, progress=progress)
    if as_json:
        typer.echo(json.dumps(done._asdict(), indent=2))
    else:
        typer.echo(
            f"{done.messages:,} messages in {done.partitions} partitions, {done.seconds:,.1f} s;"
            f" messages were locked for {done.locked_milliseconds:.0f} ms"
        )


@app.command()
def archive(
    database_url: DatabaseUrl,
    redis_url: RedisUrl,
    older_than: Annotated[str, typer.Option(help="The age of months that leave: 13mo is 13 whole months.")],
    folder: Annotated[Path, typer.Option("--to", file_okay=False, help="The folder of the files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the messages of old months to files, and take them out of the database; statistics keep them.

    Messages must have been partitioned, by `parlor partition`. Each month becomes a compressed file and a manifest.
    Lists and searches no longer find its messages; ListMessages says so. A killed run is continued by the next one,
    which needs the same folder. Each run also removes customers who were erased since from the files in the folder.
    """
    from ops.archive import archive as run
    from ops.archive import before

    with _archiving(redis_url) as (drop_cache, advance):
        written = list(run(database_url, before(older_than), folder, drop_cache, advance))
    if as_json:
        months = [{"name": one.name, "file": str(one.file), "messages": one.rows} for one in written]
        typer.echo(json.dumps({"archived": months}, indent=2))
        return
    for one in written:
        console.print(f"{one.name}: {one.rows:,} messages in {one.file}", soft_wrap=True, highlight=False)
    if not written:
        console.print("no month is that old, or all of them are archived", highlight=False)


@app.command()
def restore_archive(
    file: Annotated[Path, typer.Argument(help="A file of `parlor archive`, with its manifest beside it.", **FILE)],
    database_url: DatabaseUrl,
    redis_url: RedisUrl,
) -> None:
    """Put the messages of an archived month back into the database, and delete the file.

    Customers who were erased since are removed first. The file is deleted, because erasures no longer reach it.
    """
    from ops.restore_archive import restore

    with _archiving(redis_url) as (drop_cache, advance):
        restored = restore(database_url, file, drop_cache, advance)
    console.print(f"{restored.name}: {restored.rows:,} messages are back", highlight=False)


@contextmanager
def _archiving(redis_url: str) -> Iterator[tuple[Callable[[], None], Callable[[str, int, int], None]]]:
    """Show progress, and errors in one line."""
    import psycopg
    from redis.exceptions import RedisError

    from libs.cache import drop
    from ops.archive_files import ArchiveError
    from ops.months import TableBusy

    errors = (ArchiveError, TableBusy, OSError, RedisError, psycopg.Error)
    with failing_on(*errors), show_progress() as progress:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield lambda: asyncio.run(drop(redis_url)), advance


@app.command()
def verify_indexes(
    database_url: DatabaseUrl,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the section of docs/performance.md.")] = False,
) -> None:
    """Exit with 1 unless the 15 indexes exist and are used, and the services' statements are planned well.

    The statements are recorded on a temporary system on this machine, with a call of each RPC. On the database they are
    only explained, not run. It must have at least the sample data, analyzed: small tables are read as a whole.
    """
    from ops.indexes import markdown, tables, verify
    from ops.recording import record

    with failing_on(StartError, status=2):
        report = verify(database_url, record())
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    elif as_markdown:
        typer.echo(markdown(report), nl=False)
    else:
        Console(width=max(100, console.width)).print(tables(report), highlight=False)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def doctor(
    database_url: DatabaseUrl,
    metrics_url: Annotated[
        list[str],
        typer.Option(envvar="METRICS_URLS", help="Metrics of a service; may be given again for each process."),
    ] = METRICS_URLS,
    ca: Annotated[Path | None, typer.Option(help="CA of the metrics' certificates, for https.", **FILE)] = None,
    cert: Annotated[Path | None, typer.Option(help="Certificate to show to the metrics' servers.", **FILE)] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.", **FILE)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look for what is wrong with the database and the services, and say what mends it. Changes nothing.

    Exits with 0 if nothing is found, with 1 if something is, with 2 if the database can't be read. What can't be looked
    at is listed.
    """
    import ssl

    import psycopg

    from ops.doctor import examine
    from ops.doctor.report import table

    with failing_on(psycopg.Error, ssl.SSLError, status=2):
        tls = ssl.create_default_context(cafile=ca)
        if cert:
            tls.load_cert_chain(cert, key)
        diagnosis = examine(database_url, metrics_url, tls=tls)
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        Console(width=max(100, console.width)).print(table(diagnosis), highlight=False)
    raise typer.Exit(0 if diagnosis.ok else 1)
