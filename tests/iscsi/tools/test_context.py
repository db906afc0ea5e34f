"""`iscsi.Context`, `Task` and `URL`: the shape that programs for libiscsi's binding know."""

import pytest

import iscsi
from iscsi.session.errors import SessionClosed
from iscsi.wire.url import UrlError
from shm.jit import JIT_DISABLED
from tests.interop.serve import IQN
from tests.iscsi.tools.running import Serving, Shell

BLOCK = 512
PASSWORD = "only the user knows it"
compiled = pytest.mark.skipif(JIT_DISABLED, reason="the session's loop is compiled")
CONFIG = f"""
[[portal]]
listen = "127.0.0.1:0"
[chap.alice]
secret = "{PASSWORD}"
[chap.us]
secret = "and this one the target"
[[target]]
name = "{IQN}"
[[target.lun]]
lun = 0
size = "1M"
[[target.lun]]
lun = 3
size = "2M"
[[target]]
name = "{IQN}.guarded"
[[target.access]]
accounts = ["alice"]
own = "us"
[[target.lun]]
lun = 0
size = "1M"
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    (folder / "target.toml").write_text(CONFIG)
    with Serving(Shell(folder), "--config", folder / "target.toml") as server:
        yield server


@pytest.fixture
def context(served):
    with iscsi.Context("iqn.2026-01.org.example:me") as found:
        found.set_targetname(IQN)
        found.set_session_type(iscsi.ISCSI_SESSION_NORMAL)
        found.set_header_digest(iscsi.ISCSI_HEADER_DIGEST_CRC32C)
        found.connect(f"127.0.0.1:{served.port}", 0)
        yield found


def read_capacity():
    return iscsi.Task(b"\x25".ljust(10, b"\0"), iscsi.SCSI_XFER_READ, 8)


@compiled
def test_commands_move_data_both_ways(context):
    data, back = bytes(range(256)) * 4, bytearray(1024)
    write = iscsi.Task(bytes.fromhex("2a000000000500000200"), iscsi.SCSI_XFER_WRITE, 1024)
    assert context.command(0, write, data, b"").status == 0
    read = iscsi.Task(bytes.fromhex("28000000000500000200"), iscsi.SCSI_XFER_READ, 1024)
    assert context.command(0, read, b"", back).status == 0
    assert back == data
    none = iscsi.Task(bytes(6), iscsi.SCSI_XFER_NONE, 0)
    assert context.command(0, none).status == 0


@compiled
def test_a_failed_command_raises_nothing_and_leaves_its_sense(context):
    read = iscsi.Task(bytes.fromhex("2800ffffffff00000200"), iscsi.SCSI_XFER_READ, 1024)
    context.command(0, read, b"", bytearray(1024))
    assert read.status == 2
    assert (read.raw_sense[0] & 0x7F, read.raw_sense[2], read.raw_sense[12]) == (0x70, 5, 0x21)


@compiled
def test_other_luns_of_the_target_are_reached_too(context):
    into = bytearray(8)
    task = read_capacity()
    if context.command(3, task, b"", into).status == 2:  # the unit attention of a new nexus
        assert task.raw_sense[2] == 6
        assert context.command(3, task, b"", into).status == 0
    assert int.from_bytes(into[:4], "big") == (2 << 20) // BLOCK - 1


@compiled
def test_a_short_answer_leaves_a_residual(context):
    task = iscsi.Task(b"\x25".ljust(10, b"\0"), iscsi.SCSI_XFER_READ, 32)
    context.command(0, task, b"", bytearray(32))
    assert (task.status, task.residual) == (0, 24)


@compiled
def test_discover_lists_targets_and_their_portals(served):
    context = iscsi.Context()
    context.set_session_type(iscsi.ISCSI_SESSION_DISCOVERY)
    context.connect(f"127.0.0.1:{served.port}")
    portal = f"127.0.0.1:{served.port},1"
    assert context.discover() == {IQN: [portal], f"{IQN}.guarded": [portal]}
    context.disconnect()


@compiled
def test_credentials_come_from_calls_or_from_the_url(served):
    portal, name = f"127.0.0.1:{served.port}", f"{IQN}.guarded"
    with iscsi.Context() as context:
        context.set_targetname(name)
        with pytest.raises(iscsi.AuthError):
            context.connect(portal, 0)
        assert not context.is_connected
        context.set_initiator_username_pwd("alice", PASSWORD)
        context.set_target_username_pwd("us", "and this one the target")
        context.connect(portal, 0)
        assert context.command(0, read_capacity(), b"", bytearray(8)).status == 0
    text = f"iscsi://alice%{PASSWORD}@{portal}/{name}/0"
    with iscsi.Context(text) as context:
        url = iscsi.URL(context, text)
        assert (url.portal, url.target, url.lun) == (portal, name, 0)
        assert (url.user, url.passwd) == ("alice", PASSWORD)
        context.set_targetname(url.target)
        context.connect(url.portal, url.lun)
        assert context.is_connected


def test_a_url_as_the_name_means_the_default_name_and_shows_no_password():
    context = iscsi.Context("iscsi://me%hunter2@192.0.2.1/iqn.2026-01.a:b/0")
    assert context.initiator_name == iscsi.Context().initiator_name
    iscsi.URL(context, "iscsi://me%hunter2@192.0.2.1/iqn.2026-01.a:b/0")
    assert "hunter2" not in f"{context!r}{context.__dict__!r}"
    with pytest.raises(ValueError, match="no initiator name") as raised:
        iscsi.Context("iscs:/me%hunter2@192.0.2.1")
    assert "hunter2" not in str(raised.value)


def test_what_cannot_be_is_refused_before_anything_is_sent():
    context = iscsi.Context()
    with pytest.raises(ValueError, match="direction"):
        iscsi.Task(bytes(6), 7, 0)
    with pytest.raises(ValueError, match="session type"):
        context.set_session_type(9)
    with pytest.raises(ValueError, match="digest"):
        context.set_header_digest(4)
    with pytest.raises(ValueError, match="target name"):
        context.set_targetname("a b")
    with pytest.raises(ValueError, match="empty"):
        context.set_initiator_username_pwd("me", "")
    with pytest.raises(ValueError, match="set_targetname"):
        context.connect("127.0.0.1:1", 0)
    with pytest.raises(UrlError, match="portal"):
        context.connect("no portal", 0)
    with pytest.raises(SessionClosed):
        context.command(0, read_capacity(), b"", bytearray(8))
    with pytest.raises(SessionClosed):
        iscsi.Context().discover()
    context.disconnect()


@compiled
def test_buffers_that_are_too_small_are_refused(context):
    with pytest.raises(ValueError, match="room for 4"):
        context.command(0, read_capacity(), b"", bytearray(4))
    write = iscsi.Task(bytes.fromhex("2a000000000500000100"), iscsi.SCSI_XFER_WRITE, 512)
    with pytest.raises(ValueError, match="100 bytes to write"):
        context.command(0, write, bytes(100), b"")
