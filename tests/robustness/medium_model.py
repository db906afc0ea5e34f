"""What a medium may hold. Each block has the set of contents that it may have: one once a write was
acknowledged, several while writes of it are open or ended without an answer. One rule: what a
write may leave is added before its first byte can arrive, and taken out only by an answer.
"""

import numpy as np

BLOCK = 512
ZEROS = bytes(BLOCK)


class Wrong(AssertionError):
    """The medium holds, or a read brought, what nobody wrote."""


class Medium:
    """The model of one unit. Blocks in `wild` were in a PDU that was damaged on its way: they are
    anything until they are written again, and to a read that was open meanwhile also after that.
    """

    def __init__(self, content):
        self.possible = [{bytes(row)} for row in content.reshape(-1, BLOCK)]
        self.wild = set()
        self.readers = {}  # open reads: what each of their blocks may show, and which are wild

    @property
    def blocks(self):
        return len(self.possible)

    def begin_read(self, reader, lba, blocks):
        """From now on it may show what is there, and what is begun while it is open."""
        fresh = [set(self.possible[at]) for at in range(lba, lba + blocks)]
        self.readers[reader] = (lba, fresh, self.wild.intersection(range(lba, lba + blocks)))

    def end_read(self, reader, data=None):
        """Check what a read brought; None if it brought nothing."""
        lba, allowed, wild = self.readers.pop(reader)
        for index, contents in enumerate(allowed if data is not None else ()):
            if lba + index not in wild:
                self._check(lba + index, data[BLOCK * index : BLOCK * (index + 1)], contents)

    def begin_write(self, lba, contents):
        """A change may happen from now on. `contents`: of each of its blocks, afterwards."""
        for index, content in enumerate(contents):
            self.possible[lba + index].add(content)
            for start, allowed, _ in self.readers.values():
                if 0 <= lba + index - start < len(allowed):
                    allowed[lba + index - start].add(content)

    def end_write(self, lba, contents):
        """A change was acknowledged: nothing else is possible."""
        for index, content in enumerate(contents):
            self.possible[lba + index] = {content}
            self.wild.discard(lba + index)

    def damage(self, lba, blocks):
        """What was on its way to these blocks may have changed: anything may be there."""
        places = range(lba, lba + blocks)
        self.wild.update(places)
        for _, _, wild in self.readers.values():
            wild.update(places)

    def known(self, lba, blocks):
        """The contents of some blocks, or None if they are not certain."""
        places = range(lba, lba + blocks)
        if any(at in self.wild or len(self.possible[at]) > 1 for at in places):
            return None
        return b"".join(next(iter(self.possible[at])) for at in places)

    def check_all(self, content):
        """Compare with the medium itself, when nothing is open."""
        for at, row in enumerate(content.reshape(-1, BLOCK)):
            if at not in self.wild:
                self._check(at, bytes(row), self.possible[at])

    def _check(self, at, found, allowed):
        """One of the contents, or torn between them: a block is no atomic unit of a write."""
        if found in allowed:
            return
        rows = np.array([np.frombuffer(content, np.uint8) for content in allowed])
        if len(allowed) > 1 and (rows == np.frombuffer(found, np.uint8)).any(axis=0).all():
            return
        raise Wrong(
            f"block {at} holds {found[:16].hex()}..., which is none of "
            f"{sorted(content[:16].hex() for content in allowed)}"
        )
