"""Opens SAE folders that this program wrote with the real SAELens and compares a forward pass.

Usage, with `pip install sae-lens` (6.x; last used with 6.54.12):

    cargo test --release --test it sae_format
    python tests/sae_lens_roundtrip.py target/tmp/sae_lens_roundtrip/*

The tests write the folders, each with `forward.safetensors`: activations x (B, D), the latents (B, F) and the
reconstruction (B, D) that this program computed from them. A folder without that file, such as `sae/` of a
trial, is opened and run on random activations. Prints one line a folder, the largest deviations at the end,
and exits with 1 when one exceeds 1e-5 relative to the largest value of its tensor.
"""
import logging
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from sae_lens import SAE

TOLERANCE = 1e-5

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)


def deviation(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


@torch.no_grad()
def check(folder):
    sae = SAE.load_from_disk(folder)
    metadata = sae.cfg.metadata
    forward = folder / "forward.safetensors"
    if not forward.exists():
        x = torch.randn(64, sae.cfg.d_in)
        finite = bool(torch.isfinite(sae(x)).all())
        print(f"{folder.name}: {sae.cfg.architecture()} {sae.cfg.d_in} x {sae.cfg.d_sae} of trial "
              f"{metadata.saesweep_trial} opens; its output is {'finite' if finite else 'NOT FINITE'}")
        return 0.0 if finite else float("inf")
    tensors = load_file(forward)
    acts = sae.encode(tensors["x"])
    worst = max(deviation(acts, tensors["acts"]), deviation(sae(tensors["x"]), tensors["x_hat"]))
    same_latents = torch.equal(acts != 0, tensors["acts"] != 0)
    print(f"{folder.name}: {sae.cfg.architecture()} {sae.cfg.d_in} x {sae.cfg.d_sae}, deviates by {worst:.1e}, "
          f"{'the same' if same_latents else 'NOT THE SAME'} latents are active")
    return worst if same_latents else float("inf")


def main():
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    worst = max(check(folder) for folder in folders)
    print(f"{len(folders)} folders, largest deviation {worst:.1e} (allowed {TOLERANCE:.0e})")
    sys.exit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
