"""Hosts of their own on one wire: network namespaces around a bridge in a namespace, each link capped both ways.

Nothing of the machine's own network is touched, and there is no way out.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from scripts.benchmark.programs import CannotMeasure, program

BURST, LATENCY = "512k", "100ms"
"""What `tc` needs besides the rate: room for a few large segments, and the longest a packet may queue."""


@attrs.frozen
class Host:
    """One namespace: its name and address."""

    name: str
    address: str

    @property
    def inside(self) -> list[str]:
        """The command that runs others in this namespace."""
        return [program("ip", "iproute2"), "netns", "exec", self.name]


@attrs.define
class Wire:
    """A bridge that hosts are plugged into; `prefix` keeps two runs on one machine apart."""

    prefix: str
    hosts: list[Host] = attrs.field(factory=list)

    @property
    def bridge(self) -> str:
        """The namespace of the bridge."""
        return f"{self.prefix}b"

    def plug(self, count: int) -> list[Host]:
        """So many further hosts, with addresses 10.78.0.1 and up, not capped yet."""
        added = []
        for _ in range(count):
            number = len(self.hosts) + 1
            host = Host(f"{self.prefix}h{number}", f"10.78.0.{number}")
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
            port = f"port{number}"
            _ip("-n", host.name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.bridge)
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", self.bridge, "link", "set", port, "master", "bridge", "up")
            self.hosts.append(host)
            added.append(host)
        return added

    def cap(self, host: Host, mbit_per_s: float) -> None:
        """Limit what a host sends and what it receives. CannotMeasure when the kernel has no tbf."""
        number = self.hosts.index(host) + 1
        shape = ["tbf", "rate", f"{mbit_per_s:g}mbit", "burst", BURST, "latency", LATENCY]
        for namespace, device in ((host.name, "eth0"), (self.bridge, f"port{number}")):
            where = ["-n", namespace, "qdisc", "replace", "dev", device, "root"]
            command = [program("tc", "iproute2"), *where, *shape]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise CannotMeasure(f"cannot cap a link with tbf (needs the kernel's sch_tbf): {result.stderr.strip()}")

    def sent_bytes(self, host: Host) -> int:
        """What a host has sent since it was plugged in, headers and everything sent again included."""
        [link] = json.loads(_ip("-n", host.name, "-s", "-j", "link", "show", "dev", "eth0"))
        return int(link["stats64"]["tx"]["bytes"])


@contextmanager
def wire() -> Iterator[Wire]:
    """A wire without hosts; it and its hosts are gone after the block. CannotMeasure when that is not allowed."""
    # Asked for before anything is made, so that a machine without it is told at once.
    program("tc", "iproute2")
    made = Wire(f"herdbench{os.getpid()}")
    try:
        try:
            _ip("netns", "add", made.bridge)
        except subprocess.CalledProcessError as error:
            why = error.stderr.strip().splitlines()[-1:] or ["refused"]
            raise CannotMeasure(f"may not make network namespaces ({why[0]}): run it as root") from error
        _ip("-n", made.bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", made.bridge, "link", "set", "bridge", "up")
        yield made
    finally:
        for name in re.findall(rf"^{made.prefix}\w+", _ip("netns", "list"), re.MULTILINE):
            _ip("netns", "del", name)


def _ip(*arguments: str) -> str:
    command = [program("ip", "iproute2"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
