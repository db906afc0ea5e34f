"""Fuzzing what is plain Python: logins of both roles with and without CHAP, and everything that
reads text or data that a peer or a user wrote. One rule: a wrong input ends in the error that its
reader documents, and in no other.
"""

import random
import tempfile
from pathlib import Path

from iscsi.target.settings import load_file
from iscsi.wire import bhs, discovery, scsi, scsi_data, sense, text
from iscsi.wire.bhs import Opcode
from iscsi.wire.chap import ChapAccount, InitiatorChap, TargetChap
from iscsi.wire.errors import ProtocolError
from iscsi.wire.keys import DIGEST_CRC32C, DIGEST_NONE, KEYS, Proposal
from iscsi.wire.login import InitiatorLogin, TargetLogin, TargetPolicy
from iscsi.wire.names import name_fault, parse_address
from iscsi.wire.url import UrlError, parse_url
from ppe.errors import ConfigError

DISK, HOST = "iqn.2026-01.org.example:t", "iqn.2026-01.org.example:i"
VALUES = (
    *("Yes", "No", "None", "CRC32C", "CHAP", "0", "1", "-1", "512", "16777215", "16777216", "0x10"),
    *(
        "Reject",
        "NotUnderstood",
        "Irrelevant",
        "CHAP,None",
        "5",
        "8,7,6,5",
        "256",
        "",
        ",",
        "=",
        "9" * 40,
    ),
    *("0x" + "ab" * 16, "0b" + "QUJD" * 8, "0x" + "0" * 4000, "0x1", "0b=", "iqn.x:y", DISK, HOST),
    *("Discovery", "Normal", "a" * 255, "a" * 256, "b" * 9000, "127.0.0.1:3260,1", "[::1]:3260"),
)
NAMES = (
    *KEYS,
    *(
        "CHAP_A",
        "CHAP_I",
        "CHAP_C",
        "CHAP_N",
        "CHAP_R",
        "X-com.example",
        "Y",
        "a" * 63,
        "b" * 64,
        "",
    ),
)


def pairs_of(rng):
    """Key=value items, some of them broken."""
    items = []
    for _ in range(rng.randrange(8)):
        item = f"{rng.choice(NAMES)}={rng.choice(VALUES)}".encode()
        if rng.random() < 0.1:
            item = item.replace(b"=", b"")
        if rng.random() < 0.1 and item:
            at = rng.randrange(len(item))
            item = item[:at] + bytes((rng.randrange(256),)) + item[at + 1 :]
        items.append(item + b"\0" * (rng.random() < 0.95))
    return b"".join(items)


def _check_words(error):
    """A peer's words in a message write no lines of their own."""
    assert str(error).isprintable(), f"{error!r} writes lines of its own"


class LoginFuzz:
    """One login against bytes that begin as the other side's would, and go on wrong."""

    name = "login"

    def __init__(self, seed):
        self.pdus = 0

    def begin(self, case_seed):
        """Both roles' machines, of which one is attacked, the other a source of good PDUs."""
        self.draw = rng = random.Random(case_seed)
        # CHAP's challenges come from here, so that a case is the same when it is replayed.
        secrets_of = rng.randbytes
        account = ChapAccount("user", b"a secret of twelve")
        own = ChapAccount("target", b"another secret, as long")
        is_mutual, has_chap = rng.random() < 0.5, rng.random() < 0.6
        digests = (DIGEST_CRC32C, DIGEST_NONE) if rng.random() < 0.5 else (DIGEST_NONE,)
        proposal = Proposal(header_digest=digests, data_digest=digests)
        ours = theirs = None
        if has_chap:
            ours = InitiatorChap(account, own if is_mutual else None, random=secrets_of)
            theirs = TargetChap((account,), own if is_mutual else None, random=secrets_of)
        target = None if rng.random() < 0.2 else DISK
        self.initiator = InitiatorLogin(
            HOST, target, isid=0x80_00_00_00_00_01, proposal=proposal, security=ours
        )
        self.target = TargetLogin(TargetPolicy({DISK}), proposal=proposal, security=theirs)
        self.is_target = rng.random() < 0.7
        self.victim = self.target if self.is_target else self.initiator
        self.source = self.initiator if self.is_target else self.target
        self.initiator.start()
        self.is_over = False
        if not self.is_target:
            self._pass(self.target, self.initiator.data_to_send())

    def messages(self):
        """PDUs of the other side's machine while it goes on, changed with growing odds."""
        for _ in range(self.draw.randrange(1, 80)):
            if self.is_over:
                return
            good = self.source.data_to_send() if not self.source.failed else b""
            yield self._changed(good)

    def _changed(self, good):
        rng = self.draw
        if good and rng.random() < 0.5:
            return good
        if not good or rng.random() < 0.3:
            opcode = Opcode.LOGIN_REQUEST if self.is_target else Opcode.LOGIN_RESPONSE
            if rng.random() < 0.05:
                opcode = rng.choice(list(Opcode))
            fields = {}
            if opcode in (Opcode.LOGIN_REQUEST, Opcode.LOGIN_RESPONSE):
                fields = {"isid": 0x80_00_00_00_00_01, "csg": rng.randrange(4)}
                fields |= {"transit": rng.getrandbits(1), "nsg": rng.randrange(4)}
                fields |= {"continued": rng.random() < 0.2, "tsih": rng.choice((0, 0, 1))}
            data = pairs_of(rng)[:9000]
            return bhs.encode_pdu(opcode, data, **{n: int(v) for n, v in fields.items()})
        if rng.random() < 0.5:
            header = bytearray(good[:48])
            header[rng.randrange(48)] ^= 1 << rng.randrange(8)
            return bytes(header) + good[48:]
        data = good[48:].rstrip(b"\0") + b"\0" + pairs_of(rng)
        header = bytearray(good[:48])
        header[5:8] = (len(data) & 0xFFFFFF).to_bytes(3, "big")
        return bytes(header) + data + bytes(-len(data) % 4)

    def feed(self, message):
        """One PDU to the victim, its answer to the source."""
        self.pdus += 1
        self.is_over = not self._pass(self.victim, message)
        answer = self.victim.data_to_send()
        assert len(answer) <= 64 << 10, "an answer without bound"
        if answer and not self.source.failed:
            self._pass(self.source, answer)
        self.is_over = self.is_over or self.victim.done

    def _pass(self, login, data):
        """Feed whole PDUs; False when the login is over."""
        at = 0
        try:
            while len(data) - at >= 48 and not (login.done or login.failed):
                header = data[at : at + 48]
                length = login.segment_length(header)
                body = data[at + 48 : at + 48 + length]
                if len(body) < length:
                    body = body.ljust(length, b"\0")
                login.receive_pdu(header, body)
                at += 48 + length
        except ProtocolError as error:
            _check_words(error)
            assert login.failed
            return False
        return not login.failed

    def end(self):
        """A login that succeeded has a result that can be used, and CHAP was passed for it."""
        if self.target.done:
            params = self.target.result.session
            assert 512 <= params.first_burst_length <= params.max_burst_length


