"""Every kind of state is as before, with Docker Engine, too."""

import pytest

from tests.agent.callers import ROOT
from tests.agent.cells import run
from tests.agent.states import STATES, State
from tests.agent.test_states import Kernels
from tests.agent.test_states import kernels as kernels
from tests.agent.test_states import pytestmark as pytestmark


# Root's alone: without user namespaces it depends on the host whether others' can be saved.
@pytest.mark.parametrize("kernels", [pytest.param((ROOT, ROOT), id="root")], indirect=True)
@pytest.mark.parametrize("side", ["original", "clone"])
@pytest.mark.parametrize("state", [pytest.param(state, id=state.name) for state in STATES])
async def test_as_before(kernels: Kernels, state: State, side: str) -> None:
    await run(kernels[side], state.check)
