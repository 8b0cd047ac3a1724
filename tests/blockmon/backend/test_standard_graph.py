"""Our own engine, asked as any QEMU would be: the graph is the one that its own query tells."""

from pathlib import Path

from blockmon.backend.embedded import EmbeddedBackend
from blockmon.model.graph import EdgeInfo
from blockmon.model.source import QueryGraphSource, StandardGraphSource
from blockmon.options import CommonOptions
from tests.qemu import QemuImages

NODES = (
    *("driver=null-co,node-name=disk,size=1048576", "driver=null-co,node-name=target,size=1048576"),
    *("driver=raw,node-name=raw,file.driver=null-co,file.size=1048576", "driver=copy-on-read,node-name=cor,file=raw"),
    "driver=raw,node-name=part,offset=512,size=512,file.driver=null-co,file.size=1048576",
    "driver=quorum,node-name=quorum,vote-threshold=1,children.0.driver=null-co,children.1.driver=null-co",
    "driver=blklogwrites,node-name=logged,file.driver=null-co,log.driver=null-co",
    "driver=blkverify,node-name=verified,raw.driver=null-co,test.driver=null-co",
    "driver=blkdebug,node-name=debugged,image.driver=null-co",
    "driver=compress,node-name=compress,file=cluster",
    "driver=copy-before-write,node-name=cbw,file.driver=null-co,target.driver=null-co",
    "driver=qcow2,node-name=outside,file.driver=file,file.filename={where}/outside,data-file.driver=file,"
    "data-file.filename={where}/data",
    "driver=vmdk,node-name=extents,file.driver=file,file.filename={where}/extents.vmdk",
)


def make_images(images: QemuImages, where: Path) -> list[str]:
    """The images of NODES, and the nodes with their paths."""
    images.create(where / "cluster", 1 << 20)
    images.create(where / "outside", 1 << 20, data_file=f"{where}/data")
    images.create(where / "extents.vmdk", 1 << 20, fmt="vmdk", subformat="twoGbMaxExtentSparse")
    nodes = [f"driver=qcow2,node-name=cluster,file.driver=file,file.filename={where}/cluster"]
    return nodes + [node.replace("{where}", str(where)) for node in NODES]


async def test_both_ways_of_asking_tell_the_same(tmp_path: Path, qemu_img: str, qemu_io: str) -> None:
    nodes = make_images(QemuImages(qemu_img, qemu_io), tmp_path)
    options = CommonOptions(startup=[("--blockdev", node) for node in nodes])
    options.startup += [("--device", "virtio-blk,drive=disk,id=vda")]
    options.startup += [("--nbd-server", f"addr.type=unix,addr.path={tmp_path}/n")]
    options.startup += [("--export", "nbd,id=e0,node-name=quorum")]
    backend = EmbeddedBackend(options)
    await backend.start()
    try:
        mirror = {"job-id": "m0", "device": "disk", "target": "target", "sync": "full", "speed": 1}
        await backend.execute("blockdev-mirror", mirror)
        commands = [entry["name"] for entry in await backend.execute("query-commands")]
        own = await QueryGraphSource().fetch(backend)
        standard = await StandardGraphSource(commands).fetch(backend)
    finally:
        await backend.close()

    def facts(edge: EdgeInfo) -> tuple[object, ...]:
        # What parents are called differs; the monitor's hold on nodes no query of QEMU's tells.
        parent = edge.parent if edge.parent_kind == "node" else edge.parent_kind
        return parent, edge.name, edge.child, frozenset(edge.roles), edge.perm, edge.shared

    assert {facts(edge) for edge in standard.edges} == {
        facts(edge) for edge in own.edges if edge.parent_kind != "monitor"
    }
    assert standard.nodes.keys() == own.nodes.keys()
    for name, node in standard.nodes.items():
        told = own.nodes[name]
        for what in ("driver", "filename", "read_only", "filter", "implicit", "auto_name", "backing_file"):
            assert (name, what, getattr(node, what)) == (name, what, getattr(told, what))
        assert (name, node.size) == (name, -(-told.size // 512) * 512)  # QEMU's queries round up to sectors
