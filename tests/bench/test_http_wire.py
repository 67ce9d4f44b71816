import itertools

from hypothesis import given
from hypothesis import strategies as st

from bench.http_wire import Connection, RawReply, events

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(parts: list[bytes]) -> bytes:
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({place % (len(raw) + 1) for place in places} | {0, len(raw)})
    return [raw[a:b] for a, b in itertools.pairwise(marks)]


payloads = st.lists(st.text(alphabet="abc{}:0\\ é", min_size=1).map(str.encode), min_size=1, max_size=20)


@given(payloads, st.lists(st.integers(0, 10_000), max_size=30))
def test_events_survive_any_cut_of_the_stream(data: list[bytes], places: list[int]) -> None:
    pieces = cut(chunked([b"data: " + each + b"\n\n" for each in data]), places)
    found = list(events(RawReply(pieces, [float(index) for index in range(len(pieces))], True)))
    assert [event for _, event in found] == [each.lstrip() for each in data if each.lstrip()]
    assert [at for at, _ in found] == sorted(at for at, _ in found)


@given(payloads, st.lists(st.integers(0, 10_000), max_size=30))
def test_the_end_is_seen_exactly_at_the_last_byte(data: list[bytes], places: list[int]) -> None:
    connection = Connection()
    ends: list[bool] = []
    connection._finish = ends.append  # type: ignore[method-assign]
    pieces = cut(chunked([b"data: " + each + b"\n\n" for each in data]), places)
    for piece in pieces[:-1]:
        connection.data_received(piece)
    assert not ends
    connection.data_received(pieces[-1])
    assert ends == [True]


@given(st.binary(max_size=300), st.lists(st.integers(0, 1000), max_size=10))
def test_a_reply_with_a_length_ends_with_it(body: bytes, places: list[int]) -> None:
    connection = Connection()
    ends: list[bool] = []
    connection._finish = ends.append  # type: ignore[method-assign]
    raw = b"HTTP/1.1 429 Too Many\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    pieces = cut(raw, places)
    for piece in pieces:
        assert not ends
        connection.data_received(piece)
    assert ends == [True]
    reply = RawReply(pieces, [0.0] * len(pieces), True)
    assert b"".join(part for _, part in reply.body()) == body


def test_an_event_takes_the_time_of_its_last_byte() -> None:
    raw = chunked([b"data: a\n\n", b"data: b", b"c\n\n"])
    at = raw.index(b"c\n\n")
    found = list(events(RawReply([raw[:at], raw[at : at + 4], raw[at + 4 :]], [1.0, 2.0, 3.0], True)))
    assert found[0] == (1.0, b"a")
    assert found[1] == (2.0, b"bc")


@given(st.binary(max_size=200))
def test_rubbish_breaks_nothing(raw: bytes) -> None:
    reply = RawReply([raw], [0.0], False)
    list(events(reply))
    reply.status()
