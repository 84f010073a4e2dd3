"""The files of cluster/ and the page that tells how to use them: each fits the schema of the tool that reads it, versions agree
with constraints.txt, and nothing is open, secret, root or unpinned."""
from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from sqlalchemy.engine import make_url

from metasearch import cli

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT / "tests" / "data" / "schemas"
PAGE = ROOT / "docs" / "cluster.md"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.name != ".env")
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in [*FILES, PAGE]}
RAY_UP = sorted((CLUSTER / "ray-up").glob("*.yaml"))
KUBERNETES = sorted(path for path in (CLUSTER / "kuberay").glob("*.yaml") if path.name != "kustomization.yaml")
COMPOSE = CLUSTER / "mlflow" / "docker-compose.yml"
DOCKERFILES = sorted([*(CLUSTER / "docker").glob("Dockerfile.c*[!e]"), CLUSTER / "mlflow" / "Dockerfile"])
SCRIPTS = [path for path in FILES if path.read_bytes()[:2] == b"#!"]
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text() + (CLUSTER / "README.md").read_text(), re.M | re.S)
RUN, NOT_RUN = "# run by a test\n", "# not run by a test: "


class Strict(yaml.SafeLoader):
    """YAML in which a key that is there twice is a mistake."""


def _mapping(loader: Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    own = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = {key for key in own if own.count(key) > 1}
    assert not twice, f"{twice} more than once at {node.start_mark}"
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.load_all(path.read_text(), Strict) if one is not None]


def one(path: Path) -> dict[str, Any]:
    (found,) = documents(path)
    return found


def pins(path: Path) -> dict[str, str]:
    """What a constraints or requirements file pins, by the package's normal name."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    found = (line.partition("==") for line in lines if "==" in line)
    return {normal(name.partition("[")[0]): version for name, _, version in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PINS = pins(ROOT / "constraints.txt")


def misspelt(value: Any) -> Iterator[Any]:
    """The value with one key of each mapping misspelt, one at a time."""
    if isinstance(value, dict):
        for key in value:
            if isinstance(key, str):
                yield {(k + "x" if k == key else k): v for k, v in value.items()}
            for changed in misspelt(value[key]):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for place, item in enumerate(value):
            for changed in misspelt(item):
                yield [*value[:place], changed, *value[place + 1:]]


# -- ray up --------------------------------------------------------------------------------------------------------------------


def ray_schema() -> Any:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_a_ray_up_file_fits_rays_own_schema_and_rays_own_preparation(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = one(path)
    jsonschema.validate(config, ray_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_worker": 3}, ray_schema())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_start_ray_commands"] == config["head_start_ray_commands"], "Ray's defaults have replaced ours"
    workers = [kind for name, kind in prepared["available_node_types"].items() if name != prepared["head_node_type"]]
    if config["provider"]["type"] == "local":
        assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
        assert prepared["max_workers"] == len(config["provider"]["worker_ips"])
    else:
        head = prepared["available_node_types"][prepared["head_node_type"]]
        assert head["resources"] == {"CPU": 0, "GPU": 0}, "trials would run beside the study's driver"
        assert [kind["min_workers"] for kind in workers] == [1], "a study needs one lane that fits before it starts"
        assert config["idle_timeout_minutes"] <= 5


def test_what_is_not_copied_to_a_clusters_machines_is_nothing_that_the_package_needs() -> None:
    """A pattern of rsync that begins with a slash is of the folder's own entries, another of whatever lies below."""
    excluded = one(CLUSTER / "ray-up" / "on-prem.yaml")["rsync_exclude"]
    needed = [path.relative_to(ROOT) for path in (ROOT / "metasearch").rglob("*") if "__pycache__" not in path.parts]
    assert any("studies" in path.parts for path in needed)
    for pattern in excluded:
        name = pattern.removeprefix("**").removeprefix("/")
        places = [path.parts[:1] if pattern.startswith("/") else path.parts for path in needed]
        lost = [parts for parts in places if any(fnmatch.fnmatch(part, name) for part in parts)]
        assert not lost, f"{pattern} leaves {lost[0]} behind"
    assert "/studies" in excluded, "a home in the repository stays where it is"


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_every_ray_that_is_started_has_a_token_and_shows_its_dashboard_to_itself_alone(path: Path) -> None:
    config = one(path)
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [line for line in commands if "ray start" in line]
    assert len(starts) == 2
    for line in starts:
        assert "RAY_AUTH_MODE=token" in line.partition("ray start")[0], "each command has a shell of its own"
        assert ("--head" in line) == ("--dashboard-host=127.0.0.1" in line)
    assert "~/.ray/auth_token" in config["file_mounts"].values()
    if "docker" in config:  # what `ray exec` and jobs see
        assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
        assert "/home/metasearch/.ray/auth_token" in config["file_mounts"], "where the image's user looks for it"


