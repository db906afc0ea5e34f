"""What a target can do wrong in the full feature phase, each with its outcome: the connection ends
with the reason, and where recovery is on the next connection brings the data. A gap in StatSN is
among them: at error recovery level 0 a missing status is made good by session recovery (RFC 7143
§7.8), never by going on.
"""

from functools import partial

import pytest

import host
import iscsi
from iscsi.session.discovery import discover
from iscsi.session.errors import ConnectionLost
from iscsi.session.options import NEVER, Recovery
from iscsi.wire import bhs, discovery
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import RemoteProtocolError
from tests.iscsi.session.disk import BLOCK, Disk
from tests.iscsi.session.mock_target import mock_target
from tests.iscsi.session.modes import MODES, moved_by

QUICK = Recovery(initial_s=0, maximum_s=0.05, limit_s=20)
BURST = 262144
PLACEMENTS = ["stream", "datamover"]


@pytest.fixture(scope="module")
def engine():
    with host.connect("inline:") as handle:
        yield handle


GOOD = b"good" * 128


def data_in(peer, header, data=GOOD, **fields):
    peer.send(Opcode.DATA_IN, data, to=header, has_status=1, **fields)


def r2t(peer, header, **fields):
    fields = {"ttt": 1, "desired_data_transfer_length": 512, **fields}
    peer.send(Opcode.R2T, to=header, counted=False, stat_sn=peer.stat_sn, **fields)


def r2ts(peer, header):
    """Three at once, in one piece, so that none is answered before the last has come."""
    numbers = {"exp_cmd_sn": header.cmd_sn + 1, "max_cmd_sn": header.cmd_sn + 8}
    pdus = [
        bhs.encode_pdu(
            Opcode.R2T, itt=header.itt, ttt=number, r2t_sn=number, buffer_offset=number * 512,
            desired_data_transfer_length=512, stat_sn=peer.stat_sn, **numbers,
        )
        for number in range(3)
    ]  # fmt: skip
    peer.stream.sendall(b"".join(pdus))


def response(peer, header, data=b"", **fields):
    peer.send(Opcode.SCSI_RESPONSE, data, to=header, **fields)


def twice(peer, header):
    data_in(peer, header)
    data_in(peer, header)


def raw(peer, header, text):
    peer.stream.sendall(text)


def reject(peer, header, culprit):
    peer.send(Opcode.REJECT, culprit, to=header, itt=bhs.RESERVED_TAG, reject_reason=4)


# What answers a READ of one block: name, what the target does, what is said about it.
READS = [
    ("data beyond the expected length", partial(data_in, data=bytes(1024)), "beyond"),
    ("data at an offset beyond it", partial(data_in, buffer_offset=512), "beyond"),
    ("data at an offset out of order", partial(data_in, data=bytes(4), buffer_offset=8), "order"),
    ("a wrong DataSN", partial(data_in, data_sn=1), "DataSN"),
    ("status without the F bit", partial(data_in, final=0), "without the F bit"),
    ("an unknown task tag", partial(data_in, itt=0x7777), "task tag"),
    ("a response for an unknown tag", partial(response, itt=0x12340000), "task tag"),
    ("two answers", twice, "task tag|has ended"),
    ("a StatSN that leaves a gap", partial(data_in, stat_sn=0x5000), "StatSN"),
    ("a StatSN that was used before", partial(data_in, stat_sn=0), "StatSN"),
    ("an R2T for a read", partial(r2t), "writes nothing"),
    ("a sense segment of one byte", partial(response, data=b"\0", status=2), "SenseLength"),
    ("a SenseLength beyond it", partial(response, data=b"\0\x40ab", status=2), "SenseLength"),
    ("a reject without its header", partial(reject, culprit=b""), "rejected a PDU"),
    ("a reject with ten bytes of it", partial(reject, culprit=bytes(10)), "rejected a PDU"),
    ("a reject with all of it", partial(reject, culprit=b"\1" + bytes(47)), "PDU 0x01"),
    ("a login response", partial(raw, text=b"\x23" + bytes(47)), "opcode"),
    ("an unknown opcode", partial(raw, text=b"\x3e" + bytes(47)), "opcode"),
    ("header segments", partial(raw, text=b"\x21\x80\0\0\2" + bytes(51)), "header segment"),
    ("a segment of 16 MiB", partial(raw, text=b"\x25\x81\0\0\0\xff\xff\xff" + bytes(40)), "above"),
]
# What answers a WRITE beyond the first burst.
WRITES = [
    ("data for a write", partial(data_in), "reads nothing"),
    ("an R2T for nothing", partial(r2t, desired_data_transfer_length=0), "for nothing"),
    ("an R2T above MaxBurstLength", partial(r2t, desired_data_transfer_length=1 << 24), "MaxBurst"),
    ("an R2T beyond the length", partial(r2t, buffer_offset=1 << 20), "beyond"),
    ("an R2T across the end", partial(r2t, buffer_offset=2 * BURST - 256), "beyond"),
    ("a wrong R2TSN", partial(r2t, r2t_sn=3), "R2TSN"),
    ("an R2T with data", partial(raw, text=b""), ""),
    ("an R2T for an unknown tag", partial(r2t, itt=0x99990000), "task tag"),
]
WRITES = [case for case in WRITES if case[2]]


def misbehave(disk, opcode, act):
    """Have the first command of this kind answered by `act`."""
    left = [True]

    def before(peer, header, data):
        if header.cdb_bytes[0] == opcode and left:
            left.pop()
            act(peer, header)
            peer.until_closed()
            raise ConnectionResetError
        return False

    disk.before = before


