"""`ppe target` as a person uses it: serving by flags and by file, changing what is served while it
is, ending in order.
"""

import errno
import json
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

import iscsi
import iscsi.target.server  # fills the cache while tests are collected
from iscsi.session.errors import NoSuchUnit
from iscsi.tools import target_serve
from iscsi.wire.errors import LoginRejected, LoginStatus
from shm.jit import JIT_DISABLED
from tests.e2e.running import RunningEngine
from tests.iscsi.target.serving import Raw
from tests.iscsi.tools.running import Serving, Shell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED, reason="the server's loop is compiled"),
]
IQN = "iqn.2026-01.org.example:one"
MIB = 1 << 20


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    shell = Shell(tmp_path_factory.mktemp("shared"))
    with Serving(shell, "--ram", "4M", "--iqn", IQN, "--name", "shared") as server:
        yield server


def config(folder, text, port=0):
    path = folder / "target.toml"
    path.write_text(f'[[portal]]\nlisten = "127.0.0.1:{port}"\n\n{text}')
    return path


def lun(number, size="1M", more='backend = "ram"'):
    return f'[[target.lun]]\nlun = {number}\nsize = "{size}"\n{more}\n'


def target(*luns, name=IQN, more=""):
    return f'[[target]]\nname = "{name}"\n{more}\n{"".join(luns)}'


def test_a_file_is_served_thin_and_keeps_what_is_written(shell, tmp_path):
    flags = ("--file", "disk.img", "--size", "8M", "--thin", "--cache", "direct")
    with Serving(shell, *flags) as server, iscsi.open(server.urls[0]) as disk:
        assert disk.size == 8 * MIB
        disk.write(16, b"\x5a" * 4096)
        disk.flush()
    image = tmp_path / "disk.img"
    assert image.stat().st_size == 8 * MIB
    assert image.stat().st_blocks * 512 < MIB
    assert image.read_bytes()[8192:12288] == b"\x5a" * 4096


def test_ls_and_stat_tell_what_runs(served):
    found = served.shell.json("target", "ls")
    assert found["portals"] == [{"host": "127.0.0.1", "port": served.port, "tag": 1}]
    (about,) = found["targets"]
    assert (about["name"], [unit["size"] for unit in about["luns"]]) == (IQN, [4 * MIB])
    with iscsi.open(served.urls[0]) as disk:
        disk.read(0, 8)
        found = served.shell.json("target", "stat", "--name", "shared")
        (session,) = found["sessions"]
        assert session["target"] == IQN
        assert session["commands"] > 0
        assert found["targets"][0]["units"][0]["read_bytes"] >= 4096
        text = served.shell.run("target", "stat", "--format", "prometheus").stdout.decode()
    assert f'ppe_target_sessions{{target="{IQN}"}} 1' in text
    assert f'ppe_target_lun_size_bytes{{target="{IQN}",lun="0"}} {4 * MIB}' in text
    assert all(line.startswith(("#", "ppe_target_")) for line in text.splitlines())


def test_luns_are_added_resized_and_removed_while_a_session_goes_on(served):
    run = served.shell.json
    with iscsi.open(served.urls[0]) as disk:
        run("target", "add", "--lun", 7, "--ram", "1M", "--max-size", "2M", "--block-size", 4096)
        assert disk.report_luns() == [0, 7]
        url = served.urls[0][:-1] + "7"
        with iscsi.open(url) as added:
            assert (added.block_size, added.size) == (4096, MIB)
        run("target", "resize", "--lun", 7, "--size", "2M")
        with iscsi.open(url) as added:
            assert added.size == 2 * MIB
        run("target", "rm", "--lun", 7, "--iqn", IQN)
        assert disk.report_luns() == [0]
        with pytest.raises(NoSuchUnit, match="no LUN 7"):
            iscsi.open(url)


def test_a_ram_lun_larger_than_what_is_at_hand_is_added(served):
    served.shell.json("target", "add", "--lun", 4, "--ram", "48M")
    with iscsi.open(served.urls[0][:-1] + "4") as disk:
        assert disk.read(disk.block_count - 1, 1) == bytes(512)
    served.shell.json("target", "rm", "--lun", 4)


