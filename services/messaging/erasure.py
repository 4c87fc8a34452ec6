"""Erasure of a customer: removes what identifies them, and the texts written with them."""

import json
import re
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Connection
from parlor.messaging.v1.messaging_pb2 import EraseCustomerResponse, Message
from services.messaging.amendment_queries import fold_amendments
from services.messaging.conversation_queries import Named
from services.messaging.erased_ids import HASH, WAMIDS, add_salt, hash_ids, is_erased
from services.messaging.number_patterns import in_whatsapp_id, pattern
from services.phones import spellings


class Erased(NamedTuple):
    """All customers of a salon who are to be erased, with every number, ID and conversation that they have had.

    `group_ids` are the conversations of all groups of the salon.
    """

    salon_id: str
    conversation_ids: list[str]
    phone_numbers: list[str]
    user_ids: list[str]
    group_ids: list[str]

    @property
    def written_numbers(self) -> list[str]:
        """The phone numbers in each way in which they may be written."""
        return sorted({written for number in self.phone_numbers for written in spellings(number)})

    @property
    def in_whatsapp_ids(self) -> str:
        """A regular expression that finds the customers in WhatsApp message ids."""
        return "|".join(map(in_whatsapp_id, (*self.written_numbers, *self.user_ids)))


# The tag of a Message's whatsapp_id, which precedes its length.
WHATSAPP_ID_TAG = Message(whatsapp_id="x").SerializeToString()[:1]

# A conversation has one salon, which the planner can't know: it would read all messages of the salon, too.
_OF_SALON = "m.salon_id || '' = %(salon_id)s"
_IN_GROUPS = f"{_OF_SALON} AND m.conversation_id = ANY(%(group_ids)s::uuid[])"
_NAMES_CUSTOMER = "EXISTS (SELECT FROM unnest(%(patterns)s::text[]) AS pattern WHERE {} ~ pattern)"


def _of_customer(column: str) -> str:
    """Return the condition that a person is the customer; `column` is the SQL of their phone_number and user_id."""
    phone_number, user_id = column.format("phone_number"), column.format("user_id")
    return f"({phone_number} = ANY(%(written_numbers)s) OR {user_id} = ANY(%(user_ids)s))"


def _params(customer: Erased) -> dict[str, Any]:
    """Return the parameters of statements that find what names a customer."""
    users = [re.escape(json.dumps(user)) for user in customer.user_ids]
    patterns = [*map(pattern, customer.written_numbers), *users, customer.in_whatsapp_ids]
    return {
        **customer._asdict(),
        "written_numbers": customer.written_numbers,
        "in_whatsapp_ids": customer.in_whatsapp_ids,
        "patterns": patterns,
    }


async def erase_customer(conn: Connection, customer: Erased) -> EraseCustomerResponse:
    """Erase customers in a write that runs alone; return the counts of rows."""
    await erase_replies(conn, customer)
    await erase_identities(conn, customer)
    await add_salt(conn, customer.salon_id)
    response = EraseCustomerResponse(
        conversations=await erase_conversations(conn, customer),
        ai_messages=await erase_ai_messages(conn, customer),
        messages=await erase_messages(conn, customer),
    )
    await remember_for_archives(conn, customer)
    if targets := await erase_amendments(conn, customer):
        await conn.run(fold_amendments(customer.salon_id, targets))
    if customer.group_ids:
        await erase_from_groups(conn, customer)
    await erase_webhook_failures(conn, customer)
    await erase_early_statuses(conn, customer)
    return response


