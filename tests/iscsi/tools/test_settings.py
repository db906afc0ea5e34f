"""The settings file of a target server: what it means, and that every fault is named with its line
and key.
"""

import argparse
import textwrap

import pytest

from iscsi.target.settings import load_file
from iscsi.target.toml_lines import key_lines, line_of
from iscsi.target.toml_reader import SettingsError
from iscsi.tools.target import add_serve_arguments
from iscsi.tools.target_serve import settings_of
from iscsi.wire.names import Portal
from ppe.errors import ConfigError, UsageError

GOOD = """
    [server]
    name = "rack7"
    drain_s = 7.5
    max_connections = 32
    algorithms = ["sha-256", "md5"]

    [[portal]]
    listen = "127.0.0.1:3261"
    advertise = "203.0.113.7"
    tag = 4

    [chap.alice]
    secret = "a secret of alice"

    [chap.us]
    user = "target"
    secret_file = "us.secret"

    [chap.bob]
    secret_env = "BOBS_SECRET"

    [[target]]
    name = "iqn.2026-01.org.example:one"
    alias = "first"

      [[target.lun]]
      lun = 0
      path = "disk.img"
      size = "1G"
      cache = "direct"

      [[target.lun]]
      lun = 300
      backend = "ram"
      size = "64M"
      max_size = "128M"
      thin = true
      warn_used = "80%"
      warn_free = "8M"

      [[target.access]]
      initiators = ["iqn.2026-01.org.example:host*"]
      addresses = ["10.0.0.0/8"]
      accounts = ["alice", "bob"]
      own = "us"
      read_only = true

    [[target]]
    name = "iqn.2026-01.org.example:two"

      [[target.lun]]
      lun = 0
      backend = "null"
      size = 1048576
"""


def write(folder, text):
    path = folder / "target.toml"
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture
def good(tmp_path, monkeypatch):
    (tmp_path / "us.secret").write_text("the secret of the target\n")
    monkeypatch.setenv("BOBS_SECRET", "what bob's service manager knows")
    return write(tmp_path, GOOD)


def test_a_whole_file_means_what_it_says(good, tmp_path):
    found = load_file(good)
    assert (found.name, found.drain_s, found.limits) == ("rack7", 7.5, {"max_connections": 32})
    assert found.algorithms == (7, 5)
    (portal,) = found.portals
    assert portal.portal == Portal("127.0.0.1", 3261, 4)
    assert portal.advertise == Portal("203.0.113.7", 3260)
    one, two = found.targets
    assert (one.name, one.alias, two.access) == ("iqn.2026-01.org.example:one", "first", None)
    disk, memory = one.luns
    assert (disk.backend, disk.path) == ("file", str(tmp_path / "disk.img"))
    assert (disk.size, disk.cache) == (1 << 30, "direct")
    assert (memory.lun, memory.size, memory.max_size) == (300, 64 << 20, 128 << 20)
    assert memory.thin
    assert (memory.warn_used, memory.warn_free) == ("80%", "8M")
    (grant,) = one.access.grants
    assert [account.user for account in grant.accounts] == ["alice", "bob"]
    assert [account.secret for account in grant.accounts] == [
        b"a secret of alice",
        b"what bob's service manager knows",
    ]
    assert (grant.own.user, grant.own.secret) == ("target", b"the secret of the target")
    assert grant.read_only


def test_equal_files_are_equal_settings(good):
    assert load_file(good) == load_file(good)
    before = load_file(good)
    good.write_text(good.read_text().replace('"64M"', '"96M"'))
    assert load_file(good) != before


def test_no_secret_is_in_the_repr_of_settings(good):
    assert "secret of" not in repr(load_file(good))
    assert "manager knows" not in repr(load_file(good))


