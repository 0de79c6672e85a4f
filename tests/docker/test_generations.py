"""Twenty generations, with Docker Engine, too."""

from tests.agent.test_generations import launch as launch
from tests.agent.test_generations import pytestmark as pytestmark
from tests.agent.test_generations import test_twenty_generations as test_twenty_generations
