"""Image folders: order, labels, size, mirror images, errors."""

import numpy as np
import pytest
from PIL import Image

from distilljax import data
from distilljax.data.images import fitted


def pixels(seed, height=6, width=6, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def folder(root, classes=("cat", "ant"), each=3, **size):
    """Images in an order of writing that is not that of their names."""
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for k in reversed(range(each)):
            Image.fromarray(pixels(10 * i + k, **size)).save(root / name / f"{k}.png")
    return root


def scaled(array):
    return array.astype(np.float32) / np.float32(127.5) - np.float32(1)


def test_labels_and_order_follow_the_names(tmp_path):
    source = data.image_folder(folder(tmp_path / "a"), sample_shape=(6, 6, 3))
    assert (len(source), source.num_classes) == (6, 2)
    assert source.fields == ("x0", "cond")
    # ant comes before cat, and its files 0, 1, 2 before cat's.
    for index, seed in enumerate((10, 11, 12, 0, 1, 2)):
        sample = source[index]
        np.testing.assert_array_equal(sample["x0"], scaled(pixels(seed)))
        assert sample["cond"] == index // 3
        assert sample["cond"].dtype == np.int32
    again = data.image_folder(
        folder(tmp_path / "b", classes=("ant", "cat")), sample_shape=(6, 6, 3)
    )
    assert [again[i]["cond"] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert (
        source.fingerprint
        == data.image_folder(tmp_path / "a", sample_shape=(6, 6, 3)).fingerprint
    )


def test_files_decide_the_fingerprint(tmp_path):
    def found():
        return data.image_folder(tmp_path / "a", sample_shape=(6, 6, 3)).fingerprint

    folder(tmp_path / "a")
    first = found()
    (tmp_path / "a" / "ant" / "0.png").rename(tmp_path / "a" / "ant" / "9.png")
    renamed = found()
    Image.fromarray(pixels(1, 9, 9)).save(tmp_path / "a" / "cat" / "1.png")
    assert len({first, renamed, found()}) == 3


def test_without_class_folders_there_are_no_labels(tmp_path):
    folder(tmp_path, classes=("flat",))
    source = data.image_folder(tmp_path / "flat", sample_shape=(6, 6, 3))
    assert (len(source), source.num_classes, source.fields) == (3, None, ("x0",))
    assert source[0].keys() == {"x0"}


def test_images_cover_the_shape_and_are_cropped_at_the_centre():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    found = fitted(Image.fromarray(wide), (4, 4, 3))
    assert found.shape == (4, 4, 3)
    np.testing.assert_array_equal(found[:, 1:3], 1.0)
    tall = fitted(Image.fromarray(np.swapaxes(wide, 0, 1)), (4, 4, 3))
    np.testing.assert_array_equal(tall, np.swapaxes(found, 0, 1))
    # A smooth image keeps its mean at another size.
    ramp = np.linspace(0, 255, 32).astype(np.uint8)[:, None].repeat(32, 1)
    small = fitted(Image.fromarray(ramp), (8, 8, 1))
    np.testing.assert_allclose(small.mean(), scaled(ramp).mean(), atol=0.01)
    assert np.all(np.diff(small[:, 0, 0]) > 0)


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("P", 3), ("RGB", 1)])
def test_modes_become_the_channels_asked_for(tmp_path, mode, channels):
    image = Image.fromarray(pixels(0)).convert(mode)
    image.save(tmp_path / "a.png")
    source = data.image_folder(tmp_path, sample_shape=(6, 6, channels))
    wanted = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    np.testing.assert_array_equal(
        source[0]["x0"], scaled(wanted.reshape(6, 6, channels))
    )


def test_a_jpeg_is_read_near_the_size_that_is_wanted(tmp_path):
    ramp = np.linspace(0, 255, 256).astype(np.uint8)[:, None].repeat(256, 1)
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    found = data.image_folder(tmp_path, sample_shape=(16, 16, 1))[0]["x0"]
    whole = fitted(Image.fromarray(ramp), (16, 16, 1))
    np.testing.assert_allclose(found, whole, atol=0.02)