def test_the_options_of_ray_start_and_of_mlflow_server_exist_in_the_pinned_versions() -> None:
    from mlflow.cli import cli as mlflow
    from ray.scripts.scripts import cli as ray

    text = "\n".join(TEXTS.values()).replace("\\\n", " ")
    text = re.sub(r"\n +(?=--)", " ", text)  # folded lines of YAML
    started = re.findall(r"\bray start( .*?)(?:[;'`\"]|$)", text, re.M) + re.findall(r"symmetric-run (.*?) -- ", text)
    served = re.findall(r"\bmlflow server( .*)", text)
    ours = {"--address", "--min-nodes"}  # symmetric-run's own
    for command, lines, more in ((ray.commands["start"], started, ours), (mlflow.commands["server"], served, set[str]())):
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]} | more
        used = {word.partition("=")[0] for line in lines for word in line.split() if word.startswith("--")}
        assert len(lines) >= 1
        assert used
        assert used <= known, used - known


def test_a_job_that_is_stopped_has_time_to_stop_cleanly() -> None:
    from ray.dashboard.modules.job.job_supervisor import JobSupervisor

    assert JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S < 30, "then Ray's own would do"
    for path in [*RAY_UP, CLUSTER / "kuberay" / "raycluster.yaml"]:
        assert re.search(r"RAY_JOB_STOP_WAIT_TIME_S(=|, value: \")120", path.read_text()), path


# -- Kubernetes ----------------------------------------------------------------------------------------------------------------


def kubernetes_validator(kind: str) -> Any:
    registry: Any = Registry()
    for name in ("kubernetes.json", "kuberay-v1.json"):
        schema = json.loads((SCHEMAS / name).read_text())
        registry = registry.with_resource(name, Resource.from_contents(schema, default_specification=DRAFT202012))
    ours = kind in ("RayCluster", "RayJob")
    schema = {"$ref": f"kuberay-v1.json#/$defs/{kind}" if ours else f"kubernetes.json#/$defs/{kind}"}
    return jsonschema.Draft202012Validator(schema, registry=registry)


OBJECTS = [pytest.param(body, id=f"{path.stem}-{body['kind']}") for path in KUBERNETES for body in documents(path)]


@pytest.mark.parametrize("body", OBJECTS)
def test_a_kubernetes_object_fits_its_schema_and_no_field_of_it_could_be_misspelt(body: dict[str, Any]) -> None:
    validator = kubernetes_validator(body["kind"])
    assert [error.message for error in validator.iter_errors(body)] == []
    free = re.compile(r"\.(labels|matchLabels|stringData|rayStartParams|limits|requests)\.")  # any key is right there
    for changed in misspelt({k: v for k, v in body.items() if k != "metadata"}):
        if not validator.is_valid({"metadata": body["metadata"], **changed}):
            continue
        assert any(free.search(path) for path in differing(body, changed)), f"nobody would notice {differing(body, changed)}"


