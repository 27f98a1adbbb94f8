"""Experiment cards: every file of configs/ expands, and says what it costs."""

import ast
import copy
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax import ahead, api, cards, cli, methods, recipes, releases, specs
from distilljax.core.binding import Bound
from distilljax.data import degraded_digits
from distilljax.diffusion.times import EvenGrid, LogNormal, Ramp
from distilljax.experiment.judge import RestorationJudge
from distilljax.training.config import TrainConfig
from tests.networks.filled import filled

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def small(method="scm", options=None, **changes):
    """A card whose networks and data are tiny."""
    values = {
        "source": {"name": "mixture", "size": 64},
        "networks": {"backbone": {"name": "mlp", "width": 8, "hidden": 8, "blocks": 1}},
        "cycles": 3,
        "batch_size": 8,
        **changes,
    }
    plain = {"learned_weight": False} if method == "scm" else {}
    return cards.card(method, plain if options is None else options, **values)


def expanded(config):
    """A card's objects; files of data are not there."""
    in_file = not {"path", "dataset"}.isdisjoint(config["source"])
    return cards.expand(config, source=cards.outline(config) if in_file else None)


def test_there_are_cards():
    assert len(FILES) >= 5


@functools.cache
def read(path):
    """``(card, objects)`` of a file; the tests only look at them."""
    config = cards.load(path)
    return config, expanded(config)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_card_expands(path):
    config, found = read(path)
    assert found.method.name == config.method.name
    assert set(found.train.roles) == set(found.method.trained)
    for role in found.method.roles.values():
        assert role.network in found.networks
    # Plain values: the record of a run holds them as JSON and reads them back.
    again = expanded(found.config)
    assert again.train == found.train
    assert again.source == found.source


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_card_says_command_hardware_cost_and_result(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text is not None
    command = re.search(r"distilljax train --config=(\S+)(.*)", text)
    assert command is not None
    assert ROOT / command.group(1) == path
    for word in ("Hardware: ", "Cost: ", "Expected: ", "Reproduces: "):
        assert word in text, word
    assert ("--teacher=" in command.group(2)) == read(path)[1].method.taught


RELEASES = [(n, r) for n, r in releases.RELEASES.items() if "imagenet256" not in n]


@pytest.mark.parametrize(("name", "release"), RELEASES, ids=[n for n, _ in RELEASES])
def test_every_release_makes_a_card(name, release):
    kind = "imagenet64" if "imagenet64" in name else "cifar"
    kind = "latent" if "imagenet512" in name else kind
    two = "second_time" in methods.build(release.method).roles["student"].needs
    config = recipes.pod_card(kind, release, second_time=two)
    assert release.source
    assert config.cycles == release.cycles
    assert 0 <= config.batch_size - release.batch_size < 16 * config.student.accumulate
    for key, value in release.network.items():
        assert config.networks.backbone[key] == value
    for role, settings in release.roles.items():
        assert role in config
        for key, value in settings.items():
            assert config[role][key] == value
    method = methods.build(release.method, **specs.resolve(dict(release.options)))
    for role in method.trained:
        for key in release.default.keys() - release.roles.get(role, {}).keys():
            if key == "schedule":
                continue
            wanted = release.default[key]
            assert config[role][key] == wanted or list(config[role][key]) == [*wanted]


def test_the_teacher_on_cifar_is_trained_as_edms():
    config = cards.load(ROOT / "configs" / "cifar" / "teacher.py")
    assert config.networks.backbone.dropout == 0.13
    assert config.networks.backbone.augment_features == 9
    assert config.source.augment == "Augmentation(0.12)"
    assert config.student.clip is None
    role = TrainConfig.of({"student": config.student.to_dict()}).role("student")
    assert role.schedule.warmup * config.batch_size == pytest.approx(1e7, rel=1e-4)
    seen = config.cycles * config.batch_size
    assert seen == pytest.approx(200e6, rel=1e-5)
    half = np.log(0.5) / np.log(float(role.ema_decay(10**6, config.batch_size)))
    assert half * config.batch_size == pytest.approx(500_000, rel=1e-3)
    told = ahead.sample_of(cards.outline(config))["cond"]
    assert told["augment"].shape == (9,)
    assert told["label"].shape == ()


def test_a_card_holds_every_default_that_text_can_say():
    config = small(student={"lr": 3e-4})
    assert config.student.lr == 3e-4
    assert config.student.optimizer == "adam"
    assert config.method.warmup == repr(Ramp(10_000))
    assert config.method.law == repr(LogNormal(-1.0, 1.4))
    assert config.networks.backbone.width == 8
    assert config.networks.backbone.embedding == 128
    assert config.networks.backbone.name == "mlp"
    assert config.source.components == 8
    with pytest.raises(AttributeError, match="lrr.* does not exist"):
        config.student.lrr = 1.0


@pytest.mark.parametrize("kind", ["cifar", "latent", "imagenet64"])
def test_a_card_names_its_source_after_a_colon(kind):
    path = ROOT / "configs" / kind / "scm.py"
    config = cards.load(f"{path}:records")
    assert config.source.name == "records"
    plain = cards.load(path)
    assert plain.source.name == ("tfds" if kind == "imagenet64" else "npz")
    assert cards.outline(config) == cards.outline(plain)
    assert (
        expanded(config).networks["backbone"].num_classes == config.source.num_classes
    )
    with pytest.raises(ValueError, match="source of the .* cards 'record'.*'records'"):
        cards.load(f"{path}:record")
    with pytest.raises(ValueError, match="has one card alone: leave ':tfds' out"):
        cards.load(f"{ROOT / 'configs' / 'digits' / 'scm.py'}:tfds")


def test_networks_take_embeddings_from_the_source(tmp_path):
    np.savez(tmp_path / "prompts.npz", cond=np.ones((6, 5), np.float32))
    section = {"name": "conditions", "path": str(tmp_path / "prompts.npz")}
    tiny = {"name": "mlp", "width": 8, "hidden": 8, "blocks": 2}
    config = small(
        "dmd2",
        {"gan_weight": 0.1},
        source={**section, "sample_shape": (2,), "cond_features": 5},
        networks={"backbone": tiny, "discriminator": {"name": "head"}},
    )
    for found in (cards.expand(config), expanded(config)):
        net, head = found.networks["backbone"], found.networks["discriminator"]
        x, cond = jnp.zeros((3, 2)), jnp.ones((3, 5))
        out, taps = net.apply(net.init(jax.random.key(0)), x, 0.5, cond, taps=True)
        assert out.shape == (3, 2)
        judge = Bound("discriminator", head, head.init(jax.random.key(0)))
        assert judge.call("logits", taps, 0.5, cond).shape == (3,)


def test_a_card_of_a_composition_holds_the_options_of_each_method():
    options = {"weights": {"ladd": 0.1}, "dmd2": {"steps": (1, 2)}}
    backbone = {"name": "unet", "channels": 16}
    source = {"name": "coloured_digits"}
    config = cards.card(
        "dmd2+ladd", options, source=source, networks={"backbone": backbone}
    )
    assert config.method.dmd2.steps == (1, 2)
    assert config.method.ladd.steps == methods.ladd.__kwdefaults__["steps"]
    assert config.method.weights.to_dict() == {"dmd2": 1.0, "ladd": 0.1}
    # Each has the discriminator of its release.
    kinds = [config.networks[f"{n}discriminator"].kind for n in ("", "ladd_")]
    assert kinds == ["bottleneck", "patches"]
    assert config.ladd_discriminator.lr == config.discriminator.lr
    with config.unlocked():
        config.method.weights.dmd2 = 3.0
    found = cards.expand(config).method
    parts = methods.dmd2(steps=(1, 2)), methods.ladd()
    assert [t.weight for t in found.phases[-1].terms] == [
        3.0 * parts[0].phases[-1].terms[0].weight,
        3.0 * parts[0].phases[-1].terms[1].weight,
        0.1,
    ]
    with pytest.raises(ValueError, match="option of composition.*under its name"):
        methods.build("dmd2+ladd", steps=(1,))
    with pytest.raises(ValueError, match="'weights'.*must be a mapping, got 0.1"):
        methods.build("dmd2+ladd", weights=0.1)


def test_overrides_reach_the_objects():
    config = small()
    config.student.lr = 0.5
    config.method.warmup = "Ramp(7)"
    config.method.sampling_grid = "EvenGrid(0.9)"
    config.networks.backbone.width = 16
    config.source.components = 3
    found = cards.expand(config)
    assert found.train.role("student").lr == 0.5
    assert found.method.sampling.grid == EvenGrid(0.9)
    assert found.source.num_classes == 3
    assert found.networks["backbone"].num_classes == 3


def test_networks_take_shape_and_classes_from_the_source():
    found = cards.expand(
        small(
            "dmd2",
            {"gan_weight": 0.1},
            networks={
                "backbone": {"name": "mlp", "width": 8, "hidden": 8, "blocks": 2},
                "discriminator": {"name": "head"},
            },
        )
    )
    assert found.networks["backbone"].num_classes == 8
    assert set(found.method.trained) == {"student", "fake_score", "discriminator"}


def test_a_card_chooses_the_kind_of_its_heads():
    backbone = {"name": "mlp", "width": 8, "hidden": 8, "blocks": 2}
    head = {"name": "head", "kind": "patches", "product": True, "width": 8}
    config = small("ladd", networks={"backbone": backbone, "discriminator": head})
    found = cards.expand(config).networks["discriminator"]
    params = found.init(jax.random.key(0))
    taps = (jnp.ones((4, 8)), jnp.ones((4, 8)))
    logits = found.functions["logits"](params, taps, 0.5, jnp.zeros(4, jnp.int32))
    assert logits.shape == (4, 2)
    config.networks.discriminator.kind = "patch"
    with pytest.raises(ValueError, match="unknown kind of head 'patch'"):
        cards.expand(config)


def test_a_card_gives_a_student_that_is_told_scales_its_input():
    options = {"guidance": "Among((2.0, 3.0, 4.0))", "embed": True}
    config = recipes.digits_card("lcm", options)
    assert tuple(config.networks.student.guidance) == (0.1, 1000.0, 128)
    found = cards.expand(config)
    assert found.method.sampling.guidance == 3.0
    for role, on in (("student", True), ("target", True), ("backbone", False)):
        assert ("guidance" in found.networks[role].capabilities) == on


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("dmd2", "told_start"),
        ("f_distill", "told_start"),
        ("gdmd", "told_start"),
        ("ladd", "told_start"),
        ("sid", "told_start"),
        ("tdm", "told_end"),
    ],
)
def test_a_card_gives_critics_that_are_told_a_time_their_input(name, option):
    for on in (False, True):
        found = cards.expand(recipes.digits_card(name, {option: on}))
        told = {
            n for n, net in found.networks.items() if "second_time" in net.capabilities
        }
        critics = set(found.method.roles) & {"fake_score", "discriminator"}
        assert told == (critics if on else set())


