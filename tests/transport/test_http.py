from __future__ import annotations

import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from packer.transport import response
from packer.transport.http import Client, NotFoundError, TransportError
from packer.transport.ranges import PART_BYTES
from tests.registry.servers import authority, certificate
from tests.transport.servers import (
    Answer,
    content_range,
    nginx,
    serving,
)

MIB = 1 << 20
DATA = random.Random(1).randbytes(3 * MIB)  # no two places look alike: a wrong offset shows


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(back_off_seconds=0.01, timeout_seconds=(1.0, 1.0)) as made:
        yield made


def some_ranges(count: int, size: int = len(DATA)) -> list[tuple[int, int]]:
    chance = random.Random(2)
    offsets = [chance.randrange(size - 5000) for _ in range(count)]
    return [(offset, chance.randrange(1, 5000)) for offset in offsets]


def working_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "(work)" in thread.name]


def check_ranges(client: Client, url: str, ranges: list[tuple[int, int]]) -> None:
    found = dict(client.get_ranges(url, ranges))
    assert found == {row: DATA[o : o + length] for row, (o, length) in enumerate(ranges)}


FAR = [(n * 200_000, 10) for n in range(15)]
"""Too far apart to travel as one."""


def one_range_only(answer: Answer, _: int) -> None:
    if answer.several(len(DATA)):
        return answer.give(400, {"Content-Length": "0"}, b"")
    return answer.give_range(DATA)


class TestOverNginx:
    @pytest.fixture
    def url(self, tmp_path: Path) -> Iterator[str]:
        root = tmp_path / "root"
        root.mkdir()
        (root / "file").write_bytes(DATA)
        (root / "empty").touch()
        with nginx(root, tmp_path / "nginx") as base:
            yield base

    def test_size_and_range_are_exact(self, client: Client, url: str) -> None:
        assert client.get_size(url + "/file") == len(DATA)
        assert client.get_range(url + "/file", 1_000_001, 77_777) == DATA[1_000_001:1_077_778]
        assert client.received_bytes == 1 + 77_777

    def test_many_ranges_in_any_order_with_overlaps(self, client: Client, url: str) -> None:
        check_ranges(client, url + "/file", [*some_ranges(300), (0, 10), (5, 10), (5, 0), (5, 10)])

    def test_far_ranges_do_not_pull_what_lies_between(self, client: Client, url: str) -> None:
        check_ranges(client, url + "/file", [(0, 100), (2 * MIB, 100), (3 * MIB - 100, 100)])
        assert 300 <= client.received_bytes <= 300 + 3 * PART_BYTES

    def test_near_ranges_travel_together_and_the_gap_is_counted(
        self, client: Client, url: str
    ) -> None:
        check_ranges(client, url + "/file", [(0, 100), (300, 100)])
        assert client.received_bytes == 400

    def test_empty_files_have_size_zero(self, client: Client, url: str) -> None:
        assert client.get_size(url + "/empty") == 0
        assert client.get_bytes(url + "/empty", 10) == b""

    def test_404_is_said_as_such(self, client: Client, url: str) -> None:
        for ask in (client.get_size, lambda u: client.get_range(u, 0, 1)):
            with pytest.raises(NotFoundError, match="404"):
                ask(url + "/absent")

    def test_a_range_past_the_end_is_refused(self, client: Client, url: str) -> None:
        with pytest.raises(TransportError, match="the file has 3145728"):
            client.get_range(url + "/file", len(DATA), 1)
        with pytest.raises(TransportError, match="3145728"):
            client.get_range(url + "/file", len(DATA) - 5, 10)


