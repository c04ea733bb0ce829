"""Mirrors that lie, break, or are slow; a good one behind them makes the disk right."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.hostile.refusal import MISSING, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.mirror import Spoil, mirror
from tests.round_trip.small import pack_small
from tests.transport.servers import PARTS_TYPE, Answer, content_range, parts_body

BLOBS = "/blobs/sha256/"


HURRIED = """
import sys
from packer.cli.main import main
from packer.transport import http, response
hurried = {"timeout_seconds": (5.0, 3.0), "attempts": 2}
defaults = http.Client.__init__.__kwdefaults__
assert hurried.keys() <= defaults.keys(), defaults
defaults.update(hurried)
assert response.SLOW_WINDOW_SECONDS > 3
response.SLOW_WINDOW_SECONDS = 3.0
sys.exit(main())
"""
BOUND_S = 60


@pytest.fixture
def hurried(run_vmpack: Vmpack) -> Vmpack:
    """The command with less patience: three seconds where it has half a minute or a minute."""
    return Vmpack(run_vmpack.home, (sys.executable, "-c", HURRIED))


@pytest.fixture
def pack(author: Vmpack, tmp_path: Path) -> Path:
    return pack_small(author, tmp_path)


@pytest.fixture
def boot(run_vmpack: Vmpack, pack: Path) -> Path:
    """A copy that lacks all files of the guest."""
    run_vmpack.good("copy", pack, "--boot", pack.with_name("boot.vmpack"))
    return pack.with_name("boot.vmpack")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "rebuilt.raw"


def is_bundle(request: Answer, data: bytes) -> bool:
    return request.path.startswith(BLOBS) and len(data) > 1_000_000


def flipped(request: Answer, data: bytes) -> bytes:
    """Every sixteenth KiB of a bundle has a wrong byte."""
    if not is_bundle(request, data):
        return data
    wrong = bytearray(data)
    wrong[::16384] = bytes(byte ^ 0xFF for byte in wrong[::16384])
    return bytes(wrong)


def of_another_file(request: Answer, data: bytes) -> bytes:
    return bytes(len(data)) if is_bundle(request, data) else data


def absent(request: Answer, data: bytes) -> bytes | None:
    if not is_bundle(request, data):
        return data
    request.give(404, {"Content-Length": "0"}, b"")
    return None


def refusing(request: Answer, data: bytes) -> bytes | None:
    if not is_bundle(request, data):
        return data
    request.give(403, {"Content-Length": "0"}, b"")
    return None


def shorter(request: Answer, data: bytes) -> bytes:
    return data[:5000] if is_bundle(request, data) else data


def scrambled(request: Answer, data: bytes) -> bytes | None:
    """Several ranges come with each other's bytes, one range with those of the next MiB."""
    if not is_bundle(request, data):
        return data
    if several := request.several(len(data)):
        bodies = [data[start:end] for start, end in several]
        starts = [start for start, _ in several]
        request.give_parts(list(zip(starts, reversed(bodies), strict=True)), len(data))
        return None
    return data[1 << 20 :] + data[: 1 << 20]


def cut_always(request: Answer, data: bytes) -> bytes | None:
    if not is_bundle(request, data):
        return data
    request.cut()
    return None


@pytest.mark.parametrize(
    "spoil",
    [flipped, of_another_file, absent, refusing, shorter, scrambled,
     pytest.param(cut_always, marks=pytest.mark.slow)],
    ids=lambda spoil: spoil.__name__.replace("_", "-"),
)  # fmt: skip
def test_a_bad_mirror_is_told_and_the_next_one_asked(
    run_vmpack: Vmpack, pack: Path, boot: Path, disk: Path, spoil: Spoil
) -> None:
    with mirror(pack, spoil=spoil) as bad, mirror(pack) as good:
        done = run_vmpack("unpack", boot, "-o", disk, "--from", bad.url)
        refused(done, MISSING, "nobody has", "/srv/big/", bad.url, output=disk)
        run_vmpack.good("unpack", boot, "-o", disk, "--from", bad.url, "--from", good.url)
        assert good.sent_bytes > 0
    assert run_vmpack.json("verify", disk, pack, "--exact")["right"]


@pytest.fixture(params=["nobody listens", "has nothing"])
def dead_url(request: pytest.FixtureRequest, pack: Path, tmp_path: Path) -> Iterator[str]:
    """A mirror that cannot even be opened."""
    (tmp_path / "nothing").mkdir()
    nobody_listens = request.param == "nobody listens"
    with mirror(pack if nobody_listens else tmp_path / "nothing") as server:
        if not nobody_listens:
            yield server.url
    if nobody_listens:
        yield server.url


def test_a_mirror_that_cannot_be_opened_is_told_and_the_next_one_asked(
    run_vmpack: Vmpack, pack: Path, boot: Path, disk: Path, dead_url: str
) -> None:
    with mirror(pack) as good:
        done = run_vmpack("unpack", boot, "-o", disk, "--from", dead_url, "--from", good.url)
        assert done.returncode == 0, done.stderr
        assert good.sent_bytes > 0
    assert [line for line in done.stderr.splitlines() if dead_url in line and "left out" in line]
    assert run_vmpack.json("verify", disk, pack, "--exact")["right"]


