"""A runner without a model: real sockets, real death. The "model" file is JSON that says how it behaves.

say_first: [line]             printed at once
exit_before_listening: int    exit status, before anything is answered
ignore_sigterm: bool
die_in_operation: int         exits with 1 when this load operation comes
refuse_alloc: str             why memory cannot be had
load_polls: int, stall: bool  how often /health says "loading" after commit; for ever
die_in_health: bool           exits with 3 while loading
status: int, error: str       what a completion is refused with
stats: {…}                    what /stats answers
tokens: int, pace_s: float    lines of a completion, and the time between two
die_after: int                exits after so many lines, having said ``say``: by SIGKILL if ``by_kill``
close_after: int              only hangs up
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

MEMORY = {
    "input_weights": 1000,
    "cpu": {"id": "cpu", "library": "cpu", "weights": [10, 10, 10], "cache": [1, 1, 0], "graph": 5},
    "gpus": [],
}


class FakeRunner:
    def __init__(self, script: dict[str, Any], token: str) -> None:
        self.script = script
        self.token = token
        self.seen: list[str] = []
        self.polls = 0
        self.status = 2
        self.cut_off = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.answer_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.cut_off += 1
        finally:
            writer.close()

    async def answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        _method, path, _ = head.split(" ", 2)
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.seen.append(path)
        if headers.get("authorization") != f"bearer {self.token}".lower():
            return await send(writer, 401, {"error": "unauthorized"})
        if path == "/completion":
            return await self.completion(reader, writer)
        status, answer = self.plain_answer(path, json.loads(body) if body else {})
        return await send(writer, status, answer)

    def plain_answer(self, path: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/health":
            self.polls += 1
            if self.status == 3 and self.polls > self.script.get("load_polls", 0) and not self.script.get("stall"):
                self.status = 0
            if self.script.get("die_in_health") and self.status == 3:
                print("ValueError: tensor blk.0 is damaged", flush=True)
                os._exit(3)
            return 200, {"status": self.status, "progress": 0.5, "message": ""}
        if path == "/load":
            if request["operation"] == self.script.get("die_in_operation"):
                print("out of memory: tried to allocate 12 GiB", flush=True)
                os._exit(1)
            self.status = 3 if request["operation"] == 2 else self.status
            refusal = self.script.get("refuse_alloc", "") if request["operation"] == 1 else ""
            return 200, {"success": not refusal, "memory": MEMORY, "message": refusal}
        if path == "/seen":
            return 200, {"seen": self.seen, "cut_off": self.cut_off}
        if path == "/tokenize":
            return 200, {"tokens": [ord(c) for c in request["text"]]}
        if path == "/stats" and "stats" in self.script:
            return 200, self.script["stats"]
        if path == "/environment":
            return 200, dict(os.environ)
        return 404, {"error": f"no {path}"}

    async def completion(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        script = self.script
        if script.get("status", 200) != 200:
            return await send(writer, script["status"], {"error": script["error"]})
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        gone = asyncio.ensure_future(reader.read(1))
        for i in range(script.get("tokens", 5)):
            if gone.done():
                self.cut_off += 1
                return False
            if i == script.get("die_after"):
                for line in script.get("say", []):
                    print(line, flush=True)
                os.kill(os.getpid(), signal.SIGKILL) if script.get("by_kill") else os._exit(1)
            line = json.dumps({"content": f"t{i}", "tokens": [i]}).encode() + b"\n"
            writer.write(b"%x\r\n%s\r\n" % (len(line), line))
            await writer.drain()
            if i == script.get("close_after"):
                return False
            await asyncio.sleep(script.get("pace_s", 0))
        line = json.dumps({"done": True, "done_reason": "stop"}).encode() + b"\n"
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(line), line))
        await writer.drain()
        gone.cancel()
        return False


async def send(writer: asyncio.StreamWriter, status: int, answer: dict[str, Any]) -> bool:
    body = json.dumps(answer).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
    await writer.drain()
    return True


def leave_with_parent() -> None:
    """Standard input ends when the parent is gone."""
    sys.stdin.buffer.read()
    os._exit(0)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--fd", type=int)
    arguments = parser.parse_args()
    script = json.loads(arguments.model.read_text())
    for line in script.get("say_first", []):
        print(line, flush=True)
    if script.get("exit_before_listening") is not None:
        sys.exit(script["exit_before_listening"])
    if script.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf", flush=True)
    fake = FakeRunner(script, os.environ["SHALE_RUNNER_TOKEN"])
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, leave_with_parent)
    server = await asyncio.start_server(fake.serve, sock=socket.socket(fileno=arguments.fd))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
