"""Trains the small language model that the quickstart sweep looks into, and writes `model/`.

    python train_model.py [--epochs 16]

Needs torch, transformers and tokenizers. Everything it reads is `stories.jsonl` beside it: the last 5 % of
the stories are held out, a byte-level BPE and a GPT-Neo (4 layers, width 128, alternating global and local
attention) are trained on the rest, and the epoch with the lowest held-out loss is kept. It prints that loss
beside the losses of a unigram and a bigram model of the same tokens, and writes them to `model/card.json`.
"""

import argparse
import json
import math
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoConfig, GPTNeoForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
VOCAB_SIZE, CONTEXT_SIZE, BATCH_SIZE = 2048, 128, 16
BOS = "<|endoftext|>"


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def stream(tokenizer, texts):
    """All stories one after another, each behind a BOS."""
    bos = tokenizer.token_to_id(BOS)
    return np.array([token for text in texts for token in [bos, *tokenizer.encode(text).ids]])


def sequences(tokens, offset=0):
    n = (len(tokens) - offset) // CONTEXT_SIZE
    return torch.tensor(tokens[offset:offset + n * CONTEXT_SIZE].reshape(n, CONTEXT_SIZE))


def ngram_losses(train, held_out):
    """Held-out nats per token of an add-0.1 unigram and of the bigram that backs off to it, best mixture."""
    uni = np.bincount(train, minlength=VOCAB_SIZE) + 0.1
    uni = uni / uni.sum()
    pairs = np.zeros((VOCAB_SIZE, VOCAB_SIZE))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    seen = pairs.sum(1, keepdims=True)
    before, after = held_out[:-1], held_out[1:]
    bigram = min(
        -np.log((pairs[before, after] + weight * uni[after]) / (seen[before, 0] + weight)).mean()
        for weight in (1, 2, 5, 10, 20, 50, 100))
    return -np.log(uni[after]).mean(), bigram


def loss_of(model, batch):
    logits = model(input_ids=batch).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=16)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    texts = [json.loads(line)["text"] for line in (HERE / "stories.jsonl").open()]
    cut = len(texts) - math.ceil(len(texts) * 0.05)
    tokenizer = train_tokenizer(texts[:cut])
    train, held_out = stream(tokenizer, texts[:cut]), stream(tokenizer, texts[cut:])
    unigram, bigram = ngram_losses(train, held_out)
    print(f"{len(train)} training tokens, {len(held_out)} held out; unigram {unigram:.3f}, bigram {bigram:.3f}", flush=True)

    bos = tokenizer.token_to_id(BOS)
    config = GPTNeoConfig(
        vocab_size=VOCAB_SIZE, max_position_embeddings=2 * CONTEXT_SIZE, hidden_size=128, num_layers=4,
        num_heads=4, attention_types=[[["global", "local"], 2]], window_size=32, intermediate_size=512,
        resid_dropout=0.15, embed_dropout=0.15, attention_dropout=0.1, bos_token_id=bos, eos_token_id=bos)
    model = GPTNeoForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, betas=(0.9, 0.98))
    total = epochs * (len(train) // CONTEXT_SIZE // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=total + epochs, pct_start=0.05)
    test = sequences(held_out)
    best, kept = math.inf, None
    for epoch in range(epochs):
        model.train()
        batches = sequences(train, int(rng.integers(CONTEXT_SIZE)))
        for rows in torch.tensor(rng.permutation(len(batches))).split(BATCH_SIZE):
            loss = loss_of(model, batches[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if schedule.last_epoch < total + epochs - 1:
                schedule.step()
        model.eval()
        with torch.no_grad():
            held = np.mean([loss_of(model, batch).item() for batch in test.split(32)])
        print(f"epoch {epoch + 1}: training {loss.item():.3f}, held out {held:.3f}", flush=True)
        if held < best:
            best, kept = held, {name: tensor.detach().half().clone() for name, tensor in model.state_dict().items()}

    out = HERE / "model"
    out.mkdir(exist_ok=True)
    kept = {name: tensor.contiguous() for name, tensor in kept.items()
            if name != "lm_head.weight" and not name.endswith((".attention.bias", ".masked_bias"))}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    config.architectures = ["GPTNeoForCausalLM"]
    config.save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": BOS, "model_max_length": 256}, indent=2) + "\n")
    (out / "card.json").write_text(json.dumps(
        {"training_tokens": len(train), "held_out_tokens": len(held_out), "held_out_loss_nats": round(float(best), 3),
         "unigram_loss_nats": round(float(unigram), 3), "bigram_loss_nats": round(float(bigram), 3)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
