"""Training speed against SAELens and dictionary_learning, and against this machine's limits, in one run.

    python tests/bench/peers.py [--arch standard topk …] [--shape D_IN D_SAE BATCH]… [--l0 10 60 …] [--threads 1 2]
                                [--steps 6] [--no-dictionary-learning] [--together | --profile]

Needs sae-lens (6.54), dictionary-learning and cargo. For every point it draws one problem (Gaussian batches and
initial weights, with encoder biases set so that about `--l0` latents fire per token, or k = L0), and times on it

- SAELens' own `SAETrainer._train_step`,
- `update` of dictionary_learning's trainer for the architecture, from the same weights with its own losses,
- saesweep's step, before and after the others, so that all meet the same machine.

It prints medians of seconds per step, ratios, how far the losses of saesweep and SAELens lie apart, and the ratio of
saesweep's step to its floor: one dense encoder product plus one pass over the optimiser's state, at the rates measured
here and now (with the `gemm` crate; torch's rate is printed for comparison). The first two steps are warm-up.

`--together` measures one trial on one core against two side by side with one thread each instead, `--profile` how
saesweep's step divides into its phases, beside their limits.
"""

import argparse
import contextlib
import io
import json
import logging
import pathlib
import statistics
import subprocess
import tempfile
import time
import warnings

import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
LR, L1, L0_COEFFICIENT, THRESHOLD = 5e-5, 5.0, 0.1, 0.01
WARM_UP = 2
BY_K = ("topk", "batchtopk", "matryoshka_batchtopk", "abstopk")
ARCHITECTURES = ("standard", *BY_K, "jumprelu", "gated", "matching_pursuit")
PHASES = ("pack", "encode", "pursue", "norms", "select", "decode", "gradients", "adam", "rest")
TOPK = {"aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": True}


