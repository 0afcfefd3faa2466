"""`herd config`: what is configured and why, whether it is right, what there is to configure, the mesh key."""

import json
import os
from pathlib import Path
from typing import Any

import click

from node.cli.options import HerdGroup, node_options
from node.cli.output import complain, document, line, table
from node.errors import NotFound


@click.group("config", cls=HerdGroup)
def config_group() -> None:
    """Show, check and explain the configuration.

    A flag beats a variable HERD_<SECTION>_<KEY>, that beats herd.toml in the home, that beats the default.
    """


def _load(home: Path | None, models: str | None) -> Any:
    from node.config import load_config

    loaded = load_config(home, os.environ, {"store.models_path": models})
    if loaded.ignored_variables:
        complain(loaded.warning())
    return loaded


@config_group.command("show")
@node_options
def show(home: Path | None, models: str | None, as_json: bool) -> None:
    """Every value and where it is from."""
    from node.config_text import shown_json, shown_values, toml_value

    loaded = _load(home, models)
    if as_json:
        document(shown_json(loaded))
        return
    line(f"home {loaded.config.home}")
    rows = [(key, toml_value(value), origin) for key, value, origin in shown_values(loaded)]
    table(("KEY", "VALUE", "FROM"), rows)


@config_group.command("check")
@node_options
def check(home: Path | None, models: str | None, as_json: bool) -> None:
    """Read it as `herd up` would.

    Exit 2 names the place of the first fault: file, variable or flag, key, value and what is allowed.
    """
    loaded = _load(home, models)
    if as_json:
        document({"valid": True, "file": str(loaded.file)})
    else:
        line(f"{loaded.file}: " + ("right" if loaded.file.exists() else "absent; environment and defaults are right"))


@config_group.command("default")
@node_options
def default(home: Path | None, models: str | None, as_json: bool) -> None:
    """A commented herd.toml with every key."""
    from node.config import all_fields
    from node.config_text import default_document

    if as_json:
        document(
            {
                field.key: {
                    "default": field.default,
                    "unit": field.option.unit,
                    "allowed": field.wanted(),
                    "help": field.option.help,
                    "variable": field.variable,
                }
                for field in all_fields()
            }
        )
    else:
        click.echo(default_document(), nl=False)


@config_group.command("mesh-key")
@node_options
def mesh_key(home: Path | None, models: str | None, as_json: bool) -> None:
    """The mesh key of this home, in hex.

    A secret: whoever has it can enter the mesh.
    """
    from node.config import home_directory
    from node.trust.mesh_key import FILE_NAME, load_mesh_key

    directory = home_directory(home, os.environ)
    key = load_mesh_key(directory)
    if key is None:
        raise NotFound(
            f"{directory / FILE_NAME}: this home has no mesh key yet; `herd up` without --bootstrap makes one,"
            " and a member's is given with --mesh-key-file or HERD_MESH_KEY"
        )
    click.echo(json.dumps({"mesh_key": key.hex()}) if as_json else key.hex())
