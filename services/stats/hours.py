"""The part of a period that is read from hourly sums (migration 0022, decision 0061), as SQL.

A period is whole hours in the middle, less than an hour before them, and less than an hour or what is not summed yet
after them. The whole hours are the sums plus the deltas: the changes since. The rest is read as rows, and in archived
months, which have no rows, as sums of quarters of an hour: there a quarter counts if the period has its start. One
statement reads all of this and `rollups`, so the parts fit together.
"""

# `rolled` has the whole hours of a wanted period, from hours_from to hours_to; both are its end_time if there are none.
# The last hour may be part of an hour: its sum has what is older than sealed_to. OFFSET 0: computed once for a period.
ROLLED = """LATERAL (
        SELECT CASE WHEN first < last THEN first ELSE wanted.end_time END AS hours_from,
            CASE WHEN first < last THEN last ELSE wanted.end_time END AS hours_to, archives
        FROM (
            SELECT date_bin('1 hour', wanted.start_time + interval '1 hour' - interval '1 us', 'epoch') AS first,
                CASE WHEN sealed_to <= wanted.end_time THEN sealed_to
                    ELSE date_bin('1 hour', wanted.end_time, 'epoch') END AS last, archives
            FROM rollups
        ) AS whole OFFSET 0
    ) AS rolled"""


def in_hours(time: str) -> str:
    """Return the condition for sums (by their hour) and deltas (by the time of their row) of the whole hours."""
    return f"salon_id = wanted.salon_id AND {time} >= hours_from AND {time} < hours_to"


def before_hours(time: str) -> str:
    """Return the condition for rows before the whole hours; all rows of a period without whole hours."""
    return f"salon_id = wanted.salon_id AND {time} >= wanted.start_time AND {time} < hours_from"


def after_hours(time: str) -> str:
    """Return the condition for rows after the whole hours."""
    return f"salon_id = wanted.salon_id AND {time} >= hours_to AND {time} < wanted.end_time"


def quarters_before_hours() -> str:
    """Return the condition for sums of archived quarters before the whole hours."""
    return f"{before_hours('quarter')} AND archive = ANY (archives)"


def quarters_after_hours() -> str:
    """Return the condition for sums of archived quarters after the whole hours."""
    return f"{after_hours('quarter')} AND archive = ANY (archives)"
