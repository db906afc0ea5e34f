"""The guest's kernel and its root file system, one initial RAM disk, made of Debian packages.

An image is named by the versions of its packages and by the text of the files that make it, so it
is made again when either changes, and never otherwise. `python -m tests.guest.image` makes it.
What goes in is a `Recipe`; each recipe has a cache folder of its own.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.guest import cpio
from tests.guest.packages import fetch, resolve, unpack

HERE = Path(__file__).parent
SOURCES = ("image.py", "packages.py", "cpio.py", "init.sh", "load.sh")
KERNEL = "linux-image-amd64"
PACKAGES = (
    KERNEL,
    "busybox-static",
    "dmsetup",
    "e2fsprogs",
    "fio",
    "multipath-tools",
    "open-iscsi",
    "sg3-utils",
    "sg3-utils-udev",
    "udev",
    "util-linux",
)
# Programs by their path in the packages; a pattern must match. The libraries they need come along.
PROGRAMS = (
    "bin/lsblk",
    "bin/udevadm",
    "sbin/blkdiscard",
    "sbin/dmsetup",
    "sbin/fstrim",
    "sbin/iscsi*",
    "sbin/mke2fs",
    "sbin/multipath*",
    "sbin/e2fsck",
    "usr/bin/fio",
    "usr/bin/sg_*",
    "sbin/resize2fs",
    "lib/udev/*_id",
)
TREES = (
    "lib/multipath",
    "lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "etc/iscsi",
    "etc/mke2fs.conf",
)
LINKS = {
    "sbin/mkfs.ext4": "mke2fs",
    "sbin/fsck.ext4": "e2fsck",
    "sbin/udevd": "../bin/udevadm",  # it looks at its name
    "bin/sh": "busybox",
}
# Kernel modules by group; those that they depend on come along. `load GROUP` inserts them.
MODULES = {
    "base": (
        "virtio_pci",
        "virtio_net",
        "virtio_console",
        "virtio_blk",
        "crc32c_generic",
        "crc32c_intel",
        "ext4",
    ),
    "initiator": ("sd_mod", "sg", "iscsi_tcp"),
    "multipath": ("scsi_dh_alua", "dm_multipath", "dm_round_robin", "dm_service_time"),
    "target": (
        "target_core_mod",
        "target_core_file",
        "iscsi_target_mod",
        "md5",
        "sha1_generic",
        "sha256_generic",
        "sha3_generic",
    ),
    "host": ("9pnet_virtio", "9p", "overlay"),
}
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True)
class Image:
    """What QEMU boots: a kernel and its initial RAM disk. Its folder may hold more."""

    kernel: Path
    initrd: Path

    @property
    def folder(self):
        return self.initrd.parent


@dataclass(frozen=True)
class Recipe:
    """What an image is made of: packages, what is taken from them, modules by group, the names of
    the files whose text decides, and `add(making)`, run before the modules are chosen.
    """

    packages: tuple[str, ...] = PACKAGES
    programs: tuple[str, ...] = PROGRAMS
    modules: dict[str, tuple[str, ...]] = field(default_factory=lambda: MODULES)
    sources: tuple[str, ...] = SOURCES
    add: Callable[["Making"], None] = lambda making: None


@dataclass(frozen=True)
class Making:
    """An image on its way: unpacked packages, the kernel's apart, and what becomes its folder."""

    cache: Path
    work: Path
    packages: tuple[Path, ...]

    @property
    def system(self):
        return self.work / "system"

    @property
    def kernel(self):
        return self.work / "kernel"

    @property
    def image(self):
        return self.work / "image"


BASE = Recipe()


