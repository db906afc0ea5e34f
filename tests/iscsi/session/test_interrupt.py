"""Ctrl-C, as a real SIGINT to a process in the middle of a long transfer."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.iscsi.session.tgt import WAIT_S, wait_for

pytestmark = [pytest.mark.interop("tgtd", "tgtadm"), pytest.mark.slow]

PROGRAM = """
import sys
import iscsi
with iscsi.open(sys.argv[1], sys.argv[2], queue_depth=int(sys.argv[3])) as device:
    print("reading", flush=True)
    try:
        while True:
            device.read(0, 100_000)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(len(device.read(7, 2)), flush=True)
"""


@pytest.mark.parametrize("depth", ["1", "32"])
def test_a_long_read_is_interrupted_and_the_device_goes_on(tgt, engine_name, depth):
    command = [sys.executable, "-c", PROGRAM, tgt.url, engine_name, depth]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout.readline() == "reading\n", child.stderr.read()
            time.sleep(0.2)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=WAIT_S)
        finally:
            child.kill()
    assert (out, child.returncode) == ("interrupted\n1024\n", 0), err


def talks_to(pid, port):
    found = psutil.Process(pid).net_connections()
    return any(one.raddr and one.raddr.port == port for one in found)


def test_the_command_line_ends_with_130(tgt):
    command = [sys.executable, "-m", "ppe", "iscsi", "perf", tgt.url, "-t", "60"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            wait_for(lambda: talks_to(child.pid, tgt.port), "the command to connect")
            time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=WAIT_S)
        finally:
            child.kill()
    assert child.returncode == 130, err