def test_a_file_of_a_removed_lun_can_be_served_again(served, tmp_path):
    image = tmp_path / "again.img"
    for _ in range(2):
        served.shell.json("target", "add", "--lun", 9, "--file", image, "--size", "1M")
        served.shell.json("target", "rm", "--lun", 9)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["add", "--lun", "0", "--ram", "1M"], 1, "LUN 0 is taken"),
        (["add", "--lun", "1"], 2, "which LUN?"),
        (["add", "--lun", "1", "--ram", "1M", "--null", "1M"], 2, "which LUN?"),
        (["add", "--lun", "1", "--ram", "much"], 2, "--ram"),
        (["add", "--lun", "1", "--ram", "1000"], 2, "no whole number of blocks"),
        (["add", "--lun", "16384", "--ram", "1M"], 2, "0..16383"),
        (["add", "--lun", "1", "--ram", "1M", "--cache", "direct"], 2, "--cache is about files"),
        (["add", "--lun", "1", "--file", "/nonexistent/x"], 1, "No such file"),
        (["add", "--lun", "1", "--ram", "1M", "--iqn", "iqn.2026-01.a:b"], 1, "no target called"),
        (["rm", "--lun", "5"], 1, "no LUN 5"),
        (["rm"], 2, "--lun"),
        (["resize", "--lun", "0", "--size", "4G"], 1, "max_size"),
        (["resize", "--lun", "0", "--size", "x"], 2, "--size"),
        (["reload"], 1, "without a file"),
        (["ls", "--name", "nobody"], 1, "no target server answers"),
        (["ls", "--name", "No Body"], 2, "cannot name"),
        (["ls", "--control", "/nonexistent/socket"], 1, "no target server answers"),
        (["stat", "--format", "xml"], 2, "xml"),
        (["restart"], 2, "restart"),
        (["serve", "--config", "x.toml", "--ram", "1M"], 2, "exclude each other"),
        (["serve", "--config", "x.toml", "--engine", "e"], 2, "--engine and --config exclude"),
        (["serve", "--config", "x.toml", "--block-size", "4096"], 2, "--block-size and --config"),
        (["serve", "--config", "x.toml", "--max-connections", "0"], 2, "exclude each other"),
        (["serve", "--ram", "1X"], 2, "'1X' is no size"),
        (["serve", "--file", "nothing.img"], 1, "--size makes a missing file"),
        (["serve", "--config", "/nonexistent.toml"], 2, "cannot read"),
        (["add", "--lun", "1", "--ram", "1M", "--warn-used", "80%"], 2, "only a thin unit"),
        (["add", "--lun", "1", "--ram", "1M", "--thin", "--warn-free", "101%"], 2, "no share"),
        (["serve", "--size", "1M"], 2, "--size is the size of a file"),
        (["serve", "--file", "/nonexistent/x", "--size", "1M"], 1, "/nonexistent/x: No such"),
        (["serve", "--portal", "a:b:c"], 2, "portal 'a:b:c' is no address"),
        (["serve", "--iqn", "disk"], 2, "expected iqn."),
        (["serve", "--name", "shared", "--portal", "127.0.0.1:0"], 1, "already"),
        (["check-config", "/nonexistent.toml"], 2, "cannot read"),
    ],
)
def test_a_wrong_wish_is_named_and_ends_with_the_right_code(served, words, code, said):
    assert said in served.shell.fails("target", *words, code=code)
    assert served.process.poll() is None


def test_the_control_socket_is_closed_to_others_and_shrugs_at_nonsense(served):
    mode = served.control.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    for data in (
        b"\n",
        b"[]\n",
        b'{"call": 3}\n',
        b'{"call": "rm"}\n',
        b"x" * 100_000,
        b"{" * 60_000,
    ):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(10)
            caller.connect(str(served.control))
            caller.sendall(data)
            caller.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while piece := caller.recv(4096):
                    answer += piece
            except ConnectionResetError:
                pass
            assert not answer or b'"error"' in answer
    assert served.shell.json("target", "ls")["targets"]


def test_a_dead_servers_socket_is_taken_over(shell):
    with Serving(shell, "--ram", "1M", "--name", "again") as server:
        server.process.kill()
        server.process.wait(30)
        control = server.control
        assert control.exists()
        assert "no target server runs" in shell.fails("target", "ls")
    with Serving(shell, "--ram", "1M", "--name", "again") as server:
        assert server.control == control
        assert len(shell.json("target", "ls")["targets"]) == 1
    assert not control.exists()


def test_two_servers_are_told_apart_by_name(shell):
    with Serving(shell, "--ram", "1M", "--name", "a"), Serving(shell, "--ram", "2M", "--name", "b"):
        assert "--name takes a, b" in shell.fails("target", "ls", code=2)
        found = shell.json("target", "ls", "--name", "b")
        assert found["targets"][0]["luns"][0]["size"] == 2 * MIB


