"""The smallest models that still have every kind of part, for tests in both trees."""

from common.models import TransformerConfig, VAEConfig


def tiny_vae_config(**changes) -> VAEConfig:
    fields = {
        "base_channels": 4,
        "latent_dim": 4,
        "norm_type": "layernorm",
        "t_interpolation": "trilinear",
        "encoder_num_resblocks": 1,
        "decoder_num_resblocks": 1,
        "encoder_energy_flow_hidden_size": 4,
        "decoder_energy_flow_hidden_size": 4,
    }
    return VAEConfig(**{**fields, **changes})


def tiny_transformer_config(**changes) -> TransformerConfig:
    fields = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "cross_attention_dim": 24,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 6,
        "caption_channels": 16,
        "sparse_n": 2,
    }
    return TransformerConfig(**{**fields, **changes})


def build(tree, kind, config, seed=0, dtype="float32"):
    """A model of one of our trees with random weights drawn by name."""
    model = {
        "vae": lambda: tree.vae.WFVAE(config),
        "transformer": lambda: tree.transformer.Transformer(config),
    }[kind]()
    tree.loading.initialize(model, seed)
    return tree.runtime.place(tree.runtime.cast(model, dtype), tree.device)
