"""A QEMU process with the guest in it, and the way to run commands there.

It owns all it starts: one QEMU, killed by its process object; a folder with its socket and console.
The guest's network is QEMU's own: 10.0.2.2 is this machine's loopback, nothing else is reachable.
"""

import contextlib
import functools
import os
import shlex
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.guest.agent import Agent, GuestFailed

QEMU_TOOLS = (
    "qemu-system-x86_64",
    "apt-get",
    "dpkg-deb",
    "setpriv",
)  # what a guest and its image need
HOST = "10.0.2.2"  # this machine, seen from the guest
BOOT_S = 150
CONNECT_S = 20
KVM_TRIAL_S = 8
_CONSOLE_TAIL = 3000


class Guest:
    """A running guest. `forwards`: pairs of a port of this machine's loopback and the guest's;
    `disks`: raw files that it may write; `host_root`: whether it sees this machine's file system,
    read-only, by the tag hostroot; `more`: further words for QEMU.
    """

    def __init__(self, image, *, forwards=(), disks=(), host_root=False, memory="640M", more=()):
        self._folder = tempfile.TemporaryDirectory(prefix="guest-")
        place = Path(self._folder.name)
        self.console = place / "console"
        self._socket_path = place / "agent"
        self._agent = None
        words = _command(image, place, forwards, disks, host_root, memory)
        with (place / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*words, *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._connect()
            self._asked(self._agent.wait_until_ready, BOOT_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def run(self, command, *, timeout=60, check=True):
        """Run shell text and return what became of it; with `check` its status must be 0."""
        ran = self._asked(self._agent.run, command, timeout)
        if check and ran.status != 0:
            raise GuestFailed(f"status {ran.status} of: {command}\n{ran.output}\n{self.kernel()}")
        return ran

    def output(self, command, *, timeout=60):
        """What a command printed that must succeed."""
        return self.run(command, timeout=timeout).output

    def wait_for(self, command, *, timeout=30):
        """Run a command, again and again, until it succeeds; its output."""
        return self.run(f"until {command}; do sleep 0.2; done", timeout=timeout).output

    def write(self, path, text):
        """Put a file into the guest."""
        self.run(f"mkdir -p $(dirname {path}); printf %s {shlex.quote(text)} >{path}")

    def kernel(self):
        """The end of what the guest's kernel said."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return f"console: {text[-_CONSOLE_TAIL:]}"

    def pull_the_plug(self):
        """End the machine between two instructions: what its page cache held is gone."""
        self.process.kill()
        self.process.wait()

    def close(self):
        """End the machine and remove its folder."""
        if self._agent is not None:
            self._agent.close()
        self.pull_the_plug()
        self._folder.cleanup()

    def _connect(self):
        deadline = time.monotonic() + CONNECT_S
        while True:
            self._check_alive()
            made = socket.socket(socket.AF_UNIX)
            try:
                made.connect(str(self._socket_path))
            except OSError as error:
                made.close()
                if time.monotonic() > deadline:
                    raise GuestFailed("QEMU made no socket") from error
                time.sleep(0.05)
            else:
                self._agent = Agent(made)
                return

    def _check_alive(self):
        if self.process.poll() is not None:
            said = (self.console.parent / "qemu.log").read_text(errors="replace")
            raise GuestFailed(f"QEMU ended with {self.process.returncode}: {said}{self.kernel()}")

    def _asked(self, ask, *arguments):
        """Ask the agent; what goes wrong is told with why: QEMU's end, or the kernel's words."""
        try:
            return ask(*arguments)
        except (GuestFailed, OSError) as error:
            self._check_alive()
            raise GuestFailed(f"{error}; {self.kernel()}") from error


def _command(image, place, forwards, disks, host_root, memory):
    """QEMU's command line."""
    forwarded = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in forwards)
    # A test run that is killed takes its guest along.
    words = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *acceleration()]
    words += ["-smp", "2", "-m", memory]
    words += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    words += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    words += ["-append", "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on"]
    words += ["-serial", f"file:{place / 'console'}", "-device", "virtio-rng-pci"]
    words += ["-netdev", f"user,id=net0{forwarded}", "-device", "virtio-net-pci,netdev=net0"]
    words += ["-device", "virtio-serial-pci"]
    words += ["-chardev", f"socket,id=agent,path={place / 'agent'},server=on,wait=off"]
    words += ["-device", "virtserialport,chardev=agent,name=agent"]
    for number, disk in enumerate(disks):
        words += ["-drive", f"file={disk},format=raw,if=none,id=disk{number},cache=writeback"]
        words += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    if host_root:
        shared = "path=/,security_model=none,mount_tag=hostroot,readonly=on,multidevs=remap"
        words += ["-virtfs", f"local,{shared}"]
    return words


@functools.cache
def acceleration():
    """How QEMU runs the guest here: by KVM where it works, otherwise by emulation.

    PPE_GUEST_ACCEL=kvm or tcg decides without a trial.
    """
    kvm = ("-accel", "kvm", "-cpu", "host")
    emulated = ("-accel", "tcg,thread=multi", "-cpu", "max")
    wanted = os.environ.get("PPE_GUEST_ACCEL")
    if wanted:
        return kvm if wanted == "kvm" else emulated
    return kvm if os.access("/dev/kvm", os.R_OK | os.W_OK) and _kvm_works(kvm) else emulated


def _kvm_works(kvm):
    """Whether firmware runs under KVM: there are machines that have the device and no more."""
    with tempfile.TemporaryDirectory(prefix="guest-kvm-") as folder:
        console = Path(folder) / "console"
        words = ["qemu-system-x86_64", *kvm, "-m", "64M", "-nodefaults", "-display", "none"]
        words += ["-chardev", f"file,id=said,path={console}"]
        words += ["-device", "isa-debugcon,iobase=0x402,chardev=said"]  # SeaBIOS speaks there
        trial = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + KVM_TRIAL_S
        try:
            while time.monotonic() < deadline and trial.poll() is None:
                with contextlib.suppress(FileNotFoundError):
                    if b"\n" in console.read_bytes():
                        return True
                time.sleep(0.1)
        finally:
            trial.kill()
            trial.wait()
    return False
