"""Which keys a config has: the table that the reader, the help and the error messages share."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from typing import Any, Literal, TypeVar

import pydantic.dataclasses

T = TypeVar("T")


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class one section of a config.

    It becomes a frozen dataclass that checks its values and refuses unknown keys. The string below
    a field is the help for its key.
    """
    settings = {"extra": "forbid", "allow_inf_nan": False}
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=settings)(cls)  # type: ignore[call-overload]
    checked: type[T] = made
    return checked


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        name: The dotted name, such as ``train.batch_size``.
        hint: The annotation of the field.
        default: The value of a config that does not have the key; `dataclasses.MISSING` if it must.
        about: The docstring of the field, or of the section.
        method: The one method that has the key; None for a key of every method.
        sections: The classes of a section, several where its keys depend on the method; empty for a
            key that holds a value.
    """

    name: str
    hint: Any
    default: Any
    about: str
    method: str | None = None
    sections: tuple[type, ...] = ()

    @property
    def types(self) -> list[Any]:
        """The members of the key's type: classes, `Literal`s and None."""
        return members(self.hint)

    @property
    def choices(self) -> list[Any]:
        """The values that the type spells out."""
        found: list[Any] = []
        for member in self.types:
            if typing.get_origin(member) is Literal:
                found += typing.get_args(member)
        return found

    def takes(self, kind: type) -> bool:
        """Whether values of a class such as `bool` or `list` may be given."""
        return any(member is kind or typing.get_origin(member) is kind for member in self.types)

    @property
    def main_key(self) -> str | None:
        """The only required key of a section, which ``--SECTION VALUE`` sets."""
        if len(self.sections) != 1:
            return None
        required = []
        for field in dataclasses.fields(self.sections[0]):
            if _default(field) is dataclasses.MISSING:
                required.append(field.name)
        return f"{self.name}.{required[0]}" if len(required) == 1 else None


@functools.cache
def keys(kind: type, prefix: str = "", method: str | None = None) -> tuple[Key, ...]:
    """Return every key of a config: those that hold a value, then each section with its own keys.

    A key that several methods have is there once for each of them.
    """
    found: list[Key] = []
    in_sections: list[Key] = []
    hints = typing.get_type_hints(kind, include_extras=True)
    docstrings = _field_docstrings(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        hint, default = hints[field.name], _default(field)
        classes: tuple[Any, ...] = tuple(filter(dataclasses.is_dataclass, members(hint)))
        about = docstrings.get(field.name) or (inspect.getdoc(classes[0]) if classes else "")
        key = Key(name, hint, default, about or "", method, classes)
        if not classes:
            found.append(key)
        elif len(classes) == 1:
            in_sections += [key, *keys(classes[0], f"{name}.", method)]
        else:
            in_sections += [key, *_keys_by_method(name, classes, default)]
    return (*found, *in_sections)


def _keys_by_method(name: str, classes: tuple[type, ...], default: Any) -> list[Key]:
    """Return the keys of a section that is one of several classes, one for each method."""
    methods = tuple(method_of(cls) for cls in classes)
    # `Literal` is subscripted with values that are known only here.
    choice = Key(f"{name}.method", Literal[methods], default.method, "The tuning method.")
    found = [choice]
    for cls in classes:
        for key in keys(cls, f"{name}.", method_of(cls)):
            if key.name != choice.name:
                found.append(key)
    return found


def method_of(cls: type) -> str | None:
    """Return the method that a section is for; None for a section of no particular method."""
    hint = typing.get_type_hints(cls).get("method") if dataclasses.is_dataclass(cls) else None
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Literal else None


def members(hint: Any) -> list[Any]:
    """Return the members of a union, or the one type that a hint is; without `Annotated`."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return members(typing.get_args(hint)[0])
    if origin not in (typing.Union, types.UnionType):
        return [None if hint is type(None) else hint]
    found: list[Any] = []
    for part in typing.get_args(hint):
        found += members(part)
    return found


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _field_docstrings(cls: type) -> dict[str, str]:
    """Return the string below each field of a class and of its bases, each as one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        definition = typing.cast(ast.ClassDef, tree.body[0])
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                name = typing.cast(ast.Name, statement.target).id
                text = typing.cast(ast.Constant, following.value).value
                found[name] = " ".join(str(text).split())
    return found
