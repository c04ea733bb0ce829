"""The whole path over real apt and real servers: a made-up mirror on loopback, private settings."""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from packer.artifact.hints import Package
from packer.sources.apt import AptSource
from packer.sources.apt_host import MAX_MIRRORS, Download, find_apt, package_uri
from packer.sources.apt_index import find_packages, resolve
from packer.sources.base import SourceError
from packer.sources.package_cache import PackageCache
from tests.sources.guest import Guest, build_deb, read_deb
from tests.transport.servers import Answer, nginx, serving

pytestmark = pytest.mark.skipif(
    find_apt() is None or not shutil.which("dpkg-deb"), reason="apt is not installed"
)

TOOL = random.Random(5).randbytes(300_000)
LIBRARY = random.Random(6).randbytes(1_500_000)


class Configure(Protocol):
    def __call__(self, *urls: str, style: str = ...) -> None: ...


@dataclass(frozen=True)
class Mirror:
    """A repository in a folder: pool, dists/stable with one Packages file for amd64."""

    root: Path
    packages: tuple[Package, ...]

    def file(self, number: int) -> Path:
        return self.root / self.packages[number].filename


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    root = tmp_path / "mirror"
    pool = root / "pool" / "main"
    pool.mkdir(parents=True)
    tool = build_deb(tmp_path, {"/usr/bin/tool": TOOL}, name="tool", version="1:2.0+b1")
    library = build_deb(tmp_path, {"/lib/library": LIBRARY}, name="library", version="3~rc1-1")
    tool = tool.rename(pool / "tool_2.0+b1_all.deb")
    library = library.rename(pool / library.name)
    packages, stanzas = [], []
    for deb, name, version in ((tool, "tool", "1:2.0+b1"), (library, "library", "3~rc1-1")):
        data = deb.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        filename = str(deb.relative_to(root))
        packages.append(Package("dpkg", name, version, "all", filename, digest, len(data)))
        stanzas.append(
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody\n"
            f"Description: made\n up\nFilename: {filename}\nSize: {len(data)}\nSHA256: {digest}\n"
        )
    write_lists(root, "\n".join(stanzas).encode())
    return Mirror(root, tuple(packages))


def write_lists(root: Path, text: bytes) -> None:
    folder = root / "dists" / "stable"
    place = folder / "main" / "binary-amd64" / "Packages"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    (folder / "Release").write_text(
        "Suite: stable\nCodename: stable\nArchitectures: amd64\nComponents: main\n"
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S UTC', time.gmtime())}\n"
        f"SHA256:\n {digest} {len(text)} main/binary-amd64/Packages\n"
    )