class TestServersThatIgnoreRanges:
    def test_all_ranges_come_in_one_pass_and_it_is_remembered(self, client: Client) -> None:
        def whole(answer: Answer, _: int) -> None:
            answer.give(200, {"Content-Length": str(len(DATA))}, DATA)

        with serving(whole) as server:
            check_ranges(client, server.url, some_ranges(50))
            assert len(server.asked) == 1
            assert client.received_bytes <= len(DATA)
            check_ranges(client, server.url, some_ranges(50))
            assert len(server.asked) == 2
            assert client.ignores_ranges(server.url)

    def test_a_cut_pass_is_taken_up_by_reading_past_what_is_known(self, client: Client) -> None:
        def cut_once(answer: Answer, number: int) -> None:
            if number > 1:
                return answer.give(200, {"Content-Length": str(len(DATA))}, DATA)
            answer.give(200, {"Content-Length": str(len(DATA))}, DATA[:MIB])
            return answer.cut()

        with serving(cut_once) as server:
            check_ranges(client, server.url, [(0, 10), (MIB - 5, 10), (3 * MIB - 10, 10)])
            assert len(server.asked) == 2

    def test_a_file_that_is_too_short_is_refused(self, client: Client) -> None:
        def chunked(answer: Answer, _: int) -> None:
            answer.give(200, {"Transfer-Encoding": "chunked"}, b"3\r\nabc\r\n0\r\n\r\n")

        with serving(chunked) as server, pytest.raises(TransportError, match="expected 12 bytes"):
            client.get_range(server.url, 2, 10)
        with serving(chunked) as server:
            assert client.get_bytes(server.url, 3) == b"abc"


class TestServersThatFail:
    def test_503_twice_then_good(self, client: Client) -> None:
        def busy(answer: Answer, number: int) -> None:
            if number <= 2:
                return answer.give(503, {"Content-Length": "0", "Retry-After": "0"}, b"")
            return answer.give_range(DATA)

        with serving(busy) as server:
            assert client.get_range(server.url, 7, 9) == DATA[7:16]
            assert len(server.asked) == 3

    def test_retry_after_is_honoured(self, client: Client) -> None:
        def busy(answer: Answer, number: int) -> None:
            if number == 1:
                return answer.give(429, {"Content-Length": "0", "Retry-After": "1"}, b"")
            return answer.give_range(DATA)

        with serving(busy) as server:
            started = time.monotonic()
            assert client.get_range(server.url, 7, 9) == DATA[7:16]
            assert time.monotonic() - started >= 1.0

    def test_503_for_ever_ends_with_an_error(self, client: Client) -> None:
        def busy(answer: Answer, _: int) -> None:
            answer.give(503, {"Content-Length": "0"}, b"")

        with serving(busy) as server:
            with pytest.raises(TransportError, match=r"503 .*5 attempts"):
                client.get_range(server.url, 0, 1)
            assert len(server.asked) == 5

    def test_nobody_listens(self, client: Client) -> None:
        with serving(lambda *_: None) as server:
            url = server.url
        with pytest.raises(TransportError, match="refused"):
            client.get_size(url)

    def test_a_cut_connection_is_resumed_at_the_byte_reached(self, client: Client) -> None:
        def cuts(answer: Answer, _: int) -> None:
            start, end = answer.wanted(len(DATA)) or (0, len(DATA))
            if end - start <= 100_000:
                return answer.give_range(DATA)
            answer.give(206, content_range(start, end, len(DATA)), DATA[start : start + 100_000])
            return answer.cut()

        with serving(cuts) as server:
            assert client.get_range(server.url, 0, len(DATA)) == DATA
            starts = [headers["Range"] for _, headers in server.asked]
            assert starts[:3] == [f"bytes={n}-{len(DATA) - 1}" for n in (0, 100_000, 200_000)]
            assert client.received_bytes == len(DATA)  # more often than ATTEMPTS, nothing twice

    def test_a_stall_ends_after_the_timeout(self) -> None:
        stop = threading.Event()

        def stalls(answer: Answer, _: int) -> None:
            answer.give(206, content_range(0, 100, len(DATA)), DATA[:10])
            answer.wfile.flush()
            stop.wait(5)

        with (
            serving(stalls) as server,
            Client(attempts=2, back_off_seconds=0.01, timeout_seconds=(1, 0.2)) as client,
        ):
            started = time.monotonic()
            with pytest.raises(TransportError):
                client.get_range(server.url, 0, 100)
            assert time.monotonic() - started < 3
            stop.set()

    def test_a_server_that_drips_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(response, "SLOW_WINDOW_SECONDS", 0.3)
        stop = threading.Event()

        def drips(answer: Answer, _: int) -> None:
            answer.give(206, content_range(0, 1000, len(DATA)), b"")
            for byte in DATA[:1000]:
                answer.wfile.write(bytes([byte]))
                if stop.wait(0.05):
                    return

        with (
            serving(drips) as server,
            Client(attempts=1, back_off_seconds=0.01, timeout_seconds=(1, 1)) as client,
        ):
            started = time.monotonic()
            with pytest.raises(TransportError, match="only"):
                client.get_range(server.url, 0, 1000)
            assert time.monotonic() - started < 5
            stop.set()

    def test_a_file_that_changes_is_not_glued_together(self, client: Client) -> None:
        def changes(answer: Answer, number: int) -> None:
            start, end = answer.wanted(len(DATA)) or (0, 0)
            headers = {**content_range(start, end, len(DATA)), "ETag": f'"{number}"'}
            answer.give(206, headers, DATA[start : start + 100_000])
            answer.cut()

        with serving(changes) as server, pytest.raises(TransportError, match="changed"):
            client.get_range(server.url, 0, MIB)

    def test_one_broken_request_ends_the_call_and_its_threads(self, client: Client) -> None:
        def breaks(answer: Answer, number: int) -> None:
            if number > 8:
                return answer.give(403, {"Content-Length": "0"}, b"")
            return one_range_only(answer, number)

        with serving(breaks) as server:
            check_ranges(client, server.url, FAR[:2])
            with pytest.raises(TransportError, match="403"):
                check_ranges(client, server.url, FAR)
            assert len(server.asked) < 4 + len(FAR)
        assert not working_threads()

    def test_a_caller_that_loses_interest_ends_the_threads(self, client: Client) -> None:
        with serving(one_range_only) as server:
            check_ranges(client, server.url, FAR[:2])
            found = client.get_ranges(server.url, FAR)
            next(found)
            found.close()
            assert not working_threads()


