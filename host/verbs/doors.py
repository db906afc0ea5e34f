"""The doors from Python into `host.verbs.native`: few, so that little is compiled at import."""

from host import native
from host.records import MAPPING_SIZE, context_at, mapping_at
from host.verbs import native as verbs
from host.verbs.records import qp_at
from shm.channel import H_CONSUMER, H_WAITER, fill, prepare, submit
from shm.jit import entry
from shm.libc import monotonic_ns
from shm.memory import store_64
from shm.operations import RDMA_BIND_MW, RDMA_REGISTER
from shm.records import wqe_at
from shm.solicited import has_solicited
from shm.solicited import wait_solicited as _wait_solicited
from shm.wait import DEADLINE, PEER, SIGNAL, THRESHOLD, TICK


@entry("int64(intp, int64, int64, int64, intp, int64, int64, int64, int64)")
def post_send(
    qp: int,
    opcode: int,
    send_flags: int,
    wr_id: int,
    sges: int,
    count: int,
    remote_addr: int,
    rkey: int,
    imm: int,
) -> int:
    """`native.post_send_list` and ring."""
    posted = verbs.post_send_list(
        qp, opcode, send_flags, wr_id, sges, count, remote_addr, rkey, imm
    )
    if posted > 0:
        native.flush(qp_at(qp)[0]["context"])
    return posted


@entry("int64(intp, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def post_pair(
    qp: int,
    opcode: int,
    send_flags: int,
    wr_id: int,
    address: int,
    lkey: int,
    remote_addr: int,
    rkey: int,
    first: int,
    second: int,
) -> int:
    """`native.post_atomic`, or a bind with its length and rights, and ring."""
    posted = verbs.post_atomic(
        qp, opcode, send_flags, wr_id, address, lkey, remote_addr, rkey, first, second
    )
    if posted > 0:
        native.flush(qp_at(qp)[0]["context"])
    return posted


@entry("int64(intp, intp, int64, intp, int64)")
def post_recv(context: int, rq: int, wr_id: int, sges: int, count: int) -> int:
    """`native.post_recv_list` and ring."""
    posted = verbs.post_recv_list(rq, wr_id, sges, count)
    if posted > 0:
        native.flush(context)
    return posted


@entry("void(intp, int64, int64, int64)")
def note_wc(device: int, endpoint: int, is_receive: int, words: int) -> None:
    """`native.note_wc`."""
    verbs.note_wc(device, endpoint, is_receive != 0, words)


@entry("int64(intp, int64, int64, intp, int64, int64, int64)")
def post_register(
    context: int, domain: int, user_data: int, address: int, length: int, iova: int, access: int
) -> int:
    """Post the registration of memory of this process and ring: 1, 0 or -EFAULT."""
    mine = context_at(context)[0]
    index = native.region_of(context, address, length)
    if index < 0:
        return verbs.EFAULT
    channel = mine["channel"]
    if not prepare(channel, 1):
        return 0
    mapping = mapping_at(mine["mappings"] + index * MAPPING_SIZE)[0]
    offset = address - mapping["address"] + mapping["offset"]
    slot = fill(channel, RDMA_REGISTER, 0, domain, user_data, mapping["region"], offset, 0)
    entry_ = wqe_at(slot)[0]
    entry_["arg0"] = length
    entry_["arg1"] = iova
    entry_["arg2"] = access
    submit(channel, 1)
    native.flush(context)
    return 1


@entry("int64(intp, intp, int64, intp)")
def name_memory(context: int, address: int, length: int, out: int) -> int:
    """Region and offset, by which the engine knows memory of this process: 0 or -EFAULT."""
    index = native.region_of(context, address, length)
    if index < 0:
        return verbs.EFAULT
    mapping = mapping_at(context_at(context)[0]["mappings"] + index * MAPPING_SIZE)[0]
    store_64(out, mapping["region"])
    store_64(out + 8, address - mapping["address"] + mapping["offset"])
    return 0


@entry("int64(intp, int64, int64, int64)")
def wait_solicited(context: int, deadline_ns: int, tick_at_ns: int, inline: int) -> int:
    """Sleep until a solicited completion can be polled: the reason, as of `native.wait_n`."""
    channel = context_at(context)[0]["channel"]
    consumer, waiter = channel + H_CONSUMER, channel + H_WAITER
    if inline == 0:
        return _wait_solicited(consumer, waiter, deadline_ns, tick_at_ns)
    while not has_solicited(consumer):
        now = monotonic_ns()
        if now >= deadline_ns:
            return DEADLINE
        if not native.is_running(context):
            return PEER
        if now >= tick_at_ns:
            return TICK
        wanted = native.ready_count(context, 1 << 16) + 1
        until = min(deadline_ns, tick_at_ns)
        if native.run_until(context, wanted, until) == SIGNAL:
            return SIGNAL
    return THRESHOLD


__all__ = [
    "RDMA_BIND_MW",
    "name_memory",
    "note_wc",
    "post_pair",
    "post_recv",
    "post_register",
    "post_send",
]
