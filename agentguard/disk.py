"""One file on disk: flush it, copy it, replace it as a whole.

What a reader, a crash or a power loss may find is either the old content or the new, never a mixture: the content is
written to a temporary file in the target's folder, flushed, renamed over the target, and the folder is flushed (the
protocol of Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014; without the first flush xfs and others
leave empty files, without the second the rename itself may be lost). `agentguard.commit` builds on it for several
files at once.

Atomic towards crashes is not atomic towards concurrent writers: who computes new content from old holds a lock.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .exceptions import InDoubt

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["atomic_write", "snapshot"]

CHUNK = 1 << 20
SMALL = 1 << 16  # below it one read and one write are cheaper than asking the file system for a clone
FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
POSIX = os.name == "posix"
OPEN_TO_FLUSH = os.O_RDONLY if POSIX else os.O_RDWR  # Windows flushes writable handles only

FICLONE = 0x40049409  # linux/fs.h; a kernel that numbers it otherwise answers ENOTTY and the content is copied
CANNOT_COPY_RANGE = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}
)


def temp_name(id: str, index: int = 0) -> str:
    """The name of a temporary file; short whatever the target's, which may already be as long as names can be."""
    return f".agentguard-{id}-{index}.tmp"


def flush(fd: int) -> None:
    """Return when the file's content and metadata are on the medium."""
    if sys.platform == "darwin" and fcntl is not None:
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync there stops at the drive's cache
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY):
                raise
    os.fsync(fd)


def open_folder(folder: str) -> int | None:
    """A descriptor for `flush_folder`; None where folders cannot be opened (Windows journals its own names)."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | FLAGS) if POSIX else None


def flush_folder(fd: int | None) -> None:
    """Return when the names in the folder are on the medium."""
    if fd is None:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system (SMB, FUSE) that has no such notion
            raise


def flush_folders(folders: Iterable[str], *, missing_ok: bool = False) -> None:
    for folder in sorted(set(folders)):
        try:
            fd = open_folder(folder)
        except FileNotFoundError:
            if missing_ok:
                continue
            raise
        try:
            flush_folder(fd)
        finally:
            close(fd)


def make_folders(folder: str, mode: int, made: list[str], *, durable: bool) -> None:
    """Make a folder and what is missing above it; `made` gets what this call made, outermost first."""
    missing: list[str] = []
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        missing.append(folder)
        folder = os.path.dirname(folder)
    for name in reversed(missing):
        try:
            os.mkdir(name, mode)
        except FileExistsError:
            if not os.path.isdir(name):
                raise
        else:
            made.append(name)
    if durable:  # those too that somebody else made just now and may not have flushed yet
        flush_folders(os.path.dirname(name) for name in missing)


def remove_folders(made: Sequence[str]) -> None:
    """Take `make_folders` back, except for what somebody else uses by now."""
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def close(fd: int | None) -> None:
    """Close; what matters was flushed before, so an error of the close itself says nothing."""
    if fd is not None:
        with contextlib.suppress(OSError):
            os.close(fd)


def read_all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    return b"".join(iter(lambda: os.read(fd, CHUNK), b""))


def content(file: Path) -> bytes | None:
    """The whole of a file; None when there is none. Raises OSError."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def remove(file: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def digest(fd: int) -> str:
    """The sha256 of the whole open file, as hex; leaves the position at its end."""
    os.lseek(fd, 0, os.SEEK_SET)
    sha = hashlib.sha256()
    while chunk := os.read(fd, CHUNK):
        sha.update(chunk)
    return sha.hexdigest()


# --- what stands there now -------------------------------------------------------------------------------------------


def regular(file: str) -> os.stat_result | None:
    """The status of a regular file; None when nothing is there; OSError that says why for anything else."""
    try:
        status = os.lstat(file)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(status.st_mode):
        return status
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory, not a file: name the files inside it", file)
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "is a symbolic link where a plain file is needed", file)
    raise OSError(errno.EINVAL, "is a device, pipe or socket: only regular files can be replaced", file)


