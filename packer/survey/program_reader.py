"""The child's side of `packer.survey.programs`: look at many programs, answer in columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from formats.errors import FormatError
from formats.source import Readable, Source
from formats.windows.authenticode import read_signature
from formats.windows.pe import PortableExecutable
from packer.survey import wire
from packer.survey.opening import open_files

IMPORT, DELAY_IMPORT, FORWARDER = 0, 1, 2
"""Kinds of needs."""

MAX_NEEDS = 1 << 21
"""Modules that all programs name together; Windows 11 with much installed has 700,000."""

_NUMBERS = 5
_Row = TypeVar("_Row", str, tuple[str, str])


def answer(request: wire.ReadPrograms, disk: Source) -> wire.ProgramsReply:
    """Return a row for each program, also for those that are none."""
    found = _Found()
    for file in open_files(request.files, disk):
        found.add(file, request.with_signers)
    return found.reply()


@dataclass(slots=True)
class _Found:
    """The reply as it grows. Modules and signers are listed once, under their row."""

    numbers: list[tuple[int, ...]] = field(default_factory=list)
    needs: list[tuple[int, int, int]] = field(default_factory=list)
    modules: dict[str, int] = field(default_factory=dict)
    signers: dict[tuple[str, str], int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, file: Readable, with_signer: bool) -> None:
        """Add a row; what one part of a program has wrong spoils no other part."""
        numbers: tuple[int, ...] = (0,) * _NUMBERS
        errors: list[str] = []
        try:
            program = PortableExecutable(file)
        except FormatError as error:
            errors.append(str(error))
        else:
            self._add_needs(program, errors)
            signer = self._signer(file, program, errors) if with_signer else 0
            about = (program.machine, program.timestamp, program.size_of_image, program.subsystem)
            numbers = (*about, signer)
        self.numbers.append(numbers)
        self.errors.append("; ".join(errors)[: wire.MAX_TEXT_CHARACTERS])

    def _add_needs(self, program: PortableExecutable, errors: list[str]) -> None:
        number = len(self.numbers)
        if len(self.needs) > MAX_NEEDS:
            errors.append(f"what it needs is not read: more than {MAX_NEEDS} modules before it")
            return
        parts: tuple[Callable[[], tuple[str, ...]], ...] = (
            program.imports,
            program.delay_imports,
            program.forwarders,
        )
        for kind, read in zip((IMPORT, DELAY_IMPORT, FORWARDER), parts, strict=True):
            try:
                self.needs += [(number, kind, _row(self.modules, name)) for name in read()]
            except FormatError as error:
                errors.append(str(error))

    def _signer(self, file: Readable, program: PortableExecutable, errors: list[str]) -> int:
        try:
            signature = read_signature(file, program)
        except FormatError as error:
            errors.append(str(error))
            return 0
        if signature is None or signature.signer is None:
            return 0
        names = (signature.signer.organization, signature.signer.common_name)
        return 1 + _row(self.signers, names)

    def reply(self) -> wire.ProgramsReply:
        return wire.ProgramsReply(
            wire.pack_rows(self.numbers, _NUMBERS),
            wire.pack_rows(self.needs, 3),
            list(self.modules),
            list(self.signers),
            self.errors,
        )


def _row(rows: dict[_Row, int], value: _Row) -> int:
    return rows.setdefault(value, len(rows))
