import socket
import threading
import time

import pytest

from cluster.errors import TransferBroken, TransferTimeout
from kv_transfer.link_channel import Channel, accept, connect, listen


def pair(deadline_s: float = 5) -> tuple[Channel, socket.socket]:
    near, far = socket.socketpair()
    return Channel(near, time.monotonic() + deadline_s), far


def test_messages_arrive_whole() -> None:
    server = listen("127.0.0.1")
    deadline_s = time.monotonic() + 10
    got: list[dict[str, object]] = []

    def serve() -> None:
        channel = accept(server, timeout_s=5, deadline_s=deadline_s)
        got.append(channel.receive())
        channel.send({"big": "y" * 100_000})
        channel.close()

    thread = threading.Thread(target=serve)
    thread.start()
    client = connect("127.0.0.1", server.getsockname()[1], timeout_s=5, deadline_s=deadline_s)
    client.send({"hello": 1})
    assert len(client.receive()["big"]) == 100_000
    with pytest.raises(TransferBroken, match="closed the channel"):
        client.receive()
    thread.join()
    assert got == [{"hello": 1}]
    client.close()
    server.close()


def test_nobody_listens() -> None:
    server = listen("127.0.0.1")
    port = server.getsockname()[1]
    server.close()
    with pytest.raises(TransferBroken, match=f"cannot reach 127.0.0.1:{port}"):
        connect("127.0.0.1", port, timeout_s=1, deadline_s=time.monotonic() + 1)


def test_nobody_comes_and_nobody_answers() -> None:
    with listen("127.0.0.1") as server, pytest.raises(TransferTimeout, match="no client came"):
        accept(server, timeout_s=0.05, deadline_s=time.monotonic() + 1)
    channel, far = pair(deadline_s=0.05)
    with pytest.raises(TransferTimeout, match="did not answer in time"):
        channel.receive()
    with pytest.raises(TransferTimeout):
        channel.send({})
    far.close()
    channel.close()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n", "frame of 1195725856 bytes"),
        (b"\0\0\0\x02hi", "no JSON"),
        (b"\0\0\0\x02[]", "no JSON object"),
        (b'\0\0\0\x10{"error": "boo"}', "the peer failed: boo"),
    ],
)
def test_strangers_are_refused(data: bytes, said: str) -> None:
    channel, far = pair()
    far.sendall(data)
    with pytest.raises(TransferBroken, match=said):
        channel.receive()
    far.close()
    channel.close()