def replaceable(file: str) -> tuple[str, os.stat_result | None]:
    """The file that a write to `file` replaces (symbolic links followed, so that they stay) and its status."""
    target = os.path.realpath(file)
    status = regular(target)
    if status is not None and status.st_nlink > 1:
        raise OSError(
            errno.EMLINK,
            f"has {status.st_nlink} hard links: replacing it would leave the other names with the old content. "
            "Use a symbolic link instead, or give the file one name only (cp FILE FILE.new && mv FILE.new FILE)",
            target,
        )
    return target, status


def unchanged(error: OSError, files: Sequence[str]) -> OSError:
    """The same error (type and errno), with a text that says which files it left as they were."""
    why = error.strerror or str(error) or type(error).__name__
    names = ", ".join(files)
    text = f"{why}; nothing was written: {names} {'is' if len(files) == 1 else 'are'} unchanged"
    if error.errno is None:
        return OSError(text)
    if error.filename is None:
        return OSError(error.errno, text)
    return OSError(error.errno, text, error.filename)


# --- metadata and content --------------------------------------------------------------------------------------------


def adopt(fd: int, target: str, status: os.stat_result) -> None:
    """Give the open file the owner, mode and extended attributes (ACLs are such) of the file that it will replace.

    Owner and attributes as far as this process may set them. Where the group cannot be kept, its permissions shrink
    to those of everybody, lest the content be shown to a group that could not read it before.
    """
    if not POSIX:
        return
    mode = stat.S_IMODE(status.st_mode)
    now = os.fstat(fd)
    if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
        try:
            os.fchown(fd, status.st_uid, status.st_gid)
        except OSError:
            try:
                os.fchown(fd, -1, status.st_gid)
            except OSError:
                mode = mode & 0o707 | (mode & 0o007) << 3
    os.fchmod(fd, mode)  # after the owner, whose change clears the set-id bits
    if sys.platform == "linux":
        _adopt_attributes(fd, target)


def _adopt_attributes(fd: int, target: str) -> None:
    if sys.platform != "linux":
        return
    try:
        wanted, present = os.listxattr(target), os.listxattr(fd)
    except OSError:  # a file system without them
        return
    for name in wanted:
        with contextlib.suppress(OSError):
            os.setxattr(fd, name, os.getxattr(target, name))
    for name in set(present) - set(wanted):  # a default ACL of the folder, for one
        with contextlib.suppress(OSError):
            os.removexattr(fd, name)


def copy_content(source: int, target: int) -> None:
    """Copy all bytes between two open files, both at their start: a reflink, else in the kernel, else by hand."""
    status = os.fstat(source)
    if status.st_size >= SMALL and _clone(source, target):
        return
    copy_rest(source, target, status.st_size)


def copy_rest(source: int, target: int, size: int) -> None:
    """Copy what follows the positions of two open files, about `size` bytes: in the kernel, else by hand."""
    if size >= SMALL and sys.platform == "linux" and not _on_tmpfs(os.fstat(source).st_dev):
        _copy_ranges(source, target)  # on tmpfs it is slower than by hand
    while chunk := os.read(source, CHUNK):  # whatever is left, from where the kernel stopped
        write_all(target, chunk)


def _clone(source: int, target: int) -> bool:
    if fcntl is None or sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return False
    return True


def _copy_ranges(source: int, target: int) -> None:
    if sys.platform != "linux":
        return
    try:
        while os.copy_file_range(source, target, 1 << 30):
            pass
    except OSError as error:
        if error.errno not in CANNOT_COPY_RANGE:
            raise


@functools.lru_cache(maxsize=64)
def _on_tmpfs(device: int) -> bool:
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:  # 36 35 98:0 /root /mount options [optional fields] - type source options
                fields, _, kind = line.partition(" - ")
                if fields.split(" ", 3)[2] == name:
                    return kind.startswith("tmpfs ")
    except (OSError, IndexError):
        return False
    return False


def create(file: str, mode: int = 0o600) -> int:
    """Create a file that must not exist yet, readable and writable through the descriptor."""
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW | FLAGS, mode)


# --- whole files -----------------------------------------------------------------------------------------------------


