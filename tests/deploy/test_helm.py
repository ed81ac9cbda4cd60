"""The chart: what Helm makes of it is what Kubernetes takes, and a configuration that the servers start with."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy import monitoring, tools
from thumbwheel import config
from thumbwheel.perimeter import require_closed

CHART = monitoring.DEPLOY / "helm" / "thumbwheel"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
NEEDED: dict[str, Any] = {
    "redis": {"url": "rediss://thumbwheel@redis.example:6380/0"},
    "tls": {"secret": "thumbwheel-tls", "serverName": "chat.example"},
    "keys": {"secret": "thumbwheel-keys"},
}
EVERYTHING: dict[str, Any] = NEEDED | {
    "image": {"pullSecrets": ["registry"]},
    "config": {
        "server": {"drain": 20, "kv_cache_bytes": 4294967296, "host": "127.0.0.1"},
        "learner": {"min_votes": 128, "lora": {"rank": 8}},
        "release": {"mode": "canary", "share": 0.25},
        "model": {"path": "/data/models/mine"},
    },
    "redis": NEEDED["redis"] | {"passwordSecret": "redis-password"},
    "data": {"storageClass": "shared", "size": "200Gi"},
    "server": {
        "replicas": 3,
        "service": {"type": "LoadBalancer", "annotations": {"example/internal": "true"}},
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboards": {"enabled": True},
}
CASES = {"least": NEEDED, "everything": EVERYTHING, "own-claim": NEEDED | {"data": {"claim": "mine"}}}

Manifests = list[dict[str, Any]]


def helm(*arguments: str | Path, values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [tools.helm(), *map(str, arguments), "--values", str(file)]
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifests]:
    """By case."""
    made: dict[str, Manifests] = {}
    for name, values in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        done = helm("template", "wheel", CHART, "--namespace", "chat", values=values, folder=folder)
        assert done.returncode == 0, done.stderr
        (folder / "rendered.yaml").write_text(done.stdout, encoding="utf-8")
        made[name] = [each for each in yaml.safe_load_all(done.stdout) if each]
    return made


@pytest.fixture(params=CASES)
def manifests(rendered: dict[str, Manifests], request: pytest.FixtureRequest) -> Manifests:
    return rendered[request.param]


def of(manifests: Manifests, kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [
        each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == (name or "wheel-thumbwheel")
    ]
    return found


def deployments(manifests: Manifests) -> Iterator[tuple[str, dict[str, Any]]]:
    """Component and pod's specification."""
    for each in manifests:
        if each["kind"] == "Deployment":
            yield each["metadata"]["labels"]["app.kubernetes.io/component"], each["spec"]["template"]["spec"]


# --- the values


def filled(values: dict[str, Any]) -> dict[str, Any]:
    """Over the chart's own, as Helm lays them."""

    def lay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
        both = {key: lay(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(below[key], dict)}
        return {**below, **above, **both}

    return lay(VALUES, values)


@pytest.mark.parametrize("case", CASES)
def test_the_schema_takes_what_is_right(case: str) -> None:
    jsonschema.validate(filled(CASES[case]), SCHEMA)


def test_the_schema_takes_what_the_documents_give() -> None:
    text = (monitoring.DEPLOY.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
    needed, gpu = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL))
    jsonschema.validate(filled(needed), SCHEMA)
    jsonschema.validate(filled({**needed, **gpu}), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("redis.url", ""), ("redis.url", "unix:///redis.sock"), ("tls.secret", ""), ("tls.serverName", ""),
        ("keys.secret", ""), ("keys.secret", "Not A Name"), ("server.replicas", "2"), ("server.replicas", -1),
        ("server.replica", 2), ("servers", {}), ("config.serve", {}), ("config.server", 5), ("data.size", "much"),
        ("image.pullPolicy", "Sometimes"), ("server.service.type", "Cluster"), ("server.maxUnavailable", "some"),
        ("serviceMonitor.interval", "15"), ("image.tag", ""),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_wrong(path: str, value: object) -> None:
    values = deepcopy(filled(NEEDED))
    *folders, key = path.split(".")
    place = values
    for folder in folders:
        place = place[folder]
    place[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_the_schema_knows_every_value_and_no_other() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], place: str) -> None:
        assert schema["additionalProperties"] is False, place
        assert set(schema["properties"]) - {"global"} == set(values), place
        for key, value in values.items():
            below = schema["properties"][key]
            if isinstance(value, dict) and "properties" in below and place + key != "config":
                compare(value, below, f"{place}{key}.")

    compare(VALUES, SCHEMA, "")
    tables = {name for name, value in config.Config() if isinstance(value, config.Section)}
    assert set(SCHEMA["properties"]["config"]["properties"]) == tables


