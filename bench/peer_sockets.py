#!/usr/bin/env python3
"""What plain sockets carry between two ranks: the floor of a TCP all-reduce of `bytes`.

sides.py documents the requests. Each of two ranks sends that many bytes and receives as many at the
same time, from and into one small buffer, as iperf3 does in both directions. Invariant: the
standard library is enough.
"""

import json
import os
import socket
import sys
import threading
import time

BUFFER = 256 << 10
WAIT = 60.0  # seconds at most for the other rank


def connect():
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ["RANK"] == "0":
        with socket.create_server(address) as server:
            server.settimeout(WAIT)
            link = server.accept()[0]
    else:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                link = socket.create_connection(address, timeout=WAIT)
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    link.settimeout(WAIT)
    return link


def receive(link, count, buffer):
    while count > 0:
        got = link.recv_into(buffer, min(count, len(buffer)))
        if got == 0:
            raise ConnectionError("run: the other rank must send all, got the end")
        count -= got


class Pair:
    def __init__(self, request):
        self.link, self.bytes = connect(), request["bytes"]
        self.out, self.into = bytes(BUFFER), memoryview(bytearray(BUFFER))

    def send(self):
        for at in range(0, self.bytes, BUFFER):
            self.link.sendall(self.out[: min(BUFFER, self.bytes - at)])

    def measure(self):
        """Milliseconds, from when both are there."""
        self.link.sendall(b"!")
        receive(self.link, 1, self.into)
        start = time.perf_counter()
        sender = threading.Thread(target=self.send)
        sender.start()
        receive(self.link, self.bytes, self.into)
        sender.join()
        return (time.perf_counter() - start) * 1e3


def main():
    pair = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["cmd"] == "quit":
            break
        reply = {}
        try:
            if request["cmd"] == "setup":
                pair = Pair(request)
            else:
                reply = {"values": [pair.measure() for _ in range(request["n"])]}
        except Exception as error:  # the driver decides what an error means
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
