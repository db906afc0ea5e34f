"""The pump: moves a sans-IO protocol's bytes over a stream endpoint, in compiled code.

The protocol says where the next bytes belong and what there is to send (`iscsi.wire.port`); the
pump turns that into posted receives and sends and feeds it their completions. It knows no PDU. One
set of functions is made for each role by `make_pump`.

Sends are unsignalled: every completion of the endpoint tells how many bytes its transport has taken
(the cumulative count in `arg0`), which is all the protocol needs to reuse its headers. Only when
half of its transmit queue waits is one send signalled.

How bytes are received is a choice, `mode`:
  STAGED     two receives of whatever comes into staging buffers; parsed and copied from there.
  EXACT      header first, then its data straight to where it belongs.
  COALESCED  for one command at a time: the header and the data expected behind it are posted
             together, so `wait_n(2)` wakes once per command (Foong et al., 2005, section 4.2).
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from host import native
from iscsi.wire.port import port_at
from shm.channel import UNSIGNALLED, UNSOLICITED
from shm.jit import nopython
from shm.layout import Field, record
from shm.operations import CANCELLED, END_OF_STREAM, MORE, RECEIVE_EXACT
from shm.records import cqe_at
from shm.view import opener

STAGED: Final = 0
EXACT: Final = 1
COALESCED: Final = 2
MODE_NAMES: Final = ("staged", "exact", "coalesced")

PUMP: Final = record(
    Field("context", "<i8"),  # the channel's CONTEXT
    Field("endpoint", "<i8"),
    Field("conn", "<i8"),  # the protocol's PORT
    Field("mode", "<i8"),
    Field("staging", "<i8"),  # address of two areas of `staging_size` bytes
    Field("staging_size", "<i8"),
    Field("rx_posted", "<i8"),  # receives outstanding
    Field("rx_next", "<i8"),  # staging area to post next
    Field("rx_address", "<i8"),  # of the exact receive outstanding
    Field("ahead_address", "<i8"),  # of the predicted data's receive
    Field("ahead_length", "<i8"),
    Field("ahead_posted", "<i8"),
    Field("tx_address", "<i8"),  # taken from the protocol, not posted yet
    Field("tx_length", "<i8"),
    Field("tx_base", "<i8"),  # the transport's count when the pump began
    Field("tx_acked", "<i8"),  # bytes since then that the protocol knows are sent
    Field("tx_signalled", "<i8"),  # signalled sends outstanding
    Field("error", "<i8"),  # -errno of the transport or a violation of the protocol; 0: it runs
    Field("busy", "<i8"),  # for the owner: in its list of pumps to look at
    Field("owner", "<i8"),  # for the owner: its number of this connection
    size=192,
)
pump_at = opener(PUMP)
PUMP_SIZE: Final = PUMP.itemsize

# The low bits of a user_data say which of the pump's operations completed; a PUMP record lies on a
# multiple of 64. user_data below PUMP_ADDRESS_MIN is not a pump's.
KIND_MASK: Final = 63
RX_EXACT: Final = 1
RX_AHEAD: Final = 2
RX_STAGED: Final = 4  # and 5, for the second area
TX: Final = 8
CANCEL: Final = 9
PUMP_ADDRESS_MIN: Final = 1 << 20


class PumpFunctions(NamedTuple):
    """What `make_pump` gives, all nopython, all on the address of a PUMP."""

    send: Callable[[int], int]  # post what there is to send; bytes posted
    receive: Callable[[int], int]  # keep receives posted; how many were added
    event: Callable[[int, int], int]  # feed one completion (address of its CQE); the error so far


@nopython
def pump_of(user_data: int) -> int:
    """The pump a completion belongs to, or 0."""
    return user_data & ~KIND_MASK if user_data >= PUMP_ADDRESS_MIN else 0


@nopython
def _post_receive(pump: int, kind: int, address: int, length: int, flags: int) -> int:
    mine = pump_at(pump)[0]
    posted = native.post_recv(
        mine["context"], mine["endpoint"], pump | kind, address, length, flags
    )
    if posted < 0:
        mine["error"] = posted
    elif posted > 0:
        mine["rx_posted"] += 1
    return 1 if posted > 0 else 0


@nopython
def _post_send(pump: int, flags: int) -> bool:
    """Post the span that was taken from the protocol. False: no room, try again later."""
    mine = pump_at(pump)[0]
    port = port_at(mine["conn"])[0]
    signalled = (
        mine["tx_signalled"] == 0
        and 2 * (port["tx_made"] - port["tx_sent"]) >= port["tx_capacity"]
    )
    if not signalled:
        flags |= UNSIGNALLED
    posted = native.post_send(
        mine["context"], mine["endpoint"], pump | TX, mine["tx_address"], mine["tx_length"], flags
    )
    if posted < 0:
        mine["error"] = posted
        return False
    if posted == 0:
        return False
    if signalled:
        mine["tx_signalled"] += 1
    mine["tx_length"] = 0
    return True


def make_pump(
    rx_bytes: Any, tx_next: Any, tx_take: Any, tx_done: Any, predict: Any
) -> PumpFunctions:
    """Make the pump of one role from its protocol's nopython functions.

    `predict(conn)` gives (address, length) of the data expected behind the next header, or length 0.
    """

    @nopython
    def send(pump: int) -> int:
        mine = pump_at(pump)[0]
        conn = mine["conn"]
        done = 0
        while mine["error"] == 0:
            length = tx_next(conn)
            if mine["tx_length"] > 0:
                size = mine["tx_length"]
                if not _post_send(pump, MORE if length > 0 else 0):
                    return done
                done += size
            if length == 0:
                return done
            mine["tx_address"] = port_at(conn)[0]["span_address"]
            mine["tx_length"] = length
            tx_take(conn, length)
        return done

    @nopython
    def receive(pump: int) -> int:
        mine = pump_at(pump)[0]
        if mine["error"] != 0:
            return 0
        if mine["mode"] == STAGED:
            added = 0
            while mine["rx_posted"] < 2:
                area = mine["rx_next"]
                address = mine["staging"] + area * mine["staging_size"]
                if not _post_receive(pump, RX_STAGED | area, address, mine["staging_size"], 0):
                    break
                mine["rx_next"] = 1 - area
                added += 1
            return added
        port = port_at(mine["conn"])[0]
        added = 0
        if mine["rx_posted"] == 0:
            mine["rx_address"] = port["want_address"]
            length = port["want_length"]
            added = _post_receive(pump, RX_EXACT, port["want_address"], length, RECEIVE_EXACT)
        if mine["mode"] == COALESCED and mine["rx_posted"] == 1 and mine["ahead_posted"] == 0:
            address, length = predict(mine["conn"])
            if length > 0 and _post_receive(pump, RX_AHEAD, address, length, RECEIVE_EXACT):
                mine["ahead_address"] = address
                mine["ahead_length"] = length
                mine["ahead_posted"] = 1
                added += 1
        return added

    @nopython
    def feed(pump: int, kind: int, length: int) -> None:
        """Give the protocol `length` bytes that one receive brought."""
        mine = pump_at(pump)[0]
        if kind & ~1 == RX_STAGED:
            address = mine["staging"] + (kind & 1) * mine["staging_size"]
        elif kind == RX_AHEAD:
            mine["ahead_posted"] = 0
            address = mine["ahead_address"]
        else:
            address = mine["rx_address"]
        if length > 0:
            violation = rx_bytes(mine["conn"], address, length)
            if violation != 0 and mine["error"] == 0:
                mine["error"] = violation
        if kind == RX_EXACT and mine["ahead_posted"] != 0:
            port = port_at(mine["conn"])[0]
            as_foreseen = port["want_address"] == mine["ahead_address"]
            if not as_foreseen or port["want_length"] < mine["ahead_length"]:
                # Something else came: take back what was posted for data that does not.
                native.post_cancel(mine["context"], mine["endpoint"], pump | CANCEL, pump | RX_AHEAD)

    @nopython
    def event(pump: int, completion: int) -> int:
        mine, cqe = pump_at(pump)[0], cqe_at(completion)[0]
        kind, status = cqe["user_data"] & KIND_MASK, cqe["status"]
        if cqe["flags"] & UNSOLICITED != 0:
            mine["error"] = status
            return int(mine["error"])
        if kind == CANCEL:
            return int(mine["error"])
        sent = cqe["arg0"] - mine["tx_base"] - mine["tx_acked"]
        if sent > 0:
            mine["tx_acked"] += sent
            tx_done(mine["conn"], sent)
        if kind == TX:
            if cqe["flags"] == 0:
                mine["tx_signalled"] -= 1
        else:
            mine["rx_posted"] -= 1
            feed(pump, kind, cqe["length"])
            if kind & ~1 == RX_STAGED and status == 0 and cqe["length"] == 0:
                status = END_OF_STREAM
            if kind == RX_AHEAD and status == CANCELLED:
                status = 0
        if status < 0 and mine["error"] == 0:
            mine["error"] = status
        return int(mine["error"])

    return PumpFunctions(send, receive, event)
