"""Which addresses a process listens on."""

import os
from pathlib import Path


def listening(pid: int) -> list[str]:
    """Local addresses of a process's listening TCP sockets and its UDP sockets (IPv4 dotted, IPv6 in hexadecimal)."""
    inodes = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(handle)
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for kind in ("tcp", "udp", "tcp6", "udp6"):
        table = Path(f"/proc/{pid}/net/{kind}")
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            fields = line.split()
            if fields[9] in inodes and (kind.startswith("udp") or fields[3] == "0A"):
                packed = bytes.fromhex(fields[1].split(":")[0])[::-1]
                found.append(".".join(map(str, packed)) if len(packed) == 4 else packed.hex())
    return found
