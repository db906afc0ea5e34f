"""Two units that are given the same file are an error that names it, before any harm."""

import pytest

import host
from iscsi.target.backends import FileBackend, NullBackend
from iscsi.target.config import ServerConfig
from iscsi.target.server import TargetServer
from iscsi.target.units import LogicalUnit, Target
from iscsi.wire.names import Portal
from tests.iscsi.target.serving import NAME, OTHER, Serving

SIZE = 1 << 20


def null(path=None):
    return LogicalUnit(NullBackend(SIZE), reservations_path=path and str(path))


def start(*targets):
    with (
        host.connect("inline:") as engine,
        TargetServer(engine, ServerConfig(targets, (Portal("127.0.0.1", 0),))),
    ):
        pass


def test_the_same_file_for_two_units_names_the_file(tmp_path):
    backend = FileBackend(tmp_path / "disk", size=SIZE)
    try:
        with pytest.raises(OSError, match=r"another unit or another server") as caught:
            FileBackend(tmp_path / "." / "disk")
        assert caught.value.filename == str(tmp_path / "disk")
    finally:
        backend.close()


def test_the_same_reservations_for_two_units_are_refused(tmp_path):
    path = tmp_path / "reservations"
    again = tmp_path / "sub" / ".." / "reservations"
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="reservations: two units"):
        start(Target(NAME, {0: null(path)}), Target(OTHER, {0: null(again)}))


def test_reservations_in_a_units_own_data_are_refused(tmp_path):
    path = tmp_path / "disk"
    backend = FileBackend(path, size=SIZE)
    try:
        with pytest.raises(ValueError, match="disk: two units"):
            start(Target(NAME, {0: LogicalUnit(backend), 1: null(path)}))
    finally:
        backend.close()


def test_a_unit_that_two_targets_have_is_one_unit(tmp_path):
    unit = null(tmp_path / "reservations")
    start(Target(NAME, {0: unit}), Target(OTHER, {0: unit}))


def test_a_unit_that_comes_later_is_checked_too(tmp_path):
    path = tmp_path / "reservations"
    with Serving() as serving:
        serving.server.add_unit(NAME, 7, null(path))
        with pytest.raises(ValueError, match="two units"):
            serving.server.add_unit(OTHER, 7, null(path))
        assert 7 not in serving.server._targets[OTHER].units
        serving.server.remove_unit(NAME, 7)
        serving.server.add_unit(OTHER, 7, null(path))
