"""The ways a session's bytes are moved, for tests that go through all of them."""

MODES = [("staged", 4), ("exact", 4), ("coalesced", 1), ("datamover", 4)]


def moved_by(receive, depth):
    """The options of one way: over a stream by this receive mode, or by the engine's datamover."""
    if receive == "datamover":
        return {"placement": receive, "queue_depth": depth}
    return {"placement": "stream", "receive": receive, "queue_depth": depth}
