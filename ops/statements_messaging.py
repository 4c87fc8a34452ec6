"""The statements of the messaging service's RPCs whose plans are watched; see ops/statements.py."""

from ops.statements import Statement

MESSAGING = (
    Statement(
        "SearchMessages by words",
        ("idx_messages_salon_search",),
        """
        SELECT message_id, ts_rank(search, query) AS relevance
        FROM message_query('de', 'Strähnen') AS query, messages
        WHERE salon_id = 'salon-123' AND search @@ query
        ORDER BY relevance DESC, created_at DESC, message_id DESC
        LIMIT 51
        """,
    ),
    Statement(
        "SearchMessages, the language of the words",
        ("idx_messages_salon_created",),
        """
        SELECT language FROM messages WHERE salon_id = 'salon-123' ORDER BY created_at DESC LIMIT 1
        """,
    ),
    Statement(
        "SearchMessages by similar words",
        ("idx_messages_salon_words",),
        """
        SELECT search FROM messages WHERE salon_id = 'salon-123' AND 'strahnn' <% strip(search)::text LIMIT 2000
        """,
    ),
    Statement(
        "EraseCustomer, the conversations",
        ("salon_id_phone_number", "idx_conversations_salon_user"),
        """
        SELECT conversation_id, phone_number, user_id
        FROM conversations
        WHERE salon_id = 'salon-123' AND (
          phone_number = '+4915128747135' OR user_id = 'DE.1234567890' OR user_id = (
            SELECT user_id FROM conversations WHERE salon_id = 'salon-123' AND phone_number = '+4915128747135'
          )
        )
        ORDER BY phone_number, user_id, conversation_id
        FOR UPDATE
        """,
    ),
    Statement(
        "EraseCustomer, the messages",
        ("idx_messages_conversation_created",),
        """
        SELECT message_id, whatsapp_id
        FROM messages
        WHERE salon_id = 'salon-123' AND conversation_id = ANY('{c7eee201-3045-432c-ab0e-5732b7bf0c16}'::uuid[])
        """,
    ),
    Statement(
        "EraseCustomer, the AI messages",
        ("idx_ai_messages_conversation_created",),
        """
        SELECT ai_message_id
        FROM ai_messages
        WHERE salon_id = 'salon-123' AND conversation_id = ANY('{c7eee201-3045-432c-ab0e-5732b7bf0c16}'::uuid[])
        """,
    ),
    Statement(
        "GetMessage by whatsapp_id",
        ("whatsapp_id",),
        """
        SELECT message_id, conversation_id, phone_number, direction, type, content, status, created_at
        FROM messages
        WHERE salon_id = 'salon-123' AND whatsapp_id = 'wamid.6E5300B73740AE1736CD457F'
        """,
    ),
    Statement(
        "RecordMessage, IngestWebhook: the conversation of a user_id",
        ("idx_conversations_salon_user",),
        """
        SELECT phone_number FROM conversations
        WHERE salon_id = 'salon-123' AND user_id = 'US.13491208655302741918' AND phone_number IS NOT NULL
        ORDER BY last_message_at DESC, conversation_id LIMIT 1
        """,
    ),
)
