"""What a completion calls the work request that ended, the same at every provider."""

from shm.jit import nopython
from shm.verbs_numbers import (
    WC_BIND_MW,
    WC_COMP_SWAP,
    WC_FETCH_ADD,
    WC_IMMEDIATE,
    WC_LOCAL_INV,
    WC_RDMA_READ,
    WC_RDMA_WRITE,
    WC_SEND,
    WC_SWAP,
    WR_ATOMIC_CMP_AND_SWP,
    WR_ATOMIC_FETCH_AND_ADD,
    WR_ATOMIC_SWAP,
    WR_BIND_MW,
    WR_IMMEDIATE,
    WR_LOCAL_INV,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_RDMA_WRITE_WITH_IMM,
)


@nopython
def completion_opcode(opcode: int) -> int:
    """What a completion calls a work request (enum ibv_wc_opcode)."""
    if opcode in (WR_RDMA_WRITE, WR_RDMA_WRITE_WITH_IMM):
        return WC_RDMA_WRITE
    if opcode == WR_RDMA_READ:
        return WC_RDMA_READ
    if opcode == WR_ATOMIC_CMP_AND_SWP:
        return WC_COMP_SWAP
    if opcode == WR_ATOMIC_FETCH_AND_ADD:
        return WC_FETCH_ADD
    if opcode == WR_ATOMIC_SWAP:
        return WC_SWAP
    if opcode == WR_LOCAL_INV:
        return WC_LOCAL_INV
    if opcode == WR_BIND_MW:
        return WC_BIND_MW
    return WC_IMMEDIATE if opcode == WR_IMMEDIATE else WC_SEND
