"""A machine of its own for this process and those that it starts, whose only way out ends here.

`Wire` moves the process to namespaces of its own (Linux) with loopback and one interface to which everything
else is routed: whatever is sent off loopback comes out at its other end and is kept. Names are asked of a
resolver behind it, that of the machine itself too. Nobody answers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

#: What a machine answers that does not allow a part of it, or has no interfaces of this kind.
NOT_ALLOWED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENODEV, errno.ENXIO})

_libc: Final = ctypes.CDLL(None, use_errno=True)

RESOLVER: Final = "198.51.100.53"
#: Of the interface; IPv6 is left out where the machine has none.
_ADDRESSES: Final = (("192.0.2.1", 24), ("2001:db8::1", 64))
_NAME: Final = b"wire"

# <sched.h>, <sys/mount.h>, <linux/if_tun.h>, <linux/rtnetlink.h>
_MOUNTS, _HOST_NAME, _USERS, _NETWORK = 0x20000, 0x4000000, 0x10000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000
_NEWLINK, _NEWADDR, _NEWROUTE, _IFF_UP = 16, 20, 24, 0x1
_REQUEST_ACK, _CREATE = 0x5, 0x400
_IFA_ADDRESS, _IFA_LOCAL, _RTA_OIF = 1, 2, 4
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp"}
#: Next headers of what the kernel itself sends to IPv6's groups as soon as an interface is up: who listens to
#: which group, where a router is.
_KERNELS: Final = frozenset({0, 58})


class Wire:
    """The way out, and what was sent on it. Raises OSError of `NOT_ALLOWED` where it cannot be had."""

    def __init__(self) -> None:
        _move_away()
        socket.sethostname("alone")
        _cover("/etc/resolv.conf", f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
        _cover("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
        _cover("/etc/nsswitch.conf", "hosts: files dns\n")
        self._end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._end, _TUNSETIFF, struct.pack("16sH22x", _NAME, _IFF_TUN | _IFF_NO_PI))
        index = socket.if_nametoindex(_NAME.decode())
        self.ipv6 = _has_ipv6()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as kernel:
            for interface in (socket.if_nametoindex("lo"), index):
                _order(kernel, _NEWLINK, struct.pack("BxHiII", 0, 0, interface, _IFF_UP, _IFF_UP))
            for address, bits in _ADDRESSES[: 1 + self.ipv6]:
                packed = ip_address(address).packed
                family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
                own = _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
                _order(kernel, _NEWADDR, struct.pack("BBBBI", family, bits, 0, 0, index) + own)
                everywhere = struct.pack("8BI", family, 0, 0, 0, _MAIN_TABLE, _STATIC, 0, _UNICAST, 0)
                _order(kernel, _NEWROUTE, everywhere + _attribute(_RTA_OIF, struct.pack("I", index)))

    def sent(self) -> list[str]:
        """What was sent since the last call: for each packet protocol, address, port and the text in it."""
        found = []
        while True:
            try:
                packet = os.read(self._end, 65_536)
            except BlockingIOError:
                return found
            if (line := _told(packet)) is not None:
                found.append(line)


def _has_ipv6() -> bool:
    switch = Path("/proc/sys/net/ipv6/conf") / _NAME.decode() / "disable_ipv6"
    return switch.exists() and switch.read_text().strip() == "0"


def _move_away() -> None:
    """To namespaces that nothing else is in: what is mounted, named or routed here is so nowhere else."""
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", ctypes.c_int(_MOUNTS | _HOST_NAME | _NETWORK))
    except PermissionError:  # root of a namespace of users may, where users may have one
        _call("unshare", ctypes.c_int(_USERS | _MOUNTS | _HOST_NAME | _NETWORK))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", "/", _RECURSIVE | _PRIVATE)


def _cover(path: str, text: str) -> None:
    """Another text for a file, where there is one."""
    if not Path(path).exists():
        return
    with tempfile.NamedTemporaryFile("w") as file:  # what is mounted stays
        file.write(text)
        file.flush()
        Path(file.name).chmod(0o644)
        _mount(file.name, path, _BIND)


def _mount(source: str, target: str, flags: int) -> None:
    _call("mount", source.encode(), target.encode(), None, ctypes.c_ulong(flags), None)


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library that Python 3.11 has not. Raises OSError."""
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value  # all of these fill whole words


def _order(kernel: socket.socket, kind: int, body: bytes) -> None:
    """One rtnetlink message, taken. Raises OSError."""
    kernel.send(struct.pack("IHHII", 16 + len(body), kind, _REQUEST_ACK | _CREATE, 1, 0) + body)
    (number,) = struct.unpack_from("i", kernel.recv(4096), 16)
    if number:
        raise OSError(-number, os.strerror(-number), f"rtnetlink message {kind}")


def _told(packet: bytes) -> str | None:
    """A packet in words; None: one of the kernel's own."""
    if packet[0] >> 4 == 4:
        length, protocol, address = packet[0] % 16 * 4, packet[9], packet[16:20]
    else:
        length, protocol, address = 40, packet[6], packet[24:40]
        if protocol in _KERNELS and address[0] == 0xFF:
            return None
    line = f"{_PROTOCOLS.get(protocol, protocol)} {ip_address(address)}"
    if _PROTOCOLS.get(protocol) in {"tcp", "udp"}:
        line += f" {int.from_bytes(packet[length + 2 : length + 4], 'big')}"
    return f"{line} {re.sub(rb'[^!-~]+', b'.', packet[length + 8 :][:200]).decode()}"
