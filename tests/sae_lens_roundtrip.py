"""Opens SAE folders that this program wrote with the real packages and compares a forward pass.

Usage, with `pip install sae-lens dictionary-learning` (last used with 6.54.12 and 0.1.0):

    cargo test --release --test it sae_
    python tests/sae_lens_roundtrip.py target/tmp/sae_lens_roundtrip/*

The tests write the folders, each with `forward.safetensors`: activations x (B, D), the latents (B, F) and the
reconstruction (B, D) that this program computed from them. A folder without that file, such as `sae/` of a
trial or an export of one, is opened and run on random activations. A `runner_cfg.json` must be one that SAELens
takes; a folder with `ae.safetensors` is opened by dictionary_learning, through an `ae.pt` made from it.
Prints one line a folder, the largest deviations at the end, and exits with 1 when one exceeds 1e-5 relative to
the largest value of its tensor.
"""
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from sae_lens import SAE, LanguageModelSAERunnerConfig

TOLERANCE = 1e-5

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)


def deviation(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def open_sae_lens(folder):
    sae = SAE.load_from_disk(folder)
    cfg = sae.cfg
    what = f"{cfg.architecture()} {cfg.d_in} x {cfg.d_sae} of trial {cfg.metadata.saesweep_trial}"
    runner = folder / "runner_cfg.json"
    if runner.exists():
        fields = json.loads(runner.read_text())
        fields["verbose"] = False
        runner = LanguageModelSAERunnerConfig.from_dict(fields)
        again = runner.to_dict()
        # What SAELens fills in by itself.
        again["logger"]["run_name"] = None
        again["sae"].pop("metadata")
        changed = sorted(key for key in fields if key != "checkpoint_path" and again[key] != fields[key])
        missing = sorted(set(again) - set(fields))
        if changed or missing or runner.sae.d_in != cfg.d_in:
            raise SystemExit(f"{folder.name}: runner_cfg.json comes back changed: {changed} {missing}")
        what += ", with the configuration of its run"
    return cfg.d_in, sae.encode, sae, what


def open_dictionary_learning(folder):
    from dictionary_learning.utils import load_dictionary

    with tempfile.TemporaryDirectory() as place:
        torch.save(load_file(folder / "ae.safetensors"), f"{place}/ae.pt")
        Path(place, "config.json").write_text((folder / "config.json").read_text())
        sae, config = load_dictionary(place, "cpu")
    what = f"{type(sae).__name__} {sae.activation_dim} x {sae.dict_size} of trial {config['saesweep']['trial']}"
    return sae.activation_dim, sae.encode, sae, what


@torch.no_grad()
def check(folder):
    opens = open_dictionary_learning if (folder / "ae.safetensors").exists() else open_sae_lens
    d_in, encode, sae, what = opens(folder)
    forward = folder / "forward.safetensors"
    if not forward.exists():
        finite = bool(torch.isfinite(sae(torch.randn(64, d_in))).all())
        print(f"{folder.name}: {what} opens; its output is {'finite' if finite else 'NOT FINITE'}")
        return 0.0 if finite else float("inf")
    tensors = load_file(forward)
    acts = encode(tensors["x"])
    worst = deviation(sae(tensors["x"]), tensors["x_hat"])
    # Of this class the decoder is normalised as it is opened: latents come in other units, reconstructions do not.
    if type(sae).__name__ != "AutoEncoder":
        worst = max(worst, deviation(acts, tensors["acts"]))
    same_latents = torch.equal(acts != 0, tensors["acts"] != 0)
    print(f"{folder.name}: {what}, deviates by {worst:.1e}, "
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
