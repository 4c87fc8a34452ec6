"""The feed of message changes. A row names no customer, so EraseCustomer leaves it as it is.

Triggers of the tables messages and conversations write the changes (migration 0019), for every statement that changes
a row.
"""

from libs.db import Database
from libs.server import ChangeFeed, ChangeTable
from parlor.messaging.v1.messaging_pb2 import MessageChange

CHANGE = (
    "salon_id, 'MESSAGE_CHANGE_TYPE_' || type AS type, conversation_id::text, message_id::text,"
    " created_at AS create_time"
)


def message_changes(database: Database) -> ChangeFeed:
    """Return the feed of the table message_changes.

    Source: indexes message_changes_pkey, idx_message_changes_salon, idx_message_changes_created.
    """
    return ChangeFeed(database, ChangeTable("message_changes", MessageChange, CHANGE))
