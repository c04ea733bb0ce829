"""The way of a want-list: a machine without a network, one that has it, the first one again."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.refusal import INTERRUPTED, MISSING, USAGE, refused
from tests.hostile.test_interruption import UNDER_WAY, end, names
from tests.round_trip.command import Vmpack, content_bytes
from tests.round_trip.disks import needs_root, tool
from tests.round_trip.layouts import config_digest
from tests.round_trip.mirror import mirror
from tests.round_trip.packs import Packed, trusting_host
from tests.round_trip.small import make_disk, pack_small, write_files
from tests.round_trip.surroundings import needs_mirrors

OFFLINE = ("unshare", "-n")
"""A network namespace without even a loopback."""

NO_PROGRAMS = {"PATH": "/nonexistent"}
"""No qemu, no guestfish, no apt."""

MIB = 1 << 20
MB = 1_000_000
MOST_BYTES = MB
"""Of a list, for a guest with 13,000 contents."""

Pack = Callable[[str], Packed]


@pytest.fixture
def online(tmp_path: Path) -> Vmpack:
    """Another machine, which trusts the same author."""
    return trusting_host(tmp_path / "online")


@pytest.fixture
def thin(author: Vmpack, tmp_path: Path) -> Path:
    """A copy of a small pack that lacks nearly everything."""
    author.good("copy", pack_small(author, tmp_path), "--boot", tmp_path / "thin.vmpack")
    return tmp_path / "thin.vmpack"


@pytest.mark.parametrize("name", ["disk.raw", "disk.raw.partial", "nowhere/x.want", ""])
def test_a_list_that_cannot_have_its_name_is_refused_before_the_work(
    run_vmpack: Vmpack, thin: Path, room: Path, name: str
) -> None:
    folder = room / "vms"
    folder.mkdir()
    want = str(folder / name) if name else ""
    done = run_vmpack("unpack", thin, "-o", folder / "disk.raw", "--from", "store:", "--want", want)
    refused(done, USAGE, "want")
    assert names(folder) == set()


def asks(done: subprocess.CompletedProcess[str], want: Path) -> None:
    """The command wrote a list, and said so."""
    assert done.returncode == MISSING, done.stderr
    assert done.stdout.startswith(f"{want}  ")
    assert f"vmpack fill {want.name} -o filled.vmpack" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.guest
@pytest.mark.root
@needs_root
def test_a_boot_copy_is_completed_by_way_of_a_machine_with_a_network(
    run_vmpack: Vmpack, online: Vmpack, busybox: Packed, room: Path
) -> None:
    disk, want, filled = room / "rebuilt.raw", room / "missing.want", room / "filled.vmpack"
    command: list[str | Path] = ["unpack", busybox.boot, "-o", disk, "--want", want]
    asks(run_vmpack(*command, before=OFFLINE), want)
    assert not disk.exists()
    assert want.stat().st_size < 30_000
    with mirror(busybox.full) as full:
        report = online.json("fill", want, "-o", filled, "--from", full.url, "--no-store",
                             environment=NO_PROGRAMS)  # fmt: skip
        assert full.sent_bytes < 1.02 * filled.stat().st_size
    assert report["missing"] == []
    assert report["identity"] == config_digest(busybox.full)
    assert report["found"] == report["wanted"]
    done = run_vmpack(*command, "--from", f"pack:{filled}", "--json", before=OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "nothing is missing: no want-list was needed" in done.stderr
    assert run_vmpack.json("verify", disk, busybox.boot, "--exact")["right"]
    tool("cmp", "-n", "512", disk, busybox.guest.image)


@pytest.mark.guest
@pytest.mark.root
@needs_root
def test_what_nothing_at_all_is_here_of_can_be_wanted(
    run_vmpack: Vmpack, online: Vmpack, busybox: Packed, room: Path
) -> None:
    """A list is a pack of no contents: who has only that asks for the boot set as well."""
    first, second, disk = room / "first.want", room / "second.want", room / "rebuilt.raw"
    run_vmpack("unpack", busybox.boot, "-o", disk, "--want", first, before=OFFLINE)
    Path(f"{disk}.partial").unlink()
    asks(run_vmpack("unpack", first, "-o", disk, "--want", second, before=OFFLINE), second)
    online.good("fill", second, "-o", f"{room}/filled/", "--from", f"pack:{busybox.full}")
    titles = online.json("inspect", room / "filled")["bundles"]
    assert list(titles) == ["boot", "private"]
    run_vmpack.good("unpack", room / "filled", "-o", disk, "--from", "store:", before=OFFLINE)
    assert run_vmpack.json("verify", disk, busybox.boot, "--exact")["right"]


@pytest.mark.slow
@pytest.mark.guest
@pytest.mark.root
@needs_root
def test_two_halves_from_two_machines_complete_a_debian(
    run_vmpack: Vmpack, online: Vmpack, pack_guest: Pack, room: Path
) -> None:
    """The first machine has only another guest's pack, the second a mirror."""
    pack, other = pack_guest("debian-bios"), pack_guest("debian-bios-upgraded")
    disk, want = room / "rebuilt.raw", room / "missing.want"
    unpack: list[str | Path] = ["unpack", pack.thin, "-o", disk, "--from", "store:"]
    asks(run_vmpack(*unpack, "--want", want, before=OFFLINE), want)
    assert want.stat().st_size < MOST_BYTES
    half, filled = room / "half.vmpack", room / "filled.vmpack"
    done = online("fill", want, "-o", half, "--from", f"pack:{other.full}")
    assert done.returncode == MISSING, done.stderr
    assert "nobody has" in done.stdout
    assert f"vmpack fill {half} -o fuller.vmpack" in done.stdout
    done = run_vmpack(*unpack, "--from", f"pack:{half}", "--want", want, before=OFFLINE)
    asks(done, want)
    with mirror(pack.full) as full:
        report = online.json("fill", want, "-o", filled, "--from", full.url, "--no-store")
        assert full.sent_bytes < 1.25 * filled.stat().st_size + 2 * MB
    assert report["wanted"]["content_bytes"] < 200 * MB
    report = run_vmpack.json(*unpack, "--from", f"pack:{filled}", before=OFFLINE)
    assert report["resumed_bytes"] > 400 * MB
    assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]