async def find_erased(conn: AsyncConnection[Any], named: Named) -> Erased:
    """Return the customers who have or had a phone number or a user_id. The caller's write runs alone.

    Also conversations that have the number or user_id, but not as a customer's: processes of 0.3 begin such ones.
    Source: indexes customer_identities_pkey, idx_customer_identities_customer, salon_id_phone_number,
    idx_conversations_salon_user.
    """
    query = b"""
        WITH named AS (
            SELECT i.customer_id FROM customer_identities AS i WHERE i.salon_id = %(salon_id)s AND (
                i.kind = 'PHONE_NUMBER' AND i.identity = ANY (%(phone_numbers)s::text[])
                OR i.kind = 'USER_ID' AND i.identity = %(user_id)s
            )
            UNION SELECT conversation_id FROM conversations
            WHERE salon_id = %(salon_id)s AND phone_number = ANY (%(phone_numbers)s::text[])
            UNION SELECT conversation_id FROM conversations
            WHERE salon_id = %(salon_id)s AND user_id = %(user_id)s
        )
        SELECT customer_id::text, customer_id::text, 'CONVERSATION_ID' FROM named
        UNION ALL SELECT customer_id::text, identity, kind FROM customer_identities
        WHERE salon_id = %(salon_id)s AND customer_id = ANY (ARRAY(SELECT customer_id FROM named))"""
    rows = await (await conn.execute(query, _given(named))).fetchall()
    names: dict[str, set[str]] = {"PHONE_NUMBER": {named.phone_number}, "USER_ID": {named.user_id}}
    for customer_id, identity, kind in rows:
        names.setdefault(kind, set()).add(identity)
        names.setdefault("CONVERSATION_ID", set()).add(customer_id)
    conversations, numbers, users = (
        sorted(names.get(kind, set()) - {""}) for kind in ("CONVERSATION_ID", "PHONE_NUMBER", "USER_ID")
    )
    return Erased(named.salon_id, conversations, numbers, users, await _group_ids(conn, named.salon_id))


async def _group_ids(conn: AsyncConnection[Any], salon_id: str) -> list[str]:
    """Return the conversations of a salon's groups. Source: index conversations_group_id_key."""
    query = b"SELECT conversation_id::text FROM conversations WHERE salon_id = %s AND group_id IS NOT NULL"
    return [found for (found,) in await (await conn.execute(query, (salon_id,))).fetchall()]


async def erase_identities(conn: AsyncConnection[Any], customer: Erased) -> None:
    """Delete the customers and their identities.

    Source: indexes customers_pkey, idx_customer_identities_customer.
    """
    query = b"DELETE FROM customers WHERE salon_id = %s AND customer_id = ANY(%s::uuid[])"
    await conn.execute(query, (customer.salon_id, customer.conversation_ids))


async def erase_conversations(conn: AsyncConnection[Any], customer: Erased) -> int:
    """Remove the customer from their conversations; return their number.

    Source: index conversations_pkey.
    """
    query = """
        UPDATE conversations SET phone_number = NULL, user_id = NULL, customer_name = '',
            customer_named_at = NULL, assignee = '', tags = '{}', status = 'ARCHIVED', unread_count = 0,
            service_window_expires_at = NULL, revision = revision + 1
        WHERE salon_id = %s AND conversation_id = ANY(%s::uuid[])"""
    return (await conn.execute(query, (customer.salon_id, customer.conversation_ids))).rowcount


async def erase_messages(conn: AsyncConnection[Any], customer: Erased) -> int:
    """Keep of the customer's messages only what counts and sums need; return their number.

    Those are all of their conversations, and those that they sent in groups.
    Source: indexes idx_messages_conversation_created, messages_pkey, raw_messages_pkey, message_status_events_pkey,
    idx_message_amendments_target.
    """
    query = f"""
        WITH written AS (
            SELECT message_id, whatsapp_id FROM messages
            WHERE salon_id = %(salon_id)s AND message_id IN (
                SELECT m.message_id FROM messages AS m
                WHERE {_OF_SALON} AND m.conversation_id = ANY(%(conversation_ids)s::uuid[])
                UNION ALL SELECT m.message_id FROM messages AS m
                WHERE {_IN_GROUPS} AND {_of_customer("m.details->'sender'->>'{}'")}
            )
            ORDER BY message_id FOR UPDATE
        ), item AS (
            DELETE FROM raw_messages AS r USING written
            WHERE r.salon_id = %(salon_id)s AND r.message_id = written.message_id
        ), event AS (
            DELETE FROM message_status_events AS e USING written
            WHERE e.salon_id = %(salon_id)s AND e.whatsapp_id = written.whatsapp_id
        ), amendment AS (
            DELETE FROM message_amendments AS a USING written
            WHERE a.salon_id = %(salon_id)s AND a.target_whatsapp_id = written.whatsapp_id
            RETURNING a.whatsapp_id
        ), hashed AS ({hash_ids("(SELECT whatsapp_id FROM written UNION ALL TABLE amendment) AS known")})
        UPDATE messages SET content = '', phone_number = NULL, whatsapp_id = NULL, media_id = NULL,
            reply_to_whatsapp_id = NULL, error_title = NULL, details = NULL
        FROM written WHERE messages.salon_id = %(salon_id)s AND messages.message_id = written.message_id"""
    return (await conn.execute(query.encode(), _params(customer))).rowcount


