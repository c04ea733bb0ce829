from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.source import Memory
from packer.artifact import manifest as manifests
from packer.artifact.layout import tar_members
from packer.artifact.layout.open import open_layout
from packer.artifact.layout.tar import TarLayout, TarWriter
from packer.artifact.layout.tar_members import MAX_MEMBERS, encode_header, next_member
from packer.errors import Error, InputError
from tests.artifact.fake_packs import FakePack, read_everything, sha256, write_pack

BLOB = f"blobs/sha256/{sha256(b'data').removeprefix('sha256:')}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "demo.vmpack"


@pytest.fixture
def pack(path: Path) -> FakePack:
    with TarWriter(path) as writer:
        return write_pack(writer)


class CountingSource(Memory):
    """A tar file far away: counts the requests that reading it takes."""

    requests = 0

    def pread(self, offset: int, length: int) -> bytes:
        self.requests += 1
        return super().pread(offset, length)


def test_what_was_written_is_read_again(path: Path, pack: FakePack) -> None:
    layout = open_layout(path)
    assert isinstance(layout, TarLayout)
    assert (layout.location, layout.remote) == (str(path), False)
    assert read_everything(layout) == (pack.manifest, pack.blobs)
    assert layout.blob_size("sha256:" + "0" * 64) is None
    layout.close()


def test_the_same_pack_gives_the_same_bytes(path: Path, pack: FakePack) -> None:
    again = path.with_name("again")
    with TarWriter(again) as writer:
        write_pack(writer)
    assert again.read_bytes() == path.read_bytes()
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            owner = (member.uid, member.gid, member.uname, member.gname)
            assert (owner, member.mtime, member.mode) == ((0, 0, "", ""), 0, 0o644)


def test_the_trust_decision_comes_first_then_what_boots(path: Path, pack: FakePack) -> None:
    with tarfile.open(path) as tar:
        names = tar.getnames()
    digests = [
        pack.manifest_blob.digest,
        pack.manifest.config.digest,
        *(layer.digest for layer in pack.manifest.layers),
    ]
    blobs = [f"blobs/sha256/{digest.removeprefix('sha256:')}" for digest in digests]
    assert names == ["oci-layout", "index.json", *blobs]


def test_the_front_of_a_file_far_away_takes_one_request_to_walk(path: Path, pack: FakePack) -> None:
    source = CountingSource(path.read_bytes())
    layout = TarLayout(source, "far away", remote=True)
    index = layout.index()
    assert layout.blob_size(manifests.decode_index(index)[0][1].digest) is not None
    assert layout.blob_size(pack.manifest.config.digest) is not None
    assert source.requests == 3  # the headers once, oci-layout, index.json
    assert read_everything(layout) == (pack.manifest, pack.blobs)


def test_ranges_lie_inside_a_blob(path: Path, pack: FakePack) -> None:
    layout = open_layout(path)
    boot = pack.manifest.bundles()["private"]
    data = pack.blobs[boot.digest]
    assert dict(layout.read_many(boot.digest, [(1500, 500), (0, 1)])) == {0: data[1500:], 1: b"\1"}
    for offset, length in ((boot.size, 1), (-1, 1), (0, boot.size + 1), (0, -1)):
        with pytest.raises(InputError):
            layout.read(boot.digest, offset, length)


def test_every_truncation_is_an_error_or_the_same_pack(path: Path, pack: FakePack) -> None:
    data = path.read_bytes()
    for length in range(0, len(data), 512):
        try:
            whole = read_everything(TarLayout(Memory(data[:length]), "short"))
        except Error:
            continue
        assert length == len(data) - 512  # one of the two blocks of zeros at the end
        assert whole == (pack.manifest, pack.blobs)
    for length in (1, 511, 513, len(data) - 1025):
        with pytest.raises(Error):
            read_everything(TarLayout(Memory(data[:length]), "short"))