def test_the_section_of_a_role_that_an_option_took_out_says_nothing():
    config = cards.load(ROOT / "configs" / "digits" / "dmd2.py")
    assert config.discriminator.betas[0] == 0.5
    config.method.gan_weight = 0.0
    found = cards.expand(config)
    assert set(found.method.trained) == {"student", "fake_score"}
    assert "discriminator" not in found.train.roles


CHANGES = [
    ({"method": {"name": "scmm"}}, r"unknown method 'scmm'.*Did you mean 'scm'"),
    ({"method": {"guidence": 2.0}}, "option of method 'scm' 'guidence'.*'guidance'"),
    (
        {"source": {"name": "digts"}},
        "unknown source 'digts'. Did you mean 'digits'",
    ),
    ({"source": {"sizes": 3}}, "argument of source 'mixture' 'sizes'.*'size'"),
    ({"networks": {"backbone": {"name": "mpl"}}}, "unknown network 'mpl'.*'mlp'"),
    ({"networks": {"backbone": {"widht": 3}}}, "network 'mlp' 'widht'.*'width'"),
    ({"student": {"lrr": 1.0}}, "config key in 'student' 'lrr'.*'lr'"),
    ({"cycle": 3}, "config key or role 'cycle'.*'cycles'"),
    ({"studnet": {"lr": 1.0}}, "config key or role 'studnet'.*'student'"),
    ({"fake_score": {"lr": 1.0}}, "card sets role 'fake_score'.*does not have"),
    ({"method": {"law": "LogNormall(1)"}}, "Did you mean 'LogNormal'"),
    ({"cycles": 0}, "cycles must be at least 1, got 0"),
]


