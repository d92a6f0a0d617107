"""Lock files: what other processes, other programs and a full or foreign disk do to them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from locks_support import file_of, staged, use

from agentguard.exceptions import ConfigError, LockLost
from agentguard.locks import FileBackend, LockTable, Mode, await_, filesystem, record, table_for, wait
from agentguard.locks import file as file_module
from agentguard.locks import granting as granting_module
from agentguard.locks.domain import Domain
from agentguard.locks.keyfile import KeyFile
from agentguard.locks.native import EXCLUSIVE, SHARED, UNLOCK, Flock, Polled
from agentguard.testing import caller, in_fork

IS, IX, S, X = Mode
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork or flock")


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


# -- the folder and the files --------------------------------------------------------------------------------------


def test_what_is_made_is_private(folder: Path, open_table: Callable[[], LockTable]) -> None:
    use(open_table())
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(folder, "db:a").stat().st_mode) == 0o600


@pytest.mark.parametrize("key", ["db:../../etc/passwd", "db:" + "x" * 5000, "db:\0\n/", "db:ä\udcff", "db:"])
def test_a_key_is_never_a_path(folder: Path, open_table: Callable[[], LockTable], key: str) -> None:
    table, other = open_table(), open_table()
    held = table.request(caller(), key, X)
    assert {path.name.removesuffix(".dir") for path in folder.iterdir()} == {record.file_name(key)}
    assert [holder.key for holder in other.scan()] == [key]
    table.release(held)


def test_one_table_for_every_spelling_of_a_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    alias = folder.parent.parent / "alias"
    alias.symlink_to(folder.parent)
    one = table_for(folder)
    assert table_for(alias / "locks") is one
    assert table_for(folder / ".." / "locks") is one
    one.close()
    one.close()
    assert one.request(caller(), "db:a", X).granted, "one user is left"
    one.close()
    other = table_for(folder)
    assert other is not one
    other.close()


def test_a_folder_that_is_a_symbolic_link_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        table_for(folder)


def test_a_folder_that_is_a_file_is_refused(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("")
    with pytest.raises(ConfigError, match="no directory"):
        table_for(folder)


@posix
def test_a_folder_of_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    owner = folder.stat().st_uid
    if owner == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        table_for(folder)


def test_a_folder_that_is_not_writable_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="not writable"):
        table_for(folder)


@posix
def test_a_link_planted_in_place_of_a_lock_file_is_refused(
    folder: Path, tmp_path: Path, open_table: Callable[[], LockTable]
) -> None:
    table = open_table()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    file_of(folder, "db:a").symlink_to(victim)
    with pytest.raises(ConfigError, match="symbolic link"):
        table.request(caller(), "db:a", X)
    assert victim.read_text() == "precious"
    assert table.statistics().keys == ()
    file_of(folder, "db:a").unlink()
    use(table)


@posix
def test_a_link_planted_for_the_turnstile_reaches_the_waiter(
    folder: Path, tmp_path: Path, open_table: Callable[[], LockTable]
) -> None:
    one, two = open_table(), open_table()
    held = one.request(caller(), "db:a", X)
    (folder / (record.file_name("db:a") + ".next")).symlink_to(tmp_path / "victim")
    waiting = two.request(caller(), "db:a", X)
    with pytest.raises(ConfigError, match="symbolic link"):
        wait(waiting, 20)
    two.release(waiting)
    assert not (tmp_path / "victim").exists()
    one.release(held)


@posix
def test_a_pipe_planted_in_place_of_a_lock_file_is_refused(folder: Path, open_table: Callable[[], LockTable]) -> None:
    table = open_table()
    os.mkfifo(file_of(folder, "db:a"))
    with pytest.raises(ConfigError, match="not a regular file"):
        table.request(caller(), "db:a", X)


class Refusing(Flock):
    """A file system without locks."""

    def __init__(self, number: int) -> None:
        def flock(fd: int, operation: int) -> None:
            if operation != UNLOCK:
                raise OSError(number, os.strerror(number))

        self.flock = flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused(folder: Path, number: int) -> None:
    table = LockTable(FileBackend(folder, Refusing(number)))
    with pytest.raises(ConfigError, match="has no file locks"):
        table.request(caller(), "db:a", X)
    table.close()


MOUNTS = r"""22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 28 0:35 / /net rw shared:9 - nfs4 server:/export rw,vers=4.2
41 40 8:1 / /net/local\040disk rw - xfs /dev/sda1 rw
42 28 0:36 / /twice rw - ext4 /dev/sdb rw
43 28 0:37 / /twice rw - fuse.sshfs me@there:/ rw
bad line
44 28 0:38
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/home/me", "ext4"),
        ("/net", "nfs4"),
        ("/net/deep/er", "nfs4"),
        ("/network", "ext4"),
        ("/net/local disk/x", "xfs"),
        ("/twice/x", "fuse.sshfs"),
    ],
)
def test_what_a_folder_is_on(tmp_path: Path, folder: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert filesystem.kind_of(Path(folder), str(mounts)) == kind
    assert filesystem.kind_of(Path(folder), str(tmp_path / "missing")) == ""


def test_a_network_file_system_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "kind_of", lambda _: "nfs4")
    with pytest.raises(ConfigError, match=r"network file system \(nfs4\).*disk of this machine"):
        table_for(folder)


