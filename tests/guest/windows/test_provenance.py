"""Which files of a Windows guest are shared and which private, each rule by an example.

Programs are signed, and catalogs made, with a certificate of the fixtures that has Microsoft's
name in it: that is all that anybody looks at.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from fixtures.windows import der, signing
from fixtures.windows.components import TOKEN, Component
from fixtures.windows.registry import TEN, hive_file, small_key, software_key
from formats.filesystem.model import STORED
from formats.ranges import empty_ranges
from formats.source import Source
from packer.artifact.contents import Class
from packer.guest.model import Judgement
from packer.guest.windows.components import Release, release_of_component, release_of_package
from packer.guest.windows.places import find_places
from packer.guest.windows.provenance import MAX_CATALOG_BYTES, is_microsoft
from packer.pack.cut import NO_STREAM, cut
from packer.pack.digest import FragmentReader, digest_fragments
from packer.pack.draw import classify
from packer.survey.model import Survey
from tests.formats.windows.make_pe import Form, program
from tests.formats.windows.signing import make_author
from tests.guest.material import guest_in_memory, judged, survey_of_names

SYSTEM = "/Windows/System32/config/SYSTEM"
SOFTWARE = "/Windows/System32/config/SOFTWARE"
CATALOGS = "/Windows/System32/CatRoot/{F750E6C3-38EE-11D1-85E5-00C04FC295EE}"
HIVES = {
    SYSTEM: hive_file(TEN, "x", small_key("SYSTEM"), "SYSTEM"),
    SOFTWARE: hive_file(TEN, "x", software_key(TEN), "SOFTWARE"),
}
PROGRAM = program(Form(imports=("kernel32.dll",)))
SIGNED = signing.signed(PROGRAM)
OTHER = program(Form(imports=("user32.dll",)))
TEXT = b"; a file that is no program\r\n" * 40
NOTEPAD = Component(
    "Microsoft-Windows-Notepad",
    "10.0.19041.1",
    {"System32/notepad.exe": PROGRAM, "INF/notepad.inf": TEXT},
)
STORE = f"/Windows/WinSxS/{NOTEPAD.folder}"
MANIFEST = f"/Windows/WinSxS/Manifests/{NOTEPAD.folder}.manifest"


@dataclass
class Guest:
    """A guest in memory. links: further names of files. stored: what NTFS has compressed."""

    files: Mapping[str, bytes]
    links: Sequence[tuple[str, str]] = ()
    stored: Sequence[str] = ()

    @cached_property
    def surveyed(self) -> tuple[Survey, Source]:
        files = {**HIVES, **self.files}
        survey, source = guest_in_memory(files)
        stream = {path: row for row, path in enumerate(files)}
        names = sorted(
            [*((row, path) for path, row in stream.items())]
            + [(stream[path], other) for path, other in self.links]
        )
        form = survey.form.copy()
        form[[stream[path] for path in self.stored]] = STORED
        return (
            replace(
                survey,
                volumes=tuple(replace(one, kind="ntfs") for one in survey.volumes),
                name_stream=np.array([row for row, _ in names], dtype=np.int64),
                name=[name for _, name in names],
                form=form,
            ),
            source,
        )

    @cached_property
    def judgement(self) -> Judgement:
        found = judged(*self.surveyed)
        assert found.guest.family == "windows"
        return found

    @cached_property
    def classes(self) -> dict[str, Class]:
        """The class of each file, as `pack` finds it: everything is hashed."""
        survey, source = self.surveyed
        pieces = cut(survey, source, empty_ranges())
        digests = digest_fragments(
            pieces,
            FragmentReader(pieces, source),
            self.judgement.expected,
            jobs=1,
            progress=lambda _: None,
        )
        unset = replace(self.judgement, boot=np.full_like(self.judgement.boot, -1))
        of_fragment = classify(survey, unset, pieces, digests.owned)
        class_of = {
            stream: Class(int(one))
            for stream, one in zip(pieces.stream.tolist(), of_fragment, strict=True)
            if stream != NO_STREAM
        }
        rows = zip(survey.name, survey.name_stream.tolist(), strict=True)
        return {name: class_of[row] for name, row in rows}

    def package(self, path: str) -> str:
        row = int(self.judgement.package[self._stream(path)])
        if row < 0:
            return ""
        package = self.judgement.packages[row]
        assert package.manager == "windows"
        return " ".join((package.name, package.version, package.architecture)).strip()

    def why(self, path: str) -> str:
        origin = self.judgement.origins[int(self.judgement.origin[self._stream(path)])]
        return origin.shared if self.classes[path] == Class.SHARED else origin.private

    def _stream(self, path: str) -> int:
        survey = self.surveyed[0]
        return int(survey.name_stream[survey.name.index(path)])


# --- the component store ---


def store_of(component: Component, files: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    return {
        f"/Windows/WinSxS/{component.folder}/{path.rpartition('/')[2]}": data
        for path, data in (component.files if files is None else files).items()
    }


def test_what_lies_in_the_component_store_is_shared_under_all_its_names() -> None:
    guest = Guest(store_of(NOTEPAD), [(f"{STORE}/notepad.exe", "/Windows/System32/notepad.exe")])
    assert guest.classes["/Windows/System32/notepad.exe"] == Class.SHARED
    assert guest.classes[f"{STORE}/notepad.inf"] == Class.SHARED
    assert guest.package(f"{STORE}/notepad.exe") == "Windows 10.0.19041.1 amd64"
    assert guest.why(f"{STORE}/notepad.exe") == "Windows' component store"


def test_a_name_in_the_store_counts_more_than_one_in_a_profile() -> None:
    picture = f"{STORE}/notepad.inf"
    guest = Guest(store_of(NOTEPAD), [(picture, "/Users/Public/Pictures/sample.inf")])
    assert guest.classes[picture] == Class.SHARED


def test_upper_and_lower_case_are_the_same() -> None:
    path = f"/WINDOWS/winsxs/{NOTEPAD.folder.upper()}/Notepad.EXE"
    assert Guest({path: PROGRAM}).classes[path] == Class.SHARED


def test_a_manifest_is_compared_with_the_bytes() -> None:
    as_delivered = Guest({**store_of(NOTEPAD), MANIFEST: NOTEPAD.manifest()})
    changed = Guest({**store_of(NOTEPAD, {"x/notepad.exe": OTHER}), MANIFEST: NOTEPAD.manifest()})
    path = f"{STORE}/notepad.exe"
    stream = as_delivered.surveyed[0].name.index(path)
    assert as_delivered.judgement.expected[stream] == hashlib.sha256(PROGRAM).digest()
    assert as_delivered.classes[path] == Class.SHARED
    assert as_delivered.classes[MANIFEST] == Class.SHARED
    assert changed.classes[path] == Class.PRIVATE
    assert changed.why(path) == "components that are not as they were delivered"


@pytest.mark.parametrize(
    "manifest", [b"DCM\x01" + bytes(900), b"no XML", b"<a>" * 500, b"<!DOCTYPE x []><a/>"], ids=len
)
def test_without_a_manifest_that_can_be_read_the_name_is_believed(manifest: bytes) -> None:
    guest = Guest({**store_of(NOTEPAD, {"x/notepad.exe": OTHER}), MANIFEST: manifest})
    assert guest.classes[f"{STORE}/notepad.exe"] == Class.SHARED


def test_of_two_sha1_digests_the_first_is_the_files() -> None:
    """As XP's run-time libraries state them; a SHA-256 counts more than both."""
    identity = "x86_microsoft.vc90.crt_1fc8b3b9a1e18e3b_9.0.21022.8_x-ww_d08d0375"
    first, second = hashlib.sha1(TEXT).hexdigest(), hashlib.sha1(b"no").digest()
    text = (
        '<assembly xmlns="urn:schemas-microsoft-com:asm.v1" manifestVersion="1.0">'
        f'<file name="msvcr90.dll" hash="{first}" hashalg="SHA1">'
        '<asmv2:hash xmlns:asmv2="urn:schemas-microsoft-com:asm.v2" '
        'xmlns:dsig="http://www.w3.org/2000/09/xmldsig#"><dsig:DigestMethod '
        'Algorithm="http://www.w3.org/2000/09/xmldsig#sha1"/><dsig:DigestValue>'
        f"{base64.b64encode(second).decode()}</dsig:DigestValue></asmv2:hash>"
        "</file></assembly>"
    )
    path = f"/WINDOWS/WinSxS/{identity}/msvcr90.dll"
    manifest = f"/WINDOWS/WinSxS/Manifests/{identity}.Manifest"
    guest = Guest({path: TEXT, manifest: text.encode()})
    assert guest.classes[path] == Class.SHARED
    assert guest.package(path) == "Windows 9.0.21022.8 x86"
    assert Guest({path: TEXT + b"!", manifest: text.encode()}).classes[path] == Class.PRIVATE


