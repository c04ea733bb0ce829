"""Change what lies below the overlay of a VM while its guest runs.

Both disks have the same bytes, so the guest does not notice. Each step can be taken again: a swap
that was interrupted is finished by doing it once more. Source: QEMU, qapi/block-core.json
(blockdev-add, blockdev-reopen, blockdev-del).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from packer.run.qemu.qmp import MonitorError
from packer.run.supervisor.emulator import Emulator
from packer.run.vm.command_line import BASE_NODE, OWN_BASE_NODE, overlay_node, own_base_node


class _Node(msgspec.Struct, frozen=True):
    name: str = msgspec.field(name="node-name", default="")


async def is_served(emulator: Emulator) -> bool:
    """Return whether QEMU still has the disk that a server hands out. Raises MonitorError."""
    return BASE_NODE in await _nodes(emulator)


async def use_own_base(emulator: Emulator, base: Path) -> None:
    """Let QEMU read the VM's own base instead of the served one, which it lets go of.

    Raises MonitorError; what lay below the overlay before lies there still then, or both do.
    """
    there = await _nodes(emulator)
    if BASE_NODE not in there:
        return
    if OWN_BASE_NODE not in there:
        await emulator.ask("blockdev-add", **own_base_node(base))
    try:
        await emulator.ask("blockdev-reopen", options=[overlay_node(OWN_BASE_NODE)])
    except MonitorError:
        with suppress(MonitorError):  # it is in use if it was done after all
            await emulator.ask("blockdev-del", **{"node-name": OWN_BASE_NODE})
        raise
    await emulator.ask("blockdev-del", **{"node-name": BASE_NODE})


async def _nodes(emulator: Emulator) -> set[str]:
    answer = await emulator.ask("query-named-block-nodes", flat=True)
    try:
        return {one.name for one in msgspec.convert(answer, list[_Node])}
    except msgspec.ValidationError as error:
        raise MonitorError(f"QEMU: query-named-block-nodes: {error}") from error
