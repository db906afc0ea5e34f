"""Services: what the engine can do for its clients, composed into the cycle from one tuple.

A service is a module with `OPCODES` and `on_work(engine, channel, wqe, slots)`, called with a WQE
already copied to private memory, and `on_edge(engine, endpoint, mask)`, `on_receive(engine,
endpoint)`, `on_transmit(engine, endpoint)`, `on_timer(engine, endpoint)` for its endpoints. Each
returns how much it did.
"""
