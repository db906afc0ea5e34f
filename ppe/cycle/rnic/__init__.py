"""RNICs: what the engine's RDMA service drives, real or in software, and the memory both protect.

`constants`, `records` and `memory` are shared; a provider (`iwarp`, `verbs`) turns work requests
into traffic and traffic into work completions. No provider knows an endpoint, a ring or a socket.
"""
