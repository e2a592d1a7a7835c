"""Jobs for clusters: rendered whole, and every rule of ours refuses a manifest that breaks it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxlm.cli import main
from jaxlm.decode import ConfigError
from jaxlm.runtime.manifest_checks import ask, check_jobset, check_ray, check_slurm
from jaxlm.runtime.manifests import Job, Kind, Kubernetes, Pool, jobset, kinds, pools, ray, slurm

MIXED = pools("v100:2,a100-40:3", 5, None, kinds())
JOB = Job(
    name="mixed",
    pools=MIXED,
    config="name: mixed\ntrain: {steps: 3}\n",
    config_path=Path("/shared/mixed.yaml"),
    run_dir=Path("/runs/mixed"),
    overrides=("--train.steps", "7", "--sample.prompt", "it's $HOME"),
)
CLUSTER = Kubernetes(image="registry/jaxlm:1", claim="runs", zones=("eu-a", "eu-b"))


def test_a_jobset_selects_both_pools_spreads_over_zones_and_numbers_the_processes_through():
    text = jobset(JOB, CLUSTER)
    assert check_jobset(text, 5) == []
    config, job = yaml.safe_load_all(text)
    assert yaml.safe_load(config["data"]["config.yaml"])["train"] == {"steps": 3}
    first, second = (each["template"]["spec"] for each in job["spec"]["replicatedJobs"])
    assert (first["parallelism"], second["parallelism"]) == (2, 3)
    pods = [each["template"]["spec"] for each in (first, second)]
    assert [pod["nodeSelector"]["nvidia.com/gpu.product"] for pod in pods] == [
        "Tesla-V100-SXM2-16GB",
        "NVIDIA-A100-SXM4-40GB",
    ]
    for pod in pods:
        (spread,) = pod["topologySpreadConstraints"]
        assert (spread["topologyKey"], spread["maxSkew"]) == ("topology.kubernetes.io/zone", 1)
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert terms[0]["matchExpressions"][0]["values"] == ["eu-a", "eu-b"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
        assert "--coordinator mixed-v100-0-0.mixed:8476 --processes 5" in pod["containers"][0]["command"][-1]
    assert 'let "process = 2 + JOB_COMPLETION_INDEX"' in pods[1]["containers"][0]["command"][-1]


def test_a_name_that_kubernetes_does_not_allow_is_refused():
    for name in ("Mixed", "m" * 60):
        faults = check_jobset(jobset(dataclasses.replace(JOB, name=name), CLUSTER), 5)
        assert any("must be at most 63 of a-z" in fault for fault in faults)


def test_what_a_pod_runs_is_what_was_asked_for_to_the_letter(tmp_path):
    job = yaml.safe_load_all(jobset(JOB, CLUSTER))
    script = [*job][1]["spec"]["replicatedJobs"][1]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    (tmp_path / "python").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    text = script[-1].replace("/runs/mixed", str(tmp_path / "run"))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_COMPLETION_INDEX": "2"}
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=True)
    given = done.stdout.splitlines()
    assert given[-6:] == ["--coordinator", "mixed-v100-0-0.mixed:8476", "--processes", "5", "--process", "4"]
    assert given[-7] == "it's $HOME"
    assert (tmp_path / "run" / "hosts" / "4.log").read_text() == done.stdout


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "mixed-v100-0-0.mixed:8476",
            "mixed-a100-40-0-0.mixed:8476",
            "process 0 is mixed-v100-0-0.mixed, not mixed-a100",
        ),
        ("mixed:8476", "mixed:8477", "process 0 listens on port 8477, but the pod opens 8476"),
        ("containerPort: 8476", "containerPort: 80", "port 80 must be in 1024..65535"),
        ("--processes 5", "--processes 4", "--processes 4 is not the number of hosts, 5"),
        ("parallelism: 3", "parallelism: 2", "parallelism equals its completions"),
        ("process = 2 +", "process = 3 +", "its processes must be numbered from 2"),
        ("name: mixed", "name: Mixed", "must have the same name and namespace"),
        ("subdomain: mixed", "subdomain: other", "no host finds process 0"),
        ("backoffLimit: 0", "backoffLimit: 6", "a pod must not be restarted alone"),
        ("restartPolicy: Never", "restartPolicy: OnFailure", "a pod must not be restarted alone"),
        ("jaxlm/job: mixed", "jaxlm/job: other", "select labels that its pods do not have"),
        ('"memory": "64Gi"', '"memory": "64 GB"', "is no quantity"),
        ("name: shm, mountPath", "name: sham, mountPath", "volumes and volumeMounts"),
        ("kind: JobSet", "kind: Job", "the kinds must be ConfigMap and JobSet"),
        ("v1alpha2", "v1", "is not that of JobSet"),
        ("  replicatedJobs:", "  replicatedJobs: [", "not YAML"),
    ],
)
def test_a_jobset_that_breaks_a_rule_is_refused(old, new, sentence):
    text = jobset(JOB, CLUSTER)
    assert old in text
    broken = text.replace(old, new, 1)
    assert any(sentence in fault for fault in check_jobset(broken, 5)), check_jobset(broken, 5)


def test_a_slurm_script_asks_for_nodes_of_both_kinds_and_lets_jax_find_the_job():
    text = slurm(JOB, time="2-00:00:00", partition="gpu")
    assert check_slurm(text, 5) == []
    assert '#SBATCH --constraint="[v100*2&a100*3]"' in text
    assert "#SBATCH --gpus-per-node=8" in text
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in text
    assert "--sample.prompt 'it'\"'\"'s $HOME' --coordinator auto" in text


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("--nodes=5", "--nodes=4", "--nodes must be 5"),
        ("--job-name=mixed", "--job-name=two words", "--job-name 'two words' must be"),
        ("--time=2-00:00:00", "--time=two days", "--time 'two days' must be"),
        ("v100*2", "v100*3", "--constraint asks for 6 nodes, --nodes for 5"),
        ("--requeue", "--requeu", "is not an option that we give"),
        ("--coordinator auto", "", "do not look for each other"),
        ("esac", "", "bash cannot read it"),
        ("export PYTHONUNBUFFERED=1", "export A=1\n#SBATCH --requeue", "after the first command"),
    ],
)
def test_a_slurm_script_that_breaks_a_rule_is_refused(old, new, sentence):
    text = slurm(JOB, time="2-00:00:00")
    assert old in text
    assert any(sentence in fault for fault in check_slurm(text.replace(old, new), 5))


SRUN = """#!/bin/bash
echo run >> calls
code=$(sed -n "$(wc -l < calls)p" codes)
trap 'echo told >> calls; sleep 0.3; exit 143' TERM
if [ "$code" = wait ]; then echo waits; for _ in $(seq 300); do sleep 0.1; done; fi
[ "$code" = segv ] && { ulimit -c 0; kill -SEGV $$; }
exit "$code"
"""


def batch(tmp_path, *codes: str) -> subprocess.Popen[str]:
    """The script of a job with 3 retries, whose `srun` ends with one of these codes after the other."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    (tmp_path / "calls").touch()
    text = slurm(dataclasses.replace(JOB, retries=3), time="10")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    return subprocess.Popen(["bash", "-c", text], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("codes", "runs", "code"),
    [
        (["0"], 1, 0),
        (["2"], 1, 2),
        (["3"], 1, 3),
        (["1", "0"], 2, 0),
        (["134", "0"], 2, 0),
        (["segv", "137", "0"], 3, 0),
        (["143", "0"], 2, 0),
        (["134", "134", "1", "139"], 4, 139),
    ],
)
def test_slurm_tries_again_after_any_death_but_not_after_an_end_on_purpose(tmp_path, codes, runs, code):
    job = batch(tmp_path, *codes)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == code
    assert (tmp_path / "calls").read_text() == "run\n" * runs
    assert said.count("ended with exit code") == (runs if code not in (0, 2, 3) else runs - 1)


