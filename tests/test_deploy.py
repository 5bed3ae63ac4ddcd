"""What deploy/ and docker-compose.yml hold: valid, in step with each other, and what can run here is run.

No image is built: that needs Docker. What a tool says that is not installed is skipped by name.
"""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from examples import orders as example
from rstream.cli.main import COMMANDS, cli
from tests.commands import Commands
from tests.metrics import documented
from tests.objects import client, moto

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text("utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
RULE_TESTS = sorted((DEPLOY / "prometheus").glob("*_test.yml"))
DASHBOARD = DEPLOY / "grafana/dashboards/rstream.json"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OBJECTS = [found for path in MANIFESTS for found in yaml.safe_load_all(path.read_text("utf-8"))]
PODS = [found["spec"]["template"]["spec"] for found in OBJECTS if found["kind"] == "Deployment"]
SCALE = next(found for found in OBJECTS if found["kind"] == "ScaledObject")


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def says_ok(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- metrics: what is asked for is what there is --------------------------------------------------------------------


def test_metrics_are_named_by_the_conventions() -> None:
    for metric in documented().values():
        assert metric.type in ("counter", "gauge", "histogram")
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert metric.type != "histogram" or metric.name.endswith(("_seconds", "_bytes")), metric.name
        assert metric.labels.keys() <= {"stream", "group", "outcome", "reason", "operation", "process", "version"}
        assert len(metric.meaning) > 10


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """All of deploy/, each with where it is."""
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]
    for panel in panels():
        yield from ((f"panel {panel['title']}", target["expr"]) for target in panel["targets"])
    for variable in json.loads(DASHBOARD.read_text("utf-8"))["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["query"]["query"]
    for trigger in SCALE["spec"]["triggers"]:
        yield "scale.yaml", trigger["metadata"]["query"]


def test_every_query_asks_for_documented_metrics() -> None:
    pytest.importorskip("promql_parser")
    from tests.promql import problems

    metrics = documented().values()
    found = [f"{where}: {problem}" for where, query in queries() for problem in problems(query, metrics)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("rstream_group_lag_seconds{stream='a'", "unclosed|unexpected|expected"),
        ("rate(rstream_handler_seconds[5m])", "rstream_handler_seconds is not in"),
        ("rstream_group_lag_seconds{shard='1'}", "no label shard"),
        ("sum by (key) (rstream_group_lag_seconds)", "a label key"),
        ("rstream_group_settled_total{outcome='died'}", "outcome is never 'died'"),
        ("rstream_group_lag_seconds * on (tenant) rstream_group_paused", "a label tenant"),
        ("label_values(rstream_stream, stream)", "rstream_stream is not in"),
    ],
)
def test_a_query_for_what_is_not_there_is_found(query: str, told: str) -> None:
    pytest.importorskip("promql_parser")
    from tests.promql import problems

    (problem,) = problems(query, documented().values())
    assert re.search(told, problem)


# -- alerts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_where_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning") and "for" in rule
    summary = rule["annotations"]["summary"]
    assert "\n" not in summary and len(summary) < 400
    by = re.search(r"by \(([\w, ]+)\)", rule["expr"])
    where = set(by[1].split(", ") if by else ()) & {"stream", "group", "instance"}
    assert all(f"$labels.{label} " in summary for label in where), "it does not say where"
    for command in re.findall(r"`rstream ([a-z]+)", summary):
        assert command in COMMANDS
    assert re.fullmatch(r"docs/runbook\.md#[a-z-]+", rule["annotations"]["runbook"])


def test_the_runbook_has_what_alerts_link_to() -> None:
    page = ROOT / "docs" / "runbook.md"
    text = page.read_text("utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in re.findall("^#+ .*", text, re.M)
    }
    anchors = headings | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    assert {rule["annotations"]["runbook"].partition("#")[2] for rule in RULES} <= anchors


def test_every_alert_is_seen_to_fire_in_the_tests_of_the_rules() -> None:
    text = "".join(path.read_text("utf-8") for path in RULE_TESTS)
    fired = set(re.findall(r'alertname="(\w+)", alertstate="firing"', text))
    assert fired == {rule["alert"] for rule in RULES}


def test_prometheus_accepts_its_configuration() -> None:
    says_ok(tool("promtool"), "check", "config", DEPLOY / "prometheus/prometheus.yml")


def test_the_alerts_fire_when_they_should() -> None:
    says_ok(tool("promtool"), "test", "rules", *RULE_TESTS)


BILLING = '{stream="orders", group="billing"}'


@pytest.mark.parametrize(
    ("lag", "unread", "paused", "asked"),
    [("90", "7", "0", 90), ("90", None, "0", 90), ("90", "0", "0", 0), ("90", "7", "1", 0), (None, "7", "0", None)],
)
def test_workers_are_scaled_by_what_waits(
    tmp_path: Path, lag: str | None, unread: str | None, paused: str, asked: float | None
) -> None:
    """A lag in seconds, how many are unread, whether the group is paused: each None where nobody says it."""
    said = {"rstream_group_lag_seconds": lag, "rstream_group_lag_entries": unread, "rstream_group_paused": paused}
    series = [
        {"series": f'{name}{BILLING[:-1]}, instance="{exporter}"}}', "values": value}
        for name, value in said.items()
        for exporter in "ab"
        if value is not None
    ]
    query = SCALE["spec"]["triggers"][0]["metadata"]["query"]
    samples = [] if asked is None else [{"labels": "{}", "value": asked}]
    expected = [{"expr": query, "eval_time": "0m", "exp_samples": samples}]
    test = {"rule_files": [], "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": expected}]}
    (tmp_path / "scale_test.yml").write_text(yaml.safe_dump(test))
    says_ok(tool("promtool"), "test", "rules", tmp_path / "scale_test.yml")


