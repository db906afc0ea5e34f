"""What was a unit's memory is not sent any more once the unit is removed."""

import contextlib
import threading

from iscsi.target.units import RamDisk
from iscsi.wire import bhs, scsi
from iscsi.wire.bhs import Opcode
from iscsi.wire.sense import Asc
from tests.iscsi.target.serving import BLOCK, BLOCKS, NAME, TWO, Serving
from tests.iscsi.target.test_server import sense_code

PLACEMENTS = TWO


def test_memory_of_a_removed_unit_is_not_sent_any_more():
    """A reader that is slow has not got all of it yet when somebody else may get the memory."""
    with Serving() as serving:
        buffer = serving.server.call(lambda: serving.engine.alloc(BLOCK * BLOCKS))
        buffer.array[:] = 0x11
        serving.server.add_unit(NAME, 7, RamDisk(buffer))
        with serving.log_in() as raw:
            raw.clear_attention(7)
            for _ in range(8):
                raw.command(scsi.read_16(0, BLOCKS), lun=7, length=BLOCK * BLOCKS, read=1)
            assert raw.take()[0].opcode is Opcode.DATA_IN
            serving.server.remove_unit(NAME, 7)
            buffer.array[:] = 0x77  # what another one keeps there now
            seen = bytearray()
            raw.socket.settimeout(1)
            with contextlib.suppress(TimeoutError, ConnectionError):
                while piece := raw.socket.recv(1 << 20):
                    seen += piece
        assert b"\x77" * 64 not in seen
        with serving.log_in() as raw:
            assert len(raw.clear_attention().read(0, 1)) == BLOCK


def test_a_removal_leaves_sessions_alone_that_have_got_what_they_read(placement):
    with Serving() as serving:
        buffer = serving.server.call(lambda: serving.engine.alloc(BLOCK * 64))
        serving.server.add_unit(NAME, 7, RamDisk(buffer))
        with serving.log_in() as raw:
            raw.clear_attention(7).clear_attention(0)
            raw.read(0, 8, lun=7)
            thread = threading.Thread(target=serving.server.remove_unit, args=(NAME, 7))
            thread.start()
            if placement == "stream":  # A datamover says how much it has sent.
                ping, _ = raw.take()
                assert ping.opcode is Opcode.NOP_IN
                answer = {"itt": bhs.RESERVED_TAG, "ttt": ping.ttt, "lun": ping.lun}
                raw.give(Opcode.NOP_OUT, immediate=1, **answer)
            thread.join(60)
            assert not thread.is_alive()
            raw.command(scsi.test_unit_ready())
            assert sense_code(*raw.take()) == Asc.REPORTED_LUNS_CHANGED
            assert len(raw.read(0, 1)) == BLOCK
