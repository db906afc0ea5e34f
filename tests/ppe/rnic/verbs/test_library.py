"""The search for pyverbs finds one that loads, or says what is the matter and what to do."""

import importlib.machinery
import sys

import pytest

from ppe.cycle.rnic.verbs import library

OWN = importlib.machinery.EXTENSION_SUFFIXES[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only place that is looked in; a folder pyverbs is there, empty."""
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == library.NAME]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "pyverbs").mkdir()
    (tmp_path / "pyverbs" / "__init__.py").touch()
    return tmp_path


def test_nothing_installed_is_told_with_the_package_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(library, "SYSTEM_FOLDERS", ())
    for name in [name for name in sys.modules if name.split(".")[0] == library.NAME]:
        monkeypatch.delitem(sys.modules, name)
    found = library.find()
    assert (found.state, found.fix) == (library.MISSING, library.APT_FIX)
    with pytest.raises(library.NoVerbsError, match="apt-get install python3-pyverbs"):
        library.load()


def test_one_for_another_python_is_named_with_both_versions(folder):
    (folder / "pyverbs" / "device.cpython-39-x86_64-linux-gnu.so").touch()
    found = library.find()
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found.state == library.OTHER_PYTHON
    assert f"built for Python 3.9, this is {own}" in found.detail
    assert "python3.9" in found.fix


def test_a_file_that_is_no_library_is_told_and_leaves_nothing_loaded(folder):
    (folder / "pyverbs" / f"device{OWN}").write_text("no ELF file")
    found = library.find()
    assert found.state == library.BROKEN
    assert "does not load" in found.detail
    assert library.NAME not in sys.modules


def test_a_folder_without_the_device_module_is_told(folder):
    assert library.find().state == library.BROKEN


def test_a_library_that_works_is_preferred_to_one_that_does_not(monkeypatch, folder):
    monkeypatch.delenv(library.FOLDER_VARIABLE)
    monkeypatch.setattr(library, "SYSTEM_FOLDERS", (str(folder), *library.SYSTEM_FOLDERS))
    monkeypatch.setattr(sys, "path", [])
    (folder / "pyverbs" / f"device{OWN}").write_text("no ELF file")
    found = library.find()
    assert found.folder != folder


SAID = [
    (
        "device.so: symbol ibv_query_gid_type version IBVERBS_PRIVATE_59 not defined in file"
        " libibverbs.so.1 with link time reference",
        library.MISMATCH,
        "rdma-core 59",
    ),
    (
        "/usr/lib/libibverbs.so.1: version `IBVERBS_1.15' not found (required by device.so)",
        library.MISMATCH,
        "newer rdma-core",
    ),
    (
        "/usr/lib/libmlx5.so.1: version `MLX5_1.25' not found (required by mlx5dv.so)",
        library.MISMATCH,
        "newer rdma-core",
    ),
    (
        "librdmacm.so.1: cannot open shared object file: No such file or directory",
        library.BROKEN,
        "librdmacm.so.1",
    ),
    ("something else", library.BROKEN, "something else"),
]


@pytest.mark.parametrize(("said", "state", "told"), SAID)
def test_what_the_linker_says_becomes_what_to_do(said, state, told, tmp_path):
    found = library.explain(said, tmp_path)
    assert found.state == state
    assert told in found.detail
    assert "apt-get install" in found.fix


@pytest.mark.interop("pyverbs")
def test_the_systems_own_loads_and_brings_nothing_else_with_it():
    before = list(sys.path)
    assert library.part("cmid").ConnParam is not None
    assert sys.path == before


@pytest.mark.interop("pyverbs")
def test_connection_parameters_carry_private_data_with_zeros_in_it():
    made = library.part("cmid").ConnParam(resources=5, depth=7, data_len=4)
    made.set_private_data(b"a\0b\0")
    assert made.private_data == b"a\0b\0"