def _read_settings(data):
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        load_file(Path(file.name))


def _as_text(parse):
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


SEEDS = {
    "discovery": b"TargetName=iqn.2026-01.org.example:t\0TargetAddress=127.0.0.1:3260,1\0",
    "text": b"HeaderDigest=CRC32C,None\0MaxBurstLength=262144\0",
    "sense": bytes.fromhex("700006000000000a00000000290000000000"),
    "descriptor sense": bytes.fromhex("7206290000000012000a80000000000000000000020600000000"),
    "url": b"iscsi://user%password@[::1]:3260/iqn.2026-01.org.example:t/1?header_digest=crc32c",
    "address": b"127.0.0.1:3260,1",
    "name": b"iqn.2026-01.org.example:t",
    "inquiry": bytes(36),
    "designators": bytes.fromhex(
        "01030008600000000000000102140004000000010103000830000000000000ff"
    ),
    "block limits": bytes(60),
    "capacity": scsi_data.build_capacity_16(scsi_data.Capacity(4096, 512)),
    "luns": bytes.fromhex("00000010000000000000000000000000000100000000000000"),
    "vpd": bytes.fromhex("0083000401020304"),
    "mode": bytes(24),
    "cdb": bytes(16),
    "settings": b"""[server]
login_timeout_s = 5
[[portal]]
listen = "127.0.0.1:3260"
[[target]]
name = "iqn.2026-01.org.example:t"
[[target.lun]]
lun = 0
backend = "ram"
size = "16M"
""",
}
READERS = {
    "discovery": (discovery.parse_response, ProtocolError),
    "text": (text.decode, ProtocolError),
    "sense": (sense.decode_sense, ()),
    "descriptor sense": (lambda data: sense.decode_sense(sense.split_sense(data)), ProtocolError),
    "url": (_as_text(parse_url), UrlError),
    "address": (_as_text(parse_address), ()),
    "name": (_as_text(name_fault), ()),
    "inquiry": (scsi_data.parse_inquiry, ProtocolError),
    "designators": (scsi_data.parse_designators, ProtocolError),
    "block limits": (scsi_data.parse_block_limits, ProtocolError),
    "capacity": (scsi_data.parse_capacity_16, ProtocolError),
    "luns": (scsi_data.parse_luns, ProtocolError),
    "vpd": (lambda data: scsi_data.parse_vpd(0x83, data), ProtocolError),
    "mode": (scsi_data.is_write_protected, ProtocolError),
    "cdb": (scsi.parse_cdb, ProtocolError),
    "settings": (_read_settings, ConfigError),
}


def mutated(rng, data):
    """Bytes like the ones given."""
    data = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        roll = rng.randrange(6)
        if roll == 0:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif roll == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif roll == 2 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif roll == 3:
            data[at:at] = rng.choice((b"\0", b"%", b"=", b",", b"/", b"\n", b"\xff", b"9" * 30))
        elif roll == 4:
            data[at:at] = data[: rng.randrange(min(len(data), 4096) + 1)] * rng.choice((1, 2, 30))
        else:
            del data[at:]
    return bytes(data[: 64 << 10])


class ParserFuzz:
    """Readers of text and data, one after another."""

    name = "parsers"

    def __init__(self, seed):
        self.pdus = 0

    def begin(self, case_seed):
        """Each case is a handful of inputs for one reader."""
        self.draw = random.Random(case_seed)
        self.what = self.draw.choice(list(READERS))

    def messages(self):
        """Mutations of something right."""
        for _ in range(50):
            yield mutated(self.draw, SEEDS[self.what])

    def feed(self, message):
        """It is read, or refused as documented."""
        self.pdus += 1
        parse, refused = READERS[self.what]
        try:
            parse(message)
        except refused as error:
            if isinstance(error, ProtocolError):  # what a peer said, not what a user wrote
                _check_words(error)

    def end(self):
        """Nothing is kept between inputs."""
