"""The Windows-shaped disks are what their descriptions say, as other people's programs see them."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import struct
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pefile
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fixtures.boot import boot
from fixtures.windows.bcd import BOOT_MANAGER
from fixtures.windows.pe import Program
from fixtures.windows.signing import certificate
from fixtures.windows.symbols import copy_out, key, make_symbol_folder, mounted_volume, programs_of
from tests.round_trip.packs import Guest, guest

NAMES = ("windows-xp", "windows-7", "windows-10-uefi")
pytestmark = [pytest.mark.guest, pytest.mark.root]


@dataclass(frozen=True)
class Seen:
    """A guest whose C: is mounted, and the volume as a file."""

    guest: Guest
    volume: Path
    tree: Path

    @property
    def described(self) -> dict[str, Any]:
        described: dict[str, Any] = self.guest.facts["volumes"]["root"]
        return described

    @property
    def windows(self) -> Path:
        return self.tree / ("WINDOWS" if self.guest.name == "windows-xp" else "Windows")

    def planted(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.described["planted"] if row["kind"] == kind]

    def hive(self, name: str, work: Path) -> Path:
        """A hive of the guest copied out."""
        found = [
            path
            for path in (self.windows / self._config).iterdir()
            if path.name.upper() == name.upper()
        ]
        return Path(shutil.copyfile(found[0], work / name))

    def in_windows(self, path: str) -> list[Path]:
        """The files below the Windows folder with that name in any case."""
        here = [self.windows]
        for name in path.split("/"):
            here = [
                one for place in here for one in place.iterdir() if one.name.lower() == name.lower()
            ]
        return here

    @property
    def _config(self) -> str:
        return "system32/config" if self.guest.name == "windows-xp" else "System32/config"


@pytest.fixture(scope="module", params=NAMES)
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Seen]:
    if os.geteuid() != 0:
        pytest.skip("the volumes are mounted through FUSE, which needs root")
    one, work = guest(request.param), tmp_path_factory.mktemp("windows")
    start, end = one.partition("root")
    copy_out(one.image, start, end, work / "C.ntfs")
    (work / "mounted").mkdir()
    with mounted_volume(one.image, start, end, work / "mounted") as tree:
        yield Seen(one, work / "C.ntfs", tree)
    (work / "C.ntfs").unlink()


def output(*command: str | Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def exported(path: Path, key: str) -> str:
    """A key of a hive with all below it, as hivexregedit shows it, names in lower case."""
    return output("hivexregedit", "--export", "--prefix", "P", path, key).lower()


def test_ntfsfix_finds_nothing_to_mend(seen: Seen) -> None:
    report = output("ntfsfix", "--no-action", seen.volume)
    assert "processed successfully" in report
    assert "error" not in report.lower()


def test_ntfsclone_can_take_the_volume(seen: Seen, tmp_path: Path) -> None:
    report = output("ntfsclone", "--metadata", "--output", tmp_path / "meta", seen.volume)
    assert "Syncing" in report


def test_every_described_file_reads_as_it_was_written(seen: Seen) -> None:
    files = seen.described["files"]
    assert len(files) > 300
    wrong = []
    for name, (size, sha256) in files.items():
        with Path(f"{seen.tree}{name}").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (file.tell(), digest) != (size, sha256):
                wrong.append(name)
    assert wrong == []


def test_no_file_lies_there_that_is_not_described(seen: Seen) -> None:
    files = seen.described["files"]
    found = {str(path)[len(str(seen.tree)) :] for path in seen.tree.rglob("*") if path.is_file()}
    assert found - set(files) == set()
    links = {str(path)[len(str(seen.tree)) :] for path in seen.tree.rglob("*") if path.is_symlink()}
    reparse = {row["path"] for row in (*seen.planted("wof"), *seen.planted("junction"))}
    assert {link for link in links if not link.startswith("/Documents and Settings/")} <= reparse


def test_fragmented_files_have_that_many_runs(seen: Seen) -> None:
    planted = seen.planted("fragmented")
    assert planted
    for row in planted:
        report = output("ntfsinfo", "--force", "--verbose", "--file", row["path"], seen.volume)
        runs = re.findall(r"^\s+0x[0-9a-f]+\t\t0x[0-9a-f]+\t\t0x[0-9a-f]+$", report, re.M)
        assert len(runs) >= row["runs_at_least"]
        assert "$ATTRIBUTE_LIST" in report


def test_preallocated_files_hold_noise_that_no_reader_sees(seen: Seen) -> None:
    (row,) = seen.planted("preallocated")
    report = output("ntfsinfo", "--force", "--verbose", "--file", row["path"], seen.volume)
    assert f"Initialized size:\t {row['valid_bytes']} " in report
    assert f"Data size:\t\t {row['bytes']} " in report
    lcn = int(re.findall(r"\t\t(0x[0-9a-f]+)\t\t0x[0-9a-f]+$", report, re.M)[-1], 16)
    with seen.volume.open("rb") as file:
        file.seek(lcn * 4096 + row["valid_bytes"] // 4096 * 4096 + 4096)
        assert len(set(file.read(4096))) > 200


def test_compressed_files_are_compressed_by_the_file_system(seen: Seen) -> None:
    if not seen.planted("lznt1"):
        assert seen.guest.name == "windows-7"
        return
    for row in seen.planted("lznt1"):
        status = (seen.tree / row["path"].lstrip("/")).stat()
        report = output("ntfsinfo", "--force", "--file", row["path"], seen.volume)
        assert "COMPRESSED" in report
        if "noise" not in row["path"]:
            assert status.st_blocks * 512 < row["bytes"]


def test_compact_files_hold_their_bytes_in_a_stream_behind_a_reparse_point(seen: Seen) -> None:
    for row in seen.planted("wof"):
        link = (seen.tree / row["path"].lstrip("/")).readlink()
        assert "0x80000017" in str(link)
        stream = subprocess.run(
            [
                "ntfscat",
                "--force",
                "--attribute-name",
                "WofCompressedData",
                seen.volume,
                row["path"],
            ],
            capture_output=True,
            check=True,
        ).stdout
        assert len(stream) == row["stored_bytes"]
        assert hashlib.sha256(stream).hexdigest() == row["stored_sha256"]


def test_deleted_secrets_lie_in_free_clusters(seen: Seen) -> None:
    (row,) = seen.planted("deleted")
    assert not (seen.tree / row["path"].lstrip("/")).exists()
    assert b"VMPACK-DELETED-SECRET\r\nVMPACK-DELETED" in seen.volume.read_bytes()


def test_the_volume_knows_where_on_the_disk_it_lies(seen: Seen) -> None:
    start, end = seen.guest.partition("root")
    with seen.guest.image.open("rb") as file:
        file.seek(start)
        boot = file.read(512)
        file.seek(end - 512)
        assert file.read(512) == boot
    assert boot[3:11] == b"NTFS    "
    assert struct.unpack_from("<I", boot, 0x1C)[0] * 512 == start
    assert (start % 4096 != 0) == (seen.guest.name == "windows-xp")


def test_the_system_hive_says_which_drivers_start_at_boot(seen: Seen, tmp_path: Path) -> None:
    text = exported(seen.hive("SYSTEM", tmp_path), "\\ControlSet001\\Services")
    keys = dict(re.findall(r"^\[p\\controlset001\\services\\([^\\\]]+)\]\n((?:.+\n)*)", text, re.M))
    late = {row["service"] for row in seen.planted("dirty hive")}
    for row in seen.guest.facts["drivers"]:
        body = keys[row["service"].lower()]
        start = 3 if row["service"] in late else row["start"]
        assert f'"start"=dword:0000000{start}' in body, row
        assert ('"imagepath"' in body) == (row["image_path"] is not None), row
        assert len(seen.in_windows(row["file"])) == int(row["present"]), row


def test_mounted_devices_name_this_disk(seen: Seen, tmp_path: Path) -> None:
    text = exported(seen.hive("SYSTEM", tmp_path), "\\MountedDevices")
    (value,) = re.findall(r'"\\\\dosdevices\\\\c:"=hex\(3\):([0-9a-f,]+)', text)
    data = bytes.fromhex(value.replace(",", ""))
    with seen.guest.image.open("rb") as file:
        sector = file.read(512)
    if seen.guest.name == "windows-10-uefi":
        table = output("sfdisk", "--json", seen.guest.image)
        guid = seen.guest.facts["partition_guids"]["root"]
        assert guid.upper() in table.upper()
        assert data[:8] == b"DMIO:ID:"
        assert len(data) == 24
    else:
        assert data == sector[0x1B8:0x1BC] + struct.pack("<Q", seen.guest.root_offset)


def test_the_software_hive_names_the_product(seen: Seen, tmp_path: Path) -> None:
    path = seen.hive("SOFTWARE", tmp_path)
    script = "cd Microsoft\\Windows NT\\CurrentVersion\nlsval ProductName\nlsval CurrentBuild\n"
    shell = subprocess.run(
        ["hivexsh", path], input=script, capture_output=True, text=True, check=True
    )
    product = seen.guest.facts["product"]
    assert shell.stdout.split("\n")[:2] == [product["name"], product["build"]]


def test_the_boot_configuration_leads_to_the_loader_on_this_disk(
    seen: Seen, tmp_path: Path
) -> None:
    if seen.guest.name == "windows-xp":
        assert b"partition(1)\\WINDOWS" in (seen.tree / "boot.ini").read_bytes()
        return
    facts = seen.guest.facts["bcd"]
    elements = _elements(_boot_configuration(seen, tmp_path))
    manager, loader = elements[BOOT_MANAGER], elements[facts["default"]]
    assert _text(manager["23000003"]) == facts["default"]
    assert _text(loader["12000002"]) == facts["loader_path"]
    assert _text(loader["22000002"]) == "\\Windows"
    assert _text(elements[facts["resume"]]["22000002"]) == "\\hiberfil.sys"
    assert seen.in_windows(facts["loader_path"].replace("\\", "/").removeprefix("/Windows/"))
    device = loader["11000001"]
    assert len(device) == 88
    if seen.guest.name == "windows-10-uefi":
        guids = seen.guest.facts["partition_guids"]
        assert str(uuid.UUID(bytes_le=device[32:48])) == guids["root"]
        assert str(uuid.UUID(bytes_le=device[56:72])) == seen.guest.facts["disk_guid"]
        assert str(uuid.UUID(bytes_le=manager["11000001"][32:48])) == guids["esp"]
    else:
        assert struct.unpack_from("<Q", device, 32)[0] == seen.guest.root_offset
        assert (
            f"{struct.unpack_from('<I', device, 56)[0]:08x}" == seen.guest.facts["disk_signature"]
        )


def _boot_configuration(seen: Seen, work: Path) -> Path:
    """The BCD hive, out of the ESP or the system partition."""
    if seen.guest.name == "windows-10-uefi":
        start, _ = seen.guest.partition("esp")
        source = f"{seen.guest.image}@@{start}"
        output("mcopy", "-i", source, "::EFI/Microsoft/Boot/BCD", work / "BCD")
    else:
        with mounted_volume(seen.guest.image, *seen.guest.partition("system"), work) as tree:
            shutil.copyfile(tree / "Boot" / "BCD", work / "BCD")
    return work / "BCD"


def _elements(store: Path) -> dict[str, dict[str, bytes]]:
    """Objects and their elements as hivexregedit shows them."""
    found: dict[str, dict[str, bytes]] = {}
    rows = re.findall(
        r'^\[p\\objects\\({[^\\]+})\\elements\\(\w+)\]\n"element"=hex\(\d\):([0-9a-f,]*)',
        exported(store, "\\Objects"),
        re.M,
    )
    for one, element, value in rows:
        found.setdefault(one, {})[element] = bytes.fromhex(value.replace(",", ""))
    return found


def _text(value: bytes) -> str:
    return value.decode("utf-16-le").rstrip("\0")


def test_no_two_volumes_have_the_same_serial_number(seen: Seen) -> None:
    serials = []
    with seen.guest.image.open("rb") as file:
        for role in seen.guest.facts["volumes"]:
            file.seek(seen.guest.partition(role)[0] + 0x48)
            serials.append(file.read(8))
    assert len(set(serials)) == len(serials)
    numbers = {f"{int.from_bytes(serial, 'little'):016X}" for serial in serials}
    assert seen.guest.facts["root_uuid"] in numbers


def test_drivers_and_catalogues_carry_signatures_that_others_verify(
    seen: Seen, tmp_path: Path
) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_bytes(certificate().public_bytes(Encoding.PEM))
    (driver,) = seen.in_windows("System32/drivers/pci.sys")
    (program,) = seen.in_windows("System32/notepad.exe")
    verify = ("osslsigncode", "verify", "-CAfile", authority)
    if seen.guest.name != "windows-xp":  # XP's files are signed in catalogues only
        assert "Signature verification: ok" in output(*verify, "-in", driver)
    catalogs = [
        one for one in seen.windows.rglob("*") if one.suffix.lower() == ".cat" and one.is_file()
    ]
    tag = Program(program.read_bytes()).authenticode_digest()
    (named,) = [one for one in catalogs if tag in one.read_bytes()]
    report = output(*verify, "-catalog", named, "-in", program)
    assert "Signature verification: ok" in report


def test_firmware_starts_the_loader_and_grub_reads_what_windows_reads_first() -> None:
    result = boot(guest("windows-10-uefi").image, firmware="uefi", timeout_s=120, cpus=1)
    assert result.digests_ok, result.console[-2000:]
    assert result.powered_off
    assert result.files > 80
    assert result.disk_nonce == guest("windows-10-uefi").facts["root_uuid"]


def test_boot_drivers_import_from_files_that_are_there(seen: Seen) -> None:
    places = [seen.windows / folder for folder in ("System32/drivers", "System32", "system32")]
    there = {path.name.lower() for place in places if place.is_dir() for path in place.rglob("*.*")}
    for row in seen.guest.facts["drivers"]:
        if row["start"] == 0 and row["present"]:
            (path,) = seen.in_windows(row["file"])
            program = pefile.PE(data=path.read_bytes())
            assert program.verify_checksum()
            names = {entry.dll.decode().lower() for entry in program.DIRECTORY_ENTRY_IMPORT}
            assert names <= there, (row["service"], names - there)


def test_a_driver_has_delay_loaded_imports(seen: Seen) -> None:
    delayed = None
    for path in seen.in_windows("System32/vendor/vendorfl.sys"):
        entries = getattr(pefile.PE(data=path.read_bytes()), "DIRECTORY_ENTRY_DELAY_IMPORT", [])
        delayed = [entry.dll for entry in entries]
    assert delayed == ([] if seen.guest.name == "windows-xp" else [b"NDIS.SYS"])


def test_the_component_store_has_the_digests_of_what_system32_holds(seen: Seen) -> None:
    store = seen.windows / "WinSxS"
    if seen.guest.name == "windows-xp":
        assert not store.exists()
        return
    count = 0
    for manifest in (store / "Manifests").glob("amd64_microsoft*.manifest"):
        text = manifest.read_text("utf-8")
        digests = re.findall(r"<dsig:DigestValue>(.+)</dsig:DigestValue>", text)
        for name, digest in zip(re.findall(r'<file name="([^"]+)"', text), digests, strict=True):
            data = store / manifest.stem / name
            assert hashlib.sha256(data.read_bytes()).digest() == base64.b64decode(digest)
            assert data.stat().st_nlink >= 2
            count += 1
    assert count > 150


def test_programs_go_into_a_symbol_folder(seen: Seen, tmp_path: Path) -> None:
    programs = dict(list(programs_of(seen.windows).items())[:30])
    laid = make_symbol_folder(programs, tmp_path / "server")
    assert len(laid) > 5
    for path, data in laid.items():
        name, folder, file = path.split("/")
        program = pefile.PE(data=data, fast_load=True)
        stamp, size = program.FILE_HEADER.TimeDateStamp, program.OPTIONAL_HEADER.SizeOfImage
        assert folder == key(data) == f"{stamp:08X}{size:x}"
        if file.endswith("_"):
            output("gcab", "--extract", "--directory", tmp_path, tmp_path / "server" / path)
            assert (tmp_path / name).read_bytes() == data
        else:
            assert (tmp_path / "server" / path).read_bytes() == data
