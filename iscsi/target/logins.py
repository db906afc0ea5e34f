"""How connections come: accepted, logged in one PDU at a time, judged, and taken to the full
feature phase. What logins may take is bounded, and the oldest one makes room.
"""

import logging
from dataclasses import replace
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from host.channel import Completion
from host.errors import EngineDied, EngineRefused, HostError
from host.memory import Buffer
from iscsi.target.connection import Connection, Phase
from iscsi.target.endings import Endings
from iscsi.target.keepalive import Keepalive
from iscsi.target.lanes import Lane
from iscsi.target.lending import Lending
from iscsi.target.overdue import Overdue
from iscsi.target.portals import Listening
from iscsi.target.server_core import (
    ACCEPT,
    KIND_BITS,
    LOGIN_BEGUN,
    LOGIN_DATA,
    LOGIN_HEADER,
    LOGIN_MEMORY,
    LOGIN_SEND,
    NO_MEMORY,
)
from iscsi.wire import bhs
from iscsi.wire.errors import LoginStatus, ProtocolError
from iscsi.wire.iser.build import REPLY_LENGTH
from iscsi.wire.keys import IserParams, SessionParams
from iscsi.wire.login import LoginIdentity, TargetLogin, TargetPolicy, refusal
from iscsi.wire.mover_spec import MoverSpec
from iscsi.wire.security import TargetSecurity
from iscsi.wire.sense import Asc

if TYPE_CHECKING:
    from iscsi.target.rdma import RdmaLogin

log: Final = logging.getLogger(__name__)


