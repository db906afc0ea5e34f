"""Changes while a server serves: targets, units, sizes, portals, draining; and what it tells."""

import errno
import threading

import pytest

from iscsi.target.backends import FileBackend, NullBackend
from iscsi.target.config import ServedPortal, ServerConfig
from iscsi.target.storage import store_at
from iscsi.target.thresholds import USED, warning
from iscsi.target.units import LogicalUnit, RamDisk, Target
from iscsi.wire import discovery, scsi, text
from iscsi.wire.bhs import Opcode
from iscsi.wire.errors import LoginRejected, LoginStatus
from iscsi.wire.names import Portal
from tests.iscsi.target.serving import NAME, OTHER, TWO, Raw, ServerThread, wait_until

PLACEMENTS = TWO

SIZE = 1 << 20
BLOCK = 512
MORE = "iqn.2026-01.org.example:more"
CHECK_CONDITION = 2


class Live(ServerThread):
    """A server with one null unit, in a thread; the test is the operator."""

    def configure(self, engine):
        options = {"portals": (Portal("127.0.0.1", 0),), **self._options}
        return ServerConfig((Target(NAME, {0: LogicalUnit(NullBackend(SIZE))}),), **options)

    def log_in(self, port=None, **options):
        return Raw(port or self.port).log_in(**options)


@pytest.fixture
def live():
    with Live() as made:
        yield made


def sense_of(raw, lun=0):
    """Additional sense code of the unit attention that waits, or None."""
    raw.command(scsi.test_unit_ready(), lun=lun)
    header, sense = raw.take()
    return int.from_bytes(sense[14:16], "big") if header.status == CHECK_CONDITION else None


def discover(port):
    with Raw(port) as raw:
        raw.log_in(target=None)
        raw.request(Opcode.TEXT_REQUEST, text.encode([("SendTargets", "All")]), ttt=0xFFFFFFFF)
        _, data = raw.take()
        return {
            found.name: [str(portal) for portal in found.portals]
            for found in discovery.parse_response(data)
        }


def test_a_target_added_is_found_and_used(live):
    live.server.add_target(Target(MORE, {3: LogicalUnit(NullBackend(SIZE))}))
    assert set(discover(live.port)) == {NAME, MORE}
    with live.log_in(target=MORE) as raw:
        raw.clear_attention(3)
        assert raw.read(0, 8, lun=3) == bytes(4096)
    with pytest.raises(ValueError, match="already"):
        live.server.add_target(Target(MORE, {}))


def test_a_target_removed_asks_its_sessions_to_leave_and_ends_them(live):
    with live.log_in() as polite, live.log_in(isid=5) as deaf:
        done = []
        thread = threading.Thread(
            target=lambda: done.append(live.server.remove_target(NAME, timeout_s=2))
        )
        thread.start()
        header, _ = polite.take()
        assert header.opcode is Opcode.ASYNC_MESSAGE
        assert (header.async_event, header.parameter3) == (1, 2)
        polite.log_out()
        assert deaf.is_closed()
        thread.join(60)
        assert done[0].name == NAME
    assert discover(live.port) == {}
    with pytest.raises(KeyError):
        live.server.remove_target(NAME)


def test_a_unit_added_is_announced_and_served(live, tmp_path):
    with live.log_in() as raw:
        raw.clear_attention()
        backend = FileBackend(tmp_path / "disk", size=SIZE)
        live.server.add_unit(NAME, 7, LogicalUnit(backend))
        assert sense_of(raw) == 0x3F0E
        raw.clear_attention(7)
        raw.write(0, bytes(4096), lun=7)
        assert raw.read(0, 8, lun=7) == bytes(4096)
        with pytest.raises(ValueError, match="taken"):
            live.server.add_unit(NAME, 7, LogicalUnit(NullBackend(SIZE)))
        assert live.server.remove_unit(NAME, 7).backend is backend
        backend.close()
        raw.command(scsi.test_unit_ready(), lun=7)
        header, sense = raw.take()
        assert header.status == CHECK_CONDITION
        assert sense[14:16] == b"\x25\0"
    with pytest.raises(KeyError):
        live.server.remove_unit(NAME, 7)


