"""deploy/compose.yaml against the Compose specification, and against the configuration that it sets."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy import tools
from thumbwheel import config
from thumbwheel.perimeter import CertificateFiles, require_closed

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("file", ["compose.yaml", "gpu.yaml"])
def test_it_follows_the_specification(file: str) -> None:
    schema = json.loads(tools.compose_schema().read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load((DEPLOY / file).read_text(encoding="utf-8")), schema)


def test_the_specification_knows_a_mistake() -> None:
    schema = json.loads(tools.compose_schema().read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"server": {"imagee": "thumbwheel"}}}, schema)


@pytest.mark.parametrize("service", ["server", "learner", "keys"])
def test_what_it_sets_is_a_configuration_that_may_be_reached(service: str) -> None:
    given = {
        name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for name, value in SERVICES[service]["environment"].items()
    }
    settings = config.load(Path("/dev/null"), environ={**given, "THUMBWHEEL_DATA_DIR": "/data"})
    require_closed(settings.server.host, settings.security, "server.host")
    require_closed(settings.learner.http_host, settings.security, "learner.http_host")
    assert settings.learner.server == f"server:{settings.server.admin_port}"
    assert settings.redis.url == "redis://redis:6379/0"
    for file in (settings.security.tls_certificate, settings.security.tls_key, settings.client.ca):
        assert file.startswith("/tls/")
        assert service == "keys" or "./tls:/tls:ro" in SERVICES[service]["volumes"]


def test_its_files_are_there() -> None:
    made_by_hand = {"./tls", "./tls/ca.crt"}  # docs/deploy.md
    sources = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    named = {source for source in sources if not source.startswith("./")}
    assert named == set(COMPOSE["volumes"])
    for source in sources - named - made_by_hand:
        assert (DEPLOY / source).exists(), source
    assert (DEPLOY / SERVICES["server"]["build"]["context"] / SERVICES["server"]["build"]["dockerfile"]).is_file()


def test_the_store_is_durable_and_out_of_reach() -> None:
    words = SERVICES["redis"]["command"]
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given == {"--appendonly": "yes", "--appendfsync": "always", "--maxmemory-policy": "noeviction"}
    assert SERVICES["redis"]["networks"] == ["store"]
    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if "store" in service["networks"]} == {
        "redis", "keys", "server", "learner",
    }  # fmt: skip
    assert "redis" in COMPOSE["volumes"]


def test_only_people_reach_it_from_outside() -> None:
    open_ports = {
        port for service in SERVICES.values() for port in service.get("ports", ()) if not port.startswith("127.")
    }
    assert open_ports == {"50051:50051", "8080:8080"}


def test_probes_ask_the_ports_that_are_listened_on() -> None:
    settings = config.Config()
    assert SERVICES["server"]["environment"]["READY"] == f"https://127.0.0.1:{settings.server.http_port}/readyz"
    assert SERVICES["learner"]["environment"]["READY"] == f"https://127.0.0.1:{settings.learner.http_port}/readyz"
    targets = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert [job["static_configs"][0]["targets"] for job in targets] == [
        [f"server:{settings.server.http_port}"], [f"learner:{settings.learner.http_port}"],
    ]  # fmt: skip


def test_a_server_has_the_time_to_drain() -> None:
    assert int(SERVICES["server"]["stop_grace_period"].removesuffix("s")) > config.Config().server.drain + 5


def test_the_certificate_of_the_documents_is_known_by_every_name(tmp_path: Path) -> None:
    """The recipe of docs/deploy.md, and a handshake under each name by which the server is called."""
    text = (DEPLOY.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
    recipe = next(block for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) if "openssl req" in block)
    tools.on_path("openssl")
    subprocess.run(["sh", "-ec", recipe], cwd=tmp_path, capture_output=True, check=True)
    made = tmp_path / "deploy" / "tls"
    security = config.Security(tls_certificate=str(made / "tls.crt"), tls_key=str(made / "tls.key"))
    server = CertificateFiles(security).context
    for name in (SERVICES["server"]["environment"]["THUMBWHEEL_CLIENT__SERVER_NAME"], "localhost", "127.0.0.1"):
        assert handshake(server, ssl.create_default_context(cafile=str(made / "ca.crt")), name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(server, ssl.create_default_context(cafile=str(made / "ca.crt")), "elsewhere.example")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    """Both sides of one, without a socket."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done: set[int] = set()
    while len(done) < 2:
        for number, side in enumerate(sides):
            try:
                side.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                continue
    return True
