"""An ordinary user's kernel is root inside and the user outside, with Docker Engine, too."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from docker.errors import APIError

from tests.agent import test_userns
from tests.agent.launch import Kernel
from tests.agent.test_userns import kernel as kernel
from tests.agent.test_userns import launch as launch
from tests.agent.test_userns import pytestmark as pytestmark

from .test_kernels import container_of
from .test_kernels import docker as docker

test_it_is_the_user_outside = test_userns.test_it_is_the_user_outside
test_what_it_writes_is_the_users = test_userns.test_what_it_writes_is_the_users
test_what_the_user_may_not_it_may_not = test_userns.test_what_the_user_may_not_it_may_not
test_what_root_inside_may_not = test_userns.test_what_root_inside_may_not
test_nobody_outside_gets_at_its_files = test_userns.test_nobody_outside_gets_at_the_containers_files
test_it_installs_into_its_own_files = test_userns.test_it_installs_into_its_own_files
test_another_user_goes_on_from_a_copy = test_userns.test_another_user_goes_on_from_a_copy
test_no_user_goes_on_with_roots_processes = test_userns.test_no_user_goes_on_with_roots_processes
test_root_goes_on_as_the_user = test_userns.test_root_goes_on_as_the_user


async def test_docker_s_commands_are_the_users_inside(kernel: Kernel, docker: Any) -> None:
    """``docker exec`` joins the user namespace; ``docker cp`` cannot write there."""
    container = container_of(docker, kernel.model)
    await kernel.run("open('/root/file', 'w').write('of the kernel')")
    assert container.exec_run(["cat", "/root/file"]) == (0, b"of the kernel")
    code, output = container.exec_run(["sh", "-c", "id -u; echo $$ > /root/by-exec"])
    assert (code, output) == (0, b"0\n")
    assert await kernel.run("import os; print(os.stat('/root/by-exec').st_uid)") == "0"
    with pytest.raises(APIError):
        container.put_archive("/root", archive_of("brought", b"by cp"))


def archive_of(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        facts = tarfile.TarInfo(name)
        facts.size = len(content)
        archive.addfile(facts, io.BytesIO(content))
    return made.getvalue()
