"""Boot configuration stores: objects, elements, devices."""

from __future__ import annotations

import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from fixtures.windows.hive import Form, Key, Value, binary, dword, hive, multi_sz, sz
from formats.windows.bcd import (
    APPLICATION_DEVICE,
    APPLICATION_PATH,
    BOOT_MANAGER,
    HIBERNATION_PATH,
    OS_DEVICE,
    OS_LOADER,
    RESUME_LOADER,
    SYSTEM_ROOT,
    TIMEOUT_SECONDS,
    WANTED,
    Bcd,
    Device,
    read_bcd,
    read_device,
)
from formats.windows.hive_query import query
from tests.formats.windows.corpus import corpus, needs_corpus

LOADER = "{11111111-2222-3333-4444-555555555555}"
RESUME = "{11111111-2222-3333-4444-666666666666}"
DISK = uuid.UUID("0b2394a9-095e-487d-8d48-719ecd4d78ca")
PARTITION = uuid.UUID("8e0f2c38-e4ea-47ba-b7fc-9d8c74dccf0b")


def device(kind: int, body: bytes) -> bytes:
    """A device element; `setqualifiedpartitiondeviceelement` writes 88 bytes."""
    return (bytes(16) + struct.pack("<4I", kind, 0, 16 + len(body), 0) + body).ljust(88, b"\0")


MBR = device(6, struct.pack("<Q8xIII", 0x4F00000, 0, 1, 0x18C0FFEE))
GPT = device(6, PARTITION.bytes_le + struct.pack("<II", 0, 0) + DISK.bytes_le)


def store(**elements: Value) -> Bcd:
    """A store with a boot manager, a loader that has also these elements, and its resume object."""
    root = Key()
    for name, kind in ((BOOT_MANAGER, 0x10100002), (LOADER, OS_LOADER), (RESUME, RESUME_LOADER)):
        root.put(f"Objects\\{name}\\Description", Type=dword(kind))
    put(root, BOOT_MANAGER, "23000003", sz(LOADER.upper()))
    put(root, BOOT_MANAGER, "24000001", multi_sz([LOADER, "{gone}"]))
    put(root, BOOT_MANAGER, "25000004", binary(struct.pack("<Q", 30)))
    put(root, LOADER, "12000002", sz("\\Windows\\system32\\winload.exe"))
    put(root, LOADER, "22000002", sz("\\Windows"))
    put(root, LOADER, "23000003", sz(RESUME))
    put(root, RESUME, "22000002", sz("\\hiberfil.sys"))
    for element, value in elements.items():
        put(root, LOADER, element.removeprefix("e"), value)
    return read_bcd(query(hive("NewStoreRoot", root, Form(3, "BCD", 1)), [], WANTED))


def put(root: Key, name: str, element: str, value: Value) -> None:
    root.put(f"Objects\\{name}\\Elements\\{element}", Element=value)


class TestStore:
    def test_what_is_started(self) -> None:
        bcd = store()
        loader = bcd.default
        assert loader is not None
        assert loader.identifier == LOADER
        assert loader.type == OS_LOADER
        assert loader.text(APPLICATION_PATH) == "\\Windows\\system32\\winload.exe"
        assert loader.text(SYSTEM_ROOT) == "\\Windows"
        resume = bcd.resume_of(loader)
        assert resume is not None
        assert resume.text(HIBERNATION_PATH) == "\\hiberfil.sys"

    def test_what_is_offered(self) -> None:
        bcd = store()
        assert [one.identifier for one in bcd.displayed] == [LOADER]
        assert bcd.boot_manager is not None
        assert bcd.boot_manager.number(TIMEOUT_SECONDS) == 30

    def test_without_boot_manager(self) -> None:
        bcd = Bcd({})
        assert bcd.boot_manager is None
        assert bcd.default is None
        assert bcd.displayed == ()

    @pytest.mark.parametrize(
        ("element", "value", "found"),
        [
            ("16000010", binary(b"\1"), True),
            ("16000010", binary(b"\0"), False),
            ("15000007", binary(struct.pack("<Q", 1 << 33)), 1 << 33),
            ("17000077", binary(struct.pack("<2Q", 1, 2)), (1, 2)),
            ("14000006", multi_sz(["{AB}", "{CD}"]), ("{ab}", "{cd}")),
            ("13000001", sz("{AB}"), "{ab}"),
            ("11000001", binary(GPT), Device("partition", "gpt", str(DISK), str(PARTITION))),
        ],
    )
    def test_elements_of_each_format(self, element: str, value: Value, found: object) -> None:
        loader = store(**{f"e{element}": value}).default
        assert loader is not None
        assert loader.elements[int(element, 16)] == found

    @pytest.mark.parametrize(
        ("element", "value"),
        [
            ("16000010", binary(b"")),
            ("15000007", binary(b"\1\2\3")),
            ("17000077", binary(b"\1\2\3")),
            ("12000099", binary(b"\1\2\3")),
            ("13000001", dword(1)),
            ("11000001", binary(b"\1\2\3")),
            ("18000001", sz("x")),
            ("no number", sz("x")),
        ],
    )
    def test_elements_that_mean_nothing_are_missing(self, element: str, value: Value) -> None:
        loader = store(**{f"e{element}": value}).default
        assert loader is not None
        assert set(loader.elements) == {0x12000002, 0x22000002, 0x23000003}
        assert loader.text(0x11000001) == ""
        assert loader.device(0x12000002) is None
        assert loader.objects(0x12000002) == ()
        assert loader.number(0x12000002) is None


