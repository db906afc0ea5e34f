"""`ppe iscsi cp`: LUN to file, file to LUN, LUN to LUN. What holds no data on the one side takes no
room on the other where that can be had, and reads as zeros there in any case.
"""

import argparse
import contextlib
from typing import Any

import host
from iscsi.tools.initiator import CHUNK, device
from iscsi.tools.places import FilePlace, LunPlace, Place
from iscsi.tools.progress import Progress
from iscsi.tools.sizes import human
from ppe import output
from ppe.errors import OperatorError, UsageError


def is_url(text: str) -> bool:
    """Whether this names a LUN and no file."""
    return "://" in text


def cp(args: argparse.Namespace) -> int:
    """Copy, flush, and with --verify compare both sides afterwards."""
    if not is_url(args.source) and not is_url(args.destination):
        raise UsageError("neither side is an iSCSI URL", "cp copies files")
    with contextlib.ExitStack() as stack:
        engine: Any = stack.enter_context(host.connect(args.engine))
        source = _open(args, engine, args.source, stack)
        size = source.size
        if is_url(args.destination):
            sink = _open(args, engine, args.destination, stack)
            if sink.name == source.name:
                raise UsageError("both sides are the same LUN", "nothing was written")
            size = _fitting(source, sink, args.pad)
        else:
            found = FilePlace(args.destination, size=size)
            stack.callback(found.close)
            sink = found
        if sink.size < size:
            raise OperatorError(
                f"{source.name} has {human(size)}, {sink.name} only {human(sink.size)}",
                "nothing was written; make the destination larger",
            )
        buffer = stack.enter_context(engine.alloc(CHUNK))
        moved = _copy(source, sink, size, buffer.array)
        if not args.no_flush:
            sink.flush()
        if args.verify:
            _verify(source, sink, size, buffer.array, stack.enter_context(engine.alloc(CHUNK)))
    _say(args, size, moved)
    return 0


def _say(args: argparse.Namespace, size: int, moved: int) -> None:
    facts = {"bytes": size, "moved": moved, "skipped": size - moved, "verified": args.verify}
    if args.json:
        output.write_json(facts)
        return
    skipped = f", {human(size - moved)} of them empty" if moved < size else ""
    output.say(f"{human(size)} copied{skipped}{', verified' if args.verify else ''}")


def _open(args: argparse.Namespace, engine: Any, name: str, stack: contextlib.ExitStack) -> Place:
    if is_url(name):
        unit = stack.enter_context(device(args, engine, name))
        return LunPlace(unit, sparse=not args.no_sparse)
    found = FilePlace(name, sparse=not args.no_sparse)
    stack.callback(found.close)
    return found


def _fitting(source: Place, sink: Place, pad: bool) -> int:
    """Bytes to copy, in whole blocks of a LUN."""
    over = source.size % sink.block_size
    if over and not pad:
        raise OperatorError(
            f"{source.name} ends {over} bytes into a block of {sink.block_size}",
            "--pad fills the last block with zeros",
        )
    if source.size == 0:
        raise OperatorError(f"{source.name} is empty")
    return source.size + (sink.block_size - over if over else 0)


def _copy(source: Place, sink: Place, size: int, memory: Any) -> int:
    """Copy `size` bytes. Bytes that held data."""
    moved = 0
    grain = max(source.block_size, sink.block_size)
    with Progress(size, "copying") as progress:
        for offset, length, has_data in _aligned(source, size, grain):
            if not has_data:
                sink.clear(offset, length)
                progress.show(offset + length)
                continue
            for at in range(offset, offset + length, len(memory)):
                piece = memory[: min(len(memory), offset + length - at)]
                source.read(at, piece)
                sink.write(at, piece)
                moved += piece.nbytes
                progress.show(at + piece.nbytes)
    return moved


def _aligned(source: Place, size: int, grain: int) -> Any:
    """The source's extents, cut where both sides have block borders; past its end there is none,
    and what is partly data is data.
    """
    begun, data_end = 0, 0
    for offset, length, has_data in source.extents(0, source.size):
        if not has_data:
            continue
        first = max(offset // grain * grain, data_end)
        last = min(-(-(offset + length) // grain) * grain, size)
        if first > data_end:
            if data_end > begun:
                yield begun, data_end - begun, True
            yield data_end, first - data_end, False
            begun = first
        data_end = max(last, data_end)
    if data_end > begun:
        yield begun, data_end - begun, True
    if data_end < size:
        yield data_end, size - data_end, False


def _verify(source: Place, sink: Place, size: int, mine: Any, other: Any) -> None:
    """Read both sides again and compare. Raises OperatorError with the first difference."""
    with Progress(size, "verifying") as progress:
        for at in range(0, size, len(mine)):
            length = min(len(mine), size - at)
            one, two = mine[:length], other.array[:length]
            source.read(at, one)
            sink.read(at, two)
            differs = (one != two).nonzero()[0]
            if differs.size:
                raise OperatorError(
                    f"byte {at + int(differs[0])} of {sink.name} differs from {source.name}",
                    "was one of them written to meanwhile? else look at the medium",
                )
            progress.show(at + length)