@pytest.fixture
def apt_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """A function that makes apt use these mirrors and nothing of this host."""

    def configure(*urls: str, style: str = "deb822") -> None:
        home = tmp_path / "apt"
        for folder in ("etc/sources.list.d", "lists/partial", "cache/archives/partial"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        (home / "etc" / "sources.list").write_text("")
        if style == "deb822":
            text = "".join(
                f"Types: deb\nURIs: {url}\nSuites: stable\nComponents: main\nTrusted: yes\n\n"
                for url in urls
            )
            (home / "etc" / "sources.list.d" / "test.sources").write_text(text)
        else:
            text = "".join(f"deb [trusted=yes] {url} stable main\n" for url in urls)
            (home / "etc" / "sources.list").write_text(text)
        (home / "apt.conf").write_text(
            f'Dir::Etc "{home}/etc"; Dir::Etc::parts "none"; Dir::State "{home}";'
            f'Dir::State::lists "{home}/lists"; Dir::State::status "{home}/status";'
            f'Dir::Cache "{home}/cache"; APT::Architecture "amd64"; Acquire::Languages "none";'
            'APT::Architectures { "amd64"; }; Acquire::http::Timeout "5";'
        )
        monkeypatch.setenv("APT_CONFIG", str(home / "apt.conf"))

    monkeypatch.delenv("http_proxy", raising=False)
    return configure


def demo_guest(mirror: Mirror) -> Guest:
    guest = Guest()
    for package, path, data in zip(
        mirror.packages, ("/usr/bin/tool", "/usr/lib/library"), (TOOL, LIBRARY), strict=True
    ):
        guest.file(path, data, guest.package(package))
    return guest


def check_all(source: AptSource, guest: Guest, rows: range | list[int], *, deep: bool) -> None:
    offers = source.find(guest.wanted(), deep=deep)
    guest.check(source.fetch(offers.rows), rows)


def fetched_sizes(folder: Path) -> list[int]:
    return sorted(path.stat().st_size for path in folder.glob("*.deb"))


@pytest.mark.parametrize("style", ["deb822", "one-line"])
def test_packages_come_from_the_mirror_without_any_lists(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure, style: str
) -> None:
    with nginx(mirror.root, tmp_path / "nginx") as url:
        apt_uses(url, style=style)
        source = AptSource(tmp_path / "packages")
        guest = demo_guest(mirror)
        offers = source.find(guest.wanted(), deep=False)
        assert offers.rows.tolist() == [0, 1]
        assert not offers.cost_bytes.any()
        sizes = {package.size_bytes for package in mirror.packages}
        assert set(offers.group_bytes[offers.group].tolist()) == sizes
        guest.check(source.fetch(offers.rows), [0, 1])
        assert fetched_sizes(tmp_path / "packages") == sorted(sizes)


def test_what_was_fetched_once_costs_nothing(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    with nginx(mirror.root, tmp_path / "nginx") as url:
        apt_uses(url)
        check_all(AptSource(tmp_path / "packages"), demo_guest(mirror), [0, 1], deep=False)
    again = AptSource(tmp_path / "packages")
    assert not again.find(demo_guest(mirror).wanted(), deep=False).group_bytes.any()
    check_all(again, demo_guest(mirror), [0, 1], deep=False)


def test_only_the_package_of_what_is_asked_for_is_fetched(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    with nginx(mirror.root, tmp_path / "nginx") as url:
        apt_uses(url)
        source = AptSource(tmp_path / "packages")
        guest = demo_guest(mirror)
        source.find(guest.wanted(), deep=False)
        guest.check(source.fetch(np.array([0])), [0])
        assert fetched_sizes(tmp_path / "packages") == [mirror.packages[0].size_bytes]


def test_each_mirror_is_asked_until_one_has_it(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    other = tmp_path / "other"
    place = other / mirror.packages[1].filename
    place.parent.mkdir(parents=True)
    shutil.move(mirror.file(1), place)
    with nginx(mirror.root, tmp_path / "n1") as first, nginx(other, tmp_path / "n2") as second:
        apt_uses(first, second)
        check_all(AptSource(tmp_path / "packages"), demo_guest(mirror), [0, 1], deep=False)


def test_a_mirror_with_wrong_bytes_is_passed_over(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    good = tmp_path / "good"
    shutil.copytree(mirror.root, good)
    data = bytearray(mirror.file(0).read_bytes())
    data[-5000] ^= 1
    mirror.file(0).write_bytes(data)
    with nginx(mirror.root, tmp_path / "n1") as first:
        apt_uses(first)
        check_all(AptSource(tmp_path / "a"), demo_guest(mirror), [1], deep=False)
        with nginx(good, tmp_path / "n2") as second:
            apt_uses(first, second)
            check_all(AptSource(tmp_path / "b"), demo_guest(mirror), [0, 1], deep=False)
    assert not list(tmp_path.glob("[ab]/*FAILED"))


def test_superseded_versions_are_reported_once_and_not_offered_again(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    mirror.file(0).unlink()
    with nginx(mirror.root, tmp_path / "nginx") as url:
        apt_uses(url)
        source = AptSource(tmp_path / "packages")
        with caplog.at_level(logging.WARNING):
            check_all(source, demo_guest(mirror), [1], deep=False)
            assert caplog.text.count("tool 1:2.0+b1") == 1
            assert source.find(demo_guest(mirror).wanted(), deep=False).rows.tolist() == [1]
            check_all(source, demo_guest(mirror), [1], deep=False)
        assert caplog.text.count("tool 1:2.0+b1") == 1


def test_when_no_mirror_answers_the_source_says_so(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    with nginx(mirror.root, tmp_path / "nginx") as url:
        apt_uses(url)
    source = AptSource(tmp_path / "packages")
    offers = source.find(demo_guest(mirror).wanted(), deep=False)
    with pytest.raises(SourceError, match="no mirror can be reached"):
        list(source.fetch(offers.rows))


def test_a_package_longer_than_announced_is_cut_off(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    def endless(answer: Answer, _: int) -> None:
        answer.give(200, {"Transfer-Encoding": "chunked"}, b"")
        for _ in range(20_000):
            answer.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    with serving(endless) as server:
        apt_uses(server.url)
        source = AptSource(tmp_path / "packages")
        guest = Guest()
        guest.file("/usr/bin/tool", TOOL, guest.package(mirror.packages[0]))
        offers = source.find(guest.wanted(), deep=False)
        with pytest.raises(SourceError):
            list(source.fetch(offers.rows))
        assert not list((tmp_path / "packages").glob("*.deb"))
        kept = sum(path.stat().st_size for path in (tmp_path / "packages").iterdir())
        assert kept < 500_000_000


def test_a_cut_download_is_taken_up_again(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    data = mirror.file(1).read_bytes()

    def cuts(answer: Answer, number: int) -> None:
        if number > 1:
            return answer.give_range(data)
        modified = {"Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}
        answer.give(200, {"Content-Length": str(len(data)), **modified}, data[:1_000_000])
        return answer.cut()

    with serving(cuts) as server:
        apt_uses(server.url)
        guest = Guest()
        guest.file("/usr/lib/library", LIBRARY, guest.package(mirror.packages[1]))
        check_all(AptSource(tmp_path / "packages"), guest, [0], deep=False)
        assert server.asked[1][1]["Range"] == "bytes=1000000-"


def test_a_repository_in_a_folder_works_too(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    apt_uses(f"file:{mirror.root}")
    check_all(AptSource(tmp_path / "packages"), demo_guest(mirror), [0, 1], deep=False)


def test_a_list_of_mirrors_works_too(tmp_path: Path, mirror: Mirror, apt_uses: Configure) -> None:
    with nginx(mirror.root, tmp_path / "nginx") as url:
        mirrors = tmp_path / "mirrors.txt"
        mirrors.write_text(f"# ours\nhttp://127.0.0.1:9/\tpriority:2\n{url}\n")
        apt_uses(f"mirror+file:{mirrors}")
        check_all(AptSource(tmp_path / "packages"), demo_guest(mirror), [0, 1], deep=False)


def test_what_is_no_address_in_a_list_of_mirrors_never_reaches_apt(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    with nginx(mirror.root, tmp_path / "nginx") as url:
        apt_uses(f"mirror+file:{tmp_path}/mirrors.txt")
        (tmp_path / "mirrors.txt").write_text(f"-oDir::Bin::methods=/tmp\n/etc/\n{url}\n")
        apt = find_apt()
        assert apt is not None
        assert apt.base_uris() == [f"{url}/"]
        others = "".join(f"http://127.0.0.1:9/{number}/\n" for number in range(1000))
        (tmp_path / "mirrors.txt").write_text(others)
        assert len(apt.base_uris()) == MAX_MIRRORS


def test_a_mirror_that_drips_is_given_up(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    stop = threading.Event()

    def drips(answer: Answer, _: int) -> None:
        answer.give(200, {"Content-Length": str(mirror.packages[0].size_bytes)}, b"!<arch>")
        while not stop.wait(0.2):
            answer.wfile.write(b"x")
            answer.wfile.flush()

    apt = find_apt()
    assert apt is not None
    with serving(drips) as server:
        apt_uses(server.url)
        started = time.monotonic()
        download = Download(
            f"{server.url}/a.deb", tmp_path / "a.partial", "", mirror.packages[0].size_bytes
        )
        failed = apt.download([download], threading.Event(), stall_seconds=2)
        stop.set()
    assert list(failed) == [download.uri], failed
    assert 2 <= time.monotonic() - started < 10, (
        failed
    )  # apt's own timeout never comes: data arrives


def test_a_cache_that_cannot_be_written_is_an_error_of_the_source(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    apt_uses(f"file:{mirror.root}")
    (tmp_path / "file").touch()
    source = AptSource(tmp_path / "file" / "packages")
    with pytest.raises(SourceError, match="file/packages"):
        check_all(source, demo_guest(mirror), [0, 1], deep=False)


def test_packages_are_not_collected_while_an_unpack_relies_on_them(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    apt_uses(f"file:{mirror.root}")
    source, cache = AptSource(tmp_path / "packages"), PackageCache(tmp_path / "packages")
    offers = source.find(demo_guest(mirror).wanted(), deep=False)
    pieces = source.fetch(offers.rows)
    first = next(pieces)
    assert cache.collect(everything=True).in_use
    demo_guest(mirror).check(itertools.chain([first], pieces), [0, 1])
    removed = cache.collect(older_than_seconds=60)
    assert (removed.count, removed.kept) == (0, 2)  # however old they are on the mirror
    assert cache.collect(everything=True).count == 2


def test_closing_ends_a_download_that_hangs(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    asked, stop = threading.Event(), threading.Event()

    def hangs(answer: Answer, _: int) -> None:
        answer.give(200, {"Content-Length": str(mirror.packages[0].size_bytes)}, b"!<arch>")
        answer.wfile.flush()
        asked.set()
        stop.wait(20)

    with serving(hangs) as server:
        apt_uses(server.url)
        source = AptSource(tmp_path / "packages")
        offers = source.find(demo_guest(mirror).wanted(), deep=False)

        def close() -> None:
            asked.wait(20)
            source.close()

        closer = threading.Thread(target=close)
        closer.start()
        started = time.monotonic()
        with pytest.raises(SourceError):
            list(source.fetch(offers.rows))
        assert time.monotonic() - started < 4  # apt's own timeout is 5 seconds and four attempts
        closer.join()
        stop.set()


def test_names_that_lead_out_of_the_mirror_are_refused(
    tmp_path: Path, mirror: Mirror, apt_uses: Configure
) -> None:
    apt_uses(f"file:{mirror.root}")
    guest = Guest()
    for filename in ("../../etc/x.deb", "pool/../../x.deb", "pool/x y.deb", "etc/passwd"):
        package = replace_file(mirror.packages[0], filename)
        guest.file(f"/{filename}", filename.encode(), guest.package(package))
        assert package_uri("http://host/", filename) is None
    offers = AptSource(tmp_path / "packages").find(guest.wanted(), deep=False)
    assert len(offers.rows) == 0
    assert package_uri("http://host/d", "./a%3ab+c~.deb") == "http://host/d/a%253ab+c~.deb"


def replace_file(package: Package, filename: str) -> Package:
    return Package("dpkg", f"no-{package.name}", "1", "all", filename, package.sha256, 10)


class TestIndex:
    def test_apts_own_lists_say_where_a_package_lies(
        self, tmp_path: Path, mirror: Mirror, apt_uses: Configure
    ) -> None:
        with nginx(mirror.root, tmp_path / "nginx") as url:
            apt_uses(url)
            subprocess.run(["apt-get", "update"], check=True, capture_output=True)
            found = resolve(
                [("library", "3~rc1-1", "all"), ("tool", "1:1.9", "all"), ("none", "1", "all")]
            )
        assert found.packages[0] == mirror.packages[1]
        assert found.packages[1:] == (
            Package("dpkg", "tool", "1:1.9", "all"),
            Package("dpkg", "none", "1", "all"),
        )
        assert found.base_uris == (url + "/", "", "")
        assert found.note == ""

    def test_lists_are_fetched_privately_only_when_allowed(
        self, tmp_path: Path, mirror: Mirror, apt_uses: Configure
    ) -> None:
        key = ("library", "3~rc1-1", "all")
        with nginx(mirror.root, tmp_path / "nginx") as url:
            apt_uses(url)
            without = resolve([key])
            assert not without.packages[0].filename
            assert "apt-get update" in without.note
            found = resolve([key], update_folder=tmp_path / "private")
            assert found.packages == (mirror.packages[1],)
        assert not list((tmp_path / "apt" / "lists").glob("*Packages*"))

    def test_a_source_finds_packages_whose_file_the_pack_does_not_name(
        self, tmp_path: Path, mirror: Mirror, apt_uses: Configure
    ) -> None:
        nameless = tuple(Package("dpkg", p.name, p.version, "all") for p in mirror.packages)
        guest = demo_guest(Mirror(mirror.root, nameless))
        with nginx(mirror.root, tmp_path / "nginx") as url:
            apt_uses(url)
            source = AptSource(tmp_path / "packages")
            assert len(source.find(guest.wanted(), deep=False).rows) == 0
            check_all(source, guest, [0, 1], deep=True)

    def test_damaged_stanzas_leave_the_fields_empty(self) -> None:
        sha = "a" * 64
        text = (
            f"Package: a\nVersion: 1\nArchitecture: all\nFilename: ../a.deb\nSHA256: {sha}\n"
            f"Size: 5\n\nPackage: b\nVersion: 1\nArchitecture: all\nFilename: b.deb\nSize: -5\n"
            f"SHA256: {sha}\n\nPackage: c\nVersion: 1\nArchitecture: all\nFilename: c.deb\n"
            f"Size: 5\nSHA256: zz\n\nPackage: d\nVersion: 1\nArchitecture: all\n"
            f"Filename: d.deb\nSize: 5\nSHA256: {sha}\n\nVersion: 1\n\nPackage: d\nVersion: 2"
        ).encode()
        wanted = {name: {(b"1", b"all")} for name in (b"a", b"b", b"c", b"d")}
        found = {
            key[0]: (p.filename, p.sha256, p.size_bytes) for key, p in find_packages(text, wanted)
        }
        assert found == {
            "a": ("", "", 0),
            "b": ("b.deb", sha, 0),
            "c": ("c.deb", "", 5),
            "d": ("d.deb", sha, 5),
        }

    def test_a_whole_distribution_is_looked_through_in_time(self) -> None:
        filler = b"Description: " + b"x" * 600
        text = b"\n\n".join(
            b"Package: p%d\nVersion: 1\nArchitecture: all\n%b\nFilename: p%d.deb\nSize: 9\n"
            b"SHA256: %b" % (number, filler, number, b"a" * 64)
            for number in range(65_000)
        )
        wanted = {b"p%d" % number: {(b"1", b"all")} for number in range(0, 65_000, 65)}
        started = time.process_time()
        assert len(list(find_packages(text, wanted))) == 1000
        assert time.process_time() - started < 2


def test_without_apt_there_is_a_reason(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = resolve([("tool", "1", "all")])
    assert "no apt" in found.note
    assert found.packages == (Package("dpkg", "tool", "1", "all"),)
    with pytest.raises(SourceError, match="no apt"):
        AptSource(tmp_path).find(demo_guest(mirror).wanted(), deep=False)


@pytest.mark.network
def test_the_real_mirror_supplies_a_real_package(tmp_path: Path) -> None:
    policy = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", "hello"], capture_output=True, check=False
    )
    lines = dict(
        line.partition(": ")[::2] for line in policy.stdout.decode().splitlines() if ": " in line
    )
    key = ("hello", lines.get("Version", ""), lines.get("Architecture", ""))
    found = resolve([key], update_folder=tmp_path / "lists")
    if not found.packages[0].filename:
        pytest.skip(f"the mirror lists no hello: {found.note or policy.stderr.decode()}")
    got = subprocess.run(
        ["apt-get", "download", "hello"], cwd=tmp_path, capture_output=True, check=False
    )
    if got.returncode:
        pytest.skip(f"the mirror cannot be reached: {got.stderr.decode()[-200:]}")
    guest = Guest()
    package = guest.package(found.packages[0])
    deb = next(tmp_path.glob("hello_*.deb"))
    for path, data in read_deb(deb, tmp_path / "tree").items():
        if data:
            guest.file(path, data, package)
    source = AptSource(tmp_path / "packages")
    check_all(source, guest, range(len(guest.contents)), deep=False)
    assert fetched_sizes(tmp_path / "packages") == [deb.stat().st_size]
    assert deb.stat().st_size == found.packages[0].size_bytes
