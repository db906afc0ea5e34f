"""open-iscsi in the guest: the kernel's initiator, steered by iscsid and iscsiadm.

Every session that a test opens here is logged out, and its record forgotten, when the test ends.
"""

import contextlib

from tests.guest.machine import HOST

NAME = "iqn.2026-01.org.example:guest"
ATTACH_S = 20
# One line for each disk of a target: LUN and name.
_DISKS = """
for session in /sys/class/iscsi_session/session*; do
    [ "$(cat $session/targetname)" = {iqn} ] || continue
    for block in $session/device/target*/*/block/sd*; do
        [ -e $block ] || continue
        unit=$(basename $(readlink -f $block/device))
        echo ${{unit##*:}} $(basename $block)
    done
done
"""


class OpenIscsi:
    """The initiator of one guest; made once, since there is one iscsid. `interface`: over what its
    sessions go, `default` (TCP) or `iser`.
    """

    def __init__(self, guest, *, interface="default"):
        self.guest, self._interface = guest, interface
        guest.run("load initiator")
        guest.write("/etc/iscsi/initiatorname.iscsi", f"InitiatorName={NAME}\n")
        guest.run("udevd --daemon; udevadm trigger; udevadm settle --timeout=20")
        guest.run("iscsid -f >/run/iscsid.log 2>&1 &")
        guest.wait_for("iscsiadm -m session 2>&1 | grep -q 'No active sessions'")

    def discover(self, port, **settings):
        """SendTargets: the portals by target name. `settings` are of the discovery record."""
        where = f"iscsiadm -m discoverydb -t sendtargets -p {HOST}:{port}"
        self.guest.run(f"{where} -o new")
        try:
            self._set(where, settings)
            found = {}
            for line in self.guest.output(f"{where} --discover").splitlines():
                portal, iqn = line.split()
                found.setdefault(iqn, []).append(portal.partition(",")[0])
            return found
        finally:
            self.guest.run(f"{where} -o delete", check=False)

    def _record(self, iqn, port):
        return f"iscsiadm -m node -T {iqn} -p {HOST}:{port} -I {self._interface}"

    def _set(self, record, settings):
        for name, value in settings.items():
            self.guest.run(f"{record} -o update -n {name.replace('__', '.')} -v '{value}'")

    @contextlib.contextmanager
    def session(self, iqn, *ports, units=1, **settings):
        """Log in, once for each port; gives the names of the disks, by LUN in lists by session.

        `settings` are of the node record, with two underscores for each dot.
        """
        records = [self._record(iqn, port) for port in ports]
        try:
            for record in records:
                self.guest.run(f"{record} -o new")
                self._set(record, {"node__session__timeo__replacement_timeout": 20, **settings})
                self.guest.run(f"{record} --login", timeout=40)
            yield self.disks(iqn, units * len(ports))
        finally:
            # What a test that failed left mounted or mapped would keep the session from ending.
            self.guest.run("umount /mnt; /sbin/multipath -F", check=False)
            for record in records:
                self.guest.run(f"{record} --logout", timeout=40, check=False)
                self.guest.run(f"{record} -o delete", check=False)

    def disks(self, iqn, count):
        """The disks of a target by LUN, in lists; waits until `count` are there in all."""
        self.guest.wait_for(
            f"[ $( ({_DISKS.format(iqn=iqn)}) | wc -l) -ge {count} ]", timeout=ATTACH_S
        )
        self.guest.run("udevadm settle --timeout=20")
        found = {}
        for line in self.guest.output(_DISKS.format(iqn=iqn)).splitlines():
            lun, name = line.split()
            found.setdefault(int(lun), []).append(name)
        return found

    def login_fails(self, iqn, port, **settings):
        """Try to log in; what iscsiadm said of it. AssertionError if it could."""
        record = self._record(iqn, port)
        self.guest.run(f"{record} -o new")
        try:
            self._set(record, {"node__session__initial_login_retry_max": 1, **settings})
            ran = self.guest.run(f"{record} --login", timeout=40, check=False)
            assert ran.status != 0, f"it logged in: {ran.output}"
            return ran.output
        finally:
            self.guest.run(f"{record} --logout", check=False)
            self.guest.run(f"{record} -o delete", check=False)