def differing(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two values differ, as paths."""
    if isinstance(left, dict) and isinstance(right, dict):
        both = [found for key in left.keys() & right.keys() for found in differing(left[key], right[key], f"{path}.{key}")]
        return both + [f"{path}.{key}" for key in (left.keys() ^ right.keys()) - {"metadata"}]
    if isinstance(left, list) and isinstance(right, list):
        return [found for a, b in zip(left, right, strict=True) for found in differing(a, b, path)]
    return [] if left == right else [path]


@pytest.mark.skipif("METASEARCH_KUBERAY_CRDS" not in os.environ, reason="METASEARCH_KUBERAY_CRDS does not name KubeRay's CRDs")
@pytest.mark.parametrize("kind", ["raycluster", "rayjob"])
def test_ray_objects_fit_kuberays_own_definitions(kind: str) -> None:
    definition = yaml.safe_load((Path(os.environ["METASEARCH_KUBERAY_CRDS"]) / f"ray.io_{kind}s.yaml").read_text())
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]

    def closed(schema: Any) -> Any:
        if isinstance(schema, list):
            return [closed(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        done = {key: closed(value) for key, value in schema.items()}
        if isinstance(done.get("properties"), dict) and "additionalProperties" not in done and done["properties"]:
            done["additionalProperties"] = False
        return done

    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    body = one(CLUSTER / "kuberay" / f"{kind}.yaml")
    assert [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(body)] == []


def ray_clusters() -> tuple[dict[str, Any], dict[str, Any]]:
    folder = CLUSTER / "kuberay"
    return one(folder / "raycluster.yaml")["spec"], one(folder / "rayjob.yaml")["spec"]


def pods() -> list[dict[str, Any]]:
    cluster, job = ray_clusters()
    return [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"], job["submitterPodTemplate"]]


def test_the_job_and_the_cluster_that_stays_are_the_same_ray() -> None:
    cluster, job = ray_clusters()
    assert job["rayClusterSpec"] == cluster
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == PINS["ray"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["workerGroupSpecs"][0]["minReplicas"] >= 1
    assert job["shutdownAfterJobFinishes"] is True
    assert job["preRunningDeadlineSeconds"] < job["activeDeadlineSeconds"], "machines that never come are not waited for"


def test_no_pod_is_root_or_could_become_it_and_memory_is_not_overcommitted() -> None:
    for pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000  # the user of the images
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in spec["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["requests"] == container["resources"]["limits"]
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted == {volume["name"] for volume in spec.get("volumes", [])}


def test_network_policies_close_every_pod_and_open_what_ray_needs() -> None:
    policies = {body["metadata"]["name"]: body["spec"] for body in documents(CLUSTER / "kuberay" / "network-policy.yaml")}
    for pod in pods():
        chosen = policies["metasearch-deny"]["podSelector"]["matchLabels"]
        assert chosen.items() <= pod["metadata"]["labels"].items(), "a pod that no policy closes is open"
    deny = policies.pop("metasearch-deny")
    assert sorted(deny["policyTypes"]) == ["Egress", "Ingress"]
    assert not {"ingress", "egress"} & deny.keys()
    for name, policy in policies.items():
        for rule in policy.get("ingress", []):
            assert rule.get("from"), f"{name} lets everybody in"
        assert policy["podSelector"]["matchLabels"].items() >= chosen.items()


def test_kustomize_finds_what_it_names_and_the_study_is_one() -> None:
    folder = CLUSTER / "kuberay"
    wanted = one(folder / "kustomization.yaml")
    assert all((folder / name).is_file() for name in wanted["resources"])
    assert "secret.example.yaml" not in wanted["resources"]
    (image,) = wanted["images"]
    assert image["newTag"] == f"{VERSION}-cuda"
    used = {container["image"] for pod in pods() for container in pod["spec"]["containers"]}
    assert used == {f"{image['name']}:{image['newTag']}"}
    (generated,) = wanted["configMapGenerator"]
    head = pods()[0]["spec"]
    assert generated["name"] in [volume.get("configMap", {}).get("name") for volume in head["volumes"]]
    volumes = [volume for pod in pods() for volume in pod["spec"].get("volumes", [])]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}
    assert claims == {one(folder / "pvc.yaml")["metadata"]["name"]}
    script, name, study, *changes = shlex.split(ray_clusters()[1]["entrypoint"])
    assert script == "run-or-resume"
    assert Path(study).name in generated["files"]
    assert str(Path(study).parent) in [mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]]
    assert tomllib.loads((folder / "study.toml").read_text())["name"] == name
    assert cli.call(["run", str(folder / "study.toml"), *changes, "--check"]) == 0


# -- Compose -------------------------------------------------------------------------------------------------------------------


def test_the_compose_file_fits_the_compose_specification() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    validator = jsonschema.Draft201909Validator(schema)
    body = one(COMPOSE)
    assert [error.message for error in validator.iter_errors(body)] == []
    wrong = {**body, "services": {**body["services"], "mlflow": {**body["services"]["mlflow"], "port": ["5000:5000"]}}}
    assert not validator.is_valid(wrong)


def test_mlflow_is_the_only_thing_that_is_reachable_and_only_from_its_own_machine() -> None:
    body = one(COMPOSE)
    ports = {name: service.get("ports", []) for name, service in body["services"].items()}
    assert ports == {"postgres": [], "store": [], "bucket": [], "mlflow": ["127.0.0.1:5000:5000"]}
    assert body["networks"]["inside"] == {"internal": True}
    assert [name for name, service in body["services"].items() if service["networks"] != ["inside"]] == ["mlflow"]
    for name, service in body["services"].items():
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged"), name


def test_there_are_no_default_credentials_and_new_env_makes_those_that_are_asked_for(tmp_path: Path) -> None:
    asked = dict(re.findall(r"\$\{(\w+)(:[?-])", COMPOSE.read_text()))
    required = {name for name, how in asked.items() if how == ":?"}
    assert set(asked) - required == {"MLFLOW_ALLOWED_HOSTS"}
    assert not re.search(r"\$\{\w+\}", COMPOSE.read_text()), "a variable that may be empty without a word"
    file = tmp_path / "env"
    subprocess.run([CLUSTER / "mlflow" / "new-env", file], check=True, capture_output=True)
    made = dict(line.split("=", 1) for line in file.read_text().splitlines())
    example = (CLUSTER / "mlflow" / ".env.example").read_text()
    assert set(made) == required == set(re.findall(r"^(\w+)=$", example, re.M))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secrets = [value for name, value in made.items() if name != "MLFLOW_ADMIN"]
    assert len(set(secrets)) == len(secrets)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in secrets), "safe in a URL, and long"
    again = subprocess.run([CLUSTER / "mlflow" / "new-env", file], capture_output=True, text=True)
    assert (again.returncode, "is there already" in again.stderr) == (1, True)
    assert made["POSTGRES_PASSWORD"] in file.read_text()


def test_the_mlflow_server_gets_its_passwords_by_files_and_environment_and_not_on_its_command_line(tmp_path: Path) -> None:
    program = tmp_path / "mlflow"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "$MLFLOW_BACKEND_STORE_URI $MLFLOW_AUTH_CONFIG_PATH"\n')
    program.chmod(0o755)
    names = (
        "POSTGRES_PASSWORD", "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY",
    )
    given = {**{name: f"{name.lower()}-value" for name in names}, "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MLFLOW_RUN_FOLDER": str(tmp_path), **given}
    done = subprocess.run([CLUSTER / "mlflow" / "serve"], env=environment, capture_output=True, text=True, check=True)
    *arguments, told = done.stdout.splitlines()
    assert arguments[:3] == ["server", "--app-name", "basic-auth"]
    assert not [word for word in arguments if "-value" in word]
    assert "mlflow:postgres_password-value@postgres:5432/mlflow" in told
    driver = make_url(told.split()[0]).get_driver_name()
    lines = (CLUSTER / "mlflow" / "requirements.txt").read_text().splitlines()
    required = [Requirement(line) for line in lines if line[0] not in "-#"]
    assert driver in {normal(r.name) for r in required} & PINS.keys(), "the driver that the tests have, at the tests' version"
    config = tmp_path / "auth.ini"
    assert "default_permission = NO_PERMISSIONS" in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    for name in given:
        without = {key: value for key, value in environment.items() if key != name}
        refused = subprocess.run([CLUSTER / "mlflow" / "serve"], env=without, capture_output=True, text=True)
        assert refused.returncode != 0
        assert name in refused.stderr


# -- images --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_runs_as_nobody_special_and_takes_its_package_index_from_outside(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert all(re.fullmatch(r"python:3\.11\.(1[4-9]|[2-9]\d)-slim-bookworm", base) for base in bases), bases  # CVE-2025-8194
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    after = lines[lines.index("USER 1000:1000"):]
    assert not [line for line in after if line.startswith(("COPY", "ADD"))]
    assert "ARG PIP_INDEX_URL" in lines, "without a default"
    assert not [line for line in lines if line.startswith("ARG") and "=" in line]
    assert not [line for line in lines if re.search(r"^ENV.*(TOKEN|PASSWORD|SECRET|INDEX_URL)", line)]
    for line in lines:
        for call in re.findall(r"pip install [^&]*", line):
            assert "--requirement" in call or "--constraint" in call, call
    ignore = Path(f"{path}.dockerignore").read_text().split("\n")
    assert "*" in ignore
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied = {word for line in lines if line.startswith("COPY") and "--from" not in line
              for word in [w for w in line.split()[1:] if not w.startswith("--")][:-1]}
    assert copied == kept, "what an image copies and what its build may see are the same"
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("path", DOCKERFILES[:2], ids=lambda path: path.name)
def test_an_image_is_tried_by_the_doctor_when_it_is_built_and_while_it_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very words of the file, here; a home as in a new image, to which nobody has written."""
    text = path.read_text().replace("\\\n", " ")
    commands = [json.loads(line) for line in re.findall(r"^(?:RUN|HEALTHCHECK .* CMD) (\[.*\])$", text, re.M)]
    built, alive = [words for words in commands if "doctor" in words]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for words in (built, alive):
        monkeypatch.setenv("METASEARCH_HOME", str(tmp_path / "studies"))
        assert cli.call(words[words.index("doctor"):]) == 0
        monkeypatch.setenv("METASEARCH_HOME", "/proc/studies")
        assert cli.call(words[words.index("doctor"):]) == 1, "a home that cannot be written"
    assert {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"} < set(alive), "what is away elsewhere makes no container sick"


def test_a_login_shell_finds_ray_in_the_images_since_ray_up_runs_all_its_commands_in_one() -> None:
    from ray.autoscaler._private.command_runner import _with_interactive

    assert "--login" in _with_interactive("ray stop")
    for path in DOCKERFILES[:2]:
        text = path.read_text()
        assert "echo 'export PATH=/opt/metasearch/bin:$PATH' > /etc/profile.d/" in text
        assert "HOME=/home/metasearch" in text, "where Ray expands ~"
        assert {"rsync", "openssh-client", "wget"} <= set(text.split())


# -- versions, secrets, hosts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CLUSTER.rglob("requirements.txt")), ids=lambda path: path.parent.name)
def test_requirements_of_clusters_are_pinned_and_agree_with_the_constraints(path: Path) -> None:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    lines = [line for line in lines if line]
    assert lines[0] == f"-c {os.path.relpath(ROOT / 'constraints.txt', path.parent)}"
    found = pins(path)
    assert not {name for name in found if found[name] != PINS.get(name, found[name])}
    loose = [Requirement(line) for line in lines[1:] if "==" not in line]
    assert {normal(r.name) for r in loose} <= PINS.keys(), "without a version of its own only what constraints.txt pins"


def test_what_rays_dashboard_and_jobs_need_is_pinned() -> None:
    pinned = PINS | pins(CLUSTER / "requirements.txt")
    needed = [Requirement(line) for line in requires("ray") or []]
    missing = [r.name for r in needed if r.marker and r.marker.evaluate({"extra": "default"}) and normal(r.name) not in pinned]
    assert missing == []


def test_versions_agree_and_no_image_is_without_one() -> None:
    images = re.findall(r"(?:image:|--tag) (?:&\w+ )?([^\s*]+)", "\n".join(TEXTS.values()))
    assert len(images) >= 8
    for image in images:
        name, _, tag = image.rpartition(":")
        assert re.match(r"[v\d]", tag), f"{image} has no version"
        if name.endswith("metasearch"):
            assert tag.partition("-")[0] == VERSION
    assert f"metasearch-mlflow:{PINS['mlflow']}" in images
    assert not [name for name, text in TEXTS.items() if re.search(r":latest\b", text)]
    labels = re.findall(r'image\.version="([^"]+)"', "\n".join(TEXTS.values()))
    assert labels == [VERSION, VERSION]


HOSTS = (
    r"pypi|pythonhosted|npmjs|registry\.npm|anaconda|conda-forge|download\.pytorch"
    r"|docker\.io|ghcr\.io|quay\.io|gcr\.io|--index-url"
)


def test_no_file_names_the_host_of_a_registry() -> None:
    assert not [(name, found) for name, text in TEXTS.items() for found in re.findall(HOSTS, text, re.I)]


def credentials(text: str) -> list[str]:
    """What looks like a credential: keys of known shapes, long random words, and values given to secret names."""
    shapes = r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}|\bAIza[\w-]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    known = re.findall(shapes, text)
    long = re.findall(r"[0-9a-f]{32,}|[A-Za-z0-9+/]{40,}={0,2}", text)
    random = [word for word in long if re.search(r"\d", word) and "/" not in word]
    names = r"(?:password|passwd|secret_?key|access_?key|auth_?token)"
    values = re.findall(names + r"[\"']?[ \t]*[:=][ \t]*[\"']?([^\s\"',}]+)", text, re.IGNORECASE)
    given = [v for v in values if not re.match(r"[$?~]|REPLACE_", v)]
    urls = [word for word in re.findall(r"://[^\s/:@]+:([^\s/@]+)@", text) if not word.startswith("$")]
    return known + random + given + urls


def test_what_looks_like_a_credential_is_found() -> None:
    hexadecimal = "0123456789abcdef" * 3
    samples = [
        "AKIA" + "Q7" * 8, hexadecimal, "POSTGRES_PASSWORD: " + "hunter" + "2", "s3://user:" + "pass" + "@host",
        "auth_token=" + "x1y2",
    ]
    assert [len(credentials(sample)) >= 1 for sample in samples] == [True] * len(samples)
    assert credentials("POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?run new-env first}") == []


@pytest.mark.parametrize("name", TEXTS)
def test_no_file_holds_a_secret(name: str) -> None:
    assert credentials(TEXTS[name]) == []


# -- scripts -------------------------------------------------------------------------------------------------------------------


def checked(arguments: list[str | Path], **options: Any) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_passes_shellcheck_and_can_be_run() -> None:
    assert len(SCRIPTS) >= 6
    checked([Path(sys.executable).parent / "shellcheck", *SCRIPTS])
    for script in SCRIPTS:
        checked(["sh" if script.suffix == ".sh" else "bash", "-n", script])
        assert os.access(script, os.X_OK) or script.suffix == ".sh", script


def test_the_commands_in_ray_up_files_and_the_blocks_of_the_pages_pass_shellcheck(tmp_path: Path) -> None:
    commands = [line for path in RAY_UP for key, lines in one(path).items() if key.endswith("commands") for line in lines]
    written = []
    for number, text in enumerate([*commands, *BLOCKS]):
        file = tmp_path / f"{number}.bash"
        file.write_text(text + "\n")
        checked(["bash", "-n", file])
        written.append(file)
    assert len(written) > 25
    # SC2088: Ray expands a ~ in quotes; SC2086: $compose is two words
    checked([Path(sys.executable).parent / "shellcheck", "--shell=bash", "--severity=warning", *written])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[1][:40])
