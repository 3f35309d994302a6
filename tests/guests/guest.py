"""One guest: a container that runs its own systemd and is used like a machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote

from tests.guests.podman import CommandError, podman

INIT = Path(__file__).with_name("guest-init")
INIT_INSIDE = "/usr/sbin/guest-init"
CAPABILITIES = "SYS_ADMIN,NET_ADMIN,NET_RAW,SYS_PTRACE,SYS_NICE,AUDIT_WRITE,MKNOD"
POLL = 0.2
FILLER = ".filler"


def wait_until[T](condition: Callable[[], T | None], deadline: float = 30, what: str = "") -> T:
    """The condition's first true answer; ``TimeoutError`` after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not (answer := condition()):
        if time.monotonic() > end:
            name = what or getattr(condition, "__name__", "condition")
            raise TimeoutError(f"not within {deadline:g} s: {name}; last answer: {answer!r}")
        time.sleep(POLL)
    return answer


class Guest:
    """A guest of a network; ``Lab.guest`` makes them."""

    def __init__(
        self,
        name: str,
        container: str,
        image: str,
        network: str,
        address: str,
        label: str,
        *,
        systemd: bool = True,
    ) -> None:
        self.name = name
        self.container = container
        self.address = address
        self._image = image
        self._network = network
        self._label = label
        self._systemd = systemd

    def __repr__(self) -> str:
        return f"Guest({self.name!r}, {self.address})"

    # --- power ------------------------------------------------------------------------------------

    def create(self, mounts: Mapping[Path, str]) -> None:
        """Make the container; ``mounts`` are folders or files of the host, read-only inside."""
        options = [f"--volume={host}:{inside}:ro" for host, inside in mounts.items()]
        podman(
            "create",
            f"--name={self.container}",
            f"--hostname={self.name}",
            f"--label={self._label}",
            f"--network={self._network}:ip={self.address},alias={self.name}",
            f"--systemd={'always' if self._systemd else 'false'}",
            f"--cap-add={CAPABILITIES}",
            f"--volume={INIT}:{INIT_INSIDE}:ro",
            *([f"--entrypoint={INIT_INSIDE}"] if self._systemd else []),
            *options,
            self._image,
            *([] if self._systemd else ["sleep", "infinity"]),
        )

    def start(self, deadline: float = 30) -> str:
        """Power on and wait for the boot's end: ``running``, or ``degraded`` if a unit failed."""
        podman("start", self.container)
        if not self._systemd:
            wait_until(self.is_running, deadline, f"{self.name} is up")
            return "running"
        return wait_until(self._booted, deadline, f"{self.name} is up")

    def _booted(self) -> str:
        state = self.run("systemctl is-system-running", check=False).stdout.strip()
        return state if state in ("running", "degraded") else ""

    def stop(self, deadline: float = 60) -> None:
        """Shut down in order; services get their time to stop."""
        podman("stop", f"--time={deadline:g}", self.container, timeout=deadline + 30)

    def restart(self, deadline: float = 60) -> str:
        """Reboot: an orderly shutdown from inside, then power on."""
        self.run("systemctl --no-block reboot", check=False)
        wait_until(lambda: not self.is_running(), deadline, f"{self.name} is down")
        return self.start(deadline)

    def kill(self) -> None:
        """Cut the power."""
        podman("kill", "--signal=KILL", self.container)
        wait_until(lambda: not self.is_running(), what=f"{self.name} is down")

    def remove(self) -> None:
        """Leave nothing of the guest."""
        podman("rm", "--force", "--ignore", "--volumes", "--time=5", self.container, timeout=60)

    def is_running(self) -> bool:
        done = podman("inspect", "--format={{.State.Running}}", self.container, check=False)
        return done.stdout.strip() == "true"

    # --- commands and files -----------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        user: str = "root",
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell line or a list of arguments; killed inside after ``timeout`` seconds."""
        arguments = ["sh", "-c", command] if isinstance(command, str) else list(command)
        limit = ["timeout", "--kill-after=5", f"{timeout:g}"]
        options = [f"--user={user}", *(["--interactive"] if text is not None else [])]
        whole = ["exec", *options, self.container, *limit, *arguments]
        try:
            return podman(*whole, check=check, timeout=timeout + 30, text=text)
        except CommandError as error:
            raise CommandError(f"{self.name}: {error}") from None

    def read(self, path: str) -> str:
        return self.run(["cat", path]).stdout

    def write(self, path: str, text: str, mode: int = 0o644, owner: str = "root:root") -> None:
        """Write a file as a whole, with its folders."""
        target = quote(path)
        new = quote(f"{path}.new")
        self.run(
            f"mkdir -p $(dirname {target}) && cat >{new} && chown {quote(owner)} {new}"
            f" && chmod {mode:o} {new} && mv {new} {target}",
            text=text,
        )

    def copy_in(self, source: Path, target: str = "/") -> None:
        """Copy a file, or what is in a folder, from the host."""
        path = f"{source}/." if source.is_dir() else str(source)
        podman("cp", path, f"{self.container}:{target}", timeout=300)

    def copy_out(self, path: str, target: Path) -> None:
        """Copy a file or a folder to a folder of the host."""
        podman("cp", f"{self.container}:{path}", str(target), timeout=300)

    def wait_until(
        self, condition: str | Callable[[], object], deadline: float = 30, what: str = ""
    ) -> object:
        """Wait for a shell line to succeed (its output is the answer) or a callable to say yes."""
        if callable(condition):
            return wait_until(condition, deadline, what)
        last = ""

        def succeeds() -> subprocess.CompletedProcess[str] | None:
            nonlocal last
            done = self.run(condition, check=False)
            last = (done.stdout + done.stderr).strip()
            return None if done.returncode else done

        try:
            return wait_until(succeeds, deadline).stdout
        except TimeoutError:
            name = what or condition
            raise TimeoutError(
                f"{self.name}: not within {deadline:g} s: {name}; last output: {last[-1000:]!r}"
            ) from None

    # --- systemd ----------------------------------------------------------------------------------

    def systemctl(
        self, *arguments: str, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return self.run(["systemctl", "--no-pager", *arguments], check=check, timeout=timeout)

    def unit_state(self, unit: str) -> dict[str, str]:
        """Every property of a unit: ActiveState, Result, MainPID, NRestarts, StatusText, …"""
        shown = self.systemctl("show", unit).stdout
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def journal(self, unit: str = "", *, boot: str = "0", lines: int = 500) -> str:
        """The journal of a unit, or of everything; ``boot`` -1 is the one before, "all" is all."""
        return self.run(
            ["journalctl", "--no-pager", "--output=short-precise", f"--lines={lines}"]
            + ([f"--boot={boot}"] if boot != "all" else [])
            + ([f"--unit={unit}"] if unit else []),
            check=False,
        ).stdout

    def boot_id(self) -> str:
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    # --- faults -----------------------------------------------------------------------------------

    def cut(self) -> None:
        """Drop the network's packets in silence, both ways, until ``heal`` or a reboot."""
        self._drop("-I", only_if="!")

    def heal(self) -> None:
        self._drop("-D", only_if="")

    def _drop(self, action: str, only_if: str) -> None:
        for rule in ("INPUT ! -i lo -j DROP", "OUTPUT ! -o lo -j DROP"):
            there = f"iptables -w -C {rule} 2>/dev/null"
            self.run(f"if {only_if} {there}; then iptables -w {action} {rule}; fi")

    def limit_disk(self, path: str, size: str = "16M") -> None:
        """Put a small tmpfs over a folder, with its files, owner and mode; gone after a reboot."""
        self.run(
            f"""set -e; cd {quote(path)}; saved=$(mktemp -d); cp -a . "$saved"
            mount -t tmpfs -o "size={size},$(stat -c uid=%u,gid=%g,mode=%a .)" limited {quote(path)}
            cp -a "$saved/." {quote(path)}; rm -rf "$saved" """
        )

    def fill_disk(self, path: str) -> None:
        """Leave no space in a folder of ``limit_disk``; elsewhere it would be the host's disk."""
        where = quote(path)
        self.run(f'test "$(findmnt -n -o SOURCE -T {where})" = limited')
        self.run(f"cat /dev/zero >{where}/{FILLER} 2>/dev/null", check=False)

    def free_disk(self, path: str) -> None:
        self.run(["rm", "-f", f"{path}/{FILLER}"])
