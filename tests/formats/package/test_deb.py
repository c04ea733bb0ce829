"""Package files, made and judged by dpkg-deb."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import pyzstd

from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.package.deb import members
from formats.source import FileSource, Memory
from tests.formats.damage import at_most_one_gib, damaged

MIB = 1 << 20
pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed"
)


def build(folder: Path, compression: str = "xz") -> Path:
    """Build a package with long names, a hard link, an empty and a large file."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: test\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\n"
        "Description: a test\n"
    )
    (tree / "DEBIAN" / "postinst").write_text("#!/bin/sh\nexit 0\n")
    (tree / "DEBIAN" / "postinst").chmod(0o755)
    long = tree / "usr" / ("d" * 120) / ("e" * 120)
    long.mkdir(parents=True)
    (long / ("f" * 150)).write_bytes(b"long name")
    (tree / "usr" / "large").write_bytes(os.urandom(1000) * 3000)
    os.link(tree / "usr" / "large", tree / "usr" / "second")
    (tree / "usr" / "empty").touch()
    (tree / "usr" / "ünï").write_bytes(b"u")
    (tree / "usr" / "link").symlink_to("large")
    package = folder / "test.deb"
    options = ["--root-owner-group", f"-Z{compression}", "-b"]
    subprocess.run(["dpkg-deb", *options, tree, package], check=True, capture_output=True)
    return package


def digests(package: Path, max_bytes: int = 64 * MIB) -> dict[str, str]:
    found: dict[str, str] = {}
    with FileSource(package) as source:
        for member in members(source, max_bytes=max_bytes):
            name = f"{member.kind}:{member.path}"
            if member.link:
                found[name] = found[f"{member.kind}:{member.link}"]
                continue
            digest, size = hashlib.sha256(), 0
            while piece := member.file.read(10000):
                digest.update(piece)
                size += len(piece)
            assert size == member.size
            found[name] = digest.hexdigest()
    return found


def unpacked(package: Path, folder: Path) -> dict[str, str]:
    found = {}
    folder.mkdir()
    for kind, option in (("control", "-e"), ("data", "-x")):
        root = folder / kind
        subprocess.run(["dpkg-deb", option, package, root], check=True)
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                name = f"{kind}:/{path.relative_to(root)}"
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "none"])
def test_members_are_those_that_dpkg_deb_unpacks(tmp_path: Path, compression: str) -> None:
    package = build(tmp_path, compression)
    assert digests(package) == unpacked(package, tmp_path / "out")


def test_a_published_package_is_read_as_dpkg_deb_reads_it(tmp_path: Path) -> None:
    subprocess.run(["chmod", "777", tmp_path], check=True)
    done = subprocess.run(
        ["apt-get", "download", "-q", "hello"], check=False, cwd=tmp_path, capture_output=True
    )
    packages = list(tmp_path.glob("*.deb"))
    if done.returncode or not packages:
        pytest.skip("apt-get could not download a package")
    assert digests(packages[0]) == unpacked(packages[0], tmp_path / "out")


def test_only_the_archive_that_is_asked_for_is_unpacked(tmp_path: Path) -> None:
    package = build(tmp_path)
    with package.open("rb") as file:
        found = list(members(file, max_bytes=MIB, kinds=frozenset({"control"})))
    assert [(one.kind, one.path) for one in found] == [
        ("control", "/control"),
        ("control", "/postinst"),
    ]


def test_contents_may_be_left_unread(tmp_path: Path) -> None:
    with FileSource(build(tmp_path)) as source:
        paths = [one.path for one in members(source, max_bytes=64 * MIB)]
    assert len(paths) == 7


def test_more_than_the_allowed_bytes_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="more than the allowed"):
        digests(build(tmp_path, "zstd"), max_bytes=MIB)


def ar(*parts: tuple[str, bytes]) -> bytes:
    package = b"!<arch>\n"
    for name, data in parts:
        package += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        package += data + b"\n" * (len(data) % 2)
    return package


def with_data(tar: bytes, name: str = "data.tar") -> bytes:
    return ar(("debian-binary", b"2.0\n"), (name, tar))


def tar_of(*headers: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for header in headers:
            archive.addfile(header, io.BytesIO(bytes(header.size)))
    return file.getvalue()


def header(name: str, size: int = 3, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = 0 if link else size
    info.type = tarfile.LNKTYPE if link else tarfile.REGTYPE
    info.linkname = link
    return info


def read(package: bytes) -> list[str]:
    paths = []
    for one in members(Memory(package), max_bytes=16 * MIB):
        paths.append(one.path)
        while one.file.read(65536):
            pass
    return paths


@pytest.mark.parametrize(
    "bad", [header("../etc/passwd"), header("./a/../../b"), header("a", link="../b"), header("./")]
)
def test_paths_that_lead_elsewhere_are_corrupt(bad: tarfile.TarInfo) -> None:
    with pytest.raises(Corrupt, match="member path"):
        read(with_data(tar_of(bad)))
    assert read(with_data(tar_of(header("//a/./b")))) == ["/a/b"]


def test_a_name_of_gigabytes_is_corrupt() -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 4 << 30
    with pytest.raises(Corrupt, match="a name of"):
        read(with_data(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))


def raw_header(size: int, kind: bytes = tarfile.REGTYPE, more: int = 0) -> bytes:
    """A tar header with any size; more: the flag that extends the map of a sparse member."""
    block = bytearray(tarfile.TarInfo("member").tobuf(tarfile.GNU_FORMAT))
    # GNU's base 256, in two's complement
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    block[156:157] = kind
    block[482] = more
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"D"])
def test_a_member_of_exabytes_is_not_walked_over(kind: bytes) -> None:
    package = with_data(raw_header(1 << 62, kind) + bytes(2048))
    with pytest.raises(Unsupported, match="more than the allowed"):
        list(members(Memory(package), max_bytes=MIB))


