"""Classes by name: where names come from, and what they are taken for."""

import json

import numpy as np
import pytest
from PIL import Image

import distilljax
from distilljax import api, cards, cli, data, labels, networks

NAMES = ("bird", "cat", "dog")
TINY = {"width": 8, "hidden": 8, "blocks": 1, "embedding": 8}


def folder(path, names=NAMES, count=3, size=4):
    """Class folders of small pictures."""
    rng = np.random.default_rng(0)
    for name in names:
        (path / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def test_names_and_integers_stand_beside_each_other():
    assert labels.numbered(["cat", 0, "2", " dog"], NAMES) == [1, 0, 2, 2]
    assert labels.numbered("cat,2,bird", NAMES) == [1, 2, 0]
    assert labels.numbered(np.array(["dog"]), NAMES) == [2]
    assert labels.numbered([0, 1], NAMES) == [0, 1]
    assert labels.numbered(None, NAMES) is None
    assert labels.numbered("0,1") == [0, 1]
    # A class that is called by a number is that class.
    assert labels.numbered("10,0", ("0", "1", "10")) == [2, 0]
    assert labels.named([2, 0], NAMES) == ["dog", "bird"]
    assert labels.named([2, 0]) == ["2", "0"]
    assert labels.named(None, NAMES) is None


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (np.arange(100) % 10, 10),
        (np.arange(100) % 3, 9),
        (np.arange(7) % 5, 5),
        (np.arange(100) % 12, 12),
        (np.arange(100) % 40, 10),
        (np.repeat(np.arange(10), 8), 8),
        (np.repeat([2, 0], 12), 12),
        ([0, 0, 1, 1], 4),
        ([1] * 30, 10),
        (range(4), 4),
        (np.arange(100) ** 2 % 101, 10),
        ([3], 1),
    ],
)
def test_a_grid_keeps_the_images_of_a_class_together(given, columns):
    assert labels.columns_of(given) == columns


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        (["cta"], NAMES, "unknown class 'cta'. Did you mean 'cat'.*from 0 to 2"),
        ("0,cat", None, "integers joined by commas.*'cat'.*have no names"),
        ([0.5, "cat"], NAMES, "integers or names, got 0.5"),
        ([None], NAMES, "integers or names, got None"),
        (["n50"], [f"n{i}x" for i in range(50)], "Did you mean .*There are 50"),
    ],
)
def test_what_is_no_class_is_refused_with_the_near_names(given, names, message):
    with pytest.raises(ValueError, match=message):
        labels.numbered(given, names)


def test_sources_say_the_names_of_their_classes(tmp_path):
    path = folder(tmp_path / "images")
    shape = (4, 4, 3)
    for options in ({}, {"flip": True}, {"augment": data.Augmentation(0.1)}):
        source = data.image_folder(path, sample_shape=shape, **options)
        assert source.class_names == NAMES
    plain = data.image_folder(path, sample_shape=shape)
    data.write_records(plain, tmp_path / "records")
    assert data.records(tmp_path / "records").class_names == NAMES
    assert data.records(tmp_path / "records", num_classes=4).class_names is None
    x0, cond = np.zeros((3, 4, 4, 3), np.float32), np.arange(3)
    named = data.arrays(x0, cond, class_names=NAMES)
    assert named == data.arrays(x0, cond)
    assert named.class_names == NAMES
    np.savez(tmp_path / "a.npz", x0=x0, cond=cond, class_names=np.array(NAMES))
    assert data.npz(tmp_path / "a.npz", sample_shape=shape).class_names == NAMES
    assert data.digits().class_names is None
    for wrong in (NAMES[:2], ("cat", "cat", "dog")):
        with pytest.raises(ValueError, match="3 different names"):
            data.arrays(x0, cond, class_names=wrong)


def test_a_run_records_the_names_and_is_asked_by_them(tmp_path, capsys):
    path = folder(tmp_path / "images")
    card = cards.card(
        "flow_matching",
        source={
            "name": "image_folder",
            "path": str(path),
            "sample_shape": (4, 4, 3),
            "num_classes": 3,
        },
        networks={"backbone": {"name": "mlp", **TINY}},
        cycles=2,
        batch_size=4,
        sample_every=2,
    )
    run = tmp_path / "run"
    fitted = distilljax.fit_card(card, folder=run, progress=False)
    assert json.loads((run / "config.json").read_text())["class_names"] == list(NAMES)
    wanted = distilljax.sample(fitted, labels=["dog", 0])
    np.testing.assert_array_equal(distilljax.sample(run, labels=[2, "bird"]), wanted)
    # A run of an older version, which had no names, goes on.
    record = json.loads((run / "config.json").read_text())
    del record["class_names"], record["checksum"]
    (run / "config.json").write_text(json.dumps(record))
    again = distilljax.fit_card(card, folder=run, progress=False)
    assert again.class_names == NAMES
    assert cli.main(["sample", f"--run={run}", "--labels=dog,cat,0"]) == 0
    with np.load(run / "samples" / "steps1_seed0.npz") as found:
        np.testing.assert_array_equal(found["label"], [2, 1, 0])
    assert cli.main(["sample", f"--run={run}", "--labels=dgo"]) == 2
    assert "unknown class 'dgo'. Did you mean 'dog'" in capsys.readouterr().err


def test_a_student_without_data_has_the_names_of_its_teacher():
    net = networks.mlp((2,), num_classes=3, **TINY)
    x0 = np.zeros((6, 2), np.float32)
    config = {"cycles": 1, "batch_size": 4}
    source = data.arrays(x0, np.arange(6) % 3, class_names=NAMES)
    teacher = distilljax.fit(
        "flow_matching", networks=net, source=source, config=config, progress=False
    )
    student = distilljax.fit(
        distilljax.methods.sid(),
        networks=net,
        source=data.labels(3, (2,)),
        teacher=teacher,
        config=config,
        progress=False,
    )
    assert student.class_names == NAMES
    assert isinstance(student, api.Fitted)


def test_labels_that_a_student_would_not_read_are_refused():
    source = data.arrays(np.zeros((4, 2), np.float32))
    net = networks.mlp((2,), **TINY)
    config = {"cycles": 1, "batch_size": 4}
    student = distilljax.fit(
        "flow_matching", networks=net, source=source, config=config, progress=False
    )
    for given in ([0, 1], "0,1"):
        with pytest.raises(ValueError, match="trained without classes"):
            distilljax.sample(student, labels=given)
    for name in ("steps", "seed", "batch_size", "count"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            distilljax.sample(student, **{"count": 2, name: 1.5})
