"""An honest client beside hostile ones: it echoes blocks through the engine and verifies each."""

import contextlib

import numpy as np

import host
from tests.e2e.running import environment_of

PATIENCE_S = 15
BLOCK = 4096


class Echo:
    """A connection through the engine to itself. `verify` raises when a byte is wrong or late."""

    def __init__(self, engine):
        self._stack = contextlib.ExitStack()
        with environment_of(engine):
            self.handle = self._stack.enter_context(host.connect(engine.name))
        self.channel = self._stack.enter_context(self.handle.channel())
        listener, port = self.channel.listen("127.0.0.1", 0)
        self.client = self.channel.connect("127.0.0.1", port)
        self.server, _ = self.channel.accept(listener, timeout_s=PATIENCE_S)
        self.channel.close_endpoint(listener)
        self.out, self.back = self.handle.alloc(BLOCK), self.handle.alloc(BLOCK)
        self._random = np.random.default_rng(7)
        self.blocks = 0

    def verify(self, rounds=20):
        """Send blocks of random bytes one way and back."""
        for _ in range(rounds):
            self.out.array[:] = self._random.integers(0, 256, BLOCK, np.uint8)
            for sender, receiver in ((self.client, self.server), (self.server, self.client)):
                self.back.array[:] = 0
                self.channel.send(sender, self.out, PATIENCE_S)
                self.channel.recv(receiver, self.back, exact=True, timeout_s=PATIENCE_S)
                assert np.array_equal(self.out.array, self.back.array), "the bytes are wrong"
            self.blocks += 2
        assert self.channel.counts["outstanding"] == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()
