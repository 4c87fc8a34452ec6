"""Who the customers of a salon are: the RPCs on customers."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from libs.cache import Cache, Reply, digest
from libs.db import Database
from libs.server import errors, moment, page
from parlor.messaging.v1 import messaging_pb2 as pb
from services.cache_tags import CacheTags, conversation_tag
from services.messaging import customer_queries
from services.messaging.customer_queries import CustomerFact, CustomerNames
from services.messaging.customer_writes import CustomerWrites
from services.messaging.identity_queries import has_customer
from services.messaging.salons import Salons
from services.phones import e164, is_national, number_prefix, whatsapp_number


class Customers:
    """Reads customers, and records what they choose."""

    def __init__(
        self, cache: Cache, database: Database, write: CustomerWrites, tags: CacheTags, salons: Salons
    ) -> None:
        """Prepare."""
        self._cache = cache
        self._database = database
        self._write = write
        self._tags = tags
        self._salons = salons

    async def get(self, request: pb.GetCustomerRequest) -> Reply:
        """Return a customer by an ID or a number, also by an earlier one. Raises: as GetCustomer."""
        named = await self._customer_names(request)
        tag = conversation_tag(self._tags.conversations(request.salon_id), named.customer_id, named.phone_number)
        reply = await self._cache.get_batched(
            tag.key("customer", digest(named)),
            named,
            customer_queries.get_customers,
            batch=CustomerNames.names,
            repeatable=not is_national(request.phone_number),
        )
        if reply.body is None:
            raise errors.not_found("customer", str(named))
        return reply

    async def list(self, request: pb.ListCustomersRequest) -> Reply:
        """List a salon's customers. Raises: as ListCustomers."""
        number = await number_prefix(request.query, partial(self._salons.region_code, request.salon_id))
        filters = customer_queries.customer_filters(request, number)
        list_page = page(request.page_size, request.page_token, "ListCustomers", *filters)
        return await self._cache.get_batched(
            self._tags.conversations(request.salon_id).key("customers", digest(list_page)),
            (filters, list_page),
            customer_queries.list_customers,
            batch=customer_queries.statement_key,
            rows=list_page.rows,
            repeatable=not is_national(request.query),
        )

    async def record_opt_out(self, request: pb.RecordOptOutRequest) -> pb.Customer:
        """Record that a customer opted out of marketing messages, or in again. Raises: as RecordOptOut."""
        salon_id = request.salon_id
        named = await self._customer_names(request)
        at = moment(request, "event_time") or datetime.now(UTC)
        fact = CustomerFact(
            named.phone_number or None, named.user_id or None, at, None, not request.opted_in, request.reason
        )
        if not named.customer_id and salon_id not in self._salons.known:
            async with self._database.connection() as conn:
                is_known = await has_customer(conn, salon_id, fact.phone_number, fact.user_id)
            if not is_known:
                await self._salons.get(salon_id)
        async with self._write.alone(request, salon_id) as write:
            customer = await customer_queries.read_customer(write.conn, named)
            if customer is None and not named.customer_id and fact.claim:
                await self._write.settle(write, salon_id, [fact.claim])
                customer = await customer_queries.read_customer(write.conn, named)
            if customer is None:
                raise errors.not_found("customer", str(named))
            of_customer = fact._replace(customer_id=customer.customer_id)
            [changed] = await write.conn.run(customer_queries.write_facts(salon_id, [of_customer]))
            write.invalidate(*self._tags.of_facts(salon_id, changed))
            reply = write.reply = await customer_queries.read_customer(write.conn, named) or customer
        return reply

    async def phone_number(self, request: Any) -> str:
        """Return a request's phone_number as E.164, "" if it has none. Raises: INVALID_FIELD, BOOKING_UNAVAILABLE."""
        if not request.phone_number:
            return ""
        region_code = partial(self._salons.region_code, request.salon_id)
        return whatsapp_number(await e164("phone_number", request.phone_number, region_code))

    async def _customer_names(self, request: Any) -> CustomerNames:
        """Return the names of a request's customer."""
        phone_number = await self.phone_number(request)
        return CustomerNames(request.salon_id, request.customer_id.lower(), phone_number, request.user_id)
