"""From what a user names to a source; from what a pack recommends only what may be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.copy import Extent, copy_packs
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.manifest import decode_index, encode_index
from packer.artifact.opened import OpenedPack
from packer.errors import Error, InputError, UsageError
from packer.sources.base import SourceError, Wanted
from packer.sources.deb import DebSource
from packer.sources.directory import DirectorySource
from packer.sources.medium import MediumSource
from packer.sources.open import SourceOpener, nearest, open_pack, open_packs
from packer.sources.pack import PackSource
from packer.sources.store import Store
from packer.sources.symbol_server import SymbolServer
from packer.sources.symbols import SymbolFolder
from tests.artifact.real_packs import no_hints, write_pack
from tests.round_trip.mirror import mirror as mirror_of
from tests.transport.servers import serving
from tests.unpack.simulated import CLASSES, DATA

REFUSED = [
    "dir:/etc",
    "disk:/dev/sda",
    "disk:nbd://host/",
    "medium:/dev/sr0",
    "symbols:/root/x",
    "symbols:https://host/x",
    "pack:/root/x",
    "pack:https://host/x",
    "store:",
    "store://host:7436/",
    "store+https://host:7436/",
    "http://host/x/",
    "oci+http://host/x:1",
    "file:///etc/",
]
"""What no pack may recommend: paths of this host, its neighbours, servers without TLS."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))


@pytest.fixture
def mirror() -> Iterator[str]:
    """An https address at which nobody speaks TLS."""
    with serving(lambda answer, _: answer.cut()) as server:
        yield f"{server.url.replace('http:', 'https:')}/demo/"


@pytest.fixture
def pack(tmp_path: Path, mirror: str) -> Iterator[OpenedPack]:
    recommended = [*REFUSED, mirror]
    pack = write_pack(tmp_path / "a.vmpack", DATA, CLASSES, sources=recommended)
    yield pack
    pack.close()


@pytest.fixture
def opener(tmp_path: Path, pack: OpenedPack) -> Iterator[SourceOpener]:
    with SourceOpener(Store(tmp_path / "store"), pack) as opener:
        yield opener


