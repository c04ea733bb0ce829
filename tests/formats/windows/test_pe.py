"""Programs: what is read of them, held against pefile and objdump."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import pefile
import pytest

from fixtures.guests.workshop import guests_folder
from fixtures.windows.parts import windows_parts
from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.source import FileSource, Memory, Readable
from formats.windows.pe import MAX_MODULES, PortableExecutable
from tests.formats.damage import at_most_one_gib, damaged
from tests.formats.windows.make_pe import (
    NATIVE,
    PE_OFFSET,
    SECTION_OFFSET,
    TIMESTAMP,
    Form,
    program,
)

OPTIONAL_OFFSET = PE_OFFSET + 24
DIRECTORIES_OFFSET = OPTIONAL_OFFSET + 112  # of PE32+
SECTION_COUNT_OFFSET = PE_OFFSET + 6
IMAGE_SIZE_OFFSET = OPTIONAL_OFFSET + 56

DRIVER = Form(
    imports=("ntoskrnl.exe", "HAL.dll", "api-ms-win-core-heap-l1-1-0.dll"),
    delay_imports=("ksecdd.sys",),
    forwarders=("NTDLL.RtlAllocateHeap", "api-ms-win-core-synch-l1-2-0.Sleep", "NTDLL.#7"),
)


class Counted:
    """A file that counts what is read of it."""

    def __init__(self, source: Readable) -> None:
        self.source = source
        self.size = source.size
        self.read_bytes = 0

    def pread(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self.source.pread(offset, length)


def read(data: bytes) -> PortableExecutable:
    return PortableExecutable(Memory(data))


def everything(data: bytes) -> tuple[tuple[str, ...], ...]:
    found = read(data)
    return found.imports(), found.delay_imports(), found.forwarders()


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


@pytest.mark.parametrize("is_64_bit", [True, False])
def test_a_driver_names_what_it_needs(is_64_bit: bool) -> None:
    form = Form(DRIVER.imports, DRIVER.delay_imports, DRIVER.forwarders, is_64_bit=is_64_bit)
    found = read(program(form))
    assert found.imports() == DRIVER.imports
    assert found.delay_imports() == DRIVER.delay_imports
    assert found.forwarders() == ("NTDLL.dll", "api-ms-win-core-synch-l1-2-0.dll")
    assert found.machine == (0x8664 if is_64_bit else 0x14C)
    assert found.timestamp == TIMESTAMP
    assert found.size_of_image == 0x2000
    assert found.subsystem == NATIVE
    assert found.certificates() is None


def test_delay_imports_of_visual_c_6_hold_addresses() -> None:
    form = Form(delay_imports=("ole32.dll",), is_64_bit=False, old_delay=True)
    assert read(program(form)).delay_imports() == ("ole32.dll",)


def test_a_program_that_needs_nothing_names_nothing() -> None:
    assert everything(program(Form())) == ((), (), ())


def test_a_forwarder_to_a_program_keeps_its_extension() -> None:
    form = Form(forwarders=("ntoskrnl.exe.ExAllocatePool",))
    assert read(program(form)).forwarders() == ("ntoskrnl.exe",)


def test_the_same_module_is_named_once() -> None:
    assert read(program(Form(imports=("a.dll", "b.dll", "a.dll")))).imports() == ("a.dll", "b.dll")


def test_a_program_of_100_mb_costs_kilobytes(tmp_path: Path) -> None:
    path = tmp_path / "large.dll"
    path.write_bytes(program(DRIVER))
    os.truncate(path, 100 << 20)
    with FileSource(path) as file:
        counted = Counted(file)
        found = PortableExecutable(counted)
        assert found.imports() == DRIVER.imports
        assert len(found.forwarders()) == 2
        assert found.delay_imports() == DRIVER.delay_imports
    assert counted.read_bytes <= 16 << 10


@pytest.mark.parametrize(
    ("broken", "error", "reason"),
    [
        (b"", Truncated, "expected 2 bytes"),
        (b"hive", Corrupt, "no program"),
        (b"MZ".ljust(64, b"\0"), Unsupported, "16 bits"),
        (patched(program(DRIVER), 0x3C, b"\xff\xff\xff\xff"), Truncated, "expected 4 bytes"),
        (patched(program(DRIVER), OPTIONAL_OFFSET, b"\x07\x01"), Unsupported, "magic 0x107"),
        (patched(program(DRIVER), PE_OFFSET + 20, b"\x10\0"), Truncated, "16 bytes"),
        (patched(program(DRIVER), SECTION_COUNT_OFFSET, b"\xff\xff"), Unsupported, "65535"),
        (program(DRIVER)[:SECTION_OFFSET], Truncated, "the source ends"),
        (
            patched(program(DRIVER), DIRECTORIES_OFFSET + 8, struct.pack("<I", 1 << 30)),
            Corrupt,
            "no section",
        ),
        (program(Form(imports=("x" * 300,))), Corrupt, "no text"),
        (program(Form(imports=("a\nb",))), Corrupt, "its name is"),
        (program(Form(forwarders=("nothing",))), Corrupt, "MODULE.NAME"),
        (
            program(Form(imports=[f"m{row}.dll" for row in range(MAX_MODULES)])),
            Unsupported,
            f"more than {MAX_MODULES} modules",
        ),
    ],
)
def test_what_is_wrong_with_a_program_is_said(
    broken: bytes, error: type[FormatError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        everything(broken)


def test_certificates_outside_of_the_file_spoil_nothing_else() -> None:
    entry = struct.pack("<II", 64, 1 << 31)
    found = read(patched(program(DRIVER), DIRECTORIES_OFFSET + 32, entry))
    assert found.imports() == DRIVER.imports
    with pytest.raises(Truncated, match="the source ends"):
        found.certificates()


def by_pefile(data: bytes) -> tuple[object, ...]:
    names = ("IMPORT", "DELAY_IMPORT", "EXPORT")
    numbers = [pefile.DIRECTORY_ENTRY[f"IMAGE_DIRECTORY_ENTRY_{name}"] for name in names]
    with pefile.PE(data=data, fast_load=True) as found:
        found.parse_data_directories(directories=numbers)
        exports = getattr(found, "DIRECTORY_ENTRY_EXPORT", None)
        forwarders = [one.forwarder for one in exports.symbols if one.forwarder] if exports else []
        modules = {one.decode().rpartition(".")[0] for one in forwarders}
        return (
            {one.dll.decode() for one in getattr(found, "DIRECTORY_ENTRY_IMPORT", [])},
            {one.dll.decode() for one in getattr(found, "DIRECTORY_ENTRY_DELAY_IMPORT", [])},
            {one if "." in one else f"{one}.dll" for one in modules},
            found.FILE_HEADER.Machine,
            found.FILE_HEADER.TimeDateStamp,
            found.OPTIONAL_HEADER.SizeOfImage,
            found.OPTIONAL_HEADER.Subsystem,
        )


def by_us(data: bytes) -> tuple[object, ...]:
    found = read(data)
    return (
        set(found.imports()),
        set(found.delay_imports()),
        set(found.forwarders()),
        found.machine,
        found.timestamp,
        found.size_of_image,
        found.subsystem,
    )


@pytest.mark.parametrize(
    "form",
    [
        DRIVER,
        Form(DRIVER.imports, DRIVER.delay_imports, DRIVER.forwarders, is_64_bit=False),
    ],
)
def test_pefile_reads_the_same_in_what_the_tests_write(form: Form) -> None:
    data = program(form)
    assert by_us(data) == by_pefile(data)


@pytest.fixture(scope="module")
def wine() -> dict[str, bytes]:
    """Programs that a compiler made, of both architectures, by architecture and name."""
    parts = windows_parts(guests_folder())
    return {
        f"{architecture}/{name}": data
        for architecture in ("amd64", "i386")
        for name, data in parts.modules(architecture).items()
    }


@pytest.mark.guest
def test_pefile_reads_the_same_in_wines_programs(wine: dict[str, bytes]) -> None:
    assert len(wine) > 300
    for name, data in wine.items():
        assert by_us(data) == by_pefile(data), name


@pytest.mark.guest
def test_objdump_reads_the_same_imports_in_wines_programs(
    wine: dict[str, bytes], tmp_path: Path
) -> None:
    # A section called "/4" has its name in the symbols, which the fixtures have cut off; objdump
    # refuses such a file.
    readable = [name for name, data in wine.items() if b"/4\0" not in data[:1024]]
    assert len(readable) > 50
    path = tmp_path / "program"
    for name in readable:
        path.write_bytes(wine[name])
        shown = subprocess.run(["objdump", "-p", path], capture_output=True, text=True, check=True)
        expected = re.findall(r"DLL Name: (\S+)", shown.stdout)
        assert read(wine[name]).imports() == tuple(expected), name


@pytest.mark.guest
def test_little_is_read_of_wines_programs(wine: dict[str, bytes]) -> None:
    for name, data in wine.items():
        counted = Counted(Memory(data))
        found = PortableExecutable(counted)
        found.imports()
        found.delay_imports()
        found.forwarders()
        assert counted.read_bytes <= 128 << 10, name


def test_damaged_programs_are_refused_or_read() -> None:
    image = program(DRIVER)
    areas = [(0, 64), (PE_OFFSET, SECTION_OFFSET), (SECTION_OFFSET, len(image))]
    refused = 0
    with at_most_one_gib():
        for broken in damaged(image, areas, 2000):
            try:
                everything(broken)
            except FormatError:
                refused += 1
    assert 100 < refused < 1900


@pytest.mark.guest
@pytest.mark.parametrize("name", ["amd64/kernel32.dll", "i386/ntoskrnl.exe"])
def test_a_damaged_program_of_wine_is_refused_or_read(wine: dict[str, bytes], name: str) -> None:
    image = wine[name]
    headers = struct.unpack_from("<I", image, 0x3C)[0]
    refused = 0
    with at_most_one_gib():
        for broken in damaged(image, [(headers, headers + 600)], 500, seed=2):
            try:
                everything(broken)
            except FormatError:
                refused += 1
    assert refused