def test_prometheus_scrapes_what_compose_runs() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    targets = {job["job_name"]: job for job in jobs}
    (exporter,) = targets["rstream"]["static_configs"][0]["targets"]
    assert exporter == f"metrics:{SERVICES['metrics']['command'][-1]}"
    assert targets["rstream-workers"]["dns_sd_configs"][0]["names"] == ["worker"]
    assert "worker" in SERVICES
    assert {name for rule in RULES for name in re.findall('job="([^"]+)"', rule["expr"])} <= targets.keys()


# -- the dashboard --------------------------------------------------------------------------------------------------


def test_the_dashboard_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("grafana_dashboard", DEPLOY / "grafana/dashboard.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert DASHBOARD.read_text("utf-8") == module.text(), "run python deploy/grafana/dashboard.py"


def test_panels_have_places_of_their_own_and_the_source_of_the_provisioning() -> None:
    board = json.loads(DASHBOARD.read_text("utf-8"))
    ids, cells = [panel["id"] for panel in board["panels"]], set[tuple[int, int]]()
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells and max(x for x, _ in taken) < 24, panel["title"]
        cells |= taken
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text("utf-8"))[
        "datasources"
    ][0]
    (variable,) = [each for each in board["templating"]["list"] if each["type"] == "datasource"]
    assert variable["current"]["value"] == source["uid"] and source["url"] == "http://prometheus:9090"
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"] if panel["type"] != "row")


# -- compose and the image ------------------------------------------------------------------------------------------


def test_compose_follows_its_specification() -> None:
    schema = json.loads((ROOT / "tests/schemas/compose-spec.json").read_text("utf-8"))
    jsonschema.validate(COMPOSE, schema)


