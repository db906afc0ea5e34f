"""A capture of iWARP, looked at with tshark, and what was said on each of its connections: messages
put together again from the bytes by the RFCs' words alone, none of our code's.
"""

import subprocess
from dataclasses import dataclass

READ_S = 120
# Two guesses of tshark's about the payload of a Send, both wrong here.
QUIET = ("--disable-protocol", "rpcordma", "--disable-protocol", "smb_direct")
START_LENGTH = 20  # of MPA's Request and Reply, without private data (RFC 5044 §7.1)
TAGGED, LAST = 0x80, 0x40  # of DDP's control field (RFC 5041 §4)
TAGGED_LENGTH, UNTAGGED_LENGTH = 14, 18
SENDS = (3, 4, 5, 6)
RDMA_WRITE, READ_REQUEST, READ_RESPONSE = 0, 1, 2


class Capture:
    """A capture file, looked at with tshark."""

    def __init__(self, path, since=0):
        self.path, self.since = path, since

    def fields(self, shown, *names):
        """The fields of the frames after the first `since` that a display filter shows."""
        shown = f"({shown}) and frame.number > {self.since}"
        words = [word for name in names for word in ("-e", name)]
        text = self._tshark("-Y", shown, "-T", "fields", *QUIET, *words)
        return [line.split("\t") for line in text.splitlines()]

    def _tshark(self, *words):
        command = ["tshark", "-n", "-r", self.path, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=READ_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def conversations(self, port):
        """The connections to a port that began after those frames, in order: what the active side
        said and what the passive side did, each a list of `Message`.
        """
        first = f"tcp.dstport == {port} and tcp.flags.syn == 1 and tcp.flags.ack == 0"
        found = [self._follow(stream) for (stream,) in self.fields(first, "tcp.stream")]
        return [tuple(messages_of(said) for said in both) for both in found]

    def _follow(self, stream):
        """The bytes of a connection, each way. tshark indents what the second one said."""
        sides = [[], []]
        for line in self._tshark("-q", "-z", f"follow,tcp,raw,{stream}").splitlines():
            word = line.strip()
            if word and not word.startswith(("=", "Follow", "Filter", "Node")):
                sides[line.startswith("\t")].append(bytes.fromhex(word))
        return [b"".join(side) for side in sides]


@dataclass
class Message:
    """An RDMAP message. `stag` is the one that it names: in its header, or to be invalidated."""

    opcode: int
    stag: int
    offset: int
    payload: bytes


def messages_of(said):
    """The messages in one side's bytes, from MPA's start-up on (RFC 5044 §4, without markers)."""
    messages, open_ones = [], {}
    at = START_LENGTH + int.from_bytes(said[18:20], "big")
    while at < len(said):
        length = int.from_bytes(said[at : at + 2], "big")
        ulpdu = said[at + 2 : at + 2 + length]
        at += 2 + length + -(2 + length) % 4 + 4
        assert at <= len(said), "an FPDU is cut off"
        _take(ulpdu, messages, open_ones)
    assert not open_ones, "a message has no end"
    return messages


def _take(ulpdu, messages, open_ones):
    """One segment. A tagged and an untagged message may interleave, two of a kind may not."""
    is_tagged = bool(ulpdu[0] & TAGGED)
    stag = int.from_bytes(ulpdu[2:6], "big")
    place = slice(6, 14) if is_tagged else slice(14, 18)
    offset = int.from_bytes(ulpdu[place], "big")
    payload = ulpdu[TAGGED_LENGTH if is_tagged else UNTAGGED_LENGTH :]
    message = open_ones.get(is_tagged)
    if message is None:
        message = open_ones[is_tagged] = Message(ulpdu[1] & 0x0F, stag, offset, b"")
        messages.append(message)
    assert message.opcode == ulpdu[1] & 0x0F, "a message in the midst of another"
    assert message.offset + len(message.payload) == offset, "a gap in a message"
    message.payload += payload
    if ulpdu[0] & LAST:
        del open_ones[is_tagged]