def test_a_member_of_less_than_nothing_is_corrupt() -> None:
    extended = header("member")
    extended.pax_headers = {"size": "-1"}
    for tar in (raw_header(-1), extended.tobuf(tarfile.PAX_FORMAT)):
        with pytest.raises(Corrupt, match="a member of -1 bytes"):
            read(with_data(tar + bytes(2048)))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_extended_headers_of_megabytes_are_corrupt(kind: bytes) -> None:
    with pytest.raises(Corrupt, match="a name of"):
        read(with_data(raw_header(MIB, kind) + b"9 a=bbbb\n" * MIB))


def test_sparse_members_are_unsupported_before_their_maps_are_read() -> None:
    with pytest.raises(Unsupported, match="sparse member"):
        read(with_data(raw_header(0, tarfile.GNUTYPE_SPARSE, more=1)))
    for version in ({"GNU.sparse.map": "0,1"}, {"GNU.sparse.size": "1"}, {"GNU.sparse.major": "1"}):
        info = header("member")
        info.pax_headers = {"GNU.sparse.minor": "0", **version}
        with pytest.raises(Unsupported, match="sparse member"):
            read(with_data(info.tobuf(tarfile.PAX_FORMAT) + bytes(2048)))


def test_headers_nested_without_end_are_corrupt() -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 1
    block = info.tobuf(tarfile.GNU_FORMAT) + b"a" + bytes(511)
    with pytest.raises(FormatError):
        read(with_data(block * 5000 + bytes(1024)))


def test_a_broken_header_is_not_taken_for_the_end() -> None:
    tar = bytearray(tar_of(header("a"), header("b")))
    tar[1024] ^= 1
    with pytest.raises(Corrupt):
        read(with_data(bytes(tar)))
    with pytest.raises(Truncated):
        read(with_data(tar_of(header("a"))[:1024]))
    with pytest.raises(FormatError):
        read(with_data(tar_of(header("a", 5000))[:2048]))


@pytest.mark.parametrize(
    ("package", "kind"),
    [
        (b"", Truncated),
        (b"!<arch>\n", None),
        (b"PK\3\4 no package", Corrupt),
        (ar(("data.tar", b"")), Corrupt),
        (ar(("debian-binary", b"3.0\n")), Corrupt),
        (with_data(b"", "data.tar.rar"), Unsupported),
        (with_data(b"", "data.tar.xz"), Truncated),
        (with_data(b"no gzip", "data.tar.gz"), Corrupt),
        (with_data(b"no zstd", "data.tar.zst"), Corrupt),
        (ar(("debian-binary", b"2.0\n"))[:-2], Truncated),
        (ar(("debian-binary", b"2.0\n"), *[("_x", b"")] * 100), Corrupt),
    ],
)
def test_what_is_no_package_is_a_format_error(
    package: bytes, kind: type[FormatError] | None
) -> None:
    if kind is None:
        assert read(package) == []
        return
    with pytest.raises(kind):
        read(package)


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "none"])
def test_damage_gives_members_or_a_format_error(tmp_path: Path, compression: str) -> None:
    good = build(tmp_path, compression).read_bytes()
    outcomes = {"members": 0, "error": 0}
    for data in damaged(good, [(0, len(good)), (0, 400)], 150):
        try:
            read(data)
            outcomes["members"] += 1
        except FormatError:
            outcomes["error"] += 1
    assert outcomes["error"] > 20


def bombs() -> Iterator[bytes]:
    """One file of 256 MiB of zeros, as small as each compression makes it."""
    tar = tar_of(header("big", 256 * MIB))
    yield with_data(gzip.compress(tar), "data.tar.gz")
    yield with_data(lzma.compress(tar, preset=0), "data.tar.xz")
    yield with_data(bz2.compress(tar), "data.tar.bz2")
    yield with_data(pyzstd.compress(tar), "data.tar.zst")


def test_bombs_stop_at_the_limit() -> None:
    for package in bombs():
        assert len(package) < 2 * MIB
        with at_most_one_gib(), pytest.raises(Unsupported, match="more than the allowed"):
            read(package)


def test_a_dictionary_of_gigabytes_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    data = lzma.compress(tar_of(header("a")), filters=filters)
    with pytest.raises(Corrupt):
        read(with_data(data, "data.tar.xz"))