def merged(plain, change):
    for key, value in change.items():
        if isinstance(value, dict) and key in plain:
            merged(plain[key], value)
        else:
            plain[key] = value
    return plain


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_what_does_not_exist_is_refused_with_near_names(change, message):
    plain = copy.deepcopy(small().to_dict())
    with pytest.raises(ValueError, match=f"(?s){message}"):
        cards.expand(merged(plain, change))


def test_a_section_of_a_role_that_an_option_took_out_may_stay():
    config = small(
        "dmd2",
        {},
        networks={
            "backbone": {"name": "mlp", "width": 8, "hidden": 8, "blocks": 1},
            "discriminator": {"name": "head"},
        },
    )
    assert "discriminator" in config
    config.method.gan_weight = 0.0
    found = cards.expand(config)
    assert "discriminator" not in found.method.roles
    assert "discriminator" not in found.train.roles


RESTORATION = {
    "source": {"name": "degraded_digits"},
    "networks": {
        "backbone": {
            "name": "mlp",
            "width": 8,
            "hidden": 8,
            "blocks": 1,
            "embedding": 8,
            "image_channels": 1,
        }
    },
}
LORA = {"roles": ("student", "fake_score"), "rank": 2}


def restoring(**changes):
    """A tiny card of one frozen base with two adapters."""
    values = {**RESTORATION, "lora": LORA, **changes}
    return small("tsd_sr", {"start": "degraded"}, **values)


