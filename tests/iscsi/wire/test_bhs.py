"""The header table against captured PDUs, hand-derived bytes and itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi.wire import bhs
from iscsi.wire.bhs import LAYOUTS, Opcode
from iscsi.wire.errors import LocalProtocolError, RejectReason, RemoteProtocolError
from tests.iscsi.wire.captured import DISSECTED


@pytest.mark.parametrize(
    ("pdu", "opcode", "fields"), DISSECTED, ids=lambda v: getattr(v, "name", "")
)
def test_captured_header_reads_as_the_dissector_says(pdu, opcode, fields):
    header = bhs.decode(pdu[:48])
    assert header.opcode is opcode
    assert {name: getattr(header, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("pdu", "opcode", "fields"), DISSECTED, ids=lambda v: getattr(v, "name", "")
)
def test_captured_header_is_rebuilt_bit_by_bit(pdu, opcode, fields):
    assert bhs.encode(opcode, **bhs.decode(pdu[:48]).fields) == pdu[:48]


# RFC 7143 §11, read off the figures by hand: every byte range a PDU defines and no other has.
BY_HAND = {
    Opcode.NOP_OUT: "00 80 0000 00000000 0102030405060708 ffffffff ffffffff 11121314 15161718"
    + "00" * 16,
    Opcode.TASK_MANAGEMENT_REQUEST: "42 81 0000 00000000 0102030405060708 21222324 25262728"
    "11121314 15161718 31323334 35363738 0000000000000000",
    Opcode.SNACK_REQUEST: "10 81 0000 00000000 0102030405060708 ffffffff ffffffff 00000000"
    "15161718 0000000000000000 41424344 45464748",
    Opcode.ASYNC_MESSAGE: "32 80 0000 00000000 0102030405060708 ffffffff 00000000 51525354"
    "55565758 595a5b5c 01 02 0304 0506 0708 00000000",
    Opcode.REJECT: "3f 80 04 00 00000030 0000000000000000 ffffffff 00000000 51525354"
    "55565758 595a5b5c 61626364 0000000000000000",
    Opcode.TASK_MANAGEMENT_RESPONSE: "22 80 05 00 00000000 0000000000000000 21222324 00000000"
    "51525354 55565758 595a5b5c 000000000000000000000000",
    Opcode.NOP_IN: "20 80 0000 00000000 0102030405060708 ffffffff 71727374 51525354 55565758"
    "595a5b5c 000000000000000000000000",
}
LUN, ITT = 0x0102030405060708, 0x21222324
REQUEST = {"cmd_sn": 0x11121314, "exp_stat_sn": 0x15161718}
RESPONSE = {"stat_sn": 0x51525354, "exp_cmd_sn": 0x55565758, "max_cmd_sn": 0x595A5B5C}
FIELDS = {
    Opcode.NOP_OUT: {"lun": LUN, **REQUEST},
    Opcode.TASK_MANAGEMENT_REQUEST: {
        "immediate": 1,
        "function": 1,
        "lun": LUN,
        "itt": ITT,
        "referenced_task_tag": 0x25262728,
        **REQUEST,
        "ref_cmd_sn": 0x31323334,
        "exp_data_sn": 0x35363738,
    },
    Opcode.SNACK_REQUEST: {
        "snack_type": 1,
        "lun": LUN,
        "exp_stat_sn": 0x15161718,
        "beg_run": 0x41424344,
        "run_length": 0x45464748,
    },
    Opcode.ASYNC_MESSAGE: {
        "lun": LUN,
        **RESPONSE,
        "async_event": 1,
        "async_vcode": 2,
        "parameter1": 0x0304,
        "parameter2": 0x0506,
        "parameter3": 0x0708,
    },
    Opcode.REJECT: {
        "reject_reason": 4,
        "data_segment_length": 48,
        **RESPONSE,
        "data_sn": 0x61626364,
    },
    Opcode.TASK_MANAGEMENT_RESPONSE: {"response": 5, "itt": ITT, **RESPONSE},
    Opcode.NOP_IN: {"lun": LUN, "ttt": 0x71727374, **RESPONSE},
}


@pytest.mark.parametrize("opcode", BY_HAND, ids=lambda o: o.name)
def test_header_matches_the_figure_in_the_rfc(opcode):
    assert bhs.encode(opcode, **FIELDS[opcode]).hex() == BY_HAND[opcode].replace(" ", "")


@pytest.mark.parametrize("opcode", Opcode, ids=lambda o: o.name)
@given(data=st.data())
def test_what_is_encoded_is_decoded(opcode, data):
    values = {
        name: data.draw(st.integers(0, (1 << field.bits) - 1), label=name)
        for name, field in LAYOUTS[opcode].items()
    }
    header = bhs.decode(bhs.encode(opcode, **values))
    assert header.opcode is opcode
    assert header.fields == values


@pytest.mark.parametrize("opcode", Opcode, ids=lambda o: o.name)
def test_fields_of_a_pdu_do_not_overlap(opcode):
    taken = 0x3F << (47 * 8)  # the opcode's own bits
    for name, field in LAYOUTS[opcode].items():
        header = bytearray(48)
        field.put(header, (1 << field.bits) - 1)
        mask = int.from_bytes(header, "big")
        assert not taken & mask, name
        assert len(header) == 48
        taken |= mask


def test_offset_constants_are_those_of_the_rfc():
    expected = {"FLAGS": 1, "LUN": 8, "ITT": 16, "TTT": 20, "CMD_SN": 24, "STAT_SN": 24}
    expected |= {"EXP_STAT_SN": 28, "EXP_CMD_SN": 28, "MAX_CMD_SN": 32, "CDB": 32, "DATA_SN": 36}
    expected |= {"R2T_SN": 36, "BUFFER_OFFSET": 40, "RESIDUAL_COUNT": 44, "STATUS": 3}
    expected |= {"DESIRED_DATA_TRANSFER_LENGTH": 44, "DATA_SEGMENT_LENGTH": 5, "TOTAL_AHS_WORDS": 4}
    expected |= {"EXPECTED_DATA_TRANSFER_LENGTH": 20, "REF_CMD_SN": 32, "EXP_DATA_SN": 36}
    assert {name: getattr(bhs, f"OFFSET_{name}") for name in expected} == expected


def test_a_value_too_large_or_a_foreign_field_is_the_callers_fault():
    with pytest.raises(LocalProtocolError, match="fit"):
        bhs.encode(Opcode.R2T, itt=1 << 32)
    with pytest.raises(LocalProtocolError, match="no field 'cmd_sn'"):
        bhs.encode(Opcode.DATA_OUT, cmd_sn=1)


def test_a_header_has_only_its_own_fields():
    with pytest.raises(AttributeError, match="DATA_OUT has no field 'cmd_sn'"):
        _ = bhs.decode(bhs.encode(Opcode.DATA_OUT)).cmd_sn


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(raw):
    try:
        header = bhs.decode(raw)
    except RemoteProtocolError:
        return
    assert len(raw) == 48
    assert header.opcode == raw[0] & 0x3F


def test_an_unknown_opcode_names_its_reject_reason():
    with pytest.raises(RemoteProtocolError, match="0x1f") as caught:
        bhs.decode(b"\x1f" + bytes(47))
    assert caught.value.reject_reason is RejectReason.COMMAND_NOT_SUPPORTED


def test_pdu_is_padded_to_four_bytes_and_its_length_counts_no_padding():
    pdu = bhs.encode_pdu(Opcode.NOP_IN, b"12345")
    assert len(pdu) == 48 + 8
    assert bhs.data_segment_length(pdu) == 5
    assert pdu[48:] == b"12345\0\0\0"
    assert [bhs.padded(n) for n in (0, 1, 3, 4, 5)] == [0, 4, 4, 4, 8]


def test_ahs_length_counts_words():
    assert bhs.total_ahs_length(bhs.encode(Opcode.SCSI_COMMAND, total_ahs_words=255)) == 1020
