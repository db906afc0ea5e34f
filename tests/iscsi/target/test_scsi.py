"""The cold SCSI commands as functions: what a unit says of itself, and what it refuses."""

import numpy as np
import pytest

from host.memory import Buffer
from iscsi.target import scsi
from iscsi.target.nexus import Nexus
from iscsi.target.units import RamDisk, Target
from iscsi.wire import scsi as cdbs
from iscsi.wire import scsi_data
from iscsi.wire.sense import Asc, ScsiStatus, SenseKey, decode_sense

NAME = "iqn.2026-01.org.example:t"


def disk(size=1 << 20, **options):
    return RamDisk(Buffer(np.zeros(size, np.uint8), None), **options)


def new_target():
    return Target(NAME, {0: disk(), 1: disk(block_size=4096, read_only=True), 300: disk()})


TARGET = new_target()
NEXUS = Nexus("iqn.2026-01.org.example:i", 1)


def run(cdb, lun=0, target=TARGET):
    return scsi.execute(scsi.Command(bytes(cdb).ljust(16, b"\0"), target, lun, NEXUS))


def sense_of(answer):
    assert answer.status == ScsiStatus.CHECK_CONDITION
    assert not answer.data
    return answer.sense


def refused(answer, code, key=SenseKey.ILLEGAL_REQUEST):
    sense = sense_of(answer)
    return (sense.key, sense.code) == (key, code)


def test_a_unit_says_who_it_is():
    inquiry = scsi_data.parse_inquiry(run(cdbs.inquiry()).data)
    assert (inquiry.device_type, inquiry.qualifier, inquiry.vendor) == (0, 0, "PPE")


def test_data_is_cut_to_the_allocation_length():
    assert len(run(cdbs.inquiry(allocation_length=5)).data) == 5
    assert len(run(cdbs.mode_sense_6(0x3F, allocation_length=4)).data) == 4
    assert len(run(cdbs.read_capacity_16(12)).data) == 12


def test_each_page_in_the_list_of_pages_can_be_read_and_no_other():
    listed = scsi_data.parse_vpd(0, run(cdbs.inquiry(0)).data)
    assert list(listed) == [0x00, 0x80, 0x83, 0x86, 0x87, 0x8F, 0xB0, 0xB1, 0xB2]
    for page in range(256):
        answer = run(cdbs.inquiry(page))
        if page in listed:
            assert scsi_data.parse_vpd(page, answer.data) or page == 0xB2
        else:
            assert refused(answer, Asc.INVALID_FIELD_IN_CDB)


def test_a_page_without_evpd_is_refused():
    cdb = bytearray(cdbs.inquiry(0x83))
    cdb[1] = 0
    assert refused(run(cdb), Asc.INVALID_FIELD_IN_CDB)


def test_units_have_different_serial_numbers_that_survive_a_restart():
    serials = [run(cdbs.inquiry(0x80), lun).data[4:] for lun in (0, 1, 300)]
    assert len(set(serials)) == 3
    assert Target(NAME, {0: disk()}).units[0].serial == serials[0].decode()


def test_the_identifiers_name_the_unit_and_the_port():
    body = scsi_data.parse_vpd(0x83, run(cdbs.inquiry(0x83)).data)
    found = {
        (item.association, item.kind): item.value for item in scsi_data.parse_designators(body)
    }
    assert found[0, 3] == TARGET.units[0].naa.to_bytes(8, "big")
    assert found[0, 3][0] >> 4 == 3
    assert found[1, 8].rstrip(b"\0").decode() == f"{NAME},t,0x0001"
    assert len(found[1, 8]) % 4 == 0


@pytest.mark.parametrize(("lun", "block_size"), [(0, 512), (1, 4096)])
def test_both_capacities_agree_with_the_memory(lun, block_size):
    ten = scsi_data.parse_capacity_10(run(cdbs.read_capacity_10(), lun).data)
    sixteen = scsi_data.parse_capacity_16(run(cdbs.read_capacity_16(), lun).data)
    assert ten.blocks == sixteen.blocks == (1 << 20) // block_size
    assert ten.block_size == sixteen.block_size == block_size


def test_write_protection_is_told_in_the_mode_data():
    for lun, protected in ((0, False), (1, True)):
        six = run(cdbs.mode_sense_6(0x3F), lun).data
        ten = run(cdbs.mode_sense_10(0x0A), lun).data
        assert scsi_data.is_write_protected(six) is protected
        assert scsi_data.is_write_protected(ten, ten=True) is protected
        assert six[0] == len(six) - 1
        assert int.from_bytes(ten[:2], "big") == len(ten) - 2