class TestDevices:
    def test_a_partition_of_a_gpt(self) -> None:
        assert read_device(GPT) == Device("partition", "gpt", str(DISK), str(PARTITION))

    def test_a_partition_of_an_mbr(self) -> None:
        assert read_device(MBR) == Device("partition", "mbr", "18c0ffee", offset=0x4F00000)

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (device(5, b""), "boot"),
            (device(8, b""), "locate"),
            (device(0, struct.pack("<I", 3)), "ramdisk"),
            (device(0, struct.pack("<I", 6)), "virtual disk"),
            (device(0, struct.pack("<I", 99)), "local type 99"),
            (device(77, b""), "type 77"),
            (device(6, PARTITION.bytes_le + struct.pack("<II", 0, 2)), "partition"),
        ],
    )
    def test_others(self, data: bytes, kind: str) -> None:
        assert read_device(data) == Device(kind)

    @pytest.mark.parametrize("length", range(72))
    def test_too_short(self, length: int) -> None:
        assert read_device(GPT[:length]) in (None, Device("partition"))
        assert read_device(GPT[:length]) is None


@needs_corpus
class TestRealStore:
    """A UEFI machine with systemd-boot and Windows 10, compared with what reglookup prints."""

    @pytest.fixture
    def bcd(self) -> Bcd:
        return read_bcd(query(corpus("BCD"), [], WANTED))

    @pytest.fixture
    def printed(self, tmp_path: Path) -> dict[str, str]:
        """Path of a value -> its data, as reglookup writes it."""
        (tmp_path / "BCD").write_bytes(corpus("BCD"))
        done = subprocess.run(
            ["reglookup", tmp_path / "BCD"], check=True, capture_output=True, text=True
        )
        rows = (line.split(",") for line in done.stdout.splitlines())
        return {row[0]: row[2] for row in rows if row[1] != "KEY"}

    def test_default_object(self, bcd: Bcd, printed: dict[str, str]) -> None:
        assert bcd.default is not None
        element = f"/Objects/{BOOT_MANAGER}/Elements/23000003/Element"
        assert bcd.default.identifier == printed[element]
        assert bcd.default.identifier == "{733b62e5-f608-11eb-825c-c112f60133ab}"

    def test_paths(self, bcd: Bcd, printed: dict[str, str]) -> None:
        assert bcd.default is not None
        elements = f"/Objects/{bcd.default.identifier}/Elements"
        assert bcd.default.text(APPLICATION_PATH) == printed[f"{elements}/12000002/Element"]
        assert bcd.default.text(APPLICATION_PATH) == "\\Windows\\system32\\winload.efi"
        assert bcd.default.text(SYSTEM_ROOT) == printed[f"{elements}/22000002/Element"]
        resume = bcd.resume_of(bcd.default)
        assert resume is not None
        assert resume.text(HIBERNATION_PATH) == "\\hiberfil.sys"

    def test_devices(self, bcd: Bcd, printed: dict[str, str]) -> None:
        """The GUIDs as PARTUUID and disk GUID stand in the printed bytes, taken apart by hand."""
        assert bcd.default is not None
        assert bcd.boot_manager is not None
        found = bcd.default.device(OS_DEVICE)
        elements = f"/Objects/{bcd.default.identifier}/Elements"
        data = unquoted(printed[f"{elements}/21000001/Element"])
        assert found == Device("partition", "gpt", guid(data, 56), guid(data, 32))
        assert found == Device("partition", "gpt", str(DISK), str(PARTITION))
        system = bcd.boot_manager.device(APPLICATION_DEVICE)
        assert system is not None
        assert system.disk == str(DISK)
        assert system.partition == "36be3955-63bf-4068-a6ab-00195cca3a22"

    def test_every_object_and_element_is_there(self, bcd: Bcd, printed: dict[str, str]) -> None:
        elements = [path for path in printed if path.endswith("/Element")]
        assert sum(len(one.elements) for one in bcd.objects.values()) == len(elements)
        for one in bcd.objects.values():
            kind = printed[f"/Objects/{one.identifier}/Description/Type"]
            assert one.type == int(kind, 16)

    def test_recovery_starts_from_a_ramdisk(self, bcd: Bcd) -> None:
        recovery = bcd.objects["{733b62e6-f608-11eb-825c-c112f60133ab}"]
        assert recovery.device(OS_DEVICE) == Device("ramdisk")


def unquoted(text: str) -> bytes:
    """The bytes of what reglookup prints: those that are not printable as %XX."""
    pieces = text.encode("latin-1").split(b"%")
    return pieces[0] + b"".join(bytes.fromhex(one[:2].decode()) + one[2:] for one in pieces[1:])


def guid(data: bytes, at: int) -> str:
    first, second, third = struct.unpack_from("<IHH", data, at)
    rest = data[at + 8 : at + 16].hex()
    return f"{first:08x}-{second:04x}-{third:04x}-{rest[:4]}-{rest[4:]}"
