"""OpenStack Swift with its S3 interface in one process: run by the Python that has Debian's packages.

swift_server.py FOLDER: keeps everything below FOLDER, prints the port, and ends with its standard input.
One copy of everything on one device; the user is ``test:tester`` with the key ``testing``.
"""

import sys
from array import array
from pathlib import Path

import eventlet
import eventlet.wsgi

eventlet.monkey_patch()

from swift.account.server import AccountController  # noqa: E402 (what it imports must be patched first)
from swift.common import storage_policy, utils  # noqa: E402
from swift.common.ring import RingData  # noqa: E402
from swift.common.wsgi import loadapp  # noqa: E402
from swift.container.server import ContainerController  # noqa: E402
from swift.obj.server import ObjectController  # noqa: E402

PROXY = """
[DEFAULT]
swift_dir = {folder}
[pipeline:main]
pipeline = catch_errors bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
min_segment_size = 1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


class Quiet:
    def write(self, _text: str) -> None:
        pass


class Cache:
    """Stands for memcached, which remembers tokens and what containers are like."""

    def __init__(self) -> None:
        self._known: dict[str, object] = {}

    def get(self, key: str, **_options: object) -> object:
        return self._known.get(key)

    def set(self, key: str, value: object, **_options: object) -> None:
        self._known[key] = value

    def delete(self, key: str, **_options: object) -> None:
        self._known.pop(key, None)


def serve(app: object, listener: object) -> None:
    eventlet.spawn(
        eventlet.wsgi.server, listener, app, log=Quiet(), log_output=False, socket_timeout=60, keepalive=True
    )


def main(place: str) -> None:
    folder = Path(place)
    conf = folder / "swift.conf"
    conf.write_text(
        "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    utils.SWIFT_CONF_FILE = str(conf)
    storage_policy.SWIFT_CONF_FILE = str(conf)
    storage_policy.reload_storage_policies()
    (folder / "devices" / "sda1").mkdir(parents=True)
    settings = {
        "devices": str(folder / "devices"),
        "swift_dir": str(folder),
        "mount_check": "false",
        "fallocate_reserve": "0",
        "user": "root",
        "disable_fallocate": "true",
    }
    kinds = {"account": AccountController, "container": ContainerController, "object": ObjectController}
    for name, kind in kinds.items():
        listener = eventlet.listen(("127.0.0.1", 0))
        device = {
            "id": 0,
            "zone": 0,
            "region": 1,
            "device": "sda1",
            "ip": "127.0.0.1",
            "weight": 1,
            "port": listener.getsockname()[1],
        }
        device |= {"replication_ip": device["ip"], "replication_port": device["port"]}
        RingData([array("H", [0])], [device], 32).save(str(folder / f"{name}.ring.gz"))
        serve(kind(dict(settings)), listener)
    proxy = folder / "proxy.conf"
    proxy.write_text(PROXY.format(folder=folder))
    listener = eventlet.listen(("127.0.0.1", 0))
    app, cache = loadapp(str(proxy), global_conf={}), Cache()
    serve(lambda environ, start: app({**environ, "swift.cache": cache}, start), listener)
    print(listener.getsockname()[1], flush=True)
    eventlet.tpool.execute(sys.stdin.read)


if __name__ == "__main__":
    main(*sys.argv[1:])
