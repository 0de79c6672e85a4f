"""Copies of kernels are independent of each other, with Docker Engine, too."""

from tests.agent.test_clone import *  # noqa: F403
from tests.agent.test_clone import pytestmark as pytestmark