def test_mirror_images_follow_the_samples(tmp_path):
    source = data.image_folder(folder(tmp_path), sample_shape=(6, 6, 3), flip=True)
    plain = data.image_folder(tmp_path, sample_shape=(6, 6, 3))
    assert len(source) == 12
    assert source.fingerprint != plain.fingerprint
    for i in range(6):
        there, turned = source[i], source[i + 6]
        np.testing.assert_array_equal(there["x0"], plain[i]["x0"])
        np.testing.assert_array_equal(turned["x0"], plain[i]["x0"][:, ::-1])
        assert there["cond"] == turned["cond"] == plain[i]["cond"]


def test_mirror_images_of_arrays_are_gathered_at_once():
    x0 = scaled(np.stack([pixels(i) for i in range(5)]))
    source = data.mirrored(data.arrays(x0, np.arange(5), eps=2 * x0), ("x0", "eps"))
    assert callable(source.take)
    taken = source.take(np.array([7, 1, 2]))
    np.testing.assert_array_equal(taken["x0"][0], x0[2, :, ::-1])
    np.testing.assert_array_equal(taken["eps"][0], 2 * x0[2, :, ::-1])
    np.testing.assert_array_equal(taken["x0"][1:], x0[1:3])
    np.testing.assert_array_equal(taken["cond"], [2, 1, 2])
    for i in range(10):
        one = source.take(np.array([i]))
        for name, value in source[i].items():
            np.testing.assert_array_equal(one[name][0], value)


def test_an_epoch_shows_every_image_and_its_mirror_image_once():
    x0 = scaled(np.stack([pixels(i) for i in range(5)]))
    source = data.mirrored(data.arrays(x0, np.arange(5)))
    it = data.batches(source, batch_size=10, seed=3)
    batch = next(it)
    it.close()
    shown = {a.tobytes() for a in batch["x0"].reshape(10, -1)}
    both = {a.tobytes() for a in (*x0, *np.ascontiguousarray(x0[:, :, ::-1]))}
    assert shown == both