async def remember_for_archives(conn: AsyncConnection[Any], customer: Erased) -> None:
    """Note whom to remove from the files of `parlor archive`, if there are any.

    After `erase_messages`, which has locked the table messages: a month leaves it before that, and has a row in
    message_archives then, or after this transaction, without the customer. Source: index erasure_salts_pkey.
    """
    query = f"""
        INSERT INTO message_erasures (salon_id, conversation_ids, names)
        SELECT s.salon_id, %(conversation_ids)s::uuid[], ARRAY(
            SELECT {HASH.format("name")} FROM unnest(%(names)s::text[]) AS name
        )
        FROM erasure_salts AS s WHERE s.salon_id = %(salon_id)s AND EXISTS (SELECT FROM message_archives)"""
    names = [*customer.written_numbers, *customer.user_ids]
    await conn.execute(query.encode(), {**customer._asdict(), "names": names})


async def erase_amendments(conn: AsyncConnection[Any], customer: Erased) -> list[str]:
    """Delete the reactions, edits and revokes of the customer that are left; return the whatsapp_ids of their messages.

    Those are messages in groups, and messages that have not come yet: these are the customer's if they are edited.
    Source: index message_amendments_pkey, whatsapp_id. Reads all of the salon.
    """
    query = f"""
        WITH gone AS (
            DELETE FROM message_amendments AS a WHERE a.salon_id = %(salon_id)s AND {_of_customer("a.{}")}
            RETURNING a.whatsapp_id, a.target_whatsapp_id, a.kind
        ), target AS (
            SELECT DISTINCT target_whatsapp_id, kind, EXISTS (
                SELECT FROM messages AS m
                WHERE m.salon_id = %(salon_id)s AND m.whatsapp_id = target_whatsapp_id
            ) AS is_recorded FROM gone
        ), known AS (
            SELECT whatsapp_id FROM gone
            UNION ALL SELECT target_whatsapp_id FROM target
            WHERE NOT is_recorded AND (kind <> 'REACTION' OR target_whatsapp_id ~ %(in_whatsapp_ids)s)
        ), hashed AS ({hash_ids("known")})
        SELECT DISTINCT target_whatsapp_id FROM target WHERE is_recorded"""
    return [target for (target,) in await (await conn.execute(query.encode(), _params(customer))).fetchall()]


async def erase_from_groups(conn: AsyncConnection[Any], customer: Erased) -> None:
    """Remove what the messages of others in groups say of the customer: their raw items, and which message they quote.

    Source: indexes idx_messages_conversation_created, raw_messages_pkey. Reads all messages of the salon's groups.
    """
    query = f"""
        WITH quoting AS (
            SELECT m.message_id FROM messages AS m
            WHERE {_IN_GROUPS} AND m.reply_to_whatsapp_id IS NOT NULL
                AND {is_erased("m.salon_id", "m.reply_to_whatsapp_id")}
        ), item AS (
            DELETE FROM raw_messages AS r USING messages AS m
            WHERE {_IN_GROUPS} AND r.salon_id = m.salon_id AND r.message_id = m.message_id
                AND {_NAMES_CUSTOMER.format("r.item::text")}
        )
        UPDATE messages SET reply_to_whatsapp_id = NULL FROM quoting
        WHERE messages.salon_id = %(salon_id)s AND messages.message_id = quoting.message_id"""
    await conn.execute(query.encode(), _params(customer))


