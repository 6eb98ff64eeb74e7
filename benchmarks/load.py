"""HTTP load on a service on loopback, from one light process: as many as it can take, or so many a second."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Seen:
    """What came of a while of load: seconds that each request took, and answers that were no 200."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    lasted: float = 0.0

    @property
    def per_second(self) -> float:
        """Requests answered a second."""
        return len(self.seconds) / self.lasted

    def as_record(self) -> dict[str, Any]:
        """Return rate and times."""
        median, p99 = np.percentile(self.seconds, [50, 99])
        return {
            "requests": len(self.seconds),
            "refused": self.refused,
            "per_second": round(self.per_second, 1),
            "median_ms": round(1e3 * float(median), 1),
            "p99_ms": round(1e3 * float(p99), 1),
            "p99_share_of_median": round(float(p99 / median), 2),
        }


def request(body: object, path: str = "/predict", method: str = "POST") -> bytes:
    """Return the bytes of a request."""
    content = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def ask(streams: Streams, asked: bytes) -> tuple[int, bytes]:
    """Return status and body of the answer to a request on an open connection."""
    reader, writer = streams
    writer.write(asked)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return int(head[9:12]), await reader.readexactly(length)


@asynccontextmanager
async def connection(port: int) -> Any:
    """Open a connection, and close it in the end."""
    streams = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield streams
    finally:
        streams[1].close()


def saturate(port: int, requests: Callable[[], Iterator[bytes]], connections: int, seconds: float) -> Seen:
    """Return what came of `connections` that ask one after the other, each at once after its answer.

    A quarter of the time before is not counted.
    """
    return asyncio.run(_saturate(port, requests(), connections, seconds))


async def _saturate(port: int, requests: Iterator[bytes], connections: int, seconds: float) -> Seen:
    seen = Seen(lasted=seconds)
    begin = time.perf_counter() + seconds / 4
    end = begin + seconds

    async def client() -> None:
        async with connection(port) as streams:
            while (start := time.perf_counter()) < end:
                status, _ = await ask(streams, next(requests))
                done = time.perf_counter()
                if begin <= done < end:
                    seen.refused += status != 200
                    seen.seconds += [done - start] if status == 200 else []

    await asyncio.gather(*(client() for _ in range(connections)))
    return seen


def steady(port: int, requests: Callable[[], Iterator[bytes]], per_second: float, seconds: float) -> Seen:
    """Return what came of requests that arrive by chance, so many a second; their time counts from their arrival."""
    return asyncio.run(_steady(port, requests(), per_second, seconds))


async def _steady(port: int, requests: Iterator[bytes], per_second: float, seconds: float) -> Seen:
    seen, chance = Seen(lasted=seconds), random.Random(0)
    free: list[Streams] = []

    async def one(asked: bytes, due: float) -> None:
        streams = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        status, _ = await ask(streams, asked)
        seen.refused += status != 200
        seen.seconds += [time.perf_counter() - due] if status == 200 else []
        free.append(streams)

    due, end, tasks = time.perf_counter(), time.perf_counter() + seconds, []
    while due < end:
        await asyncio.sleep(due - time.perf_counter())
        tasks.append(asyncio.create_task(one(next(requests), due)))
        due += chance.expovariate(per_second)
    await asyncio.gather(*tasks)
    for _, writer in free:
        writer.close()
    return seen