@pytest.mark.slow
@pytest.mark.guest
@pytest.mark.network
def test_the_distributions_mirrors_fill_a_list(
    run_vmpack: Vmpack, online: Vmpack, pack_guest: Pack, room: Path
) -> None:
    """They lack what was superseded since the guest was built; a copy of the pack has that."""
    needs_mirrors(room)
    pack = pack_guest("debian-bios")
    disk, want, filled = room / "rebuilt.raw", room / "missing.want", room / "filled.vmpack"
    done = run_vmpack("unpack", pack.thin, "--dry-run", "--offline", "--want", want)
    assert done.returncode == MISSING, done.stderr
    again = done.stdout.splitlines()[-1].split()
    assert again[:2] == ["--from", "pack:filled.vmpack"]
    assert "dir:/usr" in again
    done = online("fill", want, "-o", filled, "--from", "apt:", "--no-store", "--json")
    assert done.returncode in (0, MISSING), done.stderr
    rest = ["--from", f"pack:{pack.full}"] if done.returncode else []
    report = run_vmpack.json("unpack", pack.thin, "-o", disk, *again, *rest, "--no-store",
                             folder=room)  # fmt: skip
    assert content_bytes(report, "pack:filled.vmpack") > 1 * MB
    assert content_bytes(report, f"pack:{pack.full}") < content_bytes(report, "pack:filled.vmpack")
    assert run_vmpack.json("verify", disk, pack.boot, "--exact")["right"]


@pytest.fixture
def pack(author: Vmpack, tmp_path: Path) -> Path:
    """A pack, a folder, of a small disk."""
    return pack_small(author, tmp_path / "small")


def thin_of(author: Vmpack, pack: Path) -> Path:
    """Its boot set: all files of the small disk are private, and so missing."""
    author.good("copy", pack, "--boot", pack.with_name("boot.vmpack"))
    return pack.with_name("boot.vmpack")


def test_a_plan_writes_the_list_as_well(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, room: Path
) -> None:
    boot, want = thin_of(author, pack), room / "missing.want"
    plan = run_vmpack("unpack", boot, "--dry-run", "--from", "store:", "--want", want, "--json")
    assert plan.returncode == MISSING
    listed = run_vmpack.json("inspect", want)
    assert listed["wanted"][0] == 10
    assert listed["wanted"][2] == 0
    assert f'"contents": {listed["wanted"][0]}' in plan.stdout
    assert "  asks for 10 contents, " in run_vmpack.good("inspect", want)
    filling = run_vmpack("fill", want, "--dry-run", "--from", "store:")
    assert filling.returncode == MISSING
    assert filling.stdout.startswith("10 wanted contents would come from:\n")
    filling = run_vmpack("fill", want, "--dry-run", "--from", f"pack:{pack}")
    assert filling.returncode == 0
    assert names(room) >= {"missing.want"}


