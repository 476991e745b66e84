"""A network of machines on one: each a namespace with an address; where not permitted, loopback."""

import os
import shutil
import subprocess
from collections.abc import Sequence


class Network:
    """One namespace a machine, each with a cable to one router."""

    def __init__(self, machines: Sequence[str]) -> None:
        self.machines = list(machines)
        self.tag = f"pl{os.getpid() % 100_000}"
        self.separate = False

    def __enter__(self) -> "Network":
        self.separate = self._permitted()
        if self.separate:
            try:
                self._build()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.separate:
            for name in [*self.machines, "router"]:
                subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True)

    def address(self, machine: str) -> str:
        """Return a machine's address."""
        if not self.separate:
            return "127.0.0.1"
        return f"10.213.{self.machines.index(machine)}.2"

    def inside(self, machine: str) -> list[str]:
        """Return the words that run a command on a machine."""
        return ["ip", "netns", "exec", self._space(machine)] if self.separate else []

    def cut(self, machine: str) -> None:
        """Pull a machine's plug."""
        self._ip("router", "link", "set", f"p{self.machines.index(machine)}", "down")

    def mend(self, machine: str) -> None:
        """Plug a machine in again."""
        self._ip("router", "link", "set", f"p{self.machines.index(machine)}", "up")

    def _permitted(self) -> bool:
        if shutil.which("ip") is None:
            return False
        probe = f"{self.tag}probe"
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
        words = [
            "ip",
            "-n",
            probe,
            "link",
            "add",
            "probe0",
            "type",
            "veth",
            "peer",
            "name",
            "probe1",
        ]
        usable = made and not subprocess.run(words, capture_output=True).returncode
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)
        return usable

    def _build(self) -> None:
        for name in ["router", *self.machines]:
            subprocess.run(["ip", "netns", "add", self._space(name)], check=True)
            self._ip(name, "link", "set", "lo", "up")
        forward = ["sysctl", "-qw", "net.ipv4.ip_forward=1"]
        subprocess.run(["ip", "netns", "exec", self._space("router"), *forward], check=True)
        for number, name in enumerate(self.machines):
            plug, router = f"p{number}", f"10.213.{number}.1"
            self._ip("router", "link", "add", plug, "type", "veth", "peer", "name", "eth0",
                     "netns", self._space(name))  # fmt: skip
            self._ip("router", "address", "add", f"{router}/24", "dev", plug)
            self._ip("router", "link", "set", plug, "up")
            self._ip(name, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            self._ip(name, "link", "set", "eth0", "up")
            self._ip(name, "route", "add", "default", "via", router)

    def _space(self, name: str) -> str:
        return f"{self.tag}{'router' if name == 'router' else self.machines.index(name)}"

    def _ip(self, machine: str, *words: str) -> None:
        command = ["ip", "-n", self._space(machine), *words]
        subprocess.run(command, check=True, capture_output=True)
