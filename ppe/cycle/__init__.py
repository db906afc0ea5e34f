"""The duty cycle as a library: stages, transports, readiness, services.

No process, no signal, no control socket: `ppe.daemon` gives it a pinned thread, `host.inline` the
caller's own. Everything that runs per pass is compiled; building its tables is plain Python.
"""