def test_each_kind_of_uri_gives_its_source(opener: SourceOpener, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    kinds: dict[str, type] = {
        "store:": Store,
        f"store:{tmp_path}/other": Store,
        f"dir:{tmp_path}/tree": DirectorySource,
        f"deb:{tmp_path}/tree": DebSource,
        f"pack:{tmp_path}/a.vmpack": PackSource,
        f"medium:{tmp_path}/tree": MediumSource,
        f"symbols:{tmp_path}/tree": SymbolFolder,
        "symbols:https://host/store": SymbolServer,
    }
    sources, notes = opener.open_all(list(kinds))
    assert notes == []
    assert [type(source) for source in sources] == list(kinds.values())
    assert [source.uri for source in sources[1:]] == list(kinds)[1:]
    assert sources[0].uri == f"store:{tmp_path}/store"  # not where this host usually has it


@pytest.mark.parametrize(
    "uri",
    [
        *("", "nonsense", "ftp://host/x", "/usr", "DIR:/usr"),
        *("dir:", "disk:", "deb:", "pack:", "medium:", "symbols:"),
    ],
)
def test_what_is_no_source_is_refused_with_the_list_of_kinds(
    opener: SourceOpener, uri: str
) -> None:
    with pytest.raises(UsageError, match="not a source") as caught:
        opener.open(uri)
    assert "dir:FOLDER" in caught.value.message


@pytest.mark.parametrize(
    "uri",
    [
        "dir:{}/none",
        "pack:{}/none",
        "disk:{}/none",
        "deb:{}/a.vmpack",
        "medium:{}/none",
        "symbols:{}/none",
    ],
)
def test_a_source_that_is_not_there_is_one_clear_error(
    opener: SourceOpener, pack: OpenedPack, tmp_path: Path, uri: str
) -> None:
    wanted = Wanted(pack.map.contents, np.arange(len(DATA)), no_hints())
    with pytest.raises(Error) as caught:
        opener.open(uri.format(tmp_path)).find(wanted, deep=True)
    assert str(tmp_path) in caught.value.message


def test_a_copy_of_the_same_pack_offers_all_that_it_carries(
    opener: SourceOpener, pack: OpenedPack, tmp_path: Path
) -> None:
    source = opener.open(f"pack:{tmp_path}/a.vmpack")
    rows = np.arange(len(DATA), dtype=np.int64)
    offers = source.find(Wanted(pack.map.contents, rows, pack.hints), deep=False)
    assert offers.rows.tolist() == rows.tolist()


def test_a_damaged_pack_as_a_source_is_a_source_error(opener: SourceOpener, tmp_path: Path) -> None:
    other = write_pack(f"{tmp_path}/b/", DATA[:2], CLASSES[:2])
    layer = other.manifest.frame_index()
    assert layer is not None
    other.close()
    blob = tmp_path / "b" / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")
    blob.write_bytes(b"junk")
    with pytest.raises(SourceError, match="b"):
        opener.open(f"pack:{tmp_path}/b")


def test_what_a_pack_recommends_may_not_name_a_path_of_this_host(
    opener: SourceOpener, pack: OpenedPack, mirror: str
) -> None:
    sources, notes = opener.defaults(offline=False)
    assert not any("/etc" in source.uri or "/dev/sda" in source.uri for source in sources)
    refused = [note for note in notes if "only a user may name" in note]
    assert len(refused) == len(REFUSED)
    (far,) = [source for source in sources if source.uri == mirror]
    wanted = Wanted(pack.map.contents, np.arange(len(DATA)), no_hints())
    for deep in (False, True):  # it has no pack; that is told whenever it is asked
        with pytest.raises(SourceError, match="left out"):
            far.find(wanted, deep=deep)


def test_a_server_is_asked_when_something_is_missing_and_not_before(opener: SourceOpener) -> None:
    with serving(lambda answer, _: answer.give(404, {"Content-Length": "0"}, b"")) as server:
        opener.open(f"{server.url}/demo/")
        assert server.asked == []


@pytest.mark.parametrize("uri", ["https://", "http://[::1/", "https:demo"])
def test_what_is_no_address_is_refused_at_once(opener: SourceOpener, uri: str) -> None:
    with pytest.raises(UsageError, match="expected an address"):
        opener.open(uri)


def test_the_password_of_a_server_is_not_shown_whatever_it_is_called(
    opener: SourceOpener, pack: OpenedPack
) -> None:
    with serving(lambda answer, _: answer.give(404, {"Content-Length": "0"}, b"")) as server:
        url = server.url.replace("//", "//ann:secret@") + "/demo/?token=secret"
        sources, notes = opener.open_all([url, f"pack:{url}"])
        assert not server.asked
        for source in sources:
            with pytest.raises(SourceError) as caught:
                source.find(Wanted(pack.map.contents, np.arange(1), no_hints()), deep=False)
            assert "secret" not in f"{source.uri} {caught.value} {notes}"


def test_offline_asks_no_mirror(opener: SourceOpener) -> None:
    sources, notes = opener.defaults(offline=True)
    assert not any("127.0.0.1" in note for note in notes)
    assert all(source.local for source in sources)


def test_a_pack_is_opened_with_or_without_its_scheme(tmp_path: Path, pack: OpenedPack) -> None:
    for location in (f"{tmp_path}/a.vmpack", f"pack:{tmp_path}/a.vmpack"):
        with open_pack(location) as opened:
            assert opened.config_digest == pack.config_digest


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A layout of lab:1, demo:1, demo:3 and demo:2."""
    packs = [
        write_pack(tmp_path / f"{n}.vmpack", DATA, CLASSES, name=name, version=version)
        for n, (name, version) in enumerate([("lab", 1), ("demo", 1), ("demo", 3), ("demo", 2)])
    ]
    with create_layout(tmp_path / "several.vmpack") as writer:
        copy_packs(packs, writer, Extent.FULL)
    for pack in packs:
        pack.close()
    return tmp_path / "several.vmpack"


def named(packs: Sequence[OpenedPack]) -> list[str]:
    found = [one.config.ref_name for one in packs]
    packs[0].close()
    return found


def test_one_of_several_packs_is_named_after_a_mark(several: Path) -> None:
    everything = ["lab:1", "demo:1", "demo:3", "demo:2"]
    assert named(open_packs(f"{several}")) == named(open_packs(f"pack:{several}")) == everything
    assert named(open_packs(f"{several}#demo:2")) == ["demo:2"]
    assert named([open_pack(f"{several}#demo")]) == ["demo:3"]
    assert named([open_pack(f"pack:{several}#lab:1")]) == ["lab:1"]
    with mirror_of(several.parent) as one:
        assert named([open_pack(f"{one.url}several.vmpack#demo:1")]) == ["demo:1"]
    for location, words in (
        (f"{several}", "expected one pack, found 4"),
        (f"{several}#demo:4", "one pack called 'demo:4', found 0"),
        (f"{several}#dem", "one pack called 'dem', found 0"),
        (f"{several}#demo#demo", "expected a pack"),
    ):
        with pytest.raises(InputError, match=words):
            named([open_pack(location)])
    with pytest.raises(UsageError, match="expected the name of a pack after '#'"):
        open_pack(f"{several}#")


@pytest.mark.parametrize("name", ["a#b.vmpack", "#", "a#b:1", "#demo:1"])
def test_a_file_may_have_the_mark_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pack(tmp_path / name, DATA, CLASSES).close()
    for location in (name, f"pack:{name}", f"{name}#demo:1", f"{tmp_path}/{name}#demo"):
        assert named([open_pack(location)]) == ["demo:1"]


@pytest.mark.parametrize("name", ["x" * 5000 + "#demo", "x\0#demo", "/root\0/#x"])
def test_a_name_that_no_file_can_have_is_one_clear_error(name: str) -> None:
    with pytest.raises(InputError):
        open_pack(name)


def test_packs_without_names_are_opened_each(tmp_path: Path, several: Path) -> None:
    """As other tools write a layout, and one pack under two names."""
    layout = open_layout(several)
    blobs = [blob for _, blob in decode_index(layout.index())]
    layout.close()
    with create_layout(f"{tmp_path}/folder/") as writer:
        copy_packs(open_packs(str(several)), writer, Extent.FULL)
    index = encode_index([("", blobs[1]), ("latest", blobs[0]), ("", blobs[2]), ("x", blobs[0])])
    (tmp_path / "folder" / "index.json").write_bytes(index)
    assert named(open_packs(f"{tmp_path}/folder")) == ["demo:1", "lab:1", "demo:3"]


def test_of_several_packs_the_source_is_the_one_that_helps_most(
    tmp_path: Path, several: Path
) -> None:
    """A copy of what is rebuilt, else the latest of its name."""
    for name, version, expected in (
        ("demo", 1, "demo:1"),
        ("demo", 9, "demo:3"),
        ("x", 1, "lab:1"),
    ):
        place = tmp_path / f"{name}-{version}.vmpack"
        with (
            write_pack(place, DATA, CLASSES, name=name, version=version) as pack,
            SourceOpener(Store(tmp_path / "store"), pack) as opener,
        ):
            packs = open_packs(str(several))
            assert nearest(pack, packs).config.ref_name == expected
            packs[0].close()
            rows = np.arange(len(DATA), dtype=np.int64)
            wanted_all = Wanted(pack.map.contents, rows, pack.hints)
            offers = opener.open(f"pack:{several}").find(wanted_all, deep=False)
            assert offers.rows.tolist() == rows.tolist()


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    for location in (tmp_path / "junk", tmp_path / "none", "/dev/null"):
        with pytest.raises(InputError, match=str(location)):
            open_pack(str(location))