class Logins(Endings):
    """The part of the server that lets initiators in."""

    def _accept(self, place: int) -> None:
        data = place << KIND_BITS | ACCEPT
        listener = self._listening[place].listener
        lane = self._lanes.first
        lane.post(lambda: bool(lane.channel.post_accept(listener, data)))

    def _accepted(self, place: int, done: Completion) -> None:
        listening = self._listening.get(place)
        if listening is None:  # The portal is no more.
            if done.status == 0:
                self._drop_endpoint(self._lanes.first, done.endpoint)
            return
        self._accept(place)
        if done.status < 0:
            self.counts["accepts failed"] += 1
            return
        self.counts["accepted"] += 1
        lane, endpoint = self._lanes.first, done.endpoint
        try:
            lane, endpoint = self._place(endpoint)
            self._begin(listening, lane, endpoint, done.peer)
        except EngineDied:
            raise
        except EngineRefused as error:
            self.counts["moves failed"] += 1
            log.warning("a connection to %s was lost: %s", listening.portal, error)
            self._drop_endpoint(lane, endpoint)
        except Exception:
            self.counts["errors"] += 1
            log.exception("a connection to %s ended by an error of this program", listening.portal)
            self._drop_endpoint(lane, endpoint)

    def _place(self, endpoint: int) -> tuple[Lane, int]:
        """Have the engine with the fewest connections drive an accepted one: its lane, and its name
        there. Nothing was received from it yet. Raises EngineRefused.
        """
        first, lane = self._lanes.first, self._lanes.least_loaded()
        if lane is first:
            return first, endpoint
        return lane, int(self._engine.move(first.channel, endpoint, lane.channel))

    def _drop_endpoint(self, lane: Lane, endpoint: int) -> None:
        """Close an accepted endpoint, and forget the connection that was to be made of it."""
        connection = self._endpoints.get((lane, endpoint))
        if connection is None:
            lane.post(lambda: bool(lane.channel.post_close(endpoint, 0)))
        else:
            self._close(connection)

    def _begin(
        self, listening: Listening, lane: Lane, endpoint: int, peer: tuple[str, int]
    ) -> None:
        """Make a connection of an accepted endpoint, and wait for its first login PDU."""
        if len(self._logins) >= self.config.max_logins:
            self.counts["logins crowded out"] += 1
            self._close(next(iter(self._logins)))
        if not self._free_slots:
            # The slots of closing connections come back in a moment; this peer tries again.
            self._drop_endpoint(lane, endpoint)
            return
        deadline = monotonic_ns() + int(self.config.login_timeout_s * 1e9)
        connection = Connection(self._free_slots[-1], lane, endpoint, peer, deadline)
        connection.portal_group_tag = listening.tag
        self._slots[self._free_slots.pop()] = connection
        self._endpoints[lane, endpoint] = connection
        lane.connections += 1
        offer = self.config.offer
        if listening.is_rdma:
            none = ("None",)
            # Unsolicited Data-Outs would need receives for all that an initiator may send at once.
            session = replace(offer.session, initial_r2t=True)
            offer = replace(
                offer, session=session, header_digest=none, data_digest=none, iser=IserParams()
            )
        try:
            connection.begin_login(
                self._engine,
                TargetLogin(
                    self._policy(connection), proposal=offer, command_window=self.config.window
                ),
            )
            if listening.is_rdma:
                self._begin_rdma(connection)
        except NO_MEMORY as error:
            log.warning("%s: no memory for its login: %s", connection, error)
            self._close(connection)
            return
        self._logins[connection] = None
        first = connection.login_header if connection.rdma is None else connection.rdma.wanted
        self._receive_login(connection, LOGIN_HEADER, first)

    def _policy(self, connection: Connection) -> TargetPolicy:
        return TargetPolicy(
            self._targets.keys(),
            portal_group_tag=connection.portal_group_tag,
            authorize=partial(self._authorize, connection),
            join=self._join,
            admit=partial(self._admit, connection),
            new_tsih=self._new_tsih,
        )

    def _authorize(self, connection: Connection, identity: LoginIdentity) -> TargetSecurity:
        admission = self.access.authorize(identity, connection.peer[0])
        connection.read_only = admission.read_only
        return admission.security

    def _join(self, identity: LoginIdentity) -> SessionParams:
        """The session whose only connection a login replaces (RFC 7143 §6.3.4); others are
        refused, since a session has one connection.
        """
        name = identity.target_name or ""
        found = self._sessions.get((identity.initiator_name, identity.isid, name))
        if found is None or found.result is None or found.result.tsih != identity.tsih:
            raise refusal(LoginStatus.SESSION_DOES_NOT_EXIST)
        if found.result.cid != identity.cid:
            raise refusal(LoginStatus.TOO_MANY_CONNECTIONS)
        return found.result.session

    def _may_see(self, connection: Connection, target_name: str) -> bool:
        """Whether SendTargets tells this session of a target."""
        assert connection.result is not None, "it logged in"
        initiator = connection.result.initiator_name
        return self.access.is_visible(target_name, initiator, connection.peer[0])

    def _admit(self, connection: Connection, identity: LoginIdentity) -> None:
        """Reserve what the session will need, or refuse the login (RFC 7143 §11.13.5)."""
        name = identity.target_name
        target = None if name is None else self._targets.get(name)
        if name is not None and target is None:  # since the name was checked, a proof was made
            raise refusal(LoginStatus.TARGET_REMOVED, name)
        if self.draining:
            raise refusal(LoginStatus.SERVICE_UNAVAILABLE, "the target is being stopped")
        replaces = name is not None and (
            (identity.initiator_name, identity.isid, name) in self._sessions
        )
        is_full = self._reserved >= self.config.max_connections and not replaces
        if is_full and not self._crowd_out_discovery():
            self.counts["refused"] += 1
            raise refusal(LoginStatus.OUT_OF_RESOURCES, "too many connections")
        try:
            connection.reserve(self._engine, target, self._limits, moves=self._moves)
        except NO_MEMORY as error:
            self.counts["refused"] += 1
            raise refusal(LoginStatus.OUT_OF_RESOURCES, str(error)) from error
        self._reserved += 1
        if target is not None:
            target.portal_groups = self._portal_groups

    def _crowd_out_discovery(self) -> bool:
        """End the oldest discovery session, which has had its time: anybody may hold one, often
        without a proof, and those that hold many are not to keep others from their targets.
        """
        for connection in self._pumps.values():
            if connection.target is None and connection.phase is Phase.FULL:
                self.counts["discovery sessions crowded out"] += 1
                self._close(connection)
                return True
        return False

    def _portal_groups(self) -> set[int]:
        return {each.tag for each in self._listening.values()}

    def _new_tsih(self, identity: LoginIdentity) -> int:
        used = {found.result.tsih for found in self._sessions.values() if found.result}
        while True:
            self._tsih = self._tsih % 0xFFFF + 1
            if self._tsih not in used:
                return self._tsih

    # --- login -------------------------------------------------------------------------------

    def _receive_login(self, connection: Connection, kind: int, into: Any) -> None:
        data = connection.slot << KIND_BITS | kind
        lane, endpoint = connection.lane, connection.endpoint
        lane.post(lambda: bool(lane.channel.post_recv(endpoint, into, data, exact=True)))

    def _login_step(self, connection: Connection, kind: int, done: Completion) -> None:
        login = connection.login
        if login is None:
            return
        if connection.rdma is not None:
            self._rdma_step(connection, connection.rdma, kind, done)
            return
        if kind == LOGIN_SEND:
            self._login_sent(connection, login, done)
            return
        try:
            header = connection.login_header.tobytes()
            length = login.segment_length(header) if kind == LOGIN_HEADER else done.length
            if kind == LOGIN_HEADER and length:
                self._receive_login(connection, LOGIN_DATA, connection.login_data(length))
                return
            login.receive_pdu(header, connection.login_data(length).tobytes())
        except ProtocolError as error:
            self.counts["logins failed"] += 1
            log.info("%s: %s", connection, error)
        self._send_login(connection)

    def _send_login(self, connection: Connection) -> None:
        """Send the response; the last one only when the session it replaces is gone."""
        login = connection.login
        if login is None or connection.phase is not Phase.LOGIN:
            return
        key = connection.session_key
        if key is not None:
            before = self._sessions.get(key)
            if before is not None and before is not connection:
                self.counts["sessions reinstated"] += 1
                before.successors.append(connection)
                self._close(before)
                return
            self._sessions[key] = connection
        out = login.data_to_send()
        if not out:
            self._close(connection)
            return
        if connection.rdma is not None:
            self._send_rdma_login(connection, connection.rdma, out)
            return
        place = connection.login_output(out)
        data = connection.slot << KIND_BITS | LOGIN_SEND
        lane, endpoint = connection.lane, connection.endpoint
        lane.post(lambda: bool(lane.channel.post_send(endpoint, place, data)))

    # --- the same over RDMA ------------------------------------------------------------------

    def _begin_rdma(self, connection: Connection) -> None:
        from iscsi.target.rdma import RdmaLogin, RdmaService  # who has no iSER needs no verbs

        connection.is_rdma = True
        lane = connection.lane
        if lane not in self._rdma:
            config = self.config
            self._rdma[lane] = RdmaService(
                self._engine, lane.channel, config.window, crc=config.mpa_crc
            )
        seconds = self.config.login_timeout_s
        connection.rdma = RdmaLogin(self._rdma[lane], connection.endpoint, seconds)

    def _rdma_step(
        self, connection: Connection, rdma: "RdmaLogin", kind: int, done: Completion
    ) -> None:
        login, lane = connection.login, connection.lane
        assert login is not None, "the caller looked"
        try:
            if kind == LOGIN_HEADER:
                reply = rdma.request()
                if reply is None:
                    self._receive_login(connection, LOGIN_HEADER, rdma.wanted)
                    return
                data = connection.slot << KIND_BITS | LOGIN_SEND
                endpoint = connection.endpoint
                lane.post(lambda: bool(lane.channel.post_send(endpoint, reply, data)))
            elif kind == LOGIN_SEND and not rdma.lkey:
                data = connection.slot << KIND_BITS | LOGIN_MEMORY
                lane.post(lambda: rdma.make_queue_pair(data))
            elif kind == LOGIN_SEND and login.failed:
                self._shut(connection)
            elif kind == LOGIN_DATA:
                try:
                    login.receive_pdu(*rdma.received(done.length))
                except ProtocolError as error:
                    self.counts["logins failed"] += 1
                    log.info("%s: %s", connection, error)
                self._send_login(connection)
        except (ConnectionError, HostError) as error:
            self.counts["logins failed"] += 1
            log.info("%s: %s", connection, error)
            self._close(connection)

    def _memory_ready(self, connection: Connection, done: Completion) -> None:
        """The memory of a login over RDMA is registered: full operation begins."""
        rdma = connection.rdma
        if rdma is None or connection.phase is not Phase.LOGIN:
            return
        if done.status < 0:
            self._close(connection)
            return
        receive = connection.slot << KIND_BITS | LOGIN_DATA
        begun = connection.slot << KIND_BITS | LOGIN_BEGUN
        connection.lane.post(lambda: rdma.begin(done, receive, begun))

    def _send_rdma_login(self, connection: Connection, rdma: "RdmaLogin", out: bytes) -> None:
        """Send the response in a Send. The last one goes out behind the receives of the full
        feature phase, which the engine posts when it takes the connection over.
        """
        login = connection.login
        assert login is not None, "it has something to send"
        if not login.done:
            receive = connection.slot << KIND_BITS | LOGIN_DATA
            data = connection.slot << KIND_BITS | LOGIN_SEND
            if not login.failed:
                connection.lane.post(lambda: rdma.post_receive(receive))
            connection.lane.post(lambda: rdma.post_send(out, data))
            return
        self._enter(connection, 0)
        if connection.phase is Phase.FULL and connection.protocol is not None:
            length = bhs.data_segment_length(out)
            data_segment = out[bhs.BHS_LENGTH : bhs.BHS_LENGTH + length]
            connection.protocol.send_control(out[: bhs.BHS_LENGTH], data_segment)
            port = connection.port
            longest = int(port["peer_max_recv_data_segment_length"])
            port["peer_max_recv_data_segment_length"] = min(longest, REPLY_LENGTH)
            self._touch(connection)

    def _login_sent(self, connection: Connection, login: TargetLogin, done: Completion) -> None:
        if login.failed:
            self._shut(connection)
        elif not login.done:
            self._receive_login(connection, LOGIN_HEADER, connection.login_header)
        else:
            self._enter(connection, done.arg0)

    def _enter(self, connection: Connection, base: int) -> None:
        """From login to the full feature phase."""
        staging = self.config.staging(len(self._pumps))
        try:
            if connection.lane.lending is None:
                connection.enter(self._engine, self._limits, staging, base, self.buffers)
            else:
                self._enter_mover(connection, connection.lane.lending)
        except NO_MEMORY as error:
            log.warning("%s: no memory for its session: %s", connection, error)
            self._close(connection)
            return
        connection.keepalive = Keepalive(
            int(self.config.nop_interval_s * 1e9), int(self.config.nop_timeout_s * 1e9)
        )
        connection.overdue = Overdue(int(self.config.data_timeout_s * 1e9))
        connection.nexus.wake = partial(self._touch, connection)
        self.counts["logged in"] += 1
        self._logins.pop(connection, None)
        self._pumps[connection.pump_address] = connection
        if connection.lane.lending is not None:
            connection.lane.lending.know(connection.endpoint, connection.pump_address)
        for lun in connection.target.units if connection.target else ():
            connection.nexus.raise_attention(lun, Asc.POWER_ON_RESET)
        self._touch(connection)

    def _enter_mover(self, connection: Connection, lending: Lending) -> None:
        """The same, where the engine takes the connection over. Raises HostError if it does not."""
        units = None if connection.target is None else connection.target.engine
        channel = connection.lane.channel
        table = units.table_at(connection.lane) if units is not None else 0

        def hand_over(spec: MoverSpec, block: Buffer, words: int) -> None:
            region, offset = channel.name_memory(block.address, len(block))
            self._engine.enable_mover(
                channel,
                connection.endpoint,
                spec.to_message(),
                home=[region, offset, len(block)],
                words=words,
                pool=lending.pool,
                table=table,
            )

        connection.enter_mover(
            self._limits,
            self.config.engine_limits,
            self.buffers,
            hand_over,
            serves_units=table != 0,
        )
