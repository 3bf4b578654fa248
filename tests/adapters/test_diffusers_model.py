"""diffusers' own transformer and duration embedder, with our adapter, give our output."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from sa3lora.adapters.files import read_adapter
from sa3lora.adapters.fold import AdapterStack
from sa3lora.adapters.names import diffusers_rows, reorder_rows, to_diffusers
from sa3lora.adapters.peft_write import write_diffusers_folder
from sa3lora.models.source import resolve_model

diffusers = pytest.importorskip("diffusers", minversion="0.42.1")
PADDING = "conditioners.prompt.padding_embedding"
# Not layers, so no sites: they have no name in `names`.
OTHERS = {
    "model.transformer.memory_tokens": "memory_tokens",
    "model.transformer.rotary_pos_emb.inv_freq": "rotary_pos_emb.inv_freq",
    PADDING: "prompt_padding_embedding",
}


def their_state(denoiser):
    """Our weights under the names of diffusers, fused rows in its order."""
    states = {"transformer": {}, "conditioner": {}}
    for name, tensor in denoiser.state_dict().items():
        if name in OTHERS:
            states["transformer"][OTHERS[name]] = tensor
            continue
        gate = name.endswith(".to_scale_shift_gate")
        site, last = (name, "") if gate else name.rsplit(".", 1)
        part, theirs = to_diffusers(site)
        order = (
            diffusers_rows(site, tensor.shape[0], tensor[0].numel()) if tensor.ndim > 1 else None
        )
        states[part][f"{theirs}.{last}".rstrip(".")] = reorder_rows(tensor, order)
    return states


def their_models(source, denoiser):
    from diffusers.models.transformers.transformer_stable_audio3 import (
        StableAudio3DiTModel,
        StableAudio3RMSNorm,
    )
    from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import (
        StableAudio3DurationEmbedder,
    )

    config = source.config.dit
    transformer = StableAudio3DiTModel(
        io_channels=config.io_channels, embed_dim=config.embed_dim, depth=config.depth,
        num_heads=config.num_heads, cond_token_dim=config.cond_token_dim,
        global_cond_dim=config.global_cond_dim, local_add_cond_dim=config.local_add_cond_dim,
        timestep_features_dim=config.timestep_features_dim, ff_mult=config.ff_mult,
        num_memory_tokens=config.num_memory_tokens,
        use_differential_attention=config.differential,
    ).eval()  # fmt: skip
    low, high = source.config.seconds_range
    duration = StableAudio3DurationEmbedder(
        output_dim=source.config.cond_dim, min_val=low, max_val=high
    ).eval()
    states = their_state(denoiser)
    transformer.load_state_dict(states["transformer"], strict=True)
    missing = duration.load_state_dict(states["conditioner"], strict=False)
    assert missing.unexpected_keys == []
    for name, norm in transformer.named_modules():
        if isinstance(norm, StableAudio3RMSNorm) and not name.endswith(("q_norm", "k_norm")):
            norm.eps = 1e-5  # diffusers has 1e-6 here, the released code and ours 1e-5
    return transformer, duration


@torch.no_grad()
def run_theirs(transformer, duration, *, x, t, local, tokens, mask, seconds):
    embedded = duration(seconds)
    cross = torch.cat([tokens, embedded[:, None]], dim=1)
    keep = torch.nn.functional.pad(mask, (0, 1), value=True)
    return transformer(
        hidden_states=x, timestep=t, encoder_hidden_states=cross, global_hidden_states=embedded,
        encoder_attention_mask=keep, local_add_cond=local,
    ).sample  # fmt: skip


@pytest.mark.parametrize("adapter_type", ["lora", "dora-rows"])
@pytest.mark.parametrize("case", ["medium", "small"])
def test_diffusers_with_the_adapter_gives_our_output(small_model, tmp_path, case, adapter_type):
    folder = small_model.parent / case
    source = resolve_model(str(folder))
    denoiser = source.load_denoiser()
    adapter = read_adapter(folder / f"adapter_{adapter_type}.safetensors")
    transformer, duration = their_models(source, denoiser)
    prompts = json.loads((folder / "io.json").read_text())["cases"]["cond"]
    io = load_file(folder / "io.safetensors")
    x, t, known, keep = io["dit.x"], io["dit.t"], io["dit.known"], io["dit.mask"]
    text = source.load_text_encoder().encode(prompts["prompts"])
    tokens = torch.nn.utils.rnn.pad_sequence(text, batch_first=True)
    longest = source.config.max_prompt_tokens
    tokens = torch.nn.functional.pad(tokens, (0, 0, 0, longest - tokens.shape[1])).float()
    mask = torch.arange(longest) < torch.tensor([len(item) for item in text])[:, None]
    inputs = {
        "x": x, "t": t, "local": torch.cat([keep, known], dim=1), "tokens": tokens, "mask": mask,
        "seconds": torch.tensor(prompts["seconds_total"]),
    }  # fmt: skip

    @torch.no_grad()
    def ours():
        conditioning = denoiser.condition(text, inputs["seconds"])
        return denoiser.velocity(x, t, conditioning, keep=keep[:, 0], known=known)

    base = ours()
    torch.testing.assert_close(
        run_theirs(transformer, duration, **inputs), base, rtol=1e-4, atol=1e-5
    )
    stack = AdapterStack(denoiser)
    stack.add(adapter, "a")
    expected = ours()
    kernels = {site: (12, 1) for site in adapter.sites if site.endswith("_conv")}
    write_diffusers_folder(tmp_path, adapter, kernels=kernels)
    adapted = PeftModel.from_pretrained(transformer, tmp_path / "transformer").eval()
    embedder = PeftModel.from_pretrained(duration, tmp_path / "conditioner").eval()
    found = run_theirs(adapted, embedder, **inputs)
    assert float((expected - base).norm() / base.norm()) > 0.05
    error = float((found - expected).norm() / expected.norm())
    assert error < 2e-5
