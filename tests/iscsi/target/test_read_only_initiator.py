"""An initiator that may only read (`Grant.read_only`) sees everything and changes nothing that
another one could notice.
"""

import pytest

from iscsi.target.access import AccessPolicy, Grant, TargetAccess
from iscsi.target.nexus import Nexus
from iscsi.wire import scsi
from iscsi.wire.bhs import TaskFunction, TaskFunctionResponse
from iscsi.wire.sense import Asc, SenseKey
from tests.iscsi.target.medium import Bench, cdb_10, fault, is_good, ram
from tests.iscsi.target.serving import BLOCK, TWO, Serving
from tests.iscsi.target.test_server import begin_write, manage

PLACEMENTS = TWO

REGISTER = (bytes((0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0)), bytes(8) + b"\1" * 8 + bytes(8))
MODE_SELECT_6 = (bytes((0x15, 0x10, 0, 0, 16, 0)), bytes(4) + bytes((0x0A, 0x0A, 6)) + bytes(9))
CHANGES = {
    "PERSISTENT RESERVE OUT": REGISTER,
    "RESERVE(6)": (bytes((0x16, 0, 0, 0, 0, 0)), b""),
    "RESERVE(10)": (bytes((0x56, *bytes(9))), b""),
    "MODE SELECT(6)": MODE_SELECT_6,
    "START STOP UNIT": (bytes((0x1B, 0, 0, 0, 0, 0)), b""),
    "SANITIZE": (bytes((0x48, 0x82, *bytes(8))), b""),
}
LOOKS = {
    "TEST UNIT READY": bytes(6),
    "PERSISTENT RESERVE IN": bytes((0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0)),
    "MODE SENSE(6)": bytes((0x1A, 0, 0x3F, 0, 255, 0)),
    "START STOP UNIT, START": bytes((0x1B, 0, 0, 0, 1, 0)),
    "RELEASE(6)": bytes((0x17, 0, 0, 0, 0, 0)),
    "READ(10)": cdb_10(0x28, 0, 1),
    "SYNCHRONIZE CACHE(10)": cdb_10(0x35),
    "PREVENT ALLOW MEDIUM REMOVAL": bytes((0x1E, 0, 0, 0, 1, 0)),
}


@pytest.fixture
def bench():
    bench = Bench(ram(removable=True))
    bench.nexus.read_only = True
    return bench


@pytest.mark.parametrize("name", CHANGES)
def test_what_others_would_notice_is_refused(bench, name):
    cdb, data = CHANGES[name]
    key, code = fault(bench.send(cdb, data))
    if name == "SANITIZE":
        assert (key, code) == (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
    else:
        assert (key, code) == (SenseKey.ILLEGAL_REQUEST, Asc.ACCESS_DENIED)
    writer = Nexus("iqn.2026-01.org.example:writer", 2)
    writer.attach(bench.target, None)
    assert is_good(bench.send(cdb_10(0x2A, 0, 1), bytes(BLOCK), nexus=writer))


@pytest.mark.parametrize("name", LOOKS)
def test_looking_is_allowed(bench, name):
    assert is_good(bench.send(LOOKS[name], expected=BLOCK))


def test_it_ends_its_own_tasks_only():
    access = AccessPolicy(
        default=TargetAccess((Grant(("*:reader",), read_only=True), Grant(("*",))))
    )
    functions = (
        TaskFunction.LOGICAL_UNIT_RESET,
        TaskFunction.TARGET_WARM_RESET,
        TaskFunction.TARGET_COLD_RESET,
    )
    with (
        Serving(access=access) as serving,
        serving.log_in(initiator="iqn.2026-01.org.example:reader") as reader,
        serving.log_in() as writer,
    ):
        reader.clear_attention()
        writer.clear_attention()
        tag, r2t = begin_write(writer, 0, 1)
        for function in functions:
            assert manage(reader, function) is TaskFunctionResponse.AUTHORIZATION_FAILED
        for function in (TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET):
            assert manage(reader, function) is TaskFunctionResponse.COMPLETE
        writer.give(5, b"w" * BLOCK, itt=tag, ttt=r2t.ttt, buffer_offset=0, data_sn=0, final=1)
        header, _ = writer.take()
        assert (header.itt, header.status) == (tag, 0)
        assert reader.read(0, 1) == b"w" * BLOCK
        reader.command(scsi.write_10(1, 1), b"r" * BLOCK, length=BLOCK, write=1)
        assert reader.take()[0].status == 2
