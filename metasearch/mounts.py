"""On which file system a path lies, and whether other machines may see it too.

What two machines share differs from a disk: a mapping of memory is each machine's own (SQLite's WAL needs one that all readers
and the writer share), and a lock may hold on one machine alone. mountinfo: proc_pid_mountinfo(5).
"""
from __future__ import annotations

import re
from pathlib import Path

__all__ = ["BUCKETS", "NETWORK", "network_filesystem"]

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre", "glusterfs", "beegfs", "gpfs", "panfs",
    "pvfs2", "orangefs", "wekafs", "daos", "ocfs2", "gfs2", "9p", "virtiofs", "vboxsf", "prl_fs", "fuse",
})
BUCKETS = frozenset({  # objects of a store shown as files: without locks between machines, and no part of a file can be replaced
    "fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.mountpoint-s3", "fuse.rclone", "fuse.blobfuse", "fuse.blobfuse2",
    "fuse.geesefs",
})


def network_filesystem(path: Path | str, mountinfo: str | None = None) -> str | None:
    """The kind of file system ("nfs4", "fuse.sshfs") if the path, which need not exist, may lie on other machines, too; None on a
    disk of this one, and where the system does not tell.

    Every file system in user space counts: who takes a disk for a network is slower, who takes a network for a disk loses data.
    """
    place = str(Path(path).resolve())  # first: this mounts what is mounted when somebody comes by
    if mountinfo is None:
        try:
            mountinfo = MOUNTS.read_text("utf-8", "surrogateescape")
        except OSError:
            return None
    longest, kind = -1, ""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if len(words := fields.split()) < 5 or not rest:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4])  # a blank is \040 there
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= longest:
            longest, kind = len(point), rest.split()[0]  # of two at one place the later hides the earlier
    return kind if kind in NETWORK or kind.startswith("fuse.") else None
