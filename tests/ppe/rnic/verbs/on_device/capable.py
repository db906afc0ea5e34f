"""What only some devices can do: rxe has immediate data, atomics and memory windows, siw has the
invalidation of a peer's region. The same form as `scenarios`.
"""

import errno

from ppe.cycle.rnic.verbs import keys, records, send
from ppe.cycle.rnic.verbs.device import Window
from ppe.cycle.rnic.verbs.queues import Block
from shm import verbs_numbers as c
from shm.view import window as view
from tests.ppe.rnic.verbs.on_device.node import ALL, WAIT_S, Link, Memory, req_notify
from tests.ppe.rnic.verbs.on_device.scenarios import PORT, _peer


def immediate_data_comes_with_a_send_and_with_a_write(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        for opcode, told, length in (
            (c.WR_SEND_WITH_IMM, c.WC_RECV, 8),
            (c.WR_RDMA_WRITE_WITH_IMM, c.WC_RECV_RDMA_WITH_IMM, 8),
        ):
            right.receive(right.memory.piece(1024, 64))
            left.post(opcode, left.memory.piece(0, 8), imm=0xA1B2C3D4, **_peer(right))
            left.completion()
            found = right.completion()
            assert (found.opcode, found.imm, found.byte_len) == (told, 0xA1B2C3D4, length)
            assert found.flags == c.WC_WITH_IMM


def atomics_return_what_was_there(device, address):
    access = {"access": ALL | c.ACCESS_REMOTE_ATOMIC}
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        target = Memory(right.domain, 4096, **access)
        word, local = target.data[:8].view("<i8"), left.memory.data[:8].view("<i8")
        word[0] = 40
        peer = {"remote_addr": target.address, "rkey": target.rkey}
        left.post(c.WR_ATOMIC_FETCH_AND_ADD, left.memory.piece(0, 8), compare_add=2, **peer)
        assert left.completion().opcode == c.WC_FETCH_ADD
        assert (local[0], word[0]) == (40, 42)
        left.post(c.WR_ATOMIC_CMP_AND_SWP, left.memory.piece(0, 8), compare_add=42, swap=-1, **peer)
        assert left.completion().opcode == c.WC_COMP_SWAP
        assert (local[0], word[0]) == (42, -1)
        left.post(c.WR_ATOMIC_CMP_AND_SWP, left.memory.piece(0, 8), compare_add=0, swap=5, **peer)
        left.completion()
        assert (local[0], word[0]) == (-1, -1)
        target.region.close()


def a_send_invalidates_the_region_that_it_names(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        exported = Memory(right.domain, 4096)
        peer = {"remote_addr": exported.address, "rkey": exported.rkey}
        left.post(c.WR_RDMA_WRITE, left.memory.piece(0, 64), **peer)
        left.completion()
        right.receive(right.memory.piece(0, 64))
        left.post(c.WR_SEND_WITH_INV, left.memory.piece(0, 8), invalidate_rkey=exported.rkey)
        left.completion()
        right.completion()  # siw's user-space half does not tell which rkey it was
        left.post(c.WR_RDMA_READ, left.memory.piece(0, 64), **peer)
        (failed,) = left.completions(1)
        assert failed.status != c.WC_SUCCESS
        exported.region.close()
        return failed.status


class Exported:
    """A window over a part of a peer's region, known to the peer's queue pair."""

    def __init__(self, end):
        self.end, self.window = end, Window(end.domain)
        region = end.memory.region
        own = view(end.qp.address, 1, records.QP)[0]
        self._blocks = [Block(keys.keys_size(4)) for _ in range(2)]
        own["windows"], own["regions"] = (keys.build_keys(b.address, 4) for b in self._blocks)
        assert keys.enter(int(own["windows"]), self.window.rkey >> 8, self.window.pointer) == 0
        assert keys.enter(int(own["regions"]), region.lkey, region.pointer) == 0
        self.rkey = self.window.rkey

    def bind(self, start, length, access=c.ACCESS_REMOTE_WRITE | c.ACCESS_REMOTE_READ):
        end = self.end
        end.post(
            c.WR_BIND_MW,
            bind_window=self.rkey,
            bind_lkey=end.memory.lkey,
            bind_addr=end.memory.address + start,
            bind_length=length,
            bind_access=access,
        )
        assert end.completion().opcode == c.WC_BIND_MW
        self.rkey = send.next_rkey(self.rkey)

    def peer(self, start):
        return {"remote_addr": self.end.memory.address + start, "rkey": self.rkey}


ACCESS = ALL | c.ACCESS_MW_BIND


def _window_link(device, address):
    link = Link(device, address, PORT)
    for end in (link.left, link.right):
        end.memory.region.close()
        end.memory = Memory(end.domain, access=ACCESS)
    return link


def a_window_opens_a_part_of_a_region_until_it_is_invalidated(device, address):
    with _window_link(device, address) as link:
        left, right = link.left, link.right
        exported = Exported(right)
        exported.bind(4096, 8192)
        left.memory.data[:64] = 0x77
        left.post(c.WR_RDMA_WRITE, left.memory.piece(0, 64), **exported.peer(4096))
        left.completion()
        assert right.memory.bytes(4096, 64) == bytes([0x77]) * 64
        right.post(c.WR_LOCAL_INV, invalidate_rkey=exported.rkey)
        assert right.completion().opcode == c.WC_LOCAL_INV
        left.post(c.WR_RDMA_WRITE, left.memory.piece(0, 64), **exported.peer(4096))
        left.completion(c.WC_REM_ACCESS_ERR)
        exported.window.close()


def a_peer_cannot_write_to_a_window_that_is_for_reading(device, address):
    with _window_link(device, address) as link:
        left, right = link.left, link.right
        exported = Exported(right)
        exported.bind(4096, 8192, c.ACCESS_REMOTE_READ)
        left.memory.data[:64] = 0x77
        left.post(c.WR_RDMA_WRITE, left.memory.piece(0, 64), **exported.peer(4096))
        left.completion(c.WC_REM_ACCESS_ERR)
        assert right.memory.bytes(4096, 64) == bytes(64)
        exported.window.close()


def a_send_invalidates_the_window_that_it_names(device, address):
    with _window_link(device, address) as link:
        left, right = link.left, link.right
        exported = Exported(right)
        exported.bind(0, 4096)
        right.receive(right.memory.piece(8192, 64))
        left.post(c.WR_SEND_WITH_INV, left.memory.piece(0, 8), invalidate_rkey=exported.rkey)
        left.completion()
        right.completion()  # rxe of Linux 6.1 does not tell programs which rkey it was
        left.post(c.WR_RDMA_WRITE, left.memory.piece(0, 64), **exported.peer(0))
        left.completion(c.WC_REM_ACCESS_ERR)
        exported.window.close()


def a_window_of_an_unknown_index_is_refused(device, address):
    with _window_link(device, address) as link:
        exported = Exported(link.right)
        outcome = link.right.try_post(
            c.WR_BIND_MW, bind_window=exported.rkey ^ 0x5500, bind_lkey=link.right.memory.lkey
        )
        assert outcome == -errno.ENOENT
        exported.window.close()


def a_solicited_event_comes_for_a_solicited_send_alone(device, address):
    with Link(device, address, PORT) as link:
        left, right = link.left, link.right
        for _ in range(2):
            right.receive(right.memory.piece(0, 64))
        assert req_notify(right.cq.address, 1) == 0
        left.post(c.WR_SEND, left.memory.piece(0, 4))
        right.completion()
        assert not right.cq.wait_event(0.3)
        left.post(c.WR_SEND, left.memory.piece(0, 4), flags=c.SEND_SIGNALED | c.SEND_SOLICITED)
        assert right.cq.wait_event(WAIT_S)
        right.completion()
