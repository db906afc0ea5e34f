"""The control plane's end of channel 0: orders to the engine, and its answers.

One order at a time, from one thread. With a daemon the engine runs in another thread and the port
sleeps for the answer; inline it runs the cycle itself until the answer is there.
"""

import errno
import os
from time import monotonic_ns
from typing import Any, Final

import numpy as np

from ppe.cycle.cycle import run
from ppe.cycle.records import CONTROL_CHANNEL, CONTROL_CLIENT
from ppe.cycle.stages.control import PRIVILEGED, attach
from ppe.cycle.tables import EngineTables
from shm.channel import (
    ENGINE_CHANNEL,
    H_CONSUMER,
    H_RINGER,
    H_WAITER,
    HOST_CHANNEL,
    bind_engine,
    bind_host,
    channel_size,
    consume_completion,
    fill,
    initialise,
    next_completion,
    prepare,
    submit,
)
from shm.doorbell import ring_if_needed
from shm.jit import entry
from shm.memory import copy_bytes
from shm.operations import (
    CONTROL_ADD_REGION,
    CONTROL_ADOPT,
    CONTROL_ATTACH,
    CONTROL_DETACH,
    CONTROL_ENABLE_MOVER,
    CONTROL_FAULT,
    CONTROL_MAKE_POOL,
    CONTROL_MAKE_TABLE,
    CONTROL_RDMA,
    CONTROL_REMOVE_REGION,
    CONTROL_TAKE_OUT,
    CONTROL_VERBS,
)
from shm.records import CQE, NEVER, SLOT_SIZE, WQE, wqe_at
from shm.view import address_of
from shm.wait import arm_eventfd, wait_n

CAPACITY: Final = 64
ANSWER_SECONDS: Final = 10


class EngineSilent(RuntimeError):
    """The engine did not answer an order of its control plane in time."""


@entry("int64(intp, intp)")
def _attach_first(engine: int, wqe: int) -> int:
    return attach(engine, wqe)


@entry("boolean(intp, intp)")
def _post(host: int, wqe: int) -> bool:
    if not prepare(host, 1):
        return False
    order = wqe_at(wqe)[0]
    slot = fill(
        host,
        order["opcode"],
        order["flags"],
        order["endpoint"],
        order["user_data"],
        order["region"],
        order["offset"],
        order["length"],
    )
    posted = wqe_at(slot)[0]
    posted["arg0"] = order["arg0"]
    posted["arg1"] = order["arg1"]
    posted["arg2"] = order["arg2"]
    submit(host, 1)
    ring_if_needed(host + H_RINGER)
    return True


@entry("boolean(intp, intp)")
def _take(host: int, out: int) -> bool:
    completion = next_completion(host)
    if completion == 0:
        return False
    copy_bytes(out, completion, SLOT_SIZE)
    consume_completion(host)
    return True


@entry("int64(intp, int64)")
def _wait(host: int, deadline_ns: int) -> int:
    return wait_n(host + H_CONSUMER, host + H_WAITER, 1, NEVER, deadline_ns, NEVER)


@entry("boolean(intp)")
def _arm(host: int) -> bool:
    return arm_eventfd(host + H_CONSUMER, host + H_WAITER, 1)


