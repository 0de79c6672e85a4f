"""Every kind of state is as before, with Docker Engine, too."""

from tests.agent.test_states import kernels as kernels
from tests.agent.test_states import pytestmark as pytestmark
from tests.agent.test_states import test_as_before as test_as_before