def test_mode_values_cannot_be_saved():
    saved = bytearray(cdbs.mode_sense_6(0x0A))
    saved[2] |= 0xC0
    assert refused(run(saved), Asc.SAVING_NOT_SUPPORTED)
    assert refused(run(cdbs.mode_sense_6(0x1B)), Asc.INVALID_FIELD_IN_CDB)


def test_the_list_of_units_is_the_same_from_any_lun():
    for lun in (0, 7, None):
        numbers, _ = scsi_data.parse_luns(run(cdbs.report_luns(), lun).data)
        assert numbers == [0, 1, 300]
    assert refused(run(cdbs.report_luns(8)), Asc.INVALID_FIELD_IN_CDB)


@pytest.mark.parametrize("lun", [5, 301, None])
def test_where_no_unit_is_only_three_commands_answer(lun):
    inquiry = scsi_data.parse_inquiry(run(cdbs.inquiry(), lun).data)
    assert (inquiry.qualifier, inquiry.device_type) == (3, 0x1F)
    sense = decode_sense(run(cdbs.request_sense(), lun).data)
    assert sense.code == Asc.LUN_NOT_SUPPORTED
    for cdb in (cdbs.test_unit_ready(), cdbs.read_capacity_16(), b"\xff"):
        assert refused(run(cdb, lun), Asc.LUN_NOT_SUPPORTED)


@pytest.mark.parametrize(
    ("cdb", "code"),
    [
        (b"\xff", Asc.INVALID_OPERATION_CODE),
        (b"\x86", Asc.INVALID_OPERATION_CODE),
        (b"\x9e\x1f", Asc.INVALID_FIELD_IN_CDB),
        (b"\xa3\x0b", Asc.INVALID_FIELD_IN_CDB),
        (cdbs.synchronize_cache_16(1 << 40), Asc.LBA_OUT_OF_RANGE),
        (cdbs.synchronize_cache_10(2048, 1), Asc.LBA_OUT_OF_RANGE),
        (b"\x1e\0\0\0\x01", Asc.INVALID_FIELD_IN_CDB),
        (b"\x1b\0\0\0\x02", Asc.INVALID_FIELD_IN_CDB),
        (b"\x25\0\0\0\0\x01", Asc.INVALID_FIELD_IN_CDB),
    ],
)
def test_what_is_not_served_is_refused_with_the_reason(cdb, code):
    assert refused(run(cdb), code)


@pytest.mark.parametrize(
    "cdb",
    [
        cdbs.test_unit_ready(),
        cdbs.synchronize_cache_10(),
        cdbs.synchronize_cache_16(2048),
        b"\x2f\0\0\0\0\0\0\x08\0",
        b"\x8f",
        b"\x1b\0\0\0\x01",
        b"\x1e",
    ],
)
def test_commands_that_move_no_data_are_good(cdb):
    assert run(cdb) == scsi.GOOD


def test_each_reported_operation_is_served_and_described():
    reported = run(b"\xa3\x0c\0\0\0\0\0\0\x10\0").data
    assert int.from_bytes(reported[:4], "big") == len(reported) - 4
    lengths = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
    for at in range(4, len(reported), 8):
        operation, action = reported[at], int.from_bytes(reported[at + 2 : at + 4], "big")
        has_action = bool(reported[at + 5] & 1)
        length = int.from_bytes(reported[at + 6 : at + 8], "big")
        assert length == lengths[operation >> 5]
        option = 2 if has_action else 1
        one = run(bytes((0xA3, 0x0C, option, operation, 0, action, 0, 0, 0, 255))).data
        assert (one[1] & 7, one[4], len(one)) == (3, operation, 4 + length)
        answer = run(bytes((operation, action if has_action else 0)), target=new_target())
        if answer.status == ScsiStatus.CHECK_CONDITION:
            assert sense_of(answer).code != Asc.INVALID_OPERATION_CODE


def test_an_operation_nobody_serves_is_reported_as_such():
    assert run(b"\xa3\x0c\x01\x86\0\0\0\0\0\xff").data == bytes((0, 1, 0, 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: disk(block_size=520), "512 and 4096"),
        (lambda: disk(1000), "no whole number of blocks"),
        (lambda: Target("disk", {}), "iqn"),
        (lambda: Target(NAME, {1 << 14: disk()}), "outside"),
    ],
)
def test_a_unit_that_cannot_be_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()
