"""`ppe iscsi readcap|md5sum|discard|swp`: small questions and changes to one LUN."""

import argparse
import hashlib
import re
from typing import Any, Final

import host
from iscsi.session.blockdev import BlockDevice
from iscsi.tools.facts import fact_lines
from iscsi.tools.initiator import CHUNK, device
from iscsi.tools.places import LunPlace, is_unknown_command, reads_zeros
from iscsi.tools.progress import Progress
from iscsi.tools.sizes import human
from iscsi.wire.errors import ScsiError
from ppe import output
from ppe.errors import OperatorError, UsageError

_CONTROL_PAGE: Final = 0x0A
_SWP: Final = 0x08  # of byte 4 of that page (SPC-4 §7.5.8)
_RANGE: Final = re.compile(r"(\d+|0x[0-9a-fA-F]+)\+(\d+|0x[0-9a-fA-F]+)")


def readcap(args: argparse.Namespace) -> int:
    """Show what READ CAPACITY says."""
    with host.connect(args.engine) as engine, device(args, engine) as unit:
        capacity = unit.read_capacity()
        facts = {
            "url": unit.url,
            "blocks": capacity.blocks,
            "block_size": capacity.block_size,
            "size": capacity.blocks * capacity.block_size,
            "physical_block_size": capacity.block_size << capacity.physical_exponent,
            "thin": capacity.thin,
            "unmapped_reads_zeros": reads_zeros(unit),
        }
    if args.json:
        output.write_json(facts)
        return 0
    facts["size"] = f"{facts['size']} ({human(int(facts['size']))})"
    for line in fact_lines(facts):
        output.write(line)
    return 0


# --- md5sum ------------------------------------------------------------------------------------


def md5sum(args: argparse.Namespace) -> int:
    """Print the digest of a LUN's bytes, as `md5sum` prints a file's."""
    with host.connect(args.engine) as engine, device(args, engine) as unit:
        blocks = unit.block_count - args.lba if args.blocks is None else args.blocks
        unit.geometry.check(args.lba, max(blocks, 1))
        digest = hashlib.new(args.algorithm, usedforsecurity=False)
        with engine.alloc(CHUNK) as buffer:
            _digest(unit, args.lba * unit.block_size, blocks * unit.block_size, buffer, digest)
        url = unit.url
    found = digest.hexdigest()
    if args.json:
        output.write_json({"url": url, "algorithm": args.algorithm, "digest": found})
    else:
        output.write(f"{found}  {url}")
    return 0


def _digest(unit: BlockDevice, first: int, size: int, buffer: Any, digest: Any) -> None:
    place, zeros = LunPlace(unit), bytes(CHUNK)
    with Progress(size, "reading") as progress:
        for offset, length, has_data in place.extents(first, size):
            for at in range(offset, offset + length, CHUNK):
                count = min(CHUNK, offset + length - at)
                if has_data:
                    place.read(at, buffer.array[:count])
                    digest.update(buffer.array[:count].data)
                else:
                    digest.update(zeros[:count])
                progress.show(at + count - first)


# --- discard -----------------------------------------------------------------------------------


def discard(args: argparse.Namespace) -> int:
    """UNMAP a range of blocks, or all."""
    if (args.range is None) == (not args.all):
        raise UsageError("discard what?", "FIRST+COUNT in blocks, or --all")
    if not args.yes:
        raise UsageError("discard destroys data", "say --yes if you mean it")
    with host.connect(args.engine) as engine, device(args, engine) as unit:
        lba, blocks = (0, unit.block_count) if args.all else _range(args.range)
        unit.geometry.check(lba, blocks)
        capacity = unit.core.capacity
        if capacity is None or not capacity.thin:
            raise OperatorError(
                f"{unit.url} is not thin: it has nothing to give back",
                "ppe iscsi write zeros over it, if that is what you want",
            )
        try:
            unit.unmap([(lba, blocks)])
        except ScsiError as error:
            if is_unknown_command(error):
                raise OperatorError(f"{unit.url} does not take UNMAP: {error}") from error
            raise
        facts = {"url": unit.url, "lba": lba, "blocks": blocks}
    if args.json:
        output.write_json(facts)
    else:
        output.say(f"{blocks} blocks at {lba} discarded")
    return 0


def _range(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise UsageError(f"range {text!r}", "FIRST+COUNT in blocks, for example 2048+1024")
    return int(match[1], 0), int(match[2], 0)


# --- software write protection -------------------------------------------------------------------


def swp(args: argparse.Namespace) -> int:
    """Show or set the software write protect bit of the control mode page."""
    with host.connect(args.engine) as engine, device(args, engine) as unit:
        if args.state is not None:
            _set_swp(unit, args.state == "on")
        is_on = bool(_control_page(unit)[4] & _SWP)
    if args.json:
        output.write_json({"url": unit.url, "software_write_protect": is_on})
    else:
        output.write(f"software write protect: {'on' if is_on else 'off'}")
    return 0


def _control_page(unit: BlockDevice) -> bytearray:
    """The control page of MODE SENSE(10). OperatorError where the unit has none."""
    data = unit.mode_sense(_CONTROL_PAGE)
    at = 8 + int.from_bytes(data[6:8], "big")
    page = bytearray(data[at : at + 12])
    if len(page) < 12 or page[0] & 0x3F != _CONTROL_PAGE:
        raise OperatorError(f"{unit.url} has no control mode page")
    return page


def _set_swp(unit: BlockDevice, on: bool) -> None:
    page = _control_page(unit)
    page[0] &= 0x3F  # PS is reserved in MODE SELECT
    page[4] = page[4] | _SWP if on else page[4] & ~_SWP
    unit.mode_select(bytes(8) + bytes(page))