def test_a_component_of_somebody_else_is_private() -> None:
    folder = NOTEPAD.folder.replace(TOKEN, "0123456789abcdef")
    path = f"/Windows/WinSxS/{folder}/vendor.dll"
    assert Guest({path: PROGRAM}).classes[path] == Class.PRIVATE


@pytest.mark.parametrize(
    "path",
    [
        f"/Windows/servicing/Packages/Package_1_for_KB1~{TOKEN}~amd64~~6.1.1.1.mum",
        f"{CATALOGS}/Package_1_for_KB1~{TOKEN}~amd64~de-DE~6.1.1.1.cat",
        MANIFEST,
    ],
)
def test_records_of_the_servicing_are_shared_by_their_names(path: str) -> None:
    assert Guest({path: TEXT}).classes[path] == Class.SHARED
    elsewhere = "/Users/Eve/" + path.rpartition("/")[2]
    assert Guest({elsewhere: TEXT}).classes[elsewhere] == Class.PRIVATE


@pytest.mark.parametrize(
    ("name", "release"),
    [
        (NOTEPAD.folder, Release("10.0.19041.1", "amd64")),
        (
            f"amd64_dual_prnms003.inf_{TOKEN}_10.0.19041.1_none_1a2b3c4d5e6f7081",
            Release("10.0.19041.1", "amd64"),
        ),
        (
            "x86_microsoft.windows.gdiplus_6595b64144ccf1df_1.0.2600.5512_x-ww_dfb54e0c",
            Release("1.0.2600.5512", "x86"),
        ),
        (
            f"wow64_microsoft-windows-a..e-core_{TOKEN}_10.0.1.2_de-de_0011223344556677",
            Release("10.0.1.2", "wow64"),
        ),
        (NOTEPAD.folder + "x", None),
        (NOTEPAD.folder.replace("10.0.19041.1", "10.0.19041"), None),
        ("backup", None),
        ("a" * 5000, None),
    ],
    ids=lambda one: str(one)[:20],
)
def test_folders_of_components_say_of_which_release_they_are(
    name: str, release: Release | None
) -> None:
    assert release_of_component(name) == release


