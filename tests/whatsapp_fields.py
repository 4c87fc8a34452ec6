"""The expected results of the bodies of other fields than `messages`, and of those that have no place."""

from typing import Any

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import Fields
from tests.whatsapp_cases import JOERG, PABLO, PABLO_ID, SENT, SHEENA, Case, at, inbound, message

ECHO: Fields = {**SENT, "origin": pb.MESSAGE_ORIGIN_PHONE_APP}
PAST: Fields = {"origin": pb.MESSAGE_ORIGIN_HISTORY}
BY_SALON: Fields = {"direction": pb.MESSAGE_DIRECTION_OUTBOUND, "status": pb.MESSAGE_STATUS_PENDING}

ON_THE_PHONE_APP = {
    "message_echo": inbound("TEXT", "From the app", **ECHO),
    "echo_edited": Case({"messages": 2}, [message("TEXT", "See you at one", edited_time=at(1749430510), **ECHO)]),
    "echo_revoked": Case({"messages": 2}, [message("IMAGE", revoked_time=at(1749430530), **ECHO)]),
    "echo_to_user_id": inbound("TEXT", "Obrigado!", phone_number="", **ECHO),
    "history": Case(
        {"messages": 4},
        [
            message("TEXT", "Are you open on Monday?", **PAST),
            message("TEXT", "From nine", **{**SENT, **PAST, "status": pb.MESSAGE_STATUS_READ}),
            message("TEXT", "Shall I book you in?", **{**SENT, **PAST, "status": pb.MESSAGE_STATUS_DELIVERED}),
            message("TEXT", "Danke!", phone_number=JOERG, **PAST),
        ],
    ),
    # The media of the first come with the second.
    "history_placeholder": Case({"unknown": 1}),
    "history_media": inbound("IMAGE", "Like this", media_id="", **PAST),
    "history_to_user_id": inbound(
        "TEXT", "Hei Mika", phone_number="", **{**SENT, **PAST, "status": pb.MESSAGE_STATUS_FAILED}
    ),
}


def call(count: int, state: Any, seconds: int = 0, **fields: Any) -> Case:
    """Return the case of a call with so many events."""
    return Case({"messages": count}, [message("CALL", call={"status": state, "duration_seconds": seconds}, **fields)])


CALLS = {
    "calls": call(1, pb.CALL_STATUS_STARTED),
    "call_completed": call(2, pb.CALL_STATUS_COMPLETED, 60),
    "call_missed": call(2, pb.CALL_STATUS_MISSED),
    "call_terminate_first": call(2, pb.CALL_STATUS_COMPLETED, 20),
    "call_by_salon": call(2, pb.CALL_STATUS_COMPLETED, 40, **BY_SALON),
    "call_status_rejected": call(2, pb.CALL_STATUS_MISSED, **BY_SALON),
    "call_status_accepted": call(1, pb.CALL_STATUS_STARTED, **BY_SALON),
}


def reaction(emoji: str, second: int, phone_number: str) -> Fields:
    """Return a reaction in a group."""
    return {
        "emoji": emoji,
        "direction": pb.MESSAGE_DIRECTION_INBOUND,
        "create_time": at(second),
        "phone_number": phone_number,
    }


# The field or the kind that their failure names.
UNPLACED = {
    "account_alerts": "account_alerts",
    "account_restricted": "account_update",
    "account_review_update": "account_review_update",
    "account_settings_update": "account_settings_update",
    "account_update": "account_update",
    "automatic_events": "automatic_events",
    "business_capability_update": "business_capability_update",
    "business_status_update": "business_status_update",
    "errors_of_the_account": "errors",
    "flows": "flows",
    "group_lifecycle": "group_lifecycle_update",
    "group_participants": "group_participants_update",
    "group_settings": "group_settings_update",
    "group_status": "group_status_update",
    "history_declined": "errors",
    "message_template_components_update": "message_template_components_update",
    "message_template_quality_update": "message_template_quality_update",
    "partner_solutions": "partner_solutions",
    "payment_configuration_update": "payment_configuration_update",
    "phone_number_name_update": "phone_number_name_update",
    "phone_number_quality_update": "phone_number_quality_update",
    "security": "security",
    "template_category_update": "template_category_update",
    "template_rejected": "message_template_status_update",
    "template_status": "message_template_status_update",
    "tracking_events": "tracking_events",
}

OTHER_FIELDS = {
    **ON_THE_PHONE_APP,
    **CALLS,
    **dict.fromkeys(UNPLACED, Case({"unknown": 1})),
    **dict.fromkeys(("user_preferences", "user_preferences_resume", "smb_app_state_sync"), Case({"customers": 1})),
    "user_id_change": inbound(
        "SYSTEM",
        "User Pablo Morales changed from US.11111111111111111111 to US.13491208655302741918",
        phone_number=PABLO,
        system={"kind": "user_changed_user_id", "user_id": PABLO_ID, "previous_user_id": "US.11111111111111111111"},
    ),
    "group_reactions": Case(
        {"messages": 3},
        [
            message(
                "TEXT",
                "Who is first?",
                phone_number="",
                sender={"phone_number": JOERG, "name": "Jörg Weiß 💈"},
                reactions=[reaction("✋", 1749430610, SHEENA), reaction("😅", 1749430620, JOERG)],
            )
        ],
    ),
}
