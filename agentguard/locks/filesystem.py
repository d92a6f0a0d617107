"""What kind of file system a folder is on, where the platform tells (Linux); "" elsewhere.

The table of mounts is asked, not `statfs`, which Python does not have.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["MAPPABLE", "NETWORK", "kind_of"]

# File systems whose servers serve several machines: `flock` is one machine's there, or costs a round trip and is lost
# with the connection, or pretends. (Not 9p, virtiofs: the shared folders of virtual machines and of WSL.)
NETWORK = frozenset({
    "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "orangefs", "smb2", "smb3", "smbfs", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs",
    "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
})  # fmt: skip
# Where a block that was written once is overwritten in place: a write to a mapped page cannot fail for want of space.
MAPPABLE = frozenset({"ext2", "ext3", "ext4", "xfs", "tmpfs", "overlay"})

_ESCAPE = re.compile(r"\\([0-7]{3})")


def kind_of(folder: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that `folder` is on, as the kernel names it; "" where it cannot be told."""
    path = os.path.realpath(folder)
    try:
        lines = Path(mounts).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    found, length = "", -1
    for line in lines:
        left, dash, right = line.partition(" - ")
        fields = left.split(" ")
        if not dash or len(fields) < 5:
            continue
        place = _ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4])
        # The longest mount point above the folder; of several at one place the last, which hides the others.
        if len(place) >= length and (path + "/").startswith(place.rstrip("/") + "/"):
            found, length = right.split(" ", 1)[0], len(place)
    return found