def cache_folder():
    """Where images are kept: PPE_GUEST_CACHE, or ppe-guest in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PPE_GUEST_CACHE") or Path(home) / "ppe-guest")


def prepare(cache=None, recipe=BASE):
    """The image for the packages of today, made now (a minute) if it is not there."""
    cache = cache or cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = resolve(cache, recipe.packages)
        folder = cache / f"image-{_key(files, recipe)}"
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                packages = fetch(cache, recipe.packages, files)
                _make(Making(cache, Path(work), tuple(packages)), recipe)
                for old in cache.glob("image-*"):
                    shutil.rmtree(old)
                (Path(work) / "image").rename(folder)
        return Image(folder / "vmlinuz", folder / "initrd")


def _key(files, recipe):
    text = "\n".join(files).encode()
    parts = [(HERE / name).read_bytes() for name in recipe.sources]
    return hashlib.blake2b(b"\0".join([text, *parts]), digest_size=8).hexdigest()


def _make(making, recipe):
    """Unpack the packages, choose from them, and write the image."""
    root = making.work / "root"
    for package in making.packages:
        is_kernel = package.name.startswith("linux-image")
        unpack(package, making.kernel if is_kernel else making.system)
    root.mkdir()
    making.image.mkdir()
    recipe.add(making)
    _copy_programs(making.system, root, recipe.programs)
    _copy_modules(making.kernel, root, recipe.modules)
    (found,) = making.kernel.glob("boot/vmlinuz-*")
    shutil.copy(found, making.image / "vmlinuz")
    with (making.image / "initrd").open("wb") as stream:
        cpio.write(root, stream)


def _matches(system, pattern):
    found = sorted(system.glob(pattern))
    assert found, f"no package has {pattern}"
    return found


def _copy_programs(system, root, patterns):
    programs = [path for pattern in patterns for path in _matches(system, pattern)]
    wanted = [*programs, system / "bin/busybox"]
    plugins = [*system.glob("lib/multipath/*.so")]
    for path in [*wanted, *_libraries(system, [*programs, *plugins])]:
        _copy(path, root / path.relative_to(system))
    for tree in TREES:
        (found,) = _matches(system, tree)
        _copy(found, root / tree)
    for name, to in LINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(to)
    for source, name in (("init.sh", "init"), ("load.sh", "bin/load")):
        _copy(HERE / source, root / name)
        (root / name).chmod(0o755)
    for name, text in (("passwd", "root:x:0:0::/root:/bin/sh\n"), ("group", "root:x:0:\n")):
        (root / "etc" / name).write_text(text)


def _copy(source, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, to, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, to, follow_symlinks=not source.is_symlink() or _leads_out(source))


def _leads_out(link):
    """Whether a link is better copied as the file it leads to: libraries are looked up by link."""
    return ".so" in link.name


def _libraries(system, programs):
    """The shared libraries that the programs need, as the packages' own loader finds them."""
    loader = system / "lib64/ld-linux-x86-64.so.2"
    loader = system / "lib/x86_64-linux-gnu" / loader.readlink().name
    folders = [system / "lib/x86_64-linux-gnu", system / "usr/lib/x86_64-linux-gnu"]
    folders += [folder / "ceph" for folder in folders]
    search = ":".join(str(folder) for folder in [*folders, system / "lib"])
    found = {system / "lib64/ld-linux-x86-64.so.2"}
    for program in programs:
        with program.open("rb") as head:
            if program.is_symlink() or head.read(4) != b"\x7fELF":
                continue
        listed = subprocess.run(
            [loader, "--library-path", search, "--list", program],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert "not found" not in listed.stdout, f"{program}: {listed.stdout}"
        found |= {Path(path) for path in re.findall(r"=> (/\S+)", listed.stdout)}
    return sorted(path for path in found if path.is_relative_to(system))


def _copy_modules(kernel, root, groups):
    files = {path.stem.replace("-", "_"): path for path in kernel.glob("lib/modules/**/*.ko")}
    builtin = {
        Path(line).stem.replace("-", "_")
        for path in kernel.glob("lib/modules/*/modules.builtin")
        for line in path.read_text().splitlines()
    }
    for group, names in groups.items():
        ordered = []
        for name in names:
            _add(name, files, builtin, ordered)
        for name in ordered:
            _copy(files[name], root / "modules" / f"{name}.ko")
        text = "".join(f"{name}.ko\n" for name in ordered)
        (root / "modules" / f"{group}.list").write_text(text)


def _add(name, files, builtin, ordered):
    """Append a module behind all that it depends on, each once."""
    if name in ordered or name in builtin:
        return
    assert name in files, f"the kernel package has no module {name}"
    depends = _DEPENDS.search(files[name].read_bytes())
    for other in depends[1].decode().split(",") if depends and depends[1] else ():
        _add(other.replace("-", "_"), files, builtin, ordered)
    ordered.append(name)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(f"{prepare().initrd.parent}\n")