def test_refuses(tmp_path):
    folder(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    shape = {"sample_shape": (6, 6, 3)}
    with pytest.raises(ValueError, match="there is no such folder"):
        data.image_folder(tmp_path / "none", **shape)
    with pytest.raises(ValueError, match="one folder per class"):
        data.image_folder(tmp_path / "empty", **shape)
    with pytest.raises(ValueError, match="class folders in .*, 2, got 3"):
        data.image_folder(tmp_path / "a", num_classes=3, **shape)
    with pytest.raises(ValueError, match=r"\(H, W, C\) with C 1, 3 or 4, got \(6, 6\)"):
        data.image_folder(tmp_path / "a", sample_shape=(6, 6))
    with pytest.raises(ValueError, match=r"images \[H, W, C\] to be mirrored"):
        data.mirrored(data.arrays(np.zeros((3, 2), np.float32)))
    with pytest.raises(ValueError, match=r"fields \['y'\] are not in"):
        data.mirrored(data.image_folder(tmp_path / "a", **shape), ("x0", "y"))


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    root = folder(tmp_path / "a")
    path = root / "cat" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    source = data.image_folder(root, sample_shape=(6, 6, 3))
    it = data.batches(source, batch_size=6)
    with pytest.raises(ValueError, match=r"image_folder .*: sample 4 .*cat/1\.png"):
        next(it)
    it.close()


def decoded(folder, image, shape=(8, 8, 3), **save):
    """``x0`` of the one image of a folder."""
    folder.mkdir(exist_ok=True)
    image.save(folder / "a.png", **save)
    return data.image_folder(folder, sample_shape=shape)[0]["x0"]


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_values_are_scaled(tmp_path, channels):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    found = decoded(tmp_path, Image.fromarray(ramp), (8, 8, channels))
    wanted = np.repeat(ramp[..., None] / 32767.5 - 1.0, channels, -1)
    np.testing.assert_allclose(found, wanted, atol=1 / 127)


def test_floating_values_beyond_white_are_refused():
    grey = Image.fromarray(np.full((8, 8), 0.5, np.float32))
    np.testing.assert_allclose(fitted(grey, (8, 8, 1)), 0.0, atol=1 / 127)
    with pytest.raises(ValueError, match="8 bits"):
        fitted(Image.fromarray(np.full((8, 8), 3.0, np.float32)), (8, 8, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, orientation):
    """Orientation 6 is a phone held upright: rows of the file are columns."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[8:, :8] = 255
    image = Image.fromarray(upright)
    # What a camera stores, so that a viewer that turns it shows ``upright``.
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    if orientation in back:
        image = image.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(tmp_path, image, (16, 16, 3), exif=exif)
    assert found[12, 4].mean() > 0.9
    assert max(found[4, 4].mean(), found[4, 12].mean(), found[12, 12].mean()) < -0.9


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_nobody_sees_is_no_data(tmp_path, mode, channels):
    """Colours under full transparency: two pictures that look equal are equal."""
    found = []
    for hidden in ((0, 0, 0), (240, 240, 240)):
        image = Image.new("RGBA", (8, 8), (*hidden, 0))
        image.putpixel((4, 4), (200, 60, 30, 255))
        folder = tmp_path / str(hidden[0])
        found.append(decoded(folder, image.convert(mode), (8, 8, channels)))
    np.testing.assert_allclose(*found, atol=0.02)
    assert found[0][0, 0, :3].min() == 1.0


def test_hidden_folders_and_files_are_no_data(tmp_path):
    square = Image.new("RGB", (8, 8))
    for name in ("cat/0", "dog/0", ".ipynb_checkpoints/0", "__MACOSX/0", "cat/._0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        square.save(tmp_path / f"{name}.png")
    source = data.image_folder(tmp_path, sample_shape=(8, 8, 3))
    assert source.num_classes == 2
    assert [int(source[i]["cond"]) for i in range(len(source))] == [0, 1]


@pytest.mark.parametrize(
    ("extra", "said"),
    [("root", "beside"), ("dog/sub/0", "too deep"), ("empty/", "hold no image")],
)
def test_nothing_is_left_out_of_class_folders(tmp_path, extra, said):
    square = Image.new("RGB", (8, 8))
    for name in ("cat/0", "dog/0", extra):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            square.save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=said):
        data.image_folder(tmp_path, sample_shape=(8, 8, 3))


@pytest.mark.parametrize("inside", ["", "cat"])
def test_pictures_of_other_kinds_are_not_left_out(tmp_path, inside):
    root = folder(tmp_path / "a") if inside else tmp_path / "a"
    root.mkdir(exist_ok=True)
    picture = Image.fromarray(pixels(0))
    picture.save(root / inside / "0.png")
    picture.save(root / inside / "1.TIFF")
    with pytest.raises(ValueError, match=r"1 pictures of other kinds .*1\.TIFF"):
        data.image_folder(root, sample_shape=(6, 6, 3))


def test_a_folder_with_a_dot_in_its_name_is_a_folder(tmp_path):
    root = folder(tmp_path / "a")
    (root / "cat" / "v1.0").mkdir()
    Image.fromarray(pixels(0)).save(root / "cat" / "v1.0" / "0.png")
    with pytest.raises(ValueError, match="one level too deep"):
        data.image_folder(root, sample_shape=(6, 6, 3))


def test_a_picture_that_is_refused_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    source = data.image_folder(folder(tmp_path / "a"), sample_shape=(6, 6, 3))
    with pytest.raises(ValueError, match=r"ant/0\.png: .*exceeds limit"):
        source[0]


def test_the_clear_value_of_16_bit_grey_lies_on_white(tmp_path):
    values = np.full((6, 6), 300, np.uint16)
    values[2, 3] = 65535 // 2
    image = Image.fromarray(values)
    image.info["transparency"] = 300
    found = fitted(image, (6, 6, 1))
    assert found[0, 0, 0] == 1.0
    assert abs(found[2, 3, 0]) < 0.01
