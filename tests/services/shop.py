"""A coordinator that offers stand-ins of checkpoints, and a node of its roster."""

from __future__ import annotations

import contextlib
import shutil
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.release.stand_in_checkpoint import put
from tests.services.lab import Lab, lab
from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.federation.line import Line
from zk0d.machine.node_word import HEADER, write_word
from zk0d.release.offer import Offered
from zk0d.release.pulled import Pulled
from zk0d.services.presence import Presence, PresencePage
from zk0d.services.pull import Source, pull
from zk0d.services.releases import ReleasesDoor


@dataclass
class Shop:
    """A coordinator that offers releases, and a node of its roster."""

    made: Lab
    server: ServerSettings
    door: ReleasesDoor
    client: ClientSettings
    url: str
    trust: Any
    with_nginx: bool
    carried: bool

    @property
    def offered(self) -> Offered:
        return self.door._offered

    @property
    def pulled(self) -> Pulled:
        return Pulled.of(self.client)

    @property
    def key(self) -> Path:
        return self.client.supernode.key

    def put(self, run: str, *losses: float, **how: Any) -> Path:
        folder = put(self.server, run, *losses, **how)
        self.offered.hash_new()
        return folder

    @contextlib.contextmanager
    def source(self, line: Line | None = None, key: Path | None = None) -> Iterator[Source]:
        made = Source(self.client, key or self.key, line, patience=5.0)
        try:
            yield made
        finally:
            made.close()

    def pull(self, name: str = "latest", line: Line | None = None) -> Path:
        with self.source(line) as source:
            return pull(self.client, source, name).folder

    def get(self, page: str, key: Path | None = None, **headers: str) -> httpx.Response:
        """A page that a node with this key asks for."""
        path = httpx.URL(self.url + page).path
        signed = {HEADER: write_word(key or self.key, path)[0]}
        return httpx.get(self.url + page, headers={**signed, **headers}, verify=self.trust)

    def clear(self) -> None:
        """Offer nothing, and have nothing here."""
        shutil.rmtree(self.server.releases_folder, ignore_errors=True)
        shutil.rmtree(self.client.policies_folder, ignore_errors=True)
        shutil.rmtree(self.client.superexec.state, ignore_errors=True)
        self.client.coordinator.release_key.unlink(missing_ok=True)
        self.offered.hash_new()


@contextlib.contextmanager
def opened(root: Path, *, with_nginx: bool, carries: bool = True) -> Iterator[Shop]:
    """Open one.

    Parameters
    ----------
    with_nginx, carries
        Whether a real nginx stands before it, and whether that sends the files itself.
    """
    with lab(root, Path("/nothing")) as made:
        server = ServerSettings.load(made.server_toml)
        ours = ReleasesDoor.of(server)
        page = PresencePage(Presence(), made.presence, releases=ours)
        try:
            config = made.add_node("arm")
            trust: Any = True
            url = f"http://127.0.0.1:{made.presence}/zk0d/v1"
            if with_nginx:
                made.start_gateway(carries=carries)
                url = f"https://127.0.0.1:{made.gateway}/zk0d/v1"
                trust = ssl.create_default_context(cafile=str(made.certificates.ca))
            else:
                text = config.read_text()
                config.write_text(
                    text.replace("[coordinator]", f'[coordinator]\npresence = "{url}"')
                )
            client = ClientSettings.load(config)
            carried = with_nginx and carries
            yield Shop(made, server, ours, client, url, trust, with_nginx, carried)
        finally:
            page.close()