def publish(source: str, target: str, *, durable: bool) -> None:
    """Rename a finished file over the target and flush the folder.

    Raises OSError when the target was left as it was, InDoubt when it was replaced but the flush failed.
    """
    # Opened before the rename: a folder that cannot be opened must be noticed while nothing has happened yet.
    folder = open_folder(os.path.dirname(target)) if durable else None
    try:
        os.replace(source, target)
        _settle(folder, target, "replaced")
    finally:
        close(folder)


def withdraw(target: str, *, durable: bool) -> None:
    """Delete the target and flush the folder; raises like `publish`."""
    folder = open_folder(os.path.dirname(target)) if durable else None
    try:
        os.unlink(target)
        _settle(folder, target, "deleted")
    finally:
        close(folder)


def _settle(folder: int | None, target: str, done: str) -> None:
    try:
        flush_folder(folder)
    except OSError as error:
        raise InDoubt(
            f"{target} was {done}, but its folder could not be flushed ({error.strerror or error}): the change is "
            "visible now and may be undone by a power loss. Check the disk, then write the file once more.",
            record=None,
            resources=(target,),
        ) from error


def atomic_write(file: str | os.PathLike[str], data: bytes | str, *, durable: bool = True) -> None:
    """Replace the whole content of a file; readers, crashes and power losses see the old content or the new.

    A symbolic link stays and the file that it points at is replaced. An existing file keeps its mode, owner and
    extended attributes (owner and attributes as far as this process may set them); a new one is created like any
    other (0666 less the umask). `data` of type str is written as UTF-8, its line ends as they are. The folder must
    exist.

    `durable=False` skips the flushes: still all or nothing when the process dies, but a power loss shortly
    afterwards may lose the new content, on some file systems the old one too.

    Two writers at once do not mix, but the last one wins: guard the read, the computation and the write together.

    Returns None. Raises OSError (its usual subclass and errno) when nothing was written: the file is hard-linked,
    no regular file, or the disk refused; InDoubt when the file was replaced but could not be made durable. Blocks
    for the flushes (a millisecond or more); cannot be cancelled half-way.
    """
    content = data.encode() if isinstance(data, str) else data
    target, status = replaceable(os.fspath(file))
    temp = os.path.join(os.path.dirname(target), temp_name(secrets.token_hex(8)))
    try:
        # Private until it has the target's permissions. A new file shows nothing in between that it will not show
        # afterwards, so the kernel applies umask and default ACL: reading the umask would mean changing it.
        fd = create(temp, 0o666 if status is None else 0o600)
        try:
            write_all(fd, content)
            if status is not None:
                adopt(fd, target, status)
            if durable:
                flush(fd)
        finally:
            os.close(fd)  # not flushed, a network file system may say only here that the disk is full
        publish(temp, target, durable=durable)
    except InDoubt:
        raise
    except OSError as error:
        _discard(temp)
        raise unchanged(error, [target]) from error
    except BaseException:
        _discard(temp)
        raise


def _discard(temp: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(temp)


def snapshot(source: Path, target: Path) -> bool:
    """Copy a file, as fast as the file system can: shared blocks where it can, else inside the kernel, else by hand.

    The copy is private while it is made and has the permissions of the source in the end. `target` must not exist,
    its folder must. Symbolic links in `source` are followed. Nothing is flushed.

    Returns True, or False when `source` does not exist. Raises OSError: IsADirectoryError, errno EINVAL for a pipe
    or device, FileExistsError, or what the disk says; then there is no target.
    """
    name = os.path.realpath(source)
    if regular(name) is None:
        return False
    try:
        origin = os.open(name, os.O_RDONLY | NOFOLLOW | FLAGS)
    except FileNotFoundError:
        return False
    try:
        copy = create(os.fspath(target))
        try:
            try:
                copy_content(origin, copy)
                if POSIX:
                    os.fchmod(copy, stat.S_IMODE(os.fstat(origin).st_mode) & 0o777)
            finally:
                os.close(copy)
        except BaseException:
            _discard(os.fspath(target))
            raise
    finally:
        close(origin)
    return True
