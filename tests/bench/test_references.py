"""The reference programs build without a warning, check what they are told, and print sane JSON."""

import json
import os
import socket
import subprocess

import pytest

from bench import reference_build
from bench.harness import Latency
from bench.reference_build import ReferenceMissing

pytestmark = [pytest.mark.slow, pytest.mark.interop("gcc", "g++")]
TWO_SPINNERS = ["floor_pingpong", "spsc_rigtorp", "memcpy_cores"]
BRIEF = {"samples": 500, "warmup": 50, "seconds": 20}
LIMIT_S = 60


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    """Build into a folder of our own: the user's cache must not hide a program that is broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cores():
    """Name two cores to pin to."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    return {"a": first, "b": second}


def check(result, name, count=500):
    latency = result["latency_ns"]
    assert result["name"] == name
    assert latency["count"] == sum(n for _, _, n in latency["bins"]) == count
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["p99"] <= latency["max"]
    for low, high, n in latency["bins"]:
        assert low < high
        assert n > 0
    assert Latency.from_reference(latency).percentile(50) == pytest.approx(
        latency["p50"], rel=0.07, abs=2
    )


@pytest.mark.parametrize("name", reference_build.names())
def test_every_reference_compiles_without_a_warning(name, monkeypatch):
    monkeypatch.setattr(reference_build, "FLAGS", (*reference_build.FLAGS, "-Werror"))
    assert os.access(reference_build.build(name), os.X_OK)


@pytest.mark.pinned
@pytest.mark.parametrize("name", TWO_SPINNERS)
def test_a_spinning_pair_measures_and_discards_its_warm_up(name, cores):
    result = reference_build.run(name, **BRIEF, **cores)
    check(result, name)
    assert result["latency_ns"]["warmup_discarded"] == 50
    assert result["cores"] == [cores["a"], cores["b"]]


@pytest.mark.parametrize("name", TWO_SPINNERS)
def test_two_spinners_on_one_core_are_refused(name):
    with pytest.raises(ReferenceMissing, match="two different cores"):
        reference_build.run(name, a=0, b=0)


@pytest.mark.pinned
@pytest.mark.parametrize("layout", ["split", "same core", "unpinned"])
def test_a_futex_wake_is_measured_in_every_layout(layout, cores):
    if layout != "split":
        cores = {"a": cores["a"], "b": cores["a"]} if layout == "same core" else {"a": -1, "b": -1}
    result = reference_build.run("futex_wake", **BRIEF, **cores)
    check(result, "futex_wake")
    assert result["cores"] == [cores["a"], cores["b"]]


@pytest.mark.pinned
@pytest.mark.parametrize(
    ("request_bytes", "response_bytes", "depth"),
    [(48, 4144, 1), (4144, 48, 1), (48, 4144, 32), (65584, 48, 32), (48, 65584, 4)],
)
def test_the_tcp_floor_moves_both_sizes_at_any_depth(request_bytes, response_bytes, depth, cores):
    sizes = {"request": request_bytes, "response": response_bytes, "depth": depth}
    result = reference_build.run("tcp_floor", **BRIEF, **cores, **sizes)
    check(result, "tcp_floor")
    assert result["iops"] > 0
    assert {key: result[key] for key in sizes} == sizes


def test_the_echo_server_answers_each_request_once():
    command = reference_build.command_line("tcp_echo_server", request=48, response=100, seconds=20)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = json.loads(server.stdout.readline())["port"]
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
                client.sendall(bytes(47))
                client.sendall(bytes(1 + 48))
                answer = b""
                while len(answer) < 200:
                    answer += client.recv(4096)
                assert len(answer) == 200
        finally:
            server.terminate()
        summary = json.loads(server.stdout.readline())
        assert server.wait(timeout=LIMIT_S) == 0
    assert summary == {"name": "tcp_echo_server", "requests": 2}


def test_a_misspelt_option_is_refused_and_names_the_known_ones():
    with pytest.raises(ReferenceMissing, match=r"sampels=3: unknown option; known: .* samples"):
        reference_build.run("tcp_floor", sampels=3)


def test_a_second_build_is_the_first_one_and_an_edit_is_another(monkeypatch, tmp_path):
    first = reference_build.build("floor_pingpong")
    stamp = first.stat().st_mtime_ns
    assert reference_build.build("floor_pingpong") == first
    assert first.stat().st_mtime_ns == stamp
    for path in reference_build.SOURCES.iterdir():
        (tmp_path / path.name).write_text(path.read_text() + "\n")
    monkeypatch.setattr(reference_build, "SOURCES", tmp_path)
    assert reference_build.build("floor_pingpong") != first


def test_an_unknown_reference_is_missing_and_the_known_ones_are_named():
    with pytest.raises(ReferenceMissing, match=r"no reference program nonsense; .*tcp_floor"):
        reference_build.build("nonsense")


def test_a_source_that_does_not_compile_is_missing_with_the_compilers_words(monkeypatch, tmp_path):
    (tmp_path / "broken.c").write_text("int main(void) { return nothing; }\n")
    monkeypatch.setattr(reference_build, "SOURCES", tmp_path)
    with pytest.raises(ReferenceMissing, match=r"broken\.c does not compile:[^$]*nothing"):
        reference_build.build("broken")
    assert list(reference_build.cache_directory().glob("broken*")) == []


def test_no_compiler_is_a_missing_reference(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ReferenceMissing, match="no compiler: none of gcc, cc, clang"):
        reference_build.run("floor_pingpong")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ReferenceMissing, match="CC=no-such-compiler is not a program"):
        reference_build.run("floor_pingpong")
