import json

import pytest
from etils import epath

from distilljax import __version__
from distilljax.training.claim import check_fresh, claim, differing
from distilljax.training.config import TrainConfig
from distilljax.training.versions import read_record

CONFIG = TrainConfig.of({"student": {"lr": 0.5}, "max_skipped": 3})
CARD = {"method": "m", "card": {"width": 8}}


@pytest.fixture
def run(tmp_path):
    """A folder with the config of a run and the record of its checkpoint."""
    folder = epath.Path(tmp_path)
    record = claim(folder, CONFIG, CARD)
    for step in (2, 10):
        meta = folder / "checkpoints" / str(step) / "meta" / "metadata"
        meta.parent.mkdir(parents=True)
        meta.write_text(json.dumps({"run": record}))
    return folder


def edited(folder, change):
    path = folder / "config.json"
    # Older versions wrote no checksum, and whoever edits takes it out.
    record = read_record(path)
    change(record)
    path.write_text(json.dumps(record))
    return path.read_text()


def older(record):
    record["version"] = "0.0.1"
    del record["train"]["fuse"], record["train"]["checkpoint"]["best_mode"]
    for section in (record["train"]["default"], record["train"]["roles"]["student"]):
        del section["rules"], section["schedule"]["restart"]


def test_keys_that_an_older_version_lacked_take_their_defaults(run):
    edited(run, older)
    record = claim(run, CONFIG, CARD)
    assert record["version"] == __version__
    assert read_record(run / "config.json") == record


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fuse": "phase"}, "train.fuse: cycle -> phase"),
        ({"student": {"lr": 0.5, "rules": []}}, "student.rules: None -> "),
        ({"student": {"lr": 0.1}}, "student.lr: 0.5 -> 0.1"),
    ],
)
def test_settings_other_than_those_of_an_older_version(run, values, words):
    before = edited(run, older)
    with pytest.raises(ValueError, match=words) as error:
        claim(run, TrainConfig.of({"max_skipped": 3, **values}), CARD)
    for text in ("distilljax 0.0.1", "lacked stands with its default", "left as it is"):
        assert text in str(error.value)
    assert (run / "config.json").read_text() == before


@pytest.mark.parametrize(("fuse", "rules"), [("cycle", None), ("phase", [])])
def test_a_card_of_an_older_version(tmp_path, fuse, rules):
    """A card repeats the settings; a default that it lacked is no difference."""

    def of(fuse, rules):
        config = TrainConfig.of({"student": {"lr": 0.5}}).to_dict()
        student = {**config["roles"]["student"], "rules": rules}
        return {**CARD, "card": {"width": 8, "fuse": fuse, "student": student}}

    folder = epath.Path(tmp_path)
    claim(folder, CONFIG, of("cycle", None))
    (folder / "metrics.jsonl").write_text("{}")

    def old(record):
        older(record)
        del record["card"]["fuse"], record["card"]["student"]["rules"]

    edited(folder, old)
    if fuse == "cycle":
        claim(folder, CONFIG, of(fuse, rules))
        return
    words = "card.fuse: cycle -> phase; card.student.rules: None -> "
    with pytest.raises(ValueError, match=words):
        claim(folder, CONFIG, of(fuse, rules))


def test_settings_of_a_newer_version(run):
    def newer(record):
        record["version"] = "9.9"
        record["train"]["warp"] = 3
        record["train"]["roles"]["student"]["schedule"]["shape"] = "round"

    before = edited(run, newer)
    words = (
        f"started by distilljax 9.9, and distilljax {__version__} does not know its "
        "settings train.warp, train.roles.student.schedule.shape; continue it with"
    )
    with pytest.raises(ValueError, match=words):
        claim(run, CONFIG, CARD)
    assert (run / "config.json").read_text() == before


def test_another_value_under_the_same_version_says_nothing_of_versions(run):
    with pytest.raises(ValueError, match="card.width: 8 -> 9") as error:
        claim(run, CONFIG, {"method": "m", "card": {"width": 9}})
    assert "distilljax 0" not in str(error.value)


@pytest.mark.parametrize("old", ['"train"', '"max_skipped": 3', '"checksum": "'])
def test_one_changed_character_is_damage(run, old):
    """The text is JSON still, and would be a run of other settings."""
    path = run / "config.json"
    whole = path.read_text()
    new = {'"': old[:-2] + 'x"', "3": old[:-1] + "4"}[old[-1]]
    new = f"{old}0" if "checksum" in old else new
    path.write_text(whole.replace(old, new, 1))
    with pytest.raises(ValueError, match="does not match its checksum; if it was edit"):
        read_record(path)
    with pytest.warns(UserWarning, match="record in the newest checkpoint stands"):
        claim(run, CONFIG, CARD)
    assert path.read_text() == whole


