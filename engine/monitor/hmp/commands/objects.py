"""Objects: object_add, object_del, qom-list, qom-get, qom-set, info iothreads, info qom-tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.commands.qom import Found, resolve
from engine.errors import DeviceNotFound
from engine.monitor.hmp.registry import hmp, info
from engine.objects.base import UserObject
from engine.objects.text import read_options
from engine.qapi import to_wire
from engine.qapi.json_stream import dumps, from_json
from engine.qapi.member_order import as_walked

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp("object_add", args="object:S", params="[qom-type=]type,id=str[,prop=value][,...]", help="create QOM object")
async def _object_add(monitor: Monitor, args: dict[str, Any]) -> None:
    options = read_options(args["object"])
    if isinstance(options, str):
        monitor.print(options)
    else:
        await monitor.engine.run_command("object-add", to_wire(options))


@hmp("object_del", args="id:s", params="id", help="destroy QOM object")
async def _object_del(monitor: Monitor, args: dict[str, Any]) -> None:
    await monitor.qmp("object-del", id=args["id"])


@hmp("qom-list", args="path:s?", params="path", help="list QOM properties")
async def _qom_list(monitor: Monitor, args: dict[str, Any]) -> None:
    if "path" not in args:
        monitor.print("/\n")
        return
    for found in await monitor.qmp("qom-list", path=args["path"]):
        monitor.print(f"{found['name']} ({found['type']})\n")


@hmp("qom-get", args="path:s,property:s", params="path property", help="print QOM property")
async def _qom_get(monitor: Monitor, args: dict[str, Any]) -> None:
    value = await monitor.qmp("qom-get", path=args["path"], property=args["property"])
    monitor.print(dumps(as_walked(value), pretty=True) + "\n")


@hmp(
    "qom-set",
    args="json:-j,path:s,property:s,value:S",
    params="[-j] path property value",
    help="set QOM property.\n\t\t\t-j: the value is specified in json format.",
)
async def _qom_set(monitor: Monitor, args: dict[str, Any]) -> None:
    if args.get("json"):
        value = from_json(args["value"])
        arguments = {"path": args["path"], "property": args["property"], "value": value}
        await monitor.engine.run_command("qom-set", arguments)
    else:
        resolve(monitor.engine, args["path"]).set_property(args["property"], args["value"], text=True)


@info("iothreads", help="show iothreads")
async def _info_iothreads(monitor: Monitor, args: dict[str, Any]) -> None:
    for found in await monitor.qmp("query-iothreads"):
        monitor.print(f"{found['id']}:\n  thread_id={found['thread-id']}\n")
        for name in ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"):
            monitor.print(f"  {name}={found[name]}\n")


@info("qom-tree", args="path:s?", params="[path]", help="show QOM composition tree")
async def _info_qom_tree(monitor: Monitor, args: dict[str, Any]) -> None:
    # QEMU begins at /machine, which is there only with devices here.
    path = args.get("path", "/")
    try:
        found = resolve(monitor.engine, path)
    except DeviceNotFound:
        monitor.print(f"Path '{path}' could not be resolved.\n")
        return
    name = found.id if isinstance(found, UserObject) else found.path.strip("/")
    _print_tree(monitor, name, found, "")


def _print_tree(monitor: Monitor, name: str, found: Found, indent: str) -> None:
    monitor.print(f"{indent}/{name} ({found.qom_name()})\n")
    if not isinstance(found, UserObject):
        for child in sorted(found.children):
            _print_tree(monitor, child, found.children[child], indent + "  ")
