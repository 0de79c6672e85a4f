"""What is done in a kernel that was resumed, before anybody else runs anything in it."""

from __future__ import annotations

from .context import Part
from .models import CheckpointModel, Renewal, is_copy
from .notebooks import ON_RESUME_TAG
from .renewal import on_resume_code, random_code


def is_double(checkpoint: CheckpointModel, runtime: str) -> bool:
    """Whether a kernel of ``runtime`` that begins with it may be another one's double."""
    return is_copy(checkpoint) or checkpoint.runtime != runtime


class AfterResume(Part):
    """See the module."""

    def renewals(self, checkpoint: CheckpointModel, runtime: str) -> list[Renewal]:
        """What a new container is to have anew. Asked before it is made."""
        if not is_double(checkpoint, runtime):
            return []
        wanted: list[Renewal] = []
        if self._settings.renew_host_name:
            wanted.append("host_name")
        if self._settings.renew_machine_id:
            wanted.append("machine_id")
        return wanted

    async def run(
        self, kernel_id: str, checkpoint: CheckpointModel, *, new: bool, busy: bool
    ) -> None:
        """Called when the kernel answers; what goes wrong is told, not raised.

        Parameters
        ----------
        new:
            It is another kernel than the one that was saved, which may go on beside it.
        busy:
            It is in the middle of a cell, it seems, and cannot be asked for anything.
        """
        bound = self._bound[kernel_id]
        self._bound.notices.pop(kernel_id, None)
        if busy:
            if await self._notebooks.on_resume_cells(bound.path):
                self._bound.notices[kernel_id] = (
                    f"This kernel goes on in the middle of a cell: the cells with the tag "
                    f"`{ON_RESUME_TAG}` were not run.\n\n"
                )
            return
        double = is_double(checkpoint, bound.runtime)
        if double and self._settings.renew_key:
            await self._renew_key(kernel_id)
        if new or double:
            await self._renew_random(kernel_id)
        await self._run_registered(kernel_id)
        await self._run_cells(kernel_id)

    async def _renew_key(self, kernel_id: str) -> None:
        problem = await self._kernels.renew_key(kernel_id)
        if problem:
            self._log.info(
                "Kernel %s keeps the key of the one it comes from: %s", kernel_id, problem
            )

    async def _renew_random(self, kernel_id: str) -> None:
        if not self._settings.renew_random:
            return
        language = self._kernels.language(kernel_id)
        problem = await self._execute(
            kernel_id, random_code(language, seeds=self._settings.reseed_random)
        )
        if problem:
            self._log.warning("Kernel %s keeps its random numbers: %s", kernel_id, problem)

    async def _run_registered(self, kernel_id: str) -> None:
        problem = await self._execute(kernel_id, on_resume_code(self._kernels.language(kernel_id)))
        if problem:
            self._tell_user(kernel_id, "What is registered with `%%on_resume` failed.", problem)

    async def _run_cells(self, kernel_id: str) -> None:
        cells = await self._notebooks.on_resume_cells(self._bound.path(kernel_id))
        for number, code in enumerate(cells, 1):
            problem = await self._execute(kernel_id, code)
            if problem:
                text = f"Cell {number} with the tag `{ON_RESUME_TAG}` failed."
                self._tell_user(kernel_id, text, problem)

    async def _execute(self, kernel_id: str, code: str) -> str:
        """What went wrong; nothing is done where there is no code for this language."""
        if not code:
            return ""
        return await self._kernels.execute(kernel_id, code, self._settings.on_resume_timeout)

    def _tell_user(self, kernel_id: str, text: str, problem: str) -> None:
        self._log.warning("%s: %s %s", self._bound.path(kernel_id), text, problem)
        notices = self._bound.notices
        notices[kernel_id] = notices.get(kernel_id, "") + f"{text}\n{problem}\n\n"