def test_a_block_of_a_page_says_whether_a_test_runs_it(block: str) -> None:
    assert block.startswith(RUN) or re.match(NOT_RUN + r"\w.+\n", block)


def test_the_pages_use_only_commands_and_settings_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^(?:[A-Z_]+=\S+ )*metasearch ([a-z][^\n#|&)]*)", "\n".join(BLOCKS).replace("\\\n", " "), re.M)
    lines += re.findall(r"`metasearch ([a-z][^`]*)`", PAGE.read_text())
    assert len(lines) >= 10
    settings = set()
    for line in lines:
        words = shlex.split(line)
        assert cli.call([words[0], "--help"]) == 0, line
        told = capsys.readouterr().out
        assert not [w for w in words if w.startswith("--") and w.partition("=")[0] not in told], line
        settings |= {word for word in words if re.match(r"[a-z.]+=", word)}
    settings |= set(re.findall(r"(?<= )[a-z]+\.[a-z_]+=[\w.]+", "\n".join(BLOCKS)))
    assert len(settings) > 8
    for one_of_them in sorted(settings):
        elsewhere = [] if one_of_them.startswith("driver.kind") else ["driver.address=auto"]  # where there may be GPUs
        assert cli.call(["run", "sine", "--check", *elsewhere, one_of_them]) == 0, one_of_them


def test_the_readme_names_every_file_and_every_word_that_must_be_replaced() -> None:
    said = (CLUSTER / "README.md").read_text()
    words = {name: set(re.findall(r"REPLACE_\w+", text)) for name, text in TEXTS.items() if not name.endswith(".md")}
    assert set().union(*words.values()) == set(re.findall(r"REPLACE_\w+", said))
    folders = {path.parent.name for path in FILES} - {"cluster"}
    assert all(f"`{folder}/" in said for folder in folders)
    for file in re.findall(r"`((?:slurm|ray-up|kuberay|mlflow|docker)/[\w.-]+)`", said):
        assert (CLUSTER / file).is_file(), file


# -- run-or-resume, and Slurm's two scripts ------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A folder with a `metasearch` that says what it was told."""
    return with_metasearch(tmp_path)


def with_metasearch(folder: Path) -> Path:
    program = folder / "bin" / "metasearch"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    return folder


def again(told: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{told / 'bin'}:/usr/bin:/bin", "METASEARCH_HOME": str(told / "studies")}
    return subprocess.run([CLUSTER / "run-or-resume", *words], env=environment, capture_output=True, text=True)


def test_a_study_is_run_or_gone_on_with_under_its_name(told: Path) -> None:
    words = ["tasks.ways=20", "driver.lanes=8", "budget.trials=9", "track.uri=sqlite:///a b.db"]
    assert again(told, "s", "study.toml", *words).stdout == f"run study.toml name=s --resume-if-exists {' '.join(words)}\n"
    assert again(told, "s", "study.toml").stdout.split() == ["run", "study.toml", "name=s", "--resume-if-exists"]
    assert again(told, "s").returncode == 2


def entered(state: Path, command: str) -> subprocess.Popen[bytes]:
    state.mkdir(exist_ok=True)
    return subprocess.Popen([CLUSTER / "slurm" / "entrypoint", state, "bash", "-c", command], start_new_session=True)


def until(there: Path) -> None:
    end = time.monotonic() + 60
    while not (there.exists() and there.read_text().strip()):
        assert time.monotonic() < end, f"no {there.name}"
        time.sleep(0.01)


GENTLE = "trap 'exit 143' TERM; echo up > {}; while :; do sleep 0.05; done"


@pytest.mark.parametrize("whole", [False, True], ids=["the command", "the whole step"])
def test_the_exit_code_of_a_study_that_is_asked_to_stop_is_written(tmp_path: Path, whole: bool) -> None:
    state = tmp_path / "state"
    process = entered(state, GENTLE.format(tmp_path / "up"))
    until(tmp_path / "up")
    until(state / "pid")
    if whole:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(int((state / "pid").read_text()), signal.SIGTERM)
    assert process.wait(60) == 143
    assert (state / "exit").read_text() == "143\n"
    assert not (state / "pid").exists()


def test_the_exit_code_of_a_study_is_the_one_that_is_written(tmp_path: Path) -> None:
    assert entered(tmp_path, "exit 3").wait(60) == 3
    assert (tmp_path / "exit").read_text() == "3\n"


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2", "SLURM_SUBMIT_DIR": str(ROOT),
    "METASEARCH_HEAD_IP": "10.0.0.1",
}


def submitted(told: Path, srun: str, left: str = "UNLIMITED", **more: str) -> tuple[subprocess.Popen[str], Path]:
    """metasearch.sbatch with stand-ins for Slurm's own commands: `srun` is the given script."""
    called = told / "called"
    own = (("srun", srun), ("scontrol", f'echo "scontrol $*" >> {called}'), ("squeue", f"echo {left}"))
    for name, body in own:
        (told / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (told / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{told / 'bin'}:/usr/bin:/bin", "METASEARCH_ENV": str(told), "METASEARCH_HOME": str(told / "studies"),
        **SLURM, **more,
    }
    script = CLUSTER / "slurm" / "metasearch.sbatch"
    return subprocess.Popen(["bash", script, "s", "study.toml"], env=environment, stderr=subprocess.PIPE, text=True), called


TASK = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'  # what comes after symmetric-run's --


def test_a_slurm_job_in_which_ray_never_starts_fails_although_symmetric_run_says_0(told: Path) -> None:
    job, _ = submitted(told, "exit 0")
    assert "never ran" in job.communicate(timeout=60)[1]
    assert job.returncode == 69


def test_a_slurm_job_ends_as_its_study_does_and_leaves_no_token(told: Path) -> None:
    (told / "bin" / "metasearch").write_text(
        f'#!/bin/bash\n[ "$RAY_AUTH_MODE" = token ] && cp "$RAY_AUTH_TOKEN_PATH" {told}/token\n'
        f'stat -c %a "$RAY_AUTH_TOKEN_PATH" "$(dirname "$RAY_AUTH_TOKEN_PATH")" > {told}/modes\n'
        f'echo "$@" > {told}/words\nexit 4\n'
    )
    job, called = submitted(told, TASK, RAY_AUTH_TOKEN="x", RAY_ADDRESS="elsewhere:1")
    job.communicate(timeout=60)
    assert job.returncode == 4
    assert re.fullmatch(r"[0-9a-f]{64}", (told / "token").read_text())
    assert (told / "modes").read_text().split() == ["600", "700"]
    assert (told / "words").read_text() == "run study.toml name=s --resume-if-exists driver.address=10.0.0.1:6379\n"
    assert not called.exists()
    assert list((told / "studies" / ".slurm").iterdir()) == []


def test_a_slurm_job_does_not_wait_for_nodes_that_never_notice_that_the_study_has_ended(told: Path) -> None:
    job, _ = submitted(told, f"({TASK}); exec sleep 1000", METASEARCH_GRACE="1")
    job.communicate(timeout=60)
    assert job.returncode == 0


def test_a_slurm_job_whose_time_is_over_stops_its_study_once_and_is_queued_again(tmp_path: Path) -> None:
    """By one signal, by two (the second one of a study's own would end it at once), by the clock, and by the end that Slurm says:
    four jobs, side by side, since all they do is wait."""
    jobs = {how: timed(with_metasearch(tmp_path / how), how) for how in ("signal", "signals", "clock", "end-time")}
    for how, (told, job, _) in jobs.items():
        until(told / "up")
        if how in ("signal", "signals"):
            job.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    jobs["signals"][1].send_signal(signal.SIGTERM)
    for how, (told, job, called) in jobs.items():
        assert "queued again" in job.communicate(timeout=60)[1], how
        assert (job.returncode, called.read_text()) == (143, "scontrol requeue 7\n"), how
        assert (told / "terms").read_text() == "\n", how


def timed(told: Path, how: str) -> tuple[Path, subprocess.Popen[str], Path]:
    """A job whose study needs a second to stop, and says how often it was asked to."""
    once = f"trap 'echo >> {told}/terms; sleep 1; exit 143' TERM; echo up > {told}/up; while :; do sleep 0.05; done"
    (told / "bin" / "metasearch").write_text(f"#!/bin/bash\n{once}\n")
    more = {"SLURM_JOB_END_TIME": str(int(time.time()) + 7)} if how == "end-time" else {}
    return told, *submitted(told, TASK, left="0:06" if how == "clock" else "2-00:00:00", **more)


@pytest.mark.parametrize(("left", "stops"), [
    ("UNLIMITED", None), ("10:00", 300), ("8:00:00", 8 * 3600 - 300), ("2-04:00:00", 52 * 3600 - 300), ("4:00", 120),
    ("30", 15),
])
def test_a_slurm_job_stops_its_study_minutes_before_its_end_or_in_the_middle(told: Path, left: str, stops: int | None) -> None:
    job, _ = submitted(told, "exit 0", left=left)
    words = job.communicate(timeout=60)[1]
    assert ("no time limit" in words) if stops is None else (f"stops in {stops} s" in words), words


def test_a_slurm_job_whose_study_ended_while_it_was_asked_to_stop_is_not_queued_again(told: Path) -> None:
    ended = f"trap 'exit 0' TERM; echo up > {told}/up; while :; do sleep 0.05; done"
    (told / "bin" / "metasearch").write_text(f"#!/bin/bash\n{ended}\n")
    job, called = submitted(told, TASK)
    until(told / "up")
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=60)
    assert (job.returncode, called.exists()) == (0, False), "it ended by itself: there is nothing to go on with"


def test_the_slurm_job_asks_for_what_symmetric_run_needs(told: Path) -> None:
    text = (CLUSTER / "slurm" / "metasearch.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.M))
    assert {"exclusive", "requeue", "no-kill"} <= asked.keys()
    assert asked["ntasks-per-node"] == "1"
    assert "signal" not in asked, "Slurm sends it only to the first run of a job, and at once where the limit is shorter"
    srun = f'printf "%s\\n" "$@" > {told}/srun; env > {told}/env'
    job, _ = submitted(told, srun, SLURM_JOB_NUM_NODES="3", SLURM_GPUS_ON_NODE="8")
    job.communicate(timeout=60)
    words = (told / "srun").read_text().split("\n")
    assert words[words.index("ray"):words.index("--")] == [
        "ray", "symmetric-run", "--address", "10.0.0.1:6379", "--min-nodes", "3", "--num-cpus=2", "--num-gpus=8",
    ]
    assert "--cpus-per-task=2" in words, "a step gets one CPU unless it asks"
    environment = dict(line.split("=", 1) for line in (told / "env").read_text().splitlines() if "=" in line)
    assert int(environment["RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"]) >= 300
    for name in ("METASEARCH_ENV", "METASEARCH_HOME"):
        refused, _ = submitted(told, "exit 0", **{name: ""})
        assert name in refused.communicate(timeout=60)[1]
        assert refused.returncode != 0
