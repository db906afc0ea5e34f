"""The structures that compiled code reads and writes lie as the C compiler lays out rdma-core's."""

import subprocess

import pytest

from ppe.cycle.rnic.verbs import connection, layouts
from shm import verbs_numbers as constants
from shm.layout import offset

pytestmark = pytest.mark.interop("gcc", "verbs.h", "rdma_cma.h")

SIZES = {
    "struct ibv_sge": layouts.SGE,
    "struct ibv_recv_wr": layouts.RECV_WR,
    "struct ibv_send_wr": layouts.SEND_WR,
    "struct ibv_wc": layouts.WC,
    "struct ibv_async_event": layouts.ASYNC_EVENT,
    "struct rdma_cm_event": layouts.CM_EVENT,
}
# C's name of a member, and ours where it differs.
MEMBERS = {
    "struct ibv_sge": [(name, name) for name in layouts.SGE.names],
    "struct ibv_recv_wr": [(name, name) for name in layouts.RECV_WR.names],
    "struct ibv_wc": [(name, name) for name in layouts.WC.names],
    "struct ibv_async_event": [("element", "element"), ("event_type", "event_type")],
    "struct rdma_cm_event": [
        *((name, name) for name in ("id", "listen_id", "event", "status")),
        *(
            (f"param.conn.{name}", name)
            for name in layouts.CM_EVENT.names
            if name not in ("id", "listen_id", "event", "status")
        ),
    ],
}
_COMMON = ("wr_id", "next", "sg_list", "num_sge", "opcode", "send_flags", "imm_data")
UNIONS = [
    *((name, layouts.SEND_WR, name) for name in _COMMON),
    ("invalidate_rkey", layouts.SEND_WR, "imm_data"),
    ("wr.rdma.remote_addr", layouts.SEND_WR, "remote_addr"),
    ("wr.rdma.rkey", layouts.SEND_WR, "rkey"),
    ("wr.atomic.remote_addr", layouts.ATOMIC_WR, "remote_addr"),
    ("wr.atomic.compare_add", layouts.ATOMIC_WR, "compare_add"),
    ("wr.atomic.swap", layouts.ATOMIC_WR, "swap"),
    ("wr.atomic.rkey", layouts.ATOMIC_WR, "rkey"),
    ("bind_mw.mw", layouts.BIND_WR, "mw"),
    ("bind_mw.rkey", layouts.BIND_WR, "rkey"),
    ("bind_mw.bind_info.mr", layouts.BIND_WR, "mr"),
    ("bind_mw.bind_info.addr", layouts.BIND_WR, "addr"),
    ("bind_mw.bind_info.length", layouts.BIND_WR, "length"),
    ("bind_mw.bind_info.mw_access_flags", layouts.BIND_WR, "access"),
]
OFFSETS = {
    ("struct ibv_context", "device"): layouts.CONTEXT_DEVICE,
    ("struct ibv_context", "ops.poll_cq"): layouts.CONTEXT_POLL_CQ,
    ("struct ibv_context", "ops.req_notify_cq"): layouts.CONTEXT_REQ_NOTIFY_CQ,
    ("struct ibv_context", "ops.post_srq_recv"): layouts.CONTEXT_POST_SRQ_RECV,
    ("struct ibv_context", "ops.post_send"): layouts.CONTEXT_POST_SEND,
    ("struct ibv_context", "ops.post_recv"): layouts.CONTEXT_POST_RECV,
    ("struct ibv_context", "cmd_fd"): layouts.CONTEXT_CMD_FD,
    ("struct ibv_context", "async_fd"): layouts.CONTEXT_ASYNC_FD,
    ("struct ibv_device", "name"): layouts.DEVICE_NAME,
    ("struct ibv_pd", "handle"): layouts.PD_HANDLE,
    ("struct ibv_cq", "context"): layouts.OBJECT_CONTEXT,
    ("struct ibv_cq", "channel"): layouts.CQ_CHANNEL,
    ("struct ibv_cq", "cqe"): layouts.CQ_CQE,
    ("struct ibv_comp_channel", "fd"): layouts.CHANNEL_FD,
    ("struct ibv_qp", "context"): layouts.OBJECT_CONTEXT,
    ("struct ibv_qp", "qp_num"): layouts.QP_QP_NUM,
    ("struct ibv_srq", "context"): layouts.OBJECT_CONTEXT,
    ("struct ibv_srq", "pd"): layouts.SRQ_PD,
    ("struct ibv_mr", "lkey"): layouts.MR_LKEY,
    ("struct ibv_mr", "rkey"): layouts.MR_RKEY,
    ("struct ibv_mw", "rkey"): layouts.MW_RKEY,
}
# Numbers of ours that are the library's, too.
PREFIXES = ("WR_", "SEND_", "ACCESS_", "WC_")
OURS_ALONE = {
    *("WR_ATOMIC_SWAP", "WR_IMMEDIATE", "WC_SWAP", "WC_IMMEDIATE", "WC_SOLICITED"),
    *("WC_UNSIGNALLED", "SEND_FLAGS", "ACCESS_REMOTE", "ACCESS_WINDOW"),
}
EVENTS = (
    *("ADDR_RESOLVED", "ADDR_ERROR", "ROUTE_RESOLVED", "ROUTE_ERROR", "CONNECT_REQUEST"),
    *("CONNECT_RESPONSE", "CONNECT_ERROR", "UNREACHABLE", "REJECTED", "ESTABLISHED"),
    *("DISCONNECTED", "DEVICE_REMOVAL", "TIMEWAIT_EXIT"),
)


def numbers():
    """C expressions, and what each must be."""
    for name, dtype in SIZES.items():
        yield f"sizeof({name})", dtype.itemsize
    for name, members in MEMBERS.items():
        for member, ours in members:
            yield f"offsetof({name}, {member})", offset(SIZES[name], ours)
    for member, dtype, ours in UNIONS:
        yield f"offsetof(struct ibv_send_wr, {member})", offset(dtype, ours)
    for (name, member), ours in OFFSETS.items():
        yield f"offsetof({name}, {member})", ours
    for name, ours in vars(constants).items():
        if name.startswith(PREFIXES) and name not in OURS_ALONE:
            yield f"IBV_{name}", ours
    for name in EVENTS:
        yield f"RDMA_CM_EVENT_{name}", getattr(connection, name)
    yield "RDMA_PS_TCP", connection.PS_TCP


def test_every_size_place_and_number_is_the_headers_own(tmp_path):
    expected = dict(numbers())
    lines = "".join(f'    printf("%ld\\n", (long)({text}));\n' for text in expected)
    source = tmp_path / "numbers.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n"
        f"#include <rdma/rdma_cma.h>\nint main(void)\n{{\n{lines}    return 0;\n}}\n"
    )
    program = tmp_path / "numbers"
    subprocess.run(["gcc", "-w", "-o", program, source], check=True, timeout=60)
    done = subprocess.run([program], capture_output=True, text=True, check=True, timeout=10)
    found = dict(zip(expected, map(int, done.stdout.split()), strict=True))
    assert found == expected
    assert len(found) > 120
