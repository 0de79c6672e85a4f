"""What a notebook may hold: for each kind of state a cell that makes it and one that checks it.

All are made in one kernel, which is saved once; the second cell then runs in the kernel that went
on and in the one that was resumed. It raises if anything is not as it was, or does not go on.
Names of variables begin with the name of the state: they share one kernel.
"""

from __future__ import annotations

from typing import NamedTuple


class State(NamedTuple):
    name: str
    make: str
    check: str


#: Run first, in the same kernel.
PRELUDE = """
import os, sys, time

def eventually(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
    return value
"""

STATES = [
    State(
        "variables",
        """
variables = {"int": 2**200, "text": "süß\\0", "set": {1, (2, 3)}, "bytes": bytearray(b"ab")}
variables["self"] = variables
variables_alias = variables["set"]
os.environ["VARIABLES"] = "here"
os.chdir("/tmp")
variables_umask = os.umask(0o027)
""",
        """
assert variables["int"] == 2**200 and variables["text"] == "süß\\0"
assert variables["self"] is variables and variables_alias is variables["set"]
assert variables_alias == {1, (2, 3)} and variables["bytes"] == b"ab"
assert os.environ["VARIABLES"] == "here" and os.getcwd() == "/tmp"
assert os.umask(0o027) == 0o027
""",
    ),
    State(
        "stopped process",
        """
import signal, subprocess
def stopped_state():
    with open(f"/proc/{stopped_process.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
stopped_process = subprocess.Popen(["sh", "-c", "while :; do sleep 0.01; done"])
os.kill(stopped_process.pid, signal.SIGSTOP)
eventually(lambda: stopped_state() == "T")
""",
        """
assert stopped_state() == "T" and stopped_process.poll() is None
os.kill(stopped_process.pid, signal.SIGCONT)
eventually(lambda: stopped_state() != "T")
stopped_process.kill()
assert stopped_process.wait() == -signal.SIGKILL
""",
    ),
    State(
        "functions",
        """
import functools
def functions_counter(step):
    n = 0
    def count():
        nonlocal n
        n += step
        return n
    return count
functions_count = functions_counter(3)
functions_count()
@functools.cache
def functions_cached(x):
    return object()
functions_object = functions_cached(1)
""",
        """
assert functions_count() == 6 and functions_count() == 9
assert functions_cached(1) is functions_object
""",
    ),
    State(
        "classes",
        """
import dataclasses, enum, weakref
class ClassesColour(enum.Enum):
    RED = 1
@dataclasses.dataclass
class ClassesPoint:
    x: int
    colour: ClassesColour = ClassesColour.RED
    made = 0
    def __post_init__(self):
        type(self).made += 1
classes_point = ClassesPoint(4)
classes_gone = []
weakref.finalize(classes_point, classes_gone.append, "point")
classes_weak = weakref.ref(classes_point)
""",
        """
assert classes_weak() is classes_point and classes_point == ClassesPoint(4)
assert ClassesPoint.made == 2 and classes_point.colour is ClassesColour.RED
del classes_point
assert classes_weak() is None and classes_gone == ["point"]
""",
    ),
    State(
        "modules",
        """
import importlib
os.makedirs("/root/modules", exist_ok=True)
with open("/root/modules/modules_own.py", "w") as file:
    file.write("calls = 0\\ndef call():\\n    global calls\\n    calls += 1\\n    return calls\\n")
sys.path.append("/root/modules")
importlib.invalidate_caches()
import modules_own
modules_own.call()
modules_id = id(modules_own)
""",
        """
import modules_own as modules_again
assert id(modules_again) == modules_id and modules_again.call() == 2
import json.tool, colorsys
""",
    ),
    State(
        "generators",
        """
import itertools
def generators_squares():
    try:
        for n in itertools.count():
            yield n * n
    finally:
        generators_closed.append(n)
generators_closed = []
generators_one = generators_squares()
generators_before = [next(generators_one) for _ in range(5)]
async def generators_async():
    for n in range(10):
        yield n
generators_two = generators_async()
await anext(generators_two)
""",
        """
assert [next(generators_one) for _ in range(3)] == [25, 36, 49]
generators_one.close()
assert generators_closed == [7] and await anext(generators_two) == 1
""",
    ),
    State(
        "threads",
        """
import queue, threading
threads_ticks, threads_asked, threads_answered = 0, queue.Queue(), queue.Queue()
threads_local, threads_lock = threading.local(), threading.Lock()
threads_local.name = "main"
threads_lock.acquire()
def threads_tick():
    global threads_ticks
    while True:
        threads_ticks += 1
        time.sleep(0.001)
def threads_answer():
    threads_local.name = "answering"
    while True:
        threads_answered.put((threads_asked.get(), threads_local.name))
def threads_wait():
    with threads_lock:
        threads_answered.put("the lock")
threads_all = [
    threading.Thread(target=target, daemon=True)
    for target in (threads_tick, threads_answer, threads_wait)
]
for thread in threads_all:
    thread.start()
threads_many = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(50)]
for thread in threads_many:
    thread.start()
eventually(lambda: threads_ticks > 10)
threads_saved = threads_ticks
threads_ids = [thread.native_id for thread in threads_all]
""",
        """
assert threads_ticks >= threads_saved
threads_now = threads_ticks
eventually(lambda: threads_ticks > threads_now + 10)
threads_asked.put("?")
assert threads_answered.get(timeout=20) == ("?", "answering") and threads_local.name == "main"
assert threads_all[2].is_alive()
threads_lock.release()
assert threads_answered.get(timeout=20) == "the lock"
assert [thread.native_id for thread in threads_all] == threads_ids
assert all(thread.is_alive() for thread in threads_many)
""",
    ),
    State(
        "asyncio",
        """
import asyncio
asyncio_ticks, asyncio_queue = 0, asyncio.Queue()
async def asyncio_tick():
    global asyncio_ticks
    while True:
        asyncio_ticks += 1
        await asyncio.sleep(0.005)
async def asyncio_get():
    return await asyncio_queue.get()
asyncio_ticking = asyncio.create_task(asyncio_tick())
asyncio_getting = asyncio.create_task(asyncio_get())
asyncio_server = await asyncio.start_server(lambda r, w: w.write(b"hi"), "127.0.0.1", 0)
await asyncio.sleep(0.02)
""",
        """
asyncio_now = asyncio_ticks
await asyncio.sleep(0.2)
assert asyncio_ticks > asyncio_now and not asyncio_getting.done()
asyncio_queue.put_nowait("got")
assert await asyncio.wait_for(asyncio_getting, 20) == "got"
asyncio_reader, asyncio_writer = await asyncio.open_connection(
    *asyncio_server.sockets[0].getsockname()
)
assert await asyncio.wait_for(asyncio_reader.readexactly(2), 20) == b"hi"
asyncio_writer.close()
""",
    ),
    State(
        "open file half written",
        """
import fcntl
file_half = open("/root/half.txt", "w")
file_half.write("flushed;")
file_half.flush()
file_half.write("buffered;")
file_log = open("/root/log.txt", "ab", buffering=0)
file_log.write(b"one\\n")
file_log_size = os.stat("/root/log.txt").st_size
with open("/root/records", "wb") as file:
    file.write(b"0123456789")
file_records = open("/root/records", "r+b")
file_records.seek(4)
fcntl.flock(file_records, fcntl.LOCK_EX)
file_inode = os.fstat(file_records.fileno()).st_ino
""",
        """
file_half.write("after")
file_half.close()
assert open("/root/half.txt").read() == "flushed;buffered;after"
file_log.write(b"two\\n")
assert open("/root/log.txt", "rb").read() == b"one\\ntwo\\n"
assert file_records.tell() == 4 and file_records.read(2) == b"45"
file_records.write(b"!")
file_records.flush()
assert open("/root/records", "rb").read() == b"012345!789"
assert file_inode == os.stat("/root/records").st_ino
with open("/root/records") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise AssertionError("the lock was lost")
    except BlockingIOError:
        pass
""",
    ),
    State(
        "child process",
        """
import signal, subprocess
child = subprocess.Popen(
    ["sh", "-c", "n=7; while read line && [ $line != quit ]; do n=$((n+1)); echo $n $line; done"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
)
print("one", file=child.stdin)
assert child.stdout.readline() == "8 one\\n"
print("unread", file=child.stdin)
child_pid = child.pid
child_dead = subprocess.Popen(["true"])
child_grand = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE)
child_grand_pid = int(child_grand.stdout.readline())
child_heard = []
signal.signal(signal.SIGUSR1, lambda *_: child_heard.append("usr1"))
eventually(lambda: open(f"/proc/{child_dead.pid}/stat").read().split()[2] == "Z")
""",
        """
assert child.poll() is None and child.pid == child_pid
print("after", file=child.stdin)
assert child.stdout.readline() == "9 unread\\n" and child.stdout.readline() == "10 after\\n"
print("quit", file=child.stdin)
assert child.wait(20) == 0 and child_dead.wait(20) == 0
os.kill(child_grand_pid, signal.SIGTERM)
assert child_grand.wait(20) == 0
os.kill(os.getpid(), signal.SIGUSR1)
eventually(lambda: child_heard == ["usr1"])
""",
    ),
    State(
        "multiprocessing pool (fork)",
        """
import multiprocessing
def fork_work(x):
    return os.getpid(), x * x + fork_offset
fork_offset = 1000
fork_pool = multiprocessing.get_context("fork").Pool(2)
fork_pids = {pid for pid, _ in fork_pool.map(fork_work, range(50))}
fork_value = multiprocessing.get_context("fork").Value("i", 5)
""",
        """
fork_results = fork_pool.map(fork_work, range(50))
assert [value for _, value in fork_results] == [x * x + 1000 for x in range(50)]
assert {pid for pid, _ in fork_results} <= {worker.pid for worker in fork_pool._pool}
with fork_value.get_lock():
    assert fork_value.value == 5
fork_pool.close()
fork_pool.join()
""",
    ),
    State(
        "multiprocessing pool (spawn)",
        """
import importlib, multiprocessing
os.makedirs("/root/spawn", exist_ok=True)
with open("/root/spawn/spawn_work.py", "w") as file:
    file.write("import os, time\\ndef work(x):\\n    return os.getpid(), x + 1\\n"
               "def wait(path):\\n    while not os.path.exists(path):\\n"
               "        time.sleep(0.005)\\n    return path\\n")
sys.path.append("/root/spawn")
importlib.invalidate_caches()
import spawn_work
spawn_context = multiprocessing.get_context("spawn")
spawn_pool = spawn_context.Pool(2)
assert [x for _, x in spawn_pool.map(spawn_work.work, range(9))] == list(range(1, 10))
spawn_pids = {worker.pid for worker in spawn_pool._pool}
spawn_pending = spawn_pool.apply_async(spawn_work.wait, ("/root/spawn/go",))
spawn_queue = spawn_context.Queue()
spawn_queue.put("queued")
""",
        """
assert not spawn_pending.ready()
open("/root/spawn/go", "w").close()
assert spawn_pending.get(20) == "/root/spawn/go"
assert {pid for pid, _ in spawn_pool.map(spawn_work.work, range(50))} <= spawn_pids
assert spawn_queue.get(timeout=20) == "queued"
spawn_pool.terminate()
spawn_pool.join()
""",
    ),
    State(
        "shared memory",
        """
import mmap
from multiprocessing import shared_memory
import numpy as np
shared = shared_memory.SharedMemory(create=True, size=2**20)
shared_array = np.ndarray((2**18,), dtype=np.int32, buffer=shared.buf)
shared_array[:] = np.arange(2**18)
shared_anonymous = mmap.mmap(-1, 4096)
shared_ready, shared_go = os.pipe(), os.pipe()
shared_child = os.fork()
if shared_child == 0:
    try:
        os.read(shared_go[0], 1)
        shared_array[0] = shared_anonymous[0] + 1
        shared_anonymous[1] = 99
        os.write(shared_ready[1], b"!")
    finally:
        os._exit(0)
shared_anonymous[0] = 41
""",
        """
assert shared_array[1:].tolist() == list(range(1, 2**18))
os.write(shared_go[1], b"!")
assert os.read(shared_ready[0], 1) == b"!"
assert shared_array[0] == 42 and shared_anonymous[1] == 99
assert os.waitpid(shared_child, 0) == (shared_child, 0)
other = shared_memory.SharedMemory(shared.name)
assert bytes(other.buf[:4]) == (42).to_bytes(4, "little")
other.close()
""",
    ),
    State(
        "terminal with a shell",
        """
import fcntl, pty, struct, termios
pty_child, pty_fd = pty.fork()
if pty_child == 0:
    os.execvp("bash", ["bash", "--norc", "-i"])
def pty_run(command, mark):
    os.write(pty_fd, command.encode() + b"\\n")
    text = b""
    while mark not in text:
        text += os.read(pty_fd, 4096)
    return text
fcntl.ioctl(pty_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
os.write(pty_fd, b"cd /usr/lib; who=you; sleep 600 &\\n")
os.write(pty_fd, b"greet() { echo hel''lo $1 $PWD $(stty size); }\\n")
pty_run("echo rea''dy", b"ready\\r")
""",
        """
assert b"hello you /usr/lib 33 77" in pty_run("greet $who", b"hello you /usr/lib 33 77")
assert b"sleep 600" in pty_run("jobs; echo do''ne", b"done\\r")
os.write(pty_fd, b"kill %1; exit 7\\n")
eventually(lambda: os.waitpid(pty_child, os.WNOHANG) == (pty_child, 7 << 8))
""",
    ),
    State(
        "SQLite in WAL mode",
        """
import sqlite3
wal = sqlite3.connect("/root/wal.db")
assert wal.execute("pragma journal_mode=wal").fetchone() == ("wal",)
wal.execute("create table t(x)")
wal.executemany("insert into t values (?)", [(n,) for n in range(1000)])
wal.commit()
wal_reading = wal.execute("select x from t order by x")
wal_first = [wal_reading.fetchone()[0] for _ in range(10)]
wal_writer = sqlite3.connect("/root/wal.db")
wal_writer.execute("insert into t values (-1)")
""",
        """
assert [row[0] for row in wal_reading.fetchall()] == list(range(10, 1000))
assert wal.execute("select count(*) from t").fetchone() == (1000,)
wal_writer.commit()
assert wal.execute("select count(*) from t").fetchone() == (1001,)
wal.execute("delete from t where x < 500")
wal.commit()
assert wal.execute("pragma integrity_check").fetchone() == ("ok",)
assert sqlite3.connect("/root/wal.db").execute("select count(*) from t").fetchone() == (500,)
""",
    ),
    State(
        "SQLite with a rollback journal",
        """
import sqlite3
journal = sqlite3.connect("/root/journal.db")
journal.execute("create table t(x)")
journal.execute("insert into t values (1)")
journal.commit()
journal_open = sqlite3.connect("/root/journal-open.db")
journal_open.execute("create table t(x)")
journal_open.commit()
journal_open.execute("insert into t values ('uncommitted')")
assert os.path.exists("/root/journal-open.db-journal")
""",
        """
journal.execute("insert into t values (2)")
journal.commit()
assert journal.execute("select x from t order by x").fetchall() == [(1,), (2,)]
journal_open.rollback()
assert journal_open.execute("select count(*) from t").fetchone() == (0,)
journal_open.execute("insert into t values ('committed')")
journal_open.commit()
for path in ("/root/journal.db", "/root/journal-open.db"):
    assert sqlite3.connect(path).execute("pragma integrity_check").fetchone() == ("ok",)
""",
    ),
    State(
        "IPython's history",
        """
history = get_ipython().history_manager
history_mark = "this very line of the history, before"
""",
        """
history_mark = "and this line of it, after"
history.writeout_cache()
history_rows = [
    row[0] for row in history.db.execute(
        "select source from history where session = ?", (history.session_number,)
    )
]
assert any("this very line of the history" in row for row in history_rows)
get_ipython().run_cell("history_late = 1", store_history=True)
history.writeout_cache()
eventually(lambda: history.db.execute(
    "select count(*) from history where source = 'history_late = 1'"
).fetchone() == (1,))
""",
    ),
    State(
        "listening TCP server",
        """
import http.server, socket, threading, urllib.request
class TcpHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())
    def log_message(self, *arguments):
        pass
tcp_server = http.server.ThreadingHTTPServer(("0.0.0.0", 8123), TcpHandler)
threading.Thread(target=tcp_server.serve_forever, daemon=True).start()
tcp_address = ("127.0.0.1", 8123)
assert urllib.request.urlopen("http://127.0.0.1:8123/before").read() == b"/before"
tcp_unix = socket.socket(socket.AF_UNIX)
tcp_unix.bind("/root/unix")
tcp_unix.listen()
tcp_udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tcp_udp.bind(("127.0.0.1", 0))
tcp_pair = socket.socketpair()
tcp_pair[0].send(b"in between")
""",
        """
assert urllib.request.urlopen("http://127.0.0.1:8123/after", timeout=20).read() == b"/after"
tcp_connecting = socket.socket(socket.AF_UNIX)
tcp_connecting.connect("/root/unix")
tcp_connecting.send(b"unix")
assert tcp_unix.accept()[0].recv(4) == b"unix"
tcp_udp.settimeout(20)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"udp", tcp_udp.getsockname())
assert tcp_udp.recv(3) == b"udp" and tcp_pair[1].recv(100) == b"in between"
""",
    ),
    State(
        "inotify",
        """
import ctypes, select, struct
inotify_libc = ctypes.CDLL(None, use_errno=True)
os.makedirs("/root/watched", exist_ok=True)
inotify = inotify_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
inotify_watches = [
    inotify_libc.inotify_add_watch(inotify, path, 0x100)  # IN_CREATE
    for path in (b"/root/watched", b"/tmp", b"/dev/shm")
]
assert all(watch > 0 for watch in inotify_watches)
def inotify_events():
    if not select.select([inotify], [], [], 20)[0]:
        return []
    data, found = os.read(inotify, 65536), []
    while data:
        watch, _, _, length = struct.unpack_from("iIII", data)
        found.append((watch, data[16:16 + length].rstrip(b"\\0").decode()))
        data = data[16 + length:]
    return found
open("/root/watched/before", "w").close()
assert inotify_events() == [(inotify_watches[0], "before")]
""",
        """
for watch, path in zip(inotify_watches, ("/root/watched", "/tmp", "/dev/shm")):
    open(f"{path}/inotify-after", "w").close()
    found = []
    while (watch, "inotify-after") not in found:
        found = inotify_events()
        assert found
""",
    ),
    State(
        "deleted open file of 50 MB",
        """
import hashlib
deleted = open("/root/deleted", "w+b")
deleted_content = os.urandom(50 * 10**6)
deleted_digest = hashlib.sha256(deleted_content).hexdigest()
deleted.write(deleted_content)
deleted.flush()
os.unlink("/root/deleted")
del deleted_content
deleted_linked = open("/root/linked", "w+")
deleted_linked.write("linked")
deleted_linked.flush()
os.link("/root/linked", "/root/linked-too")
os.unlink("/root/linked")
""",
        """
deleted.seek(0)
assert hashlib.sha256(deleted.read()).hexdigest() == deleted_digest
assert os.fstat(deleted.fileno()).st_nlink == 0
deleted.write(b"more")
deleted.seek(-4, os.SEEK_CUR)
assert deleted.read() == b"more"
deleted_linked.write(" more")
deleted_linked.flush()
assert open("/root/linked-too").read() == "linked more"
""",
    ),
    State(
        "matplotlib figure",
        """
import hashlib
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
figure, figure_axes = plt.subplots(2, 2, figsize=(4, 3))
figure_axes[0, 0].plot([1, 3, 2], label="line")
figure_axes[0, 0].legend()
figure_axes[1, 1].imshow([[1, 2], [3, 4]])
def figure_digest():
    figure.canvas.draw()
    return hashlib.sha256(figure.canvas.buffer_rgba()).hexdigest()
figure_saved = figure_digest()
""",
        """
assert figure_digest() == figure_saved and plt.gcf() is figure
figure_axes[0, 1].scatter([1], [2])
assert figure_digest() != figure_saved
""",
    ),
    State(
        "pandas frames",
        """
import numpy as np
import pandas as pd
frame_random = np.random.default_rng(7)
frame = pd.DataFrame(
    {"a": frame_random.normal(size=100_000), "b": frame_random.integers(0, 9, 100_000)},
    index=pd.date_range("2026-01-01", periods=100_000, freq="s", tz="Europe/Berlin"),
)
frame["c"] = pd.Categorical.from_codes(frame["b"], list("abcdefghi"))
frame_grouped = frame.groupby("c", observed=True)
frame_view = frame["a"].to_numpy()[::2]
def frame_digest(frame):
    return int(pd.util.hash_pandas_object(frame).sum())
frame_saved = frame_digest(frame)
frame_state = frame_random.bit_generator.state
frame_map = np.memmap("/root/frame.map", dtype=np.float64, mode="w+", shape=(1000,))
frame_map[:] = 1.5
""",
        """
assert frame_digest(frame) == frame_saved and frame_random.bit_generator.state == frame_state
assert abs(frame_grouped["a"].sum().sum() - frame["a"].sum()) < 1e-6
assert np.array_equal(frame_view, frame["a"].to_numpy()[::2])
frame_map[0] = 2.5
frame_map.flush()
assert np.fromfile("/root/frame.map").sum() == 1.5 * 999 + 2.5
assert (frame["a"] @ frame["a"]) > 0
""",
    ),
    # The last, so that its timers expire after the save.
    State(
        "timers",
        """
import select, signal, threading
timer_periodic = os.timerfd_create(time.CLOCK_MONOTONIC)
os.timerfd_settime(timer_periodic, initial=0.01, interval=0.02)
timer_far = os.timerfd_create(time.CLOCK_BOOTTIME)
os.timerfd_settime(timer_far, initial=1000)
timer_fired = []
timer_near = threading.Timer(8, timer_fired.append, ["thread"])
timer_near.start()
signal.signal(signal.SIGALRM, lambda *_: timer_fired.append("alarm"))
signal.setitimer(signal.ITIMER_REAL, 8)
timer_event = os.eventfd(3)
timer_epoll = select.epoll()
timer_epoll.register(timer_event, select.EPOLLIN)
timer_monotonic = time.monotonic()
""",
        """
assert timer_monotonic <= time.monotonic() < timer_monotonic + 300
for _ in range(3):
    assert select.select([timer_periodic], [], [], 20)[0]
    assert int.from_bytes(os.read(timer_periodic, 8), "little") < 15000
timer_left = os.timerfd_gettime(timer_far)[0]
assert 700 < timer_left < 1000, timer_left
eventually(lambda: sorted(timer_fired) == ["alarm", "thread"])
assert timer_epoll.poll(20) == [(timer_event, select.EPOLLIN)] and os.eventfd_read(timer_event) == 3
""",
    ),
]
