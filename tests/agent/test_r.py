"""Any language means any language: R, from Debian's packages, in an image of its own."""

from __future__ import annotations

from uuid import uuid4

import pytest

from jupyter_checkpoints.agent.image_spec import shipped_spec
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.models import CONNECTION_FILE, SaveRequest, StartRequest

from .cells import run
from .images import image_of
from .kernels import KEY, connected

pytestmark = pytest.mark.anyio

PREPARE = """
set.seed(7)
fit <- lm(dist ~ speed, data = cars)
counter <- (function() { n <- 0; function() { n <<- n + 1; n } })()
invisible(counter())
half <- file("/root/half", "w"); cat("one\\n", file = half)
"""
SHOW = """
cat("two\\n", file = half); close(half)
cat(round(coef(fit), 3), counter(), round(runif(1), 6), readLines("/root/half"))
"""


@pytest.fixture(scope="module")
def r_image() -> str:
    return image_of("r")


async def test_an_r_kernel_is_saved_and_resumed(client: AgentClient, r_image: str) -> None:
    (entry,) = shipped_spec("r").kernels
    request = StartRequest(
        kernel_id=str(uuid4()),
        argv=[word.format(connection_file=CONNECTION_FILE) for word in entry.argv],
        key=KEY,
        image=r_image,
        detached=True,
    )
    original = await client.start_kernel(request)
    async with connected(original) as cells:
        await run(cells, PREPARE)
        checkpoint = await client.save(original.id, SaveRequest())
        expected = await run(cells, SHOW)
        assert expected.split()[:3] == ["-17.579", "3.932", "2"]
        assert expected.endswith("one two")
    clone = await client.start_kernel(
        StartRequest(kernel_id=str(uuid4()), checkpoint=checkpoint.id, detached=True)
    )
    async with connected(clone) as cells:
        # Closure, model, random numbers, open file: all go on from the same state
        assert await run(cells, SHOW) == expected
    for kernel in (original, clone):
        await client.delete_kernel(kernel.id)
    await client.delete_checkpoint(checkpoint.id)
