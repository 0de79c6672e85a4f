"""The images that kernels may start from where Docker Engine runs them: its own, and the host's.

An image of the host's store (what ``jupyter checkpoints image`` makes) is given to Docker when it
is first needed, as ``jupyter-checkpoints:DIGEST``. It keeps the digest it has in the store, so that
a checkpoint of one engine finds its image with the other. Every other image of Docker's has its
image id as its digest.
"""

from __future__ import annotations

import builtins
import contextlib
import re
import subprocess
import threading
from collections.abc import Container
from pathlib import Path
from typing import Any

from ..errors import HostNotReady, InvalidRequest, NotAllowed, NotFound
from ..models import ImageModel
from .docker_client import IMAGE_SECONDS, DockerFailed, DockerMissing, told
from .image_build import Progress
from .image_spec import ImageSpec
from .images import ImageStore
from .tools import child_environment

REPOSITORY = "jupyter-checkpoints"
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,254}")


class DockerImages:
    """See the module. All methods block; any number of threads may use them."""

    def __init__(self, api: Any, store: ImageStore) -> None:
        self.api = api
        self.store = store
        self._importing = threading.Lock()

    def list(self) -> builtins.list[ImageModel]:
        with told():
            found = self.api.images()
        images = [
            self._model(image, name)
            for image in found
            for name in image.get("RepoTags") or []
            if name != "<none>:<none>" and not name.startswith(f"{REPOSITORY}:")
        ]
        return [*self.store.list(), *images]

    def resolve(self, ref: str) -> ImageModel:
        """The image that ``ref`` means: one of the store's, else one of Docker's.

        Raises
        ------
        NotFound
            If neither has it. It is not pulled: a kernel's start would take minutes.
        InvalidRequest
            If ``ref`` cannot be the name of an image.
        """
        try:
            return self.store.resolve(ref)
        except NotFound:
            if not ref:
                raise
        if _REFERENCE.fullmatch(ref) is None or ".." in ref:
            raise InvalidRequest(f"{ref!r} cannot be the name of an image.")
        try:
            with told():
                return self._model(self.api.inspect_image(ref), ref)
        except DockerMissing:
            raise NotFound(
                f"There is no image {ref!r}.",
                reason="Neither Docker nor the host's own store has it.",
                hint=f"`docker pull {ref}` gets it; `jupyter checkpoints image` makes others.",
            ) from None

    def require(self, digest: str) -> None:
        if self._in_docker(digest) is None:
            self.store.require(digest)

    def reference(self, digest: str) -> str:
        """What Docker calls the image with this digest; it is given to Docker first if need be.

        Raises
        ------
        NotFound, HostNotReady
        """
        found = self._in_docker(digest)
        if found is None:
            with self._importing:
                found = self._in_docker(digest) or self._import(digest)
        return found

    def remove(self, ref: str, *, in_use: Container[str] = ()) -> None:
        """Remove an image of the store, and what Docker was given of it."""
        try:
            image = self.store.resolve(ref)
        except NotFound:
            raise NotAllowed(
                f"{ref} is Docker's image, and not ours to remove.", hint=f"docker image rm {ref}"
            ) from None
        self.store.remove(ref, in_use=in_use)
        try:
            self.store.require(image.digest)
        except NotFound:
            with contextlib.suppress(DockerFailed), told():
                self.api.remove_image(f"{REPOSITORY}:{image.digest}")

    def build(self, spec: ImageSpec, name: str, progress: Progress) -> ImageModel:
        return self.store.build(spec, name, progress)

    def import_archive(self, path: Path, name: str, progress: Progress) -> ImageModel:
        return self.store.import_archive(path, name, progress)

    def _in_docker(self, digest: str) -> str | None:
        if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
            return None
        for reference in (f"{REPOSITORY}:{digest}", f"sha256:{digest}"):
            try:
                with told():
                    return str(self.api.inspect_image(reference)["Id"])
            except DockerMissing:
                continue
        return None

    def _import(self, digest: str) -> str:
        image = self.store.resolve(digest)
        rootfs = self.store.rootfs(digest)
        changes = [f"ENV {name}={_quoted(value)}" for name, value in image.env.items()]
        changes.append(f"WORKDIR {_quoted(image.cwd)}")
        # What an image is made of has to arrive unchanged: owners by number, capabilities of files.
        tar = subprocess.Popen(
            ["tar", "-C", rootfs, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-cf-", "."],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert tar.stdout is not None
        try:
            with told(IMAGE_SECONDS):
                self.api.import_image_from_stream(
                    tar.stdout, repository=REPOSITORY, tag=digest, changes=changes
                )
        except DockerFailed as error:
            raise HostNotReady(
                f"The image {digest[:12]} could not be given to Docker.", reason=str(error)
            ) from error
        finally:
            tar.stdout.close()
            status = tar.wait()
        name = f"{REPOSITORY}:{digest}"
        if status != 0:
            with contextlib.suppress(DockerFailed), told():
                self.api.remove_image(name)
            raise HostNotReady(
                f"The image {digest[:12]} could not be read: tar ended with {status}."
            )
        with told():
            return str(self.api.inspect_image(name)["Id"])

    def _model(self, image: dict[str, Any], name: str) -> ImageModel:
        """``image`` as Docker lists it, or as it shows it, which has its configuration."""
        own = [
            tag.partition(":")[2]
            for tag in image.get("RepoTags") or []
            if tag.startswith(f"{REPOSITORY}:")
        ]
        digest = own[0] if own else image["Id"].removeprefix("sha256:")
        configuration = image.get("Config") or {}
        env = dict(line.partition("=")[::2] for line in configuration.get("Env") or [])
        return ImageModel(
            name=name.removesuffix(":latest"),
            digest=digest,
            created=str(image["Created"]),
            size=image["Size"],
            env=env,
            cwd=configuration.get("WorkingDir") or "/",
            source="Docker",
        )


def _quoted(value: str) -> str:
    """A value as Dockerfiles have it."""
    return '"' + re.sub(r'(["\\\\$])', r"\\\1", value) + '"'