def test_docker_compose_accepts_it(tmp_path: Path) -> None:
    docker = tool("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    env = tmp_path / ".env"
    says_ok(sys.executable, DEPLOY / "env.py", DEPLOY / "env.example", env)
    says_ok(docker, "compose", "--env-file", env, "config", "--quiet", cwd=ROOT)


def test_ports_are_on_loopback_and_secrets_are_nowhere() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|TOKEN|SECRET|AUTH", name) or value.startswith("${"), name
    asked = set(re.findall(r"(?<!\$)\$\{(\w+):?\??", (ROOT / "docker-compose.yml").read_text("utf-8")))
    optional = set(re.findall(r"(?<!\$)\$\{(\w+):-", (ROOT / "docker-compose.yml").read_text("utf-8")))
    given = set(re.findall(r"^(\w+)=", (DEPLOY / "env.example").read_text("utf-8"), re.MULTILINE))
    assert asked - optional <= given <= asked


def test_redis_keeps_what_it_takes() -> None:
    words = SERVICES["redis"]["command"].split()
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given["--maxmemory-policy"] == "noeviction" and given["--appendonly"] == "yes"
    assert given["--requirepass"] == "${REDIS_PASSWORD}"
    assert "redis:/data" in SERVICES["redis"]["volumes"]


def test_secrets_are_made_once(tmp_path: Path) -> None:
    target = tmp_path / ".env"
    says_ok(sys.executable, DEPLOY / "env.py", DEPLOY / "env.example", target)
    made = dict(line.split("=", 1) for line in target.read_text().splitlines() if "=" in line and line[0] != "#")
    secrets = {name: value for name, value in made.items() if name.endswith(("PASSWORD", "TOKEN"))}
    assert len(secrets) == 4 == len(set(secrets.values())) and all(len(value) == 40 for value in secrets.values())
    assert target.stat().st_mode & 0o077 == 0
    again = subprocess.run([sys.executable, DEPLOY / "env.py", DEPLOY / "env.example", target], capture_output=True)
    assert again.returncode == 1 and b"is there already" in again.stderr
    assert secrets["REDIS_PASSWORD"] in target.read_text()


def commands() -> list[tuple[str, list[str]]]:
    """Every `rstream …` that compose and Kubernetes run."""
    found = [(f"compose {name}", _words(service["command"])) for name, service in SERVICES.items() if _ours(service)]
    return found + [(f"pod {box['name']}", box["args"]) for pod in PODS for box in pod["containers"]]


def _ours(service: dict[str, Any]) -> bool:
    return service.get("image") == "rstream-example" and "entrypoint" not in service


def _words(command: str | list[str]) -> list[str]:
    return command if isinstance(command, list) else re.sub(r"\$\{\w+:-\}", "", command).split()


@pytest.mark.parametrize(("where", "words"), commands(), ids=lambda each: each if isinstance(each, str) else "")
def test_what_is_run_exists(where: str, words: list[str]) -> None:
    name, *rest = words
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options


def test_whoever_is_stopped_gets_longer_than_its_handlers() -> None:
    """Or they are killed in the middle, and run again elsewhere."""
    pairs = [(SERVICES["worker"]["stop_grace_period"].rstrip("s"), _words(SERVICES["worker"]["command"]))]
    pairs += [(pod["terminationGracePeriodSeconds"], pod["containers"][0]["args"]) for pod in PODS]
    graces = [(float(until), float(words[words.index("--grace") + 1])) for until, words in pairs if "--grace" in words]
    assert len(graces) == 2
    assert all(grace + 5 <= until <= grace + 30 for until, grace in graces)


def test_the_image_is_clean() -> None:
    says_ok(tool("hadolint"), DEPLOY / "Dockerfile")


def test_the_image_gets_what_it_copies_and_is_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == each or source.startswith(f"{each}/") for each in kept), f"{source} is ignored"
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert all(pod["securityContext"]["runAsUser"] == 10001 for pod in PODS)
    assert re.search(r'^ENTRYPOINT \["rstream"\]$', text, re.MULTILINE)


class Answer(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()
        self.wfile.write(b"loop stalled")

    def log_message(self, format: str, *_: object) -> None:
        pass


@pytest.mark.parametrize(("path", "status", "code"), [("/healthz", 200, 0), ("/healthz", 503, 1), ("/", 200, 1)])
def test_the_healthcheck_believes_what_it_is_told(path: str, status: int, code: int) -> None:
    handler = type("Handler", (Answer,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        assert healthcheck(RSTREAM_HEALTH_URL=url).returncode == code


def test_the_healthcheck_without_an_answer() -> None:
    refused = healthcheck(RSTREAM_HEALTH_URL="http://127.0.0.1:1/healthz")
    assert refused.returncode == 1 and "127.0.0.1:1" in refused.stderr
    assert healthcheck().returncode == healthcheck(RSTREAM_HEALTH_URL="").returncode == 0


def healthcheck(**environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, DEPLOY / "healthcheck.py"]
    return subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=20)


# -- Kubernetes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if path.stem not in ("kustomization", "scale")], ids=lambda path: path.stem
)
@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_kubernetes_knows_every_field(path: Path, version: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for found in yaml.safe_load_all(path.read_text("utf-8")):
        kubernetes.validate(found, version, strict=True)


def test_keda_knows_every_field() -> None:
    schema = json.loads((ROOT / "tests/schemas/keda-scaledobject-v1alpha1.json").read_text("utf-8"))
    jsonschema.validate(SCALE, schema)
    assert SCALE["spec"]["scaleTargetRef"]["name"] in {
        found["metadata"]["name"] for found in OBJECTS if found["kind"] == "Deployment"
    }


def test_kustomize_builds_all_but_secrets_and_scaling() -> None:
    built = list(yaml.safe_load_all(says_ok(tool("kubectl"), "kustomize", DEPLOY / "kubernetes")))
    names = sorted((found["kind"], found["metadata"]["name"]) for found in built)
    wanted = [found for found in OBJECTS if found["kind"] not in ("Kustomization", "Secret", "ScaledObject")]
    assert names == sorted((found["kind"], found["metadata"]["name"]) for found in wanted)


def test_selectors_choose_the_pods_and_probes_have_ports() -> None:
    labels = [found["spec"]["template"]["metadata"]["labels"] for found in OBJECTS if found["kind"] == "Deployment"]
    for found in OBJECTS:
        if found["kind"] in ("Service", "Deployment", "PodDisruptionBudget"):
            chosen = found["spec"]["selector"]
            assert any(chosen.get("matchLabels", chosen).items() <= each.items() for each in labels), found["metadata"]
    for pod in PODS:
        (box,) = pod["containers"]
        (port,) = box["ports"]
        assert all(box[probe]["httpGet"]["port"] == port["name"] for probe in ("livenessProbe", "readinessProbe"))
        assert str(port["containerPort"]) in box["args"]
        assert (
            box["livenessProbe"]["httpGet"]["path"] == "/healthz"
            and box["readinessProbe"]["httpGet"]["path"] == "/readyz"
        )


# -- what compose runs, run here ------------------------------------------------------------------------------------


@pytest.fixture
def shop(rs: Commands) -> Commands:
    """The example's commands, with a bucket, in a directory of their own."""
    endpoint = moto()
    bucket = "shop-" + rs.env["RSTREAM_NAMESPACE"].lower()
    client(endpoint).create_bucket(Bucket=bucket)
    rs.env |= {"PYTHONPATH": str(ROOT), "RSTREAM_BLOBS": f"s3://{bucket}/blobs?endpoint={endpoint}&region=us-east-1"}
    return rs


def publish(shop: Commands, *arguments: str) -> None:
    command = [sys.executable, "-m", "examples.orders", *arguments]
    says_ok(*command, cwd=shop.directory, env=shop.env)


def test_the_shop_handles_what_it_publishes(shop: Commands) -> None:
    publish(shop, "--count", "60", "--rate", "100000", "--seed", "1")
    shop.ok("worker", "examples.orders:app", "--burst", "--log-level", "error")
    dice = random.Random(1)
    placed = [example.order(dice) for _ in range(60)]
    billed = [
        (each.customer, example.CENTS[each.item] * each.quantity) for each in placed if each.item in example.CENTS
    ]
    invoices = [json.loads(line)["event"] for line in shop.ok("read", "invoices", "--json").splitlines()]
    assert sorted((each["customer"], each["cents"]) for each in invoices) == sorted(billed)
    dead = [json.loads(line) for line in shop.ok("dead", "list", "orders", "--group", "billing", "--json").splitlines()]
    assert len(dead) == 60 - len(billed) > 0
    assert {letter["reason"] for letter in dead} == {"rejected"}
    assert not shop.ok("dead", "list", "orders", "--group", "scans", "--json").strip()
    bucket = shop.env["RSTREAM_BLOBS"].split("/")[2]
    kept = client(moto()).list_objects_v2(Bucket=bucket)["Contents"]
    assert sum(each["Size"] > example.SCAN_BYTES for each in kept) == sum(bool(each.scan) for each in placed)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker_may_be_the_first_process_of_its_container(shop: Commands, processes: str) -> None:
    """Process 1 has no default for SIGTERM, and is the parent of whatever is left without one."""
    unshare = [tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespaces may be made here")
    command = [*unshare, sys.executable, "-m", "rstream", "worker", "examples.orders:app", "--processes", processes]
    with subprocess.Popen(command, cwd=shop.directory, env=shop.env, stderr=subprocess.PIPE, text=True) as outer:
        try:
            assert outer.stderr
            assert any(" ready: " in line for line in outer.stderr)  # ends with the process
            (inner,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            os.kill(int(inner), signal.SIGTERM)
            told = outer.stderr.read()
            assert outer.wait(60) == 0 and " ended: " in told, told
        finally:
            outer.kill()
