"""Transports: what lies under every endpoint.

A transport module offers `connect, listen, accept, receive, transmit, half_close, close, events`
over an endpoint's index; spans of memory go in, byte counts or `-errno` come out. Nothing above
knows a file descriptor, so a user-space TCP/IP stack can take the kernel sockets' place.
"""
