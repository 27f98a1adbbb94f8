"""The launchers print exactly what they run, and what they print can be pasted."""

import re
import shlex
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from distilljax.cli import app as cli

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
SHELLCHECK = Path(sysconfig.get_path("scripts")) / "shellcheck"
BASH = shutil.which("bash")
assert BASH is not None

# A recorder takes the place of every command that would act.
TOOLS = ("bash", "gcloud", "nvidia-smi", "sbatch", "scontrol", "srun", "tar", "xpk")
RECORDER = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" >>"$RECORD"
printf '\\036' >>"$RECORD"
exit "${CODE:-0}"
"""
AWKWARD = ['--out=/runs/it\'s $HOME `x` "é"', "--config.note=a  b;&|*?[!]\\n"]
TRAIN = ["--config=configs/latent/scm.py", *AWKWARD]
OVERLAP = "--xla_gpu_enable_latency_hiding_scheduler=true"


class Place:
    """A copy of the launchers in a folder with a space, and recording commands."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.root = folder / "a checkout"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        self.python = self.root / ".venv" / "bin" / "python"
        self.record = folder / "record"
        self.caller = folder / "the caller's"
        stubs = folder / "stubs"
        for made in (self.python.parent, self.caller, stubs):
            made.mkdir(parents=True)
        for tool in [*(stubs / name for name in TOOLS), self.python]:
            tool.write_text(RECORDER)
            tool.chmod(0o755)
        self.environment = {
            "PATH": f"{stubs}:/usr/bin:/bin",
            "HOME": str(folder),
            "RECORD": str(self.record),
        }

    def shell(self, *arguments: str, **variables: str):
        return subprocess.run(
            [str(BASH), *arguments],
            cwd=self.caller,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def launch(self, script: str, *arguments: str, **variables: str):
        return self.shell(
            str(self.root / "launch" / f"{script}.sh"), *arguments, **variables
        )

    def recorded(self) -> list[list[str]]:
        """The calls of commands since the last look."""
        if not self.record.exists():
            return []
        calls = self.record.read_text().split("\036")[:-1]
        self.record.unlink()
        return [call.split("\0")[:-1] for call in calls]

    def calls(self, script: str, *arguments: str, **variables: str):
        """The calls of a launcher, which are those of its printed lines pasted."""
        before = sorted(self.folder.rglob("*"))
        dry = self.launch(script, "--dry-run", *arguments, **variables)
        assert dry.returncode == 0, dry.stderr
        assert dry.stderr == ""
        assert sorted(self.folder.rglob("*")) == before
        assert self.recorded() == []
        pasted = self.shell("-c", dry.stdout)
        assert pasted.returncode == 0, pasted.stderr
        found = self.recorded()
        real = self.launch(script, *arguments, **variables)
        assert real.returncode == 0, real.stderr
        assert self.recorded() == found
        return found


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def shellcheck(path: Path):
    done = subprocess.run(
        [str(SHELLCHECK), "--external-sources", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
    shellcheck(path)


def test_shellcheck_would_find_a_fault(tmp_path):
    script = tmp_path / "wrong.sh"
    script.write_text("#!/bin/bash\nrm $1\n")
    with pytest.raises(AssertionError, match="SC2086"):
        shellcheck(script)


def install(place, extras: str) -> list[str]:
    return ["bash", str(place.root / "launch" / "environment.sh"), extras]


def train(place, *arguments: str) -> list[str]:
    return [str(place.python), "-m", "distilljax", "train", *arguments]


def test_one_gpu(place):
    assert place.calls("gpu", "--", *TRAIN) == [
        install(place, "cuda"),
        ["python", *train(place, *TRAIN, "--config.mesh.data=1")[1:]],
    ]


def test_gpus_share_the_batch_and_keep_the_callers_flags(place):
    """A stub of env shows the variables; a mesh that is named is left alone."""
    stub = place.folder / "stubs" / "env"
    stub.write_text(RECORDER)
    stub.chmod(0o755)
    args = ("--gpus=4", "--extras=wandb,tensorboard", "--", *TRAIN)
    first, second = place.calls("gpu", *args, XLA_FLAGS="--mine=1 --b")
    assert first == install(place, "cuda,wandb,tensorboard")
    assert second == [
        "env",
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9",
        f"XLA_FLAGS={OVERLAP} --mine=1 --b",
        *train(place, *TRAIN, "--config.mesh.data=4"),
    ]
    named = [*TRAIN, "--config.mesh.data=2"]
    args = ("--gpus=4", "--", *named)
    assert place.calls("gpu", *args)[1][3:] == train(place, *named)


SLURM = ("--nodes=2", "--gpus-per-node=8", "--time=1-00:00:00")


def test_slurm(place):
    logs = place.caller / "logs of a run"
    arguments = (
        *SLURM,
        "--name=scm",
        "--grace=300",
        "--cpus-per-gpu=12",
        "--sbatch=--partition=gpu",
        "--sbatch=--comment=it's mine",
        f"--logs={logs.name}",
        "--",
        *TRAIN,
    )
    dry = place.launch("slurm", "--dry-run", *arguments)
    assert dry.returncode == 0, dry.stderr
    assert place.recorded() == []
    assert not logs.exists()
    pasted = place.shell("-c", dry.stdout)
    assert pasted.returncode == 0, pasted.stderr
    job = logs / "scm.sbatch"
    expected = [install(place, "cuda"), ["sbatch", str(job)]]
    assert place.recorded() == expected
    text = job.read_text()
    shutil.rmtree(logs)
    assert place.launch("slurm", *arguments).returncode == 0
    assert place.recorded() == expected
    assert job.read_text() == text
    shellcheck(job)
    directives = [
        shlex.split(line.removeprefix("#SBATCH "))
        for line in text.splitlines()
        if line.startswith("#SBATCH ")
    ]
    assert directives == [
        ["--job-name=scm"],
        ["--nodes=2"],
        ["--gpus-per-node=8"],
        ["--ntasks-per-node=8"],
        ["--cpus-per-task=12"],
        ["--time=1-00:00:00"],
        ["--signal=TERM@300"],
        ["--requeue"],
        ["--open-mode=append"],
        [f"--output={logs}/%x-%j.log"],
        [f"--chdir={place.caller}"],
        ["--partition=gpu"],
        ["--comment=it's mine"],
    ]
    assert place.shell(str(job)).returncode == 0
    assert place.recorded() == [
        [
            "srun",
            "--gpu-bind=none",
            "--kill-on-bad-exit=0",
            "--cpus-per-task=12",
            "--open-mode=append",
            f"--output={logs}/%x-%j.%t.log",
            "env",
            "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9",
            f"XLA_FLAGS={OVERLAP}",
            *train(place, "--distributed", *TRAIN, "--config.mesh.data=16"),
        ]
    ]


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (143, True)])
def test_a_slurm_job_that_saved_queues_itself_again(place, code, again):
    assert place.launch("slurm", *SLURM, "--", *TRAIN).returncode == 0
    job = place.root / "runs" / "slurm" / "distilljax.sbatch"
    (place.folder / "stubs" / "scontrol").write_text(
        RECORDER.replace("${CODE:-0}", "0")
    )
    place.recorded()
    done = place.shell(str(job), CODE=str(code), SLURM_JOB_ID="77")
    assert done.returncode == code
    calls = place.recorded()
    assert calls[0][0] == "srun"
    assert calls[1:] == ([["scontrol", "requeue", "77"]] if again else [])


POD = ("--name=pod-1", "--zone=us-west4-a")


def test_a_tpu_pod_gets_the_copy_the_install_and_the_training(place):
    (place.folder / "work tree").mkdir()
    setup = "sudo apt-get install -y 'python3.11-venv' && echo \"$HOME\""
    calls = place.calls(
        "tpu_pod", *POD, "--project=p", f"--setup={setup}", "--folder=work tree",
        "--extras=wandb", "--", *TRAIN,
        TMPDIR=str(place.folder),
    )  # fmt: skip
    archive = f"{place.folder}/distilljax-pod-1.tar.gz"
    where = ["--zone=us-west4-a", "--project=p", "--worker=all"]
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    excludes = [f"--exclude=./{name}" for name in (".git", ".venv", "runs", "data")]
    assert calls[0] == ["tar", "-czf", archive, *excludes, "-C", str(place.root), "."]
    assert calls[1] == [*tpu, "scp", archive, "pod-1:distilljax.tar.gz", *where]
    for call in calls[2:]:
        assert call[:-1] == [*tpu, "ssh", "pod-1", *where]
    (place.folder / "stubs" / "sudo").symlink_to(place.folder / "stubs" / "tar")
    commands = [call[-1].removeprefix("--command=") for call in calls[2:]]
    for command in commands:
        done = place.shell("-c", f"cd; {command}")
        assert done.returncode == 0, done.stderr
    assert place.recorded() == [
        ["tar", "-xzf", "distilljax.tar.gz", "-C", "work tree"],
        ["sudo", "apt-get", "install", "-y", "python3.11-venv"],
        ["bash", "launch/environment.sh", "tpu,wandb"],
        ["bash", "launch/worker.sh", "start", "--distributed", *TRAIN],
    ]


def test_a_tpu_pod_that_trains_is_left_alone(place):
    """The copy that is there is asked first; its refusal ends the command."""
    copy = place.folder / "distilljax" / "launch"
    copy.mkdir(parents=True)
    (copy / "worker.sh").write_text("")
    calls = place.calls("tpu_pod", *POD, "--", *TRAIN)
    command = calls[2][-1].removeprefix("--command=")
    asked = ["bash", "distilljax/launch/worker.sh", "idle"]
    assert place.shell("-c", f"cd; {command}", CODE="1").returncode == 1
    assert place.recorded() == [asked]
    assert place.shell("-c", f"cd; {command}").returncode == 0
    found = place.recorded()
    assert found[0] == asked
    assert [call[0] for call in found] == ["bash", "tar", "bash"]


@pytest.mark.parametrize("action", ["status", "stop"])
def test_a_tpu_pod_is_asked_and_stopped(place, action):
    where = ["pod-1", "--zone=us-west4-a", "--worker=all"]
    command = f"--command=cd distilljax && bash launch/worker.sh {action}"
    assert place.calls("tpu_pod", *POD, f"--{action}") == [
        ["gcloud", "compute", "tpus", "tpu-vm", "ssh", *where, command]
    ]


GKE = ("--cluster=c", "--workload=scm-1", "--tpu-type=v5litepod-16")


def test_gke(place):
    (call,) = place.calls(
        "gke", *GKE, "--num-slices=2", "--zone=z", "--project=p", "--storage=runs",
        "--xpk=--env=NOTE=it's on", "--xpk=--priority=high", "--extras=wandb", "--",
        *TRAIN,
    )  # fmt: skip
    command = call.pop().removeprefix("--command=")
    assert call == [
        *("xpk", "workload", "create", "--workload=scm-1", "--cluster=c"),
        *("--zone=z", "--project=p", "--tpu-type=v5litepod-16", "--num-slices=2"),
        *("--max-restarts=50", "--termination-grace-period-seconds=120"),
        *("--storage=runs", "--env=NOTE=it's on", "--priority=high"),
        "--base-docker-image=python:3.12",
        f"--script-dir={place.root}",
    ]
    done = place.shell("-c", f"cd {shlex.quote(str(place.root))}; ({command})")
    assert done.returncode == 0, done.stderr
    assert place.recorded() == [
        ["bash", "launch/environment.sh", "tpu,wandb"],
        ["python", "-m", "distilljax", "train", "--distributed", *TRAIN],
    ]


def test_gke_with_an_image_installs_nothing(place):
    (call,) = place.calls("gke", *GKE, "--docker-image=i:1", "--", *TRAIN)
    assert "--docker-image=i:1" in call
    assert not any("base-docker-image" in word for word in call)
    assert call[-1].startswith("--command=exec python -m distilljax train ")


def test_gke_lists_and_deletes(place):
    assert place.calls("gke", "--cluster=c", "--status") == [
        ["xpk", "workload", "list", "--cluster=c"]
    ]
    assert place.calls("gke", "--cluster=c", "--workload=w", "--stop") == [
        ["xpk", "workload", "delete", "--workload=w", "--cluster=c"]
    ]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("gpu", [], "no card was named"),
        ("gpu", ["--", "--out=x"], "add it at the end: -- --config="),
        ("gpu", ["--gpus=0", "--", *TRAIN], "--gpus must be a positive whole number"),
        ("gpu", ["--gpus", "2", "--", *TRAIN], "written --name=value"),
        ("gpu", ["--gpus=", "--", *TRAIN], "--gpus= has no value"),
        ("gpu", TRAIN, "come after --"),
        ("slurm", [*SLURM[1:], "--", *TRAIN], "--nodes=... is missing"),
        ("slurm", [*SLURM[:1], "--", *TRAIN], "--gpus-per-node=... is missing"),
        ("slurm", [*SLURM[:2], "--", *TRAIN], "--time=... is missing"),
        ("slurm", [*SLURM, "--nodes=two", "--", *TRAIN], "got 'two'"),
        ("slurm", [*SLURM, "--name=a b", "--", *TRAIN], "a name holds letters"),
        ("slurm", [*SLURM, "--", *TRAIN, "--fresh"], "--fresh would remove the run"),
        ("tpu_pod", [POD[0], "--", *TRAIN], "--zone=... is missing"),
        ("tpu_pod", [POD[1], "--", *TRAIN], "gcloud compute tpus tpu-vm list"),
        ("tpu_pod", [*POD, "--", TRAIN[0]], "every worker sees"),
        ("gke", [*GKE[1:], "--", *TRAIN], "--cluster=... is missing"),
        ("gke", [GKE[0], GKE[2], "--", *TRAIN], "--workload=... is missing"),
        ("gke", [*GKE[:2], "--", *TRAIN], "--tpu-type=... is missing"),
        ("gke", [*GKE, "--", TRAIN[0]], "--out=FOLDER is missing"),
        ("gke", ["--cluster=c", "--stop"], "--workload=... is missing"),
    ],
)
def test_wrong_words_say_what_to_do_and_run_nothing(place, script, arguments, message):
    done = place.launch(script, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert place.recorded() == []


@pytest.mark.parametrize(
    ("script", "tool", "arguments"),
    [
        ("gpu", "nvidia-smi", ()),
        ("slurm", "sbatch", SLURM),
        ("tpu_pod", "gcloud", POD),
        ("gke", "xpk", GKE),
    ],
)
def test_a_missing_tool_is_named_with_its_mend(place, script, tool, arguments):
    (place.folder / "stubs" / tool).unlink()
    stubs = commands(place.folder / "few", "dirname", "sed", "cat")
    path = f"{place.folder / 'stubs'}:{stubs}"
    done = place.launch(script, *arguments, "--", *TRAIN, PATH=path)
    assert done.returncode == 1
    assert f"the command {tool} is not installed" in done.stderr
    assert place.recorded() == []
    dry = place.launch(script, "--dry-run", *arguments, "--", *TRAIN, PATH=path)
    assert dry.returncode == 0, dry.stderr


def commands(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


@pytest.mark.parametrize("script", ["gpu", "slurm", "tpu_pod", "gke", "worker"])
def test_help_is_the_head_of_the_script(place, script):
    done = place.launch(script, "--help")
    assert done.returncode == 0
    assert f"bash launch/{script}.sh" in done.stdout
    assert "set -euo" not in done.stdout
    assert place.recorded() == []


def test_a_worker_trains_in_the_background_once_and_stops(place):
    """A training that notes its arguments and ends at SIGTERM."""
    place.python.write_text(
        "#!/bin/sh\ntrap 'echo saved; exit 143' TERM\n"
        'printf "<%s>" "$@"\nwhile :; do sleep 0.05; done\n'
    )
    assert "does not run" in place.launch("worker", "status").stderr
    try:
        started = place.launch("worker", "start", *TRAIN)
        assert "started as process" in started.stderr, started.stderr
        again = place.launch("worker", "start", *TRAIN)
        assert "already runs" in again.stderr
        assert again.returncode == 0
        deadline = time.monotonic() + 20
        status = place.launch("worker", "status")
        while "<train>" not in status.stdout and time.monotonic() < deadline:
            time.sleep(0.05)
            status = place.launch("worker", "status")
        assert "runs as process" in status.stderr
        idle = place.launch("worker", "idle")
        assert idle.returncode == 1
        assert "stop it first" in idle.stderr
        words = "".join(f"<{word}>" for word in ["-m", "distilljax", "train", *TRAIN])
        assert status.stdout.count(words) == 1
    finally:
        stopped = place.launch("worker", "stop")
    assert "the same start continues it" in stopped.stderr
    assert place.launch("worker", "idle").returncode == 0
    status = place.launch("worker", "status")
    assert "does not run" in status.stderr
    assert "saved" in status.stdout


def test_a_worker_without_environment_says_how_to_make_it(place):
    place.python.unlink()
    done = place.launch("worker", "start", *TRAIN)
    assert done.returncode == 1
    assert "bash launch/environment.sh tpu" in done.stderr


def documented() -> list[str]:
    """Every call of a launcher with a card in the page on launching."""
    text = (ROOT / "docs" / "launch.md").read_text().replace("\\\n", " ")
    found = re.findall(
        r"(?:^ *|`)(bash launch/\w+\.sh [^\n`]*--config=[^\n`]*)", text, re.M
    )
    return [" ".join(line.split()) for line in found]


def test_the_page_shows_every_launcher():
    shown = [line.split()[1] for line in documented()]
    assert {
        shown.count(f"launch/{n}.sh") for n in ("gpu", "slurm", "tpu_pod", "gke")
    } == {2}


@pytest.mark.parametrize("line", documented())
def test_what_the_page_shows_is_accepted(place, line):
    """By the launcher, and by `distilljax train` as far as the card goes."""
    _, script, *words = shlex.split(line)
    done = place.launch(Path(script).stem, "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    arguments = words[words.index("--") + 1 :]
    options, overrides = cli._parser()[0].parse_known_args(["train", *arguments])
    assert cli.read_card(str(ROOT / options.config), overrides)