@pytest.mark.parametrize(("receive", "depth"), MODES)
@pytest.mark.parametrize(("act", "said"), [c[1:] for c in READS], ids=[c[0] for c in READS])
def test_a_read_answered_wrongly(engine, receive, depth, act, said):
    disk = Disk()
    options = moved_by(receive, depth)
    with mock_target(disk.serve) as url:
        misbehave(disk, 0x28, act)
        device = iscsi.open(url, engine, recovery=NEVER, **options)
        if act is twice:
            device.read(0, 1)
        with pytest.raises(RemoteProtocolError, match=said):
            device.read(0, 1)
        device.close()
        misbehave(disk, 0x28, act)
        with iscsi.open(url, engine, recovery=QUICK, **options) as device:
            device.write(0, GOOD)
            for _ in range(2):
                assert device.read(0, 1) == GOOD
            assert device.recoveries == 1


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("act", "said"), [c[1:] for c in WRITES], ids=[c[0] for c in WRITES])
def test_a_write_answered_wrongly(engine, placement, act, said):
    disk = Disk()
    with mock_target(disk.serve) as url:
        misbehave(disk, 0x2A, act)
        device = iscsi.open(url, engine, recovery=NEVER, placement=placement)
        with pytest.raises(RemoteProtocolError, match=said):
            device.write(0, bytes(2 * BLOCK))
        device.close()
        misbehave(disk, 0x2A, act)
        with iscsi.open(url, engine, recovery=QUICK, placement=placement) as device:
            device.write(0, b"good" * 256)
            assert device.read(0, 2) == b"good" * 256
            assert device.recoveries == 1


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_r2t_too_many_ends_the_connection(engine, placement):
    """Of a write above FirstBurstLength, with one R2T agreed on."""
    disk = Disk()
    with mock_target(disk.serve) as url:
        disk.before = lambda peer, header, data: (
            header.cdb_bytes[0] == 0x2A and (r2ts(peer, header), peer.until_closed()) != ()
        )
        options = {"placement": placement, "command_bytes": 1 << 20}
        device = iscsi.open(url, engine, recovery=NEVER, **options)
        with pytest.raises(RemoteProtocolError, match=r"MaxOutstandingR2T|asked for before"):
            device.write(0, bytes(4 * BURST))
        device.close()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_max_cmd_sn_that_goes_back_changes_nothing(engine, placement):
    disk = Disk()

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x28:
            numbers = {"exp_cmd_sn": header.cmd_sn - 5, "max_cmd_sn": header.cmd_sn - 3}
            peer.send_data(header, bytes(header.expected_data_transfer_length), **numbers)
            return True
        return False

    disk.before = before
    with (
        mock_target(disk.serve) as url,
        iscsi.open(url, engine, recovery=NEVER, placement=placement) as device,
    ):
        for _ in range(20):
            assert device.read(0, 1) == bytes(BLOCK)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_sense_data_of_the_longest_kind_is_cut_and_not_feared(engine, placement):
    disk = Disk()
    sense = b"\x70\0\x03" + bytes(9) + b"\x11\0" + bytes(500)

    def before(peer, header, data):
        if header.cdb_bytes[0] == 0x28:
            response(peer, header, len(sense).to_bytes(2, "big") + sense, status=2)
            return True
        return False

    disk.before = before
    with (
        mock_target(disk.serve) as url,
        iscsi.open(url, engine, recovery=NEVER, placement=placement) as device,
        pytest.raises(iscsi.SCSIError, match="MEDIUM ERROR"),
    ):
        device.read(0, 1)


# --- discovery -------------------------------------------------------------------------------


def answer_text(pieces):
    def script(peer):
        peer.log_in()
        left = list(pieces)
        while left:
            header, _ = peer.read_pdu()
            piece, more = left.pop(0), bool(left)
            peer.send(
                Opcode.TEXT_RESPONSE, piece, to=header, final=int(not more), continued=int(more),
                ttt=5 if more else bhs.RESERVED_TAG, exp_cmd_sn=header.cmd_sn,
            )  # fmt: skip
        peer.answer(peer.read_pdu()[0])

    return script


def test_ten_thousand_targets_are_listed(engine):
    names = [f"iqn.2026-01.org.example:disk{n:05}" for n in range(10_000)]
    text = discovery.build_response([discovery.DiscoveredTarget(name) for name in names])
    pieces = [text[at : at + 8000] for at in range(0, len(text), 8000)]
    with mock_target(answer_text(pieces)) as url:
        found = discover(url.rsplit("/", 2)[0], engine)
    assert [target.name for target in found] == names


@pytest.mark.parametrize(
    "name", [b"iqn.2026-01.org.example:\x1b[2J", b"iqn.2026-01.org.example:a\nb", b"iqn.x:\x07"]
)
def test_target_names_with_control_characters_are_refused(engine, name):
    with (
        mock_target(answer_text([b"TargetName=" + name + b"\0"])) as url,
        pytest.raises(RemoteProtocolError) as caught,
    ):
        discover(url.rsplit("/", 2)[0], engine)
    assert "\x1b" not in str(caught.value)
    assert "\x07" not in str(caught.value)


def test_a_list_of_targets_without_end_is_given_up(engine):
    def script(peer):
        peer.log_in()
        while True:
            header, _ = peer.read_pdu()
            if header.opcode is not Opcode.TEXT_REQUEST:
                peer.answer(header)
                continue
            piece = b"TargetName=iqn.2026-01.org.example:again\0" * 150
            peer.send(
                Opcode.TEXT_RESPONSE, piece, to=header, final=0, continued=1, ttt=5,
                exp_cmd_sn=header.cmd_sn,
            )  # fmt: skip

    with (
        mock_target(script) as url,
        pytest.raises((RemoteProtocolError, ConnectionLost)),
    ):
        discover(url.rsplit("/", 2)[0], engine)
