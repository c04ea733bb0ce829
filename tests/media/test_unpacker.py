"""copy --with-unpacker: a host that has nothing unpacks from the medium alone, and it boots."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.boot import boot
from tests.host import needs_root
from tests.hostile.refusal import INPUT, INTERRUPTED, USAGE, refused
from tests.media.bare_host import STRANGER, BareHost, make_tree, new_host
from tests.media.conftest import Carried
from tests.peers.mounting import mounted
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import tool
from tests.round_trip.packs import Packed, author_key

pytestmark = [pytest.mark.guest, pytest.mark.slow]
ELSEWHERE = {"LC_ALL": "C", "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7"}
CONNECT = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"


@pytest.fixture(scope="session")
def signer() -> str:
    """The author's fingerprint, as a person gets it."""
    return tool("ssh-keygen", "-lf", author_key()).split()[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tree of a bare host."""
    folder = tmp_path_factory.mktemp("bare")
    yield make_tree(folder / "root")
    tool("rm", "-rf", "--one-file-system", folder)


def unpack_there(host: BareHost, signer: str, **how: object) -> subprocess.CompletedProcess[str]:
    """Unpack the medium on a bare host, with the program on it."""
    (program,) = (host.medium / "unpacker").glob("vmpack-linux-*")
    command = [f"/media/unpacker/{program.name}", "unpack", "/media", "-o", "/out/disk.raw"]
    return host.run(*command, "--signer", signer, **how)  # type: ignore[arg-type]


def succeeded(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"status {done.returncode}\n{done.stderr}"
    assert "every content proven" in done.stdout
    assert "Traceback" not in done.stderr


# -- the whole way ---------------------------------------------------------------------------------


@needs_root
def test_debian_goes_by_image_to_a_host_that_has_nothing_and_boots(
    author: Vmpack,
    tree: Path,
    carried: Carried,
    pack_guest: Callable[[str], Packed],
    signer: str,
    room: Path,
) -> None:
    debian = pack_guest("debian-bios")
    with_unpacker = f"--with-unpacker={carried.folder}"
    author.good("copy", debian.full, room / "debian.iso", with_unpacker)
    for names in ("-R", "-J"):  # of Linux, of Windows
        listed = tool("isoinfo", names, "-f", "-i", room / "debian.iso").splitlines()
        files = [path for path in carried.folder.rglob("*") if path.is_file()]
        assert {f"/{path.relative_to(carried.medium)}" for path in files} <= set(listed)
    with mounted(room / "debian.iso", "iso9660", room / "medium") as medium:
        tool("diff", "-r", carried.folder, medium / "unpacker")
        host = new_host(tree, room, medium)
        for command, complaint in (
            (("vmpack", "--version"), "No such file"),
            (("python3", "-m", "pip"), "No module named pip"),
            (("python3", "-c", CONNECT), "Network is unreachable"),
        ):
            assert complaint in host.run(*command).stderr
        succeeded(unpack_there(host, signer))
    disk = host.out / "disk.raw"
    assert author.json("verify", disk, room / "debian.iso", "--exact")["right"]
    nonce = secrets.token_hex(8)
    result = boot(disk, firmware=debian.guest.firmware, nonce=nonce)
    assert (result.nonce, result.digests_ok) == (nonce, True), result.console[-3000:]
    assert result.disk_nonce == debian.guest.facts["nonce"]


@needs_root
@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({}, "/nonexistent"),
        ({"HOME": "/read-only"}, "/read-only"),
        ({"HOME": "relative"}, "/nonexistent"),
        ({"VMPACK_HOME": "/read-only/vmpack"}, "/read-only"),
    ],
    ids=["no-home", "read-only", "relative", "vmpack-home"],
)
def test_a_user_whom_the_host_does_not_know_unpacks_a_stick(
    tree: Path, carried: Carried, signer: str, room: Path, variables: dict[str, str], kept: str
) -> None:
    """What cannot be remembered is said, and nothing lies about afterwards."""
    host = new_host(tree, room, carried.medium)
    done = unpack_there(host, signer, user=STRANGER, variables=variables)
    succeeded(done)
    notes = done.stderr.splitlines()
    assert all(line.startswith("vmpack: note: ") for line in notes), done.stderr
    assert len([line for line in notes if kept in line]) == 3, done.stderr
    assert [path.name for path in host.out.iterdir()] == ["disk.raw"]
    assert list((host.root / "tmp").iterdir()) == []
    assert not (host.root / "nonexistent").exists()


@needs_root
def test_where_programs_may_not_run_in_tmp_another_folder_serves(
    tree: Path, carried: Carried, signer: str, room: Path
) -> None:
    host = new_host(tree, room, carried.medium)
    refusing = unpack_there(host, signer, variables={"TMPDIR": "/no-programs"})
    assert refusing.returncode == 127
    assert "failed to map segment" in refusing.stderr
    succeeded(unpack_there(host, signer, variables={"TMPDIR": "/out"}))


def test_the_wheels_on_the_medium_install_and_unpack_without_network(
    carried: Carried, signer: str, room: Path
) -> None:
    tool(sys.executable, "-m", "venv", room / "venv")
    offline = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "-rn")
    wheels = carried.folder / "wheels"
    pip = (room / "venv/bin/pip", "install", "--quiet", "--no-index", "--find-links", wheels)
    tool(*offline, *pip, "vmpack")
    host = Vmpack(room / "home", (str(room / "venv/bin/vmpack"),))
    disk = room / "disk.raw"
    host.good("unpack", carried.medium, "-o", disk, "--signer", signer, before=offline)
    options = ("--exact", "--signer", signer)
    assert host.json("verify", disk, carried.medium, *options)["right"]
    refused(
        host("copy", carried.medium, f"{room}/other/", "--with-unpacker"), 1, "PyInstaller",
        "pip install 'vmpack[unpacker]'", output=room / "other",
    )  # fmt: skip
    host.good("copy", carried.medium, f"{room}/other/", f"--with-unpacker={carried.folder}")
    tool("diff", "-r", carried.medium, room / "other")


# -- what lies on the medium -----------------------------------------------------------------------


def test_the_digest_that_copy_prints_is_the_programs(carried: Carried) -> None:
    digest = hashlib.sha256(carried.program.read_bytes()).hexdigest()
    assert carried.report["digest"] == f"sha256:{digest}"
    assert os.access(carried.program, os.X_OK)
    page = (carried.medium / "index.html").read_text()
    assert str(carried.report["needs"]) in page
    assert f"sha256sum {carried.report['program']}" in page


def test_the_c_library_that_the_program_needs_is_the_one_that_objdump_finds(
    carried: Carried, room: Path
) -> None:
    """Looked for in what the program has unpacked while it runs."""
    room.joinpath("tmp").mkdir()
    code = "import sys, time; print(sys._MEIPASS, flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [carried.program, "--vmpack-child", code],
        env={"TMPDIR": str(room / "tmp")}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        unpacked = Path(process.stdout.readline().strip())
        files = [path for path in unpacked.rglob("*") if ".so" in path.name]
        assert len(files) > 40
        listed = [tool("objdump", "-T", path) for path in (*files, carried.program)]
    finally:
        process.terminate()
        process.communicate(timeout=60)
    found = re.findall(r"GLIBC_(2(?:\.\d+)+)", "".join(listed))
    newest = max(found, key=lambda version: tuple(map(int, version.split("."))))
    machine = os.uname().machine
    assert carried.report["needs"] == f"Linux on {machine} with glibc {newest} or later"


def test_the_licences_of_everything_in_the_program_lie_beside_it(carried: Carried) -> None:
    text = (carried.folder / "LICENSES.txt").read_text()
    for name in ("vmpack", "numpy", "cryptography", "libfsext-python", "pyinstaller", "urllib3"):
        assert re.search(rf"^  {name} [\d.]+: \S", text, re.MULTILINE), name
    for said in ("Apache License", "PYTHON SOFTWARE FOUNDATION LICENSE", "libcrypto.so"):
        assert said in text, said


def test_nothing_on_the_medium_names_folders_of_the_author(carried: Carried) -> None:
    """The interpreter's own files may say where it was installed, as they did before."""
    checkout = str(Path(__file__).parents[2])
    code = """if True:
        import os, sys
        for folder, _, names in os.walk(sys._MEIPASS):
            for name in names:
                print(name, sys.argv[1].encode() in open(os.path.join(folder, name), "rb").read())
    """
    looked_at = tool(carried.program, "--vmpack-child", code, checkout).splitlines()
    assert "METADATA False" in looked_at
    assert [line for line in looked_at if line.endswith("True")] == []
    for path in carried.folder.rglob("*"):
        assert path.is_dir() or checkout.encode() not in path.read_bytes(), path


def test_another_user_elsewhere_makes_the_same_unpacker(
    carried: Carried, busybox: Packed, room: Path
) -> None:
    """Another folder, cache, zone, locale, umask and hash seed; nothing is taken from the cache."""
    host = Vmpack(room / "another home")
    host.good(
        "copy", busybox.full, f"{room}/again/", "--with-unpacker", environment=ELSEWHERE,
        before=("sh", "-c", 'umask 077; exec "$0" "$@"'), folder=room,
    )  # fmt: skip
    tool("diff", "-r", carried.medium, room / "again")


def test_a_medium_is_filled_with_the_unpacker_counted_in(
    author: Vmpack, carried: Carried, pack_guest: Callable[[str], Packed], room: Path
) -> None:
    options = ("--fit", "200M", f"--with-unpacker={carried.folder}")
    author.good("copy", pack_guest("debian-bios").full, room / "a.iso", *options)
    assert 0.95 * (200 << 20) <= (room / "a.iso").stat().st_size <= 200 << 20


# -- the program as any other vmpack ---------------------------------------------------------------


@pytest.fixture
def carried_host(carried: Carried, tmp_path: Path) -> Vmpack:
    """A host with the program that came on a medium, and nothing else of vmpack."""
    return Vmpack(tmp_path / "home", (str(carried.program),))


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
def test_the_program_reads_disks_in_children_of_its_own(
    run_vmpack: Vmpack, carried_host: Vmpack, busybox: Packed, room: Path, kind: str
) -> None:
    """The last through qemu-nbd, which the limits of a child are put on."""
    image = room / f"disk.{kind}"
    tool("qemu-img", "convert", "-O", kind, busybox.guest.image, image)
    assert carried_host.json("inspect", image) == run_vmpack.json("inspect", image)


def test_the_program_takes_contents_from_a_disk_and_writes_any_format(
    run_vmpack: Vmpack, carried_host: Vmpack, busybox: Packed, signer: str, room: Path
) -> None:
    disk = room / "disk.qcow2"
    report = carried_host.json(
        "unpack", busybox.boot, "-o", disk, "--format", "qcow2", "--signer", signer,
        "--from", f"disk:{busybox.guest.image}", "--no-store",
    )  # fmt: skip
    assert any(one["source"].startswith("disk:") for one in report["supplied"])
    assert run_vmpack.json("verify", disk, busybox.full)["right"]


@pytest.mark.parametrize("before", [None, "/nowhere"])
def test_programs_of_the_system_do_not_get_the_libraries_of_the_program(
    carried_host: Vmpack, busybox: Packed, signer: str, room: Path, before: str | None
) -> None:
    """A qemu-img that notes what it was given and does its work."""
    tools = room / "tools"
    tools.mkdir()
    real = tool("which", "qemu-img").strip()
    (tools / "qemu-img").write_text(
        f'#!/bin/sh\necho "${{LD_LIBRARY_PATH-unset}}" > {room}/given\nexec {real} "$@"\n'
    )
    (tools / "qemu-img").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
    if before:
        environment["LD_LIBRARY_PATH"] = before
    carried_host.good(
        "unpack", busybox.full, "-o", room / "disk.qcow2", "--format", "qcow2",
        "--signer", signer, environment=environment,
    )  # fmt: skip
    assert (room / "given").read_text().strip() == (before or "unset")


def test_neither_do_those_that_run_under_the_limits_of_a_child(
    carried_host: Vmpack, busybox: Packed, room: Path
) -> None:
    """A qemu-img that says what it was given, which vmpack quotes."""
    image = room / "disk.vmdk"
    tool("qemu-img", "convert", "-O", "vmdk", busybox.guest.image, image)
    (room / "qemu-img").write_text('#!/bin/sh\necho "given ${LD_LIBRARY_PATH-unset}" >&2\nexit 1\n')
    (room / "qemu-img").chmod(0o755)
    environment = {"PATH": f"{room}:{os.environ['PATH']}"}
    done = carried_host("inspect", image, environment=environment)
    refused(done, INPUT, "given unset")


def test_a_child_of_the_program_ends_as_that_of_an_interpreter(carried: Carried) -> None:
    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(carried.program), "--vmpack-child", code, *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    assert run("import sys; print(sys.argv)", "a", "-b").stdout == "['-c', 'a', '-b']\n"
    assert run("raise SystemExit(77)").returncode == 77
    failed = run("raise ValueError('no such thing')")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "ValueError: no such thing"


def test_an_interrupted_program_ends_as_vmpack_does_and_leaves_nothing_in_tmp(
    carried_host: Vmpack, pack_guest: Callable[[str], Packed], signer: str, room: Path
) -> None:
    (room / "tmp").mkdir()
    disk = room / "disk.raw"
    process = carried_host.start(
        "unpack", pack_guest("debian-bios").full, "-o", disk, "--from", "store:",
        "--signer", signer, environment={"TMPDIR": str(room / "tmp")},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not disk.with_name("disk.raw.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, printed) == (INTERRUPTED, "")
    assert said == "vmpack: interrupted\n"
    assert not disk.exists()
    assert list((room / "tmp").iterdir()) == []


def test_the_program_copies_itself_from_its_medium_to_another(
    carried: Carried, carried_host: Vmpack, room: Path
) -> None:
    refused(
        carried_host("copy", carried.medium, f"{room}/other/", "--with-unpacker"), USAGE,
        "a carried vmpack cannot make", "--with-unpacker=/media/stick/unpacker",
        output=room / "other",
    )  # fmt: skip
    carried_host.good("copy", carried.medium, f"{room}/other/",
                      f"--with-unpacker={carried.folder}")  # fmt: skip
    tool("diff", "-r", carried.medium, room / "other")