def test_when_the_time_of_a_slurm_job_is_nearly_up_its_processes_are_told_and_waited_for(tmp_path):
    assert "#SBATCH --signal=B:TERM@120" in slurm(JOB, time="10"), "the script itself is told, as it traps the signal"
    job = batch(tmp_path, "wait", "0")
    assert job.stdout is not None
    assert job.stdout.readline() == "waits\n"
    job.terminate()
    job.communicate(timeout=30)
    assert job.returncode == 143
    assert (tmp_path / "calls").read_text() == "run\ntold\n", "told once, and no new attempt"


def test_a_ray_driver_is_python_with_the_right_counts():
    job = Job(
        name="r",
        pools=(Pool(name="hosts", hosts=3, kind=Kind(gpus=0)),),
        config="",
        config_path=Path("/c.yaml"),
        run_dir=Path("/runs/r"),
    )
    text = ray(job, cpus=2)
    assert check_ray(text, 3) == []
    assert "HOSTS is 3, not 4" in check_ray(text, 4)[0]
    assert "not Python" in check_ray(text + "\n)", 3)[0]
    assert "1024..65535" in check_ray(text.replace("8476", "65530"), 3)[0]


def test_pools_are_named_counted_and_complete(tmp_path):
    assert [(pool.name, pool.hosts) for pool in MIXED] == [("v100", 2), ("a100-40", 3)]
    for text, sentence in (
        ("v100:2", "are 2 hosts, but --hosts is 3"),
        ("v100", "write NAME:HOSTS"),
        ("a100:3", "'a100' is unknown, did you mean"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            pools(text, 3, None, kinds())
    (tmp_path / "mine.yaml").write_text("fat: {label: x}\n")
    with pytest.raises(ConfigError, match="unknown key 'label', did you mean 'labels'"):
        kinds(tmp_path / "mine.yaml")


def test_a_tool_that_is_not_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask("sbatch", tmp_path / "x") == "sbatch is not installed here: checked by our own rules only"


def test_a_tool_that_refuses_is_an_error_and_one_without_a_cluster_is_not(monkeypatch, tmp_path):
    tool = tmp_path / "kubectl"
    tool.write_text("#!/bin/sh\necho 'unknown field spec.x' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(ValueError, match="kubectl refuses it: unknown field"):
        ask("kubectl", tmp_path / "x")
    tool.write_text("#!/bin/sh\necho 'dial tcp 1.2.3.4:6443: connection refused' >&2\nexit 1\n")
    assert "reaches no cluster here" in ask("kubectl", tmp_path / "x")


@pytest.mark.parametrize("where", ["k8s", "slurm", "ray", "local"])
def test_a_dry_run_prints_and_writes_nothing(where, capsys, tmp_path, monkeypatch):
    config = Path("configs/quickstart.yaml").absolute()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["launch", where, str(config), "--hosts", "3", "--dry-run", "--train.steps", "9"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "quickstart" in printed
    assert list(tmp_path.iterdir()) == []
    assert "steps: 9" in printed if where == "k8s" else "--train.steps" in printed


@pytest.mark.parametrize("monitor", ["true", "false"])
def test_that_hangs_are_not_found_without_a_monitor_is_said_once(monitor, capsys, tmp_path, monkeypatch):
    config = Path("configs/quickstart.yaml").absolute()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["launch", "local", str(config), "--dry-run", "--train.monitor", monitor])
    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert said.count("train.monitor is false, so the hosts write no reports") == (monitor == "false")
    assert said.count("one that hangs is not found") == (monitor == "false")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["local", "--hosts", "0"], "--hosts 0 must be at least 1"),
        (["local", "--train.stepz", "3"], "unknown key 'stepz', did you mean 'steps'?"),
        (["local", "--processes", "3"], "are given to each host by `jaxlm launch`"),
        (["local", "--platform", "tpu"], "--platform tpu must be auto, cpu or gpu"),
        (["local", "--train.monitor", "false", "--stall-factor", "9"], "--stall-factor needs the reports of the hosts"),
        (["local", "--train.monitor", "false", "--silent-after", "9"], "--silent-after needs the reports of the hosts"),
        (["k8s", "--hosts", "2", "--zones", "a,b,c"], "are 3 zones for 2 hosts"),
        (["k8s", "--hosts", "2", "--run-dir", "/elsewhere"], "must lie below /runs"),
        (["slurm", "--port", "80"], "--port 80 must be in 1024..65535"),
        (["slurm", "--time", "soon"], "--time 'soon' must be"),
        (["ray", "--pools", "v100:2"], "Ray knows no kinds of nodes"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, sentence, capsys):
    where, *rest = arguments
    with pytest.raises(SystemExit) as ended:
        main(["launch", where, "configs/quickstart.yaml", *rest])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_the_templates_are_found_in_an_installed_wheel(tmp_path):
    root = Path(__file__).parents[2]
    subprocess.run(["uv", "build", "--wheel", "--out-dir", tmp_path, root], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "installed"], check=True)
    code = "from jaxlm.runtime.manifests import kinds, templates; print(templates(), sorted(kinds()))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert f"{tmp_path}/installed/jaxlm/configs/launch" in done.stdout
    assert "v100" in done.stdout
