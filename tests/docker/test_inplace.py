"""Resuming in place under a client that stays connected, with Docker Engine, too."""

from tests.agent.test_inplace import kernel as kernel
from tests.agent.test_inplace import pytestmark as pytestmark
from tests.agent.test_inplace import (
    test_a_deleted_kernel_leaves_no_network as test_a_deleted_kernel_leaves_no_network,
)
from tests.agent.test_inplace import (
    test_a_resume_that_fails_changes_nothing as test_a_resume_that_fails_changes_nothing,
)
from tests.agent.test_inplace import test_a_running_cell_prints_on as test_a_running_cell_prints_on
from tests.agent.test_inplace import (
    test_an_end_in_the_midst_of_a_resume as test_an_end_in_the_midst_of_a_resume,
)
from tests.agent.test_inplace import (
    test_an_older_state_of_a_stopped_kernel as test_an_older_state_of_a_stopped_kernel,
)
from tests.agent.test_inplace import test_many_clients as test_many_clients
from tests.agent.test_inplace import (
    test_requests_while_it_is_stopped as test_requests_while_it_is_stopped,
)