def test_where_files_are_not_mapped_all_is_the_same(
    folder: Path, open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = open_table()
    monkeypatch.setattr(file_module, "kind_of", lambda _: "btrfs")
    plain = open_table()
    tokens = [use(table) for table in (mapped, plain, plain, mapped, mapped, plain, plain, mapped)]
    assert tokens == sorted(set(tokens))
    for one, two in ((mapped, plain), (plain, mapped)):
        held = one.request(caller("me"), "db:a", X)
        (holder,) = two.holders("db:a")
        assert (holder.agent, holder.token) == ("me", held.token)
        waiting = two.request(caller(), "db:a", X)
        staged(folder)
        one.release(held)
        assert wait(waiting, 20)
        two.release(waiting)
    assert mapped._backend.maps  # type: ignore[union-attr]
    assert not plain._backend.maps  # type: ignore[union-attr]


def test_an_emptied_file_is_not_touched_in_memory(folder: Path, open_table: Callable[[], LockTable]) -> None:
    """Touching a page that is no longer in the file would kill the process: at every moment the file is asked first."""
    table, other = open_table(), open_table()
    last = [use(table) for _ in range(3)][-1]
    path = file_of(folder, "db:a")
    assert table._backend.maps  # type: ignore[union-attr]

    def empty() -> None:
        os.truncate(path, 0)

    empty()
    held = table.request(caller(), "db:a", X)
    assert held.token > last
    empty()
    local = table.request(caller(), "db:a", X)
    table.release(held)
    assert local.granted, "handed on within the process, and stamped in an empty file"
    assert local.token > held.token
    empty()
    waiting = other.request(caller(), "db:a", X)
    staged(folder)
    empty()
    table._domains["db:a"].taken -= 1.0
    again = table.request(caller(), "db:a", S)
    empty()
    table.release(local)
    if again.granted:  # the mark of who is queued went with the rest: the order is lost, and nothing else
        table.release(again)
    assert wait(waiting, 20)
    assert waiting.token > local.token
    empty()
    other.release(waiting)
    assert wait(again, 20) or again.queue is None
    table.release(again)
    assert use(other) > waiting.token


@pytest.mark.parametrize("remove", [False, True])
def test_a_lock_file_that_was_replaced_is_opened_anew(
    folder: Path, open_table: Callable[[], LockTable], remove: bool
) -> None:
    one, two = open_table(), open_table()
    first = use(one)
    path = file_of(folder, "db:a")
    if remove:
        path.unlink()
    else:
        path.rename(path.with_name("aside"))
    held = one.request(caller(), "db:a", X)
    assert held.granted
    assert held.token > first, "a new file does not bring old tokens back"
    assert not two.request(caller(), "db:a", X).granted
    one.release(held)


@pytest.mark.parametrize("mode", [X, S])
def test_a_lock_that_was_lost_is_handed_on_to_nobody(
    folder: Path, open_table: Callable[[], LockTable], mode: Mode
) -> None:
    """Within one process neither: the next one there would not exclude those who found the new file."""
    one, two = open_table(), open_table()
    first = one.request(caller(), "db:a", mode)
    second = one.request(caller(), "db:a", X)
    file_of(folder, "db:a").unlink()
    other = two.request(caller(), "db:a", X)
    assert other.granted
    joining = one.request(caller(), "db:a", mode)
    one.release(first)
    assert not wait(second, 0.01)
    assert not joining.granted
    two.release(other)
    assert wait(second, 20)
    one.verify(second)
    one.release(second)
    assert wait(joining, 20)
    one.verify(joining)


def test_without_the_inode_check_there_are_two_holders(
    folder: Path, open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyFile, "_current", lambda self: True)
    one, two = open_table(), open_table()
    use(one)
    file_of(folder, "db:a").unlink()
    assert one.request(caller(), "db:a", X).granted
    assert two.request(caller(), "db:a", X).granted, "the check above is what forbids this"


def test_a_waiter_notices_that_the_file_was_replaced(folder: Path, open_table: Callable[[], LockTable]) -> None:
    one, two, three = open_table(), open_table(), open_table()
    held = one.request(caller(), "db:a", X)
    waiting = two.request(caller(), "db:a", X)
    staged(folder)
    file_of(folder, "db:a").unlink()
    new = three.request(caller(), "db:a", X)
    assert new.granted, "nobody can know of the old file any more"
    with pytest.raises(LockLost):
        one.verify(held)
    one.release(held)
    assert not wait(waiting, 0.05), "it got the old file's lock, which excludes nobody"
    three.release(new)
    assert wait(waiting, 20)
    two.verify(waiting)
    two.release(waiting)


def test_a_removed_folder_is_made_again(folder: Path, open_table: Callable[[], LockTable]) -> None:
    table = open_table()
    use(table)
    file_of(folder, "db:a").unlink()
    folder.rmdir()
    use(table)
    assert file_of(folder, "db:a").exists()


def test_an_emptied_file_goes_on_with_higher_tokens(folder: Path, open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    first = use(one)
    file_of(folder, "db:a").write_bytes(b"")
    second = use(one)
    assert first < second < use(two)
    held = two.request(caller(), "db:a", X)
    assert [holder.key for holder in one.scan()] == ["db:a"]
    two.release(held)


def test_garbage_in_a_lock_file_is_nobodys_problem(folder: Path, open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    held = one.request(caller(), "db:a", X)
    path = file_of(folder, "db:a")
    content = path.read_bytes()
    path.write_bytes(content[:40] + b"\xff" * 100 + content[140:])
    (holder,) = two.holders("db:a")
    assert str(holder)
    path.write_bytes(b"\xff" * 2000)
    assert two.holders("db:a") == ()
    one.release(held)


def test_a_token_does_not_fall_back_after_a_power_cut(
    folder: Path, open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = use(open_table())
    kept = file_of(folder, "db:a").read_bytes()
    last = [use(open_table()) for _ in range(3)][-1]
    assert last == first + 3
    file_of(folder, "db:a").write_bytes(kept)  # what was not on the disk yet is gone
    monkeypatch.setattr(record, "BOOT", record.BOOT ^ 1)
    assert use(open_table()) > last


# -- other processes -----------------------------------------------------------------------------------------------


def test_nobody_passes_a_waiting_process(folder: Path, open_table: Callable[[], LockTable]) -> None:
    one, two, three = open_table(), open_table(), open_table()
    reader = one.request(caller(), "db:a", S)
    writer = two.request(caller(), "db:a", X)
    staged(folder)
    late = three.request(caller(), "db:a", S)
    assert not late.granted, "a reader that came later would keep the writer waiting"
    one.release(reader)
    assert wait(writer, 20)
    assert not late.granted
    two.release(writer)
    assert wait(late, 20)
    three.release(late)


def test_without_the_turnstile_a_waiting_process_is_passed(
    folder: Path, open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = open_table(), open_table(), open_table()
    reader = one.request(caller(), "db:a", S)
    writer = two.request(caller(), "db:a", X)
    staged(folder)
    head = KeyFile._head
    monkeypatch.setattr(KeyFile, "_head", lambda self: (head(self), False)[1])
    late = three.request(caller(), "db:a", S)
    assert late.granted, "the test above relies on the turnstile"
    one.release(reader)
    assert not writer.granted
    three.release(late)
    assert wait(writer, 20)
    two.release(writer)


def test_one_process_does_not_keep_the_key_for_itself(
    folder: Path, open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its time is over, a process with waiters of its own lets another process in first."""
    one, two = open_table(), open_table()
    for mode in (X, S):
        first = one.request(caller(), "db:a", mode)
        foreign = two.request(caller(), "db:a", X)
        staged(folder)
        domain = one._domains["db:a"]
        domain.taken -= 1.0
        local = one.request(caller(), "db:a", mode)
        assert not local.granted
        one.release(first)
        assert wait(foreign, 20)
        assert not local.granted
        two.release(foreign)
        assert wait(local, 20)
        one.release(local)


def test_a_process_may_go_on_for_a_moment(folder: Path, open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    first = one.request(caller(), "db:a", X)
    local = one.request(caller(), "db:a", X)
    foreign = two.request(caller(), "db:a", X)
    staged(folder)
    one._domains["db:a"].taken += 1e6
    one.release(first)
    assert local.granted
    one._domains["db:a"].taken -= 2e6
    one.release(local)
    assert wait(foreign, 20)
    two.release(foreign)


def test_the_mark_of_a_waiter_that_died_is_wiped(folder: Path, open_table: Callable[[], LockTable]) -> None:
    table = open_table()
    use(table)
    with file_of(folder, "db:a").open("r+b") as file:
        file.seek(record.QUEUED)
        file.write(b"\1")
    assert table.request(caller(), "db:a", S).granted
    assert file_of(folder, "db:a").read_bytes()[record.QUEUED] == 0


@posix
def test_after_a_fork_the_parents_death_frees_its_locks(folder: Path) -> None:
    """The child must not keep the parent's descriptors: they would hold the parent's lock after its death."""
    code = """if True:
        import os, signal, sys, time
        from pathlib import Path
        from agentguard.locks import *
        table = LockTable(FileBackend(Path(sys.argv[1])))
        owner = Owner("parent", "r", "t")
        held = [table.request(Claim(owner), key, Mode.EXCLUSIVE) for key in ("db:a", "db:b")]
        assert all(ticket.granted for ticket in held)
        child = os.fork()
        if child == 0:
            print(os.getpid(), flush=True)
            sys.stdin.readline()  # as long as the test wants
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline())
        process.wait(20)
        table = LockTable(FileBackend(folder))
        for key in ("db:a", "db:b"):
            use(table, key)
        assert table.holders("db:a") == ()
        table.close()
        process.communicate("\n")


@posix
def test_a_fork_while_waiting_leaves_the_wait_to_the_parent(open_table: Callable[[], LockTable]) -> None:
    one, two = open_table(), open_table()
    held = one.request(caller(), "db:a", X)
    waiting = two.request(caller(), "db:a", X)

    def child() -> None:
        assert not waiting.granted
        two.release(waiting)
        mine = two.request(caller(), "db:a", X)
        assert not wait(mine, 0.01)
        two.release(mine)
        other = two.request(caller(), "db:b", X)
        assert other.granted
        two.release(other)

    assert in_fork(child) == 0
    one.release(held)
    assert wait(waiting, 20)
    two.release(waiting)


@posix
def test_forks_beside_threads_at_work(open_table: Callable[[], LockTable]) -> None:
    table, other = open_table(), open_table()
    done = threading.Event()

    def work(mine: LockTable) -> None:
        while not done.is_set():
            use(mine)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in (table, other, table)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert in_fork(lambda: use(table) and None) == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_spawned_process_excludes_and_describes_itself(folder: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from agentguard.locks import *
        table = table_for(Path(sys.argv[1]))
        ticket = table.request(Claim(Owner("me", "r", "writing")), "db:a", Mode.EXCLUSIVE)
        shared = table.request(Claim(Owner("reader", "r", "reading")), "db:b", Mode.SHARED)
        print(ticket.token, flush=True)
        sys.stdin.readline()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        token = int(process.stdout.readline())
        table = LockTable(FileBackend(folder))
        waiting = table.request(caller(), "db:a", X)
        assert not wait(waiting, 0)
        (holder,) = table.blockers(waiting)
        assert (holder.agent, holder.tool, holder.pid, holder.token) == ("me", "writing", process.pid, token)
        assert [(h.key, h.mode, h.agent) for h in sorted(table.scan(), key=str)] == [
            ("db:a", X, "me"),
            ("db:b", S, "reader"),
        ]
        process.communicate("\n")
        assert wait(waiting, 20)
        assert waiting.token > token
        assert [holder.agent for holder in table.scan()] == ["agent"]
        table.release(waiting)
        assert table.scan() == ()
        table.close()


# -- running out ---------------------------------------------------------------------------------------------------


def test_idle_descriptors_are_closed(open_table: Callable[[], LockTable]) -> None:
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    table = open_table()
    for number in range(3 * granting_module.IDLE):
        use(table, f"db:{number}")
    assert sum(domain.lock is not None for domain in table._domains.values()) <= granting_module.IDLE
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) - before < granting_module.IDLE + 60


@posix
def test_out_of_descriptors_it_gets_slower_not_wrong(folder: Path) -> None:
    code = """if True:
        import os, resource, sys
        from pathlib import Path
        from agentguard.locks import *
        table = LockTable(FileBackend(Path(sys.argv[1])))
        owner = Owner("a", "r", "t")
        for number in range(20):
            table.release(table.request(Claim(owner), f"db:{number}", Mode.EXCLUSIVE))
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        other = []
        try:
            while True:
                other.append(os.open("/", os.O_RDONLY))
        except OSError:
            pass
        held = table.request(Claim(owner), "db:new", Mode.EXCLUSIVE)
        assert held.granted, "idle descriptors make room"
        try:
            while True:
                other.append(os.open("/", os.O_RDONLY))
        except OSError:
            pass
        late = table.request(Claim(owner), "db:more", Mode.EXCLUSIVE)
        assert not late.granted
        os.close(other.pop())
        os.close(other.pop())
        assert wait(late, 20)
        table.verify(late)
        table.release(late)
        table.release(held)
        print("fine")
    """
    done = python(code, folder)
    assert done.stdout == "fine\n", done.stderr


def test_a_disk_error_reaches_the_caller(open_table: Callable[[], LockTable], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = open_table(), open_table()
    use(one)

    def broken(self: KeyFile, owner: object, changes: bool) -> int:
        raise OSError(errno.EIO, "broken disk")

    with monkeypatch.context() as patch:
        patch.setattr(KeyFile, "stamp", broken)
        with pytest.raises(OSError, match="broken disk"):
            one.request(caller(), "db:a", X)
        reader = one.request(caller(), "db:a", S)
        waiting = one.request(caller(), "db:a", X)
        one.release(reader)
        with pytest.raises(OSError, match="broken disk"):
            wait(waiting, 20)
        one.release(waiting)
    use(two)
    use(one)


# -- the platform --------------------------------------------------------------------------------------------------


def test_polled_locks_give_up_when_nobody_waits_any_more(folder: Path) -> None:
    one, two = (LockTable(FileBackend(folder, Polled())) for _ in range(2))
    held = one.request(caller(), "db:a", X)
    gone = two.request(caller(), "db:a", X)
    assert not wait(gone, 0.01)
    two.release(gone)
    domain = two._domains["db:a"]
    assert isinstance(domain, Domain)
    for _ in range(1_000_000):
        if not domain.pumping:
            break
        os.sched_yield()
    assert not domain.pumping
    one.release(held)
    use(two)
    for table in (one, two):
        table.close()


def test_polled_and_kernel_locks_exclude_each_other(folder: Path) -> None:
    polled, kernel = LockTable(FileBackend(folder, Polled())), LockTable(FileBackend(folder))
    for one, two in ((polled, kernel), (kernel, polled)):
        held = one.request(caller(), "db:a", X)
        waiting = two.request(caller(), "db:a", X)
        assert not wait(waiting, 0.001)
        one.release(held)
        assert wait(waiting, 20)
        two.release(waiting)
    polled.close()
    kernel.close()


def test_nothing_is_imported_that_is_missing_elsewhere() -> None:
    code = """if True:
        import sys
        import filelock  # which needs what the platform has
        sys.modules["fcntl"] = None
        import os
        for name in ("pread", "pwrite", "register_at_fork", "fork", "geteuid", "O_NOFOLLOW", "O_CLOEXEC"):
            delattr(os, name)
        import tempfile
        from pathlib import Path
        from agentguard.locks import *
        with tempfile.TemporaryDirectory() as folder:
            one, two = (LockTable(FileBackend(Path(folder) / "locks")) for _ in range(2))
            owner = Owner("a", "r", "t")
            held = one.request(Claim(owner), "db:a", Mode.EXCLUSIVE)
            waiting = two.request(Claim(owner), "db:a", Mode.EXCLUSIVE)
            assert held.granted and not waiting.granted
            one.release(held)
            assert wait(waiting, 20) and waiting.token > held.token
            two.release(waiting)
            one.close()
            two.close()
        print("fine")
    """
    done = python(code)
    assert done.stdout == "fine\n", done.stderr


def test_operations_are_those_of_flock() -> None:
    fcntl = pytest.importorskip("fcntl")
    from agentguard.locks.native import AT_ONCE

    assert (SHARED, EXCLUSIVE, AT_ONCE, UNLOCK) == (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN)


def test_a_loop_that_was_closed_is_no_obstacle(open_table: Callable[[], LockTable]) -> None:
    import asyncio

    table = open_table()
    held = table.request(caller(), "db:a", X)
    abandoned = table.request(caller(), "db:a", X)
    loop = asyncio.new_event_loop()
    task = loop.create_task(await_(abandoned, None))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    table.release(held)
    assert abandoned.granted
    table.release(abandoned)
    use(table)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
