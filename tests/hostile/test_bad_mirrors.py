"""Mirrors that lie, break, or are slow; a good one behind them makes the disk right."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.hostile.refusal import INPUT, MISSING, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.mirror import Spoil, mirror
from tests.round_trip.small import pack_small
from tests.transport.servers import Answer

BLOBS = "/blobs/sha256/"


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


def failing(request: Answer, data: bytes) -> bytes | None:
    """The size is told, the data is not."""
    if not is_bundle(request, data) or request.wanted(len(data)) in (None, (0, 1)):
        return data
    request.give(404, {"Content-Length": "0"}, b"")
    return None


def shorter(request: Answer, data: bytes) -> bytes:
    return data[:5000] if is_bundle(request, data) else data


def cut_always(request: Answer, data: bytes) -> bytes | None:
    if not is_bundle(request, data) or request.wanted(len(data)) in (None, (0, 1)):
        return data
    request.cut()
    return None


@pytest.mark.parametrize(
    "spoil", [flipped, of_another_file, absent, failing, shorter, cut_always],
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


def test_a_mirror_that_has_nothing_is_refused(
    run_vmpack: Vmpack, boot: Path, disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    with mirror(tmp_path / "nothing") as empty:
        done = run_vmpack("unpack", boot, "-o", disk, "--from", empty.url)
        refused(done, INPUT, empty.url, output=disk)


def test_a_mirror_where_nobody_listens_is_refused(
    run_vmpack: Vmpack, pack: Path, boot: Path, disk: Path
) -> None:
    with mirror(pack) as gone:
        url = gone.url
    done = run_vmpack("unpack", boot, "-o", disk, "--from", url)
    refused(done, done.returncode, url, output=disk)
    assert done.returncode in (1, MISSING)


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(
    run_vmpack: Vmpack, pack: Path, boot: Path, disk: Path
) -> None:
    cuts = iter(range(3))

    def cut_halfway(request: Answer, data: bytes) -> bytes | None:
        wanted = request.wanted(len(data))
        if not is_bundle(request, data) or wanted in (None, (0, 1)) or next(cuts, None) is None:
            return data
        assert wanted is not None
        start, end = wanted
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        request.send_header("Content-Length", str(end - start))
        request.end_headers()
        request.wfile.write(data[start : (start + end) // 2])
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


@pytest.mark.slow
def test_a_mirror_that_stalls_is_asked_again(
    run_vmpack: Vmpack, pack: Path, boot: Path, disk: Path
) -> None:
    stalls = iter(range(1))
    done = threading.Event()

    def stall(request: Answer, data: bytes) -> bytes | None:
        wanted = request.wanted(len(data))
        if not is_bundle(request, data) or wanted in (None, (0, 1)) or next(stalls, None) is None:
            return data
        request.send_response(206)
        assert wanted is not None
        request.send_header("Content-Range", f"bytes {wanted[0]}-{wanted[1] - 1}/{len(data)}")
        request.send_header("Content-Length", str(wanted[1] - wanted[0]))
        request.end_headers()
        request.wfile.write(data[wanted[0] : wanted[0] + 1000])
        request.wfile.flush()
        done.wait(90)
        request.close_connection = True
        return None

    started = time.monotonic()
    with mirror(pack, spoil=stall) as slow:
        run_vmpack.good("unpack", boot, "-o", disk, "--from", slow.url)
        done.set()
    assert next(stalls, None) is None, "nothing stalled"
    assert time.monotonic() - started < 80
    assert run_vmpack.json("verify", disk, pack, "--exact")["right"]
