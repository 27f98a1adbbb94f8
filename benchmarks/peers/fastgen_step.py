"""The step of FastGen, as a process that answers a line with the seconds of a block.

It runs under the peer's own Python, which needs what FastGen needs and nothing of ours:

    python fastgen_step.py PATH '{"method": "scm", ...}'

where PATH is a checkout of NVlabs/FastGen. It writes one JSON line about itself, and
then reads numbers of cycles from its input and answers each with seconds.
"""

import json
import sys
import time


def build(method, sizes):
    """The peer's model on its own DiT, in float32 on the CPU."""
    import torch
    from fastgen.networks.DiT.network import DiT
    from fastgen.utils import LazyCall

    torch.manual_seed(0)
    if method == "scm":
        from fastgen.configs.methods.config_scm import ModelConfig
        from fastgen.methods import SCMModel as Model
    elif method == "dmd2":
        from fastgen.configs.methods.config_dmd2 import ModelConfig
        from fastgen.methods import DMD2Model as Model
    else:
        from fastgen.configs.methods.config_mean_flow import ModelConfig
        from fastgen.methods import MeanFlowModel as Model
    config = ModelConfig()
    config.net = LazyCall(DiT)(
        input_size=sizes["side"],
        patch_size=sizes["patch"],
        in_channels=sizes["channels"],
        hidden_size=sizes["width"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        num_classes=sizes["classes"],
        r_timestep=method == "mean_flow",
        scale_t=False,
    )
    config.device, config.precision = "cpu", "float32"
    # No autoencoder is fetched.
    config.enable_preprocessors = False
    config.input_shape = [sizes["channels"], sizes["side"], sizes["side"]]
    config.pretrained_model_path, config.use_ema = "", False
    config.net_optimizer.optim_type = "adamw"
    config.sample_t_cfg.min_t, config.sample_t_cfg.max_t = 0.001, 0.999
    # Of the laws that the linear path has there; a law costs nothing.
    config.sample_t_cfg.time_dist_type = "logitnormal"
    if method == "scm":
        config.loss_config.use_cd = True
    elif method == "dmd2":
        config.gan_loss_weight_gen = 0.0
        config.sample_t_cfg.time_dist_type = "uniform"
        config.student_update_freq = sizes["critic_steps"] + 1
    model = Model(config)
    model.on_train_begin()
    model.init_optimizers()
    return model


def main(path, settings):
    sys.path.insert(0, path)
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    method, sizes = settings["method"], settings["sizes"]
    torch.set_num_threads(settings["threads"])
    model = build(method, sizes)
    batch, side = sizes["batch"], sizes["side"]
    labels = torch.randint(0, sizes["classes"], (batch,))
    data = {
        "real": torch.randn(batch, sizes["channels"], side, side),
        "condition": torch.nn.functional.one_hot(labels, sizes["classes"]).float(),
        "neg_condition": torch.zeros(batch, sizes["classes"]),
    }
    updates = sizes["critic_steps"] + 1 if method == "dmd2" else 1
    done = 0

    def cycle():
        nonlocal done
        for _ in range(updates):
            model.optimizers_zero_grad(done)
            losses, _ = model.single_train_step(data, done)
            losses["total_loss"].backward()
            model.optimizers_schedulers_step(done)
            done += 1
        return float(losses["total_loss"].detach())

    with FlopCounterMode(display=False) as counter:
        loss = cycle()
    told = {
        "flops": counter.get_total_flops(),
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "loss": loss,
        "torch": torch.__version__,
    }
    print(json.dumps(told), file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            cycle()
        print(time.perf_counter() - began, file=answers, flush=True)


if __name__ == "__main__":
    # What the peer prints of itself goes to the terminal.
    answers, sys.stdout = sys.stdout, sys.stderr
    main(sys.argv[1], json.loads(sys.argv[2]))
