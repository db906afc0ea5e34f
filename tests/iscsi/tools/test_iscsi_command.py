"""`ppe iscsi` as a person uses it, against our target and tgt: copies that keep holes, digests,
reservations, write protection, and what it says when something is wrong.
"""

import hashlib
import os
import signal
import subprocess

import pytest

import iscsi
from shm.jit import JIT_DISABLED
from tests.iscsi.session.tgt import tgt_target
from tests.iscsi.tools.running import Serving, Shell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(JIT_DISABLED, reason="the session's loop is compiled"),
]
MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """LUN 0 and 1: thin files; LUN 2: memory that is not thin, write-protectable."""
    shell = Shell(tmp_path_factory.mktemp("served"))
    flags = ("--file", "0.img", "--file", "1.img", "--size", "16M", "--thin")
    with Serving(shell, *flags, "--name", "tools") as server:
        words = ("target", "add", "--lun", 2, "--ram", "16M", "--block-size", 4096)
        shell.json(*words)
        server.urls.append(server.urls[0][:-1] + "2")
        yield server


@pytest.fixture(params=["ours", pytest.param("tgt", marks=pytest.mark.interop("tgtd", "tgtadm"))])
def disk_url(request, served, tmp_path):
    """A LUN of 16 MiB that a copy may go to."""
    if request.param == "ours":
        yield served.urls[0]
        return
    with tgt_target(tmp_path, size=SIZE) as running:
        yield running.url


def sparse_file(path, size=SIZE):
    """A file that is mostly a hole."""
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(3 * MIB)
        file.write(os.urandom(MIB))
        file.seek(9 * MIB + 12345)
        file.write(b"island")
    return path


def fill(url):
    with iscsi.open(url) as disk:
        disk.write(0, b"\xee" * disk.size)


def test_a_file_copied_to_a_lun_and_back_is_the_same_and_keeps_its_holes(
    served, disk_url, tmp_path
):
    fill(disk_url)
    source, back = sparse_file(tmp_path / "source"), tmp_path / "back"
    found = served.shell.json("iscsi", "cp", source, disk_url, "--verify")
    assert found["bytes"] == SIZE
    assert found["moved"] < 2 * MIB
    found = served.shell.json("iscsi", "cp", disk_url, back, "--verify")
    assert back.read_bytes() == source.read_bytes()
    if "PPE" in served.shell.json("iscsi", "inq", disk_url)["vendor"]:
        assert found["moved"] < 2 * MIB
        assert back.stat().st_blocks * 512 < 2 * MIB


def test_a_lun_copied_to_a_lun_of_other_blocks_is_the_same(served, tmp_path):
    source = sparse_file(tmp_path / "source")
    run = served.shell.json
    fill(served.urls[2])
    run("iscsi", "cp", source, served.urls[1])
    found = run("iscsi", "cp", served.urls[1], served.urls[2], "--verify")
    assert 0 < found["moved"] < 2 * MIB
    with iscsi.open(served.urls[2]) as disk:
        assert disk.read(0, disk.block_count) == source.read_bytes()


def test_no_sparse_moves_everything(served, tmp_path):
    source = sparse_file(tmp_path / "source")
    found = served.shell.json("iscsi", "cp", source, served.urls[0], "--no-sparse")
    assert (found["moved"], found["skipped"]) == (SIZE, 0)


def test_a_file_that_ends_within_a_block_is_padded_only_when_told(served, tmp_path):
    source = tmp_path / "odd"
    source.write_bytes(b"\x77" * 5000)
    fill(served.urls[2])
    said = served.shell.fails("iscsi", "cp", source, served.urls[2])
    assert "904 bytes into a block" in said
    served.shell.json("iscsi", "cp", source, served.urls[2], "--pad", "--verify")
    with iscsi.open(served.urls[2]) as disk:
        assert disk.read(0, 3) == b"\x77" * 5000 + bytes(3192) + b"\xee" * 4096


def test_md5sum_is_that_of_the_bytes_also_where_there_are_none(served, disk_url, tmp_path):
    source = sparse_file(tmp_path / "source")
    served.shell.json("iscsi", "cp", source, disk_url)
    data = source.read_bytes()
    said = served.shell.run("iscsi", "md5sum", disk_url).stdout.decode()
    assert said == f"{hashlib.md5(data).hexdigest()}  {disk_url}\n"
    words = ("iscsi", "md5sum", disk_url, "--algorithm", "sha256", "--lba", 6000, "--blocks", 1000)
    part = data[6000 * 512 : 7000 * 512]
    assert served.shell.json(*words)["digest"] == hashlib.sha256(part).hexdigest()


def test_readcap_tells_sizes_and_provisioning(served):
    found = served.shell.json("iscsi", "readcap", served.urls[0])
    assert (found["blocks"], found["block_size"]) == (32768, 512)
    assert found["physical_block_size"] == 4096
    assert found["thin"]
    assert found["unmapped_reads_zeros"]
    assert not served.shell.json("iscsi", "readcap", served.urls[2])["thin"]


def test_discard_gives_room_back(served):
    image = served.shell.folder / "1.img"
    fill(served.urls[1])
    served.shell.json("iscsi", "discard", served.urls[1], "0+16384", "--yes")
    assert image.stat().st_blocks * 512 <= 9 * MIB
    with iscsi.open(served.urls[1]) as disk:
        assert disk.read(16383, 2) == bytes(512) + b"\xee" * 512
    served.shell.json("iscsi", "discard", served.urls[1], "--all", "--yes")
    assert image.stat().st_blocks * 512 < MIB


