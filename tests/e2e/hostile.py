"""What a hostile client does: `python -m tests.e2e.hostile WHAT TOLD SEED`.

Every behaviour prints "done" when the engine let it run to its end; the test then looks whether the
engine still serves everybody else and has taken everything back.
"""

import contextlib
import mmap
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time

from tests.e2e.raw import (
    ACCEPT,
    CANCEL,
    CLOSE,
    EXACT,
    NOP,
    RECEIVE,
    SEND,
    SHUTDOWN,
    SLOT,
    RawChannel,
    RawClient,
    shared_file,
)


def say(word):
    """Tell the test how far this process is."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


EDGES = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 4096, 65536, 65537)


def scribble(told, seed):
    """Write random words everywhere in the channel while posting operations, some of them sane."""
    rng = random.Random(seed)
    client = RawClient(told)
    channel = RawChannel(client)
    region, _, _ = client.region(65536)
    ends = channel.pair()
    size = len(channel.memory)
    for _ in range(3000):
        word = rng.choice((rng.getrandbits(64), channel.position + rng.randrange(-3, 70)))
        at = rng.randrange(0, size // 8) * 8
        struct.pack_into("<Q", channel.memory, at, word & (2**64 - 1))
        if rng.random() < 0.5:
            opcode = rng.choice((NOP, ACCEPT, SEND, RECEIVE, SHUTDOWN, CLOSE, CANCEL, 0, 77, 130))
            channel.post(
                opcode, slots=rng.choice((1, 1, 1, 0, 2, 4, 5, 255)), flags=rng.getrandbits(16),
                endpoint=rng.choice((*ends, rng.getrandbits(32))),
                region=rng.choice((region, region, rng.getrandbits(32))),
                length=rng.choice((8, 4096, rng.getrandbits(32))),
                offset=rng.choice((0, 61440, *EDGES)), arg0=rng.choice(EDGES),
            )  # fmt: skip
        if rng.random() < 0.3:
            channel.put("event_head", rng.choice((rng.getrandbits(62), channel.position)))
        with contextlib.suppress(BlockingIOError):
            channel.ring()


def lie(told, seed):
    """Name memory, endpoints and slots that are not its own: each is refused, one by one."""
    client = RawClient(told)
    channel = RawChannel(client)
    region, _, _ = client.region(65536)
    mine = channel.pair()
    one = mine[0]
    channel.do(CLOSE, endpoint=channel.listener)
    sane = {"endpoint": one, "region": region, "offset": 0, "length": 64}
    lies = [{"offset": edge} for edge in EDGES if edge not in (0, 1, 4096)]
    lies += [{"length": length} for length in (0, 65537, 2**31, 2**32 - 1)]
    lies += [{"offset": 65536, "length": 1}, {"offset": 65535, "length": 2}]
    lies += [{"region": (generation << 16) | index}
             for generation in (0, 1, 2, 0x7FFF, 0xFFFF) for index in (*range(8), 0xFFFF)
             if (generation << 16) | index != region]  # fmt: skip
    for changed in lies:
        for opcode in (SEND, RECEIVE):
            done = channel.do(opcode, **{**sane, **changed})
            assert done["status"] == -14, (changed, done)
    for endpoint in [(g << 16) | i for g in (0, 1, 2, 0x7FFF, 0xFFFF) for i in (*range(8), 0xFFFF)]:
        if endpoint in mine:
            continue
        for opcode in (SEND, RECEIVE, ACCEPT, SHUTDOWN, CLOSE, CANCEL):
            done = channel.do(opcode, **{**sane, "endpoint": endpoint})
            assert done["status"] == -9, (endpoint, opcode, done)
    for opcode in (0, 10, 64, 127, 128, 129, 130, 131, 132, 255):
        assert channel.do(opcode)["status"] in (-95, -22), opcode
    for opcode in range(16, 64):  # the datamover's and the RNIC's
        assert channel.do(opcode)["status"] == -9, opcode  # of no endpoint,
        assert channel.do(opcode, endpoint=one)["status"] == -22, opcode  # and of a stream
    for slots in (0, 3, 5, 255):
        assert channel.do(NOP, slots=slots)["status"] == -22, slots
    assert channel.do(NOP)["status"] == 0  # and the channel still works


def truncate_channel(told, seed):
    """Take its channel's memory away while the engine polls it."""
    client = RawClient(told)
    channel = RawChannel(client)
    for number in range(10):
        channel.post(NOP, user_data=number)
    os.ftruncate(channel.descriptor, 0)
    with contextlib.suppress(BlockingIOError):
        channel.ring()
    assert client.is_hung_up(), "the engine did not end this client"


def truncate_region(told, seed):
    """Take a buffer away before and while the engine moves bytes through it."""
    client = RawClient(told)
    channel = RawChannel(client)
    region, descriptor, _ = client.region(1 << 20)
    one, two = channel.pair()
    channel.post(RECEIVE, endpoint=two, region=region, length=1 << 19, flags=EXACT, user_data=1)
    channel.post(SEND, endpoint=one, region=region, offset=1 << 19, length=1 << 18, user_data=2)
    if seed % 2:
        time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    channel.post(SEND, endpoint=one, region=region, offset=1 << 19, length=1 << 18, user_data=3)
    channel.post(SEND, endpoint=one, region=region, offset=0, length=4096, user_data=4)
    seen = [channel.poll(2) for _ in range(3)]
    assert any(done is not None and done["status"] < 0 for done in seen), seen