def own_settings(arch, d_sae, l0):
    """An architecture's settings, named as SAELens names them."""
    return {
        "standard": {"l1_coefficient": L1, "lp_norm": 1.0, "l1_warm_up_steps": 0},
        "gated": {"l1_coefficient": L1, "l1_warm_up_steps": 0},
        "jumprelu": {"l0_coefficient": L0_COEFFICIENT, "l0_warm_up_steps": 0, "jumprelu_bandwidth": 0.05,
                     "jumprelu_init_threshold": THRESHOLD, "jumprelu_sparsity_loss_mode": "step",
                     "jumprelu_tanh_scale": 4.0, "jumprelu_ste_to_input": False},
        "topk": {"k": l0, **TOPK},
        "abstopk": {"k": l0, **TOPK},
        "batchtopk": {"k": l0, "topk_threshold_lr": 0.01, **TOPK},
        "matryoshka_batchtopk": {"k": l0, "topk_threshold_lr": 0.01, "use_matryoshka_aux_loss": False,
                                 "matryoshka_widths": [d_sae // 64, d_sae // 16, d_sae // 4, d_sae], **TOPK},
        "matching_pursuit": {"max_iterations": l0, "residual_threshold": 1e-2, "stop_on_duplicate_support": False},
    }[arch]


def new_sae(arch, d_in, d_sae, l0):
    import sae_lens
    name = {"standard": "Standard", "gated": "Gated", "jumprelu": "JumpReLU", "topk": "TopK", "abstopk": "AbsTopK",
            "batchtopk": "BatchTopK", "matryoshka_batchtopk": "MatryoshkaBatchTopK",
            "matching_pursuit": "MatchingPursuit"}[arch]
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(
        d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, normalize_activations="none",
        **own_settings(arch, d_sae, l0))
    torch.manual_seed(0)
    return getattr(sae_lens, f"{name}TrainingSAE")(config)


def problem(arch, d_in, d_sae, batch, l0, steps):
    """Gaussian batches of norm sqrt(d_in), and an SAE whose latents fire on `l0` of them on average."""
    sae = new_sae(arch, d_in, d_sae, l0)
    torch.manual_seed(1)
    batches = torch.randn(steps, batch, d_in)
    if arch not in (*BY_K, "matching_pursuit"):
        with torch.no_grad():
            sample = batches[0][:256]
            shift = torch.topk((sample @ sae.W_enc).flatten(), l0 * len(sample)).values[-1]
            bias = sae.b_gate if arch == "gated" else sae.b_enc
            bias.fill_(THRESHOLD - shift if arch == "jumprelu" else -shift)
    return sae, batches


def write_problem(folder, arch, sae, batches, l0):
    state = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    tensors = {"batches": batches, "w_dec": state["W_dec"], "b_dec": state["b_dec"],
               "b_enc": state.get("b_gate" if arch == "gated" else "b_enc", torch.zeros(len(state["W_dec"])))}
    if arch != "matching_pursuit":  # its encoder is the decoder
        tensors["w_enc"] = state["W_enc"].T.contiguous()
    if arch == "jumprelu":
        tensors["threshold"] = state["threshold"]
    if arch == "gated":
        tensors |= {"r_mag": state["r_mag"], "b_mag": state["b_mag"]}
    save_file(tensors, folder / "problem.safetensors")
    steps, batch, _ = batches.shape
    d_sae = tensors["w_dec"].shape[0]
    own = own_settings(arch, d_sae, l0)
    if arch == "jumprelu":
        own |= {"pre_act_loss_coefficient": 0.0, "target_l0": 0.0}
    (folder / "settings.json").write_text(json.dumps({
        "sae": {"d_sae": d_sae, "apply_b_dec_to_input": False, "normalize_activations": "none",
                "decoder_init_norm": 0.1, "architecture": arch, **own},
        "train": {"tokens": steps * batch, "batch_size": batch, "lr": LR, "lr_end": LR / 10,
                  "lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "lr_decay_steps": 0,
                  "n_restart_cycles": 1, "adam_beta1": 0.9, "adam_beta2": 0.999, "seed": 0, "data_seed": 0,
                  "dead_feature_window": 1000, "feature_sampling_window": 1000},
    }))


def run_saelens(sae, batches):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    trainer = SAETrainer(sae=sae, data_provider=iter(batches), cfg=SAETrainerConfig(
        total_training_samples=batches.shape[0] * batches.shape[1], train_batch_size_samples=batches.shape[1],
        lr=LR, lr_end=LR / 10, lr_warm_up_steps=0, lr_decay_steps=0, dead_feature_window=1000,
        feature_sampling_window=1000))
    secs, losses, inner = [], [], trainer._train_step

    def timed(**kwargs):
        started = time.perf_counter()
        out = inner(**kwargs)
        secs.append(time.perf_counter() - started)
        losses.append(out.loss.item())
        return out

    trainer._train_step = timed
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        trainer.fit()
    return secs, losses


def new_peer(arch, sae, l0, steps):
    """dictionary_learning's trainer for an architecture from an SAE's weights; None where it has none."""
    from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, matryoshka_batch_top_k, standard, top_k
    d_sae, d_in = sae.W_dec.shape
    common = {"steps": steps, "activation_dim": d_in, "dict_size": d_sae, "layer": 0, "lm_name": "none", "lr": LR,
              "warmup_steps": 0, "device": "cpu"}
    match arch:
        case "standard":
            trainer = standard.StandardTrainerAprilUpdate(**common, l1_penalty=L1, sparsity_warmup_steps=0)
            bias = trainer.ae.encoder.bias
        case "gated":
            trainer = gdm.GatedSAETrainer(**common, l1_penalty=L1, sparsity_warmup_steps=0)
            bias = trainer.ae.gate_bias
        case "jumprelu":
            trainer = jumprelu.JumpReluTrainer(**common, sparsity_warmup_steps=0, target_l0=float(l0))
            bias = trainer.ae.b_enc
        case "topk":
            trainer, bias = top_k.TopKTrainer(**common, k=l0), None
        case "batchtopk":
            trainer, bias = batch_top_k.BatchTopKTrainer(**common, k=l0), None
        case "matryoshka_batchtopk":
            fractions = [1 / 64, 3 / 64, 12 / 64, 48 / 64]
            trainer = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer(**common, k=l0, group_fractions=fractions)
            bias = None
        case _:
            return None
    with torch.no_grad():
        if hasattr(trainer.ae, "encoder"):
            trainer.ae.encoder.weight.copy_(sae.W_enc.T)
        else:
            trainer.ae.W_enc.copy_(sae.W_enc)
        if bias is not None:
            bias.copy_(sae.b_gate if arch == "gated" else sae.b_enc)
    return trainer


def run_peer(trainer, batches):
    secs = []
    for step, x in enumerate(batches):
        started = time.perf_counter()
        trainer.update(step, x)
        secs.append(time.perf_counter() - started)
    return secs


def step_command():
    """Builds the program that runs saesweep's steps and says where it is."""
    build = ["cargo", "bench", "--quiet", "--profile", "release", "--locked", "--bench", "step", "--no-run",
             "--message-format", "json"]
    lines = subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    artifacts = (json.loads(line) for line in lines if line.startswith("{"))
    return next(a["executable"] for a in artifacts if a.get("target", {}).get("name") == "step" and a["executable"])


def start(*command):
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def result(process):
    out = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    return json.loads(out)


def median(secs):
    return statistics.median(secs[min(WARM_UP, len(secs) - 1):])


def torch_rate():
    """Operations per second of a large product with torch."""
    x, w = torch.full((1024, 1024), 0.5), torch.full((1024, 8192), 0.25)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        x @ w
        best = min(best, time.perf_counter() - started)
    return 2 * 1024 * 1024 * 8192 / best


def measure_limits(step, arch, shape, threads):
    """The floor of a step here and now. A matching pursuit's encoder is its decoder."""
    matrices = 1 if arch == "matching_pursuit" else 2
    return result(start(step, "--limits", *shape, "--threads", threads, "--matrices", matrices))


def compare(step, arch, shape, l0, threads, steps, with_peer):
    d_in, d_sae, batch = shape
    torch.set_num_threads(threads)
    sae, batches = problem(arch, d_in, d_sae, batch, l0, steps)
    peer = new_peer(arch, sae, l0, steps) if with_peer else None
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_problem(folder, arch, sae, batches, l0)
        run = (step, folder / "problem.safetensors", folder / "settings.json", "--threads", threads)
        limits = measure_limits(step, arch, shape, threads)
        first = result(start(*run))
        their_secs, their_losses = run_saelens(sae, batches)
        peer_secs = median(run_peer(peer, batches)) if peer else None
        second = result(start(*run))
    ours = statistics.median(first["secs"][WARM_UP:] + second["secs"][WARM_UP:])
    theirs = median(their_secs)
    apart = max(abs(x - y) / abs(y) for x, y in zip(first["losses"], their_losses))
    l0 = statistics.mean(first["l0"][WARM_UP:])
    beside = f"{peer_secs:.3f} | {peer_secs / ours:.1f}" if peer else "- | -"
    print(f"| {arch} | {d_in} × {d_sae} × {batch} | {l0:.0f} | {threads} | {theirs:.3f} | {beside} | {ours:.3f} "
          f"| {theirs / ours:.1f} | {ours / (limits['product_secs'] + limits['state_secs']):.2f} | {apart:.1e} |", flush=True)


def together(step, arch, shape, l0, steps):
    """Throughput of two trials side by side with one thread each, against one alone."""
    sae, batches = problem(arch, *shape, l0, steps)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_problem(folder, arch, sae, batches, l0)
        run = (step, folder / "problem.safetensors", folder / "settings.json", "--threads", 1)
        alone = median(result(start(*run))["secs"])
        both = [start(*run), start(*run)]
        side_by_side = [median(result(process)["secs"]) for process in both]
    d_in, d_sae, batch = shape
    gain = sum(alone / secs for secs in side_by_side)
    print(f"{arch}, {d_in} × {d_sae} × {batch}, L0 {l0}: alone {alone:.3f} s a step, side by side "
          f"{side_by_side[0]:.3f} and {side_by_side[1]:.3f} s: {gain:.2f} × the throughput", flush=True)


def profile(step, arch, shape, l0, threads, steps):
    """Mean milliseconds of every phase of saesweep's step."""
    sae, batches = problem(arch, *shape, l0, steps)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_problem(folder, arch, sae, batches, l0)
        limits = measure_limits(step, arch, shape, threads)
        out = result(start(step, folder / "problem.safetensors", folder / "settings.json", "--threads", threads,
                           "--profile"))
    phases = out["phases"]
    cells = " | ".join(f"{phases[name] * 1e3:.1f}" if name in phases else "-" for name in PHASES)
    print(f"| {arch} | {' × '.join(map(str, shape))} | {statistics.mean(out['l0'][WARM_UP:]):.0f} | {threads} | {cells} "
          f"| {sum(phases.values()) * 1e3:.0f} | {limits['product_secs'] * 1e3:.0f} | {limits['state_secs'] * 1e3:.0f} |",
          flush=True)


def main():
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", nargs="+", default=["standard"], choices=[*ARCHITECTURES, "all"])
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("D_IN", "D_SAE", "BATCH"))
    parser.add_argument("--l0", type=int, nargs="+", default=[60])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--no-dictionary-learning", action="store_true")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    shapes = args.shape or [[1024, 16384, 1024]]
    logging.disable(logging.CRITICAL)
    step = step_command()
    archs = ARCHITECTURES if "all" in args.arch else args.arch
    points = [(arch, shape, l0) for shape in shapes for arch in archs for l0 in args.l0]
    if args.together:
        for point in points:
            together(step, *point, args.steps)
        return
    if args.profile:
        print(f"ms\n\n| architecture | d_in × d_sae × batch | L0 | threads | {' | '.join(PHASES)} | step | dense product "
              f"at its limit | one pass over the state |\n|{'---|' * (len(PHASES) + 7)}")
        for point in points:
            for threads in args.threads:
                profile(step, *point, threads, args.steps)
        return
    for threads in args.threads:
        torch.set_num_threads(threads)
        limits = measure_limits(step, "standard", shapes[0], threads)
        print(f"{threads} thread(s): f32 product {limits['product_gflops']:.0f} GFlop/s with gemm, "
              f"{torch_rate() / 1e9:.0f} with torch {torch.__version__}; {limits['bandwidth_gb']:.1f} GB/s read and "
              f"written; kernels for {limits['isa']}")
    print("\n| architecture | d_in × d_sae × batch | L0 | threads | SAELens s | dictionary_learning s | ratio | saesweep s "
          "| ratio to SAELens | step / floor | losses differ by |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for point in points:
        for threads in args.threads:
            compare(step, *point, threads, args.steps, not args.no_dictionary_learning)


if __name__ == "__main__":
    main()
