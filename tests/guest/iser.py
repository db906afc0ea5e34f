"""A guest in which Linux's own iSER works over siw, as initiator and as target. siw0 is on the
guest's network card, whose address this machine reaches by forwarded ports; this machine's programs
are there, too, at /host.
"""

from tests.guest import host_root, lio
from tests.guest.machine import Guest
from tests.iscsi.session.tgt import free_port

ADDRESS = "10.0.2.15"
TGT_PORT = 3260  # tgt's iSER listens nowhere else
# siw counts what programs pin against this limit, even for root.
_SET_UP = """
set -e
load rdma iser
ulimit -l unlimited
rdma link add siw0 type siw netdev eth0
mkdir -p /dev/infiniband
for class in /sys/class/infiniband_verbs/uverbs* /sys/class/misc/rdma_cm; do
    [ -e /dev/infiniband/$(basename $class) ] ||
        mknod /dev/infiniband/$(basename $class) c $(tr : ' ' <$class/dev)
done
"""


class IserGuest(Guest):
    """The guest, from the image of `rdma_image`. `lio_port` and `tgt_port` lead to those targets;
    `capture` is a file for all that its network card sees, in libpcap's format.
    """

    def __init__(self, made, *, capture):
        self.capture = capture
        self.lio_port, self.tgt_port = free_port(), free_port()
        forwards = [(self.lio_port, lio.ISER_PORT), (self.tgt_port, TGT_PORT)]
        dump = ("-object", f"filter-dump,id=dump,netdev=net0,file={capture}")
        super().__init__(made, forwards=forwards, host_root=True, memory="1536M", more=dump)
        try:
            host_root.mount(self)
            self.run(_SET_UP)
        except BaseException:
            self.close()
            raise

    def complaints(self):
        """Warnings and worse of the kernel since the last call, with what it had to say of them."""
        return self.output(
            "dmesg -c | grep -E 'WARNING|BUG|Oops|Call Trace|isert:|QP fatal' || true"
        )