def bad_segments(told, seed):
    """Pass descriptors that are not what was announced: each is refused."""
    client = RawClient(told)
    page = mmap.PAGESIZE
    memfd = os.memfd_create("not-shm")
    os.ftruncate(memfd, page)
    plain = tempfile.TemporaryFile(dir="/var/tmp")  # noqa: SIM115 - closed with the process
    plain.truncate(page)
    good, read_only = shared_file(page), shared_file(page)
    read_only = os.open(f"/proc/self/fd/{read_only}", os.O_RDONLY)
    pipe, _ = os.pipe()
    wrong = [
        ([memfd], page), ([plain.fileno()], page), ([pipe], page),
        ([os.open("/dev/null", 0)], page),
        ([good], 2 * page), ([good], 1 << 40), ([good], -page), ([good], 0), ([good], "4096"),
        ([good], None), ([good, good], page), ([], page), ([read_only], page),
        ([shared_file(1 << 20, allocate=False)], 1 << 20), ([os.open("/dev/shm", 0)], page),
    ]  # fmt: skip
    for descriptors, size in wrong:
        answer, _ = client.call("register", descriptors, size=size)
        assert "error" in answer, (descriptors, size, answer)
    for work, events in (
        (64, 64),
        (0, 0),
        (7, 64),
        (1 << 20, 64),
        (True, 8),
        ("64", 64),
        (64, -64),
    ):
        answer, _ = client.call("attach", [good], work=work, events=events)  # no header, too small
        assert "error" in answer, (work, events, answer)
    for call in ("detach", "unregister"):
        for name in (0, 1, -1, 5, None, "x", [1], {}, 2**70):
            answer, _ = client.call(call, channel=name, region=name)
            assert "error" in answer, (call, name, answer)
    region, _, _ = client.region(page)  # and an honest one is taken
    assert region > 0


def babble(told, seed):
    """Send garbage of every kind on the control socket."""
    rng = random.Random(seed)
    null = os.open("/dev/null", os.O_RDONLY)
    lines = [
        b"", b"\0" * 100, b"{", b"[]", b"1", b'"x"', b"null", b'{"call": ' + b"9" * 4000 + b"}",
        b"\xff\xfe" * 50, b'{"call": "hello"}', b'{"call": "hello", "version": [], "layout": "x"}',
        b'{"call": "hello", "version": 1e308, "layout": {"a": 1}}', b'{"call": {}}',
        b'{"call": []}',
        b'{"call": "attach"}', b'{"call": "accounts"}', b"{" + b'"a":{' * 200, b" " * 65536,
        b" " * 100_000, b'{"call": "stat", "id": ' + b"[" * 900 + b"]" * 900 + b"}",
    ]  # fmt: skip
    for line in lines:
        for descriptors in ([], [null], [null] * 8, [null] * 30):
            client = RawClient(told, greet=rng.random() < 0.5)
            with contextlib.suppress(OSError):
                client.say(line, descriptors, listen=False)
            client.connection.settimeout(0.002)
            with contextlib.suppress(TimeoutError):
                client.listen()
            client.close()


def nested(told, seed):
    """Send JSON that is nested too deeply to be read."""
    client = RawClient(told)
    client.say(b"[" * 60_000, listen=False)
    assert client.is_hung_up()


def deaf(told, seed):
    """Ask and ask, and never read an answer."""
    client = RawClient(told)
    client.connection.settimeout(5)
    with contextlib.suppress(OSError):
        for _ in range(20_000):
            client.say(b'{"call": "stat"}', listen=False)
    assert client.is_hung_up(), "the engine kept a client that reads nothing"


def never_reap(told, seed):
    """Fill the event ring and never look at it; stay until told to go."""
    client = RawClient(told)
    channel = RawChannel(client)
    for number in range(64):
        channel.post(NOP, user_data=number)
    say("full")
    sys.stdin.read()


def die_posting(told, seed):
    """Post until killed in the middle of it."""
    client = RawClient(told)
    channel = RawChannel(client)
    region, _, _ = client.region(65536)
    one, two = channel.pair()
    say("running")
    while True:
        channel.post(RECEIVE, endpoint=two, region=region, length=512)
        channel.post(SEND, endpoint=one, region=region, offset=4096, length=512)
        channel.seen += 2
        channel.put("event_head", channel.seen)


def die_receiving(told, seed):
    """Be killed while the engine writes into its memory."""
    client = RawClient(told)
    channel = RawChannel(client)
    region, _, _ = client.region(8 << 20)
    listener, port = channel.listen()
    channel.post(ACCEPT, endpoint=listener)
    with socket.create_connection(("127.0.0.1", port)) as feeder:
        end = channel.poll()["endpoint"]
        for number in range(7):
            channel.post(RECEIVE, endpoint=end, region=region, offset=number << 20,
                         length=1 << 20, flags=EXACT)  # fmt: skip
        say("running")
        while True:
            feeder.sendall(bytes(1 << 16))


def twice(told, seed):
    """Pass one segment as a channel and as two regions, and have the engine receive into it."""
    client = RawClient(told)
    channel = RawChannel(client)
    size = len(channel.memory)
    names = [client.call("register", [channel.descriptor], size=size)[0]["region"] for _ in "ab"]
    assert names[0] != names[1]
    one, two = channel.pair()
    for _ in range(5):
        channel.post(RECEIVE, endpoint=two, region=names[0], offset=0, length=size)
        channel.post(SEND, endpoint=one, region=names[1], offset=0, length=size - SLOT)
    time.sleep(0.1)


def suicide(told, seed):
    """Attach, then die without a word."""
    client = RawClient(told)
    RawChannel(client).pair()
    client.region(1 << 20)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    behaviours = {name: what for name, what in globals().items() if callable(what)}
    behaviours[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    say("done")
