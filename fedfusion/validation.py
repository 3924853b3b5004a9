"""Is a configuration meaningful? Names, signatures and types, all errors at once, before anything is loaded."""

import difflib
import importlib
import inspect
import json
import logging
import pkgutil
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from typing_extensions import get_protocol_members, is_protocol

from fedfusion.errors import FedfusionError

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it raises


class ConfigErrors(FedfusionError):
    """Everything that is wrong with a configuration, one sentence each."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


def check_option(override: Override, options: Sequence[str]) -> list[str]:
    """Say whether the option of `group=option` is missing from the group."""
    if several := _several(override):
        return several
    value = override.value()
    option = value if isinstance(value, str) else str(override.input_line).partition("=")[2]
    if option in options or override.is_delete():
        return []
    return [f"{override.input_line}: no '{option}' in {override.key_or_group}/ ({nearest(option, options)})"]


def check_key(override: Override, cfg: DictConfig, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Say whether the key of `key=value` is missing from the composed configuration; `+key` may be new."""
    if several := _several(override):
        return several
    keys = sorted({*_keys(cfg), *groups})
    name = override.key_or_group
    if override.is_add() or override.is_force_add() or name in keys:
        return []
    hint = nearest(name, keys)
    offered = next((options for group, options in groups.items() if hint == f"did you mean '{group}'?"), None)
    offers = f" it offers {', '.join(offered)}" if offered and str(override.value()) not in offered else ""
    return [f"{override.input_line}: no key '{name}' ({hint}{offers})"]


def _several(override: Override) -> list[str]:
    """Say whether an override is of a grid."""
    said = f"{override.input_line}: several values make several runs (use fedfusion sweep)"
    return [said] if override.is_sweep_override() else []


def check_values(cfg: DictConfig, schema: type) -> list[str]:
    """Check every `_target_` node against its signature, plain keys against `schema`, and what each stage refuses."""
    known, hints = set(inspect.signature(schema).parameters), get_type_hints(schema)
    stages = [key for key, hint in hints.items() if key in cfg and (hint is Any or is_protocol(hint))]
    errors = [f"{key}: missing, the experiment needs it" for key in sorted(known - set(map(str, cfg)))]
    errors += [f"{key}: the experiment has no such key" for key in map(str, cfg) if key not in known | {"_target_"}]
    errors += [_untargeted(key, cfg[key]) for key in stages if not has_target(cfg[key])]
    errors += _check_types("", schema, {k: v for k, v in cfg.items() if k not in ("_target_", *stages)})
    for key, node in cfg.items():
        if has_target(node):
            errors += check_target(str(key), node) or refused(str(key), node, hints.get(str(key)))
    return errors


def refused(key: str, node: DictConfig, protocol: Any) -> list[str]:
    """What the class behind a `_target_` node says against its values, or what it lacks of a protocol."""
    try:
        made = instantiate(node, _convert_="all")
    except HydraException as error:
        said = str(error.__cause__ or error).strip().splitlines()
        return said if isinstance(error.__cause__, FedfusionError) else said[:1]
    hints = _hints(get_object(node["_target_"]))
    parts = {str(name): part for name, part in node.items() if has_target(part) and _protocol(hints.get(str(name)))}
    errors = [error for name, part in parts.items() for error in refused(f"{key}.{name}", part, hints[name])]
    return [*_lacking(key, made, _protocol(protocol)), *errors]


def _lacking(key: str, made: Any, protocol: Any) -> list[str]:
    """What the object that was made lacks of a protocol, if there is one."""
    if protocol is None:
        return []
    members, name = sorted(get_protocol_members(protocol)), type(made).__name__
    where = f"see {protocol.__module__}.{protocol.__name__}, which says what it must have"
    if lacking := [member for member in members if member not in dir(made)]:
        return [f"{key}: {name} has no {', '.join(lacking)} ({where})"]
    methods = [member for member in members if inspect.isfunction(getattr(protocol, member, None))]
    unlike = {member: _unlike(getattr(made, member), getattr(protocol, member)) for member in methods}
    return [f"{key}: {name}.{member} {why} ({where})" for member, why in unlike.items() if why]


def _unlike(method: Any, asked: Any) -> str | None:
    """Why a bound method cannot be called with the arguments of the protocol's function, if it cannot."""
    _, *arguments = inspect.signature(asked).parameters
    try:
        inspect.signature(method).bind(*arguments)
    except (TypeError, ValueError) as error:
        return f"cannot be called with {', '.join(arguments)}: {error}"
    return None


