"""The fold of a message's status events into the message's status, error and price."""

# The columns of `folded_status`.
FOLDED = (
    "status, error_code, error_title, pricing_category, billable, cost_micros, currency_code, conversation_origin,"
    " details"
)
# The members of `details` that come from status events.
FOLDED_DETAILS = ("error_details", "pricing_type", "pricing_model", "biz_opaque_callback_data")

# The cost of a message `m` before any status said a price, and its currency.
RECORDED_COST = (
    "coalesce(m.recorded_cost_micros, m.cost_micros)",
    "CASE WHEN m.recorded_cost_micros IS NULL THEN m.currency_code ELSE m.recorded_currency_code END",
)


def folded_status(salon_id: str, whatsapp_id: str, cost_micros: str, currency_code: str, details: str) -> str:
    """Return the SELECT that folds all events of a message into its columns FOLDED, in any order of arrival.

    The arguments are SQL: the message, its cost unless an event has a price, and its details, to which those of the
    events are added. Each column, and each of FOLDED_DETAILS, is that of the event with the highest status that has
    one, and of the earliest among several (decision 0006).
    """
    highest = "(array_agg({0} ORDER BY rank DESC, occurred_at) FILTER (WHERE {0} IS NOT NULL))[1]".format
    failed = "(array_agg({} ORDER BY occurred_at) FILTER (WHERE e.status = 'FAILED'))[1]".format
    error_details, *others = FOLDED_DETAILS
    members = ["'" + error_details + "', " + failed(f"e.details->'{error_details}'")]
    members += [f"'{name}', " + highest(f"(e.details->'{name}')") for name in others]
    return f"""
        SELECT coalesce(status, 'PENDING') AS status, error_code, error_title, pricing_category, billable,
            CASE WHEN billable IS NOT FALSE THEN coalesce(event.cost_micros, {cost_micros}) ELSE 0 END AS cost_micros,
            CASE WHEN billable IS NOT FALSE THEN coalesce(event.currency_code, {currency_code}) END AS currency_code,
            conversation_origin,
            CASE WHEN event.details IS NULL THEN {details} ELSE coalesce({details}, '{{}}') || event.details END
                AS details
        FROM (
            SELECT {highest("e.status")} AS status, {failed("error_code")} AS error_code,
                {failed("error_title")} AS error_title, {highest("pricing_category")} AS pricing_category,
                {highest("billable")} AS billable, {highest("cost_micros")} AS cost_micros,
                {highest("currency_code")} AS currency_code, {highest("conversation_origin")} AS conversation_origin,
                CASE WHEN count(e.details) > 0 THEN jsonb_strip_nulls(jsonb_build_object({", ".join(members)})) END
                    AS details
            FROM message_status_events AS e,
                array_position(ARRAY['PENDING', 'SENT', 'FAILED', 'DELIVERED', 'READ'], e.status) AS rank
            WHERE e.salon_id = {salon_id} AND e.whatsapp_id = {whatsapp_id}
        ) AS event"""