class TestServersThatLie:
    @pytest.mark.parametrize(
        ("headers", "says"),
        [
            (content_range(1, 101, len(DATA)), "expected bytes 0 to 100"),
            (content_range(0, 99, len(DATA)), "expected bytes 0 to 100"),
            (content_range(0, 101, len(DATA)), "expected bytes 0 to 100"),
            ({"Content-Range": "bytes 0-99/50", "Content-Length": "100"}, "contradicts"),
            ({"Content-Range": "bytes 99-0/*", "Content-Length": "100"}, "contradicts"),
            ({"Content-Range": f"bytes 0-{10**20}/*", "Content-Length": "9"}, "not one byte range"),
            ({"Content-Range": "bytes 0-99/200", "Content-Length": "50"}, "Content-Length 50"),
            ({"Content-Length": "100"}, "not one byte range"),
            ({"Content-Range": "bytes 0-99/200", "Content-Encoding": "gzip"}, "compresses"),
        ],
    )
    def test_wrong_headers_are_refused(
        self, client: Client, headers: dict[str, str], says: str
    ) -> None:
        def lies(answer: Answer, _: int) -> None:
            answer.give(206, headers, DATA[:100])
            answer.cut()

        with serving(lies) as server:
            with pytest.raises(TransportError, match=says):
                client.get_range(server.url, 0, 100)
            assert len(server.asked) == 1

    def test_a_body_longer_than_its_range_is_refused(self, client: Client) -> None:
        def long(answer: Answer, _: int) -> None:
            headers = {"Content-Range": "bytes 0-3/100", "Transfer-Encoding": "chunked"}
            answer.give(206, headers, b"6\r\nabcdef\r\n0\r\n\r\n")

        with serving(long) as server, pytest.raises(TransportError, match="more bytes"):
            client.get_range(server.url, 0, 4)

    @pytest.mark.parametrize("chunked", [True, False])
    def test_an_endless_body_ends_at_the_bound(self, client: Client, chunked: bool) -> None:
        def endless(answer: Answer, _: int) -> None:
            kind = {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}
            answer.give(200, kind, b"")
            for _ in range(20_000):
                answer.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n" if chunked else DATA)

        with serving(endless) as server:
            with pytest.raises(TransportError, match="longer than 1000000"):
                client.get_bytes(server.url, 1_000_000)
            assert client.received_bytes < 2_000_000

    def test_redirects_are_followed_with_the_range_and_bounded(self, client: Client) -> None:
        def redirects(answer: Answer, _: int) -> None:
            if answer.path == "/file":
                return answer.give_range(DATA)
            target = "/file" if answer.path == "/good" else answer.path + "x"
            return answer.give(302, {"Location": target, "Content-Length": "0"}, b"")

        with serving(redirects) as server:
            assert client.get_range(server.url + "/good", 5, 5) == DATA[5:10]
            with pytest.raises(TransportError, match="redirects"):
                client.get_range(server.url + "/loop", 5, 5)
            assert len(server.asked) < 12

    def test_the_endless_body_of_a_redirect_is_not_read(self, client: Client) -> None:
        def redirects(answer: Answer, _: int) -> None:
            if answer.path == "/file":
                return answer.give_range(DATA)
            answer.give(302, {"Location": "/file", "Transfer-Encoding": "chunked"}, b"")
            for _ in range(20_000):
                answer.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            return None

        with serving(redirects) as server:
            assert client.get_range(server.url + "/x", 5, 5) == DATA[5:10]

    def test_a_redirect_to_a_local_file_is_refused(self, client: Client) -> None:
        def redirects(answer: Answer, _: int) -> None:
            answer.give(302, {"Location": "file:///etc/hostname", "Content-Length": "0"}, b"")

        with serving(redirects) as server, pytest.raises(TransportError, match="file:"):
            client.get_range(server.url, 0, 1)

    @pytest.mark.parametrize(
        "target",
        [
            "http://[::1",
            "http://host/\xff\xfe",
            "http://host:99999999/",
            "http://h/" + "a" * 60_000,
        ],
        ids=["half an address", "no UTF-8", "no port", "too long"],
    )
    def test_a_redirect_to_nowhere_is_one_short_error(self, client: Client, target: str) -> None:
        def redirects(answer: Answer, _: int) -> None:
            answer.give(302, {"Location": target, "Content-Length": "0"}, b"")

        with serving(redirects) as server, pytest.raises(TransportError) as caught:
            client.get_range(server.url, 0, 1)
        assert len(str(caught.value)) < 300

    def test_what_a_server_says_is_shown_short_and_without_control_characters(
        self, client: Client
    ) -> None:
        def says(answer: Answer, _: int) -> None:
            answer.wfile.write(b"HTTP/1.1 400 \x1b[2J" + b"no" * 10_000 + b"\r\n\r\n")

        with serving(says) as server, pytest.raises(TransportError, match="400") as caught:
            client.get_range(server.url, 0, 1)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 200

    def test_passwords_do_not_go_to_another_host_and_are_not_shown(self, client: Client) -> None:
        def last(answer: Answer, _: int) -> None:
            answer.give(403, {"Content-Length": "0"}, b"")

        with serving(last) as other:

            def first(answer: Answer, _: int) -> None:
                target = "/second" if answer.path.startswith("/first") else other.url + "/third"
                answer.give(302, {"Location": target, "Content-Length": "0"}, b"")

            with serving(first) as server:
                url = server.url.replace("//", "//ann:secret@") + "/first?token=secret"
                with pytest.raises(TransportError) as caught:
                    client.get_size(url)
        assert ["Authorization" in headers for _, headers in server.asked] == [True, True]
        assert ["Authorization" in headers for _, headers in other.asked] == [False]
        assert "secret" not in str(caught.value)

    def test_who_redirects_does_not_make_us_log_in_elsewhere(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine localhost login ann password secret\n")
        monkeypatch.setenv("NETRC", str(netrc))
        with serving(lambda answer, _: answer.give_range(DATA)) as other:
            named = other.url.replace("127.0.0.1", "localhost")

            def point(answer: Answer, _: int) -> None:
                answer.give(302, {"Location": named, "Content-Length": "0"}, b"")

            with serving(point) as server:
                assert client.get_range(server.url, 0, 5) == DATA[:5]
            assert client.get_range(named, 0, 5) == DATA[:5]  # the user named this one
        assert ["Authorization" in headers for _, headers in other.asked] == [False, True]

    @pytest.mark.parametrize(
        "url",
        [
            "https://ann:secret@host:99999/?token=secret",
            "https://ann:secret@[::x]/?token=secret",
            "https://ann:secret@host/\x1b?token=secret#secret",
        ],
    )
    def test_passwords_in_what_is_no_address_are_not_shown(self, url: str) -> None:
        with Client(attempts=1) as client, pytest.raises(TransportError) as caught:
            client.get_size(url)
        assert "host" in str(caught.value) or "::x" in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_a_server_that_nobody_knows_is_named_without_the_query(self, tmp_path: Path) -> None:
        """A query may be a signature, which opens the file for whoever has it."""
        made = certificate(tmp_path, authority(tmp_path), "localhost")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate, made.key)
        with serving(lambda answer, _: answer.give_range(b"")) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            url = server.url.replace("http:", "https:") + "/file?token=secret"
            with Client() as client, pytest.raises(TransportError, match="trusted") as caught:
                client.get_size(url)
        assert "secret" not in str(caught.value)
        assert "certificate" in str(caught.value)

    def test_certificates_that_are_not_there_are_named(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
        with pytest.raises(TransportError, match=r"none\.pem"):
            client.get_size("https://127.0.0.1:1/")

    def test_what_is_no_answer_is_shown_short_and_without_control_characters(self) -> None:
        def says(answer: Answer, _: int) -> None:
            answer.wfile.write(b"\x1b[2J" + b"no" * 10_000 + b"\r\n\r\n")

        with (
            serving(says) as server,
            Client(attempts=1) as client,
            pytest.raises(TransportError) as caught,
        ):
            client.get_size(server.url)
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 400

    def test_no_cookies_are_kept(self, client: Client) -> None:
        def cookies(answer: Answer, _: int) -> None:
            answer.give(200, {"Set-Cookie": "who=me", "Content-Length": "2"}, b"ok")

        with serving(cookies) as server:
            for _ in range(2):
                assert client.get_bytes(server.url, 2) == b"ok"
            assert all("Cookie" not in headers for _, headers in server.asked)
            assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.asked)


def test_a_proxy_of_the_environment_is_used(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda answer, _: answer.give_range(DATA)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert client.get_range("http://nowhere.invalid/file", 3, 4) == DATA[3:7]
        assert proxy.asked[0][0] == "http://nowhere.invalid/file"


def test_ctrl_c_ends_the_program_although_servers_hang(tmp_path: Path) -> None:
    stop = threading.Event()

    def hangs(answer: Answer, number: int) -> None:
        if number == 1:
            return answer.give_range(DATA)
        stop.wait(20)
        return None

    with serving(hangs) as server:
        script = (
            "import sys\nfrom packer.transport.http import Client\n"
            "client = Client()\n"
            "for row, data in client.get_ranges(sys.argv[1], [(n * 200000, 9) for n in range(9)]):"
            "\n    print(row, flush=True)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        process.communicate(timeout=15)
        assert time.monotonic() - started < 8
        assert process.returncode != 0
        stop.set()
