"""Prove on this host that a kernel can be saved and resumed: ``doctor``'s work.

Nothing here looks at versions and concludes: a kernel is started, given state, saved, put back in
place, and resumed beside itself, and every time it is asked for its state.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from msgspec import Struct, field

from ..client import AgentClient
from ..errors import CheckpointsError, HostNotReady, InvalidRequest
from ..kernelspecs import PROVISIONER
from ..models import CheckpointModel
from ..provisioner import ContainerProvisioner

#: Seconds a kernel has to become ready, or to answer one cell.
_CELL_TIMEOUT = 60


class Language(Struct, frozen=True):
    """State in one language: cells that make it, change it, and print it.

    ``show`` must print ``expected`` after ``make``, and something else after ``change``.
    """

    make: str
    change: str
    show: str
    expected: str


_FILE = "/var/tmp/jupyter-checkpoints-doctor"

#: By the kernelspec's language, in lower case. Kernels of other languages are asked for nothing
#: but an answer.
LANGUAGES = {
    "python": Language(
        make=f"""\
import threading, time
doctor_values = list(range(1000))
doctor_ticks = 0
def doctor_tick():
    global doctor_ticks
    while True:
        doctor_ticks += 1
        time.sleep(0.001)
doctor_thread = threading.Thread(target=doctor_tick, daemon=True)
doctor_thread.start()
doctor_file = open({_FILE!r}, "w+")
print("half of a", end="", file=doctor_file)
""",
        change="""\
doctor_values.clear()
print(" changed line", file=doctor_file, flush=True)
""",
        show=f"""\
doctor_before = doctor_ticks
doctor_deadline = time.monotonic() + 10
while doctor_ticks == doctor_before and time.monotonic() < doctor_deadline:
    time.sleep(0.001)