def test_drain_ends_the_server_once_its_sessions_are_asked_to_leave(shell, tmp_path):
    path = config(tmp_path, "[server]\ndrain_s = 0.5\n" + target(lun(0)))
    with Serving(shell, "--config", path) as server, Raw(server.port).log_in(IQN) as client:
        assert shell.json("target", "drain") == {"draining": True}
        assert client.is_closed()
        assert server.end() == 0
        assert b"1 logged in" in server.said
    assert not server.control.exists()


def test_sigterm_drains_and_a_second_one_does_not_wait(shell, tmp_path):
    path = config(tmp_path, "[server]\ndrain_s = 3600\n" + target(lun(0)))
    with Serving(shell, "--config", path) as server, Raw(server.port).log_in(IQN) as client:
        server.signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not shell.json("target", "stat")["draining"]:
            assert time.monotonic() < deadline, "it does not drain"
        assert server.end(signal.SIGTERM) == 0
        assert client.is_closed()


def test_systemd_is_told_when_it_serves_and_when_it_ends(shell, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        path = config(tmp_path, "[server]\ndrain_s = 2\n" + target(lun(0)))
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        with Serving(shell, "--config", path, **told) as server:
            said = heard(manager, "READY=1")
            assert f"MAINPID={server.process.pid}" in said
            assert f"STATUS=serving 1 LUN on 127.0.0.1:{server.port}, 0 sessions" in said
            heard(manager, "WATCHDOG=1")
            with Raw(server.port).log_in(IQN) as client:
                heard(manager, f"STATUS=serving 1 LUN on 127.0.0.1:{server.port}, 1 session")
                client.log_out()
            path.write_text("[[target]\n")
            shell.fails("target", "reload")
            assert int(heard(manager, "RELOADING=1")[1].partition("=")[2]) > 0
            heard(manager, "READY=1")
            assert "the last reload failed" in heard(manager, "STATUS=serving")[0]
            config(tmp_path, target(lun(0), lun(1)), server.port)
            server.signal(signal.SIGHUP)
            heard(manager, "RELOADING=1")
            heard(manager, "READY=1")
            assert "2 LUNs" in heard(manager, "STATUS=serving")[0]
            assert server.end(signal.SIGTERM) == 0
            said = heard(manager, "STOPPING=1")
            assert said[1].startswith("EXTEND_TIMEOUT_USEC=")


def test_systemd_is_told_of_an_end_at_once(shell, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with Serving(shell, "--ram", "1M", NOTIFY_SOCKET=str(tmp_path / "notify")) as server:
            heard(manager, "READY=1")
            assert server.end(signal.SIGINT) == 0
            heard(manager, "STOPPING=1")


def heard(manager, line):
    """The lines of the next datagram that has one which begins like this."""
    while True:
        said = manager.recv(4096).decode().splitlines()
        if any(each.startswith(line) for each in said):
            return said


# --- the file, read again --------------------------------------------------------------------


def secured(name, secret):
    return (
        f'[chap.{name}]\nsecret = "{secret}"\n',
        f'[[target.access]]\naccounts = ["{name}"]\n',
    )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_sighup_applies_what_changed_and_nothing_else(shell, tmp_path):
    port = free_port()
    before = target(lun(0), lun(1), lun(2, more='backend = "null"'))
    path = config(tmp_path, before, port)
    other = "iqn.2026-01.org.example:two"
    with Serving(shell, "--config", path) as server, iscsi.open(server.urls[0]) as disk:
        disk.write(0, b"\x11" * 512)
        after = target(lun(0), lun(2, "3M", 'backend = "null"'), lun(5)) + target(
            lun(0), name=other
        )
        config(tmp_path, after, port)
        server.signal(signal.SIGHUP)
        server.wait_said("reload: ")
        server.wait_said("changes")
        assert disk.report_luns() == [0, 2, 5]
        assert disk.read(0, 1) == b"\x11" * 512
        assert disk.recoveries == 0
        assert disk.read_capacity(2).blocks * 512 == 3 * MIB
        assert {found["name"] for found in shell.json("target", "ls")["targets"]} == {IQN, other}
        assert shell.json("target", "reload") == {"changes": []}
        config(tmp_path, target(lun(0)), port)
        changes = shell.json("target", "reload")["changes"]
        assert sorted(changes) == sorted(
            [f"{IQN} LUN 2 removed", f"{IQN} LUN 5 removed", f"target {other} removed"]
        )


def test_a_faulty_file_changes_nothing(shell, tmp_path):
    path = config(tmp_path, target(lun(0), lun(1)))
    with Serving(shell, "--config", path) as server:
        config(tmp_path, target(lun(0), lun(1, "1Q")))
        said = shell.fails("target", "reload")
        assert f"{path}:" in said
        assert "1Q" in said
        server.signal(signal.SIGHUP)
        server.wait_said("1Q")
        assert len(shell.json("target", "ls")["targets"][0]["luns"]) == 2


def test_a_change_that_needs_a_restart_is_said_and_the_rest_is_done(shell, tmp_path):
    path = config(tmp_path, "[server]\nmax_connections = 8\n" + target(lun(0)))
    more = "[server]\nmax_connections = 9\nfile_workers = 2\nlogin_timeout_s = 7\n"
    with Serving(shell, "--config", path):
        config(tmp_path, more + target(lun(0), lun(1)))
        said = shell.fails("target", "reload")
        assert "server.max_connections can be more than 8" in said
        assert "server.file_workers changes only with a restart" in said
        assert "login_timeout_s" not in said
        assert len(shell.json("target", "ls")["targets"][0]["luns"]) == 2
        # What could be done is, and what could not is said again.
        assert "only with a restart" in shell.fails("target", "reload")
        config(tmp_path, more.replace("9", "8").replace("file_workers = 2\n", "") + target(lun(0)))
        assert shell.json("target", "reload")["changes"] == [f"{IQN} LUN 1 removed"]


def test_limits_count_for_sessions_from_then_on(shell, tmp_path):
    port = free_port()
    path = config(tmp_path, target(lun(0)), port)
    with Serving(shell, "--config", path), Raw(port).log_in(IQN) as first:
        config(tmp_path, "[server]\nmax_connections = 1\n" + target(lun(0)), port)
        changes = shell.json("target", "reload")["changes"]
        assert changes == ["server.max_connections is 1 now"]
        with Raw(port) as second, pytest.raises(LoginRejected) as caught:
            second.log_in(IQN, isid=5)
        assert caught.value.status == LoginStatus.OUT_OF_RESOURCES
        config(tmp_path, target(lun(0)), port)
        assert shell.json("target", "reload")["changes"] == ["server.max_connections is 256 now"]
        with Raw(port).log_in(IQN, isid=5):
            first.clear_attention()


def test_discovery_tells_what_is_advertised_now(shell, tmp_path):
    port = free_port()
    path = config(tmp_path, target(lun(0)), port)
    url = f"iscsi://127.0.0.1:{port}"
    with Serving(shell, "--config", path):
        assert f"127.0.0.1:{port}" in shell.run("iscsi", "ls", url).stdout.decode()
        config(tmp_path, '[server]\nadvertise = ["192.0.2.7"]\n' + target(lun(0)), port)
        changes = shell.json("target", "reload")["changes"]
        assert changes == ["server.advertise is 192.0.2.7:3260 now"]
        told = shell.run("iscsi", "ls", url).stdout.decode()
        assert "192.0.2.7:3260" in told
        assert f"127.0.0.1:{port}" not in told


def test_a_thin_lun_warns_its_initiators_and_its_operator(shell, tmp_path):
    port = free_port()
    thin = 'backend = "thin"\npath = "disk.img"\n'
    path = config(tmp_path, target(lun(0, "16M", thin)), port)
    with Serving(shell, "--config", path) as server, iscsi.open(server.urls[0]) as disk:
        disk.write(0, b"\x5a" * 10 * MIB)
        disk.flush()
        config(tmp_path, target(lun(0, "16M", thin + 'warn_used = "50%"\n')), port)
        changes = shell.json("target", "reload")["changes"]
        assert changes == [f"{IQN} LUN 0 warns at other thresholds"]
        server.wait_said(f"{IQN} LUN 0: warn_used reached")
        assert disk.read(0, 1) == b"\x5a" * 512
        assert disk.recoveries == 0
        found = shell.json("target", "stat")["targets"][0]["units"][0]
        assert found["used"] >= 10 * MIB
        assert found["used"] + found["available"] <= 16 * MIB
        text = shell.run("target", "stat", "--format", "prometheus").stdout.decode()
        assert f'ppe_target_lun_used_bytes{{target="{IQN}",lun="0"}} {found["used"]}' in text


def test_who_may_log_in_changes_with_the_file(shell, tmp_path):
    port = free_port()
    account, access = secured("alice", "a secret of alice")
    path = config(tmp_path, account + target(lun(0), access), port)
    with Serving(shell, "--config", path) as server:
        url = server.urls[0]
        with pytest.raises(iscsi.AuthError):
            iscsi.open(url)
        assert "let us in" in shell.fails("iscsi", "inq", url)
        allowed = url.replace("://", "://alice%a secret of alice@")
        with iscsi.open(allowed) as disk:
            assert disk.size == MIB
        (tmp_path / "password").write_text("a secret of alice\n")
        words = ("iscsi", "inq", url, "--user", "alice", "--password-file", "password")
        assert shell.json(*words)["size"] == MIB
        environment = {
            "LIBISCSI_CHAP_USERNAME": "alice",
            "LIBISCSI_CHAP_PASSWORD": "a secret of alice",
        }
        assert shell.json("iscsi", "inq", url, **environment)["size"] == MIB
        account, access = secured("alice", "another of alice")
        config(tmp_path, account + target(lun(0), access), port)
        assert shell.json("target", "reload")["changes"] == ["access rules"]
        with pytest.raises(iscsi.AuthError):
            iscsi.open(allowed)


def test_a_portal_comes_and_goes_with_the_file(shell, tmp_path):
    first, second = free_port(), free_port()
    path = config(tmp_path, target(lun(0)), first)
    more = f'[[portal]]\nlisten = "127.0.0.1:{second}"\ntag = 2\n'
    with Serving(shell, "--config", path):
        config(tmp_path, more + target(lun(0)), first)
        shell.json("target", "reload")
        with iscsi.open(f"iscsi://127.0.0.1:{second}/{IQN}/0") as disk:
            assert disk.size == MIB
        config(tmp_path, target(lun(0)), second)
        shell.json("target", "reload")
        with pytest.raises(OSError, match="refused"):
            iscsi.open(f"iscsi://127.0.0.1:{first}/{IQN}/0")


def test_check_config_says_that_a_file_is_right_and_who_gets_in(shell, tmp_path):
    path = config(tmp_path, target(lun(0), lun(1)))
    done = shell.run("target", "check-config", path)
    assert done.returncode == 0
    assert b"1 target, 2 LUNs" in done.stdout
    assert b"everybody" in done.stderr
    config(tmp_path, target(lun(0), lun(0)))
    assert f"{path}:" in shell.fails("target", "check-config", path, code=2)
    done = shell.run("target", "check-config", path, "--json")
    assert done.returncode == 2
    assert b"LUN 0 is given twice" in done.stdout
    path.write_text("[server\n")
    done = shell.run("target", "check-config", path, "--json")
    assert done.returncode == 2
    assert "is not TOML" in json.loads(done.stdout)["faults"][0]


def test_a_control_path_that_is_a_file_is_left_alone(shell, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("data")
    words = ("--ram", "1M", "--portal", "127.0.0.1:0", "--control", precious)
    assert "no socket" in shell.fails("target", "serve", *words)
    assert precious.read_text() == "data"


def test_a_placement_that_nobody_knows_is_refused(shell, tmp_path):
    said = shell.fails("target", "serve", "--placement", "elsewhere", code=2)
    assert "stream, datamover, engine" in said
    path = config(tmp_path, '[server]\nplacement = "motor"\n' + target(lun(0)))
    said = shell.fails("target", "serve", "--config", path, code=2)
    assert "stream, datamover, engine" in said


def test_an_engine_serves_units_and_outlives_a_server_that_is_killed(shell):
    with RunningEngine(shell.runtime) as engine:
        flags = ("--ram", "4M", "--engine", engine.name, "--placement", "engine")
        with Serving(shell, *flags, "--iqn", IQN) as server, Raw(server.port).log_in(IQN) as raw:
            raw.clear_attention()
            assert raw.write(16, b"\x5a" * 4096).status == 0
            assert raw.read(16, 8) == b"\x5a" * 4096
            (unit,) = shell.json("target", "stat")["targets"][0]["units"]
            assert (unit["reads"], unit["written_bytes"]) == (1, 4096)
            server.end(signal.SIGKILL)
            assert raw.is_closed()
        with Serving(shell, *flags) as server, iscsi.open(server.urls[0]) as disk:
            assert disk.read(16, 8) == bytes(4096)


def test_a_port_that_is_not_ours_to_listen_on_says_what_to_change():
    said = "portal 127.0.0.1:100: listen: Permission denied"
    assert "1024" in target_serve._hint(errno.EACCES, said)
    assert "another --portal" in target_serve._hint(errno.EADDRINUSE, said)
    assert not target_serve._hint(errno.EACCES, "LUN 0: disk.img: Permission denied")


def test_a_portal_in_use_is_refused_before_the_server_is_imported_and_compiled():
    program = (
        "import sys\n"
        "from ppe import cli\n"
        "code = cli.main(['target', 'serve', *sys.argv[1:]])\n"
        "print(code, 'iscsi.target.daemon' in sys.modules)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = [sys.executable, "-c", program, "--ram", "1M", "--portal", address]
        done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "1 False\n"
    assert f"portal {address}: another server listens there" in done.stderr
    assert "another --portal" in done.stderr
