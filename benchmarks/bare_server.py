"""The bare server that the gateway is compared with: asyncio, httptools, typed decoding, the broker's ack.

    python -m benchmarks.bare_server BOOTSTRAP HOST:PORT PARTITIONS

No routing, keys, limits, pseudonyms or Arrow: it decodes every event with the contract's types (but for the
forms of texts, which the gateway matches by column), sends the body as one record and answers 202 once the
broker has it. What the gateway does beyond is its price.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from itertools import count

import httptools
import msgspec
import uvloop
from confluent_kafka import Producer

from benchmarks.harness import TOPIC
from pipeline.contract.event import Event

_LINES = msgspec.json.Decoder(Event).decode_lines
_ONE = msgspec.json.Decoder(Event).decode
_LIST = msgspec.json.Decoder(list[Event]).decode


class Server(asyncio.Protocol):
    """One connection; requests are answered in order."""

    def __init__(self, producer: Producer, partitions: int, numbers: count[int]) -> None:
        self.producer, self.partitions, self.numbers = producer, partitions, numbers
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self.body.append(part)

    def on_message_complete(self) -> None:
        body = b"".join(self.body)
        self.body = []
        first = body[:1]
        events = (
            len(_LIST(body)) if first == b"[" else len(_LINES(body)) if b"\n" in body else bool(_ONE(body))
        )
        answer = b'{"accepted":%d,"rejected":0}' % events
        text = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
            len(answer),
            answer,
        )

        def delivered(error: object, _: object) -> None:
            if error is None:
                self.loop.call_soon_threadsafe(self.transport.write, text)  # type: ignore[attr-defined]

        self.producer.produce(
            TOPIC, value=body, partition=next(self.numbers) % self.partitions, on_delivery=delivered
        )


async def run(bootstrap: str, address: str, partitions: int) -> None:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 1, "message.max.bytes": 8_000_000}
    )
    threading.Thread(target=lambda: [producer.poll(0.1) for _ in count()], daemon=True).start()
    numbers = count()
    host, port = address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(producer, partitions, numbers), host, int(port))
    sys.stdout.write('{"key":"none"}\n')
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