TARGET = '[[target]]\nname = "iqn.2026-01.org.example:t"\n'
LUN = '[[target.lun]]\nlun = 0\nbackend = "ram"\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 0, "there is no target"),
        ("[sever]\n" + TARGET, 1, "sever: unknown key: did you mean 'server'"),
        ("[server]\nmax_conections = 3\n" + TARGET, 2, "did you mean 'max_connections'"),
        ("[server]\nmax_connections = 0\n" + TARGET, 2, "0 is outside 1..4096"),
        ("[server]\nmax_connections = true\n" + TARGET, 2, "True is not possible"),
        ('[server]\ndrain_s = "soon"\n' + TARGET, 2, "seconds as a number"),
        ('[server]\nalgorithms = ["rot13"]\n' + TARGET, 2, "choose from md5"),
        ('[[portal]]\nlisten = "1.2.3.4:x"\n' + TARGET, 2, "portal[0].listen: '1.2.3.4:x'"),
        ("[[portal]]\nlisten = '[::1]'\ntag = 70000\n" + TARGET, 3, "70000 is outside"),
        ("[[target]]\nalias = 'x'\n", 1, "name is missing"),
        ("[[target]]\nname = 'disk'\n", 2, "expected iqn."),
        (TARGET + TARGET, 4, "is given twice"),
        (TARGET + LUN + "size = '1X'\n", 6, "target[0].lun[0].size: '1X' is no size"),
        (TARGET + LUN, 3, "target[0].lun[0]: size is missing"),
        (TARGET + LUN + "size = 1000\n", 6, "no whole number of blocks"),
        (TARGET + LUN + "size = '1M'\nmax_size = 512\n", 7, "less than the size"),
        (TARGET + LUN + "size = '1M'\n" + LUN + "size = '1M'\n", 8, "LUN 0 is given twice"),
        (TARGET + LUN + "size = '1M'\ncache = 'direct'\n", 7, "backend 'ram' has none"),
        (TARGET + LUN + "size = '1M'\nblock_size = 1024\n", 7, "512 and 4096"),
        (TARGET + LUN + "size = '1M'\nvendor = 'much too long'\n", 7, "at most 8 ASCII"),
        (TARGET + "[[target.lun]]\nlun = 0\nbackend = 'tape'\n", 5, "none of ram, file"),
        (TARGET + "[[target.lun]]\nlun = 0\nbackend = 'file'\n", 3, "path is missing"),
        (TARGET + "[[target.lun]]\nlun = 16384\npath = 'x'\n", 4, "outside 0..16383"),
        (TARGET + "[[target.lun]]\npath = 'x'\n", 3, "lun is missing"),
        (TARGET + "[[target.access]]\naccounts = ['eve']\n", 4, "there is no [chap.eve]"),
        (TARGET + "[[target.access]]\naddresses = ['1.2.3.400']\n", 3, "1.2.3.400"),
        (TARGET + "redirect = 'a b'\n", 3, "redirect"),
        ("[chap.x]\n" + TARGET, 1, "expected one of secret"),
        ("[chap.x]\nsecret_env = 'NOT_THERE_AT_ALL'\n" + TARGET, 2, "has no NOT_THERE"),
        ("[chap.x]\nsecret_file = 'nothing'\n" + TARGET, 2, "No such file"),
    ],
)
def test_a_fault_names_its_line_and_its_key(tmp_path, text, line, said):
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as raised:
        load_file(path)
    (fault,) = raised.value.faults
    assert fault.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert said in fault


def test_all_faults_are_told_at_once(tmp_path):
    text = "[server]\nmax_logins = 0\nnope = 1\n" + TARGET + LUN + "size = 0\n"
    with pytest.raises(SettingsError) as raised:
        load_file(write(tmp_path, text))
    faults = raised.value.faults
    assert [int(fault.split(":")[1]) for fault in faults] == [2, 3, 9]
    assert all(fault in raised.value.message for fault in faults)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[chap.x]\nsecret = 12345678901\n", "this is not possible"),
        ("[chap.x]\nsecret = 'hunter2'\n", "has 7 bytes"),
    ],
)
def test_no_message_shows_a_secret(tmp_path, text, said):
    more = "[[target.access]]\naccounts = ['x']\n"
    with pytest.raises(SettingsError) as raised:
        load_file(write(tmp_path, text + TARGET + more))
    everything = "".join(raised.value.faults) + raised.value.hint
    assert said in everything
    assert "hunter2" not in everything
    assert "12345678901" not in everything


