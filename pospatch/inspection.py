"""What is there: the positional mechanism of a model, the catalogue of methods, the families that can be reached."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from pospatch import registry
from pospatch.errors import BadOptionType

if TYPE_CHECKING:
    from pospatch.checkpoint.doctor import Diagnosis

__all__ = ["Inspection", "catalogue_markdown", "hosts", "hosts_markdown", "inspect", "methods"]


@dataclass
class Inspection:
    """The positional mechanism of one model; prints as a table.

    Args:
        method: name of the method on top of the stack, or None where the model is unpatched.
        stack: the methods with their options, lowest first.
        sites: for each site what is native, what stands there now, and the module paths.
        trained_length: tokens the base was trained for, or None where its config does not say.
        length: tokens the config promises now.
        weights: names of the learned tensors of the patch.
    """

    family: str
    model: str
    method: str | None
    stack: list[dict[str, Any]]
    sites: list[dict[str, Any]]
    trained_length: int | None
    length: int | None
    native: bool
    weights: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dict(vars(self))

    def __str__(self) -> str:
        return _table(self)


@overload
def inspect(model: str | os.PathLike[str], **options: Any) -> Diagnosis: ...
@overload
def inspect(model: Any) -> Inspection: ...
def inspect(model: Any, **options: Any) -> Inspection:
    """What positional mechanism a model has, where, and how long it was trained for.

    Of a path or repository no weight is loaded: what the checkpoint claims, what transformers will use, and where the two
    differ (a `Diagnosis`, which is an `Inspection` with `claims` and `findings`).

    Args:
        model: a model, or the path of a folder or a GGUF file, or a Hub repository; of a model or an adapter.
        options: for a path: auto_class, base (of an adapter), revision, token, cache_dir, subfolder, local_files_only.

    Raises:
        UnsupportedHost: a family that pospatch cannot reach.
        CheckpointError: nothing there that could be looked at.
    """
    if isinstance(model, str | os.PathLike):
        from pospatch.checkpoint.doctor import diagnose

        return diagnose(model, **options)
    if options:
        raise BadOptionType(f"inspect: {sorted(options)} go with a path; got a {type(model).__name__}")
    from pospatch.api import patch_of, unwrap
    from pospatch.checkpoint import adopt
    from pospatch.engine._describe import describe
    from pospatch.engine._geometry import trained_length

    target = unwrap(model)
    adopt(target)
    patch = patch_of(target)
    sites, trained = (patch.sites, patch.trained_length) if patch is not None else describe(target)
    stack = [{"method": m.name, **m.options()} for m in patch.stack] if patch is not None else []
    return Inspection(
        family=target.config.model_type,
        model=type(target).__name__,
        method=stack[-1]["method"] if stack else None,
        stack=stack,
        sites=sites,
        trained_length=trained,
        length=trained_length(target.config.get_text_config()),
        native=patch is None or patch.native,
        weights=[name for name, _ in target.named_parameters() if ".pospatch." in name or "pospatch_table" in name],
    )


def methods(model: Any = None) -> dict[str, dict[str, Any]]:
    """The catalogue: for each method its family, site, needs and source; for a model also whether it fits and why not.

    With a model, `fits` is True or False and `reason` says why it cannot be applied; a method whose required options have no
    default is tried with factor 2.
    """
    catalogue = {name: _entry(name) for name in registry.names()}
    if model is not None:
        from pospatch.api import patch_of, unwrap
        from pospatch.engine._trial import Trial

        trial = Trial(unwrap(model), patch_of(model))
        for name, entry in catalogue.items():
            entry["reason"] = trial.reason(name)
            entry["fits"] = entry["reason"] is None
    return catalogue


def _entry(name: str) -> dict[str, Any]:
    from pospatch.methods._shards import allowed

    method = registry.method_class(name)
    return {
        "family": method.family,
        "site": method.slot,
        "needs": method.needs,
        "causal_only": method.causal_only,
        "exact_decode": method.exact_decode,
        "scales": allowed(method),
        "source": method.source,
        "summary": _summary(method.__doc__ or ""),
    }


def _summary(doc: str) -> str:
    """The first paragraph on one line."""
    return " ".join(doc.strip().split("\n\n")[0].split())


def catalogue_markdown() -> str:
    """The catalogue as a Markdown table, sorted by family; the README holds exactly this."""
    by_family = sorted(methods().items(), key=lambda item: (item[1]["family"], item[0]))
    columns = ("family", "summary", "site", "needs")
    rows = [
        [f"`{name}`", *(entry[column] for column in columns), ", ".join(entry["scales"]), entry["source"]]
        for name, entry in by_family
    ]
    return _markdown(["method", "family", "what it does", "site", "needs", "trains under", "source"], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def hosts() -> dict[str, str]:
    """Families that can be reached, with the short name of their wiring."""
    from pospatch.hosts import HOSTS

    return {family: host.wiring for host in HOSTS for family in host.families}


def hosts_markdown() -> str:
    """The families as a Markdown table, a row a wiring, in the order of the registry; the README holds exactly this."""
    from pospatch.hosts import HOSTS

    return _markdown(
        ["wiring", "families (`model_type`)", "note"],
        [[host.wiring, ", ".join(host.families), host.note] for host in HOSTS],
    )


def _table(seen: Inspection) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{seen.model} ({seen.family})", title_justify="left")
    for column in ("site", "native", "now", "modules"):
        table.add_column(column, overflow="fold")
    for site in seen.sites:
        paths = site["modules"]
        where = paths[0] + (f" ... ({len(paths)})" if len(paths) > 1 else "") if paths else ""
        table.add_row(site["site"], site["native"], site["now"], where)
    out = StringIO()
    console = Console(file=out, width=110)
    console.print(table)
    stack = " + ".join(_call(item) for item in seen.stack) or "none (unpatched)"
    console.print(f"stack: {stack}", highlight=False)
    console.print(
        f"trained length: {seen.trained_length or 'not stated'} tokens; length in the config now: {seen.length or 'not stated'}",
        highlight=False,
    )
    if seen.weights:
        console.print(f"learned tensors of the patch: {len(seen.weights)}, e.g. {seen.weights[0]}", highlight=False)
    return out.getvalue()


def _call(item: dict[str, Any]) -> str:
    options = ", ".join(f"{name}={value}" for name, value in item.items() if name != "method")
    return f"{item['method']}({options})"
