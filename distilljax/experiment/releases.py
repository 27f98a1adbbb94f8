"""What the released codes train with, number by number, as records for cards.

A `Release` holds the method's options and everything that belongs to the experiment:
optimizer, rates by role, clipping, EMA, schedule, dropout, augmentation, label dropout,
batch and length of the run. `recipes.pod_card` makes a card of one. Numbers are those
that the named commit runs with, which is not always what the paper's table says.

What a record cannot hold stands in its ``differs``. Cards train the networks of this
library: architecture and initialisation are not the releases'. Weight decay here leaves
biases and gains alone, torch's AdamW does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Release:
    """One experiment of a released code.

    Attributes:
      source: repository and commit, and the files that the numbers stand in.
      method: registry id.
      options: options of its factory, laws as text.
      network: arguments of the networks, over those of the card's kind.
      data: arguments of the source, such as ``flip`` and ``augment``.
      default: settings shared by all trained roles, see `training.config.RoleConfig`;
        ``clip`` is None unless it says otherwise.
      roles: settings of single roles over them.
      batch_size: samples of one update.
      cycles: updates of the student.
      differs: what the release does and these settings do not.
    """

    source: str
    method: str
    batch_size: int
    cycles: int
    default: Mapping[str, Any]
    roles: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    differs: str = ""


_EDM = "NVlabs/edm 008a4e5: "
_FASTGEN = "NVlabs/FastGen 34f30e8: fastgen/configs/"
_SID = "mingyuanzhou/SiD 01fbb13: "
# Path and prediction of EDM's networks; its F is that of TrigFlow up to the sign.
_ON_EDM = {"path": "edm()", "prediction": "F"}

EDM_CIFAR10 = Release(
    source=_EDM + "train.py (defaults) and training/training_loop.py",
    method="denoising",
    # training/loop.py: EDMLoss, P_mean and P_std; its weight is 1 on the error of F.
    options={"law": "LogNormal(-1.2, 1.2)"},
    # --dropout; augment_dim.
    network={**_ON_EDM, "dropout": 0.13, "augment_features": 9},
    # --augment; a mirror image is one of the changes, so that --xflip is off.
    data={"augment": "Augmentation(0.12)"},
    batch_size=512,
    cycles=390_625,  # --duration 200 million images
    default={
        "optimizer": "adam",
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "schedule": {"warmup": 19_531},  # lr_rampup_kimg 10 000
        "ema_half_life": 5e5,  # --ema 0.5
        "ema_ramp": 0.05,  # ema_rampup_ratio
    },
    differs="Labels are never dropped there, so that the network has no null class to "
    "guide with; the default of the sampler there is Heun on 18 levels.",
)
EDM_IMAGENET64 = Release(
    source=_EDM + "README.md (imagenet-64x64-cond-adm) and training/training_loop.py",
    method="denoising",
    options={"law": "LogNormal(-1.2, 1.2)"},
    network=_ON_EDM,
    batch_size=4096,
    cycles=610_352,  # --duration 2500 million images
    default={
        "optimizer": "adam",
        "lr": 1e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "schedule": {"warmup": 2_441},  # lr_rampup_kimg 10 000
        "ema_half_life": 50e6,  # --ema 50
        "ema_ramp": 0.05,
    },
    differs="The release trains an ADM network with dropout 0.10 in float16; the DiT "
    "of the cards has no dropout.",
)
SIT_IMAGENET256 = Release(
    source="willisma/SiT 947f95b: train.py and transport/transport.py",
    method="flow_matching",
    # Uniform times; class_dropout_prob of models.py.
    options={"law": "Uniform()", "label_dropout": 0.1},
    batch_size=256,
    cycles=7_006_000,  # --epochs 1400
    default={
        "optimizer": "adamw",
        "lr": 1e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "ema": 0.9999,  # update_ema
        "ema_ramp": 0.0,
    },
    differs="Images are mirrored at random before they are encoded; encode both.",
)

SCD_CIFAR10 = Release(
    source=_FASTGEN
    + "experiments/EDM/config_scd_cifar10.py, methods/config_scm.py, opt.py",
    method="scm",
    options={
        "law": "LogNormal(-1.0, 1.4)",  # train_p_mean, train_p_std
        "warmup": "Ramp(10000)",  # tangent_warmup_steps
        "path": "trigflow(0.5)",  # sigma_data
    },
    network={**_ON_EDM, "augment_features": 9},
    batch_size=512,
    cycles=500_000,
    default={
        "optimizer": "radam",
        "lr": 1e-4,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "clip": None,  # grad_clip 1 000 000
    },
    roles={"student": {"ema": 0.9999, "ema_ramp": 0.0}},
    differs="The release trains without labels; sCT there has dropout 0.2, times up to "
    "sigma 800 and 350 000 iterations. It keeps EMAs of 0.99995 and 0.9996 too.",
)
SCD_IMAGENET64 = Release(
    source=_FASTGEN + "experiments/EDM/config_scd_in64.py, methods/config_scm.py",
    method="scm",
    options={
        "law": "LogNormal(-1.0, 1.6)",
        "warmup": "Ramp(10000)",
        "path": "trigflow(0.5)",
    },
    network=_ON_EDM,
    batch_size=1024,
    cycles=600_000,
    default={
        "optimizer": "adam",
        "lr": 7e-5,
        "betas": (0.9, 0.99),
        "eps": 1e-11,
        "clip": 10.0,
        "schedule": {"name": "inverse_sqrt", "steps": 35_000},
    },
    roles={"student": {"ema": 0.9999, "ema_ramp": 0.0}},
    differs="It keeps EMAs of 0.99995 and 0.9996 too.",
)
SCM_IMAGENET512 = Release(
    source="arXiv:2410.11081, table of ImageNet 512 x 512 (no code)",
    method="scm",
    options={"law": "LogNormal(-0.8, 1.6)", "warmup": "Ramp(10000)"},
    batch_size=2048,
    cycles=200_000,  # sCD
    default={
        "optimizer": "adam",
        "lr": 1e-4,  # the smallest model; 7e-5 to 1e-4 by size
        "betas": (0.9, 0.99),
        "eps": 1e-11,
        "schedule": {"name": "inverse_sqrt", "steps": 70_000},
    },
    # EDM2's power function of relative width 0.05.
    roles={"student": {"ema": 0.999999, "ema_ramp": 0.0386}},
    differs="Latents of 64 x 64 there; the student is told guidance scales up to 2.",
)

ECT_CIFAR10 = Release(
    source="locuslab/ect 4311059: run_ecm.sh, ct_train.py, "
    "training/ct_training_loop.py",
    method="ect",
    # --mean, --std, -q, -k, -b; --double 250 ticks of 12 800 images: 8 stages.
    options={
        "gap": "Shrink(200000, 8, 2.0)",
        "law": "LogNormal(-1.1, 2.0)",
        "k": 8.0,
        "b": 1.0,
        "metric": "norm",
    },
    network={**_ON_EDM, "dropout": 0.2, "augment_features": 9},
    batch_size=128,
    cycles=200_000,  # --duration 25.6 million images
    default={
        "optimizer": "radam",
        "lr": 1e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "ema": 0.9999,  # --ema_beta
        "ema_ramp": 0.0,
    },
    differs="The release trains without labels (--cond=0).",
)
ICT_CIFAR10 = Release(
    source="arXiv:2310.14189, appendix (no official code)",
    method="ict",
    options={"segments": "DoublingSegments(400000, 10, 1280)"},
    network={**_ON_EDM, "dropout": 0.3},
    batch_size=1024,
    cycles=400_000,
    default={
        "optimizer": "radam",
        "lr": 1e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "ema": 0.99993,
        "ema_ramp": 0.0,
    },
    differs="The paper's network is NCSN++ with Fourier features of scale 0.02.",
)
CD_CIFAR10 = Release(
    source="openai/consistency_models_cifar10 d086e77: configs/cifar10_ve_cd.py",
    method="cm_cd",
    # 18 points.
    options={"segments": 17, "solver": "Heun()"},
    network={**_ON_EDM, "augment_features": 9},
    batch_size=512,
    cycles=800_000,
    default={
        "optimizer": "radam",
        "lr": 4e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "schedule": {"warmup": 19_531},  # 10 million images
    },
    roles={"student": {"ema": 0.9999, "ema_ramp": 0.0}},
    differs="The metric there is LPIPS: a `metrics.FeatureMetric` of its features.",
)
CD_IMAGENET64 = Release(
    source="openai/consistency_models e32b69e: scripts/launch.sh (L_CD^N, l2)",
    method="cm_cd",
    # --start_scales 40 points, --target_ema_mode fixed --start_ema 0.95
    options={"segments": 39, "target_decay": 0.95},
    network=_ON_EDM,
    batch_size=2048,
    cycles=600_000,
    default={
        "optimizer": "radam",
        "lr": 8e-6,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
    },
    roles={"student": {"ema": 0.9999432189950708, "ema_ramp": 0.0}},
    differs="It keeps EMAs of 0.999 and 0.9999 too, and trains in float16.",
)

DMD2_CIFAR10 = Release(
    source=_FASTGEN
    + "experiments/EDM/config_dmd2_cifar10.py, methods/config_dmd2.py, opt.py",
    method="dmd2",
    # student_update_freq 5 is one update of the student in five; gan_loss_weight_gen.
    options={"steps": (1,), "critic_steps": 4, "gan_weight": 1e-3},
    network={**_ON_EDM, "augment_features": 9},
    batch_size=2048,
    cycles=20_000,  # 100 000 iterations
    default={
        "optimizer": "adamw",
        "lr": 1e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
    },
    # The callback clips the student alone.
    roles={"student": {"clip": 10.0, "ema": 0.9999, "ema_ramp": 0.0}},
    differs="The discriminator has its own optimizer there, here its own role.",
)
DMD2_IMAGENET64 = Release(
    source="tianweiy/DMD2 8d8fa55: experiments/imagenet/imagenet_gan_classifier_genloss"
    "3e-3_diffusion1000_lr2e-6_scratch.sh, main/edm/train_edm.py",
    method="dmd2",
    # --dfake_gen_update_ratio, --gen_cls_loss_weight, --cls_loss_weight
    options={
        "steps": (1,),
        "critic_steps": 5,
        "gan_weight": 3e-3,
        "gan_critic_weight": 1e-2,
    },
    network=_ON_EDM,
    batch_size=280,  # 40 on each of 7 GPUs
    cycles=40_000,  # 200 000 iterations, one in five for the student
    default={
        "optimizer": "adamw",
        "lr": 2e-6,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "clip": 10.0,  # --max_grad_norm
        "schedule": {"warmup": 71},  # --warmup_step 500, counted by 7 processes
    },
    differs="No EMA there. The fake score and its classifier are one network and share "
    "a clipped norm. A second run goes on from one without GAN at 5e-7.",
)
F_DISTILL_IMAGENET64 = Release(
    source=_FASTGEN
    + "experiments/EDM/config_f_distill_in64.py, methods/config_f_distill.py",
    method="f_distill",
    options={
        "divergence": "js",
        "bins": 10,
        "decay": 0.5,
        "critic_steps": 4,
        "gan_weight": 3e-3,
        "features": "teacher",
    },
    network=_ON_EDM,
    batch_size=512,
    cycles=120_000,  # 600 000 iterations, one in five for the student
    default={
        "optimizer": "adamw",
        "lr": 2e-6,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
    },
    roles={"student": {"clip": 10.0, "ema": 0.9999, "ema_ramp": 0.0}},
)
SID_CIFAR10 = Release(
    source=_SID + "run_sid.sh (cifar10-cond), sid_train.py, training/sid_training_loop",
    method="sid",
    options={"alpha": 1.2},
    network={**_ON_EDM, "dropout": 0.13, "augment_features": 9},
    batch_size=256,
    cycles=3_125_000,  # --duration 800 million images
    default={
        "optimizer": "adam",
        "lr": 1e-5,  # --lr, --glr
        "betas": (0.0, 0.999),  # --g_beta1
        "eps": 1e-8,
    },
    roles={"student": {"ema_half_life": 5e5, "ema_ramp": 0.05}},
    differs="The student's loss is scaled by 100 (--lsg), which Adam undoes.",
)
SID_IMAGENET64 = Release(
    source=_SID + "run_sid.sh (imagenet64-cond), sid_train.py",
    method="sid",
    options={"alpha": 1.2},
    network=_ON_EDM,
    batch_size=8192,
    cycles=122_070,  # --duration 1000 million images
    default={
        "optimizer": "adam",
        "lr": 4e-6,
        "betas": (0.0, 0.999),
        "eps": 1e-6,  # with --fp16
    },
    roles={"student": {"ema_half_life": 2e6, "ema_ramp": 0.05}},
    differs="The release trains an ADM network with dropout 0.10 in float16; the DiT "
    "of the cards has no dropout.",
)
RCM_WAN = Release(
    source="NVlabs/rcm 5b41aa9: rcm/configs/experiments/rcm/wan2pt1_t2v.py (1.3B), "
    "rcm/configs/defaults/{ema,optimizer,scheduler}.py",
    method="rcm",
    # student_update_freq 5 is one update of the student in five; tangent_warmup.
    options={"warmup": 1000, "critic_steps": 4},
    batch_size=256,
    cycles=20_800,  # max_iter 100 000: 1000 of the student alone, then one in five
    default={
        "optimizer": "adamw",
        "lr": 2e-6,
        "betas": (0.0, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "schedule": {"warmup": 100},  # warm_up_steps
        "clip": None,  # grad_clip False
    },
    roles={
        # EDM2's power function of relative width 0.1.
        "student": {"ema": 0.999999, "ema_ramp": 0.0873},
        "fake_score": {"lr": 4e-7},
    },
    differs="The release distils video models of 1.3 and 14 billion parameters; its "
    "batch is one sample a GPU. No rCM of images was released.",
)

MEAN_FLOW_CIFAR10 = Release(
    source="Gsunshine/py-meanflow 1f6d72d: meanflow/scripts/cifar10_v1.sh, "
    "meanflow/train_arg_parser.py, meanflow/training/train_loop.py",
    method="mean_flow",
    # --norm_p, --norm_eps, --ratio
    options={
        "teacher": False,
        "init": "random",
        # --P_mean_t, --P_std_t, --P_mean_r, --P_std_r; a quarter has s = t.
        "law": "Pair(LogitNormal(-0.6, 1.6), 0.25, end=LogitNormal(-4.0, 1.6))",
        "p": 0.75,
        "eps": 1e-3,
    },
    network={"dropout": 0.2, "augment_features": 6},
    # RandomHorizontalFlip, and the augmentation without vertical flips and rotations.
    data={
        "flip": True,
        "augment": "Augmentation(0.12, ('mirror', 'scale', 'stretch', 'shift'))",
    },
    batch_size=1024,  # 128 on each of 8 GPUs
    cycles=768_000,  # --epochs 16 000 of 48 batches
    default={
        "optimizer": "adam",
        "lr": 6e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "schedule": {"warmup": 9_600},  # --warmup_epochs 200
        "ema": 0.9999,  # --ema_decay
        "ema_ramp": 0.0,
    },
    differs="The release trains without labels. It updates the EMA every 16 steps, by "
    "the decay to the 16th, and keeps those of 0.99995 and 0.9996 too.",
)
MEAN_FLOW_IMAGENET256 = Release(
    source="Gsunshine/meanflow d70cb55: configs/default.py, configs/run_b4.yml, "
    "train.py, utils/ema_util.py",
    method="mean_flow",
    options={
        "teacher": False,
        "init": "random",
        # P_mean, P_std, data_proportion; the same rows of every batch.
        "law": "Pair(LogitNormal(-0.4, 1.0), 0.75, fixed=True)",
        "omega": 1.0,
        "kappa": 0.5,
        "p": 1.0,  # norm_p
        "eps": 0.01,  # norm_eps
        "label_dropout": 0.1,  # class_dropout_prob
    },
    batch_size=256,
    cycles=1_201_000,  # num_epochs 240
    default={
        "optimizer": "adamw",
        "lr": 1e-4,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "ema": 0.9999,  # ema_val
        "ema_ramp": 0.0,
    },
    differs="Patches of 4 there (DiT-B/4), of 2 in the cards here.",
)

RELEASES = {
    name.lower(): value
    for name, value in list(vars().items())
    if isinstance(value, Release)
}