def test_short_secrets_are_taken_when_the_file_says_so(tmp_path):
    text = "[server]\nshort_secrets = true\n[chap.x]\nsecret = 'hunter2'\n"
    text += TARGET + "[[target.access]]\naccounts = ['x']\n"
    assert load_file(write(tmp_path, text)).short_secrets


@pytest.mark.parametrize(
    ("text", "said"), [("a = ", "is not TOML"), (None, "cannot read"), ("\xff", "is not TOML")]
)
def test_what_is_no_file_or_no_toml_is_said(tmp_path, text, said):
    path = tmp_path / "target.toml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=said):
        load_file(path)


def test_lines_of_keys_are_found_by_their_path():
    text = "a = 1\n[t.'x-y']\nb = 2\n[[l]]\nc=1\n[[l.m]]\nd.e = 1\n[[l]]\n[[l.m]]\nd = 2\n"
    lines = key_lines(text)
    assert lines[("a",)] == 1
    assert lines[("t", "x-y", "b")] == 3
    assert lines[("l", 0, "c")] == 5
    assert lines[("l", 0, "m", 0, "d", "e")] == 7
    assert lines[("l", 1, "m", 0, "d")] == 10
    assert line_of(lines, ("l", 1, "m", 0, "nothing")) == 9
    assert line_of(lines, ("nothing",)) == 0


# --- portals over RDMA -------------------------------------------------------------------------

RDMA = """
    [server]
    placement = "datamover"

    [[portal]]
    listen = "127.0.0.1:3261"

    [[portal]]
    listen = "127.0.0.1:3262"
    iser = true

    [[target]]
    name = "iqn.2026-01.org.example:one"

      [[target.lun]]
      lun = 0
      backend = "ram"
      size = "1M"
"""


def test_a_portal_is_tcp_unless_the_file_says_rdma(tmp_path):
    found = load_file(write(tmp_path, RDMA)).portals
    assert [(each.portal.port, each.rdma) for each in found] == [(3261, False), (3262, True)]


def test_whether_a_portal_is_rdma_is_yes_or_no(tmp_path):
    with pytest.raises(SettingsError, match="iser"):
        load_file(write(tmp_path, RDMA.replace("iser = true", "iser = 1")))


def flags(*words):
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    return settings_of(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "portals", "placement"),
    [
        (["--iser", "127.0.0.1:3262"], [(3262, True)], "engine"),
        (
            ["--iser", "127.0.0.1:3262", "--portal", "127.0.0.1:3261"],
            [(3261, False), (3262, True)],
            "engine",
        ),
        (
            ["--iser", "127.0.0.1:3262", "--placement", "datamover"],
            [(3262, True)],
            "datamover",
        ),
    ],
)
def test_a_portal_for_iser_has_an_engine_frame_its_pdus(words, portals, placement):
    found = flags(*words)
    assert [(each.portal.port, each.rdma) for each in found.portals] == portals
    assert found.limits["placement"] == placement


def test_a_crc_over_rdma_is_wanted_unless_the_settings_say_otherwise(tmp_path):
    assert load_file(write(tmp_path, RDMA)).limit("mpa_crc")
    without = RDMA.replace("placement =", "mpa_crc = false\n    placement =")
    assert not load_file(write(tmp_path, without)).limit("mpa_crc")
    assert not flags("--iser", "127.0.0.1:3262", "--no-mpa-crc").limit("mpa_crc")
    with pytest.raises(UsageError, match="--no-mpa-crc is about iSER"):
        flags("--no-mpa-crc")


def test_an_address_for_iser_that_is_none_is_named():
    with pytest.raises(UsageError, match="nowhere:at:all"):
        flags("--iser", "nowhere:at:all")
