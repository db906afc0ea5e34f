"""The pump: moves a sans-IO protocol's bytes over a stream endpoint, in compiled code.

The protocol says where the next bytes belong and what there is to send (`iscsi.wire.port`); the
pump turns that into posted receives and sends and feeds it their completions. It knows no PDU. One
set of functions is made for each role by `make_pump`.

Sends are unsignalled: every completion of the endpoint tells how many bytes its transport has taken
(the cumulative count in `arg0`), which is all the protocol needs to reuse its headers. Only when
half of its transmit queue waits, or its owner says so, is one send signalled.

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
MOVER: Final = 3  # a datamover endpoint: the engine receives (host.mover)

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
    Field("cancel_due", "<i8"),  # 1: something else came, that receive has to be taken back
    Field("tx_address", "<i8"),  # taken from the protocol, not posted yet
    Field("tx_length", "<i8"),
    Field("tx_base", "<i8"),  # the transport's count when the pump began
    Field("tx_acked", "<i8"),  # bytes since then that the protocol knows are sent
    Field("tx_signalled", "<i8"),  # signalled sends outstanding
    Field("error", "<i8"),  # -errno of the transport or a violation of the protocol; 0: it runs
    Field("busy", "<i8"),  # for the owner: in its list of pumps to look at
    Field("owner", "<i8"),  # for the owner: its number of this connection
    Field("lane", "<i8"),  # for the owner: what it has at the connection's engine
    # Set by the owner: what is sent now lies in memory that others wait for, so each batch is to
    # be acknowledged.
    Field("eager", "<i8"),
    # For a datamover (host.mover): `staging` are buffers of `staging_size` bytes that are lent.
    Field("lent_free", "<i8"),  # bit n: buffer n is here
    Field("home", "<i8"),  # address that offsets count from
    Field("scratch", "<i8"),  # address of SCRATCH_SIZE bytes
    size=256,
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
    receive: Callable[[int], int]  # keep receives posted; how many operations were added
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
def _post_send(pump: int, is_last: bool) -> bool:
    """Post the span that was taken from the protocol. False: no room, try again later.

    If half of the transmit queue waits, or the owner is eager, the last span of a batch is
    signalled: its completion acknowledges the whole batch. (An earlier one could complete while its
    PDU is half sent, free nothing, and leave nobody to tell of the rest.)
    """
    mine = pump_at(pump)[0]
    port = port_at(mine["conn"])[0]
    is_half_full = 2 * (port["tx_made"] - port["tx_sent"]) >= port["tx_capacity"]
    signalled = is_last and (is_half_full or mine["eager"] != 0)
    flags = (0 if is_last else MORE) | (0 if signalled else UNSIGNALLED)
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


@nopython
def _receive_staged(pump: int) -> int:
    """Keep both staging areas posted. Return how many receives were added."""
    mine = pump_at(pump)[0]
    added = 0
    while mine["rx_posted"] < 2:
        area = mine["rx_next"]
        address = mine["staging"] + area * mine["staging_size"]
        if not _post_receive(pump, RX_STAGED | area, address, mine["staging_size"], 0):
            break
        mine["rx_next"] = 1 - area
        added += 1
    return added


@nopython
def _receive_exact(pump: int) -> int:
    """Keep one receive posted where the protocol wants its next bytes."""
    mine = pump_at(pump)[0]
    if mine["rx_posted"] != 0:
        return 0
    port = port_at(mine["conn"])[0]
    mine["rx_address"] = port["want_address"]
    return _post_receive(pump, RX_EXACT, port["want_address"], port["want_length"], RECEIVE_EXACT)


@nopython
def _receive_ahead(pump: int, address: int, length: int) -> int:
    """Post the receive of data that is expected behind the header already posted."""
    mine = pump_at(pump)[0]
    if length <= 0 or _post_receive(pump, RX_AHEAD, address, length, RECEIVE_EXACT) == 0:
        return 0
    mine["ahead_address"] = address
    mine["ahead_length"] = length
    mine["ahead_posted"] = 1
    return 1


@nopython
def _received_at(pump: int, kind: int) -> int:
    """Where the bytes of a completed receive lie."""
    mine = pump_at(pump)[0]
    if kind & ~1 == RX_STAGED:
        return int(mine["staging"] + (kind & 1) * mine["staging_size"])
    if kind == RX_AHEAD:
        mine["ahead_posted"] = 0
        mine["cancel_due"] = 0
        return int(mine["ahead_address"])
    return int(mine["rx_address"])


@nopython
def _withdraw_ahead(pump: int) -> None:
    """After a header: if something else came than was foreseen, have the data's receive taken back.

    `receive` posts that, because its caller rings the engine's bell.
    """
    mine = pump_at(pump)[0]
    if mine["ahead_posted"] == 0:
        return
    port = port_at(mine["conn"])[0]
    as_foreseen = port["want_address"] == mine["ahead_address"]
    if not as_foreseen or port["want_length"] < mine["ahead_length"]:
        mine["cancel_due"] = 1


@nopython
def _cancel_ahead(pump: int) -> int:
    """Post the cancellation that is due. Return how many operations were added."""
    mine = pump_at(pump)[0]
    if mine["cancel_due"] == 0:
        return 0
    posted = native.post_cancel(mine["context"], mine["endpoint"], pump | CANCEL, pump | RX_AHEAD)
    if posted > 0:
        mine["cancel_due"] = 0
    return posted


@nopython
def _status_of(completion: int) -> int:
    """A receive's status for the pump: an empty staged one is the end, a withdrawn one is fine."""
    cqe = cqe_at(completion)[0]
    kind = cqe["user_data"] & KIND_MASK
    if kind & ~1 == RX_STAGED and cqe["status"] == 0 and cqe["length"] == 0:
        return END_OF_STREAM
    if kind == RX_AHEAD and cqe["status"] == CANCELLED:
        return 0
    return int(cqe["status"])