def test_where_nothing_is_missing_no_list_is_written(
    run_vmpack: Vmpack, pack: Path, room: Path
) -> None:
    want = room / "missing.want"
    for more in (["--dry-run"], ["-o", str(room / "rebuilt.raw")]):
        done = run_vmpack("unpack", pack, *more, "--from", "store:", "--want", want)
        assert done.returncode == 0, done.stderr
        assert "nothing is missing" in done.stderr
    assert not want.exists()


def test_a_list_that_cannot_have_its_name_is_told_before_the_work(
    run_vmpack: Vmpack, author: Vmpack, pack: Path, room: Path
) -> None:
    boot, disk = thin_of(author, pack), room / "rebuilt.raw"
    done = run_vmpack("unpack", boot, "-o", disk, "--from", "store:", "--want", boot)
    refused(done, USAGE, str(boot), "is no want-list of this pack", output=disk)
    assert not Path(f"{disk}.partial").exists()


def test_a_disk_is_updated_without_a_network(
    run_vmpack: Vmpack, online: Vmpack, author: Vmpack, pack: Path, room: Path
) -> None:
    newer = pack_small(author, room / "newer", seed=2, version=2)
    boot, disk, want = thin_of(author, newer), room / "vm.raw", room / "missing.want"
    run_vmpack.good("unpack", pack, "-o", disk, "--from", "store:")
    done = run_vmpack("unpack", boot, "--dry-run", "--from", f"disk:{disk}", "--want", want)
    assert done.returncode == MISSING, done.stderr
    online.good("fill", want, "-o", room / "filled.vmpack", "--from", f"pack:{newer}")
    run_vmpack.good("update", disk, boot, "--from", f"pack:{room}/filled.vmpack")
    assert run_vmpack.json("verify", disk, newer, "--exact")["right"]


BYTES_PER_SECOND = 20e6
LAST = 0
"""The moment after nearly all was sent."""


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The pack, a folder, of a disk with 50 MB of noise in files; a list of all of them."""
    folder = tmp_path_factory.mktemp("medium")
    files = write_files(folder / "files", seed=13, big=24, small=60)
    image = make_disk(folder / "medium.raw", files, size_mib=80)
    host = Vmpack(folder / "host")
    host.good("key", "generate")
    host.good("pack", image, "-o", f"{folder}/medium/", "--no-packages", "--level", "1")
    host.good("copy", folder / "medium", "--boot", folder / "boot.vmpack")
    done = host("unpack", folder / "boot.vmpack", "--dry-run", "--from", "store:",
                "--want", folder / "missing.want")  # fmt: skip
    assert done.returncode == MISSING, done.stderr
    return folder / "medium", folder / "missing.want"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGKILL, LAST), (signal.SIGINT, 3)],
)
def test_a_filling_that_was_ended_goes_on_where_it_was(
    medium: tuple[Path, Path], room: Path, number: signal.Signals, moment: int
) -> None:
    """Moments are counted in bytes that the mirror has sent."""
    pack, want = medium
    host, filled = Vmpack(want.parent / "host"), room / "filled.vmpack"
    chance = random.Random(f"fill {moment}")
    whole = sum(path.stat().st_size for path in (pack / "blobs/sha256").iterdir()) - 5 * MIB
    with mirror(pack, bytes_per_second=BYTES_PER_SECOND) as one:
        command: list[str | Path] = ["fill", want, "-o", filled, "--from", one.url, "--no-store"]
        process = host.start(*command, "-q")
        one.send_until(whole if moment == LAST else chance.randrange(UNDER_WAY + 4 * MIB, whole))
        printed, said = end(process, number)
        one.go_on()
        assert not filled.exists()
        if number == signal.SIGINT:
            done = subprocess.CompletedProcess([], process.returncode, printed, said)
            refused(done, INTERRUPTED, output=filled)
            assert said == "vmpack: interrupted\n"
        report = host.json(*command)
        assert one.sent_bytes <= whole + 5 * MIB + UNDER_WAY
    supplied = sum(one["content_bytes"] for one in report["supplied"])
    assert supplied + report["resumed_bytes"] == report["found"]["content_bytes"]
    assert report["resumed_bytes"] > 0
    host.good("fill", want, "-o", room / "undisturbed", "--from", f"pack:{pack}")
    tool("cmp", filled, room / "undisturbed")
    assert names(room) == {"filled.vmpack", "undisturbed"}
