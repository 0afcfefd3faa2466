"""Ollama's model names: `[host/][namespace/]model[:tag]`, each part becoming one path component.

The grammar is that of Ollama's own parser: parts from the right, ASCII only, limits per part.
"""

import re
from typing import Self

import attrs

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}")


class InvalidName(ValueError):
    """The text is no model name; the message says which part and what it may hold."""


def _check(pattern: re.Pattern[str], part: str, kind: str, text: str) -> None:
    if pattern.fullmatch(part) is None:
        allowed = {"host": "letters, digits, _ - . :", "namespace": "letters, digits, _ -"}.get(
            kind, "letters, digits, _ - ."
        )
        raise InvalidName(
            f"invalid model name {text[:120]!r}: {kind} {part[:60]!r} must begin with a letter, digit or _"
            f" and hold {allowed} and nothing else, at most {350 if kind == 'host' else 80} characters"
        )


@attrs.frozen(order=True)
class ModelName:
    """One model name, whole: all four parts are set."""

    host: str
    namespace: str
    model: str
    tag: str

    def __attrs_post_init__(self) -> None:
        text = self.full()
        _check(_HOST, self.host, "host", text)
        _check(_NAMESPACE, self.namespace, "namespace", text)
        _check(_PART, self.model, "model", text)
        _check(_PART, self.tag, "tag", text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name a person typed; missing parts get Ollama's defaults. Raises InvalidName."""
        rest = text.split("://", 1)[1] if "://" in text else text
        tag = DEFAULT_TAG
        if rest.rfind(":") > rest.rfind("/"):
            rest, tag = rest.rsplit(":", 1)
        parts = rest.split("/")
        if len(parts) > 3:
            raise InvalidName(f"invalid model name {text[:120]!r}: at most host/namespace/model")
        model = parts[-1]
        namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
        host = parts[-3] if len(parts) > 2 else DEFAULT_HOST
        return cls(host, namespace, model, tag)

    def full(self) -> str:
        """`host/namespace/model:tag`, the form records carry."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def display(self) -> str:
        """As Ollama shows it: default host and namespace left out, the tag always there."""
        shown = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{shown}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{shown}"
        return shown

    def path_parts(self) -> tuple[str, str, str, str]:
        """The four path components under `manifests/`."""
        return (self.host, self.namespace, self.model, self.tag)
