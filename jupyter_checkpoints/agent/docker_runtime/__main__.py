"""``python -I -S DIRECTORY``, where ``setup --engine docker`` has put what the runtime needs."""

import sys

from agent.docker_runtime.create import main  # type: ignore[import-not-found]

sys.exit(main(sys.argv[1:]))
