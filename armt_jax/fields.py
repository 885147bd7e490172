"""From plain values to dataclasses: unknown keys, missing ones and wrong types are errors that name them."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any


def suggestion(name: str, known) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(map(str, known))})"


def plain(value: Any) -> Any:
    """ConfigDicts and lists to dicts and tuples, all the way down."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return tuple(plain(v) for v in value) if isinstance(value, (list, tuple)) else value


def as_section(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"config: {name} = {value!r} must be a section (a dict of settings)")
    return dict(value)


def build(kind: type, fields: Mapping[str, Any], section: str) -> Any:
    """kind(**fields), refusing unknown and missing fields by name."""
    fields = as_section(section, fields)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise ValueError(f"config: unknown key {section}.{name}{suggestion(name, known)}")
    for name, field in known.items():
        if name not in fields and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"config: {section}.{name} is missing, and {kind.__name__} has no default for it")
    for name, value in fields.items():
        check_type(f"{section}.{name}", value, known[name].type)
    return kind(**fields)


_SIMPLE = {"int": int, "float": (int, float), "bool": bool, "str": str}


def check_type(name: str, value: Any, declared: Any) -> None:
    """Catches `--config.x=abc` for numbers; anything but int, float, bool, str (or None beside them) is left to the class."""
    text = declared if isinstance(declared, str) else getattr(declared, "__name__", str(declared))
    allowed = [part.strip() for part in str(declared if "|" in str(declared) else text).split("|")]
    if not all(part in (*_SIMPLE, "None") for part in allowed):
        return
    if value is None and "None" in allowed:
        return
    fits = any(isinstance(value, _SIMPLE[p]) and (p == "bool" or not isinstance(value, bool)) for p in allowed if p != "None")
    if not fits:
        raise ValueError(f"config: {name} = {value!r} must be {' or '.join(allowed)}, not {type(value).__name__}")


def named(section: str, fields: Mapping[str, Any], registry: Mapping[str, type]) -> tuple[type, dict[str, Any]]:
    fields = as_section(section, fields)
    name = fields.pop("name", None)
    if name not in registry:
        raise ValueError(f"config: {section}.name = {name!r} is unknown{suggestion(name, registry)}")
    return registry[name], fields