def test_without_another_mirror_what_is_missing_is_listed(
    run_vmpack: Vmpack, boot: Path, disk: Path, dead_url: str
) -> None:
    done = run_vmpack("unpack", boot, "-o", disk, "--from", dead_url)
    refused(done, MISSING, "nobody has", dead_url, "left out", output=disk)
    plan = run_vmpack("unpack", boot, "--dry-run", "--from", dead_url)
    assert plan.returncode == MISSING
    assert dead_url in plan.stderr
    assert "left out" in plan.stderr


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(
    run_vmpack: Vmpack, pack: Path, boot: Path, disk: Path
) -> None:
    cuts = iter(range(3))

    def cut_halfway(request: Answer, data: bytes) -> bytes | None:
        if not is_bundle(request, data) or next(cuts, None) is None:
            return data
        rest = begin(request, data)
        request.wfile.write(rest[: len(rest) // 2])
        request.cut()
        return None

    with mirror(pack, spoil=cut_halfway) as shaky:
        run_vmpack.good("unpack", boot, "-o", disk, "--from", shaky.url)
    assert next(cuts, None) is None, "nothing was cut"
    assert run_vmpack.json("verify", disk, pack, "--exact")["right"]


class WholeFiles(SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def without_ranges(pack: Path) -> Iterator[str]:
    handler = partial(WholeFiles, directory=str(pack))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_a_server_without_ranges_is_good_enough(
    run_vmpack: Vmpack, pack: Path, boot: Path, disk: Path, without_ranges: str
) -> None:
    run_vmpack.good("unpack", boot, "-o", disk, "--from", without_ranges)
    assert run_vmpack.json("verify", disk, pack, "--exact")["right"]


def says_nothing(request: Answer, data: bytes) -> bytes | None:
    if not is_bundle(request, data):
        return data
    time.sleep(BOUND_S)
    request.close_connection = True
    return None


def stalls_in_the_middle(request: Answer, data: bytes) -> bytes | None:
    if not is_bundle(request, data):
        return data
    begin(request, data)
    time.sleep(BOUND_S)
    request.close_connection = True
    return None


def drips(request: Answer, data: bytes) -> bytes | None:
    """A byte every now and then: no read ever takes long."""
    if not is_bundle(request, data):
        return data
    rest = begin(request, data)
    deadline = time.monotonic() + BOUND_S
    for byte in rest:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
        request.wfile.write(bytes([byte]))
    request.close_connection = True
    return None


def begin(request: Answer, data: bytes) -> bytes:
    """Send the headers and the first bytes of what is asked for; return the others."""
    if several := request.several(len(data)):
        parts = [(start, data[start:end]) for start, end in several]
        body = parts_body(parts, len(data))
        headers = {**PARTS_TYPE, "Content-Length": str(len(body))}
    else:
        start, end = request.wanted(len(data)) or (0, len(data))
        body, headers = data[start:end], content_range(start, end, len(data))
    request.send_response(206)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body[:1000])
    return body[1000:]


STALLS = pytest.mark.parametrize(
    "stall", [says_nothing, stalls_in_the_middle, drips],
    ids=lambda stall: stall.__name__.replace("_", "-"),
)  # fmt: skip


@STALLS
def test_a_mirror_that_stalls_for_ever_is_left_for_the_next_one(
    hurried: Vmpack, pack: Path, boot: Path, disk: Path, stall: Spoil
) -> None:
    started = time.monotonic()
    with mirror(pack, spoil=stall) as dead, mirror(pack) as good:
        hurried.good("unpack", boot, "-o", disk, "--from", dead.url, "--from", good.url)
        assert time.monotonic() - started < BOUND_S
        assert good.sent_bytes > 1_000_000
    assert hurried.json("verify", disk, pack, "--exact")["right"]


@STALLS
def test_a_mirror_that_stalls_for_ever_ends_in_one_clear_line_and_what_came_is_kept(
    hurried: Vmpack, pack: Path, boot: Path, disk: Path, stall: Spoil
) -> None:
    started = time.monotonic()
    with mirror(pack, spoil=stall) as dead:
        done = hurried("unpack", boot, "-o", disk, "--from", dead.url)
        assert time.monotonic() - started < BOUND_S
    refused(done, MISSING, "nobody has", dead.url, "2 attempts", output=disk)
    report = hurried.json("unpack", boot, "-o", disk, "--from", f"pack:{pack}")
    assert report["resumed_bytes"] > 0
    assert hurried.json("verify", disk, pack, "--exact")["right"]


@STALLS
def test_a_mirror_that_stalls_once_is_asked_again(
    hurried: Vmpack, pack: Path, boot: Path, disk: Path, stall: Spoil
) -> None:
    stalls = iter(range(1))

    def once(request: Answer, data: bytes) -> bytes | None:
        if not is_bundle(request, data) or next(stalls, None) is None:
            return data
        return stall(request, data)

    with mirror(pack, spoil=once) as slow:
        hurried.good("unpack", boot, "-o", disk, "--from", slow.url)
    assert next(stalls, None) is None, "nothing stalled"
    assert hurried.json("verify", disk, pack, "--exact")["right"]


@pytest.mark.parametrize("file", ["index.json", "oci-layout"])
def test_a_mirror_that_stalls_before_it_says_what_it_has_ends_in_one_clear_line(
    hurried: Vmpack, pack: Path, boot: Path, disk: Path, file: str
) -> None:
    def silent(request: Answer, data: bytes) -> bytes | None:
        if not request.path.endswith(file):
            return data
        time.sleep(BOUND_S)
        return None

    started = time.monotonic()
    with mirror(pack, spoil=silent) as dead:
        done = hurried("unpack", boot, "-o", disk, "--from", dead.url)
        assert time.monotonic() - started < BOUND_S
        refused(done, MISSING, dead.url, "2 attempts", "left out", output=disk)
