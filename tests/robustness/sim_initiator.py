"""The initiator's side of the simulator: a session that recovers by the rules of `iscsi.session`
(`replay`), with the schedule in place of its clock and its engine.
"""

import errno

from iscsi.session.replay import Ordering
from iscsi.wire import bhs, scsi
from iscsi.wire import initiator as doors
from iscsi.wire.bhs import Opcode, TaskFunction, TaskFunctionResponse
from iscsi.wire.initiator import InitiatorConnection, InitiatorLimits
from iscsi.wire.initiator_task import initiator_at
from iscsi.wire.login import InitiatorLogin
from iscsi.wire.port import PortLimits
from tests.robustness.links import Link, Transmitter
from tests.robustness.medium_model import Wrong

LIMITS = InitiatorLimits(task_count=24, port=PortLimits(16, 24, 2048))
COMMAND_NS = 30 * 10**9
LOGIN_NS = 10 * 10**9
PAUSE_NS = 10**8
ENDED = (TaskFunctionResponse.COMPLETE, TaskFunctionResponse.TASK_DOES_NOT_EXIST)


class SimInitiator:
    """One session. `queue` holds what was not sent, in order; `open` what has no answer."""

    def __init__(self, name, target_name, isid, memory, *, proposal, cmd_sn):
        self.name, self.target_name, self.isid = name, target_name, isid
        self.memory, self.proposal, self.cmd_sn = memory, proposal, cmd_sn
        self.queue, self.open = [], {}
        self.ordering = Ordering()
        self.link = self.login = self.wire = self.block = self.transmitter = None
        self.input = bytearray()
        self.not_before_ns = self.since_ns = 0
        self.managing = None  # the task management that waits for its answer
        self.leaving = self.has_digests = False
        self.was_reset = False  # at some time by another, which ends commands in silence
        self.logins = self.replayed = self.done = 0

    @property
    def is_idle(self):
        return not self.queue and not self.open

    @property
    def is_full(self):
        return self.wire is not None

    # --- the connection --------------------------------------------------------------------

    def connect(self, now_ns):
        """Begin a login; the link to hand to the target."""
        self.link, self.since_ns = Link(), now_ns
        self.input.clear()
        self.login = InitiatorLogin(
            self.name,
            self.target_name,
            isid=self.isid,
            proposal=self.proposal,
            cmd_sn=self.cmd_sn,
        )
        self.login.start()
        return self.link

    def lose(self, now_ns):
        """The connection is over: what may be sent again waits for the next one."""
        if self.link is not None:
            self.link.cut(far=False)
        self.link = self.login = self.transmitter = None
        self.managing, self.leaving = None, False
        self.not_before_ns = now_ns + PAUSE_NS
        if self.wire is None:
            return
        self.wire.fail_all(-errno.ECONNRESET)
        for completion in self.wire.completions():
            self._completed(completion)
        assert not self.open, f"{self.name}: without completion: {list(self.open)}"
        self.block.free()
        self.wire = self.block = None

    def send(self, limit):
        """Move bytes to the link. How many."""
        if self.link is None or not self.link.near_open:
            return 0
        if self.login is not None:
            data = self.login.data_to_send()
        else:
            self.transmitter.post()
            data = self.transmitter.send(limit)
        if self.link.far_open:
            self.link.up += data
        return len(data)

    def receive(self, data, now_ns):
        """Bytes from the link. Raises ProtocolError for what the target must not send."""
        if self.login is None:
            self.wire.receive(data)
            return
        self.input += data
        while self.login is not None and len(self.input) >= bhs.BHS_LENGTH:
            header = bytes(self.input[: bhs.BHS_LENGTH])
            length = bhs.BHS_LENGTH + self.login.segment_length(header)
            if len(self.input) < length:
                return
            body = bytes(self.input[bhs.BHS_LENGTH : length])
            del self.input[:length]
            self.login.receive_pdu(header, body)
            if self.login.done:
                self._enter()

    def _enter(self):
        result = self.login.result
        self.block = self.memory.alloc(InitiatorConnection.size(result, LIMITS))
        self.wire = InitiatorConnection(self.block.address, result, LIMITS)
        self.transmitter = Transmitter(doors, self.wire.address)
        self.login = None
        self.has_digests = result.connection.header_digest and result.connection.data_digest
        self.logins += 1
        if self.input:
            self.wire.receive(bytes(self.input))

    # --- commands --------------------------------------------------------------------------

    def add(self, operation):
        """Take an operation; its place among the changes is that of this call."""
        extent = operation.extent()
        operation.turn = None if extent is None else self.ordering.enter(extent)
        self.queue.append(operation)

    def submit(self, now_ns):
        """Send what may go, in order, as far as the window allows."""
        if self.wire is None or self.leaving or self.managing:
            return
        for operation in list(self.queue):
            if operation.turn is not None and operation.turn.is_blocked:
                continue
            if not operation.begun:
                operation.begin()
                operation.begun = True
            cmd_sn = int(initiator_at(self.wire.address)[0]["cmd_sn"])
            itt = self.wire.submit(
                0,
                operation.cdb,
                operation.flags,
                operation.length,
                operation.address,
                operation.number,
            )
            if itt is None:
                return
            operation.itt, operation.cmd_sn, operation.sent_ns = itt, cmd_sn, now_ns
            self.queue.remove(operation)
            self.open[operation.number] = operation

    def reap(self):
        """Take completions and control PDUs. True if the connection is to end."""
        if self.wire is None:
            return False
        for completion in self.wire.completions():
            self._completed(completion)
        return any([self._control(pdu.header) for pdu in self.wire.controls()])

    def _completed(self, completion):
        operation = self.open.pop(completion.user_data, None)
        if operation is None:
            return
        if completion.result == 0:
            again = completion.response != 0 or operation.end(completion)
        elif completion.result == -errno.ECONNRESET and operation.is_replayable:
            again = True
            self.replayed += 1
        else:
            operation.give_up()
            again = False
        if again:
            self.queue.append(operation)
            self.queue.sort(key=lambda each: each.number)
            return
        self.done += 1
        if operation.turn is not None:
            self.ordering.leave(operation.turn)

    def _control(self, header):
        if header.opcode is Opcode.TASK_MANAGEMENT_RESPONSE and self.managing:
            self._managed(header)
        elif header.opcode is Opcode.LOGOUT_RESPONSE or header.opcode is Opcode.ASYNC_MESSAGE:
            return True
        elif header.opcode is Opcode.REJECT:
            return header.reject_reason not in (0x02,)  # a damaged PDU of ours: it is over with
        return False

    # --- asking for more -------------------------------------------------------------------

    def manage(self, function, now_ns, operation=None):
        """ABORT TASK of an open operation, or LOGICAL UNIT RESET."""
        fields = {"function": int(function), "immediate": 1, "itt": bhs.RESERVED_TAG}
        fields["lun"] = scsi.encode_lun(0)
        if operation is not None:
            fields |= {"referenced_task_tag": operation.itt, "ref_cmd_sn": operation.cmd_sn}
        itt = self.wire.send_control(bhs.encode(Opcode.TASK_MANAGEMENT_REQUEST, **fields))
        if itt is not None:
            self.managing = (itt, function, operation, list(self.open.values()))
            self.since_ns = now_ns

    def _managed(self, header):
        itt, function, operation, before = self.managing
        if header.itt != itt:
            return
        self.managing = None
        if function is TaskFunction.ABORT_TASK:
            is_open = self.open.get(operation.number) is operation
            gone = header.response == TaskFunctionResponse.TASK_DOES_NOT_EXIST
            if gone and is_open and not self.was_reset:
                raise Wrong(f"{operation} does not exist for the target and has no answer")
            before = [operation]
        if header.response in ENDED:
            for each in before:
                if self.open.get(each.number) is each:
                    self.wire.cancel(each.itt)

    def log_out(self, now_ns):
        """End the session in order, if nothing is open."""
        header = bhs.encode(
            Opcode.LOGOUT_REQUEST, logout_reason=0, immediate=1, itt=bhs.RESERVED_TAG
        )
        if self.wire.send_control(header) is not None:
            self.leaving, self.since_ns = True, now_ns

    def is_late(self, now_ns):
        """Whether it has waited for longer than it ever should."""
        if self.login is not None:
            return now_ns - self.since_ns > LOGIN_NS
        waiting = [each.sent_ns for each in self.open.values()]
        if self.managing or self.leaving:
            waiting.append(self.since_ns)
        return now_ns - min(waiting, default=now_ns) > COMMAND_NS