def check_target(key: str, node: DictConfig) -> list[str]:
    """Bind a `_target_` node to the signature of its callable; one sentence per error."""
    target = node["_target_"]
    try:
        callable_ = get_object(target)
    except Exception as error:  # hydra wraps whatever the import raised
        return [f"{key}._target_: {missing(target, error)}"]
    given = {str(k): v for k, v in node.items() if k not in ("_target_", "_partial_", "_convert_", "_recursive_")}
    errors = [e for k, v in given.items() if has_target(v) for e in check_target(f"{key}.{k}", v)]
    try:
        parameters = inspect.signature(callable_).parameters
    except (TypeError, ValueError) as error:
        return [*errors, f"{key}._target_: '{target}' cannot be built: {error}"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        errors += [
            f"{key}.{name}: {target.rpartition('.')[2]} has no parameter '{name}' ({nearest(name, list(parameters))})"
            for name in given
            if name not in parameters
        ]
    if not node.get("_partial_"):
        errors += [
            f"{key}.{name}: missing, {target.rpartition('.')[2]} needs it"
            for name, p in parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in given
        ]
    plain = {k: v for k, v in given.items() if not has_target(v)}
    return errors + (_check_types(f"{key}.", callable_, plain) if inspect.isclass(callable_) else [])


def missing(target: str, error: BaseException) -> str:
    """Why a `_target_` cannot be imported, and what it should perhaps have been."""
    parts = target.split(".")
    if len(parts) == 1:
        return f"cannot import '{target}' (give the whole path, as flwr.serverapp.strategy.FedMedian)"
    for count in range(len(parts) - 1, 0, -1):
        try:
            package = importlib.import_module(".".join(parts[:count]))
        except Exception:  # it is no module, or one that raises
            continue
        known = {*dir(package), *(module.name for module in pkgutil.iter_modules(getattr(package, "__path__", [])))}
        close = difflib.get_close_matches(parts[count], [name for name in known if not name.startswith("_")], n=1)
        if parts[count] not in known and close:
            meant = ".".join([*parts[:count], close[0], *parts[count + 1 :]])
            return f"cannot import '{target}' (did you mean '{meant}'?)"
        break
    return f"cannot import '{target}' ({first_line(error.__cause__ or error)})"


def _check_types(prefix: str, callable_: Any, given: Mapping[Any, Any]) -> list[str]:
    hints, errors = _hints(callable_), []
    for name, value in given.items():
        if name not in hints:
            continue
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        hint = hints[name]
        try:
            if not _fits(value, hint):
                way_out = f" (write {prefix}{name}=[{value}])" if _fits([value], hint) else ""
                errors.append(f"{prefix}{name}: expected {_type_name(hint)}, got {value!r}{way_out}")
        except PydanticSchemaGenerationError:  # a protocol or a callable: no plain value to check
            null = value is None and NoneType not in _alternatives(hint)
            if _protocol(hint) and (null or isinstance(value, Mapping)):
                errors.append(_untargeted(f"{prefix}{name}", value))
    return errors


def _untargeted(key: str, given: Any) -> str:
    """A stage is given as values alone, or as null."""
    if given is None:
        return f"{key}: null builds nothing, the experiment needs it (leave out {key}=null)"
    return f"{key}._target_: missing, it says which class is built (as {key}._target_=module.Class)"


def _hints(callable_: Any) -> dict[str, Any]:
    """The types of the parameters by name."""
    return get_type_hints(callable_.__init__ if inspect.isclass(callable_) else callable_)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Those of a union, or the one there is."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _protocol(hint: Any) -> Any:
    """The protocol among the alternatives, if there is one."""
    return next(filter(is_protocol, _alternatives(hint)), None)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type."""
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace("collections.abc.", "")


def nearest(name: str, valid: Sequence[str]) -> str:
    """The valid name that looks most like `name`, as a question, or all of them."""
    group, _, tail = name.partition(".")
    deeper = [v for v in valid if v.startswith(f"{group}.") and v.endswith(f".{tail}")]  # the right key, one level up
    matches = deeper or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if not matches:  # a misspelt last part under the right parent, or the other way round
        tails = {v.rpartition(".")[2]: v for v in valid}
        matches = [tails[m] for m in difflib.get_close_matches(name.rpartition(".")[2], list(tails), n=1)]
    choice = ", ".join(v for v in valid if "." not in v and not v.startswith("_"))
    if matches:
        return f"did you mean '{matches[0]}'?"
    return f"choose among: {choice}" if choice else "it has none"


def has_target(node: Any) -> bool:
    """Whether Hydra instantiates this node."""
    return isinstance(node, DictConfig) and not node._is_none() and node.get("_target_") is not None


def flat(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        nested = isinstance(value, Mapping)
        leaves |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, node):
        path = f"{prefix}{key}"
        keys.append(path)
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            keys += _keys(child, f"{path}.")
    return keys
