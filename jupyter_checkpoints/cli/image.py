"""``image build|import|list|remove``: what kernels run in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import to_builtins
from traitlets import Bool, Unicode

from .. import kernelspecs
from ..agent.image_spec import ImageSpec, read_spec, shipped, shipped_spec
from ..client import AgentClient
from ..errors import InvalidRequest
from ..models import ImageModel
from .base import AgentCommand, Command
from .output import size

_HERE = "jupyter_checkpoints.cli.image"


class ImageApp(Command):
    name = "jupyter-checkpoints image"
    synopsis = "build|import|list|remove"
    arguments = (0, None)
    description = "Images: the read-only root file systems that kernels run in."
    subcommands: dict[str, Any] = {
        "build": (f"{_HERE}.BuildApp", "Build an image from a specification"),
        "import": (f"{_HERE}.ImportApp", "Import an OCI or docker-save archive"),
        "list": (f"{_HERE}.ListApp", "List images"),
        "remove": (f"{_HERE}.RemoveApp", "Remove images"),
    }

    def run(self) -> None:
        if self.extra_args:
            raise InvalidRequest(f"Usage: {self.usage_line()}")
        self.print_help()


class BuildApp(AgentCommand):
    name = "jupyter-checkpoints image build"
    synopsis = "SPECIFICATION"
    arguments = (1, 1)
    description = f"""Build an image from a specification: a TOML file that tells a Debian suite,
    Debian packages, Python packages, environment, commands to run and kernels. No registry of
    images is needed. These specifications come along and are named without a path:
    {", ".join(shipped())}.

    The name goes to the new image; a former one stays, as checkpoints may need it.

    With --json: the image, {{"name", "digest", "created", "size", "env", "cwd", "packages",
    "source"}}."""
    examples = """\
jupyter checkpoints image build r --kernelspecs
jupyter checkpoints image build ./lab.toml --name lab:2026-11

  # lab.toml
  suite = "trixie"
  packages = ["git"]
  python = ["ipykernel", "scipy"]
  env = { OMP_NUM_THREADS = "2" }

  [[kernels]]
  name = "lab"
  display_name = "Lab"
  language = "python"
  argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]"""

    image_name = Unicode("", help="The image's name. Default: the specification's.").tag(
        config=True
    )
    kernelspecs = Bool(False, help="Install a kernelspec for each of its kernels.").tag(config=True)

    aliases = {**AgentCommand.aliases, "name": "BuildApp.image_name"}
    flags = {
        **AgentCommand.flags,
        "kernelspecs": (
            {"BuildApp": {"kernelspecs": True}},
            "Install a kernelspec for each of its kernels.",
        ),
    }

    async def work(self, agent: AgentClient) -> None:
        given = self.extra_args[0]
        spec = shipped_spec(given) if given in shipped() else read_spec(Path(given))
        name = self.image_name or Path(given).name.removesuffix(".toml").lower()
        with self.progress(f"image {name}") as on_event:
            image = await agent.build_image(name, to_builtins(spec), on_event)
        if self.kernelspecs:
            _install_kernelspecs(spec, image)
        self.print_result(image, lambda: _show(image))


class ImportApp(AgentCommand):
    name = "jupyter-checkpoints image import"
    synopsis = "ARCHIVE --name NAME"
    arguments = (1, 1)
    description = """Import an image from an archive: an OCI image layout, or what `docker save`
    or `podman save` writes; plain, or compressed with gzip or zstd.

    The image must bring a kernel program, for instance ipykernel. Digests are verified, and
    nothing in the archive is run.

    With --json: the image, as `image build`."""
    examples = """\
docker save quay.io/jupyter/scipy-notebook -o scipy.tar
jupyter checkpoints image import scipy.tar --name scipy
jupyter checkpoints kernelspec add scipy --image scipy \\
    -- python -m ipykernel_launcher -f {connection_file}"""

    image_name = Unicode("", help="The image's name.").tag(config=True)

    aliases = {**AgentCommand.aliases, "name": "ImportApp.image_name"}

    async def work(self, agent: AgentClient) -> None:
        if not self.image_name:
            raise InvalidRequest(f"Usage: {self.usage_line()}")
        archive = _absolute(self.extra_args[0])
        with self.progress(f"image {self.image_name}") as on_event:
            image = await agent.import_image(self.image_name, archive, on_event)
        self.print_result(image, lambda: _show(image))


class ListApp(AgentCommand):
    name = "jupyter-checkpoints image list"
    description = """List images, the newest first. One without a name had its name given to a
    newer one.

    With --json: an array of images, as `image build`."""

    async def work(self, agent: AgentClient) -> None:
        images = await agent.images()

        def show() -> None:
            from .output import moment, print_table

            print_table(
                ["NAME", "DIGEST", "CREATED", "SIZE", "FROM"],
                [
                    (i.name or "-", i.digest[:12], moment(i.created), size(i.size), i.source)
                    for i in images
                ],
                empty="No images. `jupyter checkpoints setup` builds the first one.",
            )

        self.print_result(images, show)


class RemoveApp(AgentCommand):
    name = "jupyter-checkpoints image remove"
    synopsis = "IMAGE..."
    arguments = (1, None)
    description = """Remove images by name or digest. One that a kernel or a checkpoint needs
    stays, with an error.

    With --json: {"removed": [IMAGE, ...]}."""

    async def work(self, agent: AgentClient) -> None:
        for image in self.extra_args:
            await agent.remove_image(image)
        removed = list(self.extra_args)
        self.print_result({"removed": removed}, lambda: print("\n".join(removed)))


def _absolute(path: str) -> Path:
    """The agent works in another directory."""
    return Path(path).absolute()


def _install_kernelspecs(spec: ImageSpec, image: ImageModel) -> None:
    for kernel in spec.kernels:
        kernelspecs.add(
            kernel.name,
            image=image.name,
            argv=kernel.argv,
            display_name=kernel.display_name,
            language=kernel.language,
            mode=kernel.mode,
            replace=True,
        )


def _show(image: ImageModel) -> None:
    print(f"{image.name} {image.digest[:12]} ({size(image.size)})")
