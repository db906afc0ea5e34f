"""Doors into `shm.channel`, and a channel in ordinary memory with both of its private sides."""

import numpy as np

from shm import channel as ch
from shm.jit import entry
from shm.layout import offset
from shm.records import CHANNEL, CQE, SLOTS_PER_OPERATION_MAX, WQE
from shm.view import address_of

OPCODE = 7
EVENT = 9


@entry("boolean(intp, int64)")
def prepare(host, slots):
    return ch.prepare(host, slots)


@entry("void(intp, int64, int64, int64)")
def fill_and_submit(host, user_data, flags, slots):
    ch.fill(host, OPCODE, flags, 1, user_data, 2, 3, 4)
    ch.submit(host, slots)


@entry("intp(intp)")
def next_completion(host):
    return ch.next_completion(host)


@entry("void(intp)")
def consume_completion(host):
    ch.consume_completion(host)


@entry("int64(intp)")
def event_room(engine):
    return ch.event_room(engine)


@entry("int64(intp, intp)")
def take(engine, out):
    return ch.take(engine, out)


@entry("void(intp, int64, int64, int64, int64)")
def complete(engine, user_data, ticket, status, flags):
    ch.complete(engine, OPCODE, flags, 1, user_data, ticket, status, 5, 6, 7, 8)


@entry("void(intp)")
def complete_silently(engine):
    ch.complete_silently(engine)


@entry("boolean(intp, int64)")
def notify(engine, user_data):
    return ch.notify(engine, EVENT, 1, user_data, 0, 0)


class PlainChannel:
    """A channel in ordinary memory; the host's posts carry numbers in `user_data`."""

    def __init__(self, work=8, event=8, ledger=False):
        self.memory = np.zeros(ch.channel_size(work, event), np.uint8)
        self.shared = self.memory[: CHANNEL.itemsize].view(CHANNEL)
        slots = self.memory[CHANNEL.itemsize :]
        self.work_slots = slots[: work * WQE.itemsize].view(WQE)
        self.event_slots = slots[work * WQE.itemsize :].view(CQE)
        self.host_state = np.zeros(1, ch.HOST_CHANNEL)
        self.engine_state = np.zeros(1, ch.ENGINE_CHANNEL)
        self.out = np.zeros(SLOTS_PER_OPERATION_MAX, WQE)
        self.host, self.engine = address_of(self.host_state), address_of(self.engine_state)
        self.at = address_of(self.memory)
        ch.initialise(self.at, work, event)
        ch.bind_host(self.host, self.at, work, event, -1)
        ch.bind_engine(self.engine, self.at, work, event, -1)
        if ledger:
            limit = ch.outstanding_limit(event)
            self.ledger = np.zeros(limit + 1, ch.LEDGER)
            self.free_tickets = np.zeros(limit, np.int32)
            ch.keep_ledger(self.host, address_of(self.ledger), address_of(self.free_tickets))

    def word(self, name):
        """Address of a shared word."""
        return self.at + offset(CHANNEL, name)

    def post(self, number, flags=0, slots=1):
        if not prepare(self.host, slots):
            return False
        fill_and_submit(self.host, number, flags, slots)
        return True

    def take(self):
        """(slots, WQE) of the next operation, or None."""
        slots = take(self.engine, address_of(self.out))
        return None if slots == 0 else (slots, self.out[0].copy())

    def reap(self):
        """The next completion, copied and consumed, or None."""
        address = next_completion(self.host)
        if address == 0:
            return None
        index = (address - address_of(self.event_slots)) // CQE.itemsize
        found = self.event_slots[index].copy()
        consume_completion(self.host)
        return found
