"""Provider `verbs`: any RDMA device that libibverbs knows, its queues driven by compiled code.

Set-up is cold and goes through pyverbs (`device`, `queues`, `connection`); posting and polling call
the device's own functions through the pointers in its context (`send`, `receive`, `poll`). The one
rule: a pointer taken out of a pyverbs object is used only after it has proven what it is
(`pointers`). Nothing here is imported unless a verbs device is asked for.
"""
