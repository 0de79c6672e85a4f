"""Images that tests need beside the default one, built once per host."""

from __future__ import annotations

import hashlib

import msgspec

from jupyter_checkpoints.agent.image_spec import shipped_spec
from jupyter_checkpoints.agent.images import ImageStore
from jupyter_checkpoints.errors import NotFound

from .agents import IMAGES


def image_of(specification: str) -> str:
    """The name of an image built from a specification that comes along.

    It has a hash of the specification in it, so that a host that has built it once does not
    again until the specification changes. Building R's takes half a minute.
    """
    spec = shipped_spec(specification)
    tag = hashlib.sha256(msgspec.json.encode(spec)).hexdigest()[:12]
    name = f"tests/{specification}:{tag}"
    store = ImageStore(IMAGES)
    try:
        store.resolve(name)
    except NotFound:
        store.build(spec, name, lambda stage, message: None)
    return name