def test_a_section_lora_puts_adapters_in_place_of_networks():
    config = restoring(student_lora={"lr": 0.5})
    assert config.lora.to_dict() == {
        "roles": ("student", "fake_score"),
        "base": "teacher",
        "rank": 2,
        "match": "kernel$",
        "scale": 1.0,
    }
    assert config.student_lora.lr == 0.5
    config.lora.rank = 4
    config.lora.scale = 0.5
    found = cards.expand(config)
    assert set(found.method.trained) == {"student_lora", "fake_score_lora"}
    assert found.method.roles["student"].derive.scale == 0.5
    assert found.method.roles["student"].derive.base == "teacher"
    init = jax.eval_shape(found.networks["lora"].init, jax.random.key(0))
    # The 4 x 4 image is enlarged to the 8 x 8 of the state and joined to it.
    assert init["inward.kernel"]["down"].shape == (128, 4)
    assert {pair["up"].shape[0] for pair in init.values()} == {4}
    assert cards.expand(found.config).method.roles == found.method.roles


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {**LORA, "rnak": 2}}, "argument of lora 'rnak'.*'rank'"),
        ({"lora": {"roles": ("studnet",)}}, "trained role 'studnet'.*'student'"),
        ({"lora": {"base": "techer"}}, "unknown role 'techer'.*'teacher'"),
        ({"student": {"lr": 1.0}}, "trained role 'student'.*'student_lora'"),
    ],
)
def test_a_section_lora_that_names_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        restoring(**changes)


def test_an_adapted_role_has_no_network_of_its_own():
    config = restoring()
    with config.unlocked():
        config.networks.student = config.networks.backbone.copy_and_resolve_references()
    with pytest.raises(ValueError, match="role 'student' has a network of its own"):
        cards.expand(config)


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """``(run folder, what fit returned)`` of two cycles of the tiny card."""
    folder = tmp_path_factory.mktemp("restoration")
    default = {"lr": 0.05, "ema": 0.5}
    config = restoring(student_lora=default, fake_score_lora=default)
    config.method.weights = (1.0,)
    found = cards.expand(config)
    teacher = filled(found.networks["backbone"])
    fitted = api.fit_card(found, teacher=teacher, folder=folder, progress=False)
    return folder, fitted, teacher


def test_a_run_of_adapters_is_loaded_and_restores(restored):
    folder, fitted, teacher = restored
    names = {path.stem for path in (folder / "params").glob("*.npz")}
    assert names == {"student", "student_lora", "fake_score_lora"}
    loaded = api.load(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, fitted.params)
    # The evaluation EMA of the adapter on the frozen base.
    role = fitted.method.roles["student"]
    adapter = fitted.result.params("student_lora")
    wanted = role.derive({"teacher": teacher, "student_lora": adapter}, 0)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), loaded.params, teacher
    )
    assert moved["inward"]["kernel"] > 0
    assert moved["inward"]["bias"] == 0
    rows = degraded_digits("test").take(np.arange(3))
    x = api.sample(loaded, cond=rows["cond"], start=rows["degraded"])
    again = api.sample(
        folder, cond=rows["cond"][1:], start=rows["degraded"][1:], seed=5, batch_size=1
    )
    # From a degraded image nothing is random.
    np.testing.assert_allclose(x[1:], again, atol=1e-6)
    with pytest.raises(ValueError, match="pass cond= .*field 'cond'"):
        api.sample(loaded, count=3)
    with pytest.raises(
        ValueError, match="starts from the field 'degraded'.*pass start="
    ):
        api.sample(loaded, cond=rows["cond"])
    with pytest.raises(ValueError, match="cond 3 and 2 start disagree"):
        api.sample(loaded, cond=rows["cond"], start=rows["degraded"][:2])
    with pytest.raises(ValueError, match=r"start must be \[count, 8, 8, 1\]"):
        api.sample(loaded, cond=rows["cond"], start=rows["cond"])


