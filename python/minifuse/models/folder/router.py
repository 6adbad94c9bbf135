"""A Router, or an Asym by its old name: other modules for queries than for documents."""

from __future__ import annotations

from pathlib import Path

from minifuse.models.description import read_object
from minifuse.models.folder.common import within

__all__ = ["ROUTERS", "read_router"]

# The names of its class.
ROUTERS = ("Router", "Asym")


def read_router(router: Path) -> tuple[dict[str, list[tuple[str, Path]]], str]:
    """Return the modules of queries and those of documents, and where other texts go.

    Args:
        router: its folder.

    Returns:
        "query" and "document", each with (class name, folder) of its modules, and one of the two.

    Raises:
        FileNotFoundError: it has no configuration.
        ValueError: that is damaged, or asks for other routes.
    """
    path = router / "router_config.json"
    if not path.is_file():
        path = router / "config.json"  # of an Asym
    config = read_object(path)
    types, structure = config.get("types"), config.get("structure")
    parameters = config.get("parameters") or {}
    if not (
        isinstance(types, dict)
        and isinstance(structure, dict)
        and isinstance(parameters, dict)
        and set(structure) == {"query", "document"}
        and all(isinstance(names, list) for names in structure.values())
        and all(isinstance(types.get(str(n)), str) for names in structure.values() for n in names)
    ):
        raise ValueError(f"{path}: wanted types, and a structure of query and document")
    if parameters.get("route_mappings"):
        raise ValueError(f"{path}: route_mappings is given, wanted none")
    routes = {
        route: [(types[n].rsplit(".", 1)[-1], within(router, n, path)) for n in names]
        for route, names in structure.items()
    }
    # Its first one, unless it wants every text to name a route.
    default = parameters.get("default_route") or next(iter(structure))
    if not parameters.get("default_route") and parameters.get("allow_empty_key") is False:
        raise ValueError(
            f"{path}: allow_empty_key is False and there is no default_route: minifuse needs a "
            "route for texts of no task"
        )
    if default not in routes:
        raise ValueError(f"{path}: default_route is {default!r:.60}, wanted query or document")
    return routes, default
