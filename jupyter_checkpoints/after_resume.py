"""What is done in a kernel that was resumed, before anybody else runs anything in it."""

from __future__ import annotations

from .context import Part
from .notebooks import ON_RESUME_TAG
from .renewal import renewal_code


class AfterResume(Part):
    """See the module."""

    async def run(self, kernel_id: str, path: str, *, new: bool, busy: bool) -> None:
        """Called when the kernel answers; what goes wrong is told, not raised.

        Parameters
        ----------
        new:
            It is another kernel than the one that was saved, which may go on beside it.
        busy:
            It is in the middle of a cell, it seems.
        """
        if new and not busy:
            await self._renew(kernel_id)
        await self._run_on_resume(kernel_id, path, busy=busy)

    async def _renew(self, kernel_id: str) -> None:
        """Renew what no two kernels may share."""
        if not self._settings.renew_random:
            return
        language = self._kernels.language(kernel_id)
        if code := renewal_code(language, seeds=self._settings.reseed_random):
            problem = await self._kernels.execute(kernel_id, code, self._settings.on_resume_timeout)
            if problem:
                self._log.warning("Kernel %s keeps its random numbers: %s", kernel_id, problem)

    async def _run_on_resume(self, kernel_id: str, path: str, *, busy: bool) -> None:
        """Run the cells that are to run after a resume; what they raise is told, not raised."""
        cells = await self._notebooks.on_resume_cells(path)
        if busy and cells:
            self._bound.notices[kernel_id] = (
                f"This kernel goes on in the middle of a cell: the cells with the tag "
                f"`{ON_RESUME_TAG}` were not run.\n\n"
            )
            return
        for number, code in enumerate(cells, 1):
            problem = await self._kernels.execute(kernel_id, code, self._settings.on_resume_timeout)
            if problem:
                text = f"Cell {number} with the tag `{ON_RESUME_TAG}` failed."
                self._log.warning("%s: %s %s", path, text, problem)
                self._bound.notices[kernel_id] = f"{text}\n{problem}\n\n"
