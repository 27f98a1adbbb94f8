"""The command line: a tiny card trained, sampled, and every wrong word answered."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from distilljax import __version__, cards, data, recipes
from distilljax.cli import app as cli
from distilljax.methods import CATALOGUE
from distilljax.training.export import save_params

CARD = """
from distilljax import cards


def get_config():
    return cards.card(
        "{method}",
        {options},
        source={{"name": "mixture", "size": 64, "components": 3}},
        networks={{
            "backbone": {{"name": "mlp", "width": 8, "hidden": 8, "blocks": 1}}
        }},
        cycles=50,
        batch_size=8,
    )
"""


def run(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two cards, and a teacher trained from the first."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "teacher.py").write_text(
        CARD.format(method="flow_matching", options="{}")
    )
    (folder / "student.py").write_text(
        CARD.format(method="scm", options='{"learned_weight": False}')
    )
    config = f"--config={folder / 'teacher.py'}"
    assert run("train", config, "--config.cycles=2", f"--out={folder / 'one'}") == 0
    return folder


def test_train_then_sample_then_distil_then_sample(place, capsys):
    config = f"--config={place / 'student.py'}"
    options = [f"--teacher={place / 'one'}", f"--out={place / 'two'}"]
    values = ["--config.cycles=2", "--config.student.lr=3e-4"]
    assert run("train", config, *options, *values, "--profile=2:2") == 0
    assert list((place / "two" / "profile").rglob("*.xplane.pb"))
    shown = capsys.readouterr().out
    assert f"scm: 2 cycles in {place / 'two'}" in shown
    assert run("sample", f"--run={place / 'two'}", "--steps=2", "--labels=0,1,2,2") == 0
    out = place / "two" / "samples" / "steps2_seed0.npz"
    assert f"4 samples in {out}" in capsys.readouterr().out
    with np.load(out) as found:
        assert found["x"].shape == (4, 2)
        np.testing.assert_array_equal(found["label"], [0, 1, 2, 2])
    led = [f"--teacher={place / 'one'}", "--teacher-nfe=4", "--labels=0,1"]
    assert run("sample", f"--run={place / 'two'}", "--steps=2", *led) == 0
    out = place / "two" / "samples" / "steps2_teacher1_seed0.npz"
    shown = capsys.readouterr().out
    assert f"2 samples in {out}, NFE 5 (teacher 4, student 1)" in shown
    # A second call continues a finished run: nothing to do; --fresh trains again.
    before = (place / "two" / "params" / "student.npz").read_bytes()
    assert run("train", config, *options, *values) == 0
    assert (place / "two" / "params" / "student.npz").read_bytes() == before
    # However the teacher is spelled, and where it lies.
    spelled = [f"--teacher={place / 'two' / '..' / 'one'}", options[1]]
    assert run("train", config, *spelled, *values) == 0
    assert (place / "two" / "params" / "student.npz").read_bytes() == before
    assert run("train", config, *options, *values, "--config.batch_size=4") == 2
    assert "batch_size: 8 -> 4" in capsys.readouterr().err
    values[-1] = "--config.student.lr=0.5"
    assert run("train", config, *options, *values, "--fresh") == 0
    assert (place / "two" / "params" / "student.npz").read_bytes() != before


def test_edit_reads_images_and_writes_results(tmp_path, capsys):
    """With an untrained student, written as a run leaves it."""
    card = recipes.digits_card(
        "scm", {"learned_weight": False}, source="coloured_digits"
    )
    card.networks.backbone.update({"width": 8, "hidden": 8, "blocks": 1})
    card.source.copies = 1
    student = cards.expand(card).networks["backbone"].init(jax.random.key(0))
    save_params(tmp_path / "run" / "params" / "student.npz", student)
    record = {"card": cards.expand(card).config}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype("float32")
    np.savez(tmp_path / "in.npz", x=x, label=np.array([3, 4]))
    np.save(tmp_path / "hole.npy", np.eye(8))
    options = [f"--run={tmp_path / 'run'}", f"--input={tmp_path / 'in.npz'}"]
    mask = f"--mask={tmp_path / 'hole.npy'}"
    assert run("edit", "--task=inpaint", *options, mask, "--steps=1") == 0
    out = tmp_path / "run" / "edits" / "inpaint_steps1_seed0.npz"
    assert f"2 images in {out}, NFE 1" in capsys.readouterr().out
    with np.load(out) as found:
        known = np.eye(8) == 0
        np.testing.assert_array_equal(found["x"][:, known], x[:, known])
        np.testing.assert_array_equal(found["label"], [3, 4])
    assert run("edit", "--task=inpaint", *options) == 2
    assert "task 'inpaint' needs mask=" in capsys.readouterr().err
    assert run("edit", "--task=colorise", *options) == 2
    assert "Did you mean 'colourise'" in capsys.readouterr().err


def test_methods_lists_the_catalogue(capsys):
    assert run("methods") == 0
    shown = capsys.readouterr().out
    for name, entry in CATALOGUE.items():
        assert f"{name}  ({entry.family})" in shown
        assert str(entry.cite) in shown
    assert "networks need: jvp, second_time" in shown
    assert "batch: conditions only" in shown


def test_without_a_command_the_commands_are_shown(capsys):
    assert run() == 0
    shown = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert command in shown


def wrong(*arguments):
    try:
        return run(*arguments)
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'"),
        (["--vresion"], "Did you mean '--version'"),
        (["methods", "--all"], "unknown argument '--all'"),
        (["sample", "--run=x", "--stepz=2"], "'--stepz'. Did you mean '--steps'"),
        (["sample"], "required: --run"),
        (["sample", "--run=x", "--steps=two"], "invalid int value: 'two'"),
        (["train"], "required: --config"),
        (["train", "--config={card}", "--tescher=x"], "Did you mean '--teacher'"),
        (["train", "--config={card}", "--config.cycle=3"], "Did you mean 'cycles'"),
        (["train", "--config={card}", "--config.student.lrr=3"], "'student.lr'"),
        (["train", "--config={card}", "--config.cycles=abc"], "does not fit the card"),
        (
            ["train", "--config={card}", "--config.cycles=0"],
            "cycles must be at least 1",
        ),
        (["train", "--config={card}", "--config.cycles"], "--config.key=value"),
        (["train", "--config={card}", "--config.logging=wanbd"], "mean 'wandb'"),
        (["train", "--config={card}", "--profile=5"], "two cycles joined by a colon"),
        (
            ["train", "--config={card}", "--teacher={folder}/one", "--profile=60:70"],
            "1 <= first <= last <= 50, got (60, 70)",
        ),
        (["train", "--config={card}", "--config.method.name=scmm"], "mean 'scm'"),
        (["train", "--config={card}", "--config.method.law=Unifrm()"], "'Uniform'"),
        (["train", "--config={card}", "--config.student.optimizer=adm"], "'adam'"),
        (["train", "--config={card}x"], "Did you mean 'student.py'"),
        (["train", "--config={card}"], "starts from a teacher: pass --teacher=FOLDER"),
        (["train", "--config={card}", "--teacher={folder}/none"], "none holds no run"),
        (["sample", "--run={folder}/none"], "none holds no run"),
        (["sample", "--run={folder}/one", "--steps=0"], "steps must be at least 1"),
        (["sample", "--run={folder}/one", "--labels=0,7"], "0 .. 2, got 0 .. 7"),
        (["sample", "--run={folder}/one", "--labels=0,a"], "integers joined by commas"),
        (["sample", "--run={folder}/one", "--count=0"], "at least 1"),
        (["sample", "--run={folder}/one", "--teacher-steps=2"], "pass teacher="),
        (["edit", "--run={folder}/one", "--input=x.npz"], "required: --task"),
        (
            ["edit", "--run={folder}/one", "--task=stroke", "--input={folder}/x.npz"],
            "no images at",
        ),
        (["report", "--out={folder}/none"], "holds no quick start"),
        (["quickstart", "--out={folder}"], "not empty and holds no quick start"),
        (["quickstart", "--fresh", "--out={folder}"], "holds no quick start"),
    ],
)
def test_wrong_words_end_with_2_and_say_what_there_is(
    place, capsys, arguments, message
):
    names = {"card": place / "student.py", "folder": place}
    before = sorted(p.name for p in place.iterdir())
    assert wrong(*(a.format(**names) for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in place.iterdir()) == before


def test_an_unfinished_run_is_no_teacher(place, capsys):
    folder = place / "unfinished"
    folder.mkdir()
    (folder / "config.json").write_bytes((place / "one" / "config.json").read_bytes())
    try:
        assert run("sample", f"--run={folder}") == 2
        assert "train that run to its end first" in capsys.readouterr().err
        card = f"--config={place / 'student.py'}"
        assert run("train", card, f"--teacher={folder}", f"--out={place / 'x'}") == 2
        assert "train that run to its end first" in capsys.readouterr().err
    finally:
        (folder / "config.json").unlink()
        folder.rmdir()


def test_fresh_leaves_other_folders_alone(place, capsys):
    folder = place / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("words")
    card = f"--config={place / 'teacher.py'}"
    assert run("train", card, "--fresh", f"--out={folder}") == 2
    assert "holds no run, so --fresh leaves it alone" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "words"
    (folder / "thesis.txt").unlink()
    folder.rmdir()


def test_the_module_is_the_program():
    root = pathlib.Path(__file__).parents[2]
    for arguments, code, text in (
        (["--version"], 0, __version__),
        (["trian"], 2, "Did you mean 'train'"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "distilljax", *arguments],
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code
        assert text in done.stdout + done.stderr


def test_pairs_of_a_teacher_train_a_student(place, capsys):
    pairs = place / "pairs"
    options = [f"--run={place / 'one'}", f"--out={pairs}", "--batch-size=8"]
    assert run("pairs", *options, "--count=12", "--nfe=2", "--solver=Euler()") == 0
    assert f"12 samples of pairs in {pairs}" in capsys.readouterr().out
    card = CARD.format(method="reflow", options='{"online": False}').replace(
        '{"name": "mixture", "size": 64, "components": 3}',
        f'{{"name": "pairs", "path": {str(pairs)!r}}}',
    )
    (place / "reflow.py").write_text(card)
    config = [f"--config={place / 'reflow.py'}", f"--teacher={place / 'one'}"]
    assert run("train", *config, "--config.cycles=1", f"--out={place / 'r'}") == 0
    assert run("pairs", *options, "--count=13") == 2
    assert "count: 12 -> 13" in capsys.readouterr().err
    assert run("pairs", *options, "--count=12", "--solver=Eule()") == 2
    assert "Did you mean 'Euler'" in capsys.readouterr().err


def test_the_data_of_a_card_becomes_records(place, capsys):
    out = place / "records"
    config = f"--config={place / 'teacher.py'}"
    options = [f"--out={out}", "--shards=2", "--config.source.size=9"]
    assert run("convert", config, *options) == 0
    assert f"9 samples in {out}" in capsys.readouterr().out
    assert data.records(out, num_classes=3).take(np.arange(9))["x0"].shape == (9, 2)
    assert run("convert", config, *options) == 2
    assert "holds records already" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["inf", "nan", "much"])
def test_numbers_of_options_are_finite(text, capsys):
    with pytest.raises(SystemExit) as error:
        run("bench", f"--budget={text}")
    assert error.value.code == 2
    assert f"must be a finite number, got '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize("card", ["{}", "3", '{"method": {}}'])
def test_a_record_that_is_none_is_named(card, tmp_path, capsys):
    (tmp_path / "config.json").write_text(f'{{"card": {card}}}')
    assert run("sample", f"--run={tmp_path}") == 2
    assert f"the card in {tmp_path}/config.json" in capsys.readouterr().err


def test_samples_are_kept_whatever_the_ending_of_out(place, tmp_path, capsys):
    one, options = f"--run={place / 'one'}", ["--count=3", "--seed=5"]
    assert run("sample", one, *options, f"--out={tmp_path / 'x.npy'}") == 0
    assert f"3 samples in {tmp_path / 'x.npy'}, NFE 1" in capsys.readouterr().out
    assert np.load(tmp_path / "x.npy").shape == (3, 2)
    known = json.loads((tmp_path / "x.npy.json").read_text())
    assert known["label"] == [0, 1, 2]
    record = known["record"]
    assert (record["seed"], record["steps"], record["value_range"]) == (5, 1, "none")
    assert record["run"] == str(place / "one")
    for out, words in (
        ("x.png", "asks for pictures, and samples of shape (2,) are none"),
        ("x.pt", "out must end in .npz, .npy, .png, .jpg"),
        ("many/", "write arrays: --out=FILE.npz"),
    ):
        assert run("sample", one, *options, f"--out={tmp_path}/{out}") == 2
        assert words in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_data_of_another_kind_is_refused(place, capsys):
    assert run("sample", f"--run={place / 'one'}", f"--data={place}") == 2
    assert "this student (flow_matching) reads no data" in capsys.readouterr().err


def test_hints_after_training_fit_the_method(place, capsys):
    config = f"--config={place / 'teacher.py'}"
    assert run("train", config, "--config.cycles=2", f"--out={place / 'one'}") == 0
    shown = capsys.readouterr().out
    assert f"sample it: distilljax sample --run={place / 'one'} --steps=16" in shown
    assert f"distil it: distilljax train --config=CARD --teacher={place}" in shown