def test_helm_refuses_what_the_schema_refuses(tmp_path: Path) -> None:
    done = helm("template", "wheel", CHART, values={}, folder=tmp_path)
    assert done.returncode != 0
    for name in ("url", "serverName", "secret"):
        assert name in done.stderr


# --- what it makes


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_no_fault(case: str, tmp_path: Path) -> None:
    done = helm("lint", "--strict", CHART, values=CASES[case], folder=tmp_path)
    assert done.returncode == 0, done.stdout


def test_kubernetes_takes_it(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tools.kubernetes_schemas()))
    import kubernetes_validate

    ours = [each for each in manifests if not each["apiVersion"].startswith("monitoring.coreos.com/")]
    assert {each["kind"] for each in ours} >= {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget"}
    for each in ours:
        kubernetes_validate.validate(each, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(ours[0] | {"metdata": {}}, "1.33", strict=True)


def test_kubectl_reads_it(manifests: Manifests, tmp_path: Path) -> None:
    """Its client-side dry run asks a cluster for the kinds that there are; without one, it can only read."""
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(manifests), encoding="utf-8")
    command = [tools.kubectl(), "label", "--local", "--dry-run=client", "-o", "name", "-f", str(file), "a=b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) == len(manifests)


def test_the_configuration_is_one(manifests: Manifests, tmp_path: Path) -> None:
    file = tmp_path / "thumbwheel.toml"
    file.write_text(of(manifests, "ConfigMap")["data"]["thumbwheel.toml"], encoding="utf-8")
    settings = config.load(file, environ={})
    require_closed(settings.server.host, settings.security, "server.host")
    require_closed(settings.learner.http_host, settings.security, "learner.http_host")
    assert settings.server.host == "0.0.0.0", "stronger than what values say"
    assert settings.learner.server == f"wheel-thumbwheel-admin:{settings.server.admin_port}"
    assert settings.client.server_name == "chat.example"
    for component, pod in deployments(manifests):
        (container,) = pod["containers"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        files = [
            settings.security.tls_certificate,
            settings.security.tls_key,
            settings.client.ca,
            str(settings.data_dir / "x"),
        ]
        files += [settings.redis.password_file] if settings.redis.password_file else []
        files += [settings.client.key_file] if component == "learner" else []
        for path in files:
            assert str(Path(path).parent) in mounted, path
        assert container["args"] == [
            {"server": "serve", "learner": "learn"}[component],
            "--config",
            "/etc/thumbwheel/thumbwheel.toml",
        ]


def test_values_become_the_configuration(rendered: dict[str, Manifests], tmp_path: Path) -> None:
    file = tmp_path / "thumbwheel.toml"
    file.write_text(of(rendered["everything"], "ConfigMap")["data"]["thumbwheel.toml"], encoding="utf-8")
    settings = config.load(file, environ={})
    assert (settings.server.drain, settings.server.kv_cache_bytes) == (20, 4294967296)
    assert (settings.learner.min_votes, settings.learner.lora.rank) == (128, 8)
    assert (settings.release.mode, settings.release.share) == ("canary", 0.25)
    assert settings.redis.password_file == "/redis/password"
    server = of(rendered["everything"], "Deployment", "wheel-thumbwheel-server")["spec"]
    assert server["template"]["spec"]["terminationGracePeriodSeconds"] >= 20 + 10
    assert server["replicas"] == 3
    assert server["template"]["spec"]["nodeSelector"] == {"gpu": "yes"}
    least = of(rendered["least"], "Deployment", "wheel-thumbwheel-server")["spec"]["template"]
    assert server["template"]["metadata"]["annotations"] != least["metadata"]["annotations"], "a change is a restart"


def test_pods_may_do_little(manifests: Manifests) -> None:
    for _, pod in deployments(manifests):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001  # the image's
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        assert secrets
        assert {secret["defaultMode"] for secret in secrets} == {0o440}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_probes_ask_what_is_listened_on(manifests: Manifests) -> None:
    defaults = config.Config()
    ports = {"server": defaults.server.http_port, "learner": defaults.learner.http_port}
    for component, pod in deployments(manifests):
        (container,) = pod["containers"]
        named = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert named["http"] == ports[component]
        for probe, path in (("startup", "/readyz"), ("readiness", "/readyz"), ("liveness", "/healthz")):
            assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "http", "scheme": "HTTPS"}


def test_services_lead_to_pods(manifests: Manifests) -> None:
    pods = [each["spec"]["template"] for each in manifests if each["kind"] == "Deployment"]
    services = [each for each in manifests if each["kind"] == "Service"]
    assert {each["metadata"]["name"] for each in services} == {
        "wheel-thumbwheel", "wheel-thumbwheel-admin", "wheel-thumbwheel-learner",
    }  # fmt: skip
    for service in services:
        (pod,) = [pod for pod in pods if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()]
        known = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= known
    public = [port["name"] for port in of(manifests, "Service")["spec"]["ports"]]
    assert public == ["grpc", "web"], "never the admin port"
    budget = of(manifests, "PodDisruptionBudget", "wheel-thumbwheel-server")["spec"]
    (server,) = [pod for pod in pods if budget["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()]
    assert server["metadata"]["labels"]["app.kubernetes.io/component"] == "server"


def test_the_volume_is_everybodys(rendered: dict[str, Manifests]) -> None:
    claim = of(rendered["everything"], "PersistentVolumeClaim", "wheel-thumbwheel-data")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert not [each for each in rendered["own-claim"] if each["kind"] == "PersistentVolumeClaim"]
    for case, name in (("everything", "wheel-thumbwheel-data"), ("own-claim", "mine")):
        for _, pod in deployments(rendered[case]):
            (volume,) = [each for each in pod["volumes"] if each["name"] == "data"]
            assert volume["persistentVolumeClaim"] == {"claimName": name}


# --- monitoring


def test_prometheus_finds_both_halves(rendered: dict[str, Manifests]) -> None:
    manifests = rendered["everything"]
    services = [each for each in manifests if each["kind"] == "Service"]
    jobs = set()
    for monitor in (each for each in manifests if each["kind"] == "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [each for each in services if wanted <= each["metadata"]["labels"].items()]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        assert endpoint["scheme"] == "https"
        assert endpoint["authorization"] == {"credentials": {"name": "thumbwheel-keys", "key": "metrics.key"}}
        assert endpoint["tlsConfig"]["serverName"] == "chat.example"
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        jobs |= {label["replacement"] for label in endpoint["relabelings"] if label["targetLabel"] == "job"}
    scraped = yaml.safe_load((monitoring.PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert jobs == {job["job_name"] for job in scraped}
    assert not [each for each in rendered["least"] if each["apiVersion"].startswith("monitoring.coreos.com/")]


def test_rules_and_dashboards_are_those_of_deploy(rendered: dict[str, Manifests]) -> None:
    groups = of(rendered["everything"], "PrometheusRule")["spec"]["groups"]
    assert [rule for group in groups for rule in group["rules"]] == monitoring.rules()
    for name, dashboard in monitoring.dashboards().items():
        held = of(rendered["everything"], "ConfigMap", f"wheel-thumbwheel-dashboard-{name}")
        assert json.loads(held["data"][f"{name}.json"]) == dashboard
        assert held["metadata"]["labels"]["grafana_dashboard"] == "1"
