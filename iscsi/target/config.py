"""What bounds a target server: every number that a peer could otherwise drive up."""

from dataclasses import dataclass, field, replace
from typing import Final

from iscsi.target.access import AccessPolicy
from iscsi.target.buffers import DEFAULT_SIZES
from iscsi.target.placement import DATAMOVER, STREAM, check_placement
from iscsi.target.units import Target
from iscsi.wire.keys import DIGEST_CRC32C, DIGEST_NONE, Proposal, SessionParams
from iscsi.wire.names import DEFAULT_PORT, Portal
from iscsi.wire.port import PortLimits
from iscsi.wire.target_block import TargetLimits
from iscsi.wire.target_task import IMMEDIATE_RESERVE

WINDOW: Final = 64
TX_ENTRIES: Final = 32
CONTROL_DATA: Final = 1024
COLD_DATA_MIN: Final = 1024
UNASKED_LENGTH: Final = 16384
ENGINES_MAX: Final = 1024
_LARGE_STAGING_CONNECTIONS: Final = 16
_DIGESTS: Final = (DIGEST_NONE, DIGEST_CRC32C)


@dataclass(frozen=True, slots=True)
class ServedPortal:
    """Where to listen, and the address by which clients behind a translation reach it, whose port
    0 means the port it listens on. The portal's group tag is that of both.
    """

    portal: Portal
    advertise: Portal | None = None
    rdma: bool = False  # iSER: connections are RDMA from their first byte


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`portals`: where to listen, port 0 for any; one may have a portal group tag of its own.
    `advertise`: what SendTargets names instead of all portals. Raises ValueError.
    """

    targets: tuple[Target, ...]
    portals: tuple[Portal | ServedPortal, ...] = (Portal("127.0.0.1", DEFAULT_PORT),)
    advertise: tuple[Portal, ...] = ()
    max_connections: int = 256
    max_logins: int = 64
    login_timeout_s: float = 15.0
    linger_s: float = 1.0
    # A NOP-In asks an initiator that was silent for the first, and has to come alive within the
    # second; 0: never. (Some sit idle without looking at their socket: do not ask those.)
    nop_interval_s: float = 0.0
    nop_timeout_s: float = 15.0
    # How long a command may wait for written data of which none comes, however lively its initiator
    # is otherwise: then the connection ends, so that others get its buffers. 0: for ever.
    data_timeout_s: float = 30.0
    window: int = WINDOW
    staging_size: int = 256 * 1024  # of each of a connection's two receive areas
    staging_size_crowded: int = 32 * 1024  # the same, once many are connected
    data_buffers: tuple[tuple[int, int], ...] = DEFAULT_SIZES  # bytes and count of each kind
    file_workers: int = 4  # threads that wait for files
    slow_workers: int = 4  # threads for commands that take long
    portal_group_tag: int = 1
    # Over RDMA: whether FPDUs have a CRC even where the initiator does not want it.
    mpa_crc: bool = True
    placement: str = STREAM  # what of a connection the engine does: `iscsi.target.placement`
    engines: int = 0  # over how many of its process' engines connections spread; 0: over all
    access: AccessPolicy = field(default_factory=AccessPolicy)
    proposal: Proposal = field(
        default_factory=lambda: Proposal(
            SessionParams(
                initial_r2t=False,
                first_burst_length=262144,
                max_outstanding_r2t=8,
                # A new login may come at once: nothing of the old session has to end first.
                default_time2wait=0,
                iscsi_protocol_level=2,
            ),
            header_digest=_DIGESTS,
            data_digest=_DIGESTS,
        )
    )

    def __post_init__(self) -> None:
        if not self.portals:
            raise ValueError("a server needs a portal")
        check_placement(self.placement)
        if not 0 <= self.engines <= ENGINES_MAX:
            raise ValueError(f"engines {self.engines} is outside 0..{ENGINES_MAX}; 0 means all")
        if self.placement == STREAM and any(each.rdma for each in self.served):
            raise ValueError("a portal for iSER needs placement datamover or engine")
        for name in ("max_connections", "max_logins"):
            if not 1 <= getattr(self, name) <= 4096:
                raise ValueError(f"{name} {getattr(self, name)} is outside 1..4096")

    @property
    def served(self) -> tuple[ServedPortal, ...]:
        """The portals, each with what is advertised for it."""
        return tuple(
            found if isinstance(found, ServedPortal) else ServedPortal(found)
            for found in self.portals
        )

    @property
    def limits(self) -> TargetLimits:
        """Sizes of a connection's protocol memory."""
        units = max((len(target.units) for target in self.targets), default=0)
        port = PortLimits(TX_ENTRIES, self.window + IMMEDIATE_RESERVE, CONTROL_DATA)
        return TargetLimits(self.window, max(COLD_DATA_MIN, 8 + 8 * units), port)

    @property
    def engine_limits(self) -> TargetLimits:
        """The same for what a datamover keeps of a connection: it has to hold what comes unasked
        until this process sees it, or it has it sent again.
        """
        here = self.limits
        return replace(here, cold_length=max(here.cold_length, UNASKED_LENGTH))

    @property
    def offer(self) -> Proposal:
        """What logins are offered. A datamover without units of its own asks for what it wants."""
        session = self.proposal.session
        if self.placement != DATAMOVER or session.first_burst_length <= UNASKED_LENGTH:
            return self.proposal
        return replace(self.proposal, session=replace(session, first_burst_length=UNASKED_LENGTH))

    def staging(self, connections: int) -> int:
        """Bytes of one receive area when this many connections are there already."""
        few = connections < _LARGE_STAGING_CONNECTIONS
        return self.staging_size if few else min(self.staging_size, self.staging_size_crowded)

    @property
    def ring_capacity(self) -> int:
        """Event slots so that no stalled connection keeps others from posting."""
        each = 2 * TX_ENTRIES + 8
        wanted = 2 * (self.max_connections * each // 2 + 8 * self.max_logins)
        return int(min(max(1024, 1 << (wanted - 1).bit_length()), 1 << 15))
