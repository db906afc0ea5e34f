"""Handles, channels and buffers: who may use them, what waiting means, what closing leaves."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import host
from host.errors import NothingOutstanding, WrongThread
from shm.jit import JIT_DISABLED
from tests.e2e.running import ROOT, wait_until
from tests.host.conftest import connected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PATIENCE_S = 10


@pytest.fixture
def listener(channel):
    """Give a listener nobody connects to: whatever waits on it waits for good."""
    endpoint, _ = channel.listen("127.0.0.1", 0)
    yield endpoint
    channel.close_endpoint(endpoint)


def descriptors():
    """Count what this process has open, once nothing is left that could be collected."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_closed_handle_leaves_no_descriptor(kind, daemons):
    def use():
        with contextlib.ExitStack() as stack:
            handle = connected(kind, daemons, stack)
            with handle.channel() as channel, handle.alloc(100):
                listener, port = channel.listen("127.0.0.1", 0)
                channel.connect("127.0.0.1", port)
                channel.accept(listener)
                channel.post_nop(1)

    use()
    before = descriptors()
    for _ in range(3):
        use()
    assert descriptors() == before


def test_wait_n_of_nothing_is_an_error(channel):
    for n in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            channel.wait_n(n)


def test_waiting_for_nothing_outstanding_says_so(channel):
    with pytest.raises(NothingOutstanding):
        channel.wait_n(1)
    with pytest.raises(NothingOutstanding):
        channel.complete(5)
    assert channel.wait_n(1, timeout_s=0.01).reason == "deadline"


def test_wait_n_of_more_than_can_arrive_returns_with_what_does(channel):
    for user_data in range(5):
        channel.post_nop(user_data)
    assert channel.wait_n(1_000_000, timeout_s=PATIENCE_S) == (5, "threshold")
    assert channel.wait_n(5).ready == 5  # nothing was consumed
    assert len(channel.poll()) == 5


def test_after_the_minimum_wait_one_is_enough(channel, listener):
    channel.post_accept(listener, 1)
    channel.post_nop(2)
    waited = channel.wait_n(2, min_wait_s=0.05, timeout_s=PATIENCE_S)
    assert waited == (1, "min_wait")
    assert channel.complete(2).ok
    channel.post_cancel(listener, 1, 3)
    assert channel.complete(3).ok
    channel.complete(1)


def test_a_wait_ends_at_its_deadline_with_what_is_there(channel, listener):
    channel.post_accept(listener, 1)
    channel.post_nop(2)
    assert channel.wait_n(2, timeout_s=0.25) == (1, "deadline")  # longer than a tick
    channel.poll()
    channel.post_cancel(listener, 1, 3)
    channel.complete(1)
    channel.complete(3)


def test_poll_gives_no_more_than_it_is_asked_for(channel):
    for user_data in range(10):
        channel.post_nop(user_data)
    channel.wait_n(10, timeout_s=PATIENCE_S)
    channel.progress()  # all are in the backlog now
    assert [c.user_data for c in channel.poll(3)] == [0, 1, 2]
    assert [int(row["user_data"]) for row in channel.poll_array(3)] == [3, 4, 5]
    channel.post_nop(10)
    assert channel.wait_n(5, timeout_s=PATIENCE_S).ready == 5
    assert [c.user_data for c in channel.poll()] == [6, 7, 8, 9, 10]


def test_another_thread_is_refused(handle, channel):
    errors = []

    def use():
        for call in (channel.poll, lambda: channel.post_nop(1), lambda: channel.wait_n(1)):
            try:
                call()
            except WrongThread as error:
                errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(PATIENCE_S)
    assert len(errors) == 3


def test_a_forked_child_is_refused_and_does_no_harm(handle, channel):
    listener, port = channel.listen("127.0.0.1", 0)
    child = os.fork()
    if child == 0:
        outcome = 1
        try:
            with contextlib.suppress(WrongThread):
                channel.post_nop(1)
                os._exit(2)
            with contextlib.suppress(WrongThread):
                handle.channel()
                os._exit(3)
            channel.close()
            handle.close()
            outcome = 0
        finally:
            os._exit(outcome)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client = channel.connect("127.0.0.1", port)  # the parent's channel works as before
    server, _ = channel.accept(listener, timeout_s=PATIENCE_S)
    with handle.alloc(4) as data, handle.alloc(4) as got:
        data.array[:] = 7
        channel.send(client, data, PATIENCE_S)
        assert channel.recv(server, got, exact=True, timeout_s=PATIENCE_S) == 4
        assert (got.array == 7).all()
    for endpoint in (client, server, listener):
        channel.close_endpoint(endpoint)


