"""Unit attentions that are not passed over: what RESERVE held is over, or the medium was changed.
The command that reported it was not executed, and nothing is written after it.
"""

import asyncio

import pytest

import iscsi
from iscsi.session.attention import ends_reservation, grave
from iscsi.session.errors import ReservationLost, UnitChanged
from iscsi.session.options import Recovery
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import ScsiError
from iscsi.wire.sense import Asc
from tests.iscsi.session.disk import BLOCK, Disk

QUICK = Recovery(initial_s=0, maximum_s=0.05, limit_s=20)
RESERVE, RELEASE = bytes((0x16, *bytes(5))), bytes((0x17, *bytes(5)))
ENDING = (
    Asc.POWER_ON_RESET,
    Asc.DEVICE_RESET_OCCURRED,
    Asc.I_T_NEXUS_LOSS,
    Asc.RESERVATIONS_PREEMPTED,
    Asc.RESERVATIONS_RELEASED,
)


@pytest.fixture
def disk():
    found = Disk()
    found.before = lambda peer, header, data: (
        header.cdb_bytes[0] in (0x16, 0x17) and peer.send(Opcode.SCSI_RESPONSE, to=header) is None
    )
    return found


@pytest.mark.parametrize("code", ENDING)
def test_a_transfer_does_not_pass_over_the_end_of_a_reservation(engine, disk, way, code):
    _, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        device.session.command(RESERVE)
        device.write(0, bytes(BLOCK))
        disk.attentions = [code]
        with pytest.raises(ReservationLost, match=f"LUN 0 is over.*{code.name.split('_')[0]}"):
            device.write(1, bytes(BLOCK))
        with pytest.raises(ReservationLost):
            device.write(2, bytes(BLOCK))
    assert disk.log == [("write", 0, 1)]


def test_in_asyncio_everything_that_waits_learns_of_it(disk, way):
    _, url = way

    async def main():
        async with await iscsi.aopen(url, recovery=QUICK, queue_depth=1) as device:
            device.core.reserved.add(0)  # as after a RESERVE
            disk.attentions = [Asc.DEVICE_RESET_OCCURRED]
            async with asyncio.timeout(20):
                writes = [device.write(at, bytes(BLOCK)) for at in range(5)]
                for found in await asyncio.gather(*writes, return_exceptions=True):
                    assert isinstance(found, ReservationLost)

    asyncio.run(main())
    assert not disk.log


@pytest.mark.parametrize("call", ["test_unit_ready", "flush", "read_capacity"])
def test_a_named_command_does_not_pass_over_it_either(engine, disk, way, call):
    _, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        device.session.command(RESERVE)
        disk.attentions = [Asc.DEVICE_RESET_OCCURRED]
        with pytest.raises(ReservationLost, match="DEVICE RESET"):
            getattr(device, call)()
        with pytest.raises(ReservationLost):
            device.write(0, bytes(BLOCK))
    assert not disk.log


def test_who_sends_commands_of_his_own_is_told_by_them_and_goes_on(engine, disk, way):
    relay, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        device.session.command(RESERVE)
        disk.attentions = [Asc.DEVICE_RESET_OCCURRED]
        with pytest.raises(ScsiError) as told:
            device.session.command(bytes(6))
        assert told.value.sense.code == Asc.DEVICE_RESET_OCCURRED
        device.write(0, bytes(BLOCK))
        relay.drop()  # which would be an error if something were held
        device.write(1, bytes(BLOCK))


@pytest.mark.parametrize("release", [False, True])
def test_other_news_is_passed_over_and_all_of_it_without_a_reservation(engine, disk, way, release):
    _, url = way
    with iscsi.open(url, engine, recovery=QUICK) as device:
        device.session.command(RESERVE)
        if release:
            device.session.command(RELEASE)
        disk.attentions = [Asc.MODE_PARAMETERS_CHANGED, Asc.CAPACITY_DATA_CHANGED]
        if release:
            disk.attentions += [Asc.DEVICE_RESET_OCCURRED, Asc.NOT_READY_TO_READY_CHANGE]
        device.write(0, bytes(BLOCK))
        device.test_unit_ready()
        assert not disk.attentions


def test_a_medium_that_may_be_another_one_is_not_written_to(engine, disk, way):
    _, url = way
    disk.removable = True
    with iscsi.open(url, engine, recovery=QUICK) as device:
        disk.attentions = [Asc.NOT_READY_TO_READY_CHANGE]
        with pytest.raises(UnitChanged, match="medium of LUN 0"):
            device.write(0, bytes(BLOCK))
        with pytest.raises(UnitChanged):
            device.write(0, bytes(BLOCK))
    assert not disk.log


def test_an_attention_concerns_the_unit_that_reports_it():
    assert grave(Asc.POWER_ON_RESET, 1, {0, 2}) is None
    assert isinstance(grave(Asc.POWER_ON_RESET, 2, {0, 2}), ReservationLost)
    assert "29h/04h" in str(grave(0x2904, 2, {0, 2}))
    assert not ends_reservation(Asc.REGISTRATIONS_PREEMPTED)
