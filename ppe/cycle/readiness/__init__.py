"""Readiness: learning which sockets and bells have news, without a system call per pass.

Two pollers behind one face (`poller.py`): io_uring, whose completion queue and task flag are plain
memory, and epoll where io_uring is forbidden. Both report edges with a 64-bit tag.
"""
