"""Training speed against SAELens on the same activations, weights and settings, in one run on one machine.

    python tests/bench/against_saelens.py [--shape D_IN D_SAE BATCH] [--l0 60] [--threads 1 2] [--steps 12]

Needs sae-lens (6.54) and cargo. For every thread count it writes one problem (batches and initial weights, with
encoder biases set so that about `--l0` latents fire per token), runs SAELens' own `SAETrainer._train_step` and
saesweep's step on it, alternating so that both meet the same machine, and prints the median seconds per step,
their ratio, and how far the losses of the two trajectories lie apart. The first two steps are warm-up.
"""

import argparse
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
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
ROOT = pathlib.Path(__file__).resolve().parents[2]
LR, L1 = 5e-5, 5.0
WARM_UP = 2


def new_sae(d_in, d_sae):
    torch.manual_seed(0)
    return StandardTrainingSAE(StandardTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, normalize_activations="none", l1_coefficient=L1))


def problem(d_in, d_sae, batch, l0, steps):
    """Gaussian batches of norm sqrt(d_in), and an SAE whose latents fire on `l0` of them on average."""
    sae = new_sae(d_in, d_sae)
    torch.manual_seed(1)
    batches = torch.randn(steps, batch, d_in)
    with torch.no_grad():
        pre = batches[0] @ sae.W_enc
        threshold = torch.topk(pre.flatten(), l0 * batch).values[-1]
        sae.b_enc.fill_(-threshold)
    return sae, batches


def run_saelens(sae, batches):
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
    trainer.fit()
    return secs, losses


def run_saesweep(path, threads):
    build = ["cargo", "bench", "--quiet", "--profile", "release", "--locked", "--bench", "step"]
    out = subprocess.run([*build, "--", str(path), "--threads", str(threads), "--lr", str(LR), "--l1", str(L1)],
                         cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=3, default=[1024, 16384, 1024])
    parser.add_argument("--l0", type=int, nargs="+", default=[60])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    d_in, d_sae, batch = args.shape
    print("| d_in | d_sae | batch | L0 | threads | SAELens s/step | saesweep s/step | ratio | losses differ by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for l0 in args.l0:
        for threads in args.threads:
            torch.set_num_threads(threads)
            sae, batches = problem(d_in, d_sae, batch, l0, args.steps)
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "problem.safetensors"
                save_file({"batches": batches, "w_enc": sae.W_enc.detach().T.contiguous(),
                           "w_dec": sae.W_dec.detach().clone(), "b_enc": sae.b_enc.detach().clone(),
                           "b_dec": sae.b_dec.detach().clone()}, path)
                first = run_saesweep(path, threads)
                their_secs, their_losses = run_saelens(sae, batches)
                second = run_saesweep(path, threads)
            theirs = statistics.median(their_secs[WARM_UP:])
            ours = statistics.median(first["secs"][WARM_UP:] + second["secs"][WARM_UP:])
            apart = max(abs(x - y) / abs(y) for x, y in zip(first["losses"], their_losses))
            measured_l0 = statistics.mean(first["l0"][WARM_UP:])
            print(f"| {d_in} | {d_sae} | {batch} | {measured_l0:.0f} | {threads} | {theirs:.3f} | {ours:.3f} "
                  f"| {theirs / ours:.2f} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
