"""Credit flow control: a peer may send as many messages as it was granted credits, and no more are
granted, over all endpoints that share a receive queue, than receives are posted in it.
"""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class CreditCounters:
    """Of one account."""

    granted: int = 0
    arrived: int = 0
    refused: int = 0  # grants that were asked for and not made, for lack of posted receives
    stalled: int = 0  # messages of ours that had to wait for a credit

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


class CreditPool:
    """The receives of one receive queue, posted and promised. `kept`: how many are never promised
    (for messages that may come without a credit, such as news of credits themselves).
    """

    def __init__(self, kept: int = 0) -> None:
        if kept < 0:
            raise ValueError(f"{kept} receives cannot be kept")
        self.kept, self.posted, self.promised = kept, 0, 0
        self._accounts: set[CreditAccount] = set()

    def post(self, count: int = 1) -> None:
        """More receives are posted."""
        self.posted += count

    @property
    def free(self) -> int:
        """Receives that nobody was promised."""
        return max(self.posted - self.kept - self.promised, 0)

    def account(self, target: int) -> "CreditAccount":
        """An account whose peer is to have up to `target` credits at a time."""
        account = CreditAccount(self, target)
        self._accounts.add(account)
        return account

    def close(self, account: "CreditAccount") -> None:
        """An endpoint is gone: what its peer did not use is free again."""
        self._accounts.discard(account)
        self.promised -= account.outstanding
        account.outstanding = 0


class CreditAccount:
    """Both directions of one endpoint: what we granted its peer, and what it granted us."""

    def __init__(self, pool: CreditPool, target: int) -> None:
        if target < 1:
            raise ValueError(f"an account of {target} credits lets nobody send")
        self.pool, self.target = pool, target
        self.outstanding = 0  # granted to the peer and not used
        self.available = 0  # granted to us and not used
        self.counters = CreditCounters()

    def grant(self) -> int:
        """Credits to send along with the next message, as many as may be promised."""
        wanted = self.target - self.outstanding
        count = min(wanted, self.pool.free)
        if count < wanted:
            self.counters.refused += 1
        self.outstanding += count
        self.pool.promised += count
        self.counters.granted += count
        return count

    def take_back(self, count: int) -> None:
        """The message that should have carried a grant was not sent."""
        self.outstanding -= count
        self.pool.promised -= count
        self.counters.granted -= count

    def arrived(self, *, with_credit: bool = True) -> None:
        """A message of the peer has used up a receive, and a credit unless it needed none.

        Raises ConnectionError if it had none: such a peer cannot be kept.
        """
        self.pool.posted -= 1
        self.counters.arrived += 1
        if not with_credit:
            return
        if self.outstanding == 0:
            raise ConnectionError("the peer sent a message that it had no credit for")
        self.outstanding -= 1
        self.pool.promised -= 1

    def granted(self, count: int) -> None:
        """The peer granted us more. Raises ConnectionError for nonsense."""
        if not 0 <= count <= 0xFFFF or self.available + count > 0xFFFF:
            raise ConnectionError(f"the peer granted {count} credits on top of {self.available}")
        self.available += count

    def spend(self) -> bool:
        """Use a credit for a message of ours. False: there is none, wait."""
        if self.available == 0:
            self.counters.stalled += 1
            return False
        self.available -= 1
        return True
