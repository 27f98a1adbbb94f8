"""A run on augmented images: the network is told, generation tells it nothing."""

import jax
import numpy as np

from distilljax import api, data, methods
from distilljax.networks import unet


def test_a_network_learns_from_augmented_images_and_samples_from_labels(tmp_path):
    rng = np.random.default_rng(0)
    x0 = rng.uniform(-1.0, 1.0, (24, 4, 4, 1)).astype(np.float32)
    plain = data.arrays(x0, np.arange(24) % 3, num_classes=3)
    source = data.augmented(plain, data.Augmentation(0.5))
    network = unet(
        (4, 4, 1),
        channels=4,
        multipliers=(1,),
        blocks=1,
        attention_sizes=(),
        num_classes=3,
        augment_features=source.augment_features,
        dropout=0.1,
    )
    fitted = api.fit(
        methods.build("flow_matching", label_dropout=0.5),
        networks={"backbone": network},
        source=source,
        config={"cycles": 6, "batch_size": 8, "student": {"lr": 0.1, "ema": 0.5}},
        folder=tmp_path,
        progress=False,
    )
    assert fitted.params["conditions"]["augment"]["kernel"].any()
    assert not fitted.conditional
    x = api.sample(fitted, labels=np.asarray([0, 1, 2]))
    assert x.shape == (3, 4, 4, 1)
    assert np.isfinite(jax.device_get(x)).all()