async def erase_ai_messages(conn: AsyncConnection[Any], customer: Erased) -> int:
    """Remove the texts of the AI messages of the customer's conversations; return their number.

    Those are also the groups in which the customer wrote: what an AI message repeats of it is not known. This must run
    before `erase_messages`.
    Source: indexes idx_ai_messages_conversation_created, idx_messages_conversation_created.
    """
    query = f"""
        UPDATE ai_messages SET content = '' WHERE salon_id = %(salon_id)s AND conversation_id = ANY (
            %(conversation_ids)s::uuid[] || ARRAY(
                SELECT m.conversation_id FROM messages AS m
                WHERE {_IN_GROUPS} AND {_of_customer("m.details->'sender'->>'{}'")}
            )
        )"""
    return (await conn.execute(query.encode(), _params(customer))).rowcount


async def erase_webhook_failures(conn: AsyncConnection[Any], customer: Erased) -> None:
    """Delete stored webhook items that the customer sent, or that name the customer; repeats of them are not stored.

    Source: index webhook_failures_pkey. Reads all failures of the salon.
    """
    query = f"""
        WITH gone AS (
            DELETE FROM webhook_failures AS f
            WHERE f.salon_id = %(salon_id)s AND ({_of_customer("f.{}")} OR {_NAMES_CUSTOMER.format("f.item")})
            RETURNING encode(f.digest, 'hex') AS digest, f.item
        ), known AS (
            SELECT digest AS whatsapp_id FROM gone
            UNION ALL SELECT found[1] FROM gone, regexp_matches(item, {WAMIDS}, 'g') AS found
            WHERE found[1] ~ %(in_whatsapp_ids)s
        ), hashed AS ({hash_ids("known")})
        SELECT FROM gone"""
    await conn.execute(query.encode(), _params(customer))


async def erase_early_statuses(conn: AsyncConnection[Any], customer: Erased) -> None:
    """Delete status events of the customer's messages whose message never came.

    Source: index message_status_events_pkey. Reads all ids of the salon.
    """
    query = f"""
        WITH gone AS (
            DELETE FROM message_status_events
            WHERE salon_id = %(salon_id)s AND whatsapp_id ~ %(in_whatsapp_ids)s
            RETURNING whatsapp_id
        ), hashed AS ({hash_ids("gone")})
        SELECT FROM gone"""
    await conn.execute(query.encode(), _params(customer))


async def erase_replies(conn: AsyncConnection[Any], customer: Erased) -> None:
    """Empty the replies kept for a request_id that name the customer, their conversations or one of their messages.

    A name must be an entire field of the reply, not a part of another name or text. A reply to a status that came
    before its message has only the whatsapp_id, which `erase_messages` removes: this must run first.
    Source: indexes messaging_requests_pkey, idx_messages_conversation_created.
    """
    query = """
        UPDATE messaging_requests AS r SET reply = ''
        WHERE salon_id = %(salon_id)s AND (
            EXISTS (SELECT FROM unnest(%(names)s::bytea[]) AS name WHERE position(name IN reply) > 0)
            OR encode(reply, 'escape') ~ %(in_whatsapp_ids)s
            OR substring(reply FOR length(%(status)s::bytea)) = %(status)s::bytea AND EXISTS (
                SELECT FROM messages AS m
                WHERE m.salon_id = r.salon_id AND m.conversation_id = ANY(%(conversation_ids)s::uuid[])
                    AND position(convert_to(m.whatsapp_id, 'UTF8') IN r.reply) > 0
            )
        )"""
    names = (*customer.written_numbers, *customer.user_ids, *customer.conversation_ids)
    params = {
        **customer._asdict(),
        "names": [_field(name) for name in names],
        "in_whatsapp_ids": customer.in_whatsapp_ids,
        "status": Message(salon_id=customer.salon_id).SerializeToString() + WHATSAPP_ID_TAG,
    }
    await conn.execute(query, params)


def _field(name: str) -> bytes:
    """Return a text as a field of a reply, without the field's tag: its length and the text."""
    return Message(whatsapp_id=name).SerializeToString().removeprefix(WHATSAPP_ID_TAG)


def _given(named: Named) -> dict[str, Any]:
    """Return the names of a customer, None for those that are not given, and the number in each spelling."""
    phone_numbers = spellings(named.phone_number) if named.phone_number else []
    return {"salon_id": named.salon_id, "user_id": named.user_id or None, "phone_numbers": phone_numbers}
