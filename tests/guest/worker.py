"""A Python process in the guest that runs what tests ask for, one call after the other: to start
one takes a quarter of a minute there, a call takes nothing.

`python -m tests.guest.worker PORT MODULE...` imports the modules, listens, prints `ready` and
serves one connection. A request is a line of JSON, `{"call": "module:function", "arguments": {}}`;
the answer is `{"result": ...}` or `{"error": traceback}`. With port 0 it only imports: what that
compiles, on this machine, is what the guest finds in the cache.
"""

import importlib
import json
import socket
import sys
import traceback


def answer(request):
    """Run one call."""
    try:
        module, _, name = request["call"].partition(":")
        function = getattr(importlib.import_module(module), name)
        return {"result": function(**request["arguments"])}
    except BaseException:
        return {"error": traceback.format_exc()}


def serve(port):
    """Serve one connection until it is closed."""
    with socket.create_server(("0.0.0.0", port)) as listener:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        connection, _ = listener.accept()
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            lines.write(json.dumps(answer(json.loads(line))) + "\n")
            lines.flush()


def main(port, *modules):
    for module in modules:
        importlib.import_module(module)
    if int(port):
        serve(int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