doctor_file.flush()
print(sum(doctor_values), doctor_ticks > doctor_before, open({_FILE!r}).read())
""",
        expected="499500 True half of a",
    ),
    "bash": Language(
        make=f"echo kept > {_FILE}",
        change=f"echo changed > {_FILE}",
        show=f"cat {_FILE}",
        expected="kept",
    ),
    "r": Language(
        make=f'doctor_values <- 1:1000; doctor_file <- file("{_FILE}", "w"); '
        'writeLines("half", doctor_file)',
        change="doctor_values <- 0",
        show=f'flush(doctor_file); cat(sum(doctor_values), readLines("{_FILE}"))',
        expected="500500 half",
    ),
}


class Timing(Struct, frozen=True):
    """How long one step took, in seconds."""

    step: str
    seconds: float


class Check(Struct, frozen=True):
    """One thing that must be so."""

    name: str
    ok: bool
    detail: str = ""


class Proof(Struct):
    """The outcome for one kernelspec. ``error`` is what stopped it, if something did."""

    kernel: str
    ok: bool = False
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    memory_size: int = 0
    error: dict[str, Any] | None = None


async def prove(agent: AgentClient, kernel_name: str, on_step: Callable[[str], None]) -> Proof:
    """Save and resume a kernel of ``kernel_name`` for real; leaves nothing behind.

    ``on_step`` is called with a few words before each step. Never raises for what goes wrong:
    the proof says it.
    """
    proof = Proof(kernel_name)
    try:
        with tempfile.TemporaryDirectory(prefix="jupyter-checkpoints-doctor-") as directory:
            await _Attempt(agent, proof, directory, on_step).run()
    except CheckpointsError as error:
        proof.error = error.to_json()
    except (RuntimeError, TimeoutError) as error:  # of jupyter_client: died, or did not answer
        proof.error = HostNotReady(
            "The kernel did not answer.",
            reason=str(error) or type(error).__name__,
            hint="`jupyter checkpoints logs` and the agent's log may tell why.",
        ).to_json()
    proof.ok = proof.error is None and all(check.ok for check in proof.checks)
    return proof


class _Attempt:
    def __init__(
        self, agent: AgentClient, proof: Proof, directory: str, on_step: Callable[[str], None]
    ) -> None:
        self.agent = agent
        self.proof = proof
        self.directory = directory
        self.on_step = on_step

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            with self._timed("start to first answer"):
                original = await stack.enter_async_context(self._kernel("start a kernel"))
            language = LANGUAGES.get(original.language)
            if language is not None:
                await original.run(language.make)

            self.on_step("save it")
            saved = await original.provisioner.save(name="doctor")
            stack.push_async_callback(self.agent.delete_checkpoint, saved.id)
            self._saved(saved)
            if language is not None:
                await original.run(language.change)
                changed = await original.run(language.show)
                self._check("a change shows", changed != language.expected, changed)

            self.on_step("resume it in place")
            with self._timed("resume in place to first answer"):
                await original.provisioner.resume_in_place(saved.id)
                await original.answers()
            await self._expect("in place, the state is back", original, language)

            with self._timed("resume in a new kernel to first answer"):
                clone = await stack.enter_async_context(
                    self._kernel("resume a new kernel", restore_from=saved.id)
                )
            await self._expect("in a new kernel, the state is there", clone, language)
            if language is not None:
                await clone.run(language.change)
            await self._expect("the original is untouched by the new one", original, language)
            self.on_step("clean up")

    @asynccontextmanager
    async def _kernel(self, step: str, **arguments: str) -> AsyncIterator[_Kernel]:
        self.on_step(step)
        kernel = _Kernel(self.proof.kernel)
        try:
            await kernel.start(cwd=self.directory, **arguments)
            yield kernel
        finally:
            await kernel.end()

    def _saved(self, saved: CheckpointModel) -> None:
        self.proof.memory_size = saved.memory_size
        self.proof.timings += [
            Timing("save, kernel paused", saved.pause_seconds),
            Timing("save, all of it", saved.save_seconds),
        ]

    async def _expect(self, name: str, kernel: _Kernel, language: Language | None) -> None:
        if language is None:
            await kernel.answers()
            self._check(f"{name} (not looked at: no cells known in this language)", True, "")
            return
        shown = await kernel.run(language.show)
        self._check(name, shown == language.expected, shown)

    def _check(self, name: str, ok: bool, detail: str) -> None:
        self.proof.checks.append(Check(name, ok, "" if ok else detail))

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.proof.timings.append(Timing(step, time.perf_counter() - began))


class _Kernel:
    """A kernel and the client that stays connected to it throughout."""

    def __init__(self, kernel_name: str) -> None:
        self.manager = AsyncKernelManager(kernel_name=kernel_name)
        self.client: AsyncKernelClient | None = None
        try:
            spec = self.manager.kernel_spec
        except NoSuchKernel as error:
            raise HostNotReady(
                f"There is no kernelspec {kernel_name!r}.",
                hint="`jupyter checkpoints setup` installs it.",
            ) from error
        assert spec is not None
        stanza = spec.metadata.get("kernel_provisioner", {})
        if stanza.get("provisioner_name") != PROVISIONER:
            raise InvalidRequest(
                f"Kernels of {kernel_name!r} do not run in containers that can be saved.",
                hint="`jupyter checkpoints kernelspec list` shows those that do.",
            )
        self.language = spec.language.lower()

    @property
    def provisioner(self) -> ContainerProvisioner:
        assert isinstance(self.manager.provisioner, ContainerProvisioner)
        return self.manager.provisioner

    async def start(self, **arguments: str) -> None:
        await self.manager.start_kernel(**arguments)
        self.client = self.manager.client()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=_CELL_TIMEOUT)

    async def end(self) -> None:
        if self.client is not None:
            self.client.stop_channels()
        if self.manager.has_kernel:
            await self.manager.shutdown_kernel(now=True)

    async def answers(self) -> None:
        """Wait for one answer that no cell is run for."""
        assert self.client is not None
        reply: Any = self.client.kernel_info(reply=True, timeout=_CELL_TIMEOUT)
        await reply

    async def run(self, code: str) -> str:
        """Run one cell; returns what it printed.

        Raises
        ------
        HostNotReady
            If the cell fails: the state it needs is not there.
        """
        assert self.client is not None
        printed: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply: Any = await self.client.execute_interactive(
            code, store_history=False, output_hook=hear, timeout=_CELL_TIMEOUT
        )
        content = reply["content"]
        if content["status"] != "ok":
            raise HostNotReady(
                "A cell failed in the kernel.",
                reason=f"{content.get('ename', '')}: {content.get('evalue', '')}",
                hint="Please report it: the kernel's state was not what it should be.",
            )
        return "".join(printed).strip()
