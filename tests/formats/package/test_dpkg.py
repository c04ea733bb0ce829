"""dpkg's database, with dpkg-query and this machine's own as the oracle."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from formats.errors import Corrupt, Unsupported
from formats.package import dpkg

DATABASE = Path("/var/lib/dpkg")
needs_dpkg = pytest.mark.skipif(
    not (DATABASE / "status").exists(), reason="this machine has no dpkg database"
)


@needs_dpkg
def test_packages_are_those_that_dpkg_query_lists() -> None:
    fields = "${Package}\t${Version}\t${Architecture}\t${Status}\t${binary:Package}\n"
    listing = subprocess.run(
        ["dpkg-query", "-W", "-f", fields], check=True, capture_output=True, text=True
    ).stdout
    expected = {tuple(line.split("\t")[:4]) for line in listing.splitlines()}
    packages = dpkg.parse_status((DATABASE / "status").read_bytes())
    found = {(one.name, one.version, one.architecture, one.status) for one in packages}
    assert expected <= found
    assert len(found) == len(packages)


@needs_dpkg
def test_every_installed_package_has_its_info_files_under_its_key() -> None:
    packages = dpkg.parse_status((DATABASE / "status").read_bytes())
    keys = {one.key for one in packages if one.installed}
    assert {path.name.removesuffix(".list") for path in (DATABASE / "info").glob("*.list")} >= keys
    for path in (DATABASE / "info").iterdir():
        member = dpkg.control_member(f"{dpkg.INFO}{path.name}")
        if path.suffix == ".list" or path.name == "format":
            assert member is None
        else:
            assert member is not None
            assert f"{member[0]}.{member[1]}" == path.name
            assert member[0] in {one.key for one in packages}


@needs_dpkg
def test_md5_sums_and_conffiles_name_files_that_are_there() -> None:
    named = {}
    for path in (DATABASE / "info").glob("*.md5sums"):
        named.update(dpkg.parse_md5sums(path.read_bytes()))
    present = sum(Path(path).exists() for path in named)
    assert len(named) > 1000
    assert present > 0.5 * len(named)  # a minimal system leaves documentation out
    packages = dpkg.parse_status((DATABASE / "status").read_bytes())
    conffiles = [conffile for one in packages for conffile in one.conffiles]
    assert conffiles
    assert all(len(one.md5) == 32 or one.md5 == "newconffile" for one in conffiles)


@needs_dpkg
def test_diversions_are_those_that_dpkg_divert_lists() -> None:
    found = dpkg.parse_diversions((DATABASE / "diversions").read_bytes())
    listing = subprocess.run(
        ["dpkg-divert", "--list"], check=True, capture_output=True, text=True
    ).stdout
    assert len(found) == len(listing.splitlines())
    for one in found:
        assert f"{one.path} to {one.diverted}" in listing


def test_a_stanza_is_read_with_all_that_is_asked_for() -> None:
    text = (
        b"Package: a\nStatus: install ok installed\nArchitecture: amd64\nMulti-Arch: same\n"
        b"Version: 1:2-3\nConffiles:\n /etc/a b 00112233445566778899aabbccddeeff obsolete\n"
        b" /etc/c 00112233445566778899aabbccddeeff\nDescription: \xff\n more\n .\n\n\n"
        b"Package: b\nStatus: deinstall ok config-files\n"
    )
    first, second = dpkg.parse_status(text)
    assert (first.name, first.version, first.key) == ("a", "1:2-3", "a:amd64")
    assert first.installed
    md5 = "00112233445566778899aabbccddeeff"
    assert first.conffiles == (
        dpkg.Conffile("/etc/a b", md5, obsolete=True),
        dpkg.Conffile("/etc/c", md5, obsolete=False),
    )
    assert (second.key, second.installed, second.version) == ("b", False, "")


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (b"Package: a\nno colon\n", 11),
        (b" begins with a continuation\n", 0),
        (b"Version: 1\n", 0),
        (b"Package: a\nPackage: b\n", 11),
        (b"\n\nPackage: a\nConffiles:\n obsolete\n", 2),
        (b": x\n", 0),
    ],
)
def test_broken_stanzas_are_corrupt_at_their_offset(text: bytes, offset: int) -> None:
    with pytest.raises(Corrupt) as caught:
        dpkg.parse_status(text)
    assert caught.value.offset == offset


def test_escaped_and_odd_names_in_md5_sums_are_kept() -> None:
    md5 = b"0" * 32
    text = md5 + b"  usr/a\n\\" + md5 + b" *usr/b\\nc\\\\d\n" + md5 + b"  ./usr/\xff\n"
    assert list(dpkg.parse_md5sums(text)) == ["/usr/a", "/usr/b\nc\\d", "/usr/\udcff"]
    with pytest.raises(Corrupt, match="line 2"):
        dpkg.parse_md5sums(md5 + b"  a\nxyz\n")


def test_broken_diversions_are_corrupt() -> None:
    assert dpkg.parse_diversions(b"") == ()
    assert dpkg.parse_diversions(b"/a\n/b\n:\n") == (dpkg.Diversion("/a", "/b", ":"),)
    for text in (b"/a\n/b\n", b"a\n/b\n:\n", b"/a\nb\n:\n"):
        with pytest.raises(Corrupt):
            dpkg.parse_diversions(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("python3.11.postinst", ("python3.11", "postinst")),
        ("libc6:amd64.md5sums", ("libc6:amd64", "md5sums")),
        ("libc6:amd64.list", None),
        ("format", None),
        ("../status.md5sums", None),
        ("a/b.md5sums", None),
    ],
)
def test_info_files_are_members_of_control_archives(
    name: str, expected: tuple[str, str] | None
) -> None:
    assert dpkg.control_member(f"/var/lib/dpkg/info/{name}") == expected
    assert dpkg.control_member(f"/var/lib/dpkg/{name}") is None


def test_a_database_that_is_too_large_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpkg, "MAX_BYTES", 10)
    with pytest.raises(Unsupported):
        dpkg.parse_status(b"Package: a\n")
