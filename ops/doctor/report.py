"""A diagnosis for a terminal."""

from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table

from ops.doctor.findings import Diagnosis


def table(diagnosis: Diagnosis) -> Group:
    """Return the findings as a table, what was not checked, and a summary."""
    found = Table(*(Column(head, overflow="fold") for head in ("check", "where", "seen", "what mends it")))
    for finding in diagnosis.findings:
        found.add_row(*map(escape, (finding.check, finding.subject, finding.seen, finding.remedy)))
    unchecked = [f"[yellow]not checked:[/yellow] {escape(text)}" for text in diagnosis.unchecked]
    count = len(diagnosis.findings)
    summary = "nothing found" if diagnosis.ok else f"{count} finding{'' if count == 1 else 's'}"
    return Group(*([] if diagnosis.ok else [found]), *unchecked, summary)
