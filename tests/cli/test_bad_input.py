"""Bad input: one clear message, exit code 2, nothing overwritten."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from jaxlm.cli import main
from tests.cli.programs import finish, start, write_config, write_texts


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_config(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))


def refused(capsys, *arguments: object, code: int = 2) -> str:
    """The message on stderr of a command that must end with this code."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert ended.value.code == code, captured
    assert "Traceback" not in captured.err
    messages = [line for line in captured.err.splitlines() if line.startswith("jaxlm: error:")]
    assert len(messages) == 1, captured.err
    return captured.err[captured.err.index("jaxlm: error:") :]


def contents(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.layer", "3"], "model: unknown key 'layer', did you mean 'layers'?"),
        (["--optimizer.lr", "1"], "unknown key 'optimizer', did you mean 'optim'?"),
        (["--model.layers", "two"], "model.layers: 'two' is a text, expected a whole number"),
        (["--train.steps", "1.5"], "train.steps: 1.5 is a number, expected a whole number"),
        (["--optim.lr", "true"], "optim.lr: True is a true/false value, expected a number"),
        (["--model.norm", "rmss"], "model.norm: 'rmss' is not one of rms, layer; did you mean 'rms'?"),
        (["--model.heads", "3"], "model.embed=32 is not divisible by model.heads=3; choose heads among 1, 2, 4"),
        (["--model.kv_heads", "3"], "model.heads=4 is not divisible by model.kv_heads=3; choose kv_heads among 1, 2"),
        (["--model.preset", "gpt3"], "model.preset: 'gpt3' is unknown, did you mean 'gpt2"),
        (["--data.sequence", "1"], "data.sequence=1 must be at least 2"),
        (["--train.steps", "0"], "train.steps=0 must be positive"),
        (["--train.steps"], "--train.steps needs a value"),
        (["steps=3"], "unexpected argument 'steps=3'; overrides look like --model.layers 4"),
        (["--train", "[1"], "the value of --train is not valid YAML"),
        (["--model.layers.x", "1"], "model.layers is a whole number, it has no keys"),
        (["--plan.mesh.tensr", "2"], "plan.mesh: unknown axes ['tensr']"),
        (["--plan.mesh.tensor", "3"], "tensor=3"),
        (["--plan.mesh.data", "16"], "16"),
        (["--train.batch", "12", "--plan.mesh.data", "8"], "batch 12"),
        (["--plan.options.xla_gpu_enable_triton_softmax_fusion", "false"], "knows no XLA option"),
        (["--plan", "missing.json"], "plan file missing.json does not exist"),
        (["--model.attention", "cudnn"], "cuDNN flash attention here, but the platform is cpu"),
        (["--model.vocab", "300"], "model.vocab=300 is smaller than the tokenizer's 360 tokens"),
        (["--data.tokenizer.vocab", "90000"], "90000"),
        (["--data.path", "/no/such/folder"], "/no/such/folder"),
        (["--optim.lr", ".nan"], "optim.lr: nan is not a finite number"),
        (["--model.layers", "null"], "model.layers: null is not allowed here, expected a whole number"),
        (["--run-dir", "/proc/nowhere"], "--run-dir /proc/nowhere cannot be made"),
        (["--processes", "2"], "--processes 2 needs --coordinator HOST:PORT"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_setting_is_named_and_nothing_is_made(home, tmp_path, capsys, arguments, message):
    run = tmp_path / "run"
    found = refused(capsys, "train", home / "tiny.yaml", "--run-dir", run, *arguments)
    assert message in found
    assert not (run / "checkpoints").exists()
    assert not (run / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1, 2]", "model: [1, 2] is a list, expected a mapping of keys to values"),
        ("model: {layers: 2\n", "is not valid YAML"),
        ("- a\n- b\n", "must hold a mapping of keys to values, not a list"),
        ("seed: 1\nseed: 2\n", "key 'seed' stands twice"),
        ("name: ../up\n", "name='../up' must be usable as a folder name"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, capsys, text, message):
    (tmp_path / "wrong.yaml").write_text(text)
    assert message in refused(capsys, "train", tmp_path / "wrong.yaml", "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_configuration_suggests_its_neighbour(home, capsys):
    assert f"did you mean {home}/tiny.yaml?" in refused(capsys, "train", home / "tiney.yaml")


def test_an_empty_corpus_and_an_unreadable_gzip_are_named(home, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    found = refused(capsys, "train", home / "tiny.yaml", "--run-dir", tmp_path / "a", "--data.path", empty)
    assert str(empty) in found
    texts = write_texts(tmp_path / "texts", files=3)
    (texts / "bad.txt.gz").write_bytes(gzip.compress(b"some text " * 100)[:-20])
    found = refused(capsys, "train", home / "tiny.yaml", "--run-dir", tmp_path / "b", "--data.path", texts)
    assert "bad.txt.gz" in found


def test_a_run_directory_of_another_model_or_data_is_refused_untouched(home, tmp_path, capsys):
    run, config = home / "run", home / "tiny.yaml"
    finish(start(["train", config, "--run-dir", run, "--train.steps", "3"], home=home))
    before = contents(run)
    found = refused(capsys, "train", config, "--run-dir", run, "--model.layers", "4", "--data.sequence", "16")
    assert "model.layers was 2, is 4" in found
    assert "data.sequence was 32, is 16" in found
    texts = write_texts(tmp_path / "texts", words=901)
    found = refused(capsys, "train", config, "--run-dir", run, "--data.path", texts)
    assert f"data.path was {home}/texts, is {texts}" in found
    (home / "texts" / "00.txt").write_text("other words " * 500)
    found = refused(capsys, "train", config, "--run-dir", run, "--train.steps", "6", "--plan.mesh.data", "8")
    assert "the data has changed since this run began" in found
    after = contents(run)
    assert {**after, ".lock": ""} == {**before, ".lock": ""}, "only the owner's name in the lock may differ"


def test_a_directory_that_is_no_run_is_left_alone(home, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    found = refused(capsys, "train", home / "tiny.yaml", "--run-dir", tmp_path)
    assert "holds other files and no config.yaml" in found
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_commands_on_runs_name_what_is_missing(home, tmp_path, capsys):
    (tmp_path / "quickstart").mkdir()
    assert f"did you mean {tmp_path}/quickstart?" in refused(capsys, "eval", tmp_path / "quikstart")
    (tmp_path / "quickstart" / "config.yaml").write_text((home / "tiny.yaml").read_text())
    assert "has no usable checkpoint yet" in refused(capsys, "generate", tmp_path / "quickstart", "--prompt", "a")
    assert "unexpected argument '--promt'" in refused(capsys, "generate", tmp_path / "quickstart", "--promt", "a")


def test_looking_at_nothing_is_refused(home, tmp_path, capsys):
    config = home / "tiny.yaml"
    assert "fsdp stands twice" in refused(capsys, "plan", config, "--mesh", "fsdp=4,fsdp=2")
    assert "'data=-2' is no AXIS=SIZE" in refused(capsys, "plan", config, "--mesh", "data=-2")
    assert "--step -1 must not be negative" in refused(capsys, "data", "show", config, "--step", "-1")
    for wrong in (("--tokens", "-3"), ("--temperature", "-1"), ("--top-p", "0")):
        assert f"error: {wrong[0]}=" in refused(capsys, "generate", tmp_path, *wrong)
    (tmp_path / "config.yaml").touch()
    assert "config.yaml is empty" in refused(capsys, "eval", tmp_path)


def test_a_model_that_cannot_fit_is_refused_with_its_memory_table(home, tmp_path, capsys):
    found = refused(
        capsys, "train", home / "tiny.yaml", "--run-dir", tmp_path / "run", "--model.layers", "4000",
        "--model.embed", "4096", "--model.mlp", "16384", "--train.batch", "64",
    )  # fmt: skip
    assert "parameters" in found
    assert "capacity" in found
    assert not (tmp_path / "run").exists()


def test_the_resolved_configuration_can_be_printed_and_used_again(home, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", str(home / "tiny.yaml"), "--model.layers", "5", "--print-config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "layers: 5" in printed
    assert "# number of blocks." in printed
    (tmp_path / "again.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "again.yaml"), "--print-config"])
    assert capsys.readouterr().out == printed


def test_plan_and_doctor_report_one_json_object_last(home, capsys):
    for arguments in (["plan", str(home / "tiny.yaml"), "--json"], ["doctor", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        facts = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert facts
    assert facts["xla_options"]["xla_gpu_enable_triton_softmax_fusion"] is False