def test_a_unit_that_grew_is_announced_and_has_its_new_blocks(live, tmp_path):
    backend = FileBackend(tmp_path / "disk", size=SIZE, thin=True)
    live.server.add_unit(NAME, 1, LogicalUnit(backend))
    with live.log_in() as raw:
        raw.clear_attention(1)
        live.server.resize_unit(NAME, 1, 2 * SIZE)
        assert sense_of(raw, 1) == 0x2A09
        assert raw.read(SIZE // BLOCK, 8, lun=1) == bytes(4096)
    with pytest.raises(ValueError, match="blocks"):
        live.server.resize_unit(NAME, 1, 1000)
    live.server.remove_unit(NAME, 1)
    backend.close()


def test_a_unit_is_cut_off_only_when_no_worker_is_busy_with_it(live, tmp_path):
    backend = FileBackend(tmp_path / "disk", size=SIZE)
    live.server.add_unit(NAME, 1, LogicalUnit(backend))
    jobs = backend.medium._record["jobs"]

    def change_jobs(by):
        jobs[0] += by
        store_at(live.server._files.address)[0]["at_rest"] = 1

    live.server.call(lambda: change_jobs(1))
    thread = threading.Thread(target=lambda: live.server.resize_unit(NAME, 1, SIZE // 2))
    thread.start()
    wait_until("it holds the medium", lambda: backend.medium._record["held"][0] == 1)
    assert backend.size == SIZE
    live.server.call(lambda: change_jobs(-1))
    thread.join(60)
    assert backend.size == SIZE // 2
    assert (tmp_path / "disk").stat().st_size == SIZE // 2
    live.server.remove_unit(NAME, 1)
    backend.close()


def test_a_portal_added_is_listened_on_and_a_removed_one_is_not(live):
    _, port = live.server.add_portal(Portal("127.0.0.1", 0, 9))
    with live.log_in(port) as raw:
        assert raw.result.target_portal_group_tag == 9
        assert f"127.0.0.1:{port},9" in discover(port)[NAME]
        live.server.remove_portal("127.0.0.1", port)
        raw.clear_attention()
        wait_until("the listener is closed", lambda: _refuses(port))
        assert raw.read(0, 8) == bytes(4096)
    assert discover(live.port) == {NAME: [f"127.0.0.1:{live.port},1"]}
    with pytest.raises(KeyError):
        live.server.remove_portal("127.0.0.1", port)


def _refuses(port):
    try:
        Raw(port).socket.close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_portal_that_is_taken_says_which(live):
    with pytest.raises(OSError, match=f"127.0.0.1:{live.port}: another server") as caught:
        live.server.add_portal(Portal("127.0.0.1", live.port))
    assert caught.value.errno == errno.EADDRINUSE


def test_discovery_tells_what_each_portal_advertises():
    portals = (
        ServedPortal(Portal("127.0.0.1", 0, 2), Portal("192.0.2.1", 3333)),
        ServedPortal(Portal("127.0.0.1", 0), Portal("198.51.100.7", 0)),
        Portal("127.0.0.1", 0),
    )
    with Live(portals=portals) as live:
        _, second, third = (port for _, port in live.server.bound)
        assert discover(live.port)[NAME] == [
            "192.0.2.1:3333,2",
            f"198.51.100.7:{second},1",
            f"127.0.0.1:{third},1",
        ]


def test_a_draining_server_lets_nobody_in_and_everybody_out(live):
    with live.log_in() as raw:
        done = []
        thread = threading.Thread(target=lambda: done.append(live.server.drain(timeout_s=20)))
        thread.start()
        assert raw.take()[0].opcode is Opcode.ASYNC_MESSAGE
        with Raw(live.port) as late, pytest.raises(LoginRejected) as caught:
            late.log_in(isid=9)
        assert caught.value.status == LoginStatus.SERVICE_UNAVAILABLE
        raw.log_out()
        raw.socket.close()
        thread.join(60)
        assert done == [True]


def test_statistics_tell_sessions_and_units_by_number(live):
    with live.log_in() as raw:
        raw.clear_attention()
        raw.read(0, 8)
        raw.read(8, 16)
        raw.write(0, bytes(512))
        found = live.server.statistics()
        (session,) = found["sessions"]
        assert session["initiator"].startswith("iqn.")
        assert session["target"] == NAME
        assert session["commands"] == 4
        (unit,) = found["targets"][0]["units"]
        counted = {name: unit[name] for name in ("reads", "writes", "read_bytes", "written_bytes")}
        assert counted == {"reads": 2, "writes": 1, "read_bytes": 24 * 512, "written_bytes": 512}
        assert found["portals"] == [{"host": "127.0.0.1", "port": live.port, "tag": 1}]
        assert found["targets"][0]["sessions"] == 1


def test_another_target_is_not_touched_by_a_removal(live):
    live.server.add_target(Target(OTHER, {0: LogicalUnit(NullBackend(SIZE))}))
    with live.log_in(target=OTHER) as raw:
        raw.clear_attention()
        live.server.remove_target(NAME, timeout_s=1)
        assert raw.read(0, 8) == bytes(4096)


def test_limits_and_what_is_advertised_change_for_what_comes_next(live):
    with live.log_in() as before:
        before.clear_attention()
        live.server.set_limits(max_connections=1, advertise=(Portal("192.0.2.7", 3260),))
        with Raw(live.port) as late, pytest.raises(LoginRejected) as caught:
            late.log_in(isid=9)
        assert caught.value.status == LoginStatus.OUT_OF_RESOURCES
        assert before.read(0, 8) == bytes(4096)
        before.log_out()
    live.wait_idle()
    assert discover(live.port) == {NAME: ["192.0.2.7:3260,1"]}


def test_a_login_timeout_that_changed_counts_for_the_next_login(live):
    live.server.set_limits(login_timeout_s=0.2)
    with Raw(live.port) as silent:
        assert silent.is_closed()
    assert live.counts["timeouts in login"] == 1


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_connections": 257, "max_logins": 3}, "above 256"),
        ({"max_logins": 65}, "above 64"),
        ({"file_workers": 2}, "file_workers changes only with a restart"),
        ({"max_connections": 0}, "outside 1..4096"),
    ],
)
def test_what_needs_a_restart_changes_nothing(live, limits, said):
    before = live.server.config
    with pytest.raises(ValueError, match=said):
        live.server.set_limits(**limits)
    assert live.server.config == before


def test_writes_of_compiled_code_that_reach_a_threshold_are_told_to_every_session(live):
    buffer = live.server.call(lambda: live.engine.alloc(16 * SIZE))
    unit = RamDisk(buffer, thin=True)
    live.server.add_unit(NAME, 1, unit)
    told = []
    live.server.room.reached = lambda unit, reached: told.append(reached.usage.used)
    live.server.set_thresholds(NAME, 1, [warning(USED, 2 * SIZE, unit.threshold_set)])
    with live.log_in() as writer, live.log_in(isid=5) as other:
        writer.clear_attention(1)
        other.clear_attention(1)
        for lba in range(0, 3 * SIZE // BLOCK, 64):
            writer.write(lba, b"\x5a" * 64 * BLOCK, lun=1)
        wait_until("the operator is told", lambda: told)
        # It may have been told early enough for one of the writes.
        assert {sense_of(other, 1), sense_of(other, 1)} == {0x3807, None}
        assert len(told) == 1
    live.server.set_thresholds(NAME, 1, [])
    assert not unit.thresholds.is_watching
    with pytest.raises(ValueError, match="not thin"):
        live.server.set_thresholds(NAME, 0, [])
    with pytest.raises(KeyError, match="no LUN 7"):
        live.server.set_thresholds(NAME, 7, [])
    live.server.remove_unit(NAME, 1)


def test_watchers_are_called_while_the_server_idles(live):
    called = []
    live.server.call(lambda: live.server.watchers.append(lambda: called.append(1)))
    wait_until("the watcher is called twice", lambda: len(called) > 1)
