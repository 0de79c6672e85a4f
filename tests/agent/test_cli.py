"""The command line, as a person and as a program uses it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from jupyter_checkpoints.cli.app import CheckpointsApp
from jupyter_checkpoints.layout import SOCKET_ENV

from ..users import Users
from .agents import Agent
from .cells import run
from .conftest import running_agent
from .kernelspecs import jupyter_dirs as jupyter_dirs
from .kernelspecs import nothing_left as nothing_left

pytestmark = pytest.mark.usefixtures("jupyter_dirs", "nothing_left")


def command(*arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``jupyter checkpoints`` as a program of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_checkpoints.cli.app", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not ok or done.returncode == 0, done.stderr
    return done


def answer(*arguments: str) -> Any:
    """The JSON of a command that must succeed, and must say nothing else."""
    done = command(*arguments, "--json")
    assert done.stderr == ""
    return json.loads(done.stdout)


def refused(code: int, *arguments: str) -> dict[str, Any]:
    """The JSON of a command that must fail with this exit code."""
    done = command(*arguments, "--json", ok=False)
    assert done.returncode == code, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)
    assert body["message"] in done.stderr
    return body


def ask(connection_file: str, code: str) -> str:
    """Connect to a kernel by its connection file alone, as any program can, and run a cell."""

    async def talk() -> str:
        client = AsyncKernelClient(connection_file=connection_file)
        client.load_connection_file()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            return await run(client, code)
        finally:
            client.stop_channels()

    return asyncio.run(talk())


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[KernelManager]:
    """A kernel that some other program runs."""
    manager = KernelManager(kernel_name="checkpoints-python3")
    manager.start_kernel(cwd=str(tmp_path))
    try:
        client = manager.client()
        assert isinstance(client, BlockingKernelClient)
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.stop_channels()
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def test_save_and_resume(kernel: KernelManager, jupyter_dirs: Path, tmp_path: Path) -> None:
    ask(kernel.connection_file, "x = 42; f = open('/var/tmp/log', 'w+'); f.write('half')")

    (listed,) = answer("ps")
    assert (listed["id"], listed["state"]) == (kernel.kernel_id, "running")

    # By a beginning of its id, and by its connection file.
    first = answer("save", str(kernel.kernel_id)[:8], "--name", "a name")
    second = answer("save", kernel.connection_file)
    assert first["name"] == "a name"
    assert [c["id"] for c in answer("list")] == [second["id"], first["id"]]
    assert answer("list", "--kernel", "nobody") == []
    assert len(answer("list", "--kernel", str(kernel.kernel_id)[:8])) == 2

    shown = answer("show", first["id"])
    assert shown["preflight"]["ok"] is True
    assert {m["source"] for m in shown["mounts"]} == {str(tmp_path)}

    # A new kernel, beside the original.
    resumed = answer("resume", first["id"])
    file = Path(resumed["connection_file"])
    assert file == jupyter_dirs / "runtime" / f"kernel-{resumed['kernel_id']}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert ask(str(file), "x, f.tell(), f.closed") == "(42, 4, False)"
    ask(str(file), "x = 0")
    assert ask(kernel.connection_file, "x") == "42"
    assert {k["id"]: k["detached"] for k in answer("ps")} == {
        kernel.kernel_id: False,
        resumed["kernel_id"]: True,
    }

    # In place.
    ask(kernel.connection_file, "x = 1")
    back = answer("resume", first["id"], "--in-place")
    assert back["kernel_id"] == kernel.kernel_id
    assert ask(back["connection_file"], "x") == "42"

    # Another kernel is put back by name, stopped at a state, and goes on from it.
    stopped = answer("save", resumed["kernel_id"], "--stop")
    assert {k["id"]: k["state"] for k in answer("ps")}[resumed["kernel_id"]] == "stopped"
    answer("resume", stopped["id"], "--kernel", resumed["kernel_id"])
    assert ask(str(file), "x") == "0"

    assert "ipkernelapp" in answer("logs", str(kernel.kernel_id))["log"].lower()
    assert command("logs", str(kernel.kernel_id), "--tail=1").stdout.count("\n") == 1

    assert answer("kill", resumed["kernel_id"]) == {"killed": [resumed["kernel_id"]]}
    assert not file.exists()

    reports = answer("verify", "--all")
    assert {r["id"] for r in reports} == {first["id"], second["id"], stopped["id"]}
    assert all(r["ok"] and r["bytes_read"] > 0 for r in reports)

    ids = [first["id"], second["id"], stopped["id"]]
    assert answer("delete", *ids) == {"deleted": ids}
    assert answer("list") == []


def test_people_get_tables_and_ids_on_standard_output(kernel: KernelManager) -> None:
    assert str(kernel.kernel_id) in command("ps").stdout
    saved = command("save", str(kernel.kernel_id))
    identifier = saved.stdout.strip()
    assert "Saving: dump" in saved.stderr
    assert "stood still" in saved.stderr
    assert identifier in command("list").stdout
    assert "resumable here" in command("show", identifier).stdout
    assert "ok" in command("verify", identifier).stdout
    resumed = command("resume", identifier)
    file = Path(resumed.stdout.strip())
    assert ask(str(file), "1 + 1") == "2"
    command("kill", str(file))
    command("delete", identifier)
    assert "No runtime checkpoints" in command("list").stderr


def test_damage_is_told_by_name_and_by_exit_code(kernel: KernelManager, agent: Agent) -> None:
    saved = answer("save", str(kernel.kernel_id))
    agent.damage(saved["id"], "pages-2.img")
    done = command("verify", saved["id"], "--json", ok=False)
    assert done.returncode == 13
    (report,) = json.loads(done.stdout)
    assert not report["ok"]
    assert any("pages-2.img" in problem for problem in report["problems"])
    assert refused(13, "resume", saved["id"])["code"] == "CheckpointDamaged"
    answer("delete", saved["id"])


def test_the_store_is_repaired_and_what_is_lost_is_named(
    kernel: KernelManager, agent: Agent
) -> None:
    saved = answer("save", str(kernel.kernel_id))
    assert "ok" in command("verify", "--quick", saved["id"]).stdout
    pack = agent.pack(saved["id"])
    index = pack.with_suffix(".index")
    content = index.read_bytes()
    index.unlink()
    report = answer("repair")
    assert report["lost"] == {} and any(pack.stem in line for line in report["repaired"])
    assert index.read_bytes() == content
    assert "Nothing is lost" in command("repair").stderr
    pack.unlink()
    done = command("repair", "--json", ok=False)
    assert done.returncode == 13
    assert any("pages-2.img" in line for line in json.loads(done.stdout)["lost"][saved["id"]])
    done = command("verify", "--quick", saved["id"], "--json", ok=False)
    assert done.returncode == 13
    answer("delete", saved["id"])


def test_the_log_of_a_kernel_can_be_followed(kernel: KernelManager) -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyter_checkpoints.cli.app",
            "logs",
            str(kernel.kernel_id),
            "-f",
            "--tail=1",
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        follower.stdout.readline()
        ask(
            kernel.connection_file,
            "import os, sys\n"
            "_ = os.write(sys.stderr._original_stdstream_copy, b'something new\\n')",
        )
        while "something new" not in follower.stdout.readline():
            assert follower.poll() is None
        follower.terminate()


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, ["save"]),
        (2, ["ps", "too", "many"]),
        (2, ["ps", "--nonsense=1"]),
        (2, ["ps", "--nonsense"]),
        (2, ["nonsense"]),
        (2, ["verify"]),
        (2, ["kernelspec", "add", "x", "--image=python3", "--argv=python -m x"]),
        (2, ["kernelspec", "add", "x", "--image=python3"]),
        (3, ["save", "no-such-kernel"]),
        (3, ["save", "/no/such/file.json"]),
        (3, ["resume", "no-such-checkpoint"]),
        (3, ["delete", "no-such-checkpoint"]),
        (3, ["kernelspec", "remove", "no-such-kernelspec"]),
        (4, ["kernelspec", "add", "checkpoints-bash", "--image=i", "--argv={connection_file}"]),
        (7, ["ps", "--socket=/no/such/agent.sock"]),
    ],
)
def test_exit_codes(code: int, arguments: list[str]) -> None:
    assert refused(code, *arguments)["message"]


def test_a_kernel_outside_of_containers_cannot_be_saved() -> None:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    try:
        body = refused(3, "save", manager.connection_file)
        assert "kernelspec list" in body["hint"]
    finally:
        manager.shutdown_kernel(now=True)


def test_kernelspecs(jupyter_dirs: Path) -> None:
    prefix = str(jupyter_dirs / "prefix")
    added = answer(
        *("kernelspec", "add", "r", "--image=r", "--language=R", "--mem-limit=1G"),
        *("--argv", "R -e 'IRkernel::main()' --args {connection_file}", f"--prefix={prefix}"),
    )
    spec = json.loads((Path(added["path"]) / "kernel.json").read_text())
    assert spec["argv"] == ["R", "-e", "IRkernel::main()", "--args", "{connection_file}"]
    assert spec["metadata"]["kernel_provisioner"]["config"] == {
        "image": "r",
        "mode": "process",
        "mem_limit": "1G",
    }
    names = {s["name"] for s in answer("kernelspec", "list")}
    assert {"checkpoints-python3", "checkpoints-bash", "r"} <= names
    command(
        *("kernelspec", "add", "r", "--image=r", "--replace", f"--prefix={prefix}"),
        *("--", "R", "--args", "{connection_file}"),
    )
    spec = json.loads((Path(added["path"]) / "kernel.json").read_text())
    assert spec["argv"] == ["R", "--args", "{connection_file}"]
    assert answer("kernelspec", "remove", "r") == {"removed": [added["path"]]}


def test_help_is_quick_and_complete() -> None:
    text = command("--help").stdout
    for name in ("doctor", "ps", "save", "resume", "kernelspec", "setup", "image", "agent"):
        assert f"\n{name}\n" in text
    assert "Exit codes" in text
    probe = "import sys, jupyter_checkpoints.cli.app; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"httpx", "rich", "zmq", "jupyter_client", "msgspec", "tornado"} & set(imported)
    assert "Usage: jupyter checkpoints save KERNEL" in command("save", "--help").stdout


@pytest.mark.parametrize("name", CheckpointsApp.subcommands)
def test_each_command_has_help(name: str) -> None:
    text = command(name, "--help").stdout
    assert "Options" in text
    assert name == "agent" or "Exit codes" in text


@pytest.mark.parametrize("name", ["checkpoints-python3", "checkpoints-bash"])
def test_doctor_proves_it(name: str) -> None:
    result = answer("doctor", "--kernel", name)
    assert result["ok"] is True
    (proof,) = result["proofs"]
    assert len(proof["checks"]) == 4
    assert all(check["ok"] for check in proof["checks"])
    assert all(timing["seconds"] > 0 for timing in proof["timings"])
    assert answer("ps") == []
    assert answer("list") == []


def test_doctor_says_what_to_do() -> None:
    done = command("doctor", "--kernel", "no-such-kernelspec", ok=False)
    assert done.returncode == 1
    assert "jupyter checkpoints setup" in done.stdout
    assert "Not ready" in done.stdout


@pytest.mark.parametrize("mode", ["0666", "0660"], ids=["by the agent", "by the file system"])
def test_an_ordinary_user_is_refused_with_what_an_administrator_can_do(
    default_image: None, users: Users, mode: str
) -> None:
    program = "from jupyter_checkpoints.cli.app import main; main(['ps', '--json'])"
    with running_agent(f"--AgentApp.socket_mode={mode}", "--AgentApp.allowed_groups=[]") as agent:
        process = users.alice.popen(
            *(users.alice.python, "-c", program),
            env={SOCKET_ENV: str(agent.socket)},
            stdout=subprocess.PIPE,
        )
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 5
    body = json.loads(said)
    assert body["code"] == "NotAllowed"
    assert "administrator" in body["hint"]
