"""siw, Linux's software iWARP, as a kernel module: Debian's kernel leaves it out, so it is built
from Debian's own kernel source against the headers of the kernel that the guest boots. No root is
needed and nothing is installed; only the driver's folder of the source is ever unpacked. What was
built is kept in the cache, by kernel and by the text of this file.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.guest.packages import fetch_alone, unpack

BUILD_S = 240
_FOLDER = "/drivers/infiniband/sw/siw/"
_IMAGE = re.compile(r"linux-image-(?P<abi>(?P<series>\d+\.\d+)\.[\w.-]+)-amd64_")
_SYSTEM = "/usr/src/"  # where the headers believe they are


def build(making):
    """Make siw.ko for the kernel in `making` and lay it beside that kernel's other modules."""
    (found,) = filter(None, (_IMAGE.match(path.name) for path in making.packages))
    kept = making.cache / f"siw-{_key(found.string)}.ko"
    if not kept.is_file():
        built = _build(making, found["abi"], found["series"])
        for old in making.cache.glob("siw-*.ko"):
            old.unlink()
        shutil.copy(built, kept)
    (modules,) = making.kernel.glob("lib/modules/*/kernel")
    shutil.copy(kept, modules / "siw.ko")


def _key(kernel):
    text = kernel.encode() + Path(__file__).read_bytes()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _build(making, abi, series):
    names = [f"linux-headers-{abi}-amd64", f"linux-headers-{abi}-common"]
    names += [f"linux-kbuild-{series}", f"linux-source-{series}"]
    work = making.work / "siw"
    for package in fetch_alone(making.cache, work / "packages", names):
        if package.name.startswith("linux-source"):
            _take_driver(package, work / "driver")
        else:
            unpack(package, work / "headers")
    return _compile(work / "headers", f"linux-headers-{abi}-amd64", work / "driver")


def _take_driver(package, folder):
    """Unpack the driver's folder from the archive in the package, and stop reading behind it."""
    folder.mkdir()
    reader = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    try:
        with tarfile.open(fileobj=reader.stdout, mode="r|") as outer:
            source = next(entry for entry in outer if entry.name.endswith(".tar.xz"))
            with tarfile.open(fileobj=outer.extractfile(source), mode="r|xz") as inner:
                _take_files(inner, folder)
    finally:
        reader.kill()
        reader.communicate()
    assert (folder / "siw_main.c").is_file(), f"{package.name} has no siw"


def _take_files(archive, folder):
    found = False
    for entry in archive:
        if _FOLDER in entry.name and entry.isfile():
            found = True
            (folder / Path(entry.name).name).write_bytes(archive.extractfile(entry).read())
        elif found:  # entries are sorted: all of the folder has come
            return


def _compile(headers, name, driver):
    place = headers / "usr/src" / name
    makefile = place / "Makefile"
    makefile.write_text(makefile.read_text().replace(_SYSTEM, f"{headers}{_SYSTEM}"))
    # The headers name the compiler of Debian's kernel; any that is near will do for a test.
    command = ["make", "-C", place, f"M={driver}", "CONFIG_RDMA_SIW=m", "CC=gcc", "modules"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_S, check=False, env=clean
    )
    assert done.returncode == 0, f"siw does not compile: {done.stdout}{done.stderr}"
    subprocess.run(["strip", "--strip-debug", driver / "siw.ko"], timeout=60, check=True)
    return driver / "siw.ko"
