"""How a session that ends takes leave of its target: with a logout, over RDMA not hanging up first.
All of it is politeness, so none of it lasts longer than a moment.
"""

from typing import Final

from iscsi.session.core import SessionCore

LOGOUT_S: Final = 2.0  # for the Logout Response
HANG_UP_S: Final = 0.2  # and then for the target's end of the connection


def awaits_hang_up(core: SessionCore) -> bool:
    """Whether, after a Logout Response, it is left to the target to hang up: over RDMA.

    An RNIC reports a Send as failed if the stream ends before it completes; LIO's target on siw
    then releases its response twice and fills the log of its kernel.
    """
    return core.lost is None and core.down is None and core.connection.is_rdma
