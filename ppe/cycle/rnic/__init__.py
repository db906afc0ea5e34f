"""RNICs: what the engine's RDMA service drives, real or in software, and the memory both protect.

`records` and `memory` are shared, the numbers are `shm.verbs_numbers`'; a provider (`iwarp`,
`verbs`) turns work requests into traffic and traffic into work completions. No provider knows an
endpoint, a ring or a socket.
"""
