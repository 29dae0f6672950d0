"""How the rows of `./run bench collectives` are measured: teams of ranks, on one host or two.

An all-reduce takes as long as its slowest rank says: one that begins late, for want of a core, sees
only the rest of it. Ranks that train tell of their steps, and the mean counts.

Invariant: a side's ranks wait for their next command in a read while another side measures, so that
they take no core; the network namespaces that stand for two hosts are gone when the row ends,
however it ends.
"""

import contextlib
import functools
import os
import pathlib
import secrets
import shutil
import socket
import statistics
import subprocess
import sys

from agree import disagreement
from sides import LeftOut, Place, Side, SideError, Team

LIMIT = 300.0  # seconds for ranks to meet and to be set up, and for a block
NETWORK = "10.213.7"  # of the two namespaces
SOCKETS = pathlib.Path(__file__).resolve().parent / "peer_sockets.py"


def ip(*words):
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOut(f"left out: ip {' '.join(words)} must work, got: {error}") from error
    if done.returncode != 0:
        problem = done.stderr.strip() or f"status {done.returncode}"
        raise LeftOut(f"left out: ip {' '.join(words)} must work, got: {problem}")


class OneHost:
    """All ranks side by side, on loopback."""

    hosts, interface = 1, "lo"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def address(self):
        return "127.0.0.1"

    def free_port(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    def prefix(self, _rank):
        return []


class TwoNamespaces:
    """A namespace for each of two ranks, joined by a veth pair."""

    hosts, interface = 2, "veth0"

    def __enter__(self):
        if os.geteuid() != 0 or not shutil.which("ip"):
            raise LeftOut("left out: two network namespaces need root and the program ip")
        self.names = [f"cairn-bench-{os.getpid()}-{rank}" for rank in (0, 1)]
        try:
            for name in self.names:
                ip("netns", "add", name)
            first, second = self.names
            ip("link", "add", self.interface, "netns", first, "type", "veth",
               "peer", "name", self.interface, "netns", second)
            for rank, name in enumerate(self.names):
                ip("-n", name, "address", "add", f"{NETWORK}.{rank + 1}/24", "dev", self.interface)
                ip("-n", name, "link", "set", self.interface, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        self.next_port = 29600
        return self

    def __exit__(self, *_):
        for name in self.names:
            with contextlib.suppress(LeftOut):
                ip("netns", "delete", name)

    def address(self):
        return f"{NETWORK}.1"

    def free_port(self):
        self.next_port += 1  # nothing else listens there
        return self.next_port

    def prefix(self, rank):
        return ["ip", "netns", "exec", self.names[rank]]


def places(row, network):
    """A place for each rank, with torchrun's variables."""
    port, secret = network.free_port(), secrets.token_hex(16)
    local = row.ranks // network.hosts
    for rank in range(row.ranks):
        environment = {
            "RANK": rank,
            "WORLD_SIZE": row.ranks,
            "LOCAL_RANK": rank % local,
            "LOCAL_WORLD_SIZE": local,
            "GROUP_RANK": rank // local,
            "GROUP_WORLD_SIZE": network.hosts,
            "MASTER_ADDR": network.address(),
            "MASTER_PORT": port,
            "CAIRN_SECRET": secret,
            "GLOO_SOCKET_IFNAME": network.interface,
        }
        yield Place(
            f" rank {rank}",
            network.prefix(rank),
            {name: str(value) for name, value in environment.items()},
        )


def collective_row(bench, row, result):
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(TwoNamespaces() if row.two_hosts else OneHost())

        def team(start, variant="default"):
            merge = statistics.fmean if row.request["job"] == "ddp" else max
            return Team(lambda p: start(row, variant, p), list(places(row, network)), merge)

        def joined(start, variant="default", **more):
            """Its ranks, set up, and what they say for comparison."""
            side = stack.enter_context(team(start, variant))
            bench.setup(side, row, variant, LIMIT, **more)
            return side, side.ask("check", LIMIT)["outputs"]

        # The peer first: what is skipped is known before anything is set up.
        variant = None
        if row.apart:
            result["peer_name"] = "Cairn's ranks, each alone at the same time"
        elif bench.peer_info:
            variant = row.variants[0]
            if len(row.variants) > 1:
                trial = bench.compare_trial(row, lambda _, v: team(bench.peer, v))
                variant = bench.best_variant(row, trial, result)
            words = f" {variant}" if len(row.variants) > 1 else ""
            result["peer_name"] = f"{bench.peer_info['name']} Gloo{words}"
        sides = {}
        sides["cairn"], ours = joined(bench.cairn)
        if row.apart:
            sides["peer"], theirs = joined(bench.cairn, alone=True)
        elif variant:
            sides["peer"], theirs = joined(bench.peer, variant)
        complaint = "peer" in sides and disagreement(ours, theirs, row.tolerance)
        if complaint:
            raise SideError(complaint)
        if row.two_hosts:
            sides["sockets"] = stack.enter_context(team(functools.partial(sockets, bench)))
            bench.setup(sides["sockets"], row, "default", LIMIT)
        result.update(bench.blocks(row, sides))
        if "sockets" in sides:
            result.update(bound="sockets", reached=result["sockets"] / result["cairn"])


def sockets(bench, row, _variant, place):
    command = [*place.prefix, bench.options.python or sys.executable, str(SOCKETS)]
    return Side("sockets" + place.name, command, row.threads, place.environment)


MEASURES = {"collective": collective_row}
