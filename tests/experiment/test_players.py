"""What a card leaves out of its networks is filled in as the recipes do."""

import pytest

from distilljax import cards, methods, players, recipes
from distilljax.training.roles import join

TINY = {"name": "mlp", "width": 8, "hidden": 8, "blocks": 1, "embedding": 8}
IMAGES = {"name": "unet", "channels": 8, "multipliers": (1, 1), "blocks": 1}
# gdmd's reward is the user's; restoration wants two kinds of pictures.
NAMES = sorted(set(methods.CATALOGUE) - {"gdmd", "tsd_sr"})


def alone(method, backbone=TINY, options=None, source="digits", **changes):
    """A card that says its backbone and no other network."""
    networks = {"backbone": {**backbone, **changes}}
    return cards.card(method, options, source={"name": source}, networks=networks)


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_alone_makes_every_methods_networks(name):
    found = cards.expand(alone(name))
    joined = join(found.method.roles, found.networks)
    assert set(joined) == set(found.method.roles)
    # As the recipe of the digits has them, and read back from the run's record.
    recipe = recipes.digits_card(name, network=TINY)
    assert set(cards.expand(recipe).networks) == set(found.networks)
    assert set(cards.expand(found.config).networks) == set(found.networks)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dmd2", {"told_start": True}),
        ("tdm", {"told_end": True}),
        ("lcm", {"guidance": "Among((2.0, 3.0))", "embed": True}),
    ],
)
def test_roles_that_are_told_more_have_networks_that_take_it(name, options):
    found = cards.expand(alone(name, options=options))
    join(found.method.roles, found.networks)


def test_an_override_of_the_backbone_reaches_what_was_filled_in():
    card = alone("mean_flow")
    card.networks.backbone.width = 16
    found = cards.expand(card)
    assert found.networks["student"] is not found.networks["backbone"]
    built = players.sections(found.method.roles, card.networks.to_dict())
    assert built["student"]["width"] == 16
    assert built["student"]["second_time"]
    card.networks.backbone.second_time = True
    assert set(cards.expand(card).networks) == {"backbone"}


def test_image_networks_have_the_releases_heads():
    for name, kind in (("dmd2", "bottleneck"), ("ladd", "patches")):
        assert alone(name, IMAGES).networks.discriminator.kind == kind
        assert alone(name).networks.discriminator.kind == "pooled"
    told = alone("dmd2", IMAGES, {"told_start": True})
    assert told.networks.discriminator.kind == "pooled"
    cards.expand(told)


def test_what_a_card_says_stays_and_a_reward_is_asked_for():
    roles = methods.build("dmd2").roles
    given = {"backbone": TINY, "discriminator": {"name": "head", "width": 3}}
    assert players.sections(roles, given) == given
    assert players.sections(roles, {"fake_score": TINY}) == {"fake_score": TINY}
    found = cards.expand(alone("gdmd"))
    with pytest.raises(ValueError, match="role 'reward'.*unknown network 'reward'"):
        join(found.method.roles, found.networks)


def test_a_target_has_the_network_of_its_student():
    roles = methods.build("ctm").roles
    given = {"backbone": TINY, "student": {**TINY, "second_time": True, "width": 16}}
    assert players.sections(roles, given)["target"]["width"] == 16