class ControlPort:
    """Orders to one engine. `start` is called once by the thread that will run the cycle."""

    def __init__(self, tables: EngineTables, inline: bool) -> None:
        self.tables, self.inline = tables, inline
        self.faults: list[int] = []  # clients whose memory went away
        self._shared = np.zeros(channel_size(CAPACITY, CAPACITY) // 8 + 16, np.int64)
        self._host = np.zeros(1, HOST_CHANNEL)
        self._rings = np.zeros(1, ENGINE_CHANNEL)
        self._order, self._answer = np.zeros(1, WQE), np.zeros(1, CQE)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # rings when `arm`ed
        shared = -(-address_of(self._shared) // 128) * 128
        initialise(shared, CAPACITY, CAPACITY)
        bind_host(address_of(self._host), shared, CAPACITY, CAPACITY, self._bell)
        bind_engine(address_of(self._rings), shared, CAPACITY, CAPACITY, self.alarm)

    def start(self) -> None:
        """Make this port the engine's channel 0."""
        wqe = self._fill(
            CONTROL_ATTACH,
            endpoint=CONTROL_CHANNEL,
            flags=PRIVILEGED,
            arg0=address_of(self._rings),
            arg1=self._bell,
            arg2=CONTROL_CLIENT,
            length=os.getpid(),
        )
        outcome = _attach_first(self.tables.address, wqe)
        if outcome < 0:
            raise OSError(-outcome, "the engine's control channel could not be made")

    def _fill(self, opcode: int, **fields: int) -> int:
        self._order[:] = 0
        order = self._order[0]
        order["opcode"], order["slots"] = opcode, 1
        for name, value in fields.items():
            order[name] = value
        return address_of(self._order)

    def _run_once(self, deadline_ns: int) -> None:
        host = address_of(self._host)
        if self.inline:
            run(self.tables.address, host + H_CONSUMER, 1, deadline_ns)
        else:
            _wait(host, deadline_ns)

    def _call(self, opcode: int, **fields: int) -> int:
        """Give one order and return the engine's answer word. Raises OSError for a refusal."""
        host = address_of(self._host)
        if not _post(host, self._fill(opcode, **fields)):
            raise EngineSilent("the engine's control ring is full")
        deadline_ns = monotonic_ns() + ANSWER_SECONDS * 1_000_000_000
        while True:
            while _take(host, address_of(self._answer)):
                answer = self._answer[0]
                if answer["opcode"] == CONTROL_FAULT:
                    self.faults.append(int(answer["user_data"]))
                elif answer["opcode"] == opcode:
                    status = int(answer["status"])
                    if status < 0:
                        raise OSError(-status, f"the engine refused: {os.strerror(-status)}")
                    return int(answer["arg0"])
            if monotonic_ns() >= deadline_ns:
                raise EngineSilent(f"the engine did not answer within {ANSWER_SECONDS} s")
            self._run_once(deadline_ns)

    def arm(self) -> bool:
        """Have `alarm` become readable with the next fault; False when there is one already."""
        return bool(_arm(address_of(self._host)))

    def poll_faults(self) -> list[int]:
        """Clients whose memory went away since the last call."""
        while _take(address_of(self._host), address_of(self._answer)):
            if self._answer[0]["opcode"] == CONTROL_FAULT:
                self.faults.append(int(self._answer[0]["user_data"]))
        found, self.faults = self.faults, []
        return found

    def attach(
        self,
        index: int,
        rings: np.typing.NDArray[Any],
        bell: int,
        client: int,
        pid: int,
        root: bool,
    ) -> None:
        """Make row `index` a channel of `client` from a prepared ENGINE_CHANNEL."""
        self._call(
            CONTROL_ATTACH,
            endpoint=index,
            flags=PRIVILEGED if root else 0,
            arg0=address_of(rings),
            arg1=bell,
            arg2=client,
            length=pid,
        )

    def detach(self, index: int) -> None:
        """Close everything a channel owns; afterwards the engine does not touch its memory."""
        self._call(CONTROL_DETACH, endpoint=index)

    def add_region(self, client: int, address: int, size: int) -> int:
        """Id of a new region of `client`."""
        return self._call(CONTROL_ADD_REGION, arg0=address, arg1=size, arg2=client)

    def remove_region(self, region_id: int) -> bool:
        """Forget a region. False while an operation still uses it."""
        try:
            self._call(CONTROL_REMOVE_REGION, region=region_id)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
        return True

    def enable_mover(
        self,
        channel: int,
        endpoint: int,
        mover: int,
        home: tuple[int, int, int],
        pool: int = 0,
        table: int = 0,
    ) -> None:
        """Make a connected endpoint a datamover's, by a prepared MOVER at this address.

        `home`: region, offset and length of the host's block of memory; `pool`, `table`: endpoints
        with its buffers and its units, or 0. Raises OSError.
        """
        region, offset, length = home
        self._call(
            CONTROL_ENABLE_MOVER,
            endpoint=endpoint,
            arg0=mover,
            arg1=channel,
            arg2=pool,
            region=region,
            offset=offset,
            length=length,
            user_data=table,
        )

    def take_out(self, channel: int, endpoint: int) -> int:
        """Have the engine let go of a connection on which nothing is outstanding: its descriptor,
        which is the caller's from now on. Raises OSError, and then the connection is as it was.
        """
        return self._call(CONTROL_TAKE_OUT, endpoint=endpoint, arg1=channel)

    def adopt(self, channel: int, descriptor: int) -> int:
        """Id of the new endpoint of a connected socket, which is the engine's from now on. Raises
        OSError, and then it is the caller's still.
        """
        return self._call(CONTROL_ADOPT, arg0=descriptor, arg1=channel)

    def make_pool(self, channel: int) -> int:
        """Id of a new endpoint without a connection, for buffers several datamovers share."""
        self.tables.load_datamover()  # It takes operations of the datamover from here on.
        return self._call(CONTROL_MAKE_POOL, arg0=channel)

    def make_table(self, channel: int, luns: int, count: int) -> int:
        """Id of a new endpoint for the units in the LUN[count] at an address."""
        return self._call(CONTROL_MAKE_TABLE, arg0=channel, arg1=luns, length=count)

    def order_rdma(
        self, which: int, channel: int, *, held: int = 0, domain: int = 0, endpoint: int = 0,
        srq: int = 0,
    ) -> int:  # fmt: skip
        """One of `shm.verbs`' ORDER_*: the id of what was made. Raises OSError."""
        self.tables.load_rdma()
        return self._call(
            CONTROL_RDMA,
            flags=which,
            endpoint=endpoint,
            arg0=held,
            arg1=channel,
            arg2=domain,
            user_data=srq,
        )

    def order_verbs(
        self, which: int, channel: int = CONTROL_CHANNEL, *, arg0: int = 0, domain: int = 0,
        endpoint: int = 0, srq: int = 0,
    ) -> int:  # fmt: skip
        """One of `shm.verbs`' ORDER_*, to the service of verbs devices. Raises OSError."""
        self.tables.load_verbs()
        return self._call(
            CONTROL_VERBS,
            flags=which,
            endpoint=endpoint,
            arg0=arg0,
            arg1=channel,
            arg2=domain,
            user_data=srq,
        )

    def wake(self) -> None:
        """Have a sleeping engine look around, for instance at its stop word."""
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Give the bell and the alarm back; the engine must not run any more."""
        os.close(self._bell)
        os.close(self.alarm)