def test_a_closed_channel_says_so(handle):
    channel = handle.channel()
    channel.close()
    channel.close()
    with pytest.raises(ValueError, match="closed"):
        channel.post_nop(1)
    with pytest.raises(ValueError, match="closed"):
        channel.wait_n(1)


def test_a_buffer_is_freed_once_and_not_used_after(handle, channel):
    buffer = handle.alloc(100)
    buffer.free()
    with pytest.raises(ValueError, match="freed"):
        buffer.free()
    with pytest.raises(ValueError, match="freed"):
        channel.post_recv(1, buffer)


@pytest.mark.parametrize("size", [0, -5])
def test_a_buffer_of_nothing_is_refused(handle, size):
    with pytest.raises(ValueError, match="holds nothing"):
        handle.alloc(size)


def test_a_buffer_may_be_larger_than_an_arena(handle):
    with handle.alloc(9 << 20) as large, handle.alloc(10) as small:
        large.array[:] = 1
        small.array[:] = 2
        assert int(large.array.sum()) == 9 << 20
    again = handle.alloc((9 << 20) + 1)  # the same size class: the memory is used again
    again.free()


def test_a_buffer_may_outlive_its_handle(kind, daemons):
    with contextlib.ExitStack() as stack:
        buffer = connected(kind, daemons, stack).alloc(100)
    buffer.array[:] = 3
    buffer.free()


# An inline engine belongs to one thread, so this is about daemons.
@pytest.mark.parametrize("kind", ["daemon:io_uring", "daemon:epoll"], indirect=True)
def test_threads_that_allocate_at_once_share_no_byte(handle):
    taken = [[] for _ in range(4)]

    def take(number):
        for _ in range(300):
            buffer = handle.alloc(64 + 64 * (number % 2))
            buffer.array[:] = number
            taken[number].append(buffer)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    for number, buffers in enumerate(taken):
        assert len(buffers) == 300
        assert all((buffer.array == number).all() for buffer in buffers)


def test_several_channels_of_one_handle_do_not_mix(handle):
    with handle.channel() as first, handle.channel() as second:
        listener, port = first.listen("127.0.0.1", 0)
        first.post_accept(listener, 1)
        client = second.connect("127.0.0.1", port)
        server = first.complete(1, PATIENCE_S).endpoint
        data, got = handle.alloc(5), handle.alloc(5)
        data.array[:] = np.frombuffer(b"hello", np.uint8)
        second.post_send(server, data, 9)  # not its endpoint
        assert not second.complete(9, PATIENCE_S).ok
        second.send(client, data, PATIENCE_S)
        assert first.recv(server, got, exact=True, timeout_s=PATIENCE_S) == 5
        assert bytes(got.array) == b"hello"