def test_packages_say_of_which_release_they_are() -> None:
    name = f"microsoft-windows-foundation-package~{TOKEN}~amd64~~10.0.19041.1"
    assert release_of_package(f"{name}.mum") == Release("10.0.19041.1", "amd64")
    assert release_of_package(f"{name}.exe") is None
    assert release_of_package("oem1.cat") is None


# --- signatures ---

ANYWHERE = [
    "/Program Files/Common Files/x/run.dll",
    "/Program Files/Harbour CAD/ucrtbase.dll",
    "/ProgramData/Microsoft/Windows Defender/Platform/4.18/MsMpEng.exe",
    "/Windows/Installer/$PatchCache$/word.exe",
    "/Windows/System32/drivers/late.sys",
    "/Games/DirectX/d3dx9.dll",
]


@pytest.mark.parametrize("path", ANYWHERE)
def test_a_program_that_microsoft_signed_is_shared(path: str) -> None:
    guest = Guest({path: SIGNED})
    assert guest.classes[path] == Class.SHARED
    assert guest.why(path) == "programs signed by Microsoft"


@pytest.mark.parametrize("path", ANYWHERE)
@pytest.mark.parametrize("data", [PROGRAM, b"MZ", SIGNED[:-40], TEXT], ids=len)
def test_one_that_nobody_signed_is_private(path: str, data: bytes) -> None:
    assert Guest({path: data}).classes[path] == Class.PRIVATE


def test_one_that_somebody_else_signed_is_private(tmp_path: Path) -> None:
    original = tmp_path / "original.exe"
    original.write_bytes(PROGRAM)
    signed = make_author(tmp_path).sign(original, tmp_path / "signed.exe").read_bytes()
    path = "/Program Files/Example/run.exe"
    assert Guest({path: signed}).classes[path] == Class.PRIVATE


