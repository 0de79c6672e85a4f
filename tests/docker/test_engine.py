"""What every kernel's container is, with Docker Engine, too."""

from tests.agent.test_engine import *  # noqa: F403
from tests.agent.test_engine import pytestmark as pytestmark
