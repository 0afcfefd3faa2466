"""The configuration as text: the commented herd.toml, and every value with where it came from."""

import json
import textwrap
from typing import Any

from node.config import LABELS, LoadedConfig, all_fields
from node.config_values import Field

LINE_LENGTH_MAX = 110
"""Longer explanations go on in a line of their own."""


def default_document() -> str:
    """A herd.toml with every field commented out: its meaning, unit, limits and default. Reading it changes nothing."""
    lines = [
        "# herd.toml: the configuration of one node, read from its home (HERD_HOME, default ~/.herd).",
        "# Every line below shows a default; remove the # to change it. Flags beat HERD_<SECTION>_<KEY> variables,",
        "# and these beat this file. `herd config check` reads it, `herd config show` says where each value is from.",
    ]
    section = ""
    for field in all_fields():
        if field.section != section:
            section = field.section
            lines += ["", f"[{section}]"]
        meaning = textwrap.wrap(_sentence(field.option.help), LINE_LENGTH_MAX, break_long_words=False)
        lines += ["", *(f"# {text}" for text in meaning), f"# {_described(field)}"]
        lines.append(f"# {field.name} = {toml_value(field.default)}")
    lines += ["", f"[{LABELS}]", "", "# What this host is, for people and policies; any key and text."]
    lines += ['# region = "eu"', '# zone = "eu-1"', '# storage_class = "nvme"', '# bandwidth = "10G"']
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def _described(field: Field) -> str:
    unit = f"unit: {field.option.unit}; " if field.option.unit else ""
    return f"{unit}allowed: {field.wanted()}; variable: {field.variable}"


def toml_value(value: Any) -> str:
    """A value as TOML writes it: our values are texts, numbers, truths and lists of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that JSON leaves DEL alone.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)


def shown_values(loaded: LoadedConfig) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of every field and label, in the order of herd.toml; the mesh key is never among them."""
    rows = [(field.key, loaded.value(field.key), str(loaded.origins[field.key])) for field in all_fields()]
    labels = [f"{LABELS}.{name}" for name in loaded.config.labels]
    return rows + [(key, loaded.value(key), str(loaded.origins[key])) for key in labels]


def shown_json(loaded: LoadedConfig) -> dict[str, Any]:
    """`{"home", "file", "values": {key: {"value", "origin"}}}`."""
    values = {key: {"value": value, "origin": origin} for key, value, origin in shown_values(loaded)}
    return {"home": str(loaded.config.home), "file": str(loaded.file), "values": values}
