"""Write the tables of docs/configuration.md from the traits; `--check`: say whether they are so."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from traitlets import Enum, TraitType
from traitlets.config import Configurable

from jupyter_checkpoints.agent.app import AgentApp
from jupyter_checkpoints.provisioner import ContainerProvisioner
from jupyter_checkpoints.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
CLASSES: dict[str, type[Configurable]] = {
    "ContainerProvisioner": ContainerProvisioner,
    "Runtimes": Settings,
    "AgentApp": AgentApp,
}


def _default(trait: TraitType[Any, Any]) -> str:
    value = trait.default()
    if value in ("", {}):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and value:
        if value % 2**30 == 0:
            return f"`{value >> 30} * 2**30`"
        if value % 2**20 == 0 and value < 2**30:
            return f"`{value >> 20} * 2**20`"
    return f"`{value!r}`"


def _meaning(trait: TraitType[Any, Any]) -> str:
    meaning = " ".join(inspect.cleandoc(trait.help).split()).replace("|", r"\|")
    if isinstance(trait, Enum):
        meaning += f" One of {', '.join(f'`{value!r}`' for value in trait.values)}."
    return meaning


def _table(name: str) -> str:
    traits = CLASSES[name].class_own_traits(config=True)
    rows = [
        f"| `{trait}` | {_default(traits[trait])} | {_meaning(traits[trait])} |"
        for trait in vars(CLASSES[name])  # in the order in which they stand there
        if trait in traits
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def main() -> None:
    page = PAGE.read_text()
    written = re.sub(
        r"(<!-- traits of (\w+): begin -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{_table(match[2])}\n{match[3]}",
        page,
        flags=re.DOTALL,
    )
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(written)
    elif written != page:
        sys.exit("docs/configuration.md is outdated: run `python scripts/configuration.py`")


if __name__ == "__main__":
    main()
