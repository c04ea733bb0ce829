"""Several ranges in one request: servers that answer them, some of them, or none."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from packer.transport.http import Client, NotFoundError
from packer.transport.ranges import MOST_RANGES
from tests.transport.servers import (
    PARTS_TYPE,
    Answer,
    Server,
    content_range,
    nginx,
    parts_body,
    serving,
)
from tests.transport.test_http import DATA, FAR, MIB, check_ranges, client, one_range_only

__all__ = ["client"]


def asked(server: Server) -> list[int]:
    """How many ranges each request asked for."""
    return [headers.get("Range", "").count(",") + 1 for _, headers in server.asked]


def test_far_ranges_travel_in_one_request(client: Client) -> None:
    with serving(lambda answer, _: answer.give_range(DATA)) as server:
        check_ranges(client, server.url, FAR)
        assert asked(server) == [1, 14]  # the first one finds out whether ranges work
        check_ranges(client, server.url, FAR)
        assert asked(server) == [1, 14, 15]


def test_a_connection_is_used_again_after_several_ranges(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    ranges = [(n * MIB // 4, 200_000) for n in range(12)]
    with (
        nginx(tmp_path, tmp_path / "nginx", log="$connection $http_range") as url,
        Client(connections=1) as client,
    ):
        for _ in range(3):
            check_ranges(client, url + "/file", ranges)
    lines = (tmp_path / "nginx" / "access.log").read_text().splitlines()
    assert len(lines) == 1 + 3
    assert len({line.split()[0] for line in lines}) == 1, lines


@pytest.mark.parametrize("status", [200, 400, 413, 416, 431, 501])
def test_a_server_that_answers_one_range_at_a_time_is_asked_so_from_then_on(
    client: Client, status: int
) -> None:
    def refuses(answer: Answer, _: int) -> None:
        if answer.several(len(DATA)):
            body = DATA if status == 200 else b""
            return answer.give(status, {"Content-Length": str(len(body))}, body)
        return answer.give_range(DATA)

    with serving(refuses) as server:
        check_ranges(client, server.url, FAR)
        assert asked(server)[:2] == [1, 14]
        check_ranges(client, server.url, FAR)
        assert asked(server)[2:] == [1] * (14 + 15)
        # The body of the 200, a whole file, was not read.
        assert client.received_bytes == 2 * 15 * 10


def test_where_each_range_costs_a_request_neighbours_further_apart_travel_as_one(
    client: Client,
) -> None:
    with serving(one_range_only) as server:
        check_ranges(client, server.url, FAR[:2])
        before = client.received_bytes
        check_ranges(client, server.url, [(0, 100), (1100, 100), (1100 + (1 << 14) + 101, 9)])
        assert client.received_bytes - before == 1200 + 9


def test_a_whole_file_instead_of_ranges_is_not_read_to_its_end(client: Client) -> None:
    stopped = threading.Event()

    def whole(answer: Answer, _: int) -> None:
        if not answer.several(len(DATA)):
            return answer.give_range(DATA)
        answer.give(200, {"Content-Length": str(1 << 40)}, b"")
        try:
            for _ in range(2000):
                answer.wfile.write(bytes(1 << 16))
        except OSError:
            stopped.set()
        return None

    with serving(whole) as server:
        check_ranges(client, server.url, FAR)
        assert stopped.wait(10)


def test_only_the_first_range_is_taken_and_the_others_asked_for_alone(client: Client) -> None:
    def first(answer: Answer, _: int) -> None:
        start, end = (answer.several(len(DATA)) or [answer.wanted(len(DATA)) or (0, 0)])[0]
        answer.give(206, content_range(start, end, len(DATA)), DATA[start:end])

    with serving(first) as server:
        check_ranges(client, server.url, FAR)
        assert asked(server) == [1, 14] + [1] * 13


def test_a_server_with_a_limit_is_asked_for_that_many(client: Client) -> None:
    """lighttpd 1.4 answers ten ranges and says nothing of the others."""

    def ten(answer: Answer, _: int) -> None:
        several = answer.several(len(DATA))[:10]
        if not several:
            return answer.give_range(DATA)
        return answer.give_parts([(o, DATA[o:end]) for o, end in several], len(DATA))

    ranges = [(n * 60_000, 10) for n in range(50)]
    with serving(ten) as server:
        check_ranges(client, server.url, ranges)
        assert asked(server) == [1, 49, 10, 10, 10, 9]


@pytest.mark.parametrize("change", ["reversed", "twice", "with others", "joined"])
def test_parts_may_come_in_any_order_twice_joined_or_with_others(
    client: Client, change: str
) -> None:
    def odd(answer: Answer, _: int) -> None:
        several = answer.several(len(DATA))
        if not several:
            return answer.give_range(DATA)
        wanted = {
            "reversed": several[::-1],
            "twice": [*several[:7], *several[:7]],
            "with others": [(50, 60), *several[:-1]],
            "joined": [(several[0][0], several[1][1]), *several[2:]],
        }[change]
        return answer.give_parts([(o, DATA[o:end]) for o, end in wanted], len(DATA))

    ranges = [(n * 10_000, 10) for n in range(15)]
    with serving(odd) as server:
        check_ranges(client, server.url, [(2 * MIB, 10), (0, 10)])
        check_ranges(client, server.url, ranges)


def test_a_server_that_joins_all_ranges_into_one_is_understood(client: Client) -> None:
    def joins(answer: Answer, _: int) -> None:
        several = answer.several(len(DATA)) or [answer.wanted(len(DATA)) or (0, 0)]
        start, end = several[0][0], several[-1][1]
        answer.give(206, content_range(start, end, len(DATA)), DATA[start:end])

    near = [(n * 1000, 10) for n in range(15)]
    with serving(joins) as server:
        check_ranges(client, server.url, FAR[:1])
        check_ranges(client, server.url, near)
        assert asked(server) == [1, 15]
        # Much more than was asked for is not read.
        before = client.received_bytes
        check_ranges(client, server.url, FAR)
        assert client.received_bytes - before < 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no parts at all",
        parts_body([(0, DATA[:10])], len(DATA))[:-30],
        parts_body([(5_000_000, b"x" * 10)], 1 << 40),
        parts_body([(0, b"x" * 700_000)], len(DATA)),
        parts_body([(n, DATA[n : n + 1]) for n in range(200)], len(DATA)),
        parts_body([(0, DATA[:10])], 5),
    ],
    ids=["nothing", "junk", "cut", "far away", "too much", "too many", "small total"],
)
def test_parts_that_make_no_sense_cost_one_request(client: Client, body: bytes) -> None:
    def nonsense(answer: Answer, _: int) -> None:
        if not answer.several(len(DATA)):
            return answer.give_range(DATA)
        return answer.give(206, {**PARTS_TYPE, "Content-Length": str(len(body))}, body)

    with serving(nonsense) as server:
        check_ranges(client, server.url, FAR)
        assert asked(server)[:2] == [1, 14]
        check_ranges(client, server.url, FAR)
        assert len(server.asked) <= 2 + 2 * 15 + 15


def test_wrong_bytes_under_the_right_range_are_handed_on(client: Client) -> None:
    """Who asked compares digests."""

    def lies(answer: Answer, _: int) -> None:
        answer.give_range(bytes(len(DATA)))

    with serving(lies) as server:
        found = dict(client.get_ranges(server.url, FAR))
        assert found == dict.fromkeys(range(15), bytes(10))


def test_a_cut_connection_is_resumed_at_the_range_reached(client: Client) -> None:
    ranges = [(n * 250_000, 200_000) for n in range(11)]

    def cuts(answer: Answer, number: int) -> None:
        several = answer.several(len(DATA))
        if not several or number > 5:
            return answer.give_range(DATA)
        body = parts_body([(o, DATA[o:end]) for o, end in several], len(DATA))
        answer.give(206, {**PARTS_TYPE, "Content-Length": str(len(body))}, body[:500_000])
        return answer.cut()

    with serving(cuts) as server:
        check_ranges(client, server.url, ranges)
        assert asked(server) == [1, 10, 8, 6, 4, 2]
        assert client.received_bytes < len(DATA) + 4 * 250_000


def test_connections_too_short_for_one_range_get_on_byte_by_byte(client: Client) -> None:
    ranges = [(n * 250_000, 200_000) for n in range(4)]

    def cuts(answer: Answer, _: int) -> None:
        start, end = (answer.several(len(DATA)) or [answer.wanted(len(DATA)) or (0, 0)])[0]
        if answer.several(len(DATA)):
            answer.give(206, {**PARTS_TYPE, "Content-Length": "600000"}, b"\r\n")
        elif end - start <= 70_000:
            return answer.give_range(DATA)
        else:
            data = DATA[start : start + 70_000]
            answer.give(206, content_range(start, end, len(DATA)), data)
        return answer.cut()

    with serving(cuts) as server:
        check_ranges(client, server.url, ranges)


def test_503_for_several_ranges_is_waited_for(client: Client) -> None:
    def busy(answer: Answer, number: int) -> None:
        if answer.several(len(DATA)) and number == 2:
            return answer.give(503, {"Content-Length": "0", "Retry-After": "1"}, b"")
        return answer.give_range(DATA)

    with serving(busy) as server:
        started = time.monotonic()
        check_ranges(client, server.url, FAR)
        assert time.monotonic() - started >= 1.0


def test_a_file_that_is_gone_is_said_as_such(client: Client) -> None:
    def gone(answer: Answer, _: int) -> None:
        if answer.several(len(DATA)):
            return answer.give(404, {"Content-Length": "0"}, b"")
        return answer.give_range(DATA)

    with serving(gone) as server, pytest.raises(NotFoundError, match="404"):
        check_ranges(client, server.url, FAR)


def test_a_request_line_stays_within_what_servers_accept(client: Client) -> None:
    with serving(lambda answer, _: answer.give_range(DATA)) as server:
        check_ranges(client, server.url, [(n * 3000, 9) for n in range(1000)])
        assert max(asked(server)) == MOST_RANGES
        assert max(len(headers["Range"]) for _, headers in server.asked) < 4096
