"""The guests' images: Debian with systemd and what zk0d's hosts have, each made once."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from tests import processes
from tests.guests.podman import CACHE, call, podman, prepare_host

BOOKWORM, TRIXIE = "bookworm", "trixie"
# python3 is for Ansible; the last line is what a Python from the host loads.
PACKAGES = """
    systemd systemd-sysv dbus procps iproute2 iptables
    nginx-light curl ca-certificates openssh-client
    python3 python3-apt sudo
    libssl3 libsqlite3-0 libffi8 libreadline8 libncursesw6 libuuid1 libbz2-1.0 liblzma5 zlib1g
"""
#: What a suite calls otherwise.
RENAMED = {TRIXIE: {"libssl3": "libssl3t64", "libreadline8": "libreadline8t64"}}
# Units that need hardware, a console, or the outside.
MASKED = """
    systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket
    systemd-udev-trigger.service systemd-modules-load.service systemd-remount-fs.service
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
    sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount
    getty.target console-getty.service systemd-logind.service systemd-timesyncd.service
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
"""
FILES = {
    # Persistent, so that a test can read what happened before a reboot.
    "etc/systemd/journald.conf.d/guest.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\n"
    "RateLimitIntervalSec=0\n",
    "etc/ld.so.conf.d/zk0d.conf": "/opt/zk0d/python/lib\n/srv/zk0d-packages/python/lib\n",
    "etc/machine-id": "",  # each guest makes its own
}
UNWANTED = (
    "etc/systemd/system/multi-user.target.wants/nginx.service",  # for a test to start
    "etc/resolv.conf",
    "usr/sbin/policy-rc.d",
    "var/lib/dbus/machine-id",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt/archives",
    "var/lib/apt/lists",
)


def ensure_image(suite: str = BOOKWORM) -> str:
    """The image's name, made first if it is not there yet; about a minute then."""
    prepare_host()
    recipe = hashlib.sha256(Path(__file__).read_bytes() + suite.encode()).hexdigest()[:12]
    name = f"localhost/zk0d-guest:{recipe}"
    with FileLock(CACHE / "image.lock"):
        if podman("image", "exists", name, check=False).returncode:
            archive = CACHE / f"guest-{recipe}.tar.gz"
            if not archive.exists():
                _build(archive, suite)
            # STOPSIGNAL is what systemd takes as poweroff.
            changes = ["--change", "STOPSIGNAL SIGRTMIN+3", "--change", "ENV container=podman"]
            podman("import", "--quiet", *changes, str(archive), name, timeout=300)
    return name


def _build(archive: Path, suite: str) -> None:
    work = Path(tempfile.mkdtemp(prefix="build-", dir=CACHE))
    try:
        root = work / "root"
        # Namespaces of its own: an interrupted debootstrap leaves neither mounts nor processes.
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        renamed = RENAMED.get(suite, {})
        include = f"--include={','.join(renamed.get(name, name) for name in PACKAGES.split())}"
        bootstrap = ["debootstrap", "--variant=minbase", include, suite, str(root), _mirror()]
        call([*isolated, *bootstrap], timeout=900)
        _adapt(root)
        _use_apt_of_host(root, suite)
        partial = work / "guest.tar.gz"
        _pack(root, partial)
        partial.rename(archive)
    finally:
        call(["rm", "-rf", "--one-file-system", str(work)], timeout=120)


def _pack(root: Path, archive: Path) -> None:
    tar = ["tar", "--create", "--numeric-owner", "--xattrs", "--directory", str(root), "."]
    with (
        processes.started(tar, stdout=subprocess.PIPE) as process,
        gzip.open(archive, "wb", compresslevel=1) as packed,
    ):
        assert process.stdout is not None
        shutil.copyfileobj(process.stdout, packed)
        assert process.wait() == 0, "tar failed"


def _mirror() -> str:
    """Where this host's apt finds Debian."""
    lines = call(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)"]).stdout
    for line in lines.splitlines():
        release, _, uri = line.partition(" ")
        if release == BOOKWORM:
            return uri
    return "http://deb.debian.org/debian"


def _adapt(root: Path) -> None:
    for name in UNWANTED:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "opt/zk0d"):
        (root / name).mkdir(parents=True)
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    units = root / "etc/systemd/system"
    for unit in MASKED.split():
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")


def _use_apt_of_host(root: Path, suite: str) -> None:
    """Let a guest reach packages as the host does: sources, options, and trusted authorities."""
    apt = root / "etc/apt"
    for name in ("sources.list", "sources.list.d/debian.sources"):
        (apt / name).unlink(missing_ok=True)
        if (Path("/etc/apt") / name).exists():
            text = (Path("/etc/apt") / name).read_text(encoding="utf-8")
            (apt / name).write_text(text.replace(BOOKWORM, suite), encoding="utf-8")
    options = call(["apt-config", "dump", "Acquire"]).stdout
    (apt / "apt.conf.d/90host").write_text(options, encoding="utf-8")
    bundle = Path("etc/ssl/certs/ca-certificates.crt")
    shutil.copyfile("/" / bundle, root / bundle)
