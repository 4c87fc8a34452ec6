"""The reads that are checked: of each kind a request, and what its reply shows of which facts."""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.stats.v1 import stats_pb2
from tools.coherence import ledger as facts
from tools.coherence.client import DAY, day, phone, phone_number_id, salon_id
from tools.coherence.ledger import CUSTOMERS, PERIODS, Ledger

BATCH = 100
LONGEST_PAGE = 200
LAST_DAY = 3000  # when every period ends


class Read(NamedTuple):
    """A request, the facts that it asks for, and what a reply shows of each."""

    request: Any
    facts: Sequence[int]
    shown: Callable[[Any], Sequence[int]]

    @property
    def rpc(self) -> str:
        """The RPC's name."""
        return type(self.request).__name__.removesuffix("Request")


class Reads:
    """Makes reads of a salon, more often of its first customers and bookings than of its last."""

    def __init__(self, ledger: Ledger, chosen: random.Random, began: int) -> None:
        """Take the ledger, for the codes, and when the run began, in s since 1970."""
        self.ledger = ledger
        self.random = chosen
        self.made = {"start_time": Timestamp(seconds=began - DAY), "end_time": Timestamp(seconds=began + 10 * DAY)}

    def salon(self, salon: int) -> Read:
        """Look a salon up by its id."""
        request = booking_pb2.GetSalonRequest(salon_id=salon_id(salon))
        return Read(request, [facts.name(salon)], lambda reply: [int(reply.name)])

    def salon_by_phone_number_id(self, salon: int) -> Read:
        """Look a salon up by its phone_number_id."""
        request = booking_pb2.GetSalonByPhoneNumberIdRequest(phone_number_id=phone_number_id(salon))
        return Read(request, [facts.name(salon)], lambda reply: [int(reply.name)])

    def booking(self, salon: int) -> Read:
        """Look a booking up."""
        fact = self._one(salon)
        request = booking_pb2.GetBookingByCodeRequest(salon_id=salon_id(salon), booking_code=self.ledger.code(fact))
        return Read(request, [fact], lambda reply: [reply.revision])

    def batch(self, salon: int) -> Read:
        """Look up to 100 bookings up."""
        asked = self.ledger.coded(facts.bookings(salon, *range(CUSTOMERS)))[:BATCH]
        codes = [self.ledger.code(fact) for fact in asked]
        request = booking_pb2.BatchGetBookingsRequest(salon_id=salon_id(salon), booking_codes=codes)
        return Read(request, asked, lambda reply: [booking.revision for booking in reply.bookings])

    def bookings(self, salon: int) -> Read:
        """List the bookings of a customer: all that are known must be there."""
        customer = self._low(CUSTOMERS)
        request = booking_pb2.ListBookingsRequest(
            salon_id=salon_id(salon), customer_phone=phone(customer), page_size=LONGEST_PAGE
        )
        asked = self.ledger.coded(facts.bookings(salon, customer))
        codes = [self.ledger.code(fact) for fact in asked]

        def shown(reply: Any) -> list[int]:
            revisions = {booking.booking_code: booking.revision for booking in reply.bookings}
            return [revisions.get(code, 0) for code in codes]

        return Read(request, asked, shown)

    def events(self, salon: int) -> Read:
        """List what happened to a booking: an event a revision, as many as a page has."""
        fact = self._one(salon)
        request = booking_pb2.ListBookingEventsRequest(
            salon_id=salon_id(salon), booking_code=self.ledger.code(fact), page_size=LONGEST_PAGE
        )

        def shown(reply: Any) -> list[int]:
            return [self.ledger.known(fact) if reply.next_page_token else len(reply.booking_events)]

        return Read(request, [fact], shown)

    def salon_stats(self, salon: int) -> Read:
        """Count the bookings that were rescheduled at least so many times."""
        period = self._low(PERIODS)
        request = stats_pb2.GetSalonStatsRequest(
            salon_id=salon_id(salon), start_time=day(period), end_time=day(LAST_DAY)
        )
        return Read(request, [facts.moved(salon, period)], lambda reply: [reply.bookings])

    def booking_stats(self, salon: int) -> Read:
        """Count the bookings by status."""
        request = stats_pb2.ListBookingStatsRequest(
            salon_id=salon_id(salon), bucket=stats_pb2.TIME_BUCKET_MONTH, **self.made
        )

        def shown(reply: Any) -> list[int]:
            return [sum(bucket.confirmed + 2 * bucket.completed for bucket in reply.booking_stats)]

        return Read(request, [facts.progress(salon)], shown)

    def conversation(self, salon: int) -> Read:
        """Look a conversation up with its newest message."""
        customer = self._low(CUSTOMERS)
        request = messaging_pb2.GetConversationRequest(
            salon_id=salon_id(salon), phone_number=phone(customer), message_limit=1
        )
        return Read(request, [facts.messages(salon, customer)], _newest)

    def messages(self, salon: int) -> Read:
        """List the newest message of a customer."""
        customer = self._low(CUSTOMERS)
        request = messaging_pb2.ListMessagesRequest(salon_id=salon_id(salon), phone_number=phone(customer), page_size=1)
        return Read(request, [facts.messages(salon, customer)], _newest)

    def _low(self, end: int) -> int:
        return int(end * self.random.random() ** 2)

    def _one(self, salon: int) -> int:
        """Return a booking that has a code."""
        coded = self.ledger.coded(facts.bookings(salon, self._low(CUSTOMERS)))
        return coded[int(len(coded) * self.random.random() ** 6)]


def _newest(reply: Any) -> list[int]:
    return [int(message.content) for message in reply.messages] or [0]
