"""Records how the send of a message ended, which was recorded before it was sent."""

from typing import Any

import grpc
from google.rpc.error_details_pb2 import ResourceInfo

from libs.server import RpcError, Write, errors
from parlor.messaging.v1 import messaging_pb2 as pb
from services.cache_tags import CacheTags
from services.messaging.amendment_queries import fold_amendments
from services.messaging.customer_writes import CustomerWrites
from services.messaging.erased_ids import customer_erased, keep_hash
from services.messaging.message_queries import message_by_whatsapp_id, refuse_archived
from services.messaging.message_write_queries import message_lock
from services.messaging.send_queries import message_by_id, set_failed, set_sent


class Sends:
    """Records that messages were sent, or could not be."""

    def __init__(self, write: CustomerWrites, tags: CacheTags) -> None:
        """Prepare."""
        self._write = write
        self._tags = tags

    async def sent(self, request: pb.RecordMessageSentRequest) -> Any:
        """Give a message its whatsapp_id. Raises: as RecordMessageSent."""
        locks = [message_lock(request.salon_id, request.whatsapp_id)]
        refusal = None
        async with self._write(request, request.salon_id, locks=locks, first=[set_sent(request)]) as write:
            if any(message.is_amended for message in write.first[0]):
                write.first = await write.conn.run(fold_amendments(request.salon_id, [request.whatsapp_id]))
            if not self._reply(write, request):
                found = await _outbound(write, request)
                if not found.whatsapp_id:
                    other = await message_by_whatsapp_id(write.conn, request.salon_id, request.whatsapp_id)
                    if other:
                        raise _whatsapp_id_taken(request, other)
                    await refuse_archived(write.conn, request.salon_id, request.whatsapp_id)
                    # WhatsApp's statuses of it are to come.
                    await keep_hash(write.conn, request.salon_id, request.whatsapp_id)
                    refusal = customer_erased(_name(request))
                elif found.whatsapp_id != request.whatsapp_id:
                    raise _already_sent(request, "it has another whatsapp_id")
                else:
                    write.reply = found
        if refusal is not None:
            raise refusal
        return write.reply

    async def failed(self, request: pb.RecordMessageFailedRequest) -> Any:
        """Make a message FAILED. Raises: as RecordMessageFailed."""
        async with self._write(request, request.salon_id, first=[set_failed(request)]) as write:
            if not self._reply(write, request):
                found = write.reply = await _outbound(write, request)
                if found.whatsapp_id:
                    raise _already_sent(request, "WhatsApp reports its failure as a status")
                if found.status != pb.MESSAGE_STATUS_FAILED:
                    raise customer_erased(_name(request))
        return write.reply

    def _reply(self, write: Write, request: Any) -> bool:
        """Take the message that the first statement changed as the reply; return whether there is one."""
        [changed] = write.first
        for message in changed:
            write.invalidate(*self._tags.of_conversations(request.salon_id, message.conversation))
            write.reply = message.encoded()
        return bool(changed)


async def _outbound(write: Write, request: Any) -> pb.Message:
    """Return the message of a request, which was not changed. Raises: MESSAGE_NOT_FOUND; NOT_OUTBOUND."""
    message = await message_by_id(write.conn, request.salon_id, request.message_id)
    if message is None:
        raise errors.not_found("message", _name(request))
    if message.direction != pb.MESSAGE_DIRECTION_OUTBOUND:
        raise errors.failed_precondition("NOT_OUTBOUND", f"message/{_name(request)}", "the message was received")
    return message


def _already_sent(request: Any, why: str) -> RpcError:
    return errors.failed_precondition("ALREADY_SENT", f"message/{_name(request)}", f"the message was sent: {why}")


def _whatsapp_id_taken(request: Any, other: pb.Message) -> RpcError:
    return RpcError(
        grpc.StatusCode.ALREADY_EXISTS,
        "WHATSAPP_ID_TAKEN",
        f"whatsapp_id belongs to another message of the salon: {other.message_id}",
        ResourceInfo(resource_type="parlor/message", resource_name=f"{request.salon_id}/{other.message_id}"),
        metadata={"message_id": other.message_id},
    )


def _name(request: Any) -> str:
    return f"{request.salon_id}/{request.message_id}"