@nopython
def _newly_sent(pump: int, completion: int) -> int:
    """Bytes that the transport has taken since the completion before this one."""
    mine = pump_at(pump)[0]
    sent = cqe_at(completion)[0]["arg0"] - mine["tx_base"] - mine["tx_acked"]
    if sent <= 0:
        return 0
    mine["tx_acked"] += sent
    return int(sent)


def _make_send(tx_next: Any, tx_take: Any) -> Callable[[int], int]:
    @nopython
    def send(pump: int) -> int:
        mine = pump_at(pump)[0]
        conn = mine["conn"]
        done = 0
        while mine["error"] == 0:
            length = tx_next(conn)
            if mine["tx_length"] > 0:
                size = mine["tx_length"]
                if not _post_send(pump, length == 0):
                    return done
                done += size
            if length == 0:
                return done
            mine["tx_address"] = port_at(conn)[0]["span_address"]
            mine["tx_length"] = length
            tx_take(conn, length)
        return done

    return send


def _make_receive(predict: Any) -> Callable[[int], int]:
    @nopython
    def receive(pump: int) -> int:
        mine = pump_at(pump)[0]
        if mine["error"] != 0:
            return 0
        if mine["mode"] == STAGED:
            return _receive_staged(pump)
        added = _cancel_ahead(pump) + _receive_exact(pump)
        if mine["mode"] == COALESCED and mine["rx_posted"] == 1 and mine["ahead_posted"] == 0:
            address, length = predict(mine["conn"])
            added += _receive_ahead(pump, address, length)
        return added

    return receive


def make_pump(
    rx_bytes: Any, tx_next: Any, tx_take: Any, tx_done: Any, predict: Any
) -> PumpFunctions:
    """Make the pump of one role from its protocol's nopython functions.

    `predict(conn)` gives (address, length) of the data expected behind the next header, length 0
    for none.
    """

    @nopython
    def event(pump: int, completion: int) -> int:
        mine, cqe = pump_at(pump)[0], cqe_at(completion)[0]
        kind = cqe["user_data"] & KIND_MASK
        if cqe["flags"] & UNSOLICITED != 0:
            mine["error"] = cqe["status"]
            return int(mine["error"])
        if kind == CANCEL:
            return int(mine["error"])
        sent = _newly_sent(pump, completion)
        if sent > 0:
            tx_done(mine["conn"], sent)
        if kind == TX:
            if cqe["flags"] == 0:
                mine["tx_signalled"] -= 1
        else:
            mine["rx_posted"] -= 1
            address = _received_at(pump, kind)
            violation = 0
            if cqe["length"] > 0:
                violation = rx_bytes(mine["conn"], address, cqe["length"])
            if kind == RX_EXACT:
                _withdraw_ahead(pump)
            if violation != 0 and mine["error"] == 0:
                mine["error"] = violation
        status = _status_of(completion)
        if status < 0 and mine["error"] == 0:
            mine["error"] = status
        return int(mine["error"])

    return PumpFunctions(_make_send(tx_next, tx_take), _make_receive(predict), event)