@pytest.mark.parametrize("how", ["cut", "empty", "list", "missing"])
def test_a_damaged_record_is_taken_from_the_newest_checkpoint(run, how, recwarn):
    path = run / "config.json"
    whole = path.read_text()
    contents = {"cut": whole[:40], "empty": "", "list": "[]"}
    path.unlink() if how == "missing" else path.write_text(contents[how])
    other = TrainConfig.of({"seed": 5, "student": {"lr": 0.5}})
    with pytest.raises(ValueError, match="train.seed: 0 -> 5"):
        claim(run, other, CARD)
    claim(run, CONFIG, CARD)
    assert path.read_text() == whole
    told = {str(w.message) for w in recwarn if "newest checkpoint" in str(w.message)}
    assert len(told) == (how != "missing")


def test_a_damaged_record_without_a_checkpoint_that_knows(run):
    for step, text in ((2, "{}"), (10, '{"run": ')):
        (run / "checkpoints" / str(step) / "meta" / "metadata").write_text(text)
    (run / "config.json").write_text('{"train"')
    with pytest.raises(ValueError, match=r"config.json' is damaged .*Restore.*remove"):
        claim(run, CONFIG, CARD)
    assert (run / "config.json").read_text() == '{"train"'


def test_where_teacher_and_data_lie_is_no_part_of_a_run(tmp_path):
    """Their fingerprints are; without one of the data, its path stands for it."""

    def of(teacher, path, data, **card):
        source = {"name": "npz", "path": path}
        return {"data": data, "card": {"teacher": teacher, "source": source, **card}}

    folder = epath.Path(tmp_path)
    claim(folder, CONFIG, of("teach", "a.npz", "f"))
    (folder / "metrics.jsonl").write_text("{}")
    record = claim(folder, CONFIG, of("/there/teach", "../a.npz", "f"))
    assert record["card"]["teacher"] == "/there/teach"
    with pytest.raises(ValueError, match="data: f -> g"):
        claim(folder, CONFIG, of("teach", "a.npz", "g"))
    with pytest.raises(ValueError, match="card.width: "):
        claim(folder, CONFIG, of("teach", "a.npz", "f", width=3))
    claim(folder, CONFIG, of("teach", "a.npz", None) | {"data": "f"})
    (folder / "metrics.jsonl").unlink()
    claim(folder, CONFIG, of("teach", "a.npz", None))
    (folder / "metrics.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="card.source.path: a.npz -> b.npz"):
        claim(folder, CONFIG, of("teach", "b.npz", None))


def test_differing():
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}
    assert differing(old, new) == ["a.c: 2 -> 3", "d: (none) -> 4"]


@pytest.mark.parametrize("how", ["removed", "emptied", "ended"])
def test_a_run_without_its_checkpoints_does_not_begin_again(tmp_path, how):
    config = TrainConfig.of({"cycles": 30, "checkpoint": {"every": 5}})
    folder = epath.Path(tmp_path)
    claim(folder, config, CARD)
    (folder / "mine.txt").write_text("kept")

    def left(last, saves):
        text = "".join(f'{{"step": {step}}}\n' for step in range(1, last + 1))
        (folder / "metrics.jsonl").write_text(text)
        if saves:
            (folder / "checkpoints").mkdir(exist_ok=True)

    # Killed before the first checkpoint, or while it was saved.
    left(4, saves=False)
    claim(folder, config, CARD)
    left(7, saves=True)
    claim(folder, config, CARD)
    if how == "removed":
        (folder / "checkpoints").rmdir()
    elif how == "emptied":
        left(11, saves=True)
    else:
        (folder / "params").mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint to continue .*--fresh"):
        claim(folder, config, CARD)
    # When checkpoints are due may change from call to call.
    rarely = TrainConfig.of({"cycles": 30, "checkpoint": {"every": 0}})
    with pytest.raises(ValueError, match="no checkpoint to continue"):
        claim(folder, rarely, CARD)
    other = TrainConfig.of({"cycles": 30, "seed": 3})
    claim(folder, other, CARD, fresh=True)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "mine.txt"]


def test_fresh_leaves_alone_what_is_no_run(tmp_path):
    folder = epath.Path(tmp_path)
    check_fresh(folder / "none")
    check_fresh(folder)
    (folder / "thesis.txt").write_text("words")
    with pytest.raises(ValueError, match="holds no run"):
        check_fresh(folder)
