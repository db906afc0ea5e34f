"""The iSCSI protocol without input or output: bytes in, bytes and decisions out.
Nothing here owns a socket, a clock or a thread, and nothing here imports host or engine code.
"""