@pytest.mark.parametrize(
    ("organization", "common_name", "is_its_own"),
    [
        ("Microsoft Corporation", "Microsoft Windows", True),
        ("Microsoft Corporation", "Microsoft Corporation", True),
        ("MICROSOFT CORPORATION", "Microsoft Windows Component Publisher", True),
        ("Microsoft Corporation", "Microsoft Windows Hardware Compatibility Publisher", False),
        ("Microsoft Corporation", "Microsoft Windows Early Launch Anti-malware Publisher", False),
        ("Microsoft Corporation Ltd.", "Microsoft Windows", False),
        ("Microsoft Windows", "Microsoft Windows", False),
        ("", "", False),
    ],
)
def test_whose_names_are_microsofts(organization: str, common_name: str, is_its_own: bool) -> None:
    """Makers of hardware have their drivers signed by Microsoft, who does not hand these out."""
    assert is_microsoft(organization, common_name) == is_its_own


def test_what_is_a_users_is_private_whoever_signed_it() -> None:
    paths = ["/Users/Eve/Downloads/setup.exe", "/Documents and Settings/Eve/Desktop/setup.exe"]
    paths += ["/$Recycle.Bin/S-1-5-21-1/$RABC.exe", "/Windows/ServiceProfiles/x/AppData/y.exe"]
    guest = Guest(dict.fromkeys(paths, SIGNED))
    assert {guest.classes[path] for path in paths} == {Class.PRIVATE}
    assert {guest.why(path) for path in paths} == {"users' profiles, recycle bin"}


# --- catalogs ---


def test_what_a_catalog_lists_is_shared_if_the_bytes_are_the_listed_ones() -> None:
    """XP has neither a component store for its own files, nor signatures in them."""
    listed = signing.catalog({"calc.exe": PROGRAM, "calc.inf": TEXT}, "NT5")
    files = {
        f"{CATALOGS}/NT5.CAT": listed,
        "/Windows/System32/calc.exe": PROGRAM,
        "/Windows/inf/calc.inf": TEXT,
        "/Windows/System32/changed.exe": OTHER,
        "/Windows/inf/changed.inf": TEXT + b"!",
    }
    guest = Guest(files)
    shared = {path for path, one in guest.classes.items() if one == Class.SHARED}
    assert shared == {f"{CATALOGS}/NT5.CAT", "/Windows/System32/calc.exe", "/Windows/inf/calc.inf"}
    assert guest.why("/Windows/inf/calc.inf") == "listed by Windows' catalogs"
    assert guest.why("/Windows/inf/changed.inf") == "Windows folder: of no component"


def test_catalogs_that_others_signed_or_nobody_can_read_list_nothing() -> None:
    sound = signing.catalog({"x.inf": TEXT}, "x")
    foreign = sound.replace(b"Microsoft Corporation", b"Nanobyte! Corporation")
    path = "/Windows/inf/x.inf"
    for data in (foreign, sound[:-1], b"x", der.sequence(), bytes(5000)):
        assert Guest({f"{CATALOGS}/x.cat": data, path: TEXT}).classes[path] == Class.PRIVATE
    assert Guest({f"{CATALOGS}/x.cat": sound, path: TEXT}).classes[path] == Class.SHARED


def test_catalogs_speak_of_the_windows_folder_only() -> None:
    listed = signing.catalog({"x.inf": TEXT}, "x")
    paths = [
        *("/Program Files/x/x.inf", "/Users/Eve/x.inf", "/x.inf", "/Windows/Temp/x.inf"),
        *("/Windows/SoftwareDistribution/Download/x.inf", "/Windows/Logs/x.inf"),
    ]
    guest = Guest({f"{CATALOGS}/x.cat": listed, **dict.fromkeys(paths, TEXT)})
    assert {guest.classes[path] for path in paths} == {Class.PRIVATE}


def test_of_too_many_catalogs_the_first_ones_are_read() -> None:
    listed = signing.catalog({"x.inf": TEXT}, "x")
    huge = bytes(MAX_CATALOG_BYTES)
    path = "/Windows/inf/x.inf"
    for first, last, expected in (("a", "b", Class.SHARED), ("b", "a", Class.PRIVATE)):
        files = {f"{CATALOGS}/{first}.cat": listed, f"{CATALOGS}/{last}.cat": huge, path: TEXT}
        assert Guest(files).classes[path] == expected


