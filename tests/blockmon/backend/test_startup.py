"""Start-up options of a front end with the engine inside: --blockdev, monitors, --pidfile."""

import os
import socket
from pathlib import Path

import pytest

from blockmon.backend import CommandError, open_backend
from blockmon.backend.pidfile import PidFile
from blockmon.options import CommonOptions, StartupError


def left_in(folder: Path) -> list[str]:
    return os.listdir(folder)


async def test_options_take_effect_in_their_order(tmp_path: Path) -> None:
    path, pidfile = tmp_path / "qmp", tmp_path / "pid"
    options = CommonOptions(pidfile=str(pidfile))
    options.startup = [
        ("--blockdev", "null-co,node-name=below,size=65536"),
        ("--qmp", f"unix:{path}"),
        ("--blockdev", '{"driver": "raw", "node-name": "above", "file": "below"}'),
    ]
    backend = open_backend(options)
    await backend.start()
    names = [node["node-name"] for node in await backend.execute("query-named-block-nodes")]
    assert names == ["above", "below"]
    assert int(pidfile.read_text()) == os.getpid()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    with pytest.raises(CommandError, match="already complete"):
        await backend.execute("qmp_capabilities")
    await backend.close()
    assert left_in(tmp_path) == []


async def test_objects_are_there_for_what_comes_after_them(tmp_path: Path) -> None:
    options = CommonOptions()
    options.startup = [
        ("--object", "throttle-group,id=g,limits.iops-total=10"),
        ("--blockdev", "throttle,node-name=t,throttle-group=g,file.driver=null-co"),
        ("--object", '{"qom-type": "secret", "id": "s", "data": "a,help"}'),
        ("--object", "secret,id=u,data=a,,help"),
    ]
    backend = open_backend(options)
    await backend.start()
    with pytest.raises(CommandError, match="object 'g' is in use"):
        await backend.execute("object-del", {"id": "g"})
    for name, data in (("s", "a,help"), ("u", "a,help")):
        assert await backend.execute("qom-get", {"path": name, "property": "data"}) == data
    await backend.close()
    options.startup.reverse()
    late = open_backend(options)
    with pytest.raises(StartupError, match="Throttle group 'g' does not exist"):
        await late.start()


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--object", "secret,id=s", "Either 'file' or 'data' must be provided"),
        ("--blockdev", "raw,node-name=a,file=nope", "Cannot find device='nope' nor node-name='nope'"),
        ("--monitor", "m", 'chardev "m" not found'),
        ("--hmp", "foo", "expects unix:PATH, tcp:HOST:PORT or stdio"),
    ],
)
async def test_errors_name_the_option(tmp_path: Path, option: str, text: str, message: str) -> None:
    backend = open_backend(CommonOptions(startup=[("--qmp", f"unix:{tmp_path}/s"), (option, text)]))
    with pytest.raises(StartupError) as caught:
        await backend.start()
    assert (caught.value.what, caught.value.message) == (f"{option} {text}", message)
    assert left_in(tmp_path) == []


def test_a_pid_file_that_became_another_s_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pidfile = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    path.unlink()
    path.write_text("1\n")
    pidfile.remove()
    assert path.read_text() == "1\n"
