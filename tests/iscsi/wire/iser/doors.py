"""Doors from Python into iSER's compiled halves: one a role, so that each is compiled once."""

from iscsi.wire.iser import initiator, initiator_tags, target, work
from shm.jit import entry

POST, WORK, RECEIVE, TAGGED, SENT, RECEIVED, LEFT = range(7)


@entry("int64(intp, int64, intp, intp, int64, int64)")
def initiator_half(iser, what, first, second, third, fourth):
    """What an engine calls an initiator's half for; the arguments are those of the function."""
    if what == POST:
        return initiator.on_post(iser, first, second, third, fourth)
    if what == WORK:
        return 1 if initiator.work_next(iser, first) else 0
    if what == RECEIVE:
        return 1 if work.receive_next(iser, first) else 0
    if what == TAGGED:
        initiator.tagged(iser, first, second, third, fourth != 0)
        return 0
    if what == SENT:
        return initiator.sent(iser, first)
    if what == RECEIVED:
        return initiator.received(iser, first)
    return initiator_tags.tag_left(iser)


@entry("int64(intp, int64, intp, intp, int64, int64)")
def target_half(iser, what, first, second, third, fourth):
    """What an engine calls a target's half for."""
    if what == POST:
        return target.on_post(iser, first, second, third, fourth)
    if what == WORK:
        return 1 if target.work_next(iser, first) else 0
    if what == RECEIVE:
        return 1 if work.receive_next(iser, first) else 0
    if what == SENT:
        return target.sent(iser, first)
    return target.received(iser, first)
