"""probe"""


def main():
    from ppe.cycle.rnic.verbs import device, library

    out = [str(library.find())]
    for n in device.device_names():
        d = device.Device(n)
        out.append((n, d.transport, hex(d.opcodes), str(d.limits), d.has_odp, list(d.window_types)))
        a = d.attributes
        out.append([hex(a.device_cap_flags), hex(a.vendor_id), a.atomic_caps])
    return out
