"""CDBs, LUNs, sense and parameter data against hand-derived and captured bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire import bhs, scsi, scsi_data, sense
from iscsi.wire.errors import LocalProtocolError, RemoteProtocolError, ScsiError
from iscsi.wire.scsi import Operation, ScsiStatus
from iscsi.wire.scsi_data import BlockLimits, Capacity, Designator, InquiryData
from iscsi.wire.sense import Asc, Sense, SenseKey
from tests.iscsi.wire.captured import CHECK_CONDITION, DATA_IN, WRITE_COMMAND


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        (scsi.test_unit_ready(), "00"),
        (scsi.request_sense(18), "0300000012"),
        (scsi.inquiry(), "12000000ff"),
        (scsi.inquiry(0x83, 64), "1201830040"),
        (scsi.mode_sense_6(0x3F, 0, 255), "1a003f00ff"),
        (scsi.mode_sense_10(8, 1, 512), "5a000801000000020000"),
        (scsi.read_capacity_10(), "25"),
        (scsi.read_capacity_16(), "9e10000000000000000000000020"),
        (scsi.read_10(0x01020304, 0x0506), "28000102030400050600"),
        (scsi.write_10(0, 24, fua=True), "2a080000000000001800"),
        (scsi.read_16(1 << 32, 1), "880000000001000000000000000100"),
        (scsi.write_16(2, 3, fua=True), "8a080000000000000002000000030000"),
        (scsi.synchronize_cache_10(), "35"),
        (scsi.synchronize_cache_16(1, 2), "91000000000000000001000000020000"),
        (scsi.report_luns(16), "a0000000000000000010"),
    ],
    ids=lambda v: v[:2] if isinstance(v, str) else "",
)
def test_cdb_has_the_bytes_of_the_standard(cdb, expected):
    assert cdb == bytes.fromhex(expected).ljust(16, b"\0")


def test_a_cdb_of_qemu_is_taken_apart():
    parsed = scsi.parse_cdb(bhs.decode(WRITE_COMMAND).cdb_bytes)
    assert parsed == scsi.Cdb(Operation.WRITE_10, lba=0, length=24, option=scsi.FUA)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_sixteen_byte_commands_are_read_back(lba, blocks):
    for build, operation in (
        (scsi.read_16, Operation.READ_16),
        (scsi.write_16, Operation.WRITE_16),
    ):
        parsed = scsi.parse_cdb(build(lba, blocks))
        assert (parsed.operation, parsed.lba, parsed.length) == (operation, lba, blocks)


def test_pages_and_actions_are_read_back():
    assert scsi.parse_cdb(scsi.inquiry(0x83)).is_evpd
    assert scsi.parse_cdb(scsi.inquiry(0x83)).page == 0x83
    assert not scsi.parse_cdb(scsi.inquiry()).is_evpd
    assert scsi.parse_cdb(scsi.read_capacity_16()).service_action == scsi.READ_CAPACITY_16_ACTION
    mode = scsi.parse_cdb(scsi.mode_sense_6(0x0A, 0x01))
    assert (mode.page, mode.subpage, mode.length) == (0x0A, 1, 255)


def test_a_block_address_that_does_not_fit_is_the_callers_fault():
    for build in (scsi.read_10, scsi.write_10):
        with pytest.raises(LocalProtocolError, match="does not fit"):
            build(1 << 32, 1)
        with pytest.raises(LocalProtocolError, match="does not fit"):
            build(0, 1 << 16)


@given(st.binary(max_size=20))
def test_any_cdb_is_parsed_or_refused(raw):
    try:
        parsed = scsi.parse_cdb(raw)
    except RemoteProtocolError:
        return
    assert parsed.operation == raw[0]


@pytest.mark.parametrize(
    ("lun", "field"),
    [(0, 0), (1, 0x0001 << 48), (255, 0x00FF << 48), (256, 0x4100 << 48), (16383, 0x7FFF << 48)],
)
def test_lun_field_follows_sam(lun, field):
    assert scsi.encode_lun(lun) == field
    assert scsi.decode_lun(field) == lun


@given(st.integers(0, 2**64 - 1))
def test_lun_forms_without_a_number_are_none(field):
    lun = scsi.decode_lun(field)
    assert lun is None or (field & (2**48 - 1) == 0 and field >> 62 in (0, 1))


def test_luns_beyond_flat_space_are_refused():
    for lun in (-1, 16384):
        with pytest.raises(LocalProtocolError):
            scsi.encode_lun(lun)
    assert scsi.decode_lun(0x0101 << 48) is None  # bus 1


def test_tgts_unit_attention_is_understood():
    raw = sense.split_sense(CHECK_CONDITION[48:68])
    decoded = sense.decode_sense(raw)
    assert decoded == Sense(SenseKey.UNIT_ATTENTION, 0x29, 0x00)
    assert "POWER ON RESET" in str(decoded)
    assert raw == sense.encode_sense(SenseKey.UNIT_ATTENTION, Asc.POWER_ON_RESET)
    assert sense.join_sense(raw) == CHECK_CONDITION[48:68]


@given(
    st.integers(0, 15),
    st.integers(0, 0xFFFF),
    st.none() | st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_sense_is_read_back_in_both_formats(key, code, information, descriptor):
    raw = sense.encode_sense(key, code, information=information, descriptor=descriptor)
    assert sense.decode_sense(raw) == Sense(key, code >> 8, code & 0xFF, information)


@given(st.binary(max_size=40))
def test_any_sense_and_any_segment_is_read(raw):
    assert len(sense.split_sense(raw)) <= max(len(raw) - 2, 0)
    decoded = sense.decode_sense(raw)
    assert decoded is None or str(decoded)


def test_sense_shorter_than_its_length_gives_what_is_there():
    assert sense.split_sense(b"\x00") == b""
    assert sense.split_sense(b"\xff\xff\x70\x00\x06") == b"\x70\x00\x06"
    assert sense.decode_sense(b"\x70\x00\x06") == Sense(SenseKey.UNIT_ATTENTION)


def test_scsi_error_says_what_happened():
    decoded = Sense(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00)
    error = ScsiError(ScsiStatus.CHECK_CONDITION, decoded, "READ(10)")
    assert str(error).startswith("READ(10): CHECK CONDITION: ILLEGAL REQUEST LBA OUT OF RANGE")
    assert str(ScsiError(0x55)) == "SCSI status 0x55"


def test_standard_inquiry_is_read_back():
    inquiry = InquiryData(0, removable=True, vendor="PPE", product="RAM DISK", revision="1")
    raw = scsi_data.build_inquiry(inquiry)
    assert len(raw) == 96 == raw[4] + 5
    assert scsi_data.parse_inquiry(raw) == inquiry
    assert scsi_data.parse_inquiry(raw[:5]).vendor == ""


def test_tgts_list_of_pages_is_understood():
    assert list(scsi_data.parse_vpd(0, DATA_IN[48:58])) == [0, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    with pytest.raises(RemoteProtocolError, match="page 00 instead of 83"):
        scsi_data.parse_vpd(0x83, DATA_IN[48:58])


def test_vital_product_data_is_read_back():
    designators = [Designator(3, bytes(8)), Designator(8, b"iqn.x\0\0\0", 3, association=2)]
    body = scsi_data.build_designators(designators)
    page = scsi_data.build_vpd(0x83, body)
    assert page[:4] == bytes((0, 0x83, 0, len(body)))
    assert scsi_data.parse_designators(scsi_data.parse_vpd(0x83, page)) == designators
    limits = BlockLimits(2048, 512, 8)
    assert scsi_data.parse_block_limits(scsi_data.build_block_limits(limits)) == limits
    assert scsi_data.parse_rotation_rate(scsi_data.build_block_characteristics()) == 1


def test_capacity_is_a_count_not_a_last_address():
    small = Capacity(2048, 512)
    assert scsi_data.build_capacity_10(small) == bytes.fromhex("000007ff00000200")
    assert scsi_data.parse_capacity_10(scsi_data.build_capacity_10(small)) == small
    large = Capacity(1 << 40, 4096, physical_exponent=3, thin=True)
    assert scsi_data.build_capacity_10(large)[:4] == b"\xff\xff\xff\xff"
    assert scsi_data.parse_capacity_16(scsi_data.build_capacity_16(large)) == large


def test_a_block_size_of_zero_is_the_targets_fault():
    with pytest.raises(RemoteProtocolError, match="block size"):
        scsi_data.parse_capacity_10(bytes(8))


def test_lun_list_tells_what_a_complete_one_needs():
    raw = scsi_data.build_luns([0, 1, 256])
    assert scsi_data.parse_luns(raw) == ([0, 1, 256], 32)
    assert scsi_data.parse_luns(raw[:16]) == ([0], 32)


@pytest.mark.parametrize("ten", [False, True])
def test_mode_data_carries_write_protection(ten):
    pages = scsi_data.mode_page(0x08, write_cache=True) + scsi_data.mode_page(0x0A)
    assert len(pages) == 20 + 12
    for read_only in (False, True):
        raw = scsi_data.build_mode_data(pages, ten=ten, read_only=read_only)
        assert scsi_data.is_write_protected(raw, ten=ten) == read_only
        counted = int.from_bytes(raw[:2], "big") + 2 if ten else raw[0] + 1
        assert counted == len(raw)


@given(st.binary(max_size=64))
def test_any_parameter_data_is_read_or_refused(raw):
    for parse in (
        scsi_data.parse_inquiry,
        scsi_data.parse_designators,
        scsi_data.parse_block_limits,
        scsi_data.parse_capacity_10,
        scsi_data.parse_capacity_16,
        scsi_data.parse_luns,
        scsi_data.is_write_protected,
        lambda data: scsi_data.parse_vpd(0x83, data),
    ):
        try:
            parse(raw)
        except RemoteProtocolError:
            continue


@pytest.mark.parametrize("descriptor", [False, True])
def test_what_a_sense_points_at_survives_either_format(descriptor):
    for specific in (sense.progress(0.25), sense.field_pointer(7, bit=3)):
        raw = sense.encode_sense(
            2, 0x041B, information=0x1234, specific=specific, descriptor=descriptor
        )
        found = sense.decode_sense(raw)
        assert (found.specific, found.information, found.code) == (specific, 0x1234, 0x041B)
    assert len(raw) == (8 + 12 + 8 if descriptor else 18)


@pytest.mark.parametrize(
    ("done", "expected"), [(0, 0), (0.5, 0x8000), (1, 0xFFFF), (-1, 0), (2, 0xFFFF)]
)
def test_progress_is_a_fraction_of_65536(done, expected):
    raw = sense.progress(done)
    assert (raw[0], int.from_bytes(raw[1:], "big")) == (0x80, expected)


def test_a_field_pointer_says_where_and_in_what():
    assert sense.field_pointer(2).hex() == "c00002"
    assert sense.field_pointer(258, in_data=True, bit=7).hex() == "8f0102"


def test_all_of_the_block_limits_survive():
    limits = BlockLimits(
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        unmap_alignment=9,
        max_write_same_length=1 << 40,
        max_atomic_length=11,
        atomic_alignment=12,
        atomic_granularity=13,
        max_atomic_length_with_boundary=14,
        max_atomic_boundary=15,
        write_same_non_zero=True,
    )
    body = scsi_data.build_block_limits(limits)
    assert len(body) == 60
    assert scsi_data.parse_block_limits(body) == limits
    assert scsi_data.parse_block_limits(body[:12]).max_unmap_length == 0
    assert scsi_data.parse_block_limits(bytes(60)).unmap_alignment is None


def test_thin_provisioning_is_told_in_page_b2():
    body = scsi_data.build_provisioning(thin=True)
    assert (body[1], body[2]) == (0b1110_0100, 2)
    assert scsi_data.build_provisioning(thin=False) == bytes(4)
