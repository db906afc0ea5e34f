"""What importing the protocol core loads, and the lazy names of the package."""

import subprocess
import sys

import pytest

import iscsi

COLD = "bhs text keys names negotiation security login discovery scsi scsi_data sense url errors"


def test_the_cold_core_loads_neither_compiler_nor_sockets_nor_higher_layers():
    names = ", ".join(f"iscsi.wire.{name}" for name in COLD.split())
    code = f"import sys, {names}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "iscsi" in loaded
    assert not loaded & {"numba", "numpy", "host", "ppe", "socket", "asyncio"}


def test_public_names_are_listed_before_they_are_loaded():
    assert {"open", "aopen", "BlockDevice"} <= set(dir(iscsi))
    assert set(iscsi.__all__) <= set(dir(iscsi))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        _ = iscsi.opne