# --- what is a guest's own ---


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (SOFTWARE, "registry"),
        ("/Windows/System32/config/RegBack/SAM", "registry"),
        ("/Windows/System32/config/SYSTEM.LOG1", "registry"),
        ("/WINDOWS/repair/sam", "registry"),
        ("/Users/Eve/NTUSER.DAT", "registry"),
        ("/Users/Eve/AppData/Local/Microsoft/Windows/UsrClass.dat.LOG2", "registry"),
        ("/Windows/AppCompat/Programs/Amcache.hve", "registry"),
        ("/Windows/Logs/CBS/CBS.log", "logs"),
        ("/Windows/System32/winevt/Logs/System.evtx", "logs"),
        ("/Windows/WindowsUpdate.log", "logs"),
        ("/Users/Eve/Documents/letter.docx", "users' profiles, recycle bin"),
        ("/Windows/System32/config/systemprofile/x.dat", "users' profiles, recycle bin"),
        ("/ProgramData/Vendor/licence.dat", "ProgramData"),
        ("/Documents and Settings/All Users/Application Data/x.dat", "ProgramData"),
        ("/Windows/Temp/x.tmp", "Windows folder: made on this machine"),
        ("/Windows/assembly/NativeImages_v4/x.ni.dll", "Windows folder: made on this machine"),
        ("/Windows/INF/oem7.inf", "Windows folder: of no component"),
        ("/Program Files/Harbour CAD/harbour.dat", "Harbour CAD 4.2 (Harbour Software GmbH)"),
        ("/program files/HARBOUR CAD/a/b/c.dat", "Harbour CAD 4.2 (Harbour Software GmbH)"),
        ("/Program Files/Unknown/x.dat", "Program Files: of no installed product"),
        ("/Program Files/Harbour CADs/x.dat", "Program Files: of no installed product"),
        ("/Program Files (x86)/x.dat", "Program Files: of no installed product"),
        ("/pagefile.bak", "elsewhere"),
    ],
)
def test_it_is_private_and_said_why(path: str, why: str) -> None:
    guest = Guest({path: HIVES.get(path, TEXT)})
    assert guest.classes[path] == Class.PRIVATE
    assert guest.why(path) == why
    assert guest.package(path) == ""


def test_without_a_registry_files_are_judged_by_names_and_signatures() -> None:
    files = {SOFTWARE: b"no hive", "/Program Files/Harbour CAD/x.dll": SIGNED, **store_of(NOTEPAD)}
    guest = Guest(files)
    assert guest.classes["/Program Files/Harbour CAD/x.dll"] == Class.SHARED
    assert guest.package("/Program Files/Harbour CAD/x.dll") == "Microsoft"
    assert guest.classes[f"{STORE}/notepad.exe"] == Class.SHARED
    assert any("SOFTWARE" in one for one in guest.judgement.warnings)


# --- what NTFS stores in another form ---


def test_a_compressed_stream_of_a_component_is_shared_as_it_lies_there() -> None:
    """The digest that the manifest states is that of the other form, and compared with nothing."""
    path = f"{STORE}/notepad.exe:WofCompressedData"
    files = {path: bytes(5000), MANIFEST: NOTEPAD.manifest()}
    guest = Guest(files, [(path, "/Windows/System32/notepad.exe:WofCompressedData")], [path])
    assert guest.classes[path] == Class.SHARED
    assert guest.judgement.expected[guest.surveyed[0].name.index(path)] is None


@pytest.mark.parametrize(
    "path",
    [
        "/Windows/SysWOW64/user32.dll:WofCompressedData",
        "/Windows/Installer/$PatchCache$/old.dll",
        "/Program Files/Harbour CAD/ucrtbase.dll",
        "/Users/Eve/Documents/encrypted.docx",
    ],
)
def test_other_streams_of_that_kind_are_private_and_not_read(path: str) -> None:
    listed = signing.catalog({"x": SIGNED}, "x")
    guest = Guest({path: SIGNED, f"{CATALOGS}/x.cat": listed}, (), [path])
    assert guest.classes[path] == Class.PRIVATE


def test_a_named_stream_is_no_part_of_a_component() -> None:
    path = f"{STORE}/notepad.exe:Zone.Identifier"
    assert Guest({path: TEXT}).classes[path] == Class.PRIVATE


# --- size ---


@pytest.mark.slow
def test_the_names_of_200000_files_are_told_apart_within_seconds() -> None:
    names = [
        f"/Windows/WinSxS/amd64_{row % 9000}_{TOKEN}_10.0.1.{row % 9}_none_{row % 99:016x}/{row}"
        for row in range(100_000)
    ]
    names += [f"/Program Files/Vendor {row % 50}/a/b/c/file{row}.dll" for row in range(100_000)]
    survey = survey_of_names(names, {})
    start = time.process_time()
    places = find_places(survey, 0, "/Windows")
    seconds = time.process_time() - start
    assert len(places.members) == 100_000
    assert len(places.programs) == 100_000
    assert seconds < 4