@pytest.mark.parametrize("where", ["inline:?idle=sleep", "inline:?idle=spin", "daemon"])
def test_ctrl_c_ends_a_wait(where, daemons):
    if JIT_DISABLED and where != "daemon":
        pytest.skip("ctypes drops an exception that is raised in the cycle it calls")
    name = where
    environment = dict(os.environ)
    if where == "daemon":
        engine = daemons("epoll")
        name, environment = engine.name, engine.environment
    script = (
        "import sys, host\n"
        f"with host.connect({name!r}) as engine, engine.channel() as channel:\n"
        "    listener, _ = channel.listen('127.0.0.1', 0)\n"
        "    print('waiting', flush=True)\n"
        "    try:\n"
        "        channel.accept(listener)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', channel.counts['outstanding'], flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "waiting\n"
        time.sleep(0.2)  # it should be asleep by now; it must work whether it is or not
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert out == "interrupted 0\n"
    assert child.returncode == 0


@pytest.mark.parametrize("query", ["idle=fast", "readiness=magic", "colour=red"])
def test_a_misspelt_inline_option_is_named(query):
    with pytest.raises(ValueError, match="the options are"):
        host.connect("inline:?" + query)


# --- asyncio ---------------------------------------------------------------------------------


def test_tasks_wait_at_once_and_each_gets_its_own(handle, channel, pair):
    client, server = pair

    async def main():
        bridge = host.AsyncChannel(channel)
        buffers = [handle.alloc(8) for _ in range(20)]

        async def receive(number):
            channel.post_recv(server, buffers[number], number, exact=True)
            completion = await bridge.complete(number)
            return completion.check().length, int(buffers[number].array[0])

        tasks = [asyncio.create_task(receive(number)) for number in range(20)]
        await asyncio.sleep(0)
        for number in range(20):
            data = handle.alloc(8)
            data.array[:] = number
            channel.post_send(client, data, 1000 + number)
            (await bridge.complete(1000 + number)).check()
            data.free()
        results = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
        bridge.close()
        return results

    assert asyncio.run(main()) == [(8, number) for number in range(20)]


def test_a_waiting_task_does_not_hold_the_loop_up(channel, listener):
    async def main():
        bridge = host.AsyncChannel(channel)
        channel.post_accept(listener, 1)
        waiting = asyncio.create_task(bridge.wait_n(1))
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not waiting.done()
        channel.post_cancel(listener, 1, 2)
        result = await asyncio.wait_for(waiting, PATIENCE_S)
        await asyncio.wait_for(bridge.complete(2), PATIENCE_S)
        bridge.close()
        return result.ready

    assert asyncio.run(main()) >= 1
    assert channel.complete(1).user_data == 1


def test_a_task_that_gives_up_disturbs_no_other(channel, listener):
    async def main():
        bridge = host.AsyncChannel(channel)
        channel.post_accept(listener, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bridge.complete(1), 0.05)
        channel.post_nop(2)
        assert (await asyncio.wait_for(bridge.complete(2), PATIENCE_S)).ok
        channel.post_cancel(listener, 1, 3)
        await asyncio.wait_for(bridge.complete(1), PATIENCE_S)
        await asyncio.wait_for(bridge.complete(3), PATIENCE_S)
        with pytest.raises(NothingOutstanding):
            await bridge.complete(99)
        with pytest.raises(ValueError, match="at least 1"):
            await bridge.wait_n(0)
        bridge.close()

    asyncio.run(main())


def test_a_large_transfer_runs_through_the_loop(handle, channel, pair):
    client, server = pair
    size = 4 << 20
    data, got = handle.alloc(size), handle.alloc(size)
    data.array[:] = np.random.default_rng(2).integers(0, 256, size, np.uint8)

    async def main():
        bridge = host.AsyncChannel(channel)
        channel.post_recv(server, got, 1, exact=True)
        channel.post_send(client, data, 2)
        both = asyncio.gather(bridge.complete(1), bridge.complete(2))
        results = await asyncio.wait_for(both, PATIENCE_S)
        bridge.close()
        return [result.length for result in results]

    assert asyncio.run(main()) == [size, size]
    assert np.array_equal(data.array, got.array)


def test_two_channels_share_one_loop(handle):
    async def main(first, second):
        bridges = host.AsyncChannel(first), host.AsyncChannel(second)
        listener, port = first.listen("127.0.0.1", 0)
        first.post_accept(listener, 1)
        accepted = asyncio.create_task(bridges[0].complete(1))
        await asyncio.sleep(0)
        second.post_connect(("127.0.0.1", port), 2)
        made = await asyncio.wait_for(bridges[1].complete(2), PATIENCE_S)
        got = await asyncio.wait_for(accepted, PATIENCE_S)
        for bridge in bridges:
            bridge.close()
        return made.ok and got.ok

    with handle.channel() as first, handle.channel() as second:
        assert asyncio.run(main(first, second))


def test_a_connect_that_nobody_answers_times_out_in_the_loop(channel):
    import socket

    async def main(address):
        bridge = host.AsyncChannel(channel)
        channel.post_connect(address, 1, timeout_s=0.1)
        completion = await asyncio.wait_for(bridge.complete(1), PATIENCE_S)
        bridge.close()
        return completion

    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with pytest.raises(TimeoutError):
            asyncio.run(main(full.getsockname())).check()


def test_a_wait_really_sleeps_and_the_engine_wakes_it(daemons):
    engine = daemons("epoll")
    with contextlib.ExitStack() as stack:
        handle = connected("daemon:epoll", daemons, stack)
        channel = stack.enter_context(handle.channel())
        listener, port = channel.listen("127.0.0.1", 0)
        before = engine.counters()["wakes"]
        slept = channel.counts["sleeps"]
        channel.post_accept(listener, 1)
        script = f"import socket; socket.create_connection(('127.0.0.1', {port})).close()"
        child = subprocess.Popen([sys.executable, "-c", script])
        completion = channel.complete(1, PATIENCE_S)
        assert child.wait(PATIENCE_S) == 0
        assert completion.ok
        assert channel.counts["sleeps"] > slept
        wait_until(lambda: engine.counters()["wakes"] > before, "the wake to be counted")
