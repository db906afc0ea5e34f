"""The Login phase (RFC 7143 §6.3) as two state machines without I/O: `InitiatorLogin` and
`TargetLogin`. This module only gathers the names; each role has a module of its own.
"""

from iscsi.wire.login_common import (
    MAX_LOGIN_SEGMENT,
    LoginIdentity,
    LoginMachine,
    LoginResult,
    Stage,
)
from iscsi.wire.login_initiator import InitiatorLogin
from iscsi.wire.login_target import TargetLogin, TargetPolicy, refusal

__all__ = [
    "MAX_LOGIN_SEGMENT",
    "InitiatorLogin",
    "LoginIdentity",
    "LoginMachine",
    "LoginResult",
    "Stage",
    "TargetLogin",
    "TargetPolicy",
    "refusal",
]
