"""What the kernel counts of the network that this process is in, native code included."""

from __future__ import annotations

from pathlib import Path


def counters(own: int = 0) -> dict[str, int]:
    """Packets without a way, datagrams of UDP, and connections begun by TCP, `own` less."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    known: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        pairs = zip(names[1:], values[1:], strict=True)
        known |= {f"{names[0]}{key}": int(value) for key, value in pairs}
    six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return {
        "no_routes": known["Ip:OutNoRoutes"] + int(six["Ip6OutNoRoutes"]),
        "udp": known["Udp:OutDatagrams"] + int(six["Udp6OutDatagrams"]),
        "tcp": known["Tcp:ActiveOpens"] - own,
    }
