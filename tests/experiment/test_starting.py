"""``distilljax init``: what it finds, what it writes, and the page that shows it."""

import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from distilljax import cards, cli, data, looking, methods, starting
from distilljax.training.roles import join

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "your_own_images.md"
STUDENTS = sorted(n for n in methods.CATALOGUE if not starting.otherwise(n))


def pictures(path, names=("cat", "dog"), count=3, size=(32, 40), mode="RGB"):
    """Class folders of small pictures; without names, the folder itself."""
    rng = np.random.default_rng(0)
    for name in names or ("",):
        (path / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(path / name / f"{i}.png")
    return path


def test_folders_of_images_are_looked_at(tmp_path):
    found = looking.look(pictures(tmp_path / "a"))
    assert (found.count, found.sample_shape, found.num_classes) == (6, (32, 32, 3), 2)
    assert (found.class_names, found.per_class) == (("cat", "dog"), (3, 3))
    assert found.words() == "6 images of 32 x 32 x 3 in 2 classes"
    assert "sides from 32" not in found.note
    assert looking.look(tmp_path / "a", size=8).sample_shape == (8, 8, 3)
    grey = looking.look(pictures(tmp_path / "b", (), size=(70, 90), mode="L"))
    assert (grey.sample_shape, grey.num_classes) == ((64, 64, 1), None)
    assert "sides from 70 to 70" in grey.note
    with pytest.raises(ValueError, match="no data at .*missing.*folder of images"):
        looking.look(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images at"):
        looking.look(tmp_path / "empty")


def test_arrays_and_records_are_looked_at(tmp_path):
    x0 = np.zeros((5, 16, 16, 3), np.float32)
    np.savez(tmp_path / "a.npz", x0=x0, cond=np.array([0, 1, 2, 1, 1]))
    found = looking.look(tmp_path / "a.npz")
    assert (found.num_classes, found.per_class, found.images) == (3, (1, 3, 1), True)
    np.save(tmp_path / "latents.npy", np.full((4, 8, 8, 4), 3.0, np.float32))
    latents = looking.look(tmp_path / "latents.npy")
    assert latents.section["images"] is False
    assert not latents.images
    data.write_records(data.arrays(x0, np.arange(5)), tmp_path / "records")
    records = looking.look(tmp_path / "records")
    assert records.section["name"] == "records"
    assert records.num_classes == 5
    with pytest.raises(ValueError, match="size is for image folders"):
        looking.look(tmp_path / "records", size=8)
    np.savez(tmp_path / "b.npz", images=x0)
    with pytest.raises(ValueError, match="must hold 'x0', it has .*images"):
        looking.look(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x0=x0 + 100)
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\]"):
        looking.look(tmp_path / "c.npz")


def found(side=32, count=500, channels=3):
    shape = (side, side, channels)
    section = {"name": "npz", "path": "a.npz", "sample_shape": shape}
    return looking.Look(section, count, shape, None, None, None, ("x0",), True)


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 128])
@pytest.mark.parametrize("count", [3, 500, 5000, 10**6])
def test_sizes_grow_with_the_data_and_their_networks_can_be_built(side, count):
    given = found(side, count)
    chosen = starting.sizes(given)
    assert chosen.batch <= count
    card = cards.card(
        "flow_matching", source=given.section, networks={"backbone": chosen.network}
    )
    cards.expand(card, source=cards.outline(card))
    assert (
        chosen.student <= chosen.teacher <= starting.sizes(found(side, 10**6)).teacher
    )


def test_every_method_is_begun_and_nothing_is_overwritten(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x0=np.zeros((8, 2), np.float32), cond=np.arange(8) % 2)
    for name in STUDENTS:
        starting.begin(tmp_path / "a.npz", method=name, out=tmp_path / name)
        built = cards.expand(cards.load(tmp_path / name / f"{name}.py"))
        join(built.method.roles, built.networks)
        assert built.teacher == f"runs/{name}/teacher"
        assert set(built.train.roles) == set(built.method.trained)
    arguments = ["init", f"--data={tmp_path / 'a.npz'}", f"--out={tmp_path / 'scm'}"]
    before = (tmp_path / "scm" / "scm.py").read_bytes()
    assert cli.main(arguments) == 2
    assert "scm.py would be overwritten" in capsys.readouterr().err
    assert cli.main([*arguments, "--method=dmd2"]) == 2
    assert not (tmp_path / "scm" / "dmd2.py").exists()
    assert (tmp_path / "scm" / "scm.py").read_bytes() == before
    for name, message in (("flow_matching", "it makes teachers"), ("smc", "'scm'")):
        assert cli.main([*arguments, f"--method={name}"]) == 2
        assert message in capsys.readouterr().err


def test_names_in_the_data_are_no_code(tmp_path):
    name = 'a"""\nimport os\nos._exit(3)\n#'
    out = tmp_path / "out"
    lines = starting.begin(pictures(tmp_path / 'x"""' / "y", (name, "b")), out=out)
    built = cards.expand(cards.load(out / "teacher.py"))
    assert built.source.class_names == (name, "b")
    assert any("2 classes" in line for line in lines)


def blocks():
    """Python blocks and commands of the page, in its order."""
    text = PAGE.read_text()
    pattern = re.compile(r"```python\n(.*?)```|^    (distilljax [^\n]*)$", re.M | re.S)
    return [(m.group(1), m.group(2)) for m in pattern.finditer(text)]


SMALL = ["--config.cycles=2", "--config.batch_size=8", "--config.sample_every=2"]


def test_the_page_is_followed_in_small(tmp_path, monkeypatch, capsys):
    """Everything as it stands; of the trainings, two cycles each."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code, command in blocks():
        if code:
            exec(code.replace("range(400)", "range(8)"), scope)
            continue
        arguments = shlex.split(command)[1:]
        more = SMALL if arguments[0] == "train" else []
        assert cli.main([*arguments, *more]) == 0, command
        if arguments[0] == "init":
            said = capsys.readouterr().out
            for _, later in blocks():
                if later and later.startswith("distilljax train"):
                    assert later in said
    assert scope["x"].shape == (2, 32, 32, 3)
    run = tmp_path / "runs" / "mine" / "scm"
    with np.load(run / "samples" / "steps4_seed0.npz") as made:
        np.testing.assert_array_equal(made["label"], [0, 1, 0, 1])
    assert (run / "samples" / "cycle_000002.png").is_file()
    with Image.open(run / "samples" / "steps4_seed0.png") as picture:
        assert picture.size[0] > 4 * 32
