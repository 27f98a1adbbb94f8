"""The front door of editing: tasks with an untrained student, and refused input."""

import dataclasses

import jax
import numpy as np
import pytest

import distilljax
from distilljax import editing, image_edits
from distilljax.experiment.api import Fitted
from distilljax.methods import mean_flow, scm
from tests import toy

SHAPE = (4, 4, 3)
LABELS = np.arange(5) % 3
CALLS = []


def fitted(method, **options):
    network = toy.mlp(SHAPE, hidden=8, num_classes=3, **options)
    return Fitted(method, network, network.init(jax.random.key(0)), SHAPE, 3)


STUDENT = fitted(scm(learned_weight=False))


def images(seed=0, shape=SHAPE):
    x = np.random.default_rng(seed).uniform(-1, 1, (5, *shape))
    return x.astype(np.float32)


def edit(task, x, student=STUDENT, **options):
    given = {"labels": LABELS, "steps": 1, "progress": False, **options}
    return distilljax.edit(student, task, x, **given)


def test_what_was_observed_is_kept_and_written(tmp_path):
    x, hole, path = images(), np.eye(4, dtype=bool), tmp_path / "x.npz"
    filled = edit("inpaint", x, mask=hole, out=path)
    np.testing.assert_array_equal(filled[:, ~hole], x[:, ~hole])
    assert np.abs(filled - x)[:, hole].min(axis=-1).max() > 1e-3
    with np.load(path) as found:
        np.testing.assert_array_equal(found["x"], filled)
        np.testing.assert_array_equal(found["label"], LABELS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npz", "x.png"]
    grey = np.asarray(editing.grey(x))
    found = edit("colourise", grey)
    np.testing.assert_allclose(editing.grey(found), grey, atol=1e-6)


def test_a_student_of_two_times_keeps_the_means():
    small = np.asarray(editing.shrink(images(), 2))
    found = edit("super_resolve", small, fitted(mean_flow(), second_time=True), steps=2)
    np.testing.assert_allclose(editing.shrink(found, 2), small, atol=1e-6)


def test_a_mask_of_each_image_has_its_own_hole():
    x, masks = images(), np.zeros((5, 4, 4))
    masks[2:] = 1
    found = edit("inpaint", x, mask=masks)
    np.testing.assert_array_equal(found[:2], x[:2])
    assert np.abs(found[2:] - x[2:]).min(axis=(1, 2, 3)).max() > 0.0
    batches = edit("inpaint", x, mask=masks, batch_size=2)
    np.testing.assert_allclose(batches, found, atol=1e-6)


def test_little_noise_and_little_strength_leave_the_image():
    x = images()
    for task, option in (("denoise", "noise"), ("stroke", "strength")):
        near = np.abs(edit(task, x, **{option: 1e-4}) - x).max()
        far = np.abs(edit(task, x, **{option: 0.7}) - x).max()
        assert near < 2e-3 < far


def test_a_step_is_one_evaluation():
    def counted(*args, **kwargs):
        jax.debug.callback(lambda: CALLS.append(1))
        return network.apply(*args, **kwargs)

    network = STUDENT.network
    student = dataclasses.replace(
        STUDENT, network=dataclasses.replace(network, apply=counted)
    )
    edit("super_resolve", np.zeros((5, 2, 2, 3)), student, steps=3)
    jax.effects_barrier()
    assert len(CALLS) == 3


X = images()


@pytest.mark.parametrize(
    ("task", "x", "options", "message"),
    [
        ("inpant", X, {}, "unknown task 'inpant'. Did you mean 'inpaint'"),
        ("inpaint", X, {}, "task 'inpaint' needs mask="),
        ("denoise", X, {}, "task 'denoise' needs noise="),
        ("stroke", X, {}, "task 'stroke' needs strength="),
        ("colourise", X[..., :1], {"noise": 0.1}, "noise belongs to task 'denoise'"),
        ("colourise", X, {}, r"must be \[N, 4, 4, 1\] for task 'colourise'.*4, 4, 3"),
        ("denoise", X[:, :2], {"noise": 0.1}, r"must be \[N, 4, 4, 3\]"),
        ("denoise", X[:0], {"noise": 0.1}, r"must be \[N, 4, 4, 3\]"),
        ("super_resolve", X, {}, "smaller than .4, 4. by one whole factor"),
        ("super_resolve", X[:, :2, :1], {}, "by one whole factor, got .2, 1."),
        ("super_resolve", X[..., :2], {}, r"must be \[N, any, any, 3\]"),
        ("stroke", 9 * X, {"strength": 0.5}, r"lie in \[-1.0, 1.0\].*rescale"),
        ("stroke", np.nan * X, {"strength": 0.5}, "must be finite"),
        ("stroke", np.uint8(X > 0), {"strength": 0.5}, "floating, got uint8.*127.5"),
        ("stroke", X, {"strength": 0.0}, r"strength must lie in \(0, 1\], got 0.0"),
        ("denoise", X, {"noise": -1.0}, r"noise must lie in \(0, .*got -1.0"),
        ("inpaint", X, {"mask": np.ones((4, 3))}, r"\[4, 4\] or \[5, 4, 4\].*\(4, 3\)"),
        ("stroke", X, {"strength": 0.5, "labels": None}, "labels must be given"),
        ("stroke", X, {"strength": 0.5, "labels": [0]}, "count 5 and 1 labels"),
        ("stroke", X, {"strength": 0.5, "labels": [3] * 5}, "labels must lie in 0"),
        ("stroke", X, {"strength": 0.5, "steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(task, x, options, message):
    with pytest.raises(ValueError, match=message):
        edit(task, x, **options)


def test_students_of_other_shapes_are_refused():
    points = dataclasses.replace(STUDENT, sample_shape=(2,))
    grey = dataclasses.replace(STUDENT, sample_shape=(4, 4, 1))
    with pytest.raises(ValueError, match=r"edits are of images .* makes \(2,\)"):
        edit("stroke", np.zeros((5, 2)), points, strength=0.5)
    with pytest.raises(ValueError, match=r"colours need 3 channels.*\(4, 4, 1\)"):
        edit("colourise", X[..., :1], grey)


def test_files_of_images_and_masks(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, label=LABELS, other=1)
    assert set(image_edits.read_images(tmp_path / "a.npz")) == {"x", "label"}
    np.savez(tmp_path / "m.npz", mask=np.ones((4, 4)))
    np.save(tmp_path / "m.npy", np.eye(4))
    assert image_edits.read_mask(tmp_path / "m.npz").sum() == 16
    assert image_edits.read_mask(tmp_path / "m.npy").sum() == 4
    for call, message in (
        (lambda: image_edits.read_images(tmp_path / "b.npz"), "no images at .*b.npz"),
        (lambda: image_edits.read_images(tmp_path / "m.npz"), "must hold 'x'.*mask"),
        (lambda: image_edits.read_mask(tmp_path / "b.npy"), "no mask at .*b.npy"),
        (lambda: image_edits.read_mask(tmp_path / "a.npz"), "must hold 'mask'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
