"""A software iWARP RNIC: MPA, DDP and RDMAP over any reliable stream of bytes.

Sans-IO: bytes that came and the time in, spans of bytes to send and work completions out.
"""