def test_the_command_line_restores_what_a_file_holds(restored, tmp_path, capsys):
    folder, data = restored[0], tmp_path / "photos.npz"
    assert cli.main(["sample", f"--run={folder}", "--count=2"]) == 2
    assert "--data=FILE.npz" in capsys.readouterr().err
    rows = degraded_digits("test").take(np.arange(5))
    np.savez(data, cond=rows["cond"], degraded=rows["degraded"])
    out = tmp_path / "sharp.npz"
    arguments = ["sample", f"--run={folder}", f"--data={data}", f"--out={out}"]
    assert cli.main(arguments) == 0
    with np.load(out) as found:
        assert found["x"].shape == (5, 8, 8, 1)


def test_restorations_are_judged_by_pairs():
    judge = RestorationJudge.of(degraded_digits("train"), degraded_digits("test"), (0,))
    sharp = judge.statistics([judge.data["x0"]])
    assert sharp["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert sharp["accuracy"] > 0.98
    low = judge.statistics([judge.data["degraded"]])
    error = np.mean((judge.data["degraded"] - judge.data["x0"]) ** 2, (1, 2, 3))
    assert low["psnr"] == pytest.approx(np.mean(10 * np.log10(4 / error)), rel=1e-5)
    assert low["frechet"] > 1.0
    assert low["accuracy"] < sharp["accuracy"]


@pytest.mark.parametrize("key", ["method", "source", "networks"])
def test_a_card_without_a_section_is_refused(key):
    plain = small().to_dict()
    del plain[key]
    with pytest.raises(ValueError, match=f"a card needs '{key}'"):
        cards.expand(plain)


def test_files_that_are_no_cards_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'scm.py'"):
        cards.load(ROOT / "configs" / "digits" / "scmm.py")
    with pytest.raises(ValueError, match="it is neither a file"):
        cards.load(tmp_path / "none.py")
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="defines no get_config"):
        cards.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "scm"},
            "section 'method' of a card must .* got 'scm'",
        ),
        ({"method": {}}, "section 'method' of a card"),
        ({"source": "digits"}, "section 'source' of a card"),
        ({"networks": None}, "needs networks by key"),
        ({"networks": {"backbone": "mlp"}}, "section 'networks.backbone' of a card"),
        (
            {"source": {"name": "mixture", "components": "four"}},
            "'components' of source 'mixture' must be a whole number, got 'four'",
        ),
    ],
)
def test_sections_of_a_card_written_by_hand(changes, message):
    card = {
        "method": {"name": "flow_matching"},
        "source": {"name": "mixture", "components": 4},
        "networks": {"backbone": {"name": "mlp"}},
    }
    with pytest.raises(ValueError, match=message):
        cards.expand(card | changes)


def test_cards_are_found_by_name_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(cards.shipped()) == len(FILES)
    assert cards.load("digits/scm") == cards.load(ROOT / "configs/digits/scm.py")
    assert cards.locate("cifar/scm:tfds")[1] == "tfds"
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(cards.shipped())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("digits/smc", "'digits/scm'"),
        ("configs/digits/scmm.py", "'digits/scm'"),
        ("nothing", "`distilljax configs` lists those"),
    ],
)
def test_an_unknown_card_names_the_near_ones(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="neither a file nor the name") as error:
        cards.load(name)
    assert near in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": {"name": "mixture", "std": None}},
            "'std' of source 'mixture' must",
        ),
        ({"source": {"name": "mixture", "std": float("inf")}}, "'std' .* finite"),
        ({"lora": {"scale": float("nan")}}, "lora.scale must be a finite number"),
        ({"lora": {"rank": "8"}}, "'rank' of lora must be a whole number, got '8'"),
        ({"lora": 3}, "lora must be a mapping"),
    ],
)
def test_values_that_fit_no_builder_are_refused_by_name(changes, message):
    plain = {**small().to_dict(), **changes}
    with pytest.raises(ValueError, match=message):
        cards.expand(plain)