def test_a_truncated_file_far_away_is_an_error_too(path: Path, pack: FakePack) -> None:
    data = path.read_bytes()
    for length in range(0, len(data) - 1024, 512):
        with pytest.raises(Error):
            walk_all(data[:length])


def walk_all(data: bytes) -> None:
    layout = TarLayout(Memory(data), "short", remote=True)
    read_everything(layout)
    layout.blob_size("sha256:" + "0" * 64)


def test_every_flipped_byte_is_an_error_or_the_same_pack(path: Path, pack: FakePack) -> None:
    data = path.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        try:
            _manifest, blobs = read_everything(TarLayout(Memory(bytes(damaged)), "damaged"))
        except Error:
            continue
        assert blobs == pack.blobs


def build(*members: tuple[tarfile.TarInfo, bytes], pax: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar file with an oci-layout and these members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=pax) as tar:
        for info, data in (plain("oci-layout", manifests.OCI_LAYOUT), *members):
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def plain(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info, data = plain(name, b"", kind)
    info.linkname = target
    return info, data


def pax(name: str, data: bytes, **headers: str) -> tuple[tarfile.TarInfo, bytes]:
    info, data = plain(name, data)
    info.pax_headers = headers
    return info, data


def layout_of(data: bytes) -> TarLayout:
    return TarLayout(Memory(data), "hostile")


@pytest.mark.parametrize("name", ["./index.json", "index.json"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_other_tools_write_is_read(name: str, form: int) -> None:
    data = build(
        plain("blobs/", b"", tarfile.DIRTYPE),
        plain("a/" * 40 + "a file with a long name", b"passed over"),
        plain(name, b"{}"),
        link("somewhere", "/etc/passwd"),
        plain(f"./{BLOB}", b"data"),
        pax=form,
    )
    layout = layout_of(data)
    assert layout.index() == b"{}"
    assert layout.read(sha256(b"data"), 1, 3) == b"ata"


def test_a_long_name_that_hides_a_blob_is_read_as_tar_does() -> None:
    data = build(pax("harmless", b"data", path=BLOB), plain("index.json", b"{}"))
    assert layout_of(data).blob_size(sha256(b"data")) == 4
    hidden = build(pax(BLOB, b"data", path="elsewhere"), plain("index.json", b"{}"))
    assert layout_of(hidden).blob_size(sha256(b"data")) is None


@pytest.mark.parametrize(
    "name",
    [
        "../index.json", "/index.json", "././index.json", "x/../index.json", "index.json/",
        "index.json\n", "INDEX.JSON", "blobs/index.json",
    ],
)  # fmt: skip
def test_names_that_only_look_like_ours_are_passed_over(name: str) -> None:
    with pytest.raises(InputError, match=r"expected index\.json"):
        layout_of(build(plain(name, b"{}"))).index()


@pytest.mark.parametrize(
    "members",
    [
        [plain("index.json", b"{}"), plain("index.json", b"[]")],
        [plain("index.json", b"{}"), plain("./index.json", b"{}")],
        [plain(BLOB, b"data"), plain(BLOB, b"data")],
        [plain("oci-layout", manifests.OCI_LAYOUT)],
        [link("index.json", "/etc/passwd")],
        [link(BLOB, "/etc/passwd")],
        [link(BLOB, "oci-layout", tarfile.LNKTYPE)],
        [plain(BLOB, b"", tarfile.FIFOTYPE)],
        [plain(BLOB, b"", tarfile.CHRTYPE)],
        [plain("any", b"", tarfile.GNUTYPE_SPARSE)],
        [plain("any", b"", b"Z")],
        [pax(BLOB, b"data", **{"GNU.sparse.major": "1"})],
        [pax(BLOB, b"data", **{"GNU.sparse.realsize": str(1 << 60)})],
        [pax(BLOB, b"data", size="-1")],
        [pax(BLOB, b"data", size="99999999999999999999")],
        [pax(BLOB, b"data", size=str((1 << 62) - 1))],
        [pax(BLOB, b"data", size="\u0664")],
    ],
    ids=lambda members: f"{members[0][0].name[:12]} {members[0][0].type!r} {len(members)}",
)
def test_members_that_two_readers_may_see_differently_are_refused(
    members: list[tuple[tarfile.TarInfo, bytes]],
) -> None:
    with pytest.raises(InputError):
        layout_of(build(*members))


@pytest.mark.parametrize("place", [130, 140, 150, 300], ids=["size", "time", "sum", "group"])
def test_a_header_that_its_checksum_does_not_fit_is_refused(place: int) -> None:
    data = bytearray(build(plain("index.json", b"{}"), plain(BLOB, b"data")))
    data[data.index(BLOB.encode()) + place] ^= 1
    with pytest.raises(InputError, match="checksum"):
        layout_of(bytes(data)).blob_size(sha256(b"data"))


def header(change: Callable[[bytearray], None]) -> bytes:
    """Return a tar file with oci-layout and one header that was changed, its checksum right."""
    block = bytearray(encode_header("index.json", 0))
    change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return build()[:1024] + bytes(block) + bytes(1024)


def setting(start: int, value: bytes) -> Callable[[bytearray], None]:
    def change(block: bytearray) -> None:
        block[start : start + len(value)] = value

    return change


@pytest.mark.parametrize(
    ("start", "value"),
    [
        (124, b"77777777777\0"),  # 8 GiB
        (124, b"777777777777"),  # 64 GiB
        (124, b"\x80" + b"\xff" * 11),  # 2^88 - 1, base-256
        (124, b"\xff" * 12),  # -1, base-256
        (124, b"\x80" + bytes(7) + b"\xff\xff\xff\xff"),  # 4 GiB, base-256
        (124, b"-0000000001\0"),
        (124, b"0x000000001\0"),
        (124, b"9\0"),
        (156, b"L"),
        (156, b"x"),
        (257, b"USTAR\0"),
        (257, bytes(8)),
    ],
)
def test_absurd_headers_are_refused(start: int, value: bytes) -> None:
    with pytest.raises(InputError):
        layout_of(header(setting(start, value)))


def test_an_absurd_size_is_not_allocated() -> None:
    with pytest.raises(InputError, match="the file ends at byte"):
        layout_of(header(setting(124, b"77777777777\0")))


def test_a_link_with_data_is_refused() -> None:
    def change(block: bytearray) -> None:
        setting(124, b"00000001000\0")(block)
        setting(156, b"2")(block)

    with pytest.raises(InputError, match="without data"):
        layout_of(header(change))


@pytest.mark.parametrize(
    "body",
    [
        b"garbage", b"9999 path=x\n", b"4 a=\n", b"0 path=x\n", b"11 path=xyz", b"-9 path=x\n",
        b"10 path=x\n12 path", b"8 path\n\n",
    ],
)  # fmt: skip
def test_damaged_pax_records_are_refused(body: bytes) -> None:
    padded = body + bytes(-len(body) % 512)
    block = bytearray(encode_header("pax", len(body)))
    setting(156, b"x")(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data = build()[:1024] + bytes(block) + padded + encode_header("index.json", 0) + bytes(1024)
    with pytest.raises(InputError, match="pax records"):
        layout_of(data)


def test_global_headers_may_not_name_every_member() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", pax_headers={"path": "index.json"}) as tar:
        tar.addfile(tarfile.TarInfo("x"))
    with pytest.raises(InputError, match="global header"):
        layout_of(stream.getvalue())


def test_extension_headers_without_end_are_refused() -> None:
    block = bytearray(encode_header("pax", 0))
    setting(156, b"x")(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(InputError, match="in a row"):
        layout_of(build()[:1024] + bytes(block) * 10_000)


def test_members_without_end_are_refused() -> None:
    data = build()[:1024] + encode_header("x", 0) * (MAX_MEMBERS + 1) + bytes(1024)
    with pytest.raises(InputError, match=f"at most {MAX_MEMBERS} members"):
        layout_of(data)


def test_an_index_that_is_too_large_is_not_read() -> None:
    data = build(plain("index.json", bytes((4 << 20) + 1)))
    with pytest.raises(InputError, match="at most 4194304 bytes"):
        layout_of(data).index()


@pytest.mark.parametrize(
    "data", [b"", bytes(512), bytes(10240), b"\x1f\x8b" + bytes(1000), b"a" * 2048]
)
def test_what_is_no_tar_file_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        layout_of(data)


@given(st.binary(max_size=1536))
def test_noise_is_an_input_error_or_nothing(noise: bytes) -> None:
    try:
        next_member(Memory(noise), 0, "noise")
    except InputError:
        return


@pytest.mark.parametrize("size", [0, 1, 511, 512, (8 << 30) - 1, 8 << 30, 1 << 40])
def test_headers_are_what_tarfile_reads(size: int) -> None:
    data = encode_header(BLOB, size)
    info = tarfile.TarFile(fileobj=io.BytesIO(data + bytes(1024))).next()
    assert info is not None
    assert (info.name, info.size, info.isreg()) == (BLOB, size, True)


def test_sizes_beyond_eight_gibibytes_survive() -> None:
    class Huge:
        size = 1 << 50

        def pread(self, offset: int, length: int) -> bytes:
            front = encode_header(BLOB, 1 << 40)
            return front[offset : offset + length]

    member = next_member(Huge(), 0, "huge")
    assert member is not None
    assert (member.size, member.offset) == (1 << 40, 3 * 512)
    assert member.end == 3 * 512 + (1 << 40)


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="100"):
        encode_header("x" * 101, 0)
    assert len(tar_members.END) == 1024


@pytest.mark.parametrize("bundles", [["boot"], ["boot", "private", "shared-000", "shared-001"]])
def test_skopeo_reads_what_is_written_and_the_other_way_round(
    tmp_path: Path, path: Path, bundles: list[str]
) -> None:
    with TarWriter(path) as writer:
        pack = write_pack(writer, bundles)
    plain_copy, archive = tmp_path / "plain", tmp_path / "again.tar"
    skopeo("copy", f"oci-archive:{path}", f"dir:{plain_copy}")
    for blob in pack.manifest.blobs():
        data = (plain_copy / blob.digest.removeprefix("sha256:")).read_bytes()
        assert data == pack.blobs[blob.digest]
    assert (plain_copy / "manifest.json").read_bytes() == pack.blobs[pack.manifest_blob.digest]
    assert (
        skopeo("inspect", "--raw", f"oci-archive:{path}:demo:3")
        == (pack.blobs[pack.manifest_blob.digest])
    )
    skopeo("copy", f"oci-archive:{path}", f"oci-archive:{archive}")
    assert read_everything(open_layout(archive)) == (pack.manifest, pack.blobs)


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "oldgnu"])
def test_gnu_tar_unpacks_it_and_packs_it_again(
    tmp_path: Path, path: Path, pack: FakePack, form: str
) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again.tar"
    folder.mkdir()
    subprocess.run(["tar", "-xf", path, "-C", folder], check=True)
    assert read_everything(open_layout(folder)) == (pack.manifest, pack.blobs)
    subprocess.run(
        ["tar", f"--format={form}", "-cf", str(again), "-C", str(folder), "."], check=True
    )
    assert read_everything(open_layout(again)) == (pack.manifest, pack.blobs)


def test_a_sparse_member_of_gnu_tar_is_refused(tmp_path: Path, path: Path, pack: FakePack) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    subprocess.run(["tar", "-xf", path, "-C", folder], check=True)
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.write(b"x")
    for form in ("gnu", "pax"):
        again = tmp_path / f"{form}.tar"
        tar = ["tar", f"--format={form}", "--sparse", "-cf", str(again), "-C", str(folder), "."]
        subprocess.run(tar, check=True)
        with pytest.raises(InputError, match="sparse"):
            open_layout(again)


def skopeo(*arguments: str) -> bytes:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    return subprocess.run(["skopeo", *arguments], check=True, capture_output=True).stdout
