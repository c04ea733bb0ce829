"""Ask a child what Windows programs on a disk are, what they need, and who says to have made them.

All programs are looked at by one child. What it answers is checked here, and believed no further
than a hint has to be: names of modules and signers are text for comparisons and for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from formats.windows.pe import MAX_MODULE_NAME
from packer.survey import wire
from packer.survey.answers import ask, demand, demand_signers, demand_texts
from packer.survey.disk import Disk
from packer.survey.limits import Limits
from packer.survey.opening import pack_files
from packer.survey.program_reader import DELAY_IMPORT, FORWARDER, IMPORT

MAX_PROGRAMS = 1 << 18
"""Of one request; Windows 11 with much installed has 60,000 programs."""

_KINDS = (IMPORT, DELAY_IMPORT, FORWARDER)


@dataclass(frozen=True, slots=True)
class Program:
    """A program, as it describes itself.

    machine: IMAGE_FILE_MACHINE_*; timestamp: TimeDateStamp; size_of_image: bytes in memory;
    subsystem: IMAGE_SUBSYSTEM_*; all 0 for what is no program. imports, delay_imports, forwarders:
    modules as it names them, in any case, without folders. organization, common_name: of the
    embedded signature's certificate, "" without one; nothing of it is proven.
    error: what could not be read, "" for nothing; the rest is there nevertheless.
    """

    machine: int = 0
    timestamp: int = 0
    size_of_image: int = 0
    subsystem: int = 0
    imports: tuple[str, ...] = ()
    delay_imports: tuple[str, ...] = ()
    forwarders: tuple[str, ...] = ()
    organization: str = ""
    common_name: str = ""
    error: str = ""


def read_programs(
    disk: Disk,
    files: Sequence[NDArray[np.int64]],
    *,
    with_signers: bool = False,
    limits: Limits | None = None,
) -> list[Program]:
    """Return a Program for each file.

    files: each as int64[n, 3], the runs of formats.source.Runs with offsets of the disk.
    with_signers: also read embedded signatures, which lie at the ends of files.
    Raises InputError when the disk cannot be read, or when the child does not answer as it should.
    """
    if len(files) > MAX_PROGRAMS:
        raise ValueError(f"{len(files)} programs, at most {MAX_PROGRAMS} at once")
    if not files:
        return []
    request = wire.ReadPrograms(disk.opening, pack_files(files), with_signers)
    return ask(
        disk,
        "PE",
        request,
        wire.ProgramsReply,
        partial(believe_programs, count=len(files)),
        what="the programs on",
        limits=limits or Limits(),
    )


def believe_programs(reply: wire.ProgramsReply, count: int) -> list[Program]:
    """Return the rows of a reply about `count` programs.

    Raises MalformedError when it contradicts the question or itself.
    """
    numbers = wire.unpack_table(reply.numbers, "programs", 5)
    demand(len(numbers) == count and len(reply.errors) == count, "not a row for each program")
    demand(not (numbers[:, :4] > 0xFFFF_FFFF).any(), "a header's field of more than 32 bits")
    demand(not (numbers[:, 4] > len(reply.signers)).any(), "a signer that is not listed")
    modules = demand_texts(reply.modules, MAX_MODULE_NAME)
    demand(not any("/" in name or "\\" in name for name in modules), "a module in a folder")
    needs = _needs(reply.needs, modules, count)
    signers = [("", ""), *demand_signers(reply.signers, count)]
    errors = demand_texts(reply.errors, wire.MAX_TEXT_CHARACTERS)
    programs: list[Program] = []
    for row, (machine, timestamp, size_of_image, subsystem, signer) in enumerate(numbers.tolist()):
        imports, delay_imports, forwarders = needs[row]
        organization, common_name = signers[signer]
        programs.append(
            Program(
                machine=machine,
                timestamp=timestamp,
                size_of_image=size_of_image,
                subsystem=subsystem,
                imports=imports,
                delay_imports=delay_imports,
                forwarders=forwarders,
                organization=organization,
                common_name=common_name,
                error=errors[row],
            )
        )
    return programs


_Names = tuple[str, ...]


def _needs(
    table: wire.Table, modules: list[str], count: int
) -> list[tuple[_Names, _Names, _Names]]:
    """Return (imports, delay imports, forwarders) of each program."""
    program, kind, module = wire.unpack_columns(table, "needs", 3)
    demand(bool((program[1:] >= program[:-1]).all()), "needs are not sorted by program")
    demand(not (program >= count).any(), "needs of no program")
    demand(not (kind >= len(_KINDS)).any(), "needs of no kind")
    demand(not (module >= len(modules)).any(), "a module that is not listed")
    bounds = np.searchsorted(program, np.arange(count + 1)).tolist()
    pairs = list(zip(kind.tolist(), module.tolist(), strict=True))

    def names(low: int, high: int, wanted: int) -> _Names:
        return tuple(modules[row] for one, row in pairs[low:high] if one == wanted)

    return [
        (names(low, high, IMPORT), names(low, high, DELAY_IMPORT), names(low, high, FORWARDER))
        for low, high in pairwise(bounds)
    ]