def test_software_write_protection_goes_on_and_off(served):
    url = served.urls[2]
    assert served.shell.json("iscsi", "swp", url, "on")["software_write_protect"]
    try:
        said = served.shell.fails("iscsi", "write", url, data=bytes(4096))
        assert "WRITE PROTECTED" in said
    finally:
        assert not served.shell.json("iscsi", "swp", url, "off")["software_write_protect"]
    assert served.shell.run("iscsi", "write", url, data=bytes(4096)).returncode == 0


def test_reservations_live_from_one_command_to_the_next(served):
    run, url = served.shell.json, served.urls[2]
    key, other = 0x1234, 0x99
    found = run("iscsi", "pr", url, "register", "--new-key", hex(key))
    assert found["keys"] == ["0x0000000000001234"]
    kind = "exclusive-access"
    found = run("iscsi", "pr", url, "reserve", "--key", key, "--type", kind)
    assert found["reservation"] == {"key": "0x0000000000001234", "type": kind}
    assert "RESERVATION CONFLICT" in served.shell.fails("iscsi", "write", url, data=bytes(4096))
    words = ("iscsi", "pr", url, "--initiator", "iqn.2026-01.org.example:other")
    run(*words, "register", "--new-key", other)
    found = run(*words, "preempt", "--key", other, "--new-key", key, "--type", kind)
    assert found["keys"] == ["0x0000000000000099"]
    assert found["reservation"]["key"] == "0x0000000000000099"
    assert "RESERVATION CONFLICT" in served.shell.fails(
        *("iscsi", "pr", url, "release", "--key", key, "--type", kind)
    )
    run(*words, "release", "--key", other, "--type", kind)
    found = run(*words, "clear", "--key", other)
    assert (found["keys"], found["reservation"]) == ([], None)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["cp", "a", "b"], 2, "neither side"),
        (["cp", "{url}", "{url}"], 2, "the same LUN"),
        (["cp", "/nonexistent", "{url}"], 1, "/nonexistent: No such file"),
        (["cp", "{url}", "/nonexistent/file"], 1, "/nonexistent/file: No such file"),
        (["write", "{url}", "/nonexistent"], 1, "/nonexistent: No such file"),
        (["write", "{url}", "{large}"], 1, "nothing was written"),
        (["write", "{url}", "{odd}"], 1, "ends 188 bytes into a block"),
        (["read", "{url}", "-o", "/nonexistent/file"], 1, "/nonexistent/file: No such file"),
        (["read", "{url}", "--blocks", "few"], 2, "'few' is no whole number"),
        (["inq", "{url}", "--timeout", "0"], 2, "above 0"),
        (["perf", "{url}", "-t", "nan"], 2, "above 0"),
        (["cp", "{large}", "{url}"], 1, "nothing was written"),
        (["cp", "{empty}", "{url}"], 1, "is empty"),
        (["cp", "{url}"], 2, "TO"),
        (["cp", "{url}", "x", "--verfiy"], 2, "did you mean --verify"),
        (["discard", "{url}"], 2, "--all"),
        (["discard", "{url}", "0+8", "--all", "--yes"], 2, "--all"),
        (["discard", "{url}", "0+8"], 2, "--yes"),
        (["discard", "{url}", "7-9", "--yes"], 2, "FIRST+COUNT"),
        (["discard", "{url}", "32768+1", "--yes"], 1, "0..32767"),
        (["discard", "{thick}", "--all", "--yes"], 1, "is not thin"),
        (["md5sum", "{url}", "--algorithm", "crc"], 2, "crc"),
        (["md5sum", "{url}", "--lba", "40000"], 1, "0..32767"),
        (["pr", "{url}", "steal"], 2, "steal"),
        (["pr", "{url}", "reserve"], 2, "needs --key"),
        (["pr", "{url}", "register", "--key", "1"], 2, "--new-key"),
        (["pr", "{url}", "reserve", "--key", "1"], 2, "needs --type"),
        (["pr", "{url}", "clear", "--key", "1"], 1, "RESERVATION CONFLICT"),
        (["swp", "{url}", "maybe"], 2, "maybe"),
        (["readcap", "{url}9"], 1, "has no LUN"),
        (["inq", "{url}", "--user", "x"], 2, "--password-file"),
        (["inq", "{url}", "--password-file", "{empty}"], 2, "needs a user"),
        (["inq", "{url}", "--password-file", "{empty}", "--user", "x"], 1, "is empty"),
        (["inq", "{url}", "--isid", "0x1000000000000"], 1, "48 bits"),
        (["format", "{url}"], 2, "format"),
    ],
)
def test_bad_input_is_named_and_ends_with_the_right_code(served, tmp_path, words, code, said):
    (tmp_path / "empty").touch()
    sparse_file(tmp_path / "large", 17 * MIB)
    places = {"url": served.urls[0], "thick": served.urls[2]}
    (tmp_path / "odd").write_bytes(bytes(700))
    places |= {name: tmp_path / name for name in ("empty", "large", "odd")}
    assert said in served.shell.fails(
        "iscsi", *(word.format(**places) for word in words), code=code
    )


def test_ctrl_c_ends_a_long_load_with_130_and_a_logout(served):
    words = ("iscsi", "perf", served.urls[2], "-t", "60")
    process = served.shell.start(*words)
    try:
        with iscsi.open(served.urls[2]) as disk:
            disk.read(0, 1)
        for _ in range(300):
            found = served.shell.json("target", "stat")
            if any(session["commands"] > 100 for session in found["sessions"]):
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 130, said.decode()
    assert b"Traceback" not in said
    assert served.shell.json("target", "stat")["sessions"] == []


def test_v_says_what_was_opened(served):
    said = served.shell.run("iscsi", "readcap", served.urls[0], "-v").stderr.decode()
    assert "PPE disk, 16 MiB, digests: none" in said
